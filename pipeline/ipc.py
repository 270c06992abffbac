"""What an Arrow IPC stream claims of itself, looked at before anybody believes it.

A buffer says how long it is when unpacked, and a reader allocates that much before it unpacks: a few hostile bytes would
end the process, for a failed allocation cannot be caught there. So sizes are added up here first, from the stream's
own tables (FlatBuffers; Arrow format, Message.fbs), which costs some ten microseconds a message.
"""

import struct

import numpy as np

# A schema of all columns that exist takes 12 KB; nesting without end would need more.
SCHEMA_BYTES_MAX = 64 * 1024

_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH = 1, 3


def check(value: bytes, bytes_max: int) -> None:
    """Check that ``value`` is one schema and record batches of it, which unpack to ``bytes_max`` bytes and an eighth as many values.

    Raises:
        ValueError: it is not, or claims more.
    """
    try:
        _walk(value, bytes_max)
    except struct.error:
        raise ValueError("its tables point outside of it") from None


def schema_bytes(value: bytes) -> int:
    """Return how many bytes of a stream that has been checked are its schema."""
    return 8 + _read("<II", value, 0)[1]


def _walk(value: bytes, bytes_max: int) -> None:
    at, first, total = 0, True, 0
    while at < len(value):
        mark, size = _read("<II", value, at)
        if mark != _CONTINUATION:
            raise ValueError("no Arrow stream")
        if size == 0:
            break
        message, body = _root(value, at + 8), at + 8 + size
        kind, length = _scalar("<B", value, message, 1), _scalar("<q", value, message, 3)
        if kind != (_SCHEMA if first else _RECORD_BATCH) or (first and size > SCHEMA_BYTES_MAX):
            raise ValueError("not one schema and record batches of it")
        if length < 0 or body + length > len(value):
            raise ValueError("it is cut off")
        if not first:
            total += _unpacked(value, _follow(value, message, 2), body, length, bytes_max // 8)
            if total > bytes_max:
                raise ValueError(f"it claims to unpack to more than {bytes_max} bytes")
        at, first = body + length, False
    if first:
        raise ValueError("no Arrow stream")


def _unpacked(value: bytes, batch: int, body: int, length: int, values_max: int) -> int:
    """Return how many bytes the buffers of a record batch claim to unpack to."""
    rows, lengths = _scalar("<q", value, batch, 0), _structs(value, batch, 1)[:, 0]
    if min(rows, lengths.min(initial=0)) < 0 or max(rows, lengths.max(initial=0)) > values_max:
        raise ValueError(f"it claims to hold more than {values_max} values")
    compressed = _field(value, batch, 3) != 0
    offset, size = _structs(value, batch, 2).T
    if (offset < 0).any() or (size < 0).any() or (size > length).any() or (offset > length - size).any():
        raise ValueError("a buffer lies outside of it")
    if not compressed:
        return sum(size.tolist())
    offset, size = offset[size > 0], size[size > 0]
    if (size < 8).any():
        raise ValueError("a buffer has no length")
    claimed = np.frombuffer(value, np.uint8)[(body + offset)[:, None] + np.arange(8)].view("<i8").ravel()
    if (claimed < -1).any():
        raise ValueError("a buffer has no length")
    return sum(np.where(claimed == -1, size - 8, claimed).tolist())  # -1: this one is not compressed


def _read(form: str, value: bytes, at: int) -> tuple[int, ...]:
    if at < 0:
        raise struct.error
    return struct.unpack_from(form, value, at)


def _root(value: bytes, at: int) -> int:
    return at + _read("<I", value, at)[0]


def _field(value: bytes, table: int, number: int) -> int:
    """Return where a field of a table lies, 0 if it is not there."""
    slots = table - _read("<i", value, table)[0]
    if 4 + 2 * number >= _read("<H", value, slots)[0]:
        return 0
    offset = _read("<H", value, slots + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _scalar(form: str, value: bytes, table: int, number: int) -> int:
    place = _field(value, table, number)
    return _read(form, value, place)[0] if place else 0


def _follow(value: bytes, table: int, number: int) -> int:
    place = _field(value, table, number)
    if not place:
        raise struct.error
    return _root(value, place)


def _structs(value: bytes, table: int, number: int) -> np.ndarray:
    """Return a vector of pairs of 64-bit integers; shape (count, 2)."""
    if not _field(value, table, number):
        return np.zeros((0, 2), np.int64)
    vector = _follow(value, table, number)
    count = _read("<I", value, vector)[0]
    if vector + 4 + 16 * count > len(value):
        raise struct.error
    return np.frombuffer(value, "<i8", 2 * count, vector + 4).reshape(-1, 2)
