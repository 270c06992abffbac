"""The inventory: SONiC, containerlab, CSV and TOML files become rows, complete and bounded, and changes are noticed."""

import csv
import json
import shutil
import socket
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from shared_data import SHARED

from weft.collectors import COLLECTORS
from weft.collectors.base import Batch, Options
from weft.collectors.inventory import yaml_tree
from weft.collectors.inventory.files import FILE_BYTES_MAX, INVENTORY, Inventory, InventoryConfig, InventoryFile, read_file
from weft.collectors.replay import recogniser
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import ConfigError, InputError
from weft.pipeline.tables.families import FAMILIES

DCB = SHARED / "dcb-lldp-pcap"
LINGJUN = SHARED / "alibaba-lingjun" / "topo.csv"

SONIC = {
    "BUFFER_POOL": {
        "ingress_lossless_pool": {"mode": "dynamic", "size": "165364160", "type": "ingress", "xoff": "28321760"},
        "egress_lossy_pool": {"mode": "dynamic", "size": 9243812, "type": "egress"},
    },
    "DEVICE_METADATA": {"localhost": {"hostname": "rail3-leaf7", "hwsku": "Quanta-IX9", "type": "ToRRouter", "mac": "52:54:00:12:34:56"}},
    "DEVICE_NEIGHBOR": {
        "Ethernet0": {"name": "gpu-12", "port": "mlx5_3"},
        "spine-1": {"local_port": "Ethernet8", "port": "etp4", "type": "LeafRouter", "mgmt_addr": None},
    },
    "DEVICE_NEIGHBOR_METADATA": {"gpu-12": {"type": "Server", "hwsku": "HGX"}, "spine-1": {"type": "LeafRouter"}},
    "PORT": {
        "Ethernet0": {"alias": "etp1", "lanes": "0,1,2,3,4,5,6,7", "speed": "400000", "index": "1", "mtu": "9100", "admin_status": "up"},
        "Ethernet8": {"alias": "etp2", "lanes": "8,9,10,11", "speed": 800000, "fec": "rs"},
    },
    "PORT_QOS_MAP": {"Ethernet0,Ethernet8": {"pfc_enable": "3,4", "tc_to_queue_map": "AZURE"}, "global": {"dscp_to_tc_map": "AZURE"}},
    "WRED_PROFILE": {
        "AZURE_LOSSLESS": {
            "ecn": "ecn_all",
            "green_min_threshold": "250000",
            "green_max_threshold": "2097152",
            "green_drop_probability": "5",
        }
    },
}

CLAB = """
name: rails
x-place: &place {rack: n1, tier: leaf}
topology:
  defaults: {kind: linux, labels: {plane: a}}
  kinds:
    nokia_srlinux: {labels: {role: switch}}
  groups:
    spines: {kind: nokia_srlinux, labels: {tier: spine}}
  nodes:
    leaf1: {kind: nokia_srlinux, labels: {<<: *place, rail: 0}}
    leaf2: {kind: nokia_srlinux, labels: {rail: 1, rack: n2, <<: *place}}
    spine1: {group: spines}
    gpu1: {group: host}
    plain: ~
  links:
    - endpoints: ["leaf1:e1-1", "gpu1:eth0"]
    - endpoints: [leaf2:e1-1, gpu1:eth1]
      labels: {rail: "1", speed_bps: 400000000000}
      vars: {plane: b}
    - type: veth
      endpoints:
        - {node: leaf1, interface: e1-49, mac: 02:00:00:00:00:01}
        - {node: spine1, interface: e1-1}
    - endpoints: ["leaf1:mgmt0", "mgmt-net:leaf1"]
    - {type: host, endpoint: {node: gpu1, interface: eth9}, host-interface: veth9}
"""


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogateescape"))
    return path


