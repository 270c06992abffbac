"""The only access to time: everything that waits or takes timestamps uses a ``Clock``."""

import threading
import time
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Wall time for timestamps, monotonic time for deadlines, and an interruptible wait."""

    def now_ns(self) -> int:
        """Return UTC nanoseconds since 1970."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds that never go back."""
        ...

    def wait(self, seconds: float, until: threading.Event | None = None) -> bool:
        """Wait for ``seconds``, or until the event is set; return whether it is set."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wait(self, seconds: float, until: threading.Event | None = None) -> bool:
        seconds = max(0.0, seconds)
        if until is not None:
            return until.wait(seconds)
        time.sleep(seconds)
        return False


class ManualClock:
    """A clock for tests that moves only by ``advance`` and ``wait``."""

    def __init__(self, now_ns: int = 1_640_995_200 * NS_PER_S) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._now_ns

    def advance(self, seconds: float) -> None:
        self._now_ns += int(seconds * NS_PER_S)

    def wait(self, seconds: float, until: threading.Event | None = None) -> bool:
        self.advance(max(0.0, seconds))
        return until is not None and until.is_set()
