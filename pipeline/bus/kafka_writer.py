"""The writing side of the Kafka bus: transactions that are collected in memory and sent at the end of their block.

Two errors look the same to Kafka: a transaction that timed out (the broker was away) and a producer whose name was
taken over. Each producer therefore remembers its instance under its name when it starts. After such an error it
reads that back, and starts again only if the instance is still its own.

A transaction whose end cannot be confirmed in time may have happened; what it remembered or committed shows.
"""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kafka import KafkaProducer, OffsetAndMetadata  # pyright: ignore[reportAttributeAccessIssue]
from kafka import TopicPartition as KafkaPlace  # pyright: ignore[reportAttributeAccessIssue]
from kafka import errors as kafka_errors

from ..errors import BusError, FencedError
from . import Consumer, TopicPartition, partition_of
from .kafka_cluster import CLOSE_TIMEOUT_S, FAILURES, KafkaCluster
from .kafka_reader import PROBE_TIMEOUT_S, KafkaReader
from .kafka_settings import COMMIT_S, MEMORY_TOPIC, producer_settings
from .within import within

# Under this key and its name a producer remembers its instance.
INSTANCE_KEY = "weft.producer."

# The client's errors for a member whose partitions have gone to another.
FENCED_OWNER = ("CommitFailedError", "FencedInstanceIdError", "IllegalGenerationError", "UnknownMemberIdError")

Headers = list[tuple[str, bytes]]


class KafkaTransaction:
    """Messages and values to send when the block ends, not before."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self.messages: list[tuple[TopicPartition, str, bytes, Headers]] = []
        self.offsets: list[tuple[Consumer, dict[TopicPartition, int]]] = []

    def publish(self, topic: str, key: str, value: bytes, headers: Mapping[str, str], *, partition: int | None = None) -> None:
        number = partition_of(key, self._partitions) if partition is None else partition
        if not 0 <= number < self._partitions:
            raise ValueError(f"partition {number} of {self._partitions}")
        packed = [(name, text.encode()) for name, text in headers.items()]
        self.messages.append((TopicPartition(topic, number), key, value, packed))

    def remember(self, key: str, value: bytes) -> None:
        self.publish(MEMORY_TOPIC, key, value, {})

    def commit(self, consumer: Consumer, offsets: Mapping[TopicPartition, int]) -> None:
        self.offsets.append((consumer, dict(offsets)))


class KafkaWriter:
    """The producer of one name."""

    def __init__(self, cluster: KafkaCluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._instance = uuid.uuid4().hex.encode()
        self._client: KafkaProducer | None = None
        self._announced = False
        self._ready()

    @contextmanager
    def transaction(self) -> Iterator[KafkaTransaction]:
        work = KafkaTransaction(self._cluster.config.partitions)
        yield work
        if not work.messages and not work.offsets:
            return
        self._cluster.create_topics(sorted({place.topic for place, *_ in work.messages}))
        self._perform(self._ready(), work, FencedError)

    def _ready(self) -> KafkaProducer:
        """Return the client, or a new one after a failure; the broker aborts transactions that a producer of the same name left open."""
        if self._client is not None:
            return self._client
        key = INSTANCE_KEY + self._name
        if self._announced and self._cluster.recall(key, PROBE_TIMEOUT_S, strict=False) != self._instance:
            raise FencedError(f"another producer named {self._name} has taken over")
        self._client = client = self._cluster.retried(self._open)
        work = KafkaTransaction(self._cluster.config.partitions)
        work.remember(key, self._instance)
        self._perform(client, work)
        self._announced = True
        return client

    def _open(self) -> KafkaProducer:
        client = KafkaProducer(**self._cluster.client_settings, **producer_settings(self._cluster.config, self._name))
        try:
            client.init_transactions()
        except FAILURES:
            self._abandon(client)
            raise
        return client

    def _abandon(self, client: KafkaProducer) -> None:
        """Close a failed client in the background: it first waits for its batches, which fail after ``COMMIT_S`` at the latest.

        A transaction that it left open is aborted by its successor of the same name.
        """
        self._cluster.attempt(lambda: client.close(timeout=2 * COMMIT_S), 0)

    def _perform(self, client: KafkaProducer, work: KafkaTransaction, *also: type[Exception]) -> None:
        try:
            within(min(self._cluster.config.patience_s, COMMIT_S), lambda: self._send(client, work))
        except (*FAILURES, *also) as error:
            self._give_up(client, error)

    def _send(self, client: KafkaProducer, work: KafkaTransaction) -> None:
        client.begin_transaction()
        sent = [
            client.send(place.topic, value=value, key=key.encode(), headers=headers, partition=place.partition)
            for place, key, value, headers in work.messages
        ]
        for consumer, offsets in work.offsets:
            if not isinstance(consumer, KafkaReader):
                raise TypeError("a consumer of another bus")
            consumer.check(offsets)
            places = {KafkaPlace(*place): OffsetAndMetadata(offset) for place, offset in offsets.items()}
            client.send_offsets_to_transaction(places, consumer.identity())
        client.flush()
        # A batch may be lost without an error of the transaction: commit only after each message has been acknowledged.
        for future in sent:
            future.get(timeout=self._cluster.config.patience_s)
        if self._client is not client:
            # The caller has already got an error for this transaction.
            raise kafka_errors.KafkaTimeoutError("too late")
        client.commit_transaction()

    def _give_up(self, client: KafkaProducer, error: Exception) -> None:
        """Abort the transaction; raise the error for the caller."""
        try:
            if isinstance(error, TimeoutError):
                raise error
            within(CLOSE_TIMEOUT_S, client.abort_transaction)
        except FAILURES:
            self._client = None
            self._abandon(client)
        if isinstance(error, FencedError):
            raise error
        cause = repr(error)
        if any(name in cause for name in FENCED_OWNER):
            raise FencedError("the consumer's partitions have gone to another member") from error
        if self._client is None and self._announced and ("Fenced" in cause or "ProducerEpoch" in cause):
            # Raises ``FencedError`` after a take-over; after a time-out the producer is ready again.
            self._ready()
        raise BusError(f"Kafka did not take a transaction ({cause})", "recall what is remembered, then repeat it") from error

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            self._cluster.attempt(lambda: client.close(timeout=CLOSE_TIMEOUT_S))
