"""Segments in memory to batches in time: every sample once, for any intervals."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.collectors.base import Batch
from weft.collectors.sampling.runs import Segment, closing, slices
from weft.pipeline.errors import InputError

SECOND = 1_000_000_000
MS = 1_000_000

series = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from([MS, 50 * MS, 3 * MS, SECOND]),
        st.integers(0, 10**12),
        st.lists(st.integers(0, 2**64 - 1), max_size=300),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(series=series, run_samples=st.integers(1, 5000))
def test_slices_hold_every_sample_once(series, run_samples):
    """Any mixture of intervals, lengths and times, days apart too, comes out complete, in consecutive slices."""
    made = [
        Segment(device, f"p{index}", "rx_bytes", start * MS, interval, np.array(values, np.uint64))
        for index, (device, interval, start, values) in enumerate(series)
    ]
    expected = {
        (one.device, one.port, one.ts + index * one.interval_ns): int(value) for one in made for index, value in enumerate(one.values)
    }
    found, last, newest = {}, {}, -1
    span = max(1, -(-run_samples * min((one.interval_ns for one in made if len(one.values)), default=1) // SECOND)) * SECOND
    for batch in slices(made, "test", run_samples):
        assert batch.frame["device"].n_unique() == 1
        assert batch.frame["ts"].is_sorted()
        device, first = batch.frame["device"][0], batch.frame["ts"].min()
        # Of one device in order; of another never further back than the slice that both are in.
        assert first > last.get(device, -1) and first >= newest // span * span
        for row in batch.frame.iter_rows(named=True):
            assert len(row["values"]) <= run_samples
            found |= {
                (row["device"], row["port"], row["ts"] + index * row["interval_ns"]): value for index, value in enumerate(row["values"])
            }
        last[device], newest = first, max(newest, first)
    assert found == expected


def test_slow_series_beside_a_fast_one_cost_no_empty_slices():
    """A sample an hour apart does not make a slice of every second between."""
    made = [
        Segment("a", "fast", "rx_bytes", 0, MS, np.arange(10, dtype=np.uint64)),
        Segment("a", "slow", "rx_bytes", 0, 3600 * SECOND, np.arange(1_000, dtype=np.uint64)),
    ]
    batches = list(slices(made, "test", 10))
    assert sum(batch.frame["values"].list.len().sum() for batch in batches) == 1_010
    assert len(batches) == 1_000


def test_devices_are_ended_before_the_error():
    """The last batch names all devices, then the error comes."""

    def source():
        yield Batch("gap", pl.DataFrame({"device": ["b"]}))
        yield Batch("gap", pl.DataFrame({"device": ["a"]}))
        raise InputError("x", "is torn", "correct it")

    batches = []
    with pytest.raises(InputError, match="is torn"):
        for batch in closing(source()):
            batches.append(batch)
    assert [batch.ended for batch in batches] == [(), ("a", "b")]
