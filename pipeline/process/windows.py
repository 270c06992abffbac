"""Event-time windows of one partition: what is held, what is late, what closes, and where to read on after a crash.

Windows are 1 s of the devices' own time. Per device a *mark* trails the newest time seen by the allowed lateness,
cut to a window; it is moved message by message in the order of the log, so which rows are late depends on the
log alone: not on how many messages one poll happens to return. Windows below the mark close.

A device may be told of by several sources, one of which sends every 100 ms and another once a second. The mark trails by
as much more as the slowest of them was seen to trail the others, up to ``TRAIL_NS_MAX``.

A message stays held until every window that it touches has closed. ``resume`` is the oldest held offset: a
restart reads on from there with the marks and carries of the last commit, ignores what the marks say is done, and
so rebuilds exactly the windows that were open. Rows of messages before ``read`` were judged (late or not) before
the crash and are not counted again.
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
from .base import Closing, WindowMetric
from .bursts.metric import INTERVAL_NS_MIN

# A device's time may run ahead of the collector's by this much; what lies further ahead would close windows that
# others still fill, and is refused and counted.
AHEAD_NS_MAX = 60_000_000_000

# Times taken: 1970 to 2116. Whatever is outside is no time but a mistake, and sums of times stay in 63 bits.
TS_NS_MAX = 2**62

# A source that trails the others of its device by more than this is late.
TRAIL_NS_MAX = 5_000_000_000

# Sources followed for one device; the rows of more are judged by the mark that these make.
SOURCES_MAX = 64

# Streams (source and device) whose sequence is followed in one partition; beyond it the longest silent is forgotten.
STREAMS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """How long stragglers are waited for, in the device's time and, where a live source falls silent, in ours."""

    lateness_s: float = 0.5
    idle_s: float = 5.0

    @property
    def lateness_ns(self) -> int:
        return int(self.lateness_s * 1e9)


