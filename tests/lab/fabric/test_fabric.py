"""The virtual fabric conserves bytes, runs its jobs by the formulas, and is deterministic."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import InjectedFault
from weft.lab.fabric.topology import clos, rail_fabric, toy
from weft.lab.fabric.workload import Job, Phase, dense, inference, training

US, MS = 1_000, 1_000_000
# Ethernet, IP, UDP, BTH, ICRC and FCS around 4 KiB, then preamble and gap.
PAYLOAD_SHARE = 4096 / (4096 + 14 + 20 + 8 + 12 + 4 + 4 + 20)


def ring(payload_bytes: int, **more) -> Job:
    """Return a job of consecutive all-reduces over each rail of two racks of two hosts."""
    return Job("ring", (0, 1, 2, 3), (Phase(MS, "allreduce", "rail", payload_bytes),), **{"jitter": 0.0, **more})


def leaks(fabric: Fabric) -> list[str]:
    """Return every balance of bytes that is not zero, from the raw counters alone."""
    world, topology = fabric.world, fabric.topology
    ports, flows = world.ports, world.flows
    arrived = ports.sent - ports.vanished - ports.broken
    wrong = []
    for device in np.flatnonzero(topology.tier > 0).tolist():
        into, out = topology.peer == device, topology.owner == device
        kept = ports.sent[out].sum() + ports.depth[out].sum() + ports.dropped[out].sum()
        if arrived[into].sum() != kept:
            wrong.append(f"{topology.device_names[device]}: {arrived[into].sum()} in, {kept} kept")
    first, last = topology.stage == 0, topology.stage == 5
    lost = (ports.vanished + ports.broken + ports.dropped).sum()
    if ports.sent[first].sum() != flows.received.sum() + flows.flight.sum() + lost:
        wrong.append("total")
    if arrived[last].sum() != flows.received.sum():
        wrong.append("received")
    if (flows.flight != flows.queued.sum(axis=1)).any() or (flows.queued < 0).any() or (flows.good > flows.total).any():
        wrong.append("flows")
    if ports.depth.sum() != flows.queued.sum() or (np.minimum.reduce([ports.depth, ports.held, ports.sent]) < 0).any():
        wrong.append("queues")
    return wrong


@st.composite
def troubles(draw):
    """Draw a few faults on the toy fabric."""
    host = st.sampled_from([f"host-000{host}/mlx5_{rail}" for host in range(4) for rail in range(2)])
    link = st.one_of(host, st.sampled_from(["leaf-00-0/Ethernet16", "leaf-01-1/Ethernet24", "spine-00/Ethernet0"]))
    places = {
        **dict.fromkeys(("slow_nic", "pause_storm", "rail_down", "incast"), host),
        **dict.fromkeys(("dirty_fibre", "link_flap", "silent_loss"), link),
        **dict.fromkeys(("pfc_off",), st.sampled_from(["leaf-00-0", "spine-00", "leaf-01-1"])),
        **dict.fromkeys(("hash_polarization", "few_qps", "ecn_thresholds"), st.just("")),
    }
    made = []
    for kind in draw(st.lists(st.sampled_from(sorted(places)), max_size=4)):
        severity = draw(st.floats(0.001, 0.01)) if kind in ("dirty_fibre", "silent_loss") else draw(st.floats(0.0, 1.0))
        begin, span = draw(st.integers(0, 3 * MS)), draw(st.integers(1, 3 * MS))
        made.append(InjectedFault(kind, draw(places[kind]), begin, span, severity))
    return tuple(made)


@settings(max_examples=20, deadline=None)
@given(
    faults=troubles(),
    seed=st.integers(0, 2**32),
    step_ns=st.sampled_from([10 * US, 50 * US, 250 * US]),
    buffer_bytes=st.sampled_from([300_000, 3_000_000]),
    dcqcn=st.booleans(),
)
def test_no_byte_is_lost_from_the_books(faults, seed, step_ns, buffer_bytes, dcqcn):
    """After every step, under random faults, bytes into a switch have left it, wait in it or were dropped; likewise for the fabric."""
    jobs = (
        replace(ring(4_000_000), queue_pairs=2),
        Job("mixed", (0, 1, 2, 3), (Phase(100 * US, "alltoall", "all", 1_000_000), Phase(0, "allreduce_tree", "rail", 500_000))),
        inference("serving", (0, 2), think_ns=300 * US),
    )
    config = FabricConfig(
        toy(), jobs, faults, step_ns=step_ns, sample_ns=step_ns, counter_ns=4 * step_ns, buffer_bytes=buffer_bytes, dcqcn=dcqcn
    )
    fabric = Fabric(config, seed)
    for step in range(1, 6 * MS // step_ns):
        fabric.advance(step * step_ns)
        assert leaks(fabric) == [], step


@pytest.mark.parametrize("step_ns", [50 * US, 1000 * US])
def test_the_books_of_three_tiers(step_ns):
    """Bytes are also conserved in a three-tier fabric with equal seeds, a tier without pauses and small buffers."""
    topology = clos([("G", f"P{n % 2}", f"S{n // 2 % 3}") for n in range(12)], aggregations=2, cores=2)
    faults = (
        InjectedFault("hash_polarization", "", 2 * MS, 3 * MS),
        InjectedFault("pfc_off", "agg-G-P0-0"),
        InjectedFault("noisy_neighbour", "", MS, 5 * MS, 0.01),
    )
    job = Job("mixed", tuple(range(12)), (Phase(100 * US, "alltoall", "all", 2_000_000), Phase(0, "allreduce", "rail", 4_000_000)))
    config = FabricConfig(topology, (job,), faults, step_ns=step_ns, sample_ns=step_ns, counter_ns=step_ns, buffer_bytes=400_000)
    fabric = Fabric(config, 4)
    for until in range(step_ns, 10 * MS, step_ns):
        fabric.advance(until)
        assert leaks(fabric) == [], until
    assert fabric.world.ports.sent[topology.stage == 3].sum() > 0 and fabric.world.ports.dropped.sum() > 0


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays are the same to the last bit."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("cuts", [[7, 30], [1, 2, 3, 29, 30], [10, 20, 30]])
def test_any_cut_gives_the_same_bytes(cuts):
    """The fabric is a function of its configuration, its seed and time, not of the number of calls."""
    faults = (
        InjectedFault("silent_loss", "leaf-00-0/Ethernet16", 3 * MS, 20 * MS, 0.01),
        InjectedFault("link_flap", "leaf-01-1/Ethernet16", 3_333_333, 15 * MS, 1.0),
        InjectedFault("dirty_fibre", "host-0001/mlx5_1", 5 * MS, 20 * MS, 2e-3),
        InjectedFault("slow_nic", "host-0003/mlx5_0", 12_345_678, 5 * MS, 0.5),
    )
    config = FabricConfig(toy(), (replace(ring(8_000_000), jitter=0.1),), faults, counter_ns=4 * MS, packet_sampling=50)
    whole, cut = Fabric(config, 7), Fabric(config, 7)
    expected, parts = whole.advance(30 * MS), [cut.advance(until * MS) for until in cuts]
    for name in ("sent", "received", "depth", "flows", "iterations", "packets", "events", "latency_ns"):
        assert same(np.concatenate([getattr(part, name) for part in parts]), getattr(expected, name)), name
    counters = [sample for part in parts for sample in part.counters]
    for sample, other in zip(counters, expected.counters, strict=True):
        assert sample.at_ns == other.at_ns and same(sample.fec_bins, other.fec_bins)
        assert all(same(sample.ports[name], other.ports[name]) for name in other.ports)
        assert all(same(sample.adapters[name], other.adapters[name]) for name in other.adapters)
    assert not same(Fabric(config, 8).advance(30 * MS).sent, expected.sent)


def test_what_does_not_fit_is_refused():
    """A time too long for one call, and steps that do not divide the samples, are refused before anything is allocated."""
    with pytest.raises(ValueError, match="shorter pieces"):
        Fabric(FabricConfig(toy(), (ring(1),)), 1).advance(10**17)
    with pytest.raises(ValueError, match="multiple"):
        FabricConfig(toy(), step_ns=30 * US, sample_ns=100 * US)
    with pytest.raises(ValueError, match="stages"):
        Fabric(FabricConfig(toy(), (replace(ring(1), stages=3),)), 1)


@pytest.mark.parametrize(("collective", "share"), [("allreduce", 2 * 3 / 4), ("allgather", 3 / 4), ("reducescatter", 3 / 4)])
def test_a_ring_runs_at_line_rate(collective, share):
    """A ring over four hosts takes 2(n-1)/n S / B for an all-reduce, half of it for its halves, within 2 %."""
    payload = 100_000_000
    job = Job("ring", (0, 1, 2, 3), (Phase(MS, collective, "rail", payload),), jitter=0.0, queue_pairs=1)
    # Four spines with one flow of each rail: no link is shared.
    fabric = Fabric(FabricConfig(toy(rails=1, spines=1, parallel=2, speed_bps=400_000_000_000), (job,), step_ns=10 * US), 3)
    ended = fabric.advance(60 * MS).iterations
    expected_ns = share * payload * 8 / (400e9 * PAYLOAD_SHARE) * 1e9
    assert len(ended) >= 5
    assert ended[1:, 4] == pytest.approx(expected_ns, rel=0.02)
    assert ended[1:, 3] - ended[1:, 2] == pytest.approx(expected_ns + MS, rel=0.02)


def test_an_iteration_pays_for_its_slowest_adapter():
    """With one adapter at half its rate, a ring takes twice as long, and all its members slow down."""
    config = FabricConfig(toy(rails=1, spines=1, parallel=2), (ring(20_000_000, queue_pairs=1),), step_ns=10 * US)
    fault = InjectedFault("slow_nic", "host-0002/mlx5_0", severity=0.5)
    sound, slowed = Fabric(config, 1).advance(40 * MS), Fabric(replace(config, faults=(fault,)), 1).advance(40 * MS)
    assert slowed.iterations[1:, 4] == pytest.approx(2 * sound.iterations[1, 4], rel=0.02)
    pace = slowed.flows[:, 3] / (slowed.flows[:, 2] - slowed.flows[:, 1])
    assert pace == pytest.approx(np.full(len(pace), pace.mean()), rel=0.05)


def test_a_neighbour_is_felt():
    """Another job on the same hosts takes bandwidth while it runs, and only then."""
    job = Job("ring", tuple(range(4)), (Phase(2 * MS, "allreduce", "rail", 40_000_000),), jitter=0.0)
    fault = InjectedFault("noisy_neighbour", "host-0000", 60 * MS, 100 * MS, 1.0)
    ended = Fabric(FabricConfig(toy(), (job,), (fault,), step_ns=100 * US), 1).advance(260 * MS).iterations
    mine = ended[ended[:, 0] == 0]
    before, after = mine[mine[:, 3] < 60 * MS, 4], mine[mine[:, 2] > 200 * MS, 4]
    during = mine[(mine[:, 2] > 100 * MS) & (mine[:, 3] < 160 * MS), 4]
    assert len(during) and during.max() > 1.3 * before[1:].max()
    assert after.mean() == pytest.approx(before[1:].mean(), rel=0.1)


def test_an_incast_fills_one_queue():
    """A repeated incast fills one queue every 20 ms, marks its packets, and increases the delay of the path."""
    config = FabricConfig(rail_fabric(1, 8, 2, racks_per_pod=1), (), (InjectedFault("incast", "host-0000/mlx5_1", severity=0.2),))
    fabric = Fabric(config, 1)
    step = fabric.advance(200 * MS)
    port = 2 * 1 + 1
    busy = np.flatnonzero(step.sent[:, port] > 0)
    # 7 senders of 7.2 MB at 400G: a millisecond, then silence until the next.
    starts = busy[np.flatnonzero(np.diff(busy, prepend=-9) > 5)]
    assert len(starts) >= 8 and np.diff(starts) == pytest.approx(np.full(len(starts) - 1, 21), abs=1)
    assert np.delete(step.depth.max(axis=0), port).max() < step.depth[:, port].max()
    assert step.counters[-1].ports["marked"][port] > 0


def test_a_slow_gpu_is_named():
    """A GPU that computes twice as long makes the iteration longer by as much, and waits least."""
    job = replace(ring(1_000_000), phases=(Phase(4 * MS, "allreduce", "rail", 1_000_000),))
    config = FabricConfig(toy(), (job,), (InjectedFault("slow_gpu", "host-0001/mlx5_1", severity=1.0),), step_ns=50 * US)
    ended = Fabric(config, 1).advance(60 * MS).iterations
    assert (ended[2:, 5] == 3).all()
    assert (ended[2:, 3] - ended[2:, 2]).min() >= 8 * MS
    assert ended[2:, 3] - ended[2:, 2] == pytest.approx(np.full(len(ended) - 2, 8 * MS), rel=0.05)


def test_bytes_are_what_the_collectives_say():
    """Over whole iterations, each adapter sends the sum of its collectives' formulas."""
    hosts, rails, payload = 4, 2, 1_000_000
    phases = (
        Phase(MS, "allreduce", "rail", payload),
        Phase(0, "alltoall", "all", payload),
        Phase(0, "allreduce", "all", payload),
        Phase(0, "send", "column", payload),
    )
    job = Job("all", tuple(range(hosts)), phases, jitter=0.0, stages=2)
    fabric = Fabric(FabricConfig(toy(rails=rails), (job,), step_ns=50 * US, counter_ns=MS), 2)
    step = fabric.advance(40 * MS)
    done = len(step.iterations)
    n, stage = hosts * rails, hosts // 2
    payloads = 2 * (stage - 1) / stage * payload + rails / n * payload * (hosts - 1) + 2 * (n - 1) / n * payload / rails + payload
    sent = fabric.world.ports.sent[: 2 * n : 2]
    assert (sent >= done * payloads * 4158 / 4096 - 1).all()
    assert (sent <= (done + 1) * payloads * 4158 / 4096 + 100).all()


def test_jobs_on_the_default_fabric():
    """The default fabric runs a training job with checkpoints, a dense job and inference side by side, with all NVLinks in use."""
    jobs = (
        training("moe", range(16), microbatches=1, layers=1, store_every=1),
        dense("dense", range(16, 28), compute_ns=20 * MS, payload_bytes=200_000_000),
        inference("serving", range(28, 32)),
    )
    fabric = Fabric(FabricConfig(rail_fabric(), jobs, step_ns=250 * US), 1)
    step = fabric.advance(300 * MS)
    assert set(step.iterations[:, 0]) == {0, 1}
    assert leaks(fabric) == []
    sample = step.counters[-1]
    assert (sample.gpus["nvlink"][: 28 * 8] > 0).all()
    stores = np.arange(32 * 8, 34 * 8)
    assert (sample.ports["sent"][2 * stores + 1] > 0).all() and (sample.ports["sent"][2 * stores] == 0).all()
    assert (sample.gpus["busy_ns"][: 28 * 8] <= step.until_ns).all()
    assert (step.flows[:, 2] > step.flows[:, 1]).all()
