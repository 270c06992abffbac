"""A switch whose counters are closed forms of time, so that the expected value at any instant can be computed.

Ports form groups of four. In each period the training traffic (priority 3) runs for a while: two ports of a group send to the third, the
third to the fourth, the fourth to the first, whose host receives slowly and pauses it. A queue gets ``arrive`` packets during the first
``on`` ns of a period and sends at most ``serve`` packets in the same time; the excess waits in the queue, up to ``buffer`` packets, and the
rest is dropped. Above ``mark`` packets departing packets are marked, above ``xoff`` the senders are paused. Everything is piecewise linear
in time and counted in whole packets, so counters never decrease, the bytes of the queues sum to those of the port, and packets in are
packets out, dropped or queued. The last group is idle, and its last port goes up and down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

PRIORITIES = 8
LOSSLESS, BACKGROUND, CNP = 3, 0, 6
FEC_BINS = 16
# RS(544,514): 544 symbols of 10 bits.
CODEWORD_BITS = 5440
START_NS = 1_767_225_600 * 1_000_000_000
WATERMARK_NS = 1_000_000_000
# A pause is refreshed before its 65535 quanta are over.
REFRESH_US = 64
SPARE = 4

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Switch:
    """The identity of a switch. ``peers`` are (device, port) at the other end of each port."""

    device: str
    ports: tuple[str, ...]
    speed_bps: int
    peers: tuple[tuple[str, str], ...]
    pool: str = "ingress_lossless_pool"

    @property
    def if_indexes(self) -> Array:
        return np.arange(1, len(self.ports) + 1)


class SwitchState(Protocol):
    """The counters of a switch at t instants. Names and units are those of the columns of the families; arrays are int64."""

    @property
    def ts(self) -> Array:
        """Instants, ns UTC; shape (t,)."""
        ...

    @property
    def boot_ts(self) -> Array:
        """Last boot before each instant, ns UTC; shape (t,)."""
        ...

    @property
    def fec_bins(self) -> Array:
        """Codewords by number of symbol errors; shape (t, ports, 16)."""
        ...

    def port(self, name: str) -> Array:
        """A column of family ``port``, or ``in_occupancy_bytes`` and ``out_occupancy_bytes``; shape (t, ports)."""
        ...

    def queue(self, name: str) -> Array:
        """A column of family ``queue``: egress queues, or priorities for PFC; shape (t, ports, 8)."""
        ...

    def group(self, name: str) -> Array:
        """A column of family ``queue`` for ingress priority groups; shape (t, ports, 8)."""
        ...

    def pool(self, name: str) -> Array:
        """A column of family ``queue`` for the shared buffer; shape (t,)."""
        ...


class SwitchSource(Protocol):
    """The input of an exporter: a switch and its state at any instants."""

    @property
    def switch(self) -> Switch: ...

    def at(self, ts: Sequence[int] | Array) -> SwitchState: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """Size and timing of a scripted switch. Counters restart at each of ``boots_ns``; nothing is counted before the first."""

    device: str = "lab-leaf-1"
    ports: int = 32
    speed_bps: int = 400_000_000_000
    seed: int = 1
    boots_ns: tuple[int, ...] = (START_NS,)
    period_ns: int = 100_000_000
    on_ns: int = 30_000_000
    flap_ns: int = 10_000_000_000


@dataclass(frozen=True, slots=True)
class _QueuePlan:
    """The queues with traffic as columns (queues,) int64; sizes are in packets, times in ns."""

    port: Array
    priority: Array
    offset: Array
    on: Array
    arrive: Array
    serve: Array
    size: Array
    buffer: Array
    mark: Array
    xoff: Array
    pause: Array  # thousandths of the time for which the receiver pauses this queue
    sources: Array


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The ingress priority groups with traffic: the queue that each feeds, and its ``index`` among the sources of that queue."""

    port: Array
    queue: Array
    index: Array


class Script:
    """A ``SwitchSource`` that is a function of its shape and of time."""

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape = shape or Shape()
        if shape.ports % 4 or shape.ports <= SPARE:
            raise ValueError("ports come in groups of four, and the last group carries nothing")
        ports = tuple(f"Ethernet{8 * n}" for n in range(shape.ports))
        peers = tuple((f"gpu-{n // 8:02d}", f"mlx5_{n % 8}") for n in range(shape.ports))
        self.switch = Switch(shape.device, ports, shape.speed_bps, peers)
        self.plan, self.inputs = _plan(shape)
        draws = _draws(shape.seed, 2, shape.ports)
        # One port in eight has a bad cable: each bin of symbol errors has a quarter of the previous one.
        self.fec_shift = np.where(np.arange(shape.ports) % 8 == 1, 2, 5 + draws % 6)

    def at(self, ts: Sequence[int] | Array) -> "ScriptState":
        """Return the state at the instants ``ts`` (ns UTC); columns are computed on use."""
        return ScriptState(self, np.asarray(ts, np.int64))


