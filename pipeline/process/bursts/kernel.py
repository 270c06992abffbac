"""The single pass over burst samples: every statistic of a window in one walk, and the carry to the next window.

Samples are in a dense matrix, one row per entity (a signal of a port), one column per slot. Slot s covers [s d, (s+1) d) with the
sample interval d, so the grid starts in 1970, not at the first sample. -1 marks a slot without a sample. The matrix has 32 bits if
its samples fit, because it is read from memory several times. Counts, sums and squares are integers (squares in two 64-bit halves),
so any split of the input gives the same bits.

A sample is hot if it exceeds the entity's threshold [Zhang, Liu, Zeng, Krishnamurthy, IMC 2017]. A burst is a maximal sequence of
hot samples and belongs to the window in which it starts. A missing sample ends a burst and clears the state of neighbours: nothing
is inferred across a hole.

Blocks of m = 2, 4 ... 1024 samples are aligned to multiples of m on the slot grid and built from two halves. A block counts in the
window of its last sample, and only if all its samples are present.
"""

from collections import namedtuple
from typing import NamedTuple

import numba
import numpy as np
import polars as pl

from ...histogram import BUCKETS
from ...tables.field import LADDER
from ...tables.field import SQUARES as WIDE
from ...tables.states import STATES

LEVELS = len(LADDER)

# Columns of the carry, one row per entity; -1 = none.
LAST_SLOT, LAST_HOT, OPEN_START, OPEN_BYTES, OPEN_PEAK, OPEN_CONTENTION, OPEN_ECN, OPEN_RETRANSMIT = range(8)
PREVIOUS_START, PREVIOUS_TAU, PREVIOUS_END = range(8, 11)
PENDING_INDEX = 11
PENDING_SUM = PENDING_INDEX + LEVELS
CARRY_COLUMNS = PENDING_SUM + LEVELS

_STATISTICS = [field for field in STATES["port_samples"].fields if field.role != "key"]
# Columns of the statistics and of the squares (two 64-bit halves each) by the names of the table's fields, in their order.
STATISTICS = tuple(field.name for field in _STATISTICS if field.dtype == pl.UInt64)
SQUARES = tuple(field.name for field in _STATISTICS if field.dtype == WIDE)
AT = namedtuple("AT", STATISTICS)(*range(len(STATISTICS)))
SQUARE_AT = namedtuple("SQUARE_AT", SQUARES)(*range(len(SQUARES)))
# The fields of the ladder repeat with every level.
_PER_LEVEL = AT.blocks_4 - AT.blocks_2
_SQUARES_PER_LEVEL = SQUARE_AT.block_squares_4 - SQUARE_AT.block_squares_2

BURST_COLUMNS = 8  # entity, start slot, end slot, bytes, peak, contention, marked bytes, retransmitted bytes
PROFILE_SPANS = 100
PROFILE_SPAN_NS = 10_000_000
_U32_MAX = 2**32 - 1

# No line and no buffer carries more per nanosecond (8 Pbit/s). Larger samples are refused, so that sums over an hour fit in 63 bits
# and sums of squares, also of blocks of 1024, in 38 digits.
BYTES_PER_NS_MAX = 2**20


# Exponent and top six mantissa bits of a double give the bucket: see ``histogram``.
_SHIFT = 46
_BIAS = 1023 * 64


@numba.njit
def bucket(value):
    """Return the bucket of one non-negative integer below 2^63."""
    if value == 0:
        return 0
    # The conversion to a double rounds above 2^53; clear the bits that the bucket ignores to keep it exact.
    if value >= 1 << 53:
        value = (value >> 11) << 11
    return (np.float64(value).view(np.int64) >> _SHIFT) - _BIAS + 1


def empty_carry(entities: int) -> np.ndarray:
    """Return the initial carry of entities; shape (entities, CARRY_COLUMNS), int64."""
    return np.full((entities, CARRY_COLUMNS), -1, np.int64)


class Grid(NamedTuple):
    """The samples of some entities in consecutive windows.

    matrix: (entities, slots) int32 or int64 bytes, -1 = no sample; its first column is slot ``bounds[0]``.
    hot: (groups, slots) int32, number of hot entities; bounds: (windows + 1,) int64, first slot of each window, then the end.
    window_ns: (windows,) int64, start of each window; interval_ns: int, length of a slot.
    """

    matrix: np.ndarray
    hot: np.ndarray
    bounds: np.ndarray
    window_ns: np.ndarray
    interval_ns: int


