"""The alert table: reads and writes ``state.alerts`` and ``state.alert_rules`` as they were after the last evaluation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..store.rows import ROWS, as_text
from . import ALERT_COLUMNS, Database
from .state import Alert

ERROR_CHARS_MAX = 500

_COLUMNS = ", ".join(ALERT_COLUMNS)

# Columns that hold the field of an alert with the same name.
_SHARED = tuple(field.name for field in fields(Alert) if field.name in ALERT_COLUMNS and field.name != "labels")


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert with its rendered texts."""

    alert: Alert
    annotations: Mapping[str, str]
    path: str
    evidence_sql: str
    window_ts: int


@dataclass(slots=True)
class RuleState:
    """How far a rule has been evaluated, and its last error."""

    evaluated_to_ns: int = 0
    last_error: str = ""
    errors: int = 0


class AlertTable:
    """The alerts and rule states in ``database``. Call what writes inside a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load_open(self) -> dict[str, dict[str, Alert]]:
        """Return the alerts that are not resolved: rule -> fingerprint -> alert."""
        rules: dict[str, dict[str, Alert]] = {}
        for row in self._database.query(f"SELECT {_COLUMNS} FROM state.alerts WHERE state <> 'resolved'"):
            alert = _alert(row)
            rules.setdefault(alert.rule, {})[alert.fingerprint] = alert
        return rules

    def replace(self, fingerprints: Iterable[str], rows: Sequence[AlertRow]) -> None:
        """Delete the open rows of ``fingerprints`` and insert ``rows``."""
        gone = sorted(fingerprints)
        if gone:
            known = "SELECT unnest(string_split(?, ','))"
            self._database.execute(f"DELETE FROM state.alerts WHERE state <> 'resolved' AND fingerprint IN ({known})", [",".join(gone)])
        if rows:
            columns = ", ".join(f"CAST(row[{place}] AS {kind})" for place, kind in enumerate(ALERT_COLUMNS.values(), 1))
            self._database.execute(f"INSERT INTO state.alerts ({_COLUMNS}) SELECT {columns} FROM {ROWS}", [as_text(map(_row, rows))])

    def retire(self, rule: str, ended_ns: int) -> None:
        """Resolve the firing alerts of a rule that no longer exists, and delete its other rows."""
        self._database.execute(
            "UPDATE state.alerts SET state = 'resolved', ends_at = greatest(?, fired_at) "
            "WHERE rule = ? AND state <> 'resolved' AND fired_at IS NOT NULL",
            (ended_ns, rule),
        )
        self._database.execute("DELETE FROM state.alerts WHERE rule = ? AND state <> 'resolved'", (rule,))
        self._database.execute("DELETE FROM state.alert_rules WHERE rule = ?", (rule,))

    def prune(self, resolved_max: int) -> None:
        """Delete the oldest resolved alerts beyond ``resolved_max``."""
        oldest = f"SELECT rowid FROM state.alerts WHERE state = 'resolved' ORDER BY ends_at DESC, fingerprint OFFSET {int(resolved_max)}"
        self._database.execute(f"DELETE FROM state.alerts WHERE rowid IN ({oldest})")

    def load_rules(self) -> dict[str, RuleState]:
        """Return the state of every rule that has been evaluated."""
        rows: list[dict[str, Any]] = self._database.query("SELECT rule, evaluated_to_ns, last_error, errors FROM state.alert_rules")
        return {row["rule"]: RuleState(row["evaluated_to_ns"], row["last_error"], row["errors"]) for row in rows}

    def save_rules(self, states: Mapping[str, RuleState]) -> None:
        """Write the states of these rules."""
        if not states:
            return
        rows = as_text(
            (name, state.evaluated_to_ns, "error" if state.last_error else "ok", state.last_error[:ERROR_CHARS_MAX], state.errors)
            for name, state in states.items()
        )
        self._database.execute(f"DELETE FROM state.alert_rules WHERE rule IN (SELECT row[1] FROM {ROWS})", [rows])
        self._database.execute(
            "INSERT INTO state.alert_rules (rule, evaluated_to_ns, state, last_error, errors) "
            f"SELECT row[1], CAST(row[2] AS BIGINT), row[3], row[4], CAST(row[5] AS BIGINT) FROM {ROWS}",
            [rows],
        )


def _alert(row: Mapping[str, Any]) -> Alert:
    phase = row["state"]
    if phase == "no_data":
        phase = "pending" if row["fired_at"] is None else "firing"
    return Alert(**{name: row[name] for name in _SHARED}, labels=json.loads(row["labels"]), phase=phase)


def _row(row: AlertRow) -> tuple[object, ...]:
    """Return the columns of ``ALERT_COLUMNS`` as ``as_text`` takes them."""
    alert = row.alert
    columns = {name: getattr(alert, name) for name in _SHARED} | {
        "labels": json.dumps(dict(alert.labels), sort_keys=True, ensure_ascii=False),
        "annotations": json.dumps(dict(row.annotations), sort_keys=True, ensure_ascii=False),
        "state": alert.state,
        "value": None if alert.value is None else repr(float(alert.value)),
        "window_ts": row.window_ts,
        "path": row.path,
        "evidence_sql": row.evidence_sql,
    }
    return tuple(columns[name] for name in ALERT_COLUMNS)
