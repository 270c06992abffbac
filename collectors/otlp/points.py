"""Points of OTLP metrics to rows: SAI statistics as samples and counters, everything else as readings.

A switch that runs SONiC's ``countersyncd`` exports all of its counters as gauges: under ``sai_counter_type_<T>_stat_<S>``, or under
SAI's own names, with the object in the attribute ``object_name``. Here they become counters again, and through ``readings``
samples and rows. Some versions send doubles, which are exact up to 2^53.

A series is parsed once, from its first point, and then found by its hash.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, gaps
from ..sampling import sai
from ..sampling.readings import Ledger, Pace
from . import kernel
from .config import SOURCE

SLICE_NS = 250 * NS_PER_MS
TEXT_CHARS_MAX = 512

_SLICES_MAX = 64
_AHEAD_NS_MAX = 60 * NS_PER_S
_SILENT_NS = 3 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Request:
    """A decoded request: its sender, its bytes, and its rows (see ``kernel``)."""

    sender: str
    content: np.ndarray
    rows: np.ndarray


class _Where(NamedTuple):
    """The destination of a series' points: device and track in its ledger, or the number of another series (track -1)."""

    device: int
    track: int
    reading: int


@dataclass(frozen=True, slots=True)
class _OtherSeries:
    """A series that is not a SAI statistic."""

    device: str
    object: str
    name: str


