"""IP addresses, ports and UDP payloads of packets; one call decodes many.

A kernel walks link layer, IP and UDP. It checks bounds before it reads, and every loop over headers is bounded. A packet that is
not whole (a fragment, a cut capture, a sampled header) has no payload, but its addresses if they were captured.
"""

from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from ...pipeline.errors import InputError
from .capture import read_capture
from .headers import ROCE_PORT
from .octets import octets, record_type, u16, u32, u64
from .roce import EXTENSIONS, EXTENSIONS_MAX, FRAGMENT, extension_bytes, network_layer

_TCP, _UDP = 6, 17
# Bytes of a capture that are read to recognise it.
_HEAD_BYTES = 64 * 1024

# ``version`` is 0 without an IP header, ``protocol`` is the transport, missing ports are 0, and ``payload_bytes`` is -1 without a
# whole UDP payload. ``roce.addresses`` reads the addresses.
END = record_type("u8 src_high src_low dst_high dst_low", "i8 payload_at payload_bytes", "u2 src_port dst_port", "u1 version protocol")


@dataclass(frozen=True, slots=True)
class Payloads:
    """UDP payloads in the buffer, the index of the packet of each (``at``), and their ``END`` rows."""

    offsets: np.ndarray
    lengths: np.ndarray
    at: np.ndarray
    ends: np.ndarray


def ends(buffer: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Return an ``END`` row for each packet ``buffer[offsets[k] : offsets[k] + lengths[k]]`` of link type ``links[k]``.

    Raises ``ValueError`` for a packet that reaches beyond the buffer.
    """
    if offsets.size and (offsets.min() < 0 or lengths.min() < 0 or (offsets + lengths).max() > buffer.size):
        raise ValueError("a packet reaches beyond the buffer")
    rows = np.zeros(len(offsets), END)
    _ends(octets(buffer), offsets.astype(np.int64), lengths.astype(np.int64), links.astype(np.int64), rows)
    return rows


def payloads(buffer: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, links: np.ndarray, port: int) -> Payloads:
    """Return the whole UDP payloads sent to ``port``, in the order of the packets. Raises ``ValueError`` as ``ends`` does."""
    rows = ends(buffer, offsets, lengths, links)
    (at,) = np.nonzero((rows["dst_port"] == port) & (rows["payload_bytes"] >= 0))
    found = rows[at]
    return Payloads(found["payload_at"].copy(), found["payload_bytes"].copy(), at, found)


def is_capture_of(path: Path, port: int, start: bytes) -> bool:
    """Return whether the first packets of a capture hold more UDP payloads to ``port`` that begin with ``start`` than RoCEv2."""
    try:
        piece = next(read_capture(path, _HEAD_BYTES))
    except (InputError, StopIteration):
        return False
    packets = (piece.buffer, piece.offsets, piece.lengths, piece.links)
    found = sum(piece.buffer[at : at + len(start)].tobytes() == start for at in payloads(*packets, port).offsets.tolist())
    return found > len(payloads(*packets, ROCE_PORT).at)


@numba.njit(cache=True, nogil=True)
def _ends(buffer, offsets, lengths, links, rows):
    """Fill ``rows`` (n,) ``END``, zeroed, from ``buffer`` uint8; ``offsets``, ``lengths`` in bytes and ``links`` are (n,) int64."""
    for k in range(len(offsets)):
        rows[k].payload_bytes = -1
        at, kind = network_layer(buffer, offsets[k], offsets[k] + lengths[k], links[k])
        if at < 0:
            continue
        if kind == 0x0800:
            _ipv4(buffer, at, offsets[k] + lengths[k], rows[k])
        else:
            _ipv6(buffer, at, offsets[k] + lengths[k], rows[k])


@numba.njit(nogil=True)
def _ipv4(buffer, at, end, row):
    """Decode an IPv4 packet into its ``END`` row."""
    if at + 20 > end or buffer[at] >> 4 != 4:
        return
    row.version, row.protocol = 4, buffer[at + 9]
    row.src_low, row.dst_low = np.uint64(u32(buffer, at + 12)), np.uint64(u32(buffer, at + 16))
    header, total = np.int64(buffer[at] & 0x0F) * 4, u16(buffer, at + 2)
    if header < 20 or u16(buffer, at + 6) & 0x1FFF:
        return
    # A first fragment has the ports, but only a part of the payload.
    _transport(buffer, at + header, end, at + total, u16(buffer, at + 6) & 0x2000 == 0, row)


@numba.njit(nogil=True)
def _ipv6(buffer, at, end, row):
    """Decode an IPv6 packet into its ``END`` row."""
    if at + 40 > end or buffer[at] >> 4 != 6:
        return
    row.version, row.protocol = 6, buffer[at + 6]
    row.src_high, row.src_low = u64(buffer, at + 8), u64(buffer, at + 16)
    row.dst_high, row.dst_low = u64(buffer, at + 24), u64(buffer, at + 32)
    ip_end, next_at, whole = at + 40 + u16(buffer, at + 4), at + 40, True
    for _ in range(EXTENSIONS_MAX):
        if row.protocol not in EXTENSIONS:
            break
        if next_at + 8 > end:
            return
        if row.protocol == FRAGMENT:
            if u16(buffer, next_at + 2) & 0xFFF8:
                return
            whole = u16(buffer, next_at + 2) & 1 == 0
        size = extension_bytes(row.protocol, buffer[next_at + 1])
        row.protocol, next_at = buffer[next_at], next_at + size
    _transport(buffer, next_at, end, ip_end, whole, row)


@numba.njit(nogil=True)
def _transport(buffer, at, end, ip_end, whole, row):
    """Decode ports, and the UDP payload of a whole packet, into an ``END`` row."""
    if row.protocol not in (_TCP, _UDP) or at + 8 > end:
        return
    row.src_port, row.dst_port = u16(buffer, at), u16(buffer, at + 2)
    size = u16(buffer, at + 4)
    if whole and row.protocol == _UDP and size >= 8 and at + size <= min(end, ip_end):
        row.payload_at, row.payload_bytes = at + 8, size - 8
