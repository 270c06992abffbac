"""The fabric's picture: its numbers against NumPy over the counter samples, its layout, and its size."""

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from weft.analytics.store.reader import Reader
from weft.dashboards.pages.fabric import charts as charts_fabric
from weft.dashboards.pages.fabric import queries as queries_fabric
from weft.dashboards.pages.fabric.queries import MEASURES
from weft.dashboards.pages.latency import queries as queries_latency
from weft.dashboards.sql import Span, chosen

SCALE = charts_fabric.Scale("share paused", ".1%", 0.02)


@pytest.fixture(scope="module")
def reader(slow_fabric):
    """Return a reader of the store of the fabric with a slow adapter."""
    opened = Reader(slow_fabric.data / "store")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def span(reader) -> Span:
    """Return the span of all counter samples."""
    row = reader.frame(queries_fabric.bounds()).row(0)
    return chosen(row[0], row[1], "all", None)


def moved(rows: pl.DataFrame, column: str) -> int:
    """Return the delta of one object's counter between its first and its last sample."""
    values = rows.sort("ts")[column]
    return int(values[-1]) - int(values[0])


def picture(reader, span, measure, rack="", by_rack=False) -> pl.DataFrame:
    return reader.frame(queries_fabric.picture(span, measure, rack, by_rack)).filter(pl.col("peer").is_null())


def test_every_place_is_there_once(reader, span, slow_fabric):
    """Each host has a place on each rail and each switch one; a place without measurements has no value under any measure."""
    nics = slow_fabric.readings["nic"].select("device", "port").unique()
    switches = slow_fabric.readings["queue"]["device"].n_unique()
    for measure in MEASURES:
        places = picture(reader, span, measure)
        assert places.filter(tier="host").height == nics.height, measure
        assert places.filter(pl.col("tier") != "host").height == switches, measure
        assert places.select("tier", "name", "rail").is_unique().all()
    assert (
        picture(reader, span, "notified").filter(tier="spine")["value"].null_count()
        == picture(reader, span, "notified").filter(tier="spine").height
    )


def test_notifications_are_those_that_were_read(reader, span, slow_fabric):
    """A place's notifications per gigabyte follow from the deltas of its adapter, and a switch has those of its worst link."""
    places = picture(reader, span, "notified")
    expected = {}
    for (device, port), rows in slow_fabric.readings["nic"].group_by("device", "port"):
        received = moved(rows, "rx_bytes")
        expected[device, port.removeprefix("mlx5_")] = moved(rows, "cnp_sent") * 1e9 / received if received else None
    found = {(name, rail): value for name, rail, value in places.filter(tier="host").select("name", "rail", "value").iter_rows()}
    assert found == pytest.approx(expected)
    host, port = slow_fabric.adapter
    assert max(found, key=lambda place: found[place] or 0) == (host, port.removeprefix("mlx5_"))
    leaf = places.filter(name=slow_fabric.leaf[0])["value"][0]
    assert leaf == pytest.approx(max(filter(None, expected.values())))


def test_marks_of_a_link_are_those_of_its_queue(reader, span, slow_fabric):
    """A link's share of marked packets is its queue's over the whole span, and one row has both ends of the link."""
    worst = reader.frame(queries_fabric.worst(span, "marked", ""))
    top = worst.row(0, named=True)
    assert (top["device"], top["port"]) == slow_fabric.leaf
    assert (top["peer_device"], top["peer_port"]) == slow_fabric.adapter
    queues = slow_fabric.readings["queue"].filter(device=slow_fabric.leaf[0], port=slow_fabric.leaf[1], direction="tx")
    assert top["value"] == pytest.approx(moved(queues, "ecn_marked_packets") / moved(queues, "packets"))
    ends = [frozenset({(a, b), (c, d)}) for a, b, c, d in worst.select("device", "port", "peer_device", "peer_port").iter_rows()]
    assert len(set(ends)) == len(ends)
    assert worst["value"].to_list() == sorted(worst["value"].to_list(), reverse=True) and worst["value"].min() > 0


def test_pauses_are_those_of_the_worst_second(reader, span, slow_fabric):
    """The pressure of pauses is the largest share of a window, of either direction."""
    value = picture(reader, span, "paused").filter(name=slow_fabric.leaf[0])["value"][0]
    seconds = Span(span.from_ns, span.from_ns + 10**9 * 20)
    assert seconds.resolution(20) == "1s"
    shares = []
    queues = slow_fabric.readings["queue"].filter(device=slow_fabric.leaf[0], direction="tx").sort("ts")
    for (_port,), rows in queues.group_by("port"):
        ts, us = rows["ts"].to_numpy(), rows["pfc_rx_pause_us"].to_numpy().astype(np.int64)
        window = ts // 10**9
        edges = [0, *(np.flatnonzero(np.diff(window)) + 1), len(ts)]
        before = 0
        for _first, end in pairwise(edges):
            last = end - 1
            if last > before:
                shares.append((us[last] - us[before]) * 1000 / (ts[last] - ts[before]))
            before = last
    assert value == pytest.approx(max(shares))


