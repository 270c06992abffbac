"""Decoded records of high-frequency telemetry to rows: a ledger for each template of each device, gaps for what is lost.

A switch whose session is reconfigured sends the same counters under a new template, at times beside the old one. The ledger
of the new one goes on where the old one stands, so a sample that spans the change is not lost.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ..base import Batch
from ..sampling import kernel, readings
from ..sampling.readings import Ledger, Pace
from ..sampling.sai import series
from .config import SOURCE
from .ipfix import Block, Loss
from .ipfix_template import Template
from .names import Names

# IPFIX has it.
# All rows of a device that are published together lie this close, so that none is late behind another.
SLICE_NS = 250 * NS_PER_MS
_SLICES_MAX = 64
# Streams that a fresh one looks at for its counters, the newest first.
_NEAR_MAX = 64
# A record further ahead of the collector's clock has no time that can be.
_AHEAD_NS_MAX = 60 * NS_PER_S
_BACK_NS = NS_PER_S
_SILENT_NS = 3 * NS_PER_S

_ZERO = np.zeros(1, np.int64)


@dataclass(slots=True)
class _Stream:
    """The records of one template: ``names`` is what its labels were called when the ledger was made.

    ``fresh`` until its first record, when it goes on where ``before`` stands, the ledger of the template's last generation, or
    another one.
    """

    key: tuple[int, int, int]
    template: Template
    names: Names
    ledger: Ledger
    before: Ledger | None = None
    fresh: bool = True
    heard_ns: int = 0


class Streams:
    """All templates of all exporters. ``who`` are (device, names) by exporter number, kept by the caller."""

    def __init__(self, pace: Pace, series_max: int) -> None:
        self._pace, self._series_max = pace, series_max
        self._streams: dict[tuple[int, int, int], _Stream] = {}
        self._counts: Counter[str] = Counter()

    def take(self, blocks: Iterable[Block], who: Mapping[int, tuple[str, Names]], now_ns: int | None) -> list[Batch]:
        """Return the rows of some blocks, in slices of time; ``now_ns`` is the collector's time, ``None`` for a recording."""
        batches: list[Batch] = []
        pieces, refused = [], []
        newest = 0
        for block in blocks:
            device, names = who[block.exporter]
            times, values = self._ordered(block, now_ns)
            if len(times) < len(block.times):
                refused.append((device, Loss(block.exporter, "records", len(block.times) - len(times), "timeless")))
            if not len(times):
                continue
            newest = max(newest, int(times[-1]))
            stream = self._stream(block, device, names)
            if stream is None:
                self._counts["refused_counters"] += values.size
                refused.append((device, Loss(block.exporter, "counters", values.size, "series_max")))
                continue
            stream.heard_ns = now_ns or 0
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
        """Return the rows of streams that have fallen silent, which would otherwise wait for the next record."""
        batches = []
        for stream in self._streams.values():
            if stream.heard_ns and now_ns - stream.heard_ns > max(_SILENT_NS, 2 * self._pace.span_ns):
                batches += stream.ledger.flush(now_ns)
                stream.heard_ns = 0
        return batches

    def end(self, now_ns: int | None) -> list[Batch]:
        """Return the rows of spans that have begun: nothing follows."""
        return [batch for stream in self._streams.values() for batch in stream.ledger.flush(now_ns)]

    def forget(self, exporter: int, now_ns: int) -> list[Batch]:
        """Let go of an exporter that will not be heard again."""
        gone = [key for key in self._streams if key[0] == exporter]
        return [batch for key in gone for batch in self._retire(key, now_ns)]

    def counters(self) -> Mapping[str, float]:
        """Return readings, samples and what was refused since the start, and how many series and streams there are."""
        ledgers = [stream.ledger for stream in self._streams.values()]
        told: Counter[str] = Counter(self._counts)
        for ledger in ledgers:
            told.update(_told(ledger))
        known = {"streams": len(ledgers), "series": sum(len(one.series) for one in ledgers)}
        return told | known | {"unknown_series": sum(ledger.unknown for ledger in ledgers)}

    def _ordered(self, block: Block, now_ns: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return a block's records in order of time, without those that have none."""
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
        """Return the stream of a block's template, made anew if template or names changed; ``None`` where there are too many."""
        key = (block.exporter, block.domain, block.template.id)
        stream = self._streams.get(key)
        if stream is not None and stream.template is block.template and stream.names is names:
            return stream
        if stream is not None and stream.template.content == block.template.content and stream.names.names == names.names:
            stream.template, stream.names = block.template, names
            return stream
        held = sum(len(other.ledger.series) for other in self._streams.values()) - (len(stream.ledger.series) if stream else 0)
        if held + block.template.counters > self._series_max:
            return None
        ledger = Ledger(SOURCE, device, replace(self._pace, interval_ns=self._pace.interval_ns or names.interval_ns))
        ledger.add(_series(block.template, names))
        # Last in the order: what was made last is the first to go on from.
        self._streams.pop(key, None)
        made = self._streams[key] = _Stream(key, block.template, names, ledger, before=stream.ledger if stream is not None else None)
        return made

    def _continue(self, stream: _Stream, times: np.ndarray, now_ns: int | None) -> list[Batch]:
        """Let a fresh stream go on from what is known of its counters; return the last rows of the generation that it replaces."""
        stream.fresh = False
        near = [one.ledger for other, one in reversed(self._streams.items()) if other[:2] == stream.key[:2] and one is not stream]
        before, stream.before = stream.before, None
        if any(stream.ledger.adopt(ledger, times) for ledger in ([before] if before is not None else []) + near[:_NEAR_MAX]):
            self._counts["streams_continued"] += 1
        if before is None:
            return []
        self._counts.update(_told(before))
        return before.flush(now_ns)

    def _retire(self, key: tuple[int, int, int], now_ns: int | None) -> list[Batch]:
        stream = self._streams.pop(key)
        self._counts.update(_told(stream.ledger))
        return stream.ledger.flush(now_ns)


def _told(ledger: Ledger) -> dict[str, int]:
    return {"samples": ledger.samples, **dict(zip(kernel.COUNTS, ledger.counts.tolist(), strict=True))}


def _series(template: Template, names: Names) -> list:
    columns = zip(*(column.tolist() for column in (template.types, template.stats, template.labels, template.widths)), strict=True)
    return [series(kind, stat, names.of(kind, label), 8 * width) for kind, stat, label, width in columns]


def _slices(pieces: Sequence[tuple[_Stream, np.ndarray, np.ndarray]]) -> Iterator[tuple[_Stream, np.ndarray, np.ndarray]]:
    """Yield the pieces cut into slices of time, slice by slice; no more slices than a call can bear."""
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


def gaps(losses: Sequence[tuple[str, Loss]], now_ns: int) -> list[Batch]:
    """Return losses of devices as rows of ``gap``."""
    return readings.gaps(SOURCE, [(device, loss.what, loss.missed, loss.reason, loss.first) for device, loss in losses], now_ns)
