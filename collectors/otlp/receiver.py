"""An OTLP receiver: the gRPC service to which SONiC's ``countersyncd`` and any OpenTelemetry exporter send metrics.

A request is acknowledged once it is in a bounded queue. If the queue is full, the answer is ``RESOURCE_EXHAUSTED`` with a retry
delay, so the sender keeps the request: nothing acknowledged is dropped. A malformed request is answered ``INVALID_ARGUMENT``,
which senders do not retry.
"""

import ipaddress
import threading
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...pipeline.clock import Clock
from ...pipeline.errors import InputError, ServiceError
from ..base import Batch
from . import kernel
from .config import SOURCE, OtlpConfig
from .points import OtlpSeries, Request, warm

if TYPE_CHECKING:
    import grpc

_SERVICE, _METHOD = "opentelemetry.proto.collector.metrics.v1.MetricsService", "Export"
_THREADS = 4
_STOP_S = 2.0
_RETRY_S = 1
_GAUGES = ("queued_bytes", "series", "unknown_series", "devices")


class Otlp:
    """Receives metrics between ``start`` and ``stop``."""

    def __init__(self, config: OtlpConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._points = OtlpSeries(config.pace, config.devices, config.device_attribute, config.series_max)
        self._networks = [ipaddress.ip_network(text, strict=False) for text in config.allow]
        self._server: grpc.Server | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._counts: Counter[str] = Counter()
        self.port = config.port

    def start(self) -> None:
        """Listen. Raises ``InputError`` for a TLS file that cannot be read, ``ServiceError`` if the address is not available."""
        import grpc

        config = self._config
        # Else the first request would wait until the kernels are compiled.
        warm()
        credentials = self._credentials()
        server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="otlp"),
            maximum_concurrent_rpcs=config.requests_max,
            options=[("grpc.max_receive_message_length", config.request_bytes_max), ("grpc.so_reuseport", 0)],
        )
        # Requests stay bytes: the kernel reads them.
        method = grpc.unary_unary_rpc_method_handler(self._export)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method}),))
        address = f"[{config.address}]:{config.port}" if ":" in config.address else f"{config.address}:{config.port}"
        try:
            bound = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise ServiceError(f"collect.otlp: {address} is not available", "choose another address or port in [collect.otlp]")
        self.port, self._server, self._stopped = bound, server, False
        server.start()

    def stop(self) -> None:
        """Answer pending requests and close. Idempotent."""
        if self._server is not None:
            self._server.stop(_STOP_S).wait()
            self._server, self._stopped = None, True

    def drain(self) -> list[Batch]:
        """Return rows of the requests since the last call."""
        with self._lock:
            requests, self._queue = list(self._queue), deque()
            self._queued_bytes -= sum(_cost(request.content) for request in requests)
        now_ns = self._clock.now_ns()
        batches = [*self._points.take(requests, now_ns), *self._points.quiet(now_ns)]
        if self._stopped:
            self._stopped = False
            batches += self._points.end(now_ns)
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return counts of requests, points and samples, and of refusals by reason."""
        with self._lock:
            counts = {**self._counts, "queued_bytes": self._queued_bytes, **self._points.counters()}
        return {f"weft_collectors_{SOURCE}_{what}{'' if what in _GAUGES else '_total'}": float(number) for what, number in counts.items()}

    def _export(self, content: bytes, context: Any) -> bytes:
        """Answer one request; an empty answer accepts all of it."""
        sender = _sender(context.peer())
        if not any(ipaddress.ip_address(sender) in network for network in self._networks if sender):
            self._refuse(context, "not_allowed", "PERMISSION_DENIED", f"{sender} is not in collect.otlp.allow")
        with self._lock:
            full = self._queued_bytes + _cost(content) > self._config.queue_bytes_max
            self._queued_bytes += 0 if full else _cost(content)
        if full:
            context.set_trailing_metadata((("grpc-status-details-bin", _retry_details()),))
            self._refuse(context, "queue_full", "RESOURCE_EXHAUSTED", f"the queue is full, try again in {_RETRY_S} s")
        walked = np.frombuffer(content, np.uint8)
        rows, passed, whole = kernel.walk(walked, kernel.SEED)
        if not whole:
            with self._lock:
                self._queued_bytes -= _cost(content)
            self._refuse(context, "broken", "INVALID_ARGUMENT", "the request is not a valid ExportMetricsServiceRequest")
        with self._lock:
            self._counts["requests"] += 1
            self._counts["bytes"] += len(content)
            self._counts.update({what: number for what, number in zip(kernel.PASSED, passed.tolist(), strict=True) if number})
            self._queue.append(Request(sender, walked, rows.copy()))
        return b""

    def _refuse(self, context: Any, reason: str, code: str, text: str) -> None:
        import grpc

        with self._lock:
            self._counts[f"refused_{reason}_requests"] += 1
        context.abort(grpc.StatusCode[code], text)

    def _credentials(self) -> "grpc.ServerCredentials | None":
        import grpc

        config = self._config
        if not config.certificate:
            return None
        key, certificate = _read(config.key), _read(config.certificate)
        authority = _read(config.client_authority) if config.client_authority else None
        return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=authority is not None)


def _cost(content: bytes | np.ndarray) -> int:
    """Return the memory of a request in the queue: its bytes and at most the size of its columns."""
    return 6 * len(content) + 1024


def _sender(peer: str) -> str:
    """Return the address of ``ipv4:127.0.0.1:5000`` or ``ipv6:[::1]:5000`` (also percent-encoded), empty for anything else."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address) if kind in ("ipv4", "ipv6") else ""


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "name the file in [collect.otlp]") from None


def _retry_details() -> bytes:
    """Return a ``google.rpc.Status`` of code 8 with a ``RetryInfo``: without it the standard requires senders to give up."""

    def field(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2, len(content))) + content

    delay = field(1, bytes((1 << 3, _RETRY_S)))
    detail = field(1, b"type.googleapis.com/google.rpc.RetryInfo") + field(2, delay)
    return bytes((1 << 3, 8)) + field(3, detail)
