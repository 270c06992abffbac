"""Alerts over the wire: from a breach to a real receiver, also when the process is killed."""

import contextlib
import json
import random
import subprocess
import sys
import threading

import duckdb

from weft.analytics.alerts import ddl
from weft.analytics.alerts.evaluate import Evaluator
from weft.analytics.alerts.outbox import Outbox
from weft.analytics.alerts.rules import Condition, Rule
from weft.analytics.notify import NotifyConfig, build_notifiers, endpoints_of
from weft.analytics.notify.sender import NotificationSender
from weft.analytics.notify.webhook import WebhookConfig
from weft.pipeline.clock import SystemClock

S = 1_000_000_000


def test_from_a_row_to_a_webhook_and_its_end(scratch, receivers):
    """A breach in a closed window arrives at a real receiver after one failed attempt, and so does its end."""
    receiver, database, clock = receivers(), scratch(), SystemClock()
    receiver.answers = [503, 200]
    config = NotifyConfig(webhook=(WebhookConfig(name="ops", url=receiver.base),), external_url="http://weft.example")
    for statement in (*ddl(), "CREATE TABLE t (ts TIMESTAMP_NS, device VARCHAR, x DOUBLE)"):
        database.execute(statement)
    endpoints = endpoints_of(config)
    outbox = Outbox(database, endpoints, config, clock)
    sender = NotificationSender(build_notifiers(endpoints, clock))
    query = "SELECT ts, device, x AS value FROM t WHERE ts >= $from AND ts < $to"
    rule = Rule("hot", query, Condition(">", 0.2), dashboard="bursts?device={device}", annotations={"summary": "{device}: {value:.0%}"})
    evaluator = Evaluator([rule], database, outbox)
    sender.start()

    def until(count):
        for _ in range(500):
            with database.transaction():
                outbox.record(sender.results())
            with database.transaction():
                deliveries = outbox.due()
            sender.submit(deliveries)
            if len(receiver.requests) >= count and outbox.counters()["weft_analytics_outbox_in_flight"] == 0:
                return
            clock.wait(0.02)

    try:
        database.execute("INSERT INTO t VALUES (make_timestamp_ns(0), 'leaf-1', 0.5)")
        evaluator.evaluate(S)
        until(2)
        evaluator.evaluate(2 * S)
        until(3)
    finally:
        sender.stop()
    tried, sent_now, ended = (json.loads(body) for _, _, body in receiver.requests)
    assert tried == sent_now
    assert receiver.requests[0][1]["webhook-id"] == receiver.requests[1][1]["webhook-id"] != receiver.requests[2][1]["webhook-id"]
    (alert,) = sent_now["alerts"]
    assert (sent_now["status"], alert["annotations"]["summary"], alert["generatorURL"]) == (
        "firing", "leaf-1: 50%", "http://weft.example/bursts?device=leaf-1",
    )  # fmt: skip
    assert [row["value"] for row in database.query(alert["annotations"]["query"])] == [0.5]
    assert (ended["status"], ended["alerts"][0]["endsAt"]) == ("resolved", "1970-01-01T00:00:01Z")
    assert ended["alerts"][0]["fingerprint"] == alert["fingerprint"]


