"""The SQL console: untrusted queries on the published store, which can read the store and nothing else.

Three barriers, because none is enough alone:

1. ``verify`` accepts one read-only statement, as parsed by DuckDB, because DuckDB can write into a directory that it may read
   (``COPY ... TO``).
2. The connection is sandboxed (``Reader``): no other file, no network, no extension, no setting, bounded memory.
3. The query runs in a child process: two connections of one process to one file share their settings, a query that ignores an
   interrupt must be killed, and the child has an empty environment and resource limits that let it write no file.

The child (``python -m weft.analytics.console``) reads one JSON object from standard input and writes one line of JSON
and an Arrow stream to standard output.
"""

import io
import json
import logging
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ..pipeline.clock import NS_PER_S, Clock, SystemClock
from ..pipeline.errors import StoreError
from .store.reader import Reader

# A child that has not answered this long after the time limit ignores the interrupt and is killed.
KILL_AFTER_S = 2.0

# Allowed for starting Python and opening the snapshot.
START_S = 10.0

# Address space of the child beyond the limit of the query: code, allocator arenas, thread stacks.
OVERHEAD_BYTES = 3 * 1024**3

FIRST_WORDS = ("SELECT", "FROM", "WITH", "VALUES", "TABLE", "DESCRIBE", "DESC", "SHOW", "SUMMARIZE", "EXPLAIN", "PIVOT", "UNPIVOT")

_SKIPPED = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.S)
_EXPLAIN = re.compile(r"EXPLAIN\b\s*(?:ANALYZE\b)?\s*(?:\(\s*(?:ANALYZE\s*,?\s*)?(?:FORMAT\s+\w+\s*)?\))?", re.I)
_PASSED_VARIABLES = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "SYSTEMROOT")

log = logging.getLogger("weft")


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """The limits of one query. Beyond ``rows_max`` the rows are cut; beyond the other limits the query fails."""

    timeout_s: float = 10.0
    rows_max: int = 10_000
    result_bytes_max: int = 16 * 1024**2
    memory_bytes_max: int = 256 * 1024**2
    query_chars_max: int = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query; ``cut`` if there were more. ``elapsed_s`` excludes the start of the child."""

    frame: pl.DataFrame
    cut: bool
    elapsed_s: float


def verify(reader: Reader, sql: str) -> None:
    """Accept one read-only statement.

    Raises:
        StoreError: anything else; the message lists what is accepted.
    """
    start = _SKIPPED.match(sql)
    text = sql[start.end() :] if start else sql
    word = re.match(r"[\s(]*(\w*)", text)
    first = word[1].upper() if word else ""
    kinds = reader.statement_kinds(sql)
    if not kinds:
        raise StoreError("there is no query", "write one, such as: FROM devices")
    if first not in FIRST_WORDS:
        raise StoreError(f"{first or 'this'} is not admitted here", f"the console only reads; begin with one of {', '.join(FIRST_WORDS)}")
    if first == "EXPLAIN":
        _verify_explained(reader, text)
        return
    # DuckDB turns a PIVOT without an explicit list of columns into two statements: a temporary type, then the query.
    if kinds == ["SELECT"] or (kinds == ["CREATE", "SELECT"] and re.search(r"\bPIVOT", text, re.I) and not _several(text)):
        return
    if len(kinds) > 1:
        raise StoreError(f"there are {len(kinds)} statements", "run one at a time")
    raise StoreError(f"{kinds[0]} is not admitted here", "the console only reads; write a SELECT")


def _verify_explained(reader: Reader, text: str) -> None:
    head = _EXPLAIN.match(text)
    inner = text[head.end() :] if head else ""
    word = re.match(r"[\s(]*(\w*)", inner)
    if not word or word[1].upper() not in FIRST_WORDS or word[1].upper() == "EXPLAIN" or reader.statement_kinds(inner) != ["SELECT"]:
        raise StoreError("only a query can be explained", "write EXPLAIN SELECT ...")


def _several(text: str) -> bool:
    """Return whether there may be two statements: a semicolon inside quotes counts too, which only refuses more."""
    return ";" in text.rstrip().rstrip(";")


def answer(folder: Path, sql: str, config: ConsoleConfig | None = None) -> Answer:
    """Run one query in a child process and return its rows.

    Raises:
        StoreError: the query is refused, wrong, or beyond a limit.
    """
    config = config or ConsoleConfig()
    if len(sql) > config.query_chars_max:
        raise StoreError(f"the query is longer than {config.query_chars_max:,} characters", "shorten it, or use 'weft sql'")
    request = json.dumps({"folder": str(folder), "sql": sql, "config": asdict(config)}).encode()
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(os.environ),
        start_new_session=True,
    )
    try:
        reply, _ = child.communicate(request, config.timeout_s + KILL_AFTER_S + START_S)
    except BaseException as error:
        child.kill()
        child.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise _too_long(config) from None
        raise
    result = _read(reply, child.returncode, config)
    log.info("console query of %d characters: %d rows in %.3f s", len(sql), result.frame.height, result.elapsed_s)
    return result


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in _PASSED_VARIABLES if name in environment}


def _too_long(config: ConsoleConfig) -> StoreError:
    return StoreError(
        f"the query took longer than {config.timeout_s:g} s and was stopped", "narrow it with a WHERE on ts, or query a coarser view"
    )


def _read(reply: bytes, code: int, config: ConsoleConfig) -> Answer:
    line, _, body = reply.partition(b"\n")
    if not line:
        if code == _CODE_TOO_LONG:
            raise _too_long(config)
        raise StoreError("the query needed more memory than it may have and was stopped", "narrow it with a WHERE on ts, or aggregate")
    head = json.loads(line)
    if "problem" in head:
        raise StoreError(head["problem"], head["hint"])
    return Answer(pl.read_ipc_stream(io.BytesIO(body)), head["cut"], head["elapsed_s"])


_CODE_TOO_LONG = 3


def _limit(config: ConsoleConfig) -> None:
    """Limit this process: no file can be written, and memory and processor time are bounded."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = config.memory_bytes_max + OVERHEAD_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    cpu = int(2 * (config.timeout_s + KILL_AFTER_S) + START_S)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))


