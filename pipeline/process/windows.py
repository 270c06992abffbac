"""Event-time windows of one partition: open messages, late rows, closings, and the offset to resume from after a crash.

Windows are 1 s of device time. Per device a *mark* trails the newest time seen by the allowed lateness, rounded down to a window.
Each message moves it, in the order of the log, so the log alone decides which rows are late, not the number of messages that one
read returns. Windows below the mark close.

Several sources may report one device, one every 100 ms and another once a second. The mark then trails by the largest observed
delay of a source behind the others as well, up to ``TRAIL_NS_MAX``.

A message stays open until every window that it touches has closed. ``resume`` is the oldest open offset. A restart reads from there
with the marks and carries of the last commit, ignores rows below the marks, and so rebuilds exactly the open windows. Rows of
messages before ``read`` were counted (late or not) before the crash and are not counted again.
"""

import base64
import json
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from ..bus import Message
from ..codec import decode, table_of
from ..errors import CodecError
from ..tables.families import FAMILIES
from ..tables.field import WINDOW_NS
from ..tables.states import STATES
from .base import TS_NS_MAX, Closing, WindowMetric, integers

# Device time may be ahead of collector time by this much. Rows further ahead would close windows that other sources still fill;
# they are refused and counted.
AHEAD_NS_MAX = 60_000_000_000

# A source that trails the others of its device by more than this is late.
TRAIL_NS_MAX = 5_000_000_000

# Sources followed for one device; the mark ignores further ones.
SOURCES_MAX = 64

# Streams (source and device) whose sequence is followed in one partition; beyond it the longest silent is dropped.
STREAMS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """How long windows wait for late rows, in device time, and for a silent live source, in processing time."""

    lateness_s: float = 0.5
    idle_s: float = 5.0

    @property
    def lateness_ns(self) -> int:
        return int(self.lateness_s * 1e9)


