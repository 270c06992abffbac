"""Alerts over closed windows: when they fire and when they end."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.analytics.alerts import ddl, views
from weft.analytics.alerts.config import AlertsConfig
from weft.analytics.alerts.evaluate import Evaluator
from weft.analytics.alerts.rules import Condition, Rule
from weft.analytics.alerts.state import FORGET_NS, Track, WindowRange, timeline
from weft.pipeline.errors import StoreError

S = 1_000_000_000

RULE = Rule(
    name="hot",
    query="SELECT ts, device, x AS value FROM t WHERE ts >= $from AND ts < $to",
    condition=Condition(">", 0.2),
    for_s=2,
    keep_firing_for_s=0,
    annotations={"summary": "{device} at {value}"},
)


@pytest.fixture
def database(scratch):
    """An empty database with the alerts' tables, and a table t that rules read."""
    made = scratch()
    for statement in (*ddl(), "CREATE TABLE t (ts TIMESTAMP_NS, device VARCHAR, x DOUBLE)"):
        made.execute(statement)
    return made


def put(database, device, values, start_s=0):
    rows = [(second * S, device, value) for second, value in enumerate(values, start_s) if value != "absent"]
    if rows:
        marks = ", ".join(["(make_timestamp_ns(?), ?, ?)"] * len(rows))
        database.execute(f"INSERT INTO t VALUES {marks}", [field for row in rows for field in row])


def stored(database, what="state, starts_at, fired_at, ends_at", where="true"):
    return [tuple(row.values()) for row in database.query(f"SELECT {what} FROM state.alerts WHERE {where} ORDER BY starts_at, fingerprint")]


# -- the walk of one label set against a window-by-window model ---------------------------------------------------------


def meant(kinds, policy):
    """Return how each window counts, by the definition of ``no_data``."""
    known = False
    for kind in kinds:
        known = known or kind != "absent"
        if kind != "absent":
            yield kind
        elif policy == "alert":
            yield "breach" if known else "ignored"
        else:
            yield "clear" if policy == "ok" else "ignored"


def naive(kinds, for_s, keep_s, policy):
    """Walk window by window, by the contract; return (starts, fired, ends) of the alerts that fired."""
    episodes, start, fired, breach, clear = [], None, None, 0, 0
    for second, kind in enumerate(meant(kinds, policy)):
        if kind == "breach":
            start = second if start is None else start
            breach, clear = breach + 1, 0
            if fired is None and breach >= for_s:
                fired = second + 1
        elif kind == "clear" and fired is None:
            start, breach = None, 0
        elif kind == "clear":
            clear += 1
            if clear >= keep_s:
                episodes.append((start, fired, second + 1 - (clear - keep_s)))
                start, fired, breach, clear = None, None, 0, 0
    if fired is not None:
        episodes.append((start, fired, None))
    return episodes


def walked(kinds, cuts, rule):
    """Walk the same windows as ranges, cut anywhere."""
    track, done = Track(rule, "f", {}, None), []
    edges = sorted({0, len(kinds), *(cut % (len(kinds) + 1) for cut in cuts)})
    for low, high in pairwise(edges):
        at = [(index * S, (index + 1) * S) for index in range(low, high)]
        breaches = [WindowRange("breach", a, b, 1.0) for (a, b), kind in zip(at, kinds[low:high], strict=True) if kind == "breach"]
        present = [span for span, kind in zip(at, kinds[low:high], strict=True) if kind != "absent"]
        track.advance(timeline((low * S, high * S), breaches, None if rule.no_data == "ok" else present))
    done = [(a.starts_at, a.fired_at, a.ends_at) for a in track.resolved]
    if track.alert and track.alert.phase == "firing":
        done.append((track.alert.starts_at, track.alert.fired_at, None))
    assert len(track.fired) == len(done)
    return [tuple(None if ns is None else ns / S for ns in episode) for episode in done]


