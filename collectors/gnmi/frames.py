"""Arrays of numbers and slices of bytes to columns of frames."""

import numpy as np
import polars as pl
import pyarrow as pa

from ...pipeline import histogram
from ...pipeline.tables.field import masked, nulls
from .rows import gather


def numbers(name: str, values: np.ndarray, valid: np.ndarray, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    """Return a column of 64-bit values, null where not valid; ``dtype`` is unsigned, Boolean or float."""
    if not valid.any():
        return nulls(name, dtype, len(values))
    seen = masked(values if values.dtype == np.float64 else values.view(np.uint64), None if valid.all() else ~valid).alias(name)
    return seen != 0 if dtype == pl.Boolean else seen


def bins(name: str, values: np.ndarray, valid: np.ndarray) -> pl.Series:
    """Return a column of lists of the (bins, rows) values: up to the last valid one, null without any."""
    count = np.where(valid.any(axis=0), len(valid) - np.argmax(valid[::-1], axis=0), 0)
    if not count.any():
        return pl.Series(name, [None] * values.shape[1], dtype=pl.List(pl.UInt64))
    inside = np.arange(len(valid))[None, :] < count[:, None]
    flat = masked(values.T[inside].view(np.uint64), ~valid.T[inside])
    lists = histogram.lists(name, np.concatenate(([0], np.cumsum(count))), flat)
    return pl.select(pl.when(pl.Series(count > 0)).then(lists)).to_series()


def texts(name: str, buffer: np.ndarray, begin: np.ndarray, size: np.ndarray, valid: np.ndarray) -> tuple[pl.Series, int]:
    """Return a column of slices of ``buffer``, null where not valid, and how many were not UTF-8 (their errors are replaced)."""
    if not valid.any():
        return nulls(name, pl.String, len(valid)), 0
    size = np.where(valid, size, 0).astype(np.int64)
    ends = np.cumsum(size)
    out = np.empty(int(ends[-1]), np.uint8)
    gather(buffer, begin.astype(np.int64), size, ends, out)
    offsets = np.concatenate(([0], ends))
    null = pa.py_buffer(np.packbits(valid, bitorder="little"))
    made = pa.LargeStringArray.from_buffers(len(valid), pa.py_buffer(offsets), pa.py_buffer(out), null)
    try:
        made.validate(full=True)
    except pa.ArrowInvalid:
        whole = out.tobytes()
        raw = [whole[offsets[k] : offsets[k + 1]] if one else None for k, one in enumerate(valid)]
        replaced = [None if one is None else one.decode(errors="replace") for one in raw]
        broken = sum(one is not None and one != text.encode() for one, text in zip(raw, replaced, strict=True) if text is not None)
        return pl.Series(name, replaced, dtype=pl.String), broken
    return pl.Series(name, pl.from_arrow(made)), 0
