"""The contract of ``Bus``, sentence by sentence, over both implementations: messages, transactions, reading."""

import os
import signal
import threading
import time
from collections import defaultdict

import pytest
from bus_rig import LIMIT_S, PRELUDE, Children, Rig, line, publish, read, read_out

from weft.pipeline.bus import BusConfig, Loss, TopicPartition, open_bus, partition_of
from weft.pipeline.errors import FencedError


def test_one_key_keeps_its_order(rig: Rig) -> None:
    """The messages of one key come back in the order of publication, all in the partition that ``partition_of`` returns."""
    topic = rig.name("order")
    first, second = rig.producer("first"), rig.producer("second")
    for round_ in range(6):
        for producer, side in ((first, "a"), (second, "b")):
            publish(producer, topic, [(f"{side}{key}", b"%d" % round_) for key in range(20)])
    seen: dict[str, list[int]] = defaultdict(list)
    for message in read(rig.consumer("order"), 240):
        assert message.partition == partition_of(message.key, rig.config.partitions)
        seen[message.key].append(int(message.value))
    assert len(seen) == 40
    assert all(values == list(range(6)) for values in seen.values())


def test_a_message_comes_back_as_it_was(rig: Rig) -> None:
    """Topic, key, value and headers survive unchanged, whatever characters or bytes they have."""
    topic = rig.name("as-it-was")
    sent = {
        "Gerät/0:1 \N{RIGHTWARDS ARROW} π": (bytes(range(256)), {"schema": "packet", "größe": "1 µs \N{SNOWMAN}"}),
        "empty": (b"", {}),
        "": (b"\0", {"": ""}),
    }
    with rig.producer().transaction() as transaction:
        for key, (value, headers) in sent.items():
            transaction.publish(topic, key, value, headers)
    got = {message.key: (message.value, dict(message.headers)) for message in read(rig.consumer("as-it-was"), 3)}
    assert got == sent


@pytest.mark.parametrize("size", [512 * 1024, 1024 * 1024, 8 * 1024 * 1024])
def test_large_messages(rig: Rig, size: int) -> None:
    """Messages of half a mebibyte and more pass unchanged."""
    values = [os.urandom(size) for _ in range(4)]
    publish(rig.producer(), rig.name("large"), [(f"k{i}", value) for i, value in enumerate(values)])
    assert sorted(m.value for m in read(rig.consumer("large"), 4)) == sorted(values)


def test_a_partition_may_be_named(rig: Rig) -> None:
    """A message goes to the partition that its publisher names; one that does not exist is refused."""
    producer = rig.producer()
    with producer.transaction() as transaction:
        for number in range(rig.config.partitions):
            transaction.publish(rig.name("named"), "same key", b"%d" % number, {}, partition=number)
    assert all(int(m.value) == m.partition for m in read(rig.consumer("named"), rig.config.partitions))
    with pytest.raises(ValueError, match="partition 8"), producer.transaction() as transaction:
        transaction.publish(rig.name("named"), "k", b"", {}, partition=8)


def test_a_transaction_happens_as_a_whole(rig: Rig) -> None:
    """All messages, remembered values and offsets of a transaction are visible after its block has ended."""
    producer, group = rig.producer(), rig.name("group")
    publish(producer, rig.name("in"), [("k", b"1")])
    consumer = rig.consumer("in", group="group")
    (message,) = read(consumer, 1)
    place = TopicPartition(message.topic, message.partition)
    with producer.transaction() as transaction:
        transaction.publish(rig.name("out"), "k", b"2", {})
        transaction.publish(rig.name("other"), "k", b"3", {})
        transaction.remember(rig.name("key"), b"4")
        transaction.commit(consumer, {place: message.offset + 1})
    assert [m.value for m in read(rig.consumer("out"), 1)] == [b"2"]
    assert [m.value for m in read(rig.consumer("other"), 1)] == [b"3"]
    assert rig.bus.recall(rig.name("key")) == b"4"
    assert rig.bus.committed(group, [rig.name("in")])[place] == message.offset + 1


def test_an_error_in_the_block_leaves_nothing(rig: Rig) -> None:
    """When the block ends with an error nothing of it happens, the error passes, and the producer goes on working."""
    producer, group = rig.producer(), rig.name("group")
    publish(producer, rig.name("in"), [("k", b"1")])
    consumer = rig.consumer("in", group="group")
    (message,) = read(consumer, 1)
    place = TopicPartition(message.topic, message.partition)
    with pytest.raises(ZeroDivisionError), producer.transaction() as transaction:
        transaction.publish(rig.name("out"), "k", b"2", {})
        transaction.remember(rig.name("key"), b"4")
        transaction.commit(consumer, {place: message.offset + 1})
        raise ZeroDivisionError
    assert rig.bus.recall(rig.name("key")) is None
    assert rig.bus.committed(group, [rig.name("in")])[place] == 0
    publish(producer, rig.name("out"), [("k", b"5")])
    assert [m.value for m in read(rig.consumer("out"), 1)] == [b"5"]


