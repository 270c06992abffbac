"""The Millisampler dataset's own files: one JSON object per host and run, mostly gzipped.

Keys: ``ingressBytes``, ``egressBytes``, ``inRxmitBytes``, ``outRxmitBytes``, ``inCongestionExperiencedBytes`` and
``connections`` (arrays of samples), ``sampling_freq`` (milliseconds per sample) and ``server_hostname``; the rack is in the file's name.
A file may lack its arrays: the host had no traffic.

A file that is cut short is read as far as possible: closed arrays in full, the open one up to its last comma.
"""

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ...pipeline.errors import InputError
from ..sampling.runs import Segment

START_NS = 1_640_995_200 * NS_PER_S

# All hosts of a recording are in memory at once, since time runs over all of them: at 2000 samples of six signals 0.8 GB.
HOSTS_MAX = 8192
# A file of the dataset unpacks to some 100 kB; a hostile one must not fill the memory.
JSON_BYTES_MAX = 64 * 1024 * 1024

SIGNALS = {
    "ingressBytes": "rx_bytes",
    "egressBytes": "tx_bytes",
    "inRxmitBytes": "rx_retransmit_bytes",
    "outRxmitBytes": "tx_retransmit_bytes",
    "inCongestionExperiencedBytes": "rx_ecn_bytes",
    "connections": "connections",
}
_NAME = re.compile(r"rackId_(?P<rack>[^_.]+)_hostId_(?P<host>[^_.]+)")
_DAY = re.compile(r"day(\d+)-h(\d+)")
_RACK_KEYS = ("rackid", "rackId", "rack_id", "rack")
_HOST_KEYS = ("server_hostname", "hostid", "hostId", "host_id", "hostname")
_TIME_KEYS = ("start_time", "startTime", "timestamp", "time")
_SUFFIXES = (".json", ".json.gz", ".txt.gz")
# Milliseconds per sample, as the dataset means it; anything larger can only be samples per second.
_MILLISECONDS_MAX = 100
_ARRAY = re.compile(r'"(\w+)"\s*:\s*\[([^\[\]"{}]*)(\]?)')
_SCALAR = re.compile(r'"(\w+)"\s*:\s*("[^"\\]*"|-?\d[\d.eE+-]*)\s*[,}]')
_HINT = "take the file from the dataset again"


@dataclass(frozen=True)
class _Host:
    """One file as read: its segments up to the first fault, and that fault."""

    series: tuple[Segment, ...]
    fault: InputError | None = None


def looks_like_json(path: Path, head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is (gzipped) JSON of this dataset, by its name or first key."""
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 4096)
        except zlib.error:
            head = b""
        if not head:
            return bool(_NAME.search(path.name))
    if not head.lstrip().startswith(b"{"):
        return False
    keys = (*SIGNALS, "sampling_freq")
    return bool(_NAME.search(path.name)) or any(f'"{key}"'.encode() in head for key in keys)


def read_json(path: Path, fallback: str, rate: int) -> tuple[list[Segment], InputError | None]:
    """Return the samples of a file, or of all files below a folder, and the first fault if there is one.

    ``fallback`` names the device where neither the file nor its name does.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(_SUFFIXES)) if path.is_dir() else [path]
    if not files:
        raise InputError(str(path), "holds no file that ends in " + ", ".join(_SUFFIXES), "give the folder that holds the dataset's files")
    if len(files) > HOSTS_MAX:
        raise InputError(str(path), f"holds {len(files)} files, more than {HOSTS_MAX}", "replay the files of some racks at a time")
    series: list[Segment] = []
    faults: list[InputError] = []
    for file in files:
        host = _host(file, fallback, rate)
        series += host.series
        faults += [host.fault] if host.fault else []
    if not series and not faults:
        faults = [InputError(str(path), "holds no samples", _HINT)]
    series, twice = _without_overlap(path, series)
    faults += twice
    return series, _together(faults)


def _together(faults: list[InputError]) -> InputError | None:
    if len(faults) <= 1:
        return faults[0] if faults else None
    first = faults[0]
    return InputError(first.path, f"{first.problem} (and {len(faults) - 1} more faults in this recording)", first.hint)


def _without_overlap(path: Path, series: list[Segment]) -> tuple[list[Segment], list[InputError]]:
    """Drop segments that overlap in time with one of the same signal from another file; the first file by name counts."""
    seen: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    used, faults = [], []
    for one in series:
        spans = seen.setdefault((one.device, one.port, one.signal), [])
        if any(one.ts < end and start < one.end_ts for start, end in spans):
            faults.append(
                InputError(str(path), f"two files hold {one.signal} of {one.device} {one.port} at one time", "replay one of them")
            )
            continue
        spans.append((one.ts, one.end_ts))
        used.append(one)
    return used, faults


