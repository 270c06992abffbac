"""RoCEv2 packets decoded in bulk, beside scapy over the same packets."""

from collections.abc import Iterator

import numpy as np

from .measure import Line, best_rate


def packets(_seconds: int) -> Iterator[Line]:
    """RoCEv2 packets decoded in bulk, beside scapy over the same packets."""
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


def _made_packets() -> list[bytes]:
    """Return 50 Ethernet frames with SENDs of 1 KiB and their acknowledgements."""
    frames = []
    for n in range(50):
        ack = n % 2
        body = bytes([0x11 if ack else 0x04, 0, 0xFF, 0xFF, 0, 0, 0, 72 - ack, 0]) + n.to_bytes(3, "big")
        body += bytes([0, 0, 0, n]) if ack else bytes(1024)
        udp = (
            (49152 + n).to_bytes(2, "big") + (4791).to_bytes(2, "big") + (8 + len(body) + 4).to_bytes(2, "big") + bytes(2) + body + bytes(4)
        )
        ip = (
            bytes([0x45, 2])
            + (20 + len(udp)).to_bytes(2, "big")
            + bytes([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1 + ack, 10, 0, 0, 2 - ack])
        )
        frames.append(bytes(12) + b"\x08\x00" + ip + udp)
    return frames
