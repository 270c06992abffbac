"""The supervisor with real children: restarted when they die, given up when they keep dying, stopped when it dies."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft.pipeline.clock import ManualClock
from weft.pipeline.errors import ServiceError
from weft.pipeline.supervise import DEATHS_MAX, DEATHS_SPAN_S, Child, Supervisor

LIMIT_S = 60.0


class Rig:
    """A supervisor of children whose processes can be awaited, with a manual clock."""

    def __init__(self, folder: Path, *children: Child) -> None:
        self.clock = ManualClock()
        self.supervisor = Supervisor([Child(c.name, (*c.arguments, "--data", str(folder)), c.once) for c in children], self.clock)
        self.supervisor.start()

    def kill(self, name: str) -> None:
        pid = self.supervisor.pids()[name]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended(pid)


def state(pid: int) -> str:
    """Return the kernel's state of a process, Z for one that has ended and X for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def ended(pid: int) -> None:
    """Wait until a child has ended, and leave the reaping to its parent; its first thread may end earlier."""

    def waitable() -> bool:
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    until(waitable)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Create rigs, and stop their children after the test."""
    opened: list[Rig] = []

    def open_one(*children: Child) -> Rig:
        opened.append(Rig(tmp_path, *children))
        return opened[-1]

    yield open_one
    for one in opened:
        for name in list(one.supervisor.pids()):
            one.kill(name)
        one.supervisor.stop()


SERVICE = Child("process", ("process",))


def test_a_child_that_dies_is_started_again(rig: Callable[..., Rig]) -> None:
    """A killed service is replaced by a new process, and the restart is counted; the others keep running."""
    one = rig(SERVICE, Child("other", ("process", "--member", "process-1")))
    before = one.supervisor.pids()
    one.kill("process")
    one.supervisor.step(0)
    after = one.supervisor.pids()
    assert after["process"] != before["process"]
    assert after["other"] == before["other"]
    assert one.supervisor.restarts == {"process": 1}


def test_a_child_that_keeps_dying_is_given_up(rig: Callable[..., Rig]) -> None:
    """Five deaths within ten seconds raise an error with name and number."""
    one = rig(SERVICE)
    for _ in range(DEATHS_MAX - 1):
        one.kill("process")
        one.supervisor.step(0)
    one.kill("process")
    with pytest.raises(ServiceError, match=f"process died {DEATHS_MAX} times"):
        one.supervisor.step(0)


def test_deaths_long_ago_are_forgiven(rig: Callable[..., Rig]) -> None:
    """A service that dies rarely is always restarted."""
    one = rig(SERVICE)
    for _ in range(DEATHS_MAX + 1):
        one.kill("process")
        one.supervisor.step(0)
        one.clock.advance(DEATHS_SPAN_S)
    assert one.supervisor.restarts["process"] == DEATHS_MAX + 1


def test_an_error_of_its_own_ends_it_with_its_words(rig: Callable[..., Rig], tmp_path: Path) -> None:
    """A service with a user error is not restarted: its error becomes the supervisor's."""
    file = tmp_path / "weft.toml"
    file.write_text("[bus]\nknid = 'embedded'\n")
    one = rig(Child("process", ("process", "--config", str(file))))
    ended(one.supervisor.pids()["process"])
    with pytest.raises(ServiceError, match=r"weft\.toml:2: unknown key 'bus\.knid'; did you mean 'kind'"):
        one.supervisor.step(0)


def test_a_child_that_ends_by_itself_has_finished(rig: Callable[..., Rig]) -> None:
    """A ``once`` child that ends well is not restarted, and counts as finished."""
    one = rig(Child("check", ("check",), once=True))
    assert not one.supervisor.finished("check")
    ended(one.supervisor.pids()["check"])
    one.supervisor.step(0)
    assert one.supervisor.finished("check")
    assert not one.supervisor.restarts


def test_stopping_ends_the_named_ones_and_then_all(rig: Callable[..., Rig]) -> None:
    """``stop`` stops children in the order of their start, and is idempotent."""
    one = rig(SERVICE, Child("other", ("process", "--member", "process-1")))
    pids = one.supervisor.pids()
    one.supervisor.stop("process")
    assert state(pids["process"]) == "X"
    assert state(pids["other"]) not in "ZX"
    one.supervisor.stop()
    one.supervisor.stop()
    assert state(pids["other"]) == "X"
    assert one.supervisor.pids() == {}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the Linux way of following a parent")
def test_children_end_with_a_supervisor_that_is_killed(children: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """When the supervisor is killed, its children stop by themselves."""
    program = """
import sys, time
from weft.pipeline.clock import SystemClock
from weft.pipeline.supervise import Child, Supervisor
supervisor = Supervisor([Child("process", ("process", "--data", sys.argv[1]))], SystemClock())
supervisor.start()
print(supervisor.pids()["process"], flush=True)
while True:
    supervisor.step()
"""
    parent = children(program, str(tmp_path))
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # The child runs once its log exists; a child killed with its parent before that ends, too.
    until(lambda: (tmp_path / "bus").exists() or state(pid) in "ZX")
    parent.kill()
    until(lambda: state(pid) in "ZX")
