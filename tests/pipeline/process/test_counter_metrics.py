"""The counter metric against plain Python over single counter samples, with any split, order and distribution."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.pipeline.bus import Message
from weft.pipeline.codec import encode, headers
from weft.pipeline.errors import ConfigError
from weft.pipeline.process.base import Closing
from weft.pipeline.process.counters.metric import CounterConfig, CounterMetric
from weft.pipeline.process.windows import PartitionWindows, WindowConfig
from weft.pipeline.tables.families import FAMILIES, counters_of
from weft.pipeline.tables.states import STATES

S, MS = 10**9, 10**6
T0 = 1_700_000_000 * S
G100 = 100 * S
TYPES = {name: FAMILIES[name].polars for name in ("port", "queue")}
BASE = {
    "port": {"recv_ts": T0, "source": "gnmi", "epoch": 0, "port": "p", "speed_bps": G100},
    "queue": {"recv_ts": T0, "source": "hft", "epoch": 0, "port": "p", "queue": "3", "direction": "tx"},
}


def frame(rows: Iterable[dict], family: str = "port") -> pl.DataFrame:
    """Return counter samples as a frame of the family; ``t`` is seconds after T0, other columns are null."""
    timed = (BASE[family] | row | ({"ts": T0 + round(row["t"] * S)} if "t" in row else {}) for row in rows)
    full = [{name: row.get(name) for name in TYPES[family]} for row in timed]
    return pl.DataFrame(full, schema=TYPES[family], orient="row")


def run(rows: Sequence[dict], family: str = "port", metric: CounterMetric | None = None, seconds: int = 3600) -> dict[str, pl.DataFrame]:
    """Return the tables of one call with all counter samples of a device."""
    return (metric or CounterMetric(family)).close(Closing("leaf", T0, T0 + seconds * S, [frame(rows, family)]))


def windows(tables: dict[str, pl.DataFrame], column: str, family: str = "port") -> dict[int, Any]:
    """Return a column by second after T0."""
    rows = tables[f"{family}_counters"].sort("ts")
    return dict(zip(((rows["ts"] - T0) // S).to_list(), rows[column].to_list(), strict=True))


def lacks(tables: dict[str, pl.DataFrame]) -> dict[str, int]:
    """Return the sums of ``quality``."""
    names = [name for name in STATES["quality"].polars if STATES["quality"].polars[name] == pl.UInt64]
    return {name: total for name, total in tables["quality"].select(pl.col(names).sum()).to_dicts()[0].items() if total}


def events(tables: dict[str, pl.DataFrame]) -> list[tuple[float, str]]:
    """Return seconds after T0 and kind of each event, in order."""
    rows = tables["event"].sort("ts")
    return [((ts - T0) / S, kind) for ts, kind in rows.select("ts", "kind").rows()]


def test_an_interval_counts_where_it_ends() -> None:
    """The delta between two samples is in the window of the later one, with the time that it covers."""
    tables = run([{"t": t, "rx_bytes": value} for t, value in ((0.2, 100), (0.7, 400), (1.4, 1000), (5.0, 1001))])
    assert windows(tables, "rx_bytes") == {0: 300, 1: 600, 5: 1}
    assert windows(tables, "covered_ns") == windows(tables, "rx_covered_ns") == {0: 500 * MS, 1: 700 * MS, 5: 3600 * MS}
    assert windows(tables, "readings") == {0: 2, 1: 1, 5: 1}
    assert windows(tables, "tx_covered_ns") == {0: 0, 1: 0, 5: 0}


def test_a_counter_that_is_not_there_is_null() -> None:
    """A counter without samples, or with one sample only, is null, and one that does not change is zero."""
    tables = run([{"t": 0.1, "rx_bytes": 5, "tx_bytes": 7}, {"t": 0.2, "rx_bytes": 5}])
    assert [windows(tables, name) for name in ("rx_bytes", "tx_bytes", "rx_errors", "flaps", "up_ns")] == [
        {0: 0},
        *[{0: None}] * 4,
    ]


def test_readings_without_a_counter_do_not_cut_its_interval() -> None:
    """If samples carry different counters, each is compared with its own last value."""
    tables = run(
        [{"t": 0, "rx_bytes": 10}, {"t": 0.5, "tx_bytes": 1}, {"t": 1, "rx_bytes": 30}, {"t": 1.5, "tx_bytes": 5}, {"t": 2, "rx_bytes": 31}]
    )
    assert windows(tables, "rx_bytes") == {0: None, 1: 20, 2: 1}
    assert windows(tables, "tx_bytes") == {0: None, 1: 4, 2: None}
    assert windows(tables, "rx_covered_ns") == {0: 0, 1: S, 2: S}
    assert lacks(tables) == {}


@pytest.mark.parametrize(
    ("source", "counter", "bits"),
    [("sflow", "rx_packets", 32), ("sflow", "rx_bytes", 64), ("gnmi", "rx_bytes", 64), ("hft", "tx_packets", 64)],
)
def test_a_wrap_is_taken_at_the_width_of_the_source(source: str, counter: str, bits: int) -> None:
    """A counter wraps to zero after its largest value: the delta is modulo 2 to its width in the dictionary."""
    top = 2**bits - 1
    values = [top - 999, top - 499, 1000, 1500]
    tables = run([{"t": k, "source": source, counter: value} for k, value in enumerate(values)])
    assert windows(tables, counter) == {k: d for k, d in enumerate([None, 500, 1500, 500])}
    assert lacks(tables) == {"wraps": 1}


@pytest.mark.parametrize(
    ("speed_bps", "value", "lack"), [(G100, 20_000_000, "wraps"), (S, 20_000_000, "resets"), (None, 20_000_000, "wraps")]
)
def test_a_wrap_that_the_line_cannot_carry_is_a_reset(speed_bps: int | None, value: int, lack: str) -> None:
    """A 32-bit packet counter that is 30 M further modulo 2^32 after a second has wrapped at 100G (148.8 M/s) and restarted at 1G.

    Where the rate is not known the way from the upper half into the lower decides.
    """
    rows = [
        {"t": k, "source": "sflow", "rx_packets": packets, "speed_bps": speed_bps} for k, packets in enumerate([2**32 - 10_000_000, value])
    ]
    tables = run(rows)
    assert lacks(tables) == {lack: 1}
    assert windows(tables, "rx_packets")[1] == (value + 10_000_000 if lack == "wraps" else None)
    assert windows(tables, "rx_covered_ns")[1] == 0


def test_a_counter_that_nothing_bounds_wraps_from_top_to_bottom_soon() -> None:
    """A counter without a line wraps only from the upper half to the lower in a short time."""
    for values, pause, lack in (((2**32 - 5, 3), 1, "wraps"), ((2**32 - 5, 3), 300, "resets"), ((2**31 - 5, 3), 1, "resets")):
        rows = [{"t": k * pause, "source": "sflow", "carrier_sense_errors": value, "speed_bps": None} for k, value in enumerate(values)]
        tables = run(rows)
        assert lacks(tables) == {lack: 1}, values


def test_a_restart_without_a_sign_is_a_reset() -> None:
    """A 64-bit counter that goes backward has restarted: that interval does not count, the next one does."""
    tables = run([{"t": t, "rx_bytes": value} for t, value in ((0, 5000), (1, 9000), (2, 100), (3, 400))])
    assert windows(tables, "rx_bytes") == {0: None, 1: 4000, 2: None, 3: 300}
    assert windows(tables, "rx_covered_ns") == {0: 0, 1: S, 2: 0, 3: S}
    assert lacks(tables) == {"resets": 1}


def test_a_new_epoch_is_a_reset_even_where_values_grow() -> None:
    """Deltas are taken inside one epoch only, also for counters whose samples resume later."""
    rows = [
        {"t": 0, "epoch": 7, "rx_bytes": 10, "tx_bytes": 10},
        {"t": 1, "epoch": 7, "rx_bytes": 20, "tx_bytes": 20},
        {"t": 2, "epoch": 8, "rx_bytes": 900},
        {"t": 3, "epoch": 8, "rx_bytes": 950, "tx_bytes": 800},
        {"t": 4, "epoch": 8, "rx_bytes": 960, "tx_bytes": 801},
    ]
    tables = run(rows)
    assert windows(tables, "rx_bytes") == {0: None, 1: 10, 2: None, 3: 50, 4: 10}
    assert windows(tables, "tx_bytes") == {0: None, 1: 10, 2: None, 3: None, 4: 1}
    assert lacks(tables) == {"resets": 1}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_readings_of_one_time_the_larger_counts(order: tuple[int, int]) -> None:
    """Counter samples of the same time are one: the larger value counts in any order, and the second is a duplicate."""
    twins = [{"t": 1, "rx_bytes": 300}, {"t": 1, "rx_bytes": 200}]
    tables = run([{"t": 0, "rx_bytes": 100}, *(twins[k] for k in order), {"t": 2, "rx_bytes": 310}])
    assert windows(tables, "rx_bytes") == {0: None, 1: 200, 2: 10}
    assert windows(tables, "readings") == {0: 1, 1: 1, 2: 1}
    assert lacks(tables) == {"duplicates": 1}


def test_parts_of_one_reading_are_no_duplicates() -> None:
    """Rows of one time with different counters are one counter sample, and no duplicate."""
    tables = run([{"t": t, name: 10 + t} for t in (0, 1) for name in ("rx_bytes", "tx_bytes")])
    assert windows(tables, "rx_bytes") == windows(tables, "tx_bytes") == {0: None, 1: 1}
    assert windows(tables, "readings") == {0: 1, 1: 1}
    assert lacks(tables) == {}


@pytest.mark.parametrize(("name", "unit_bits"), [("rx_bytes", 8), ("rx_packets", 672), ("fec_corrected", 5440)])
def test_more_than_the_line_can_carry_does_not_count(name: str, unit_bits: int) -> None:
    """Ten seconds of line rate in one second are implausible: the delta does not count, and the next starts from there."""
    line = G100 // unit_bits
    tables = run([{"t": k, name: value} for k, value in enumerate([0, line, 11 * line, 12 * line])])
    assert windows(tables, name) == {0: None, 1: line, 2: None, 3: line}
    assert lacks(tables) == {"implausible": 1}


def test_a_device_that_refreshes_its_counters_rarely_is_believed() -> None:
    """Steps of a counter polled every 100 ms and refreshed every 5 s cover five seconds and count."""
    line = G100 // 8
    rows = [{"t": k / 10, "rx_bytes": k // 50 * 5 * line} for k in range(201)]
    tables = run(rows)
    assert sum(delta or 0 for delta in windows(tables, "rx_bytes").values()) == 20 * line
    assert lacks(tables) == {}


def test_a_long_interval_counts_and_is_told() -> None:
    """After a gap of more than two and a half times the usual interval the bytes count, and ``quality`` counts the gap."""
    tables = run([{"t": t, "rx_bytes": 100 * t} for t in (0, 1, 2, 3, 5, 6, 10, 11)])
    assert windows(tables, "rx_bytes")[5] == 200
    assert windows(tables, "rx_bytes")[10] == 400
    assert lacks(tables) == {"gaps": 1}


def test_a_slower_pace_is_no_row_of_gaps() -> None:
    """If a source is polled less often from now on, the new interval soon becomes the usual one."""
    times = [*range(10), *range(10, 200, 10)]
    assert lacks(run([{"t": t, "rx_bytes": t} for t in times])) == {"gaps": 2}


def test_a_counter_that_saturates_never_wraps() -> None:
    """At its maximum the delta is a lower bound; back from there the counter was cleared."""
    from weft.pipeline.process.counters import kernel

    values = np.array([2**16 - 100, 2**16 - 1, 2**16 - 1, 40, 50], np.uint64)
    rows, zeros = np.arange(5), np.zeros(5, np.int64)
    samples = kernel.CounterSamples(rows, np.arange(6), zeros, rows * S, zeros, rows)
    line, limits = kernel.LineRates(zeros, np.full(5, 1e11)), kernel.CounterLimits(np.array([2**16 - 1], np.uint64), np.array([True]), 0.0)
    sums = kernel.Sums(np.zeros(5, np.uint64), np.zeros(5, np.int64), np.zeros(5, np.int64))
    verdicts = kernel.Verdicts(np.zeros(5, np.int64), np.zeros(5, np.bool_), np.zeros(5, np.int64))
    unwanted = kernel.Movement(np.zeros(0, np.int64), np.zeros(0, np.int64))
    numbers = kernel.CounterValues(values, np.zeros(0, np.bool_))
    kernel.differ(numbers, samples, line, limits, np.full((1, 4), -1), sums, verdicts, unwanted)
    assert not verdicts.restarted.any()
    assert sums.total.tolist() == [0, 99, 0, 0, 10]
    assert sums.counted.tolist() == [0, 1, 1, 0, 1]
    assert verdicts.flags.tolist() == [0, 0, 0, kernel.RESET, 0]


def test_codewords_by_errors_are_a_column_each() -> None:
    """``fec_bins`` becomes seventeen sums; a shorter list leaves the rest null, and the covered time is that of the codewords."""
    tables = run([{"t": t, "fec_bins": [1000 * t, 10 * t, t]} for t in (1, 2, 3)])
    rows = tables["port_counters"].sort("ts")
    assert rows.select("fec_bin_0", "fec_bin_1", "fec_bin_2", "fec_bin_3").rows() == [(None,) * 4, (1000, 10, 1, None), (1000, 10, 1, None)]
    assert rows["fec_covered_ns"].to_list() == [0, S, S]


def test_packets_are_added_up_where_there_is_no_total() -> None:
    """Unicast, multicast and broadcast packets add up to the packets of a source without that counter only."""
    parts = {"rx_unicast_packets": 100, "rx_multicast_packets": 10, "rx_broadcast_packets": 1, "tx_unicast_packets": 5, "tx_packets": 7}
    tables = run([{"t": t, **{name: step * t for name, step in parts.items()}} for t in (0, 1, 2)])
    assert windows(tables, "rx_packets") == {0: None, 1: 111, 2: 111}
    assert windows(tables, "tx_packets") == {0: None, 1: 7, 2: 7}


def test_parts_of_the_packets_that_do_not_count_give_no_total() -> None:
    """The sum is no total if one part restarted, or if the source has a total that does not count."""
    steps = [(1000, 7), (2000, 8), (500, 9), (1500, 10)]
    rows = [{"t": t, "source": "sflow", "rx_unicast_packets": one, "rx_multicast_packets": many} for t, (one, many) in enumerate(steps)]
    assert windows(run([{**row, "speed_bps": S} for row in rows]), "rx_packets") == {0: None, 1: 1001, 2: None, 3: 1001}
    rows = [{"t": t, "rx_packets": total, "rx_unicast_packets": 10 * t} for t, total in enumerate((100, 200, 3, 50))]
    assert windows(run(rows), "rx_packets") == {0: None, 1: 100, 2: None, 3: 47}


def test_counters_that_are_cleared_are_not_taken_for_wraps() -> None:
    """If a 64-bit counter restarts, narrower counters of the same sample that went backward restarted too, after any time."""
    octets, errors, packets = (10**12, 2 * 10**12, 10**9, 10**12), (3, 5, 0, 4), (10**9, 2 * 10**9, 10**6, 10**9)
    rows = [
        {"t": 30 * t, "source": "sflow", "rx_bytes": octets[t], "rx_errors": errors[t], "rx_packets": packets[t], "speed_bps": 4 * G100}
        for t in range(4)
    ]
    tables = run(rows)
    assert windows(tables, "rx_bytes") == {0: None, 30: 10**12, 60: None, 90: 10**12 - 10**9}
    assert windows(tables, "rx_errors") == {0: None, 30: 2, 60: None, 90: 4}
    assert windows(tables, "rx_packets") == {0: None, 30: 10**9, 60: None, 90: 10**9 - 10**6}
    assert lacks(tables) == {"resets": 1}


@pytest.mark.parametrize("values", [(5 * 10**15, 2**64 - 1, 5 * 10**15 + 2000), (2**63 + 5, 2**63 - 10)])
def test_a_way_back_that_no_line_carries_is_no_wrap(values: tuple[int, ...]) -> None:
    """Without a line rate the limit is 8 Pbit/s: a value of all ones, or a small step backward, does not count."""
    tables = run([{"t": t, "rx_bytes": value, "speed_bps": None} for t, value in enumerate(values)])
    assert set(windows(tables, "rx_bytes").values()) == {None}
    assert "wraps" not in lacks(tables)


def test_a_line_that_becomes_slower_carried_more_before() -> None:
    """The faster rate bounds the interval in which a port's rate falls, within one call and across two."""
    rows = [{"t": t, "rx_bytes": 90 * 10**9 * t, "speed_bps": 8 * G100 if t < 2 else G100} for t in (0, 1, 2)]
    assert windows(run(rows), "rx_bytes") == {0: None, 1: 90 * 10**9, 2: 90 * 10**9}
    metric = CounterMetric("port")
    metric.close(Closing("leaf", T0, T0 + 2 * S, [frame(rows[:2])]))
    later = metric.close(Closing("leaf", T0 + 2 * S, T0 + 9 * S, [frame(rows[2:])]))
    assert windows(later, "rx_bytes") == {2: 90 * 10**9}
    assert lacks(later) == {}


