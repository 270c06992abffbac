"""The script that Streamlit runs: navigation, the controls shared by all pages, and the periodic refresh.

Streamlit runs a script without a package, so only this file has absolute imports. The data folder comes from
``WEFT_DASH_DATA`` or from the argument after ``--``.
"""

import functools
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import streamlit as st

from weft.dashboards import parts
from weft.dashboards.data import Board
from weft.dashboards.pages import PAGES
from weft.dashboards.service import DATA_VARIABLE
from weft.dashboards.sql import RANGES_S
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import StoreError

ICON = Path(__file__).with_name("icon.svg")

DEFAULT_RANGE = "15m"

# The controls that all pages share, and the session key that carries them between two runs.
_SHARED = ("range", "until", "pause")
_CARRIED = "carried"

# Snapshots are published every two seconds.
REFRESH_S = 2.0

ABOUT = "**Weft** watches the back-end fabric of GPU clusters. Every chart shows its query; the docs are on the last page."


def main() -> None:
    """Run the app once."""
    st.set_page_config(page_title="Weft", page_icon=str(ICON), layout="wide", menu_items={"About": ABOUT})
    pages: dict[str, Any] = {}
    for name, module in PAGES.items():
        pages[name] = st.Page(
            functools.partial(show, name, module, pages),
            title=module.TITLE,
            icon=module.ICON,
            url_path=name,
            default=name == next(iter(PAGES)),
        )
    st.navigation(list(pages.values()), position="top").run()


def show(name: str, module: ModuleType, pages: dict[str, Any]) -> None:
    """Show one page: its controls once, its body at each refresh."""
    target = st.session_state.pop(parts.TARGET, None)
    if target:
        st.switch_page(pages[target[0]], query_params=target[1])
    paused, range_name, until_ns = controls(name, module)
    refresh = REFRESH_S if module.LIVE and not paused else None
    st.fragment(body, run_every=refresh, key=f"body_{name}")(module, range_name, until_ns)


def controls(name: str, module: ModuleType) -> tuple[bool, str, int | None]:
    """Show title, range, end and pause; return the chosen values.

    Their state is in the URL: read before the controls are drawn, written when one changes, carried from page to page.
    Streamlit binds the controls of a single page to the URL, but does not carry them.
    """
    _carry_over(name)
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", key="controls"):
        st.header(module.TITLE, width="content", anchor=False)
        if not module.LIVE:
            return True, DEFAULT_RANGE, None
        state, url = st.session_state, st.query_params
        state["range"] = url["range"] if url.get("range") in RANGES_S else DEFAULT_RANGE
        state["until"] = url.get("until", "")
        state["pause"] = url.get("pause") == "true"
        with st.container(horizontal=True, vertical_alignment="bottom", width="content"):
            change = {"key": "range", "on_change": _to_url, "args": ("range",), "help": "up to the newest data"}
            st.segmented_control("Range", list(RANGES_S), required=True, **change)
            change |= {"key": "until", "args": ("until",), "help": "such as 2026-01-31 12:00:05; empty = the newest data"}
            st.text_input("Until, UTC", placeholder="newest data", width=190, **change)
            change |= {"key": "pause", "args": ("pause",), "help": f"stop refreshing every {REFRESH_S:g} s"}
            st.toggle("Pause", **change)
    try:
        until_ns = parts.parse_utc(state["until"])
    except ValueError:
        st.warning(f"“{parts.plain(state['until'])}” is not a time; write it as 2026-01-31 12:00:05.", icon=":material/error:")
        until_ns = None
    return state["pause"], state["range"], until_ns


def _to_url(name: str) -> None:
    """Write a changed control into the URL, which has no defaults."""
    value = st.session_state[name]
    words = "true" if value is True else str(value or "")
    if words in ("", DEFAULT_RANGE):
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = words


def _carry_over(name: str) -> None:
    """Carry the shared controls over from the previous page, unless the URL has them."""
    page, values = st.session_state.get(_CARRIED, (name, {}))
    if page != name:
        for key, value in values.items():
            if key not in st.query_params:
                st.query_params[key] = value
    st.session_state[_CARRIED] = name, {key: st.query_params[key] for key in _SHARED if key in st.query_params}


def body(module: ModuleType, range_name: str, until_ns: int | None) -> None:
    """Render a page from the newest snapshot."""
    if not module.STORED:
        module.render(None)
        return
    data = sys.argv[1] if len(sys.argv) > 1 else os.environ.get(DATA_VARIABLE, "weft-data")
    try:
        board = Board(Path(data), SystemClock())
    except StoreError as error:
        st.info(f"Nothing to show yet: {error.problem}. To begin, {error.hint}.", icon=":material/hourglass_empty:")
        return
    try:
        module.render(parts.Visit(board, range_name, until_ns, st.context.theme.type == "dark"))
    except StoreError as error:
        st.warning(str(error), icon=":material/error:")
    finally:
        board.close()


main()
