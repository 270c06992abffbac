"""A fabric in real time: never ahead of the clock, its delay is counted, and no row is lost."""

import tomllib

import polars as pl
import pytest

from weft.lab.telemetry.live import TICK_NS, LiveConfig, LiveFabric
from weft.pipeline.clock import ManualClock
from weft.pipeline.tables.families import FAMILIES

S = 1_000_000_000


@pytest.fixture
def made(tmp_path):
    """Return a function that starts a toy fabric without protocols on a manual clock; the test's end stops it."""
    running = []

    def make(*faults: str, onset_s: float = 1.0, protocols: tuple[str, ...] = ()) -> tuple[LiveFabric, ManualClock]:
        clock = ManualClock()
        config = LiveConfig("toy", faults=faults, onset_s=onset_s, protocols=protocols, packet_sampling=1000)
        running.append(LiveFabric(config, clock, tmp_path))
        running[-1].start()
        return running[-1], clock

    yield make
    for fabric in running:
        fabric.stop()


def drained(fabric: LiveFabric, clock: ManualClock, seconds: float) -> dict[str, pl.DataFrame]:
    """Return all rows of so many seconds, drained every 100 ms."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for _ in range(round(seconds * 10)):
        clock.advance(0.1)
        for batch in fabric.drain():
            assert (batch.frame["recv_ts"] <= clock.now_ns()).all()
            parts.setdefault(batch.family, []).append(batch.frame)
    return {family: pl.concat(frames) for family, frames in parts.items()}


def test_time_is_the_clock_s(made):
    """The fabric is never ahead of the clock, and every tick that has passed is computed."""
    fabric, clock = made()
    for _ in range(47):
        clock.advance(0.07)
        fabric.drain()
        passed = clock.now_ns() - fabric.fabric.config.start_ns
        assert fabric.fabric.now_ns == max(0, passed // TICK_NS * TICK_NS)
    assert fabric.counters()["weft_lab_late_ticks_total"] == 0


def test_what_falls_behind_is_counted(made, caplog):
    """After a stall of five seconds the fabric catches up tick by tick, counts its delay, and warns once."""
    fabric, clock = made()
    clock.advance(6.0)
    fabric.drain()
    behind = clock.now_ns() - fabric.fabric.config.start_ns - TICK_NS
    assert fabric.counters()["weft_lab_behind_seconds_max"] == pytest.approx(behind / S)
    while fabric.drain():
        pass
    assert fabric.fabric.now_ns == (clock.now_ns() - fabric.fabric.config.start_ns) // TICK_NS * TICK_NS
    assert fabric.counters()["weft_lab_behind_seconds"] < 1
    assert fabric.counters()["weft_lab_late_ticks_total"] > 10
    assert len([one for one in caplog.records if "behind this machine's clock" in one.getMessage()]) == 1


def test_rows_are_whole_and_marked(made):
    """All families are returned with the source ``lab``, and the samples of a port have no gap."""
    fabric, clock = made("link_flap")
    rows = drained(fabric, clock, 6.5)
    assert set(rows) == {"port", "queue", "nic", "nvlink", "gpu", "burst_sample", "packet", "latency", "event", "inventory"}
    for family, frame in rows.items():
        assert frame.schema == pl.Schema(FAMILIES[family].polars)
        assert set(frame["source"]) == {"lab"}
    runs = rows["burst_sample"].filter(device="leaf-00-0", port="Ethernet0", signal="tx_bytes").sort("ts")
    ends = runs["ts"] + runs["values"].list.len() * runs["interval_ns"]
    assert runs["ts"].to_list()[1:] == ends.to_list()[:-1]


def test_late_readings_come_late(made):
    """Rows of a late collector are returned at their time of receiving, and none is lost."""
    fabric, clock = made("late_collector@spine-00")
    early = drained(fabric, clock, 5.0)["port"].filter(device="spine-00")
    rest = drained(fabric, clock, 5.0)["port"].filter(device="spine-00")
    ts = pl.concat([early, rest])["ts"].unique().sort()
    begin_ns = fabric.fabric.config.start_ns + S
    assert early["ts"].max() < begin_ns + 2 * S < rest["ts"].max()
    assert ts.diff().drop_nulls().n_unique() == 1


def test_truth_and_settings_are_written(made, tmp_path):
    """The folder has the settings of the collectors, and after the end the faults and the true series of every link."""
    fabric, clock = made("pause_storm@host-0001/mlx5_0", protocols=("hft", "sflow"))
    settings = tomllib.loads((tmp_path / "collect.toml").read_text())["collect"]
    assert set(settings) == {"hft", "sflow"}
    assert set(settings["hft"]["devices"].values()) | set(settings["sflow"]["devices"].values()) == set(fabric.carried)
    drained(fabric, clock, 4.6)
    fabric.stop()
    faults = pl.read_parquet(tmp_path / "truth" / "faults" / "*.parquet")
    assert faults.select("kind", "place", "begin_ts").rows() == [("pause_storm", "host-0001/mlx5_0", fabric.fabric.config.start_ns + S)]
    links = pl.read_parquet(tmp_path / "truth" / "links" / "*.parquet").filter(device="leaf-00-0", port="Ethernet0")
    assert links["sent"].list.len().sum() == fabric.fabric.now_ns // 1_000_000
