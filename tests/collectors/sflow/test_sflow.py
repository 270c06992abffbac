"""The sFlow collector: sampled packets, delays, drops, gaps and restarts from generated datagrams, damage, limits, and a real socket."""

import socket
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.roce import BTH
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import wrpcap

from weft.collectors.base import Batch, Options
from weft.collectors.sflow.batches import Naming, Rows
from weft.collectors.sflow.decoder import SflowLimits
from weft.collectors.sflow.receiver import SFLOW, SflowConfig, SflowListener, SflowRecording
from weft.pipeline.clock import SystemClock
from weft.pipeline.config import load
from weft.pipeline.errors import ConfigError, InputError, ServiceError
from weft.pipeline.tables.families import FAMILIES

CLOCK = SystemClock()
START_NS = 1_700_000_000_000_000_000
AGENT = "10.0.0.1"
MAC = "02:00:00:00:00:01"


def words(*values: int) -> bytes:
    """Return big-endian 32-bit integers."""
    return struct.pack(f">{len(values)}I", *values)


def tagged(kind: int, body: bytes) -> bytes:
    """Return a sample or a record: format, length, content."""
    return words(kind, len(body)) + body


def datagram(*samples: bytes, sequence: int = 1, uptime: int = 1000, agent: str = AGENT, sub: int = 0, count: int | None = None) -> bytes:
    """Return one sFlow datagram."""
    address = words(2) + socket.inet_pton(socket.AF_INET6, agent) if ":" in agent else words(1) + socket.inet_aton(agent)
    return words(5) + address + words(sub, sequence, uptime, len(samples) if count is None else count) + b"".join(samples)


def flow(*records: bytes, rate: int = 1000, drops: int = 0, came: int = 3, went: int = 7, source: int = 3) -> bytes:
    """Return a compact flow sample."""
    return tagged(1, words(1, source, rate, rate * 9, drops, came, went, len(records)) + b"".join(records))


def expanded(*records: bytes, rate: int = 1000, came: int = 3, went: int = 7) -> bytes:
    """Return an expanded flow sample."""
    return tagged(3, words(1, 0, came, rate, rate * 9, 0, 0, came, 0, went, len(records)) + b"".join(records))


def dropped(*records: bytes, reason: int, came: int = 3, went: int = 7, drops: int = 0) -> bytes:
    """Return a discarded packet."""
    return tagged(5, words(1, 0, came, drops, came, went, reason, len(records)) + b"".join(records))


def counters(*records: bytes, index: int = 3) -> bytes:
    """Return a compact counter sample."""
    return tagged(2, words(1, index, len(records)) + b"".join(records))


def header(packet: bytes, *, keep: int = 128, protocol: int = 1, crc: int = 4) -> bytes:
    """Return a raw header record of the first bytes of a packet; lengths count the frame check sequence."""
    cut = packet[:keep]
    return tagged(1, words(protocol, len(packet) + crc, crc, len(cut)) + cut + bytes(-len(cut) % 4))


def generic(
    index: int = 3, *, octets: int = 1000, speed: int = 400_000_000_000, status: int = 3, promiscuous: int = 0, **packets: int
) -> bytes:
    """Return a generic interface record; packets by name of their column, else 0."""
    names = ("rx_unicast", "rx_multicast", "rx_broadcast", "rx_discards", "rx_errors", "rx_unknown")
    body = words(index, 6) + struct.pack(">Q", speed) + words(1, status)
    body += struct.pack(">Q", octets) + words(*(packets.get(name, 0) for name in names))
    return tagged(1, body + struct.pack(">Q", octets) + words(0, 0, 0, 0, 0, promiscuous))


