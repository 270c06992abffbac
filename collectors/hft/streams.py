"""Decoded records of high-frequency telemetry to rows: a ledger for each template of each device, and gaps for losses.

A switch whose session is reconfigured sends the same counters under a new template, at times beside the old one. The new ledger
continues from the old one, so that a sample that spans the change is not lost.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ..base import Batch
from ..base import gaps as gap_batches
from ..sampling.readings import Ledger, Pace
from ..sampling.sai import series
from .config import SOURCE
from .ipfix import Block, IpfixLoss
from .ipfix_template import Template
from .names import Names

# All rows of a device that are published together lie this close, so that none is late.
SLICE_NS = 250 * NS_PER_MS
_SLICES_MAX = 64
# Streams that a new one may continue, the newest first.
_NEAR_MAX = 64
# The time of a record further ahead of the collector's clock is invalid.
_AHEAD_NS_MAX = 60 * NS_PER_S
_BACK_NS = NS_PER_S
_SILENT_NS = 3 * NS_PER_S

_ZERO = np.zeros(1, np.int64)


@dataclass(slots=True)
class _Stream:
    """The records of one template; ``names`` of its labels when the ledger was made.

    ``fresh`` until its first record, when it continues ``before``, the ledger of the template's last generation, or another one.
    """

    key: tuple[int, int, int]
    template: Template
    names: Names
    ledger: Ledger
    before: Ledger | None = None
    fresh: bool = True
    received_ns: int = 0


class Streams:
    """The streams of all exporters and templates."""

    def __init__(self, pace: Pace, series_max: int) -> None:
        self._pace, self._series_max = pace, series_max
        self._streams: dict[tuple[int, int, int], _Stream] = {}
        self._counts: Counter[str] = Counter()

    def take(self, blocks: Iterable[Block], devices: Mapping[int, tuple[str, Names]], now_ns: int | None) -> list[Batch]:
        """Return the rows of some blocks, in slices of time.

        ``devices`` are (device, names) by exporter; ``now_ns`` is the collector's time, ``None`` for a recording.
        """
        batches: list[Batch] = []
        pieces, refused = [], []
        newest = 0
        for block in blocks:
            device, names = devices[block.exporter]
            times, values = self._ordered(block, now_ns)
            if len(times) < len(block.times):
                refused.append((device, IpfixLoss(block.exporter, "records", len(block.times) - len(times), "timeless")))
            if not len(times):
                continue
            newest = max(newest, int(times[-1]))
            stream = self._stream(block, device, names)
            if stream is None:
                self._counts["refused_counters"] += values.size
                refused.append((device, IpfixLoss(block.exporter, "counters", values.size, "series_max")))
                continue
            stream.received_ns = now_ns or 0
            stream.ledger.look(times)
            pieces.append((stream, times, values))
        for stream, times, values in _slices(pieces):
            if stream.fresh:
                batches += self._continue(stream, times, now_ns)
            columns = values.shape[1]
            edges, starts, strides = np.array([0, len(times)]), _ZERO, _ZERO + columns
            batches += stream.ledger.feed(_ZERO, edges, times, starts, strides, values.reshape(-1), now_ns)
        return batches + gaps(refused, newest if now_ns is None else now_ns)

    def quiet(self, now_ns: int) -> list[Batch]:
        """Return the rows of idle streams, which would otherwise wait for the next record."""
        batches = []
        for stream in self._streams.values():
            if stream.received_ns and now_ns - stream.received_ns > max(_SILENT_NS, 2 * self._pace.span_ns):
                batches += stream.ledger.flush(now_ns)
                stream.received_ns = 0
        return batches

    def end(self, now_ns: int | None) -> list[Batch]:
        """Return the rows of all open spans: no records follow."""
        return [batch for stream in self._streams.values() for batch in stream.ledger.flush(now_ns)]

    def forget(self, exporter: int, now_ns: int) -> list[Batch]:
        """Return the last rows of an exporter that has left, and forget it."""
        gone = [self._streams.pop(key).ledger for key in list(self._streams) if key[0] == exporter]
        for ledger in gone:
            self._counts.update(ledger.totals())
        return [batch for ledger in gone for batch in ledger.flush(now_ns)]

    def counters(self) -> Mapping[str, float]:
        """Return counter samples, samples and refusals since the start, and the current numbers of series and streams."""
        ledgers = [stream.ledger for stream in self._streams.values()]
        counts: Counter[str] = Counter(self._counts)
        for ledger in ledgers:
            counts.update(ledger.totals())
        known = {"streams": len(ledgers), "series": sum(len(one.series) for one in ledgers)}
        return counts | known | {"unknown_series": sum(ledger.unknown for ledger in ledgers)}

    def _ordered(self, block: Block, now_ns: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return a block's records in order of time, without those that have no valid time."""
        times, values = block.times, block.values
        good = times >= 0 if now_ns is None else (times >= 0) & (times <= now_ns + _AHEAD_NS_MAX)
        if not good.all():
            self._counts["timeless_records"] += int((~good).sum())
            times, values = times[good], values[good]
        steps = np.diff(times)
        if (steps < 0).any() and steps.min() > -_BACK_NS:
            order = np.argsort(times, kind="stable")
            times, values = times[order], values[order]
        return times, values

    def _stream(self, block: Block, device: str, names: Names) -> _Stream | None:
        """Return the stream of a block's template, a new one if template or names changed; ``None`` beyond the limit."""
        key = (block.exporter, block.domain, block.template.id)
        stream = self._streams.get(key)
        if stream is not None and stream.template is block.template and stream.names is names:
            return stream
        if stream is not None and stream.template.content == block.template.content and stream.names.names == names.names:
            stream.template, stream.names = block.template, names
            return stream
        series = sum(len(other.ledger.series) for other in self._streams.values()) - (len(stream.ledger.series) if stream else 0)
        if series + block.template.counters > self._series_max:
            return None
        ledger = Ledger(SOURCE, device, replace(self._pace, interval_ns=self._pace.interval_ns or names.interval_ns))
        ledger.add(_series(block.template, names))
        # Last in the order: the newest stream is the first to continue from.
        self._streams.pop(key, None)
        made = self._streams[key] = _Stream(key, block.template, names, ledger, before=stream.ledger if stream is not None else None)
        return made

    def _continue(self, stream: _Stream, times: np.ndarray, now_ns: int | None) -> list[Batch]:
        """Let a new stream continue an earlier one of the same counters; return the last rows of the generation that it replaces."""
        stream.fresh = False
        near = [one.ledger for other, one in reversed(self._streams.items()) if other[:2] == stream.key[:2] and one is not stream]
        before, stream.before = stream.before, None
        if any(stream.ledger.adopt(ledger, times) for ledger in ([before] if before is not None else []) + near[:_NEAR_MAX]):
            self._counts["streams_continued"] += 1
        if before is None:
            return []
        self._counts.update(before.totals())
        return before.flush(now_ns)


