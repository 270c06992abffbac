"""The bus of one machine: a durable log in one SQLite file, shared by every process that opens it.

A transaction is collected in memory and becomes one SQLite transaction at its end, so that the write lock is
taken for milliseconds and a killed process leaves no partial transaction.
"""

import heapq
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from ..clock import NS_PER_S, Clock, SystemClock
from ..errors import BusError, FencedError
from . import AssignmentListener, BusConfig, Consumer, Loss, Message, TopicPartition, partition_of
from .logfile import LogFile, create_topics
from .membership import HEARTBEAT_S, Membership, committed

FILE_NAME = "log.sqlite"
# Pauses of an idle poll between two checks of the log.
PAUSE_MIN_S = 0.002
PAUSE_MAX_S = 0.02
# A producer applies retention once per interval or number of bytes; a step bounds what it drops under one write lock.
RETENTION_INTERVAL_S = 2.0
RETENTION_INTERVAL_BYTES = 32 * 1024**2
RETENTION_STEP_BYTES = 64 * 1024**2
RETENTION_STEP_MESSAGES = 10_000
POLL_MAX_MESSAGES = 4096
# Overhead of a message in the file.
ROW_BYTES = 64


class EmbeddedTransaction:
    """Messages and values to write when the block ends."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self.messages: dict[TopicPartition, list[tuple[str, str, bytes]]] = {}
        self.memory: dict[str, bytes] = {}
        self.offsets: list[tuple[EmbeddedConsumer, dict[TopicPartition, int]]] = []

    def publish(self, topic: str, key: str, value: bytes, headers: Mapping[str, str], *, partition: int | None = None) -> None:
        number = partition_of(key, self._partitions) if partition is None else partition
        if not 0 <= number < self._partitions:
            raise ValueError(f"partition {number} of {self._partitions}")
        packed = json.dumps(dict(headers), ensure_ascii=False, separators=(",", ":"))
        self.messages.setdefault(TopicPartition(topic, number), []).append((key, packed, value))

    def remember(self, key: str, value: bytes) -> None:
        self.memory[key] = value

    def commit(self, consumer: Consumer, offsets: Mapping[TopicPartition, int]) -> None:
        if not isinstance(consumer, EmbeddedConsumer):
            raise TypeError("a consumer of another bus")
        self.offsets.append((consumer, dict(offsets)))


class EmbeddedProducer:
    """Writes transactions and applies retention."""

    def __init__(self, path: Path, config: BusConfig, name: str, clock: Clock) -> None:
        self._log = LogFile(path)
        self._config = config
        self._name = name
        self._clock = clock
        self._retention_due_ns = 0
        self._unchecked_bytes = 0
        with self._log.writing() as connection:
            connection.execute(
                "INSERT INTO producers VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1",
                (name,),
            )
            self._epoch = self._stored_epoch(connection)

    @contextmanager
    def transaction(self) -> Iterator[EmbeddedTransaction]:
        work = EmbeddedTransaction(self._config.partitions)
        yield work
        if work.messages or work.memory or work.offsets:
            # Retention comes first: its failure must not look like a failure of a transaction that was written.
            self._drop_old()
            self._write(work)

    def _stored_epoch(self, connection: sqlite3.Connection) -> int:
        return connection.execute("SELECT epoch FROM producers WHERE name = ?", (self._name,)).fetchone()[0]

    def _write(self, work: EmbeddedTransaction) -> None:
        with self._log.writing() as connection:
            if self._stored_epoch(connection) != self._epoch:
                raise FencedError(f"another producer named {self._name} has taken over")
            for consumer, offsets in work.offsets:
                consumer.record(connection, offsets)
            now_ns = self._clock.now_ns()
            for place, messages in work.messages.items():
                self._append(connection, place, messages, now_ns)
            connection.executemany("INSERT OR REPLACE INTO memory VALUES (?, ?)", work.memory.items())

    def _append(self, connection: sqlite3.Connection, place: TopicPartition, messages: list[tuple[str, str, bytes]], now_ns: int) -> None:
        lookup = "SELECT id, next_offset FROM partitions WHERE topic = ? AND number = ?"
        row = connection.execute(lookup, place).fetchone()
        if row is None:
            create_topics(connection, [place.topic], self._config.partitions)
            row = connection.execute(lookup, place).fetchone()
        partition, offset = row
        sizes = [ROW_BYTES + len(key) + len(headers) + len(value) for key, headers, value in messages]
        connection.executemany(
            "INSERT INTO messages (partition, offset, size_bytes, published_ns, key, headers, value) VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((partition, offset + i, sizes[i], now_ns, *message) for i, message in enumerate(messages)),
        )
        connection.execute(
            "UPDATE partitions SET next_offset = ?, size_bytes = size_bytes + ? WHERE id = ?",
            (offset + len(messages), sum(sizes), partition),
        )
        self._unchecked_bytes += sum(sizes)

    def _drop_old(self) -> None:
        """Drop one step of the messages beyond the limits, if a check is due."""
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._retention_due_ns and self._unchecked_bytes < RETENTION_INTERVAL_BYTES:
            return
        with self._log.writing() as connection:
            finished = self._drop_step(connection)
        self._unchecked_bytes = 0
        # While there is more to drop, every transaction drops a step, so that the log does not outgrow its limit.
        self._retention_due_ns = now_ns + int(RETENTION_INTERVAL_S * NS_PER_S) if finished else now_ns

    def _drop_step(self, connection: sqlite3.Connection) -> bool:
        excess = connection.execute("SELECT total(size_bytes) FROM partitions").fetchone()[0] - self._config.retention_bytes
        horizon_ns = self._clock.now_ns() - self._config.retention_s * NS_PER_S
        oldest = "SELECT sequence, partition, offset, size_bytes, published_ns FROM messages ORDER BY sequence LIMIT ?"
        last, dropped, finished = 0, 0, True
        firsts: dict[int, tuple[int, int]] = {}
        with closing(connection.execute(oldest, (RETENTION_STEP_MESSAGES,))) as rows:
            for sequence, partition, offset, size, published_ns in rows:
                if dropped >= excess and published_ns >= horizon_ns:
                    break
                last, dropped = sequence, dropped + size
                firsts[partition] = (offset + 1, firsts.get(partition, (0, 0))[1] + size)
                if dropped >= RETENTION_STEP_BYTES:
                    finished = False
                    break
            else:
                finished = not firsts
        connection.execute("DELETE FROM messages WHERE sequence <= ?", (last,))
        connection.executemany(
            "UPDATE partitions SET first_offset = ?, size_bytes = size_bytes - ? WHERE id = ?",
            ((first, size, partition) for partition, (first, size) in firsts.items()),
        )
        return finished

    def close(self) -> None:
        self._log.close()


class EmbeddedConsumer:
    """Reads partitions, as a member of a group or alone."""

    def __init__(
        self,
        path: Path,
        config: BusConfig,
        topics: Sequence[str],
        *,
        membership: Membership | None,
        on_assign: AssignmentListener | None,
        on_revoke: AssignmentListener | None,
        clock: Clock,
    ) -> None:
        self._log = LogFile(path)
        self._partitions = config.partitions
        self._topics = tuple(topics)
        self._membership = membership
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._clock = clock
        self._reported = False
        self._closed = False
        self._heartbeat_due_ns = 0
        self._positions: dict[TopicPartition, int] = {}
        self._losses: list[Loss] = []
        self._seen_version: int | None = None
        with self._log.writing() as connection:
            create_topics(connection, self._topics, self._partitions)
            known = connection.execute("SELECT id, topic, number FROM partitions").fetchall()
        self._places = {row[0]: TopicPartition(*row[1:]) for row in known if row[1] in self._topics}
        if membership is None:
            self._positions = dict.fromkeys(self._places.values(), 0)

    def poll(self, timeout_s: float, max_bytes: int = 16 * 1024 * 1024) -> Sequence[Message]:
        """Return the next committed messages; see ``Consumer.poll``.

        Raises:
            BusError: the log cannot be read.
            FencedError: another consumer has joined under this member's name.
        """
        deadline_ns = self._clock.monotonic_ns() + int(timeout_s * NS_PER_S)
        pause_s = PAUSE_MIN_S
        while True:
            self._heartbeat()
            version = self._log.version()
            if version != self._seen_version:
                self._follow_group()
                messages = self._read(max_bytes)
                if messages:
                    self._seen_version = None
                    return messages
                self._seen_version = version
            remaining_s = (deadline_ns - self._clock.monotonic_ns()) / NS_PER_S
            if remaining_s <= 0:
                return ()
            self._clock.wait(min(pause_s, remaining_s))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _read(self, max_bytes: int) -> list[Message]:
        messages: list[Message] = []
        with self._log.reading() as connection:
            cursors = self._cursors(connection)
            size_bytes = 0
            # Tuples start with the sequence: the partitions come merged in the order of publication.
            for sequence, size, partition, offset in heapq.merge(*cursors):
                if messages and (size_bytes + size > max_bytes or len(messages) >= POLL_MAX_MESSAGES):
                    break
                size_bytes += size
                row = connection.execute("SELECT key, headers, value FROM messages WHERE sequence = ?", (sequence,)).fetchone()
                messages.append(Message(*self._places[partition], offset, row[0], row[2], json.loads(row[1])))
            for cursor in cursors:
                cursor.close()
        for message in messages:
            self._positions[TopicPartition(message.topic, message.partition)] = message.offset + 1
        return messages

    def _cursors(self, connection: sqlite3.Connection) -> list[sqlite3.Cursor]:
        """Return one cursor for each partition with unread messages."""
        cursors = []
        for partition, first, following in connection.execute("SELECT id, first_offset, next_offset FROM partitions").fetchall():
            place = self._places.get(partition)
            position = None if place is None else self._positions.get(place)
            if place is None or position is None or position >= following:
                continue
            if position < first:
                self._losses.append(Loss(place, position, first))
                self._positions[place] = position = first
            select = "SELECT sequence, size_bytes, partition, offset FROM messages WHERE partition = ? AND offset >= ? ORDER BY offset"
            cursors.append(connection.execute(select, (partition, position)))
        return cursors

    def _heartbeat(self) -> None:
        if self._membership is None:
            if not self._reported:
                self._reported = True
                self._notify(self._on_assign, frozenset(self._positions))
            return
        now_ns = self._clock.monotonic_ns()
        if self._membership.is_in() and now_ns < self._heartbeat_due_ns:
            return
        with self._log.writing() as connection:
            self._membership.stay(connection, now_ns)
        self._heartbeat_due_ns = now_ns + int(HEARTBEAT_S * NS_PER_S)
        self._seen_version = None

    def _follow_group(self) -> None:
        """Apply the group's current assignment."""
        if self._membership is None:
            return
        with self._log.reading() as connection:
            lost, gained = self._membership.refresh(connection)
            starts = committed(connection, self._membership.group, self._topics, self._partitions)
        lost_places, gained_places = self._places_of(lost), self._places_of(gained)
        for place in lost_places:
            del self._positions[place]
        self._notify(self._on_revoke, lost_places)
        self._positions.update({place: starts[place] for place in gained_places})
        self._notify(self._on_assign, gained_places)

    def _places_of(self, numbers: Sequence[int]) -> frozenset[TopicPartition]:
        return frozenset(TopicPartition(topic, number) for number in numbers for topic in self._topics)

    @staticmethod
    def _notify(listener: AssignmentListener | None, places: frozenset[TopicPartition]) -> None:
        if listener is not None and places:
            listener(places)

    def record(self, connection: sqlite3.Connection, offsets: Mapping[TopicPartition, int]) -> None:
        """Write the group's offsets inside a producer's transaction. Raises ``FencedError`` unless all are still owned."""
        if self._membership is None:
            raise ValueError("a consumer without a group has no offsets to commit")
        self._membership.record(connection, offsets, self._clock.monotonic_ns())

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._positions:
            raise ValueError(f"{partition} is not assigned")
        self._positions[partition] = offset
        self._seen_version = None

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    def lost(self) -> list[Loss]:
        losses, self._losses = self._losses, []
        return losses

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with closing(self._log):
            if self._membership is not None:
                with self._log.writing() as connection:
                    self._membership.leave(connection)


