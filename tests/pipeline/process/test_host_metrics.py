"""Host metrics: adapters and scale-up links as counters, GPUs as gauges, against NumPy and with any split."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.pipeline.process import METRICS, MetricConfig
from weft.pipeline.process.base import Closing, WindowMetric
from weft.pipeline.tables.families import FAMILIES, counters_of
from weft.pipeline.tables.states import STATES, merge

S, MS = 10**9, 10**6
T0 = 1_700_000_000 * S
BASE = {
    "nic": {"recv_ts": T0, "source": "host", "epoch": 0, "port": "mlx5_0", "speed_bps": 400 * S},
    "nvlink": {"recv_ts": T0, "source": "dcgm", "epoch": 0, "gpu": "0", "link": "3", "speed_bps": 800 * S},
    "gpu": {"recv_ts": T0, "source": "dcgm", "epoch": 0, "gpu": "0"},
}
PLACES = {"nic": "mlx5_0", "nvlink": "gpu0/3"}
TABLES = {"nic": "nic_counters", "nvlink": "nvlink_counters", "gpu": "gpu_gauges"}


def metric(family: str) -> WindowMetric:
    return METRICS[family](MetricConfig())


def frame(family: str, rows: Sequence[dict]) -> pl.DataFrame:
    """Return samples as a frame of the family; ``t`` is seconds after T0, other columns are null."""
    types = FAMILIES[family].polars
    full = [{name: {**BASE[family], **row, "ts": T0 + round(row["t"] * S)}.get(name) for name in types} for row in rows]
    return pl.DataFrame(full, schema=types, orient="row")


def run(family: str, rows: Sequence[dict]) -> dict[str, pl.DataFrame]:
    """Return the tables of one call with all samples of a host."""
    return metric(family).close(Closing("host", T0, T0 + 3600 * S, [frame(family, rows)]))


def windows(tables: dict[str, pl.DataFrame], family: str, column: str) -> dict[int, Any]:
    """Return a column by second after T0."""
    rows = tables[TABLES[family]].sort("ts")
    return dict(zip(((rows["ts"] - T0) // S).to_list(), rows[column].to_list(), strict=True))


def lacks(tables: dict[str, pl.DataFrame]) -> dict[tuple[str, str], dict[str, int]]:
    """Return the counts of ``quality`` by place and signal."""
    rows = tables["quality"].group_by("port", "signal").agg(pl.selectors.unsigned_integer().sum())
    return {(row.pop("port"), row.pop("signal")): {name: n for name, n in row.items() if n} for row in rows.to_dicts()}


@pytest.mark.parametrize("family", ["nic", "nvlink"])
def test_every_counter_is_what_it_moved(family: str) -> None:
    """For random walks of every counter, a window has the difference of the last values before its end and its start."""
    rng = np.random.default_rng(3)
    names = counters_of(family)
    ts = np.sort(rng.choice(20_000, 70, replace=False)) * MS
    values = np.cumsum(rng.integers(0, 1000, (len(names), len(ts))), axis=1)
    rows = [{"t": t / S, **dict(zip(names, map(int, column), strict=True))} for t, column in zip(ts, values.T, strict=True)]
    tables = run(family, rows)
    window = ts // S
    last = {second: np.flatnonzero(window <= second)[-1] for second in np.unique(window)}
    for name, value in zip(names, values, strict=True):
        before, expected = value[0], {}
        for second, at in last.items():
            expected[int(second)] = int(value[at] - before) if at else None
            before = value[at]
        assert windows(tables, family, name) == expected, name
    covered = windows(tables, family, "covered_ns")
    assert sum(covered.values()) == ts[-1] - ts[0]
    assert windows(tables, family, "tx_covered_ns") == covered == windows(tables, family, "rx_covered_ns")
    assert sum(windows(tables, family, "readings").values()) == len(ts)
    # At random times some intervals are long.
    assert set(lacks(tables).get((PLACES[family], family), {})) <= {"gaps"}
    assert tables["event"].is_empty()


def test_a_register_wraps_or_began_anew() -> None:
    """A counter wraps to zero after its largest value; one that goes backward otherwise restarted, and its delta does not count."""
    rows = [{"t": t, "out_of_sequence": a, "cnp_sent": b} for t, (a, b) in enumerate([(2**64 - 7, 90), (3, 95), (5, 2)])]
    tables = run("nic", rows)
    assert windows(tables, "nic", "out_of_sequence") == {0: None, 1: 10, 2: 2}
    assert windows(tables, "nic", "cnp_sent") == {0: None, 1: 5, 2: None}
    assert lacks(tables) == {("mlx5_0", "nic"): {"wraps": 1, "resets": 1}}


def test_what_a_scale_up_link_lacks_is_told_by_its_name() -> None:
    """Restarts, gaps, duplicates and implausible deltas are counted for the link, or for all links of the GPU."""
    line = 800 * S // 8
    rows = [{"t": t, "tx_bytes": v} for t, v in ((0, 0), (1, 10), (2, 20), (6, 30), (7, 30 + 9 * line), (8, 40 + 9 * line))]
    rows += [{"t": 8, "tx_bytes": 35 + 9 * line}, {"t": 9, "epoch": 1, "tx_bytes": 50 + 9 * line}]
    rows += [{"t": t, "link": "", "tx_bytes": v} for t, v in ((0, 5), (1, 2))]
    tables = run("nvlink", rows)
    assert lacks(tables) == {
        ("gpu0/3", "nvlink"): {"gaps": 1, "implausible": 1, "duplicates": 1, "resets": 1},
        ("gpu0", "nvlink"): {"resets": 1},
    }
    moved = tables["nvlink_counters"].filter(link="3").sort("ts")["tx_bytes"].to_list()
    assert moved == [None, 10, 10, 10, None, 10, None]


def test_gauges_are_their_mean_smallest_and_largest() -> None:
    """Ratios and power have the count, sum, smallest and largest of their samples, to a billionth and a milliwatt."""
    rng = np.random.default_rng(4)
    t = np.sort(rng.random(40)) * 5
    share, power = rng.random(40), rng.random(40) * 700
    rows = [{"t": a, "sm_active_ratio": b, "power_w": c} for a, b, c in zip(t, share, power, strict=True)]
    found = run("gpu", rows)["gpu_gauges"].sort("ts")
    for second, row in zip(np.unique(t.astype(int)), found.iter_rows(named=True), strict=True):
        mine = t.astype(int) == second
        assert row["readings"] == row["sm_active_count"] == row["power_count"] == mine.sum()
        for gauge, values, parts in (("sm_active", share, 1e9), ("power", power, 1e3)):
            whole = np.rint(values[mine] * parts).astype(int)
            assert [row[f"{gauge}_{what}"] for what in ("total", "low", "high")] == [whole.sum(), whole.min(), whole.max()]
        assert (row["tensor_active_count"], row["tensor_active_total"], row["xid_readings"], row["xid"]) == (0, None, None, None)


def test_what_a_gauge_cannot_be_does_not_count() -> None:
    """NaN, a ratio above one and negative power are counted as implausible; the rest of the sample counts."""
    rows = [{"t": 0, "sm_active_ratio": float("nan"), "power_w": 100.0}, {"t": 0.1, "sm_active_ratio": 1.5}, {"t": 0.2, "power_w": -1.0}]
    tables = run("gpu", rows)
    row = tables["gpu_gauges"].to_dicts()[0]
    assert (row["readings"], row["sm_active_count"], row["power_count"], row["power_total"]) == (3, 0, 1, 100_000)
    assert lacks(tables) == {("gpu0", "gpu"): {"implausible": 3}}


def test_two_readings_of_one_time_are_one() -> None:
    """Each gauge takes its largest value, and the second is a duplicate; rows with different gauges are one sample."""
    rows = [
        {"t": 0, "power_w": 100.0, "xid": 31},
        {"t": 0, "power_w": 90.0},
        {"t": 0.5, "power_w": 80.0},
        {"t": 0.5, "sm_active_ratio": 0.5},
    ]
    tables = run("gpu", rows)
    row = tables["gpu_gauges"].to_dicts()[0]
    assert (row["readings"], row["power_total"], row["power_count"], row["sm_active_count"]) == (2, 180_000, 2, 1)
    assert (row["xid"], row["xid_readings"]) == (31, 1)
    assert lacks(tables) == {("gpu0", "gpu"): {"duplicates": 1}}


def test_no_error_is_not_an_unknown_error() -> None:
    """A driver that reports 0 has no error; without a report errors are unknown."""
    rows = [{"t": 0, "xid": 0}, {"t": 1}, {"t": 2, "xid": 79}, {"t": 2.5, "xid": 0}]
    tables = run("gpu", rows)
    assert windows(tables, "gpu", "xid_readings") == {0: 0, 1: None, 2: 1}
    assert windows(tables, "gpu", "xid") == {0: None, 1: None, 2: 79}


READING = st.fixed_dictionaries(
    {
        "dt": st.sampled_from([1, 100, 250, 1000, 3000]),
        "key": st.sampled_from(["0", "1"]),
        "source": st.sampled_from(["dcgm", "host"]),
        "step": st.sampled_from([None, 0, 1, 1000, 2**31, -5]),
        "kind": st.sampled_from(["ok"] * 8 + ["reboot", "twin"]),
        "share": st.one_of(st.none(), st.floats(0, 1.2), st.just(float("nan"))),
    }
)


def readings_of(family: str, plan: list[dict]) -> pl.DataFrame:
    """Return samples from a plan."""
    t, value, epoch, rows = 0, {}, {}, []
    for one in plan:
        t += one["dt"]
        key = one["source"], one["key"]
        value[key] = max(0, value.get(key, 2**31) + (one["step"] or 0))
        epoch[key] = epoch.get(key, 0) + (one["kind"] == "reboot")
        row = {"t": t / 1000, "source": key[0], "epoch": epoch[key], "port": key[1], "gpu": key[1], "link": key[1]}
        counted = None if one["step"] is None else value[key]
        row |= {"tx_bytes": counted, "retransmits": counted, "replay": counted}
        row |= {"sm_active_ratio": one["share"], "power_w": one["share"] and 500 * one["share"], "xid": one["step"] and abs(one["step"])}
        rows += [row] * (2 if one["kind"] == "twin" else 1)
    return frame(family, rows)


@pytest.mark.parametrize("family", ["nic", "nvlink", "gpu"])
@settings(max_examples=40)
@given(plan=st.lists(READING, max_size=30), cuts=st.lists(st.integers(1, 40), max_size=6), seed=st.integers(0, 2**32))
def test_any_cut_order_and_restart_give_the_same_rows(family: str, plan: list[dict], cuts: list[int], seed: int) -> None:
    """Any split into messages and calls, any order and any successor give the same rows."""
    rows, rng = readings_of(family, plan), np.random.default_rng(seed)
    whole = metric(family).close(Closing("host", T0, T0 + 10_000 * S, [rows]))
    parts, carry = [], b""
    for start, end in pairwise([0, *sorted(set(cuts)), 10_000]):
        successor = metric(family)
        successor.restore("host", carry)
        shuffled = rows[rng.permutation(rows.height)]
        pieces = [shuffled[piece] for piece in np.array_split(np.arange(rows.height), rng.integers(1, 4))]
        parts.append(successor.close(Closing("host", T0 + start * S, T0 + end * S, pieces)))
        carry = successor.carry("host")
    for name in (TABLES[family], "quality"):
        keys = STATES[name].having("key")
        together = pl.concat([part[name] for part in parts])
        assert together.sort(keys).equals(whole[name].sort(keys)), name


@settings(max_examples=30)
@given(plan=st.lists(READING, min_size=1, max_size=30), share=st.lists(st.booleans(), min_size=30, max_size=30))
def test_rolled_up_gauges_do_not_depend_on_the_order(plan: list[dict], share: list[bool]) -> None:
    """Windows merged in two halves and then together equal the windows merged at once, bit by bit."""
    table = STATES["gpu_gauges"]
    rows = metric("gpu").close(Closing("host", T0, T0 + 10_000 * S, [readings_of("gpu", plan)]))["gpu_gauges"]
    by = ["device", "gpu", "source"]

    def merged(part: pl.DataFrame) -> pl.DataFrame:
        return part.group_by(by).agg(merge(table, table.having("key")))

    mask = pl.Series(share[: rows.height] + [False] * max(0, rows.height - 30))
    halves = pl.concat([merged(rows.filter(mask)), merged(rows.filter(~mask))])
    assert merged(halves).sort(by).equals(merged(rows).sort(by))
