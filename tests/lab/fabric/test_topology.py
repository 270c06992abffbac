"""Paths of the virtual fabric go up and down, spread by hash, and follow the topology."""

import numpy as np
import pytest
from shared_data import SHARED

from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import InjectedFault
from weft.lab.fabric.routing import HOPS_MAX, net_of, route
from weft.lab.fabric.state import make_ports
from weft.lab.fabric.topology import clos, clos_from, rail_fabric, sized, toy
from weft.lab.fabric.workload import Job, Phase
from weft.pipeline.errors import InputError

MS = 1_000_000
SHAPES = {
    "toy": toy(),
    "rail": rail_fabric(),
    "clos": clos([("G", f"P{n % 3}", f"S{n % 6}") for n in range(24)]),
}


def paths(topology, seeds, count=400, seed=1):
    """Return random (source, target) and the ports between, by the router."""
    random = np.random.default_rng(seed)
    net, ports = net_of(topology), make_ports(topology)
    for _ in range(count):
        source, target = random.integers(0, topology.adapters, 2).tolist()
        path = np.full(HOPS_MAX, -1, np.int32)
        hops = route(net, ports, seeds, source, target, int(random.integers(49152, 65536)), False, path)
        yield source, target, path[:hops].tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_every_path_is_a_path(name):
    """A path between any two adapters is connected, goes up and then down, and visits no device twice."""
    topology = SHAPES[name]
    seeds = np.arange(len(topology.tier)) * 7919
    for source, target, path in paths(topology, seeds):
        if source == target:
            continue
        devices = [int(topology.owner[path[0]]), *(int(topology.peer[port]) for port in path)]
        assert [int(topology.owner[port]) for port in path] == devices[:-1]
        assert path[0] == 2 * source and path[-1] == 2 * target + 1
        stages = [int(topology.stage[port]) for port in path]
        assert stages == sorted(set(stages))
        assert len(set(devices[1:-1])) == len(devices) - 2


def test_the_default_fabric_has_the_documented_shape():
    """Four racks of eight hosts with eight GPUs: one leaf per rail and pod, and as many wires up as down."""
    topology = rail_fabric()
    assert topology.gpus == 256 and topology.rails == 8
    leaf = topology.device_names.index("leaf-00-0")
    out = topology.owner == leaf
    assert (out & (topology.stage == 1)).sum() == 16
    assert (out & (topology.stage == 5)).sum() == 17
    assert {topology.device_names[topology.leaf[n]] for n in range(8)} == {f"leaf-00-{rail}" for rail in range(8)}


@pytest.mark.parametrize("gpus", [64, 512, 4096])
def test_sizes(gpus):
    """Fabrics of 64 to 4,096 GPUs have them, and names are unique."""
    topology = sized(gpus)
    assert topology.gpus == gpus
    assert len(set(topology.device_names)) == len(topology.device_names)
    assert len({(topology.owner[p], topology.port_names[p]) for p in range(topology.ports)}) == topology.ports


