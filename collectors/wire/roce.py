"""RoCEv2 packets to columns: one call decodes many, without Python code per packet.

A kernel walks link layer, IP, UDP, BTH and extension headers of each packet. It checks bounds before it reads, and every loop over
headers is bounded, so any bytes give a row or a counted reason:

* ``other``: not RoCEv2 (another protocol or port);
* ``fragment``: an IP fragment;
* ``cut``: captured too short for the headers up to the BTH;
* ``malformed``: lengths, versions or header chains contradict each other or the length on the wire;
* ``icrc``: the ICRC was checked and is wrong.

Lengths come from the headers, so a capture of the first bytes of each packet gives the same rows. If it cuts off the RETH or AETH,
their fields are null.
"""

import socket
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
import polars as pl

from ...pipeline.tables.field import masked
from .hash_table import ENTRIES, entry_of, new_seed, word_table
from .headers import (
    AETH_AT,
    BTH_BYTES,
    ETHERNET,
    HEADER_BYTES,
    ICRC_BYTES,
    IPV4,
    IPV6,
    LOOP,
    NULL,
    OLD_RAW,
    RAW,
    RETH_AT,
    ROCE_PORT,
    SLL,
    SLL2,
)
from .icrc import icrc_matches
from .octets import octets, record_type, u16, u24, u32, u64

REASONS = ("other", "fragment", "cut", "malformed", "icrc")
_OTHER, _FRAGMENT, _CUT, _MALFORMED, _ICRC = -1, -2, -3, -4, -5

VLAN_TAGS_MAX = 4
EXTENSIONS_MAX = 8

# Headers between IPv6 and UDP: hop-by-hop options, routing, destination options, authentication, and the fragment header, which a
# whole packet may have, too [RFC 6946].
FRAGMENT, _AUTHENTICATION = 44, 51
EXTENSIONS = (0, 43, 60, FRAGMENT, _AUTHENTICATION)

# Packets whose headers are prefetched: few enough to stay in the nearest cache.
_TOUCHED = 32

_AETH, _RETH, _UNCHECKED, _PARTIAL = 1, 2, 4, 8

_PACKET = record_type(
    "i8 ts",
    "u8 src_high src_low dst_high dst_low",
    "u4 qp psn dma_bytes length payload_bytes",
    "u2 src_port",
    "u1 opcode syndrome ecn dscp version flags",
)

_SEED = new_seed()


@dataclass(frozen=True, slots=True)
class DecodedPackets:
    """Rows of ``packet``, without the columns that the collector adds, and counts.

    ``skipped`` counts packets without a row by ``REASONS``. ``unchecked`` counts rows whose ICRC could not be checked: captured too
    short, or behind IP extension headers. ``partial`` counts rows whose RETH or AETH was cut off.
    """

    frame: pl.DataFrame
    skipped: dict[str, int]
    unchecked: int = 0
    partial: int = 0


def decode(
    buffer, offsets, lengths, ts, link_type, *, wire_lengths=None, hidden: int | np.ndarray = 0, check_icrc: bool = False
) -> DecodedPackets:
    """Return the RoCEv2 packets among ``buffer[offsets[k] : offsets[k] + lengths[k]]``, in the order given.

    ``ts`` are nanoseconds, ``link_type`` one of ``headers.LINK_TYPES`` (others are malformed), for all or for each packet,
    ``wire_lengths`` the lengths before the capture cut them (default: not cut), ``hidden`` how many link-layer bytes the buffer
    lacks, for all or for each packet. Raises ``ValueError`` for a packet that reaches beyond the buffer.
    """
    data = octets(buffer)
    offsets, lengths = np.asarray(offsets, np.int64), np.asarray(lengths, np.int64)
    wire = lengths if wire_lengths is None else np.maximum(np.asarray(wire_lengths, np.int64), lengths)
    if offsets.size and (offsets.min() < 0 or lengths.min() < 0 or (offsets + lengths).max() > data.size):
        raise ValueError("a packet reaches beyond the buffer")
    # Copies, of one memory layout: the kernel is compiled for each layout that it meets.
    links, hidden = (np.array(np.broadcast_to(one, offsets.shape), np.int64, order="C") for one in (link_type, hidden))
    rows, counts, _ = _decode(data, offsets, lengths, wire, np.asarray(ts, np.int64), links, hidden, check_icrc)
    unchecked, partial = (int(np.count_nonzero(rows["flags"] & flag)) for flag in (_UNCHECKED, _PARTIAL))
    return DecodedPackets(_to_frame(rows), dict(zip(REASONS, counts.tolist(), strict=True)), unchecked, partial)


