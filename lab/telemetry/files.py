"""A run of the virtual fabric as recordings of its protocols, faster than real time.

Each value is in one file only. Bytes and occupancies of the switch ports, every sample, are high-frequency telemetry
(``hft/<switch>.ipfix`` with its side channel); all other counters of the switches, their links and neighbours are gNMI, once a second
(``gnmi/<switch>.pb``); sampled packets are sFlow (``sflow.pcap``); RDMA pings of one host are a packet capture (``capture/<host>.pcap``).
What none of these protocols carries (adapters, NVLink, GPUs, host ports, probes, the inventory) is a recording as of ``weft record``
(``hosts.weft``). ``truth`` is the ground truth, and ``recordings.toml`` lists all files for ``weft replay``.

The same configuration and seed give the same bytes of every file.
"""

import ipaddress
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from ...collectors.base import Batch
from ...collectors.recordings.folder import INDEX
from ...collectors.recordings.recording import Recorder
from ...pipeline.clock import NS_PER_S, ManualClock
from ...pipeline.errors import ServiceError
from ..fabric.answers import Answers
from ..fabric.fabric import Fabric, FabricConfig, Step
from ..fabric.topology import HOST
from ..switch import hft, roce, sai
from ..switch.gnmi import Stream
from ..switch.script import LOSSLESS
from ..switch.sflow import Agent, AgentConfig
from ..switch.tree import DATABASE, Element, Leaf
from ..switch.wire import MessageBuffer
from .export import FabricExporter, Packets, sampled
from .tap import Tap, address_of

# Length of a step of the fabric, and the interval of counters by gNMI.
STEP_NS = NS_PER_S
GNMI_NS = NS_PER_S
# Interval at which an sFlow agent sends its samples.
SFLOW_NS = NS_PER_S // 10
SFLOW_PORT, ROCE_PORT = 6343, 4791
COLLECTOR = "172.31.255.254"
PING_BYTES = 64
PING_PAIRS_MAX = 8

_PCAP_HEAD = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1)  # times in nanoseconds, Ethernet


@dataclass(frozen=True, slots=True)
class RecordProgress:
    """Progress of a run: ns of its own time, and bytes written."""

    done_ns: int
    bytes: int


