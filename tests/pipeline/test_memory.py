"""Memory of a process, measured in a new interpreter."""

import subprocess
import sys

import pytest


def run(code: str) -> list[str]:
    """Return the words that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("chosen", "used"), [("", "system"), ("mimalloc", "mimalloc")])
def test_arrow_allocates_from_the_c_library(chosen: str, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow allocates from the C library unless the environment names another pool."""
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if chosen:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", chosen)
    words = run("""
from weft.pipeline.memory import use_one_allocator
use_one_allocator()
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
""")
    assert words == [used]


@pytest.mark.timeout(1200)
def test_the_process_service_does_not_load_pandas() -> None:
    """Windows of every metric are computed without pandas, which takes 30 MB where another package has installed it."""
    words = run("""
import sys
from weft.pipeline.process import service
service.warm()
print("pandas" in sys.modules)
""")
    assert words == ["False"]
