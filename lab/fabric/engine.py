"""The compiled loop over steps: due phases begin, bytes move, adapters react, finished flows end.

It runs from one edge (a poll of the counters, the begin or end of a fault) to the next, so that Python is called a few times per second of
the fabric's time, whatever the step.
"""

from typing import NamedTuple

import numba
import numpy as np

from .dcqcn import Control, react, receive
from .queues import Buffers, back, forward, rebuild, settle
from .rng import draw
from .routing import Net, Router
from .schedule import Log, Programs, begin, drop_way, find_way, finish
from .state import PACKET_BYTES, Order, Tick

PACKET_DRAW = 7 << 40
PACKETS_MAX = 1 << 18


class World(NamedTuple):
    """All state of the fabric, and the parameters that act on it."""

    net: Net
    flows: np.recarray
    ports: np.recarray
    adapters: np.recarray
    order: Order
    members: np.recarray
    programs: Programs
    groups: np.recarray
    log: Log
    buffers: Buffers
    control: Control
    seeds: np.ndarray  # (devices,) int64, of the hashes
    alias: np.ndarray  # (adapters,) int64, the adapter that sends and receives instead
    packets: np.ndarray  # (PACKETS_MAX, 4) int64, sampled: flow, time ns, number in the flow, chance of a mark in 2^-40
    sampled: np.ndarray  # (2,) int64: rows in ``packets``, rows left out because it was full


class Pacing(NamedTuple):
    """Parameters of the loop that stay the same for a whole run."""

    step_ns: int
    window_bytes: int  # how far a rank of a ring may be ahead
    nvlink_rate: float  # bytes/s
    packet_rate: int  # one packet in this many is sampled, 0: none
    sample_steps: int  # steps of a sample interval
    seed: int


class PortBytes(NamedTuple):
    """Series of the ports, each (samples, ports) int64: bytes sent, bytes that reached the far end, bytes queued at the end of a sample."""

    sent: np.ndarray
    received: np.ndarray
    depth: np.ndarray


@numba.njit(cache=True)
def _sample_packets(world, rate, tick):
    """Add every ``rate``-th packet that a flow delivers to ``world.packets``, spread evenly over the step."""
    flows, order = world.flows, world.order
    for k in range(order.count[0]):
        f = order.flows[k]
        if flows.delivered[f] == 0:
            continue
        offset = np.int64(draw(tick.seed, PACKET_DRAW, f) % np.uint64(rate))
        first = (flows.received[f] - flows.delivered[f]) // PACKET_BYTES
        last = flows.received[f] // PACKET_BYTES
        number = first + (offset - first) % rate
        while number < last:
            if world.sampled[0] < PACKETS_MAX:
                row = world.packets[world.sampled[0]]
                row[0], row[2] = f, number
                row[1] = tick.now_ns + tick.ns * (number - first + 1) // (last - first + 1)
                row[3] = np.int64((1.0 - flows.clear[f]) * 1099511627776.0)
                world.sampled[0] += 1
            else:
                world.sampled[1] += 1
            number += rate


@numba.njit(cache=True)
def run(world, first, last, pacing, series):
    """Run steps ``first`` to ``last``; stop early before the log overflows. Return the step to continue with.

    Write the cumulative bytes and the depths into ``series`` (``PortBytes``), one row at the end of each sample interval.
    """
    flows, ports, order, log = world.flows, world.ports, world.order, world.log
    members, programs, groups, router = world.members, world.programs, world.groups, Router(world.net, world.seeds, world.alias)
    row = 0
    room = log.flow.shape[0] - flows.shape[0]
    for step in range(first, last):
        tick = Tick(step, step * pacing.step_ns, pacing.step_ns, pacing.nvlink_rate, pacing.seed)
        if log.count[0] > room:
            return step
        if begin(members, programs, groups, flows, ports, router, tick):
            rebuild(flows, ports, world.net, order)
        forward(flows, ports, order, tick, pacing.window_bytes)
        back(flows, ports, order, world.net, world.buffers, tick.ns)
        settle(flows, ports, order, world.net, world.buffers, tick.ns)
        receive(flows, world.adapters, order, world.control, tick)
        react(flows, ports, world.adapters, order, world.control, tick)
        if pacing.packet_rate > 0:
            _sample_packets(world, pacing.packet_rate, tick)
        if finish(members, programs, groups, flows, ports, order, log, tick):
            rebuild(flows, ports, world.net, order)
        if (step + 1) % pacing.sample_steps == 0:
            for p in range(ports.shape[0]):
                series.sent[row, p], series.depth[row, p] = ports.sent[p], ports.depth[p]
                series.received[row, p] = ports.sent[p] - ports.vanished[p] - ports.broken[p]
            row += 1
    return last


@numba.njit(cache=True)
def reroute(world, everything):
    """Reroute after links or seeds have changed: active flows on dead links at once; if ``everything``, the others at their next start.

    Bytes that a rerouted flow has in queues are lost.
    """
    flows, ports, router = world.flows, world.ports, Router(world.net, world.seeds, world.alias)
    for f in range(flows.shape[0]):
        if flows.pinned[f]:
            continue
        flows.stale[f] |= everything
        if not flows.active[f]:
            continue
        cut = flows.hops[f] == 0
        for h in range(flows.hops[f]):
            cut |= not ports.up[flows.path[f, h]]
        if not cut:
            continue
        drop_way(flows, ports, f)
        for h in range(1, flows.hops[f]):
            p, lost = flows.path[f, h], flows.queued[f, h]
            ports.dropped[p] += lost
            ports.depth[p] -= lost
            ports.held[flows.path[f, h - 1]] -= lost
            flows.flight[f] -= lost
            flows.resent[f] += lost
            flows.queued[f, h] = 0
            flows.arrived[f, h] = 0
        job = world.members.job[flows.member[f]]
        find_way(flows, ports, router, f, world.programs.jobs.adaptive[job])
    rebuild(flows, ports, world.net, world.order)
