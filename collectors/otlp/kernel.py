"""The byte loops of OTLP: a request for the export of metrics as columns, without an object per point.

The kernel walks resources, scopes, metrics and points in place and writes one row per number. A series (resource, name,
attributes) is identified by a seeded hash of its bytes; only the first point of a series is parsed further.

Every byte is read a fixed number of times. Field numbers and types are those of
``opentelemetry/proto/metrics/v1/metrics.proto``.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..wire.hash_table import mix, mix_bytes, new_seed, same_bytes
from ..wire.protobuf import field, fixed64

# Columns of a row: time, the value's 64 bits, whether these are a double or an integer, what kind of metric; where the
# point, its metric's name and its resource stand, and how long each is; the hash of its series.
TIME, VALUE, FORM, KIND, POINT, POINT_BYTES, NAME, NAME_BYTES, RESOURCE, RESOURCE_BYTES, SERIES, COLUMNS = range(12)
DOUBLE, INTEGER = range(2)
_NO_VALUE, _BROKEN = -1, -2
GAUGE, SUM, DELTA = range(3)

# Counts of other points: not a single number (histograms, summaries), without a time, without a value.
PASSED = ("histogram_points", "timeless_points", "valueless_points")
_HISTOGRAMS, _TIMELESS, _VALUELESS = range(len(PASSED))

# Tag of field 7, a message: the attributes of a point.
_ATTRIBUTE_TAG = 7 << 3 | 2

# A point with a time and a value has at least this many bytes: tag and length, two tags, two times eight bytes.
_POINT_BYTES_MIN = 20

# Start of the hashes of series, so that no sender can make two series one.
SEED = new_seed()


class OtlpWalk(NamedTuple):
    """The output of a walk: rows (n, COLUMNS) int64 of which filled[0] (1,) int64 are made, passed (3,) int64 by reason."""

    rows: np.ndarray
    filled: np.ndarray
    passed: np.ndarray


@numba.njit(cache=True, nogil=True)
def walk(buffer, seed):
    """Walk an ``ExportMetricsServiceRequest``, (bytes,) uint8; return (rows, passed, whole).

    rows (n, COLUMNS) int64; passed (3,) int64, see ``PASSED``; ``whole`` is false where the bytes are no such message, and there are
    no rows then.
    """
    out = OtlpWalk(np.empty((len(buffer) // _POINT_BYTES_MIN + 1, COLUMNS), np.int64), np.zeros(1, np.int64), np.zeros(3, np.int64))
    at, whole = np.int64(0), True
    while at < len(buffer) and whole:
        tag, _, begin, at = field(buffer, at, len(buffer))
        whole = at >= 0 and (tag != 1 << 3 | 2 or _resource(buffer, begin, at, np.int64(seed), out))
    return out.rows[: out.filled[0] if whole else 0], out.passed, whole


@numba.njit
def _last(buffer, at, end, wanted):
    """Return (begin, end) of the last field of a tag, (0, 0) where there is none; end -1 where a field is malformed."""
    found = (np.int64(0), np.int64(0))
    while at < end:
        tag, _, begin, at = field(buffer, at, end)
        if at < 0:
            return np.int64(0), np.int64(-1)
        if tag == wanted:
            found = (begin, at)
    return found


@numba.njit
def _resource(buffer, at, end, seed, out):
    """Walk one ``ResourceMetrics``, whose resource may stand behind its scopes; return whether it is well-formed."""
    place, stop = _last(buffer, at, end, 1 << 3 | 2)
    if stop < 0:
        return False
    state, first, good = mix_bytes(seed, buffer, place, stop), out.filled[0], True
    while at < end and good:
        tag, _, begin, at = field(buffer, at, end)
        if tag == 2 << 3 | 2:
            good = _scope(buffer, begin, at, state, out)
    for k in range(first, out.filled[0]):
        out.rows[k, RESOURCE], out.rows[k, RESOURCE_BYTES] = place, stop - place
    return good


@numba.njit
def _scope(buffer, at, end, state, out):
    """Walk one ``ScopeMetrics``; return whether it is well-formed."""
    while at < end:
        tag, _, begin, at = field(buffer, at, end)
        if at < 0 or (tag == 2 << 3 | 2 and not _metric(buffer, begin, at, state, out)):
            return False
    return True


@numba.njit
def _metric(buffer, at, end, state, out):
    """Walk one ``Metric``, whose name may stand behind its points; return whether it is well-formed."""
    place, stop = _last(buffer, at, end, 1 << 3 | 2)
    if stop < 0:
        return False
    state, first = mix_bytes(state, buffer, place, stop), out.filled[0]
    while at < end:
        tag, _, begin, at = field(buffer, at, end)
        number = tag >> 3
        if tag & 7 != 2 or number not in (5, 7, 9, 10, 11):
            continue
        if number in (5, 7):
            kind = _kind(buffer, begin, at) if number == 7 else np.int64(GAUGE)
            if kind < 0 or not _points(buffer, begin, at, kind, mix(state, kind), out):
                return False
        else:
            others = _count(buffer, begin, at)
            if others < 0:
                return False
            out.passed[_HISTOGRAMS] += others
    for k in range(first, out.filled[0]):
        out.rows[k, NAME], out.rows[k, NAME_BYTES] = place, stop - place
    return True


@numba.njit
def _kind(buffer, at, end):
    """Return ``DELTA`` for a ``Sum`` of differences (temporality 1), else ``SUM``; -1 if it is malformed."""
    kind = np.int64(SUM)
    while at < end:
        tag, value, _, at = field(buffer, at, end)
        if at < 0:
            return np.int64(-1)
        if tag == 2 << 3:
            kind = np.int64(DELTA if value == 1 else SUM)
    return kind


@numba.njit
def _count(buffer, at, end):
    """Return how many points a histogram or summary has, -1 if it is malformed."""
    points = np.int64(0)
    while at < end:
        tag, _, _, at = field(buffer, at, end)
        if at < 0:
            return np.int64(-1)
        points += tag == 1 << 3 | 2
    return points


@numba.njit
def _points(buffer, at, end, kind, state, out):
    """Walk the ``NumberDataPoint`` of a gauge or sum; return whether they are well-formed.

    Points of one series mostly follow one another, and their attributes come last: where these bytes equal those of the point
    before, so does the series. ``same`` (3,) int64: begin and size of that point's attributes, and its series.
    """
    same = np.array([0, -1, 0], np.int64)
    while at < end:
        tag, _, begin, at = field(buffer, at, end)
        if at < 0:
            return False
        if tag != 1 << 3 | 2:
            continue
        time, value, form, series = _point(buffer, begin, at, state, same)
        if form == _BROKEN:
            return False
        if form == _NO_VALUE:
            out.passed[_VALUELESS] += 1
        elif not 0 < time < 2**62:
            out.passed[_TIMELESS] += 1
        else:
            row = out.rows[out.filled[0]]
            row[TIME], row[VALUE], row[FORM], row[KIND] = time, value, form, kind
            row[POINT], row[POINT_BYTES], row[SERIES] = begin, at - begin, series
            out.filled[0] += 1
    return True


@numba.njit
def _point(buffer, begin, end, series, same):
    """Return time, value, its form, and series of one point, all int64."""
    time, value, form = np.int64(0), np.int64(0), np.int64(_NO_VALUE)
    at, attributes, only = begin, np.int64(-1), True
    while at < end:
        if attributes < 0 and buffer[at] == _ATTRIBUTE_TAG:
            attributes = at
            if same[1] == end - at and same_bytes(buffer, same[0], buffer, at, end):
                return time, value, form, same[2]
        tag, _, place, at = field(buffer, at, end)
        if at < 0:
            return time, value, np.int64(_BROKEN), series
        if tag == _ATTRIBUTE_TAG:
            series = mix_bytes(series, buffer, place, at)
            continue
        only = only and attributes < 0
        if tag == 3 << 3 | 1:
            time = fixed64(buffer, place)
        elif tag in (4 << 3 | 1, 6 << 3 | 1):
            value, form = fixed64(buffer, place), np.int64(DOUBLE if tag == 4 << 3 | 1 else INTEGER)
    if only and attributes >= 0:
        same[0], same[1], same[2] = attributes, end - attributes, series
    return time, value, form, series
