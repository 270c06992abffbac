"""Where the fabric is congested: pauses, marks, drops and full buffers by queue, and the links that are failing."""

import polars as pl
import streamlit as st

from ... import charts
from ...parts import (
    ALL_PORTS,
    Visit,
    beside,
    choose,
    choose_port,
    fetch,
    figure,
    number,
    number_column,
    opened,
    percent,
    ratio_column,
    table,
    text_columns,
    tiles,
    time_column,
)
from ...sql import WORDS, Span
from . import queries
from .queries import MEASURES, PortChoice

TITLE = "Congestion"
ICON = ":material/traffic:"
STORED = True
LIVE = True

NO_COUNTERS = (
    "There are no counters of queues or ports yet. Configure a source (`[collect.gnmi]`, `[collect.sflow]`, `[collect.hft]`, "
    "`[collect.otlp]` in weft.toml), or replay recorded ones with `weft replay FILE`."
)


def render(visit: Visit) -> None:
    """Render the page."""
    span = opened(visit, queries.bounds(), NO_COUNTERS)
    if span is None:
        return
    place, measure = _choose(visit)
    _tiles(visit.board.row(queries.summary(span, place)))
    _heat(visit, span, place, measure)
    beside(lambda: _over_time(visit, span, place), lambda: _buffers(visit, span, place))
    _queues(visit, span, place)
    beside(lambda: _drops(visit, span, place), lambda: _events(visit, span, place))
    _links(visit, span, place)


def _choose(visit: Visit) -> tuple[PortChoice, str]:
    """Show the choice of device, port and measure, and return it."""
    known = fetch(visit, queries.places())
    known = known if known is not None else pl.DataFrame(schema={"device": pl.String, "port": pl.String})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = PortChoice(*choose_port(known, ALL_PORTS))
        doc = "paused: of the time in which PFC stopped the queue; marked: of the packets with congestion experienced"
        return place, choose("Heat map shows the share", MEASURES, "measure", doc)


def _tiles(row: dict[str, object]) -> None:
    tiles(
        [
            ("Worst pause", percent(row.get("pause_rx_ratio"), 2), "largest share of a window in which PFC stopped one queue"),
            (
                "Queues paused",
                f"{number(row.get('paused'))} of {number(row.get('queues'))}",
                "queues and priorities that were paused at all in the range",
            ),
            ("ECN-marked", percent(row.get("ecn_mark_ratio"), 2), "congestion-marked share of the packets, on queues that count marks"),
            ("Dropped", number(row.get("drops")), f"packets that queues dropped: {percent(row.get('drop_ratio'), 4)}"),
            ("Storms", number(row.get("storms")), "pause storms that began in the range: a queue stopped by pauses for 200 ms"),
            (
                "PFC before ECN",
                number(row.get("pfc_before_ecn")),
                "windows in which a queue was paused and nothing was marked: the ECN thresholds are too high",
            ),
            ("Worst pre-FEC BER", number(row.get("prefec_ber")), "bit errors before correction; RS(544,514) is specified for up to 2.4e-4"),
        ]
    )


def _heat(visit: Visit, span: Span, place: PortChoice, measure: str) -> None:
    words = MEASURES[measure][0]
    cell = figure(
        visit,
        f"The worst queues: share {words}",
        queries.heat(span, measure, place),
        lambda frame: charts.heat(frame, f"share {words}", dark=visit.dark, what=words, pick=("device", "port", "ms")),
        key="heat",
        describe=f"Heat map: one row per queue, time to the right, colour is the share {words}",
        empty=f"No queue is {words} in this range.",
        good=measure != "used",
        note="Click a cell to show that port alone. Pauses measured by duration are exact; where only frames are counted, the share is an "
        "upper bound.",
        selects=True,
    )
    if cell and cell["port"] and cell["port"] != place.port:
        visit.go("congestion", {"device": cell["device"], "port": cell["port"], "measure": measure})


def _over_time(visit: Visit, span: Span, place: PortChoice) -> None:
    names = {"marked": "ECN-marked packets", "paused": "worst paused", "pausing": "worst pausing", "dropped": "dropped packets"}
    figure(
        visit,
        f"Marks, pauses and drops in each {WORDS[span.resolution(300)]}",
        queries.over_time(span, place),
        lambda frame: charts.lines(frame, "share", dark=visit.dark, names=_present(frame, names), percent=True),
        key="over_time",
        describe="Lines over time: marked, paused and dropped shares",
        empty="No queue counters in this range.",
        note="In a healthy fabric queues mark before they pause, and pause before they drop.",
    )


