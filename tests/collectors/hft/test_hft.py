"""High-frequency telemetry end to end: from messages on a socket or in a file to samples, counters and gaps."""

import base64
import json
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipfix_bytes import T0, TIME_NS, counter, message, port_template, record, template

from weft.collectors.base import Batch, Options
from weft.collectors.hft.names import read_names
from weft.collectors.hft.recording import HftRecording
from weft.collectors.hft.streams import SLICE_NS
from weft.collectors.replay import recogniser
from weft.pipeline.errors import InputError

from .hft_rig import PORTS, STEP, joined, samples, telemetry, walk


def write(tmp_path: Path, content: bytes, names: str = "", ending: str = "toml") -> Path:
    """Write a recording, and names beside it."""
    path = tmp_path / "leaf1.ipfix"
    path.write_bytes(content)
    if names:
        path.with_name(f"{path.name}.{ending}").write_text(names)
    return path


def replay(tmp_path: Path, content: bytes, names: str = "", **options) -> list[Batch]:
    """Return the batches of a recording."""
    return list(HftRecording(write(tmp_path, content, names), Options(**options)).batches())


def test_differences_of_octets_become_samples(tmp_path):
    """Samples of each port and direction are the differences of its octets, in slots of the poll interval, under the port's name."""
    n, values = 3000, walk(3000, 4)
    jitter = np.random.default_rng(2).integers(-20_000, 20_000, n)
    batches = replay(tmp_path, message([(2, port_template(256, 2))]) + telemetry(values, T0 + 37_000 + np.arange(n) * STEP + jitter), PORTS)
    for column, (port, signal) in enumerate(
        [("Ethernet0", "rx_bytes"), ("Ethernet0", "tx_bytes"), ("Ethernet4", "rx_bytes"), ("Ethernet4", "tx_bytes")]
    ):
        got = samples(batches, port=port, signal=signal, interval_ns=STEP, device="leaf1", queue="", source="hft")
        assert list(got.values()) == np.diff(values[:, column]).tolist()
        assert np.diff(list(got)).tolist() == [STEP] * (n - 2)
        assert abs(min(got) - T0) <= STEP
    assert joined(batches, "gap").height == 0
    assert batches[-1].ended == ("leaf1",)


def test_rows_that_are_published_together_lie_close(tmp_path):
    """No batch spans more than a slice of time and a segment, so that none of its rows is late."""
    n = 20_000
    batches = replay(tmp_path, message([(2, port_template(256, 1))]) + telemetry(walk(n, 2), T0 + np.arange(n) * STEP))
    for batch in batches:
        if batch.family == "burst_sample":
            ends = batch.frame["ts"] + batch.frame["values"].list.len() * STEP
            assert ends.max() - batch.frame["ts"].min() <= SLICE_NS + STEP


def test_a_hole_ends_the_run_and_is_admitted(tmp_path):
    """A missing record leaves its slots without samples; the gap counts them, and the rest adds up."""
    n, values = 1000, walk(1000, 2)
    keep = np.ones(n, bool)
    keep[[100, 500, 501, 502]] = False
    times = T0 + np.arange(n) * STEP
    batches = replay(tmp_path, message([(2, port_template(256, 1))]) + telemetry(values[keep], times[keep]))
    got = samples(batches, signal="rx_bytes")
    wanted = {int(times[k]): int(values[k + 1, 0] - values[k, 0]) for k in range(n - 1) if keep[k] and keep[k + 1]}
    assert got == wanted
    gaps = joined(batches, "gap").filter(what="samples")
    # Two signals, each with gaps of two and of four slots.
    assert gaps.select("reason", "missed").rows() == [("missing_reading", 2 * (2 + 4))]


def test_a_reset_ends_the_run_and_opens_an_epoch(tmp_path):
    """A counter that decreases was reset: the sample is missing, and later rows have a new epoch."""
    values = walk(200, 2)
    values[100:, 0] -= values[100, 0]
    times = T0 + np.arange(200) * STEP
    batches = replay(tmp_path, message([(2, port_template(256, 1))]) + telemetry(values, times))
    rows = joined(batches, "burst_sample").filter(signal="rx_bytes").sort("ts")
    assert rows["values"].list.len().to_list() == [99, 99]
    assert rows["epoch"].to_list() == [0, int(times[100])]
    assert joined(batches, "gap").select("reason", "missed").rows() == [("counter_reset", 1)]
    assert joined(batches, "port").select("epoch", "rx_bytes").rows() == [(int(times[100]), int(values[-1, 0]))]


