"""One switch of the virtual fabric as the exporters see it: a ``SwitchSource`` whose state comes from the fabric's steps.

Bytes, packets and occupancy are known at the grain of samples, everything else at that of readings; an instant sees the last one
before it. Steps have to be taken from the fabric's start; of the past, so much is kept as was asked for. Faults of the telemetry act on
instants: a frozen device is asked about the moment at which it froze, a skewed one about what its clock calls now. Steps may be taken
by one thread while others ask: a state is of the moment at which it was asked for.
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
        # Each row: instants, and (instants, ports) of sent, received and queued bytes; it begins with nothing at the start.
        self._samples: deque[tuple[np.ndarray, ...]] = deque([(np.array([start]), none[None], none[None], none[None])], steps_kept)
        self._readings: deque[FabricCounters] = deque(maxlen=steps_kept * 16)
        self._changes: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        mine = [fault for fault in fabric.config.faults if fault.place == device]
        self._freezes = [(start + f.begin_ns, start + f.end_ns) for f in mine if f.kind == "frozen_counter"]
        self._skews = [(start + f.begin_ns, start + f.end_ns, int(f.severity * NS_PER_MS)) for f in mine if f.kind == "skewed_clock"]
        self.resets = np.array(sorted(start + f.begin_ns for f in mine if f.kind == "counter_reset"), np.int64)

    def take(self, step: Step) -> None:
        """Take in a step of the fabric; each once, in order."""
        config, count = self.fabric.config, len(step.sent)
        if not count:
            return
        last = self._samples[-1]
        ends = config.start_ns + step.first_ns + config.sample_ns * np.arange(1, count + 1)
        sent = last[1][-1] + np.cumsum(step.sent[:, self.ports], axis=0)
        received = last[2][-1] + np.cumsum(step.received[:, self.ports ^ 1], axis=0)
        with self._lock:
            self._samples.append((ends, sent, received, step.depth[:, self.ports]))
            self._readings.extend(step.readings)
            self._changes += [(config.start_ns + at, port) for at, port, _ in step.events.tolist() if port in self.ports]

    def at(self, ts: Sequence[int] | np.ndarray) -> "TapState":
        """Return what the switch says at the instants ``ts`` of its own clock."""
        ts = np.asarray(ts, np.int64)
        true = ts.copy()
        for begin, end, ahead in self._skews:
            true -= np.where((ts >= begin) & (ts < end), ahead, 0)
        for begin, end in self._freezes:
            true = np.where((true >= begin) & (true < end), begin, true)
        return TapState(self, ts, true)

    def kept(self) -> tuple[list[tuple[np.ndarray, ...]], list[FabricCounters], list[tuple[int, int]]]:
        """Return what is kept: samples (instants, and what was sent, received and queued by then), readings, changes of carrier."""
        with self._lock:
            return list(self._samples), list(self._readings), list(self._changes)

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
        """Return the samples that are kept as four arrays: instants, and what was sent, received and queued by then."""
        return tuple(np.concatenate(part) for part in zip(*self.kept()[0], strict=True))


def address_of(adapter: np.ndarray) -> np.ndarray:
    """Return the IPv4 addresses of adapters (n,) as numbers (n,)."""
    return 0x0A000000 + adapter


# Column of a reading, 1 where it is the far end's, bytes of a unit.
_PORT_COUNTS = {
    "rx_errors": ("broken", 1, PACKET_BYTES),
    "fcs_errors": ("broken", 1, PACKET_BYTES),
    "tx_discards": ("dropped", 0, PACKET_BYTES),
    "ecn_marked_packets": ("marked", 0, 1),
}


class TapState:
    """A ``SwitchState`` of a tapped switch; columns are looked up when they are asked for."""

    def __init__(self, tap: Tap, ts: np.ndarray, true: np.ndarray) -> None:
        self._tap, self.ts, self._true = tap, ts, true
        self._kept, self._readings, self._changes = tap.kept()
        start = tap.fabric.config.start_ns
        boots = np.concatenate([[start], tap.resets])
        self.boot_ts = boots[np.maximum(np.searchsorted(boots, true, "right") - 1, 0)]
        # A reset lies on the reading before it: most columns are known no finer.
        self._zero = start + (self.boot_ts - start) // tap.fabric.config.counter_ns * tap.fabric.config.counter_ns

    def port(self, name: str) -> np.ndarray:
        tap, zeros = self._tap, np.zeros((len(self.ts), len(self._tap.ports)), np.int64)
        if name == "speed_bps":
            return zeros + tap.speeds
        if name == "admin_up":
            return zeros + 1
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
        if name in ("rx_discards", "tx_errors"):
            return zeros
        raise KeyError(name)

    def queue(self, name: str) -> np.ndarray:
        tap = self._tap
        size = PACKET_BYTES if name.endswith("bytes") else 1
        plain = {"pfc_rx_frames": "frames", "pfc_tx_frames": "frames", "pfc_on2off": "pauses"}
        if name in ("packets", "bytes"):
            value = self.port(f"tx_{name}")
        elif name in ("dropped_packets", "dropped_bytes"):
            value = self.port("tx_discards") * size
        elif name in ("ecn_marked_packets", "ecn_marked_bytes"):
            value = self.port("ecn_marked_packets") * size
        elif name == "occupancy_bytes":
            value = self.port("out_occupancy_bytes")
        elif name == "watermark_bytes":
            value = self._read("depth_max", tap.ports)
        elif name == "delay_watermark_ns":
            value = (self._read("depth_max", tap.ports) * (8e9 / tap.speeds)).astype(np.int64)
        elif name in plain:
            value = self._counted(plain[name], tap.ports ^ 1 if "_tx_" in name else tap.ports)
        elif name in ("pfc_rx_pause_us", "pfc_tx_pause_us"):
            value = self._counted("paused_ns", tap.ports ^ 1 if "_tx_" in name else tap.ports, 1000)
        else:
            raise KeyError(name)
        return _lossless(value)

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
        return self.group({"occupancy_bytes": "occupancy_bytes", "watermark_bytes": "watermark_bytes"}[name]).sum(axis=(1, 2))

    @property
    def fec_bins(self) -> np.ndarray:
        return self._bins[:, :, :FEC_BINS]

    @cached_property
    def _bins(self) -> np.ndarray:
        shape = (len(self._tap.ports), fec.BINS)
        rows = [np.zeros(shape, np.int64), *(reading.fec_bins[self._tap.ports ^ 1] for reading in self._readings)]
        table = np.stack(rows)
        return table[self._reading_of(self._true)] - np.where(self._reset[:, None, None], table[self._reading_of(self._zero)], 0)

    def _corrections(self, name: str) -> np.ndarray:
        bins = self._bins
        if name == "fec_uncorrectable":
            return bins[:, :, -1]
        return bins[:, :, 1:FEC_BINS] @ (np.ones(FEC_BINS - 1, np.int64) if name == "fec_corrected" else np.arange(1, FEC_BINS))

    @property
    def _reset(self) -> np.ndarray:
        return self.boot_ts > self._tap.fabric.config.start_ns

    def _reading_of(self, at: np.ndarray) -> np.ndarray:
        """Return the number of the last reading at or before each instant, 0: none, 1: the first that is kept."""
        start = self._tap.fabric.config.start_ns
        return np.searchsorted(np.array([start + reading.at_ns for reading in self._readings], np.int64), at, "right")

    def _table(self, name: str, ports: np.ndarray, first: int) -> np.ndarray:
        rows = [reading.ports[name][ports].astype(np.int64) for reading in self._readings]
        return np.stack([np.full(len(ports), first, np.int64), *rows])

    def _read(self, name: str, ports: np.ndarray, first: int = 0) -> np.ndarray:
        return self._table(name, ports, first)[self._reading_of(self._true)]

    def _counted(self, name: str, ports: np.ndarray, size: int = 1) -> np.ndarray:
        """Return a counter of whole units of ``size``, from the last reset."""
        table = self._table(name, ports, 0) // size
        return table[self._reading_of(self._true)] - np.where(self._reset[:, None], table[self._reading_of(self._zero)], 0)

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
    """Return values of ports as those of their priorities, of which one carries something."""
    spread = np.zeros((*value.shape, PRIORITIES), np.int64)
    spread[:, :, LOSSLESS] = value
    return spread
