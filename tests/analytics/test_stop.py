"""The end of the analyze service: buffered rows are stored and published even if the bus fails."""

from pathlib import Path

import polars as pl
import pytest

from weft.analytics.service import AnalyzeConfig, AnalyzeService
from weft.analytics.store.lag import raw_samples_lag
from weft.analytics.store.reader import Reader
from weft.analytics.store.samples import RawSamples
from weft.analytics.store.writer import Store
from weft.pipeline.bus import BusConfig, open_bus
from weft.pipeline.clock import NS_PER_S, SystemClock
from weft.pipeline.codec import encode, headers
from weft.pipeline.errors import BusError
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES

TABLE = FAMILIES["burst_sample"]
T0 = 1_700_000_000 * NS_PER_S
PATIENCE_S = 20.0


def _away(_ring: RawSamples, _patience_s: float) -> None:
    raise BusError("the broker is away", "start it")


def test_what_is_in_hand_is_stored_though_the_bus_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is down when the service stops loses no segment that was read."""
    clock = SystemClock()
    bus = open_bus(BusConfig(kind="embedded"), tmp_path)
    producer = bus.producer("stop-test")
    frame = pl.DataFrame({"ts": [T0], "device": ["d"], "port": ["p"], "values": [list(range(100))]}, schema_overrides=TABLE.polars)
    with producer.transaction() as transaction:
        for number in range(5):
            transaction.publish(TABLE.topic, f"d{number}", encode(frame, TABLE), headers(TABLE))
    assert raw_samples_lag(bus) > 0
    service = AnalyzeService(AnalyzeConfig(), Store(tmp_path / "store"), bus, clock, Report("analyze", "test", clock))
    service.start()
    until = clock.monotonic_ns() + int(PATIENCE_S * NS_PER_S)
    while raw_samples_lag(bus) and clock.monotonic_ns() < until:
        service.step()
    assert raw_samples_lag(bus) == 0
    monkeypatch.setattr(RawSamples, "drain", _away)
    service.stop()
    reader = Reader(tmp_path / "store")
    assert reader.frame("SELECT count(*)::INTEGER AS runs FROM samples").item() == 5
    reader.close()
    producer.close()
    bus.close()
