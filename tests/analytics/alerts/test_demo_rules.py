"""The alert rules that the demo brings: they pass their own tests, explain themselves, and those that join the ends of links hold too."""

import re
from pathlib import Path

import pytest

import weft.lab
from weft.analytics.alerts import ddl
from weft.analytics.alerts.check import run_tests
from weft.analytics.alerts.evaluate import Evaluator
from weft.analytics.alerts.rules import load_folder
from weft.analytics.views import VIEWS

S = 1_000_000_000
RULES = load_folder(Path(weft.lab.__file__).parent / "rules")
JOINED = ("bytes-vanish", "counters-frozen")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_holds_and_explains_itself(rule, scratch):
    """Each rule of one table has a test that fires and one that must not; all say what, why this threshold, and what to do."""
    assert {"summary", "description", "source", "runbook"} <= set(rule.annotations)
    if rule.name in JOINED:
        assert not rule.tests
        return
    assert {test.fires for test in rule.tests} == {True, False}
    assert run_tests(rule, scratch) == []
    views = {f"{view.name}_1s": {column.name for column in view.columns} for view in VIEWS if view.resolutions}
    for test in rule.tests:
        assert {name for row in test.rows for name in row} - {"ts_s"} <= views[test.table]
        assert re.search(rf"\b{test.table}\b", rule.query)


@pytest.fixture
def fired(scratch):
    """Return a function that lets a rule judge a link whose ends count so much for four seconds; it returns who has fired."""

    def judge(name: str, sent: int, received: int, *, errors: int = 0, other: str = "lab") -> set[str]:
        database = scratch()
        for statement in (
            *ddl(),
            "CREATE TABLE links (device VARCHAR, port VARCHAR, peer_device VARCHAR, peer_port VARCHAR)",
            "INSERT INTO links VALUES ('leaf-1', 'Ethernet0', 'spine-1', 'Ethernet8'), ('spine-1', 'Ethernet8', 'leaf-1', 'Ethernet0')",
            """CREATE TABLE ports_1s (ts TIMESTAMP_NS, device VARCHAR, port VARCHAR, direction VARCHAR, counter_bytes UBIGINT,
            errors UBIGINT, source VARCHAR)""",
            f"""INSERT INTO ports_1s SELECT make_timestamp_ns(n * {S}), 'leaf-1', 'Ethernet0', 'tx', {sent}, 0, 'lab' FROM range(4) r(n)""",
            f"""INSERT INTO ports_1s SELECT make_timestamp_ns(n * {S}), 'spine-1', 'Ethernet8', 'rx', {received}, {errors}, '{other}'
            FROM range(4) r(n)""",
        ):
            database.execute(statement)
        evaluator = Evaluator([rule for rule in RULES if rule.name == name], database)
        changes = [change for second in range(1, 5) for change in evaluator.evaluate(second * S)]
        assert database.query("SELECT last_error FROM state.alert_rules WHERE state = 'error'") == []
        return {f"{change.labels['device']}/{change.labels['port']}" for change in changes if change.what == "firing"}

    return judge


def test_bytes_that_vanish_without_an_error(fired):
    """A link that loses one in a hundred fires for the end that sends; with errors counted, told by two collectors or by timing, not."""
    sent = 10 * S
    assert fired("bytes-vanish", sent, sent - sent // 100) == {"leaf-1/Ethernet0"}
    assert fired("bytes-vanish", sent, sent - sent // 100, errors=7) == set()
    assert fired("bytes-vanish", sent, sent - sent // 100, other="gnmi") == set()
    assert fired("bytes-vanish", sent, sent + 4000) == set()


def test_counters_that_stand_still(fired):
    """A port that says it sent nothing while its neighbour receives fires; an idle link does not."""
    assert fired("counters-frozen", 0, 5 * S) == {"leaf-1/Ethernet0"}
    assert fired("counters-frozen", 0, 0) == set()
    assert fired("counters-frozen", 5 * S, 5 * S) == set()
