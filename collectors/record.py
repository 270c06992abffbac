"""The record service: live batches go to a file instead of the bus."""

from pathlib import Path
from typing import Any

from ..pipeline.clock import Clock
from ..pipeline.report import Report
from .base import Live
from .recordings.recording import Recorder
from .service import DRAIN_S, configured


class RecordService:
    """Runs the live collectors into a recording."""

    def __init__(self, config: Any, path: Path, clock: Clock, report: Report) -> None:
        self._config = config
        self._clock = clock
        self._report = report
        self._recorder = Recorder(path, clock)
        self._live: dict[str, Live] = {}
        self.rows = 0

    def start(self) -> None:
        """Start the collectors. Raises a ``WeftError`` when one cannot open its source."""
        for name, live in configured(self._config, self._clock).items():
            live.start()
            self._live[name] = live

    def step(self) -> None:
        """Write the batches since the last step and wait for the next. Raises ``ServiceError`` when the file cannot be written."""
        self._drain()
        self._clock.wait(DRAIN_S)

    def stop(self) -> None:
        """Stop the collectors and close the file. Idempotent."""
        for live in self._live.values():
            live.stop()
        self._drain()
        self._live.clear()
        self._recorder.close()

    def _drain(self) -> None:
        for live in self._live.values():
            for batch in live.drain():
                self._recorder.append(batch)
                self.rows += batch.frame.height
