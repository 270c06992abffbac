"""The bus of many machines: Apache Kafka 4, and the only module that imports its client.

Like on the embedded bus a transaction is collected in memory and sent at the end of its block, so that it is open
on the broker for milliseconds and never holds up readers. What is remembered goes to a compacted topic under its
key; group offsets go through the producer, with the member's identity, so that the broker fences stale members.

Two errors look the same to Kafka: a transaction that timed out (the broker was away) and a producer whose name was
taken over. Each producer therefore remembers who it is under its name when it starts: one that fails reads that
back, and starts anew only if it still says so.

A transaction whose end cannot be confirmed in time may have happened; what was remembered or committed tells.
"""

# The checker knows the stubs of an older client.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportReturnType=false

import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from kafka import (
    ConsumerRebalanceListener,
    IsolationLevel,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    OffsetSpec,
)
from kafka import TopicPartition as KafkaPlace
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from ..clock import NS_PER_S, Clock, SystemClock
from ..errors import BusError, FencedError
from . import AssignmentListener, BusConfig, Loss, Message, TopicPartition, partition_of
from .kafka_settings import (
    COMMIT_S,
    FETCH_WAIT_MS,
    MEMORY_TOPIC,
    POLL_MAX_MESSAGES,
    REQUEST_TIMEOUT_MS,
    client_settings,
    member_settings,
    producer_settings,
    reader_settings,
    topic_settings,
)
from .kafka_transaction import KafkaTransaction
from .membership import share_claimed
from .within import Result, within

# Under this key and its name a producer remembers which instance it is.
INSTANCE_KEY = "weft.producer."
# An idle consumer asks so often whether the broker is there, and waits so long for the answer.
PROBE_INTERVAL_S = 10.0
PROBE_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 5.0
RETRY_PAUSE_S = 0.2
JOIN_PAUSE_S = 0.005

# How Kafka says that a member's partitions have gone to another.
FENCED_OWNER = ("CommitFailedError", "FencedInstanceIdError", "IllegalGenerationError", "UnknownMemberIdError")

# A bounded wait ends with the error of the standard library.
FAILURES = (kafka_errors.KafkaError, TimeoutError)


def _hopeless(error: Exception) -> bool:
    """Return whether waiting mends nothing: the broker itself said no, or the client is set up wrongly."""
    final = (kafka_errors.BrokerResponseError, kafka_errors.KafkaConfigurationError)
    return isinstance(error, final) and not isinstance(error, kafka_errors.RetriableError)


class IndexAssignor(AbstractPartitionAssignor):
    """Shares out partition indices, the same index of every topic to one member, in the cooperative protocol.

    An index that moves is free for one round: its owner gives it up first.
    """

    name = "weft-index"
    version = 2

    def __init__(self, partitions: int, owned: Callable[[], tuple[int, frozenset[TopicPartition]]]) -> None:
        self._partitions = partitions
        self._owned = owned

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> ConsumerProtocolSubscription:
        generation, places = self._owned()
        owned = [
            ConsumerProtocolSubscription.TopicPartition(topic=topic, partitions=sorted(p.partition for p in places if p.topic == topic))
            for topic in sorted({place.topic for place in places})
        ]
        return ConsumerProtocolSubscription(
            version=self.version, topics=sorted(topics), user_data=b"", owned_partitions=owned, generation_id=generation
        )

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, ConsumerProtocolAssignment]:
        claims = [(m.metadata.generation_id, m.member_id, _claimed(m.metadata)) for m in members]
        # The cluster is not asked how many there are: a leader that has not heard yet would take away everything.
        shares = share_claimed(claims, self._partitions)
        assignment = {}
        for member in members:
            places = [(topic, shares[member.member_id]) for topic in sorted(member.metadata.topics)]
            assignment[member.member_id] = ConsumerProtocolAssignment(version=1, assigned_partitions=places, user_data=b"")
        return assignment

    def on_assignment(self, assignment: ConsumerProtocolAssignment, generation: int) -> None:
        pass


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
        client = KafkaProducer(**self._bus.client_settings, **producer_settings(self._bus.config, self._name))
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


def _claimed(subscription: Any) -> set[int]:
    return {number for claim in subscription.owned_partitions or () for number in claim.partitions}


class _Listener(ConsumerRebalanceListener):
    """Notes what changes hands; runs on the client's own thread, so the rest waits for ``poll``."""

    def __init__(self, reader: "KafkaReader") -> None:
        self._reader = reader

    def on_partitions_revoked(self, revoked: set[KafkaPlace]) -> None:
        self._reader.note(gained=False, places=revoked)

    def on_partitions_assigned(self, assigned: set[KafkaPlace]) -> None:
        self._reader.note(gained=True, places=assigned)


