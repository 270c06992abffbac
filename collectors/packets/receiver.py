"""RoCEv2 packets from a capture file or an interface; the only module that imports scapy.

Files are decoded in bulk (``wire.roce``). Live, scapy opens the packet socket (binding, promiscuous mode), a socket filter passes
RoCEv2, and Linux writes into a mapped ring that ``drain`` decodes in place. When the ring is full, Linux drops and counts packets,
and the count becomes a row of ``gap``.

RDMA adapters bypass the operating system: live capture sees mirrored ports, software RDMA (rxe) and adapters that copy packets to it.
"""

import errno
import logging
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipeline.clock import Clock
from ...pipeline.errors import ConfigError, InputError, ServiceError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, Collector, Options, gaps

if TYPE_CHECKING:
    from ..wire.capture import Piece
    from .ring import PacketRing

SOURCE = "packets"
BATCH_PACKETS = 20_000

_PACKET = FAMILIES["packet"]

# Texts for ``roce.REASONS``.
_SKIPPED = {
    "other": "not RoCEv2",
    "fragment": "fragments",
    "cut": "captured too short",
    "malformed": "malformed",
    "icrc": "with a wrong ICRC",
}

log = logging.getLogger("weft")

_ARPHRD = {1: 1, 772: 1, 65534: 101, 519: 101}
_LOOPBACK = 772


@dataclass(frozen=True, slots=True)
class PacketsConfig:
    """Live capture of RoCEv2 (UDP port 4791) on one interface; off while ``interface`` is empty.

    ``device`` is the name under which the packets are published, the host's if empty. ``snap_bytes`` of each packet are captured (all
    with ``check_icrc``). The ring of ``ring_blocks`` blocks of ``block_bytes`` bounds what may wait between two drains.
    """

    interface: str = ""
    device: str = ""
    promiscuous: bool = True
    check_icrc: bool = False
    snap_bytes: int = 192
    ring_blocks: int = 32
    block_bytes: int = 1024 * 1024
    hand_over_ms: int = 20

    @property
    def enabled(self) -> bool:
        return bool(self.interface)


class _PacketFrames:
    """Makes the batches of one device, and counts."""

    def __init__(self, device: str, check_icrc: bool) -> None:
        self.device, self.check_icrc = device, check_icrc
        self.counts: dict[str, int] = {}

    def count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def of(self, piece: "Piece", recv_ts: int | None = None) -> list[Batch]:
        """Return the packets of ``piece`` in time order, after its gaps; ``recv_ts`` defaults to the time stamps."""
        from ..wire.roce import decode

        decoded = decode(
            piece.buffer,
            piece.offsets,
            piece.lengths,
            piece.ts,
            piece.links,
            wire_lengths=piece.wire_lengths,
            hidden=piece.hidden,
            check_icrc=self.check_icrc,
        )
        for reason, number in decoded.skipped.items():
            self.count(f"skipped_{reason}", number)
        self.count("decoded", decoded.frame.height)
        self.count("icrc_unchecked", decoded.unchecked)
        self.count("partial", decoded.partial)
        at = int(piece.ts.max()) if len(piece.ts) else recv_ts or 0
        batches = self.gap(at, piece.dropped, "kernel_drop", recv_ts)
        for reason in ("cut", "icrc"):
            batches += self.gap(at, decoded.skipped[reason], reason, recv_ts)
        rows = decoded.frame.sort("ts", maintain_order=True).to_dict()
        common = {"recv_ts": rows["ts"] if recv_ts is None else recv_ts, "source": SOURCE, "device": self.device, "epoch": 0}
        frame = _PACKET.frame(rows | common)
        return batches + [Batch("packet", part) for part in frame.iter_slices(BATCH_PACKETS) if part.height]

    def gap(self, ts: int, missed: int, reason: str, recv_ts: int | None = None) -> list[Batch]:
        if not missed:
            return []
        self.count(f"missed_{reason}", missed)
        return gaps(SOURCE, [(self.device, "packets", missed, reason, None)], ts, recv_ts)


