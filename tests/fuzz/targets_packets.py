"""Captures and RoCEv2 packets under fuzz."""

import struct
import tempfile
from pathlib import Path

import numpy as np

from weft.collectors.base import Options
from weft.collectors.packets.receiver import PacketRecording
from weft.collectors.wire.roce import decode
from weft.pipeline.errors import InputError


def _packet(opcode: int, body: bytes) -> bytes:
    transport = bytes([opcode, 0, 0xFF, 0xFF, 0, 0, 0, 72, 0, 0, 0, 9]) + body + bytes(4)
    udp = struct.pack(">HHHH", 49152, 4791, 8 + len(transport), 0) + transport
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 2, 20 + len(udp), 0, 0x4000, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])) + udp
    return bytes(12) + b"\x08\x00" + ip


_PACKETS = [_packet(0x04, bytes(64)), _packet(0x11, bytes([0, 0, 0, 9])), _packet(0x0A, bytes(16 + 32)), _packet(0x81, bytes(16))]
_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
_PCAP = _HEAD + b"".join(struct.pack("<IIII", 1, n, len(p), len(p)) + p for n, p in enumerate(_PACKETS))

SEEDS = {"roce": _PACKETS, "capture": [_PCAP]}


def fuzz_roce(data: bytes) -> None:
    """Bytes cut into frames of 100: at most one row a frame, and each frame is decoded or counted once."""
    starts = np.arange(0, max(1, len(data)), 100, dtype=np.int64)
    lengths = np.minimum(100, len(data) - starts).astype(np.int64)
    decoded = decode(data, starts, lengths, np.arange(len(starts), dtype=np.int64), 1, check_icrc=True)
    assert decoded.frame.height + sum(decoded.skipped.values()) == len(starts)


def fuzz_capture(data: bytes) -> None:
    """Bytes as a capture file: rows, then perhaps one error with a hint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.pcap"
        path.write_bytes(data)
        rows = 0
        try:
            for batch in PacketRecording(path, Options()).batches():
                rows += batch.frame.height
        except InputError as error:
            assert error.hint
        assert rows <= len(data) // 16 + 1
