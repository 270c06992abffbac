"""The sequence numbers of RoCEv2: what was lost or sent again, and how long an acknowledgement took.

A *flow* is (source, destination, destination queue pair). Its requests carry packet sequence numbers modulo 2^24; a
difference below 2^23 is ahead, else behind. The next number is expected: jumped ahead is a gap, behind is a repeat, unless it
is one of the last ``REMEMBERED`` numbers and had been jumped over: then it was overtaken on the way.

An RDMA READ of L bytes uses up one number for each packet of its response, ceil(L / path MTU). The MTU is the payload of any
first or middle packet of the flow or its response; until one was seen, everything from ceil(L / 4096) to ceil(L / 256)
is taken as right. A jump of more than ``RESTART_SPAN`` either way is a new connection on an old number, neither a gap nor
a repeat. Inside one read response the numbers are followed likewise.

Latency: from a request packet to the first acknowledgement (ACK, read response, atomic acknowledge) that covers its number;
acknowledgements are cumulative, and a negative one covers all numbers before its own. A request that was overtaken waits like
any other; one that was sent again gives no sample (Karn's rule: which of the two was acknowledged cannot be told).

Acknowledgements name only the requester's queue pair, so a flow of them is bound to the request flow of the opposite
direction: when exactly one that is not bound yet has requests outstanding that the number falls among. Where several fit,
nothing is guessed: the requests that it may cover give no sample. Where none fits but one that is bound to another flow of
acknowledgements, one of the two is wrong: its requests so far give no sample, and it is free to be bound anew. A request flow
that is contested more than once in ``CONTEST_COST`` of its samples for long is not bound any more.

Bounds: ``OUTSTANDING_MAX`` requests wait per flow, none longer than ``WAIT_NS``; among more than ``CANDIDATES_MAX`` request
flows that are not bound nothing is bound, and more than so many that are bound are not contested.
"""

from typing import NamedTuple

import numba
import numpy as np

RESTART_SPAN = 1 << 20
REMEMBERED = 63
OUTSTANDING_MAX = 4096
CANDIDATES_MAX = 256
WAIT_NS = 5_000_000_000
CONTEST_COST, CONTESTED_MAX = 16, 128

MTU_MIN, MTU_MAX = 256, 4096

FLOW = np.dtype(
    [
        ("expected", np.int64),
        ("slack", np.int64),
        ("mtu", np.int64),
        ("response", np.int64),
        ("seen", np.int64),
        ("response_seen", np.int64),
        ("bound", np.int64),
        ("bound_by", np.int64),
        ("doubtful", np.int64),
        ("acknowledged", np.int64),
        ("contested", np.int64),
        ("requests", np.int64),
        ("last_ts", np.int64),
        ("head", np.int64),
        ("tail", np.int64),
    ]
)
PENDING = np.dtype([("psn", np.int64), ("ts", np.int64), ("flags", np.int64)])

COUNTS = ("acks_ambiguous", "acks_unmatched", "requests_repeated", "requests_ambiguous", "requests_expired", "requests_dropped", "restarts")
_ACKS_AMBIGUOUS, _ACKS_UNMATCHED, _REPEATED, _AMBIGUOUS, _EXPIRED, _DROPPED, _RESTARTS = range(7)

_MASK, _HALF = (1 << 24) - 1, 1 << 23
_AGAIN, _READ = 1, 2
_SEEN, _NEXT, _OVERTAKEN = 0, 1, 2
# Syndromes are ACK, RNR NAK, reserved, NAK in their upper bits.
_RESERVED = 2
_READ_REQUEST, _RESPONSE_FIRST, _RESPONSE_MIDDLE, _RESPONSE_LAST, _ATOMIC_ACK = 0x0C, 0x0D, 0x0E, 0x0F, 0x12
_RELIABLE, _UNRELIABLE, _EXTENDED = 0, 1, 5


class Requesters(NamedTuple):
    """The flows that have sent requests: those of address pair p are ``flows[at[p] :][: known[p]]``, first the ``free[p]`` not bound ones.

    ``pair`` and ``opposite`` are by flow: its pair of addresses, and that of the other direction, -1 where there is none.
    """

    pair: np.ndarray
    opposite: np.ndarray
    at: np.ndarray
    flows: np.ndarray
    free: np.ndarray
    known: np.ndarray


