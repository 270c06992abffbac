"""Compiles the kernels of an installation once, with a line of progress, before the first service starts.

Numba keeps what it compiled beside the source, in ``NUMBA_CACHE_DIR``, or in the user's cache folder where the package cannot be
written. A stamp file there marks the work as done for later starts. ``python -m weft.commands.compile`` compiles everything.
"""

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from .. import __version__
from ..pipeline.clock import NS_PER_S, Clock, SystemClock
from ..pipeline.supervise import is_supervised

PROCESS, COLLECTORS, LAB = "pipeline.process", "collectors", "lab"
PARTS = (PROCESS, COLLECTORS, LAB)

_PACKAGE = Path(__file__).parents[1]
_ROOMS = [_PACKAGE / name for name in ("pipeline", "collectors", "lab")]
_KERNELS = re.compile(rb"^(?:from|import) numba", re.MULTILINE)
_CPU = re.compile(r"^(?:model name|flags|CPU part|Features)\s*:.*$", re.MULTILINE)
_LOOK_S = 0.25


def compile_first(*parts: str) -> None:
    """Compile what these parts of the product need, unless an earlier start, or the supervisor of this service, did so."""
    if not is_supervised() and not all(_stamp(part).exists() for part in parts):
        # In a separate process, so that a supervisor uses little memory while its services run.
        subprocess.run([sys.executable, "-m", "weft.commands.compile", *parts], check=False)


def _stamp(part: str) -> Path:
    """Return the file that exists once the kernels of a part are compiled for this version, interpreter and processor."""
    return _folder() / f"weft-{part}-{_key()}.compiled"


def _folder() -> Path:
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(named)
    if os.access(_PACKAGE / "pipeline", os.W_OK):
        return _PACKAGE / "__pycache__"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


@cache
def _key() -> str:
    """Return what compiled kernels depend on: their source, the compiler, and the processor, for an image may come from another machine."""
    try:
        lines = sorted(set(_CPU.findall(Path("/proc/cpuinfo").read_text())))
    except OSError:
        lines = []
    chosen = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    whole = hashlib.sha256(repr((__version__, version("numba"), sys.version, platform.machine(), lines, chosen)).encode())
    for content in (file.read_bytes() for room in _ROOMS for file in sorted(room.rglob("*.py"))):
        if _KERNELS.search(content):
            whole.update(content)
    return whole.hexdigest()[:16]


def _begin() -> None:
    """Create the folder and remove kernels of another version.

    Numba does not notice when a called kernel has changed, and fails on a cached kernel if fields of its named tuples were renamed.
    """
    folder, begun = _folder(), _stamp("begun")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if not begun.exists():
            names = {file.parent.name for room in _ROOMS for file in room.rglob("*.py")}
            beside = [file for room in _ROOMS for file in room.rglob("*.nb[ci]")] if folder.parent == _PACKAGE else []
            apart = [file for name in names for file in folder.glob(f"{name}_*/*.nb[ci]")]
            for file in (*beside, *apart, *folder.glob("weft-*.compiled")):
                file.unlink(missing_ok=True)
            begun.touch()


def main(parts: Sequence[str], clock: Clock) -> int:
    """Compile the parts side by side, a process for each step, with a line of progress; return the exit code."""
    from ..collectors import COLLECTORS as SOURCES

    steps = {part: [f"weft.{part}.warm"] for part in parts if part != COLLECTORS}
    steps |= {f"{COLLECTORS} {name}": ["weft.collectors.warm", name] for name, one in SOURCES.items() if one.warm and COLLECTORS in parts}
    _begin()
    began = clock.monotonic_ns()
    _show("compiling kernels, once: this takes a minute or two", lasting=True)
    left, running, failed = list(steps), dict[str, subprocess.Popen[str]](), dict[str, str]()
    try:
        while left or running:
            while left and len(running) < max(2, os.cpu_count() or 1):
                step = left.pop(0)
                # A failing step writes its error to the pipe; a successful one prints nothing.
                command = [sys.executable, "-m", *steps[step]]
                running[step] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            clock.wait(_LOOK_S)
            for step in [step for step, process in running.items() if process.poll() is not None]:
                process = running.pop(step)
                words = process.communicate()[1].strip().splitlines()
                if process.returncode:
                    failed[step] = words[-1] if words else f"exit code {process.returncode}"
            done, seconds = len(steps) - len(left) - len(running), (clock.monotonic_ns() - began) / NS_PER_S
            _show(f"compiling kernels, once: {done} of {len(steps)}, {seconds:.0f} s")
    finally:
        for process in running.values():
            process.kill()
    for step, problem in failed.items():
        _show(f"note: kernels of {step} are compiled at their first use: {problem}", lasting=True)
    _show(f"compiled the kernels in {(clock.monotonic_ns() - began) / NS_PER_S:.0f} s", lasting=True)
    for part in parts:
        if not any(step.split()[0] == part for step in failed):
            with contextlib.suppress(OSError):
                _stamp(part).touch()
    return 1 if failed else 0


def _show(line: str, *, lasting: bool = False) -> None:
    """Print a line of progress: on a terminal over the previous one, elsewhere only if ``lasting``."""
    live = sys.stderr.isatty()
    if live or lasting:
        print(f"\r{line}\x1b[K" if live else line, end="\n" if lasting else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:] or PARTS, SystemClock()))
