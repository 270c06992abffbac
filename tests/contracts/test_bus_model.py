"""Any sequence of transactions, reads, seeks, restarts and take-overs gives what a plain list in memory gives."""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bus_rig import Rig
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from weft.pipeline.bus import Consumer, Message, TopicPartition, partition_of
from weft.pipeline.errors import FencedError

TOPICS = ("alpha", "beta")
KEYS = st.text(max_size=8) | st.sampled_from(["a", "b", "c"])
HEADERS = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
MESSAGES = st.lists(st.tuples(st.sampled_from(TOPICS), KEYS, st.binary(max_size=50), HEADERS), max_size=6)
Record = tuple[str, bytes, dict[str, str]]


class Reading:
    """A lone consumer and what a list would have given it."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.next: dict[TopicPartition, int] = defaultdict(int)


class BusMachine(RuleBasedStateMachine):
    """One bus beside lists: per partition the records in order, what is remembered, and who may write."""

    producers = Bundle("producers")
    readers = Bundle("readers")
    make: Callable[[], Rig]

    def __init__(self) -> None:
        super().__init__()
        self.rig = self.make()
        self.log: dict[TopicPartition, list[Record]] = defaultdict(list)
        self.memory: dict[str, bytes] = {}
        self.newest: dict[str, int] = {}

    def teardown(self) -> None:
        self.rig.close()

    @rule(target=producers, name=st.sampled_from(["one", "two"]))
    def open_producer(self, name: str) -> tuple[Any, str, int]:
        self.newest[name] = self.newest.get(name, 0) + 1
        return self.rig.producer(name), name, self.newest[name]

    @rule(target=readers)
    def open_reader(self) -> Reading:
        return Reading(self.rig.consumer(*TOPICS))

    @rule(reading=consumes(readers))
    def close_reader(self, reading: Reading) -> None:
        reading.consumer.close()
        reading.consumer.close()

    def _write(self, transaction: Any, messages: list[tuple[str, str, bytes, dict[str, str]]], remembered: dict[str, bytes]) -> None:
        for topic, key, value, headers in messages:
            transaction.publish(self.rig.name(topic), key, value, headers)
        for key, value in remembered.items():
            transaction.remember(self.rig.name(key), value)

    @rule(producer=producers, messages=MESSAGES, remembered=st.dictionaries(KEYS, st.binary(max_size=20), max_size=3))
    def commit(self, producer: tuple[Any, str, int], messages: list[Any], remembered: dict[str, bytes]) -> None:
        client, name, number = producer
        if not messages and not remembered:
            return
        if number != self.newest[name]:
            with pytest.raises(FencedError), client.transaction() as transaction:
                self._write(transaction, messages, remembered)
            return
        with client.transaction() as transaction:
            self._write(transaction, messages, remembered)
        for topic, key, value, headers in messages:
            place = TopicPartition(self.rig.name(topic), partition_of(key, self.rig.config.partitions))
            self.log[place].append((key, value, headers))
        self.memory.update(remembered)

    @rule(producer=producers, messages=MESSAGES, remembered=st.dictionaries(KEYS, st.binary(max_size=20), max_size=3))
    def abort(self, producer: tuple[Any, str, int], messages: list[Any], remembered: dict[str, bytes]) -> None:
        with pytest.raises(InterruptedError), producer[0].transaction() as transaction:
            self._write(transaction, messages, remembered)
            raise InterruptedError

    @rule(reading=readers, max_bytes=st.integers(1, 200))
    def read_some(self, reading: Reading, max_bytes: int) -> None:
        self._check(reading, reading.consumer.poll(0.05, max_bytes))

    @rule(reading=readers)
    def read_all(self, reading: Reading) -> None:
        consumer = reading.consumer
        for _ in range(1000):
            ends = self.rig.bus.ends([self.rig.name(topic) for topic in TOPICS])
            if all(consumer.position(place) >= end for place, end in ends.items()):
                break
            self._check(reading, consumer.poll(0.05))
        assert {place: consumer.position(place) for place in ends} == ends
        assert all(reading.next[place] == len(records) for place, records in self.log.items())

    def _check(self, reading: Reading, messages: Any) -> None:
        message: Message
        for message in messages:
            place = TopicPartition(message.topic, message.partition)
            assert (message.key, message.value, dict(message.headers)) == self.log[place][reading.next[place]]
            reading.next[place] += 1

    @rule(reading=readers, number=st.integers(0, 7), topic=st.sampled_from(TOPICS))
    def rewind(self, reading: Reading, number: int, topic: str) -> None:
        place = TopicPartition(self.rig.name(topic), number)
        reading.consumer.seek(place, 0)
        reading.next[place] = 0

    @rule()
    def reopen(self) -> None:
        self.rig.bus = self.rig.open()

    @rule(key=KEYS)
    def recall(self, key: str) -> None:
        assert self.rig.bus.recall(self.rig.name(key)) == self.memory.get(key)

    @invariant()
    def ends_are_at_or_after_the_records(self) -> None:
        ends = self.rig.bus.ends([self.rig.name(topic) for topic in TOPICS])
        if self.rig.kind == "embedded":
            assert ends == {place: len(self.log[place]) for place in ends}
        assert all(ends[place] >= len(records) for place, records in self.log.items())


def _run(kind: str, servers: str, folder: Path, *, examples: int, steps: int) -> None:
    def make(_: Any = None) -> Rig:
        return Rig(kind, servers, Path(tempfile.mkdtemp(dir=folder)))

    machine = type("Machine", (BusMachine,), {"make": make})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    )


def test_embedded_is_the_model(tmp_path: Path) -> None:
    """The embedded bus does what lists in memory do, for any sequence of operations."""
    _run("embedded", "", tmp_path, examples=60, steps=30)


def test_kafka_is_the_model(kafka: str, tmp_path: Path) -> None:
    """The Kafka bus does what lists in memory do, for a few sequences of operations."""
    _run("kafka", kafka, tmp_path, examples=5, steps=15)
