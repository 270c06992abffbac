"""The ground truth in Parquet, by which findings are scored.

A folder with one folder per table, one file per call: ``faults``, ``flows``, ``iterations``, ``bursts``, ``links``. Times are UTC by the
fabric's own clock, which no device has. A burst is a maximal sequence of samples above half of the line rate [Zhang et al., IMC 2017]; one
that is open at the end of a step is written when it ends, or by ``close``.
"""

from pathlib import Path

import numba
import numpy as np
import polars as pl

from .fabric import Fabric, Step

HOT_RATIO = 0.5


@numba.njit(cache=True)
def _bursts(sent, threshold, carry, first, rows):
    """Write finished bursts to ``rows`` (n, 5) int64: port, first sample, end sample, bytes, peak bytes; return how many.

    ``sent`` (samples, ports) and ``threshold`` (ports,) are bytes per sample, int64. ``carry`` (ports, 3) int64 is the open burst of each
    port: first sample or -1, bytes, peak. ``first`` is the number of the first sample.
    """
    found = 0
    for p in range(sent.shape[1]):
        for k in range(sent.shape[0]):
            value = sent[k, p]
            if value > threshold[p]:
                if carry[p, 0] < 0:
                    carry[p, 0], carry[p, 1], carry[p, 2] = first + k, 0, 0
                carry[p, 1] += value
                carry[p, 2] = max(carry[p, 2], value)
            elif carry[p, 0] >= 0:
                rows[found, 0], rows[found, 1], rows[found, 2] = p, carry[p, 0], first + k
                rows[found, 3], rows[found, 4] = carry[p, 1], carry[p, 2]
                carry[p, 0] = -1
                found += 1
    return found


class Answers:
    """Writes the ground truth of a fabric into a folder; the same steps give the same files."""

    def __init__(self, folder: Path, fabric: Fabric) -> None:
        self._folder, self._fabric = folder, fabric
        topology, config = fabric.topology, fabric.config
        self._threshold = (topology.speed_bps / 8 * (config.sample_ns / 1e9) * HOT_RATIO).astype(np.int64)
        self._carry = np.full((topology.ports, 3), -1, np.int64)
        self._devices = np.array(topology.device_names)[topology.owner]
        self._ports = np.array(topology.port_names)
        self._jobs = np.array([job.name for job in fabric.workload.jobs] or [""])
        self._parts = 0
        self._sample = 0
        for name in ("faults", "flows", "iterations", "bursts", "links"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._write("faults", self._faults())

    def write(self, step: Step) -> None:
        """Write a step. Call for every step, in order."""
        rows = np.empty((step.sent.size // 2 + len(self._carry), 5), np.int64)
        found = _bursts(step.sent, self._threshold, self._carry, self._sample, rows)
        self._sample += len(step.sent)
        self._write("bursts", self._burst_rows(rows[:found]))
        self._write("flows", self._flows(step))
        self._write("iterations", self._iterations(step))
        self._write("links", self._links(step))
        self._parts += 1

    def close(self) -> None:
        """Write the open bursts up to the last sample. Idempotent."""
        ports = np.flatnonzero(self._carry[:, 0] >= 0)
        rows = np.column_stack([ports, self._carry[ports, 0], np.full(len(ports), self._sample), self._carry[ports, 1:]])
        self._carry[:, 0] = -1
        self._write("bursts", self._burst_rows(rows))
        self._parts += 1

    def _write(self, table: str, frame: pl.DataFrame) -> None:
        if frame.height:
            frame.write_parquet(self._folder / table / f"{self._parts:06d}.parquet")

    def _faults(self) -> pl.DataFrame:
        start = self._fabric.config.start_ns
        faults = self._fabric.config.faults
        rows = [(one.kind, one.place, start + one.begin_ns, min(start + one.end_ns, 2**62), one.severity) for one in faults]
        schema = {"kind": pl.String, "place": pl.String, "begin_ts": pl.Int64, "end_ts": pl.Int64, "severity": pl.Float64}
        return pl.DataFrame(rows, schema, orient="row")

    def _burst_rows(self, rows: np.ndarray) -> pl.DataFrame:
        port, first, end, size, peak = rows.T
        grain, start = self._fabric.config.sample_ns, self._fabric.config.start_ns
        return pl.DataFrame(
            {
                "device": self._devices[port],
                "port": self._ports[port],
                "start_ts": start + first * grain,
                "duration_ns": (end - first) * grain,
                "bytes": size,
                "peak_bytes": peak,
                "interval_ns": np.full(len(port), grain),
            }
        )

    def _flows(self, step: Step) -> pl.DataFrame:
        flow, begin, end, size = step.flows.T
        flows, topology, start = self._fabric.world.flows, self._fabric.topology, self._fabric.config.start_ns
        addresses = np.array([topology.address(n) for n in range(topology.adapters)])
        return pl.DataFrame(
            {
                "job": self._jobs[self._fabric.world.members.job[flows.member[flow]]],
                "src": addresses[flows.source[flow]],
                "dst": addresses[flows.target[flow]],
                "qp": flows.queue_pair[flow],
                "begin_ts": start + begin,
                "end_ts": start + end,
                "bytes": size,
            }
        )

    def _iterations(self, step: Step) -> pl.DataFrame:
        job, number, begin, end, comm, slowest, wait = step.iterations.T
        topology, start = self._fabric.topology, self._fabric.config.start_ns
        gpu = self._fabric.world.members.gpu[slowest]
        return pl.DataFrame(
            {
                "job": self._jobs[job],
                "n": number,
                "start_ts": start + begin,
                "period_ns": end - begin,
                "comm_ns": comm,
                "slowest_device": np.array(topology.device_names)[gpu // topology.rails],
                "slowest_gpu": gpu % topology.rails,
                "slowest_wait_ns": wait,
            }
        )

    def _links(self, step: Step) -> pl.DataFrame:
        values = {"sent": step.sent, "received": step.received, "queued": step.depth}
        lists = {name: pl.Series(np.ascontiguousarray(column.T)).cast(pl.List(pl.UInt64)) for name, column in values.items() if len(column)}
        if not lists:
            return pl.DataFrame()
        count, config = len(self._ports), self._fabric.config
        fixed = {"ts": np.full(count, config.start_ns + step.first_ns), "interval_ns": np.full(count, config.sample_ns)}
        return pl.DataFrame({"device": self._devices, "port": self._ports, **fixed, **lists})
