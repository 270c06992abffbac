"""A thread that polls counters at absolute deadlines, and measures itself.

Deadlines are multiples of the interval in wall time, on the monotonic clock through an anchor taken when the interval is chosen; so a
late poll does not move the next ones. Per tick the thread does as little Python as possible: wait, read, stamp, append. Once a second it
reviews its processor time, its late ticks and steps of the wall clock. An interval that it cannot hold is replaced by the next longer
one, and reported.

Memory: at most ``POLLS_MAX`` polls and ``RING_BYTES_MAX`` bytes wait to be taken; beyond that the oldest are dropped.
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

POLLS_MAX = 16_384
RING_BYTES_MAX = 64 * 1024 * 1024

# The intervals, each the next longer one of the one before.
INTERVALS_NS = tuple(int(ms * NS_PER_MS) for ms in (0.5, 1, 2, 5, 10, 20, 50, 100))
CPU_RATIO_MAX = 0.10
LATE_RATIO_MAX = 0.10
# One bad second may be due to another program that starts; five in a row are not.
REVIEWS_BAD = 5
_REVIEW_NS = NS_PER_S
# A step of the wall clock; slewing moves the monotonic clock as well.
_STEP_NS = 50 * NS_PER_MS
_REOPEN_S = 0.1
_PR_SET_TIMERSLACK = 29
# The default of 50 us is most of the jitter.
_TIMER_SLACK_NS = 1000
# Needs little processor time, but punctually: if the kernel allows it, with priority over other programs.
_NICE = -10


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """The grid of the polls: the interval, and the offset from monotonic to wall time."""

    interval_ns: int
    offset_ns: int
    reason: str = ""


class Poll(NamedTuple):
    """One reply with its serial number, and when it came and was due, in monotonic time."""

    serial: int
    stamp_ns: int
    due_ns: int
    regime: Regime
    reply: bytes


class IntervalChange(NamedTuple):
    """A change of the interval, or a step of the wall clock."""

    ts: int
    from_ns: int
    to_ns: int
    reason: str
    detail: str


class Ticker:
    """Polls ``reader`` every ``interval_ns`` between ``start`` and ``stop``; ``take`` returns the polls."""

    def __init__(self, reader: CounterReader, clock: Clock, interval_ns: int, cpu_time_ns: Callable[[], int] | None = None) -> None:
        self._reader = reader
        self._clock = clock
        self._regime = Regime(interval_ns, 0)
        self._cpu_time_ns = cpu_time_ns or (lambda: clock_gettime_ns(CLOCK_THREAD_CPUTIME_ID))
        self._polls: deque[Poll] = deque()
        self._capacity = POLLS_MAX
        self._changes: deque[IntervalChange] = deque(maxlen=64)
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
        """The number of polls so far."""
        return self._serial

    def start(self) -> None:
        """Start the thread. The reader is open already."""
        self._anchor(self._regime.interval_ns, "")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="weft-host-ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Idempotent; polls that wait can still be taken."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    def take(self) -> list[Poll]:
        """Return the polls since the last call, oldest first; serials that are missing were dropped."""
        taken = []
        for _ in range(len(self._polls)):
            try:
                taken.append(self._polls.popleft())
            except IndexError:
                break
        return taken

    def changes(self) -> list[IntervalChange]:
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
        """Poll at every deadline until ``end_ns``; return how many polls there were and how many deadlines were missed."""
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
                self._append(Poll(self._serial, stamp_ns, due_ns, regime, reply))
                ticks += 1
            due_ns += interval_ns
            if due_ns <= stamp_ns:
                missed = (stamp_ns - due_ns) // interval_ns + 1
                late += missed
                self.late_ticks += missed
                due_ns += missed * interval_ns
        return ticks, late

    def _append(self, poll: Poll) -> None:
        if self._serial == 0:
            self._capacity = max(1, min(POLLS_MAX, RING_BYTES_MAX // len(poll.reply)))
        self._serial += 1
        self._polls.append(poll)
        if len(self._polls) > self._capacity:
            self._polls.popleft()

    def _reopen(self) -> None:
        self.read_errors += 1
        try:
            self._reader.open()
        except OSError:
            self._clock.wait(_REOPEN_S, self._stopping)

    def review(self, cpu_ratio: float, late_ratio: float) -> None:
        """Review one second by its share of a core and of missed ticks; change the grid where the interval cannot be held."""
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
            self._changes.append(IntervalChange(self._clock.now_ns(), regime.interval_ns, longer, reason, detail))
            return
        step_ns = self._clock.now_ns() - self._clock.monotonic_ns() - regime.offset_ns
        if abs(step_ns) > _STEP_NS:
            self._anchor(regime.interval_ns, "clock_step")
            detail = f"the wall clock moved by {step_ns / NS_PER_MS:.0f} ms"
            self._changes.append(IntervalChange(self._clock.now_ns(), regime.interval_ns, regime.interval_ns, "clock_step", detail))


def _ask_for_punctuality() -> None:
    """Request exact wake-ups of this thread from the kernel; if it refuses, jitter is larger, as the metric shows."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
