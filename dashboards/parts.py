"""The parts of pages: data and time span of a visit, figures and tables that show their query, formats of times and sizes."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import altair as alt
import polars as pl
import streamlit as st

from ..analytics.store.files import CURRENT
from ..pipeline.clock import NS_PER_S
from ..pipeline.errors import StoreError
from .data import Board
from .sql import Span, chosen

# No device in particular; the control is shared by pages.
ANY = "any device"

# No port in particular, where all ports are shown together.
ALL_PORTS = "all ports"

# The session key of the page to show next.
TARGET = "target"

# Above these ages the badges of live data turn orange and red.
AGE_WARN_S = 10
AGE_BAD_S = 60

# Data older than this are a recording, whose age is not shown.
RECORDED_S = 24 * 3600

NOTHING_YET = (
    "No port has been sampled yet. Run `weft up` to watch this machine, or `weft replay FILE` with recorded samples, and wait a moment."
)


@dataclass(frozen=True)
class Visit:
    """The input of a page: the store, the chosen time, the theme."""

    board: Board
    range_name: str
    until_ns: int | None
    dark: bool

    def span(self, bounds: str) -> Span | None:
        """Return the chosen span of the data that the query ``bounds`` limits; None where there are no data."""
        row = self.board.row(bounds)
        first, end = row.get("first_ns"), row.get("end_ns")
        if not isinstance(first, int) or not isinstance(end, int):
            return None
        return chosen(first, end, self.range_name, self.until_ns)

    def go(self, page: str, query: Mapping[str, str]) -> None:
        """Show another page; the shared controls keep their state."""
        # Switching pages from inside a fragment that refreshes can break the page in the browser.
        st.session_state[TARGET] = page, dict(query)
        st.rerun(scope="app")


def figure(
    visit: Visit,
    title: str,
    sql: str,
    draw: Callable[[pl.DataFrame], alt.TopLevelMixin],
    *,
    key: str,
    describe: str,
    empty: str,
    note: str = "",
    selects: bool = False,
    good: bool = False,
) -> dict[str, Any] | None:
    """Show a chart of a query, with the query; return the selected cell."""
    with st.container(border=True, key=f"figure_{key}"):
        frame = _rows(visit, title, sql, key, note, empty, good)
        if frame is None:
            return None
        chart: Any = draw(frame)
        chart = chart.properties(padding={"left": 0, "right": 8, "top": 0, "bottom": 0})
        on_select: Any = "rerun" if selects else "ignore"
        event: Any = st.altair_chart(chart, width="stretch", key=f"chart_{key}", alt=describe, on_select=on_select)
        return next(iter(event.selection.get("cell", [])), None) if selects else None


def table(
    visit: Visit,
    title: str,
    sql: str,
    columns: Mapping[str, Any],
    *,
    key: str,
    empty: str,
    note: str = "",
    height: int = 320,
    chosen_row: Callable[[], None] | Literal["rerun", "ignore"] = "ignore",
    good: bool = False,
) -> dict[str, Any] | None:
    """Show the named columns of a query, with the query; return the selected row."""
    with st.container(border=True, key=f"table_{key}"):
        frame = _rows(visit, title, sql, key, note, empty, good)
        if frame is None:
            return None
        event: Any = st.dataframe(
            frame,
            key=f"rows_{key}",
            on_select=chosen_row,
            selection_mode="single-row",
            hide_index=True,
            column_order=list(columns),
            column_config=dict(columns),
            height=min(height, 38 + 35 * frame.height),
            alt=title,
            placeholder="–",
        )
        rows = event.selection.rows if chosen_row != "ignore" else []
        return frame.row(rows[0], named=True) if rows and rows[0] < frame.height else None


def meanings(rows: Sequence[Mapping[str, object]], key: str, alt: str, height: Any = "auto") -> None:
    """Show rows that have a long text ``meaning``."""
    wide = {"meaning": st.column_config.TextColumn(width="large")}
    st.dataframe(pl.DataFrame(rows), hide_index=True, key=f"rows_{key}", column_config=wide, alt=alt, height=height)


def beside(*draws: Callable[[], object], widths: Sequence[int] = ()) -> None:
    """Show parts in columns beside each other."""
    for place, draw in zip(st.columns(widths or len(draws)), draws, strict=True):
        with place:
            draw()


def choose(label: str, options: Iterable[str], key: str, doc: str, default: str = "") -> str:
    """Show a choice of one option, by default the first, and return it."""
    listed = list(options)
    default = default or listed[0]
    chosen = st.segmented_control(label, listed, default=default, required=True, key=key, bind="query-params", help=doc)
    return chosen or default


def choose_port(known: pl.DataFrame, anything: str, doc: str = "") -> tuple[str, str]:
    """Show the choice of a device and one of its ports, and return both; empty where none is chosen.

    ``known`` has the columns ``device`` and ``port``; ``anything`` is the label for no port in particular.
    """
    devices = known["device"].unique(maintain_order=True).to_list()
    device = st.selectbox("Device", [ANY, *devices], key="device", bind="query-params", width=240)
    ports = known.filter(pl.col("device") == device)["port"].unique(maintain_order=True).to_list()
    port = st.selectbox("Port", [anything, *ports], key="port", bind="query-params", width=240, disabled=not ports, help=doc or None)
    return "" if device in (ANY, None) else str(device), "" if port in (anything, None) else str(port)


def nothing(words: str, *, good: bool = False) -> None:
    """Show why there is nothing to show, and what to do; with ``good``, that nothing is the good case."""
    if good:
        st.success(words, icon=":material/check_circle:")
    else:
        st.info(words, icon=":material/hourglass_empty:")


def selected(key: str) -> list[int]:
    """Return the selected rows of a table, in a callback."""
    state: Any = st.session_state.get(f"rows_{key}")
    return list(state.selection.rows) if state else []


def fetch(visit: Visit, sql: str) -> pl.DataFrame | None:
    """Return the rows of a query, or show its error and return None."""
    try:
        return visit.board.frame(sql)
    except StoreError as error:
        st.warning(f"This query failed: {plain(error)}", icon=":material/error:")
        return None


def _rows(visit: Visit, title: str, sql: str, key: str, note: str, empty: str, good: bool) -> pl.DataFrame | None:
    """Show the title with the query; return its rows, or None after showing why there are none."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}**", help=note or None, width="content")
        with st.popover("SQL", icon=":material/code:", key=f"sql_{key}", help="the query behind this, to copy", type="tertiary"):
            st.caption(f"Run it with `weft sql`, on the page SQL, or in any DuckDB client on `{CURRENT}`.")
            st.code(sql, language="sql", wrap_lines=False)
    frame = fetch(visit, sql)
    if frame is None or not frame.is_empty():
        return frame
    nothing(empty, good=good)
    return None


