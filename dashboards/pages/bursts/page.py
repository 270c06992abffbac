"""One port in detail: samples against averages, raw samples, bursts and their distributions."""

import functools
from typing import Any

import streamlit as st

from ....analytics.views import PORTS
from ... import charts
from ...parts import (
    NOTHING_YET,
    Visit,
    beside,
    burst_threshold,
    choose,
    choose_port,
    duration,
    fetch,
    figure,
    meanings,
    nothing,
    number,
    number_column,
    opened,
    percent,
    plain,
    ratio_column,
    selected,
    speed,
    table,
    tiles,
    time_column,
    utc,
)
from ...queries import samples_bounds, worst_ports
from ...sql import WORDS, Span, matches, text
from . import queries
from .queries import Entity

TITLE = "Bursts"
ICON = ":material/ssid_chart:"
STORED = True
LIVE = True

WORST = "the worst"
ZOOMS_MS = {"50 ms": 50, "200 ms": 200, "1 s": 1000, "5 s": 5000, "30 s": 30_000}

_ROWS = (
    "burstiness_cv",
    "peak_to_mean",
    "clustering_ratio",
    "hurst",
    "goh_barabasi",
    "goh_barabasi_finite",
    "memory",
    "burst_bytes_ratio",
    "burst_gap_mean_ns",
)


def render(visit: Visit) -> None:
    """Render the page."""
    span = opened(visit, samples_bounds(), NOTHING_YET)
    if span is None:
        return
    entity = _choose(visit, span)
    if entity is None:
        nothing("No port has samples that match this choice and range. Choose a longer range, or another port.")
        return
    metrics = visit.board.row(queries.burst_metrics(span, entity))
    ratio = metrics.get("burst_threshold_ratio")
    threshold = ratio if isinstance(ratio, float) else None
    _summary(span, entity, metrics)
    _against(visit, span, entity, threshold)
    _microscope(visit, span, entity, threshold)
    where = _scope(entity)
    beside(lambda: _distributions(visit, span, where), lambda: _ladder(visit, span, entity))
    _metrics(queries.burst_metrics(span, entity), metrics)


def _choose(visit: Visit, span: Span) -> Entity | None:
    """Show the choice of port, and return the chosen port."""
    known = visit.board.frame(queries.ports())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        device, port = choose_port(known, WORST, "the worst: the port with most time in bursts among those that match the other choices")
        direction = choose("Direction", ["both", "rx", "tx"], "direction", "from the port's own point of view")
    where = matches(device=device, port=port, direction="" if direction == "both" else direction)
    frame = fetch(visit, worst_ports(span, 1, where))
    if frame is None or frame.is_empty():
        return None
    row = frame.row(0, named=True)
    return Entity(row["device"], row["port"], row["direction"], row["sample_interval_ns"], row["speed_bps"])


def _summary(span: Span, entity: Entity, row: dict[str, object]) -> None:
    above = burst_threshold(row.get("burst_threshold_ratio"))
    st.markdown(
        f"**{plain(entity.device)} · {plain(entity.port)} · {entity.direction}** &nbsp; {speed(entity.speed_bps)}, "
        f"sampled every {duration(entity.interval_ns)}, {utc(span.from_ns)} to {utc(span.to_ns)}"
    )
    if entity.speed_bps is None:
        st.info(
            "The line rate of this port is unknown, so utilisation and bursts cannot be computed. Set it where the port is collected.",
            icon=":material/speed:",
        )
    tiles(
        [
            ("Time in bursts", percent(row.get("burst_time_ratio")), f"share of the samples above {above}"),
            ("Bytes in bursts", percent(row.get("burst_bytes_ratio")), "share of the bytes in bursts"),
            (
                "Bursts",
                number(row.get("burst_count")),
                f"series of samples above {above} that start in the range",
            ),
            (f"Peak, {duration(entity.interval_ns)}", percent(row.get("utilization_max_ratio")), "largest sample against the line rate"),
            ("Mean", percent(row.get("utilization_mean_ratio")), "mean utilisation of the line"),
            ("Peak to mean", number(row.get("peak_to_mean")), "largest sample over the mean"),
        ]
    )


