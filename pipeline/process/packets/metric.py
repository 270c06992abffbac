"""Decoded RoCEv2 packets to the statistics of their windows: ``roce`` and ``latency``.

This module counts single packets. The kernel in ``sequence.py`` follows sequence numbers and acknowledgements; its state is carried
from window to window. Sampled packets (``sampling_rate`` above 1) are counted but not followed. Packets are sorted by time, and
packets of one time by the order of the log.
"""

import io
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import polars as pl

from ...tables.families import FAMILIES
from ...tables.field import WINDOW_NS
from ...tables.states import STATES
from ..base import Closing, WindowMetric
from ..latency import statistics
from . import sequence, state

_KEY = ("ts", "device", "src", "dst", "opcode")
_FLOW = ("src", "dst", "qp")
_COLUMNS = ("ts", *_FLOW, "opcode", "psn", "ack_psn", "syndrome", "dma_bytes", "payload_bytes", "credits", "length", "ecn", "sampling_rate")
_CARRIED = tuple(name for name in state.FLOW.names or () if name not in ("head", "tail"))
_WAITING = ("psn", "ts", "flags")
_KEY_TYPES = {"src": pl.String, "dst": pl.String, "qp": pl.UInt32}


@dataclass(frozen=True, slots=True)
class PacketMetricConfig:
    """Limits of the carried state of a device; beyond them the oldest entries are dropped and counted.

    ``flows_max``: flows with a followed sequence, ``pending_max``: requests that wait for an acknowledgement.
    """

    flows_max: int = 8192
    pending_max: int = 16384


@dataclass(slots=True)
class _DeviceFlows:
    """The flows of a device: their keys and, by the same index, their state."""

    keys: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_KEY_TYPES))
    flows: np.ndarray = field(default_factory=lambda: state.new_flows(0))
    pending: np.ndarray = field(default_factory=lambda: np.empty(0, state.PENDING))

    @property
    def waiting(self) -> int:
        return int((self.flows["tail"] - self.flows["head"]).sum())