class Entities(NamedTuple):
    """The rows of a matrix; arrays are (entities,) int64 unless stated otherwise.

    threshold: bytes, a sample above it is hot; group: row of ``Grid.hot``, -1 = none; ecn, retransmit: matrix rows of the marked and
    the retransmitted bytes, -1 = not sampled; carry: (entities, CARRY_COLUMNS) int64, updated in place.
    """

    threshold: np.ndarray
    group: np.ndarray
    ecn: np.ndarray
    retransmit: np.ndarray
    carry: np.ndarray


class Output(NamedTuple):
    """The results of a walk. Row e * windows + w is entity e in window w; rows without samples are zero.

    statistics: (rows, STATISTICS) int64; squares: (rows, SQUARES, 2) uint64, low and high halves; profile: (rows, 100) uint32 bytes.
    bursts: (n, BURST_COLUMNS) int64; gaps: (n, 2) int64, row and length in slots of each gap between bursts.
    hist_offsets: (rows + 1,) int64, hist_index: (buckets,) int16, hist_count: (buckets,) int64, the histograms of the samples.
    """

    statistics: np.ndarray
    squares: np.ndarray
    profile: np.ndarray
    bursts: np.ndarray
    gaps: np.ndarray
    hist_offsets: np.ndarray
    hist_index: np.ndarray
    hist_count: np.ndarray


@numba.njit(cache=True, nogil=True)
def scatter(matrix, bounds, entity, first_slot, offsets, values, top, refused):
    """Write segments into the matrix, whose windows start (and end) at the slots ``bounds``; see ``Grid``.

    entity, first_slot: (segments,) int64; offsets: (segments + 1,), where each segment starts in ``values`` (samples,), bytes, any
    integer type. Of two samples of one slot the larger counts, so that the order of arrival does not matter. refused: (entities,
    windows, 2) int64 counts duplicates, and samples above ``top`` bytes, which are dropped.
    """
    slots = matrix.shape[1]
    for segment in range(entity.shape[0]):
        row = matrix[entity[segment]]
        base = first_slot[segment] - bounds[0]
        begin = offsets[segment]
        first, after = max(0, -base), min(offsets[segment + 1] - begin, slots - base)
        # The usual case: every sample is valid and the first of its slot. One check of all takes a third of the time of single checks.
        source, target = values[begin + first : begin + max(first, after)], row[base + first : base + max(first, after)]
        present = np.int64(-1)
        for value in target:
            present = max(present, np.int64(value))
        low, high = np.int64(0), np.int64(0)
        for value in source:
            low, high = min(low, np.int64(value)), max(high, np.int64(value))
        if present < 0 and low == 0 and high <= top:
            for k in range(len(source)):
                target[k] = source[k]
            continue
        for k in range(first, after):
            value = np.int64(values[begin + k])
            # Values beyond 63 bits have become negative; missing ones are skipped.
            if value < 0 and not values[begin + k] > 0:
                continue
            if value < 0 or value > top:
                refused[entity[segment], np.searchsorted(bounds, bounds[0] + base + k, side="right") - 1, 1] += 1
                continue
            if row[base + k] >= 0:
                refused[entity[segment], np.searchsorted(bounds, bounds[0] + base + k, side="right") - 1, 0] += 1
            row[base + k] = max(np.int64(row[base + k]), value)


@numba.njit(cache=True, nogil=True)
def contention(matrix, threshold, group, groups):
    """Return the numbers of hot and of sampled entities per group and slot; both (groups, slots) int32.

    matrix: see ``Grid``; threshold (bytes), group (-1 = none): (entities,) int64.
    """
    entities, slots = matrix.shape
    hot, sampled = np.zeros((groups, slots), np.int32), np.zeros((groups, slots), np.int32)
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
    """Clear the state of neighbouring samples after a hole."""
    carry[e, LAST_HOT] = -1
    carry[e, PREVIOUS_START] = -1
    carry[e, PREVIOUS_TAU] = -1
    carry[e, PREVIOUS_END] = -1


