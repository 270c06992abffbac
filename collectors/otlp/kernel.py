"""The byte loops of OTLP: a request for the export of metrics as columns, without an object per point.

Protobuf is tags and lengths, four messages deep here: resource, scope, metric, point. The kernel walks them in place and writes
one row per number that is measured. What a point is of (resource, name, attributes) stays where it stands; a hash of these bytes tells
series apart, and only the first point of a series is ever looked at closer. The hash is seeded at random when
the program starts, so that nobody can make two series one from outside.

A length is compared with what is there before anything is read, and every byte is looked at a fixed number of times.
Field numbers and types are those of ``opentelemetry/proto/metrics/v1/metrics.proto``.
"""

import os

import numba
import numpy as np

# Columns of a row: time, the value's 64 bits, whether these are a double or an integer, what kind of metric; where the
# point, its metric's name and its resource stand, and how long each is; the hash of its series.
TIME, VALUE, FORM, KIND, POINT, POINT_BYTES, NAME, NAME_BYTES, RESOURCE, RESOURCE_BYTES, SERIES, COLUMNS = range(12)
DOUBLE, INTEGER = range(2)
_NO_VALUE, _BROKEN = -1, -2
GAUGE, SUM, DELTA = range(3)

# What else was found: points that are no single number (histograms, summaries), without a time, without a value.
PASSED = ("histogram_points", "timeless_points", "valueless_points")
_HISTOGRAMS, _TIMELESS, _VALUELESS = range(len(PASSED))

# Tag of field 7, a message: the attributes of a point.
_ATTRIBUTE_TAG = 7 << 3 | 2

# A point that has a time and a value has at least so many bytes: tag and length, two tags, two times eight bytes.
_POINT_BYTES_MIN = 20

_SEEDS = np.frombuffer(os.urandom(32), np.uint64) | np.uint64(1)
SEEDS = np.array(_SEEDS)


@numba.njit(inline="always")
def _varint(buffer, at, end):
    """Return the number at ``at`` and where it ends, -1 if it does not end in time."""
    value = np.uint64(0)
    for k in range(10):
        if at + k >= end:
            return value, -1
        byte = np.uint64(buffer[at + k])
        value |= (byte & np.uint64(0x7F)) << np.uint64(7 * k)
        if byte < 128:
            return value, at + k + 1
    return value, -1


@numba.njit(cache=True, nogil=True)
def _field(buffer, at, end):
    """Return number and wire type of the field at ``at``, where its content begins, and where it ends, -1 if it is broken."""
    tag, at = _varint(buffer, at, end)
    number, wire = np.int64(tag >> np.uint64(3)), np.int64(tag & np.uint64(7))
    if at < 0 or number == 0:
        return number, wire, at, np.int64(-1)
    if wire == 0:
        begin = at
        _, at = _varint(buffer, at, end)
        return number, wire, begin, np.int64(at)
    size = np.uint64(8)
    if wire == 2:
        size, at = _varint(buffer, at, end)
        if at < 0:
            return number, wire, at, np.int64(-1)
    elif wire == 5:
        size = np.uint64(4)
    elif wire != 1:
        return number, wire, at, np.int64(-1)
    if size > np.uint64(end - at):
        return number, wire, at, np.int64(-1)
    return number, wire, np.int64(at), np.int64(at) + np.int64(size)


@numba.njit(inline="always")
def _fixed(buffer, at):
    """Return eight bytes, the lowest first."""
    value = np.uint64(0)
    for k in range(8):
        value |= np.uint64(buffer[at + k]) << np.uint64(8 * k)
    return value


