"""Roll-ups equal a direct SQL merge of all rows of 1 s, for any batches; rows and positions are stored together or not at all."""

import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rig import fold_all

from weft.analytics.store.archive import BULK_ROWS, Archive, ArchiveConfig
from weft.analytics.store.ddl import QUANTILES, stored
from weft.analytics.store.lag import TOPICS
from weft.analytics.store.rollup import COARSER
from weft.analytics.store.sink import Positions, Sink
from weft.analytics.store.writer import Store
from weft.pipeline.bus import BusConfig, TopicPartition
from weft.pipeline.bus.embedded import EmbeddedBus
from weft.pipeline.clock import ManualClock
from weft.pipeline.codec import encode, headers
from weft.pipeline.errors import StoreError
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import RESOLUTIONS_NS, WINDOW_NS, Table
from weft.pipeline.tables.states import STATES

T0 = 1_640_995_200 * WINDOW_NS
KEYED = [table for table in STATES.values() if table.having("key")]


def rows(table: Table, count: int, rng: np.random.Generator, seconds: int = 150) -> pl.DataFrame:
    """Return random rows of 1 s, one per key, around the edge of an hour, with nulls where they may be."""
    columns = {}
    for field in table.fields:
        kind = str(field.dtype)
        if field.name == "ts":
            values = (T0 + 3600 * WINDOW_NS + rng.integers(-seconds, seconds, count) * WINDOW_NS).tolist()
        elif kind == "String":
            values = rng.choice(["a", "b", "c"], count).tolist()
        elif field.name == "speed_bps":
            values = rng.choice(np.array([None, 10**9, 10**11], object), count).tolist()
        elif field.name == "interval_ns":
            values = rng.choice([10**6, 10**7], count).tolist()
        elif field.role == "hist":
            values = [
                [{"i": int(i), "c": int(rng.integers(1, 10**6))} for i in sorted(rng.choice(4097, int(rng.integers(0, 6)), replace=False))]
                for _ in range(count)
            ]
        elif kind.startswith("Decimal"):
            values = [Decimal(int(v) * 2**40) for v in rng.integers(0, 2**62, count)]
        elif kind.startswith("List"):
            values = [rng.integers(0, 100, 3).tolist() for _ in range(count)]
        else:
            values = rng.integers(0, 2**7 if kind == "UInt8" else 2**45, count).tolist()
        columns[field.name] = pl.Series(field.name, values, dtype=field.dtype, strict=False)
    return pl.DataFrame(columns).unique(table.having("key"), maintain_order=True)


def merged_by_sql(table: Table, frame: pl.DataFrame, resolution_ns: int) -> list[tuple]:
    """Return the rows of a coarser table, made by one GROUP BY over all rows of 1 s and one over all of their buckets."""
    connection = duckdb.connect()
    connection.register("fine", frame.with_row_index("n").to_arrow())
    keys = [f"ts // {resolution_ns} * {resolution_ns} AS ts", *(key for key in table.having("key") if key != "ts")]
    names = ", ".join(table.having("key"))
    how = {"sum": "sum", "min": "min", "max": "max"}
    plain = [f"{how[f.role]}({f.name}) AS {f.name}" for f in table.fields if f.role in how]
    connection.execute(f"CREATE TABLE coarse AS SELECT {', '.join([*keys, *plain])} FROM fine GROUP BY ALL")
    same = " AND ".join(f"c.{key} IS NOT DISTINCT FROM h.{key}" for key in table.having("key"))
    select, joins = [], ""
    for f in table.fields:
        if f.role == "hist":
            buckets = f"SELECT {', '.join(keys)}, unnest({f.name}) AS b FROM fine"
            counts = f"SELECT {names}, b.i AS i, sum(b.c)::UINTEGER AS c FROM ({buckets}) GROUP BY ALL"
            lists = f"SELECT {names}, list({{'i': i, 'c': c}} ORDER BY i) AS hist FROM ({counts}) GROUP BY ALL"
            connection.execute(f"CREATE TABLE {f.name} AS {lists}")
            joins += f" LEFT JOIN {f.name} ON {same.replace('h.', f.name + '.')}"
            select.append(f"coalesce({f.name}.hist, [])")
        else:
            select.append(f"c.{f.name}" if f.role != "attribute" else "NULL")
    result = connection.execute(f"SELECT {', '.join(select)} FROM coarse c {joins}").fetchall()
    connection.close()
    return ordered(result)


def ordered(made: list[tuple]) -> list[tuple]:
    return sorted(([int(v) if isinstance(v, Decimal) else v for v in row] for row in made), key=repr)


def in_store(store: Store, table: Table, resolution: str) -> list[tuple]:
    names = [f.name if f.name != "ts" else "epoch_ns(ts) AS ts" for f in table.fields]
    return ordered([tuple(row.values()) for row in store.query(f"SELECT {', '.join(names)} FROM base.{table.name}_{resolution}")])


