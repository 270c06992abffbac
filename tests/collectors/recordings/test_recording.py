"""Recordings: written batches come back in order, and damage costs nothing before it."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from weft.collectors.base import Batch, Options
from weft.collectors.recordings.recording import RECORDING, Recorder
from weft.pipeline.clock import ManualClock, SystemClock
from weft.pipeline.errors import InputError, ServiceError, WeftError
from weft.pipeline.tables.families import FAMILIES

SECOND = 1_000_000_000
MS = 1_000_000


def read(path: Path, **options):
    """Return the batches of a recording, and the error after them if there is one."""
    batches, fault = [], None
    try:
        for batch in RECORDING.recorded(path, Options(**options)).batches():
            batches.append(batch)
    except InputError as error:
        fault = error
    return batches, fault


def frame(family: str, rows: list[dict]) -> pl.DataFrame:
    """Return rows as a frame of the family, missing columns null."""
    columns = FAMILIES[family].polars
    return pl.DataFrame([{name: row.get(name) for name in columns} for row in rows], schema=columns)


def runs(number: int, device: str = "leaf-1") -> Batch:
    head = {"ts": number * SECOND, "recv_ts": number * SECOND + 5, "source": "host", "device": device, "epoch": 1}
    rows = [{**head, "port": "e1", "queue": "", "signal": "rx_bytes", "interval_ns": MS, "speed_bps": 10**10, "values": [number, 2**40, 3]}]
    return Batch("burst_sample", frame("burst_sample", rows))


def gap(number: int) -> Batch:
    return Batch("gap", frame("gap", [{"ts": number, "device": "leaf-2", "what": "samples", "missed": number, "reason": "late_tick"}]))


def record(path: Path, batches: list[Batch]) -> Path:
    recorder = Recorder(path, ManualClock())
    for batch in batches:
        recorder.append(batch)
    recorder.close()
    recorder.close()
    return path


def same(left: list[Batch], right: list[Batch]) -> None:
    assert [batch.family for batch in left] == [batch.family for batch in right]
    for one, other in zip(left, right, strict=True):
        assert_frame_equal(one.frame, other.frame)


def test_what_was_recorded_comes_back_in_order(tmp_path):
    """Families, rows, types and order are those that were appended; the last batch ends every device."""
    written = [runs(1), gap(2), runs(3, "leaf-3"), runs(4)]
    batches, fault = read(record(tmp_path / "a.weft", written))
    assert fault is None
    same(batches, written)
    assert [batch.ended for batch in batches] == [(), (), (), ("leaf-1", "leaf-2", "leaf-3")]


def test_a_folder_is_read_in_the_order_of_recording(tmp_path):
    """Recorders that follow each other into one folder make one recording."""
    clock = ManualClock()
    for number in (1, 2, 3):
        recorder = Recorder(tmp_path / "day", clock)
        recorder.append(runs(number))
        recorder.close()
        clock.advance(10)
    same(read(tmp_path / "day")[0], [runs(1), runs(2), runs(3)])
    assert len(list((tmp_path / "day").iterdir())) == 3


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_tail_costs_the_torn_record_only(tmp_path, data):
    """Cut at any byte, a recording gives every whole record, ends their devices, then an error with the place where it is torn."""
    written = [runs(1), gap(2), runs(3)]
    path, sizes = tmp_path / "torn.weft", [0]
    path.unlink(missing_ok=True)
    recorder = Recorder(path, ManualClock())
    for batch in written:
        recorder.append(batch)
        sizes.append(path.stat().st_size)
    recorder.close()
    cut = data.draw(st.integers(0, sizes[-1]))
    os.truncate(path, cut)
    whole = sum(size <= cut for size in sizes[1:])
    batches, fault = read(path)
    same(batches, written[:whole])
    assert (fault is None) == (cut in sizes[1:])
    if fault is not None and cut:
        assert f"byte {max(size for size in sizes if size <= cut)}" in str(fault)
    if batches:
        assert batches[-1].ended


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 0.9999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_data(tmp_path, at, bit):
    """Any changed bit is detected: earlier records arrive, no wrong row does."""
    path = tmp_path / "flip.weft"
    path.unlink(missing_ok=True)
    written = [runs(1), gap(2), runs(3)]
    content = bytearray(record(path, written).read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    path.write_bytes(content)
    batches, fault = read(path)
    assert fault is not None
    same(batches, written[: len(batches)])


def test_files_after_a_torn_one_are_read(tmp_path):
    """A recorder that was killed and started again leaves a torn file in the middle; the rest of the folder arrives."""
    clock = ManualClock()
    for number in (1, 2):
        recorder = Recorder(tmp_path, clock)
        recorder.append(runs(number))
        recorder.append(runs(number + 10))
        recorder.close()
        clock.advance(1)
    first = min(tmp_path.iterdir())
    os.truncate(first, first.stat().st_size - 3)
    batches, fault = read(tmp_path)
    same(batches, [runs(1), runs(2), runs(12)])
    assert first.name in str(fault)


KILLED = """
import sys, polars as pl
from pathlib import Path
from weft.collectors.base import Batch
from weft.collectors.recordings.recording import Recorder
from weft.pipeline.clock import SystemClock
recorder = Recorder(Path(sys.argv[1]), SystemClock())
for number in range(10**9):
    recorder.append(Batch("gap", pl.DataFrame({"ts": [number], "device": ["leaf"], "what": ["rows"], "missed": [number]})))
    print(number, flush=True)
