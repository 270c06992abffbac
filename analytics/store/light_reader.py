"""Plain rows from a store, for processes that supervise services and must stay small: nothing but DuckDB is imported."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from ...pipeline.errors import StoreError
from .files import CURRENT, HOT

# A query and its parameters in, rows out.
RowQuery = Callable[..., list[tuple[Any, ...]]]


@contextlib.contextmanager
def light_reader(folder: Path | None = None) -> Iterator[RowQuery]:
    """Open the newest published snapshot of the store in ``folder``; without a folder, an empty database to query files with.

    Raises:
        StoreError: nothing is published yet, or a query is wrong; also from the block.
    """
    database = ":memory:" if folder is None else str((folder / CURRENT).resolve())
    try:
        with duckdb.connect(database, read_only=folder is not None) as connection:

            def query(sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
                return connection.execute(sql, list(params)).fetchall()

            yield query
    except duckdb.Error as error:
        raise StoreError(str(error).strip(), "wait until something is published, or see the columns with: DESCRIBE ports_1s") from None


def is_locked(folder: Path) -> bool:
    """Return whether another process writes the store."""
    try:
        duckdb.connect(str(folder / HOT), read_only=True).close()
    except duckdb.IOException as error:
        return "lock" in str(error).lower()
    except duckdb.Error:
        return False
    return False
