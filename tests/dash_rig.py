"""Stores and pages for tests of the dashboard: recordings are written here and go through the real pipeline; nothing is mocked."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from shared_data import SHARED
from store_rig import fold_all

from weft.analytics import alerts
from weft.analytics.store.ddl import stored
from weft.analytics.store.publish import PublishConfig, Publisher
from weft.analytics.store.writer import Store
from weft.pipeline.clock import SystemClock
from weft.pipeline.process import METRICS, MetricConfig
from weft.pipeline.process.base import Closing
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.states import STATES

RACKS, HOSTS, SECONDS, BINS = 3, 6, 6, 50
LINE_RATE_BPS = 12_500_000_000
SAMPLE_BYTES_MAX = LINE_RATE_BPS // 8 // 1000
REPLAY_LIMIT_S = 120
START_LIMIT_S = 40
PAGE_LIMIT_S = 60
# 2022-01-01T00:00:03Z: where recordings of Millisampler begin, and three seconds.
PCAP_START_S = 1_640_995_203


@dataclass(frozen=True)
class Seed:
    """A data folder and the samples in it, by (device, port)."""

    data: Path
    samples: dict[tuple[str, str], np.ndarray]


def _traffic() -> dict[tuple[int, int], np.ndarray]:
    """Samples of each host: a collective every 100 ms, in which the hosts of a rack send together, over a trickle."""
    rng = np.random.default_rng(7)
    count = SECONDS * 1000
    made = {}
    for rack in range(RACKS):
        phase = np.arange(count) % 100
        for host in range(HOSTS):
            busy = (phase < 4 + 3 * rack) & (rng.random(count) < 0.9 - 0.1 * host)
            made[rack, host] = np.where(
                busy, rng.integers(SAMPLE_BYTES_MAX * 6 // 10, SAMPLE_BYTES_MAX, count), rng.integers(0, 40_000, count)
            )
    return made


def _write_recording(path: Path, traffic: dict[tuple[int, int], np.ndarray]) -> None:
    """Write the samples as a table in the format of the public dataset."""
    frames = []
    for (rack, host), samples in traffic.items():
        rows = samples.reshape(-1, BINS)
        totals = rows.sum(axis=1)
        head = {
            "rackid": [rack] * len(rows),
            "hostid": [100 * rack + host] * len(rows),
            "IngressBytesAgg": totals,
            "EgressBytesAgg": totals // 20,
        }
        tail = {"InRxmitBytesAgg": totals // 1000, "OutRxmitBytesAgg": totals // 2000, "InCongestionBytesAgg": totals // 50}
        bins = {f"IngressBytes{k}": rows[:, k] for k in range(BINS)}
        frames.append(pl.DataFrame(head | tail | {"ConnectionsAgg": [12] * len(rows)} | bins))
    pl.concat(frames).write_csv(path)


def _packet(src: int, dst: int, opcode: int, psn: int, rest: bytes = b"") -> bytes:
    """Return one RoCEv2 packet, from the Ethernet header on; the checksums are left zero."""
    bth = struct.pack("!BBHII", opcode, 0, 0xFFFF, 17, psn | (1 << 31 if opcode == 4 else 0))
    body = bth + rest + bytes(4)
    udp = struct.pack("!HHHH", 49152, 4791, 8 + len(body), 0)
    ip = struct.pack("!BBHHHBBHII", 0x45, 3 if psn % 9 == 0 else 2, 28 + len(body), 0, 0, 64, 17, 0, src, dst)
    return bytes(12) + b"\x08\x00" + ip + udp + body


def _write_capture(path: Path, requests: int = 400) -> None:
    """Write requests and their acknowledgements, 15 to 60 us apart, with congestion notifications and a lost request."""
    rng = np.random.default_rng(11)
    left, right = 0x0A000001, 0x0A000002
    packets = []
    for k in range(requests):
        sent_us = k * 5000
        if k != 200:
            packets.append((sent_us, _packet(left, right, 4, k, bytes(256))))
            syndrome = struct.pack("!I", (5 << 24) | (k & 0xFFFFFF))
            packets.append((sent_us + int(rng.integers(15, 60)), _packet(right, left, 17, k, syndrome)))
        if k % 50 == 0:
            packets.append((sent_us + 100, _packet(right, left, 129, 0, bytes(16))))
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for at_us, data in packets:
            file.write(struct.pack("<IIII", PCAP_START_S + at_us // 1_000_000, at_us % 1_000_000, len(data), len(data)) + data)


def _write_counters(folder: Path) -> None:
    """Write counter samples of ports and lossless queues, four per second: one queue marks, one is paused, one drops, one is idle."""
    ports, steps = 4, 4 * SECONDS
    rng = np.random.default_rng(5)
    port, step = np.repeat(np.arange(ports), steps), np.tile(np.arange(steps), ports)
    common = {
        "ts": 1_640_995_200_000_000_000 + step * 250_000_000,
        "device": ["leaf-0"] * len(port),
        "port": [f"Ethernet{8 * k}" for k in port],
        "speed_bps": np.full(len(port), 400_000_000_000),
    }

    def counted(rate: np.ndarray) -> np.ndarray:
        return np.cumsum(rng.poisson(rate[port] + 0.0).reshape(ports, steps), axis=1).ravel().astype(np.uint64)

    packets = counted(np.array([900_000, 700_000, 400_000, 1_000]))
    paused = counted(np.array([0, 90_000, 4_000, 0]))
    queue = {
        "queue": ["3"] * len(port),
        "direction": ["tx"] * len(port),
        "packets": packets,
        "bytes": packets * 4096,
        "ecn_marked_packets": counted(np.array([60_000, 0, 9_000, 0])),
        "dropped_packets": counted(np.array([0, 0, 40, 0])),
        "pfc_rx_frames": paused // 20,
        "pfc_rx_pause_us": paused,
        "pfc_on2off": paused // 40,
        "watermark_bytes": rng.integers(1_000_000, 9_000_000, len(port)),
    }
    rest = {
        "rx_bytes": packets * 4096,
        "tx_bytes": packets * 4000,
        "rx_packets": packets,
        "rx_discards": counted(np.array([0, 0, 3, 0])),
        "corrected_bits": counted(np.array([9_000, 100, 100, 100_000])),
        "oper_up": [not (k == 3 and 8 <= s < 12) for k, s in zip(port, step, strict=True)],
    }
    pl.DataFrame(common | queue).write_parquet(folder / "queues.parquet")
    pl.DataFrame(common | rest).write_parquet(folder / "ports.parquet")


def _replay(path: Path, data: Path, *options: str) -> None:
    command = [sys.executable, "-m", "weft", "replay", str(path), "--data", str(data), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=REPLAY_LIMIT_S, check=False, env=_environment())
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}


def _amend(data: Path) -> None:
    """Add rows that a replay does not produce: a recorded gap, and firing and pending alerts."""
    store = Store(data / "store")
    store.start()
    clock = SystemClock()
    extra = tuple(f"CREATE OR REPLACE VIEW main.{name} AS {sql}" for name, sql in alerts.views().items())
    now = clock.now_ns()
    with store.transaction():
        for statement in alerts.ddl():
            store.execute(statement)
        store.execute("DELETE FROM state.alerts")
        store.execute(
            """INSERT INTO base.gap BY NAME SELECT make_timestamp_ns(?) AS ts, make_timestamp_ns(?) AS recv_ts, 'host' AS source,
            'rack-0' AS device, 0 AS epoch, 'samples' AS what, 12 AS missed, 'late_tick' AS reason""",
            [now, now],
        )
        for state, severity in (("firing", "critical"), ("pending", "warning")):
            labels = f'{{"severity": "{severity}", "device": "rack-0", "port": "host-1"}}'
            store.execute(
                """INSERT INTO state.alerts BY NAME SELECT ? AS fingerprint, 'burst-time' AS rule, ? AS labels,
                '{"summary": "it bursts"}' AS annotations, ? AS state, 0.5 AS value, ? AS starts_at,
                'bursts?device=rack-0&port=host-1&direction=rx' AS path, 'SELECT 1' AS evidence_sql""",
                [state, labels, state, now],
            )
    Publisher(store, PublishConfig(), clock, Report("test", "here", clock), extra).start()
    store.stop()


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    """Return a store of six seconds of samples of 18 ports, and of RoCEv2 packets, made by the real pipeline."""
    folder = tmp_path_factory.mktemp("dash")
    traffic = _traffic()
    _write_recording(folder / "rack.csv", traffic)
    _write_capture(folder / "roce.pcap")
    data = folder / "data"
    _replay(folder / "rack.csv", data, "--kind", "millisampler", "--line-rate", str(LINE_RATE_BPS))
    _replay(folder / "roce.pcap", data)
    _write_counters(folder)
    _replay(folder / "queues.parquet", data)
    _replay(folder / "ports.parquet", data)
    _amend(data)
    return Seed(data, {(f"rack-{rack}", f"host-{100 * rack + host}"): samples for (rack, host), samples in traffic.items()})


@pytest.fixture(scope="session")
def pictured(seed: Seed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder for screenshots: real recordings for those of the docs, else the seed's."""
    recording, capture = SHARED / "meta-millisampler" / "metadc_test.csv", SHARED / "roce-pcap" / "oferby_roce.pcap"
    if not os.environ.get("WEFT_PICTURES") or not recording.exists():
        return seed.data
    data = tmp_path_factory.mktemp("pictured") / "data"
    _replay(recording, data, "--line-rate", str(LINE_RATE_BPS))
    _replay(capture, data)
    # No public recording has counters of a fabric's queues, so these are generated.
    for name in ("queues", "ports"):
        _replay(seed.data.parent / f"{name}.parquet", data)
    return data


