"""The packets of capture files: pcap and pcapng records to columns, in bounded memory.

A file is read in pieces. A kernel walks the record headers of a piece and writes offset, lengths, raw time and interface of each
whole packet; the rest of a cut record goes before the next piece. Python decodes only the few other blocks (pcapng sections,
interfaces, statistics).

Formats: pcap with microseconds or nanoseconds, pcapng with any number of sections and interfaces (if_tsresol,
if_tsoffset, enhanced, simple and obsolete packet blocks, drop counts of interface statistics), both byte orders. A simple
packet block has no time: it gets that of the packet before it.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from ...pipeline.errors import InputError
from .headers import LINK_TYPES

# Measured best: the packets are still in the cache when they are decoded.
PIECE_BYTES = 4 * 1024 * 1024
RECORD_BYTES_MAX = 4 * 1024 * 1024
INTERFACES_MAX = 4096

_NS = 1_000_000_000
_HINT_CUT = "copy the file again or go on without the rest"
_HINT_FORMAT = "write it again as pcap or pcapng, with tcpdump -w or editcap"

HINT_LINK = "capture on an Ethernet, Linux cooked, raw IP or loopback interface"

_PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _STATISTICS, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 5, 6
_SECTION_ORDER = 0x1A2B3C4D


@dataclass(frozen=True, slots=True)
class Piece:
    """Packets ``buffer[offsets[k] : offsets[k] + lengths[k]]``, of ``wire_lengths`` before the capture cut them.

    ``ts`` are nanoseconds, ``dropped`` packets that the writer reports lost since the last piece, ``hidden`` the bytes of each
    packet that were on the wire and are not in the buffer (a VLAN tag that the operating system removed).
    """

    buffer: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    wire_lengths: np.ndarray
    ts: np.ndarray
    links: np.ndarray
    dropped: int = 0
    hidden: np.ndarray | int = 0


@dataclass(slots=True)
class _Interface:
    link: int
    snap_bytes: int
    # A tick is 10^-resolution or, if binary, 2^-resolution seconds.
    resolution: int = 6
    binary: bool = False
    offset_s: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Section:
    """State of the current pcapng section."""

    swap: bool = False
    interfaces: list[_Interface] = field(default_factory=list)
    snaps: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    dropped: int = 0
    last_ts: int = 0


class _Found(NamedTuple):
    """Columns (n,) int64 of whole packets, the offset where the kernel stopped, and why."""

    offsets: np.ndarray
    lengths: np.ndarray
    wire_lengths: np.ndarray
    raw_ts: np.ndarray
    interfaces: np.ndarray
    at: int
    stop: int


_MORE, _ASIDE, _BAD = 0, 1, 2


def is_capture(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` is a pcap or pcapng file."""
    if len(head) < 4:
        return False
    little, big = struct.unpack("<I", head[:4])[0], struct.unpack(">I", head[:4])[0]
    return little == _SECTION or little in _PCAP or big in _PCAP


