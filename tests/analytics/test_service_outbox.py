"""The analyze service and its outbox: a delivery is claimed in a transaction and submitted after the commit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from weft.analytics.alerts import ddl
from weft.analytics.alerts.alert_table import AlertRow, AlertTable
from weft.analytics.alerts.state import Alert
from weft.analytics.notify import NotifyConfig
from weft.analytics.notify.base import Delivery
from weft.analytics.notify.webhook import WebhookConfig
from weft.analytics.service import AnalyzeConfig, AnalyzeService
from weft.analytics.store.writer import Store
from weft.pipeline.bus import Bus, BusConfig, open_bus
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import StoreError
from weft.pipeline.report import Report

S = 1_000_000_000


class FlakyStore(Store):
    """A store that can refuse a commit, as a full disk does."""

    refusals = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
            if self.refusals:
                self.refusals -= 1
                raise StoreError("the disk is full", "free some space")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """An embedded bus."""
    bus = open_bus(BusConfig(kind="embedded"), tmp_path)
    yield bus
    bus.close()


def test_a_delivery_is_submitted_after_its_claim_is_committed(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that cannot be committed submits nothing; once the store is open again it is committed and submitted."""
    clock = SystemClock()
    store = FlakyStore(tmp_path / "store")
    config = AnalyzeConfig(notify=NotifyConfig(webhook=(WebhookConfig(name="ops", url="http://127.0.0.1:1/"),)))
    service = AnalyzeService(config, store, bus, clock, Report("analyze", "test", clock))
    submitted: list[Delivery] = []

    def submit(deliveries: list[Delivery]) -> None:
        with pytest.raises(duckdb.TransactionException, match="no transaction is active"):
            store._open().execute("ROLLBACK")
        submitted.extend(deliveries)

    monkeypatch.setattr(service._sender, "submit", submit)
    service.start()
    try:
        for statement in ddl():
            store.execute(statement)
        labels = {"alertname": "hot", "severity": "warning", "device": "a"}
        alert = Alert("00000000000000aa", "hot", labels, "firing", 0.5, 0, S, None, 0)
        with store.transaction():
            AlertTable(store).replace([], [AlertRow(alert, {"summary": "x"}, "bursts", "SELECT 1", 0)])
            service._outbox.reconcile()
        store.refusals = 1
        service.step()
        assert submitted == []
        assert store.query("SELECT attempts, risky FROM state.outbox") == [{"attempts": 0, "risky": False}]
        service.step()
        assert [delivery.endpoint for delivery in submitted] == ["ops"]
        assert store.query("SELECT attempts, risky FROM state.outbox") == [{"attempts": 1, "risky": True}]
        service.step()
        assert len(submitted) == 1
    finally:
        service.stop()
