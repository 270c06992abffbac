"""What a view is: a name, a source and columns, each one expression with its meaning."""

from dataclasses import dataclass

from ...pipeline.tables.field import RESOLUTIONS_NS


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, SQL over the source, unit, meaning.

    Where a view joins burst samples with counters, ``sql`` is over the statistics of samples, empty where they do not
    tell; ``counters`` is over counters and stands where the other is NULL.
    """

    name: str
    sql: str
    unit: str
    doc: str
    counters: str = ""

    @property
    def expression(self) -> str:
        """The SQL of the column, from whichever of the two knows it."""
        return f"coalesce({self.sql}, {self.counters})" if self.sql and self.counters else self.sql or self.counters


@dataclass(frozen=True, slots=True)
class View:
    """One view; with ``resolutions`` it exists once for each, and ``{r}`` and ``{ns}`` in the SQL are replaced."""

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
        return text.replace("{r}", resolution).replace("{ns}", str(RESOLUTIONS_NS.get(resolution, 0)))


def quantile(q: float) -> str:
    """Return the SQL of a quantile of ``hist``: a bucket's value may lie up to 1 % outside what was sampled, no quantile does."""
    value = f"hist_{percent(q)}"
    return f"CASE WHEN {value} < low THEN low WHEN {value} > high THEN high ELSE {value} END"


def percent(q: float) -> str:
    """Return p50 for 0.5, p999 for 0.999."""
    return "p" + f"{q * 100:g}".replace(".", "")
