"""The contract of every default rule: its tests pass, its query runs on the real views, and its texts, page and columns exist."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from weft.analytics import alerts
from weft.analytics.alerts.check import run_tests
from weft.analytics.alerts.config import AlertsConfig
from weft.analytics.alerts.evaluate import Evaluator
from weft.analytics.alerts.queries import columns_of
from weft.analytics.alerts.rules import DEFAULT_RULES, PROFILES, load_rule, load_rules
from weft.analytics.store.publish import catalog
from weft.analytics.store.writer import Store
from weft.dashboards.pages import PAGES
from weft.pipeline.errors import ConfigError

S = 1_000_000_000
FILES = sorted(DEFAULT_RULES.rglob("*.toml"))
DASHBOARDS = Path(__file__).parents[2] / "dashboards"
# The default rules before the rule folders became one set: users may have disabled or replaced them by name.
OLD_NAMES = {"burst-time", "collector-silent", "contention", "data-gap", "latency-tail", "roce-loss"}

of_each_rule = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An empty store with all views."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.start()
    for statement in (*alerts.ddl(), *catalog(store)):
        store.execute(statement)
    yield store
    store.stop()


def test_all_files_are_loaded_by_default():
    """Without configuration every rule file counts, in one of three folders, under the name of its file."""
    rules = load_rules(AlertsConfig())
    assert {Path(rule.path) for rule in rules} == set(FILES)
    assert [rule.name for rule in rules] == sorted(path.stem for path in FILES)
    assert {path.parent.relative_to(DEFAULT_RULES).as_posix() for path in FILES} == {"traffic", "fabric", "data"}
    assert {rule.name for rule in rules} >= OLD_NAMES


def test_the_training_profile_expects_collectives():
    """In training, rules on bursts that every collective causes do not run or need more; an unknown profile is an error."""
    idle, training = ({rule.name: rule for rule in load_rules(AlertsConfig(profile=profile))} for profile in PROFILES)
    assert idle.keys() - training.keys() == {"contention", "latency-tail"} and training.keys() <= idle.keys()
    assert (str(idle["burst-time"].condition), idle["burst-time"].for_s) == ("> 0.2", 2)
    assert (str(training["burst-time"].condition), training["burst-time"].for_s) == ("> 0.95", 10)
    with pytest.raises(ConfigError, match="did you mean 'training'"):
        load_rules(AlertsConfig(profile="trainign"))


@pytest.mark.parametrize("profile", ["", *PROFILES])
@of_each_rule
def test_its_tests_pass(path, profile):
    """Every profile with its own thresholds has one test that fires and one that does not, and both pass."""
    rule = load_rule(path, profile)
    if rule.enabled and rule.profile == profile:
        assert {test.fires for test in rule.tests if test.profile == profile} == {True, False}
    assert run_tests(rule) == []


@of_each_rule
def test_its_query_runs_on_an_empty_store(path, store):
    """On the real views, without rows, the rule is evaluated without an error and fires nothing."""
    rule = load_rule(path)
    store.execute("DELETE FROM state.alert_rules")
    assert Evaluator([rule], store).evaluate(60 * S) == []
    assert store.query("SELECT last_error FROM state.alert_rules WHERE state = 'error'") == []
    assert store.query("SELECT evaluated_to_ns FROM state.alert_rules WHERE rule = ?", (rule.name,)) == [{"evaluated_to_ns": 60 * S}]


@pytest.mark.parametrize("seconds", [1, 60])
@of_each_rule
def test_its_query_reads_only_its_span(path, seconds, store):
    """A breach is in the evaluated windows: rows before and after the span change nothing, with copied windows (1 s) and without."""
    rule = load_rule(path)
    span = (100 * S, (100 + seconds) * S)
    store.execute("DELETE FROM state.alert_rules")
    statements = []
    query = store.query
    store.query = lambda sql, params=(): statements.append(sql) or query(sql, params)
    try:
        Evaluator([rule], store).evaluate(span[0])
        statements.clear()
        Evaluator([rule], store).evaluate(span[1])
    finally:
        del store.query
    judged = next(sql for sql in statements if "weft_windows AS" in sql)
    shared = {view for view in ("ports_1s", "queues_1s", "quality_1s", "links") if re.search(rf"\b{view}\b", rule.query)}
    assert {view for view in shared if f"weft_{view}" in judged} == (shared if seconds == 1 else set())
    bounds = [int(ns) for ns in re.findall(r"make_timestamp_ns\((\d+)\)", judged)]
    assert set(bounds) == set(span)


@of_each_rule
def test_its_tests_use_columns_of_the_views(path, store):
    """The rows of its tests have only columns of their view, and its query reads that view."""
    rule = load_rule(path)
    for test in rule.tests:
        for view, rows in test.tables.items():
            columns = {row["column_name"] for row in store.query(f'DESCRIBE "{view}"')}
            assert {name for row in rows for name in row} - {"ts_s"} <= columns
            assert re.search(rf"\b{view}\b", rule.query)


@of_each_rule
def test_it_explains_itself(path, store):
    """Its texts explain problem, threshold and remedy, with labels of the query; none repeats a threshold as a fixed number."""
    rule = load_rule(path)
    assert {"summary", "description", "source", "runbook"} == set(rule.annotations)
    assert path.read_text().startswith("# ")
    fields = {field for text in (*rule.annotations.values(), rule.dashboard) for field in re.findall(r"\{(\w+)", text)}
    assert fields <= {*columns_of(rule, store).labels, "value"}
    assert not re.search(r"half of (its|the) line rate(?! by default)", " ".join(rule.annotations.values()))


@of_each_rule
def test_its_links_lead_somewhere(path):
    """Its page exists and knows the parameters; links into the docs name a page and a heading; the docs list the rule."""
    rule = load_rule(path)
    link = urlsplit(rule.dashboard)
    assert link.path in PAGES
    source = "".join(file.read_text() for file in (DASHBOARDS / "pages" / link.path).glob("*.py"))
    known = set(re.findall(r'"(\w+)"', source)) | ({"device", "port"} if "choose_port(" in source else set())
    assert {name for name, _ in parse_qsl(link.query)} <= known
    for page, anchor in re.findall(r"(\d\d-[\w-]+\.md)(?:#([\w-]+))?", path.read_text()):
        assert (DASHBOARDS / "docs" / page).exists()
        assert not anchor or anchor in headings(page)
    assert rule.name in headings("28-default-rules.md")


def headings(page):
    """Return the anchors of a page of the docs."""
    titles = re.findall(r"^#+ (.+)$", (DASHBOARDS / "docs" / page).read_text(), re.M)
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}
