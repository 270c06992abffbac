"""Counter samples to samples and rows, for any cut: the kernels against a plain Python oracle."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.collectors.base import Batch
from weft.collectors.sampling import kernel
from weft.collectors.sampling.readings import Ledger, Pace
from weft.collectors.sampling.sai import Series, numbers, series, split

T0 = 1_700_000_000_000_000_000
STEP = 1_000_000
SPAN = 20 * STEP

OCTETS = series(1, 0, "Ethernet0")
DEPTH = series(21, 0x18, "Ethernet0|3")
NARROW = series(1, 1, "Ethernet0", 16)


def fed(ledger: Ledger, times: np.ndarray, values: np.ndarray) -> list[Batch]:
    """Feed counter samples (n, series) of one track."""
    zero = np.zeros(1, np.int64)
    return ledger.feed(zero, np.array([0, len(times)]), times, zero, zero + values.shape[1], values.astype(np.uint64).reshape(-1), None)


def run(columns: list[Series], times: np.ndarray, values: np.ndarray, cuts: list[int], interval_ns: int = STEP) -> list[Batch]:
    """Feed counter samples in several calls, to the end."""
    ledger = Ledger("test", "leaf", Pace(interval_ns, SPAN))
    ledger.add(columns)
    edges = sorted({0, len(times), *(cut % (len(times) + 1) for cut in cuts)})
    batches = [batch for low, high in pairwise(edges) for batch in fed(ledger, times[low:high], values[low:high])]
    return batches + ledger.flush(None)


def samples(batches: list[Batch], signal: str) -> dict[int, int]:
    """Return the samples of a signal by slot."""
    return {
        row["ts"] // row["interval_ns"] + k: value
        for batch in batches
        if batch.family == "burst_sample"
        for row in batch.frame.filter(signal=signal).iter_rows(named=True)
        for k, value in enumerate(row["values"])
    }


def rows(batches: list[Batch], family: str, *columns: str) -> list[tuple]:
    """Return columns of all rows of a family, in order."""
    return [row for batch in batches if batch.family == family for row in batch.frame.select("ts", *columns).rows()]


STREAM = st.tuples(
    st.integers(2, 80), st.sets(st.integers(1, 78), max_size=15), st.sets(st.integers(1, 79), max_size=3), st.integers(0, 2**32)
)


@given(STREAM, st.lists(st.integers(0, 100), max_size=6))
@settings(max_examples=120, deadline=None)
def test_any_cut_gives_what_a_plain_reading_gives(stream, cuts):
    """Samples, levels and rows of counters are those of a plain loop, for any division into calls."""
    n, lost, resets, seed = stream
    rng = np.random.default_rng(seed)
    octets, depth = np.cumsum(rng.integers(1, 10**9, n)), rng.integers(0, 10**6, n)
    for at in sorted(resets):
        octets[at:] -= octets[at] if at < n else 0
    keep = [k for k in range(n) if k not in lost]
    times = (T0 + np.arange(n) * STEP + rng.integers(0, STEP // 3, n))[keep]
    values = np.stack((octets, depth), axis=1)[keep]
    batches = run([OCTETS, DEPTH], times, values, cuts)
    slots = times // STEP
    wanted = {
        int(slots[k]): int(values[k + 1, 0] - values[k, 0])
        for k in range(len(times) - 1)
        if slots[k + 1] == slots[k] + 1 and values[k + 1, 0] >= values[k, 0]
    }
    assert samples(batches, "rx_bytes") == wanted
    assert samples(batches, "queue_bytes") == dict(zip(slots.tolist(), depth[keep].tolist(), strict=True))
    spans = times // SPAN
    ends = [k for k in range(len(times)) if k + 1 == len(times) or spans[k + 1] != spans[k]]
    assert rows(batches, "port", "rx_bytes") == [(int(times[k]), int(values[k, 0])) for k in ends]
    highest = [(int(times[k]), int(values[spans == spans[k], 1].max())) for k in ends]
    assert rows(batches, "queue", "occupancy_bytes") == highest


@given(st.lists(st.integers(0, 30_000), min_size=2, max_size=60), st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=60, deadline=None)
def test_narrow_counters_add_their_wraps_up(steps, cuts):
    """A 16-bit counter that wraps continues in 64 bits, for any cut; a step below half its range is a wrap and no reset."""
    grown = np.cumsum(steps)
    times = T0 + np.arange(len(steps)) * STEP
    batches = run([NARROW], times, (grown % 65536)[:, None], cuts)
    last = rows(batches, "port", "rx_unicast_packets", "epoch")[-1]
    assert last == (int(times[-1]), int(grown[-1] - grown[0] + grown[0] % 65536), 0)


@pytest.mark.parametrize(
    ("interval", "jitter", "found"),
    [(100_000, 0, 100_000), (100_000, 9_000, 100_000), (12_500, 100, 12_500), (10_000_000, 200_000, 10_000_000), (333_333, 10, 333_333)],
)
def test_the_interval_is_found(interval, jitter, found):
    """The median difference is the interval, rounded where a round one is near; odd ones stay (within their jitter)."""
    times = T0 + np.arange(200) * interval + np.random.default_rng(1).integers(-jitter // 2, jitter // 2 + 1, 200)
    assert abs(int(kernel.detect(times, 0, 200)) - found) <= (20 if found == 333_333 else 0)


@pytest.mark.parametrize("cut", range(8))
def test_the_interval_is_found_after_a_few_readings_alone(cut):
    """A first call with too few counter samples to detect the interval loses the samples between them, and no others."""
    times, values = T0 + np.arange(60) * STEP, np.arange(60)[:, None] * 7
    lost = cut - 1 if 1 <= cut <= 4 else 0
    assert list(samples(run([OCTETS], times, values, [cut], interval_ns=0), "rx_bytes").values()) == [7] * (59 - lost)


def test_an_interval_that_changes_is_found_again():
    """When a poll changes its interval, the samples between are counted as missing and samples continue at the new interval."""
    times = np.concatenate((T0 + np.arange(50) * STEP, T0 + 50 * STEP + np.arange(200) * 10 * STEP))
    values = np.arange(len(times))[:, None] * 100
    batches = run([OCTETS], times, values, [50, 51, 52])
    frame = [batch.frame for batch in batches if batch.family == "burst_sample"][-1]
    assert set(frame["interval_ns"]) == {10 * STEP}
    assert frame["values"].explode().unique().to_list() == [100]
    reasons = {row[1] for row in rows(batches, "gap", "reason")}
    assert reasons == {"missing_reading", "interval_changed"}


def test_a_clock_set_back_begins_anew():
    """When the device's clock is set back by a second or more, one sample counts as missing and the rest continues there."""
    times = np.concatenate((T0 + np.arange(10) * STEP, T0 - 10**10 + np.arange(10) * STEP))
    batches = run([OCTETS], times, np.arange(20)[:, None] * 5, [10])
    assert len(samples(batches, "rx_bytes")) == 18
    assert rows(batches, "gap", "reason", "missed") == [(int(times[9]), "clock_step", 1)]


