"""The line of high-frequency telemetry in the table of collectors; kernels are loaded when one is made, and not before."""

from pathlib import Path

from ..pipeline.clock import Clock
from .base import Collector, Live, Options, Recorded
from .hft_config import SOURCE, HftConfig


def _live(config: HftConfig, clock: Clock) -> Live:
    from .hft import Hft

    return Hft(config, clock)


def _recorded(path: Path, options: Options) -> Recorded:
    from .hft_recording import HftRecording

    return HftRecording(path, options)


def _recognises(path: Path, head: bytes) -> bool:
    from .hft_recording import recognises

    return recognises(path, head)


HFT = Collector(
    name=SOURCE,
    doc="SONiC high-frequency telemetry: IPFIX with SAI counters over UDP or TCP, or in a file",
    families=("burst_sample", "port", "queue", "reading", "gap"),
    config=HftConfig,
    live=_live,
    recorded=_recorded,
    recognises=_recognises,
)
