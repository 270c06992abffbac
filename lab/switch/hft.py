"""SONiC high-frequency telemetry: IPFIX messages (RFC 7011) whose fields are SAI statistics of objects.

The framing follows the RFC, with two exceptions. A field's element number is the label of an object and its enterprise number is the
statistic (object type in the upper half, statistic in the lower, the top bit of each for vendor extensions). And element 325 is plain
nanoseconds since 1970. ``Layout`` has all known variants of real switches. Object names are not in the stream: ``side_channel`` returns the
records of a switch's STATE_DB.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from . import sai
from .script import SwitchSource
from .wire import MessageBuffer, join, rows

MESSAGE_BYTES_MAX = 65_535
# (65535 - headers of message, set and template - time) / 8, since a template must fit into a message.
COUNTERS_MAX = 8_000

_HEAD = np.dtype([("version", ">u2"), ("length", ">u2"), ("export_s", ">u4"), ("sequence", ">u4"), ("domain", ">u4")])
_SET = np.dtype([("id", ">u2"), ("length", ">u2")])
_SEQUENCE_AT = 8
_SECONDS, _NANOSECONDS = 322, 325
_ENTERPRISE = 0x8000
_GROUPS = {sai.PORT: "PORT", sai.QUEUE: "QUEUE", sai.POOL: "BUFFER_POOL", sai.GROUP: "INGRESS_PRIORITY_GROUP"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The format of the records.

    ``time``: element 325 as eight bytes of ns, or element 322 (seconds) and 325 (ns of the second) of four bytes each.
    ``widths``: bytes of the counters, in turn; a counter is truncated to its low bytes. ``pad_every``: after this many counters there is a
    padding field of ``pad_bytes`` (element and enterprise 0). ``records``: records per message, 0: as many as fit. ``tail``: bytes of
    padding after the last record of a set.
    """

    time: Literal["nanoseconds", "pair"] = "nanoseconds"
    widths: tuple[int, ...] = (8,)
    pad_every: int = 0
    pad_bytes: int = 8
    first_label: int = 1
    records: int = 1
    tail: int = 0
    message_bytes_max: int = 65_000


@dataclass(frozen=True, slots=True)
class Session:
    """The streamed statistics of one type of object; ``objects`` are indices into ``sai.objects``.

    A session that is too large for one template is sent in parts; ``first`` is the index of a part's first object in the whole session.
    """

    object_type: int
    objects: tuple[int, ...]
    stats: tuple[sai.Stat, ...]
    first: int = 0


def session(source: SwitchSource, object_type: int, stats: Sequence[str] = (), queues: Sequence[int] = ()) -> Session:
    """Return the session of all objects of a type, or of the given queues of every port."""
    count = len(sai.objects(source.switch, object_type))
    chosen = tuple(n for n in range(count) if not queues or n % 8 in queues)
    return Session(object_type, chosen, sai.of(object_type, stats))


@dataclass(frozen=True, slots=True)
class _TemplatePlan:
    """A template and its counters: (first byte, width, first counter, last counter) of each block of equal width."""

    template: bytes
    stride: int
    blocks: tuple[tuple[int, int, int, int], ...]


class Generation:
    """The templates of one configuration of the stream; a reconfigured switch starts a new generation with new numbers."""

    def __init__(self, sessions: Sequence[Session], layout: Layout, first_id: int) -> None:
        self.layout, self.first_id, self.whole = layout, first_id, tuple(sessions)
        self.sessions = [part for whole in sessions for part in _split(whole)]
        self.plans = [_plan(part, layout, first_id + number) for number, part in enumerate(self.sessions)]
        self.next_id = first_id + len(self.plans)


