"""The adapters: receivers count and notify, senders reduce their rate, retransmit and raise their rate again.

DCQCN [Zhu et al., *Congestion Control for Large-Scale RDMA Deployments*, SIGCOMM 2015]. The receiver sends at most one notification (CNP)
per flow and ``notify_ns``, if a marked packet came. On a CNP the sender takes Rt = Rc, Rc = Rc (1 - a/2), a = (1 - g) a + g; without one
for ``timer_ns``, a = (1 - g) a. A timer and a byte counter raise the rate: F rounds of Rc = (Rt + Rc) / 2, then Rt grows by ``add``, or by
``hyper`` once both are past F. A step longer than ``notify_ns`` holds several such intervals; in it, a flow falls at most one cut below
the rate it achieved, since its queue would then be empty and marking would have stopped.

Go-back-N: a receiver discards everything after a gap until the sender learns of it, one round trip later. If the lost packet was the last
one, the sender waits for its acknowledgement timer.

Arguments: ``flows`` and ``ports`` are rows of ``state.FLOW`` and ``state.PORT``, f a flow; bytes and ns are int64, rates bytes/s float64.
"""

from typing import NamedTuple

import numba
import numpy as np

from .queues import NS_PER_S
from .rng import power, unit
from .state import PACKET_BYTES

TIMEOUT_DRAW = 14 << 40


class Control(NamedTuple):
    """Settings of DCQCN and of the adapters; rates in bytes per second."""

    on: bool
    gain: float
    notify_ns: int
    timer_ns: int
    counter_bytes: int
    rounds: int
    add: float  # as a share of the line rate
    hyper: float
    least: float
    round_trip_ns: int
    ack_timeout_ns: int


