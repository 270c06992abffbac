"""This machine's interfaces: samples that add up to the counters, on the grid, with every gap counted."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from weft.collectors.host.interfaces import HOST, Host, HostConfig
from weft.collectors.host.netlink import COUNTERS
from weft.collectors.host.ticker import INTERVALS_NS, REVIEWS_BAD
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import ConfigError
from weft.pipeline.tables.families import FAMILIES

MS = 1_000_000
SECOND = 1_000_000_000
SYS = Path("/sys/class/net")
# The longest wait of a test; each wait ends as soon as its condition holds.
PATIENCE_S = 20

pytestmark = [pytest.mark.alone, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="interfaces are read on Linux only")]


def wait_for(condition) -> None:
    """Wait until the condition holds, at most ``PATIENCE_S``."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def counter(name: str, what: str) -> int:
    return int((SYS / name / "statistics" / what).read_text())


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


class Veth:
    """A pair of virtual interfaces on which only the test sends."""

    def __init__(self, name: str) -> None:
        self.name, self.peer = name, name + "p"

    def up(self) -> None:
        made = ip("link", "add", self.name, "type", "veth", "peer", "name", self.peer)
        if made.returncode:
            pytest.skip(f"a veth pair cannot be made here: {made.stderr.strip()}")
        for name in (self.name, self.peer):
            quiet = Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
            if quiet.exists():
                quiet.write_text("1")
            ip("link", "set", name, "up")

    def down(self) -> None:
        ip("link", "del", self.name)

    def send(self, frames: int, length: int = 1000) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((self.name, 0))
            for _ in range(frames):
                raw.send(b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(length - 14))