def read_capture(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the packets of a capture file in the order of the file.

    Raises:
        InputError: not a capture, or cut or damaged; all packets before that place have been yielded.
    """
    try:
        with path.open("rb") as file:
            yield from _read(str(path), file, piece_bytes)
    except OSError as error:
        raise InputError(str(path), error.strerror or "cannot be read", "give a file that this user may read") from None


def warm() -> None:
    """Compile the kernels by reading a pcap and a pcapng file without packets."""
    pcap = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, LINK_TYPES[0])
    pcapng = struct.pack("<IIIHHqI", _SECTION, 28, _SECTION_ORDER, 1, 0, -1, 28)
    for content in (pcap, pcapng):
        list(_read("", io.BytesIO(content), 64))


def _read(path: str, file: io.BufferedIOBase, piece_bytes: int) -> Iterator[Piece]:
    head = file.read(24)
    while 0 < len(head) < 24 and (more := file.read(24 - len(head))):
        head += more
    if not head:
        raise InputError(path, "is empty", "give a pcap or pcapng file")
    if not is_capture(head):
        raise InputError(path, "is neither pcap nor pcapng", _HINT_FORMAT)
    swap = struct.unpack("<I", head[:4])[0] not in (*_PCAP, _SECTION)
    order = ">" if swap else "<"
    magic = struct.unpack(order + "I", head[:4])[0]
    if magic == _SECTION:
        yield from _pieces(path, file, piece_bytes, head, 0, _NextGeneration())
        return
    if len(head) < 24:
        raise InputError(path, f"ends inside the file header at byte {len(head)}", _HINT_CUT)
    link = struct.unpack(order + "I", head[20:24])[0] & 0xFFFF
    if link not in LINK_TYPES:
        raise InputError(path, f"has link type {link}, which is not decoded", HINT_LINK)
    yield from _pieces(path, file, piece_bytes, b"", 24, _Classic(swap, _PCAP[magic], link))


class _Classic:
    """Walks the records of a pcap file."""

    def __init__(self, swap: bool, tick_ns: int, link: int) -> None:
        self._swap, self._tick_ns, self._link = swap, tick_ns, link

    def walk(self, buffer: np.ndarray, at: int) -> tuple[list[Piece], int, str]:
        """Return the packets from ``at`` on, where it stopped, and what is wrong there (empty: more bytes are needed)."""
        found = _Found(*_walk_pcap(buffer, at, self._swap))
        seconds, ticks = found.raw_ts >> 32 & 0xFFFFFFFF, found.raw_ts & 0xFFFFFFFF
        ts = seconds * _NS + ticks * self._tick_ns
        piece = Piece(buffer, found.offsets, found.lengths, found.wire_lengths, ts, np.full(len(ts), self._link))
        return [piece], found.at, "is longer than any packet" if found.stop == _BAD else ""


class _NextGeneration:
    """Walks the blocks of a pcapng file."""

    def __init__(self) -> None:
        self._section = _Section()

    def walk(self, buffer: np.ndarray, at: int) -> tuple[list[Piece], int, str]:
        """Return the packets from ``at`` on, where it stopped, and what is wrong there (empty: more bytes are needed)."""
        pieces: list[Piece] = []
        while True:
            section = self._section
            found = _Found(*_walk_pcapng(buffer, at, section.swap, section.snaps))
            at, size = found.at, 0
            if len(found.offsets):
                pieces.append(self._piece(buffer, found))
            problem = "is not a block" if found.stop == _BAD else ""
            if found.stop == _ASIDE:
                size, problem = self._aside(buffer, at)
            if not size:
                return _joined(buffer, pieces), at, problem
            at += size

    def _piece(self, buffer: np.ndarray, found: _Found) -> Piece:
        section = self._section
        ts = np.zeros(len(found.offsets), np.int64)
        links = np.zeros(len(found.offsets), np.int64)
        for number in np.unique(found.interfaces):
            interface, mine = section.interfaces[number], found.interfaces == number
            ts[mine] = _nanoseconds(found.raw_ts[mine], interface)
            links[mine] = interface.link
        timeless = found.lengths < 0
        if timeless.any():
            last = np.maximum.accumulate(np.where(timeless, -1, np.arange(len(ts))))
            ts = np.where(last < 0, section.last_ts, ts[np.maximum(last, 0)])
        section.last_ts = int(ts[-1])
        dropped, section.dropped = section.dropped, 0
        lengths = np.where(timeless, ~found.lengths, found.lengths)
        return Piece(buffer, found.offsets, lengths, found.wire_lengths, ts, links, dropped)

    def rest(self) -> int:
        """Return the drops that no piece has reported yet."""
        dropped, self._section.dropped = self._section.dropped, 0
        return dropped

    def _aside(self, buffer: np.ndarray, at: int) -> tuple[int, str]:
        """Decode one block without packets; return its size (0: more bytes are needed) and what is wrong with it."""
        kind = struct.unpack_from("<I", buffer.data, at)[0]
        if kind == _SECTION:
            if at + 12 > len(buffer):
                return 0, ""
            magic = struct.unpack_from("<I", buffer.data, at + 8)[0]
            if magic not in (_SECTION_ORDER, 0x4D3C2B1A):
                return 0, "is not a section header"
            self._section = _Section(swap=magic != _SECTION_ORDER, dropped=self._section.dropped, last_ts=self._section.last_ts)
        order = ">" if self._section.swap else "<"
        kind, size = struct.unpack_from(order + "II", buffer.data, at)
        if size < 12 or size % 4 or size > RECORD_BYTES_MAX:
            return 0, "is not a block"
        if at + size > len(buffer):
            return 0, ""
        body = bytes(buffer[at + 8 : at + size - 4])
        problem = ""
        if kind == _INTERFACE:
            problem = self._interface(order, body)
        elif kind == _STATISTICS:
            self._statistics(order, body)
        return size, problem

    def _interface(self, order: str, body: bytes) -> str:
        if len(body) < 8 or len(self._section.interfaces) >= INTERFACES_MAX:
            return "is not an interface description"
        link, snap_bytes = struct.unpack_from(order + "HxxI", body)
        interface = _Interface(link, snap_bytes or RECORD_BYTES_MAX)
        for code, value in _options(order, body[8:]):
            if code == 9 and len(value) >= 1:
                interface.resolution, interface.binary = value[0] & 0x7F, bool(value[0] & 0x80)
            elif code == 14 and len(value) == 8:
                interface.offset_s = struct.unpack(order + "q", value)[0]
        self._section.interfaces.append(interface)
        self._section.snaps = np.append(self._section.snaps, interface.snap_bytes)
        return ""

    def _statistics(self, order: str, body: bytes) -> None:
        if len(body) < 12:
            return
        number = struct.unpack_from(order + "I", body)[0]
        if number >= len(self._section.interfaces):
            return
        # isb_ifdrop and isb_osdrop count from the start of the capture.
        values = [struct.unpack(order + "Q", value)[0] for code, value in _options(order, body[12:]) if code in (5, 7) and len(value) == 8]
        interface, total = self._section.interfaces[number], min(sum(values), 2**62)
        self._section.dropped += max(0, total - interface.dropped)
        interface.dropped = max(total, interface.dropped)


def _joined(buffer: np.ndarray, pieces: list[Piece]) -> list[Piece]:
    """Return the pieces of one buffer as one, so that packets on both sides of another block are put in order."""
    if len(pieces) < 2:
        return pieces
    columns = {
        name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("offsets", "lengths", "wire_lengths", "ts", "links")
    }
    return [Piece(buffer, **columns, dropped=sum(piece.dropped for piece in pieces))]


def _options(order: str, body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        if code == 0 or at + 4 + size > len(body):
            return
        yield code, body[at + 4 : at + 4 + size]
        at += 4 + (size + 3) // 4 * 4


def _nanoseconds(raw: np.ndarray, interface: _Interface) -> np.ndarray:
    ticks = raw.astype(np.uint64)
    if interface.binary:
        power = min(interface.resolution, 63)
        whole, part = ticks >> np.uint64(power), ticks & np.uint64((1 << power) - 1)
        # The part times 10^9 must fit into 64 bits; 2^-33 s is finer than a nanosecond.
        cut = max(0, power - 33)
        ns = whole * np.uint64(_NS) + ((part >> np.uint64(cut)) * np.uint64(_NS) >> np.uint64(power - cut))
    elif interface.resolution <= 9:
        ns = ticks * np.uint64(10 ** (9 - interface.resolution))
    else:
        ns = ticks // np.uint64(10 ** min(interface.resolution - 9, 19))
    # Ignore an offset of more than 272 years.
    offset_ns = interface.offset_s * _NS if abs(interface.offset_s) < 2**33 else 0
    return ns.view(np.int64) + np.int64(offset_ns)


def _pieces(
    path: str, file: io.BufferedIOBase, piece_bytes: int, head: bytes, base: int, walker: _Classic | _NextGeneration
) -> Iterator[Piece]:
    """Yield the packets that ``walker`` finds; ``head`` is already read and starts at byte ``base``."""
    left = np.frombuffer(head, np.uint8)
    packets = 0
    while True:
        buffer = np.empty(len(left) + piece_bytes, np.uint8)
        buffer[: len(left)] = left
        fresh = file.readinto(buffer.data[len(left) :])
        buffer = buffer[: len(left) + fresh]
        found, at, problem = walker.walk(buffer, 0)
        for piece in found:
            packets += len(piece.offsets)
            yield piece
        base += at
        if problem:
            raise InputError(
                path, f"record after packet {packets}, at byte {base}, {problem}; the {packets} packets before it were kept", _HINT_FORMAT
            )
        left = buffer[at:]
        if not fresh:
            break
    if isinstance(walker, _NextGeneration) and (dropped := walker.rest()):
        nothing = np.empty(0, np.int64)
        yield Piece(left, nothing, nothing, nothing, nothing, nothing, dropped)
    if len(left):
        end = base + len(left)
        raise InputError(path, f"ends inside packet {packets + 1} at byte {end}; the {packets} packets before it were kept", _HINT_CUT)


@numba.njit(inline="always")
def _u32(buffer, at, swap):
    """Return four bytes as int64, big-endian if ``swap``."""
    a, b, c, d = np.int64(buffer[at]), np.int64(buffer[at + 1]), np.int64(buffer[at + 2]), np.int64(buffer[at + 3])
    return (a << 24 | b << 16 | c << 8 | d) if swap else (d << 24 | c << 16 | b << 8 | a)


@numba.njit(cache=True, nogil=True)
def _walk_pcap(buffer, at, swap):
    """Return the fields of ``_Found`` for the records of ``buffer`` uint8 from ``at`` on; ``swap``: big-endian."""
    room = (len(buffer) - at) // 16 + 1
    offsets, lengths, wire, raw = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    count, stop = 0, _MORE
    while at + 16 <= len(buffer):
        size = _u32(buffer, at + 8, swap)
        if size > RECORD_BYTES_MAX:
            stop = _BAD
            break
        if at + 16 + size > len(buffer):
            break
        offsets[count], lengths[count], wire[count] = at + 16, size, _u32(buffer, at + 12, swap)
        raw[count] = _u32(buffer, at, swap) << 32 | _u32(buffer, at + 4, swap)
        count += 1
        at += 16 + size
    return offsets[:count], lengths[:count], wire[:count], raw[:count], np.zeros(count, np.int64), at, stop


@numba.njit(cache=True, nogil=True)
def _walk_pcapng(buffer, at, swap, snaps):
    """Return the fields of ``_Found`` for the blocks of ``buffer`` uint8 from ``at`` on; ``snaps`` int64: snap length of each interface."""
    room = (len(buffer) - at) // 16 + 1
    offsets, lengths, wire, raw = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    interfaces = np.empty(room, np.int64)
    count, stop = 0, _MORE
    while at + 12 <= len(buffer):
        kind, size = _u32(buffer, at, swap), _u32(buffer, at + 4, swap)
        if kind in (_SECTION, _INTERFACE, _STATISTICS):
            stop = _ASIDE
            break
        if size < 12 or size & 3 or size > RECORD_BYTES_MAX:
            stop = _BAD
            break
        if at + size > len(buffer):
            break
        if kind in (_ENHANCED, _OLD_PACKET, _SIMPLE):
            start, number, length, original = _packet_block(buffer, at, kind, size, swap, snaps)
            if number < 0:
                stop = _BAD
                break
            offsets[count], wire[count], interfaces[count] = start, original, number
            # The complement of its length marks a packet without a time.
            lengths[count] = ~length if kind == _SIMPLE else length
            raw[count] = 0 if kind == _SIMPLE else _u32(buffer, at + 12, swap) << 32 | _u32(buffer, at + 16, swap)
            count += 1
        at += size
    return offsets[:count], lengths[:count], wire[:count], raw[:count], interfaces[:count], at, stop


@numba.njit(nogil=True)
def _packet_block(buffer, at, kind, size, swap, snaps):
    """Return start, interface, length and length on the wire of the packet in a whole block; interface -1 if malformed."""
    if kind == _SIMPLE:
        if size < 16 or len(snaps) == 0:
            return 0, -1, 0, 0
        original = _u32(buffer, at + 8, swap)
        length = min(original, snaps[0])
        return at + 12, 0 if length <= size - 16 else -1, length, original
    if size < 32:
        return 0, -1, 0, 0
    number, length, original = _u32(buffer, at + 8, swap), _u32(buffer, at + 20, swap), _u32(buffer, at + 24, swap)
    if kind == _OLD_PACKET:
        number = number >> 16 if swap else number & 0xFFFF
    if number >= len(snaps) or length > size - 32:
        return 0, -1, 0, 0
    return at + 28, number, length, original