"""


def test_a_killed_recorder_keeps_what_it_had_appended(tmp_path):
    """After kill -9 every batch whose append had returned is there."""
    path = tmp_path / "killed.weft"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    appended = -1
    while appended < 20:
        appended = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    appended = max([appended, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    child.wait(timeout=10)
    child.stdout.close()
    numbers = [batch.frame["ts"][0] for batch in read(path)[0]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > appended


def test_a_full_disk_is_an_error_and_leaves_whole_records(tmp_path):
    """On a full disk, append raises one sentence, the file ends with a whole record, and appending can continue later."""
    path = tmp_path / "full.weft"
    recorder = Recorder(path, SystemClock())
    recorder.append(runs(1))
    limits, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, limits[1]))
        with pytest.raises(ServiceError, match="cannot be written") as caught:
            recorder.append(runs(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignore)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    recorder.append(runs(3))
    recorder.close()
    batches, fault = read(path)
    assert fault is None
    same(batches, [runs(1), runs(3)])


def test_a_recording_is_never_overwritten(tmp_path):
    """Recording to an existing file is an error; the file stays."""
    path = record(tmp_path / "a.weft", [runs(1)])
    with pytest.raises(ServiceError, match="there already"):
        Recorder(path, ManualClock()).append(runs(2))
    same(read(path)[0], [runs(1)])


@pytest.mark.parametrize("content", [b"", b"WEF", b"WEFT" + b"\xff" * 12, b"not a recording at all", os.urandom(4096)])
def test_what_is_no_recording_is_an_error(tmp_path, content):
    """Foreign bytes give one sentence, no batch, and need no memory."""
    path = tmp_path / "x.weft"
    path.write_bytes(content)
    batches, fault = read(path)
    assert batches == []
    assert isinstance(fault, WeftError)
    assert read(tmp_path / "absent.weft")[1] is not None


PORT = {
    "ts": [3 * SECOND, SECOND, SECOND],
    "device": ["b", "a", "b"],
    "port": ["e1", "e1", "e1"],
    "rx_bytes": [30, 10, 2**64 - 1],
    "oper_up": [True, True, False],
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_counters_of_others_are_read(tmp_path, kind):
    """A table of port counters becomes the port family in time order, missing columns null, the user's options filled in."""
    path = tmp_path / f"counters.{kind}"
    table = pl.DataFrame(PORT, schema_overrides={"rx_bytes": pl.UInt64})
    table.write_csv(path) if kind == "csv" else table.write_parquet(path)
    batches, fault = read(path, line_rate_bps=400)
    assert fault is None
    whole = pl.concat([batch.frame for batch in batches])
    assert {batch.family for batch in batches} == {"port"}
    assert dict(whole.schema) == FAMILIES["port"].polars
    columns = ("ts", "device", "rx_bytes", "oper_up", "speed_bps", "tx_bytes", "epoch", "recv_ts")
    assert whole.select(columns).sort("ts", "device").rows() == [
        (SECOND, "a", 10, True, 400, None, 0, SECOND),
        (SECOND, "b", 2**64 - 1, False, 400, None, 0, SECOND),
        (3 * SECOND, "b", 30, True, 400, None, 0, 3 * SECOND),
    ]
    assert [batch.frame["ts"].min() for batch in batches] == sorted(batch.frame["ts"].min() for batch in batches)
    assert batches[-1].ended == ("a", "b")


def test_a_recorded_frame_survives_parquet(tmp_path):
    """Parquet written by weft decode replays as the same rows, lists included."""
    path = tmp_path / "runs.parquet"
    written = [runs(1), runs(2)]
    pl.concat([batch.frame for batch in written]).write_parquet(path)
    same(read(path)[0], written)


