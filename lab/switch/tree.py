"""The gNMI data of a switch: OpenConfig's models and SONiC's COUNTERS_DB as leaves over the columns of its state.

A tree is fixed; values are read from columns by name and index. A leaf whose value is ``None`` does not exist at that instant (the
neighbour on a link that is down).
"""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import sai
from .script import PRIORITIES, Switch, SwitchSource, SwitchState

OPENCONFIG, SONIC = "openconfig", "sonic-db"
DATABASE = "COUNTERS_DB"
# No leaf is deeper; each ``...`` in a longer pattern would multiply the possible matches.
PATTERN_ELEMENTS_MAX = 16

MODELS = (
    ("openconfig-interfaces", "OpenConfig working group", "3.0.2"),
    ("openconfig-if-ethernet", "OpenConfig working group", "2.14.0"),
    ("openconfig-qos", "OpenConfig working group", "2.2.0"),
    ("openconfig-lldp", "OpenConfig working group", "0.2.1"),
    ("openconfig-system", "OpenConfig working group", "0.17.1"),
    ("sonic-db", "SONiC", "0.1.0"),
)
# Module of the subtree of this element, for names in JSON (RFC 7951).
MODULES = {
    "interfaces": "openconfig-interfaces",
    "ethernet": "openconfig-if-ethernet",
    "qos": "openconfig-qos",
    "lldp": "openconfig-lldp",
    "system": "openconfig-system",
}


class Element(NamedTuple):
    """One step of a path; ``keys`` are (name, value) pairs."""

    name: str
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf: path, kind of value, column and index of the value. The first ``depth`` elements name its object."""

    elements: tuple[Element, ...]
    kind: str  # uint, string, bool, identity
    column: str
    index: int
    depth: int
    # The leaves of this object must be sent together (gNMI, atomic).
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """The leaves of one origin, and a function that reads their columns: lists with one value per object, in the order of ``index``."""

    origin: str
    leaves: tuple[Leaf, ...]
    read: Callable[[SwitchState], dict[str, list[Any]]]


def matches(pattern: Sequence[Element], leaf: Leaf, origin: str) -> bool:
    """Return whether a requested path covers a leaf: names and keys are equal or ``*``, missing keys match any, ``...`` any elements."""
    if len(pattern) > PATTERN_ELEMENTS_MAX:
        return False
    if origin == SONIC and len(pattern) == 3 and leaf.depth > 3:
        # The fields of a port do not include those of its queues, which have their own paths.
        return False
    return _match(tuple(pattern), leaf.elements)


def _match(pattern: tuple[Element, ...], elements: tuple[Element, ...]) -> bool:
    if not pattern:
        return True
    if pattern[0].name == "...":
        if pattern[1:2] == (pattern[0],):
            return _match(pattern[1:], elements)
        return any(_match(pattern[1:], elements[skip:]) for skip in range(len(elements) + 1))
    if not elements:
        return False
    keys = dict(elements[0].keys)
    here = fnmatch.fnmatchcase(elements[0].name, pattern[0].name) and all(
        value == "*" or keys.get(name) == value for name, value in pattern[0].keys
    )
    return here and _match(pattern[1:], elements[1:])


def openconfig(source: SwitchSource) -> Tree:
    """Return OpenConfig's interfaces, Ethernet counters, queues, neighbours and system."""
    switch = source.switch
    leaves = (*_interfaces(switch), *_queues(switch), *_neighbours(switch), *_system())
    return Tree(OPENCONFIG, leaves, lambda state: _openconfig_columns(switch, state))


_COUNTERS = {
    **{f"{way}-{name}": f"{side}_{column}" for way, side in (("in", "rx"), ("out", "tx")) for name, column in (
        ("octets", "bytes"), ("pkts", "packets"), ("unicast-pkts", "unicast_packets"), ("discards", "discards"), ("errors", "errors"))},
    "in-fcs-errors": "fcs_errors",
    "carrier-transitions": "carrier_changes",
}  # fmt: skip
_ETHERNET = {"in-crc-errors": "fcs_errors", "fec-corrected-blocks": "fec_corrected", "fec-uncorrectable-blocks": "fec_uncorrectable"}
_ETHERNET["in-symbol-error"] = "symbol_errors"
_QUEUE = {
    "transmit-pkts": "packets",
    "transmit-octets": "bytes",
    "dropped-pkts": "dropped_packets",
    "dropped-octets": "dropped_bytes",
    "ecn-marked-pkts": "ecn_marked_packets",
    "ecn-marked-octets": "ecn_marked_bytes",
    "max-queue-len": "watermark_bytes",
}


