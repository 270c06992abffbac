"""The contract of every collector: declared settings and widths, a live side that never blocks, a recorded side with one kind of error."""

import ast
import importlib.util
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from weft.collectors import COLLECTORS
from weft.collectors.base import Batch, Options
from weft.collectors.gnmi.config import Target
from weft.collectors.recordings.recording import record
from weft.collectors.replay import recogniser
from weft.pipeline import codec
from weft.pipeline.clock import SystemClock
from weft.pipeline.dictionary import WIDE, dictionary
from weft.pipeline.errors import InputError, ServiceError
from weft.pipeline.tables.families import FAMILIES, counters_of

HERE = Path(__file__).parent
TREE = Path(sys.modules["weft.collectors"].__file__ or "").parent
DRAIN_S_MAX = 1.0
COUNTED = ("port", "queue", "nic", "nvlink")
# Bytes that no collector recognises.
FOREIGN = {
    "noise.bin": random.Random(7).randbytes(5000),
    "zeros.dat": bytes(5000),
    "text.txt": b"The quick brown fox jumps over the lazy dog.\n" * 100,
    "picture.png": b"\x89PNG\r\n\x1a\n" + random.Random(8).randbytes(500),
}


@cache
def _seed(target: str, number: int = 0) -> bytes:
    """Return a well-formed input of a fuzz target."""
    spec = importlib.util.spec_from_file_location("contract_fuzzing", HERE.parent / "fuzz" / "fuzzing.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("contract_fuzzing", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.target(target).seeds[number]


def _sflow() -> bytes:
    """Return an sFlow datagram: one counter sample of interface 1 with the generic counters, 7 octets in."""
    generic = struct.pack(">IIQIIQ6IQ6II", 1, 6, 10**9, 1, 3, 7, *[0] * 6, 9, *[0] * 7)
    sample = struct.pack(">III", 1, 1, 1) + struct.pack(">II", 1, len(generic)) + generic
    return struct.pack(">II4sIIII", 5, 1, bytes([10, 0, 0, 1]), 0, 1, 1000, 1) + struct.pack(">II", 2, len(sample)) + sample


def _weft_file() -> bytes:
    columns = {"ts": 10**18, "recv_ts": 10**18, "source": "host", "device": "a", "epoch": 0, "port": "p", "rx_bytes": 7}
    frame = pl.DataFrame([columns], schema=FAMILIES["port"].polars)
    return b"".join(record("port", codec.encode(frame, FAMILIES["port"])) for _ in range(3))


def _millisampler() -> bytes:
    header = ["rackid", "hostid", "IngressBytesAgg", *(f"IngressBytes{column}" for column in range(50))]
    return "\n".join(",".join(map(str, row)) for row in (header, [1, 2, 50, *[1] * 50], [1, 3, 100, *[2] * 50])).encode() + b"\n"


# A good recording for each collector that reads recordings: name, and the function that makes it. A new collector adds its line here.
RECORDINGS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "sflow": ("one.bin", _sflow),
    "hft": ("leaf.ipfix", lambda: _seed("hft_recording")),
    "packets": ("capture.pcap", lambda: _seed("capture")),
    "millisampler": ("racks.csv", _millisampler),
    "inventory": ("lab.clab.yml", lambda: _seed("inventory_yaml")),
    "recording": ("live.weft", _weft_file),
    "gnmi": ("switch.gnmi", lambda: _seed("gnmi_recording")),
}


def _recording(name: str) -> tuple[str, bytes]:
    """Return name and content of a good recording for a collector."""
    file, content = RECORDINGS[name]
    return file, content()


def _live_settings(name: str, folder: Path) -> dict[str, Any]:
    """Return the settings with which a live collector runs on this machine alone: a listener needs only a free port."""
    (folder / "things.csv").write_text("kind,key\ndevice,leaf1\n")
    special = {
        "host": {"interfaces": ("lo",)},
        "gnmi": {"targets": (Target(address="127.0.0.1:9"),), "insecure": True},
        "inventory": {"files": (str(folder / "things.csv"),)},
        "packets": {"interface": "lo"},
    }
    known = {field.name for field in fields(COLLECTORS[name].config)}
    return special.get(name, {}) | {key: value for key, value in {"enabled": True, "port": 0}.items() if key in known}


