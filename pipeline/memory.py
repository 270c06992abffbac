"""What becomes of memory that was freed: it goes back to the system, or is kept for the next array.

Allocators decide either way without knowing a service. One that works in gusts calls ``give_back`` after each, since others share
the machine. One that makes and drops arrays of some megabytes ten times a second calls ``keep_freed`` once: glibc hands such memory
back each time, and the next array pays for fresh pages, which costs more than what is written into them.

Without effect on the C library where it is not glibc.

A process that can do without a large module which libraries import wherever it is installed says so by ``go_without``: pandas is
34 MB and half a second of each service.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Parameters of mallopt (malloc.h): keep so much at the end of the heap; take from there what is no larger than so much.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 * 2**20
# No more is allowed with addresses of 64 bits.
_LARGE_BYTES = 32 * 2**20

# Advice of madvise (asm-generic/mman-common.h).
_MADV_DONTNEED = 4
_MAPS = "/proc/self/maps"

_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None
_trim: Callable[[int], int] | None = getattr(_LIBRARY, "malloc_trim", None)
_set: Callable[[int, int], int] | None = getattr(_LIBRARY, "mallopt", None)


def give_back() -> None:
    """Return freed memory of Arrow and of the C library to the system."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


def unmap_compiler() -> None:
    """Let go of the pages of LLVM's code, which cannot be written and so is read from its file again when it is called.

    Of its 60 MB a process that loads its kernels from the cache needs next to nothing once they are loaded; but a kernel that comes
    later waits some 20 ms more, which a socket does not.
    """
    if "llvmlite" not in sys.modules or _LIBRARY is None or not os.path.exists(_MAPS):
        return
    with open(_MAPS) as maps:
        for line in maps:
            place, access, *_, path = line.split()
            if access == "r-xp" and path.endswith("libllvmlite.so"):
                low, high = (int(end, 16) for end in place.split("-"))
                _LIBRARY.madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _MADV_DONTNEED)


def keep_freed() -> None:
    """Let this process keep freed memory."""
    if _set is not None:
        _set(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def use_one_allocator() -> None:
    """Let Arrow, if not told otherwise before, take memory where the C library does: a pool of its own keeps what was freed."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


class _Absent(MetaPathFinder, Loader):
    """Finds one module and lets it never be imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == self._name else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ModuleNotFoundError(f"this process goes without {spec.name}", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Never reached."""


def go_without(name: str) -> None:
    """Let nothing in this process import a module that is not imported yet: importing it fails as if it were not installed."""
    sys.meta_path.insert(0, _Absent(name))
