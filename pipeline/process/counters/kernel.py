"""The passes over readings of counters: what each moved since the reading before, and whether that can be.

Rows are put in order of object, time and epoch; those that agree in all three are one reading, column by column the
largest value of those that have one, so that the order of arrival does not matter. A counter is compared with its last
known value of the same epoch; the interval between the two counts in the window of the later one:

    forward, and no more than the line can carry: counts.
    backward: a wrap where the way over 2^bits is short enough for the line (or, where nothing bounds the counter, from the
        upper half into the lower in a short time): counts. Else the counter began anew: nothing counts. Where a counter of 64
        bits did, those of the same reading that went back did too, however narrow they are.
    a counter that saturates never wraps; at its maximum what it moved is at least this.
    ``GAP_FACTOR`` times as long as usual: counts, and is told.

A device may refresh a counter more rarely than it is read; then a step is the work of all the time since the last one. So
what the line can carry is taken over the time since the counter last moved; of a line whose rate has changed, the faster of the
two. A counter of ``cost`` c takes c bits of the line
for each unit; the bound of any counter is that of a line of 8 Pbit/s.

Everything is one pass, linear in the rows; integers are exact (differences modulo 2^64).
"""

import numba
import numpy as np

# What is known of one counter of one object: its last value (the bits of a uint64), when that was read (-1: nothing is known),
# when it last changed, and the usual interval of its readings (-1: not known).
VALUE, TS, MOVED, USUAL = range(4)
SEEN_COLUMNS = 4

# What is known of one object. ``LAST_TS`` -1: nothing. ``UP`` -1: not known. ``SPEED`` 0: not known.
# The four last are of storms: since and until when a queue is held, since when a storm is clear; -1 = not.
EPOCH, LAST_TS, UP, UP_TS, SPEED, PAUSED, STORM, HELD, UNTIL, CLEAR = range(10)
MARKS = 10
NOTHING = np.array([0, -1, -1, -1, 0, 0, 0, -1, -1, -1], np.int64)

RESET, WRAP, GAP, IMPLAUSIBLE = 1, 2, 4, 8

# An interval is a gap from so many times the usual on.
GAP_FACTOR = 2.5
# How much more than its rate a line is taken to carry: a wrap must be likely, and a step forward is refused only where it is
# absurd, since a virtual or bonded interface may carry more than the rate that it tells.
WRAP_FACTOR, FORWARD_FACTOR = 1.25, 4.0
# Readings jitter, and adapters refresh counters every 10 ms.
JITTER_NS = 50_000_000
# Of a counter that nothing bounds, a way down this short a time after is a wrap.
WRAP_NS_MAX = 120_000_000_000
# No line and no buffer brings more in a nanosecond (8 Pbit/s), so sums over an hour fit in 63 bits.
UNITS_PER_NS_MAX = 2.0**20

_WIDEST = np.uint64(2**64 - 1)
_EMPTY = np.zeros(0, np.int64)


