"""The meaning of gNMI paths: found once for each path that devices send, then looked up by its number.

A path is names and keys. The dictionary maps the names to a family and a column; the keys name the object: the port, the
queue, the component. A path that the dictionary does not know becomes a ``reading`` under its own names, so nothing is lost.

Devices spell the same path in many ways, which all count as one: origin in the path, in the prefix or before the
first name (``openconfig-interfaces:interfaces``); keys in the prefix or the path; an element with keys and no name, whose
keys belong to the element before it (Junos); ``element`` strings of the first gNMI versions (``interface[name=eth0]``);
and all of the below as one JSON tree.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gnmi_pb.gnmi_pb2 import Path
from google.protobuf.message import DecodeError

from ...pipeline.dictionary import Dictionary, Found
from ...pipeline.tables.families import FAMILIES
from .nodes import ENTRY, MEMBER, PATH, PLACE, TARGET, NodeTable

# Families of a node: what its value becomes. UNREADABLE is a path that is not valid protobuf or text.
NOTHING, PORT, QUEUE, READING, LINK, EPOCH, UNREADABLE = range(7)

# How a value is read: as a count, a state, or a line rate.
COUNT, UP, SPEED = range(3)

# The targets of a delete, other than the number of a port.
FORGET_NOTHING, FORGET_DEVICE = -1, -2

FEC_BINS = 17
_BINS = "fec_bins"


def _columns(family: str) -> tuple[str, ...]:
    plain = [field.name for field in FAMILIES[family].fields[5:] if str(field.dtype) in ("UInt64", "Boolean")]
    return (*plain, *(f"{_BINS}/{n}" for n in range(FEC_BINS) if family == "port"))


COLUMNS = {PORT: _columns("port"), QUEUE: _columns("queue")}
_COLUMN = {family: {name: index for index, name in enumerate(names)} for family, names in COLUMNS.items()}
_FAMILY = {"port": PORT, "queue": QUEUE}

# Leaves that are states: the column of `port`, how the value is read, and the factor of a bare number.
_STATES = {
    "/interfaces/interface/state/oper-status": ("oper_up", UP, 1.0),
    "/interfaces/interface/state/admin-status": ("admin_up", UP, 1.0),
    "/interfaces/interface/ethernet/state/port-speed": ("speed_bps", SPEED, 1.0),
    "/interface/oper-state": ("oper_up", UP, 1.0),
    "/interface/admin-state": ("admin_up", UP, 1.0),
    "/interface/ethernet/port-speed": ("speed_bps", SPEED, 1.0),
    "PORT_TABLE/oper_status": ("oper_up", UP, 1.0),
    "PORT_TABLE/admin_status": ("admin_up", UP, 1.0),
    "PORT_TABLE/speed": ("speed_bps", SPEED, 1e6),
}
_BOOT_TIMES = ("/system/state/boot-time",)
LINK_LEAVES = ("system-name", "chassis-id", "port-id", "port-description")

_SOURCES = ("openconfig", "juniper", "nokia", "arista")
# Tables and words in a path of SONiC's Redis databases that name no object.
_SONIC_TABLES = ("COUNTERS", "RATES", "WATERMARKS", "PERIODIC_WATERMARKS", "PERSISTENT_WATERMARKS", "USER_WATERMARKS", "PORT_TABLE")
_SONIC_WORDS = frozenset((*_SONIC_TABLES, "localhost", "Queues", "PriorityGroups", "BufferPools", "Pfcwd"))
_SONIC_INDEXED = re.compile(r"(.+)[:|](\d+)$")
_MODULE = re.compile(r"[A-Za-z_][\w.-]*:(?=[^:]+$)")
_OLD_KEY = re.compile(r"\[([^=\]]+)=((?:[^\]\\]|\\.)*)\]")
# Arista's own tree has the agent, and behind `counter` the interface, as names of the path.
_ARISTA = ["Smash", "counters", "ethIntf"]
# How devices write the number of a queue; here the number is its name.
_QUEUE_NUMBER = re.compile(r"(?:.*[:|])?(?:queue[-_ ]?|q|uc[-_]?|tc[-_]?|unicast-)?(\d+)$", re.IGNORECASE)


@dataclass(slots=True)
class Steps:
    """A path taken apart: names, and keys as (place of the name, key, value)."""

    names: list[str]
    keys: list[tuple[int, str, str]]
    origin: str = ""

    def copy(self) -> "Steps":
        return Steps(list(self.names), list(self.keys), self.origin)

    def add(self, name: str, keys: list[tuple[str, str]]) -> None:
        """Add a name with its keys; keys without a name belong to the name before."""
        if name:
            if self.origin == "" and not self.names and (module := _MODULE.match(name)):
                self.origin = module[0][:-1]
            self.names.append(name if self.sonic else _MODULE.sub("", name, count=1))
        place = len(self.names) - 1
        self.keys += [(place, _MODULE.sub("", key, count=1), value) for key, value in keys]

    @property
    def sonic(self) -> bool:
        return self.origin == "sonic-db" or (bool(self.names) and (self.names[0].endswith("_DB") or self.names[0] in _SONIC_TABLES))

    @property
    def text(self) -> str:
        return "/" + "/".join(self.names)

    def value(self, *names: str) -> str | None:
        """Return the value of the first key of the last element with one of these names."""
        return next((value for place, _, value in reversed(self.keys) if place >= 0 and self.names[place] in names), None)


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of the value at a path: a column of an object, and how its text is read."""

    family: int = NOTHING
    # (port, queue, direction) of PORT and QUEUE, (kind, object) of READING, (port, neighbour) of LINK.
    thing: tuple[str, ...] = ()
    # The column of PORT and QUEUE, the leaf of LINK, the name of READING.
    name: str = ""
    form: int = COUNT
    scale: float = 1.0


