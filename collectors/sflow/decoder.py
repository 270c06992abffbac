"""sFlow version 5 datagrams to columns: one call decodes many, without Python code per sample.

A kernel walks datagrams, samples and records. It checks every length and count against the bytes received before it reads, and
arrays are as large as these bytes can fill. So any bytes give rows or a counted fault, in time and memory linear in their length. A
fault loses the rest of its sample, or of its datagram where the sample's own length is wrong; what was decoded before it stays.

Faults of a datagram, of which the first counts:

* ``short``, ``version``, ``address``: the header is cut, of another version, or has an address of an unknown kind;
* ``cut``: the datagram ends before its samples;
* ``sample``, ``record``: one is shorter than its fields, or longer than what contains it;
* ``samples_max``, ``records_max``: there are more of them than the limit;
* ``interfaces_max``: there is no room for another interface.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from ..wire.hash_table import SEED, entry_of, mix_bytes
from ..wire.octets import octets, record_type, u32, u64
from . import records as tables
from .agents import LATE, REFUSED, REPEATED, Agents, Tracked, newly_lost

FAULTS = ("", "short", "version", "address", "cut", "sample", "record", "samples_max", "records_max", "interfaces_max")
_SHORT, _VERSION, _ADDRESS, _CUT, _SAMPLE, _RECORD, _SAMPLES_MAX, _RECORDS_MAX, _INTERFACES_MAX = range(1, len(FAULTS))
TALLY = ("counter_samples", "flow_samples", "discarded_packets", "unknown_samples", "unknown_records", "late_counter_samples")
_COUNTERS, _FLOWS, _DISCARDED, _UNKNOWN_SAMPLES, _UNKNOWN_RECORDS, _LATE_COUNTERS = range(len(TALLY))

# Counter rows that are decoded together.
_BLOCK = 64
# Length of an interface's name.
NAME_BYTES_MAX = 255
HAS_HEADER, HAS_QUEUE, HAS_TRANSIT, HAS_DEPTH = 1, 2, 4, 8
NO_REASON = -1

HEAD = record_type("u8 high low", "i8 body", "u4 sub_agent sequence uptime samples", "u1 kind fault")
# One counter sample; its counters are in ``Samples.columns``. Unknown values are all ones.
COUNTER = record_type(
    "i8 generic_at ethernet_at", "i4 datagram place", "u4 interface_type direction status promiscuous_mode", "? states_changed"
)
# One flow sample or discarded packet; ``input`` and ``output`` are -1 without an interface, or where no row needs it.
FLOW = record_type(
    "i8 header_at",
    "i4 datagram input output reason",
    "u4 header_bytes frame_bytes protocol rate queue transit_ns depth_bytes",
    "u1 flags",
    "? notice",
)
# A counter record that becomes rows of ``reading``.
RECORD = record_type("i8 at", "i4 datagram place format size")
# The new name of an interface: ``size`` bytes at ``at``.
NAMED = record_type("i8 at", "i4 place size")


class SflowLimits(NamedTuple):
    """How much of one datagram is decoded."""

    samples_max: int = 1024
    records_max: int = 64
    header_bytes_max: int = 512


DEFAULT_LIMITS = SflowLimits()


class _SampleRows(NamedTuple):
    """The output of the kernels: rows by kind, the number of each in use (``filled`` (4,) int64), and counts.

    ``counters`` (c,) ``COUNTER``, ``flows`` (f,) ``FLOW``, ``records`` (r,) ``RECORD``, ``named`` (m,) ``NAMED``; ``tally`` int64 by
    ``TALLY``; of each of n datagrams ``lost`` (n,) int64 samples and ``faults`` (n,) uint8.
    """

    counters: np.ndarray
    flows: np.ndarray
    records: np.ndarray
    named: np.ndarray
    filled: np.ndarray
    tally: np.ndarray
    lost: np.ndarray
    faults: np.ndarray


class _Origin(NamedTuple):
    """The datagram that a sample came in, its agent, and the agent's epoch in ns."""

    datagram: int
    agent: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Decoded datagrams; ``datagram`` of each row indexes ``heads``, ``tracked``, ``faults`` and ``lost``.

    ``columns`` has a row for each of ``records.COLUMNS``, all ones where the agent lacks the counter; ``unknowns`` counts those.
    ``faults`` index ``FAULTS``, ``lost`` are the samples that each datagram's agent reports lost since its previous datagram,
    ``tally`` counts by ``TALLY``.
    """

    heads: np.ndarray
    tracked: Tracked
    columns: np.ndarray
    unknowns: np.ndarray
    counters: np.ndarray
    flows: np.ndarray
    records: np.ndarray
    named: np.ndarray
    faults: np.ndarray
    lost: np.ndarray
    tally: np.ndarray


def decode(
    buffer: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, ts: np.ndarray, agents: Agents, limits: SflowLimits = DEFAULT_LIMITS
) -> Samples:  # fmt: skip
    """Decode the datagrams ``buffer[offsets[k] : offsets[k] + lengths[k]]``, received at ``ts`` ns.

    Repeated datagrams, those of agents beyond the limit, and the counter samples of late datagrams are left out. Raises
    ``ValueError`` for a datagram that reaches beyond the buffer.
    """
    if offsets.size and (offsets.min() < 0 or lengths.min() < 0 or (offsets + lengths).max() > buffer.size):
        raise ValueError("a datagram reaches beyond the buffer")
    buffer = octets(buffer)
    heads = np.zeros(len(offsets), HEAD)
    _heads(buffer, offsets, lengths, heads)
    tracked = agents.track(heads, ts)
    # The sizes are the fewest bytes that each kind of row can come from.
    total = int(lengths.sum())
    room = (np.empty(total // size + 1, dtype) for size, dtype in ((80, COUNTER), (40, FLOW), (36, RECORD), (16, NAMED)))
    sums = (np.zeros(size, np.int64) for size in (4, len(TALLY), len(offsets)))
    rows = _SampleRows._make((*room, *sums, heads["fault"].copy()))
    _walk(buffer, offsets, lengths, heads, tracked, limits, agents.interfaces, rows)
    counters, flows, records, named = (part[:count] for part, count in zip(rows, rows.filled.tolist(), strict=False))
    columns = np.empty((len(tables.COLUMNS), len(counters)), np.uint64)
    unknowns = np.zeros(len(columns), np.int64)
    _columns(buffer, counters, columns, unknowns)
    return Samples(heads, tracked, columns, unknowns, counters, flows, records, named, rows.faults, rows.lost, rows.tally)


@numba.njit(cache=True, nogil=True)
def _heads(buffer, offsets, lengths, heads):
    """Read the headers of n datagrams: ``buffer`` uint8, ``offsets`` and ``lengths`` (n,) int64 bytes, ``heads`` (n,) ``HEAD``, zeroed."""
    for k in range(len(offsets)):
        head, at, end = heads[k], offsets[k], offsets[k] + lengths[k]
        if at + 8 > end:
            head.fault = _SHORT
            continue
        if u32(buffer, at) != 5:
            head.fault = _VERSION
            continue
        kind = u32(buffer, at + 4)
        if kind > 2:
            head.fault = _ADDRESS
            continue
        rest = at + 8 + (4 if kind == 1 else 16 if kind == 2 else 0)
        if rest + 16 > end:
            head.fault = _SHORT
            continue
        head.kind = kind
        if kind == 1:
            head.low = u32(buffer, at + 8)
        elif kind == 2:
            head.high, head.low = u64(buffer, at + 8), u64(buffer, at + 16)
        head.sub_agent, head.sequence = u32(buffer, rest), u32(buffer, rest + 4)
        head.uptime, head.samples, head.body = u32(buffer, rest + 8), u32(buffer, rest + 12), rest + 16


@numba.njit(cache=True, nogil=True)
def _walk(buffer, offsets, lengths, heads, tracked, limits, interfaces, rows):
    """Decode the samples of n datagrams into ``rows``, a ``_SampleRows``.

    ``buffer`` uint8, ``offsets`` and ``lengths`` (n,) int64 bytes, ``heads`` (n,) ``HEAD``, ``tracked`` a ``Tracked`` of n, ``limits``
    an ``SflowLimits``, ``interfaces`` an ``Interfaces``.
    """
    for k in range(len(offsets)):
        if heads[k].fault or tracked.verdict[k] in (REPEATED, REFUSED):
            continue
        origin = _Origin(k, tracked.agent[k], tracked.epoch[k])
        at, end, fault = heads[k].body, offsets[k] + lengths[k], 0
        if heads[k].samples > limits.samples_max:
            fault = _SAMPLES_MAX
        for _ in range(min(np.int64(heads[k].samples), limits.samples_max)):
            if at + 8 > end or u32(buffer, at + 4) > end - at - 8:
                fault = fault or _CUT
                break
            kind, at, sample_end = u32(buffer, at), at + 8, at + 8 + u32(buffer, at + 4)
            found = 0
            if kind in (tables.COUNTERS, tables.COUNTERS_EXPANDED) and tracked.verdict[k] == LATE:
                # Counters get the time of arrival, so those of a late datagram would go backwards.
                rows.tally[_LATE_COUNTERS] += 1
            elif kind in (tables.COUNTERS, tables.COUNTERS_EXPANDED):
                rows.tally[_COUNTERS] += 1
                found = _counter_sample(buffer, at, sample_end, kind == tables.COUNTERS_EXPANDED, origin, limits, interfaces, rows)
            elif kind in (tables.FLOW, tables.FLOW_EXPANDED, tables.DISCARDED):
                rows.tally[_DISCARDED if kind == tables.DISCARDED else _FLOWS] += 1
                found = _flow_sample(buffer, at, sample_end, kind, origin, limits, interfaces, rows)
            else:
                rows.tally[_UNKNOWN_SAMPLES] += 1
            fault = fault or found
            at = sample_end
        rows.faults[k] = fault


@numba.njit(inline="always")
def _interface_of(agent, kind, index, interfaces):
    """Return the entry of an interface in ``interfaces``, an ``Interfaces``; -1 where there is no room for it."""
    return entry_of(interfaces.table, np.uint64(agent), np.uint64(kind), np.uint64(index))


@numba.njit(inline="always")
def _counter_sample(buffer, at, end, expanded, origin, limits, interfaces, rows):
    """Decode one counter sample; return its fault. All its records belong to one interface, that of the generic record."""
    if at + (16 if expanded else 12) > end:
        return _SAMPLE
    source, at = u32(buffer, at + 4), at + 8
    kind, index = source >> 24, source & 0xFFFFFF
    if expanded:
        kind, index, at = source, u32(buffer, at), at + 4
    generic_at, ethernet_at, name_at, last, fault = _counter_records(
        buffer, at, end, limits.records_max, origin.datagram, rows.records, rows.filled[2], rows.tally
    )
    if generic_at < 0 and ethernet_at < 0 and name_at < 0 and last == rows.filled[2]:
        return fault
    if generic_at >= 0:
        kind, index = 0, u32(buffer, generic_at)
    place = _interface_of(origin.agent, kind, index, interfaces)
    if place < 0:
        return _INTERFACES_MAX
    for k in range(rows.filled[2], last):
        rows.records[k].place = place
    rows.filled[2] = last
    if name_at >= 0 and u32(buffer, name_at):
        name = mix_bytes(interfaces.table.state[SEED], buffer, name_at + 4, name_at + 4 + u32(buffer, name_at))
        # Texts are made when a name changes, not for every sample.
        if interfaces.states[place].name != name:
            interfaces.states[place].name = name
            named = rows.named[rows.filled[3]]
            named.at, named.place, named.size = name_at + 4, place, u32(buffer, name_at)
            rows.filled[3] += 1
    if generic_at >= 0 or ethernet_at >= 0:
        row = rows.counters[rows.filled[0]]
        row.generic_at, row.ethernet_at, row.datagram, row.place = generic_at, ethernet_at, origin.datagram, place
        _states(buffer, generic_at, interfaces.states[place], row)
        rows.filled[0] += 1
    return fault


@numba.njit(inline="always")
def _counter_records(buffer, at, end, records_max, datagram, records, last, tally):
    """Return the offsets of the generic record, the Ethernet record and the name (-1: none), the rows of records, and the fault."""
    number_of_records, at, fault = u32(buffer, at), at + 4, 0
    generic_at = ethernet_at = name_at = -1
    if number_of_records > records_max:
        fault = _RECORDS_MAX
    for _ in range(min(number_of_records, records_max)):
        if at + 8 > end or u32(buffer, at + 4) > end - at - 8:
            fault = _RECORD
            break
        what, size, at = u32(buffer, at), u32(buffer, at + 4), at + 8
        if not _is_known(what):
            tally[_UNKNOWN_RECORDS] += 1
        elif not _is_whole(buffer, at, what, size):
            fault = _RECORD
        elif what == tables.GENERIC:
            generic_at = at
        elif what == tables.ETHERNET:
            ethernet_at = at
        elif what == tables.PORT_NAME:
            name_at = at
        else:
            record, last = records[last], last + 1
            record.at, record.datagram, record.format, record.size = at, datagram, what, size
        at += size
    return generic_at, ethernet_at, name_at, last, fault


@numba.njit(inline="always")
def _is_known(what):
    """Return whether records of this format are decoded."""
    if what in (tables.GENERIC, tables.ETHERNET, tables.PORT_NAME):
        return True
    return what in (tables.INFINIBAND, tables.SFP, tables.PROCESSOR, tables.QUEUE_LENGTH)


@numba.njit(inline="always")
def _is_whole(buffer, at, what, size):
    """Return whether a known record is long enough for its fields."""
    if what == tables.GENERIC:
        return size >= tables.GENERIC_BYTES
    if what == tables.ETHERNET:
        return size >= tables.ETHERNET_BYTES
    if what == tables.PORT_NAME:
        return size >= 4 and u32(buffer, at) <= min(size - 4, NAME_BYTES_MAX)
    if what == tables.INFINIBAND:
        return size in (64, 80)
    if what == tables.SFP:
        return size >= tables.SFP_BYTES
    return size >= (tables.PROCESSOR_BYTES if what == tables.PROCESSOR else tables.QUEUE_LENGTH_BYTES)


@numba.njit(cache=True, nogil=True)
def _columns(buffer, rows, columns, unknowns):
    """Decode the counters, column by column over as many rows as stay in the nearest cache; count unknown values.

    ``buffer`` uint8, ``rows`` (n,) ``COUNTER``, ``columns`` (columns, n) uint64, ``unknowns`` (columns,) int64.
    """
    unknown = np.uint64(0xFFFFFFFFFFFFFFFF)
    for first in range(0, len(rows), _BLOCK):
        last = min(first + _BLOCK, len(rows))
        for column in range(len(columns)):
            ethernet, wide, at = tables.COLUMN_ETHERNET[column], tables.COLUMN_WIDE[column], tables.COLUMN_AT[column]
            for k in range(first, last):
                base = rows[k].ethernet_at if ethernet else rows[k].generic_at
                value = unknown
                if base >= 0:
                    if wide:
                        value = u64(buffer, base + at)
                    else:
                        value = np.uint64(u32(buffer, base + at))
                        if value == np.uint64(0xFFFFFFFF):
                            value = unknown
                columns[column, k] = value
                unknowns[column] += value == unknown


@numba.njit(inline="always")
def _states(buffer, generic_at, state, row):
    """Decode an interface's states into its ``COUNTER`` row, and mark it if they differ from those in ``state``, its ``_INTERFACE`` row."""
    row.states_changed = False
    row.interface_type = row.direction = row.status = row.promiscuous_mode = 0xFFFFFFFF
    if generic_at < 0:
        return
    row.interface_type, row.direction = u32(buffer, generic_at + 4), u32(buffer, generic_at + 16)
    row.status, row.promiscuous_mode = u32(buffer, generic_at + 20), u32(buffer, generic_at + 84)
    # Never 0, the initial value.
    states = np.uint64(row.interface_type) << np.uint64(33) ^ np.uint64(row.direction) << np.uint64(17)
    states ^= np.uint64(row.promiscuous_mode) << np.uint64(1) | np.uint64(1)
    if state.states != states:
        state.states = states
        row.states_changed = True