def nearest_rank(hist: list[dict[str, int]], q: float) -> float | None:
    """Return the middle of the bucket that holds the sample of rank ceil(q n), in exact arithmetic until the end."""
    left = max(math.ceil(Fraction(str(q)) * sum(b["c"] for b in hist)), 1)
    for b in hist:
        left -= b["c"]
        if left <= 0:
            octave, step = divmod(b["i"] - 1, 64)
            width = Fraction(2**octave, 64)
            return float((64 + step) * width + max(width - 1, 0) / 2) if b["i"] else 0.0
    return None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open, empty store."""
    one = Store(tmp_path / "store")
    one.start()
    yield one
    one.stop()


@pytest.mark.parametrize("table", KEYED, ids=lambda table: table.name)
def test_any_batches_give_the_direct_merge(store: Store, table: Table) -> None:
    """Rows folded in any batches, in any order, are at every resolution the merge of all rows, value for value."""

    @settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 2**32), st.lists(st.floats(0, 1), max_size=4))
    def holds(seed: int, cuts: list[float]) -> None:
        frame = rows(table, 120, np.random.default_rng(seed)).sample(fraction=1.0, shuffle=True, seed=seed)
        for resolution in COARSER:
            store.execute(f"DELETE FROM base.{table.name}_{resolution}")
        borders = [0, *sorted(int(cut * frame.height) for cut in cuts), frame.height]
        for begin, end in pairwise(borders):
            with store.transaction():
                fold_all(store, table, frame[begin:end])
        for resolution in COARSER:
            assert in_store(store, table, resolution) == merged_by_sql(table, frame, RESOLUTIONS_NS[resolution])

    holds()


def test_the_quantiles_beside_a_histogram_are_those_of_its_buckets(store: Store) -> None:
    """Rows of 1 s and merged ones hold the usual quantiles, and NULL where there is no sample."""
    table = STATES["port_samples"]
    frame = rows(table, 60, np.random.default_rng(5))
    store.insert("base.port_samples_1s", stored(table, frame))
    fold_all(store, table, frame)
    for resolution in RESOLUTIONS_NS:
        for row in store.query(f"SELECT * FROM base.port_samples_{resolution}"):
            for name in ("hist", "gap_hist"):
                got = [row[f"{name}_{label}"] for label in QUANTILES]
                assert got == [nearest_rank(row[name], q) for q in QUANTILES.values()]  # type: ignore[arg-type]


class Rig:
    """A sink over a bus and a store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.bus = EmbeddedBus(BusConfig(partitions=2), folder / "bus", self.clock)
        self.store = Store(folder / "store")
        self.store.start()
        self.producer = self.bus.producer("test")
        self.sinks: list[Sink] = []

    def publish(self, table: Table, frame: pl.DataFrame, partition: int = 0) -> None:
        with self.producer.transaction() as transaction:
            transaction.publish(table.topic, "k", encode(frame, table), headers(table), partition=partition)

    def sink(self) -> Sink:
        report = Report("analyze", "test", self.clock)
        sink = Sink(self.store, Archive(self.store, ArchiveConfig(), self.clock, report), self.bus, report)
        sink.start()
        self.sinks.append(sink)
        return sink

    def close(self) -> None:
        for sink in self.sinks:
            sink.stop()
        self.producer.close()
        self.bus.close()
        self.store.stop()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a sink with its bus and store."""
    one = Rig(tmp_path)
    yield one
    one.close()


def count(store: Store, table: str) -> int:
    return int(str(store.query(f"SELECT count(*) AS n FROM base.{table}")[0]["n"]))


def test_rows_and_positions_are_stored_together_or_not_at_all(rig: Rig) -> None:
    """A failure before the end of the transaction stores neither rows nor positions, and the next attempt stores all once."""
    table = STATES["port_samples"]
    frame = rows(table, 30, np.random.default_rng(0))
    rig.publish(table, frame)
    sink = rig.sink()
    messages = sink.poll(0.0)
    rig.store.execute("ALTER TABLE base.positions RENAME COLUMN part TO division")
    for _ in range(2):
        with pytest.raises(StoreError):
            sink.store(messages)
    sink.fold()
    assert count(rig.store, "port_samples_1s") == count(rig.store, "port_samples_1h") == count(rig.store, "positions") == 0
    rig.store.execute("ALTER TABLE base.positions RENAME COLUMN division TO part")
    sink.store(messages)
    sink.fold()
    assert count(rig.store, "port_samples_1s") == frame.height
    assert in_store(rig.store, table, "1h") == merged_by_sql(table, frame, RESOLUTIONS_NS["1h"])
    assert Positions(rig.store).load(TOPICS) == {TopicPartition(table.topic, 0): 1}


@pytest.mark.parametrize("folded", [None, *COARSER])
def test_a_sink_reads_on_where_the_store_says(rig: Rig, folded: str | None) -> None:
    """A new sink stores and folds the rows that are missing, even if its predecessor was killed with rows in memory."""
    table = STATES["quality"]
    frames = [rows(table, 5, np.random.default_rng(seed)) for seed in range(3)]
    rig.publish(table, frames[0])
    first = rig.sink()
    first.store(first.poll(0.0))
    if folded is not None:
        for resolution in COARSER[: COARSER.index(folded) + 1]:
            first.fold_into(resolution)
    for frame in frames[1:]:
        rig.publish(table, frame)
    assert len(first.poll(0.0)) == 2
    second = rig.sink()
    messages = second.poll(0.0)
    assert [message.offset for message in messages] == ([1, 2] if folded == COARSER[-1] else [0, 1, 2])
    second.store(messages)
    second.fold()
    assert Positions(rig.store).load(TOPICS) == {TopicPartition(table.topic, 0): 3}
    assert not any(Positions(rig.store).unfolded(TOPICS).values())
    whole = pl.concat(frames)
    assert count(rig.store, "quality_1s") == whole.height
    for resolution in COARSER:
        assert in_store(rig.store, table, resolution) == merged_by_sql(table, whole, RESOLUTIONS_NS[resolution])


@given(st.lists(st.sampled_from(["publish", "publish", "store", "die", *COARSER]), max_size=24), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_folded_before_a_sink_dies_is_folded_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int
) -> None:
    """With stores, partial folds and kills in any order, over two partitions, every resolution is the merge of all rows."""
    rig = Rig(tmp_path_factory.mktemp("rig"))
    table, rng, published = STATES["quality"], np.random.default_rng(seed), [rows(STATES["quality"], 1, np.random.default_rng(seed))]
    rig.publish(table, published[0])
    sink = rig.sink()
    for step in [*steps, "die", "store"]:
        if step == "publish":
            published.append(rows(table, 4, rng))
            rig.publish(table, published[-1], int(rng.integers(0, 2)))
        elif step == "store":
            while messages := sink.poll(0.0):
                sink.store(messages)
        elif step == "die":
            sink = rig.sink()
        else:
            for resolution in COARSER[: COARSER.index(step) + 1]:
                sink.fold_into(resolution)
    sink.fold()
    whole = pl.concat(published)
    assert count(rig.store, "quality_1s") == whole.height
    for resolution in COARSER:
        assert in_store(rig.store, table, resolution) == merged_by_sql(table, whole, RESOLUTIONS_NS[resolution])
    rig.close()


def test_poison_on_the_state_topics_is_passed_by(rig: Rig) -> None:
    """A message that cannot be read is counted and skipped, and the others of its batch are stored."""
    table = STATES["latency"]
    with rig.producer.transaction() as transaction:
        transaction.publish(table.topic, "k", b"nonsense", headers(table), partition=0)
        transaction.publish(table.topic, "k", b"", {"schema": "weather"}, partition=1)
        for other in (FAMILIES["burst_sample"], STATES["quality"]):
            transaction.publish(table.topic, "k", encode(other.empty(), other), headers(other), partition=0)
        timeless = pl.DataFrame({"ts": [None], "device": ["d"], "samples": [1]}, schema_overrides={"ts": pl.Int64})
        transaction.publish(table.topic, "k", encode(timeless, table), headers(table), partition=0)
    rig.publish(table, rows(table, 4, np.random.default_rng(1)))
    sink = rig.sink()
    sink.store(sink.poll(0.0))
    assert count(rig.store, "latency_1s") == 4
    assert sink.positions()[TopicPartition(table.topic, 0)] == 5
    assert count(rig.store, "positions") == 2


@pytest.mark.parametrize("table", KEYED, ids=lambda table: table.name)
def test_a_backlog_is_stored_like_a_trickle(rig: Rig, table: Table) -> None:
    """A batch large enough to bypass the hot tables gives the same rows, each once, at every resolution."""
    frame = rows(table, 3 * BULK_ROWS, np.random.default_rng(3), seconds=3_000)
    # Every key once, so that there are enough rows: names take the place of random repeats.
    frame = frame.with_columns(
        pl.int_range(frame.height).cast(pl.String).alias(next(key for key in table.having("key")[1:] if key in ("device", "group_id")))
    )
    assert frame.height >= BULK_ROWS
    half = frame.height // 2
    for part in (frame[:half], frame[half:]):
        rig.publish(table, part)
    sink = rig.sink()
    messages = []
    while more := sink.poll(0.0):
        messages += more
    sink.store(messages)
    sink.fold()
    segments = rig.store.query("SELECT name, path, rows FROM base.segments")
    assert [(row["name"], row["rows"]) for row in segments] == [(f"{table.name}_1s", frame.height)]
    back = rig.store.frame(f"SELECT * FROM read_parquet('{rig.store.folder / str(segments[0]['path'])}')")
    keys = table.having("key")
    assert back.sort(keys).equals(stored(table, frame).select(back.columns).sort(keys))
    for resolution in COARSER:
        assert in_store(rig.store, table, resolution) == merged_by_sql(table, frame, RESOLUTIONS_NS[resolution])