def roce(psn: int, *, size: int = 1024, ipv6: bool = False, vlan: bool = False, ecn: int = 3) -> Ether:
    """Return a RoCEv2 send as scapy makes it."""
    ip = IPv6(src="fd00::1", dst="fd00::2", tc=ecn) if ipv6 else IP(src="10.1.1.1", dst="10.1.1.2", tos=ecn)
    link = Ether(src=MAC, dst=MAC) / Dot1Q(vlan=5) if vlan else Ether(src=MAC, dst=MAC)
    return link / ip / UDP(sport=777, dport=4791) / BTH(opcode=0x04, psn=psn, dqpn=9) / Raw(b"d" * size)


def decode(rows: Rows, *datagrams: bytes, ts: list[int] | None = None) -> dict[str, pl.DataFrame]:
    """Return the rows of datagrams that arrive a millisecond apart, by family."""
    return by_family(
        rows.of(
            np.frombuffer(b"".join(datagrams), np.uint8),
            np.cumsum([0, *(len(one) for one in datagrams)])[:-1],
            np.array([len(one) for one in datagrams], np.int64),
            np.array(ts or [START_NS + k * 1_000_000 for k in range(len(datagrams))]),
        )
    )


def by_family(batches: list[Batch]) -> dict[str, pl.DataFrame]:
    """Return batches as one frame a family, each checked against its table."""
    frames = {name: FAMILIES[name].empty() for name in SFLOW.families}
    for batch in batches:
        assert batch.frame.schema == pl.Schema(FAMILIES[batch.family].polars)
        frames[batch.family] = pl.concat([frames[batch.family], batch.frame])
    return frames


@pytest.fixture
def rows() -> Rows:
    """Return a new decoder."""
    return Rows(Naming(), agents_max=16, interfaces_max=256)


def test_sampled_headers_become_packets(rows: Rows):
    """RoCEv2 headers cut at 128 bytes give the packets' own fields, with the sampling rate and the frame's length."""
    packets = [roce(1), roce(2, ipv6=True), roce(3, vlan=True), roce(4, size=3)]
    samples = [(flow if k % 2 else expanded)(header(bytes(packet)), rate=100 + k) for k, packet in enumerate(packets)]
    frame = decode(rows, datagram(*samples))["packet"]
    assert frame["psn"].to_list() == [1, 2, 3, 4]
    assert frame["src"].to_list() == ["10.1.1.1", "fd00::1", "10.1.1.1", "10.1.1.1"]
    assert frame["dst"].to_list() == ["10.1.1.2", "fd00::2", "10.1.1.2", "10.1.1.2"]
    assert frame["length"].to_list() == [len(packet) + 4 for packet in packets]
    assert frame["payload_bytes"].to_list() == [1024, 1024, 1024, 3]
    assert set(frame["src_port"]) == {777} and set(frame["qp"]) == {9} and set(frame["ecn"]) == {3}
    assert frame["sampling_rate"].to_list() == [100, 101, 102, 103]
    assert set(frame["device"]) == {AGENT} and set(frame["ts"]) == set(frame["recv_ts"]) == {START_NS}


def test_headers_that_begin_at_ip_become_packets(rows: Rows):
    """Agents that sample above the link layer send IPv4 and IPv6 headers, which are decoded as well."""
    four, six = bytes(roce(1).payload), bytes(roce(2, ipv6=True).payload)
    frame = decode(rows, datagram(flow(header(four, protocol=11)), flow(header(six, protocol=12))))["packet"]
    assert frame["psn"].to_list() == [1, 2]


def test_other_packets_are_counted_by_kind(rows: Rows):
    """Other packets give no row and are counted: TCP, UDP, no IP, another link layer, no header, cut."""
    ether = Ether(src=MAC, dst=MAC)
    tcp, udp = bytes(ether / IP() / TCP()), bytes(ether / IP() / UDP(dport=53))
    arp = MAC.encode()[:12] + b"\x08\x06" + bytes(50)
    samples = (
        flow(header(tcp)),
        flow(header(udp)),
        flow(header(arp)),
        flow(header(tcp, protocol=7)),
        flow(),
        flow(header(bytes(roce(1)), keep=48)),
    )
    assert decode(rows, datagram(*samples))["packet"].height == 0
    said = {name: number for name, number in rows.counts.items() if number and name.startswith(("flow", "roce"))}
    assert said == {
        "flow_samples": 6,
        "flow_samples_tcp": 1,
        "flow_samples_udp": 1,
        "flow_samples_not_ip": 1,
        "flow_samples_other_link": 1,
        "flow_samples_without_header": 1,
        "roce_skipped_cut": 1,
    }


