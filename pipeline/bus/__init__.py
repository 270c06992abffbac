"""The log between collectors, pipeline and analytics: topics of ordered partitions, transactions, groups.

``Bus`` has two implementations, one line each in ``BUSES``, and one contract suite
(``tests/contracts/test_bus.py``) that both pass:

* ``embedded``: a durable log in one SQLite file, for every process of one machine; nothing to install.
* ``kafka``: Apache Kafka 4, for many machines.

Guarantees: the messages of one key keep their order. What one transaction publishes, remembers and commits
becomes visible together or not at all, also when the process is killed at any instant. A reader sees committed
transactions only. Members of a group share the partitions of the topics; after a rebalance, an open transaction
of a partition's former owner fails with ``FencedError``.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

DEFAULT_PARTITIONS = 8

# Limits of the embedded log: messages beyond them are dropped, oldest first; ``Consumer.lost`` reports what a reader missed.
RETENTION_S = 3600
RETENTION_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class BusConfig:
    """The address, the partitions and the limits of the bus.

    ``kind`` is ``embedded`` or ``kafka``; the embedded log lives in the data folder, Kafka at ``servers``.
    """

    kind: str = "embedded"
    servers: str = "127.0.0.1:9092"
    partitions: int = DEFAULT_PARTITIONS
    replication: int = 1
    retention_s: int = RETENTION_S
    retention_bytes: int = RETENTION_BYTES
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password_file: str = ""
    tls_ca_file: str = ""
    # How long a broker may be unreachable before the bus gives up; ``collect.held_bytes_max`` bounds what collectors keep meanwhile.
    patience_s: float = 300.0


class TopicPartition(NamedTuple):
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message as read: its position, and what was published."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Loss(NamedTuple):
    """Messages that the log had dropped before this consumer read them: offsets ``from_offset`` to ``to_offset`` - 1."""

    partition: TopicPartition
    from_offset: int
    to_offset: int


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of ``key``: the same at all times, on all machines and in both implementations."""
    return zlib.crc32(key.encode()) % partitions


class Transaction(Protocol):
    """Takes effect as a whole when its ``with`` block ends without an error, or not at all."""

    def publish(self, topic: str, key: str, value: bytes, headers: Mapping[str, str], *, partition: int | None = None) -> None:
        """Append one message to the key's partition of ``topic`` (or to the one named)."""
        ...

    def remember(self, key: str, value: bytes) -> None:
        """Store ``value`` under ``key`` and replace the former value; ``Bus.recall`` returns it."""
        ...

    def commit(self, consumer: "Consumer", offsets: Mapping[TopicPartition, int]) -> None:
        """Record for the consumer's group that it has processed everything before these offsets.

        Raises ``FencedError`` (here or at the end of the block) when another member owns one of them now.
        """
        ...


class Producer(Protocol):
    """Publishes under one stable name; a second producer of the same name fences the first."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a transaction. Raises ``BusError`` when the bus cannot be reached within ``patience_s``."""
        ...

    def close(self) -> None: ...


class Consumer(Protocol):
    """Reads topics as a member of a group (a share of the partitions) or alone (all partitions, from offset 0)."""

    def poll(self, timeout_s: float, max_bytes: int = 16 * 1024 * 1024) -> Sequence[Message]:
        """Return the next committed messages in offset order per partition, at most about ``max_bytes``.

        Returns as soon as there are any, and an empty sequence after ``timeout_s``, or some seconds later during a
        rebalance. Calls ``on_assign`` and ``on_revoke``. Raises ``BusError`` when the bus is away; the next call tries again.
        """
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue at ``offset``. Allowed in ``on_assign`` and between polls."""
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """Return the partitions that are currently read."""
        ...

    def position(self, partition: TopicPartition) -> int:
        """Return the next offset to read. It equals ``Bus.ends`` when polls have returned everything."""
        ...

    def lost(self) -> list[Loss]:
        """Return the ranges that retention dropped before they were read, each once."""
        ...

    def close(self) -> None:
        """Leave the group. Idempotent."""
        ...


AssignmentListener = Callable[[frozenset[TopicPartition]], None]


class Bus(Protocol):
    """Opens producers and consumers; reports the ends of the log and the offsets of groups."""

    def producer(self, name: str) -> Producer:
        """Return the producer of that stable name; abort transactions that a killed predecessor left open."""
        ...

    def consumer(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        member: str = "",
        on_assign: AssignmentListener | None = None,
        on_revoke: AssignmentListener | None = None,
    ) -> Consumer:
        """Return a reader of ``topics``; create those that do not exist yet.

        With a ``group``, reading starts at the group's committed offsets unless ``on_assign`` seeks elsewhere;
        ``member`` is this reader's stable name, under which it gets its partitions back after a restart.
        """
        ...

    def recall(self, key: str) -> bytes | None:
        """Return the value last remembered under ``key``, or ``None``."""
        ...

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Return for each partition the offset after its last committed message, 0 if it never had one."""
        ...

    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Return the group's committed offsets (0 where it has none)."""
        ...

    def close(self) -> None: ...


def open_bus(config: BusConfig, data: Path) -> Bus:
    """Return the bus of ``config``; ``data`` is the folder in which the embedded log lives.

    Raises:
        BusError: it cannot be reached or opened.
    """
    # Imported here, so that a process loads only the client that it uses.
    if config.kind == "kafka":
        from .kafka import KafkaBus

        return KafkaBus(config)
    from .embedded import EmbeddedBus

    return EmbeddedBus(config, data / "bus")


BUSES = ("embedded", "kafka")
