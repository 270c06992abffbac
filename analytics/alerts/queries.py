"""The SQL around a rule's query: consecutive windows of one kind are returned as one range, however long.

Islands: with windows of width w and n the rank of a window in its label set, ``ts - w * n`` is equal for consecutive windows
and differs across every gap, so grouping by it gives the ranges. Python then sees one row per change.
"""

import re
from dataclasses import dataclass

from ...pipeline.errors import StoreError
from ..store.ddl import literal
from . import Database
from .rules import Rule
from .state import WindowRange

# One evaluation of a rule reads at most this many ranges; later ones are dropped and counted.
RANGES_MAX = 100_000

_FRACTIONAL = ("FLOAT", "DOUBLE", "DECIMAL")
Span = tuple[int, int]


def identifier(name: str) -> str:
    """Return a name as SQL quotes it."""
    return '"' + name.replace('"', '""') + '"'


def bound(rule: Rule, span: Span) -> str:
    """Return the rule's query with its span filled in: ``$from_ns`` and ``$to_ns`` as numbers, ``$from`` and ``$to`` as times."""

    def fill(match: re.Match[str]) -> str:
        ns = span[match[1] == "to"]
        return str(ns) if match[2] else f"make_timestamp_ns({ns})"

    return re.sub(r"\$(from|to)(_ns)?\b", fill, rule.query)


@dataclass(frozen=True, slots=True)
class RuleColumns:
    """The columns of a rule's query: its labels, and the expression for its time in nanoseconds."""

    labels: tuple[str, ...]
    ts: str | None


def columns_of(rule: Rule, database: Database) -> RuleColumns:
    """Return the columns of the rule's query. Raises ``StoreError`` when an alert rule cannot use them."""
    types = {
        str(row["column_name"]): str(row["column_type"]) for row in database.query(f"DESCRIBE SELECT * FROM ({bound(rule, (0, 1))}\n)")
    }
    if "value" not in types:
        raise StoreError(
            f"the query of the alert rule {rule.name!r} returns no column 'value'", "name the column that the condition tests value"
        )
    labels = tuple(name for name in types if name not in ("ts", "value"))
    for name in labels:
        if name in rule.labels or name in ("alertname", "severity"):
            raise StoreError(f"the label {name!r} of the alert rule {rule.name!r} is set twice", "rename the column of its query")
        if types[name].startswith(_FRACTIONAL):
            problem = f"the label column {name!r} of the alert rule {rule.name!r} is a fraction, which would make a new alert each window"
            raise StoreError(problem, "leave it out or cast it to VARCHAR")
    ts = types.get("ts")
    if ts is None:
        return RuleColumns(labels, None)
    return RuleColumns(labels, "epoch_ns(ts)" if ts.startswith("TIMESTAMP") else "CAST(ts AS BIGINT)")


def _islands(rule: Rule, columns: RuleColumns, span: Span, *, keys: tuple[str, ...], where: str, value: str) -> str:
    window = rule.window_ns
    ts = f"({columns.ts})" if columns.ts else f"CAST({span[1] - window} AS BIGINT)"
    names = "".join(f"{identifier(key)}, " for key in keys)
    partition = f"PARTITION BY {names[:-2]} " if keys else ""
    return f"""WITH weft_windows AS (
        SELECT {names}{ts} - {ts} % {window} AS weft_ts, {value} AS weft_value FROM ({bound(rule, span)}\n) AS weft_query
        WHERE {ts} >= {span[0]} AND {ts} < {span[1]} AND {where} GROUP BY ALL),
    weft_islands AS (
        SELECT *, weft_ts - {window} * row_number() OVER ({partition}ORDER BY weft_ts) AS weft_island FROM weft_windows)
    SELECT {names}min(weft_ts) AS weft_from, max(weft_ts) + {window} AS weft_to, arg_max(weft_value, weft_ts) AS weft_value
    FROM weft_islands GROUP BY {names}weft_island ORDER BY weft_from, {names}weft_to LIMIT {RANGES_MAX + 1}"""


def breach_sql(rule: Rule, columns: RuleColumns, span: Span) -> str:
    """Return the query for the ranges of breaching windows; a window's worst row per label set counts."""
    number = "CAST(value AS DOUBLE)"
    worst = "min" if rule.condition.op.startswith("<") else "max"
    # DuckDB orders NaN above every number; a rule ignores it.
    where = f"NOT isnan({number}) AND {number} {rule.condition.op} CAST({rule.condition.threshold!r} AS DOUBLE)"
    return _islands(rule, columns, span, keys=columns.labels, where=where, value=f"{worst}({number})")


def presence_sql(rule: Rule, columns: RuleColumns, span: Span) -> str:
    """Return the query for the ranges of windows that have rows: per label set for ``alert``, else per device."""
    return _islands(rule, columns, span, keys=presence_keys(rule, columns), where="true", value="max(0.0)")


def presence_keys(rule: Rule, columns: RuleColumns) -> tuple[str, ...]:
    if rule.no_data == "alert":
        return columns.labels
    return ("device",) if "device" in columns.labels else ()


def labels_of(row: dict[str, object], names: tuple[str, ...]) -> dict[str, str]:
    """Return the labels of a row; NULL and empty ones are omitted, as in Prometheus."""
    return {name: str(row[name]) for name in names if row[name] not in (None, "")}


def range_of(row: dict[str, object], kind: str) -> WindowRange:
    value = row["weft_value"]
    start, end = row["weft_from"], row["weft_to"]
    assert isinstance(start, int) and isinstance(end, int)
    return WindowRange("breach" if kind == "breach" else "clear", start, end, float(value) if isinstance(value, int | float) else None)


def evidence_sql(rule: Rule, names: tuple[str, ...], labels: dict[str, str], span: Span) -> str:
    """Return the query for the windows of one alert, to paste into ``weft sql``."""
    where = [f"{identifier(name)} = {literal(labels[name])}" for name in names if name in labels]
    return f"SELECT * FROM ({bound(rule, span)}\n) AS evidence" + (" WHERE " + " AND ".join(where) if where else "")
