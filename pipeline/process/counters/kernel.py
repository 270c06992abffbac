"""The passes over counter samples: the delta of each counter since the sample before, and whether it is plausible.

Rows are sorted by object, time and epoch. Rows that agree in all three are one counter sample, with the largest value of each
column, so the order of arrival does not matter. A counter is compared with its last known value of the same epoch, and the delta
counts in the window of the later sample:

    forward, at most what the line can carry: counts.
    backward: a wrap if the distance over 2^bits fits the line (or, for a counter without a line, if it goes from the upper half to
        the lower in a short time): counts. Otherwise the counter restarted: no delta. If a counter of 64 bits restarted, all
        counters of the same sample that went backward did, however narrow.
    a saturating counter never wraps; at its maximum the delta is a lower bound.
    after ``GAP_FACTOR`` times the usual interval: counts, and is flagged.

A device may refresh a counter less often than it is polled; a step then covers all the time since the previous step. So the limit
of the line applies to the time since the counter last changed, with the faster rate if the rate has changed. A counter of cost c
takes c bits of the line per unit; every counter is bounded by a line of 8 Pbit/s.

Every pass is linear in the rows; integers are exact (differences modulo 2^64).
"""

from typing import NamedTuple

import numba
import numpy as np

# The state of one counter of one object: its last value (the bits of a uint64), the time of its sample (-1: none), the time of its
# last change, and the usual interval between its samples (-1: unknown).
VALUE, TS, MOVED, USUAL = range(4)
SEEN_COLUMNS = 4

# The state of one object. ``LAST_TS`` -1: none. ``UP`` -1: unknown. ``SPEED`` 0: unknown. The last five belong to storms: the rule of
# the current one, start and end of the stop of a queue, start of its recovery; -1 = none.
EPOCH, LAST_TS, UP, UP_TS, SPEED, PAUSED, STORM, HELD, UNTIL, CLEAR = range(10)
MARKS = 10
NOTHING = np.array([0, -1, -1, -1, 0, 0, 0, -1, -1, -1], np.int64)

RESET, WRAP, GAP, IMPLAUSIBLE = 1, 2, 4, 8

# An interval is a gap above this multiple of the usual one.
GAP_FACTOR = 2.5
# The plausible load relative to the line rate: a wrap must be likely, but a forward step is refused only if it is absurd, because a
# virtual or bonded interface may carry more than its reported rate.
WRAP_FACTOR, FORWARD_FACTOR = 1.25, 4.0
# Sampling times jitter, and adapters refresh counters every 10 ms.
JITTER_NS = 50_000_000
# A counter without a line that goes backward within this time has wrapped.
WRAP_NS_MAX = 120_000_000_000
# No line and no buffer carries more per nanosecond (8 Pbit/s), so sums over an hour fit in 63 bits.
UNITS_PER_NS_MAX = 2.0**20

_WIDEST = np.uint64(2**64 - 1)


class CounterSamples(NamedTuple):
    """The counter samples of some objects, in order of object, time and epoch; int64.

    order: (rows,) the rows in that order; start: (samples + 1,) where the rows of each sample begin in ``order``, then the end.
    code, ts, epoch, cell: (samples,) object, ns, epoch, and the cell: one object in one window.
    """

    order: np.ndarray
    start: np.ndarray
    code: np.ndarray
    ts: np.ndarray
    epoch: np.ndarray
    cell: np.ndarray


class CounterValues(NamedTuple):
    """One counter or gauge by row: values (rows,) uint64, present (rows,) bool, empty where every row has a value."""

    values: np.ndarray
    present: np.ndarray


class LineRates(NamedTuple):
    """The line by sample: generation (samples,) int64, number of epoch changes so far; bound (samples,) float64 bit/s, the fastest rate."""

    generation: np.ndarray
    bound: np.ndarray


class CounterLimits(NamedTuple):
    """Limits of one counter: tops (objects,) uint64 largest value, saturates (objects,) bool, cost float, bits of the line a unit."""

    tops: np.ndarray
    saturates: np.ndarray
    cost: float


class Sums(NamedTuple):
    """One counter or gauge by cell: total (cells,) uint64; covered (cells,) int64 ns, of a gauge the bits of its largest; counted
    (cells,) int64, deltas or values that count.
    """

    total: np.ndarray
    covered: np.ndarray
    counted: np.ndarray


class Verdicts(NamedTuple):
    """Findings by sample: flags (samples,) int64 bits, restarted (samples,) bool, repeats (samples,) int64 rows beyond the first."""

    flags: np.ndarray
    restarted: np.ndarray
    repeats: np.ndarray


class Movement(NamedTuple):
    """Delta of one counter by sample, ``moved``, and the time ``since_ns`` it covers from; (samples,) int64, -1 = none, or both empty."""

    moved: np.ndarray
    since_ns: np.ndarray


