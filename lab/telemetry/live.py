"""A virtual fabric in real time: each tick is computed once this machine's clock has passed its end.

It is a live source like the collectors, drained by the same service: it returns the rows that no protocol carries (see ``scene.CARRIED``),
while ``carry`` sends the telemetry that the ordinary collectors receive. A fabric that is too large for the machine falls behind; the delay
is counted and logged, and timestamps stay the fabric's own.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from ...collectors.base import Batch
from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ...pipeline.errors import ConfigError, ServiceError
from ..fabric.answers import Answers
from ..fabric.fabric import Fabric, FabricConfig, Step
from ..switch.serve import collect_toml
from . import scene
from .carry import Carriers
from .export import FabricExporter

TICK_NS = 250 * NS_PER_MS
COUNTER_NS = 500 * NS_PER_MS
# A message per device and family costs more than its rows, so rows are returned once a second, and the truth is written every two.
HAND_OUT_TICKS = 4
TRUTH_HAND_OUTS = 2
# Counters are not polled at the edges of windows, where a clock error of some ns would move half a second of bytes.
PHASE_NS = 125 * NS_PER_MS
INVENTORY_NS = 60 * NS_PER_S
# Beyond this delay rows are late for their windows.
BEHIND_NS_MAX = NS_PER_S
WARNING_NS = 10 * NS_PER_S

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """A scene (see ``scene``). ``faults`` are ``kind`` or ``kind@place``; the first begins ``onset_s`` after the start."""

    scale: str = "rail"
    jobs: int = 1
    faults: tuple[str, ...] = ()
    seed: int = 1
    onset_s: float = 10.0
    apart_s: float = 5.0
    packet_sampling: int = 2_000_000
    # Keys of ``scene.CARRIED``; one switch each.
    protocols: tuple[str, ...] = tuple(scene.CARRIED)


class LiveFabric:
    """A ``Live`` source. ``folder`` gets the settings that collect from it (``collect.toml``) and the ground truth (``truth/``)."""

    def __init__(self, config: LiveConfig, clock: Clock, folder: Path) -> None:
        self._config, self._clock, self._folder = config, clock, folder
        self._pending: list[tuple[str, pl.DataFrame]] = []
        self._steps: list[Step] = []
        self._unwritten: list[Step] = []
        self._late_ticks = self._behind_ns = self._worst_ns = 0
        self._warned_ns = -WARNING_NS
        self._inventory_ns = 0

    def start(self) -> None:
        """Build the fabric, open the protocols, write the settings to collect from them. Raises a ``WeftError``."""
        config = self._config
        topology = scene.layout(config.scale)
        faults = scene.place_faults(config.faults, topology, config.seed, config.onset_s, config.apart_s)
        self.carried = scene.carriers(topology, faults, config.protocols)
        made = FabricConfig(
            topology,
            scene.jobs(topology, config.jobs),
            faults,
            step_ns=scene.step_ns(topology),
            counter_ns=COUNTER_NS,
            packet_sampling=config.packet_sampling,
        )
        # Initialise libraries before the fabric starts.
        try:
            Fabric(made, config.seed).advance(TICK_NS)
        except ValueError as error:
            raise ConfigError("--fault", str(error), "choose another place, or another --scale") from None
        start_ns = (self._clock.now_ns() // NS_PER_S + 1) * NS_PER_S + PHASE_NS
        self.fabric = Fabric(replace(made, start_ns=start_ns), config.seed)
        self._exporter = FabricExporter(self.fabric)
        self._carriers = Carriers(self.fabric, self.carried, self._clock, self._folder)
        try:
            self._answers = Answers(self._folder / "truth", self.fabric)
            self._carriers.start()
            self._write_settings()
        except OSError as error:
            self.stop()
            raise ServiceError(f"lab: {error.filename} cannot be written ({error.strerror})", "choose another folder with --data") from None

    def drain(self) -> list[Batch]:
        """Compute the ticks that have passed, and return the rows that are due."""
        batches: list[Batch] = []
        while (end_ns := self.fabric.config.start_ns + self.fabric.now_ns + TICK_NS) <= self._clock.now_ns() and not batches:
            self._steps.append(self.fabric.advance(self.fabric.now_ns + TICK_NS))
            self._carriers.take(self._steps[-1])
            self._account(self._clock.now_ns() - end_ns)
            if len(self._steps) == HAND_OUT_TICKS:
                batches = self._hand_out()
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return the fabric's time, its delay behind this machine's clock, and the numbers of datagrams sent."""
        return {
            "weft_lab_seconds_total": self.fabric.now_ns / NS_PER_S,
            "weft_lab_behind_seconds": self._behind_ns / NS_PER_S,
            "weft_lab_behind_seconds_max": self._worst_ns / NS_PER_S,
            "weft_lab_late_ticks_total": float(self._late_ticks),
            **self._carriers.counters(),
        }

    def stop(self) -> None:
        """Close the protocols and write the rest of the truth. Idempotent."""
        self._carriers.stop()
        if self._steps or self._unwritten:
            self._answers.write(joined([*self._unwritten, *self._steps]))
            self._unwritten, self._steps = [], []
        self._answers.close()

    def _account(self, behind_ns: int) -> None:
        """Record the delay after the end of a tick; less than a tick is normal."""
        self._behind_ns = behind_ns
        self._worst_ns = max(self._worst_ns, behind_ns)
        self._late_ticks += behind_ns > TICK_NS
        if behind_ns > BEHIND_NS_MAX and self._clock.monotonic_ns() - self._warned_ns >= WARNING_NS:
            self._warned_ns = self._clock.monotonic_ns()
            _log.warning("the fabric is %.1f s behind this machine's clock; choose a smaller --scale", behind_ns / NS_PER_S)

    def _hand_out(self) -> list[Batch]:
        """Return the rows of the collected steps."""
        step, self._steps = joined(self._steps), []
        self._pending += scene.uncarried(self._exporter.frames(step), self.carried).items()
        self._unwritten.append(step)
        if len(self._unwritten) == TRUTH_HAND_OUTS:
            self._answers.write(joined(self._unwritten))
            self._unwritten = []
        return self._due()

    def _due(self) -> list[Batch]:
        """Return the pending rows whose time of receiving has passed."""
        now_ns = self._clock.now_ns()
        came: dict[str, list[pl.DataFrame]] = {}
        lazy: list[tuple[str, pl.DataFrame]] = []
        for family, frame in self._pending:
            here = frame["recv_ts"] <= now_ns
            came.setdefault(family, []).append(frame.filter(here))
            lazy += [(family, rest)] if (rest := frame.filter(~here)).height else []
        self._pending = lazy
        batches = [Batch(family, pl.concat(frames)) for family, frames in came.items()]
        if now_ns - self._inventory_ns >= INVENTORY_NS:
            # Repeated for services that started later.
            self._inventory_ns = now_ns
            batches.insert(0, Batch("inventory", self._exporter.inventory()))
        return [batch for batch in batches if batch.frame.height]

    def _write_settings(self) -> None:
        """Write the settings atomically, since a waiting process reads them at once."""
        (self._folder / "collect.toml.new").write_text(collect_toml(self._carriers.settings()))
        (self._folder / "collect.toml.new").rename(self._folder / "collect.toml")


def joined(steps: list[Step]) -> Step:
    """Return consecutive steps as one."""
    names = ("sent", "received", "depth", "flows", "iterations", "packets", "events", "latency_ns")
    columns = {name: np.concatenate([getattr(step, name) for step in steps]) for name in names}
    counters = tuple(sample for step in steps for sample in step.counters)
    left_out = sum(step.packets_left_out for step in steps)
    return Step(first_ns=steps[0].first_ns, until_ns=steps[-1].until_ns, counters=counters, packets_left_out=left_out, **columns)
