"""Messages in bulk: many in one buffer, built by NumPy, sent by ``sendmmsg`` or written to a file."""

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ServiceError

# UIO_MAXIOV: the maximum of messages per call.
CALL_MESSAGES_MAX = 1024
# With a rate, messages of this many seconds are sent together.
PACE_S = 0.002

_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])
# struct msghdr of 64-bit Linux, then the length that the kernel fills in.
_MMSGHDR = np.dtype(
    [
        *((name, "u8") for name in ("name", "name_length", "iovec", "iovecs", "control", "control_length", "flags")),
        *(("sent", "u4"), ("pad", "u4")),
    ]
)


@dataclass(frozen=True, slots=True)
class MessageBuffer:
    """Messages in one uint8 buffer; ``offsets`` and ``lengths`` (messages,) in bytes."""

    buffer: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[bytes]:
        for offset, length in zip(self.offsets.tolist(), self.lengths.tolist(), strict=True):
            yield self.buffer[offset : offset + length].tobytes()


def rows(array: np.ndarray) -> MessageBuffer:
    """Return one message per element of an array of any fixed-size dtype, without a copy."""
    array = np.ascontiguousarray(array)
    size = array.nbytes // len(array) if len(array) else 0
    return MessageBuffer(array.reshape(-1).view(np.uint8), np.arange(len(array)) * size, np.full(len(array), size))


def join(parts: list[MessageBuffer]) -> MessageBuffer:
    """Return the messages of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.buffer) for part in parts])
    return MessageBuffer(
        np.concatenate([np.empty(0, np.uint8), *(part.buffer for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.offsets + start for part, start in zip(parts, starts[:-1], strict=True))]),
        np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)]),
    )


class Udp:
    """Sends datagrams to one address. A missing receiver is not an error; ``refused`` counts the refusals."""

    def __init__(self, address: str, port: int, clock: Clock) -> None:
        self._to, self._clock = (address, port), clock
        self._socket: socket.socket | None = None
        self._sendmmsg = getattr(ctypes.CDLL(None, use_errno=True), "sendmmsg", None) if os.name == "posix" else None
        self.sent = self.refused = 0

    def start(self) -> None:
        """Open the socket. Raises ``ServiceError`` if the address is invalid."""
        try:
            family, kind, protocol, _, to = socket.getaddrinfo(*self._to, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.connect(to)
        except OSError as error:
            self.stop()
            raise ServiceError(f"lab: cannot send to {self._to[0]} ({error.strerror})", "write an address of this machine") from None

    def send(self, datagrams: MessageBuffer, rate: float | None = None) -> None:
        """Send all, at ``rate`` datagrams per second if given."""
        step = CALL_MESSAGES_MAX if rate is None else min(CALL_MESSAGES_MAX, max(1, int(rate * PACE_S)))
        began = self._clock.monotonic_ns()
        for first in range(0, len(datagrams), step):
            if rate is not None:
                self._clock.wait(first / rate - (self._clock.monotonic_ns() - began) / NS_PER_S)
            self._some(datagrams, first, min(first + step, len(datagrams)))

    def stop(self) -> None:
        """Close the socket. Idempotent."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _some(self, datagrams: MessageBuffer, first: int, last: int) -> None:
        assert self._socket is not None
        if self._sendmmsg is None:
            for offset, length in zip(datagrams.offsets[first:last].tolist(), datagrams.lengths[first:last].tolist(), strict=True):
                self._one(datagrams.buffer.data[offset : offset + length])
            return
        vectors = np.empty(last - first, _IOVEC)
        vectors["base"] = datagrams.buffer.ctypes.data + datagrams.offsets[first:last]
        vectors["length"] = datagrams.lengths[first:last]
        headers = np.zeros(last - first, _MMSGHDR)
        headers["iovec"] = vectors.ctypes.data + np.arange(last - first) * _IOVEC.itemsize
        headers["iovecs"] = 1
        done = 0
        while done < last - first:
            at = ctypes.c_void_p(headers.ctypes.data + done * _MMSGHDR.itemsize)
            sent = self._sendmmsg(self._socket.fileno(), at, last - first - done, 0)
            if sent < 0 and ctypes.get_errno() == errno.ECONNREFUSED:
                # The error is of an earlier datagram; this one is sent by the next call.
                self.refused += 1
            elif sent < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            else:
                done += sent
                self.sent += sent

    def _one(self, message: memoryview) -> None:
        assert self._socket is not None
        try:
            self._socket.send(message)
            self.sent += 1
        except ConnectionRefusedError:
            self.refused += 1


def free_port() -> int:
    """Return a port that is currently free for TCP and UDP on loopback."""
    while True:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            stream.bind(("127.0.0.1", 0))
            try:
                datagrams.bind(stream.getsockname())
            except OSError:
                continue
            return stream.getsockname()[1]
