"""Collectors and lab, written independently from the same specifications, agree on every value."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import numpy as np
import polars as pl
import pytest
from switch_rig import Tcp, port_frame, queue_frame

from weft.collectors import COLLECTORS
from weft.collectors.base import Batch, Live, Options
from weft.collectors.gnmi.config import Target
from weft.lab.switch import hft, roce, sai
from weft.lab.switch.gnmi import Server, ServerConfig
from weft.lab.switch.otlp import OtlpSender, OtlpSenderConfig, points
from weft.lab.switch.script import LOSSLESS, START_NS, Script, Shape
from weft.lab.switch.sflow import Agent, AgentConfig
from weft.pipeline.clock import NS_PER_MS, NS_PER_S, SystemClock

# The first use of a collector compiles its kernels.
LIMIT_S = 240
NOW = START_NS + 3 * NS_PER_S
CLOCK = SystemClock()


@pytest.fixture
def live() -> Iterator[Callable[..., Live]]:
    """Return a function that starts a collector with a configuration; it ends with the test."""
    started: list[Live] = []

    def start(name: str, **config: object) -> Live:
        collector = COLLECTORS[name]
        assert collector.live is not None
        made = collector.live(collector.config(**config), CLOCK)
        made.start()
        started.append(made)
        return made

    yield start
    for collector in started:
        collector.stop()


def drained(collector: Live, enough: Callable[[list[Batch]], bool]) -> list[Batch]:
    """Return the batches of a collector until they are enough."""
    got: list[Batch] = []
    deadline = monotonic() + LIMIT_S
    while not enough(got):
        assert monotonic() < deadline, [(batch.family, batch.frame.height) for batch in got]
        got += collector.drain()
        CLOCK.wait(0.02)
    return got


def family(batches: list[Batch], name: str) -> pl.DataFrame:
    """Return all rows of a family."""
    frames = [batch.frame for batch in batches if batch.family == name]
    return pl.concat(frames) if frames else pl.DataFrame()


def capture_of(datagrams: list[bytes], path: Path) -> Path:
    """Write a capture of sFlow datagrams, by scapy."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether
    from scapy.utils import wrpcap

    ends = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="127.0.0.1", dst="127.0.0.1") / UDP(sport=6000, dport=6343)
    wrpcap(str(path), [ends / body for body in datagrams])
    return path


@pytest.mark.parametrize("config", [AgentConfig(), AgentConfig("2001:db8::7", 2, True)], ids=["compact", "expanded, IPv6 agent"])
def test_sflow_counters_and_packets_are_those_of_the_switch(tmp_path: Path, config):
    """The collector's counters and packet fields equal the switch's."""
    script = Script(Shape(ports=16))
    agent, flows = Agent(script, config), roce.sampled(script, NOW, 200, roce.WRITE_FIRST)
    sent = [*agent.counters(NOW), *agent.flows(flows, NOW)]
    recorded = COLLECTORS["sflow"].recorded
    assert recorded is not None
    batches = list(recorded(capture_of(sent, tmp_path / "made.pcap"), Options()).batches())
    truth = port_frame(script.switch, script.at([NOW]))
    narrow = [c for c in truth.columns if c.endswith(("_discards", "_errors", "unicast_packets"))]
    columns = ["port", "speed_bps", "oper_up", "admin_up", "rx_bytes", "tx_bytes", *narrow]
    expected = truth.with_columns(pl.col(narrow) & 0xFFFFFFFF).select(columns).sort("port")
    assert family(batches, "port").select(columns).sort("port").equals(expected)
    packets = family(batches, "packet")
    assert packets["src_port"].to_list() == (0xC000 + flows.in_port).tolist()
    assert packets["length"].to_list() == flows.length.tolist()
    assert set(packets.select("opcode", "payload_bytes", "dma_bytes", "sampling_rate").unique().rows()) == {(6, 4096, 1 << 20, 1000)}
    assert sorted(ns for values in family(batches, "latency")["values_ns"] for ns in values) == sorted(flows.delay_ns.tolist())


