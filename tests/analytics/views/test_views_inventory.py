"""The inventory views: the last row is valid, places come from files or names, and links show whether their ends agree."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from shared_data import SHARED

from weft.analytics.store.archive import Archive, ArchiveConfig
from weft.analytics.store.ddl import stored
from weft.analytics.store.publish import PublishConfig, Publisher, catalog
from weft.analytics.store.reader import Reader
from weft.analytics.store.writer import Store
from weft.pipeline.clock import NS_PER_S, ManualClock
from weft.pipeline.report import Report
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.states import STATES

T0 = 1_640_995_200 * NS_PER_S
YEAR_S = 365 * 86_400
LINGJUN = SHARED / "alibaba-lingjun" / "topo.csv"

Row = dict[str, Any]


class Fleet:
    """A store with its views, an archive and a publisher, into which inventory rows are inserted as they arrive from the bus."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(T0)
        report = Report("analyze", "test", self.clock)
        self.store = Store(folder)
        self.store.start()
        self.archive = Archive(self.store, ArchiveConfig(), self.clock, report)
        self.publisher = Publisher(self.store, PublishConfig(), self.clock, report)
        for statement in catalog(self.store):
            self.store.execute(statement)

    def put(self, *rows: Row) -> None:
        """Store rows; by default their time is now and their source gnmi."""
        now = self.clock.now_ns()
        whole = [{"ts": now, "recv_ts": now, "source": "gnmi", "epoch": 0, **row} for row in rows]
        with self.store.transaction():
            self.store.insert("base.inventory", stored(FAMILIES["inventory"], pl.DataFrame(whole, schema=FAMILIES["inventory"].polars)))

    def publish(self, *rows: Row, origin: int = 1, lost: int = 0, ts: int | None = None) -> None:
        """Store a publication of files, without the last ``lost`` of its rows."""
        stamps = {"source": "inventory", "epoch": origin, "ts": ts or self.clock.now_ns()}
        head = {"kind": "publication", "device": "", "key": "files", "rows": len(rows)}
        self.put(*({**row, **stamps} for row in (head, *rows[: len(rows) - lost])))

    def later(self, seconds: float = 1) -> None:
        self.clock.advance(seconds)

    def rows(self, sql: str) -> list[Row]:
        return self.store.query(sql)

    def names(self, view: str = "devices") -> set[object]:
        return {row["device"] for row in self.rows(f"SELECT device FROM {view}")}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Return an empty store."""
    one = Fleet(tmp_path)
    yield one
    one.store.stop()


def device(name: str, **more: Any) -> Row:
    return {"kind": "device", "device": name, "key": name, **more}


def port(name: str, key: str, **more: Any) -> Row:
    return {"kind": "port", "device": name, "key": key, **more}


def link(name: str, key: str, peer: str, peer_port: str | None = None, **more: Any) -> Row:
    return {"kind": "link", "device": name, "key": key, "peer_device": peer, "peer_port": peer_port, **more}


def test_the_last_row_of_a_key_wins(fleet: Fleet) -> None:
    """Of repeated reports about a device the newest row by its time is valid, in any order of arrival."""
    fleet.put(link("leaf", "p1", "gpu-new", "eth0", ts=T0 + 5), link("leaf", "p1", "gpu-old", "eth0", ts=T0))
    (row,) = fleet.rows("SELECT peer_device FROM links WHERE device = 'leaf'")
    assert row == {"peer_device": "gpu-new"}


def test_a_publication_replaces_the_one_before(fleet: Fleet) -> None:
    """Rows that a newer version of the files no longer has are gone; rows of another origin stay."""
    fleet.publish(device("a", rack="r1"), device("b", rack="r1"))
    fleet.publish(device("c"), origin=2)
    fleet.later()
    fleet.publish(device("a", rack="r2"))
    assert fleet.rows("SELECT device, rack FROM devices ORDER BY device") == [{"device": "a", "rack": "r2"}, {"device": "c", "rack": None}]


def test_a_publication_counts_once_it_is_whole(fleet: Fleet) -> None:
    """Until a newer publication is complete the older one stays valid as a whole; a row received twice counts once."""
    fleet.publish(device("a"), device("b"))
    fleet.later()
    fleet.publish(device("a"), device("c"), lost=1)
    fleet.publish(device("a"), device("c"), lost=1)
    assert fleet.names() == {"a", "b"}
    fleet.publish(device("a"), device("c"))
    assert fleet.names() == {"a", "c"}


def test_retention_keeps_the_last_row_for_ever(fleet: Fleet) -> None:
    """After years without updates the inventory is still there and has not grown, although it was published many times."""
    for _ in range(20):
        fleet.publish(*(device(f"d{n}") for n in range(50)))
        fleet.put(link("d1", "p", "d2", "p"))
        fleet.archive.run()
        fleet.later(600)
    assert fleet.rows("SELECT count(*) AS n FROM base.inventory") == [{"n": 52}]
    fleet.later(3 * YEAR_S)
    fleet.archive.run()
    fleet.publisher.publish()
    reader = Reader(fleet.folder)
    assert reader.frame("SELECT count(*) FROM devices").item() == 50
    assert reader.frame("SELECT count(*) FROM links").item() == 2
    reader.close()
    assert list((fleet.folder / "segments").rglob("*.parquet")) == []


def test_compaction_changes_no_answer(fleet: Fleet) -> None:
    """Compaction deletes only rows that no view shows, and leaves an incomplete publication."""
    fleet.publish(device("a"), device("b", rack="r1"))
    fleet.later()
    fleet.publish(device("a"), device("b", rack="r2"))
    fleet.put(link("a", "p", "b", "q"), link("a", "p", "b", "q", ts=T0 - 9))
    fleet.later()
    fleet.publish(device("a"), device("z"), lost=1, ts=T0 + 60 * NS_PER_S)
    before = [sorted(map(str, fleet.rows(f"FROM {view}"))) for view in ("inventory", "devices", "links")]
    fleet.archive.run()
    assert [sorted(map(str, fleet.rows(f"FROM {view}"))) for view in ("inventory", "devices", "links")] == before
    assert fleet.rows("SELECT count(*) AS n FROM base.inventory") == [{"n": 3 + 1 + 2}]
    writes = fleet.store.writes
    fleet.archive.run()
    assert fleet.rows("SELECT count(*) AS n FROM base.inventory") == [{"n": 6}]
    fleet.publish(device("a"), device("z"), ts=T0 + 60 * NS_PER_S)
    assert fleet.names() == {"a", "b", "z"}  # b is a's neighbour
    assert fleet.store.writes > writes


def test_devices_are_those_heard_of_and_those_known(fleet: Fleet) -> None:
    """A device with samples and no file, one with a file and no samples, and one that is only a neighbour are all there."""
    state = STATES["port_samples"]
    sample: Row = {field.name: 0 if field.role == "sum" else None for field in state.fields}
    sample |= {"ts": T0, "device": "heard", "port": "p1", "queue": "", "signal": "rx_bytes", "interval_ns": 10**6}
    made = pl.DataFrame({name: pl.Series([sample[name]], dtype=dtype, strict=False) for name, dtype in state.polars.items()})
    fleet.store.insert("base.port_samples_1m", stored(state, made))
    fleet.publish(device("known", rack="r1"), port("known", "p1"), link("known", "p2", "neighbour", "eth0"))
    found = fleet.rows("SELECT device, ports, known_ports, known, last_ts IS NOT NULL AS heard, rack FROM devices ORDER BY device")
    assert [tuple(row.values()) for row in found] == [
        ("heard", 1, 0, False, True, None),
        ("known", 0, 2, True, False, "r1"),
        ("neighbour", 0, 1, True, False, None),
    ]


def test_names_tell_places_where_no_file_does(fleet: Fleet) -> None:
    """A pattern must match the whole name; a value in a file comes first, then that of the first matching pattern with one."""
    naming = [
        {"key": "device 0000", "pattern": r"(?P<rack>r\d+)-(?P<tier>leaf|spine)(?P<rail>\d)?", "rack": r"\1", "tier": r"\2", "rail": r"\3"},
        {"key": "device 0001", "pattern": r"(r\d+)-.*", "rack": r"row \1", "role": r"\0"},
        {"key": "port 0000", "pattern": r".*/eth(\d+)", "rail": r"\1"},
        {"key": "device 0002", "pattern": "(", "rack": r"\1"},
    ]
    fleet.publish(
        *({"kind": "naming", "device": "weft", **row} for row in naming),
        *(device(name) for name in ("r7-leaf3", "r7-spine", "xr7-leaf3", "gpu")),
        device("r8-leaf1", rack="moved"),
        link("r7-spine", "p9", "gpu", "eth5"),
    )
    found = {row["device"]: tuple(row.values())[1:] for row in fleet.rows("SELECT device, rack, rail, tier, role FROM devices")}
    assert found == {
        "r7-leaf3": ("r7", "3", "leaf", "r7-leaf3"),
        "r7-spine": ("r7", None, "spine", "r7-spine"),
        "xr7-leaf3": (None, None, None, None),
        "gpu": (None, None, None, None),
        "r8-leaf1": ("moved", "1", "leaf", "r8-leaf1"),
    }
    ends = {row["device"]: row["rail"] for row in fleet.rows("SELECT device, rail FROM links")}
    assert ends == {"r7-spine": "5", "gpu": "5"}


def test_a_link_is_seen_from_both_ends(fleet: Fleet) -> None:
    """One row of a file gives both ends of a link, with speed, rail, rack and tier; no other source reports it, so agreement is unknown."""
    fleet.publish(
        device("leaf", rack="r1", rail="3", tier="leaf"),
        device("gpu", rack="r2", tier="host"),
        port("leaf", "p1", speed_bps=400 * 10**9),
        link("leaf", "p1", "gpu", "eth0", plane="a"),
    )
    columns = "device, port, peer_device, peer_port, speed_bps, rack, peer_rack, rail, plane, tier, peer_tier, found_device, agrees"
    found = fleet.rows(f"SELECT {columns} FROM links ORDER BY device")
    common = (400 * 10**9,)
    assert [tuple(row.values()) for row in found] == [
        ("gpu", "eth0", "leaf", "p1", *common, "r2", "r1", "3", "a", "host", "leaf", None, None),
        ("leaf", "p1", "gpu", "eth0", *common, "r1", "r2", "3", "a", "leaf", "host", None, None),
    ]


def ends(fleet: Fleet) -> dict[tuple[object, object], object]:
    return {(row["device"], row["port"]): row["agrees"] for row in fleet.rows("SELECT device, port, agrees FROM links")}


@pytest.mark.parametrize(
    ("stated", "seen", "expected"),
    [
        pytest.param([link("a", "1", "b", "2")], [], {("a", "1"): None, ("b", "2"): None}, id="a file alone"),
        pytest.param([], [link("a", "1", "b", "2")], {("a", "1"): None, ("b", "2"): None}, id="one end alone"),
        pytest.param([], [link("a", "1", "b", "2"), link("b", "2", "a", "1")], {("a", "1"): True, ("b", "2"): True}, id="both ends"),
        pytest.param([link("b", "2", "a", "1")], [link("a", "1", "b", "2")], {("a", "1"): True, ("b", "2"): True}, id="file and LLDP"),
        pytest.param(
            [link("a", "1", "b", "2")],
            [link("a", "1", "c", "3")],
            {("a", "1"): False, ("b", "2"): False, ("c", "3"): False},
            id="miscabled",
        ),
        pytest.param(
            [],
            [link("a", "1", "b", "2"), link("b", "2", "c", "3")],
            {("a", "1"): False, ("b", "2"): False, ("c", "3"): False},
            id="the other end sees somebody else",
        ),
        pytest.param(
            [],
            [link("a", "1", "b", "2"), link("c", "3", "b", "2")],
            {("a", "1"): False, ("b", "2"): False, ("c", "3"): False},
            id="two ends see the same port",
        ),
        pytest.param(
            [link("a", "1", "b", "2")], [link("a", "1", "b", "4")], {("a", "1"): False, ("b", "2"): False, ("b", "4"): False}, id="port"
        ),
        pytest.param([link("a", "1", "b")], [link("a", "1", "b", "2")], {("a", "1"): True, ("b", "2"): None}, id="a port that is not told"),
        pytest.param(
            [link("a", "1", "b", "2")], [link("a", "1", "b.example.net", "two")], {("a", "1"): True, ("b", "2"): True}, id="names"
        ),
    ],
)
def test_links_say_whether_two_statements_agree(fleet: Fleet, stated: list[Row], seen: list[Row], expected: dict) -> None:
    """True if two statements agree, false at every end of a contradiction, NULL with a single statement."""
    if stated:
        fleet.publish(*stated, port("b", "2", alias="two"))
    fleet.put(*seen)
    assert ends(fleet) == expected


def test_what_is_seen_goes_before_what_is_configured(fleet: Fleet) -> None:
    """The other end is the one from LLDP; the one from files is beside it, and a link without LLDP has none."""
    fleet.publish(link("a", "1", "b", "2"), link("a", "9", "b", "8"))
    fleet.put(link("a", "1", "c", "3"))
    columns = "peer_device, peer_port, configured_device, configured_port, found_device, found_port"
    (crossed,) = fleet.rows(f"SELECT {columns} FROM links WHERE device = 'a' AND port = '1'")
    assert tuple(crossed.values()) == ("c", "3", "b", "2", "c", "3")
    (missing,) = fleet.rows(f"SELECT {columns} FROM links WHERE device = 'a' AND port = '9'")
    assert tuple(missing.values()) == ("b", "8", "b", "8", None, None)


def test_a_store_made_before_gains_the_columns(tmp_path: Path) -> None:
    """A store whose tables lack a column that a family has gained since is opened, and takes rows that have it."""
    one = Fleet(tmp_path)
    one.put(device("before"))
    one.store.execute("DROP VIEW main.links")
    one.store.execute("DROP VIEW main.devices")
    one.store.execute("DROP VIEW main.inventory")
    for column in ("alias", "pattern", "rows"):
        one.store.execute(f"ALTER TABLE base.inventory DROP COLUMN {column}")
    one.store.stop()
    again = Fleet(tmp_path)
    again.put(port("before", "p", alias="two"))
    assert again.rows("SELECT device, alias FROM inventory ORDER BY kind") == [
        {"device": "before", "alias": None},
        {"device": "before", "alias": "two"},
    ]
    again.store.stop()


@pytest.mark.skipif(not LINGJUN.is_file(), reason="the shared data folder is not here")
def test_hosts_per_rack_of_a_real_cluster(fleet: Fleet) -> None:
    """Hosts per rack of the published topology, by SQL, equal a count of its lines."""
    with LINGJUN.open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = Counter("-".join((line["DSW"], line["PSW"], line["ASW"])) for line in lines)
    rows = [device(line["ip"], rack="-".join((line["DSW"], line["PSW"], line["ASW"])), tier="host") for line in lines]
    fleet.publish(*rows, *(device(rack, rack=rack, tier="leaf") for rack in expected))
    found = fleet.rows("SELECT rack, count(*) AS hosts FROM devices WHERE tier = 'host' GROUP BY rack")
    assert {row["rack"]: row["hosts"] for row in found} == expected
