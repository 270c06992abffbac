"""Logarithmic histograms: quantiles within 1 %, merging exact, and the same numbers in SQL."""

import math
from collections.abc import Iterator
from fractions import Fraction

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.analytics.store import macros
from weft.pipeline import histogram
from weft.pipeline.process.bursts import kernel
from weft.pipeline.tables.field import HISTOGRAM

# Ratios as decimals: the 99th of 100 is p99, although 0.99 is no binary fraction.
QS = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
TOP = 2**62


def hist(values: np.ndarray) -> pl.Series:
    """Return the one histogram of all values."""
    return histogram.of_values(np.zeros(len(values), np.int64), values, 1)


def nearest_rank(values: np.ndarray, q: float) -> int:
    """Return the smallest value that at least a share q of all does not exceed, in exact arithmetic."""
    return int(np.sort(values)[max(math.ceil(Fraction(str(q)) * len(values)), 1) - 1])


def drawn(name: str, size: int) -> np.ndarray:
    """Return random integers of a distribution that is typical of networks."""
    rng = np.random.default_rng(len(name) + size)
    floats = {
        "lognormal": lambda: rng.lognormal(10, 2.5, size),
        "pareto": lambda: (rng.pareto(0.9, size) + 1) * 1000,
        "uniform": lambda: rng.uniform(0, 12_500_000, size),
        "exponential": lambda: rng.exponential(20_000, size),
        "small": lambda: rng.integers(0, 5, size),
        "huge": lambda: rng.integers(2**55, TOP, size),
        "mixed": lambda: np.where(rng.random(size) < 0.9, rng.integers(0, 3, size), rng.integers(10**9, 10**15, size)),
        "constant": lambda: np.full(size, 123_456_789),
    }
    return np.minimum(floats[name](), TOP).astype(np.int64)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 20_000])
@pytest.mark.parametrize("name", ["lognormal", "pareto", "uniform", "exponential", "small", "huge", "mixed", "constant"])
def test_quantiles_are_within_one_percent(name: str, size: int) -> None:
    """Every quantile of every distribution and size lies within 1 % of the sample of that rank."""
    values = drawn(name, size)
    got = histogram.quantiles(hist(values), QS)[0]
    np.testing.assert_allclose(got, [nearest_rank(values, q) for q in QS], rtol=0.01)


@pytest.mark.parametrize("name", ["lognormal", "pareto", "uniform", "exponential"])
def test_quantiles_of_many_samples_are_those_of_numpy(name: str) -> None:
    """For dense samples the quantile is within 1 % of NumPy's linear interpolation, too."""
    values = drawn(name, 200_000)
    got = histogram.quantiles(hist(values), QS[1:-2])[0]
    np.testing.assert_allclose(got, np.quantile(values, QS[1:-2], method="linear"), rtol=0.0101)


@given(st.lists(st.integers(0, TOP), min_size=1, max_size=60), st.decimals(0, 1, places=4))
def test_any_quantile_of_any_integers_is_within_one_percent(values: list[int], q) -> None:
    """For any integers up to 2^62 a quantile is within 1 % of the exact one."""
    got = histogram.quantile(hist(np.array(values))[0].to_list(), float(q))
    np.testing.assert_allclose(got, nearest_rank(np.array(values), float(q)), rtol=0.01)


@given(st.integers(0, 2**63 - 1))
def test_a_bucket_is_where_the_definition_says(value: int) -> None:
    """The bucket of v is 1 + 64 e + floor(64 (v / 2^e - 1)) in exact arithmetic, from the array function and from the kernel's."""
    e = value.bit_length() - 1
    expected = 0 if value == 0 else 1 + 64 * e + ((value - (1 << e)) * 64 >> e)
    assert int(histogram.buckets(np.array([value], np.uint64))[0]) == expected
    assert int(kernel.bucket(value)) == expected
    assert expected < histogram.BUCKETS


@given(st.integers(0, histogram.BUCKETS - 1), st.sampled_from([np.int16, np.int64]))
def test_an_estimate_is_the_middle_of_the_integers_of_a_bucket(index: int, kind: type) -> None:
    """The estimate is exact to the last bit of a double, for any width of the index."""
    octave, step = divmod(index - 1, 64)
    width = Fraction(2) ** octave / 64
    middle = float((64 + step) * width + max(width - 1, Fraction(0)) / 2) if index else 0.0
    assert float(histogram.estimate(np.array([index], kind))[0]) == middle


@given(st.integers(0, TOP))
def test_an_estimate_is_within_a_hundred_and_twenty_eighth(value: int) -> None:
    """The estimate of a bucket differs from each of its values by at most 1/128, and not at all below 128."""
    got = float(histogram.estimate(histogram.buckets(np.array([value])))[0])
    assert abs(got - value) <= value / 128
    assert value >= 128 or got == value


def test_an_empty_histogram_has_no_quantile() -> None:
    """The quantiles of an empty histogram and of a null are NaN."""
    rows = pl.Series("hist", [[], None, [{"i": 1, "c": 1}]], dtype=HISTOGRAM)
    got = histogram.quantiles(rows, (0.0, 0.5, 1.0))
    assert np.isnan(got[:2]).all()
    assert got[2].tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, TOP)), max_size=80), st.randoms(use_true_random=False))
