"""The only door to DuckDB: the writer's database, and the read-only one that everybody else opens.

DuckDB lets one process write or many read. So the folder of a store has one writer and files that only ever appear
by rename::

    hot.duckdb            the writer's: base tables in schema ``base``
    segments/<table>/     what has left the hot tables: sorted Parquet, immutable
    samples/              the ring of raw runs, Parquet
    snapshots/<n>.duckdb  copies of the hot database, with views over the other two
    current.duckdb        a symbolic link to the newest snapshot, swapped atomically

Readers open ``current.duckdb`` read-only and need no extension.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from ...pipeline import histogram
from ...pipeline.errors import StoreError
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import RESOLUTIONS_NS, Table
from ...pipeline.tables.states import STATES
from .lag import KEPT_FAMILIES

# Databases of this version and older open in every DuckDB since 1.5, so a user's own client can read the snapshots.
STORAGE_VERSION = "v1.5.0"

# DuckDB sets aside one block for each column of a table that was written since the last checkpoint: of the usual 256 KiB, the thousand
# columns here take more than what is in them.
BLOCK_BYTES = 16 * 1024

# A checkpoint writes the last group of rows of a table anew, which is most of what it writes where 122,880 rows are a group, as usual.
GROUP_ROWS = 2_048

# The version of the tables. An older store is migrated by ``_MIGRATIONS``; a newer one is refused.
TABLES_VERSION = 1
_MIGRATIONS: dict[int, tuple[str, ...]] = {}

# A copy is made in pieces of so much.
_COPY_BYTES = 4 * 1024 * 1024

# So many rows of a result are made at a time.
_STREAM_ROWS = 2048

# What DuckDB may keep of its file while nothing is asked.
_RESTING_BYTES = 8 * 1024 * 1024

_TIMES = ("ts", "recv_ts", "start_ts")

# The quantiles that are kept beside every histogram, by the ending of their column.
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}

_TYPES = {
    pl.Int16: "SMALLINT",
    pl.Int64: "BIGINT",
    pl.UInt8: "UTINYINT",
    pl.UInt16: "USMALLINT",
    pl.UInt32: "UINTEGER",
    pl.UInt64: "UBIGINT",
    pl.Float64: "DOUBLE",
    pl.Boolean: "BOOLEAN",
    pl.String: "VARCHAR",
}


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where the store is and what the writer may use."""

    memory_bytes_max: int = 128 * 1024 * 1024
    threads: int = 1
    wal_bytes_max: int = 64 * 1024 * 1024


def duckdb_type(dtype: object) -> str:
    """Return the DuckDB name of a Polars type."""
    if isinstance(dtype, pl.List):
        return f"{duckdb_type(dtype.inner)}[]"
    if isinstance(dtype, pl.Struct):
        return "STRUCT(" + ", ".join(f"{field.name} {duckdb_type(field.dtype)}" for field in dtype.fields) + ")"
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision},{dtype.scale})"
    return _TYPES[dtype if isinstance(dtype, type) else type(dtype)]


def definitions(table: Table) -> dict[str, str]:
    """Return the type of each column of ``table``: times are TIMESTAMP_NS, and quantiles stand beside each histogram."""
    plain = {f.name: "TIMESTAMP_NS" if f.name in _TIMES else duckdb_type(f.dtype) for f in table.fields}
    return plain | {f"{name}_{label}": "DOUBLE" for name in table.having("hist") for label in QUANTILES}


def columns(table: Table) -> str:
    """Return the column definitions of ``table``."""
    return ", ".join(f"{name} {kind}" for name, kind in definitions(table).items())


def literal(text: object) -> str:
    """Return a text, such as a path, as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"


def stored(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Return rows as the store keeps them: timestamps for nanoseconds, and the quantiles that follow from histograms.

    A page that shows a thousand rows must not walk a thousand histograms, so the usual quantiles are taken once.
    """
    derived = [
        pl.Series(f"{name}_{label}", column)
        for name in table.having("hist")
        for label, column in zip(QUANTILES, histogram.quantiles(frame[name], tuple(QUANTILES.values())).T, strict=True)
    ]
    frame = frame.with_columns(series.fill_nan(None) for series in derived)
    return frame.with_columns(pl.col(name).cast(pl.Datetime("ns")) for name in _TIMES if name in frame.columns)


