"""The SQL console: permitted queries are answered, and a list of attacks is refused."""

import hashlib
import os
from pathlib import Path

import polars as pl
import psutil
import pytest

from weft.analytics.console import ConsoleConfig, answer, verify
from weft.analytics.store.publish import PublishConfig, Publisher
from weft.analytics.store.reader import Reader
from weft.analytics.store.writer import Store
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import StoreError
from weft.pipeline.report import Report

SECRET = "WEFT_CONSOLE_SECRET"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a published store with a few rows, a file of raw samples, and a secret beside it."""
    root = tmp_path_factory.mktemp("console")
    (root / "secret.csv").write_text(f"a,b\n{SECRET},2\n")
    store = Store(root / "store")
    store.start()
    with store.transaction():
        columns = "make_timestamp_ns(k * 1000000000) AS ts, 'd' || (k % 3) AS device, k AS missed"
        store.execute(f"INSERT INTO base.gap BY NAME SELECT {columns} FROM range(100) t(k)")
        store.execute("INSERT INTO base.gap BY NAME SELECT make_timestamp_ns(0) AS ts, 'it''s; --' AS device, 7 AS missed")
    pl.DataFrame({"x": [1, 2]}).write_parquet(root / "store" / "samples" / "1.parquet")
    clock = SystemClock()
    Publisher(store, PublishConfig(), clock, Report("test", "here", clock)).start()
    store.stop()
    return root / "store"


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the content of every file below the folder's parent."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.parent.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def reader(folder: Path):
    """Return a plain reader, for checks before a query runs."""
    opened = Reader(folder)
    yield opened
    opened.close()


READS = {
    "SELECT count(*) FROM gaps": 1,
    "FROM gaps": 101,
    "from gaps limit 3;": 3,
    "-- a comment\n/* and; another */ SELECT 1": 1,
    "WITH x AS (SELECT 1 AS a) SELECT a FROM x": 1,
    "(SELECT 1) UNION ALL (SELECT 2)": 2,
    "VALUES (1), (2)": 2,
    "DESCRIBE gaps": 8,
    "SUMMARIZE gaps": 8,
    "EXPLAIN SELECT 1": 1,
    "EXPLAIN ANALYZE SELECT count(*) FROM gaps": 1,
    "EXPLAIN (FORMAT json) SELECT 1": 1,
    "PIVOT gaps ON device IN ('d0', 'd1') USING sum(missed) GROUP BY reason": 1,
    "PIVOT gaps ON device USING sum(missed) GROUP BY reason": 1,
    "SELECT * FROM (PIVOT gaps ON device USING sum(missed) GROUP BY reason)": 1,
    "SELECT ';' AS a": 1,
    "SELECT * FROM gaps WHERE device = 'it''s; --'": 1,
    "SELECT weft_quantile([{'i': 5, 'c': 2}], 0.5) AS q": 1,
    "SELECT count(*) FROM read_parquet('{folder}/samples/1.parquet')": 1,
}


@pytest.mark.parametrize("sql", READS)
def test_what_reads_is_answered(sql, folder):
    """Every kind of query that only reads gives its rows, with its time."""
    result = answer(folder, sql.replace("{folder}", str(folder)))
    assert result.frame.height == READS[sql]
    assert not result.cut
    assert result.elapsed_s >= 0


def test_the_rows_are_those_of_the_store(folder):
    """The answer is the store's content, types and times included."""
    frame = answer(folder, "SELECT ts, device, missed FROM gaps WHERE device = 'd1' ORDER BY ts LIMIT 2").frame
    assert frame.schema == {"ts": pl.Datetime("ns"), "device": pl.String, "missed": pl.UInt64}
    assert frame["missed"].to_list() == [1, 4]


