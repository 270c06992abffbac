"""RoCEv2 sequence numbers: losses, retransmissions, and the latency of acknowledgements.

A *flow* is (source, destination, destination queue pair). Its requests carry packet sequence numbers modulo 2^24; a difference below
2^23 is ahead, otherwise behind. A number ahead of the expected one is a gap. A number behind it is a repeat, unless it is one of the
last ``REMEMBERED`` numbers and was missing: then other packets overtook it.

An RDMA READ of L bytes consumes one number for each packet of its response, ceil(L / path MTU). The MTU is the payload of any first
or middle packet of the flow or its response; until one was seen, anything from ceil(L / 4096) to ceil(L / 256) is accepted. A jump
of more than ``RESTART_SPAN`` either way is a new connection, neither a gap nor a repeat. The numbers inside one read response are
followed in the same way.

Latency is the time from a request packet to the first acknowledgement (ACK, read response, atomic acknowledge) that covers its
number. Acknowledgements are cumulative; a negative one covers all numbers before its own. An overtaken request waits like any
other. A retransmitted request gives no sample (Karn's rule: the acknowledgement may be for either packet).

Acknowledgements carry only the requester's queue pair. So a flow of them is bound to a request flow of the opposite direction, when
exactly one unbound flow has outstanding requests around the number. If several fit, the requests that it may cover give no sample.
If only a flow fits that is bound to another flow of acknowledgements, one of the bindings is wrong: its requests so far give no
sample, and it becomes unbound. A request flow that is contested more often than once per ``CONTEST_COST`` samples for long is not
bound any more.

Limits: ``OUTSTANDING_MAX`` requests wait per flow, none longer than ``WAIT_NS``. With more than ``CANDIDATES_MAX`` unbound request
flows none is bound; with more bound ones none is contested.
"""

import numba
import numpy as np

from .state import PENDING

RESTART_SPAN = 1 << 20
REMEMBERED = 63
OUTSTANDING_MAX = 4096
CANDIDATES_MAX = 256
WAIT_NS = 5_000_000_000
CONTEST_COST, CONTESTED_MAX = 16, 128

MTU_MIN, MTU_MAX = 256, 4096

# Places in ``COUNTS``.
_ACKS_AMBIGUOUS, _ACKS_UNMATCHED, _REPEATED, _AMBIGUOUS, _EXPIRED, _DROPPED, _RESTARTS = range(7)

_MASK, _HALF = (1 << 24) - 1, 1 << 23
_AGAIN, _READ = 1, 2
_SEEN, _NEXT, _OVERTAKEN = 0, 1, 2
# The upper bits of a syndrome are ACK, RNR NAK, reserved or NAK.
_RESERVED = 2
_READ_REQUEST, _RESPONSE_FIRST, _RESPONSE_MIDDLE, _RESPONSE_LAST, _ATOMIC_ACK = 0x0C, 0x0D, 0x0E, 0x0F, 0x12
_RELIABLE, _UNRELIABLE, _EXTENDED = 0, 1, 5


def is_acknowledged(opcode: np.ndarray) -> np.ndarray:
    """Return which opcodes are requests that are acknowledged."""
    service, op = opcode >> 5, opcode & 31
    return ((service == _RELIABLE) | (service == _EXTENDED)) & ((op <= _READ_REQUEST) | (op > _ATOMIC_ACK))


@numba.njit(cache=True, nogil=True)
def follow(packets, tracker):
    """Follow ``packets``, (packets,) PACKET in time order: the family's columns with the index of the flow, -1 = null.

    Returns (3, packets) int64: gaps, missing numbers and repeats of each packet; and (3, samples) int64: packet, request flow, ns.
    """
    flows = tracker.flows
    marks = np.zeros((3, len(packets)), np.int64)
    samples = np.empty((3, len(tracker.pending)), np.int64)
    found = 0
    for k in range(len(packets)):
        packet = packets[k]
        flow, psn, ts = packet.flow, packet.psn, packet.ts
        flows[flow].last_ts = ts
        service, op = packet.opcode >> 5, packet.opcode & 31
        reliable = service in (_RELIABLE, _EXTENDED)
        if not reliable and service != _UNRELIABLE:
            continue
        if reliable and _READ_REQUEST < op <= _ATOMIC_ACK:
            _response(packet, flows, marks[:, k])
            kind = (packet.syndrome >> 5) & 3
            if packet.ack_psn >= 0 and kind != _RESERVED:
                request = _requests_of(tracker, flow, packet.ack_psn, ts)
                covered = packet.ack_psn if kind == 0 else (packet.ack_psn - 1) & _MASK
                if request >= 0:
                    last = _acknowledge(tracker, request, covered, ts, samples, found)
                    samples[0, found:last] = k
                    found = last
            continue
        place = _request(tracker, packet, marks[:, k])
        if place != _SEEN and reliable:
            flags = _READ if op == _READ_REQUEST else 0
            if place == _NEXT:
                _push(tracker, flow, psn, ts, flags)
            else:
                _insert(tracker, flow, psn, ts, flags)
            if not flows[flow].requests:
                flows[flow].requests = 1
                _open(flow, tracker.requesters)
    return marks, samples[:, :found]