class PacketRecording:
    """A pcap or pcapng file. Packets that are not RoCEv2 are left out and counted (``counts``)."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self._frames = _PacketFrames(options.device or path.stem, options.check_icrc)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many packets were decoded, skipped by reason, and missed."""
        return self._frames.counts

    def batches(self) -> Iterator[Batch]:
        """Yield gaps and packets; packets out of order within 4 MiB of the file are put in order.

        Raises ``InputError`` where the file is cut or damaged, or at its end if an interface's link type is unknown, in both cases after
        the last good row.
        """
        self._frames.counts.clear()
        pending, problem, strange = None, None, {}
        try:
            for batch in self._pieces(strange):
                if pending is not None:
                    yield pending
                pending = batch
        except InputError as error:
            problem = error
        if pending is None and problem is not None:
            raise problem
        last = pending or Batch("packet", _PACKET.empty())
        yield Batch(last.family, last.frame, (self._frames.device,))
        for line in self._summary():
            log.info("%s: %s", self._path, line)
        if problem is not None:
            raise problem
        if strange:
            from ..wire.capture import HINT_LINK

            link, missed = next(iter(strange.items()))
            raise InputError(str(self._path), f"{missed} packets have link type {link}, which is not decoded, and were left out", HINT_LINK)

    def _summary(self) -> Iterator[str]:
        """Yield how many packets gave no row or an incomplete one, and why."""
        skipped = [f"{number:,} {text}" for reason, text in _SKIPPED.items() if (number := self.counts.get(f"skipped_{reason}", 0))]
        if skipped:
            yield f"packets without a row: {', '.join(skipped)}"
        if partial := self.counts.get("partial", 0):
            yield f"packets captured too short for their RETH or AETH, whose fields are null: {partial:,}; tcpdump -s 128 keeps them"

    def _pieces(self, strange: dict[int, int]) -> Iterator[Batch]:
        import numpy as np

        from ..wire.capture import read_capture
        from ..wire.headers import LINK_TYPES

        for piece in read_capture(self._path):
            unknown = ~np.isin(piece.links, LINK_TYPES)
            for link, number in zip(*np.unique(piece.links[unknown], return_counts=True), strict=True):
                strange[int(link)] = strange.get(int(link), 0) + int(number)
            yield from self._frames.of(piece)


class PacketCapture:
    """Live capture on an interface, as the module describes."""

    def __init__(self, config: PacketsConfig, clock: Clock) -> None:
        import socket

        self._config, self._clock = config, clock
        self._frames = _PacketFrames(config.device or socket.gethostname(), config.check_icrc)
        self._source: Any = None
        self._ring: PacketRing | None = None
        self._left: list[Batch] = []

    def start(self) -> None:
        """Open the interface.

        Raises:
            ConfigError: no such interface, or one whose packets are not decoded.
            ServiceError: this user may not capture, or Linux has no ring.
        """
        import socket

        config = self._config
        if sys.platform != "linux":
            raise ServiceError("packets: live capture needs Linux", "replay a capture file instead")
        if config.interface not in (name for _, name in socket.if_nameindex()):
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise ConfigError("collect.packets.interface", f"there is no interface {config.interface!r}", f"write one of {names}")
        try:
            self._open()
        except OSError as error:
            self.stop()
            if error.errno in (errno.EPERM, errno.EACCES):
                raise ServiceError(
                    "packets: this user may not capture",
                    "run as root or give the process CAP_NET_RAW, or leave collect.packets.interface empty",
                ) from None
            raise ServiceError(f"packets: no ring on {config.interface}: {error.strerror}", "lower collect.packets.ring_blocks") from None

    def _open(self) -> None:
        import scapy.layers.l2  # noqa: F401  (registers the hardware types)
        from scapy.arch.linux import L2ListenSocket

        from .ring import PacketRing

        config = self._config
        self._source = L2ListenSocket(iface=config.interface, promisc=config.promiscuous and config.interface != "lo", nofilter=1)
        packets = self._source.ins
        kind = packets.getsockname()[3]
        if kind not in _ARPHRD:
            self.stop()
            raise ConfigError(
                "collect.packets.interface",
                f"{config.interface} is of hardware type {kind}, which is not decoded",
                "use an Ethernet interface",
            )
        _attach_filter(packets, 0x40000 if config.check_icrc else config.snap_bytes)
        ring = PacketRing(config.block_bytes, config.ring_blocks, config.hand_over_ms, _ARPHRD[kind])
        # Each packet on the loopback interface is seen going out and coming in.
        ring.open(packets, ignore_outgoing=kind == _LOOPBACK)
        ring.dropped()
        self._ring = ring

    def drain(self) -> list[Batch]:
        """Return the packets in the ring; empty when stopped and drained."""
        left, self._left = self._left, []
        return left + (self._read() if self._ring is not None else [])

    def _read(self) -> list[Batch]:
        assert self._ring is not None
        now = self._clock.now_ns()
        piece, taken = self._ring.take()
        batches = self._frames.of(piece, now) if len(piece.ts) else []
        del piece
        self._ring.give_back(taken)
        return batches + self._frames.gap(now, self._ring.dropped(), "kernel_drop", now)

    def counters(self) -> Mapping[str, float]:
        """Return packets decoded, skipped by reason and missed, since the start."""
        return {f"weft_collectors_packets_{what}_total": float(number) for what, number in self._frames.counts.items()}

    def stop(self) -> None:
        """Close the interface; packets captured by now are left for one more ``drain``."""
        if self._ring is not None and self._source is not None:
            self._clock.wait(2 * self._config.hand_over_ms / 1000)
            self._left += self._read()
            self._ring.close()
        if self._source is not None:
            self._source.close()
        self._ring, self._source = None, None


