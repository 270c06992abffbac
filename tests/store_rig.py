"""Helpers that insert rows into a store without a service."""

import polars as pl

from weft.analytics.store.rollup import COARSER, PendingRows
from weft.analytics.store.writer import Store
from weft.pipeline.tables.field import Table


def fold_all(store: Store, table: Table, frame: pl.DataFrame) -> None:
    """Fold rows of 1 s into every coarser table, inside the caller's transaction."""
    held = PendingRows()
    held.add(table, frame)
    for resolution in COARSER:
        held.fold(store, resolution)
        held.folded(resolution)
