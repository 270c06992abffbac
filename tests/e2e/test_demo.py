"""The demo as a newcomer starts it: it detects its fault, names the place, and leaves nothing behind."""

import json
import os
import re
import signal
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from weft.analytics.alerts.config import AlertsConfig
from weft.analytics.alerts.rules import load_rules
from weft.analytics.store.reader import Reader
from weft.commands import demo
from weft.commands.lab import FAULT_NAMES
from weft.lab.fabric.faults import FAULTS
from weft.lab.score import findings as demo_findings
from weft.lab.score.verdict import Watch
from weft.pipeline.bus import BusConfig, open_bus
from weft.pipeline.clock import SystemClock
from weft.pipeline.codec import decode, table_of
from weft.pipeline.tables.families import FAMILIES

LIMIT_S = 120.0
# Of the demo and all its services together, each page that several share counted once.
MEMORY_BYTES_MAX = 1_000_000_000
SERVICES = ("lab", "collect", "process", "analyze")


def proportional_bytes(pid: int) -> int:
    """Return a process's memory, shared pages by their share."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def maps(pid: int) -> str:
    """Return the files that a process has mapped."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def services(pid: int) -> dict[str, int]:
    """Return the process ids of a demo's services by name."""
    try:
        tree = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return {}
    found = {}
    for process in tree:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        found |= {name: process.pid for name in SERVICES if name in words[3:4]}
    return found


def published(data: Path) -> dict[str, pl.DataFrame]:
    """Return the rows that were published on the bus, by family."""
    bus = open_bus(BusConfig(), data)
    consumer = bus.consumer([table.topic for table in FAMILIES.values()])
    frames: dict[str, list[pl.DataFrame]] = {}
    while messages := consumer.poll(0.0, 64 * 2**20):
        for message in messages:
            table = table_of(message.headers)
            frames.setdefault(table.name, []).append(decode(message.value, table).select("source", "device"))
    consumer.close()
    bus.close()
    return {family: pl.concat(parts) for family, parts in frames.items()}


@pytest.mark.alone
def test_a_demo_finds_what_it_broke(weft, tmp_path):
    """The default demo fires alerts only at its fault, prints the place, stays small, and each family of a device has one source."""
    data, log = tmp_path / "demo", tmp_path / "log"
    most, loaded = 0, set()
    with log.open("w") as file:
        process = weft.start("demo", "--no-dashboard", "--data", data, stdout=file, stderr=file)
    deadline = time.monotonic() + LIMIT_S
    while "\nalert: queue-paused: " not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        tree = services(process.pid)
        most = max(most, sum(proportional_bytes(pid) for pid in (process.pid, *tree.values())))
        if set(tree) == set(SERVICES):
            loaded |= {name for name, pid in tree.items() if "/pandas/" in maps(pid)}
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.wait(LIMIT_S)
    out = log.read_text()
    assert process.returncode == 0, out
    assert f"duckdb -readonly {data}/store/current.duckdb" in out
    (fault,) = demo_findings.injected(data)
    assert re.search(rf"^fault +pause_storm at {fault.place}$", out, re.M), out
    assert re.search(r"^  store says leaf-\S+: paused .* \(it is the place\)$", out, re.M), out
    assert 0 < most < MEMORY_BYTES_MAX
    # DuckDB imports pandas where it is installed as soon as a statement has parameters; the other services do without.
    assert loaded <= {"analyze"}, "a service loads pandas, which none uses"
    reader = Reader(data / "store")
    try:
        for query in demo.QUERIES:
            assert reader.frame(query).height > 0, query
        ends = {tuple(fault.place.split("/"))}
        ends |= set(reader.frame(f"SELECT peer_device, peer_port FROM links WHERE device || '/' || port = '{fault.place}'").rows())
        alerts = reader.frame(
            "SELECT rule, device, port, epoch_ns(fired_at) FROM alerts WHERE fired_at IS NOT NULL AND severity <> 'info'"
        ).rows()
    finally:
        reader.close()
    # Rules of severity info report what a busy machine does to telemetry; all others report the fabric, and only the fault.
    assert len(ends) == 2 and "queue-paused" in {rule for rule, *_ in alerts}, alerts
    assert [alert for alert in alerts if alert[1:3] not in ends or alert[3] < fault.begin_ns] == []

    rows = published(data)
    assert {"port", "queue", "nic", "nvlink", "gpu", "burst_sample", "packet", "latency", "inventory"} <= set(rows)
    for family in ("port", "queue", "burst_sample", "packet", "nic"):
        sources = rows[family].unique().group_by("device").len()
        assert sources["len"].max() == 1, family
    assert {"gnmi", "hft", "otlp", "sflow", "lab", "host"} <= set(rows["port"]["source"])
    links = pl.read_parquet(data / "lab" / "truth" / "links" / "*.parquet")
    assert links.select("device", "port").unique().height == 256


