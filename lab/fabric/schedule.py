"""The schedule of computing and communicating: members of jobs go through phases and wait for each other in groups.

A phase is a time of computing, then a collective over the member's group. A member's flows start when it reaches the collective; the group
continues when all members are there, all flows have arrived and all NVLink bytes have moved. So a slow GPU, adapter or link delays its
group, and through the groups of the next phase the whole job, as in synchronous training.

Arguments: ``members``, ``groups``, ``flows`` and ``ports`` are rows of ``MEMBER``, ``GROUP``, ``state.FLOW`` and ``state.PORT``; f, m and g
number flows, members and groups; bytes and ns are int64.
"""

from typing import NamedTuple

import numba
import numpy as np

from .queues import NS_PER_S
from .rng import draw, unit
from .routing import route
from .state import COUNT, FLAG, REAL, columns

IDLE, COMPUTING, COMMUNICATING = range(3)
COMPUTE_DRAW, PICK_DRAW, SIZE_DRAW = 1 << 40, 2 << 40, 3 << 40
FLOW_LOG, ITERATION_LOG = 4, 7


# Rows over members: a GPU's part in a job.
MEMBER = columns(
    job=COUNT,
    gpu=COUNT,
    state=COUNT,
    phase=COUNT,
    iteration=COUNT,
    group=COUNT,
    since_ns=COUNT,  # computing began
    ready_ns=COUNT,  # computing ends, communicating begins
    own_end_ns=COUNT,  # end of its own part of the collective
    nvlink_left=COUNT,
    wait_ns=COUNT,  # for others, in this iteration
    comm_ns=COUNT,  # in this iteration
    busy_ns=COUNT,  # computing, cumulative
    nvlink=COUNT,  # bytes, cumulative
)
PHASE = columns(compute_ns=COUNT, kind=COUNT, flow_bytes=COUNT, nvlink_bytes=COUNT, every=COUNT)  # kind -1: no collective
JOB = columns(
    first=COUNT,  # of its phases
    last=COUNT,
    stop_ns=COUNT,
    queue_pairs=COUNT,  # in use, per connection
    begun_ns=COUNT,  # begin of the current iteration
    jitter=REAL,
    synchronous=FLAG,
    adaptive=FLAG,
)
# Rows over kinds of groups; ``pick``: one random connection, of a random size; ``connections``: queue pairs of a connection.
KIND = columns(connections=COUNT, pick=FLAG)
GROUP = columns(
    first=COUNT,  # of its members in ``Programs.group_member``
    last=COUNT,
    arrived=COUNT,
    open=COUNT,  # unfinished flows and NVLink transfers
    end_ns=COUNT,
)


class Programs(NamedTuple):
    """The jobs' programs as tables.

    ``group_of`` is (kinds, members) int64, ``group_member`` lists the members group by group; the flows of a member for a kind are
    ``flow_index[flow_start[kind, member]:flow_start[kind, member + 1]]``.
    """

    phases: np.recarray
    jobs: np.recarray
    kinds: np.recarray
    group_of: np.ndarray
    group_member: np.ndarray
    flow_start: np.ndarray
    flow_index: np.ndarray
    slow: np.ndarray  # (adapters,) float64, factor on the computing time


class Log(NamedTuple):
    """Rows since the log was last emptied; times in ns.

    ``flow`` (rows, FLOW_LOG): flow, begin, end, bytes. ``iteration`` (rows, ITERATION_LOG): job, number, begin, end, mean communicating
    time, slowest member, its wait.
    """

    flow: np.ndarray
    iteration: np.ndarray
    count: np.ndarray  # (2,) rows of flows, rows of iterations


@numba.njit(cache=True)
def _compute_ns(members, programs, m, seed):
    """Return the ns that a member computes in its current phase, with jitter and the factor of a slow GPU."""
    job, phase = members.job[m], members.phase[m]
    factor = 1.0
    if programs.jobs.jitter[job] > 0:
        factor += programs.jobs.jitter[job] * (2.0 * unit(seed, COMPUTE_DRAW + m, members.iteration[m] * 4096 + phase) - 1.0)
    return np.int64(programs.phases.compute_ns[phase] * factor * programs.slow[members.gpu[m]])


