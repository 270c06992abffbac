"""The dashboard in a real browser, on a store that the real pipeline made: every page and every click that opens another."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from weft.dashboards.pages import PAGES

playwright = (
    pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright") if os.environ.get("CI") != "true" else None
)
if playwright is None:
    import playwright.sync_api as playwright

LIMIT_MS = 60_000
SETTLED_S = 1.2
RERUN_BYTES_MAX = 2 * 1024**2
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
]
PICTURED = (
    "overview-light",
    "overview-dark",
    "bursts-light",
    "congestion-light",
    "latency-light",
    "pipeline-light",
    "sql-light",
    "fabric-light",
    "fabric-dark",
)
PICTURES = Path(__file__).parents[2] / "dashboards" / "docs" / "images"

# Streamlit requests these beside every page, to find the path at which it is mounted.
PROBES = re.compile(r"/_stcore/(health|host-config)$")


class Window:
    """One browser window on the dashboard, with all errors in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.received = 0
        self.problems: list[str] = []
        self.strangers: list[str] = []
        page.set_default_timeout(LIMIT_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._console)
        page.on("response", self._response)
        page.on("request", self._request)
        page.on("websocket", lambda socket: socket.on("framereceived", self._frame))

    def open(self, path: str) -> None:
        """Go to a page and wait until it is drawn."""
        self.page.goto(f"{self.address}/{path}")
        self.settle()

    def settle(self) -> None:
        """Wait until no script runs and no request is pending."""
        self.page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
        self.page.wait_for_function("document.querySelectorAll('[data-testid=stSkeleton], [data-stale=true]').length === 0")
        time.sleep(SETTLED_S)

    def query(self) -> dict[str, str]:
        """Return the state in the URL."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.page.url).query).items()}

    def path(self) -> str:
        return urlsplit(self.page.url).path.strip("/")

    def assert_sound(self) -> None:
        """Assert no exception, no error in the console, no request to another host, and no empty chart."""
        assert self.page.locator('[data-testid="stException"]').count() == 0
        assert self.problems == []
        assert self.strangers == []
        assert self.blank_charts() == []

    def blank_charts(self) -> list[str]:
        """Return the charts in which no mark is drawn."""
        charts = self.page.locator('[data-testid="stVegaLiteChart"]')
        blank = []
        for k in range(charts.count()):
            chart = charts.nth(k)
            chart.scroll_into_view_if_needed()
            if not chart.evaluate(_MARKS):
                blank.append(str(chart.get_attribute("aria-label") or k))
        return blank

    def _console(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def _response(self, response: Any) -> None:
        if response.status >= 400 and not PROBES.search(urlsplit(response.url).path):
            self.problems.append(f"{response.status} {response.url}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, self.address.replace("http", "ws"), "data:", "blob:")):
            self.strangers.append(request.url)

    def _frame(self, frame: Any) -> None:
        self.received += len(frame)


# How many of a chart's marks have a shape with an extent; axes, legends and words are not marks.
_MARKS = """
element => [...element.querySelectorAll('svg .role-mark path')].filter(path => {
  const box = path.getBoundingClientRect();
  return path.getAttribute('d') && (box.width > 0.2 || box.height > 0.2);
}).length
"""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Return a headless browser."""
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(seed, serve) -> str:
    """Return the address of a dashboard process on the full store."""
    return serve(seed.data)[0]


@pytest.fixture(scope="module")
def pictures(seed, pictured, serve, address) -> str:
    """Return the address of the dashboard for screenshots."""
    return address if pictured == seed.data else serve(pictured)[0]


@pytest.fixture(scope="module")
def fabric_address(slow_fabric, serve) -> str:
    """Return the address of a dashboard on the fabric with a slow adapter."""
    return serve(slow_fabric.data)[0]


@pytest.fixture
def window(browser: Any, address: str) -> Iterator[Callable[..., Window]]:
    """Return a function that opens a window; far from UTC, so that a time in the browser's zone would show."""
    contexts = []

    def opened(scheme: str = "light", at: str = address) -> Window:
        context = browser.new_context(viewport={"width": 1500, "height": 1100}, color_scheme=scheme, timezone_id="America/New_York")
        contexts.append(context)
        return Window(context.new_page(), at)

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [name for name in PAGES if name != "fabric"])
def test_every_page_is_drawn(name, scheme, window, pictures, tmp_path):
    """Each page in each theme has its charts drawn, no error anywhere, and costs less than 2 MB."""
    view = window(scheme, pictures)
    first = name == next(iter(PAGES))
    view.open("" if first else name)
    assert view.received < RERUN_BYTES_MAX
    if name == "sql":
        view.page.get_by_role("button", name="Run").click()
        view.page.get_by_text(re.compile(r"\d rows")).wait_for()
    assert view.page.get_by_role("heading", name=PAGES[name].TITLE, exact=True).count() == 1
    background = view.page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    shade = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert shade > 600 if scheme == "light" else shade < 150
    _show_all(view)
    view.assert_sound()
    _take_picture(view, f"{name}-{scheme}", tmp_path)


