"""The process service on the embedded bus: every row exactly once while members die, join and return."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from weft.pipeline.bus import BusConfig
from weft.pipeline.bus.embedded import EmbeddedBus
from weft.pipeline.clock import ManualClock
from weft.pipeline.codec import decode, encode, headers, table_of
from weft.pipeline.errors import FencedError
from weft.pipeline.process import service as process
from weft.pipeline.process.bursts.metric import BurstConfig
from weft.pipeline.process.service import GROUP, ProcessConfig, ProcessService
from weft.pipeline.report import Report, lag
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import WINDOW_NS
from weft.pipeline.tables.states import STATES

T0 = 1_640_995_200 * WINDOW_NS
MS = 1_000_000
RUNS = FAMILIES["burst_sample"]
DEVICES = 5
STATE_TOPICS = [*(table.topic for table in STATES.values()), FAMILIES["gap"].topic]
STEPS_MAX = 400


class ActingClock(ManualClock):
    """A clock that calls ``act`` once, at the next request for the time."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], None] | None = None

    def now_ns(self) -> int:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().now_ns()


class Cluster:
    """A bus with traffic, and the services that process it."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.bus = EmbeddedBus(BusConfig(partitions=4), folder / f"bus-{seed}", self.clock)
        self._opened: list[ProcessService] = []
        self.sent = 0
        self._publish(np.random.default_rng(seed))

    def _publish(self, rng: np.random.Generator) -> None:
        """Publish 100 ms segments of five devices, with late rows, a gap in the sequence and an end each."""
        producer = self.bus.producer("test")
        self._opened_producer = producer
        steps = [(step, device) for step in range(36) for device in range(DEVICES)]
        for step, device in steps:
            rows = []
            for port in ("p0", "p1"):
                late = 30 * WINDOW_NS if step == 30 and port == "p0" else 0
                values = (rng.integers(0, 2, 100) * 100_000).tolist()
                rows.append({"ts": T0 + step * 100 * MS - late, "recv_ts": T0, "port": port, "queue": "", "signal": "rx_bytes"})
                rows[-1] |= {"interval_ns": MS, "speed_bps": 10**9, "values": values}
                self.sent += 100
            frame = pl.DataFrame(rows, schema={name: RUNS.polars[name] for name in rows[0]})
            more = {"source": "test", "sequence": str(step + (step > 20)), **({"end": "1"} if step == 35 else {})}
            with producer.transaction() as transaction:
                transaction.publish(RUNS.topic, f"host-{device}", encode(frame, RUNS), headers(RUNS, **more))

    def service(self, member: str, poll_bytes_max: int = 4_000, clock: ManualClock | None = None) -> ProcessService:
        clock = clock or self.clock
        config = ProcessConfig(poll_bytes_max=poll_bytes_max)
        service = ProcessService(config, self.bus, clock, Report("process", "test", clock), member)
        service.start()
        self._opened.append(service)
        return service

    def finish(self, *services: ProcessService) -> None:
        """Step the services until the bus is drained."""
        for _ in range(STEPS_MAX):
            for service in services:
                service.step()
            if lag(self.bus, GROUP, list(ProcessService.topics)) == 0:
                return
        pytest.fail(f"{lag(self.bus, GROUP, list(ProcessService.topics))} messages are left")

    def rows(self) -> dict[str, Counter]:
        """Return every row on the state topics, counted; quality rows of one key are added up."""
        out: dict[str, Counter] = {}
        consumer = self.bus.consumer(STATE_TOPICS)
        while messages := consumer.poll(0.0):
            for message in messages:
                table = table_of(message.headers)
                for row in decode(message.value, table).iter_rows():
                    counts = out.setdefault(table.name, Counter())
                    if table.name == "quality":
                        counts.update({(*row[:4], name): n for name, n in zip("ldirwg", row[4:], strict=True)})
                    else:
                        counts[repr(row)] += 1
        consumer.close()
        return out

    def close(self) -> None:
        for service in self._opened:
            service.stop()
        self._opened_producer.close()
        self.bus.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    """Create clusters, and close their services and buses after the test."""
    opened: list[Cluster] = []

    def open_one(seed: int = 0) -> Cluster:
        opened.append(Cluster(tmp_path / str(len(opened)), seed))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter]:
    """Return the rows of one undisturbed service that reads everything at once."""
    one = Cluster(tmp_path_factory.mktemp("undisturbed"))
    one.finish(one.service("process-0", 2**24))
    rows = one.rows()
    one.close()
    return rows


def test_every_sample_is_in_a_row(cluster: Callable[[int], Cluster]) -> None:
    """Every sent sample is in the statistics or counted as late, and the gap in the sequence is recorded for each device."""
    one = cluster(0)
    one.finish(one.service("process-0"))
    consumer = one.bus.consumer([STATES["port_samples"].topic, STATES["quality"].topic, FAMILIES["gap"].topic])
    counted: Counter = Counter()
    for message in consumer.poll(0.0, 2**30):
        table = table_of(message.headers)
        frame = decode(message.value, table)
        name = {"port_samples": "samples", "quality": "late", "gap": "missed"}[table.name]
        counted[name] += int(frame[name].sum())
    consumer.close()
    assert counted == Counter(samples=one.sent - DEVICES * 100, late=DEVICES * 100, missed=DEVICES)


@pytest.mark.parametrize("poll_bytes_max", [1, 20_000])
def test_what_one_poll_returns_does_not_matter(
    cluster: Callable[[int], Cluster], undisturbed: dict[str, Counter], poll_bytes_max: int
) -> None:
    """The rows are the same for any size of reads."""
    one = cluster(0)
    one.finish(one.service("process-0", poll_bytes_max))
    assert one.rows() == undisturbed


@pytest.mark.parametrize("seed", range(4))
def test_a_service_that_dies_anywhere_repeats_and_loses_nothing(
    cluster: Callable[[int], Cluster], undisturbed: dict[str, Counter], seed: int
) -> None:
    """A service is dropped between two steps, twenty times, and a successor of its name continues: each row exists once."""
    one, rng = cluster(0), np.random.default_rng(seed)
    service = one.service("process-0")
    for _ in range(20):
        for _ in range(int(rng.integers(0, 4))):
            service.step()
        service = one.service("process-0", int(rng.choice([1, 2_000, 10_000])))
    one.finish(service)
    assert one.rows() == undisturbed


@pytest.mark.parametrize("seed", range(5))
def test_members_may_come_go_and_rise_from_the_dead(cluster: Callable[[int], Cluster], undisturbed: dict[str, Counter], seed: int) -> None:
    """One to four members share the work while others join, leave, stall and resume: each row exists once."""
    one, rng = cluster(0), np.random.default_rng(seed)
    awake, asleep = [one.service("process-0")], []
    for turn in range(60):
        action = int(rng.integers(10))
        if action == 0 and len(awake) < 4:
            awake.append(one.service(f"process-{turn + 1}", int(rng.choice([1, 2_000, 10_000]))))
        elif action == 1 and len(awake) > 1:
            awake.pop(int(rng.integers(len(awake)))).stop()
        elif action == 2 and len(awake) > 1:
            # A stall longer than a session: the others take its partitions.
            asleep.append(awake.pop(int(rng.integers(len(awake)))))
            for _ in range(6):
                one.clock.advance(2.4)
                for service in awake:
                    service.step()
        elif action == 3 and asleep:
            awake.append(asleep.pop())
        else:
            awake[int(rng.integers(len(awake)))].step()
    for service in asleep:
        service.stop()
    one.finish(*awake)
    assert one.rows() == undisturbed


def test_the_dead_are_fenced(cluster: Callable[[int], Cluster], undisturbed: dict[str, Counter]) -> None:
    """A service whose name another one has taken over cannot publish; every attempt raises ``FencedError``."""
    one = cluster(0)
    old = one.service("process-0")
    for _ in range(5):
        old.step()
    new = one.service("process-0")
    new.step()
    for _ in range(3):
        one.clock.advance(3)
        with pytest.raises(FencedError):
            old.step()
    one.finish(new)
    assert one.rows() == undisturbed


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_partitions_that_leave_between_reading_and_writing_are_left_alone(
    cluster: Callable[[int], Cluster], undisturbed: dict[str, Counter], at: int
) -> None:
    """If another member takes partitions during a step, that step is aborted and the next one starts from the saved state."""
    one, clock = cluster(0), ActingClock()
    first = one.service("process-0", 10_000, clock)
    others: list[ProcessService] = []

    def join() -> None:
        others.append(one.service("process-1"))
        others[0].step()

    fenced = 0
    for step in range(30):
        if step == at:
            clock.act = join
        try:
            first.step()
        except FencedError:
            fenced += 1
    one.finish(first, *others)
    assert others
    assert fenced <= 1
    assert one.rows() == undisturbed


def test_a_step_that_is_fenced_happens_again(cluster: Callable[[int], Cluster], undisturbed: dict[str, Counter]) -> None:
    """A step whose transaction fails has read samples; they are read again and none is missing at the end."""
    one, clock = cluster(0), ActingClock()
    first = one.service("process-0", 100_000, clock)
    fenced = 0
    for turn in range(10):

        def swap(turn: int = turn) -> None:
            other = one.service(f"guest-{turn}")
            other.step()
            other.stop()

        # Every second step restores the partitions of the guest before, and requests the time there, too.
        clock.act = swap if turn % 2 else None
        try:
            first.step()
        except FencedError:
            fenced += 1
    assert fenced
    one.finish(first)
    assert one.rows() == undisturbed


def test_thresholds_are_those_of_the_configuration(cluster: Callable[[int], Cluster]) -> None:
    """The share of the line rate above which a sample is hot is a setting."""
    counts = []
    for ratio in (0.5, 0.9):
        one = cluster(0)
        config = ProcessConfig(bursts=BurstConfig(threshold_ratio=ratio))
        service = ProcessService(config, one.bus, one.clock, Report("process", "test", one.clock))
        service.start()
        one.finish(service)
        service.stop()
        counts.append(len(one.rows().get("bursts", ())))
    assert counts[0] > 100
    assert counts[1] == 0


def test_a_stopped_service_may_be_stopped_again(cluster: Callable[[int], Cluster]) -> None:
    """``stop`` is idempotent."""
    service = cluster(0).service("process-0")
    service.stop()
    service.stop()


def test_a_start_that_compiles_says_so(
    cluster: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow start, because no installation compiled the kernels, is logged once; a usual start is not."""
    monkeypatch.setattr(process, "COMPILE_NOTICE_S", 0.05)
    monkeypatch.setattr(process, "warm", lambda: None)
    one = cluster(0)
    one.service("quick")
    monkeypatch.setattr(process, "warm", lambda: time.sleep(0.5))
    one.service("slow")
    assert [record.getMessage() for record in caplog.records] == ["compiling kernels, once: the first windows appear in a minute or two"]
