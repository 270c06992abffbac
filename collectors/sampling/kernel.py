"""The loops of ``readings``: readings on their grid, differences as runs of samples, and one row of counters per span.

A *track* is what is read together: the readings at one vector of times of one or many series. ``tracks`` (t, TRACK_COLUMNS) int64
and the arrays of the series carry all that is known from call to call, so any cut of the input gives the same samples.

The grid. A sample has to stand in a slot ``[s d, (s + 1) d)``, but a device's poll has its own phase, jitters, and drifts
by some parts in a million. The phase is followed with a slow filter and a reading belongs to the slot that is nearest to it
under that phase, so that jitter below half an interval is harmless. When the phase has drifted half an interval out
of the slot, one slot is passed over (or one reading dropped): once in ten thousand readings at 100 ppm, and admitted.
"""

from typing import NamedTuple

import numba
import numpy as np

# Columns of what is known of a track; LAST -1: nothing. PHASE counts 1/256 ns. BUCKET -1: no counters since the last row.
LAST, SLOT, PHASE, INTERVAL, STRAY, BUCKET, COUNTED, SEEN, TRACK_COLUMNS = range(9)
# Differences that a track keeps from call to call until it knows its interval.
STEPS_KEPT = 4

# What became of a reading.
FIRST, STEP, HOLE, OFF_GRID, DROPPED, CLOCK_STEP, CHANGED = range(7)

# What a series is: it counts, its highest value matters, its last value does.
COUNTER, HIGHEST, NEWEST = range(3)
# What its samples are: none, differences, values as they stand.
UNSAMPLED, DIFFERENCES, LEVELS = range(3)

# Why samples are missing; the rows of ``missed`` (count, first time).
MISSED = ("missing_reading", "off_grid", "clock_step", "interval_changed", "counter_reset")
_MISSING, _OFF, _CLOCK, _INTERVAL, _RESET = range(len(MISSED))
# What else is told of readings; the columns of ``told``.
TOLD = ("readings", "priming_readings", "duplicate_readings", "late_readings")
_READINGS, _PRIMING, _DUPLICATE, _LATE = range(len(TOLD))

SEGMENT_COLUMNS = 5  # series, first slot, interval in ns, epoch in ns, samples

# A reading so much older than the last one is no straggler: the device's clock was set back.
_BACK_NS = 1_000_000_000
# Differences between readings that an interval is told from; irregular readings in a row after which it is looked for anew.
_DETECT_MIN, _DETECT_MAX = STEPS_KEPT, 1000
_STRAY_MAX = 16
# No counter counts more in a nanosecond: 10 Tbit/s in bytes. Tells a narrow counter that wrapped from one that was reset.
_PER_NS_MAX = 1250
_INT_MAX = 2**62
# Samples that one hole may miss: what lies further apart is no hole of a stream.
_COUNT_MAX = 10**9

# Intervals that people configure, as leading digits.
_NICE = np.array([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.5, 8.0, 10.0])


class Readings(NamedTuple):
    """What one call brings. Readings ``edges[k] : edges[k + 1]`` are those of track ``ids[k]``, in order of time.

    The value of its column c at its i-th reading is ``values[starts[k] + i * strides[k] + c]``. ``before`` (k, 2): time and
    slot of the reading before these. ``place`` fills in ``verdicts``, ``slots`` and ``grids``, the interval at each reading.
    """

    ids: np.ndarray
    edges: np.ndarray
    times: np.ndarray
    starts: np.ndarray
    strides: np.ndarray
    values: np.ndarray
    before: np.ndarray
    verdicts: np.ndarray
    slots: np.ndarray
    grids: np.ndarray


class State(NamedTuple):
    """All tracks and series. Track t has the series ``first[t] : first[t] + width[t]``.

    ``steps``: differences between its first readings, until its interval is known. ``kind``, ``sampled``, ``bits``: what a
    series is. ``last``, ``base``, ``high``: its last value, what its wraps add up to, and the highest value of this span;
    ``epoch``: when it last began anew.
    """

    tracks: np.ndarray
    steps: np.ndarray
    first: np.ndarray
    width: np.ndarray
    kind: np.ndarray
    sampled: np.ndarray
    bits: np.ndarray
    last: np.ndarray
    base: np.ndarray
    high: np.ndarray
    known: np.ndarray
    epoch: np.ndarray


