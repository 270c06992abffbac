"""sFlow of real devices, compared with two other decoders and tshark."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl
import pytest
from shared_data import SHARED

from weft.collectors.base import Options
from weft.collectors.replay import recogniser
from weft.collectors.sflow.agents import Agents
from weft.collectors.sflow.decoder import decode
from weft.collectors.sflow.receiver import SflowRecording
from weft.collectors.wire import roce, udp
from weft.pipeline.tables.families import FAMILIES

DATA = SHARED / "sflow"
PRINTED = DATA / "tcpdump_sflow_multiple_counter_30_pdus.expected.txt"
MANY = DATA / "tcpdump_sflow_multiple_counter_30_pdus.pcap"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not here")

# tcpdump's names of the columns of `port`, in the order in which it prints them.
GENERIC = (
    ("ifspeed", "speed_bps"),
    ("In octets", "rx_bytes"),
    ("unicast pkts", "rx_unicast_packets"),
    ("multicast pkts", "rx_multicast_packets"),
    ("broadcast pkts", "rx_broadcast_packets"),
    ("discards", "rx_discards"),
    ("In errors", "rx_errors"),
    ("unknown protos", "rx_unknown_protocols"),
    ("Out octets", "tx_bytes"),
    ("unicast pkts", "tx_unicast_packets"),
    ("multicast pkts", "tx_multicast_packets"),
    ("broadcast pkts", "tx_broadcast_packets"),
    ("discards", "tx_discards"),
    ("Out errors", "tx_errors"),
)
ETHERNET = (
    ("align errors", "alignment_errors"),
    ("fcs errors", "fcs_errors"),
    ("single collision", "single_collisions"),
    ("multiple collision", "multiple_collisions"),
    ("test error", "sqe_test_errors"),
    ("deferred", "deferred_transmissions"),
    ("late collision", "late_collisions"),
    ("excessive collision", "excessive_collisions"),
    ("mac trans error", "internal_tx_errors"),
    ("carrier error", "carrier_sense_errors"),
    ("frames too long", "frame_too_long_errors"),
    ("mac receive errors", "internal_rx_errors"),
    ("symbol errors", "symbol_errors"),
)
# The same for telegraf.
TELEGRAF = {
    "speed": "speed_bps",
    "in_bytes": "rx_bytes",
    "in_unicast_packets_total": "rx_unicast_packets",
    "in_mcast_packets_total": "rx_multicast_packets",
    "in_broadcast_packets_total": "rx_broadcast_packets",
    "in_dropped_packets": "rx_discards",
    "in_errors": "rx_errors",
    "in_unknown_protocol": "rx_unknown_protocols",
    "out_bytes": "tx_bytes",
    "out_unicast_packets_total": "tx_unicast_packets",
    "out_mcast_packets_total": "tx_multicast_packets",
    "out_broadcast_packets_total": "tx_broadcast_packets",
    "out_dropped_packets": "tx_discards",
    "out_errors": "tx_errors",
    "errors_alignment": "alignment_errors",
    "errors_fcs": "fcs_errors",
    "collision_frames_single": "single_collisions",
    "collision_frames_multi": "multiple_collisions",
    "errors_sqetest": "sqe_test_errors",
    "deferred": "deferred_transmissions",
    "collisions_late": "late_collisions",
    "collisions_excessive": "excessive_collisions",
    "errors_internal_mac_tx": "internal_tx_errors",
    "errors_carrier_sense": "carrier_sense_errors",
    "errors_frame_too_long": "frame_too_long_errors",
    "errors_internal_mac_rx": "internal_rx_errors",
    "errors_symbols": "symbol_errors",
}
# And for tshark.
TSHARK = {
    "sflow_245.ifspeed": "speed_bps",
    "sflow_245.ifinoct": "rx_bytes",
    "sflow_245.ifinpkt": "rx_unicast_packets",
    "sflow_245.ifinmcast": "rx_multicast_packets",
    "sflow_245.ifinbcast": "rx_broadcast_packets",
    "sflow_245.ifindisc": "rx_discards",
    "sflow_245.ifinerr": "rx_errors",
    "sflow_245.ifinunk": "rx_unknown_protocols",
    "sflow_245.ifoutoct": "tx_bytes",
    "sflow_245.ifoutpkt": "tx_unicast_packets",
    "sflow_245.ifoutmcast": "tx_multicast_packets",
    "sflow_245.ifoutbcast": "tx_broadcast_packets",
    "sflow_245.ifoutdisc": "tx_discards",
    "sflow_245.ifouterr": "tx_errors",
}


def missing(reason: str) -> NoReturn:
    """Skip on a user's machine, fail where all tools are required."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def read(path: Path) -> tuple[dict[str, pl.DataFrame], SflowRecording]:
    """Return the rows of a recording by family, and the recording with its counts."""
    recording = SflowRecording(path, Options())
    frames: dict[str, pl.DataFrame] = {name: FAMILIES[name].empty() for name in ("port", "reading", "packet", "event", "gap", "queue")}
    for batch in recording.batches():
        assert batch.frame.schema == pl.Schema(FAMILIES[batch.family].polars)
        frames[batch.family] = pl.concat([frames[batch.family], batch.frame]) if batch.family in frames else batch.frame
    return frames, recording


