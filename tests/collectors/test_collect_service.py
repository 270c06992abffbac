"""The service of the live collectors: one name on the bus, and no row lost when two services claim it."""

from pathlib import Path

import polars as pl

from weft.collectors.base import Batch
from weft.collectors.service import CollectConfig, CollectService
from weft.pipeline.bus import BusConfig
from weft.pipeline.bus.embedded import EmbeddedBus
from weft.pipeline.clock import ManualClock
from weft.pipeline.codec import decode
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES

READING = FAMILIES["reading"]


class Source:
    """A live collector that gives one counting row per drain."""

    def __init__(self, name: str) -> None:
        self.name, self.given = name, 0

    def start(self) -> None:
        """Nothing to open."""

    def drain(self) -> list[Batch]:
        """Return the next row."""
        self.given += 1
        row = {"ts": self.given, "recv_ts": self.given, "source": "test", "device": self.name, "epoch": 0, "name": "n", "value": 1.0}
        return [Batch("reading", pl.DataFrame([row | dict.fromkeys(READING.polars.keys() - row.keys())], schema=READING.polars))]

    def counters(self) -> dict[str, float]:
        """Nothing to count."""
        return {}

    def stop(self) -> None:
        """Nothing to close."""


def test_two_collectors_of_one_name_lose_nothing(tmp_path: Path) -> None:
    """Two services of one name take turns, log a hint, and all rows of both arrive once."""
    clock = ManualClock()
    bus = EmbeddedBus(BusConfig(), tmp_path, clock)
    sources = [Source("a"), Source("b")]
    reports = [Report("collect", "host", clock) for _ in sources]
    services = [
        CollectService(CollectConfig(), bus, clock, report, "collect-host", {"test": source})
        for report, source in zip(reports, sources, strict=True)
    ]
    for service in services:
        service.start()
    for _ in range(40):
        for service in services:
            service.step()
    services[1].stop()
    for _ in range(40):
        services[0].step()
    services[0].stop()
    consumer = bus.consumer((READING.topic,))
    rows = pl.concat([READING.empty(), *(decode(message.value, READING) for message in consumer.poll(0.0, 2**30))])
    for source in sources:
        assert sorted(rows.filter(device=source.name)["ts"]) == list(range(1, source.given + 1))
    consumer.close()
    bus.close()
