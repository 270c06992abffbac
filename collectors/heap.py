"""Memory that was freed is kept for the next array.

A collector makes and drops arrays of some megabytes ten times a second. glibc hands such memory back to the system each time, and
the next array pays for fresh pages, which costs more than what is written into them.
"""

import ctypes
import os

# Parameters of mallopt (malloc.h): keep so much at the end of the heap; take from there what is no larger than so much.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 * 2**20
# No more is allowed with addresses of 64 bits.
_LARGE_BYTES = 32 * 2**20


def keep_freed() -> None:
    """Let this process keep freed memory; without effect where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
