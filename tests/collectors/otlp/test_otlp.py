"""The OTLP receiver: real requests over a real channel become samples, counters and readings; overload is refused, not dropped."""

import shutil
import subprocess
import time

import grpc
import numpy as np
import polars as pl
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse

from weft.collectors.base import Batch
from weft.collectors.otlp import kernel
from weft.collectors.otlp.points import OtlpSeries, Request
from weft.collectors.otlp.receiver import Otlp, OtlpConfig
from weft.collectors.sampling.readings import Pace
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import ConfigError, InputError, ServiceError
from weft.pipeline.tables.families import FAMILIES

STEP = 1_000_000
LIMIT_S = 20.0
METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"

Point = tuple[str, dict[str, str], int, float | int]


def request(points: list[Point], *, shape: str = "gauge", resource: dict[str, str] | None = None) -> ExportMetricsServiceRequest:
    """Return a request of points (name, attributes, time, value); points of one name that follow one another share a metric."""
    made = ExportMetricsServiceRequest()
    part = made.resource_metrics.add()
    for key, text in (resource or {"service.name": "countersyncd"}).items():
        part.resource.attributes.add(key=key).value.string_value = text
    scope = part.scope_metrics.add()
    scope.scope.name = "countersyncd"
    metric = None
    for name, attributes, ts, value in points:
        if metric is None or metric.name != name:
            metric = scope.metrics.add(name=name, description="SAI counter", unit="1")
        if shape == "sum":
            metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, 2
        point = getattr(metric, shape).data_points.add(time_unix_nano=ts)
        if isinstance(value, int):
            point.as_int = value
        else:
            point.as_double = value
        for key, text in attributes.items():
            point.attributes.add(key=key).value.string_value = text
    return made


def started(**settings) -> Otlp:
    """Return a receiver on a free port."""
    live = Otlp(OtlpConfig(enabled=True, port=0, **settings), SystemClock())
    live.start()
    return live


def send(live: Otlp, *requests: ExportMetricsServiceRequest | bytes) -> list[bytes]:
    """Send requests over a channel and return the answers."""
    with grpc.insecure_channel(f"127.0.0.1:{live.port}") as channel:
        export = channel.unary_unary(METHOD)
        return [export(one if isinstance(one, bytes) else one.SerializeToString(), timeout=LIMIT_S) for one in requests]


def joined(batches: list[Batch], family: str) -> pl.DataFrame:
    """Return all rows of a family, each frame checked against the table."""
    table = FAMILIES[family]
    frames = [batch.frame for batch in batches if batch.family == family]
    assert all(dict(frame.schema) == table.polars for frame in frames)
    return pl.concat([table.empty(), *frames])


def rows_of(requests: list[ExportMetricsServiceRequest], **settings) -> tuple[list[Batch], dict[str, float]]:
    """Send requests to a new receiver; return all its batches and its counters."""
    live = started(**settings)
    try:
        for one in requests:
            (answer,) = send(live, one)
            assert ExportMetricsServiceResponse.FromString(answer) == ExportMetricsServiceResponse()
        batches = live.drain()
    finally:
        live.stop()
    batches += live.drain()
    return batches, {name.removeprefix("weft_collectors_otlp_").removesuffix("_total"): number for name, number in live.counters().items()}


def test_differences_are_not_counters():
    """Sums of delta temporality are a gap where a counter is needed; those of other series are readings."""
    first = start_ns()
    points: list[Point] = [("sai_counter_type_1_stat_0", {"object_name": "Ethernet0"}, first + k * STEP, 1000 + k) for k in range(9)]
    sent = request([*points, ("node.moved", {}, first, 5)], shape="sum")
    for metric in sent.resource_metrics[0].scope_metrics[0].metrics:
        metric.sum.aggregation_temporality = 1
    batches, counted = rows_of([sent])
    assert joined(batches, "burst_sample").height == joined(batches, "port").height == 0
    assert joined(batches, "gap").select("what", "missed", "reason").rows() == [("points", 9, "delta_temporality")]
    assert joined(batches, "reading").select("name", "value").rows() == [("node.moved", 5.0)]
    assert counted["delta_points"] == 9