@pytest.mark.parametrize("width", [4, 5, 6])
def test_narrow_counters_wrap(tmp_path, width):
    """A counter narrower than 64 bits that wraps loses nothing, neither in samples nor in rows, whose counters continue in 64 bits."""
    n = 4000
    grown = 2 ** (8 * width) - 10_000_000 + np.arange(n, dtype=np.int64) * 5000
    fields = [TIME_NS, counter(1, 1, 0, width)]
    data = b"".join(
        message([(256, struct.pack(">Q", T0 + k * 10 * STEP) + (int(v) % 2 ** (8 * width)).to_bytes(width, "big"))], sequence=k)
        for k, v in enumerate(grown)
    )
    batches = replay(tmp_path, message([(2, template(256, fields))]) + data, PORTS)
    assert list(samples(batches, signal="rx_bytes").values()) == [5000] * (n - 1)
    rows = joined(batches, "port").sort("ts")
    assert rows["rx_bytes"].to_list() == [int(grown[999]), int(grown[1999]), int(grown[2999]), int(grown[3999])]
    assert rows["epoch"].unique().to_list() == [0]


QUEUES = """
[[session]]
name = "profile|QUEUE"
poll_interval_us = 100
object_names = "Ethernet0|3,Ethernet0|4"
object_ids = "1,2"

[[session]]
name = "profile|INGRESS_PRIORITY_GROUP"
object_names = ["Ethernet0|3"]
object_ids = [3]

[[session]]
name = "profile|BUFFER_POOL"
object_names = ["egress_lossless_pool"]
object_ids = [4]
"""


def test_objects_that_nobody_named_are_told_apart(tmp_path):
    """Without names, label 1 of the ports and label 1 of the queues are two objects."""
    fields = [TIME_NS, counter(1, 1, 9), counter(1, 21, 1)]
    n, values = 50, walk(50, 2)
    batches = replay(tmp_path, message([(2, template(256, fields))]) + telemetry(values, T0 + np.arange(n) * STEP))
    assert set(joined(batches, "burst_sample")["port"]) == {"port1", "queue1"}
    for column, port in enumerate(("port1", "queue1")):
        assert list(samples(batches, port=port).values()) == np.diff(values[:, column]).tolist()


def test_queues_groups_and_pools(tmp_path):
    """Bytes and occupancy of queues, priority groups and pools are sampled; rows hold the last counter and the highest gauge."""
    fields = [
        TIME_NS,
        counter(1, 21, 1),
        counter(1, 21, 0x18),
        counter(2, 21, 0x22),
        counter(3, 26, 1),
        counter(3, 26, 2),
        counter(4, 24, 0),
    ]
    n = 100
    sent, marked = walk(n, 1)[:, 0], np.arange(n)
    depth = np.random.default_rng(3).integers(0, 10**6, (n, 3))
    values = np.stack((sent, depth[:, 0], marked, sent * 2, depth[:, 1], depth[:, 2]), axis=1)
    times = T0 + np.arange(n) * STEP
    batches = replay(tmp_path, message([(2, template(256, fields))]) + telemetry(values, times), QUEUES)
    assert list(samples(batches, port="Ethernet0", queue="3", signal="tx_bytes").values()) == np.diff(sent).tolist()
    assert list(samples(batches, port="Ethernet0", queue="3", signal="rx_bytes").values()) == (2 * np.diff(sent)).tolist()
    for column, keys in enumerate(
        [{"port": "Ethernet0", "queue": "3"}, {"port": "Ethernet0", "queue": "pg3"}, {"port": "", "queue": "egress_lossless_pool"}]
    ):
        got = samples(batches, signal="queue_bytes", **keys)
        assert got == dict(zip(times.tolist(), depth[:, column].tolist(), strict=True))
    columns = ("port", "queue", "direction", "bytes", "occupancy_bytes", "ecn_marked_packets")
    high = depth.max(axis=0).tolist()
    assert set(joined(batches, "queue").select(columns).rows()) == {
        ("Ethernet0", "3", "tx", int(sent[-1]), high[0], None),
        ("Ethernet0", "4", "tx", None, None, 99),
        ("Ethernet0", "3", "rx", int(sent[-1]) * 2, high[1], None),
        ("", "egress_lossless_pool", "pool", None, high[2], None),
    }


