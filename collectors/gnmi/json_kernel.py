"""JSON to leaves, in compiled code: each leaf with the node of its path, nothing built in between.

A member of an object is a node below the object's; so is an entry of a list of objects, named by its key leaf (the member
``name``, else one whose name ends in ``id``, ``number`` or ``index``) or by its place. A list of anything else is one leaf, kept as
text. ``null`` and empty objects are no leaves. Duplicate members all count, the last one last.

Time: one pass, and one more over the direct members of a list's entries for each list around them, of which
``DEPTH_MAX`` may be. Nothing is allocated.
"""

import numba
import numpy as np

from .paths_kernel import ENTRY, MEMBER, PLACE, node_of

# Kinds of a value. TEXT, BYTES, LIST (a ScalarArray) and JSON are bytes of the buffer, ESCAPED a JSON string as it stands
# between its quotes, RAW a JSON list. DELETE and REPLACE are no values: what a notification deletes, or replaces as a whole.
NONE, UINT, INT, DOUBLE, BOOL, TEXT, ESCAPED, BYTES, LIST, RAW, JSON, DELETE, REPLACE = np.arange(13)

DEPTH_MAX = 16

# What ``leaves`` returns instead of a count.
BAD, TOO_MANY, FULL = -11, -12, -13

_SPACE, _TAB, _LINE, _RETURN = 32, 9, 10, 13
_QUOTE, _BACKSLASH, _COMMA, _COLON = 34, 92, 44, 58
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE = 91, 93, 123, 125
_ZERO, _NINE, _MINUS, _PLUS, _DOT, _LITTLE_E, _BIG_E = 48, 57, 45, 43, 46, 101, 69
_T, _F, _N = 116, 102, 110
_AT_VALUE, _AT_MEMBER, _AFTER = range(3)

_TENTH_MAX = (2**64 - 1) // 10
_POWERS = np.array([10.0**power for power in range(309)])


@numba.njit
def _space(buffer, at, end):
    while at < end and (buffer[at] == _SPACE or buffer[at] == _LINE or buffer[at] == _RETURN or buffer[at] == _TAB):
        at += 1
    return at


@numba.njit
def _string(buffer, at, end):
    """Return (end of the text, whether it has escapes) of the string whose text begins at ``at``; -1 where it never ends."""
    escaped = False
    while at < end:
        byte = buffer[at]
        if byte == _QUOTE:
            return at, escaped
        if byte == _BACKSLASH:
            escaped = True
            at += 1
        elif byte < _SPACE:
            return np.int64(-1), escaped
        at += 1
    return np.int64(-1), escaped


@numba.njit
def _word(buffer, at, end, word):
    if end - at < len(word):
        return False
    k = 0
    while k < len(word) and buffer[at + k] == word[k]:
        k += 1
    return k == len(word)


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
def skip(buffer, at, end):
    """Return the position after the value at ``at``, whose brackets and strings alone are looked at; -1 where it never ends."""
    depth = 0
    while at < end:
        byte = buffer[at]
        if byte == _QUOTE:
            at, _ = _string(buffer, at + 1, end)
            if at < 0:
                return np.int64(-1)
        elif byte in (_OPEN, _OPEN_LIST):
            depth += 1
        elif byte in (_CLOSE, _CLOSE_LIST, _COMMA):
            if depth == 0:
                return at
            if byte != _COMMA:
                depth -= 1
        at += 1
        if depth == 0 and byte in (_CLOSE, _CLOSE_LIST, _QUOTE):
            return at
    return at if depth == 0 else np.int64(-1)


@numba.njit
def _rank(buffer, at, end):
    """Return how well a member's name fits a list's key: 0 best, 9 not at all."""
    if end - at >= 4 and _word(buffer, end - 4, end, b"name"):
        return 0 if end - at == 4 or buffer[end - 5] == _COLON else 1
    if end - at >= 2 and _word(buffer, end - 2, end, b"id"):
        return 2
    if end - at >= 6 and _word(buffer, end - 6, end, b"number"):
        return 3
    return 4 if end - at >= 5 and _word(buffer, end - 5, end, b"index") else 9


@numba.njit
def _key(buffer, at, end):
    """Return (name begin, name end, value begin, value end) of the key leaf of the object whose ``{`` is at ``at``; -1 first if none."""
    best, found = 9, (np.int64(-1), np.int64(0), np.int64(0), np.int64(0))
    at = _space(buffer, at + 1, end)
    while at < end and buffer[at] == _QUOTE:
        name = at + 1
        name_end, _ = _string(buffer, name, end)
        if name_end < 0:
            break
        at = _space(buffer, name_end + 1, end)
        if at >= end or buffer[at] != _COLON:
            break
        value = _space(buffer, at + 1, end)
        at = skip(buffer, value, end)
        if at < 0:
            break
        rank = _rank(buffer, name, name_end)
        if rank < best and value < at and buffer[value] != _OPEN and buffer[value] != _OPEN_LIST:
            text = buffer[value] == _QUOTE
            value_end = at - 1 if text else at
            while not text and value_end > value and buffer[value_end - 1] <= _SPACE:
                value_end -= 1
            best, found = rank, (name, name_end, value + 1 if text else value, value_end)
        at = _space(buffer, at, end)
        if at >= end or buffer[at] != _COMMA:
            break
        at = _space(buffer, at + 1, end)
    return found


