"""What a collector is: bytes to columns, with loss admitted.

A collector computes no metric and keeps no window. It comes in two shapes, and a source may have both: ``Live``
is drained by the collect service every 100 ms; ``Recorded`` turns a file into the same batches, in time order
and always the same ones, so that a replay that was killed goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from ..pipeline.clock import Clock


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one family; ``ended`` names devices of which no more rows follow in this recording."""

    family: str
    frame: pl.DataFrame
    ended: tuple[str, ...] = ()


class Live(Protocol):
    """A source that runs by itself between ``start`` and ``stop``."""

    def start(self) -> None:
        """Open the source. Raises a ``WeftError`` with the mend when it cannot be had."""
        ...

    def drain(self) -> list[Batch]:
        """Return what has come since the last call, bounded; never block. Raises nothing for bad input: counts it."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Return the collector's own counters and gauges by Prometheus style name, for the self metrics."""
        ...

    def stop(self) -> None:
        """Close the source. Idempotent; ``drain`` may be called once more after it."""
        ...


class Recorded(Protocol):
    """A recording; the same file and options always give the same batches."""

    def batches(self) -> Iterator[Batch]:
        """Yield batches in time order over all devices.

        Raises ``InputError`` at the first place that cannot be decoded, after everything good before it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say of a recording: the line rate of its ports, and how it is cut."""

    line_rate_bps: int | None = None
    device: str | None = None
    check_icrc: bool = False
    # Samples per run that a reader cuts its input into; any value gives the same tables.
    run_samples: int = 1000


@dataclass(frozen=True, slots=True)
class Collector:
    """One line of ``COLLECTORS``: a source, what it is, and how its two shapes are made.

    ``config`` is a frozen dataclass whose fields are the section ``[collect.<name>]`` of ``weft.toml``; a source that
    has to be asked for is off while ``config.enabled`` is false. ``recognises`` looks at a path and its first bytes. A shape
    that the source does not have is ``None``.
    """

    name: str
    doc: str
    families: tuple[str, ...]
    config: type[Any]
    # The dictionary's source whose registers its cumulative counters are, ``WIDE`` where it makes them 64 bits wide; None where it has
    # none, or where its rows name their collector themselves. ``pipeline/dictionary.toml`` repeats it for the process service.
    registers: str | None
    live: Callable[[Any, Clock], Live] | None = None
    recorded: Callable[[Path, Options], Recorded] | None = None
    recognises: Callable[[Path, bytes], bool] | None = None
    # Compiles the source's kernels by decoding a few built-in bytes; None where it has none.
    warm: Callable[[], None] | None = None


def lazy(module: str, name: str) -> Callable[..., Any]:
    """Return what a module of the collectors calls ``name``, to be called; the module, and its kernels, are loaded then, not before."""

    def call(*arguments: object) -> Any:
        return getattr(import_module(f".{module}", __package__), name)(*arguments)

    return call
