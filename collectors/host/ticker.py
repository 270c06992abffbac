"""A thread that reads counters at absolute deadlines, and measures itself.

Deadlines are the multiples of the interval in wall time, kept on the monotonic clock through an anchor taken when the
interval is chosen; so a reading that comes late does not move those after it. The thread does as little Python as it
can per tick: wait, read, stamp, append. Once a second it reviews itself: processor time, late ticks, the wall clock's
steps. What it cannot hold it gives up for the next longer interval, and says so.

Memory: at most ``READINGS_MAX`` readings and ``RING_BYTES_MAX`` bytes wait to be taken; beyond that the oldest go.
"""

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import CLOCK_THREAD_CPUTIME_ID, clock_gettime_ns
from typing import NamedTuple

from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from .netlink import CounterReader

READINGS_MAX = 16_384
RING_BYTES_MAX = 64 * 1024 * 1024

# Steps that an interval goes up by.
INTERVALS_NS = tuple(int(ms * NS_PER_MS) for ms in (0.5, 1, 2, 5, 10, 20, 50, 100))
CPU_RATIO_MAX = 0.10
LATE_RATIO_MAX = 0.10
# A bad second is somebody else's, such as a program that starts; five in a row are not.
REVIEWS_BAD = 5
_REVIEW_NS = NS_PER_S
# Steps of the wall clock; slewing moves the monotonic clock as well and needs nothing.
_STEP_NS = 50 * NS_PER_MS
_REOPEN_S = 0.1
_PR_SET_TIMERSLACK = 29
# The default of 50 us is most of the jitter.
_TIMER_SLACK_NS = 1000
# Some hundredths of a core, but on time: where the kernel lets us, before whatever computes.
_NICE = -10


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """The grid on which readings stand: interval, and what to add to monotonic time to get wall time."""

    interval_ns: int
    offset_ns: int
    reason: str = ""


class Reading(NamedTuple):
    """One reply with its place in the order of all replies, when it came and when it was due, in monotonic time."""

    serial: int
    stamp_ns: int
    due_ns: int
    regime: Regime
    reply: bytes


class Change(NamedTuple):
    """The interval went from one value to another, or the wall clock made a step."""

    ts: int
    from_ns: int
    to_ns: int
    reason: str
    detail: str


