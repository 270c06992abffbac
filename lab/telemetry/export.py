"""The steps of the virtual fabric as rows of the families, as collectors would produce them, marked ``lab``.

Faults of the telemetry act here: frozen or reset counters, samples that are lost or late, a clock that runs ahead. The ground truth keeps
the fabric's own numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ...pipeline.tables.families import FAMILIES
from ..fabric.fabric import Fabric, FabricCounters, Step
from ..fabric.faults import InjectedFault
from ..fabric.rng import unit, units, units_of
from ..fabric.state import PACKET_BYTES, PAYLOAD_BYTES
from ..fabric.topology import HOST
from ..switch.roce import WRITE_FIRST, WRITE_LAST, WRITE_MIDDLE

SOURCE = "lab"
QUEUE = "3"  # the lossless priority
DSCP = 26
POOL = "lossless"
MESSAGE_PACKETS = 256  # of an RDMA write of 1 MiB
NONE, CONGESTED = 2, 3  # ECN field: capable, congestion experienced
SKEW_DRAW, LOSS_DRAW, MARK_DRAW = 11 << 40, 12 << 40, 13 << 40
# Telemetry's own delay, device to collector.
DELAY_NS = 2 * NS_PER_MS
IDLE_W, BUSY_W = 120.0, 700.0
_ON_EXPORT = ("frozen_counter", "counter_reset", "lossy_collector", "late_collector", "skewed_clock")


@dataclass(frozen=True, slots=True)
class Packets:
    """Sampled packets as columns (n,): flow, time (ns since the start), operation, sequence number, and whether the packet is marked."""

    flow: np.ndarray
    at_ns: np.ndarray
    opcode: np.ndarray
    psn: np.ndarray
    marked: np.ndarray

    def pick(self, which: np.ndarray) -> "Packets":
        """Return a selection of the packets."""
        return Packets(self.flow[which], self.at_ns[which], self.opcode[which], self.psn[which], self.marked[which])

    def by_operation(self) -> Iterator[tuple[int, "Packets"]]:
        """Yield the packets operation by operation."""
        for opcode in np.unique(self.opcode).tolist():
            yield opcode, self.pick(self.opcode == opcode)


def sampled(fabric: Fabric, step: Step) -> Packets:
    """Return the packets sampled in a step; messages are of ``MESSAGE_PACKETS`` packets."""
    flow, at, number, chance = step.packets.T
    place = number % MESSAGE_PACKETS
    opcode = np.where(place == 0, WRITE_FIRST, np.where(place == MESSAGE_PACKETS - 1, WRITE_LAST, WRITE_MIDDLE))
    psn = (number + fabric.world.flows.queue_pair[flow] * 4099) % 2**24
    return Packets(flow, at, opcode, psn, units_of(fabric.seed, MARK_DRAW + flow, number) < chance / 2**40)


class FabricExporter:
    """Turns the steps of one fabric into frames. Pass each step once, in order: some columns are differences to earlier steps."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric, self._topology = fabric, fabric.topology
        self._faults = tuple(fault for fault in fabric.config.faults if fault.kind in _ON_EXPORT)
        for fault in self._faults:
            if fault.place not in self._topology.device_names:
                raise ValueError(f"{fault.kind}: there is no device {fault.place}")
        skew = 2 * units(fabric.seed, SKEW_DRAW, len(self._topology.tier)) - 1
        self._skew_ns = (skew * fabric.config.clock_skew_ns).astype(np.int64)
        self._names = np.array(self._topology.device_names)
        self._port_names = np.array(self._topology.port_names)
        self._busy_ns = np.zeros(self._topology.adapters, np.int64)
        self._read_ns = 0
        self._frozen: dict[tuple[str, int], pl.DataFrame] = {}
        self._zero: dict[tuple[str, int], pl.DataFrame] = {}

    def frames(self, step: Step) -> dict[str, pl.DataFrame]:
        """Return the rows of a step by family; families without rows are left out."""
        parts: dict[str, list[pl.DataFrame]] = {
            "burst_sample": [self._samples(step)],
            "event": [self._events(step)],
            "packet": [self._packets(step)],
            "latency": [self._latency(step)],
        }
        for sample in step.counters:
            links, gpus = self._gpu_rows(sample)
            rows = {"port": self._port_rows(sample), "queue": self._queue_rows(sample), "nic": self._nic_rows(sample)}
            for family, frame in {**rows, "nvlink": links, "gpu": gpus}.items():
                parts.setdefault(family, []).append(self._distort(family, frame, sample.at_ns))
        made = {family: pl.concat(frames) for family, frames in parts.items()}
        return {family: frame for family, frame in made.items() if frame.height}

    def inventory(self) -> pl.DataFrame:
        """Return devices, ports, the links at them, and jobs, as rows of ``inventory``."""
        topology, count = self._topology, len(self._topology.tier)
        ports = np.arange(topology.ports)
        tiers = np.array(["host", "leaf", "spine", "core"])[topology.tier]
        rack = [str(rack) if rack >= 0 else None for rack in topology.rack.tolist()]
        at = self._fabric.config.start_ns
        devices = self._rows("inventory", at, np.arange(count), kind="device", key=self._names, tier=tiers, role=tiers, rack=rack)
        adapter = np.minimum(ports, ports ^ 1) // 2
        at_host = (topology.stage == 0) | (topology.stage == topology.stage.max())
        ends = self._rows(
            "inventory",
            at,
            topology.owner,
            kind="port",
            key=self._port_names,
            tier=tiers[topology.owner],
            rail=[str(n % topology.rails) if host else None for n, host in zip(adapter.tolist(), at_host.tolist(), strict=True)],
            peer_device=self._names[topology.peer],
            peer_port=self._port_names[ports ^ 1],
            speed_bps=topology.speed_bps,
        )
        jobs = [(job.name, host) for job in self._fabric.workload.jobs for host in job.hosts]
        hosts = np.array([host for _, host in jobs], np.int64)
        named = [name for name, _ in jobs]
        members = self._rows("inventory", at, hosts, kind="job", key=[f"{name}/{host}" for name, host in jobs], job=named)
        return pl.concat([devices, ends, ends.with_columns(kind=pl.lit("link")), members])

    def _rows(self, family: str, at_ns: int | np.ndarray, device: np.ndarray, **columns: object) -> pl.DataFrame:
        """Return rows of a family at a true time (UTC ns), stamped by each device's clock; missing columns are null."""
        true = np.broadcast_to(np.asarray(at_ns, np.int64), device.shape)
        given = {
            "ts": true + self._skew_ns[device] + self._shift("skewed_clock", device, true, NS_PER_MS),
            "recv_ts": true + DELAY_NS + self._shift("late_collector", device, true, NS_PER_S),
            "source": SOURCE,
            "device": self._names[device],
            "epoch": 0,
            **columns,
        }
        columns_of = {name: pl.Series(name, value) for name, value in given.items() if isinstance(value, np.ndarray | list | pl.Series)}
        constants = {name: pl.lit(value) for name, value in given.items() if name not in columns_of}
        return FAMILIES[family].frame(pl.DataFrame(columns_of).with_columns(**constants))

    def _active(self, kind: str, device: int, at_ns: int) -> InjectedFault | None:
        """Return the fault of this kind that is active on a device at a time since the fabric's start."""
        return next((f for f in self._faults if f.kind == kind and f.place == self._names[device] and f.begin_ns <= at_ns < f.end_ns), None)

    def _shift(self, kind: str, device: np.ndarray, true: np.ndarray, unit_ns: int) -> np.ndarray:
        shift = np.zeros(device.shape, np.int64)
        for fault in self._faults:
            if fault.kind == kind:
                since = true - self._fabric.config.start_ns
                hit = (self._names[device] == fault.place) & (since >= fault.begin_ns) & (since < fault.end_ns)
                shift[hit] += int(fault.severity * unit_ns)
        return shift

    def _samples(self, step: Step) -> pl.DataFrame:
        """Return a segment per switch port and signal: bytes sent, bytes received (sent by the far end), bytes queued."""
        topology, config = self._topology, self._fabric.config
        if not len(step.sent):
            return FAMILIES["burst_sample"].empty()
        ports = np.flatnonzero(topology.tier[topology.owner] > HOST)
        device = topology.owner[ports].astype(np.int64)
        common = {"port": self._port_names[ports], "queue": "", "speed_bps": topology.speed_bps[ports], "interval_ns": config.sample_ns}
        frames = []
        series = {"tx_bytes": step.sent[:, ports], "rx_bytes": step.received[:, ports ^ 1], "queue_bytes": step.depth[:, ports]}
        for signal, samples in series.items():
            values = pl.Series(np.ascontiguousarray(samples.T)).cast(pl.List(pl.UInt64))
            frames.append(self._rows("burst_sample", config.start_ns + step.first_ns, device, **common, signal=signal, values=values))
        # Samples lie on whole intervals of the device's clock, so a clock error does not shift them off the grid.
        grid = (pl.col("ts") + config.sample_ns // 2) // config.sample_ns * config.sample_ns
        frame = pl.concat(frames).with_columns(ts=grid)
        lost = [self.lost(int(n), step.first_ns) for n in np.tile(device, 3)]
        return frame.filter(~pl.Series(lost))

    def lost(self, device: int, at_ns: int) -> bool:
        """Return whether the telemetry of a device at a time (ns since the start) is lost."""
        fault = self._active("lossy_collector", device, at_ns)
        return fault is not None and bool(unit(self._fabric.seed, LOSS_DRAW + device, at_ns) < fault.severity)

    def _events(self, step: Step) -> pl.DataFrame:
        at, port, up = step.events.T
        kind = np.where(up == 1, "link_up", "link_down")
        names = self._port_names[port]
        start = self._fabric.config.start_ns
        return self._rows(
            "event", start + at, self._topology.owner[port].astype(np.int64), port=names, kind=kind, reason="carrier", detail=""
        )

    def _packets(self, step: Step) -> pl.DataFrame:
        """Return the sampled packets as seen at the sender's leaf."""
        packets = sampled(self._fabric, step)
        flow = packets.flow
        flows, topology, start = self._fabric.world.flows, self._topology, self._fabric.config.start_ns
        addresses = np.array([topology.address(n) for n in range(topology.adapters)])
        return self._rows(
            "packet",
            start + packets.at_ns,
            topology.leaf[flows.source[flow]].astype(np.int64),
            src=addresses[flows.source[flow]],
            dst=addresses[flows.target[flow]],
            src_port=flows.entropy[flow],
            qp=flows.queue_pair[flow],
            opcode=packets.opcode,
            psn=packets.psn,
            length=PACKET_BYTES - 4,  # captures and samples have no FCS
            payload_bytes=PAYLOAD_BYTES,
            ecn=np.where(packets.marked, CONGESTED, NONE),
            dscp=DSCP,
            sampling_rate=self._fabric.config.packet_sampling,
        )

    def _latency(self, step: Step) -> pl.DataFrame:
        pairs, topology = self._fabric.probe_pairs, self._topology
        if not len(step.latency_ns) or not len(pairs):
            return FAMILIES["latency"].empty()
        addresses = np.array([topology.address(n) for n in range(topology.adapters)])
        values = pl.Series("values_ns", np.ascontiguousarray(step.latency_ns.T)).cast(pl.List(pl.UInt64))
        at = self._fabric.config.start_ns + step.first_ns
        device = pairs[:, 0] // topology.rails
        return self._rows("latency", at, device, src=addresses[pairs[:, 0]], dst=addresses[pairs[:, 1]], kind="probe", values_ns=values)

    def _port_rows(self, sample: FabricCounters) -> pl.DataFrame:
        topology, read = self._topology, sample.ports
        ports = np.arange(topology.ports)
        far = ports ^ 1
        bins = sample.fec_bins[far]
        rx_bytes = (read["sent"] - read["vanished"] - read["broken"])[far]
        broken = read["broken"][far] // PACKET_BYTES
        return self._rows(
            "port",
            self._fabric.config.start_ns + sample.at_ns,
            topology.owner.astype(np.int64),
            port=self._port_names,
            speed_bps=topology.speed_bps,
            oper_up=read["up"],
            admin_up=True,
            rx_bytes=rx_bytes,
            tx_bytes=read["sent"],
            rx_packets=rx_bytes // PACKET_BYTES,
            tx_packets=read["sent"] // PACKET_BYTES,
            rx_discards=0,
            tx_discards=read["dropped"] // PACKET_BYTES,
            rx_errors=broken,
            tx_errors=0,
            fcs_errors=broken,
            fec_corrected=bins[:, 1:16].sum(axis=1),
            fec_uncorrectable=bins[:, 16],
            fec_bins=pl.Series(np.ascontiguousarray(bins[:, :16])).cast(pl.List(pl.UInt64)),
            # Nearly all wrong symbols have one wrong bit.
            corrected_bits=bins[:, 1:16] @ np.arange(1, 16),
            symbol_errors=bins[:, 1:16] @ np.arange(1, 16),
            ecn_marked_packets=read["marked"].astype(np.int64),
        )

    def _queue_rows(self, sample: FabricCounters) -> pl.DataFrame:
        """Return egress queues, ingress priority groups and buffers of the switches."""
        topology, read, at = self._topology, sample.ports, self._fabric.config.start_ns + sample.at_ns
        ports = np.flatnonzero(topology.tier[topology.owner] > HOST)
        far, device = ports ^ 1, topology.owner[ports].astype(np.int64)
        common = {"port": self._port_names[ports], "queue": QUEUE, "speed_bps": topology.speed_bps[ports]}
        out = self._rows(
            "queue",
            at,
            device,
            **common,
            direction="tx",
            packets=read["sent"][ports] // PACKET_BYTES,
            bytes=read["sent"][ports],
            dropped_packets=read["dropped"][ports] // PACKET_BYTES,
            dropped_bytes=read["dropped"][ports],
            ecn_marked_packets=read["marked"][ports].astype(np.int64),
            ecn_marked_bytes=read["marked"][ports].astype(np.int64) * PACKET_BYTES,
            occupancy_bytes=read["depth"][ports],
            watermark_bytes=read["depth_max"][ports],
            delay_watermark_ns=(read["depth_max"][ports] * 8e9 / topology.speed_bps[ports]).astype(np.int64),
            pfc_rx_frames=read["frames"][ports],
            pfc_tx_frames=read["frames"][far],
            pfc_rx_pause_us=read["paused_ns"][ports] // 1000,
            pfc_tx_pause_us=read["paused_ns"][far] // 1000,
            pfc_on2off=read["pauses"][ports],
        )
        into = self._rows(
            "queue",
            at,
            device,
            **common,
            direction="rx",
            occupancy_bytes=read["held"][far],
            watermark_bytes=read["held_max"][far],
            headroom_watermark_bytes=read["headroom_max"][far],
        )
        switches = np.arange(topology.first_switch, len(topology.tier))
        used = np.bincount(device, weights=read["held"][far], minlength=len(topology.tier)).astype(np.int64)[switches]
        pool = self._rows("queue", at, switches, port="", queue=POOL, direction="pool", occupancy_bytes=used)
        return pl.concat([out, into, pool])

    def _nic_rows(self, sample: FabricCounters) -> pl.DataFrame:
        topology, read, counters = self._topology, sample.ports, sample.adapters
        adapters = np.arange(topology.adapters)
        tx_bytes = read["sent"][2 * adapters]
        rx_bytes = (read["sent"] - read["vanished"] - read["broken"])[2 * adapters + 1]
        nothing = dict.fromkeys(("cnp_ignored", "implied_nak", "duplicate_request", "rnr_nak", "out_of_buffer", "retries_exceeded"), 0)
        return self._rows(
            "nic",
            self._fabric.config.start_ns + sample.at_ns,
            adapters // topology.rails,
            port=self._port_names[2 * adapters],
            speed_bps=topology.speed_bps[2 * adapters],
            tx_bytes=tx_bytes,
            rx_bytes=rx_bytes,
            tx_packets=tx_bytes // PACKET_BYTES,
            rx_packets=rx_bytes // PACKET_BYTES,
            ecn_marked_packets=counters["ecn_marked"].astype(np.int64),
            cnp_sent=counters["cnp_sent"],
            cnp_handled=counters["cnp_handled"],
            out_of_sequence=counters["out_of_sequence"],
            packet_seq_err=counters["sequence_error"],
            ack_timeout=counters["ack_timeout"],
            retransmits=counters["resent"],
            **nothing,
        )

    def _gpu_rows(self, sample: FabricCounters) -> tuple[pl.DataFrame, pl.DataFrame]:
        topology, at = self._topology, self._fabric.config.start_ns + sample.at_ns
        gpus = np.arange(topology.gpus)
        device, number = gpus // topology.rails, np.array([str(gpu % topology.rails) for gpu in gpus])
        moved = sample.gpus["nvlink"][gpus]
        speed = np.full(len(gpus), self._fabric.config.nvlink_bps)
        links = self._rows("nvlink", at, device, gpu=number, link="", speed_bps=speed, tx_bytes=moved, rx_bytes=moved, replay=0, crc=0)
        share = ((sample.gpus["busy_ns"] - self._busy_ns)[gpus] / (sample.at_ns - self._read_ns)).clip(0, 1)
        self._busy_ns, self._read_ns = sample.gpus["busy_ns"], sample.at_ns
        power = IDLE_W + (BUSY_W - IDLE_W) * share
        return links, self._rows("gpu", at, device, gpu=number, sm_active_ratio=share, tensor_active_ratio=0.6 * share, power_w=power)

    def _distort(self, family: str, frame: pl.DataFrame, at_ns: int) -> pl.DataFrame:
        """Apply frozen counters, resets and lost samples to rows."""
        for fault in self._faults:
            device = self._topology.device_names.index(fault.place)
            mine = pl.col("device") == fault.place
            key = (family, self._faults.index(fault))
            if fault.kind == "lossy_collector" and self.lost(device, at_ns):
                frame = frame.filter(~mine)
            elif fault.kind == "frozen_counter" and fault.begin_ns <= at_ns < fault.end_ns:
                frozen = self._frozen.setdefault(key, frame.filter(mine))
                stamped = frozen.with_columns(frame.filter(mine).select("ts", "recv_ts").get_columns())
                frame = pl.concat([frame.filter(~mine), stamped])
            elif fault.kind == "counter_reset":
                own = frame.filter(mine)
                if at_ns <= fault.begin_ns:
                    self._zero[key] = own
                if at_ns >= fault.begin_ns:
                    restarted = _less(own, self._zero.get(key, own.clear()), self._fabric.config.start_ns + fault.begin_ns)
                    frame = pl.concat([frame.filter(~mine), restarted])
        return frame


# Unsigned columns that are gauges, which a reset does not clear.
_GAUGES = ("speed_bps", "occupancy_bytes", "watermark_bytes", "headroom_watermark_bytes", "delay_watermark_ns", "xid")


def _less(frame: pl.DataFrame, zero: pl.DataFrame, epoch: int) -> pl.DataFrame:
    """Return counters relative to ``zero``, the last counter sample before the reset, in a new epoch."""
    if not zero.height:
        return frame.with_columns(epoch=pl.lit(epoch, pl.Int64))
    counters = [name for name, dtype in frame.schema.items() if dtype == pl.UInt64 and name not in _GAUGES]
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.UInt64)]
    changed = [(frame[name] - zero[name]).alias(name) for name in (*counters, *lists)]
    return frame.with_columns(*changed, epoch=pl.lit(epoch, pl.Int64))
