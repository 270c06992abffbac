"""Weft's own services: whether the data are complete and fresh, and what they cost."""

import polars as pl
import streamlit as st

from ... import charts
from ...parts import ANY, Visit, age_badges, figure, nothing, number, number_column, ratio_column, table, text_columns, tiles, time_column
from ...queries import samples_bounds
from ...sql import Span
from . import queries

TITLE = "Pipeline"
ICON = ":material/conveyor_belt:"
STORED = True
LIVE = True

COMPLETE = "Nothing is missing: no collector or service has recorded a loss."

NO_REPORTS = "No service has reported yet. Services report every five seconds while they run: start `weft up`."


def render(visit: Visit) -> None:
    """Render the page."""
    data = visit.span(samples_bounds())
    span = visit.span(queries.bounds())
    newest = max((part.to_ns for part in (data, span) if part is not None), default=None)
    age_badges(visit, newest)
    if span is None:
        nothing(NO_REPORTS)
    else:
        _services(visit, span)
        _charts(visit, span)
    _losses(visit, data)


def _services(visit: Visit, span: Span) -> None:
    sql = queries.services(span)
    frame = visit.board.frame(sql)
    tiles(
        [
            ("Services reporting", number(frame.height), "services that reported in the range"),
            (
                "Rows per second",
                number(_total(frame, "rows_per_s")),
                "rows through all services: a row is a segment of samples in collectors, a window in the other services",
            ),
            ("Behind", number(_total(frame, "lag_messages"), "messages"), "messages on the bus that are not read yet"),
            ("Processor", number(_total(frame, "cpu_ratio"), "cores"), "mean over the range, all services"),
            ("Memory", number(_total(frame, "resident_megabytes"), "MB"), "resident now, all services; shared pages count for each"),
            (
                "Dropped or failed",
                number(int(_total(frame, "troubles") or 0)),
                "everything dropped, missed or failed since the services started; see the chart",
            ),
        ]
    )
    columns = {
        "source": st.column_config.TextColumn("service"),
        "host": st.column_config.TextColumn("host"),
        "last_report": time_column("last report, UTC"),
        "rows_per_s": number_column("rows/s", "", "%.1f"),
        "lag_messages": number_column("behind, messages", "", "%.0f"),
        "cpu_ratio": ratio_column("processor, of one core", "mean over the range"),
        "resident_megabytes": number_column("memory, MB", "", "%.0f"),
        "troubles": number_column("dropped or failed", "since it started"),
    }
    table(visit, "Services", sql, columns, key="services", empty=NO_REPORTS, height=220)


def _total(frame: pl.DataFrame, column: str) -> float | None:
    """Return the total of a column, for the tile above its table."""
    total = frame[column].sum() if frame[column].count() else None
    return float(total) if total is not None else None


def _charts(visit: Visit, span: Span) -> None:
    pictures = (
        ("Rows through each service", queries.rates(span), "rows/s", "rates"),
        ("Behind: messages not read yet", queries.lags(span), "messages", "lags"),
        ("Processor time", queries.processors(span), "cores", "processors"),
        ("Resident memory", queries.memory(span), "MB", "memory"),
        ("Cost of publishing a snapshot", queries.publishing(span), "ms", "publishing"),
        ("Drops and errors", queries.troubles(span), "per second", "troubles"),
    )
    for start in range(0, len(pictures), 2):
        for place, (title, sql, unit, key) in zip(st.columns(2), pictures[start : start + 2], strict=False):
            with place:
                _chart(visit, title, sql, unit, key)


def _chart(visit: Visit, title: str, sql: str, unit: str, key: str) -> None:
    good = key == "troubles"
    figure(
        visit,
        title,
        sql,
        lambda frame: charts.lines(frame, unit, dark=visit.dark, height=280),
        key=key,
        describe=f"Lines over time: {title}, in {unit}, by service",
        empty="Nothing was dropped and nothing failed in this range."
        if good
        else "Two reports are needed, five seconds apart: wait a moment.",
        good=good,
    )


def _losses(visit: Visit, data: Span | None) -> None:
    known = visit.board.frame(queries.devices())["device"].to_list()
    device = st.selectbox("Losses of", [ANY, *known], key="device", bind="query-params", width=280)
    name = "" if device in (ANY, None) else str(device)
    left, right = st.columns([2, 3])
    with left:
        columns = {
            "what": st.column_config.TextColumn("what"),
            "reason": st.column_config.TextColumn("because"),
            "missed": number_column("missing"),
            "admissions": number_column("times"),
            "last": time_column("last, UTC"),
        }
        table(
            visit,
            "Recorded losses, total",
            queries.gap_summary(name),
            columns,
            key="gap_summary",
            empty=COMPLETE,
            good=True,
        )
    with right:
        columns = {
            "ts": time_column("when, UTC", precise=True),
            "source": st.column_config.TextColumn("by"),
            "device": st.column_config.TextColumn("device"),
            "what": st.column_config.TextColumn("what"),
            "missed": number_column("missing"),
            "reason": st.column_config.TextColumn("because"),
        }
        table(
            visit,
            "Recorded losses, the newest first",
            queries.gaps(name),
            columns,
            key="gaps",
            empty=COMPLETE,
            good=True,
        )
    if data is not None:
        _quality(visit, data, name)


def _quality(visit: Visit, data: Span, device: str) -> None:
    columns = {
        **text_columns("device", "port", "signal"),
        "samples": number_column("samples"),
        "coverage_ratio": ratio_column("covered", "share of the windows that was sampled", bar=True),
        "late": number_column("late", "came after their window had closed; not counted"),
        "duplicates": number_column("twice", "received twice; not counted"),
        "implausible": number_column("implausible", "impossible: above 1 MiB per nanosecond, in the future, or off the grid; not counted"),
    }
    table(
        visit,
        "Quality of the samples, the worst first",
        queries.quality(data, device),
        columns,
        key="quality",
        empty="No samples in this range.",
        height=420,
    )
