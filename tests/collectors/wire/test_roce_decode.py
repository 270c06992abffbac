"""The columnar RoCEv2 decoder, compared with scapy, tshark, zlib and published ICRC values."""

import ipaddress
import os
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.roce import AETH, BTH, cnp
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.ipsec import AH
from scapy.layers.l2 import CookedLinux, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import wrpcap
from shared_data import SHARED as SHARED_DATA

from weft.collectors.wire.roce import REASONS, decode

SHARED = SHARED_DATA / "roce-pcap"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")

# Given explicitly, or scapy looks it up on the network.
MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)

# Extension headers between BTH and payload, in the words of the InfiniBand specification (volume 1, table 38).
RETH, AETH_BYTES, IMMEDIATE, ATOMIC, IETH, DETH, RDETH, XRCETH = 16, 4, 4, 28, 4, 8, 4, 4
RC_HEADERS = [0, 0, 0, 4, 0, 4, 16, 0, 0, 4, 16, 20, 16, 4, 0, 4, 4, 4, 12, 28, 28]
# Annex A19: FLUSH has a FETH before its RETH, ATOMIC WRITE a RETH and eight bytes of payload.
FLUSH, ATOMIC_WRITE, FETH = 0x1C, 0x1D, 4


def header_bytes(opcode: int) -> int:
    """Return the bytes of extension headers of an opcode."""
    service, op = opcode >> 5, opcode & 31
    if opcode == 0x81:
        return 16
    if opcode in (FLUSH, ATOMIC_WRITE):
        return RETH + (FETH if opcode == FLUSH else 0)
    if service in (0, 1):
        return RC_HEADERS[op]
    if service == 2:
        return RC_HEADERS[op] + RDETH + (0 if 0x0D <= op <= 0x12 else DETH)
    return DETH + (IMMEDIATE if op == 5 else 0)


OPCODES = [*range(0x15), FLUSH, ATOMIC_WRITE, *range(0x20, 0x2C), *range(0x40, 0x55), 0x64, 0x65, 0x81]


def roce(opcode: int, *, psn: int = 7, qp: int = 0x123456, payload: int = 13, syndrome: int = 0, dma: int = 0xDEADBEEF) -> bytes:
    """Return BTH, extension headers, payload, pad and a zero ICRC."""
    headers = bytearray(os.urandom(header_bytes(opcode)))
    service, op = opcode >> 5, opcode & 31
    if service in (0, 2) and op in (0x0D, 0x0F, 0x10, 0x11, 0x12):
        headers[RDETH if service == 2 else 0] = syndrome
    if opcode in (FLUSH, ATOMIC_WRITE):
        headers[-4:] = struct.pack(">I", dma)
    if service in (0, 1, 2) and op in (0x06, 0x0A, 0x0B, 0x0C):
        at = RDETH + DETH if service == 2 else 0
        headers[at + 12 : at + 16] = struct.pack(">I", dma)
    pad = -payload % 4
    bth = struct.pack(">BBHII", opcode, pad << 4 | 0x40, 0xFFFF, qp, 1 << 31 | psn)
    return bth + bytes(headers) + b"p" * payload + b"\0" * pad + b"\0" * 4


def frame(payload: bytes, *, over: str = "v4", tos: int = 0x9E, sport: int = 50_000) -> bytes:
    """Return ``payload`` in UDP port 4791 over IPv4 or IPv6, with or without VLAN tags, options and extension headers."""
    v4, v6 = IP(src="10.0.0.1", dst="10.0.0.2", tos=tos), IPv6(src="2001:db8::1", dst="fe80::5:6", tc=tos)
    ways = {
        "v4": ETHER / v4,
        "v4 options": ETHER / IP(src="10.0.0.1", dst="10.0.0.2", tos=tos, options=[b"\x01\x01\x01\x01"]),
        "v4 vlan": ETHER / Dot1Q(vlan=5) / v4,
        "v4 qinq": Ether(src=MAC, dst=MAC, type=0x88A8) / Dot1AD(vlan=5) / Dot1Q(vlan=6) / v4,
        "v6": ETHER / v6,
        "v6 vlan": ETHER / Dot1Q(vlan=5) / v6,
        "v6 extensions": ETHER / v6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt(),
        "v6 atomic fragment": ETHER / v6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(offset=0, m=0),
        "v6 authenticated": ETHER / v6 / AH(nh=17, payloadlen=4, icv=b"0123456789ab"),
        "v4 authenticated": ETHER / v4 / AH(nh=17, payloadlen=4, icv=b"0123456789ab"),
    }
    return bytes(ways[over] / UDP(sport=sport, dport=4791) / Raw(payload))


