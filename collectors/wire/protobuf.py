"""Protobuf on the wire, for kernels: varints, and one field after another with its bounds checked; no message object is made.

Fields come in any order and unknown ones are skipped. A position of -1 means that the message is malformed: a varint that is
cut or longer than ten bytes, a field number of 0, a group, or a length beyond the message.
"""

import numba
import numpy as np

# Wire types, the lowest three bits of a tag; the field number is above them.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_VARINT_BYTES_MAX = 10
_TAG_MAX = 0xFFFFFFFF


@numba.njit(inline="always")
def varint(buffer, at, end):
    """Return (the 64 bits as int64, position after it) of the varint at ``at`` in ``buffer`` (uint8)."""
    value, after = np.int64(0), np.int64(-1)
    for k in range(min(_VARINT_BYTES_MAX, end - at)):
        byte = np.int64(buffer[at + k])
        value |= (byte & 127) << (7 * k)
        if byte < 128:
            after = np.int64(at + k + 1)
            break
    return value, after


@numba.njit
def field(buffer, at, end):
    """Return (tag, value, begin, position after it) of the field at ``at`` in ``buffer`` (uint8), all int64.

    ``value`` is a varint's 64 bits; of other wire types, the number of bytes at ``begin``.
    """
    tag, begin = varint(buffer, at, end)
    wire = tag & 7
    if begin < 0 or tag < 8 or tag > _TAG_MAX:
        return tag, np.int64(0), begin, np.int64(-1)
    if wire == VARINT:
        value, after = varint(buffer, begin, end)
        return tag, value, begin, after
    size = np.int64(8 if wire == FIXED64 else 4 if wire == FIXED32 else -1)
    if wire == LENGTH:
        size, begin = varint(buffer, begin, end)
    if begin < 0 or not 0 <= size <= end - begin:
        return tag, np.int64(0), begin, np.int64(-1)
    return tag, size, begin, begin + size


@numba.njit(inline="always")
def fixed64(buffer, at):
    """Return the eight bytes at ``at`` in ``buffer`` (uint8), least significant first, as int64."""
    value = np.uint64(0)
    for k in range(8):
        value |= np.uint64(buffer[at + k]) << np.uint64(8 * k)
    return np.int64(value)


@numba.njit
def fixed32(buffer, at):
    """Return the four bytes at ``at`` in ``buffer`` (uint8), least significant first, as int64."""
    value = np.int64(0)
    for k in range(4):
        value |= np.int64(buffer[at + k]) << (8 * k)
    return value