KINDS = st.lists(st.sampled_from(["breach", "clear", "absent"]), max_size=40)


@settings(max_examples=500, deadline=None)
@given(KINDS, st.lists(st.integers(0, 100), max_size=6), st.integers(0, 5), st.integers(0, 5), st.sampled_from(["ok", "keep", "alert"]))
def test_runs_give_what_single_windows_give_however_they_are_cut(kinds, cuts, for_s, keep_s, policy):
    """Any sequence of windows, compressed and cut anywhere, gives the alerts of the window-by-window walk."""
    rule = replace(RULE, for_s=for_s, keep_firing_for_s=keep_s, no_data=policy)
    assert walked(kinds, cuts, rule) == naive(kinds, for_s, keep_s, policy)


@settings(max_examples=300, deadline=None)
@given(KINDS, st.integers(0, 8), st.integers(0, 5), st.sampled_from(["ok", "keep", "alert"]))
def test_an_alert_that_never_fired_never_resolves(kinds, for_s, keep_s, policy):
    """Every resolved alert has fired before, at or after its start and before its end."""
    track = Track(replace(RULE, for_s=for_s, keep_firing_for_s=keep_s, no_data=policy), "f", {}, None)
    for second, kind in enumerate(kinds):
        track.advance([WindowRange("clear" if kind == "absent" and policy == "ok" else kind, second * S, (second + 1) * S, 1.0)])
        assert all(alert in track.fired for alert in track.resolved)
        assert all(a.starts_at < a.fired_at <= a.ends_at for a in track.resolved)
        assert len(track.fired) - len(track.resolved) in (0, 1)


def test_a_device_that_is_gone_for_a_day_is_forgotten():
    """Without data an alert stays or fires, but ends after a day: a removed device does not fire for ever."""
    breach = WindowRange("breach", 0, 5 * S, 1.0)
    for policy in ("keep", "alert"):
        track = Track(replace(RULE, no_data=policy), "f", {}, None)
        track.advance([breach, WindowRange("absent", 5 * S, 5 * S + 10 * FORGET_NS)])
        assert [alert.ends_at for alert in track.resolved] == [5 * S + FORGET_NS]
        assert track.alert is None


# -- rules over tables -----------------------------------------------------------------------------------------------


def test_an_alert_goes_from_pending_to_firing_to_resolved(database):
    """The states follow the closed windows, with starts and ends in event time, independent of the wall clock."""
    put(database, "leaf-1", [0.1, 0.9, 0.8, 0.7, 0.0, 0.0])
    evaluator = Evaluator([RULE], database)
    seen = []
    for closed in range(1, 7):
        changes = evaluator.evaluate(closed * S)
        seen.append(([change.what for change in changes], stored(database)))
    assert [whats for whats, _ in seen] == [[], [], ["firing"], [], ["resolved"], []]
    assert [rows for _, rows in seen] == [
        [],
        [("pending", S, None, None)],
        [("firing", S, 3 * S, None)],
        [("firing", S, 3 * S, None)],
        [("resolved", S, 3 * S, 4 * S)],
        [("resolved", S, 3 * S, 4 * S)],
    ]


def test_identity_is_the_labels_and_never_the_value(database):
    """A value that changes each window stays one alert; its newest value is stored beside it."""
    put(database, "leaf-1", [0.3, 0.4, 0.5, 0.6])
    evaluator = Evaluator([RULE], database)
    for closed in range(1, 5):
        evaluator.evaluate(closed * S)
    (row,) = database.query("SELECT * FROM state.alerts")
    assert (row["value"], row["starts_at"], row["last_seen"]) == (0.6, 0, 3 * S)
    assert row["labels"] == '{"alertname": "hot", "device": "leaf-1", "severity": "warning"}'


