"""Section ``[collect.otlp]``, and the receiver's entry in ``COLLECTORS``."""

from dataclasses import dataclass
from typing import ClassVar

from ...pipeline.dictionary import WIDE
from ...pipeline.errors import ConfigError
from ..base import Collector, lazy
from ..sampling.config import Paced

SOURCE = "otlp"


@dataclass(frozen=True)
class OtlpConfig(Paced):
    """Section ``[collect.otlp]``. The resource's attribute takes precedence over ``devices`` as the name of a device."""

    SECTION: ClassVar[str] = "collect.otlp"

    port: int = 4317
    device_attribute: str = "host.name"
    # Files (PEM) of certificate and key for TLS, and of the authority that must have signed clients' certificates.
    certificate: str = ""
    key: str = ""
    client_authority: str = ""
    request_bytes_max: int = 4 * 2**20
    requests_max: int = 64
    queue_bytes_max: int = 64 * 2**20
    series_max: int = 200_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.certificate) != bool(self.key) or (self.client_authority and not self.certificate):
            raise ConfigError("collect.otlp.certificate", "needs a key", "set certificate and key, or neither")


OTLP = Collector(
    name=SOURCE,
    doc="OTLP metrics over gRPC: SAI counters of SONiC switches as samples, anything else as readings",
    families=("burst_sample", "port", "queue", "reading", "gap"),
    config=OtlpConfig,
    registers=WIDE,
    live=lazy("otlp.receiver", "Otlp"),
    warm=lazy("otlp.points", "warm"),
)