def test_a_link_that_goes_and_comes_is_told() -> None:
    """Each change of state is an event and a flap; time counts for the state in which an interval began."""
    ups = [True, True, False, False, True]
    tables = run([{"t": t, "rx_bytes": t, "oper_up": up} for t, up in enumerate(ups)])
    assert events(tables) == [(2.0, "link_down"), (4.0, "link_up")]
    assert [windows(tables, name) for name in ("flaps", "up_ns", "down_ns")] == [
        {0: None, 1: 0, 2: 1, 3: 0, 4: 1},
        {0: None, 1: S, 2: S, 3: 0, 4: 0},
        {0: None, 1: 0, 2: 0, 3: S, 4: S},
    ]
    assert tables["event"].schema == pl.Schema(FAMILIES["event"].polars)


def test_flaps_are_the_devices_own_where_it_counts_them() -> None:
    """With carrier changes counted by the device, a link that flaps between two samples is seen."""
    tables = run([{"t": t, "oper_up": True, "carrier_changes": changes} for t, changes in enumerate([4, 4, 10])])
    assert windows(tables, "flaps") == {0: None, 1: 0, 2: 6}
    assert events(tables) == []


def test_sources_are_not_mixed() -> None:
    """Two collectors of one port have a row each, and their values are never compared."""
    rows = [
        {"t": t + shift, "source": source, "rx_bytes": base + t}
        for t in range(3)
        for source, base, shift in (("a", 0, 0), ("b", 10**6, 0.5))
    ]
    table = run(rows)["port_counters"].sort("ts", "source")
    assert table.select("source", "rx_bytes").rows() == [("a", None), ("b", None), ("a", 1), ("b", 1), ("a", 1), ("b", 1)]


