"""Every page on a full, an empty and a nearly empty store, and the state in the URL."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from weft.dashboards.pages import PAGES
from weft.dashboards.pages.fabric import queries as queries_fabric

STORED = [name for name, module in PAGES.items() if module.STORED]


def words(page: AppTest) -> str:
    """Return all text of a page outside tables and charts."""
    elements = [*page.markdown, *page.info, *page.warning, *page.error, *page.success, *page.caption]
    return "\n".join([str(element.value) for element in elements] + [f"{metric.label}: {metric.value}" for metric in page.metric])


@pytest.mark.parametrize("name", STORED)
def test_a_page_shows_an_empty_store(name, empty, open_page):
    """With an empty store a page shows a hint and raises nothing."""
    page = open_page(empty, name)
    assert not page.exception and not page.warning and not page.error
    assert page.info
    assert name == "sql" or "weft " in words(page)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_before_anything_is_published(name, tmp_path, open_page):
    """Before the first snapshot a page shows how to begin; the docs are available already."""
    page = open_page(tmp_path, name)
    assert not page.exception and not page.error
    assert not PAGES[name].STORED or "weft up" in words(page)


@pytest.mark.parametrize("name", STORED)
def test_a_page_shows_a_single_window(name, one_row, open_page):
    """A single row, without variance and distribution, is shown without an exception."""
    page = open_page(one_row, name)
    assert not page.exception and not page.warning and not page.error


def metric(page: AppTest, label: str) -> str:
    return str(next(element.value for element in page.metric if element.label.startswith(label)))


def test_overview_counts_what_is_there(seed, open_page):
    """The tiles show the ports, the bursts and the worst port that plain counting of the samples gives."""
    threshold = 12_500_000_000 // 8 // 1000 // 2
    hot = {port: samples > threshold for port, samples in seed.samples.items()}
    bursts = sum(int(np.count_nonzero(h[1:] & ~h[:-1]) + h[0]) for h in hot.values())
    page = open_page(seed.data, "overview", range="all")
    assert metric(page, "Ports sampled") == str(len(seed.samples))
    assert metric(page, "Bursts, last minute") == f"{bursts:,}"
    assert metric(page, "Worst port") == f"{max(h.mean() for h in hot.values()):.1%}"
    assert metric(page, "Alerts firing") == "1"


def test_bursts_of_the_port_in_the_url(seed, open_page):
    """A link to a port shows that port, with the numbers that its samples give."""
    samples = seed.samples["rack-1", "host-102"]
    page = open_page(seed.data, "bursts", device="rack-1", port="host-102", direction="rx")
    assert "rack\\-1 · host\\-102 · rx" in words(page)
    capacity = 12_500_000_000 / 8 / 1000
    assert metric(page, "Time in bursts") == f"{(samples > capacity / 2).mean():.1%}"
    assert metric(page, "Mean") == f"{samples.mean() / capacity:.1%}"
    assert metric(page, "Peak, 1 ms") == f"{samples.max() / capacity:.1%}"
    assert metric(page, "Peak to mean") == f"{samples.max() / samples.mean():.3g}"


def test_latency_counts_the_packets(seed, open_page):
    """The packets, notifications and the one lost request of the capture are shown."""
    page = open_page(seed.data, "latency", range="all")
    assert metric(page, "Packets seen") == "806"
    assert metric(page, "CNPs") == "8"
    assert metric(page, "PSN gaps") == "1 / 1"
    assert metric(page, "Samples") == "399"


def test_fabric_counts_what_is_there(slow_fabric, open_page):
    """The tiles show the hosts, switches, links and jobs of the inventory, and the utilisation of the GPUs."""
    page = open_page(slow_fabric.data, "fabric", range="all")
    assert not page.exception and not page.warning and not page.info
    gpus = slow_fabric.readings["gpu"]
    assert metric(page, "Hosts") == str(slow_fabric.readings["nic"]["device"].n_unique())
    assert metric(page, "Switches") == str(slow_fabric.readings["queue"]["device"].n_unique())
    assert metric(page, "Links") == str(slow_fabric.readings["port"].select("device", "port").n_unique() // 2)
    assert metric(page, "Jobs") == "2"
    assert float(metric(page, "GPUs busy").rstrip("%")) / 100 == pytest.approx(gpus["sm_active_ratio"].mean(), abs=0.02)


@pytest.mark.parametrize("pressure", queries_fabric.MEASURES)
def test_fabric_by_every_measure(pressure, slow_fabric, open_page):
    """The picture is shown without a failed query under every measure, and the URL keeps the choice."""
    page = open_page(slow_fabric.data, "fabric", range="all", pressure=pressure, rack="1")
    assert not page.exception and not page.warning and not page.info
    # The default is not in the URL.
    assert (page.query_params.get("pressure", "paused"), page.query_params.get("rack")) == (pressure, "1")


def test_a_fabric_that_nobody_knows_is_said_so(seed, open_page):
    """With data but without known links, the page shows how to get a picture."""
    page = open_page(seed.data, "fabric")
    assert "collect.inventory" in words(page)


def test_pipeline_tells_the_admitted_loss(seed, open_page):
    """Recorded gaps are on the page; with a device selected, only that device's."""
    page = open_page(seed.data, "pipeline")
    assert any("late_tick" in str(table.value) for table in page.dataframe)
    other = open_page(seed.data, "pipeline", device="rack-2")
    assert not any("late_tick" in str(table.value) for table in other.dataframe)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("overview", {"range": "1h", "until": "2022-01-01 00:00:04", "pause": "true"}),
        ("bursts", {"device": "rack-2", "port": "host-201", "direction": "rx", "zoom": "1 s", "scope": "device"}),
        ("latency", {"src": "10.0.0.1", "dst": "10.0.0.2", "shape": "tail", "range": "6h"}),
        ("pipeline", {"device": "rack-1", "range": "5m"}),
        ("sql", {"query": "FROM devices", "about": "bursts"}),
    ],
)
def test_state_comes_from_the_url_and_stays_in_it(name, query, seed, open_page):
    """Controls take their state from the URL, and the URL still has it after the run."""
    page = open_page(seed.data, name, **query)
    assert not page.exception
    assert {key: page.query_params.get(key) for key in query} == query


def test_a_link_to_a_port_that_is_gone(seed, open_page):
    """A link with a device and a time that do not exist shows something valid instead of an exception."""
    page = open_page(seed.data, "bursts", device="nobody", port="nothing", at="99999999999999999999999", until="yesterday")
    assert not page.exception
    assert [warning.value for warning in page.warning] == ["“yesterday” is not a time; write it as 2026-01-31 12:00:05."]


def test_raw_samples_that_are_gone_are_said_so(seed, open_page):
    """A time without raw samples is reported, with the times that have some."""
    page = open_page(seed.data, "bursts", at="1500000000000000000")
    assert not page.exception
    assert "are gone" in words(page)


def test_a_query_runs_and_its_rows_are_shown(seed, open_page):
    """The console runs the query of the URL on request, and shows the number of rows and the time."""
    page = open_page(seed.data, "sql", query="SELECT count(*) AS n FROM bursts")
    assert not any(table.value.shape == (1, 1) for table in page.dataframe)
    page.button[0].click().run()
    assert not page.exception
    assert "1 rows" in words(page)


def test_a_refused_query_is_told_plainly(seed, open_page):
    """A statement that would write is refused with a message, and the page continues."""
    page = open_page(seed.data, "sql", query="DROP VIEW bursts")
    page.button[0].click().run()
    assert not page.exception
    assert "not admitted" in page.error[0].value
