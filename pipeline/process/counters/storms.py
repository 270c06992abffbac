"""Pause storms: a peer stops a queue for so long that it is no longer flow control.

Two rules, those of SONiC's pause watchdog (sonic-swss, ``pfc_detect_broadcom.lua`` and ``pfc_detect_mellanox.lua``), each over one
interval between counter samples. A storm begins when a rule has applied for the detection time, and ends when neither has applied
for the restoration time.

    paused: pause frames arrived, no transition out of pause was counted, and the queue was paused at the start of the interval.
        Counters do not report the latter; it is assumed if the interval before had frames and no transition.
    stuck: the queue holds bytes, sent no packet, and was paused for more than 99 % of the interval.

A storm counts from its start, in the window in which it is detected.
"""

from typing import NamedTuple

import numba
import numpy as np

from .kernel import CLEAR, HELD, PAUSED, RESET, STORM, UNTIL

STARTED, ENDED, CUT = 1, 2, 3
PAUSED_RULE, STUCK_RULE = 1, 2
REASONS = {PAUSED_RULE: "pause_held", STUCK_RULE: "queue_stuck"}

_STUCK_RATIO = 0.99


@numba.njit(nogil=True)
def _rule(frames, transitions, pause, packets, occupancy, paused, now):
    """Return the rule that applies in an interval (0: none, -1: unknown) and the start of the interval in ns.

    The first four are pairs of a delta and the start of its interval in ns; -1 = unknown.
    """
    paused_known = frames[0] >= 0 and transitions[0] >= 0
    stuck_known = pause[0] >= 0 and packets[0] >= 0 and occupancy >= 0 and packets[1] <= pause[1]
    if paused_known and frames[0] > 0 and transitions[0] == 0 and paused:
        return PAUSED_RULE, frames[1]
    if stuck_known and occupancy > 0 and packets[0] == 0 and pause[0] * 1000.0 > _STUCK_RATIO * (now - pause[1]):
        return STUCK_RULE, pause[1]
    if paused_known:
        return 0, frames[1]
    return (0, pause[1]) if stuck_known else (-1, now)


class Inputs(NamedTuple):
    """The input of the rules, by sample; int64, -1 = unknown.

    moved, since_ns: (4, samples), the delta and the time it covers from, of frames received, transitions, microseconds paused, packets
    sent; occupancy: (samples,) bytes.
    """

    moved: np.ndarray
    since_ns: np.ndarray
    occupancy: np.ndarray


@numba.njit(cache=True, nogil=True)
def watch(samples, inputs, flags, marks, spans_ns, storm_ns):
    """Follow the queues through their ``CounterSamples``.

    flags: (samples,) int64; marks: (objects, MARKS) int64, updated; spans_ns: detection and restoration time. storm_ns: (cells,) int64
    gains the time in storms. Returns by sample, int64: what happened, by which rule, and since when in ns.
    """
    code, ts, cell = samples.code, samples.ts, samples.cell
    moved, since, occupancy = inputs
    detection_ns, restoration_ns = spans_ns
    count = len(ts)
    event, rule_of, since_of = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    for r in range(count):
        mark = marks[code[r]]
        if flags[r] & RESET:
            if mark[STORM]:
                event[r], since_of[r] = CUT, mark[HELD]
            mark[STORM], mark[HELD], mark[UNTIL], mark[CLEAR], mark[PAUSED] = 0, -1, -1, -1, 0
            continue
        rule, begin = _rule(
            (moved[0, r], since[0, r]),
            (moved[1, r], since[1, r]),
            (moved[2, r], since[2, r]),
            (moved[3, r], since[3, r]),
            occupancy[r],
            mark[PAUSED] == 1,
            ts[r],
        )
        if moved[0, r] >= 0 and moved[1, r] >= 0:
            mark[PAUSED] = 1 if moved[0, r] > 0 and moved[1, r] == 0 else 0
        if rule > 0:
            if mark[HELD] < 0 or (begin > mark[UNTIL] and not mark[STORM]):
                mark[HELD] = mark[UNTIL] = begin
            if mark[STORM]:
                storm_ns[cell[r]] += ts[r] - max(begin, mark[UNTIL])
            elif ts[r] - mark[HELD] >= detection_ns:
                mark[STORM] = rule
                storm_ns[cell[r]] += ts[r] - mark[HELD]
                event[r], rule_of[r], since_of[r] = STARTED, rule, mark[HELD]
            mark[UNTIL], mark[CLEAR] = ts[r], -1
        elif rule == 0:
            if not mark[STORM]:
                mark[HELD] = -1
                continue
            if mark[CLEAR] < 0:
                mark[CLEAR] = begin
            if ts[r] - mark[CLEAR] >= restoration_ns:
                event[r], rule_of[r], since_of[r] = ENDED, mark[STORM], mark[HELD]
                mark[STORM], mark[HELD], mark[UNTIL], mark[CLEAR] = 0, -1, -1, -1
    return event, rule_of, since_of