def test_a_link_of_the_docs_leads_to_its_page(window):
    """A link from one page of the docs to another opens that one, and so does its address in a new window."""
    view = window()
    view.open("docs")
    with view.page.context.expect_page() as opened:
        view.page.get_by_role("link", name="virtual fabric").click()
    opened.value.get_by_role("heading", name="The virtual fabric", exact=True).wait_for()
    again = window()
    again.open(f"docs?page={quote('Capacity of one machine')}")
    again.page.get_by_role("heading", name="Capacity of one machine", exact=True).wait_for()


def _show_all(view: Window) -> None:
    """Make the window as high as the page."""
    height = view.page.evaluate(
        "Math.max(...[...document.querySelectorAll('[data-testid=stMainBlockContainer]')].map(e => e.scrollHeight))"
    )
    view.page.set_viewport_size({"width": 1500, "height": min(4000, int(height) + 60)})
    view.settle()


def _take_picture(view: Window, name: str, folder: Path) -> None:
    """Save a screenshot, also for the docs if requested."""
    target = (PICTURES if os.environ.get("WEFT_PICTURES") and name in PICTURED else folder) / f"{name}.png"
    view.page.screenshot(path=str(target))
    assert target.stat().st_size > 10_000


def test_from_the_worst_port_to_its_bursts(window):
    """A row of the worst ports leads to that port; a row of its bursts selects the burst shown in detail; a reload keeps both."""
    view = window()
    view.open("?range=all")
    _tick(view, "Worst ports", 1)
    view.page.wait_for_url("**/bursts?**")
    view.settle()
    assert view.query()["direction"] == "rx"
    assert view.query()["port"].startswith("host-")
    _tick(view, "Largest bursts", 2)
    view.page.wait_for_function("location.search.includes('at=')")
    view.page.get_by_text("1 s", exact=True).click()
    view.page.wait_for_function("location.search.includes('zoom=')")
    view.settle()
    query, title = view.query(), view.page.get_by_text(re.compile("^Microscope: ")).inner_text()
    assert title.startswith("Microscope: 1 s from 2022-01-01 00:00:0")
    view.page.reload()
    view.settle()
    assert view.query() == query
    assert view.page.get_by_text(re.compile("^Microscope: ")).inner_text() == title
    view.page.get_by_role("button", name="Back to the largest burst").click()
    view.page.wait_for_function("!location.search.includes('at=')")
    view.assert_sound()


# The colour, by name, of every place of the fabric's picture that has one; and where a place is drawn.
_PLACES = """
element => Object.fromEntries([...element.querySelectorAll('svg .mark-rect.role-mark path')]
  .filter(path => path.getAttribute('aria-label')?.includes('place: '))
  .map(path => [path.getAttribute('aria-label').match(/place: ([^;]*)/)[1], path.getAttribute('fill')]))
"""


def _shade(colour: str) -> int:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) if colour.startswith("rgb") else sum(bytes.fromhex(colour[1:]))


@pytest.mark.parametrize(("scheme", "pressure"), [("light", "marked"), ("dark", "notified")])
def test_the_slow_adapter_stands_out(scheme, pressure, slow_fabric, fabric_address, window, tmp_path):
    """Among all hosts and rails, the slow adapter's place differs most from the background and is first in the list."""
    view = window(scheme, fabric_address)
    view.open(f"fabric?pressure={pressure}")
    assert view.received < RERUN_BYTES_MAX
    _show_all(view)
    view.assert_sound()
    chart = view.page.locator('[data-testid="stVegaLiteChart"]').first
    shades = {place: _shade(colour) for place, colour in chart.evaluate(_PLACES).items() if "rail" in place}
    host, port = slow_fabric.adapter
    assert len(shades) >= 34 * (8 if os.environ.get("WEFT_PICTURES") else 1)
    assert (min if scheme == "light" else max)(shades, key=shades.__getitem__) == f"{host} · rail {port[-1]}"
    _take_picture(view, f"fabric-{scheme}", tmp_path)


