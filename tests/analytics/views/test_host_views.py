"""Views of adapters, scale-up links, GPUs and jobs: samples go through the metrics into a store, and the views equal the formulas."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from weft.analytics.store.ddl import stored
from weft.pipeline.process import METRICS, MetricConfig
from weft.pipeline.process.base import Closing
from weft.pipeline.tables.families import FAMILIES

from .board_rig import Viewed

S = 10**9
T0 = 1_700_000_040 * S
BASE = {"recv_ts": T0, "source": "host", "epoch": 0, "device": "host-0", "port": "mlx5_0", "gpu": "0", "link": "", "speed_bps": 400 * S}


class Board(Viewed):
    """A store with its views, into which samples are inserted as the services do."""

    def read(self, family: str, rows: list[dict]) -> None:
        """Store the statistics of a host's samples; ``t`` is seconds after T0."""
        types = FAMILIES[family].polars
        full = [{name: {**BASE, **row, "ts": T0 + round(row["t"] * S)}.get(name) for name in types} for row in rows]
        frame = pl.DataFrame(full, schema=types, orient="row")
        self.keep(METRICS[family](MetricConfig()).close(Closing("host-0", T0, T0 + 600 * S, [frame])))

    def say(self, rows: list[dict]) -> None:
        """Store rows of the inventory."""
        types = FAMILIES["inventory"].polars
        full = [{name: {**BASE, "ts": T0, "port": None, "speed_bps": None, **row}.get(name) for name in types} for row in rows]
        self.store.insert("base.inventory", stored(FAMILIES["inventory"], pl.DataFrame(full, schema=types, orient="row")))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Return an empty store with its views."""
    one = Board(tmp_path)
    yield one
    one.store.stop()


MOVED = {
    "tx_bytes": 20 * 10**9,
    "rx_bytes": 10 * 10**9,
    "tx_packets": 5_000_000,
    "rx_packets": 2_500_000,
    "ecn_marked_packets": 50_000,
    "cnp_sent": 40_000,
    "cnp_handled": 30_000,
    "cnp_ignored": 10_000,
    "out_of_sequence": 700,
    "retransmits": 2_000,
    "packet_seq_err": 5,
    "ack_timeout": 3,
    "rnr_nak": 4,
}


def test_an_adapter_in_figures(board: Board) -> None:
    """Notifications, reordering and retransmissions are per gigabyte, marks and goodput are shares, utilisation is over covered time."""
    board.read("nic", [{"t": t, **{name: step * t for name, step in MOVED.items()}} for t in (0, 1)])
    row = board.one("SELECT * FROM nics_1s WHERE tx_bytes IS NOT NULL")
    expected = {
        "port": "mlx5_0",
        "quality": "ok",
        "tx_utilization_ratio": 20 * 8 / 400,
        "rx_utilization_ratio": 10 * 8 / 400,
        "ce_ratio": 0.02,
        "cnp_per_gigabyte": 4000,
        "cnp_handled_per_gigabyte": 1500,
        "cnp_per_ce": 0.8,
        "cnp_ignored_ratio": 0.25,
        "out_of_sequence_per_gigabyte": 70,
        "retransmit_per_gigabyte": 100,
        "goodput_ratio": 1 - 2_000 / 5_000_000,
        "sequence_naks": 5,
        "ack_timeouts": 3,
        "rnr_naks": 4,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_what_an_adapter_does_not_count_is_unknown(board: Board) -> None:
    """A missing counter gives NULL, in sums and ratios, and never zero; so does a ratio to zero."""
    board.read("nic", [{"t": t, "tx_bytes": 10 * t, "cnp_sent": 2 * t, "rx_bytes": 7} for t in (0, 1)])
    row = board.one("SELECT * FROM nics_1s WHERE tx_bytes IS NOT NULL")
    assert row["cnp_sent"] == 2
    unknown = ("cnp_per_gigabyte", "cnp_per_ce", "cnp_ignored_ratio", "goodput_ratio", "retransmits", "ack_timeouts", "rnr_naks")
    assert {name: row[name] for name in unknown} == dict.fromkeys(unknown)


def test_coarser_adapters_are_ratios_of_sums(board: Board) -> None:
    """A minute's ratio is that of its sums, not a mean of the seconds' ratios, and of two sources the one with more counters is shown."""
    steps = [(1, 1000), (9, 1000)]
    sent = received = 0
    rows = [{"t": 0, "cnp_sent": 0, "rx_bytes": 0}]
    for t, (cnps, megabytes) in enumerate(steps, 1):
        sent, received = sent + cnps, received + megabytes * 10**6 * t
        rows.append({"t": t, "cnp_sent": sent, "rx_bytes": received})
    board.read("nic", rows)
    board.read("nic", [{"t": t, "source": "another", "rx_bytes": t} for t in (0, 1, 2)])
    row = board.one("SELECT source, cnp_per_gigabyte, readings FROM nics_1m")
    assert row == {"source": "host", "cnp_per_gigabyte": pytest.approx(10 / 3), "readings": 3}


def test_a_scale_up_link_in_figures(board: Board) -> None:
    """Utilisation is of the busier direction; replays, recoveries and errors are sums, NULL where they are not counted."""
    board.read(
        "nvlink", [{"t": t, "link": "4", "tx_bytes": 5 * 10**9 * t, "rx_bytes": 10**10 * t, "replay": 2 * t, "crc": t} for t in (0, 2)]
    )
    row = board.one("SELECT * FROM nvlinks_1s WHERE tx_bytes IS NOT NULL")
    expected = {"gpu": "0", "link": "4", "tx_bytes": 10**10, "rx_bytes": 2 * 10**10, "utilization_ratio": pytest.approx(0.2)}
    expected |= {"replays": 4, "recoveries": None, "errors": 2}
    assert {name: row[name] for name in expected} == expected


def test_a_gpu_in_figures(board: Board) -> None:
    """Mean, smallest and largest of shares and power, at every resolution over all its samples."""
    shares, watts = [0.2, 0.4, 0.9], [300.0, 500.0, 700.5]
    board.read(
        "gpu", [{"t": t, "sm_active_ratio": a, "power_w": b, "xid": 0} for t, a, b in zip((0.1, 0.6, 1.1), shares, watts, strict=True)]
    )
    row = board.one("SELECT * FROM gpus_1m")
    expected = {
        "sm_active_mean_ratio": sum(shares) / 3,
        "sm_active_min_ratio": 0.2,
        "sm_active_max_ratio": 0.9,
        "power_mean_w": sum(watts) / 3,
        "power_min_w": 300,
        "power_max_w": 700.5,
        "readings": 3,
        "xid_readings": 0,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert (row["tensor_active_mean_ratio"], row["tensor_active_max_ratio"], row["xid"]) == (None, None, None)


def test_the_honesty_of_hosts_is_in_quality(board: Board) -> None:
    """The coverage and faults of hosts' counters in each window are listed beside those of ports."""
    board.read("nic", [{"t": t, "tx_bytes": v} for t, v in ((0, 5), (1, 9), (2, 1))])
    board.read("gpu", [{"t": 0, "power_w": -1.0}])
    rows = board.rows("SELECT port, signal, samples, coverage_ratio, resets, implausible FROM quality_1s ORDER BY signal, ts")
    assert [tuple(row.values()) for row in rows] == [
        ("gpu0", "gpu", 1, None, 0, 1),
        ("mlx5_0", "nic", 1, 0, 0, 0),
        ("mlx5_0", "nic", 1, 1, 0, 0),
        ("mlx5_0", "nic", 1, 0, 1, 0),
    ]
    assert board.one("SELECT device, ports FROM devices") == {"device": "host-0", "ports": 1}


def test_jobs_and_their_hosts(board: Board) -> None:
    """A job has a row for each host that it runs on; without a name its key stands for it."""
    board.say(
        [
            {"kind": "job", "device": "host-1", "key": "llm/1", "job": "llm"},
            {"kind": "job", "device": "host-2", "key": "llm/2", "job": "llm"},
            {"kind": "job", "device": "host-3", "key": "notebook"},
            {"kind": "device", "device": "host-3", "key": "host-3"},
        ]
    )
    rows = board.rows("SELECT job, device FROM jobs ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [("llm", "host-1"), ("llm", "host-2"), ("notebook", "host-3")]
