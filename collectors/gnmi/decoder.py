"""gNMI SubscribeResponses to rows: many messages in one call, no update that Python touches.

Three passes of compiled code: ``gnmi_kernel`` walks protobuf and JSON to (path, value), ``gnmi_paths`` says what the paths
are that were never seen before, ``gnmi_rows`` fills the columns. Memory is that of the messages of one call, some 100
bytes an update, beside the tables of paths and ports, which have limits. Any bytes give rows or a counted reason.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from gnmi_pb.gnmi_pb2 import Notification, Path, PathElem, ScalarArray, SubscribeResponse, TypedValue
from google.protobuf.message import DecodeError

from ...pipeline.dictionary import Dictionary, dictionary
from ...pipeline.tables.families import FAMILIES
from ..base import Batch
from . import frames, kernel, rows
from .json_kernel import BYTES, DELETE, ESCAPED, LIST, RAW, TEXT
from .links import Links
from .paths import COLUMNS, FEC_BINS, LINK, PORT, QUEUE, READING, Meanings
from .paths_kernel import TARGET, NodeTable

SOURCE = "gnmi"

# Bytes of messages in one pass: enough to spread its fixed cost, small enough for the processor's caches.
PASS_BYTES = 2 * 1024 * 1024

_COUNTED = ("malformed", "errors", "duplicates", "no_value", "json", "json_large", "extensions")
_REFUSED = ("not_a_number", "path", "ports_full")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder may hold: paths in all and of one stream, leaves of one JSON value, ports and neighbours remembered."""

    paths_max: int = 2_000_000
    paths_per_stream_max: int = 200_000
    json_leaves_max: int = 100_000
    ports_max: int = 1_000_000
    neighbours_max: int = 100_000


@dataclass(slots=True)
class Messages:
    """Raw SubscribeResponses: the stream that each came by and when, UTC nanoseconds."""

    raw: Sequence[bytes]
    streams: np.ndarray
    recv_ts: np.ndarray


@dataclass(slots=True)
class Decoded:
    """Batches, and what was said beside: messages that end a first dump, are updates, or are wrong, all (n,) bool."""

    batches: list[Batch] = field(default_factory=list)
    synced: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    updates: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


@dataclass(slots=True)
class _Pass:
    """The columns that one pass of the walk made."""

    buffer: np.ndarray
    message: np.ndarray
    ts: np.ndarray
    recv_ts: np.ndarray
    device: np.ndarray
    updates: tuple[np.ndarray, ...]


