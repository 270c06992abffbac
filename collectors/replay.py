"""Replay: a recording through the same path as live data, to its end, exactly once.

What has been published and how far the recording is are one transaction, and a recording always gives the same
batches, so a feeder that is killed goes on where it was; one that finished has nothing to do a second time.
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
from .publish import Feed
from .recordings.folder import INDEX, FolderRecording, Part, is_folder

# Rows, samples and bytes of one transaction: enough to be fast, little enough to be taken back.
BATCHES_MAX = 64
FRAME_BYTES_MAX = 8 * 1024 * 1024

# A bus that takes nothing is tried again so often, and given up after so long.
RETRY_S = 2.0
PATIENCE_S = 300.0

log = logging.getLogger("weft")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is."""

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
        InputError: there is no such file, nobody recognises it, or the named one reads no recordings.
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
        raise InputError(str(path), f"cannot be looked through ({error.strerror}: {error.filename})", "name the recording itself") from None
    if path.is_dir():
        raise InputError(str(path), f"is a folder without {INDEX}, which tells its recordings", "name one of its files, or write it")
    raise InputError(str(path), "is no recording that Weft knows", f"say what it is with --kind: {names}")


def reader(path: Path, kind: str | None, options: Options) -> Recorded:
    """Return what reads a recording, or a folder of several. Raises ``InputError`` where nobody does."""
    if kind is None and is_folder(path):
        # Each file says what its device is; one name cannot be that of all.
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
    """Feeds one recording into the bus."""

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
        """Return what a finished replay of this recording into this bus noted, ``None`` if there is none."""
        note = json.loads(self._bus.recall(self.key) or b"{}")
        return note if note.get("done") else None

    def run(self, progress: Callable[[Progress], None] = lambda _progress: None) -> None:
        """Feed the rest of the recording; a bus that is away or full is waited for.

        Raises:
            InputError: the recording is broken; what was good is published and its devices are ended.
            BusError: the bus took nothing for ``PATIENCE_S``.
        """
        self._moved_ns = self._clock.monotonic_ns()
        while True:
            try:
                # Whether the last transaction happened or not, the bus knows: begin again from what it remembers.
                with contextlib.closing(self._bus.producer(self.key.replace("/", "-"))) as producer:
                    self._run(producer, progress)
                return
            except BusError as error:
                if self._clock.monotonic_ns() - self._moved_ns > PATIENCE_S * NS_PER_S:
                    raise
                log.warning("%s; trying again in %.0f s", error, RETRY_S)
                self._clock.wait(RETRY_S)

    def _run(self, producer: Producer, progress: Callable[[Progress], None]) -> None:
        note = json.loads(self._bus.recall(self.key) or b"{}")
        feed = Feed(producer, self.key, self._clock, live=False, epoch=0)
        feed.resume(note.get("numbers", {}))
        state = {
            "batches": note.get("batches", 0),
            "rows": note.get("rows", 0),
            "bytes": note.get("bytes", 0),
            "devices": note.get("devices", []),
        }
        problem: WeftError | None = None
        held: list[Batch] = []
        try:
            for batch in self._rest(state["batches"]):
                held.append(batch)
                if len(held) >= BATCHES_MAX or sum(b.frame.estimated_size() for b in held) >= FRAME_BYTES_MAX or self._speed:
                    self._flush(feed, held, state, progress)
        except InputError as error:
            problem = error
        self._flush(feed, held, state, progress)
        # Devices are ended once more: a broken recording never said so, and to end twice is harmless.
        endings = [Batch("burst_sample", FAMILIES["burst_sample"].empty(), tuple(state["devices"]))] if problem is not None else []
        feed.publish(endings, (self.key, {**state, "done": True, "problem": str(problem or "")}))
        if problem is not None:
            raise problem

    def _flush(self, feed: Feed, held: list[Batch], state: dict, progress: Callable[[Progress], None]) -> None:
        if not held:
            return
        rows = sum(batch.frame.height for batch in held)
        devices = {device for batch in held for device in batch.frame["device"].unique().to_list()}
        fresh = {
            "batches": state["batches"] + len(held),
            "rows": state["rows"] + rows,
            "devices": sorted(devices | set(state["devices"])),
        }
        state |= fresh
        state["bytes"] += feed.publish(held, (self.key, state))
        newest = max((int(batch.frame["ts"].max()) for batch in held if batch.frame.height), default=None)  # type: ignore[arg-type]
        held.clear()
        self._moved_ns = self._clock.monotonic_ns()
        progress(Progress(state["batches"], state["rows"], state["bytes"], newest))

    def _rest(self, fed: int) -> Iterator[Batch]:
        """Yield the batches after the first ``fed``, at the recording's own pace times ``speed`` if one is asked for."""
        began_ns = start_ns = None
        for batch in itertools.islice(read(self._path, self._kind, self._options), fed, None):
            if self._speed and batch.frame.height:
                # Time runs from the first batch of this life: a feeder that was killed does not wait for what is fed.
                ts, now_ns = int(batch.frame["ts"].min()), self._clock.monotonic_ns()  # type: ignore[arg-type]
                began_ns, start_ns = (ts, now_ns) if began_ns is None or start_ns is None else (began_ns, start_ns)
                self._clock.wait(((ts - began_ns) / self._speed - (now_ns - start_ns)) / NS_PER_S)
            yield batch


def fingerprint(path: Path, kind: str | None, options: Options) -> str:
    """Return a name for a recording as read with these options: its content's size and time, not only its path."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stamp = [(str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    text = repr((stamp, kind, options.line_rate_bps, options.device, options.check_icrc, options.run_samples))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
