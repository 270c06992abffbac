"""What a transaction on Kafka is until the end of its block: a list, and nothing that the broker knows of."""

from collections.abc import Mapping

from . import Consumer, TopicPartition, partition_of
from .kafka_settings import MEMORY_TOPIC

Headers = list[tuple[str, bytes]]


class KafkaTransaction:
    """What will be sent when the block ends."""

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
