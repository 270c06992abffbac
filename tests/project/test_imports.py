"""Every module that one of ours imports is there, also where it is imported only when a command runs."""

import ast
import importlib.util
from pathlib import Path

import weft

ROOT = Path(weft.__file__).parent
ROOMS = ("analytics", "collectors", "commands", "dashboards", "pipeline")


def imported(path: Path) -> set[str]:
    """Return the full names of the modules of this project that a file imports from."""
    package = ["weft", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "weft"}


def test_every_import_of_our_own_resolves():
    """A module that was moved leaves nobody behind who still looks for it."""
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    names = {(path.relative_to(ROOT), name) for path in files for name in imported(path)}
    assert len(names) > 500
    missing = [f"{path}: {name}" for path, name in sorted(names) if importlib.util.find_spec(name) is None]
    assert missing == []
