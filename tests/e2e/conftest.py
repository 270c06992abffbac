"""Fixtures of the end-to-end tests: the command line in real processes, a generated recording, and the resulting tables."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
from shared_data import SHARED

from weft.analytics.store.reader import Reader

# The longest wait of these tests; success takes much less.
LIMIT_S = 150.0

RACKS, HOSTS, SECONDS, BINS = 4, 4, 40, 50
LINE_RATE_BPS = 12_500_000_000


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without settings of Weft, and with ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_") or name.startswith("WEFT_CACHE")}
    if kept.pop("PYTHONDONTWRITEBYTECODE", None):
        # A hundred processes start here; each would compile every library again.
        kept["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / f"weft-pycache-{os.getuid()}")
    return kept | dict(extra)


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=10)


class Weft:
    """The command line, each call in a process of its own."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: object, environment: Mapping[str, str] | None = None, **options: object) -> "subprocess.Popen[str]":
        """Start a command with pipes."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        command = [sys.executable, "-m", "weft", *map(str, arguments)]
        process = subprocess.Popen(command, env=_environment(environment or {}), **pipes)  # type: ignore[call-overload]
        self._started.append(process)
        return process

    def run(
        self, *arguments: object, expect: int = 0, environment: Mapping[str, str] | None = None, **options: object
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, which must have the expected exit code."""
        process = self.start(*arguments, environment=environment, **options)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            _end(process)
            raise
        assert process.returncode == expect, f"{arguments}: exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def fails(self, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
        """Run a command that must fail in one sentence with exit code 1; return the sentence."""
        done = self.run(*arguments, expect=1, environment=environment)
        assert "Traceback" not in done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("weft: ")]
        assert said, done.stderr
        return said[-1].removeprefix("weft: ")

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                _end(process)


@pytest.fixture
def weft() -> Iterator[Weft]:
    """Return the command line; its remaining processes end with the test."""
    weft = Weft()
    yield weft
    weft.close()


@pytest.fixture(scope="session")
def weft_of_session() -> Iterator[Weft]:
    """Return the command line for fixtures that several tests share."""
    weft = Weft()
    yield weft
    weft.close()


@dataclass(frozen=True)
class Recording:
    """A table in the dataset's layout, and its samples by rack and host, shape (racks, hosts, milliseconds)."""

    path: Path
    samples: np.ndarray
    arguments: tuple[str, ...] = field(default=("--line-rate", str(LINE_RATE_BPS)))

    @property
    def hot(self) -> np.ndarray:
        return self.samples * 8 * 1000 * 2 > LINE_RATE_BPS


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Return a generated recording: hosts with little traffic and bursts of some milliseconds."""
    random = np.random.default_rng(20220101)
    shape = (RACKS, HOSTS, SECONDS * 1000)
    quiet = random.integers(0, 200_000, shape)
    # A burst of 1 to 9 ms at one of forty places.
    busy = np.repeat(random.random((*shape[:2], shape[2] // 8)) < 0.025, 8, axis=2) & (random.random(shape) < 0.9)
    samples = np.where(busy, random.integers(700_000, 1_500_000, shape), quiet)
    rows = samples.reshape(RACKS * HOSTS, -1, BINS)
    table = pl.DataFrame(
        {
            "rackid": np.repeat(np.arange(RACKS) + 1, HOSTS * rows.shape[1]),
            "hostid": np.repeat(np.tile(np.arange(HOSTS), RACKS) + 100, rows.shape[1]),
            "IngressBytesAgg": rows.sum(axis=2).reshape(-1),
            "InCongestionBytesAgg": (rows * (rows > 700_000)).sum(axis=2).reshape(-1) // 3,
            **{f"IngressBytes{column}": rows[:, :, column].reshape(-1) for column in range(BINS)},
        }
    )
    path = tmp_path_factory.mktemp("recording") / "own.csv"
    table.write_csv(path)
    return Recording(path, samples)


@pytest.fixture(scope="session")
def undisturbed(weft_of_session: Weft, recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder of an undisturbed replay of ``recording``."""
    data = tmp_path_factory.mktemp("undisturbed")
    weft_of_session.run("replay", recording.path, *recording.arguments, "--data", data)
    return data


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of inputs that lies beside the project, where it is."""
    if not SHARED.is_dir():
        pytest.skip(f"no real inputs at {SHARED}; WEFT_SHARED_DATA names another place")
    return SHARED


def _tables(data: Path) -> dict[str, pl.DataFrame]:
    reader = Reader(data / "store")
    try:
        names = reader.frame("SELECT view_name FROM duckdb_views() WHERE schema_name = 'state' AND NOT internal ORDER BY ALL")["view_name"]
        found = {name: reader.frame(f'FROM state."{name}"') for name in names if name not in ("self_metric", "samples")}
        # Independent of the cut into segments: all samples of a port one after another.
        found["samples"] = reader.frame(
            """SELECT * EXCLUDE (ts, recv_ts, "values"), min(ts) AS ts, flatten(list("values" ORDER BY ts)) AS "values" FROM state.samples
            GROUP BY ALL"""
        )
    finally:
        reader.close()
    return {name: frame.sort([c for c, dtype in frame.schema.items() if not dtype.is_nested()]) for name, frame in found.items()}


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, pl.DataFrame]]:
    """Return a function that reads every table of a store, sorted, without Weft's own metrics."""
    return _tables


@pytest.fixture(scope="session")
def same_tables() -> Callable[[Path, Path], None]:
    """Return a function that asserts that two stores hold the same, row for row."""

    def compare(one: Path, other: Path) -> None:
        left, right = _tables(one), _tables(other)
        assert left.keys() == right.keys() and left["port_samples_1s"].height > 0
        different = [f"{name}: {left[name].height} and {right[name].height} rows" for name in left if not left[name].equals(right[name])]
        assert not different, different

    return compare


@pytest.fixture
def clean_kafka(kafka: str) -> str:
    """Return the address of a broker from which Weft's topics and group have been deleted."""
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=kafka)
    try:
        if topics := [topic for topic in admin.list_topics() if topic.startswith("weft.")]:
            admin.delete_topics(topics)
        if "process" in {group["group_id"] for group in admin.list_groups()}:
            admin.delete_groups(["process"])
        deadline = time.monotonic() + LIMIT_S
        while any(topic.startswith("weft.") for topic in admin.list_topics()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        admin.close()
    return kafka