def _against(visit: Visit, span: Span, entity: Entity, threshold: float | None) -> None:
    window = WORDS[span.resolution()]
    interval = duration(entity.interval_ns)
    names = {
        "utilization_max_ratio": f"largest {interval}",
        "utilization_p99_ratio": f"p99 of the {interval} samples",
        "utilization_mean_ratio": f"mean of the {window}",
    }
    figure(
        visit,
        f"{interval} against {window}: the same traffic, sampled and averaged",
        queries.utilization(span, entity),
        lambda frame: charts.lines(
            frame,
            "utilisation of the line",
            dark=visit.dark,
            names=names,
            percent=True,
            rule=charts.burst_rule(threshold),
            steps=True,
        ),
        key="against",
        describe=f"Utilisation over time of the largest {interval} sample, the p99 and the mean of each {window}",
        empty="No window with a known line rate in this range.",
        note=f"Monitoring at {window} shows only the lowest line. Queues fill in a shorter time.",
    )


def _microscope(visit: Visit, span: Span, entity: Entity, threshold: float | None) -> None:
    sql = queries.bursts(span, entity)
    frame = fetch(visit, sql)
    starts = frame["start_ns"].to_list() if frame is not None else []
    window, zoom = _aimed(span, starts)
    beside(lambda: _bursts(visit, sql, starts, threshold), lambda: _raw(visit, entity, window, zoom, threshold), widths=(2, 3))