def start_ns() -> int:
    """Return a time just passed, on the grid of the poll."""
    return (time.time_ns() - 2 * 10**9) // STEP * STEP


def names(kind: int, stat: int, spelled: str) -> list[tuple[str, dict[str, str]]]:
    """Return a statistic as older and newer switches name it, with the attributes that they send."""
    return [
        (f"sai_counter_type_{kind}_stat_{stat}", {"sai_type_id": str(kind), "sai_stat_id": str(stat)}),
        (spelled, {"sai_type": "SAI_OBJECT_TYPE", "sai_stat": spelled}),
    ]


@pytest.mark.parametrize("version", [0, 1], ids=["numbers", "names"])
@pytest.mark.parametrize("form", [int, float])
@pytest.mark.parametrize("shape", ["gauge", "sum"])
def test_gauges_of_a_switch_become_counters_again(version, form, shape):
    """SAI statistics, by number or by name, as whole numbers or doubles, gauges or sums, give samples and rows of counters."""
    n, first = 300, start_ns()
    values = np.cumsum(np.random.default_rng(1).integers(0, 10**6, n)).tolist()
    name, extra = names(1, 0, "SAI_PORT_STAT_IF_IN_OCTETS")[version]
    points = [(name, {"object_name": "Ethernet8", **extra}, first + k * STEP, form(value)) for k, value in enumerate(values)]
    requests = [request(points[:170], shape=shape), request(points[170:], shape=shape)]
    batches, counters = rows_of(requests, devices={"127.0.0.1": "leaf1"}, interval_us=STEP / 1000)
    samples = joined(batches, "burst_sample").sort("ts")
    assert samples["values"].explode().to_list() == np.diff(values).tolist()
    head = samples.select("device", "port", "queue", "signal", "interval_ns", "source").unique().rows()
    assert head == [("leaf1", "Ethernet8", "", "rx_bytes", STEP, "otlp")]
    last = joined(batches, "port").sort("ts").select("port", "rx_bytes").rows()[-1]
    assert last == ("Ethernet8", values[-1])
    assert joined(batches, "gap").height == 0
    assert (counters["points"], counters["samples"], counters["readings"], counters["series"]) == (n, n - 1, n, 1)


def test_many_objects_in_one_request():
    """Series of ports, queues and pools, cut into requests within a poll, each give their own samples."""
    n, first = 100, start_ns()
    rng = np.random.default_rng(2)
    objects = [(21, 1, f"Ethernet{p}|{q}") for p in range(4) for q in range(8)] + [(24, 0, "egress_lossless_pool")]
    values = np.cumsum(rng.integers(0, 10**6, (n, len(objects))), axis=0)
    points = [
        (f"sai_counter_type_{kind}_stat_{stat}", {"object_name": name}, first + k * STEP, int(values[k, o]))
        for k in range(n)
        for o, (kind, stat, name) in enumerate(objects)
    ]
    cuts = [points[at : at + 777] for at in range(0, len(points), 777)]
    batches, _ = rows_of([request(cut) for cut in cuts], interval_us=STEP / 1000)
    samples = joined(batches, "burst_sample").sort("ts")
    for o, (_, _, name) in enumerate(objects[:-1]):
        port, queue = name.split("|")
        mine = samples.filter(port=port, queue=queue, signal="tx_bytes")
        assert mine["values"].explode().to_list() == np.diff(values[:, o]).tolist()
    pool = samples.filter(port="", queue="egress_lossless_pool", signal="queue_bytes")
    assert pool["values"].explode().to_list() == values[:, -1].tolist()
    assert joined(batches, "gap").height == 0