def test_from_the_fabric_to_the_port(slow_fabric, fabric_address, window):
    """The measure is in the URL and survives a reload; a click on the slow adapter's place leads to the queue that it pauses."""
    view = window(at=fabric_address)
    view.open("fabric?range=5m")
    view.page.get_by_text("marked", exact=True).click()
    view.page.wait_for_function("location.search.includes('pressure=marked')")
    view.settle()
    view.page.reload()
    view.settle()
    assert view.query() == {"range": "5m", "pressure": "marked"}
    host, port = slow_fabric.adapter
    place = view.page.locator(f'svg .mark-rect.role-mark path[aria-label*="place: {host} · rail {port[-1]};"]').first
    place.scroll_into_view_if_needed()
    place.click()
    view.page.wait_for_url("**/congestion?**")
    view.settle()
    assert view.query() == {"device": slow_fabric.leaf[0], "port": slow_fabric.leaf[1], "range": "5m"}
    view.assert_sound()


def _tick(view: Window, title: str, row: int) -> None:
    """Select a row of the table under a title."""
    card = view.page.locator('[data-testid="stVerticalBlock"]', has=view.page.get_by_text(re.compile(f"^{title}"))).last
    table = card.locator('[data-testid="stDataFrame"]').first
    table.scroll_into_view_if_needed()
    table.click(position={"x": 15, "y": 38 + 35 * row + 17})


def test_from_the_heat_map_to_the_moment(window):
    """A click on a cell of the heat map leads to that port at that time."""
    view = window()
    view.open("")
    chart = view.page.locator('[data-testid="stVegaLiteChart"]').first
    chart.scroll_into_view_if_needed()
    chart.locator("svg .mark-rect.role-mark path").nth(5).click()
    view.page.wait_for_url("**/bursts?**")
    view.settle()
    assert view.query()["at"].startswith("16409952")
    assert view.query()["device"].startswith("rack-")
    view.assert_sound()


def test_controls_go_into_the_url_and_come_back(window):
    """Range, pause and a filter are in the URL once chosen, follow from page to page, and survive a reload."""
    view = window()
    view.open("latency")
    view.page.get_by_text("1h", exact=True).click()
    view.page.wait_for_function("location.search.includes('range=1h')")
    view.page.get_by_text("Pause", exact=True).click()
    view.page.wait_for_function("location.search.includes('pause=true')")
    view.page.get_by_text("tail", exact=True).click()
    view.page.wait_for_function("location.search.includes('shape=tail')")
    view.settle()
    assert view.query() == {"range": "1h", "pause": "true", "shape": "tail"}
    view.page.reload()
    view.settle()
    assert view.query() == {"range": "1h", "pause": "true", "shape": "tail"}
    view.page.get_by_role("link", name="Pipeline").click()
    view.page.wait_for_function("location.pathname.endsWith('/pipeline') && location.search.includes('range=1h')")
    view.settle()
    view.assert_sound()


def test_every_figure_shows_its_query(window):
    """The query behind a chart can be opened and read beside it."""
    view = window()
    view.open("?pause=true")
    view.page.get_by_role("button", name="SQL").first.click()
    view.page.get_by_text("WITH worst AS").first.wait_for()
    view.assert_sound()


def test_the_console_answers(window):
    """The button runs a query, its number of rows and time are shown, and the rows can be downloaded as CSV."""
    view = window()
    view.open("sql?query=SELECT+device%2C+count(*)+AS+bursts+FROM+bursts+GROUP+BY+ALL+ORDER+BY+device")
    view.page.get_by_role("button", name="Run").click()
    view.page.get_by_text(re.compile(r"3 rows")).wait_for()
    with view.page.expect_download() as download:
        view.page.get_by_role("button", name="CSV", exact=True).click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "device,bursts"
    assert [line.split(",")[0] for line in lines[1:]] == ["rack-0", "rack-1", "rack-2"]
    view.assert_sound()


def test_a_live_page_refreshes_without_being_built_anew(window):
    """While a page refreshes, its charts keep their elements, so nothing flickers."""
    view = window()
    view.open("")
    chart = view.page.locator('[data-testid="stVegaLiteChart"] svg').first
    chart.evaluate("element => { element.dataset.mine = 'yes' }")
    before = view.received
    view.page.wait_for_timeout(5000)
    assert view.received > before
    assert chart.evaluate("element => element.dataset.mine") == "yes"
    view.assert_sound()


def test_an_empty_store_in_a_browser(empty, serve, window):
    """On a store without rows every page shows a hint and no error."""
    view = window(at=serve(empty)[0])
    for name in list(PAGES)[1:]:
        view.open(name)
        view.assert_sound()
