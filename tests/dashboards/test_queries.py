"""Queries against plain counting: single bursts, the distributions and the metrics of a range."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from weft.analytics.store.reader import Reader
from weft.dashboards.pages.bursts import queries
from weft.dashboards.pages.congestion import queries as queries_congestion
from weft.dashboards.pages.latency import queries as queries_latency
from weft.dashboards.pages.overview import queries as queries_overview
from weft.dashboards.queries import packets_bounds, samples_bounds, worst_ports
from weft.dashboards.sql import Span, chosen

LINE_RATE_BPS = 12_500_000_000
CAPACITY = LINE_RATE_BPS / 8 / 1000
MS = 1_000_000


@pytest.fixture(scope="module")
def reader(seed):
    """Return a reader of the full store."""
    opened = Reader(seed.data / "store")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def span(reader) -> Span:
    """Return the span of all samples."""
    row = reader.frame(samples_bounds()).row(0)
    return chosen(row[0], row[1], "all", None)


ENTITY = queries.Entity("rack-2", "host-203", "rx", MS)


def runs_of(hot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last index of each run of true."""
    edges = np.diff(np.concatenate([[0], hot.astype(np.int8), [0]]))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1


def test_the_microscope_shows_each_sample(seed, reader, span):
    """If the samples fit on the screen every sample is there, at its time, with its utilisation and the mean of its second."""
    window = Span(span.from_ns + 700 * MS, span.from_ns + 1300 * MS)
    files = reader.raw_sample_files(window.from_ns, window.to_ns)
    frame = reader.frame(queries.microscope(window, ENTITY, files))
    samples = seed.samples[ENTITY.device, ENTITY.port] / CAPACITY
    assert frame["utilization_ratio"].to_numpy() == pytest.approx(samples[700:1300])
    assert frame["ms"].to_numpy() == pytest.approx(span.from_ns / MS + np.arange(700, 1300))
    assert frame["second_mean_ratio"].to_numpy() == pytest.approx(np.repeat([samples[:1000].mean(), samples[1000:2000].mean()], 300))


