"""Queues, marks, pauses and rates agree with their closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import InjectedFault
from weft.lab.fabric.topology import rail_fabric
from weft.lab.fabric.workload import Job, Phase

US, MS = 1_000, 1_000_000
LINE_BPS = 400_000_000_000
LINE = LINE_BPS / 8 * 4158 / 4178  # bytes of frames a second


def senders(count: int, payload_bytes: int, **more) -> tuple[Job, ...]:
    """Return jobs of one host each that repeatedly send to host 0, rail 0."""
    phases = (Phase(0, "incast", "self", payload_bytes),)
    return tuple(
        Job(f"sender-{host}", (host,), phases, rails=(0,), queue_pairs=1, target=0, jitter=0.0, **more) for host in range(1, count + 1)
    )


def star(count: int, **more) -> FabricConfig:
    """Return a fabric of ``count`` senders and one receiver on one leaf."""
    topology = rail_fabric(1, count + 1, 1, speed_bps=LINE_BPS, spines=1, parallel=1, storage=0)
    return FabricConfig(topology, **{"jobs": senders(count, 10**9), "step_ns": 10 * US, "sample_ns": 100 * US, "counter_ns": MS, **more})


def two_leaves(count: int, **more) -> FabricConfig:
    """Return senders and the last host on one leaf, the receiver on another, behind one spine with enough links."""
    topology = rail_fabric(2, count, 1, speed_bps=LINE_BPS, racks_per_pod=1, spines=1, parallel=count, storage=0)
    hosts = range(count, 2 * count)
    phases = (Phase(0, "incast", "self", 10**9),)
    jobs = tuple(Job(f"s{host}", (host,), phases, rails=(0,), queue_pairs=4, target=0, jitter=0.0) for host in hosts)
    return FabricConfig(topology, **{"jobs": jobs, "step_ns": 10 * US, "sample_ns": 100 * US, "counter_ns": MS, **more})


def test_the_bottleneck_is_full_and_nothing_is_lost():
    """Eight senders at line rate deliver exactly the receiver's line rate, also without congestion control."""
    step = Fabric(star(8, dcqcn=False), 1).advance(5 * MS)
    assert step.sent[1:, 1] == pytest.approx(LINE * 100e-6, rel=1e-4)
    assert step.counters[-1].ports["dropped"].sum() == 0


def test_marks_come_before_pauses():
    """With Kmin and Kmax far below the pause threshold, two senders into one are marked and never paused."""
    last = Fabric(star(2), 1).advance(10 * MS).counters[-1]
    assert last.ports["marked"][1] > 0 and last.adapters["cnp_sent"][0] > 0
    assert last.ports["paused_ns"].sum() == 0


def test_late_marks_let_pauses_come_first():
    """With marking thresholds beyond the buffer's share, the same senders are paused and nothing is marked."""
    config = star(2, faults=(InjectedFault("ecn_thresholds", severity=1.0),))
    last = Fabric(config, 1).advance(10 * MS).counters[-1]
    assert last.ports["paused_ns"][[2, 4]].min() > 0 and last.ports["frames"][[2, 4]].min() > 0
    assert last.ports["marked"].sum() == 0 and last.ports["dropped"].sum() == 0


def test_paused_senders_stand_still_for_what_they_cannot_send():
    """Two senders paused to half the line rate each are paused half of the time."""
    config = star(2, dcqcn=False, faults=(InjectedFault("ecn_thresholds", severity=1.0),))
    counters = Fabric(config, 1).advance(20 * MS).counters
    first, last = counters[4], counters[-1]
    share = (last.ports["paused_ns"] - first.ports["paused_ns"])[[2, 4]] / (last.at_ns - first.at_ns)
    assert share == pytest.approx(0.5, rel=0.02)


def test_marking_follows_the_law():
    """The mean share of marked packets at a constant queue depth is Pmax (q - Kmin) / (Kmax - Kmin)."""
    # Without congestion control pauses keep the queue at one depth, at which the formula gives the expected share.
    config = star(2, dcqcn=False, ecn_kmin_bytes=1_000_000, ecn_kmax_bytes=60_000_000, ecn_pmax=0.5)
    counters = Fabric(config, 1).advance(10 * MS).counters
    depth = counters[-1].ports["depth"][1]
    packets = (counters[-1].ports["sent"][1] - counters[-2].ports["sent"][1]) / 4158
    marked = counters[-1].ports["marked"][1] - counters[-2].ports["marked"][1]
    assert 1_000_000 < depth < 60_000_000
    assert marked / packets == pytest.approx(0.5 * (depth - 1_000_000) / 59_000_000, rel=0.01)


