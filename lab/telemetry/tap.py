"""One switch of the virtual fabric for the exporters: a ``SwitchSource`` whose state comes from the fabric's steps.

Bytes, packets and occupancy change with every sample, everything else with every counter sample; an instant sees the last one before it.
Pass all steps from the fabric's start; the last ``steps_kept`` are kept. Faults of the telemetry shift instants: a frozen device is read at
the time at which it froze, a skewed one at the true time of its clock. One thread may add steps while others read: a state is a snapshot.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ..fabric import fec
from ..fabric.fabric import HOP_NS, Fabric, FabricCounters, Step
from ..fabric.state import PACKET_BYTES
from ..switch import roce
from ..switch.script import FEC_BINS, LOSSLESS, PRIORITIES, Switch
from .export import POOL, Packets


class Tap:
    """A ``SwitchSource`` of one switch."""

    def __init__(self, fabric: Fabric, device: str, steps_kept: int = 64) -> None:
        topology = fabric.topology
        self.fabric, self.device = fabric, device
        self.ports = np.flatnonzero(topology.owner == topology.device_names.index(device))
        far = self.ports ^ 1
        peers = tuple((topology.device_names[topology.owner[p]], topology.port_names[p]) for p in far)
        speeds = topology.speed_bps[self.ports]
        self.switch = Switch(device, tuple(topology.port_names[p] for p in self.ports), int(speeds.max()), peers, POOL)
        self.speeds = speeds
        start = fabric.config.start_ns
        none = np.zeros(len(self.ports), np.int64)
        # Each row: instants (n,), and sent, received and queued bytes (n, ports); the first row is zero, at the start.
        self._samples: deque[tuple[np.ndarray, ...]] = deque([(np.array([start]), none[None], none[None], none[None])], steps_kept)
        self._counters: deque[FabricCounters] = deque(maxlen=steps_kept * 16)
        self._changes: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        mine = [fault for fault in fabric.config.faults if fault.place == device]
        self._freezes = [(start + f.begin_ns, start + f.end_ns) for f in mine if f.kind == "frozen_counter"]
        self._skews = [(start + f.begin_ns, start + f.end_ns, int(f.severity * NS_PER_MS)) for f in mine if f.kind == "skewed_clock"]
        self.resets = np.array(sorted(start + f.begin_ns for f in mine if f.kind == "counter_reset"), np.int64)

    def take(self, step: Step) -> None:
        """Add a step of the fabric; pass each once, in order."""
        config, count = self.fabric.config, len(step.sent)
        if not count:
            return
        last = self._samples[-1]
        ends = config.start_ns + step.first_ns + config.sample_ns * np.arange(1, count + 1)
        sent = last[1][-1] + np.cumsum(step.sent[:, self.ports], axis=0)
        received = last[2][-1] + np.cumsum(step.received[:, self.ports ^ 1], axis=0)
        with self._lock:
            self._samples.append((ends, sent, received, step.depth[:, self.ports]))
            self._counters.extend(step.counters)
            self._changes += [(config.start_ns + at, port) for at, port, _ in step.events.tolist() if port in self.ports]

    def at(self, ts: Sequence[int] | np.ndarray) -> "TapState":
        """Return the state that the switch reports at the instants ``ts`` of its own clock."""
        ts = np.asarray(ts, np.int64)
        true = ts.copy()
        for begin, end, ahead in self._skews:
            true -= np.where((ts >= begin) & (ts < end), ahead, 0)
        for begin, end in self._freezes:
            true = np.where((true >= begin) & (true < end), begin, true)
        return TapState(self, ts, true)

    def snapshot(self) -> tuple[list[tuple[np.ndarray, ...]], list[FabricCounters], list[tuple[int, int]]]:
        """Return a snapshot: samples (instants; bytes sent, received and queued by then), counter samples, changes of carrier."""
        with self._lock:
            return list(self._samples), list(self._counters), list(self._changes)

    def sampled(self, packets: Packets) -> Iterator[roce.Flows]:
        """Yield the packets that this leaf samples on entry from adapters, by operation, with depth and delay of the egress queue."""
        table, topology, start = self.fabric.world.flows, self.fabric.topology, self.fabric.config.start_ns
        own = packets.pick(topology.leaf[table.source[packets.flow]] == topology.device_names.index(self.device))
        ends, _, _, depths = self.samples()
        for opcode, some in own.by_operation():
            flow, lossless = some.flow, np.full(len(some.flow), LOSSLESS)
            source, target = table.source[flow], table.target[flow]
            # A flow that has been rerouted counts on its present path.
            leaving = np.where(table.path[flow, 1] >= 0, table.path[flow, 1], 2 * target + 1)
            ingress = np.searchsorted(self.ports, 2 * source + 1)
            egress = np.searchsorted(self.ports, leaving).clip(max=len(self.ports) - 1)
            depth = depths[np.searchsorted(ends, start + some.at_ns).clip(max=len(ends) - 1), egress]
            delay = depth * 8 * NS_PER_S // self.speeds[egress] + HOP_NS
            between = roce.Ends(source, target, address_of(source), address_of(target), table.entropy[flow])
            header = roce.headers(between, opcode, table.queue_pair[flow], some.psn, some.marked)
            length = np.full(len(flow), roce.wire_bytes(opcode) + 4)
            yield roce.Flows(ingress, egress, lossless, delay, depth, length, header)

    def samples(self) -> tuple[np.ndarray, ...]:
        """Return the kept samples as four arrays: instants (n,), and bytes sent, received and queued by then (n, ports)."""
        return tuple(np.concatenate(part) for part in zip(*self.snapshot()[0], strict=True))


def address_of(adapter: np.ndarray) -> np.ndarray:
    """Return the IPv4 addresses of adapters (n,) as numbers (n,)."""
    return 0x0A000000 + adapter


# Column of a counter sample, 1 if it is of the far end, bytes per unit.
_PORT_COUNTS = {
    "rx_errors": ("broken", 1, PACKET_BYTES),
    "fcs_errors": ("broken", 1, PACKET_BYTES),
    "tx_discards": ("dropped", 0, PACKET_BYTES),
    "ecn_marked_packets": ("marked", 0, 1),
    "pfc_rx_frames": ("frames", 0, 1),
    "pfc_tx_frames": ("frames", 1, 1),
    "pfc_rx_pause_us": ("paused_ns", 0, 1000),
    "pfc_tx_pause_us": ("paused_ns", 1, 1000),
    "pfc_on2off": ("pauses", 0, 1),
}
# Columns of the lossless queue: column of its port, and a factor.
_QUEUE_COLUMNS = {
    **{"packets": ("tx_packets", 1), "bytes": ("tx_bytes", 1), "occupancy_bytes": ("out_occupancy_bytes", 1)},
    **{"dropped_packets": ("tx_discards", 1), "dropped_bytes": ("tx_discards", PACKET_BYTES)},
    "ecn_marked_bytes": ("ecn_marked_packets", PACKET_BYTES),
}


class TapState:
    """A ``SwitchState`` of a tapped switch; columns are looked up on use."""

    def __init__(self, tap: Tap, ts: np.ndarray, true: np.ndarray) -> None:
        self._tap, self.ts, self._true = tap, ts, true
        self._kept, self._counters, self._changes = tap.snapshot()
        start = tap.fabric.config.start_ns
        boots = np.concatenate([[start], tap.resets])
        self.boot_ts = boots[np.maximum(np.searchsorted(boots, true, "right") - 1, 0)]
        # A reset is moved to the counter sample before it, the finest time of most columns.
        self._zero = start + (self.boot_ts - start) // tap.fabric.config.counter_ns * tap.fabric.config.counter_ns

    def port(self, name: str) -> np.ndarray:
        tap, constants = self._tap, {"speed_bps": self._tap.speeds, "admin_up": 1, "rx_discards": 0, "tx_errors": 0}
        if name in constants:
            return np.zeros((len(self.ts), len(tap.ports)), np.int64) + constants[name]
        if name == "oper_up":
            return self._read("up", tap.ports, first=1)
        if name in ("tx_bytes", "rx_bytes"):
            return self._moved(1 if name == "tx_bytes" else 2)
        if name.endswith(("x_packets", "x_unicast_packets")):
            return self._moved(1 if name.startswith("tx") else 2, PACKET_BYTES)
        if name == "out_occupancy_bytes":
            return self._sampled(self._true)[3]
        if name == "in_occupancy_bytes":
            return self._read("held", tap.ports ^ 1)
        if name in _PORT_COUNTS:
            column, far, size = _PORT_COUNTS[name]
            return self._counted(column, tap.ports ^ far, size)
        if name == "carrier_changes":
            return self._carrier()
        if name in ("fec_corrected", "corrected_bits", "symbol_errors", "fec_uncorrectable"):
            return self._corrections(name)
        raise KeyError(name)

    def queue(self, name: str) -> np.ndarray:
        if name in ("watermark_bytes", "delay_watermark_ns"):
            depth = self._read("depth_max", self._tap.ports)
            return _lossless(depth if name == "watermark_bytes" else (depth * (8e9 / self._tap.speeds)).astype(np.int64))
        column, size = _QUEUE_COLUMNS.get(name, (name, 1))
        return _lossless(self.port(column) * size)

    def group(self, name: str) -> np.ndarray:
        far = self._tap.ports ^ 1
        gauges = {"occupancy_bytes": "held", "watermark_bytes": "held_max", "headroom_watermark_bytes": "headroom_max"}
        if name in gauges:
            return _lossless(self._read(gauges[name], far))
        if name == "dropped_packets":
            return _lossless(np.zeros((len(self.ts), len(far)), np.int64))
        return _lossless(self.port(f"rx_{name}"))

    def pool(self, name: str) -> np.ndarray:
        if name == "dropped_packets":
            return self.port("tx_discards").sum(axis=1)
        return self.group(name).sum(axis=(1, 2))

    @property
    def fec_bins(self) -> np.ndarray:
        return self._bins[:, :, :FEC_BINS]

    @cached_property
    def _bins(self) -> np.ndarray:
        shape = (len(self._tap.ports), fec.BINS)
        rows = [np.zeros(shape, np.int64), *(sample.fec_bins[self._tap.ports ^ 1] for sample in self._counters)]
        table = np.stack(rows)
        return table[self._sample_before(self._true)] - np.where(self._reset[:, None, None], table[self._sample_before(self._zero)], 0)

    def _corrections(self, name: str) -> np.ndarray:
        bins = self._bins
        if name == "fec_uncorrectable":
            return bins[:, :, -1]
        return bins[:, :, 1:FEC_BINS] @ (np.ones(FEC_BINS - 1, np.int64) if name == "fec_corrected" else np.arange(1, FEC_BINS))

    @property
    def _reset(self) -> np.ndarray:
        return self.boot_ts > self._tap.fabric.config.start_ns

    def _sample_before(self, at: np.ndarray) -> np.ndarray:
        """Return the number of the last counter sample at or before each instant; 0: none, 1: the first kept one."""
        start = self._tap.fabric.config.start_ns
        return np.searchsorted(np.array([start + sample.at_ns for sample in self._counters], np.int64), at, "right")

    def _table(self, name: str, ports: np.ndarray, first: int) -> np.ndarray:
        rows = [sample.ports[name][ports].astype(np.int64) for sample in self._counters]
        return np.stack([np.full(len(ports), first, np.int64), *rows])

    def _read(self, name: str, ports: np.ndarray, first: int = 0) -> np.ndarray:
        return self._table(name, ports, first)[self._sample_before(self._true)]

    def _counted(self, name: str, ports: np.ndarray, size: int = 1) -> np.ndarray:
        """Return a counter in whole units of ``size`` since the last reset."""
        table = self._table(name, ports, 0) // size
        return table[self._sample_before(self._true)] - np.where(self._reset[:, None], table[self._sample_before(self._zero)], 0)

    @cached_property
    def _samples(self) -> tuple[np.ndarray, ...]:
        return tuple(np.concatenate(part) for part in zip(*self._kept, strict=True))

    def _sampled(self, at: np.ndarray) -> tuple[np.ndarray, ...]:
        ends, *columns = self._samples
        row = np.maximum(np.searchsorted(ends, at, "right") - 1, 0)
        return ends[row], *(column[row] for column in columns)

    def _moved(self, column: int, size: int = 1) -> np.ndarray:
        now, zero = (self._sampled(at)[column] // size for at in (self._true, self._zero))
        return now - np.where(self._reset[:, None], zero, 0)

    def _carrier(self) -> np.ndarray:
        counts = np.zeros((len(self.ts), len(self._tap.ports)), np.int64)
        for at, port in self._changes:
            counts[self._true >= at, np.searchsorted(self._tap.ports, port)] += 1
        return counts


def _lossless(value: np.ndarray) -> np.ndarray:
    """Spread values of ports (instants, ports) over priorities; only the lossless one carries traffic."""
    spread = np.zeros((*value.shape, PRIORITIES), np.int64)
    spread[:, :, LOSSLESS] = value
    return spread
