"""The OTLP sender: a receiver made of the published stubs gets every value, and refusals are retried as by countersyncd."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from weft.lab.switch import hft, sai
from weft.lab.switch.otlp import OtlpSender, OtlpSenderConfig, points
from weft.lab.switch.script import LOSSLESS, START_NS, Script, Shape
from weft.pipeline.clock import ManualClock, SystemClock
from weft.pipeline.errors import ServiceError

TS = [START_NS + 10**9 + n * 10**6 for n in range(3)]


class Receiver(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Stores requests; refuses the first calls with the given codes."""

    def __init__(self, refusals: tuple[grpc.StatusCode, ...] = (), rejected: int = 0) -> None:
        self.requests: list[metrics_service_pb2.ExportMetricsServiceRequest] = []
        self.refusals, self.rejected = list(refusals), rejected
        self.lock = threading.Lock()

    def Export(self, request, context):
        """Take a request."""
        with self.lock:
            if self.refusals:
                context.abort(self.refusals.pop(0), "not now")
            self.requests.append(request)
        answer = metrics_service_pb2.ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = self.rejected
        return answer

    def metrics(self) -> list:
        """Return all metrics received."""
        return [m for request in self.requests for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics]

    def values(self) -> dict[tuple[str, str, int], float]:
        """Return the value of each point by metric, object and time; check that none came twice."""
        found = {}
        for metric in self.metrics():
            for point in metric.gauge.data_points:
                attributes = {one.key: one.value.string_value for one in point.attributes}
                key = (metric.name, attributes["object_name"], point.time_unix_nano)
                assert key not in found
                found[key] = point.as_double if point.WhichOneof("value") == "as_double" else point.as_int
        return found


