"""Shared by the benchmarks: a line of the table, and the best rate of a few runs in this process."""

from collections.abc import Callable
from dataclasses import dataclass

from ...pipeline.clock import NS_PER_S, SystemClock


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement: name, value, comparison, goal."""

    what: str
    value: str
    beside: str = ""
    goal: str = ""


def best_rate(work: Callable[[], object], units: int, runs: int = 5) -> float:
    """Return units per second of the fastest of ``runs`` calls, since other load can only slow a call down."""
    clock, best = SystemClock(), 0.0
    for _ in range(runs):
        began = clock.monotonic_ns()
        work()
        best = max(best, units / (clock.monotonic_ns() - began) * NS_PER_S)
    return best
