"""The SQL console: read-only, sandboxed queries, and the catalogue of views and macros."""

import io
import json
from typing import Any

import polars as pl
import streamlit as st

from ....analytics import console, views
from ....analytics.store import macros
from ....pipeline.errors import StoreError
from ....pipeline.tables.field import RESOLUTIONS_NS
from ...parts import Visit, beside, meanings, opened, plain, utc
from ...queries import samples_bounds

TITLE = "SQL"
ICON = ":material/terminal:"
STORED = True
LIVE = False

CONFIG = console.ConsoleConfig()

EXAMPLES = {
    "worst ports": """SELECT device, port, direction, max(burst_time_ratio) AS burst_time_ratio, sum(burst_count) AS bursts
FROM ports_1s GROUP BY ALL ORDER BY burst_time_ratio DESC LIMIT 20""",
    "largest bursts": """SELECT device, port, direction, start_ts, duration_ns / 1e6 AS ms, bytes / 1e6 AS MB, peak_utilization_ratio
FROM bursts ORDER BY bytes DESC LIMIT 20""",
    "burst lengths": """SELECT direction, count(*) AS bursts, quantile_cont(duration_ns / 1e6, [0.5, 0.9, 0.99]) AS p50_p90_p99_ms
FROM bursts GROUP BY ALL""",
    "latency of paths": """SELECT src, dst, kind, sum(samples) AS samples, weft_quantile(weft_merge(list(hist)), 0.99) / 1e3 AS p99_us
FROM latency_1m GROUP BY ALL ORDER BY p99_us DESC""",
    "operation mix": """SELECT operation, sum(packets) AS packets, sum(bytes) AS bytes, sum(naks) AS naks
FROM roce_1m GROUP BY ALL ORDER BY packets DESC""",
    "what is missing": """SELECT source, device, what, reason, sum(missed) AS missed, max(ts) AS last
FROM gaps GROUP BY ALL ORDER BY missed DESC""",
}

_KEY = "console_answer"


def render(visit: Visit) -> None:
    """Render the page."""
    opened(visit, samples_bounds(), "")
    beside(lambda: _console(visit), _catalogue, widths=(3, 2))


def _console(visit: Visit) -> None:
    st.caption(
        f"Reads the snapshot published {utc(visit.board.published_ns)}. A query may run {CONFIG.timeout_s:g} s, "
        f"use {CONFIG.memory_bytes_max // 1024**2} MB and return {CONFIG.rows_max:,} rows; it can read only the store."
    )
    st.pills("Examples", list(EXAMPLES), key="example", on_change=_example)
    st.text_area(
        "Query",
        value=EXAMPLES["worst ports"],
        height=190,
        max_chars=CONFIG.query_chars_max,
        key="query",
        bind="query-params",
        help="one read-only statement: SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE, PIVOT, EXPLAIN",
    )
    if st.button("Run", type="primary", icon=":material/play_arrow:", shortcut="Ctrl+Enter"):
        _run(visit, str(st.session_state["query"]))
    _result()


def _example() -> None:
    name = st.session_state.get("example")
    if name in EXAMPLES:
        st.session_state["query"] = EXAMPLES[name]


def _run(visit: Visit, sql: str) -> None:
    try:
        with st.spinner("running"):
            st.session_state[_KEY] = console.answer(visit.board.folder, sql, CONFIG)
    except StoreError as error:
        st.session_state[_KEY] = error


def _result() -> None:
    answer: Any = st.session_state.get(_KEY)
    if answer is None:
        st.info("Press Run, or Ctrl+Enter, to see the rows.", icon=":material/play_arrow:")
        return
    if isinstance(answer, StoreError):
        problem, _, place = answer.problem.partition("\n")
        st.error(f"{plain(problem)}\n\n{answer.hint[:1].upper()}{answer.hint[1:]}.", icon=":material/error:")
        if place.strip():
            st.code(place.strip("\n"), language=None)
        return
    cut = f" (the first {CONFIG.rows_max:,}; add a LIMIT or aggregate to see all)" if answer.cut else ""
    st.markdown(f"**{answer.frame.height:,} rows**{cut} in {answer.elapsed_s * 1e3:,.0f} ms", width="content")
    if not answer.frame.width:
        return
    shown = _shown(answer.frame)
    st.dataframe(
        shown,
        hide_index=True,
        key="rows_answer",
        height=min(520, 38 + 35 * max(1, shown.height)),
        alt="rows of the query",
        placeholder="NULL",
    )
    with st.container(horizontal=True):
        st.download_button("CSV", shown.write_csv, "weft.csv", "text/csv", icon=":material/download:", on_click="ignore", key="csv")
        st.download_button(
            "Parquet",
            lambda: _parquet(answer.frame),
            "weft.parquet",
            "application/vnd.apache.parquet",
            icon=":material/download:",
            on_click="ignore",
            key="parquet",
        )


def _shown(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with lists and structures as JSON, which tables and CSV can hold."""
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    return frame.with_columns(
        pl.Series(name, [json.dumps(value, default=str) if value is not None else None for value in frame[name].to_list()], dtype=pl.String)
        for name in nested
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    body = io.BytesIO()
    frame.write_parquet(body)
    return body.getvalue()


def _catalogue() -> None:
    names = [view.name for view in views.VIEWS]
    chosen = st.selectbox(
        "Views and macros",
        [*names, "macros"],
        key="about",
        bind="query-params",
        help="views at four resolutions end in _1s, _10s, _1m, _1h",
    )
    if chosen == "macros":
        rows = [{"macro": head, "meaning": doc} for head, (_, doc) in macros.MACROS.items()]
        meanings(rows, "macros", "macros")
        return
    view = next(view for view in views.VIEWS if view.name == chosen)
    spelt = ", ".join(f"`{view.name}_{resolution}`" for resolution in RESOLUTIONS_NS) if view.resolutions else f"`{view.name}`"
    st.markdown(f"{spelt}: {view.doc}")
    rows = [{"column": column.name, "unit": column.unit, "meaning": column.doc} for column in view.columns]
    meanings(rows, "columns", f"columns of {view.name}", height=560)
