"""The life cycle of a service: construct, ``start``, many ``step``s, ``stop``.

``run`` drives one service in the foreground of its process. A signal stops it after the current step, an error with a message for users
ends it with one line, and a transient error (the bus is unreachable) is retried with growing delays.
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

# A stop request during a pause takes effect within this time.
CHECK_S = 0.1

log = logging.getLogger("weft")


class Service(Protocol):
    """A component with a loop. ``step`` does a bounded amount of work and waits for a bounded time."""

    def start(self) -> None: ...

    def step(self) -> None: ...

    def stop(self) -> None: ...


def run(service: Service, clock: Clock, *, seconds: float | None = None, until: Callable[[], bool] | None = None) -> None:
    """Run ``service`` until a SIGTERM or SIGINT, ``until`` holds, or ``seconds`` have passed; then stop it.

    Raises what ``start`` raises, and a ``WeftError`` other than ``BusError`` and ``FencedError`` from ``step``.
    """
    stop = listen()
    deadline = clock.monotonic_ns() + int(seconds * 1e9) if seconds is not None else None
    service.start()
    pause = 0.0
    try:
        while not stop.is_set():
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
                while not stop.is_set() and clock.monotonic_ns() < until_ns:
                    clock.wait(min(pause, CHECK_S))
    finally:
        service.stop()


class StopRequest:
    """Whether a signal requested a stop.

    A plain flag without a lock: a signal handler may interrupt itself, because a killed supervisor with several threads sends one SIGTERM
    per thread. A handler that takes a lock, as an event does, would then deadlock.
    """

    def __init__(self) -> None:
        self._is_set = False

    def request(self, _signal: int, _frame: FrameType | None) -> None:
        """Request a stop; a signal handler."""
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def listen() -> StopRequest:
    """Return a stop request that SIGTERM and SIGINT set, if this is the main thread."""
    stop = StopRequest()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop.request)
        signal.signal(signal.SIGINT, stop.request)
    return stop
