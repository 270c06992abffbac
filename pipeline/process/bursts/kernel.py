"""The single pass over burst samples: every statistic of a window in one walk, with what crosses its edge.

Samples stand in a dense matrix, one row per entity (a signal of a port), one column per slot; slot s covers
[s d, (s+1) d) with d the sample interval, so the grid hangs on 1970 and not on when somebody began to look.
-1 marks a slot without a sample. A matrix has 32 bits where its samples fit, for it is read from memory several times.
Counts, sums and squares stay integers (squares in two 64-bit halves), so any cut of the input gives the same bits.

A sample is hot where it exceeds the entity's threshold [Zhang, Liu, Zeng, Krishnamurthy, IMC 2017]; a burst is a
maximal run of hot samples and belongs to the window in which it starts. A missing sample ends a burst and
forgets neighbours: nothing is inferred across a hole.

Blocks of m = 2, 4 ... 1024 samples are aligned to multiples of m on the slot grid and built from two halves, so a
block counts where its last sample falls and only if every sample of it is there.
"""

import numba
import numpy as np

from ...histogram import BUCKETS
from ...tables.field import LADDER

LEVELS = len(LADDER)

# Columns of the carry, one row per entity. -1 in any of them says "none".
LAST_SLOT, LAST_HOT, OPEN_START, OPEN_BYTES, OPEN_PEAK, OPEN_CONTENTION, OPEN_ECN, OPEN_RETRANSMIT = range(8)
PREVIOUS_START, PREVIOUS_TAU, PREVIOUS_END = range(8, 11)
PENDING_INDEX = 11
PENDING_SUM = PENDING_INDEX + LEVELS
CARRY_COLUMNS = PENDING_SUM + LEVELS

# Columns of the statistics, one row per entity and window, in the order of the table's fields.
SAMPLES, TOTAL, LOW, HIGH, HOT, HOT_TOTAL, BURSTS, PAIRS = range(8)  # PAIRS: four columns, cold_cold .. hot_hot
GAPS, GAP_TOTAL, TAU_COUNT, TAU_TOTAL, PAIR_COUNT, PAIR_X, PAIR_Y = range(11, 18)
BLOCKS = 18
BLOCK_TOTAL = BLOCKS + LEVELS
STATISTICS = BLOCK_TOTAL + LEVELS

# Columns of the squares, each two 64-bit halves.
SQ_SAMPLES, SQ_TAU, SQ_XX, SQ_YY, SQ_XY = range(5)
SQ_BLOCK = 5
SQUARE_COLUMNS = SQ_BLOCK + LEVELS

BURST_COLUMNS = 7  # entity, start slot, end slot, bytes, peak, contention, and the two companions after them
PROFILE_SPANS = 100
PROFILE_SPAN_NS = 10_000_000
_U32_MAX = 2**32 - 1

# No line and no buffer brings more in a nanosecond (8 Pbit/s): what claims to is refused, so that sums over an hour fit in
# 63 bits and sums of squares, of blocks of 1024 too, in 38 digits.
BYTES_PER_NS_MAX = 2**20


# The top seven bits of a double's pattern are the bucket: see ``histogram``.
_SHIFT = 46
_BIAS = 1023 * 64


@numba.njit
def bucket(value):
    """Return the bucket of one non-negative integer below 2^63."""
    if value == 0:
        return 0
    # The conversion to a double rounds above 2^53; clearing what the bucket ignores anyway keeps it exact.
    if value >= 1 << 53:
        value = (value >> 11) << 11
    return (np.float64(value).view(np.int64) >> _SHIFT) - _BIAS + 1


def empty_carry(entities: int) -> np.ndarray:
    """Return the carry of entities of which nothing is known; shape (entities, CARRY_COLUMNS), int64."""
    return np.full((entities, CARRY_COLUMNS), -1, np.int64)


