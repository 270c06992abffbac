"""Topology files under fuzz: SONiC's JSON, containerlab's YAML, tables in CSV and TOML, LLDP in captures."""

import struct
import tempfile
from pathlib import Path

from weft.collectors.base import Options
from weft.collectors.inventory.files import InventoryFile
from weft.collectors.inventory.yaml_tree import read_yaml
from weft.pipeline.errors import InputError
from weft.pipeline.tables.families import FAMILIES

_SONIC = b"""{"DEVICE_METADATA": {"localhost": {"hostname": "leaf", "type": "ToRRouter"}},
 "PORT": {"Ethernet0": {"alias": "etp1", "lanes": "0,1", "speed": "400000", "index": "1", "mtu": "9100"}},
 "DEVICE_NEIGHBOR": {"Ethernet0": {"name": "gpu", "port": "eth0"}, "spine": {"local_port": "Ethernet8", "port": "p"}},
 "BUFFER_POOL": {"pool": {"size": "165364160", "xoff": 1}}, "PORT_QOS_MAP": {"Ethernet0,Ethernet8": {"pfc_enable": "3,4"}},
 "WRED_PROFILE": {"w": {"ecn": "ecn_all", "green_min_threshold": "1", "green_drop_probability": "5"}}}"""
_CLAB = b"""name: lab
topology:
  defaults: &d {kind: linux, labels: {plane: a}}
  nodes:
    leaf: {<<: *d, labels: {rack: r1, rail: 0}, group: leaf}
    gpu: ~
  links:
    - endpoints: ["leaf:e1", "gpu:eth0"]
      labels: {speed_bps: 400000000000}
    - {type: veth, endpoints: [{node: leaf, interface: e2}, {node: gpu, interface: eth1}]}
"""
_CSV = b"kind,device,key,rack,peer_device,peer_port,speed_bps\ndevice,,leaf,r1,,,\nlink,leaf,p1,,gpu,eth0,400000000000\n"
_CLOS = b"ip,DSW,PSW,ASW\n10.0.0.1,G6,P10,S14\n10.0.0.2,G6,P12,S2\n"
_TOML = b'[[device]]\nkey = "leaf"\nrail = 3\n[[link]]\ndevice = "leaf"\nkey = "p1"\npeer_device = "gpu"\nspeed_bps = 400_000\n'
_UNIT = b"".join(
    struct.pack(">H", kind << 9 | len(value)) + value
    for kind, value in (
        (1, b"\x04\x02\0\0\0\0\x01"),
        (2, b"\x05eth0"),
        (3, b"\0\x78"),
        (5, b"leaf"),
        (127, b"\0\x80\xc2\x0b\x08\x18"),
        (0, b""),
    )
)
_FRAME = bytes(12) + b"\x88\xcc" + _UNIT
_LLDP = struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 1, 0, len(_FRAME), len(_FRAME)) + _FRAME

SEEDS = {
    "inventory_json": [_SONIC],
    "inventory_yaml": [_CLAB],
    "inventory_csv": [_CSV, _CLOS],
    "inventory_toml": [_TOML],
    "inventory_lldp": [_LLDP],
    "yaml": [_CLAB, b"a: &a [x, x]\nb: &b [*a, *a]\nc: {<<: {d: e}}\n", b"- |\n  x\n- ? y\n  : z\n"],
}


def _read(name: str, data: bytes) -> None:
    """Rows of known families, one row per object, all of them announced; then perhaps one error with a hint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        rows = 0
        try:
            for batch in InventoryFile(path, Options()).batches():
                assert dict(batch.frame.schema) == FAMILIES[batch.family].polars
                rows += batch.frame.height
                if batch.family == "inventory":
                    assert batch.frame["rows"].sum() == batch.frame.height - 1
                    assert not batch.frame.select("kind", "device", "key").is_duplicated().any()
        except InputError as error:
            assert error.hint
            str(error).encode()
        assert rows <= 9 * len(data) + 1


def fuzz_inventory_json(data: bytes) -> None:
    """Bytes as a switch's configuration."""
    _read("config_db.json", data)


def fuzz_inventory_yaml(data: bytes) -> None:
    """Bytes as a containerlab topology."""
    _read("lab.clab.yml", data)


def fuzz_inventory_csv(data: bytes) -> None:
    """Bytes as a table."""
    _read("fleet.csv", data)


def fuzz_inventory_toml(data: bytes) -> None:
    """Bytes as TOML."""
    _read("fleet.toml", data)


def fuzz_inventory_lldp(data: bytes) -> None:
    """Bytes as a capture of LLDP frames."""
    _read("lldp.pcap", data)


def fuzz_yaml(data: bytes) -> None:
    """Bytes as YAML: tables, lists and text, or an error with a hint."""
    try:
        tree = read_yaml(Path("input.yml"), data)
    except InputError as error:
        assert error.hint
        return
    assert isinstance(tree, dict | list | str)
