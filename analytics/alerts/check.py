"""Runs the tests in a rule file: inserts the rows of each test into an empty database and checks whether the rule fires."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import StoreError
from ..store.writer import MemoryStore
from . import Database, ddl
from .evaluate import Evaluator
from .rules import Rule, RuleTest

# Rows that one test may expand to.
ROWS_MAX = 10_000

_TYPES: Mapping[type, str] = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}


def run_tests(rule: Rule) -> list[str]:
    """Return the failures of the rule's tests for its profile, each with file and line."""
    problems = []
    for test in rule.tests:
        if test.profile != rule.profile:
            continue
        database = MemoryStore()
        try:
            problem = _run(rule, test, database)
        finally:
            database.stop()
        if problem:
            problems.append(f"{rule.path}:{test.line}: test {test.name!r}: {problem}")
    return problems


def _run(rule: Rule, test: RuleTest, database: Database) -> str:
    try:
        last_s = max(_fill(view, rows, database) for view, rows in test.tables.items())
    except StoreError as error:
        return f"its rows make no table: {error}"
    for statement in ddl():
        database.execute(statement)
    evaluator = Evaluator([rule], database)
    changes: list[str] = []
    # Window by window, as in operation.
    until_s = test.until_s if test.until_s is not None else last_s + 1
    for closed_s in range(rule.window_s, until_s + rule.window_s, rule.window_s):
        changes += [change.what for change in evaluator.evaluate(closed_s * NS_PER_S)]
    errors = database.query("SELECT last_error FROM state.alert_rules WHERE state = 'error'")
    if errors:
        return str(errors[0]["last_error"])
    if ("firing" in changes) != test.fires:
        return "the alert did not fire" if test.fires else "the alert fired"
    if test.resolves is not None and ("resolved" in changes) != test.resolves:
        return "the alert was not resolved" if test.resolves else "the alert was resolved"
    return ""


def _fill(view: str, given: Sequence[Mapping[str, Any]], database: Database) -> int:
    """Create ``view`` as a table with these rows; return its last second."""
    rows = list(_expanded(given))
    if len(rows) > ROWS_MAX:
        raise StoreError(f"more than {ROWS_MAX} rows", "shorten the spans of ts_s")
    columns: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if type(value) not in _TYPES and name != "ts":
                raise StoreError(f"the column {name!r} holds {type(value).__name__}", "use numbers, text, true or false")
            columns.setdefault(name, "TIMESTAMP_NS" if name == "ts" else _TYPES[type(value)])
    definitions = ", ".join(f'"{name}" {kind}' for name, kind in (columns or {"ts": "TIMESTAMP_NS"}).items())
    database.execute(f'CREATE TABLE "{view}" ({definitions})')
    marks = ", ".join("?" * len(columns))
    for row in rows:
        database.execute(f'INSERT INTO "{view}" VALUES ({marks})', [row.get(name) for name in columns])
    return max((int(row["ts"].replace(tzinfo=UTC).timestamp()) for row in rows if "ts" in row), default=0)


def _expanded(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        columns = {name: value for name, value in row.items() if name != "ts_s"}
        if "ts_s" not in row:
            yield columns
            continue
        span = row["ts_s"]
        first, end = span if isinstance(span, list) else (span, span + 1)
        for second in range(first, min(end, first + ROWS_MAX + 1)):
            yield {"ts": datetime.fromtimestamp(second, UTC).replace(tzinfo=None)} | columns
