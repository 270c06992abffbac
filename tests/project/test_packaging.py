"""The installed package is complete and contains nothing else."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from weft import __version__

ROOMS = ("analytics/", "collectors/", "commands/", "dashboards/", "lab/", "pipeline/")


@pytest.fixture(scope="module")
def built(root, tree_files, tmp_path_factory) -> Path:
    """Build wheel and sdist from a copy of the tree, with no network and nothing but setuptools."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tree_files:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    # Files that a working tree collects must not be packaged.
    (tree / "weft-data").mkdir()
    (tree / "weft-data" / "stray.md").write_text("not part of the product")
    for kind in ("wheel", "sdist"):
        code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        run = subprocess.run([sys.executable, "-c", code, str(out)], cwd=tree, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    """Open the wheel."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        yield archive


def product(tree_files: list[str]) -> list[str]:
    """Return the files that have to be installed."""
    return [name for name in tree_files if name.startswith(ROOMS) or ("/" not in name and name.endswith(".py"))]


def test_the_wheel_holds_every_file_of_the_product(wheel, tree_files):
    """Every source and every data file of the four folders is in the wheel, and only they are."""
    inside = {name.removeprefix("weft/") for name in wheel.namelist() if name.startswith("weft/")}
    assert inside == set(product(tree_files))


def test_the_wheel_says_who_it_is(wheel):
    """The wheel carries version, licence and the command."""
    info = f"weft-{__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert re.search(r"^License-Expression: Apache-2\.0$", metadata, re.M)
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "weft = weft.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in wheel.namelist()} == {"weft", info}


def test_the_sdist_builds_the_same_wheel(built, wheel, tmp_path):
    """The source archive alone builds a wheel with the same files."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        # Python 3.11.0 to 3.11.3 have no filters yet, 3.12 warns without one.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    tree = next(tmp_path.glob("weft-*"))
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tree, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())


def test_the_installed_wheel_works_without_the_tree(wheel, tmp_path):
    """All modules of an unpacked wheel import, and its command runs, outside of the source tree."""
    site = tmp_path / "site"
    wheel.extractall(site)
    code = (
        "import importlib, pkgutil, sys; sys.path.insert(0, sys.argv[1]); import weft; from weft.cli import main\n"
        "assert weft.__file__.startswith(sys.argv[1]), weft.__file__\n"
        "names = [m.name for m in pkgutil.walk_packages(weft.__path__, 'weft.')]\n"
        "[importlib.import_module(n) for n in names if n not in ('weft.dashboards.app.main', 'weft.__main__')]\n"
        "assert len(names) > 20, names\n"
        "sys.argv = ['weft', '--help']; main()\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(site)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "usage" in run.stdout.lower()
