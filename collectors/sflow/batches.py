"""sFlow datagrams to batches: names of agents and interfaces, counts by kind, and gaps.

``frames`` makes the rows of each family; this module holds the state between calls.
"""

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_ntop

import numpy as np
import polars as pl

from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import WINDOW_NS
from ..base import Batch, gaps
from ..wire import capture, listen, roce, udp
from ..wire.hash_table import ENTRIES
from ..wire.headers import ROCE_PORT
from . import frames
from . import records as tables
from .agents import LATE, REFUSED, REPEATED, RESTARTED, Agents
from .decoder import DEFAULT_LIMITS, FAULTS, HAS_HEADER, TALLY, Samples, SflowLimits, decode

# Datagrams that are decoded together: few enough bytes to stay in the cache from one step to the next.
CHUNK_BYTES = 4 * 1024 * 1024

_NO_GAPS = FAMILIES["gap"].empty()
_KINDS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of devices (by agent address) and of ports (by "device/number"); an agent without address is ``nameless``."""

    devices: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, str] = field(default_factory=dict)
    nameless: str = "unknown"


class Rows:
    """Makes batches of datagrams; keeps agents, interfaces and names between calls, and counts."""

    def __init__(
        self, naming: Naming, *, agents_max: int = 4096, interfaces_max: int = 131_072, limits: SflowLimits = DEFAULT_LIMITS
    ) -> None:
        self._naming, self._limits = naming, limits
        self._agents = Agents(agents_max, interfaces_max)
        self._devices: list[str] = []
        self._ports: list[str] = []
        self._device_column, self._port_column = pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.String)
        self.counts: Counter[str] = Counter()

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of all devices that sent datagrams, in the order of their first ones."""
        return tuple(dict.fromkeys(self._devices))

    @property
    def interfaces(self) -> int:
        """The number of known interfaces."""
        return len(self._ports)

    def of(
        self,
        buffer: np.ndarray,
        offsets: np.ndarray,
        lengths: np.ndarray,
        ts: np.ndarray,
        sender_of: Callable[[int], str] = lambda _number: "",
    ) -> list[Batch]:
        """Return the rows of datagrams received at ``ts`` ns in this order; ``sender_of`` names the sender of the k-th."""
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        # Equal parts: a small last one would cost nearly as much as a whole one.
        parts = max(1, round(total / CHUNK_BYTES))
        cuts = np.searchsorted(ends, total * np.arange(1, parts) // parts) + 1
        batches = []
        for first, last in zip([0, *cuts], [*cuts, len(offsets)], strict=True):
            if first < last:
                chunk = slice(first, last)
                batches += self._chunk(buffer, offsets[chunk], lengths[chunk], ts[chunk], lambda k, first=first: sender_of(first + k))
        return batches

    def _chunk(
        self, buffer: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, ts: np.ndarray, sender_of: Callable[[int], str]
    ) -> list[Batch]:
        samples = decode(buffer, offsets, lengths, ts, self._agents, self._limits)
        self._name(buffer, samples)
        self._count(samples)
        view = frames.CommonColumns(samples, ts, self._device_column, self._port_column)
        made = [("gap", self._gaps(samples, view, ts, sender_of)), *frames.of_counters(buffer, samples, view)]
        return [Batch(family, frame) for family, frame in (*made, *self._of_flows(buffer, samples, view)) if frame.height]

    def _name(self, buffer: np.ndarray, samples: Samples) -> None:
        """Name new agents and interfaces: as configured, else as the agent reports, else by address and number."""
        high, low, kind = self._agents.table.keys.T
        before = len(self._devices), len(self._ports)
        for k in range(before[0], int(self._agents.table.state[ENTRIES])):
            address = _address(int(kind[k]) >> 32, int(high[k]), int(low[k])) or self._naming.nameless
            self._devices.append(self._naming.devices.get(address, address))
        interfaces = self._agents.interfaces.table
        agents, _, index = interfaces.keys.T
        for k in range(before[1], int(interfaces.state[ENTRIES])):
            self._ports.append(self._naming.ports.get(f"{self._devices[int(agents[k])]}/{index[k]}", str(index[k])))
        for row in samples.named:
            place, at = int(row["place"]), int(row["at"])
            if f"{self._devices[int(agents[place])]}/{index[place]}" not in self._naming.ports:
                name = buffer[at : at + int(row["size"])].tobytes().decode("utf-8", "replace").strip("\0 ")
                self._ports[place] = name or str(index[place])
        if before[0] != len(self._devices):
            self._device_column = pl.Series(self._devices, dtype=pl.String)
        if before[1] != len(self._ports) or len(samples.named):
            self._port_column = pl.Series(self._ports, dtype=pl.String)

    def _count(self, samples: Samples) -> None:
        verdicts, faults = samples.tracked.verdict, samples.faults
        self.counts["datagrams"] += len(faults)
        for name, number in zip(TALLY, samples.tally.tolist(), strict=True):
            self.counts[name] += number
        for code in np.unique(faults[faults > 0]).tolist():
            self.counts[f"malformed_{FAULTS[code]}"] += int(np.count_nonzero(faults == code))
        refused = (verdicts == REFUSED) & (samples.heads["fault"] == 0)
        for name, found in (
            ("repeated", verdicts == REPEATED),
            ("late", verdicts == LATE),
            ("restarts", verdicts == RESTARTED),
            ("agents_over", refused),
        ):
            self.counts[name] += int(np.count_nonzero(found))
        self.counts["missed_datagrams"] += int(samples.tracked.missed.sum())
        self.counts["missed_samples"] += int(samples.lost.sum())

    def _gaps(self, samples: Samples, view: frames.CommonColumns, ts: np.ndarray, sender_of: Callable[[int], str]) -> pl.DataFrame:
        """Return gaps: datagrams by their numbers, samples by the agents' own counts, and what could not be decoded."""
        tracked = samples.tracked
        (behind,) = np.nonzero(tracked.missed)
        if not len(behind) and not samples.lost.any() and not samples.faults.any() and not (tracked.verdict == REFUSED).any():
            return _NO_GAPS
        last = samples.heads["sequence"][behind].astype(np.int64) - 1
        first = last - tracked.missed[behind] + 1
        # Numbers wrap at 32 bits.
        numbers = {"from_sequence": first % 2**32, "to_sequence": last % 2**32, "missed": tracked.missed[behind]}
        skipped = FAMILIES["gap"].frame({**view.common(behind), **numbers, "what": "datagrams", "reason": "sequence"})
        # By window, device, what and reason: how many, and the newest datagram that shows it.
        missing: dict[tuple[int, str, str, str], list[int]] = {}

        def miss(k: int, device: str, what: str, missed: int, reason: str) -> None:
            found = missing.setdefault((int(ts[k]) // WINDOW_NS, device, what, reason), [0, k])
            found[0], found[1] = found[0] + missed, k

        for k in np.nonzero(samples.lost)[0].tolist():
            miss(k, self._devices[int(tracked.agent[k])], "samples", int(samples.lost[k]), "agent_drop")
        (bad,) = np.nonzero((samples.faults > 0) | ((tracked.verdict == REFUSED) & (samples.heads["fault"] == 0)))
        for k in bad.tolist():
            fault, agent = FAULTS[samples.faults[k]] or "agents_max", int(tracked.agent[k])
            device = self._devices[agent] if agent >= 0 else sender_of(k)
            miss(k, device, "datagrams", 1, "over_limit" if fault.endswith("_max") else "malformed")
        losses = [(device, what, missed, reason, None) for (_, device, what, reason), (missed, _) in missing.items()]
        others = gaps(frames.SOURCE, losses, [int(ts[k]) for _, k in missing.values()])
        return pl.concat([skipped, *(batch.frame for batch in others)]).sort("ts", maintain_order=True)

    def _of_flows(self, buffer: np.ndarray, samples: Samples, view: frames.CommonColumns) -> list[tuple[str, pl.DataFrame]]:
        flows = samples.flows
        if not len(flows):
            return []
        self.counts["flow_samples_without_header"] += int(np.count_nonzero((flows["flags"] & HAS_HEADER == 0) & ~flows["notice"]))
        links = np.zeros(len(flows), np.int64)
        for protocol, link in tables.LINK_OF_PROTOCOL.items():
            links[flows["protocol"] == protocol] = link
        # `network_layer` knows no other protocols: no addresses.
        links[links == 0] = -1
        ends = udp.ends(buffer, flows["header_at"].copy(), flows["header_bytes"].astype(np.int64), links)
        return [
            ("packet", self._packets(buffer, samples, view, links, ends)),
            *frames.of_flows(samples, view, ends),
        ]

    def _packets(
        self, buffer: np.ndarray, samples: Samples, view: frames.CommonColumns, links: np.ndarray, ends: np.ndarray
    ) -> pl.DataFrame:
        """Return the sampled RoCEv2 packets, without discarded ones that were not sampled: they stand for no others."""
        flows = samples.flows
        sampled = ~flows["notice"] & (flows["flags"] & HAS_HEADER != 0)
        is_roce = sampled & (ends["protocol"] == 17) & (ends["dst_port"] == ROCE_PORT)
        self._count_others(links, ends, sampled & ~is_roce)
        (chosen,) = np.nonzero(is_roce)
        offsets, lengths, wire_lengths = (flows[name][chosen].astype(np.int64) for name in ("header_at", "header_bytes", "frame_bytes"))
        # The decoder copies times through: indices in their place show which rows it decoded.
        decoded = roce.decode(buffer, offsets, lengths, chosen, links[chosen], wire_lengths=wire_lengths)
        for reason, number in decoded.skipped.items():
            self.counts[f"roce_skipped_{reason}"] += number
        self.counts["roce_samples"] += decoded.frame.height
        self.counts["roce_partial"] += decoded.partial
        rows = decoded.frame["ts"].to_numpy()
        return FAMILIES["packet"].frame(
            {
                **view.common(flows["datagram"][rows]),
                **{name: decoded.frame[name] for name in decoded.frame.columns if name != "ts"},
                # As sFlow counts: with the frame check sequence and the bytes that the agent stripped.
                "length": flows["frame_bytes"][rows],
                "sampling_rate": np.maximum(flows["rate"][rows], 1),
            },
        )

    def _count_others(self, links: np.ndarray, ends: np.ndarray, others: np.ndarray) -> None:
        undecoded = others & (links < 0)
        self.counts["flow_samples_other_link"] += int(np.count_nonzero(undecoded))
        self.counts["flow_samples_not_ip"] += int(np.count_nonzero(others & ~undecoded & (ends["version"] == 0)))
        protocols = np.bincount(ends["protocol"][others & (ends["version"] > 0)], minlength=256)
        for protocol in np.nonzero(protocols)[0].tolist():
            self.counts[f"flow_samples_{_KINDS.get(protocol, 'other_ip')}"] += int(protocols[protocol])


def _address(kind: int, high: int, low: int) -> str:
    if kind == 1:
        return inet_ntop(AF_INET, low.to_bytes(4))
    return inet_ntop(AF_INET6, high.to_bytes(8) + low.to_bytes(8)) if kind == 2 else ""


def warm() -> None:
    """Compile the kernels of datagrams and captures by decoding one datagram with a sample of each kind."""
    listen.warm()
    capture.warm()
    sampled = bytes(12) + b"\x08\x00E" + bytes(33)
    flow = struct.pack(">11I", 1, 1, 1, 1, 0, 1, 2, 2, tables.HEADER, 16 + len(sampled), 1) + struct.pack(">3I", 64, 0, len(sampled))
    flow += sampled + struct.pack(">3I", tables.TRANSIT, 4, 0)
    counters = struct.pack(">5I", 1, 1, 1, tables.GENERIC, tables.GENERIC_BYTES) + bytes(tables.GENERIC_BYTES)
    raw = struct.pack(">2I4s4I", 5, 1, bytes(4), 0, 1, 1, 2)
    for kind, body in ((tables.FLOW, flow), (tables.COUNTERS, counters)):
        raw += struct.pack(">2I", kind, len(body)) + body
    Rows(Naming(), agents_max=1, interfaces_max=4).of(
        np.frombuffer(raw, np.uint8), np.zeros(1, np.int64), np.array([len(raw)]), np.zeros(1, np.int64)
    )
