"""Memory that was freed goes back to the system: services share a machine, and each has peaks of its own.

Allocators keep what was freed for the next request. A service that works in gusts calls ``give_back`` after each.
"""

import ctypes
import os

import pyarrow as pa


def give_back() -> None:
    """Return freed memory of Arrow and of the C library; of the latter without effect where it is not glibc."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
