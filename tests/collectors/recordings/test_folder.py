"""A folder of recordings is replayed in time order, complete, and always the same."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from weft.collectors.base import Batch, Options
from weft.collectors.recordings.recording import Recorder
from weft.collectors.replay import read
from weft.pipeline.clock import NS_PER_S, ManualClock
from weft.pipeline.errors import InputError
from weft.pipeline.tables.families import FAMILIES

T0 = 1_700_000_000 * NS_PER_S


def rows(family: str, device: str, seconds: Iterator[float] | list[float]) -> pl.DataFrame:
    """Return empty readings of a device at these seconds."""
    times = [T0 + round(second * NS_PER_S) for second in seconds]
    frame = pl.DataFrame({"ts": times, "recv_ts": times, "source": "t", "device": device, "epoch": 0})
    missing = [pl.lit("" if dtype == pl.String else None, dtype).alias(name) for name, dtype in FAMILIES[family].polars.items()]
    return frame.with_columns(one for one in missing if one.meta.output_name() not in frame.columns).select(list(FAMILIES[family].polars))


def folder(path: Path, index: str, **files: list[tuple[str, pl.DataFrame]]) -> Path:
    """Write recordings and their index."""
    path.mkdir()
    for name, batches in files.items():
        recorder = Recorder(path / f"{name}.weft", ManualClock())
        for family, frame in batches:
            recorder.append(Batch(family, frame))
        recorder.close()
    (path / "recordings.toml").write_text(index)
    return path


def both(more: str = "") -> str:
    return 'version = 1\n[[recording]]\npath = "a.weft"\n[[recording]]\npath = "b.weft"\nkind = "recording"\n' + more


def rows_of(path: Path) -> list[tuple[str, str, float]]:
    """Return (family, device, second) of every row, in order."""
    frames = [(batch.family, batch.frame) for batch in read(path, None, Options())]
    return [(family, row["device"], (row["ts"] - T0) / NS_PER_S) for family, frame in frames for row in frame.iter_rows(named=True)]


def test_files_come_side_by_side(tmp_path):
    """Rows come second by second, files in the order of the index, even where a file has one family's rows before another's."""
    a = [("port", rows("port", "x", [0, 0.5, 1, 2.5])), ("queue", rows("queue", "x", [0.25, 2]))]
    path = folder(tmp_path / "f", both(), a=a, b=[("port", rows("port", "y", [0.75, 1.25])), ("port", rows("port", "y", [3]))])
    assert rows_of(path) == [
        *(("port", "x", 0.0), ("port", "x", 0.5), ("queue", "x", 0.25), ("port", "y", 0.75)),
        *(("port", "x", 1.0), ("port", "y", 1.25)),
        *(("port", "x", 2.5), ("queue", "x", 2.0)),
        ("port", "y", 3.0),
    ]
    last = list(read(path, None, Options()))[-1]
    assert last.ended == ("x", "y")


def test_devices_get_the_names_of_the_index(tmp_path):
    """Device names are replaced by those of the index, in all families."""
    named = both('[devices]\n"10.0.0.1" = "leaf-1"\n')
    path = folder(tmp_path / "f", named, a=[("port", rows("port", "10.0.0.1", [0]))], b=[("queue", rows("queue", "10.0.0.2", [0]))])
    assert rows_of(path) == [("port", "leaf-1", 0.0), ("queue", "10.0.0.2", 0.0)]


def test_a_broken_file_does_not_take_the_others_with_it(tmp_path):
    """All good rows of all files come first, then the error names the broken file."""
    path = folder(tmp_path / "f", both(), a=[("port", rows("port", "x", [0, 1]))], b=[("port", rows("port", "y", [0, 1]))])
    file = path / "a.weft"
    file.write_bytes(file.read_bytes()[:-7])
    got = []
    with pytest.raises(InputError, match=r"a\.weft"):
        got.extend(read(path, None, Options()))
    assert [batch.frame["device"].to_list() for batch in got] == [["y"], ["y"]]


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("version = 2", "version 2"),
        ("version = 1", "lists no recordings"),
        ("version = [", "not TOML"),
        ('version = 1\n[[recording]]\npath = "../x.weft"', "outside"),
        ('version = 1\n[[recording]]\npath = "nothing.weft"', "not there"),
        ("version = 1\n[[recording]]\npath = 7", "names no file"),
        ('version = 1\n[[recording]]\npath = "a.weft"\nline_rate_bps = "fast"', "line rate 'fast'"),
        ('version = 1\ndevices = 3\n[[recording]]\npath = "a.weft"', "no table of names"),
    ],
)
def test_an_index_that_is_wrong_is_told(tmp_path, index, problem):
    """Each mistake in the index is one sentence, and nothing outside the folder is read."""
    path = folder(tmp_path / "f", index, a=[("port", rows("port", "x", [0]))])
    with pytest.raises(InputError, match=problem):
        list(read(path, None, Options()))
