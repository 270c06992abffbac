"""Helpers of the tests of high-frequency telemetry: generated telemetry, and the rows made of it."""

import numpy as np
import polars as pl
from ipfix_bytes import message, record

from weft.collectors.base import Batch
from weft.pipeline.tables.families import FAMILIES

STEP = 100_000

PORTS = """
[[session]]
name = "profile|PORT"
object_names = ["Ethernet0", "Ethernet4"]
object_ids = [1, 2]
"""


def joined(batches: list[Batch], family: str) -> pl.DataFrame:
    """Return all rows of a family, each frame checked against the table."""
    table = FAMILIES[family]
    frames = [batch.frame for batch in batches if batch.family == family]
    assert all(dict(frame.schema) == table.polars for frame in frames)
    return pl.concat([table.empty(), *frames])


def samples(batches: list[Batch], **keys) -> dict[int, int]:
    """Return the samples of one signal by the start of their slots; no slot may have two."""
    found: dict[int, int] = {}
    rows = joined(batches, "burst_sample").filter(*(pl.col(name) == value for name, value in keys.items()))
    for row in rows.iter_rows(named=True):
        for k, value in enumerate(row["values"]):
            slot = row["ts"] + k * row["interval_ns"]
            assert slot not in found
            found[slot] = value
    return found


def telemetry(values: np.ndarray, times: np.ndarray, name: int = 256) -> bytes:
    """Return one message per record; values (n, counters)."""
    return b"".join(
        message([(name, record(int(t), row))], sequence=k) for k, (t, row) in enumerate(zip(times, values.tolist(), strict=True))
    )


def walk(n: int, counters: int, seed: int = 1) -> np.ndarray:
    """Return cumulative counters that only grow."""
    return np.cumsum(np.random.default_rng(seed).integers(0, 200_000, (n, counters)), axis=0)
