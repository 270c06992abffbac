"""RoCEv2 packets decoded in bulk, beside scapy over the same packets."""

import struct
from collections.abc import Iterator

import numpy as np

from .measure import Line, best_rate


def packets(_seconds: int) -> Iterator[Line]:
    """Measure bulk decoding of RoCEv2 packets, beside scapy over the same packets."""
    from ...collectors.packets.receiver import dissect
    from ...collectors.wire.roce import decode

    raw, count = _made_packets(), 200_000
    buffer = b"".join(raw) * (count // len(raw))
    lengths = np.tile([len(packet) for packet in raw], count // len(raw))
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ts = np.arange(len(lengths), dtype=np.int64)
    fast = best_rate(lambda: decode(buffer, offsets, lengths, ts, 1), len(lengths))
    few = (raw * 20)[:1000]
    slow = best_rate(lambda: [dissect(packet) for packet in few], len(few), runs=1)
    yield Line(
        "RoCEv2 packets decoded, one core",
        f"{fast / 1e6:.1f} M packets/s",
        f"{fast / slow:,.0f} x scapy ({slow:,.0f} packets/s)",
        ">= 1,000 x",
    )


def roce_frame(opcode: int, queue_pair: int, psn: int, rest: bytes, src_port: int, addresses: bytes) -> bytes:
    """Return an Ethernet frame with a RoCEv2 packet; ``rest`` follows the BTH, ``addresses`` are source and destination."""
    bth = struct.pack(">2BH2I", opcode, 0, 0xFFFF, queue_pair, psn)
    udp = struct.pack(">4H", src_port, 4791, 8 + len(bth) + len(rest), 0)
    ip = struct.pack(">2B3H2BH", 0x45, 2, 20 + 8 + len(bth) + len(rest), 0, 0x4000, 64, 17, 0) + addresses
    return bytes(12) + b"\x08\x00" + ip + udp + bth + rest


def _made_packets() -> list[bytes]:
    """Return 50 Ethernet frames with SENDs of 1 KiB and their acknowledgements."""
    frames = []
    for n in range(50):
        ack = n % 2
        rest, addresses = (bytes([0, 0, 0, n]) if ack else bytes(1024)) + bytes(4), bytes([10, 0, 0, 1 + ack, 10, 0, 0, 2 - ack])
        frames.append(roce_frame(0x11 if ack else 0x04, 72 - ack, n, rest, 49152 + n, addresses))
    return frames
