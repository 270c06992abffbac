"""``weft lab record`` and ``weft replay`` of its folder: the same tables on both buses, equal to the ground truth."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from weft.analytics.store.reader import Reader

TABLES = (
    *("port_samples_1s", "port_counters_1s", "queue_counters_1s", "latency_1s", "roce_1s", "groups_1s", "port_samples_1m"),
    *("bursts", "event", "inventory", "gap", "quality_1s"),
)


def tables(data: Path) -> dict[str, pl.DataFrame]:
    """Return the tables of the store, rows sorted by all columns."""
    reader = Reader(data / "store")
    known = set(reader.frame("SELECT view_name FROM duckdb_views() WHERE schema_name = 'state'")["view_name"].to_list())
    frames = {name: reader.frame(f"SELECT * FROM state.{name} ORDER BY ALL") for name in TABLES if name in known}
    reader.close()
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of three seconds of the smallest fabric, with a flapping link."""
    from weft.cli import main

    path = tmp_path_factory.mktemp("lab") / "run"
    assert main(["lab", "record", str(path), "--scale", "toy", "--seconds", "3", "--fault", "link_flap@leaf-00-0/Ethernet0@1@1"]) == 0
    return path


def test_both_buses_give_the_same_tables(weft: Any, folder: Path, clean_kafka: str, tmp_path: Path) -> None:
    """A replay over Kafka, with two services sharing the work, gives the tables of one over the embedded bus, row for row."""
    weft.run("replay", folder, "--data", tmp_path / "embedded")
    kafka = {"WEFT_BUS__KIND": "kafka", "WEFT_BUS__SERVERS": clean_kafka}
    weft.run("replay", folder, "--data", tmp_path / "kafka", "--process", "2", environment=kafka)
    expected, found = tables(tmp_path / "embedded"), tables(tmp_path / "kafka")
    assert found.keys() == expected.keys() and len(expected) >= 9
    for name, frame in expected.items():
        assert found[name].equals(frame), name
    for name in ("port_samples_1s", "port_counters_1s", "queue_counters_1s", "roce_1s", "bursts", "event", "inventory"):
        assert expected[name].height, name
    truth = pl.read_parquet(folder / "truth" / "bursts" / "*.parquet").filter(pl.col("device").str.contains("leaf|spine"))
    bursts = expected["bursts"].filter(signal="tx_bytes")
    assert bursts.height == truth.height and int(bursts["bytes"].sum()) == truth["bytes"].sum()
    assert expected["quality_1s"]["late"].sum() == 0
