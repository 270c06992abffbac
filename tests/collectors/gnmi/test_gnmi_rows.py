"""gNMI updates to rows: paths in all their spellings, stored states, links, deletes, and the limits."""

import json

import numpy as np
import pytest
from gnmi_pb import gnmi_pb2

from weft.collectors.gnmi.decoder import Decoder, Limits, Messages

TS = 1_700_000_000_000_000_000
RECV_TS = TS + 5


def path(*steps: str | tuple[str, dict[str, str]], origin: str = "", target: str = "") -> gnmi_pb2.Path:
    """Return a path of names, or names with keys."""
    made = gnmi_pb2.Path(origin=origin, target=target)
    for step in steps:
        name, keys = (step, {}) if isinstance(step, str) else step
        made.elem.add(name=name, key=keys)
    return made


def response(
    prefix: gnmi_pb2.Path, updates: list[tuple[gnmi_pb2.Path, gnmi_pb2.TypedValue]], deletes=(), ts: int = TS, atomic: bool = False
) -> bytes:
    """Return a SubscribeResponse with one notification."""
    note = gnmi_pb2.Notification(timestamp=ts, prefix=prefix, delete=list(deletes), atomic=atomic)
    for where, value in updates:
        note.update.add(path=where, val=value)
    return gnmi_pb2.SubscribeResponse(update=note).SerializeToString()


def uint(value: int) -> gnmi_pb2.TypedValue:
    """Return an unsigned number."""
    return gnmi_pb2.TypedValue(uint_val=value)


def text(value: str) -> gnmi_pb2.TypedValue:
    """Return a text."""
    return gnmi_pb2.TypedValue(string_val=value)


class Device:
    """A decoder with one stream, fed message by message."""

    def __init__(self, limits: Limits | None = None, *, names_devices: bool = False) -> None:
        self.decoder = Decoder(limits or Limits())
        self.stream = self.decoder.stream("leaf1", names_devices=names_devices)

    def send(self, *raw: bytes) -> dict[str, list[dict]]:
        """Return the rows of the messages by family, without nulls."""
        n = len(raw)
        decoded = self.decoder.decode(Messages(raw, np.full(n, self.stream, np.int32), np.full(n, RECV_TS, np.int64)))
        found: dict[str, list[dict]] = {}
        for batch in decoded.batches:
            found.setdefault(batch.family, []).extend(
                {name: value for name, value in row.items() if value is not None} for row in batch.frame.iter_rows(named=True)
            )
        return found


HEAD = {"ts": TS, "recv_ts": RECV_TS, "source": "gnmi", "device": "leaf1", "epoch": 0}
INTERFACE = ("interface", {"name": "eth1"})
OCTETS = ("interfaces", INTERFACE, "state", "counters", "in-octets")
OPER = path("interfaces", INTERFACE, "state", "oper-status")
SPEED = path("interfaces", INTERFACE, "ethernet", "state", "port-speed")


