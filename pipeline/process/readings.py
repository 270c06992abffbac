"""Samples without a column in another family, as one row per object and window: ``readings``."""

import polars as pl

from ..tables.families import FAMILIES
from ..tables.field import WINDOW_NS
from ..tables.states import STATES, merge
from .base import Closing, WindowMetric

_COLUMNS = ("ts", "source", "kind", "object", "name", "value", "text")


class ReadingMetric(WindowMetric):
    """``WindowMetric`` of the family ``reading``."""

    family = "reading"

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of one device's closed windows; see ``WindowMetric``."""
        table = STATES["readings"]
        rows = pl.concat([FAMILIES["reading"].empty().select(_COLUMNS), *closing.rows(_COLUMNS)]).select(
            (pl.col("ts") // WINDOW_NS * WINDOW_NS).alias("ts"),
            pl.lit(closing.device).alias("device"),
            pl.col("source", "kind", "object", "name").fill_null(""),
            pl.lit(1, pl.UInt64).alias("samples"),
            # NaN is no value, and would hide the others.
            *(pl.col("value").fill_nan(None).alias(name) for name in ("low", "high")),
            "text",
        )
        grouped = rows.group_by(table.having("key")).agg(merge(table, table.having("key"))).sort(table.having("key"))
        return {"readings": table.frame(grouped)}
