"""Exported rows fit the tables and agree with the fabric, except where a fault of the telemetry acts."""

import numpy as np
import polars as pl
import pytest

from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import InjectedFault
from weft.lab.fabric.topology import rail_fabric, toy
from weft.lab.fabric.workload import Job, Phase
from weft.lab.telemetry.export import FabricExporter
from weft.pipeline.tables.families import FAMILIES

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
JOB = Job("ring", (0, 1, 2, 3), (Phase(MS, "allreduce", "rail", 5_000_000), Phase(MS, "allgather", "host", 50_000_000)))
LEAF = "leaf-00-0"
LOSSY = "leaf-00-0/Ethernet24"


def run(*faults: InjectedFault, calls: int = 4, **more) -> dict[str, pl.DataFrame]:
    """Return all rows of a second of the toy fabric, exported in some calls."""
    config = FabricConfig(toy(), (JOB,), faults, **{"packet_sampling": 100, "step_ns": 100 * US, "clock_skew_ns": 0, **more})
    fabric = Fabric(config, 1)
    exporter = FabricExporter(fabric)
    parts: dict[str, list[pl.DataFrame]] = {}
    for call in range(1, calls + 1):
        for family, frame in exporter.frames(fabric.advance(call * SECOND // calls)).items():
            parts.setdefault(family, []).append(frame)
    return {family: pl.concat(frames) for family, frames in parts.items()} | {"inventory": exporter.inventory()}


@pytest.fixture(scope="module")
def rows() -> dict[str, pl.DataFrame]:
    """Return a second with a flap, for events, and with a lossy link, for a difference between its ends."""
    return run(
        InjectedFault("link_flap", f"{LEAF}/Ethernet16", 100 * MS, 150 * MS, 1.0), InjectedFault("silent_loss", LOSSY, severity=1e-3)
    )


def test_every_family_has_its_columns(rows):
    """Frames have the names, order and types of their tables, no null keys, and the source ``lab``."""
    assert set(rows) == {"port", "queue", "nic", "nvlink", "gpu", "burst_sample", "packet", "latency", "event", "inventory"}
    for family, frame in rows.items():
        assert frame.schema == pl.Schema(FAMILIES[family].polars), family
        assert set(frame["source"]) == {"lab"}
        for key in ("ts", "recv_ts", "device", "epoch"):
            assert frame[key].null_count() == 0, (family, key)
        assert (frame["recv_ts"] > frame["ts"]).all()


def test_samples_add_up_to_the_counters(rows):
    """The samples of a port between two counter samples sum to the difference of its counters, sent and received."""
    ports = rows["port"].filter(pl.col("device") == LEAF).sort("ts")
    samples = rows["burst_sample"].filter(pl.col("device") == LEAF)
    for (port,), counters in ports.group_by("port"):
        for signal in ("tx_bytes", "rx_bytes"):
            mine = samples.filter((pl.col("port") == port) & (pl.col("signal") == signal)).sort("ts")
            values = np.concatenate(mine["values"].to_list())
            assert len(values) == 1000
            assert counters[signal].to_list() == np.cumsum(values)[99::100].tolist()


def test_both_ends_of_a_link_agree(rows):
    """Both ends of a link agree on the bytes, except on the lossy link."""
    links = (
        rows["inventory"]
        .filter(pl.col("kind") == "link")
        .select(key=pl.col("device") + "/" + pl.col("key"), far=pl.col("peer_device") + "/" + pl.col("peer_port"))
    )
    last = rows["port"].filter(pl.col("ts") == pl.col("ts").max()).with_columns(key=pl.col("device") + "/" + pl.col("port"))
    both = links.join(last, on="key").join(last, left_on="far", right_on="key", suffix="_far")
    assert both.height == links.height
    lost = both.filter(pl.col("tx_bytes") != pl.col("rx_bytes_far"))
    assert set(lost["key"]) <= set(links.filter((pl.col("key") == LOSSY) | (pl.col("far") == LOSSY))["key"]) and lost.height
    assert (lost["tx_bytes"] > lost["rx_bytes_far"]).all() and lost["rx_errors_far"].sum() == 0
    nics = rows["nic"].filter(pl.col("ts") == pl.col("ts").max())
    assert nics.join(last, on=["device", "port"]).filter(pl.col("tx_bytes") != pl.col("tx_bytes_right")).height == 0


def test_sampled_packets_are_one_in_n(rows):
    """Sampled packets represent the received ones, in order within a flow, with sequence numbers a whole stride apart."""
    packets, nics = rows["packet"], rows["nic"].filter(pl.col("ts") == pl.col("ts").max())
    assert packets.height * 100 == pytest.approx(nics["rx_packets"].sum(), rel=0.02)
    assert set(packets["opcode"]) <= {6, 7, 8} and set(packets["ecn"]) <= {2, 3}
    for _, flow in packets.group_by("qp"):
        steps = np.diff(flow.sort("ts")["psn"].to_numpy().astype(np.int64)) % 2**24
        assert (steps == 100).all()


def test_gpus_and_nvlink(rows):
    """GPUs are busy for their share of the iteration, and NVLink carries (n-1)/n S for each all-gather in the host."""
    gpus = rows["gpu"].filter(pl.col("ts") > pl.col("ts").min())
    assert gpus["sm_active_ratio"].is_between(0.1, 0.9).all()
    moved = rows["nvlink"].filter(pl.col("ts") == pl.col("ts").max())["tx_bytes"]
    iterations = moved.min() / (50_000_000 / 2)
    assert iterations > 50 and moved.max() - moved.min() <= 25_000_000


def test_a_frozen_counter_stands_still():
    """A frozen device repeats its values with new times; before, after and elsewhere values are true."""
    sound = run()["port"].sort("device", "port", "ts")
    frozen = run(InjectedFault("frozen_counter", LEAF, 300 * MS, 300 * MS))["port"].sort("device", "port", "ts")
    start = sound["ts"].min() - 100 * MS
    during = pl.col("ts").is_between(start + 300 * MS, start + 599 * MS) & (pl.col("device") == LEAF)
    assert frozen.filter(~during).equals(sound.filter(~during))
    assert frozen.filter(during).group_by("port").agg(pl.col("tx_bytes").n_unique())["tx_bytes"].max() == 1
    assert frozen.filter(during).height == 3 * 4


def test_a_reset_counter_starts_again():
    """After a reset counters count from zero in a new epoch; gauges and other devices are unchanged."""
    sound = run()
    reset = run(InjectedFault("counter_reset", LEAF, 450 * MS))
    for family, column, tx in (("port", "tx_bytes", pl.lit(True)), ("queue", "packets", pl.col("direction") == "tx")):
        a, b = (made[family].filter(pl.col("device") == LEAF, tx) for made in (sound, reset))
        at = a["ts"].min() - 100 * MS + 450 * MS
        zero = a.filter(pl.col("ts") == at - 50 * MS)
        expected = a.filter(pl.col("ts") > at)[column] - pl.concat([zero] * 6)[column]
        assert b.filter(pl.col("ts") > at)[column].equals(expected)
        assert b.filter(pl.col("ts") <= at).equals(a.filter(pl.col("ts") <= at))
        assert (b.filter(pl.col("ts") > at)["epoch"] == at).all()
    assert reset["queue"]["occupancy_bytes"].equals(sound["queue"]["occupancy_bytes"])
    bins = reset["port"].filter(pl.col("device") == LEAF).sort("ts", "port")["fec_bins"].list.sum().to_list()
    assert bins[-1] == pytest.approx(6 * bins[0], rel=1e-5)


def test_a_lossy_collector_loses_its_share():
    """About half of a device's counter samples are missing, all families at once; those of other devices are not."""
    rows = run(InjectedFault("lossy_collector", LEAF, severity=0.5), calls=20)
    kept = rows["port"].filter(pl.col("device") == LEAF)["ts"].n_unique()
    assert 1 <= kept <= 9
    assert rows["queue"].filter(pl.col("device") == LEAF)["ts"].n_unique() == kept
    assert rows["port"].filter(pl.col("device") == "leaf-01-1")["ts"].n_unique() == 10
    assert rows["burst_sample"].filter(pl.col("device") == LEAF)["ts"].n_unique() < 20


def test_late_and_skewed():
    """Rows of a late collector are received later by its delay; a skewed clock's timestamps run ahead and stay on the grid."""
    rows = run(
        InjectedFault("late_collector", LEAF, severity=0.7),
        InjectedFault("skewed_clock", "leaf-01-0", 500 * MS, severity=0.25),
        clock_skew_ns=300,
    )
    delay = rows["port"].group_by("device").agg((pl.col("recv_ts") - pl.col("ts")).max())
    assert dict(delay.iter_rows())[LEAF] == pytest.approx(702 * MS, abs=1000)
    assert dict(delay.iter_rows())["leaf-01-1"] == pytest.approx(2 * MS, abs=1000)
    last = dict(rows["port"].group_by("device").agg(pl.col("ts").max()).iter_rows())
    assert last["leaf-01-0"] - last["leaf-01-1"] == pytest.approx(250 * US, abs=1000)
    assert (rows["burst_sample"]["ts"] % MS == 0).all()


def test_inventory_names_everything():
    """Each device, each end of each link with its peer, and each host of each job is in the inventory once."""
    topology = rail_fabric(racks=2, racks_per_pod=1)
    fabric = Fabric(FabricConfig(topology, (Job("a", (0, 5), (Phase(MS),)),)), 1)
    rows = FabricExporter(fabric).inventory()
    counts = dict(rows.group_by("kind").len().iter_rows())
    assert counts == {"device": len(topology.device_names), "port": topology.ports, "link": topology.ports, "job": 2}
    assert rows.select("kind", "device", "key").n_unique() == rows.height
    host = rows.filter(kind="link", device="host-0009", key="mlx5_3").to_dicts()[0]
    assert (host["peer_device"], host["rail"], host["speed_bps"]) == ("leaf-01-3", "3", 400_000_000_000)


def test_an_export_fault_names_a_device():
    """A fault on a device that does not exist is refused by name."""
    with pytest.raises(ValueError, match="leaf-99"):
        FabricExporter(Fabric(FabricConfig(toy(), (JOB,), (InjectedFault("frozen_counter", "leaf-99"),)), 1))
