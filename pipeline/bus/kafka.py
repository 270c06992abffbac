"""The bus of many machines: Apache Kafka 4. Only this module and its neighbours of the same name import the client.

Like on the embedded bus a transaction is collected in memory and sent at the end of its block, so that it is open
on the broker for milliseconds and never holds up readers. What is remembered goes to a compacted topic under its
key; group offsets go through the producer, with the member's identity, so that the broker fences stale members.

Two errors look the same to Kafka: a transaction that timed out (the broker was away) and a producer whose name was
taken over. Each producer therefore remembers who it is under its name when it starts: one that fails reads that
back, and starts anew only if it still says so.

A transaction whose end cannot be confirmed in time may have happened; what was remembered or committed tells.

What a broker has forgotten to end is ended here (see ``kafka_hanging``): by a producer before it begins anew, since after that
nobody knows any more how it ended, and by readers every few seconds, since they would wait for it without end.
"""

# The checker knows the stubs of an older client.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportReturnType=false

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from kafka import IsolationLevel, KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, OffsetSpec
from kafka import TopicPartition as KafkaPlace
from kafka import errors as kafka_errors

from ..clock import NS_PER_S, Clock, SystemClock
from ..errors import BusError, FencedError
from . import AssignmentListener, BusConfig, TopicPartition, partition_of
from .kafka_hanging import OFFSETS_TOPIC, Mender
from .kafka_reader import CLOSE_TIMEOUT_S, FAILURES, PROBE_TIMEOUT_S, KafkaReader, hopeless
from .kafka_settings import (
    COMMIT_S,
    FETCH_WAIT_MS,
    MEMORY_TOPIC,
    TOPIC_PREFIX,
    client_settings,
    producer_settings,
    reader_settings,
    topic_settings,
)
from .kafka_transaction import KafkaTransaction
from .within import Result, within

# Under this key and its name a producer remembers which instance it is.
INSTANCE_KEY = "weft.producer."
RETRY_PAUSE_S = 0.2
MEND_PAUSE_S = 5.0
# The ends of a transaction follow its commit within milliseconds, unless its writer or the broker has died.
SETTLE_S = 1.0
SETTLE_PAUSE_S = 0.005

# How Kafka says that a member's partitions have gone to another.
FENCED_OWNER = ("CommitFailedError", "FencedInstanceIdError", "IllegalGenerationError", "UnknownMemberIdError")

_log = logging.getLogger("weft")


class KafkaWriter:
    """The producer of one name."""

    def __init__(self, bus: "KafkaBus", name: str) -> None:
        self._bus = bus
        self._name = name
        self._instance = uuid.uuid4().hex.encode()
        self._client: KafkaProducer | None = None
        self._announced = False
        self._ready()

    def transaction(self) -> AbstractContextManager[KafkaTransaction]:
        return self._run()

    @contextmanager
    def _run(self) -> Iterator[KafkaTransaction]:
        work = KafkaTransaction(self._bus.config.partitions)
        yield work
        if not work.messages and not work.offsets:
            return
        self._bus.create_topics(sorted({place.topic for place, *_ in work.messages}))
        client = self._ready()
        try:
            within(min(self._bus.config.patience_s, COMMIT_S), lambda: self._send(client, work))
        except (*FAILURES, FencedError) as error:
            self._give_up(client, error)

    def _ready(self) -> KafkaProducer:
        """Return the client, made anew where it failed; what a namesake left open is aborted."""
        if self._client is not None:
            return self._client
        key = INSTANCE_KEY + self._name
        if self._announced and self._bus.recall(key, PROBE_TIMEOUT_S, strict=False) != self._instance:
            raise FencedError(f"another producer named {self._name} has taken over")
        self._client = client = self._bus.retried(self._open)
        work = KafkaTransaction(self._bus.config.partitions)
        work.remember(key, self._instance)
        try:
            within(min(self._bus.config.patience_s, COMMIT_S), lambda: self._send(client, work))
        except FAILURES as error:
            self._give_up(client, error)
        self._announced = True
        return client

    def _open(self) -> KafkaProducer:
        settings = producer_settings(self._bus.config, self._name)
        # Once it begins anew nobody knows any more how its last transaction ended.
        if not self._bus.mender.ended(settings["transactional_id"]):
            raise kafka_errors.KafkaTimeoutError("the end of the last transaction is being written")
        self._bus.hint(everything=True)
        client = KafkaProducer(**self._bus.client_settings, **settings)
        try:
            client.init_transactions()
        except FAILURES:
            self._abandon(client)
            raise
        return client

    def _abandon(self, client: KafkaProducer) -> None:
        """End a client with all that it still tries to send: told to close, it would first wait for that."""
        client._sender.force_close()
        self._bus.attempt(lambda: client.close(timeout=CLOSE_TIMEOUT_S))

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
        # A batch may be lost without an error of the transaction: nothing is committed before all have arrived.
        for future in sent:
            future.get(timeout=self._bus.config.patience_s)
        if self._client is not client:
            # The caller has given up waiting, and was told that this did not happen.
            raise kafka_errors.KafkaTimeoutError("too late")
        client.commit_transaction()

    def _give_up(self, client: KafkaProducer, error: Exception) -> None:
        """Abort what is left; raise what the caller is to know."""
        try:
            if isinstance(error, TimeoutError):
                raise error
            within(CLOSE_TIMEOUT_S, client.abort_transaction)
        except FAILURES:
            self._client = None
            self._abandon(client)
        if isinstance(error, FencedError):
            raise error
        told = repr(error)
        if any(name in told for name in FENCED_OWNER):
            raise FencedError("the consumer's partitions have gone to another member") from error
        if self._client is None and self._announced and ("Fenced" in told or "ProducerEpoch" in told):
            # Tells a take-over from a time-out, and is ready again after the latter.
            self._ready()
        raise BusError(f"Kafka did not take a transaction ({told})", "repeat it after asking what is remembered") from error

    def close(self) -> None:
        if self._client is not None:
            self._abandon(self._client)
            self._client = None


