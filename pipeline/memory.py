"""What becomes of memory that was freed: it goes back to the system, or is kept for the next array.

Allocators decide either way without knowing a service. One that works in gusts calls ``give_back`` after each, since others share
the machine. One that makes and drops arrays of some megabytes ten times a second calls ``keep_freed`` once: glibc hands such memory
back each time, and the next array pays for fresh pages, which costs more than what is written into them.

Without effect on the C library where it is not glibc.
"""

import ctypes
import os
from collections.abc import Callable

import pyarrow as pa

# Parameters of mallopt (malloc.h): keep so much at the end of the heap; take from there what is no larger than so much.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 * 2**20
# No more is allowed with addresses of 64 bits.
_LARGE_BYTES = 32 * 2**20

_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None
_trim: Callable[[int], int] | None = getattr(_LIBRARY, "malloc_trim", None)
_set: Callable[[int, int], int] | None = getattr(_LIBRARY, "mallopt", None)


def give_back() -> None:
    """Return freed memory of Arrow and of the C library to the system."""
    pa.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


def keep_freed() -> None:
    """Let this process keep freed memory."""
    if _set is not None:
        _set(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)