class OtlpSeries:
    """All series of all devices. ``devices`` names senders; a resource may name its device in ``device_attribute``."""

    def __init__(self, pace: Pace, devices: Mapping[str, str], device_attribute: str, series_max: int) -> None:
        self._pace, self._devices, self._attribute, self._series_max = pace, devices, device_attribute, series_max
        self._where: dict[tuple[str, int], int] = {}
        self._table = np.zeros((0, 3), np.int64)
        self._ledgers: list[Ledger] = []
        self._numbers: dict[str, int] = {}
        self._received_ns: list[int] = []
        self._others: list[_OtherSeries] = []
        self._other_frame = pl.DataFrame()
        self._counts: Counter[str] = Counter()

    def take(self, requests: list[Request], now_ns: int) -> list[Batch]:
        """Return rows of the points of some requests."""
        if not requests:
            return []
        parts, refused = [], []
        for request in requests:
            part = self._located(request)
            # Differences are not cumulative, as the ledgers of counters need them.
            delta = (part[:, 1] >= 0) & (part[:, 5] == kernel.DELTA)
            lost = {"series_max": len(request.rows) - len(part), "delta_temporality": int(delta.sum())}
            self._counts["delta_points"] += lost["delta_temporality"]
            sender = self._devices.get(request.sender, request.sender)
            refused += [(sender, "points", number, reason, None) for reason, number in lost.items() if number]
            parts.append(part[~delta])
        points = np.concatenate(parts)
        good = points[:, 2] <= now_ns + _AHEAD_NS_MAX
        self._counts["implausible_points"] += int((~good).sum())
        points = points[good]
        mine = points[:, 1] >= 0
        return [*self._sampled(points[mine], now_ns), *self._read(points[~mine], now_ns), *gaps(SOURCE, refused, now_ns)]

    def quiet(self, now_ns: int) -> list[Batch]:
        """Return rows of devices that became silent: they would wait for the next point."""
        batches = []
        for number, ledger in enumerate(self._ledgers):
            if self._received_ns[number] and now_ns - self._received_ns[number] > max(_SILENT_NS, 2 * self._pace.span_ns):
                batches += ledger.flush(now_ns)
                self._received_ns[number] = 0
        return batches

    def end(self, now_ns: int) -> list[Batch]:
        """Return rows of incomplete spans; call after the last request."""
        return [batch for ledger in self._ledgers for batch in ledger.flush(now_ns)]

    def counters(self) -> Mapping[str, float]:
        """Return counts of samples and refused points since the start, and the number of series."""
        counts: Counter[str] = Counter(self._counts)
        for ledger in self._ledgers:
            counts.update(ledger.totals())
        unknown = sum(ledger.unknown for ledger in self._ledgers)
        return counts | {"series": len(self._where), "unknown_series": unknown, "devices": len(self._ledgers)}

    def _located(self, request: Request) -> np.ndarray:
        """Return (device, track or -1 - reading, time, value, form, kind) of each point whose series is known."""
        rows = request.rows
        # Points of one series mostly follow one another: only the first of consecutive ones is looked up.
        series = rows[:, kernel.SERIES]
        heads = np.flatnonzero(np.concatenate(([True], series[1:] != series[:-1]))) if len(rows) else np.zeros(0, np.int64)
        hashes, first, which = np.unique(series[heads], return_index=True, return_inverse=True)
        places = [self._place(request, value, rows[at]) for value, at in zip(hashes.tolist(), heads[first].tolist(), strict=True)]
        numbers = np.repeat(np.array(places, np.int64)[which], np.diff(np.append(heads, len(rows))))
        known = numbers >= 0
        refused = int((~known).sum())
        self._counts["points"] += len(rows)
        self._counts["refused_points"] += refused
        if refused:
            rows, numbers = rows[known], numbers[known]
        found = self._table[numbers]
        target = np.where(found[:, 1] >= 0, found[:, 1], -1 - found[:, 2])
        return np.stack(
            (found[:, 0], target, *(rows[:, column] for column in (kernel.TIME, kernel.VALUE, kernel.FORM, kernel.KIND))), axis=1
        )

    def _place(self, request: Request, value: int, row: np.ndarray) -> int:
        """Return the number of a series, added if it is new; -1 above the limit."""
        key = (request.sender, value)
        if (number := self._where.get(key)) is not None:
            return number
        if len(self._where) >= self._series_max:
            return -1
        name, resource, attributes = _described(request.content, row)
        device = resource.get(self._attribute, "") or self._devices.get(request.sender, request.sender)
        statistic = sai.numbers(name) if "object_name" in attributes else None
        if statistic is None:
            text = ",".join(f"{key}={value}" for key, value in sorted(attributes.items()))[:TEXT_CHARS_MAX]
            self._others.append(_OtherSeries(device, text, name[:TEXT_CHARS_MAX]))
            where = _Where(-1, -1, len(self._others) - 1)
        else:
            ledger = self._device(device)
            track = self._ledgers[ledger].add([sai.series(*statistic, attributes["object_name"][:TEXT_CHARS_MAX])])
            where = _Where(ledger, track, -1)
        number = self._where[key] = len(self._where)
        if number == len(self._table):
            self._table = np.concatenate((self._table, np.zeros((max(1024, number), 3), np.int64)))
        self._table[number] = where
        return number

    def _device(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._ledgers)
            self._ledgers.append(Ledger(SOURCE, name, self._pace))
            self._received_ns.append(0)
        return self._numbers[name]

    def _sampled(self, points: np.ndarray, now_ns: int) -> list[Batch]:
        """Pass points of SAI statistics to the ledgers of their devices, in slices of time."""
        values, good = _whole(points[:, 3], points[:, 4])
        self._counts["implausible_values"] += int((~good).sum())
        points, values = points[good], values[good]
        batches: list[Batch] = []
        for chosen in _slices(points):
            part, numbers = points[chosen], values[chosen]
            order = _by_series(part)
            part, numbers = part[order], numbers[order]
            series = _series(part)
            edges = np.flatnonzero(np.concatenate(([True], series[1:] != series[:-1], [True])))
            devices = part[edges[:-1], 0]
            for device in np.unique(devices).tolist():
                low, high = np.searchsorted(devices, [device, device + 1])
                begin, end = edges[low], edges[high]
                mine, starts = part[begin:end], edges[low:high] - begin
                # One series for each track; its counter samples are consecutive.
                batches += self._ledgers[device].feed(
                    *(mine[starts, 1], np.append(starts, end - begin), mine[:, 2].copy(), starts, np.ones_like(starts)),
                    *(numbers[begin:end], now_ns),
                )
                self._received_ns[device] = now_ns
        return batches

    def _read(self, points: np.ndarray, now_ns: int) -> list[Batch]:
        """Return the points of all other series as readings."""
        if not len(points):
            return []
        series = pl.Series(-1 - points[:, 1])
        if self._other_frame.height < len(self._others):
            self._other_frame = pl.DataFrame(self._others)
        whole = pl.Series(points[:, 4] == kernel.INTEGER)
        numbers, doubles = pl.Series(points[:, 3].copy()), pl.Series(points[:, 3].copy().view(np.float64))
        frame = self._other_frame[series.to_numpy()].with_columns(
            pl.when(whole).then(numbers.cast(pl.Float64)).otherwise(doubles).alias("value"),
            pl.when(whole & (numbers >= 0)).then(numbers.cast(pl.UInt64, strict=False)).alias("count"),
        )
        self._counts["readings_generic"] += frame.height
        common = {"ts": points[:, 2], "recv_ts": now_ns, "source": SOURCE, "epoch": 0, "kind": "device"}
        return [Batch("reading", FAMILIES["reading"].frame(frame.to_dict() | common))]


