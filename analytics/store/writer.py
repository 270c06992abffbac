"""The writer's database of a store: opening, migrating, transactions and copies."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from ...pipeline.errors import StoreError
from .ddl import COARSER, base_tables, columns, definitions, literal
from .files import HOT, SAMPLES, SEGMENTS, SNAPSHOTS, explain

# Databases of this version and older open in every DuckDB since 1.5, so a user's own client can read the snapshots.
STORAGE_VERSION = "v1.5.0"

# For each column of a table written since the last checkpoint DuckDB sets aside one block: at the default of 256 KiB, the thousand
# columns here would take more than their data.
BLOCK_BYTES = 16 * 1024

# A checkpoint rewrites the last row group of a table; at the default of 122,880 rows that is most of what it writes.
GROUP_ROWS = 2_048

# The version of the tables. An older store is migrated by ``_MIGRATIONS``; a newer one is refused.
TABLES_VERSION = 1
_MIGRATIONS: dict[int, tuple[str, ...]] = {}

# The size of one piece of a copy.
_COPY_BYTES = 4 * 1024 * 1024

# Rows of a result in one batch.
_STREAM_ROWS = 2048

# The limit of DuckDB's cache of its file between queries.
_RESTING_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The limits of the writer."""

    memory_bytes_max: int = 128 * 1024 * 1024
    threads: int = 1
    wal_bytes_max: int = 64 * 1024 * 1024


