"""The contract of a window metric, run over every entry of ``METRICS``: a new entry inherits it.

Input is generated from the schema of the metric's family, one generator per type; results are compared with each other (another
split, another order, another process) and with plain differences of the input, never with the metric's own arithmetic.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from weft.pipeline.process import METRICS, MetricConfig
from weft.pipeline.process.base import Closing, WindowMetric
from weft.pipeline.tables.families import FAMILIES, counters_of
from weft.pipeline.tables.field import WINDOW_NS, Field, Table
from weft.pipeline.tables.states import STATES

T0 = 1_700_000_000 * WINDOW_NS
MS = 1_000_000
WINDOWS = 5
ROWS = 60
END = T0 + WINDOWS * WINDOW_NS
# Values that do not follow from the type.
FIXED = {"recv_ts": END, "epoch": 0, "sampling_rate": 1, "interval_ns": 100 * MS, "signal": "rx_bytes", "device": "d"}
SPEED = {"burst_sample": 80_000_000}
CUMULATIVE = [family for family in METRICS if counters_of(family)]

every = pytest.mark.parametrize("family", METRICS)
seeded = pytest.mark.parametrize("seed", range(3))


def metric(family: str) -> WindowMetric:
    return METRICS[family](MetricConfig())


def cell(field: Field, ts: int, rng: np.random.Generator) -> object:
    """Return one value of a column: for a counter a growing one, else a random one of its type, or null."""
    if field.cumulative or field.name == "fec_bins":
        grown = (ts - T0) // MS * (1 + len(field.name) % 3)
        return [grown, grown // 2] if field.name == "fec_bins" else grown
    if field.dtype != pl.String and rng.random() < 0.1:
        return None
    if isinstance(field.dtype, pl.List):
        return rng.integers(0, 1_000_000, rng.integers(0, 15)).tolist()
    if field.dtype == pl.Float64:
        return float("nan") if rng.random() < 0.1 else int(rng.integers(0, 64)) / 64
    if field.dtype == pl.Boolean:
        return bool(rng.integers(0, 2))
    if field.dtype == pl.String:
        return f"{field.name}-{rng.integers(0, 2)}"
    return int(rng.integers(0, 100))


def generated(family: str, seed: int, rows: int = ROWS) -> pl.DataFrame:
    """Return rows of a family at distinct times of five windows."""
    rng = np.random.default_rng(seed)
    times = T0 + rng.choice(WINDOWS * 1000, rows, replace=False) * MS
    fixed = FIXED | {"speed_bps": SPEED.get(family, 400 * 10**9)}
    return FAMILIES[family].frame(
        pl.DataFrame(
            [
                {field.name: ts if field.name == "ts" else fixed.get(field.name, cell(field, ts, rng)) for field in FAMILIES[family].fields}
                for ts in times.tolist()
            ],
            schema=FAMILIES[family].polars,
        )
    )


def closings(subject: WindowMetric, frames: Sequence[pl.DataFrame], cuts: Sequence[int]) -> list[Closing]:
    """Return the closings of the windows between ``cuts``, each with the frames that touch it; nothing follows the last."""
    made = []
    for start, end in pairwise(cuts):
        touching = []
        for frame in frames:
            extent = subject.extent(frame)
            if ((extent.start < end) & (extent.end > start)).any():
                touching.append(frame)
        made.append(Closing("d", start, end, touching, ended=end == cuts[-1]))
    return made


def each(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """Return the rows as one frame each."""
    return [frame[k : k + 1] for k in range(frame.height)]


def table_of(name: str) -> Table:
    return STATES.get(name) or FAMILIES[name]


def counted(made: Sequence[dict[str, pl.DataFrame]]) -> dict[str, Counter]:
    """Return the rows of each table as a multiset; rows of ``quality`` are added up by key, as its readers do."""
    out: dict[str, Counter] = {}
    for tables in made:
        for name, frame in tables.items():
            out.setdefault(name, Counter())
            if name == "quality":
                for row in frame.iter_rows():
                    out[name].update({(row[:4], k): number for k, number in enumerate(row[4:]) if number})
            else:
                out[name].update(map(repr, frame.rows()))
    return out


WHOLE = (T0, END)
CUTS = [(T0, *(T0 + k * WINDOW_NS for k in inner), END) for inner in ((1,), (2, 3), (1, 2, 3, 4))]


def close_all_windows(family: str, frames: Sequence[pl.DataFrame], cuts: Sequence[int] = WHOLE) -> dict[str, Counter]:
    subject = metric(family)
    return counted([subject.close(closing) for closing in closings(subject, frames, cuts)])


@every
def test_a_metric_names_its_family(family: str) -> None:
    """The entry of a family computes that family, and starts with nothing carried and nothing dropped."""
    assert metric(family).family == family
    assert metric(family).carry("nobody") == b""
    assert not any(metric(family).counters().values())


@every
@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_rows_are_those_of_declared_tables(family: str, rows: int) -> None:
    """Every table exists in the schema and has exactly its columns and types, for any input; none has a NaN."""
    frames = [generated(family, 1, rows)] if rows else []
    made = metric(family).close(Closing("d", *WHOLE, frames, ended=True))
    assert made.keys() == metric(family).close(Closing("d", *WHOLE, [], ended=True)).keys()
    for name, frame in made.items():
        assert dict(frame.schema) == table_of(name).polars, name
        assert not frame.height or rows, name
        assert not any(frame[column].is_nan().any() for column, dtype in table_of(name).polars.items() if dtype == pl.Float64), name
        key = table_of(name).having("key")
        if key and name != "quality":
            assert frame.select(key).is_duplicated().sum() == 0, name


@every
@seeded
def test_rows_lie_in_their_windows(family: str, seed: int) -> None:
    """Rows are of whole windows, and only of those that close; rows of the input outside of them are ignored."""
    start, end = T0 + WINDOW_NS, T0 + 3 * WINDOW_NS
    made = metric(family).close(Closing("d", start, end, [generated(family, seed)], ended=True))
    for name, frame in made.items():
        if name in STATES and "ts" in frame.columns:
            assert ((frame["ts"] % WINDOW_NS == 0) & frame["ts"].is_between(start, end, closed="left")).all(), name


@every
@seeded
@pytest.mark.parametrize("cuts", CUTS, ids=len)
def test_no_split_of_the_input_matters(family: str, seed: int, cuts: Sequence[int]) -> None:
    """Windows that close one by one, with messages of one row, give the rows of one call with one message."""
    frame = generated(family, seed)
    assert close_all_windows(family, each(frame), cuts) == close_all_windows(family, [frame])


@every
@seeded
def test_no_order_of_arrival_matters(family: str, seed: int) -> None:
    """Rows of distinct times that arrive shuffled give the rows of those in order."""
    frame = generated(family, seed)
    assert close_all_windows(family, each(frame.sample(fraction=1, shuffle=True, seed=seed))) == close_all_windows(
        family, [frame.sort("ts")]
    )


@every
@seeded
def test_devices_do_not_mix(family: str, seed: int) -> None:
    """Several devices that close together give the same rows as each alone."""
    frames = {name: generated(family, 10 * seed + k) for k, name in enumerate(("a", "b"))}
    together = metric(family).close_all([Closing(name, *WHOLE, [frame], ended=True) for name, frame in frames.items()])
    alone = [metric(family).close(Closing(name, *WHOLE, [frame], ended=True)) for name, frame in frames.items()]
    assert counted([together]) == counted(alone)


@every
@seeded
@pytest.mark.parametrize("after", range(1, WINDOWS))
def test_a_successor_goes_on_with_the_carry(family: str, seed: int, after: int) -> None:
    """A metric in another process that restores the carry at any window gives the rows of one that never stopped."""
    frame = generated(family, seed)
    first, second = metric(family), metric(family)
    steps = closings(first, each(frame), [T0 + k * WINDOW_NS for k in range(WINDOWS + 1)])
    made = [first.close(closing) for closing in steps[:after]]
    second.restore("d", first.carry("d"))
    made += [second.close(closing) for closing in steps[after:]]
    assert counted(made) == close_all_windows(family, [frame])


@every
def test_an_empty_carry_clears_what_was_carried(family: str) -> None:
    """A partition that moves away leaves nothing behind: restoring empty bytes forgets the device."""
    subject = metric(family)
    subject.close(closings(subject, [generated(family, 1)], [T0, T0 + 3 * WINDOW_NS, END])[0])
    subject.restore("d", b"")
    assert subject.carry("d") == b""


@every
@seeded
def test_duplicates_invent_nothing(family: str, seed: int) -> None:
    """A message received twice adds no key and changes no minimum or maximum; sums do not fall."""
    frame = generated(family, seed)
    once = metric(family).close(Closing("d", *WHOLE, [frame], ended=True))
    twice = metric(family).close(Closing("d", *WHOLE, [frame, frame], ended=True))
    name = next(iter(once))
    key = STATES[name].having("key")
    both = once[name].join(twice[name], on=key, how="full", nulls_equal=True, suffix="_twice", coalesce=True)
    assert both.height == once[name].height == twice[name].height
    for column in (*STATES[name].having("min"), *STATES[name].having("max")):
        assert both[column].equals(both[f"{column}_twice"].alias(column), null_equal=True), column
    for column in STATES[name].having("sum"):
        assert (both[f"{column}_twice"] >= both[column]).fill_null(True).all(), column


def read(family: str, values: Sequence[int], epochs: Sequence[int]) -> dict[str, pl.DataFrame]:
    """Return the rows of a metric for one object with these counter values, one second apart."""
    times = [T0 + k * WINDOW_NS for k in range(len(values))]
    names = {name: "one" for name, dtype in FAMILIES[family].polars.items() if dtype == pl.String}
    counters = {name: pl.Series(values, dtype=pl.UInt64) for name in counters_of(family)}
    rows = FAMILIES[family].frame({"ts": times, "recv_ts": END, "epoch": epochs, "speed_bps": 400 * 10**9, **names, **counters})
    return metric(family).close(Closing("d", *WHOLE, [rows], ended=True))


@pytest.mark.parametrize("family", CUMULATIVE)
def test_a_counter_counts_only_inside_an_epoch(family: str) -> None:
    """When counters restart with a new epoch, only deltas inside an epoch count, and the restart is counted once."""
    made = read(family, [100, 200, 50, 150], [1, 1, 2, 2])
    state = made[f"{family}_counters"]
    assert {name: state[name].sum() for name in counters_of(family)} == dict.fromkeys(counters_of(family), 200)
    assert made["quality"]["resets"].sum() == 1


@pytest.mark.parametrize("family", CUMULATIVE)
def test_a_counter_that_goes_back_wrapped_or_restarted(family: str) -> None:
    """A wrap of a counter gives the delta across it, or none if it cannot wrap; either way it is counted."""
    made = read(family, [2**64 - 60, 40], [1, 1])
    state = made[f"{family}_counters"]
    assert {state[name].sum() for name in counters_of(family)} <= {0, 100}
    assert made["quality"].select(pl.col("wraps") + pl.col("resets")).sum().item() >= 1