def _series(template: Template, names: Names) -> list:
    columns = zip(*(column.tolist() for column in (template.types, template.stats, template.labels, template.widths)), strict=True)
    return [series(kind, stat, names.of(kind, label), 8 * width) for kind, stat, label, width in columns]


def _slices(pieces: Sequence[tuple[_Stream, np.ndarray, np.ndarray]]) -> Iterator[tuple[_Stream, np.ndarray, np.ndarray]]:
    """Yield the pieces cut into slices of time, slice by slice, at most ``_SLICES_MAX``."""
    if not pieces:
        return
    spans = np.unique(np.concatenate([times // SLICE_NS for _, times, _ in pieces]))
    if len(spans) == 1 or any((np.diff(times) < 0).any() for _, times, _ in pieces):
        yield from pieces
        return
    for chosen in np.array_split(spans, min(len(spans), _SLICES_MAX)):
        first, last = int(chosen[0]) * SLICE_NS, (int(chosen[-1]) + 1) * SLICE_NS
        for stream, times, values in pieces:
            low, high = np.searchsorted(times, [first, last])
            if low < high:
                yield stream, times[low:high], values[low:high]


def gaps(losses: Sequence[tuple[str, IpfixLoss]], now_ns: int) -> list[Batch]:
    """Return losses of devices as rows of ``gap``."""
    return gap_batches(SOURCE, [(device, loss.what, loss.missed, loss.reason, loss.first) for device, loss in losses], now_ns)
