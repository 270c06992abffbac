"""gNMI SubscribeResponses to rows: many messages in one call; Python looks at JSON values and new paths only.

``kernel`` walks protobuf to updates, ``nodes`` numbers their paths, ``json_tree`` replaces JSON values by their leaves, ``paths``
interprets new paths, ``rows`` fills the columns. Memory is that of the messages of one call, some 100 bytes an update, beside
the tables of paths and ports, which have limits. Any bytes give rows or a counted reason.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from gnmi_pb.gnmi_pb2 import Notification, Path, PathElem, ScalarArray, SubscribeResponse, TypedValue
from google.protobuf.message import DecodeError

from ...pipeline.dictionary import Dictionary, dictionary
from ...pipeline.tables.families import FAMILIES
from ..base import Batch
from ..wire.hash_table import new_index, new_seed, refill
from . import frames, kernel, rows
from .json_tree import JsonTrees
from .kernel import BEGIN, BITS, BYTES, COLUMNS, DELETE, JSON, KIND, LIST, NODE, NOTE, RAW, SIZE, TEXT
from .links import Links
from .nodes import TARGET, NodeTable
from .paths import COLUMNS as FAMILY_COLUMNS
from .paths import FEC_BINS, LINK, PORT, QUEUE, READING, Meanings

SOURCE = "gnmi"

# Bytes of messages in one pass: enough to spread its fixed cost, small enough for the processor's caches.
PASS_BYTES = 2 * 1024 * 1024

_COUNTED = ("malformed", "errors", "duplicates", "no_value", "extensions")
_REFUSED = ("not_a_number", "path", "ports_full")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a decoder: paths in total and per stream, leaves per JSON value, ports, and neighbours."""

    paths_max: int = 2_000_000
    paths_per_stream_max: int = 200_000
    json_leaves_max: int = 100_000
    ports_max: int = 1_000_000
    neighbours_max: int = 100_000


@dataclass(slots=True)
class Messages:
    """Raw SubscribeResponses, the stream of each (int32), and its receive time (int64, UTC nanoseconds)."""

    raw: Sequence[bytes]
    streams: np.ndarray
    recv_ts: np.ndarray


@dataclass(slots=True)
class Decoded:
    """Batches; and which messages end the initial dump, carry updates, or are malformed, each (n,) bool."""

    batches: list[Batch] = field(default_factory=list)
    synced: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    updates: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


@dataclass(slots=True)
class _Pass:
    """Updates of one pass (see ``kernel``), and time, receive time (int64, UTC nanoseconds) and device (int32) of each notification."""

    buffer: np.ndarray
    ts: np.ndarray
    recv_ts: np.ndarray
    device: np.ndarray
    updates: np.ndarray


