"""Segments in memory to batches of ``burst_sample`` in time order: the last step of every recorded source.

A recording holds each port's samples one after another; the pipeline needs all ports side by side in time. Time is cut into slices of
at least a second; in each slice, each device gives one batch, its segments sorted by time. Segments are cut at the edges of slices and
after every ``run_samples`` samples; any number gives the same samples. Memory is that of the samples plus one slice.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ...pipeline import histogram
from ...pipeline.clock import NS_PER_S
from ...pipeline.errors import InputError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch

BURST_SAMPLE = FAMILIES["burst_sample"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive samples of one signal of one port, the first at ``ts``, each covering ``interval_ns``."""

    device: str
    port: str
    signal: str
    ts: int
    interval_ns: int
    values: np.ndarray
    speed_bps: int | None = None
    queue: str = ""
    epoch: int = 0

    @property
    def end_ts(self) -> int:
        return self.ts + len(self.values) * self.interval_ns


def slices(segments: Sequence[Segment], source: str, run_samples: int) -> Iterator[Batch]:
    """Yield the samples as batches, slice by slice, in each slice device by device."""
    segments = [one for one in segments if len(one.values)]
    if not segments:
        return
    starts, ends, steps = (np.array([getattr(one, name) for one in segments], dtype=np.int64) for name in ("ts", "end_ts", "interval_ns"))
    slice_ns = max(1, -(-run_samples * int(steps.min()) // NS_PER_S)) * NS_PER_S
    at = int(starts.min()) // slice_ns * slice_ns
    while True:
        edge = at + slice_ns
        frame = _cut([segments[index] for index in np.flatnonzero((starts < edge) & (ends > at))], source, at, edge, run_samples)
        for part in frame.partition_by("device", maintain_order=True):
            yield Batch("burst_sample", part)
        following = starts + np.maximum(0, -((starts - edge) // steps)) * steps
        following = following[following < ends]
        if not len(following):
            return
        at = int(following.min()) // slice_ns * slice_ns


def _cut(segments: Sequence[Segment], source: str, from_ts: int, to_ts: int, run_samples: int) -> pl.DataFrame:
    """Return the samples that start in the slice, as segments sorted by device, time, port and signal."""
    owner, firsts, pieces, lengths = [], [], [], []
    for index, one in enumerate(segments):
        first = max(0, -((one.ts - from_ts) // one.interval_ns))
        last = min(len(one.values), -((one.ts - to_ts) // one.interval_ns))
        if first >= last:
            continue
        inner = np.arange(first // run_samples * run_samples + run_samples, last, run_samples, dtype=np.int64)
        cuts = np.concatenate(([first], inner, [last]))
        owner.append(np.full(len(cuts) - 1, index))
        firsts.append(cuts[:-1])
        lengths.append(np.diff(cuts))
        pieces.append(one.values[first:last])
    if not pieces:
        return BURST_SAMPLE.empty()
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    cut = pl.DataFrame({"owner": np.concatenate(owner), "first": np.concatenate(firsts)}).with_columns(
        histogram.lists("values", offsets, pl.Series(np.concatenate(pieces)))
    )
    return _described(cut, segments, source).sort("device", "ts", "port", "queue", "signal", maintain_order=True)


def _described(cut: pl.DataFrame, segments: Sequence[Segment], source: str) -> pl.DataFrame:
    names = ("device", "port", "queue", "signal", "interval_ns", "speed_bps", "epoch")
    known = pl.DataFrame(
        [pl.Series(name, [getattr(one, name) for one in segments], dtype=BURST_SAMPLE.polars[name]) for name in names]
        + [pl.Series("start", [one.ts for one in segments], dtype=pl.Int64), pl.Series("owner", range(len(segments)), dtype=pl.Int64)]
    )
    ts = pl.col("start") + pl.col("first") * pl.col("interval_ns")
    joined = cut.join(known, on="owner", how="left", maintain_order="left").with_columns(ts=ts, recv_ts=ts, source=pl.lit(source))
    return BURST_SAMPLE.frame(joined)


def closing(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass the batches on; the last one names all devices in ``ended``, even when an ``InputError`` follows it."""
    devices: set[str] = set()
    last: Batch | None = None
    fault: InputError | None = None
    source = iter(batches)
    while True:
        try:
            batch = next(source)
        except StopIteration:
            break
        except InputError as error:
            fault = error
            break
        if last is not None:
            yield last
        devices.update(batch.frame["device"].drop_nulls().unique().to_list())
        last = batch
    if last is not None:
        yield replace(last, ended=tuple(sorted(devices)))
    if fault is not None:
        raise fault
