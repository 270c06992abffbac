"""The latency of acknowledgements up to the far tail, and congestion and loss in RoCEv2 packets."""

import polars as pl
import streamlit as st

from ... import charts
from ...parts import ANY, Visit, beside, choose, fetch, figure, nothing, number, number_column, opened, percent, ratio_column, table, tiles
from ...queries import packets_bounds
from ...sql import WORDS, Span
from . import queries
from .queries import QUANTILES, Path, text_name

TITLE = "Latency"
ICON = ":material/timer:"
STORED = True
LIVE = True

ALL = "all"

NO_PACKETS = (
    "No RoCEv2 packet has been seen yet. Replay a capture (`weft replay FILE.pcap`), or capture live: name the `interface` "
    "under `[collect.packets]` in weft.toml."
)

# Samples that a quantile needs, so that about ten lie beyond it.
_NEEDED = {"p99": 1_000, "p99.9": 10_000, "p99.99": 100_000}


def render(visit: Visit) -> None:
    """Render the page."""
    span = opened(visit, packets_bounds(), NO_PACKETS)
    if span is None:
        return
    path = _choose(visit)
    summary = visit.board.row(queries.latency_summary(span, path))
    _tiles(summary)
    _over_time(visit, span, path, summary)
    shape = choose("Distribution", ["ECDF", "tail"], "shape", "tail: the share beyond, logarithmic")
    beside(lambda: _distribution(visit, span, path, shape == "tail"), lambda: _paths(visit, span, path))
    st.subheader("RoCEv2 packets", anchor=False)
    _packets(visit, span, path)


def _choose(visit: Visit) -> Path:
    """Show the choice of path and return it."""
    known = fetch(visit, queries.addresses())
    known = known if known is not None else pl.DataFrame(schema=dict.fromkeys(("src", "dst", "kind", "device"), pl.String))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = [
            st.selectbox(
                label,
                [ANY if name == "device" else ALL, *(value for value in known[name].unique().sort().to_list() if value)],
                key=name,
                bind="query-params",
                width=220,
                help=doc,
            )
            for label, name, doc in (
                ("Requester", "src", "the sender of the request"),
                ("Responder", "dst", "the sender of the answer"),
                (
                    "Kind",
                    "kind",
                    "ack: from a request to its acknowledgement, where it was captured; probe, transit, hop: measured by other tools",
                ),
                ("Device", "device", "where it was seen"),
            )
        ]
    return Path(*("" if value in (ALL, ANY, None) else str(value) for value in chosen))


def _tiles(summary: dict[str, object]) -> None:
    items = [
        (f"Latency {name}", number(summary.get(text_name(name)), "µs"), f"{q:.4%} of the samples came within this, to 1 %")
        for name, q in QUANTILES.items()
    ]
    tiles([*items, ("Samples", number(summary.get("samples")), "latency samples in the range")])


def _over_time(visit: Visit, span: Span, path: Path, summary: dict[str, object]) -> None:
    shown = st.pills("Quantiles", list(QUANTILES), default=list(QUANTILES), selection_mode="multi", key="quantiles", bind="query-params")
    names = {text_name(name): name for name in QUANTILES if name in (shown or list(QUANTILES))}
    figure(
        visit,
        f"Latency quantiles of each {WORDS[span.resolution(queries.POINTS_MAX)]}",
        queries.latency_over_time(span, path),
        lambda frame: charts.lines(frame, "latency, µs", dark=visit.dark, names=names, log=True),
        key="over_time",
        describe="Latency quantiles over time on a logarithmic axis",
        empty="No latency sample of this path in this range. Acknowledgements are matched where requests and answers were both captured.",
        note="The quantiles are those of the added histograms of all chosen paths, not an average of quantiles.",
    )
    samples = summary.get("samples")
    few = [name for name, wanted in _NEEDED.items() if isinstance(samples, int) and samples < wanted]
    if few and isinstance(samples, int) and samples:
        st.caption(
            f"{samples:,} samples are few for {', '.join(few)}, which are near the largest. A p99.9 needs 10,000 samples, a p99.99 100,000."
        )


def _distribution(visit: Visit, span: Span, path: Path, tail: bool) -> None:
    column, title = ("beyond", "share beyond") if tail else ("share", "share at or below")
    figure(
        visit,
        "Distribution of latency over the range",
        queries.latency_distribution(span, path),
        lambda frame: charts.curve(frame.rename({column: "y"}), "latency, µs", title, dark=visit.dark, log_y=tail),
        key="distribution",
        describe="Empirical distribution of latency on a logarithmic axis",
        empty="No latency sample of this path in this range.",
        note="From the merged histogram: exact counts, each value within 1 %.",
    )