def read(path: Path, **options: Any) -> tuple[list[Batch], InputError | None]:
    """Return the batches of a file, through the collector that recognises it, and the error after them if there is one."""
    collector = recogniser(path, None)
    assert collector is INVENTORY
    assert collector.recorded is not None
    batches: list[Batch] = []
    try:
        batches.extend(collector.recorded(path, Options(**options)).batches())
    except InputError as error:
        return batches, error
    return batches, None


def rows(batches: list[Batch], kind: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the columns of each (device, key) of a kind, nulls left out."""
    (frame,) = [batch.frame for batch in batches if batch.family == "inventory"]
    common = ("ts", "recv_ts", "source", "epoch", "kind", "device", "key")
    return {
        (row["device"], row["key"]): {name: value for name, value in row.items() if value is not None and name not in common}
        for row in frame.filter(pl.col("kind") == kind).iter_rows(named=True)
    }


def readings(batches: list[Batch]) -> dict[tuple[str, str, str], Any]:
    (frame,) = [batch.frame for batch in batches if batch.family == "reading"]
    found = {}
    for row in frame.iter_rows(named=True):
        found[row["kind"], row["object"], row["name"]] = row["text"] if row["text"] is not None else row["value"]
        assert row["count"] in (None, row["value"])
    return found


def test_a_switchs_configuration_tells_its_ports_and_neighbours(tmp_path: Path) -> None:
    """A config_db.json gives the switch, each port with its speed in bit/s, and both forms of neighbours as links."""
    batches, fault = read(write(tmp_path / "config_db.json", SONIC))
    assert fault is None
    assert rows(batches, "device") == {
        ("rail3-leaf7", "rail3-leaf7"): {"role": "ToRRouter", "tier": "leaf"},
        ("gpu-12", "gpu-12"): {"role": "Server", "tier": "host"},
        ("spine-1", "spine-1"): {"role": "LeafRouter", "tier": "spine"},
    }
    assert rows(batches, "port") == {
        ("rail3-leaf7", "Ethernet0"): {"speed_bps": 400 * 10**9, "alias": "etp1"},
        ("rail3-leaf7", "Ethernet8"): {"speed_bps": 800 * 10**9, "alias": "etp2"},
    }
    assert rows(batches, "link") == {
        ("rail3-leaf7", "Ethernet0"): {"peer_device": "gpu-12", "peer_port": "mlx5_3"},
        ("rail3-leaf7", "Ethernet8"): {"peer_device": "spine-1", "peer_port": "etp4"},
    }


def test_buffers_and_lossless_priorities_become_readings(tmp_path: Path) -> None:
    """Pool sizes, WRED thresholds, and for each of eight priorities whether PFC protects it, are readings of the switch."""
    batches, _ = read(write(tmp_path / "config_db.json", SONIC))
    found = readings(batches)
    assert found["pool", "ingress_lossless_pool", "buffer_pool_size_bytes"] == 165364160
    assert found["pool", "ingress_lossless_pool", "buffer_pool_xoff_bytes"] == 28321760
    assert found["pool", "egress_lossy_pool", "buffer_pool_size_bytes"] == 9243812
    assert ("pool", "egress_lossy_pool", "buffer_pool_xoff_bytes") not in found
    lossless = {what: value for (kind, what, name), value in found.items() if (kind, name) == ("queue", "pfc_enabled")}
    assert lossless == {f"{port}/{n}": float(n in (3, 4)) for port in ("Ethernet0", "Ethernet8") for n in range(8)}
    wred = {name: value for (kind, _, name), value in found.items() if kind == "wred"}
    assert wred == {
        "wred_ecn": "ecn_all",
        "wred_green_min_threshold_bytes": 250000,
        "wred_green_max_threshold_bytes": 2097152,
        "wred_green_probability_ratio": 0.05,
    }
    assert found["port", "Ethernet0", "lanes"] == 8
    assert found["port", "Ethernet0", "mtu_bytes"] == 9100
    assert found["device", "", "hwsku"] == "Quanta-IX9"


def test_a_wrong_entry_costs_itself_only(tmp_path: Path) -> None:
    """A speed that is no number, a port that is no table, priorities above 7: each is a fault with its place, the rest is used."""
    broken = {**SONIC, "PORT": {"Ethernet0": {"speed": "fast"}, "Ethernet4": 7, "Ethernet8": {"speed": "800000"}}}
    broken["PORT_QOS_MAP"] = {"Ethernet0": {"pfc_enable": "3,9"}, "Ethernet8": {"pfc_enable": "3"}}
    path = write(tmp_path / "config_db.json", broken)
    batches, fault = read(path)
    assert str(fault) == f"{path}: PORT.Ethernet0: speed is 'fast'; give Mb/s; the port is used without a speed"
    assert rows(batches, "port") == {("rail3-leaf7", "Ethernet0"): {}, ("rail3-leaf7", "Ethernet8"): {"speed_bps": 800 * 10**9}}
    assert {what for kind, what, _ in readings(batches) if kind == "queue"} == {f"Ethernet8/{n}" for n in range(8)}
    assert read_file(path, None).faulty == 3


def test_a_containerlab_topology_tells_places_and_links(tmp_path: Path) -> None:
    """Labels come from node, group, kind and defaults, the nearest counts; each link is one row; links out of the lab are left out."""
    batches, fault = read(write(tmp_path / "rails.clab.yml", CLAB))
    assert fault is None
    assert rows(batches, "device") == {
        ("leaf1", "leaf1"): {"rack": "n1", "rail": "0", "plane": "a", "tier": "leaf", "role": "switch"},
        ("leaf2", "leaf2"): {"rack": "n2", "rail": "1", "plane": "a", "tier": "leaf", "role": "switch"},
        ("spine1", "spine1"): {"plane": "a", "tier": "spine", "role": "switch"},
        ("gpu1", "gpu1"): {"plane": "a", "tier": "host", "role": "host"},
        ("plain", "plain"): {"plane": "a"},
    }
    assert rows(batches, "link") == {
        ("leaf1", "e1-1"): {"peer_device": "gpu1", "peer_port": "eth0"},
        ("leaf2", "e1-1"): {"peer_device": "gpu1", "peer_port": "eth1", "rail": "1", "plane": "b", "speed_bps": 400 * 10**9},
        ("leaf1", "e1-49"): {"peer_device": "spine1", "peer_port": "e1-1"},
    }


def test_an_interface_in_two_links_is_a_fault(tmp_path: Path) -> None:
    """The first link of an interface is used, the second is named."""
    ends = ('["a:1", "b:1"]', '["a:1", "b:2"]', '["a:3"]')
    text = "topology:\n  nodes: {a: {}, b: {}}\n  links:\n" + "".join(f"    - endpoints: {end}\n" for end in ends)
    path = write(tmp_path / "t.yaml", text)
    batches, fault = read(path)
    assert str(fault) == f"{path}: link 2: a:1 is in another link already; give each interface one link; the first one is used"
    assert list(rows(batches, "link")) == [("a", "1")]
    assert read_file(path, None).faulty == 2


@pytest.mark.parametrize("merge", [False, True])
def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path, merge: bool) -> None:
    """A billion laughs, as lists or as merged tables, costs neither memory nor time: the error names the line where it grows too large."""
    lines = ["topology:", "  a0: &a0 {x: [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]}"]
    for n in range(1, 30):
        many = ", ".join([f"*a{n - 1}"] * 10)
        lines.append(f"  a{n}: &a{n} {{<<: [{many}]}}" if merge else f"  a{n}: &a{n} {{x: [{many}]}}")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"line 8: unfolds to more than"):
        read_file(write(tmp_path / "bomb.yml", "\n".join(lines)), None)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("topology: {nodes: {a: *nothing}}", "line 1: *nothing names nothing that stands before it"),
        ("topology: &t {nodes: *t}", "line 1: *t names nothing that stands before it"),
        ("topology:\n  nodes: [\n", "line 3: is not YAML"),
        ("topology:\n  ? [a]\n  : b\n", "line 2: cannot be used (found unhashable key)"),
        ("topology: " + "[" * 100 + "]" * 100, "line 1: is nested deeper than 64"),
        ("topology: 5", "has no table 'topology'"),
        ("topology: {nodes: {a: {labels: {<<: x}}}}", "line 1: cannot be used (expected a mapping or list of mappings for merging"),
    ],
)
def test_broken_yaml_is_one_sentence_with_the_line(tmp_path: Path, text: str, problem: str) -> None:
    """YAML that is broken, contains itself or is nested too deep is refused with its place."""
    with pytest.raises(InputError) as caught:
        read_file(write(tmp_path / "t.yml", text), None)
    assert caught.value.problem.startswith(problem)


def test_yaml_scalars_stay_text(tmp_path: Path) -> None:
    """No tag makes an object and no word a number or a boolean: scalars stay text."""
    text = "topology: {a: 1e3, b: on, c: !!python/object/apply:os.system [echo], d: 0x1F, e: '~', f: ~, g: 2020-01-01}"
    tree = yaml_tree.read_yaml(tmp_path, text.encode())
    assert tree == {"topology": {"a": "1e3", "b": "on", "c": ["echo"], "d": "0x1F", "e": "~", "f": "", "g": "2020-01-01"}}


def test_a_table_in_csv(tmp_path: Path) -> None:
    """A CSV with the family's columns gives its rows; of a key that occurs twice the last value of each column counts."""
    text = "kind,device,key,rail,rack,peer_device,peer_port,speed_bps\ndevice,,leaf1,3,r1,,,\nport,leaf1,p1,,,,,400000000000\n"
    text += "link,leaf1,p1,,,gpu1,eth0,\ndevice,leaf1,leaf1,4,,,,\njob,,llama,,,,,\n"
    batches, fault = read(write(tmp_path / "fleet.csv", text))
    assert fault is None
    assert rows(batches, "device") == {("leaf1", "leaf1"): {"rail": "4", "rack": "r1"}}
    assert rows(batches, "port") == {("leaf1", "p1"): {"speed_bps": 400 * 10**9}}
    assert rows(batches, "link") == {("leaf1", "p1"): {"peer_device": "gpu1", "peer_port": "eth0"}}
    assert rows(batches, "job") == {("llama", "llama"): {}}
    assert rows(batches, "publication")[socket.gethostname(), f"file {tmp_path / 'fleet.csv'}"] == {"rows": 4}


@pytest.mark.parametrize(
    ("text", "problem", "kept"),
    [
        ("kind,key,rakc\ndevice,a,b\n", "line 1: inventory has no column 'rakc'; did you mean 'rack'?", None),
        ("kind,key\ndevice,a\ndevice\n", "line 3: ends after 1 of 2 columns, 'key' is missing; correct or remove the line", 1),
        ("kind,key\ndevice,a\nport,b\nrouter,c\n", "row 3: kind must be one of device, port, link, job", 1),
        ("kind,key\nport,b\ndevice,a\n", "row 1: device is empty", 1),
        ("kind,key,speed_bps\ndevice,a,-4\n", "line 2: column 'speed_bps' holds '-4', which is not a whole number", None),
        ("kind,key\ndevice,a\ndevice,\udcff\n", "line 3: column 'key' is not UTF-8 text", 1),
        (f"kind,key\ndevice,a\ndevice,{'x' * 600}\n", "row 2: a name is longer than 512 characters", 1),
    ],
)
def test_a_wrong_row_of_a_table_is_named(tmp_path: Path, text: str, problem: str, kept: int | None) -> None:
    """A fault in a CSV is an error with place and hint; the good rows are used."""
    path = write(tmp_path / "fleet.csv", text)
    batches, fault = read(path)
    assert str(fault).removeprefix(f"{path}: ").startswith(problem)
    assert len(rows(batches, "device")) == kept if kept else batches == []


def test_a_table_in_toml(tmp_path: Path) -> None:
    """[[device]], [[port]] and [[link]] give rows; an entry with an unknown key is a fault and left out."""
    text = '# ours\n[[device]]\nkey = "leaf1"\nrail = 3\n[[port]]\ndevice = "leaf1"\nkey = "p1"\nspeed_bps = 400_000_000_000\n'
    text += '[[link]]\ndevice = "leaf1"\nkey = "p1"\npeer_device = "gpu1"\n[[device]]\nkey = "leaf2"\nrakc = "x"\n'
    path = write(tmp_path / "fleet.toml", text)
    batches, fault = read(path)
    assert str(fault) == f"{path}: device 2: unknown key 'rakc'; did you mean 'rack'?"
    assert rows(batches, "device") == {("leaf1", "leaf1"): {"rail": "3"}}
    assert rows(batches, "port") == {("leaf1", "p1"): {"speed_bps": 400 * 10**9}}
    assert rows(batches, "link") == {("leaf1", "p1"): {"peer_device": "gpu1"}}


@pytest.mark.skipif(not LINGJUN.is_file(), reason="the shared data folder is not here")
def test_the_published_clos_table_is_read_whole() -> None:
    """Each host of the published topology is under its switches, whose names contain the switch above them."""
    with LINGJUN.open(newline="") as file:
        hosts = list(csv.DictReader(file))
    batches, fault = read(LINGJUN)
    assert fault is None
    devices = rows(batches, "device")
    leaves = {(row["DSW"], row["PSW"], row["ASW"]) for row in hosts}
    spines, cores = {leaf[:2] for leaf in leaves}, {leaf[:1] for leaf in leaves}
    tiers = Counter(row["tier"] for row in devices.values())
    assert tiers == {"host": len(hosts), "leaf": len(leaves), "spine": len(spines), "core": len(cores)}
    links = rows(batches, "link")
    assert len(links) == len(hosts) + len(leaves) + len(spines)
    for row in hosts:
        way = ["-".join((row["DSW"], row["PSW"], row["ASW"])[:depth]) for depth in (3, 2, 1)]
        assert devices[row["ip"], row["ip"]]["rack"] == way[0]
        for lower, upper in zip([row["ip"], *way], way, strict=False):
            assert links[lower, ""] == {"peer_device": upper}


def lldp(*parts: tuple[int, bytes], cut: int | None = None) -> bytes:
    """Return a capture of one LLDP frame of these parts."""
    unit = b"".join(struct.pack(">H", kind << 9 | len(value)) + value for kind, value in (*parts, (0, b"")))
    frame = (bytes.fromhex("0180c200000e 020000000001 88cc") + unit)[:cut]
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack("<IIII", 1, 0, len(frame), len(frame)) + frame


CHASSIS, PORT_NAME, TTL = (1, b"\x04\x02\0\0\0\0\x01"), (2, b"\x05Ethernet0"), (3, b"\0\x78")


def captured(path: Path) -> tuple[list[Batch], InputError | None]:
    """Return the rows of the LLDP frames of a capture: without --kind, a capture is one of packets."""
    batches: list[Batch] = []
    try:
        batches.extend(InventoryFile(path, Options()).batches())
    except InputError as error:
        return batches, error
    return batches, None


def test_an_lldp_frame_names_its_sender_and_its_lossless_priorities(tmp_path: Path) -> None:
    """System and port name, the other name of the port, and a bit a priority of the PFC configuration."""
    said = ((4, b"etp1"), (5, b"leaf7"), (127, b"\0\x80\xc2\x0b\x08\x88"), (127, b"\0\x80\xc2\x01\0\x01"))
    batches, fault = captured(write(tmp_path / "one.pcap", lldp(CHASSIS, PORT_NAME, TTL, *said)))
    assert fault is None
    assert rows(batches, "device") == {("leaf7", "leaf7"): {}}
    assert rows(batches, "port") == {("leaf7", "Ethernet0"): {"alias": "etp1"}}
    assert readings(batches) == {("queue", f"Ethernet0/{n}", "pfc_enabled"): float(n in (3, 7)) for n in range(8)}


@pytest.mark.parametrize(
    ("chassis", "expected"),
    [
        (b"\x04\x02\0\0\0\0\x01", "02:00:00:00:00:01"),
        (b"\x05\x01\x0a\0\0\x07", "10.0.0.7"),
        (b"\x05\x02" + bytes(15) + b"\x01", "::1"),
        (b"\x07gpu-3", "gpu-3"),
    ],
)
def test_a_sender_without_a_name_is_its_chassis(tmp_path: Path, chassis: bytes, expected: str) -> None:
    """A MAC, an IPv4 or IPv6 address or a text, by the subtype."""
    batches, _ = captured(write(tmp_path / "one.pcap", lldp((1, chassis), PORT_NAME, TTL)))
    assert rows(batches, "port") == {(expected, "Ethernet0"): {}}


def test_a_frame_that_is_cut_is_named(tmp_path: Path) -> None:
    """The whole parts of a cut frame are used, and the cut is an error with the packet's number."""
    path = write(tmp_path / "one.pcap", lldp(CHASSIS, PORT_NAME, TTL, (5, b"leaf7"), cut=-4))
    batches, fault = captured(path)
    assert str(fault) == f"{path}: packet 1: is an LLDP frame that is cut short; capture whole frames, with a snap length of 1600"
    assert rows(batches, "port") == {("02:00:00:00:00:01", "Ethernet0"): {}}


@pytest.mark.skipif(not DCB.is_dir(), reason="the shared data folder is not here")
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("name", ["dcb_pfc", "dcb_ets", "dcb_qcn"])
def test_lossless_priorities_are_tsharks(name: str) -> None:
    """Senders, ports and lossless priorities of real DCBX captures are those that tshark prints."""
    fields = ["lldp.chassis.id.mac", "lldp.port.id.mac", *(f"lldp.dcbx.feature.pfc.prio{n}" for n in range(8))]
    command = [
        "tshark",
        "-r",
        str(DCB / f"{name}.pcap"),
        "-Y",
        "lldp",
        "-T",
        "fields",
        *(word for field in fields for word in ("-e", field)),
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    expected, ports = {}, set()
    for chassis, port, *bits in (line.split("\t") for line in lines):
        ports.add((chassis, port))
        expected |= {(chassis, f"{port}/{n}"): float(bit) for n, bit in enumerate(bits) if bit}
    batches, fault = captured(DCB / f"{name}.pcap")
    assert fault is None
    assert set(rows(batches, "port")) == ports
    found = {}
    for batch in batches[1:]:
        found = {(row["device"], row["object"]): row["value"] for row in batch.frame.iter_rows(named=True)}
    assert found == expected
    assert bool(found) == (name == "dcb_pfc")


def test_a_file_gives_the_same_batches_every_time(tmp_path: Path) -> None:
    """A killed replay can resume: the rows of a file do not depend on when it is read."""
    path = write(tmp_path / "config_db.json", SONIC)
    first, second = read(path)[0], read(path)[0]
    assert [batch.family for batch in first] == ["inventory", "reading"]
    for one, other in zip(first, second, strict=True):
        assert one.frame.equals(other.frame)
        assert dict(one.frame.schema) == FAMILIES[one.family].polars


def test_a_table_with_times_is_a_recording(tmp_path: Path) -> None:
    """Rows with a time, and counters, go to the collector of recordings."""
    recording = COLLECTORS["recording"]
    for header in ("ts,device,kind,key,rack", "ts,device,port,rx_bytes"):
        assert recogniser(write(tmp_path / "x.csv", f"{header}\n"), None) is recording


@pytest.mark.parametrize("name", ["x.json", "x.yaml", "x.toml", "x.csv"])
def test_other_files_are_not_taken(tmp_path: Path, name: str) -> None:
    """A file of another kind with the same ending is refused, and the error lists the known forms."""
    path = write(tmp_path / name, '{"a": 1}' if name == "x.json" else "a = 1\n")
    with pytest.raises(InputError, match="is no recording that Weft knows"):
        recogniser(path, None)
    with pytest.raises(InputError, match=r"is no inventory that Weft knows; give a SONiC config_db\.json, a containerlab"):
        read_file(path, None)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    """A path that is no file, a file that is too large, one with too many rows and a long line of TOML are refused."""
    with pytest.raises(InputError, match="is no regular file"):
        read_file(tmp_path, None)
    path = tmp_path / "big.csv"
    with path.open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    with pytest.raises(InputError, match="more than 33554432; cut it"):
        read_file(path, None)
    many = "kind,key\n" + "".join(f"device,d{n}\n" for n in range(11))
    with pytest.raises(InputError, match="gives more than 10 rows"):
        read_file(write(tmp_path / "many.csv", many), None, 10)
    with pytest.raises(InputError, match="gives more than 1000 rows"):
        ports = ",".join(f"p{n}" for n in range(200))
        read_file(write(tmp_path / "c.json", {"PORT_QOS_MAP": {ports: {"pfc_enable": "3"}}}), None, 1000)
    with pytest.raises(InputError, match="has a line of 200010 characters"):
        read_file(write(tmp_path / "long.toml", "[[device]]\n" + "a." * 100_000 + "a = 1 # end"[:10]), None)


def test_a_hundred_thousand_ports_are_read_in_seconds(tmp_path: Path) -> None:
    """A fleet of 100,000 ports and as many links is a matter of seconds as CSV, and of some more as YAML."""
    table = ["kind,device,key,peer_device,peer_port,speed_bps"]
    lab = ["topology:", "  nodes: {}", "  links:"]
    for n in range(100_000):
        leaf, port = divmod(n, 125)
        table += [f"port,leaf{leaf},p{port},,,400000000000", f"link,leaf{leaf},p{port},gpu{n // 8},eth{n % 8},"]
        lab.append(f'    - endpoints: ["leaf{leaf}:p{port}", "gpu{n // 8}:eth{n % 8}"]')
    began = time.process_time()
    batches, fault = read(write(tmp_path / "big.csv", "\n".join(table) + "\n"))
    assert fault is None
    assert time.process_time() - began < 10
    (frame,) = [batch.frame for batch in batches]
    assert frame["kind"].value_counts().sort("kind").rows() == [("link", 100_000), ("port", 100_000), ("publication", 1)]
    began = time.process_time()
    batches, fault = read(write(tmp_path / "big.yml", "\n".join(lab) + "\n"))
    assert fault is None
    assert time.process_time() - began < 30
    assert batches[0].frame.height == 100_001


def test_half_a_surrogate_does_not_stop_a_file(tmp_path: Path) -> None:
    """JSON may escape text that UTF-8 cannot encode; the name is repaired and the rest arrives."""
    content = b'{"PORT": {"Ethernet\\ud800": {"speed": "x\\udfff"}, "Ethernet4": {"speed": 100000, "alias": "\\ud800"}}}'
    batches, fault = read(write(tmp_path / "c.json", content))
    assert fault is not None
    str(fault).encode()
    assert rows(batches, "port")["c", "Ethernet4"] == {"speed_bps": 10**11, "alias": "?"}


# Live collection


def drained(live: Inventory, wanted: Any, seconds: float = 20) -> list[Batch]:
    """Drain until ``wanted`` accepts the batches of a drain; return them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        batches = live.drain()
        if wanted(batches):
            return batches
        SystemClock().wait(0.01)
    raise AssertionError("nothing came in time")


def test_changes_are_published_and_what_is_gone_is_gone(tmp_path: Path) -> None:
    """A changed file gives a new complete publication; a broken one leaves the last publication, and a gap."""
    sonic, table = (
        write(tmp_path / "config_db.json", SONIC),
        write(tmp_path / "t.csv", "kind,key,rack\ndevice,rail3-leaf7,r9\ndevice,old,r1\n"),
    )
    live = Inventory(InventoryConfig(files=(str(sonic), str(table)), look_s=0.02, every_s=3600), SystemClock())
    live.start()
    try:
        first = live.drain()
        assert rows(first, "device")["rail3-leaf7", "rail3-leaf7"] == {"role": "ToRRouter", "tier": "leaf", "rack": "r9"}
        assert ("old", "old") in rows(first, "device")
        assert live.drain() == []
        write(table, "kind,key,rack\ndevice,rail3-leaf7,r10\n")
        second = drained(live, bool)
        assert rows(second, "device")["rail3-leaf7", "rail3-leaf7"]["rack"] == "r10"
        assert ("old", "old") not in rows(second, "device")
        stamps = [batches[0].frame.select("ts", "epoch").unique().row(0) for batches in (first, second)]
        assert stamps[1][0] > stamps[0][0]
        assert stamps[1][1] == stamps[0][1]
        write(table, "kind,key,rakc\n")
        (gap,) = drained(live, bool)
        assert gap.frame.select("what", "reason").rows() == [("inventory", "unreadable_file")]
        counters = live.counters()
        assert counters["weft_collectors_inventory_unreadable_files_total"] == 1
        assert counters["weft_collectors_inventory_rows"] == sum(batch.frame.height for batch in second)
    finally:
        live.stop()
        live.stop()
    assert live.drain() == []


def test_everything_is_published_again_and_again(tmp_path: Path) -> None:
    """A later reader gets everything: the same rows come every ``every_s``, with a new receive time."""
    path = write(tmp_path / "t.csv", "kind,key\ndevice,a\n")
    live = Inventory(InventoryConfig(files=(str(path),), every_s=0.05), SystemClock())
    live.start()
    try:
        (first,), (second,) = live.drain(), drained(live, bool)
    finally:
        live.stop()
    assert second.frame.drop("recv_ts").equals(first.frame.drop("recv_ts"))
    assert second.frame["recv_ts"].min() > first.frame["recv_ts"].max()  # type: ignore[operator]


def test_a_file_that_is_broken_at_start_is_refused(tmp_path: Path) -> None:
    """A missing file, or one that is no topology, is an error at the start."""
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\); check the path"):
        Inventory(InventoryConfig(files=(str(tmp_path / "none.json"),)), SystemClock()).start()


def test_naming_travels_as_rows() -> None:
    """Patterns become rows: the pattern for the whole name, and the group of each column."""
    config = InventoryConfig(device_names=(r"(?P<rack>r\d+)-(x)?(?P<tier>leaf|spine)",), port_names=(r".*/eth(?P<rail>\d)",), name="here")
    live = Inventory(config, SystemClock())
    live.start()
    batches = live.drain()
    live.stop()
    assert rows(batches, "naming") == {
        ("here", "device 0000"): {"pattern": config.device_names[0], "rack": r"\1", "tier": r"\3"},
        ("here", "port 0000"): {"pattern": config.port_names[0], "rail": r"\1"},
    }


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "is not a usable pattern"),
        (r"(?P<rack>a)(?=b)", "is not a usable pattern"),
        (r"(?P<rack>a)(?P=rack)", "is not a usable pattern"),
        ("leaf", "has no named group"),
        ("(?P<shelf>a)", "has a group 'shelf'"),
        ("()" * 9 + "(?P<rack>a)", "has too many groups"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, problem: str) -> None:
    """A pattern without a place, or one that the store cannot apply, is a configuration error with a hint."""
    with pytest.raises(ConfigError) as caught:
        InventoryConfig(device_names=(pattern,))
    assert problem in caught.value.problem
    assert caught.value.where == "collect.inventory.device_names"


def test_nothing_runs_unasked() -> None:
    """Without files and patterns the collector is off."""
    assert not InventoryConfig().enabled
    assert InventoryConfig(files=("x",)).enabled
