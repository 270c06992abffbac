"""CSV with typed columns, read whole by Polars; a broken file gives its good rows and the place of the first fault.

The fast way is one columnar parse. Where that fails, or the number of separators is wrong, the file is read row by row to the first
broken line, so that the message can name it; the lines before it are parsed again.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from ...pipeline.errors import InputError

# Text and numbers of a file are in memory at once.
CSV_BYTES_MAX = 2 * 1024**3

Types = Mapping[str, pl.DataType | type[pl.DataType]]

_INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*", re.ASCII)
_RANGES = {
    pl.UInt8: (0, 2**8 - 1),
    pl.UInt16: (0, 2**16 - 1),
    pl.UInt32: (0, 2**32 - 1),
    pl.UInt64: (0, 2**64 - 1),
    pl.Int64: (-(2**63), 2**63 - 1),
}
_HINT = "correct or remove the line; the rows before it are used"


def content_of(path: Path) -> bytes:
    """Return a file's bytes. Raises ``InputError`` where it cannot be read or is larger than ``CSV_BYTES_MAX``."""
    try:
        size = path.stat().st_size
        if size > CSV_BYTES_MAX:
            raise InputError(str(path), f"holds {size} bytes, more than {CSV_BYTES_MAX}", "cut it by device and replay the parts")
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None


def header_of(path: Path, content: bytes) -> tuple[str, ...]:
    """Return the names in the first line. Raises ``InputError`` where there are none, or one occurs twice."""
    line = content.split(b"\n", 1)[0].decode("utf-8-sig", "replace").rstrip("\r")
    columns = tuple(name.strip().strip('"') for name in line.split(","))
    if not any(columns):
        raise InputError(str(path), "has no header line", "write the names of the columns in the first line")
    twice = next((name for index, name in enumerate(columns) if name in columns[:index]), None)
    if twice is not None:
        raise InputError(str(path), f"line 1: column {twice!r} is there twice", "leave one of them out")
    return columns


def read(path: Path, content: bytes, types: Types, needed: Sequence[str]) -> tuple[pl.DataFrame, InputError | None]:
    """Return the rows before the first broken one, and the error for that one.

    ``types`` names every column of the file in order; those in ``needed`` may not be empty. Blank lines are skipped.
    """
    try:
        frame = _parsed(content, types)
    except pl.exceptions.PolarsError as error:
        frame, problem = None, str(error).split("\n", maxsplit=1)[0]
    else:
        if not frame.select(pl.any_horizontal(pl.col(needed).is_null().any())).item() and _adds_up(content, frame):
            return frame, None
        problem = "a value is missing"
    line, fault = _first_fault(path, content, types, needed)
    if fault is not None:
        good = b"".join(content.splitlines(keepends=True)[: line - 1])
        try:
            return _parsed(good, types), fault
        except pl.exceptions.PolarsError:
            # Both parsers refuse the file, at different places: where good rows end is not known.
            return pl.DataFrame(schema=types), fault
    if frame is not None:
        # Quotes or blank lines had spoilt the sum only.
        return frame.drop_nulls(list(needed)), None
    return pl.DataFrame(schema=types), InputError(str(path), f"cannot be read as CSV ({problem})", "write plain comma-separated values")


def _parsed(content: bytes, types: Types) -> pl.DataFrame:
    frame = pl.read_csv(io.BytesIO(content), schema=dict(types))
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _adds_up(content: bytes, frame: pl.DataFrame) -> bool:
    """Return whether there are as many separators as full rows have: Polars fills up short rows silently."""
    return content.count(b",") == (frame.width - 1) * (frame.height + 1) and b'"' not in content


def _first_fault(path: Path, content: bytes, types: Types, needed: Sequence[str]) -> tuple[int, InputError | None]:
    reader = csv.reader(io.StringIO(content.decode("latin-1"), newline=""))
    names = tuple(types)
    line = 1
    try:
        next(reader)
        for row in reader:
            # A quoted line break makes a row span lines; the first of them is where it starts.
            start, line = line + 1, reader.line_num
            problem = _row_problem(row, names, types, needed) if row else None
            if problem:
                return start, InputError(str(path), f"line {start}: {problem}", _HINT)
    except csv.Error as error:
        return line + 1, InputError(str(path), f"line {line + 1}: {error}", _HINT)
    return line, None


def _row_problem(row: list[str], names: Sequence[str], types: Types, needed: Sequence[str]) -> str | None:
    if len(row) < len(names):
        return f"ends after {len(row)} of {len(names)} columns, {names[len(row)]!r} is missing"
    if len(row) > len(names):
        return f"has {len(row)} values for {len(names)} columns"
    for name, text in zip(names, row, strict=True):
        if not text.isascii() and not _is_utf8(text):
            return f"column {name!r} is not UTF-8 text"
        if not text:
            if name in needed:
                return f"column {name!r} is empty"
            continue
        what = _wanted(text, types[name])
        if what:
            return f"column {name!r} holds {text[:40]!r}, which is not {what}"
    return None


def _is_utf8(text: str) -> bool:
    """Return whether bytes that were read as Latin-1, which never fails, are UTF-8."""
    try:
        text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return False
    return True


def _wanted(text: str, dtype: object) -> str | None:
    """Return what ``text`` should have been, ``None`` where it is."""
    if dtype in _RANGES:
        low, high = _RANGES[dtype]
        fits = _INTEGER.fullmatch(text) is not None and low <= int(text) <= high
        return None if fits else f"a whole number from {low} to {high}"
    if dtype == pl.Boolean:
        return None if text in ("true", "false") else "true or false"
    if dtype == pl.Float64:
        try:
            return None if math.isfinite(float(text)) else "a finite number"
        except ValueError:
            return "a number"
    return None
