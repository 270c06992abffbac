"""Values in queries, and the span and resolution of a selected range."""

import datetime

import duckdb
from hypothesis import given
from hypothesis import strategies as st

from weft.dashboards import parts
from weft.dashboards.pages.bursts import queries
from weft.dashboards.sql import POINTS_MAX, RANGES_S, Span, chosen, instant, text
from weft.pipeline.tables.field import RESOLUTIONS_NS

S = 1_000_000_000


@given(st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=("Cs",))))
def test_any_text_is_one_literal(words):
    """For any name of a device, its literal is that text in DuckDB and nothing else."""
    assert duckdb.sql(f"SELECT {text(words)}").fetchall() == [(words,)]


@given(st.integers(0, 4_000_000_000 * S))
def test_an_instant_is_exact_to_the_nanosecond(ns):
    """An instant that goes into a query comes out as it was."""
    assert duckdb.sql(f"SELECT epoch_ns({instant(ns)})").fetchall() == [(ns,)]


def test_a_hostile_name_stays_inside_its_quotes():
    """A port called like the end of a statement selects nothing and runs nothing."""
    entity = queries.Entity("a'; DROP TABLE x; --", "p' OR '1'='1", "rx", 1_000_000)
    assert duckdb.sql(
        f"SELECT count(*) FROM (SELECT 'a' AS device, 'p' AS port, 'rx' AS direction, 1000000 AS sample_interval_ns) WHERE {entity.where()}"
    ).fetchall() == [(0,)]


@given(st.sampled_from(sorted(RANGES_S)), st.integers(1, 10 * 24 * 3600))
def test_no_series_is_wider_than_a_screen(name, seconds):
    """For any range, the resolution gives at most the points that a chart can show, or is the coarsest."""
    span = chosen(0, seconds * S, name, None)
    resolution = span.resolution()
    assert span.width_ns <= POINTS_MAX * RESOLUTIONS_NS[resolution] or resolution == "1h"


def test_ranges_end_where_the_data_end():
    """A range of recorded data lies before its end, not before now, and never before its beginning."""
    assert chosen(0, 100 * S, "5m", None) == Span(0, 100 * S)
    assert chosen(0, 1000 * S, "5m", None) == Span(700 * S, 1000 * S)
    assert chosen(0, 1000 * S, "5m", 500 * S) == Span(200 * S, 500 * S)
    assert chosen(0, 1000 * S, "all", 2000 * S) == Span(0, 1000 * S)


def test_an_until_before_all_data_is_an_empty_but_valid_span():
    """A requested time before the first sample gives a span of positive width."""
    assert chosen(100 * S, 200 * S, "5m", 50 * S).width_ns > 0


def test_times_are_read_as_utc():
    """A time without a zone is UTC; one with a zone is converted."""
    expected = int(datetime.datetime(2026, 1, 31, 12, 0, 5, tzinfo=datetime.UTC).timestamp()) * S
    assert parts.parse_utc("2026-01-31 12:00:05") == expected
    assert parts.parse_utc("2026-01-31T13:00:05+01:00") == expected
    assert parts.parse_utc("  ") is None


def test_names_cannot_become_markup():
    """A device's name that looks like a picture of another server is shown as text."""
    assert parts.plain("![x](http://a.b/c)") == "\\!\\[x\\]\\(http\\://a\\.b/c\\)"
