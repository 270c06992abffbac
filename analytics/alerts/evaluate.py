"""Evaluates the rules over newly closed windows and writes the changed alerts.

Queries run outside the transaction: a query that fails makes DuckDB abort its transaction, and one wrong rule must not affect
the others or the sink's rows. Alerts, position and outbox are then written in one transaction, so that a kill repeats no
change and loses none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import StoreError
from . import Database, queries
from .alert_table import AlertRow, AlertTable, RuleState
from .annotations import render, render_path
from .config import AlertsConfig
from .fingerprint import fingerprint
from .queries import RuleColumns, Span
from .rules import Rule
from .state import Alert, Track, WindowRange, timeline
from .windows import WindowCopies

# A rule in error continues at its last position once it works again, but at most this far back.
CATCH_UP_NS = 3600 * NS_PER_S
# Label sets in phase ``ok`` that a rule with ``no_data = "alert"`` keeps.
TRACKED_MAX = 10_000


class AlertChange(NamedTuple):
    """An alert that fired or was resolved in this evaluation."""

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
class _RuleResult:
    """The results of one rule's queries over one span."""

    rule: Rule
    # The rule whose query is run: ``rule`` itself, or the same over copies of its views.
    source: Rule
    span: Span
    columns: RuleColumns = field(default_factory=lambda: RuleColumns((), None))
    breaches: dict[str, list[WindowRange]] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    # Times with data, by presence key; None = not queried.
    present: dict[tuple[str | None, ...], list[Span]] | None = None
    truncated: int = 0
    error: str = ""