def new_flows(number: int) -> np.ndarray:
    """Return the state of flows of which nothing has been seen."""
    flows = np.zeros(number, FLOW)
    for name in ("expected", "response", "bound", "bound_by", "doubtful", "acknowledged"):
        flows[name] = -1
    return flows


def is_acknowledged(opcode: np.ndarray) -> np.ndarray:
    """Return which opcodes are requests that wait for an acknowledgement."""
    service, op = opcode >> 5, opcode & 31
    return ((service == _RELIABLE) | (service == _EXTENDED)) & ((op <= _READ_REQUEST) | (op > _ATOMIC_ACK))


@numba.njit(cache=True, nogil=True)
def follow(packets, flows, pending, requesters, counts):
    """Follow ``packets`` (rows: ts, flow, opcode, psn, ack_psn, syndrome, dma_bytes, payload_bytes; -1 = null) in time order.

    Changes ``flows``, ``pending`` (segments of it between ``head`` and ``tail`` of a flow, with room for what comes),
    ``counts`` and ``requesters``.
    Returns gaps, missing numbers and repeats of each packet, and the samples: packet, request flow, nanoseconds.
    """
    marks = np.zeros((3, packets.shape[1]), np.int64)
    samples = np.empty((3, len(pending)), np.int64)
    found = 0
    for k in range(packets.shape[1]):
        ts, flow, opcode, psn = packets[0, k], packets[1, k], packets[2, k], packets[3, k]
        flows[flow].last_ts = ts
        service, op = opcode >> 5, opcode & 31
        reliable = service in (_RELIABLE, _EXTENDED)
        if not reliable and service != _UNRELIABLE:
            continue
        if reliable and _READ_REQUEST < op <= _ATOMIC_ACK:
            _response(k, op, psn, packets[7, k], flows, flow, marks)
            if packets[4, k] >= 0 and (packets[5, k] >> 5) & 3 != _RESERVED:
                request = _requests_of(flow, packets[4, k], ts, flows, pending, requesters, counts)
                covered = packets[4, k] if (packets[5, k] >> 5) & 3 == 0 else (packets[4, k] - 1) & _MASK
                if request >= 0:
                    found = _acknowledge(k, request, covered, ts, flows, pending, samples, found, counts)
            continue
        place = _request(k, op, psn, packets[6, k], packets[7, k], flows, flow, marks, pending, ts, counts, requesters)
        if place != _SEEN and reliable:
            flags = _READ if op == _READ_REQUEST else 0
            if place == _NEXT:
                _push(flow, psn, ts, flags, flows, pending, counts)
            else:
                _insert(flow, psn, ts, flags, flows, pending, counts)
            if not flows[flow].requests:
                flows[flow].requests = 1
                _open(flow, requesters)
    return marks, samples[:, :found]


@numba.njit(nogil=True)
def _request(k, op, psn, dma_bytes, payload, flows, flow, marks, pending, ts, counts, requesters):
    """Compare a request with what was expected; return where its number is: seen, next, or overtaken by others."""
    state, ahead = flows[flow], 0
    if op in (0, 1, 6, 7):
        _learn(state, payload)
    if state.expected >= 0:
        ahead = (psn - state.expected) & _MASK
        if ahead >= _HALF and _MASK + 1 - ahead <= RESTART_SPAN:
            back = _MASK + 1 - ahead
            _drop_expired(state, ts, pending, counts)
            place = _OVERTAKEN
            if _is_seen(state.seen, back):
                marks[2, k], place = 1, _SEEN
                _sent_again(state, psn, pending)
            own = _read_packets(dma_bytes, state.mtu)[0] if op == _READ_REQUEST else 1
            state.seen = _with_seen(state.seen, back, own)
            return place
        missing = ahead - state.slack
        if ahead >= _HALF or missing > RESTART_SPAN:
            _drop_expired(state, ts, pending, counts)
            _restart(flow, flows, counts, requesters)
            ahead = 0
        elif missing > 0:
            marks[0, k], marks[1, k] = 1, missing
    low, high = 1, 1
    if op == _READ_REQUEST:
        low, high = _read_packets(dma_bytes, state.mtu)
    # What the reads before may have used up is not missing.
    seen = _with_seen(_moved(state.seen, ahead), ahead, min(ahead, state.slack))
    state.seen = _with_seen(_moved(seen, low), low, low)
    state.expected, state.slack = (psn + low) & _MASK, high - low
    return _NEXT