@numba.njit(cache=True, nogil=True)
def place(code, objects):
    """Return the rows sorted by object, stable: code (rows,) int64 below ``objects`` to (rows,) int64."""
    at = np.zeros(objects + 1, np.int64)
    for row in range(len(code)):
        at[code[row] + 1] += 1
    for one in range(objects):
        at[one + 1] += at[one]
    order = np.empty(len(code), np.int64)
    for row in range(len(code)):
        order[at[code[row]]] = row
        at[code[row]] += 1
    return order


@numba.njit(cache=True, nogil=True)
def samples_of(order, code, ts, epoch, window_ns):
    """Return the start of each counter sample in ``order``, its cell, and the first sample of each cell; all int64.

    order: (rows,); code, ts (ns), epoch: by row, int64. The first and the third result end with the total. A cell is one object in
    one window. All results are empty if the rows are not sorted by object, time and epoch.
    """
    rows = len(order)
    start, cell, first = np.empty(rows + 1, np.int64), np.empty(rows, np.int64), np.empty(rows + 1, np.int64)
    found, cells = 0, 0
    for at in range(rows):
        here = order[at]
        same_object, same_window = False, False
        if at:
            before = order[at - 1]
            same_object = code[here] == code[before]
            if same_object and (ts[here] < ts[before] or (ts[here] == ts[before] and epoch[here] < epoch[before])):
                return start[:0], cell[:0], first[:0]
            if same_object and ts[here] == ts[before] and epoch[here] == epoch[before]:
                continue
            same_window = same_object and ts[here] // window_ns == ts[before] // window_ns
        if not same_window:
            first[cells] = found
            cells += 1
        start[found] = at
        cell[found] = cells - 1
        found += 1
    start[found], first[cells] = rows, found
    return start[: found + 1], cell[:found], first[: cells + 1]


@numba.njit(cache=True, nogil=True)
def follow(samples, speed, up, marks, out, flags):
    """Follow epoch, line rate and link of each object.

    speed: (rows,) int64 bit/s, 0 = unknown; up: (rows,) int64, -1 = unknown. Of the rows of one sample the fastest rate counts, and
    one that is down. marks: (objects, MARKS) int64 and flags: (samples,) int64 are updated. out: (4, cells) int64 gains samples with a
    known link, changes, ns up, ns down. Returns by sample: epoch changes since the carried state (int64), the line rate and the
    faster of it and the one before (float64 bit/s), and the change of the link (int64: 1 up, -1 down).
    """
    order, start, code, ts, epoch, cell = samples
    count = len(code)
    generation, rate, bound = np.zeros(count, np.int64), np.zeros(count, np.float64), np.zeros(count, np.float64)
    change = np.zeros(count, np.int64)
    for r in range(count):
        mark = marks[code[r]]
        if r and code[r - 1] == code[r]:
            generation[r] = generation[r - 1]
        fastest, link = np.int64(0), np.int64(-1)
        for at in range(start[r], start[r + 1]):
            row = order[at]
            fastest = max(fastest, speed[row])
            if up[row] >= 0:
                link = up[row] if link < 0 else min(link, up[row])
        if mark[LAST_TS] >= 0 and mark[EPOCH] != epoch[r]:
            generation[r] += 1
            flags[r] |= RESET
        mark[EPOCH], mark[LAST_TS] = epoch[r], ts[r]
        before = mark[SPEED]
        if fastest > 0:
            mark[SPEED] = fastest
        rate[r] = mark[SPEED]
        bound[r] = max(before, mark[SPEED])
        if link >= 0:
            if mark[UP] >= 0:
                out[0, cell[r]] += 1
                out[2 if mark[UP] == 1 else 3, cell[r]] += ts[r] - mark[UP_TS]
                if link != mark[UP]:
                    out[1, cell[r]] += 1
                    change[r] = 1 if link else -1
            mark[UP], mark[UP_TS] = link, ts[r]
    return generation, rate, bound, change


@numba.njit(nogil=True)
def _fold(values, present, order, begin, end):
    """Return the largest value among the rows of one sample, and the number of rows with a value."""
    largest, found = np.uint64(0), 0
    for at in range(begin, end):
        row = order[at]
        if len(present) == 0 or present[row]:
            found += 1
            largest = max(largest, values[row])
    return largest, found


@numba.njit(nogil=True)
def _wraps(delta, value, last, elapsed, top, cost, rate):
    if delta > UNITS_PER_NS_MAX * (elapsed + JITTER_NS):
        return False
    if cost > 0 and rate > 0:
        return delta * cost * 1e9 <= WRAP_FACTOR * rate * (elapsed + JITTER_NS)
    return last > top // np.uint64(2) and value <= top // np.uint64(2) and elapsed <= WRAP_NS_MAX


