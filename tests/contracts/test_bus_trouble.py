"""The bus in trouble: damaged, full, started together, its broker away."""

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bus_rig import LIMIT_S, PRELUDE, Children, Rig, publish, read, read_out, until

from weft.pipeline.bus import Bus, BusConfig, Producer, open_bus
from weft.pipeline.bus.kafka_settings import MEMORY_TOPIC
from weft.pipeline.errors import BusError


def test_another_number_of_partitions_is_refused(rig: Rig) -> None:
    """A log with another number of partitions than configured is refused with the number to set."""
    rig.consumer("count")
    config = BusConfig(kind=rig.kind, servers=rig.servers, partitions=3, patience_s=5)
    with pytest.raises(BusError, match="8 partitions, not 3"):
        open_bus(config, rig.folder)


def test_a_bus_that_is_not_there(tmp_path: Path) -> None:
    """Without a broker, or with a data folder that cannot be created, opening fails with a hint."""
    with pytest.raises(BusError, match=r"no Kafka broker at 127\.0\.0\.1:1 .*; start it"):
        open_bus(BusConfig(kind="kafka", servers="127.0.0.1:1", patience_s=2), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BusError, match="cannot be created"):
        open_bus(BusConfig(), tmp_path / "file")
    with pytest.raises(BusError, match=r"password file .* cannot be read .*sasl_password_file"):
        open_bus(BusConfig(kind="kafka", sasl_mechanism="PLAIN", sasl_password_file=str(tmp_path / "none")), tmp_path)


def test_a_damaged_log_is_refused(embedded: Rig) -> None:
    """A log file that is something else, or is damaged, is refused with a hint."""
    path = embedded.folder / "bus" / "log.sqlite"
    embedded.close()
    for path_left in path.parent.iterdir():
        path_left.unlink()
    path.write_bytes(os.urandom(100_000))
    with pytest.raises(BusError, match=r"damaged or not a log; .*move the folder"):
        embedded.open()


def _fill(producer: Producer, topic: str) -> int:
    """Return how many transactions of four messages went in before the disk was full."""
    for number in range(1000):
        try:
            publish(producer, topic, [(f"k{key}", os.urandom(100_000)) for key in range(4)])
        except BusError as error:
            assert "full" in str(error) and "retention_bytes" in str(error)
            return number
    raise AssertionError("the disk did not fill up")


def test_a_full_log_takes_whole_transactions_only(embedded: Rig) -> None:
    """When the disk is full a transaction fails as a whole, with a hint; the log stays readable, and works again with space."""
    producer = embedded.producer()
    connection = producer._log._connection  # type: ignore[attr-defined]
    connection.execute("PRAGMA max_page_count = 600")
    whole = _fill(producer, embedded.name("full"))
    reader = embedded.consumer("full")
    assert len(read_out(embedded.bus, reader, [embedded.name("full")])) == 4 * whole
    connection.execute("PRAGMA max_page_count = 100000")
    publish(producer, embedded.name("full"), [("k", b"again")])
    assert [m.value for m in read(reader, 1)] == [b"again"]


def test_a_full_disk(tmp_path: Path) -> None:
    """The same on a real file system that is full, where one can be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        rig = Rig("embedded", "", small)
        producer = rig.producer()
        whole = _fill(producer, rig.name("full"))
        assert whole > 0
        reader = rig.consumer("full")
        assert len(read_out(rig.bus, reader, [rig.name("full")])) == 4 * whole
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        publish(producer, rig.name("full"), [("k", b"again")])
        assert [m.value for m in read(reader, 1)] == [b"again"]
        rig.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_retention_keeps_the_log_small(tmp_path: Path) -> None:
    """The embedded log stays near its limit of bytes, drops the oldest first, and drops what is too old."""
    bus = open_bus(BusConfig(retention_bytes=50_000_000), tmp_path)
    producer = bus.producer("p")
    for number in range(200):
        publish(producer, "t", [("k", b"%04d" % number + bytes(1_000_000))])
        assert bus.size_bytes() < 90_000_000  # type: ignore[attr-defined]
    consumer = bus.consumer(["t"])
    left = [int(m.value[:4]) for m in read_out(bus, consumer, ["t"])]
    assert left == list(range(200 - len(left), 200)) and 40 <= len(left) <= 90
    assert sum(loss.to_offset - loss.from_offset for loss in consumer.lost()) == 200 - len(left)
    aged = open_bus(BusConfig(retention_s=0), tmp_path)
    old = aged.producer("q")
    for _ in range(3):
        publish(old, "u", [("k", b"")])
    assert bus.size_bytes() < 1000  # type: ignore[attr-defined]
    for opened in (producer, consumer, bus, old, aged):
        opened.close()


OPENER = """
producer = bus.producer(sys.argv[5] + "." + suffix)
for number in range(50):
    with producer.transaction() as transaction:
        transaction.publish(f"together.{suffix}", "k", b"x", {})
