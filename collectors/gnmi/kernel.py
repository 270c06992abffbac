"""SubscribeResponses to updates: protobuf walked as it stands in the buffer, no message object made.

A message is taken whole or not at all: where anything in its structure does not fit (a length that runs beyond, a varint of
more than ten bytes, a group), nothing of it counts but the error. Unknown fields are skipped, fields may come in any order,
of a scalar given twice the last counts, as protobuf has it; of a path or value given twice in one update, which no
encoder writes, the last counts too, where protobuf would merge them.

Field numbers are those of gnmi.proto 0.10 (github.com/openconfig/gnmi).
"""

from typing import Any

import numba
import numpy as np
from llvmlite.ir import Constant
from numba.extending import intrinsic

from .json_kernel import (
    BAD,
    BOOL,
    BYTES,
    DELETE,
    DEPTH_MAX,
    DOUBLE,
    FULL,
    INT,
    JSON,
    LIST,
    NONE,
    REPLACE,
    TEXT,
    TOO_MANY,
    UINT,
    leaves,
    put,
)
from .paths_kernel import PATH, PREFIX, TARGET, node_of

# Reasons that are counted, columns of ``counts``.
MALFORMED, ERRORS, DUPLICATES, NO_VALUE, BAD_JSON, LARGE_JSON, EXTENSIONS = range(7)
COUNTS = 7

# Bits of a message's flags.
SYNC, HAS_UPDATE, WRONG = 1, 2, 4

# Why ``walk`` stopped early: its outputs (updates, notifications), or a table that is to grow (``paths_kernel``).
DONE, OUT_FULL, NOTES_FULL = 0, -4, -5

_VARINT_BYTES_MAX = 10
_TAG_MAX = 0xFFFFFFFF


@numba.njit
def varint(buffer, at, end):
    """Return (the 64 bits, position after it); position -1 where it is cut or too long."""
    if at < end and buffer[at] < 128:
        return np.int64(buffer[at]), at + 1
    value = np.int64(0)
    for k in range(min(_VARINT_BYTES_MAX, end - at)):
        byte = np.int64(buffer[at + k])
        value |= (byte & 127) << (7 * k)
        if byte < 128:
            return value, at + k + 1
    return value, np.int64(-1)


@numba.njit
def field(buffer, at, end):
    """Return (tag, value, begin, position after it) of the field at ``at``; position -1 where there is none.

    ``value`` is a varint's, or the size of what begins at ``begin``.
    """
    bad = np.int64(-1)
    tag, at = varint(buffer, at, end)
    if at < 0 or tag < 8 or tag > _TAG_MAX:
        return tag, np.int64(0), at, bad
    wire = tag & 7
    if wire == 0:
        value, after = varint(buffer, at, end)
        return tag, value, at, after
    if wire == 2:
        size, at = varint(buffer, at, end)
        if at < 0 or size < 0 or size > end - at:
            return tag, np.int64(0), at, bad
    elif wire == 1:
        size = np.int64(8)
    elif wire == 5:
        size = np.int64(4)
    else:
        return tag, np.int64(0), at, bad
    return tag, size, at, at + size if size <= end - at else bad


@numba.njit
def _fixed(buffer, at, size):
    value = np.int64(0)
    for k in range(size):
        value |= np.int64(buffer[at + k]) << (8 * k)
    return value


@numba.njit
def _decimal(buffer, at, end):
    """Return (kind, bits) of a Decimal64, kind -1 where it is malformed."""
    digits, precision = np.int64(0), np.int64(0)
    while at < end:
        tag, value, _, at = field(buffer, at, end)
        if at < 0:
            return np.int64(-1), np.int64(0)
        if tag == 0x08:
            digits = value
        elif tag == 0x10:
            precision = value & 0xFFFFFFFF
    if precision == 0:
        return np.int64(INT), digits
    return np.int64(DOUBLE), np.float64(np.float64(digits) / 10.0 ** np.float64(precision)).view(np.int64)


@numba.njit
def _typed(buffer, at, end):
    """Return (kind, bits, begin, size) of a TypedValue, kind -1 where it is malformed."""
    kind, bits, begin, size = np.int64(NONE), np.int64(0), np.int64(0), np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return np.int64(-1), bits, begin, size
        if tag in (0x18, 0x10):
            kind, bits = np.int64(UINT if tag == 0x18 else INT), value
        elif tag == 0x20:
            kind, bits = np.int64(BOOL), np.int64(value != 0)
        elif tag in (0x0A, 0x62):
            kind, begin, size = np.int64(TEXT), start, value
        elif tag in (0x52, 0x5A):
            kind, begin, size = np.int64(JSON), start, value
        elif tag == 0x71:
            kind, bits = np.int64(DOUBLE), _fixed(buffer, start, 8)
        elif tag == 0x35:
            kind, bits = np.int64(DOUBLE), np.float64(np.uint32(_fixed(buffer, start, 4)).view(np.float32)).view(np.int64)
        elif tag == 0x3A:
            kind, bits = _decimal(buffer, start, at)
            if kind < 0:
                return kind, bits, begin, size
        elif tag == 0x42:
            kind, begin, size = np.int64(LIST), start, value
        elif tag in (0x2A, 0x4A, 0x6A):
            kind, begin, size = np.int64(BYTES), start, value
    return kind, bits, begin, size


