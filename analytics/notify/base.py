"""The interface of notifiers: a notifier renders a group of alerts and delivers the payload, one attempt per call.

The outbox retries, orders and stores; a notifier keeps no state between calls. Delivery is at least once: a receiver
recognises repeats by ``Delivery.webhook_id``, which is the same for every attempt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from ...pipeline.clock import Clock


@dataclass(frozen=True, slots=True)
class Notice:
    """One alert as a receiver sees it; ``ends_at_ns`` is ``None`` while it fires."""

    fingerprint: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at_ns: int
    ends_at_ns: int | None
    # Page of the dashboard that shows it, relative to the external URL.
    path: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Alerts that go into one notification, the most important first."""

    key: str
    labels: Mapping[str, str]
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to make."""

    id: int
    endpoint: str
    webhook_id: str
    payload: str


class Outcome(Enum):
    """The outcome of an attempt, which decides the next step."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The outcome of one delivery.

    ``certain`` is false when the receiver may have received it although the attempt failed (no answer in time). ``error`` is short
    and holds neither the address nor a secret nor anything that the receiver sent.
    """

    id: int
    endpoint: str
    outcome: Outcome
    certain: bool = True
    retry_after_s: float | None = None
    error: str = ""


class Notifier(Protocol):
    """Delivers to one endpoint. Used by one thread."""

    def start(self) -> None:
        """Read addresses and secrets. Raises ``ConfigError`` when they cannot be used."""
        ...

    def deliver(self, delivery: Delivery) -> DeliveryResult:
        """Make one attempt within the endpoint's time limit. Raises nothing that a receiver can cause."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of ``NOTIFIERS``.

    ``config`` is a frozen dataclass: the section ``[[analyze.notify.<name>]]`` of ``weft.toml``, with at least ``name``,
    ``send_resolved``, ``timeout_s`` and ``max_alerts``. ``render(group, receiver, max_alerts, external_url)``
    returns the payload; ``build(config, clock, section)`` returns a notifier whose errors name ``section``.
    """

    doc: str
    config: type[Any]
    render: Callable[[Group, str, int, str], str]
    build: Callable[[Any, Clock, str], Notifier]