def _attach_filter(packets: Any, snap_bytes: int) -> None:
    """Pass only UDP to port 4791, and headers that may precede it: authentication, IPv6 extension headers, inner VLAN tags.

    Classic BPF relative to the network header, so that one program fits every link type; Linux has removed the outer VLAN tag.
    """
    import ctypes
    import socket

    load_half, load_byte, load_half_x = 0x28, 0x30, 0x48
    equal, mask, shift, to_x, end = 0x15, 0x54, 0x64, 0x07, 0x06
    net, protocol = 0xFFF00000, 0xFFFFF000
    # A jump is a number of steps to skip, or one of the two ends.
    program = [
        (load_half, protocol, 0, 0),
        (equal, 0x8100, "give", 0),
        (equal, 0x88A8, "give", 0),
        (equal, 0x0800, 1, 0),
        (equal, 0x86DD, 9, "drop"),
        (load_byte, net + 9, 0, 0),
        (equal, 51, "give", 0),
        (equal, 17, 0, "drop"),
        (load_byte, net, 0, 0),
        (mask, 0x0F, 0, 0),
        (shift, 2, 0, 0),
        (to_x, 0, 0, 0),
        (load_half_x, net + 2, 0, 0),
        (equal, 4791, "give", "drop"),
        (load_byte, net + 6, 0, 0),
        (equal, 17, 5, 0),
        (equal, 0, "give", 0),
        (equal, 43, "give", 0),
        (equal, 44, "give", 0),
        (equal, 51, "give", 0),
        (equal, 60, "give", "drop"),
        (load_half, net + 42, 0, 0),
        (equal, 4791, "give", "drop"),
        (end, 0, 0, 0),
        (end, snap_bytes, 0, 0),
    ]
    ends = {"drop": len(program) - 2, "give": len(program) - 1}
    steps = [
        struct.pack("HBBI", code, *(ends[jump] - at - 1 if isinstance(jump, str) else jump for jump in (yes, no)), value)
        for at, (code, value, yes, no) in enumerate(program)
    ]
    code = ctypes.create_string_buffer(b"".join(steps))
    packets.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program), ctypes.addressof(code)))


def _recognises(path: Path, head: bytes) -> bool:
    from ..wire.capture import is_capture

    return is_capture(head)


def warm() -> None:
    """Compile the kernels of captures and interfaces by decoding one byte."""
    import numpy as np

    from ..wire import capture
    from .ring import walk

    capture.warm()
    walk(np.zeros(16, np.uint32), 64, 1, 0)
    one = np.zeros(1, np.int64)
    _PacketFrames("", False).of(capture.Piece(np.zeros(1, np.uint8), one, one + 1, one + 1, one, one + 1))


PACKETS = Collector(
    name=SOURCE,
    doc="RoCEv2 packets of a capture file (pcap, pcapng) or of an interface",
    families=("packet", "gap"),
    config=PacketsConfig,
    registers=None,
    live=PacketCapture,
    recorded=PacketRecording,
    recognises=_recognises,
    warm=warm,
)


def dissect(raw: bytes) -> Any:
    """Return one Ethernet frame as scapy dissects it, for comparison with the bulk decoder."""
    from scapy.contrib import roce  # noqa: F401  (binds RoCEv2 to its UDP port)
    from scapy.layers.l2 import Ether

    return Ether(raw)
