"""A sender of OTLP metrics over gRPC like SONiC's countersyncd: a gauge per SAI statistic, named by numbers.

Points are flushed when there are 10,000 of them or after a second. A refused request is sent again after 1 s, 2 s, 4 s ... 10 s; after 30
refusals its points are dropped and counted.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
import numpy as np
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ServiceError
from . import sai
from .hft import Session
from .script import SwitchSource

# Retryable codes of OTLP; after a late answer points may arrive twice.
_AGAIN = (
    *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED),
    *(grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS),
)


@dataclass(frozen=True, slots=True)
class OtlpSenderConfig:
    """Where to send and how. ``ca`` verifies the receiver by TLS; ``certificate`` and ``key`` identify the sender.

    ``values`` are floating-point numbers as in newer versions, or integers as in older ones. ``number_attributes`` adds the numbers of the
    statistic to each point.
    """

    address: str = "127.0.0.1:4317"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    values: Literal["double", "int"] = "double"
    number_attributes: bool = True
    flush_points: int = 10_000
    flush_s: float = 1.0
    pause_s_min: float = 1.0
    pause_s_max: float = 10.0
    refusals_max: int = 30
    answer_s_max: float = 10.0


@dataclass(frozen=True, slots=True)
class GaugePoints:
    """Values of one statistic as columns (n,): time (ns UTC), index into ``sai.objects``, value."""

    stat: sai.Stat
    ts: np.ndarray
    object: np.ndarray
    value: np.ndarray


def points(source: SwitchSource, sessions: Sequence[Session], ts: Sequence[int] | np.ndarray) -> list[GaugePoints]:
    """Return the values of the sessions at the instants ``ts``, in order of time within each statistic."""
    ts = np.asarray(ts, np.int64)
    state = source.at(ts)
    made = []
    for one in sessions:
        objects = np.array(one.objects)
        for stat in one.stats:
            value = stat.values(state)[:, objects].reshape(-1)
            made.append(GaugePoints(stat, np.repeat(ts, len(objects)), np.tile(objects, len(ts)), value))
    return made


class OtlpSender:
    """Sends the points of one switch. ``stop`` sets ``ended``, which ends all waiting."""

    def __init__(self, source: SwitchSource, config: OtlpSenderConfig, clock: Clock, ended: threading.Event | None = None) -> None:
        self._switch, self._config, self._clock = source.switch, config, clock
        self._names = {kind: sai.objects(source.switch, kind) for kind in (sai.PORT, sai.QUEUE, sai.POOL, sai.GROUP)}
        self._pending: list[GaugePoints] = []
        self._pending_points, self._since_ns = 0, 0
        self._ended = ended or threading.Event()
        self._channel: grpc.Channel | None = None
        self.sent = self.requests = self.refusals = self.dropped = 0

    def start(self) -> None:
        """Open the channel; the receiver may start later. Raises ``ServiceError`` if a certificate cannot be read."""
        config = self._config
        if config.ca is None:
            self._channel = grpc.insecure_channel(config.address)
            return
        try:
            ca, certificate, key = (path.read_bytes() if path else None for path in (config.ca, config.certificate, config.key))
        except OSError as error:
            raise ServiceError(f"lab: {error.filename} cannot be read ({error.strerror})", "name the folder of the certificates") from None
        self._channel = grpc.secure_channel(config.address, grpc.ssl_channel_credentials(ca, key, certificate))

    def send(self, some: Sequence[GaugePoints]) -> None:
        """Add points, and flush when there are enough or the oldest has waited long enough. Blocks while the receiver refuses."""
        if not self._pending:
            self._since_ns = self._clock.monotonic_ns()
        self._pending.extend(some)
        self._pending_points += sum(len(one.ts) for one in some)
        while self._pending_points >= self._config.flush_points:
            self._flush(self._config.flush_points)
        if self._pending and self._clock.monotonic_ns() - self._since_ns >= self._config.flush_s * NS_PER_S:
            self._flush(self._pending_points)

    def stop(self) -> None:
        """Send the pending points, trying once, and close. Idempotent."""
        if self._channel is not None:
            self._ended.set()
            while self._pending:
                self._flush(self._config.flush_points)
            self._channel.close()
        self._channel = None

    def _flush(self, most: int) -> None:
        request = self._request(list(self._take(most)))
        pause = self._config.pause_s_min
        for _ in range(self._config.refusals_max):
            try:
                self._export(request)
            except grpc.RpcError as error:
                self.refusals += 1
                if error.code() not in _AGAIN or self._ended.is_set():  # type: ignore[attr-defined]
                    break
                self._clock.wait(pause, self._ended)
                pause = min(2 * pause, self._config.pause_s_max)
            else:
                return
        self.dropped += _count(request)

    def _export(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        assert self._channel is not None
        stub = metrics_service_pb2_grpc.MetricsServiceStub(self._channel)
        answer = stub.Export(request, timeout=self._config.answer_s_max)
        rejected = answer.partial_success.rejected_data_points
        self.requests += 1
        self.sent += _count(request) - rejected
        self.dropped += rejected

    def _take(self, most: int) -> Iterator[GaugePoints]:
        while most and self._pending:
            first = self._pending[0]
            count = min(most, len(first.ts))
            yield GaugePoints(first.stat, first.ts[:count], first.object[:count], first.value[:count])
            if count == len(first.ts):
                del self._pending[0]
            else:
                self._pending[0] = GaugePoints(first.stat, first.ts[count:], first.object[count:], first.value[count:])
            most -= count
            self._pending_points -= count
        self._since_ns = self._clock.monotonic_ns()

    def _request(self, some: list[GaugePoints]) -> metrics_service_pb2.ExportMetricsServiceRequest:
        request = metrics_service_pb2.ExportMetricsServiceRequest()
        resource = request.resource_metrics.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "countersyncd"
        scope = resource.scope_metrics.add()
        scope.scope.name, scope.scope.version = "countersyncd", "1.0"
        metrics = {}
        for one in some:
            stat = one.stat
            if stat not in metrics:
                name = f"sai_counter_type_{stat.object_type}_stat_{stat.number}"
                metrics[stat] = scope.metrics.add(name=name, description=stat.name, unit="1").gauge
            gauge, names = metrics[stat], self._names[stat.object_type]
            numbers = [("sai_type_id", str(stat.object_type)), ("sai_stat_id", str(stat.number))] if self._config.number_attributes else []
            for ts, number, value in zip(one.ts.tolist(), one.object.tolist(), one.value.tolist(), strict=True):
                point = gauge.data_points.add(time_unix_nano=ts)
                if self._config.values == "double":
                    point.as_double = value
                else:
                    point.as_int = value
                for key, text in (("object_name", names[number]), *numbers):
                    point.attributes.add(key=key).value.string_value = text
        return request


def _count(request: metrics_service_pb2.ExportMetricsServiceRequest) -> int:
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    return sum(len(metric.gauge.data_points) for metric in metrics)