class NodeMeanings(NamedTuple):
    """The meaning of each node, all (nodes,): family and form uint8, scale float64, the others int32.

    thing: number in ``Meanings.things``; name: column of PORT and QUEUE, place in ``LINK_LEAVES``, number in ``Meanings.names`` of
    READING; forget: what a delete of this path forgets, a port's number or ``FORGET_*``.
    """

    family: np.ndarray
    name: np.ndarray
    form: np.ndarray
    scale: np.ndarray
    forget: np.ndarray
    thing: np.ndarray


class Meanings:
    """Finds the meaning of every node of a table; texts are numbered."""

    def __init__(self, words: Dictionary) -> None:
        self._words = words
        self.things = Numbers()
        self.names = Numbers()
        self.ports = Numbers()
        self.port_of_thing: list[int] = []
        self._found: dict[tuple[bool, str], Found | None] = {}
        kinds = {"family": np.uint8, "form": np.uint8, "scale": np.float64}
        self.arrays = NodeMeanings(*(np.zeros(2048, kinds.get(name, np.int32)) for name in NodeMeanings._fields))
        self.link_scope: dict[int, tuple[str, str]] = {}
        self.known = 0

    def learn(self, table: NodeTable) -> None:
        """Find the meanings of new nodes."""
        steps: dict[int, Steps | None] = {}
        while self.known < len(table):
            node, self.known = self.known, self.known + 1
            if node >= len(self.arrays.family):
                self.arrays = NodeMeanings(*(np.concatenate((one, np.zeros_like(one))) for one in self.arrays))
            self.arrays.forget[node] = FORGET_NOTHING
            if table.kind(node) != TARGET:
                path = _steps(table, node, steps)
                self._set(node, Meaning(UNREADABLE) if path is None else self.of(path))
                self._set_forget(node, path)

    def of(self, path: Steps) -> Meaning:
        """Return the meaning of a path."""
        path = _without_agent(path)
        if not path.names:
            return Meaning(READING, _subject(path), "/")
        leaf = path.names[-1]
        state = _STATES.get(f"PORT_TABLE/{leaf}" if "PORT_TABLE" in path.names else path.text)
        port, queue = _sonic_object(path) if path.sonic else _object(path)
        if state is not None and port:
            return Meaning(PORT, (port, "", ""), *state)
        if path.text in _BOOT_TIMES:
            return Meaning(EPOCH)
        if "lldp" in path.names and "neighbor" in path.names and leaf in LINK_LEAVES and port:
            return Meaning(LINK, (port, path.value("neighbor") or ""), leaf)
        key = (path.sonic, leaf if path.sonic else path.text)
        if key not in self._found:
            self._found[key] = self._find(*key)
        return _counted(path, port, queue, self._found[key])

    def _find(self, sonic: bool, name: str) -> Found | None:
        if sonic:
            return self._words.find("sai", name)
        return next((found for source in _SOURCES if (found := self._words.find(source, name))), None)

    def _set(self, node: int, meaning: Meaning) -> None:
        arrays, family = self.arrays, meaning.family
        arrays.family[node], arrays.form[node], arrays.scale[node] = family, meaning.form, meaning.scale
        arrays.thing[node] = self.thing(meaning.thing, port=family in _COLUMN) if meaning.thing else -1
        if family in _COLUMN:
            arrays.name[node] = _COLUMN[family][meaning.name]
        elif family == LINK:
            arrays.name[node] = LINK_LEAVES.index(meaning.name)
        elif family == READING:
            arrays.name[node] = self.names.of(meaning.name)

    def _set_forget(self, node: int, path: Steps | None) -> None:
        """Set what is forgotten when this path is deleted: the states of the leaves below it."""
        if path is None:
            return
        port, _ = _object(path)
        start = path.text.rstrip("/")
        if any(f"{state}/".startswith(f"{start}/") for state in _STATES):
            self.arrays.forget[node] = self.ports.of(port) if port and port != "*" else FORGET_DEVICE
        if not path.names or "lldp" in path.names:
            neighbour = path.value("neighbor") or ""
            self.link_scope[node] = ("" if port == "*" else port, "" if neighbour == "*" else neighbour)

    def thing(self, thing: tuple[str, ...], *, port: bool) -> int:
        """Return the number of an object; for ports and queues, ``port_of_thing`` has the number of its port."""
        before, number = len(self.things.texts), self.things.of(thing)
        if number == before:
            self.port_of_thing.append(self.ports.of(thing[0]) if port else -1)
        return number


