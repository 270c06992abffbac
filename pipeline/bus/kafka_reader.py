"""The reading side of the Kafka bus: members of a group, and readers that stand alone.

Partitions change hands on the client's own thread at any moment. What changed is noted there and told to the caller in
``poll``, so that its listeners run where everything else does.
"""

# The checker knows the stubs of an older client.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportReturnType=false

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetSpec
from kafka import TopicPartition as KafkaPlace
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from ..clock import NS_PER_S, Clock
from ..errors import BusError, FencedError
from . import AssignmentListener, BusConfig, Loss, Message, TopicPartition
from .kafka_settings import FETCH_WAIT_MS, POLL_MAX_MESSAGES, REQUEST_TIMEOUT_MS, member_settings, reader_settings
from .membership import share_claimed
from .within import Result, within

# An idle consumer asks so often whether the broker is there, and waits so long for the answer.
PROBE_INTERVAL_S = 10.0
PROBE_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 5.0
JOIN_PAUSE_S = 0.005

# A bounded wait ends with the error of the standard library.
FAILURES = (kafka_errors.KafkaError, TimeoutError)


def hopeless(error: Exception) -> bool:
    """Return whether waiting mends nothing: the broker itself said no, or the client is set up wrongly."""
    final = (kafka_errors.BrokerResponseError, kafka_errors.KafkaConfigurationError)
    return isinstance(error, final) and not isinstance(error, kafka_errors.RetriableError)


class Cluster(Protocol):
    """What a reader needs of the bus that it belongs to."""

    config: BusConfig
    clock: Clock
    client_settings: dict[str, Any]
    admin: Any

    def retried(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns, repeated while the broker is away. Raises ``BusError``."""
        ...

    def attempt(self, action: Callable[[], object]) -> None:
        """Do it if it can be done soon."""
        ...

    def mend_soon(self) -> None:
        """End every few seconds what the broker has forgotten to end."""
        ...

    def away(self, seconds: float, error: Exception) -> BusError: ...

    def refused(self, error: Exception) -> BusError: ...

    def offsets(self, places: Any, spec: Any) -> dict[KafkaPlace, int]:
        """Return an offset of each place. Raises an error of the client."""
        ...


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
        bus: Cluster,
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
        self._bus.mend_soon()
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
            if hopeless(error):
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
            # The listener may have met an error: only what it dealt with is read.
            for place in places if gained else ():
                self._at(place, self._client.resume)

    def _start(self, places: frozenset[TopicPartition]) -> None:
        """Put what was gained at the group's offsets; a commit under way is waited for."""
        if self._group is None:
            return
        for place in sorted(places & self._owned):
            there = KafkaPlace(*place)
            offset = self._bus.retried(lambda there=there: self._client.committed(there, timeout_ms=REQUEST_TIMEOUT_MS))
            self._at(place, self._client.seek, offset or 0)

    def _at(self, place: TopicPartition, act: Callable[..., Result], *arguments: object) -> Result | None:
        """Do something at a partition that the client reads; ``None`` where it has lost it, as the next poll will tell.

        Partitions change hands on the client's own thread at any moment, before it says so.
        """
        there = KafkaPlace(*place)
        try:
            return act(there, *arguments)
        except (ValueError, KeyError):
            if there in self._client.assignment():
                raise
            return None

    def _take(self, max_bytes: int) -> list[Message]:
        taken: list[Message] = []
        size_bytes = 0
        while self._held and (not taken or size_bytes + len(self._held[0].value) <= max_bytes):
            size_bytes += len(self._held[0].value)
            taken.append(self._held.popleft())
        return taken

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._assigned:
            raise ValueError(f"{partition} is not assigned")
        self._held = deque(m for m in self._held if (m.topic, m.partition) != partition)
        self._at(partition, self._client.seek, offset)

    def assignment(self) -> frozenset[TopicPartition]:
        return self._assigned

    def position(self, partition: TopicPartition) -> int:
        for message in self._held:
            if (message.topic, message.partition) == partition:
                return message.offset
        offset = self._at(partition, lambda there: self._bus.retried(lambda: self._client.position(there, timeout_ms=REQUEST_TIMEOUT_MS)))
        if offset is None:
            raise FencedError(f"{partition} has left this member of group {self._group}")
        return offset

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
