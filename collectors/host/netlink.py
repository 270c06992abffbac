"""Counters of all interfaces in one pair of system calls: an RTM_GETSTATS dump over rtnetlink, else /proc/net/dev.

``read`` returns the kernel's reply undecoded, some microseconds of work per tick; ``decode`` turns many replies into columns. Replies of
one length normally have the same interfaces at the same offsets, so a hundred of them are one matrix of bytes in which each interface's
counters are a slice.

Reply of the dump (linux/if_link.h): per interface a 16 byte ``nlmsghdr``, a 12 byte ``if_stats_msg`` whose bytes 4 to
8 are the interface's index, a 4 byte attribute header and ``rtnl_link_stats64``; a message of type 3 ends the dump.
"""

import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# The order of rtnl_link_stats64.
COUNTERS = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_discards", "tx_discards")
RX_BYTES, TX_BYTES = COUNTERS.index("rx_bytes"), COUNTERS.index("tx_bytes")

_RTM_NEWSTATS, _RTM_GETSTATS = 92, 94
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP = 0x301
_LINK_64 = 1
_HEADER = struct.Struct("=IHHII")
_STATS = struct.Struct("=BBHII")
_ERROR = struct.Struct("=i")
_DATA_AT = _HEADER.size + _STATS.size + 4
_MESSAGE_MIN = _DATA_AT + 8 * len(COUNTERS)
_REQUEST = _HEADER.pack(_HEADER.size + _STATS.size, _RTM_GETSTATS, _REQUEST_DUMP, 1, 0) + _STATS.pack(0, 0, 0, 0, _LINK_64)
# The end of a dump: a message of 20 bytes and type 3.
_DONE = struct.pack("=IH", 20, _NLMSG_DONE)
# The kernel cuts a dump into pieces of at most 32 KiB: some 140 interfaces.
_REPLY_BYTES = 32 * 1024
_TIMEOUT = struct.pack("@ll", 1, 0)

# Columns of /proc/net/dev that are COUNTERS, counted from the one after the name.
_PROC_COLUMNS = np.array([1, 9, 0, 8, 2, 10, 3, 11])
_PROC_WIDTH = 17


@dataclass(frozen=True, slots=True)
class Link:
    """One interface in some replies: ``at`` (n,) int64, the replies, and ``counters`` (n, 8) uint64, in the order of COUNTERS.

    ``key`` is the kernel's index, which a later interface of the same name does not share; else the name.
    """

    key: int | str
    at: np.ndarray
    counters: np.ndarray


class CounterReader(Protocol):
    """Reads the counters of all interfaces of this network namespace."""

    def open(self) -> None:
        """Open the source. Raises ``OSError`` where that fails."""
        ...

    def read(self) -> bytes:
        """Return one reply. Raises ``OSError``; ``open`` again after that."""
        ...

    def decode(self, replies: Sequence[bytes]) -> list[Link]:
        """Return the interfaces in the replies; incomplete entries are left out."""
        ...

    def names(self) -> dict[int | str, str]:
        """Return the current name of each interface by its key."""
        ...

    def close(self) -> None:
        """Close the source. Idempotent."""
        ...


