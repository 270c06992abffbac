"""The burst metric against plain Python from the definitions, and against any split of its input."""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.pipeline.process.base import Closing
from weft.pipeline.process.bursts import kernel
from weft.pipeline.process.bursts.metric import BurstConfig, BurstMetric
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import LADDER, WINDOW_NS
from weft.pipeline.tables.states import STATES

T0 = 1_640_995_200 * WINDOW_NS
MS = 1_000_000
LIMIT_PER_NS = 2**20  # a sample above so many bytes a nanosecond cannot be
TABLES = ("port_samples", "bursts", "groups", "quality")
RUN = ("ts", "port", "queue", "signal", "interval_ns", "speed_bps", "values")


class Entity(NamedTuple):
    device: str
    port: str
    queue: str
    signal: str
    interval_ns: int
    speed_bps: int | None


class Sample(NamedTuple):
    """One received sample; a slot may be received more than once, and a value may be unknown."""

    entity: Entity
    slot: int
    value: int | None


# --- the definitions, in plain Python -------------------------------------------------------------------------------


def bucket(value: int) -> int:
    e = value.bit_length() - 1
    return 0 if value == 0 else 1 + 64 * e + ((value - (1 << e)) * 64 >> e)


def hist(values: list[int]) -> list[dict[str, int]]:
    return [{"i": i, "c": c} for i, c in sorted(Counter(map(bucket, values)).items())]


def window_of(entity: Entity, slot: int) -> int:
    return slot * entity.interval_ns // WINDOW_NS * WINDOW_NS


def is_hot(entity: Entity, value: int) -> bool:
    """More than half of what the line carries in the interval; never where the line rate is unknown."""
    if entity.signal not in ("rx_bytes", "tx_bytes") or not entity.speed_bps:
        return False
    return value > Fraction(entity.speed_bps * entity.interval_ns, 2 * 8 * 10**9)


def kept(samples: list[Sample]) -> tuple[dict[Entity, dict[int, int]], Counter, Counter]:
    """Return the samples that count, and per (window, device, port, signal) the duplicates and the implausible ones."""
    series: dict[Entity, dict[int, int]] = defaultdict(dict)
    duplicates: Counter = Counter()
    implausible: Counter = Counter()
    for entity, slot, value in samples:
        if value is None:
            continue
        key = (window_of(entity, slot), entity.device, entity.port, entity.signal)
        if value > LIMIT_PER_NS * entity.interval_ns:
            implausible[key] += 1
            continue
        duplicates[key] += slot in series[entity]
        series[entity][slot] = max(value, series[entity].get(slot, 0))
    return series, +duplicates, implausible


def stretches(slots: list[int]) -> list[list[int]]:
    """Return maximal sequences of consecutive numbers."""
    out: list[list[int]] = []
    for slot in slots:
        if out and out[-1][-1] == slot - 1:
            out[-1].append(slot)
        else:
            out.append([slot])
    return out


