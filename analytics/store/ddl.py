"""The tables of the store in DuckDB: names, column types, and rows in the form in which they are stored."""

import polars as pl

from ...pipeline import histogram
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import RESOLUTIONS_NS, Table
from ...pipeline.tables.states import STATES
from ..views import CONDITIONAL_SUMS, conditional_name
from .lag import STORED_FAMILIES

# The resolutions of roll-ups.
COARSER = tuple(name for name in RESOLUTIONS_NS if name != "1s")

_TIMES = ("ts", "recv_ts", "start_ts")

# The quantiles that are stored beside every histogram, by the suffix of their column.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}

_TYPES = {
    pl.Int16: "SMALLINT",
    pl.Int64: "BIGINT",
    pl.UInt8: "UTINYINT",
    pl.UInt16: "USMALLINT",
    pl.UInt32: "UINTEGER",
    pl.UInt64: "UBIGINT",
    pl.Float64: "DOUBLE",
    pl.Boolean: "BOOLEAN",
    pl.String: "VARCHAR",
}


def duckdb_type(dtype: object) -> str:
    """Return the DuckDB name of a Polars type."""
    if isinstance(dtype, pl.List):
        return f"{duckdb_type(dtype.inner)}[]"
    if isinstance(dtype, pl.Struct):
        return "STRUCT(" + ", ".join(f"{field.name} {duckdb_type(field.dtype)}" for field in dtype.fields) + ")"
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision},{dtype.scale})"
    return _TYPES[dtype if isinstance(dtype, type) else type(dtype)]


def definitions(table: Table, *, coarse: bool = False) -> dict[str, str]:
    """Return the type of each column of ``table``: times are TIMESTAMP_NS, quantiles stand beside each histogram.

    A roll-up (``coarse``) also has the conditional sums of its views' ratios.
    """
    plain = {f.name: "TIMESTAMP_NS" if f.name in _TIMES else duckdb_type(f.dtype) for f in table.fields}
    sums = {conditional_name(*pair): plain[pair[0]] for pair in CONDITIONAL_SUMS.get(table.name, ())} if coarse else {}
    return plain | sums | {f"{name}_{label}": "DOUBLE" for name in table.having("hist") for label in QUANTILES}


def columns(table: Table, *, coarse: bool = False) -> str:
    """Return the column definitions of ``table``."""
    return ", ".join(f"{name} {kind}" for name, kind in definitions(table, coarse=coarse).items())


def literal(text: object) -> str:
    """Return a text, such as a path, as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def stored(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Return rows as they are stored: times as timestamps, and the quantiles of each histogram beside it.

    A page that shows a thousand rows must not walk a thousand histograms.
    """
    derived = [
        pl.Series(f"{name}_{label}", column)
        for name in table.having("hist")
        for label, column in zip(QUANTILES, histogram.quantiles(frame[name], tuple(QUANTILES.values())).T, strict=True)
    ]
    frame = frame.with_columns(series.fill_nan(None) for series in derived)
    return frame.with_columns(pl.col(name).cast(pl.Datetime("ns")) for name in _TIMES if name in frame.columns)


def base_tables() -> dict[str, Table]:
    """Return every table of schema ``base`` by name: a state table once for each resolution."""
    tables = {}
    for name, table in STATES.items():
        if table.having("key"):
            tables |= {f"{name}_{resolution}": table for resolution in RESOLUTIONS_NS}
        else:
            tables[name] = table
    return tables | {name: FAMILIES[name] for name in STORED_FAMILIES}