def test_merging_equals_the_histogram_of_the_union(pairs: list[tuple[int, int]], random) -> None:
    """Histograms of any parts, merged in any order, equal the histogram of all values bit by bit."""
    parts = [np.array([v for p, v in pairs if p == part], np.int64) for part in range(4)]
    order = [0, 1, 2, 3]
    random.shuffle(order)
    rows = pl.concat([hist(parts[k]) for k in order])
    merged = histogram.merge(rows, np.zeros(4, np.int64), 1)
    assert merged.to_list() == hist(np.array([v for _, v in pairs], np.int64)).to_list()


def test_merging_keeps_groups_apart() -> None:
    """Each group gets the sum of its own rows, and a group without rows is empty."""
    rows = pl.Series("hist", [[{"i": 3, "c": 1}], [{"i": 1, "c": 2}, {"i": 3, "c": 4}], None, [{"i": 9, "c": 1}]], dtype=HISTOGRAM)
    merged = histogram.merge(rows, np.array([2, 2, 0, 0]), 4)
    assert merged.to_list() == [[{"i": 9, "c": 1}], [], [{"i": 1, "c": 2}, {"i": 3, "c": 5}], []]


def test_sliced_columns_are_read_where_they_begin() -> None:
    """A column that is a slice, or several chunks, of a longer one gives its own histograms."""
    long = pl.Series("hist", [[{"i": k + 1, "c": k + 1}] for k in range(6)], dtype=HISTOGRAM)
    chunked = long[4:6].append(long[0:1])
    assert [row[0]["c"] for row in histogram.merge(long[2:4], np.arange(2), 2).to_list()] == [3, 4]
    assert histogram.merge(chunked, np.zeros(3, np.int64), 1).to_list() == [[{"i": 1, "c": 1}, {"i": 5, "c": 5}, {"i": 6, "c": 6}]]


@pytest.fixture(scope="module")
def sql() -> Iterator[duckdb.DuckDBPyConnection]:
    """Return a DuckDB with the macros that every store has."""
    connection = duckdb.connect()
    for statement in macros.statements():
        connection.execute(statement)
    yield connection
    connection.close()


def test_sql_knows_the_value_of_every_bucket(sql: duckdb.DuckDBPyConnection) -> None:
    """The macro ``weft_bucket_value`` gives for all 4,097 buckets what Python gives."""
    rows = sql.execute(f"SELECT weft_bucket_value(i) FROM range({histogram.BUCKETS}) t(i) ORDER BY i").fetchall()
    np.testing.assert_allclose([row[0] for row in rows], histogram.estimate(np.arange(histogram.BUCKETS)), rtol=1e-15)


@pytest.mark.parametrize("name", ["lognormal", "pareto", "small", "huge", "mixed"])
def test_sql_quantiles_counts_and_merges_equal_pythons(sql: duckdb.DuckDBPyConnection, name: str) -> None:
    """The macros ``weft_quantile``, ``weft_merge`` and ``weft_count`` agree with Python on stored histograms."""
    values = drawn(name, 3_000)
    row = np.arange(len(values)) % 7
    rows = pl.DataFrame({"g": np.arange(7) % 2, "hist": histogram.of_values(row, values, 7)})
    sql.register("hists", rows.to_arrow())
    select = ", ".join(f"weft_quantile(h, {q})" for q in QS)
    merged = "WITH merged AS MATERIALIZED (SELECT g, weft_merge(list(hist)) AS h FROM hists GROUP BY g)"
    got = sql.execute(f"{merged} SELECT weft_count(h), {select} FROM merged ORDER BY g").fetchall()
    sql.unregister("hists")
    for g in range(2):
        mine = values[(row % 2) == g]
        assert got[g][0] == len(mine)
        np.testing.assert_allclose(got[g][1:], histogram.quantiles(hist(mine), QS)[0], rtol=1e-12)


def test_sql_has_no_quantile_of_nothing(sql: duckdb.DuckDBPyConnection) -> None:
    """A quantile of an empty or missing histogram is NULL, not an error."""
    kind = "STRUCT(i SMALLINT, c UINTEGER)[]"
    assert sql.execute(f"SELECT weft_quantile([]::{kind}, 0.5), weft_quantile(NULL::{kind}, 0.5)").fetchall() == [(None, None)]


def test_sql_merges_more_than_four_thousand_million(sql: duckdb.DuckDBPyConnection) -> None:
    """A day of a thousand ports does not overflow the count of a bucket."""
    full = "[{'i': 5::SMALLINT, 'c': 4294967295::UINTEGER}]"
    query = f"SELECT weft_count(h), weft_quantile(h, 0.5), weft_count(weft_merge([h, h])) FROM (SELECT weft_merge([{full}, {full}]) AS h)"
    value = float(histogram.estimate(np.array([5]))[0])
    assert sql.execute(query).fetchall() == [(8_589_934_590, value, 17_179_869_180)]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
@settings(max_examples=30)
def test_sql_variance_is_exact(sql: duckdb.DuckDBPyConnection, values: list[int]) -> None:
    """The macro ``weft_variance`` divides once, after exact integer arithmetic."""
    n, total, squares = len(values), sum(values), sum(v * v for v in values)
    got = sql.execute(f"SELECT weft_variance({n}::UBIGINT, {total}::UBIGINT, {squares}::DECIMAL(38,0))").fetchall()[0][0]
    assert got == pytest.approx((n * squares - total * total) / (n * n), rel=1e-14)
