"""A tree of service processes: started together, restarted when one dies, stopped together.

A killed service loses nothing, because the bus and the store hold its state; so the supervisor restarts it. It gives up a service
that dies repeatedly within a short time, and reports the last line of its log.
"""

import collections
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from .clock import NS_PER_S, Clock
from .errors import ServiceError

# The supervisor gives up a service that dies this often within the span.
DEATHS_MAX = 5
DEATHS_SPAN_S = 10.0
STOP_S = 15.0
RELAY_S = 2.0
TAIL_LINES = 20

# Several services share a machine, so freed memory should return to the system soon. Polars' allocator (jemalloc) would keep it for
# tens of seconds in several arenas, glibc in one arena per thread. Values in the environment win.
FRUGAL = {"_RJEM_MALLOC_CONF": "narenas:1,dirty_decay_ms:500,muzzy_decay_ms:0", "MALLOC_ARENA_MAX": "2"}

# Holds the process id of the supervisor of a child.
SUPERVISOR = "WEFT_SUPERVISOR"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Child:
    """One service: its name, and the arguments of ``weft`` that run it. ``once`` children end by themselves."""

    name: str
    arguments: tuple[str, ...]
    once: bool = False


@dataclass(slots=True)
class _Running:
    child: Child
    process: subprocess.Popen[str]
    tail: collections.deque[str]
    relay: threading.Thread
    deaths: list[int] = field(default_factory=list)


class Supervisor:
    """Keeps children running."""

    def __init__(self, children: Sequence[Child], clock: Clock, environment: dict[str, str] | None = None) -> None:
        self._children = children
        self._clock = clock
        self._environment = environment or {}
        self._running: dict[str, _Running] = {}
        self.restarts: collections.Counter[str] = collections.Counter()

    def start(self) -> None:
        """Start all children."""
        for child in self._children:
            self._running[child.name] = self._spawn(child)

    def step(self, wait_s: float = 0.2) -> None:
        """Restart children that have died.

        Raises:
            ServiceError: a child failed with a user error (exit code 1 or 2), or keeps dying.
        """
        self._clock.wait(wait_s)
        for name, running in list(self._running.items()):
            code = running.process.poll()
            if code is None or (running.child.once and code == 0):
                continue
            if code in (1, 2):
                raise ServiceError(_last_line(running), f"{name} has stopped")
            now = self._clock.monotonic_ns()
            deaths = [at for at in running.deaths if now - at < DEATHS_SPAN_S * NS_PER_S] + [now]
            if len(deaths) >= DEATHS_MAX:
                raise ServiceError(f"{name} died {len(deaths)} times in {DEATHS_SPAN_S:.0f} s: {_last_line(running)}", "see its log above")
            self.restarts[name] += 1
            self._running[name] = self._spawn(running.child)
            self._running[name].deaths = deaths

    def finished(self, name: str) -> bool:
        """Return whether a ``once`` child has ended well."""
        return self._running[name].process.poll() == 0

    def pids(self) -> dict[str, int]:
        """Return the process id of each child."""
        return {name: running.process.pid for name, running in self._running.items()}

    def stop(self, *names: str) -> None:
        """Stop the named children (all if none is named) in the order of their start, and wait. Idempotent."""
        chosen = [running for name, running in self._running.items() if not names or name in names]
        for running in chosen:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(STOP_S)
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()
            self._running.pop(running.child.name)

    def _spawn(self, child: Child) -> _Running:
        # The child gets its own session, so that Ctrl-C reaches only the supervisor, which stops the tree in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "weft", *child.arguments],
            stdin=subprocess.DEVNULL,
            stdout=None,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**FRUGAL, **os.environ, **self._environment, SUPERVISOR: str(os.getpid())},
            start_new_session=True,
        )
        tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        relay = threading.Thread(target=_relay, args=(process, tail), daemon=True)
        relay.start()
        return _Running(child, process, tail, relay)


def is_supervised() -> bool:
    """Return whether a supervisor started this process."""
    return SUPERVISOR in os.environ


def follow_supervisor() -> None:
    """Stop this process when the supervisor that started it dies, however it dies (Linux only)."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(supervisor):
        raise ServiceError("the supervisor of this service has gone", "start 'weft up' or 'weft replay' again")


def _relay(process: "subprocess.Popen[str]", tail: "collections.deque[str]") -> None:
    """Relay the standard error of a child, and keep its last lines for an error message."""
    assert process.stderr is not None
    for line in process.stderr:
        tail.append(line.rstrip("\n"))
        sys.stderr.write(line)
        sys.stderr.flush()


def _last_line(running: _Running) -> str:
    # Its last lines may still be in the pipe.
    running.relay.join(RELAY_S)
    lines = [line for line in running.tail if line.strip()]
    return (
        lines[-1].removeprefix("weft: ")
        if lines
        else f"{running.child.name} ended with code {running.process.returncode} without a message"
    )
