"""Datagrams from a UDP socket, many at a time, with every lost one counted.

UDP loses datagrams silently when a receiver falls behind. Here a thread only receives: one system call (``recvmmsg``) fills many
slots, a Numba kernel checks the senders and packs the datagrams into bounded memory, and ``take`` returns copies. Datagrams that do
not fit are counted by reason, and Linux reports how many it dropped, so that

    sent to the socket = taken + refused + lost

holds exactly once the listener has stopped. Between ``start`` and ``stop`` only these copies allocate memory.
"""

import ctypes
import errno
import ipaddress
import os
import socket
import struct
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ...pipeline.errors import ServiceError

if TYPE_CHECKING:
    from .arrivals import DatagramBuffer

LOOPBACK = ("127.0.0.0/8", "::1/128")
NETWORKS_MAX = 1024
# The largest UDP payload.
DATAGRAM_BYTES_MAX = 65_535

_SLOTS = 128
# Keeps the slots' starts out of the same lines of the processor's cache.
_SLOT_STAGGER_BYTES = 4096 + 64
_CONTROL_BYTES, _NAME_BYTES = 128, 28
# How long a receive call waits for a quiet socket, and the pause after a busy one, so that the next call finds many.
_QUIET_NS, _PAUSE_S = 100 * NS_PER_MS, 0.001
_STOP_S = 5.0
# Bound on the receive calls after ``stop``: a sender that never rests must not keep the socket open.
_ROUNDS_AT_END = 1024

# Linux only (asm-generic/socket.h, linux/socket.h).
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS, _SO_RXQ_OVFL, _SO_MEMINFO = 33, 35, 40, 55
_MEMINFO = struct.Struct("9I")
_MEMINFO_DROPS = 8
_MSG_WAITFORONE = 0x10000
_LINUX = sys.platform == "linux"

# struct msghdr, and struct mmsghdr: one of it and the length that came.
_HEADER = np.dtype(
    [
        ("name", np.uintp),
        ("name_bytes", np.uint32),
        ("vector", np.uintp),
        ("vectors", np.uintp),
        ("control", np.uintp),
        ("control_bytes", np.uintp),
        ("flags", np.int32),
    ],
    align=True,
)
_MESSAGE = np.dtype([("header", _HEADER), ("bytes", np.uint32)], align=True)
_VECTOR = np.dtype([("base", np.uintp), ("bytes", np.uintp)], align=True)
# The layouts here and in ``arrivals`` are those of 64 bits.
_RECVMMSG = getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None) if _LINUX and sys.maxsize > 2**32 else None

# Counts of datagrams: allowed ones, their bytes, those of other senders, and losses by reason.
TALLY = ("datagrams", "bytes", "refused", "buffer_full", "truncated", "kernel_drop")


@dataclass(frozen=True)
class Sources:
    """The networks that may send: the part of a collector's section that every listener has."""

    # Datagrams from all other networks are refused and counted.
    allow: tuple[str, ...] = LOOPBACK

    def __post_init__(self) -> None:
        _networks(self.allow)


@dataclass(frozen=True, slots=True)
class ReceivedDatagrams:
    """Datagrams ``buffer[offsets[k] : offsets[k] + lengths[k]]``, received at ``recv_ts[k]`` ns UTC from ``senders[sender[k]]``."""

    buffer: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    recv_ts: np.ndarray
    sender: np.ndarray
    senders: tuple[str, ...]