def test_nothing_is_read_before_the_block_ends(rig: Rig) -> None:
    """A reader sees nothing of an open transaction, and all of it soon after."""
    producer, consumer = rig.producer(), rig.consumer("open")
    with producer.transaction() as transaction:
        transaction.publish(rig.name("open"), "k", b"1", {})
        transaction.remember(rig.name("key"), b"1")
        assert list(consumer.poll(0.3)) == []
        assert rig.bus.recall(rig.name("key")) is None
        assert set(rig.bus.ends([rig.name("open")]).values()) == {0}
    assert len(read(consumer, 1)) == 1


KILLED_WRITER = """
producer = bus.producer(f"writer.{suffix}")
number = int((bus.recall(f"at.{suffix}") or b"0").decode())
say("ready")
while True:
    number += 1
    with producer.transaction() as transaction:
        for key in range(12):
            transaction.publish(f"killed.{suffix}", f"k{key}", b"%d" % number + bytes(20_000), {})
        transaction.remember(f"at.{suffix}", b"%d" % number)
"""


def test_a_killed_process_leaves_whole_transactions(rig: Rig, children: Children) -> None:
    """After SIGKILL at any instant each transaction exists as a whole or not at all, and a producer of the same name continues at once."""
    rounds = 6 if rig.kind == "embedded" else 3
    for round_ in range(rounds):
        child = children(PRELUDE + KILLED_WRITER, *rig.arguments())
        assert line(child) == "ready"
        time.sleep(0.15 + 0.037 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    begin = time.monotonic()
    producer = rig.producer()
    last = int((rig.bus.recall(rig.name("at")) or b"0").decode())
    assert time.monotonic() - begin < 10
    messages = read_out(rig.bus, rig.consumer("killed"), [rig.name("killed")])
    counts: dict[int, set[str]] = defaultdict(set)
    for message in messages:
        counts[int(message.value.rstrip(b"\0"))].add(message.key)
    assert len(messages) == 12 * last, "each of the transactions once"
    assert sorted(counts) == list(range(1, last + 1))
    assert all(len(keys) == 12 for keys in counts.values())
    publish(producer, rig.name("killed"), [("k", b"after")])


HANGING_WRITER = """
producer = bus.producer(f"writer.{suffix}")
with producer.transaction() as transaction:
    transaction.publish(f"hanging.{suffix}", "k", b"1", {})
    transaction.remember(f"key.{suffix}", b"1")
    say("inside")
    time.sleep(1000)
"""


def test_a_process_killed_inside_the_block_leaves_nothing(rig: Rig, children: Children) -> None:
    """A transaction whose process died before its end never happened."""
    child = children(PRELUDE + HANGING_WRITER, *rig.arguments())
    assert line(child) == "inside"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    producer = rig.producer()
    assert rig.bus.recall(rig.name("key")) is None
    publish(producer, rig.name("hanging"), [("k", b"2")])
    assert [m.value for m in read(rig.consumer("hanging"), 1)] == [b"2"]


def test_a_second_producer_of_a_name_fences_the_first(rig: Rig) -> None:
    """The older of two producers of one name gets ``FencedError``, for good, and writes nothing; the newer one works."""
    old = rig.producer()
    publish(old, rig.name("fence"), [("k", b"1")])
    new = rig.producer()
    publish(new, rig.name("fence"), [("k", b"2")])
    for _ in range(2):
        with pytest.raises(FencedError):
            publish(old, rig.name("fence"), [("k", b"old")])
    publish(new, rig.name("fence"), [("k", b"3")])
    assert [m.value for m in read(rig.consumer("fence"), 3)] == [b"1", b"2", b"3"]


def test_recall_returns_the_newest(rig: Rig) -> None:
    """``recall`` returns the value last remembered under a key, ``None`` for an unknown key, also on a bus opened later."""
    producer = rig.producer()
    for number in range(5):
        with producer.transaction() as transaction:
            for key in range(10):
                transaction.remember(rig.name(f"key{key}"), b"%d-%d" % (key, number))
    with producer.transaction() as transaction:
        transaction.remember(rig.name("key3"), b"first")
        transaction.remember(rig.name("key3"), b"second")
    later = rig.open()
    assert later.recall(rig.name("key3")) == b"second"
    assert later.recall(rig.name("key7")) == b"7-4"
    assert later.recall(rig.name("strange")) is None


def test_position_reaches_the_ends(rig: Rig) -> None:
    """``ends`` is 0 where nothing was; else ``position`` reaches it exactly when everything has been read."""
    topic = rig.name("ends")
    places = [TopicPartition(topic, number) for number in range(rig.config.partitions)]
    assert rig.bus.ends([topic]) == dict.fromkeys(places, 0)
    producer, consumer = rig.producer(), rig.consumer("ends")
    assert consumer.assignment() == frozenset(places)
    for _ in range(3):
        publish(producer, topic, [(f"k{key}", b"x") for key in range(5)])
        with pytest.raises(KeyError), producer.transaction() as transaction:
            transaction.publish(topic, "k0", b"never", {})
            raise KeyError
    messages = read_out(rig.bus, consumer, [topic])
    assert len(messages) == 15
    assert {place: consumer.position(place) for place in places} == rig.bus.ends([topic])
    untouched = set(places) - {TopicPartition(m.topic, m.partition) for m in messages}
    assert all(consumer.position(place) == 0 for place in untouched)


def test_poll_keeps_to_its_time_and_wakes_up(rig: Rig) -> None:
    """``poll`` returns nothing after its time-out, and at once what another process publishes while it waits."""
    producer, consumer = rig.producer(), rig.consumer("wait")
    assert list(consumer.poll(0.2)) == []
    assert list(consumer.poll(0)) == []
    timer = threading.Timer(0.5, lambda: publish(producer, rig.name("wait"), [("k", b"1")]))
    begin = time.monotonic()
    timer.start()
    assert len(consumer.poll(LIMIT_S)) == 1
    timer.join()
    assert time.monotonic() - begin < LIMIT_S / 2


def test_poll_keeps_to_its_size(rig: Rig) -> None:
    """``poll`` returns about ``max_bytes`` at most, but always a message, and nothing is left out."""
    publish(rig.producer(), rig.name("size"), [(f"k{i % 7}", bytes(100_000)) for i in range(40)])
    consumer = rig.consumer("size")
    sizes: list[int] = []
    deadline = time.monotonic() + LIMIT_S
    while sum(sizes) < 40:
        messages = consumer.poll(0.2, max_bytes=250_000)
        assert sum(len(m.value) for m in messages) <= 250_000
        sizes.append(len(messages))
        assert time.monotonic() < deadline
    assert sum(sizes) == 40
    publish(rig.producer("second"), rig.name("size"), [("k", bytes(100_000))] * 2)
    assert [len(read_one) for read_one in (consumer.poll(LIMIT_S, max_bytes=1), consumer.poll(LIMIT_S, max_bytes=1))] == [1, 1]


def test_seek_reads_again(rig: Rig) -> None:
    """``seek`` between polls makes a consumer read on from there; ``position`` returns that offset."""
    topic = rig.name("seek")
    publish(rig.producer(), topic, [("k", b"%d" % i) for i in range(10)])
    consumer = rig.consumer("seek")
    messages = read(consumer, 10)
    place = TopicPartition(topic, messages[0].partition)
    consumer.seek(place, messages[4].offset)
    assert consumer.position(place) == messages[4].offset
    assert [m.value for m in read(consumer, 6)] == [m.value for m in messages[4:]]
    consumer.seek(place, 0)
    consumer.poll(LIMIT_S, max_bytes=1)
    consumer.seek(place, messages[8].offset)
    assert [m.value for m in read(consumer, 2)] == [b"8", b"9"]


def test_two_lone_consumers_read_everything(rig: Rig) -> None:
    """Without a group each consumer reads all partitions from offset 0, and calls ``on_assign`` with them once."""
    publish(rig.producer(), rig.name("alone"), [(f"k{i}", b"x") for i in range(20)])
    assigned: list[frozenset[TopicPartition]] = []
    for _ in range(2):
        consumer = rig.consumer("alone", on_assign=assigned.append)
        assert len(read(consumer, 20)) == 20
        assert assigned == [consumer.assignment()]
        assigned.clear()


def _drop(rig: Rig, place: TopicPartition, before: int) -> None:
    """Make the log drop the messages before an offset by its own retention."""
    if rig.kind == "kafka":
        rig.bus.admin.delete_records({place: before})  # type: ignore[attr-defined]
        return
    tight = open_bus(BusConfig(retention_bytes=1, patience_s=30), rig.folder)
    publish(tight.producer("cutter"), rig.name("cut"), [("k", b"")])
    tight.close()


def test_lost_reports_what_retention_dropped(rig: Rig) -> None:
    """A late reader continues at the first message that is left, and ``lost`` reports once what it missed."""
    topic = rig.name("lost")
    producer = rig.producer()
    for number in range(5):
        publish(producer, topic, [("k", b"%d" % number)])
    place = TopicPartition(topic, partition_of("k", rig.config.partitions))
    end = rig.bus.ends([topic])[place]
    late, early = rig.consumer("lost"), rig.consumer("lost")
    assert len(read(early, 5)) == 5
    read_out(rig.bus, early, [topic])
    _drop(rig, place, end)
    publish(producer, topic, [("k", b"new")])
    assert [m.value for m in read(late, 1)] == [b"new"]
    assert late.lost() == [Loss(place, 0, end)]
    assert late.lost() == []
    assert [m.value for m in read(early, 1)] == [b"new"]
    assert early.lost() == []
