"""The verdict on a demo: what the published store shows of a fault, while it lasts and at the end, compared with the truth."""

import collections
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...analytics.store.light_reader import RowQuery, light_reader
from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import StoreError
from .findings import Fired, RecordedFault, alerts_of, find, injected, rules_for

LOOK_NS = 2 * NS_PER_S


@dataclass(slots=True)
class Watch:
    """Reads the published store every two seconds: shows progress on a terminal and reports the first alert."""

    data: Path
    _due_ns: int = 0
    _fired: bool = False
    _faults: list[RecordedFault] = field(default_factory=list)

    def step(self, clock: Clock, seconds: float) -> None:
        """Read the store if it is time."""
        if clock.monotonic_ns() < self._due_ns:
            return
        self._due_ns = clock.monotonic_ns() + LOOK_NS
        self._faults = self._faults or injected(self.data)
        alerts, windows = self._read()
        for fault in self._faults[:1]:
            after = _after(alerts, fault)
            if after and not self._fired:
                self._fired = True
                since = (after[0].fired_ns - fault.begin_ns) / NS_PER_S
                self.close()
                print(f"alert: {after[0].rule}: {after[0].summary} ({since:.0f} s after the fault began)", flush=True)
        if sys.stderr.isatty():
            begun = sum(clock.now_ns() >= fault.begin_ns for fault in self._faults)
            line = f"{seconds:4.0f} s  {windows:,} rows of windows  {begun} of {len(self._faults)} faults under way  {len(alerts)} alerts"
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the progress line."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _read(self) -> tuple[list[Fired], int]:
        try:
            with light_reader(self.data / "store") as query:
                ((windows,),) = query("SELECT count(*) FROM state.port_samples_1s")
                return alerts_of(query), windows
        except StoreError:
            return [], 0


def _after(alerts: list[Fired], fault: RecordedFault) -> list[Fired]:
    """Return the alerts since the fault's begin, of the rules that detect it."""
    return [alert for alert in alerts if alert.fired_ns >= fault.begin_ns and alert.rule in rules_for(fault.kind)]


def summary(data: Path) -> Iterator[str]:
    """Yield the lines of the summary: each fault, what the store shows of it, and the alerts."""
    try:
        with light_reader(data / "store") as query:
            alerts = alerts_of(query)
            for fault in injected(data):
                yield from _about(query, fault, alerts)
    except StoreError:
        yield "Nothing was stored: the demo ended too early."
        return
    for rule, count in sorted(collections.Counter(alert.rule for alert in alerts).items()):
        yield f"  alerts     {rule}: {count}"
    yield f"  kept       {data}: weft dash --data {data}; the truth is in {data / 'lab' / 'truth'}"


def _about(query: RowQuery, fault: RecordedFault, alerts: list[Fired]) -> list[str]:
    at = f" at {fault.place}" if fault.place else ""
    lines = [f"fault        {fault.kind}{at}"]
    found = find(query, fault)
    if found is None:
        lines.append("  store says nothing of it")
    else:
        verdict = {True: "it is the place", False: "that is another place", None: "the fault has no one place"}[found.is_it]
        lines.append(f"  store says {found.place}: {found.text} ({verdict})")
    after = _after(alerts, fault)
    if after:
        lines.append(f"  first      {after[0].rule} after {(after[0].fired_ns - fault.begin_ns) / NS_PER_S:.1f} s: {after[0].summary}")
    elif rules_for(fault.kind):
        lines.append("  first      no alert")
    else:
        lines.append("  first      no rule watches for it")
    return lines
