"""A table of byte strings seen on the wire, kept by compiled code: what was seen before is one lookup, never Python.

A key is (parent node, kind, bytes), so that prefixes, paths below them and the members of JSON trees below those are one
tree. New keys are numbered as they come; Python looks at the new numbers after each call and says what they mean. Keys
are compared byte by byte: two strings of one hash are two nodes. The hash is seeded, probing ends after ``PROBES_MAX``
steps, and each stream may add only so many nodes, so that no sender can make lookups slow or fill the table for others.
"""

import secrets
from typing import Any

import numba
import numpy as np
from llvmlite.ir import IntType
from numba import types
from numba.extending import intrinsic

# Kinds of a node: the bytes of a prefix (without its target), a target, a path, a member of a JSON object, an entry of
# a JSON list by its key leaf (name, then value), and by its place.
# NumPy's integers, since of Python's the compiler would make a kernel of its own for each.
PREFIX, TARGET, PATH, MEMBER, ENTRY, PLACE = np.arange(6)

# Columns of ``nodes``.
HASH, PARENT, KIND, OFFSET, FIRST_BYTES, SECOND_BYTES, STREAM = range(7)
COLUMNS = 7

# Items of ``state``.
NODES, ARENA_BYTES, SEED, NODES_MAX, QUOTA = range(5)

REFUSED, NODES_FULL, ARENA_FULL = -1, -2, -3

PROBES_MAX = 64
_PRIME = 0x2545F4914F6CDD1D
_LOW_HALF = 0xFFFFFFFF


