"""Views as data: a name, a source, and columns, each an SQL expression with its meaning."""

import re
from dataclasses import dataclass

from ...pipeline.tables.field import RESOLUTIONS_NS
from ...pipeline.tables.states import STATES

# In the SQL of a view, ``[a where b]`` is the sum of column ``a`` over the windows in which ``b`` is known: in a roll-up a statistic
# may be unknown in some of the windows, such as those that an older version stored.
_CONDITIONAL = re.compile(r"\[(\w+) where (\w+)\]")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, SQL over the source, meaning, unit.

    Where a view joins samples with counters, ``sql`` is over the statistics of samples (empty where they have none), and
    ``counters`` is over counters, used where ``sql`` is NULL.
    """

    name: str
    sql: str
    doc: str
    unit: str = ""
    counters: str = ""

    @property
    def expression(self) -> str:
        """The SQL of the column, from samples, else from counters."""
        return f"coalesce({self.sql}, {self.counters})" if self.sql and self.counters else self.sql or self.counters


@dataclass(frozen=True, slots=True)
class View:
    """One view; with ``resolutions``, one for each, and ``{r}`` and ``{ns}`` in its SQL are replaced."""

    name: str
    doc: str
    source: str
    columns: tuple[Column, ...]
    resolutions: bool = True
    where: str = ""

    def sql(self, resolution: str = "") -> str:
        """Return the statement that creates the view."""
        name = f"{self.name}_{resolution}" if self.resolutions else self.name
        select = ",\n  ".join(f"{column.expression} AS {column.name}" for column in self.columns)
        text = f"CREATE OR REPLACE VIEW main.{name} AS SELECT\n  {select}\nFROM {self.source}{f' WHERE {self.where}' if self.where else ''}"
        text = _CONDITIONAL.sub(lambda found: _conditional_sum(found[1], found[2], resolution), text)
        return text.replace("{r}", resolution).replace("{ns}", str(RESOLUTIONS_NS.get(resolution, 0)))

    def conditional_sums(self) -> dict[str, set[tuple[str, str]]]:
        """Return the pairs (a, b) of ``[a where b]`` by the table that has both columns."""
        text = self.source + "".join(column.expression for column in self.columns)
        tables = [table for name, table in STATES.items() if f"state.{name}_{{r}}" in text]
        pairs = set(_CONDITIONAL.findall(text))
        return {table.name: {pair for pair in pairs if set(pair) <= table.polars.keys()} for table in tables}


def plain(name: str, doc: str, unit: str = "") -> Column:
    """Return the column that shows a column of the source unchanged."""
    return Column(name, name, doc, unit)


def one_source(table: str, keys: str, names: tuple[str, ...], replaced: str = "") -> str:
    """Return, of each object and window, the row of the source with most counters: two sources have different intervals."""
    known = " + ".join(f"({name} IS NOT NULL)::INT" for name in names)
    return f"""(SELECT *{replaced} FROM state.{table}_{{r}}
    QUALIFY row_number() OVER (PARTITION BY ts, {keys} ORDER BY {known} DESC, readings DESC, source) = 1)"""


def conditional_name(value: str, known: str) -> str:
    """Return the column of roll-ups that holds the sum of ``value`` where ``known`` is known."""
    return f"{value}_where_{known}"


def _conditional_sum(value: str, known: str, resolution: str) -> str:
    own = f"CASE WHEN {known} IS NOT NULL THEN {value} END"
    return own if resolution == "1s" else f"coalesce({conditional_name(value, known)}, {own})"


def quantile(q: float) -> str:
    """Return the SQL of a quantile of ``hist``, clamped to the samples: the value of a bucket may be 1 % beyond them."""
    value = f"hist_{percent(q)}"
    return f"CASE WHEN {value} < low THEN low WHEN {value} > high THEN high ELSE {value} END"


def percent(q: float) -> str:
    """Return p50 for 0.5, p999 for 0.999."""
    return "p" + f"{q * 100:g}".replace(".", "")


# The columns of every view of counters.
SOURCE = plain("source", "the collector that read the counters; of several the one with most of them")
READINGS = plain("readings", "counter samples in the window")
COVERED = Column(
    "covered_ratio", "covered_ns / {ns}", "time covered by the counters over the window; above 1 where they are read less often"
)
QUALITY = Column(
    "quality",
    "CASE WHEN covered_ns < 0.9 * {ns} THEN 'partial' WHEN covered_ns > 2 * {ns} THEN 'coarse' ELSE 'ok' END",
    "ok; partial where the counters cover less than 90 % of the window; coarse where their intervals are longer than it",
)
