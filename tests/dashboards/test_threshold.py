"""The burst threshold that the windows were computed with is what the pages show and count by."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from dash_rig import store_windows

from weft import dashboards
from weft.analytics import views
from weft.analytics.store.ddl import stored
from weft.analytics.store.files import SAMPLES
from weft.analytics.store.publish import PublishConfig, Publisher
from weft.analytics.store.reader import Reader
from weft.analytics.store.writer import Store
from weft.dashboards import charts
from weft.pipeline.clock import SystemClock
from weft.pipeline.process import MetricConfig
from weft.pipeline.process.bursts.metric import BurstConfig
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES

SPEED_BPS = 100_000_000_000
CAPACITY = SPEED_BPS // 8 // 1000
T0 = 1_700_000_000_000_000_000
MS = 1_000_000
FIXED = re.compile(r"half of (?:the|its|their) (?:port's )?line rate|\b50 ?%", re.I)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Return three seconds of samples, in bytes, of which the share above any threshold is known by counting."""
    return np.random.default_rng(3).integers(0, CAPACITY, 3000)


@pytest.fixture(scope="module")
def low(samples, tmp_path_factory) -> Path:
    """Return the data folder of a store whose windows were computed with a threshold of 30 %."""
    data = tmp_path_factory.mktemp("threshold") / "data"
    columns = {
        "ts": [T0],
        "recv_ts": [T0],
        "source": ["host"],
        "device": ["leaf-0"],
        "epoch": [0],
        "port": ["Ethernet0"],
        "queue": [""],
        "signal": ["rx_bytes"],
        "interval_ns": [MS],
        "speed_bps": [SPEED_BPS],
        "values": [samples.tolist()],
    }
    frame = pl.DataFrame(columns, schema_overrides=FAMILIES["burst_sample"].polars)
    store_windows(data, {"burst_sample": frame}, FAMILIES["inventory"].empty(), MetricConfig(bursts=BurstConfig(threshold_ratio=0.3)))
    store = Store(data / "store")
    store.start()
    stored(FAMILIES["burst_sample"], frame).write_parquet(data / "store" / SAMPLES / "1.parquet")
    store.execute(f"INSERT INTO base.ring SELECT '1.parquet', {', '.join(['make_timestamp_ns(?)'] * 3)}, 1", [T0, T0, T0])
    Publisher(store, PublishConfig(), SystemClock(), Report("test", "here", SystemClock())).start()
    store.stop()
    return data


def test_every_resolution_knows_the_threshold(low):
    """Windows and roll-ups have the threshold of the process service that made them."""
    reader = Reader(low / "store")
    for resolution in ("1s", "10s", "1m", "1h"):
        rows = reader.frame(f"SELECT DISTINCT burst_threshold_ratio FROM ports_{resolution}").rows()
        assert rows == [(0.3,)], resolution
    reader.close()


def test_the_bursts_page_counts_and_draws_by_it(low, samples, open_page):
    """The share of the time in bursts is that of the samples above 30 %, the line in the chart is at 30 %, and the texts state it."""
    page = open_page(low, "bursts", range="all")
    assert not page.exception and not page.error and not page.warning
    tile = next(metric for metric in page.metric if metric.label == "Time in bursts")
    assert tile.value == f"{np.mean(samples > 0.3 * CAPACITY):.1%}"
    assert "30 % of the line rate" in tile.help
    assert charts.burst_rule(0.3) == (0.3, "burst above 30 %")


def test_the_microscope_draws_the_threshold_of_the_store(low, samples, open_page):
    """In the microscope the line lies at 0.3 of the line rate, on the axis of the bars, and only bars above it have full colour."""
    page = open_page(low, "bursts", range="all")
    (proto,) = [chart.proto for chart in page.get("vega_lite_chart") if "burst threshold" in chart.proto.alt]
    rows = {part.name: pl.read_ipc_stream(part.data.data) for part in proto.datasets}
    spec = json.loads(proto.spec)
    (line,) = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert rows[line["data"]["name"]]["y"].to_list() == [0.3]
    # Without a scale of its own the line shares the axis of the bars, which are shares of the line rate.
    assert "scale" not in line["encoding"]["y"] and "resolve" not in spec
    (bars,) = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rect"]
    heights = rows[bars["data"]["name"]]["utilization_ratio"].to_numpy()
    assert len(heights) > 100 and np.isin(np.round(heights * CAPACITY), samples).all()
    assert bars["encoding"]["opacity"]["condition"] == {"test": "datum.utilization_ratio > 0.3", "value": 1}


def test_the_overview_says_it(low, open_page):
    """The heat map uses the burst threshold of the windows."""
    page = open_page(low, "overview", range="all")
    tile = next(metric for metric in page.metric if metric.label == "Bursts, last minute")
    assert "above 30 % of the line rate" in tile.help


def test_no_text_has_a_fixed_threshold():
    """No page, chart or view states the default threshold as a fixed number."""
    for folder in (Path(dashboards.__file__).parent, Path(views.__file__).parent):
        for path in folder.rglob("*.py"):
            assert not FIXED.search(path.read_text("utf-8")), path
