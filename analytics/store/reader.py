"""Read-only access to the newest published snapshot of a store."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import polars as pl

from ...pipeline.errors import StoreError
from .ddl import literal
from .files import CURRENT, SAMPLES, SEGMENTS, explain

# A segment of raw samples is at most this long, so that its file can be chosen by time.
SEGMENT_NS_MAX = 60_000_000_000

_RAW_FILES_MAX = 200


class Reader:
    """The newest published snapshot; cheap to open, for one thread.

    With ``sandbox`` the connection cannot leave the store: no other file, no network, no extension; settings are locked,
    memory and threads bounded. Only the file itself is read-only: the caller must refuse statements other than queries
    (``analytics/console.py``), because DuckDB can write into a directory that it may read.
    """

    def __init__(self, folder: Path, *, sandbox: bool = False, memory_bytes_max: int = 256 * 1024 * 1024) -> None:
        self._folder = folder
        link = folder / CURRENT
        if not link.exists():
            raise StoreError(f"nothing is published in {folder} yet", "start 'weft up' or 'weft replay' with this --data and try again")
        self.snapshot = link.resolve()
        # One connection per reader: two connections of one process to one file share their settings.
        try:
            self._connection = duckdb.connect(str(self.snapshot), read_only=True)
        except duckdb.Error as error:
            raise explain(error, folder) from None
        self._connection.execute("SET TimeZone = 'UTC'")
        if sandbox:
            for setting in (
                f"memory_limit = '{memory_bytes_max}B'",
                "threads = 2",
                "temp_directory = ''",
                "autoinstall_known_extensions = false",
                "autoload_known_extensions = false",
                "allow_community_extensions = false",
                f"allowed_directories = [{', '.join(literal(f'{folder.resolve()}/{name}/') for name in (SEGMENTS, SAMPLES))}]",
                "enable_external_access = false",
                "lock_configuration = true",
            ):
                self._connection.execute(f"SET {setting}")

    @property
    def published_ns(self) -> int:
        """When this snapshot was published."""
        return self.snapshot.stat().st_mtime_ns

    def frame(self, sql: str, params: Sequence[object] = (), *, rows_max: int | None = None) -> pl.DataFrame:
        """Return the result of a query. Raises ``StoreError`` with DuckDB's message for a wrong query."""
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
            hint = f"publish it again where it is now: weft analyze --seconds 3 --data {self._folder.resolve().parent}"
            raise StoreError("its folder was moved or copied, and the views still name the files where they were", hint) from None
        except duckdb.Error as error:
            unknown = isinstance(error, (duckdb.BinderException, duckdb.CatalogException))
            hint = "see the views with: SHOW TABLES, their columns with: DESCRIBE and the name" if unknown else "correct the query"
            raise StoreError(_in_one_line(error), hint) from None

    def raw_sample_files(self, from_ns: int, to_ns: int) -> list[str]:
        """Return the files that may hold raw samples between two instants."""
        rows = self._connection.execute(
            """SELECT path FROM base.ring WHERE from_ts < make_timestamp_ns(?) AND to_ts >= make_timestamp_ns(?)
            ORDER BY path LIMIT ?""",
            [to_ns, from_ns - SEGMENT_NS_MAX, _RAW_FILES_MAX],
        )
        return [str(self._folder.resolve() / SAMPLES / path) for (path,) in rows.fetchall()]

    def raw_sample_bounds(self) -> tuple[int, int] | None:
        """Return from when to when there are raw samples, in UTC ns."""
        row = self._connection.execute("SELECT epoch_ns(min(from_ts)), epoch_ns(max(to_ts)) FROM base.ring").fetchone()
        return (row[0], row[1]) if row and row[0] is not None else None

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
    """Return DuckDB's message with the number of the line that it quotes, without the line itself."""
    words, _, quoted = str(error).strip().partition("\n\nLINE ")
    line = f" (line {quoted.partition(':')[0]})" if quoted else ""
    return " ".join(words.split()) + line
