"""The bus of many machines: Apache Kafka 4. Only this module and its neighbours ``kafka_*`` import the client.

As on the embedded bus, a transaction is collected in memory and sent at the end of its block, so that it is open
on the broker for milliseconds and does not hold up readers. Remembered values go to a compacted topic under their keys. Group offsets go
through the producer with the member's identity, so that the broker fences stale members. The client is used through its public interface
alone.
"""

from collections.abc import Sequence

from kafka import OffsetSpec  # pyright: ignore[reportAttributeAccessIssue]
from kafka import TopicPartition as KafkaPlace  # pyright: ignore[reportAttributeAccessIssue]

from ..clock import NS_PER_S
from . import AssignmentListener, TopicPartition
from .kafka_cluster import KafkaCluster
from .kafka_reader import KafkaReader
from .kafka_writer import KafkaWriter

# The broker writes the end of a transaction milliseconds after its commit, unless the writer or the broker has died.
END_MARKERS_S = 1.0
END_MARKERS_PAUSE_S = 0.005


class KafkaBus(KafkaCluster):
    """The topics at ``config.servers``. May be used by several threads.

    ``retention_bytes`` applies to each topic here, and is split over its partitions.
    """

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

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        ends = {TopicPartition(topic, number): 0 for topic in topics for number in range(self.config.partitions)}
        existing = self.existing(topics)
        places = [KafkaPlace(*place) for place in ends if place.topic in existing]
        for place, offset in self._stable_ends(places).items():
            ends[TopicPartition(*place)] = offset
        return ends

    def _stable_ends(self, places: Sequence[KafkaPlace]) -> dict[KafkaPlace, int]:
        """Return where committed messages end, after a short wait for the ends of transactions that have just been committed."""
        written = self.retried(lambda: self.written(places))
        deadline_ns = self.clock.monotonic_ns() + int(END_MARKERS_S * NS_PER_S)
        while True:
            ends = self.retried(lambda: self.offsets(places, OffsetSpec.LATEST))
            if all(ends[place] >= written[place] for place in places) or self.clock.monotonic_ns() > deadline_ns:
                return ends
            self.clock.wait(END_MARKERS_PAUSE_S)

    def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        offsets = {TopicPartition(topic, number): 0 for topic in topics for number in range(self.config.partitions)}
        found = self.retried(lambda: self.admin.list_group_offsets({group: None})).get(group, {})
        for place, committed in found.items():
            if (named := TopicPartition(*place)) in offsets and committed.offset >= 0:
                offsets[named] = committed.offset
        return offsets
