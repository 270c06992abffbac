"""Current health: problems with place and start, and whether the data are complete."""

import streamlit as st

from ... import charts
from ...parts import (
    NOTHING_YET,
    Visit,
    age_badges,
    burst_threshold,
    fetch,
    figure,
    nothing,
    number,
    number_column,
    percent,
    plain,
    ratio_column,
    table,
    text_columns,
    tiles,
    time_column,
)
from ...queries import packets_bounds, samples_bounds, worst_ports
from ...sql import Span
from . import queries

TITLE = "Overview"
ICON = ":material/monitor_heart:"
STORED = True
LIVE = True

_STATES = {"firing": "● firing", "no_data": "? no data", "error": "✕ rule error", "pending": "◐ pending", "resolved": "○ resolved"}


def render(visit: Visit) -> None:
    """Render the page."""
    span = visit.span(samples_bounds())
    roce = visit.span(packets_bounds())
    ends = [part.to_ns for part in (span, roce) if part is not None]
    age_badges(visit, max(ends) if ends else None)
    if span is None:
        nothing(NOTHING_YET)
        _alerts(visit)
        return
    summary = visit.board.row(queries.summary(span))
    above = burst_threshold(summary.get("burst_threshold_ratio"))
    _tiles(visit, span, roce, summary)
    left, right = st.columns([3, 2])
    with left:
        _heat(visit, span, above)
    with right:
        _alerts(visit)
        _freshness(visit, span)
    _worst(visit, span, above)


def _tiles(visit: Visit, span: Span, roce: Span | None, summary: dict[str, object]) -> None:
    alerts = fetch(visit, queries.alert_count())
    count = alerts.row(0, named=True) if alerts is not None and alerts.height else {}
    latency = visit.board.row(queries.latency_p99(roce.last(60))) if roce else {}
    worst = visit.board.frame(worst_ports(span, 1))
    name = " ".join(worst.row(0)[:3]) if worst.height else "none"
    tiles(
        [
            (
                "Devices heard",
                f"{summary.get('devices_heard', 0)} of {summary.get('devices', 0)}",
                "devices with data in the last two minutes of the range, of all with any data",
            ),
            ("Ports sampled", number(summary.get("ports")), "ports with samples in the last minute of the range"),
            (
                "Bursts, last minute",
                number(summary.get("bursts")),
                f"series of samples above {burst_threshold(summary.get('burst_threshold_ratio'))}, all ports",
            ),
            (
                "Worst port: in bursts",
                percent(worst.row(0, named=True)["burst_time_ratio"]) if worst.height else "–",
                f"{plain(name)}, over the range",
            ),
            (
                "Latency p99, last minute",
                number(latency.get("p99_us"), "µs"),
                "99 % of the acknowledgements came within this; needs captured RoCEv2 packets",
            ),
            ("Alerts firing", number(count.get("firing")), f"{count.get('pending', 0)} pending, {count.get('resolved', 0)} resolved"),
        ]
    )


def _heat(visit: Visit, span: Span, above: str) -> None:
    cell = figure(
        visit,
        "Where and when it bursts: the worst ports",
        queries.heat(span),
        lambda frame: charts.heat(frame, "share of the time in bursts", dark=visit.dark),
        key="heat",
        describe="Heat map: one row per port, time to the right, colour is the share of the time in bursts",
        empty=f"No burst in this range: no sample was above {above}. Choose a longer range.",
        note=f"A burst is a stretch of consecutive samples above {above}. Click a cell to open that port.",
        selects=True,
    )
    if cell:
        at_ns = int(cell["ms"]) * 1_000_000
        visit.go("bursts", {"device": cell["device"], "port": cell["port"], "direction": cell["direction"], "at": str(at_ns)})


def _alerts(visit: Visit) -> None:
    if visit.board.row("SELECT count(*) AS n FROM duckdb_views() WHERE view_name = 'alerts'").get("n") == 0:
        st.info("No alerts are evaluated for this store.", icon=":material/notifications_off:")
        return
    sql = queries.alerts()
    states = " ".join(f"WHEN '{state}' THEN '{words}'" for state, words in _STATES.items())
    columns = {
        "what": st.column_config.TextColumn("state", width="small"),
        "link": st.column_config.LinkColumn("look", display_text="open", width=50, help="opens the page of the alert"),
        "summary": st.column_config.TextColumn("what", width=240),
        "starts_at": time_column("since, UTC"),
        "severity": st.column_config.TextColumn("severity", width="small"),
    }
    table(
        visit,
        "Alerts",
        f"SELECT CASE state {states} ELSE state END AS what, '/' || path AS link, * FROM (\n{sql})",
        columns,
        key="alerts",
        empty="No alert: no rule fires.",
        good=True,
        note="Firing alerts first, the most severe on top; then pending, then resolved ones.",
        height=250,
    )


def _freshness(visit: Visit, span: Span) -> None:
    columns = {
        **text_columns("device"),
        "ports": number_column("ports"),
        "last_minute": time_column("last minute, UTC", "the last minute with data"),
        "coverage_ratio": ratio_column("covered", "share of the windows that was sampled"),
        "late": number_column("late", "samples that came after their window had closed"),
        "duplicates": number_column("twice", "samples received twice"),
        "implausible": number_column("implausible", "impossible samples"),
    }
    table(
        visit,
        "Freshness and quality by device",
        queries.freshness(span),
        columns,
        key="freshness",
        empty="No device has data.",
        height=250,
    )


def _worst(visit: Visit, span: Span, above: str) -> None:
    sql = worst_ports(span)
    columns = {
        **text_columns("device", "port", "direction"),
        "burst_time_ratio": ratio_column("time in bursts", f"share of the samples above {above}", bar=True),
        "bursts": number_column("bursts"),
        "burst_bytes_ratio": ratio_column("bytes in bursts", "share of the bytes in bursts"),
        "utilization_max_ratio": ratio_column("peak", "largest sample against the line rate"),
        "utilization_mean_ratio": ratio_column("mean", "mean utilisation of the line"),
        "gigabytes": number_column("GB", "", "%.2f"),
        "ce_ratio": ratio_column("CE-marked", "congestion-marked share of the bytes; empty where not sampled"),
        "sample_ms": number_column("sampled every, ms", "burst figures of different intervals do not compare", "%g"),
        "speed_gbps": number_column("line rate, Gbit/s", "empty where unknown", "%g"),
    }
    row = table(
        visit,
        "Worst ports: select one to see its bursts",
        sql,
        columns,
        key="worst",
        empty="No port has samples in this range.",
        note="Ports sampled more slowly than every 10 ms come last: they show no microbursts.",
        height=460,
        chosen_row="rerun",
    )
    if row:
        visit.go("bursts", {"device": row["device"], "port": row["port"], "direction": row["direction"]})
