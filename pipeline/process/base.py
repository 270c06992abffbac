"""What a window metric is: the rows of one device and some closed windows in, rows of state tables out.

The process service owns buffers, watermarks, lateness and positions (``windows.py``); a metric owns the
arithmetic and what must be carried from one window into the next of the same device (an open burst, the next
expected sequence number). Any cut of the input into calls gives the same rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import polars as pl


@dataclass(frozen=True, slots=True)
class Closing:
    """Windows of one device that close together.

    ``frames`` hold, in the order of the log, every row of the device that touches [start_ns, end_ns); rows or parts of
    rows outside are not meant: earlier ones were dealt with, later ones will come again. Both bounds are multiples
    of the window. Windows of a device close in order, each instant once. With ``ended`` nothing follows: what is
    open is closed. ``frames`` may be empty then.
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


class WindowMetric(Protocol):
    """Computes the state rows of one family."""

    family: str

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return rows by table name (``schema.STATES``), one per key and 1 s window, for the closed windows."""
        ...

    def close_all(self, closings: Sequence[Closing]) -> dict[str, pl.DataFrame]:
        """Return the rows of several devices' closed windows: what ``close`` gives for each, below each other."""
        ...

    def carry(self, device: str) -> bytes:
        """Return what is carried for ``device``, empty if nothing."""
        ...

    def restore(self, device: str, carry: bytes) -> None:
        """Take over what ``carry`` returned, in this process or another; empty bytes mean nothing is carried."""
        ...

    def counters(self) -> dict[str, float]:
        """Return what was dropped or not measured since the start, by the names of Weft's own counters."""
        ...


class Stateless(ABC):
    """The rest of a ``WindowMetric`` of which each window stands alone."""

    @abstractmethod
    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of one device's closed windows; see ``WindowMetric``."""

    def close_all(self, closings: Sequence[Closing]) -> dict[str, pl.DataFrame]:
        """Return the rows of several devices; see ``WindowMetric``."""
        made = [self.close(closing) for closing in closings]
        return {name: pl.concat([tables[name] for tables in made]) for name in made[0]} if made else {}

    def carry(self, device: str) -> bytes:
        """Return nothing."""
        return b""

    def restore(self, device: str, carry: bytes) -> None:
        """Take over nothing."""
        del device, carry

    def counters(self) -> dict[str, float]:
        """Return nothing: what is refused is in the rows of ``quality``."""
        return {}
