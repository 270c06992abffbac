"""Section ``[collect.hft]``, apart from what it configures: who asks for settings does not pay for kernels."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..pipeline.clock import NS_PER_MS, NS_PER_S
from ..pipeline.errors import ConfigError
from .listen import Sources

if TYPE_CHECKING:
    from .decode.ipfix import Decoder
    from .readings import Pace

SOURCE = "hft"
PORT = 4739


@dataclass(frozen=True)
class HftConfig(Sources):
    """Section ``[collect.hft]``."""

    enabled: bool = False
    # Where to listen; port 0 takes a free one.
    address: str = "127.0.0.1"
    port: int = PORT
    udp: bool = True
    tcp: bool = True
    # Names of devices by address.
    devices: dict[str, str] = field(default_factory=dict)
    # File with the names of labels (and templates) by device or address; "*" for all others. Read again when it changes.
    sessions: dict[str, str] = field(default_factory=dict)
    # Time between two polls in microseconds; 0 = as the session says, or as the times tell.
    interval_us: float = 0.0
    # One row of counters per object in so much time.
    counters_interval_ms: int = 1000
    # Line rate by port; "" for all others.
    line_rate_bps: dict[str, int] = field(default_factory=dict)
    # Folder in which templates are kept over a restart; empty = nowhere.
    state: str = ""
    buffer_bytes_max: int = 64 * 2**20
    receive_buffer_bytes: int = 32 * 2**20
    connections_max: int = 32
    connection_bytes_max: int = 8 * 2**20
    # Data that waits for its template: so much, so long.
    held_bytes_max: int = 16 * 2**20
    held_s_max: float = 60.0
    exporters_max: int = 1024
    templates_max: int = 1024
    series_max: int = 500_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.interval_us <= 1_000_000 or 0 < self.interval_us < 1:
            raise ConfigError("collect.hft.interval_us", f"{self.interval_us} is out of range", "choose from 1 to 1000000, or 0")
        if not 1 <= self.counters_interval_ms <= 3_600_000:
            raise ConfigError(
                "collect.hft.counters_interval_ms", f"{self.counters_interval_ms} is out of range", "choose from 1 to 3600000"
            )
        if not 1 <= self.exporters_max <= 16_384:
            raise ConfigError("collect.hft.exporters_max", f"{self.exporters_max} is out of range", "choose from 1 to 16384")

    @property
    def pace(self) -> "Pace":
        from .readings import Pace

        return Pace(round(self.interval_us * 1000), self.counters_interval_ms * NS_PER_MS, self.line_rate_bps)

    def decoder(self) -> "Decoder":
        from .decode.ipfix import Decoder

        limits = {"held_bytes_max": self.held_bytes_max, "held_ns_max": int(self.held_s_max * NS_PER_S)}
        return Decoder(**limits, templates_max=self.templates_max)