def _to_frame(rows: np.ndarray) -> pl.DataFrame:
    src, dst = addresses(rows)
    ts, words, port, octets, missing = _split(rows)
    qp, psn, dma_bytes, length, payload_bytes = words
    opcode, syndrome, credit, ecn, dscp = octets
    return pl.DataFrame(
        {
            "ts": ts,
            "src": src,
            "dst": dst,
            "src_port": port,
            "qp": qp,
            "opcode": opcode,
            "psn": psn,
            "ack_psn": masked(psn, missing[0]),
            "syndrome": masked(syndrome, missing[0]),
            "credits": masked(credit, missing[1]),
            "dma_bytes": masked(dma_bytes, missing[2]),
            "length": length,
            "payload_bytes": payload_bytes,
            "ecn": ecn,
            "dscp": dscp,
            "sampling_rate": np.ones(len(rows), np.uint32),
        }
    )


@numba.njit(cache=True, nogil=True)
def _split(rows):
    """Return the columns of ``rows`` (n,) ``_PACKET`` in one pass, and where AETH, credits and RETH are missing.

    ``ts`` (n,) int64, words (5, n) uint32, ports (n,) uint16, octets (5, n) uint8, missing (3, n) bool.
    """
    number = len(rows)
    ts, port = np.empty(number, np.int64), np.empty(number, np.uint16)
    words, octets = np.empty((5, number), np.uint32), np.empty((5, number), np.uint8)
    missing = np.empty((3, number), np.bool_)
    for k in range(number):
        row = rows[k]
        ts[k], port[k] = row.ts, row.src_port
        words[0, k], words[1, k], words[2, k] = row.qp, row.psn, row.dma_bytes
        words[3, k], words[4, k] = row.length, row.payload_bytes
        octets[0, k], octets[1, k], octets[2, k] = row.opcode, row.syndrome, row.syndrome & 0x1F
        octets[3, k], octets[4, k] = row.ecn, row.dscp
        missing[0, k] = row.flags & _AETH == 0
        missing[1, k] = missing[0, k] or (row.syndrome >> 5) & 3 != 0
        missing[2, k] = row.flags & _RETH == 0
    return ts, words, port, octets, missing


def addresses(rows: np.ndarray) -> tuple[pl.Series, pl.Series]:
    """Return source and destination as text, from the fields ``src_high`` to ``dst_low`` and ``version``; empty if that is 0."""
    src, dst, keys = _codes(rows, _SEED)
    texts = pl.Series([_text(version, high, low) for high, low, version in keys.tolist()], dtype=pl.String)
    return texts[src], texts[dst]


@lru_cache(maxsize=65_536)
def _text(version: int, high: int, low: int) -> str:
    if version == 0:
        return ""
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, low.to_bytes(4))
    return socket.inet_ntop(socket.AF_INET6, high.to_bytes(8) + low.to_bytes(8))


@numba.njit(cache=True, nogil=True)
def _codes(rows, seed):
    """Return codes of source and destination of n rows, (n,) int32 each, and the distinct (high, low, version), (codes, 3) uint64."""
    table, codes = word_table(2 * len(rows), seed), np.empty((2, len(rows)), np.int32)
    for k in range(len(rows)):
        row = rows[k]
        version = np.uint64(row.version)
        codes[0, k] = entry_of(table, row.src_high, row.src_low, version)
        codes[1, k] = entry_of(table, row.dst_high, row.dst_low, version)
    return codes[0], codes[1], table.keys[: table.state[ENTRIES]]