class _Slots:
    """Memory for the datagrams of one receive call, their senders and their control messages."""

    def __init__(self, datagram_bytes: int, ipv6: bool) -> None:
        self.ipv6 = ipv6
        self.stride = (datagram_bytes + _SLOT_STAGGER_BYTES) // 64 * 64
        self.size = datagram_bytes
        self.data = np.empty(_SLOTS * self.stride, np.uint8)
        self.names = np.zeros(_SLOTS * _NAME_BYTES, np.uint8)
        # Control messages need the alignment of a size_t.
        self.controls = np.zeros(_SLOTS * _CONTROL_BYTES // 8, np.uint64).view(np.uint8)
        self.vectors = np.zeros(_SLOTS, _VECTOR)
        self.messages = np.zeros(_SLOTS, _MESSAGE)
        self.headers = self.messages["header"]
        places = np.arange(_SLOTS, dtype=np.uintp)
        self.vectors["base"] = self.data.ctypes.data + places * self.stride
        self.vectors["bytes"] = datagram_bytes
        self.headers["name"] = self.names.ctypes.data + places * _NAME_BYTES
        self.headers["vector"] = self.vectors.ctypes.data + places * _VECTOR.itemsize
        self.headers["vectors"] = 1
        self.headers["control"] = self.controls.ctypes.data + places * _CONTROL_BYTES

    def receive(self, opened: socket.socket, wait: bool) -> int:
        """Return how many datagrams were received, 0 if none came in time. Raises ``OSError``."""
        self.headers["name_bytes"], self.headers["control_bytes"] = _NAME_BYTES, _CONTROL_BYTES
        if _RECVMMSG is None:
            return self._one_by_one(opened, wait)
        flags = _MSG_WAITFORONE if wait else socket.MSG_DONTWAIT
        count = _RECVMMSG(opened.fileno(), ctypes.c_void_p(self.messages.ctypes.data), _SLOTS, flags, None)
        if count >= 0:
            return count
        code = ctypes.get_errno()
        if code in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR):
            return 0
        raise OSError(code, os.strerror(code))

    def _one_by_one(self, opened: socket.socket, wait: bool) -> int:
        """Do the same with the calls that every system has."""
        self.headers["control_bytes"] = 0
        for k in range(_SLOTS):
            place = self.data.data[k * self.stride : k * self.stride + self.size]
            try:
                size, _, flags, name = opened.recvmsg_into([place], 0, 0 if wait and not k else socket.MSG_DONTWAIT)
            except (BlockingIOError, TimeoutError, InterruptedError):
                return k
            self.messages["bytes"][k], self.headers["flags"][k] = size, flags
            address = socket.inet_pton(socket.AF_INET6 if self.ipv6 else socket.AF_INET, name[0].split("%")[0])
            at = k * _NAME_BYTES + (8 if self.ipv6 else 4)
            self.names[at : at + len(address)] = np.frombuffer(address, np.uint8)
        return _SLOTS


class UdpListener:
    """Receives on one socket between ``start`` and ``stop``; ``take`` and ``lost`` are for one other thread.

    At most ``buffer_bytes_max`` wait to be taken; beyond that the newest are dropped and counted. ``receive_buffer_bytes`` is
    requested from the operating system, which gives less if ``net.core.rmem_max`` is lower; ``counters`` reports the result. A
    datagram above ``datagram_bytes_max`` is dropped and counted as truncated. ``name`` is the section that messages point to.
    """

    def __init__(
        self,
        address: str,
        port: int,
        allow: tuple[str, ...],
        clock: Clock,
        *,
        buffer_bytes_max: int = 64 * 1024 * 1024,
        receive_buffer_bytes: int = 8 * 1024 * 1024,
        datagram_bytes_max: int = DATAGRAM_BYTES_MAX,
        name: str,
    ) -> None:
        self.port = port
        self._address, self._clock, self._name = address, clock, name
        self._networks = _networks(allow)
        self._buffer_bytes_max, self._receive_buffer_bytes = buffer_bytes_max, receive_buffer_bytes
        self._datagram_bytes_max = datagram_bytes_max
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._filling: DatagramBuffer | None = None
        self._idle: DatagramBuffer | None = None
        self._tally = np.zeros(len(TALLY), np.int64)
        self._reported: Counter[str] = Counter()
        self._received_bytes_max = 0
        self._errors = 0

    def start(self) -> None:
        """Bind and start to receive. Raises ``ServiceError`` if the port or the address is not available."""
        from .arrivals import DatagramBuffer

        ipv6 = ":" in self._address
        try:
            self._socket = self._bound(ipv6)
        except OSError as error:
            raise self._refusal(error) from None
        self.port = self._socket.getsockname()[1]
        self._slots = _Slots(self._datagram_bytes_max, ipv6)
        # One is filled while the other is taken.
        self._filling, self._idle = (DatagramBuffer(self._buffer_bytes_max // 2, self._networks, self._tally) for _ in range(2))
        self._tally[:] = 0
        self._reported.clear()
        warm()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"weft-{self._name}-listener", daemon=True)
        self._thread.start()

    def take(self) -> ReceivedDatagrams:
        """Return all datagrams since the last call, in the order of arrival; never block."""
        with self._lock:
            self._filling, self._idle = self._idle, self._filling
            taken = self._idle
        return ReceivedDatagrams(*taken.take()) if taken is not None else _nothing()

    def lost(self) -> dict[str, int]:
        """Return how many datagrams were lost since the last call, by reason; reasons without loss are left out.

        ``kernel_drop``: the socket's buffer was full. ``buffer_full``: ``take`` came too late. ``truncated``: longer than expected.
        """
        self._read_drops()
        total = Counter(self._totals())
        fresh = total - self._reported
        self._reported = total
        return dict(fresh)

    def counters(self) -> dict[str, float]:
        """Return totals since the start, and the size of the receive buffer."""
        return {
            **{f"{name}_total": float(number) for name, number in zip(TALLY[:3], self._tally.tolist(), strict=False)},
            **{f"lost_{reason}_total": float(number) for reason, number in self._totals().items()},
            "receive_errors_total": float(self._errors),
            "receive_buffer_bytes": float(self._received_bytes_max),
        }

    def stop(self) -> None:
        """Receive what is left in the socket, and close it. Idempotent; ``take`` and ``lost`` may be called once more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            self._thread = None
        if self._socket is not None:
            self._read_drops()
            self._socket.close()
            self._socket = None

    def _totals(self) -> dict[str, int]:
        return dict(zip(TALLY[3:], self._tally[3:].tolist(), strict=True))

    def _bound(self, ipv6: bool) -> socket.socket:
        opened = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if ipv6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._size_receive_buffer(opened)
            if _LINUX:
                opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                opened.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
            opened.bind((self._address, self.port))
            # A timeout of the system call: Python's own would make the socket non-blocking.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, _QUIET_NS // 1000))
        except BaseException:
            opened.close()
            raise
        return opened

    def _size_receive_buffer(self, opened: socket.socket) -> None:
        """Request the buffer as a privileged user, else up to the system's limit."""
        try:
            if not _LINUX:
                raise PermissionError
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._receive_buffer_bytes)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        # Linux doubles the request to cover its own overhead.
        self._received_bytes_max = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // (2 if _LINUX else 1)

    def _refusal(self, error: OSError) -> ServiceError:
        where, section = f"{self._address}:{self.port}", f"collect.{self._name}"
        if error.errno == errno.EADDRINUSE:
            return ServiceError(f"{self._name}: {where} is in use", f"end the program that has it or choose another {section}.port")
        if error.errno in (errno.EACCES, errno.EPERM):
            return ServiceError(f"{self._name}: this user may not listen on {where}", f"choose a {section}.port of 1024 or above")
        if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            return ServiceError(
                f"{self._name}: {self._address} is no address of this machine", f"write one of its own in {section}.address"
            )
        hint = f"check {section}.address and {section}.port"
        return ServiceError(f"{self._name}: cannot listen on {where} ({error.strerror})", hint)

    def _run(self) -> None:
        assert self._socket is not None
        while not self._stopping.is_set():
            count = self._receive(wait=True)
            if 0 < count < _SLOTS:
                # Datagrams that arrive meanwhile wait in the socket, and the next call receives them together.
                self._clock.wait(_PAUSE_S)
        for _ in range(_ROUNDS_AT_END):
            if not self._receive(wait=False):
                break

    def _receive(self, *, wait: bool) -> int:
        assert self._socket is not None
        try:
            count = self._slots.receive(self._socket, wait)
        except OSError:
            self._errors += 1
            self._clock.wait(_QUIET_NS / NS_PER_S, self._stopping)
            return 0
        if count:
            self._append(count)
        return count

    def _append(self, count: int) -> None:
        slots, now_ns = self._slots, self._clock.now_ns()
        with self._lock:
            assert self._filling is not None
            self._filling.append(slots.messages[:count], slots.data, slots.stride, slots.names, slots.controls, slots.ipv6, now_ns)

    def _read_drops(self) -> None:
        """Read the operating system's count of drops, which otherwise comes only with the next datagram."""
        if self._socket is None or not _LINUX:
            return
        try:
            memory = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        except OSError:
            return
        if len(memory) == _MEMINFO.size and self._filling is not None:
            with self._lock:
                self._filling.count_drops(_MEMINFO.unpack(memory)[_MEMINFO_DROPS])