def test_transit_delays_become_latency(rows: Rows):
    """Transit delays are grouped by path; the largest value is valid; without a header the path is empty."""
    long = 2**32 - 1
    path = header(bytes(roce(1)))
    samples = [flow(path, tagged(1039, words(delay))) for delay in (700, 900, long)]
    frame = decode(rows, datagram(*samples, flow(tagged(1039, words(5)))))["latency"]
    assert frame.select("src", "dst", "kind", "values_ns").rows() == [
        ("10.1.1.1", "10.1.1.2", "transit", [700, 900, long]),
        ("", "", "transit", [5]),
    ]


def test_transit_delays_stay_in_their_window(rows: Rows):
    """Delays of one path are a row for each second, however many datagrams are decoded at once."""
    sent = [datagram(flow(header(bytes(roce(1))), tagged(1039, words(10 * k))), sequence=k) for k in range(1, 6)]
    second = START_NS // 10**9 * 10**9
    frame = decode(rows, *sent, ts=[second + k * 400_000_000 for k in range(5)])["latency"]
    assert [((ts - second) // 10**9, values) for ts, values in frame.select("ts", "values_ns").rows()] == [(0, [10, 20, 30]), (1, [40, 50])]


def test_queue_depths_become_queue_rows(rows: Rows):
    """Depth and egress queue together give a row of that queue of the output port; a depth without its queue gives none."""
    deep = flow(tagged(1036, words(5)), tagged(1040, words(11_354_112)), went=2216)
    frame = decode(rows, datagram(deep, flow(tagged(1040, words(9)))))["queue"]
    assert frame.select("port", "queue", "direction", "occupancy_bytes").rows() == [("2216", "5", "tx", 11_354_112)]


def test_dropped_packets_become_events(rows: Rows):
    """A drop has its reason, its port and the known fields of the packet; unknown reasons keep their number."""
    packet = roce(1)
    first = dropped(header(bytes(packet)), tagged(1036, words(4)), reason=259)
    events = decode(rows, datagram(first, dropped(reason=1234, went=0), dropped(reason=260, came=0, went=0)))["event"]
    detail = f"input=3 output=7 queue=4 src=10.1.1.1 dst=10.1.1.2 protocol=17 src_port=777 dst_port=4791 length={len(packet) + 4}"
    assert events.select("port", "kind", "reason", "detail").rows() == [
        ("7", "drop", "no_buffer_space", detail),
        ("3", "drop", "reason_1234", "input=3"),
        ("", "drop", "red", ""),
    ]
    assert rows.counts["discarded_packets"] == 3


def test_a_sampled_packet_that_went_nowhere_is_an_event_too(rows: Rows):
    """A flow sample whose output holds a drop reason is a drop, and still a sampled packet."""
    frames = decode(rows, datagram(flow(header(bytes(roce(1))), went=1 << 30 | 258, rate=50)))
    (event,) = frames["event"].to_dicts()
    assert (event["port"], event["reason"]) == ("3", "acl")
    assert event["detail"].endswith("sampling_rate=50")
    assert frames["packet"].height == 1


def test_counters_and_what_is_unknown(rows: Rows):
    """All ones are null in 32 and 64 bits, so is a speed of 0; packets are the sum of their kinds, at their width."""
    unknown = 2**32 - 1
    frame = decode(
        rows,
        datagram(
            counters(generic(1, octets=2**64 - 1, speed=0, rx_multicast=unknown)),
            counters(generic(2, status=1, rx_unicast=2**32 - 5, rx_multicast=7, rx_broadcast=1)),
        ),
    )["port"]
    first, second = frame.to_dicts()
    assert (first["port"], first["rx_bytes"], first["speed_bps"], first["rx_multicast_packets"], first["rx_packets"]) == (
        "1",
        None,
        None,
        None,
        None,
    )
    assert first["rx_unicast_packets"] == 0
    assert first["fcs_errors"] is None
    assert (second["admin_up"], second["oper_up"], second["rx_packets"]) == (True, False, 3)
    assert (second["rx_unicast_packets"], second["tx_packets"], second["speed_bps"]) == (2**32 - 5, 0, 400_000_000_000)


def test_ethernet_counters_alone_belong_to_their_source(rows: Rows):
    """A sample with only the Ethernet record belongs to the interface that is its source."""
    (row,) = decode(rows, datagram(counters(tagged(2, words(*range(13))), index=9)))["port"].to_dicts()
    assert (row["port"], row["alignment_errors"], row["symbol_errors"], row["rx_bytes"], row["oper_up"]) == ("9", 0, 12, None, None)


def test_states_are_readings_when_they_change(rows: Rows):
    """Promiscuous mode gives a row with the first sample and when it changes, not with every sample."""
    datagrams = [datagram(counters(generic(promiscuous=mode)), sequence=k + 1) for k, mode in enumerate((0, 0, 1, 1))]
    readings = decode(rows, *datagrams)["reading"].filter(name="if_promiscuous_mode")
    assert readings.select("kind", "object", "value", "count").rows() == [("port", "3", 0.0, 0), ("port", "3", 1.0, 1)]


def test_ports_are_called_as_told_or_as_the_agent_says():
    """A configured name precedes the agent's own, which precedes the number; devices have configured names, too."""
    rows = Rows(Naming({AGENT: "leaf-1"}, {"leaf-1/4": "uplink"}), agents_max=4, interfaces_max=16)
    name = tagged(1005, words(9) + b"Ethernet8" + bytes(3))
    samples = (counters(name, generic(3)), counters(name, generic(4)), counters(generic(5)))
    frame = decode(rows, datagram(*samples))["port"]
    assert frame.select("device", "port").rows() == [("leaf-1", "Ethernet8"), ("leaf-1", "uplink"), ("leaf-1", "5")]
    deep = flow(tagged(1036, words(0)), tagged(1040, words(1)), went=3)
    assert decode(rows, datagram(deep, sequence=2))["queue"]["port"].to_list() == ["Ethernet8"]


def test_optics_become_readings(rows: Rows):
    """Module and lane values of optics are readings in volts, degrees, milliamperes, watts and nanometres, also below zero."""
    lane = words(1, 6500, 1000, 1, 2000, 1310, 900, 1, 2000, 2**32 - 1)
    module = words(1, 4, 3300, 2**32 - 2500, 2) + lane + words(2, *([5] * 9))
    readings = decode(rows, datagram(counters(generic(), tagged(10, module))))["reading"].filter(kind="transceiver")
    values = {(row["object"], row["name"]): row["value"] for row in readings.to_dicts()}
    assert values["3", "module_supply_v"] == pytest.approx(3.3)
    assert values["3", "module_celsius"] == pytest.approx(-2.5)
    assert values["3/1", "laser_bias_ma"] == pytest.approx(6.5)
    assert values["3/1", "tx_power_w"] == pytest.approx(1e-3)
    assert values["3/1", "tx_wavelength_nm"] == 1310
    assert values["3/2", "rx_power_w"] == pytest.approx(5e-6)
    assert ("3/1", "rx_wavelength_nm") not in values
    # One wavelength is unknown.
    assert len(values) == 4 + 9 + 9 - 1


@pytest.mark.parametrize("data", [False, True])
def test_infiniband_counters_become_readings(rows: Rows, data: bool):
    """InfiniBand's record is decoded with and without data counters, which count words of four bytes."""
    body = (struct.pack(">2Q", 100, 2**63) if data else b"") + struct.pack(">2Q", 7, 8) + words(*range(12))
    readings = decode(rows, datagram(counters(generic(), tagged(9, body))))["reading"]
    values = {row["name"]: (row["value"], row["count"]) for row in readings.filter(kind="port", object="3").to_dicts()}
    assert values["tx_packets"] == (7.0, 7)
    assert values["symbol_errors"] == (0.0, 0) and values["vl15_dropped"] == (11.0, 11)
    if data:
        assert values["tx_bytes"] == (400.0, 400)
        assert values["rx_bytes"] == (2.0**65, None)
    else:
        assert "tx_bytes" not in values


def test_queue_lengths_and_processors_become_readings(rows: Rows):
    """A queue's length histogram and a processor's load are readings, by their canonical names."""
    queue = tagged(1003, words(6, 256, 1000, *range(9), 55))
    load = tagged(1001, words(1234, 2**32 - 1, 50) + struct.pack(">2Q", 10**10, 10**9))
    frames = decode(rows, datagram(counters(generic(), queue), counters(load, index=2 << 24 | 1)))
    readings = {(row["kind"], row["object"], row["name"]): row["value"] for row in frames["reading"].to_dicts()}
    assert readings["queue", "3/6", "queue_segment_bytes"] == 256
    assert readings["queue", "3/6", "queue_length_more"] == 8
    assert readings["device", "", "cpu_5s_ratio"] == pytest.approx(0.1234)
    assert readings["device", "", "free_memory_bytes"] == 10**9
    assert ("device", "", "cpu_1m_ratio") not in readings
    assert readings["queue", "3/6", "queue_length_dropped"] == 55


def test_missing_datagrams_are_admitted_per_sub_agent(rows: Rows):
    """Skipped numbers are a gap of their agent and sub-agent; numbers wrap at 2^32."""
    datagrams = [
        datagram(sequence=2**32 - 2),
        datagram(sequence=500, sub=1),
        datagram(sequence=2**32 - 1),
        datagram(sequence=3),
        datagram(sequence=501, sub=1),
    ]
    gaps = decode(rows, *datagrams)["gap"]
    expected = [(START_NS + 3_000_000, AGENT, "datagrams", 0, 2, 3, "sequence")]
    assert gaps.select("ts", "device", "what", "from_sequence", "to_sequence", "missed", "reason").rows() == expected


def test_repeated_datagrams_are_left_out_and_late_ones_kept(rows: Rows):
    """A repeated datagram gives its rows once; a late one gives its rows without the counters, which would go backwards."""
    first, second, third = (datagram(counters(generic(octets=k)), flow(header(bytes(roce(k)))), sequence=k) for k in (1, 2, 3))
    frames = decode(rows, first, first, third, second, third, first)
    assert frames["port"]["rx_bytes"].to_list() == [1, 3]
    assert frames["packet"]["psn"].to_list() == [1, 3, 2]
    assert rows.counts["late_counter_samples"] == 1
    assert (rows.counts["repeated"], rows.counts["late"], rows.counts["missed_datagrams"]) == (3, 1, 1)
    assert set(frames["port"]["epoch"]) == {0}


@pytest.mark.parametrize(
    ("before", "after", "restarted"),
    [
        ((100, 5_000_000), (1, 1_000), True),
        ((100, 5_000_000), (101, 1_000), True),
        ((100, 5_000_000), (1, 5_000_001), True),
        ((100, 3_000_000_000), (101, 1_000), True),
        ((100, 5_000_000), (101, 4_999_000), False),
        ((100, 2**32 - 1), (101, 0), False),
        ((100, 5_000_000), (600, 5_000_001), False),
    ],
)
def test_a_restart_begins_a_new_epoch(rows: Rows, before: tuple, after: tuple, restarted: bool):
    """An uptime or a number that fell back starts a new epoch at that time; a wrap, a small step back and a gap do not."""
    sent = [datagram(counters(generic()), sequence=sequence, uptime=uptime) for sequence, uptime in (before, after)]
    frames = decode(rows, *sent)
    assert frames["port"]["epoch"].to_list() == [0, START_NS + 1_000_000 if restarted else 0]
    assert rows.counts["restarts"] == restarted
    if restarted:
        assert frames["gap"].height == 0


def test_samples_that_the_agent_lost_are_admitted(rows: Rows):
    """The growth of an agent's count of lost samples is a gap of samples; its first value is not."""
    sent = [datagram(flow(drops=drops), sequence=k + 1) for k, drops in enumerate((1000, 1003, 1003, 1010))]
    gaps = decode(rows, *sent)["gap"]
    assert gaps.select("what", "missed", "reason").rows() == [("samples", 10, "agent_drop")]


def test_what_is_missing_is_admitted_in_its_own_second(rows: Rows):
    """Lost samples and malformed datagrams are gaps of the seconds in which they are reported, decoded at once or not."""
    second = START_NS // 10**9 * 10**9
    sent = [datagram(flow(drops=drops), sequence=k) for k, drops in enumerate((0, 0, 5, 5, 9, 9), 1)]
    broken = datagram(flow(), sequence=7)[:-8]
    gaps = decode(rows, *sent, broken, ts=[second + k * 10**9 for k in range(7)])["gap"]
    told = [
        ((ts - second) // 10**9, what, missed, reason) for ts, what, missed, reason in gaps.select("ts", "what", "missed", "reason").rows()
    ]
    assert told == [(2, "samples", 5, "agent_drop"), (4, "samples", 4, "agent_drop"), (6, "datagrams", 1, "malformed")]


def test_damage_costs_only_what_lies_behind_it(rows: Rows):
    """A sample that reaches beyond its datagram is a counted fault; the samples before it stay."""
    good = counters(generic(octets=5))
    broken = words(2, 5000) + bytes(40)
    frames = decode(rows, datagram(good, broken))
    assert frames["port"]["rx_bytes"].to_list() == [5]
    assert frames["gap"].select("device", "missed", "reason").rows() == [(AGENT, 1, "malformed")]
    assert rows.counts["malformed_cut"] == 1


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "short"),
        (words(5, 1), "short"),
        (words(4, 1) + bytes(30), "version"),
        (words(5, 9) + bytes(30), "address"),
        (datagram(count=3), "cut"),
        (datagram(tagged(2, words(1))), "sample"),
        (datagram(tagged(1, words(1, 2))), "sample"),
        (datagram(counters(tagged(1, bytes(40)))), "record"),
        (datagram(counters(words(1, 900) + bytes(88))), "record"),
        (datagram(flow(tagged(1, words(1, 100, 0, 99)))), "record"),
        (datagram(flow(tagged(1039, b""))), "record"),
        (datagram(counters(tagged(10, bytes(8)))), "record"),
    ],
)
def test_each_fault_has_its_name(rows: Rows, raw: bytes, fault: str):
    """Every kind of damage is counted by its reason and gives one gap."""
    frames = decode(rows, raw)
    assert {name: number for name, number in rows.counts.items() if name.startswith("malformed") and number} == {f"malformed_{fault}": 1}
    assert frames["gap"]["missed"].to_list() == [1]