def test_the_evidence_shows_the_windows_again(database):
    """The evidence query of an alert returns exactly the rows of its windows, also with quotes in labels."""
    put(database, "o'leaf", [0.1, 0.3, 0.4, 0.0])
    put(database, "other", [0.9, 0.9, 0.9, 0.9])
    evaluator = Evaluator([RULE], database)
    evaluator.evaluate(3 * S)
    (sql,) = stored(database, "evidence_sql", "labels LIKE '%o''leaf%'")[0]
    assert [row["value"] for row in database.query(sql)] == [0.3, 0.4]


def test_closing_the_same_or_earlier_windows_again_changes_nothing(database):
    """An evaluation that is repeated, as after a crash, or that goes back in time, has no effect."""
    put(database, "leaf-1", [0.9, 0.9, 0.9])
    evaluator = Evaluator([RULE], database)
    assert [change.what for change in evaluator.evaluate(3 * S)] == ["firing"]
    before = stored(database, "*")
    assert evaluator.evaluate(3 * S) == [] and evaluator.evaluate(S) == []
    assert Evaluator([RULE], database).evaluate(3 * S) == []
    assert stored(database, "*") == before


VALUES = st.lists(st.sampled_from([0.9, 0.0, "absent", None, math.nan]), min_size=1, max_size=14)


# Each example opens its own databases, so sharing the fixture between examples does no harm.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_of_the_windows_gives_the_same_tables(scratch, data):
    """The rows of the alerts depend neither on how many windows close at once nor on restarts in between."""
    columns = {device: data.draw(VALUES) for device in ("a", "b")}
    length = max(map(len, columns.values()))
    cuts = sorted({*data.draw(st.lists(st.integers(1, length), max_size=5)), length})
    rule = replace(RULE, for_s=data.draw(st.integers(0, 3)), keep_firing_for_s=data.draw(st.integers(0, 3)))
    rule = replace(rule, no_data=data.draw(st.sampled_from(["ok", "keep", "alert"])))
    results = []
    for steps in ([length], cuts, range(1, length + 1)):
        database = scratch()
        for statement in (*ddl(), "CREATE TABLE t (ts TIMESTAMP_NS, device VARCHAR, x DOUBLE)"):
            database.execute(statement)
        for device, values in columns.items():
            put(database, device, values)
        for closed in steps:
            Evaluator([rule], database).evaluate(closed * S)
        results.append(
            stored(database, "fingerprint, state, starts_at, fired_at, ends_at, breach_ns, clear_ns, absent_ns", "state <> 'ok'")
        )
        database.connection.close()
    assert results[0] == results[1] == results[2]


def test_missing_data_does_not_look_like_recovery(database):
    """With ``keep``, an alert whose device is silent stays as ``no_data`` and resolves only on clear data."""
    put(database, "leaf-1", [0.9, 0.9, "absent", "absent", 0.0])
    put(database, "leaf-2", [0.0] * 5)
    evaluator = Evaluator([replace(RULE, no_data="keep")], database)
    states = []
    for closed in range(1, 6):
        evaluator.evaluate(closed * S)
        states.append([state for state, *_ in stored(database)])
    assert states == [["pending"], ["firing"], ["no_data"], ["no_data"], ["resolved"]]


def test_a_label_set_without_a_row_is_clear_while_its_device_has_others(database):
    """With ``keep``, a path that carries nothing counts as clear when other paths of the device have rows."""
    database.execute("CREATE TABLE paths (ts TIMESTAMP_NS, device VARCHAR, dst VARCHAR, x DOUBLE)")
    for second, dst, x in ((0, "p", 0.9), (1, "p", 0.9), (2, "q", 0.0)):
        database.execute("INSERT INTO paths VALUES (make_timestamp_ns(?), 'leaf-1', ?, ?)", (second * S, dst, x))
    rule = replace(RULE, no_data="keep", query="SELECT ts, device, dst, x AS value FROM paths WHERE ts >= $from AND ts < $to")
    assert [change.what for change in Evaluator([rule], database).evaluate(3 * S)] == ["firing", "resolved"]


