"""Reads alert rules, one TOML file each, and refuses unknown keys and values: a misspelt rule would watch nothing.

A rule's query runs over the views and returns label columns, ``value`` and ``ts``. The identity of an alert is its
label columns alone: a label that changes from window to window (a value, a rank) would make a new alert in every
window. The placeholders ``$from`` and ``$to`` are the newly closed span as times, ``$from_ns`` and ``$to_ns`` the same as UTC
nanoseconds.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import ConfigError
from .config import AlertsConfig

DEFAULT_RULES = Path(__file__).parent.parent / "rules"
FILE_BYTES_MAX = 64 * 1024
# Below state.FORGET_NS, so that a rule fires before an absent label set is forgotten.
FOR_S_MAX = 12 * 3600

SEVERITIES = ("info", "warning", "critical")
NO_DATA = ("ok", "keep", "alert")
PROFILES = ("idle", "training")

_CONDITION = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("alertname", "severity", "value", "ts")


@dataclass(frozen=True, slots=True)
class Condition:
    """The operator and threshold of a breach."""

    op: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.op} {self.threshold:g}"


@dataclass(frozen=True, slots=True)
class RuleTest:
    """Rows by view and the expected outcome; ``ts_s`` of a row may be a span ``[from, to)`` of seconds.

    The test applies to the rule as ``profile`` changes it; without one to the rule that no profile changes.
    """

    name: str
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    fires: bool
    resolves: bool | None = None
    until_s: int | None = None
    profile: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``for_s`` counts breaching windows, ``keep_firing_for_s`` clear ones, both in event time.

    A window in which the device of the label set has no row at all is, by ``no_data``: ``ok`` clear, ``keep`` ignored,
    ``alert`` a breach.
    """

    name: str
    query: str
    condition: Condition
    window_s: int = 1
    for_s: float = 0.0
    keep_firing_for_s: float = 0.0
    no_data: str = "ok"
    severity: str = "warning"
    dashboard: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    tests: tuple[RuleTest, ...] = ()
    path: str = ""
    enabled: bool = True
    # The profile whose section of the file changed this rule; "" = none.
    profile: str = ""

    @property
    def window_ns(self) -> int:
        return self.window_s * NS_PER_S

    @property
    def coarse(self) -> bool:
        """Whether the query reads views with windows longer than 1 s."""
        return re.search(r"_(10s|1m|1h)\b", self.query) is not None

    @property
    def for_ns(self) -> int:
        return round(self.for_s * NS_PER_S)

    @property
    def keep_ns(self) -> int:
        return round(self.keep_firing_for_s * NS_PER_S)


def load_rules(config: AlertsConfig) -> tuple[Rule, ...]:
    """Return the default rules and the user's as the profile has them, sorted by name.

    Raises:
        ConfigError: a file cannot be read or is not a rule, with file and line; or the configuration names no rule or profile.
    """
    if config.profile not in PROFILES:
        raise ConfigError("[analyze.alerts] profile", f"there is no profile {config.profile!r}", _nearest(config.profile, PROFILES))
    rules = {
        rule.name: rule for folder in sorted(DEFAULT_RULES.iterdir()) if folder.is_dir() for rule in load_folder(folder, config.profile)
    }
    for name in config.disabled:
        if name not in rules:
            raise ConfigError("[analyze.alerts] disabled", f"there is no default rule {name!r}", _nearest(name, tuple(rules)))
    rules = {name: rule for name, rule in rules.items() if name not in config.disabled}
    if config.rules:
        rules |= {rule.name: rule for rule in load_folder(Path(config.rules), config.profile)}
    return tuple(rules[name] for name in sorted(rules) if rules[name].enabled)


def load_folder(folder: Path, profile: str = "") -> list[Rule]:
    """Return the rules of the ``*.toml`` files of ``folder``, each name once."""
    if not folder.is_dir():
        raise ConfigError(str(folder), "is not a folder of alert rules", "create it or leave [analyze.alerts] rules out")
    rules: dict[str, Rule] = {}
    for path in sorted(folder.glob("*.toml")):
        rule = load_rule(path, profile)
        if rule.name in rules:
            raise ConfigError(str(path), f"the rule {rule.name!r} is also in {rules[rule.name].path}", "give one of them another name")
        rules[rule.name] = rule
    return list(rules.values())


