"""The analyze service: stores the rows of the process services, evaluates rules over closed windows, publishes snapshots for readers.

One loop and one connection. Messages that arrive within a short time are stored in one transaction with their positions. The
rules are evaluated directly after, on the writer's own tables, so an alert does not wait for a snapshot.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ..pipeline.bus import Bus, Message, Producer, TopicPartition
from ..pipeline.clock import NS_PER_S, Clock
from ..pipeline.errors import BusError, FencedError, StoreError
from ..pipeline.memory import give_back
from ..pipeline.report import Report
from ..pipeline.tables.field import RESOLUTIONS_NS, WINDOW_NS
from . import alerts
from .alerts.config import AlertsConfig
from .alerts.evaluate import Evaluator
from .alerts.outbox import Outbox
from .alerts.rules import load_rules
from .notify import NotifyConfig, build_notifiers, endpoints_of
from .notify.base import Delivery, DeliveryResult
from .notify.sender import NotificationSender
from .store.archive import Archive, ArchiveConfig
from .store.lag import POSITIONS_KEY, RAW_SAMPLES_KEY, packed
from .store.publish import PublishConfig, Publisher
from .store.samples import RawSamples, RawSamplesConfig
from .store.sink import Sink
from .store.writer import Store, StoreConfig

# Messages of this much time, or this many bytes, are stored together: a transaction costs more than its rows, and evaluating one window
# costs as much as evaluating twenty.
GATHER_S = 0.25
GATHER_BYTES_MAX = 6 * 1024 * 1024

# Windows that closed longer ago are history and not urgent: more of them are stored and evaluated together.
HISTORY_S = 5.0
GATHER_HISTORY_S = 1.0
EVALUATE_HISTORY_S = 1.0
POLL_S = 0.05
ARCHIVE_EVERY_S = 30.0

# Live roll-ups stay in memory at most this long; those of history are folded when memory is full.
FOLD_EVERY_S = 2.0

# How long to wait before a store that could not be written is opened again: a full disk may have space by then.
REOPEN_S = 1.0

# At the end, raw samples are read from the bus for at most this long; the next start reads the others.
DRAIN_S = 5.0

# The position of the raw samples is written to the bus at most this often.
RING_POSITION_EVERY_S = 0.25

# Rules do not wait for a device that has closed no window for this long.
SILENT_S = 10.0


@dataclass(frozen=True, slots=True)
class AnalyzeConfig:
    """The sections of ``[analyze]``; each part documents its own."""

    store: StoreConfig = field(default_factory=StoreConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    ring: RawSamplesConfig = field(default_factory=RawSamplesConfig)
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)


class AnalyzeService:
    """The one writer of a store."""

    def __init__(self, config: AnalyzeConfig, store: Store, bus: Bus, clock: Clock, report: Report) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._report = report
        endpoints = endpoints_of(config.notify)
        self._outbox = Outbox(store, endpoints, config.notify, clock)
        self._sender = NotificationSender(build_notifiers(endpoints, clock))
        rules = load_rules(config.alerts)
        self._coarse_rules, self._evaluated_tens = any(rule.coarse for rule in rules), 0
        self._unevaluated, self._evaluated_ns = False, 0
        self._evaluator = Evaluator(rules, store, self._outbox, config.alerts)
        extra = tuple(f"CREATE OR REPLACE VIEW main.{name} AS {sql}" for name, sql in alerts.views().items())
        self._archive = Archive(store, config.archive, clock, report)
        self._sink = Sink(store, self._archive, bus, report)
        self._ring = RawSamples(store, bus, config.ring, clock, report)
        self._publisher = Publisher(store, config.publish, clock, report, extra)
        self._closed: dict[str, tuple[int, int]] = {}
        self._archive_ns = self._fold_ns = 0
        self._positions: dict[str, bytes] = {}
        self._ring_published_ns = 0
        self._broken = False
        self._unstored: list[Message] = []
        self._results: list[DeliveryResult] = []

    def start(self) -> None:
        """Open the store and continue at its positions. Raises ``StoreError`` or ``BusError``."""
        self._store.start()
        for statement in alerts.ddl():
            self._store.execute(statement)
        self._archive.start()
        self._publisher.start()
        self._producer: Producer = self._bus.producer("analyze")
        self._sink.start()
        self._ring.start()
        self._sender.start()

    def step(self) -> None:
        """Read, store, evaluate, publish. Raises ``BusError``; then call again.

        While the disk is full nothing is lost: messages stay on the bus.
        """
        if self._broken and not self._reopen():
            return
        try:
            self._unstored = self._unstored or self._gather()
            fresh = bool(self._unstored)
            if fresh:
                self._store_all(self._unstored)
                self._unstored = []
            elif not self._ring.step():
                self._publish_ring_position()
            self._evaluate(fresh)
            self._upkeep()
        except StoreError as error:
            self._break(error, "store")
            return
        if not self._unevaluated:
            # A process that waits for the position expects the alerts to be in the store.
            self._publish_position()
        self._report.publish(self._producer)

    def stop(self) -> None:
        """Store and publish what was read, and close. Idempotent."""
        self._sender.stop()
        # Messages that could not be stored are still on the bus for the next start.
        if not self._broken and self._finish(self._ring.flush, self._sink.fold, self._publisher.publish):
            # Read from the bus only now: everything read before is stored already, even if the bus is slow.
            before = self._ring.taken
            self._finish(lambda: self._ring.drain(DRAIN_S))
            if self._ring.taken != before:
                self._finish(self._ring.flush, self._publisher.publish)
            self._finish(self._publish_position)
        self._sink.stop()
        self._ring.stop()
        self._producer.close()
        self._store.stop()

    def _finish(self, *parts: Callable[[], object]) -> bool:
        """Run the last steps; return whether all succeeded. The first error is reported and ends them."""
        try:
            for part in parts:
                part()
        except (StoreError, BusError, FencedError) as error:
            self._report.complain(str(error), "stop")
            return False
        return True

    def _break(self, error: StoreError, kind: str) -> None:
        self._report.complain(str(error), kind)
        self._broken = True

    def _reopen(self) -> bool:
        """Reopen the store and write the pending raw samples; return whether that worked.

        After a failed checkpoint DuckDB refuses all work until its file is opened again.
        """
        self._clock.wait(REOPEN_S)
        try:
            self._store.stop()
            self._store.start()
            self._ring.flush()
        except StoreError as error:
            self._report.complain(str(error), "store")
            return False
        self._broken = False
        return True

    def _gather(self) -> list[Message]:
        messages = list(self._sink.poll(POLL_S))
        if not messages:
            return messages
        received_ns = self._clock.monotonic_ns()
        until = received_ns + int((GATHER_HISTORY_S if self._is_history() else GATHER_S) * NS_PER_S)
        size = sum(len(message.value) for message in messages)
        while size < GATHER_BYTES_MAX and (now := self._clock.monotonic_ns()) < until and now - received_ns < GATHER_S * NS_PER_S:
            try:
                more = self._sink.poll(POLL_S)
            except BusError:
                break  # store what was read first; the next step raises the error again
            messages += more
            size += sum(len(message.value) for message in more)
            received_ns = self._clock.monotonic_ns() if more else received_ns
        return messages

    def _is_history(self) -> bool:
        """Return whether the windows being stored closed long ago."""
        ends = self._ends()
        return bool(ends) and self._clock.now_ns() - min(ends) > HISTORY_S * NS_PER_S

    def _is_evaluation_due(self) -> bool:
        """Return whether to evaluate although more messages arrive: always for live data, rarely for history."""
        return not self._is_history() or self._clock.monotonic_ns() - self._evaluated_ns >= EVALUATE_HISTORY_S * NS_PER_S

    def _ends(self) -> list[int]:
        """Return the end of the newest closed window of each device, without silent devices."""
        now = self._clock.monotonic_ns()
        return [end for end, received_ns in self._closed.values() if now - received_ns < SILENT_S * NS_PER_S]

    def _store_all(self, messages: Sequence[Message]) -> None:
        stored = self._sink.store(messages)
        self._report.count("weft_analyze_transactions_total")
        for name, frame in stored.items():
            if "device" in frame.columns and "ts" in frame.columns:
                self._note_closed(frame)
            self._report.set("weft_analyze_newest_ts_seconds", _newest(frame) / NS_PER_S, label=name)

    def _note_closed(self, frame: pl.DataFrame) -> None:
        now = self._clock.monotonic_ns()
        newest = frame.group_by("device").agg(pl.col("ts").max()).rows()
        for device, ts in newest:
            self._closed[device] = (max(self._closed.get(device, (0, 0))[0], ts + WINDOW_NS), now)

    def _evaluate(self, fresh: bool) -> None:
        """Evaluate the rules up to the window that all devices have closed, except silent ones, and send notifications."""
        ends = self._ends()
        self._unevaluated = bool(ends) and (fresh or self._unevaluated)
        if self._unevaluated and (not fresh or self._is_evaluation_due()):
            self._unevaluated, self._evaluated_ns = False, self._clock.monotonic_ns()
            try:
                tens = min(ends) // RESOLUTIONS_NS["10s"]
                if self._coarse_rules and tens != self._evaluated_tens:
                    self._evaluated_tens = tens
                    self._sink.fold()
                self._evaluator.evaluate(min(ends))
            except StoreError as error:
                self._break(error, "alerts")
            self._report.update(self._evaluator.counters())
        self._send()
        self._report.update({**self._outbox.counters(), **self._sender.counters()})

    def _send(self) -> None:
        """Record the results of deliveries, claim those that are due, and submit them after the commit."""
        self._results += self._sender.results()
        if not self._results and not self._outbox.is_due():
            return
        deliveries: list[Delivery] = []
        try:
            with self._store.transaction():
                self._outbox.record(self._results)
                deliveries = self._outbox.due()
        except StoreError:
            self._outbox.release(deliveries)
            raise
        self._results = []
        self._sender.submit(deliveries)

    def _upkeep(self) -> None:
        now = self._clock.monotonic_ns()
        try:
            if now >= self._archive_ns:
                self._archive_ns = now + int(ARCHIVE_EVERY_S * NS_PER_S)
                self._sink.fold()
                self._archive.run()
            due = now >= self._publisher.due_ns()
            if due or self._sink.full or (now >= self._fold_ns and not self._is_history()):
                self._fold_ns = now + int(FOLD_EVERY_S * NS_PER_S)
                self._store.give_back()
                give_back()
                self._sink.fold()
            if due:
                self._publisher.publish()
                self._store.rest()
                give_back()
        except StoreError as error:
            self._break(error, "publish")

    def _publish_position(self) -> None:
        """Write the position of the store to the bus, for processes that wait for it."""
        self._remember(POSITIONS_KEY, self._sink.positions())

    def _publish_ring_position(self) -> None:
        now = self._clock.monotonic_ns()
        if now - self._ring_published_ns >= RING_POSITION_EVERY_S * NS_PER_S:
            self._ring_published_ns = now
            self._remember(RAW_SAMPLES_KEY, self._ring.positions())

    def _remember(self, key: str, positions: Mapping[TopicPartition, int]) -> None:
        done = packed(positions)
        if done != self._positions.get(key):
            with self._producer.transaction() as transaction:
                transaction.remember(key, done)
            self._positions[key] = done


def _newest(frame: pl.DataFrame) -> int:
    column = "start_ts" if "start_ts" in frame.columns else "ts"
    newest = frame[column].max()
    return int(newest) if isinstance(newest, int) else 0
