"""A SONiC switch's own configuration, ``config_db.json``: its ports, neighbours and buffer settings.

Tables read: DEVICE_METADATA (host name, type), PORT (speed in Mb/s, alias, lanes, index, mtu), DEVICE_NEIGHBOR in both
of its forms (keyed by the local port, or by the neighbour with a ``local_port``), DEVICE_NEIGHBOR_METADATA, and as
readings BUFFER_POOL, PORT_QOS_MAP's ``pfc_enable`` (which priorities are lossless) and WRED_PROFILE (where ECN marks begin).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...pipeline.errors import InputError
from .topology import ROWS_MAX, SPEED_BPS_MAX, InventoryRows, table_of, text_of, whole

PRIORITIES = 8

# Tiers of SONiC's device types, from the hosts up.
_TIERS = {"torrouter": "leaf", "leafrouter": "spine", "spinerouter": "core", "upperspinerouter": "core", "server": "host"}
# The tables of a configuration are named in capitals, and each is a table of tables.
_FIRST = re.compile(rb'\s*\{\s*"[A-Z][A-Z0-9_]*"\s*:\s*\{')
_JSON_HINT = "save it again on the switch with 'config save'"


def is_sonic(head: bytes) -> bool:
    """Return whether a file begins as such a configuration does."""
    return _FIRST.match(head) is not None


def read_sonic(path: Path, content: bytes, fallback: str, rows_max: int = ROWS_MAX) -> InventoryRows:
    """Return the rows of a switch's configuration; ``fallback`` is the name of a switch without a host name."""
    try:
        tables = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON: {str(error)[:200]}", _JSON_HINT) from None
    if not isinstance(tables, dict):
        raise InputError(str(path), "is no table of tables", _JSON_HINT)
    local = table_of(table_of(tables.get("DEVICE_METADATA")).get("localhost"))
    device = text_of(local.get("hostname")) or fallback
    topology = InventoryRows(path, scope=device, rows_max=rows_max)
    role = text_of(local.get("type"))
    topology.thing("DEVICE_METADATA.localhost", "device", device, device, role=role, tier=_TIERS.get(role.lower(), ""))
    for name in ("hwsku", "platform", "type", "mac"):
        topology.reading("device", name, text_of(local.get(name)) or None)
    for port, entry in table_of(tables.get("PORT")).items():
        _port(topology, device, port, entry)
    for key, entry in table_of(tables.get("DEVICE_NEIGHBOR")).items():
        _neighbour(topology, device, key, entry)
    for name, entry in table_of(tables.get("DEVICE_NEIGHBOR_METADATA")).items():
        kind = text_of(table_of(entry).get("type"))
        topology.thing(f"DEVICE_NEIGHBOR_METADATA.{name[:80]}", "device", name, name, role=kind, tier=_TIERS.get(kind.lower(), ""))
    _buffers(topology, tables)
    return topology


def _port(topology: InventoryRows, device: str, port: str, entry: Any) -> None:
    place = f"PORT.{port[:80]}"
    if not isinstance(entry, dict):
        topology.fault(place, "is no table")
        return
    speed = whole(entry["speed"]) if "speed" in entry else None
    if "speed" in entry and (speed is None or not 0 < speed <= SPEED_BPS_MAX // 10**6):
        topology.fault(place, f"speed is {text_of(entry['speed'])[:40]!r}", "give Mb/s; the port is used without a speed")
        speed = None
    alias = text_of(entry.get("alias"))
    topology.thing(place, "port", device, port, speed_bps=speed and speed * 10**6, alias=alias if alias != port else "")
    lanes = text_of(entry.get("lanes"))
    topology.reading("port", "lanes", lanes.count(",") + 1 if lanes else None, port)
    for name, own in (("mtu_bytes", "mtu"), ("index", "index")):
        topology.reading("port", name, whole(entry.get(own)), port)
    for name in ("fec", "admin_status"):
        topology.reading("port", name, text_of(entry.get(name)) or None, port)


def _neighbour(topology: InventoryRows, device: str, key: str, entry: Any) -> None:
    place, neighbour = f"DEVICE_NEIGHBOR.{key[:80]}", table_of(entry)
    local, name = text_of(neighbour.get("local_port")), text_of(neighbour.get("name"))
    port, peer = (local, name or key) if local else (key, name)
    if not peer:
        topology.fault(place, "names no neighbour", "give it a name, or a local_port; the others are used")
        return
    topology.thing(place, "link", device, port, peer_device=peer, peer_port=text_of(neighbour.get("port")))


def _buffers(topology: InventoryRows, tables: Mapping[str, Any]) -> None:
    for pool, entry in table_of(tables.get("BUFFER_POOL")).items():
        for name, own in (("buffer_pool_size_bytes", "size"), ("buffer_pool_xoff_bytes", "xoff")):
            topology.reading("pool", name, whole(table_of(entry).get(own)), pool)
    for ports, entry in table_of(tables.get("PORT_QOS_MAP")).items():
        enabled = table_of(entry).get("pfc_enable")
        if enabled is None:
            continue
        lossless = [whole(part) for part in text_of(enabled).split(",") if part.strip()]
        if any(one is None or one >= PRIORITIES for one in lossless):
            topology.fault(
                f"PORT_QOS_MAP.{ports[:80]}", f"pfc_enable is {text_of(enabled)[:40]!r}", f"give priorities from 0 to {PRIORITIES - 1}"
            )
            continue
        for port in filter(None, ports.split(",")):
            for priority in range(PRIORITIES):
                topology.reading("queue", "pfc_enabled", int(priority in lossless), f"{port}/{priority}")
    for profile, entry in table_of(tables.get("WRED_PROFILE")).items():
        topology.reading("wred", "wred_ecn", text_of(table_of(entry).get("ecn")) or None, profile)
        for colour in ("green", "yellow", "red"):
            for side in ("min", "max"):
                threshold = whole(table_of(entry).get(f"{colour}_{side}_threshold"))
                topology.reading("wred", f"wred_{colour}_{side}_threshold_bytes", threshold, profile)
            percent = whole(table_of(entry).get(f"{colour}_drop_probability"))
            topology.reading("wred", f"wred_{colour}_probability_ratio", percent if percent is None else percent / 100, profile)
