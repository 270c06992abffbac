"""Fuzz targets: found in the files ``targets_*.py`` beside this one, and driven by atheris from the command line.

A target is a function ``fuzz_<decoder>`` that takes any bytes and raises when its decoder breaks a promise; ``SEEDS`` of its
file holds well-formed inputs by the target's name. ``make fuzz`` runs each for ten minutes; the tests run each for
seconds::

    python tests/fuzz/fuzzing.py [TARGET ...] [--seconds N] [--corpus FOLDER]
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

HERE = Path(__file__).parent
CORPUS = HERE.parent.parent / ".cache" / "fuzz"

# An input that takes longer (on a machine that does other things too), or a process that grows beyond this, is a finding.
INPUT_SECONDS_MAX = 60
RESIDENT_MIB_MAX = 2048
INPUT_BYTES_MAX = 65_536

# A process of atheris grows by some kilobytes with every input of any target, so it restarts after this many.
INPUTS_MAX = 100_000

# From so many seconds on kernels check every index.
CHECKED_SECONDS_MIN = 30


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder under fuzz."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names() -> list[str]:
    """Return the names of all targets without importing what they test."""
    found = []
    for path in sorted(HERE.glob("targets_*.py")):
        found += [line.split("(")[0].removeprefix("def fuzz_") for line in path.read_text().splitlines() if line.startswith("def fuzz_")]
    return found


def target(name: str) -> Target:
    """Return the target of that name."""
    for path in sorted(HERE.glob("targets_*.py")):
        if f"def fuzz_{name}(" in path.read_text():
            module = _load(path)
            return Target(name, getattr(module, f"fuzz_{name}"), tuple(module.SEEDS[name]))
    raise KeyError(name)


def _fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Run one target under atheris in this process; does not return."""
    import atheris

    chosen = target(name)
    # Compiled kernels have no branches to see, and cannot be compiled any more once their Python has been changed.
    for function in _functions():
        atheris.instrument_func(function)
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(chosen.seeds):
        (folder / f"seed-{number:02d}").write_bytes(seed)
    # Kernels are compiled before the clock of the first input runs.
    for seed in (b"", *chosen.seeds):
        chosen.run(seed)
    limits = [f"-timeout={INPUT_SECONDS_MAX}", f"-rss_limit_mb={RESIDENT_MIB_MAX}", f"-max_len={INPUT_BYTES_MAX}"]
    limits.append(f"-runs={INPUTS_MAX}")
    options = [*limits, f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", "-print_final_stats=1", str(folder)]
    atheris.Setup([sys.argv[0], *options], chosen.run)
    atheris.Fuzz()


def _functions() -> list[FunctionType]:
    """Return every plain function and method of the decoders that are loaded."""
    modules = [module for name, module in sys.modules.items() if name.startswith("weft.collectors")]
    members = [
        (module, member) for module in modules for member in vars(module).values() if getattr(member, "__module__", "") == module.__name__
    ]
    methods = [(module, member) for module, kind in members if isinstance(kind, type) for member in vars(kind).values()]
    return [member for module, member in members + methods if isinstance(member, FunctionType) and member.__module__ == module.__name__]


def _checked() -> dict[str, str]:
    """Return an environment in which kernels check every index, with a separate cache: compiled code does not record the setting."""
    return {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(CORPUS.with_name("fuzz-kernels"))}


def _peak(name: str, megabytes: int) -> None:
    """Print by how much this process grows at the most over one large input, in bytes, and the size of the input.

    The input is the seeds over and over; once intact and once with a byte in 500 changed.
    """
    chosen = target(name)
    seeds = b"".join(chosen.seeds) or bytes(range(256))
    data = bytearray(seeds * (megabytes * 2**20 // len(seeds) + 1))
    for seed in (b"", *chosen.seeds):
        chosen.run(seed)
    chosen.run(bytes(data[: len(data) // 8]))

    def resident(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

    grown = []
    for spoil in (False, True):
        if spoil:
            data[::500] = bytes((byte + 137) % 256 for byte in data[::500])
        whole = bytes(data)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        chosen.run(whole)
        grown.append(resident("VmHWM") - before)
    print(json.dumps({"bytes": len(data), "grown": max(grown)}))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run fuzz targets under atheris.")
    parser.add_argument("targets", nargs="*", help="names (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="time for each target (default: 600)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of the inputs that were found (default: .cache/fuzz)")
    parser.add_argument("--peak", type=int, metavar="MB", help="instead measure the memory that an input of so many megabytes takes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        _peak(chosen.targets[0], chosen.peak)
        return 0
    if chosen.here:
        _fuzz(chosen.targets[0], chosen.seconds, chosen.corpus)
        return 0
    failed = []
    for name in chosen.targets or names():
        began, inputs, peak = time.monotonic(), 0, 0
        # Compiling checked kernels takes longer than a short run.
        environment = _checked() if chosen.seconds >= CHECKED_SECONDS_MIN else None
        while True:
            left = max(1, round(chosen.seconds - (time.monotonic() - began)))
            command = [sys.executable, __file__, name, "--here", "--seconds", str(left), "--corpus", str(chosen.corpus)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)
            told = dict(re.findall(r"^stat::(\w+): +(\d+)$", done.stderr, re.MULTILINE))
            inputs += int(told.get("number_of_executed_units", 0))
            peak = max(peak, int(told.get("peak_rss_mb", 0)))
            if done.returncode != 0 or time.monotonic() - began >= chosen.seconds:
                break
        spent = time.monotonic() - began
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}, {spent:.0f} s, {inputs:,} inputs, {peak} MB at most", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print("\n".join((done.stdout + done.stderr).splitlines()[-40:]), flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