@numba.njit
def _old_value(buffer, at, end):
    """Return what ``_typed`` does of a Value, the form before TypedValue."""
    kind, begin, size = np.int64(JSON), np.int64(0), np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return np.int64(-1), np.int64(0), begin, size
        if tag == 0x0A:
            begin, size = start, value
        elif tag == 0x10:
            kind = np.int64(JSON if value in (0, 4) else TEXT if value == 3 else BYTES)
    return (kind if size else np.int64(NONE)), np.int64(0), begin, size


@numba.njit
def _parts(buffer, at, end):
    """Return (path begin, path end, (begin, end) of the value, of the old value, duplicates) of an Update; the first -1 if malformed."""
    nothing = (np.int64(0), np.int64(0))
    path, typed, old, duplicates = nothing, nothing, nothing, np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return np.int64(-1), np.int64(0), nothing, nothing, duplicates
        if tag == 0x0A:
            path = (start, at)
        elif tag == 0x1A:
            typed = (start, at)
        elif tag == 0x12:
            old = (start, at)
        elif tag == 0x20:
            duplicates = value & 0xFFFFFFFF
    return path[0], path[1], typed, old, duplicates


@numba.njit
def _update(table, buffer, stream, prefix, at, end, notification, updates, filled, counts, leaves_max, stack):
    """Append an Update; return the new count, or below zero as ``leaves`` does, ``BAD`` for the message."""
    path, path_end, typed, old, duplicates = _parts(buffer, at, end)
    if path < 0:
        return np.int64(BAD)
    kind, bits, begin, size = _typed(buffer, typed[0], typed[1])
    if kind == NONE:
        kind, bits, begin, size = _old_value(buffer, old[0], old[1])
    if kind < 0:
        return np.int64(BAD)
    counts[DUPLICATES] += duplicates
    if kind == NONE:
        counts[NO_VALUE] += 1
        return filled
    node = node_of(table, buffer, stream, prefix, PATH, path, path_end, np.int64(0), np.int64(0))
    if kind == JSON and node >= -1:
        made = leaves(table, buffer, stream, node, begin, begin + size, notification, updates, filled, leaves_max, stack)
        if made in (BAD, TOO_MANY):
            counts[BAD_JSON if made == BAD else LARGE_JSON] += 1
            return filled
        return made
    return _append(updates, filled, notification, node, kind, bits, begin, size)


@numba.njit
def _append(updates, filled, notification, node, kind, bits, begin, size):
    """Append one row; return the new count, ``FULL``, or what ``node`` is where it says what to grow."""
    if node < -1:
        return node
    if filled >= updates[0].shape[0]:
        return np.int64(FULL)
    put(updates, filled, notification, node, kind, bits, begin, size)
    return filled + 1


@numba.njit
def _prefix(table, buffer, stream, at, end):
    """Return (node of a prefix without its target, node of the target or -1); the first below -1 as ``node_of``, ``BAD`` if malformed."""
    begin, target, target_tag, target_end = at, np.int64(-1), end, end
    while at < end:
        here = at
        tag, _, start, at = field(buffer, at, end)
        if at < 0:
            return np.int64(BAD), np.int64(-1)
        if tag == 0x22:
            target_tag, target, target_end = here, start, at
    node = node_of(table, buffer, stream, np.int64(-1), PREFIX, begin, target_tag, target_end, end)
    if node < -1 or target < 0 or target == target_end:
        return node, np.int64(-1)
    device = node_of(table, buffer, stream, np.int64(-1), TARGET, target, target_end, np.int64(0), np.int64(0))
    return (device if device < -1 else node), device


@numba.njit
def _head(buffer, at, end):
    """Return (timestamp, prefix begin, prefix end, atomic, number of deletes) of a Notification; the last -1 where malformed."""
    ts, begin, stop, atomic, deletes = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return ts, begin, stop, atomic, np.int64(-1)
        if tag == 0x08:
            ts = value
        elif tag == 0x12:
            begin, stop = start, at
        elif tag == 0x30:
            atomic = value
        elif tag == 0x2A:
            deletes += 1
    return ts, begin, stop, atomic, deletes