@numba.njit(cache=True, nogil=True)
def scatter(matrix, bounds, entity, run_slot, offsets, values, top, refused):
    """Write runs into the matrix, whose windows begin (and end) at the slots ``bounds``.

    Of two samples of one slot the larger counts, whichever came first, so that the order of arrival does not matter.
    ``refused`` (entities, windows, 2) counts second comers, and samples above ``top``, which are none.
    """
    slots = matrix.shape[1]
    for run in range(entity.shape[0]):
        row = matrix[entity[run]]
        base = run_slot[run] - bounds[0]
        begin = offsets[run]
        first, after = max(0, -base), min(offsets[run + 1] - begin, slots - base)
        # As nearly always: every sample is one, and comes first. Asked of all at once, this takes a third of asking each.
        source, target = values[begin + first : begin + max(first, after)], row[base + first : base + max(first, after)]
        there = np.int64(-1)
        for value in target:
            there = max(there, np.int64(value))
        low, high = np.int64(0), np.int64(0)
        for value in source:
            low, high = min(low, np.int64(value)), max(high, np.int64(value))
        if there < 0 and low == 0 and high <= top:
            for k in range(len(source)):
                target[k] = source[k]
            continue
        for k in range(first, after):
            value = np.int64(values[begin + k])
            # What does not fit 63 bits has turned negative, and was none of the missing ones.
            if value < 0 and not values[begin + k] > 0:
                continue
            if value < 0 or value > top:
                refused[entity[run], np.searchsorted(bounds, bounds[0] + base + k, side="right") - 1, 1] += 1
                continue
            if row[base + k] >= 0:
                refused[entity[run], np.searchsorted(bounds, bounds[0] + base + k, side="right") - 1, 0] += 1
            row[base + k] = max(np.int64(row[base + k]), value)


@numba.njit(cache=True, nogil=True)
def contention(matrix, threshold, group, groups):
    """Return, per group and slot, how many entities are hot, and how many were sampled; both (groups, slots) int32."""
    entities, slots = matrix.shape
    hot = np.zeros((groups, slots), np.int32)
    sampled = np.zeros((groups, slots), np.int32)
    for e in range(entities):
        g = group[e]
        if g < 0:
            continue
        for s in range(slots):
            sampled[g, s] += matrix[e, s] >= 0
            hot[g, s] += matrix[e, s] > threshold[e]
    return hot, sampled


@numba.njit(inline="never")
def _wide_product(x, y):
    """Return x*y as (low half, high half) of 128 bits; x and y below 2^63."""
    mask = np.uint64(_U32_MAX)
    x0, x1 = np.uint64(x) & mask, np.uint64(x) >> np.uint64(32)
    y0, y1 = np.uint64(y) & mask, np.uint64(y) >> np.uint64(32)
    cross = x1 * y0 + ((x0 * y0) >> np.uint64(32))
    middle = x0 * y1 + (cross & mask)
    return np.uint64(x) * np.uint64(y), x1 * y1 + (cross >> np.uint64(32)) + (middle >> np.uint64(32))


@numba.njit
def _add_product(squares, row, column, x, y):
    """Add x*y to the 128-bit number (low half, high half) at ``squares[row, column]``."""
    if (x | y) < 4294967296:
        low, high = np.uint64(x) * np.uint64(y), np.uint64(0)
    else:
        low, high = _wide_product(x, y)
    total = squares[row, column, 0] + low
    squares[row, column, 0] = total
    squares[row, column, 1] += high + np.uint64(total < low)


@numba.njit
def _close_burst(carry, e, end_slot, out, filled):
    out[filled, 0], out[filled, 1], out[filled, 2] = e, carry[e, OPEN_START], end_slot
    for k in range(OPEN_BYTES, OPEN_RETRANSMIT + 1):
        out[filled, 3 + k - OPEN_BYTES] = carry[e, k]
    carry[e, OPEN_START] = -1
    carry[e, PREVIOUS_END] = end_slot
    return filled + 1


@numba.njit
def _forget(carry, e):
    """Drop what links neighbours: after a hole there are none."""
    carry[e, LAST_HOT] = -1
    carry[e, PREVIOUS_START] = -1
    carry[e, PREVIOUS_TAU] = -1
    carry[e, PREVIOUS_END] = -1