def _work(request: dict[str, Any], clock: Clock) -> tuple[dict[str, Any], bytes]:
    """Return the head and the body of the reply to one request."""
    config = ConsoleConfig(**request["config"])
    reader = Reader(Path(request["folder"]), sandbox=True, memory_bytes_max=config.memory_bytes_max)
    done = threading.Event()
    stopped = threading.Event()
    threading.Thread(target=_watch, args=(reader, config, clock, done, stopped), daemon=True).start()
    try:
        verify(reader, request["sql"])
        # The first query of a process loads libraries, which is not the query's time.
        reader.frame("SELECT 1", rows_max=1)
        began = clock.monotonic_ns()
        frame = reader.frame(request["sql"], rows_max=config.rows_max)
        elapsed_s = (clock.monotonic_ns() - began) / NS_PER_S
    except StoreError:
        if stopped.is_set():
            raise _too_long(config) from None
        raise
    finally:
        done.set()
    cut = frame.height > config.rows_max
    frame = frame.head(config.rows_max)
    if frame.estimated_size() > config.result_bytes_max:
        raise StoreError(f"the answer is larger than {config.result_bytes_max // 1024**2} MB", "select fewer columns or rows")
    body = io.BytesIO()
    frame.write_ipc_stream(body)
    return {"cut": cut, "elapsed_s": elapsed_s}, body.getvalue()


def _watch(reader: Reader, config: ConsoleConfig, clock: Clock, done: threading.Event, stopped: threading.Event) -> None:
    """Interrupt the query at its time limit, and exit if it ignores that."""
    if clock.wait(config.timeout_s, done):
        return
    stopped.set()
    reader.interrupt()
    if not clock.wait(KILL_AFTER_S, done):
        os._exit(_CODE_TOO_LONG)


def main() -> int:
    """Answer the one request on standard input."""
    # The reply has a descriptor of its own, so that other output cannot mix with it.
    reply = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    request = json.loads(sys.stdin.buffer.read())
    _limit(ConsoleConfig(**request["config"]))
    try:
        head, body = _work(request, SystemClock())
    except StoreError as error:
        head, body = {"problem": error.problem, "hint": error.hint}, b""
    except MemoryError:
        return 1
    reply.write(json.dumps(head).encode() + b"\n" + body)
    reply.close()
    # DuckDB's threads may still run; there is nothing to clean up.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
