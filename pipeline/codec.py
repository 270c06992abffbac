"""Frames to messages and back: one message is one Arrow IPC stream of one table, without the columns in which nothing is said.

Lists of unsigned integers travel in the narrowest width that holds them (a millisecond of 400G fits in 32
bits), since Arrow says its own types; ``decode`` hands such lists over as they came unless asked to widen, so
that a kernel reads half the bytes. Everything else is cast to the table's types.
"""

import io
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

import polars as pl

from . import ipc
from .errors import CodecError
from .tables.families import FAMILIES
from .tables.field import Table
from .tables.states import STATES

CONTENT_TYPE = "application/vnd.apache.arrow.stream"

# A message larger than this is split by its publisher: Kafka's default limit is 1 MiB.
MESSAGE_BYTES_MAX = 512 * 1024

# A hostile message must not make a reader allocate what it likes.
DECODED_BYTES_MAX = 256 * 1024 * 1024

# Schemas of messages that have been compared with their table's; each takes some 10 KB.
SCHEMAS_MAX = 128

_NARROW = (pl.UInt8, pl.UInt16, pl.UInt32)
_TOP = {pl.UInt8: 2**8 - 1, pl.UInt16: 2**16 - 1, pl.UInt32: 2**32 - 1}


def headers(table: Table, **more: str) -> dict[str, str]:
    """Return the record headers that every message of ``table`` carries, with those given besides."""
    return {"schema": table.name, "version": str(table.version), "state": str(int(table.state)), "codec": CONTENT_TYPE, **more}


def table_of(message_headers: Mapping[str, str]) -> Table:
    """Return the table that a message says it is of.

    Raises:
        CodecError: the name is not known, or the version is not the one that this Weft reads.
    """
    name, version = message_headers.get("schema", ""), message_headers.get("version", "")
    table = (STATES if message_headers.get("state") == "1" else FAMILIES).get(name)
    if table is None:
        raise CodecError(f"unknown schema {name!r}")
    if version != str(table.version):
        raise CodecError(f"schema {name!r} has version {version!r}, this Weft reads {table.version}")
    return table


def encode(frame: pl.DataFrame, table: Table) -> bytes:
    """Return ``frame`` as one Arrow IPC stream with lz4 buffers, its columns those of ``table`` in order.

    A column of nulls alone is left out: of a family's columns a source fills half, and a reader pays for each. The first stays,
    which says how many rows there are. Raises ``CodecError`` for a column that the table lacks.
    """
    found = {column.name: column for column in frame.get_columns()}
    unknown = found.keys() - table.polars.keys()
    if unknown:
        raise CodecError(f"{table.name} has no column {sorted(unknown)[0]!r}")
    first = next(iter(table.polars))
    if first not in found:
        found[first] = _nulls(first, table.polars[first], frame.height)
    said = {name for name, column in found.items() if name == first or column.null_count() < frame.height}
    columns = [_narrowed(found[name], dtype) for name, dtype in table.polars.items() if name in said]
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_ipc_stream(buffer, compression="lz4")
    return buffer.getvalue()


def messages(frame: pl.DataFrame, table: Table) -> Iterator[tuple[bytes, int]]:
    """Yield the frame as messages within the size limit, each with its number of rows.

    Pieces are cut by what their buffers take before compression, so that hardly any is encoded twice.
    """
    rows = max(1, frame.height * MESSAGE_BYTES_MAX // max(1, int(frame.estimated_size())))
    for piece in frame.iter_slices(rows) if frame.height else (frame,):
        value = encode(piece, table)
        if len(value) > MESSAGE_BYTES_MAX and piece.height > 1:
            half = piece.height // 2
            yield from messages(piece[:half], table)
            yield from messages(piece[half:], table)
        else:
            yield value, piece.height


def decode(value: bytes, table: Table, *, widen: bool = True) -> pl.DataFrame:
    """Return the frame in ``value`` with the columns of ``table``.

    Columns that the message lacks (an older producer) are null, columns that the table lacks (a newer one) are
    dropped. With ``widen=False`` lists of unsigned integers keep the width in which they travelled.

    Raises:
        CodecError: not an Arrow stream, or a column of a type that cannot become the table's.
    """
    try:
        ipc.check(value, DECODED_BYTES_MAX)
        frame = pl.read_ipc_stream(io.BytesIO(value))
        as_is = _is_of(value[: ipc.schema_bytes(value)], table.state, table.name, widen)
        found = {column.name: column for column in frame.get_columns()}
        columns = []
        for name, dtype in table.polars.items():
            column = found.get(name)
            if column is None:
                columns.append(_nulls(name, dtype, frame.height))
            else:
                columns.append(column if as_is or _fits(column.dtype, dtype, widen) else column.cast(dtype))
    except (pl.exceptions.PolarsError, OSError, ValueError, pl.exceptions.PanicException) as error:
        raise CodecError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    return _bounded(pl.DataFrame(columns))


def _bounded(frame: pl.DataFrame) -> pl.DataFrame:
    if frame.estimated_size() > DECODED_BYTES_MAX:
        raise CodecError(f"more than {DECODED_BYTES_MAX} bytes when unpacked")
    return frame


@lru_cache(maxsize=SCHEMAS_MAX)
def _is_of(schema: bytes, state: bool, name: str, widen: bool) -> bool:
    """Return whether the columns of a schema are of the table's types as they stand: what this Weft has published always is."""
    found, wanted = pl.read_ipc_stream(io.BytesIO(schema)).schema, (STATES if state else FAMILIES)[name].polars
    return all(_fits(found[name], dtype, widen) for name, dtype in wanted.items() if name in found)


def _fits(found: pl.DataType, wanted: pl.DataType | type[pl.DataType], widen: bool) -> bool:
    return found == wanted or (not widen and _is_unsigned_list(found) and _is_unsigned_list(wanted))


def _is_unsigned_list(dtype: pl.DataType | type[pl.DataType]) -> bool:
    return isinstance(dtype, pl.List) and dtype.inner in (*_NARROW, pl.UInt64)


def _narrowed(column: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    if not (_is_unsigned_list(dtype) and _is_unsigned_list(column.dtype)):
        return column if column.dtype == dtype else column.cast(dtype)
    peak: Any = column.explode().max()
    narrow = next((width for width in _NARROW if peak is None or int(peak) <= _TOP[width]), pl.UInt64)
    return column.cast(pl.List(narrow))


def _nulls(name: str, dtype: pl.DataType | type[pl.DataType], height: int) -> pl.Series:
    return _null(name, dtype).new_from_index(0, height)


@cache
def _null(name: str, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.Series(name, [None], dtype=dtype)