def _buffers(visit: Visit, span: Span, place: PortChoice) -> None:
    names = {"watermark": "watermark", "occupancy": "occupancy read", "headroom": "headroom used"}
    figure(
        visit,
        "The fullest buffer",
        queries.buffers(span, place),
        lambda frame: charts.lines(frame, "bytes", dark=visit.dark, names=_present(frame, names)),
        key="buffers",
        describe="Lines over time: largest watermark, occupancy and headroom of any chosen queue",
        empty="No buffer occupancy was read in this range.",
        note="A watermark is the largest occupancy since the device cleared it, so it includes peaks between two polls.",
    )


def _present(frame: pl.DataFrame, names: dict[str, str]) -> dict[str, str]:
    return {column: label for column, label in names.items() if frame[column].null_count() < frame.height} or names


def _queues(visit: Visit, span: Span, place: PortChoice) -> None:
    columns = {
        **text_columns("device", "port"),
        "queue": st.column_config.TextColumn("queue", width="small"),
        "direction": st.column_config.TextColumn(
            "direction", width="small", help="tx: egress queue or priority; rx: ingress; pool: shared"
        ),
        "pause_rx_ratio": ratio_column("paused", "worst window: share of the time in which its peer stopped it", bar=True),
        "pause_tx_ratio": ratio_column("pausing", "worst window: share of the time in which it stopped its peer"),
        "pause_mean_us": number_column("mean pause, µs", "", "%.1f"),
        "pause_by": st.column_config.TextColumn("by", width="small", help="duration: measured; frames: at most this"),
        "storm_ratio": ratio_column("in storm"),
        "ecn_mark_ratio": ratio_column("marked", "congestion-marked share of the packets"),
        "drops": number_column("drops"),
        "utilization": ratio_column("line used", "worst window"),
        "watermark_megabytes": number_column("watermark, MB", "", "%.2f"),
        "delay_us": number_column("delay, µs", "largest watermark of the delay", "%.1f"),
        "pfc_before_ecn": st.column_config.CheckboxColumn("PFC before ECN", help="paused while nothing was marked"),
        "quality": st.column_config.TextColumn("quality", width="small"),
    }
    table(
        visit,
        "Queues and priorities, the worst first",
        queries.worst_queues(span, place),
        columns,
        key="queues",
        empty="No queue counters in this range.",
        height=400,
    )


def _drops(visit: Visit, span: Span, place: PortChoice) -> None:
    figure(
        visit,
        "Dropped packets by reason",
        queries.drops(span, place),
        lambda frame: charts.bars(frame, "reason", "packets", "packets", dark=visit.dark),
        key="drops",
        describe="Bars: dropped packets by reason",
        empty="Nothing was dropped in this range.",
        good=True,
        note="Counted by queues and ports; one by one where devices report the reason.",
    )


def _events(visit: Visit, span: Span, place: PortChoice) -> None:
    columns = {
        "ts": time_column("when, UTC"),
        **text_columns("device", "port"),
        "kind": st.column_config.TextColumn("what"),
        **text_columns("reason", "detail"),
    }
    table(
        visit,
        "Events, the newest first",
        queries.events(span, place),
        columns,
        key="events",
        empty="No events in this range.",
        good=True,
        height=390,
    )


def _links(visit: Visit, span: Span, place: PortChoice) -> None:
    columns = {
        **text_columns("device", "port"),
        "flaps": number_column("flaps", "changes of the link's state"),
        "up_ratio": ratio_column("up"),
        "prefec_ber": number_column("pre-FEC BER", "bit errors before correction", "%.2e"),
        "flr_predicted": number_column("FLR predicted", "frame loss ratio to expect, from the histogram of symbol errors", "%.2e"),
        "flr_observed": number_column("FLR observed", "", "%.2e"),
        "fec_max_bin": number_column("worst codeword", "most symbol errors in one codeword; above 15 it is lost"),
        "errors": number_column("errors"),
        "discards": number_column("discards"),
        "utilization_mean_ratio": ratio_column("mean use"),
        "speed_gbps": number_column("line rate, Gbit/s", "", "%g"),
        "source": st.column_config.TextColumn("source", width="small"),
    }
    table(
        visit,
        "Links, the worst first",
        queries.links(span, place),
        columns,
        key="links",
        empty="No port counters in this range.",
        height=400,
    )
