"""Millisampler recordings: only the file's own numbers, in time order, for any cut and any damage."""

import csv
import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import SHARED as SHARED_DATA

from weft.collectors.base import Options
from weft.collectors.millisampler.table import MILLISAMPLER
from weft.pipeline.errors import InputError
from weft.pipeline.tables.families import FAMILIES

START_NS = 1_640_995_200_000_000_000
MS = 1_000_000
SHARED = SHARED_DATA / "meta-millisampler"
SUMS = {
    "EgressBytesAgg": "tx_bytes",
    "InRxmitBytesAgg": "rx_retransmit_bytes",
    "OutRxmitBytesAgg": "tx_retransmit_bytes",
    "InCongestionBytesAgg": "rx_ecn_bytes",
    "ConnectionsAgg": "connections",
}
HEADER = ["rackid", "hostid", "IngressBytesAgg", *SUMS, *(f"IngressBytes{index}" for index in range(4))]


@pytest.fixture
def metadc() -> Path:
    """Return the published test split, skip where it is missing."""
    path = SHARED / "metadc_test.csv"
    if not path.exists():
        pytest.skip("no Millisampler data: set WEFT_SHARED_DATA to the folder of recorded inputs")
    return path


def read(path: Path, **options):
    """Return the batches of a recording, and the error after them if there is one."""
    batches, fault = [], None
    try:
        for batch in MILLISAMPLER.recorded(path, Options(**options)).batches():
            batches.append(batch)
    except InputError as error:
        fault = error
    return batches, fault