@numba.njit(nogil=True)
def _read_packets(dma_bytes, mtu):
    """Return the fewest and the most numbers that a read of so many bytes uses up."""
    if dma_bytes < 0:
        return 1, RESTART_SPAN
    low = max(1, -(-dma_bytes // (mtu if mtu else MTU_MAX)))
    high = max(1, -(-dma_bytes // (mtu if mtu else MTU_MIN)))
    return min(low, _HALF >> 1), min(high, _HALF >> 1)


@numba.njit(inline="always")
def _moved(seen, by):
    """Return which of the numbers before the expected one were seen (the lowest bit is the last), once it is ``by`` further."""
    return (seen << by) & ((1 << REMEMBERED) - 1) if by < REMEMBERED else 0


@numba.njit(nogil=True)
def _with_seen(seen, back, count):
    """Return ``seen`` with ``count`` numbers more, the first ``back`` before the expected one."""
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
def _response(k, op, psn, payload, flows, flow, marks):
    """Follow the numbers inside a read response."""
    state = flows[flow]
    if op > _RESPONSE_LAST:
        state.response = -1
        return
    if op <= _RESPONSE_MIDDLE and state.bound >= 0:
        _learn(flows[state.bound], payload)
    seen = np.int64(0)
    if op != _RESPONSE_FIRST and state.response >= 0:
        ahead = (psn - state.response) & _MASK
        if ahead >= _HALF:
            back = _MASK + 1 - ahead
            marks[2, k] = _is_seen(state.response_seen, back)
            state.response_seen = _with_seen(state.response_seen, back, 1)
            return
        if ahead:
            marks[0, k], marks[1, k] = 1, ahead
        seen = _moved(state.response_seen, ahead)
    state.response_seen = _with_seen(_moved(seen, 1), 1, 1)
    state.response = -1 if op == _RESPONSE_LAST else (psn + 1) & _MASK


@numba.njit(nogil=True)
def _drop_expired(state, ts, pending, counts):
    while state.head < state.tail and pending[state.head].ts < ts - WAIT_NS:
        state.head += 1
        counts[_EXPIRED] += 1
    _settle_doubt(state, pending)


@numba.njit(nogil=True)
def _settle_doubt(state, pending):
    if state.doubtful >= 0 and (state.head == state.tail or (state.doubtful - pending[state.head].psn) & _MASK >= _HALF):
        state.doubtful = -1


@numba.njit(nogil=True)
def _push(flow, psn, ts, flags, flows, pending, counts):
    state = flows[flow]
    _drop_expired(state, ts, pending, counts)
    while state.head < state.tail:
        if state.tail - state.head < OUTSTANDING_MAX and (psn - pending[state.head].psn) & _MASK < _HALF:
            break
        state.head += 1
        counts[_DROPPED] += 1
    _settle_doubt(state, pending)
    entry = pending[state.tail]
    entry.psn, entry.ts, entry.flags = psn, ts, flags
    state.tail += 1


@numba.njit(nogil=True)
def _insert(flow, psn, ts, flags, flows, pending, counts):
    """Let a request that others have overtaken wait in its place, unless it is acknowledged with them already."""
    state = flows[flow]
    _drop_expired(state, ts, pending, counts)
    if state.acknowledged >= 0 and (state.acknowledged - psn) & _MASK < _HALF:
        return
    if state.tail - state.head >= OUTSTANDING_MAX:
        counts[_DROPPED] += 1
        return
    at = state.tail
    while at > state.head and (pending[at - 1].psn - psn) & _MASK < _HALF:
        pending[at] = pending[at - 1]
        at -= 1
    pending[at].psn, pending[at].ts, pending[at].flags = psn, ts, flags
    state.tail += 1


@numba.njit(nogil=True)
def _sent_again(state, psn, pending):
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
    # A read sent again from its middle on has a number that only its first request covers.
    if pending[low].psn == psn or pending[low].flags & _READ:
        pending[low].flags |= _AGAIN


@numba.njit(nogil=True)
def _restart(flow, flows, counts, requesters):
    state = flows[flow]
    counts[_RESTARTS] += 1
    counts[_DROPPED] += state.tail - state.head
    state.head, state.mtu, state.doubtful, state.seen, state.acknowledged, state.contested = state.tail, 0, -1, 0, -1, 0
    if state.bound_by >= 0:
        _unbind(state.bound_by, flows, requesters)


@numba.njit(nogil=True)
def _open(flow, requesters):
    """Take a flow up that has sent its first request."""
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
def _requests_of(acks, psn, ts, flows, pending, requesters, counts):
    """Return the request flow that an acknowledgement is for, -1 where there is none or more than one."""
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
        if _fits(flows[requesters.flows[at]], psn, ts, pending, counts):
            fitting, place = fitting + 1, at
    if fitting == 1:
        return _bind(acks, place, pair, flows, requesters)
    if fitting:
        for at in range(first, first + free):
            _doubt(flows[requesters.flows[at]], psn, ts, pending, counts)
    elif known - free <= CANDIDATES_MAX:
        fitting = _contest(first + free, first + known, psn, ts, flows, pending, requesters, counts)
    counts[_ACKS_AMBIGUOUS if fitting else _ACKS_UNMATCHED] += 1
    return -1


@numba.njit(nogil=True)
def _contest(start, end, psn, ts, flows, pending, requesters, counts):
    """Free the bound flows that an acknowledgement of another flow fits; return how many."""
    fitting = 0
    for at in range(start, end):
        # Those that were freed have changed places with ones before them, which were looked at.
        request = requesters.flows[at]
        if _fits(flows[request], psn, ts, pending, counts):
            _doubt(flows[request], psn, ts, pending, counts)
            flows[request].contested += CONTEST_COST
            _unbind(flows[request].bound_by, flows, requesters)
            fitting += 1
    return fitting


@numba.njit(nogil=True)
def _fits(state, psn, ts, pending, counts):
    _drop_expired(state, ts, pending, counts)
    if state.head == state.tail or state.contested > CONTESTED_MAX:
        return False
    first = pending[state.head].psn
    return (psn - first) & _MASK <= (state.expected + state.slack - 1 - first) & _MASK


@numba.njit(nogil=True)
def _doubt(state, psn, ts, pending, counts):
    if _fits(state, psn, ts, pending, counts) and (state.doubtful < 0 or (psn - state.doubtful) & _MASK < _HALF):
        state.doubtful = psn


@numba.njit(nogil=True)
def _acknowledge(k, request, psn, ts, flows, pending, samples, found, counts):
    """Take the requests up to ``psn`` off the flow, a sample each; return the number of samples found."""
    state = flows[request]
    _drop_expired(state, ts, pending, counts)
    while state.head < state.tail:
        entry = pending[state.head]
        if (psn - entry.psn) & _MASK >= _HALF:
            break
        if entry.flags & _AGAIN:
            counts[_REPEATED] += 1
        elif state.doubtful >= 0 and (state.doubtful - entry.psn) & _MASK < _HALF:
            counts[_AMBIGUOUS] += 1
        else:
            samples[0, found], samples[1, found], samples[2, found] = k, request, ts - entry.ts
            found += 1
            state.contested = max(0, state.contested - 1)
        state.head += 1
    if state.acknowledged < 0 or (psn - state.acknowledged) & _MASK < _HALF:
        state.acknowledged = psn
    _settle_doubt(state, pending)
    return found


@numba.njit(cache=True, nogil=True)
def expire(flows, pending, ts, counts):
    """Drop the requests that have waited too long at ``ts``."""
    for flow in range(len(flows)):
        _drop_expired(flows[flow], ts, pending, counts)


@numba.njit(cache=True, nogil=True)
def lay_out(flows, pending, room):
    """Return ``pending`` anew, each flow's own followed by ``room[flow]`` free places; ``head`` and ``tail`` follow."""
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
