"""The window metrics, one line per family that has one."""

from collections.abc import Callable

from .base import WindowMetric
from .bursts import BurstConfig, BurstMetric
from .packets import PacketMetric

METRICS: dict[str, Callable[[BurstConfig], WindowMetric]] = {
    "burst_sample": BurstMetric,
    "packet": lambda _config: PacketMetric(),
}
