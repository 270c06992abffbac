"""Whether freed memory returns to the system or stays with the process.

A service that works in batches calls ``give_back`` after each, because other processes share the machine. A service that allocates
and frees arrays of some megabytes ten times a second calls ``keep_freed`` once: glibc returns such memory to the system each time,
and page faults of the next array cost more than writing it.

Without effect on the C library where it is not glibc.
"""

import ctypes
import os
import sys
from collections.abc import Callable

# Parameters of mallopt (malloc.h): free bytes kept at the end of the heap; largest allocation taken from the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 * 2**20
# The largest value that glibc accepts on 64 bits.
_LARGE_BYTES = 32 * 2**20

_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None
_trim: Callable[[int], int] | None = getattr(_LIBRARY, "malloc_trim", None)
_set: Callable[[int, int], int] | None = getattr(_LIBRARY, "mallopt", None)


def give_back() -> None:
    """Return the freed memory of Arrow and of the C library to the system."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


def keep_freed() -> None:
    """Keep freed memory in this process."""
    if _set is not None:
        _set(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def use_one_allocator() -> None:
    """Let Arrow allocate from the C library unless the environment names a pool: Arrow's own pools keep freed memory."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