@pytest.mark.parametrize("step_ns", [10 * US, 50 * US])
def test_two_flows_come_to_fair_shares(step_ns):
    """A flow that joins another at line rate gets half within a fifth after 40 ms, and the link stays full."""
    first, second = senders(2, 10**10)
    config = star(2, jobs=(first, replace(second, start_ns=5 * MS)), step_ns=step_ns)
    fabric = Fabric(config, 1)
    fabric.advance(45 * MS)
    before = fabric.world.flows.received.copy()
    fabric.advance(75 * MS)
    share = (fabric.world.flows.received - before) / (LINE * 30e-3)
    assert share == pytest.approx(0.5, rel=0.2)
    assert share.sum() > 0.9


@pytest.mark.parametrize("step_ns", [10 * US, 100 * US, 1000 * US])
def test_no_lossless_queue_drops(step_ns):
    """With any step, sixteen senders at line rate fill no ingress beyond threshold and headroom, and nothing is dropped."""
    config = star(16, dcqcn=False, step_ns=step_ns, sample_ns=MS, buffer_bytes=8_000_000)
    last = Fabric(config, 1).advance(20 * MS).counters[-1]
    assert last.ports["dropped"].sum() == 0
    inside = config.buffer_alpha * config.buffer_bytes / (1 + config.buffer_alpha * 16)
    fly = LINE * config.pause_delay_ns / 1e9
    assert last.ports["held"][2:34:2] == pytest.approx(inside + fly, rel=0.01)
    assert last.ports["held_max"].sum() <= config.buffer_bytes + 17 * config.headroom_bytes


def test_a_hop_without_pauses_drops():
    """If one switch does not pause its senders, the same incast overflows it and is resent; other switches drop nothing."""
    config = two_leaves(8, dcqcn=False, faults=(InjectedFault("pfc_off", "leaf-00-0"),), buffer_bytes=8_000_000)
    last = Fabric(config, 1).advance(20 * MS).counters[-1]
    owner = config.topology.owner
    at_leaf = owner == config.topology.device_names.index("leaf-00-0")
    assert last.ports["dropped"][at_leaf].sum() > 0 and last.ports["dropped"][~at_leaf].sum() == 0
    assert last.adapters["out_of_sequence"][0] > 0 and last.adapters["resent"].sum() > 0


def test_pauses_go_upstream_hop_by_hop():
    """An incast behind two switches pauses the spine, then the senders' leaf, then the senders, in this order."""
    fabric = Fabric(two_leaves(8, dcqcn=False, counter_ns=100 * US), 1)
    counters = fabric.advance(20 * MS).counters
    stage = fabric.topology.stage
    begun = [next(r.at_ns for r in counters if r.ports["paused_ns"][stage == s].sum() > 0) for s in (4, 1, 0)]
    assert begun == sorted(begun) and begun[0] < begun[2]


def test_victims_wait_behind_a_paused_port():
    """A flow to an idle receiver is a victim when its sender's leaf is paused because of another flow."""
    config = two_leaves(4, dcqcn=False, buffer_bytes=4_000_000)
    phases = (Phase(0, "incast", "self", 10**9),)
    victim = Job("victim", (7,), phases, rails=(0,), queue_pairs=4, target=1, jitter=0.0)
    alone = Fabric(replace(config, jobs=(victim,)), 1)
    among = Fabric(replace(config, jobs=(*config.jobs, victim)), 1)
    alone.advance(20 * MS)
    among.advance(20 * MS)
    # It shares its adapter with one of the four, so its fair share is half of the line rate.
    assert among.world.ports.sent[3] < 0.8 * alone.world.ports.sent[3] / 2


def test_a_stopped_host_stops_its_leaf():
    """A receiver that accepts nothing pauses its leaf all the time, and soon the senders."""
    config = star(2, dcqcn=False, faults=(InjectedFault("pause_storm", "host-0000/mlx5_0", 5 * MS, 10 * MS, 1.0),))
    counters = Fabric(config, 1).advance(20 * MS).counters
    at = {sample.at_ns: sample for sample in counters}
    during = at[14 * MS].ports["paused_ns"] - at[7 * MS].ports["paused_ns"]
    assert during[[1, 2, 4]] == pytest.approx(7 * MS, rel=0.01)
    assert at[14 * MS].ports["sent"][1] == at[6 * MS].ports["sent"][1]
    assert at[20 * MS].ports["sent"][1] - at[16 * MS].ports["sent"][1] > 0.8 * LINE * 4e-3


