"""Raw samples: each segment from the bus is stored once, as long as age and size allow."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from weft.analytics.store.publish import PublishConfig, Publisher
from weft.analytics.store.reader import Reader
from weft.analytics.store.samples import RawSamples, RawSamplesConfig
from weft.analytics.store.sink import Positions
from weft.analytics.store.writer import Store
from weft.pipeline.bus import BusConfig, open_bus
from weft.pipeline.bus.embedded import EmbeddedBus
from weft.pipeline.clock import ManualClock, SystemClock
from weft.pipeline.codec import encode, headers
from weft.pipeline.errors import StoreError
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import WINDOW_NS

T0 = 1_640_995_200 * WINDOW_NS
TABLE = FAMILIES["burst_sample"]


class Rig:
    """A bus, a store and the raw samples between them."""

    def __init__(self, folder: Path, config: RawSamplesConfig | None = None) -> None:
        self.folder = folder / "store"
        self.clock = ManualClock()
        self.bus = EmbeddedBus(BusConfig(partitions=2), folder / "bus", self.clock)
        self.store = Store(self.folder)
        self.store.start()
        self.report = Report("analyze", "test", self.clock)
        self.producer = self.bus.producer("test")
        self.rings: list[RawSamples] = []
        self.config = config or RawSamplesConfig()
        self.ring = self.fresh()

    def fresh(self) -> RawSamples:
        ring = RawSamples(self.store, self.bus, self.config, self.clock, self.report)
        ring.start()
        self.rings.append(ring)
        return ring

    def publish(self, number: int, values: list[int] | None = None) -> None:
        frame = pl.DataFrame(
            {"ts": [T0 + number * WINDOW_NS], "device": ["d"], "port": [f"p{number}"], "values": [values or [number, 2, 3]]},
            schema={name: TABLE.polars[name] for name in ("ts", "device", "port", "values")},
        )
        with self.producer.transaction() as transaction:
            transaction.publish(TABLE.topic, "d", encode(frame, TABLE), headers(TABLE))

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "samples").iterdir())

    def seen(self) -> list[tuple[int, list[int]]]:
        """Return (second, samples) of the rows that a reader of a new snapshot sees."""
        publisher = Publisher(self.store, PublishConfig(), self.clock, self.report)
        publisher.start()
        reader = Reader(self.folder)
        rows = reader.frame(f'SELECT (epoch_ns(ts) - {T0}) // {WINDOW_NS} AS s, "values" FROM samples ORDER BY ts').rows()
        reader.close()
        return rows

    def close(self) -> None:
        for ring in self.rings:
            ring.stop()
        self.producer.close()
        self.bus.close()
        self.store.stop()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Return a store without raw samples."""
    one = Rig(tmp_path)
    yield one
    one.close()


def test_runs_are_written_every_few_seconds(rig: Rig) -> None:
    """Segments from the bus are buffered for ``every_s``, then written to one file with the narrowest sufficient type."""
    rig.publish(0)
    rig.publish(1, [2**40, 1])
    assert rig.ring.step()
    assert not rig.ring.step()
    assert rig.files() == []
    rig.clock.advance(2)
    rig.ring.step()
    assert len(rig.files()) == 1
    assert rig.seen() == [(0, [0, 2, 3]), (1, [2**40, 1])]


def test_a_restart_repeats_and_loses_nothing(rig: Rig) -> None:
    """Segments that were read but not written before a crash are read again; written ones are not."""
    rig.publish(0)
    rig.ring.step()
    rig.ring.flush()
    rig.clock.advance(1)
    rig.publish(1)
    rig.ring.step()
    second = rig.fresh()
    second.step()
    second.flush()
    assert [s for s, _ in rig.seen()] == [0, 1]
    rig.clock.advance(1)
    third = rig.fresh()
    assert not third.step()
    third.flush()
    assert [s for s, _ in rig.seen()] == [0, 1]


def test_files_that_no_transaction_knows_are_removed(rig: Rig) -> None:
    """A file written but not committed before a crash is deleted at the next start, or its segments would be seen twice."""
    rig.publish(0)
    rig.ring.step()
    rig.ring.flush()
    kept = rig.files()
    for name in ("00000000000000000001.parquet", "00000000000000000002.part"):
        (rig.folder / "samples" / name).write_bytes(b"half")
    rig.fresh()
    assert rig.files() == kept


def test_the_ring_forgets_by_age(tmp_path: Path) -> None:
    """A file older than ``age_s`` is deleted when the next one is written."""
    rig = Rig(tmp_path, RawSamplesConfig(age_s=10, every_s=0))
    for second in range(4):
        rig.publish(second)
        rig.ring.step()
        rig.clock.advance(4)
    assert [s for s, _ in rig.seen()] == [1, 2, 3]
    assert len(rig.files()) == 3
    rig.close()


