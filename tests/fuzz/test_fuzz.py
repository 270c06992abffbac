"""For any bytes, a decoder returns rows or a counted error, in time and memory proportional to its input."""

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
MEMORY_FACTOR_MAX = 16
# The memory that a call may use even for a small input: tables of counters, threads of the frame engine.
MEMORY_FIXED = 48 * 2**20
MEGABYTES = 4
ATHERIS_SECONDS = 2


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("fuzzing", HERE / "fuzzing.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzing"] = module
    spec.loader.exec_module(module)
    return module


fuzzing = _load()
NAMES = fuzzing.names()


@cache
def _target(name: str) -> Any:
    return fuzzing.target(name)


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Draw a well-formed input that is cut, changed, doubled or mixed with another."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("set", "cut", "insert", "double", "splice", "long"))):
            case "set" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "double":
                data += data[at : at + 2000]
            case "splice":
                data[at:] = draw(st.sampled_from(seeds))[at:]
            case "long" if at + 4 <= len(data):
                data[at : at + 4] = draw(st.sampled_from((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0")))
    return bytes(data[: fuzzing.INPUT_BYTES_MAX])


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes(name: str) -> None:
    """The decoder keeps its contract for well-formed inputs, damaged ones and noise."""
    target = _target(name)
    for seed in (b"", *target.seeds):
        target.run(seed)

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(damaged(target.seeds), damaged(target.seeds), st.binary(max_size=512)))
    def feed(data: bytes) -> None:
        target.run(data)

    feed()


@pytest.mark.parametrize("name", NAMES)
def test_memory_follows_the_input(name: str) -> None:
    """A large input, intact or damaged, takes at most sixteen times its size."""
    command = [sys.executable, str(HERE / "fuzzing.py"), name, "--peak", str(MEGABYTES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["grown"] <= MEMORY_FACTOR_MAX * told["bytes"] + MEMORY_FIXED, told


@pytest.mark.parametrize("name", NAMES)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    """A few seconds of atheris, which is guided by branch coverage, find nothing."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    command = [sys.executable, str(HERE / "fuzzing.py"), name, "--seconds", str(ATHERIS_SECONDS), "--corpus", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.fullmatch(rf"{name}: ok, \d+ s, [1-9][\d,]* inputs, \d+ MB at most\n", done.stdout)
