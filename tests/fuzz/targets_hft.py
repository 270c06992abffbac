"""IPFIX of high-frequency telemetry, its side channel, and OTLP requests under fuzz."""

import struct
import tempfile
from pathlib import Path

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from weft.collectors.base import Options
from weft.collectors.hft.ipfix import IpfixDecoder
from weft.collectors.hft.names import read_names
from weft.collectors.hft.recording import HftRecording
from weft.collectors.otlp import kernel as otlp_kernel
from weft.collectors.otlp.points import OtlpSeries, Request
from weft.collectors.sampling.readings import Pace
from weft.pipeline.errors import InputError

_T0 = 1_700_000_000_000_000_000
_HELD_MAX = 1000


def _message(*sets: bytes, sequence: int = 0) -> bytes:
    body = b"".join(sets)
    return struct.pack(">HHIII", 10, 16 + len(body), 1_700_000_000, sequence, 1) + body


def _set(kind: int, content: bytes) -> bytes:
    return struct.pack(">HH", kind, 4 + len(content)) + content


_FIELDS = b"".join(struct.pack(">HHI", 0x8000 | 1 + k // 2, (8, 4, 8, 3)[k], 1 << 16 | (0, 9)[k % 2]) for k in range(4))
_PLAIN = _set(2, struct.pack(">HHHH", 256, 5, 325, 8) + _FIELDS)
_SPLIT = _set(2, struct.pack(">HHHHHH", 257, 4, 322, 4, 325, 4) + struct.pack(">HHI", 0x8000, 8, 0) + _FIELDS[:8])
_OPTIONS = _set(3, struct.pack(">HHHHHHH", 258, 2, 1, 149, 4, 41, 0xFFFF))
_DATA = [_set(256, struct.pack(">Q", _T0 + k * 100_000) + bytes(15) + bytes([k] * 8)) for k in range(6)]
_TWO = _set(257, struct.pack(">IIQQ", 1_700_000_000, 5, 0, 7) * 2) + _set(258, b"\0\0\0\1\3abc")
_STREAM = (
    _message(_PLAIN, _SPLIT, _OPTIONS) + b"".join(_message(one, sequence=k) for k, one in enumerate(_DATA)) + _message(_TWO, sequence=9)
)
_LATE = _message(_DATA[0]) + _message(_PLAIN) + _message(_set(2, struct.pack(">HH", 2, 0))) + _message(_DATA[1])


def _request(count: int) -> bytes:
    made = ExportMetricsServiceRequest()
    scope = made.resource_metrics.add().scope_metrics.add()
    for k in range(count):
        metric = scope.metrics.add(name=("sai_counter_type_1_stat_0", "SAI_QUEUE_STAT_BYTES", "other")[k % 3])
        kind = metric.sum if k % 2 else metric.gauge
        point = kind.data_points.add(time_unix_nano=_T0 + k // 3 * 100_000, as_int=k * 1000)
        point.attributes.add(key="object_name").value.string_value = "Ethernet0|3"
    scope.metrics.add(name="spread").histogram.data_points.add(time_unix_nano=_T0, count=1)
    return made.SerializeToString()


SEEDS = {
    "ipfix": [_STREAM, _LATE, _STREAM[:-7], _message(_PLAIN)],
    "hft_recording": [_STREAM, _LATE],
    "hft_names": [
        b'{"session": [{"name": "p|PORT", "object_names": ["Ethernet0"], "object_ids": [1], "poll_interval_us": 100}]}',
        b'{"HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE|p|QUEUE":'
        b' {"value": {"object_names": "a,b", "object_ids": "1,2", "session_config": "000a0010"}}}',
    ],
    "otlp": [_request(9), _request(1)],
}


def fuzz_ipfix(data: bytes) -> None:
    """Bytes as datagrams and as a stream in pieces: no more values than bytes, and the data waiting for templates stays bounded."""
    decoder = IpfixDecoder(held_bytes_max=_HELD_MAX, templates_max=50)
    buffer = np.frombuffer(data, np.uint8)
    half = len(data) // 2
    offsets, lengths = np.array([0, half]), np.array([half, len(data) - half])
    blocks = decoder.feed(buffer, offsets, lengths, np.array([0, 1]), _T0)
    stream, used, _ = decoder.feed_stream(buffer, 2, _T0 + 1)
    assert 0 <= used <= len(data)
    for block in blocks + stream:
        assert block.values.shape == (len(block.times), block.template.counters)
    assert sum(block.values.size for block in blocks + stream) <= 2 * len(data) + _HELD_MAX
    counts = decoder.counts()
    assert counts["held_bytes"] <= _HELD_MAX
    assert counts["templates"] <= 150
    decoder.end()
    assert sum(loss.missed for loss in decoder.losses() if loss.reason == "no_template") == decoder.counts().get("unknown_template_sets", 0)


def fuzz_hft_recording(data: bytes) -> None:
    """Bytes as a recording: a bounded number of rows, then perhaps one error with a hint; samples fit their slots."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.ipfix"
        path.write_bytes(data)
        rows = 0
        try:
            for batch in HftRecording(path, Options()).batches():
                rows += batch.frame.height
                if batch.family == "burst_sample" and batch.frame.height:
                    assert (batch.frame["interval_ns"] > 0).all()
                    assert (batch.frame["values"].list.len() > 0).all()
        except InputError as error:
            assert error.hint
        assert rows <= 10 * len(data) + 100


def fuzz_hft_names(data: bytes) -> None:
    """Bytes as a file of sessions: names, or one error with a hint."""
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".json", ".toml"):
            path = Path(folder) / f"names{ending}"
            path.write_bytes(data)
            try:
                names = read_names(path)
            except InputError as error:
                assert error.hint
                continue
            assert isinstance(names.of(1, 1), str)
            assert all(one[:2] == b"\0\x0a" for one in names.templates)


def fuzz_otlp(data: bytes) -> None:
    """Bytes as a request: rows lie inside it, and each point is a sample, a counter, a reading, or refused."""
    content = np.frombuffer(data, np.uint8)
    rows, passed, whole = otlp_kernel.walk(content, otlp_kernel.SEED)
    assert len(rows) <= len(data) // 20 + 1
    assert (passed >= 0).all()
    for at, size in ((otlp_kernel.POINT, otlp_kernel.POINT_BYTES), (otlp_kernel.NAME, otlp_kernel.NAME_BYTES)):
        assert (rows[:, at] >= 0).all()
        assert (rows[:, at] + rows[:, size] <= len(data)).all()
    if whole:
        points = OtlpSeries(Pace(), {}, "host.name", 5)
        made = points.take([Request("10.0.0.1", content, rows)], _T0 + 10**9) + points.end(_T0)
        assert sum(batch.frame.height for batch in made) <= 4 * len(rows) + 10
        assert points.counters()["points"] == len(rows)
