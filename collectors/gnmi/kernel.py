"""SubscribeResponses to updates: protobuf walked in place in the buffer, without message objects.

A message counts whole or not at all: if anything in its structure does not fit, only the error counts. If a scalar is given
twice, the last one counts, as in protobuf; so does the last of two paths or values in one update, which protobuf would merge
but no encoder writes.

Field numbers are those of gnmi.proto 0.10 (github.com/openconfig/gnmi).
"""

from typing import NamedTuple

import numba
import numpy as np

from ..wire.protobuf import field, fixed32, fixed64

# Kinds of an update's value. TEXT, BYTES, LIST (a ScalarArray), RAW (a JSON list) and JSON are bytes of the buffer. DELETE and
# REPLACE are no values: what a notification deletes, or replaces as a whole. NumPy's integers, since Numba compiles a kernel
# again for each Python constant.
NONE, UINT, INT, DOUBLE, BOOL, TEXT, BYTES, LIST, RAW, JSON, DELETE, REPLACE = np.arange(12)

# Columns of updates: number of the notification, node of the path (-1: refused), kind and 64 bits of the value, begin and
# size in the buffer of a value that is bytes, begin and end there of the path.
NOTE, NODE, KIND, BITS, BEGIN, SIZE, PATH, PATH_END = range(8)

# Columns of notifications: number of the message, timestamp as on the wire, begin and end of the prefix, of its target's
# field, and of the target; node of the target or -1.
MESSAGE, TS, PREFIX, PREFIX_END, TARGET_FIELD, TARGET, TARGET_END, TARGET_NODE = range(8)
COLUMNS = 8

# Reasons that are counted, items of ``counts``.
MALFORMED, ERRORS, DUPLICATES, NO_VALUE, EXTENSIONS = range(5)
COUNTS = 5

# Bits of a message's flags.
SYNC, HAS_UPDATE, WRONG = 1, 2, 4

# Returned instead of a count of updates: the message is malformed, or there is no room for more updates or notifications.
_BAD, UPDATES_FULL, NOTES_FULL = -1, -2, -3

_SPACE, _QUOTE, _BACKSLASH = 32, 34, 92
_ZERO, _NINE, _MINUS, _PLUS, _DOT, _LITTLE_E, _BIG_E = 48, 57, 45, 43, 46, 101, 69
_TENTH_MAX = (2**64 - 1) // 10
_POWERS = np.array([10.0**power for power in range(309)])


class RawMessages(NamedTuple):
    """Messages as received: their bytes (uint8), and where each of the n lies in them (int64)."""

    buffer: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


class GnmiWalk(NamedTuple):
    """The output of a walk: notifications and updates (rows, COLUMNS) int64, filled (2,) int64 rows of each.

    counts (COUNTS,) int64 is added to, flags (n,) uint8 is set for each message.
    """

    notifications: np.ndarray
    updates: np.ndarray
    filled: np.ndarray
    counts: np.ndarray
    flags: np.ndarray


@numba.njit
def _digits(buffer, at, end):
    """Return (digits, power of ten that they lack, whether they are whole and all there, position after them).

    Digits above 64 bits are dropped; the position is -1 where there is no digit, or none after a point.
    """
    digits, power, point, begin, large = np.uint64(0), np.int64(0), np.int64(-1), at, False
    while at < end:
        byte = np.int64(buffer[at])
        if _ZERO <= byte <= _NINE:
            digit = np.uint64(byte - _ZERO)
            large = large or digits > np.uint64(_TENTH_MAX) or (digits == np.uint64(_TENTH_MAX) and digit > np.uint64(5))
            if large:
                power += 1
            else:
                digits = digits * np.uint64(10) + digit
            power -= np.int64(point >= 0)
        elif byte == _DOT and point < 0 and at > begin:
            point = at
        else:
            break
        at += 1
    return digits, power, point < 0 and not large, (np.int64(-1) if at in (begin, point + 1) else at)