def test_counters_above_the_signed_range_come_whole():
    """A counter above 2^63, sent as a negative number of 64 bits, is read as the counter."""
    first, values = start_ns(), [2**63 - 5, 2**63 + 5, 2**63 + 15, 2**63 + 20, 2**63 + 21]
    points = [
        ("sai_counter_type_1_stat_9", {"object_name": "Ethernet0"}, first + k * STEP, value - 2**64 if value >= 2**63 else value)
        for k, value in enumerate(values)
    ]
    batches, _ = rows_of([request(points)], interval_us=STEP / 1000)
    assert joined(batches, "burst_sample").sort("ts")["values"].explode().to_list() == [10, 10, 5, 1]
    assert joined(batches, "port").sort("ts")["tx_bytes"].to_list()[-1] == values[-1]


def test_a_slow_stream_tells_its_interval_in_five_readings():
    """With one poll in each request, samples begin once five polls gave the interval, or at once if it is configured."""
    first, n = start_ns(), 12
    points = [("sai_counter_type_1_stat_0", {"object_name": "Ethernet0"}, first + k * 50 * STEP, 1000 * k) for k in range(n)]
    for interval_us, missing in ((0.0, 4), (50_000.0, 0)):
        live = started(interval_us=interval_us)
        try:
            batches = []
            for point in points:
                send(live, request([point]))
                batches += live.drain()
        finally:
            live.stop()
        assert joined(batches, "burst_sample")["values"].explode().to_list() == [1000] * (n - 1 - missing)
        assert joined(batches, "gap").height == 0


def test_a_device_that_falls_silent_gives_its_last_row():
    """Counters of a device that becomes silent are written after some seconds, without a further point."""
    points = OtlpSeries(Pace(), {}, "", 10)
    content = request([("sai_counter_type_1_stat_0", {"object_name": "Ethernet0"}, 10**18, 7)]).SerializeToString()
    walked = kernel.walk(np.frombuffer(content, np.uint8), kernel.SEED)[0]
    assert [batch.family for batch in points.take([Request("leaf", np.frombuffer(content, np.uint8), walked)], 10**18)] == []
    assert points.quiet(10**18 + 10**9) == []
    (batch,) = points.quiet(10**18 + 4 * 10**9)
    assert batch.frame.select("device", "port", "rx_bytes").rows() == [("leaf", "Ethernet0", 7)]
    assert points.quiet(10**18 + 9 * 10**9) == []


def test_other_metrics_become_readings():
    """A metric that is not a SAI statistic gives a reading per point, under its name and attributes; whole numbers stay exact."""
    first = start_ns()
    points = [
        ("node.temperature", {"sensor": "1", "a": "b"}, first, 41.5),
        ("node.errors", {}, first + 1, 2**60 + 1),
        ("node.delta", {}, first + 2, -3),
    ]
    batches, counters = rows_of([request(points, resource={"host.name": "gpu7"})])
    rows = joined(batches, "reading").sort("ts").select("ts", "device", "object", "name", "value", "count").rows()
    assert rows == [
        (first, "gpu7", "a=b,sensor=1", "node.temperature", 41.5, None),
        (first + 1, "gpu7", "", "node.errors", float(2**60 + 1), 2**60 + 1),
        (first + 2, "gpu7", "", "node.delta", -3.0, None),
    ]
    assert counters["readings_generic"] == 3


def test_points_without_a_place_are_counted_and_admitted():
    """Points beyond the limit of series become a gap; points without time or value and histograms are counted."""
    first = start_ns()
    made = request([(f"metric{k}", {}, first, 1.0) for k in range(5)])
    metrics = made.resource_metrics[0].scope_metrics[0].metrics
    metrics.add(name="timeless").gauge.data_points.add(as_int=1)
    metrics.add(name="valueless").gauge.data_points.add(time_unix_nano=first)
    metrics.add(name="spread").histogram.data_points.add(time_unix_nano=first, count=3)
    batches, counters = rows_of([made], series_max=3)
    assert joined(batches, "reading").height == 3
    assert joined(batches, "gap").select("what", "missed", "reason").rows() == [("points", 2, "series_max")]
    reasons = ("refused_points", "timeless_points", "valueless_points", "histogram_points")
    assert [counters[what] for what in reasons] == [2, 1, 1, 1]