@pytest.mark.parametrize(
    ("prefix", "rest"),
    [
        (path(), path(*OCTETS)),
        (path(*OCTETS[:2]), path(*OCTETS[2:])),
        (path(*OCTETS), path()),
        (path(origin="openconfig"), path(*OCTETS)),
        (path(), path(*OCTETS, origin="openconfig")),
        (path(), path("openconfig-interfaces:interfaces", *OCTETS[1:])),
        (path("openconfig-interfaces:interfaces", ("oc-if:interface", {"oc-if:name": "eth1"})), path(*OCTETS[2:])),
        (path("interfaces", "interface", ("", {"name": "eth1"})), path(*OCTETS[2:])),
        (path("interfaces", "interface"), path(("", {"name": "eth1"}), *OCTETS[2:])),
        (gnmi_pb2.Path(), gnmi_pb2.Path(element=["interfaces", "interface[name=eth1]", "state", "counters", "in-octets"])),
        (gnmi_pb2.Path(element=["interfaces"]), gnmi_pb2.Path(element=["interface[name=eth1]", "state", "counters", "in-octets"])),
        (path(target="leaf1"), path(*OCTETS)),
    ],
)
def test_a_path_is_one_however_it_is_spelt(prefix, rest):
    """Origin, prefix, modules, keys without a name and the old form of paths all lead to the same row."""
    assert Device().send(response(prefix, [(rest, uint(9))])) == {"port": [HEAD | {"port": "eth1", "rx_bytes": 9}]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (uint(2**64 - 1), 2**64 - 1),
        (gnmi_pb2.TypedValue(int_val=5), 5),
        (text("18446744073709551615"), 2**64 - 1),
        (gnmi_pb2.TypedValue(double_val=7.0), 7),
        (gnmi_pb2.TypedValue(json_ietf_val=b'"12"'), 12),
        (gnmi_pb2.TypedValue(json_val=b" 12 "), 12),
        (gnmi_pb2.TypedValue(decimal_val=gnmi_pb2.Decimal64(digits=1200, precision=2)), 12),
    ],
)
def test_a_counter_may_come_in_any_type(value, expected):
    """A counter is exact to 64 bits, whichever type of value carries it."""
    assert Device().send(response(path(), [(path(*OCTETS), value)]))["port"][0]["rx_bytes"] == expected


@pytest.mark.parametrize(
    "value", [text("N/A"), text(""), text("12x"), gnmi_pb2.TypedValue(int_val=-1), gnmi_pb2.TypedValue(double_val=-0.6)]
)
def test_what_is_no_count_is_null_and_counted(value):
    """A counter's value that is not a count leaves its column null, and is counted; it is never 0."""
    device = Device()
    found = device.send(response(path(), [(path(*OCTETS), value), (path(*OCTETS[:-1], "out-octets"), uint(3))]))
    assert found["port"] == [HEAD | {"port": "eth1", "tx_bytes": 3}]
    assert device.decoder.counts["not_a_number"] == 1


def test_the_old_form_of_values_is_read():
    """A value in the form before typed values, bytes of JSON, is read."""
    note = gnmi_pb2.Notification(timestamp=TS)
    note.update.add(path=path(*OCTETS), value=gnmi_pb2.Value(value=b"41", type=gnmi_pb2.JSON))
    assert Device().send(gnmi_pb2.SubscribeResponse(update=note).SerializeToString())["port"][0]["rx_bytes"] == 41


def test_one_object_and_time_is_one_row():
    """Leaves of one object and time share a row even across messages; another time, object or device begins another."""
    leaves = [path(*OCTETS[:-1], name) for name in ("in-octets", "out-octets", "in-errors")]
    device = Device(names_devices=True)
    found = device.send(
        response(path(), [(leaves[0], uint(1))]),
        response(path(), [(leaves[1], uint(2))]),
        response(path(), [(leaves[2], uint(3))], ts=TS + 1),
        response(path(target="leaf2"), [(leaves[0], uint(4))]),
    )
    assert found["port"] == [
        HEAD | {"port": "eth1", "rx_bytes": 1, "tx_bytes": 2},
        HEAD | {"ts": TS + 1, "port": "eth1", "rx_errors": 3},
        HEAD | {"device": "leaf2", "port": "eth1", "rx_bytes": 4},
    ]


def test_only_a_gateway_names_devices():
    """The target in a prefix is the device only if the stream may name devices, and if it is not a database."""
    raw = response(path(target="spine9"), [(path(*OCTETS), uint(1))])
    assert Device().send(raw)["port"][0]["device"] == "leaf1"
    assert Device(names_devices=True).send(raw)["port"][0]["device"] == "spine9"
    database = response(path(target="COUNTERS_DB"), [(path(*OCTETS), uint(1))])
    assert Device(names_devices=True).send(database)["port"][0]["device"] == "leaf1"


def test_a_message_without_time_has_that_of_its_receipt():
    """A notification without a time gets its receive time."""
    assert Device().send(response(path(), [(path(*OCTETS), uint(1))], ts=0))["port"][0]["ts"] == RECV_TS


