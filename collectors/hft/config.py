"""Section ``[collect.hft]`` and the collector's entry of the table, without the modules that it runs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ...pipeline.clock import NS_PER_S
from ...pipeline.dictionary import WIDE
from ..base import Collector, lazy
from ..sampling.config import Paced

if TYPE_CHECKING:
    from .ipfix import IpfixDecoder

SOURCE = "hft"
PORT = 4739


@dataclass(frozen=True)
class HftConfig(Paced):
    """Section ``[collect.hft]``."""

    SECTION: ClassVar[str] = "collect.hft"

    port: int = PORT
    udp: bool = True
    tcp: bool = True
    # Files with names of labels (and templates) by device or address, "*" for all others; read again when they change.
    sessions: dict[str, str] = field(default_factory=dict)
    # Folder in which templates are saved for a restart; empty = none.
    state: str = ""
    buffer_bytes_max: int = 64 * 2**20
    receive_buffer_bytes: int = 32 * 2**20
    connections_max: int = 32
    connection_bytes_max: int = 8 * 2**20
    # Limits on data that waits for its template.
    held_bytes_max: int = 16 * 2**20
    held_s_max: float = 60.0
    exporters_max: int = 1024
    templates_max: int = 1024
    series_max: int = 500_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.exporters_max <= 16_384:
            self.refuse("exporters_max", "choose from 1 to 16384")

    def decoder(self) -> "IpfixDecoder":
        from .ipfix import IpfixDecoder

        limits = {"held_bytes_max": self.held_bytes_max, "held_ns_max": int(self.held_s_max * NS_PER_S)}
        return IpfixDecoder(**limits, templates_max=self.templates_max)


HFT = Collector(
    name=SOURCE,
    doc="SONiC high-frequency telemetry: IPFIX with SAI counters over UDP or TCP, or in a file",
    families=("burst_sample", "port", "queue", "reading", "gap"),
    config=HftConfig,
    registers=WIDE,
    live=lazy("hft.receiver", "Hft"),
    recorded=lazy("hft.recording", "HftRecording"),
    recognises=lazy("hft.recording", "recognises"),
    warm=lazy("hft.receiver", "warm"),
)
