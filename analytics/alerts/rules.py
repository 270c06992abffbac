"""Reads alert rules: one TOML file each, checked word by word, because a rule that is misspelt watches nothing.

A rule's query runs over the views and returns label columns, ``value`` and ``ts``. The identity of an alert is its
label columns and nothing else: what changes from window to window (a value, a rank, a "top 5") must not be among
them, or every window makes a new alert. The placeholders ``$from`` and ``$to`` are the newly closed span as times,
``$from_ns`` and ``$to_ns`` the same as UTC nanoseconds.
"""

import difflib
import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import ConfigError
from .config import AlertsConfig

DEFAULT_RULES = Path(__file__).parent.parent / "rules"
FILE_BYTES_MAX = 64 * 1024
# Far below the time after which an absent label set is forgotten (state.py), so that a rule always fires before it.
FOR_S_MAX = 12 * 3600

SEVERITIES = ("info", "warning", "critical")
NO_DATA = ("ok", "keep", "alert")

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne}
)
_CONDITION = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("alertname", "severity", "value", "ts")


@dataclass(frozen=True, slots=True)
class Condition:
    """When a value breaches: an operator and a threshold."""

    op: str
    threshold: float

    def holds(self, value: float) -> bool:
        return _OPERATORS[self.op](value, self.threshold)

    def __str__(self) -> str:
        return f"{self.op} {self.threshold:g}"


@dataclass(frozen=True, slots=True)
class RuleTest:
    """Rows of one view and what the rule must make of them; ``ts_s`` of a row may be a span ``[from, to)`` of seconds."""

    name: str
    table: str
    rows: tuple[Mapping[str, Any], ...]
    fires: bool
    resolves: bool | None = None
    until_s: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``for_s`` counts breaching windows, ``keep_firing_for_s`` clear ones, both in event time.

    ``no_data`` says what a window means in which the label set's device has no row at all: ``ok`` it is clear,
    ``keep`` nothing changes, ``alert`` it breaches.
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

    @property
    def window_ns(self) -> int:
        return self.window_s * NS_PER_S

    @property
    def coarse(self) -> bool:
        """Whether the query reads views of more than 1 s."""
        return re.search(r"_(10s|1m|1h)\b", self.query) is not None

    @property
    def for_ns(self) -> int:
        return round(self.for_s * NS_PER_S)

    @property
    def keep_ns(self) -> int:
        return round(self.keep_firing_for_s * NS_PER_S)


def load_rules(config: AlertsConfig) -> tuple[Rule, ...]:
    """Return the default rules and the user's, by name.

    Raises:
        ConfigError: a file cannot be read or says something that is no rule; names file and line.
    """
    rules = {rule.name: rule for rule in load_folder(DEFAULT_RULES)}
    for name in config.disabled:
        if name not in rules:
            raise ConfigError("[analyze.alerts] disabled", f"there is no default rule {name!r}", _meant(name, tuple(rules)))
        del rules[name]
    if config.rules:
        rules |= {rule.name: rule for rule in load_folder(Path(config.rules))}
    return tuple(rules[name] for name in sorted(rules))


def load_folder(folder: Path) -> list[Rule]:
    """Return the rules of the ``*.toml`` files of ``folder``, each name once."""
    if not folder.is_dir():
        raise ConfigError(str(folder), "is not a folder of alert rules", "create it or leave [analyze.alerts] rules out")
    rules: dict[str, Rule] = {}
    for path in sorted(folder.glob("*.toml")):
        rule = load_rule(path)
        if rule.name in rules:
            raise ConfigError(str(path), f"the rule {rule.name!r} is also in {rules[rule.name].path}", "give one of them another name")
        rules[rule.name] = rule
    return list(rules.values())


def load_rule(path: Path) -> Rule:
    """Return the rule that ``path`` holds. Raises ``ConfigError`` with file, line and the mend."""
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
        raise ConfigError(str(path), f"is not TOML: {error}", "mend the line it names") from error
    return _Reader(str(path), text).rule(table)


def _meant(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(words)}"


