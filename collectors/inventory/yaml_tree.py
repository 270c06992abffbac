"""YAML as plain text, lists and tables, in time and memory linear in the file.

A topology file is not trusted. One pass over the parser's events bounds how deep it is nested and how many nodes its aliases and merge
keys (``<<``) stand for; then the library builds the tree, in which every scalar stays the text that was written.
"""

import re
from pathlib import Path
from typing import ClassVar

import yaml

from ...pipeline.errors import InputError

# Nodes that a file may unfold to; a link of a topology takes seven.
NODES_MAX = 4_000_000
DEPTH_MAX = 64

# A table, a list or a text.
Node = dict | list | str

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class _TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads every scalar as text, never as an object, number or date; null is the empty text."""

    yaml_constructors: ClassVar = {_NULL: lambda _loader, _node: ""}
    yaml_implicit_resolvers: ClassVar = {
        **{first: [(_NULL, re.compile("^(?:~|[nN]ull|NULL)$"))] for first in "~nN"},
        "<": [(_MERGE, re.compile("^<<$"))],
    }


def read_yaml(path: Path, content: bytes) -> Node:
    """Return the first document in ``content``; all scalars are text. Raises ``InputError`` with the line of what is wrong."""
    try:
        _check(path, content)
        return next(iter(yaml.load_all(content, Loader=_TextLoader)), "")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).split("\n", maxsplit=1)[0]
        place = f"line {mark.line + 1}: " if mark is not None else ""
        wrong = "cannot be used" if isinstance(error, yaml.constructor.ConstructorError) else "is not YAML"
        raise InputError(str(path), f"{place}{wrong} ({problem})", "correct that line") from None


def _check(path: Path, content: bytes) -> None:
    """Raise ``InputError`` where the first document is nested too deep, unfolds to too many nodes, or contains itself."""
    sizes: dict[str, int] = {}
    nested: list[tuple[str | None, int]] = [(None, 0)]  # of the document and each open node: its anchor, and its nodes so far
    for event in yaml.parse(content, Loader=_TextLoader):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            nested.append((event.anchor, 0))
            if len(nested) > DEPTH_MAX + 1:
                raise InputError(
                    str(path), f"{line}: is nested deeper than {DEPTH_MAX}", "no topology is; take the file from its source again"
                )
            continue
        if isinstance(event, yaml.DocumentEndEvent):
            return
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = nested.pop()
            size += 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise InputError(str(path), f"{line}: *{event.anchor} names nothing that stands before it", f"define &{event.anchor} first")
            anchor, size = None, sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        if anchor:
            sizes[anchor] = size
        outer, total = nested[-1]
        if total + size > NODES_MAX:
            raise InputError(
                str(path), f"{line}: unfolds to more than {NODES_MAX} nodes", "write out what it refers to, or cut it into several files"
            )
        nested[-1] = outer, total + size
