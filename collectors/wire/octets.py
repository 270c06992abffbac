"""Big-endian integers out of a byte array, for kernels; who calls has made sure that the bytes are there.

Places are made unsigned first: of a signed one Numba asks each time whether it counts from the end, and the compiler then no
longer sees that four bytes in a row are one load.
"""

from typing import Any

import numba
import numpy as np

_1, _2, _3, _4 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_8, _16, _24, _32 = np.uint64(8), np.uint64(16), np.uint64(24), np.uint64(32)


def octets(buffer: Any) -> np.ndarray:
    """Return a buffer as bytes that cannot be written: kernels are compiled for them once, whoever the bytes belong to."""
    data = np.frombuffer(buffer, np.uint8)
    data.flags.writeable = False
    return data


@numba.njit(nogil=True)
def u16(buffer, at):
    at = np.uint64(at)
    return np.int64(np.uint64(buffer[at]) << _8 | np.uint64(buffer[at + _1]))


@numba.njit(nogil=True)
def u24(buffer, at):
    at = np.uint64(at)
    return np.int64(np.uint64(buffer[at]) << _16 | np.uint64(buffer[at + _1]) << _8 | np.uint64(buffer[at + _2]))


@numba.njit(nogil=True)
def u32(buffer, at):
    at = np.uint64(at)
    high = np.uint64(buffer[at]) << _24 | np.uint64(buffer[at + _1]) << _16
    return np.int64(high | np.uint64(buffer[at + _2]) << _8 | np.uint64(buffer[at + _3]))


@numba.njit(nogil=True)
def u64(buffer, at):
    return np.uint64(u32(buffer, at)) << _32 | np.uint64(u32(buffer, at + 4))
