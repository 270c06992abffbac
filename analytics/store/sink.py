"""The sink: rows from the bus and their positions, in one transaction of the store.

On start the sink continues at the positions in the store and ignores those committed to the bus, which only show the lag.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from ...pipeline.bus import Bus, Message, TopicPartition
from ...pipeline.codec import decode, table_of
from ...pipeline.errors import CodecError
from ...pipeline.report import Report
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import Table
from ...pipeline.tables.states import STATES
from .archive import BULK_ROWS, Archive
from .ddl import stored
from .lag import TOPICS
from .rollup import COARSER, PendingRows
from .rows import ROWS, as_text
from .writer import Store

# Bytes of one poll; unpacked, rows take several times as much.
POLL_BYTES_MAX = 2 * 1024 * 1024


def of_topic(message: Message) -> Table:
    """Return the table of a message. Raises ``CodecError`` also where it is not that of the topic."""
    table = table_of(message.headers)
    if table.topic != message.topic:
        raise CodecError(f"a message of {table.topic} in {message.topic}")
    return table


class Positions:
    """The positions of a reader of topics, stored together with what it read."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Return the next offset of every partition that has been read."""
        return self._load("next_offset", topics)

    def unfolded(self, topics: Sequence[str]) -> dict[str, dict[TopicPartition, int]]:
        """Return, by resolution, the first offset of each partition whose rows are stored but not folded into it."""
        return {resolution: self._load(f"unfolded_{resolution}", topics) for resolution in COARSER}

    def save(self, offsets: Mapping[TopicPartition, int], unfolded: Mapping[str, Mapping[TopicPartition, int]] | None = None) -> None:
        """Replace the offsets, inside the caller's transaction."""
        if not offsets:
            return
        marks = [(unfolded or {}).get(resolution, {}) for resolution in COARSER]
        places = as_text((*place, offset, *(mark.get(place) for mark in marks)) for place, offset in offsets.items())
        self._store.execute(
            f"DELETE FROM base.positions WHERE (topic, part) IN (SELECT row[1], CAST(row[2] AS INTEGER) FROM {ROWS})", [places]
        )
        numbers = ", ".join(f"CAST(row[{place}] AS BIGINT)" for place in range(3, 4 + len(COARSER)))
        self._store.execute(
            f"INSERT INTO base.positions (topic, part, next_offset, {', '.join(f'unfolded_{name}' for name in COARSER)}) "
            f"SELECT row[1], CAST(row[2] AS INTEGER), {numbers} FROM {ROWS}",
            [places],
        )

    def folded(self, resolution: str) -> None:
        """Mark everything stored as folded into ``resolution``, inside the caller's transaction."""
        mark = f"unfolded_{resolution}"
        self._store.execute(f"UPDATE base.positions SET {mark} = NULL WHERE {mark} IS NOT NULL")

    def _load(self, column: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        rows = self._store.query(f"SELECT topic, part, {column} AS at FROM base.positions WHERE {column} IS NOT NULL")
        return {TopicPartition(str(row["topic"]), int(str(row["part"]))): int(str(row["at"])) for row in rows if row["topic"] in topics}


class Sink:
    """Stores the messages of the bus.

    Rows for roll-ups wait in memory for ``fold``. The store has the first offset that is not folded into each resolution;
    after a restart those messages are read again and folded, but not stored twice.
    """

    def __init__(self, store: Store, archive: Archive, bus: Bus, report: Report) -> None:
        self._store = store
        self._archive = archive
        self._bus = bus
        self._report = report
        self._positions = Positions(store)
        self._pending = PendingRows()
        self._unfolded: dict[str, dict[TopicPartition, int]] = {resolution: {} for resolution in COARSER}

    def start(self) -> None:
        """Continue at the stored positions. Raises ``BusError``."""
        self._consumer = self._bus.consumer(TOPICS)
        self._stored = self._positions.load(TOPICS)
        self._unfolded = self._positions.unfolded(TOPICS)
        for partition, offset in self._stored.items():
            self._consumer.seek(partition, min(offset, *(marks.get(partition, offset) for marks in self._unfolded.values())))

    def poll(self, timeout_s: float) -> Sequence[Message]:
        """Return the next messages, for ``store``."""
        return self._consumer.poll(timeout_s, POLL_BYTES_MAX)

    def store(self, messages: Sequence[Message]) -> dict[str, pl.DataFrame]:
        """Store messages and positions in one transaction; return the new rows by table name. Raises ``StoreError``."""
        fresh: dict[str, list[pl.DataFrame]] = {}
        waiting: dict[tuple[str, str], list[pl.DataFrame]] = {}
        offsets, unfolded = dict(self._stored), {resolution: dict(marks) for resolution, marks in self._unfolded.items()}
        for loss in self._consumer.lost():
            self._report.complain(
                f"{loss.to_offset - loss.from_offset} messages of {loss.partition.topic} were dropped by the log unread", "bus_retention"
            )
        for message in messages:
            partition = TopicPartition(message.topic, message.partition)
            known = message.offset < self._stored.get(partition, 0)
            offsets[partition] = max(offsets.get(partition, 0), message.offset + 1)
            try:
                table = of_topic(message)
                frame = self._decoded(message, table)
                if not known:
                    fresh.setdefault(table.name if table.state else f"family {table.name}", []).append(frame)
                if table.state and table.having("key") and frame.height:
                    for marks in unfolded.values() if not known else ():
                        marks.setdefault(partition, message.offset)
                    lacking = [name for name, marks in unfolded.items() if marks.get(partition, message.offset + 1) <= message.offset]
                    if lacking:
                        # Added at the finest resolution that lacks it; from there it goes on into the coarser ones.
                        waiting.setdefault((table.name, lacking[0]), []).append(frame)
            except CodecError as error:
                self._report.complain(str(error), "codec")
        rows = {name: pl.concat(parts) for name, parts in fresh.items()}
        with self._store.transaction():
            for name, frame in rows.items():
                self._insert(name, frame)
            self._positions.save({at: offset for at, offset in offsets.items() if offset != self._stored.get(at)}, unfolded)
        self._stored, self._unfolded = offsets, unfolded
        for (name, resolution), parts in waiting.items():
            self._pending.add(STATES[name], pl.concat(parts), resolution)
        return {name: frame for name, frame in rows.items() if name in STATES}

    @property
    def full(self) -> bool:
        """Whether the rows that wait for ``fold`` have reached their bound."""
        return self._pending.full

    def fold(self) -> None:
        """Fold the waiting rows into the coarser tables. Raises ``StoreError``; rows that are not folded then still wait."""
        for resolution in COARSER:
            self.fold_into(resolution)

    def fold_into(self, resolution: str) -> None:
        """Fold the rows that wait for one resolution, in one transaction; they then wait for the next resolution."""
        if not self._pending.waits(resolution):
            return
        with self._store.transaction():
            self._pending.fold(self._store, resolution)
            self._positions.folded(resolution)
        self._pending.folded(resolution)
        self._unfolded[resolution] = {}
        self._store.checkpoint()
        self._store.rest()

    def positions(self) -> dict[TopicPartition, int]:
        """Return the positions read, which are those of the store once everything polled is stored."""
        return {partition: self._consumer.position(partition) for partition in self._consumer.assignment()}

    def stop(self) -> None:
        """Stop reading. Idempotent."""
        self._consumer.close()

    def _decoded(self, message: Message, table: Table) -> pl.DataFrame:
        frame = decode(message.value, table)
        if table.state and frame["ts" if "ts" in frame.columns else "start_ts"].null_count():
            raise CodecError(f"{table.name} has rows without a time")
        return frame

    def _insert(self, name: str, frame: pl.DataFrame) -> None:
        if name.startswith("family "):
            family = name.removeprefix("family ")
            self._store.insert(f"base.{family}", stored(FAMILIES[family], frame))
        else:
            keyed = STATES[name].having("key")
            rows, place = stored(STATES[name], frame), f"{name}_1s" if keyed else name
            if frame.height < BULK_ROWS:
                self._store.insert(f"base.{place}", rows)
            else:
                self._archive.bulk(place, rows)
        self._report.count("weft_analyze_rows_total", frame.height, label=name)
