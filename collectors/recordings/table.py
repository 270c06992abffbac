"""Parquet and CSV files of one family, recognised by their columns.

Columns are named as ``weft decode`` prints them. ``ts``, ``device`` and the family's own key columns must be there;
``recv_ts`` is ``ts`` where it is missing, ``epoch`` 0, ``source`` ``recording``, anything else null. Burst samples may
be in long form: a row per sample, ``value`` in the place of ``values``; rows ``interval_ns`` apart become one segment, in any order.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import InputError
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import Table
from ..base import Batch, Options
from ..sampling.runs import BURST_SAMPLE, Segment, slices
from . import text_table

# Rows per batch.
ROWS_MAX = 65_536

LONG_VALUE = "value"
_SEGMENT_KEYS = ("device", "port", "queue", "signal", "interval_ns", "speed_bps", "epoch")
_COMMON = ("ts", "recv_ts", "source", "device", "epoch")
# Columns that a row of a family needs besides ts and device.
_NEEDED = {
    "port": ("port",),
    "queue": ("port", "queue", "direction"),
    "nic": ("port",),
    "nvlink": ("gpu",),
    "gpu": ("gpu",),
    "reading": ("kind", "object", "name"),
    "burst_sample": ("port", "signal", "interval_ns"),
    "packet": ("src", "dst", "qp", "opcode", "psn"),
    "latency": ("src", "dst", "kind", "values_ns"),
    "event": ("kind",),
    "inventory": ("kind", "key"),
    "gap": ("what", "missed"),
    "self_metric": ("name", "value"),
}
# Times from 1970 to 2116, intervals up to an hour: anything else is an error of unit.
_TS_MAX = 2**62
_INTERVAL_NS_MAX = 3600 * NS_PER_S


def fits_a_family(header: bytes) -> bool:
    """Return whether most of the names in a CSV's first line are columns of one family."""
    columns = [name.strip().strip('"') for name in header.decode("utf-8-sig", "replace").rstrip("\r").split(",")]
    table = _likely(columns)
    return table is not None and 2 * len(set(columns) & _names(table)) >= len(columns)


def read_table(path: Path, options: Options) -> Iterator[Batch]:
    """Yield the file's rows in time order, second by second; raise ``InputError`` after the last good one."""
    if path.suffix.lower() == ".csv":
        table, frame, fault = _from_csv(path, options)
    else:
        table, frame, fault = _from_parquet(path, options)
    frame, implausible = _plausible(path, frame)
    fault = implausible or fault
    if table is BURST_SAMPLE and LONG_VALUE in frame.columns:
        yield from slices(_segments(frame), "recording", max(1, options.run_samples))
    else:
        yield from _by_second(table, frame)
    if fault is not None:
        raise fault
    if not frame.height:
        raise InputError(str(path), "holds no rows", "give a file with rows")


def _from_csv(path: Path, options: Options) -> tuple[Table, pl.DataFrame, InputError | None]:
    content = text_table.content_of(path)
    columns = text_table.header_of(path, content)
    table = _family(path, columns, options)
    types = {name: _type(table, name) for name in columns}
    lists = next((name for name, dtype in types.items() if isinstance(dtype, pl.List)), None)
    if lists is not None:
        hint = "write one row per sample with a column 'value'" if table is BURST_SAMPLE else "use Parquet"
        raise InputError(str(path), f"column {lists!r} is a list, which CSV does not hold", hint)
    needed = [name for name in ("ts", "device", LONG_VALUE, *_NEEDED.get(table.name, ())) if name in columns]
    frame, fault = text_table.read(path, content, types, needed)
    return table, _completed(table, frame, options), fault


def _from_parquet(path: Path, options: Options) -> tuple[Table, pl.DataFrame, InputError | None]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        problem = str(error).split("\n", maxsplit=1)[0][:120]
        raise InputError(str(path), f"cannot be read as Parquet ({problem})", "write the file again") from None
    table = _family(path, frame.columns, options)
    frame = pl.DataFrame([_converted(path, frame[name], _type(table, name)) for name in frame.columns])
    for name in ("ts", "device", LONG_VALUE, *_NEEDED.get(table.name, ())):
        if name in frame.columns and frame[name].null_count():
            row = frame[name].is_null().arg_max()
            fault = InputError(str(path), f"row {row}: column {name!r} is null", "correct or remove the row; the rows before it are used")
            return table, _completed(table, frame[:row], options), fault
    return table, _completed(table, frame, options), None


