"""``warm`` compiles every kernel variant that a service calls, so that none compiles while it works."""

import polars as pl
import pytest

from weft.pipeline.process import METRICS, MetricConfig
from weft.pipeline.process.base import Closing
from weft.pipeline.process.bursts import kernel
from weft.pipeline.process.bursts.metric import BurstMetric
from weft.pipeline.process.counters import kernel as counters
from weft.pipeline.process.counters import storms
from weft.pipeline.process.packets import sequence
from weft.pipeline.process.warm import warm
from weft.pipeline.tables.families import FAMILIES, counters_of
from weft.pipeline.tables.field import WINDOW_NS

KERNELS = (kernel.scatter, kernel.contention, kernel.walk)
OTHERS = (counters.place, counters.samples_of, counters.follow, counters.differ, counters.gauge, storms.watch)
OTHERS += (sequence.follow, sequence.expire, sequence.lay_out)


@pytest.mark.parametrize("width", [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64])
@pytest.mark.parametrize("bits", [7, 31, 32, 39])
def test_samples_of_any_width_meet_kernels_that_are_compiled(width: type[pl.DataType], bits: int) -> None:
    """No width of samples, in the message or in the matrix, compiles a kernel after ``warm``."""
    warm()
    compiled = [len(compute.signatures) for compute in KERNELS]
    size = {pl.UInt8: 8, pl.UInt16: 16, pl.UInt32: 32, pl.UInt64: 64}[width]
    run = {"ts": [0], "port": ["p"], "queue": [""], "signal": ["rx_bytes"], "interval_ns": [1_000_000], "speed_bps": [10**12]}
    values = pl.Series("values", [[1, 2 ** min(bits, size) - 1]], dtype=pl.List(width))
    made = BurstMetric(MetricConfig().bursts).close(Closing("d", 0, WINDOW_NS, [pl.DataFrame(run).with_columns(values)], ended=True))
    assert made["port_samples"]["high"].to_list() == [2 ** min(bits, size) - 1]
    assert [len(compute.signatures) for compute in KERNELS] == compiled


@pytest.mark.parametrize("family", ["port", "queue", "nic", "nvlink", "packet"])
def test_counters_and_packets_meet_kernels_that_are_compiled(family: str) -> None:
    """No mixture of rows, nulls and orders of a family compiles a kernel after ``warm``."""
    warm()
    compiled = [len(compute.signatures) for compute in OTHERS]
    types = FAMILIES[family].polars
    names = {name: "a" for name, dtype in types.items() if dtype == pl.String}
    for values in ([1, 2, 3], [1, None, 3], [3, 2, None], [None] * 3):
        numbers = {name: pl.Series(values, dtype=pl.UInt64) for name in counters_of(family)}
        numbers |= {name: pl.Series([1, 2, 3]) for name in types if types[name] in (pl.UInt8, pl.UInt16, pl.UInt32)}
        for times in ([1, 2, 3], [3, 1, 2]):
            rows = FAMILIES[family].frame({"ts": pl.Series(times), "recv_ts": 5, "epoch": 0, "speed_bps": 10**9, **names, **numbers})
            metric = METRICS[family](MetricConfig())
            metric.close(Closing("d", 0, WINDOW_NS, [rows], ended=False))
            metric.close(Closing("d", WINDOW_NS, 2 * WINDOW_NS, [rows.with_columns(ts=pl.col("ts") + WINDOW_NS)], ended=True))
    assert [len(compute.signatures) for compute in OTHERS] == compiled