@numba.njit(inline="always")
def _flow_sample(buffer, at, end, kind, origin, limits, interfaces, rows):
    """Decode one flow sample or discarded packet; return its fault."""
    if at + (44 if kind == tables.FLOW_EXPANDED else 32) > end:
        return _SAMPLE
    flow, at = rows.flows[rows.filled[1]], at + 4
    flow.datagram, flow.reason, flow.flags, flow.notice = origin.datagram, NO_REASON, 0, kind == tables.DISCARDED
    flow.rate, flow.input, flow.output = 1, -1, -1
    flow.header_at, flow.header_bytes, flow.protocol = 0, 0, 0
    source = u32(buffer, at)
    source_kind, index = (source >> 24, source & 0xFFFFFF) if kind == tables.FLOW else (source, u32(buffer, at + 4))
    if kind == tables.FLOW:
        flow.rate, drops = u32(buffer, at + 4), u32(buffer, at + 12)
        input_, output, at = _interface(u32(buffer, at + 16)), _interface(u32(buffer, at + 20)), at + 24
    elif kind == tables.FLOW_EXPANDED:
        flow.rate, drops = u32(buffer, at + 8), u32(buffer, at + 16)
        input_ = (u32(buffer, at + 20), u32(buffer, at + 24))
        output, at = (u32(buffer, at + 28), u32(buffer, at + 32)), at + 36
    else:
        drops, input_, output = u32(buffer, at + 8), (np.int64(0), u32(buffer, at + 12)), (np.int64(0), u32(buffer, at + 16))
        flow.reason, at = min(u32(buffer, at + 20), 0x7FFFFFFF), at + 24
    if kind != tables.DISCARDED and output[0] == 1:
        # A sampled packet that was dropped: the output holds the reason.
        flow.reason = min(output[1], 0x7FFFFFFF)
    fault = _flow_records(buffer, at, end, limits, flow, rows.tally)
    rows.filled[1] += 1
    place = _interface_of(origin.agent, source_kind, index, interfaces)
    if place >= 0:
        rows.lost[origin.datagram] += newly_lost(interfaces.states[place], kind == tables.DISCARDED, drops, origin.epoch)
    if flow.reason != NO_REASON or flow.flags & HAS_DEPTH:
        flow.input, flow.output = _port(origin.agent, input_, interfaces), _port(origin.agent, output, interfaces)
    return fault