@numba.njit(cache=True, nogil=True)
def place(code, objects):
    """Return the rows in order of their object, in each as they stand."""
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
def readings(order, code, ts, epoch, window_ns):
    """Return where each reading begins in ``order`` (and the end), its cell, and each cell's first reading (and the end).

    A cell is one object in one window. The whole is empty where rows are not in order of object, time and epoch.
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
def follow(order, start, code, ts, epoch, cell, speed, up, marks, out, flags):
    """Follow epoch, line rate and link of each object.

    ``speed`` is 0 and ``up`` -1 where a row does not tell; of rows of one reading the fastest rate and a link that is down count.
    Returns per reading: how often the epoch has changed since the carried state, the line rate, the faster of it and the one
    before, and how the link changed (1 up, -1 down). ``out`` (4, cells) gains readings where the link is known, changes, time
    up, time down.
    """
    count = len(start) - 1
    generation, rate, bound = np.zeros(count, np.int64), np.zeros(count, np.float64), np.zeros(count, np.float64)
    change = np.zeros(count, np.int64)
    for r in range(count):
        one = order[start[r]]
        mark = marks[code[one]]
        if r and code[order[start[r - 1]]] == code[one]:
            generation[r] = generation[r - 1]
        fastest, link = np.int64(0), np.int64(-1)
        for at in range(start[r], start[r + 1]):
            row = order[at]
            fastest = max(fastest, speed[row])
            if up[row] >= 0:
                link = up[row] if link < 0 else min(link, up[row])
        if mark[LAST_TS] >= 0 and mark[EPOCH] != epoch[one]:
            generation[r] += 1
            flags[r] |= RESET
        mark[EPOCH], mark[LAST_TS] = epoch[one], ts[one]
        before = mark[SPEED]
        if fastest > 0:
            mark[SPEED] = fastest
        rate[r] = mark[SPEED]
        bound[r] = max(before, mark[SPEED])
        if link >= 0:
            if mark[UP] >= 0:
                out[0, cell[r]] += 1
                out[2 if mark[UP] == 1 else 3, cell[r]] += ts[one] - mark[UP_TS]
                if link != mark[UP]:
                    out[1, cell[r]] += 1
                    change[r] = 1 if link else -1
            mark[UP], mark[UP_TS] = link, ts[one]
    return generation, rate, bound, change


@numba.njit(nogil=True)
def _fold(values, present, order, begin, end):
    """Return the largest value of the rows of one reading and how many have one."""
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
    """Return what a counter that went back has moved, and whether it wrapped or began anew."""
    if saturates:
        return np.uint64(0), RESET
    # A register that is wider than it should be is taken for one of 64 bits.
    top = top if max(value, last) <= top else np.uint64(0xFFFFFFFFFFFFFFFF)
    delta = (value - last) & top
    return delta, WRAP if _wraps(delta, value, last, elapsed, top, cost, rate) else RESET


@numba.njit(nogil=True)
def _carried(rate, cost):
    """Return the most that a counter moves in a nanosecond."""
    return min(FORWARD_FACTOR * rate / (1e9 * cost), UNITS_PER_NS_MAX) if cost > 0 and rate > 0 else UNITS_PER_NS_MAX


@numba.njit(nogil=True)
def _usual(usual, elapsed):
    """Return the usual interval after one more: it follows by an eighth at most, and twofold where it was far exceeded."""
    if usual < 0:
        return elapsed
    if elapsed > GAP_FACTOR * usual:
        return min(elapsed, 2 * usual)
    return min(max(elapsed, usual - (usual >> 3)), usual + (usual >> 3))


@numba.njit(cache=True, nogil=True)
def differ(values, present, order, readings, limits, seen, sums, flags, anew, repeats, moved, since):
    """Walk one counter through all readings.

    ``present`` is empty where every row has a value. ``readings`` is (start in ``order``, object, time, generation, fastest line
    rate, cell). ``limits`` is (largest value and saturation by object, cost). ``seen`` (objects, 4) is what is known before, and after.
    ``sums`` is (total, covered time, intervals that count) by cell. ``flags`` and ``repeats`` gain, by reading, what is told and
    how often a value stood there already. ``anew`` says, by reading, where a counter of 64 bits has begun anew; to be walked widest
    counter first. ``moved`` and ``since``, where they are not empty, get by reading what it moved and
    from when on; they keep -1 where nothing counts.
    """
    start, code, times, generation, rate, cell = readings
    tops, saturates, cost = limits
    total, covered, counted = sums
    count, wanted, whole = len(code), len(moved) > 0, len(present) == 0
    line, carried = -1.0, 0.0
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
                    if rate[r] != line:
                        line, carried = rate[r], _carried(rate[r], cost)
                    delta, elapsed = value - last, now - last_ts
                    if value < last:
                        delta, verdict = _back(value, last, elapsed, tops[one], saturates[one] or anew[r], cost, line)
                        anew[r] |= verdict == RESET and tops[one] == _WIDEST
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
        # What was read before the counters started anew is no value to compare with.
        seen[one, VALUE], seen[one, MOVED], seen[one, USUAL] = np.int64(last), moved_ts, usual
        seen[one, TS] = last_ts if last_generation == generation[r - 1] else -1


@numba.njit(cache=True, nogil=True)
def gauge(values, present, order, start, cell, high, total, counted, repeats, read):
    """Take one gauge through all readings: largest, sum and number by cell; ``read`` by reading where it is not empty, -1 = none."""
    for r in range(len(start) - 1):
        value, found = _fold(values, present, order, start[r], start[r + 1])
        if len(read):
            read[r] = np.int64(min(value, np.uint64(2**62))) if found else -1
        if found:
            repeats[r] = max(repeats[r], found - 1)
            high[cell[r]] = max(high[cell[r]], value)
            total[cell[r]] += value
            counted[cell[r]] += 1