@numba.njit(cache=True, nogil=True)
def _hashed(buffer, at, end, state, seeds):
    """Return ``state`` with the bytes mixed in, and their number."""
    state ^= np.uint64(end - at) * seeds[0]
    while end - at >= 8:
        state = (state ^ _fixed(buffer, at)) * seeds[1]
        state ^= state >> np.uint64(29)
        at += 8
    rest = np.uint64(0)
    while at < end:
        rest = (rest << np.uint64(8)) | np.uint64(buffer[at])
        at += 1
    state = (state ^ rest) * seeds[2]
    return state ^ (state >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def walk(buffer, seeds):
    """Walk an ``ExportMetricsServiceRequest``: return ``(rows, passed, whole)``, rows (n, COLUMNS) int64.

    ``whole`` is false where the bytes are no such message; the rows before that place mean nothing then.
    """
    rows = np.empty((len(buffer) // _POINT_BYTES_MIN + 1, COLUMNS), np.int64)
    passed = np.zeros(3, np.int64)
    n, at, end = 0, 0, len(buffer)
    while at < end:
        number, wire, begin, at = _field(buffer, at, end)
        if at < 0:
            return rows[:n], passed, False
        if number == 1 and wire == 2:
            n = _resource(buffer, begin, at, rows, n, passed, seeds)
            if n < 0:
                return rows[:0], passed, False
    return rows[:n], passed, True


@numba.njit(cache=True, nogil=True)
def _resource(buffer, at, end, rows, n, passed, seeds):
    """Walk one ``ResourceMetrics``: what it is of may stand behind its scopes, so it is looked for first."""
    place, size = np.int64(0), np.int64(0)
    scan = at
    while scan < end:
        number, wire, begin, scan = _field(buffer, scan, end)
        if scan < 0:
            return -1
        if number == 1 and wire == 2:
            place, size = begin, scan - begin
    state = _hashed(buffer, place, place + size, seeds[3], seeds)
    while at < end:
        number, wire, begin, at = _field(buffer, at, end)
        if number == 2 and wire == 2:
            first = n
            n = _scope(buffer, begin, at, rows, n, passed, state, seeds)
            if n < 0:
                return -1
            for k in range(first, n):
                rows[k, RESOURCE], rows[k, RESOURCE_BYTES] = place, size
    return n


@numba.njit(cache=True, nogil=True)
def _scope(buffer, at, end, rows, n, passed, state, seeds):
    while at < end:
        number, wire, begin, at = _field(buffer, at, end)
        if at < 0:
            return -1
        if number == 2 and wire == 2:
            n = _metric(buffer, begin, at, rows, n, passed, state, seeds)
            if n < 0:
                return -1
    return n


@numba.njit(cache=True, nogil=True)
def _metric(buffer, at, end, rows, n, passed, state, seeds):
    """Walk one ``Metric``: its name may stand behind its points, so it is looked for first."""
    place, size = np.int64(0), np.int64(0)
    scan = at
    while scan < end:
        number, wire, begin, scan = _field(buffer, scan, end)
        if scan < 0:
            return -1
        if number == 1 and wire == 2:
            place, size = begin, scan - begin
    state = _hashed(buffer, place, place + size, state, seeds)
    while at < end:
        number, wire, begin, at = _field(buffer, at, end)
        if wire != 2 or number not in (5, 7, 9, 10, 11):
            continue
        first = n
        if number in (5, 7):
            kind = _kind(buffer, begin, at) if number == 7 else GAUGE
            n = _points(buffer, begin, at, rows, n, passed, kind, state, seeds) if kind >= 0 else -1
        else:
            others = _count(buffer, begin, at)
            passed[_HISTOGRAMS] += max(others, 0)
            n = n if others >= 0 else -1
        if n < 0:
            return -1
        for k in range(first, n):
            rows[k, NAME], rows[k, NAME_BYTES], rows[k, KIND] = place, size, kind
    return n


@numba.njit(cache=True, nogil=True)
def _kind(buffer, at, end):
    """Return whether a ``Sum`` holds differences (temporality 1) or what has added up; -1 if it is broken."""
    kind = SUM
    while at < end:
        number, wire, begin, at = _field(buffer, at, end)
        if at < 0:
            return -1
        if number == 2 and wire == 0:
            kind = DELTA if _varint(buffer, begin, at)[0] == 1 else SUM
    return kind


@numba.njit(cache=True, nogil=True)
def _count(buffer, at, end):
    points = 0
    while at < end:
        number, wire, _, at = _field(buffer, at, end)
        if at < 0:
            return -1
        points += number == 1 and wire == 2
    return points


@numba.njit(cache=True, nogil=True)
def _points(buffer, at, end, rows, n, passed, kind, state, seeds):
    """Walk the ``NumberDataPoint`` of a gauge or sum.

    Points of one series mostly follow one another, and their attributes end them: where these bytes are those of the point
    before, so is the series. ``same``: where the attributes of that point stand, how long they are, and its series.
    """
    same = np.array([0, -1, 0], np.int64)
    while at < end:
        number, wire, begin, at = _field(buffer, at, end)
        if at < 0:
            return -1
        if number != 1 or wire != 2:
            continue
        time, value, form, series = _point(buffer, begin, at, state ^ np.uint64(kind), seeds, same)
        if form == _BROKEN:
            return -1
        if form == _NO_VALUE:
            passed[_VALUELESS] += 1
        elif time == 0 or time >= np.uint64(2**62):
            passed[_TIMELESS] += 1
        else:
            rows[n, TIME], rows[n, VALUE], rows[n, FORM] = np.int64(time), np.int64(value), form
            rows[n, POINT], rows[n, POINT_BYTES], rows[n, SERIES] = begin, at - begin, np.int64(series)
            n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _point(buffer, begin, end, series, seeds, same):
    """Return time, value, its form, and series of one point."""
    time, value, form = np.uint64(0), np.uint64(0), _NO_VALUE
    at, attributes, only = begin, np.int64(-1), True
    while at < end:
        if attributes < 0 and buffer[at] == _ATTRIBUTE_TAG:
            attributes = at
            if same[1] == end - at and _equal(buffer, same[0], at, same[1]):
                return time, value, form, np.uint64(same[2])
        number, wire, place, at = _field(buffer, at, end)
        if at < 0:
            return time, value, _BROKEN, series
        if number == 7 and wire == 2:
            series = _hashed(buffer, place, at, series, seeds)
            continue
        only = only and attributes < 0
        if number == 3 and wire == 1:
            time = _fixed(buffer, place)
        elif number in (4, 6) and wire == 1:
            value, form = _fixed(buffer, place), DOUBLE if number == 4 else INTEGER
    if only and attributes >= 0:
        same[0], same[1], same[2] = attributes, end - attributes, np.int64(series)
    return time, value, form, series


@numba.njit(inline="always")
def _equal(buffer, one, other, size):
    k = 0
    while size - k >= 8:
        if _fixed(buffer, one + k) != _fixed(buffer, other + k):
            return False
        k += 8
    while k < size:
        if buffer[one + k] != buffer[other + k]:
            return False
        k += 1
    return True
