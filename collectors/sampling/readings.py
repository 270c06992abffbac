"""Counter samples to rows: segments of samples on the grid of the poll, and one row of counters per span.

Shared by high-frequency telemetry and OTLP. Counter samples come as columns; two that are one slot apart give a sample, anything else
ends the segment and is a gap, in samples. Without gaps the samples of a counter add up to its last value minus its first. Every series
also goes into the rows of its family once per span: counters as they are (wraps of narrow ones added), occupancies and watermarks by
their highest value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from ...pipeline import histogram
from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import masked
from ..base import Batch
from . import kernel
from .sai import Series

# The length of a window; a sample that covers more belongs to none.
INTERVAL_NS_MAX = NS_PER_S
_FEC_BINS = "fec_bins"
_FAMILIES = ("port", "queue", "reading")


@dataclass(frozen=True, slots=True)
class Pace:
    """The interval of the poll (0: detect it), the span of the rows of counters, and line rates by port."""

    interval_ns: int = 0
    span_ns: int = 1000 * NS_PER_MS
    line_rates_bps: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The series of one device and their carry from call to call.

    Series come in *tracks*: those of one track are polled together, with one time for all. Memory is that of the series.
    """

    def __init__(self, source: str, device: str, pace: Pace) -> None:
        self.source, self.device, self._pace = source, device, pace
        self.series: list[Series] = []
        self.counts = np.zeros(len(kernel.COUNTS), np.int64)
        self.samples = 0
        self.unknown = 0
        self._tracks = 0
        self._state = _empty_state()
        self._rows: dict[tuple[str, str, str, str], int] = {}
        self._columns: dict[str, int] = {}
        self._described: pl.DataFrame | None = None
        self._keys: dict[tuple[int, int, str], int] = {}

    def totals(self) -> dict[str, int]:
        """Return counts since the start: samples, and ``kernel.COUNTS``."""
        return {"samples": self.samples, **dict(zip(kernel.COUNTS, self.counts.tolist(), strict=True))}

    @property
    def interval_ns(self) -> int:
        """The interval of the first track, 0 while it is not known."""
        return int(self._state.tracks[0, kernel.INTERVAL]) if self._tracks else 0

    def add(self, series: Sequence[Series]) -> int:
        """Add a track and return its number."""
        track, first, width = self._tracks, len(self.series), len(series)
        self._state = _grown(self._state, track + 1, first + width)
        self._tracks += 1
        self.series += series
        self.unknown += sum(not one.known for one in series)
        self._described = None
        state, mine = self._state, slice(first, first + width)
        state.tracks[track] = 0
        state.tracks[track, [kernel.LAST, kernel.BUCKET]] = -1
        state.tracks[track, kernel.INTERVAL] = self._pace.interval_ns
        state.first[track], state.width[track] = first, width
        state.kind[mine] = [one.kind for one in series]
        state.sampled[mine] = [one.sampled for one in series]
        state.bits[mine] = [one.bits for one in series]
        return track

    def look(self, times: np.ndarray) -> None:
        """Detect the interval of the first track from more times than one call of ``feed`` brings."""
        if self.interval_ns == 0:
            kernel.set_interval(self._state.tracks[0], kernel.detect(times, 0, len(times)))

    def adopt(self, other: "Ledger", times: np.ndarray) -> bool:
        """Copy the carry of the series that both have in their first track; return whether that was possible.

        It is possible where both have the same interval and ``other`` ends before ``times``. So no sample is lost when a device sends
        the same counters under a new template. ``other`` does not change.
        """
        mine, theirs = self._state, other._state
        interval = self.interval_ns or int(kernel.detect(times, 0, len(times)))
        last = int(theirs.tracks[0, kernel.LAST])
        if not len(times) or not 0 <= last < times[0] or interval != other.interval_ns:
            return False
        here, there = self._index(), other._index()
        shared = np.array([(here[key], there[key]) for key in here.keys() & there.keys()], np.int64)
        if not len(shared):
            return False
        columns = [kernel.LAST, kernel.SLOT, kernel.PHASE, kernel.INTERVAL]
        mine.tracks[0, columns] = theirs.tracks[0, columns]
        # Registers of another width have another base: a new epoch for these series.
        same = mine.bits[shared[:, 0]] == theirs.bits[shared[:, 1]]
        mine.epoch[shared[:, 0]] = theirs.epoch[shared[:, 1]] + ~same
        for name in ("last", "base", "known"):
            getattr(mine, name)[shared[same, 0]] = getattr(theirs, name)[shared[same, 1]]
        return True

    def _index(self) -> dict[tuple[int, int, str], int]:
        """Return the index of each series by type, statistic and object."""
        if len(self._keys) != len(self.series):
            self._keys = {(one.type, one.stat, one.object): index for index, one in enumerate(self.series)}
        return self._keys

    def feed(
        self,
        ids: np.ndarray,
        edges: np.ndarray,
        times: np.ndarray,
        starts: np.ndarray,
        strides: np.ndarray,
        values: np.ndarray,
        recv_ts: int | None,
    ) -> list[Batch]:
        """Return the rows of some counter samples; see ``kernel.Readings`` for the arrays.

        ``recv_ts`` is that of the rows; ``None``: their own time, as in recordings.
        """
        before = np.empty((len(ids), 2), np.int64)
        verdicts, slots, grids = np.empty(len(times), np.int64), np.empty(len(times), np.int64), np.empty(len(times), np.int64)
        readings = kernel.Readings(ids, edges, times, starts, strides, values, before, verdicts, slots, grids)
        kernel.place(readings, self._state, INTERVAL_NS_MAX, self.counts)
        made = kernel.sample(readings, self._state)
        rows = kernel.count(readings, self._state, self._pace.span_ns)
        self.samples += len(made.values)
        return [*self._gaps(made.missed, recv_ts), *self._segments(made, recv_ts), *self._counters(*rows, recv_ts)]

    def flush(self, recv_ts: int | None) -> list[Batch]:
        """End the spans that have begun and return their rows."""
        return self._counters(*kernel.flush(self._state, self._tracks), recv_ts)

    def _segments(self, samples: kernel.SampledSegments, recv_ts: int | None) -> list[Batch]:
        segments = samples.segments
        if not len(segments):
            return []
        ids, ts = segments[:, 0], segments[:, 1] * segments[:, 2]
        offsets = np.concatenate(([0], np.cumsum(segments[:, 4])))
        described = self._describe()
        made: dict[str, Any] = {name: described[name].gather(ids) for name in ("port", "signal", "speed_bps")}
        made |= {"queue": described["sampled_queue"].gather(ids), "values": histogram.lists("values", offsets, pl.Series(samples.values))}
        made |= {"ts": ts, "epoch": segments[:, 3].copy(), "interval_ns": segments[:, 2].copy()}
        frame = self._frame("burst_sample", made, recv_ts)
        return [Batch("burst_sample", frame if (np.diff(ts) >= 0).all() else frame.sort("ts", maintain_order=True))]

    def _describe(self) -> pl.DataFrame:
        """Return a row for each series: its names, its row of counters, and the number of its column."""
        if self._described is not None:
            return self._described
        for one in self.series:
            self._rows.setdefault((one.family, one.port, one.queue, one.direction), len(self._rows))
            self._columns.setdefault(one.column, len(self._columns))
        names = ("port", "queue", "direction", "sampled_queue", "signal", "object_kind", "object", "column")
        rates = self._pace.line_rates_bps
        numbers = {
            "speed_bps": [rates.get(one.port, rates.get("")) for one in self.series],
            "family": [_FAMILIES.index(one.family) for one in self.series],
            "row": [self._rows[one.family, one.port, one.queue, one.direction] for one in self.series],
            "number": [self._columns[one.column] for one in self.series],
            "index": [one.index for one in self.series],
        }
        texts = {name: pl.Series([getattr(one, name) for one in self.series], dtype=pl.String) for name in names}
        types = {"speed_bps": pl.UInt64}
        self._described = pl.DataFrame(
            texts | {name: pl.Series(values, dtype=types.get(name, pl.Int64)) for name, values in numbers.items()}
        )
        return self._described

    def _counters(self, rows: np.ndarray, values: np.ndarray, epochs: np.ndarray, recv_ts: int | None) -> list[Batch]:
        """Return the values of some tracks as rows of their families."""
        if not len(rows):
            return []
        state, tracks = self._state, rows[:, 0]
        lengths = state.width[tracks]
        ids = np.repeat(state.first[tracks] - rows[:, 2], lengths) + np.arange(len(values))
        ts = np.repeat(rows[:, 1], lengths)
        family = self._describe()["family"].to_numpy()[ids]
        batches = []
        for number, name in enumerate(_FAMILIES):
            mine = family == number
            if mine.any():
                make = self._readings if name == "reading" else self._wide
                batches.append(Batch(name, make(name, ids[mine], ts[mine], values[mine], epochs[mine], recv_ts)))
        return batches

    def _wide(
        self, family: str, ids: np.ndarray, ts: np.ndarray, values: np.ndarray, epochs: np.ndarray, recv_ts: int | None
    ) -> pl.DataFrame:
        """Return one row per object and time, a column for each counter."""
        described = self._describe()
        moment = np.unique(ts, return_inverse=True)[1]
        keys = moment * len(self._rows) + described["row"].to_numpy()[ids]
        _, first, row = np.unique(keys, return_index=True, return_inverse=True)
        height = len(first)
        epoch = np.zeros(height, np.int64)
        np.maximum.at(epoch, row, epochs)
        made: dict[str, Any] = {name: described[name].gather(ids[first]) for name in ("port", "queue", "direction", "speed_bps")}
        made |= {"ts": ts[first], "epoch": epoch}
        numbers, names = described["number"].to_numpy()[ids], list(self._columns)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            if names[number] == _FEC_BINS:
                made[_FEC_BINS] = _bins(described["index"].to_numpy()[ids[mine]], row[mine], values[mine], height)
            else:
                made[names[number]] = _scattered(row[mine], values[mine], height)
        return self._frame(family, made, recv_ts)

    def _readings(
        self, family: str, ids: np.ndarray, ts: np.ndarray, values: np.ndarray, epochs: np.ndarray, recv_ts: int | None
    ) -> pl.DataFrame:
        """Return one row per series and time."""
        described = self._describe()
        names = {"kind": "object_kind", "object": "object", "name": "column"}
        made = {name: described[column].gather(ids) for name, column in names.items()}
        made |= {"ts": ts, "epoch": epochs, "value": values.astype(np.float64), "count": values}
        return self._frame(family, made, recv_ts)

    def _gaps(self, missed: np.ndarray, recv_ts: int | None) -> list[Batch]:
        found = [index for index in range(len(kernel.MISSED)) if missed[index, 0]]
        if not found:
            return []
        made = {"ts": missed[found, 1], "epoch": 0, "what": "samples", "missed": missed[found, 0]}
        return [Batch("gap", self._frame("gap", made | {"reason": [kernel.MISSED[index] for index in found]}, recv_ts))]

    def _frame(self, family: str, made: dict[str, Any], recv_ts: int | None) -> pl.DataFrame:
        common = {"recv_ts": made["ts"] if recv_ts is None else recv_ts, "source": self.source, "device": self.device}
        return FAMILIES[family].frame(made | common)