@dataclass(slots=True)
class _DeviceWindows:
    """The time of one device. ``closed_ns`` is the end of the last closed window."""

    seen_ns: int
    mark_ns: int | None = None
    closed_ns: int | None = None
    live: bool = False
    received_ns: int = 0
    open: list["_OpenMessage"] = field(default_factory=list)
    sources: dict[str, list[int]] = field(default_factory=dict)

    def follow(self, source: str, start_ns: int, newest_ns: int) -> None:
        """Update the newest time of a source, and the delay of its oldest new row behind the other sources.

        A row behind the source's own newest time is late, not delayed. The delay of a source that has caught up decays slowly.
        """
        if source not in self.sources and len(self.sources) >= SOURCES_MAX:
            return
        front, trail = self.sources.get(source, (start_ns, 0))
        trailing = min(max(0, self.seen_ns - max(front, start_ns)), TRAIL_NS_MAX)
        self.sources[source] = [max(front, newest_ns), max(trailing, trail - trail // 8)]

    @property
    def trail_ns(self) -> int:
        return max((trail for _, trail in self.sources.values()), default=0)


@dataclass(frozen=True, slots=True)
class _OpenMessage:
    offset: int
    start_ns: int
    end_ns: int
    frame: pl.DataFrame


class PartitionWindows:
    """The open windows of one partition of one family."""

    def __init__(self, metric: WindowMetric, config: WindowConfig) -> None:
        self._metric = metric
        self._config = config
        self._devices: dict[str, _DeviceWindows] = {}
        self._streams: dict[str, tuple[int, int]] = {}
        self._out: dict[str, list[pl.DataFrame]] = {}
        self._ended: dict[str, Closing] = {}
        self.read = 0
        self.rows = 0
        self.poisoned = 0

    def add(self, message: Message, now_ns: int) -> None:
        """Add one message. Its faults are counted in rows of ``quality`` and ``gap``, never raised."""
        if message.key in self._ended:
            # Rows after an end must not join windows that were open before it.
            self._run([self._ended.pop(message.key)])
        replayed = message.offset < self.read
        self.read = max(self.read, message.offset + 1)
        if not replayed:
            self._follow(message)
        try:
            frame = self._decoded(message)
        except CodecError as error:
            if not replayed:
                self.poisoned += 1
                self._record_gap(message, "messages", message.offset, message.offset, f"codec: {error.problem}"[:200])
            return
        self.rows += 0 if replayed else frame.height
        device = self._devices.get(message.key)
        if frame.height:
            frame, start, end = self._refuse(message, frame, device, replayed)
            if len(start):
                device = self._hold(message, frame, start, end, device, replayed)
        if device is not None:
            device.live, device.received_ns = message.headers.get("live") == "1", now_ns
            if message.headers.get("end") == "1" and not replayed:
                device.mark_ns = _ceil(device.seen_ns)
                closing = self._closing(message.key, device, ended=True)
                self._ended |= {message.key: closing} if closing is not None else {}

    def lost(self, from_offset: int, to_offset: int) -> None:
        """Record that the log dropped messages before they were read."""
        self._record_gap(None, "messages", from_offset, to_offset - 1, "bus_retention")
        self.read = max(self.read, to_offset)

    def closings(self, now_ns: int) -> list[Closing]:
        """Return the windows below their device's mark, and all windows of a live device that has fallen silent.

        The caller runs the metric on them, for all its partitions at once, before it calls ``remember``.
        """
        idle_ns = int(self._config.idle_s * 1e9)
        closings = [*self._ended.values()]
        self._ended.clear()
        for name, device in self._devices.items():
            if device.live and device.open and now_ns - device.received_ns > idle_ns:
                device.mark_ns = _ceil(device.seen_ns)
            closing = self._closing(name, device, ended=False)
            closings += [closing] if closing is not None else []
        return closings

    def close(self, now_ns: int) -> None:
        """Close and compute the windows that ``closings`` returns, without other partitions."""
        self._run(self.closings(now_ns))

    def forget(self) -> None:
        """Drop the carries of this partition's devices: another member owns them now."""
        for name in self._devices:
            self._metric.restore(name, b"")

    def take(self) -> dict[str, pl.DataFrame]:
        """Return the rows made since the last call by table name, family ``gap`` included."""
        out, self._out = self._out, {}
        return {name: pl.concat(frames) for name, frames in out.items()}

    def resume(self, position: int) -> int:
        """Return the offset to resume from after a crash; ``position`` is the next one to read."""
        offsets = [piece.offset for device in self._devices.values() for piece in device.open]
        return min(offsets, default=position)

    def remember(self, resume: int) -> bytes:
        """Return the state that a successor needs besides the log from ``resume`` on."""
        devices = {
            name: {
                "seen": device.seen_ns,
                "mark": device.mark_ns,
                "closed": device.closed_ns,
                "live": device.live,
                "sources": device.sources,
                "carry": base64.b64encode(self._metric.carry(name)).decode(),
            }
            for name, device in self._devices.items()
        }
        return json.dumps({"version": 1, "resume": resume, "read": self.read, "streams": self._streams, "devices": devices}).encode()

    def restore(self, memory: bytes | None, now_ns: int) -> int:
        """Restore the state that ``remember`` returned, and return the offset to read from (0 without a state)."""
        if memory is None:
            return 0
        state = json.loads(memory)
        self.read = state["read"]
        self._streams = {key: (epoch, sequence) for key, (epoch, sequence) in state["streams"].items()}
        for name, saved in state["devices"].items():
            device = _DeviceWindows(saved["seen"], saved["mark"], saved["closed"], saved["live"], now_ns, sources=saved.get("sources", {}))
            self._devices[name] = device
            self._metric.restore(name, base64.b64decode(saved["carry"]))
        return state["resume"]

    def _decoded(self, message: Message) -> pl.DataFrame:
        table = table_of(message.headers)
        if table is not FAMILIES[self._metric.family]:
            raise CodecError(f"schema {table.name!r} in the topic of {self._metric.family!r}")
        return decode(message.value, table, widen=False)

    def _hold(
        self, message: Message, frame: pl.DataFrame, start: np.ndarray, end: np.ndarray, device: _DeviceWindows | None, replayed: bool
    ) -> _DeviceWindows:
        oldest, newest = int(start.min()), int(end.max())
        if device is None:
            device = self._devices[message.key] = _DeviceWindows(oldest)
        device.open.append(_OpenMessage(message.offset, oldest, newest, frame))
        if not replayed:
            device.follow(str(frame["source"][0]), oldest, newest)
        device.seen_ns = max(device.seen_ns, newest)
        mark = (device.seen_ns - device.trail_ns - self._config.lateness_ns) // WINDOW_NS * WINDOW_NS
        device.mark_ns = mark if device.mark_ns is None else max(device.mark_ns, mark)
        return device

    def _refuse(
        self, message: Message, frame: pl.DataFrame, device: _DeviceWindows | None, replayed: bool
    ) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
        """Count late and implausible samples; return the other rows without their late samples, their starts and ends."""
        mark = device.mark_ns if device is not None and device.mark_ns is not None else 0
        rows = self._metric.extent(frame)
        received = integers(frame["recv_ts"], TS_NS_MAX)
        soonest = min(max(int(received.min()), 0), TS_NS_MAX)
        if rows.valid.all() and rows.start.min() >= mark and rows.end.max() <= soonest + AHEAD_NS_MAX and rows.count.min() > 0:
            # The usual case: nothing is late, implausible or empty.
            return frame, rows.start, rows.end
        received = np.clip(received, 0, TS_NS_MAX)
        wrong = ~rows.valid | (rows.end > received + AHEAD_NS_MAX)
        late = np.where(wrong, 0, np.clip(-(-(mark - rows.start) // rows.interval), 0, rows.count))
        if not replayed and (wrong.any() or late.any()):
            # An implausible row has no trustworthy time; count it at the time of receipt.
            ts = np.where(wrong, received, rows.start) // WINDOW_NS * WINDOW_NS
            self._count(message.key, frame, ts, late, np.where(wrong, rows.count, 0))
        keep = ~wrong & (late < rows.count)
        start = rows.start + late * rows.interval
        if late[keep].any():
            frame = self._metric.without_late(frame, rows, late)
        return (frame, start, rows.end) if keep.all() else (frame.filter(pl.Series(keep)), start[keep], rows.end[keep])

    def _count(self, device: str, frame: pl.DataFrame, ts: np.ndarray, late: np.ndarray, implausible: np.ndarray) -> None:
        rows = frame.select(
            pl.Series("ts", ts),
            pl.lit(device).alias("device"),
            (pl.col("port").fill_null("") if "port" in frame.columns else pl.lit("")).alias("port"),
            self._metric.signal().alias("signal"),
            pl.Series("late", late),
            pl.Series("implausible", implausible),
        ).filter(pl.col("late") + pl.col("implausible") > 0)
        rows = rows.group_by(STATES["quality"].having("key"), maintain_order=True).sum()
        self._emit("quality", STATES["quality"].frame(rows).fill_null(0))

    def _closing(self, name: str, device: _DeviceWindows, *, ended: bool) -> Closing | None:
        """Return the closing of one device if windows close now, and drop its closed messages."""
        mark = device.mark_ns
        if mark is None:
            return None
        start = device.closed_ns
        if start is None:
            start = min((piece.start_ns for piece in device.open), default=mark) // WINDOW_NS * WINDOW_NS
        if mark <= start and not ended:
            return None
        frames = [piece.frame for piece in device.open if piece.start_ns < mark]
        device.open = [piece for piece in device.open if piece.end_ns > mark]
        device.closed_ns = max(mark, start)
        return Closing(name, start, device.closed_ns, frames, ended)

    def _run(self, closings: list[Closing]) -> None:
        if closings:
            for table, frame in self._metric.close_all(closings).items():
                self._emit(table, frame)

    def _follow(self, message: Message) -> None:
        """Record missing messages of a stream by its sequence."""
        number = _number(message, "sequence")
        if number is None:
            return
        stream, epoch = f"{message.headers.get('source', '')}/{message.key}", _number(message, "epoch") or 0
        known = self._streams.pop(stream, None)
        if known is not None and known[0] == epoch and number > known[1]:
            self._record_gap(message, "messages", known[1], number - 1, "sequence")
        self._streams[stream] = (epoch, number + 1)
        if len(self._streams) > STREAMS_MAX:
            self._streams.pop(next(iter(self._streams)))

    def _record_gap(self, message: Message | None, what: str, first: int, last: int, reason: str) -> None:
        headers = message.headers if message is not None else {}
        sent = (_number(message, "sent_ns") if message is not None else None) or 0
        row = {"ts": sent, "recv_ts": sent, "source": headers.get("source", "process"), "epoch": 0, "what": what, "reason": reason}
        row |= {"device": message.key if message is not None else "", "missed": last - first + 1}
        self._emit("gap", FAMILIES["gap"].frame(row | {"from_sequence": first, "to_sequence": last}))

    def _emit(self, table: str, frame: pl.DataFrame) -> None:
        if frame.height:
            self._out.setdefault(table, []).append(frame)


def _number(message: Message, header: str) -> int | None:
    """Return a header as a number, ``None`` if it is absent or not a number."""
    text = message.headers.get(header, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    return number if 0 <= number < 2**63 else None


def _ceil(ns: int) -> int:
    return -(-ns // WINDOW_NS) * WINDOW_NS
