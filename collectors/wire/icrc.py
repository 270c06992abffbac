"""The invariant CRC of RoCEv2, which detects changes of the bytes that no router may rewrite.

CRC-32 (IEEE 802.3, reflected, polynomial 0xEDB88320) over eight bytes of ones in place of the InfiniBand link header,
then the packet from its IP header to the end of the payload, with ones in place of what a router may rewrite: type of
service, time to live and header checksum of IPv4; traffic class, flow label and hop limit of IPv6; the UDP checksum;
the byte of the BTH that carries FECN and BECN. It stands little-endian in the last four bytes of the UDP payload.

The annex does not cover IPv6 extension headers, so such packets are not checked. The bytes behind the BTH are processed
eight at a time ("slicing by 8", Kounavis and Berry, 2005).
"""

import numba
import numpy as np


def _slices() -> np.ndarray:
    table = np.zeros((8, 256), np.uint32)
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
        table[0, value] = crc
    for step in range(1, 8):
        table[step] = (table[step - 1] >> 8) ^ table[0][table[step - 1] & 0xFF]
    return table


_TABLE = _slices()


@numba.njit(inline="always")
def _masked(buffer, at, ip_at, udp_at, version):
    """Return a byte of the packet, with ones in place of the bits that a router may rewrite."""
    byte, in_ip, in_udp = buffer[at], at - ip_at, at - udp_at
    if in_udp in (6, 7, 12):
        return np.uint8(0xFF)
    if in_udp >= 0:
        return byte
    if version == 4:
        return np.uint8(0xFF) if in_ip in (1, 8, 10, 11) else byte
    if in_ip == 0:
        return np.uint8(byte | 0x0F)
    return np.uint8(0xFF) if in_ip in (1, 2, 3, 7) else byte


@numba.njit(inline="always")
def _u32(buffer, at):
    """Return four little-endian bytes as uint32."""
    a, b, c, d = np.uint32(buffer[at]), np.uint32(buffer[at + 1]), np.uint32(buffer[at + 2]), np.uint32(buffer[at + 3])
    return np.uint32(a | b << 8 | c << 16 | d << 24)


@numba.njit(cache=True, nogil=True)
def icrc_matches(buffer, ip_at, udp_at, end, version):
    """Return whether the four bytes before ``end`` are the ICRC of the packet; ``buffer`` (uint8) holds all bytes up to ``end``."""
    t = _TABLE
    crc = np.uint32(0xFFFFFFFF)
    for _ in range(8):
        crc = np.uint32((crc >> 8) ^ t[0, (crc ^ 0xFF) & 0xFF])
    at, stop = ip_at, end - 4
    while at < udp_at + 20:
        crc = np.uint32((crc >> 8) ^ t[0, (crc ^ _masked(buffer, at, ip_at, udp_at, version)) & 0xFF])
        at += 1
    while at + 8 <= stop:
        low = crc ^ _u32(buffer, at)
        near = t[7, low & 0xFF] ^ t[6, (low >> 8) & 0xFF] ^ t[5, (low >> 16) & 0xFF] ^ t[4, (low >> 24) & 0xFF]
        crc = np.uint32(near ^ t[3, buffer[at + 4]] ^ t[2, buffer[at + 5]] ^ t[1, buffer[at + 6]] ^ t[0, buffer[at + 7]])
        at += 8
    while at < stop:
        crc = np.uint32((crc >> 8) ^ t[0, (crc ^ buffer[at]) & 0xFF])
        at += 1
    return ~crc & np.uint32(0xFFFFFFFF) == _u32(buffer, stop)
