"""Latency samples to the statistics of their windows: ``latency``; also used by metrics that measure latency."""

import polars as pl

from .. import histogram
from ..tables.families import FAMILIES
from ..tables.field import WINDOW_NS
from ..tables.states import STATES
from .base import Closing, WindowMetric

_KEY = ("ts", "src", "dst", "kind")

# More than a hundred days is implausible; sums of latencies stay below 2^64.
LATENCY_NS_MAX = 2**53


def statistics(samples: pl.DataFrame, device: str) -> pl.DataFrame:
    """Return rows of ``latency``, one per path, kind and window, from samples ``ts, src, dst, kind, ns``."""
    if samples.is_empty():
        return STATES["latency"].empty()
    groups = samples.group_by(_KEY).agg(
        pl.len().alias("samples"),
        pl.col("ns").sum().alias("total"),
        pl.col("ns").min().alias("low"),
        pl.col("ns").max().alias("high"),
    )
    groups = groups.sort(_KEY).with_row_index("row")
    row = samples.join(groups, on=_KEY, how="left", nulls_equal=True, maintain_order="left")["row"].to_numpy()
    hist = histogram.of_values(row, samples["ns"].to_numpy(), groups.height)
    frame = groups.with_columns(hist, pl.lit(device).alias("device"))
    return STATES["latency"].frame(frame)


class LatencyMetric(WindowMetric):
    """``WindowMetric`` of the family ``latency``."""

    family = "latency"

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of the closed windows; see ``WindowMetric``."""
        columns = (*_KEY, "values_ns")
        rows = pl.concat([FAMILIES["latency"].empty().select(columns), *_widened(closing.rows(columns))])
        samples = rows.select(
            (pl.col("ts") // WINDOW_NS * WINDOW_NS).alias("ts"), pl.col("src", "dst", "kind").fill_null(""), pl.col("values_ns").alias("ns")
        )
        samples = samples.explode("ns").drop_nulls("ns")
        fits = pl.col("ns") <= LATENCY_NS_MAX
        wrong = samples.filter(~fits).group_by("ts").agg(implausible=pl.len())
        quality = wrong.with_columns(device=pl.lit(closing.device), port=pl.lit(""), signal=pl.lit("latency"))
        return {
            "latency": statistics(samples.filter(fits), closing.device),
            "quality": STATES["quality"].frame(quality).fill_null(0),
        }


def _widened(frames: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Return frames with lists of the table's width: messages carry the narrowest."""
    return [frame.with_columns(pl.col("values_ns").cast(pl.List(pl.UInt64))) for frame in frames]