REFUSED = [
    "COPY (SELECT 1) TO '{folder}/samples/x.csv'",
    "COPY gaps TO '{folder}/segments/x.parquet' (FORMAT parquet)",
    "COPY gaps FROM '/etc/passwd'",
    "EXPORT DATABASE '{folder}/segments/dump'",
    "IMPORT DATABASE '{folder}/segments/dump'",
    "ATTACH '{folder}/hot.duckdb' AS h",
    "ATTACH ':memory:' AS m",
    "DETACH current",
    "INSTALL httpfs",
    "LOAD httpfs",
    "FORCE INSTALL spatial FROM community",
    "SET memory_limit = '100GB'",
    "SET GLOBAL enable_external_access = true",
    "RESET lock_configuration",
    "SET VARIABLE x = 1",
    "USE base",
    "PRAGMA database_list",
    "PRAGMA threads=64",
    "PRAGMA enable_profiling",
    "PRAGMA profiling_output='{folder}/samples/p.json'",
    "CREATE TABLE t (a INTEGER)",
    "CREATE TEMP TABLE t AS SELECT * FROM gaps",
    "CREATE OR REPLACE VIEW gaps AS SELECT 1",
    "CREATE MACRO f(a) AS a",
    "CREATE SECRET s (TYPE s3)",
    "CREATE TYPE pivot AS ENUM ('a'); SELECT 1 AS pivot",
    "INSERT INTO base.gap SELECT * FROM base.gap",
    "WITH x AS (SELECT * FROM base.gap) INSERT INTO base.gap SELECT * FROM x",
    "WITH x AS (SELECT 1) DELETE FROM base.gap",
    "UPDATE base.gap SET missed = 0",
    "DELETE FROM base.gap",
    "MERGE INTO base.gap USING base.gap g ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE base.gap",
    "DROP VIEW gaps",
    "ALTER TABLE base.gap ADD COLUMN z INTEGER",
    "BEGIN",
    "COMMIT",
    "CHECKPOINT",
    "VACUUM",
    "ANALYZE",
    "CALL pragma_version()",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW gaps",
    "SELECT 1 /* */; /* */ COPY (SELECT 1) TO '{folder}/samples/x.csv'",
    "PIVOT gaps ON device USING sum(missed); COPY gaps TO '{folder}/samples/x.csv'",
    "EXPLAIN COPY (SELECT 1) TO '{folder}/samples/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/samples/x.csv'",
    "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{folder}/samples/x.csv'",
    "EXPLAIN ANALYZE DELETE FROM base.gap",
    "EXPLAIN EXPLAIN ANALYZE DELETE FROM base.gap",
    "EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{folder}/samples/x.csv'",
    "",
    "   -- nothing",
    "SELEC 1",
    "SELECT",
    "\x00",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_what_does_not_read_is_refused_before_it_runs(sql, reader, folder):
    """Statements that write, set, load or attach, and several statements at once, are refused by the parser's classification."""
    with pytest.raises(StoreError):
        verify(reader, sql.replace("{folder}", str(folder)))


ESCAPES = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "FROM '/etc/passwd'",
    "SELECT * FROM read_text('/etc/hostname')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_csv('{folder}/../secret.csv')",
    "SELECT * FROM read_csv('{folder}/samples/../../secret.csv')",
    "SELECT * FROM read_text('{folder}/hot.duckdb')",
    "SELECT * FROM read_json('/dev/stdin')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "FROM glob('/*')",
    "FROM glob('{folder}/../*')",
    "FROM parquet_scan('/tmp/*.parquet')",
    "FROM 'https://example.invalid/x.parquet'",
    "FROM 's3://bucket/x.parquet'",
    "FROM sqlite_scan('/tmp/x', 't')",
    "FROM postgres_scan('host=localhost', 'public', 't')",
    "SELECT getenv('PATH')",
    "FROM duckdb_secrets()",
    "FROM query('COPY (SELECT 1) TO ''{folder}/samples/x.csv''')",
    "FROM query('DROP VIEW gaps')",
    "FROM sql",
    "FROM reader",
    "FROM config",
    "SELECT * FROM request",
]


@pytest.mark.parametrize("sql", ESCAPES)
def test_a_query_cannot_leave_the_store(sql, folder):
    """A query that reads another file, the network, the environment or this program fails, and reveals nothing of it."""
    before = fingerprint(folder)
    with pytest.raises(StoreError) as caught:
        answer(folder, sql.replace("{folder}", str(folder)))
    assert SECRET not in str(caught.value)
    assert "root:" not in str(caught.value)
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    "sql", ["COPY (SELECT 1) TO '{folder}/samples/1.parquet'", "EXPORT DATABASE '{folder}/samples/dump'", "DELETE FROM base.gap"]
)
def test_nothing_is_written_even_where_it_may_read(sql, folder):
    """The folders that a query may read stay byte for byte as they are."""
    before = fingerprint(folder)
    with pytest.raises(StoreError):
        answer(folder, sql.replace("{folder}", str(folder)))
    assert fingerprint(folder) == before


