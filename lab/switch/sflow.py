"""An sFlow version 5 agent (sflow.org, version 5; drops, queues and transit delay by their extensions).

Every structure is a NumPy record of big-endian words, so that thousands are filled in by one assignment per field.
"""

import ipaddress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .roce import Flows
from .script import LOSSLESS, SwitchSource, SwitchState
from .wire import MessageBuffer, join, rows

FLOW, COUNTERS, FLOW_EXPANDED, COUNTERS_EXPANDED, DISCARDED = 1, 2, 3, 4, 5
NO_BUFFER_SPACE, RED, ACL = 259, 260, 258

Fields = list[tuple[str, Any]]


def _words(*names: str) -> Fields:
    return [(name, ">u4") for name in names]


def _record(name: str, body: Fields) -> tuple[str, Any]:
    return (name, [*_words("tag", "length"), ("body", body)])


GENERIC: Fields = [
    *_words("index", "type"),
    ("speed", ">u8"),
    *_words("direction", "status"),
    *(("rx_bytes", ">u8"), *_words(*(f"rx_{what}" for what in ("unicast", "multicast", "broadcast", "discards", "errors", "unknown")))),
    *(("tx_bytes", ">u8"), *_words(*(f"tx_{what}" for what in ("unicast", "multicast", "broadcast", "discards", "errors")))),
    *_words("promiscuous"),
]
ETHERNET = _words(
    *("alignment", "fcs", "single", "multiple", "sqe", "deferred", "late", "excessive", "tx_internal", "carrier", "too_long"),
    *("rx_internal", "symbol"),
)
INFINIBAND: Fields = [
    *(("tx_packets", ">u8"), ("rx_packets", ">u8")),
    *_words("symbol", "recovery", "downed", "rx", "remote", "relay", "tx_discards", "tx_constraint", "rx_constraint", "integrity"),
    *_words("overrun", "vl15"),
]
LANES = 4
LANE = _words("index", "bias", "tx", "tx_min", "tx_max", "tx_wavelength", "rx", "rx_min", "rx_max", "rx_wavelength")
OPTICS: Fields = [*_words("module", "lanes", "millivolts", "millidegrees", "count"), ("lane", (np.dtype(LANE), (LANES,)))]
QUEUE_LENGTH = _words(
    *("queue", "segment_bytes", "segments", "length_0", "length_1", "length_2", "length_4", "length_8", "length_32", "length_128"),
    *("length_1024", "length_more", "dropped"),
)
# Records of a flow sample beside the packet's header, one word each.
FLOW_RECORDS = {"queue": 1036, "transit": 1039, "depth": 1040}
# Name: structure number, body.
RECORDS: dict[str, tuple[int, Fields]] = {
    "generic": (1, GENERIC),
    "ethernet": (2, ETHERNET),
    "infiniband": (9, INFINIBAND),
    "optics": (10, OPTICS),
    "queue_length": (1003, QUEUE_LENGTH),
    "port_name": (1005, []),
}


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Identity and format of an agent; a datagram has at most ``datagram_bytes_max`` bytes, but at least one sample."""

    address: str = "192.0.2.1"
    sub_agent: int = 0
    expanded: bool = False
    sampling_rate: int = 1000
    datagram_bytes_max: int = 1400
    records: tuple[str, ...] = ("generic", "ethernet", "queue_length", "port_name")
    flow_records: tuple[str, ...] = ("queue", "transit", "depth")


class Agent:
    """Makes the datagrams of one sub-agent; sequence numbers restart when the switch boots or ``restart`` is called."""

    def __init__(self, source: SwitchSource, config: AgentConfig | None = None) -> None:
        self._source, self._config = source, config or AgentConfig()
        packed = ipaddress.ip_address(self._config.address).packed
        self._address = np.frombuffer(packed, np.uint8)
        self._boot_ts = -1
        self.restart()

    def restart(self) -> None:
        """Reset all sequence numbers, like an agent that restarts."""
        ports = len(self._source.switch.ports)
        self._sequence = 0
        self._of_source = {kind: np.zeros(ports, np.int64) for kind in (COUNTERS, FLOW, DISCARDED)}

    def counters(self, ts: int) -> MessageBuffer:
        """Return the counter samples of all ports at ``ts``."""
        state = self._at(ts)
        ports = np.arange(len(self._source.switch.ports))
        widths = np.array([len(name.encode()) for name in self._source.switch.ports])
        named = "port_name" in self._config.records
        parts = []
        # Names are padded to whole words, and all samples in an array have one size.
        for width in np.unique(-(-widths // 4) * 4) if named else [0]:
            some = ports[(-(-widths // 4) * 4 == width)] if named else ports
            parts.append(self._pack(self._counter_samples(state, some, int(width)), ts))
        return join(parts)

    def flows(self, flows: Flows, ts: int) -> MessageBuffer:
        """Return flow samples: header, egress queue, delay in the switch, depth of the queue."""
        self._at(ts)
        expanded = self._config.expanded
        head = [("index_type", ">u4"), ("source", ">u4")] if expanded else [("source", ">u4")]
        between = ("input_format", "input", "output_format", "output") if expanded else ("input", "output")
        sample = self._samples(
            len(flows.in_port),
            FLOW_EXPANDED if expanded else FLOW,
            [*_words("sequence"), *head, *_words("rate", "pool", "drops", *between, "records")],
            [(1, "raw", _raw(flows)), *((FLOW_RECORDS[name], name, _words("value")) for name in self._config.flow_records)],
        )
        rank = self._rank(FLOW, flows.in_port)
        indexes = self._source.switch.if_indexes
        sample["sequence"], sample["source"], sample["rate"] = rank, indexes[flows.in_port], self._config.sampling_rate
        sample["pool"] = rank * self._config.sampling_rate
        sample["input"], sample["output"] = indexes[flows.in_port], indexes[flows.out_port]
        _fill_raw(sample["raw"]["body"], flows)
        values = {"queue": flows.queue, "transit": flows.delay_ns, "depth": flows.depth_bytes}
        for name in self._config.flow_records:
            # All ones mean "at least so much".
            sample[name]["body"]["value"] = np.minimum(values[name], 0xFFFFFFFF)
        return self._pack(sample, ts)

    def discards(self, flows: Flows, reasons: np.ndarray, ts: int) -> MessageBuffer:
        """Return notifications of dropped packets, with reason, header and egress queue."""
        self._at(ts)
        sample = self._samples(
            len(flows.in_port),
            DISCARDED,
            _words("sequence", "index_type", "source", "drops", "input", "output", "reason", "records"),
            [(1, "raw", _raw(flows)), (FLOW_RECORDS["queue"], "queue", _words("value"))],
        )
        indexes = self._source.switch.if_indexes
        sample["sequence"], sample["source"] = self._rank(DISCARDED, flows.in_port), indexes[flows.in_port]
        sample["input"], sample["output"], sample["reason"] = indexes[flows.in_port], indexes[flows.out_port], reasons
        _fill_raw(sample["raw"]["body"], flows)
        sample["queue"]["body"]["value"] = flows.queue
        return self._pack(sample, ts)

    def _at(self, ts: int) -> SwitchState:
        state = self._source.at([ts])
        boot = int(state.boot_ts[0])
        if boot != self._boot_ts:
            self._boot_ts = boot
            self.restart()
        return state

    def _samples(self, count: int, kind: int, head: Fields, records: list[tuple[int, str, Fields]]) -> np.ndarray:
        """Return zeroed samples with all tags and lengths in place."""
        dtype = np.dtype([*_words("tag", "length"), *head, *(_record(name, body) for _, name, body in records)])
        sample = np.zeros(count, dtype)
        sample["tag"], sample["length"], sample["records"] = kind, dtype.itemsize - 8, len(records)
        for number, name, body in records:
            sample[name]["tag"], sample[name]["length"] = number, np.dtype(body).itemsize
        return sample

    def _rank(self, kind: int, source: np.ndarray) -> np.ndarray:
        """Return the next sequence numbers of each sample's source, in order."""
        numbers = self._of_source[kind]
        order = np.argsort(source, kind="stable")
        counts = np.bincount(source, minlength=len(numbers))
        rank = np.empty(len(source), np.int64)
        rank[order] = np.arange(len(source)) - (np.cumsum(counts) - counts)[source[order]] + 1
        rank += numbers[source]
        numbers += counts
        return rank

    def _pack(self, samples: np.ndarray, ts: int) -> MessageBuffer:
        """Return datagrams of as many samples as fit; the last one has the rest."""
        address_type = 1 if len(self._address) == 4 else 2
        head: Fields = [*_words("version", "address_type"), ("address", ("u1", (len(self._address),)))]
        head += _words("sub_agent", "sequence", "uptime_ms", "count")
        fit = max(1, (self._config.datagram_bytes_max - np.dtype(head).itemsize) // samples.dtype.itemsize)
        parts = []
        for some in np.split(samples, [len(samples) // fit * fit]):
            if not len(some):
                continue
            each = min(fit, len(some))
            datagram = np.zeros(len(some) // each, np.dtype([*head, ("samples", (samples.dtype, (each,)))]))
            datagram["version"], datagram["address_type"], datagram["address"] = 5, address_type, self._address
            datagram["sub_agent"], datagram["count"] = self._config.sub_agent, each
            datagram["sequence"] = self._sequence + 1 + np.arange(len(datagram))
            datagram["uptime_ms"] = (ts - self._boot_ts) // 1_000_000 & 0xFFFFFFFF
            # Copied as bytes, since NumPy copies nested records field by field.
            datagram.view(np.uint8).reshape(len(datagram), -1)[:, np.dtype(head).itemsize :] = some.view(np.uint8).reshape(
                len(datagram), -1
            )
            self._sequence += len(datagram)
            parts.append(rows(datagram))
        return join(parts)

    def _counter_samples(self, state: SwitchState, ports: np.ndarray, name_bytes: int) -> np.ndarray:
        expanded = self._config.expanded
        head = [("index_type", ">u4"), ("source", ">u4")] if expanded else [("source", ">u4")]
        bodies = dict(RECORDS)
        bodies["port_name"] = (1005, [("length", ">u4"), ("text", f"S{name_bytes}")])
        records = [(bodies[name][0], name, bodies[name][1]) for name in self._config.records]
        kind = COUNTERS_EXPANDED if expanded else COUNTERS
        sample = self._samples(len(ports), kind, [*_words("sequence"), *head, *_words("records")], records)
        sample["sequence"], sample["source"] = self._rank(COUNTERS, ports), self._source.switch.if_indexes[ports]
        fill = {"generic": _generic, "ethernet": _ethernet, "infiniband": _infiniband, "optics": _optics, "queue_length": _queue_length}
        for name in self._config.records:
            if name == "port_name":
                names = [self._source.switch.ports[port].encode() for port in ports]
                sample[name]["body"]["length"], sample[name]["body"]["text"] = [len(text) for text in names], names
            else:
                fill[name](sample[name]["body"], self._source, state, ports)
        return sample


def _generic(body: np.ndarray, source: SwitchSource, state: SwitchState, ports: np.ndarray) -> None:
    body["index"], body["type"], body["direction"] = source.switch.if_indexes[ports], 6, 1
    body["speed"] = state.port("speed_bps")[0, ports]
    body["status"] = state.port("admin_up")[0, ports] | state.port("oper_up")[0, ports] << 1
    for side in ("rx", "tx"):
        body[f"{side}_bytes"] = state.port(f"{side}_bytes")[0, ports]
        body[f"{side}_unicast"] = state.port(f"{side}_unicast_packets")[0, ports]
        for what in ("discards", "errors"):
            body[f"{side}_{what}"] = state.port(f"{side}_{what}")[0, ports]
    # All ones: this agent does not count these.
    for name in ("rx_multicast", "rx_broadcast", "rx_unknown", "tx_multicast", "tx_broadcast"):
        body[name] = 0xFFFFFFFF


def _ethernet(body: np.ndarray, source: SwitchSource, state: SwitchState, ports: np.ndarray) -> None:
    body["fcs"], body["symbol"] = state.port("fcs_errors")[0, ports], state.port("symbol_errors")[0, ports]


def _infiniband(body: np.ndarray, source: SwitchSource, state: SwitchState, ports: np.ndarray) -> None:
    body["tx_packets"], body["rx_packets"] = state.port("tx_packets")[0, ports], state.port("rx_packets")[0, ports]
    body["symbol"], body["downed"] = state.port("symbol_errors")[0, ports], state.port("carrier_changes")[0, ports] // 2
    body["tx_discards"] = state.port("tx_discards")[0, ports]


def _optics(body: np.ndarray, source: SwitchSource, state: SwitchState, ports: np.ndarray) -> None:
    body["module"], body["lanes"], body["count"] = source.switch.if_indexes[ports], LANES, LANES
    body["millivolts"], body["millidegrees"] = 3300, 40_000 + 250 * (ports % 16)
    lane = body["lane"]
    lane["index"], lane["bias"] = np.arange(1, LANES + 1), 7500
    for side, power in (("tx", 1100), ("rx", 900)):
        lane[side], lane[f"{side}_min"], lane[f"{side}_max"], lane[f"{side}_wavelength"] = power, power - 200, power + 200, 1310


def _queue_length(body: np.ndarray, source: SwitchSource, state: SwitchState, ports: np.ndarray) -> None:
    """Fill in the histogram: marked packets in the last bin, all others in the first."""
    marked = state.queue("ecn_marked_packets")[0, ports, LOSSLESS]
    body["queue"], body["segment_bytes"], body["segments"] = LOSSLESS, 256, 8192
    body["length_0"], body["length_1024"] = state.queue("packets")[0, ports, LOSSLESS] - marked, marked
    body["dropped"] = state.queue("dropped_packets")[0, ports, LOSSLESS]


def _raw(flows: Flows) -> Fields:
    size = flows.header.shape[1]
    return [*_words("protocol", "frame_length", "stripped", "header_length"), ("header", ("u1", (-(-size // 4) * 4,)))]


def _fill_raw(body: np.ndarray, flows: Flows) -> None:
    size = flows.header.shape[1]
    body["protocol"], body["frame_length"], body["stripped"], body["header_length"] = 1, flows.length, 4, size
    body["header"][:, :size] = flows.header
