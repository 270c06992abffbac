"""Segments of burst samples to the statistics of their windows: ``port_samples``, ``bursts``, ``groups``, ``quality``.

The arithmetic is the single pass of ``kernel.py``; this module writes segments into its dense matrix and turns its arrays into rows.
All ports of a device are walked together, because contention is the number of ports that are hot at the same time.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from ... import histogram
from ...errors import ConfigError
from ...tables.field import WINDOW_NS
from ...tables.states import STATES
from ..base import TS_NS_MAX, Closing, Extent, WindowMetric, integers
from . import kernel

# Samples per kernel call: a matrix of 16 MB with 32-bit samples, so that memory does not grow with the number of closings.
CELLS_MAX = 4_000_000
_NARROW_MAX = 2**31 - 1

# Accepted intervals: 1 us to one window.
INTERVAL_NS_MIN = 1_000

ENTITY = ("device", "port", "queue", "signal", "interval_ns", "speed_bps")
_PLAIN = ("ts", "port", "queue", "signal", "interval_ns", "speed_bps", "values")
_HOT_SIGNALS = ("rx_bytes", "tx_bytes")
_NEVER = 2**62


@dataclass(frozen=True, slots=True)
class BurstConfig:
    """A sample is hot above ``threshold_ratio`` of the line rate (0.5: Zhang et al., IMC 2017)."""

    threshold_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold_ratio <= 1:
            raise ConfigError("process.bursts.threshold_ratio", f"{self.threshold_ratio} is out of range", "choose above 0, at most 1")

    def threshold(self, speed_bps: int | None, interval_ns: int) -> int:
        """Return the largest sample, in bytes, that is not hot; never hot where the line rate is unknown."""
        if not speed_bps:
            return _NEVER
        parts_per_million = round(self.threshold_ratio * 1_000_000)
        return min(_NEVER, speed_bps * interval_ns * parts_per_million // (8 * 1_000_000_000 * 1_000_000))


@dataclass(slots=True)
class _Segments:
    """The segments of one frame: entity and start of each, and its samples."""

    entity: np.ndarray
    ts: np.ndarray
    offsets: np.ndarray
    values: np.ndarray


@dataclass(slots=True)
class _IntervalGroup:
    """The entities of one interval, their segments and their carry."""

    interval_ns: int
    entities: list[tuple]
    segments: list[_Segments]
    carry: np.ndarray


class BurstMetric(WindowMetric):
    """``WindowMetric`` of the family ``burst_sample``."""

    family = "burst_sample"

    def __init__(self, config: BurstConfig | None = None) -> None:
        self._config = config or BurstConfig()
        self._carry: dict[str, dict[tuple, np.ndarray]] = {}

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of the closed windows; see ``WindowMetric``."""
        return self.close_all([closing])

    def close_all(self, closings: Sequence[Closing]) -> dict[str, pl.DataFrame]:
        """Return the rows of several devices; devices that close the same windows are walked together."""
        out: dict[str, list[pl.DataFrame]] = {name: [] for name in ("port_samples", "bursts", "groups", "quality")}
        spans: dict[tuple[int, int, bool], list[Closing]] = {}
        for closing in closings:
            spans.setdefault((closing.start_ns, closing.end_ns, closing.ended), []).append(closing)
        for (start_ns, end_ns, ended), together in spans.items():
            for portion in _portions(together):
                carried = {entity: row for closing in portion for entity, row in self._carry.pop(closing.device, {}).items()}
                for group in _group(portion, carried):
                    for name, frame in self._walk_all(start_ns, end_ns, group):
                        out[name].append(frame)
                    out["bursts"].extend(self._end(end_ns, ended, group))
        return {name: _table(name, frames) for name, frames in out.items()}

    def carry(self, device: str) -> bytes:
        """Return the carry of ``device``: a line of JSON with the entities, then their rows of integers."""
        rows = self._carry.get(device)
        return json.dumps([*rows]).encode() + b"\n" + np.stack(list(rows.values())).tobytes() if rows else b""

    def restore(self, device: str, carry: bytes) -> None:
        """Restore a carry."""
        self._carry.pop(device, None)
        if carry:
            keys, _, rows = carry.partition(b"\n")
            matrix = np.frombuffer(rows, np.int64).reshape(-1, kernel.CARRY_COLUMNS).copy()
            self._carry[device] = dict(zip(map(tuple, json.loads(keys)), matrix, strict=True))

    def extent(self, frame: pl.DataFrame) -> Extent:
        """Return the extent of the segments, cut to their sampling grid."""
        ts, interval = integers(frame["ts"], -1), integers(frame["interval_ns"], 0)
        valid = (ts >= 0) & (ts < TS_NS_MAX) & (interval >= INTERVAL_NS_MIN) & (interval <= WINDOW_NS)
        interval = np.where(valid, interval, 1)
        start, count = ts // interval * interval, _lengths(frame["values"])
        return Extent(start, start + count * interval, interval, count, valid)

    def signal(self) -> pl.Expr:
        """Return the signal of each segment."""
        return pl.col("signal").fill_null("")

    def without_late(self, frame: pl.DataFrame, extent: Extent, late: np.ndarray) -> pl.DataFrame:
        """Cut the late samples off the beginning of each segment."""
        start = pl.Series("ts", extent.start + late * extent.interval)
        return frame.with_columns(start, pl.col("values").list.slice(pl.lit(pl.Series(late))))

    def _walk_all(self, start_ns: int, end_ns: int, group: _IntervalGroup) -> Iterator[tuple[str, pl.DataFrame]]:
        interval = group.interval_ns
        width = np.int32 if all(segments.values.max(initial=0) <= _NARROW_MAX for segments in group.segments) else np.int64
        windows_max = max(1, CELLS_MAX // max(1, len(group.entities) * -(-WINDOW_NS // interval)))
        for window_ns in _consecutive(_touched(group, start_ns, end_ns), windows_max):
            ends = np.append(window_ns, window_ns[-1] + WINDOW_NS)
            bounds = -(-ends // interval)
            matrix = np.full((len(group.entities), bounds[-1] - bounds[0]), -1, width)
            refused = np.zeros((len(group.entities), len(window_ns), 2), np.int64)
            top = kernel.BYTES_PER_NS_MAX * interval
            for segments in group.segments:
                kernel.scatter(matrix, bounds, segments.entity, segments.ts // interval, segments.offsets, segments.values, top, refused)
            if refused.any():
                yield "quality", _Rows(group.entities, interval, window_ns).quality(refused)
            yield from self._walk(group, matrix, bounds, window_ns)

    def _walk(
        self, group: _IntervalGroup, matrix: np.ndarray, bounds: np.ndarray, window_ns: np.ndarray
    ) -> Iterator[tuple[str, pl.DataFrame]]:
        entities, interval = group.entities, group.interval_ns
        threshold = np.array([self._threshold(entity) for entity in entities], np.int64)
        sides = {side: g for g, side in enumerate(sorted({(entity[0], entity[3]) for entity in entities if _contends(entity)}))}
        member = np.array([sides[entity[0], entity[3]] if _contends(entity) else -1 for entity in entities], np.int64)
        hot, sampled = kernel.contention(matrix, threshold, member, len(sides))
        companions = _companions(entities, "rx_ecn_bytes"), _companions(entities, "retransmit")
        rows = kernel.Entities(threshold, member, *companions, group.carry)
        out = kernel.walk(kernel.Grid(matrix, hot, bounds, window_ns, interval), rows)
        keys = _Rows(entities, interval, window_ns)
        threshold_ratio = pl.when(pl.col("signal").is_in(_HOT_SIGNALS), pl.col("speed_bps") > 0).then(self._config.threshold_ratio)
        yield "port_samples", keys.port_samples(out).with_columns(threshold_ratio=threshold_ratio)
        yield "bursts", keys.bursts(out.bursts)
        present = out.statistics[:, kernel.AT.samples].reshape(len(entities), len(window_ns)) > 0
        yield "groups", keys.groups(list(sides), member, hot, sampled, present, bounds)

    def _threshold(self, entity: tuple) -> int:
        *_, signal, interval_ns, speed_bps = entity
        return self._config.threshold(speed_bps, interval_ns) if signal in _HOT_SIGNALS else _NEVER

    def _end(self, end_ns: int, ended: bool, group: _IntervalGroup) -> list[pl.DataFrame]:
        """Close the bursts that cannot continue, and store the carry of entities sampled up to the end."""
        last = -(-end_ns // group.interval_ns) - 1
        rows = []
        for e, entity in enumerate(group.entities):
            carry = group.carry[e]
            continues = carry[kernel.LAST_SLOT] == last and not ended
            if continues:
                self._carry.setdefault(entity[0], {})[entity] = carry
            elif carry[kernel.OPEN_START] >= 0:
                rows.append(
                    (e, carry[kernel.OPEN_START], carry[kernel.LAST_SLOT] + 1, *carry[kernel.OPEN_BYTES : kernel.OPEN_RETRANSMIT + 1])
                )
        return [_Rows(group.entities, group.interval_ns, np.zeros(0, np.int64)).bursts(np.array(rows, np.int64))] if rows else []


@dataclass(slots=True)
class _Rows:
    """Turns the kernel's arrays into rows of the state tables."""

    entities: Sequence[tuple]
    interval_ns: int
    window_ns: np.ndarray

    def _entity_columns(self, index: np.ndarray) -> list[pl.Series]:
        columns = zip(ENTITY, zip(*self.entities, strict=True), strict=True)
        types = STATES["port_samples"].polars
        return [pl.Series(name, values, dtype=types[name]).gather(index) for name, values in columns]

    def port_samples(self, out: kernel.Output) -> pl.DataFrame:
        windows, rows = len(self.window_ns), len(out.statistics)
        full = np.flatnonzero(out.statistics[:, kernel.AT.samples])
        statistics, squares, profile = (array if len(full) == rows else array[full] for array in (out.statistics, out.squares, out.profile))
        hist = histogram.to_series("hist", out.hist_offsets, out.hist_index, out.hist_count)
        gap_hist = histogram.of_values(out.gaps[:, 0], out.gaps[:, 1], rows, "gap_hist")
        by_name = zip(kernel.STATISTICS, np.ascontiguousarray(statistics.T).view(np.uint64), strict=True)
        wide_by_name = zip(kernel.SQUARES, np.ascontiguousarray(squares.swapaxes(0, 1)), strict=True)
        return pl.DataFrame(
            [
                pl.Series("ts", self.window_ns[full % windows]),
                *self._entity_columns(full // windows),
                *(pl.Series(name, column) for name, column in by_name),
                *(_squares(name, halves) for name, halves in wide_by_name),
                *(hists if len(full) == rows else hists.gather(full) for hists in (hist, gap_hist)),
                _profiles(profile, self.interval_ns),
            ]
        )

    def quality(self, refused: np.ndarray) -> pl.DataFrame:
        """Return one row per port, signal and window with refused samples, over all queues and line rates."""
        entity, window = np.nonzero(refused.any(axis=2))
        ts = pl.Series("ts", self.window_ns[window])
        counts = [pl.Series(name, refused[entity, window, k]) for k, name in enumerate(("duplicates", "implausible"))]
        rows = pl.DataFrame([ts, *self._entity_columns(entity), *counts])
        rows = rows.group_by("ts", "device", "port", "signal").agg(pl.col("duplicates", "implausible").sum())
        return STATES["quality"].frame(rows).fill_null(0)

    def bursts(self, bursts: np.ndarray) -> pl.DataFrame:
        entity, start, end, total, peak, contention, ecn, retransmit = np.ascontiguousarray(bursts.T)
        return pl.DataFrame(
            [
                *self._entity_columns(entity),
                pl.Series("start_ts", start * self.interval_ns),
                pl.Series("duration_ns", (end - start) * self.interval_ns),
                pl.Series("bytes", total),
                pl.Series("peak", peak),
                pl.Series("contention_max", contention),
                pl.Series("ecn_bytes", ecn),
                pl.Series("retransmit_bytes", retransmit),
            ]
        ).with_columns(
            *(pl.when(pl.col(name) >= 0).then(pl.col(name)).alias(name) for name in ("ecn_bytes", "retransmit_bytes")),
        )

    def groups(
        self,
        sides: list[tuple[str, str]],
        member: np.ndarray,
        hot: np.ndarray,
        sampled: np.ndarray,
        present: np.ndarray,
        bounds: np.ndarray,
    ) -> pl.DataFrame:
        """Return one row per (device, signal) of ``sides`` and window."""
        cuts = bounds[:-1] - bounds[0]
        if not sides or not hot.size:
            return STATES["groups"].empty()

        def by_window(array: np.ndarray, how: np.ufunc) -> np.ndarray:
            return how.reduceat(array, cuts, axis=1).astype(np.int64).ravel()

        members = np.zeros((len(sides), len(cuts)), np.int64)
        np.add.at(members, member[member >= 0], present[member >= 0])
        side = np.repeat(np.arange(len(sides)), len(cuts))
        rows = {
            "ts": np.tile(self.window_ns, len(sides)),
            "group_kind": "device",
            "group_id": pl.Series([device for device, _ in sides]).gather(side),
            "signal": pl.Series([signal for _, signal in sides]).gather(side),
            "interval_ns": self.interval_ns,
            "members": members.ravel(),
            "slots": by_window(sampled > 0, np.add),
            "hot_total": by_window(hot, np.add),
            "busy_slots": by_window(hot > 0, np.add),
            "contended_slots": by_window(hot > 1, np.add),
            "hot_high": by_window(hot, np.maximum),
        }
        return STATES["groups"].frame(rows).filter(pl.col("slots") > 0)


def _contends(entity: tuple) -> bool:
    return entity[3] in _HOT_SIGNALS and not entity[2]


def _companions(entities: Sequence[tuple], what: str) -> np.ndarray:
    """Return, per entity that can burst, the matrix row of its marked or retransmitted bytes; -1 = none."""
    place = {(*entity[:4], entity[5]): e for e, entity in enumerate(entities)}
    rows = []
    for device, port, queue, signal, _, speed_bps in entities:
        companion = f"{signal[:2]}_retransmit_bytes" if what == "retransmit" else what if signal == "rx_bytes" else ""
        rows.append(place.get((device, port, queue, companion, speed_bps), -1) if signal in _HOT_SIGNALS else -1)
    return np.array(rows, np.int64)


def _portions(closings: Sequence[Closing]) -> Iterator[list[Closing]]:
    """Yield the closings in portions of about ``CELLS_MAX`` samples, so that memory does not grow with the number of devices."""
    portion: list[Closing] = []
    samples = 0
    for closing in closings:
        mine = sum(int(offsets[-1] - offsets[0]) for frame in closing.frames for offsets, _ in _samples(frame["values"]))
        if portion and samples + mine > CELLS_MAX:
            yield portion
            portion, samples = [], 0
        portion.append(closing)
        samples += mine
    if portion:
        yield portion


def _group(closings: Sequence[Closing], carried: dict[tuple, np.ndarray]) -> list[_IntervalGroup]:
    """Sort the segments by interval and entity. Those off any grid were refused and counted on receipt."""
    known: dict[int, dict[tuple, int]] = {}
    for entity in carried:
        known.setdefault(entity[4], {}).setdefault(entity, len(known.get(entity[4], ())))
    segments: dict[int, list[_Segments]] = {}
    for frame in _joined(closings):
        entities, codes = _entities(frame)
        place = np.zeros(len(entities), np.int64)
        intervals = np.array([entity[4] for entity in entities], np.int64)
        fits = (intervals >= INTERVAL_NS_MIN) & (intervals <= WINDOW_NS)
        for code in np.flatnonzero(fits).tolist():
            group = known.setdefault(entities[code][4], {})
            place[code] = group.setdefault(entities[code], len(group))
        at, ts = 0, frame["ts"].to_numpy()
        for offsets, values in _samples(frame["values"]):
            part = slice(at, at + len(offsets) - 1)
            at = part.stop
            mine = codes[part]
            for interval in np.unique(intervals[mine[fits[mine]]]).tolist():
                rows = np.flatnonzero(fits[mine] & (intervals[mine] == interval))
                segments.setdefault(interval, []).append(_pick(place[mine], ts[part], offsets, values, rows))
    return [
        _IntervalGroup(interval, list(members), segments.get(interval, []), _carries(members, carried))
        for interval, members in known.items()
    ]


def _joined(closings: Sequence[Closing]) -> list[pl.DataFrame]:
    """Concatenate the frames of all closings, one result per width of the samples; the message's key is the device."""
    alike: dict[pl.DataType, list[tuple[str, pl.DataFrame]]] = {}
    for closing in closings:
        for frame in closing.frames:
            alike.setdefault(frame["values"].dtype, []).append((closing.device, frame))
    unknown = (pl.col("port", "queue", "signal").fill_null(""), pl.col("interval_ns").fill_null(0))
    joined = []
    for pairs in alike.values():
        devices, frames = zip(*pairs, strict=True)
        rows = np.repeat(np.arange(len(frames)), [frame.height for frame in frames])
        device = pl.Series("device", devices, dtype=pl.String).gather(rows)
        joined.append(pl.concat(frames, rechunk=False).select(device, *_PLAIN).with_columns(*unknown))
    return joined


def _entities(frame: pl.DataFrame) -> tuple[list[tuple], np.ndarray]:
    """Return the distinct entities of a frame, and the entity of each row."""
    keys = frame.select(ENTITY)
    distinct = keys.unique(maintain_order=True).with_row_index("code")
    codes = keys.join(distinct, on=ENTITY, how="left", nulls_equal=True, maintain_order="left")["code"]
    return distinct.drop("code").rows(), codes.to_numpy().astype(np.int64)


def _pick(place: np.ndarray, ts: np.ndarray, offsets: np.ndarray, values: np.ndarray, rows: np.ndarray) -> _Segments:
    if len(rows) == len(ts):
        return _Segments(place, ts, offsets, values)
    # A frame of mixed intervals: copy the few segments of this one.
    lengths = (offsets[1:] - offsets[:-1])[rows]
    chosen = np.concatenate([values[offsets[r] : offsets[r + 1]] for r in rows]) if len(rows) else values[:0]
    return _Segments(place[rows], ts[rows], np.concatenate([[0], np.cumsum(lengths)]), chosen)


def _samples(values: pl.Series) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (offsets, samples) of each chunk of a column of lists, without a copy unless samples are null (-1)."""
    for chunk in values.get_chunks():
        array = chunk.to_arrow()
        if array.null_count:
            array = array.fill_null([])
        offsets = np.from_dlpack(array.offsets)
        flat = array.values
        if not flat.null_count:
            yield offsets, np.from_dlpack(flat)
            continue
        known = np.minimum(flat.fill_null(0).to_numpy(zero_copy_only=False), np.uint64(np.iinfo(np.int64).max))
        yield offsets, np.where(flat.is_null().to_numpy(zero_copy_only=False), -1, known.astype(np.int64))


def _lengths(column: pl.Series) -> np.ndarray:
    """Return the length of each list; through Arrow, because this runs for every message."""
    parts = [chunk.to_arrow() for chunk in column.get_chunks()]
    return np.concatenate(
        [np.diff(np.from_dlpack(part.offsets)) if not part.null_count else part.value_lengths().fill_null(0).to_numpy() for part in parts]
    ).astype(np.int64)


def _carries(members: dict[tuple, int], carried: dict[tuple, np.ndarray]) -> np.ndarray:
    carry = kernel.empty_carry(len(members))
    for entity, row in members.items():
        if entity in carried:
            carry[row] = carried[entity]
    return carry


def _touched(group: _IntervalGroup, start_ns: int, end_ns: int) -> np.ndarray:
    """Return the starts of the windows between the two times that contain a sample of the group.

    A closing may span years if a device's clock is set; so only windows with samples are listed.
    """
    touched = [np.zeros(0, np.int64)]
    for segments in group.segments:
        lengths = segments.offsets[1:] - segments.offsets[:-1]
        slot = segments.ts // group.interval_ns
        first = np.maximum(slot * group.interval_ns // WINDOW_NS, start_ns // WINDOW_NS)
        last = np.minimum((slot + lengths - 1) * group.interval_ns // WINDOW_NS, end_ns // WINDOW_NS - 1)
        count = np.where(lengths > 0, np.maximum(last - first + 1, 0), 0)
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        touched.append(np.unique(np.repeat(first, count) + nth))
    return np.unique(np.concatenate(touched)) * WINDOW_NS


def _consecutive(starts: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield sequences of adjacent windows, at most ``most`` long."""
    for adjacent in np.split(starts, np.flatnonzero(np.diff(starts) != WINDOW_NS) + 1):
        for at in range(0, len(adjacent), most):
            yield adjacent[at : at + most]


def _squares(name: str, halves: np.ndarray) -> pl.Series:
    """Return (rows, 2) halves of 128-bit integers as a decimal column."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(halves))]
    return pl.Series(name, pl.from_arrow(pa.Array.from_buffers(pa.decimal128(38, 0), len(halves), buffers)))


def _profiles(profile: np.ndarray, interval_ns: int) -> pl.Series:
    if interval_ns > kernel.PROFILE_SPAN_NS:
        return pl.Series("profile", [None], dtype=pl.List(pl.UInt32)).new_from_index(0, len(profile))
    offsets = np.arange(len(profile) + 1, dtype=np.int64) * kernel.PROFILE_SPANS
    return histogram.lists("profile", offsets, pl.Series(profile.ravel()))


def _table(name: str, frames: list[pl.DataFrame]) -> pl.DataFrame:
    table = STATES[name]
    return pl.concat([table.empty(), *(table.frame(frame) for frame in frames if frame.height)])
