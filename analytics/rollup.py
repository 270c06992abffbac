"""Roll-ups: rows of 1 s merged to 10 s, 1 min and 1 h, exactly.

A coarser row is the merge of the finer ones: sums, minima, maxima, histograms bucket by bucket. Merging is
associative, so what a batch brings is merged first and then folded into what is stored, and the result does
not depend on how the rows were batched.

A coarse row is written anew with all its histograms whenever a finer one comes, so what has come is held, merged, and
folded before somebody reads: before a snapshot is published and before a rule over coarse rows is judged.
"""

import numpy as np
import polars as pl

from ..pipeline import histogram
from ..pipeline.schema import RESOLUTIONS_NS, STATES, Table, merge
from .store import Store
from .store import stored as as_stored

COARSER = tuple(name for name in RESOLUTIONS_NS if name != "1s")

# So many merged rows are held at most.
HELD_ROWS_MAX = 20_000


class Held:
    """Rows that are stored at 1 s and wait to be folded into the coarser tables."""

    def __init__(self) -> None:
        self._frames: dict[str, list[pl.DataFrame]] = {}
        self._rows = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def full(self) -> bool:
        """Whether it is time to fold, for memory's sake."""
        return self._rows >= HELD_ROWS_MAX

    def add(self, table: Table, frame: pl.DataFrame) -> None:
        """Hold rows of 1 s, merged to the finest of the coarser resolutions."""
        if frame.height:
            fresh = merged(table, frame, RESOLUTIONS_NS[COARSER[0]])
            self._frames.setdefault(table.name, []).append(fresh)
            self._rows += fresh.height

    def fold(self, store: Store) -> None:
        """Fold everything into the store, inside the caller's transaction; ``clear`` when that is committed."""
        for name, frames in self._frames.items():
            fold(store, STATES[name], pl.concat(frames))

    def clear(self) -> None:
        """Hold nothing any more."""
        self._frames, self._rows = {}, 0


def merged(table: Table, frame: pl.DataFrame, resolution_ns: int) -> pl.DataFrame:
    """Return the rows of ``frame`` merged to windows of ``resolution_ns``; ``ts`` is in integer ns."""
    keys = table.having("key")
    frame = frame.with_columns(pl.col("ts") // resolution_ns * resolution_ns)
    number = frame.select(pl.struct(keys).rank("dense").cast(pl.Int64).alias("group")).to_series() - 1
    groups = int(number.max()) + 1 if len(number) else 0  # type: ignore[arg-type]
    first = (
        frame.with_columns(group=number).group_by("group").agg(*(pl.col(key).first() for key in keys), *merge(table, keys)).sort("group")
    )
    order = number.to_numpy()
    hists = [histogram.merge(frame[name], order, groups) for name in table.having("hist")]
    rest = [field.name for field in table.fields if field.role == "attribute"]
    return first.with_columns(*hists, *(pl.lit(None).alias(name) for name in rest)).select(
        pl.col(name).cast(dtype) for name, dtype in table.polars.items()
    )


def fold(store: Store, table: Table, frame: pl.DataFrame) -> None:
    """Add rows of 1 s to every coarser table, inside the caller's transaction."""
    if not frame.height:
        return
    for resolution in COARSER:
        frame = merged(table, frame, RESOLUTIONS_NS[resolution])
        name = f"base.{table.name}_{resolution}"
        same = " AND ".join(f"stored.{key} IS NOT DISTINCT FROM fresh.{key}" for key in table.having("key"))
        oldest = f"stored.ts >= make_timestamp_ns({int(np.min(frame['ts'].to_numpy()))})"
        fresh = frame.select(pl.col("ts").cast(pl.Datetime("ns")), *(key for key in table.having("key") if key != "ts"))
        stored = store.frame(f"SELECT stored.* FROM {name} AS stored SEMI JOIN fresh ON {same} WHERE {oldest}", fresh=fresh)
        if stored.height:
            store.frame(f"DELETE FROM {name} AS stored USING fresh WHERE {same} AND {oldest}", fresh=fresh)
            stored = stored.with_columns(pl.col("ts").cast(pl.Datetime("ns")).cast(pl.Int64))
            both = pl.concat([frame, stored.select(pl.col(column).cast(dtype) for column, dtype in table.polars.items())])
            store.insert(name, as_stored(table, merged(table, both, RESOLUTIONS_NS[resolution])))
        else:
            store.insert(name, as_stored(table, frame))
