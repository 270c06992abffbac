"""The durable outbox: the notifications that each endpoint has yet to receive, in the store until they are delivered.

State, not log. ``reconcile`` compares, for each endpoint and group, the alerts that fire now with those the endpoint was notified of,
and leaves at most one unsent row with the difference. So a newer notification replaces an unsent older one, an alert
that fired and was resolved before any notification is dropped, and a crash needs no clean-up.

Two sets describe which firing alerts an endpoint knows: ``sure`` decides whether a firing alert is news, ``maybe`` decides whether
an end must be sent. A delivered row sets both to its alerts. An attempt without a clear answer may have been delivered, so
its row is *risky*: its firing alerts join ``maybe``, its resolved ones leave ``sure``. The receiver may get a notification twice
but misses none. A delivery is marked risky when it is claimed, so that a kill while sending counts as no clear answer. All
attempts carry the same ``webhook-id``.

Retries: full jitter, uniform in [0, min(cap, 1 s * 2^n)], no sooner than ``Retry-After``; dead after an hour.
"""

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...pipeline.clock import NS_PER_S, Clock
from ..notify import Endpoint, NotifyConfig
from ..notify.base import Delivery, DeliveryResult, Group, Notice, Outcome
from . import Database

RETRY_START_S = 1.0
RETRY_CAP_S = 300.0
GIVE_UP_S = 3600.0
# Claimed deliveries of one endpoint: as many as the sender has room for.
IN_FLIGHT_MAX = 32
# Unsent rows in all; further groups are dropped and counted until there is room.
PENDING_MAX = 10_000
# How long delivered and dead rows stay for inspection.
HISTORY_S = 24 * 3600.0

_log = logging.getLogger(__name__)

_INSERT = """INSERT INTO state.outbox (id, endpoint, group_key, firing, resolved, sure, maybe, payload, webhook_id, state, attempts, risky,
    next_attempt_ns, created_ns, done_ns, last_error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, false, ?, ?, NULL, '')"""


@dataclass(slots=True)
class _Row:
    """The newest row of one endpoint and group."""

    id: int
    firing: list[str]
    resolved: list[str]
    sure: list[str]
    maybe: list[str]
    state: str
    attempts: int
    risky: bool
    next_attempt_ns: int
    done_ns: int

    @property
    def done(self) -> bool:
        return self.state in ("sent", "dead")

    def known(self) -> tuple[set[str], set[str]]:
        """Return the sets ``sure`` and ``maybe`` after this row."""
        if self.state == "sent":
            return set(self.firing), set(self.firing)
        if self.risky:
            return set(self.sure) - set(self.resolved), set(self.maybe) | set(self.firing)
        return set(self.sure), set(self.maybe)


@dataclass(slots=True)
class _FiringGroup:
    """Alerts that fire now, by fingerprint, of one group."""

    key: str
    labels: dict[str, str]
    firing: dict[str, Notice]


