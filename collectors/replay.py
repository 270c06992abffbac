"""Replay: a recording through the same path as live data, to its end, exactly once.

Batches and the position in the recording are published in one transaction, and a recording always gives the same batches, so a killed
replay resumes where it was; a finished one has nothing to do a second time.
"""

import contextlib
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..pipeline.bus import Bus, Producer
from ..pipeline.clock import NS_PER_S, Clock
from ..pipeline.errors import BusError, InputError, WeftError
from ..pipeline.tables.families import FAMILIES
from . import COLLECTORS
from .base import Batch, Collector, Options, Recorded
from .publish import BatchPublisher
from .recordings.folder import INDEX, FolderRecording, Part, is_folder

# Batches and bytes of one transaction: large enough to be fast, small enough to repeat.
BATCHES_MAX = 64
FRAME_BYTES_MAX = 8 * 1024 * 1024

# The interval of retries while the bus is unreachable, and the time after which the replay gives up.
RETRY_S = 2.0
PATIENCE_S = 300.0

log = logging.getLogger("weft")


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """The position of a replay: the number of rows published, and the newest time."""

    batches: int
    rows: int
    bytes: int
    ts_ns: int | None


def readers() -> list[Collector]:
    """Return the collectors that read recordings."""
    return [collector for collector in COLLECTORS.values() if collector.recorded is not None]


def recogniser(path: Path, kind: str | None) -> Collector:
    """Return the collector that reads ``path``: the one named, or the one that recognises it.

    Raises:
        InputError: there is no such file, it is empty, no collector recognises it, or the named one reads no recordings.
    """
    names = ", ".join(collector.name for collector in readers())
    if not path.exists():
        raise InputError(str(path), "no such file or folder", "check the path")
    if kind is not None and kind not in (collector.name for collector in readers()):
        raise InputError(str(path), f"no collector {kind!r} reads recordings", f"choose --kind from: {names}")
    try:
        head = b"" if path.is_dir() else path.open("rb").read(4096)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from None
    if not head and not path.is_dir():
        raise InputError(str(path), "is empty", "copy or record it again")
    if kind is not None:
        return COLLECTORS[kind]
    try:
        for collector in readers():
            if collector.recognises is not None and collector.recognises(path, head):
                return collector
    except OSError as error:
        raise InputError(str(path), f"cannot be searched ({error.strerror}: {error.filename})", "name the recording itself") from None
    if path.is_dir():
        raise InputError(str(path), f"is a folder without {INDEX}, which lists its recordings", "name one of its files, or write it")
    raise InputError(str(path), "is no recording that Weft knows", f"say what it is with --kind: {names}")


def reader(path: Path, kind: str | None, options: Options) -> Recorded:
    """Return the reader of a recording, or of a folder of several. Raises ``InputError`` where there is none."""
    if kind is None and is_folder(path):
        # Each file has its own device.
        def open_one(part: Part) -> Recorded:
            rate = part.line_rate_bps or options.line_rate_bps
            return reader(part.path, part.kind, replace(options, device=None, line_rate_bps=rate))

        return FolderRecording(path, open_one)
    collector = recogniser(path, kind)
    assert collector.recorded is not None
    return collector.recorded(path, options)


def read(path: Path, kind: str | None, options: Options) -> Iterator[Batch]:
    """Yield the batches of a recording. Raises ``InputError`` as its collector does."""
    yield from reader(path, kind, options).batches()