@pytest.fixture
def receive() -> Iterator[Callable[..., tuple[Receiver, int]]]:
    """Return a function that starts a receiver and returns it with its port; it ends with the test."""
    servers: list[grpc.Server] = []

    def start(*refusals: grpc.StatusCode, rejected: int = 0, credentials=None) -> tuple[Receiver, int]:
        receiver = Receiver(refusals, rejected)
        server = grpc.server(futures.ThreadPoolExecutor(2))
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)
        port = server.add_secure_port("localhost:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return receiver, port

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def script() -> Script:
    """Return a switch of eight ports."""
    return Script(Shape(ports=8))


def sessions(script: Script) -> list[hft.Session]:
    """Return sessions of the ports' octets, the lossless queues' occupancy, and the pool."""
    return [
        hft.session(script, sai.PORT, ("IF_IN_OCTETS", "IF_OUT_OCTETS")),
        hft.session(script, sai.QUEUE, ("CURR_OCCUPANCY_BYTES",), (LOSSLESS,)),
        hft.session(script, sai.POOL, ("WATERMARK_BYTES",)),
    ]


@pytest.mark.parametrize("kind", ["double", "int"])
def test_every_value_arrives_under_its_numbers(script, receive, kind):
    """Each value of each object and time arrives once, as a gauge named by type and statistic."""
    receiver, port = receive()
    sender = OtlpSender(script, OtlpSenderConfig(f"127.0.0.1:{port}", values=kind), SystemClock())
    sender.start()
    sender.send(points(script, sessions(script), TS))
    sender.stop()
    state, expected = script.at(TS), {}
    for row, ts in enumerate(TS):
        for index, name in enumerate(script.switch.ports):
            expected["sai_counter_type_1_stat_0", name, ts] = state.port("rx_bytes")[row, index]
            expected["sai_counter_type_1_stat_9", name, ts] = state.port("tx_bytes")[row, index]
            expected["sai_counter_type_21_stat_24", f"{name}|3", ts] = state.queue("occupancy_bytes")[row, index, LOSSLESS]
        expected["sai_counter_type_24_stat_1", script.switch.pool, ts] = state.pool("watermark_bytes")[row]
    assert receiver.values() == expected
    assert (sender.sent, sender.dropped) == (len(expected), 0)
    (resource,) = receiver.requests[0].resource_metrics
    assert [(one.key, one.value.string_value) for one in resource.resource.attributes] == [("service.name", "countersyncd")]
    (attributes,) = {tuple(a.key for a in p.attributes) for m in receiver.metrics() for p in m.gauge.data_points}
    assert attributes == ("object_name", "sai_type_id", "sai_stat_id")


def test_points_are_flushed_by_number_and_by_time(script, receive):
    """A request has at most the points of a flush; fewer are sent after the time limit."""
    receiver, port = receive()
    clock = ManualClock()
    sender = OtlpSender(script, OtlpSenderConfig(f"127.0.0.1:{port}", flush_points=20), clock)
    sender.start()
    made = points(script, sessions(script), TS)
    total = sum(len(one.ts) for one in made)
    sender.send(made)
    assert [
        sum(len(m.gauge.data_points) for m in request.resource_metrics[0].scope_metrics[0].metrics) for request in receiver.requests
    ] == [20] * (total // 20)
    clock.advance(0.9)
    sender.send([])
    assert sender.sent == total // 20 * 20
    clock.advance(0.2)
    sender.send([])
    assert sender.sent == total
    sender.stop()


def test_what_is_refused_for_now_is_sent_again(script, receive):
    """After RESOURCE_EXHAUSTED and UNAVAILABLE the same points come again, after 1, 2 and 4 s, and arrive once."""
    receiver, port = receive(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    clock = ManualClock()
    sender = OtlpSender(script, OtlpSenderConfig(f"127.0.0.1:{port}", flush_points=10), clock)
    sender.start()
    began = clock.monotonic_ns()
    made = points(script, sessions(script)[:1], TS[:1])
    sender.send(made)
    assert (clock.monotonic_ns() - began) / 1e9 == pytest.approx(1 + 2 + 4)
    sender.stop()
    assert len(receiver.values()) == sum(len(one.ts) for one in made)
    assert (sender.refusals, sender.dropped) == (3, 0)


@pytest.mark.parametrize(
    ("refusals", "seconds"),
    [([grpc.StatusCode.INVALID_ARGUMENT], 0), ([grpc.StatusCode.UNAVAILABLE] * 5, 1 + 2 + 4 + 8 + 10)],
    ids=["for good", "for too long"],
)
def test_what_is_refused_for_good_is_counted(script, receive, refusals, seconds):
    """A permanent refusal, or the maximum of refusals, drops the points and counts them; pauses are at most 10 s."""
    receiver, port = receive(*refusals)
    clock = ManualClock()
    sender = OtlpSender(script, OtlpSenderConfig(f"127.0.0.1:{port}", flush_points=16, refusals_max=5), clock)
    sender.start()
    began = clock.monotonic_ns()
    sender.send(points(script, sessions(script)[:1], TS[:1]))
    assert (clock.monotonic_ns() - began) / 1e9 == pytest.approx(seconds)
    assert (sender.sent, sender.dropped, receiver.values()) == (0, 16, {})
    sender.stop()


def test_points_that_the_receiver_drops_are_counted(script, receive):
    """A partial success counts the rejected points as dropped."""
    _, port = receive(rejected=5)
    sender = OtlpSender(script, OtlpSenderConfig(f"127.0.0.1:{port}"), SystemClock())
    sender.start()
    sender.send(points(script, sessions(script)[:1], TS[:1]))
    sender.stop()
    assert (sender.sent, sender.dropped) == (11, 5)


def test_both_ends_show_certificates(script, receive, certificates: Path):
    """With TLS the sender verifies the receiver and presents its own certificate on request."""
    read = {name: (certificates / name).read_bytes() for name in ("server.key", "server.crt", "ca.crt")}
    credentials = grpc.ssl_server_credentials([(read["server.key"], read["server.crt"])], read["ca.crt"], True)
    receiver, port = receive(credentials=credentials)
    own = (certificates / "client.crt", certificates / "client.key")
    for ca, pair, arrives in (("ca.crt", own, True), ("other.crt", own, False), ("ca.crt", (None, None), False)):
        receiver.requests.clear()
        config = OtlpSenderConfig(f"localhost:{port}", certificates / ca, *pair, refusals_max=1)
        sender = OtlpSender(script, config, ManualClock())
        sender.start()
        sender.send(points(script, sessions(script)[:1], TS[:1]))
        sender.stop()
        assert bool(receiver.requests) == arrives


def test_a_missing_certificate_is_reported(script, tmp_path: Path):
    """A missing file is reported in one sentence with its name."""
    with pytest.raises(ServiceError, match=r"nothing\.crt cannot be read"):
        OtlpSender(script, OtlpSenderConfig(ca=tmp_path / "nothing.crt"), SystemClock()).start()
