"""The webhook payload of Alertmanager, version 4: every receiver written for Alertmanager understands it.

The value and the query that reproduces the alert are annotations, the link into the dashboard is ``generatorURL``.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ...pipeline.clock import NS_PER_S
from .base import Group, Notice

# Go's zero time; receivers take it for "still firing".
_ZERO_TIME = "0001-01-01T00:00:00Z"


def rfc3339(ns: int) -> str:
    """Return UTC nanoseconds as RFC 3339, with as many decimals as they need."""
    seconds, rest = divmod(ns, NS_PER_S)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{rest:09d}".rstrip("0") if rest else "") + "Z"


def common(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the entries that are equal in all of them."""
    first, *others = mappings or [{}]
    return {name: value for name, value in sorted(first.items()) if all(other.get(name) == value for other in others)}


def render(group: Group, receiver: str, max_alerts: int, external_url: str) -> str:
    """Return the JSON for ``group`` with at most ``max_alerts`` alerts (0 = all); it counts the others.

    The status is ``firing`` while any alert of the whole group fires, shown or not.
    """
    shown = group.notices[:max_alerts] if max_alerts else group.notices
    base = external_url.rstrip("/")
    message = {
        "version": "4",
        "groupKey": group.key,
        "truncatedAlerts": len(group.notices) - len(shown),
        "status": _status(group.notices),
        "receiver": receiver,
        "groupLabels": dict(group.labels),
        "commonLabels": common([notice.labels for notice in shown]),
        "commonAnnotations": common([notice.annotations for notice in shown]),
        "externalURL": base,
        "alerts": [_alert(notice, base) for notice in shown],
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _status(notices: Sequence[Notice]) -> str:
    return "firing" if any(notice.ends_at_ns is None for notice in notices) else "resolved"


def _alert(notice: Notice, base: str) -> dict[str, object]:
    return {
        "status": _status([notice]),
        "labels": dict(sorted(notice.labels.items())),
        "annotations": dict(sorted(notice.annotations.items())),
        "startsAt": rfc3339(notice.starts_at_ns),
        "endsAt": _ZERO_TIME if notice.ends_at_ns is None else rfc3339(notice.ends_at_ns),
        "generatorURL": f"{base}/{notice.path.lstrip('/')}" if notice.path else base,
        "fingerprint": notice.fingerprint,
    }
