"""IPFIX templates, compiled once: which bytes of a record are its time and its counters.

SONiC's high-frequency telemetry is IPFIX by its framing only. A field's enterprise number holds a SAI object type and a SAI
statistic, 15 bits each under an *extension* bit; the element id is the label of the object, whose name comes from another source.
Fields with element 0 and enterprise 0 are placeholders. Other fields (addresses, variable lengths, real enterprises) are skipped by
their length.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import ipfix_kernel as kernel

# A length that means: each record has its own.
VARIABLE = 65535

_SECONDS, _NANOSECONDS = 322, 325
_EXTENSION = 0x2000_0000


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template. ``labels``, ``types``, ``stats``, ``widths``: one entry per SAI counter, in the record's order."""

    id: int
    content: bytes
    record_bytes: int
    varying: np.ndarray | None
    time: kernel.TimeField
    segments: np.ndarray
    labels: np.ndarray
    types: np.ndarray
    stats: np.ndarray
    widths: np.ndarray

    @property
    def counters(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class TemplateFault:
    """A set of templates is malformed from here on."""

    problem: str


def split(content: bytes, options: bool = False) -> Iterator[tuple[int, bytes] | TemplateFault]:
    """Yield ``(id, content)`` of each template of a template set; empty content withdraws it. A ``TemplateFault`` is the last.

    ``options``: the set holds options templates, whose headers also have a number of scope fields.
    """
    at = 0
    while len(content) - at >= 4:
        name, fields = struct.unpack_from(">HH", content, at)
        if name == 0 and fields == 0 and not any(content[at:]):
            return
        if fields == 0:
            # Withdrawn; id 2 withdraws all.
            yield name, b""
            at += 4
            continue
        if name < 256:
            yield TemplateFault("template_id")
            return
        begin = end = at + (6 if options else 4)
        for _ in range(fields):
            if end + 4 > len(content):
                yield TemplateFault("template_cut")
                return
            end += 8 if content[end] & 0x80 else 4
        if end > len(content):
            yield TemplateFault("template_cut")
            return
        yield name, content[begin:end]
        at = end


def compile_template(name: int, content: bytes, options: bool = False) -> Template:
    """Return the template of whole field specifiers (see ``split``); options have no counters."""
    elements, lengths, enterprises = _fields(content)
    own = enterprises >= 0
    varying = lengths if (lengths == VARIABLE).any() else None
    starts = np.cumsum(lengths) - lengths
    # An extension bit alone makes a type other than 0, too.
    sai = own & (enterprises >> 16 > 0) & (lengths >= 1) & (lengths <= 8)
    if varying is not None or options:
        sai[:] = False
    at, widths = starts[sai], lengths[sai]
    numbers = enterprises[sai]
    return Template(
        id=name,
        content=content,
        record_bytes=int(lengths.sum()),
        varying=varying,
        time=_time(elements, lengths, starts, own) if varying is None else kernel.TimeField(kernel.TIME_NONE, 0, 0),
        segments=_segments(at, widths),
        labels=(elements[sai] & 0x7FFF).astype(np.int64),
        types=((numbers >> 16) & 0x7FFF) + (numbers >> 31) * _EXTENSION,
        stats=(numbers & 0x7FFF) + ((numbers >> 15) & 1) * _EXTENSION,
        widths=widths,
    )


def _fields(content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return element id, length and enterprise (-1: none) of each field; templates may have thousands."""
    words = np.frombuffer(content, ">u2").astype(np.int64)
    # Nearly all templates have a few fields without enterprise, then only fields with one.
    plain = int(np.argmax(words[::2] & 0x8000 > 0)) if (words[::2] & 0x8000).any() else len(words) // 2
    rest = words[2 * plain :]
    if len(rest) % 4 == 0 and (rest[::4] & 0x8000).all():
        head = words[: 2 * plain]
        enterprises = (rest[2::4] << 16) | rest[3::4]
        none = np.full(plain, -1, np.int64)
        return np.concatenate((head[::2], rest[::4])), np.concatenate((head[1::2], rest[1::4])), np.concatenate((none, enterprises))
    found, at = [], 0
    while at < len(words):
        own = bool(words[at] & 0x8000)
        found.append((int(words[at]), int(words[at + 1]), int(words[at + 2] << 16 | words[at + 3]) if own else -1))
        at += 4 if own else 2
    columns = np.array(found, dtype=np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def _time(elements: np.ndarray, lengths: np.ndarray, starts: np.ndarray, own: np.ndarray) -> kernel.TimeField:
    """Return which fields hold the time of a record."""

    def place(element: int, length: int) -> int | None:
        found = np.flatnonzero((elements == element) & (lengths == length) & ~own)
        return int(starts[found[0]]) if len(found) else None

    whole, seconds, nanoseconds = place(_NANOSECONDS, 8), place(_SECONDS, 4), place(_NANOSECONDS, 4)
    if whole is not None:
        return kernel.TimeField(kernel.TIME_NS, 0, whole)
    if nanoseconds is None:
        return kernel.TimeField(kernel.TIME_NONE, 0, 0)
    mode = kernel.TIME_WITHIN if seconds is None else kernel.TIME_SPLIT
    return kernel.TimeField(mode, seconds or 0, nanoseconds)


def _segments(at: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return offset, width and number of each group of adjacent counters of equal width, (k, 3) int64."""
    if not len(at):
        return np.zeros((0, 3), np.int64)
    begins = np.concatenate(([True], (np.diff(at) != widths[:-1]) | (np.diff(widths) != 0)))
    first = np.flatnonzero(begins)
    return np.stack((at[first], widths[first], np.diff(np.append(first, len(at)))), axis=1).astype(np.int64)