def tiles(items: Sequence[tuple[str, str, str]]) -> None:
    """Show numbers in boxes: label, value with its unit, explanation."""
    for place, (label, value, doc) in zip(st.columns(len(items)), items, strict=True):
        with place:
            st.metric(label, value, border=True, help=doc or None)


def opened(visit: Visit, bounds: str, empty: str) -> Span | None:
    """Show how old the data are that the query ``bounds`` limits, and return their chosen span; without data, show why."""
    span = visit.span(bounds)
    age_badges(visit, span.to_ns if span else None)
    if span is None and empty:
        nothing(empty)
    return span


def age_badges(visit: Visit, newest_ns: int | None) -> None:
    """Show how old the data and the snapshot are, in words and colour."""
    now = visit.board.clock.now_ns()
    with st.container(horizontal=True, gap="small"):
        if newest_ns is None:
            st.badge("no data yet", icon=":material/hourglass_empty:", color="gray")
        elif now - newest_ns > RECORDED_S * NS_PER_S:
            st.badge(
                f"recorded data, until {utc(newest_ns)}",
                icon=":material/history:",
                color="gray",
                help="ranges end where the data end, not now",
            )
        else:
            age_s = max(0, now - newest_ns) / NS_PER_S
            st.badge(
                f"data {ago(age_s)} old", icon=":material/schedule:", color=_colour(age_s), help=f"newest window ends at {utc(newest_ns)}"
            )
        age_s = max(0, now - visit.board.published_ns) / NS_PER_S
        colour = "gray" if age_s > RECORDED_S or newest_ns is None or now - newest_ns > RECORDED_S * NS_PER_S else _colour(age_s)
        st.badge(
            f"published {ago(age_s)} ago", icon=":material/publish:", color=colour, help=f"newest snapshot: {utc(visit.board.published_ns)}"
        )


def _colour(age_s: float) -> Any:
    return "green" if age_s < AGE_WARN_S else "orange" if age_s < AGE_BAD_S else "red"


def ago(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def utc(ns: int) -> str:
    """Return an instant as text."""
    return f"{datetime.fromtimestamp(ns // NS_PER_S, UTC):%Y-%m-%d %H:%M:%S} UTC"


def parse_utc(words: str) -> int | None:
    """Return the instant that a user wrote, in nanoseconds; without a zone it is UTC. Raises ``ValueError``."""
    if not words.strip():
        return None
    moment = datetime.fromisoformat(words.strip())
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * NS_PER_S + moment.microsecond * 1000


def burst_threshold(ratio: object) -> str:
    """Return the burst threshold in words, without its value where that is not known."""
    return f"{ratio * 100:g} % of the line rate" if isinstance(ratio, int | float) else "the burst threshold"


def percent(value: object, digits: int = 1) -> str:
    """Return a ratio in percent, a dash where there is none."""
    return f"{value:.{digits}%}" if isinstance(value, int | float) else "–"


def number(value: object, unit: str = "", digits: int = 3) -> str:
    """Return a number with its unit, a dash where there is none."""
    if isinstance(value, Decimal):
        value = int(value)
    if not isinstance(value, int | float):
        return "–"
    words = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{words} {unit}".strip()


def plain(words: object) -> str:
    """Return text escaped for Markdown: the name of a device must not become a link or a picture."""
    return re.sub(r"([\\`*_{}\[\]()#+.!|<>~$:-])", r"\\\1", str(words))


def duration(ns: float) -> str:
    """Return a short duration in a unit that fits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:g} {unit}"
    return f"{ns:g} ns"


def speed(bps: object) -> str:
    """Return a line rate."""
    return f"{float(bps) / 1e9:g} Gbit/s" if isinstance(bps, int | float) and bps else "line rate unknown"


def text_columns(*names: str) -> dict[str, Any]:
    """Return columns of texts whose labels are their names."""
    return {name: st.column_config.TextColumn(name) for name in names}


def ratio_column(label: str, doc: str = "", *, bar: bool = False) -> Any:
    """Return a column of ratios, shown in percent."""
    if bar:
        return st.column_config.ProgressColumn(label, help=doc or None, format="percent", min_value=0, max_value=1)
    return st.column_config.NumberColumn(label, help=doc or None, format="percent")


def number_column(label: str, doc: str = "", form: str = "localized") -> Any:
    """Return a column of numbers."""
    return st.column_config.NumberColumn(label, help=doc or None, format=form)


def time_column(label: str, doc: str = "", *, precise: bool = False) -> Any:
    """Return a column of UTC times."""
    return st.column_config.DatetimeColumn(label, help=doc or None, format="YYYY-MM-DD HH:mm:ss.SSS" if precise else "YYYY-MM-DD HH:mm:ss")
