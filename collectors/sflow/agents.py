"""What is remembered of sFlow agents and their interfaces from one datagram to the next, in tables of a fixed size.

An agent's datagrams are numbered, so what is missing is known; its uptime and its numbers tell when it began anew. Where an
address, an interface or a name is seen for the first time it gets a number, and texts are made per number, not per sample.

* A datagram is ``fresh`` when its number is above all before it; the numbers skipped are missing.
* ``late`` when it was skipped before (its gap has been admitted by then), ``repeated`` when it has been here already, as
  far as the last 64 numbers tell.
* ``restarted`` when the uptime fell behind, or ran ahead of the time that passed here, or the number made a leap that no loss
  explains: counters may have begun anew, so the epoch becomes the time of that datagram.
"""

import os

import numba
import numpy as np

FRESH, LATE, REPEATED, RESTARTED, REFUSED = range(5)

LEAP_MAX = 1 << 20
# What a busy agent's clock, the network and this machine may add between two datagrams.
UPTIME_SLACK_MS, UPTIME_BACK_MS = 60_000, 10_000

_MULTIPLIERS = np.frombuffer(os.urandom(24), np.uint64) | np.uint64(1)

_AGENT = np.dtype([("last", np.uint32), ("uptime", np.uint32), ("seen", np.uint64), ("ts", np.int64), ("epoch", np.int64)])
# Of an interface: how many samples and notices its agent had lost, plus one where that is known, and hashes of what was said last.
_PLACE = np.dtype([("epoch", np.int64), ("drops", np.int64), ("notices", np.int64), ("name", np.uint64), ("states", np.uint64)])


class Numbers:
    """Gives each key of three integers a number, the same for the same, at most ``size`` of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys = np.zeros((3, size), np.uint64)
        # Open addressing, at most half full.
        self.slots = np.full(1 << max(4, (2 * size - 1).bit_length()), -1, np.int32)
        self.count = np.zeros(1, np.int64)

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What ``number`` takes."""
        return self.keys, self.slots, self.count, _MULTIPLIERS


class Agents:
    """The agents (address, sub-agent) and their interfaces (source class, index) that are known."""

    def __init__(self, agents_max: int, interfaces_max: int) -> None:
        self.numbers, self.states = Numbers(agents_max), np.zeros(agents_max, _AGENT)
        self.places, self.place_states = Numbers(interfaces_max), np.zeros(interfaces_max, _PLACE)

    def track(self, heads: np.ndarray, ts: np.ndarray) -> "Tracked":
        """Judge datagrams in the order of arrival by their ``sflow.HEAD`` rows and times in ns."""
        tracked = Tracked(len(heads))
        _track(heads, ts, *self.numbers.parts, self.states, tracked.agent, tracked.epoch, tracked.verdict, tracked.missed)
        return tracked


class Tracked:
    """Columns beside datagrams: number of the agent (-1: none), epoch, verdict, and how many numbers before it are missing."""

    def __init__(self, count: int) -> None:
        self.agent = np.full(count, -1, np.int32)
        self.epoch = np.zeros(count, np.int64)
        self.verdict = np.full(count, REFUSED, np.uint8)
        self.missed = np.zeros(count, np.int64)


@numba.njit(inline="always")
def number(a, b, c, keys, slots, count, multipliers):
    """Return the number of a key, a new one where it is not known, -1 where there is no room for another."""
    mixed = a * multipliers[0] ^ (b ^ (a >> np.uint64(31))) * multipliers[1] ^ (c ^ (b >> np.uint64(33))) * multipliers[2]
    place = np.int64((mixed ^ (mixed >> np.uint64(29))) * multipliers[0] >> np.uint64(33)) & (len(slots) - 1)
    while True:
        found = slots[place]
        if found < 0:
            break
        if keys[0, found] == a and keys[1, found] == b and keys[2, found] == c:
            return found
        place = (place + 1) & (len(slots) - 1)
    fresh = count[0]
    if fresh >= keys.shape[1]:
        return -1
    keys[0, fresh], keys[1, fresh], keys[2, fresh] = a, b, c
    slots[place] = fresh
    count[0] = fresh + 1
    return fresh


@numba.njit(cache=True, nogil=True)
def _track(heads, ts, keys, slots, count, multipliers, states, agents, epochs, verdicts, missed):
    for k in range(len(heads)):
        head = heads[k]
        if head.fault:
            continue
        known = count[0]
        kind = np.uint64(head.kind) << np.uint64(32) | np.uint64(head.sub_agent)
        agent = number(head.high, head.low, kind, keys, slots, count, multipliers)
        if agent < 0:
            continue
        state = states[agent]
        agents[k] = agent
        if agent == known:
            verdicts[k] = FRESH
            state.last, state.seen, state.epoch = head.sequence, 1, 0
        else:
            verdicts[k], missed[k] = _judge(head, ts[k], state)
        if verdicts[k] in (FRESH, RESTARTED):
            state.uptime, state.ts = head.uptime, ts[k]
        epochs[k] = state.epoch


@numba.njit(inline="always")
def _judge(head, ts, state):
    """Return verdict and missing numbers of a datagram of a known agent, and remember it."""
    ahead = np.int64((np.int64(head.sequence) - np.int64(state.last)) & 0xFFFFFFFF)
    ahead = ahead - (1 << 32) if ahead >= 1 << 31 else ahead
    passed_ms = max(0, ts - state.ts) // 1_000_000
    uptime_ms = (np.int64(head.uptime) - np.int64(state.uptime)) & 0xFFFFFFFF
    out_of_time = uptime_ms > passed_ms + passed_ms // 2 + UPTIME_SLACK_MS and (1 << 32) - uptime_ms > UPTIME_BACK_MS
    if out_of_time or ahead > LEAP_MAX or ahead <= -64:
        state.last, state.seen, state.epoch = head.sequence, 1, ts
        return RESTARTED, 0
    if ahead > 0:
        state.seen = (state.seen << np.uint64(ahead) if ahead < 64 else np.uint64(0)) | np.uint64(1)
        state.last = head.sequence
        return FRESH, ahead - 1
    bit = np.uint64(1) << np.uint64(-ahead)
    if state.seen & bit:
        return REPEATED, 0
    state.seen |= bit
    return LATE, 0


@numba.njit(inline="always")
def newly_lost(state, notices, total, epoch):
    """Return how much the agent's own count of losses has grown, and remember it; 0 where nothing is known from before."""
    if state.epoch != epoch:
        state.epoch, state.drops, state.notices = epoch, 0, 0
    last = (state.notices if notices else state.drops) - 1
    grown = (total - last) & 0xFFFFFFFF
    if last >= 0 and grown >= 1 << 31:
        return 0
    if notices:
        state.notices = total + 1
    else:
        state.drops = total + 1
    return grown if last >= 0 else 0