def status(live: Otlp, content: bytes) -> grpc.RpcError:
    """Return the error that a request is answered with."""
    with pytest.raises(grpc.RpcError) as error:
        send(live, content)
    return error.value


def test_a_full_queue_refuses_and_takes_again_later():
    """When the queue is full the sender has to retry, which succeeds after the next drain: nothing acknowledged is lost."""
    first = start_ns()
    one = request([("some.metric", {"k": "v" * 500}, first + k, float(k)) for k in range(20)]).SerializeToString()
    live = started(queue_bytes_max=8 * len(one))
    try:
        send(live, one)
        refused = status(live, one)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = dict(refused.trailing_metadata())["grpc-status-details-bin"]
        assert b"google.rpc.RetryInfo" in details
        batches = live.drain()
        send(live, one)
        batches += live.drain()
    finally:
        live.stop()
    assert joined(batches, "reading").height == 40
    assert live.counters()["weft_collectors_otlp_refused_queue_full_requests_total"] == 1
    assert live.counters()["weft_collectors_otlp_queued_bytes"] == 0


def test_compressed_requests_are_taken():
    """A request in gzip, which many exporters send, is read."""
    live = started()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{live.port}", compression=grpc.Compression.Gzip) as channel:
            content = request([("some.metric", {"k": "v" * 1000}, start_ns(), 1.0)]).SerializeToString()
            channel.unary_unary(METHOD)(content, timeout=LIMIT_S)
        assert joined(live.drain(), "reading").height == 1
    finally:
        live.stop()


def test_what_is_no_request_is_refused():
    """Malformed requests are answered as invalid and take no room in the queue; the next request is accepted."""
    live = started()
    try:
        assert status(live, b"\x0a\xff\xff\xff\xff\x7f").code() is grpc.StatusCode.INVALID_ARGUMENT
        send(live, request([("some.metric", {}, start_ns(), 1.0)]))
        batches = live.drain()
    finally:
        live.stop()
    assert joined(batches, "reading").height == 1
    counters = live.counters()
    assert (counters["weft_collectors_otlp_refused_broken_requests_total"], counters["weft_collectors_otlp_queued_bytes"]) == (1, 0)


def test_a_request_that_is_too_large_is_refused():
    """A request above its limit is refused before all of it is in memory."""
    live = started(request_bytes_max=10_000)
    try:
        assert status(live, bytes(20_000)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        live.stop()


def test_strangers_are_refused():
    """A sender outside the allowed networks is refused and counted."""
    live = started(allow=("192.0.2.0/24",))
    try:
        assert status(live, b"").code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        live.stop()
    assert live.counters()["weft_collectors_otlp_refused_not_allowed_requests_total"] == 1


def test_a_port_in_use_says_so():
    """A port in use is an error with a hint."""
    live = started()
    try:
        with pytest.raises(ServiceError, match="is not available"):
            Otlp(OtlpConfig(port=live.port), SystemClock()).start()
    finally:
        live.stop()


@pytest.mark.parametrize(
    "wrong", [{"interval_us": -1.0}, {"counters_interval_ms": 0}, {"certificate": "some.pem"}, {"client_authority": "a"}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    """A setting out of its range, or half of a pair, is an error that names it."""
    with pytest.raises(ConfigError):
        OtlpConfig(**wrong)


def test_a_certificate_that_is_not_there_says_so(tmp_path):
    """A TLS file that cannot be read is an error that names it."""
    with pytest.raises(InputError, match=r"no\.pem"):
        Otlp(OtlpConfig(port=0, certificate=str(tmp_path / "no.pem"), key=str(tmp_path / "no.pem")), SystemClock()).start()


def walked(content: bytes) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return the kernel's rows of a request."""
    return kernel.walk(np.frombuffer(content, np.uint8), kernel.SEED)


def naive(message: ExportMetricsServiceRequest) -> list[tuple[int, int | float]]:
    """Return time and value of every usable point, as protobuf's own classes read them."""
    return [
        (point.time_unix_nano, getattr(point, point.WhichOneof("value")))
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data") or "gauge").data_points
        if point.DESCRIPTOR.name == "NumberDataPoint" and point.WhichOneof("value") and 0 < point.time_unix_nano < 2**62
    ]


def times_and_values(rows: np.ndarray) -> list[tuple[int, int | float]]:
    """Return time and value of the kernel's rows."""
    doubles = rows[:, kernel.VALUE].copy().view(np.float64).tolist()
    integer = (rows[:, kernel.FORM] == kernel.INTEGER).tolist()
    return [
        (ts, whole if is_whole else double)
        for ts, whole, double, is_whole in zip(rows[:, kernel.TIME].tolist(), rows[:, kernel.VALUE].tolist(), doubles, integer, strict=True)
    ]


POINTS = st.lists(
    st.tuples(
        st.text(max_size=8),
        st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3),
        st.integers(0, 2**64 - 1),
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)),
    ),
    max_size=12,
)


