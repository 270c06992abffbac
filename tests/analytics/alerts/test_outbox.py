"""The outbox: every receiver ends up with the true state of the alerts, whatever fails in between."""

import json
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.analytics.alerts import ddl
from weft.analytics.alerts.alert_table import AlertRow, AlertTable
from weft.analytics.alerts.fingerprint import fingerprint
from weft.analytics.alerts.outbox import GIVE_UP_S, IN_FLIGHT_MAX, RETRY_CAP_S, Outbox, group_key
from weft.analytics.alerts.state import Alert
from weft.analytics.notify import NotifyConfig, endpoints_of
from weft.analytics.notify.base import DeliveryResult, Outcome
from weft.analytics.notify.webhook import WebhookConfig
from weft.pipeline.clock import ManualClock
from weft.pipeline.errors import ConfigError

S = 1_000_000_000


def notify(*names, **options):
    receivers = {"max_alerts": options.pop("max_alerts", 50), "send_resolved": options.pop("send_resolved", True)}
    webhooks = tuple(WebhookConfig(name=name, url="http://127.0.0.1:1/", **receivers) for name in names or ("ops",))
    return NotifyConfig(webhook=webhooks, **options)


@dataclass
class Desk:
    """Alerts set by hand, an outbox over them, and a clock that stands still."""

    database: object
    config: NotifyConfig = field(default_factory=notify)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self):
        for statement in ddl():
            self.database.execute(statement)
        self.restart()

    def restart(self):
        """Start a new process: the state in memory is lost."""
        self.outbox = Outbox(self.database, endpoints_of(self.config), self.config, self.clock, jitter=random.Random(1))

    def labels(self, name):
        return {"alertname": "hot", "severity": "warning", "device": name.split("/")[0], "port": name}

    def fire(self, *names, at=0):
        for name in names:
            labels = self.labels(name)
            alert = Alert(fingerprint(labels), "hot", labels, "firing", 0.5, at, at + S, None, at)
            AlertTable(self.database).replace([], [AlertRow(alert, {"summary": name}, "bursts", "SELECT 1", at)])
        self.reconcile()

    def end(self, *names, at=9 * S):
        for name in names:
            sql = "UPDATE state.alerts SET state = 'resolved', ends_at = ? WHERE state = 'firing' AND fingerprint = ?"
            self.database.execute(sql, (at, fingerprint(self.labels(name))))
        self.reconcile()

    def reconcile(self):
        with self.database.transaction():
            self.outbox.reconcile()

    def due(self):
        with self.database.transaction():
            return self.outbox.due()

    def settle(self, deliveries, outcome=Outcome.DELIVERED, **options):
        with self.database.transaction():
            self.outbox.record([DeliveryResult(delivery.id, delivery.endpoint, outcome, **options) for delivery in deliveries])

    def rows(self, what="endpoint, state, attempts"):
        return [tuple(row.values()) for row in self.database.query(f"SELECT {what} FROM state.outbox ORDER BY id")]


@pytest.fixture
def desk(scratch):
    """A desk with one endpoint, ops."""
    return Desk(scratch())


def statuses(delivery):
    """Return the alerts of a delivery: port -> status."""
    return {alert["labels"]["port"]: alert["status"] for alert in json.loads(delivery.payload)["alerts"]}


def test_a_firing_and_its_end_are_sent_once_each(desk):
    """A receiver is notified when an alert fires and when it is resolved, and not in between."""
    desk.fire("a/1")
    (first,) = desk.due()
    assert statuses(first) == {"a/1": "firing"} and desk.due() == []
    desk.settle([first])
    desk.reconcile()
    assert desk.due() == []
    desk.end("a/1")
    (second,) = desk.due()
    assert statuses(second) == {"a/1": "resolved"} and json.loads(second.payload)["status"] == "resolved"
    desk.settle([second])
    desk.reconcile()
    assert desk.due() == [] and desk.rows() == [("ops", "sent", 1), ("ops", "sent", 1)]
    assert first.webhook_id != second.webhook_id


def test_an_alert_that_was_never_sent_is_dropped_with_its_end(desk):
    """An alert that ends before any notification was sent is never sent."""
    desk.fire("a/1")
    desk.end("a/1")
    assert desk.due() == [] and desk.rows() == []
    desk.fire("a/2")
    desk.settle(desk.due(), Outcome.RETRY, error="no connection")
    desk.end("a/2")
    desk.clock.advance(60)
    assert desk.due() == [] and desk.rows() == []


