"""Kernels are compiled before the first start of a version and not again, in any cache folder."""

import sys
from pathlib import Path
from typing import Any

import pytest

from weft.commands import compile as subject
from weft.pipeline.clock import SystemClock
from weft.pipeline.supervise import SUPERVISOR


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep compiled kernels in a folder of the test, as a process started by a user does."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.delenv(SUPERVISOR, raising=False)
    subject._key.cache_clear()
    yield
    subject._key.cache_clear()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the commands that would be started, without running them."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subject.subprocess, "run", lambda command, **_: commands.append(command))
    return commands


def test_only_what_is_missing_is_compiled(started: list[list[str]], tmp_path: Path) -> None:
    """A start compiles all its parts in one child process; with stamps for all parts it starts none."""
    subject.compile_first(subject.PROCESS, subject.COLLECTORS)
    assert started == [[sys.executable, "-m", "weft.commands.compile", "pipeline.process", "collectors"]]
    (tmp_path / "kernels").mkdir()
    subject._stamp(subject.PROCESS).touch()
    subject.compile_first(subject.PROCESS)
    assert len(started) == 1
    subject.compile_first(*subject.PARTS)
    assert len(started) == 2


def test_a_supervised_service_leaves_it_to_its_supervisor(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a tree of services only the root compiles."""
    monkeypatch.setenv(SUPERVISOR, "1")
    subject.compile_first(*subject.PARTS)
    assert started == []


def test_another_processor_needs_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp is valid only for its kind of processor and its kernels."""
    here = subject._stamp(subject.LAB)
    subject._key.cache_clear()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert subject._stamp(subject.LAB) != here
    monkeypatch.delenv("NUMBA_CPU_NAME")
    subject._key.cache_clear()
    assert subject._stamp(subject.LAB) == here
    monkeypatch.setattr(subject, "_ROOMS", subject._ROOMS[:1])
    subject._key.cache_clear()
    assert subject._stamp(subject.LAB) != here


def test_the_folder_is_where_numba_keeps_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stamp is stored with the kernels: in the named folder, beside the package, or in the user's cache."""
    assert subject._folder() == tmp_path / "kernels"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert subject._folder() == subject._PACKAGE / "__pycache__"
    monkeypatch.setattr(subject.os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert subject._folder() == tmp_path / "xdg" / "numba"


def test_a_step_that_fails_leaves_no_stamp(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A failed compilation is reported with the reason, and tried again at the next start."""
    assert subject.main(["no_such_part"], SystemClock()) == 1
    shown = capsys.readouterr().err
    assert "kernels of no_such_part are compiled at their first use:" in shown and "No module named" in shown
    assert not subject._stamp("no_such_part").exists()
    assert subject.main([], SystemClock()) == 0


def test_older_kernels_go_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels of another version are removed before the first compilation of this one, and those of this one stay."""
    package: Any = tmp_path / "weft"
    (package / "lab" / "__pycache__").mkdir(parents=True)
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(subject, "_PACKAGE", package)
    monkeypatch.setattr(subject, "_ROOMS", [package / "lab"])
    monkeypatch.setattr(subject.os, "access", lambda *_: True)
    subject._key.cache_clear()
    kernel, stamp = package / "lab" / "__pycache__" / "a.nbi", package / "__pycache__" / "weft-lab-0.compiled"
    kernel.touch()
    stamp.parent.mkdir()
    stamp.touch()
    subject.main([], SystemClock())
    assert not kernel.exists() and not stamp.exists()
    kernel.touch()
    subject.main([], SystemClock())
    assert kernel.exists()


def test_older_kernels_in_a_shared_folder_go_too(tmp_path: Path) -> None:
    """In a cache folder shared with other programs, only Weft's kernels are removed."""
    ours, theirs = (tmp_path / "kernels" / folder / "a.nbi" for folder in ("sampling_0123", "other_0123"))
    for file in (ours, theirs):
        file.parent.mkdir(parents=True)
        file.touch()
    subject.main([], SystemClock())
    assert not ours.exists() and theirs.exists()