@numba.njit(nogil=True)
def _back(value, last, elapsed, top, saturates, cost, rate):
    """Return the delta of a counter that went backward, and whether it wrapped or restarted."""
    if saturates:
        return np.uint64(0), RESET
    # A value above the width means that the register has 64 bits.
    top = top if max(value, last) <= top else np.uint64(0xFFFFFFFFFFFFFFFF)
    delta = (value - last) & top
    return delta, WRAP if _wraps(delta, value, last, elapsed, top, cost, rate) else RESET


@numba.njit(nogil=True)
def _carried(rate, cost):
    """Return the largest delta of a counter per nanosecond."""
    return min(FORWARD_FACTOR * rate / (1e9 * cost), UNITS_PER_NS_MAX) if cost > 0 and rate > 0 else UNITS_PER_NS_MAX


@numba.njit(nogil=True)
def _usual(usual, elapsed):
    """Return the updated usual interval: it changes by an eighth at most, and doubles if it was far exceeded."""
    if usual < 0:
        return elapsed
    if elapsed > GAP_FACTOR * usual:
        return min(elapsed, 2 * usual)
    return min(max(elapsed, usual - (usual >> 3)), usual + (usual >> 3))


@numba.njit(cache=True, nogil=True)
def differ(numbers, samples, line, limits, seen, sums, verdicts, movement):
    """Add up the deltas of one counter: ``CounterValues``, ``CounterSamples``, ``LineRates`` and ``CounterLimits`` in, the others updated.

    seen: (objects, SEEN_COLUMNS) int64, the last known value of each object. Walk the widest counter first: ``Verdicts.restarted``
    marks the samples in which a counter of 64 bits restarted, and applies to the narrower ones of the same sample.
    """
    values, present = numbers
    order, start, code, times, _, cell = samples
    generation, rate = line
    tops, saturates, cost = limits
    total, covered, counted = sums
    flags, restarted, repeats = verdicts
    moved, since = movement
    count, wanted, whole = len(code), len(moved) > 0, len(present) == 0
    known_rate, carried = -1.0, 0.0
    r = 0
    while r < count:
        one = code[r]
        last, last_ts, moved_ts, usual = np.uint64(seen[one, VALUE]), seen[one, TS], seen[one, MOVED], seen[one, USUAL]
        last_generation = np.int64(0)
        while r < count and code[r] == one:
            begin, end = start[r], start[r + 1]
            value, found = (values[order[begin]], 1) if whole and end - begin == 1 else _fold(values, present, order, begin, end)
            if found:
                if found > 1:
                    repeats[r] = max(repeats[r], found - 1)
                now = times[r]
                known = last_ts >= 0 and last_generation == generation[r]
                if known:
                    if rate[r] != known_rate:
                        known_rate, carried = rate[r], _carried(rate[r], cost)
                    delta, elapsed = value - last, now - last_ts
                    if value < last:
                        delta, verdict = _back(value, last, elapsed, tops[one], saturates[one] or restarted[r], cost, known_rate)
                        restarted[r] |= verdict == RESET and tops[one] == _WIDEST
                    else:
                        verdict = IMPLAUSIBLE if delta > carried * (now - moved_ts + JITTER_NS) else 0
                    if verdict in (0, WRAP):
                        total[cell[r]] += delta
                        covered[cell[r]] += elapsed
                        counted[cell[r]] += 1
                        if wanted:
                            moved[r], since[r] = np.int64(delta), last_ts
                    if usual >= 0 and elapsed > GAP_FACTOR * usual:
                        verdict |= GAP
                    if verdict:
                        flags[r] |= verdict
                    usual = _usual(usual, elapsed)
                moved_ts = moved_ts if known and value == last else now
                last, last_ts, last_generation = value, now, generation[r]
            r += 1
        # A value from before a restart cannot be compared with later ones.
        seen[one, VALUE], seen[one, MOVED], seen[one, USUAL] = np.int64(last), moved_ts, usual
        seen[one, TS] = last_ts if last_generation == generation[r - 1] else -1


@numba.njit(cache=True, nogil=True)
def gauge(numbers, samples, sums, repeats, read):
    """Add up one gauge: of ``Sums``, ``covered`` gets the largest value. read: (samples,) int64, the gauge or -1 = none; or empty."""
    order, start, cell = samples.order, samples.start, samples.cell
    for r in range(len(cell)):
        value, found = _fold(numbers.values, numbers.present, order, start[r], start[r + 1])
        if len(read):
            read[r] = np.int64(min(value, np.uint64(2**62))) if found else -1
        if found:
            repeats[r] = max(repeats[r], found - 1)
            sums.covered[cell[r]] = np.int64(max(np.uint64(sums.covered[cell[r]]), value))
            sums.total[cell[r]] += value
            sums.counted[cell[r]] += 1
