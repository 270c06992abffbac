"""The store: one writer, readers at any time, and no stored row is lost by a kill, a full disk or a failure."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest

from weft.analytics.store.archive import Archive, ArchiveConfig
from weft.analytics.store.ddl import base_tables, stored
from weft.analytics.store.light_reader import is_locked, light_reader
from weft.analytics.store.publish import PublishConfig, Publisher
from weft.analytics.store.reader import Reader
from weft.analytics.store.writer import GROUP_ROWS, STORAGE_VERSION, TABLES_VERSION, Store
from weft.pipeline.clock import ManualClock, SystemClock
from weft.pipeline.errors import StoreError
from weft.pipeline.report import Report
from weft.pipeline.tables.states import STATES

Children = Callable[..., "subprocess.Popen[str]"]

OPEN = """
import sys
from pathlib import Path
from weft.analytics.store.writer import Store
from weft.pipeline.errors import StoreError
store = Store(Path(sys.argv[1]))
try:
    store.start()
    print("open", flush=True)
except StoreError as error:
    print(error, flush=True)
sys.stdin.read()
store.stop()
"""

WRITE_FOR_EVER = """
import sys
from pathlib import Path
import polars as pl
from weft.analytics.store.writer import Store, StoreConfig
store = Store(Path(sys.argv[1]), StoreConfig(wal_bytes_max=200_000))
store.start()
store.execute("CREATE TABLE IF NOT EXISTS base.one (n BIGINT, text VARCHAR)")
store.execute("CREATE TABLE IF NOT EXISTS base.other (n BIGINT)")
n = store.query("SELECT coalesce(max(n), 0) AS n FROM base.other")[0]["n"]
while True:
    n += 1
    with store.transaction():
        store.insert("base.one", pl.DataFrame({"n": [n] * 100, "text": ["x" * 50] * 100}))
        store.execute("INSERT INTO base.other VALUES (?)", [n])
    print(n, flush=True)