def _aimed(span: Span, starts: list[int]) -> tuple[Span, str]:
    """Show the choice of zoom, and return the span shown: at the chosen time, else the largest burst, else the end."""
    words = st.query_params.get("at", "")
    aimed = words.isascii() and words.isdigit() and len(words) < 20
    at_ns = int(words) if aimed else starts[0] if starts else span.to_ns - 200_000_000
    with st.container(horizontal=True, vertical_alignment="bottom"):
        zoom = choose("Microscope shows", ZOOMS_MS, "zoom", "width of the chart in time", default="200 ms")
        st.button("Back to the largest burst", icon=":material/my_location:", key="unaim", disabled=not aimed, on_click=_unaim)
    width_ns = ZOOMS_MS[zoom] * 1_000_000
    return Span(at_ns - width_ns // 5, at_ns + width_ns * 4 // 5), zoom


def _raw(visit: Visit, entity: Entity, window: Span, zoom: str, threshold: float | None) -> None:
    files = visit.board.raw_sample_files(window)
    if not files:
        bounds = visit.board.raw_sample_bounds()
        words = f"There are raw samples from {utc(bounds[0])} to {utc(bounds[1])}." if bounds else "There are none at present."
        nothing(f"The raw samples of {utc(window.from_ns)} are gone: they are stored for some minutes only. {words}")
        return
    figure(
        visit,
        f"Microscope: {zoom} from {utc(window.from_ns).removesuffix(' UTC')}.{window.from_ns // 1_000_000 % 1000:03d} UTC",
        queries.microscope(window, entity, files),
        lambda frame: charts.microscope(frame, dark=visit.dark, interval=duration(entity.interval_ns), threshold_ratio=threshold),
        key="microscope",
        describe="Raw samples of the port as utilisation of the line, with the burst threshold and the mean of each second",
        empty="No raw samples of this port at this moment: they follow some seconds after the statistics. Wait, or select another burst.",
        note="One bar per sample, or per group of samples with its largest where there are too many. Full colour: above the threshold.",
    )


def _bursts(visit: Visit, sql: str, starts: list[int], threshold: float | None) -> None:
    columns = {
        "start_ts": time_column("start, UTC", precise=True),
        "duration_ms": number_column("length, ms", "", "%g"),
        "megabytes": number_column("MB", "", "%.3f"),
        "peak_utilization_ratio": ratio_column("peak", "largest sample against the line rate"),
        "contention_max": number_column("ports hot", "most ports of the device above the threshold in one of its samples, itself included"),
        "ce_ratio": ratio_column("CE", "congestion-marked share of its bytes; empty where not sampled"),
        "retransmit_ratio": ratio_column("resent", "retransmitted share of its bytes; empty where not sampled"),
    }
    table(
        visit,
        "Largest bursts: select one to see it",
        sql,
        columns,
        key="bursts",
        empty=f"No burst in this range: no sample was above {burst_threshold(threshold)}.",
        height=charts.TALL,
        chosen_row=functools.partial(_aim, starts),
    )


def _aim(starts: list[int]) -> None:
    """Show the selected burst in detail; the selection refers to the list at the time of the click."""
    rows = selected("bursts")
    if rows and rows[0] < len(starts):
        st.query_params["at"] = str(starts[rows[0]])
    else:
        _unaim()


def _unaim() -> None:
    st.query_params.pop("at", None)


def _scope(entity: Entity) -> str:
    """Show the choice of the ports whose bursts are counted, and return it as a condition."""
    scopes = {
        "port": entity.where_burst(),
        "device": f"device = {text(entity.device)} AND interval_ns = {entity.interval_ns}",
        "all": f"interval_ns = {entity.interval_ns}",
    }
    return scopes[choose("Distributions of", scopes, "scope", "of this port, of its device, or of all, at the same sampling interval")]


def _distributions(visit: Visit, span: Span, where: str) -> None:
    sql = queries.distributions(span, where)
    frame = fetch(visit, sql)
    names = frame["series"].unique().sort(descending=True).to_list() if frame is not None and frame.height else []
    counts = dict(frame.select("series", "n").unique().iter_rows()) if frame is not None and frame.height else {}
    figure(
        visit,
        "How long bursts and the gaps between them are" + (f" ({counts.get('length', 0):,} bursts)" if counts else ""),
        sql,
        lambda rows: charts.distribution(rows, "milliseconds", dark=visit.dark, names=names),
        key="distributions",
        describe="Empirical distributions of burst length and of the gap to the next burst, on a logarithmic axis",
        empty="No burst in this range.",
        note="A gap lasts from the end of a burst to the next start on the port. Most microbursts last less than a few milliseconds.",
    )


def _ladder(visit: Visit, span: Span, entity: Entity) -> None:
    sql = queries.dispersion(span, entity)
    figure(
        visit,
        "Index of dispersion against time scale",
        sql,
        lambda rows: charts.curve(rows, "time scale, ms", "index of dispersion", dark=visit.dark, log_y=True, points=True),
        key="ladder",
        describe="Index of dispersion of the bytes in blocks of growing length; 1 is Poisson, growth means clustering",
        empty="Not enough samples with traffic for a variance.",
        note="Variance over mean of the bytes in blocks of this length, in 1500-byte units. 1 = Poisson; it grows where traffic clusters.",
    )


def _metrics(sql: str, row: dict[str, object]) -> None:
    docs = {column.name: column for column in PORTS.columns}
    rows = [{"metric": name, "value": _shown(name, row.get(name)), "meaning": docs[name].doc} for name in _ROWS]
    with st.expander("All burst metrics of this port over the range", expanded=True, key="metrics", on_change="rerun", bind="query-params"):
        meanings(rows, "metrics", "Burst metrics")
        with st.popover("SQL", icon=":material/code:", key="sql_metrics", type="tertiary"):
            st.code(sql, language="sql")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "too few events"
    if name.endswith("_ratio") and name != "clustering_ratio":
        return percent(value, 2)
    return duration(float(f"{float(value):.3g}")) if name.endswith("_ns") else number(float(value))
