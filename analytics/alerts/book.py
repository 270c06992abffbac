"""Reads and writes ``state.alerts`` and ``state.alert_rules``: what the alerts were at the end of the last evaluation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..store.rows import ROWS, as_text
from . import ALERT_COLUMNS, Database
from .state import Alert

# Rows of one INSERT statement: bounds the number of its parameters.
ROWS_PER_INSERT = 200
ERROR_CHARS_MAX = 500

_COLUMNS = ", ".join(ALERT_COLUMNS)


@dataclass(frozen=True, slots=True)
class Entry:
    """An alert with the texts that go with it."""

    alert: Alert
    annotations: Mapping[str, str]
    path: str
    evidence_sql: str
    window_ts: int


@dataclass(slots=True)
class RuleState:
    """How far a rule has been evaluated, and what is wrong with it if anything is."""

    evaluated_to_ns: int = 0
    last_error: str = ""
    errors: int = 0


def load_open(database: Database) -> dict[str, dict[str, Alert]]:
    """Return the alerts that are not resolved: rule -> fingerprint -> alert."""
    rules: dict[str, dict[str, Alert]] = {}
    for row in database.query(f"SELECT {_COLUMNS} FROM state.alerts WHERE state <> 'resolved'"):
        alert = _alert(row)
        rules.setdefault(alert.rule, {})[alert.fingerprint] = alert
    return rules


def _alert(row: Mapping[str, Any]) -> Alert:
    phase = row["state"]
    if phase == "no_data":
        phase = "pending" if row["fired_at"] is None else "firing"
    return Alert(
        fingerprint=row["fingerprint"],
        rule=row["rule"],
        labels=json.loads(row["labels"]),
        phase=phase,
        value=row["value"],
        starts_at=row["starts_at"],
        fired_at=row["fired_at"],
        ends_at=row["ends_at"],
        last_seen=row["last_seen"],
        breach_ns=row["breach_ns"],
        clear_ns=row["clear_ns"],
        absent_ns=row["absent_ns"],
    )


def replace(database: Database, gone: Iterable[str], entries: Sequence[Entry]) -> None:
    """Put ``entries`` in place of the open rows of these fingerprints."""
    fingerprints = sorted(gone)
    if fingerprints:
        known = "SELECT unnest(string_split(?, ','))"
        database.execute(f"DELETE FROM state.alerts WHERE state <> 'resolved' AND fingerprint IN ({known})", [",".join(fingerprints)])
    if entries:
        columns = ", ".join(f"CAST(row[{place}] AS {kind})" for place, kind in enumerate(ALERT_COLUMNS.values(), 1))
        database.execute(f"INSERT INTO state.alerts ({_COLUMNS}) SELECT {columns} FROM {ROWS}", [as_text(map(_row, entries))])


def _row(entry: Entry) -> tuple[object, ...]:
    """Return the columns as ``as_text`` takes them."""
    alert = entry.alert
    return (
        alert.fingerprint,
        alert.rule,
        json.dumps(dict(alert.labels), sort_keys=True, ensure_ascii=False),
        json.dumps(dict(entry.annotations), sort_keys=True, ensure_ascii=False),
        alert.state,
        None if alert.value is None else repr(float(alert.value)),
        alert.starts_at,
        alert.fired_at,
        alert.ends_at,
        alert.last_seen,
        entry.window_ts,
        alert.breach_ns,
        alert.clear_ns,
        alert.absent_ns,
        entry.path,
        entry.evidence_sql,
    )


def prune(database: Database, kept_max: int) -> None:
    """Delete the oldest resolved alerts beyond ``kept_max``."""
    oldest = f"SELECT rowid FROM state.alerts WHERE state = 'resolved' ORDER BY ends_at DESC, fingerprint OFFSET {int(kept_max)}"
    database.execute(f"DELETE FROM state.alerts WHERE rowid IN ({oldest})")


def load_rules(database: Database) -> dict[str, RuleState]:
    """Return the state of every rule that has ever been evaluated."""
    rows: list[dict[str, Any]] = database.query("SELECT rule, evaluated_to_ns, last_error, errors FROM state.alert_rules")
    return {row["rule"]: RuleState(row["evaluated_to_ns"], row["last_error"], row["errors"]) for row in rows}


def save_rules(database: Database, states: Mapping[str, RuleState]) -> None:
    """Write the states of these rules."""
    for chunk in _chunks(sorted(states)):
        marks = ", ".join("?" * len(chunk))
        database.execute(f"DELETE FROM state.alert_rules WHERE rule IN ({marks})", chunk)
        rows: list[object] = []
        for name in chunk:
            state = states[name]
            rows += [name, state.evaluated_to_ns, "error" if state.last_error else "ok", state.last_error[:ERROR_CHARS_MAX], state.errors]
        values = ", ".join(["(?, ?, ?, ?, ?)"] * len(chunk))
        database.execute(f"INSERT INTO state.alert_rules (rule, evaluated_to_ns, state, last_error, errors) VALUES {values}", rows)


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + ROWS_PER_INSERT] for start in range(0, len(items), ROWS_PER_INSERT))
