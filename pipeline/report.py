"""Weft's own counters and gauges, which travel as rows like any other data.

A service sets them in a ``Report`` and publishes it every few seconds as family ``self_metric``; the Pipeline page and the view
``pipeline`` show them. Names follow Prometheus: ``weft_<room>_<what>_<unit>``, counters end in ``_total``.
"""

import logging
import resource
import socket
from collections.abc import Mapping
from typing import Self

import polars as pl

from .bus import Bus, Producer
from .clock import NS_PER_S, Clock
from .codec import encode, headers
from .errors import BusError, FencedError
from .tables.families import FAMILIES

PUBLISH_EVERY_S = 5.0

# Warnings of one kind are logged at most this often; suppressed ones are counted.
COMPLAIN_EVERY_S = 10.0

log = logging.getLogger("weft")


class Report:
    """The counters of one service."""

    def __init__(self, service: str, host: str, clock: Clock) -> None:
        self.service = service
        self._host = host
        self._clock = clock
        self._values: dict[tuple[str, str], float] = {}
        self._due_ns = 0
        self._complained: dict[str, tuple[int, int]] = {}

    @classmethod
    def of_this_host(cls, service: str, clock: Clock) -> Self:
        """Return the report of a service on this host."""
        return cls(service, socket.gethostname(), clock)

    def count(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter."""
        self._values[name, label] = self._values.get((name, label), 0.0) + amount

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge, or a counter that another component accumulates."""
        self._values[name, label] = float(value)

    def update(self, values: Mapping[str, float], label: str = "") -> None:
        """Set several at once."""
        for name, value in values.items():
            self.set(name, value, label)

    def complain(self, problem: str, kind: str) -> None:
        """Count a problem that does not stop the service, and log it at a bounded rate per ``kind``."""
        self.count("weft_errors_total", label=kind)
        last, suppressed = self._complained.get(kind, (-(10**18), 0))
        now = self._clock.monotonic_ns()
        if now - last < COMPLAIN_EVERY_S * NS_PER_S:
            self._complained[kind] = (last, suppressed + 1)
            return
        self._complained[kind] = (now, 0)
        log.warning("%s: %s%s", self.service, problem, f" ({suppressed} more since the last)" if suppressed else "")

    def frame(self) -> pl.DataFrame:
        """Return all values as rows of ``self_metric``."""
        self.set("weft_process_resident_bytes", resident_bytes())
        self.set("weft_process_cpu_seconds_total", sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        now = self._clock.now_ns()
        rows = [(now, now, self.service, self._host, 0, name, label, value) for (name, label), value in self._values.items()]
        return pl.DataFrame(rows, schema=FAMILIES["self_metric"].polars, orient="row")

    def publish(self, producer: Producer, *, force: bool = False) -> None:
        """Publish the values if they are due. An unreachable bus is logged, not raised."""
        now = self._clock.monotonic_ns()
        if now < self._due_ns and not force:
            return
        self._due_ns = now + int(PUBLISH_EVERY_S * NS_PER_S)
        table = FAMILIES["self_metric"]
        try:
            with producer.transaction() as transaction:
                transaction.publish(table.topic, self.service, encode(self.frame(), table), headers(table, source=self.service))
        except (BusError, FencedError) as error:
            self.complain(str(error), "self_metric")


def lag(bus: Bus, group: str, topics: list[str]) -> int:
    """Return the number of offsets of ``topics`` that the group has not committed."""
    ends, done = bus.ends(topics), bus.committed(group, topics)
    return sum(max(0, end - done.get(partition, 0)) for partition, end in ends.items())


def resident_bytes() -> int:
    """Return the resident memory of this process (its peak where the system does not report the current value)."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
