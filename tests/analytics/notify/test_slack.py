"""Slack messages: what they show, and that they stay within Slack's limits for any alerts."""

import json

from hypothesis import given
from hypothesis import strategies as st

from weft.analytics.notify.base import Group, Notice
from weft.analytics.notify.slack import render

S = 1_000_000_000
LABELS = {"alertname": "queue-paused", "device": "leaf-1", "severity": "warning"}
TEXT = st.text(st.sampled_from("&<>|ab\n"), max_size=5000)
NOTICES = st.builds(
    lambda n, summary, description, path, ended: Notice(
        f"{n:016x}", LABELS, {"summary": summary, "description": description}, 0, S if ended else None, path
    ),
    st.integers(0, 2**32), TEXT, TEXT, st.sampled_from(["", "bursts?device=a", "x" * 4000]), st.booleans(),
)  # fmt: skip


def texts(message):
    return [block["text"]["text"] for block in message["blocks"]]


def test_a_message_shows_counts_summaries_and_links():
    """A group with one firing and one resolved alert is a headline and a block for each, with a link into the dashboard."""
    firing = Notice(
        "a", LABELS, {"summary": "leaf-1: paused", "description": "5 % <of> a second"}, 0, None, "congestion?device=leaf-1&port=a"
    )
    ended = Notice("b", LABELS, {"summary": "leaf-1: was paused"}, 0, S)
    group = Group("k", {"alertname": "queue-paused", "device": "leaf-1"}, (firing, ended))
    assert json.loads(render(group, "ops", 0, "http://weft:8501/")) == {
        "text": "queue-paused leaf-1: 1 firing, 1 resolved",
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": text}}
            for text in (
                "*queue-paused leaf-1: 1 firing, 1 resolved*",
                ":large_orange_circle: leaf-1: paused\n5 % &lt;of&gt; a second\n<http://weft:8501/congestion?device=leaf-1&amp;port=a|open>",
                ":white_check_mark: leaf-1: was paused",
            )
        ],
    }


def test_a_label_cannot_notify_a_channel():
    """Slack's control sequences in a label or annotation are plain text in the message."""
    notice = Notice("a", LABELS, {"summary": "<!channel> <@U1>"}, 0, None)
    message = render(Group("k", {"device": "<!here>"}, (notice,)), "ops", 0, "http://weft")
    assert "<!" not in message and "<@" not in message and "&lt;!channel&gt;" in message


@given(st.lists(NOTICES, min_size=1, max_size=60).map(tuple), st.integers(0, 60), st.text(st.sampled_from("&ab"), max_size=4000))
def test_any_group_fits_slack(notices, limit, device):
    """At most 50 blocks of 1 to 3,000 characters, 12,000 in all, no broken entity, and the number of alerts left out."""
    message = json.loads(render(Group("k", {"device": device}, notices), "ops", limit, "http://weft"))
    shown = texts(message)
    assert 1 <= len(shown) <= 50 and all(1 <= len(text) <= 3000 for text in shown) and sum(map(len, shown)) <= 12_000
    assert 1 <= len(message["text"]) <= 4000
    for text in (*shown, message["text"]):
        plain = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
        assert "&" not in plain
    left = len(notices) - min(len(notices), limit or 48, 48)
    assert (shown[-1] == f"and {left} more") == bool(left)
