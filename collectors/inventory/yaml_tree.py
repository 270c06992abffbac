"""YAML as plain text, lists and tables, in time and memory linear in the file.

A topology is read from whoever keeps it, so its YAML is not trusted. The parser's events are made into a tree here:
every scalar stays the text that was written (no tag, no type and no object is ever made of it), and an alias is the very node that
it names. What an alias or a merge key (``<<``) would unfold to is counted before anybody walks the tree; a file whose few
lines stand for millions of nodes is refused.
"""

from pathlib import Path
from typing import Any

import yaml

from ...pipeline.errors import InputError

# Nodes that a file may unfold to; a link of a topology takes seven.
NODES_MAX = 4_000_000
DEPTH_MAX = 64

# A table, a list or a text.
Node = dict | list | str

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "<<"
# How YAML writes that there is nothing.
_NOTHING = ("~", "null", "Null", "NULL")


class _Builder:
    """The tree so far: open tables and lists on a stack, each with the number of nodes that it unfolds to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[list[Any]] = []  # [node, pending key, size, anchor]
        self._anchors: dict[str, tuple[Node, int] | None] = {}
        self.root: Node = ""

    def fault(self, event: Any, problem: str, hint: str) -> InputError:
        return InputError(str(self._path), f"line {event.start_mark.line + 1}: {problem}", hint)

    def open(self, node: Node, event: Any) -> None:
        if len(self._stack) >= DEPTH_MAX:
            raise self.fault(event, f"is nested deeper than {DEPTH_MAX}", "no topology is; take the file from its source again")
        if event.anchor:
            self._anchors[event.anchor] = None
        self._stack.append([node, None, 1, event.anchor])

    def close(self, event: Any) -> None:
        node, _, size, anchor = self._stack.pop()
        self.add(node, size, anchor, event)

    def add(self, node: Node, size: int, anchor: str | None, event: Any) -> None:
        """Put a finished node where it belongs."""
        if anchor:
            self._anchors[anchor] = (node, size)
        if not self._stack:
            self.root = node
            return
        top = self._stack[-1]
        top[2] += size
        if top[2] > NODES_MAX:
            raise self.fault(event, f"unfolds to more than {NODES_MAX} nodes", "write out what it refers to, or cut it into several files")
        if isinstance(top[0], list):
            top[0].append(node)
        elif top[1] is None:
            if not isinstance(node, str):
                raise self.fault(event, "a key is a table or a list", "give it a name")
            top[1] = node
        else:
            self._put(top[0], top[1], node, event)
            top[1] = None

    def alias(self, event: Any) -> None:
        known = self._anchors.get(event.anchor)
        if known is None:
            raise self.fault(event, f"*{event.anchor} names nothing that stands before it", f"define &{event.anchor} first")
        self.add(*known, None, event)

    def _put(self, table: dict, key: str, node: Node, event: Any) -> None:
        if key == _MERGE:
            for one in node if isinstance(node, list) else [node]:
                if not isinstance(one, dict):
                    raise self.fault(event, "<< merges what is no table", "name a table")
                for name, value in one.items():
                    table.setdefault(name, value)
            return
        table[key] = node


def read_yaml(path: Path, content: bytes) -> Node:
    """Return the first document in ``content``; all scalars are text. Raises ``InputError`` with the line of what is wrong."""
    builder = _Builder(path)
    try:
        for event in yaml.parse(content, Loader=_LOADER):
            if isinstance(event, yaml.ScalarEvent):
                builder.add("" if event.implicit[0] and event.value in _NOTHING else event.value, 1, event.anchor, event)
            elif isinstance(event, yaml.AliasEvent):
                builder.alias(event)
            elif isinstance(event, yaml.MappingStartEvent):
                builder.open({}, event)
            elif isinstance(event, yaml.SequenceStartEvent):
                builder.open([], event)
            elif isinstance(event, yaml.CollectionEndEvent):
                builder.close(event)
            elif isinstance(event, yaml.DocumentEndEvent):
                break
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).split("\n", maxsplit=1)[0]
        place = f"line {mark.line + 1}: " if mark is not None else ""
        raise InputError(str(path), f"{place}is not YAML ({problem})", "correct that line") from None
    return builder.root