sample_rows = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["p", "q"]), st.integers(0, 4000), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=60,
    unique_by=lambda row: row[:3],
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=sample_rows, run_samples=st.integers(1, 50), kind=st.sampled_from(["csv", "parquet"]))
def test_long_form_samples_become_runs_any_way_they_are_cut(tmp_path, rows, run_samples, kind):
    """A row per sample, in any order and with gaps: every sample arrives once in its slot, and gaps stay gaps."""
    path = tmp_path / f"samples.{kind}"
    table = pl.DataFrame(
        {
            "ts": [slot * MS for *_, slot, _ in rows],
            "device": [row[0] for row in rows],
            "port": [row[1] for row in rows],
            "signal": "rx_bytes",
            "interval_ns": MS,
            "value": pl.Series([row[3] for row in rows], dtype=pl.UInt64),
        }
    )
    table.write_csv(path) if kind == "csv" else table.write_parquet(path)
    batches, fault = read(path, run_samples=run_samples)
    assert fault is None
    found = set()
    for batch in batches:
        for row in batch.frame.iter_rows(named=True):
            assert 1 <= len(row["values"]) <= run_samples
            found |= {(row["device"], row["port"], row["ts"] // MS + index, value) for index, value in enumerate(row["values"])}
    assert found == set(rows)
    assert sum(batch.frame["values"].list.len().sum() for batch in batches) == len(rows)
    ts = np.array([batch.frame["ts"].min() for batch in batches]) // SECOND
    assert (np.diff(ts) >= 0).all()


LONG = "ts,device,port,signal,interval_ns,value"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("ts,device,port,signal,interval_ns,valu", "column 'value' of burst_sample is missing; rename the column 'valu' to it"),
        ("ts,devise,port,signal,interval_ns,value", "column 'device' of burst_sample is missing; rename the column 'devise' to it"),
        (LONG.replace("signal", "signl"), "column 'signal' of burst_sample is missing; rename the column 'signl' to it"),
        (LONG + ",sped_bps", "burst_sample has no column 'sped_bps'; did you mean 'speed_bps'"),
        ("ts,device,port,rx_bytes,tx_bites", "port has no column 'tx_bites'; did you mean 'tx_bytes'"),
        ("ts,device,port,rx_bytes,rx_bytes", "column 'rx_bytes' is there twice"),
        ("a,b,c", "no column of any family"),
        (LONG + "s", "column 'values' is a list"),
    ],
)
def test_a_near_miss_of_a_column_is_named_with_the_right_one(tmp_path, header, says):
    """Columns that fit no family are an error with a hint."""
    path = tmp_path / "near.csv"
    path.write_text(header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
    batches, fault = read(path)
    assert says in str(fault)
    assert batches == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x,a,p,rx_bytes,1000000,5", "line 4: column 'ts' holds 'x'"),
        ("3000000,a,p,rx_bytes,1000000,-5", "line 4: column 'value' holds '-5'"),
        ("3000000,,p,rx_bytes,1000000,5", "line 4: column 'device' is empty"),
        ("3000000,a,p,rx_bytes,1000000", "line 4: ends after 5 of 6 columns"),
        ("-3000000,a,p,rx_bytes,1000000,5", "row 3: ts -3000000 cannot be"),
        ("3000000,a,p,rx_bytes,0,5", "row 3: interval_ns 0 cannot be"),
        (f"{2**62},a,p,rx_bytes,1000000,5", f"row 3: ts {2**62} cannot be"),
    ],
)
def test_a_bad_row_is_named_and_those_before_it_kept(tmp_path, line, says):
    """The first impossible row is the error; the two good ones before it arrive."""
    path = tmp_path / "bad.csv"
    path.write_text(f"{LONG}\n1000000,a,p,rx_bytes,1000000,7\n2000000,a,p,rx_bytes,1000000,8\n{line}\n4000000,a,p,rx_bytes,1000000,9\n")
    batches, fault = read(path)
    assert says in str(fault)
    assert [batch.frame["values"].to_list() for batch in batches] == [[[7, 8]]]
    assert batches[-1].ended == ("a",)


def test_a_damaged_or_mistyped_parquet_is_an_error(tmp_path):
    """A Parquet file that is cut, or has a wrong column type, is an error of one sentence."""
    path = tmp_path / "x.parquet"
    pl.DataFrame(PORT, schema_overrides={"rx_bytes": pl.UInt64}).write_parquet(path)
    content = path.read_bytes()
    for cut in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert "cannot be read as Parquet" in str(read(path)[1])
    pl.DataFrame({**PORT, "rx_bytes": ["1", "2", "word"]}).write_parquet(path)
    assert "column 'rx_bytes' is String" in str(read(path)[1])
    pl.DataFrame({**PORT, "rx_bytes": [1.0, 2.5, 3.0]}).write_parquet(path)
    assert "column 'rx_bytes' is Float64" in str(read(path)[1])


def test_recordings_are_recognised_by_what_they_are(tmp_path):
    """The magic of a recording or of Parquet, a header that is mostly a family's, a folder of recordings."""
    record(tmp_path / "a.weft", [runs(1)])
    assert RECORDING.recognises(tmp_path, b"")
    assert RECORDING.recognises(tmp_path / "x", (tmp_path / "a.weft").read_bytes()[:64])
    assert RECORDING.recognises(tmp_path / "x.parquet", b"PAR1\x15\x04")
    assert RECORDING.recognises(tmp_path / "x.csv", b"ts,devise,port,rx_bytes\n1,a,b,3\n")
    assert not RECORDING.recognises(tmp_path / "x.csv", b"rackid,hostid,IngressBytes0\n")
    assert not RECORDING.recognises(tmp_path / "x.pcap", b"\xd4\xc3\xb2\xa1")
    assert not RECORDING.recognises(tmp_path / "x.csv", b"")
