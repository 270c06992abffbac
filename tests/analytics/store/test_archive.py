"""Segments: rows that left the hot tables are seen exactly once in every snapshot, and rows that are too old are deleted."""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from weft.analytics.store.archive import Archive, ArchiveConfig
from weft.analytics.store.ddl import base_tables, stored
from weft.analytics.store.publish import GRACE_S, PublishConfig, Publisher
from weft.analytics.store.reader import Reader
from weft.analytics.store.writer import Store
from weft.pipeline.clock import NS_PER_S, ManualClock
from weft.pipeline.errors import ConfigError, StoreError
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.states import STATES

T0 = 1_640_995_200 * NS_PER_S
HOUR_S = 3600


@pytest.mark.parametrize(
    ("keep_days", "says"), [((("1s", -2.0),), "is kept for -2.0 days; write more than 0"), ((("2s", 1.0),), "there is no resolution '2s'")]
)
def test_what_is_kept_is_said_in_full_or_in_part(keep_days: tuple[tuple[str, float], ...], says: str) -> None:
    """Setting one resolution leaves the others unchanged; an impossible one is an error."""
    clock = ManualClock()
    report = Report("analyze", "test", clock)
    assert Archive(Store(Path("nowhere")), ArchiveConfig(keep_days=(("1s", 7.0),)), clock, report)
    with pytest.raises(ConfigError, match=re.escape(says)):
        Archive(Store(Path("nowhere")), ArchiveConfig(keep_days=keep_days), clock, report)


CONFIG = ArchiveConfig(hot_s=HOUR_S, hot_rows_max=100)