def test_gauges_of_a_queue() -> None:
    """Occupancy has its largest value, sum and count; watermarks have their largest value."""
    rows = [
        {"t": 0.1 * k, "packets": k, "occupancy_bytes": o, "watermark_bytes": w, "delay_watermark_ns": d, "headroom_watermark_bytes": 2 * o}
        for k, (o, w, d) in enumerate([(5, 9, 1), (7, 70, 4), (0, 20, 3)])
    ]
    row = run(rows, "queue")["queue_counters"].to_dicts()[0]
    expected = {
        "occupancy_high": 7,
        "occupancy_total": 12,
        "occupancy_count": 3,
        "watermark_high": 70,
        "delay_high_ns": 4,
        "headroom_high": 14,
    }
    assert {name: row[name] for name in expected} == expected
    assert (row["packets"], row["queue"], row["direction"]) == (2, "3", "tx")


# One interval of 100 ms of a queue: frames, transitions, microseconds paused, packets, and the occupancy at its end.
HELD = (50, 0, 100_000, 10, 5000)
STUCK = (0, 1, 99_500, 0, 5000)
CALM = (0, 0, 0, 100, 0)


def queue_readings(steps: Sequence[tuple | None], ms: int = 100, names: Sequence[str] = ()) -> list[dict]:
    """Return counter samples every ``ms`` of a queue with these intervals in sequence; ``None``: the counters restarted."""
    columns = ("pfc_rx_frames", "pfc_on2off", "pfc_rx_pause_us", "packets")
    value, epoch, rows = np.array([1000, 1000, 10**6, 10**6]), 0, []
    for k, step in enumerate([CALM, *steps]):
        if step is None:
            epoch, value = epoch + 1, np.zeros(4, int)
        else:
            value = value + step[:4]
        row = dict(zip(columns, value.tolist(), strict=True)) | {"occupancy_bytes": step[4] if step else 0}
        rows.append({"t": k * ms / 1000, "epoch": epoch, **{name: row[name] for name in names or row}})
    return rows


