"""A folder of recordings of several kinds of one fabric at one time, replayed in time order.

The file ``recordings.toml`` in it lists them::

    version = 1

    [devices]                       # what a recording calls a device -> its name
    "172.16.0.1" = "leaf-00-0"

    [[recording]]
    path = "hft/leaf-00-0.ipfix"    # relative to the folder
    kind = "hft"                    # the collector that reads it; left out: the one that recognises it
    line_rate_bps = 400000000000    # of its ports, where the file does not give it

Each file is read by its own collector. Rows are cut at whole seconds and come second by second, within a second in the order of the
list. So no window closes because one file was read before another, and rules see complete seconds. A collector may give one family's
rows of many seconds before the next family's: rows wait within ``WAITING_BYTES``; later ones come late, but always at the same place.
"""

import heapq
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import InputError
from ..base import Batch, Recorded
from ..sampling.runs import closing

INDEX = "recordings.toml"
INDEX_BYTES_MAX = 4 * 2**20
# Each recording is an open file while it is read.
RECORDINGS_MAX = 2048
# Rows in memory: the limit for all files together, and the minimum for each.
WAITING_BYTES, WAITING_BYTES_MIN = 256 * 2**20, 8 * 2**20

_HINT = "write it as the documentation of replaying a folder shows"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a folder, the collector that reads it (``None``: whichever recognises it), and its ports' line rate if given."""

    path: Path
    kind: str | None
    line_rate_bps: int | None = None


class FolderRecording:
    """All recordings of a folder; ``read`` opens one of them."""

    def __init__(self, folder: Path, read: Callable[[Part], Recorded]) -> None:
        self._folder, self._read = folder, read
        self._parts, self._names = _index(folder)

    def batches(self) -> Iterator[Batch]:
        """Yield the rows of all files, second by second; the last batch ends all devices.

        Raises ``InputError`` with the first problem of any file, after the good rows of all files.
        """
        return closing(self._merged())

    def _merged(self) -> Iterator[Batch]:
        faults: list[InputError] = []
        streams = [self._seconds(number, part, faults) for number, part in enumerate(self._parts)]
        for _, _, batch in heapq.merge(*streams, key=lambda piece: piece[:2]):
            yield batch
        if faults:
            raise faults[0]

    def _seconds(self, number: int, part: Part, faults: list[InputError]) -> Iterator[tuple[int, int, Batch]]:
        """Yield (second, number, rows) of one recording, seconds in order."""
        room = max(WAITING_BYTES_MIN, WAITING_BYTES // len(self._parts))
        waiting: dict[int, list[Batch]] = {}
        size = reached = 0

        def oldest() -> Iterator[tuple[int, int, Batch]]:
            nonlocal size, reached
            second = min(waiting)
            # Late rows stay behind earlier ones: the merge needs seconds that never go back.
            reached = max(reached, second)
            for batch in waiting.pop(second):
                size -= batch.frame.estimated_size()
                yield reached, number, batch

        try:
            for batch in self._read(part).batches():
                for second, rows in _cut(self._named(batch.frame)):
                    waiting.setdefault(second, []).append(Batch(batch.family, rows))
                    size += rows.estimated_size()
                while size > room and len(waiting) > 1:
                    yield from oldest()
        except InputError as error:
            faults.append(error)
        while waiting:
            yield from oldest()

    def _named(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col("device").replace(self._names)) if self._names else frame


def _cut(frame: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the rows of each second, seconds in order, rows in the order they have."""
    if not frame.height:
        return
    seconds = frame["ts"] // NS_PER_S
    if seconds.n_unique() == 1:
        yield int(seconds[0]), frame
        return
    for (second,), rows in sorted(frame.with_columns(second=seconds).partition_by("second", as_dict=True, include_key=False).items()):
        yield int(second), rows


def is_folder(path: Path) -> bool:
    """Return whether a path is such a folder."""
    return (path / INDEX).is_file()


def _index(folder: Path) -> tuple[list[Part], dict[str, str]]:
    """Return the recordings and the names. Raises ``InputError`` where the index is invalid."""
    index = folder / INDEX
    try:
        with index.open("rb") as file:
            content = file.read(INDEX_BYTES_MAX + 1)
        table = tomllib.loads(content.decode()) if len(content) <= INDEX_BYTES_MAX else {}
    except OSError as error:
        raise InputError(str(index), f"cannot be read ({error.strerror})", "check its permissions") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(str(index), f"is not TOML: {error}", _HINT) from None
    if table.get("version") != 1:
        raise InputError(str(index), f"has version {table.get('version')!r}, this Weft reads 1", _HINT)
    listed, names = table.get("recording"), table.get("devices", {})
    if not isinstance(listed, list) or not listed or len(listed) > RECORDINGS_MAX:
        raise InputError(str(index), f"lists no recordings, or more than {RECORDINGS_MAX}", _HINT)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(str(index), "devices is no table of names", _HINT)
    return [_part(folder, index, entry) for entry in listed], names


def _part(folder: Path, index: Path, entry: Any) -> Part:
    path, kind = (entry.get("path"), entry.get("kind")) if isinstance(entry, dict) else (None, None)
    if not isinstance(path, str) or not (kind is None or isinstance(kind, str)):
        raise InputError(str(index), f"has an entry that names no file: {entry!r}"[:200], _HINT)
    rate = entry.get("line_rate_bps")
    if not (rate is None or (isinstance(rate, int) and 0 < rate < 2**63)):
        raise InputError(str(index), f"gives {path!r} the line rate {rate!r}"[:200], "write bits per second, or leave it out")
    found = (folder / path).resolve()
    # An untrusted folder must not lead to other files of this machine.
    if not found.is_relative_to(folder.resolve()):
        raise InputError(str(index), f"names {path!r}, which is outside the folder", "move the file into the folder")
    if not found.is_file():
        raise InputError(str(index), f"names {path!r}, which is not there", "take the folder from its source again")
    return Part(found, kind, rate)
