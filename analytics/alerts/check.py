"""Runs the tests that stand in a rule's own file: rows of a view go in, and the rule fires or it does not."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import StoreError
from . import Database, ddl
from .evaluate import Evaluator
from .rules import Rule, RuleTest

# Rows that one test may expand to.
ROWS_MAX = 10_000

_TYPES: Mapping[type, str] = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}


def run_tests(rule: Rule, scratch: Callable[[], Database]) -> list[str]:
    """Return what the rule's tests find wrong, one sentence each; ``scratch`` opens an empty database in memory."""
    return [f"{rule.path}: test {test.name!r}: {problem}" for test in rule.tests if (problem := _run(rule, test, scratch()))]


def _run(rule: Rule, test: RuleTest, database: Database) -> str:
    try:
        last_s = _fill(test, database)
    except StoreError as error:
        return f"its rows make no table: {error}"
    for statement in ddl():
        database.execute(statement)
    evaluator = Evaluator([rule], database)
    whats: list[str] = []
    # Window by window, as in life.
    until_s = test.until_s if test.until_s is not None else last_s + 1
    for closed_s in range(rule.window_s, until_s + rule.window_s, rule.window_s):
        whats += [change.what for change in evaluator.evaluate(closed_s * NS_PER_S)]
    wrong = database.query("SELECT last_error FROM state.alert_rules WHERE state = 'error'")
    if wrong:
        return str(wrong[0]["last_error"])
    for what, expected in (("firing", test.fires), ("resolved", test.resolves)):
        if expected is not None and (what in whats) != expected:
            return f"it is {'never' if expected else 'once'} {what}"
    return ""


def _fill(test: RuleTest, database: Database) -> int:
    rows = list(_expanded(test))
    if len(rows) > ROWS_MAX:
        raise StoreError(f"more than {ROWS_MAX} rows", "shorten the spans of ts_s")
    columns: dict[str, str] = {"ts": "TIMESTAMP_NS"}
    for row in rows:
        for name, value in row.items():
            if type(value) not in _TYPES and name != "ts":
                raise StoreError(f"the column {name!r} holds {type(value).__name__}", "use numbers, text, true or false")
            columns.setdefault(name, _TYPES.get(type(value), ""))
    definitions = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    database.execute(f'CREATE TABLE "{test.table}" ({definitions})')
    marks = ", ".join("?" * len(columns))
    for row in rows:
        database.execute(f'INSERT INTO "{test.table}" VALUES ({marks})', [row.get(name) for name in columns])
    return max((int(row["ts"].replace(tzinfo=UTC).timestamp()) for row in rows), default=0)


def _expanded(test: RuleTest) -> Iterator[dict[str, Any]]:
    for row in test.rows:
        span = row["ts_s"]
        first, end = span if isinstance(span, list) else (span, span + 1)
        for second in range(first, min(end, first + ROWS_MAX + 1)):
            yield {"ts": datetime.fromtimestamp(second, UTC).replace(tzinfo=None)} | {k: v for k, v in row.items() if k != "ts_s"}