WAYS = (
    "v4",
    "v4 options",
    "v4 vlan",
    "v4 qinq",
    "v6",
    "v6 vlan",
    "v6 extensions",
    "v6 atomic fragment",
    "v6 authenticated",
    "v4 authenticated",
)


def decode_all(packets: list[bytes], link: int = 1, **more):
    """Decode packets stored one after another, one nanosecond apart."""
    lengths = np.array([len(packet) for packet in packets], np.int64)
    offsets = np.cumsum(lengths) - lengths
    return decode(b"".join(packets), offsets, lengths, np.arange(len(packets)), link, **more)


def by_scapy(raw: bytes) -> dict:
    """Return the fields of one packet as scapy dissects them."""
    packet = Ether(raw)
    ip = packet[IP] if IP in packet else packet[IPv6]
    traffic = ip.tos if IP in packet else ip.tc
    # scapy does not dissect what follows an authentication header.
    udp = packet[UDP] if UDP in packet else UDP(bytes(packet[AH].payload))
    bth = udp[BTH]
    # In the reliable datagram service an RDETH precedes the AETH; scapy does not know it, tshark does.
    aeth = udp[AETH] if AETH in udp and bth.opcode == 0x11 else None
    return {
        "src": ip.src,
        "dst": ip.dst,
        "src_port": udp.sport,
        "qp": bth.dqpn,
        "opcode": bth.opcode,
        "psn": bth.psn,
        "ecn": traffic & 3,
        "dscp": traffic >> 2,
        "length": len(raw),
        **({"syndrome": aeth.syndrome, "ack_psn": bth.psn} if aeth else {}),
    }


@pytest.mark.parametrize("over", WAYS)
def test_every_opcode_gives_what_scapy_reads(over: str):
    """Each opcode over each encapsulation gives the fields that scapy dissects, and the length of the payload."""
    packets = [frame(roce(opcode, psn=opcode * 999, payload=opcode % 29), over=over, tos=opcode) for opcode in OPCODES]
    decoded = decode_all(packets)
    assert sum(decoded.skipped.values()) == 0
    for row, raw, opcode in zip(decoded.frame.to_dicts(), packets, OPCODES, strict=True):
        expected = by_scapy(raw)
        assert {name: row[name] for name in expected} == expected
        assert row["payload_bytes"] == opcode % 29
        assert row["sampling_rate"] == 1


def test_reth_and_aeth_are_read_where_they_stand():
    """RETH lengths are present for write and read requests only, syndromes and credits with an AETH only, and null elsewhere."""
    packets = [frame(roce(opcode, dma=opcode + 1, syndrome=0x05)) for opcode in OPCODES]
    rows = decode_all(packets).frame
    with_reth = rows.filter(pl.col("dma_bytes").is_not_null())
    assert with_reth["opcode"].to_list() == [0x06, 0x0A, 0x0B, 0x0C, FLUSH, ATOMIC_WRITE, 0x26, 0x2A, 0x2B, 0x46, 0x4A, 0x4B, 0x4C]
    assert (with_reth["dma_bytes"] == with_reth["opcode"] + 1).all()
    with_aeth = rows.filter(pl.col("syndrome").is_not_null())
    assert with_aeth["opcode"].to_list() == [0x0D, 0x0F, 0x10, 0x11, 0x12, 0x4D, 0x4F, 0x50, 0x51, 0x52]
    assert set(with_aeth["credits"]) == {5}
    assert rows["credits"].null_count() == rows.height - with_aeth.height


def test_credits_are_of_acknowledgements():
    """An ACK gives its credit code, also 31; a NAK or RNR NAK gives its syndrome and no credits."""
    syndromes = [0x00, 0x1F, 0x13, 0x20, 0x3F, 0x60, 0x64, 0x7F]
    rows = decode_all([frame(roce(0x11, syndrome=syndrome, payload=0)) for syndrome in syndromes]).frame
    assert rows["syndrome"].to_list() == syndromes
    assert rows["credits"].to_list() == [0, 31, 19, None, None, None, None, None]