class PacketMetric(WindowMetric):
    """``WindowMetric`` of the family ``packet``."""

    family = "packet"

    def __init__(self, config: PacketMetricConfig | None = None) -> None:
        self._config = config or PacketMetricConfig()
        self._devices: dict[str, _DeviceFlows] = {}
        self._counts = np.zeros(len(state.COUNTS), np.int64)
        self._flows_dropped = 0

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of the closed windows; see ``WindowMetric``."""
        device = self._devices.pop(closing.device, None) or _DeviceFlows()
        rows = _rows(closing)
        marks, latency = self._follow(device, rows, closing.end_ns)
        roce = _roce(rows, marks, closing.device)
        if not closing.ended and device.keys.height:
            self._devices[closing.device] = device
        return {"roce": roce, "latency": statistics(latency.with_columns(kind=pl.lit("ack")), closing.device)}

    def carry(self, device: str) -> bytes:
        """Return the flows of ``device`` as an Arrow stream, one row each with its waiting requests as lists."""
        known = self._devices.get(device)
        if known is None:
            return b""
        count = known.flows["tail"] - known.flows["head"]
        flow = np.repeat(np.arange(len(count)), count)
        waiting = pl.DataFrame({"flow": flow, **{name: np.ascontiguousarray(known.pending[name]) for name in _WAITING}})
        lists = waiting.group_by("flow", maintain_order=True).all()
        frame = known.keys.with_columns(
            pl.Series("flow", np.arange(len(count))), *(pl.Series(name, np.ascontiguousarray(known.flows[name])) for name in _CARRIED)
        )
        buffer = io.BytesIO()
        frame = frame.join(lists, on="flow", how="left", maintain_order="left").drop("flow")
        frame.write_ipc_stream(buffer, compression="zstd")
        return buffer.getvalue()

    def restore(self, device: str, carry: bytes) -> None:
        """Restore a carry."""
        self._devices.pop(device, None)
        if not carry:
            return
        frame = pl.read_ipc_stream(io.BytesIO(carry))
        flows = state.new_flows(frame.height)
        # Fields that an older carry lacks keep their initial value.
        for name in set(_CARRIED) & set(frame.columns):
            flows[name] = frame[name].to_numpy()
        bounds = np.concatenate([[0], np.cumsum(frame["psn"].list.len().fill_null(0).to_numpy().astype(np.int64))])
        flows["head"], flows["tail"] = bounds[:-1], bounds[1:]
        pending = np.empty(bounds[-1], state.PENDING)
        for name in _WAITING:
            pending[name] = frame[name].drop_nulls().explode().to_numpy()
        self._devices[device] = _DeviceFlows(frame.select(_FLOW), flows, pending)

    def counters(self) -> dict[str, float]:
        """Return the acknowledgements, requests and flows not measured since the start, by reason."""
        counts = dict(zip(state.COUNTS, self._counts.tolist(), strict=True)) | {"flows_dropped": self._flows_dropped}
        return {f"weft_pipeline_packets_{name}_total": float(number) for name, number in counts.items()}

    def _follow(self, device: _DeviceFlows, rows: pl.DataFrame, end_ns: int) -> tuple[np.ndarray, pl.DataFrame]:
        """Return gaps, missing and repeats of each row, and the latency samples; bring ``device`` to ``end_ns``."""
        marks = np.zeros((3, rows.height), np.int64)
        whole = pl.all_horizontal(pl.col(*_FLOW, "opcode", "psn").is_not_null())
        followed = rows.select(whole & (pl.col("sampling_rate") == 1)).to_series()
        index = followed.arg_true().to_numpy()
        packets = rows.filter(followed)
        samples = []
        for part in self._parts(device, packets):
            span = slice(part[0], part[1])
            ends = part[1] == packets.height
            piece = packets[span]
            until = end_ns if ends else int(packets["ts"][part[1]]) // WINDOW_NS * WINDOW_NS
            marked, sample = self._advance(device, piece, until)
            marks[:, index[span]] = marked
            samples.append(sample)
        return marks, pl.concat(samples)

    def _parts(self, device: _DeviceFlows, packets: pl.DataFrame) -> list[tuple[int, int]]:
        # Limits apply at the ends of windows. If they cannot be reached, one call computes all windows; the result is the same.
        keys = packets.select(_FLOW).unique().height
        ackable = int(np.count_nonzero(sequence.is_acknowledged(packets["opcode"].to_numpy())))
        if device.keys.height + keys <= self._config.flows_max and device.waiting + ackable <= self._config.pending_max:
            return [(0, packets.height)]
        window = packets["ts"].to_numpy() // WINDOW_NS
        cuts = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), packets.height]
        return list(pairwise(cuts))

    def _advance(self, device: _DeviceFlows, packets: pl.DataFrame, until_ns: int) -> tuple[np.ndarray, pl.DataFrame]:
        _add_flows(device, packets)
        numbered = device.keys.with_row_index("flow")
        packets = packets.join(numbered, on=_FLOW, how="left", maintain_order="left")
        numbers = np.empty(packets.height, state.PACKET)
        for name in state.PACKET.names or ():
            numbers[name] = packets[name].cast(pl.Int64).fill_null(-1).to_numpy()
        room = np.bincount(numbers["flow"][sequence.is_acknowledged(numbers["opcode"])], minlength=len(device.flows))
        pending = sequence.lay_out(device.flows, device.pending, room)
        tracker = state.Tracker(device.flows, pending, _requesters(device), self._counts)
        marks, (packet, request, latency_ns) = sequence.follow(numbers, tracker)
        sequence.expire(tracker, until_ns)
        device.pending = sequence.lay_out(device.flows, pending, np.zeros(len(device.flows), np.int64))
        window = (packets["ts"].gather(packet) // WINDOW_NS * WINDOW_NS).alias("ts")
        samples = device.keys[request].select("src", "dst").with_columns(window, pl.Series("ns", latency_ns))
        self._limit(device)
        return marks, samples

    def _limit(self, device: _DeviceFlows) -> None:
        flows, config = device.flows, self._config
        surplus = len(flows) - config.flows_max
        if surplus > 0:
            oldest = np.argsort(flows["last_ts"], kind="stable")
            _keep_only(device, np.sort(oldest[surplus:]))
            self._flows_dropped += surplus
        surplus = device.waiting - config.pending_max
        if surplus > 0:
            flow = np.repeat(np.arange(len(device.flows)), device.flows["tail"] - device.flows["head"])
            oldest = np.argsort(device.pending["ts"], kind="stable")[:surplus]
            device.flows["head"] += np.bincount(flow[oldest], minlength=len(device.flows))
            device.pending = sequence.lay_out(device.flows, device.pending, np.zeros(len(device.flows), np.int64))
            self._counts[state.COUNTS.index("requests_dropped")] += surplus


def _rows(closing: Closing) -> pl.DataFrame:
    rows = pl.concat([FAMILIES["packet"].empty().select(_COLUMNS), *closing.rows(_COLUMNS)])
    return rows.sort("ts", maintain_order=True).with_columns(pl.col("sampling_rate").fill_null(1))


def _add_flows(device: _DeviceFlows, packets: pl.DataFrame) -> None:
    """Add new flows in the order of their first packet."""
    keys = packets.select(_FLOW).unique(maintain_order=True)
    fresh = keys.join(device.keys, on=_FLOW, how="anti", maintain_order="left")
    device.keys = pl.concat([device.keys, fresh])
    device.flows = np.concatenate([device.flows, state.new_flows(fresh.height)])


def _keep_only(device: _DeviceFlows, chosen: np.ndarray) -> None:
    """Keep only these flows, in their order."""
    place = np.full(len(device.flows) + 1, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    device.keys, device.flows = device.keys[chosen], device.flows[chosen]
    for name in ("bound", "bound_by"):
        device.flows[name] = place[device.flows[name]]
    device.pending = sequence.lay_out(device.flows, device.pending, np.zeros(len(chosen), np.int64))


def _requesters(device: _DeviceFlows) -> state.Requesters:
    count = len(device.flows)
    _, number = np.unique(np.concatenate([device.keys["src"].to_numpy(), device.keys["dst"].to_numpy()]).astype(str), return_inverse=True)
    src, dst, base = number[:count].astype(np.int64), number[count:].astype(np.int64), 2 * count
    known, pair = np.unique(src * base + dst, return_inverse=True)
    wanted = dst * base + src
    at = np.minimum(np.searchsorted(known, wanted), max(0, len(known) - 1))
    opposite = np.where(known[at] == wanted, at, -1) if count else np.empty(0, np.int64)
    first = np.concatenate([[0], np.cumsum(np.bincount(pair, minlength=len(known)))])
    requesters = np.flatnonzero(device.flows["requests"] != 0)
    free = device.flows["bound_by"][requesters] < 0
    order = np.lexsort((~free, pair[requesters]))
    number = np.bincount(pair[requesters], minlength=len(known))
    sorted_pairs = pair[requesters[order]]
    flows = np.empty(count, np.int64)
    flows[first[sorted_pairs] + np.arange(len(order)) - (np.cumsum(number) - number)[sorted_pairs]] = requesters[order]
    free_number = np.bincount(pair[requesters[free]], minlength=len(known))
    wide = (each.astype(np.int64) for each in (pair, opposite, first, flows, free_number, number))
    return state.Requesters(*wide)


def _roce(rows: pl.DataFrame, marks: np.ndarray, device: str) -> pl.DataFrame:
    kind = (pl.col("syndrome") // 32) % 4
    has_credits = (kind == 0) & (pl.col("credits") != 31)
    credit, weight = pl.col("credits").filter(has_credits), pl.col("sampling_rate").cast(pl.UInt64)
    frame = rows.with_columns(
        (pl.col("ts") // WINDOW_NS * WINDOW_NS).alias("ts"),
        pl.lit(device).alias("device"),
        *(pl.Series(name, marks[k]) for k, name in enumerate(("psn_gaps", "psn_missing", "psn_repeats"))),
    )
    total = frame.group_by(_KEY).agg(
        pl.len().alias("packets"),
        weight.sum().alias("estimated_packets"),
        pl.col("length").cast(pl.UInt64).sum().alias("bytes"),
        pl.col("payload_bytes").cast(pl.UInt64).sum(),
        weight.filter(pl.col("ecn") == 3).sum().alias("ce_packets"),
        weight.filter(pl.col("ecn") != 0).sum().alias("ect_packets"),
        (kind == 3).sum().alias("naks"),
        (kind == 1).sum().alias("rnr_naks"),
        pl.col("psn_gaps", "psn_missing", "psn_repeats").sum(),
        has_credits.sum().alias("credit_count"),
        credit.cast(pl.UInt64).sum().alias("credit_total"),
        credit.min().alias("credit_low"),
        credit.max().alias("credit_high"),
    )
    return STATES["roce"].frame(total.sort(_KEY))
