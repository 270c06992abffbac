"""One step of every queue: forwarding, backpressure, marking and loss. All bytes are integers, so that sums are exact.

**Forward.** Stage by stage, each port sends its queue and what reached it in this step, up to its line rate; if it cannot send all, flows
share it in proportion to what they have there, as in a FIFO. A byte may cross the whole fabric in one step, so that coarse steps do not
delay it.

**Back.** A switch holds the bytes of an ingress port (its priority group) up to a threshold T, the dynamic threshold of shared buffers,
T = a (B - used), at its fixed point over the ingresses [Choudhury, Hahne, IEEE/ACM ToN 1998]. The headroom takes what arrives until a pause
takes effect. Bytes above both count as not sent: they return to the sender's queue. Stages go backwards, so that backpressure reaches the
hosts in the same step. While paused, a port may send in a step as much as its receiver forwarded in the previous step plus the free room:
the average that a sequence of XOFF and XON lets through, including victim flows. Where a hop does not pause, the excess is dropped.

**Marks.** P(q) = 0 up to Kmin, Pmax (q - Kmin) / (Kmax - Kmin) up to Kmax, 1 above [Zhu et al., SIGCOMM 2015], q the mean of the queue
before and after the step.

Arguments: ``flows`` and ``ports`` are rows of ``state.FLOW`` and ``state.PORT``; f, h and p number a flow, a hop and a port; bytes and ns
are int64, rates bytes/s float64.
"""

from typing import NamedTuple

import numba
import numpy as np

from .rng import draw, unit
from .state import PACKET_BYTES
from .topology import STAGES

LOSS_DRAW = 15 << 40
HOP_BITS = 3  # HOPS_MAX = 8
HOP_MASK = 7
NS_PER_S = 1e9
# A pause frame requests at most 65,535 times 512 bit times and is repeated at half of that.
REFRESH_BITS = 65_535 * 512 / 2


class Buffers(NamedTuple):
    """Buffer parameters of all switches, in bytes, and the ingress ports of each device."""

    shared: int
    headroom: int
    alpha: float
    delay_ns: int  # from the decision to pause until the last byte arrives
    hysteresis: int  # XOFF minus XON
    in_start: np.ndarray  # (devices + 1,) int64: ports into device d are ``in_port[in_start[d]:in_start[d + 1]]``
    in_port: np.ndarray  # (ports,) int64


@numba.njit(cache=True)
def rebuild(flows, ports, net, order):
    """Rebuild ``order``: the slots of all active flows by stage, and their ports. Clear the queues of ports that left the list."""
    old = order.ports[: order.count[1]].copy()
    count, listed = 0, 0
    sizes = np.zeros(STAGES + 1, np.int64)
    for p in old:
        ports.listed[p] = 1
    for f in range(flows.shape[0]):
        if flows.active[f]:
            order.flows[count] = f
            count += 1
            for h in range(flows.hops[f]):
                p = flows.path[f, h]
                sizes[net.stage[p] + 1] += 1
                if ports.listed[p] != 2:
                    ports.listed[p] = 2
                    order.ports[listed] = p
                    listed += 1
    order.count[0], order.count[1] = count, listed
    for p in old:
        if ports.listed[p] == 1:
            ports.listed[p] = 0
            ports.ceiling[p] = -1
            ports.depth[p] = ports.depth_before[p] = ports.held[p] = ports.held_before[p] = 0
    for s in range(STAGES):
        sizes[s + 1] += sizes[s]
    order.start[:] = sizes
    for k in range(count):
        f = order.flows[k]
        for h in range(flows.hops[f]):
            s = net.stage[flows.path[f, h]]
            order.slot[sizes[s]] = (f << HOP_BITS) | h
            sizes[s] += 1
    for k in range(listed):
        ports.listed[order.ports[k]] = 1


