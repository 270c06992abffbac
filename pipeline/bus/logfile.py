"""One SQLite file that several processes write and read: opening it, its tables, its errors with hints.

``messages.sequence`` numbers all messages in the order of publication: appends go to the end of the tree,
retention takes from its front, and a reader of many partitions gets them interleaved as they were published.
``value`` is the last column, so that reading the others does not walk through its overflow pages.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..clock import NS_PER_S, SystemClock
from ..errors import BusError

# How long to wait for the write lock before the log counts as stuck.
LOCK_PATIENCE_S = 30.0
PAGE_BYTES = 32 * 1024
CACHE_KIB = 4 * 1024
# SQLite moves the write-ahead log into the file at this size, and truncates it to this size.
WAL_BYTES = 32 * 1024**2

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partitions (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL,
    first_offset INTEGER NOT NULL DEFAULT 0, next_offset INTEGER NOT NULL DEFAULT 0, size_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number));
CREATE TABLE IF NOT EXISTS messages (sequence INTEGER PRIMARY KEY, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL, published_ns INTEGER NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS messages_in_order ON messages (partition, offset, size_bytes);
CREATE TABLE IF NOT EXISTS memory (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS producers (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS offsets (grp TEXT, topic TEXT, number INTEGER, next_offset INTEGER NOT NULL,
    PRIMARY KEY (grp, topic, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups (grp TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (grp TEXT, member TEXT, instance TEXT NOT NULL, seen_ns INTEGER NOT NULL,
    PRIMARY KEY (grp, member)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (grp TEXT, number INTEGER, member TEXT NOT NULL, since INTEGER NOT NULL,
    PRIMARY KEY (grp, number)) WITHOUT ROWID;
"""


def explain(error: sqlite3.Error, path: Path) -> BusError:
    """Return an error of SQLite with a hint for the user."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return BusError(f"the disk of {path} is full", "free space there or lower bus.retention_bytes")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return BusError(
            f"{path} is damaged or not a log", f"stop Weft and move the folder {path.parent} away; a new log is created at start"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusError(f"{path} has been locked for {LOCK_PATIENCE_S:.0f} s", "find the process that holds it (fuser) and end it")
    return BusError(f"{path} cannot be used ({error})", "check that the disk has space and no errors, and that the folder is writable")


def create_topics(connection: sqlite3.Connection, topics: Sequence[str], partitions: int) -> None:
    """Create the partitions of the topics that do not exist yet."""
    rows = [(topic, number) for topic in topics for number in range(partitions)]
    connection.executemany("INSERT OR IGNORE INTO partitions (topic, number) VALUES (?, ?)", rows)


class LogFile:
    """One connection to the file, for one thread at a time. Every error is a ``BusError``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            self._connection = sqlite3.connect(path, LOCK_PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=256)
            try:
                self._set_up()
            except sqlite3.Error:
                self._connection.close()
                raise

    def _set_up(self) -> None:
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "synchronous = NORMAL",
            "secure_delete = OFF",
            f"wal_autocheckpoint = {WAL_BYTES // PAGE_BYTES}",
            f"journal_size_limit = {WAL_BYTES}",
            f"cache_size = -{CACHE_KIB}",
        ):
            self._connection.execute(f"PRAGMA {pragma}").close()

    def create(self) -> None:
        """Create the tables that are missing."""
        with self._explained():
            self._write_ahead()
        with self.writing() as connection:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)

    def _write_ahead(self) -> None:
        """Set the file to write-ahead logging. SQLite may refuse at once when several processes do so together: try again."""
        clock = SystemClock()
        deadline_ns = clock.monotonic_ns() + LOCK_PATIENCE_S * NS_PER_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").close()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or clock.monotonic_ns() > deadline_ns:
                    raise
            clock.wait(0.01)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Take the write lock; commit at the end of the block, roll back on an error."""
        with self._explained(), self._transaction("BEGIN IMMEDIATE"):
            yield self._connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read a consistent snapshot of the log."""
        with self._explained(), self._transaction("BEGIN"):
            yield self._connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def version(self) -> int:
        """Return a number that changes when another connection has written."""
        with self._explained():
            return self._connection.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        self._connection.close()