def printed_samples() -> list[dict]:
    """Return the counter samples that tcpdump printed, as rows of `port`."""
    rows: list[dict] = []
    ts, agent = 0, ""
    for line in PRINTED.read_text().splitlines():
        if found := re.match(r"\s+\d+\s+(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)\.(\d{6}) IP", line):
            seconds = int(np.datetime64(f"{found[1]}T{found[2]}", "s").astype(int))
            ts = seconds * 10**9 + int(found[3]) * 1000
        elif found := re.search(r"sFlowv5, IPv4 agent ([\d.]+),", line):
            agent = found[1]
        elif "expanded counter sample" in line:
            rows.append({"ts": ts, "device": agent, "text": ""})
        elif line.startswith("\t") and rows:
            rows[-1]["text"] += " " + line.strip()
    return [row for row in rows if "Generic counter" in row["text"]]


def numbers_after(text: str, names: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Return the number that follows each name, searched from the previous one on."""
    values, at = {}, 0
    for name, column in names:
        found = re.compile(rf"{re.escape(name)} (\d+)").search(text, at)
        assert found is not None, f"{name!r} is not in {text!r}"
        values[column], at = int(found[1]), found.end()
    return values


def test_every_counter_that_tcpdump_prints_is_the_same_here():
    """All 142 counter samples of a real capture have the interface, states and 27 counters that tcpdump prints."""
    expected = []
    for row in printed_samples():
        text = row["text"]
        values = numbers_after(text, GENERIC) | numbers_after(text[text.index("Ethernet counter") :], ETHERNET)
        values |= {"admin_up": "adminstatus: up" in text, "oper_up": "operstatus: up" in text}
        expected.append({"ts": row["ts"], "device": row["device"], "port": re.search(r"ifindex (\d+)", text)[1], **values})
    assert len(expected) == 142
    frames, _ = read(MANY)
    assert frames["port"].select(list(expected[0])).rows(named=True) == expected


def test_states_without_a_column_are_said_once():
    """Interface type, duplex and promiscuous mode that tcpdump prints are readings, once while they do not change."""
    pattern = r"ifindex (\d+), iftype (\d+), .*ifdirection (\d+) .*promisc mode (\d+)"
    said = {
        (row["device"], *re.search(pattern, row["text"]).groups()[:1]): re.search(pattern, row["text"]).groups()[1:]
        for row in printed_samples()
    }
    expected = {
        (device, port, name): int(value)
        for (device, port), values in said.items()
        for name, value in zip(("if_type", "if_direction", "if_promiscuous_mode"), values, strict=True)
    }
    readings = read(MANY)[0]["reading"].filter(kind="port")
    assert readings.height == len(expected)
    assert {(row["device"], row["object"], row["name"]): row["count"] for row in readings.to_dicts()} == expected


def test_numbers_of_real_agents_give_the_gaps_that_their_text_has():
    """The datagram numbers that tcpdump prints for each agent and sub-agent give the missing ones; nothing restarted."""
    last: dict[tuple[str, str], int] = {}
    missed = 0
    for agent, sub, number in re.findall(r"IPv4 agent ([\d.]+), agent-id (\d+), seqnum (\d+)", PRINTED.read_text()):
        before = last.setdefault((agent, sub), int(number) - 1)
        missed += int(number) - before - 1
        last[agent, sub] = int(number)
    frames, recording = read(MANY)
    assert int(frames["gap"].filter(reason="sequence")["missed"].sum()) == missed
    assert recording.counts["restarts"] == recording.counts["repeated"] == recording.counts["late"] == 0
    assert recording.counts["malformed_version"] == PRINTED.read_text().count("packet not supported")


def fields(line: str) -> dict[str, str]:
    """Return the fields of one line of telegraf's output."""
    return {name: text.strip('"') for name, text in re.findall(r'(\w+)=("[^"]*"|[^ ,]+)', line)}


def whole(text: str) -> int:
    """Return an integer of telegraf's output."""
    return int(text.rstrip("ui"))


@pytest.mark.parametrize("case", ["sflow_issue_15918", "sflow_issue_18876", "sflow_v5_example"])
def test_counters_are_what_telegraf_reads(case: str):
    """Counter samples of real datagrams have telegraf's values; all ones there are null here."""
    lines = (DATA / "telegraf" / case / "expected.out").read_text().splitlines()
    said = next(fields(line) for line in lines if "in_bytes=" in line)
    (path,) = (DATA / "telegraf" / case).glob("*.bin")
    (row,) = read(path)[0]["port"].to_dicts()
    for name, column in TELEGRAF.items():
        if name in said:
            unknown = whole(said[name]) == 2**32 - 1
            assert row[column] == (None if unknown else whole(said[name])), name
        else:
            assert row[column] is None
    assert row["device"] == said["agent_ip"]
    assert row["port"] == said.get("port_name", said["interface"].rstrip("u"))
    assert (row["admin_up"], row["oper_up"]) == (True, said["status"] == "up")
    parts = [row[f"rx_{kind}_packets"] for kind in ("unicast", "multicast", "broadcast")]
    assert row["rx_packets"] == (None if None in parts else sum(parts) % 2**32)


def test_flow_samples_are_what_telegraf_reads():
    """Six flow samples of a real datagram have telegraf's rates, lengths, addresses and ports, also with a VLAN tag and over IPv6."""
    folder = DATA / "telegraf/sflow_issue_15918"
    said = [fields(line) for line in (folder / "expected.out").read_text().splitlines() if "sampling_interval=" in line]
    raw = np.fromfile(folder / "message.bin", np.uint8)
    samples = decode(raw, np.zeros(1, np.int64), np.array([len(raw)]), np.zeros(1, np.int64), Agents(4, 64))
    flows = samples.flows
    ends = udp.ends(raw, flows["header_at"].copy(), flows["header_bytes"].astype(np.int64), np.ones(len(flows), np.int64))
    src, dst = roce.addresses(ends)
    assert flows["rate"].tolist() == [whole(one["sampling_interval"]) for one in said]
    assert flows["frame_bytes"].tolist() == [whole(one["l2_bytes"]) for one in said]
    assert src.to_list() == [one["src"] for one in said]
    assert dst.to_list() == [one["dst"] for one in said]
    assert ends["src_port"].tolist() == [whole(one.get("src_port", "0")) for one in said]
    assert ends["dst_port"].tolist() == [whole(one.get("dst_port", "0")) for one in said]


def test_packets_that_are_not_roce_are_counted_by_kind():
    """The six sampled packets of a real datagram, five UDP and one ICMPv6, give no rows."""
    frames, recording = read(DATA / "telegraf/sflow_issue_15918/message.bin")
    kinds = {name: number for name, number in recording.counts.items() if name.startswith("flow_samples") and number}
    assert kinds == {"flow_samples": 6, "flow_samples_udp": 5, "flow_samples_icmp": 1}
    assert frames["packet"].height == 0


def test_a_dropped_packet_is_what_telegraf_reads():
    """A drop notification with its egress queue becomes an event at the output port, with the reason of its number."""
    folder = DATA / "telegraf/sflow_issue_15375"
    said = fields((folder / "expected.out").read_text())
    (row,) = read(folder / "sflow_drop_1036.bin")[0]["event"].to_dicts()
    assert (row["device"], row["port"], row["kind"]) == (said["agent_ip"], said["out_snmp"].rstrip("u"), "drop")
    # Reason 1 of the specification: host unreachable.
    assert (whole(said["reason"]), row["reason"]) == (1, "host_unreachable")
    assert row["detail"] == f"input={whole(said['in_snmp'])} output={whole(said['out_snmp'])} queue={whole(said['out_queue'])}"


@pytest.mark.parametrize("name", ["tcpdump_sflow-print-v6.pcap", "tcpdump_sflow_multiple_counter_30_pdus.pcap"])
def test_counters_are_what_tshark_reads(name: str):
    """tshark decodes the same interfaces and counters, in the same order, in both captures of counters."""
    if shutil.which("tshark") is None:
        missing("tshark is not installed")
    wanted = ["sflow_245.ifindex", *TSHARK]
    command = ["tshark", "-r", str(DATA / name), "-Y", "sflow", "-T", "fields", *(part for field in wanted for part in ("-e", field))]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL).stdout
    expected: dict[str, list[int]] = {field: [] for field in wanted}
    for line in out.splitlines():
        for field, text in zip(wanted, line.split("\t"), strict=True):
            expected[field] += [int(value, 0) for value in text.split(",") if value]
    port = read(DATA / name)[0]["port"]
    assert port.height == len(expected["sflow_245.ifindex"]) > 0
    assert port["port"].to_list() == [str(index) for index in expected["sflow_245.ifindex"]]
    for field, column in TSHARK.items():
        values = [value for value in port[column] if value is not None]
        assert values == [value for value in expected[field] if value != 2**32 - 1 or column.endswith("bytes")], field