class Files:
    """Writes one run into a new folder."""

    def __init__(self, folder: Path, config: FabricConfig, seed: int) -> None:
        self._folder, self._fabric = folder, Fabric(config, seed)
        self._exporter = FabricExporter(self._fabric)
        topology = self._fabric.topology
        self._switches = [_Switch(self._fabric, self._exporter, n) for n in range(topology.first_switch, len(topology.tier))]
        self._ping = _Ping(self._fabric)
        self._recorder = Recorder(folder / "hosts.weft", ManualClock(config.start_ns))
        self._hosts = [name for name, tier in zip(topology.device_names, topology.tier.tolist(), strict=True) if tier == HOST]

    def write(self, until_ns: int, progress: Callable[[RecordProgress], None] = lambda _progress: None) -> None:
        """Run to ``until_ns`` since the start and write everything.

        Raises ``ServiceError`` if the folder exists or cannot be written.
        """
        folder = self._folder
        try:
            folder.mkdir(parents=True)
            for name in ("hft", "gnmi", "capture"):
                (folder / name).mkdir()
            answers = Answers(folder / "truth", self._fabric)
            self._recorder.append(Batch("inventory", self._exporter.inventory()))
            with _Pcap(folder / "sflow.pcap") as samples, _Pcap(folder / "capture" / f"{self._ping.host}.pcap") as pings:
                while self._fabric.now_ns < until_ns:
                    step = self._fabric.advance(min(until_ns, self._fabric.now_ns + STEP_NS))
                    answers.write(step)
                    self._step(step, samples, pings)
                    progress(RecordProgress(step.until_ns, samples.bytes + pings.bytes + sum(switch.bytes for switch in self._switches)))
            answers.close()
            self._recorder.close()
            (folder / INDEX).write_text(self._index())
        except FileExistsError:
            raise ServiceError(f"{folder} is there already", "record into a new folder") from None
        except OSError as error:
            raise ServiceError(f"{folder} cannot be written ({error.strerror})", "free space or record elsewhere") from None

    def _step(self, step: Step, samples: "_Pcap", pings: "_Pcap") -> None:
        for family, frame in self._exporter.frames(step).items():
            # Switches have files of their own; the telemetry of hosts is in this one only.
            own = frame.filter(pl.col("device").is_in(self._hosts)).sort("ts", maintain_order=True)
            if own.height and family != "packet":
                self._recorder.append(Batch(family, own))
        for switch in self._switches:
            switch.take(step, self._folder)
        packets = sampled(self._fabric, step)
        for tick in range(step.first_ns // SFLOW_NS * SFLOW_NS + SFLOW_NS, step.until_ns + 1, SFLOW_NS):
            gathered = packets.pick((packets.at_ns > tick - SFLOW_NS) & (packets.at_ns <= tick))
            for switch in self._switches:
                switch.sample(gathered, tick, samples)
        self._ping.write(step, pings)

    def _index(self) -> str:
        names = [switch.name for switch in self._switches]
        parts = [("hosts.weft", "recording"), *((f"gnmi/{name}.pb", "gnmi") for name in names)]
        parts += [
            *((f"hft/{name}.ipfix", "hft") for name in names),
            ("sflow.pcap", "sflow"),
            (f"capture/{self._ping.host}.pcap", "packets"),
        ]
        devices = (f"{json.dumps(switch.address)} = {json.dumps(switch.name)}" for switch in self._switches)
        lines = ["version = 1", "", "[devices]", *devices]
        # High-frequency telemetry carries no port speed; without it there is no utilisation and no burst.
        speeds = {f"hft/{switch.name}.ipfix": switch.speed_bps for switch in self._switches}
        for path, kind in parts:
            lines += ["", "[[recording]]", f"path = {json.dumps(path)}", f"kind = {json.dumps(kind)}"]
            lines += [f"line_rate_bps = {speeds[path]}"] if speeds.get(path) else []
        return "\n".join(lines) + "\n"


class _Switch:
    """One switch and the exporters of its protocols."""

    def __init__(self, fabric: Fabric, exporter: FabricExporter, device: int) -> None:
        self._fabric, self._exporter, self._device = fabric, exporter, device
        self.name = fabric.topology.device_names[device]
        config = fabric.config
        # Only faults of this switch need older steps.
        faulty = any(fault.place == self.name for fault in config.faults)
        self._tap = Tap(fabric, self.name, steps_kept=4096 if faulty else 2)
        self.address = str(ipaddress.ip_address("172.16.0.1") + device - fabric.topology.first_switch)
        self._agent = Agent(self._tap, AgentConfig(self.address, sampling_rate=max(1, config.packet_sampling), flow_records=("transit",)))
        sessions = [
            hft.session(self._tap, sai.PORT, ("IF_IN_OCTETS", "IF_OUT_OCTETS")),
            hft.session(self._tap, sai.QUEUE, ("CURR_OCCUPANCY_BYTES",), (LOSSLESS,)),
        ]
        self._hft = hft.HftExporter(self._tap, sessions, hft.Layout(records=10))
        self._gnmi = Stream(self._tap, ManualClock(config.start_ns), _SUBSCRIPTIONS)
        self._begun = False
        self.bytes = 0

    @property
    def speed_bps(self) -> int:
        """The line rate of all ports, 0 if they differ."""
        speeds = np.unique(self._tap.speeds)
        return int(speeds[0]) if len(speeds) == 1 else 0

    def take(self, step: Step, folder: Path) -> None:
        """Write the telemetry of a step: samples, and counters at each whole second."""
        self._tap.take(step)
        config = self._fabric.config
        with (folder / "hft" / f"{self.name}.ipfix").open("ab") as file:
            if not self._begun:
                side = json.dumps(self._hft.side_channel(), indent=1)
                (folder / "hft" / f"{self.name}.ipfix.json").write_text(side)
                self._write(file, b"".join(self._hft.templates(export_ns=config.start_ns)))
                self._write(file, b"".join(self._hft.data([config.start_ns])))
            ends = step.first_ns + config.sample_ns * np.arange(1, len(step.sent) + 1)
            ticks, tick_of = np.unique(-(-ends // SFLOW_NS), return_inverse=True)
            lost = np.array([self._exporter.lost(self._device, int(tick) * SFLOW_NS) for tick in ticks], bool)
            ends = ends[~lost[tick_of]]
            if len(ends):
                self._write(file, b"".join(self._hft.data(config.start_ns + ends)))
        with (folder / "gnmi" / f"{self.name}.pb").open("ab") as file:
            # The first counter sample is at the start, when all counters are zero.
            first = step.first_ns // GNMI_NS + self._begun
            for tick in range(first * GNMI_NS, step.until_ns + 1, GNMI_NS):
                if not self._exporter.lost(self._device, tick):
                    self._write(file, self._gnmi.at(config.start_ns + tick))
        self._begun = True

    def sample(self, packets: Packets, tick: int, out: "_Pcap") -> None:
        """Write the datagrams of the packets sampled in the ``SFLOW_NS`` before ``tick``."""
        if self._exporter.lost(self._device, tick):
            return
        ts = self._fabric.config.start_ns + tick
        for flows in self._tap.sampled(packets):
            out.write(self._agent.flows(flows, ts), ts, self.address, SFLOW_PORT)

    def _write(self, file: BinaryIO, content: bytes) -> None:
        file.write(content)
        self.bytes += len(content)


# OpenConfig leaves without those that high-frequency telemetry carries, or SONiC's database in more detail.
_INTERFACE = frozenset(("oper-status", "admin-status", "in-pkts", "out-pkts", "carrier-transitions", "in-fcs-errors", "port-speed"))
_ELSEWHERE = ("SAI_PORT_STAT_IF_IN_OCTETS", "SAI_PORT_STAT_IF_OUT_OCTETS", "OCCUPANCY")


def _from_interfaces(leaf: Leaf) -> bool:
    return leaf.elements[-1].name in _INTERFACE


def _from_database(leaf: Leaf) -> bool:
    """Return whether a leaf is a counter that no other file has and, if it has a priority, of the lossless one."""
    name, row = leaf.elements[-1].name, leaf.elements[leaf.depth - 1].name
    priority = row.rpartition(":")[2] if ":" in row else name.partition("_PFC_")[2][:1]
    return priority in ("", str(LOSSLESS)) and not any(part in name for part in _ELSEWHERE)


_SUBSCRIPTIONS = (
    ((Element("interfaces"),), _from_interfaces, False),
    ((Element(DATABASE),), _from_database, False),
    ((Element("lldp"),), lambda _leaf: True, True),
    ((Element("system"),), lambda _leaf: True, False),
)


class _Ping:
    """RDMA pings of one host to some of its probe targets: a message of 64 bytes and its acknowledgement for each sample.

    A message has the delay of the probe's path; its acknowledgement does not wait in queues, as with a priority for control traffic.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric, topology = fabric, fabric.topology
        host = int(fabric.probe_pairs[0, 0]) // topology.rails if len(fabric.probe_pairs) else 0
        self._pairs = np.flatnonzero(fabric.probe_pairs[:, 0] // topology.rails == host)[:PING_PAIRS_MAX]
        self.host = topology.device_names[host]

    def write(self, step: Step, out: "_Pcap") -> None:
        """Write the messages sent in a step and their acknowledgements, in order of time."""
        config = self._fabric.config
        count = len(step.latency_ns)
        if not count or not len(self._pairs):
            return
        sent = config.start_ns + step.first_ns + config.sample_ns * np.arange(count)
        psn = (step.first_ns // config.sample_ns + np.arange(count)) % 2**24
        parts: list[tuple[np.ndarray, np.ndarray, int]] = []
        for number in self._pairs.tolist():
            source, target = (np.full(count, end) for end in self._fabric.probe_pairs[number])
            delay = step.latency_ns[:, number]
            pair, none = np.full(count, 0x800000 + number), np.zeros(count, bool)
            there = roce.Ends(source, target, address_of(source), address_of(target), np.full(count, 0xC000 + number))
            back = roce.Ends(target, source, address_of(target), address_of(source), np.full(count, 0xC000 + number))
            request = roce.headers(there, roce.SEND_ONLY, pair, psn, none, PING_BYTES)
            answer = roce.headers(back, roce.ACKNOWLEDGE, pair, psn, none)
            parts += [(sent, request, roce.wire_bytes(roce.SEND_ONLY, PING_BYTES))]
            parts += [(sent + delay + delay.min(), answer, roce.wire_bytes(roce.ACKNOWLEDGE))]
        out.frames(parts)


class _Pcap:
    """A capture file, written in order of time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._file.write(_PCAP_HEAD)
        self.bytes = len(_PCAP_HEAD)

    def __enter__(self) -> "_Pcap":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, datagrams: MessageBuffer, ts: int, source: str, port: int) -> None:
        """Write datagrams from an address to the collector, captured at ``ts``."""
        for body in datagrams:
            udp = struct.pack(">HHHH", port, port, 8 + len(body), 0) + body
            ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(COLLECTOR).packed
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
            checksum = sum(struct.unpack(">10H", head))
            checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
            frame = bytes(12) + b"\x08\x00" + head[:10] + struct.pack(">H", checksum) + head[12:] + udp
            self._add(struct.pack("<IIII", ts // NS_PER_S, ts % NS_PER_S, len(frame), len(frame)) + frame)

    def frames(self, parts: list[tuple[np.ndarray, np.ndarray, int]]) -> None:
        """Write packets sorted by time; a part is (times (n,) ns, captured bytes (n, bytes), length of the whole packet)."""
        records = []
        for ts, header, length in parts:
            record = np.zeros(
                len(ts), [("s", "<u4"), ("ns", "<u4"), ("caught", "<u4"), ("length", "<u4"), ("bytes", "u1", header.shape[1])]
            )
            record["s"], record["ns"], record["caught"], record["length"] = ts // NS_PER_S, ts % NS_PER_S, header.shape[1], length
            record["bytes"] = header
            records += list(zip(ts.tolist(), _split(record), strict=True))
        self._add(b"".join(raw for _, raw in sorted(records, key=lambda pair: pair[0])))

    def _add(self, raw: bytes) -> None:
        self._file.write(raw)
        self.bytes += len(raw)


def _split(records: np.ndarray) -> list[bytes]:
    raw, size = records.tobytes(), records.dtype.itemsize
    return [raw[first:last] for first, last in pairwise(range(0, len(raw) + 1, size))]
