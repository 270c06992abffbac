"""Warming: after the built-in bytes, messages of a device compile nothing more."""

import subprocess
import sys

PROGRAM = """
import sys

import numpy as np
from numba.core.dispatcher import Dispatcher

from weft.collectors.gnmi.config import GNMI
from weft.collectors.otlp.config import OTLP
from weft.lab.bench.gnmi import _documents, _messages


def signatures():
    kernels = {
        f"{module.__name__}.{name}": value
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("weft.collectors")
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }
    return {name: len(kernel.signatures) for name, kernel in kernels.items()}
"""

GNMI_MESSAGES = (
    PROGRAM
    + """
from gnmi_pb import gnmi_pb2
from weft.collectors.gnmi.decoder import Decoder, Messages

GNMI.warm()
before = signatures()
decoder = Decoder()
decoder.stream("leaf1", names_devices=True)
texts = gnmi_pb2.Notification(timestamp=1)
for number in range(3000):
    texts.update.add(path=gnmi_pb2.Path(elem=[gnmi_pb2.PathElem(name=f"leaf-{number}")]), val=gnmi_pb2.TypedValue(bytes_val=b"12345"))
many = [gnmi_pb2.SubscribeResponse(update=texts).SerializeToString()]
for raw in (_messages(1, prefix=True), _messages(1, prefix=False), _documents(1), many):
    for part in (raw, raw[:1]):
        assert decoder.decode(Messages(part, np.zeros(len(part), np.int32), np.ones(len(part), np.int64))).batches
assert decoder.paths > 2048
"""
)

OTLP_REQUESTS = (
    PROGRAM
    + """
import time

import grpc
from weft.collectors.otlp.receiver import Otlp, OtlpConfig
from weft.pipeline.clock import SystemClock
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

OTLP.warm()
before = signatures()
now = time.time_ns() - 10**9
request = ExportMetricsServiceRequest()
scope = request.resource_metrics.add().scope_metrics.add()
for name, values in (("sai_counter_type_1_stat_0", (1, 2, 9)), ("sai_counter_type_21_stat_0", (1.0, 2.0, 3.0)), ("other", (0.5,))):
    metric = scope.metrics.add(name=name)
    for number, value in enumerate(values):
        point = metric.gauge.data_points.add(time_unix_nano=now + number * 10**6)
        setattr(point, "as_int" if isinstance(value, int) else "as_double", value)
        point.attributes.add(key="object_name" if name != "other" else "x").value.string_value = "Ethernet0|1"
live = Otlp(OtlpConfig(enabled=True, port=0), SystemClock())
live.start()
with grpc.insecure_channel(f"127.0.0.1:{live.port}") as channel:
    export = channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
    export(request.SerializeToString(), timeout=20)
assert live.drain()
live.stop()
live.drain()
"""
)

COMPARED = """
after = signatures()
assert any(before.values())
assert after == before, {name: (before.get(name, 0), number) for name, number in after.items() if number != before.get(name, 0)}
"""


def test_messages_compile_nothing_after_warming():
    """After ``warm``, gNMI messages of every kind, alone and many, and tables that grow, use kernels that are compiled already."""
    subprocess.run([sys.executable, "-c", GNMI_MESSAGES + COMPARED], check=True, timeout=300)


def test_requests_compile_nothing_after_warming():
    """After ``warm``, OTLP requests of whole numbers, doubles and other points use kernels that are compiled already."""
    subprocess.run([sys.executable, "-c", OTLP_REQUESTS + COMPARED], check=True, timeout=300)
