"""The records of sFlow version 5 as tables: the offset and width of each field, and the column that it becomes.

sFlow Version 5 (sflow.org, 2004) and its extensions for InfiniBand, optics, queue lengths, dropped packets and transit
delay. All integers are big-endian; a field of all ones is unknown to the agent.
"""

from typing import NamedTuple

import numpy as np

VERSION, PORT = 5, 6343

# Sample formats of enterprise 0.
FLOW, COUNTERS, FLOW_EXPANDED, COUNTERS_EXPANDED, DISCARDED = 1, 2, 3, 4, 5
# Flow records of enterprise 0.
HEADER, EGRESS_QUEUE, TRANSIT, QUEUE_DEPTH = 1, 1036, 1039, 1040
# Counter records of enterprise 0.
GENERIC, ETHERNET, INFINIBAND, SFP, PROCESSOR, QUEUE_LENGTH, PORT_NAME = 1, 2, 9, 10, 1001, 1003, 1005
GENERIC_BYTES, ETHERNET_BYTES = 88, 52
# Header protocols of a sampled header, and the link types of capture files that equal them.
PROTOCOL_ETHERNET, PROTOCOL_IPV4, PROTOCOL_IPV6 = 1, 11, 12
LINK_OF_PROTOCOL = {PROTOCOL_ETHERNET: 1, PROTOCOL_IPV4: 228, PROTOCOL_IPV6: 229}

# Columns of `port`: name, record, offset, bytes.
_PACKETS = ("unicast_packets", "multicast_packets", "broadcast_packets", "discards", "errors")
_ETHERNET_COLUMNS = (
    *("alignment_errors", "fcs_errors", "single_collisions", "multiple_collisions", "sqe_test_errors", "deferred_transmissions"),
    *("late_collisions", "excessive_collisions", "internal_tx_errors", "carrier_sense_errors", "frame_too_long_errors"),
    *("internal_rx_errors", "symbol_errors"),
)
_COUNTERS = (
    ("speed_bps", GENERIC, 8, 8),
    ("rx_bytes", GENERIC, 24, 8),
    *((f"rx_{name}", GENERIC, 32 + 4 * k, 4) for k, name in enumerate((*_PACKETS, "unknown_protocols"))),
    ("tx_bytes", GENERIC, 56, 8),
    *((f"tx_{name}", GENERIC, 64 + 4 * k, 4) for k, name in enumerate(_PACKETS)),
    *((name, ETHERNET, 4 * k, 4) for k, name in enumerate(_ETHERNET_COLUMNS)),
)
COLUMNS = tuple(name for name, *_ in _COUNTERS)
COLUMN_ETHERNET = np.array([record == ETHERNET for _, record, _, _ in _COUNTERS])
COLUMN_AT = np.array([at for _, _, at, _ in _COUNTERS], np.int64)
COLUMN_WIDE = np.array([size == 8 for *_, size in _COUNTERS])
# Fields of the generic record that no column holds, by the field of ``decoder.COUNTER``; published when they change.
STATES = {"interface_type": "ifType", "direction": "ifDirection", "promiscuous_mode": "ifPromiscuousMode"}


class Value(NamedTuple):
    """One field of a record that becomes a row of ``reading``; name and scale come from the dictionary unless given here."""

    field: str
    at: int
    size: int = 4
    signed: bool = False
    name: str = ""
    scale: float = 1.0


def _words(first: int, *fields: str) -> tuple[Value, ...]:
    return tuple(Value(field, first + 4 * k) for k, field in enumerate(fields))