def test_the_child_could_not_write_a_file_if_it_tried(folder, children):
    """Without the first barrier, the limits of the child process stop a write: the file is not changed."""
    before = fingerprint(folder)
    program = """
import sys
from pathlib import Path
from weft.analytics.console import ConsoleConfig, _limit
from weft.analytics.store.reader import Reader
_limit(ConsoleConfig())
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
try:
    Reader(folder, sandbox=True).frame(f"COPY (SELECT * FROM range(100000)) TO '{folder}/samples/new.csv'")
except Exception as error:
    print(type(error).__name__)
"""
    child = children(program, str(folder))
    said, _ = child.communicate(timeout=60)
    written = folder / "samples" / "new.csv"
    size = written.stat().st_size if written.exists() else 0
    written.unlink(missing_ok=True)
    assert said.strip() == "StoreError"
    assert size == 0
    assert fingerprint(folder) == before


GREEDY = {
    "a cross join": "SELECT max(sin(a.range + b.range)) FROM range(10000000) a, range(10000000) b",
    "endless recursion": "WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t",
    "a list of everything": "SELECT list(a.range) FROM range(100000) a, range(100000) b",
    "a huge list": "SELECT range(4000000000)",
    "a huge text": "SELECT repeat('x', 1000000000)",
    "a huge sort": "SELECT a.range AS x, md5(a.range::VARCHAR) AS y FROM range(50000000) a ORDER BY y",
    "a wide answer": "SELECT unnest(range(5000)), repeat('abcdefgh', 10000)",
}


@pytest.mark.parametrize("what", GREEDY)
def test_a_greedy_query_is_stopped(what, folder):
    """A query that needs too much time, memory or output fails with a message, and leaves no process behind."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(StoreError, match=r"longer than 1 s|emory|larger than"):
        answer(folder, GREEDY[what], ConsoleConfig(timeout_s=1.0))
    after = {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}
    assert after <= before


def test_a_long_answer_is_cut(folder):
    """More rows than the limit are cut there, and the result reports it."""
    result = answer(folder, "FROM range(50000)", ConsoleConfig(rows_max=1000))
    assert result.frame["range"].to_list() == list(range(1000))
    assert result.cut


@pytest.mark.parametrize("rows", [999, 1000])
def test_an_answer_within_the_limit_is_whole(rows, folder):
    """As many rows as the limit are not cut."""
    result = answer(folder, f"FROM range({rows})", ConsoleConfig(rows_max=1000))
    assert (result.frame.height, result.cut) == (rows, False)


def test_a_query_without_rows_keeps_its_columns(folder):
    """An empty answer still has its columns."""
    result = answer(folder, "SELECT device, missed FROM gaps WHERE false")
    assert result.frame.schema == {"device": pl.String, "missed": pl.UInt64}
    assert result.frame.height == 0


def test_a_wrong_query_is_told_in_duckdbs_words(folder):
    """A column that does not exist is named in the error."""
    with pytest.raises(StoreError, match="no_such_column"):
        answer(folder, "SELECT no_such_column FROM gaps")


def test_a_query_that_is_too_long_is_refused(folder):
    """A query over the limit of characters starts no process."""
    with pytest.raises(StoreError, match="longer than 10,000 characters"):
        answer(folder, "SELECT " + "1," * 6000 + "1")


def test_nothing_published_is_said(tmp_path):
    """Without a snapshot the error has a hint how to get one."""
    with pytest.raises(StoreError, match="nothing is published"):
        answer(tmp_path, "SELECT 1")


def test_the_console_does_not_disturb_this_process(folder):
    """A plain reader beside the console keeps its own settings: the sandbox is another process."""
    opened = Reader(folder)
    answer(folder, "SELECT 1")
    again = Reader(folder)
    assert again.frame("SELECT current_setting('enable_external_access') AS open")["open"].to_list() == [True]
    opened.close()
    again.close()


def test_the_child_gets_none_of_our_environment(folder, monkeypatch):
    """The child does not get the parent's environment, and cannot read it from the file system."""
    monkeypatch.setenv("WEFT_TOKEN", SECRET)
    from weft.analytics.console import _environment

    assert SECRET not in _environment(os.environ).values()
