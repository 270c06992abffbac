"""Copies of the newest windows for the default rules.

Planning a query over a view takes longer than running it (60 ms to 2 ms for ``ports_1s``), and most default rules read the same
views over the same span. So one query per view and evaluation copies the windows into a temporary table, and the rules
read that. A user's rule may read outside its span and keeps the view.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import StoreError
from . import Database
from .queries import Span, identifier
from .rules import DEFAULT_RULES, Rule

# Longer spans are rare, and copying them would take memory.
SPAN_NS_MAX = 10 * NS_PER_S

_SHARED = re.compile(r"\b(ports_1s|queues_1s|quality_1s|links)\b")


class WindowCopies:
    """The copies that the default rules among ``rules`` read."""

    def __init__(self, rules: Sequence[Rule], database: Database) -> None:
        self._database = database
        default = [rule for rule in rules if DEFAULT_RULES in Path(rule.path).parents]
        self._views = {rule.name: set(_SHARED.findall(rule.query)) for rule in default}
        self._rules = {rule.name: replace(rule, query=_SHARED.sub(r"weft_\1", rule.query)) for rule in default if self._views[rule.name]}
        self._words = {word for rule in self._rules.values() for word in re.findall(r"\w+", rule.query)}
        self._columns: dict[str, list[str]] = {}

    def load(self, spans: Mapping[str, Span]) -> dict[str, Rule]:
        """Copy the windows of the most common span; return by name the rules with this span, changed to read the copies."""
        short = [span for name, span in spans.items() if name in self._rules and span[1] - span[0] <= SPAN_NS_MAX]
        if not short:
            return {}
        span, _ = Counter(short).most_common(1)[0]
        rules = {name: rule for name, rule in self._rules.items() if spans.get(name) == span}
        try:
            for view in sorted(set().union(*(self._views[name] for name in rules))):
                self._copy(view, span)
        except StoreError:
            # Each rule then reports what is wrong with its own query.
            return {}
        return rules

    def _copy(self, view: str, span: Span) -> None:
        if view not in self._columns:
            names = [str(row["column_name"]) for row in self._database.query(f"DESCRIBE {view}")]
            self._columns[view] = [name for name in names if name in self._words]
        columns = self._columns[view]
        bounds = f" WHERE ts >= make_timestamp_ns({span[0]}) AND ts < make_timestamp_ns({span[1]})" if "ts" in columns else ""
        listed = ", ".join(map(identifier, columns))
        self._database.execute(f"CREATE OR REPLACE TEMP TABLE weft_{view} AS SELECT {listed} FROM {view}{bounds}")