def test_an_alert_that_may_have_been_sent_is_resolved(desk):
    """After an attempt without an answer the receiver may know the alert, so it gets its end."""
    desk.fire("a/1")
    desk.settle(desk.due(), Outcome.RETRY, certain=False, error="no answer in time")
    desk.end("a/1")
    desk.clock.advance(60)
    (delivery,) = desk.due()
    assert statuses(delivery) == {"a/1": "resolved"}


def test_a_kill_while_sending_repeats_the_same_message(desk):
    """A delivery without a recorded outcome is repeated after a restart, under the same id."""
    desk.fire("a/1")
    (before,) = desk.due()
    desk.restart()
    desk.reconcile()
    (after,) = desk.due()
    assert (after.webhook_id, after.payload) == (before.webhook_id, before.payload)
    desk.restart()
    desk.end("a/1")
    (ended,) = desk.due()
    assert statuses(ended) == {"a/1": "resolved"}


def test_a_newer_state_takes_the_place_of_an_unsent_older_one(desk):
    """While an endpoint is away its group stays one row, with the current alerts and the current wait."""
    desk.fire("a/1")
    desk.settle(desk.due(), Outcome.RETRY, retry_after_s=100.0)
    desk.fire("a/2")
    assert desk.due() == [] and desk.rows() == [("ops", "pending", 1)]
    desk.clock.advance(101)
    (delivery,) = desk.due()
    assert statuses(delivery) == {"a/1": "firing", "a/2": "firing"}


def test_an_alert_that_returns_before_its_end_was_sent_sends_nothing(desk):
    """An alert that ends and fires again before its end was sent causes no notification."""
    desk.fire("a/1")
    desk.settle(desk.due())
    desk.end("a/1")
    desk.fire("a/1", at=20 * S)
    assert desk.due() == []


def test_groups_follow_the_configured_labels(scratch):
    """Alerts with equal group labels share a notification, whose key has Alertmanager's form."""
    desk = Desk(scratch(), notify(group_by=("device",)))
    desk.fire("a/1", "a/2", "b/1")
    found = {json.loads(delivery.payload)["groupKey"]: statuses(delivery) for delivery in desk.due()}
    assert found == {'{}:{device="a"}': {"a/1": "firing", "a/2": "firing"}, '{}:{device="b"}': {"b/1": "firing"}}
    assert group_key({"b": 'x"y', "a": "z"}) == '{}:{a="z", b="x\\"y"}'


def test_each_endpoint_is_notified_independently(scratch):
    """One endpoint that fails leaves the other's notifications alone."""
    desk = Desk(scratch(), notify("one", "two"))
    desk.fire("a/1")
    one, two = desk.due()
    desk.settle([one], Outcome.RETRY)
    desk.settle([two])
    assert desk.rows("endpoint, state") == [("one", "pending"), ("two", "sent")]


def test_resolved_is_left_out_where_it_is_not_wanted(scratch):
    """An endpoint without resolved notifications gets firing alerts only, also the same alert again."""
    desk = Desk(scratch(), notify(send_resolved=False))
    desk.fire("a/1")
    desk.settle(desk.due())
    desk.end("a/1")
    assert desk.due() == []
    desk.fire("a/1", at=30 * S)
    (again,) = desk.due()
    assert statuses(again) == {"a/1": "firing"}


def test_the_end_of_one_of_several_is_forgotten_where_it_is_not_wanted(scratch):
    """Without resolved notifications, an alert that ends and fires again beside another is news again."""
    desk = Desk(scratch(), notify(send_resolved=False))
    desk.fire("a/1", "a/2")
    desk.settle(desk.due())
    desk.end("a/2")
    assert desk.due() == []
    desk.fire("a/2", at=30 * S)
    (again,) = desk.due()
    assert statuses(again) == {"a/1": "firing", "a/2": "firing"}


def test_a_firing_without_a_clear_answer_is_sent_again(desk):
    """An attempt that may or may not have arrived is repeated until there is an answer."""
    desk.fire("a/1")
    (first,) = desk.due()
    desk.settle([first], Outcome.RETRY, certain=False, error="no answer in time")
    desk.clock.advance(60)
    (again,) = desk.due()
    assert (again.webhook_id, again.payload) == (first.webhook_id, first.payload)