@numba.njit(cache=True)
def _wish(flows, f, tick, window):
    """Return the bytes that a flow would send in this step, limited by its rate, by what is left, and by the flow ahead of it in a ring."""
    if not flows.active[f] or flows.hops[f] == 0:
        return np.int64(0)
    span = tick.now_ns + tick.ns - max(flows.begin_ns[f], flows.stall_ns[f], tick.now_ns)
    if span <= 0:
        return np.int64(0)
    wish = min(flows.total[f] - flows.good[f] - flows.flight[f], np.int64(flows.rate[f] * span / NS_PER_S))
    ahead = flows.ahead[f]
    if ahead >= 0 and flows.turn[ahead] <= flows.turn[f]:
        brought = flows.good[ahead] if flows.turn[ahead] == flows.turn[f] else np.int64(0)
        wish = min(wish, brought + window - flows.good[f] - flows.flight[f])
    return max(wish, np.int64(0))


@numba.njit(cache=True)
def _open_step(ports, order, step_ns):
    """Reset the step columns of the active ports; set what each may send, and -1 in ``step_lose`` where a loss has to be drawn."""
    for k in range(order.count[1]):
        p = order.ports[k]
        ports.step_demand[p] = ports.step_sent[p] = ports.step_scan[p] = ports.step_done[p] = 0
        ports.step_returned[p] = ports.step_excess[p] = 0
        cap = np.int64(min(ports.limit[p], ports.sink[p]) * step_ns / NS_PER_S) if ports.up[p] else np.int64(0)
        ports.step_cap[p] = cap if ports.ceiling[p] < 0 else min(cap, ports.ceiling[p])
        ports.step_lose[p] = -1 if ports.loss[p] > 0 else 0


@numba.njit(cache=True)
def _lose(flows, ports, f, p, out, tick):
    """Take the bytes that are lost on the link from one flow, chosen by a draw; return what is left of ``out``."""
    total = min(ports.step_demand[p], ports.step_cap[p])
    if ports.step_lose[p] < 0:
        # On average the share ``loss`` of the packets is lost, even if a step sends few.
        packets = np.int64(total / PACKET_BYTES * ports.loss[p] + unit(tick.seed, LOSS_DRAW + p, tick.number))
        ports.step_lose[p] = packets * PACKET_BYTES
        if packets == 0:
            return out
    where = np.int64(draw(tick.seed, p, tick.number) % np.uint64(total))
    if ports.step_sent[p] <= where:
        return out
    lost = min(ports.step_lose[p], out)
    ports.step_lose[p] = 0
    if ports.seen[p]:
        ports.broken[p] += lost
    else:
        ports.vanished[p] += lost
    flows.hurt[f] += lost
    flows.flight[f] -= lost
    return out - lost


@numba.njit(cache=True)
def forward(flows, ports, order, tick, window):
    """Move bytes from host to host, stage by stage."""
    _open_step(ports, order, tick.ns)
    for k in range(order.count[0]):
        f = order.flows[k]
        flows.moved[f, 0] = _wish(flows, f, tick, window)
        flows.before[f] = flows.delivered[f]
        flows.delivered[f] = 0
        flows.hurt[f] = 0
        flows.arrived[f, :] = 0
    for s in range(STAGES):
        for k in range(order.start[s], order.start[s + 1]):
            f, h = order.slot[k] >> HOP_BITS, order.slot[k] & HOP_MASK
            ports.step_demand[flows.path[f, h]] += flows.moved[f, 0] if h == 0 else flows.queued[f, h]
        for k in range(order.start[s], order.start[s + 1]):
            f, h = order.slot[k] >> HOP_BITS, order.slot[k] & HOP_MASK
            p = flows.path[f, h]
            out = flows.moved[f, 0] if h == 0 else flows.queued[f, h]
            if ports.step_demand[p] > ports.step_cap[p]:
                # Differences of a rounded cumulative share add up exactly to the cap.
                ports.step_scan[p] += out
                done = ports.step_scan[p] * ports.step_cap[p] // ports.step_demand[p]
                out = done - ports.step_done[p]
                ports.step_done[p] = done
            flows.moved[f, h] = out
            if out == 0:
                continue
            ports.step_sent[p] += out
            if h == 0:
                flows.flight[f] += out
            else:
                flows.queued[f, h] -= out
            if ports.step_lose[p] != 0:
                out = _lose(flows, ports, f, p, out, tick)
            if h == flows.hops[f] - 1:
                flows.delivered[f] += out
            else:
                flows.queued[f, h + 1] += out
                flows.arrived[f, h + 1] += out


