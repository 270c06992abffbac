"""State of sFlow agents and their interfaces between datagrams, in tables of a fixed size.

An agent numbers its datagrams, which shows losses; its uptime and its numbers show restarts. Each new agent and interface gets an
entry, so that texts are made once an entry and not for every sample. The verdict on a datagram is

* ``FRESH``: its number is above all earlier ones; the numbers skipped are missing;
* ``LATE``: it was skipped before, and its gap has been reported; ``REPEATED``: it was received before. Both look at the last 64
  numbers;
* ``RESTARTED``: the uptime fell back or ran ahead of the local clock, or the number jumped too far for a loss. Counters may have
  restarted, so the epoch becomes the time of that datagram;
* ``REFUSED``: its header is malformed, or there is no room for another agent.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..wire.hash_table import ENTRIES, WordTable, entry_of, new_seed, word_table
from ..wire.octets import record_type

FRESH, LATE, REPEATED, RESTARTED, REFUSED = range(5)

LEAP_MAX = 1 << 20
# Tolerance for the agent's clock, the network and this machine between two datagrams.
UPTIME_SLACK_MS, UPTIME_BACK_MS = 60_000, 10_000

_AGENT = record_type("u4 last uptime", "u8 seen", "i8 ts epoch")
# State of an interface: the agent's totals of lost samples and notices, plus one where known, and hashes of its last name and states.
_INTERFACE = record_type("i8 epoch drops notices name", "u8 states")


class Tracked(NamedTuple):
    """Columns beside n datagrams: agent (n,) int32 (-1: none), epoch (n,) int64 ns, verdict (n,) uint8, missed (n,) int64.

    ``missed`` counts the sequence numbers missing before each datagram.
    """

    agent: np.ndarray
    epoch: np.ndarray
    verdict: np.ndarray
    missed: np.ndarray


class Interfaces(NamedTuple):
    """Interfaces by (agent, source class, index) and their ``_INTERFACE`` rows, one an entry."""

    table: WordTable
    states: np.ndarray


class Agents:
    """The known agents (address, sub-agent) and their interfaces (source class, index), bounded in number."""

    def __init__(self, agents_max: int, interfaces_max: int) -> None:
        self.table, self._states = word_table(agents_max, new_seed()), np.zeros(agents_max, _AGENT)
        self.interfaces = Interfaces(word_table(interfaces_max, new_seed()), np.zeros(interfaces_max, _INTERFACE))

    def track(self, heads: np.ndarray, ts: np.ndarray) -> Tracked:
        """Return verdicts on datagrams in the order of arrival, from their ``decoder.HEAD`` rows and times in ns."""
        n = len(heads)
        tracked = Tracked(np.full(n, -1, np.int32), np.zeros(n, np.int64), np.full(n, REFUSED, np.uint8), np.zeros(n, np.int64))
        _track(heads, ts, self.table, self._states, tracked)
        return tracked


@numba.njit(cache=True, nogil=True)
def _track(heads, ts, table, states, tracked):
    """Fill ``tracked``, a ``Tracked`` of n.

    ``heads`` (n,) ``HEAD``, ``ts`` (n,) int64 ns, ``table`` a ``WordTable`` of agents, ``states`` (agents,) ``_AGENT``.
    """
    for k in range(len(heads)):
        head = heads[k]
        if head.fault:
            continue
        known = table.state[ENTRIES]
        agent = entry_of(table, head.high, head.low, np.uint64(head.kind) << np.uint64(32) | np.uint64(head.sub_agent))
        if agent < 0:
            continue
        state = states[agent]
        tracked.agent[k] = agent
        if agent == known:
            tracked.verdict[k] = FRESH
            state.last, state.seen, state.epoch = head.sequence, 1, 0
        else:
            tracked.verdict[k], tracked.missed[k] = _judge(head, ts[k], state)
        if tracked.verdict[k] in (FRESH, RESTARTED):
            state.uptime, state.ts = head.uptime, ts[k]
        tracked.epoch[k] = state.epoch


@numba.njit(inline="always")
def _judge(head, ts, state):
    """Return the verdict on a datagram and the missing numbers before it; update ``state``, the ``_AGENT`` row of its agent."""
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
    """Return the growth of the agent's own count of losses, 0 without an earlier one; update ``state``, an ``_INTERFACE`` row."""
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