class Decoder:
    """Decodes the messages of many streams, which share the tables of paths."""

    def __init__(self, limits: Limits = Limits(), words: Dictionary | None = None) -> None:
        self._limits = limits
        self._table = NodeTable(limits.paths_max, limits.paths_per_stream_max)
        self._meanings = Meanings(words or dictionary())
        self._states = rows.States(limits.ports_max)
        self._links = Links(limits.neighbours_max)
        self._seed = new_seed()
        self._devices: list[str] = []
        self._number: dict[str, int] = {}
        self._stream_device: list[int] = []
        self._stream_names_devices: list[bool] = []
        self._device_of_target: dict[int, int] = {}
        self._series: dict[str, pl.Series] = {}
        self._room = 4096
        # All reasons are listed from the start, so that their counters exist before the first error.
        self.counts: Counter[str] = Counter(dict.fromkeys((*_COUNTED, "json", "json_large", *_REFUSED), 0))
        self._trees = JsonTrees(self._table, limits.json_leaves_max, self.counts)

    def stream(self, device: str, *, names_devices: bool = False) -> int:
        """Return the number of a new stream. Its rows belong to ``device``, or with ``names_devices`` to the target in the prefix."""
        self._stream_device.append(self._device(device))
        self._stream_names_devices.append(names_devices)
        self._table.streams(len(self._stream_device))
        return len(self._stream_device) - 1

    @property
    def paths(self) -> int:
        """Number of known paths and parts of paths."""
        return len(self._table)

    def decode(self, messages: Messages) -> Decoded:
        """Return the rows of the messages, in their order."""
        decoded = Decoded()
        sizes = np.fromiter(map(len, messages.raw), np.int64, len(messages.raw))
        flags = np.zeros(len(sizes), np.uint8)
        first = 0
        while first < len(sizes):
            total = np.cumsum(sizes[first:])
            last = first + max(1, int(np.searchsorted(total, PASS_BYTES, side="right")))
            part = slice(first, last)
            decoded.batches += self._pass(messages, part, sizes[part], flags[part])
            first = last
        decoded.synced, decoded.updates, decoded.wrong = (flags & bit != 0 for bit in (kernel.SYNC, kernel.HAS_UPDATE, kernel.WRONG))
        return decoded

    def _pass(self, messages: Messages, part: slice, sizes: np.ndarray, flags: np.ndarray) -> list[Batch]:
        buffer = np.frombuffer(b"".join(messages.raw[part]) or b"\0", np.uint8)
        streams = np.ascontiguousarray(messages.streams[part], np.int32)
        notifications, updates = self._walk(buffer, sizes, flags)
        self._table.resolve(buffer, streams, notifications, updates)
        message, ts, target = (notifications[:, column] for column in (kernel.MESSAGE, kernel.TS, kernel.TARGET_NODE))
        buffer, updates = self._leaves(buffer, updates, streams[message])
        self._meanings.learn(self._table)
        recv_ts = messages.recv_ts[part][message]
        made = _Pass(buffer, np.where(ts > 0, ts, recv_ts), recv_ts, self._device_of(streams[message], target), updates)
        refused = updates[:, NODE] < 0
        return [*self._fill(made), *self._readings(made), *self._link_rows(made), *(self._admit(made, refused) if refused.any() else ())]

    def _walk(self, buffer: np.ndarray, sizes: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return notifications and updates, see ``kernel``."""
        wire = kernel.RawMessages(buffer, np.cumsum(sizes) - sizes, sizes)
        notes, updates = np.empty((len(sizes) + 1024, COLUMNS), np.int64), np.empty((self._room, COLUMNS), np.int64)
        out = kernel.GnmiWalk(notes, updates, np.zeros(2, np.int64), np.zeros(kernel.COUNTS, np.int64), flags)
        first, why = kernel.walk(wire, 0, out)
        while why:
            if why == kernel.UPDATES_FULL:
                out = out._replace(updates=np.concatenate((out.updates, np.empty_like(out.updates))))
                self._room = len(out.updates)
            else:
                out = out._replace(notifications=np.concatenate((out.notifications, np.empty_like(out.notifications))))
            first, why = kernel.walk(wire, first, out)
        self.counts.update(dict(zip(_COUNTED, out.counts.tolist(), strict=True)))
        return out.notifications[: out.filled[0]], out.updates[: out.filled[1]]

    def _leaves(self, buffer: np.ndarray, updates: np.ndarray, streams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return buffer and updates with the leaves of JSON values in place of these; ``streams`` of each notification."""
        is_json = updates[:, KIND] == JSON
        if not is_json.any():
            return buffer, updates
        count = np.ones(len(updates), np.int64)
        for u in np.flatnonzero(is_json).tolist():
            note, node, _, _, begin, size = updates[u, : SIZE + 1].tolist()
            count[u] = self._trees.read(int(streams[note]), node, buffer[begin : begin + size].tobytes())
        leaves = self._trees.take()
        updates, place = np.repeat(updates, count, axis=0), np.flatnonzero(np.repeat(is_json, count))
        for column, values in ((NODE, leaves.node), (KIND, leaves.kind), (BITS, leaves.bits), (SIZE, leaves.size - 1)):
            updates[place, column] = values
        updates[place, BEGIN] = len(buffer) + np.cumsum(leaves.size) - leaves.size
        return _joined(buffer, np.frombuffer(leaves.content, np.uint8)), updates

    def _device(self, name: str) -> int:
        number = self._number.setdefault(name, len(self._devices))
        if number == len(self._devices):
            self._devices.append(name)
        return number

    def _device_of(self, streams: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the device of each notification."""
        device = np.array(self._stream_device, np.int32)[streams]
        named = np.array(self._stream_names_devices)[streams] & (target >= 0)
        if named.any():
            nodes = np.unique(target[named])
            device[named] = np.array([self._target(int(node)) for node in nodes], np.int32)[np.searchsorted(nodes, target[named])]
            device = np.where(device < 0, np.array(self._stream_device, np.int32)[streams], device)
        return device

    def _target(self, node: int) -> int:
        """Return the device of a target, -1 where it is none: SONiC uses targets for its databases."""
        if node not in self._device_of_target:
            text = self._table.parts(node)[0].decode(errors="replace")
            assert self._table.kind(node) == TARGET
            self._device_of_target[node] = -1 if text.endswith("_DB") or text in ("OTHERS", "OC-YANG") else self._device(text)
        return self._device_of_target[node]

    def _fill(self, made: _Pass) -> list[Batch]:
        """Return the rows of ports and queues."""
        meanings = self._meanings.arrays
        row_of, *found = rows.group(made.updates, made.device, made.ts, meanings.family, meanings.thing, self._seed)
        head, thing = {PORT: found[0], QUEUE: found[2]}, {PORT: found[1], QUEUE: found[3]}
        port_of_thing = np.array(self._meanings.port_of_thing or [-1], np.int32)
        self._states.room(len(head[PORT]) + len(head[QUEUE]), len(self._devices))
        states, refused, tables = self._states.arrays, np.zeros(rows.COUNTS, np.int64), {}
        for family, names in FAMILY_COLUMNS.items():
            shape, ports = (len(names), len(head[family])), port_of_thing[thing[family]]
            numbers = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape[1], np.int64)
            tables[family] = rows.FamilyColumns(*numbers, rows.places(made.device[head[family]], ports, states))
        rows.fill(made.buffer, made.updates, row_of, made.device, meanings, (tables[PORT], tables[QUEUE]), states, refused)
        for name, number in zip(_REFUSED, refused.tolist(), strict=True):
            self.counts[name] += number
        batches = []
        for family, speed in ((PORT, rows.PORT_SPEED), (QUEUE, rows.QUEUE_SPEED)):
            if len(head[family]):
                values, valid, _, port = table = tables[family]
                rows.speeds(made.device[head[family]], port, states, values[speed], valid[speed])
                batches.append(self._counters(made, family, head[family], thing[family], table))
        return batches

    def _counters(self, made: _Pass, family: int, head: np.ndarray, thing: np.ndarray, table: rows.FamilyColumns) -> Batch:
        """Return rows of ports or queues."""
        values, valid, epoch, _ = table
        name = "port" if family == PORT else "queue"
        known = self._known()
        columns = {**self._common(made, head), "epoch": epoch, "port": known["port"].gather(thing)}
        if family == QUEUE:
            columns |= {one: known[one].gather(thing) for one in ("queue", "direction")}
        dtypes = FAMILIES[name].polars
        for index, one in enumerate(FAMILY_COLUMNS[family]):
            if one in dtypes:
                columns[one] = frames.numbers(one, values[index], valid[index], dtypes[one])
        if family == PORT:
            columns["fec_bins"] = frames.bins("fec_bins", values[-FEC_BINS:], valid[-FEC_BINS:])
        return _batch(name, columns)

    def _readings(self, made: _Pass) -> list[Batch]:
        """Return values for which no family has a column."""
        meanings, node, kind = self._meanings.arrays, made.updates[:, NODE], made.updates[:, KIND]
        picked = made.updates[(node >= 0) & (kind < DELETE) & (meanings.family[node] == READING)]
        if not len(picked):
            return []
        node, kind, begin, size = (picked[:, column].copy() for column in (NODE, KIND, BEGIN, SIZE))
        value, has_value, count, has_count = rows.measure(made.buffer, picked, meanings.scale[node])
        is_bytes = (kind == BYTES) & ~has_value
        buffer = self._spelled(made.buffer, kind, begin, size, np.flatnonzero((kind == LIST) | is_bytes))
        has_text = (kind == TEXT) | (kind == RAW) | (kind == LIST) | is_bytes
        text, broken = frames.texts("text", buffer, begin, size, has_text)
        self.counts["not_utf8"] += broken
        known = self._known()
        columns = {
            **self._common(made, picked[:, NOTE]),
            "kind": known["kind"].gather(meanings.thing[node]),
            "object": known["object"].gather(meanings.thing[node]),
            "name": known["name"].gather(meanings.name[node]),
            "value": frames.numbers("value", value, has_value, pl.Float64),
            "count": frames.numbers("count", count, has_count, pl.UInt64),
            "text": text,
        }
        return [_batch("reading", columns)]

    def _spelled(self, buffer: np.ndarray, kind: np.ndarray, begin: np.ndarray, size: np.ndarray, special: np.ndarray) -> np.ndarray:
        """Return the buffer followed by the texts of the values ``special``; their ``begin`` and ``size`` are set."""
        if not len(special):
            return buffer
        pieces, at = [buffer], len(buffer)
        for k in special.tolist():
            raw = buffer[begin[k] : begin[k] + size[k]].tobytes()
            piece = np.frombuffer(_spell(int(kind[k]), raw).encode(errors="replace"), np.uint8)
            begin[k], size[k] = at, len(piece)
            pieces.append(piece)
            at += len(piece)
        return _joined(*pieces)

    def _link_rows(self, made: _Pass) -> list[Batch]:
        """Return the links whose neighbour changed."""
        notification, node, kind, _, begin, size = made.updates.T[: SIZE + 1]
        meanings = self._meanings
        ends = np.array(list(meanings.link_scope), np.int32)
        is_leaf = (node >= 0) & (kind < DELETE) & (meanings.arrays.family[node] == LINK)
        for u in np.flatnonzero(is_leaf | (kind >= DELETE) & np.isin(node, ends)).tolist():
            at = int(notification[u])
            device = int(made.device[at])
            if kind[u] >= DELETE:
                self._links.forget(device, *meanings.link_scope[int(node[u])], at)
                continue
            raw = made.buffer[begin[u] : begin[u] + size[u]].tobytes()
            port, neighbour = meanings.things.texts[meanings.arrays.thing[node[u]]]
            self._links.update(device, port, neighbour, int(meanings.arrays.name[node[u]]), _spell(int(kind[u]), raw), at)
        links = self._links.take()
        self.counts["neighbours_full"] = self._links.refused
        if not links:
            return []
        at, _, ports, peers, peer_ports = zip(*links, strict=True)
        columns = {"kind": "link", "key": ports, "peer_device": peers, "peer_port": peer_ports}
        return [_batch("inventory", self._common(made, np.array(at)) | columns)]

    def _admit(self, made: _Pass, refused: np.ndarray) -> list[Batch]:
        """Return gap rows for updates whose paths were refused."""
        at = made.updates[refused, NOTE]
        self.counts["paths_full"] += len(at)
        _, first, missed = np.unique(made.device[at], return_index=True, return_counts=True)
        columns = {"what": "updates", "missed": missed, "reason": "paths_full"}
        return [_batch("gap", self._common(made, at[first]) | columns)]

    def _common(self, made: _Pass, at: np.ndarray) -> dict[str, Any]:
        """Return the common columns of rows, given the notification of each."""
        device = made.device[at]
        epoch, names = self._states.arrays.epochs[device], self._known()["device"].gather(device)
        return {"ts": made.ts[at], "recv_ts": made.recv_ts[at], "source": SOURCE, "device": names, "epoch": epoch}

    def _known(self) -> dict[str, pl.Series]:
        """Return columns by number: device; name; of things port, queue and direction, or kind and object."""
        things = self._meanings.things.texts
        if len(self._series.get("port", ())) != len(things):
            for place, names in enumerate((("port", "kind"), ("queue", "object"), ("direction",))):
                column = pl.Series([thing[place] if place < len(thing) else "" for thing in things], dtype=pl.String)
                self._series |= dict.fromkeys(names, column)
        for name, texts in (("device", self._devices), ("name", self._meanings.names.texts)):
            if len(self._series.get(name, ())) != len(texts):
                self._series[name] = pl.Series(texts, dtype=pl.String)
        return self._series


def warm() -> None:
    """Compile the kernels: decode a message with a counter, a text, a JSON value and a delete."""
    note = Notification(timestamp=1, prefix=Path(target="warm"), delete=[Path(elem=[PathElem(name="x")])])
    for name, value in (
        ("in-octets", TypedValue(uint_val=1)),
        ("y", TypedValue(string_val="z")),
        ("", TypedValue(json_val=b'{"x":[{"y":1}]}')),
    ):
        steps = ("interfaces", "interface", "state", "counters", name)
        note.update.add(path=Path(elem=[PathElem(name=step) for step in steps]), val=value)
    decoder = Decoder()
    stream = np.array([decoder.stream("warm")], np.int32)
    decoder.decode(Messages([SubscribeResponse(update=note).SerializeToString()], stream, np.ones(1, np.int64)))
    # The function that the tables call when they grow.
    refill(new_index(1), np.zeros(1, np.int64), 0)


def _joined(*pieces: np.ndarray) -> np.ndarray:
    """Return pieces of bytes as one that cannot be written, as messages are: kernels are compiled for these only."""
    joined = np.concatenate(pieces)
    joined.flags.writeable = False
    return joined


def _batch(family: str, columns: Mapping[str, Any]) -> Batch:
    return Batch(family, FAMILIES[family].frame(columns))


def _spell(kind: int, raw: bytes) -> str:
    """Return the text of a value: lists as JSON, bytes as hexadecimal digits."""
    if kind == LIST:
        try:
            return json.dumps([_plain(element) for element in ScalarArray.FromString(raw).element])
        except DecodeError:
            return raw.hex()
    return raw.hex() if kind == BYTES else raw.decode(errors="replace")


def _plain(value: TypedValue) -> object:
    which = value.WhichOneof("value")
    if which == "decimal_val":
        return value.decimal_val.digits * 10.0 ** -min(value.decimal_val.precision, 400)
    found = getattr(value, which) if which else None
    return found if isinstance(found, str | int | float | bool) else None if found is None else str(found)
