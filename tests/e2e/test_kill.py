"""Services that are killed: the tables equal those of an undisturbed run."""

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

SEED = 1914
ROLES = ("feed", "process", "analyze")

# A supervisor gives up on a service that fails five times in ten seconds by its own clock; the test stays below.
DEATHS_MAX, DEATHS_SPAN_S = 4, 12.0


def _role(process: psutil.Process) -> str | None:
    """Return which service of a replay a process is, ``None`` for one that has ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return "feed" if "--feed-only" in words else next((role for role in ROLES if role in words), None)


def _kill_some(replay: "subprocess.Popen[str]", count: int, pause_s: tuple[float, float]) -> dict[str, int]:
    """Kill ``count`` services of a replay at random moments; return how many of each."""
    dice = random.Random(SEED)
    killed: dict[str, list[float]] = {role: [] for role in ROLES}
    while sum(map(len, killed.values())) < count:
        time.sleep(dice.uniform(*pause_s))
        role = dice.choice(ROLES)
        now = time.monotonic()
        assert replay.poll() is None, f"the replay ended before {count} kills: {replay.communicate()}"
        if sum(now - at < DEATHS_SPAN_S for at in killed[role]) >= DEATHS_MAX:
            continue
        for child in psutil.Process(replay.pid).children():
            if _role(child) == role:
                child.kill()
                killed[role].append(now)
                break
    return {role: len(deaths) for role, deaths in killed.items()}


def _disturb(weft: Any, recording: Any, data: Path, count: int, speed: str, pause_s: tuple[float, float], **options: Any) -> None:
    replay = weft.start("replay", recording.path, *recording.arguments, "--data", data, "--speed", speed, "--format", "json", **options)
    began = time.monotonic()
    killed = _kill_some(replay, count, pause_s)
    print(f"seed {SEED}: {killed}, the last {time.monotonic() - began:.0f} s after the start")
    out, err = replay.communicate(timeout=150)
    print(f"ended {time.monotonic() - began:.0f} s after the start")
    assert replay.returncode == 0, err
    restarts = json.loads(out)["restarts"]
    assert {name.removesuffix("-0"): number for name, number in restarts.items()} == {role: n for role, n in killed.items() if n}
    assert min(killed.values()) > 0


def test_thirty_kills_change_nothing(
    weft: Any, recording: Any, undisturbed: Path, same_tables: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """Thirty kills of feeder, process and analyze at random moments of a replay leave the undisturbed run's tables, row for row."""
    _disturb(weft, recording, tmp_path, 30, "1.05x", (0.1, 0.8))
    same_tables(undisturbed, tmp_path)


@pytest.mark.timeout(300)
def test_kills_on_kafka_change_nothing(
    weft: Any, recording: Any, undisturbed: Path, clean_kafka: str, same_tables: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """The same on Kafka with six kills."""
    environment = {"WEFT_BUS__KIND": "kafka", "WEFT_BUS__SERVERS": clean_kafka}
    _disturb(weft, recording, tmp_path, 6, "4x", (0.5, 2.0), environment=environment)
    same_tables(undisturbed, tmp_path)
