"""The docs in the product: pages of ``dashboards/docs``, in the order of their numbers."""

import re
from pathlib import Path
from urllib.parse import quote

import streamlit as st

from ...parts import Visit

TITLE = "Docs"
ICON = ":material/menu_book:"
STORED = False
LIVE = False

FOLDER = Path(__file__).parents[2] / "docs"

_PICTURE = re.compile(r"^!\[([^\]]*)\]\((images/[\w.-]+)\)\s*$", re.M)
_LINK = re.compile(r"\]\((\d\d-[\w-]+)\.md(#[\w-]*)?\)")


def render(visit: Visit | None) -> None:
    """Render the page."""
    pages = titles(FOLDER)
    if not pages:
        st.info(
            "The docs are not part of this installation. They are in the folder dashboards/docs of the sources.",
            icon=":material/menu_book:",
        )
        return
    left, right = st.columns([1, 4])
    with left:
        name = st.radio(
            "Pages", list(pages), format_func=lambda page: pages[page], key="page", bind="query-params", label_visibility="collapsed"
        )
    with right:
        show(FOLDER, name or next(iter(pages)))


def titles(folder: Path) -> dict[str, str]:
    """Return the name and the title of every page, in order."""
    found = {}
    for path in sorted(folder.glob("[0-9][0-9]-*.md")):
        first = path.read_text("utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip() or path.stem
    return found


def show(folder: Path, name: str) -> None:
    """Show one page with its pictures; links between pages stay in the dashboard."""
    text = (folder / f"{name}.md").read_text("utf-8")
    # The URL has the label of the list entry, a title.
    pages = titles(folder)
    text = _LINK.sub(lambda match: f"](/docs?page={quote(pages.get(match[1], match[1]))})", text)
    position = 0
    for match in _PICTURE.finditer(text):
        st.markdown(text[position : match.start()], width=900)
        picture = folder / match[2]
        if picture.is_file():
            st.image(str(picture), caption=match[1])
        position = match.end()
    st.markdown(text[position:], width=900)