@pytest.mark.parametrize("layout", [hft.Layout(records=7), hft.Layout("pair", (8, 4, 6), 3, 8, 1, 5, 3)], ids=["plain", "narrow, padded"])
def test_telemetry_samples_are_the_deltas_of_the_switch(tmp_path: Path, live, layout):
    """Over a connection, each port's and queue's samples are the differences of its counters, under its name."""
    script = Script(Shape(ports=8))
    wanted = [hft.session(script, sai.PORT, ("IF_IN_OCTETS", "IF_OUT_OCTETS")), hft.session(script, sai.QUEUE, ("BYTES",), (LOSSLESS,))]
    exporter = hft.HftExporter(script, wanted, layout)
    names = tmp_path / "sessions.json"
    names.write_text(json.dumps(exporter.side_channel()))
    collector = live("hft", enabled=True, port=0, udp=False, sessions={"*": str(names)})
    ts = NOW + np.arange(1500) * NS_PER_MS
    sender = Tcp("127.0.0.1", collector.tcp_port)
    sender.start()
    sender.send(exporter.templates(), 100)
    sender.send(exporter.data(ts), 1000)
    runs = 3 * 8 * (len(ts) - 1)
    got = drained(
        collector,
        lambda got: sum(family([b], "burst_sample")["values"].list.len().sum() for b in got if b.family == "burst_sample") >= runs,
    )
    sender.stop()
    state = script.at(ts)
    seen = (
        family(got, "burst_sample").sort("ts").group_by("port", "queue", "signal", maintain_order=True).agg(pl.col("values").list.explode())
    )
    actual = {(port, queue, signal): values for port, queue, signal, values in seen.rows()}
    expected = {}
    for index, port in enumerate(script.switch.ports):
        for key, counter in (
            ((port, "", "rx_bytes"), state.port("rx_bytes")[:, index]),
            ((port, "", "tx_bytes"), state.port("tx_bytes")[:, index]),
            ((port, "3", "tx_bytes"), state.queue("bytes")[:, index, LOSSLESS]),
        ):
            expected[key] = np.diff(counter).tolist()
    assert actual == expected


def test_gnmi_rows_are_those_of_the_switch(live):
    """Rows of ports and queues from OpenConfig and SONiC's database equal the switch's counters at their time."""
    script = Script(Shape(ports=8, boots_ns=(CLOCK.now_ns() - 5 * NS_PER_S,)))
    server = Server(script, ServerConfig(), CLOCK)
    server.start()
    try:
        target = Target("leaf", f"127.0.0.1:{server.port}", insecure=True, packs=("openconfig", "sonic"))
        collector = live("gnmi", targets=(target,))
        got = drained(collector, lambda got: len(family(got, "queue")) > 300 and len(family(got, "port")) > 60)
    finally:
        server.stop()
    for name, frame, key in (("port", port_frame, ["ts", "port"]), ("queue", queue_frame, ["ts", "port", "queue", "direction"])):
        rows = family(got, name)
        truth = frame(script.switch, script.at(rows["ts"].unique().sort().to_list()))
        joined = rows.join(truth, on=key, suffix="_true")
        assert len(joined) == len(rows)
        checked = 0
        for column in set(rows.columns) & set(truth.columns) - {*key, "device", "fec_bins"}:
            both = joined.filter(pl.col(column).is_not_null() & pl.col(f"{column}_true").is_not_null())
            assert both.filter(pl.col(column) != pl.col(f"{column}_true")).select(*key, column, f"{column}_true").rows() == [], column
            checked += len(both)
        assert checked > len(rows)


def test_otlp_values_are_those_of_the_switch(live):
    """Gauges of a sender like countersyncd become rows with the switch's counters at their time."""
    script = Script(Shape(ports=8))
    wanted = [
        hft.session(script, sai.PORT, ("IF_OUT_DISCARDS", "ECN_MARKED_PACKETS")),
        hft.session(script, sai.QUEUE, ("PACKETS",), (LOSSLESS,)),
    ]
    ts = [NOW + n * NS_PER_S for n in range(5)]
    collector = live("otlp", enabled=True, port=0)
    sender = OtlpSender(script, OtlpSenderConfig(f"127.0.0.1:{collector.port}", flush_points=40), CLOCK)
    sender.start()
    sender.send(points(script, wanted, ts))
    sender.stop()
    assert (sender.sent, sender.dropped) == (3 * 8 * len(ts), 0)
    got = drained(collector, lambda got: len(family(got, "port")) >= 8 and len(family(got, "queue")) >= 8)
    ports, queues = family(got, "port"), family(got, "queue")
    state = script.at(ports["ts"].to_list())
    for row, (port, dropped, marked) in enumerate(ports.select("port", "tx_discards", "ecn_marked_packets").rows()):
        index = script.switch.ports.index(port)
        for value, column in ((dropped, "tx_discards"), (marked, "ecn_marked_packets")):
            assert value is None or value == state.port(column)[row, index]
    assert ports["tx_discards"].count() + ports["ecn_marked_packets"].count() >= 16
    state = script.at(queues["ts"].to_list())
    for row, (port, queue, packets) in enumerate(queues.select("port", "queue", "packets").rows()):
        assert (queue, packets) == ("3", state.queue("packets")[row, script.switch.ports.index(port), LOSSLESS])