@pytest.mark.alone
def test_ctrl_c_ends_everything_and_a_second_demo_begins_afresh(weft, tmp_path):
    """Ctrl-C leaves no process and exit code 0; the next demo removes the first one's data and nothing else."""
    data = tmp_path / "demo"
    process = weft.start("demo", "--scale", "toy", "--no-dashboard", "--data", data, "--fault", "link_flap")
    deadline = time.monotonic() + LIMIT_S
    while set(services(process.pid)) != set(SERVICES) or not (data / "store" / "current.duckdb").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    tree = [psutil.Process(pid) for pid in services(process.pid).values()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out + err
    assert "fault        link_flap at leaf-" in out
    assert not any(one.is_running() for one in tree)

    (data / "notes.txt").write_text("mine")
    (data / "store" / "left.parquet").write_text("of the first")
    weft.run("demo", "--seconds", 1, "--scale", "toy", "--no-dashboard", "--data", data)
    assert (data / "notes.txt").read_text() == "mine"
    assert not (data / "store" / "left.parquet").exists()


def test_a_folder_of_other_data_is_refused(weft, tmp_path):
    """In a folder with other data the demo does not start and removes nothing."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "precious").write_text("mine")
    error = weft.fails("demo", "--seconds", 1, "--no-dashboard", "--data", tmp_path)
    assert "not a demo's" in error and "--data" in error
    assert (tmp_path / "store" / "precious").read_text() == "mine"
    assert os.listdir(tmp_path) == ["store"]


def test_a_misspelt_fault_is_reported(weft, tmp_path):
    """An unknown fault is a usage error with the nearest name; an unknown place ends the demo with an error."""
    done = weft.run("demo", "--fault", "slow_nick", "--data", tmp_path / "demo", expect=2)
    assert "did you mean 'slow_nic'" in done.stderr
    assert not (tmp_path / "demo").exists()
    error = weft.fails("demo", "--no-dashboard", "--data", tmp_path / "demo", "--fault", "slow_nic@host-0003/mlx5_77")
    assert "has no port mlx5_77" in error


def test_names_of_faults_and_rules_exist():
    """Help, symptoms and defaults name existing faults and rules."""
    assert set(FAULT_NAMES) == set(FAULTS)
    assert set(demo_findings.SYMPTOMS) <= set(FAULTS)
    watching = {rule for kind in FAULTS for rule in demo_findings.rules_for(kind)}
    assert watching <= {rule.name for rule in load_rules(AlertsConfig(profile="training"))}


def test_progress_needs_a_terminal(tmp_path, capsys):
    """Without a terminal and without a store the watch prints nothing and does not fail."""
    watch = Watch(tmp_path)
    watch.step(SystemClock(), 1.0)
    watch.close()
    assert capsys.readouterr() == ("", "")
    assert json.dumps(demo_findings.injected(tmp_path)) == "[]"