def test_the_ring_forgets_by_size(tmp_path: Path) -> None:
    """The oldest files are deleted when all files together exceed ``bytes_max``."""
    rig = Rig(tmp_path, RawSamplesConfig(every_s=0))
    for second in range(3):
        rig.publish(second)
        rig.ring.step()
        rig.clock.advance(1)
    size = sum((rig.folder / "samples" / name).stat().st_size for name in rig.files())
    rig.config = RawSamplesConfig(bytes_max=size, every_s=0)
    ring = rig.fresh()
    rig.publish(3)
    ring.step()
    assert [s for s, _ in rig.seen()] == [1, 2, 3]
    rig.config = RawSamplesConfig(bytes_max=size // 2, every_s=0)
    rig.clock.advance(1)
    rig.publish(4)
    rig.fresh().step()
    assert [s for s, _ in rig.seen()] == [4]
    rig.close()


def test_an_empty_ring_can_be_read(tmp_path: Path) -> None:
    """With a limit of zero the view exists and has no rows, before and after."""
    rig = Rig(tmp_path, RawSamplesConfig(bytes_max=0, every_s=0))
    assert rig.seen() == []
    rig.publish(0)
    rig.ring.step()
    assert rig.files() == []
    assert rig.seen() == []
    rig.close()


def test_poison_is_passed_by(rig: Rig) -> None:
    """A message that cannot be read is skipped and takes no space."""
    with rig.producer.transaction() as transaction:
        transaction.publish(TABLE.topic, "d", b"nonsense", headers(TABLE))
    rig.publish(1)
    rig.ring.step()
    rig.ring.flush()
    assert [s for s, _ in rig.seen()] == [1]
    assert not rig.fresh().step()


def test_another_family_in_the_topic_is_passed_by(rig: Rig) -> None:
    """A readable message of another table is no segment; it is skipped."""
    other = FAMILIES["event"]
    with rig.producer.transaction() as transaction:
        transaction.publish(TABLE.topic, "d", encode(pl.DataFrame({"ts": [T0], "kind": ["x"]}), other), headers(other))
    rig.publish(1)
    rig.ring.step()
    rig.ring.flush()
    assert [s for s, _ in rig.seen()] == [1]


def test_a_file_that_cannot_be_written_is_tried_again(rig: Rig) -> None:
    """A folder that cannot be written is a ``StoreError``; nothing counts as read, and the next flush writes it."""
    rig.publish(0)
    rig.ring.step()
    samples = rig.folder / "samples"
    samples.rename(rig.folder / "away")
    with pytest.raises(StoreError):
        rig.ring.flush()
    samples.mkdir()
    rig.ring.flush()
    assert [s for s, _ in rig.seen()] == [0]


def test_how_far_it_is_counts_what_is_read(rig: Rig) -> None:
    """A process that waits for raw samples waits until they are read: buffered ones are written at the end, or read again after a crash."""
    rig.publish(0)
    assert sum(rig.ring.positions().values()) == 0
    rig.ring.step()
    assert sum(rig.ring.positions().values()) == 1
    assert rig.seen() == []
    assert Positions(rig.store).load((TABLE.topic,)) == {}, "a successor reads again what is in no file"
    rig.ring.flush()
    assert sum(Positions(rig.store).load((TABLE.topic,)).values()) == 1


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_all_that_is_on_the_bus_is_drained(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Segments published before the end are stored, also if the first polls of a broker are empty."""
    clock = SystemClock()
    bus = open_bus(BusConfig(kind=kind, servers=request.getfixturevalue("kafka") if kind == "kafka" else ""), tmp_path / "data")
    store = Store(tmp_path / "store")
    store.start()
    producer = bus.producer("ring-test")
    Positions(store).save(bus.ends((TABLE.topic,)))
    frame = pl.DataFrame({"ts": [T0], "device": ["d"], "port": ["p"], "values": [list(range(1000))]}, schema_overrides=TABLE.polars)
    with producer.transaction() as transaction:
        for number in range(50):
            transaction.publish(TABLE.topic, f"d{number}", encode(frame, TABLE), headers(TABLE))
    ring = RawSamples(store, bus, RawSamplesConfig(), clock, Report("analyze", "test", clock))
    ring.start()
    ring.drain(30.0)
    ring.flush()
    written = [pl.read_parquet(path).height for path in (tmp_path / "store" / "samples").iterdir()]
    assert sum(written) == 50
    ring.stop()
    producer.close()
    bus.close()
    store.stop()