"""


def publisher(store: Store) -> Publisher:
    clock = SystemClock()
    return Publisher(store, PublishConfig(), clock, Report("analyze", "test", clock))


@pytest.fixture
def stores() -> Iterator[Callable[[Path], Store]]:
    """Open stores; they are closed after the test."""
    opened: list[Store] = []

    def open_one(folder: Path) -> Store:
        store = Store(folder)
        store.start()
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.stop()


def attempt(children: Children, folder: Path) -> str:
    """Return the output of another process that tries to write the store."""
    child = children(OPEN, str(folder))
    said, _ = child.communicate("", timeout=60)
    return said.strip()


def test_a_second_writer_is_refused(stores: Callable[[Path], Store], children: Children, tmp_path: Path) -> None:
    """A second writing process gets a one-sentence error; after the first has closed it may write."""
    store = stores(tmp_path)
    assert attempt(children, tmp_path) == f"store: another process writes {tmp_path}; stop it, or choose another folder with --data"
    store.stop()
    assert attempt(children, tmp_path) == "open"


def test_a_second_writer_is_refused_after_snapshots_too(stores: Callable[[Path], Store], children: Children, tmp_path: Path) -> None:
    """Publishing copies the file under the lock; the lock must survive that, or two writers would destroy the store."""
    store = stores(tmp_path)
    publishing = publisher(store)
    publishing.start()
    with store.transaction():
        store.execute("CREATE TABLE base.mine (n BIGINT)")
    assert publishing.publish()
    assert "another process writes" in attempt(children, tmp_path)


def test_whether_a_store_is_written_can_be_asked(children: Children, tmp_path: Path) -> None:
    """``is_locked`` is true with a writer in another process, and false without."""
    assert not is_locked(tmp_path)
    child = children(OPEN, str(tmp_path))
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    assert is_locked(tmp_path)
    child.communicate("", timeout=60)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("before", [None, 262_144])
def test_new_stores_have_small_blocks(stores: Callable[[Path], Store], tmp_path: Path, before: int | None) -> None:
    """A new store has blocks of 16 KiB, an existing one keeps its own."""
    if before is not None:
        duckdb.connect(
            str(tmp_path / "hot.duckdb"), config={"default_block_size": before, "storage_compatibility_version": STORAGE_VERSION}
        ).close()
    store = stores(tmp_path)
    sizes = store.query("SELECT block_size AS n FROM pragma_database_size() WHERE database_name = 'hot'")
    assert sizes == [{"n": before or 16_384}]


def test_groups_of_rows_are_small(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """A checkpoint rewrites the last row group of a table, so groups are small, also in a store that was created with large ones."""
    duckdb.connect(str(tmp_path / "hot.duckdb"), config={"storage_compatibility_version": STORAGE_VERSION}).close()
    store = stores(tmp_path)
    store.execute("CREATE TABLE main.many AS SELECT range AS n FROM range(10_000)")
    store.checkpoint()
    groups = store.query(
        "SELECT row_group_id AS g, sum(count) AS n FROM pragma_storage_info('many') WHERE segment_type = 'BIGINT' GROUP BY g"
    )
    assert sum(int(str(group["n"])) for group in groups) == 10_000
    assert max(int(str(group["n"])) for group in groups) <= GROUP_ROWS


def test_what_rests_is_in_the_file(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """A store at rest caches almost nothing of what was written, and answers as before."""
    store = stores(tmp_path)
    store.execute("CREATE TABLE main.many AS SELECT range AS n, hash(range) AS h FROM range(3_000_000)")
    store.checkpoint()
    kept = "SELECT sum(memory_usage_bytes)::BIGINT AS n FROM duckdb_memory()"
    before = int(str(store.query(kept)[0]["n"]))
    store.rest()
    assert int(str(store.query(kept)[0]["n"])) < before / 2
    assert store.query("SELECT count(DISTINCT h) AS n FROM main.many") == [{"n": 3_000_000}]
    assert store.query("SELECT current_setting('memory_limit') AS m") == [{"m": "128.0 MiB"}]


def test_a_look_by_plain_rows(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """A published store can be queried without frames and cannot be changed; no store or a wrong query is one clear error."""
    with pytest.raises(StoreError, match="published"), light_reader(tmp_path / "nowhere"):
        pass
    store = stores(tmp_path)
    publisher(store).start()
    with light_reader(store.folder) as query:
        assert query("SELECT count(*), ? FROM ports_1s", ["x"]) == [(0, "x")]
        with pytest.raises(duckdb.Error):
            query("CREATE TABLE mine (n BIGINT)")
    with pytest.raises(StoreError, match="ports_9s"), light_reader(store.folder) as query:
        query("FROM ports_9s")
    with light_reader() as query:
        assert query("SELECT 1") == [(1,)]


def test_a_store_that_was_moved_says_how_to_publish_it_anew(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """The views of a snapshot name files where they were; after a move a query reports it, and the next publication fixes it."""
    store = stores(tmp_path / "old" / "store")
    frame = pl.DataFrame([dict.fromkeys(STATES["quality"].polars) | {"ts": 10**18, "device": "d"}], schema=STATES["quality"].polars)
    archive = Archive(store, ArchiveConfig(), ManualClock(), Report("analyze", "test", ManualClock()))
    with store.transaction():
        archive.bulk("quality_1s", stored(STATES["quality"], frame))
    publisher(store).start()
    store.stop()
    (tmp_path / "old").rename(tmp_path / "new")
    reader = Reader(tmp_path / "new" / "store")
    with pytest.raises(StoreError, match=r"was moved or copied.*weft analyze --seconds 3 --data .*new"):
        reader.frame("FROM quality_1s")
    reader.close()
    publisher(stores(tmp_path / "new" / "store")).start()
    reader = Reader(tmp_path / "new" / "store")
    assert reader.frame("SELECT device FROM quality_1s").rows() == [("d",)]
    reader.close()


def test_a_newer_store_is_refused_and_let_go(stores: Callable[[Path], Store], children: Children, tmp_path: Path) -> None:
    """Tables of a newer Weft are not changed, and the refused store is not locked."""
    store = stores(tmp_path)
    store.execute("UPDATE base.version SET version = ?", [TABLES_VERSION + 1])
    store.stop()
    newer = Store(tmp_path)
    with pytest.raises(StoreError, match=r"newer Weft .*upgrade weft"):
        newer.start()
    assert "newer Weft" in attempt(children, tmp_path)
    with duckdb.connect(str(tmp_path / "hot.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT version FROM base.version").fetchall() == [(TABLES_VERSION + 1,)]


def test_a_store_opens_again_and_keeps_its_tables(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """Starting on an existing store creates what is missing and keeps what is there."""
    store = stores(tmp_path)
    with store.transaction():
        store.execute("INSERT INTO base.positions (topic, part, next_offset) VALUES ('t', 1, 5)")
    store.execute("DROP TABLE base.gap")
    store.stop()
    again = stores(tmp_path)
    assert again.query("SELECT * FROM base.positions") == [
        {"topic": "t", "part": 1, "next_offset": 5, "unfolded_10s": None, "unfolded_1m": None, "unfolded_1h": None}
    ]
    listed = {row["name"] for row in again.query("SELECT table_name AS name FROM duckdb_tables() WHERE schema_name = 'base'")}
    assert listed == {*base_tables(), "version", "positions", "segments", "ring"}


def test_the_one_mark_of_an_older_store_becomes_one_for_each_resolution(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """Rows that an older store had not folded are marked as unfolded for every coarser table."""
    store = stores(tmp_path)
    for resolution in ("10s", "1m", "1h"):
        store.execute(f"ALTER TABLE base.positions DROP COLUMN unfolded_{resolution}")
    store.execute("ALTER TABLE base.positions ADD COLUMN unfolded BIGINT")
    store.execute("INSERT INTO base.positions VALUES ('t', 0, 9, 4), ('t', 1, 5, NULL)")
    store.stop()
    rows = stores(tmp_path).query("SELECT * FROM base.positions ORDER BY part")
    assert [tuple(row.values()) for row in rows] == [("t", 0, 9, 4, 4, 4), ("t", 1, 5, None, None, None)]


def test_the_file_opens_in_every_duckdb_that_is_promised(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """The storage version is fixed, so that an older client can read the snapshots."""
    store = stores(tmp_path)
    tags = store.query("SELECT tags FROM duckdb_databases() WHERE path IS NOT NULL")[0]["tags"]
    assert STORAGE_VERSION.removesuffix(".0") in str(tags)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in place of the folder gives a one-sentence error with a hint."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written: .*; choose another folder with --data"):
        Store(tmp_path / "file" / "store").start()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A damaged database is a ``StoreError``, no traceback."""
    (tmp_path / "hot.duckdb").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError):
        Store(tmp_path).start()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """Work on a store that is not open is refused; closing twice is fine."""
    store = Store(tmp_path)
    store.stop()
    with pytest.raises(StoreError, match="the store is closed"):
        store.query("SELECT 1")