def test_the_microscope_keeps_peaks_when_it_groups(seed, reader, span):
    """With more samples than fit on the screen the largest of each group is shown, so no peak is lost."""
    files = reader.raw_sample_files(span.from_ns, span.to_ns)
    frame = reader.frame(queries.microscope(span, ENTITY, files))
    samples = seed.samples[ENTITY.device, ENTITY.port] / CAPACITY
    group = -(-len(samples) // queries.MICROSCOPE_POINTS_MAX)
    assert frame.height <= queries.MICROSCOPE_POINTS_MAX + 1
    assert frame["utilization_ratio"].to_numpy() == pytest.approx(samples.reshape(-1, group).max(axis=1))


def test_the_microscope_reads_files_of_different_widths(reader, tmp_path):
    """A file of small samples beside one of large samples is read as well, whichever comes first."""
    files = []
    for k, (value, width) in enumerate(((7, pl.UInt16), (1_000_000, pl.UInt32), (9, pl.UInt8))):
        frame = pl.DataFrame(
            {
                "ts": [k * 10 * MS],
                "device": ["rack-2"],
                "port": ["host-203"],
                "queue": [""],
                "signal": ["rx_bytes"],
                "interval_ns": [MS],
                "speed_bps": [LINE_RATE_BPS],
            }
        ).with_columns(pl.col("ts").cast(pl.Datetime("ns")), values=pl.Series([[value] * 10], dtype=pl.List(width)))
        files.append(str(tmp_path / f"{k}.parquet"))
        frame.write_parquet(files[-1])
    shown = reader.frame(queries.microscope(Span(0, 30 * MS), ENTITY, files))["utilization_ratio"].to_numpy() * CAPACITY
    assert shown == pytest.approx(np.repeat([7, 1_000_000, 9], 10))


def test_distributions_are_those_of_the_samples(seed, reader, span):
    """Burst lengths and the gaps between bursts have the quantiles of the samples' own."""
    starts, ends = runs_of(seed.samples[ENTITY.device, ENTITY.port] > CAPACITY / 2)
    frame = reader.frame(queries.distributions(span, ENTITY.where_burst()))
    for what, values in (("length", ends - starts + 1), ("gap to the next", starts[1:] - ends[:-1] - 1)):
        rows = frame.filter(pl.col("series") == what)
        assert rows["n"].unique().to_list() == [len(values)]
        assert rows["x"].to_numpy() == pytest.approx(np.quantile(values, rows["share"].to_numpy(), method="inverted_cdf"))


def test_metrics_of_a_range_merge_windows(seed, reader, span):
    """The metrics of six seconds are those of six thousand samples, not means of six windows' metrics."""
    samples = seed.samples[ENTITY.device, ENTITY.port].astype(float)
    row = reader.frame(queries.burst_metrics(span, ENTITY)).row(0, named=True)
    assert row["burstiness_cv"] == pytest.approx(samples.std() / samples.mean())
    assert row["peak_to_mean"] == pytest.approx(samples.max() / samples.mean())
    ladder = reader.frame(queries.dispersion(span, ENTITY))
    for scale, value in ladder.select("x", "y").iter_rows():
        m = round(scale)
        blocks = samples[: len(samples) // m * m].reshape(-1, m).sum(axis=1)
        assert value == pytest.approx(blocks.var() / blocks.mean() / 1500)


def test_the_heat_map_adds_up(seed, reader, span):
    """The cells of a port, each weighted by its width, make up its time in bursts."""
    frame = reader.frame(queries_overview.heat(span))
    step_ms = span.step_ns(queries_overview.HEAT_COLUMNS_MAX) / MS
    for name, ratio in frame.group_by("name").agg(pl.col("ratio").sum() * step_ms).iter_rows():
        device, port, direction = name.split(" ")
        if direction == "rx":
            assert ratio == pytest.approx((seed.samples[device, port] > CAPACITY / 2).sum())


def test_latency_of_all_paths_is_of_the_added_histograms(seed, reader):
    """Quantiles over time, the distribution and the summary cover the same samples, each once."""
    row = reader.frame(packets_bounds()).row(0)
    whole, everything = chosen(row[0], row[1], "all", None), queries_latency.Path()
    summary = reader.frame(queries_latency.latency_summary(whole, everything)).row(0, named=True)
    over_time = reader.frame(queries_latency.latency_over_time(whole, everything))
    curve = reader.frame(queries_latency.latency_distribution(whole, everything))
    assert summary["samples"] == 399
    assert over_time["samples"].sum() == 399
    assert curve["share"].to_list()[-1] == 1
    assert 15 <= summary["p50_us"] <= summary["p99_us"] <= 60.6
    middle = curve.filter(pl.col("share") >= 0.5)["x"][0]
    assert summary["p50_us"] == pytest.approx(middle, rel=0.02)
    assert summary["p9999_us"] == curve["x"][-1] == pytest.approx(summary["max_us"], rel=0.01)


@pytest.mark.parametrize("counts", [[1], [60, 7, 1], [99, 1], [1, 99], [9_999, 1], [5, 5, 5, 5]])
def test_quantiles_are_nearest_rank(counts, reader):
    """A page's quantile q is the smallest value that at least the share q of the samples does not exceed, so no tail is understated."""
    ordered = np.repeat(2 ** np.arange(len(counts)), counts)
    # Below 128 a power of two is what its bucket stands for, and powers are 64 buckets apart.
    rows = [(1 + 64 * k, int(c), int(upto), len(ordered)) for k, (c, upto) in enumerate(zip(counts, np.cumsum(counts), strict=True))]
    values = ", ".join(str(row) for row in rows)
    for q in queries_latency.QUANTILES.values():
        sql = f"WITH cumulative AS (FROM (VALUES {values}) AS t(i, c, upto, n)) SELECT {queries_latency.at(q)} AS x FROM cumulative"
        assert reader.frame(sql)["x"][0] == np.quantile(ordered, q, method="inverted_cdf")


def test_a_filter_that_matches_nothing_gives_no_rows(reader, span, tmp_path: Path):
    """Queries for a port, path or moment that does not exist give an empty table, not an error."""
    nobody = queries.Entity("x", "y", "rx", MS)
    nowhere = queries_latency.Path("x", "y", "z")
    for sql in (
        queries.utilization(span, nobody),
        queries.bursts(span, nobody),
        queries.dispersion(span, nobody),
        queries.distributions(span, nobody.where_burst()),
        queries_latency.latency_over_time(span, nowhere),
        queries_latency.operations_over_time(span, nowhere),
        queries_latency.flows(span, nowhere),
    ):
        assert reader.frame(sql).height == 0


def test_a_port_is_shown_at_the_interval_that_covers_most(tmp_path):
    """A collector that slows down for a second does not change the interval shown: it is the port's main one."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("CREATE MACRO weft_ratio(a, b) AS CASE WHEN b > 0 THEN a / b END")
    connection.execute(
        """CREATE TABLE ports_1s AS SELECT TIMESTAMP_NS '1970-01-01' + to_seconds(k) AS ts, 'd' AS device, 'p' AS port, 'rx' AS direction,
        CASE WHEN k = 5 THEN 2000000 ELSE 1000000 END AS sample_interval_ns, CASE WHEN k = 5 THEN 500 ELSE 1000 END AS samples,
        CASE WHEN k = 5 THEN 0.9 ELSE 0.1 END AS burst_time_ratio, 1 AS burst_count, 1 AS burst_bytes_ratio, 1 AS bytes,
        0.5 AS utilization_max_ratio, 0.1 AS utilization_mean_ratio, NULL::DOUBLE AS ce_ratio, 1000 AS speed_bps FROM range(10) t(k)"""
    )
    rows = connection.execute(worst_ports(Span(0, 10 * 1000 * MS))).pl()
    assert rows.select("sample_interval_ns", "burst_time_ratio").rows() == [(MS, pytest.approx(0.1))]


def test_congestion_is_that_of_the_counters(seed, reader):
    """Marks, drops and pauses that the Congestion page shows are the last sample minus the first of each queue."""
    raw = pl.read_parquet(seed.data.parent / "queues.parquet").group_by("port").agg(pl.all().sort_by("ts"))
    moved = {
        row["port"]: {name: values[-1] - values[0] for name, values in row.items() if name.endswith(("packets", "_us"))}
        for row in raw.to_dicts()
    }
    row = reader.frame(queries_congestion.bounds()).row(0)
    span = chosen(row[0], row[1], "all", None)
    total = reader.frame(queries_congestion.summary(span, queries_congestion.PortChoice())).row(0, named=True)
    assert total["drops"] == sum(queue["dropped_packets"] for queue in moved.values())
    marked, packets = (sum(queue[name] for queue in moved.values()) for name in ("ecn_marked_packets", "packets"))
    assert total["ecn_mark_ratio"] == pytest.approx(marked / packets)
    queues = {row["port"]: row for row in reader.frame(queries_congestion.worst_queues(span, queries_congestion.PortChoice())).to_dicts()}
    assert next(iter(queues)) == "Ethernet8", "the one that is paused most comes first"
    assert {port: row["drops"] for port, row in queues.items()} == {port: queue["dropped_packets"] for port, queue in moved.items()}
    heat = reader.frame(queries_congestion.heat(span, "paused", queries_congestion.PortChoice()))
    # Each interval counts in the second in which it ends: the first second has three of them, the others four.
    spent_us = (heat.filter(pl.col("port") == "Ethernet8")["ratio"] * pl.Series([0.75, *[1.0] * (heat.height // 2 - 1)]) * 1e6).sum()
    assert spent_us == pytest.approx(moved["Ethernet8"]["pfc_rx_pause_us"])
