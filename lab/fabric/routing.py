"""Routing: up-down shortest paths, one of several by a hash of the flow's five-tuple with each switch's seed.

Equal seeds on two tiers make the second choice a function of the first (polarisation); few queue pairs make few draws.
Adaptive routing takes the port with the fewest flows instead. A link that is down is not used, nor is a switch whose only onward link is
down.
"""

from typing import NamedTuple

import numba
import numpy as np

from .rng import draw, mix
from .topology import FabricTopology

HOPS_MAX = 8


class Net(NamedTuple):
    """The topology's arrays for kernels, int32; shapes as in ``FabricTopology``."""

    owner: np.ndarray
    peer: np.ndarray
    stage: np.ndarray
    leaf: np.ndarray
    leaf_number: np.ndarray
    up_start: np.ndarray
    up_port: np.ndarray
    down_start: np.ndarray
    down_port: np.ndarray
    leaves: int


class Router(NamedTuple):
    """The inputs of routing besides the state of the ports."""

    net: Net
    seeds: np.ndarray  # (devices,) int64, of the hashes
    alias: np.ndarray  # (adapters,) int64, the adapter that sends and receives instead


def net_of(topology: FabricTopology) -> Net:
    """Return a topology's arrays for kernels."""
    t, leaves = topology, int(topology.leaf_number.max()) + 1
    return Net(t.owner, t.peer.astype(np.int32), t.stage, t.leaf, t.leaf_number, t.up_start, t.up_port, t.down_start, t.down_port, leaves)


@numba.njit(cache=True)
def _usable(net, up, port, goal):
    """Return whether a port is up and the device behind it has a working path to the leaf ``goal``."""
    if not up[port]:
        return False
    device = net.peer[port]
    if net.leaf_number[device] >= 0:
        return True
    row = device * net.leaves + goal
    found = False
    for k in range(net.down_start[row], net.down_start[row + 1]):
        found |= up[net.down_port[k]]
    return found or net.down_start[row] == net.down_start[row + 1]


@numba.njit(cache=True)
def _choose(net, ports, choices, goal, key, seed, adaptive):
    """Return one of the usable ``choices`` (n,) of ports, -1 if there is none."""
    usable = 0
    least = np.int64(-1)
    for port in choices:
        if _usable(net, ports.up, port, goal):
            usable += 1
            if least < 0 or ports.load[port] < ports.load[least]:
                least = port
    if usable == 0 or adaptive:
        return least
    pick = np.int64(draw(seed, key, 0) % np.uint64(usable))
    for port in choices:
        if _usable(net, ports.up, port, goal):
            if pick == 0:
                return np.int64(port)
            pick -= 1
    return least


@numba.njit(cache=True)
def route(net, ports, seeds, source, target, entropy, adaptive, path):
    """Write the ports from adapter ``source`` to adapter ``target`` into ``path`` (HOPS_MAX,) int32; return how many, 0: no path.

    ``ports`` are rows of ``state.PORT``, of which ``up`` and, for adaptive routing, ``load`` count; ``seeds`` (devices,) int64 are the
    hash seeds, ``entropy`` is the UDP source port.
    """
    path[:] = -1
    if not (ports.up[2 * source] and ports.up[2 * target + 1]):
        return 0
    key = np.int64(mix(np.uint64(source) << np.uint64(40) | np.uint64(target) << np.uint64(16) | np.uint64(entropy)) >> np.uint64(1))
    path[0] = 2 * source
    device, goal_device, hops = net.leaf[source], net.leaf[target], 1
    goal = net.leaf_number[goal_device]
    while device != goal_device:
        row = device * net.leaves + goal
        if net.down_start[row] < net.down_start[row + 1]:
            choices = net.down_port[net.down_start[row] : net.down_start[row + 1]]
        else:
            choices = net.up_port[net.up_start[device] : net.up_start[device + 1]]
        port = _choose(net, ports, choices, goal, key, seeds[device], adaptive)
        if port < 0 or hops >= HOPS_MAX - 1:
            return 0
        path[hops] = port
        hops += 1
        device = net.peer[port]
    path[hops] = 2 * target + 1
    return hops + 1
