"""Logarithmic histograms of non-negative integers: quantiles within 1 %, merged by adding.

Bucket of v (the top seven bits of its binary form, so the same on every machine and in SQL)::

    i(0) = 0,   i(v) = 1 + 64 e + floor(64 (v / 2^e - 1)),   e = floor(log2 v)

64 buckets an octave: a bucket spans [l, l + 2^e/64) with l = 2^e (1 + s/64), and its estimate is the middle of the
integers in it, so |estimate - v| <= v/128 < 0.8 %; every v below 128 has a bucket of its own and comes back
exactly. At most 4,097 buckets exist, and 63 cover a factor of two, so a histogram is small and bounded. Merging
adds counts: exact, in any order (the property that DDSketch [Masson, Rim, Lee, PVLDB 2019] calls full
mergeability; HDR histograms cut their buckets in this way).

A histogram as a value is a list of ``{i: Int16, c: UInt32}``, ascending in ``i``, without zero counts.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from .tables.field import HISTOGRAM

BUCKETS = 4097

# Buckets merged at once: 2 MB of sums.
MERGE_CELLS = 1 << 18
_SUB = 64
_SHIFT = 46  # 52 mantissa bits of a double less the 6 that are kept
_BIAS = 1023 * _SUB


def buckets(values: np.ndarray) -> np.ndarray:
    """Return the buckets of an array of non-negative integers, as int64 of the same shape."""
    whole = values.astype(np.uint64)
    whole = np.where(whole >= 1 << 53, (whole >> np.uint64(11)) << np.uint64(11), whole)
    index = (whole.astype(np.float64).view(np.int64) >> _SHIFT) - _BIAS + 1
    return np.where(whole == 0, 0, index)


def estimate(index: np.ndarray) -> np.ndarray:
    """Return the middle of the integers in each bucket, as float64."""
    # NumPy would compute powers of 16-bit numbers in 32 bits.
    octave, step = np.divmod(np.asarray(index, np.int64) - 1, _SUB)
    width = np.exp2(octave) / _SUB
    value = np.exp2(octave) * (1 + step / _SUB) + np.maximum(width - 1, 0) / 2
    return np.where(np.asarray(index) == 0, 0.0, value)


def to_series(name: str, offsets: np.ndarray, index: np.ndarray, count: np.ndarray) -> pl.Series:
    """Return histograms as a column: row r holds ``index[offsets[r]:offsets[r+1]]`` with its counts."""
    return lists(name, offsets, pl.DataFrame({"i": index.astype(np.int16), "c": count.astype(np.uint32)}).to_struct())


def lists(name: str, offsets: np.ndarray, values: pl.Series) -> pl.Series:
    """Return a column of lists: row r holds ``values[offsets[r]:offsets[r+1]]``."""
    return pl.Series(name, pl.from_arrow(pa.LargeListArray.from_arrays(pl.Series(offsets).cast(pl.Int64).to_arrow(), values.to_arrow())))


def of_values(row: np.ndarray, values: np.ndarray, rows: int, name: str = "hist") -> pl.Series:
    """Return one histogram a row: ``values[k]`` falls into the histogram of row ``row[k]``; shape (rows,)."""
    key, count = np.unique(row.astype(np.int64) * BUCKETS + buckets(values), return_counts=True)
    offsets = np.searchsorted(key, np.arange(rows + 1, dtype=np.int64) * BUCKETS)
    return to_series(name, offsets, key % BUCKETS, count)


def merge(hists: pl.Series, group: np.ndarray, groups: int) -> pl.Series:
    """Return the merged histogram of each group: row r of ``hists`` is added to group ``group[r]``; shape (groups,)."""
    if (group[1:] < group[:-1]).any():
        order = np.argsort(group, kind="stable")
        hists, group = hists.gather(order), group[order]
    offsets, index, count = parts(hists)
    if not len(index):
        return to_series(hists.name, np.zeros(groups + 1, np.int64), index, count)
    low, rows = int(index.min()), np.searchsorted(group, np.arange(groups + 1))
    width = int(index.max()) - low + 1
    # Merge some groups at a time in a dense table that stays in the processor's cache.
    step = max(1, MERGE_CELLS // width)
    lengths, cells, sums = np.zeros(groups, np.int64), [], []
    for first in range(0, groups, step):
        last = min(groups, first + step)
        begin, end = rows[first], rows[last]
        part = slice(offsets[begin], offsets[end])
        cell = np.repeat((group[begin:end] - first) * width - low, np.diff(offsets[begin : end + 1])) + index[part]
        # Sums of counts are exact in doubles up to 2^53.
        total = np.bincount(cell, weights=count[part], minlength=(last - first) * width)
        full = np.flatnonzero(total > 0)
        lengths[first:last] = np.bincount(full // width, minlength=last - first)
        cells.append(full % width + low)
        sums.append(total[full].astype(np.int64))
    return to_series(hists.name, np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(cells), np.concatenate(sums))


def parts(hists: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (offsets, bucket, count) of a column of histograms; nulls are empty."""
    array = hists.rechunk().to_arrow()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    lengths = hists.list.len().fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    flat = array.flatten()
    return offsets, np.from_dlpack(flat.field("i")), np.from_dlpack(flat.field("c"))


def quantiles(hists: pl.Series, qs: tuple[float, ...]) -> np.ndarray:
    """Return the smallest value that at least a share q of the samples does not exceed; shape (rows, len(qs)).

    This is the inverse of the empirical distribution (nearest rank), so a tail is never below a sample in it. Within 1 % by the
    buckets; NaN for an empty histogram.
    """
    offsets, index, count = parts(hists)
    upto = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
    before, total = upto[offsets[:-1]], upto[offsets[1:]] - upto[offsets[:-1]]
    # The margin undoes the error of binary fractions: 0.99 of 100 is the 99th, not the 100th.
    rank = np.maximum(np.ceil(np.outer(total, qs) - 1e-9), 1).astype(np.int64)
    place = np.searchsorted(upto, before[:, None] + rank, side="left") - 1
    found = estimate(index[np.minimum(place, max(len(index) - 1, 0))]) if len(index) else np.zeros(rank.shape)
    return np.where(total[:, None] > 0, found, np.nan)


def quantile(hist: list[dict[str, int]], q: float) -> float:
    """Return one quantile of one histogram, as ``quantiles`` does."""
    return float(quantiles(pl.Series([hist], dtype=HISTOGRAM), (q,))[0, 0])
