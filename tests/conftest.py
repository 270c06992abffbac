"""Fixtures for all tests: the Kafka broker, and requirements on this machine."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from weft.pipeline.bus import BUSES

HERE = Path(__file__).parent
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _load(name: str) -> Any:
    """Return the module beside this file; the tests' folder is no package."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Test modules import them by their names.
bus_rig = _load("bus_rig")
_load("ipfix_bytes")
_load("shared_data")
_load("store_rig")
_load("dash_rig")
_load("switch_rig")


def pytest_configure(config: pytest.Config) -> None:
    # Kafka's client reads its schemas with a function that only Python 3.11 reports as deprecated.
    for function in ("read_text", "open_text"):
        config.addinivalue_line("filterwarnings", f"ignore:{function} is deprecated:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that need the machine alone first, before any worker has started a broker or a browser."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test marked ``alone`` while no other worker runs a test; a waiting one holds the gate that all must pass."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    folder = Path(tempfile.gettempdir())
    with (folder / f"weft-gate-{run}").open("w") as gate, (folder / f"weft-turn-{run}").open("w") as turn:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        return (yield)


def _missing(reason: str) -> NoReturn:
    """Skip on a user's machine, fail where every dependency is required."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _broker(folder: Path) -> Iterator[Any]:
    """Yield a broker that runs."""
    module = _load("broker")
    broker = module.Broker(folder)
    try:
        broker.start()
    except module.BrokerMissing as missing:
        _missing(f"no Kafka: {missing}")
    except BaseException:
        broker.kill()
        raise
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a running broker: the one of ``WEFT_TEST_KAFKA``, or one that is started for this run."""
    if address := os.environ.get("WEFT_TEST_KAFKA"):
        yield address
        return
    for broker in _broker(tmp_path_factory.mktemp("kafka")):
        yield broker.address


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Any]:
    """Return a broker of this test alone, which it may pause, kill and start again."""
    yield from _broker(tmp_path / "broker")


@pytest.fixture(params=BUSES)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Return a rig over each kind of bus in turn."""
    servers = request.getfixturevalue("kafka") if request.param == "kafka" else ""
    rig = bus_rig.Rig(request.param, servers, tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Any]:
    """Return a rig over the embedded bus."""
    rig = bus_rig.Rig("embedded", "", tmp_path)
    yield rig
    rig.close()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of a Chromium that is installed on this machine."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    _missing("no Chromium: install the package chromium")


@pytest.fixture
def children() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that runs a Python program in a real process with pipes; any that are left end with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *arguments]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate(timeout=10)