@numba.njit
def _start_burst(carry, e, stats, squares, row, slot, gap_row, gap_value, gaps):
    if carry[e, PREVIOUS_END] >= 0:
        gap = slot - carry[e, PREVIOUS_END]
        stats[row, GAPS] += 1
        stats[row, GAP_TOTAL] += gap
        gap_row[gaps], gap_value[gaps] = row, gap
        gaps += 1
    tau = np.int64(-1)
    if carry[e, PREVIOUS_START] >= 0:
        tau = slot - carry[e, PREVIOUS_START]
        stats[row, TAU_COUNT] += 1
        stats[row, TAU_TOTAL] += tau
        _add_product(squares, row, SQ_TAU, tau, tau)
        x = carry[e, PREVIOUS_TAU]
        if x >= 0:
            stats[row, PAIR_COUNT] += 1
            stats[row, PAIR_X] += x
            stats[row, PAIR_Y] += tau
            _add_product(squares, row, SQ_XX, x, x)
            _add_product(squares, row, SQ_YY, tau, tau)
            _add_product(squares, row, SQ_XY, x, tau)
    stats[row, BURSTS] += 1
    carry[e, PREVIOUS_START], carry[e, PREVIOUS_TAU] = slot, tau
    carry[e, OPEN_START], carry[e, OPEN_BYTES], carry[e, OPEN_PEAK], carry[e, OPEN_CONTENTION] = slot, 0, 0, 0
    carry[e, OPEN_ECN] = carry[e, OPEN_RETRANSMIT] = -1
    return gaps


@numba.njit
def _grow_burst(carry, e, value, hot, ecn, retransmit):
    """Add a hot sample to the open burst; the last three are -1 where there is none."""
    carry[e, OPEN_BYTES] += value
    carry[e, OPEN_PEAK] = max(carry[e, OPEN_PEAK], value)
    carry[e, OPEN_CONTENTION] = max(carry[e, OPEN_CONTENTION], hot)
    if ecn >= 0:
        carry[e, OPEN_ECN] = max(carry[e, OPEN_ECN], 0) + ecn
    if retransmit >= 0:
        carry[e, OPEN_RETRANSMIT] = max(carry[e, OPEN_RETRANSMIT], 0) + retransmit


@numba.njit
def _sum_squares(values, count, squares, row, column):
    """Add the squares of ``values[:count]`` (-1 = none) to a 128-bit number."""
    top = np.int64(0)
    for k in range(count):
        top = max(top, values[k])
    if top >= 4294967296:
        for k in range(count):
            if values[k] >= 0:
                _add_product(squares, row, column, values[k], values[k])
        return
    # Halves of 32 bits cannot overflow within a window, and this form runs in vector registers.
    low, high = np.uint64(0), np.uint64(0)
    for k in range(count):
        value = np.uint64(max(values[k], 0))
        product = value * value
        low += product & np.uint64(_U32_MAX)
        high += product >> np.uint64(32)
    high += low >> np.uint64(32)
    total = squares[row, column, 0] + ((high << np.uint64(32)) | (low & np.uint64(_U32_MAX)))
    squares[row, column, 1] += (high >> np.uint64(32)) + np.uint64(total < squares[row, column, 0])
    squares[row, column, 0] = total


@numba.njit
def _ladder(carry, e, stats, squares, row, index, values, count):
    """Add the samples of a window to the blocks of 2, 4 ... 1024: level by level, each built of pairs of the last.

    ``values[:count]`` (-1 = none, overwritten) start at slot ``index``. A left half without its right one waits in
    the carry; a block with a hole is none.
    """
    for level in range(LEVELS):
        if count == 0:
            return
        blocks = k = 0
        if index & 1:
            left = carry[e, PENDING_SUM + level] if carry[e, PENDING_INDEX + level] == index - 1 else np.int64(-1)
            values[0] = -1 if (left | values[0]) < 0 else left + values[0]
            blocks = k = 1
        if (count - k) & 1:
            carry[e, PENDING_INDEX + level] = index + count - 1 if values[count - 1] >= 0 else -1
            carry[e, PENDING_SUM + level] = values[count - 1]
        pairs = (count - k) // 2
        for p in range(pairs):
            left, right = values[k + 2 * p], values[k + 2 * p + 1]
            values[blocks + p] = -1 if (left | right) < 0 else left + right
        count, index = blocks + pairs, index >> 1
        whole, total = np.int64(0), np.int64(0)
        for p in range(count):
            whole += values[p] >= 0
            total += max(values[p], 0)
        stats[row, BLOCKS + level] += whole
        stats[row, BLOCK_TOTAL + level] += total
        _sum_squares(values, count, squares, row, SQ_BLOCK + level)


