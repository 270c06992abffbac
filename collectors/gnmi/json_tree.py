"""JSON values to leaves: each scalar with the node of its path.

A member of an object is a node below the object's; so is an entry of a list of objects, named by its key leaf (the member
``name``, else one whose name ends in ``name``, ``id``, ``number`` or ``index``) or by its place. Any other list is one leaf,
its JSON text. ``null`` and empty objects are no leaves. Of members of one name the last one counts.

Counted as errors: what is not JSON (``NaN`` and infinities too), nesting above ``DEPTH_MAX``, lists that mix objects with
other values, and more leaves than allowed. Texts that are not Unicode are counted too, and read with replacement characters.
"""

import json
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .kernel import BOOL, DOUBLE, INT, RAW, TEXT, UINT
from .nodes import ENTRY, MEMBER, PLACE, REFUSED, NodeTable

DEPTH_MAX = 16

# A text with more commas and brackets than this for each leaf allowed is refused before it is parsed, which bounds memory.
_MARKS_PER_LEAF = 8

_KEY_ENDINGS = ("name", "id", "number", "index")
_NO_KEY = len(_KEY_ENDINGS) + 1


class _ListText(NamedTuple):
    """A JSON list as text."""

    text: str


class _LargeError(Exception):
    """A value has more leaves than allowed."""