class _Reader:
    """Checks one file; knows its text, to name the line."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def fail(self, key: str, problem: str, hint: str) -> ConfigError:
        pattern = re.compile(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=\]]|.*[{{,]\s*{re.escape(key)}\s*=")
        line = next((number for number, line in enumerate(self._lines, 1) if pattern.match(line)), None)
        return ConfigError(f"{self._path}:{line}" if line else self._path, problem, hint)

    def rule(self, table: dict[str, Any]) -> Rule:
        known = ("name", "query", "condition", "window_s", "for_s", "keep_firing_for_s", "no_data", "severity", "dashboard")
        self.only(table, (*known, "labels", "annotations", "test"))
        name = self.text(table, "name")
        if not _NAME.fullmatch(name):
            raise self.fail("name", f"{name!r} is no name for a rule", "use lower-case letters, digits and hyphens, at most 64")
        query = self.text(table, "query")
        if "$from" not in query or "$to" not in query:
            raise self.fail("query", "the query does not bound its time", "add WHERE ts >= $from AND ts < $to")
        window_s = table.get("window_s", 1)
        if not isinstance(window_s, int) or isinstance(window_s, bool) or not 1 <= window_s <= 3600:
            raise self.fail("window_s", f"{window_s!r} is no window", "use whole seconds from 1 to 3600, as the views have them")
        return Rule(
            name=name,
            query=query.strip().rstrip(";"),
            condition=self.condition(table),
            window_s=window_s,
            for_s=self.seconds(table, "for_s"),
            keep_firing_for_s=self.seconds(table, "keep_firing_for_s"),
            no_data=self.choice(table, "no_data", NO_DATA, "ok"),
            severity=self.choice(table, "severity", SEVERITIES, "warning"),
            dashboard=self.text(table, "dashboard", ""),
            labels=self.words(table, "labels"),
            annotations=self.words(table, "annotations"),
            tests=tuple(self.test(test) for test in self.tables(table, "test")),
            path=self._path,
        )

    def only(self, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                raise self.fail(key, f"unknown key {key!r}", _meant(key, known))

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
            raise self.fail(key, f"{value!r} is no duration", f"use seconds from 0 to {FOR_S_MAX}")
        return float(value)

    def choice(self, table: Mapping[str, Any], key: str, words: Sequence[str], default: str) -> str:
        value = table.get(key, default)
        if value not in words:
            raise self.fail(key, f"{key} cannot be {value!r}", _meant(str(value), words))
        return value

    def condition(self, table: Mapping[str, Any]) -> Condition:
        match = _CONDITION.fullmatch(self.text(table, "condition"))
        if match is None:
            raise self.fail("condition", f"{table['condition']!r} is no condition", 'write an operator and a number, as in "> 0.2"')
        return Condition(match[1], float(match[2]))

    def words(self, table: Mapping[str, Any], key: str) -> dict[str, str]:
        words = table.get(key, {})
        if not isinstance(words, dict):
            raise self.fail(key, f"{key} is not a table", f"write [{key}] and one line for each")
        for name, value in words.items():
            if not _LABEL.fullmatch(name) or (key == "labels" and name in _RESERVED):
                raise self.fail(
                    name, f"{name!r} cannot be a name in {key}", "use letters, digits and underscores, and no name that Weft sets"
                )
            if not isinstance(value, str):
                raise self.fail(name, f"{name} is not text", f'write {name} = "..."')
        return words

    def tables(self, table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        tables = table.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            raise self.fail(key, f"{key} is not a list of tables", f"write [[{key}]]")
        return tables

    def test(self, table: dict[str, Any]) -> RuleTest:
        self.only(table, ("name", "table", "rows", "fires", "resolves", "until_s"))
        rows = self.tables(table, "rows")
        for row in rows:
            span = row.get("ts_s")
            if not isinstance(span, int) and not (isinstance(span, list) and len(span) == 2 and all(isinstance(end, int) for end in span)):
                raise self.fail("ts_s", "a test row needs its time", "write ts_s = 3 or ts_s = [0, 3]")
        for key in ("fires", "resolves"):
            if not isinstance(table.get(key, False), bool):
                raise self.fail(key, f"{key} is neither true nor false", f"write {key} = true")
        if "fires" not in table:
            raise self.fail("test", "a test does not say what it expects", "add fires = true or fires = false")
        until_s = table.get("until_s")
        if until_s is not None and not isinstance(until_s, int):
            raise self.fail("until_s", f"{until_s!r} is no time", "use whole seconds")
        name, view = self.text(table, "name"), self.text(table, "table")
        if not _LABEL.fullmatch(view):
            raise self.fail("table", f"{view!r} is no view", "name the view that the query reads")
        return RuleTest(name, view, tuple(rows), table["fires"], table.get("resolves"), until_s)