class KafkaReader:
    """Reads partitions, as a member of a group or alone."""

    def __init__(
        self,
        bus: "KafkaBus",
        topics: Sequence[str],
        *,
        group: str | None,
        member: str,
        on_assign: AssignmentListener | None,
        on_revoke: AssignmentListener | None,
    ) -> None:
        self._bus = bus
        self._group = group
        # Kafka allows few characters in a member's name.
        self._member = re.sub(r"[^A-Za-z0-9._-]", lambda found: f"_{ord(found[0]):x}_", member) or None
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._changes: deque[tuple[bool, frozenset[TopicPartition]]] = deque()
        # What the group has given this member, and what of it the caller has been told.
        self._owned: frozenset[TopicPartition] = frozenset()
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._held: deque[Message] = deque()
        self._losses: list[Loss] = []
        self._contact_ns = bus.clock.monotonic_ns()
        self._probe_due_ns = 0
        self._polling = False
        self._closed = False
        bus.create_topics(topics)
        self._client = bus.retried(self._open)
        if group is None:
            everything = [TopicPartition(topic, number) for topic in topics for number in range(bus.config.partitions)]
            self._client.assign([KafkaPlace(*place) for place in everything])
            self.note(gained=True, places=everything)
            self._assigned = self._owned
        else:
            self._client.subscribe(list(topics), listener=_Listener(self))
            self._hold_joins()

    def _open(self) -> KafkaConsumer:
        settings = self._bus.client_settings | reader_settings()
        if self._group is None:
            return KafkaConsumer(**settings)
        # The client is asked later, from inside itself.
        assignor = IndexAssignor(self._bus.config.partitions, lambda: (self._client.group_metadata().generation_id, self._owned))
        return KafkaConsumer(**settings, **member_settings(self._group, self._member), partition_assignment_strategy=[assignor])

    def _hold_joins(self) -> None:
        """Let a join end only while ``poll`` waits for it, and be waited for until then.

        The client (3.0.12) starts anew when a join has ended between two polls, and no longer waits for one that
        new metadata caused: groups whose members do more than poll would rebalance for ever, or members hang.
        """
        coordinator = self._client._coordinator
        join, sleep = coordinator._do_join_and_sync_async, self._client._net.sleep

        async def held_join() -> bytes:
            coordinator.request_rejoin()
            assignment = await join()
            while not self._polling:
                await sleep(JOIN_PAUSE_S)
            return assignment

        coordinator._do_join_and_sync_async = held_join

    def note(self, *, gained: bool, places: Sequence[TopicPartition] | set[KafkaPlace]) -> None:
        """Take down a change of hands; nothing is fetched from what was gained before the caller had the chance to seek."""
        changed = frozenset(TopicPartition(*place) for place in places)
        if gained:
            for place in changed:
                self._client.pause(KafkaPlace(*place))
                self._client.seek(KafkaPlace(*place), 0)
        self._owned = self._owned | changed if gained else self._owned - changed
        self._changes.append((gained, changed))

    def poll(self, timeout_s: float, max_bytes: int = 16 * 1024 * 1024) -> Sequence[Message]:
        """Return the next committed messages; see ``Consumer.poll``.

        Raises:
            BusError: the broker has been away for longer than the patience, or refuses.
            FencedError: another consumer has joined under this member's name.
        """
        deadline_ns = self._bus.clock.monotonic_ns() + int(timeout_s * NS_PER_S)
        while True:
            remaining_ms = max(0, (deadline_ns - self._bus.clock.monotonic_ns()) // 1_000_000)
            # Also with messages in hand the client is asked: that is what keeps the membership alive. It is asked in
            # short steps, because it does not come back by itself when partitions change hands.
            self._fetch(0 if self._held or self._changes else min(remaining_ms, FETCH_WAIT_MS))
            self._tell_changes()
            if self._held or remaining_ms == 0:
                return self._take(max_bytes)

    def _fetch(self, timeout_ms: int) -> None:
        self._polling = True
        try:
            # One at a time while there are enough in hand.
            records = self._client.poll(timeout_ms=timeout_ms, max_records=1 if self._held else POLL_MAX_MESSAGES)
        except kafka_errors.OffsetOutOfRangeError as error:
            self._skip_lost(error.args[0])
        except (kafka_errors.FencedInstanceIdError, kafka_errors.UnreleasedInstanceIdError) as error:
            raise FencedError(f"another consumer has joined group {self._group} as {self._member}") from error
        except kafka_errors.KafkaError as error:
            if _hopeless(error):
                raise self._bus.refused(error) from error
            self._probe()
        else:
            for batch in records.values():
                self._held.extend(map(_message, batch))
            if records:
                self._contact_ns = self._bus.clock.monotonic_ns()
            else:
                self._probe()
        finally:
            self._polling = False

    def _probe(self) -> None:
        """Notice that the broker is away; the client itself waits for ever."""
        now_ns = self._bus.clock.monotonic_ns()
        if now_ns < max(self._contact_ns + int(PROBE_INTERVAL_S * NS_PER_S), self._probe_due_ns):
            return
        self._probe_due_ns = now_ns + int(PROBE_INTERVAL_S * NS_PER_S)
        try:
            within(PROBE_TIMEOUT_S, self._bus.admin.list_topics)
        except FAILURES as error:
            away_s = (now_ns - self._contact_ns) / NS_PER_S
            if away_s > self._bus.config.patience_s:
                raise self._bus.away(away_s, error) from error
        else:
            self._contact_ns = now_ns

    def _skip_lost(self, positions: Mapping[KafkaPlace, int]) -> None:
        firsts = self._bus.retried(lambda: self._bus.offsets(positions, OffsetSpec.EARLIEST))
        for place, position in positions.items():
            first = firsts[place]
            if position < first:
                self._losses.append(Loss(TopicPartition(*place), position, first))
            self._client.seek(place, first)

    def _tell_changes(self) -> None:
        while self._changes:
            gained, places = self._changes[0]
            if gained:
                self._start(places)
            self._changes.popleft()
            self._assigned = self._assigned | places if gained else self._assigned - places
            self._held = deque(m for m in self._held if TopicPartition(m.topic, m.partition) in self._assigned)
            listener = self._on_assign if gained else self._on_revoke
            if listener is not None and places:
                listener(places)
            # It may be lost again already, or the listener have met an error: only what is there can be read.
            self._client.resume(*[KafkaPlace(*place) for place in places & self._owned if gained])

    def _start(self, places: frozenset[TopicPartition]) -> None:
        """Put what was gained at the group's offsets; a commit under way is waited for."""
        if self._group is None:
            return
        for place in sorted(places & self._owned):
            there = KafkaPlace(*place)
            offset = self._bus.retried(lambda there=there: self._client.committed(there, timeout_ms=REQUEST_TIMEOUT_MS))
            self._client.seek(there, offset or 0)

    def _take(self, max_bytes: int) -> list[Message]:
        taken: list[Message] = []
        size_bytes = 0
        while self._held and (not taken or size_bytes + len(self._held[0].value) <= max_bytes):
            size_bytes += len(self._held[0].value)
            taken.append(self._held.popleft())
        return taken

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._held = deque(m for m in self._held if (m.topic, m.partition) != partition)
        self._client.seek(KafkaPlace(*partition), offset)

    def assignment(self) -> frozenset[TopicPartition]:
        return self._assigned

    def position(self, partition: TopicPartition) -> int:
        for message in self._held:
            if (message.topic, message.partition) == partition:
                return message.offset
        return self._bus.retried(lambda: self._client.position(KafkaPlace(*partition), timeout_ms=REQUEST_TIMEOUT_MS))

    def lost(self) -> list[Loss]:
        losses, self._losses = self._losses, []
        return losses

    def check(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Raise ``FencedError`` unless all of the partitions are this member's, as far as it knows."""
        if self._group is None:
            raise ValueError("a consumer without a group has no offsets to commit")
        if not offsets.keys() <= self._assigned & self._owned:
            raise FencedError(f"partitions have left this member of group {self._group}")

    def identity(self) -> Any:
        """Return who this is for the group. Raises ``FencedError`` when it is nobody: the broker would not fence that."""
        identity = self._client.group_metadata()
        if identity.generation_id < 0 or not identity.member_id:
            raise FencedError(f"this member is no longer in group {self._group}")
        return identity

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        identity = self._client.group_metadata()
        if self._member is not None and identity.member_id:
            # A static member is not taken off by the client itself.
            leaving = MemberToRemove(member_id=identity.member_id, group_instance_id=self._member)
            self._bus.attempt(lambda: self._bus.admin.remove_group_members(self._group, [leaving]))
        self._bus.attempt(lambda: self._client.close(autocommit=False, timeout_ms=int(CLOSE_TIMEOUT_S * 1000)))


def _message(record: Any) -> Message:
    headers = {name: text.decode() for name, text in record.headers}
    return Message(record.topic, record.partition, record.offset, record.key.decode(), record.value, headers)


class KafkaBus:
    """The topics at ``config.servers``. May be used by several threads.

    ``retention_bytes`` is meant for each topic here, and split over its partitions.
    """

    def __init__(self, config: BusConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._topics: set[str] = set()
        self._memory: KafkaConsumer | None = None
        self.client_settings = client_settings(config)
        try:
            self.admin = KafkaAdminClient(**self.client_settings)
        except (kafka_errors.KafkaError, OSError, ValueError) as error:
            mend = "start it, or set bus.servers and the security settings"
            raise BusError(f"no Kafka broker at {config.servers} ({error})", mend) from error
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
                if _hopeless(error):
                    raise self.refused(error) from error
                if remaining_s <= RETRY_PAUSE_S:
                    raise self.away(self.config.patience_s, error) from error
                self.clock.wait(RETRY_PAUSE_S)

    def attempt(self, action: Callable[[], object]) -> None:
        """Do it if it can be done soon; at the end nothing depends on it any more."""
        with suppress(*FAILURES):
            within(CLOSE_TIMEOUT_S, action)

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
        for place, offset in self.retried(lambda: self.offsets(places, OffsetSpec.LATEST)).items():
            ends[TopicPartition(*place)] = offset
        return ends

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
