"""Counter samples to segments of samples: differences on a grid, with every gap counted.

Two consecutive counter samples of a port that are one slot apart give one sample, of the slot of the earlier one. Anything else ends
the segment and counts as missing, in samples: counter samples further apart (the bytes of several slots in one number), a counter that
went back, a change of the grid. On one grid without gaps the samples add up to the last counter value minus the first.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .netlink import RX_BYTES, TX_BYTES, Link
from .ticker import Regime

SIGNALS = (("rx_bytes", RX_BYTES), ("tx_bytes", TX_BYTES))


@dataclass(slots=True)
class PortState:
    """The carry of one interface between two drains: its last counter sample is the base of the next sample."""

    name: str
    speed_bps: int
    oper_up: bool = False
    carrier_changes: int | None = None
    epoch: int = 0
    regime: Regime | None = None
    slot: int = 0
    serial: int = -1
    ts: int = 0
    counters: np.ndarray | None = None


@dataclass(slots=True)
class SegmentColumns:
    """Columns of the segments of one drain, port by port, and the number and first time of missing samples by reason."""

    heads: list[dict[str, Any]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    missed: dict[str, tuple[int, int]] = field(default_factory=dict)

    def miss(self, reason: str, samples: int, ts: int) -> None:
        before, first = self.missed.get(reason, (0, ts))
        self.missed[reason] = (before + samples, min(first, ts))


def extend(port: PortState, regime: Regime, wall_ns: np.ndarray, serials: np.ndarray, link: Link, segments: SegmentColumns) -> None:
    """Add a port's counter samples to its last one; ``wall_ns`` and ``serials`` are those of the replies that contain the port."""
    slots, counters = wall_ns // regime.interval_ns, link.counters
    if port.regime is regime and port.counters is not None:
        slots, serials = np.append(port.slot, slots), np.append(port.serial, serials)
        counters = np.vstack((port.counters, counters))
    else:
        if port.counters is not None:
            # The time before the first counter sample of a new grid is on no grid.
            segments.miss(regime.reason or "interval_changed", len(SIGNALS), port.ts)
        if port.counters is None or regime.reason == "clock_step":
            port.epoch = int(wall_ns[0])
    _cut(port, regime.interval_ns, slots, serials, counters, segments)
    port.regime, port.slot, port.serial = regime, int(slots[-1]), int(serials[-1])
    port.ts, port.counters = int(wall_ns[-1]), counters[-1].copy()


def _cut(port: PortState, interval_ns: int, slots: np.ndarray, serials: np.ndarray, counters: np.ndarray, segments: SegmentColumns) -> None:
    """Cut a port's counter samples into segments wherever the grid does not move by one slot or a counter goes back."""
    used = counters[:, [column for _, column in SIGNALS]]
    reset = np.asarray(used[1:] < used[:-1]).any(axis=1).reshape(-1)
    steps = np.diff(slots)
    good = (steps == 1) & ~reset
    deltas = used[1:] - used[:-1]
    lost = np.diff(serials) != 1
    for index in np.flatnonzero(~good).tolist():
        reason = "counter_reset" if reset[index] else "buffer_full" if lost[index] else "late_tick"
        segments.miss(reason, max(1, int(steps[index])) * len(SIGNALS), int(slots[index]) * interval_ns)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False])).astype(np.int8)))
    resets = np.flatnonzero(reset)
    for first, last in edges.reshape(-1, 2).tolist():
        before = resets[resets < first]
        if len(before):
            port.epoch = int(slots[int(before[-1]) + 1]) * interval_ns
        head = {"ts": int(slots[first]) * interval_ns, "epoch": port.epoch, "port": port.name}
        for number, (signal, _) in enumerate(SIGNALS):
            segments.heads.append({**head, "signal": signal, "interval_ns": interval_ns, "speed_bps": port.speed_bps})
            segments.values.append(deltas[first:last, number])
    if len(resets):
        port.epoch = int(slots[int(resets[-1]) + 1]) * interval_ns