@numba.njit(cache=True, nogil=True)
def detect(times, first, last):
    """Return the interval of the readings ``times[first:last]``: their median difference, made round if it nearly is; 0 if too few."""
    steps = np.empty(min(last - first, _DETECT_MAX), np.int64)
    n = 0
    for i in range(first + 1, last):
        if n == len(steps):
            break
        if times[i] > times[i - 1]:
            steps[n] = times[i] - times[i - 1]
            n += 1
    if n < _DETECT_MIN:
        return np.int64(0)
    return _round(np.median(steps[:n]))


@numba.njit(cache=True, nogil=True)
def _round(median):
    """Return an interval that somebody may have configured, if one is near."""
    power = 10.0 ** np.floor(np.log10(median))
    nearest = _NICE[np.argmin(np.abs(median - _NICE * power))] * power
    return np.int64(round(nearest if abs(median - nearest) < 0.03 * median else median))


@numba.njit(cache=True, nogil=True)
def place(readings, state, interval_max, told):
    """Put the readings of each track on its grid; an interval above ``interval_max`` has none."""
    edges, times = readings.edges, readings.times
    for k in range(len(readings.ids)):
        track = state.tracks[readings.ids[k]]
        readings.before[k, 0], readings.before[k, 1] = track[LAST], track[SLOT]
        if track[INTERVAL] == 0:
            settle(track, detect(times, edges[k], edges[k + 1]))
            readings.before[k, 1] = track[SLOT]
        for i in range(edges[k], edges[k + 1]):
            told[_READINGS] += 1
            readings.verdicts[i] = _one(track, state.steps[readings.ids[k]], times, i, edges[k + 1], interval_max, told)
            readings.slots[i] = track[SLOT]
            readings.grids[i] = track[INTERVAL] if track[INTERVAL] <= interval_max else 0