def test_waiting_in_a_ring_never_ends():
    """Two misroutes that go up twice fill four switches in a ring until nothing moves; without them traffic continues."""
    topology = rail_fabric(2, 2, 1, speed_bps=LINE_BPS, racks_per_pod=1, spines=2, parallel=1, storage=0)
    fault = InjectedFault("cyclic_buffers", "leaf-00-0,leaf-01-0", severity=1.0)
    config = FabricConfig(topology, (), (fault,), step_ns=10 * US, counter_ns=MS, dcqcn=False, buffer_bytes=4_000_000)
    fabric = Fabric(config, 1)
    counters = fabric.advance(50 * MS).counters
    sent = np.stack([sample.ports["sent"] for sample in counters])
    inner = (topology.stage == 1) | (topology.stage == 4)
    ring = np.flatnonzero(inner & (sent[-1] > 0))
    assert len(ring) == 4 and (sent[-1] == sent[-10]).all()
    paused = counters[-1].ports["paused_ns"] - counters[-10].ports["paused_ns"]
    assert paused[ring] == pytest.approx(9 * MS, rel=0.01)
    assert counters[-1].ports["dropped"].sum() == 0
    sound = Fabric(replace(config, jobs=fabric.workload.jobs, faults=()), 1).advance(50 * MS)
    assert sound.sent[-10:, 2 * topology.adapters :].sum() == 0 and sound.sent[-10:, [0, 4]].sum(axis=1).min() > 0.9 * 2 * LINE * 1e-3


def test_silent_loss_is_lost_and_uncounted():
    """A link with a loss of a thousandth loses as many packets, they are resent, and no drop counter changes."""
    config = star(1, faults=(InjectedFault("silent_loss", "host-0001/mlx5_0", severity=1e-3),))
    # Some 1,200 packets are lost: three deviations are a tenth.
    last = Fabric(config, 1).advance(100 * MS).counters[-1]
    assert last.ports["vanished"][2] / last.ports["sent"][2] == pytest.approx(1e-3, rel=0.1)
    assert last.ports["dropped"].sum() == 0 and last.ports["broken"].sum() == 0
    assert last.adapters["resent"][1] >= last.ports["vanished"][2] / 4158


# At 1 % several gaps fall into one step and are counted less exactly.
@pytest.mark.parametrize(("chance", "within"), [(1e-4, 0.01), (1e-3, 0.05), (1e-2, 0.2)])
@pytest.mark.parametrize("step_ns", [10 * US, 250 * US])
def test_goodput_under_go_back_n(chance, within, step_ns):
    """Each gap costs the bytes in flight: goodput is 1 / (1 + p w), w packets per round trip, with fine and coarse steps."""
    faults = (InjectedFault("silent_loss", "host-0001/mlx5_0", severity=chance),)
    config = star(1, jobs=senders(1, 10**11), faults=faults, step_ns=step_ns, sample_ns=MS)
    fabric = Fabric(config, 1)
    fabric.advance(200 * MS)
    window = LINE * config.round_trip_ns / 1e9 / 4158
    good = fabric.world.flows.good[0] / (LINE * 200e-3)
    assert good == pytest.approx(1 / (1 + chance * window), rel=within)


@pytest.mark.parametrize(("step_ns", "chance", "span_ns"), [(10 * US, 0.02, 600 * MS), (250 * US, 0.005, 3000 * MS)])
def test_a_timeout_takes_the_last_packet(step_ns, chance, span_ns):
    """A sender waits for its timer only if a flow's last packet is lost, as often as any other packet, with any step."""
    timeout = 100 * US
    faults = (InjectedFault("silent_loss", "host-0001/mlx5_0", severity=chance),)
    config = star(1, jobs=senders(1, 1_000_000), faults=faults, step_ns=step_ns, sample_ns=MS, ack_timeout_ns=timeout)
    step = Fabric(config, 1).advance(span_ns)
    flows, timeouts = len(step.flows), step.counters[-1].adapters["ack_timeout"][1]
    # The end of a flow is resent after each loss near it, so the expected number is a few times the chance.
    assert flows > 500
    assert chance * flows / 2 < timeouts < 4 * chance * flows


def test_depth_is_delay():
    """A probe through a full queue takes longer by its depth over the line rate."""
    fabric = Fabric(star(2, dcqcn=False), 1)
    step = fabric.advance(10 * MS)
    to_receiver = (fabric.probe_pairs[:, 1] == 0).nonzero()[0]
    waiting = step.depth[-1, 1] / LINE * 1e9
    assert len(to_receiver) and step.latency_ns[-1, to_receiver] == pytest.approx(np.full(len(to_receiver), waiting + 1800), abs=2)