class ScriptState:
    """A ``SwitchState`` whose columns are closed forms of time."""

    def __init__(self, script: Script, ts: Array) -> None:
        self._script, self._shape, self._plan = script, script.shape, script.plan
        self.ts = ts
        boots = np.asarray(script.shape.boots_ns, np.int64)
        self.boot_ts = boots[np.maximum(np.searchsorted(boots, ts, "right") - 1, 0)]
        self.elapsed = np.maximum(ts - self.boot_ts, 0)
        self._queues: dict[str, Array] = {}

    def port(self, name: str) -> Array:
        if name in _PORT_CONSTANT:
            return np.full((len(self.ts), self._shape.ports), _PORT_CONSTANT[name](self._shape), np.int64)
        if name in _PORT_SUMS:
            side, column = _PORT_SUMS[name]
            return self._total(*(self._queue(column) if side == "queue" else self._group(column)))
        if name in ("oper_up", "carrier_changes"):
            return self._link(name)
        if name == "fec_corrected":
            return self._over_bins(np.ones(FEC_BINS, np.int64))
        if name in ("corrected_bits", "symbol_errors"):
            # One wrong bit per symbol, as is usual.
            return self._over_bins(np.arange(FEC_BINS))
        if name in ("fec_uncorrectable", "rx_errors", "fcs_errors"):
            return np.where(self._script.fec_shift == 2, self._codewords >> 32, 0)
        raise KeyError(name)

    def queue(self, name: str) -> Array:
        # Cached, since an exporter reads the priorities of a column one after another.
        if name not in self._queues:
            self._queues[name] = self._spread(*self._queue(name))
        return self._queues[name]

    def group(self, name: str) -> Array:
        return self._spread(*self._group(name))

    def _queue(self, name: str) -> tuple[Array, Array, Array]:
        """Return the values of the queues with traffic, their ports and their priorities."""
        plan = self._plan
        if name in ("pfc_tx_frames", "pfc_tx_pause_us"):
            # The port that receives too much sends the pause frames.
            inputs = self._script.inputs
            return self._of_queue(name)[:, inputs.queue], inputs.port, plan.priority[inputs.queue]
        return self._of_queue(name), plan.port, plan.priority

    def _group(self, name: str) -> tuple[Array, Array, Array]:
        inputs, plan = self._script.inputs, self._plan
        queue, index = inputs.queue, inputs.index
        sources = plan.sources[queue]
        packets = {"packets": lambda: self._arrived, "bytes": lambda: self._arrived, "occupancy_bytes": lambda: self._queued}
        if name == "dropped_packets":
            value = np.zeros((len(self.ts), len(queue)), np.int64)
        elif name in packets:
            value = (packets[name]()[:, queue] + index) // sources
        else:
            value = (self._high[:, queue] + index) // sources
            if name == "headroom_watermark_bytes":
                value = np.where(plan.priority[queue] == LOSSLESS, np.maximum(value - plan.xoff[queue] // sources, 0), 0)
        if "bytes" in name:
            value = value * plan.size[queue]
        return value, inputs.port, plan.priority[queue]

    def pool(self, name: str) -> Array:
        if name == "watermark_bytes":
            # The peaks of the queues need not coincide; the sum is an upper bound.
            return (self._high * self._plan.size).sum(axis=1)
        return {
            "occupancy_bytes": lambda: (self._queued * self._plan.size).sum(axis=1),
            "dropped_packets": lambda: self._dropped.sum(axis=1),
        }[name]()

    @property
    def fec_bins(self) -> Array:
        return self._bins

    @cached_property
    def _bins(self) -> Array:
        return self._codewords[:, :, None] >> np.minimum(np.arange(FEC_BINS) * self._script.fec_shift[:, None], 62)

    def _over_bins(self, weights: Array) -> Array:
        """Return the weighted sum of all bins except that without errors."""
        total = np.zeros_like(self._codewords)
        for number in range(1, FEC_BINS):
            total += weights[number] * (self._codewords >> np.minimum(number * self._script.fec_shift, 62))
        return total

    @cached_property
    def _codewords(self) -> Array:
        seconds, rest = np.divmod(self.elapsed, 1_000_000_000)
        each = self._shape.speed_bps // CODEWORD_BITS
        words = seconds * each + np.minimum(rest // 1000 * (self._shape.speed_bps // 1_000_000) // CODEWORD_BITS, each)
        return np.repeat(words[:, None], self._shape.ports, axis=1)

    def _link(self, name: str) -> Array:
        whole, phase = np.divmod(self.elapsed, self._shape.flap_ns)
        down = phase >= self._shape.flap_ns // 5 * 4
        value = np.full((len(self.ts), self._shape.ports), name == "oper_up", np.int64)
        value[:, -1] = ~down if name == "oper_up" else 2 * whole + down
        return value

    def _spread(self, value: Array, port: Array, priority: Array) -> Array:
        spread = np.zeros((len(self.ts), self._shape.ports * PRIORITIES), np.int64)
        spread[:, port * PRIORITIES + priority] = value
        return spread.reshape(len(self.ts), -1, PRIORITIES)

    def _total(self, value: Array, port: Array, priority: Array) -> Array:
        total = np.zeros((len(self.ts), self._shape.ports), np.int64)
        for one in np.unique(priority):
            # A port has one queue per priority, so indices are unique.
            total[:, port[priority == one]] += value[:, priority == one]
        return total

    def _of_queue(self, name: str) -> Array:
        plan = self._plan
        if name.startswith(("ecn_marked_", "dropped_")):
            packets = self._marked if name.startswith("ecn") else self._dropped
            return packets * plan.size if name.endswith("bytes") else packets
        if name.startswith("pfc_"):
            us, frames, ends = self._tx_pause if "tx" in name else self._rx_pause
            return {"us": us, "es": frames, "ff": ends}[name[-2:]]
        return {
            "packets": lambda: self._sent,
            "bytes": lambda: self._sent * plan.size,
            "occupancy_bytes": lambda: self._queued * plan.size,
            "watermark_bytes": lambda: self._high * plan.size,
            "delay_watermark_ns": lambda: self._high * plan.on // plan.serve,
        }[name]()

    @cached_property
    def _when(self) -> tuple[Array, Array]:
        """Whole periods, and ns since the start of the current one: (t, queues) each."""
        whole, phase = np.divmod(np.maximum(self.elapsed[:, None] - self._plan.offset, 0), self._shape.period_ns)
        return whole, phase

    @cached_property
    def _arrived(self) -> Array:
        whole, phase = self._when
        return whole * self._plan.arrive + self._plan.arrive * np.minimum(phase, self._plan.on) // self._plan.on

    @cached_property
    def _dropped(self) -> Array:
        whole, phase = self._when
        return whole * _dropped(self._plan, np.asarray(self._shape.period_ns)) + _dropped(self._plan, phase)

    @cached_property
    def _sent(self) -> Array:
        whole, phase = self._when
        return whole * _sent(self._plan, np.asarray(self._shape.period_ns)) + _sent(self._plan, phase)

    @cached_property
    def _queued(self) -> Array:
        return self._arrived - self._sent - self._dropped

    @cached_property
    def _high(self) -> Array:
        """Maximum packets in each queue since the watermarks were last cleared, once a second after boot."""
        plan = self._plan
        cleared = ScriptState(self._script, self.boot_ts + self.elapsed // WATERMARK_NS * WATERMARK_NS)
        before, here = (whole + (phase >= plan.on) for whole, phase in (cleared._when, self._when))
        high = np.maximum(cleared._queued, self._queued)
        return np.where(here > before, np.maximum(high, _peak(plan)), high)

    @cached_property
    def _marked(self) -> Array:
        whole, phase = self._when
        low, high = (_sent(self._plan, edge) for edge in _above(self._plan, self._plan.mark))
        return whole * (high - low) + np.clip(_sent(self._plan, phase), low, high) - low

    @cached_property
    def _tx_pause(self) -> tuple[Array, Array, Array]:
        start, end = _above(self._plan, self._plan.xoff)
        return self._paused(start, end, np.asarray(1000))

    @cached_property
    def _rx_pause(self) -> tuple[Array, Array, Array]:
        plan = self._plan
        busy = plan.on + _peak(plan) * plan.on // plan.serve
        return self._paused(np.zeros_like(busy), np.where(plan.pause > 0, busy, 0), plan.pause)

    def _paused(self, start: Array, end: Array, thousandths: Array) -> tuple[Array, Array, Array]:
        """Return microseconds, frames and ends of a pause that covers ``thousandths`` of each period's ``start`` to ``end``."""
        whole, phase = self._when

        def until(at: Array) -> tuple[Array, Array, Array]:
            us = (np.clip(at, start, end) - start) * thousandths // 1_000_000
            over = ((at >= end) & (end > start)).astype(np.int64)
            return us, us // REFRESH_US + (us > 0) + over, over

        us, frames, over = zip(until(np.asarray(self._shape.period_ns)), until(phase), strict=True)
        return whole * us[0] + us[1], whole * frames[0] + frames[1], whole * over[0] + over[1]


def _dropped(plan: _QueuePlan, phase: Array) -> Array:
    excess = np.maximum(plan.arrive - plan.serve, 0)
    return np.maximum(excess * np.minimum(phase, plan.on) // plan.on - plan.buffer, 0)


def _sent(plan: _QueuePlan, phase: Array) -> Array:
    """Return packets sent since the start of the period: the accepted ones, limited by the line rate."""
    during = np.minimum(phase, plan.on)
    excess = np.maximum(plan.arrive - plan.serve, 0)
    accepted = plan.arrive * during - np.maximum(excess * during - plan.buffer * plan.on, 0)
    return np.minimum(accepted, plan.serve * phase) // plan.on


def _peak(plan: _QueuePlan) -> Array:
    return np.minimum(np.maximum(plan.arrive - plan.serve, 0), plan.buffer)


def _above(plan: _QueuePlan, threshold: Array) -> tuple[Array, Array]:
    """Return when in a period a queue rises above ``threshold`` packets and when it falls below; zeros if it never does."""
    excess, peak = np.maximum(plan.arrive - plan.serve, 1), _peak(plan)
    ever = peak > threshold
    start = -(-threshold * plan.on // excess)
    end = plan.on + (peak - threshold) * plan.on // plan.serve
    return np.where(ever, start, 0), np.where(ever, end, 0)


_PORT_SUMS = {
    **{f"rx_{what}": ("group", column) for what, column in (("bytes", "bytes"), ("packets", "packets"), ("unicast_packets", "packets"))},
    **{f"tx_{what}": ("queue", column) for what, column in (("bytes", "bytes"), ("packets", "packets"), ("unicast_packets", "packets"))},
    "tx_discards": ("queue", "dropped_packets"),
    "ecn_marked_packets": ("queue", "ecn_marked_packets"),
    "in_occupancy_bytes": ("group", "occupancy_bytes"),
    "out_occupancy_bytes": ("queue", "occupancy_bytes"),
}
_PORT_CONSTANT = {
    "speed_bps": lambda shape: shape.speed_bps,
    "admin_up": lambda shape: 1,
    "rx_discards": lambda shape: 0,
    "tx_errors": lambda shape: 0,
}


def _draws(seed: int, stream: int, count: int) -> Array:
    """Return ``count`` evenly spread 62-bit numbers: the finaliser of SplitMix64, independent of the version of NumPy."""
    word = np.uint64((seed * 1_000_003 + stream) & (2**63 - 1))
    with np.errstate(over="ignore"):
        mixed = (np.arange(1, count + 1, dtype=np.uint64) + word) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2)).astype(np.int64)


def _plan(shape: Shape) -> tuple[_QueuePlan, _Inputs]:
    rows, inputs = [], []
    draw = iter(_draws(shape.seed, 1, 16 * shape.ports).tolist())

    def line(on: int, size: int) -> int:
        return shape.speed_bps // 8 * on // 1_000_000_000 // size

    def add(base: int, offset: int, to: int, sources: tuple[int, ...], priority: int, excess: int, pause: int = 0) -> None:
        on, size = (shape.on_ns, 4158) if priority == LOSSLESS else (shape.period_ns, 1058 if priority == BACKGROUND else 82)
        serve = line(on, size) * 97 // 100 * (1000 - pause) // 1000
        arrive = serve + excess if priority == LOSSLESS else serve * (5 + excess % 10) // (1000 if priority == BACKGROUND else 10_000)
        inputs.extend((base + port, len(rows), index) for index, port in enumerate(sources))
        rows.append((base + to, priority, offset, on, arrive, serve, size, 500, 60, 250, pause, len(sources)))

    for base in range(0, shape.ports - SPARE, 4):
        offset = next(draw) % (shape.period_ns // 4)
        add(base, offset, 2, (0, 1), LOSSLESS, 300 + next(draw) % 300)
        add(base, offset, 3, (2,), LOSSLESS, next(draw) % 60)
        add(base, offset, 0, (3,), LOSSLESS, next(draw) % 400, pause=100 + next(draw) % 300)
        for port in range(4):
            add(base, offset, (port + 1) % 4, (port,), BACKGROUND, next(draw))
        add(base, offset, 0, (2,), CNP, next(draw))
    return _QueuePlan(*np.array(rows, np.int64).T), _Inputs(*np.array(inputs, np.int64).T)
