"""The collect service: drains live collectors every 100 ms and publishes their batches; while the bus is away, batches wait.

Waiting batches are bounded by ``held_bytes_max``; beyond it the oldest are dropped, counted, and reported in a ``gap`` row as soon as
the bus is back.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import polars as pl

from ..pipeline.bus import Bus
from ..pipeline.clock import NS_PER_S, Clock
from ..pipeline.errors import BusError, FencedError
from ..pipeline.memory import give_back, keep_freed
from ..pipeline.report import Report
from . import COLLECTORS
from .base import Batch, Live, gaps
from .publish import BatchPublisher

DRAIN_S = 0.1

# How often freed memory goes back to the system.
GIVE_BACK_EVERY_NS = 5 * NS_PER_S


@dataclass(frozen=True, slots=True)
class _Common:
    """Section ``[collect]``: how much may wait for the bus; each live collector adds a part."""

    held_bytes_max: int = 256 * 1024 * 1024


# The registry of collectors gives the parts of the section.
CollectConfig = make_dataclass(
    "CollectConfig",
    [(name, one.config, field(default_factory=one.config)) for name, one in COLLECTORS.items() if one.live is not None],
    bases=(_Common,),
    frozen=True,
)


def configured(config: Any, clock: Clock) -> dict[str, Live]:
    """Return the live collectors that the configuration enables, not started."""
    parts = {name: getattr(config, name) for name, one in COLLECTORS.items() if one.live is not None}
    return {name: live(part, clock) for name, part in parts.items() if part.enabled and (live := COLLECTORS[name].live)}


class CollectService:
    """Runs the live collectors of one machine: those that the configuration enables, or the ``given`` ones."""

    def __init__(self, config: Any, bus: Bus, clock: Clock, report: Report, name: str, given: Mapping[str, Live] | None = None) -> None:
        self._config = config
        self._bus = bus
        self._clock = clock
        self._report = report
        self._name = name
        self._given = given
        self._live: dict[str, Live] = {}
        self._waiting: collections.deque[Batch] = collections.deque()
        self._waiting_bytes = 0
        self._dropped: collections.Counter[tuple[str, str]] = collections.Counter()
        self._retry_ns = 0
        self._give_back_ns = 0

    def start(self) -> None:
        """Start the configured collectors. Raises a ``WeftError`` when one cannot open its source."""
        keep_freed()
        self._open()
        for name, live in (configured(self._config, self._clock) if self._given is None else self._given).items():
            live.start()
            self._live[name] = live

    def _open(self) -> None:
        self._producer = self._bus.producer(self._name)
        self._publisher = BatchPublisher(self._producer, self._name, self._clock, live=True, epoch=self._clock.now_ns())

    def step(self) -> None:
        """Drain once, publish, and wait for the next drain."""
        began = self._clock.monotonic_ns()
        for name, live in self._live.items():
            for batch in live.drain():
                self._enqueue(batch)
                self._report.count("weft_collectors_rows_total", batch.frame.height, label=f"{name}/{batch.family}")
            self._report.update(live.counters(), label=name)
        self._report.set("weft_collectors_held_bytes", self._waiting_bytes)
        if began >= self._give_back_ns:
            self._give_back_ns = began + GIVE_BACK_EVERY_NS
            give_back()
        if self._clock.monotonic_ns() >= self._retry_ns:
            self._flush()
            self._report.publish(self._producer)
        self._clock.wait(DRAIN_S - (self._clock.monotonic_ns() - began) / NS_PER_S)

    def stop(self) -> None:
        """Stop the collectors and publish the rest. Idempotent."""
        for live in self._live.values():
            live.stop()
            for batch in live.drain():
                self._enqueue(batch)
        self._live.clear()
        self._flush()
        self._producer.close()

    def _enqueue(self, batch: Batch) -> None:
        self._waiting.append(batch)
        self._waiting_bytes += batch.frame.estimated_size()
        while self._waiting_bytes > self._config.held_bytes_max:
            oldest = self._waiting.popleft()
            self._waiting_bytes -= oldest.frame.estimated_size()
            for device in oldest.frame["device"].unique():
                self._dropped[device, oldest.family] += oldest.frame.filter(pl.col("device") == device).height
            self._report.count("weft_collectors_dropped_rows_total", oldest.frame.height, label=oldest.family)

    def _flush(self) -> None:
        losses = [(device, f"rows of {family}", missed, "bus_away", None) for (device, family), missed in self._dropped.items()]
        batches = [*self._waiting, *gaps(self._name, losses, self._clock.now_ns())]
        if not batches:
            return
        try:
            self._report.count("weft_collectors_bytes_total", self._publisher.publish(batches))
        except (BusError, FencedError) as error:
            self._retry_ns = self._clock.monotonic_ns() + NS_PER_S
            self._report.complain(f"{error}; {len(batches)} batches wait", "bus")
            if isinstance(error, FencedError):
                self._reopen()
            return
        self._waiting.clear()
        self._waiting_bytes = 0
        self._dropped.clear()

    def _reopen(self) -> None:
        """Claim the name again: two collectors of one name take turns, each with a warning, and neither loses a batch."""
        self._report.complain(f"a second collector is named {self._name}: stop one, or give each its own --member", "name")
        try:
            self._producer.close()
            self._open()
        except (BusError, FencedError) as error:
            self._report.complain(str(error), "bus")