@numba.njit(cache=True)
def _fixed_point(ports, net, buffers, device, stage, rest):
    """Return the largest T in bytes with T <= a (B - rest - sum of min(held, T)) over the ingresses of one stage."""
    low, high = np.int64(0), np.int64(buffers.shared)
    while low < high:
        middle = (low + high + 1) // 2
        used = rest
        for k in range(buffers.in_start[device], buffers.in_start[device + 1]):
            p = buffers.in_port[k]
            if net.stage[p] == stage:
                used += min(ports.held[p], middle)
        if middle <= buffers.alpha * (buffers.shared - used):
            low = middle
        else:
            high = middle - 1
    return low


@numba.njit(cache=True)
def _thresholds(ports, net, buffers, stage, used, step_ns):
    """Set threshold and excess of every ingress fed by one stage; ``used`` (devices,) int64 is in bytes. Return whether there is excess."""
    found = False
    for device in range(used.shape[0]):
        first, last = buffers.in_start[device], buffers.in_start[device + 1]
        if first == last or used[device] == 0:
            continue
        free = np.int64(buffers.alpha * max(np.int64(0), buffers.shared - used[device]))
        over, own = False, np.int64(0)
        for k in range(first, last):
            p = buffers.in_port[k]
            if net.stage[p] == stage:
                over |= ports.held[p] > free
                own += ports.held[p]
        threshold = _fixed_point(ports, net, buffers, device, stage, used[device] - own) if over else free
        for k in range(first, last):
            p = buffers.in_port[k]
            if net.stage[p] != stage:
                continue
            ports.threshold[p] = threshold
            fly = min(buffers.headroom, np.int64(ports.rate[p] * buffers.delay_ns / NS_PER_S)) if ports.lossless[p] else np.int64(0)
            excess = ports.held[p] - threshold - fly
            if excess > 0:
                ports.step_excess[p] = excess
                found = True
    return found


@numba.njit(cache=True)
def _push(flows, ports, order, stage, net, used):
    """Return the excess of one stage to its senders, or drop it where the receiver does not pause them."""
    for k in range(order.start[stage], order.start[stage + 1]):
        f, h = order.slot[k] >> HOP_BITS, order.slot[k] & HOP_MASK
        p = flows.path[f, h]
        ports.step_scan[p] = ports.step_done[p] = 0
        if h < flows.hops[f] - 1 and ports.step_excess[p] > 0:
            ports.step_returned[p] += min(flows.arrived[f, h + 1], flows.queued[f, h + 1])
    for k in range(order.start[stage], order.start[stage + 1]):
        f, h = order.slot[k] >> HOP_BITS, order.slot[k] & HOP_MASK
        p = flows.path[f, h]
        if h == flows.hops[f] - 1 or ports.step_excess[p] == 0:
            continue
        fresh, total = min(flows.arrived[f, h + 1], flows.queued[f, h + 1]), ports.step_returned[p]
        ports.step_scan[p] += fresh
        done = ports.step_scan[p] * min(total, ports.step_excess[p]) // max(total, 1)
        back = done - ports.step_done[p]
        ports.step_done[p] = done
        flows.queued[f, h + 1] -= back
        ports.held[p] -= back
        used[net.peer[p]] -= back
        if not ports.lossless[p]:
            ports.dropped[flows.path[f, h + 1]] += back
            flows.hurt[f] += back
            flows.flight[f] -= back
            continue
        flows.moved[f, h] -= back
        ports.step_sent[p] -= back
        if h == 0:
            flows.flight[f] -= back
        else:
            flows.queued[f, h] += back
            before = flows.path[f, h - 1]
            ports.held[before] += back
            used[net.owner[p]] += back