@numba.njit(nogil=True)
def _request(tracker, packet, marks):
    """Compare a request with the expected number; return whether its own was seen before, is next, or was overtaken by others."""
    state, ahead, psn = tracker.flows[packet.flow], 0, packet.psn
    op = packet.opcode & 31
    if op in (0, 1, 6, 7):
        _learn(state, packet.payload_bytes)
    if state.expected >= 0:
        ahead = (psn - state.expected) & _MASK
        if ahead >= _HALF and _MASK + 1 - ahead <= RESTART_SPAN:
            back = _MASK + 1 - ahead
            _drop_expired(tracker, state, packet.ts)
            place = _OVERTAKEN
            if _is_seen(state.seen, back):
                marks[2], place = 1, _SEEN
                _mark_repeated(state, psn, tracker.pending)
            own = _read_packets(packet.dma_bytes, state.mtu)[0] if op == _READ_REQUEST else 1
            state.seen = _with_seen(state.seen, back, own)
            return place
        missing = ahead - state.slack
        if ahead >= _HALF or missing > RESTART_SPAN:
            _drop_expired(tracker, state, packet.ts)
            _restart(tracker, state)
            ahead = 0
        elif missing > 0:
            marks[0], marks[1] = 1, missing
    low, high = 1, 1
    if op == _READ_REQUEST:
        low, high = _read_packets(packet.dma_bytes, state.mtu)
    # Earlier READs may have consumed up to ``slack`` sequence numbers; do not count those as a gap.
    seen = _with_seen(_moved(state.seen, ahead), ahead, min(ahead, state.slack))
    state.seen = _with_seen(_moved(seen, low), low, low)
    state.expected, state.slack = (psn + low) & _MASK, high - low
    return _NEXT