_INFINIBAND_ERRORS = (
    "SymbolErrorCounter",
    "LinkErrorRecoveryCounter",
    "LinkDownedCounter",
    "PortRcvErrors",
    "PortRcvRemotePhysicalErrors",
    "PortRcvSwitchRelayErrors",
    "PortXmitDiscards",
    "PortXmitConstraintErrors",
    "PortRcvConstraintErrors",
    "LocalLinkIntegrityErrors",
    "ExcessiveBufferOverrunErrors",
    "VL15Dropped",
)
# The draft has no data counters; agents in the field put them before the packets, and the record's length shows it. They are rows of
# `reading`, since they are wider than the columns of `port` that this source fills and the error counters stop at their maximum.
INFINIBAND_VALUES = {
    64: (Value("PortXmitPkts", 0, 8), Value("PortRcvPkts", 8, 8), *_words(16, *_INFINIBAND_ERRORS)),
    80: (
        # InfiniBand counts data in words of four bytes.
        Value("PortXmitData", 0, 8, name="tx_bytes", scale=4.0),
        Value("PortRcvData", 8, 8, name="rx_bytes", scale=4.0),
        Value("PortXmitPkts", 16, 8),
        Value("PortRcvPkts", 24, 8),
        *_words(32, *_INFINIBAND_ERRORS),
    ),
}

SFP_BYTES, LANE_BYTES, LANES_MAX = 20, 40, 16
# The number of lanes that follow, and the index of a lane.
SFP_LANES, LANE_INDEX = Value("num_lanes", 16), Value("index", 0)
MODULE_VALUES = (
    *_words(0, "module_id", "module_num_lanes", "module_supply_voltage"),
    Value("module_temperature", 12, signed=True),
)
LANE_VALUES = _words(
    4,
    *("tx_bias_current", "tx_power", "tx_power_min", "tx_power_max", "tx_wavelength"),
    *("rx_power", "rx_power_min", "rx_power_max", "rx_wavelength"),
)

PROCESSOR_BYTES = 28
PROCESSOR_VALUES = (*_words(0, "5s_cpu", "1m_cpu", "5m_cpu"), Value("total_memory", 12, 8), Value("free_memory", 20, 8))

# Packets that found the queue at most this many segments long on arrival, and longer than in the previous class.
QUEUE_LENGTH_BYTES, QUEUE_INDEX = 52, Value("queueIndex", 0)
QUEUE_LENGTH_VALUES = _words(
    4,
    "segmentSize",
    "queueSegments",
    *(f"queueLength{name}" for name in ("0", "1", "2", "4", "8", "32", "128", "1024", "More")),
    "dropped",
)

_ICMP_REASONS = (
    *("net_unreachable", "host_unreachable", "protocol_unreachable", "port_unreachable", "frag_needed"),
    *("src_route_failed", "dst_net_unknown", "dst_host_unknown", "src_host_isolated", "dst_net_prohibited"),
    *("dst_host_prohibited", "dst_net_tos_unreachable", "dst_host_tos_unreachable", "comm_admin_prohibited"),
    *("host_precedence_violation", "precedence_cutoff"),
)
_DROP_REASONS = (
    *("unknown", "ttl_exceeded", "acl", "no_buffer_space", "red", "traffic_shaping", "pkt_too_big"),
    *("src_mac_is_multicast", "vlan_tag_mismatch", "ingress_vlan_filter", "ingress_spanning_tree_filter"),
    *("port_list_is_empty", "port_loopback_filter", "blackhole_route", "non_ip", "uc_dip_over_mc_dmac"),
    *("dip_is_loopback_address", "sip_is_mc", "sip_is_loopback_address", "ip_header_corrupted"),
    *("ipv4_sip_is_limited_bc", "ipv6_mc_dip_reserved_scope", "ipv6_mc_dip_interface_local_scope"),
    *("unresolved_neigh", "mc_reverse_path_forwarding", "non_routable_packet", "decap_error"),
    *("overlay_smac_is_mc", "unknown_l2", "unknown_l3", "unknown_l3_exception", "unknown_buffer"),
    *("unknown_tunnel", "unknown_l4"),
)
REASONS = dict(enumerate(_ICMP_REASONS)) | dict(enumerate(_DROP_REASONS, start=256))