@dataclass(slots=True)
class _Device:
    """Where one device's time stands. ``closed_ns`` is the end of the last closed window."""

    seen_ns: int
    mark_ns: int | None = None
    closed_ns: int | None = None
    live: bool = False
    heard_ns: int = 0
    held: list["_Held"] = field(default_factory=list)
    sources: dict[str, list[int]] = field(default_factory=dict)

    def follow(self, source: str, start_ns: int, newest_ns: int) -> None:
        """Take note of how far a source is, and by how much its oldest news trails what others have told before.

        What trails a source's own front is a straggler of that source, for which the lateness stands. A source that has
        caught up is believed slowly.
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
class _Held:
    offset: int
    start_ns: int
    end_ns: int
    frame: pl.DataFrame


class PartitionWindows:
    """The open windows of one partition of one family."""

    def __init__(self, metric: WindowMetric, config: WindowConfig) -> None:
        self._metric = metric
        self._config = config
        self._devices: dict[str, _Device] = {}
        self._streams: dict[str, tuple[int, int]] = {}
        self._out: dict[str, list[pl.DataFrame]] = {}
        self._ended: dict[str, Closing] = {}
        self.read = 0
        self.rows = 0
        self.poisoned = 0

    def add(self, message: Message, now_ns: int) -> None:
        """Take one message in; what is wrong with it is counted in ``quality`` and ``gap`` rows, never raised."""
        if message.key in self._ended:
            # What follows an end must not meet what was open before it.
            self._run([self._ended.pop(message.key)])
        again = message.offset < self.read
        self.read = max(self.read, message.offset + 1)
        if not again:
            self._follow(message)
        try:
            frame = self._decoded(message)
        except CodecError as error:
            if not again:
                self.poisoned += 1
                self._admit(message, "messages", message.offset, message.offset, f"codec: {error.problem}"[:200])
            return
        self.rows += 0 if again else frame.height
        device = self._devices.get(message.key)
        if frame.height:
            frame, start, end = self._refuse(message, frame, device, again)
            if len(start):
                device = self._hold(message, frame, start, end, device, again)
        if device is not None:
            device.live, device.heard_ns = message.headers.get("live") == "1", now_ns
            if message.headers.get("end") == "1" and not again:
                device.mark_ns = _ceil(device.seen_ns)
                closing = self._closing(message.key, device, ended=True)
                self._ended |= {message.key: closing} if closing is not None else {}

    def lost(self, from_offset: int, to_offset: int) -> None:
        """Admit that the log dropped messages before they were read."""
        self._admit(None, "messages", from_offset, to_offset - 1, "bus_retention")
        self.read = max(self.read, to_offset)

    def closings(self, now_ns: int) -> list[Closing]:
        """Let go of every window below its device's mark, and of all of a live device that has fallen silent.

        The caller runs the metric on what is returned, for all its partitions at once, before it calls ``remember``.
        """
        idle_ns = int(self._config.idle_s * 1e9)
        closings = [*self._ended.values()]
        self._ended.clear()
        for name, device in self._devices.items():
            if device.live and device.held and now_ns - device.heard_ns > idle_ns:
                device.mark_ns = _ceil(device.seen_ns)
            closing = self._closing(name, device, ended=False)
            closings += [closing] if closing is not None else []
        return closings

    def close(self, now_ns: int) -> None:
        """Close what ``closings`` lets go of, by itself."""
        self._run(self.closings(now_ns))

    def forget(self) -> None:
        """Drop what the metric carries for this partition's devices: they belong to somebody else now."""
        for name in self._devices:
            self._metric.restore(name, b"")

    def take(self) -> dict[str, pl.DataFrame]:
        """Return, once, the rows made since the last call, by table name; family ``gap`` among them."""
        out, self._out = self._out, {}
        return {name: pl.concat(frames) for name, frames in out.items()}

    def resume(self, position: int) -> int:
        """Return the offset to read on from after a crash; ``position`` is the next one to be read."""
        held = [piece.offset for device in self._devices.values() for piece in device.held]
        return min(held, default=position)

    def remember(self, resume: int) -> bytes:
        """Return all that a successor needs besides the log from ``resume`` on."""
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
        """Take over what ``remember`` returned and return the offset to read from (0 if there is nothing)."""
        if memory is None:
            return 0
        state = json.loads(memory)
        self.read = state["read"]
        self._streams = {key: (epoch, sequence) for key, (epoch, sequence) in state["streams"].items()}
        for name, kept in state["devices"].items():
            device = _Device(kept["seen"], kept["mark"], kept["closed"], kept["live"], now_ns, sources=kept.get("sources", {}))
            self._devices[name] = device
            self._metric.restore(name, base64.b64decode(kept["carry"]))
        return state["resume"]

    def _decoded(self, message: Message) -> pl.DataFrame:
        table = table_of(message.headers)
        if table is not FAMILIES[self._metric.family]:
            raise CodecError(f"schema {table.name!r} in the topic of {self._metric.family!r}")
        return decode(message.value, table, widen=False)

    def _hold(
        self, message: Message, frame: pl.DataFrame, start: np.ndarray, end: np.ndarray, device: _Device | None, again: bool
    ) -> _Device:
        oldest, newest = int(start.min()), int(end.max())
        if device is None:
            device = self._devices[message.key] = _Device(oldest)
        device.held.append(_Held(message.offset, oldest, newest, frame))
        if not again:
            device.follow(str(frame["source"][0]), oldest, newest)
        device.seen_ns = max(device.seen_ns, newest)
        mark = (device.seen_ns - device.trail_ns - self._config.lateness_ns) // WINDOW_NS * WINDOW_NS
        device.mark_ns = mark if device.mark_ns is None else max(device.mark_ns, mark)
        return device

    def _refuse(
        self, message: Message, frame: pl.DataFrame, device: _Device | None, again: bool
    ) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
        """Count what is late or cannot be; return the rows that are left, cut to what is not late, and their extents."""
        mark = device.mark_ns if device is not None and device.mark_ns is not None else 0
        rows = extent(frame)
        received = _integers(frame["recv_ts"], TS_NS_MAX)
        soonest = min(max(int(received.min()), 0), TS_NS_MAX)
        if rows.fits.all() and rows.start.min() >= mark and rows.end.max() <= soonest + AHEAD_NS_MAX and rows.count.min() > 0:
            # As nearly always: nothing is late, nothing cannot be, nothing is empty.
            return frame, rows.start, rows.end
        received = np.clip(received, 0, TS_NS_MAX)
        wrong = ~rows.fits | (rows.end > received + AHEAD_NS_MAX)
        late = np.where(wrong, 0, np.clip(-(-(mark - rows.start) // rows.interval), 0, rows.count))
        if not again and (wrong.any() or late.any()):
            # The time of a row that cannot be is not to be believed either.
            ts = np.where(wrong, received, rows.start) // WINDOW_NS * WINDOW_NS
            self._count(message.key, frame, ts, late, np.where(wrong, rows.count, 0))
        keep = ~wrong & (late < rows.count)
        start = rows.start + late * rows.interval
        if late[keep].any():
            frame = frame.with_columns(pl.Series("ts", start), pl.col("values").list.slice(pl.lit(pl.Series(late))))
        return (frame, start, rows.end) if keep.all() else (frame.filter(pl.Series(keep)), start[keep], rows.end[keep])

    def _count(self, device: str, frame: pl.DataFrame, ts: np.ndarray, late: np.ndarray, implausible: np.ndarray) -> None:
        table = STATES["quality"]
        rows = frame.select(
            pl.Series("ts", ts),
            pl.lit(device).alias("device"),
            (pl.col("port").fill_null("") if "port" in frame.columns else pl.lit("")).alias("port"),
            (pl.col("signal").fill_null("") if "signal" in frame.columns else pl.lit(self._metric.family)).alias("signal"),
            pl.Series("late", late),
            pl.lit(0).alias("duplicates"),
            pl.Series("implausible", implausible),
            *(pl.lit(0).alias(name) for name in ("resets", "wraps", "gaps")),
        ).filter(pl.col("late") + pl.col("implausible") > 0)
        rows = rows.group_by(table.having("key"), maintain_order=True).sum()
        self._emit("quality", rows.select(pl.col(name).cast(dtype) for name, dtype in table.polars.items()))

    def _closing(self, name: str, device: _Device, *, ended: bool) -> Closing | None:
        """Return what closes of one device now, and let go of it."""
        mark = device.mark_ns
        if mark is None:
            return None
        start = device.closed_ns
        if start is None:
            start = min((piece.start_ns for piece in device.held), default=mark) // WINDOW_NS * WINDOW_NS
        if mark <= start and not ended:
            return None
        frames = [piece.frame for piece in device.held if piece.start_ns < mark]
        device.held = [piece for piece in device.held if piece.end_ns > mark]
        device.closed_ns = max(mark, start)
        return Closing(name, start, device.closed_ns, frames, ended)

    def _run(self, closings: list[Closing]) -> None:
        if closings:
            for table, frame in self._metric.close_all(closings).items():
                self._emit(table, frame)

    def _follow(self, message: Message) -> None:
        """Notice missing messages of a stream by its sequence."""
        number = _number(message, "sequence")
        if number is None:
            return
        stream, epoch = f"{message.headers.get('source', '')}/{message.key}", _number(message, "epoch") or 0
        known = self._streams.pop(stream, None)
        if known is not None and known[0] == epoch and number > known[1]:
            self._admit(message, "messages", known[1], number - 1, "sequence")
        self._streams[stream] = (epoch, number + 1)
        if len(self._streams) > STREAMS_MAX:
            self._streams.pop(next(iter(self._streams)))

    def _admit(self, message: Message | None, what: str, first: int, last: int, reason: str) -> None:
        headers = message.headers if message is not None else {}
        sent = (_number(message, "sent_ns") if message is not None else None) or 0
        row = {
            "ts": sent,
            "recv_ts": sent,
            "source": headers.get("source", "process"),
            "device": message.key if message is not None else "",
            "epoch": 0,
            "what": what,
            "from_sequence": first,
            "to_sequence": last,
            "missed": last - first + 1,
            "reason": reason,
        }
        self._emit("gap", pl.DataFrame([row], schema=FAMILIES["gap"].polars))

    def _emit(self, table: str, frame: pl.DataFrame) -> None:
        if frame.height:
            self._out.setdefault(table, []).append(frame)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the rows of a frame lie: start and end (exclusive) in ns, the interval and the number of their samples.

    ``fits`` is false where a time or an interval cannot be; start and end mean nothing there.
    """

    start: np.ndarray
    end: np.ndarray
    interval: np.ndarray
    count: np.ndarray
    fits: np.ndarray


def extent(frame: pl.DataFrame) -> Extent:
    """Return where the rows lie; a run is cut to its sampling grid, and a row that is an instant counts as one sample of 1 ns."""
    ts = _integers(frame["ts"], -1)
    fits = (ts >= 0) & (ts < TS_NS_MAX)
    if "interval_ns" not in frame.columns:
        one = np.ones(len(ts), np.int64)
        return Extent(ts, ts + one, one, one, fits)
    interval = _integers(frame["interval_ns"], 0)
    fits &= (interval >= INTERVAL_NS_MIN) & (interval <= WINDOW_NS)
    interval = np.where(fits, interval, 1)
    start, count = ts // interval * interval, _lengths(frame["values"])
    return Extent(start, start + count * interval, interval, count, fits)


def _integers(column: pl.Series, unknown: int) -> np.ndarray:
    return (column.fill_null(unknown) if column.null_count() else column).to_numpy()


def _lengths(column: pl.Series) -> np.ndarray:
    """Return the length of each list; through Arrow, since this is done for every message."""
    parts = [chunk.to_arrow() for chunk in column.get_chunks()]
    return np.concatenate(
        [np.diff(part.offsets.to_numpy()) if not part.null_count else part.value_lengths().fill_null(0).to_numpy() for part in parts]
    ).astype(np.int64)


def _number(message: Message, header: str) -> int | None:
    """Return a header that is a number, ``None`` if it is not there or none."""
    text = message.headers.get(header, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    return number if 0 <= number < 2**63 else None


def _ceil(ns: int) -> int:
    return -(-ns // WINDOW_NS) * WINDOW_NS
