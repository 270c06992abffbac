"""Runs the deliveries, one thread per endpoint, so that a slow receiver delays no other.

The threads speak HTTP and nothing else; deliveries come in and results go out through bounded queues, because the
store's connection belongs to the service's thread.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Mapping, Sequence

from .base import Delivery, DeliveryResult, Notifier, Outcome

# Deliveries that wait for one endpoint's thread; the outbox claims no more than this (outbox.IN_FLIGHT_MAX).
QUEUE_MAX = 32
_STOP_S = 5.0

_log = logging.getLogger(__name__)


class NotificationSender:
    """Delivers through ``notifiers``, by endpoint name."""

    def __init__(self, notifiers: Mapping[str, Notifier]) -> None:
        self._notifiers = dict(notifiers)
        self._queues: dict[str, queue.Queue[Delivery | None]] = {name: queue.Queue(QUEUE_MAX) for name in notifiers}
        # Every delivery gives one result, so there is always room for it.
        self._results: queue.Queue[DeliveryResult] = queue.Queue((QUEUE_MAX + 2) * max(1, len(self._notifiers)))
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._counts = dict.fromkeys(Outcome, 0)

    def start(self) -> None:
        """Start the notifiers and their threads. Raises ``ConfigError`` when one cannot be used."""
        for notifier in self._notifiers.values():
            notifier.start()
        for name in self._notifiers:
            thread = threading.Thread(target=self._run, args=(name,), name=f"notify-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Queue deliveries without blocking. A delivery without room gets a result to retry."""
        for delivery in deliveries:
            waiting = self._queues.get(delivery.endpoint)
            try:
                if waiting is None or self._stopping.is_set():
                    raise queue.Full
                waiting.put_nowait(delivery)
            except queue.Full:
                self._put_result(DeliveryResult(delivery.id, delivery.endpoint, Outcome.RETRY, error="no room in the sender"))

    def results(self) -> list[DeliveryResult]:
        """Return the results since the last call, without blocking."""
        found = []
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                return found
            self._counts[result.outcome] += 1
            found.append(result)

    def counters(self) -> Mapping[str, float]:
        """Return counters by Prometheus style name."""
        return {f"weft_analytics_notifications_{outcome.value}_total": float(count) for outcome, count in self._counts.items()}

    def stop(self) -> None:
        """End the threads after their current attempt; waiting deliveries stay in the outbox. Idempotent."""
        self._stopping.set()
        for waiting in self._queues.values():
            # A full queue needs no sentinel: its thread checks the event after its current delivery.
            with contextlib.suppress(queue.Full):
                waiting.put_nowait(None)
        for thread in self._threads:
            thread.join(_STOP_S)
        self._threads.clear()

    def _run(self, name: str) -> None:
        notifier, waiting = self._notifiers[name], self._queues[name]
        while not self._stopping.is_set():
            delivery = waiting.get()
            if delivery is None:
                return
            try:
                result = notifier.deliver(delivery)
            except Exception as error:
                # Log only the error's class: its text may quote an address.
                _log.error("notifier %s failed with %s", name, type(error).__name__)
                result = DeliveryResult(delivery.id, name, Outcome.RETRY, certain=False, error=f"defect: {type(error).__name__}")
            self._put_result(result)

    def _put_result(self, result: DeliveryResult) -> None:
        try:
            self._results.put_nowait(result)
        except queue.Full:
            _log.error("the result of a notification was lost; it is repeated after a restart")