@numba.njit(cache=True)
def _start_flow(flows, ports, router, f, size, begin_ns, group, adaptive):
    """Start a flow of ``size`` bytes for a group; return whether there is anything to send."""
    flows.turn[f] += 1
    flows.total[f], flows.good[f] = size, 0
    if size == 0:
        return False
    flows.active[f] = True
    flows.group[f] = group
    flows.begin_ns[f] = begin_ns
    flows.rate[f] = flows.goal[f] = ports.rate[2 * flows.source[f]]
    # After a pause an adapter keeps no state: it starts at line rate with alpha 1.
    flows.alpha[f] = 1.0
    flows.timer_ns[f] = flows.counted[f] = flows.timer_stage[f] = flows.byte_stage[f] = flows.quiet_ns[f] = flows.decay_ns[f] = 0
    if (flows.stale[f] or adaptive) and not flows.pinned[f]:
        find_way(flows, ports, router, f, adaptive)
    else:
        for h in range(flows.hops[f]):
            ports.load[flows.path[f, h]] += 1
    return True


@numba.njit(cache=True)
def find_way(flows, ports, router, f, adaptive):
    """Route an active flow, which has nothing in any queue, and count it on the ports of its path."""
    source, target = router.alias[flows.source[f]], router.alias[flows.target[f]]
    flows.hops[f] = route(router.net, ports, router.seeds, source, target, flows.entropy[f], adaptive, flows.path[f])
    flows.stale[f] = flows.hops[f] == 0
    for h in range(flows.hops[f]):
        ports.load[flows.path[f, h]] += 1


@numba.njit(cache=True)
def drop_way(flows, ports, f):
    """Take an active flow off its path."""
    for h in range(flows.hops[f]):
        ports.load[flows.path[f, h]] -= 1


@numba.njit(cache=True)
def _next_phase(members, programs, m, end_ns, seed):
    """Start a member's next phase after one that ended at ``end_ns``."""
    job = members.job[m]
    members.phase[m] += 1
    if members.phase[m] == programs.jobs.last[job]:
        members.phase[m] = programs.jobs.first[job]
        members.iteration[m] += 1
        members.wait_ns[m] = members.comm_ns[m] = 0
        if end_ns >= programs.jobs.stop_ns[job]:
            members.state[m] = IDLE
            return
    members.state[m] = COMPUTING
    members.since_ns[m] = end_ns
    members.ready_ns[m] = end_ns + _compute_ns(members, programs, m, seed)