@numba.njit(cache=True, nogil=True)
def _one(track, steps_seen, times, i, end, interval_max, told):
    t, interval = times[i], track[INTERVAL]
    moved = t - track[LAST]
    if track[LAST] >= 0 and moved <= 0 and moved > -_BACK_NS:
        told[_DUPLICATE if moved == 0 else _LATE] += 1
        return DROPPED
    if interval == 0 or interval > interval_max or track[LAST] < 0:
        if interval == 0:
            told[_PRIMING] += 1
            _wonder(track, steps_seen, moved)
        _begin(track, t)
        return FIRST
    if moved < 0:
        _begin(track, t)
        return CLOCK_STEP
    slot = (t - (track[PHASE] >> 8) + interval // 2) // interval
    track[PHASE] += ((t - slot * interval) * 256 - track[PHASE]) // 16
    if track[PHASE] >= 384 * interval:
        slot += 1
        track[PHASE] -= 256 * interval
    elif track[PHASE] < -128 * interval:
        slot -= 1
        track[PHASE] += 256 * interval
    steps = slot - track[SLOT]
    track[LAST] = t
    if steps == 1:
        track[SLOT], track[STRAY] = slot, 0
        return STEP
    track[STRAY] += 1
    if track[STRAY] >= _STRAY_MAX:
        found = detect(times, i, end)
        if found > 0 and (found != interval or steps <= 0):
            track[INTERVAL] = found
            _begin(track, t)
            return CHANGED
    if steps <= 0:
        return OFF_GRID
    track[SLOT] = slot
    return HOLE


@numba.njit(cache=True, nogil=True)
def settle(track, interval):
    """Give a track its interval, and its last reading a slot: what was read before the interval was known is on no grid."""
    track[INTERVAL] = interval
    if interval > 0 and track[LAST] >= 0:
        _begin(track, track[LAST])


@numba.njit(cache=True, nogil=True)
def _wonder(track, steps_seen, moved):
    """Remember one more difference; enough of them tell the interval."""
    if track[LAST] < 0 or moved <= 0:
        return
    steps_seen[track[SEEN]] = moved
    track[SEEN] += 1
    if track[SEEN] == len(steps_seen):
        track[INTERVAL], track[SEEN] = _round(np.median(steps_seen)), 0


@numba.njit(cache=True, nogil=True)
def _begin(track, t):
    interval = max(track[INTERVAL], 1)
    track[LAST], track[SLOT], track[STRAY] = t, t // interval, 0
    track[PHASE] = (t - track[SLOT] * interval) * 256


@numba.njit(inline="always")
def _delta(value, last, bits, elapsed):
    """Return what a counter counted, and whether it can be: a narrow one may have wrapped, others only go back when reset."""
    if value >= last:
        return value - last, True
    if bits < 64:
        wrapped = (value - last) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
        if wrapped <= np.uint64(min(elapsed, 10**15) * _PER_NS_MAX):
            return wrapped, True
    return np.uint64(0), False


class Samples(NamedTuple):
    """Room for the samples of one call: segments (s, SEGMENT_COLUMNS) int64, their values (v,) uint64, one after another, and
    what is missing by reason (5, 2) int64: samples, and the time in ns of the first.
    """

    segments: np.ndarray
    values: np.ndarray
    missed: np.ndarray


@numba.njit(cache=True, nogil=True)
def sample(readings, state):
    """Return the segments of all sampled series; call it before ``count``, which moves the state on."""
    room = 0
    for k in range(len(readings.ids)):
        t = readings.ids[k]
        chosen = 0
        for j in range(state.first[t], state.first[t] + state.width[t]):
            chosen += state.sampled[j] != UNSAMPLED
        room += chosen * (readings.edges[k + 1] - readings.edges[k])
    out = Samples(np.empty((room, SEGMENT_COLUMNS), np.int64), np.empty(room, np.uint64), np.zeros((5, 2), np.int64))
    out.missed[:, 1] = _INT_MAX
    r = v = 0
    for k in range(len(readings.ids)):
        t = readings.ids[k]
        for c in range(state.width[t]):
            j = state.first[t] + c
            if state.sampled[j] == LEVELS:
                r, v = _levels(readings, state, k, c, out, r, v)
            elif state.sampled[j] == DIFFERENCES:
                r, v = _differences(readings, state, k, c, out, r, v)
    return Samples(out.segments[:r], out.values[:v], out.missed)


@numba.njit(inline="always")
def _miss(missed, reason, number, ts):
    missed[reason, 0] += number
    missed[reason, 1] = min(missed[reason, 1], ts)


@numba.njit(inline="always")
def _open(segments, r, series, slot, interval, epoch):
    segments[r, 0], segments[r, 1], segments[r, 2], segments[r, 3], segments[r, 4] = series, slot, interval, epoch, 0


@numba.njit(cache=True, nogil=True)
def _levels(readings, state, k, c, out, r, v):
    """Make each counter sample of column ``c`` of batch ``k`` the sample of its own slot; ``r`` segments, ``v`` values are filled."""
    j, segments, missed = state.first[readings.ids[k]] + c, out.segments, out.missed
    begin, start, stride = readings.edges[k], readings.starts[k], readings.strides[k]
    at, slot = readings.before[k, 0], readings.before[k, 1]
    begun = False
    for i in range(begin, readings.edges[k + 1]):
        verdict, grid = readings.verdicts[i], readings.grids[i]
        if verdict in (DROPPED, OFF_GRID) or grid == 0:
            continue
        if verdict == HOLE:
            _miss(missed, _MISSING, min(readings.slots[i] - slot - 1, _COUNT_MAX), at)
        if verdict != STEP or not begun:
            _open(segments, r, j, readings.slots[i], grid, state.epoch[j])
            r += 1
            begun = True
        out.values[v] = readings.values[start + (i - begin) * stride + c]
        v += 1
        segments[r - 1, 4] += 1
        at, slot = readings.times[i], readings.slots[i]
    return r, v


@numba.njit(cache=True, nogil=True)
def _differences(readings, state, k, c, out, r, v):
    """Make the difference of two counter samples one slot apart the sample of the earlier slot; else as ``_levels``."""
    j, segments, missed = state.first[readings.ids[k]] + c, out.segments, out.missed
    begin, start, stride = readings.edges[k], readings.starts[k], readings.strides[k]
    at, slot = readings.before[k, 0], readings.before[k, 1]
    last, known, epoch, bits = state.last[j], state.known[j], state.epoch[j], state.bits[j]
    begun = False
    for i in range(begin, readings.edges[k + 1]):
        verdict = readings.verdicts[i]
        if verdict == DROPPED:
            continue
        value, time, here = readings.values[start + (i - begin) * stride + c], readings.times[i], readings.slots[i]
        if known:
            moved, sane = _delta(value, last, bits, time - at)
            if not sane:
                epoch = time
                if verdict != FIRST:
                    _miss(missed, _RESET, min(max(here - slot, 1), _COUNT_MAX), at)
            elif verdict == STEP:
                if not begun:
                    _open(segments, r, j, slot, readings.grids[i], epoch)
                    r += 1
                out.values[v] = moved
                v += 1
                segments[r - 1, 4] += 1
            elif verdict == HOLE:
                _miss(missed, _MISSING, min(here - slot, _COUNT_MAX), at)
            elif verdict != FIRST:
                _miss(missed, _OFF if verdict == OFF_GRID else _CLOCK if verdict == CLOCK_STEP else _INTERVAL, 1, at)
            begun = sane and verdict == STEP
        last, known, at, slot = value, True, time, here
    return r, v


@numba.njit(cache=True, nogil=True)
def count(readings, state, span):
    """Take the readings into the state of all series, and write a row per track wherever a span of ``span`` ns ends.

    Returns ``(rows, values, epochs)``: rows (r, 3) track, time, and where its values begin; values are the counters with their
    wraps added up, the highest, or the last of the span.
    """
    rows, room = _ends(readings, state, span)
    values, epochs = np.empty(room, np.uint64), np.empty(room, np.int64)
    r = v = 0
    for k in range(len(readings.ids)):
        t, begin = readings.ids[k], readings.edges[k]
        track, at, width = state.tracks[t], readings.before[k, 0], state.width[t]
        for i in range(begin, readings.edges[k + 1]):
            if readings.verdicts[i] == DROPPED:
                continue
            time = readings.times[i]
            if track[BUCKET] >= 0 and time // span != track[BUCKET]:
                rows[r, 0], rows[r, 1], rows[r, 2] = t, track[COUNTED], v
                r += 1
                v = _row(state, t, values, epochs, v)
            start = readings.starts[k] + (i - begin) * readings.strides[k]
            _take(state, state.first[t], readings.values[start : start + width], time, time - at)
            track[BUCKET], track[COUNTED], at = time // span, time, time
    return rows, values, epochs


@numba.njit(cache=True, nogil=True)
def _ends(readings, state, span):
    """Return empty rows for the spans that end among the readings, and how many values they have."""
    number = room = 0
    for k in range(len(readings.ids)):
        t = readings.ids[k]
        bucket = state.tracks[t, BUCKET]
        for i in range(readings.edges[k], readings.edges[k + 1]):
            if readings.verdicts[i] != DROPPED:
                if bucket >= 0 and readings.times[i] // span != bucket:
                    number += 1
                    room += state.width[t]
                bucket = readings.times[i] // span
    return np.empty((number, 3), np.int64), room


@numba.njit(cache=True, nogil=True)
def _take(state, first, row, time, elapsed):
    kind, last, base, high, known, bits, epoch = state.kind, state.last, state.base, state.high, state.known, state.bits, state.epoch
    for c in range(len(row)):
        j, value = first + c, row[c]
        if kind[j] == HIGHEST:
            high[j] = max(high[j], value)
        elif kind[j] == COUNTER and value < last[j] and known[j]:
            if _delta(value, last[j], bits[j], elapsed)[1]:
                base[j] += np.uint64(1) << np.uint64(bits[j])
            else:
                base[j], epoch[j] = np.uint64(0), time
        last[j] = value
        known[j] = True


@numba.njit(cache=True, nogil=True)
def _row(state, t, values, epochs, v):
    for j in range(state.first[t], state.first[t] + state.width[t]):
        if state.kind[j] == HIGHEST:
            values[v], state.high[j] = state.high[j], np.uint64(0)
        else:
            values[v] = state.base[j] + state.last[j]
        epochs[v] = state.epoch[j]
        v += 1
    return v


@numba.njit(cache=True, nogil=True)
def flush(state, number):
    """Return the rows of the spans that have begun in the first ``number`` tracks, as ``count`` does, and end them."""
    room = 0
    for t in range(number):
        room += state.width[t]
    rows = np.empty((number, 3), np.int64)
    values, epochs = np.empty(room, np.uint64), np.empty(room, np.int64)
    r = v = 0
    for t in range(number):
        track = state.tracks[t]
        if track[BUCKET] >= 0:
            rows[r, 0], rows[r, 1], rows[r, 2] = t, track[COUNTED], v
            r += 1
            v = _row(state, t, values, epochs, v)
            track[BUCKET] = -1
    return rows[:r], values[:v], epochs[:v]