@numba.njit(cache=True, nogil=True)
def _decode(buffer, offsets, lengths, wire, ts, links, hidden, check_icrc):
    """Return ``_PACKET`` rows, counts (5,) int64 by ``REASONS``, and a number without meaning.

    ``buffer`` uint8; the others (n,) int64: offset, captured length, length on the wire and hidden bytes, ``ts`` in ns, link types.
    """
    rows = np.empty(len(offsets), _PACKET)
    counts = np.zeros(len(REASONS), np.int64)
    filled, touched = 0, 0
    for k in range(len(offsets)):
        if k % _TOUCHED == 0:
            touched = _touch(buffer, offsets, lengths, k)
        at, end = offsets[k], offsets[k] + lengths[k]
        result = _packet(buffer, at, end, at + wire[k], links[k], check_icrc, rows[filled])
        if result < 0:
            counts[-result - 1] += 1
            continue
        rows[filled].ts = ts[k]
        rows[filled].length += hidden[k]
        filled += 1
    return rows[:filled], counts, touched


@numba.njit(nogil=True)
def _touch(buffer, offsets, lengths, first):
    """Read a byte of each cache line with headers of the next packets, so that cache misses overlap."""
    seen = 0
    for k in range(first, min(first + _TOUCHED, len(offsets))):
        if lengths[k]:
            seen += buffer[offsets[k]] + buffer[offsets[k] + min(64, lengths[k] - 1)]
    return seen


@numba.njit(nogil=True)
def _packet(buffer, at, end, wire_end, link, check_icrc, row):
    """Decode one packet into its ``_PACKET`` row; return 0 or a negative reason."""
    ip_at, kind = network_layer(buffer, at, end, link)
    if ip_at < 0:
        return ip_at
    if kind == 0x0800:
        udp_at, ip_end = _ipv4(buffer, ip_at, end, wire_end, row)
    else:
        udp_at, ip_end = _ipv6(buffer, ip_at, end, wire_end, row)
    if udp_at < 0:
        return udp_at
    udp_end = _transport(buffer, udp_at, end, ip_end, row)
    if udp_end < 0:
        return udp_end
    row.length = ip_end - at
    if check_icrc:
        plain = 40 if row.version == 6 else np.int64(buffer[ip_at] & 0x0F) * 4
        if udp_end > end or udp_at != ip_at + plain:
            row.flags |= _UNCHECKED
        elif not icrc_matches(buffer, ip_at, udp_at, udp_end, row.version):
            return _ICRC
    return 0


@numba.njit(nogil=True)
def network_layer(buffer, at, end, link):
    """Return the offset of IP and its EtherType; a negative reason and 0 if there is no IP."""
    if link in (ETHERNET, SLL, SLL2):
        kind_at = at + (12 if link == ETHERNET else 14 if link == SLL else 0)
        ip_at = at + (14 if link == ETHERNET else 16 if link == SLL else 20)
        if ip_at > end:
            return _CUT, 0
        kind = u16(buffer, kind_at)
        for _ in range(VLAN_TAGS_MAX):
            if kind not in (0x8100, 0x88A8, 0x9100):
                break
            if ip_at + 4 > end:
                return _CUT, 0
            kind, ip_at = u16(buffer, ip_at + 2), ip_at + 4
        return (ip_at, kind) if kind in (0x0800, 0x86DD) else (_OTHER, 0)
    if link in (NULL, LOOP):
        at += 4
    elif link not in (OLD_RAW, RAW, IPV4, IPV6):
        return _MALFORMED, 0
    if at >= end:
        return _CUT, 0
    version = buffer[at] >> 4
    return (at, 0x0800) if version == 4 else (at, 0x86DD) if version == 6 else (_OTHER, 0)


@numba.njit(inline="always")
def extension_bytes(kind, length):
    """Return the bytes of a header of ``EXTENSIONS`` from its length field [RFC 8200, RFC 4302 2.2]."""
    if kind == FRAGMENT:
        return np.int64(8)
    return (np.int64(length) + 2) * 4 if kind == _AUTHENTICATION else (np.int64(length) + 1) * 8