@numba.njit
def _entry(table, buffer, stream, parent, at, end, place):
    """Return the node of the list entry whose ``{`` is at ``at``."""
    name, name_end, value, value_end = _key(buffer, at, end)
    if name < 0:
        return node_of(table, buffer, stream, parent, PLACE, np.int64(0), place, np.int64(0), np.int64(0))
    return node_of(table, buffer, stream, parent, ENTRY, name, name_end, value, value_end)


@numba.njit
def scalar(buffer, at, end):
    """Return (kind, bits, begin, size, position after it) of a value that is no object and no list of objects; position -1: bad."""
    bad = (NONE, np.int64(0), np.int64(0), np.int64(0), np.int64(-1))
    byte = buffer[at]
    if byte == _QUOTE:
        stop, escaped = _string(buffer, at + 1, end)
        return (ESCAPED if escaped else TEXT, np.int64(0), at + 1, stop - at - 1, stop + 1) if stop >= 0 else bad
    if byte == _OPEN_LIST:
        stop = skip(buffer, at, end)
        return (RAW, np.int64(0), at, stop - at, stop) if stop >= 0 else bad
    if byte == _T:
        return (BOOL, np.int64(1), at, np.int64(4), at + 4) if _word(buffer, at, end, b"true") else bad
    if byte == _F:
        return (BOOL, np.int64(0), at, np.int64(5), at + 5) if _word(buffer, at, end, b"false") else bad
    if byte == _N:
        return (NONE, np.int64(0), at, np.int64(4), at + 4) if _word(buffer, at, end, b"null") else bad
    kind, bits, stop = number(buffer, at, end)
    return (kind, bits, at, stop - at, stop) if kind != NONE else bad


@numba.njit
def leaves(table, buffer, stream, root, at, end, notification, updates, filled, leaves_max, stack):  # noqa: PLR0912  (a state machine)
    """Append the leaves of the JSON text ``buffer[at:end]`` below node ``root`` to ``updates``; return the new count.

    Below zero nothing of it counts: ``BAD``, ``TOO_MANY``, ``FULL`` (of updates), or what ``node_of`` says of a table to grow.
    A leaf whose node is refused is appended with that node. ``stack`` is scratch, two arrays of ``DEPTH_MAX`` + 1 int64.
    """
    nodes, places = stack
    depth, node, begun, state = 0, root, filled, _AT_VALUE
    while True:
        at = _space(buffer, at, end)
        if state == _AFTER and depth == 0:
            return filled if at == end else np.int64(BAD)
        if at >= end:
            return np.int64(BAD)
        byte = buffer[at]
        if state == _AT_VALUE:
            opens_list = byte == _OPEN_LIST and _space(buffer, at + 1, end) < end and buffer[_space(buffer, at + 1, end)] == _OPEN
            if byte == _OPEN or opens_list:
                if depth == DEPTH_MAX:
                    return np.int64(BAD)
                depth += 1
                nodes[depth], places[depth] = node, -1 if byte == _OPEN else 0
                at = _space(buffer, at + 1, end)
                state = _AT_MEMBER
                if opens_list:
                    node, state = _entry(table, buffer, stream, node, at, end, np.int64(0)), _AT_VALUE
                elif at < end and buffer[at] == _CLOSE:
                    depth, state, at = depth - 1, _AFTER, at + 1
            else:
                kind, bits, begin, size, at = scalar(buffer, at, end)
                if at < 0:
                    return np.int64(BAD)
                if kind != NONE:
                    if filled - begun >= leaves_max:
                        return np.int64(TOO_MANY)
                    if filled >= updates[0].shape[0]:
                        return np.int64(FULL)
                    put(updates, filled, notification, node, kind, bits, begin, size)
                    filled += 1
                state = _AFTER
        elif state == _AT_MEMBER:
            name_end, _ = _string(buffer, at + 1, end) if byte == _QUOTE else (np.int64(-1), False)
            if name_end < 0:
                return np.int64(BAD)
            colon = _space(buffer, name_end + 1, end)
            if colon >= end or buffer[colon] != _COLON:
                return np.int64(BAD)
            node = node_of(table, buffer, stream, nodes[depth], MEMBER, at + 1, name_end, np.int64(0), np.int64(0))
            at, state = colon + 1, _AT_VALUE
        elif byte == _COMMA and places[depth] < 0:
            at, state = at + 1, _AT_MEMBER
        elif byte == _COMMA:
            at = _space(buffer, at + 1, end)
            if at >= end or buffer[at] != _OPEN:
                return np.int64(BAD)
            places[depth] += 1
            node, state = _entry(table, buffer, stream, nodes[depth], at, end, places[depth]), _AT_VALUE
        elif byte == (_CLOSE if places[depth] < 0 else _CLOSE_LIST):
            depth, at = depth - 1, at + 1
        else:
            return np.int64(BAD)
        if node < -1:
            return node


@numba.njit
def put(updates, at, notification, node, kind, bits, begin, size):
    """Write one row of the updates."""
    notifications, nodes, kinds, numbers, begins, sizes = updates
    notifications[at], nodes[at], kinds[at], numbers[at], begins[at], sizes[at] = notification, node, kind, bits, begin, size
