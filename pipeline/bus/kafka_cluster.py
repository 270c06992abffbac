"""The connection to a Kafka cluster: retries while a broker is unreachable, topics, offsets and stored values.

The type stubs are those of an older client, so some imports here and in the neighbouring modules carry an ``ignore``.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import IsolationLevel, KafkaAdminClient, KafkaConsumer, OffsetSpec  # pyright: ignore[reportAttributeAccessIssue]
from kafka import TopicPartition as KafkaPlace  # pyright: ignore[reportAttributeAccessIssue]
from kafka import errors as kafka_errors

from ..clock import NS_PER_S, Clock, SystemClock
from ..errors import BusError
from . import BusConfig, partition_of
from .kafka_settings import FETCH_WAIT_MS, MEMORY_TOPIC, client_settings, reader_settings, topic_settings
from .within import Result, within

RETRY_PAUSE_S = 0.2
CLOSE_TIMEOUT_S = 5.0

# A bounded wait ends with the error of the standard library.
FAILURES = (kafka_errors.KafkaError, TimeoutError)


def hopeless(error: Exception) -> bool:
    """Return whether waiting does not help: the broker itself refused, or the client is configured wrongly."""
    final = (kafka_errors.BrokerResponseError, kafka_errors.KafkaConfigurationError)
    return isinstance(error, final) and not isinstance(error, kafka_errors.RetriableError)  # pyright: ignore[reportAttributeAccessIssue]


class KafkaCluster:
    """The brokers at ``config.servers``. May be used by several threads."""

    def __init__(self, config: BusConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._topics: set[str] = set()
        self._memory: KafkaConsumer | None = None
        self.client_settings = client_settings(config)
        try:
            self.admin: Any = KafkaAdminClient(**self.client_settings)
        except (kafka_errors.KafkaError, OSError, ValueError) as error:
            hint = "start it, or set bus.servers and the security settings"
            raise BusError(f"no Kafka broker at {config.servers} ({error})", hint) from error
        self.create_topics([MEMORY_TOPIC])

    def away(self, seconds: float, error: Exception) -> BusError:
        """Return the error for a broker that has not answered for ``seconds``."""
        return BusError(f"Kafka at {self.config.servers} has not answered for {seconds:.0f} s ({error!r})", "start the broker again")

    def refused(self, error: Exception) -> BusError:
        """Return the error for a request that no retry can help."""
        return BusError(f"Kafka at {self.config.servers} refuses ({error!r})", "check the topics and rights at the broker")

    def retried(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns, repeated while the broker is away. Raises ``BusError`` after ``patience_s``."""
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
                self.clock.wait(RETRY_PAUSE_S)

    def attempt(self, action: Callable[[], object], timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Run ``action`` without waiting longer than ``timeout_s``; ignore its failure."""
        with suppress(*FAILURES):
            within(timeout_s, action)

    def create_topics(self, topics: Sequence[str]) -> None:
        """Create the topics that do not exist yet. Raises ``BusError`` when one has another number of partitions."""
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
            raise kafka_errors.LeaderNotAvailableError("a topic has just been created")
        return counts

    def _create(self, missing: Mapping[str, Any]) -> None:
        # Another process may have created one meanwhile; the broker creates the others all the same.
        with suppress(kafka_errors.TopicAlreadyExistsError):
            self.admin.create_topics(missing, wait_for_metadata=True)

    def existing(self, topics: Sequence[str]) -> set[str]:
        """Return at least those of ``topics`` that exist."""
        return self._topics if self._topics.issuperset(topics) else set(self.retried(self.admin.list_topics))

    def offsets(self, places: Iterable[KafkaPlace], spec: Any, isolation: Any = IsolationLevel.READ_COMMITTED) -> dict[KafkaPlace, int]:
        """Return one offset for each place. Raises the client's errors without a retry."""
        if not (wanted := dict.fromkeys(places, spec)):
            return {}
        found = self.admin.list_partition_offsets(wanted, isolation_level=isolation)
        return {place: answer.offset for place, answer in found.items()}

    def written(self, places: Iterable[KafkaPlace]) -> dict[KafkaPlace, int]:
        """Return the high watermarks: where open transactions end, too. Raises the client's errors."""
        return self.offsets(places, OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED)

    def recall(self, key: str, patience_s: float | None = None, *, strict: bool = True) -> bytes | None:
        """Return the value last stored under ``key``.

        Waits up to ``patience_s`` for transactions that are open at the call; after that it raises ``BusError`` if
        ``strict``, else it returns what is committed by then.
        """
        place = KafkaPlace(MEMORY_TOPIC, partition_of(key, self.config.partitions))
        end = self.retried(lambda: self.written([place]))[place]
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
                        problem = f"an open transaction has blocked {place.topic} partition {place.partition} for {patience_s:.0f} s"
                        raise BusError(problem, "see Troubleshooting, 'A transaction without an end'")
                    break
        return value

    def close(self) -> None:
        if self._memory is not None:
            self.attempt(self._memory.close)
        self.attempt(self.admin.close)