@pytest.mark.parametrize(
    ("steps", "expected", "storm_ms"),
    [
        ([CALM] * 5, [], 0),
        # Frames without a transition: the queue is paused at the end, and from the next interval on at both ends.
        ([HELD] * 2 + [CALM] * 4, [], 0),
        ([HELD] * 3 + [CALM] * 4, [(0.3, "storm_start"), (0.5, "storm_end")], 200),
        ([HELD] * 6 + [CALM] * 2, [(0.3, "storm_start"), (0.8, "storm_end")], 500),
        # Any transition is normal flow control.
        ([HELD, HELD, (50, 1, 90_000, 10, 5000), HELD, HELD, CALM, CALM], [], 0),
        # One free interval does not end a storm, two do.
        ([*[HELD] * 4, CALM, STUCK, STUCK, CALM, CALM], [(0.3, "storm_start"), (0.9, "storm_end")], 500),
        ([STUCK], [], 0),
        ([STUCK] * 2 + [CALM] * 2, [(0.2, "storm_start"), (0.4, "storm_end")], 200),
        # Not stuck: empty, or sending, or paused for less than 99 % of the time.
        ([(0, 1, 99_500, 0, 0)] * 4, [], 0),
        ([(0, 1, 99_500, 1, 5000)] * 4, [], 0),
        ([(0, 1, 98_900, 0, 5000)] * 4, [], 0),
        # A restart clears the state.
        ([*[STUCK] * 3, None, STUCK, STUCK], [(0.2, "storm_start"), (0.4, "storm_end"), (0.6, "storm_start")], 500),
    ],
)
def test_the_rules_of_a_storm(steps: list[tuple | None], expected: list[tuple[float, str]], storm_ms: int) -> None:
    """A storm begins after 200 ms paused or stuck and ends after 200 ms free; its time counts from the start."""
    tables = run(queue_readings(steps), "queue")
    assert [(round(t, 3), kind) for t, kind in events(tables)] == expected
    assert sum(windows(tables, "storm_ns", "queue").values()) == storm_ms * MS


