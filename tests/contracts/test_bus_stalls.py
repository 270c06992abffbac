"""A reader on Kafka that is blocked from outside: a transaction without an end, a rebalance without an end."""

from collections.abc import Iterator

import pytest
from bus_rig import LIMIT_S, Rig, publish, read, until
from kafka import KafkaProducer, OffsetSpec
from kafka import TopicPartition as KafkaPlace
from kafka.admin import AbortTransactionSpec

from weft.pipeline.bus import TopicPartition
from weft.pipeline.bus.kafka import KafkaBus
from weft.pipeline.bus.kafka_stalls import BLOCKED_S, CHECK_INTERVAL_S, REPORT_INTERVAL_S, StallWatch
from weft.pipeline.clock import ManualClock

PLACE = 3


@pytest.fixture
def kafka_rig(kafka: str, tmp_path: object) -> Iterator[Rig]:
    """Return a rig over the Kafka bus."""
    rig = Rig("kafka", kafka, tmp_path)  # type: ignore[arg-type]
    yield rig
    rig.close()


@pytest.fixture
def foreign(kafka: str, kafka_rig: Rig) -> Iterator[KafkaProducer]:
    """Return a producer of another program, which may leave its transactions open for ten minutes."""
    name = kafka_rig.name("foreign")
    client = KafkaProducer(bootstrap_servers=kafka, transactional_id=name, transaction_timeout_ms=600_000)
    client.init_transactions()
    yield client
    client.close(timeout=5)


def _begin(client: KafkaProducer, topic: str) -> None:
    client.begin_transaction()
    client.send(topic, value=b"open", key=b"k", partition=PLACE).get(timeout=LIMIT_S)


def test_a_blocked_partition_is_reported(kafka_rig: Rig, foreign: KafkaProducer, caplog: pytest.LogCaptureFixture) -> None:
    """A reader logs the partition and offset at which a transaction has been open for a minute, once in five minutes."""
    topic, clock = kafka_rig.name("blocked"), ManualClock()
    publish(kafka_rig.producer(), topic, [("k", b"first")])
    _begin(foreign, topic)
    bus = KafkaBus(kafka_rig.config, clock)
    reader = bus.consumer([topic])
    stable = bus.offsets([KafkaPlace(topic, PLACE)], OffsetSpec.LATEST)[KafkaPlace(topic, PLACE)]
    lines: list[int] = []
    for advance_s in (0.0, BLOCKED_S - 1, 1 + CHECK_INTERVAL_S, REPORT_INTERVAL_S - 1, 1 + CHECK_INTERVAL_S):
        clock.advance(advance_s)
        reader.poll(0)
        lines.append(len([record for record in caplog.records if record.name == "weft"]))
    assert lines == [0, 0, 1, 1, 2]
    logged = {record.getMessage() for record in caplog.records if record.name == "weft"}
    assert logged == {
        f"bus: an open transaction blocks {topic} partition {PLACE} at offset {stable}; see Troubleshooting, 'A transaction without an end'"
    }
    foreign.abort_transaction()
    reader.close()
    bus.close()


def test_transactions_that_end_are_not_reported(kafka_rig: Rig, foreign: KafkaProducer) -> None:
    """A partition in which some transaction is always open, but each one ends, is not reported."""
    topic, clock = kafka_rig.name("busy"), ManualClock()
    publish(kafka_rig.producer(), topic, [("k", b"first")])
    bus = KafkaBus(kafka_rig.config, clock)
    watch, places = StallWatch(bus), [KafkaPlace(topic, PLACE)]
    for _ in range(4):
        _begin(foreign, topic)
        assert watch.check(places) is None
        clock.advance(BLOCKED_S - 1)
        assert watch.check(places) is None
        foreign.commit_transaction()
    bus.close()


def test_the_operators_abort_releases_readers(kafka_rig: Rig, foreign: KafkaProducer) -> None:
    """After an administrator has aborted an open transaction, readers get what was committed after it and nothing of it."""
    topic = kafka_rig.name("aborted")
    place = KafkaPlace(topic, PLACE)
    with kafka_rig.producer().transaction() as transaction:
        transaction.publish(topic, "k", b"before", {}, partition=PLACE)
    _begin(foreign, topic)
    with kafka_rig.producer("other").transaction() as transaction:
        transaction.publish(topic, "k", b"after", {}, partition=PLACE)
    reader = kafka_rig.consumer("aborted")
    assert [message.value for message in read(reader, 1)] == [b"before"]
    assert list(reader.poll(1.0)) == []
    admin = kafka_rig.bus.admin  # type: ignore[attr-defined]
    (hanging,) = [p for p in admin.describe_producers([place])[place].active_producers if p.current_transaction_start_offset >= 0]
    # The offset at which readers stop is the one that ``kafka-transactions.sh abort`` takes.
    assert hanging.current_transaction_start_offset == reader.position(TopicPartition(*place))
    admin.abort_transaction(AbortTransactionSpec(place, hanging.producer_id, hanging.producer_epoch, hanging.coordinator_epoch))
    assert [message.value for message in read(reader, 1)] == [b"after"]


def test_a_forgotten_rebalance_is_repeated(kafka_rig: Rig) -> None:
    """A member that has joined a new generation but gets no assignment from its client joins again within seconds."""
    publish(kafka_rig.producer(), kafka_rig.name("forgotten"), [("k", b"1")])
    assigned: list[int] = []
    member = kafka_rig.consumer("forgotten", group="group", member="one", on_assign=lambda places: assigned.append(len(places)))
    until(lambda: bool(member.assignment()), member)
    # The client reports that a rebalance begins, and never that it ends.
    member._left = -1  # type: ignore[attr-defined]
    member._rebalancing = True  # type: ignore[attr-defined]
    member.note(gained=False, places=member.assignment())  # type: ignore[attr-defined]
    until(lambda: len(assigned) == 2, member, limit_s=20)
    assert assigned == [8, 8]
    assert [message.value for message in read(member, 1)] == [b"1"]