def test_no_data_fires_where_the_rule_asks_for_it(database):
    """With ``alert``, a device that disappears fires without a value and resolves when it returns."""
    put(database, "leaf-1", [0.0, 0.0, "absent", "absent", "absent", 0.0])
    evaluator = Evaluator([replace(RULE, no_data="alert")], database)
    seen = [[(change.what, change.value, change.at_ns) for change in evaluator.evaluate(closed * S)] for closed in range(1, 7)]
    assert seen == [[], [], [], [("firing", None, 4 * S)], [], [("resolved", None, 5 * S)]]


def test_a_rule_that_fails_stops_no_other_and_catches_up(database):
    """Errors of a rule's query are counted and shown; the other rules go on, and once it works the rule evaluates the windows it missed."""
    put(database, "leaf-1", [0.9, 0.9, 0.9, 0.0])
    broken = [
        replace(RULE, name="no-table", query="SELECT ts, device, x AS value FROM missing WHERE ts >= $from AND ts < $to"),
        replace(RULE, name="at-run-time", query="SELECT ts, device, CAST(device AS INT) AS value FROM t WHERE ts >= $from AND ts < $to"),
        replace(RULE, name="no-value", query="SELECT ts, device FROM t WHERE ts >= $from AND ts < $to"),
        replace(RULE, name="fraction", query="SELECT ts, x AS ratio, x AS value FROM t WHERE ts >= $from AND ts < $to"),
        replace(RULE, name="no-query", query="DELETE FROM t -- $from $to"),
    ]
    evaluator = Evaluator([*broken, RULE], database)
    assert [(change.what, change.rule) for change in evaluator.evaluate(3 * S)] == [("firing", "hot")]
    states = database.query("SELECT rule, state, errors FROM state.alert_rules ORDER BY rule")
    assert [(row["rule"], row["state"]) for row in states if row["state"] != "error"] == [("hot", "ok")]
    assert evaluator.counters()["weft_analytics_alert_rule_errors_total"] == 5
    assert evaluator.counters()["weft_analytics_alerts_rules_in_error"] == 5
    assert database.query("SELECT count(*) AS n FROM t") == [{"n": 4}]
    shown = database.query(f"SELECT rule, summary FROM ({views()['alerts']}) WHERE state = 'error' ORDER BY rule")
    assert [row["rule"] for row in shown] == ["at-run-time", "fraction", "no-query", "no-table", "no-value"]
    database.execute("CREATE VIEW missing AS SELECT * FROM t")
    changes = evaluator.evaluate(4 * S)
    assert [(change.what, change.at_ns) for change in changes if change.rule == "no-table"] == [("firing", 2 * S), ("resolved", 3 * S)]


def test_a_failure_while_writing_leaves_everything_as_it_was(database):
    """Alerts, position and outbox are one transaction: when the outbox fails nothing changes, and the next call does all of it."""
    put(database, "leaf-1", [0.9, 0.9])

    class Failing:
        def reconcile(self):
            raise StoreError("full", "free space")

    with pytest.raises(StoreError):
        Evaluator([RULE], database, Failing()).evaluate(2 * S)
    assert stored(database) == [] and database.query("SELECT * FROM state.alert_rules") == []
    assert [change.what for change in Evaluator([RULE], database).evaluate(2 * S)] == ["firing"]


def test_too_many_alerts_are_dropped_and_counted(database):
    """A rule has no more alerts than its limit; new ones do not replace open ones."""
    put(database, "first", [0.9] * 4)
    for index in range(9):
        put(database, f"later-{index}", [0.9] * 2, start_s=2)
    evaluator = Evaluator([RULE], database, config=AlertsConfig(alerts_per_rule_max=3))
    evaluator.evaluate(2 * S)
    evaluator.evaluate(4 * S)
    rows = stored(database, "labels", "state = 'firing'")
    assert len(rows) == 3 and any('"first"' in labels for (labels,) in rows)
    assert evaluator.counters()["weft_analytics_alert_dropped_alerts_total"] == 7