def _converted(path: Path, column: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    if column.dtype == dtype:
        return column
    try:
        if isinstance(column.dtype, pl.Datetime):
            column = column.dt.epoch("ns")
        cast = column.cast(dtype)
        if column.dtype.is_float() and not (cast.cast(column.dtype).eq_missing(column)).all():
            raise pl.exceptions.InvalidOperationError("fractions")
    except pl.exceptions.PolarsError:
        raise InputError(str(path), f"column {column.name!r} is {column.dtype}, which is not {dtype}", "write it with that type") from None
    return cast


def _names(table: Table) -> set[str]:
    return set(table.polars) | ({LONG_VALUE} if table is BURST_SAMPLE else set())


def _type(table: Table, name: str) -> pl.DataType | type[pl.DataType]:
    return pl.UInt64 if table is BURST_SAMPLE and name == LONG_VALUE else table.polars[name]


def _likely(columns: Sequence[str]) -> Table | None:
    """Return the family with most of these columns; on a tie, the one with the fewest columns missing."""

    def score(table: Table) -> tuple[int, int]:
        own = (set(columns) & _names(table)) - set(_COMMON)
        return len(own), -len(set(_NEEDED.get(table.name, ())) - own)

    best = max(FAMILIES.values(), key=score)
    return best if score(best)[0] else None


def _family(path: Path, columns: Sequence[str], options: Options) -> Table:
    """Return the family of the columns. Raises ``InputError`` with the column that does not fit."""
    table = _likely(columns)
    if table is None:
        raise InputError(str(path), "has no column of any family", f"name the columns as in one of these: {', '.join(FAMILIES)}")
    absent = [name for name in ("ts", "device", *_NEEDED.get(table.name, ())) if name not in columns]
    if options.device and "device" in absent:
        absent.remove("device")
    if table is BURST_SAMPLE and not {"values", LONG_VALUE} & set(columns):
        absent.append(LONG_VALUE)
    strangers = [name for name in columns if name not in _names(table)]
    if absent:
        near = get_close_matches(absent[0], strangers, n=1)
        hint = f"rename the column {near[0]!r} to it" if near else "add it"
        raise InputError(str(path), f"column {absent[0]!r} of {table.name} is missing", hint)
    if strangers:
        near = get_close_matches(strangers[0], _names(table), n=1)
        hint = f"did you mean {near[0]!r}" if near else "remove it"
        raise InputError(str(path), f"{table.name} has no column {strangers[0]!r}", hint)
    return table


def _completed(table: Table, frame: pl.DataFrame, options: Options) -> pl.DataFrame:
    """Return the frame with all columns of the table; those missing in the file get defaults."""
    if "device" not in frame.columns:
        frame = frame.with_columns(device=pl.lit(options.device))
    defaults = {"recv_ts": pl.col("ts"), "source": pl.lit("recording"), "epoch": pl.lit(0), "queue": pl.lit(""), "port": pl.lit("")}
    if options.line_rate_bps is not None:
        defaults["speed_bps"] = pl.lit(options.line_rate_bps)
    present = frame.columns
    frame = frame.with_columns(
        (pl.col(name).fill_null(default) if name in present else default).alias(name) for name, default in defaults.items()
    )
    made = table.frame(frame)
    return made.drop("values").with_columns(frame[LONG_VALUE]) if table is BURST_SAMPLE and LONG_VALUE in present else made


def _plausible(path: Path, frame: pl.DataFrame) -> tuple[pl.DataFrame, InputError | None]:
    """Return the rows before the first with an impossible time or interval."""
    wrong = (pl.col("ts") < 0) | (pl.col("ts") >= _TS_MAX)
    if "interval_ns" in frame.columns:
        wrong |= (pl.col("interval_ns") < 1) | (pl.col("interval_ns") > _INTERVAL_NS_MAX)
    bad = frame.select(wrong.fill_null(True)).to_series()
    if not bad.any():
        return frame, None
    row = int(bad.arg_max() or 0)
    name = "ts" if not 0 <= (frame["ts"][row] or -1) < _TS_MAX else "interval_ns"
    fault = InputError(
        str(path), f"row {row + 1}: {name} {frame[name][row]} cannot be in nanoseconds", "give nanoseconds; the rows before it are used"
    )
    return frame[:row], fault


def _by_second(table: Table, frame: pl.DataFrame) -> Iterator[Batch]:
    ordered = frame.sort("ts", maintain_order=True).with_columns(second=pl.col("ts") // NS_PER_S)
    for part in ordered.partition_by("second", "device", maintain_order=True):
        for rows in part.drop("second").iter_slices(ROWS_MAX):
            yield Batch(table.name, rows)


def _segments(frame: pl.DataFrame) -> list[Segment]:
    """Return the segments of samples; a time that occurs twice starts another segment."""
    ordered = frame.sort(*_SEGMENT_KEYS, "ts", maintain_order=True)
    ts, interval = ordered["ts"].to_numpy(), ordered["interval_ns"].to_numpy()
    key = ordered.select(pl.struct(*_SEGMENT_KEYS).rle_id()).to_series().to_numpy()
    breaks = (np.diff(key) != 0) | (np.diff(ts) != interval[1:])
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(ts)] if len(ts) else [0]
    heads = ordered[edges[:-1]].select(*_SEGMENT_KEYS).to_dicts()
    values = ordered[LONG_VALUE].to_numpy()
    return [
        Segment(ts=int(ts[first]), values=values[first:last], **head) for (first, last), head in zip(pairwise(edges), heads, strict=True)
    ]