def test_counters_of_ports_come_once_per_span(tmp_path):
    """Beside the samples there is one row a second per port, per-priority counters in rows of their queue, FEC bins as a list."""
    fields = [
        TIME_NS,
        counter(1, 1, 0),
        counter(1, 1, 0x6D),
        counter(1, 1, 0x8D),
        *(counter(1, 1, 0xB7 + n) for n in range(3)),
        counter(1, 1, 0x5B),
    ]
    n = 25
    values = np.arange(n)[:, None] * 1000 + np.arange(7)
    values[:, 6] = [5, 900] + [7] * (n - 2)
    times = T0 + np.arange(n) * STEP * 1000
    batches = replay(tmp_path, message([(2, template(256, fields))]) + telemetry(values, times), PORTS)
    rows = joined(batches, "port").sort("ts")
    assert rows.select("ts", "port", "rx_bytes", "fec_bins").rows() == [
        (int(times[k]), "Ethernet0", k * 1000, [k * 1000 + 3, k * 1000 + 4, k * 1000 + 5]) for k in (9, 19, 24)
    ]
    queues = joined(batches, "queue").sort("ts").select("port", "queue", "direction", "pfc_rx_frames", "pfc_rx_pause_us").rows()
    assert queues == [("Ethernet0", "3", "tx", k * 1000 + 1, k * 1000 + 2) for k in (9, 19, 24)]
    # The dictionary has no column for it: its highest value, since it is an occupancy.
    readings = joined(batches, "reading").sort("ts").select("kind", "object", "value", "count").rows()
    assert readings == [("port", "Ethernet0", 900.0, 900), ("port", "Ethernet0", 7.0, 7), ("port", "Ethernet0", 7.0, 7)]


def test_unknown_statistics_and_labels_are_kept(tmp_path):
    """An unknown statistic becomes a reading under its number, an object without a name is named by its label."""
    fields = [TIME_NS, counter(7, 0x2000_0001, 0x2000_0002)]
    path = write(tmp_path, message([(2, template(256, fields))]) + telemetry(np.array([[2**60 + 1]]), np.array([T0])))
    recording = HftRecording(path, Options())
    (row,) = joined(list(recording.batches()), "reading").select("object", "name", "count").rows()
    assert row == ("label7", f"sai_counter_type_{0x2000_0001}_stat_{0x2000_0002}", 2**60 + 1)
    assert recording.counters()["unknown_series"] == 1


def test_a_new_template_goes_on_where_the_old_one_stood(tmp_path):
    """A session regenerated under another template id, with the columns in another order, loses no sample."""
    n, values = 400, walk(400, 4)
    times = T0 + np.arange(n) * STEP
    fresh = template(300, [TIME_NS, counter(2, 1, 9), counter(2, 1, 0), counter(1, 1, 9), counter(1, 1, 0)])
    content = message([(2, port_template(256, 2))]) + telemetry(values[:200], times[:200])
    content += message([(2, fresh)]) + telemetry(values[200:, ::-1], times[200:], 300)
    batches = replay(tmp_path, content, PORTS)
    for column, (port, signal) in enumerate([("Ethernet0", "rx_bytes"), ("Ethernet0", "tx_bytes"), ("Ethernet4", "rx_bytes")]):
        assert list(samples(batches, port=port, signal=signal).values()) == np.diff(values[:, column]).tolist()
    assert joined(batches, "gap").filter(what="samples").height == 0