class Store:
    """The writer's database."""

    def __init__(self, folder: Path, config: StoreConfig | None = None) -> None:
        self.folder = folder
        self._config = config or StoreConfig()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._file: int | None = None
        self._writes = 0

    def start(self) -> None:
        """Open the database and create what is missing.

        Raises:
            StoreError: another process writes this store, it is newer than this Weft, or it cannot be written.
        """
        try:
            for name in ("", SEGMENTS, SAMPLES, SNAPSHOTS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            # Replaying a log after a crash needs more memory than writing it did, so the limit is set after opening.
            settings: dict[str, str | bool | int | float | list[str]] = {
                "storage_compatibility_version": STORAGE_VERSION,
                "wal_autocheckpoint": f"{self._config.wal_bytes_max}B",
                "default_block_size": BLOCK_BYTES,
            }
            # Replaying a log may spill, and the place to spill to can only be set before opening.
            settings["temp_directory"] = str(self.folder / "temporary")
            self._connection = duckdb.connect(":memory:", config=settings)
            # The size of a row group can only be set where a database is attached.
            self._connection.execute(f"ATTACH {literal(self.folder / HOT)} AS hot (ROW_GROUP_SIZE {GROUP_ROWS})")
            self._connection.execute("USE hot")
            self._file = os.open(self.folder / HOT, os.O_RDONLY)
        except duckdb.IOException as error:
            self.stop()
            raise explain(error, self.folder) from None
        except OSError as error:
            self.stop()
            raise StoreError(f"{self.folder} cannot be written: {error.strerror}", "choose another folder with --data") from None
        try:
            self._set_up()
        except BaseException:
            self.stop()
            raise

    def _set_up(self) -> None:
        for setting in (
            f"memory_limit = '{self._config.memory_bytes_max}B'",
            f"threads = {self._config.threads}",
            "preserve_insertion_order = false",
            "TimeZone = 'UTC'",
            # Return freed memory soon: a service that runs for months must not stay at the peak of its first replay.
            "allocator_background_threads = true",
            "allocator_flush_threshold = '8MB'",
            "allocator_bulk_deallocation_flush_threshold = '8MB'",
        ):
            self.execute(f"SET {setting}")
        self._migrate()

    def stop(self) -> None:
        """Close the database. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def writes(self) -> int:
        """The number of transactions that have changed the database since it was opened."""
        return self._writes

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the statements of the block, or none of them. Raises ``StoreError`` when the disk is full."""
        connection = self._open()
        connection.execute("BEGIN")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            if isinstance(error, duckdb.Error):
                raise explain(error, self.folder) from None
            raise
        self._writes += 1

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        """Run one statement. Raises ``StoreError``."""
        try:
            self._open().execute(sql, list(params))
        except duckdb.Error as error:
            raise explain(error, self.folder) from None

    def query(self, sql: str, params: Sequence[object] = ()) -> list[dict[str, object]]:
        """Return the rows of a query as dictionaries. Raises ``StoreError``."""
        try:
            cursor = self._open().execute(sql, list(params))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            raise explain(error, self.folder) from None

    def frame(self, sql: str, params: Sequence[object] = (), **tables: pl.DataFrame) -> pl.DataFrame:
        """Return the result of a query as a frame; ``tables`` can be read in it by their names."""
        connection = self._open()
        for name, table in tables.items():
            connection.register(name, table.to_arrow())
        try:
            # As a stream: otherwise DuckDB holds the whole result beside the frame.
            result = pl.from_arrow(connection.execute(sql, list(params)).to_arrow_reader(_STREAM_ROWS).read_all())
            assert isinstance(result, pl.DataFrame)
            return result
        finally:
            for name in tables:
                connection.unregister(name)

    def insert(self, table: str, frame: pl.DataFrame) -> None:
        """Append rows, columns by name."""
        connection = self._open()
        connection.register("incoming", frame.to_arrow())
        try:
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        finally:
            connection.unregister("incoming")

    def give_back(self) -> None:
        """Return freed memory to the system. DuckDB's allocator does so only when its limit is set."""
        self.execute(f"SET memory_limit = '{self._config.memory_bytes_max}B'")

    def rest(self) -> None:
        """Return freed memory and drop the cache of the file. Call after ``checkpoint``, otherwise unwritten pages are spilled to disk."""
        with contextlib.suppress(duckdb.OutOfMemoryException):
            self._open().execute(f"SET memory_limit = '{_RESTING_BYTES}B'")
        self.give_back()

    def checkpoint(self) -> None:
        """Write the log into the database file, so that a copy of the file is complete."""
        self.execute("CHECKPOINT")

    def copy(self, target: Path) -> None:
        """Copy the database file, which is complete right after ``checkpoint``. Raises ``OSError``.

        The file is read through one descriptor that stays open: closing any descriptor of a file drops the process's POSIX
        locks on it, and DuckDB's lock keeps a second writer out.
        """
        assert self._file is not None
        with target.open("wb") as out:
            while piece := os.pread(self._file, _COPY_BYTES, out.tell()):
                out.write(piece)

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            raise StoreError("the store is closed", "start it first")
        return self._connection

    def _migrate(self) -> None:
        self.execute("CREATE SCHEMA IF NOT EXISTS base")
        self.execute("CREATE SCHEMA IF NOT EXISTS state")
        self.execute("CREATE TABLE IF NOT EXISTS base.version (version INTEGER)")
        rows = self.query("SELECT max(version) AS version FROM base.version")
        found = rows[0]["version"]
        if isinstance(found, int) and found > TABLES_VERSION:
            raise StoreError(
                f"it was written by a newer Weft (tables {found}, this one knows {TABLES_VERSION})", "upgrade weft or choose another --data"
            )
        with self.transaction():
            for version in range(found + 1 if isinstance(found, int) else TABLES_VERSION, TABLES_VERSION + 1):
                for statement in _MIGRATIONS.get(version, ()):
                    self.execute(statement)
            self.execute("DELETE FROM base.version")
            self.execute(f"INSERT INTO base.version VALUES ({TABLES_VERSION})")
            for name, table in base_tables().items():
                coarse = name.removeprefix(f"{table.name}_") in COARSER
                self.execute(f"CREATE TABLE IF NOT EXISTS base.{name} ({columns(table, coarse=coarse)})")
                self._widen(name, definitions(table, coarse=coarse))
            self.execute("CREATE TABLE IF NOT EXISTS base.positions (topic VARCHAR, part INTEGER, next_offset BIGINT)")
            marks = [f"unfolded_{resolution}" for resolution in COARSER]
            if "unfolded" in self._columns("positions"):  # an older store has one mark for all resolutions
                one = ", ".join(f"unfolded AS {mark}" for mark in marks)
                self.execute(f"CREATE OR REPLACE TABLE base.positions AS SELECT topic, part, next_offset, {one} FROM base.positions")
            for mark in marks:
                self.execute(f"ALTER TABLE base.positions ADD COLUMN IF NOT EXISTS {mark} BIGINT")
            self.execute(
                """CREATE TABLE IF NOT EXISTS base.segments
                (name VARCHAR, path VARCHAR, from_ts TIMESTAMP_NS, to_ts TIMESTAMP_NS, rows BIGINT, bytes BIGINT)"""
            )
            self.execute(
                """CREATE TABLE IF NOT EXISTS base.ring
                (path VARCHAR, from_ts TIMESTAMP_NS, to_ts TIMESTAMP_NS, written TIMESTAMP_NS, bytes BIGINT)"""
            )

    def _columns(self, name: str) -> set[str]:
        rows = self.query("SELECT column_name AS name FROM duckdb_columns() WHERE schema_name = 'base' AND table_name = ?", [name])
        return {str(row["name"]) for row in rows}

    def _widen(self, name: str, wanted: dict[str, str]) -> None:
        """Add the columns that the table has gained since this store was created."""
        there = self._columns(name)
        for column, kind in wanted.items():
            if column not in there:
                self.execute(f"ALTER TABLE base.{name} ADD COLUMN {column} {kind}")


class MemoryStore(Store):
    """A database in memory: stands in until ``start`` opens the file."""

    def __init__(self) -> None:
        super().__init__(Path())
        self._connection = duckdb.connect()
