"""What tests put into a store without a service."""

import polars as pl

from weft.analytics.rollup import COARSER, Held
from weft.analytics.store import Store
from weft.pipeline.schema import Table


def fold_all(store: Store, table: Table, frame: pl.DataFrame) -> None:
    """Fold rows of 1 s into every coarser table, inside the caller's transaction."""
    held = Held()
    held.add(table, frame)
    for resolution in COARSER:
        held.fold(store, resolution)
        held.folded(resolution)