@dataclass(frozen=True)
class SlowFabric:
    """The store of a virtual fabric in which one adapter is slow, the adapter, its leaf's port, and all counter samples."""

    data: Path
    adapter: tuple[str, str]
    leaf: tuple[str, str]
    readings: dict[str, pl.DataFrame]


def _run_fabric(adapter: tuple[str, str], racks: int, hosts: int, rails: int, seconds: int) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Return what collectors see of a fabric with two jobs, and its inventory; the adapter is slow after a quarter of the time."""
    from weft.lab.fabric.fabric import Fabric, FabricConfig
    from weft.lab.fabric.faults import InjectedFault
    from weft.lab.fabric.topology import rail_fabric
    from weft.lab.fabric.workload import dense, training
    from weft.lab.telemetry.export import FabricExporter

    count, second = racks * hosts, 1_000_000_000
    first = count * 5 // 8 // 4 * 4
    jobs = (training("pretrain-moe", range(first)), dense("finetune", range(first, count * 7 // 8)))
    fault = InjectedFault("slow_nic", "/".join(adapter), seconds * second // 4, severity=0.7)
    topology = rail_fabric(racks, hosts, rails, spines=rails, parallel=1)
    config = FabricConfig(topology, jobs, (fault,), step_ns=200_000, packet_sampling=0, counter_ns=second // 2)
    fabric = Fabric(config, 1)
    exporter = FabricExporter(fabric)
    steps = [exporter.frames(fabric.advance(k * second)) for k in range(1, seconds + 1)]
    return {family: pl.concat([step[family] for step in steps if family in step]) for family in steps[0]}, exporter.inventory()


def store_windows(data: Path, readings: dict[str, pl.DataFrame], inventory: pl.DataFrame, config: MetricConfig | None = None) -> None:
    """Store the windows of all counter samples, as the services do, and publish them."""
    store = Store(data / "store")
    store.start()
    with store.transaction():
        store.insert("base.inventory", stored(FAMILIES["inventory"], inventory))
        for family in METRICS.keys() & readings.keys():
            devices = readings[family].partition_by("device", as_dict=True)
            closings = [Closing(str(device), 0, 2**62 // 10**9 * 10**9, [rows], ended=True) for (device,), rows in devices.items()]
            for name, rows in METRICS[family](config or MetricConfig()).close_all(closings).items():
                table = STATES.get(name)
                if table is not None and rows.height:
                    store.insert(f"base.{name}_1s" if table.having("key") else f"base.{name}", stored(table, rows))
                    if table.having("key"):
                        fold_all(store, table, rows)
    clock = SystemClock()
    Publisher(store, PublishConfig(), clock, Report("test", "here", clock)).start()
    store.stop()


@pytest.fixture(scope="session")
def slow_fabric(tmp_path_factory: pytest.TempPathFactory) -> SlowFabric:
    """Return the store of some seconds of a fabric with a slow adapter; of a larger fabric for screenshots of the docs."""
    adapter = ("host-0005", "mlx5_3")
    size = (4, 8, 8, 16) if os.environ.get("WEFT_PICTURES") else (2, 4, 4, 4)
    readings, inventory = _run_fabric(adapter, *size)
    data = tmp_path_factory.mktemp("fabric") / "data"
    store_windows(data, readings, inventory)
    link = inventory.filter(kind="link", device=adapter[0], key=adapter[1]).row(0, named=True)
    return SlowFabric(data, adapter, (link["peer_device"], link["peer_port"]), readings)


@pytest.fixture(scope="session")
def one_row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder of a store with one port's single window of a recording of 50 ms."""
    folder = tmp_path_factory.mktemp("one")
    _write_recording(folder / "one.csv", {(0, 0): np.full(BINS, 1000)})
    _replay(folder / "one.csv", folder / "data", "--kind", "millisampler", "--line-rate", str(LINE_RATE_BPS))
    return folder / "data"


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder of a published store without rows."""
    data = tmp_path_factory.mktemp("empty")
    store = Store(data / "store")
    store.start()
    clock = SystemClock()
    Publisher(store, PublishConfig(), clock, Report("test", "here", clock)).start()
    store.stop()
    return data


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs one page on a data folder, with a query string."""
    from streamlit.testing.v1 import AppTest
    from streamlit.util import calc_hash

    from weft.dashboards import service
    from weft.dashboards.pages import PAGES

    def run(data: Path, name: str, **query: str) -> Any:
        monkeypatch.setenv(service.DATA_VARIABLE, str(data))
        monkeypatch.setattr("sys.argv", ["app.py"])
        page = AppTest.from_file(str(service.APP), default_timeout=PAGE_LIMIT_S)
        page.query_params.update(query)
        if name != next(iter(PAGES)):
            # Streamlit's tests can switch only between pages that are files, so the page is set by its hash.
            page._page_hash = calc_hash(name)
        return page.run()

    return run


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return a function that returns an unused port of loopback."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


_SERVE = """
import sys
from pathlib import Path
from typing import Any
from weft.dashboards.service import DashConfig, run
run(DashConfig(port=int(sys.argv[2])), Path(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def serve(free_port: Callable[[], int]) -> Iterator[Callable[[Path], tuple[str, "subprocess.Popen[str]"]]]:
    """Return a function that serves a data folder in a process of its own and returns its address."""
    started: list[subprocess.Popen[str]] = []

    def start(data: Path) -> tuple[str, "subprocess.Popen[str]"]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(data), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
        )
        started.append(process)
        _await(f"http://127.0.0.1:{port}/_stcore/health", process)
        return f"http://127.0.0.1:{port}", process

    yield start
    for process in started:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        process.kill()


def _await(address: str, process: "subprocess.Popen[str]") -> None:
    clock = SystemClock()
    deadline = clock.monotonic_ns() + START_LIMIT_S * 10**9
    while clock.monotonic_ns() < deadline:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
            if answer.status == 200:
                return
        clock.wait(0.2)
    pytest.fail(f"{address} did not answer in {START_LIMIT_S} s")
