"""The loops of ``readings``: counter samples on a grid, their differences as segments of samples, one row of counters per span.

A *track* is one or many series that are polled together. ``SeriesState`` is the carry from call to call, so any cut of the input
gives the same samples. All times and intervals are in ns.

The grid: a sample belongs to a slot ``[s d, (s + 1) d)``, but a device's poll has a phase of its own, jitters, and drifts by some
parts in a million. A slow filter follows the phase, and a counter sample takes the slot nearest to it under that phase, so jitter
below half an interval is harmless. When the phase has drifted half an interval out of the slot, one slot is skipped (or one counter
sample dropped): once in ten thousand at 100 ppm, and counted as a gap.
"""

from typing import NamedTuple

import numba
import numpy as np

# Columns of ``tracks``. LAST -1: no counter sample yet. PHASE is in 1/256 ns. BUCKET -1: no counters since the last row.
LAST, SLOT, PHASE, INTERVAL, STRAY, BUCKET, COUNTED, SEEN, TRACK_COLUMNS = range(9)
# Differences that a track carries until its interval is known.
STEPS_KEPT = 4

# Verdicts on a counter sample.
FIRST, STEP, HOLE, OFF_GRID, DROPPED, CLOCK_STEP, CHANGED = range(7)

# Kinds of series: a counter, a gauge reported by its highest value, one reported by its last value.
COUNTER, HIGHEST, NEWEST = range(3)
# Samples of a series: none, differences, values as they are.
UNSAMPLED, DIFFERENCES, LEVELS = range(3)

# Why samples are missing; the rows of ``missed``.
MISSED = ("missing_reading", "off_grid", "clock_step", "interval_changed", "counter_reset")
_MISSING, _OFF, _CLOCK, _INTERVAL, _RESET = range(len(MISSED))
# Names of the counts that ``place`` adds to.
COUNTS = ("readings", "priming_readings", "duplicate_readings", "late_readings")
_READINGS, _PRIMING, _DUPLICATE, _LATE = range(len(COUNTS))

SEGMENT_COLUMNS = 5  # series, first slot, interval in ns, epoch in ns, samples

# A counter sample this much older than the last one is not late: the device's clock was set back.
_BACK_NS = 1_000_000_000
# How many differences an interval is detected from; after how many irregular counter samples in a row it is detected again.
_DETECT_MIN, _DETECT_MAX = STEPS_KEPT, 1000
_STRAY_MAX = 16
# No counter counts more per ns: 10 Tbit/s in bytes. Separates a narrow counter that wrapped from one that was reset.
_PER_NS_MAX = 1250
_INT_MAX = 2**62
# Samples that one hole can miss.
_COUNT_MAX = 10**9

# Leading digits of intervals that people configure.
_NICE = np.array([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.5, 8.0, 10.0])


class Readings(NamedTuple):
    """The n counter samples of one call, of k tracks; all arrays are int64 but ``values``, which is uint64.

    ``edges`` (k + 1,): ``edges[k] : edges[k + 1]`` are those of track ``ids[k]``, in time order; ``times`` (n,). The value of column c
    at the i-th of them is ``values[starts[k] + i * strides[k] + c]``. ``place`` fills the rest: ``before`` (k, 2), time and slot of the
    counter sample before these; ``verdicts``, ``slots`` and ``grids``, the interval, (n,).
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


class SeriesState(NamedTuple):
    """The carry of t tracks and s series. Track t has the series ``first[t] : first[t] + width[t]``.

    ``tracks`` (t, TRACK_COLUMNS), ``steps`` (t, STEPS_KEPT) the differences until the interval is known, ``first`` and ``width`` (t,),
    all int64. Of series (s,): ``kind``, ``sampled`` and ``known`` uint8, ``bits`` int64; ``last``, ``base``, ``high`` uint64, the last
    value, the sum of the wraps, and the highest value of the span; ``epoch`` int64, the time of the last reset.
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
    """Return the interval of ``times[first:last]`` (int64): the median difference, rounded if it is nearly round; 0 if too few."""
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
    """Return the nearest round interval within 3 %, as users configure them, else the median itself (ns)."""
    power = 10.0 ** np.floor(np.log10(median))
    nearest = _NICE[np.argmin(np.abs(median - _NICE * power))] * power
    return np.int64(round(nearest if abs(median - nearest) < 0.03 * median else median))


