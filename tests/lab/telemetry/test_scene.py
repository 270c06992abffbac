"""Scenes of a live fabric: layouts, jobs, faults and their places, and one source for each value."""

import polars as pl
import pytest

from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import FAULTS, InjectedFault
from weft.lab.fabric.topology import LEAF
from weft.lab.telemetry import scene
from weft.lab.telemetry.export import FabricExporter
from weft.pipeline.errors import ConfigError

MS = 1_000_000


@pytest.mark.parametrize(("scale", "gpus"), [("toy", 8), ("rail", 64), ("clos", 32), ("16", 16), ("64", 64), ("96", 96), ("256", 256)])
def test_a_scale_is_a_layout_or_a_number_of_gpus(scale, gpus):
    """A name gives its layout, a number a fabric of so many GPUs, and a job uses all hosts."""
    topology = scene.layout(scale)
    assert topology.gpus == gpus
    (job,) = scene.jobs(topology, 1)
    assert sorted(job.hosts) == list(range(gpus // topology.rails))


@pytest.mark.parametrize("scale", ["0", "17", "200", "100000", "torus", "-8"])
def test_another_scale_is_refused_with_what_there_is(scale):
    """A number that does not fill racks and an unknown name are refused with valid values."""
    with pytest.raises(ConfigError, match="multiple of 16"):
        scene.layout(scale)


def test_jobs_share_no_host_and_cross_the_spines():
    """Two jobs have disjoint hosts, each in both pods."""
    topology = scene.layout("rail")
    one, other = scene.jobs(topology, 2)
    assert not set(one.hosts) & set(other.hosts)
    for job in (one, other):
        assert len({topology.leaf[host * topology.rails] for host in job.hosts}) == 2
    with pytest.raises(ConfigError, match="1 to 4"):
        scene.jobs(topology, 5)


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_finds_a_place(kind):
    """A fault without a place gets a valid one; the same seed gives the same place."""
    topology = scene.layout("rail")
    (fault,) = scene.place_faults([kind], topology, 3, 1.0, 5.0)
    assert (fault.kind, fault.begin_ns) == (kind, 1000 * MS)
    assert scene.place_faults([kind], topology, 3, 1.0, 5.0) == (fault,)
    FabricExporter(Fabric(FabricConfig(topology, scene.jobs(topology, 1), (fault,), step_ns=MS), 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slow_nik", "did you mean 'slow_nic'"),
        ("slow_nic@host-0033/mlx5_2", "no device 'host-0033'; did you mean 'host-0003'"),
        ("slow_nic@host-0003/mlx5_9", "has no port mlx5_9"),
        ("slow_nic@leaf-00-0/Ethernet0", "is no host"),
        ("link_flap@leaf-00-0/Ethernet4", "has no port Ethernet4"),
        ("frozen_counter@spine-9", "did you mean 'spine-0"),
    ],
)
def test_an_unknown_place_is_refused(text, words):
    """A misspelt fault or place is refused with the nearest name."""
    with pytest.raises(ConfigError, match=words):
        scene.place_faults([text], scene.layout("rail"), 1, 10.0, 5.0)


@pytest.mark.parametrize(
    ("fault", "device", "protocol"),
    [
        (InjectedFault("pause_storm", "host-0003/mlx5_6"), "leaf-00-6", "hft"),
        (InjectedFault("link_flap", "leaf-01-2/Ethernet32"), "leaf-01-2", "gnmi"),
        (InjectedFault("frozen_counter", "leaf-00-0"), "leaf-00-0", None),
        (InjectedFault("silent_loss", "leaf-00-1/Ethernet32"), "leaf-00-1", None),
    ],
)
def test_a_protocol_carries_what_it_can_tell(fault, device, protocol):
    """A protocol that shows the fault carries its leaf, and none does where only the lab's own rows show it."""
    topology = scene.layout("rail")
    carried = scene.carriers(topology, (fault,))
    assert carried.get(device) == protocol
    assert sorted(carried.values()) == sorted(scene.CARRIED)
    assert all(topology.tier[topology.device_names.index(name)] == LEAF for name in carried)


def test_a_carried_family_has_one_source():
    """The lab's rows leave out exactly the families that a protocol carries, for the carried switches only."""
    fabric = Fabric(FabricConfig(scene.layout("toy"), scene.jobs(scene.layout("toy"), 1), step_ns=100_000, packet_sampling=100), 1)
    frames = FabricExporter(fabric).frames(fabric.advance(200 * MS))
    carried = scene.carriers(fabric.topology, ())
    assert len(carried) == 4
    left = scene.uncarried(frames, carried)
    for family, frame in frames.items():
        devices = {device for device, protocol in carried.items() if family in scene.CARRIED[protocol]}
        rest = left.get(family, frame.clear())
        assert rest.equals(frame.filter(~pl.col("device").is_in(list(devices))))
        assert not set(rest["device"]) & devices