class _NulError(Exception):
    """A text holds NUL, so NUL does not separate texts."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_KINDS = {str: TEXT, _ListText: RAW, int: INT, float: DOUBLE, bool: BOOL}


class Leaves(NamedTuple):
    """Columns of n leaves: node, kind and bits as in ``kernel``, (n,) int64.

    ``content`` is the bytes of their texts, a NUL behind each; ``size`` (n,) int64 counts it.
    """

    node: np.ndarray
    kind: np.ndarray
    bits: np.ndarray
    size: np.ndarray
    content: bytes


_NONE = Leaves(*(np.zeros(0, np.int64) for _ in range(4)), content=b"")


class JsonTrees:
    """Collects the leaves of JSON values. ``counts`` is added to; nodes are cached, one entry at most for each node of the table."""

    def __init__(self, table: NodeTable, leaves_max: int, counts: Counter[str]) -> None:
        self._table, self._leaves_max, self._counts = table, leaves_max, counts
        self._below: dict[int, dict[object, int]] = {}
        # The last object of texts at a node: its names, and columns of their leaves.
        self._last: dict[int, tuple[tuple[str, ...], tuple[np.ndarray, ...]]] = {}
        self._parts: list[Leaves] = []
        # The value being read: stream, whether a text holds NUL, leaves in parts, and those not yet in a part, of one sort at a
        # time: node and value of each, or columns and texts of whole objects.
        self._stream, self._has_nul, self._count = 0, False, 0
        self._nodes: list[int] = []
        self._values: list[Any] = []
        self._objects: list[tuple[np.ndarray, ...]] = []
        self._texts: list[str] = []

    def read(self, stream: int, root: int, raw: bytes) -> int:
        """Collect the leaves of a JSON text below a node; return how many."""
        parts, self._stream, self._has_nul, self._count = len(self._parts), stream, False, 0
        marks, reason = _MARKS_PER_LEAF * self._leaves_max, ""
        try:
            if len(raw) > marks and sum(map(raw.count, (b",", b"[", b"{"))) > marks:
                raise _LargeError
            tree = _DECODER.decode(self._text(raw))
            try:
                self._tree(root, tree)
            except _NulError:
                self._drop(parts)
                self._has_nul = True
                self._tree(root, tree)
        except _LargeError:
            reason = "json_large"
        except (ValueError, RecursionError):
            reason = "json"
        if reason:
            self._counts[reason] += 1
            self._drop(parts)
        return self._count

    def take(self) -> Leaves:
        """Return the leaves collected since the last call."""
        parts, self._parts = [_NONE, *self._parts], []
        node, kind, bits, size = (np.concatenate([part[column] for part in parts]) for column in range(4))
        return Leaves(node, kind, bits, size, b"".join(part.content for part in parts))

    def _tree(self, root: int, tree: Any) -> None:
        self._value(root, tree, 0)
        self._gather()
        if self._count > self._leaves_max:
            raise _LargeError

    def _drop(self, parts: int) -> None:
        """Drop the leaves of the value being read: all parts but the first ``parts``."""
        self._nodes, self._values, self._objects, self._texts, self._count = [], [], [], [], 0
        del self._parts[parts:]

    def _gather(self) -> None:
        """Make a part of the leaves that are in none yet."""
        if self._texts:
            content = "".join(self._texts).encode()
            ends = np.flatnonzero(np.frombuffer(content, np.uint8) == 0)
            node, kind, bits = (np.concatenate(columns) for columns in zip(*self._objects, strict=True))
            if len(node) != len(ends):
                raise _NulError
            self._parts.append(Leaves(node, kind, bits, np.diff(ends, prepend=-1), content))
            self._count += len(ends)
            self._objects, self._texts = [], []
        if self._nodes:
            values, kind = self._values, np.array([_KINDS[type(value)] for value in self._values], np.int64)
            bits, texts = np.zeros(len(values), np.int64), [b"\0"] * len(values)
            for row, value in enumerate(values):
                if kind[row] == TEXT or kind[row] == RAW:
                    texts[row] = self._encoded(value if kind[row] == TEXT else value.text) + b"\0"
                else:
                    kind[row], bits[row] = _number(value)
            size = np.array(list(map(len, texts)), np.int64)
            self._parts.append(Leaves(np.array(self._nodes, np.int64), kind, bits, size, b"".join(texts)))
            self._count += len(values)
            self._nodes, self._values = [], []

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._counts["not_utf8"] += 1
            return raw.decode(errors="replace")

    def _encoded(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            # A surrogate without its partner, written as an escape.
            self._counts["not_utf8"] += 1
            return text.encode(errors="replace")

    def _value(self, node: int, value: Any, depth: int) -> None:
        """Collect the leaves of a value in ``depth`` objects and lists."""
        if isinstance(value, dict):
            self._object(node, value, depth)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for place, entry in enumerate(value):
                if not isinstance(entry, dict):
                    raise ValueError("a list of objects holds another value")
                self._object(self._entry(node, place, entry), entry, depth + 1)
        elif value is not None:
            if self._texts:
                self._gather()
            self._nodes.append(node)
            self._values.append(_list_text(value, depth) if isinstance(value, list) else value)

    def _object(self, node: int, members: dict[str, Any], depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise ValueError("nested too deep")
        names, known, text = tuple(members), self._below.setdefault(node, {}) if node >= 0 else {}, _joined(members)
        if text is None or self._has_nul:
            for name, value in members.items():
                self._value(self._member(known, node, name), value, depth + 1)
            return
        # Most leaves come in objects of texts that have the same names each time.
        last = self._last.get(node)
        if last is None or last[0] != names:
            nodes = np.array([self._member(known, node, name) for name in names], np.int64)
            last = names, (nodes, np.full(len(nodes), TEXT, np.int64), np.zeros(len(nodes), np.int64))
            # With refused names it would not be bounded by the size of the table.
            if len(known) >= len(names):
                self._last[node] = last
        if self._nodes:
            self._gather()
        self._objects.append(last[1])
        self._texts.append(text)

    def _member(self, known: dict[object, int], parent: int, name: str) -> int:
        child = known.get(name)
        return self._node(known, parent, MEMBER, name) if child is None else child

    def _entry(self, parent: int, place: int, members: dict[str, Any]) -> int:
        """Return the node of an entry of a list."""
        known = self._below.setdefault(parent, {}) if parent >= 0 else {}
        scalars = [name for name, value in members.items() if not isinstance(value, dict | list)]
        name = min(scalars, key=_rank, default="")
        if _rank(name) == _NO_KEY:
            kind, key = PLACE, place
        else:
            value = members[name]
            kind, key = ENTRY, (name, value if isinstance(value, str) else json.dumps(value))
        child = known.get(key)
        return self._node(known, parent, kind, key) if child is None else child

    def _node(self, known: dict[object, int], parent: int, kind: int | np.integer, key: object) -> int:
        """Return the node of a member's name, an entry's name and value, or a place; remember it in ``known``."""
        if parent < 0:
            return REFUSED
        if self._count + len(self._nodes) > self._leaves_max:
            raise _LargeError
        first, second = key if isinstance(key, tuple) else (str(key), "")
        parts = first.encode(errors="replace"), second.encode(errors="replace")
        node = self._table.node(self._stream, parent, int(kind), *parts)
        # Different names that cannot be encoded may share a node; to cache them would have no bound.
        if node >= 0 and (parts[0].decode(), parts[1].decode()) == (first, second):
            known[key] = node
        return node


def _joined(members: dict[str, Any]) -> str | None:
    """Return the values of members with a NUL behind each; ``None`` where one is no text, or cannot be UTF-8."""
    try:
        text = "\0".join(members.values()) + "\0" if members else ""
        return text if text.isascii() or text.encode() else None
    except (TypeError, UnicodeEncodeError):
        return None


@lru_cache(4096)
def _rank(name: str) -> int:
    """Return how well a member's name fits a list's key: 0 best, ``_NO_KEY`` not at all."""
    if name == "name" or name.endswith(":name"):
        return 0
    return next((rank for rank, ending in enumerate(_KEY_ENDINGS, 1) if name.endswith(ending)), _NO_KEY)


def _number(value: float) -> tuple[int | np.integer, int]:
    """Return kind and 64 bits of a number; whole numbers beyond 64 bits are doubles."""
    if isinstance(value, bool):
        return BOOL, int(value)
    if isinstance(value, int):
        if 0 <= value < 2**64:
            return UINT, value - 2**64 if value >= 2**63 else value
        if -(2**63) <= value < 0:
            return INT, value
        try:
            value = float(value)
        except OverflowError:
            value = float("inf") if value > 0 else float("-inf")
    return DOUBLE, int(np.float64(value).view(np.int64))


def _list_text(value: list[Any], depth: int) -> _ListText:
    """Return a list as text. Raises ``ValueError`` where it is nested too deep."""
    level: list[Any] = [value]
    while level:
        if depth >= DEPTH_MAX:
            raise ValueError("nested too deep")
        depth += 1
        inner = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in inner if isinstance(child, dict | list)]
    return _ListText(json.dumps(value, ensure_ascii=False))
