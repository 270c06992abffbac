"""Real recordings through the whole pipeline: the published numbers result, however the work is cut and shared."""

import csv
import io
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

MILLISAMPLER = "meta-millisampler/metadc_test.csv"
ROCE = "roce-pcap/oferby_roce.pcap"

_HOSTS = "FROM ports_1h WHERE direction = 'rx'"
_BURSTS = "FROM bursts WHERE direction = 'rx'"
_BUSY = f"{_HOSTS} AND bytes / samples > 1000"

# Results of plain NumPy on the recording: for each row of its table a query that returns a list, and the expected values.
# Integers are exact; decimals are compared to three significant digits (or as many as there are).
EXPECTED: dict[str, tuple[str, str]] = {
    "hosts with a burst, of how many": (f"SELECT [count(*) FILTER (burst_count > 0), count(*)] {_HOSTS}", "105 268"),
    "bursts, samples": (
        f"SELECT [(SELECT count(*) {_BURSTS}), sum(burst_count), sum(samples)] FROM ports_1s WHERE direction = 'rx'",
        "2231 2231 477650",
    ),
    "share of time and bytes in bursts": (
        f"SELECT [sum(burst_time_ratio * samples) / sum(samples), sum(burst_bytes) / sum(bytes)] {_HOSTS}",
        "0.015084 0.2848",
    ),
    "burst length, ms": (
        f"SELECT quantile_cont(duration_ns / 1e6, [0.1, 0.5, 0.9, 0.99]) || [max(duration_ns) / 1e6] {_BURSTS}",
        "1 2 7 17.7 80",
    ),
    "share of bursts of 1, to 2, to 8 ms": (
        f"SELECT [avg((duration_ns = 1e6)::INT), avg((duration_ns <= 2e6)::INT), avg((duration_ns <= 8e6)::INT)] {_BURSTS}",
        "0.414 0.624 0.934",
    ),
    "burst volume, MB": (f"SELECT quantile_cont(bytes / 1e6, [0.5, 0.9, 0.99]) {_BURSTS}", "1.904 8.117 20.29"),
    "gap, ms": (
        f"""SELECT quantile_cont(gap_ns / 1e6, [0.5, 0.9]) FROM (SELECT epoch_ns(start_ts) - lag(epoch_ns(start_ts) + duration_ns)
        OVER (PARTITION BY device, port ORDER BY start_ts) AS gap_ns {_BURSTS}) WHERE gap_ns IS NOT NULL""",
        "13 137",
    ),
    "utilisation of all samples": (
        """SELECT [avg(u)] || quantile_cont(u, [0.5, 0.9, 0.99, 0.999])
        FROM (SELECT unnest("values") * 8e9 / speed_bps / interval_ns AS u FROM samples WHERE signal = 'rx_bytes')""",
        "0.0376 0.0025 0.0887 0.6219 0.9318",
    ),
    "contention by rack": (
        "SELECT flatten(list([contention_mean, contended_ratio] ORDER BY group_id)) FROM groups_1h WHERE direction = 'rx'",
        "1.135 0.466 0.518 0.218 2.281 0.793",
    ),
    "Markov": (
        """SELECT [p01, p11, p11 / p01] FROM (SELECT sum(cold_hot) / sum(cold_hot + cold_cold) AS p01,
        sum(hot_hot) / sum(hot_hot + hot_cold) AS p11 FROM state.port_samples_1h WHERE signal = 'rx_bytes')""",
        "0.0047 0.690 146.",
    ),
    "marked and retransmitted share": (
        f"SELECT [sum(ce_ratio * bytes) / sum(bytes), sum(retransmit_ratio * bytes) / sum(bytes)] {_HOSTS}",
        "0.04677 0.000646",
    ),
    "CV over hosts": (f"SELECT quantile_cont(burstiness_cv, [0.1, 0.5, 0.9]) {_BUSY}", "0.373 1.487 3.632"),
    "peak to mean": (f"SELECT quantile_cont(peak_to_mean, [0.1, 0.5, 0.9]) {_BUSY}", "3.201 14.736 39.323"),
    "dispersion at 1 ms": (f"SELECT quantile_cont(idc_1, [0.1, 0.5, 0.9]) {_BUSY}", "1.411 74.335 333.806"),
    "dispersion at 2 to 32 ms": (
        f"SELECT [median(idc_2), median(idc_4), median(idc_8), median(idc_16), median(idc_32)] {_BUSY}",
        "112.353 158.821 212.477 260.949 266.542",
    ),
    "dispersion at 64 ms": (f"SELECT quantile_cont(idc_64, [0.1, 0.5, 0.9]) {_BUSY}", "5.547 304.230 2905.065"),
    "Hurst exponent": (f"SELECT quantile_cont(hurst, [0.1, 0.5, 0.9]) {_BUSY}", "0.563 0.702 0.831"),
    "Goh-Barabasi: hosts, r, B, finite-size B, memory": (
        f"""SELECT [count(*), median((1 + goh_barabasi) / (1 - goh_barabasi)), median(goh_barabasi), median(goh_barabasi_finite),
        median(memory)] {_HOSTS} AND burst_count >= 5""",
        "70 0.970 -0.015 0.016 -0.028",
    ),
    "hosts above half in some 1 ms, of those in some 50 ms": (
        """SELECT [avg((short > 0.5)::INT), avg((long > 0.5)::INT) FILTER (short > 0.5)] FROM (
        SELECT max(utilization_max_ratio) AS short,
        max(list_max([list_sum(profile[i : i + 4]) for i in range(1, 101, 5)]) * 8 / 0.05 / speed_bps) AS long
        FROM ports_1s WHERE direction = 'rx' GROUP BY device, port)""",
        "0.392 0.038",
    ),
}