def _host(file: Path, fallback: str, rate: int) -> _Host:
    try:
        text, fault = _text(file)
    except OSError as error:
        return _Host((), InputError(str(file), f"cannot be read ({error.strerror})", "check its permissions"))
    record: Mapping[str, object] = {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        record = _salvaged(text)
        fault = fault or InputError(str(file), f"is not whole JSON ({str(error)[:80]})", _HINT)
    if not isinstance(record, dict):
        return _Host((), InputError(str(file), "is not a JSON object", _HINT))
    interval_ns = _interval_ns(record.get("sampling_freq", 1))
    if interval_ns is None:
        written = str(record["sampling_freq"])[:40]
        return _Host((), InputError(str(file), f"sampling_freq is {written!r}", "write the milliseconds per sample"))
    device, port = _names(file, record, fallback)
    ts = _start_ns(file, record) // interval_ns * interval_ns
    series = []
    for key in (key for key in SIGNALS if key in record):
        values, problem = _samples(record[key])
        series.append(Segment(device, port, SIGNALS[key], ts, interval_ns, values, rate))
        if problem and fault is None:
            fault = InputError(str(file), f"{key}: {problem}", "correct or remove the value; those before it are used")
    return _Host(tuple(sorted((one for one in series if len(one.values)), key=lambda one: one.signal)), fault)


def _text(file: Path) -> tuple[str, InputError | None]:
    """Return the text of a file, unpacked as far as it goes."""
    packed = file.read_bytes()
    if packed[:2] != b"\x1f\x8b":
        return packed[:JSON_BYTES_MAX].decode("utf-8", "replace"), None
    unpacker = zlib.decompressobj(wbits=31)
    text = bytearray()
    fault = None
    try:
        # In pieces, since an error loses what the failing call had unpacked.
        for start in range(0, len(packed), 1024):
            piece = packed[start : start + 1024]
            while piece and len(text) < JSON_BYTES_MAX:
                text += unpacker.decompress(piece, JSON_BYTES_MAX)
                piece = unpacker.unconsumed_tail
        if len(text) >= JSON_BYTES_MAX:
            fault = InputError(str(file), f"unpacks to more than {JSON_BYTES_MAX} bytes", _HINT)
        elif not unpacker.eof:
            fault = InputError(str(file), "is cut short", _HINT + "; what could be read is used")
    except zlib.error as error:
        fault = InputError(str(file), f"is damaged ({error})", _HINT + "; what could be read is used")
    return bytes(text[:JSON_BYTES_MAX]).decode("utf-8", "replace"), fault


def _salvaged(text: str) -> dict[str, object]:
    """Return the whole scalars and arrays of broken JSON, and the array at the break up to its last whole number."""
    record: dict[str, object] = {key: json.loads(value) for key, value in _SCALAR.findall(text) if _is_json_scalar(value)}
    for key, body, closed in _ARRAY.findall(text):
        numbers = body if closed else body.rpartition(",")[0]
        try:
            record[key] = json.loads(f"[{numbers}]")
        except ValueError:
            record[key] = []
    return record


def _is_json_scalar(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _interval_ns(sampling: object) -> int | None:
    """Return the sampling interval; ``None`` unless it is from 1 us to 10 s."""
    try:
        number = float(str(sampling))
    except ValueError:
        return None
    if not 0 < number < float("inf"):
        return None
    interval_ns = round(number * NS_PER_MS if number <= _MILLISECONDS_MAX else NS_PER_S / number)
    return interval_ns if 1_000 <= interval_ns <= 10 * NS_PER_S else None


def _names(file: Path, record: Mapping[str, object], fallback: str) -> tuple[str, str]:
    match = _NAME.search(file.name)

    def of(keys: Iterable[str], group: str) -> str | None:
        named = next((str(record[key]) for key in keys if isinstance(record.get(key), str | int)), None)
        return named or (match[group] if match else None)

    rack, host = of(_RACK_KEYS, "rack"), of(_HOST_KEYS, "host")
    return f"rack-{rack}" if rack else fallback, f"host-{host or file.name.split('.')[0]}"


def _start_ns(file: Path, record: Mapping[str, object]) -> int:
    """Return the start time: from the record, else the hour in the name of its folder, counted from ``START_NS``."""
    started = next((record[key] for key in _TIME_KEYS if key in record), None)
    if isinstance(started, int | float) and not isinstance(started, bool) and 1e8 < started < 4e18:
        # Seconds, milliseconds, microseconds or nanoseconds since 1970: only one of them is in this century.
        factor = next(unit for unit in (NS_PER_S, NS_PER_MS, 1000, 1) if started * unit < 4.1e18)
        return int(started * factor) if isinstance(started, float) else started * factor
    folder = _DAY.search(file.parent.name)
    hours = (int(folder[1]) - 1) * 24 + int(folder[2]) - 1 if folder else 0
    return START_NS + max(0, hours) * 3600 * NS_PER_S


def _samples(written: object) -> tuple[np.ndarray, str | None]:
    """Return an array's values up to the first that is no count, and the problem with that one."""
    if not isinstance(written, list):
        return np.empty(0, np.uint64), "is not an array"
    try:
        array = np.asarray(written)
    except ValueError:
        array = np.empty(0, object)
    if not written or (array.ndim == 1 and array.dtype.kind in "iuf" and array.min() >= 0 and array.max() < 2**63):
        return np.rint(array).astype(np.uint64) if array.dtype.kind == "f" else array.astype(np.uint64), None
    bad = next((index for index, value in enumerate(written) if not _is_count(value)), len(written))
    good = np.array([round(value) for value in written[:bad]], dtype=np.uint64)
    return good, f"sample {bad} is {str(written[bad])[:40]!r}, which is no count" if bad < len(written) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 2**63