@pytest.mark.parametrize("widths", [(4, 8), (8, 4), (8, 8)])
def test_a_template_that_changes_in_the_middle_of_a_file_goes_on(tmp_path, widths):
    """A template sent again with registers of another width loses only the sample between the two; with the same width, none."""
    n, values, times = 400, 10 * 2**30 + walk(400, 1), T0 + np.arange(400) * STEP
    content, numbers = b"", iter(range(n))
    for width, part in zip(widths, (slice(0, 200), slice(200, n)), strict=True):
        stats = [TIME_NS, counter(1, 1, 0, width)] + ([counter(1, 1, 9)] if part.start and widths == (8, 8) else [])
        content += message([(2, template(256, stats))])
        for ts, value in zip(times[part].tolist(), values[part, 0].tolist(), strict=True):
            fields = struct.pack(">QI" if width == 4 else ">QQ", ts, value % 2 ** (8 * width)) + (bytes(8) if len(stats) == 3 else b"")
            content += message([(256, fields)], sequence=next(numbers))
    batches = replay(tmp_path, content, PORTS)
    wanted = {int(times[k]): int(values[k + 1, 0] - values[k, 0]) for k in range(n - 1) if widths == (8, 8) or k != 199}
    assert samples(batches, signal="rx_bytes") == wanted
    epochs = joined(batches, "port").filter(pl.col("rx_bytes").is_not_null())["epoch"].unique()
    assert len(epochs) == (1 if widths == (8, 8) else 2)


