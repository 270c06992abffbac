"""RoCEv2 packets as sampled by a switch: Ethernet, IPv4, UDP, BTH and extended headers, built as columns (InfiniBand
Architecture, volume 1, chapter 9 and annex A17)."""

from dataclasses import dataclass

import numpy as np

from .script import LOSSLESS, Script, _draws

ROCE_PORT = 4791
MTU = 4096
# The length to which sampled packets are cut.
HEADER_BYTES = 128

_ETHERNET = [("dst_mac", "u1", 6), ("src_mac", "u1", 6), ("ether_type", ">u2")]
_IP = [("version", "u1"), ("tos", "u1"), ("length", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"), ("protocol", "u1")]
_IP += [("checksum", ">u2"), ("src", ">u4"), ("dst", ">u4")]
_UDP = [("src_port", ">u2"), ("dst_port", ">u2"), ("udp_length", ">u2"), ("udp_checksum", ">u2")]
_BTH = [("opcode", "u1"), ("flags", "u1"), ("partition", ">u2"), ("qp", ">u4"), ("psn", ">u4")]
_RETH = [("address", ">u8"), ("key", ">u4"), ("dma_length", ">u4")]
_AETH = [("aeth", ">u4")]

SEND_ONLY, WRITE_FIRST, WRITE_MIDDLE, WRITE_LAST, ACKNOWLEDGE, CONGESTION = 0x04, 0x06, 0x07, 0x08, 0x11, 0x81
# Operation: header after the BTH, bytes of payload.
_KINDS = {
    SEND_ONLY: ([], MTU),
    WRITE_FIRST: (_RETH, MTU),
    WRITE_MIDDLE: ([], MTU),
    WRITE_LAST: ([], MTU),
    ACKNOWLEDGE: (_AETH, 0),
    CONGESTION: ([("reserved", "u1", 16)], 0),
}


@dataclass(frozen=True, slots=True)
class Flows:
    """Sampled packets of one operation as columns (n,): ports are numbered from 0, ``header`` is (n, bytes), lengths include the FCS."""

    in_port: np.ndarray
    out_port: np.ndarray
    queue: np.ndarray
    delay_ns: np.ndarray
    depth_bytes: np.ndarray
    length: np.ndarray
    header: np.ndarray


def sampled(script: Script, ts: int, count: int, opcode: int = WRITE_MIDDLE, *, seed: int = 1) -> Flows:
    """Return ``count`` packets that a switch samples at ``ts``, a function of the arguments.

    The depth is the queue's at that instant, the delay is the time to send as much at line rate.
    """
    plan, inputs = script.plan, script.inputs
    lossless = np.flatnonzero(plan.priority[inputs.queue] == LOSSLESS)
    chosen = lossless[_draws(seed + ts, 3, count) % len(lossless)]
    in_port, out_port = inputs.port[chosen], plan.port[inputs.queue[chosen]]
    depth = script.at([ts]).queue("occupancy_bytes")[0, out_port, LOSSLESS]
    ends = Ends(in_port, out_port, 0x0A000001 + (in_port << 8), 0x0A000001 + (out_port << 8), 0xC000 + in_port)
    whole = wire_bytes(opcode)
    padded = headers(ends, opcode, 0x100 + in_port, _draws(seed, 4, count) & 0xFFFFFF, depth > 60 * 4158)
    delay = depth * 8_000_000_000 // script.shape.speed_bps + 800
    return Flows(in_port, out_port, np.full(count, LOSSLESS), delay, depth, np.full(count, whole + 4), padded)


@dataclass(frozen=True, slots=True)
class Ends:
    """Addresses of packets as columns (n,): last bytes of the MAC addresses, IPv4 addresses, UDP source port."""

    source: np.ndarray
    target: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    src_port: np.ndarray


def wire_bytes(opcode: int, payload_bytes: int | None = None) -> int:
    """Return the length of a packet from the Ethernet header to the ICRC; full-sized by default."""
    extra, payload = _KINDS[opcode]
    return np.dtype(_ETHERNET + _IP + _UDP + _BTH + extra).itemsize + (payload if payload_bytes is None else payload_bytes) + 4


def headers(
    ends: Ends, opcode: int, queue_pair: np.ndarray, psn: np.ndarray, marked: np.ndarray, payload_bytes: int | None = None
) -> np.ndarray:
    """Return the first ``HEADER_BYTES`` of packets of one operation, or whole packets if shorter: (n, bytes) uint8."""
    extra, _ = _KINDS[opcode]
    whole = wire_bytes(opcode, payload_bytes)
    packet = np.zeros(len(psn), np.dtype(_ETHERNET + _IP + _UDP + _BTH + extra))
    _network(packet, ends, whole, marked)
    packet["opcode"], packet["flags"], packet["partition"] = opcode, 0x40 if opcode == ACKNOWLEDGE else 0, 0xFFFF
    packet["qp"], packet["psn"] = queue_pair, psn
    if opcode == WRITE_FIRST:
        packet["address"], packet["key"], packet["dma_length"] = 0x7F0000000000, 0x1234, 1 << 20
    elif opcode == ACKNOWLEDGE:
        packet["aeth"] = (12 << 24) | (packet["psn"] & 0xFFFFFF)
    elif opcode == SEND_ONLY:
        packet["psn"] |= 1 << 31  # requests an acknowledgement
    header = packet.view(np.uint8).reshape(len(packet), -1)
    cut = min(HEADER_BYTES, whole)
    padded = np.zeros((len(packet), cut), np.uint8)
    padded[:, : header.shape[1]] = header[:, :cut]
    return padded


def _network(packet: np.ndarray, ends: Ends, whole: int, marked: np.ndarray) -> None:
    """Fill in Ethernet, IPv4 and UDP; ``whole`` counts from the Ethernet header to the ICRC."""
    packet["dst_mac"][:], packet["src_mac"][:] = (2, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0)
    packet["dst_mac"][:, 5], packet["src_mac"][:, 5] = ends.target & 255, ends.source & 255
    packet["ether_type"], packet["version"], packet["ttl"], packet["protocol"] = 0x0800, 0x45, 64, 17
    packet["tos"] = (26 << 2) | np.where(marked, 3, 2)
    packet["length"], packet["fragment"] = whole - 14, 0x4000
    packet["src"], packet["dst"] = ends.src, ends.dst
    words = packet.view(np.uint8).reshape(len(packet), -1)[:, 14:34].copy().view(">u2").astype(np.int64)
    total = words.sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    packet["checksum"] = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet["src_port"], packet["dst_port"], packet["udp_length"] = ends.src_port, ROCE_PORT, whole - 34