"""


def test_processes_may_start_together(rig: Rig, children: Children) -> None:
    """Processes that start at the same time on a new log or topic make it once and lose nothing."""
    started = [children(PRELUDE + OPENER, *rig.arguments(), str(number)) for number in range(4)]
    assert [child.wait(LIMIT_S) for child in started] == [0] * 4
    assert len(read_out(rig.bus, rig.consumer("together"), [rig.name("together")])) == 200


NEW_LOG = """
producer = bus.producer(sys.argv[5])
with producer.transaction() as transaction:
    transaction.publish("new", "k", b"x", {})
"""


def test_processes_may_make_the_log_together(tmp_path: Path, children: Children) -> None:
    """Processes that start at the same time on an empty folder make one log file and lose nothing."""
    started = [children(PRELUDE + NEW_LOG, "embedded", "", str(tmp_path), "", str(number)) for number in range(6)]
    assert [child.wait(LIMIT_S) for child in started] == [0] * 6
    bus = open_bus(BusConfig(), tmp_path)
    assert sum(bus.ends(["new"]).values()) == 6
    bus.close()


class _Writer:
    """Publishes numbers in a thread until stopped; after an error it recalls what happened, as the contract requires."""

    def __init__(self, rig: Rig) -> None:
        self.done: list[int] = []
        self.between = threading.Lock()
        self._rig = rig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        producer = self._rig.producer()
        while not self._stop.is_set():
            try:
                number = int((self._rig.bus.recall(self._rig.name("at")) or b"0").decode()) + 1
                for following in range(number, 1 << 30):
                    with self.between, producer.transaction() as transaction:
                        transaction.publish(self._rig.name("away"), f"k{following % 9}", b"%d" % following, {})
                        transaction.remember(self._rig.name("at"), b"%d" % following)
                    self.done.append(following)
                    if self._stop.wait(0.02):
                        return
            except BusError:
                self._stop.wait(0.1)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def _take_away(broker: Any, trouble: str, writer: _Writer, bus: Bus, topics: list[str]) -> None:
    """Let the broker hang or stop at any moment, or die between two transactions.

    Kafka 4.4 may forget the end of a transaction when it is killed while it writes that end. The loss of a broker's
    own log is not what is tested here.
    """
    if trouble == "hangs":
        broker.pause()
    elif trouble == "stops":
        broker.stop()
    else:
        with writer.between:
            bus.ends(topics)
            broker.kill()


@pytest.mark.parametrize("trouble", ["hangs", "stops", "dies"])
def test_a_broker_that_goes_away_and_comes_back(own_broker: Any, tmp_path: Path, trouble: str) -> None:
    """While the broker is away for 20 s nothing is lost or doubled; when it is back everything continues without intervention."""
    rig = Rig("kafka", own_broker.address, tmp_path)
    reader, member = rig.consumer("away"), rig.consumer("away", group="group", member="one")
    seen: set[int] = set()
    writer = _Writer(rig)
    try:
        # Messages that arrive while the member waits for its partitions count, too.
        seen.update(int(m.value) for m in until(lambda: bool(member.assignment()), member))
        got: list[int] = []
        while not got:
            got.extend(int(m.value) for m in reader.poll(0.5))
        _take_away(own_broker, trouble, writer, rig.bus, [rig.name("away"), MEMORY_TOPIC])
        begin = time.monotonic()
        while time.monotonic() - begin < 20:
            got.extend(int(m.value) for m in reader.poll(0.5))
            seen.update(int(m.value) for m in member.poll(0.5))
        own_broker.resume() if trouble == "hangs" else own_broker.start()
        goal = len(writer.done) + 50
        until(lambda: len(writer.done) >= goal)
    finally:
        writer.stop()
    last = max(writer.done)
    deadline = time.monotonic() + LIMIT_S
    while min(len(got), len(seen)) < last and time.monotonic() < deadline:
        got.extend(int(m.value) for m in reader.poll(0.5))
        seen.update(int(m.value) for m in member.poll(0.5))
    assert sorted(got) == list(range(1, last + 1))
    assert seen == set(got), "a member reads some again when the group lost it, but misses none"
    rig.close()


def test_patience_has_an_end(own_broker: Any, tmp_path: Path) -> None:
    """A broker that stays away for longer than the patience is a ``BusError``, for writers and readers; then it goes on."""
    rig = Rig("kafka", own_broker.address, tmp_path, patience_s=4)
    producer, consumer = rig.producer(), rig.consumer("patience")
    publish(producer, rig.name("patience"), [("k", b"1")])
    assert len(read(consumer, 1)) == 1
    own_broker.pause()
    with pytest.raises(BusError):
        publish(producer, rig.name("patience"), [("k", b"never")])
    with pytest.raises(BusError, match="has not answered"):
        until(lambda: False, consumer, limit_s=LIMIT_S)
    own_broker.resume()
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            publish(producer, rig.name("patience"), [("k", b"2")])
            break
        except BusError:
            assert time.monotonic() < deadline
    values: list[bytes] = []
    while b"2" not in values and time.monotonic() < deadline:
        try:
            values.extend(m.value for m in consumer.poll(0.5))
        except BusError:
            continue
    assert values == [b"2"]
    rig.close()
