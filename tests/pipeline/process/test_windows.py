"""Event-time windows: the log alone decides which rows are late, and open windows survive any crash exactly once."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.pipeline.bus import Message
from weft.pipeline.codec import encode, headers
from weft.pipeline.process.bursts.metric import BurstMetric
from weft.pipeline.process.packets.metric import PacketMetric
from weft.pipeline.process.windows import AHEAD_NS_MAX, PartitionWindows, WindowConfig
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import WINDOW_NS
from weft.pipeline.tables.states import STATES

T0 = 1_640_995_200 * WINDOW_NS
MS = 1_000_000
S = WINDOW_NS
RUNS = FAMILIES["burst_sample"]
LATENESS_NS = S // 2


def run(ts: int | None, values: list[int], *, interval_ns: int = 50 * MS, port: str = "p0", recv_ts: int | None = None) -> dict[str, Any]:
    received = recv_ts if recv_ts is not None else (ts if ts is not None else T0)
    row = {"ts": ts, "recv_ts": received, "source": "test", "port": port, "queue": "", "signal": "rx_bytes"}
    return {**row, "interval_ns": interval_ns, "speed_bps": 10**9, "values": values}


def message(offset: int, rows: list[dict[str, Any]], key: str = "d0", **more: str) -> Message:
    frame = pl.DataFrame(rows, schema={name: RUNS.polars[name] for name in run(0, [])})
    return Message(RUNS.topic, 0, offset, key, encode(frame, RUNS), {**headers(RUNS, source="test"), **more})


def poison(offset: int, value: bytes = b"nonsense", key: str = "d0", **wrong: str) -> Message:
    return Message(RUNS.topic, 0, offset, key, value, {**headers(RUNS, source="test"), **wrong})


def windows(**config: float) -> PartitionWindows:
    return PartitionWindows(BurstMetric(), WindowConfig(**config))


def all_rows(taken: Iterable[dict[str, pl.DataFrame]]) -> dict[str, Counter]:
    """Return every row as text, counted; the counts of quality rows of one key are added up."""
    out: dict[str, Counter] = {name: Counter() for name in ("port_samples", "bursts", "groups", "quality", "gap")}
    for tables in taken:
        for name, frame in tables.items():
            for row in frame.iter_rows():
                if name == "quality":
                    for kind, count in zip(STATES["quality"].having("sum"), row[4:], strict=True):
                        out[name][(*row[:4], kind)] += count
                else:
                    out[name][repr(row)] += 1
    out["quality"] = +out["quality"]
    return out


def drive(log: list[Message], cuts: list[int] | None = None) -> dict[str, Counter]:
    """Return the rows of a log that is read in the given rounds (one message each by default)."""
    held, taken = windows(), []
    borders = [0, *sorted(cuts), len(log)] if cuts is not None else list(range(len(log) + 1))
    for begin, end in pairwise(borders):
        for entry in log[begin:end]:
            held.add(entry, 0)
        held.close(0)
        taken.append(held.take())
    return all_rows(taken)


def drive_with_crashes(log: list[Message], rng: np.random.Generator) -> dict[str, Counter]:
    """Return the rows of a log whose reader commits at random and dies at random."""
    committed: list[dict[str, pl.DataFrame]] = []
    memory, position, crashes = None, 0, 0
    while True:
        held, pending = windows(), []
        position = held.restore(memory, 0)
        while position < len(log):
            for entry in log[position : (position := min(len(log), position + int(rng.integers(1, 4))))]:
                held.add(entry, 0)
            if rng.random() < 0.2 and crashes < 30:
                break
            held.close(0)
            pending.append(held.take())
            if rng.random() < 0.2 and crashes < 30:
                break
            memory = held.remember(held.resume(position))
            committed += pending
            pending = []
        else:
            return all_rows(committed)
        crashes += 1


# --- the rules, in plain Python ---------------------------------------------------------------------------------------


def judged(log: list[Message], sent: list[list[dict[str, Any]]]) -> tuple[dict[tuple, int], Counter]:
    """Return the sample of each (device, port, interval, slot) that counts, and the quality counts, message by message."""
    seen: dict[str, int] = {}
    mark: dict[str, int] = {}
    samples: dict[tuple, int] = {}
    quality: Counter = Counter()
    for entry, rows in zip(log, sent, strict=True):
        device, newest = entry.key, []
        late_before = mark.get(device, 0)
        for row in rows:
            ts, interval, count = row["ts"], row["interval_ns"], len(row["values"])
            wrong = ts is None or not 0 <= ts < 2**62 or not 1_000 <= interval <= S
            wrong = wrong or ts // interval * interval + count * interval > row["recv_ts"] + AHEAD_NS_MAX
            if wrong:
                quality[max(row["recv_ts"], 0) // S * S, device, row["port"], "rx_bytes", "implausible"] += count
                continue
            first = ts // interval
            for slot, value in enumerate(row["values"], first):
                if slot * interval < late_before:
                    quality[first * interval // S * S, device, row["port"], "rx_bytes", "late"] += 1
                    continue
                place = (device, row["port"], interval, slot)
                if place in samples:
                    quality[slot * interval // S * S, device, row["port"], "rx_bytes", "duplicates"] += 1
                samples[place] = max(value, samples.get(place, 0))
                newest.append((first + count) * interval)
        if newest:
            seen[device] = max(seen.get(device, 0), *newest)
            mark[device] = max(mark.get(device, 0), (seen[device] - LATENESS_NS) // S * S)
        if entry.headers.get("end") == "1" and device in seen:
            mark[device] = -(-seen[device] // S) * S
    return samples, quality


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Message], list[list[dict[str, Any]]]]:
    """Return a log of two devices with late rows, time leaps, impossible rows and ends, and the contents of its messages."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    now = {"d0": T0 + int(rng.integers(S)), "d1": T0 + 5 * S}
    log, sent = [], []
    for offset in range(draw(st.integers(1, 25))):
        device = "d0" if rng.random() < 0.7 else "d1"
        now[device] += int(rng.integers(0, 700 * MS))
        rows = []
        for port in ("p0", "p1")[: int(rng.integers(1, 3))]:
            back = int(rng.choice([0, 0, 0, 200 * MS, 900 * MS, 2500 * MS]))
            interval = int(rng.choice([50 * MS, 70 * MS, S]))
            rows.append(
                run(now[device] - back, rng.integers(0, 9_000_000, int(rng.integers(0, 25))).tolist(), interval_ns=interval, port=port)
            )
        if rng.random() < 0.15:
            odd = [
                run(now[device] + AHEAD_NS_MAX + 2 * S, [1, 2], recv_ts=now[device]),
                run(None, [3]),
                run(-5 * S, [4], recv_ts=now[device]),
                run(2**63 - 1, [4], recv_ts=now[device]),
                run(now[device], [5, 5, 5], interval_ns=0),
                run(now[device], [6], interval_ns=2**62),
                run(now[device], [7], interval_ns=999),
            ]
            rows.append(odd[int(rng.integers(len(odd)))])
        log.append(message(offset, rows, device, **({"end": "1"} if rng.random() < 0.08 else {})))
        sent.append(rows)
    for offset, device in enumerate(now, len(log)):
        log.append(message(offset, [], device, end="1"))
        sent.append([])
    return log, sent


