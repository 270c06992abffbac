"""LLDP frames of a capture: their senders, ports and lossless priorities.

A frame's sender is named by its system name (TLV 5), else by its chassis (TLV 1); its port by TLV 2, with the description (TLV 4) as
alias. The PFC configuration of DCBX (IEEE 802.1Qaz, 802.1Q annex D: organisation 00-80-C2, subtype 11) has one bit for each priority that
is paused instead of dropped. A frame does not contain its receiver, so it gives no link.

Frames are filtered in bulk; a sender repeats its frame every 30 s, so only different ones are parsed, one by one.
"""

import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...pipeline.errors import InputError
from ..wire.capture import Piece, read_capture
from .topology import ROWS_MAX, InventoryRows

# Maximum different frames: the ports of a fleet, each in a few settings.
FRAMES_MAX = 200_000
PRIORITIES = 8

_ETHERNET, _ETHERTYPE, _HEADER_BYTES = 1, 0x88CC, 14
_END, _CHASSIS, _PORT, _PORT_TEXT, _SYSTEM, _ORGANISATION = 0, 1, 2, 4, 5, 127
_PFC = b"\x00\x80\xc2\x0b"
_HINT = "capture whole frames, with a snap length of 1600"
# Subtypes of chassis and port that hold an address or a MAC; all others hold text.
_MACS, _ADDRESSES = {_CHASSIS: 4, _PORT: 3}, {_CHASSIS: 5, _PORT: 4}


def read_lldp(path: Path, rows_max: int = ROWS_MAX) -> InventoryRows:
    """Return the senders of the LLDP frames in a capture, their ports and lossless priorities."""
    topology = InventoryRows(path, rows_max=rows_max)
    seen: set[bytes] = set()
    number = 0
    try:
        for piece in read_capture(path):
            for at, frame in _frames(piece):
                if frame in seen:
                    continue
                if len(seen) >= FRAMES_MAX:
                    raise InputError(str(path), f"holds more than {FRAMES_MAX} different LLDP frames", "cut it into several files")
                seen.add(frame)
                _frame(topology, f"packet {number + at + 1}", frame)
            number += len(piece.offsets)
    except InputError as error:
        if not seen:
            raise
        topology.faulty += 1
        topology.faults.append(error)
    return topology


def _frames(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yield the place and the LLDP data unit of each frame that holds one."""
    long = np.flatnonzero((piece.links == _ETHERNET) & (piece.lengths >= _HEADER_BYTES))
    at = piece.offsets[long]
    kinds = (piece.buffer[at + 12].astype(np.int64) << 8) | piece.buffer[at + 13]
    for index in long[kinds == _ETHERTYPE].tolist():
        start = int(piece.offsets[index])
        yield index, piece.buffer[start + _HEADER_BYTES : start + int(piece.lengths[index])].tobytes()


def _frame(topology: InventoryRows, place: str, unit: bytes) -> None:
    parts: dict[int, bytes] = {}
    lossless: int | None = None
    at, kind = 0, -1
    while at + 2 <= len(unit) and kind != _END:
        (head,) = struct.unpack_from(">H", unit, at)
        kind, length = head >> 9, head & 511
        value = unit[at + 2 : at + 2 + length]
        if len(value) < length:
            break
        at += 2 + length
        if kind == _ORGANISATION and value.startswith(_PFC) and length == len(_PFC) + 2:
            lossless = value[5]
        elif kind != _ORGANISATION:
            parts.setdefault(kind, value)
    if kind != _END:
        topology.fault(place, "is an LLDP frame that is cut short", _HINT)
    device, port = _text(parts.get(_SYSTEM, b"")) or _identity(_CHASSIS, parts.get(_CHASSIS, b"")), _identity(_PORT, parts.get(_PORT, b""))
    if not device or not port:
        topology.fault(place, "is an LLDP frame that names no device or no port", _HINT)
        return
    alias = _text(parts.get(_PORT_TEXT, b""))
    topology.thing(place, "device", device, device)
    topology.thing(place, "port", device, port, alias=alias if alias != port else "")
    for priority in range(PRIORITIES if lossless is not None else 0):
        topology.reading("queue", "pfc_enabled", (lossless or 0) >> priority & 1, f"{port}/{priority}", device)


def _identity(kind: int, value: bytes) -> str:
    """Return a chassis or a port as text; its first byte is the subtype."""
    content = value[1:]
    if value[:1] == bytes([_MACS[kind]]):
        return content.hex(":")
    # An address follows the number of its family: 1 for IPv4, 2 for IPv6.
    if value[:1] == bytes([_ADDRESSES[kind]]) and (content[:1], len(content)) in ((b"\x01", 5), (b"\x02", 17)):
        return str(ipaddress.ip_address(content[1:]))
    return _text(content)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace").strip("\x00 ")
