"""Alert rules as files: what is accepted, and how what is not is told."""

import re

import pytest

from weft.analytics.alerts.annotations import render, render_path
from weft.analytics.alerts.check import run_tests
from weft.analytics.alerts.config import AlertsConfig
from weft.analytics.alerts.fingerprint import fingerprint
from weft.analytics.alerts.rules import DEFAULT_RULES, load_folder, load_rule, load_rules
from weft.analytics.views import VIEWS
from weft.pipeline.errors import ConfigError

GOOD = """name = "hot"
query = "SELECT ts, device, x AS value FROM t WHERE ts >= $from AND ts < $to"
condition = ">= -1.5e-3"
for_s = 2.5
severity = "critical"

[labels]
team = "net"

[annotations]
summary = "{device} {value:.1%}"
"""

DEFAULTS = load_folder(DEFAULT_RULES)


def write(tmp_path, text, name="rule.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_rule_is_read_as_written(tmp_path):
    """Everything that the file says stands in the rule, with units turned into nanoseconds."""
    rule = load_rule(write(tmp_path, GOOD))
    assert (rule.name, rule.condition.op, rule.condition.threshold) == ("hot", ">=", -0.0015)
    assert (rule.for_ns, rule.keep_ns, rule.window_ns) == (2_500_000_000, 0, 1_000_000_000)
    assert (rule.severity, rule.no_data, dict(rule.labels)) == ("critical", "ok", {"team": "net"})
    assert [rule.condition.holds(value) for value in (-0.0016, -0.0015, 0.0)] == [False, True, True]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("severity", "severty", 5, "did you mean 'severity'?"),
        ('"critical"', '"critcal"', 5, "did you mean 'critical'?"),
        ("for_s = 2.5", "for_s = -1", 4, "seconds from 0"),
        ("for_s = 2.5", "for_s = true", 4, "seconds from 0"),
        ('">= -1.5e-3"', '"about 3"', 3, "an operator and a number"),
        ("ts < $to", "true", 2, "ts >= $from AND ts < $to"),
        ('"hot"', '"Hot Port"', 1, "lower-case"),
        ('team = "net"', "team = 3", 8, "is not text"),
        ('team = "net"', 'severity = "x"', 5, "that Weft sets"),
        ("for_s = 2.5", 'no_data = "allert"', 4, "did you mean 'alert'?"),
        ("for_s = 2.5", "window_s = 0.5", 4, "whole seconds"),
    ],
)
def test_a_misspelt_rule_names_file_line_and_mend(tmp_path, old, new, line, words):
    """A rule that cannot be meant as written is refused with its place and what to write instead."""
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_rule(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", "\xff", "", "name = 'x'\nname = 'y'", "[[test]]\nfires = true\n"])
def test_what_is_no_rule_at_all_is_a_config_error(tmp_path, text):
    """Files that are broken, empty or no text give the user's error and no other."""
    path = tmp_path / "rule.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load_rule(path)


def test_a_user_rule_takes_the_place_of_the_default_of_its_name(tmp_path):
    """The user's folder adds rules and replaces default ones; a disabled default does not run."""
    write(tmp_path, GOOD)
    write(tmp_path, GOOD.replace('"hot"', '"burst-time"'), "mine.toml")
    rules = {rule.name: rule for rule in load_rules(AlertsConfig(rules=str(tmp_path), disabled=("roce-loss",)))}
    assert rules["burst-time"].severity == "critical"
    assert "hot" in rules and "roce-loss" not in rules and "contention" in rules


def test_two_rules_of_one_name_are_refused(tmp_path):
    """Two files cannot both be the rule of one name."""
    write(tmp_path, GOOD, "a.toml")
    write(tmp_path, GOOD, "b.toml")
    with pytest.raises(ConfigError, match=r"also in .*a\.toml"):
        load_rules(AlertsConfig(rules=str(tmp_path)))


def test_a_disabled_rule_must_exist():
    """Disabling a rule that is not there is a mistake, and told as one."""
    with pytest.raises(ConfigError, match="did you mean 'roce-loss'"):
        load_rules(AlertsConfig(disabled=("roce-los",)))


@pytest.mark.parametrize("rule", DEFAULTS, ids=lambda rule: rule.name)
def test_a_default_rule_passes_its_own_tests(rule, scratch):
    """Every default rule has a test that fires and one that must not, and they hold."""
    assert {test.fires for test in rule.tests} == {True, False}
    assert run_tests(rule, scratch) == []


@pytest.mark.parametrize("rule", DEFAULTS, ids=lambda rule: rule.name)
def test_a_default_rule_asks_for_columns_that_the_views_have(rule):
    """The columns that a default rule is tested with are columns of the real view, so that it also runs on it."""
    views = {(f"{view.name}_1s" if view.resolutions else view.name): {column.name for column in view.columns} for view in VIEWS}
    for test in rule.tests:
        assert {name for row in test.rows for name in row} - {"ts_s"} <= views[test.table]
        assert re.search(rf"\b{test.table}\b", rule.query)


@pytest.mark.parametrize("rule", DEFAULTS, ids=lambda rule: rule.name)
def test_a_default_rule_explains_itself(rule):
    """Who is woken by a default rule reads what, why this threshold, and what to do."""
    assert {"summary", "description", "source", "runbook"} <= set(rule.annotations)


@pytest.mark.parametrize("rule", load_folder(DEFAULT_RULES / "fabric"), ids=lambda rule: rule.name)
def test_a_rule_of_the_fabric_passes_its_own_tests(rule, scratch):
    """A rule over one view has a test that fires and one that must not; every one says why its threshold is what it is."""
    assert {"summary", "description", "source", "runbook"} <= set(rule.annotations)
    if " JOIN " not in rule.query:
        assert {test.fires for test in rule.tests} == {True, False}
    assert run_tests(rule, scratch) == []


def test_a_rule_test_that_does_not_hold_is_told(tmp_path, scratch):
    """A rule's test that expects what does not happen is reported with its name."""
    test = '\n[[test]]\nname = "cold"\ntable = "t"\nrows = [{ ts_s = 0, device = "a", x = -5.0 }]\nfires = true\n'
    rule = load_rule(write(tmp_path, GOOD + test))
    (problem,) = run_tests(rule, scratch)
    assert "'cold'" in problem and "never firing" in problem


def test_the_fingerprint_is_prometheus_own():
    """The identity of a label set is the published value of Prometheus' label signature, whatever the order."""
    # Published in prometheus/common, model/signature_test.go.
    assert int(fingerprint({}), 16) == 14695981039346656037
    labels = {"name": "garland, briggs", "fear": "love is not enough"}
    assert int(fingerprint(labels), 16) == 5799056148416392346
    assert fingerprint(dict(reversed(labels.items()))) == fingerprint(labels)
    assert int(fingerprint({"first-label": "first-label-value", "second-label": "second-label-value"}), 16) == 3195800080984914717


def test_templates_fill_labels_and_values():
    """Known fields are filled in, unknown ones stay visible, a missing value says so, and a wrong format does no harm."""
    labels = {"device": "leaf {value}", "port": "a/b c"}
    assert render("{device} {value:.0%} {what}", labels, 0.256) == "leaf {value} 26% {what}"
    assert render("{value} {value:zz}", labels, 0.5) == "0.5 0.5"
    assert render("{value:.1f}", labels, None) == "no data"
    assert render_path("bursts?port={port}", labels) == "bursts?port=a%2Fb%20c"