@numba.njit
def _notification(table, buffer, stream, message, at, end, notifications, made, updates, filled, counts, leaves_max, stack):
    """Append a Notification as number ``made``; return the new count of updates, or below zero why not."""
    ts, begin, stop, atomic, deletes = _head(buffer, at, end)
    if deletes < 0:
        return np.int64(BAD)
    prefix, device = _prefix(table, buffer, stream, begin, stop)
    if prefix < -1:
        return prefix
    messages, times, devices = notifications
    messages[made], times[made], devices[made] = message, ts, device
    if atomic:
        filled = _append(updates, filled, made, prefix, REPLACE, np.int64(0), np.int64(0), np.int64(0))
    # What a notification deletes goes before what it sets.
    if deletes and filled >= 0:
        filled = _deletes(table, buffer, stream, prefix, at, end, made, updates, filled)
    while at < end and filled >= 0:
        tag, _, start, at = field(buffer, at, end)
        if tag == 0x22:
            filled = _update(table, buffer, stream, prefix, start, at, made, updates, filled, counts, leaves_max, stack)
    return filled


@numba.njit
def _deletes(table, buffer, stream, prefix, at, end, notification, updates, filled):
    """Append the deletes of a Notification; return the new count, or below zero why not."""
    while at < end:
        tag, _, start, at = field(buffer, at, end)
        if tag == 0x2A:
            node = node_of(table, buffer, stream, prefix, PATH, start, at, np.int64(0), np.int64(0))
            filled = _append(updates, filled, notification, node, DELETE, np.int64(0), np.int64(0), np.int64(0))
            if filled < 0:
                return filled
    return filled


@numba.njit
def _message(table, buffer, stream, message, at, end, notifications, made, updates, filled, counts, leaves_max, stack):
    """Append a SubscribeResponse; return (notifications, updates, flags), updates below zero where nothing of it counts."""
    flags = np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return made, np.int64(BAD), flags
        if tag == 0x0A:
            if made >= notifications[0].shape[0]:
                return made, np.int64(NOTES_FULL), flags
            before = filled
            filled = _notification(
                table, buffer, stream, message, start, at, notifications, made, updates, filled, counts, leaves_max, stack
            )
            if filled < 0:
                return made, filled, flags
            # One that says nothing is not kept, so that its size bounds what a message makes.
            made += np.int64(filled > before)
            flags |= HAS_UPDATE
        elif tag == 0x18:
            flags |= SYNC if value else 0
        elif tag == 0x22:
            counts[ERRORS] += 1
        elif tag == 0x2A:
            counts[EXTENSIONS] += 1
    return made, filled, flags


def _lend(_context, array):
    """Return an array that counts no references: handing a counted one from kernel to kernel costs two atomic additions.

    Its memory is held by the caller's array, so it must not be returned.
    """

    def codegen(context, builder, signature, arguments):
        bare = context.make_array(signature.args[0])(context, builder, arguments[0])
        bare.meminfo = Constant(bare.meminfo.type, None)
        return bare._getvalue()

    return array(array), codegen


_lent: Any = intrinsic(_lend)


@numba.njit(cache=True, nogil=True)
def walk(buffer, offsets, lengths, streams, first, table, notifications, updates, filled, counts, flags, leaves_max):
    """Walk the messages from ``first`` on.

    Args:
        buffer, offsets, lengths: the messages' bytes and where each of the n lies; within the buffer.
        streams: (n,) index of the stream that each came by.
        table: arrays of a ``NodeTable``.
        notifications: message (int32), timestamp as on the wire (int64), target's node or -1 (int32) of each notification.
        updates: notification, node (int32; -1 refused), kind (uint8), bits (int64), begin and size in the buffer (int32).
        filled: (notifications, updates) that the outputs hold already.
        counts: (COUNTS,) int64, added to. flags: (n,) uint8, set.
        leaves_max: leaves of one JSON value.

    Returns:
        The message at which it stopped (n at the end), why (``DONE``, ``OUT_FULL``, ``NOTES_FULL``, ``NODES_FULL``,
        ``ARENA_FULL``), and the two counts of ``filled``. Call again from there with more room.
    """
    buffer, places = _lent(buffer), np.empty((2, DEPTH_MAX + 1), np.int64)
    stack = (_lent(places[0]), _lent(places[1]))
    table = (_lent(table[0]), _lent(table[1]), _lent(table[2]), _lent(table[3]), _lent(table[4]))
    notifications = (_lent(notifications[0]), _lent(notifications[1]), _lent(notifications[2]))
    notes, nodes, kinds, numbers, begins, sizes = updates
    updates = (_lent(notes), _lent(nodes), _lent(kinds), _lent(numbers), _lent(begins), _lent(sizes))
    made, done = np.int64(filled[0]), np.int64(filled[1])
    before = np.empty_like(counts)
    for message in range(first, offsets.shape[0]):
        at = offsets[message]
        before[:] = counts
        got, count, flag = _message(
            table,
            buffer,
            streams[message],
            message,
            at,
            at + lengths[message],
            notifications,
            made,
            updates,
            done,
            counts,
            leaves_max,
            stack,
        )
        if count < 0:
            counts[:] = before
            if count != BAD:
                return message, (OUT_FULL if count == FULL else count), made, done
            counts[MALFORMED] += 1
            flags[message] = WRONG
            continue
        made, done = got, count
        flags[message] = flag
    return offsets.shape[0], np.int64(DONE), made, done
