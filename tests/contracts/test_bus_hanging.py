"""Transactions whose end a broker forgets: those who read on must not wait for it without end.

A real broker forgets an end by chance, when it dies at the wrong moment. Here it is told not to verify transactions, and a
producer writes into a partition that its coordinator has not been told of: the same state, made on purpose.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bus_rig import LIMIT_S, Rig, publish, read, until
from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPlace
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.protocol.producer.transaction import TxnOffsetCommitRequest

from weft.pipeline.bus import partition_of
from weft.pipeline.bus.kafka_hanging import UNKNOWN_S, Mender
from weft.pipeline.bus.kafka_settings import MEMORY_TOPIC
from weft.pipeline.clock import ManualClock

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
PLACE = 3


@pytest.fixture
def careless(module_broker: Any, tmp_path: Path) -> Iterator[Rig]:
    """Return a rig over a broker that takes data of transactions that its coordinator does not know."""
    rig = Rig("kafka", module_broker.address, tmp_path)
    setting = {"transaction.partition.verification.enable": "false"}
    rig.bus.admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", setting)])  # type: ignore[attr-defined]
    yield rig
    rig.close()


def _hang(producer: Any, place: KafkaPlace, value: bytes) -> None:
    """Leave ``value`` in an open transaction that the coordinator knows nothing of."""
    client = producer._client
    client.begin_transaction()
    client._transaction_manager._partitions_in_transaction.add(place)
    client.send(place.topic, value=value, key=b"k", partition=place.partition).get(timeout=LIMIT_S)


def _abort(producer: Any, topic: str) -> None:
    """Let the producer's last transaction that the coordinator knows of be an aborted one."""
    client = producer._client
    client.begin_transaction()
    client.send(topic, value=b"aborted", key=b"k", partition=0).get(timeout=LIMIT_S)
    client.abort_transaction()
    _state(producer, "CompleteAbort")


def _state(producer: Any, wanted: str) -> None:
    """Wait until the coordinator says so of the producer's last transaction."""
    name = f"weft-{producer._name}"
    until(lambda: producer._bus.admin.describe_transactions([name])[name].state.value == wanted)


def _open_since(rig: Rig, place: KafkaPlace) -> set[int]:
    found = rig.bus.admin.describe_producers([place])[place].active_producers  # type: ignore[attr-defined]
    return {each.current_transaction_start_offset for each in found} - {-1}


