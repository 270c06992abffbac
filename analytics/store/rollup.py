"""Roll-ups: rows of 1 s merged to 10 s, 1 min and 1 h, exactly.

A coarser row is the merge of the finer ones: sums, minima, maxima, histograms bucket by bucket. Merging is associative, so
a batch is merged first and then folded into the stored rows; the result does not depend on the batches.

Folding rewrites a coarse row with all its histograms. So finer rows wait in memory, merged, and are folded before they are
read: before a snapshot, before a rule over coarse rows is evaluated, and before the hot tables are cut. Rows folded into one
resolution then wait for the next. Each resolution is a transaction of its own, which takes a third of the memory.

A statistic may be null in some of the merged rows, so a ratio of two needs the sum of one where the other is known: the
conditional sums, which only roll-ups have.
"""

import polars as pl

from ...pipeline import histogram
from ...pipeline.tables.field import RESOLUTIONS_NS, Table
from ...pipeline.tables.states import add_known, merge
from ..views import CONDITIONAL_SUMS, conditional_name
from .ddl import COARSER
from .ddl import stored as as_stored
from .writer import Store

# Merged rows that wait in memory, at most.
PENDING_ROWS_MAX = 20_000

# Rows that are merged with stored ones at a time.
PORTION_ROWS = 1_000

# Pending rows of a table are merged with each other when they are this many times the rows left by the last merge.
_GROWN = 2


class PendingRows:
    """Rows that are stored at one resolution and not yet folded into the next."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, _Pending]] = {resolution: {} for resolution in COARSER}

    def waits(self, resolution: str) -> bool:
        """Whether rows wait to be folded into ``resolution``."""
        return bool(self._tables[resolution])

    @property
    def full(self) -> bool:
        """Whether the pending rows have reached their bound in memory."""
        return any(sum(one.rows for one in waiting.values()) >= PENDING_ROWS_MAX for waiting in self._tables.values())

    def add(self, table: Table, frame: pl.DataFrame, resolution: str = COARSER[0]) -> None:
        """Add finer rows, to be folded into ``resolution`` and the coarser ones."""
        if frame.height:
            self._tables[resolution].setdefault(table.name, _Pending(table, resolution)).add(frame)

    def fold(self, store: Store, resolution: str) -> None:
        """Fold the rows that wait for ``resolution``, inside the caller's transaction; call ``folded`` after the commit."""
        for waiting in self._tables[resolution].values():
            fold(store, waiting.table, resolution, waiting.whole())

    def folded(self, resolution: str) -> None:
        """Pass the rows that have been folded into ``resolution`` on to the next one, if there is one."""
        coarser = COARSER[COARSER.index(resolution) + 1 :]
        done, self._tables[resolution] = self._tables[resolution], {}
        for waiting in done.values() if coarser else ():
            self.add(waiting.table, waiting.whole(), coarser[0])


class _Pending:
    """Pending rows of one table, merged to one resolution."""

    def __init__(self, table: Table, resolution: str) -> None:
        self.table, self.rows = table, 0
        self._resolution_ns = RESOLUTIONS_NS[resolution]
        self._frames: list[pl.DataFrame] = []
        self._left = 0

    def add(self, frame: pl.DataFrame) -> None:
        self._frames.append(merged(self.table, frame, self._resolution_ns))
        self.rows += self._frames[-1].height
        if self.rows > _GROWN * max(self._left, self._frames[-1].height):
            self.whole()

    def whole(self) -> pl.DataFrame:
        if len(self._frames) > 1:
            self._frames = [merged(self.table, pl.concat(self._frames), self._resolution_ns)]
        self.rows = self._left = self._frames[0].height
        return self._frames[0]


def merged(table: Table, frame: pl.DataFrame, resolution_ns: int) -> pl.DataFrame:
    """Return the rows of ``frame`` merged to windows of ``resolution_ns``; ``ts`` is in integer ns."""
    keys = table.having("key")
    sums = {conditional_name(*pair): pair for pair in CONDITIONAL_SUMS.get(table.name, ())}
    frame = frame.with_columns(pl.col("ts") // resolution_ns * resolution_ns, *(_conditional_sum(frame, *pair) for pair in sums.values()))
    number = frame.select(pl.struct(keys).rank("dense").cast(pl.Int64).alias("group")).to_series() - 1
    groups = int(number.max()) + 1 if len(number) else 0  # type: ignore[arg-type]
    added = (*merge(table, keys), *(add_known(pl.col(name)) for name in sums))
    first = frame.with_columns(group=number).group_by("group").agg(*(pl.col(key).first() for key in keys), *added).sort("group")
    order = number.to_numpy()
    hists = [histogram.merge(frame[name], order, groups) for name in table.having("hist")]
    rest = [field.name for field in table.fields if field.role == "attribute"]
    return first.with_columns(*hists, *(pl.lit(None).alias(name) for name in rest)).select(
        *(pl.col(name).cast(dtype) for name, dtype in table.polars.items()), *sums
    )


def _conditional_sum(frame: pl.DataFrame, value: str, known: str) -> pl.Expr:
    """Return ``value`` where ``known`` is known; of rows that are merged already, their conditional sum."""
    name = conditional_name(value, known)
    own = pl.when(pl.col(known).is_not_null()).then(pl.col(value))
    return (pl.coalesce(name, own) if name in frame.columns else own).alias(name)


def fold(store: Store, table: Table, resolution: str, frame: pl.DataFrame) -> None:
    """Add rows that are merged to ``resolution`` to its table, inside the caller's transaction."""
    # In portions: rows in transfer between Polars and DuckDB take several times their own memory.
    for portion in frame.iter_slices(PORTION_ROWS):
        _fold_portion(store, table, resolution, portion)


def _fold_portion(store: Store, table: Table, resolution: str, frame: pl.DataFrame) -> None:
    name = f"base.{table.name}_{resolution}"
    same = " AND ".join(f"stored.{key} IS NOT DISTINCT FROM fresh.{key}" for key in table.having("key"))
    times = frame.select(low=pl.col("ts").min(), high=pl.col("ts").max()).row(0)
    near = "stored.ts BETWEEN make_timestamp_ns({}) AND make_timestamp_ns({})".format(*times)
    fresh = frame.select(pl.col("ts").cast(pl.Datetime("ns")), *(key for key in table.having("key") if key != "ts"))
    stored = store.frame(f"SELECT stored.* FROM {name} AS stored SEMI JOIN fresh ON {same} WHERE {near}", fresh=fresh)
    if stored.height:
        store.frame(f"DELETE FROM {name} AS stored USING fresh WHERE {same} AND {near}", fresh=fresh)
        stored = stored.with_columns(pl.col("ts").cast(pl.Datetime("ns")).cast(pl.Int64))
        both = pl.concat([frame, stored.select(pl.col(column).cast(dtype) for column, dtype in frame.schema.items())])
        frame = merged(table, both, RESOLUTIONS_NS[resolution])
    store.insert(name, as_stored(table, frame))
