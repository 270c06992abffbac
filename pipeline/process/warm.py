"""Compiles the process kernels: ``python -m weft.pipeline.process.warm``, at installation, so that the first start does not wait.

Numba caches the result beside the source, or in ``NUMBA_CACHE_DIR``. A service also calls ``warm`` before it joins its group,
because the group would expel a member that compiles for ten seconds.
"""

import polars as pl

from ..memory import give_back
from ..tables.families import FAMILIES
from ..tables.field import WINDOW_NS
from . import METRICS, MetricConfig
from .base import Closing

_WIDTHS = (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def warm() -> None:
    """Run every metric once over a few generated rows of each width."""
    samples = {
        "ts": [0],
        "recv_ts": [0],
        "port": ["port"],
        "queue": [""],
        "signal": ["rx_bytes"],
        "interval_ns": [1_000_000],
        "speed_bps": [80_000],
    }
    segments = [pl.DataFrame(samples).with_columns(pl.Series("values", [[0, 200, 1]], dtype=pl.List(width))) for width in _WIDTHS]
    # One sample of more than 32 bits makes the whole matrix wider.
    large = segments[-1].with_columns(pl.Series("values", [[2**32]], dtype=pl.List(pl.UInt64)))
    packet = {"ts": 0, "src": "10.0.0.1", "dst": "10.0.0.2", "qp": 1, "opcode": 4, "psn": 1}
    packet |= {"length": 100, "payload_bytes": 40, "ecn": 0, "sampling_rate": 1}
    frames = {"burst_sample": segments, "packet": [FAMILIES["packet"].frame(packet)]}
    frames |= {family: [_counter_samples(family)] for family in ("port", "queue", "nic", "nvlink")}
    for family, make in METRICS.items():
        make(MetricConfig()).close(Closing("warm", 0, WINDOW_NS, frames.get(family, []), ended=True))
        give_back()
    METRICS["burst_sample"](MetricConfig()).close(Closing("warm", 0, WINDOW_NS, [*segments, large], ended=True))


def _counter_samples(family: str) -> pl.DataFrame:
    """Return two counter samples with every counter and gauge, and a third, out of order, with none."""
    table = FAMILIES[family]
    texts = {name: "warm" for name, dtype in table.polars.items() if dtype == pl.String}
    numbers = {name: [1, 2, None] for name, dtype in table.polars.items() if dtype == pl.UInt64}
    return table.frame(texts | numbers | {"ts": [2, 3, 1], "recv_ts": 1, "epoch": 0})


if __name__ == "__main__":
    warm()