@given(POINTS, st.sampled_from(["gauge", "sum"]), st.dictionaries(st.text(max_size=4), st.text(max_size=9), max_size=2))
@settings(max_examples=150, deadline=None)
def test_the_kernel_reads_what_protobuf_reads(points, shape, resource):
    """Times, values and series of any request are those that protobuf's own classes give."""
    made = request(points, shape=shape, resource=resource)
    rows, _, whole = walked(made.SerializeToString())
    assert whole
    assert times_and_values(rows) == naive(made)
    # Equal names and attributes, in their order, are one series; no others are.
    said = [(name, tuple(attributes.items())) for name, attributes, ts, _ in points if 0 < ts < 2**62]
    assert len(set(zip(said, rows[:, kernel.SERIES].tolist(), strict=True))) == len(set(said)) == len(set(rows[:, kernel.SERIES].tolist()))


WHOLE = request([(f"m{k // 3}", {"object_name": f"Ethernet{k}"}, 10**18 + k, k) for k in range(9)]).SerializeToString()


def test_a_request_cut_anywhere_is_no_request_or_a_shorter_one():
    """Cut at every byte, the kernel refuses it where protobuf does, and reads the same where it does not."""
    for cut in range(len(WHOLE)):
        rows, _, whole = walked(WHOLE[:cut])
        try:
            shorter = ExportMetricsServiceRequest.FromString(WHOLE[:cut])
        except DecodeError:
            assert not whole
        else:
            assert whole
            assert times_and_values(rows) == naive(shorter)


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_rows_or_none(noise, flips):
    """Random bytes, and requests with bytes changed, never raise; rows lie inside the request."""
    damaged = bytearray(WHOLE)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    for content in (noise, bytes(damaged)):
        rows, _, _ = walked(content)
        assert len(rows) <= len(content) // 20
        for at, size in ((kernel.POINT, kernel.POINT_BYTES), (kernel.NAME, kernel.NAME_BYTES), (kernel.RESOURCE, kernel.RESOURCE_BYTES)):
            assert (rows[:, at] >= 0).all()
            assert (rows[:, at] + rows[:, size] <= len(content)).all()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls_with_a_certificate(tmp_path):
    """With a certificate the same requests come over TLS, and a client without TLS cannot connect."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
        *subject,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    live = started(certificate=str(certificate), key=str(key))
    try:
        with grpc.secure_channel(f"127.0.0.1:{live.port}", grpc.ssl_channel_credentials(certificate.read_bytes())) as channel:
            channel.unary_unary(METHOD)(request([("some.metric", {}, start_ns(), 1.0)]).SerializeToString(), timeout=LIMIT_S)
        assert status(live, b"").code() is grpc.StatusCode.UNAVAILABLE
        batches = live.drain()
    finally:
        live.stop()
    assert joined(batches, "reading").height == 1