@numba.njit
def _start_burst(carry, e, stats, squares, row, slot, gaps, count):
    """Open a burst at ``slot`` and count the gap and the time since the burst before; return the number of gaps."""
    if carry[e, PREVIOUS_END] >= 0:
        gap = slot - carry[e, PREVIOUS_END]
        stats[row, AT.gaps] += 1
        stats[row, AT.gap_total] += gap
        gaps[count, 0], gaps[count, 1] = row, gap
        count += 1
    tau = np.int64(-1)
    if carry[e, PREVIOUS_START] >= 0:
        tau = slot - carry[e, PREVIOUS_START]
        stats[row, AT.tau_count] += 1
        stats[row, AT.tau_total] += tau
        _add_product(squares, row, SQUARE_AT.tau_squares, tau, tau)
        x = carry[e, PREVIOUS_TAU]
        if x >= 0:
            stats[row, AT.pair_count] += 1
            stats[row, AT.pair_x] += x
            stats[row, AT.pair_y] += tau
            _add_product(squares, row, SQUARE_AT.pair_xx, x, x)
            _add_product(squares, row, SQUARE_AT.pair_yy, tau, tau)
            _add_product(squares, row, SQUARE_AT.pair_xy, x, tau)
    stats[row, AT.bursts] += 1
    carry[e, PREVIOUS_START], carry[e, PREVIOUS_TAU] = slot, tau
    carry[e, OPEN_START], carry[e, OPEN_BYTES], carry[e, OPEN_PEAK], carry[e, OPEN_CONTENTION] = slot, 0, 0, 0
    carry[e, OPEN_ECN] = carry[e, OPEN_RETRANSMIT] = -1
    return count