class EmbeddedBus:
    """The log in ``folder``, created if it does not exist. May be used by several threads."""

    def __init__(self, config: BusConfig, folder: Path, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._path = folder / FILE_NAME
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BusError(f"{folder} cannot be created ({error.strerror})", "name another data folder or change its rights") from error
        self._log = LogFile(self._path)
        self._create()

    def _create(self) -> None:
        self._log.create()
        with self._log.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO settings VALUES ('partitions', ?)", (self._config.partitions,))
            partitions = connection.execute("SELECT value FROM settings WHERE name = 'partitions'").fetchone()[0]
        if partitions != self._config.partitions:
            self._log.close()
            raise BusError(
                f"{self._path} has {partitions} partitions, not {self._config.partitions}",
                f"set bus.partitions = {partitions} or move the folder {self._path.parent} away",
            )

    def producer(self, name: str) -> EmbeddedProducer:
        return EmbeddedProducer(self._path, self._config, name, self._clock)

    def consumer(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        member: str = "",
        on_assign: AssignmentListener | None = None,
        on_revoke: AssignmentListener | None = None,
    ) -> EmbeddedConsumer:
        membership = None if group is None else Membership(group, member, self._config.partitions)
        return EmbeddedConsumer(
            self._path, self._config, topics, membership=membership, on_assign=on_assign, on_revoke=on_revoke, clock=self._clock
        )

    def recall(self, key: str) -> bytes | None:
        with self._lock, self._log.reading() as connection:
            row = connection.execute("SELECT value FROM memory WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        ends = {TopicPartition(topic, number): 0 for topic in topics for number in range(self._config.partitions)}
        with self._lock, self._log.reading() as connection:
            for topic, number, following in connection.execute("SELECT topic, number, next_offset FROM partitions"):
                if (place := TopicPartition(topic, number)) in ends:
                    ends[place] = following
        return ends

    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        with self._lock, self._log.reading() as connection:
            return committed(connection, group, topics, self._config.partitions)

    def size_bytes(self) -> int:
        """Return the size of the messages in the log."""
        with self._lock, self._log.reading() as connection:
            return int(connection.execute("SELECT total(size_bytes) FROM partitions").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._log.close()