@pytest.fixture
def veth() -> Iterator[Veth]:
    """Return a pair of interfaces that is up; skip where that is not permitted."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making interfaces needs root and iproute2")
    pair = Veth(f"wt{os.getpid() % 100_000}")
    pair.up()
    yield pair
    pair.down()


class Watch:
    """A running host collector and all of its batches."""

    def __init__(self, config: HostConfig) -> None:
        self.host = Host(config, SystemClock())
        self.batches: list = []

    def drain(self) -> "Watch":
        self.batches += self.host.drain()
        return self

    def family(self, name: str) -> pl.DataFrame:
        frames = [batch.frame for batch in self.batches if batch.family == name]
        return pl.concat(frames) if frames else FAMILIES[name].empty()

    def total(self, port: str, signal: str) -> int:
        runs = self.family("burst_sample").filter(port=port, signal=signal)
        return int(runs["values"].list.sum().sum() or 0)

    def __enter__(self) -> "Watch":
        self.host.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.host.stop()
        self.drain()


def test_samples_add_up_to_what_the_counters_moved(veth):
    """Over a transfer without a gap, the samples of an interface add up to the difference of its counters, to the byte."""
    for _ in range(5):
        wait_for(lambda: counter(veth.peer, "rx_bytes") == counter(veth.name, "tx_bytes"))
        before = {name: counter(veth.peer, name) for name in ("rx_bytes", "tx_bytes")}
        with Watch(HostConfig(interval_ms=50, interfaces=(veth.name, veth.peer), device="me")) as watch:
            wait_for(lambda watch=watch: watch.drain().total(veth.peer, "rx_bytes") == 0 and len(watch.family("burst_sample")))
            for _ in range(10):
                veth.send(50)
                watch.drain()
            time.sleep(0.2)
        moved = {name: counter(veth.peer, name) - before[name] for name in before}
        assert moved["rx_bytes"] == 10 * 50 * 1000
        assert watch.total(veth.peer, "rx_bytes") <= moved["rx_bytes"]
        if not len(watch.family("gap")):
            assert watch.total(veth.peer, "rx_bytes") == moved["rx_bytes"]
            assert watch.total(veth.peer, "tx_bytes") == moved["tx_bytes"]
            assert watch.total(veth.name, "tx_bytes") == moved["rx_bytes"]
            return
    pytest.skip("this machine was late at 50 ms five times over")


def test_runs_stand_on_the_grid_and_never_overlap():
    """Every segment starts at a multiple of the interval, in current wall time, and no slot of a signal occurs twice."""
    start_ns = time.time_ns()
    with Watch(HostConfig(interfaces=("lo",), device="me")) as watch:
        wait_for(lambda: watch.drain().family("burst_sample")["values"].list.len().sum() > 400)
    frame = watch.family("burst_sample")
    assert dict(frame.schema) == FAMILIES["burst_sample"].polars
    assert set(frame["device"]) == {"me"}
    assert set(frame["interval_ns"]) <= set(INTERVALS_NS)
    assert (frame["ts"] % frame["interval_ns"] == 0).all()
    assert start_ns - 100 * MS < frame["ts"].min() <= frame["recv_ts"].max() < time.time_ns() + SECOND
    for (_, interval_ns), runs in frame.group_by(["signal", "interval_ns"]):
        slots = np.concatenate([row["ts"] // interval_ns + np.arange(len(row["values"])) for row in runs.iter_rows(named=True)])
        assert len(np.unique(slots)) == len(slots)


def test_slots_are_samples_or_admitted_as_gaps():
    """Between the first and the last sample of a grid, every slot without a sample is counted in a gap row."""
    with Watch(HostConfig(interfaces=("lo",))) as watch:
        wait_for(lambda: watch.drain().family("burst_sample")["values"].list.len().sum() > 600)
    frame = watch.family("burst_sample").filter(signal="rx_bytes")
    if frame["interval_ns"].n_unique() > 1:
        pytest.skip("this machine does not hold 1 ms")
    span = (frame["ts"] + frame["values"].list.len().cast(pl.Int64) * MS).max() - frame["ts"].min()
    missing = span // MS - int(frame["values"].list.len().sum())
    assert missing * 2 <= int(watch.family("gap")["missed"].sum() or 0)
    assert set(watch.family("gap")["reason"]) <= {"late_tick"}
    assert all(batch.frame["reason"].is_unique().all() for batch in watch.batches if batch.family == "gap")


def test_a_burst_over_loopback_is_seen_and_reported():
    """Traffic over lo shows in its samples, and the collector reports its interval, jitter and processor time."""
    with Watch(HostConfig(interfaces=("lo",))) as watch, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        wait_for(lambda: len(watch.drain().family("burst_sample")) > 0)
        for _ in range(200):
            sender.sendto(bytes(10_000), ("127.0.0.1", 9))
        wait_for(lambda: watch.drain().total("lo", "tx_bytes") > 1_000_000 or len(watch.family("gap")) > 0)
        wait_for(lambda: watch.host.counters()["weft_collectors_reader_cpu_ratio"] > 0)
    counters = watch.host.counters()
    assert counters["weft_collectors_interval_ns"] in INTERVALS_NS
    assert (
        0
        <= counters["weft_collectors_jitter_p50_ns"]
        <= counters["weft_collectors_jitter_p99_ns"]
        <= counters["weft_collectors_jitter_max_ns"]
    )
    assert counters["weft_collectors_readings_total"] > 0
    print({name: round(value, 4) for name, value in counters.items()})


def test_port_rows_are_the_kernels_counters(veth):
    """Once a second each interface gives its counters and its state as sysfs has them."""
    veth.send(7, 500)
    config = HostConfig(interval_ms=5, interfaces=(veth.name, "lo"), line_rate_bps={veth.name: 40_000_000_000}, assumed_line_rate_bps=5)
    with Watch(config) as watch:
        wait_for(lambda: watch.drain().family("port")["ts"].n_unique() >= 2)
    rows = watch.family("port").filter(port=veth.name).sort("ts")
    names = {"rx_discards": "rx_dropped", "tx_discards": "tx_dropped"}
    for name in COUNTERS:
        assert rows[name][-1] == counter(veth.name, names.get(name, name))
    assert rows["tx_packets"][-1] == 7
    assert rows["tx_bytes"][-1] == 3500
    assert rows["oper_up"].all()
    assert rows["epoch"].n_unique() == 1
    assert set(rows["speed_bps"]) == {40_000_000_000}
    assert set(watch.family("port").filter(port="lo")["speed_bps"]) == {5}
    assert watch.family("port").group_by("port", pl.col("ts") // SECOND).len()["len"].max() <= 2


def test_interfaces_come_and_go(veth):
    """A new interface is found without a restart; one created again under its old name has a new epoch."""
    late = Veth(veth.name + "b")

    def epochs() -> set[int]:
        return set(watch.drain().family("burst_sample").filter(port=late.name)["epoch"])

    with Watch(HostConfig(interval_ms=5)) as watch:
        wait_for(lambda: veth.name in set(watch.drain().family("burst_sample")["port"]))
        try:
            late.up()
            wait_for(lambda: len(epochs()) == 1)
            late.send(3)
            late.down()
            late.up()
            wait_for(lambda: len(epochs()) == 2)
        finally:
            late.down()
        watch.drain().batches.clear()
        wait_for(lambda: veth.name in set(watch.drain().family("port")["port"]))
        watch.batches.clear()
        wait_for(lambda: veth.name in set(watch.drain().family("port")["port"]))
        assert late.name not in set(watch.family("port")["port"]) | set(watch.family("burst_sample")["port"])


def test_an_unknown_interface_is_an_error_with_a_hint():
    """An unknown name is an error that suggests the nearest known one."""
    host = Host(HostConfig(interfaces=("loo",)), SystemClock())
    with pytest.raises(ConfigError, match="'loo'; did you mean 'lo'"):
        host.start()
    host.stop()


@pytest.mark.parametrize(
    "config", [{"interval_ms": 0.4}, {"interval_ms": 101}, {"interval_ms": float("nan")}, {"assumed_line_rate_bps": 0}]
)
def test_settings_out_of_range_are_refused(config):
    """Impossible intervals and line rates are configuration errors."""
    with pytest.raises(ConfigError, match=r"collect\.host"):
        HostConfig(**config)


def test_nothing_happens_before_start_and_after_stop():
    """The constructor reads nothing; stop may be called twice, and drain before and after."""
    host = HOST.live(HostConfig(interfaces=("lo",)), SystemClock())
    assert host.drain() == []
    host.start()
    host.stop()
    host.stop()
    host.drain()
    assert host.drain() == []
    assert {"weft_collectors_interval_ns", "weft_collectors_jitter_p99_ns"} <= set(host.counters())


def test_a_change_is_an_event_and_a_log_line(caplog):
    """A longer interval is published as an event, logged as one line, and shown in the self metrics."""
    watch = Watch(HostConfig(interfaces=("lo",), device="me"))
    with caplog.at_level(logging.WARNING, logger="weft.collectors.host.interfaces"), watch:
        wait_for(lambda: len(watch.drain().family("burst_sample")) > 0)
        for _ in range(REVIEWS_BAD):
            watch.host._ticker.review(0.5, 0.0)
        wait_for(lambda: len(watch.drain().family("event")) > 0)
        wait_for(lambda: 2 * MS in set(watch.drain().family("burst_sample")["interval_ns"]))
    events = watch.family("event")
    assert events.select("device", "kind", "reason").row(0) == ("me", "interval_changed", "reader_cpu")
    assert dict(events.schema) == FAMILIES["event"].polars
    assert watch.host.counters()["weft_collectors_interval_ns"] >= 2 * MS
    assert "interval_changed" in set(watch.family("gap")["reason"])
    assert sum("1 ms to 2 ms" in line for line in caplog.messages) == 1