def test_a_transaction_is_whole_or_nothing(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """A failure inside a block rolls all of it back, counts as no write, and DuckDB's errors become ``StoreError``."""
    store = stores(tmp_path)
    before = store.writes
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), store.transaction():
            store.execute("INSERT INTO base.positions (topic, part, next_offset) VALUES ('t', 1, 5)")
            raise error
    with pytest.raises(StoreError), store.transaction():
        store.execute("INSERT INTO base.positions (topic, part, next_offset) VALUES ('t', 1, 5)")
        store.insert("base.positions", pl.DataFrame({"unknown": [1]}))
    assert store.query("SELECT * FROM base.positions") == []
    assert store.writes == before
    with store.transaction():
        store.execute("INSERT INTO base.positions (topic, part, next_offset) VALUES ('t', 1, 5)")
    assert store.writes == before + 1


def test_a_writer_that_is_killed_leaves_whole_transactions(stores: Callable[[Path], Store], children: Children, tmp_path: Path) -> None:
    """After ``kill -9`` at any moment the store opens with every acknowledged transaction, and none in part."""
    for _ in range(2):
        child = children(WRITE_FOR_EVER, str(tmp_path))
        assert child.stdout is not None
        last = [int(child.stdout.readline()) for _ in range(25)][-1]
        os.kill(child.pid, signal.SIGKILL)
        last = max([last, *(int(line) for line in child.stdout.read().splitlines() if line)])
        child.wait(60)
        store = stores(tmp_path)
        rows = store.query("SELECT count(*) AS n, max(n) AS top FROM base.other")[0]
        whole = store.query("SELECT n FROM base.one GROUP BY n HAVING count(*) = 100")
        assert rows["n"] == rows["top"] == len(whole)
        assert last <= int(str(rows["top"])) <= last + 1
        store.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 24 MB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted: this needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_survived(small_disk: Path) -> None:
    """On a full disk the transaction fails with one sentence, stored rows stay, and with space again all continues."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(12 * 1024 * 1024))
    store = Store(small_disk / "store")
    store.start()
    store.execute("CREATE TABLE base.bulk (n BIGINT, text VARCHAR)")
    stored = 0
    with pytest.raises(StoreError, match="is full; free space"):
        for n in range(500):
            texts = pl.select(pl.int_range(20_000).hash(n).cast(pl.String).alias("text"))["text"]
            with store.transaction():
                store.insert("base.bulk", pl.DataFrame({"n": [n] * 20_000, "text": texts}))
            stored += 1
            store.checkpoint()
    assert stored > 1
    filler.unlink()
    store.stop()
    store.start()
    count = "SELECT count(*) AS n, count(DISTINCT n) AS parts FROM base.bulk"
    # A transaction may have been written completely before its checkpoint found the disk full.
    assert store.query(count)[0] in [{"n": parts * 20_000, "parts": parts} for parts in (stored, stored + 1)]
    before = int(str(store.query(count)[0]["n"]))
    with store.transaction():
        store.insert("base.bulk", pl.DataFrame({"n": [-1], "text": ["after"]}))
    store.checkpoint()
    assert store.query(count)[0]["n"] == before + 1
    store.stop()


def test_a_snapshot_that_finds_no_room_leaves_the_last_one(small_disk: Path) -> None:
    """Publishing on a full disk is an error; readers keep their snapshot, and no partial file stays."""
    store = Store(small_disk / "store")
    store.start()
    publishing = publisher(store)
    publishing.start()
    with store.transaction():
        store.execute("CREATE TABLE base.later (n BIGINT)")
    store.checkpoint()
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - 64 * 1024))
    with pytest.raises(StoreError):
        publishing.publish()
    assert not list((small_disk / "store" / "snapshots").glob("*.part"))
    reader = Reader(small_disk / "store")
    assert reader.frame("SELECT count(*) AS n FROM ports_1s")["n"].to_list() == [0]
    reader.close()
    (small_disk / "filler").unlink()
    assert publishing.publish()
    store.stop()


@pytest.mark.parametrize("name", ["it's", 'double"quote', "glob[a]*", "blank and ünïcode", "semi;colon--"])
def test_any_folder_name_will_do(stores: Callable[[Path], Store], tmp_path: Path, name: str) -> None:
    """The data path may contain characters that are special in SQL or in patterns."""
    folder = tmp_path / name
    publishing = publisher(stores(folder))
    publishing.start()
    for sandbox in (False, True):
        reader = Reader(folder, sandbox=sandbox)
        assert reader.frame("SELECT count(*) AS n FROM samples")["n"].to_list() == [0]
        reader.close()


def test_reading_before_anything_is_published_says_what_to_do(tmp_path: Path) -> None:
    """A reader of an empty folder gets a one-sentence error with a hint."""
    with pytest.raises(StoreError, match=r"nothing is published in .* start 'weft up'"):
        Reader(tmp_path)


def test_a_reader_says_what_is_wrong_with_a_query(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """A wrong query is a ``StoreError`` with DuckDB's message; a valid one can be limited in rows."""
    publisher(stores(tmp_path)).start()
    reader = Reader(tmp_path)
    with pytest.raises(StoreError, match="colour"):
        reader.frame("SELECT colour FROM ports_1s")
    assert reader.frame("SELECT * FROM range(10) t(n)", rows_max=3).height <= 4
    assert reader.frame("SELECT n FROM range(10) t(n) WHERE n > 99", rows_max=3).columns == ["n"]
    reader.close()
    reader.close()


