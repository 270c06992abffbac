"""The tables are a contract with every existing message and row: each released version is frozen here."""

import json
from pathlib import Path

import polars as pl
import pytest

from weft.analytics.store.ddl import duckdb_type
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import Table
from weft.pipeline.tables.states import STATES

GOLDEN = Path(__file__).parent / "golden"
TABLES = [*FAMILIES.values(), *STATES.values()]


def frozen(table: Table) -> dict[str, object]:
    """Return everything of a table that readers of old messages and rows depend on."""
    fields = [[field.name, str(field.dtype), field.role] for field in table.fields]
    return {"topic": table.topic, "version": table.version, "fields": fields}


def golden_of(table: Table) -> Path:
    return GOLDEN / f"{'state.' if table.state else ''}{table.name}.v{table.version}.json"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.topic)
def test_a_released_table_only_gains_nullable_columns(table: Table) -> None:
    """Every column of the golden exists in its place with its type and role, and the golden has every column."""
    assert golden_of(table).exists(), f"{table.topic} is new: write {golden_of(table).name}"
    assert frozen(table) == json.loads(golden_of(table).read_text())


def test_every_golden_is_of_a_table() -> None:
    """Every golden belongs to a current table and version."""
    assert {path.name for path in GOLDEN.glob("*.json")} == {golden_of(table).name for table in TABLES}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.topic)
def test_units_stand_in_the_names(table: Table) -> None:
    """A name in ``_ns``, ``_bps``, ``_bytes`` or ``_ratio`` has that unit, and ratios are floating."""
    for field in table.fields:
        if field.name.endswith("_ns"):
            assert field.unit == "ns", field.name
        if field.name.endswith("_bps"):
            assert field.unit == "bit/s", field.name
        if field.name.endswith("_ratio"):
            assert field.dtype == pl.Float64, field.name
        assert field.doc, field.name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.topic)
def test_every_type_has_a_place_in_the_store(table: Table) -> None:
    """DuckDB has a type for every column, and names are unique."""
    assert all(duckdb_type(field.dtype) for field in table.fields)
    assert len(table.polars) == len(table.fields)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.topic)
def test_a_frame_has_exactly_the_columns_of_its_table(table: Table) -> None:
    """``Table.frame`` orders and casts the given columns, fills the missing ones with nulls and drops the others."""
    first = next(iter(table.polars))
    for given in ({"colour": "green", first: [1, 2]}, pl.DataFrame({"colour": ["green", "red"], first: ["1", "2"]})):
        frame = table.frame(given)
        assert dict(frame.schema) == table.polars
        assert frame[first].cast(pl.String).to_list() == ["1", "2"]
        assert all(frame[name].to_list() == [None, None] for name in table.polars if name != first)


@pytest.mark.parametrize("table", [table for table in STATES.values() if table.having("key")], ids=lambda table: table.name)
def test_every_statistic_says_how_it_merges(table: Table) -> None:
    """A state table is keyed by time and device or group, and every other column merges, but for the profile that 1 s rows alone have."""
    assert table.having("key")[0] == "ts"
    assert {"device", "group_id"} & set(table.having("key"))
    assert set(table.having("attribute")) <= {"profile"}
