"""The sFlow agent: tshark and a minimal reader find the switch's counters in its datagrams."""

import ctypes
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.contrib.roce import AETH, BTH
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from weft.lab.switch import roce
from weft.lab.switch.script import LOSSLESS, START_NS, Script, Shape
from weft.lab.switch.sflow import ACL, NO_BUFFER_SPACE, RED, Agent, AgentConfig
from weft.lab.switch.wire import MessageBuffer, Udp, join, rows
from weft.pipeline.clock import SystemClock

SFLOW_PORT = 6343
NOW = START_NS + 3_012_345_678
AGENT = AgentConfig(records=("generic", "ethernet"), flow_records=())


@pytest.fixture(scope="module")
def script() -> Script:
    """Return a switch of sixteen ports."""
    return Script(Shape(ports=16))


def words(data: bytes) -> tuple[int, ...]:
    """Return 32-bit words."""
    return struct.unpack(f">{len(data) // 4}I", data)


def samples(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each sample of a datagram with an IPv4 agent, by their lengths alone."""
    version, kind, _, _, _, _, count = words(datagram[:28])
    assert (version, kind) == (5, 1)
    at = 28
    for _ in range(count):
        tag, size = words(datagram[at : at + 8])
        yield tag, datagram[at + 8 : at + 8 + size]
        at += 8 + size
    assert at == len(datagram)


def records(body: bytes, head: int) -> dict[int, bytes]:
    """Return the records of a sample by their number; its head has ``head`` words, the last one their count."""
    count = words(body[: 4 * head])[-1]
    found, at = {}, 4 * head
    for _ in range(count):
        tag, size = words(body[at : at + 8])
        found[tag] = body[at + 8 : at + 8 + size]
        at += 8 + size
    assert at == len(body)
    return found


GENERIC_FIELDS = {
    "ifspeed": "speed_bps",
    "ifinoct": "rx_bytes",
    "ifinpkt": "rx_unicast_packets",
    "ifindisc": "rx_discards",
    "ifinerr": "rx_errors",
    "ifoutoct": "tx_bytes",
    "ifoutpkt": "tx_unicast_packets",
    "ifoutdisc": "tx_discards",
    "ifouterr": "tx_errors",
    "dot3StatsFCSErrors": "fcs_errors",
    "dot3StatsSymbolErrors": "symbol_errors",
}
NARROW = {"ifinpkt", "ifoutpkt", "ifindisc", "ifinerr", "ifoutdisc", "ifouterr", "dot3StatsFCSErrors", "dot3StatsSymbolErrors"}


@pytest.mark.parametrize(
    "config",
    [AGENT, AgentConfig("2001:db8::7", 3, True, records=("generic", "ethernet"))],
    ids=["compact", "expanded, IPv6 agent"],
)
def test_tshark_reads_the_counters_of_all_ports(script, tshark, config):
    """Each counter that tshark dissects is the switch's, truncated to 32 bits where sFlow has only these."""
    names = ["ifindex", "ifadmin_status", "ifoper_status", *GENERIC_FIELDS]
    arguments = [part for name in names for part in ("-e", f"sflow_245.{name}")]
    out = tshark(Agent(script, config).counters(NOW), SFLOW_PORT, "-T", "fields", *arguments)
    columns: dict[str, list[int]] = {name: [] for name in names}
    for line in out.splitlines():
        for name, values in zip(names, line.split("\t"), strict=True):
            columns[name] += [int({"True": "1", "False": "0"}.get(value, value)) for value in values.split(",")]
    order = np.argsort(columns["ifindex"])
    assert np.array(columns["ifindex"])[order].tolist() == list(range(1, 17))
    state = script.at([NOW])
    assert np.array(columns["ifoper_status"])[order].tolist() == state.port("oper_up")[0].tolist()
    for name, column in GENERIC_FIELDS.items():
        expected = state.port(column)[0] & (0xFFFFFFFF if name in NARROW else -1)
        assert np.array(columns[name])[order].tolist() == expected.tolist(), name


def test_tshark_reads_the_sampled_packets(script, tshark):
    """tshark finds the length and the RoCEv2 header of every sampled packet, in order."""
    flows = roce.sampled(script, NOW, 40, roce.WRITE_FIRST)
    names = [
        "sflow_245.header.frame_length",
        "infiniband.bth.opcode",
        "infiniband.bth.destqp",
        "infiniband.bth.psn",
        "infiniband.reth.dmalen",
    ]
    arguments = [part for name in names for part in ("-e", name)]
    datagrams = list(Agent(script, AGENT).flows(flows, NOW))
    out = tshark(datagrams, SFLOW_PORT, "-T", "fields", *arguments)
    seen = [zip(*(part.split(",") for part in line.split("\t")), strict=True) for line in out.splitlines()]
    found = [tuple(int(value, 0) for value in row) for line in seen for row in line]
    header = flows.header
    expected = [
        (4 + 14 + 20 + 8 + 12 + 16 + 4096 + 4, 6, 0x100 + int(port), int.from_bytes(header[n, 51:54].tobytes(), "big"), 1 << 20)
        for n, port in enumerate(flows.in_port)
    ]
    assert found == expected


def test_flow_samples_say_where_the_packet_waited(script):
    """Egress queue, delay and depth are in their own records; pool and sequence count up per source."""
    flows = roce.sampled(script, NOW, 300)
    agent = Agent(script)
    seen: dict[int, list[int]] = {}
    for datagram in join([agent.flows(flows, NOW), agent.flows(flows, NOW + 1)]):
        assert len(datagram) <= 1400
        for tag, body in samples(datagram):
            sequence, source, rate, pool, drops, in_port, _, _ = words(body[:32])
            found = records(body, 8)
            assert (tag, rate, drops, source, pool) == (1, 1000, 0, in_port, 1000 * sequence)
            seen.setdefault(source, []).append(sequence)
            assert words(found[1036]) == (LOSSLESS,)
            depth, transit = words(found[1040])[0], words(found[1039])[0]
            assert transit == depth * 8 * 10**9 // 400_000_000_000 + 800
    assert {source: numbers == list(range(1, len(numbers) + 1)) for source, numbers in seen.items()} == dict.fromkeys(seen, True)
    assert sum(map(len, seen.values())) == 600


def test_dropped_packets_tell_their_reason(script):
    """Each notification names reason, ports, queue, and has the packet's header."""
    flows = roce.sampled(script, NOW, 30)
    reasons = np.resize([NO_BUFFER_SPACE, RED, ACL], 30)
    found = [body for datagram in Agent(script).discards(flows, reasons, NOW) for tag, body in samples(datagram) if tag == 5]
    heads = [words(body[:32]) for body in found]
    assert [head[6] for head in heads] == reasons.tolist()
    assert [head[4] - 1 for head in heads] == flows.in_port.tolist()
    assert [head[5] - 1 for head in heads] == flows.out_port.tolist()
    assert [words(records(body, 8)[1036]) for body in found] == [(LOSSLESS,)] * 30
    assert [records(body, 8)[1][16:] for body in found] == [header.tobytes() for header in flows.header]


def test_every_counter_record_has_its_length(script):
    """Records of names, optics, InfiniBand and queue lengths have the size and content of their structures."""
    every = AgentConfig(records=("generic", "ethernet", "infiniband", "optics", "queue_length", "port_name"))
    state, named = script.at([NOW]), {}
    for datagram in Agent(script, every).counters(NOW):
        for tag, body in samples(datagram):
            assert tag == 2
            source, found = words(body[4:8])[0], records(body, 3)
            assert {number: len(record) for number, record in found.items() if number != 1005} == {1: 88, 2: 52, 9: 64, 10: 180, 1003: 52}
            size = words(found[1005][:4])[0]
            assert len(found[1005]) == 4 + -(-size // 4) * 4
            named[source] = found[1005][4 : 4 + size].decode()
            queue = words(found[1003])
            expected = [state.queue(name)[0, source - 1, LOSSLESS] for name in ("packets", "dropped_packets")]
            assert [sum(queue[3:12]), queue[12]] == expected
            assert struct.unpack(">QQ", found[9][:16]) == tuple(state.port(f"{side}_packets")[0, source - 1] for side in ("tx", "rx"))
            assert words(found[10])[1:3] + words(found[10])[4:5] == (4, 3300, 4)
    assert [named[index] for index in sorted(named)] == list(script.switch.ports)


def test_sequence_numbers_restart_with_a_boot():
    """Datagrams are counted without a gap; after a boot numbers and uptime start again."""
    again = START_NS + 2_000_000_000
    agent = Agent(Script(Shape(ports=8, boots_ns=(START_NS, again))))
    before = [words(datagram[:28]) for ts in (START_NS + 5_000_000, START_NS + 1_000_000_000) for datagram in agent.counters(ts)]
    after = [words(datagram[:28]) for datagram in agent.counters(again + 7_000_000)]
    assert [head[4] for head in before] == list(range(1, len(before) + 1))
    assert [head[4] for head in after] == list(range(1, len(after) + 1))
    assert ({head[5] for head in before}, {head[5] for head in after}) == ({5, 1000}, {7})


@pytest.mark.parametrize("opcode", [roce.WRITE_FIRST, roce.WRITE_MIDDLE, roce.WRITE_LAST, roce.ACKNOWLEDGE, roce.CONGESTION])
def test_scapy_dissects_the_made_packets(script, opcode):
    """Scapy reads Ethernet, IPv4 with a valid checksum, UDP to port 4791 and the BTH with the operation."""
    flows = roce.sampled(script, NOW, 5, opcode)
    for number in range(5):
        packet = Ether(flows.header[number].tobytes())
        checksum = packet[IP].chksum
        del packet[IP].chksum
        assert IP(bytes(packet[IP])).chksum == checksum
        assert packet[IP].len + 14 + 4 == flows.length[number]
        assert (packet[UDP].dport, packet[UDP].len, packet[BTH].opcode) == (4791, packet[IP].len - 20, opcode)
        assert packet[BTH].dqpn == 0x100 + flows.in_port[number]
        assert (AETH in packet) == (opcode == roce.ACKNOWLEDGE)


@pytest.mark.parametrize("bulk", [True, False], ids=["in bulk", "where the system has no sendmmsg"])
def test_datagrams_arrive_as_they_were_made(monkeypatch, bulk):
    """Three thousand datagrams of many sizes reach a socket whole and in order, and are counted."""
    sizes = [40 + n * 37 % 1400 for n in range(3000)]
    made = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    lengths = np.array(sizes)
    datagrams = MessageBuffer(np.frombuffer(b"".join(made), np.uint8), np.cumsum(lengths) - lengths, lengths)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**23)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        if not bulk:
            monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
        sender = Udp("127.0.0.1", receiver.getsockname()[1], SystemClock())
        sender.start()
        received = []
        # In parts that fit into any receive buffer.
        for first in range(0, 3000, 50):
            part = MessageBuffer(datagrams.buffer, datagrams.offsets[first : first + 50], datagrams.lengths[first : first + 50])
            sender.send(part)
            received += [receiver.recv(2000) for _ in range(50)]
        sender.stop()
    assert received == made
    assert sender.sent == 3000


def test_a_rate_is_kept():
    """At 2,000 datagrams per second, 400 take at least a fifth of a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        clock = SystemClock()
        sender = Udp("127.0.0.1", receiver.getsockname()[1], clock)
        sender.start()
        began = clock.monotonic_ns()
        sender.send(rows(np.zeros((400, 100), np.uint8)), 2000)
        took = (clock.monotonic_ns() - began) / 1e9
        sender.stop()
    assert 0.195 <= took < 5


def test_nobody_listening_is_no_error():
    """A refusal by a closed port is counted, and later datagrams are still sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
    sender = Udp("127.0.0.1", port, SystemClock())
    sender.start()
    for _ in range(5):
        sender.send(rows(np.zeros((3, 100), np.uint8)))
    sender.stop()
    assert sender.sent == 15
    assert sender.refused > 0
