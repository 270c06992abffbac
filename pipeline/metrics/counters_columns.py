"""What the families of counters are made of, and their rows as columns of numbers."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl

from ..dictionary import dictionary
from ..schema import FAMILIES, FEC_BINS, WINDOW_NS, counters_of
from .base import Closing

KEYS = {"port": ("source", "port"), "queue": ("source", "port", "queue", "direction")}

# The gauges of a queue, and the columns of the state that hold their largest.
GAUGES = {
    "port": {},
    "queue": {
        "occupancy_bytes": "occupancy_high",
        "watermark_bytes": "watermark_high",
        "headroom_watermark_bytes": "headroom_high",
        "delay_watermark_ns": "delay_high_ns",
    },
}

BINS = tuple(f"fec_bin_{k}" for k in range(FEC_BINS))

# Bits of the line that a unit takes at least: a packet 84 bytes with preamble and gap, a codeword of RS(544,514) 5440 bits.
# A counter whose name says nothing of this, such as a time, is bounded by no line.
_PACKET, _CODEWORD = 672.0, 5440.0
_COSTS = {"bytes": 8.0, "bits": 1.0, "symbol_errors": 1.0, "packets": _PACKET, "frames": _PACKET, "discards": _PACKET, "errors": _PACKET}


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return an array as one that is only read: a kernel is compiled anew for every kind that it meets."""
    array = array.view()
    array.flags.writeable = False
    return array


_NO_NULLS = _read_only(np.zeros(0, np.bool_))
_SPEED_MAX = 2**62


class Plan:
    """The columns of one family: its keys, its counters (``fec_bins`` as one each), their cost, its gauges."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.table = f"{family}_counters"
        self.keys = KEYS[family]
        self.counters = (*(BINS if family == "port" else ()), *counters_of(family))
        self.gauges = GAUGES[family]
        wanted = ("ts", "recv_ts", "epoch", "speed_bps", "oper_up", *self.keys, *counters_of(family), *self.gauges)
        self.plain = [name for name in FAMILIES[family].polars if name in wanted]

    def cost(self, counter: str) -> float:
        """Return how many bits of the line a unit of a counter takes at least, 0 where nothing says it."""
        if counter in (*BINS, "fec_corrected", "fec_uncorrectable"):
            return _CODEWORD
        return next((bits for ending, bits in _COSTS.items() if counter.endswith(ending)), 0.0)


@cache
def _width(source: str, family: str, counter: str) -> tuple[int, bool]:
    """Return the largest value of a counter and whether it stays there."""
    width = dictionary().width(source, family, "fec_bins" if counter in BINS else counter)
    return 2**width.bits - 1, width.saturates


def limits_of(plan: Plan, counter: str, sources: pl.Series) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the largest value and the saturation of a counter for each object, given their sources, and its cost.

    Only a source that the dictionary knows has a width of its own.
    """
    known = dictionary().sources
    named = sources.unique(maintain_order=True).to_list()
    widths = [_width(source if source in known else "", plan.family, counter) for source in named]
    if len(named) == 1 or len(set(widths)) == 1:
        top, saturates = widths[0]
        return np.full(len(sources), top, np.uint64), np.full(len(sources), saturates, np.bool_), plan.cost(counter)
    place = sources.replace_strict(named, range(len(named)), return_dtype=pl.Int64).to_numpy()
    tops = np.array([top for top, _ in widths], np.uint64)[place]
    return tops, np.array([saturates for _, saturates in widths], np.bool_)[place], plan.cost(counter)


class Columns:
    """Rows of several devices of one family."""

    def __init__(self, plan: Plan, frame: pl.DataFrame) -> None:
        self._plan = plan
        self.frame = frame
        self.rows = frame.height
        self.ts = _integers(frame["ts"])
        self.epoch = _integers(frame["epoch"])
        self.recv = _integers(frame["recv_ts"].fill_null(frame["ts"]))
        self.speed = _integers(frame["speed_bps"].clip(upper_bound=_SPEED_MAX))
        up = frame["oper_up"].cast(pl.Int64).fill_null(-1) if "oper_up" in frame.columns else pl.repeat(-1, frame.height, eager=True)
        self.up = up.cast(pl.Int64).to_numpy(writable=True)

    def keys(self) -> pl.DataFrame:
        """Return what each row is of: the device and the family's keys."""
        return self.frame.select("device", *self._plan.keys)

    def numbers(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the values of a counter or gauge, and which rows have one (empty: all); nothing where none has."""
        column = self.frame[name] if name in self.frame.columns else None
        if column is None or column.null_count() == self.rows:
            return None
        if not column.null_count():
            return _read_only(column.to_numpy()), _NO_NULLS
        return _read_only(column.fill_null(0).to_numpy()), _read_only(column.is_not_null().to_numpy())

    def by_window(self) -> Iterator["Columns"]:
        """Yield the rows of each window, in order of time."""
        window = self.ts // WINDOW_NS
        for one in np.unique(window):
            yield Columns(self._plan, self.frame.filter(pl.Series(window == one)))


def columns_of(plan: Plan, closings: Sequence[Closing]) -> Columns:
    """Return the rows that the closings mean. The message's key is the device."""
    devices, frames, bins = [], [], []
    for closing in closings:
        for frame in closing.frames:
            ts = frame["ts"].to_numpy()
            meant = (ts >= closing.start_ns) & (ts < closing.end_ns)
            rows = frame if meant.all() else frame.filter(pl.Series(meant))
            frames.append(rows[plan.plain])
            bins += [rows["fec_bins"]] if "fec_bins" in rows.columns else []
            devices.append(closing.device)
    types = FAMILIES[plan.family].polars
    frame = pl.concat([pl.DataFrame(schema={name: types[name] for name in plan.plain}), *frames], rechunk=True)
    of = np.repeat(np.arange(len(devices)), [rows.height for rows in frames])
    frame = frame.with_columns(pl.Series("device", devices, dtype=pl.String).gather(of), pl.col(*plan.keys).fill_null(""))
    if any(column.null_count() < len(column) for column in bins):
        # They travel as narrow as they can, each message by itself.
        whole = pl.concat([column.cast(types["fec_bins"]) for column in bins])
        frame = frame.with_columns(whole.list.get(k, null_on_oob=True).alias(name) for k, name in enumerate(BINS))
    return Columns(plan, frame)


def portions(closings: Sequence[Closing], rows_max: int) -> Iterator[Sequence[Closing]]:
    """Yield the closings in portions of about ``rows_max`` rows."""
    ends = np.cumsum([sum(frame.height for frame in closing.frames) for closing in closings])
    cuts = np.flatnonzero(np.diff(ends // rows_max)) + 1
    for first, end in pairwise([0, *cuts.tolist(), len(closings)]):
        yield closings[first:end]


def _integers(column: pl.Series) -> np.ndarray:
    return column.fill_null(0).cast(pl.Int64).to_numpy(writable=True)
