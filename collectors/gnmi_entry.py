"""The gNMI collector's line of the table: gRPC is loaded when a switch is dialled or a recording read, and not before."""

from pathlib import Path

from ..pipeline.clock import Clock
from .base import Collector, Live, Options, Recorded
from .gnmi_config import GnmiConfig


def _live(config: GnmiConfig, clock: Clock) -> Live:
    from .gnmi import Gnmi

    return Gnmi(config, clock)


def _recorded(path: Path, options: Options) -> Recorded:
    from .gnmi_recording import GnmiRecording

    return GnmiRecording(path, options)


def _recognises(path: Path, head: bytes) -> bool:
    from .gnmi_recording import recognises

    return recognises(path, head)


GNMI = Collector(
    name="gnmi",
    doc="switches by gNMI: counters, queues, priority flow control, link states, neighbours; and recorded responses",
    families=("port", "queue", "reading", "event", "inventory", "gap"),
    config=GnmiConfig,
    live=_live,
    recorded=_recorded,
    recognises=_recognises,
)