def test_hashing_is_as_good_as_luck():
    """Flows of a pair of leaves spread over the uplinks like independent draws: J is near F / (F + n - 1)."""
    topology = rail_fabric()
    net, ports = net_of(topology), make_ports(topology)
    seeds = np.arange(len(topology.tier)) * 7919 + 11
    counts = np.zeros(topology.ports)
    flows, path = 4000, np.full(HOPS_MAX, -1, np.int32)
    for n in range(flows):
        route(net, ports, seeds, 8 * (n % 16), 128 + 8 * (n // 16 % 16), 49152 + n, False, path)
        counts[path[:4]] += 1
    for device, stage in (("leaf-00-0", 1),):
        ups = counts[(topology.owner == topology.device_names.index(device)) & (topology.stage == stage)]
        jain = ups.sum() ** 2 / (len(ups) * (ups**2).sum())
        null = flows / (flows + len(ups) - 1)
        # The statistic F (1/J - 1) is chi-squared with n - 1 degrees of freedom: five deviations.
        assert flows * (1 / jain - 1) == pytest.approx(len(ups) - 1, abs=5 * np.sqrt(2 * (len(ups) - 1)))
        assert jain / null == pytest.approx(1, abs=0.01)


def balance(faults):
    """Return J over J0 of the spines' downlinks under a permutation of many flows, summed over the run."""
    topology = rail_fabric(racks=4, hosts_per_rack=8, rails=1, racks_per_pod=2, spines=4, parallel=4, storage=0)
    job = Job("a", tuple(range(32)), (Phase(MS, "alltoall", "all", 3_200_000),), queue_pairs=4)
    fabric = Fabric(FabricConfig(topology, (job,), faults, step_ns=50_000), 5)
    fabric.advance(40 * MS)
    sent, ratios = fabric.world.ports.sent, []
    for spine in np.flatnonzero(topology.tier == 2):
        for leaf in np.flatnonzero(topology.tier == 1):
            x = sent[(topology.owner == spine) & (topology.peer == leaf)].astype(float)
            flows = 2 * 16 * 16 * 4 / 2 / 4
            ratios.append(x.sum() ** 2 / (len(x) * (x**2).sum()) / (flows / (flows + len(x) - 1)))
    return np.mean(ratios)


def test_one_seed_everywhere_polarises():
    """With a seed per switch flows balance like independent draws; with one seed spines use a fraction of their links."""
    assert balance(()) == pytest.approx(1, abs=0.1)
    assert balance((InjectedFault("hash_polarization"),)) < 0.5


def test_few_queue_pairs_collide():
    """Pairs across the spines take longer with one queue pair instead of 32, since whole flows share a link."""
    topology = rail_fabric(racks=2, hosts_per_rack=8, rails=1, racks_per_pod=1, spines=4, parallel=2, storage=0)
    job = Job("pairs", tuple(range(16)), (Phase(MS, "send", "column", 50_000_000),), stages=2, queue_pairs=32, jitter=0.0)
    times = []
    for faults in ((), (InjectedFault("few_qps", "pairs"),)):
        times.append(Fabric(FabricConfig(topology, (job,), faults, step_ns=50_000), 1).advance(60 * MS).iterations[1:, 4].mean())
    assert times[1] > 1.3 * times[0]


def test_a_dead_rail_is_taken_over():
    """When an adapter's link fails, the next rail carries both, iterations continue, and there is an event."""
    job = Job("ring", (0, 1, 2, 3), (Phase(MS, "allreduce", "rail", 10_000_000),), jitter=0.0)
    fabric = Fabric(FabricConfig(toy(), (job,), (InjectedFault("rail_down", "host-0001/mlx5_0", 20 * MS),), step_ns=50_000), 1)
    before = fabric.advance(20 * MS)
    after = fabric.advance(120 * MS)
    assert after.sent[2:, [4, 5]].sum() == 0 and before.sent[:, 4].sum() > 0
    assert len(after.iterations) > 5
    assert after.iterations[-1, 4] > 1.8 * before.iterations[0, 4]
    assert after.events.tolist() == [[20 * MS, 4, 0], [20 * MS, 5, 0]]


def test_a_flapping_link_is_led_around():
    """While an uplink is down nothing is sent on it, flows are rerouted, and traffic continues."""
    place = "leaf-00-0/Ethernet16"
    job = Job("ring", (0, 1, 2, 3), (Phase(MS, "allreduce", "rail", 10_000_000),), jitter=0.0)
    topology = toy()
    port = topology.port_of(*place.split("/"))
    fabric = Fabric(FabricConfig(topology, (job,), (InjectedFault("link_flap", place, 50 * MS, 400 * MS, 1.0),), step_ns=50_000), 1)
    step = fabric.advance(500 * MS)
    assert [(at, up) for at, p, up in step.events.tolist() if p == port] == [
        (at * MS, up) for at, up in ((50, 0), (150, 1), (250, 0), (350, 1))
    ]
    assert step.sent[50:150, port].sum() == 0 and step.sent[250:350, port].sum() == 0
    assert step.sent[50:150, topology.owner == topology.owner[port]].sum() > 0
    assert step.sent[:50, port].sum() > 0 and step.sent[160:250, port].sum() > 0


def test_adaptive_routing_spreads_better_than_hashing():
    """With adaptive routing, the flows of a balanced permutation share no link."""
    topology = rail_fabric(racks=2, hosts_per_rack=8, rails=1, racks_per_pod=1, spines=8, parallel=1, storage=0)
    job = Job("pairs", tuple(range(16)), (Phase(MS, "send", "column", 50_000_000),), stages=2, queue_pairs=1, jitter=0.0)
    times = []
    for adaptive in (False, True):
        made = Job(job.name, job.hosts, job.phases, stages=2, queue_pairs=1, jitter=0.0, adaptive=adaptive)
        times.append(Fabric(FabricConfig(topology, (made,), step_ns=50_000), 1).advance(40 * MS).iterations[1:, 4].mean())
    assert times[1] == pytest.approx(50_000_000 * 8 / (400e9 * 4096 / 4178) * 1e9, rel=0.05)
    assert times[0] > 1.3 * times[1]


def test_the_published_clos():
    """The published table of a three-tier cluster gives a fabric: every host is on its row's leaf, every pair is connected."""
    path = SHARED / "alibaba-lingjun" / "topo.csv"
    if not path.exists():
        pytest.skip("the shared data folder is not here")
    topology = clos_from(path)
    assert topology.gpus == 2 * 847
    assert (topology.tier == 3).sum() == 4
    # 119 combinations of pod and leaf, 3 pods.
    assert (topology.tier == 1).sum() == 119 and (topology.tier == 2).sum() == 12
    assert all(path for source, target, path in paths(topology, np.arange(len(topology.tier)), 100) if source != target)


def test_a_table_of_something_else_is_refused(tmp_path):
    """A file without the three columns is a user's error with a hint."""
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="DSW"):
        clos_from(tmp_path / "a.csv")