class KafkaBus:
    """The topics at ``config.servers``. May be used by several threads.

    ``retention_bytes`` is meant for each topic here, and split over its partitions.
    """

    def __init__(self, config: BusConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._topics: set[str] = set()
        self._mend_due_ns = 0
        self._mend_refused = False
        self._memory: KafkaConsumer | None = None
        self.client_settings = client_settings(config)
        try:
            self.admin = KafkaAdminClient(**self.client_settings)
        except (kafka_errors.KafkaError, OSError, ValueError) as error:
            hint = "start it, or set bus.servers and the security settings"
            raise BusError(f"no Kafka broker at {config.servers} ({error})", hint) from error
        self.mender = Mender(self.admin, self.clock)
        self.create_topics([MEMORY_TOPIC])

    def away(self, seconds: float, error: Exception) -> BusError:
        """Return the error for a broker that has been away for so long."""
        return BusError(f"Kafka at {self.config.servers} has not answered for {seconds:.0f} s ({error!r})", "start the broker again")

    def refused(self, error: Exception) -> BusError:
        """Return the error for what no waiting mends."""
        return BusError(f"Kafka at {self.config.servers} refuses ({error!r})", "check the topics and rights at the broker")

    def retried(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns, repeated while the broker is away. Raises ``BusError`` when the patience is used up."""
        begin_ns = self.clock.monotonic_ns()
        while True:
            remaining_s = self.config.patience_s - (self.clock.monotonic_ns() - begin_ns) / NS_PER_S
            try:
                return within(max(remaining_s, 1.0), action)
            except FAILURES as error:
                if hopeless(error):
                    raise self.refused(error) from error
                if remaining_s <= RETRY_PAUSE_S:
                    raise self.away(self.config.patience_s, error) from error
                self.mend_soon()
                self.clock.wait(RETRY_PAUSE_S)

    def attempt(self, action: Callable[[], object]) -> None:
        """Do it if it can be done soon; at the end nothing depends on it any more."""
        with suppress(*FAILURES):
            within(CLOSE_TIMEOUT_S, action)

    def hint(self, *, everything: bool = False) -> None:
        """End what the broker has forgotten to end in the topics of this bus, or in all of Weft's. Errors are Kafka's."""
        topics = {topic for topic in self.admin.list_topics() if topic.startswith(TOPIC_PREFIX)} if everything else set()
        for asked in (topics | self._topics, {OFFSETS_TOPIC}):
            try:
                for sentence in self.mender.hint(asked):
                    _log.warning("bus: %s", sentence)
            except kafka_errors.KafkaError as error:
                if not hopeless(error):
                    raise
                # Whoever has no right to look goes without.
                if not self._mend_refused:
                    self._mend_refused = True
                    _log.warning("bus: transactions that the broker forgets to end are not looked for (%r)", error)

    def mend_soon(self) -> None:
        """Do so every few seconds, where it can be done soon; what fails now is tried again then."""
        if self.clock.monotonic_ns() >= self._mend_due_ns:
            self._mend_due_ns = self.clock.monotonic_ns() + int(MEND_PAUSE_S * NS_PER_S)
            with suppress(*FAILURES):
                within(PROBE_TIMEOUT_S, self.hint)

    def create_topics(self, topics: Sequence[str]) -> None:
        """Make the topics that do not exist yet. Raises ``BusError`` when one has another number of partitions."""
        if not (wanted := [topic for topic in topics if topic not in self._topics]):
            return
        existing = set(self.retried(self.admin.list_topics))
        missing = {topic: topic_settings(self.config, topic) for topic in wanted if topic not in existing}
        if missing:
            self.retried(lambda: self._create(missing))
        for topic, count in self.retried(lambda: self._counts(wanted)).items():
            if count != self.config.partitions:
                problem = f"topic {topic} has {count} partitions, not {self.config.partitions}"
                raise BusError(problem, f"set bus.partitions = {count} or delete the topic")
        self._topics.update(wanted)

    def _counts(self, topics: Sequence[str]) -> dict[str, int]:
        counts = {found["name"]: len(found["partitions"]) for found in self.admin.describe_topics(topics)}
        if not all(counts.values()):
            raise kafka_errors.LeaderNotAvailableError("a topic has just been made")
        return counts

    def _create(self, missing: Mapping[str, Any]) -> None:
        # Another process may be faster; the others of the list are made all the same.
        with suppress(kafka_errors.TopicAlreadyExistsError):
            self.admin.create_topics(missing, wait_for_metadata=True)

    def producer(self, name: str) -> KafkaWriter:
        return KafkaWriter(self, name)

    def consumer(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        member: str = "",
        on_assign: AssignmentListener | None = None,
        on_revoke: AssignmentListener | None = None,
    ) -> KafkaReader:
        return KafkaReader(self, topics, group=group, member=member, on_assign=on_assign, on_revoke=on_revoke)

    def recall(self, key: str, patience_s: float | None = None, *, strict: bool = True) -> bytes | None:
        """Return what was last remembered under ``key``.

        Transactions that are open at the call are waited for, up to the patience; without ``strict`` what is
        committed by then is good enough.
        """
        place = KafkaPlace(MEMORY_TOPIC, partition_of(key, self.config.partitions))
        end = self.retried(lambda: self.offsets([place], OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED))[place]
        first = self.retried(lambda: self.offsets([place], OffsetSpec.EARLIEST))[place]
        patience_s = self.config.patience_s if patience_s is None else patience_s
        deadline_ns = self.clock.monotonic_ns() + int(patience_s * NS_PER_S)
        value: bytes | None = None
        with self._lock:
            if self._memory is None:
                self._memory = self.retried(lambda: KafkaConsumer(**self.client_settings, **reader_settings()))
            reader = self._memory
            reader.assign([place])
            reader.seek(place, first)
            while (reader.position(place, timeout_ms=1000) or 0) < end:
                for batch in self.retried(lambda: reader.poll(timeout_ms=FETCH_WAIT_MS)).values():
                    value = next((record.value for record in reversed(batch) if record.key == key.encode()), value)
                self.mend_soon()
                if self.clock.monotonic_ns() > deadline_ns:
                    if strict:
                        raise self.away(patience_s, kafka_errors.KafkaTimeoutError("a transaction is still open"))
                    break
        return value

    def offsets(self, places: Any, spec: Any, isolation: Any = IsolationLevel.READ_COMMITTED) -> dict[KafkaPlace, int]:
        """Return one offset for each place, as Kafka's errors or at once."""
        if not places:
            return {}
        found = self.admin.list_partition_offsets(dict.fromkeys(places, spec), isolation_level=isolation)
        return {place: answer.offset for place, answer in found.items()}

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        ends = {TopicPartition(topic, number): 0 for topic in topics for number in range(self.config.partitions)}
        existing = self._topics if self._topics.issuperset(topics) else set(self.retried(self.admin.list_topics))
        places = [KafkaPlace(*place) for place in ends if place.topic in existing]
        for place, offset in self._settled_ends(places).items():
            ends[TopicPartition(*place)] = offset
        return ends

    def _settled_ends(self, places: Sequence[KafkaPlace]) -> dict[KafkaPlace, int]:
        """Return where committed messages end. A commit returns before the ends of its transaction are written: they are waited for."""
        written = self.retried(lambda: self.offsets(places, OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED))
        deadline_ns = self.clock.monotonic_ns() + int(SETTLE_S * NS_PER_S)
        while True:
            ends = self.retried(lambda: self.offsets(places, OffsetSpec.LATEST))
            if all(ends[place] >= written[place] for place in places) or self.clock.monotonic_ns() > deadline_ns:
                return ends
            self.clock.wait(SETTLE_PAUSE_S)

    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        offsets = {TopicPartition(topic, number): 0 for topic in topics for number in range(self.config.partitions)}
        found = self.retried(lambda: self.admin.list_group_offsets({group: None})).get(group, {})
        for place, committed in found.items():
            if (named := TopicPartition(*place)) in offsets and committed.offset >= 0:
                offsets[named] = committed.offset
        return offsets

    def close(self) -> None:
        if self._memory is not None:
            self.attempt(self._memory.close)
        self.attempt(self.admin.close)