def test_resolved_alerts_are_kept_up_to_a_limit(database):
    """History is bounded: the newest resolved alerts stay."""
    put(database, "leaf-1", [0.9, 0.0] * 10)
    rule = replace(RULE, for_s=0)
    evaluator = Evaluator([rule], database, config=AlertsConfig(resolved_kept_max=3))
    evaluator.evaluate(20 * S)
    assert [start for (start,) in stored(database, "starts_at")] == [14 * S, 16 * S, 18 * S]


def test_a_rule_that_is_taken_away_resolves_its_alerts(database):
    """Alerts of a rule that is no longer configured end instead of firing for ever."""
    put(database, "leaf-1", [0.9, 0.9, 0.9])
    put(database, "leaf-2", ["absent", "absent", 0.9])
    Evaluator([RULE], database).evaluate(3 * S)
    assert [change.what for change in Evaluator([], database).evaluate(3 * S)] == ["resolved"]
    assert stored(database, "state, ends_at") == [("resolved", 3 * S)]


def test_a_new_rule_begins_now(database):
    """A rule that is added to a running store does not send the alerts of its past."""
    put(database, "leaf-1", [0.9] * 6)
    Evaluator([RULE], database).evaluate(4 * S)
    added = replace(RULE, name="added")
    changes = Evaluator([RULE, added], database).evaluate(6 * S)
    assert [(change.rule, change.at_ns) for change in changes] == [("added", 6 * S)]


def test_a_wide_window_is_judged_when_it_is_whole(database):
    """A rule over 10 s windows waits until the ten seconds are closed."""
    database.execute("INSERT INTO t VALUES (make_timestamp_ns(0), 'leaf-1', 0.9)")
    evaluator = Evaluator([replace(RULE, window_s=10, for_s=0)], database)
    assert evaluator.evaluate(9 * S) == []
    assert [change.at_ns for change in evaluator.evaluate(10 * S)] == [10 * S]


@pytest.mark.parametrize("columns", ["epoch_ns(ts) AS ts, ", ""])
def test_time_may_be_nanoseconds_or_left_out(database, columns):
    """A query may give its time as a number; without any, its rows belong to the last closed window."""
    put(database, "leaf-1", [0.0, 0.9])
    rule = replace(
        RULE, for_s=0, query=f"SELECT {columns}device, x AS value FROM t WHERE epoch_ns(ts) >= $from_ns AND epoch_ns(ts) < $to_ns"
    )
    assert [change.at_ns for change in Evaluator([rule], database).evaluate(2 * S)] == [2 * S]


def test_a_rule_without_labels_is_one_alert(database):
    """A query that returns only a value makes one alert for the whole store."""
    put(database, "leaf-1", [0.9, 0.9])
    rule = replace(RULE, query="SELECT ts, max(x) AS value FROM t WHERE ts >= $from AND ts < $to GROUP BY ts")
    Evaluator([rule], database).evaluate(2 * S)
    assert stored(database, "labels") == [('{"alertname": "hot", "severity": "warning"}',)]


def test_the_views_show_what_is_open_and_what_was(database):
    """The views can be read with times as timestamps, and hide what only the evaluator needs."""
    put(database, "leaf-1", [0.9, 0.9])
    put(database, "leaf-2", [0.0, 0.0])
    Evaluator([replace(RULE, no_data="alert")], database).evaluate(2 * S)
    for name, sql in views().items():
        database.execute(f"CREATE VIEW {name} AS {sql}")
    (row,) = database.query("SELECT state, device, severity, summary, CAST(starts_at AS VARCHAR) AS starts FROM alerts")
    assert list(row.values()) == ["firing", "leaf-1", "warning", "leaf-1 at 0.9", "1970-01-01 00:00:00"]
    assert database.query("SELECT rule, state FROM alert_rules") == [{"rule": "hot", "state": "ok"}]
    assert database.query("SELECT * FROM notifications") == []
