"""Notifiers: the ways in which alerts leave."""

from dataclasses import dataclass, field
from typing import Any

from ...pipeline.clock import Clock
from ...pipeline.errors import ConfigError
from . import payload
from .base import Kind, Notifier
from .webhook import Webhook, WebhookConfig

NOTIFIERS: dict[str, Kind] = {
    "webhook": Kind("Alertmanager's version 4 JSON by HTTP POST, signed on request", WebhookConfig, payload.render, Webhook),
}


@dataclass(frozen=True, slots=True)
class NotifyConfig:
    """The section ``[notify]``: how alerts are grouped, and the receivers of each kind."""

    # Alerts that are alike in these labels go into one notification.
    group_by: tuple[str, ...] = ("alertname", "device")
    # How long a first notification waits for more alerts of its group.
    group_wait_s: float = 0.0
    # After this long a firing group is told again.
    repeat_interval_s: float = 4 * 3600.0
    # Where the dashboard is reached; links in notifications begin with it.
    external_url: str = "http://127.0.0.1:8501"
    webhook: tuple[WebhookConfig, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One configured receiver."""

    name: str
    kind: Kind
    config: Any


def endpoints_of(config: NotifyConfig) -> tuple[Endpoint, ...]:
    """Return the receivers of all kinds. Raises ``ConfigError`` when two have one name."""
    endpoints = tuple(Endpoint(one.name, kind, one) for name, kind in NOTIFIERS.items() for one in getattr(config, name))
    names = [endpoint.name for endpoint in endpoints]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("[notify]", f"two receivers are called {name!r}", "give each a name of its own")
    return endpoints


def build_notifiers(endpoints: tuple[Endpoint, ...], clock: Clock) -> dict[str, Notifier]:
    """Return an inert notifier per endpoint, for ``sender.Sender``."""
    return {endpoint.name: endpoint.kind.build(endpoint.config, clock) for endpoint in endpoints}