def test_a_storm_says_of_which_queue_and_why() -> None:
    """The event names port, queue, rule and start."""
    tables = run(queue_readings([STUCK] * 3), "queue")
    (row,) = tables["event"].to_dicts()
    assert (row["device"], row["port"], row["source"], row["reason"]) == ("leaf", "p", "hft", "queue_stuck")
    assert row["detail"] == f"queue 3 tx, since {T0}"


def test_a_storm_ends_with_the_data() -> None:
    """When a device ends, an open storm ends with its last sample."""
    rows = frame(queue_readings([STUCK] * 3), "queue")
    tables = CounterMetric("queue").close(Closing("leaf", T0, T0 + S, [rows], ended=True))
    assert [(round(t, 3), kind) for t, kind in events(tables)] == [(0.2, "storm_start"), (0.3, "storm_end")]


@pytest.mark.parametrize("names", [("pfc_rx_frames", "packets"), ("pfc_rx_pause_us", "packets"), ("pfc_on2off", "occupancy_bytes")])
def test_no_storm_is_guessed(names: tuple[str, ...]) -> None:
    """A source without the inputs of both rules has no storm."""
    assert events(run(queue_readings([STUCK, HELD] * 5, names=names), "queue")) == []


def test_detection_follows_its_setting() -> None:
    """With a detection time of 500 ms the storm begins at the fifth interval; a time out of range is refused."""
    tables = run(queue_readings([STUCK] * 6), "queue", CounterMetric("queue", CounterConfig(storm_detection_ms=500)))
    assert [(round(t, 3), kind) for t, kind in events(tables)] == [(0.5, "storm_start")]
    with pytest.raises(ConfigError, match="storm_detection_ms"):
        CounterConfig(storm_detection_ms=50)