@numba.njit(nogil=True)
def _ipv4(buffer, at, end, wire_end, row):
    """Return where UDP starts and the IP packet ends; a negative reason and 0 if there is no UDP."""
    if at + 20 > end:
        return _CUT, 0
    header, total = np.int64(buffer[at] & 0x0F) * 4, u16(buffer, at + 2)
    if buffer[at] >> 4 != 4 or header < 20:
        return _MALFORMED, 0
    protocol = buffer[at + 9]
    if protocol not in (17, _AUTHENTICATION):
        return _OTHER, 0
    if u16(buffer, at + 6) & 0x3FFF:
        return _FRAGMENT, 0
    if protocol == _AUTHENTICATION:
        if at + header + 8 > end:
            return _CUT, 0
        protocol, header = buffer[at + header], header + extension_bytes(_AUTHENTICATION, buffer[at + header + 1])
        if protocol != 17:
            return _OTHER, 0
    if total < header + 8 or at + total > wire_end:
        return _MALFORMED, 0
    row.version = 4
    row.ecn, row.dscp = buffer[at + 1] & 3, buffer[at + 1] >> 2
    row.src_high, row.dst_high = 0, 0
    row.src_low, row.dst_low = np.uint64(u32(buffer, at + 12)), np.uint64(u32(buffer, at + 16))
    return at + header, at + total


@numba.njit(nogil=True)
def _ipv6(buffer, at, end, wire_end, row):
    """Return where UDP starts and the IP packet ends; a negative reason and 0 if there is no UDP."""
    if at + 40 > end:
        return _CUT, 0
    if buffer[at] >> 4 != 6:
        return _MALFORMED, 0
    ip_end = at + 40 + u16(buffer, at + 4)
    following, udp_at = buffer[at + 6], at + 40
    extensions = 0
    while following in EXTENSIONS:
        extensions += 1
        if udp_at + 8 > end:
            return _CUT, 0
        if following == FRAGMENT and u16(buffer, udp_at + 2) & 0xFFF9:
            return _FRAGMENT, 0
        following, udp_at = buffer[udp_at], udp_at + extension_bytes(following, buffer[udp_at + 1])
        if udp_at > ip_end or extensions > EXTENSIONS_MAX:
            return _MALFORMED, 0
    if following != 17:
        return _OTHER, 0
    if udp_at + 8 > ip_end or ip_end > wire_end:
        return _MALFORMED, 0
    row.version = 6
    traffic = (u16(buffer, at) >> 4) & 0xFF
    row.ecn, row.dscp = traffic & 3, traffic >> 2
    row.src_high, row.src_low = u64(buffer, at + 8), u64(buffer, at + 16)
    row.dst_high, row.dst_low = u64(buffer, at + 24), u64(buffer, at + 32)
    return udp_at, ip_end


@numba.njit(nogil=True)
def _transport(buffer, at, end, ip_end, row):
    """Return where the UDP datagram at ``at`` ends; a negative reason if it is no RoCEv2 packet."""
    if at + 8 > end:
        return _CUT
    if u16(buffer, at + 2) != ROCE_PORT:
        return _OTHER
    udp_end, bth = at + u16(buffer, at + 4), at + 8
    if udp_end > ip_end or udp_end < bth + BTH_BYTES + ICRC_BYTES:
        return _MALFORMED
    if bth + BTH_BYTES > end:
        return _CUT
    opcode, pad = buffer[bth], (buffer[bth + 1] >> 4) & 3
    payload = udp_end - ICRC_BYTES - pad - bth - HEADER_BYTES[opcode]
    if buffer[bth + 1] & 0x0F or payload < 0:
        return _MALFORMED
    aeth, reth = AETH_AT[opcode], RETH_AT[opcode]
    cut = bth + max(aeth + 4 if aeth else 0, reth + 16 if reth else 0) > end
    if cut:
        aeth, reth = 0, 0
    row.src_port, row.opcode, row.payload_bytes = u16(buffer, at), opcode, payload
    row.qp, row.psn = u24(buffer, bth + 5), u24(buffer, bth + 9)
    row.flags = (_AETH if aeth else 0) | (_RETH if reth else 0) | (_PARTIAL if cut else 0)
    row.syndrome = buffer[bth + aeth] if aeth else 0
    row.dma_bytes = u32(buffer, bth + reth + 12) if reth else 0
    return udp_end