def base_tables() -> dict[str, Table]:
    """Return every table of schema ``base`` by name: a state table once for each resolution."""
    tables = {}
    for name, table in STATES.items():
        if table.having("key"):
            tables |= {f"{name}_{resolution}": table for resolution in RESOLUTIONS_NS}
        else:
            tables[name] = table
    return tables | {name: FAMILIES[name] for name in KEPT_FAMILIES}


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
            for name in ("", "segments", "samples", "snapshots"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            # Replaying a log after a crash wants more memory than writing it did, so the limit comes after opening.
            settings: dict[str, str | bool | int | float | list[str]] = {
                "storage_compatibility_version": STORAGE_VERSION,
                "wal_autocheckpoint": f"{self._config.wal_bytes_max}B",
                "default_block_size": BLOCK_BYTES,
            }
            # Replaying a log may spill, so the place to spill to is said before opening: it cannot be moved afterwards.
            settings["temp_directory"] = str(self.folder / "temporary")
            self._connection = duckdb.connect(":memory:", config=settings)
            # How many rows are a group can be said only where a database is attached.
            self._connection.execute(f"ATTACH {literal(self.folder / 'hot.duckdb')} AS hot (ROW_GROUP_SIZE {GROUP_ROWS})")
            self._connection.execute("USE hot")
            self._file = os.open(self.folder / "hot.duckdb", os.O_RDONLY)
        except duckdb.IOException as error:
            self.stop()
            raise _explain(error, self.folder) from None
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
            # Freed memory goes back soon: a service that runs for months must not keep the peak of its first replay.
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
        """Do all that happens in the block, or nothing. Raises ``StoreError`` when the disk is full."""
        connection = self._open()
        connection.execute("BEGIN")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            if isinstance(error, duckdb.Error):
                raise _explain(error, self.folder) from None
            raise
        self._writes += 1

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        """Run one statement. Raises ``StoreError``."""
        try:
            self._open().execute(sql, list(params))
        except duckdb.Error as error:
            raise _explain(error, self.folder) from None

    def query(self, sql: str, params: Sequence[object] = ()) -> list[dict[str, object]]:
        """Return the rows of a query as dictionaries. Raises ``StoreError``."""
        try:
            cursor = self._open().execute(sql, list(params))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            raise _explain(error, self.folder) from None

    def frame(self, sql: str, params: Sequence[object] = (), **tables: pl.DataFrame) -> pl.DataFrame:
        """Return the result of a query as a frame; ``tables`` can be read in it by their names."""
        connection = self._open()
        for name, table in tables.items():
            connection.register(name, table.to_arrow())
        try:
            # As a stream: DuckDB would keep the whole result beside what becomes of it.
            result = pl.from_arrow(connection.execute(sql, list(params)).to_arrow_reader(_STREAM_ROWS).read_all())
            assert isinstance(result, pl.DataFrame)
            return result
        finally:
            for name in tables:
                connection.unregister(name)

    def insert(self, table: str, frame: pl.DataFrame) -> None:
        """Append rows whose columns are those of the table, by name."""
        connection = self._open()
        connection.register("incoming", frame.to_arrow())
        try:
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        finally:
            connection.unregister("incoming")

    def give_back(self) -> None:
        """Return freed memory to the system. DuckDB's allocator keeps it, and lets it go only when its limit is set."""
        self.execute(f"SET memory_limit = '{self._config.memory_bytes_max}B'")

    def rest(self) -> None:
        """Let go of what is kept of the file, too. To be called after ``checkpoint``: what is not in the file would be spilt."""
        with contextlib.suppress(duckdb.OutOfMemoryException):
            self._open().execute(f"SET memory_limit = '{_RESTING_BYTES}B'")
        self.give_back()

    def checkpoint(self) -> None:
        """Write everything into the one file, so that a copy of it is whole."""
        self.execute("CHECKPOINT")

    def copy(self, target: Path) -> None:
        """Copy the database, which is whole right after ``checkpoint``. Raises ``OSError``.

        The file is read through the one descriptor that stays open: POSIX takes a process's locks on a file away when it
        closes any descriptor of it, and DuckDB's lock is what keeps a second writer out.
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
                self.execute(f"CREATE TABLE IF NOT EXISTS base.{name} ({columns(table)})")
                self._widen(name, table)
            self.execute("CREATE TABLE IF NOT EXISTS base.positions (topic VARCHAR, part INTEGER, next_offset BIGINT)")
            marks = [f"unfolded_{resolution}" for resolution in list(RESOLUTIONS_NS)[1:]]
            if "unfolded" in self._columns("positions"):  # one mark for all of them, as it was once
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

    def _widen(self, name: str, table: Table) -> None:
        """Add the columns that a table has gained since this store was made."""
        there = self._columns(name)
        for column, kind in definitions(table).items():
            if column not in there:
                self.execute(f"ALTER TABLE base.{name} ADD COLUMN {column} {kind}")


class Reader:
    """A read-only view of the newest published snapshot; cheap to open, used by one thread.

    With ``sandbox`` the connection cannot leave the store: no other file, no network, no extension, no setting can be
    changed, memory and threads are bounded. It is still read-only by the file alone: statements other than queries
    must be refused by the caller (``analytics/console.py``), since DuckDB lets an allowed directory be written.
    """

    def __init__(self, folder: Path, *, sandbox: bool = False, memory_bytes_max: int = 256 * 1024 * 1024) -> None:
        self._folder = folder
        link = folder / "current.duckdb"
        if not link.exists():
            raise StoreError(f"nothing is published in {folder} yet", "start 'weft up' or 'weft replay' with this --data and try again")
        self.snapshot = link.resolve()
        # One connection a reader: two of one path and process would share a database and its settings.
        try:
            self._connection = duckdb.connect(str(self.snapshot), read_only=True)
        except duckdb.Error as error:
            raise _explain(error, folder) from None
        self._connection.execute("SET TimeZone = 'UTC'")
        if sandbox:
            for setting in (
                f"memory_limit = '{memory_bytes_max}B'",
                "threads = 2",
                "temp_directory = ''",
                "autoinstall_known_extensions = false",
                "autoload_known_extensions = false",
                "allow_community_extensions = false",
                f"allowed_directories = [{literal(f'{folder.resolve()}/segments/')}, {literal(f'{folder.resolve()}/samples/')}]",
                "enable_external_access = false",
                "lock_configuration = true",
            ):
                self._connection.execute(f"SET {setting}")

    @property
    def published_ns(self) -> int:
        """When this snapshot was published."""
        return self.snapshot.stat().st_mtime_ns

    def frame(self, sql: str, params: Sequence[object] = (), *, rows_max: int | None = None) -> pl.DataFrame:
        """Return the result of a query. Raises ``StoreError`` with DuckDB's own words for a query that is wrong."""
        try:
            result = self._connection.execute(sql, list(params))
            if result is None or result.description is None:
                raise StoreError("there is no query in it", "write one, such as: FROM ports_1s LIMIT 10")
            if rows_max is None:
                return result.pl()
            batches = result.to_arrow_reader(rows_max + 1)
            return pl.DataFrame(pl.from_arrow(next(iter(batches), batches.schema.empty_table())))
        except duckdb.InterruptException:
            raise StoreError("the query took too long and was stopped", "narrow it with a WHERE on ts") from None
        except duckdb.IOException as error:
            if "No files found" not in str(error) or str(self._folder.resolve()) in str(error):
                raise StoreError(str(error).strip(), "see that the store's files are there and may be read") from None
            hint = f"publish it anew where it is: weft analyze --seconds 3 --data {self._folder.resolve().parent}"
            raise StoreError("its folder was moved or copied, and the views still name the files where they were", hint) from None
        except duckdb.Error as error:
            unknown = isinstance(error, (duckdb.BinderException, duckdb.CatalogException))
            hint = "see the views with: SHOW TABLES, their columns with: DESCRIBE and the name" if unknown else "correct the query"
            raise StoreError(_in_one_line(error), hint) from None

    def statement_kinds(self, sql: str) -> list[str]:
        """Return the kind of each statement in ``sql`` as DuckDB's parser sees it, such as SELECT."""
        try:
            return [statement.type.name for statement in self._connection.extract_statements(sql)]
        except duckdb.Error as error:
            raise StoreError(_in_one_line(error), "correct the query") from None

    def interrupt(self) -> None:
        """Stop the query under way, from another thread."""
        self._connection.interrupt()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()


def _in_one_line(error: duckdb.Error) -> str:
    """Return DuckDB's own words; of the line of the query that it quotes below them, the number."""
    words, _, quoted = str(error).strip().partition("\n\nLINE ")
    line = f" (line {quoted.partition(':')[0]})" if quoted else ""
    return " ".join(words.split()) + line


def _explain(error: duckdb.Error, folder: Path) -> StoreError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    lower = text.lower()
    if ("lock" in lower and "conflict" in lower) or "could not set lock" in lower:
        return StoreError(f"another process writes {folder}", "stop it, or choose another folder with --data")
    # A full disk is met while writing, and while spilling to it.
    if "no space left" in lower or "failed to offload" in lower or ("disk" in lower and "full" in lower):
        return StoreError(
            f"the disk under {folder} is full", "free space; nothing that was stored is lost, and what is on the bus will be stored then"
        )
    if not os.access(folder, os.W_OK):
        return StoreError(f"{folder} cannot be written", "choose another folder with --data")
    return StoreError(text, "run 'weft check' and see the troubleshooting page")