def test_queues_are_rows_of_their_own():
    """Counters of egress queues are rows by queue, named by the bare number where the device writes more."""
    queue = ("queue", {"name": "UC3"})
    where = ("qos", "interfaces", ("interface", {"interface-id": "eth1"}), "output", "queues", queue, "state")
    updates = [(path(*where, name), uint(n)) for n, name in enumerate(("transmit-pkts", "transmit-octets", "ecn-marked-pkts"), 1)]
    expected = {"port": "eth1", "queue": "3", "direction": "tx", "packets": 1, "bytes": 2, "ecn_marked_packets": 3}
    assert Device().send(response(path(), updates)) == {"queue": [HEAD | expected]}


SONIC = {
    "SAI_PORT_STAT_IF_IN_OCTETS": "100",
    "SAI_PORT_STAT_PFC_3_RX_PKTS": "7",
    "SAI_PORT_STAT_PFC_3_RX_PAUSE_DURATION_US": "70",
    "SAI_PORT_STAT_IF_IN_FEC_CODEWORD_ERRORS_S0": "5",
    "SAI_PORT_STAT_IF_IN_FEC_CODEWORD_ERRORS_S2": "1",
    "SAI_PORT_STAT_NOBODY_KNOWS": "8",
}


@pytest.mark.parametrize(
    ("prefix", "where", "tree"),
    [
        (path(target="COUNTERS_DB"), path("COUNTERS", "Ethernet4"), SONIC),
        (path(target="COUNTERS_DB"), path("COUNTERS", "Ethernet*"), {"Ethernet4": SONIC}),
        (path(), path("COUNTERS_DB", "COUNTERS", "Ethernet4"), SONIC),
        (path(origin="sonic-db"), path("COUNTERS_DB", "localhost", "COUNTERS", "Ethernet4"), SONIC),
    ],
)
def test_sonic_ports_have_pause_and_bins(prefix, where, tree):
    """A port of SONiC's counters gives its row with FEC bins, a row for each priority's pause, and readings of unknown counters."""
    value = gnmi_pb2.TypedValue(json_ietf_val=json.dumps(tree).encode())
    found = Device().send(response(prefix, [(where, value)]))
    assert found["port"] == [HEAD | {"port": "Ethernet4", "rx_bytes": 100, "fec_bins": [5, None, 1]}]
    pause = {"port": "Ethernet4", "queue": "3", "direction": "tx", "pfc_rx_frames": 7, "pfc_rx_pause_us": 70}
    assert found["queue"] == [HEAD | pause]
    assert [(row["kind"], row["object"], row["count"]) for row in found["reading"]] == [("port", "Ethernet4", 8)]


def test_sonic_queues_and_groups_have_their_direction():
    """SONiC's queues are tx, its ingress priority groups rx, named by port and number; a single field is read like a tree."""
    tree = {"Ethernet4:3": {"SAI_QUEUE_STAT_PACKETS": "9", "SAI_QUEUE_STAT_SHARED_WATERMARK_BYTES": "10"}}
    queues = (path("COUNTERS", "Ethernet*", "Queues"), gnmi_pb2.TypedValue(json_ietf_val=json.dumps(tree).encode()))
    group = "SAI_INGRESS_PRIORITY_GROUP_STAT_XOFF_ROOM_WATERMARK_BYTES"
    groups = (path("PERIODIC_WATERMARKS", "Ethernet4", "PriorityGroups", "Ethernet4:3", group), text("11"))
    found = Device().send(response(path(target="COUNTERS_DB"), [queues, groups]))["queue"]
    port = HEAD | {"port": "Ethernet4", "queue": "3"}
    assert port | {"direction": "rx", "headroom_watermark_bytes": 11} in found
    assert any(row["direction"] == "tx" and row["packets"] == 9 for row in found)