def port_samples(entity: Entity, series: dict[int, int]) -> dict[int, dict[str, Any]]:
    """Return the row of each window by its start."""
    rows: dict[int, dict[str, Any]] = {}
    values: dict[int, list[int]] = defaultdict(list)
    gap_values: dict[int, list[int]] = defaultdict(list)
    zero = dict.fromkeys((f.name for f in STATES["port_samples"].fields if f.role == "sum"), 0)
    for slot in sorted(series):
        row = rows.setdefault(window_of(entity, slot), {**zero, "profile": [0] * 100})
        value = series[slot]
        values[window_of(entity, slot)].append(value)
        row["profile"][slot * entity.interval_ns % WINDOW_NS // (10 * MS)] += value
        hot = is_hot(entity, value)
        row["hot"] += hot
        row["hot_total"] += value * hot
        if slot - 1 in series:
            before = is_hot(entity, series[slot - 1])
            row[f"{'hot' if before else 'cold'}_{'hot' if hot else 'cold'}"] += 1
    for whole in stretches(sorted(series)):
        found = stretches([slot for slot in whole if is_hot(entity, series[slot])])
        for burst in found:
            rows[window_of(entity, burst[0])]["bursts"] += 1
        taus = []
        for before, after in pairwise(found):
            window = window_of(entity, after[0])
            gap, tau = after[0] - before[-1] - 1, after[0] - before[0]
            gap_values[window].append(gap)
            add(rows[window], gaps=1, gap_total=gap, tau_count=1, tau_total=tau, tau_squares=tau**2)
            taus.append((window, tau))
        for (_, x), (window, y) in pairwise(taus):
            add(rows[window], pair_count=1, pair_x=x, pair_y=y, pair_xx=x * x, pair_yy=y * y, pair_xy=x * y)
    for m in LADDER:
        for block in {slot // m for slot in series}:
            inside = [series.get(slot) for slot in range(block * m, block * m + m)]
            if None not in inside:
                total = sum(inside)
                window = window_of(entity, block * m + m - 1)
                add(rows[window], **{f"blocks_{m}": 1, f"block_total_{m}": total, f"block_squares_{m}": total**2})
    for window, row in rows.items():
        mine = values[window]
        row |= {"samples": len(mine), "total": sum(mine), "squares": sum(v * v for v in mine), "low": min(mine), "high": max(mine)}
        looks = entity.signal in ("rx_bytes", "tx_bytes") and bool(entity.speed_bps)
        row |= {"hist": hist(mine), "gap_hist": hist(gap_values[window]), "threshold_ratio": 0.5 if looks else None}
        row["profile"] = [min(v, 2**32 - 1) for v in row["profile"]] if entity.interval_ns <= 10 * MS else None
    return rows


def add(row: dict[str, Any], **more: int) -> None:
    for name, value in more.items():
        row[name] += value


def expected(samples: list[Sample]) -> dict[str, Counter]:
    """Return all rows of all tables, as countable tuples in the order of the tables' columns."""
    series, duplicates, implausible = kept(samples)
    out: dict[str, Counter] = {name: Counter() for name in TABLES}
    hot: dict[tuple, Counter] = defaultdict(Counter)
    seen: dict[tuple, set[int]] = defaultdict(set)
    members: Counter = Counter()
    for entity, mine in series.items():
        if entity.signal in ("rx_bytes", "tx_bytes") and not entity.queue:
            side = (entity.device, entity.signal, entity.interval_ns)
            seen[side] |= mine.keys()
            hot[side].update(slot for slot, value in mine.items() if is_hot(entity, value))
            members.update({(side, window_of(entity, slot)) for slot in mine})
    for entity, mine in series.items():
        named = entity._asdict()
        rivals = hot[entity.device, entity.signal, entity.interval_ns] if not entity.queue else Counter()
        for ts, row in port_samples(entity, mine).items():
            row["contended_hot"] = sum(
                is_hot(entity, value) and rivals[slot] > 1 for slot, value in mine.items() if window_of(entity, slot) == ts
            )
            put(out, "port_samples", {"ts": ts, **named, **row})
        for burst in stretches(sorted(slot for slot, value in mine.items() if is_hot(entity, value))):
            values = [mine[slot] for slot in burst]
            row = {
                "start_ts": burst[0] * entity.interval_ns,
                "duration_ns": len(burst) * entity.interval_ns,
                "bytes": sum(values),
                "peak": max(values),
                "contention_max": max(rivals[slot] for slot in burst),
                "ecn_bytes": beside(series, entity, "rx_ecn_bytes" if entity.signal == "rx_bytes" else None, burst),
                "retransmit_bytes": beside(series, entity, f"{entity.signal[:2]}_retransmit_bytes", burst),
            }
            put(out, "bursts", named | row)
    for (device, signal, interval), slots in seen.items():
        entity = Entity(device, "", "", signal, interval, None)
        for ts in {window_of(entity, slot) for slot in slots}:
            mine = [slot for slot in slots if window_of(entity, slot) == ts]
            counts = [hot[device, signal, interval][slot] for slot in mine]
            row = {"members": members[(device, signal, interval), ts], "slots": len(mine), "hot_total": sum(counts)}
            row |= {"busy_slots": sum(c > 0 for c in counts), "contended_slots": sum(c > 1 for c in counts), "hot_high": max(counts)}
            group = {"ts": ts, "group_kind": "device", "group_id": device, "signal": signal, "interval_ns": interval}
            put(out, "groups", group | row)
    for key in duplicates.keys() | implausible.keys():
        row = dict(zip(("ts", "device", "port", "signal"), key, strict=True))
        put(
            out,
            "quality",
            row | dict.fromkeys(STATES["quality"].having("sum"), 0) | {"duplicates": duplicates[key], "implausible": implausible[key]},
        )
    return out


def beside(series: dict[Entity, dict[int, int]], entity: Entity, signal: str | None, burst: list[int]) -> int | None:
    """Return the sum of the companion's samples in a burst, ``None`` where there are none."""
    mine = series.get(entity._replace(signal=signal), {}) if signal else {}
    values = [mine[slot] for slot in burst if slot in mine]
    return sum(values) if values else None


def frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(tuple(sorted(item.items())) if isinstance(item, dict) else item for item in value)
    return value if value is None or isinstance(value, str) else int(value)


def put(out: dict[str, Counter], table: str, row: dict[str, Any]) -> None:
    assert row.keys() >= STATES[table].polars.keys()
    out[table][tuple(frozen(row[name]) for name in STATES[table].polars)] += 1


# --- feeding the metric ----------------------------------------------------------------------------------------------


def rows_of(made: list[dict[str, pl.DataFrame]]) -> dict[str, Counter]:
    """Return the rows of a metric in the form of ``expected``; quality rows of one key are added up."""
    out: dict[str, Counter] = {name: Counter() for name in TABLES}
    quality: dict[tuple, list[int]] = defaultdict(lambda: [0] * len(STATES["quality"].having("sum")))
    for tables in made:
        for name, frame in tables.items():
            assert dict(frame.schema) == STATES[name].polars
            for row in frame.iter_rows():
                if name == "quality":
                    quality[row[:4]] = [a + b for a, b in zip(quality[row[:4]], row[4:], strict=True)]
                else:
                    out[name][tuple(frozen(value) for value in row)] += 1
    out["quality"] = Counter({(*key, *counts): 1 for key, counts in quality.items()})
    return out


def runs_of(samples: list[Sample], rng: np.random.Generator, most: int) -> list[dict[str, Any]]:
    """Return the samples as shuffled segments of at most ``most``, cut at random, with times anywhere in the first slot."""
    runs: list[dict[str, Any]] = []
    by_entity: dict[Entity, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_entity[sample.entity].append(sample)
    for entity, mine in by_entity.items():
        length = 0
        for sample in mine:
            if length and sample.slot == runs[-1]["slot"] + len(runs[-1]["values"]) and length < most and rng.random() > 0.5 / most:
                runs[-1]["values"].append(sample.value)
                length += 1
                continue
            inside = int(rng.integers(0, entity.interval_ns)) if rng.random() < 0.5 else 0
            runs.append(
                {**entity._asdict(), "slot": sample.slot, "ts": sample.slot * entity.interval_ns + inside, "values": [sample.value]}
            )
            length = 1
    rng.shuffle(runs)  # type: ignore[arg-type]
    return runs


def frame_of(runs: list[dict[str, Any]]) -> pl.DataFrame:
    """Return segments as a frame with samples of the narrowest width, as in messages."""
    types = FAMILIES["burst_sample"].polars
    frame = pl.DataFrame([{name: run[name] for name in RUN} for run in runs], schema={name: types[name] for name in RUN})
    top = max((value for run in runs for value in run["values"] if value is not None), default=0)
    width = next(kind for kind in (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64) if top <= kind.max().pipe(pl.select).item())
    return frame.with_columns(pl.col("values").cast(pl.List(width)))


def span(samples: list[Sample]) -> tuple[int, int]:
    starts = [window_of(sample.entity, sample.slot) for sample in samples]
    return min(starts), max(starts) + WINDOW_NS


def feed(samples: list[Sample], rng: np.random.Generator, *, most: int = 10**9, cuts: int = 0, restart: bool = False) -> dict[str, Counter]:
    """Return the rows of a metric that gets the samples in pieces, perhaps with another object after each call."""
    start, end = span(samples)
    borders = sorted({start, end, *(int(start + WINDOW_NS * k) for k in rng.integers(0, (end - start) // WINDOW_NS + 1, cuts))})
    devices = sorted({sample.entity.device for sample in samples})
    frames: dict[str, list[pl.DataFrame]] = {}
    for device in devices:
        runs = runs_of([sample for sample in samples if sample.entity.device == device], rng, most)
        at = 0
        frames[device] = []
        while at < len(runs):
            size = int(rng.integers(1, 6)) if cuts else len(runs)
            frames[device].append(frame_of(runs[at : at + size]))
            at += size
    metric, made = BurstMetric(), []
    for begin, finish in pairwise(borders):
        closings = [
            Closing(device, begin, finish, [frame for frame in frames[device] if touches(frame, begin, finish)], finish == end)
            for device in devices
        ]
        together = bool(rng.random() < 0.5) or not cuts
        made += [metric.close_all(closings)] if together else [metric.close(closing) for closing in closings]
        if restart:
            fresh = BurstMetric()
            for device in devices:
                fresh.restore(device, metric.carry(device))
            metric = fresh
    assert all(metric.carry(device) == b"" for device in devices)
    return rows_of(made)


def touches(frame: pl.DataFrame, begin: int, finish: int) -> bool:
    return any(
        ts // interval * interval < finish and (ts // interval + len(values)) * interval > begin
        for ts, interval, values in frame.select("ts", "interval_ns", "values").iter_rows()
    )


def compare(got: dict[str, Counter], want: dict[str, Counter]) -> None:
    for table in TABLES:
        names = list(STATES[table].polars)
        missing, extra = want[table] - got[table], got[table] - want[table]
        if missing and extra:
            pair = next(iter(missing)), next(iter(extra))
            wrong = {name: (a, b) for name, a, b in zip(names, *pair, strict=True) if a != b}
            pytest.fail(f"{table}: (expected, got) {wrong}")
        assert got[table] == want[table], table


# --- generated traffic-------------------------------------------------------------------------------------------------


def traffic(
    seed: int, interval_ns: int, slots: int, *, device: str = "leaf-1", dense: float = 0.98, odd_ratio: float = 0.03, wide: bool = True
) -> list[Sample]:
    """Return samples of a few ports around the edge of a window, with holes, nulls, duplicates and odd values.

    Without ``wide`` all of them fit into 31 bits.
    """
    rng = np.random.default_rng(seed)
    speed = int(rng.choice([10**9, 25 * 10**9, 400 * 10**9, 800 * 10**9]))
    half = speed * interval_ns // (16 * 10**9)
    entities = [Entity(device, f"Ethernet{k}", "", "rx_bytes", interval_ns, speed) for k in range(int(rng.integers(1, 4)))]
    entities += [
        entities[0]._replace(signal=signal)
        for signal in ("tx_bytes", "rx_ecn_bytes", "rx_retransmit_bytes", "queue_bytes")
        if rng.random() < 0.6
    ]
    entities += [entities[0]._replace(speed_bps=None)] if rng.random() < 0.3 else []
    entities += [entities[0]._replace(queue="q3")] if rng.random() < 0.3 else []
    first = (T0 + 7 * WINDOW_NS) // interval_ns - int(rng.integers(0, slots + 1))
    odd = [0, 1, half - 1, half, half + 1, 2 * half, LIMIT_PER_NS * interval_ns, LIMIT_PER_NS * interval_ns + 1, 2**31 - 1, 2**31, 2**62]
    half = half if wide else min(half, 2**29)
    odd = [value for value in odd if wide or value < 2**31]
    samples = []
    for entity in entities:
        begin = first + int(rng.integers(0, 3))
        on = rng.random(slots) < 0.3
        sticky = np.repeat(on[::3], 3)[:slots]
        for slot in range(begin, begin + slots):
            if rng.random() > dense:
                continue
            value = int(rng.integers(half + 1, 2 * half + 2)) if sticky[slot - begin] else int(rng.integers(0, half + 1))
            value = int(odd[int(rng.integers(len(odd)))]) if rng.random() < odd_ratio else value
            samples.append(Sample(entity, slot, None if rng.random() < odd_ratio else value))
            if rng.random() < 0.01:
                samples.append(Sample(entity, slot, int(rng.integers(0, 2 * half + 1))))
    return samples or [Sample(entities[0], first, 1)]


INTERVALS = [10_000, 300_000, 700_000, MS, 7 * MS, 33_333_333, 250 * MS, WINDOW_NS]


@pytest.mark.parametrize("interval_ns", INTERVALS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wide", [True, False])
def test_every_column_is_what_the_definitions_say(seed: int, interval_ns: int, wide: bool) -> None:
    """Statistics, bursts, groups and quality counts equal plain Python's, at any interval, line rate and width."""
    samples = traffic(seed, interval_ns, 400, wide=wide)
    compare(feed(samples, np.random.default_rng(seed)), expected(samples))


@pytest.mark.parametrize("interval_ns", [700_000, MS])
def test_long_blocks_are_what_the_definitions_say(interval_ns: int) -> None:
    """Blocks of up to 1024 samples, aligned to the absolute grid, count across windows only if they are complete."""
    samples = traffic(5, interval_ns, 4_000, dense=0.9999, odd_ratio=0.0)
    want = expected(samples)
    names = list(STATES["port_samples"].polars)
    assert any(row[names.index("blocks_1024")] for row in want["port_samples"])
    compare(feed(samples, np.random.default_rng(1), cuts=3, restart=True), want)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    interval_ns=st.sampled_from(INTERVALS),
    slots=st.integers(1, 120),
    dense=st.sampled_from([0.5, 0.95, 1.0]),
    wide=st.booleans(),
)
def test_any_cut_gives_the_same_rows(seed: int, interval_ns: int, slots: int, dense: float, wide: bool) -> None:
    """No split into segments, frames, calls, devices or objects changes a bit of any row."""
    samples = traffic(seed, interval_ns, slots, dense=dense, wide=wide)
    if seed % 3 == 0:
        samples += traffic(seed + 1, interval_ns, slots, device="leaf-2", dense=dense, wide=wide)
    if seed % 4 == 0:
        samples += traffic(seed + 2, MS, slots, dense=dense, wide=wide)
    rng = np.random.default_rng(seed)
    want = expected(samples)
    compare(feed(samples, rng, most=int(rng.integers(1, 40)), cuts=int(rng.integers(1, 5)), restart=bool(rng.integers(2))), want)


def simple(values: list[int | None], *, slot: int = 0, interval_ns: int = MS, **more: Any) -> list[Sample]:
    entity = Entity("d", "p", "", "rx_bytes", interval_ns, 8 * 10**9)._replace(**more)
    return [Sample(entity, T0 // interval_ns + slot + k, value) for k, value in enumerate(values)]


def column(rows: dict[str, Counter], table: str, name: str) -> list[Any]:
    place = list(STATES[table].polars).index(name)
    return [row[place] for row in rows[table].elements()]


def test_a_sample_at_the_threshold_is_not_hot() -> None:
    """Hot is strictly above half of the line rate: 500,000 bytes in a millisecond of 8 Gbit/s are not."""
    rows = feed(simple([500_000, 500_001]), np.random.default_rng(0))
    assert column(rows, "port_samples", "hot") == [1]
    assert column(rows, "bursts", "bytes") == [500_001]


@pytest.mark.parametrize(
    ("ratio", "speed", "interval_ns", "limit"),
    [(0.5, 12_500_000_000, MS, 781_250), (0.9, 10**9, 700_000, 78_750), (0.5, 10**10, 300_000, 187_500), (0.25, 3, WINDOW_NS, 0)],
)
def test_the_threshold_is_rounded_down_exactly(ratio: float, speed: int, interval_ns: int, limit: int) -> None:
    """The largest sample that is not hot is the floor of ratio * rate * interval, in integers."""
    assert BurstConfig(ratio).threshold(speed, interval_ns) == limit == math.floor(Fraction(str(ratio)) * speed * interval_ns / (8 * 10**9))


def test_a_burst_across_windows_is_one() -> None:
    """A burst that crosses the edge of a window is one row and counts where it starts."""
    rows = feed(simple([900_000] * 4, slot=998), np.random.default_rng(0), cuts=8, restart=True)
    assert column(rows, "bursts", "duration_ns") == [4 * MS]
    assert sorted(zip(column(rows, "port_samples", "ts"), column(rows, "port_samples", "bursts"), strict=True)) == [
        (T0, 1),
        (T0 + WINDOW_NS, 0),
    ]


def test_a_hole_ends_a_burst_and_is_no_gap() -> None:
    """Nothing is inferred across a missing sample: two bursts, no gap, no time between starts, no pair of neighbours."""
    for values in ([900_000, None, 900_000], [900_000, 2**62, 900_000]):
        rows = feed(simple(values), np.random.default_rng(0))
        assert column(rows, "bursts", "duration_ns") == [MS, MS]
        for name in ("gaps", "tau_count", "hot_hot", "cold_hot", "hot_cold"):
            assert column(rows, "port_samples", name) == [0]


@pytest.mark.parametrize("beside", [6, None])
@pytest.mark.parametrize("value", [2**53, 2**53 + 1, 2**60 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_sample_that_cannot_be_is_counted_and_left_out(value: int, beside: int | None) -> None:
    """A sample that no line can carry is counted as implausible and left out of the sums, also beside a missing sample."""
    rows = feed(simple([5, value, beside]), np.random.default_rng(0))
    assert column(rows, "port_samples", "total") == [5 + (beside or 0)]
    assert rows["quality"] == Counter({(T0, "d", "p", "rx_bytes", 0, 0, 1, 0, 0, 0): 1})


def test_squares_are_exact_in_128_bits() -> None:
    """For a thousand samples near the largest accepted one, the sums of squares, also of blocks, equal Python's integers."""
    top = LIMIT_PER_NS * MS
    values = [top - k * 977 for k in range(1000)]
    rows = feed(simple(values), np.random.default_rng(0))
    assert column(rows, "port_samples", "squares") == [sum(v * v for v in values)]
    assert column(rows, "port_samples", "squares")[0] > 2**64
    halves = [sum(values[k : k + 8]) for k in range(0, 1000, 8)]
    assert column(rows, "port_samples", "block_squares_8") == [sum(v * v for v in halves)]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=3))
def test_the_kernel_squares_any_62_bits_exactly(values: list[int]) -> None:
    """The kernel's 128-bit sums of squares equal Python's integers for samples up to 2^62."""
    slots = len(values)
    none = np.full(1, -1, np.int64)
    grid = kernel.Grid(np.array([values]), np.zeros((0, slots), np.int32), np.array([0, slots]), np.zeros(1, np.int64), MS)
    made = kernel.walk(grid, kernel.Entities(none + 2**62, none, none, none, kernel.empty_carry(1)))
    low, high = (int(half) for half in made.squares[0, kernel.SQUARE_AT.squares])
    assert low + (high << 64) == sum(v * v for v in values)


def test_of_two_samples_of_a_slot_the_larger_counts_in_any_order() -> None:
    """A slot that arrives twice counts once, and the order of arrival does not matter."""
    twice = [simple([7]), simple([9])]
    for order in (twice, twice[::-1]):
        frames = [frame_of(runs_of(samples, np.random.default_rng(0), 9)) for samples in order]
        made = BurstMetric().close(Closing("d", T0, T0 + WINDOW_NS, frames, True))
        assert made["port_samples"]["total"].to_list() == [9]
        assert made["quality"]["duplicates"].to_list() == [1]


def test_a_clock_that_jumps_over_years_costs_no_memory() -> None:
    """Windows without samples cost nothing: a device whose clock jumps from 1970 to now closes at once."""
    samples = [Sample(simple([1])[0].entity, 0, 5), *simple([6])]
    rows = feed(samples, np.random.default_rng(0))
    assert sorted(column(rows, "port_samples", "ts")) == [0, T0]


def test_a_companion_of_another_line_rate_is_not_mixed_in() -> None:
    """Marked bytes belong to the samples of the same line rate; without such samples they are null."""
    marked = simple([10, 20], signal="rx_ecn_bytes", speed_bps=4 * 10**9)
    rows = feed([*simple([900_000, 900_000]), *marked], np.random.default_rng(0))
    assert column(rows, "bursts", "ecn_bytes") == [None]


def test_many_devices_of_many_samples_stay_apart() -> None:
    """Devices that close together, with more samples than one kernel call takes, have their own rows each."""
    devices = [f"host-{k}" for k in range(5)]
    values = [[k + 1] * 600_000 for k in range(5)]
    frames = {
        device: frame_of([{**simple([0], interval_ns=10_000)[0].entity._asdict(), "ts": T0, "values": mine}])
        for device, mine in zip(devices, values, strict=True)
    }
    made = BurstMetric().close_all([Closing(device, T0, T0 + 6 * WINDOW_NS, [frame], True) for device, frame in frames.items()])
    totals = made["port_samples"].group_by("device").agg(pl.col("total").sum(), pl.col("samples").sum()).sort("device")
    assert totals.rows() == [(device, (k + 1) * 600_000, 600_000) for k, device in enumerate(devices)]
