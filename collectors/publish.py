"""The publisher: batches to bus messages, split by device, cut to size, numbered, published in transactions."""

import json

from ..pipeline.bus import Producer, Transaction
from ..pipeline.clock import Clock
from ..pipeline.codec import encode, headers, messages
from ..pipeline.tables.families import FAMILIES
from .base import Batch


class BatchPublisher:
    """Publishes the batches of one source.

    Every message carries its source, epoch and number within (family, device), so that a reader notices a missing one. With
    ``live`` the process service closes windows after silence; a recording ends its devices instead.
    """

    def __init__(self, producer: Producer, source: str, clock: Clock, *, live: bool, epoch: int) -> None:
        self._producer = producer
        self._source = source
        self._clock = clock
        self._live = live
        self._epoch = epoch
        self._numbers: dict[str, int] = {}

    def publish(self, batches: list[Batch], remember: tuple[str, dict[str, object]] | None = None) -> int:
        """Publish batches and a note in one transaction; return the bytes.

        Raises ``BusError``: then nothing is published and no number is used; call again with the same batches.
        """
        numbers = dict(self._numbers)
        try:
            with self._producer.transaction() as transaction:
                total = sum(self._batch(transaction, batch) for batch in batches)
                if remember is not None:
                    key, note = remember
                    transaction.remember(key, json.dumps({**note, "numbers": self._numbers}).encode())
        except BaseException:
            self._numbers = numbers
            raise
        return total

    def resume(self, numbers: dict[str, int]) -> None:
        """Continue the numbers of an earlier publisher of this source."""
        self._numbers = dict(numbers)

    def _batch(self, transaction: Transaction, batch: Batch) -> int:
        total = 0
        if batch.frame.height:
            for (device,), frame in batch.frame.partition_by("device", as_dict=True, maintain_order=True).items():
                for value, _ in messages(frame, FAMILIES[batch.family]):
                    self._message(transaction, batch.family, str(device), value)
                    total += len(value)
        for device in batch.ended:
            families = [key.split("/", 1)[0] for key in self._numbers if key.split("/", 1)[1] == device] or [batch.family]
            for family in families:
                self._message(transaction, family, device, encode(FAMILIES[family].empty(), FAMILIES[family]), end="1")
        return total

    def _message(self, transaction: Transaction, family: str, device: str, value: bytes, **more: str) -> None:
        table = FAMILIES[family]
        number = self._numbers.get(f"{family}/{device}", 0)
        self._numbers[f"{family}/{device}"] = number + 1
        marked = headers(
            table,
            source=self._source,
            epoch=str(self._epoch),
            sequence=str(number),
            sent_ns=str(self._clock.now_ns() if self._live else 0),
            live=str(int(self._live)),
            **more,
        )
        transaction.publish(table.topic, device, value, marked)
