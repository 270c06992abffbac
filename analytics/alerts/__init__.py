"""Alerts: rules query the views, closed windows move alerts between states, a durable outbox sends the changes.

Order of calls in the service that owns the store's connection:

1. commit the windows' rows (their own transaction);
2. ``Evaluator.evaluate(closed_to_ns)``: queries first, outside any transaction, because a failed query aborts a whole
   transaction in DuckDB; then one transaction for the alerts, the position and the outbox;
3. one transaction with ``Outbox.record(NotificationSender.results())`` and ``Outbox.due()``;
4. after its commit ``NotificationSender.submit`` with the claimed deliveries.

A kill between any two steps loses nothing: the position of the evaluation is committed with its effect, and a delivery
without an answer is repeated under the same ``webhook-id``.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

# Columns of ``state.alerts`` with their types.
ALERT_COLUMNS = {
    **dict.fromkeys(("fingerprint", "rule", "labels", "annotations", "state"), "VARCHAR"),
    "value": "DOUBLE",
    **dict.fromkeys(("starts_at", "fired_at", "ends_at", "last_seen", "window_ts", "breach_ns", "clear_ns", "absent_ns"), "BIGINT"),
    **dict.fromkeys(("path", "evidence_sql"), "VARCHAR"),
}


class Database(Protocol):
    """The part of the store that alerts need."""

    def query(self, sql: str, params: Sequence[object] = ()) -> list[dict[str, object]]:
        """Return the rows as dictionaries. Raises ``StoreError`` for SQL that fails."""
        ...

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        """Run one statement. Raises ``StoreError`` for SQL that fails."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Commit at the end of the block, roll back on an error. Not nested."""
        ...


def ddl() -> list[str]:
    """Return the statements that create the tables of this package in schema ``state``. Idempotent."""
    return [
        "CREATE SCHEMA IF NOT EXISTS state",
        f"CREATE TABLE IF NOT EXISTS state.alerts ({', '.join(f'{name} {kind}' for name, kind in ALERT_COLUMNS.items())})",
        """CREATE TABLE IF NOT EXISTS state.alert_rules (
            rule VARCHAR, evaluated_to_ns BIGINT, state VARCHAR, last_error VARCHAR, errors BIGINT)""",
        """CREATE TABLE IF NOT EXISTS state.outbox (
            id BIGINT, endpoint VARCHAR, group_key VARCHAR, firing VARCHAR, resolved VARCHAR, sure VARCHAR, maybe VARCHAR,
            payload VARCHAR, webhook_id VARCHAR, state VARCHAR, attempts INTEGER, risky BOOLEAN,
            next_attempt_ns BIGINT, created_ns BIGINT, done_ns BIGINT, last_error VARCHAR)""",
    ]


def views() -> dict[str, str]:
    """Return name -> SELECT of the views in the main schema; times are timestamps, as in every view."""
    times = ("starts_at", "fired_at", "ends_at", "last_seen", "window_ts")
    alert_times = ", ".join(f"make_timestamp_ns({name}) AS {name}" for name in times)
    outbox_times = ", ".join(f"make_timestamp_ns({name}_ns) AS {name}" for name in ("created", "next_attempt", "done"))
    return {
        "alerts": f"""SELECT state, rule, labels ->> 'severity' AS severity, labels ->> 'device' AS device, labels ->> 'port' AS port,
            annotations ->> 'summary' AS summary, value, {alert_times}, labels, annotations, path, evidence_sql, fingerprint
            FROM state.alerts WHERE state <> 'ok'
            UNION ALL BY NAME SELECT 'error' AS state, rule, last_error AS summary, make_timestamp_ns(evaluated_to_ns) AS starts_at
            FROM state.alert_rules WHERE state = 'error'""",
        "alert_rules": "SELECT rule, state, make_timestamp_ns(evaluated_to_ns) AS evaluated_to, errors, last_error FROM state.alert_rules",
        "notifications": f"""SELECT id, endpoint, group_key, state, attempts, last_error, {outbox_times}, webhook_id, payload
            FROM state.outbox""",
    }