def test_a_reader_cannot_write(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """The published file is open for reading only."""
    publisher(stores(tmp_path)).start()
    reader = Reader(tmp_path)
    for statement in ("DELETE FROM base.gap", "CREATE TABLE x (n INT)", "DROP VIEW ports_1s"):
        with pytest.raises(StoreError, match="read-only"):
            reader.frame(statement)
    reader.close()


def test_a_sandbox_has_no_way_out(stores: Callable[[Path], Store], tmp_path: Path) -> None:
    """A sandboxed reader reads no other file, loads nothing, and cannot change its own limits."""
    publisher(stores(tmp_path)).start()
    (tmp_path / "secret.csv").write_text("a\n1\n")
    reader = Reader(tmp_path, sandbox=True)
    for statement in (
        f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
        f"SELECT * FROM read_text('{tmp_path}/snapshots/../secret.csv')",
        f"SELECT * FROM read_text('{tmp_path}/segments/../secret.csv')",
        f"ATTACH '{tmp_path}/hot.duckdb' AS hot",
        "INSTALL httpfs",
        "SET memory_limit = '10GB'",
        "SET enable_external_access = true",
    ):
        with pytest.raises(StoreError):
            reader.frame(statement)
    assert reader.frame("SELECT count(*) AS n FROM ports_1s")["n"].to_list() == [0]
    reader.close()