def test_an_alert_that_fires_again_after_an_unclear_end_is_sent_again(desk):
    """When the receiver may know an end, the next firing is sent, although the end was never confirmed."""
    desk.fire("a/1")
    desk.settle(desk.due())
    desk.end("a/1")
    desk.settle(desk.due(), Outcome.RETRY, certain=False, error="no answer in time")
    desk.fire("a/1", at=20 * S)
    desk.clock.advance(60)
    (again,) = desk.due()
    assert statuses(again) == {"a/1": "firing"}


def test_a_first_notification_can_wait_for_its_group(scratch):
    """With a group wait nothing is sent before it is over, and then all of the group."""
    desk = Desk(scratch(), notify(group_wait_s=10.0))
    desk.fire("a/1")
    desk.clock.advance(9)
    desk.fire("a/2")
    assert desk.due() == []
    desk.clock.advance(1)
    (delivery,) = desk.due()
    assert statuses(delivery) == {"a/1": "firing", "a/2": "firing"}


def test_what_goes_on_is_repeated(scratch):
    """A firing group is sent again after the repeat interval, under a new id, and not before."""
    desk = Desk(scratch(), notify(repeat_interval_s=3600.0))
    desk.fire("a/1")
    (first,) = desk.due()
    desk.settle([first])
    desk.clock.advance(3599)
    desk.reconcile()
    assert desk.due() == []
    desk.clock.advance(1)
    desk.reconcile()
    (again,) = desk.due()
    assert statuses(again) == {"a/1": "firing"} and again.webhook_id != first.webhook_id


def test_retries_are_spread_bounded_and_end(desk):
    """Waits are random below a doubling limit; after an hour the notification is dead and listed."""
    desk.fire("a/1")
    waits = []
    for attempt in range(2000):
        deliveries = desk.due()
        if not deliveries:
            break
        desk.settle(deliveries, Outcome.RETRY, error="HTTP 503")
        ((state, next_ns),) = desk.rows("state, next_attempt_ns")
        if state == "dead":
            break
        wait_s = (next_ns - desk.clock.now_ns()) / S
        assert 0 <= wait_s <= min(RETRY_CAP_S, 2.0**attempt)
        waits.append(wait_s)
        desk.clock.advance(wait_s + 1e-6)
    assert desk.rows("state, last_error") == [("dead", f"given up after {GIVE_UP_S:.0f} s: HTTP 503")]
    assert len({round(wait, 3) for wait in waits}) > 5 and max(waits) > 60
    assert desk.outbox.counters()["weft_analytics_outbox_dead_total"] == 1
    desk.reconcile()
    assert desk.due() == []


def test_retry_after_is_a_lower_bound(desk):
    """No attempt is made before the time that the receiver requested."""
    desk.fire("a/1")
    desk.settle(desk.due(), Outcome.RETRY, retry_after_s=200.0)
    desk.clock.advance(199.9)
    assert desk.due() == []
    desk.clock.advance(0.2)
    assert len(desk.due()) == 1


def test_a_refusal_is_final_until_something_changes(desk):
    """A refused notification is not tried again; a new state of the group is."""
    desk.fire("a/1")
    desk.settle(desk.due(), Outcome.REFUSED, error="HTTP 400")
    desk.reconcile()
    desk.clock.advance(600)
    assert desk.due() == [] and desk.rows("state, last_error") == [("dead", "HTTP 400")]
    desk.fire("a/2")
    (changed,) = desk.due()
    assert statuses(changed) == {"a/1": "firing", "a/2": "firing"}


def test_a_gone_endpoint_is_left_alone_until_the_next_start(desk):
    """After 410 the endpoint gets nothing until Weft is restarted."""
    desk.fire("a/1")
    desk.settle(desk.due(), Outcome.GONE, error="HTTP 410")
    desk.fire("b/1")
    assert desk.due() == []
    desk.restart()
    assert [statuses(delivery) for delivery in desk.due()] == [{"b/1": "firing"}]


def test_an_endpoint_that_is_not_configured_any_more_keeps_nothing_pending(desk):
    """Notifications for an endpoint that was removed are given up, and listed as such."""
    desk.fire("a/1")
    desk.config = notify("other")
    desk.restart()
    desk.reconcile()
    assert desk.rows("endpoint, state") == [("ops", "dead"), ("other", "pending")]


