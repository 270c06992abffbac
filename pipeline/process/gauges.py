"""From readings of GPUs to what they were in a window: ``gpu_gauges``, and in ``quality`` what cannot be.

Shares are kept in billionths and power in milliwatts, as whole numbers: so sums are equal to the last bit, however readings are cut
into messages. Readings of one GPU at one time are one, gauge by gauge the largest value.
"""

import polars as pl

from ..tables.families import FAMILIES
from ..tables.field import WINDOW_NS
from ..tables.states import STATES, merge
from .base import Closing, Stateless

# By gauge: its column, parts of a unit, the most that it can be.
_GAUGES = {
    "sm_active": ("sm_active_ratio", 10**9, 1.0),
    "tensor_active": ("tensor_active_ratio", 10**9, 1.0),
    "power": ("power_w", 10**3, 1e5),
}
_KEYS = ("ts", "source", "gpu")
_COLUMNS = (*_KEYS, *(column for column, _, _ in _GAUGES.values()), "xid")


class GpuMetric(Stateless):
    """``WindowMetric`` of the family ``gpu``."""

    family = "gpu"

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of the closed windows; see ``WindowMetric``."""
        table = STATES["gpu_gauges"]
        rows = pl.concat([FAMILIES["gpu"].empty().select(_COLUMNS), *closing.rows(_COLUMNS)], how="vertical_relaxed")
        rows = rows.with_columns(pl.col("source", "gpu").fill_null(""), wrong=pl.any_horizontal(map(_impossible, _GAUGES)))
        # Rows of one time that tell different gauges are parts of one reading.
        told = [column for column, _, _ in _GAUGES.values()] + ["xid"]
        readings = rows.group_by(_KEYS).agg(
            *(_parts(gauge).max().alias(gauge) for gauge in _GAUGES),
            pl.col("xid").max(),
            pl.col("wrong").any(),
            twice=pl.max_horizontal(*(pl.col(column).count().cast(pl.Int64) - 1 for column in told), 0),
        )
        cells = readings.with_columns(ts=pl.col("ts") // WINDOW_NS * WINDOW_NS, device=pl.lit(closing.device))
        one = pl.lit(1, pl.UInt64)
        parts = cells.with_columns(
            one.alias("readings"),
            *(pl.col(gauge).alias(f"{gauge}_{what}") for gauge in _GAUGES for what in ("total", "low", "high")),
            *(pl.when(pl.col(gauge).is_not_null()).then(one).otherwise(0).alias(f"{gauge}_count") for gauge in _GAUGES),
            # Zero is the driver's word for no error.
            xid_readings=(pl.col("xid") > 0).cast(pl.UInt64),
            xid=pl.when(pl.col("xid") > 0).then("xid"),
        )
        keys = table.having("key")
        made = parts.group_by(keys).agg(merge(table, keys)).sort(keys)
        return {"gpu_gauges": made.select(pl.col(name).cast(dtype) for name, dtype in table.polars.items()), "quality": _quality(cells)}


def _impossible(gauge: str) -> pl.Expr:
    column, _, most = _GAUGES[gauge]
    return (pl.col(column).is_nan() | ~pl.col(column).is_between(0, most)).fill_null(False)


def _parts(gauge: str) -> pl.Expr:
    """Return a gauge in whole parts of its unit, null where it is not read or cannot be."""
    column, parts, _ = _GAUGES[gauge]
    return pl.when(~_impossible(gauge)).then((pl.col(column) * parts).round()).cast(pl.UInt64)


def _quality(cells: pl.DataFrame) -> pl.DataFrame:
    table = STATES["quality"]
    bad = cells.filter(pl.col("wrong") | (pl.col("twice") > 0))
    rows = bad.group_by("ts", "device", port="gpu" + pl.col("gpu")).agg(
        duplicates=pl.col("twice").sum(), implausible=pl.col("wrong").sum(), signal=pl.lit("gpu").first()
    )
    rest = [pl.lit(0).alias(name) for name in table.polars if name not in rows.columns]
    return rows.with_columns(rest).select(pl.col(name).cast(dtype) for name, dtype in table.polars.items())