class NetlinkReader:
    """Reads by rtnetlink; needs Linux 4.7."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def open(self) -> None:
        self.close()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        # The kernel's time limit: Python's own would cost a poll system call at each read.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)

    def read(self) -> bytes:
        if self._socket is None:
            raise OSError(errno.EBADF, "not open")
        self._socket.send(_REQUEST)
        reply = self._socket.recv(_REPLY_BYTES)
        while reply[-20:-14] != _DONE:
            _raise_error(reply)
            reply += self._socket.recv(_REPLY_BYTES)
        return reply

    def decode(self, replies: Sequence[bytes]) -> list[Link]:
        alike: dict[int, list[int]] = defaultdict(list)
        for index, reply in enumerate(replies):
            if reply:
                alike[len(reply)].append(index)
        found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for length, indexes in alike.items():
            matrix = np.frombuffer(b"".join([replies[index] for index in indexes]), np.uint8).reshape(-1, length)
            at = np.array(indexes, dtype=np.int64)
            while len(at):
                same = _decode_alike(matrix, at, found)
                matrix, at = matrix[~same], at[~same]
        return [_joined(key, pieces) for key, pieces in found.items()]

    def names(self) -> dict[int | str, str]:
        return dict(socket.if_nameindex())

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _raise_error(reply: bytes) -> None:
    """Raise ``OSError`` where the reply is an error or empty."""
    if len(reply) >= _HEADER.size + _ERROR.size and _HEADER.unpack_from(reply)[1] == _NLMSG_ERROR:
        code = -_ERROR.unpack_from(reply, _HEADER.size)[0]
        raise OSError(code, os.strerror(code))
    if not reply:
        raise OSError(errno.EIO, "empty reply")


def _decode_alike(matrix: np.ndarray, at: np.ndarray, found: dict[int, list[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Decode the replies with the layout of the first one; return a mask of them."""
    first = matrix[0].tobytes()
    same = np.ones(len(matrix), dtype=bool)
    places = []
    offset = 0
    while offset + _HEADER.size <= len(first):
        length, kind = _HEADER.unpack_from(first, offset)[:2]
        if length < _HEADER.size or offset + length > len(first):
            break
        same &= (matrix[:, offset : offset + 6] == matrix[0, offset : offset + 6]).all(axis=1)
        if kind == _RTM_NEWSTATS and length >= _MESSAGE_MIN:
            index_at = offset + _HEADER.size + 4
            same &= (matrix[:, index_at : index_at + 4] == matrix[0, index_at : index_at + 4]).all(axis=1)
            places.append((_STATS.unpack_from(first, offset + _HEADER.size)[3], offset + _DATA_AT))
        offset += (length + 3) & ~3
    for key, data_at in places:
        data = np.ascontiguousarray(matrix[same, data_at : data_at + 8 * len(COUNTERS)]).view(np.uint64)
        found[key].append((at[same], data))
    return same


def _joined(key: int | str, pieces: list[tuple[np.ndarray, np.ndarray]]) -> Link:
    at = np.concatenate([piece[0] for piece in pieces])
    order = np.argsort(at, kind="stable")
    return Link(key, at[order], np.concatenate([piece[1] for piece in pieces])[order])


class ProcReader:
    """Reads /proc/net/dev: for kernels and sandboxes without RTM_GETSTATS. Interfaces are known by name only."""

    def __init__(self, path: str = "/proc/net/dev") -> None:
        self._path = path
        self._fd = -1

    def open(self) -> None:
        self.close()
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        reply = os.pread(self._fd, _REPLY_BYTES, 0)
        while reply and (more := os.pread(self._fd, _REPLY_BYTES, len(reply))):
            reply += more
        return reply

    def decode(self, replies: Sequence[bytes]) -> list[Link]:
        alike: dict[int, list[int]] = defaultdict(list)
        bodies = [reply.split(b"\n", 2)[-1].replace(b":", b" ").split() for reply in replies]
        for index, body in enumerate(bodies):
            if body and len(body) % _PROC_WIDTH == 0:
                alike[len(body)].append(index)
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for indexes in alike.values():
            words = np.array([bodies[index] for index in indexes]).reshape(len(indexes), -1, _PROC_WIDTH)
            numbers = words[:, :, 1:][:, :, _PROC_COLUMNS].astype(np.uint64)
            at = np.array(indexes, dtype=np.int64)
            for name in np.unique(words[:, :, 0]):
                reply, place = np.nonzero(words[:, :, 0] == name)
                found[name.decode()].append((at[reply], numbers[reply, place]))
        return [_joined(key, pieces) for key, pieces in found.items()]

    def names(self) -> dict[int | str, str]:
        return {name: name for _, name in socket.if_nameindex()}

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_reader() -> CounterReader:
    """Return the best reader that works on this machine, opened. Raises ``OSError`` where there is none."""
    reader: CounterReader = NetlinkReader()
    try:
        reader.open()
        reader.read()
    except OSError:
        reader.close()
        reader = ProcReader()
        reader.open()
        reader.read()
    return reader
