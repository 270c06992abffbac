"""Millisampler recordings: byte counts of hosts at 1 ms, as Meta published them.

Two forms are read. The dataset's own: one gzip JSON file per host and run, named ``rackId_<r>_hostId_<h>.txt.gz``, in which each
signal is an array of samples; a folder of them is one recording. And tables derived from it: a CSV whose row is one window of a host,
with samples ``IngressBytes0``, ``IngressBytes1``, ... and the window's sums ``...Agg``. The rows of one host are consecutive windows in
file order, unless a column ``window_start`` (in samples) gives the start of each.

Racks are devices, hosts are ports: the view of a top-of-rack switch towards its servers. The recordings have no date, so time starts at
2022-01-01T00:00:00Z.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_MS
from ...pipeline.errors import InputError
from ...pipeline.tables.field import WINDOW_NS
from ..base import Batch, Collector, Options
from ..recordings import text_table
from ..sampling.runs import Segment, closing, slices
from .json_files import HOSTS_MAX, START_NS, looks_like_json, read_json

log = logging.getLogger("weft")

LINE_RATE_BPS = 12_500_000_000
SAMPLE_NS = NS_PER_MS
# Eleven days: runs of the dataset take seconds.
WINDOW_START_MAX = 10**9

_BIN = re.compile(r"ingressbytes_?(\d+)", re.IGNORECASE)
_AGGREGATE = re.compile(r"(egressbytes|inrxmitbytes|outrxmitbytes|incongestionbytes|connections)_?(?:agg|aggregate|sampled)", re.IGNORECASE)
# Columns that repeat others: sums of the bins, the geometry of a row, the aggregates of earlier rows.
_REDUNDANT = re.compile(r"ingressbytes_?(agg|aggregate|sampled)|window|stride|\w+ctx_?\d+", re.IGNORECASE)
_SIGNALS = {
    "egressbytes": "tx_bytes",
    "inrxmitbytes": "rx_retransmit_bytes",
    "outrxmitbytes": "tx_retransmit_bytes",
    "incongestionbytes": "rx_ecn_bytes",
    "connections": "connections",
}
_HOSTS = ("hostid", "host_id", "server_hostname")
_KNOWN = ("rackid", *_HOSTS, "window_start", *(f"{name}agg" for name in ("ingressbytes", *_SIGNALS)))
_DATASET_HINT = "take the file from the dataset again, or name the columns as it does"


@dataclass(frozen=True)
class MillisamplerConfig:
    """No settings: there is no live side."""


@dataclass(frozen=True)
class _Header:
    """The columns of the CSV by their role."""

    columns: tuple[str, ...]
    host: str
    rack: str | None
    window_start: str | None
    bins: tuple[str, ...]
    aggregates: tuple[tuple[str, str], ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        start = () if self.window_start is None else (self.window_start,)
        return (*self.bins, *(column for column, _ in self.aggregates), *start)


class Millisampler:
    """One recording: a CSV, a JSON file or a folder of such."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self._options = options

    def batches(self) -> Iterator[Batch]:
        """Yield segments in time order over all hosts; raise ``InputError`` after the last good one."""
        yield from closing(self._open_ended())

    def _open_ended(self) -> Iterator[Batch]:
        fallback = self._options.device or self._path.stem.split(".")[0]
        rate = self._options.line_rate_bps or LINE_RATE_BPS
        if _is_json(self._path):
            series, fault = read_json(self._path, fallback, rate)
        else:
            series, fault = _read_csv(self._path, fallback, rate)
        yield from slices(series, "millisampler", max(1, self._options.run_samples))
        if fault is not None:
            raise fault


def _is_json(path: Path) -> bool:
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return looks_like_json(path, file.read(4096))
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None


def _read_csv(path: Path, fallback: str, rate: int) -> tuple[list[Segment], InputError | None]:
    content = text_table.content_of(path)
    header = _header(path, content)
    if header.aggregates and len(header.bins) * SAMPLE_NS > WINDOW_NS:
        log.warning("%s: its rows are longer than a second, so the sums beside them (%s, ...) are left out", path, header.aggregates[0][0])
        header = replace(header, aggregates=())
    numbers = set(header.numbers)
    types = {name: pl.UInt64 if name in numbers else pl.String for name in header.columns}
    frame, fault = text_table.read(path, content, types, (*_ids(header), *header.numbers))
    if frame.select(pl.struct(*_ids(header)).n_unique()).item() > HOSTS_MAX:
        raise InputError(str(path), f"holds more than {HOSTS_MAX} hosts", "cut it by rack and replay the parts")
    frame, far = _near(path, frame, header)
    fault = far or fault
    if not frame.height and fault is None:
        fault = InputError(str(path), "holds no samples, only a header", _DATASET_HINT)
    return _segments(frame, header, fallback, rate), fault