def test_links_to_the_pages_carry_the_place(reader, span, slow_fabric):
    """Every row of the list has links to the pages of its end, and to the latency of its host."""
    top = reader.frame(queries_fabric.worst(span, "marked", "")).row(0, named=True)
    device, port = slow_fabric.leaf
    assert top["congestion"] == f"/congestion?device={device}&port={port}"
    assert top["bursts"] == f"/bursts?device={device}&port={port}"
    assert top["latency"] == f"/latency?device={slow_fabric.adapter[0]}"


def test_a_rack_is_as_bad_as_its_worst_host(reader, span):
    """If racks are drawn instead of hosts, each rail has the largest value; a selected rack shows its hosts and all switches."""
    hosts = picture(reader, span, "used").filter(tier="host")
    racks = picture(reader, span, "used", by_rack=True).filter(tier="host")
    expected = hosts.group_by("stand", "rail").agg(pl.col("value").max()).sort("stand", "rail")
    assert racks.sort("name", "rail").select(stand="name", rail="rail", value="value").equals(expected)
    one = picture(reader, span, "used", rack="1")
    assert set(one.filter(tier="host")["name"]) == set(hosts.filter(stand="1")["name"])
    assert one.filter(pl.col("tier") != "host").height == picture(reader, span, "used").filter(pl.col("tier") != "host").height


@pytest.mark.parametrize("measure", MEASURES)
def test_the_worst_are_followed_over_time(reader, span, measure):
    """At most the requested number of places has values per window: those of the list."""
    lines = reader.frame(queries_fabric.over_time(span, measure, "", 3))
    worst = reader.frame(queries_fabric.worst(span, measure, "")).head(3)
    names = {f"{device} {port}" if MEASURES[measure].of_link else device for device, port in worst.select("device", "port").iter_rows()}
    assert set(lines["series"]) == names
    assert lines.select("series", "ms").is_unique().all()


def test_latency_of_one_device(reader, span, slow_fabric):
    """With a device selected only its own samples are shown."""
    rows = slow_fabric.readings["latency"]
    device = rows["device"][0]
    found = reader.frame(queries_latency.latency_summary(span, queries_latency.Path(device=device)))["samples"][0]
    assert found == rows.filter(device=device)["values_ns"].list.len().sum() < rows["values_ns"].list.len().sum()


def large(hosts: int, rails: int = 8) -> pl.DataFrame:
    """Return the places of a fabric of many hosts, as the query gives them."""
    end = {"device": "d", "port": "p", "to_device": "e", "to_port": "q"}
    common = {"peer": None, "members": 1, "worst": end}
    rows = [
        {
            "tier": "host",
            "name": f"host-{n}",
            "stand": str(n // 8),
            "is_rack": True,
            "rail": str(rail),
            "value": n / hosts,
            "job": "llm",
            **common,
        }
        for n in range(hosts)
        for rail in range(rails)
    ]
    rows += [{"tier": "leaf", "name": f"leaf-{n}", "value": 0.5, **common} for n in range(128)]
    return pl.DataFrame(rows, infer_schema_length=None)


def marks(chart) -> dict:
    return json.loads(chart.to_json(validate=False))


@pytest.mark.parametrize("dark", [False, True])
def test_the_largest_picture_is_small_enough(dark):
    """A picture of as many hosts as are drawn one by one has some thousands of marks and less than a megabyte."""
    text = charts_fabric.fabric(large(queries_fabric.HOSTS_MAX), SCALE, dark=dark).to_json(validate=False)
    assert len(text) < 1_000_000
    assert sum(len(rows) for rows in json.loads(text)["datasets"].values()) < 3_000


def test_places_do_not_overlap():
    """No two places overlap, and all are inside the picture."""
    places = next(
        rows for rows in marks(charts_fabric.fabric(large(40), SCALE, dark=False))["datasets"].values() if rows and "device" in rows[0]
    )
    boxes = np.array([[row[edge] for edge in ("x", "x2", "y", "y2")] for row in places])
    assert (boxes[:, 0] < boxes[:, 1]).all() and (boxes[:, 2] < boxes[:, 3]).all() and (boxes >= 0).all()
    x, x2, y, y2 = boxes.T
    meet = (x[:, None] < x2) & (x < x2[:, None]) & (y[:, None] < y2) & (y < y2[:, None])
    assert meet.sum() == len(boxes)


def test_names_are_ordered_as_people_do():
    """Numbers in names count by their size."""
    assert sorted(["rack-10", "rack-9", "rack-1a", None], key=charts_fabric.natural) == [None, "rack-1a", "rack-9", "rack-10"]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_picture_of_next_to_nothing(rows):
    """Hosts without switches, switches without hosts, and values that are all unknown are drawn without an error."""
    frame = large(8).with_columns(value=pl.lit(None, pl.Float64))
    for tier in ("host", "leaf"):
        part = frame.filter(tier=tier).head(rows or 8)
        assert marks(charts_fabric.fabric(part, SCALE, dark=False))["layer"]