class Ticker:
    """Reads ``reader`` every ``interval_ns`` between ``start`` and ``stop``; ``take`` hands the readings over."""

    def __init__(self, reader: CounterReader, clock: Clock, interval_ns: int, cpu_time_ns: Callable[[], int] | None = None) -> None:
        self._reader = reader
        self._clock = clock
        self._regime = Regime(interval_ns, 0)
        self._cpu_time_ns = cpu_time_ns or (lambda: clock_gettime_ns(CLOCK_THREAD_CPUTIME_ID))
        self._readings: deque[Reading] = deque()
        self._capacity = READINGS_MAX
        self._changes: deque[Change] = deque(maxlen=64)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._serial = 0
        self._bad_reviews = 0
        self.late_ticks = 0
        self.read_errors = 0
        self.cpu_ratio = 0.0

    @property
    def interval_ns(self) -> int:
        return self._regime.interval_ns

    @property
    def serial(self) -> int:
        """How many readings there were so far."""
        return self._serial

    def start(self) -> None:
        """Begin to read. The reader is open already."""
        self._anchor(self._regime.interval_ns, "")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="weft-host-ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Idempotent; what was read stays to be taken."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    def take(self) -> list[Reading]:
        """Return the readings since the last call, oldest first; a hole in their serials is what had to go."""
        taken = []
        for _ in range(len(self._readings)):
            try:
                taken.append(self._readings.popleft())
            except IndexError:
                break
        return taken

    def changes(self) -> list[Change]:
        """Return the changes since the last call."""
        return [self._changes.popleft() for _ in range(len(self._changes))]

    def _anchor(self, interval_ns: int, reason: str) -> None:
        self._regime = Regime(interval_ns, self._clock.now_ns() - self._clock.monotonic_ns(), reason)

    def _run(self) -> None:
        _ask_for_punctuality()
        while not self._stopping.is_set():
            cpu_ns, from_ns = self._cpu_time_ns(), self._clock.monotonic_ns()
            ticks, late = self._tick_until(from_ns + _REVIEW_NS)
            elapsed_ns = self._clock.monotonic_ns() - from_ns
            if not self._stopping.is_set() and elapsed_ns:
                self.review((self._cpu_time_ns() - cpu_ns) / elapsed_ns, late / max(1, ticks + late))

    def _tick_until(self, end_ns: int) -> tuple[int, int]:
        """Read at every deadline until ``end_ns``; return how many there were and how many passed unread."""
        monotonic_ns, wait, stopping = self._clock.monotonic_ns, self._clock.wait, self._stopping.is_set
        regime, interval_ns = self._regime, self._regime.interval_ns
        due_ns = ((monotonic_ns() + regime.offset_ns) // interval_ns + 1) * interval_ns - regime.offset_ns
        ticks = late = 0
        while due_ns <= end_ns and not stopping():
            ahead_ns = due_ns - monotonic_ns()
            if ahead_ns > 0:
                wait(ahead_ns / NS_PER_S)
            try:
                reply = self._reader.read()
            except OSError:
                self._reopen()
                reply = b""
            stamp_ns = monotonic_ns()
            if reply:
                self._keep(Reading(self._serial, stamp_ns, due_ns, regime, reply))
                ticks += 1
            due_ns += interval_ns
            if due_ns <= stamp_ns:
                missed = (stamp_ns - due_ns) // interval_ns + 1
                late += missed
                self.late_ticks += missed
                due_ns += missed * interval_ns
        return ticks, late

    def _keep(self, reading: Reading) -> None:
        if self._serial == 0:
            self._capacity = max(1, min(READINGS_MAX, RING_BYTES_MAX // len(reading.reply)))
        self._serial += 1
        self._readings.append(reading)
        if len(self._readings) > self._capacity:
            self._readings.popleft()

    def _reopen(self) -> None:
        self.read_errors += 1
        try:
            self._reader.open()
        except OSError:
            self._clock.wait(_REOPEN_S, self._stopping)

    def review(self, cpu_ratio: float, late_ratio: float) -> None:
        """Judge one second: its share of a core and of missed ticks; change the grid where it cannot be held."""
        self.cpu_ratio = cpu_ratio
        regime = self._regime
        bad = cpu_ratio > CPU_RATIO_MAX or late_ratio > LATE_RATIO_MAX
        self._bad_reviews = self._bad_reviews + 1 if bad else 0
        longer = next((interval for interval in INTERVALS_NS if interval > regime.interval_ns), None)
        if self._bad_reviews >= REVIEWS_BAD and longer is not None:
            self._bad_reviews = 0
            reason = "reader_cpu" if cpu_ratio > CPU_RATIO_MAX else "late_ticks"
            self._anchor(longer, "interval_changed")
            detail = f"{regime.interval_ns / NS_PER_MS:g} ms to {longer / NS_PER_MS:g} ms: {cpu_ratio:.1%} of a core, {late_ratio:.1%} late"
            self._changes.append(Change(self._clock.now_ns(), regime.interval_ns, longer, reason, detail))
            return
        step_ns = self._clock.now_ns() - self._clock.monotonic_ns() - regime.offset_ns
        if abs(step_ns) > _STEP_NS:
            self._anchor(regime.interval_ns, "clock_step")
            detail = f"the wall clock moved by {step_ns / NS_PER_MS:.0f} ms"
            self._changes.append(Change(self._clock.now_ns(), regime.interval_ns, regime.interval_ns, "clock_step", detail))


def _ask_for_punctuality() -> None:
    """Ask the kernel to wake this thread on time; where it will not, jitter is larger and the metric says so."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
