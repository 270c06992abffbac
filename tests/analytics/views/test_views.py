"""The views' formulas against NumPy: every column equals the metric's definition."""

import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from weft.analytics.store.ddl import stored
from weft.analytics.views import HURST_SCALES, UNIT_BYTES, VIEWS
from weft.pipeline import histogram
from weft.pipeline.process.base import Closing
from weft.pipeline.process.bursts.metric import BurstMetric
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import LADDER, WINDOW_NS
from weft.pipeline.tables.states import STATES

from .board_rig import Viewed

# A second whose first millisecond is a multiple of 1024, so that blocks begin with it.
T0 = 1_640_995_200 * WINDOW_NS
T0 += next(s for s in range(1024) if (T0 // 1_000_000 + s * 1000) % 1024 == 0) * WINDOW_NS
MS = 1_000_000
SPEED = 10_000_000_000
CAPACITY = SPEED // 8 // 1000

Series = dict[tuple[str, str], list[int]]


class Views(Viewed):
    """A store with views, into which rows are inserted as the process service makes them."""

    def samples(self, series: Series, device: str = "leaf", speed_bps: int | None = SPEED, interval_ns: int = MS) -> None:
        """Store the statistics of series, by (port, signal)."""
        types = FAMILIES["burst_sample"].polars
        rows = [
            {
                "ts": T0,
                "port": port,
                "queue": "",
                "signal": signal,
                "interval_ns": interval_ns,
                "speed_bps": speed_bps,
                "values": list(values),
            }
            for (port, signal), values in series.items()
        ]
        frame = pl.DataFrame(rows, schema={name: types[name] for name in rows[0]})
        for name, made in BurstMetric().close(Closing(device, T0, T0 + 10 * WINDOW_NS, [frame], True)).items():
            suffix = "" if name == "bursts" else "_1s"
            self.store.insert(f"base.{name}{suffix}", stored(STATES[name], made))

    def put(self, table: str, **columns: Any) -> None:
        """Store one row of a state table with the given columns, the other sums zero and the rest null."""
        state = STATES[table.rsplit("_", 1)[0]]
        row: dict[str, Any] = {field.name: 0 if field.role == "sum" else None for field in state.fields} | {"ts": T0, **columns}
        frame = pl.DataFrame({name: pl.Series([row[name]], dtype=dtype, strict=False) for name, dtype in state.polars.items()})
        self.store.insert(f"base.{table}", stored(state, frame))


@pytest.fixture
def views(tmp_path: Path) -> Iterator[Views]:
    """Return an empty store with its views."""
    one = Views(tmp_path)
    yield one
    one.store.stop()


def bursty(seed: int, count: int = 1000) -> np.ndarray:
    """Return a series of 1 ms with some bursts."""
    rng = np.random.default_rng(seed)
    on = np.repeat(rng.random(count // 2) < 0.2, 2)
    return np.where(on, rng.integers(CAPACITY // 2 + 1, CAPACITY, count), rng.integers(0, CAPACITY // 3, count))


def starts(hot: np.ndarray) -> np.ndarray:
    return np.flatnonzero(hot & ~np.concatenate([[False], hot[:-1]]))


@pytest.mark.parametrize("seed", range(4))
def test_a_ports_figures_are_numpys(views: Views, seed: int) -> None:
    """Utilisation, CV, peak to mean, burst shares, gaps and clustering of one window equal NumPy's on its samples."""
    x = bursty(seed)
    views.samples({("p", "rx_bytes"): x.tolist()})
    row = views.one("SELECT * FROM ports_1s")
    hot = x > CAPACITY / 2
    ends = np.flatnonzero(hot & ~np.concatenate([hot[1:], [False]]))
    begin = starts(hot)
    after_hot, after_cold = hot[1:][hot[:-1]], hot[1:][~hot[:-1]]
    expected = {
        "samples": 1000,
        "coverage_ratio": 1.0,
        "bytes": x.sum(),
        "utilization_mean_ratio": x.mean() / CAPACITY,
        "utilization_max_ratio": x.max() / CAPACITY,
        "burst_count": len(begin),
        "burst_time_ratio": hot.mean(),
        "burst_bytes": x[hot].sum(),
        "burst_bytes_ratio": x[hot].sum() / x.sum(),
        "burst_gap_mean_ns": (begin[1:] - ends[: len(begin) - 1] - 1).mean() * MS,
        "clustering_ratio": after_hot.mean() / after_cold.mean(),
        "burstiness_cv": x.std() / x.mean(),
        "peak_to_mean": x.max() / x.mean(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert (row["quality"], row["direction"]) == ("ok", "rx")
    for name, q in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}.items():
        rank = np.quantile(x, q, method="inverted_cdf")
        assert row[f"utilization_{name}_ratio"] == pytest.approx(rank / CAPACITY, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_the_index_of_dispersion_is_numpys_at_every_scale(views: Views, seed: int) -> None:
    """IDC at m is the variance of the bytes of whole blocks of m samples over their mean, in full-size frames."""
    x = bursty(seed, 4096)
    views.samples({("p", "rx_bytes"): x.tolist()})
    whole = {
        field.name: f"sum({field.name})::{'DECIMAL(38,0)' if 'squares' in field.name else 'UBIGINT'} AS {field.name}"
        for field in STATES["port_samples"].fields
        if field.role == "sum"
    }
    views.store.execute(f"CREATE TABLE whole AS SELECT {', '.join(whole.values())} FROM base.port_samples_1s")
    sql = {column.name: column.sql for view in VIEWS if view.name == "ports" for column in view.columns}
    for m in (1, *LADDER):
        blocks = x[: len(x) // m * m].reshape(-1, m).sum(axis=1)
        got = views.one(f"SELECT {sql[f'idc_{m}']} AS idc FROM whole")["idc"]
        assert got == pytest.approx(blocks.var() / blocks.mean() / UNIT_BYTES, rel=1e-9), m


def test_one_window_shows_its_own_dispersion(views: Views) -> None:
    """The view of 1 s gives the same for the blocks that end in that second."""
    x = bursty(9)
    views.samples({("p", "rx_bytes"): x.tolist()})
    row = views.one("SELECT * FROM ports_1s")
    for m in (1, 2, 8, 64, 256):
        blocks = x[: len(x) // m * m].reshape(-1, m).sum(axis=1)
        assert row[f"idc_{m}"] == pytest.approx(blocks.var() / blocks.mean() / UNIT_BYTES, rel=1e-9), m
    assert row["idc_1024"] is None


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.7, 0.9])
def test_the_hurst_exponent_of_made_variances_is_found(views: Views, hurst: float) -> None:
    """If the variance of the means of m samples falls as m^(2H-2), the estimate is H."""
    n, mean, sigma2, columns = 1000, 10**9, 10.0**16, {}
    for m in HURST_SCALES:
        # Of sums of m samples: mean m times, variance m^2 m^(2H-2) = m^(2H) times that of one sample.
        squares = n * (m * mean) ** 2 + round(n * sigma2 * m ** (2 * hurst))
        names = ("samples", "total", "squares") if m == 1 else (f"blocks_{m}", f"block_total_{m}", f"block_squares_{m}")
        columns |= dict(zip(names, (n, n * m * mean, Decimal(squares)), strict=True))
    views.put("port_samples_1s", device="d", port="p", queue="", signal="rx_bytes", interval_ns=MS, speed_bps=SPEED, **columns)
    assert views.one("SELECT hurst FROM ports_1s")["hurst"] == pytest.approx(hurst, abs=1e-9)


def test_the_hurst_exponent_is_numpys_slope(views: Views) -> None:
    """On samples the estimate is one plus half of the slope of log variance over log m, by least squares."""
    x = np.random.default_rng(4).integers(0, CAPACITY // 3, 1000)
    views.samples({("p", "rx_bytes"): x.tolist()})
    logs = [math.log((x[: len(x) // m * m].reshape(-1, m).sum(axis=1) / m).var()) for m in HURST_SCALES]
    slope = np.polyfit(np.log(HURST_SCALES), logs, 1)[0]
    assert views.one("SELECT hurst FROM ports_1s")["hurst"] == pytest.approx(1 + slope / 2, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_goh_barabasi_and_memory_are_numpys(views: Views, seed: int) -> None:
    """Burstiness of the times between burst starts, its finite-size form and the memory coefficient equal their definitions."""
    x = bursty(seed)
    views.samples({("p", "rx_bytes"): x.tolist()})
    row = views.one("SELECT goh_barabasi, goh_barabasi_finite, memory FROM ports_1s")
    tau = np.diff(starts(x > CAPACITY / 2))
    r, n = tau.std() / tau.mean(), len(tau)
    finite = (math.sqrt(n + 1) * r - math.sqrt(n - 1)) / ((math.sqrt(n + 1) - 2) * r + math.sqrt(n - 1))
    assert row["goh_barabasi"] == pytest.approx((r - 1) / (r + 1), rel=1e-9)
    assert row["goh_barabasi_finite"] == pytest.approx(finite, rel=1e-9)
    assert row["memory"] == pytest.approx(np.corrcoef(tau[:-1], tau[1:])[0, 1], rel=1e-9)


def test_a_clock_like_train_of_bursts_is_minus_one(views: Views) -> None:
    """Bursts at equal distances: B is -1, the memory of a constant is undefined."""
    x = np.zeros(1000, int)
    x[::10] = CAPACITY
    views.samples({("p", "rx_bytes"): x.tolist()})
    row = views.one("SELECT goh_barabasi, memory, burst_gap_mean_ns, burst_gap_p50_ns FROM ports_1s")
    assert row == {"goh_barabasi": -1.0, "memory": None, "burst_gap_mean_ns": 9 * MS, "burst_gap_p50_ns": 9 * MS}


def test_a_silent_port_divides_by_nothing(views: Views) -> None:
    """With zero bytes, undefined columns are NULL, the others are zero, and nothing fails."""
    views.samples({("p", "rx_bytes"): [0] * 1000})
    row = views.one("SELECT * FROM ports_1s")
    for name in ("burst_bytes_ratio", "clustering_ratio", "burstiness_cv", "peak_to_mean", "idc_1", "hurst", "goh_barabasi", "memory"):
        assert row[name] is None, name
    for name in ("utilization_mean_ratio", "utilization_p99_ratio", "utilization_max_ratio", "burst_time_ratio", "bytes", "burst_count"):
        assert row[name] == 0, name


def test_a_port_of_unknown_rate_has_no_utilisation(views: Views) -> None:
    """Without a line rate ratios to it are NULL and no sample is hot; everything else is there."""
    x = bursty(1)
    views.samples({("p", "rx_bytes"): x.tolist()}, speed_bps=None)
    row = views.one("SELECT * FROM ports_1s")
    assert row["utilization_mean_ratio"] is row["utilization_p99_ratio"] is row["utilization_max_ratio"] is None
    assert row["burst_count"] == 0
    assert row["burstiness_cv"] == pytest.approx(x.std() / x.mean())


def test_shares_of_marked_and_repeated_bytes(views: Views) -> None:
    """CE and retransmit shares are of the direction's bytes; where they are not sampled they are NULL."""
    views.samples(
        {
            ("p", "rx_bytes"): [1000] * 10,
            ("p", "tx_bytes"): [500] * 10,
            ("p", "rx_ecn_bytes"): [100] * 10,
            ("p", "tx_retransmit_bytes"): [50] * 10,
            ("q", "rx_bytes"): [1000] * 10,
        }
    )
    rows = views.rows("SELECT port, direction, ce_ratio, retransmit_ratio FROM ports_1s ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [("p", "rx", 0.1, None), ("p", "tx", None, 0.1), ("q", "rx", None, None)]


def test_shares_are_of_samples_of_one_interval(views: Views) -> None:
    """With two sampling intervals in one window, each row's shares come from its own samples; sums at another interval may be used."""
    for interval, count in ((MS, 10), (10 * MS, 30)):
        beside = {("p", "rx_ecn_bytes"): [count] * 10, ("p", "rx_retransmit_bytes"): [2 * count] * 10}
        views.samples({("p", "rx_bytes"): [1000] * 10} | beside, interval_ns=interval)
    views.samples({("q", "rx_bytes"): [1000] * 10})
    views.samples({("q", "rx_ecn_bytes"): [500], ("q", "rx_retransmit_bytes"): [600]}, interval_ns=10 * MS)
    rows = views.rows("SELECT ce_ratio, retransmit_ratio FROM ports_1s ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [(0.01, 0.02), (0.03, 0.06), (0.05, 0.06)]


@pytest.mark.parametrize("seed", range(3))
def test_a_devices_balance_and_contention_are_numpys(views: Views, seed: int) -> None:
    """Jain's fairness, the busiest port over the mean, CV and contention of a device's ports equal NumPy's."""
    x = np.stack([bursty(seed * 10 + k) * (k + 1) // 4 for k in range(4)])
    views.samples({(f"p{k}", "rx_bytes"): x[k].tolist() for k in range(4)} | {("p0", "connections"): [3, 17, 5] + [0] * 997})
    row = views.one("SELECT * FROM groups_1s")
    total, hot = x.sum(axis=1).astype(float), (x > CAPACITY / 2).sum(axis=0)
    expected = {
        "members": 4,
        "slots": 1000,
        "jain": total.sum() ** 2 / (4 * (total**2).sum()),
        "max_to_mean": total.max() / total.mean(),
        "cv": total.std() / total.mean(),
        "contention_mean": hot.mean(),
        "contention_max": hot.max(),
        "contended_ratio": (hot > 1).sum() / (hot > 0).sum(),
        "busy_slots": (hot > 0).sum(),
        "contended_slots": (hot > 1).sum(),
        "incast_max": 17,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert (row["group_kind"], row["group_id"], row["direction"]) == ("device", "leaf", "rx")


def test_equal_ports_are_fair(views: Views) -> None:
    """Jain's index is 1 for equal ports and 1/n where one has it all."""
    views.samples({(f"p{k}", "rx_bytes"): [7] * 10 for k in range(4)}, device="even")
    views.samples({(f"p{k}", "rx_bytes"): [7 * (k == 0)] * 10 for k in range(4)}, device="odd")
    rows = views.rows("SELECT group_id, jain FROM groups_1s ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [("even", 1.0), ("odd", 0.25)]


def test_bursts_are_measured_against_the_line(views: Views) -> None:
    """Peak and mean utilisation of a burst are of its samples; contention counts the burst itself."""
    views.samples({("p", "rx_bytes"): [0, CAPACITY, CAPACITY * 3 // 4, 0], ("q", "rx_bytes"): [0, 0, CAPACITY, 0]})
    rows = views.rows(
        "SELECT port, duration_ns, bytes, peak_utilization_ratio, mean_utilization_ratio, contention_max FROM bursts ORDER BY port"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("p", 2 * MS, CAPACITY * 7 // 4, 1.0, 0.875, 2),
        ("q", MS, CAPACITY, 1.0, 1.0, 2),
    ]


@pytest.mark.parametrize("interval_ns", [1_000, WINDOW_NS])
def test_the_fastest_port_overflows_nothing(views: Views, interval_ns: int) -> None:
    """Columns of an hour of a full 1.6 Tbit/s port, and of the largest accepted rates and samples, are finite."""
    count = 3600 * WINDOW_NS // interval_ns
    for speed, sample in ((1_600_000_000_000, 200 * interval_ns), (2**64 - 1, 2**20 * interval_ns)):
        keys = {"device": str(speed), "port": "p", "queue": "", "signal": "rx_bytes", "interval_ns": interval_ns, "speed_bps": speed}
        sums = {
            "samples": count,
            "total": count * sample,
            "squares": Decimal(count * sample**2),
            "low": sample,
            "high": sample,
            "hot": count,
        }
        for m in LADDER:
            sums |= {
                f"blocks_{m}": count // m,
                f"block_total_{m}": count // m * m * sample,
                f"block_squares_{m}": Decimal(count // m * (m * sample) ** 2),
            }
        views.put("port_samples_1h", **keys, **sums, hot_total=count * sample, hot_hot=count - 1)
        burst = {"start_ts": T0, "duration_ns": 3600 * WINDOW_NS, "bytes": count * sample, "peak": sample}
        table = STATES["bursts"]
        row = {**dict.fromkeys(table.polars), **keys, **burst}
        frame = pl.DataFrame({name: pl.Series([row[name]], dtype=dtype, strict=False) for name, dtype in table.polars.items()})
        views.store.insert("base.bursts", stored(table, frame))
    for row in views.rows("SELECT * FROM ports_1h"):
        assert row["burstiness_cv"] == row["idc_1"] == row["idc_1024"] == 0
        assert row["peak_to_mean"] == 1
        if row["speed_bps"] < 2**63:
            assert row["utilization_mean_ratio"] == row["utilization_max_ratio"] == pytest.approx(1)
    assert all(row["peak_utilization_ratio"] == pytest.approx(row["mean_utilization_ratio"]) for row in views.rows("SELECT * FROM bursts"))


def test_partial_windows_say_so(views: Views) -> None:
    """A window with fewer samples than it has room for is partial, and its coverage is the share that is there."""
    views.samples({("p", "rx_bytes"): [1] * 500, ("q", "rx_bytes"): [1] * 999, ("r", "rx_bytes"): [1] * 998})
    rows = views.rows("SELECT port, coverage_ratio, quality FROM ports_1s ORDER BY port")
    assert [tuple(row.values()) for row in rows] == [("p", 0.5, "partial"), ("q", 0.999, "ok"), ("r", 0.998, "partial")]


def test_quality_is_one_row_a_key(views: Views) -> None:
    """A window has one row even if several messages had faults in it, and samples are not counted twice."""
    views.samples({("p", "rx_bytes"): [1] * 500})
    for late, double in ((1, 0), (2, 5)):
        views.put("quality_1s", device="leaf", port="p", signal="rx_bytes", late=late, duplicates=double)
    views.put("quality_1s", device="gone", port="x", signal="tx_bytes", implausible=9)
    rows = views.rows("SELECT device, samples, coverage_ratio, late, duplicates, implausible FROM quality_1s ORDER BY device")
    assert [tuple(row.values()) for row in rows] == [("gone", 0, None, 0, 0, 9), ("leaf", 500, 0.5, 3, 5, 0)]


def test_no_quantile_is_outside_of_what_was_sampled(views: Views) -> None:
    """If all samples are equal, every quantile is their value, although the bucket's value may differ by 1 %."""
    views.samples({("p", "rx_bytes"): [1_000_001] * 1000})
    row = views.one("SELECT * FROM ports_1s")
    names = ("p50", "p90", "p99", "p999", "max")
    assert {row[f"utilization_{name}_ratio"] for name in names} == {1_000_001 / (SPEED * MS / 8e9)}
    hist = histogram.of_values(np.zeros(3, int), np.full(3, 20_000), 1)[0]
    views.put("latency_1s", device="d", src="a", dst="b", kind="ack", hist=hist, samples=3, total=60_000, low=20_000, high=20_000)
    row = views.one("SELECT * FROM latency_1s")
    assert {row[f"{name}_ns"] for name in ("p50", "p90", "p99", "p999", "p9999", "max")} == {20_000} and row["tail_ratio"] == 1


def test_latency_quantiles_and_tails(views: Views) -> None:
    """Quantiles are within 1 % of the samples' own, ratios are quotients of them, the mean and the largest exact."""
    values = np.random.default_rng(2).lognormal(10, 1, 50_000).astype(int)
    hist = histogram.of_values(np.zeros(len(values), int), values, 1)[0]
    columns = {"samples": len(values), "total": int(values.sum()), "low": int(values.min()), "high": int(values.max())}
    views.put("latency_1s", device="d", src="a", dst="b", kind="ack", hist=hist, **columns)
    row = views.one("SELECT * FROM latency_1s")
    for name, q in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}.items():
        assert row[f"{name}_ns"] == pytest.approx(np.quantile(values, q, method="inverted_cdf"), rel=0.01)
    assert row["mean_ns"] == pytest.approx(values.mean())
    assert row["max_ns"] == values.max()
    assert row["tail_ratio"] == pytest.approx(row["p99_ns"] / row["p50_ns"])
    assert row["tail_ratio_999"] == pytest.approx(row["p999_ns"] / row["p50_ns"])


@pytest.mark.parametrize(
    ("opcode", "operation"),
    [
        (0x00, "RC SEND first"),
        (0x04, "RC SEND only"),
        (0x06, "RC WRITE first"),
        (0x0A, "RC WRITE only"),
        (0x0C, "RC READ request"),
        (0x10, "RC READ response only"),
        (0x11, "RC ACK"),
        (0x14, "RC FETCH ADD"),
        (0x17, "RC SEND only invalidate"),
        (0x2A, "UC WRITE only"),
        (0x64, "UD SEND only"),
        (0x81, "CNP"),
        (0xA4, "XRC SEND only"),
        (0x1F, "RC opcode 31"),
        (0xFF, "transport 7 opcode 31"),
    ],
)
def test_operations_have_names(views: Views, opcode: int, operation: str) -> None:
    """Every opcode has the name that the InfiniBand specification gives it, unknown ones their numbers."""
    views.put("roce_1s", device="d", src="a", dst="b", opcode=opcode, packets=10, ect_packets=8, ce_packets=2)
    row = views.one("SELECT operation, ce_ratio, credits_mean FROM roce_1s")
    assert row == {"operation": operation, "ce_ratio": 0.25, "credits_mean": None}


def test_devices_are_listed_with_their_ports(views: Views) -> None:
    """Every device with rows is listed once, with its ports and the minutes of its first and last rows."""
    for port in ("p", "q"):
        for minute in (0, 5):
            ts = T0 + minute * 60 * WINDOW_NS
            views.put("port_samples_1m", ts=ts, device="leaf", port=port, queue="", signal="rx_bytes", interval_ns=MS, samples=1)
    views.put("roce_1m", device="leaf", src="a", dst="b", opcode=4)
    views.put("roce_1m", device="tap", src="a", dst="b", opcode=4)
    rows = views.rows(
        "SELECT device, ports, (epoch_ns(last_ts) - epoch_ns(first_ts)) // 60000000000 AS minutes FROM devices ORDER BY device"
    )
    assert [tuple(row.values()) for row in rows] == [("leaf", 2, 5), ("tap", 0, 0)]


def test_every_column_is_described() -> None:
    """Each column of each view has one meaning, and names contain units."""
    for view in VIEWS:
        names = [column.name for column in view.columns]
        assert len(names) == len(set(names)), view.name
        for column in view.columns:
            assert column.doc, (view.name, column.name)
            if column.name.endswith("_ns"):
                assert column.unit == "ns", (view.name, column.name)


def test_views_are_alike_at_every_resolution(views: Views) -> None:
    """A view has the same columns of the same types at 1 s, 10 s, 1 min and 1 h."""

    def columns(resolution: str) -> list[dict[str, Any]]:
        return views.rows(f"SELECT column_name, column_type FROM (DESCRIBE main.{view.name}_{resolution})")

    for view in VIEWS:
        if view.resolutions:
            assert columns("1s") == columns("10s") == columns("1m") == columns("1h")
