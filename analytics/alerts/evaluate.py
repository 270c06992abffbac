"""Evaluates the rules over newly closed windows and writes what became of the alerts.

Reading and writing are apart on purpose: a query that fails at run time makes DuckDB abort the transaction it is in,
and one bad rule must not take the others, or the sink's rows, with it. Alerts, position and outbox are then one transaction,
so that a kill repeats no change and loses none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import StoreError
from . import Database, book, queries
from .annotations import render, render_path
from .config import AlertsConfig
from .fingerprint import fingerprint
from .queries import Columns, Span
from .rules import Rule
from .state import Alert, Run, Track, timeline

# A rule that could not be evaluated is evaluated later from where it stood, but over no more than this.
CATCH_UP_NS = 3600 * NS_PER_S
# Label sets that a rule with ``no_data = "alert"`` remembers, beyond its pending and firing ones.
TRACKED_MAX = 10_000


class Change(NamedTuple):
    """An alert that began to fire, or was resolved, in this evaluation."""

    what: str
    rule: str
    fingerprint: str
    labels: Mapping[str, str]
    value: float | None
    at_ns: int


class Reconciler(Protocol):
    """The outbox as the evaluator sees it."""

    def reconcile(self) -> None: ...


@dataclass(slots=True)
class _Reading:
    """What one rule's queries said of one span."""

    rule: Rule
    span: Span
    columns: Columns = field(default_factory=lambda: Columns((), None))
    breaches: dict[str, list[Run]] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    # Where there are data, by the presence key; None = not asked.
    present: dict[tuple[str | None, ...], list[Span]] | None = None
    truncated: int = 0
    error: str = ""


