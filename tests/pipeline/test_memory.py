"""What becomes of memory that was freed: told by the kernel of a process of its own, which nothing else uses."""

import subprocess
import sys

import pytest

_HEAD = """
import sys
from pathlib import Path
def kibibytes(library, what):
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            inside = line.endswith(library)
        elif inside and words[0] == what + ":":
            found += int(words[1])
    return found
"""


def run(code: str) -> list[str]:
    """Return the words that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", _HEAD + code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_compilers_code_is_let_go_and_comes_back() -> None:
    """After ``unmap_compiler`` next to none of LLVM's pages are here, and the compiler compiles as before."""
    before, after, answer = run("""
import numba
from weft.pipeline.memory import unmap_compiler
double = numba.njit(lambda x: 2 * x)
double(1)
before = kibibytes("libllvmlite.so", "Rss")
unmap_compiler()
after = kibibytes("libllvmlite.so", "Rss")
print(before, after, int(numba.njit(lambda x: 3 * x)(double(7))))
""")
    assert int(before) > 30_000
    assert int(after) < int(before) / 2
    assert answer == "42"


@pytest.mark.parametrize(("told", "taken"), [("", "system"), ("mimalloc", "mimalloc")])
def test_arrow_takes_memory_where_the_c_library_does(told: str, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's Arrow has no pool of its own, unless somebody said otherwise."""
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if told:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", told)
    words = run("""
from weft.pipeline.memory import use_one_allocator
use_one_allocator()
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
""")
    assert words == [taken]
