"""The polling thread: on its deadlines, within its bounds, with a longer interval where it cannot hold one."""

import time

import numpy as np
import pytest

from weft.collectors.host.netlink import Link
from weft.collectors.host.ticker import INTERVALS_NS, POLLS_MAX, REVIEWS_BAD, Ticker
from weft.pipeline.clock import SystemClock

pytestmark = pytest.mark.alone

MS = 1_000_000
SECOND = 1_000_000_000
# The longest wait of a test; each wait ends as soon as its condition holds.
PATIENCE_S = 20


def wait_for(condition) -> None:
    """Wait until the condition holds, at most ``PATIENCE_S``."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


class Fixed:
    """A counter reader whose reply is always the same bytes."""

    def __init__(self, reply: bytes, fail_at: int = -1) -> None:
        self.reply, self.fail_at, self.reads, self.opened = reply, fail_at, 0, 0

    def open(self) -> None:
        self.opened += 1

    def read(self) -> bytes:
        self.reads += 1
        if self.reads == self.fail_at:
            raise OSError("gone")
        return self.reply

    def decode(self, replies) -> list[Link]:
        return []

    def names(self) -> dict:
        return {}

    def close(self) -> None: ...


class Steps(SystemClock):
    """The machine's clock, whose wall time can be set."""

    def __init__(self) -> None:
        self.shift_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.shift_ns


def test_readings_are_due_at_multiples_of_the_interval_and_in_order():
    """Deadlines are whole intervals of wall time, none occurs twice, a late poll does not move the next."""
    ticker = Ticker(Fixed(b"x"), SystemClock(), 2 * MS)
    ticker.start()
    wait_for(lambda: ticker.serial >= 100)
    ticker.stop()
    taken = ticker.take()
    assert [reading.serial for reading in taken] == list(range(len(taken)))
    wall = np.array([reading.due_ns + reading.regime.offset_ns for reading in taken])
    assert (wall % (2 * MS) == 0).all()
    assert (np.diff(wall) >= 2 * MS).all()
    assert all(reading.stamp_ns >= reading.due_ns for reading in taken)
    assert (np.diff(wall) // (2 * MS) - 1).sum() <= ticker.late_ticks
    assert ticker.take() == []


def test_a_reader_that_is_not_emptied_drops_its_oldest():
    """Waiting polls are bounded in bytes; dropped ones show as missing serials."""
    ticker = Ticker(Fixed(bytes(16 * 1024 * 1024)), SystemClock(), MS // 2)
    ticker.start()
    wait_for(lambda: ticker.serial >= 20)
    ticker.stop()
    taken = ticker.take()
    assert len(taken) == 4 < POLLS_MAX
    assert [reading.serial for reading in taken] == list(range(ticker.serial - 4, ticker.serial))


def test_a_read_that_fails_is_counted_and_the_source_opened_again():
    """One failure costs its tick only."""
    reader = Fixed(b"x", fail_at=5)
    ticker = Ticker(reader, SystemClock(), MS)
    ticker.start()
    wait_for(lambda: ticker.serial >= 10)
    ticker.stop()
    assert (ticker.read_errors, reader.opened) == (1, 1)


@pytest.mark.parametrize(("cpu", "late", "reason"), [(0.2, 0.0, "reader_cpu"), (0.01, 0.3, "late_ticks")])
def test_an_interval_that_cannot_be_held_is_given_up_and_said(cpu, late, reason):
    """Bad seconds in a row step the interval up, once per step and at most to 100 ms; a good one between restarts the count."""
    ticker = Ticker(Fixed(b"x"), SystemClock(), MS)
    for _ in range(3):
        for _ in range(REVIEWS_BAD - 1):
            ticker.review(cpu, late)
        ticker.review(0.01, 0.0)
    ticker.changes()
    assert ticker.interval_ns == MS
    for _ in range(REVIEWS_BAD):
        ticker.review(cpu, late)
    assert ticker.interval_ns == 2 * MS
    change = [change for change in ticker.changes() if change.reason != "clock_step"]
    assert [(one.from_ns, one.to_ns, one.reason) for one in change] == [(MS, 2 * MS, reason)]
    for _ in range(REVIEWS_BAD * len(INTERVALS_NS)):
        ticker.review(cpu, late)
    assert ticker.interval_ns == 100 * MS


def test_a_step_of_the_wall_clock_moves_the_grid():
    """A step of more than 50 ms starts a new grid and is reported; slewing by less does not."""
    clock = Steps()
    ticker = Ticker(Fixed(b"x"), clock, MS)
    ticker.start()
    clock.shift_ns = 20 * MS
    ticker.review(0.0, 0.0)
    assert ticker.changes() == []
    clock.shift_ns = -3 * SECOND
    ticker.review(0.0, 0.0)
    ticker.stop()
    assert [change.reason for change in ticker.changes()] == ["clock_step"]