class Replay:
    """Publishes one recording to the bus."""

    def __init__(self, path: Path, kind: str | None, options: Options, bus: Bus, clock: Clock, *, speed: float | None = None) -> None:
        self._path = path
        self._kind = kind
        self._options = options
        self._bus = bus
        self._clock = clock
        self._speed = speed
        self._moved_ns = 0
        self.key = f"replay/{fingerprint(path, kind, options)}"

    def done(self) -> dict[str, object] | None:
        """Return the note of a finished replay of this recording into this bus, ``None`` if there is none."""
        note = json.loads(self._bus.recall(self.key) or b"{}")
        return note if note.get("done") else None

    def run(self, progress: Callable[[ReplayProgress], None] = lambda _progress: None) -> None:
        """Publish the rest of the recording; wait for a bus that is away or full.

        Raises:
            InputError: the recording is broken; everything before that place is published and its devices are ended.
            BusError: the bus accepted nothing for ``PATIENCE_S``.
        """
        self._moved_ns = self._clock.monotonic_ns()
        while True:
            try:
                # Only the bus knows whether the last transaction was committed: resume from its note.
                with contextlib.closing(self._bus.producer(self.key.replace("/", "-"))) as producer:
                    self._run(producer, progress)
                return
            except BusError as error:
                if self._clock.monotonic_ns() - self._moved_ns > PATIENCE_S * NS_PER_S:
                    raise
                log.warning("%s; trying again in %.0f s", error, RETRY_S)
                self._clock.wait(RETRY_S)

    def _run(self, producer: Producer, progress: Callable[[ReplayProgress], None]) -> None:
        note = json.loads(self._bus.recall(self.key) or b"{}")
        publisher = BatchPublisher(producer, self.key, self._clock, live=False, epoch=0)
        publisher.resume(note.get("numbers", {}))
        state = {
            "batches": note.get("batches", 0),
            "rows": note.get("rows", 0),
            "bytes": note.get("bytes", 0),
            "devices": note.get("devices", []),
        }
        problem: WeftError | None = None
        waiting: list[Batch] = []
        try:
            for batch in self._rest(state["batches"]):
                waiting.append(batch)
                if len(waiting) >= BATCHES_MAX or sum(b.frame.estimated_size() for b in waiting) >= FRAME_BYTES_MAX or self._speed:
                    self._flush(publisher, waiting, state, progress)
        except InputError as error:
            problem = error
        self._flush(publisher, waiting, state, progress)
        # A broken recording did not end its devices; ending one twice is harmless.
        endings = [Batch("burst_sample", FAMILIES["burst_sample"].empty(), tuple(state["devices"]))] if problem is not None else []
        publisher.publish(endings, (self.key, {**state, "done": True, "problem": str(problem or "")}))
        if problem is not None:
            raise problem

    def _flush(self, publisher: BatchPublisher, batches: list[Batch], state: dict, progress: Callable[[ReplayProgress], None]) -> None:
        if not batches:
            return
        rows = sum(batch.frame.height for batch in batches)
        devices = {device for batch in batches for device in batch.frame["device"].unique().to_list()}
        fresh = {
            "batches": state["batches"] + len(batches),
            "rows": state["rows"] + rows,
            "devices": sorted(devices | set(state["devices"])),
        }
        state |= fresh
        state["bytes"] += publisher.publish(batches, (self.key, state))
        newest = max((int(batch.frame["ts"].max()) for batch in batches if batch.frame.height), default=None)  # type: ignore[arg-type]
        batches.clear()
        self._moved_ns = self._clock.monotonic_ns()
        progress(ReplayProgress(state["batches"], state["rows"], state["bytes"], newest))

    def _rest(self, fed: int) -> Iterator[Batch]:
        """Yield the batches after the first ``fed``, at the recording's own pace times ``speed`` if one is set."""
        began_ns = start_ns = None
        for batch in itertools.islice(read(self._path, self._kind, self._options), fed, None):
            if self._speed and batch.frame.height:
                # Time runs from the first batch of this process: a resumed replay does not wait for what is published.
                ts, now_ns = int(batch.frame["ts"].min()), self._clock.monotonic_ns()  # type: ignore[arg-type]
                began_ns, start_ns = (ts, now_ns) if began_ns is None or start_ns is None else (began_ns, start_ns)
                self._clock.wait(((ts - began_ns) / self._speed - (now_ns - start_ns)) / NS_PER_S)
            yield batch


def fingerprint(path: Path, kind: str | None, options: Options) -> str:
    """Return a key of a recording and the options it is read with: from its files' names, sizes and times."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stamp = [(str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    text = repr((stamp, kind, options.line_rate_bps, options.device, options.check_icrc, options.run_samples))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