def test_the_longest_silent_objects_are_forgotten() -> None:
    """Beyond the limit of a device the longest silent objects are dropped and counted, and start over when they return."""
    metric = CounterMetric("port", CounterConfig(objects_max=2))
    rows = [{"t": t, "port": port, "rx_bytes": 100 * t} for t, port in ((0, "a"), (0.1, "b"), (1, "b"), (1.1, "c"), (2, "a"), (2.1, "b"))]
    tables = run(rows, metric=metric)
    found = {(row["port"], (row["ts"] - T0) // S): row["rx_bytes"] for row in tables["port_counters"].to_dicts()}
    assert found == {("a", 0): None, ("b", 0): None, ("b", 1): 90, ("c", 1): None, ("a", 2): None, ("b", 2): 110}
    assert metric.counters() == {"weft_pipeline_port_objects_dropped_total": 2.0}


def test_a_carry_of_too_many_objects_is_cut() -> None:
    """A service with a lower limit than its predecessor drops and counts the surplus, also without new objects."""
    first, then = CounterMetric("port"), CounterMetric("port", CounterConfig(objects_max=2))
    rows = [{"t": t / 10, "port": port, "rx_bytes": 100} for t, port in enumerate("abc")]
    first.close(Closing("leaf", T0, T0 + S, [frame(rows)]))
    then.restore("leaf", first.carry("leaf"))
    then.close(Closing("leaf", T0 + S, T0 + 2 * S, [frame([{**row, "t": row["t"] + 1} for row in rows])]))
    assert then.counters() == {"weft_pipeline_port_objects_dropped_total": 1.0}


def held(rows: Sequence[Sequence[dict]], **config: float) -> dict[str, pl.DataFrame]:
    """Return the rows of a partition from messages of a device, the last of which ends it."""
    windows, table = PartitionWindows(CounterMetric("port"), WindowConfig(**config)), FAMILIES["port"]
    for offset, part in enumerate([*rows, []]):
        said = headers(table, source="test", **({} if part else {"end": "1"}))
        windows.add(Message(table.topic, 0, offset, "leaf", encode(frame(part), table), said), 0)
        windows.close(0)
    return windows.take()


def test_readings_out_of_order_count_and_late_ones_do_not() -> None:
    """Rows within the lateness are sorted in; rows after the close of their window are counted as late only."""
    times = ([0.1, 0.9], [0.5, 1.2], [1.1, 2.4], [0.7], [2.2, 3.9])
    tables = held([[{"t": t, "rx_bytes": round(1000 * t), "recv_ts": T0 + 10 * S} for t in part] for part in times], lateness_s=0.5)
    assert windows(tables, "rx_bytes") == {0: 800, 1: 300, 2: 1200, 3: 1500}
    assert windows(tables, "readings") == {0: 3, 1: 2, 2: 2, 3: 1}
    assert lacks(tables)["late"] == 1


def test_a_reading_ahead_of_time_is_refused() -> None:
    """A counter sample more than a minute ahead of its receipt is implausible."""
    tables = held([[{"t": 0, "rx_bytes": 1}, {"t": 1000, "rx_bytes": 5, "recv_ts": T0 + S}], [{"t": 1, "rx_bytes": 9, "recv_ts": T0 + S}]])
    assert windows(tables, "rx_bytes") == {0: None, 1: 8}
    assert lacks(tables) == {"implausible": 1}


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "ts": st.integers(0, 2**62 - 1),
                "epoch": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1]),
                "rx_bytes": st.none() | st.integers(0, 2**64 - 1),
                "carrier_changes": st.none() | st.integers(0, 2**64 - 1),
                "speed_bps": st.none() | st.sampled_from([0, 1, 2**64 - 1]),
                "fec_bins": st.none() | st.lists(st.none() | st.integers(0, 2**64 - 1), max_size=20),
                "port": st.none() | st.text(max_size=3),
                "source": st.none() | st.sampled_from(["sflow", "gnmi", ""]),
            }
        ),
        max_size=30,
    )
)
def test_no_reading_is_too_strange(rows: list[dict]) -> None:
    """Any values give rows of the tables' types, and covered time never exceeds the elapsed time."""
    tables = CounterMetric("port").close(Closing("leaf", 0, 2**62 // S * S, [frame(rows)]))
    for name, made in tables.items():
        assert made.schema == pl.Schema((STATES.get(name) or FAMILIES[name]).polars)
    assert sum(tables["port_counters"]["rx_covered_ns"].to_list()) <= 2**62 * len({(row["source"], row["port"]) for row in rows})


# Property tests: a plain Python walk over single samples of two ports by two sources, with usual faults.

reading = st.fixed_dictionaries(
    {
        "dt": st.sampled_from([1 * MS, 100 * MS, 250 * MS, S, 3 * S]),
        "port": st.sampled_from(["a", "b"]),
        "source": st.sampled_from(["gnmi", "sflow"]),
        "step": st.sampled_from([0, 1, 1000, 10**6, 2**31]),
        "kind": st.sampled_from(["ok"] * 8 + ["null", "back", "reboot", "twin"]),
        "up": st.sampled_from([None, True, False]),
    }
)


def readings_of(plan: list[dict]) -> list[dict]:
    """Return counter samples from a plan: times grow over all objects, values per object, in registers of the source's width."""
    ts, value, epoch, rows = T0, defaultdict(lambda: 2**32 - 2**20), defaultdict(int), []
    for one in plan:
        ts += one["dt"]
        key = one["source"], one["port"]
        value[key] += one["step"]
        if one["kind"] == "back":
            value[key] = 17
        if one["kind"] == "reboot":
            epoch[key] += 1
            value[key] = 5
        row = {"ts": ts, "source": key[0], "port": key[1], "epoch": epoch[key], "oper_up": one["up"], "rx_bytes": value[key]}
        row["rx_packets"] = None if one["kind"] == "null" else value[key] // 64 % 2 ** (32 if key[0] == "sflow" else 64)
        rows += [row] * (2 if one["kind"] == "twin" else 1)
    return rows


def rows_of(tables: Iterable[dict[str, pl.DataFrame]]) -> dict[str, Counter]:
    """Return every row of every table, counted; quality is added up by key."""
    out: dict[str, Counter] = {name: Counter() for name in ("port_counters", "queue_counters", "quality", "event")}
    for table in tables:
        for name, rows in table.items():
            if name == "quality":
                for ts, device, port, signal, *numbers in rows.iter_rows():
                    out[name].update({(ts, device, port, signal, k): n for k, n in enumerate(numbers)})
            else:
                out[name].update(map(repr, rows.iter_rows()))
    out["quality"] = +out["quality"]
    return out


def in_pieces(family: str, rows: pl.DataFrame, cuts: Sequence[int], seed: int, restart: bool) -> list[dict[str, pl.DataFrame]]:
    """Close windows at these seconds, each with rows shuffled into several frames and in a new metric."""
    rng, metric, made, carry = np.random.default_rng(seed), CounterMetric(family), [], b""
    for start, end in pairwise([0, *sorted(set(cuts)), 100_000]):
        if start == end:
            continue
        if restart:
            metric = CounterMetric(family)
            metric.restore("leaf", carry)
        touched = rows.filter(
            (pl.col("ts") < T0 + end * S + rng.integers(0, 2) * S) & (pl.col("ts") >= T0 + start * S - rng.integers(0, 2) * S)
        )
        shuffled = touched[rng.permutation(touched.height)]
        parts = np.array_split(np.arange(shuffled.height), rng.integers(1, 4))
        made.append(metric.close(Closing("leaf", T0 + start * S, T0 + end * S, [shuffled[part] for part in parts])))
        carry = metric.carry("leaf")
    return made


@settings(max_examples=120)
@given(
    plan=st.lists(reading, max_size=40), cuts=st.lists(st.integers(1, 60), max_size=8), seed=st.integers(0, 2**32), restart=st.booleans()
)
def test_any_cut_order_and_restart_give_the_same_rows(plan: list[dict], cuts: list[int], seed: int, restart: bool) -> None:
    """Any split into messages and calls, any order and any successor give the same rows."""
    rows = frame(readings_of(plan))
    whole = CounterMetric("port").close(Closing("leaf", T0, T0 + 100_000 * S, [rows]))
    assert rows_of(in_pieces("port", rows, cuts, seed, restart)) == rows_of([whole])


@settings(max_examples=60)
@given(
    steps=st.lists(st.sampled_from([HELD, STUCK, CALM, None, (50, 1, 99_500, 0, 10)]), max_size=40),
    cuts=st.lists(st.integers(1, 12), max_size=6),
    seed=st.integers(0, 2**32),
    restart=st.booleans(),
)
def test_storms_are_the_same_however_they_are_cut(steps: list, cuts: list[int], seed: int, restart: bool) -> None:
    """A storm that crosses windows, messages and processes is the same storm."""
    rows = frame(queue_readings(steps, ms=300), "queue")
    whole = CounterMetric("queue").close(Closing("leaf", T0, T0 + 100_000 * S, [rows]))
    assert rows_of(in_pieces("queue", rows, cuts, seed, restart)) == rows_of([whole])


@settings(max_examples=40)
@given(plan=st.lists(reading, max_size=40), share=st.lists(st.sampled_from(["x", "y", "z"]), min_size=40, max_size=40))
def test_devices_together_give_what_each_gives_alone(plan: list[dict], share: list[str]) -> None:
    """Devices that close in one call do not affect each other."""
    rows = readings_of(plan)
    mine = {device: frame([row for row, owner in zip(rows, share * 2, strict=False) if owner == device]) for device in "xyz"}
    closings = [Closing(device, T0, T0 + 1000 * S, [part]) for device, part in mine.items()]
    assert rows_of([CounterMetric("port").close_all(closings)]) == rows_of(CounterMetric("port").close(one) for one in closings)


@settings(max_examples=80)
@given(
    deltas=st.lists(st.integers(0, 3 * 10**9), min_size=1, max_size=60),
    spans=st.lists(st.integers(1, 5 * S), min_size=60, max_size=60),
    start=st.integers(0, 2**64 - 1),
    columns=st.sets(st.sampled_from(counters_of("port")), min_size=1, max_size=4),
)
def test_what_the_windows_hold_adds_up(deltas: list[int], spans: list[int], start: int, columns: set[str]) -> None:
    """Without restarts the windows of every counter add up to its last less its first value, 64-bit wraps included."""
    ts = T0 + np.cumsum([0, *spans[: len(deltas)]])
    values = [(start + sum(deltas[:k])) % 2**64 for k in range(len(deltas) + 1)]
    rows = [{"ts": int(t), "speed_bps": None, **dict.fromkeys(columns, value)} for t, value in zip(ts, values, strict=True)]
    tables = run(rows)
    if "implausible" not in lacks(tables) and "resets" not in lacks(tables):
        for name in columns:
            assert int(tables["port_counters"][name].sum()) == sum(deltas), name
        assert tables["port_counters"]["covered_ns"].sum() == ts[-1] - T0
    else:
        # The only bound here is a line of 8 Pbit/s and 50 ms.
        assert any(delta > 2**20 * 50 * MS for delta in deltas) or values[-1] < values[0]