def test_nanoseconds_alone_are_of_the_messages_second_or_the_one_before(tmp_path):
    """Records with nanoseconds within a second, exported 2 ms later, keep their time across the second's end."""
    for first in (0, 998_500_000, 999_900_000):
        n, values = 30_000, walk(30_000, 1)
        times = T0 + first + np.arange(n) * STEP
        content = message([(2, template(256, [struct.pack(">HH", 325, 4), counter(1, 1, 0)]))])
        for k, (ts, value) in enumerate(zip(times.tolist(), values[:, 0].tolist(), strict=True)):
            content += message([(256, struct.pack(">IQ", ts % 10**9, value))], sequence=k, exported=(ts + 2_000_000) // 10**9)
        batches = replay(tmp_path, content, PORTS)
        assert samples(batches, signal="rx_bytes") == dict(zip(times[:-1].tolist(), np.diff(values[:, 0]).tolist(), strict=True))
        assert joined(batches, "gap").height == 0


def test_a_clock_that_drifts_loses_a_sample_in_thousands(tmp_path):
    """With a poll 100 ppm off its interval, slots stay filled except the few where the phase slips, which are gaps."""
    n, values = 30_000, walk(30_000, 2)
    for ppm in (100, -100):
        times = T0 + (np.arange(n) * STEP * (1 + ppm / 1e6)).astype(np.int64) + np.random.default_rng(4).integers(0, 30_000, n)
        batches = replay(tmp_path, message([(2, port_template(256, 1))]) + telemetry(values, times))
        got = samples(batches, signal="rx_bytes", interval_ns=STEP)
        missed = joined(batches, "gap").filter(what="samples")["missed"].sum() / 2
        assert n - 1 - len(got) <= 2 * 4
        assert missed <= 2 * 4
        total = sum(got.values())
        assert values[-1, 0] - values[0, 0] - 8 * 200_000 <= total <= values[-1, 0] - values[0, 0]


def test_duplicates_and_reordered_records_count_once(tmp_path):
    """Records repeated or out of order within a call give each sample once."""
    n, values = 300, walk(300, 2)
    order = np.concatenate((np.arange(n), [50, 51]))
    order[[10, 11]] = order[[11, 10]]
    times = T0 + np.arange(n) * STEP
    path = write(tmp_path, message([(2, port_template(256, 1))]) + telemetry(values[order], times[order]))
    recording = HftRecording(path, Options())
    assert list(samples(list(recording.batches()), signal="rx_bytes").values()) == np.diff(values[:, 0]).tolist()
    assert recording.counters()["duplicate_readings"] == 2


@given(st.integers(2, 60), st.lists(st.integers(0, 59), max_size=8), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_samples_and_what_is_missing_make_the_whole(tmp_path_factory, n, lost, seed):
    """Whatever records are lost, samples and gaps together fill all slots, and each sample is the difference over its slot."""
    rng = np.random.default_rng(seed)
    values, times = np.cumsum(rng.integers(0, 2**40, (n, 2)), axis=0), T0 + np.arange(n) * STEP + rng.integers(0, STEP // 3, n)
    keep = np.ones(n, bool)
    keep[[k for k in lost if 0 < k < n - 1]] = False
    names = "[[session]]\npoll_interval_us = 100\nobject_names = ['Ethernet0']"
    batches = replay(tmp_path_factory.mktemp("hft"), message([(2, port_template(256, 1))]) + telemetry(values[keep], times[keep]), names)
    got = samples(batches, signal="rx_bytes")
    gaps = joined(batches, "gap").filter(what="samples")
    assert len(got) + (gaps["missed"].sum() or 0) // 2 == n - 1
    assert sorted(got.values()) == sorted(int(values[k + 1, 0] - values[k, 0]) for k in range(n - 1) if keep[k] and keep[k + 1])


def test_a_recording_that_breaks_gives_what_was_good(tmp_path):
    """Rows before a malformed message are there and end their device, then the error gives the place and a hint."""
    content = message([(2, port_template(256, 1))]) + telemetry(walk(10, 2), T0 + np.arange(10) * STEP)
    for tail, said in ((b"nonsense, not a message", "is no IPFIX message"), (content[:20], "is cut")):
        batches, recording = [], HftRecording(write(tmp_path, content + tail), Options())
        with pytest.raises(InputError, match=said):
            batches.extend(recording.batches())
        assert len(samples(batches, signal="rx_bytes")) == 9


def test_a_recording_is_recognised(tmp_path):
    """A file of IPFIX messages is recognised by its first bytes."""
    assert recogniser(write(tmp_path, message([(2, port_template(256, 1))]) * 3), None).name == "hft"


def test_a_capture_gives_what_the_messages_give(tmp_path):
    """IPFIX in the UDP packets of a capture is recognised, and gives the rows of each sender under its address."""
    values = walk(50, 2)
    out = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)
    datagrams = [message([(2, port_template(256, 1))])] + [
        message([(256, record(T0 + k * STEP, row))], sequence=k) for k, row in enumerate(values.tolist())
    ]
    for one in datagrams:
        for host in (1, 2):
            udp = struct.pack(">HHHH", 4000, 4739, 8 + len(one), 0) + one
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes([10, 0, 0, host]), bytes([10, 0, 0, 9])) + udp
            frame = b"\2" * 12 + b"\x08\x00" + ip
            out += struct.pack("<IIII", T0 // 10**9, 0, len(frame), len(frame)) + frame
    path = write(tmp_path, out, PORTS)
    assert recogniser(path, None).name == "hft"
    batches = list(HftRecording(path, Options()).batches())
    for device in ("10.0.0.1", "10.0.0.2"):
        assert list(samples(batches, device=device, port="Ethernet0", signal="rx_bytes").values()) == np.diff(values[:, 0]).tolist()
    assert batches[-1].ended == ("10.0.0.1", "10.0.0.2")


STATE_DB = {
    "HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE|p|PORT": {
        "type": "hash",
        "value": {"stream_status": "enabled", "session_type": "ipfix", "object_names": "Ethernet0, Ethernet4", "object_ids": "5,6"},
    },
    "PORT_TABLE|Ethernet0": {"value": {"oper_status": "up"}},
}


@pytest.mark.parametrize("encode", [bytes.hex, lambda raw: base64.b64encode(raw).decode(), lambda raw: raw.decode("latin-1")])
def test_a_dump_of_the_database_names_the_labels(tmp_path, encode):
    """A dump of STATE_DB gives names and templates, in every encoding of its binary field."""
    raw = message([(2, port_template(256, 1))])
    STATE_DB["HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE|p|PORT"]["value"]["session_config"] = encode(raw)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(STATE_DB))
    names = read_names(path)
    assert (names.of(1, 5), names.of(1, 6), names.of(21, 5), names.of(1, 9)) == ("Ethernet0", "Ethernet4", "Ethernet0", "port9")
    assert names.templates == (raw,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "no table"),
        ('{"a": 1}', "no session"),
        ('{"session": [{"object_names": "a,b", "object_ids": "1"}]}', "2 names and 1 ids"),
        ('{"session": [{"object_names": "a", "object_ids": "0"}]}', "not from 1"),
        ('{"session": [{"object_names": "a", "session_config": "zz"}]}', "no IPFIX message"),
        ('{"session": [{"object_names": "a", "poll_interval_us": "often"}]}', "no number"),
    ],
)
def test_a_file_of_sessions_that_is_none_says_so(tmp_path, text, said):
    """A malformed file of sessions is an error that names the file and has a hint."""
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        read_names(path)
    assert str(path) in str(error.value)
