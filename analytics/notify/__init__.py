"""Notifiers send alerts to receivers. ``NOTIFIERS`` has one line per kind; configuration, errors and contract tests follow from it."""

from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any

from ...pipeline.clock import Clock
from ...pipeline.errors import ConfigError
from .base import Kind, Notifier
from .slack import SLACK
from .webhook import WEBHOOK

NOTIFIERS: dict[str, Kind] = {"webhook": WEBHOOK, "slack": SLACK}


@dataclass(frozen=True)
class Grouping:
    """How alerts are grouped into notifications, for every kind of receiver."""

    # Alerts with equal values of these labels share one notification.
    group_by: tuple[str, ...] = ("alertname", "device")
    # How long the first notification of a group waits for more of its alerts.
    group_wait_s: float = 0.0
    # How long after a notification a group that still fires is sent again.
    repeat_interval_s: float = 4 * 3600.0
    # Address of the dashboard; links in notifications start with it.
    external_url: str = "http://127.0.0.1:8501"


# The section [analyze.notify]: the grouping, and a list of receivers per kind.
if TYPE_CHECKING:
    NotifyConfig = Grouping
else:
    _RECEIVERS = [(name, tuple[kind.config, ...], field(default=())) for name, kind in NOTIFIERS.items()]
    NotifyConfig = make_dataclass("NotifyConfig", _RECEIVERS, bases=(Grouping,), frozen=True)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One configured receiver; ``section`` is where its configuration is, for error messages."""

    name: str
    kind: Kind
    config: Any
    section: str


def endpoints_of(config: NotifyConfig) -> tuple[Endpoint, ...]:
    """Return the receivers of all kinds. Raises ``ConfigError`` when two have the same name."""
    endpoints: dict[str, Endpoint] = {}
    for kind_name, kind in NOTIFIERS.items():
        for one in getattr(config, kind_name):
            section = f"[[analyze.notify.{kind_name}]] {one.name}"
            if one.name in endpoints:
                raise ConfigError(
                    section, f"the name {one.name!r} is also in {endpoints[one.name].section}", "give each receiver its own name"
                )
            endpoints[one.name] = Endpoint(one.name, kind, one, section)
    return tuple(endpoints.values())


def build_notifiers(endpoints: tuple[Endpoint, ...], clock: Clock) -> dict[str, Notifier]:
    """Return a notifier per endpoint, by its name. Nothing is read or connected before ``start``."""
    return {endpoint.name: endpoint.kind.build(endpoint.config, clock, endpoint.section) for endpoint in endpoints}