class Outbox:
    """Keeps ``state.outbox``; every method that touches it is called inside the caller's transaction."""

    def __init__(
        self, database: Database, endpoints: Sequence[Endpoint], config: NotifyConfig, clock: Clock, *, jitter: random.Random | None = None
    ) -> None:
        self._database = database
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._config = config
        self._clock = clock
        # Jitter spreads retries; it needs no cryptographic randomness.
        self._jitter = jitter or random.Random()
        # id -> (endpoint, group key, whether the row was risky before this attempt)
        self._in_flight: dict[int, tuple[str, str, bool]] = {}
        self._disabled: set[str] = set()
        self._counts = dict.fromkeys(("queued", "collapsed", "sent", "retried", "dead", "dropped_full"), 0)

    def reconcile(self) -> None:
        """Bring the unsent rows in line with ``state.alerts``. May be called at any time; cheap when nothing has changed."""
        rows = self._newest_rows()
        if not self._endpoints and not rows:
            return
        now_ns = self._clock.now_ns()
        groups = self._firing_groups()
        next_id = self._next_id()
        pending = sum(row.state == "pending" for row in rows.values())
        for name, key in sorted({(name, key) for name in self._endpoints for key in groups} | rows.keys()):
            row = rows.get((name, key))
            if name not in self._endpoints:
                if row is not None and row.state == "pending":
                    self._give_up(row.id, "the endpoint is no longer configured", now_ns)
                continue
            if any(flight[:2] == (name, key) for flight in self._in_flight.values()):
                continue
            group = groups.get(key) or _FiringGroup(key, {}, {})
            change = self._change_for(self._endpoints[name], row, group, now_ns)
            if change is None:
                if row is not None and row.state == "pending":
                    self._withdraw(row)
                continue
            if row is not None and row.state == "pending" and (row.firing, row.resolved) == change:
                continue
            if (row is None or row.state != "pending") and pending >= PENDING_MAX:
                self._counts["dropped_full"] += 1
                continue
            pending += row is None or row.state != "pending"
            self._write(next_id, self._endpoints[name], row, group, change, now_ns)
            next_id += 1

    def is_due(self) -> bool:
        """Return whether ``due`` would claim anything, without a transaction."""
        return bool(self._claimable())

    def due(self) -> list[Delivery]:
        """Claim the deliveries that are due. Call inside a transaction; submit after the commit."""
        rows = self._claimable()
        if rows:
            marks = ", ".join("?" * len(rows))
            ids = [row["id"] for row in rows]
            self._database.execute(f"UPDATE state.outbox SET attempts = attempts + 1, risky = true WHERE id IN ({marks})", ids)
        self._in_flight |= {row["id"]: (row["endpoint"], row["group_key"], row["risky"]) for row in rows}
        return [Delivery(row["id"], row["endpoint"], row["webhook_id"], row["payload"]) for row in rows]

    def _claimable(self) -> list[dict[str, Any]]:
        """Return the rows that may be sent now: one per endpoint and group, as many as the sender has room for."""
        if not self._endpoints:
            return []
        rows: list[dict[str, Any]] = self._database.query(
            "SELECT id, endpoint, group_key, webhook_id, payload, risky FROM state.outbox WHERE state = 'pending' AND next_attempt_ns <= ? "
            "ORDER BY next_attempt_ns, id",
            (self._clock.now_ns(),),
        )
        busy = {flight[:2] for flight in self._in_flight.values()}
        load = dict.fromkeys(self._endpoints, 0)
        for name, _ in busy:
            load[name] += 1
        free = []
        for row in rows:
            name = row["endpoint"]
            if name not in self._endpoints or name in self._disabled or (name, row["group_key"]) in busy or load[name] >= IN_FLIGHT_MAX:
                continue
            load[name] += 1
            free.append(row)
        return free

    def record(self, results: Sequence[DeliveryResult]) -> None:
        """Record the results of deliveries and update the outbox. Call inside a transaction."""
        now_ns = self._clock.now_ns()
        for result in results:
            _, _, risky = self._in_flight.pop(result.id, ("", "", True))
            if result.outcome is Outcome.DELIVERED:
                self._counts["sent"] += 1
                self._database.execute(
                    "UPDATE state.outbox SET state = 'sent', risky = false, done_ns = ?, last_error = '' WHERE id = ?", (now_ns, result.id)
                )
                continue
            if result.certain and not risky:
                self._database.execute("UPDATE state.outbox SET risky = false WHERE id = ?", (result.id,))
            if result.outcome is Outcome.RETRY:
                self._retry(result, now_ns)
            else:
                self._give_up(result.id, result.error, now_ns)
            if result.outcome is Outcome.GONE:
                self._disabled.add(result.endpoint)
                _log.warning("endpoint %s answered that it is gone; it gets no notifications until the next start", result.endpoint)
        if results:
            self.reconcile()
            self._purge(now_ns)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give up the claims that ``due`` made in a transaction that was rolled back, so that it returns them again."""
        for delivery in deliveries:
            self._in_flight.pop(delivery.id, None)

    def counters(self) -> Mapping[str, float]:
        """Return counters and gauges by Prometheus style name."""
        counters = {f"weft_analytics_outbox_{name}_total": float(count) for name, count in self._counts.items()}
        gauges = {"in_flight": len(self._in_flight), "endpoints_disabled": len(self._disabled)}
        return counters | {f"weft_analytics_outbox_{name}": float(value) for name, value in gauges.items()}

    def _firing_groups(self) -> dict[str, _FiringGroup]:
        sql = "SELECT * FROM state.alerts WHERE fired_at IS NOT NULL AND state <> 'resolved' ORDER BY starts_at, fingerprint"
        groups: dict[str, _FiringGroup] = {}
        for row in self._database.query(sql):
            notice = _notice(row)
            labels = {name: notice.labels[name] for name in self._config.group_by if name in notice.labels}
            key = group_key(labels)
            groups.setdefault(key, _FiringGroup(key, labels, {})).firing[notice.fingerprint] = notice
        return groups

    def _newest_rows(self) -> dict[tuple[str, str], _Row]:
        rows: list[dict[str, Any]] = self._database.query(
            "SELECT * EXCLUDE (payload) REPLACE (coalesce(done_ns, 0) AS done_ns) FROM state.outbox WHERE id IN "
            "(SELECT max(id) FROM state.outbox GROUP BY endpoint, group_key) AND NOT (state = 'sent' AND firing = '[]')"
        )
        sets = ("firing", "resolved", "sure", "maybe")
        return {
            (row["endpoint"], row["group_key"]): _Row(
                **{field.name: json.loads(row[field.name]) if field.name in sets else row[field.name] for field in fields(_Row)}
            )
            for row in rows
        }

    def _next_id(self) -> int:
        highest = self._database.query("SELECT coalesce(max(id), 0) AS id FROM state.outbox")[0]["id"]
        assert isinstance(highest, int)
        return highest + 1

    def _change_for(self, endpoint: Endpoint, row: _Row | None, group: _FiringGroup, now_ns: int) -> tuple[list[str], list[str]] | None:
        """Return the fingerprints (firing, resolved) to notify the endpoint of now; ``None`` = nothing."""
        sure, maybe = row.known() if row else (set(), set())
        firing = sorted(group.firing)
        gone = sorted(maybe - set(firing))
        resolved = gone if endpoint.config.send_resolved else []
        done = row is not None and row.done
        if gone and not resolved and row is not None and done:
            self._forget_ends(row, set(gone))
            sure, _ = row.known()
        recent = row is not None and done and now_ns - row.done_ns < self._config.repeat_interval_s * NS_PER_S
        if row is not None and row.state == "dead" and recent and (firing, resolved) == (row.firing, row.resolved):
            return None
        if set(firing) - sure or resolved or (firing and done and not recent):
            return firing, resolved
        return None

    def _forget_ends(self, row: _Row, gone: set[str]) -> None:
        """Forget resolved alerts of endpoints that get no resolutions, so that they are sent when they fire again."""
        sure, maybe = row.known()
        row.sure, row.maybe, row.risky = sorted(sure - gone), sorted(maybe - gone), False
        if row.state == "sent":
            row.firing = row.sure
        self._database.execute(
            "UPDATE state.outbox SET firing = ?, sure = ?, maybe = ?, risky = false WHERE id = ?",
            (json.dumps(row.firing), json.dumps(row.sure), json.dumps(row.maybe), row.id),
        )

    def _write(
        self, row_id: int, endpoint: Endpoint, row: _Row | None, group: _FiringGroup, change: tuple[list[str], list[str]], now_ns: int
    ) -> None:
        firing, resolved = change
        sure, maybe = row.known() if row else (set(), set())
        if not endpoint.config.send_resolved:
            sure, maybe = sure & set(firing), maybe & set(firing)
        ended = self._resolved_notices(resolved)
        labels = group.labels or next(({n: e.labels[n] for n in self._config.group_by if n in e.labels} for e in ended), {})
        fresh = [notice for key, notice in group.firing.items() if key not in sure]
        old = [notice for key, notice in group.firing.items() if key in sure]
        rendered = Group(group.key, labels, (*fresh, *ended, *old))
        payload = endpoint.kind.render(rendered, endpoint.name, endpoint.config.max_alerts, self._config.external_url)
        attempts, next_ns = 0, now_ns + round(self._config.group_wait_s * NS_PER_S)
        if row is not None and row.state == "pending":
            attempts, next_ns = row.attempts, row.next_attempt_ns
            self._withdraw(row)
        parts = [endpoint.name, group.key, str(row_id), json.dumps(change), str(now_ns)]
        webhook_id = "msg_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        sets = [json.dumps(keys) for keys in (firing, resolved, sorted(sure), sorted(maybe))]
        self._database.execute(_INSERT, (row_id, endpoint.name, group.key, *sets, payload, webhook_id, attempts, next_ns, now_ns))
        self._counts["queued"] += 1

    def _resolved_notices(self, fingerprints: Sequence[str]) -> list[Notice]:
        if not fingerprints:
            return []
        marks = ", ".join("?" * len(fingerprints))
        sql = f"SELECT * FROM state.alerts WHERE state = 'resolved' AND fingerprint IN ({marks}) ORDER BY ends_at"
        newest = {notice.fingerprint: notice for notice in map(_notice, self._database.query(sql, fingerprints))}
        return [newest[fingerprint] for fingerprint in fingerprints if fingerprint in newest]

    def _withdraw(self, row: _Row) -> None:
        self._counts["collapsed"] += 1
        self._database.execute("DELETE FROM state.outbox WHERE id = ?", (row.id,))

    def _retry(self, result: DeliveryResult, now_ns: int) -> None:
        rows: list[dict[str, Any]] = self._database.query("SELECT attempts, created_ns FROM state.outbox WHERE id = ?", (result.id,))
        if not rows:
            return
        if now_ns - rows[0]["created_ns"] >= GIVE_UP_S * NS_PER_S:
            self._give_up(result.id, f"given up after {GIVE_UP_S:.0f} s: {result.error}", now_ns)
            return
        ceiling_s = min(RETRY_CAP_S, RETRY_START_S * 2 ** min(rows[0]["attempts"] - 1, 30))
        wait_s = max(self._jitter.uniform(0.0, ceiling_s), result.retry_after_s or 0.0)
        self._counts["retried"] += 1
        self._database.execute(
            "UPDATE state.outbox SET next_attempt_ns = ?, last_error = ? WHERE id = ?",
            (now_ns + round(wait_s * NS_PER_S), result.error, result.id),
        )

    def _give_up(self, row_id: int, error: str, now_ns: int) -> None:
        self._counts["dead"] += 1
        _log.warning("notification %d is dead: %s", row_id, error)
        self._database.execute("UPDATE state.outbox SET state = 'dead', done_ns = ?, last_error = ? WHERE id = ?", (now_ns, error, row_id))

    def _purge(self, now_ns: int) -> None:
        """Delete old history, except the newest row of a group whose alerts still fire for the endpoint."""
        self._database.execute(
            "DELETE FROM state.outbox WHERE state IN ('sent', 'dead') AND created_ns < ? AND ((state = 'sent' AND firing = '[]') "
            "OR id NOT IN (SELECT max(id) FROM state.outbox GROUP BY endpoint, group_key))",
            (now_ns - round(HISTORY_S * NS_PER_S),),
        )


def group_key(labels: Mapping[str, str]) -> str:
    """Return the identity of a group, in the form that Alertmanager gives it."""
    return "{}:{" + ", ".join(f"{name}={json.dumps(labels[name], ensure_ascii=False)}" for name in sorted(labels)) + "}"


def _notice(row: Mapping[str, Any]) -> Notice:
    annotations = json.loads(row["annotations"]) | {"query": row["evidence_sql"]}
    return Notice(row["fingerprint"], json.loads(row["labels"]), annotations, row["starts_at"], row["ends_at"], row["path"])
