"""Counter samples to segments: samples are differences of neighbours, and every gap is counted."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.collectors.host.deltas import PortState, SegmentColumns, extend
from weft.collectors.host.netlink import COUNTERS, Link
from weft.collectors.host.ticker import Regime

MS = 1_000_000

steps = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 2**33), st.integers(0, 2**33), st.booleans(), st.booleans()),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps=steps, cuts=st.sets(st.integers(1, 40)))
def test_any_readings_in_any_portions_give_the_same_samples(steps, cuts):
    """Samples are differences of neighbours one slot apart; the rest is missing by reason; any cut of the input gives the same."""
    slots, serials, counters = [1000], [0], [(50, 60)]
    for step, rx, tx, lost, reset in steps:
        slots.append(slots[-1] + step)
        serials.append(serials[-1] + (2 if lost and step > 1 else 1))
        counters.append((0, 0) if reset else (counters[-1][0] + rx, counters[-1][1] + tx))
    expected, missed, epochs = {}, defaultdict(int), 0
    for index in range(1, len(slots)):
        (rx0, tx0), (rx1, tx1) = counters[index - 1], counters[index]
        step = slots[index] - slots[index - 1]
        if rx1 < rx0 or tx1 < tx0:
            missed["counter_reset"] += 2 * step
            epochs += 1
        elif step == 1:
            expected["rx_bytes", slots[index - 1]], expected["tx_bytes", slots[index - 1]] = rx1 - rx0, tx1 - tx0
        else:
            missed["buffer_full" if serials[index] != serials[index - 1] + 1 else "late_tick"] += 2 * step
    port, regime, runs = PortState("e1", 10**10), Regime(MS, 0), SegmentColumns()
    matrix = np.zeros((len(slots), len(COUNTERS)), dtype=np.uint64)
    matrix[:, COUNTERS.index("rx_bytes")] = [rx for rx, _ in counters]
    matrix[:, COUNTERS.index("tx_bytes")] = [tx for _, tx in counters]
    edges = [0, *sorted(cut for cut in cuts if cut < len(slots)), len(slots)]
    for first, last in pairwise(edges):
        wall = np.array(slots[first:last], dtype=np.int64) * MS + 1234
        link = Link(1, np.arange(last - first), matrix[first:last])
        extend(port, regime, wall, np.array(serials[first:last], dtype=np.int64), link, runs)
    found = {}
    for head, values in zip(runs.heads, runs.values, strict=True):
        for index, value in enumerate(values.tolist()):
            assert (head["signal"], head["ts"] // MS + index) not in found
            found[head["signal"], head["ts"] // MS + index] = value
    assert found == expected
    assert {reason: count for reason, (count, _) in runs.missed.items()} == missed
    assert len({head["epoch"] for head in runs.heads} | {port.epoch}) <= epochs + 1


@pytest.mark.parametrize(("reason", "new_epoch"), [("interval_changed", False), ("clock_step", True)])
def test_a_new_grid_ends_the_run_and_is_admitted(reason, new_epoch):
    """Between two grids there is no sample; a step of the clock starts a new epoch, a new interval does not."""
    port, runs = PortState("e1", 1), SegmentColumns()
    counters = np.arange(3 * len(COUNTERS), dtype=np.uint64).reshape(3, -1)
    for regime, start in ((Regime(MS, 0), 10 * MS), (Regime(2 * MS, 7, reason), 20 * MS)):
        wall = start + np.arange(3) * regime.interval_ns
        extend(port, regime, wall, np.arange(3), Link(1, np.arange(3), counters), runs)
    assert [len(values) for values in runs.values] == [2, 2, 2, 2]
    assert {key: count for key, (count, _) in runs.missed.items()} == {reason: 2}
    assert (len({head["epoch"] for head in runs.heads}) == 2) == new_epoch