def _kernel_modules(name: str) -> list[str]:
    """Return the modules of a collector's folder that import Numba."""
    folder = TREE / COLLECTORS[name].config.__module__.split(".")[2]
    found = []
    for path in sorted(folder.glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        if any(one.split(".")[0] == "numba" for one in names):
            found.append(f"weft.collectors.{folder.name}.{path.stem}")
    return found


def _read(name: str, path: Path) -> tuple[list[Batch], InputError | None]:
    """Return the batches of a recording and the error after them; any other exception fails the test."""
    recorded = COLLECTORS[name].recorded
    assert recorded is not None
    batches: list[Batch] = []
    try:
        batches.extend(recorded(path, Options(line_rate_bps=10**10)).batches())
    except InputError as error:
        assert error.hint
        return batches, error
    return batches, None


def _write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


ALL = pytest.mark.parametrize("name", COLLECTORS)
LIVE = pytest.mark.parametrize("name", [name for name, one in COLLECTORS.items() if one.live is not None])
RECORDED = pytest.mark.parametrize("name", [name for name, one in COLLECTORS.items() if one.recorded is not None])


@ALL
def test_an_entry_says_what_it_is(name: str) -> None:
    """An entry stands under its own name, with a frozen configuration of defaults, known families, and a live or a recorded side."""
    entry = COLLECTORS[name]
    assert entry.name == name and entry.doc and not entry.doc.endswith(".")
    assert is_dataclass(entry.config) and entry.config.__dataclass_params__.frozen
    required = [one.name for one in fields(entry.config) if one.init and one.default is MISSING and one.default_factory is MISSING]
    assert required == []
    assert entry.config() == entry.config()
    assert entry.families and set(entry.families) <= set(FAMILIES)
    assert entry.live is not None or entry.recorded is not None
    assert (entry.recorded is None) == (entry.recognises is None)


@ALL
def test_the_docs_have_a_section(name: str) -> None:
    """The page of the collectors has a section with the collector's name."""
    page = (TREE.parent / "dashboards" / "docs" / "20-collectors.md").read_text()
    assert f"\n## {name}\n" in page


@ALL
def test_the_widths_of_counters_are_declared(name: str) -> None:
    """A collector that publishes cumulative counters declares their width, and the dictionary of the process service agrees."""
    entry = COLLECTORS[name]
    counts = [family for family in entry.families if family in COUNTED and counters_of(family)]
    if name == "recording" or not counts:
        # Rows of a recording name the collector that made them.
        assert entry.registers is None and name not in dictionary().collectors
        return
    assert entry.registers is not None
    assert dictionary().collectors[name] == entry.registers
    assert entry.registers == WIDE or entry.registers in dictionary().sources


def test_the_dictionary_knows_no_other_collector() -> None:
    """No width is declared for a collector that does not exist."""
    assert set(dictionary().collectors) <= set(COLLECTORS)


@ALL
def test_kernels_can_be_compiled_ahead(name: str) -> None:
    """A source with kernels compiles them on request and leaves no file, socket or thread; one without kernels has no such step."""
    entry, modules = COLLECTORS[name], _kernel_modules(name)
    if not modules:
        assert entry.warm is None
        return
    assert entry.warm is not None
    entry.warm()
    files, threads = _open_files(), threading.active_count()  # libraries open files of their own at first use
    entry.warm()
    assert (_open_files(), threading.active_count()) == (files, threads)
    compiled = [one for module in modules for one in vars(sys.modules[module]).values() if getattr(one, "signatures", None)]
    assert compiled


def _run(name: str, config: Any) -> list[Batch]:
    """Start a live collector, drain it some times, and stop it twice; return its rows."""
    make = COLLECTORS[name].live
    assert make is not None
    live, batches = make(config, SystemClock()), []
    live.start()
    try:
        for _ in range(4):
            began = time.monotonic()
            batches += live.drain()
            assert time.monotonic() - began < DRAIN_S_MAX
            time.sleep(0.05)
        counters = live.counters()
    finally:
        live.stop()
    batches += live.drain()
    live.stop()
    assert live.drain() == []
    assert all(counter.startswith("weft_collectors_") and isinstance(value, int | float) for counter, value in counters.items())
    return batches


@LIVE
def test_a_constructor_opens_nothing(name: str, tmp_path: Path) -> None:
    """A collector that was built but not started has no file, no socket and no thread; stopping it does no harm."""
    make = COLLECTORS[name].live
    assert make is not None
    config = COLLECTORS[name].config(**_live_settings(name, tmp_path))
    make(config, SystemClock())  # imports what it needs
    files, threads = _open_files(), threading.active_count()
    live = make(config, SystemClock())
    assert (_open_files(), threading.active_count()) == (files, threads)
    live.stop()
    live.stop()


@LIVE
def test_a_live_collector_starts_drains_and_stops(name: str, tmp_path: Path) -> None:
    """Draining never blocks; frames are of their family; stopping twice, and draining after it, gives back every file and thread."""
    config = COLLECTORS[name].config(**_live_settings(name, tmp_path))
    try:
        _run(name, config)  # libraries open files of their own at first use
    except ServiceError as error:
        if name == "packets" and os.geteuid() != 0:
            pytest.skip(f"only root may open raw sockets here: {error}")
        raise
    files, threads = _open_files(), threading.active_count()
    for batch in _run(name, config):
        assert batch.family in COLLECTORS[name].families
        assert dict(batch.frame.schema) == FAMILIES[batch.family].polars
    deadline = time.monotonic() + 10
    while (threading.active_count() > threads or _open_files() > files) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads and _open_files() <= files


@LIVE
def test_a_live_collector_off_by_default_needs_no_network(name: str) -> None:
    """Only this machine's interfaces are read without being configured."""
    assert bool(COLLECTORS[name].config().enabled) == (name == "host")


@RECORDED
def test_a_recording_gives_the_same_batches_twice(name: str, tmp_path: Path) -> None:
    """A good recording gives rows of the declared families in the family's columns, and the same ones every time."""
    path = _write(tmp_path, *_recording(name))
    batches, error = _read(name, path)
    assert error is None, error
    assert sum(batch.frame.height for batch in batches) > 0
    for batch in batches:
        assert batch.family in COLLECTORS[name].families
        assert dict(batch.frame.schema) == FAMILIES[batch.family].polars
    again, _ = _read(name, path)
    assert [(one.family, one.ended) for one in again] == [(one.family, one.ended) for one in batches]
    assert all(one.frame.equals(other.frame) for one, other in zip(batches, again, strict=True))


@RECORDED
def test_a_broken_recording_is_an_error_after_what_is_good(name: str, tmp_path: Path) -> None:
    """Empty, cut and foreign content gives rows, an ``InputError`` with a hint, or both, and never another exception."""
    file, content = _recording(name)
    cuts = sorted({0, 1, 2, 7, len(content) // 3, len(content) // 2, len(content) - 5, len(content) - 1})
    pieces = [content[:cut] for cut in cuts] + list(FOREIGN.values())
    noise = random.Random(9)
    for _ in range(8):
        damaged = bytearray(content)
        damaged[noise.randrange(len(damaged))] ^= 1 << noise.randrange(8)
        pieces.append(bytes(damaged))
    for number, piece in enumerate(pieces):
        (tmp_path / str(number)).mkdir()
        path = _write(tmp_path / str(number), file, piece)
        if not piece:
            with pytest.raises(InputError, match="is empty"):
                recogniser(path, name)
        for batch in _read(name, path)[0]:
            assert dict(batch.frame.schema) == FAMILIES[batch.family].polars


@RECORDED
def test_a_recording_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    """A file that was removed before it is read, or that cannot be opened, is an ``InputError``."""
    batches, error = _read(name, tmp_path / RECORDINGS[name][0])
    assert batches == [] and error is not None


@RECORDED
def test_a_recording_is_recognised_by_its_collector_alone(name: str, tmp_path: Path) -> None:
    """A good recording is recognised without ``--kind``; foreign files and an empty one are refused."""
    path = _write(tmp_path, *_recording(name))
    assert recogniser(path, None).name == name
    recognises = COLLECTORS[name].recognises
    assert recognises is not None
    for file, content in FOREIGN.items():
        assert not recognises(_write(tmp_path, file, content), content[:4096]), file
    assert not recognises(_write(tmp_path, "empty", b""), b"")