def _interfaces(switch: Switch) -> Iterator[Leaf]:
    for index, port in enumerate(switch.ports):
        head = (Element("interfaces"), Element("interface", (("name", port),)))
        state = (*head, Element("state"))
        for name, kind in (("name", "string"), ("ifindex", "uint"), ("oper-status", "string"), ("admin-status", "string")):
            yield Leaf((*state, Element(name)), kind, name, index, 3)
        for name, column in _COUNTERS.items():
            yield Leaf((*state, Element("counters"), Element(name)), "uint", column, index, 4)
        ethernet = (*head, Element("ethernet"), Element("state"))
        yield Leaf((*ethernet, Element("port-speed")), "identity", "port-speed", index, 4)
        for name, column in _ETHERNET.items():
            yield Leaf((*ethernet, Element("counters"), Element(name)), "uint", column, index, 5)


def _queues(switch: Switch) -> Iterator[Leaf]:
    for index, port in enumerate(switch.ports):
        head = (
            Element("qos"),
            Element("interfaces"),
            Element("interface", (("interface-id", port),)),
            Element("output"),
            Element("queues"),
        )
        for number in range(PRIORITIES):
            state = (*head, Element("queue", (("name", str(number)),)), Element("state"))
            yield Leaf((*state, Element("name")), "string", "queue-name", index * PRIORITIES + number, 7)
            for name, column in _QUEUE.items():
                yield Leaf((*state, Element(name)), "uint", f"queue {column}", index * PRIORITIES + number, 7)


def _neighbours(switch: Switch) -> Iterator[Leaf]:
    for index, port in enumerate(switch.ports):
        head = (Element("lldp"), Element("interfaces"), Element("interface", (("name", port),)), Element("neighbors"))
        state = (*head, Element("neighbor", (("id", "1"),)), Element("state"))
        for name in ("id", "system-name", "port-id", "port-description", "chassis-id"):
            yield Leaf((*state, Element(name)), "string", f"lldp {name}", index, 6, atomic=True)


def _system() -> Iterator[Leaf]:
    state = (Element("system"), Element("state"))
    yield Leaf((*state, Element("hostname")), "string", "hostname", 0, 2)
    yield Leaf((*state, Element("boot-time")), "uint", "boot-time", 0, 2)


def _openconfig_columns(switch: Switch, state: SwitchState) -> dict[str, list[Any]]:
    up = state.port("oper_up")[0].astype(bool).tolist()
    columns: dict[str, list[Any]] = {
        "name": list(switch.ports),
        "ifindex": switch.if_indexes.tolist(),
        "oper-status": ["UP" if is_up else "DOWN" for is_up in up],
        "admin-status": ["UP" if is_up else "DOWN" for is_up in state.port("admin_up")[0].tolist()],
        "port-speed": [f"SPEED_{speed // 1_000_000_000}GB" for speed in state.port("speed_bps")[0].tolist()],
        "queue-name": [str(number) for number in range(PRIORITIES)] * len(switch.ports),
        "hostname": [switch.device],
        "boot-time": [int(state.boot_ts[0])],
    }
    for column in {*_COUNTERS.values(), *_ETHERNET.values()}:
        columns[column] = state.port(column)[0].tolist()
    for column in _QUEUE.values():
        columns[f"queue {column}"] = state.queue(column)[0].reshape(-1).tolist()
    peers = {"id": ["1"] * len(up), "system-name": [peer for peer, _ in switch.peers], "port-id": [port for _, port in switch.peers]}
    peers["port-description"], peers["chassis-id"] = peers["port-id"], [f"02:00:00:00:01:{n:02x}" for n in range(len(up))]
    for name, values in peers.items():
        columns[f"lldp {name}"] = [value if is_up else None for value, is_up in zip(values, up, strict=True)]
    return columns


def sonic(source: SwitchSource) -> Tree:
    """Return the virtual paths of COUNTERS_DB: ports, their queues, and the periodic watermarks of queues and priority groups."""
    switch = source.switch
    tables = (
        ("COUNTERS", sai.PORT, "", lambda stat: stat.number < sai.EXTENSION),
        ("COUNTERS", sai.QUEUE, "Queues", lambda stat: True),
        ("PERIODIC_WATERMARKS", sai.QUEUE, "Queues", lambda stat: "WATERMARK_BYTES" in stat.name),
        ("PERIODIC_WATERMARKS", sai.GROUP, "PriorityGroups", lambda stat: "WATERMARK_BYTES" in stat.name),
    )
    leaves, stats = [], {}
    for table, object_type, below, wanted in tables:
        for index, name in enumerate(sai.objects(switch, object_type)):
            port, _, _ = name.partition("|")
            path = (DATABASE, table, port, *((below, name.replace("|", ":")) if below else ()))
            for stat in filter(wanted, sai.of(object_type)):
                stats[stat.name] = stat
                leaves.append(Leaf(tuple(Element(part) for part in (*path, stat.name)), "text", stat.name, index, len(path)))
    # A database of texts.
    return Tree(SONIC, tuple(leaves), lambda state: {name: stat.values(state)[0].astype(np.int64).tolist() for name, stat in stats.items()})
