"""The dashboard's access to the store: the newest snapshot, opened once per rerun, with cached results.

A snapshot never changes, so a result is valid for its key (snapshot, query) for ever; the cache is bounded in number and
size. No other file of the dashboard opens the store.
"""

from pathlib import Path

import polars as pl
import streamlit as st

from ..analytics.store.files import STORE
from ..analytics.store.reader import Reader
from ..pipeline.clock import Clock
from .sql import Span

ANSWERS_MAX = 500
ANSWERS_BYTES_MAX = "128mb"


class Board:
    """The store during one rerun; ``close`` it."""

    def __init__(self, data: Path, clock: Clock) -> None:
        """Open the newest snapshot. Raises ``StoreError`` where nothing is published."""
        self.folder = data / STORE
        self.clock = clock
        self._reader = Reader(self.folder)
        self.published_ns = self._reader.published_ns
        self._key = f"{self._reader.snapshot} {self.published_ns}"

    def frame(self, sql: str) -> pl.DataFrame:
        """Return the rows of a query. Raises ``StoreError``."""
        return _answer(self._key, sql, self._reader)

    def row(self, sql: str) -> dict[str, object]:
        """Return the only row of a query, or nothing."""
        rows = self.frame(sql).rows(named=True)
        return rows[0] if rows else {}

    def raw_sample_files(self, span: Span) -> list[str]:
        """Return the files that may hold raw samples of the span. Raises ``StoreError``."""
        return self._reader.raw_sample_files(span.from_ns, span.to_ns)

    def raw_sample_bounds(self) -> tuple[int, int] | None:
        """Return from when to when there are raw samples."""
        return self._reader.raw_sample_bounds()

    def close(self) -> None:
        """Close the snapshot. Idempotent."""
        self._reader.close()


@st.cache_data(max_entries=ANSWERS_MAX, max_size=ANSWERS_BYTES_MAX, show_spinner=False)
def _answer(snapshot: str, sql: str, _reader: Reader) -> pl.DataFrame:
    return _reader.frame(sql)
