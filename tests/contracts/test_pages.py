"""The contract of every dashboard page: it renders on any store and any URL, is documented, and imports no other page."""

import ast
import re
from argparse import Namespace
from pathlib import Path

import pytest

from weft import dashboards
from weft.commands import settings
from weft.dashboards.pages import PAGES

FOLDER = Path(dashboards.__file__).parent
DOCS = "\n".join(path.read_text("utf-8") for path in (FOLDER / "docs").glob("*.md"))
SECTION = re.compile(r"`(\[\[?[a-z_.]+\]\]?)`")
CHANGES = re.compile(r"\b(CREATE|DROP|ALTER|INSERT|UPDATE|DELETE|ATTACH|COPY|PRAGMA|SET)\s", re.ASCII)
HOSTILE = "'; DROP TABLE bursts; -- <script>alert(1)</script> ![x](http://a.b/c) \x00 %00 \u202e" + "9" * 40

pytestmark = pytest.mark.parametrize("name", PAGES)


def sources(name: str) -> dict[Path, ast.Module]:
    """Return the modules of a page's folder."""
    return {path: ast.parse(path.read_text("utf-8")) for path in (FOLDER / "pages" / name).glob("*.py")}


def texts(name: str) -> list[str]:
    """Return the strings in a page's modules."""
    nodes = (node for module in sources(name).values() for node in ast.walk(module))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def controls(name: str) -> list[str]:
    """Return the names in the URL of a page's own controls, and of those that all pages share."""
    calls = [node for module in sources(name).values() for node in ast.walk(module) if isinstance(node, ast.Call)]
    named = [{keyword.arg: keyword.value for keyword in call.keywords} for call in calls]
    own = [values["key"].value for values in named if "bind" in values and isinstance(values["key"], ast.Constant)]
    return [*own, "device", "port", "at", "range", "until", "pause"]


def test_it_declares_what_the_app_reads(name):
    """A page has a title of its own, an icon, a render function, and declares whether it reads a store and refreshes."""
    page = PAGES[name]
    assert [other.TITLE for other in PAGES.values()].count(page.TITLE) == 1
    assert page.ICON.startswith(":material/") and callable(page.render)
    assert isinstance(page.STORED, bool) and isinstance(page.LIVE, bool)


def test_the_docs_mention_it(name):
    """The docs describe each page under its title."""
    assert re.search(rf"^## {PAGES[name].TITLE}$", DOCS, re.M)


@pytest.mark.parametrize("store", ["empty", "seed"])
def test_it_renders(name, store, open_page, request):
    """On an empty and on a full store a page shows its title, no exception and no failed query."""
    made = request.getfixturevalue(store)
    page = open_page(getattr(made, "data", made), name)
    assert not page.exception and not page.error and not page.warning
    assert [header.value for header in page.header] == [PAGES[name].TITLE]


@pytest.mark.parametrize("value", [HOSTILE, "", "0", "-1", "None"])
def test_hostile_parameters_break_nothing(name, value, seed, open_page):
    """A page renders with any URL, and no query fails."""
    page = open_page(seed.data, name, **dict.fromkeys(controls(name), value))
    assert not page.exception and not page.error
    assert all("is not a time" in warning.value for warning in page.warning)


def test_state_survives_the_url(name, seed, open_page):
    """Opened with the URL that it wrote, a page shows the same text and writes the same URL."""
    first = open_page(seed.data, name, range="1h", pause="true")
    again = open_page(seed.data, name, **{key: str(value) for key, value in first.query_params.items()})
    assert dict(again.query_params) == dict(first.query_params)
    assert [metric.value for metric in again.metric] == [metric.value for metric in first.metric]
    assert [element.value for element in again.selectbox] == [element.value for element in first.selectbox]


def test_it_imports_no_other_page(name):
    """A page's folder imports nothing from another page's folder."""
    for path, module in sources(name).items():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                assert node.level != 2, f"{path.name}: from ..{node.module}"
                assert not (node.module or "").startswith(("pages", "weft.dashboards.pages")), path.name


def test_its_queries_only_read(name):
    """No string of a page is SQL that changes a store, and none names a file of one."""
    for text in texts(name):
        assert not CHANGES.search(text), text
        assert not re.search(r"\.duckdb|\.parquet['\"/]|\bbase\.", text), text


def test_its_hints_name_sections_that_exist(name, tmp_path):
    """Every section of weft.toml that a page names is accepted by the configuration loader."""
    for section in SECTION.findall(" ".join(texts(name))):
        (tmp_path / "weft.toml").write_text(f"{section}\n")
        settings.everything(Namespace(config=tmp_path / "weft.toml"))
