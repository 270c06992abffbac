"""The process service: frames of samples in, sufficient statistics of closed windows out.

One bus transaction holds the rows of the windows that a step closed, the input positions and the state of the open windows. A
service that is killed at any instant repeats nothing and loses nothing. Several members share the partitions. All rows of a
device are in one partition, so one member computes every statistic of a device.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from ..bus import Bus, Message, TopicPartition, Transaction
from ..clock import Clock
from ..codec import headers, messages
from ..memory import give_back, keep_freed
from ..report import Report, lag
from ..tables.families import FAMILIES
from ..tables.field import Table
from ..tables.states import STATES
from . import METRICS, MetricConfig
from .base import Closing
from .bursts.metric import BurstConfig
from .counters.metric import CounterConfig
from .warm import warm
from .windows import PartitionWindows, WindowConfig

GROUP = "process"
POLL_S = 0.05
LAG_EVERY_NS = 2_000_000_000
COMPILE_NOTICE_S = 5.0

_log = logging.getLogger("weft")


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """Windows and thresholds; see ``WindowConfig``, ``BurstConfig`` and ``CounterConfig``."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    bursts: BurstConfig = field(default_factory=BurstConfig)
    counters: CounterConfig = field(default_factory=CounterConfig)
    poll_bytes_max: int = 8 * 1024 * 1024


class ProcessService:
    """One member of the group that computes windows."""

    topics = tuple(FAMILIES[family].topic for family in METRICS)

    def __init__(self, config: ProcessConfig, bus: Bus, clock: Clock, report: Report, member: str = "process-0") -> None:
        self._config = config
        self._bus = bus
        self._clock = clock
        self._report = report
        self._member = member
        self._family = {FAMILIES[family].topic: family for family in METRICS}
        metrics = MetricConfig(config.bursts, config.counters)
        self._metrics = {FAMILIES[family].topic: make(metrics) for family, make in METRICS.items()}
        self._partitions: dict[TopicPartition, PartitionWindows] = {}
        self._closed: set[TopicPartition] = set()
        self._step_failed = False
        self._lag_ns = 0

    def start(self) -> None:
        """Join the group. Raises ``BusError``."""
        # Until ``give_back``, which runs every two seconds.
        keep_freed()
        # Kernels compiled at installation load in a second; otherwise the user sees why the service waits.
        notice = threading.Timer(COMPILE_NOTICE_S, _log.warning, ["compiling kernels, once: the first windows appear in a minute or two"])
        notice.start()
        try:
            warm()
        finally:
            notice.cancel()
        self._producer = self._bus.producer(self._member)
        self._consumer = self._bus.consumer(
            self.topics, group=GROUP, member=self._member, on_assign=self._assigned, on_revoke=self._revoked
        )

    def step(self) -> None:
        """Read once, close the windows that are due, publish their rows. Raises ``BusError`` or ``FencedError``; then call again."""
        self._restore_missing()
        read = self._consumer.poll(POLL_S, self._config.poll_bytes_max)
        self._step_failed = True
        now = self._clock.now_ns()
        touched = self._add(read, now)
        self._publish(touched, self._close(now))
        self._step_failed = False
        if self._clock.monotonic_ns() >= self._lag_ns:
            self._lag_ns = self._clock.monotonic_ns() + LAG_EVERY_NS
            self._report.set("weft_process_lag_messages", lag(self._bus, GROUP, list(self.topics)))
            for metric in self._metrics.values():
                self._report.update(metric.counters())
            give_back()
        self._report.publish(self._producer)

    def stop(self) -> None:
        """Leave the group; the next member rebuilds the open windows from the log. Idempotent."""
        self._consumer.close()
        self._producer.close()

    def _restore_missing(self) -> None:
        """Restore partitions from the bus that have no state here, and all of them after a step that failed."""
        if self._step_failed:
            self._revoked(frozenset(self._partitions))
            self._step_failed = False
        self._assigned(self._consumer.assignment() - self._partitions.keys())

    def _add(self, read: Sequence[Message], now: int) -> set[TopicPartition]:
        touched = set()
        for loss in self._consumer.lost():
            if loss.partition in self._partitions:
                self._partitions[loss.partition].lost(loss.from_offset, loss.to_offset)
                self._report.complain(
                    f"{loss.to_offset - loss.from_offset} messages were dropped by the log before the process service read them",
                    "bus_retention",
                )
        for message in read:
            partition = TopicPartition(message.topic, message.partition)
            self._partitions[partition].add(message, now)
            if message.headers.get("end") == "1":
                # The end of a recording commits the partition even if no window closes.
                self._closed.add(partition)
            self._report.count("weft_process_messages_total", label=self._family[message.topic])
            self._report.count("weft_process_bytes_total", len(message.value), label=self._family[message.topic])
            touched.add(partition)
        return touched

    def _close(self, now: int) -> dict[TopicPartition, dict[str, pl.DataFrame]]:
        """Close the windows that are due and return their rows by table, under one of the partitions.

        Devices that close the same windows are computed together across partitions: readers find rows of state tables by key, not
        by partition.
        """
        closings: dict[str, list[Closing]] = {}
        first: dict[str, TopicPartition] = {}
        for partition, windows in self._partitions.items():
            mine = windows.closings(now)
            if mine:
                first.setdefault(partition.topic, partition)
                closings.setdefault(partition.topic, []).extend(mine)
                self._closed.add(partition)
        made = {partition: tables for partition, windows in self._partitions.items() if (tables := windows.take())}
        for topic, together in closings.items():
            tables = {name: frame for name, frame in self._metrics[topic].close_all(together).items() if frame.height}
            mine = made.setdefault(first[topic], {})
            for name, frame in tables.items():
                mine[name] = pl.concat([mine[name], frame]) if name in mine else frame
        return made

    def _publish(self, touched: set[TopicPartition], made: dict[TopicPartition, dict[str, pl.DataFrame]]) -> None:
        closed, self._closed = self._closed, set()
        if not made and not closed:
            return
        with self._producer.transaction() as transaction:
            offsets = {}
            # Commit partitions without closed windows too, so that the lag is right.
            for partition in made.keys() | touched | closed:
                windows = self._partitions[partition]
                for name, frame in made.get(partition, {}).items():
                    self._send(transaction, _table(name), partition.partition, frame)
                offsets[partition] = windows.resume(self._consumer.position(partition))
                transaction.remember(_memory(partition), windows.remember(offsets[partition]))
            transaction.commit(self._consumer, offsets)

    def _send(self, transaction: Transaction, table: Table, partition: int, frame: pl.DataFrame) -> None:
        for value, rows in messages(frame, table):
            self._report.count("weft_process_rows_total", rows, label=table.name)
            transaction.publish(table.topic, str(partition), value, headers(table, source=self._member), partition=partition)

    def _assigned(self, partitions: frozenset[TopicPartition]) -> None:
        for partition in partitions:
            if partition in self._partitions:
                self._partitions.pop(partition).forget()
            windows = PartitionWindows(self._metrics[partition.topic], self._config.windows)
            offset = windows.restore(self._bus.recall(_memory(partition)), self._clock.now_ns())
            self._partitions[partition] = windows
            self._consumer.seek(partition, offset)

    def _revoked(self, partitions: frozenset[TopicPartition]) -> None:
        for partition in partitions:
            if partition in self._partitions:
                self._partitions.pop(partition).forget()


def _memory(partition: TopicPartition) -> str:
    return f"{GROUP}/{partition.topic}/{partition.partition}"


def _table(name: str) -> Table:
    return STATES.get(name) or FAMILIES[name]