@numba.njit(cache=True, nogil=True)
def place(readings, state, interval_max, counts):
    """Put the counter samples of each track on its grid; an interval above ``interval_max`` has none. Adds to ``counts`` (4,) int64."""
    edges, times = readings.edges, readings.times
    for k in range(len(readings.ids)):
        track = state.tracks[readings.ids[k]]
        readings.before[k, 0], readings.before[k, 1] = track[LAST], track[SLOT]
        if track[INTERVAL] == 0:
            set_interval(track, detect(times, edges[k], edges[k + 1]))
            readings.before[k, 1] = track[SLOT]
        for i in range(edges[k], edges[k + 1]):
            counts[_READINGS] += 1
            readings.verdicts[i] = _one(track, state.steps[readings.ids[k]], times, i, edges[k + 1], interval_max, counts)
            readings.slots[i] = track[SLOT]
            readings.grids[i] = track[INTERVAL] if track[INTERVAL] <= interval_max else 0


@numba.njit(cache=True, nogil=True)
def _one(track, steps_seen, times, i, end, interval_max, counts):
    """Return the verdict on ``times[i]`` and move ``track`` (TRACK_COLUMNS,) on; ``times[i:end]`` may show a new interval."""
    t, interval = times[i], track[INTERVAL]
    moved = t - track[LAST]
    if track[LAST] >= 0 and moved <= 0 and moved > -_BACK_NS:
        counts[_DUPLICATE if moved == 0 else _LATE] += 1
        return DROPPED
    if interval == 0 or interval > interval_max or track[LAST] < 0:
        if interval == 0:
            counts[_PRIMING] += 1
            _learn_interval(track, steps_seen, moved)
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
def set_interval(track, interval):
    """Give a track its interval, and its last counter sample a slot: earlier ones are on no grid."""
    track[INTERVAL] = interval
    if interval > 0 and track[LAST] >= 0:
        _begin(track, track[LAST])


@numba.njit(cache=True, nogil=True)
def _learn_interval(track, steps_seen, moved):
    """Remember one more difference (ns); enough of them give the interval."""
    if track[LAST] < 0 or moved <= 0:
        return
    steps_seen[track[SEEN]] = moved
    track[SEEN] += 1
    if track[SEEN] == len(steps_seen):
        track[INTERVAL], track[SEEN] = _round(np.median(steps_seen)), 0


@numba.njit(cache=True, nogil=True)
def _begin(track, t):
    """Start the grid of a track at time ``t``."""
    interval = max(track[INTERVAL], 1)
    track[LAST], track[SLOT], track[STRAY] = t, t // interval, 0
    track[PHASE] = (t - track[SLOT] * interval) * 256


@numba.njit(inline="always")
def _delta(value, last, bits, elapsed):
    """Return how much a counter moved in ``elapsed`` ns, and whether that is possible: a narrow one may have wrapped, else it was reset."""
    if value >= last:
        return value - last, True
    if bits < 64:
        wrapped = (value - last) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
        if wrapped <= np.uint64(min(elapsed, 10**15) * _PER_NS_MAX):
            return wrapped, True
    return np.uint64(0), False


class SampledSegments(NamedTuple):
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
    out = SampledSegments(np.empty((room, SEGMENT_COLUMNS), np.int64), np.empty(room, np.uint64), np.zeros((5, 2), np.int64))
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
    return SampledSegments(out.segments[:r], out.values[:v], out.missed)


@numba.njit(inline="always")
def _miss(missed, reason, number, ts):
    """Count ``number`` samples as missing from time ``ts``."""
    missed[reason, 0] += number
    missed[reason, 1] = min(missed[reason, 1], ts)


@numba.njit(inline="always")
def _open(segments, r, series, slot, interval, epoch):
    """Begin segment ``r`` without samples."""
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
    """Update the state of all series, and write a row per track wherever a span of ``span`` ns ends.

    Returns ``(rows, values, epochs)``: rows (r, 3) int64, track, time, and where its values begin; values (v,) uint64, counters with
    their wraps added, the highest, or the last value of the span; epochs (v,) int64.
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
    """Return empty rows (r, 3) for the spans that end in this call, and how many values they have."""
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
    """Update the series from ``first`` on with their values ``row`` (uint64) at ``time``, ``elapsed`` ns after the ones before."""
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
    """Write the values and epochs of track ``t`` from ``v`` on; return where they end."""
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
    """End the spans that have begun in the first ``number`` tracks; return their rows as ``count`` does."""
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