class Evaluator:
    """Evaluates ``rules`` on ``database`` and updates ``outbox`` in the same transaction."""

    def __init__(
        self, rules: Sequence[Rule], database: Database, outbox: Reconciler | None = None, config: AlertsConfig | None = None
    ) -> None:
        self._rules = tuple(rules)
        self._database = database
        self._table = AlertTable(database)
        self._outbox = outbox
        self._config = config or AlertsConfig()
        self._columns: dict[str, RuleColumns] = {}
        self._copies = WindowCopies(rules, database)
        self._counts = dict.fromkeys(("evaluations", "fired", "resolved", "dropped_alerts", "dropped_runs", "rule_errors"), 0)
        self._gauges = {"rules": len(self._rules), "firing": 0, "pending": 0, "rules_in_error": 0}

    def evaluate(self, closed_to_ns: int) -> list[AlertChange]:
        """Evaluate every window that ends at or before ``closed_to_ns`` and was not evaluated yet.

        Must be called outside a transaction, after the windows' rows are committed; opens its own. Going back in
        time changes nothing. Raises ``StoreError`` only when the alerts' own tables fail, and then nothing has changed.
        """
        states = self._table.load_rules()
        open_alerts = self._table.load_open()
        spans = {rule.name: span for rule in self._rules if (span := _span(rule, closed_to_ns, states)) is not None}
        sources = self._copies.load(spans)
        results = [
            self._read(rule, sources.get(rule.name, rule), spans[rule.name], open_alerts.get(rule.name, {}))
            for rule in self._rules
            if rule.name in spans
        ]
        orphans = open_alerts.keys() - {rule.name for rule in self._rules}
        if not results and not orphans:
            self._reconcile_alone()
            return []
        with self._database.transaction():
            changes = [change for result in results for change in self._apply(result, states, open_alerts.setdefault(result.rule.name, {}))]
            for name in sorted(orphans):
                changes += self._retire(name, open_alerts[name], closed_to_ns)
            self._table.save_rules({result.rule.name: states[result.rule.name] for result in results})
            if any(change.what == "resolved" for change in changes):
                self._table.prune(self._config.resolved_kept_max)
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

    def _read(self, rule: Rule, source: Rule, span: Span, known: Mapping[str, Alert]) -> _RuleResult:
        result = _RuleResult(rule, source, span)
        try:
            self._query(result, known)
        except StoreError as error:
            result.error = str(error)
            self._columns.pop(rule.name, None)
        return result

    def _query(self, result: _RuleResult, known: Mapping[str, Alert]) -> None:
        rule, span = result.rule, result.span
        if rule.name not in self._columns:
            self._columns[rule.name] = queries.columns_of(rule, self._database)
        result.columns = columns = self._columns[rule.name]
        rows = self._limited(result, queries.breach_sql(result.source, columns, span))
        for row in rows:
            self._ranges_of(result, row).append(queries.range_of(row, "breach"))
        if rule.no_data == "ok" or not (rows or known or rule.no_data == "alert"):
            return
        result.present = {}
        keys = queries.presence_keys(rule, columns)
        for row in self._limited(result, queries.presence_sql(result.source, columns, span)):
            window_range = queries.range_of(row, "present")
            if rule.no_data == "alert":
                self._ranges_of(result, row)
            labels = queries.labels_of(row, keys)
            result.present.setdefault(tuple(labels.get(key) for key in keys), []).append((window_range.start_ns, window_range.end_ns))

    def _limited(self, result: _RuleResult, sql: str) -> list[dict[str, object]]:
        rows = self._database.query(sql)
        if len(rows) > queries.RANGES_MAX:
            result.truncated += 1
        return rows[: queries.RANGES_MAX]

    def _ranges_of(self, result: _RuleResult, row: dict[str, object]) -> list[WindowRange]:
        rule = result.rule
        labels = queries.labels_of(row, result.columns.labels) | dict(rule.labels) | {"alertname": rule.name, "severity": rule.severity}
        key = fingerprint(labels)
        result.labels.setdefault(key, labels)
        return result.breaches.setdefault(key, [])

    def _apply(self, result: _RuleResult, states: dict[str, RuleState], known: dict[str, Alert]) -> list[AlertChange]:
        rule = result.rule
        state = states.setdefault(rule.name, RuleState(result.span[0]))
        state.last_error = result.error
        if result.error:
            state.errors += 1
            self._counts["rule_errors"] += 1
            return []
        state.evaluated_to_ns = result.span[1]
        self._counts["dropped_runs"] += result.truncated
        room = self._config.alerts_per_rule_max - sum(alert.phase != "ok" for alert in known.values())
        changes: list[AlertChange] = []
        entries: list[AlertRow] = []
        touched: list[str] = []
        for key in sorted(known.keys() | result.breaches.keys()):
            before = known.get(key)
            idle = before is None or before.phase == "ok"
            if idle and (room <= 0 if result.breaches.get(key) else before is None and len(known) >= TRACKED_MAX):
                self._counts["dropped_alerts"] += 1
                continue
            previous = _changing(before)
            track = self._walk(result, key, before)
            after = track.alert
            known.pop(key, None)
            if after is not None:
                known[key] = after
                room -= idle and after.phase != "ok"
            if previous == _changing(after) and not track.resolved:
                continue
            touched.append(key)
            entries += [self._entry(result, alert) for alert in (*track.resolved, *([after] if after else []))]
            changes += [_change("firing", alert) for alert in track.fired] + [_change("resolved", alert) for alert in track.resolved]
        self._table.replace(touched, entries)
        return sorted(changes, key=lambda change: (change.at_ns, change.fingerprint, change.what))

    def _walk(self, result: _RuleResult, key: str, before: Alert | None) -> Track:
        labels = before.labels if before else result.labels[key]
        track = Track(result.rule, key, labels, before)
        track.advance(timeline(result.span, result.breaches.get(key, []), self._present(result, labels)))
        return track

    def _present(self, result: _RuleResult, labels: Mapping[str, str]) -> list[Span] | None:
        if result.present is None:
            return None
        keys = queries.presence_keys(result.rule, result.columns)
        return result.present.get(tuple(labels.get(key) for key in keys), [])

    def _entry(self, result: _RuleResult, alert: Alert) -> AlertRow:
        rule, labels = result.rule, dict(alert.labels)
        if alert.phase == "ok":
            return AlertRow(alert, {}, "", "", result.span[1] - rule.window_ns)
        annotations = {name: render(text, labels, alert.value) for name, text in rule.annotations.items()}
        annotations |= {"value": render("{value}", labels, alert.value), "condition": f"value {rule.condition}"}
        span = (alert.starts_at, alert.last_seen + rule.window_ns)
        evidence = queries.evidence_sql(rule, result.columns.labels, labels, span)
        return AlertRow(alert, annotations, render_path(rule.dashboard, labels), evidence, alert.last_seen)

    def _retire(self, name: str, alerts: dict[str, Alert], closed_to_ns: int) -> list[AlertChange]:
        """End the alerts of a rule that no longer exists: nothing else would resolve them."""
        fired = [alert for alert in alerts.values() if alert.phase == "firing"]
        for alert in fired:
            alert.phase, alert.ends_at = "resolved", max(closed_to_ns, alert.fired_at or 0)
        self._table.retire(name, closed_to_ns)
        alerts.clear()
        return [_change("resolved", alert) for alert in fired]

    def _count(self, changes: Sequence[AlertChange], states: Mapping[str, RuleState], alerts: Mapping[str, Mapping[str, Alert]]) -> None:
        self._counts["evaluations"] += 1
        for change in changes:
            self._counts["fired" if change.what == "firing" else "resolved"] += 1
        phases = [alert.phase for rule in alerts.values() for alert in rule.values()]
        self._gauges["firing"], self._gauges["pending"] = phases.count("firing"), phases.count("pending")
        self._gauges["rules_in_error"] = sum(bool(states[rule.name].last_error) for rule in self._rules if rule.name in states)


def _span(rule: Rule, closed_to_ns: int, states: Mapping[str, RuleState]) -> Span | None:
    """Return the closed windows that the rule has not evaluated; ``None`` if there are none."""
    window = rule.window_ns
    end = closed_to_ns - closed_to_ns % window
    state = states.get(rule.name)
    if state is None:
        # A rule that is new to a store starts now and does not evaluate history.
        start = max((other.evaluated_to_ns for other in states.values()), default=0)
    else:
        start = max(state.evaluated_to_ns, end - CATCH_UP_NS) if state.last_error else state.evaluated_to_ns
    start -= start % window
    return (start, end) if start < end else None


def _changing(alert: Alert | None) -> tuple[object, ...]:
    """Return the parts of an alert that change, to write only changed alerts."""
    if alert is None:
        return ()
    return (alert.phase, alert.value, alert.starts_at, alert.last_seen, alert.breach_ns, alert.clear_ns, alert.absent_ns)


def _change(what: str, alert: Alert) -> AlertChange:
    at = alert.fired_at if what == "firing" else alert.ends_at
    assert at is not None
    return AlertChange(what, alert.rule, alert.fingerprint, alert.labels, alert.value, at)
