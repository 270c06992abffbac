"""The reading side of the Kafka bus: members of a group, and readers that stand alone.

Members use the client's range assignor: topics with equal numbers of partitions are assigned by the same ranges, so
one member gets the same index of every topic. A rebalance first revokes all partitions of every member.

The client calls the rebalance listener on its own thread. The listener notes the change; ``poll`` reports it to the
caller's listeners on the caller's thread.
"""

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetSpec  # pyright: ignore[reportAttributeAccessIssue]
from kafka import TopicPartition as KafkaPlace  # pyright: ignore[reportAttributeAccessIssue]
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove  # pyright: ignore[reportAttributeAccessIssue]

from ..clock import NS_PER_S
from ..errors import FencedError
from . import AssignmentListener, Loss, Message, TopicPartition
from .kafka_cluster import CLOSE_TIMEOUT_S, FAILURES, KafkaCluster, hopeless
from .kafka_settings import FETCH_WAIT_MS, POLL_MAX_MESSAGES, REQUEST_TIMEOUT_MS, member_settings, reader_settings
from .kafka_stalls import StallWatch
from .within import Result, within

# An idle consumer checks at this interval whether the broker answers, and waits so long for the answer.
PROBE_INTERVAL_S = 10.0
PROBE_TIMEOUT_S = 2.0
# The client (3.0.12) repeats a rebalance that ends between two of its polls: a poll waits so long for one, also beyond its time-out.
REBALANCE_WAIT_S = 2.0
REBALANCE_STEP_MS = 500
# An assignment follows its generation within milliseconds.
ASSIGN_TIMEOUT_S = 3.0

_log = logging.getLogger("weft")


