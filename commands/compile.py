"""Compiles the kernels of an installation once, with a line of progress, before the first service starts.

Numba keeps what it compiled beside the source, in ``NUMBA_CACHE_DIR``, or in the user's cache folder where the package cannot be
written. A stamp there tells later starts that nothing is left to do. ``python -m weft.commands.compile`` compiles everything.
"""

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from .. import __version__
from ..pipeline.clock import NS_PER_S, Clock, SystemClock
from ..pipeline.supervise import is_supervised

PROCESS, COLLECTORS, LAB = "pipeline.process", "collectors", "lab"
PARTS = (PROCESS, COLLECTORS, LAB)

_PACKAGE = Path(__file__).parents[1]
_KERNELS = re.compile(rb"^(?:from|import) numba", re.MULTILINE)
_CPU = re.compile(r"^(?:model name|flags|CPU part|Features)\s*:.*$", re.MULTILINE)
_LOOK_S = 0.25


def compile_first(*parts: str) -> None:
    """Compile what these parts of the product need, unless an earlier start, or the supervisor of this service, did so."""
    if is_supervised() or all(_stamp(part).exists() for part in parts):
        return
    # A process of its own: a supervisor stays small for as long as its services run.
    subprocess.run([sys.executable, "-m", "weft.commands.compile", *parts], check=False)


def _stamp(part: str) -> Path:
    """Return the file that exists once the kernels of a part are compiled for this version, interpreter and processor."""
    key = hashlib.sha256(repr((__version__, version("numba"), sys.version, _processor(), _sources())).encode()).hexdigest()[:16]
    return _folder() / f"weft-{part}-{key}.compiled"


def _folder() -> Path:
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(named)
    if os.access(_PACKAGE / "pipeline", os.W_OK):
        return _PACKAGE / "__pycache__"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


def _processor() -> tuple[object, ...]:
    """Return what machine code depends on: a folder of compiled kernels may come from another machine, in an image."""
    try:
        lines = sorted(set(_CPU.findall(Path("/proc/cpuinfo").read_text())))
    except OSError:
        lines = []
    return platform.machine(), platform.processor(), lines, os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")


def _sources() -> list[tuple[str, int, int]]:
    """Return the files that hold kernels, each with what changes when it does."""
    files = sorted(file for folder in ("pipeline", "collectors", "lab") for file in (_PACKAGE / folder).rglob("*.py"))
    kernels = [file for file in files if _KERNELS.search(file.read_bytes())]
    return [(str(file.relative_to(_PACKAGE)), (said := file.stat()).st_size, said.st_mtime_ns) for file in kernels]


def main(parts: Sequence[str], clock: Clock) -> int:
    """Compile the parts side by side, one process each at a time for each processor; return the exit code."""
    from ..collectors import COLLECTORS as SOURCES

    left = [(part, [f"weft.{part}.warm"]) for part in parts if part != COLLECTORS]
    left += [(COLLECTORS, ["weft.collectors.warm", name]) for name, one in SOURCES.items() if one.warm and COLLECTORS in parts]
    count, began = len(left), clock.monotonic_ns()
    running: list[tuple[str, subprocess.Popen[str]]] = []
    failed: dict[str, str] = {}
    if not sys.stderr.isatty():
        print("compiling kernels, once: this takes a minute or two", file=sys.stderr, flush=True)
    try:
        while left or running:
            while left and len(running) < max(2, os.cpu_count() or 1):
                part, module = left.pop(0)
                # The pipe takes the last words of one that fails; one that works prints nothing.
                command = [sys.executable, "-m", *module]
                running.append((part, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)))
            clock.wait(_LOOK_S)
            for part, process in [one for one in running if one[1].poll() is not None]:
                running.remove((part, process))
                if process.returncode:
                    failed[part] = (process.communicate()[1].strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            seconds = (clock.monotonic_ns() - began) / NS_PER_S
            if sys.stderr.isatty():
                done = count - len(left) - len(running)
                print(f"\rcompiling kernels, once: {done} of {count}, {seconds:.0f} s\x1b[K", end="", file=sys.stderr, flush=True)
    finally:
        for _, process in running:
            process.kill()
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    for part, problem in failed.items():
        print(f"note: kernels of {part} are compiled at their first use: {problem}", file=sys.stderr)
    print(f"compiled the kernels in {seconds:.0f} s", file=sys.stderr, flush=True)
    for part in parts:
        with contextlib.suppress(OSError):
            if part not in failed:
                _stamp(part).parent.mkdir(parents=True, exist_ok=True)
                _stamp(part).touch()
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:] or PARTS, SystemClock()))
