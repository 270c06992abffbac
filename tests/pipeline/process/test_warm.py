"""What ``warm`` has compiled is all that a service then calls: none waits for a compiler in the middle of its work."""

import polars as pl
import pytest

from weft.pipeline.process import MetricConfig
from weft.pipeline.process.base import Closing
from weft.pipeline.process.bursts import kernel
from weft.pipeline.process.bursts.metric import BurstMetric
from weft.pipeline.process.warm import warm
from weft.pipeline.tables.field import WINDOW_NS

KERNELS = (kernel.scatter, kernel.contention, kernel.walk)


@pytest.mark.parametrize("width", [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64])
@pytest.mark.parametrize("bits", [7, 31, 32, 39])
def test_samples_of_any_width_meet_kernels_that_are_compiled(width: type[pl.DataType], bits: int) -> None:
    """Neither the width in which samples travelled nor the one that they need leads to a kernel that is not there yet."""
    warm()
    compiled = [len(compute.signatures) for compute in KERNELS]
    size = {pl.UInt8: 8, pl.UInt16: 16, pl.UInt32: 32, pl.UInt64: 64}[width]
    run = {"ts": [0], "port": ["p"], "queue": [""], "signal": ["rx_bytes"], "interval_ns": [1_000_000], "speed_bps": [10**12]}
    values = pl.Series("values", [[1, 2 ** min(bits, size) - 1]], dtype=pl.List(width))
    made = BurstMetric(MetricConfig().bursts).close(Closing("d", 0, WINDOW_NS, [pl.DataFrame(run).with_columns(values)], ended=True))
    assert made["port_samples"]["high"].to_list() == [2 ** min(bits, size) - 1]
    assert [len(compute.signatures) for compute in KERNELS] == compiled
