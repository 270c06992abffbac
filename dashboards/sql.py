"""Parts of the dashboard's queries: literals, and spans of time with a suitable resolution.

Users copy the queries, so values are literals; ``text`` and ``instant`` are the only functions that put a value into one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from ..pipeline.clock import NS_PER_S
from ..pipeline.tables.field import RESOLUTIONS_NS

# Points of a line; more are wider than a screen.
POINTS_MAX = 1000

# The selectable ranges by their name in the URL; None = everything.
RANGES_S: dict[str, int | None] = {"5m": 300, "15m": 900, "1h": 3600, "6h": 6 * 3600, "24h": 24 * 3600, "all": None}

# The labels of resolutions.
WORDS = {"1s": "1 s", "10s": "10 s", "1m": "1 min", "1h": "1 h"}

# Widths of the columns of a heat map.
_STEPS_NS = tuple(factor * 10**power for power in range(6, 12) for factor in (1, 2, 5))


def text(value: str) -> str:
    """Return ``value`` as an SQL literal."""
    return "'" + value.replace("'", "''").replace("\x00", "") + "'"


def instant(ns: int) -> str:
    """Return UTC nanoseconds as a literal of type TIMESTAMP_NS."""
    seconds, rest = divmod(ns, NS_PER_S)
    return f"TIMESTAMP_NS '{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d}'"


def matches(**values: str) -> str:
    """Return the condition that columns have these values; an empty value admits all."""
    return " AND ".join(f"{name} = {text(value)}" for name, value in values.items() if value) or "true"


def weighted(ratio: str, weight: str) -> str:
    """Return the mean of a ratio over rows, by ``weight``, over the rows in which the ratio is known."""
    return f"weft_ratio(sum({ratio} * ({weight}))::DOUBLE, sum({weight}) FILTER ({ratio} IS NOT NULL))"


@dataclass(frozen=True, slots=True)
class Span:
    """Event time [from_ns, to_ns)."""

    from_ns: int
    to_ns: int

    @property
    def width_ns(self) -> int:
        return self.to_ns - self.from_ns

    def resolution(self, points_max: int = POINTS_MAX) -> str:
        """Return the finest resolution at which the span has at most ``points_max`` windows."""
        return next((name for name, ns in RESOLUTIONS_NS.items() if self.width_ns <= points_max * ns), "1h")

    def inside(self, resolution: str, column: str = "ts") -> str:
        """Return the condition that a window of ``resolution`` touches the span."""
        ns = RESOLUTIONS_NS[resolution]
        return f"{column} >= {instant(self.from_ns // ns * ns)} AND {column} < {instant(self.to_ns)}"

    def between(self, column: str) -> str:
        """Return the condition that an instant is in the span."""
        return f"{column} >= {instant(self.from_ns)} AND {column} < {instant(self.to_ns)}"

    def step_ns(self, count: int) -> int:
        """Return the smallest round width such that ``count`` points cover the span."""
        return next((step for step in _STEPS_NS if step * count >= self.width_ns), 3600 * NS_PER_S)

    def last(self, seconds: int) -> "Span":
        """Return the end of the span."""
        return Span(max(self.from_ns, self.to_ns - seconds * NS_PER_S), self.to_ns)


def chosen(first_ns: int, end_ns: int, range_name: str, until_ns: int | None) -> Span:
    """Return the span of a named range that ends at ``until_ns`` or with the data, cut to the span of the data."""
    end = min(end_ns, until_ns) if until_ns is not None else end_ns
    end = max(end, first_ns + 1)
    width_s = RANGES_S.get(range_name)
    start = first_ns if width_s is None else max(first_ns, end - width_s * NS_PER_S)
    return Span(start, end)
