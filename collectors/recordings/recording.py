"""Files of ``weft record``, and Parquet or CSV files of counters from elsewhere.

A ``.weft`` file is records one after another, appended and never changed, so that a process killed in the middle loses
the torn last record only. A record is 16 bytes of head, little-endian: magic ``WEFT``, version (u16), length of the family's
name (u16), length of the payload (u32), CRC-32 of name and payload (u32); then the name and the payload, which is
what travels on the bus: one Arrow IPC stream of that family. A folder of such files is one recording, read in the
order of the files' names, which begin with the time at which each was opened.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...pipeline import codec
from ...pipeline.clock import Clock
from ...pipeline.errors import CodecError, InputError, ServiceError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, Collector, Options
from ..sampling.runs import closing
from .table import fits_a_family, read_table

MAGIC = b"WEFT"
VERSION = 1
SUFFIX = ".weft"

# A folder's file is closed and the next one begun beyond this.
FILE_BYTES_MAX = 1024**3
# A damaged or forged length must not make a reader allocate without limit; a writer splits larger batches.
RECORD_BYTES_MAX = 64 * 1024**2

_HEAD = struct.Struct("<4sHHII")
_TORN = "nothing to do if the recorder was killed: every record before it is used"


@dataclass(frozen=True)
class RecordingConfig:
    """No settings: there is no live side."""


class Recorder:
    """Appends batches to a new file, or to new files in a folder (any path without ``.weft``).

    A batch survives the end of this process once ``append`` returns, and that of the machine once ``close`` returns.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._file: BinaryIO | None = None
        self._bytes = 0

    def append(self, batch: Batch) -> None:
        """Write one batch. Raises ``ServiceError`` where that fails; the file then ends with the last whole record."""
        table = FAMILIES[batch.family]
        payload = codec.encode(batch.frame, table)
        if len(payload) > RECORD_BYTES_MAX and batch.frame.height > 1:
            half = batch.frame.height // 2
            self.append(Batch(batch.family, batch.frame[:half]))
            self.append(Batch(batch.family, batch.frame[half:]))
            return
        self._write(record(batch.family, payload))

    def close(self) -> None:
        """Flush to the disk and close. Idempotent."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is not None and self._bytes + len(data) > FILE_BYTES_MAX and self._path.suffix != SUFFIX:
            self.close()
        try:
            if self._file is None:
                self._file, self._bytes = self._open(), 0
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            self._bytes += len(data)
        except FileExistsError:
            raise ServiceError(f"recording {self._path} is there already", "record to another name") from None
        except OSError as error:
            if self._file is not None:
                # A part of this record may be written; remove it, or it would read as a torn tail.
                os.ftruncate(self._file.fileno(), self._bytes)
                os.lseek(self._file.fileno(), self._bytes, os.SEEK_SET)
            raise ServiceError(f"recording {self._path} cannot be written ({error.strerror})", "free space or record elsewhere") from None

    def _open(self) -> BinaryIO:
        if self._path.suffix == SUFFIX:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return open(self._path, "xb", buffering=0)
        self._path.mkdir(parents=True, exist_ok=True)
        return open(self._path / f"{self._clock.now_ns():020d}{SUFFIX}", "xb", buffering=0)


def record(family: str, payload: bytes) -> bytes:
    """Return one record of a ``.weft`` file."""
    name = family.encode()
    return _HEAD.pack(MAGIC, VERSION, len(name), len(payload), zlib.crc32(payload, zlib.crc32(name))) + name + payload


class Recording:
    """A recording: a ``.weft`` file, a folder of them, or a Parquet or CSV file of one family."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self._options = options

    def batches(self) -> Iterator[Batch]:
        """Yield the batches in recorded order; raise ``InputError`` after the last good one.

        A folder's files after a torn one are read as well: its recorder was killed and started again.
        """
        yield from closing(self._open_ended())

    def _open_ended(self) -> Iterator[Batch]:
        if not self._path.is_dir() and self._path.suffix.lower() in (".csv", ".parquet"):
            yield from read_table(self._path, self._options)
            return
        files = sorted(self._path.glob(f"*{SUFFIX}")) if self._path.is_dir() else [self._path]
        if not files:
            raise InputError(str(self._path), f"holds no {SUFFIX} file", "give a file, or the folder that weft record wrote")
        fault: InputError | None = None
        for file in files:
            try:
                yield from _records(file)
            except InputError as error:
                fault = fault or error
        if fault is not None:
            raise fault


def _records(path: Path) -> Iterator[Batch]:
    try:
        with path.open("rb") as file:
            at = 0
            while head := file.read(_HEAD.size):
                batch, length = _record(path, file, head, at)
                at += length
                yield batch
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    if not at:
        raise InputError(str(path), "is empty", "record again, or leave the file out")


def _record(path: Path, file: BinaryIO, head: bytes, at: int) -> tuple[Batch, int]:
    """Return the record that begins with ``head`` at byte ``at``, and its length."""

    def fault(problem: str, hint: str = _TORN) -> InputError:
        return InputError(str(path), f"record at byte {at} {problem}", hint)

    if len(head) < _HEAD.size:
        raise fault("is cut short")
    magic, version, name_length, payload_length, crc = _HEAD.unpack(head)
    if magic != MAGIC:
        raise fault("does not begin as a record does", "take the file from weft record again; every record before it is used")
    if version != VERSION:
        raise fault(f"has version {version}, this Weft reads {VERSION}", "replay it with the Weft that wrote it")
    if payload_length > 2 * RECORD_BYTES_MAX:
        raise fault(f"claims {payload_length} bytes, more than any recorder writes", _TORN)
    name, payload = file.read(name_length), file.read(payload_length)
    if len(payload) < payload_length:
        raise fault("is cut short")
    if zlib.crc32(payload, zlib.crc32(name)) != crc:
        raise fault("is damaged: its checksum does not fit", "take the file from its source again; every record before it is used")
    table = FAMILIES.get(name.decode("utf-8", "replace"))
    if table is None:
        raise fault(f"is of the unknown family {name!r}", "replay it with the Weft that wrote it")
    try:
        return Batch(table.name, codec.decode(payload, table)), _HEAD.size + name_length + payload_length
    except CodecError as error:
        raise fault(f"holds a {error}", "record again") from None


def recognises(path: Path, head: bytes) -> bool:
    """Return whether the path is a recording or a table whose columns are a family's."""
    if path.is_dir():
        return any(path.glob(f"*{SUFFIX}"))
    if head.startswith(MAGIC) or path.suffix.lower() == SUFFIX:
        return True
    if head.startswith(b"PAR1"):
        return True
    return path.suffix.lower() == ".csv" and fits_a_family(head.split(b"\n", 1)[0])


RECORDING = Collector(
    name="recording",
    doc="what weft record wrote, and Parquet or CSV files whose columns are a family's",
    families=tuple(FAMILIES),
    config=RecordingConfig,
    registers=None,
    recorded=Recording,
    recognises=recognises,
)