class Numbers:
    """Numbers texts, or tuples of them, in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list = []
        self._number: dict = {}

    def of(self, text: object) -> int:
        number = self._number.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


def _without_agent(path: Steps) -> Steps:
    """Return a path of Arista's own tree with the interface as a key, any other path unchanged."""
    names = path.names
    if names[:3] != _ARISTA or len(names) < 7 or names[5] != "counter":
        return path
    return Steps([*names[:3], *names[4:6], *names[7:]], [*path.keys, (4, "name", names[6])], path.origin)


def _counted(path: Steps, port: str, queue: str, found: Found | None) -> Meaning:
    """Return the meaning of a counter or gauge."""
    if found is None:
        return Meaning(READING, _subject(path), path.text)
    alias, counter = found.alias, found.alias.counter
    column = counter.name
    if counter.name == _BINS:
        column = f"{_BINS}/{found.n}"
    elif found.n is not None and alias.object == "port" and counter.family == "queue":
        # A counter of the port for one of eight priorities.
        queue = str(found.n)
    family = _FAMILY.get(counter.family, READING)
    if family == READING or column not in _COLUMN[family] or (family == PORT and not port and not path.keys and path.sonic):
        kind, thing = _subject(path)
        suffix = "" if found.n is None else str(found.n)
        return Meaning(READING, (alias.object or kind, "/".join(part for part in (thing, suffix) if part)), counter.name, scale=alias.scale)
    if family == PORT:
        return Meaning(PORT, (port, "", ""), column, scale=alias.scale)
    if alias.object == "buffer_pool":
        return Meaning(QUEUE, ("", port or queue, "pool"), column, scale=alias.scale)
    direction = "rx" if alias.object == "priority_group" or "input" in path.names else "tx"
    return Meaning(QUEUE, (port, queue, direction), column, scale=alias.scale)


def _object(path: Steps) -> tuple[str, str]:
    """Return (port, queue) from the keys, empty where none."""
    port, queue = path.value("interface", "port") or "", ""
    for place, key, value in path.keys:
        if place >= 0 and ("queue" in path.names[place] or "queue" in key or "priority" in key):
            number = _QUEUE_NUMBER.match(value)
            queue = number[1] if number else value
        elif not port:
            port = value
    return port, queue


def _sonic_object(path: Steps) -> tuple[str, str]:
    """Return (port, queue) of a path of SONiC's databases: the last word that names an object, as ``Ethernet0`` or ``Ethernet0:3``."""
    words = [name for name in path.names[:-1] if name not in _SONIC_WORDS and not name.endswith("_DB") and not name.startswith("asic")]
    if not words:
        return "", ""
    word = words[-1].rpartition("PORT_TABLE:")[2]
    indexed = _SONIC_INDEXED.match(word)
    return (indexed[1], indexed[2]) if indexed and not word.startswith("oid:") else (word, "")


def _subject(path: Steps) -> tuple[str, str]:
    """Return (kind, object) of a reading."""
    if path.sonic:
        port, queue = _sonic_object(path)
        return ("queue" if queue else "port" if port else "device"), "/".join(part for part in (port, queue) if part)
    port, queue = _object(path)
    named = [value for _, _, value in path.keys]
    where = "/".join(dict.fromkeys(named))
    if "transceiver" in path.names or "optics" in path.names:
        return "transceiver", where
    if queue:
        return "queue", "/".join(part for part in (port, queue) if part)
    if path.value("interface", "port"):
        return "port", where
    keyed = [path.names[place] for place, _, _ in path.keys if place >= 0]
    return (keyed[-1] if keyed else "device"), where


def _steps(table: NodeTable, node: int, seen: dict[int, Steps | None]) -> Steps | None:
    """Return the path of a node, ``None`` where it is not readable. ``seen`` caches paths by node."""
    if node in seen:
        return seen[node]
    first, second = table.parts(node)
    parent, kind = table.parent(node), table.kind(node)
    above = _steps(table, parent, seen) if parent >= 0 else Steps([], [])
    try:
        steps = None if above is None else _below(above.copy(), kind, first, second)
    except (DecodeError, ValueError):
        steps = None
    seen[node] = steps
    return steps


def _below(steps: Steps, kind: int, first: bytes, second: bytes) -> Steps:
    """Return the steps with those of one more node. Raises ``ValueError`` or ``DecodeError`` for bytes that are not readable."""
    if kind == MEMBER:
        steps.add(first.decode(), [])
    elif kind in (ENTRY, PLACE):
        steps.add("", [(first.decode(), second.decode()) if kind == ENTRY else ("", first.decode())])
    else:
        path = Path.FromString(first + second)
        steps.origin = path.origin or steps.origin
        for elem in path.elem:
            steps.add(elem.name, sorted(elem.key.items()))
        if kind == PATH or not path.elem:
            for old in () if path.elem else path.element:
                keys = [(key, value.replace("\\", "")) for key, value in _OLD_KEY.findall(old)]
                steps.add(_OLD_KEY.sub("", old), keys)
    return steps