class Rig:
    """A store with an archive and a publisher."""

    def __init__(self, folder: Path, config: ArchiveConfig = CONFIG) -> None:
        self.folder = folder
        self.clock = ManualClock(T0 + 86_400 * NS_PER_S)
        self.report = Report("analyze", "test", self.clock)
        self.store = Store(folder)
        self.store.start()
        self.archive = Archive(self.store, config, self.clock, self.report)
        self.archive.start()
        self.publisher = Publisher(self.store, PublishConfig(), self.clock, self.report)
        self.publisher.start()

    def insert(self, seconds: list[int], table: str = "quality_1s") -> None:
        frame = pl.DataFrame({"ts": [T0 + s * NS_PER_S for s in seconds], "device": "d", "port": "p", "signal": "s", "late": seconds})
        with self.store.transaction():
            self.store.insert(f"base.{table}", stored(STATES["quality"], frame))

    def hot(self, table: str = "quality_1s") -> list[int]:
        return [
            int(str(row["s"]))
            for row in self.store.query(f"SELECT epoch(ts)::BIGINT - {T0 // NS_PER_S} AS s FROM base.{table} ORDER BY ts")
        ]

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in (self.folder / "segments").rglob("*.parquet"))

    def seen(self, table: str = "quality_1s") -> list[int]:
        """Return the rows that a reader of the newest snapshot sees."""
        self.publisher.publish()
        reader = Reader(self.folder)
        found = reader.frame(f"SELECT late FROM state.{table} ORDER BY late")["late"].to_list()
        reader.close()
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return an archive over an empty store."""
    one = Rig(tmp_path)
    yield one
    one.store.stop()


def test_hours_that_closed_long_ago_become_a_segment(rig: Rig) -> None:
    """Rows of whole hours more than ``hot_s`` before the newest one move; readers see each row once, before and after."""
    seconds = [0, 10, HOUR_S - 1, HOUR_S, 2 * HOUR_S + 5]
    rig.insert(seconds)
    assert rig.seen() == seconds
    rig.archive.run()
    assert rig.hot() == [HOUR_S, 2 * HOUR_S + 5]
    assert len(rig.files()) == 1
    assert rig.seen() == seconds
    rig.archive.run()
    assert len(rig.files()) == 1
    manifest = rig.store.query("SELECT name, path, rows, bytes, epoch_ns(from_ts) AS low, epoch_ns(to_ts) AS high FROM base.segments")
    size = (rig.folder / rig.files()[0]).stat().st_size
    assert [tuple(row.values()) for row in manifest] == [("quality_1s", rig.files()[0], 3, size, T0, T0 + (HOUR_S - 1) * NS_PER_S)]


def test_too_many_rows_are_cut_in_half(rig: Rig) -> None:
    """A table over ``hot_rows_max`` moves the older half of its time span, cut at a full minute."""
    seconds = list(range(0, 600, 5))
    rig.insert(seconds)
    rig.archive.run()
    assert rig.hot() == list(range(240, 600, 5))
    assert rig.seen() == seconds


def test_rows_that_come_late_for_their_segment_are_not_lost(rig: Rig) -> None:
    """A row older than a segment waits for the next one, and is seen meanwhile."""
    rig.insert([0, 3 * HOUR_S])
    rig.archive.run()
    rig.insert([7])
    assert rig.seen() == [0, 7, 3 * HOUR_S]
    rig.clock.advance(1)
    rig.archive.run()
    assert rig.hot() == [3 * HOUR_S]
    assert len(rig.files()) == 2
    assert rig.seen() == [0, 7, 3 * HOUR_S]


def test_coarse_rows_that_still_grow_stay(rig: Rig) -> None:
    """The newest row of a coarse table never moves, because the next batch adds to it."""
    rig.insert([HOUR_S] * 150, "quality_1h")
    rig.archive.run()
    assert rig.hot("quality_1h") == [HOUR_S] * 150


def test_a_failed_cut_changes_nothing(rig: Rig) -> None:
    """When a segment cannot be written its rows stay hot, and a later run moves them."""
    rig.insert([0, 3 * HOUR_S])
    blocked = rig.folder / "segments" / "quality_1s"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be made"):
        rig.archive.run()
    assert rig.seen() == [0, 3 * HOUR_S]
    blocked.unlink()
    rig.archive.run()
    assert rig.hot() == [3 * HOUR_S]
    assert rig.seen() == [0, 3 * HOUR_S]


def test_files_that_no_manifest_knows_are_removed(rig: Rig) -> None:
    """A segment that was written but not committed before a crash is garbage at the next start; the others stay."""
    rig.insert([0, 3 * HOUR_S])
    rig.archive.run()
    orphan = rig.folder / "segments" / "quality_1s" / "orphan.parquet"
    orphan.write_bytes(b"half")
    Archive(rig.store, CONFIG, rig.clock, rig.report).start()
    assert not orphan.exists()
    assert rig.seen() == [0, 3 * HOUR_S]


def test_old_segments_expire_after_their_grace(rig: Rig) -> None:
    """A segment older than the retention of its resolution leaves the manifest; its file is deleted when no query can use it."""
    rig.insert([0, 3 * HOUR_S])
    rig.archive.run()
    rig.clock.advance(2 * 86_400 - 1)
    rig.archive.run()
    assert rig.seen() == [0, 3 * HOUR_S]
    rig.clock.advance(2)
    rig.archive.run()
    assert len(rig.files()) == 1
    assert rig.seen() == [3 * HOUR_S]
    rig.clock.advance(GRACE_S + 1)
    rig.archive.run()
    assert rig.files() == []


def test_an_older_snapshot_still_finds_its_files(rig: Rig) -> None:
    """A snapshot opened before a cut or an expiry stays readable: its hot rows stay in it, and files stay for the grace time."""
    seconds = [0, 3 * HOUR_S]
    rig.insert(seconds)
    rig.seen()
    early = Reader(rig.folder)
    rig.archive.run()
    rig.seen()
    later = Reader(rig.folder)
    rig.clock.advance(3 * 86_400)
    rig.archive.run()
    rig.seen()
    for reader in (early, later):
        assert reader.frame("SELECT late FROM state.quality_1s ORDER BY late")["late"].to_list() == seconds
        reader.close()


def test_every_table_can_be_cut(rig: Rig) -> None:
    """Every history table, also one of unchanged rows, moves its old rows to a segment with the same columns."""
    tables = {name: table for name, table in base_tables().items() if name != "inventory"}
    stamps = {name: "start_ts" if "start_ts" in table.polars else "ts" for name, table in tables.items()}
    for name, table in tables.items():
        frame = pl.DataFrame({column: [None, None] for column in table.polars}, schema=table.polars)
        frame = frame.with_columns(pl.Series(stamps[name], [T0, T0 + 5 * HOUR_S * NS_PER_S]))
        frame = frame.with_columns(recv_ts=pl.lit(rig.clock.now_ns())) if "recv_ts" in table.polars else frame
        with rig.store.transaction():
            rig.store.insert(f"base.{name}", stored(table, frame))
    rig.archive.run()
    rig.publisher.publish()
    assert len(rig.files()) == len(stamps)
    reader = Reader(rig.folder)
    for name, ts in stamps.items():
        rows = reader.frame(f"SELECT epoch_ns({ts}) AS ts FROM state.{name} ORDER BY ts")["ts"].to_list()
        assert rows == [T0, T0 + 5 * HOUR_S * NS_PER_S], name
        base, state = (reader.frame(f"DESCRIBE {schema}.{name}").select("column_name", "column_type") for schema in ("base", "state"))
        assert base.equals(state), name
    reader.close()


def test_what_is_kept_as_it_comes_expires_by_its_receipt(tmp_path: Path) -> None:
    """Rows of families are deleted when the last row received is thirty days newer; a store of an old recording keeps its rows."""
    rig = Rig(tmp_path)
    now = rig.clock.now_ns()
    recorded = pl.DataFrame({"ts": [T0], "recv_ts": [T0], "device": ["recorded"], "what": ["packets"]})
    with rig.store.transaction():
        rig.store.insert("base.gap", stored(FAMILIES["gap"], recorded))
    frame = pl.DataFrame({"ts": [now, now], "recv_ts": [now - 31 * 86_400 * NS_PER_S, now], "device": ["old", "new"]})
    with rig.store.transaction():
        rig.store.insert("base.event", stored(FAMILIES["event"], frame))
    rig.archive.run()
    assert [row["device"] for row in rig.store.query("SELECT device FROM base.event")] == ["new"]
    assert [row["device"] for row in rig.store.query("SELECT device FROM base.gap")] == ["recorded"]
    rig.store.stop()


def test_the_writer_itself_sees_every_row_at_once(rig: Rig) -> None:
    """Rules are evaluated on the writer's own views right after storing, so these have moved and bulk rows before a snapshot exists."""
    seconds = [0, 3 * HOUR_S]
    rig.insert(seconds)
    rig.archive.run()
    frame = pl.DataFrame({"ts": [T0 + 4 * HOUR_S * NS_PER_S], "device": "d", "port": "p", "signal": "s", "late": [5]})
    rows = stored(STATES["quality"], STATES["quality"].empty().clear().select(frame.columns).vstack(frame.cast({"late": pl.UInt64})))
    with rig.store.transaction():
        rig.archive.bulk("quality_1s", rows)
    with pytest.raises(ZeroDivisionError), rig.store.transaction():
        rig.archive.bulk("quality_1s", rows)
        raise ZeroDivisionError
    assert [row["late"] for row in rig.store.query("SELECT late FROM state.quality_1s ORDER BY ts")] == [*seconds, 5]
    rig.clock.advance(3 * 86_400)
    rig.archive.run()
    assert [row["late"] for row in rig.store.query("SELECT late FROM state.quality_1s ORDER BY ts")] == [3 * HOUR_S]