def test_limits_hold_and_are_admitted():
    """Samples, records, agents and interfaces beyond their limits are refused and reported."""
    rows = Rows(Naming(), agents_max=1, interfaces_max=2, limits=SflowLimits(samples_max=2, records_max=2))
    assert decode(rows, datagram(*(counters(generic(1)) for _ in range(3))))["port"].height == 2
    decode(rows, datagram(counters(tagged(77, b""), tagged(78, b""), generic(1)), sequence=2))
    frames = decode(
        rows, datagram(counters(generic(2)), counters(generic(3)), sequence=3), datagram(counters(generic(1)), agent="10.0.0.2")
    )
    assert frames["port"]["port"].to_list() == ["2"]
    said = {name: number for name, number in rows.counts.items() if number and ("max" in name or "over" in name)}
    assert said == {"malformed_samples_max": 1, "malformed_records_max": 1, "malformed_interfaces_max": 1, "agents_over": 1}
    assert frames["gap"].select("device", "reason").rows() == [(AGENT, "over_limit"), ("", "over_limit")]


def test_one_long_header_is_looked_at_in_part():
    """A header longer than the limit is cut there, which leaves its fields."""
    rows = Rows(Naming(), agents_max=4, interfaces_max=4, limits=SflowLimits(header_bytes_max=64))
    assert decode(rows, datagram(flow(header(bytes(roce(8)), keep=1000))))["packet"]["psn"].to_list() == [8]


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_any_cut_and_any_byte_is_survived(data: st.DataObject):
    """A datagram cut or changed anywhere gives rows of the right tables and never raises."""
    whole = bytearray(
        datagram(counters(generic(), tagged(10, words(1, 1, 1, 1, 1) + bytes(40))), flow(header(bytes(roce(1)))), dropped(reason=256))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    rows = Rows(Naming(), agents_max=4, interfaces_max=8)
    frames = decode(rows, raw, datagram(counters(generic(octets=77)), agent="10.9.9.9"))
    assert frames["port"].filter(device="10.9.9.9")["rx_bytes"].to_list() == [77]


def test_any_cut_of_the_input_gives_the_same_rows():
    """Datagrams decoded one by one or all together give the same rows."""
    sent = [datagram(counters(generic(1 + k % 3, octets=k)), flow(header(bytes(roce(k)))), sequence=1 + k + k // 4) for k in range(12)]
    times = [START_NS + k for k in range(12)]
    whole = decode(Rows(Naming()), *sent, ts=times)
    rows = Rows(Naming())
    parts = [decode(rows, one, ts=[ts]) for one, ts in zip(sent, times, strict=True)]
    for family, frame in whole.items():
        assert frame.sort("ts", maintain_order=True).equals(pl.concat([part[family] for part in parts])), family


def test_a_capture_is_read_in_order_and_ends_its_devices(tmp_path: Path):
    """sFlow in a capture has the capture's times; other packets are skipped; at the end every device has ended."""

    def carried(raw: bytes, k: int, port: int = 6343):
        packet = Ether(src=MAC, dst=MAC) / IP(src="10.9.0.1", dst="10.9.0.2") / UDP(sport=9, dport=port) / Raw(raw)
        packet.time = 1_700_000_000 + k
        return packet

    sent = [carried(datagram(counters(generic()), agent=f"10.0.0.{1 + k % 2}", sequence=1 + k // 2), k) for k in range(4)]
    path = tmp_path / "some.pcap"
    wrpcap(str(path), [*sent[:2], carried(b"not sflow", 1, 53), *sent[2:], carried(b"nonsense", 9)])
    batches = list(SflowRecording(path, Options()).batches())
    assert batches[-1].ended == ("10.0.0.1", "10.0.0.2")
    frames = by_family(batches)
    assert frames["port"]["ts"].to_list() == [START_NS + k * 10**9 for k in range(4)]
    assert frames["gap"].select("device", "reason").rows() == [("10.9.0.1", "malformed")]


def test_a_damaged_capture_gives_what_is_good_first(tmp_path: Path):
    """Rows before the damage are there, devices end, then the error gives the place."""
    path = tmp_path / "cut.pcap"
    wrpcap(str(path), [Ether(src=MAC, dst=MAC) / IP() / UDP(dport=6343) / Raw(datagram(counters(generic())))] * 2)
    path.write_bytes(path.read_bytes()[:-10])
    batches: list[Batch] = []
    with pytest.raises(InputError, match="ends inside packet 2"):
        for batch in SflowRecording(path, Options()).batches():
            batches.append(batch)
    assert by_family(batches)["port"].height == 1
    assert batches[-1].ended == (AGENT,)


def test_a_file_that_is_too_long_for_a_datagram_is_refused(tmp_path: Path):
    """A file that is no capture and too long for one datagram is an error with a hint."""
    path = tmp_path / "long.bin"
    path.write_bytes(bytes(70_000))
    with pytest.raises(InputError, match="is no capture, and longer than one datagram; give a pcap or pcapng file"):
        list(SflowRecording(path, Options()).batches())


def drain(live: SflowListener, family: str, rows: int) -> dict[str, pl.DataFrame]:
    """Drain until there are so many rows of a family."""
    batches: list[Batch] = []
    deadline = CLOCK.monotonic_ns() + 10 * 10**9
    while sum(batch.frame.height for batch in batches if batch.family == family) < rows:
        assert CLOCK.monotonic_ns() < deadline
        batches += live.drain()
        CLOCK.wait(0.01)
    return by_family(batches)


def test_live_datagrams_come_off_a_socket():
    """Rows from a real socket have the time of arrival; datagrams of other senders are refused and counted."""
    live = SflowListener(SflowConfig(enabled=True, port=0, allow=("127.0.0.1/32",), devices={AGENT: "leaf-7"}), CLOCK)
    live.start()
    before = CLOCK.now_ns()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        stranger.bind(("127.0.0.9", 0))
        stranger.sendto(datagram(counters(generic()), agent="10.66.66.66"), ("127.0.0.1", live.port))
        for k in range(3):
            out.sendto(datagram(counters(generic(octets=k)), sequence=k + 1), ("127.0.0.1", live.port))
    frames = drain(live, "port", 3)
    live.stop()
    live.stop()
    assert live.drain() == []
    assert frames["port"].select("device", "rx_bytes").rows() == [("leaf-7", 0), ("leaf-7", 1), ("leaf-7", 2)]
    assert all(before <= ts <= CLOCK.now_ns() for ts in frames["port"]["ts"])
    counts = live.counters()
    assert counts["weft_collectors_sflow_socket_refused_total"] == 1
    assert counts["weft_collectors_sflow_counter_samples_total"] == 3
    assert (counts["weft_collectors_sflow_agents"], counts["weft_collectors_sflow_interfaces"]) == (1, 1)


def test_what_is_lost_at_the_socket_is_admitted():
    """If a small buffer is not drained, every sent datagram is decoded or counted as lost."""
    live = SflowListener(SflowConfig(enabled=True, port=0, buffer_bytes_max=40_000, receive_buffer_bytes=4096), CLOCK)
    live.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for k in range(2000):
            out.sendto(datagram(counters(generic()), sequence=k + 1), ("127.0.0.1", live.port))
    live.stop()
    frames = by_family(live.drain())
    lost = frames["gap"].filter(pl.col("reason").is_in(["kernel_drop", "buffer_full"]))
    assert frames["port"].height + int(lost["missed"].sum()) == 2000
    assert lost.height > 0
    assert set(lost["device"]) == {socket.gethostname()}


def test_a_port_in_use_ends_the_start_with_the_mend():
    """A port in use gives an error of one sentence that names the setting."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceError, match=r"is in use; end the program that has it or choose another collect.sflow.port"):
            SflowListener(SflowConfig(port=taken.getsockname()[1]), CLOCK).start()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('allow = ["everyone"]', "'everyone' is no network"),
        ("port = 70000", "70000 is no UDP port"),
        ("agents_max = 0", "agents_max: 0 is not above 0"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, text: str, problem: str):
    """An invalid setting is a configuration error with its place."""
    file = tmp_path / "weft.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load(SflowConfig, file, {})


def test_defaults_listen_to_this_machine_only():
    """By default the collector is off, and allows only this machine to send."""
    config = SflowConfig()
    assert (config.enabled, config.address, config.allow) == (False, "127.0.0.1", ("127.0.0.0/8", "::1/128"))