def load_rule(path: Path, profile: str = "") -> Rule:
    """Return the rule in ``path`` as its section ``[profile.<profile>]`` changes it. Raises ``ConfigError`` with file, line and hint."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})", "check that the file exists and is readable") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(str(path), f"is larger than {FILE_BYTES_MAX} bytes", "keep one rule in a file")
    try:
        text = raw.decode()
        table = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}", "correct the line it names") from error
    return _RuleReader(str(path), text).rule(table, profile)


def _nearest(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(words)}"


class _RuleReader:
    """Checks one file; keeps its text, to find the line of a key."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def fail(self, key: str, problem: str, hint: str) -> ConfigError:
        pattern = re.compile(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=\]]|.*[{{,]\s*{re.escape(key)}\s*=")
        line = next((number for number, line in enumerate(self._lines, 1) if pattern.match(line)), None)
        return ConfigError(f"{self._path}:{line}" if line else self._path, problem, hint)

    def rule(self, table: dict[str, Any], profile: str) -> Rule:
        known = ("name", "query", "condition", "window_s", "for_s", "keep_firing_for_s", "no_data", "severity", "dashboard")
        self.only(table, (*known, "labels", "annotations", "profile", "test"))
        name = self.text(table, "name")
        if not _NAME.fullmatch(name):
            raise self.fail("name", f"{name!r} cannot be the name of a rule", "use lower-case letters, digits and hyphens, at most 64")
        query = self.text(table, "query")
        if "$from" not in query or "$to" not in query:
            raise self.fail("query", "the query has no time bounds", "add WHERE ts >= $from AND ts < $to")
        window_s = table.get("window_s", 1)
        if not isinstance(window_s, int) or isinstance(window_s, bool) or not 1 <= window_s <= 3600:
            raise self.fail("window_s", f"{window_s!r} is not a window", "use whole seconds from 1 to 3600, a resolution of the view")
        profiles = self.profiles(table)
        changed = {**table, **profiles.get(profile, {})}
        # Every profile is checked, whichever is chosen.
        for other in profiles.values():
            self.condition({**table, **other})
            self.seconds({**table, **other}, "for_s")
        return Rule(
            name=name,
            query=query.strip().rstrip(";"),
            condition=self.condition(changed),
            window_s=window_s,
            for_s=self.seconds(changed, "for_s"),
            keep_firing_for_s=self.seconds(table, "keep_firing_for_s"),
            no_data=self.choice(table, "no_data", NO_DATA, "ok"),
            severity=self.choice(table, "severity", SEVERITIES, "warning"),
            dashboard=self.text(table, "dashboard", ""),
            labels=self.words(table, "labels"),
            annotations=self.words(table, "annotations"),
            tests=tuple(self.test(test, line) for test, line in zip(self.tables(table, "test"), self.test_lines(), strict=False)),
            path=self._path,
            enabled=changed.get("enabled", True),
            profile=profile if profile in profiles else "",
        )

    def profiles(self, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
        profiles = table.get("profile", {})
        if not isinstance(profiles, dict) or not all(isinstance(one, dict) for one in profiles.values()):
            raise self.fail("profile", "profile is not a table of tables", "write [profile.idle] or [profile.training]")
        for name, changes in profiles.items():
            if name not in PROFILES:
                raise self.fail(f"profile.{name}", f"there is no profile {name!r}", _nearest(name, PROFILES))
            self.only(changes, ("condition", "for_s", "enabled"))
            if not isinstance(changes.get("enabled", True), bool):
                raise self.fail("enabled", "enabled must be true or false", "write enabled = false")
        return profiles

    def test_lines(self) -> Iterator[int]:
        """Yield the lines at which ``[[test]]`` stands; 0 for each test written another way."""
        yield from (number for number, line in enumerate(self._lines, 1) if re.match(r"\s*\[\[\s*test\s*\]\]", line))
        yield from repeat(0)

    def only(self, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                raise self.fail(key, f"unknown key {key!r}", _nearest(key, known))

    def text(self, table: Mapping[str, Any], key: str, default: str | None = None) -> str:
        value = table.get(key, default)
        if value is None:
            raise ConfigError(self._path, f"the key {key!r} is missing", f"add {key} = ...")
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.fail(key, f"{key} is not text", f'write {key} = "..."')
        return value

    def seconds(self, table: Mapping[str, Any], key: str) -> float:
        value = table.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= FOR_S_MAX:
            raise self.fail(key, f"{value!r} is not a duration", f"use seconds from 0 to {FOR_S_MAX}")
        return float(value)

    def choice(self, table: Mapping[str, Any], key: str, words: Sequence[str], default: str) -> str:
        value = table.get(key, default)
        if value not in words:
            raise self.fail(key, f"{key} cannot be {value!r}", _nearest(str(value), words))
        return value

    def condition(self, table: Mapping[str, Any]) -> Condition:
        match = _CONDITION.fullmatch(self.text(table, "condition"))
        if match is None:
            raise self.fail("condition", f"{table['condition']!r} is not a condition", 'write an operator and a number, as in "> 0.2"')
        return Condition(match[1], float(match[2]))

    def words(self, table: Mapping[str, Any], key: str) -> dict[str, str]:
        words = table.get(key, {})
        if not isinstance(words, dict):
            raise self.fail(key, f"{key} is not a table", f"write [{key}] and one line for each")
        for name, value in words.items():
            if not _LABEL.fullmatch(name) or (key == "labels" and name in _RESERVED):
                raise self.fail(
                    name, f"{name!r} cannot be a name in {key}", "use letters, digits and underscores, and not a name that Weft sets"
                )
            if not isinstance(value, str):
                raise self.fail(name, f"{name} is not text", f'write {name} = "..."')
        return words

    def tables(self, table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        tables = table.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise self.fail(key, f"{key} is not a list of tables", f"write [[{key}]]")
        return tables

    def test(self, table: dict[str, Any], line: int) -> RuleTest:
        self.only(table, ("name", "table", "rows", "tables", "fires", "resolves", "until_s", "profile"))
        for key in ("fires", "resolves"):
            if not isinstance(table.get(key, False), bool):
                raise self.fail(key, f"{key} must be true or false", f"write {key} = true")
        if "fires" not in table:
            raise self.fail("test", "a test does not say what it expects", "add fires = true or fires = false")
        until_s = table.get("until_s")
        if until_s is not None and not isinstance(until_s, int):
            raise self.fail("until_s", f"{until_s!r} is not a time", "use whole seconds")
        views = table.get("tables", {})
        if not isinstance(views, dict):
            raise self.fail("tables", "tables is not a table", "write [test.tables] and a list of rows for each view")
        tables = {view: self.rows(views, view, timed=False) for view in views}
        if "table" in table or not tables:
            view = self.text(table, "table")
            tables[view] = self.rows(table, "rows", timed=True)
        for view in tables:
            if not _LABEL.fullmatch(view):
                raise self.fail("table", f"{view!r} is not a view", "name the view that the query reads")
        profile = self.choice(table, "profile", ("", *PROFILES), "")
        return RuleTest(self.text(table, "name"), tables, table["fires"], table.get("resolves"), until_s, profile, line)

    def rows(self, table: Mapping[str, Any], key: str, *, timed: bool) -> list[dict[str, Any]]:
        rows = self.tables(table, key)
        for row in rows:
            span = row.get("ts_s", None if timed else 0)
            if not isinstance(span, int) and not (isinstance(span, list) and len(span) == 2 and all(isinstance(end, int) for end in span)):
                raise self.fail("ts_s", "a test row needs its time", "write ts_s = 3 or ts_s = [0, 3]")
        return rows