def _paths(visit: Visit, span: Span, path: Path) -> None:
    columns = {
        "src": st.column_config.TextColumn("requester"),
        "dst": st.column_config.TextColumn("responder"),
        "kind": st.column_config.TextColumn("kind", width="small"),
        "samples": number_column("samples"),
        "p50_us": number_column("p50, µs", "", "%.1f"),
        "p99_us": number_column("p99, µs", "", "%.1f"),
        "p999_us": number_column("p99.9, µs", "", "%.1f"),
        "tail_ratio": number_column("p99 / p50", "ratio of the tail to the median", "%.2f"),
    }
    table(
        visit,
        "Paths, the slowest p99 first",
        queries.latency_paths(span, path),
        columns,
        key="paths",
        empty="No latency sample of this path in this range.",
        height=390,
    )


def _packets(visit: Visit, span: Span, path: Path) -> None:
    row = visit.board.row(queries.roce_summary(span, path))
    if not row.get("packets"):
        nothing("No RoCEv2 packet between these addresses in this range.")
        return
    credits = (
        f"{number(row.get('credits_mean'))} ({row.get('credits_min')}–{row.get('credits_max')})"
        if row.get("credits_mean") is not None
        else "–"
    )
    tiles(
        [
            ("Packets seen", number(row.get("packets")), f"{number(row.get('megabytes'), 'MB')} on the wire"),
            (
                "CE-marked",
                percent(row.get("ce_ratio"), 2),
                f"congestion-marked share of the {number(row.get('ect_packets'))} ECN-capable packets",
            ),
            ("CNPs", number(row.get("cnps")), "congestion notification packets, by which a receiver makes the sender slow down"),
            ("NAKs / RNR", f"{number(row.get('naks'))} / {number(row.get('rnr_naks'))}", "negative acknowledgements / receiver not ready"),
            (
                "PSN gaps / missing",
                f"{number(row.get('psn_gaps'))} / {number(row.get('psn_missing'))}",
                "times that a sequence jumped ahead / packets jumped over: lost or captured incompletely",
            ),
            ("PSN repeats", number(row.get("psn_repeats")), "packets seen before: retransmissions"),
            (
                "Credits mean (min–max)",
                credits,
                "AETH credit code of acknowledgements, 0 to 30: how many more requests the responder accepts",
            ),
        ]
    )
    beside(lambda: _operations(visit, span, path), lambda: _operations_over_time(visit, span, path))
    figure(
        visit,
        "Signs of congestion and loss",
        queries.trouble_over_time(span, path),
        lambda frame: charts.lines(frame, "in each window", dark=visit.dark, height=280),
        key="trouble",
        describe="Lines over time: marks, congestion notifications, negative acknowledgements, sequence gaps and repeats",
        empty="No packet in this range.",
        note="All zero is the good case.",
    )
    _flows(visit, span, path)


def _operations(visit: Visit, span: Span, path: Path) -> None:
    figure(
        visit,
        "Operation mix",
        queries.operations(span, path),
        lambda frame: charts.bars(frame, "operation", "packets", "packets", dark=visit.dark, tips=("bytes", "bytes_per_packet")),
        key="operations",
        describe="Bars: packets of each RoCEv2 operation",
        empty="No packet in this range.",
        note="Sampled packets are scaled by their sampling rate.",
    )


def _operations_over_time(visit: Visit, span: Span, path: Path) -> None:
    figure(
        visit,
        "Operations over time",
        queries.operations_over_time(span, path),
        lambda frame: charts.stacks(frame, "packets per second", dark=visit.dark),
        key="mix",
        describe="Stacked bars over time: packets per second by operation",
        empty="No packet in this range.",
    )


def _flows(visit: Visit, span: Span, path: Path) -> None:
    columns = {
        "src": st.column_config.TextColumn("source"),
        "dst": st.column_config.TextColumn("destination"),
        "packets": number_column("packets"),
        "megabytes": number_column("MB", "", "%.3f"),
        "goodput_ratio": ratio_column("payload", "application bytes over all bytes on the wire", bar=True),
        "ce_ratio": ratio_column("CE-marked"),
        "naks": number_column("NAKs"),
        "psn_gaps": number_column("PSN gaps"),
        "psn_missing": number_column("missing"),
        "psn_repeats": number_column("repeats"),
    }
    table(visit, "Pairs of addresses", queries.flows(span, path), columns, key="flows", empty="No packet in this range.", height=300)
