"""Scores alerts against the ground truth: precision, recall, place, time to detect, false alarms.

An alert counts for a fault if it fires between the fault's begin and ``GRACE_NS`` after its end. It is right if its labels name the fault's
place; both ends of a link are the same place, since a host that pauses shows at the switch port that it pauses. A fault without a place
(all switches), or of a device's telemetry, has no port.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

# Windows close some time after the fault has ended.
GRACE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class ScoredAlert:
    """An alert: its labels, and when it fired (ns UTC)."""

    rule: str
    labels: Mapping[str, str]
    fired_ns: int


@dataclass(frozen=True, slots=True)
class FaultPlace:
    """The place of a fault: (device, port) pairs, devices, or a job. Empty: everywhere."""

    ports: frozenset[tuple[str, str]] = frozenset()
    devices: frozenset[str] = frozenset()
    job: str = ""

    @property
    def everywhere(self) -> bool:
        return not (self.ports or self.devices or self.job)

    def has_device(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels name a device of the place."""
        device = labels.get("device", "")
        return self.everywhere or device in self.devices or any(device == own for own, _ in self.ports)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels name the place itself."""
        if self.everywhere or (self.job and labels.get("job") == self.job):
            return True
        return (labels.get("device", ""), labels.get("port", "")) in self.ports or labels.get("device", "") in self.devices


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One run: time and place of its fault (``None``: a quiet run), length, and alerts."""

    kind: str
    span_ns: int
    alerts: tuple[ScoredAlert, ...]
    place: FaultPlace | None = None
    begin_ns: int = 0
    end_ns: int = 0

    @property
    def in_time(self) -> list[ScoredAlert]:
        return sorted((a for a in self.alerts if self.begin_ns <= a.fired_ns <= self.end_ns + GRACE_NS), key=lambda a: a.fired_ns)

    @property
    def right(self) -> list[ScoredAlert]:
        return [alert for alert in self.in_time if self.place is not None and self.place.has(alert.labels)]


@dataclass(frozen=True, slots=True)
class Score:
    """The score of the runs of one kind; ``None`` where there is nothing to score."""

    kind: str
    runs: int
    detected: int
    alerts: int
    right: int
    device_right: int
    first_right: int
    detect_s: float | None
    rules: tuple[str, ...]

    @property
    def recall(self) -> float:
        return self.detected / self.runs

    @property
    def precision(self) -> float | None:
        """The share of right alerts among all alerts of these runs, including those before the fault."""
        return self.right / self.alerts if self.alerts else None

    @property
    def device_ratio(self) -> float | None:
        """The share of alerts that name a device of the place."""
        return self.device_right / self.alerts if self.alerts else None

    @property
    def localised(self) -> float:
        """The share of runs whose first alert in the fault's time names the place."""
        return self.first_right / self.runs


def score(kind: str, runs: Sequence[ScoredRun]) -> Score:
    """Return the score of at least one run with a fault of this kind."""
    places = [(run, run.place) for run in runs if run.place is not None]
    delays = [(run.right[0].fired_ns - run.begin_ns) / 1e9 for run in runs if run.right]
    return Score(
        kind,
        len(runs),
        sum(bool(run.right) for run in runs),
        sum(len(run.alerts) for run in runs),
        sum(len(run.right) for run in runs),
        sum(place.has_device(alert.labels) for run, place in places for alert in run.in_time),
        sum(place.has(run.in_time[0].labels) for run, place in places if run.in_time),
        median(delays) if delays else None,
        tuple(sorted({alert.rule for run in runs for alert in run.right})),
    )


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """Alerts of quiet runs. ``at_most`` is the upper 95 % confidence limit of the rate per day (Poisson; three events if none was seen)."""

    alarms: int
    seconds: float

    @property
    def a_day(self) -> float:
        return self.alarms * 86_400 / self.seconds

    @property
    def at_most(self) -> float:
        return _poisson_upper(self.alarms) * 86_400 / self.seconds


def false_alarms(runs: Iterable[ScoredRun]) -> FalseAlarms | None:
    """Return the false alarms of the quiet runs, ``None`` without such runs."""
    quiet = [run for run in runs if run.place is None]
    return FalseAlarms(sum(len(run.alerts) for run in quiet), sum(run.span_ns for run in quiet) / 1e9) if quiet else None


def _poisson_upper(count: int) -> float:
    """Return the Poisson mean at which ``count`` or fewer events have a chance of 5 %, by bisection."""
    from math import exp

    low, high = 0.0, 10.0 + 3.0 * count
    for _ in range(60):
        middle = (low + high) / 2
        term = total = exp(-middle)
        for k in range(1, count + 1):
            term *= middle / k
            total += term
        low, high = (middle, high) if total > 0.05 else (low, middle)
    return high
