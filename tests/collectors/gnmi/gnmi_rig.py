"""Helpers of the live gNMI tests: certificates, a scripted device, and a collector that is drained until a condition holds."""

import datetime
import ipaddress
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import polars as pl
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gnmi_pb import gnmi_pb2, gnmi_pb2_grpc

from weft.collectors.gnmi.config import GnmiConfig
from weft.collectors.gnmi.decoder import warm
from weft.collectors.gnmi.receiver import Gnmi
from weft.pipeline.clock import NS_PER_S, SystemClock

CLOCK = SystemClock()
DEADLINE_S = 20.0


class Collecting:
    """A collector between start and stop, and all its rows."""

    def __init__(self, config: GnmiConfig) -> None:
        self.gnmi = Gnmi(config, CLOCK)
        self.frames: dict[str, list[pl.DataFrame]] = {}

    def __enter__(self) -> "Collecting":
        # Kernels are compiled before, so that deadlines cover streams only.
        warm()
        self.gnmi.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gnmi.stop()
        self.drain()

    def drain(self) -> None:
        """Drain once."""
        for batch in self.gnmi.drain():
            self.frames.setdefault(batch.family, []).append(batch.frame)

    def rows(self, family: str, **equal: object) -> list[dict]:
        """Return the rows of a family with these values of columns."""
        rows = [row for frame in self.frames.get(family, ()) for row in frame.iter_rows(named=True)]
        return [row for row in rows if all(row[name] == value for name, value in equal.items())]

    def count(self, name: str) -> float:
        """Return one of the collector's own counters or gauges."""
        counters = self.gnmi.counters()
        return counters.get(f"weft_collectors_gnmi_{name}", counters.get(f"weft_collectors_gnmi_{name}_total", 0.0))

    def until(self, holds: Callable[[], object]) -> None:
        """Drain until a condition holds; fail if it never does."""
        end = CLOCK.monotonic_ns() + DEADLINE_S * NS_PER_S
        while not holds():
            assert CLOCK.monotonic_ns() < end, f"it never came; {self.gnmi.counters()}, events {self.rows('event')[-5:]}"
            CLOCK.wait(0.02)
            self.drain()


Subscribed = Callable[[gnmi_pb2.SubscriptionList, grpc.ServicerContext], Iterator[gnmi_pb2.SubscribeResponse | bytes]]


class Device(gnmi_pb2_grpc.gNMIServicer):
    """A gNMI server whose streams are what ``subscribed`` yields: messages, or raw bytes."""

    def __init__(self, subscribed: Subscribed, *, encodings: tuple[int, ...] = (gnmi_pb2.PROTO,), hold_s: float = 0.0) -> None:
        self._subscribed, self._encodings, self._hold_s = subscribed, encodings, hold_s
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.asked: list[gnmi_pb2.SubscriptionList] = []
        self.dialling = self.dialling_most = 0

    def start(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen; return the port."""
        self._server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)])
        self._server.add_generic_rpc_handlers((_Handler(self),))
        where = f"127.0.0.1:{port}"
        found = self._server.add_secure_port(where, credentials) if credentials else self._server.add_insecure_port(where)
        self._server.start()
        return found

    def stop(self) -> None:
        """End all streams."""
        self.ended.set()
        self._server.stop(grace=0.1).wait()

    def capabilities(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        """Answer a call for capabilities, after ``hold_s``."""
        with self.lock:
            self.dialling += 1
            self.dialling_most = max(self.dialling_most, self.dialling)
        self.ended.wait(self._hold_s)
        with self.lock:
            self.dialling -= 1
        return gnmi_pb2.CapabilityResponse(supported_encodings=self._encodings, gNMI_version="0.10.0").SerializeToString()

    def subscribe(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer a subscription."""
        wanted = gnmi_pb2.SubscribeRequest.FromString(next(requests)).subscribe
        self.asked.append(wanted)
        for one in self._subscribed(wanted, context):
            yield one if isinstance(one, bytes) else one.SerializeToString()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, device: Device) -> None:
        self._device = device

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method == "/gnmi.gNMI/Subscribe":
            return grpc.stream_stream_rpc_method_handler(self._device.subscribe)
        return grpc.unary_unary_rpc_method_handler(self._device.capabilities)


def octets(port: str, number: int) -> gnmi_pb2.SubscribeResponse:
    """Return a counter of a port as of now."""
    note = gnmi_pb2.Notification(timestamp=CLOCK.now_ns())
    note.prefix.elem.add(name="interfaces")
    note.prefix.elem.add(name="interface", key={"name": port})
    update = note.update.add()
    for name in ("state", "counters", "in-octets"):
        update.path.elem.add(name=name)
    update.val.uint_val = number
    return gnmi_pb2.SubscribeResponse(update=note)


class Authority:
    """A certificate authority for tests, with its files in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {name}")])
        self.file = folder / f"{name}.crt"
        made = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, host: str = "127.0.0.1", days: int = 1) -> tuple[Path, Path]:
        """Write a certificate for a host, and its key; return their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key, days).add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        certificate, secret = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        secret.write_bytes(key.private_bytes(*form))
        return certificate, secret

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        now = datetime.datetime.fromtimestamp(CLOCK.now_ns() / NS_PER_S, datetime.UTC)
        span = sorted((now + datetime.timedelta(days=days), now - datetime.timedelta(days=2)))
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        end = span[1] if days > 0 else now - datetime.timedelta(days=1)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=2)).not_valid_after(end)


def credentials(certificate: Path, key: Path, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """Return a server's credentials; with ``client_ca`` it requires client certificates."""
    ca = client_ca.read_bytes() if client_ca else None
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())], ca, ca is not None)