class _Listener(ConsumerRebalanceListener):
    """Notes the changes; the client calls it on its own thread."""

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
        cluster: KafkaCluster,
        topics: Sequence[str],
        *,
        group: str | None,
        member: str,
        on_assign: AssignmentListener | None,
        on_revoke: AssignmentListener | None,
    ) -> None:
        self._cluster = cluster
        self._topics = list(topics)
        self._group = group
        # Kafka restricts the characters of a member's name.
        self._member = re.sub(r"[^A-Za-z0-9._-]", lambda found: f"_{ord(found[0]):x}_", member) or None
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._changes: deque[tuple[bool, frozenset[TopicPartition]]] = deque()
        # The partitions assigned to this member, and those reported to the caller.
        self._owned: frozenset[TopicPartition] = frozenset()
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._fetched: deque[Message] = deque()
        self._losses: list[Loss] = []
        self._contact_ns = cluster.clock.monotonic_ns()
        self._probe_due_ns = 0
        self._stalls = StallWatch(cluster)
        # While a rebalance is under way: the generation that was left, and the one that was joined, with its time.
        self._rebalancing = False
        self._left = -1
        self._joined = (-1, 0)
        self._closed = False
        cluster.create_topics(topics)
        self._client: Any = cluster.retried(self._open)
        if group is None:
            everything = [TopicPartition(topic, number) for topic in topics for number in range(cluster.config.partitions)]
            self._client.assign([KafkaPlace(*place) for place in everything])
            self.note(gained=True, places=everything)
            self._assigned = self._owned
        else:
            self._subscribe()
            # A leader that joins before it has metadata assigns nothing at first.
            cluster.retried(lambda: [self._client.partitions_for_topic(topic) for topic in topics])

    def _open(self) -> KafkaConsumer:
        settings = self._cluster.client_settings | reader_settings()
        if self._group is None:
            return KafkaConsumer(**settings)
        return KafkaConsumer(**settings, **member_settings(self._group, self._member))

    def _subscribe(self) -> None:
        self._client.subscribe(self._topics, listener=_Listener(self))

    def note(self, *, gained: bool, places: Iterable[tuple[str, int]]) -> None:
        """Record a change; new partitions stay paused until the caller could seek."""
        changed = frozenset(TopicPartition(*place) for place in places)
        if gained:
            for place in changed:
                self._client.pause(KafkaPlace(*place))
                self._client.seek(KafkaPlace(*place), 0)
        elif not self._rebalancing:
            self._left = self._client.group_metadata().generation_id
        self._rebalancing = not gained
        self._owned = self._owned | changed if gained else self._owned - changed
        self._changes.append((gained, changed))

    def poll(self, timeout_s: float, max_bytes: int = 16 * 1024 * 1024) -> Sequence[Message]:
        """Return the next committed messages; see ``Consumer.poll``.

        Raises:
            BusError: the broker has been away for longer than the patience, or refuses.
            FencedError: another consumer has joined under this member's name.
        """
        self._watch()
        begin_ns = self._cluster.clock.monotonic_ns()
        remaining_s = timeout_s
        while True:
            # Poll the client also while messages are buffered, because that keeps the membership alive; poll in short steps,
            # because it does not return by itself after a rebalance.
            step_ms = REBALANCE_STEP_MS if self._rebalancing else FETCH_WAIT_MS
            self._fetch(0 if self._fetched or self._changes else min(int(remaining_s * 1000), step_ms))
            self._rejoin_if_forgotten()
            self._report_changes()
            wait_s = max(timeout_s, REBALANCE_WAIT_S) if self._rebalancing else timeout_s
            remaining_s = wait_s - (self._cluster.clock.monotonic_ns() - begin_ns) / NS_PER_S
            if self._fetched or remaining_s <= 0:
                return self._take(max_bytes)

    def _fetch(self, timeout_ms: int) -> None:
        try:
            # Fetch one at a time while enough are buffered.
            records = self._client.poll(timeout_ms=timeout_ms, max_records=1 if self._fetched else POLL_MAX_MESSAGES)
        except kafka_errors.OffsetOutOfRangeError as error:
            self._skip_lost(error.args[0])
        except (kafka_errors.FencedInstanceIdError, kafka_errors.UnreleasedInstanceIdError) as error:
            raise FencedError(f"another consumer has joined group {self._group} as {self._member}") from error
        except kafka_errors.KafkaError as error:
            if hopeless(error):
                raise self._cluster.refused(error) from error
            self._probe()
        else:
            for batch in records.values():
                self._fetched.extend(map(_message, batch))
            if records:
                self._contact_ns = self._cluster.clock.monotonic_ns()
            else:
                self._probe()

    def _rejoin_if_forgotten(self) -> None:
        """Join again when the client (3.0.12) has joined a generation between two polls and does not complete it.

        This happens when the client rebalances because of new metadata; the group would drop this member after its session.
        """
        generation = self._client.group_metadata().generation_id if self._rebalancing else -1
        if generation in (-1, self._left):
            return
        now_ns = self._cluster.clock.monotonic_ns()
        if generation != self._joined[0]:
            self._joined = (generation, now_ns)
        elif now_ns - self._joined[1] > ASSIGN_TIMEOUT_S * NS_PER_S:
            self._left, self._joined = -1, (-1, 0)
            self._client.unsubscribe()
            self._subscribe()

    def _watch(self) -> None:
        """Log which partitions an open transaction has blocked for long."""
        if not self._stalls.due():
            return
        try:
            line = within(PROBE_TIMEOUT_S, lambda: self._stalls.check([KafkaPlace(*place) for place in self._assigned]))
        except FAILURES:
            return
        if line is not None:
            _log.warning("bus: %s", line)

    def _probe(self) -> None:
        """Check that the broker answers; the client itself waits without end."""
        now_ns = self._cluster.clock.monotonic_ns()
        if now_ns < max(self._contact_ns + int(PROBE_INTERVAL_S * NS_PER_S), self._probe_due_ns):
            return
        self._probe_due_ns = now_ns + int(PROBE_INTERVAL_S * NS_PER_S)
        try:
            within(PROBE_TIMEOUT_S, self._cluster.admin.list_topics)
        except FAILURES as error:
            away_s = (now_ns - self._contact_ns) / NS_PER_S
            if away_s > self._cluster.config.patience_s:
                raise self._cluster.away(away_s, error) from error
        else:
            self._contact_ns = now_ns

    def _skip_lost(self, positions: Mapping[KafkaPlace, int]) -> None:
        firsts = self._cluster.retried(lambda: self._cluster.offsets(positions, OffsetSpec.EARLIEST))
        for place, position in positions.items():
            first = firsts[place]
            if position < first:
                self._losses.append(Loss(TopicPartition(*place), position, first))
            self._client.seek(place, first)

    def _report_changes(self) -> None:
        while self._changes:
            gained, places = self._changes[0]
            if gained:
                self._start(places)
            self._changes.popleft()
            self._assigned = self._assigned | places if gained else self._assigned - places
            self._fetched = deque(m for m in self._fetched if TopicPartition(m.topic, m.partition) in self._assigned)
            listener = self._on_assign if gained else self._on_revoke
            if listener is not None and places:
                listener(places)
            # Partitions whose listener raised stay paused.
            for place in places if gained else ():
                self._at(place, self._client.resume)

    def _start(self, places: frozenset[TopicPartition]) -> None:
        """Seek to the group's offsets; the client waits for a commit that is under way."""
        if self._group is None:
            return
        for place in sorted(places & self._owned):
            there = KafkaPlace(*place)
            offset = self._cluster.retried(lambda there=there: self._client.committed(there, timeout_ms=REQUEST_TIMEOUT_MS))
            self._at(place, self._client.seek, offset or 0)

    def _at(self, place: TopicPartition, act: Callable[..., Result], *arguments: object) -> Result | None:
        """Call ``act`` for a partition that the client reads; return ``None`` if it has just lost it, which the next poll reports."""
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
        while self._fetched and (not taken or size_bytes + len(self._fetched[0].value) <= max_bytes):
            size_bytes += len(self._fetched[0].value)
            taken.append(self._fetched.popleft())
        return taken

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._assigned:
            raise ValueError(f"{partition} is not assigned")
        self._fetched = deque(m for m in self._fetched if (m.topic, m.partition) != partition)
        self._at(partition, self._client.seek, offset)

    def assignment(self) -> frozenset[TopicPartition]:
        return self._assigned

    def position(self, partition: TopicPartition) -> int:
        for message in self._fetched:
            if (message.topic, message.partition) == partition:
                return message.offset
        position = self._client.position
        offset = self._at(partition, lambda there: self._cluster.retried(lambda: position(there, timeout_ms=REQUEST_TIMEOUT_MS)))
        if offset is None:
            raise FencedError(f"{partition} is no longer owned by this member of group {self._group}")
        return offset

    def lost(self) -> list[Loss]:
        losses, self._losses = self._losses, []
        return losses

    def check(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Raise ``FencedError`` unless this member owns all of the partitions, as far as it knows."""
        if self._group is None:
            raise ValueError("a consumer without a group has no offsets to commit")
        if not offsets.keys() <= self._assigned & self._owned:
            raise FencedError(f"partitions are no longer owned by this member of group {self._group}")

    def identity(self) -> Any:
        """Return this member's identity in the group. Raises ``FencedError`` when it has none, which the broker would not fence."""
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
            # The client itself does not remove a static member from the group.
            leaving = MemberToRemove(member_id=identity.member_id, group_instance_id=self._member)
            self._cluster.attempt(lambda: self._cluster.admin.remove_group_members(self._group, [leaving]))
        self._cluster.attempt(lambda: self._client.close(autocommit=False, timeout_ms=int(CLOSE_TIMEOUT_S * 1000)))


def _message(record: Any) -> Message:
    headers = {name: text.decode() for name, text in record.headers}
    return Message(record.topic, record.partition, record.offset, record.key.decode(), record.value, headers)