@numba.njit
def number(buffer, at, end):
    """Return (kind, bits, position after it) of the number at ``at`` by JSON's grammar; kind NONE where there is none.

    Whole numbers without point and exponent are exact in 64 bits. Others are doubles: exact as text to double can be where
    the digits are below 2^53 and the power of ten at most 22, else within a few units of the last place.
    """
    negative = at < end and buffer[at] == _MINUS
    digits, power, whole, at = _digits(buffer, at + 1 if negative else at, end)
    if at >= 0 and at < end and (buffer[at] == _LITTLE_E or buffer[at] == _BIG_E):
        more, at = _exponent(buffer, at + 1, end)
        power, whole = power + more, False
    if at < 0:
        return NONE, np.int64(0), at
    if whole and not negative:
        return UINT, np.int64(digits), at
    if whole and digits <= np.uint64(1 << 63):
        return INT, -np.int64(digits), at
    value = _scaled(digits, power)
    return DOUBLE, np.float64(-value if negative else value).view(np.int64), at


@numba.njit
def _exponent(buffer, at, end):
    """Return (power, position after it), position -1 without a digit."""
    negative = at < end and buffer[at] == _MINUS
    if at < end and (buffer[at] == _MINUS or buffer[at] == _PLUS):
        at += 1
    power, begin = np.int64(0), at
    while at < end and _ZERO <= buffer[at] <= _NINE:
        power = min(power * 10 + np.int64(buffer[at]) - _ZERO, np.int64(100_000))
        at += 1
    return (-power if negative else power), (at if at > begin else np.int64(-1))


@numba.njit
def _scaled(digits, power):
    """Return digits times ten to the power."""
    value = np.float64(digits)
    if power == 0 or digits == np.uint64(0):
        return value
    if power > 308:
        return np.inf
    if power > 0:
        return value * _POWERS[power]
    if power < -308:
        value /= _POWERS[308]
        power += 308
    return value / _POWERS[-power] if power >= -308 else 0.0


@numba.njit
def _json(buffer, at, end):
    """Return (kind, bits, begin, size) of a JSON text: TEXT or a number if it is only that, without escapes or spaces, else JSON."""
    if end - at >= 2 and buffer[at] == _QUOTE:
        k = at + 1
        while k < end and buffer[k] >= _SPACE and buffer[k] != _QUOTE and buffer[k] != _BACKSLASH:
            k += 1
        if k == end - 1 and buffer[k] == _QUOTE:
            return np.int64(TEXT), np.int64(0), at + 1, end - at - 2
    elif end - at == 1 or (at < end and buffer[at] != _ZERO and buffer[at] != _MINUS):
        kind, bits, after = number(buffer, at, end)
        if kind != NONE and after == end:
            return np.int64(kind), bits, at, end - at
    return np.int64(JSON), np.int64(0), at, end - at


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
            kind, bits = np.int64(DOUBLE), fixed64(buffer, start)
        elif tag == 0x35:
            kind, bits = np.int64(DOUBLE), np.float64(np.uint32(fixed32(buffer, start)).view(np.float32)).view(np.int64)
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
    """Return the same as ``_typed`` for a Value, the older form of TypedValue."""
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
def _update(buffer, at, end, note, out):
    """Append an Update of notification ``note`` to ``out``; return the new count of updates, or below zero why not."""
    path, path_end = np.int64(0), np.int64(0)
    typed, typed_end, old, old_end = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    duplicates = np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return np.int64(_BAD)
        if tag == 0x0A:
            path, path_end = start, at
        elif tag == 0x1A:
            typed, typed_end = start, at
        elif tag == 0x12:
            old, old_end = start, at
        elif tag == 0x20:
            duplicates = value & 0xFFFFFFFF
    kind, bits, begin, size = _typed(buffer, typed, typed_end)
    if kind == NONE:
        kind, bits, begin, size = _old_value(buffer, old, old_end)
    if kind < 0:
        return np.int64(_BAD)
    if kind == JSON:
        kind, bits, begin, size = _json(buffer, begin, begin + size)
    out.counts[DUPLICATES] += duplicates
    if kind == NONE:
        out.counts[NO_VALUE] += 1
        return out.filled[1]
    u = _append(note, kind, path, path_end, out)
    if u >= 0:
        out.updates[u - 1, BITS], out.updates[u - 1, BEGIN], out.updates[u - 1, SIZE] = bits, begin, size
    return u


@numba.njit
def _append(note, kind, path, path_end, out):
    """Append an update without a value; return the new count, or ``UPDATES_FULL``."""
    u = out.filled[1]
    if u >= out.updates.shape[0]:
        return np.int64(UPDATES_FULL)
    row = out.updates[u]
    row[NOTE], row[KIND], row[BITS], row[BEGIN], row[SIZE], row[PATH], row[PATH_END] = note, kind, 0, 0, 0, path, path_end
    out.filled[1] = u + 1
    return u + 1