class Decoder:
    """Decodes the messages of many streams; what it learns of one it knows for all."""

    def __init__(self, limits: Limits = Limits(), words: Dictionary | None = None) -> None:
        self._limits = limits
        self._table = NodeTable(limits.paths_max, limits.paths_per_stream_max)
        self._meanings = Meanings(words or dictionary())
        self._states = rows.States(limits.ports_max)
        self._links = Links(limits.neighbours_max)
        self._devices: list[str] = []
        self._number: dict[str, int] = {}
        self._stream_device: list[int] = []
        self._stream_trusts: list[bool] = []
        self._device_of_target: dict[int, int] = {}
        self._series: dict[str, pl.Series] = {}
        self._room = 4096
        self.counts: Counter[str] = Counter()

    def stream(self, device: str, *, names_devices: bool = False) -> int:
        """Return the number of a new stream, whose rows are ``device``'s, or with ``names_devices`` those of the target in the prefix."""
        self._stream_device.append(self._device(device))
        self._stream_trusts.append(names_devices)
        self._table.streams(len(self._stream_device))
        return len(self._stream_device) - 1

    @property
    def paths(self) -> int:
        """How many paths and parts of paths are known."""
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
        walked = self._walk(buffer, sizes, streams, flags)
        self._meanings.learn(self._table)
        notifications, updates = walked
        message, ts, target = notifications
        recv_ts = messages.recv_ts[part][message]
        device = self._device_of(streams[message], target)
        made = _Pass(buffer, message, np.where(ts > 0, ts, recv_ts), recv_ts, device, updates)
        refused = updates[1] < 0
        return [*self._fill(made), *self._readings(made), *self._link_rows(made), *(self._admit(made, refused) if refused.any() else ())]

    def _walk(self, buffer: np.ndarray, sizes: np.ndarray, streams: np.ndarray, flags: np.ndarray) -> tuple[tuple, tuple]:
        offsets = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
        counts = np.zeros(kernel.COUNTS, np.int64)
        notifications = tuple(np.empty(len(sizes) + 1024, kind) for kind in (np.int32, np.int64, np.int32))
        updates = _update_columns(self._room)
        first, filled = 0, (0, 0)
        while True:
            first, why, *filled = kernel.walk(
                buffer,
                offsets,
                sizes,
                streams,
                first,
                self._table.arrays,
                notifications,
                updates,
                (int(filled[0]), int(filled[1])),
                counts,
                flags,
                self._limits.json_leaves_max,
            )
            if why == kernel.DONE:
                break
            if why == kernel.OUT_FULL:
                updates = tuple(np.concatenate((one, np.empty_like(one))) for one in updates)
                self._room = len(updates[0])
            elif why == kernel.NOTES_FULL:
                notifications = tuple(np.concatenate((one, np.empty_like(one))) for one in notifications)
            else:
                self._table.grow(int(why))
        for name, number in zip(_COUNTED, counts.tolist(), strict=True):
            self.counts[name] += number
        return tuple(one[: filled[0]] for one in notifications), tuple(one[: filled[1]] for one in updates)

    def _device(self, name: str) -> int:
        number = self._number.setdefault(name, len(self._devices))
        if number == len(self._devices):
            self._devices.append(name)
        return number

    def _device_of(self, streams: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the device of each notification."""
        device = np.array(self._stream_device, np.int32)[streams]
        trusted = np.array(self._stream_trusts)[streams] & (target >= 0)
        if trusted.any():
            nodes = np.unique(target[trusted])
            device[trusted] = np.array([self._target(int(node)) for node in nodes], np.int32)[np.searchsorted(nodes, target[trusted])]
            device = np.where(device < 0, np.array(self._stream_device, np.int32)[streams], device)
        return device

    def _target(self, node: int) -> int:
        """Return the device that a target names, -1 where it names none: SONiC calls its databases targets."""
        if node not in self._device_of_target:
            text = self._table.parts(node)[0].decode(errors="replace")
            assert self._table.kind(node) == TARGET
            self._device_of_target[node] = -1 if text.endswith("_DB") or text in ("OTHERS", "OC-YANG") else self._device(text)
        return self._device_of_target[node]

    def _fill(self, made: _Pass) -> list[Batch]:
        """Return the rows of ports and queues."""
        notification, node, kind = made.updates[:3]
        meanings = self._meanings.arrays
        row_of = np.empty(len(node), np.int32)
        heads = rows.group(notification, node, kind, made.device, made.ts, meanings["family"], meanings["thing"], row_of)
        port_of_thing = np.array(self._meanings.port_of_thing or [-1], np.int32)
        head, thing = {PORT: heads[0], QUEUE: heads[2]}, {PORT: heads[1], QUEUE: heads[3]}
        tables = {}
        for family, names in COLUMNS.items():
            shape = (len(names), len(head[family]))
            tables[family] = (np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape[1], np.int64))
        self._states.room(len(head[PORT]) + len(head[QUEUE]), len(self._devices))
        refused = np.zeros(rows.COUNTS, np.int64)
        rows.fill(
            made.buffer,
            made.updates,
            made.device,
            tuple(meanings[name] for name in ("family", "name", "form", "scale", "forget")),
            port_of_thing[thing[PORT]],
            port_of_thing[thing[QUEUE]],
            row_of,
            tables[PORT],
            tables[QUEUE],
            self._states.arrays,
            self._states.epochs,
            refused,
        )
        for name, number in zip(_REFUSED, refused.tolist(), strict=True):
            self.counts[name] += number
        batches = []
        for family, speed in ((PORT, rows.PORT_SPEED), (QUEUE, rows.QUEUE_SPEED)):
            if len(head[family]):
                values, valid, epoch = tables[family]
                rows.speeds(made.device[head[family]], port_of_thing[thing[family]], self._states.arrays, values[speed], valid[speed])
                batches.append(self._counters(made, family, head[family], thing[family], values, valid, epoch))
        return batches

    def _counters(
        self, made: _Pass, family: int, head: np.ndarray, thing: np.ndarray, values: np.ndarray, valid: np.ndarray, epoch: np.ndarray
    ) -> Batch:
        """Return rows of ports or queues."""
        name = "port" if family == PORT else "queue"
        known = self._known_things()
        columns = {**self._common(made, head), "epoch": pl.Series(epoch), "port": known["port"].gather(thing)}
        if family == QUEUE:
            columns |= {one: known[one].gather(thing) for one in ("queue", "direction")}
        dtypes = FAMILIES[name].polars
        for index, one in enumerate(COLUMNS[family]):
            if one in dtypes:
                columns[one] = frames.numbers(one, values[index], valid[index], dtypes[one])
        if family == PORT:
            columns["fec_bins"] = frames.bins("fec_bins", values[-FEC_BINS:], valid[-FEC_BINS:])
        return _batch(name, columns)

    def _readings(self, made: _Pass) -> list[Batch]:
        """Return what no family has a column for."""
        notification, node, kind, bits, begin, size = made.updates
        meanings = self._meanings.arrays
        picked = np.flatnonzero((node >= 0) & (kind < DELETE) & (meanings["family"][node] == READING))
        if not len(picked):
            return []
        node, kind, begin, size = node[picked], kind[picked], begin[picked].astype(np.int64), size[picked].astype(np.int64)
        value, has_value, count, has_count = rows.measure(made.buffer, kind, bits[picked], begin, size, meanings["scale"][node])
        special = np.flatnonzero(np.isin(kind, (ESCAPED, RAW, LIST)) | (kind == BYTES) & ~has_value)
        buffer = self._spelled(made.buffer, kind, begin, size, special)
        told = np.isin(kind, (TEXT, ESCAPED, RAW, LIST)) | (kind == BYTES) & ~has_value
        text, broken = frames.texts("text", buffer, begin, size, told)
        self.counts["not_utf8"] += broken
        known, things = self._known_names(), self._known_things()
        columns = {
            **self._common(made, notification[picked]),
            "kind": things["kind"].gather(meanings["thing"][node]),
            "object": things["object"].gather(meanings["thing"][node]),
            "name": known.gather(meanings["name"][node]),
            "value": frames.numbers("value", value, has_value, pl.Float64),
            "count": frames.numbers("count", count, has_count, pl.UInt64),
            "text": text,
        }
        return [_batch("reading", columns)]

    def _spelled(self, buffer: np.ndarray, kind: np.ndarray, begin: np.ndarray, size: np.ndarray, special: np.ndarray) -> np.ndarray:
        """Write what is no plain text as such behind the buffer; ``begin`` and ``size`` are set to where."""
        if not len(special):
            return buffer
        pieces, at = [buffer], len(buffer)
        for k in special.tolist():
            raw = buffer[begin[k] : begin[k] + size[k]].tobytes()
            piece = np.frombuffer(_spell(int(kind[k]), raw).encode(errors="replace"), np.uint8)
            begin[k], size[k] = at, len(piece)
            pieces.append(piece)
            at += len(piece)
        return np.concatenate(pieces)

    def _link_rows(self, made: _Pass) -> list[Batch]:
        """Return the links whose neighbour is another than before."""
        notification, node, kind, _, begin, size = made.updates
        meanings = self._meanings
        ends = np.array(list(meanings.link_scope), np.int32)
        told = (node >= 0) & (kind < DELETE) & (meanings.arrays["family"][node] == LINK)
        for u in np.flatnonzero(told | (kind >= DELETE) & np.isin(node, ends)).tolist():
            at = int(notification[u])
            device = int(made.device[at])
            if kind[u] >= DELETE:
                self._links.forget(device, *meanings.link_scope[int(node[u])], at)
                continue
            raw = made.buffer[begin[u] : begin[u] + size[u]].tobytes()
            port, neighbour = meanings.things.texts[meanings.arrays["thing"][node[u]]]
            self._links.tell(device, port, neighbour, int(meanings.arrays["name"][node[u]]), _spell(int(kind[u]), raw), at)
        links = self._links.take()
        self.counts["neighbours_full"] = self._links.refused
        if not links:
            return []
        at, _, ports, peers, peer_ports = zip(*links, strict=True)
        columns = {
            **self._common(made, np.array(at)),
            "kind": _same("link", len(links)),
            "key": pl.Series(ports, dtype=pl.String),
            "peer_device": pl.Series(peers, dtype=pl.String),
            "peer_port": pl.Series(peer_ports, dtype=pl.String),
        }
        return [_batch("inventory", columns)]

    def _admit(self, made: _Pass, refused: np.ndarray) -> list[Batch]:
        """Return rows of gaps for updates at paths that there was no room for."""
        at = made.updates[0][refused]
        self.counts["paths_full"] += len(at)
        device, first, missed = np.unique(made.device[at], return_index=True, return_counts=True)
        columns = {
            **self._common(made, at[first]),
            "what": _same("updates", len(device)),
            "missed": pl.Series(missed, dtype=pl.UInt64),
            "reason": _same("paths_full", len(device)),
        }
        return [_batch("gap", columns)]

    def _common(self, made: _Pass, at: np.ndarray) -> dict[str, pl.Series]:
        """Return the first columns of rows, given the notification of each."""
        if len(self._series.get("device", ())) != len(self._devices):
            self._series["device"] = pl.Series(self._devices, dtype=pl.String)
        device = made.device[at]
        return {
            "ts": pl.Series(made.ts[at]),
            "recv_ts": pl.Series(made.recv_ts[at]),
            "source": _same(SOURCE, len(at)),
            "device": self._series["device"].gather(device),
            "epoch": pl.Series(self._states.epochs[device]) if len(self._states.epochs) else _same(0, len(at)),
        }

    def _known_things(self) -> dict[str, pl.Series]:
        """Return port, queue and direction of each thing, or kind and object: by the same numbers, since both are tuples of texts."""
        things = self._meanings.things.texts
        if len(self._series.get("port", ())) != len(things):
            for place, names in enumerate((("port", "kind"), ("queue", "object"), ("direction",))):
                column = pl.Series([thing[place] if place < len(thing) else "" for thing in things], dtype=pl.String)
                self._series |= dict.fromkeys(names, column)
        return self._series

    def _known_names(self) -> pl.Series:
        names = self._meanings.names.texts
        if len(self._series.get("name", ())) != len(names):
            self._series["name"] = pl.Series(names, dtype=pl.String)
        return self._series["name"]


def warm() -> None:
    """Have the kernels compiled, by one message that goes through all of them: at the first start that takes half a minute."""
    note = Notification(timestamp=1, delete=[Path(elem=[PathElem(name="x")])])
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


def _update_columns(room: int) -> tuple[np.ndarray, ...]:
    return tuple(np.empty(room, kind) for kind in (np.int32, np.int32, np.uint8, np.int64, np.int32, np.int32))


def _same(value: object, count: int) -> pl.Series:
    return pl.Series([value]).new_from_index(0, count)


def _batch(family: str, columns: Mapping[str, pl.Series]) -> Batch:
    """Return a batch; columns that are not given are null."""
    count = len(columns["ts"])
    made = [
        columns[name].cast(dtype).alias(name) if name in columns else frames.nulls(name, count, dtype)
        for name, dtype in FAMILIES[family].polars.items()
    ]
    return Batch(family, pl.DataFrame(made))


def _spell(kind: int, raw: bytes) -> str:
    """Return as text what is not plain text on the wire: strings with escapes, lists, bytes (as hexadecimal digits)."""
    if kind == ESCAPED:
        try:
            return json.loads(b'"' + raw + b'"').encode(errors="replace").decode()
        except ValueError:
            return raw.decode(errors="replace")
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