@settings(max_examples=40)
@given(logs())
def test_what_counts_and_what_is_late_follow_from_the_order_of_the_log(made: tuple[list[Message], list[list[dict[str, Any]]]]) -> None:
    """Every sample is in its window, or counted as late, duplicate or implausible, as the rule defines message by message."""
    log, sent = made
    held, taken = windows(), []
    for entry in log:
        held.add(entry, 0)
    held.close(0)
    taken.append(held.take())
    samples, quality = judged(log, sent)
    totals: Counter = Counter()
    for (device, port, interval, slot), value in samples.items():
        totals[device, port, interval, slot * interval // S * S, "samples"] += 1
        totals[device, port, interval, slot * interval // S * S, "total"] += value
    got: Counter = Counter()
    for tables in taken:
        if "port_samples" in tables:
            for device, port, interval, ts, count, total in (
                tables["port_samples"].select("device", "port", "interval_ns", "ts", "samples", "total").iter_rows()
            ):
                got[device, port, interval, ts, "samples"] += count
                got[device, port, interval, ts, "total"] += total
    assert +got == +totals
    assert all_rows(taken)["quality"] == quality


@settings(max_examples=40)
@given(logs(), st.data())
def test_any_grouping_into_polls_gives_the_same_rows(made: tuple[list[Message], list[list[dict[str, Any]]]], data: st.DataObject) -> None:
    """Rows, quality counts included, do not depend on the number of messages that one read returns."""
    log, _ = made
    cuts = data.draw(st.lists(st.integers(0, len(log)), max_size=6))
    assert drive(log, cuts) == drive(log)


@settings(max_examples=30)
@given(logs(), st.integers(0, 2**32))
def test_any_crash_repeats_and_loses_nothing(made: tuple[list[Message], list[list[dict[str, Any]]]], seed: int) -> None:
    """A reader that dies anywhere and resumes with the saved state makes every row exactly once."""
    log, _ = made
    assert drive_with_crashes(log, np.random.default_rng(seed)) == drive(log)


# --- single rules ------------------------------------------------------------------------------------------------------


def closed(held: PartitionWindows) -> list[tuple[int, int]]:
    """Return (start in s after T0, samples) of the windows closed since the last call."""
    held.close(0)
    frame = held.take().get("port_samples")
    return [] if frame is None else [((ts - T0) // S, n) for ts, n in frame.sort("ts").select("ts", "samples").iter_rows()]


def test_a_window_closes_when_the_lateness_has_passed() -> None:
    """A window of 1 s closes with the first sample that ends half a second after it, not before."""
    held = windows()
    held.add(message(0, [run(T0, [1] * 20)]), 0)
    held.add(message(1, [run(T0 + S, [1] * 9)]), 0)
    assert closed(held) == []
    held.add(message(2, [run(T0 + S + 450 * MS, [1])]), 0)
    assert closed(held) == [(0, 20)]


def test_devices_do_not_wait_for_each_other() -> None:
    """Each device has its own time: one that is a day behind closes its windows as it goes."""
    held = windows()
    held.add(message(0, [run(T0 + 86_400 * S, [1] * 60)], "ahead"), 0)
    held.add(message(1, [run(T0, [1] * 60)], "behind"), 0)
    held.close(0)
    assert sorted(held.take()["port_samples"]["device"].to_list()) == ["ahead"] * 2 + ["behind"] * 2


def test_an_end_closes_what_is_open() -> None:
    """A message with header ``end`` closes the windows of its device at once, and of no other."""
    held = windows()
    held.add(message(0, [run(T0, [9_000_000])], "d1"), 0)
    held.add(message(1, [run(T0, [9_000_000] * 3)], end="1"), 0)
    held.close(0)
    made = held.take()
    assert made["port_samples"].select("device", "samples").rows() == [("d0", 3)]
    assert made["bursts"].select("device", "duration_ns").rows() == [("d0", 150 * MS)]


def test_samples_after_an_end_begin_anew() -> None:
    """Rows of a device after its end start over: no burst crosses the end, and the window of the end has closed."""
    held = windows()
    held.add(message(0, [run(T0, [9_000_000] * 20)], end="1"), 0)
    held.add(message(1, [run(T0 + S, [9_000_000] * 20)], end="1"), 0)
    held.close(0)
    assert held.take()["bursts"]["duration_ns"].to_list() == [S, S]


def test_a_live_device_that_falls_silent_is_closed() -> None:
    """After ``idle_s`` without a message the open windows of a live device close; those of a replayed one wait."""
    held = windows()
    held.add(message(0, [run(T0, [1] * 3)], "live", live="1"), 0)
    held.add(message(1, [run(T0, [1] * 3)], "replayed"), 0)
    held.close(5 * S)
    assert held.take() == {}
    held.close(5 * S + 1)
    assert held.take()["port_samples"]["device"].to_list() == ["live"]
    held.add(message(2, [run(T0 + 500 * MS, [1])], "live", live="1"), 6 * S)
    assert all_rows([held.take()])["quality"] == Counter({(T0, "live", "p0", "rx_bytes", "late"): 1})


@pytest.mark.parametrize(("ahead_ns", "refused"), [(AHEAD_NS_MAX - 50 * MS, 0), (AHEAD_NS_MAX, 1)])
def test_rows_ahead_of_time_are_refused(ahead_ns: int, refused: int) -> None:
    """A row that ends more than a minute after its receipt is counted, and closes no window."""
    held = windows()
    held.add(message(0, [run(T0 + ahead_ns, [1], recv_ts=T0)]), 0)
    held.add(message(1, [run(T0, [1])]), 0)
    counts = all_rows([held.take()])["quality"]
    assert counts == Counter({(T0, "d0", "p0", "rx_bytes", "implausible" if refused else "late"): 1})


def test_a_row_that_spans_several_windows_is_cut_between_them() -> None:
    """A segment of two and a half seconds adds its samples to three windows, each once."""
    held = windows()
    held.add(message(0, [run(T0 + 500 * MS, [1] * 50)], end="1"), 0)
    assert closed(held) == [(0, 10), (1, 20), (2, 20)]


def test_gaps_of_a_sequence_are_admitted_once() -> None:
    """A jump of a stream's sequence is recorded as a gap with its bounds; another epoch or stream has its own sequence."""
    held, offset = windows(), iter(range(100))
    for number, more in (
        (3, {}),
        (4, {}),
        (7, {}),
        (8, {}),
        (1, {"epoch": "5"}),
        (2, {"epoch": "5"}),
        (50, {"source": "x"}),
        (9, {"epoch": "5"}),
    ):
        held.add(message(next(offset), [], **{"sequence": str(number), "sent_ns": "77", **more}), 0)
    frame = held.take()["gap"]
    assert frame.select("device", "source", "what", "from_sequence", "to_sequence", "missed", "reason", "ts").rows() == [
        ("d0", "test", "messages", 5, 6, 2, "sequence", 77),
        ("d0", "test", "messages", 3, 8, 6, "sequence", 77),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        poison(1),
        poison(1, b""),
        poison(1, schema="weather"),
        poison(1, version="99"),
        poison(1, message(0, [run(T0, [1])]).value[:-40]),
        Message(RUNS.topic, 0, 1, "d0", encode(FAMILIES["packet"].empty(), FAMILIES["packet"]), headers(FAMILIES["packet"])),
        poison(1, encode(FAMILIES["event"].empty(), FAMILIES["event"]), schema="event"),
    ],
)
def test_poison_is_admitted_and_passed_by(entry: Message) -> None:
    """A message that cannot be decoded, or of another family, is recorded as one gap with its offset and blocks nothing."""
    held = windows()
    held.add(message(0, [run(T0, [1] * 20)]), 0)
    held.add(entry, 0)
    held.add(entry, 0)
    held.add(message(2, [run(T0 + S, [1] * 20)], end="1"), 0)
    held.close(0)
    made = held.take()
    assert made["port_samples"]["samples"].sum() == 40
    gap = made["gap"].select("what", "from_sequence", "to_sequence", "missed", pl.col("reason").str.slice(0, 6)).rows()
    assert gap == [("messages", 1, 1, 1, "codec:")]
    assert held.poisoned == 1


def test_poison_is_not_missing_too() -> None:
    """A received message that cannot be decoded is no gap in its stream's sequence."""
    held = windows()
    held.add(message(0, [], sequence="0"), 0)
    held.add(poison(1, sequence="1"), 0)
    held.add(message(2, [], sequence="2"), 0)
    assert held.take()["gap"]["reason"].str.slice(0, 5).to_list() == ["codec"]


@pytest.mark.parametrize("text", ["", "-1", "one", "1.5", "٣", "9" * 30, " 1"])
@pytest.mark.parametrize("header", ["sequence", "epoch", "sent_ns"])
def test_a_header_that_is_no_number_does_no_harm(header: str, text: str) -> None:
    """A sequence, epoch or time that is not a number counts as absent."""
    held = windows()
    for offset, number in enumerate("13"):
        held.add(message(offset, [run(T0, [1])], **{"sequence": number, header: text}), 0)
    held.add(poison(2, **{header: text}), 0)
    held.close(0)
    assert "gap" in held.take()


@settings(max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "ts": st.none() | st.integers(-(2**63), 2**63 - 1) | st.just(T0),
                "recv_ts": st.none() | st.integers(-(2**63), 2**63 - 1) | st.just(T0),
                "source": st.none(),
                "port": st.none() | st.just("p"),
                "queue": st.none() | st.just("q"),
                "signal": st.none() | st.sampled_from(["rx_bytes", "odd"]),
                "interval_ns": st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([1000, MS, S]),
                "speed_bps": st.none() | st.integers(0, 2**64 - 1),
                "values": st.none() | st.lists(st.none() | st.integers(0, 2**64 - 1), max_size=4),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_rows_are_taken_or_counted(rows: list[dict[str, Any]]) -> None:
    """Rows with any numbers or nulls in any column raise nothing, and later rows are computed."""
    held = windows()
    held.add(message(0, rows, "hostile"), 0)
    held.add(message(1, [], "hostile", end="1"), 0)
    held.add(message(2, [run(T0, [1] * 20)], end="1"), 0)
    held.close(0)
    made = held.take()["port_samples"].filter(pl.col("device") == "d0")
    assert made["samples"].to_list() == [20]


def test_what_the_log_dropped_is_admitted() -> None:
    """Messages that retention deleted before they were read are one gap row with their offsets."""
    held = windows()
    held.add(message(0, []), 0)
    held.lost(1, 8)
    held.add(message(8, [run(T0, [1])], end="1"), 0)
    assert held.resume(9) == 9
    gap = held.take()["gap"].select("what", "from_sequence", "to_sequence", "missed", "reason").rows()
    assert gap == [("messages", 1, 7, 7, "bus_retention")]


def test_reading_goes_on_where_the_oldest_open_window_begins() -> None:
    """``resume`` is the first message that an open window still needs, or the next one to read."""
    held = windows()
    assert held.resume(0) == 0
    held.add(message(0, [run(T0, [1] * 20)]), 0)
    held.add(message(1, [run(T0 + S, [1] * 20)]), 0)
    held.close(0)
    assert held.resume(2) == 1
    held.add(message(2, [], end="1"), 0)
    held.close(0)
    assert held.resume(3) == 3


def test_nothing_remembered_means_the_beginning() -> None:
    """Without saved state a partition is read from offset 0."""
    assert windows().restore(None, 0) == 0


def test_what_is_forgotten_is_carried_by_nobody() -> None:
    """A revoked partition leaves no open burst in the metric, which other partitions share."""
    metric = BurstMetric()
    held = PartitionWindows(metric, WindowConfig())
    held.add(message(0, [run(T0, [9_000_000] * 30)]), 0)
    held.close(0)
    assert metric.carry("d0") != b""
    held.forget()
    assert metric.carry("d0") == b""


def test_instants_are_windowed_too() -> None:
    """Rows without an interval, such as packets, belong to the window of their time; a late one counts as one."""
    table = FAMILIES["packet"]
    row = {"recv_ts": T0, "src": "a", "dst": "b", "qp": 1, "opcode": 4, "psn": 1, "length": 100, "sampling_rate": 1}
    held = PartitionWindows(PacketMetric(), WindowConfig())
    for offset, ts in enumerate((T0 + 3 * S, T0 + 3 * S + 1, T0, 2**62, -1)):
        frame = pl.DataFrame([{**row, "ts": ts, "psn": offset}], schema={name: table.polars[name] for name in (*row, "ts")})
        more = {"end": "1"} if offset == 4 else {}
        held.add(Message(table.topic, 0, offset, "d0", encode(frame, table), headers(table, **more)), 0)
    held.close(0)
    made = held.take()
    assert made["roce"].select("ts", "packets").rows() == [(T0 + 3 * S, 2)]
    assert all_rows([{"quality": made["quality"]}])["quality"] == Counter(
        {(T0, "d0", "", "packet", "late"): 1, (T0, "d0", "", "packet", "implausible"): 2}
    )


def _two_sources(seconds: int) -> list[Message]:
    """Return a log in which one source reports every 100 ms, and another reports each second after its end."""
    log: list[Message] = []
    for tick in range(10 * seconds):
        if tick and tick % 10 == 0:
            rows = [{**run(T0 + (tick - 10) * 100 * MS, [7] * 20, port="slow"), "source": "slow"}]
            log.append(message(len(log), rows))
        log.append(message(len(log), [run(T0 + tick * 100 * MS, [1, 2], port="fast")]))
    return log


def test_a_slow_source_is_waited_for() -> None:
    """A source that reports each second after its end loses nothing beside a prompt source, once its delay is known."""
    quality = drive(_two_sources(12))["quality"]
    late = {key[0]: count for key, count in quality.items() if key[-1] == "late"}
    assert set(late) <= {T0, T0 + S}, "only before it is known how far it trails"
    held = windows()
    for entry in _two_sources(12):
        held.add(entry, 0)
        held.close(0)
    closed = pl.concat([held.take()["port_samples"]]).filter(pl.col("port") == "fast")
    assert closed["ts"].max() >= T0 + 8 * S, "it is not waited for longer than it trails"


def test_sources_that_trail_survive_crashes() -> None:
    """The delays of sources are saved: a reader that dies at any moment finds the same rows late as one that never died."""
    log = _two_sources(6)
    for seed in range(20):
        assert drive_with_crashes(log, np.random.default_rng(seed)) == drive(log)
