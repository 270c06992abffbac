"""Who sent what to whom: IP addresses, ports and UDP payloads of packets, one call for many.

A kernel walks link layer, IP and UDP. It reads a byte only after the bytes were found to be there, and every loop over headers
has a bound. Of a packet that is not whole (a fragment, a capture or a sampled header that was cut) the payload is not given, the
addresses are, as far as they are there.
"""

from dataclasses import dataclass

import numba
import numpy as np

from .octets import octets, u16, u32, u64
from .roce import EXTENSIONS, EXTENSIONS_MAX, FRAGMENT, extension_bytes, network_layer

_TCP, _UDP = 6, 17

# ``version`` is 0 where there is no IP header, ``protocol`` the transport, ports 0 where they are not there; ``payload_bytes``
# is -1 where there is no whole UDP payload. The addresses are named as ``roce.addresses`` reads them.
END = np.dtype(
    [
        ("src_high", np.uint64),
        ("src_low", np.uint64),
        ("dst_high", np.uint64),
        ("dst_low", np.uint64),
        ("payload_at", np.int64),
        ("payload_bytes", np.int64),
        ("src_port", np.uint16),
        ("dst_port", np.uint16),
        ("version", np.uint8),
        ("protocol", np.uint8),
    ]
)


@dataclass(frozen=True, slots=True)
class Payloads:
    """UDP payloads in ``buffer``, where each stands among the packets it was found in, and their ``END`` rows."""

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
    """Return the whole UDP payloads to ``port`` among the packets, in their order. Raises ``ValueError`` as ``ends`` does."""
    rows = ends(buffer, offsets, lengths, links)
    (at,) = np.nonzero((rows["dst_port"] == port) & (rows["payload_bytes"] >= 0))
    found = rows[at]
    return Payloads(found["payload_at"].copy(), found["payload_bytes"].copy(), at, found)


@numba.njit(cache=True, nogil=True)
def _ends(buffer, offsets, lengths, links, rows):
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
    if at + 20 > end or buffer[at] >> 4 != 4:
        return
    row.version, row.protocol = 4, buffer[at + 9]
    row.src_low, row.dst_low = np.uint64(u32(buffer, at + 12)), np.uint64(u32(buffer, at + 16))
    header, total = np.int64(buffer[at] & 0x0F) * 4, u16(buffer, at + 2)
    if header < 20 or u16(buffer, at + 6) & 0x1FFF:
        return
    # A first fragment has the ports, and not all of the payload.
    _transport(buffer, at + header, end, at + total, u16(buffer, at + 6) & 0x2000 == 0, row)


@numba.njit(nogil=True)
def _ipv6(buffer, at, end, row):
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
    if row.protocol not in (_TCP, _UDP) or at + 8 > end:
        return
    row.src_port, row.dst_port = u16(buffer, at), u16(buffer, at + 2)
    size = u16(buffer, at + 4)
    if whole and row.protocol == _UDP and size >= 8 and at + size <= min(end, ip_end):
        row.payload_at, row.payload_bytes = at + 8, size - 8
