"""IPFIX messages to columns: one call decodes the records of many messages by the templates of their senders.

A template is valid for the exporter and observation domain that sent it. Sent again unchanged, it changes nothing; a changed one
applies to the sets behind it. Data without a known template waits for it, bounded by bytes and time; what is dropped in the end is
reported as a loss. Sequence numbers are followed per observation domain, whatever they count.

Memory: the input, the columns made of it, the templates, and the waiting data.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..wire.octets import octets
from . import ipfix_kernel as kernel
from .ipfix_template import Template, TemplateFault, compile_template, split

EXPORTERS_MAX = 2**15 - 1
DOMAINS_MAX = 4096
_GAPS_MAX = 1000
_REPEATS_MAX = 1024
# Field specifiers of all templates together; a compiled template takes some six times as much.
_TEMPLATES_BYTES_MAX = 32 * 2**20
# Memory of waiting data and of each of its sets, beside their bytes.
_WAITING_COST_BYTES, _SET_COST_BYTES = 512, 16
_OPTIONS, _DATA = 3, 256


@dataclass(frozen=True, slots=True)
class Block:
    """Records of one template in the order of arrival: ``times`` (n,) int64 ns, -1 unknown; ``values`` (n, counters) uint64."""

    exporter: int
    domain: int
    template: Template
    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class IpfixLoss:
    """Losses of an exporter; ``first`` is the first missing sequence number, if known."""

    exporter: int
    what: str
    missed: int
    reason: str
    first: int | None = None


@dataclass(frozen=True, slots=True)
class _WaitingSets:
    key: int
    since_ns: int
    content: np.ndarray
    lengths: np.ndarray
    exported: np.ndarray

    @property
    def cost(self) -> int:
        return len(self.content) + _SET_COST_BYTES * len(self.lengths) + _WAITING_COST_BYTES


@dataclass(slots=True)
class _Call:
    """The state of one call; ``records`` of each message, -1 if unknown."""

    buffer: np.ndarray
    walked: kernel.Walked
    records: np.ndarray
    now_ns: int
    blocks: list[Block] = field(default_factory=list)


class IpfixDecoder:
    """Keeps the templates of all exporters and the data that waits for them. Exporters are numbers below ``EXPORTERS_MAX``."""

    def __init__(self, *, held_bytes_max: int = 16 * 2**20, held_ns_max: int = 60 * 10**9, templates_max: int = 1024) -> None:
        self._waiting_bytes_max, self._waiting_ns_max, self._templates_max = held_bytes_max, held_ns_max, templates_max
        self._templates_of: Counter[int] = Counter()
        self._templates_bytes = 0
        self._waiting_count: Counter[int] = Counter()
        self._templates: dict[int, Template] = {}
        self._last_ns: dict[int, int] = {}
        self._repeats: dict[int, set[int]] = {}
        self._waiting: deque[_WaitingSets] = deque()
        self._waiting_bytes = 0
        self._sequences: dict[int, np.ndarray] = {}
        self._losses: list[IpfixLoss] = []
        self._counts: dict[str, int] = {}
        self.changes = 0

    def feed(self, buffer: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, exporters: np.ndarray, now_ns: int) -> list[Block]:
        """Decode datagrams ``buffer[offsets[k] : offsets[k] + lengths[k]]`` of ``exporters[k]``; count errors."""
        return self._feed(buffer, offsets, lengths, exporters, now_ns, stream=False)[0]

    def feed_stream(self, buffer: np.ndarray, exporter: int, now_ns: int) -> tuple[list[Block], int, str]:
        """Decode a part of a stream; return blocks, bytes used, and the error where it stopped (empty: it needs more)."""
        one = np.array([0], np.int64)
        blocks, used, counts = self._feed(buffer, one, one + len(buffer), one + exporter, now_ns, stream=True)
        errors = {"version": "is no IPFIX message (version 10)", "length": "has a length shorter than its header"}
        return blocks, int(used[0]), next((text for reason, text in errors.items() if counts[kernel.REASONS.index(reason)]), "")

    def learn(self, exporter: int, messages: bytes, now_ns: int) -> list[Block]:
        """Learn the templates of whole messages from another source; return the blocks that waited for them."""
        buffer = np.frombuffer(messages, np.uint8)
        one = np.array([0], np.int64)
        return self._feed(buffer, one, one + len(buffer), one + exporter, now_ns, stream=False, templates_only=True)[0]

    def expire(self, now_ns: int) -> None:
        """Drop data that has waited too long for its template, and report it as lost."""
        while self._waiting and (
            self._waiting_bytes > self._waiting_bytes_max or now_ns - self._waiting[0].since_ns > self._waiting_ns_max
        ):
            self._abandon(self._waiting.popleft())

    def end(self) -> None:
        """Drop all waiting data: no more templates follow."""
        self._waiting_bytes_max = -1
        self.expire(0)

    def losses(self) -> list[IpfixLoss]:
        """Return the losses found since the last call."""
        losses, self._losses = self._losses, []
        return losses

    def counts(self) -> Mapping[str, int]:
        """Return counts since the start, and the current ``held_bytes`` and ``templates``."""
        return self._counts | {"held_bytes": self._waiting_bytes, "templates": len(self._templates)}

    def templates(self) -> dict[int, list[tuple[int, int, bytes]]]:
        """Return domain, id and field specifiers of all templates that have counters, by exporter."""
        found: dict[int, list[tuple[int, int, bytes]]] = {}
        for key, template in self._templates.items():
            if template.counters:
                found.setdefault(key >> 48, []).append(((key >> 16) & 0xFFFFFFFF, template.id, template.content))
        return found

    def forget(self, exporter: int) -> None:
        """Forget an exporter that has left, and drop its waiting data."""
        self._remove([key for key in self._templates if key >> 48 == exporter])
        self._repeats = {key: seen for key, seen in self._repeats.items() if key >> 32 != exporter}
        self._sequences = {key: state for key, state in self._sequences.items() if key >> 32 != exporter}
        mine = [one for one in self._waiting if one.key >> 48 == exporter]
        self._waiting = deque(one for one in self._waiting if one.key >> 48 != exporter)
        for old in mine:
            self._abandon(old)

    def _feed(
        self,
        buffer: np.ndarray,
        offsets: np.ndarray,
        lengths: np.ndarray,
        exporters: np.ndarray,
        now_ns: int,
        *,
        stream: bool,
        templates_only: bool = False,
    ) -> tuple[list[Block], np.ndarray, np.ndarray]:
        self.expire(now_ns)
        # Bytes and numbers of one type: the kernels are compiled for each type that they meet.
        buffer = octets(buffer)
        walked = kernel.walk(buffer, offsets, lengths, exporters.astype(np.int64), stream)
        for reason, number in zip(kernel.REASONS, walked.counts.tolist(), strict=True):
            self._count(f"bad_{reason}", number)
        call = _Call(buffer, walked, np.zeros(len(walked.domain), np.int64), now_ns)
        kinds = walked.key & 0xFFFF
        done = 0
        for place in np.flatnonzero(kinds < _DATA).tolist():
            at, domain, kind = int(walked.at[place]), int(walked.key[place]) >> 16, int(kinds[place])
            content = buffer[at : at + walked.size[place]].tobytes()
            if hash((kind, content)) in self._repeats.get(domain, ()):
                continue
            if not templates_only:
                self._data(call, kinds, done, place)
            done = place
            self._learn(call, domain, kind, content)
        if not templates_only:
            self._data(call, kinds, done, len(kinds))
            self._count("messages", len(walked.domain))
            self._follow(walked.domain, walked.sequence, call.records)
        self.expire(now_ns)
        return call.blocks, walked.consumed, walked.counts

    def _learn(self, call: _Call, domain: int, kind: int, content: bytes) -> None:
        """Learn a set of templates or options templates; decode the data that waited for them."""
        before, options = self.changes, kind == _OPTIONS
        for one in split(content, options):
            if isinstance(one, TemplateFault):
                self._count(f"bad_{one.problem}", 1)
                break
            name, fields = one
            key = (domain << 16) | name
            if not fields:
                self._withdraw(domain, kind, name)
            elif (known := self._templates.get(key)) is None or known.content != fields:
                size = len(fields) - (len(known.content) if known is not None else 0)
                full = self._templates_bytes + size > _TEMPLATES_BYTES_MAX
                if full or (known is None and self._templates_of[key >> 48] >= self._templates_max):
                    self._count("templates_refused", 1)
                    continue
                self._templates[key] = compile_template(name, fields, options)
                self._templates_of[key >> 48] += known is None
                self._templates_bytes += size
                self._count("templates_changed" if known is not None else "templates_new", 1)
                self.changes += 1
                self._release(call, key)
        if self.changes != before or domain not in self._repeats:
            self._repeats[domain] = set()
        if len(self._repeats[domain]) < _REPEATS_MAX:
            self._repeats[domain].add(hash((kind, content)))
        while len(self._repeats) > DOMAINS_MAX:
            self._repeats.pop(next(iter(self._repeats)))

    def _withdraw(self, domain: int, kind: int, name: int) -> None:
        # The id of the template set itself withdraws all of them.
        gone = [key for key in self._templates if key >> 16 == domain and name in (kind, key & 0xFFFF)]
        self._remove(gone)
        self._count("templates_withdrawn", len(gone))
        self.changes += len(gone)

    def _remove(self, keys: list[int]) -> None:
        for key in keys:
            self._templates_bytes -= len(self._templates.pop(key).content)
            self._last_ns.pop(key, None)
            self._templates_of[key >> 48] -= 1

    def _release(self, call: _Call, key: int) -> None:
        """Decode the data that waited for a template."""
        if not self._waiting_count[key]:
            return
        waiting = [one for one in self._waiting if one.key == key]
        self._waiting = deque(one for one in self._waiting if one.key != key)
        del self._waiting_count[key]
        for one in waiting:
            self._waiting_bytes -= one.cost
            starts = np.cumsum(one.lengths) - one.lengths
            self._decode(call, one.content, key, starts, one.lengths, one.exported)

    def _data(self, call: _Call, kinds: np.ndarray, first: int, last: int) -> None:
        """Decode the data sets of the call from ``first`` up to ``last``, template by template."""
        keys = call.walked.key[first:last]
        if len(keys) and kinds[first] >= _DATA and (keys == keys[0]).all():
            self._group(call, int(keys[0]), slice(first, last))
            return
        places = np.flatnonzero(kinds[first:last] >= _DATA) + first
        names, group = np.unique(call.walked.key[places], return_inverse=True)
        order = np.argsort(group, kind="stable")
        edges = np.searchsorted(group[order], np.arange(len(names) + 1))
        for number, key in enumerate(names.tolist()):
            self._group(call, key, places[order[edges[number] : edges[number + 1]]])

    def _group(self, call: _Call, key: int, places: np.ndarray | slice) -> None:
        walked = call.walked
        starts, lengths, messages = walked.at[places], walked.size[places], walked.message[places]
        exported = walked.exported[messages]
        if key not in self._templates:
            self._wait(call, key, starts, lengths, exported)
            call.records[messages] = -1
            return
        kernel.tally(call.records, messages, self._decode(call, call.buffer, key, starts, lengths, exported))

    def _decode(
        self, call: _Call, buffer: np.ndarray, key: int, starts: np.ndarray, lengths: np.ndarray, exported: np.ndarray
    ) -> np.ndarray:
        """Decode sets of one template and return the records of each."""
        template = self._templates[key]
        if template.varying is not None:
            counts = kernel.count_varying(buffer, starts, lengths, template.varying)
        else:
            counts = lengths // template.record_bytes if template.record_bytes else np.zeros(len(lengths), np.int64)
        records = int(counts.sum())
        self._count("records", records)
        self._count("short_sets", int(((counts == 0) & (lengths > 0)).sum()))
        if not template.counters:
            self._count("records_without_counters", records)
        elif records:
            sets = kernel.Sets(starts, counts, template.record_bytes)
            times = kernel.times(buffer, sets, template.time, exported, self._last_ns.get(key, -1))
            self._last_ns[key] = int(times[-1])
            values = kernel.records(buffer, sets, template.segments, template.counters)
            self._count("counters", values.size)
            call.blocks.append(Block(key >> 48, (key >> 16) & 0xFFFFFFFF, template, times, values))
        return counts

    def _wait(self, call: _Call, key: int, starts: np.ndarray, lengths: np.ndarray, exported: np.ndarray) -> None:
        size = int(lengths.sum())
        if size + _SET_COST_BYTES * len(lengths) + _WAITING_COST_BYTES > self._waiting_bytes_max:
            self._drop(key, len(lengths), size)
            return
        self._count("held_sets", len(lengths))
        waiting = _WaitingSets(key, call.now_ns, octets(kernel.gather(call.buffer, starts, lengths)), lengths.copy(), exported)
        self._waiting.append(waiting)
        self._waiting_count[key] += 1
        self._waiting_bytes += waiting.cost

    def _abandon(self, old: _WaitingSets) -> None:
        self._waiting_bytes -= old.cost
        self._waiting_count[old.key] -= 1
        if not self._waiting_count[old.key]:
            del self._waiting_count[old.key]
        self._drop(old.key, len(old.lengths), len(old.content))

    def _drop(self, key: int, sets: int, size: int) -> None:
        self._count("unknown_template_sets", sets)
        self._count("unknown_template_bytes", size)
        self._losses.append(IpfixLoss(key >> 48, "sets", sets, "no_template"))

    def _follow(self, domains: np.ndarray, sequences: np.ndarray, records: np.ndarray) -> None:
        """Follow the sequence numbers of each observation domain of the call."""
        if not len(domains):
            return
        names = np.unique(domains[np.concatenate(([True], domains[1:] != domains[:-1]))])
        missed = np.empty((_GAPS_MAX, 2), np.int64)
        for name in names.tolist():
            state = self._sequences.get(name)
            if state is None:
                if len(self._sequences) >= DOMAINS_MAX:
                    self._count("domains_not_followed", 1)
                    continue
                state = self._sequences[name] = np.array([-1, 0, kernel.UNIT_UNKNOWN], np.int64)
            mine = slice(None) if len(names) == 1 else domains == name
            gaps, total, restarts = kernel.follow(state, sequences[mine], records[mine], missed)
            self._count("sequence_restarts", restarts)
            self._count("sequence_missed", total)
            self._losses += _gaps(name >> 32, missed[:gaps].tolist(), total)

    def _count(self, what: str, number: int) -> None:
        if number:
            self._counts[what] = self._counts.get(what, 0) + number


def _gaps(exporter: int, gaps: Iterable[list[int]], total: int) -> list[IpfixLoss]:
    found = [IpfixLoss(exporter, "records", missed, "sequence", first) for first, missed in gaps]
    rest = total - sum(loss.missed for loss in found)
    return [*found, IpfixLoss(exporter, "records", rest, "sequence")] if rest else found