@pytest.mark.parametrize("ended", ["committed", "aborted"])
def test_a_forgotten_end_is_written(careless: Rig, ended: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who reads on gets what its coordinator calls committed and not what it calls aborted, and then what came later."""
    writer, other = careless.producer(), careless.producer("other")
    topic = careless.name("hangs")
    publish(writer, topic, [("k", b"first")])
    if ended == "aborted":
        _abort(writer, topic)
    _state(writer, "CompleteCommit" if ended == "committed" else "CompleteAbort")
    place = KafkaPlace(topic, PLACE)
    _hang(writer, place, b"open")
    with other.transaction() as transaction:
        transaction.publish(topic, "k", b"later", {}, partition=PLACE)
    assert _open_since(careless, place)
    reader = careless.consumer("hangs")
    wanted = {b"first", b"later", b"open"} if ended == "committed" else {b"first", b"later"}
    assert {message.value for message in read(reader, len(wanted))} == wanted
    assert not _open_since(careless, place)
    said = [record.getMessage() for record in caplog.records if record.name == "weft"]
    assert said == [
        f"bus: the broker has forgotten to end a transaction of weft-{careless.name('writer')} in {topic}/{PLACE}; it is {ended} now"
    ]


def test_what_is_remembered_behind_a_forgotten_end(careless: Rig) -> None:
    """What was remembered behind a forgotten end is recalled within seconds, not never."""
    writer = careless.producer()
    with writer.transaction() as transaction:
        transaction.remember("key", b"before")
    _state(writer, "CompleteCommit")
    _hang(writer, KafkaPlace(MEMORY_TOPIC, partition_of("key", careless.config.partitions)), b"open")
    with careless.producer("other").transaction() as transaction:
        transaction.remember("key", b"after")
    begin = time.monotonic()
    assert careless.bus.recall("key") == b"after"
    assert time.monotonic() - begin < careless.config.patience_s / 2


def _hang_offset(rig: Rig, producer: Any, place: KafkaPlace, offset: int) -> None:
    """Leave an offset of the group in an open transaction that the coordinator knows nothing of."""
    admin = rig.bus.admin  # type: ignore[attr-defined]
    identity = producer._client._transaction_manager.producer_id_and_epoch
    topic = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic
    partition = topic.TxnOffsetCommitRequestPartition(partition_index=place.partition, committed_offset=offset, committed_metadata="")
    request = TxnOffsetCommitRequest(
        transactional_id=f"weft-{producer._name}",
        group_id=rig.name("group"),
        producer_id=identity.producer_id,
        producer_epoch=identity.epoch,
        topics=[topic(name=place.topic, partitions=[partition])],
        # The next version tells the coordinator by itself.
        max_version=4,
    )

    async def send() -> Any:
        return await admin._manager.send(request, node_id=await admin._find_coordinator_id(rig.name("group")))

    # The first to ask for a coordinator has the broker make the topic and load it.
    retried = rig.bus.retried  # type: ignore[attr-defined]
    until(lambda: retried(lambda: admin._manager.run(send)).topics[0].partitions[0].error_code == 0)


def test_offsets_of_a_group_behind_a_forgotten_end(careless: Rig) -> None:
    """A member of a group whose offsets were committed by a transaction with a forgotten end begins at these offsets."""
    writer = careless.producer()
    topic = careless.name("hangs")
    for number in range(4):
        with writer.transaction() as transaction:
            transaction.publish(topic, "k", b"%d" % number, {}, partition=PLACE)
    _state(writer, "CompleteCommit")
    # Behind two messages and the ends of their transactions.
    _hang_offset(careless, writer, KafkaPlace(topic, PLACE), 4)
    member = careless.consumer("hangs", group="group", member="one")
    assert [message.value for message in read(member, 2)] == [b"2", b"3"]


def test_an_end_that_nobody_knows(careless: Rig) -> None:
    """When its producer has begun anew nobody knows the end: it is aborted, once it is older than any transaction may be."""
    writer = careless.producer()
    topic = careless.name("hangs")
    publish(writer, topic, [("k", b"first")])
    _state(writer, "CompleteCommit")
    place = KafkaPlace(topic, PLACE)
    _hang(writer, place, b"open")
    bus = careless.open()
    bus.producer(careless.name("writer")).close()
    clock = ManualClock()
    mender = Mender(bus.admin, clock)  # type: ignore[attr-defined]
    assert not list(mender.hint([topic]))
    clock.advance(UNKNOWN_S - 1)
    assert not list(mender.hint([topic])) and _open_since(careless, place)
    clock.advance(2)
    assert [sentence.endswith("it is aborted now") for sentence in mender.hint([topic])] == [True]
    assert not _open_since(careless, place)


def test_a_transaction_under_way_is_left_alone(careless: Rig) -> None:
    """What is open because it is under way stays so, however long it takes."""
    writer = careless.producer()
    topic = careless.name("hangs")
    publish(writer, topic, [("k", b"first")])
    client = writer._client  # type: ignore[attr-defined]
    client.begin_transaction()
    client.send(topic, value=b"slow", key=b"k", partition=PLACE).get(timeout=LIMIT_S)
    clock = ManualClock()
    mender = Mender(careless.bus.admin, clock)  # type: ignore[attr-defined]
    for _ in range(3):
        assert not list(mender.hint([topic]))
        clock.advance(2 * UNKNOWN_S)
    assert _open_since(careless, KafkaPlace(topic, PLACE))
    client.commit_transaction()
    assert {message.value for message in read(careless.consumer("hangs"), 2)} == {b"first", b"slow"}


def test_another_programs_transactions_are_left_alone(careless: Rig) -> None:
    """On a cluster that serves others, too, what hangs of theirs is theirs to end."""
    topic = careless.name("hangs")
    publish(careless.producer(), topic, [("k", b"ours")])
    client = KafkaProducer(bootstrap_servers=careless.servers, transactional_id="another")
    try:
        client.init_transactions()
        client.begin_transaction()
        client.send(topic, value=b"theirs", key=b"k", partition=0).get(timeout=LIMIT_S)
        client.commit_transaction()
        place = KafkaPlace(topic, PLACE)
        _hang(SimpleNamespace(_client=client), place, b"open")
        clock = ManualClock()
        mender = Mender(careless.bus.admin, clock)  # type: ignore[attr-defined]
        assert not list(mender.hint([topic]))
        clock.advance(2 * UNKNOWN_S)
        assert not list(mender.hint([topic])) and _open_since(careless, place)
    finally:
        client._sender.force_close()
        client.close(timeout=5)
