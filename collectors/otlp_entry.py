"""The OTLP receiver's settings and its line in the table of collectors; kernels are loaded when one is made, and not before."""

from dataclasses import dataclass, field

from ..pipeline.clock import Clock
from ..pipeline.errors import ConfigError
from .base import Collector, Live
from .listen import Sources

SOURCE = "otlp"


@dataclass(frozen=True)
class OtlpConfig(Sources):
    """Section ``[collect.otlp]``."""

    enabled: bool = False
    # Where to listen; port 0 takes a free one.
    address: str = "127.0.0.1"
    port: int = 4317
    # Names of devices by address; the resource's attribute goes before it where a resource has it.
    devices: dict[str, str] = field(default_factory=dict)
    device_attribute: str = "host.name"
    # Time between two readings in microseconds; 0 = as the times tell.
    interval_us: float = 0.0
    # One row of counters per object in so much time.
    counters_interval_ms: int = 1000
    # Line rate by port; "" for all others.
    line_rate_bps: dict[str, int] = field(default_factory=dict)
    # Files of certificate and key (PEM) for TLS, and of the authority that clients have to be signed by.
    certificate: str = ""
    key: str = ""
    client_authority: str = ""
    request_bytes_max: int = 4 * 2**20
    requests_max: int = 64
    queue_bytes_max: int = 64 * 2**20
    series_max: int = 200_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.interval_us <= 1_000_000 or 0 < self.interval_us < 1:
            raise ConfigError("collect.otlp.interval_us", f"{self.interval_us} is out of range", "choose from 1 to 1000000, or 0")
        if not 1 <= self.counters_interval_ms <= 3_600_000:
            raise ConfigError(
                "collect.otlp.counters_interval_ms", f"{self.counters_interval_ms} is out of range", "choose from 1 to 3600000"
            )
        if bool(self.certificate) != bool(self.key) or (self.client_authority and not self.certificate):
            raise ConfigError("collect.otlp.certificate", "goes with a key", "give certificate and key, or neither")


def _live(config: OtlpConfig, clock: Clock) -> Live:
    from .otlp import Otlp

    return Otlp(config, clock)


OTLP = Collector(
    name=SOURCE,
    doc="OTLP metrics over gRPC: SAI counters of SONiC switches as samples, anything else as readings",
    families=("burst_sample", "port", "queue", "reading", "gap"),
    config=OtlpConfig,
    live=_live,
)
