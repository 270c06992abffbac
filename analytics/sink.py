"""The sink: rows from the bus and the positions they came from, in one transaction of the store.

The store is the truth about what has been stored: on start the sink reads on from the positions in it, whatever the
bus believes. What it commits to the bus afterwards only tells the lag.
"""

from collections.abc import Sequence

import polars as pl

from ..pipeline.bus import Bus, Message, TopicPartition
from ..pipeline.codec import decode, table_of
from ..pipeline.errors import CodecError
from ..pipeline.report import Report
from ..pipeline.schema import FAMILIES, STATES, Table
from .archive import BULK_ROWS, Archive
from .lag import TOPICS
from .rollup import fold
from .store import Store, stored

# Unpacked, rows take several times this.
POLL_BYTES_MAX = 2 * 1024 * 1024


def of_topic(message: Message) -> Table:
    """Return the table that a message is of. Raises ``CodecError`` also where that is not the one of its topic."""
    table = table_of(message.headers)
    if table.topic != message.topic:
        raise CodecError(f"a message of {table.topic} in {message.topic}")
    return table


class Positions:
    """Where a reader of topics stands, kept in the store with what it read."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Return the next offset of every partition that has been read from."""
        rows = self._store.query("SELECT topic, part, next_offset FROM base.positions")
        return {TopicPartition(str(r["topic"]), int(str(r["part"]))): int(str(r["next_offset"])) for r in rows if r["topic"] in topics}

    def save(self, offsets: dict[TopicPartition, int]) -> None:
        """Put new offsets in place of the old ones, inside the caller's transaction."""
        for (topic, partition), offset in offsets.items():
            self._store.execute("DELETE FROM base.positions WHERE topic = ? AND part = ?", [topic, partition])
            self._store.execute("INSERT INTO base.positions VALUES (?, ?, ?)", [topic, partition, offset])


class Sink:
    """Stores what the bus brings."""

    def __init__(self, store: Store, archive: Archive, bus: Bus, report: Report) -> None:
        self._store = store
        self._archive = archive
        self._bus = bus
        self._report = report
        self._positions = Positions(store)

    def start(self) -> None:
        """Begin to read where the store says. Raises ``BusError``."""
        self._consumer = self._bus.consumer(TOPICS)
        for partition, offset in self._positions.load(TOPICS).items():
            self._consumer.seek(partition, offset)

    def poll(self, timeout_s: float) -> Sequence[Message]:
        """Return what is next; ``store`` takes it."""
        return self._consumer.poll(timeout_s, POLL_BYTES_MAX)

    def store(self, messages: Sequence[Message]) -> dict[str, pl.DataFrame]:
        """Store messages and positions, inside the caller's transaction; return the stored rows by table name."""
        frames: dict[str, list[pl.DataFrame]] = {}
        offsets: dict[TopicPartition, int] = {}
        for loss in self._consumer.lost():
            self._report.complain(
                f"{loss.to_offset - loss.from_offset} messages of {loss.partition.topic} were dropped by the log unread", "bus_retention"
            )
        for message in messages:
            offsets[TopicPartition(message.topic, message.partition)] = message.offset + 1
            try:
                table = of_topic(message)
                frame = decode(message.value, table)
                if table.state and frame["ts" if "ts" in frame.columns else "start_ts"].null_count():
                    raise CodecError(f"{table.name} has rows without a time")
                frames.setdefault(table.name if table.state else f"family {table.name}", []).append(frame)
            except CodecError as error:
                self._report.complain(str(error), "codec")
        rows = {name: pl.concat(parts) for name, parts in frames.items()}
        for name, frame in rows.items():
            self._insert(name, frame)
        self._positions.save(offsets)
        return {name: frame for name, frame in rows.items() if name in STATES}

    def positions(self) -> dict[TopicPartition, int]:
        """Return how far the sink has read; true of the store once everything polled is stored."""
        return {partition: self._consumer.position(partition) for partition in self._consumer.assignment()}

    def stop(self) -> None:
        """Stop reading. Idempotent."""
        self._consumer.close()

    def _insert(self, name: str, frame: pl.DataFrame) -> None:
        if name.startswith("family "):
            family = name.removeprefix("family ")
            self._store.insert(f"base.{family}", stored(FAMILIES[family], frame))
        elif STATES[name].having("key"):
            rows = stored(STATES[name], frame)
            if frame.height < BULK_ROWS:
                self._store.insert(f"base.{name}_1s", rows)
            else:
                self._archive.bulk(f"{name}_1s", rows)
            fold(self._store, STATES[name], frame)
        else:
            self._store.insert(f"base.{name}", stored(STATES[name], frame))
        self._report.count("weft_analyze_rows_total", frame.height, label=name)
