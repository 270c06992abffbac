"""Recordings of counters through the whole pipeline: the windows hold the counters' deltas, however the work is shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

S = 10**9
T0 = 1_700_000_000 * S
DEVICES, PORTS, SECONDS = 3, 4, 20


def _readings(seed: int) -> pl.DataFrame:
    """Return counter samples four times a second, slightly irregular, of counters that grow at random."""
    rng = np.random.default_rng(seed)
    count, objects = SECONDS * 4, DEVICES * PORTS
    ts = T0 + np.sort(rng.integers(0, SECONDS * S, (objects, count)), axis=1)
    moved = rng.integers(0, 10**8, (2, objects, count))
    return pl.DataFrame(
        {
            "ts": ts.ravel(),
            "device": [f"leaf-{one // PORTS}" for one in range(objects) for _ in range(count)],
            "port": [f"Ethernet{one % PORTS}" for one in range(objects) for _ in range(count)],
            "one": np.cumsum(moved[0], axis=1).ravel() + 2**40,
            "other": np.cumsum(moved[1], axis=1).ravel() // 1500,
        }
    )


@pytest.fixture
def recording(tmp_path: Path) -> dict[str, Path]:
    """Return recordings of ports and of queues as Parquet files with the families' own columns."""
    ports = _readings(1).rename({"one": "rx_bytes", "other": "rx_packets"}).with_columns(speed_bps=pl.lit(400 * S))
    queues = _readings(2).rename({"one": "bytes", "other": "packets"}).with_columns(queue=pl.lit("3"), direction=pl.lit("tx"))
    for name, frame in (("port", ports), ("queue", queues)):
        # In no order, as files may be.
        frame.sample(fraction=1, shuffle=True, seed=3).write_parquet(tmp_path / f"{name}.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in ("port", "queue")}


@pytest.mark.parametrize(("family", "counters"), [("port", ("rx_bytes", "rx_packets")), ("queue", ("bytes", "packets"))])
def test_a_recording_of_counters_adds_up(
    weft: Any,
    recording: dict[str, Path],
    tables: Callable[[Path], dict[str, pl.DataFrame]],
    tmp_path: Path,
    family: str,
    counters: tuple[str, ...],
) -> None:
    """At every resolution a counter's windows sum to its last sample minus its first, and two process services give the same rows."""
    stores = {}
    for processes in (1, 2):
        weft.run("replay", recording[family], "--data", tmp_path / str(processes), "--process", processes)
        stores[processes] = tables(tmp_path / str(processes))
    readings = pl.read_parquet(recording[family]).sort("ts")
    expected = readings.group_by("device", "port").agg(pl.col(counters).last() - pl.col(counters).first()).sort("device", "port")
    for resolution in ("1s", "10s", "1m", "1h"):
        name = f"{family}_counters_{resolution}"
        assert stores[1][name].equals(stores[2][name])
        found = stores[1][name].group_by("device", "port").agg(pl.col(counters).sum().cast(pl.Int64)).sort("device", "port")
        assert found.equals(expected.cast({counter: pl.Int64 for counter in counters})), resolution
    assert stores[1][f"{family}_counters_1s"]["readings"].sum() == readings.height
