"""The packet ring of Linux: blocks of a memory-mapped AF_PACKET socket to columns, without a copy or a call per packet.

Linux fills blocks and releases each when it is full or its timeout has passed (TPACKET_V3, linux/if_packet.h). ``walk`` reads the
packet headers of all released blocks; the caller decodes from the mapped memory and returns the blocks. When no block is free,
Linux drops and counts packets. The ring bounds the memory.
"""

import mmap
import socket
import struct
import sys

import numba
import numpy as np

from ..wire.capture import Piece

_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V3 = 2
_FRAME_BYTES = 2048
_USER = 1
_VLAN_VALID = 1 << 4
_LITTLE = sys.byteorder == "little"

# Offsets in struct tpacket_block_desc and struct tpacket3_hdr.
_STATUS, _PACKETS, _FIRST = 8, 12, 16
_SECONDS, _NANOSECONDS, _SNAPPED, _LENGTH, _FLAGS, _START = 4, 8, 12, 16, 20, 24


class PacketRing:
    """The receive ring of an AF_PACKET socket, between ``open`` and ``close``."""

    def __init__(self, block_bytes: int, blocks: int, hand_over_ms: int, link: int) -> None:
        self._block_bytes, self._blocks, self._hand_over_ms, self._link = block_bytes, blocks, hand_over_ms, link
        self._socket: socket.socket | None = None
        self._map: mmap.mmap | None = None
        self._next = 0

    def open(self, packets: socket.socket, *, ignore_outgoing: bool) -> None:
        """Map a ring for ``packets``. Raises ``OSError`` if Linux has no memory or no such ring."""
        if ignore_outgoing:
            packets.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        packets.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        size = self._block_bytes * self._blocks
        request = struct.pack("7I", self._block_bytes, self._blocks, _FRAME_BYTES, size // _FRAME_BYTES, self._hand_over_ms, 0, 0)
        packets.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._map = mmap.mmap(packets.fileno(), size)
        self._socket = packets

    def take(self) -> tuple[Piece, int]:
        """Return the packets of the released blocks, in place, and how many blocks to ``give_back`` after reading."""
        assert self._map is not None
        buffer = np.frombuffer(self._map, np.uint8)
        (offsets, lengths, wire, ts, hidden), taken = walk(buffer.view(np.uint32), self._block_bytes, self._blocks, self._next)
        return Piece(buffer, offsets, lengths, wire, ts, np.full(len(ts), self._link), hidden=hidden), taken

    def give_back(self, taken: int) -> None:
        """Return the oldest ``taken`` blocks to Linux."""
        assert self._map is not None
        for _ in range(taken):
            struct.pack_into("I", self._map, self._next * self._block_bytes + _STATUS, 0)
            self._next = (self._next + 1) % self._blocks

    def dropped(self) -> int:
        """Return how many packets Linux has dropped since the last call."""
        assert self._socket is not None
        return struct.unpack("3I", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12))[1]

    def close(self) -> None:
        """Unmap the ring; no piece may be in use. Idempotent."""
        if self._map is not None:
            self._map.close()
        self._map, self._socket = None, None


@numba.njit(cache=True, nogil=True)
def walk(words, block_bytes, blocks, block):
    """Return columns (5, n) int64 of the packets from block ``block`` on, and how many blocks they fill.

    Columns: offset, length, length on the wire, time in ns, hidden bytes. ``words`` uint32: the ring, ``blocks`` of ``block_bytes``.
    """
    ready, packets = 0, 0
    while ready < blocks and words[((block + ready) % blocks * block_bytes + _STATUS) >> 2] & _USER:
        packets += words[((block + ready) % blocks * block_bytes + _PACKETS) >> 2]
        ready += 1
    columns = np.zeros((5, packets), np.int64)
    count = 0
    for k in range(ready):
        base = (block + k) % blocks * block_bytes
        at = base + words[(base + _FIRST) >> 2]
        for _ in range(words[(base + _PACKETS) >> 2]):
            word = at >> 2
            columns[0, count] = at + (words[word + (_START >> 2)] & 0xFFFF if _LITTLE else words[word + (_START >> 2)] >> 16)
            columns[1, count] = words[word + (_SNAPPED >> 2)]
            columns[4, count] = 4 if words[word + (_FLAGS >> 2)] & _VLAN_VALID else 0
            columns[2, count] = words[word + (_LENGTH >> 2)]
            columns[3, count] = np.int64(words[word + (_SECONDS >> 2)]) * 1_000_000_000 + words[word + (_NANOSECONDS >> 2)]
            count += 1
            at += words[word]
    return columns, ready