class HftExporter:
    """The stream of one observation domain, in order of time. The caller decides when to send templates."""

    def __init__(self, source: SwitchSource, sessions: Sequence[Session], layout: Layout | None = None, *, domain: int = 0) -> None:
        self._source, self._domain, self._sequence = source, domain, 0
        self.generations = [Generation(sessions, layout or Layout(), 256)]

    @property
    def records(self) -> int:
        """Data records made so far."""
        return self._sequence

    def renew(self, sessions: Sequence[Session] | None = None, layout: Layout | None = None) -> int:
        """Reconfigure the stream with new template numbers; return the generation. Earlier generations may still send."""
        last = self.generations[-1]
        self.generations.append(Generation(sessions or last.sessions, layout or last.layout, last.next_id))
        return len(self.generations) - 1

    def templates(self, generation: int = -1, export_ns: int = 0) -> MessageBuffer:
        """Return messages with the templates of a generation, as many per set as fit."""
        sets, size = [[]], 0
        for plan in self.generations[generation].plans:
            if size + len(plan.template) > MESSAGE_BYTES_MAX - 20:
                sets.append([])
                size = 0
            sets[-1].append(plan.template)
            size += len(plan.template)
        return join([self._template_message(b"".join(some), 2, export_ns) for some in sets])

    def withdrawal(self, generation: int = 0, export_ns: int = 0) -> MessageBuffer:
        """Return the message that withdraws a generation's templates: their numbers without fields."""
        ids = range(self.generations[generation].first_id, self.generations[generation].next_id)
        return self._template_message(b"".join(number.to_bytes(2, "big") + bytes(2) for number in ids), 2, export_ns)

    def data(self, ts: Sequence[int] | np.ndarray, generation: int = -1) -> MessageBuffer:
        """Return the records of all sessions at the instants ``ts``, message by message in time order."""
        ts = np.asarray(ts, np.int64)
        parts, firsts, counts = [], [], []
        made = self.generations[generation]
        state = self._source.at(ts)
        for number, (one, plan) in enumerate(zip(made.sessions, made.plans, strict=True)):
            values = np.empty((len(ts), len(one.objects), len(one.stats)), ">u8")
            for column, stat in enumerate(one.stats):
                every = stat.values(state)
                values[:, :, column] = every if len(one.objects) == every.shape[1] else every[:, list(one.objects)]
            for part, first, count in self._messages(ts, values.reshape(len(ts), -1), plan, made.first_id + number, made.layout):
                parts.append(part)
                firsts.append(first)
                counts.append(count)
        whole = join(parts)
        order = np.argsort(np.concatenate([*firsts, np.empty(0, np.int64)]), kind="stable")
        counted = np.concatenate([*counts, np.empty(0, np.int64)])[order]
        ordered = MessageBuffer(whole.buffer, whole.offsets[order], whole.lengths[order])
        # The number of data records before this message, in its domain.
        sequence = (self._sequence + np.cumsum(counted) - counted).astype(">u4").view(np.uint8).reshape(-1, 4)
        ordered.buffer[ordered.offsets[:, None] + _SEQUENCE_AT + np.arange(4)] = sequence
        self._sequence += int(counted.sum())
        return ordered

    def side_channel(self, profile: str = "lab", generation: int = -1, *, ids_on_wire: bool = False) -> dict[str, dict[str, str]]:
        """Return the STATE_DB records that name the objects, one per session, with its templates in hexadecimal.

        ``ids_on_wire`` writes object numbers with the enterprise bit, as some switches do.
        """
        made, found = self.generations[generation], {}
        for whole in made.whole:
            names = sai.objects(self._source.switch, whole.object_type)
            labels = range(made.layout.first_label, made.layout.first_label + len(whole.objects))
            plans = [plan for one, plan in zip(made.sessions, made.plans, strict=True) if one.object_type == whole.object_type]
            found[f"HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE|{profile}|{_GROUPS[whole.object_type]}"] = {
                "session_status": "enabled",
                "session_type": "ipfix",
                "object_names": ",".join(names[index] for index in whole.objects),
                "object_ids": ",".join(str(label | (_ENTERPRISE if ids_on_wire else 0)) for label in labels),
                "session_config": b"".join(next(iter(self._template_message(plan.template, 2, 0))) for plan in plans).hex(),
                "config_version": str(made.first_id),
            }
        return found

    def _template_message(self, body: bytes, set_id: int, export_ns: int) -> MessageBuffer:
        message = np.zeros(1, np.dtype([("head", _HEAD), ("set", _SET), ("body", f"V{len(body)}")]))
        self._head(message["head"], message.itemsize, export_ns)
        message["head"]["sequence"] = self._sequence & 0xFFFFFFFF
        message["set"]["id"], message["set"]["length"], message["body"] = set_id, len(body) + 4, body
        return rows(message)

    def _head(self, head: np.ndarray, size: int, export_ns: int | np.ndarray) -> None:
        head["version"], head["length"], head["domain"] = 10, size, self._domain
        head["export_s"] = export_ns // 1_000_000_000

    def _messages(
        self, ts: np.ndarray, values: np.ndarray, plan: _TemplatePlan, template_id: int, layout: Layout
    ) -> Iterator[tuple[MessageBuffer, np.ndarray, np.ndarray]]:
        """Yield messages, the times of their first records, and the numbers of their records; the last message has the rest."""
        fit = max(1, (layout.message_bytes_max - 20 - layout.tail) // plan.stride)
        each = min(layout.records, fit) if layout.records else fit
        whole = len(ts) // each * each
        for first, last, count in ((0, whole, each), (whole, len(ts), len(ts) - whole)):
            if first == last:
                continue
            parts = [("head", _HEAD), ("set", _SET), ("body", "u1", (count, plan.stride)), ("tail", "u1", layout.tail)]
            message = np.zeros((last - first) // count, parts)
            times = ts[first:last:count]
            self._head(message["head"], message.itemsize, times)
            message["set"]["id"], message["set"]["length"] = template_id, 4 + count * plan.stride + layout.tail
            _write(message["body"], ts[first:last], values[first:last], plan, layout)
            yield rows(message), times, np.full(len(message), count)


def enterprise(stat: sai.Stat) -> int:
    """Return the enterprise number that names a statistic."""
    halves = [(number - sai.EXTENSION) | 0x8000 if number >= sai.EXTENSION else number for number in (stat.object_type, stat.number)]
    return halves[0] << 16 | halves[1]


def stream(datagrams: MessageBuffer, messages: int = 0) -> MessageBuffer:
    """Return the same bytes with ``messages`` messages (0: all) per write."""
    whole = list(datagrams)
    each = messages or len(whole) or 1
    parts = [b"".join(whole[first : first + each]) for first in range(0, len(whole), each)]
    lengths = np.array([len(part) for part in parts], np.int64)
    return MessageBuffer(np.frombuffer(b"".join(parts), np.uint8), np.cumsum(lengths) - lengths, lengths)


def _split(whole: Session) -> Iterator[Session]:
    each = max(1, COUNTERS_MAX // len(whole.stats))
    for first in range(0, len(whole.objects), each):
        yield replace(whole, objects=whole.objects[first : first + each], first=first)


def _plan(one: Session, layout: Layout, template_id: int) -> _TemplatePlan:
    fields = [(_NANOSECONDS, 8)] if layout.time == "nanoseconds" else [(_SECONDS, 4), (_NANOSECONDS, 4)]
    template = [element.to_bytes(2, "big") + size.to_bytes(2, "big") for element, size in fields]
    at, blocks = sum(size for _, size in fields), []
    numbers = [(layout.first_label + one.first + n, enterprise(stat)) for n in range(len(one.objects)) for stat in one.stats]
    for column, (label, number) in enumerate(numbers):
        width = layout.widths[column % len(layout.widths)]
        if layout.pad_every and column and column % layout.pad_every == 0:
            template.append(_field(0, layout.pad_bytes, 0))
            at += layout.pad_bytes
        template.append(_field(label, width, number))
        if blocks and blocks[-1][1] == width and blocks[-1][0] + width * (column - blocks[-1][2]) == at:
            blocks[-1] = (*blocks[-1][:3], column + 1)
        else:
            blocks.append((at, width, column, column + 1))
        at += width
    head = template_id.to_bytes(2, "big") + len(template).to_bytes(2, "big")
    return _TemplatePlan(head + b"".join(template), at, tuple(blocks))


def _field(element: int, size: int, number: int) -> bytes:
    return (_ENTERPRISE | element).to_bytes(2, "big") + size.to_bytes(2, "big") + number.to_bytes(4, "big")


def _write(records: np.ndarray, ts: np.ndarray, values: np.ndarray, plan: _TemplatePlan, layout: Layout) -> None:
    """Write instants and values into records, uint8 of shape (messages, records per message, stride)."""

    def put(at: int, numbers: np.ndarray, width: int) -> None:
        octets = _bytes(numbers, width)
        records[:, :, at : at + octets.shape[1]] = octets.reshape(*records.shape[:2], -1)

    if layout.time == "nanoseconds":
        put(0, ts[:, None], 8)
    else:
        put(0, ts[:, None] // 1_000_000_000, 4)
        put(4, ts[:, None] % 1_000_000_000, 4)
    for at, width, first, last in plan.blocks:
        put(at, values[:, first:last], width)


def _bytes(values: np.ndarray, width: int) -> np.ndarray:
    """Return the low ``width`` bytes of each value, big end first: shape (rows, columns * width)."""
    wide = values.astype(">u8", copy=False).view(np.uint8)
    return wide if width == 8 else wide.reshape(len(values), -1, 8)[:, :, 8 - width :].reshape(len(values), -1)
