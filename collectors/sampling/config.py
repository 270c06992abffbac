"""Settings that the collectors of fast counters share: intervals, line rates and senders."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ...pipeline.clock import NS_PER_MS
from ...pipeline.errors import ConfigError
from ..wire.listen import Sources

if TYPE_CHECKING:
    from .readings import Pace


@dataclass(frozen=True)
class Paced(Sources):
    """The part of a section on how counter samples become rows; ``SECTION`` is its name in messages."""

    SECTION: ClassVar[str]

    enabled: bool = False
    # Where to listen; port 0 takes a free one.
    address: str = "127.0.0.1"
    port: int = 0
    # Names of devices by address.
    devices: dict[str, str] = field(default_factory=dict)
    # Interval of the poll in microseconds; 0 = as the device reports it, else detected.
    interval_us: float = 0.0
    # Time between two rows of counters of an object.
    counters_interval_ms: int = 1000
    # Line rate by port; "" for all others.
    line_rate_bps: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.interval_us <= 1_000_000 and self.interval_us != 0:
            self.refuse("interval_us", "choose from 1 to 1000000, or 0")
        if not 1 <= self.counters_interval_ms <= 3_600_000:
            self.refuse("counters_interval_ms", "choose from 1 to 3600000")

    def refuse(self, name: str, hint: str) -> None:
        """Raise ``ConfigError``: the setting of this name is out of range."""
        raise ConfigError(f"{self.SECTION}.{name}", f"{getattr(self, name)} is out of range", hint)

    @property
    def pace(self) -> "Pace":
        from .readings import Pace

        return Pace(round(self.interval_us * 1000), self.counters_interval_ms * NS_PER_MS, self.line_rate_bps)