@numba.njit(cache=True)
def _enter(members, programs, groups, flows, ports, router, m, seed):
    """Start a member's collective; return whether a flow started."""
    phase, job = members.phase[m], members.job[m]
    kind = programs.phases.kind[phase]
    group = programs.group_of[kind, m]
    members.state[m] = COMMUNICATING
    members.group[m] = group
    members.own_end_ns[m] = members.ready_ns[m]
    groups.arrived[group] += 1
    groups.end_ns[group] = max(groups.end_ns[group], members.ready_ns[m])
    members.nvlink_left[m] = programs.phases.nvlink_bytes[phase]
    groups.open[group] += members.nvlink_left[m] > 0
    first, last, started = programs.flow_start[kind, m], programs.flow_start[kind, m + 1], False
    size, used = programs.phases.flow_bytes[phase], min(programs.jobs.queue_pairs[job], programs.kinds.connections[kind])
    number = members.iteration[m] * 4096 + phase
    if programs.kinds.pick[kind] and last > first:
        each = programs.kinds.connections[kind]
        first += each * np.int64(draw(seed, PICK_DRAW + m, number) % np.uint64((last - first) // each))
        last = first + each
        # A heavy tail: twice the size with half the chance, up to 64 times.
        lot = draw(seed, SIZE_DRAW + m, number)
        for bit in range(6):
            if (lot >> np.uint64(bit)) & np.uint64(1):
                break
            size *= 2
    for k in range(first, last):
        f = programs.flow_index[k]
        part = (size + flows.ordinal[f]) // used if flows.ordinal[f] < used else 0
        if _start_flow(flows, ports, router, f, part, members.ready_ns[m], group, programs.jobs.adaptive[job]):
            groups.open[group] += 1
            started = True
    return started


@numba.njit(cache=True)
def begin(members, programs, groups, flows, ports, router, tick):
    """Start the phases and collectives that are due before the end of this step; return whether a flow started."""
    started, until = False, tick.now_ns + tick.ns
    for m in range(members.shape[0]):
        while members.state[m] == COMPUTING:
            members.busy_ns[m] += max(0, min(members.ready_ns[m], until) - max(members.since_ns[m], tick.now_ns))
            if members.ready_ns[m] >= until:
                break
            phase = members.phase[m]
            if programs.phases.kind[phase] >= 0 and (members.iteration[m] + 1) % programs.phases.every[phase] == 0:
                started |= _enter(members, programs, groups, flows, ports, router, m, tick.seed)
            else:
                _next_phase(members, programs, m, members.ready_ns[m], tick.seed)
    return started


@numba.njit(cache=True)
def _end_flow(members, groups, flows, ports, log, f, tick):
    """Close a flow that has arrived; interpolate its end within the step by the rate of the previous step."""
    came, before = flows.delivered[f], flows.before[f]
    begun = max(flows.begin_ns[f], tick.now_ns)
    pace = max(before, came) / tick.ns if flows.begin_ns[f] < tick.now_ns else max(1e-9, ports.rate[2 * flows.source[f]] / NS_PER_S)
    end = min(tick.now_ns + tick.ns, begun + np.int64(came / pace))
    drop_way(flows, ports, f)
    flows.active[f] = False
    group = flows.group[f]
    groups.open[group] -= 1
    groups.end_ns[group] = max(groups.end_ns[group], end)
    members.own_end_ns[flows.member[f]] = max(members.own_end_ns[flows.member[f]], end)
    if flows.other[f] >= 0:
        members.own_end_ns[flows.other[f]] = max(members.own_end_ns[flows.other[f]], end)
    row = log.flow[log.count[0]]
    row[0], row[1], row[2], row[3] = f, flows.begin_ns[f], end, flows.total[f]
    log.count[0] += 1


@numba.njit(cache=True)
def _end_iteration(members, programs, groups, log, g, end_ns):
    """Log an iteration of a job; the slowest member is the one that waited least for the others."""
    first, last = groups.first[g], groups.last[g]
    job = members.job[programs.group_member[first]]
    slowest, total = programs.group_member[first], np.int64(0)
    for k in range(first, last):
        m = programs.group_member[k]
        total += members.comm_ns[m]
        if members.wait_ns[m] < members.wait_ns[slowest]:
            slowest = m
    row = log.iteration[log.count[1]]
    row[0], row[1], row[2], row[3] = job, members.iteration[slowest], programs.jobs.begun_ns[job], end_ns
    row[4], row[5], row[6] = total // (last - first), slowest, members.wait_ns[slowest]
    log.count[1] += 1
    programs.jobs.begun_ns[job] = end_ns


@numba.njit(cache=True)
def finish(members, programs, groups, flows, ports, order, log, tick):
    """Close finished flows and NVLink transfers, and let complete groups continue; return whether a flow ended."""
    ended = False
    for k in range(order.count[0]):
        f = order.flows[k]
        if flows.active[f] and flows.good[f] >= flows.total[f]:
            _end_flow(members, groups, flows, ports, log, f, tick)
            ended = True
    for m in range(members.shape[0]):
        if members.nvlink_left[m] > 0:
            began = max(tick.now_ns, members.ready_ns[m])
            moved = min(members.nvlink_left[m], np.int64((tick.now_ns + tick.ns - began) * tick.nvlink_rate / NS_PER_S))
            members.nvlink_left[m] -= moved
            members.nvlink[m] += moved
            if members.nvlink_left[m] == 0:
                group = members.group[m]
                end = began + np.int64(moved * NS_PER_S / tick.nvlink_rate)
                groups.open[group] -= 1
                groups.end_ns[group] = max(groups.end_ns[group], end)
                members.own_end_ns[m] = max(members.own_end_ns[m], end)
    for g in range(groups.shape[0]):
        first, last = groups.first[g], groups.last[g]
        if groups.arrived[g] < last - first or groups.open[g] > 0:
            continue
        end_ns = groups.end_ns[g]
        groups.arrived[g] = groups.end_ns[g] = 0
        for k in range(first, last):
            m = programs.group_member[k]
            members.wait_ns[m] += end_ns - members.own_end_ns[m]
            members.comm_ns[m] += end_ns - members.ready_ns[m]
        job = members.job[programs.group_member[first]]
        if programs.jobs.synchronous[job] and members.phase[programs.group_member[first]] == programs.jobs.last[job] - 1:
            _end_iteration(members, programs, groups, log, g, end_ns)
        for k in range(first, last):
            _next_phase(members, programs, programs.group_member[k], end_ns, tick.seed)
    return ended
