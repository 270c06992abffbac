"""The docs match the code: generated pages are current, and no command, setting or collector is missing."""

import re
import runpy
from pathlib import Path

import pytest

from weft import cli
from weft.collectors import COLLECTORS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "dashboards" / "docs"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine get into the defaults."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in __import__("os").environ if name.startswith("WEFT_")]:
        monkeypatch.delenv(name)


def test_generated_pages_are_fresh() -> None:
    """The generated pages equal the output of `make docs`."""
    generated = runpy.run_path(str(ROOT / "tests" / "reference.py"))["pages"]()
    stale = [name for name, text in generated.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    assert stale == [], "run 'make docs'"


def test_every_collector_has_a_section() -> None:
    """Every collector is documented."""
    sections = re.findall(r"^## (\S+)$", (DOCS / "20-collectors.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(COLLECTORS)


def test_the_readme_names_only_commands_that_exist() -> None:
    """Every `weft <command>` in the README and the docs exists."""
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *DOCS.glob("*.md")])
    named = set(re.findall(r"`(?:\.venv/bin/)?weft ([a-z]+)", text))
    assert named <= set(cli.COMMANDS), named - set(cli.COMMANDS)


def test_links_lead_somewhere() -> None:
    """Relative links of the README and the docs point at files of the project."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
