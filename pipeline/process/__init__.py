"""The window metrics, one line per family that has one."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .base import WindowMetric
from .bursts.metric import BurstConfig, BurstMetric
from .counters.metric import CounterConfig, CounterMetric
from .gauges import GpuMetric
from .latency import LatencyMetric
from .packets.metric import PacketMetric
from .readings import ReadingMetric


@dataclass(frozen=True, slots=True)
class MetricConfig:
    """The settings of the metrics; see ``BurstConfig`` and ``CounterConfig``."""

    bursts: BurstConfig = field(default_factory=BurstConfig)
    counters: CounterConfig = field(default_factory=CounterConfig)


METRICS: dict[str, Callable[[MetricConfig], WindowMetric]] = {
    "burst_sample": lambda config: BurstMetric(config.bursts),
    "packet": lambda _config: PacketMetric(),
    "port": lambda config: CounterMetric("port", config.counters),
    "queue": lambda config: CounterMetric("queue", config.counters),
    "nic": lambda config: CounterMetric("nic", config.counters),
    "nvlink": lambda config: CounterMetric("nvlink", config.counters),
    "gpu": lambda _config: GpuMetric(),
    "latency": lambda _config: LatencyMetric(),
    "reading": lambda _config: ReadingMetric(),
}