# A process that evaluates and sends until all is done. It prints its position after each closed second, and each delivery before it is
# submitted.
WORKER = """
import sys
from pathlib import Path
from weft.analytics.alerts import ddl
from weft.analytics.alerts.evaluate import Evaluator
from weft.analytics.alerts.outbox import Outbox
from weft.analytics.alerts.rules import Condition, Rule
from weft.analytics.notify import NotifyConfig, build_notifiers, endpoints_of
from weft.analytics.notify.sender import NotificationSender
from weft.analytics.notify.webhook import WebhookConfig
from weft.analytics.store.writer import Store
from weft.pipeline.clock import SystemClock

folder, url, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store, clock = Store(folder), SystemClock()
store.start()
for statement in ddl():
    store.execute(statement)
store.execute("CREATE OR REPLACE VIEW t AS SELECT make_timestamp_ns(s * 1000000000) AS ts, 'leaf-' || d AS device, "
              f"(s * (d + 3) // 7) % 2 AS x FROM range({seconds}) a(s), range(3) b(d)")
config = NotifyConfig(webhook=(WebhookConfig(name="ops", url=url),) if url else ())
endpoints = endpoints_of(config)
outbox, sender = Outbox(store, endpoints, config, clock), NotificationSender(build_notifiers(endpoints, clock))
query = "SELECT ts, device, x AS value FROM t WHERE ts >= $from AND ts < $to"
rule = Rule("hot", query, Condition(">", 0.5), for_s=2, annotations={"summary": "{device} {value}"})
evaluator = Evaluator([rule], store, outbox)
sender.start()

def step():
    results = sender.results()
    if results:
        with store.transaction():
            outbox.record(results)
    with store.transaction():
        deliveries = outbox.due()
        for delivery in deliveries:
            print(delivery.payload, flush=True)
    sender.submit(deliveries)

(done,) = store.query("SELECT coalesce(max(evaluated_to_ns), 0) // 1000000000 AS s FROM state.alert_rules")
for closed in range(done["s"] + 1, seconds + 1):
    evaluator.evaluate(closed * 1_000_000_000)
    step()
    print(closed, flush=True)
for _ in range(1000):
    step()
    if store.query("SELECT count(*) AS n FROM state.outbox WHERE state = 'pending'") == [{"n": 0}]:
        break
    clock.wait(0.01)
sender.stop()
store.stop()
"""


def work(folder, url, seconds, kill_after=None):
    """Run the worker to its end, or kill it with SIGKILL after ``kill_after`` windows; return whether it ended and its payloads."""
    command = [sys.executable, "-c", WORKER, str(folder), url, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        closed, handed = 0, []
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    handed.append(json.loads(line)["alerts"])
                    continue
                closed += 1
                if closed == kill_after:
                    process.kill()
            return process.wait(60) == 0, handed
        finally:
            guard.cancel()


def alerts_in(folder):
    with contextlib.closing(duckdb.connect(str(folder / "hot.duckdb"), read_only=True)) as connection:
        return connection.execute("SELECT * FROM state.alerts ORDER BY starts_at, fingerprint").fetchall()


def test_kill_9_loses_and_repeats_nothing(tmp_path, receivers):
    """A process killed repeatedly leaves the alerts of an undisturbed run, row for row, and the receiver with the true state."""
    seconds, receiver = 48, receivers()
    assert work(tmp_path / "calm", "", seconds)[0]
    moments, handed = random.Random(7), []
    for _ in range(3):
        # Each process continues where the last one stopped, so each kill hits new work.
        ended, sent_now = work(tmp_path / "killed", receiver.base, seconds, kill_after=moments.randint(8, 13))
        assert not ended
        handed += sent_now
    ended, sent_now = work(tmp_path / "killed", receiver.base, seconds)
    handed += sent_now
    assert ended and alerts_in(tmp_path / "killed") == alerts_in(tmp_path / "calm")
    assert sum(row[4] == "resolved" for row in alerts_in(tmp_path / "calm")) > 5
    # After a kill between claim and delivery the receiver may know the alert: only then may an unknown end be sent.
    maybe_sent = set()
    for alert in (alert for alerts in handed for alert in alerts):
        assert alert["status"] == "firing" or alert["fingerprint"] in maybe_sent
        maybe_sent.add(alert["fingerprint"])
    payloads, believed = {}, {}
    for _, headers, body in receiver.requests:
        assert payloads.setdefault(headers["webhook-id"], body) == body
        alerts = json.loads(body)["alerts"]
        assert alerts in handed
        believed |= {alert["fingerprint"]: alert["status"] for alert in alerts}
    firing = {row[0] for row in alerts_in(tmp_path / "calm") if row[4] == "firing"}
    assert {key for key, status in believed.items() if status == "firing"} == firing
