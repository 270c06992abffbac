"""A folder of recordings of several kinds that were made of one fabric at one time, told in order of time.

The file ``recordings.toml`` in it says what is there::

    version = 1

    [devices]                       # what a recording calls a device -> its name
    "172.16.0.1" = "leaf-00-0"

    [[recording]]
    path = "hft/leaf-00-0.ipfix"    # relative to the folder
    kind = "hft"                    # the collector that reads it; left out: the one that recognises it
    line_rate_bps = 400000000000    # of its ports, where the file does not tell

Each file is read by its own collector. What they give is cut at whole seconds, and told second by second, within a second in the order
of the list. So no window closes because one file was fed before another, and rules are judged on seconds of which all is known. A
collector may give one family's rows of many seconds before the next family's: so much of each file is held back as ``HELD_BYTES`` has
room for, and what comes later than that is told late, but always at the same place.
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

INDEX = "recordings.toml"
INDEX_BYTES_MAX = 4 * 2**20
# A recording that is read is a file that is open.
RECORDINGS_MAX = 2048
# Of all files together, and of each at least.
HELD_BYTES, HELD_BYTES_MIN = 256 * 2**20, 8 * 2**20

_HINT = "write it as the documentation of replaying a folder shows"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a folder, the collector that reads it (``None``: whichever recognises it), and its ports' line rate if said."""

    path: Path
    kind: str | None
    line_rate_bps: int | None = None


class FolderRecording:
    """All recordings of a folder; ``read`` opens one of them."""

    def __init__(self, folder: Path, read: Callable[[Part], Recorded]) -> None:
        self._folder, self._read = folder, read
        self._parts, self._names = _index(folder)

    def batches(self) -> Iterator[Batch]:
        """Yield the rows of all, second by second; the last batch ends all devices.

        Raises ``InputError`` with the first problem of any of them, after everything good of all.
        """
        faults: list[InputError] = []
        devices: set[str] = set()
        streams = [self._seconds(number, part, faults) for number, part in enumerate(self._parts)]
        last: Batch | None = None
        for _, _, batch in heapq.merge(*streams, key=lambda piece: piece[:2]):
            devices.update(batch.frame["device"].drop_nulls().unique().to_list())
            if last is not None:
                yield last
            last = batch
        if last is not None:
            yield Batch(last.family, last.frame, tuple(sorted(devices)))
        if faults:
            raise faults[0]

    def _seconds(self, number: int, part: Part, faults: list[InputError]) -> Iterator[tuple[int, int, Batch]]:
        """Yield (second, number, rows) of one recording, seconds in order."""
        room = max(HELD_BYTES_MIN, HELD_BYTES // len(self._parts))
        held: dict[int, list[Batch]] = {}
        size = reached = 0

        def oldest() -> Iterator[tuple[int, int, Batch]]:
            nonlocal size, reached
            second = min(held)
            # What comes too late stays behind what came before it: the merge needs seconds that never go back.
            reached = max(reached, second)
            for batch in held.pop(second):
                size -= batch.frame.estimated_size()
                yield reached, number, batch

        try:
            for batch in self._read(part).batches():
                for second, rows in _cut(self._named(batch.frame)):
                    held.setdefault(second, []).append(Batch(batch.family, rows))
                    size += rows.estimated_size()
                while size > room and len(held) > 1:
                    yield from oldest()
        except InputError as error:
            faults.append(error)
        while held:
            yield from oldest()

    def _named(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col("device").replace(self._names)) if self._names else frame


def _cut(frame: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the rows of each second, seconds in order, rows in theirs."""
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
    """Return the recordings and the names. Raises ``InputError`` where the index is not as it should be."""
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
        raise InputError(str(index), f"says of {path!r} the line rate {rate!r}"[:200], "write bits per second, or leave it out")
    found = (folder / path).resolve()
    # A folder that somebody sent must not make others of this machine be read.
    if not found.is_relative_to(folder.resolve()):
        raise InputError(str(index), f"names {path!r}, which is outside the folder", "move the file into the folder")
    if not found.is_file():
        raise InputError(str(index), f"names {path!r}, which is not there", "take the folder from its source again")
    return Part(found, kind, rate)