@pytest.mark.parametrize(
    ("said", "bps"),
    [
        ("SPEED_400GB", 400_000_000_000),
        ("openconfig-if-ethernet:SPEED_2500MB", 2_500_000_000),
        ("100G", 100_000_000_000),
        ("1.6T", 1_600_000_000_000),
    ],
)
def test_a_line_rate_is_remembered_for_the_rows_without_one(said, bps):
    """A line rate reported once is in all later rows of the port and its queues."""
    device = Device()
    device.send(response(path(), [(SPEED, text(said))]))
    queue = path(
        "qos", "interfaces", ("interface", {"interface-id": "eth1"}), "output", "queues", ("queue", {"name": "0"}), "state", "dropped-pkts"
    )
    found = device.send(response(path(), [(path(*OCTETS), uint(1)), (queue, uint(0))]))
    assert found["port"][0]["speed_bps"] == bps == found["queue"][0]["speed_bps"]


def test_link_states_are_reported_and_changes_are_left_to_the_windows():
    """Each reported link state is in its row; events of changes are left to the window service, which sees the rows of all sources."""
    device = Device()
    found = device.send(
        response(path(), [(OPER, text("UP"))], ts=TS + 1),
        response(path(), [(OPER, text("LOWER_LAYER_DOWN"))], ts=TS + 2),
        response(path(), [(OPER, text("UNKNOWN"))], ts=TS + 3),
        response(path(), [(OPER, text("UP"))], ts=TS + 4),
    )
    assert [row.get("oper_up") for row in found["port"]] == [True, False, None, True]
    assert set(found) == {"port"}