def test_an_agent_with_an_ipv6_address_is_named_by_it():
    """A capture over IPv6 has its agent's IPv6 address as device, 400G ports and no loss."""
    frames, recording = read(DATA / "tcpdump_sflow-print-v6.pcap")
    assert set(frames["port"]["device"]) == {"30::1:1:1"}
    assert set(frames["port"]["speed_bps"]) == {400_000_000_000}
    assert (recording.counts["datagrams"], recording.counts["counter_samples"], recording.counts["flow_samples"]) == (25, 48, 13)
    assert frames["gap"].height == 0


def test_an_expanded_flow_sample_is_read():
    """The expanded flow sample of a real capture is TCP, and counted as such."""
    _, recording = read(DATA / "tcpdump_sflow_expanded.pcap")
    assert recording.counts["flow_samples"] == recording.counts["flow_samples_tcp"] == 1
    assert not any(number for name, number in recording.counts.items() if name.startswith("malformed"))


def test_a_malformed_datagram_is_admitted():
    """A datagram of eight bytes gives one gap of its sender and no rows."""
    frames, recording = read(DATA / "tcpdump_sflow_malformed.pcap")
    assert recording.counts["malformed_short"] == 1
    (gap,) = frames["gap"].to_dicts()
    assert (gap["device"], gap["what"], gap["missed"], gap["reason"]) == ("10.0.0.250", "datagrams", 1, "malformed")
    assert Counter({name: frame.height for name, frame in frames.items()}).total() == 1


def test_recordings_are_recognised_without_being_told():
    """A capture of sFlow and a datagram go to sflow, a capture of RoCEv2 packets goes to packets, and --kind decides otherwise."""
    assert recogniser(MANY, None).name == "sflow"
    assert recogniser(DATA / "tcpdump_sflow-print-v6.pcap", None).name == "sflow"
    assert recogniser(DATA / "telegraf/sflow_v5_example/sflow_v5.bin", None).name == "sflow"
    assert recogniser(SHARED / "roce-pcap/oferby_roce.pcap", None).name == "packets"
    assert recogniser(MANY, "packets").name == "packets"
