"""Raw samples: all samples of the last minutes, for the Bursts page.

Raw samples are too many for the hot database and never change, so they go straight from the bus into Parquet files of a
few seconds, which the view ``samples`` reads. The oldest files are deleted beyond an age or a total size. They are read from
the bus only when the sink is idle: metrics come first. The table that lists the files is called ``base.ring``.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ...pipeline.bus import Bus, TopicPartition
from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.codec import decode
from ...pipeline.errors import CodecError, StoreError
from ...pipeline.report import Report
from ...pipeline.tables.families import FAMILIES
from .ddl import stored
from .files import SAMPLES
from .sink import Positions, of_topic
from .writer import Store

TABLE = FAMILIES["burst_sample"]

# Bytes of messages in one file, as received and unpacked; the rest of a backlog goes into the next file.
FILE_BYTES_MAX = 8 * 1024 * 1024
FILE_UNPACKED_MAX = 48 * 1024 * 1024
POLL_BYTES_MAX = 2 * 1024 * 1024

# The wait before the next poll after an empty one.
EMPTY_S = 0.02

# Rows of one row group, which is encoded in memory.
GROUP_ROWS = 512


@dataclass(frozen=True, slots=True)
class RawSamplesConfig:
    """Store the last ``age_s`` or ``bytes_max``, whichever is less; write a file every ``every_s``."""

    age_s: float = 900.0
    bytes_max: int = 2 * 1024**3
    every_s: float = 2.0


class RawSamples:
    """Writes and deletes the files of raw samples of one store."""

    def __init__(self, store: Store, bus: Bus, config: RawSamplesConfig, clock: Clock, report: Report) -> None:
        self._store = store
        self._bus = bus
        self._config = config
        self._clock = clock
        self._report = report
        self._positions = Positions(store)
        self._buffered: list[pl.DataFrame] = []
        self._buffered_bytes = self._buffered_unpacked = 0
        self._offsets: dict[TopicPartition, int] = {}
        self._since_ns = 0
        self.taken = 0  # messages since the start

    def start(self) -> None:
        """Continue at the stored positions; delete files that no transaction committed. Raises ``BusError``."""
        known = {str(row["path"]) for row in self._store.query("SELECT path FROM base.ring")}
        for path in (self._store.folder / SAMPLES).iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)
        self._consumer = self._bus.consumer((TABLE.topic,))
        for partition, offset in self._positions.load((TABLE.topic,)).items():
            self._consumer.seek(partition, offset)

    def step(self) -> bool:
        """Poll the bus once and write a file when one is due; return whether more messages may be waiting."""
        messages = self._consumer.poll(0.0, POLL_BYTES_MAX)
        for loss in self._consumer.lost():
            self._report.count("weft_analyze_ring_missed_total", loss.to_offset - loss.from_offset)
        self.taken += len(messages)
        for message in messages:
            self._offsets[TopicPartition(message.topic, message.partition)] = message.offset + 1
            try:
                frame = decode(message.value, of_topic(message), widen=False)
            except CodecError:
                continue  # counted by the process service
            if frame.height:
                self._buffered.append(frame)
                self._buffered_bytes += len(message.value)
                self._buffered_unpacked += int(frame.estimated_size())
        if self._buffered and not self._since_ns:
            self._since_ns = self._clock.monotonic_ns()
        old = self._buffered and self._clock.monotonic_ns() - self._since_ns >= self._config.every_s * NS_PER_S
        if old or self._buffered_bytes >= FILE_BYTES_MAX or self._buffered_unpacked >= FILE_UNPACKED_MAX:
            self.flush()
        return bool(messages)

    def drain(self, patience_s: float) -> None:
        """Read up to the present end of the bus, for at most ``patience_s``. An empty poll is not the end: a fetch may be under way."""
        ends = self._bus.ends((TABLE.topic,))
        until = self._clock.monotonic_ns() + int(patience_s * NS_PER_S)
        while any(self._consumer.position(partition) < end for partition, end in ends.items()) and self._clock.monotonic_ns() < until:
            if not self.step():
                self._clock.wait(EMPTY_S)

    def flush(self) -> None:
        """Write the buffered rows as one file, with the positions; delete old files. Raises ``StoreError`` on a full disk."""
        if not self._offsets:
            return
        rows = pl.concat(self._buffered, how="vertical_relaxed") if self._buffered else None
        now = self._clock.now_ns()
        path = f"{now:020d}.parquet"
        if rows is not None:
            self._write(rows, self._store.folder / SAMPLES / path)
        with self._store.transaction():
            if rows is not None:
                bounds = rows.select(pl.col("ts").min().alias("low"), pl.col("ts").max().alias("high")).row(0)
                size = (self._store.folder / SAMPLES / path).stat().st_size
                self._store.execute(
                    "INSERT INTO base.ring VALUES (?, make_timestamp_ns(?), make_timestamp_ns(?), make_timestamp_ns(?), ?)",
                    [path, bounds[0], bounds[1], now, size],
                )
            self._positions.save(self._offsets)
            gone = self._trim(now)
        for name in gone:
            (self._store.folder / SAMPLES / name).unlink(missing_ok=True)
        self._buffered, self._offsets, self._since_ns = [], {}, 0
        self._buffered_bytes = self._buffered_unpacked = 0

    def positions(self) -> dict[TopicPartition, int]:
        """Return the positions read; rows not yet in a file are written at the latest when the service stops."""
        return {partition: self._consumer.position(partition) for partition in self._consumer.assignment()}

    def stop(self) -> None:
        """Stop reading. Idempotent."""
        self._consumer.close()

    def _write(self, rows: pl.DataFrame, target: Path) -> None:
        part = target.with_suffix(".part")
        try:
            stored(TABLE, rows).write_parquet(part, compression="lz4", statistics=False, row_group_size=GROUP_ROWS)
            part.rename(target)
        except (OSError, pl.exceptions.ComputeError) as error:
            part.unlink(missing_ok=True)
            raise StoreError(f"raw samples cannot be written: {error}", "free space; what is on the bus will be stored then") from None

    def _trim(self, now_ns: int) -> list[str]:
        rows = self._store.query(
            """SELECT path FROM (SELECT path, written, sum(bytes) OVER (ORDER BY path DESC) AS newer FROM base.ring)
            WHERE newer > ? OR epoch_ns(written) < ?""",
            [self._config.bytes_max, now_ns - int(self._config.age_s * NS_PER_S)],
        )
        for row in rows:
            self._store.execute("DELETE FROM base.ring WHERE path = ?", [row["path"]])
        return [str(row["path"]) for row in rows]