@pytest.mark.parametrize(("link", "prefix"), [(101, b""), (12, b""), (0, b"\2\0\0\0"), (108, b"\0\0\0\2")])
def test_raw_and_loopback_links(link: int, prefix: bytes):
    """Raw IP and BSD loopback give the row of the Ethernet packet, without the bytes of its header."""
    plain = [frame(roce(opcode), over=over)[14:] for opcode in (0x04, 0x11) for over in ("v4", "v6")]
    expected = decode_all([b"\0" * 12 + (b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet for packet in plain]).frame
    rows = decode_all([prefix + packet for packet in plain], link).frame
    assert rows.drop("length").equals(expected.drop("length"))
    assert (rows["length"] == expected["length"] - 14 + len(prefix)).all()


@pytest.mark.parametrize(("link", "version"), [(228, "v4"), (229, "v6")])
def test_raw_links_of_one_version(link: int, version: str):
    """Link types 228 and 229 are raw IPv4 and IPv6."""
    assert decode_all([frame(roce(0x04), over=version)[14:]], link).frame.height == 1


def test_cooked_links():
    """Linux cooked captures, of both versions, give the row of the packet, with and without a VLAN tag."""
    ip = frame(roce(0x04))[14:]
    cooked = [bytes(CookedLinux(proto=0x0800)) + ip, bytes(CookedLinux(proto=0x8100)) + b"\0\5\x08\0" + ip]
    second = struct.pack(">HHIHBB8s", 0x0800, 0, 1, 1, 0, 6, b"\0" * 8) + ip
    expected = decode_all([b"\0" * 12 + b"\x08\0" + ip]).frame.drop("length", "ts")
    for link, packet in ((113, cooked[0]), (113, cooked[1]), (276, second)):
        row = decode_all([packet], link).frame
        assert row.drop("length", "ts").equals(expected)
        assert row["length"].item() == len(packet)


def test_what_is_not_roce_is_counted_as_other():
    """TCP, ARP, UDP to another port and an unknown EtherType are counted and give no row."""
    good = frame(roce(0x04))
    tcp, arp, port = bytearray(good), bytearray(good), bytearray(good)
    tcp[23], arp[13], port[37] = 6, 6, 0
    decoded = decode_all([bytes(tcp), bytes(arp), bytes(port), good])
    assert decoded.frame.height == 1
    assert decoded.skipped == {"other": 3, "fragment": 0, "cut": 0, "malformed": 0, "icrc": 0}


def test_fragments_are_counted():
    """First and later fragments of IPv4 and IPv6 are counted as fragments."""
    first, later = bytearray(frame(roce(0x04))), bytearray(frame(roce(0x04)))
    first[20] |= 0x20
    later[21] = 5
    six = bytes(ETHER / IPv6() / IPv6ExtHdrFragment(offset=9, m=1, nh=17) / Raw(b"x" * 40))
    assert decode_all([bytes(first), bytes(later), six]).skipped["fragment"] == 3


def test_contradictions_are_malformed():
    """Lengths and versions that contradict each other are counted as malformed."""
    good = frame(roce(0x04))
    changes = {14: 0x44, 17: 0xFF, 39: 20, 43: 0x4F}
    packets = []
    for at, value in changes.items():
        packet = bytearray(good)
        packet[at] = value
        packets.append(bytes(packet))
    loop = bytes(ETHER / IPv6(nh=60)) + b"\x3c\0\0\0\0\0\0\0" * 12
    decoded = decode_all([*packets, loop, frame(b"\x06" + roce(0x04, payload=0)[1:])])
    assert decoded.skipped["malformed"] == len(changes) + 2


@given(st.lists(st.binary(max_size=200), max_size=8), st.sampled_from([1, 0, 12, 101, 108, 113, 228, 229, 276, 147]))
@settings(deadline=None)
def test_any_bytes_give_a_row_or_a_counted_reason(packets: list[bytes], link: int):
    """Any bytes of any link type become a row or are counted under exactly one reason."""
    decoded = decode_all(packets, link, check_icrc=True)
    assert decoded.frame.height + sum(decoded.skipped.values()) == len(packets)
    assert tuple(decoded.skipped) == REASONS


@given(
    st.sampled_from(OPCODES),
    st.sampled_from(WAYS),
    st.integers(0, 120),
    st.binary(min_size=1, max_size=4),
    st.integers(0, 200),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_damaged_packets_give_a_row_or_a_counted_reason(opcode: int, over: str, at: int, damage: bytes, cut: int, check: bool):
    """A packet overwritten and cut anywhere is a row or counted, whatever follows it in the buffer."""
    packet = bytearray(frame(roce(opcode), over=over))
    packet[at : at + len(damage)] = damage
    cut = min(cut, len(packet))
    results = []
    for behind in (b"\0" * 64, b"\xff" * 64):
        decoded = decode(bytes(packet[:cut]) + behind, [0], [cut], [5], 1, wire_lengths=[len(packet)], check_icrc=check)
        assert decoded.frame.height + sum(decoded.skipped.values()) == 1
        results.append((decoded.frame.to_dicts(), decoded.skipped))
    assert results[0] == results[1]


@pytest.mark.parametrize("over", WAYS)
def test_a_short_capture_gives_the_same_rows(over: str):
    """Packets captured up to the end of their headers give the rows of whole packets; shorter ones are counted as cut."""
    packets = [frame(roce(opcode, payload=300), over=over) for opcode in (0x04, 0x06, 0x0D, 0x11)]
    whole = decode_all(packets)
    wire = np.array([len(packet) for packet in packets])
    cut = decode_all([packet[: len(packet) - 304] for packet in packets], wire_lengths=wire)
    assert cut.frame.equals(whole.frame)
    assert (cut.partial, whole.partial) == (0, 0)
    shorter = decode_all([packet[: len(packet) - 304 - 16 - 4] for packet in packets], wire_lengths=wire)
    assert shorter.frame.height == 0
    assert shorter.skipped["cut"] == len(packets)


@pytest.mark.parametrize("over", WAYS)
def test_a_capture_up_to_the_bth_gives_rows_without_what_was_behind(over: str):
    """Captured up to the BTH, or into the RETH or AETH, a packet is a row with nulls where they were, and is counted as partial."""
    opcodes = (0x04, 0x06, 0x0C, 0x0D, 0x11, 0x12, 0x1C)
    packets = [frame(roce(opcode, psn=opcode, syndrome=5), over=over) for opcode in opcodes]
    whole = decode_all(packets)
    behind = [header_bytes(opcode) + 13 + 3 + 4 for opcode in opcodes]
    for kept in (0, 3):
        short = [packet[: len(packet) - rest + kept] for packet, rest in zip(packets, behind, strict=True)]
        cut = decode_all(short, wire_lengths=[len(packet) for packet in packets])
        nulls = ("ack_psn", "syndrome", "credits", "dma_bytes")
        assert cut.frame.drop(nulls).equals(whole.frame.drop(nulls))
        assert cut.frame.select(nulls).null_count().row(0) == (len(packets),) * len(nulls)
        assert (cut.partial, sum(cut.skipped.values())) == (len(packets) - 1, 0)


def test_hidden_bytes_count_as_length():
    """A tag that the operating system removed is part of the length on the wire."""
    packets = [frame(roce(0x04)), frame(roce(0x04))]
    assert decode_all(packets, hidden=[0, 4]).frame["length"].to_list() == [len(packets[0]), len(packets[0]) + 4]


def test_a_packet_beyond_the_buffer_is_refused():
    """Offsets and lengths that reach beyond the buffer raise instead of reading there."""
    for offset, length in ((90, 20), (-1, 5), (0, -1)):
        with pytest.raises(ValueError, match="beyond the buffer"):
            decode(b"x" * 100, [offset], [length], [0], 1)


@given(st.lists(st.tuples(st.sampled_from([4, 6]), st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1)), min_size=1, max_size=40))
@settings(deadline=None)
def test_addresses_are_canonical_text(addresses: list[tuple[int, int, int]]):
    """Address texts equal those of Python's ipaddress, for any number and order of addresses."""
    packets, expected = [], []
    for version, src, dst in addresses:
        size = 4 if version == 4 else 16
        pair = [(value % 2 ** (8 * size)).to_bytes(size) for value in (src, dst)]
        packet = bytearray(frame(roce(0x04), over=f"v{version}"))
        at = 26 if version == 4 else 22
        packet[at : at + 2 * size] = b"".join(pair)
        packets.append(bytes(packet))
        expected.append(tuple(ipaddress.ip_address(raw) for raw in pair))
    rows = decode_all(packets).frame
    read = [(ipaddress.ip_address(src), ipaddress.ip_address(dst)) for src, dst in rows.select("src", "dst").rows()]
    assert read == expected


def with_icrc(packet: bytes, ip_at: int = 14) -> bytes:
    """Return the IPv4 or IPv6 packet with its ICRC, computed with zlib over a masked copy."""
    masked = bytearray(packet[ip_at:-4])
    if masked[0] >> 4 == 4:
        udp = (masked[0] & 15) * 4
        for at in (1, 8, 10, 11):
            masked[at] = 0xFF
    else:
        udp = 40
        masked[0] |= 0x0F
        masked[1:4], masked[7] = b"\xff\xff\xff", 0xFF
    masked[udp + 6], masked[udp + 7], masked[udp + 12] = 0xFF, 0xFF, 0xFF
    return packet[:-4] + zlib.crc32(b"\xff" * 8 + masked).to_bytes(4, "little")


@given(st.sampled_from(["v4", "v4 options", "v6"]), st.integers(0, 90), st.data())
@settings(deadline=None)
def test_the_icrc_finds_any_changed_bit(over: str, payload: int, data: st.DataObject):
    """A valid ICRC passes; with any one bit of UDP ports, BTH or payload flipped, the packet is left out and counted."""
    packet = with_icrc(frame(roce(0x04, payload=payload), over=over))
    bth = len(packet) - (12 + payload + -payload % 4 + 4)
    at = data.draw(st.integers(bth + 2, len(packet) - 1).filter(lambda at: at != bth + 4))
    damaged = bytearray(packet)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    decoded = decode_all([packet, bytes(damaged)], check_icrc=True)
    assert decoded.frame.height == 1
    assert decoded.skipped["icrc"] == 1
    assert decoded.unchecked == 0


def test_the_icrc_leaves_out_what_routers_change():
    """Type of service, time to live, checksums, flow label, hop limit and FECN/BECN may change on the way."""
    four, six = (bytearray(with_icrc(frame(roce(0x04), over=over))) for over in ("v4", "v6"))
    for packet, places in ((four, (15, 22, 24, 25, 40, 41, 46)), (six, (15, 16, 17, 21, 60, 61, 66))):
        for at in places:
            packet[at] ^= 0x0F
    assert decode_all([bytes(four), bytes(six)], check_icrc=True).frame.height == 2


def test_what_cannot_be_checked_is_kept_and_counted():
    """Packets captured too short and packets behind IPv6 extension headers keep their rows, counted as unchecked."""
    whole = frame(roce(0x04, payload=100))
    decoded = decode_all([whole[:-50], frame(roce(0x04), over="v6 extensions")], wire_lengths=[len(whole), 0], check_icrc=True)
    assert decoded.frame.height == 2
    assert decoded.unchecked == 2


@pytest.mark.parametrize("over", [IP(src="1.2.3.4", dst="5.6.7.8", tos=2, ttl=9), IPv6(src="::1", dst="::2", tc=2, fl=77, hlim=3)])
def test_the_icrc_that_scapy_builds_is_right(over):
    """Packets whose ICRC scapy computed pass the check."""
    sends = [ETHER / over / UDP(sport=9, dport=4791) / BTH(opcode=0x04, psn=5, dqpn=6) / Raw(b"d" * size) for size in (0, 4, 64, 1024)]
    packets = [bytes(packet) for packet in [*sends, ETHER / over / UDP(sport=9, dport=4791) / cnp(dqpn=0xD2)]]
    decoded = decode_all(packets, check_icrc=True)
    assert decoded.frame.height == len(packets)
    assert decoded.unchecked == 0


def uts_section(name: str) -> str:
    """Return the text of one test of the published scapy suite."""
    text = (SHARED / "scapy_roce.uts").read_text()
    return next(part for part in text.split("\n= ") if part.startswith(name))


@needs_shared
def test_a_captured_cnp_has_the_icrc_that_its_adapter_wrote():
    """The CNP captured on a ConnectX-4 passes the ICRC check and is decoded as a CNP of queue pair 0x118."""
    dump = re.findall(r"0x00[0-9a-f]{2}:((?: +[0-9a-f]{4})+)", uts_section("RoCE CNP captured"))
    packet = bytes.fromhex("".join(dump))
    row = decode_all([packet], check_icrc=True).frame.row(0, named=True)
    assert (row["opcode"], row["qp"], row["psn"], row["payload_bytes"]) == (0x81, 0x118, 0, 0)
    assert (row["src"], row["dst"], row["ecn"], row["dscp"]) == ("10.0.17.1", "10.0.18.1", 2, 48)
    assert decode_all([packet[:-1] + b"\0"], check_icrc=True).skipped["icrc"] == 1


@needs_shared
@pytest.mark.parametrize(("section", "over"), [("RoCE layer", "IP"), ("RoCE over IPv6", "IPv6")])
def test_published_icrcs(section: str, over: str):
    """The UC packets of scapy's suite carry the ICRC that the suite states."""
    text = uts_section(section)
    stated = re.findall(r"icrc == (0x[0-9a-f]+)", text)[-1]
    build = text[text.index("pkt = ") : text.index("\n\n# include")]
    scope = {"Ether": Ether, "IP": IP, "IPv6": IPv6, "UDP": UDP, "BTH": BTH, "Raw": Raw}
    exec(build, scope)
    body = bytes(scope["pkt"])
    end = 14 + (64 if over == "IP" else 84)
    packet = body[: end - 4] + int(stated, 16).to_bytes(4)
    decoded = decode_all([packet], check_icrc=True)
    assert decoded.skipped["icrc"] == 0
    row = decoded.frame.row(0, named=True)
    assert (row["opcode"], row["qp"], row["psn"], row["payload_bytes"]) == (0x24, 211, 13571856, 18)


def by_tshark(path: Path) -> list[list[str]]:
    """Return opcode, queue pair, PSN, syndrome, RETH length, ECN, DSCP and length of each RoCEv2 packet, as tshark reads them."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    bth, aeth, reth = "infiniband.bth", "infiniband.aeth", "infiniband.reth"
    fields = [
        f"{bth}.opcode",
        f"{bth}.destqp",
        f"{bth}.psn",
        f"{aeth}.syndrome",
        f"{reth}.dmalen",
        "ip.dsfield",
        "ipv6.tclass",
        "frame.len",
    ]
    # One port of the real capture belongs to another protocol.
    command = ["tshark", "-r", str(path), "--disable-protocol", "tftp", "-Y", bth, "-T", "fields"]
    out = subprocess.run(
        [*command, *(part for name in fields for part in ("-e", name))], capture_output=True, text=True, check=True, timeout=60
    )
    return [line.split("\t") for line in out.stdout.splitlines()]


def number(text: str) -> int | None:
    """Return a number as tshark prints it."""
    return int(text, 0) if text else None


@pytest.mark.parametrize("over", WAYS)
def test_tshark_reads_the_same(over: str, tmp_path: Path):
    """Every opcode gives the same header fields in both."""
    packets = [frame(roce(opcode, psn=opcode + 3, syndrome=9), over=over, tos=opcode) for opcode in OPCODES]
    wrpcap(str(tmp_path / "all.pcap"), [Ether(packet) for packet in packets])
    rows = decode_all(packets).frame.to_dicts()
    for row, line in zip(rows, by_tshark(tmp_path / "all.pcap"), strict=True):
        opcode, qp, psn, syndrome, dma_bytes, tos, traffic, length = (number(text) for text in line)
        assert opcode is not None
        assert (row["opcode"], row["qp"], row["psn"], row["length"]) == (opcode, qp, psn, length)
        # tshark 4.0 expects RDETH and DETH longer than the 4 and 8 bytes of the specification, and lacks the operations of annex A19.
        assert opcode >> 5 == 2 or opcode in (FLUSH, ATOMIC_WRITE) or (row["syndrome"], row["dma_bytes"]) == (syndrome, dma_bytes)
        assert row["dscp"] << 2 | row["ecn"] == (tos if tos is not None else traffic)
