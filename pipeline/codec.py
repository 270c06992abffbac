"""Frames to messages and back: one message is one Arrow IPC stream of one table, without the columns that are all null.

Lists of unsigned integers travel in the narrowest width that holds them (a millisecond of 400G fits in 32 bits), because Arrow
carries the types. ``decode`` widens them only on request, so that a kernel reads half the bytes. All other columns are cast to the
table's types.
"""

import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import polars as pl

from . import ipc
from .errors import CodecError
from .tables.families import FAMILIES
from .tables.field import Table, nulls
from .tables.states import STATES

CONTENT_TYPE = "application/vnd.apache.arrow.stream"

# Publishers split larger messages: Kafka's default limit is 1 MiB.
MESSAGE_BYTES_MAX = 512 * 1024

# The limit of what a reader allocates for one message, however hostile.
DECODED_BYTES_MAX = 256 * 1024 * 1024

# Message schemas already compared with their table's; each takes some 10 KB.
SCHEMAS_MAX = 128

_NARROW = (pl.UInt8, pl.UInt16, pl.UInt32)
_TOP = {pl.UInt8: 2**8 - 1, pl.UInt16: 2**16 - 1, pl.UInt32: 2**32 - 1}


def headers(table: Table, **more: str) -> dict[str, str]:
    """Return the record headers of every message of ``table``, and the given ones."""
    return {"schema": table.name, "version": str(table.version), "state": str(int(table.state)), "codec": CONTENT_TYPE, **more}


def table_of(message_headers: Mapping[str, str]) -> Table:
    """Return the table that a message's headers name.

    Raises:
        CodecError: the name is unknown, or this Weft reads another version.
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

    Columns of only nulls are left out: a source fills half of a family's columns, and every column costs the reader time. The first
    column stays, because it holds the number of rows. Raises ``CodecError`` for a column that the table lacks.
    """
    found = {column.name: column for column in frame.get_columns()}
    unknown = found.keys() - table.polars.keys()
    if unknown:
        raise CodecError(f"{table.name} has no column {sorted(unknown)[0]!r}")
    first = next(iter(table.polars))
    if first not in found:
        found[first] = nulls(first, table.polars[first], frame.height)
    sent = {name for name, column in found.items() if name == first or column.null_count() < frame.height}
    columns = [_narrowed(found[name], dtype) for name, dtype in table.polars.items() if name in sent]
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_ipc_stream(buffer, compression="lz4")
    return buffer.getvalue()


def messages(frame: pl.DataFrame, table: Table) -> Iterator[tuple[bytes, int]]:
    """Yield the frame as messages within the size limit, each with its number of rows.

    The size before compression decides the pieces, so that hardly any is encoded twice.
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

    Columns that the message lacks (an older publisher) are null; columns that the table lacks (a newer one) are dropped. With
    ``widen=False`` lists of unsigned integers keep the width of the message.

    Raises:
        CodecError: not an Arrow stream, or a column of a type that cannot become the table's.
    """
    try:
        schema = ipc.check(value, DECODED_BYTES_MAX)
        frame = pl.read_ipc_stream(io.BytesIO(value))
        as_is = _is_of(schema, table.state, table.name, widen)
        found = {column.name: column for column in frame.get_columns()}
        columns = []
        for name, dtype in table.polars.items():
            column = found.get(name)
            if column is None:
                columns.append(nulls(name, dtype, frame.height))
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
    """Return whether a schema has the table's types and needs no cast, as all messages of this version do."""
    found, wanted = pl.read_ipc_stream(io.BytesIO(schema)).schema, (STATES if state else FAMILIES)[name].polars
    return all(_fits(found[name], dtype, widen) for name, dtype in wanted.items() if name in found)


def _fits(found: pl.DataType, wanted: pl.DataType | type[pl.DataType], widen: bool) -> bool:
    return found == wanted or (not widen and _is_unsigned_list(found) and _is_unsigned_list(wanted))


def _is_unsigned_list(dtype: pl.DataType | type[pl.DataType]) -> bool:
    return isinstance(dtype, pl.List) and dtype.inner in (*_NARROW, pl.UInt64)


def _narrowed(column: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    if not (_is_unsigned_list(dtype) and _is_unsigned_list(column.dtype)):
        return column if column.dtype == dtype else column.cast(dtype)
    top: Any = column.explode().max()
    narrow = next((width for width in _NARROW if top is None or int(top) <= _TOP[width]), pl.UInt64)
    return column.cast(pl.List(narrow))
