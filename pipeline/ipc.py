"""Bounds on an Arrow IPC stream, checked before anything is unpacked.

Each compressed buffer begins with its unpacked length, and a reader allocates that much first: a few hostile bytes would end the
process, because a failed allocation cannot be caught there. PyArrow splits the stream and verifies its tables, but does not expose
the lengths of buffers and has no limit for them; so the vector of buffers of each record batch is read here (Arrow format,
Message.fbs).
"""

import struct

import numpy as np
import pyarrow as pa

# A schema of all columns that exist takes 12 KB; nesting without end would need more.
SCHEMA_BYTES_MAX = 64 * 1024

_CONTINUATION = b"\xff\xff\xff\xff"


def check(value: bytes, bytes_max: int) -> bytes:
    """Return the schema of ``value``, a stream by itself, if the record batches after it unpack to ``bytes_max`` bytes at most.

    Raises:
        ValueError: it is no stream of one schema and record batches, or claims more bytes, or more than an eighth as many values.
    """
    try:
        messages = pa.ipc.MessageReader.open_stream(value)
        first, total = next(messages, None), 0
        if first is None or not value.startswith(_CONTINUATION):
            raise ValueError("no Arrow stream")
        if first.type != "schema" or first.metadata.size > SCHEMA_BYTES_MAX:
            raise ValueError("not one schema and record batches of it")
        for message in messages:
            if message.type != "record batch":
                raise ValueError("not one schema and record batches of it")
            total += _unpacked(message.metadata.to_pybytes(), message.body, bytes_max // 8)
            if total > bytes_max:
                raise ValueError(f"it claims to unpack to more than {bytes_max} bytes")
    except (pa.ArrowException, struct.error) as error:
        raise ValueError(f"no Arrow stream: {error}") from None
    return value[: 8 + first.metadata.size]


def _unpacked(metadata: bytes, body: pa.Buffer, values_max: int) -> int:
    """Return how many bytes the buffers of a record batch claim to unpack to."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    batch = _target(metadata, _field(metadata, message, 2))
    rows = _field(metadata, batch, 0)
    lengths = _pairs(metadata, batch, 1)[:, 0]
    count = struct.unpack_from("<q", metadata, rows)[0] if rows else 0
    if min(count, lengths.min(initial=0)) < 0 or max(count, lengths.max(initial=0)) > values_max:
        raise ValueError(f"it claims to hold more than {values_max} values")
    offset, size = _pairs(metadata, batch, 2).T
    if (offset < 0).any() or (size < 0).any() or (size > body.size).any() or (offset > body.size - size).any():
        raise ValueError("a buffer lies outside of it")
    if not _field(metadata, batch, 3):
        return sum(size.tolist())
    offset, size = offset[size > 0], size[size > 0]
    if (size < 8).any():
        raise ValueError("a buffer has no length")
    claimed = np.frombuffer(body, np.uint8)[offset[:, None] + np.arange(8)].view("<i8").ravel()
    if (claimed < -1).any():
        raise ValueError("a buffer has no length")
    return sum(np.where(claimed == -1, size - 8, claimed).tolist())  # -1: this one is not compressed


def _field(value: bytes, table: int, number: int) -> int:
    """Return the place of a field of a table, 0 if it is absent."""
    slots = table - struct.unpack_from("<i", value, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", value, slots)[0]:
        return 0
    offset = struct.unpack_from("<H", value, slots + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _target(value: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", value, place)[0]


def _pairs(value: bytes, table: int, number: int) -> np.ndarray:
    """Return a vector of pairs of 64-bit integers; shape (count, 2)."""
    place = _field(value, table, number)
    if not place:
        return np.zeros((0, 2), np.int64)
    vector = _target(value, place)
    count = struct.unpack_from("<I", value, vector)[0]
    return np.frombuffer(value, "<i8", 2 * count, vector + 4).reshape(-1, 2)
