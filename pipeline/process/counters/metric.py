"""Turns counter samples into deltas per window: ``port_counters`` and the like, ``quality``, ``event``.

The whole delta between two samples counts in the window in which it ends, with the time that it covers. Rates divide by covered time, and
nothing is spread over windows without samples. So the windows of a counter add up to its last value minus its first. Sources are never
mixed: two sources of one port have separate rows, and the views choose.

The passes are in ``kernel.py`` and ``storms.py``; ``walk.py`` turns their arrays into rows. The state of each object (last values,
link, storm) is carried from window to window, for at most ``objects_max`` objects of a device; beyond that, the objects silent for longest
are dropped and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ...errors import ConfigError
from ...tables.families import FAMILIES
from ...tables.states import STATES
from ..base import Closing, WindowMetric
from .columns import CounterPlan, columns_of, portions
from .state import StatesByDevice
from .walk import Walk, end_of_storms

# Rows of one walk: some 25 MB, so that memory does not grow with the number of closings.
ROWS_MAX = 65_536

# The bounds of SONiC's pause watchdog.
STORM_MS_MIN = 100

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class CounterConfig:
    """When pauses become a storm, and the number of objects of a device with carried state.

    A storm begins when a queue has been stopped for ``storm_detection_ms`` (100 to 5000), and ends when it has been free for
    ``storm_restoration_ms`` (100 to 60000).
    """

    storm_detection_ms: int = 200
    storm_restoration_ms: int = 200
    objects_max: int = 16_384

    def __post_init__(self) -> None:
        for name, most in (("storm_detection_ms", 5000), ("storm_restoration_ms", 60_000)):
            if not STORM_MS_MIN <= getattr(self, name) <= most:
                hint = f"choose from {STORM_MS_MIN} to {most}"
                raise ConfigError(f"process.counters.{name}", f"{getattr(self, name)} is out of range", hint)
        if self.objects_max < 1:
            raise ConfigError("process.counters.objects_max", f"{self.objects_max} is out of range", "choose 1 or more")


class CounterMetric(WindowMetric):
    """``WindowMetric`` of the families ``port``, ``queue``, ``nic`` and ``nvlink``."""

    def __init__(self, family: str, config: CounterConfig | None = None) -> None:
        self.family = family
        self._config = config or CounterConfig()
        self._plan = CounterPlan(family)
        self._storm_ns = tuple(ms * _NS_PER_MS for ms in (self._config.storm_detection_ms, self._config.storm_restoration_ms))
        self._states = StatesByDevice(self._plan, self._config.objects_max)

    def close(self, closing: Closing) -> dict[str, pl.DataFrame]:
        """Return the rows of the closed windows; see ``WindowMetric``."""
        return self.close_all([closing])

    def close_all(self, closings: Sequence[Closing]) -> dict[str, pl.DataFrame]:
        """Return the rows of several devices; see ``WindowMetric``."""
        out: dict[str, list[pl.DataFrame]] = {self._plan.table: [], "quality": [], "event": []}
        for portion in portions(closings, ROWS_MAX):
            devices = dict.fromkeys(closing.device for closing in portion)
            columns = columns_of(self._plan, portion)
            known, code = self._states.take(devices, columns)
            # The limit applies at the ends of windows. If it cannot be reached, one call computes all; the result is the same.
            parts = columns.by_window() if self._states.overflows(known) else (columns,)
            for part in parts:
                if part is not columns:
                    known, code = self._states.take(devices, part)
                if part.rows:
                    for name, frame in Walk(self._plan, known, code, part).run(*self._storm_ns).items():
                        out[name].append(frame)
                self._states.store(known)
            for known in [self._states.forget(closing.device) for closing in portion if closing.ended]:
                if known is not None and self.family == "queue":
                    out["event"].append(end_of_storms(known))
        return {name: pl.concat([(STATES.get(name) or FAMILIES[name]).empty(), *frames]) for name, frames in out.items()}

    def carry(self, device: str) -> bytes:
        """Return the states of the objects of ``device``, an Arrow stream with a row for each."""
        return self._states.carry(device)

    def restore(self, device: str, carry: bytes) -> None:
        """Restore a carry."""
        self._states.restore(device, carry)

    def counters(self) -> dict[str, float]:
        """Return the number of objects dropped because a device had too many."""
        return {f"weft_pipeline_{self.family}_objects_dropped_total": float(self._states.dropped)}