@numba.njit(cache=True)
def back(flows, ports, order, net, buffers, step_ns):
    """Enforce the threshold of every ingress, from the receivers back to the senders."""
    for k in range(order.count[1]):
        p = order.ports[k]
        ports.held_before[p], ports.held[p] = ports.held[p], 0
    used = np.zeros(buffers.in_start.shape[0] - 1, np.int64)
    for k in range(order.count[0]):
        f = order.flows[k]
        for h in range(1, flows.hops[f]):
            ports.held[flows.path[f, h - 1]] += flows.queued[f, h]
            used[net.owner[flows.path[f, h]]] += flows.queued[f, h]
    for stage in range(STAGES - 2, -1, -1):
        if _thresholds(ports, net, buffers, stage, used, step_ns):
            _push(flows, ports, order, stage, net, used)


@numba.njit(cache=True)
def _settle_port(ports, p, inner, buffers, step_ns):
    """Decide whether a port is paused, how long it was paused in this step, and what it may send in the next."""
    line = max(np.int64(1), np.int64(min(ports.rate[p], ports.limit[p]) * step_ns / NS_PER_S))
    blocked = min(ports.step_demand[p], line) - ports.step_sent[p]
    was = ports.ceiling[p] >= 0
    ports.ceiling[p] = -1
    if inner and ports.lossless[p]:
        threshold = ports.threshold[p]
        on = threshold - min(buffers.hysteresis, threshold // 2)
        fly = min(buffers.headroom, np.int64(ports.rate[p] * buffers.delay_ns / NS_PER_S))
        ports.headroom_max[p] = max(ports.headroom_max[p], min(fly, ports.held[p] - threshold))
        if ports.held[p] > 0 and (ports.held[p] >= threshold or (was and ports.held[p] > on)):
            drained = ports.held_before[p] + ports.step_sent[p] - ports.held[p]
            ports.ceiling[p] = max(np.int64(0), drained + threshold + fly - ports.held[p])
    slow = not inner and ports.sink[p] < ports.rate[p]
    if blocked > 0 and ports.up[p] and (was or ports.ceiling[p] >= 0 or slow):
        paused_ns = step_ns * blocked // line
        # Each cycle of XOFF and XON lets about their difference through; a long pause is refreshed.
        cycles = max(np.int64(1), ports.step_sent[p] // max(1, buffers.hysteresis))
        if ports.step_sent[p] == 0:
            cycles = np.int64(not was)
        ports.paused_ns[p] += paused_ns
        ports.pauses[p] += cycles
        ports.frames[p] += 2 * cycles + np.int64(paused_ns * (ports.rate[p] * 8 / NS_PER_S) / REFRESH_BITS)


@numba.njit(cache=True)
def settle(flows, ports, order, net, buffers, step_ns):
    """Close the step: update depths, marks, pauses and cumulative counters; set ``flows.clear`` to the chance of no mark."""
    for k in range(order.count[1]):
        p = order.ports[k]
        ports.depth_before[p], ports.depth[p] = ports.depth[p], 0
    for k in range(order.count[0]):
        f = order.flows[k]
        flows.clear[f] = 1.0
        for h in range(1, flows.hops[f]):
            ports.depth[flows.path[f, h]] += flows.queued[f, h]
    for k in range(order.count[1]):
        p = order.ports[k]
        ports.sent[p] += ports.step_sent[p]
        _settle_port(ports, p, net.stage[p] < STAGES - 1, buffers, step_ns)
        ports.depth_max[p] = max(ports.depth_max[p], ports.depth[p])
        ports.held_max[p] = max(ports.held_max[p], ports.held[p])
        mean = (ports.depth_before[p] + ports.depth[p]) / 2
        chance = 0.0
        if mean > ports.kmax[p]:
            chance = 1.0
        elif mean > ports.kmin[p]:
            chance = ports.pmax[p] * (mean - ports.kmin[p]) / (ports.kmax[p] - ports.kmin[p])
        ports.marked[p] += ports.step_sent[p] / PACKET_BYTES * chance
        # ``step_scan`` is free by now and passes the chance, in 2^-40, to the flows.
        ports.step_scan[p] = np.int64(chance * 1099511627776.0)
    for k in range(order.count[0]):
        f = order.flows[k]
        for h in range(1, flows.hops[f]):
            chance = ports.step_scan[flows.path[f, h]]
            if chance > 0:
                flows.clear[f] *= 1.0 - chance / 1099511627776.0
