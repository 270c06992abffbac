"""The states of one alert (pending, firing, resolved) over the closed windows of its label set, in event time.

A window of a label set is one of three: *breach* (the condition holds), *clear* (it does not, or there is no row), or
*absent* (its device has no row at all, and ``no_data`` is not ``ok``). Consecutive windows of one kind form a range, so the cost
is one step per change, whatever the span, and cutting a span anywhere gives the same alerts. With w the window, b the
breaching time, c the clear time since the last breach:

* pending from the first breach; firing once b >= max(for, w), at the end of that window; dropped at the first clear window;
* firing again becomes resolved once c >= keep_firing_for, at the moment that c reaches it (for 0: where the breach ended);
* absent, ``keep``: neither b nor c counts; ``alert``: counts as breach. After ``FORGET_NS`` without data the alert ends,
  so that a removed device does not fire for ever.
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
    """Consecutive windows of one kind: [start_ns, end_ns), with the value of the last one."""

    kind: Literal["breach", "clear", "absent"]
    start_ns: int
    end_ns: int
    value: float | None = None


@dataclass(slots=True)
class Alert:
    """One alert of one label set; phase ``ok`` only records that the label set exists, for rules that fire on its absence."""

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
        """The state as users see it: ``no_data`` while missing data keep the alert or cause it."""
        if self.phase == "pending" and self.absent_ns:
            return "no_data"
        if self.phase == "firing" and self.absent_ns and self.value is not None:
            return "no_data"
        return self.phase


class Track:
    """Moves the alert of one label set of one rule through ranges of windows, in order."""

    def __init__(self, rule: Rule, fingerprint: str, labels: Mapping[str, str], alert: Alert | None) -> None:
        self._rule = rule
        self._fingerprint = fingerprint
        self._labels = labels
        self.alert = alert
        self.fired: list[Alert] = []
        self.resolved: list[Alert] = []

    def advance(self, ranges: Iterable[WindowRange]) -> None:
        """Take the next ranges; ``alert``, ``fired`` and ``resolved`` have the outcome."""
        for window_range in ranges:
            if window_range.kind == "breach":
                self._breach(window_range)
                if self.alert is not None:
                    self.alert.absent_ns = 0
            elif window_range.kind == "clear":
                self._clear(window_range)
            elif self._rule.no_data == "alert":
                self._absent(window_range)
            else:
                self._keep(window_range)

    def _new(self) -> Alert:
        return Alert(self._fingerprint, self._rule.name, self._labels)

    def _breach(self, window_range: WindowRange) -> None:
        alert = self.alert or self._new()
        if alert.phase == "ok":
            alert = self._new()
            alert.phase, alert.starts_at = "pending", window_range.start_ns
        window = self._rule.window_ns
        needed = max(window, -(-(self._rule.for_ns - alert.breach_ns) // window) * window)
        alert.breach_ns += window_range.end_ns - window_range.start_ns
        alert.clear_ns = 0
        alert.value = window_range.value
        alert.last_seen = window_range.end_ns - window
        if alert.phase == "pending" and alert.breach_ns >= self._rule.for_ns:
            alert.phase, alert.fired_at = "firing", window_range.start_ns + needed
            self.fired.append(alert)
        self.alert = alert

    def _clear(self, window_range: WindowRange) -> None:
        alert = self.alert
        if alert is None or alert.phase == "ok":
            self.alert = self._idle()
            return
        alert.absent_ns = 0
        if alert.phase == "pending":
            self.alert = self._idle()
            return
        alert.clear_ns += window_range.end_ns - window_range.start_ns
        if alert.clear_ns >= self._rule.keep_ns:
            self._resolve(alert, window_range.end_ns - (alert.clear_ns - self._rule.keep_ns))
            self.alert = self._idle()

    def _keep(self, window_range: WindowRange) -> None:
        alert = self.alert
        if alert is None:
            return
        alert.absent_ns += window_range.end_ns - window_range.start_ns
        if alert.absent_ns >= FORGET_NS:
            self._forget(alert, window_range.end_ns - (alert.absent_ns - FORGET_NS))

    def _absent(self, window_range: WindowRange) -> None:
        if self.alert is None:
            return
        absent_ns = self.alert.absent_ns
        end_ns = min(window_range.end_ns, window_range.start_ns + FORGET_NS - absent_ns)
        self._breach(WindowRange("breach", window_range.start_ns, end_ns))
        self.alert.absent_ns = absent_ns + end_ns - window_range.start_ns
        if self.alert.absent_ns >= FORGET_NS:
            self._forget(self.alert, end_ns)

    def _idle(self) -> Alert | None:
        return self._new() if self._rule.no_data == "alert" else None

    def _resolve(self, alert: Alert, ends_at: int) -> None:
        assert alert.fired_at is not None
        alert.phase, alert.ends_at = "resolved", ends_at
        # How far a range exceeds the end depends on how the span was cut; the stored row must not.
        alert.clear_ns = min(alert.clear_ns, self._rule.keep_ns)
        alert.absent_ns = min(alert.absent_ns, FORGET_NS)
        self.resolved.append(alert)

    def _forget(self, alert: Alert, ends_at: int) -> None:
        if alert.phase == "firing":
            self._resolve(alert, ends_at)
        self.alert = None


def timeline(span: tuple[int, int], breaches: Sequence[WindowRange], present: Sequence[tuple[int, int]] | None) -> Iterator[WindowRange]:
    """Yield the ranges that fill ``span`` without a gap.

    ``breaches`` and ``present`` are sorted and disjoint; ``present`` has the times with data, ``None`` = always.
    """
    cursor, end = span
    for breach in breaches:
        yield from _without_breach(cursor, breach.start_ns, present)
        yield breach
        cursor = breach.end_ns
    yield from _without_breach(cursor, end, present)


def _without_breach(start: int, end: int, present: Sequence[tuple[int, int]] | None) -> Iterator[WindowRange]:
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