def _bins(index: np.ndarray, row: np.ndarray, values: np.ndarray, height: int) -> pl.Series:
    """Return a list of bins for each row that has any, all as long as the highest bin requires."""
    length = int(index.max()) + 1
    flat = _scattered(row * length + index, values, height * length)
    found = np.zeros(height, bool)
    found[row] = True
    return pl.select(pl.when(pl.Series(found)).then(histogram.lists(_FEC_BINS, np.arange(height + 1) * length, flat))).to_series()


def _scattered(row: np.ndarray, values: np.ndarray, height: int) -> pl.Series:
    """Return a column with the values in their rows and nulls elsewhere."""
    column, found = np.zeros(height, np.uint64), np.zeros(height, bool)
    # If two names mean one counter, the first is used.
    column[row[::-1]], found[row] = values[::-1], True
    return masked(column, ~found)


def _empty_state() -> kernel.SeriesState:
    int64, uint64, small = (np.zeros(0, dtype) for dtype in (np.int64, np.uint64, np.uint8))
    tracks, steps = (np.zeros((0, columns), np.int64) for columns in (kernel.TRACK_COLUMNS, kernel.STEPS_KEPT))
    return kernel.SeriesState(tracks, steps, int64, int64, small, small, int64, uint64, uint64, uint64, small, int64)


def _grown(state: kernel.SeriesState, tracks: int, series: int) -> kernel.SeriesState:
    """Return the state with room for this many tracks and series; arrays double, so adding one by one is linear."""
    grown = state._asdict()
    for name, array in state._asdict().items():
        wanted = tracks if name in ("tracks", "steps", "first", "width") else series
        if wanted > len(array):
            grown[name] = np.zeros((max(wanted, 2 * len(array)), *array.shape[1:]), array.dtype)
            grown[name][: len(array)] = array
    return kernel.SeriesState(**grown)