@numba.njit
def _prefix(buffer, at, end, row):
    """Set where the prefix ``buffer[at:end]`` and its target lie, in the ``row`` of its notification; return whether it is well-formed."""
    row[PREFIX], row[PREFIX_END], row[TARGET_FIELD], row[TARGET], row[TARGET_END] = at, end, end, end, end
    while at < end:
        here = at
        tag, _, start, at = field(buffer, at, end)
        if at < 0:
            return False
        if tag == 0x22:
            row[TARGET_FIELD], row[TARGET], row[TARGET_END] = here, start, at
    return True


@numba.njit
def _deletes(buffer, at, end, note, out):
    """Append the deletes of a well-formed Notification; return the new count of updates, or ``UPDATES_FULL``."""
    filled = out.filled[1]
    while at < end and filled >= 0:
        tag, _, start, at = field(buffer, at, end)
        if tag == 0x2A:
            filled = _append(note, DELETE, start, at, out)
    return filled


@numba.njit
def _notification(buffer, at, end, out):
    """Append a Notification; return the new count of updates, or below zero why not."""
    note = out.filled[0]
    if note >= out.notifications.shape[0]:
        return np.int64(NOTES_FULL)
    row = out.notifications[note]
    row[TS], row[PREFIX], row[PREFIX_END], row[TARGET_FIELD], row[TARGET], row[TARGET_END] = 0, 0, 0, 0, 0, 0
    scan, atomic, deletes = at, False, False
    while scan < end:
        tag, value, start, scan = field(buffer, scan, end)
        if scan < 0:
            return np.int64(_BAD)
        if tag == 0x08:
            row[TS] = value
        elif tag == 0x12:
            if not _prefix(buffer, start, scan, row):
                return np.int64(_BAD)
        elif tag == 0x30:
            atomic = value != 0
        elif tag == 0x2A:
            deletes = True
    filled = _append(note, REPLACE, np.int64(0), np.int64(0), out) if atomic else out.filled[1]
    # Deletes apply before updates.
    if deletes and filled >= 0:
        filled = _deletes(buffer, at, end, note, out)
    while at < end and filled >= 0:
        tag, _, start, at = field(buffer, at, end)
        if tag == 0x22:
            filled = _update(buffer, start, at, note, out)
    return filled


@numba.njit
def _message(buffer, at, end, message, out):
    """Append a SubscribeResponse; return its flags, or below zero why not."""
    flags = np.int64(0)
    while at < end:
        tag, value, start, at = field(buffer, at, end)
        if at < 0:
            return np.int64(_BAD)
        if tag == 0x0A:
            before = out.filled[1]
            filled = _notification(buffer, start, at, out)
            if filled < 0:
                return filled
            # An empty notification is dropped, so that a message's size bounds its output.
            if filled > before:
                out.notifications[out.filled[0], MESSAGE] = message
                out.filled[0] += 1
            flags |= HAS_UPDATE
        elif tag == 0x18:
            flags |= SYNC if value else 0
        elif tag == 0x22:
            out.counts[ERRORS] += 1
        elif tag == 0x2A:
            out.counts[EXTENSIONS] += 1
    return flags


@numba.njit(cache=True, nogil=True)
def walk(wire, first, out):
    """Walk the messages of a ``RawMessages`` from ``first`` on, and append to a ``GnmiWalk``.

    Returns (the next message, 0), or ``UPDATES_FULL`` or ``NOTES_FULL`` instead of 0: call again from there with more room.
    """
    counts, filled = np.empty_like(out.counts), np.empty_like(out.filled)
    for message in range(first, wire.offsets.shape[0]):
        counts[:], filled[:] = out.counts, out.filled
        at = wire.offsets[message]
        flags = _message(wire.buffer, at, at + wire.sizes[message], message, out)
        if flags < 0:
            out.counts[:], out.filled[:] = counts, filled
            if flags != _BAD:
                return message, flags
            out.counts[MALFORMED] += 1
            flags = np.int64(WRONG)
        out.flags[message] = flags
    return wire.offsets.shape[0], np.int64(0)
