"""The collect service: drains live collectors every 100 ms and publishes what they have, keeping it while the bus is away.

What waits for the bus is bounded by ``held_bytes_max``; beyond it the oldest batches are dropped, counted, and
admitted in a ``gap`` row as soon as the bus is back.
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
from ..pipeline.tables.families import FAMILIES
from . import COLLECTORS
from .base import Batch, Live
from .publish import Feed

DRAIN_S = 0.1

# Memory that is kept for the next rows goes back to the system so often, in case there are none.
GIVE_BACK_EVERY_NS = 5 * NS_PER_S


@dataclass(frozen=True, slots=True)
class _Common:
    """Section ``[collect]``: how much may wait for the bus, and one part for each collector that runs live."""

    held_bytes_max: int = 256 * 1024 * 1024


# The table of collectors says which parts the section has.
CollectConfig = make_dataclass(
    "CollectConfig",
    [(name, one.config, field(default_factory=one.config)) for name, one in COLLECTORS.items() if one.live is not None],
    bases=(_Common,),
    frozen=True,
)


def configured(config: Any, clock: Clock) -> dict[str, Live]:
    """Return the live collectors that the configuration asks for, inert."""
    asked = {name: getattr(config, name) for name, one in COLLECTORS.items() if one.live is not None}
    return {name: live(part, clock) for name, part in asked.items() if part.enabled and (live := COLLECTORS[name].live)}


class CollectService:
    """Runs the live collectors of one machine: those that the configuration asks for, or those that are given."""

    def __init__(self, config: Any, bus: Bus, clock: Clock, report: Report, name: str, given: Mapping[str, Live] | None = None) -> None:
        self._config = config
        self._bus = bus
        self._clock = clock
        self._report = report
        self._name = name
        self._given = given
        self._live: dict[str, Live] = {}
        self._held: collections.deque[Batch] = collections.deque()
        self._held_bytes = 0
        self._dropped: collections.Counter[tuple[str, str]] = collections.Counter()
        self._retry_ns = 0
        self._give_back_ns = 0

    def start(self) -> None:
        """Start the collectors that are configured. Raises a ``WeftError`` when one cannot have its source."""
        keep_freed()
        self._open()
        for name, live in (configured(self._config, self._clock) if self._given is None else self._given).items():
            live.start()
            self._live[name] = live

    def _open(self) -> None:
        self._producer = self._bus.producer(self._name)
        self._feed = Feed(self._producer, self._name, self._clock, live=True, epoch=self._clock.now_ns())

    def step(self) -> None:
        """Drain once, publish, and wait for the next time."""
        began = self._clock.monotonic_ns()
        for name, live in self._live.items():
            for batch in live.drain():
                self._hold(batch)
                self._report.count("weft_collectors_rows_total", batch.frame.height, label=f"{name}/{batch.family}")
            self._report.update(live.counters(), label=name)
        self._report.set("weft_collectors_held_bytes", self._held_bytes)
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
                self._hold(batch)
        self._live.clear()
        self._flush()
        self._producer.close()

    def _hold(self, batch: Batch) -> None:
        self._held.append(batch)
        self._held_bytes += batch.frame.estimated_size()
        while self._held_bytes > self._config.held_bytes_max:
            oldest = self._held.popleft()
            self._held_bytes -= oldest.frame.estimated_size()
            for device in oldest.frame["device"].unique():
                self._dropped[device, oldest.family] += oldest.frame.filter(pl.col("device") == device).height
            self._report.count("weft_collectors_dropped_rows_total", oldest.frame.height, label=oldest.family)

    def _flush(self) -> None:
        batches = [*self._held, *([self._admission()] if self._dropped else [])]
        if not batches:
            return
        try:
            self._report.count("weft_collectors_bytes_total", self._feed.publish(batches))
        except (BusError, FencedError) as error:
            self._retry_ns = self._clock.monotonic_ns() + NS_PER_S
            self._report.complain(f"{error}; {len(batches)} batches wait", "bus")
            if isinstance(error, FencedError):
                self._take_back()
            return
        self._held.clear()
        self._held_bytes = 0
        self._dropped.clear()

    def _take_back(self) -> None:
        """Take the name back: of two collectors of one name both go on, by turns and with complaints, and neither loses anything."""
        self._report.complain(f"a second collector is named {self._name}: stop one, or tell them apart with --member", "name")
        try:
            self._producer.close()
            self._open()
        except (BusError, FencedError) as error:
            self._report.complain(str(error), "bus")

    def _admission(self) -> Batch:
        now = self._clock.now_ns()
        rows = [
            {
                "ts": now,
                "recv_ts": now,
                "source": self._name,
                "device": device,
                "epoch": 0,
                "what": f"rows of {family}",
                "missed": missed,
                "reason": "bus_away",
            }
            for (device, family), missed in self._dropped.items()
        ]
        return Batch("gap", pl.DataFrame(rows, schema_overrides=FAMILIES["gap"].polars))
