"""Bytes from TCP connections, bounded per connection: a sender that is faster than its reader waits and loses nothing.

One thread accepts and receives. It pauses a connection while its buffer is full, so that TCP slows the sender down. Networks,
number of connections and idle time are limited; a connection beyond a limit is closed and counted.
"""

import contextlib
import ipaddress
import selectors
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ConfigError, ServiceError

_CHUNK_BYTES = 256 * 1024
_WAIT_S = 0.1
_STOP_S = 5.0


@dataclass(slots=True)
class _Connection:
    number: int
    sender: str
    socket: socket.socket
    received_ns: int
    waiting: bytearray = field(default_factory=bytearray)
    paused: bool = False
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The bytes of one connection since the last ``take``; ``ended`` is the reason of its end, empty while it is open."""

    connection: int
    sender: str
    content: bytes
    ended: str


class TcpListener:
    """Receives on one socket between ``start`` and ``stop``; ``take`` and ``cut`` are for one other thread.

    At most ``connection_bytes_max`` of each connection wait. One that is idle for ``idle_s_max`` is closed.
    """

    def __init__(
        self,
        address: str,
        port: int,
        allow: tuple[str, ...],
        clock: Clock,
        *,
        name: str,
        connections_max: int = 64,
        connection_bytes_max: int = 8 * 2**20,
        idle_s_max: float = 600.0,
    ) -> None:
        self._address, self._clock, self._name = address, clock, name
        self.port = port
        self._networks = _networks(allow, name)
        self._connections_max, self._bytes_max = connections_max, connection_bytes_max
        self._idle_ns_max = int(idle_s_max * NS_PER_S)
        self._lock = threading.Lock()
        self._connections: dict[int, _Connection] = {}
        self._opened = 0
        self._counts: Counter[str] = Counter()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Bind and start to receive. Raises ``ServiceError`` if the address is not available."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((self._address, self.port))
            opened.listen(min(self._connections_max, 128))
        except (OSError, OverflowError) as error:
            opened.close()
            problem = getattr(error, "strerror", None) or str(error)
            hint = f"choose another address or port in [collect.{self._name}]"
            raise ServiceError(f"{self._name}: cannot listen on TCP {self._address} port {self.port} ({problem})", hint) from None
        opened.setblocking(False)
        self._socket, self.port = opened, opened.getsockname()[1]
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(opened,), name=f"{self._name}-tcp", daemon=True)
        self._thread.start()

    def take(self) -> list[Stretch]:
        """Return the bytes of each connection, an ended one for the last time; never block."""
        with self._lock:
            found = []
            for connection in list(self._connections.values()):
                if connection.waiting or connection.ended:
                    found.append(Stretch(connection.number, connection.sender, bytes(connection.waiting), connection.ended))
                    connection.waiting = bytearray()
                if connection.ended:
                    del self._connections[connection.number]
            return found

    def cut(self, number: int, reason: str) -> None:
        """Close one connection, counted by reason; ignore unknown numbers."""
        with self._lock:
            if (connection := self._connections.get(number)) is not None and not connection.ended:
                self._counts[f"cut_{reason}"] += 1
                connection.ended = reason
                # The receiving thread closes it: it may be waiting for it now.
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)

    def counters(self) -> dict[str, int]:
        """Return connections accepted, refused and cut by reason, and bytes, since the start; ``connections`` are open now."""
        with self._lock:
            return dict(self._counts) | {"connections": sum(not one.ended for one in self._connections.values())}

    def stop(self) -> None:
        """Close all connections. Idempotent; ``take`` may be called once more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            self._thread = None

    def _run(self, listening: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ, None)
            while not self._stopping.is_set():
                for key, _ in selector.select(_WAIT_S):
                    if key.data is None:
                        self._accept(listening, selector)
                    else:
                        self._receive(key.data, selector)
                self._maintain(selector)
            self._finish(selector)
        listening.close()

    def _accept(self, listening: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            opened, name = listening.accept()
        except OSError:
            return
        opened.setblocking(False)
        sender = str(name[0]).partition("%")[0]
        address = ipaddress.ip_address(sender)
        mapped = getattr(address, "ipv4_mapped", None) or address
        with self._lock:
            allowed = any(mapped in network for network in self._networks)
            if not allowed or sum(not one.ended for one in self._connections.values()) >= self._connections_max:
                self._counts["refused" if not allowed else "refused_full"] += 1
                opened.close()
                return
            self._opened += 1
            self._counts["accepted"] += 1
            connection = _Connection(self._opened, str(mapped), opened, self._clock.monotonic_ns())
            self._connections[connection.number] = connection
        selector.register(opened, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection, selector: selectors.BaseSelector) -> None:
        try:
            content = connection.socket.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            content = b""
        with self._lock:
            if not content or connection.ended:
                self._close(connection, selector, "closed")
                return
            self._counts["bytes"] += len(content)
            connection.received_ns = self._clock.monotonic_ns()
            connection.waiting += content
            if len(connection.waiting) >= self._bytes_max:
                connection.paused = True
                selector.unregister(connection.socket)

    def _maintain(self, selector: selectors.BaseSelector) -> None:
        """Resume paused connections whose bytes were taken; close idle ones and those that were cut."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            for connection in self._connections.values():
                if connection.ended:
                    self._close(connection, selector, connection.ended)
                elif connection.paused and len(connection.waiting) < self._bytes_max:
                    connection.paused, connection.received_ns = False, now_ns
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                elif not connection.paused and now_ns - connection.received_ns > self._idle_ns_max:
                    self._counts["cut_idle"] += 1
                    self._close(connection, selector, "idle")

    def _close(self, connection: _Connection, selector: selectors.BaseSelector, reason: str) -> None:
        connection.ended = connection.ended or reason
        if connection.socket.fileno() >= 0:
            if not connection.paused:
                selector.unregister(connection.socket)
            connection.socket.close()

    def _finish(self, selector: selectors.BaseSelector) -> None:
        """Receive what is left of each connection, as far as there is room, and close it."""
        with self._lock:
            for connection in self._connections.values():
                while not connection.ended and len(connection.waiting) < self._bytes_max:
                    try:
                        content = connection.socket.recv(_CHUNK_BYTES)
                    except OSError:
                        break
                    if not content:
                        break
                    connection.waiting += content
                self._close(connection, selector, "stopped")


def _networks(allow: tuple[str, ...], name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(text) for text in allow]
    except ValueError as error:
        raise ConfigError(f"collect.{name}.allow", str(error), "write networks such as 10.0.0.0/8") from None