@numba.njit(cache=True)
def _deaf_bytes(flows, f, control, tick):
    """Return the bytes that a receiver discards in this step while it waits for a retransmission, and the number of new gaps."""
    came, lost, now_ns, step_ns = flows.delivered[f], flows.hurt[f], tick.now_ns, tick.ns
    if step_ns > 2 * control.round_trip_ns and lost > 0:
        # With many round trips in a step, good packets alternate with a round trip of discarded ones. Losses among the discarded make no
        # new gap; if x packets are discarded for each good one, 1 / (1 + x) of all losses make one.
        under_way = came + lost
        window = min(np.int64(flows.rate[f] * control.round_trip_ns / NS_PER_S), under_way // 2)
        losses = -(-lost // PACKET_BYTES)
        gaps = max(np.int64(1), np.int64(losses / (1.0 + losses * window / under_way) + 0.5))
        return min(came, gaps * window), gaps
    gaps, begin = np.int64(0), now_ns
    if lost > 0 and flows.deaf_ns[f] <= now_ns:
        gaps, begin = np.int64(1), now_ns + step_ns // 2
        flows.deaf_ns[f] = begin + control.round_trip_ns
    return came * max(np.int64(0), min(flows.deaf_ns[f], now_ns + step_ns) - begin) // step_ns, gaps


@numba.njit(cache=True)
def receive(flows, adapters, order, control, tick):
    """Count delivered bytes as received in order, or as discarded after a gap; ``adapters`` are rows of ``state.ADAPTER``."""
    for k in range(order.count[0]):
        f = order.flows[k]
        came, lost = flows.delivered[f], flows.hurt[f]
        flows.received[f] += came
        flows.flight[f] -= came
        discarded = np.int64(0)
        if lost > 0 or flows.deaf_ns[f] > tick.now_ns:
            unsent = flows.total[f] - flows.good[f] - came - flows.flight[f] - lost
            # The chance that the last packet is lost is the share of lost bytes; then no later packet shows the receiver the gap.
            if lost > 0 and unsent <= 0 and flows.flight[f] == 0 and unit(tick.seed, TIMEOUT_DRAW + f, tick.number) * (came + lost) < lost:
                adapters.ack_timeout[flows.source[f]] += 1
                flows.stall_ns[f] = tick.now_ns + tick.ns + control.ack_timeout_ns
            else:
                discarded, gaps = _deaf_bytes(flows, f, control, tick)
                adapters.out_of_sequence[flows.target[f]] += gaps
                adapters.sequence_error[flows.source[f]] += gaps
            flows.resent[f] += lost + discarded
            adapters.resent[flows.source[f]] += -(-(lost + discarded) // PACKET_BYTES)
        flows.good[f] += came - discarded


@numba.njit(cache=True)
def _cut(flows, f, control, floor):
    """Reduce a flow's rate after a notification, to no less than ``floor`` bytes/s after the cut."""
    flows.goal[f] = flows.rate[f]
    cut = 1.0 - flows.alpha[f] / 2
    flows.rate[f] = max(flows.rate[f] * cut, control.least, floor * cut)
    flows.alpha[f] += control.gain * (1.0 - flows.alpha[f])
    flows.timer_ns[f] = flows.counted[f] = flows.timer_stage[f] = flows.byte_stage[f] = flows.decay_ns[f] = 0


@numba.njit(cache=True)
def _raise(flows, f, control, line):
    """Raise a flow's rate by one round of the timer or the byte counter; ``line`` is the line rate in bytes/s."""
    later, sooner = max(flows.timer_stage[f], flows.byte_stage[f]), min(flows.timer_stage[f], flows.byte_stage[f])
    if sooner > control.rounds:
        flows.goal[f] += control.hyper * line
    elif later > control.rounds:
        flows.goal[f] += control.add * line
    flows.goal[f] = min(flows.goal[f], line)
    flows.rate[f] = (flows.goal[f] + flows.rate[f]) / 2


@numba.njit(cache=True)
def react(flows, ports, adapters, order, control, tick):
    """Apply the marks of this step to the rates of the next."""
    step_ns = tick.ns
    spans = max(1, step_ns // control.notify_ns)
    span_ns = step_ns // spans
    for k in range(order.count[0]):
        f = order.flows[k]
        line = ports.rate[2 * flows.source[f]]
        chance, packets = 1.0 - flows.clear[f], -(-flows.delivered[f] // PACKET_BYTES)
        if packets > 0 and chance > 0:
            adapters.ecn_marked[flows.target[f]] += flows.delivered[f] / PACKET_BYTES * chance
        if not control.on:
            flows.rate[f] = line
            continue
        if chance == 0.0 and flows.rate[f] >= line:
            # At line rate and unmarked there is nothing to raise: only alpha decays.
            decay_ns = flows.decay_ns[f] + step_ns
            flows.alpha[f] *= power(1.0 - control.gain, decay_ns // control.timer_ns)
            flows.decay_ns[f] = decay_ns % control.timer_ns
            flows.quiet_ns[f] -= step_ns
            continue
        floor = flows.delivered[f] * NS_PER_S / step_ns if spans > 1 else 0.0
        none = power(flows.clear[f], -(-packets // spans)) if chance > 0 else 1.0
        for j in range(spans):
            flows.quiet_ns[f] -= span_ns
            if chance > 0 and flows.quiet_ns[f] <= 0 and unit(tick.seed, f, tick.number * spans + j) >= none:
                flows.quiet_ns[f] = control.notify_ns
                adapters.cnp_sent[flows.target[f]] += 1
                adapters.cnp_handled[flows.source[f]] += 1
                _cut(flows, f, control, floor)
                continue
            flows.timer_ns[f] += span_ns
            flows.decay_ns[f] += span_ns
            flows.counted[f] += flows.delivered[f] // spans
            if flows.decay_ns[f] >= control.timer_ns:
                flows.decay_ns[f] -= control.timer_ns
                flows.alpha[f] *= 1.0 - control.gain
            if flows.timer_ns[f] >= control.timer_ns:
                flows.timer_ns[f] -= control.timer_ns
                flows.timer_stage[f] += 1
                _raise(flows, f, control, line)
            if flows.counted[f] >= control.counter_bytes:
                flows.counted[f] -= control.counter_bytes
                flows.byte_stage[f] += 1
                _raise(flows, f, control, line)
