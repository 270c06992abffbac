"""The summary of ``weft replay`` equals what was stored, for every family."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from weft.collectors.base import Batch
from weft.collectors.recordings.recording import Recorder
from weft.pipeline.clock import SystemClock
from weft.pipeline.tables.families import FAMILIES

NS_PER_S = 1_000_000_000
START_NS = 1_700_000_000 * NS_PER_S
# The key columns that rows of each family need, and the name under which the summary counts them.
ROWS: dict[str, tuple[dict[str, object], str]] = {
    "nic": ({"port": "mlx5_0", "tx_bytes": 7}, "adapter_readings"),
    "nvlink": ({"gpu": 0, "link": "1", "tx_bytes": 7}, "nvlink_readings"),
    "gpu": ({"gpu": 0, "power_w": 300.0}, "gpu_readings"),
    "event": ({"kind": "link_down", "object": "mlx5_0"}, "events"),
    "gap": ({"what": "samples", "missed": 3, "reason": "sequence"}, "gaps"),
    "reading": ({"kind": "port", "object": "p", "name": "x", "value": 1.0}, "other_readings"),
    "latency": ({"src": "a", "dst": "b", "kind": "probe", "values_ns": [5, 6]}, "latency_samples"),
}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Write a recording with two rows, a second apart, of each of the families."""
    recorder = Recorder(tmp_path / "hosts.weft", SystemClock())
    for second in (0, 1):
        for family, (columns, _) in ROWS.items():
            ts = START_NS + second * NS_PER_S
            row = {"ts": ts, "recv_ts": ts, "source": "recording", "device": "host1", "epoch": 0} | columns
            recorder.append(Batch(family, pl.DataFrame([row], schema=FAMILIES[family].polars)))
    recorder.close()
    return tmp_path / "hosts.weft"


def test_every_family_is_counted(weft: Any, recording: Path, tmp_path: Path) -> None:
    """Two rows of each family are two in the summary (two latency rows of two values are four), and the first of them has a query."""
    done = weft.run("replay", recording, "--data", tmp_path / "data", "--format", "json")
    summary = json.loads(done.stdout)
    assert summary["rows"] == 2 * len(ROWS)
    found = {name: count for name, count in summary["store"].items() if count}
    assert found == {name: 4 if name == "latency_samples" else 2 for _, name in ROWS.values()} | {"admitted_missing": 6}


def test_adapters_alone_are_not_nothing(weft: Any, tmp_path: Path) -> None:
    """A CSV of adapter counters is reported as such, with the view to look at."""
    lines = [f"{START_NS + second * NS_PER_S},host1,mlx5_0,{1000 * second}" for second in range(3)]
    (tmp_path / "nic.csv").write_text("\n".join(["ts,device,port,cnp_sent", *lines]) + "\n")
    done = weft.run("replay", tmp_path / "nic.csv", "--data", tmp_path / "data")
    assert "the store now holds 3 adapter readings\n" in done.stdout
    assert '"FROM nics_1m' in done.stdout
