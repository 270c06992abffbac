"""The analyze service: stores what the process services made, judges closed windows, publishes for readers.

One loop and one connection. What arrives within a short while is stored in one transaction with its positions; the
rules are evaluated right after, on the writer's own tables, so an alert does not wait for a snapshot.
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

# What arrives within this time, or this much, is stored together: a transaction costs more than its rows, and a judgement of one
# window as much as of twenty.
GATHER_S = 0.25
GATHER_BYTES_MAX = 6 * 1024 * 1024

# Nobody waits for windows that closed so long ago: while they are caught up with, more of them are stored and judged together.
HISTORY_S = 5.0
GATHER_HISTORY_S = 1.0
JUDGE_HISTORY_S = 1.0
POLL_S = 0.05
ARCHIVE_EVERY_S = 30.0

# Roll-ups wait in memory at most so long, but for history, of which more is folded at once: there is more of them the longer they wait.
FOLD_EVERY_S = 2.0

# A store that could not be written is opened anew after so long: a full disk is waited for.
REOPEN_S = 1.0

# Raw runs that are still on the bus at the end are waited for so long; beyond it they are read at the next start.
DRAIN_S = 5.0

# How far the ring has read is told at most this often.
TELL_RING_EVERY_S = 0.25

# A device that has closed no window for so long no longer holds back the judgement of the others.
SILENT_S = 10.0


@dataclass(frozen=True, slots=True)
class AnalyzeConfig:
    """Sections of the service, see each part."""

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
        self._coarse_rules, self._judged_tens = any(rule.coarse for rule in rules), 0
        self._unjudged, self._judged_ns = False, 0
        self._evaluator = Evaluator(rules, store, self._outbox, config.alerts)
        extra = tuple(f"CREATE OR REPLACE VIEW main.{name} AS {sql}" for name, sql in alerts.views().items())
        self._archive = Archive(store, config.archive, clock, report)
        self._sink = Sink(store, self._archive, bus, report)
        self._ring = RawSamples(store, bus, config.ring, clock, report)
        self._publisher = Publisher(store, config.publish, clock, report, extra)
        self._closed: dict[str, tuple[int, int]] = {}
        self._archive_ns = self._fold_ns = 0
        self._told: dict[str, bytes] = {}
        self._ring_told_ns = 0
        self._broken = False
        self._unstored: list[Message] = []
        self._unsettled: list[DeliveryResult] = []

    def start(self) -> None:
        """Open the store and read on where it says. Raises ``StoreError`` or ``BusError``."""
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
        """Gather, store, judge, publish. Raises ``BusError``; then call again.

        A disk that is full is waited for, since what is on the bus is not lost by waiting.
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
                self._tell_ring()
            self._judge(fresh)
            self._upkeep()
        except StoreError as error:
            self._break(error, "store")
            return
        if not self._unjudged:
            # Who waits for the store waits for the alerts too.
            self._tell()
        self._report.publish(self._producer)

    def stop(self) -> None:
        """Store and publish what is here, and close. Idempotent."""
        self._sender.stop()
        # What could not be stored is still on the bus, for the next start.
        if not self._broken and self._finish(self._ring.flush, self._sink.fold, self._publisher.publish):
            # The bus is asked only now: what is in hand is safe, however long it takes to answer.
            before = self._ring.taken
            self._finish(lambda: self._ring.drain(DRAIN_S))
            if self._ring.taken != before:
                self._finish(self._ring.flush, self._publisher.publish)
            self._finish(self._tell)
        self._sink.stop()
        self._ring.stop()
        self._producer.close()
        self._store.stop()

    def _finish(self, *parts: Callable[[], object]) -> bool:
        """Do what is left to do at the end, and return whether it went well; an error ends it with a complaint."""
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
        """Open the store anew, and write first what has waited; return whether that worked.

        DuckDB refuses all work after a failed checkpoint until its file is opened again.
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
        heard = self._clock.monotonic_ns()
        until = heard + int((GATHER_HISTORY_S if self._is_history() else GATHER_S) * NS_PER_S)
        size = sum(len(message.value) for message in messages)
        while size < GATHER_BYTES_MAX and (now := self._clock.monotonic_ns()) < until and now - heard < GATHER_S * NS_PER_S:
            try:
                more = self._sink.poll(POLL_S)
            except BusError:
                break  # what has been read is stored first; the next step meets the error again
            messages += more
            size += sum(len(message.value) for message in more)
            heard = self._clock.monotonic_ns() if more else heard
        return messages

    def _is_history(self) -> bool:
        """Return whether what is being stored is long over."""
        ends = self._ends()
        return bool(ends) and self._clock.now_ns() - min(ends) > HISTORY_S * NS_PER_S

    def _is_judgement_due(self) -> bool:
        """Return whether to judge now while more comes in: always, but for history."""
        return not self._is_history() or self._clock.monotonic_ns() - self._judged_ns >= JUDGE_HISTORY_S * NS_PER_S

    def _ends(self) -> list[int]:
        """Return the window that each device still heard of has closed."""
        now = self._clock.monotonic_ns()
        return [end for end, heard in self._closed.values() if now - heard < SILENT_S * NS_PER_S]

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

    def _judge(self, fresh: bool) -> None:
        """Evaluate the rules up to the window that every device still heard of has closed, and move deliveries."""
        ends = self._ends()
        self._unjudged = bool(ends) and (fresh or self._unjudged)
        if self._unjudged and (not fresh or self._is_judgement_due()):
            self._unjudged, self._judged_ns = False, self._clock.monotonic_ns()
            try:
                tens = min(ends) // RESOLUTIONS_NS["10s"]
                if self._coarse_rules and tens != self._judged_tens:
                    self._judged_tens = tens
                    self._sink.fold()
                self._evaluator.evaluate(min(ends))
            except StoreError as error:
                self._break(error, "alerts")
            self._report.update(self._evaluator.counters())
        self._send()
        self._report.update({**self._outbox.counters(), **self._sender.counters()})

    def _send(self) -> None:
        """Write down the results of deliveries, claim those that are due, and submit them once the claim is committed."""
        self._unsettled += self._sender.results()
        if not self._unsettled and not self._outbox.is_due():
            return
        deliveries: list[Delivery] = []
        try:
            with self._store.transaction():
                self._outbox.settle(self._unsettled)
                deliveries = self._outbox.due()
        except StoreError:
            self._outbox.release(deliveries)
            raise
        self._unsettled = []
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

    def _tell(self) -> None:
        """Remember on the bus how far the store is, for whoever waits for it."""
        self._remember(POSITIONS_KEY, self._sink.positions())

    def _tell_ring(self) -> None:
        now = self._clock.monotonic_ns()
        if now - self._ring_told_ns >= TELL_RING_EVERY_S * NS_PER_S:
            self._ring_told_ns = now
            self._remember(RAW_SAMPLES_KEY, self._ring.positions())

    def _remember(self, key: str, positions: Mapping[TopicPartition, int]) -> None:
        done = packed(positions)
        if done != self._told.get(key):
            with self._producer.transaction() as transaction:
                transaction.remember(key, done)
            self._told[key] = done


def _newest(frame: pl.DataFrame) -> int:
    column = "start_ts" if "start_ts" in frame.columns else "ts"
    newest = frame[column].max()
    return int(newest) if isinstance(newest, int) else 0