def samples(batches) -> dict[tuple, int]:
    """Return every sample by device, port, signal, interval and slot; one that occurs twice is an error."""
    found: dict[tuple, int] = {}
    for batch in batches:
        for row in batch.frame.iter_rows(named=True):
            assert row["ts"] % row["interval_ns"] == 0
            for index, value in enumerate(row["values"]):
                key = (row["device"], row["port"], row["signal"], row["interval_ns"], row["ts"] // row["interval_ns"] + index)
                assert key not in found
                found[key] = value
    return found


def by_hand(rows: list[list[str]], bins: int = 4) -> dict[tuple, int]:
    """Return the samples of rows in the published layout, by a plain loop."""
    found, windows = {}, defaultdict(int)
    for row in rows:
        named = dict(zip(HEADER, row, strict=True))
        host = (f"rack-{named['rackid']}", f"host-{named['hostid']}")
        window = windows[host]
        windows[host] += 1
        for index in range(bins):
            found[(*host, "rx_bytes", MS, START_NS // MS + window * bins + index)] = int(named[f"IngressBytes{index}"])
        for column, signal in SUMS.items():
            found[(*host, signal, bins * MS, START_NS // (bins * MS) + window)] = int(named[column])
    return found


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return path


def some_rows(count: int) -> list[list[str]]:
    """Return rows of three hosts of two racks, all values different."""
    return [
        ["7" if index % 3 else "8", str(index % 3), "0", *(str(1000 * index + column) for column in range(len(HEADER) - 3))]
        for index in range(count)
    ]


def test_published_file_gives_the_published_samples(metadc):
    """All 477,650 ingress samples arrive, each host's in file order, equal to a plain NumPy loop over the file."""
    batches, fault = read(metadc)
    assert fault is None
    frame = pl.concat([batch.frame for batch in batches])
    ingress = frame.filter(pl.col("signal") == "rx_bytes").sort("device", "port", "ts")
    with metadc.open() as file:
        rows = list(csv.DictReader(file))
    for (device, port), host in ingress.group_by(["device", "port"]):
        own = [row for row in rows if f"rack-{row['rackid']}" == device and f"host-{row['hostid']}" == port]
        expected = np.array([[int(row[f"IngressBytes{index}"]) for index in range(50)] for row in own]).reshape(-1)
        assert np.array_equal(host["values"].explode().to_numpy(), expected)
        assert host["ts"][0] == START_NS
        assert np.array_equal(host["ts"][1:], START_NS + np.cumsum(host["values"].list.len().to_numpy()[:-1].astype(np.int64)) * MS)
    assert ingress["values"].list.len().sum() == 477_650
    assert ingress.select("device", "port").n_unique() == 268
    assert frame["speed_bps"].unique().to_list() == [12_500_000_000]
    hot = ingress["values"].explode().to_numpy() > 12.5e9 / 8 / 1000 / 2
    assert round(float(hot.mean()), 6) == 0.015084


def test_window_sums_become_runs_at_the_windows_length(metadc):
    """Congestion and retransmission shares of the published table come out of the 50 ms samples."""
    frame = pl.concat([batch.frame for batch in read(metadc)[0]])
    totals = dict(frame.group_by("signal").agg(pl.col("values").list.sum().sum()).iter_rows())
    assert set(frame.filter(pl.col("signal") != "rx_bytes")["interval_ns"]) == {50 * MS}
    assert float(f"{totals['rx_ecn_bytes'] / totals['rx_bytes']:.4g}") == 0.04677
    assert float(f"{totals['rx_retransmit_bytes'] / totals['rx_bytes']:.3g}") == 0.000646


@pytest.mark.parametrize(
    ("name", "bins", "count"), [("meta_500.csv", 50, 500), ("meta_tiny.csv", 50, 1000), ("meta_w10_s5_1000.csv", 10, 1000)]
)
def test_other_tables_made_of_the_dataset_are_read(metadc, name, bins, count):
    """Tables without racks, with a window's start or with ten bins lose no sample and invent no sum."""
    path = metadc.with_name(name)
    batches, fault = read(path)
    assert fault is None
    frame = pl.concat([batch.frame for batch in batches]).filter(pl.col("signal") == "rx_bytes")
    source = pl.read_csv(path)
    assert frame["values"].list.len().sum() == bins * count
    assert frame["values"].list.sum().sum() == source.select(pl.col("^ingressBytes_(sampled|aggregate)$")).to_series().sum()
    if "window_start" in source.columns:
        starts = {START_NS + start * MS for start in source["window_start"].unique()}
        assert set(frame["ts"]) == starts
    samples(batches)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hosts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30),
    run_samples=st.integers(1, 2500),
    data=st.data(),
)
def test_any_cut_gives_the_same_samples(tmp_path, hosts, run_samples, data):
    """For any length of segments and order of hosts in the file, each sample of the file occurs once."""
    number = st.integers(0, 2**40)
    rows = [[str(rack), str(host), *(str(data.draw(number)) for _ in HEADER[2:])] for rack, host in hosts]
    batches, fault = read(write(tmp_path / "cut.csv", rows), run_samples=run_samples)
    assert fault is None
    assert samples(batches) == by_hand(rows)
    assert all(batch.frame["values"].list.len().max() <= run_samples for batch in batches)


@pytest.mark.parametrize("run_samples", [7, 1000, 1_000_000])
def test_batches_are_in_time_order_over_all_hosts(metadc, run_samples):
    """A device's rows never go back in time, slices of one time come together, and the last batch ends all devices."""
    batches, _ = read(metadc, run_samples=run_samples)
    for device in ("rack-156", "rack-158", "rack-160"):
        ts = np.concatenate([batch.frame.filter(pl.col("device") == device)["ts"].to_numpy() for batch in batches])
        assert (np.diff(ts) >= 0).all()
    width = max(1_000_000_000, -(-run_samples * MS // 1_000_000_000) * 1_000_000_000)
    spans = [(batch.frame["ts"].min() // width, batch.frame["ts"].max() // width) for batch in batches]
    assert all(first == last for first, last in spans)
    assert spans == sorted(spans)
    assert [batch.ended for batch in batches[:-1]] == [()] * (len(batches) - 1)
    assert batches[-1].ended == ("rack-156", "rack-158", "rack-160")


def test_frames_are_of_the_family(tmp_path):
    """Columns and types are those of burst_sample, the times the recording's own, the line rate the given one."""
    batches, _ = read(write(tmp_path / "a.csv", some_rows(5)), line_rate_bps=25_000_000_000)
    for batch in batches:
        assert batch.family == "burst_sample"
        assert dict(batch.frame.schema) == FAMILIES["burst_sample"].polars
        assert batch.frame["recv_ts"].to_list() == batch.frame["ts"].to_list()
        assert set(batch.frame["speed_bps"]) == {25_000_000_000}
        assert set(batch.frame["source"]) == {"millisampler"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("abc", "holds 'abc'"),
        ("-4", "holds '-4'"),
        ("1.5", "holds '1.5'"),
        ("", "is empty"),
        (str(2**64), "holds '18446744073709551616'"),
        ("nan", "holds 'nan'"),
    ],
)
@pytest.mark.parametrize("line", [2, 5, 9])
def test_a_bad_value_is_named_and_the_rows_before_it_kept(tmp_path, value, says, line):
    """A value that is no count of bytes is an error with path, line and column; all earlier rows arrive."""
    rows = some_rows(8)
    rows[line - 2][HEADER.index("IngressBytes2")] = value
    batches, fault = read(write(tmp_path / "bad.csv", rows))
    assert f"bad.csv: line {line}: column 'IngressBytes2' {says}" in str(fault)
    assert samples(batches) == by_hand(rows[: line - 2])
    assert not batches or batches[-1].ended


@pytest.mark.parametrize(
    ("change", "says"), [(lambda row: row[:-2], "ends after 10 of 12 columns"), (lambda row: [*row, "1"], "has 13 values")]
)
def test_a_row_of_another_width_is_an_error(tmp_path, change, says):
    """A row with a missing or an extra column is an error, never filled or cut."""
    rows = some_rows(6)
    rows[3] = change(rows[3])
    batches, fault = read(write(tmp_path / "short.csv", rows))
    assert "line 5" in str(fault)
    assert says in str(fault)
    assert samples(batches) == by_hand(rows[:3])


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("hostid", "hostd", "column 'hostid' is missing; rename the column 'hostd' to it"),
        ("rackid", "rack", "column 'rackid' is missing"),
        ("IngressBytes2", "Other", "column 'IngressBytes2' is missing"),
        ("EgressBytesAgg", "EgresBytesAgg", "did you mean 'egressbytesagg'"),
        ("IngressBytes2", "IngressBytes1", "column 'IngressBytes1' is there twice"),
    ],
)
def test_a_wrong_header_is_an_error_with_a_hint(tmp_path, before, after, says):
    """A column that is missing, misspelt or double is named before anything is read."""
    path = write(tmp_path / "header.csv", some_rows(2), [after if name == before else name for name in HEADER])
    batches, fault = read(path)
    assert says in str(fault)
    assert batches == []


@pytest.mark.parametrize("text", [b"", b"\n", b"\x00\xff" * 500, ",".join(HEADER).encode() + b"\n"])
def test_a_file_without_samples_is_an_error(tmp_path, text):
    """A file without samples is an error, not a quiet network."""
    path = tmp_path / "empty.csv"
    path.write_bytes(text)
    batches, fault = read(path)
    assert batches == []
    assert fault is not None


def test_a_row_told_twice_stays_in_its_rack(tmp_path):
    """Where the file names racks, a window that comes twice is the same host's twice; without names it is another rack's."""
    rows = ["0,10,20", "2,30,40", "0,10,20", "2,30,40", "4,50,60"]
    named = tmp_path / "named.csv"
    named.write_text("rackid,hostid,window_start,IngressBytes0,IngressBytes1\n" + "".join(f"1,7,{row}\n" for row in rows))
    batches, fault = read(named)
    runs = pl.concat([batch.frame for batch in batches])
    assert fault is None
    assert set(runs.select("device", "port").rows()) == {("rack-1", "host-7")}
    samples = sorted((ts + k * MS - START_NS, value) for ts, values in runs.select("ts", "values").rows() for k, value in enumerate(values))
    assert samples == sorted([(k * MS, 10 * (k + 1)) for k in range(4)] * 2 + [(4 * MS, 50), (5 * MS, 60)])
    nameless = tmp_path / "nameless.csv"
    nameless.write_text("server_hostname,window_start,IngressBytes0,IngressBytes1\n" + "".join(f"7,{row}\n" for row in rows))
    assert {device for batch in read(nameless)[0] for device in batch.frame["device"]} == {"nameless", "nameless-2"}


def test_sums_of_rows_longer_than_a_second_are_left_out_and_told(tmp_path, caplog):
    """A row of 1,001 samples of 1 ms gives its samples; a sum over more than a second is no burst sample."""
    path = tmp_path / "long.csv"
    bins = [f"IngressBytes{k}" for k in range(1001)]
    path.write_text(
        ",".join(["rackid", "hostid", "EgressBytesAgg", *bins]) + "\n" + ",".join(["1", "2", "77", *map(str, range(1001))]) + "\n"
    )
    batches, fault = read(path)
    assert fault is None
    assert {signal for batch in batches for signal in batch.frame["signal"]} == {"rx_bytes"}
    assert sum(sum(values) for batch in batches for values in batch.frame["values"]) == sum(range(1001))
    assert "EgressBytesAgg" in caplog.text


def test_a_window_far_off_is_an_error(tmp_path):
    """An impossible start is an error; the rows before it arrive."""
    header = ["host_id", "window_start", "ingressBytes_0", "ingressBytes_1"]
    rows = [["5", "0", "1", "2"], ["5", "500", "3", "4"], ["5", str(2**63), "5", "6"], ["5", "2", "7", "8"]]
    batches, fault = read(write(tmp_path / "far.csv", rows, header), device="rack-x")
    assert f"row 3: window_start {2**63}" in str(fault)
    found = {(device, slot - START_NS // MS): value for (device, _, _, _, slot), value in samples(batches).items()}
    assert found == {("rack-x", 0): 1, ("rack-x", 1): 2, ("rack-x", 500): 3, ("rack-x", 501): 4}


def test_line_ends_quotes_and_blank_lines_do_not_matter(tmp_path):
    """A file from another system reads the same."""
    rows = some_rows(4)
    text = "\ufeff" + "\r\n".join(
        [",".join(HEADER), ",".join(rows[0]), "", *(",".join(f'"{value}"' for value in row) for row in rows[1:]), ""]
    )
    path = tmp_path / "other.csv"
    path.write_bytes(text.encode())
    batches, fault = read(path)
    assert fault is None
    assert samples(batches) == by_hand(rows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000))
def test_a_truncated_csv_keeps_its_whole_rows(tmp_path, cut):
    """Cut at any byte, a file gives its whole rows, unchanged."""
    rows = some_rows(20)
    path = write(tmp_path / "cut.csv", rows)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    found = samples(read(path)[0])
    # The last number of a row may be cut without a trace: it is one that the file could have held.
    whole = by_hand(rows[: max(0, content.count(b"\n") - 1)])
    assert whole.items() <= found.items()
    assert found.keys() <= by_hand(rows).keys()


def record(count: int, **more):
    """Return a record in the dataset's form, with samples that show their position."""
    keys = ("ingressBytes", "egressBytes", "inRxmitBytes", "outRxmitBytes", "inCongestionExperiencedBytes", "connections")
    arrays = {key: [place * 10_000 + index for index in range(count)] for place, key in enumerate(keys)}
    return {"server_hostname": 91647, "sampling_freq": 1, **arrays, **more}


def pack(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return path


def series(batches, device: str, port: str, signal: str) -> list[int]:
    rows = pl.concat([batch.frame for batch in batches]).filter(device=device, port=port, signal=signal).sort("ts")
    return rows["values"].explode(empty_as_null=False).to_list()


def test_json_of_the_dataset_is_read_as_it_stands(tmp_path):
    """Six arrays become six signals of the host; the rack comes from the file's name, the interval from sampling_freq."""
    path = pack(tmp_path / "rackId_1001_hostId_5.txt.gz", record(2500, sampling_freq=10))
    batches, fault = read(path)
    assert fault is None
    signals = ("rx_bytes", "tx_bytes", "rx_retransmit_bytes", "tx_retransmit_bytes", "rx_ecn_bytes", "connections")
    for place, signal in enumerate(signals):
        assert series(batches, "rack-1001", "host-91647", signal) == [place * 10_000 + index for index in range(2500)]
    frame = pl.concat([batch.frame for batch in batches])
    assert set(frame["interval_ns"]) == {10 * MS}
    assert frame["ts"].min() == START_NS
    assert batches[-1].ended == ("rack-1001",)


def test_a_folder_is_one_recording_in_time_order(tmp_path):
    """Hosts of several files are side by side in time; the hour is in the folder's name; a host without arrays is no fault."""
    for host in (1, 2):
        pack(tmp_path / "day1-h1-zip" / f"rackId_3_hostId_{host}.txt.gz", record(2500, server_hostname=host))
    pack(tmp_path / "day1-h2-zip" / "rackId_3_hostId_1.txt.gz", record(100, server_hostname=1))
    pack(tmp_path / "day1-h1-zip" / "rackId_3_hostId_9.txt.gz", {"server_hostname": 9})
    batches, fault = read(tmp_path)
    assert fault is None
    ts = [batch.frame["ts"].min() for batch in batches]
    assert ts == sorted(ts)
    assert set(batches[0].frame["port"]) == {"host-1", "host-2"}
    assert batches[-1].frame["ts"].min() == START_NS + 3600 * 1_000_000_000
    assert len(series(batches, "rack-3", "host-1", "rx_bytes")) == 2600


def test_a_time_in_the_record_is_used(tmp_path):
    """A record with a start time, in any unit, has its samples there, on the grid."""
    for unit in (1, 1_000, 1_000_000, 1_000_000_000):
        path = pack(tmp_path / f"rackId_1_hostId_{unit}.json.gz", record(3, start_time=1_700_000_000 * unit))
        assert read(path)[0][0].frame["ts"].min() == 1_700_000_000 * 1_000_000_000


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_truncated_gzip_keeps_what_is_whole(tmp_path, share):
    """Cut at any byte, a file gives its samples at their times, then an error."""
    path = pack(tmp_path / "rackId_4_hostId_91647.txt.gz", record(400))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    batches, fault = read(path)
    assert fault is not None
    found, whole = samples(batches), {}
    for place, signal in enumerate(("rx_bytes", "tx_bytes", "rx_retransmit_bytes", "tx_retransmit_bytes", "rx_ecn_bytes", "connections")):
        for index in range(400):
            whole["rack-4", "host-91647", signal, MS, START_NS // MS + index] = place * 10_000 + index
    assert {key[2:]: value for key, value in found.items()}.items() <= {key[2:]: value for key, value in whole.items()}.items()
    if share > 0.8:
        assert len(found) > 400


@pytest.mark.parametrize(
    ("content", "kept", "says"),
    [
        (record(9, ingressBytes=[1, 2, "x", 4]), [1, 2], "ingressBytes: sample 2 is 'x'"),
        (record(9, ingressBytes=[1, -2, 4]), [1], "ingressBytes: sample 1 is '-2'"),
        (record(9, ingressBytes=[1, None]), [1], "ingressBytes: sample 1 is 'None'"),
        (record(9, ingressBytes=[1, 2, float("nan")]), [1, 2], "ingressBytes: sample 2 is 'nan'"),
        (record(9, ingressBytes=[[1], [2, 3]]), [], "ingressBytes: sample 0"),
        (record(9, ingressBytes=7), [], "ingressBytes: is not an array"),
        (record(9, ingressBytes=[1.0, 2.0]), [1, 2], None),
    ],
)
def test_a_bad_sample_in_json_is_named(tmp_path, content, kept, says):
    """A value that is no count is an error with file, key and place; earlier values and all other signals arrive."""
    path = pack(tmp_path / "rackId_1_hostId_1.txt.gz", content)
    batches, fault = read(path)
    assert (fault is None) if says is None else (says in str(fault))
    assert series(batches, "rack-1", "host-91647", "rx_bytes") == kept
    assert len(series(batches, "rack-1", "host-91647", "tx_bytes")) == 9


def test_one_broken_file_does_not_take_its_folder_with_it(tmp_path):
    """All other hosts of a folder arrive; the error comes at the end and names the file."""
    for host in (1, 2, 3):
        pack(tmp_path / f"rackId_3_hostId_{host}.txt.gz", record(50, server_hostname=host))
    (tmp_path / "rackId_3_hostId_2.txt.gz").write_bytes(b"\x1f\x8b not gzip at all")
    batches, fault = read(tmp_path)
    assert "rackId_3_hostId_2.txt.gz" in str(fault)
    assert set(pl.concat([batch.frame for batch in batches])["port"]) == {"host-1", "host-3"}


def test_two_files_of_one_host_and_time_are_not_added(tmp_path):
    """A copy of a file is an error, and its samples occur once."""
    for name in ("a_rackId_3_hostId_1.txt.gz", "b_rackId_3_hostId_1.txt.gz"):
        pack(tmp_path / name, record(50))
    batches, fault = read(tmp_path)
    assert "two files hold" in str(fault)
    assert len(samples(batches)) == 6 * 50


@pytest.mark.parametrize("sampling", [0, -1, "often", 1e12, None])
def test_a_sampling_interval_that_cannot_be_is_an_error(tmp_path, sampling):
    """No grid is guessed."""
    batches, fault = read(pack(tmp_path / "rackId_1_hostId_1.txt.gz", record(3, sampling_freq=sampling)))
    assert "sampling_freq" in str(fault)
    assert batches == []


def test_recordings_are_recognised_by_what_they_are(tmp_path):
    """A CSV is recognised by its columns, gzip by its keys or name, a folder by its files; anything else is refused."""
    table = write(tmp_path / "x.csv", some_rows(1))
    packed = pack(tmp_path / "sub" / "rackId_1_hostId_1.txt.gz", record(3))
    plain = tmp_path / "y.json"
    plain.write_text(json.dumps({"sampling_freq": 1}))
    for path in (table, packed, plain):
        assert MILLISAMPLER.recognises(path, path.read_bytes()[:4096])
    assert MILLISAMPLER.recognises(tmp_path / "sub", b"")
    for head in (b"ts,device,port\n", b"\xd4\xc3\xb2\xa1" * 6, b"", gzip.compress(b"hello"), b'{"a": 1}'):
        assert not MILLISAMPLER.recognises(tmp_path / "other", head)
