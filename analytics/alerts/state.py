"""How one alert moves: pending, firing, resolved, over the closed windows of its label set, in event time.

A window of a label set is one of three: *breach* (the condition holds), *clear* (it does not, or there is no row), or
*absent* (its device has no row at all, and the rule cares). Equal neighbours come as one run, so the cost is one
step per change, whatever the span, and cutting a span anywhere gives the same alerts. With w the window, b the breaching
time, c the clear time since the last breach:

* pending from the first breach; firing once b >= max(for, w), at the end of that window; dropped at the first clear window;
* firing again becomes resolved once c >= keep_firing_for, at the moment that c reaches it (for 0: where the breach ended);
* absent, ``keep``: neither b nor c counts; ``alert``: counts as breach. After ``FORGET_NS`` without data the alert ends,
  so that a device that was taken away does not fire for ever.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...pipeline.clock import NS_PER_S
from .rules import Rule

FORGET_NS = 24 * 3600 * NS_PER_S

Phase = Literal["ok", "pending", "firing", "resolved"]


class WindowRange(NamedTuple):
    """Neighbouring windows of one kind: [start_ns, end_ns); the value is the last window's."""

    kind: Literal["breach", "clear", "absent"]
    start_ns: int
    end_ns: int
    value: float | None = None


@dataclass(slots=True)
class Alert:
    """One episode of one label set; ``ok`` only remembers that the label set exists, for rules that miss it when it is gone."""

    fingerprint: str
    rule: str
    labels: Mapping[str, str]
    phase: Phase = "ok"
    value: float | None = None
    starts_at: int = 0
    fired_at: int | None = None
    ends_at: int | None = None
    last_seen: int = 0
    breach_ns: int = 0
    clear_ns: int = 0
    absent_ns: int = 0

    @property
    def state(self) -> str:
        """The state as users see it: an alert that is held or made by missing data says so until it fires anew."""
        if self.phase == "pending" and self.absent_ns:
            return "no_data"
        if self.phase == "firing" and self.absent_ns and self.value is not None:
            return "no_data"
        return self.phase


class Track:
    """Walks one label set of one rule through its runs, in order."""

    def __init__(self, rule: Rule, fingerprint: str, labels: Mapping[str, str], alert: Alert | None) -> None:
        self._rule = rule
        self._fingerprint = fingerprint
        self._labels = labels
        self.alert = alert
        self.fired: list[Alert] = []
        self.resolved: list[Alert] = []

    def feed(self, runs: Iterable[WindowRange]) -> None:
        """Take the next runs; ``alert``, ``fired`` and ``resolved`` tell what came of it."""
        for run in runs:
            if run.kind == "breach":
                self._breach(run)
                if self.alert is not None:
                    self.alert.absent_ns = 0
            elif run.kind == "clear":
                self._clear(run)
            elif self._rule.no_data == "alert":
                self._missed(run)
            else:
                self._held(run)

    def _fresh(self) -> Alert:
        return Alert(self._fingerprint, self._rule.name, self._labels)

    def _breach(self, run: WindowRange) -> None:
        alert = self.alert or self._fresh()
        if alert.phase == "ok":
            alert = self._fresh()
            alert.phase, alert.starts_at = "pending", run.start_ns
        window = self._rule.window_ns
        needed = max(window, -(-(self._rule.for_ns - alert.breach_ns) // window) * window)
        alert.breach_ns += run.end_ns - run.start_ns
        alert.clear_ns = 0
        alert.value = run.value
        alert.last_seen = run.end_ns - window
        if alert.phase == "pending" and alert.breach_ns >= self._rule.for_ns:
            alert.phase, alert.fired_at = "firing", run.start_ns + needed
            self.fired.append(alert)
        self.alert = alert

    def _clear(self, run: WindowRange) -> None:
        alert = self.alert
        if alert is None or alert.phase == "ok":
            self.alert = self._idle()
            return
        alert.absent_ns = 0
        if alert.phase == "pending":
            self.alert = self._idle()
            return
        alert.clear_ns += run.end_ns - run.start_ns
        if alert.clear_ns >= self._rule.keep_ns:
            self._resolve(alert, run.end_ns - (alert.clear_ns - self._rule.keep_ns))
            self.alert = self._idle()

    def _held(self, run: WindowRange) -> None:
        alert = self.alert
        if alert is None:
            return
        alert.absent_ns += run.end_ns - run.start_ns
        if alert.absent_ns >= FORGET_NS:
            self._forget(alert, run.end_ns - (alert.absent_ns - FORGET_NS))

    def _missed(self, run: WindowRange) -> None:
        if self.alert is None:
            return
        absent_ns = self.alert.absent_ns
        end_ns = min(run.end_ns, run.start_ns + FORGET_NS - absent_ns)
        self._breach(WindowRange("breach", run.start_ns, end_ns))
        self.alert.absent_ns = absent_ns + end_ns - run.start_ns
        if self.alert.absent_ns >= FORGET_NS:
            self._forget(self.alert, end_ns)

    def _idle(self) -> Alert | None:
        return self._fresh() if self._rule.no_data == "alert" else None

    def _resolve(self, alert: Alert, ends_at: int) -> None:
        assert alert.fired_at is not None
        alert.phase, alert.ends_at = "resolved", ends_at
        # What a run went beyond the end depends on how the span was cut; the stored row must not.
        alert.clear_ns = min(alert.clear_ns, self._rule.keep_ns)
        alert.absent_ns = min(alert.absent_ns, FORGET_NS)
        self.resolved.append(alert)

    def _forget(self, alert: Alert, ends_at: int) -> None:
        if alert.phase == "firing":
            self._resolve(alert, ends_at)
        self.alert = None


def timeline(span: tuple[int, int], breaches: Sequence[WindowRange], present: Sequence[tuple[int, int]] | None) -> Iterator[WindowRange]:
    """Yield the runs that fill ``span`` without a gap.

    ``breaches`` and ``present`` are sorted and disjoint; ``present`` is where there are data, ``None`` = everywhere.
    """
    cursor, end = span
    for breach in breaches:
        yield from _quiet(cursor, breach.start_ns, present)
        yield breach
        cursor = breach.end_ns
    yield from _quiet(cursor, end, present)


def _quiet(start: int, end: int, present: Sequence[tuple[int, int]] | None) -> Iterator[WindowRange]:
    if present is None:
        if start < end:
            yield WindowRange("clear", start, end)
        return
    index = max(0, bisect_right(present, (start, start)) - 1)
    while start < end:
        while index < len(present) and present[index][1] <= start:
            index += 1
        low, high = present[index] if index < len(present) else (end, end)
        if start < low:
            yield WindowRange("absent", start, min(low, end))
        if max(start, low) < min(high, end):
            yield WindowRange("clear", max(start, low), min(high, end))
        start = max(start, min(high, end))