@numba.njit
def _grow_burst(carry, e, value, hot, ecn, retransmit):
    """Add a hot sample to the open burst; the last two are -1 if not sampled."""
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
    # Halves of 32 bits cannot overflow within a window, and the compiler vectorizes this form.
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
    """Add the samples of a window to the blocks of 2, 4 ... 1024, each level from pairs of the previous one.

    ``values[:count]`` int64 (-1 = none, overwritten) start at slot ``index``. A left half without its right half waits in the carry;
    a block with a hole does not count.
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
        stats[row, AT.blocks_2 + level * _PER_LEVEL] += whole
        stats[row, AT.block_total_2 + level * _PER_LEVEL] += total
        _sum_squares(values, count, squares, row, SQUARE_AT.block_squares_2 + level * _SQUARES_PER_LEVEL)


@numba.njit
def _profile(grid, e, w, profile, row):
    """Sum the samples of each 10 ms of one window."""
    matrix, first_slot, window_ns, interval_ns = grid.matrix, grid.bounds[0], grid.window_ns[w], grid.interval_ns
    column, end = grid.bounds[w] - first_slot, grid.bounds[w + 1] - first_slot
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
    """Close the open burst and clear the state if the slot before the first one has no sample."""
    if carry[e, LAST_SLOT] != first_slot - 1:
        if carry[e, OPEN_START] >= 0:
            found = _close_burst(carry, e, carry[e, LAST_SLOT] + 1, bursts, found)
        _forget(carry, e)
    return found


@numba.njit
def _break(carry, e, slot, bursts, found):
    """Close the open burst and clear the state at a hole."""
    if carry[e, OPEN_START] >= 0:
        found = _close_burst(carry, e, slot, bursts, found)
    _forget(carry, e)
    return found


# Without forced inlining it takes a quarter longer.
@numba.njit(forceinline=True)
def _follow(grid, entities, e, w, out, scratch, found, gap_count):
    """Walk the samples of one window: hot samples, starts and ends of bursts, counts of each bucket in ``scratch`` (BUCKETS,) int64.

    ``found`` and ``gap_count`` are the numbers of bursts and gaps in ``out`` so far; returns both.
    """
    matrix, hot, first_slot, carry = grid.matrix, grid.hot, grid.bounds[0], entities.carry
    stats, squares, bursts, gaps = out.statistics, out.squares, out.bursts, out.gaps
    group, ecn, retransmit = entities.group[e], entities.ecn[e], entities.retransmit[e]
    row, top = e * (len(grid.bounds) - 1) + w, entities.threshold[e]
    begin, end = grid.bounds[w] - first_slot, grid.bounds[w + 1] - first_slot
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
            stats[row, AT.cold_cold + 2 * last_hot + is_hot] += 1
        if is_hot:
            if last_hot != 1:
                gap_count = _start_burst(carry, e, stats, squares, row, first_slot + column, gaps, gap_count)
            hot_n += 1
            hot_total += value
            # A separate helper that takes whole arrays per hot sample made the walk three times slower.
            rivals = np.int64(hot[group, column]) if group >= 0 else np.int64(0)
            marked = np.int64(matrix[ecn, column]) if ecn >= 0 else np.int64(-1)
            resent = np.int64(matrix[retransmit, column]) if retransmit >= 0 else np.int64(-1)
            stats[row, AT.contended_hot] += rivals > 1
            _grow_burst(carry, e, value, rivals, marked, resent)
        elif last_hot == 1:
            found = _close_burst(carry, e, first_slot + column, bursts, found)
        last_hot = is_hot
    carry[e, LAST_HOT] = last_hot
    if n:
        stats[row, AT.samples], stats[row, AT.total], stats[row, AT.low], stats[row, AT.high] = n, total, low, high
        stats[row, AT.hot], stats[row, AT.hot_total] = hot_n, hot_total
    return found, gap_count


@numba.njit
def _empty_scratch(scratch, low, high, index, count, filled):
    """Move the counts of the buckets ``low`` to ``high`` out of the scratch histogram."""
    for first in range(low, high + 1, 64):
        after = min(first + 64, high + 1)
        # Most octaves are empty. In the others every bucket is written, and the next one overwrites an empty one.
        if scratch[first:after].sum():
            for i in range(first, after):
                index[filled], count[filled] = i, scratch[i]
                filled += scratch[i] > 0
                scratch[i] = 0
    return filled


@numba.njit(cache=True, nogil=True)
def walk(grid, entities):
    """Compute all statistics of consecutive windows in one pass: ``Grid`` and ``Entities`` to ``Output``."""
    matrix, bounds, carry = grid.matrix, grid.bounds, entities.carry
    count, slots = matrix.shape
    windows = len(bounds) - 1
    rows = count * windows
    stats, squares = np.zeros((rows, len(AT)), np.int64), np.zeros((rows, len(SQUARE_AT), 2), np.uint64)
    profile, hist_offsets = np.zeros((rows, PROFILE_SPANS), np.uint32), np.zeros(rows + 1, np.int64)
    hist_index, hist_count = np.empty(matrix.size + 1, np.int16), np.empty(matrix.size + 1, np.int64)
    bursts = np.empty((matrix.size // 2 + 2 * count, BURST_COLUMNS), np.int64)
    gaps = np.empty((matrix.size // 2 + count, 2), np.int64)
    out = Output(stats, squares, profile, bursts, gaps, hist_offsets, hist_index, hist_count)
    scratch, block = np.zeros(BUCKETS, np.int64), np.empty(slots, np.int64)
    filled = found = gap_count = 0
    for e in range(count):
        found = _arrive(carry, e, bounds[0], bursts, found)
        for w in range(windows):
            row, begin, length = e * windows + w, bounds[w] - bounds[0], bounds[w + 1] - bounds[w]
            _profile(grid, e, w, profile, row)
            found, gap_count = _follow(grid, entities, e, w, out, scratch, found, gap_count)
            if stats[row, AT.samples]:
                for k in range(length):
                    block[k] = matrix[e, begin + k]
                _sum_squares(block, length, squares, row, SQUARE_AT.squares)
                _ladder(carry, e, stats, squares, row, bounds[w], block, length)
                low, high = bucket(stats[row, AT.low]), bucket(stats[row, AT.high])
                filled = _empty_scratch(scratch, low, high, hist_index, hist_count, filled)
            hist_offsets[row + 1] = filled
        carry[e, LAST_SLOT] = bounds[windows] - 1 if carry[e, LAST_HOT] >= 0 else -1
    return Output(stats, squares, profile, bursts[:found], gaps[:gap_count], hist_offsets, hist_index[:filled], hist_count[:filled])
