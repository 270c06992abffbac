"""Alert rules as files: what is accepted, and the errors for the rest."""

import pytest

from weft.analytics.alerts.annotations import render, render_path
from weft.analytics.alerts.check import run_tests
from weft.analytics.alerts.config import AlertsConfig
from weft.analytics.alerts.fingerprint import fingerprint
from weft.analytics.alerts.rules import load_rule, load_rules
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


def write(tmp_path, text, name="rule.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_rule_is_read_as_written(tmp_path):
    """Every value of the file is in the rule, times in nanoseconds."""
    rule = load_rule(write(tmp_path, GOOD))
    assert (rule.name, rule.condition.op, rule.condition.threshold) == ("hot", ">=", -0.0015)
    assert (rule.for_ns, rule.keep_ns, rule.window_ns) == (2_500_000_000, 0, 1_000_000_000)
    assert (rule.severity, rule.no_data, dict(rule.labels)) == ("critical", "ok", {"team": "net"})


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
def test_a_misspelt_rule_is_refused_with_file_line_and_hint(tmp_path, old, new, line, words):
    """A wrong rule is refused with file, line and a hint."""
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_rule(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", "\xff", "", "name = 'x'\nname = 'y'", "[[test]]\nfires = true\n"])
def test_what_is_no_rule_at_all_is_a_config_error(tmp_path, text):
    """Files that are broken, empty or not text are configuration errors."""
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
    """Disabling an unknown rule is an error with the nearest name."""
    with pytest.raises(ConfigError, match="did you mean 'roce-loss'"):
        load_rules(AlertsConfig(disabled=("roce-los",)))


def test_a_failed_rule_test_is_reported_with_file_and_line(tmp_path):
    """A test whose expectation fails is reported with its line; one that passes is not."""
    cold = '\n[[test]]\nname = "cold"\ntable = "t"\nrows = [{ ts_s = 0, device = "a", x = -5.0 }]\nfires = '
    path = write(tmp_path, f"{GOOD}{cold}false\n{cold}true\n")
    lines = path.read_text().splitlines()
    assert lines[12] == lines[18] == "[[test]]"
    assert run_tests(load_rule(path)) == [f"{path}:19: test 'cold': the alert did not fire"]


def test_rows_of_several_views_test_a_join(tmp_path):
    """A test may fill several tables, of which those without a time have no column ts."""
    query = "SELECT ts, t.device, x AS value FROM t JOIN links USING (device) WHERE ts >= $from AND ts < $to"
    joined = GOOD.replace("SELECT ts, device, x AS value FROM t WHERE ts >= $from AND ts < $to", query).replace("2.5", "0")
    test = '\n[[test]]\nname = "n"\nfires = {fires}\n[test.tables]\nlinks = [{{ device = "{device}" }}]\n'
    test += 't = [{{ ts_s = 0, device = "a", x = 1.0 }}]\n'
    tests = test.format(fires="true", device="a") + test.format(fires="false", device="b")
    assert run_tests(load_rule(write(tmp_path, joined + tests))) == []


def test_a_profile_changes_condition_duration_and_whether_a_rule_runs(tmp_path):
    """The section of the chosen profile replaces values of the rule, and its tests are those of that profile."""
    test = (
        '\n[[test]]\nname = "{name}"\nprofile = "{profile}"\ntable = "t"\nrows = [{{ ts_s = 0, device = "a", x = 1.0 }}]\nfires = {fires}\n'
    )
    text = (
        GOOD
        + '[profile.training]\ncondition = "> 7"\nfor_s = 1\n[profile.idle]\nenabled = false\n'
        + test.format(name="n", profile="training", fires="false")
    )
    path = write(tmp_path, text)
    plain, training, idle = (load_rule(path, profile) for profile in ("", "training", "idle"))
    assert (str(plain.condition), plain.for_s, plain.enabled, plain.profile) == (">= -0.0015", 2.5, True, "")
    assert (str(training.condition), training.for_s, training.enabled, training.profile) == ("> 7", 1.0, True, "training")
    assert idle.enabled is False
    assert run_tests(training) == []
    names = {
        profile: {rule.name for rule in load_rules(AlertsConfig(rules=str(tmp_path), profile=profile))} for profile in ("training", "idle")
    }
    assert "hot" in names["training"] and "hot" not in names["idle"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("[profile.trainig]\nfor_s = 1\n", "did you mean 'training'"),
        ("[profile.idle]\nforr_s = 1\n", "did you mean 'for_s'"),
        ("[profile.idle]\nfor_s = -1\n", "seconds from 0"),
        ('[profile.idle]\ncondition = "much"\n', "an operator and a number"),
        ("[profile.idle]\nenabled = 1\n", "enabled = false"),
        ("[profile]\nidle = 3\n", "[profile.idle]"),
    ],
)
def test_a_wrong_profile_section_is_an_error_in_every_profile(tmp_path, section, words):
    """An unknown profile and an impossible value are refused under every profile."""
    path = write(tmp_path, GOOD + section)
    with pytest.raises(ConfigError) as caught:
        load_rule(path, "training")
    assert words in str(caught.value)


def test_the_fingerprint_is_prometheus_own():
    """The identity of a label set is the published value of Prometheus' label signature, whatever the order."""
    # Published in prometheus/common, model/signature_test.go.
    assert int(fingerprint({}), 16) == 14695981039346656037
    labels = {"name": "garland, briggs", "fear": "love is not enough"}
    assert int(fingerprint(labels), 16) == 5799056148416392346
    assert fingerprint(dict(reversed(labels.items()))) == fingerprint(labels)
    assert int(fingerprint({"first-label": "first-label-value", "second-label": "second-label-value"}), 16) == 3195800080984914717


def test_templates_fill_labels_and_values():
    """Known fields are filled in, unknown ones stay visible, a missing value is shown as missing, and a wrong format does no harm."""
    labels = {"device": "leaf {value}", "port": "a/b c"}
    assert render("{device} {value:.0%} {what}", labels, 0.256) == "leaf {value} 26% {what}"
    assert render("{value} {value:zz}", labels, 0.5) == "0.5 0.5"
    assert render("{value:.1f}", labels, None) == "no data"
    assert render_path("bursts?port={port}", labels) == "bursts?port=a%2Fb%20c"
