"""Paths seen on the wire, numbered: a path that was seen before is one lookup in compiled code.

A key is (parent node, kind, bytes), so prefixes, paths below them and members of JSON trees below those form one tree. New
keys are numbered in order; ``Meanings`` interprets the new numbers after each call. Each stream may add a limited number of
nodes, so no sender can fill the table for others.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..wire.hash_table import EMPTY, mix, mix_bytes, new_index, new_seed, place_of, refill, same_bytes, seek
from . import kernel

# Kinds of a node: the bytes of a prefix (without its target), a target, a path, a member of a JSON object, an entry of
# a JSON list by its key leaf (name, then value), and by its place. NumPy's integers, since Numba compiles a kernel again for
# each Python constant.
PREFIX, TARGET, PATH, MEMBER, ENTRY, PLACE = np.arange(6)

# Columns of ``nodes``: bytes of the first and of the second part begin at OFFSET of the arena.
PARENT, NODE_KIND, OFFSET, FIRST_BYTES, SECOND_BYTES = range(5)
COLUMNS = 5

# Items of ``state``.
NODES, ARENA_BYTES, SEED, NODES_MAX, QUOTA = range(5)

# Returned instead of a node: above the stream's quota or the table's limit, or a part of the table has to grow.
REFUSED, NODES_FULL, ARENA_FULL = -1, -2, -3


class NodeArrays(NamedTuple):
    """Arrays of the table: index int32 and hashes (nodes,) int64 (see ``hash_table``), nodes (nodes, COLUMNS) int64, arena uint8.

    state (5,) int64; used (streams,) int64: nodes that each stream added.
    """

    index: np.ndarray
    hashes: np.ndarray
    nodes: np.ndarray
    arena: np.ndarray
    state: np.ndarray
    used: np.ndarray


class NodeKey(NamedTuple):
    """NodeKey of a node: its bytes are ``buffer[first:first_end]``, then ``buffer[second:second_end]``; ``stream`` pays if it is new."""

    stream: int | np.integer
    parent: int | np.integer
    kind: int | np.integer
    first: int | np.integer
    first_end: int | np.integer
    second: int | np.integer
    second_end: int | np.integer


@numba.njit
def _node_of(table, buffer, key):
    """Return the node of a key, added if it is new, else below zero why not; below a refused parent everything is refused."""
    if key.parent < 0 and key.kind > TARGET:
        return np.int64(REFUSED)
    first, second = key.first_end - key.first, key.second_end - key.second
    h = mix(table.state[SEED], key.parent * 8 + key.kind)
    h = mix_bytes(h, buffer, key.first, key.first_end)
    if second:
        h = mix_bytes(h, buffer, key.second, key.second_end)
    probe = seek(table.index, table.hashes, h, 0)
    while probe >= 0:
        node = np.int64(table.index[place_of(table.index, h, probe)])
        if node == EMPTY:
            return _add(table, buffer, key, h, probe)
        row = table.nodes[node]
        same = row[PARENT] == key.parent and row[NODE_KIND] == key.kind and row[FIRST_BYTES] == first and row[SECOND_BYTES] == second
        if (
            same
            and same_bytes(table.arena, row[OFFSET], buffer, key.first, key.first_end)
            and same_bytes(table.arena, row[OFFSET] + first, buffer, key.second, key.second_end)
        ):
            return node
        probe = seek(table.index, table.hashes, h, probe + 1)
    return np.int64(REFUSED)


@numba.njit
def _add(table, buffer, key, h, probe):
    """Add a key of hash ``h`` (int64) at its ``probe``-th probe; return its node, or below zero why not."""
    state, first, second = table.state, key.first_end - key.first, key.second_end - key.second
    node, at = state[NODES], state[ARENA_BYTES]
    if node >= state[NODES_MAX] or table.used[key.stream] >= state[QUOTA]:
        return np.int64(REFUSED)
    if node >= table.nodes.shape[0]:
        return np.int64(NODES_FULL)
    if at + first + second > table.arena.shape[0]:
        return np.int64(ARENA_FULL)
    table.arena[at : at + first] = buffer[key.first : key.first_end]
    table.arena[at + first : at + first + second] = buffer[key.second : key.second_end]
    row = table.nodes[node]
    row[PARENT], row[NODE_KIND], row[OFFSET], row[FIRST_BYTES], row[SECOND_BYTES] = key.parent, key.kind, at, first, second
    table.hashes[node] = h
    table.index[place_of(table.index, h, probe)] = node
    state[NODES], state[ARENA_BYTES] = node + 1, at + first + second
    table.used[key.stream] += 1
    return node


@numba.njit(cache=True, nogil=True)
def resolve(table, buffer, streams, notifications, updates, first):
    """Set the node of each update from ``first`` on, and the node of its notification's target (columns: see ``kernel``).

    buffer uint8; streams (messages,) int32; notifications and updates (rows, COLUMNS) int64.

    Returns (the next update, 0), or ``NODES_FULL`` or ``ARENA_FULL`` instead of 0: grow the table and call again from there.
    """
    none, last, prefix, stream = np.int64(0), np.int64(-1), np.int64(-1), np.int64(0)
    for u in range(first, updates.shape[0]):
        if updates[u, kernel.NOTE] != last:
            last = updates[u, kernel.NOTE]
            note = notifications[last]
            stream = np.int64(streams[note[kernel.MESSAGE]])
            root = np.int64(-1)
            spans = (note[kernel.PREFIX], note[kernel.TARGET_FIELD], note[kernel.TARGET_END], note[kernel.PREFIX_END])
            prefix = _node_of(table, buffer, NodeKey(stream, root, PREFIX, *spans))
            target = np.int64(-1)
            if prefix >= REFUSED and note[kernel.TARGET] < note[kernel.TARGET_END]:
                target = _node_of(table, buffer, NodeKey(stream, root, TARGET, note[kernel.TARGET], note[kernel.TARGET_END], none, none))
            if prefix < REFUSED or target < REFUSED:
                return u, min(prefix, target)
            note[kernel.TARGET_NODE] = target
        row = updates[u]
        node = prefix
        if row[kernel.KIND] != kernel.REPLACE:
            node = _node_of(table, buffer, NodeKey(stream, prefix, PATH, row[kernel.PATH], row[kernel.PATH_END], none, none))
        if node < REFUSED:
            return u, node
        row[kernel.NODE] = node
    return updates.shape[0], np.int64(0)


@numba.njit(cache=True)
def _find(table, buffer, key):
    """Return ``_node_of`` of a key whose numbers are all int64."""
    return _node_of(table, buffer, key)


class NodeTable:
    """The table's arrays, grown by doubling up to ``nodes_max`` nodes, of which each stream adds at most ``quota``."""

    def __init__(self, nodes_max: int, quota: int) -> None:
        state = np.array([0, 0, new_seed(), nodes_max, quota], np.int64)
        nodes, arena = np.zeros((2048, COLUMNS), np.int64), np.zeros(64 * 1024, np.uint8)
        self._arrays = NodeArrays(new_index(len(nodes)), np.zeros(len(nodes), np.int64), nodes, arena, state, np.zeros(16, np.int64))

    def __len__(self) -> int:
        return int(self._arrays.state[NODES])

    def streams(self, count: int) -> None:
        """Make room for the quotas of ``count`` streams."""
        used = self._arrays.used
        if count > len(used):
            self._arrays = self._arrays._replace(used=np.concatenate((used, np.zeros(max(count, len(used)), np.int64))))

    def resolve(self, buffer: np.ndarray, streams: np.ndarray, notifications: np.ndarray, updates: np.ndarray) -> None:
        """Set the nodes of updates, and of the targets of their notifications (see ``kernel``)."""
        at, why = resolve(self._arrays, buffer, streams, notifications, updates, 0)
        while why:
            self._grow(int(why))
            at, why = resolve(self._arrays, buffer, streams, notifications, updates, at)

    def node(self, stream: int, parent: int, kind: int, first: bytes, second: bytes = b"") -> int:
        """Return the node of (parent, kind, first and second bytes), added if it is new; ``REFUSED`` without room."""
        buffer = np.frombuffer(first + second or b"\0", np.uint8)
        key = NodeKey(stream, parent, int(kind), 0, len(first), len(first), len(first) + len(second))
        node = _find(self._arrays, buffer, key)
        while node < REFUSED:
            self._grow(int(node))
            node = _find(self._arrays, buffer, key)
        return int(node)

    def _grow(self, why: int) -> None:
        """Double the arrays that were too small."""
        arrays = self._arrays
        if why == ARENA_FULL:
            self._arrays = arrays._replace(arena=np.concatenate((arrays.arena, np.zeros_like(arrays.arena))))
            return
        nodes, hashes = (np.concatenate((one, np.zeros_like(one))) for one in (arrays.nodes, arrays.hashes))
        index = new_index(len(nodes))
        refill(index, hashes, len(self))
        self._arrays = arrays._replace(index=index, hashes=hashes, nodes=nodes)

    def parent(self, node: int) -> int:
        return int(self._arrays.nodes[node, PARENT])

    def kind(self, node: int) -> int:
        return int(self._arrays.nodes[node, NODE_KIND])

    def parts(self, node: int) -> tuple[bytes, bytes]:
        """Return the bytes of a node in its two parts."""
        at, first, second = self._arrays.nodes[node, OFFSET : SECOND_BYTES + 1].tolist()
        raw = self._arrays.arena[at : at + first + second].tobytes()
        return raw[:first], raw[first:]