def test_no_more_is_handed_out_than_the_sender_has_room_for(scratch):
    """Claimed deliveries are bounded per endpoint; the others wait in the store."""
    desk = Desk(scratch())
    desk.fire(*(f"d{index}/1" for index in range(IN_FLIGHT_MAX + 5)))
    first = desk.due()
    assert len(first) == IN_FLIGHT_MAX and desk.due() == []
    desk.settle(first)
    assert len(desk.due()) == 5


def test_a_long_group_is_cut_and_the_new_come_first(scratch):
    """A payload holds no more alerts than its limit, counts the others, and shows new alerts first."""
    desk = Desk(scratch(), notify(max_alerts=2))
    desk.fire("a/1", "a/2", "a/3")
    (first,) = desk.due()
    assert json.loads(first.payload)["truncatedAlerts"] == 1
    desk.settle([first])
    desk.fire("a/4", at=5 * S)
    (second,) = desk.due()
    assert "a/4" in statuses(second) and json.loads(second.payload)["truncatedAlerts"] == 2


def test_a_failed_transaction_can_be_undone(desk):
    """When a claim is rolled back and released, the same deliveries are claimed again."""
    desk.fire("a/1")
    desk.settle(desk.due(), Outcome.RETRY)
    desk.fire("b/1")
    desk.clock.advance(400)
    assert desk.outbox.is_due()
    with pytest.raises(RuntimeError), desk.database.transaction():
        claimed = desk.outbox.due()
        raise RuntimeError
    desk.outbox.release(claimed)
    assert len(claimed) == 2 and sorted(desk.due(), key=lambda one: one.id) == sorted(claimed, key=lambda one: one.id)
    assert not desk.outbox.is_due()


def test_two_receivers_of_one_name_are_refused():
    """Endpoints are known by name, so names are unique."""
    with pytest.raises(ConfigError, match="give each receiver its own name"):
        endpoints_of(notify("ops", "ops"))


NAMES = ("a/1", "a/2", "b/1")
STEPS = st.lists(
    st.sampled_from([("fire", n) for n in NAMES] + [("end", n) for n in NAMES] + [("send", "")] * 5 + [("kill", "")]), max_size=25
)
# The outcomes of an attempt: whether the receiver gets it, and the answer that Weft sees.
ATTEMPTS = {
    "ok": (True, Outcome.DELIVERED, True),
    "lost answer": (True, Outcome.RETRY, False),
    "lost request": (False, Outcome.RETRY, False),
    "busy": (False, Outcome.RETRY, True),
    "refused": (False, Outcome.REFUSED, True),
    "killed": (True, None, True),
}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_receiver_ends_up_believing_what_is_true(scratch, data):
    """After any firings, ends, failures and kills, every end sent belongs to an alert that was sent, and finally all is sent."""
    desk, firing, believed, sent = Desk(scratch()), set(), set(), set()

    def send(kind):
        received, outcome, certain = ATTEMPTS[kind]
        handed = desk.due()
        if outcome is None:
            # It is unknown which of the submitted deliveries the sender has made.
            sent.update(port for delivery in handed for port, status in statuses(delivery).items() if status == "firing")
        for delivery in handed:
            for port, status in statuses(delivery).items():
                assert status == "firing" or port in sent, "the end of an alert that was never sent"
                if received or not certain:
                    sent.add(port)
                if received:
                    (believed.add if status == "firing" else believed.discard)(port)
            if outcome is None:
                desk.restart()
                return
            desk.settle([delivery], outcome, certain=certain, error="x")

    for step, name in data.draw(STEPS):
        if step == "fire" and name not in firing:
            firing.add(name)
            desk.fire(name, at=(len(sent) + 1) * S)
        elif step == "end" and name in firing:
            firing.discard(name)
            desk.end(name)
        elif step == "send":
            desk.clock.advance(3)
            send(data.draw(st.sampled_from(sorted(ATTEMPTS))))
        elif step == "kill":
            desk.restart()
    for _ in range(4):
        # Longer than the repeat interval, after which refused notifications are sent again.
        desk.clock.advance(5 * 3600)
        desk.reconcile()
        send("ok")
    assert believed == firing
    desk.database.connection.close()
