"""A containerlab topology: nodes and their labels, links and their two ends.

A node's labels ``rack``, ``rail``, ``plane``, ``tier`` and ``role`` are its place. As in containerlab they come from the node, its group,
its kind or the defaults, in this order. Links are read in the short form (``["leaf1:eth1", "host1:eth1"]``) and the extended one
(``node`` and ``interface`` of each end); their labels and vars may have ``rail``, ``plane`` and ``speed_bps``. Links to the machine that
runs the lab (``host``, ``mgmt-net``, ``macvlan``, ...) are not links of the fabric.
"""

from pathlib import Path
from typing import Any

from ...pipeline.errors import InputError
from .topology import ROWS_MAX, SPEED_BPS_MAX, InventoryRows, table_of, text_of, whole
from .yaml_tree import read_yaml

PLACE = ("rack", "rail", "plane", "tier", "role")

_TIERS = {"host": "host", "server": "host", "gpu": "host", "tor": "leaf", "leaf": "leaf", "spine": "spine", "core": "core"}
_OUTSIDE = ("host", "mgmt-net", "macvlan", "vxlan", "vxlan-stitch", "dummy")
_ENDS = 2


def read_clab(path: Path, content: bytes, rows_max: int = ROWS_MAX) -> InventoryRows:
    """Return the nodes and links of a topology; each link is one row, of its first end."""
    tree = read_yaml(path, content)
    topology = InventoryRows(path, rows_max=rows_max)
    lab = tree.get("topology") if isinstance(tree, dict) else None
    if not isinstance(lab, dict):
        raise InputError(str(path), "has no table 'topology'", "give a containerlab topology")
    for name, node in table_of(lab.get("nodes")).items():
        _node(topology, lab, name, table_of(node))
    links = lab.get("links")
    used: set[tuple[str, str]] = set()
    for number, link in enumerate(links if isinstance(links, list) else [], 1):
        _link(topology, f"link {number}", link, used)
    return topology


def _node(topology: InventoryRows, lab: dict[str, Any], name: str, node: Any) -> None:
    group = text_of(node.get("group"))
    defaults, groups = table_of(lab.get("defaults")), table_of(table_of(lab.get("groups")).get(group))
    kind = text_of(node.get("kind")) or text_of(groups.get("kind")) or text_of(defaults.get("kind"))
    kinds = table_of(table_of(lab.get("kinds")).get(kind))
    labels = [table_of(level.get("labels")) for level in (node, groups, kinds, defaults)]
    place = {column: next((text_of(one[column]) for one in labels if column in one), "") for column in PLACE}
    place["role"] = place["role"] or group
    place["tier"] = place["tier"] or _TIERS.get(place["role"].lower(), "")
    topology.thing(f"node {name[:80]!r}", "device", name, name, **place)


def _link(topology: InventoryRows, place: str, link: Any, used: set[tuple[str, str]]) -> None:
    entry = table_of(link)
    written = entry.get("endpoints")
    if not isinstance(written, list):
        # A link to the lab's own machine has no list of ends.
        if text_of(entry.get("type")) not in _OUTSIDE:
            topology.fault(place, "has no endpoints", "list both of its ends; the others are used")
        return
    ends = [_end(one) for one in written]
    if any(end is not None and end[0] in _OUTSIDE for end in ends):
        return
    if len(ends) != _ENDS or None in ends:
        topology.fault(place, "does not have two ends of the form node:interface", "write both ends; the others are used")
        return
    twice = next((end for end in ends if end in used), None) or (ends[0] if ends[0] == ends[1] else None)
    if twice is not None:
        topology.fault(
            place, f"{twice[0][:80]}:{twice[1][:80]} is in another link already", "give each interface one link; the first one is used"
        )
        return
    used.update(end for end in ends if end is not None)
    (device, port), (peer_device, peer_port) = ends  # type: ignore[misc]
    about = {**table_of(entry.get("vars")), **table_of(entry.get("labels"))}
    speed = whole(about.get("speed_bps"))
    if "speed_bps" in about and (speed is None or speed > SPEED_BPS_MAX):
        topology.fault(
            place, f"speed_bps is {text_of(about['speed_bps'])[:40]!r}", "give bits per second; the link is used without a speed"
        )
        speed = None
    more = {"rail": text_of(about.get("rail")), "plane": text_of(about.get("plane")), "speed_bps": speed}
    topology.thing(place, "link", device, port, peer_device=peer_device, peer_port=peer_port, **more)


def _end(written: Any) -> tuple[str, str] | None:
    if isinstance(written, dict):
        node, port = text_of(written.get("node")), text_of(written.get("interface"))
    else:
        node, _, port = text_of(written).partition(":")
    return (node, port) if node and port else None
