"""GPU samples to the statistics of their windows: ``gpu_gauges``, and implausible values in ``quality``.

Ratios are stored in billionths and power in milliwatts, as integers, so sums are bit-identical for any split into messages. Samples
of one GPU at one time are merged: each gauge takes its largest value.
"""

import polars as pl

from ..tables.families import FAMILIES
from ..tables.field import WINDOW_NS
from ..tables.states import STATES, merge
from .base import Closing, WindowMetric

# By gauge: its column, parts of a unit, its largest possible value.
_GAUGES = {
    "sm_active": ("sm_active_ratio", 10**9, 1.0),
    "tensor_active": ("tensor_active_ratio", 10**9, 1.0),
    "power": ("power_w", 10**3, 1e5),
}
_KEYS = ("ts", "source", "gpu")
_COLUMNS = (*_KEYS, *(column for column, _, _ in _GAUGES.values()), "xid")


class GpuMetric(WindowMetric):
    """``WindowMetric`` of the family ``gpu``."""

    family = "gpu"

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of the closed windows; see ``WindowMetric``."""
        table = STATES["gpu_gauges"]
        rows = pl.concat([FAMILIES["gpu"].empty().select(_COLUMNS), *closing.rows(_COLUMNS)], how="vertical_relaxed")
        rows = rows.with_columns(pl.col("source", "gpu").fill_null(""), wrong=pl.any_horizontal(map(_implausible, _GAUGES)))
        # Rows of one time with different gauges are parts of one sample.
        columns = [column for column, _, _ in _GAUGES.values()] + ["xid"]
        samples = rows.group_by(_KEYS).agg(
            *(_parts(gauge).max().alias(gauge) for gauge in _GAUGES),
            pl.col("xid").max(),
            pl.col("wrong").any(),
            twice=pl.max_horizontal(*(pl.col(column).count().cast(pl.Int64) - 1 for column in columns), 0),
        )
        cells = samples.with_columns(ts=pl.col("ts") // WINDOW_NS * WINDOW_NS, device=pl.lit(closing.device))
        one = pl.lit(1, pl.UInt64)
        parts = cells.with_columns(
            one.alias("readings"),
            *(pl.col(gauge).alias(f"{gauge}_{what}") for gauge in _GAUGES for what in ("total", "low", "high")),
            *(pl.when(pl.col(gauge).is_not_null()).then(one).otherwise(0).alias(f"{gauge}_count") for gauge in _GAUGES),
            # The driver reports no error as zero.
            xid_readings=(pl.col("xid") > 0).cast(pl.UInt64),
            xid=pl.when(pl.col("xid") > 0).then("xid"),
        )
        keys = table.having("key")
        made = parts.group_by(keys).agg(merge(table, keys)).sort(keys)
        return {"gpu_gauges": table.frame(made), "quality": _quality(cells)}


def _implausible(gauge: str) -> pl.Expr:
    column, _, most = _GAUGES[gauge]
    return (pl.col(column).is_nan() | ~pl.col(column).is_between(0, most)).fill_null(False)


def _parts(gauge: str) -> pl.Expr:
    """Return a gauge in integer parts of its unit, null where it is missing or implausible."""
    column, parts, _ = _GAUGES[gauge]
    return pl.when(~_implausible(gauge)).then((pl.col(column) * parts).round()).cast(pl.UInt64)


def _quality(cells: pl.DataFrame) -> pl.DataFrame:
    bad = cells.filter(pl.col("wrong") | (pl.col("twice") > 0))
    rows = bad.group_by("ts", "device", port="gpu" + pl.col("gpu")).agg(
        duplicates=pl.col("twice").sum(), implausible=pl.col("wrong").sum(), signal=pl.lit("gpu").first()
    )
    return STATES["quality"].frame(rows).fill_null(0)