@numba.njit
def _profile(matrix, e, begin, end, first_slot, interval_ns, window_ns, profile, row):
    """Sum the samples of each 10 ms of one window."""
    column = begin
    for span in range(PROFILE_SPANS):
        # The first slot that starts in the next span.
        border = min(end, -(-(window_ns + (span + 1) * PROFILE_SPAN_NS) // interval_ns) - first_slot)
        total = np.int64(0)
        for inside in range(column, border):
            total += max(np.int64(matrix[e, inside]), 0)
        column = max(column, border)
        profile[row, span] = min(total, _U32_MAX)


@numba.njit
def _arrive(carry, e, first_slot, bursts, found):
    """Close and forget what cannot go on in the first slot, because the slot before it was not seen."""
    if carry[e, LAST_SLOT] != first_slot - 1:
        if carry[e, OPEN_START] >= 0:
            found = _close_burst(carry, e, carry[e, LAST_SLOT] + 1, bursts, found)
        _forget(carry, e)
    return found


@numba.njit
def _break(carry, e, slot, bursts, found):
    """Close and forget at a hole."""
    if carry[e, OPEN_START] >= 0:
        found = _close_burst(carry, e, slot, bursts, found)
    _forget(carry, e)
    return found


# Called, it takes a quarter longer than inlined, and the compiler does not see that by itself.
@numba.njit(forceinline=True)
def _follow(matrix, e, begin, end, first_slot, top, carry, group, hot, ecn, retransmit, stats, squares, row, scratch, out, filled):
    """Walk the samples of one window: what is hot, which bursts begin and end, the counts of each bucket.

    ``out`` is (bursts, rows of gaps, lengths of gaps), ``filled`` how many bursts and gaps are in them; returns the latter two.
    """
    bursts, gap_row, gap_value = out
    found, gaps = filled
    n = total = hot_n = hot_total = np.int64(0)
    low, high = np.int64(2**62), np.int64(-1)
    last_hot = carry[e, LAST_HOT]
    for column in range(begin, end):
        value = np.int64(matrix[e, column])
        if value < 0:
            if last_hot >= 0:
                found = _break(carry, e, first_slot + column, bursts, found)
                last_hot = np.int64(-1)
            continue
        n += 1
        total += value
        low, high = min(low, value), max(high, value)
        scratch[bucket(value)] += 1
        is_hot = np.int64(value > top)
        if last_hot >= 0:
            stats[row, PAIRS + 2 * last_hot + is_hot] += 1
        if is_hot:
            if last_hot != 1:
                gaps = _start_burst(carry, e, stats, squares, row, first_slot + column, gap_row, gap_value, gaps)
            hot_n += 1
            hot_total += value
            # A helper of its own for these, called with whole arrays for each hot sample, made the walk three times slower.
            rivals = np.int64(hot[group[e], column]) if group[e] >= 0 else np.int64(0)
            marked = np.int64(matrix[ecn[e], column]) if ecn[e] >= 0 else np.int64(-1)
            resent = np.int64(matrix[retransmit[e], column]) if retransmit[e] >= 0 else np.int64(-1)
            _grow_burst(carry, e, value, rivals, marked, resent)
        elif last_hot == 1:
            found = _close_burst(carry, e, first_slot + column, bursts, found)
        last_hot = is_hot
    carry[e, LAST_HOT] = last_hot
    if n:
        stats[row, SAMPLES], stats[row, TOTAL], stats[row, LOW], stats[row, HIGH] = n, total, low, high
        stats[row, HOT], stats[row, HOT_TOTAL] = hot_n, hot_total
    return found, gaps


@numba.njit
def _empty_scratch(scratch, low, high, index, count, filled):
    """Move the counts of the buckets ``low`` to ``high`` out of the scratch histogram."""
    for first in range(low, high + 1, 64):
        after = min(first + 64, high + 1)
        # Most octaves are empty; in the others what is full follows no pattern, so what is empty is written too, and then over.
        if scratch[first:after].sum():
            for i in range(first, after):
                index[filled], count[filled] = i, scratch[i]
                filled += scratch[i] > 0
                scratch[i] = 0
    return filled


@numba.njit(cache=True, nogil=True)
def walk(matrix, first_slot, bounds, window_ns, interval_ns, threshold, carry, group, hot, ecn, retransmit):
    """Compute all statistics of a stretch of windows in one pass.

    Args:
        matrix: (entities, slots) int32 or int64 samples, -1 = none.
        first_slot: slot of the matrix's first column.
        bounds: (windows + 1,) first slot of each window, then the end.
        window_ns: (windows,) start of each window.
        threshold: (entities,) a sample above it is hot.
        carry: (entities, CARRY_COLUMNS), updated in place.
        group, hot: the entity's row in ``hot`` (-1: none), hot entities per group and slot.
        ecn, retransmit: (entities,) matrix rows of the companions, -1 = not sampled.

    Returns:
        statistics (rows, STATISTICS) int64, squares (rows, SQUARE_COLUMNS, 2) uint64, profile (rows, 100) uint32,
        histogram offsets, buckets, counts, bursts (n, BURST_COLUMNS + 1) int64, rows and lengths of gaps. Row e * windows + w
        is entity e in window w; rows without samples are all zero.
    """
    entities, slots = matrix.shape
    windows = bounds.shape[0] - 1
    rows = entities * windows
    stats = np.zeros((rows, STATISTICS), np.int64)
    squares = np.zeros((rows, SQUARE_COLUMNS, 2), np.uint64)
    profile = np.zeros((rows, PROFILE_SPANS), np.uint32)
    hist_offsets = np.zeros(rows + 1, np.int64)
    hist_index = np.empty(matrix.size + 1, np.int16)
    hist_count = np.empty(matrix.size + 1, np.int64)
    bursts = np.empty((matrix.size // 2 + 2 * entities, BURST_COLUMNS + 1), np.int64)
    gap_row = np.empty(matrix.size // 2 + entities, np.int64)
    gap_value = np.empty(matrix.size // 2 + entities, np.int64)
    out = (bursts, gap_row, gap_value)
    scratch = np.zeros(BUCKETS, np.int64)
    block = np.empty(slots, np.int64)
    filled = found = gaps = 0
    for e in range(entities):
        found = _arrive(carry, e, first_slot, bursts, found)
        for w in range(windows):
            row = e * windows + w
            begin, end = bounds[w] - first_slot, bounds[w + 1] - first_slot
            _profile(matrix, e, begin, end, first_slot, interval_ns, window_ns[w], profile, row)
            found, gaps = _follow(
                matrix,
                e,
                begin,
                end,
                first_slot,
                threshold[e],
                carry,
                group,
                hot,
                ecn,
                retransmit,
                stats,
                squares,
                row,
                scratch,
                out,
                (found, gaps),
            )
            if stats[row, SAMPLES]:
                for k in range(end - begin):
                    block[k] = matrix[e, begin + k]
                _sum_squares(block, end - begin, squares, row, SQ_SAMPLES)
                _ladder(carry, e, stats, squares, row, bounds[w], block, end - begin)
                filled = _empty_scratch(scratch, bucket(stats[row, LOW]), bucket(stats[row, HIGH]), hist_index, hist_count, filled)
            hist_offsets[row + 1] = filled
        carry[e, LAST_SLOT] = bounds[windows] - 1 if carry[e, LAST_HOT] >= 0 else -1
    made = hist_index[:filled], hist_count[:filled], bursts[:found], gap_row[:gaps], gap_value[:gaps]
    return stats, squares, profile, hist_offsets, *made
