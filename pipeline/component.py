"""The life of a long-lived part: built inert, ``start``, many ``step``s, ``stop``.

``run`` drives one service in the foreground of its process: a signal asks it to stop after the step under way, an
error meant for users ends it with one line, and what is transient (a bus that is away) is tried again with growing
pauses, for as long as the service allows.
"""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from .clock import Clock
from .errors import BusError, FencedError

PAUSE_S_MAX = 5.0

# In a pause, who asks for the end waits no longer than this.
LOOK_S = 0.1

log = logging.getLogger("weft")


class Service(Protocol):
    """A part with a loop. ``step`` does a bounded amount of work and waits a bounded time at most."""

    def start(self) -> None: ...

    def step(self) -> None: ...

    def stop(self) -> None: ...


def run(service: Service, clock: Clock, *, seconds: float | None = None, until: Callable[[], bool] | None = None) -> None:
    """Run ``service`` until a SIGTERM or SIGINT, ``until`` holds, or ``seconds`` have passed; then stop it.

    Raises what ``start`` raises, and a ``WeftError`` other than ``BusError`` and ``FencedError`` from ``step``.
    """
    asked = listen()
    deadline = clock.monotonic_ns() + int(seconds * 1e9) if seconds is not None else None
    service.start()
    pause = 0.0
    try:
        while not asked.is_set():
            if until is not None and until():
                break
            if deadline is not None and clock.monotonic_ns() >= deadline:
                break
            try:
                service.step()
                pause = 0.0
            except (BusError, FencedError) as error:
                pause = min(PAUSE_S_MAX, max(0.1, 2 * pause))
                log.warning("%s; trying again in %.1f s", error, pause)
                until_ns = clock.monotonic_ns() + int(pause * 1e9)
                while not asked.is_set() and clock.monotonic_ns() < until_ns:
                    clock.wait(min(pause, LOOK_S))
    finally:
        service.stop()


class Asked:
    """Whether somebody asked for the end.

    A plain flag: a handler of signals may interrupt itself, for a supervisor of several threads that is killed has SIGTERM sent once
    for each of them, and one that takes a lock, as an event does, then waits for itself for ever.
    """

    def __init__(self) -> None:
        self._asked = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Take note; a handler of signals."""
        self._asked = True

    def is_set(self) -> bool:
        return self._asked


def listen() -> Asked:
    """Listen for SIGTERM and SIGINT, where this is the main thread."""
    asked = Asked()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, asked.ask)
        signal.signal(signal.SIGINT, asked.ask)
    return asked
