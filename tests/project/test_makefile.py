"""The first commands of a new user: clear help, and a clear message if something is missing."""

import os
import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here: install it to test the Makefile")

TARGETS = {"run", "test", "check", "bench", "clean", "lock", "help"}


def make(folder, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder, apart from any make that runs these tests."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key not in ("PYTHON", "ARGS")}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def alone(root, tmp_path):
    """Copy the Makefile and the files that its stamps depend on into a separate folder."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


def fake_python(folder, script: str) -> str:
    """Write a program in the place of a Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_make_alone_prints_every_target(alone, root):
    """`make` prints each target with what it does, and does nothing."""
    run = make(alone)
    assert run.returncode == 0, run.stderr
    assert set(re.findall(r"^  make (\w+) +\S", run.stdout, re.M)) >= TARGETS
    assert sorted(path.name for path in alone.iterdir()) == ["Makefile", "pyproject.toml", "requirements-dev.lock", "requirements.lock"]


def test_no_python_is_one_clear_line(alone):
    """Without a Python, make reports it with a hint."""
    run = make(alone, "install", "PYTHON=python-that-is-not-there")
    assert run.returncode != 0
    assert "error: no python-that-is-not-there found: install Python 3.11 or newer" in run.stderr
    assert not (alone / ".venv").exists()


def test_an_old_python_is_one_clear_line(alone):
    """A Python that is too old is reported with its version and a hint."""
    old = fake_python(alone, 'case "$1" in -V) echo "Python 3.9.2" ;; *) exit 1 ;; esac')
    run = make(alone, "install", f"PYTHON={old}")
    assert run.returncode != 0
    assert "is Python 3.9.2, Weft needs 3.11 or newer" in run.stderr


def test_a_python_without_venv_is_one_clear_line(alone):
    """Debian's Python without its venv package is reported with the package to install."""
    bare = fake_python(alone, 'case "$2" in *ensurepip*) exit 1 ;; *) exit 0 ;; esac')
    run = make(alone, "install", f"PYTHON={bare}")
    assert run.returncode != 0
    assert "apt install python3-venv" in run.stderr


def test_a_second_install_does_nothing(alone):
    """When nothing has changed, nothing is installed again; a newer lock is noticed."""
    stamps = alone / ".venv"
    stamps.mkdir()
    for name in (".made", ".installed", ".compiled", ".developed"):
        (stamps / name).touch()
    assert "Nothing to be done" in make(alone, "dev").stdout
    ahead = (stamps / ".developed").stat().st_mtime + 10
    os.utime(alone / "requirements.lock", (ahead, ahead))
    assert "installing Weft" in make(alone, "--dry-run", "dev").stdout
