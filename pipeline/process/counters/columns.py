"""The columns of the counter families, and their rows as arrays of numbers."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl

from ...dictionary import dictionary
from ...tables.families import FAMILIES, counters_of
from ...tables.field import FEC_BINS, WINDOW_NS
from ..base import Closing
from .kernel import CounterValues

KEYS = {
    "port": ("source", "port"),
    "queue": ("source", "port", "queue", "direction"),
    "nic": ("source", "port"),
    "nvlink": ("source", "gpu", "link"),
}

# Gauges, and the state columns of their largest values.
GAUGES = {
    "queue": {
        "occupancy_bytes": "occupancy_high",
        "watermark_bytes": "watermark_high",
        "headroom_watermark_bytes": "headroom_high",
        "delay_watermark_ns": "delay_high_ns",
    },
}

BINS = tuple(f"fec_bin_{k}" for k in range(FEC_BINS))

# Least bits of the line per unit: a packet takes 84 bytes with preamble and gap, a codeword of RS(544,514) 5440 bits. Counters with
# other names, such as times, have no line that bounds them.
_PACKET, _CODEWORD = 672.0, 5440.0
_COSTS = {"bytes": 8.0, "bits": 1.0, "symbol_errors": 1.0, "packets": _PACKET, "frames": _PACKET, "discards": _PACKET, "errors": _PACKET}


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view: a kernel compiles for every kind of array, so all are of this kind."""
    array = array.view()
    array.flags.writeable = False
    return array


_NO_NULLS = _read_only(np.zeros(0, np.bool_))
_SPEED_MAX = 2**62


class CounterPlan:
    """The columns of one family: its keys, its counters (``fec_bins`` as one each), their cost, its gauges."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.table = f"{family}_counters"
        self.keys = KEYS[family]
        self.counters = (*(BINS if family == "port" else ()), *counters_of(family))
        self.gauges = GAUGES.get(family, {})
        wanted = ("ts", "recv_ts", "epoch", "speed_bps", "oper_up", *self.keys, *counters_of(family), *self.gauges)
        self.plain = [name for name in FAMILIES[family].polars if name in wanted]

    def place(self, keys: pl.DataFrame) -> pl.Series:
        """Return the port of each object in table ``quality``; a scale-up link by its GPU and number."""
        if "port" in keys.columns:
            return keys["port"]
        return keys.select(
            pl.format("gpu{}{}", "gpu", pl.when(pl.col("link") != "").then("/" + pl.col("link")).otherwise(pl.lit("")))
        ).to_series()

    def cost(self, counter: str) -> float:
        """Return the least bits of the line per unit of a counter, 0 if unknown."""
        if counter in (*BINS, "fec_corrected", "fec_uncorrectable"):
            return _CODEWORD
        return next((bits for ending, bits in _COSTS.items() if counter.endswith(ending)), 0.0)


@cache
def _widths(family: str, source: str) -> dict[str, tuple[int, bool]]:
    """Return the largest value of each counter, and whether it saturates."""
    known = {name: dictionary().width(source, family, "fec_bins" if name in BINS else name) for name in CounterPlan(family).counters}
    return {name: (2**width.bits - 1, width.saturates) for name, width in known.items()}


class Widths:
    """The widths of the counters of some objects, given the source of each."""

    def __init__(self, plan: CounterPlan, sources: pl.Series) -> None:
        named = sources.unique(maintain_order=True)
        # Only a collector that the dictionary knows has widths of its own.
        known = dictionary().collectors
        self._widths = [_widths(plan.family, source if source in known else "") for source in named.to_list()]
        self._place = sources.replace_strict(named, pl.int_range(len(named), eager=True)).to_numpy() if len(named) > 1 else None
        self._count = len(sources)
        self._made: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, counter: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest value of a counter and whether it saturates, for each object."""
        widths = tuple(one[counter] for one in self._widths)
        if widths not in self._made:
            tops, saturates = np.array([top for top, _ in widths], np.uint64), np.array([stays for _, stays in widths], np.bool_)
            place = np.zeros(self._count, np.int64) if self._place is None else self._place
            self._made[widths] = tops[place], saturates[place]
        return self._made[widths]


class CounterColumns:
    """Rows of several devices of one family."""

    def __init__(self, plan: CounterPlan, frame: pl.DataFrame) -> None:
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
        """Return the object of each row: the device and the family's keys."""
        return self.frame.select("device", *self._plan.keys)

    def numbers(self, name: str) -> CounterValues | None:
        """Return the values of a counter or gauge, ``None`` if no row has one."""
        column = self.frame[name] if name in self.frame.columns else None
        if column is None or column.null_count() == self.rows:
            return None
        if not column.null_count():
            return CounterValues(_read_only(column.to_numpy()), _NO_NULLS)
        return CounterValues(_read_only(column.fill_null(0).to_numpy()), _read_only(column.is_not_null().to_numpy()))

    def by_window(self) -> Iterator["CounterColumns"]:
        """Yield the rows of each window, in order of time."""
        window = self.ts // WINDOW_NS
        for one in np.unique(window):
            yield CounterColumns(self._plan, self.frame.filter(pl.Series(window == one)))


def columns_of(plan: CounterPlan, closings: Sequence[Closing]) -> CounterColumns:
    """Return the rows inside the closings. The message's key is the device."""
    devices, frames, bins = [], [], []
    for closing in closings:
        for frame in closing.frames:
            rows = _within(frame, closing)
            frames.append(rows[plan.plain])
            bins += [rows["fec_bins"]] if "fec_bins" in rows.columns else []
            devices.append(closing.device)
    types = FAMILIES[plan.family].polars
    frame = pl.concat([pl.DataFrame(schema={name: types[name] for name in plan.plain}), *frames], rechunk=True)
    of = np.repeat(np.arange(len(devices)), [rows.height for rows in frames])
    unknown = [frame[name].fill_null("") for name in plan.keys if frame[name].null_count()]
    frame = frame.with_columns(pl.Series("device", devices, dtype=pl.String).gather(of), *unknown)
    if any(column.null_count() < len(column) for column in bins):
        # Each message carries them in its own narrowest width.
        whole = pl.concat([column.cast(types["fec_bins"]) for column in bins])
        frame = frame.with_columns(whole.list.get(k, null_on_oob=True).alias(name) for k, name in enumerate(BINS))
    return CounterColumns(plan, frame)


def _within(frame: pl.DataFrame, closing: Closing) -> pl.DataFrame:
    """Return the rows of the closed windows; usually they are contiguous, and nothing is copied."""
    ts = frame["ts"].to_numpy()
    inside = (ts >= closing.start_ns) & (ts < closing.end_ns)
    count = int(np.count_nonzero(inside))
    if count == len(inside):
        return frame
    first = int(inside.argmax()) if count else 0
    return frame[first : first + count] if inside[first : first + count].all() else frame.filter(pl.Series(inside))


def portions(closings: Sequence[Closing], rows_max: int) -> Iterator[Sequence[Closing]]:
    """Yield the closings in portions of about ``rows_max`` rows."""
    ends = np.cumsum([sum(frame.height for frame in closing.frames) for closing in closings])
    cuts = np.flatnonzero(np.diff(ends // rows_max)) + 1
    for first, end in pairwise([0, *cuts.tolist(), len(closings)]):
        yield closings[first:end]


def _integers(column: pl.Series) -> np.ndarray:
    return column.fill_null(0).cast(pl.Int64).to_numpy(writable=True)