def warm() -> None:
    """Compile the kernels: decode a request with statistics of a port and another point."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    for name, attributes in (("sai_counter_type_1_stat_0", {"object_name": "Ethernet0"}), ("warm", {})):
        gauge = scope.metrics.add(name=name).gauge
        for ts in range(NS_PER_MS, 3 * SLICE_NS, NS_PER_MS):
            point = gauge.data_points.add(time_unix_nano=ts, as_int=ts)
            for key, text in attributes.items():
                point.attributes.add(key=key).value.string_value = text
    content = np.frombuffer(request.SerializeToString(), np.uint8)
    points = OtlpSeries(Pace(), {}, "", 2)
    points.take([Request("", content, kernel.walk(content, kernel.SEED)[0])], NS_PER_S)
    points.end(NS_PER_S)


def _whole(raw: np.ndarray, form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values as unsigned numbers, and which are valid; a negative integer is a counter above 2^63 in 64 bits."""
    doubles = raw.copy().view(np.float64)
    integer = form == kernel.INTEGER
    good = integer | ((doubles >= 0) & (doubles < 2.0**64))
    values = raw.copy().view(np.uint64)
    converted = ~integer & good
    values[converted] = doubles[converted].astype(np.uint64)
    return values, good


def _series(points: np.ndarray) -> np.ndarray:
    """Return device and track in one number."""
    return points[:, 0] << 32 | points[:, 1]


def _by_series(points: np.ndarray) -> np.ndarray:
    """Return the order by device, track and time; points mostly arrive in it, which makes a stable sort fast."""
    series = _series(points)
    order = np.argsort(series, kind="stable")
    times, series = points[order, 2], series[order]
    if ((times[1:] < times[:-1]) & (series[1:] == series[:-1])).any():
        return np.lexsort((points[:, 2], points[:, 1], points[:, 0]))
    return order


def _slices(points: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the points of each slice of time, at most ``_SLICES_MAX`` times."""
    slices = points[:, 2] // SLICE_NS
    spans = np.unique(slices)
    if len(spans) <= 1:
        if len(spans):
            yield np.arange(len(points))
        return
    for chosen in np.array_split(spans, min(len(spans), _SLICES_MAX)):
        yield np.flatnonzero((slices >= chosen[0]) & (slices <= chosen[-1]))


def _described(content: np.ndarray, row: np.ndarray) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return the metric's name and the attributes of resource and point."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

    def cut(at: int, size: int) -> bytes:
        return content[row[at] : row[at] + row[size]].tobytes()

    name = cut(kernel.NAME, kernel.NAME_BYTES).decode("utf-8", "replace")
    try:
        resource = Resource.FromString(cut(kernel.RESOURCE, kernel.RESOURCE_BYTES)).attributes
        attributes = NumberDataPoint.FromString(cut(kernel.POINT, kernel.POINT_BYTES)).attributes
    except DecodeError:
        # Malformed at a level that the kernel does not parse: the series has only its name.
        return name, {}, {}
    return name, _texts(resource), _texts(attributes)


def _texts(attributes) -> dict[str, str]:
    found = {}
    for attribute in attributes:
        which = attribute.value.WhichOneof("value")
        if which in ("string_value", "bool_value", "int_value", "double_value"):
            found[attribute.key] = str(getattr(attribute.value, which))
    return found