def _load(_context, array, at):
    """Return the eight bytes at a place of an array of bytes, as one number: one load, where eight would each be checked and shifted."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        return builder.load(builder.bitcast(place, IntType(64).as_pointer()), align=1)

    return types.int64(array, types.int64), codegen


_word: Any = intrinsic(_load)


@numba.njit
def _mix(h, buffer, at, end):
    while end - at >= 8:
        h = (h ^ _word(buffer, at)) * _PRIME
        h ^= (h >> 32) & _LOW_HALF
        at += 8
    word = end - at
    while at < end:
        word = (word << 8) | np.int64(buffer[at])
        at += 1
    h = (h ^ word) * _PRIME
    return h ^ ((h >> 32) & _LOW_HALF)


@numba.njit
def _same(arena, at, buffer, begin, end):
    k, size = 0, end - begin
    while size - k >= 8 and _word(arena, at + k) == _word(buffer, begin + k):
        k += 8
    while k < size and arena[at + k] == buffer[begin + k]:
        k += 1
    return k == size


@numba.njit
def node_of(table, buffer, stream, parent, kind, a, a_end, b, b_end):
    """Return the node of (parent, kind, buffer[a:a_end] + buffer[b:b_end]), added if it is new.

    Below zero: ``REFUSED`` (the stream's quota or the table's limit), ``NODES_FULL`` or ``ARENA_FULL`` (grow it and call
    again). Below a refused parent everything is refused. A ``PLACE`` has no bytes: its number is ``a_end``, ``a`` being zero.
    """
    slots, nodes, arena, state, _ = table
    if parent < 0 and kind > TARGET:
        return np.int64(REFUSED)
    first, second = a_end - a, b_end - b
    h = (state[SEED] ^ (parent * 8 + kind)) * _PRIME
    if kind == PLACE:
        h = (h ^ first) * _PRIME
        h ^= (h >> 32) & _LOW_HALF
    else:
        h = _mix(h, buffer, a, a_end)
        if second:
            h = _mix(h, buffer, b, b_end)
    mask = slots.shape[0] - 1
    for probe in range(PROBES_MAX):
        place = (h + probe) & mask
        node = np.int64(slots[place]) - 1
        if node < 0:
            return _add(table, buffer, stream, parent, kind, h, place, a, a_end, b, b_end)
        if (
            nodes[node, HASH] == h
            and nodes[node, PARENT] == parent
            and nodes[node, KIND] == kind
            and nodes[node, FIRST_BYTES] == first
            and nodes[node, SECOND_BYTES] == second
        ):
            at = nodes[node, OFFSET]
            if kind == PLACE or (_same(arena, at, buffer, a, a_end) and _same(arena, at + first, buffer, b, b_end)):
                return node
    return np.int64(REFUSED)


@numba.njit
def _add(table, buffer, stream, parent, kind, h, place, a, a_end, b, b_end):
    slots, nodes, arena, state, used = table
    node, at = state[NODES], state[ARENA_BYTES]
    if node >= state[NODES_MAX] or used[stream] >= state[QUOTA]:
        return np.int64(REFUSED)
    # Half full at most, else the probes grow long.
    if node >= nodes.shape[0] or 2 * node >= slots.shape[0]:
        return np.int64(NODES_FULL)
    size = 0 if kind == PLACE else a_end - a + b_end - b
    if at + size > arena.shape[0]:
        return np.int64(ARENA_FULL)
    if kind != PLACE:
        for k in range(a_end - a):
            arena[at + k] = buffer[a + k]
        for k in range(b_end - b):
            arena[at + a_end - a + k] = buffer[b + k]
    nodes[node, HASH], nodes[node, PARENT], nodes[node, KIND] = h, parent, kind
    nodes[node, OFFSET], nodes[node, FIRST_BYTES], nodes[node, SECOND_BYTES] = at, a_end - a, b_end - b
    nodes[node, STREAM] = stream
    slots[place] = node + 1
    state[NODES], state[ARENA_BYTES] = node + 1, at + size
    used[stream] += 1
    return node


@numba.njit(cache=True)
def _rehash(slots, nodes, count):
    mask = slots.shape[0] - 1
    for node in range(count):
        place = nodes[node, HASH] & mask
        while slots[place]:
            place = (place + 1) & mask
        slots[place] = node + 1


class NodeTable:
    """The table's arrays, grown by doubling up to ``nodes_max`` nodes, of which each stream adds at most ``quota``."""

    def __init__(self, nodes_max: int, quota: int) -> None:
        self._slots = np.zeros(4096, np.int32)
        self._nodes = np.zeros((2048, COLUMNS), np.int64)
        self._arena = np.zeros(64 * 1024, np.uint8)
        self._state = np.array([0, 0, secrets.randbits(62), nodes_max, quota], np.int64)
        self._used = np.zeros(16, np.int64)

    def __len__(self) -> int:
        return int(self._state[NODES])

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What ``node_of`` takes as ``table``."""
        return self._slots, self._nodes, self._arena, self._state, self._used

    def streams(self, count: int) -> None:
        """Make room for the quotas of ``count`` streams."""
        if count > len(self._used):
            self._used = np.concatenate((self._used, np.zeros(max(count, len(self._used)), np.int64)))

    def grow(self, reason: int) -> None:
        """Double what ``node_of`` found too small."""
        if reason == ARENA_FULL:
            self._arena = np.concatenate((self._arena, np.zeros_like(self._arena)))
            return
        self._nodes = np.concatenate((self._nodes, np.zeros_like(self._nodes)))
        self._slots = np.zeros(2 * len(self._slots), np.int32)
        _rehash(self._slots, self._nodes, len(self))

    def parent(self, node: int) -> int:
        return int(self._nodes[node, PARENT])

    def kind(self, node: int) -> int:
        return int(self._nodes[node, KIND])

    def parts(self, node: int) -> tuple[bytes, bytes]:
        """Return the bytes of a node in its two parts; of a ``PLACE`` its number as text."""
        at, first, second = (int(self._nodes[node, column]) for column in (OFFSET, FIRST_BYTES, SECOND_BYTES))
        if self.kind(node) == PLACE:
            return b"%d" % first, b""
        return self._arena[at : at + first].tobytes(), self._arena[at + first : at + first + second].tobytes()