@numba.njit(nogil=True)
def _read_packets(dma_bytes, mtu):
    """Return the least and the most numbers that a READ of ``dma_bytes`` consumes."""
    if dma_bytes < 0:
        return 1, RESTART_SPAN
    low = max(1, -(-dma_bytes // (mtu if mtu else MTU_MAX)))
    high = max(1, -(-dma_bytes // (mtu if mtu else MTU_MIN)))
    return min(low, _HALF >> 1), min(high, _HALF >> 1)


@numba.njit(inline="always")
def _moved(seen, by):
    """Return the bits of the numbers seen before the expected one (bit 0 is the last), after it moves ahead by ``by``."""
    return (seen << by) & ((1 << REMEMBERED) - 1) if by < REMEMBERED else 0


@numba.njit(nogil=True)
def _with_seen(seen, back, count):
    """Return ``seen`` with ``count`` more numbers, the first ``back`` before the expected one."""
    for place in range(max(0, back - count), min(back, REMEMBERED)):
        seen |= 1 << place
    return seen


@numba.njit(inline="always")
def _is_seen(seen, back):
    return back > REMEMBERED or (seen >> (back - 1)) & 1 == 1


@numba.njit(nogil=True)
def _learn(state, payload):
    if MTU_MIN <= payload <= MTU_MAX and payload & (payload - 1) == 0:
        state.mtu = payload


@numba.njit(nogil=True)
def _response(packet, flows, marks):
    """Follow the numbers inside a read response."""
    state, op, psn = flows[packet.flow], packet.opcode & 31, packet.psn
    if op > _RESPONSE_LAST:
        state.response = -1
        return
    if op <= _RESPONSE_MIDDLE and state.bound >= 0:
        _learn(flows[state.bound], packet.payload_bytes)
    seen = np.int64(0)
    if op != _RESPONSE_FIRST and state.response >= 0:
        ahead = (psn - state.response) & _MASK
        if ahead >= _HALF:
            back = _MASK + 1 - ahead
            marks[2] = _is_seen(state.response_seen, back)
            state.response_seen = _with_seen(state.response_seen, back, 1)
            return
        if ahead:
            marks[0], marks[1] = 1, ahead
        seen = _moved(state.response_seen, ahead)
    state.response_seen = _with_seen(_moved(seen, 1), 1, 1)
    state.response = -1 if op == _RESPONSE_LAST else (psn + 1) & _MASK


@numba.njit(nogil=True)
def _drop_expired(tracker, state, ts):
    pending = tracker.pending
    while state.head < state.tail and pending[state.head].ts < ts - WAIT_NS:
        state.head += 1
        tracker.counts[_EXPIRED] += 1
    _clear_doubt(state, pending)


@numba.njit(nogil=True)
def _clear_doubt(state, pending):
    if state.doubtful >= 0 and (state.head == state.tail or (state.doubtful - pending[state.head].psn) & _MASK >= _HALF):
        state.doubtful = -1


@numba.njit(nogil=True)
def _push(tracker, flow, psn, ts, flags):
    state, pending = tracker.flows[flow], tracker.pending
    _drop_expired(tracker, state, ts)
    while state.head < state.tail:
        if state.tail - state.head < OUTSTANDING_MAX and (psn - pending[state.head].psn) & _MASK < _HALF:
            break
        state.head += 1
        tracker.counts[_DROPPED] += 1
    _clear_doubt(state, pending)
    entry = pending[state.tail]
    entry.psn, entry.ts, entry.flags = psn, ts, flags
    state.tail += 1


@numba.njit(nogil=True)
def _insert(tracker, flow, psn, ts, flags):
    """Insert an overtaken request at its place, unless it is already acknowledged."""
    state, pending = tracker.flows[flow], tracker.pending
    _drop_expired(tracker, state, ts)
    if state.acknowledged >= 0 and (state.acknowledged - psn) & _MASK < _HALF:
        return
    if state.tail - state.head >= OUTSTANDING_MAX:
        tracker.counts[_DROPPED] += 1
        return
    at = state.tail
    while at > state.head and (pending[at - 1].psn - psn) & _MASK < _HALF:
        pending[at] = pending[at - 1]
        at -= 1
    pending[at].psn, pending[at].ts, pending[at].flags = psn, ts, flags
    state.tail += 1


@numba.njit(nogil=True)
def _mark_repeated(state, psn, pending):
    if state.head == state.tail:
        return
    first = pending[state.head].psn
    offset = (psn - first) & _MASK
    if offset >= _HALF:
        return
    low, high = state.head, state.tail
    while high - low > 1:
        middle = (low + high) >> 1
        if (pending[middle].psn - first) & _MASK <= offset:
            low = middle
        else:
            high = middle
    # A READ retransmitted from its middle has a number that only its first request covers.
    if pending[low].psn == psn or pending[low].flags & _READ:
        pending[low].flags |= _AGAIN


@numba.njit(nogil=True)
def _restart(tracker, state):
    tracker.counts[_RESTARTS] += 1
    tracker.counts[_DROPPED] += state.tail - state.head
    state.head, state.mtu, state.doubtful, state.seen, state.acknowledged, state.contested = state.tail, 0, -1, 0, -1, 0
    if state.bound_by >= 0:
        _unbind(state.bound_by, tracker.flows, tracker.requesters)


@numba.njit(nogil=True)
def _open(flow, requesters):
    """Add a flow that has sent its first request."""
    pair = requesters.pair[flow]
    place = requesters.at[pair] + requesters.known[pair]
    requesters.flows[place] = flow
    requesters.known[pair] += 1
    _free(place, pair, requesters)


@numba.njit(nogil=True)
def _free(place, pair, requesters):
    flows, first = requesters.flows, requesters.at[pair] + requesters.free[pair]
    flows[first], flows[place] = flows[place], flows[first]
    requesters.free[pair] += 1


@numba.njit(nogil=True)
def _bind(acks, place, pair, flows, requesters):
    order, last = requesters.flows, requesters.at[pair] + requesters.free[pair] - 1
    request = order[place]
    order[place], order[last] = order[last], request
    requesters.free[pair] -= 1
    flows[acks].bound, flows[request].bound_by = request, acks
    return request


@numba.njit(nogil=True)
def _unbind(acks, flows, requesters):
    request = flows[acks].bound
    flows[acks].bound, flows[request].bound_by, flows[request].acknowledged = -1, -1, -1
    pair = requesters.pair[request]
    place = requesters.at[pair] + requesters.free[pair]
    while requesters.flows[place] != request:
        place += 1
    _free(place, pair, requesters)


@numba.njit(nogil=True)
def _requests_of(tracker, acks, psn, ts):
    """Return the request flow of an acknowledgement, -1 if there is none or more than one."""
    flows, requesters, counts = tracker.flows, tracker.requesters, tracker.counts
    request = flows[acks].bound
    if request >= 0:
        newest = (flows[request].expected + flows[request].slack - 1) & _MASK
        away = (psn - newest) & _MASK
        if min(away, _MASK + 1 - away) <= RESTART_SPAN + OUTSTANDING_MAX:
            return request
        _unbind(acks, flows, requesters)
    pair = requesters.opposite[acks]
    if pair < 0 or requesters.known[pair] == 0:
        counts[_ACKS_UNMATCHED] += 1
        return -1
    first, free, known = requesters.at[pair], requesters.free[pair], requesters.known[pair]
    if free > CANDIDATES_MAX:
        counts[_ACKS_AMBIGUOUS] += 1
        return -1
    fitting, place = 0, -1
    for at in range(first, first + free):
        if _fits(tracker, flows[requesters.flows[at]], psn, ts):
            fitting, place = fitting + 1, at
    if fitting == 1:
        return _bind(acks, place, pair, flows, requesters)
    if fitting:
        for at in range(first, first + free):
            _doubt(tracker, flows[requesters.flows[at]], psn, ts)
    elif known - free <= CANDIDATES_MAX:
        fitting = _contest(tracker, first + free, first + known, psn, ts)
    counts[_ACKS_AMBIGUOUS if fitting else _ACKS_UNMATCHED] += 1
    return -1


@numba.njit(nogil=True)
def _contest(tracker, start, end, psn, ts):
    """Unbind the flows that an acknowledgement of another flow fits; return their number."""
    flows, requesters, fitting = tracker.flows, tracker.requesters, 0
    for at in range(start, end):
        # Unbound flows have swapped places with earlier ones, which were checked before.
        request = requesters.flows[at]
        if _fits(tracker, flows[request], psn, ts):
            _doubt(tracker, flows[request], psn, ts)
            flows[request].contested += CONTEST_COST
            _unbind(flows[request].bound_by, flows, requesters)
            fitting += 1
    return fitting


@numba.njit(nogil=True)
def _fits(tracker, state, psn, ts):
    _drop_expired(tracker, state, ts)
    if state.head == state.tail or state.contested > CONTESTED_MAX:
        return False
    first = tracker.pending[state.head].psn
    return (psn - first) & _MASK <= (state.expected + state.slack - 1 - first) & _MASK


@numba.njit(nogil=True)
def _doubt(tracker, state, psn, ts):
    if _fits(tracker, state, psn, ts) and (state.doubtful < 0 or (psn - state.doubtful) & _MASK < _HALF):
        state.doubtful = psn


@numba.njit(nogil=True)
def _acknowledge(tracker, request, psn, ts, samples, found):
    """Remove the requests up to ``psn`` from the flow with a sample each; return the number of samples."""
    state, pending, counts = tracker.flows[request], tracker.pending, tracker.counts
    _drop_expired(tracker, state, ts)
    while state.head < state.tail:
        entry = pending[state.head]
        if (psn - entry.psn) & _MASK >= _HALF:
            break
        if entry.flags & _AGAIN:
            counts[_REPEATED] += 1
        elif state.doubtful >= 0 and (state.doubtful - entry.psn) & _MASK < _HALF:
            counts[_AMBIGUOUS] += 1
        else:
            samples[1, found], samples[2, found] = request, ts - entry.ts
            found += 1
            state.contested = max(0, state.contested - 1)
        state.head += 1
    if state.acknowledged < 0 or (psn - state.acknowledged) & _MASK < _HALF:
        state.acknowledged = psn
    _clear_doubt(state, pending)
    return found


@numba.njit(cache=True, nogil=True)
def expire(tracker, ts):
    """Drop the requests that have waited too long at ``ts`` (ns)."""
    for flow in range(len(tracker.flows)):
        _drop_expired(tracker, tracker.flows[flow], ts)


@numba.njit(cache=True, nogil=True)
def lay_out(flows, pending, room):
    """Return ``pending`` (PENDING) with ``room[flow]`` free places after each flow's requests, and update ``head`` and ``tail``."""
    size = 0
    for flow in range(len(flows)):
        size += flows[flow].tail - flows[flow].head + room[flow]
    out = np.empty(size, PENDING)
    at = 0
    for flow in range(len(flows)):
        state = flows[flow]
        number = state.tail - state.head
        out[at : at + number] = pending[state.head : state.tail]
        state.head, state.tail = at, at + number
        at += number + room[flow]
    return out
