"""Slack's incoming webhook: one message per group, a block per alert, within Slack's documented limits.

Anyone who knows the webhook's URL can post to the channel, so the URL is a secret. Slack takes at most 50 blocks in a message and
3,000 characters in a block, and requires ``&``, ``<`` and ``>`` to be escaped. The escaping also keeps a label from mentioning a whole
channel.
"""

import json
from dataclasses import dataclass

from .base import Group, Kind, Notice
from .webhook import HttpConfig, HttpNotifier

# One block each for the headline and for the number of alerts left out.
ALERTS_MAX = 48
BLOCK_CHARS_MAX = 3000
# Slack refuses messages of some 13,000 characters in all blocks together without documenting the limit.
MESSAGE_CHARS_MAX = 10_000
# Slack takes 40,000 characters here and advises 4,000.
TEXT_CHARS_MAX = 4000

_SIGNS = {"critical": ":red_circle:", "warning": ":large_orange_circle:", "info": ":large_blue_circle:"}


@dataclass(frozen=True)
class SlackConfig(HttpConfig):
    """A Slack channel, by the URL of its incoming webhook."""

    name: str = "slack"
    max_alerts: int = 10


def render(group: Group, receiver: str, max_alerts: int, external_url: str) -> str:
    """Return the message for ``group`` with at most ``max_alerts`` alerts (0 = as many as Slack takes); it counts the others."""
    base = external_url.rstrip("/")
    firing = sum(notice.ends_at_ns is None for notice in group.notices)
    ended = len(group.notices) - firing
    counts = [f"{count} {word}" for count, word in ((firing, "firing"), (ended, "resolved")) if count]
    name = " ".join(group.labels[label] for label in sorted(group.labels)) or receiver
    headline = _cut(_escaped(f"{name}: {', '.join(counts)}"), BLOCK_CHARS_MAX - 2)
    shown = group.notices[: min(max_alerts or ALERTS_MAX, ALERTS_MAX)]
    # Every alert gets an equal share of the message.
    share = min(BLOCK_CHARS_MAX, (MESSAGE_CHARS_MAX - len(headline)) // max(1, len(shown)))
    texts = [f"*{headline}*", *(_alert(notice, base, share) for notice in shown)]
    if left := len(group.notices) - len(shown):
        texts.append(f"and {left} more")
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in texts]
    return json.dumps({"text": _cut(headline, TEXT_CHARS_MAX), "blocks": blocks}, ensure_ascii=False, separators=(",", ":"))


def _alert(notice: Notice, base: str, chars_max: int) -> str:
    sign = ":white_check_mark:" if notice.ends_at_ns is not None else _SIGNS.get(notice.labels.get("severity", ""), ":white_circle:")
    summary = notice.annotations.get("summary") or notice.labels.get("alertname", notice.fingerprint)
    url = _escaped(f"{base}/{notice.path.lstrip('/')}").replace("|", "%7C")
    link = f"\n<{url}|open>" if notice.path else ""
    link = link if len(link) <= chars_max // 2 else ""
    return _cut(_escaped(f"{sign} {summary}\n{notice.annotations.get('description', '')}").rstrip(), chars_max - len(link)) + link


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, chars_max: int) -> str:
    """Return escaped text of at most ``chars_max`` characters, cut outside an entity such as ``&amp;``."""
    if len(text) <= chars_max:
        return text
    kept = text[: chars_max - 1]
    entity = kept.rfind("&")
    return (kept[:entity] if entity >= 0 and ";" not in kept[entity:] else kept) + "…"


SLACK = Kind("a Slack channel, by its incoming webhook", SlackConfig, render, HttpNotifier)