def test_what_is_slower_than_a_window_has_no_samples():
    """Counter samples more than a second apart give rows of counters and no samples, and nothing is missing."""
    batches = run([OCTETS], T0 + np.arange(10) * 2 * 10**9, np.arange(10)[:, None] * 5, [3, 6], interval_ns=0)
    assert {batch.family for batch in batches} == {"port"}
    assert len(rows(batches, "port")) == 10


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sai_counter_type_1_stat_0", (1, 0)),
        ("sai_counter_type_536870913_stat_2", (536870913, 2)),
        ("SAI_PORT_STAT_PFC_3_RX_PKTS", (1, 0x6D)),
        ("SAI_QUEUE_STAT_WRED_ECN_MARKED_PACKETS", (21, 0x22)),
        ("SAI_INGRESS_PRIORITY_GROUP_STAT_WATERMARK_BYTES", (26, 3)),
        ("SAI_BUFFER_POOL_STAT_CURR_OCCUPANCY_BYTES", (24, 0)),
        ("UNKNOWN_SAI_STAT_TYPE_5_ID_7", (5, 7)),
        ("node_cpu_seconds_total", None),
        ("sai_counter_type_1_stat_", None),
    ],
)
def test_names_of_metrics_are_named_back(name, wanted):
    """A SAI statistic is found by number and by SAI's own name; other names are refused."""
    assert numbers(name) == wanted


@pytest.mark.parametrize(
    ("kind", "name", "wanted"),
    [
        (1, "Ethernet0", ("Ethernet0", "")),
        (21, "Ethernet0|3", ("Ethernet0", "3")),
        (21, "Ethernet0:3", ("Ethernet0", "3")),
        (26, "Ethernet12|7", ("Ethernet12", "7")),
        (24, "ingress_lossless_pool", ("", "ingress_lossless_pool")),
        (21, "label9", ("label9", "")),
    ],
)
def test_names_of_objects_are_taken_apart(kind, name, wanted):
    """Queues and priority groups are named by port and number, pools by their name."""
    assert split(kind, name) == wanted
