"""The fabric's state as columns: flows, ports and members of jobs, as the kernels walk over them.

A flow is one direction of a queue pair. It is in the table from the beginning, is active while it has something to send, and has a slot
(flow, hop) for each port of its path: ``queued[flow, hop]`` bytes wait at that port. Bytes count from header to checksum of the link layer,
in full-sized packets of ``PACKET_BYTES``; acknowledgements and notifications take no bytes.
"""

from typing import Any, NamedTuple

import numpy as np

from .routing import HOPS_MAX
from .topology import STAGES, FabricTopology

PAYLOAD_BYTES = 4096
# Ethernet 14, IPv4 20, UDP 8, BTH 12, ICRC 4, FCS 4.
PACKET_BYTES = PAYLOAD_BYTES + 62
# Preamble and gap between packets use line rate and are not counted.
WIRE_BYTES = PACKET_BYTES + 20

COUNT: Any = np.int64
REAL: Any = np.float64
FLAG: Any = np.bool_
HOPS_OF_I4: Any = (np.int32, (HOPS_MAX,))
HOPS_OF_I8: Any = (np.int64, (HOPS_MAX,))


def columns(**types: Any) -> np.dtype:
    """Return the dtype of a row with these fields."""
    return np.dtype([(name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in types.items()], align=True)


def rows(columns: np.dtype, count: int) -> np.recarray:
    """Return ``count`` rows of zeros. An array of records is one kernel argument, and a row is contiguous in memory."""
    return np.zeros(count, columns).view(np.recarray)


FLOW = columns(
    source=COUNT,
    target=COUNT,
    entropy=COUNT,  # UDP source port
    queue_pair=COUNT,
    ordinal=COUNT,  # index of the queue pair in its connection
    ahead=COUNT,  # the flow whose bytes this one forwards in a ring, -1: none
    member=COUNT,  # sending member
    other=COUNT,  # receiving member, -1: a host outside the job
    group=COUNT,  # group that waits for it in the current phase
    turn=COUNT,  # number of starts
    active=FLAG,
    total=COUNT,  # bytes of the current turn
    good=COUNT,  # bytes received in order, current turn
    flight=COUNT,  # bytes sent and neither received nor lost
    begin_ns=COUNT,
    received=COUNT,  # bytes of all turns, with duplicates
    resent=COUNT,
    hurt=COUNT,  # bytes lost in this step
    delivered=COUNT,  # bytes, in this step
    before=COUNT,  # bytes delivered in the previous step
    stall_ns=COUNT,  # sends nothing before this time
    deaf_ns=COUNT,  # the receiver discards everything before this time
    hops=COUNT,
    stale=FLAG,  # is rerouted at its next start
    pinned=FLAG,  # is never rerouted
    rate=REAL,  # bytes/s, allowed by congestion control
    goal=REAL,  # bytes/s, target rate
    alpha=REAL,
    clear=REAL,  # probability that a packet of this step was not marked
    timer_ns=COUNT,
    counted=COUNT,  # bytes since the byte counter last raised the rate
    timer_stage=COUNT,
    byte_stage=COUNT,
    quiet_ns=COUNT,  # until the receiver may send another notification
    decay_ns=COUNT,  # since the last notification or decay of alpha
    path=HOPS_OF_I4,
    queued=HOPS_OF_I8,
    arrived=HOPS_OF_I8,  # in this step
    moved=HOPS_OF_I8,  # out of the slot in this step
)

# Columns ``step_*`` are of the current step; other bytes and times are cumulative.
PORT = columns(
    rate=REAL,  # bytes/s on the line, without preambles and gaps
    limit=REAL,  # bytes/s that the sender can send
    sink=REAL,  # bytes/s that the receiver accepts: below ``rate`` only at a faulty host
    up=FLAG,
    lossless=FLAG,  # the receiver pauses the sender
    loss=REAL,  # probability that a packet is lost on the link
    seen=FLAG,  # the receiver counts the loss as an error
    ceiling=COUNT,  # bytes allowed in this step while paused, -1: not paused
    kmin=COUNT,
    kmax=COUNT,
    pmax=REAL,
    step_demand=COUNT,
    step_cap=COUNT,
    step_sent=COUNT,
    step_scan=COUNT,
    step_done=COUNT,
    step_returned=COUNT,
    step_excess=COUNT,
    step_lose=COUNT,
    load=COUNT,  # active flows
    listed=COUNT,
    depth=COUNT,  # bytes in the queue of the port
    depth_before=COUNT,
    held=COUNT,  # bytes that arrived by this port and wait in the receiving switch
    held_before=COUNT,
    threshold=COUNT,  # bytes of ``held`` above which the receiver pauses
    sent=COUNT,
    dropped=COUNT,  # in the queue of the port
    vanished=COUNT,  # lost on the link, uncounted
    broken=COUNT,  # lost on the link, counted as errors
    marked=REAL,  # packets, with fraction
    paused_ns=COUNT,
    pauses=COUNT,
    frames=COUNT,
    depth_max=COUNT,  # maxima since the last poll
    held_max=COUNT,
    headroom_max=COUNT,
)

# Cumulative counters of the adapters.
ADAPTER = columns(
    ecn_marked=REAL,  # packets, with fraction
    cnp_sent=COUNT,
    cnp_handled=COUNT,
    out_of_sequence=COUNT,
    sequence_error=COUNT,
    ack_timeout=COUNT,
    resent=COUNT,  # packets
)


class Tick(NamedTuple):
    """One step as kernels take it, times in ns since the fabric's start."""

    number: int
    now_ns: int  # where it begins
    ns: int  # how long it is
    nvlink_rate: float  # bytes/s
    seed: int


class Order(NamedTuple):
    """Slots of the active flows by stage: ``slot[start[s]:start[s + 1]]`` is stage s, each flow << 3 | hop.

    ``flows[:count[0]]`` are the active flows, ``ports[:count[1]]`` the ports on their paths. All others are idle.
    """

    slot: np.ndarray
    start: np.ndarray
    flows: np.ndarray
    ports: np.ndarray
    count: np.ndarray


def make_flows(count: int) -> np.recarray:
    """Return idle flows."""
    flows = rows(FLOW, count)
    flows.path[:] = -1
    flows.ahead[:] = flows.group[:] = flows.other[:] = -1
    flows.stale[:] = True
    flows.clear[:] = 1.0
    return flows


def make_ports(topology: FabricTopology) -> np.recarray:
    """Return ports that are up, lossless and empty; marking thresholds are the caller's to set."""
    ports = rows(PORT, topology.ports)
    for name in ("rate", "limit", "sink"):
        ports[name] = topology.speed_bps / 8 * PACKET_BYTES / WIRE_BYTES
    ports.up[:] = ports.lossless[:] = True
    ports.ceiling[:] = -1
    return ports


def make_order(flows: int, ports: int) -> Order:
    """Return an order without active flows."""
    slots = np.zeros(flows * HOPS_MAX, np.int32), np.zeros(STAGES + 1, np.int64)
    return Order(*slots, np.zeros(flows, np.int32), np.zeros(ports, np.int32), np.zeros(2, np.int64))