@numba.njit(inline="always")
def _interface(packed):
    """Return format and value of an interface in the compact encoding as in the expanded one."""
    value = packed & 0x3FFFFFFF
    return packed >> 30, 0xFFFFFFFF if value == 0x3FFFFFFF else value


@numba.njit(inline="always")
def _port(agent, interface, interfaces):
    """Return the entry of an interface given as (format, value), -1 where it is no single port."""
    return _interface_of(agent, 0, interface[1], interfaces) if interface[0] == 0 and 0 < interface[1] < 0xFFFFFFFF else -1


@numba.njit(inline="always")
def _flow_records(buffer, at, end, limits, flow, tally):
    """Decode the records of a flow sample into its ``FLOW`` row; return its fault."""
    number_of_records, at, fault = u32(buffer, at), at + 4, 0
    if number_of_records > limits.records_max:
        fault = _RECORDS_MAX
    for _ in range(min(number_of_records, limits.records_max)):
        if at + 8 > end or u32(buffer, at + 4) > end - at - 8:
            return _RECORD
        what, size, at = u32(buffer, at), u32(buffer, at + 4), at + 8
        if what == tables.HEADER:
            if size < 16 or u32(buffer, at + 12) > size - 16:
                fault = _RECORD
            else:
                flow.protocol, flow.frame_bytes = u32(buffer, at), u32(buffer, at + 4)
                flow.header_at, flow.header_bytes = at + 16, min(u32(buffer, at + 12), limits.header_bytes_max)
                flow.flags |= HAS_HEADER
        elif what in (tables.EGRESS_QUEUE, tables.TRANSIT, tables.QUEUE_DEPTH):
            if size < 4:
                fault = _RECORD
            elif what == tables.EGRESS_QUEUE:
                flow.queue, flow.flags = u32(buffer, at), flow.flags | HAS_QUEUE
            elif what == tables.TRANSIT:
                flow.transit_ns, flow.flags = u32(buffer, at), flow.flags | HAS_TRANSIT
            else:
                flow.depth_bytes, flow.flags = u32(buffer, at), flow.flags | HAS_DEPTH
        else:
            tally[_UNKNOWN_RECORDS] += 1
        at += size
    return fault