def test_a_line_rate_holds_from_its_report():
    """A rate that changes within a call is in later rows, of queues too; rows before any rate have the first that follows."""
    device = Device()
    queue = path(
        "qos", "interfaces", ("interface", {"interface-id": "eth1"}), "output", "queues", ("queue", {"name": "0"}), "state", "dropped-pkts"
    )
    said = [
        response(path(), [(path(*OCTETS), uint(1)), (queue, uint(0))]),
        response(path(), [(SPEED, text("SPEED_400GB"))], ts=TS + 1),
        response(path(), [(path(*OCTETS), uint(2)), (queue, uint(0))], ts=TS + 2),
        response(path(), [(path(*OCTETS), uint(3)), (SPEED, text("SPEED_100GB"))], ts=TS + 3),
        response(path(), [(path(*OCTETS), uint(4)), (queue, uint(0))], ts=TS + 4),
    ]
    found = device.send(*said[1:])
    rates = {family: [(row["ts"] - TS, row["speed_bps"] // 10**9) for row in rows] for family, rows in found.items()}
    assert rates == {"port": [(1, 400), (2, 400), (3, 100), (4, 100)], "queue": [(2, 400), (4, 100)]}
    assert [row["speed_bps"] // 10**9 for row in Device().send(*said[:2])["port"]] == [400, 400]


@pytest.mark.parametrize(
    "forgets",
    [
        response(path(), [], [path("interfaces", INTERFACE)]),
        response(path("interfaces"), [], [path(INTERFACE)]),
        response(path(), [], [path()]),
        response(path(), [], [path("interfaces", ("interface", {"name": "*"}))]),
        response(path("interfaces", INTERFACE), [], [], atomic=True),
    ],
)
def test_what_is_deleted_or_replaced_is_forgotten(forgets):
    """After a delete, or a notification that replaces all below, a link's rate is unknown."""
    device = Device()
    device.send(response(path(), [(OPER, text("UP")), (SPEED, text("SPEED_10GB"))]))
    assert device.send(forgets) == {}
    found = device.send(response(path(), [(OPER, text("DOWN"))]))
    assert found == {"port": [HEAD | {"port": "eth1", "oper_up": False}]}


@pytest.mark.parametrize(
    "keeps", [path("interfaces", ("interface", {"name": "eth2"})), path("interfaces", INTERFACE, "subinterfaces"), path("qos")]
)
def test_a_delete_forgets_no_more_than_it_says(keeps):
    """A delete of another object, or of something beside a rate, leaves the rate unchanged."""
    device = Device()
    device.send(response(path(), [(SPEED, text("SPEED_10GB"))]))
    device.send(response(path(), [], [keeps]))
    assert device.send(response(path(), [(OPER, text("DOWN"))]))["port"][0]["speed_bps"] == 10**10


def test_a_boot_begins_a_new_epoch():
    """Rows have the last reported boot time as their epoch; a reboot changes it."""
    device, boot = Device(), path("system", "state", "boot-time")
    assert device.send(response(path(), [(path(*OCTETS), uint(1))]))["port"][0]["epoch"] == 0
    for at in (TS - 10**15, TS - 10):
        device.send(response(path(), [(boot, uint(at))]))
        assert device.send(response(path(), [(path(*OCTETS), uint(1))]))["port"][0]["epoch"] == at


def test_a_boot_time_that_wavers_is_one_boot():
    """A boot time computed from the clock moves with it by seconds; that is not a reboot."""
    device, boot, first = Device(), path("system", "state", "boot-time"), TS - 10**15
    for moved in (0, 10**9, -(10**9), 5 * 10**9):
        device.send(response(path(), [(boot, uint(first + moved))]))
        assert device.send(response(path(), [(path(*OCTETS), uint(1))]))["port"][0]["epoch"] == first


NEIGHBOUR = ("lldp", "interfaces", INTERFACE, "neighbors", ("neighbor", {"id": "1"}))


def neighbour(name: str, port: str, **more) -> bytes:
    """Return a notification of one neighbour."""
    leaves = [
        (path("state", "system-name"), text(name)),
        (path("state", "port-id"), text(port)),
        (path("state", "chassis-id"), text("02:00")),
    ]
    return response(path(*NEIGHBOUR), leaves, **more)


def test_neighbours_become_links():
    """A neighbour is a link in the inventory, written again only when it changes, and without a peer when it is gone."""
    device = Device()
    link = HEAD | {"kind": "link", "key": "eth1", "peer_device": "spine1", "peer_port": "eth7"}
    assert device.send(neighbour("spine1", "eth7")) == {"inventory": [link]}
    assert device.send(neighbour("spine1", "eth7")) == {}
    assert device.send(neighbour("spine2", "eth7", atomic=True)) == {"inventory": [link | {"peer_device": "spine2"}]}
    assert device.send(response(path(), [], [path(*NEIGHBOUR)])) == {"inventory": [HEAD | {"kind": "link", "key": "eth1"}]}


def test_paths_of_one_stream_have_a_limit():
    """A stream that invents paths gets its share only: the rest is counted and becomes a gap, and other streams go on."""
    device = Device(Limits(paths_per_stream_max=50))
    other = device.decoder.stream("leaf2")
    flood = [(path(f"leaf-{n}"), uint(n)) for n in range(100)]
    found = device.send(response(path(), flood))
    assert found["gap"] == [HEAD | {"what": "updates", "missed": 100 - len(found["reading"]), "reason": "paths_full"}]
    assert 45 <= len(found["reading"]) <= 50
    device.stream = other
    assert len(device.send(response(path(), flood[80:]))["reading"]) == 20


def test_syncs_and_what_is_beside_updates():
    """The end of the initial dump is reported; an update without a value, and an empty message, make no row."""
    device = Device()
    note = gnmi_pb2.Notification(timestamp=TS)
    note.update.add(path=path("a"))
    raw = [
        gnmi_pb2.SubscribeResponse(update=note).SerializeToString(),
        gnmi_pb2.SubscribeResponse(sync_response=True).SerializeToString(),
        b"",
    ]
    decoded = device.decoder.decode(Messages(raw, np.zeros(3, np.int32), np.full(3, RECV_TS, np.int64)))
    assert decoded.batches == []
    assert decoded.synced.tolist() == [False, True, False]
    assert device.decoder.counts["no_value"] == 1


def test_arista_counters_of_its_own_tree():
    """The path of Arista's own tree names the agent and the interface as words; the port is the latter."""
    where = path(
        "Smash", "counters", "ethIntf", "StrataCounters", "current", "counter", "Ethernet1/1", "statistics", "inOctets", origin="eos_native"
    )
    assert Device().send(response(path(), [(where, uint(4))]))["port"] == [HEAD | {"port": "Ethernet1/1", "rx_bytes": 4}]