Same = Callable[[Path, Path], None]


def _agrees(found: float, expected: str) -> bool:
    if "." not in expected:
        return abs(found - int(expected)) < 1e-9
    digits = min(3, len(expected.lstrip("-0.").replace(".", "")))
    return float(f"{found:.{digits}g}") == float(f"{float(expected):.{digits}g}")


def _assert_table(weft: Any, data: Path, form: str) -> None:
    """Read the whole table in one query and compare each row."""
    query = " UNION ALL ".join(f"SELECT '{name}' AS what, ({sql})::DOUBLE[] AS found" for name, (sql, _) in EXPECTED.items())
    out = weft.run("sql", "--data", data, "--format", form, query).stdout
    if form == "json":
        rows = {row["what"]: row["found"] for row in map(json.loads, out.splitlines())}
    else:
        rows = {row["what"]: json.loads(row["found"]) for row in csv.DictReader(io.StringIO(out))}
    assert rows.keys() == EXPECTED.keys()
    for name, (_, expected) in EXPECTED.items():
        assert len(rows[name]) == len(expected.split()) and all(map(_agrees, rows[name], expected.split())), (name, rows[name], expected)


def _replay(weft: Any, path: Path, data: Path, processes: int, run_samples: int, environment: dict[str, str] | None = None) -> None:
    options = ("--line-rate", "12.5e9", "--process", processes, "--run-samples", run_samples)
    weft.run("replay", path, "--data", data, *options, environment=environment)


