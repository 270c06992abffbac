"""Fixtures of the project tests: the tree's own files, and every Python source of the product, parsed once."""

import ast
import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("analytics", "collectors", "commands", "dashboards", "lab", "pipeline")
# Folders to skip in a tree without git.
NOT_OURS = {
    ".git",
    ".venv",
    "build",
    "dist",
    "weft-data",
    "weft-demo",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    ".cache",
}


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module


def _listed() -> list[Path]:
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        command = [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        found += [Path(folder, name) for name in names]
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the tree."""
    return ROOT


@pytest.fixture(scope="session")
def pyproject() -> dict:
    """Return the parsed project file."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def tree_files() -> list[str]:
    """Return every file that belongs to the project, as a path from the root."""
    return sorted(path.relative_to(ROOT).as_posix() for path in _listed() if ".egg-info" not in path.as_posix())


@pytest.fixture(scope="session")
def python_files(tree_files: list[str]) -> list[Source]:
    """Return every Python file, the tests' too."""
    texts = {name: (ROOT / name).read_text() for name in tree_files if name.endswith(".py")}
    return [Source(name, text, ast.parse(text, name)) for name, text in texts.items()]


@pytest.fixture(scope="session")
def product_files(python_files: list[Source]) -> list[Source]:
    """Return the Python files that are installed."""
    return [source for source in python_files if source.path.split("/")[0] in ROOMS or "/" not in source.path]
