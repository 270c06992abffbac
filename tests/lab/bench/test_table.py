"""The benchmark table runs the parts that are named and prints each measurement when it is there."""

import subprocess
import sys
import time

import pytest

from weft.lab.bench import table as bench_table
from weft.lab.bench.measure import Line, best_rate


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of three parts without measurements, in order."""
    done: list[str] = []

    def part(name: str):
        def measure(seconds: int):
            for number in (1, 2):
                done.append(f"{name} {number} of {seconds} s")
                yield Line(f"{name} {number}", "7 M/s", "0.5 of a copy", ">= 5 M/s")

        return measure

    monkeypatch.setattr(bench_table, "PARTS", {name: part(name) for name in ("one", "two", "three")})
    return done


def test_only_the_named_parts_run_in_the_order_of_the_table(ran: list[str]) -> None:
    """Names select parts in any order; without names all run."""
    lines = list(bench_table.table({"three", "one"}, 4))
    assert ran == ["one 1 of 4 s", "one 2 of 4 s", "three 1 of 4 s", "three 2 of 4 s"]
    assert [line[:46].strip() for line in lines] == ["what", "one 1", "one 2", "three 1", "three 2"]
    assert len(list(bench_table.table((), 1))) == 1 + 2 * 3


def test_a_line_comes_as_soon_as_it_is_measured(ran: list[str]) -> None:
    """Columns are aligned with their headings, and a line is printed before the next measurement."""
    lines = bench_table.table({"two"}, 1)
    head, first = next(lines), next(lines)
    assert ran == ["two 1 of 1 s"]
    assert first.index("0.5 of a copy") == head.index("beside") and first.index(">= 5 M/s") == head.index("goal")


def test_the_best_rate_is_that_of_the_fastest_run() -> None:
    """All runs happen, and a rate is units in the time of one of them."""
    pauses = [0.0, 0.2, 0.2]
    assert best_rate(lambda: time.sleep(pauses.pop()), 10, runs=3) > 10 / 0.2
    assert pauses == []


def test_the_decoder_of_gnmi_alone_reports_its_memory() -> None:
    """The process that decodes 20 s of messages prints its peak in bytes: more than an interpreter, less than a machine."""
    done = subprocess.run([sys.executable, "-m", "weft.lab.bench.gnmi"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 10e6 < int(done.stdout) < 4e9
