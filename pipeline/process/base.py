"""The contract of a window metric: rows of one device and its closed windows in, rows of state tables out.

The process service owns buffers, watermarks, lateness and positions (``windows.py``). A metric owns the arithmetic, the extent of
its rows in time, and the state that it carries from one window to the next of the same device (an open burst, the next expected
sequence number). Any split of the input into calls gives the same rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

# Plausible times: 1970 to 2116. Sums of times stay below 2^63.
TS_NS_MAX = 2**62


@dataclass(frozen=True, slots=True)
class Closing:
    """Windows of one device that close together.

    ``frames`` hold, in the order of the log, every row of the device that touches [start_ns, end_ns). The metric ignores rows and
    parts of rows outside: earlier ones are already computed, later ones come again. Both bounds are multiples of the window.
    Windows of a device close in order, each exactly once. With ``ended`` no rows follow: the metric closes what is open, and
    ``frames`` may be empty.
    """

    device: str
    start_ns: int
    end_ns: int
    frames: Sequence[pl.DataFrame]
    ended: bool = False

    def rows(self, columns: Sequence[str]) -> list[pl.DataFrame]:
        """Return these columns of the frames' rows that are instants within the windows."""
        within = (pl.col("ts") >= self.start_ns) & (pl.col("ts") < self.end_ns)
        return [frame.select(columns).filter(within) for frame in self.frames]


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a frame's rows in time; all arrays (rows,) int64, but ``valid`` bool.

    ``start`` and ``end`` (exclusive) in ns, ``interval`` in ns of one sample, ``count`` of samples. Where ``valid`` is false, the
    time or the interval is impossible and the other values mean nothing.
    """

    start: np.ndarray
    end: np.ndarray
    interval: np.ndarray
    count: np.ndarray
    valid: np.ndarray


class WindowMetric(ABC):
    """Computes the state rows of one family. By default rows are instants, and each window stands alone."""

    family: str

    @abstractmethod
    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of one device's closed windows by table name, one per key and 1 s window."""

    def close_all(self, closings: Sequence[Closing]) -> dict[str, pl.DataFrame]:
        """Return the rows of several devices' closed windows: those of ``close``, concatenated."""
        made = [self.close(closing) for closing in closings]
        return {name: pl.concat([tables[name] for tables in made]) for name in made[0]} if made else {}

    def extent(self, frame: pl.DataFrame) -> Extent:
        """Return the extent of the rows of ``frame``, which has at least one."""
        ts = integers(frame["ts"], -1)
        one = np.ones(len(ts), np.int64)
        return Extent(ts, ts + one, one, one, (ts >= 0) & (ts < TS_NS_MAX))

    def without_late(self, frame: pl.DataFrame, extent: Extent, late: np.ndarray) -> pl.DataFrame:
        """Return ``frame`` without the first ``late[r]`` samples of each row r that keeps some; rows that lose all are filtered later."""
        del extent, late
        return frame

    def signal(self) -> pl.Expr:
        """Return the signal under which table ``quality`` counts a refused row."""
        return pl.lit(self.family)

    def carry(self, device: str) -> bytes:
        """Return the state that is carried for ``device``, empty if there is none."""
        del device
        return b""

    def restore(self, device: str, carry: bytes) -> None:
        """Replace the state of ``device`` by what ``carry`` returned, in this process or another; empty bytes clear it."""
        del device, carry

    def counters(self) -> dict[str, float]:
        """Return what was dropped or not measured since the start, by the names of Weft's own counters."""
        return {}


def integers(column: pl.Series, unknown: int) -> np.ndarray:
    """Return an integer column as an array, nulls as ``unknown``."""
    return (column.fill_null(unknown) if column.null_count() else column).to_numpy()
