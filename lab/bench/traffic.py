"""Made traffic for measurements: ports of a training job that wait, then send near the line rate, all seeded."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from ...collectors.base import Batch

START_NS = 1_767_225_600 * 1_000_000_000
SPEED_BPS = 400_000_000_000
MS_NS = 1_000_000


def batches(
    devices: int, ports: int, seconds: int, *, interval_ns: int = MS_NS, seed: int = 1, start_ns: int = START_NS
) -> Iterator[Batch]:
    """Yield one batch of samples per device and second: ``ports`` runs of received byte counts, ``interval_ns`` (at most 1 ms) each.

    A device's ports alternate together between computing (mostly silent, some small control traffic) and
    communicating (0.80 to 0.97 of the line), each phase 20 to 120 ms.
    """
    random = np.random.default_rng(seed)
    capacity = SPEED_BPS * interval_ns // 8_000_000_000
    shape = (ports, 1_000_000_000 // interval_ns)
    for second in range(seconds):
        for device in range(devices):
            phase = np.repeat(np.arange(100) % 2, random.integers(20, 120, 100) * (MS_NS // interval_ns))[: shape[1]] == 1
            small = np.where(random.random(shape) < 0.3, random.lognormal(6, 1.5, shape), 0).astype(np.uint32)
            large = (capacity * random.uniform(0.80, 0.97, shape)).astype(np.uint32)
            ts = start_ns + second * 1_000_000_000
            yield Batch("burst_sample", _frame(f"leaf-{device:03d}", ts, np.where(phase, large, small), interval_ns))


def _frame(device: str, ts: int, values: np.ndarray, interval_ns: int) -> pl.DataFrame:
    ports = len(values)
    return pl.DataFrame(
        {
            "ts": np.full(ports, ts),
            "recv_ts": np.full(ports, ts + 1_000_000_000),
            "port": [f"Ethernet{port * 8}" for port in range(ports)],
            "interval_ns": np.full(ports, interval_ns),
            "speed_bps": np.full(ports, SPEED_BPS, np.uint64),
            "values": pl.Series(values).arr.to_list(),
        }
    ).with_columns(
        pl.lit(device).alias("device"),
        pl.lit("").alias("queue"),
        pl.lit("rx_bytes").alias("signal"),
        pl.lit("bench").alias("source"),
        pl.lit(0).alias("epoch"),
    )