class Evaluator:
    """Evaluates ``rules`` on ``database``; ``outbox`` is brought up to date in the same transaction."""

    def __init__(
        self, rules: Sequence[Rule], database: Database, outbox: Reconciler | None = None, config: AlertsConfig | None = None
    ) -> None:
        self._rules = tuple(rules)
        self._database = database
        self._outbox = outbox
        self._config = config or AlertsConfig()
        self._columns: dict[str, Columns] = {}
        self._counts = dict.fromkeys(("evaluations", "fired", "resolved", "dropped_alerts", "dropped_runs", "rule_errors"), 0)
        self._gauges = {"rules": len(self._rules), "firing": 0, "pending": 0, "rules_in_error": 0}

    def evaluate(self, closed_to_ns: int) -> list[Change]:
        """Judge every window that ends at or before ``closed_to_ns`` and was not judged yet.

        Must be called outside a transaction, after the windows' rows are committed; opens its own. Going back in
        time changes nothing. Raises ``StoreError`` only when the alerts' own tables fail, and then nothing has changed.
        """
        states = book.load_rules(self._database)
        open_alerts = book.load_open(self._database)
        readings = [
            reading
            for rule in self._rules
            if (reading := self._read(rule, closed_to_ns, states, open_alerts.get(rule.name, {}))) is not None
        ]
        orphans = open_alerts.keys() - {rule.name for rule in self._rules}
        if not readings and not orphans:
            self._reconcile_alone()
            return []
        with self._database.transaction():
            changes = [
                change for reading in readings for change in self._apply(reading, states, open_alerts.setdefault(reading.rule.name, {}))
            ]
            for name in sorted(orphans):
                changes += self._retire(name, open_alerts[name], closed_to_ns)
            book.save_rules(self._database, {reading.rule.name: states[reading.rule.name] for reading in readings})
            if any(change.what == "resolved" for change in changes):
                book.prune(self._database, self._config.resolved_kept_max)
            if self._outbox is not None:
                self._outbox.reconcile()
        self._count(changes, states, open_alerts)
        return changes

    def counters(self) -> Mapping[str, float]:
        """Return counters and gauges by Prometheus style name."""
        counters = {f"weft_analytics_alert_{name}_total": float(value) for name, value in self._counts.items()}
        return counters | {f"weft_analytics_alerts_{name}": float(value) for name, value in self._gauges.items()}

    def _reconcile_alone(self) -> None:
        if self._outbox is not None:
            with self._database.transaction():
                self._outbox.reconcile()

    def _read(self, rule: Rule, closed_to_ns: int, states: dict[str, book.RuleState], known: Mapping[str, Alert]) -> _Reading | None:
        window = rule.window_ns
        end = closed_to_ns - closed_to_ns % window
        state = states.get(rule.name)
        if state is None:
            # A rule that is new to a store begins now: what was before it is history, not news.
            start = max((other.evaluated_to_ns for other in states.values()), default=0)
        else:
            start = max(state.evaluated_to_ns, end - CATCH_UP_NS) if state.last_error else state.evaluated_to_ns
        start -= start % window
        if end <= start:
            return None
        reading = _Reading(rule, (start, end))
        try:
            self._query(reading, known)
        except StoreError as error:
            reading.error = str(error)
            self._columns.pop(rule.name, None)
        return reading

    def _query(self, reading: _Reading, known: Mapping[str, Alert]) -> None:
        rule, span = reading.rule, reading.span
        if rule.name not in self._columns:
            self._columns[rule.name] = queries.columns_of(rule, self._database)
        reading.columns = columns = self._columns[rule.name]
        rows = self._limited(reading, queries.breach_sql(rule, columns, span))
        for row in rows:
            self._runs_of(reading, row).append(queries.run_of(row, "breach"))
        if rule.no_data == "ok" or not (rows or known or rule.no_data == "alert"):
            return
        reading.present = {}
        keys = queries.presence_keys(rule, columns)
        for row in self._limited(reading, queries.presence_sql(rule, columns, span)):
            run = queries.run_of(row, "present")
            if rule.no_data == "alert":
                self._runs_of(reading, row)
            labels = queries.labels_of(row, keys)
            reading.present.setdefault(tuple(labels.get(key) for key in keys), []).append((run.start_ns, run.end_ns))

    def _limited(self, reading: _Reading, sql: str) -> list[dict[str, object]]:
        rows = self._database.query(sql)
        if len(rows) > queries.RUNS_MAX:
            reading.truncated += 1
        return rows[: queries.RUNS_MAX]

    def _runs_of(self, reading: _Reading, row: dict[str, object]) -> list[Run]:
        rule = reading.rule
        labels = queries.labels_of(row, reading.columns.labels) | dict(rule.labels) | {"alertname": rule.name, "severity": rule.severity}
        key = fingerprint(labels)
        reading.labels.setdefault(key, labels)
        return reading.breaches.setdefault(key, [])

    def _apply(self, reading: _Reading, states: dict[str, book.RuleState], known: dict[str, Alert]) -> list[Change]:
        rule = reading.rule
        state = states.setdefault(rule.name, book.RuleState(reading.span[0]))
        state.last_error = reading.error
        if reading.error:
            state.errors += 1
            self._counts["rule_errors"] += 1
            return []
        state.evaluated_to_ns = reading.span[1]
        self._counts["dropped_runs"] += reading.truncated
        room = self._config.alerts_per_rule_max - sum(alert.phase != "ok" for alert in known.values())
        changes: list[Change] = []
        entries: list[book.Entry] = []
        touched: list[str] = []
        for key in sorted(known.keys() | reading.breaches.keys()):
            before = known.get(key)
            idle = before is None or before.phase == "ok"
            if idle and (room <= 0 if reading.breaches.get(key) else before is None and len(known) >= TRACKED_MAX):
                self._counts["dropped_alerts"] += 1
                continue
            mark = _mark(before)
            track = self._walk(reading, key, before)
            after = track.alert
            known.pop(key, None)
            if after is not None:
                known[key] = after
                room -= idle and after.phase != "ok"
            if mark == _mark(after) and not track.resolved:
                continue
            touched.append(key)
            entries += [self._entry(reading, alert) for alert in (*track.resolved, *([after] if after else []))]
            changes += [_change("firing", alert) for alert in track.fired] + [_change("resolved", alert) for alert in track.resolved]
        book.replace(self._database, touched, entries)
        return sorted(changes, key=lambda change: (change.at_ns, change.fingerprint, change.what))

    def _walk(self, reading: _Reading, key: str, before: Alert | None) -> Track:
        labels = before.labels if before else reading.labels[key]
        track = Track(reading.rule, key, labels, before)
        track.feed(timeline(reading.span, reading.breaches.get(key, []), self._present(reading, labels)))
        return track

    def _present(self, reading: _Reading, labels: Mapping[str, str]) -> list[Span] | None:
        if reading.present is None:
            return None
        keys = queries.presence_keys(reading.rule, reading.columns)
        return reading.present.get(tuple(labels.get(key) for key in keys), [])

    def _entry(self, reading: _Reading, alert: Alert) -> book.Entry:
        rule, labels = reading.rule, dict(alert.labels)
        if alert.phase == "ok":
            return book.Entry(alert, {}, "", "", reading.span[1] - rule.window_ns)
        annotations = {name: render(text, labels, alert.value) for name, text in rule.annotations.items()}
        annotations |= {"value": render("{value}", labels, alert.value), "condition": f"value {rule.condition}"}
        span = (alert.starts_at, alert.last_seen + rule.window_ns)
        evidence = queries.evidence_sql(rule, reading.columns.labels, labels, span)
        return book.Entry(alert, annotations, render_path(rule.dashboard, labels), evidence, alert.last_seen)

    def _retire(self, name: str, alerts: dict[str, Alert], closed_to_ns: int) -> list[Change]:
        """End the alerts of a rule that is no longer there; nobody would ever resolve them."""
        fired = [alert for alert in alerts.values() if alert.phase == "firing"]
        for alert in fired:
            alert.phase, alert.ends_at = "resolved", max(closed_to_ns, alert.fired_at or 0)
        self._database.execute("UPDATE state.alerts SET state = 'resolved', ends_at = greatest(?, fired_at) "
                               "WHERE rule = ? AND state <> 'resolved' AND fired_at IS NOT NULL", (closed_to_ns, name))  # fmt: skip
        self._database.execute("DELETE FROM state.alerts WHERE rule = ? AND state <> 'resolved'", (name,))
        self._database.execute("DELETE FROM state.alert_rules WHERE rule = ?", (name,))
        alerts.clear()
        return [_change("resolved", alert) for alert in fired]

    def _count(self, changes: Sequence[Change], states: Mapping[str, book.RuleState], alerts: Mapping[str, Mapping[str, Alert]]) -> None:
        self._counts["evaluations"] += 1
        for change in changes:
            self._counts["fired" if change.what == "firing" else "resolved"] += 1
        phases = [alert.phase for rule in alerts.values() for alert in rule.values()]
        self._gauges["firing"], self._gauges["pending"] = phases.count("firing"), phases.count("pending")
        self._gauges["rules_in_error"] = sum(bool(states[rule.name].last_error) for rule in self._rules if rule.name in states)


def _mark(alert: Alert | None) -> tuple[object, ...]:
    """Return everything of an alert that moves, to write only what has changed."""
    if alert is None:
        return ()
    return (alert.phase, alert.value, alert.starts_at, alert.last_seen, alert.breach_ns, alert.clear_ns, alert.absent_ns)


def _change(what: str, alert: Alert) -> Change:
    at = alert.fired_at if what == "firing" else alert.ends_at
    assert at is not None
    return Change(what, alert.rule, alert.fingerprint, alert.labels, alert.value, at)
