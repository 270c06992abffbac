"""Latency batches and plain values in windows: closed forms in NumPy, and independence of any split."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.pipeline import histogram
from weft.pipeline.process.base import Closing
from weft.pipeline.process.latency import LATENCY_NS_MAX, LatencyMetric
from weft.pipeline.process.readings import ReadingMetric
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import WINDOW_NS


def frame(family: str, rows: Sequence[dict[str, object]]) -> pl.DataFrame:
    """Return rows of a family, missing columns null."""
    return pl.DataFrame(rows, schema=FAMILIES[family].polars)


def test_latency_of_batches_is_that_of_their_samples() -> None:
    """Count, sum, extremes and quantiles per path and window are those of the samples, quantiles within 1 %."""
    random = np.random.default_rng(3)
    values = [random.lognormal(9, 1, size).astype(np.uint64) for size in (300, 1, 0, 500)]
    rows = [
        {"ts": k * WINDOW_NS // 2, "src": "a", "dst": "b", "kind": "transit", "values_ns": batch.tolist()} for k, batch in enumerate(values)
    ]
    made = LatencyMetric().close(Closing("leaf", 0, 2 * WINDOW_NS, [frame("latency", rows)]))["latency"]
    for window, batches in ((0, values[:2]), (1, values[2:])):
        samples = np.concatenate(batches)
        row = made.filter(pl.col("ts") == window * WINDOW_NS)
        assert row.select("device", "src", "dst", "kind", "samples", "total", "low", "high").row(0) == (
            *("leaf", "a", "b", "transit", len(samples)),
            *(int(samples.sum()), int(samples.min()), int(samples.max())),
        )
        for q in (0.5, 0.99):
            exact = np.sort(samples)[int(np.ceil(q * len(samples))) - 1]
            assert histogram.quantiles(row["hist"], (q,))[0, 0] == pytest.approx(float(exact), rel=0.01)


def test_latency_that_cannot_be_is_counted() -> None:
    """A sample of more than a hundred days is left out and counted; the others stay."""
    rows = [{"ts": 5, "src": "a", "dst": "b", "kind": "hop", "values_ns": [10, LATENCY_NS_MAX + 1, 30]}]
    made = LatencyMetric().close(Closing("leaf", 0, WINDOW_NS, [frame("latency", rows)]))
    assert made["latency"].select("samples", "total").row(0) == (2, 40)
    assert made["quality"].select("ts", "device", "signal", "implausible", "late").row(0) == (0, "leaf", "latency", 1, 0)


def test_readings_keep_their_extremes() -> None:
    """A window has the smallest and largest of its values, texts stay texts, and NaN is no value."""
    common = {"source": "gnmi", "kind": "transceiver", "object": "Ethernet0"}
    rows = [
        {**common, "ts": 1, "name": "temperature", "value": 41.5},
        {**common, "ts": 2, "name": "temperature", "value": float("nan")},
        {**common, "ts": 3, "name": "temperature", "value": 39.0},
        {**common, "ts": 4, "name": "vendor", "text": "ACME"},
        {**common, "ts": WINDOW_NS, "name": "temperature", "value": 50.0},
    ]
    made = ReadingMetric().close(Closing("leaf", 0, WINDOW_NS, [frame("reading", rows)]))["readings"]
    assert made.select("name", "samples", "low", "high", "text").rows() == [
        ("temperature", 3, 39.0, 41.5, None),
        ("vendor", 1, None, None, "ACME"),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * WINDOW_NS - 1), st.integers(0, 2**40), st.sampled_from("ab")), max_size=30), st.data())
def test_no_cut_matters(samples: list[tuple[int, int, str]], data: st.DataObject) -> None:
    """The same rows in any order, any frames and any closings give the same rows."""
    latency = [{"ts": ts, "src": who, "dst": "z", "kind": "hop", "values_ns": [value]} for ts, value, who in samples]
    reading = [{"ts": ts, "source": "s", "kind": "port", "object": who, "name": "n", "value": float(value)} for ts, value, who in samples]
    for family, metric, rows, table in (("latency", LatencyMetric, latency, "latency"), ("reading", ReadingMetric, reading, "readings")):
        whole = metric().close(Closing("leaf", 0, 3 * WINDOW_NS, [frame(family, rows)]))[table]
        mixed = data.draw(st.permutations(rows))
        at = data.draw(st.integers(0, len(rows)))
        frames = [frame(family, mixed[:at]), frame(family, mixed[at:])]
        edges = [0, *sorted(data.draw(st.sets(st.sampled_from((1, 2))))), 3]
        parts = [metric().close(Closing("leaf", low * WINDOW_NS, high * WINDOW_NS, frames))[table] for low, high in pairwise(edges)]
        assert pl.concat(parts).equals(whole)