@pytest.fixture(scope="module")
def real(shared_data: Path, weft_of_session: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the real recording, and the data folder of its replay by one process service in one go."""
    data = tmp_path_factory.mktemp("real")
    _replay(weft_of_session, shared_data / MILLISAMPLER, data, 1, 1000)
    return shared_data / MILLISAMPLER, data


def test_the_published_table(weft: Any, real: tuple[Path, Path]) -> None:
    """One process service on the embedded bus gives the table of the real recording, in JSON and in CSV."""
    _assert_table(weft, real[1], "json")
    _assert_table(weft, real[1], "csv")


@pytest.mark.parametrize(("processes", "run_samples"), [(4, 137)])
def test_any_cut_and_share_is_the_same(
    weft: Any, real: tuple[Path, Path], same_tables: Same, tmp_path: Path, processes: int, run_samples: int
) -> None:
    """Several process services, and segments of another length, give the same tables row for row."""
    _replay(weft, real[0], tmp_path, processes, run_samples)
    same_tables(real[1], tmp_path)


@pytest.mark.parametrize(("processes", "run_samples"), [(1, 1000), (4, 50)])
def test_kafka_is_the_same(
    weft: Any, real: tuple[Path, Path], same_tables: Same, clean_kafka: str, tmp_path: Path, processes: int, run_samples: int
) -> None:
    """Kafka in place of the embedded bus gives the same tables row for row, with one and with four process services."""
    environment = {"WEFT_BUS__KIND": "kafka", "WEFT_BUS__SERVERS": clean_kafka}
    _replay(weft, real[0], tmp_path, processes, run_samples, environment)
    _assert_table(weft, tmp_path, "json")
    same_tables(real[1], tmp_path)


def test_roce_packets_and_latency(weft: Any, shared_data: Path, tmp_path: Path) -> None:
    """A real capture gives its packets by opcode, no gap in the sequences, and the latency of its acknowledgements within 1 %."""
    weft.run("replay", shared_data / ROCE, "--data", tmp_path)
    query = """SELECT (SELECT [sum(packets), sum(psn_gaps), sum(psn_missing)]::INT[] FROM roce_1h) AS totals,
        (SELECT list([opcode, n] ORDER BY opcode) FROM (SELECT opcode, sum(packets)::INT AS n FROM roce_1h GROUP BY opcode)) AS opcodes,
        (SELECT [weft_quantile(weft_merge(list(hist)), 0.5), weft_quantile(weft_merge(list(hist)), 0.99), sum(samples)]::DOUBLE[]
        FROM latency_1h) AS latency"""
    row = json.loads(weft.run("sql", "--data", tmp_path, "--format", "json", query).stdout)
    assert row["totals"] == [105, 0, 0]
    assert row["opcodes"] == [[0x00, 33], [0x03, 33], [0x05, 2], [0x11, 37]]
    assert row["latency"] == [pytest.approx(19_070, rel=0.01), pytest.approx(25_030, rel=0.01), 68]


def test_a_recording_of_our_own(weft: Any, recording: Any, undisturbed: Path) -> None:
    """Without the real recording: counts of a generated one equal those of a plain walk through its samples."""
    bursts = samples = 0
    for rack in recording.hot:
        for host in rack:
            bursts += sum(hot for hot, _ in groupby(host.tolist()))
            samples += len(host)
    hot = recording.hot.sum(axis=1)
    query = """SELECT (SELECT count(*) FROM bursts) AS bursts, sum(samples)::BIGINT AS samples, sum(bytes)::BIGINT AS bytes,
        sum(burst_bytes)::BIGINT AS burst_bytes, sum(burst_time_ratio * samples) AS hot,
        (SELECT list(contention_mean ORDER BY group_id) FROM groups_1h) AS contention,
        (SELECT list(contention_max ORDER BY group_id) FROM groups_1h) AS most, (SELECT count(*) FROM gaps) AS gaps
        FROM ports_1h WHERE direction = 'rx'"""
    row = json.loads(weft.run("sql", "--data", undisturbed, "--format", "json", query).stdout)
    assert bursts > 1000
    assert row == {
        "bursts": bursts,
        "samples": samples,
        "bytes": int(recording.samples.sum()),
        "burst_bytes": int(recording.samples[recording.hot].sum()),
        "hot": pytest.approx(int(hot.sum())),
        "contention": [pytest.approx(float(rack.mean())) for rack in hot],
        "most": [int(rack.max()) for rack in hot],
        "gaps": 0,
    }
