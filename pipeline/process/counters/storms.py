"""Storms of pauses: a queue that its peer stops for so long that it is no flow control any more.

Two rules, those of the pause watchdog of SONiC (sonic-swss, ``pfc_detect_broadcom.lua`` and ``pfc_detect_mellanox.lua``), each
over one interval between readings. Both must hold for the detection time; the storm ends when neither has held for as long as
the restoration time.

    held: pause frames came, no transition out of pause was counted, and the queue was paused when the interval began. Readings
        do not tell the latter; it is taken so where the interval before ended so: frames, and no transition.
    stuck: the queue holds bytes, sent no packet, and was paused for more than 99 % of the interval.

A storm counts from its beginning, in the window in which it is detected.
"""

import numba
import numpy as np

from .kernel import CLEAR, HELD, PAUSED, RESET, STORM, UNTIL

STARTED, ENDED, CUT = 1, 2, 3
HELD_RULE, STUCK_RULE = 1, 2
REASONS = {HELD_RULE: "pause_held", STUCK_RULE: "queue_stuck"}

_STUCK_RATIO = 0.99


@numba.njit(nogil=True)
def _rule(frames, transitions, pause, packets, occupancy, paused, now):
    """Return which rule holds in an interval (0: none, -1: nothing tells) and when the interval began.

    The four first are pairs of what a counter moved and since when; -1 = not known.
    """
    held_known = frames[0] >= 0 and transitions[0] >= 0
    stuck_known = pause[0] >= 0 and packets[0] >= 0 and occupancy >= 0 and packets[1] <= pause[1]
    if held_known and frames[0] > 0 and transitions[0] == 0 and paused:
        return HELD_RULE, frames[1]
    if stuck_known and occupancy > 0 and packets[0] == 0 and pause[0] * 1000.0 > _STUCK_RATIO * (now - pause[1]):
        return STUCK_RULE, pause[1]
    if held_known:
        return 0, frames[1]
    return (0, pause[1]) if stuck_known else (-1, now)


@numba.njit(cache=True, nogil=True)
def watch(code, ts, cell, flags, moved, since, occupancy, marks, detection_ns, restoration_ns, storm_ns):
    """Follow the queues through their readings, which are in order of queue and time.

    ``moved`` and ``since`` are (4, readings): frames received, transitions, microseconds paused, packets sent; -1 = not known.
    Adds to ``storm_ns`` by cell. Returns by reading what happened, by which rule, and since when.
    """
    count = len(ts)
    event, rule_of, since_ns = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    for r in range(count):
        mark = marks[code[r]]
        if flags[r] & RESET:
            if mark[STORM]:
                event[r], since_ns[r] = CUT, mark[HELD]
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
                event[r], rule_of[r], since_ns[r] = STARTED, rule, mark[HELD]
            mark[UNTIL], mark[CLEAR] = ts[r], -1
        elif rule == 0:
            if not mark[STORM]:
                mark[HELD] = -1
                continue
            if mark[CLEAR] < 0:
                mark[CLEAR] = begin
            if ts[r] - mark[CLEAR] >= restoration_ns:
                event[r], rule_of[r], since_ns[r] = ENDED, mark[STORM], mark[HELD]
                mark[STORM], mark[HELD], mark[UNTIL], mark[CLEAR] = 0, -1, -1, -1
    return event, rule_of, since_ns
