"""Types of kernels' input and output, and big-endian integers from a byte array (uint8) whose bounds the caller has checked.

Indices are made unsigned: for a signed one Numba checks whether it counts from the end, and the compiler then no longer merges
adjacent bytes into one load.
"""

from typing import Any

import numba
import numpy as np

_1, _2, _3, _4 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_8, _16, _24, _32 = np.uint64(8), np.uint64(16), np.uint64(24), np.uint64(32)


def octets(buffer: Any) -> np.ndarray:
    """Return a buffer as a read-only array of bytes: one type, for which kernels are compiled once."""
    data = np.frombuffer(buffer, np.uint8)
    data.flags.writeable = False
    return data


def record_type(*fields: str) -> np.dtype:
    """Return a record type; each text is a NumPy type and the names of the fields that have it, such as ``"u4 width height"``."""
    return np.dtype([(name, kind) for kind, *names in map(str.split, fields) for name in names])


@numba.njit(nogil=True)
def u16(buffer, at):
    """Return 2 bytes of ``buffer`` from ``at`` on as int64."""
    at = np.uint64(at)
    return np.int64(np.uint64(buffer[at]) << _8 | np.uint64(buffer[at + _1]))


@numba.njit(nogil=True)
def u24(buffer, at):
    """Return 3 bytes of ``buffer`` from ``at`` on as int64."""
    at = np.uint64(at)
    return np.int64(np.uint64(buffer[at]) << _16 | np.uint64(buffer[at + _1]) << _8 | np.uint64(buffer[at + _2]))


@numba.njit(nogil=True)
def u32(buffer, at):
    """Return 4 bytes of ``buffer`` from ``at`` on as int64."""
    at = np.uint64(at)
    high = np.uint64(buffer[at]) << _24 | np.uint64(buffer[at + _1]) << _16
    return np.int64(high | np.uint64(buffer[at + _2]) << _8 | np.uint64(buffer[at + _3]))


@numba.njit(nogil=True)
def u64(buffer, at):
    """Return 8 bytes of ``buffer`` from ``at`` on as uint64."""
    return np.uint64(u32(buffer, at)) << _32 | np.uint64(u32(buffer, at + 4))
