"""A look into a store by plain rows, for who supervises services and should not carry what they compute with."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from ...pipeline.errors import StoreError

# A query and its parameters in, rows out.
Ask = Callable[..., list[tuple[Any, ...]]]


@contextlib.contextmanager
def peek(folder: Path | None = None) -> Iterator[Ask]:
    """Open the newest published snapshot of the store in ``folder``, or nothing, to ask only for files.

    Raises:
        StoreError: nothing is published yet, or a query is wrong; also from the block.
    """
    database = ":memory:" if folder is None else str((folder / "current.duckdb").resolve())
    try:
        with duckdb.connect(database, read_only=folder is not None) as connection:

            def ask(sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
                return connection.execute(sql, list(params)).fetchall()

            yield ask
    except duckdb.Error as error:
        raise StoreError(str(error).strip(), "wait until something is published, or see the columns with: DESCRIBE ports_1s") from None


def is_locked(folder: Path) -> bool:
    """Return whether another process writes the store at present."""
    try:
        duckdb.connect(str(folder / "hot.duckdb"), read_only=True).close()
    except duckdb.IOException as error:
        return "lock" in str(error).lower()
    except duckdb.Error:
        return False
    return False