def _header(path: Path, content: bytes) -> _Header:
    columns = text_table.header_of(path, content)
    lower = {name.lower(): name for name in columns}

    def lacks(name: str) -> InputError:
        near = get_close_matches(name.lower(), list(lower), n=1)
        hint = f"rename the column {lower[near[0]]!r} to it" if near else _DATASET_HINT
        return InputError(str(path), f"line 1: column {name!r} is missing", hint)

    host = next((lower[name] for name in _HOSTS if name in lower), None)
    if host is None:
        raise lacks("hostid")
    if host.lower() == "hostid" and "rackid" not in lower:
        raise lacks("rackid")
    bins = {int(match[1]): name for name in columns if (match := _BIN.fullmatch(name))}
    if not bins:
        raise lacks("IngressBytes0")
    absent = next((index for index in range(max(bins)) if index not in bins), None)
    if absent is not None:
        raise InputError(str(path), f"line 1: column {_numbered(bins[max(bins)], absent)!r} is missing", _DATASET_HINT)
    aggregates = tuple((name, _SIGNALS[match[1].lower()]) for name in columns if (match := _AGGREGATE.fullmatch(name)))
    _check_strangers(path, columns, {host, *bins.values(), *(name for name, _ in aggregates)})
    ordered = tuple(bins[index] for index in sorted(bins))
    return _Header(columns, host, lower.get("rackid"), lower.get("window_start"), ordered, aggregates)


def _numbered(name: str, index: int) -> str:
    return re.sub(r"\d+$", str(index), name)


def _check_strangers(path: Path, columns: tuple[str, ...], used: set[str]) -> None:
    """Refuse a column whose name is close to one of the dataset's; other unknown columns are ignored."""
    for name in columns:
        plain = name.lower()
        if name in used or plain in _KNOWN or _REDUNDANT.fullmatch(plain):
            continue
        near = get_close_matches(plain, _KNOWN, n=1, cutoff=0.85)
        if near:
            raise InputError(str(path), f"line 1: column {name!r} is not one of the dataset's", f"did you mean {near[0]!r}")


def _ids(header: _Header) -> list[str]:
    return [header.host] if header.rack is None else [header.rack, header.host]


def _near(path: Path, frame: pl.DataFrame, header: _Header) -> tuple[pl.DataFrame, InputError | None]:
    """Return the rows before the first whose ``window_start`` is out of range."""
    if header.window_start is None or not (far := frame[header.window_start] > WINDOW_START_MAX).any():
        return frame, None
    row = int(far.arg_max() or 0)
    start = frame[header.window_start][row]
    return frame[:row], InputError(
        str(path), f"row {row + 1}: window_start {start} is no sample number", "give it in samples from the start of the run"
    )


def _segments(frame: pl.DataFrame, header: _Header, fallback: str, rate: int) -> list[Segment]:
    """Return each host's bins as segments, and its aggregates beside them."""
    device = pl.lit(fallback) if header.rack is None else "rack-" + pl.col(header.rack)
    keys = frame.select(device=device, port="host-" + pl.col(header.host))
    if header.window_start is not None:
        keys = keys.with_columns(window=frame[header.window_start])
        keys = _placed(keys) if header.rack is None else keys
    rows = keys.with_row_index("row").sort("device", "port", *keys.columns[2:], maintain_order=True)
    order = rows["row"].to_numpy()
    bins = frame.select(header.bins).to_numpy(order="c")[order]
    sums = {signal: frame[column].to_numpy()[order] for column, signal in header.aggregates}
    breaks = pl.struct("device", "port", "stretch").rle_id()
    stretch = rows.with_columns(stretch=_stretch(rows, len(header.bins))).select(breaks).to_series().to_numpy()
    edges = np.concatenate(([0], np.flatnonzero(np.diff(stretch)) + 1, [len(rows)])) if len(rows) else np.array([0])
    window_ns = SAMPLE_NS * len(header.bins)
    found = []
    for first, last in pairwise(edges.tolist()):
        device_name, port = rows["device"][first], rows["port"][first]
        ts = START_NS + (0 if header.window_start is None else int(rows["window"][first]) * SAMPLE_NS)
        found.append(Segment(device_name, port, "rx_bytes", ts, SAMPLE_NS, bins[first:last].reshape(-1), rate))
        found.extend(Segment(device_name, port, signal, ts, window_ns, values[first:last], rate) for signal, values in sums.items())
    return found


def _placed(keys: pl.DataFrame) -> pl.DataFrame:
    """Number racks where the file does not name them: each host and window has one row per rack."""
    nth = pl.int_range(pl.len()).over("device", "port", "window")
    suffix = pl.when(nth == 0).then(pl.lit("")).otherwise("-" + (nth + 1).cast(pl.String))
    return keys.with_columns(device=pl.col("device") + suffix)


def _stretch(rows: pl.DataFrame, samples: int) -> pl.Series:
    if "window" not in rows.columns:
        return pl.zeros(len(rows), dtype=pl.UInt32, eager=True)
    window = rows["window"].cast(pl.Int64)
    return (window.diff().fill_null(samples) != samples).cum_sum()


def recognises(path: Path, head: bytes) -> bool:
    """Return whether the path is one of the dataset's files, a folder of them, or a table made of it."""
    if path.is_dir():
        return any(path.rglob("rackId_*_hostId_*"))
    if looks_like_json(path, head):
        return True
    return bool(re.search(rb"(?i)(^|,)\"?ingressbytes_?0\b", head.split(b"\n", 1)[0]))


MILLISAMPLER = Collector(
    name="millisampler",
    doc="Millisampler recordings of hosts at 1 ms: the dataset's gzip JSON, or tables made of it",
    families=("burst_sample",),
    config=MillisamplerConfig,
    registers=None,
    recorded=Millisampler,
    recognises=recognises,
)
