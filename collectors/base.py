"""The interface of a collector: bytes to columns, every loss reported.

A collector computes no metric and keeps no window. A source is ``Live``, ``Recorded``, or both: the collect service drains a live
one every 100 ms; a recorded one turns a file into batches in time order, always the same ones, so that a killed replay can resume.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from ..pipeline.clock import Clock
from ..pipeline.tables.families import FAMILIES


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one family; ``ended`` names devices without further rows in this recording."""

    family: str
    frame: pl.DataFrame
    ended: tuple[str, ...] = ()


def gaps(
    source: str, losses: Sequence[tuple[str, str, int | None, str, int | None]], ts: int | Sequence[int], recv_ts: int | None = None
) -> list[Batch]:
    """Return losses (device, what, missed, reason, first sequence number) at ``ts`` as rows of ``gap``."""
    if not losses:
        return []
    device, what, missed, reason, first = zip(*losses, strict=True)
    last = [None if low is None else low + number - 1 for low, number in zip(first, missed, strict=True)]
    rows = {"ts": ts, "recv_ts": ts if recv_ts is None else recv_ts, "source": source, "device": device, "epoch": 0, "what": what}
    rows |= {"from_sequence": first, "to_sequence": last, "missed": missed, "reason": reason}
    return [Batch("gap", FAMILIES["gap"].frame(rows))]


class Live(Protocol):
    """A source that runs on its own between ``start`` and ``stop``."""

    def start(self) -> None:
        """Open the source. Raises a ``WeftError`` with a hint when that fails."""
        ...

    def drain(self) -> list[Batch]:
        """Return what has arrived since the last call, bounded; never block. Bad input is counted, not raised."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Return the collector's own counters and gauges by Prometheus-style name."""
        ...

    def stop(self) -> None:
        """Close the source. Idempotent; ``drain`` may be called once more after it."""
        ...


class Recorded(Protocol):
    """A recording: the same file and options always give the same batches."""

    def batches(self) -> Iterator[Batch]:
        """Yield batches in time order over all devices.

        Raises ``InputError`` for the first place that cannot be decoded, after everything before it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """A user's options for a recording: the line rate of its ports, its device, and how it is cut."""

    line_rate_bps: int | None = None
    device: str | None = None
    check_icrc: bool = False
    # Samples per segment; any value gives the same tables.
    run_samples: int = 1000


@dataclass(frozen=True, slots=True)
class Collector:
    """One entry of ``COLLECTORS``: a source, and how its live and recorded sides are made; ``None`` where it has no such side.

    ``config`` is a frozen dataclass, the section ``[collect.<name>]`` of ``weft.toml``; a live source is off while
    ``config.enabled`` is false. ``recognises`` gets a path and its first bytes.
    """

    name: str
    doc: str
    families: tuple[str, ...]
    config: type[Any]
    # The dictionary's source whose registers the cumulative counters are; ``WIDE`` where the collector makes them 64 bits wide; None
    # where it has no counters, or its rows name their collector. ``pipeline/dictionary.toml`` repeats this for the process service.
    registers: str | None
    live: Callable[[Any, Clock], Live] | None = None
    recorded: Callable[[Path, Options], Recorded] | None = None
    recognises: Callable[[Path, bytes], bool] | None = None
    # Compiles the source's kernels by decoding a few built-in bytes; None where it has none.
    warm: Callable[[], None] | None = None


def lazy(module: str, name: str) -> Callable[..., Any]:
    """Return a function that calls ``name`` of a collectors' module; the module, and its kernels, are loaded at the first call."""

    def call(*arguments: object) -> Any:
        return getattr(import_module(f".{module}", __package__), name)(*arguments)

    return call