def warm() -> None:
    """Compile the kernels by receiving nothing."""
    from .arrivals import DatagramBuffer

    buffer, slots = DatagramBuffer(0, _networks(()), np.zeros(len(TALLY), np.int64)), _Slots(0, False)
    buffer.append(slots.messages[:0], slots.data, slots.stride, slots.names, slots.controls, slots.ipv6, 0)
    buffer.count_drops(0)
    buffer.take()


def _nothing() -> ReceivedDatagrams:
    octets, numbers = np.empty(0, np.uint8), np.empty(0, np.int64)
    return ReceivedDatagrams(octets, numbers, numbers, numbers, np.empty(0, np.int32), ())


def _networks(allow: tuple[str, ...]) -> np.ndarray:
    """Return networks as rows of (high, low, mask high, mask low, is IPv4), IPv4 as IPv6 maps it. Raises ``ValueError``."""
    if len(allow) > NETWORKS_MAX:
        raise ValueError(f"allow has {len(allow)} networks, at most {NETWORKS_MAX} are possible")
    rows = np.zeros((len(allow), 5), np.uint64)
    for row, text in zip(rows, allow, strict=True):
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"allow: {text!r} is no network such as 10.0.0.0/8 or fd00::/8") from None
        start, prefix = int(network.network_address), network.prefixlen
        if network.version == 4:
            start, prefix = 0xFFFF << 32 | start, prefix + 96
        mask = (1 << 128) - (1 << 128 - prefix)
        row[:] = [start >> 64, start & (1 << 64) - 1, mask >> 64, mask & (1 << 64) - 1, network.version == 4]
    return rows
