"""Publishing: readers in any process always see complete states of the store; old snapshots are deleted when unused."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from weft.analytics.store.ddl import base_tables
from weft.analytics.store.publish import GRACE_S, KEEP, PublishConfig, Publisher
from weft.analytics.store.reader import Reader
from weft.analytics.store.writer import Store
from weft.pipeline.clock import NS_PER_S, ManualClock
from weft.pipeline.report import Report

Children = Callable[..., "subprocess.Popen[str]"]

READ = """
import sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
for line in sys.stdin:
    if line.strip() == "again":
        connection.close()
        connection = duckdb.connect(sys.argv[1], read_only=True)
    print(*connection.execute("SELECT count(*), coalesce(sum(next_offset), 0) FROM base.positions").fetchone(), flush=True)
"""


class Rig:
    """A store with a publisher and a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.store = Store(folder)
        self.store.start()
        self.report = Report("analyze", "test", self.clock)
        self.publisher = self.fresh()

    def fresh(self) -> Publisher:
        publisher = Publisher(self.store, PublishConfig(), self.clock, self.report)
        publisher.start()
        return publisher

    def write(self, offset: int = 1) -> None:
        with self.store.transaction():
            self.store.execute("INSERT INTO base.positions (topic, part, next_offset) VALUES ('t', 0, ?)", [offset])

    def numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.folder / "snapshots").glob("*.duckdb"))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a published, empty store."""
    one = Rig(tmp_path)
    yield one
    one.store.stop()


def ask(child: "subprocess.Popen[str]", what: str = "") -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(what + "\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def test_any_client_reads_while_weft_writes(rig: Rig, children: Children) -> None:
    """Plain DuckDB in another process reads the current link while rows are written and published; what it opened stays readable."""
    child = children(READ, str(rig.folder / "current.duckdb"))
    assert ask(child) == "0 0"
    for offset in range(1, 6):
        rig.write(offset)
        rig.publisher.publish()
        rig.write(1000)
        assert ask(child) == "0 0"
    assert ask(child, "again") == f"9 {1 + 2 + 3 + 4 + 5 + 4 * 1000}"
    assert rig.store.query("SELECT count(*) AS n FROM base.positions")[0]["n"] == 10


def test_a_snapshot_needs_no_log_and_no_writer(rig: Rig) -> None:
    """A snapshot is complete: a copy of it can be read alone, after the writer has stopped."""
    rig.write(7)
    rig.publisher.publish()
    assert not list((rig.folder / "snapshots").glob("*.wal"))
    rig.store.stop()
    reader = Reader(rig.folder)
    assert reader.frame("SELECT next_offset FROM base.positions")["next_offset"].to_list() == [7]
    reader.close()


def test_nothing_is_published_when_nothing_changed(rig: Rig) -> None:
    """A snapshot costs a copy, so an unchanged store gets none; the next is due after the configured time all the same."""
    before = rig.numbers()
    assert not rig.publisher.publish()
    assert rig.numbers() == before
    rig.write()
    assert rig.publisher.publish()
    assert rig.numbers() == [*before, before[-1] + 1]
    assert rig.publisher.due_ns() == rig.clock.monotonic_ns() + 2 * NS_PER_S


def test_old_snapshots_go_when_no_query_can_hold_them(rig: Rig) -> None:
    """The last three are always kept, older ones until their grace time has passed; the newest is current."""
    for _ in range(6):
        rig.write()
        rig.publisher.publish()
    for path in (rig.folder / "snapshots").iterdir():
        os.utime(path, ns=(rig.clock.now_ns(), rig.clock.now_ns()))
    rig.write()
    rig.publisher.publish()
    assert len(rig.numbers()) == 8
    rig.clock.advance(GRACE_S + 1)
    rig.write()
    rig.publisher.publish()
    assert rig.numbers() == [7, 8, 9]
    assert len(rig.numbers()) == KEEP
    assert (rig.folder / "current.duckdb").resolve().name == "0000000009.duckdb"


def test_a_new_publisher_goes_on_with_the_numbers(rig: Rig) -> None:
    """After a restart numbers go up, partial files of a crash are removed, and the stored rows are published at once."""
    rig.write()
    rig.publisher.publish()
    (rig.folder / "snapshots" / "0000000099.part").write_bytes(b"torn")
    (rig.folder / "current.part").symlink_to("nowhere")
    rig.write()
    rig.fresh()
    assert rig.numbers() == [1, 2, 3]
    assert not list((rig.folder / "snapshots").glob("*.part"))
    reader = Reader(rig.folder)
    assert reader.frame("SELECT count(*) AS n FROM base.positions")["n"].to_list() == [2]
    reader.close()
    rig.write()
    rig.publisher.publish()
    assert rig.numbers()[-1] == rig.publisher._number


def test_what_publishing_costs_bounds_how_often_it_happens(tmp_path: Path) -> None:
    """When a copy takes long, the next is due so much later that copying takes a tenth of the time at most."""

    class SlowClock(ManualClock):
        def monotonic_ns(self) -> int:
            self.advance(1)
            return super().monotonic_ns()

    store, clock = Store(tmp_path), SlowClock()
    store.start()
    publisher = Publisher(store, PublishConfig(every_s=2.0), clock, Report("analyze", "test", clock))
    publisher.start()
    # The copy took one second by the clock, so ten must pass.
    assert publisher.due_ns() - clock.now_ns() == 10 * NS_PER_S
    store.stop()


def test_every_view_can_be_read_in_an_empty_store(rig: Rig) -> None:
    """All views and all state tables are there from the first snapshot on, with no rows."""
    reader = Reader(rig.folder)
    names = reader.frame("SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal").rows()
    assert {name for schema, name in names if schema == "state"} == {*base_tables(), "samples"}
    assert {"ports_1s", "ports_1h", "latency_1m", "roce_10s", "groups_1s", "quality_1s", "bursts", "samples", "devices", "gaps"} <= {
        name for schema, name in names if schema == "main"
    }
    for schema, name in names:
        assert reader.frame(f'SELECT count(*) AS n FROM {schema}."{name}"')["n"].to_list() == [0], name
    reader.close()


def test_extra_views_are_published_too(rig: Rig) -> None:
    """Other packages can add views, and a changed set is published with the next snapshot."""
    extra = ("CREATE OR REPLACE VIEW main.mine AS SELECT 42 AS answer",)
    publisher = Publisher(rig.store, PublishConfig(), rig.clock, rig.report, extra)
    publisher.start()
    reader = Reader(rig.folder)
    assert reader.frame("SELECT answer FROM mine").equals(pl.DataFrame({"answer": [42]}, schema={"answer": pl.Int32}))
    assert reader.published_ns > 0
    reader.close()
