"""The kernels of IPFIX: find messages and sets, and decode the records of a template.

The first kernel walks the messages of many datagrams (or of a part of a stream) and lists their sets; the others decode the records
of all sets of one template into columns. Every length on the wire is checked against the bytes received, so nothing is read beyond
them, and each byte is read a bounded number of times.

Adjacent counters of equal width are decoded together: for eight and four bytes that is a byte swap of whole words.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..wire.octets import u16, u32, u64

HEADER_BYTES = 16
SET_HEADER_BYTES = 4

# Why a walk stopped or skipped a set; the columns of its counts.
REASONS = ("version", "length", "cut", "set_length", "reserved_set")
_VERSION, _LENGTH, _CUT, _SET_LENGTH, _RESERVED = range(len(REASONS))

# Encodings of a record's time: none, nanoseconds since 1970 in eight bytes, seconds and nanoseconds in four bytes each,
# nanoseconds within the second in which the message was sent.
TIME_NONE, TIME_NS, TIME_SPLIT, TIME_WITHIN = range(4)

_NS_PER_S = 1_000_000_000
# Seconds from 1900, where NTP begins, to 1970.
_NTP_EPOCH_S = 2_208_988_800
# A number beyond the year 2116 is not a time.
_TIME_MAX = np.uint64(2**62)


class Sets(NamedTuple):
    """Data sets of one template: of each, (n,) int64, where its records start and how many it has, all of ``record_bytes``."""

    starts: np.ndarray
    counts: np.ndarray
    record_bytes: int


class TimeField(NamedTuple):
    """The encoding of a record's time, one of ``TIME_*``, and the offsets of its seconds and nanoseconds in bytes."""

    mode: int
    seconds_at: int
    nanoseconds_at: int


class Walked(NamedTuple):
    """Messages and sets in columns, all int64.

    Of each message: ``domain``, its exporter (bits 32 and up) and observation domain; ``sequence``; ``exported``, seconds since 1970.
    Of each set: ``key``, the domain of its message above 16 bits of set id; the index of its ``message``; ``at`` and ``size`` of its
    content in bytes. ``counts``: pieces or messages given up, by ``REASONS``. ``consumed``: of each piece, the bytes of whole messages.
    """

    domain: np.ndarray
    sequence: np.ndarray
    exported: np.ndarray
    key: np.ndarray
    message: np.ndarray
    at: np.ndarray
    size: np.ndarray
    counts: np.ndarray
    consumed: np.ndarray


@numba.njit(cache=True, nogil=True)
def walk(buffer, offsets, lengths, exporters, stream):
    """Walk the messages in each piece ``buffer[offsets[k] : offsets[k] + lengths[k]]``; return a ``Walked``.

    ``buffer`` uint8; ``offsets``, ``lengths`` and ``exporters`` (n,) int64. With ``stream`` the pieces are parts of a stream: a message
    that is cut at the end is not an error but left for the next part.
    """
    total = 0
    for k in range(len(offsets)):
        total += lengths[k]
    room = total // HEADER_BYTES
    domain, sequence, exported = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    room = total // SET_HEADER_BYTES
    key, message = np.empty(room, np.int64), np.empty(room, np.int64)
    content_at, content_size = np.empty(room, np.int64), np.empty(room, np.int64)
    counts, consumed = np.zeros(5, np.int64), np.zeros(len(offsets), np.int64)
    m = s = 0
    for k in range(len(offsets)):
        at, end = offsets[k], offsets[k] + lengths[k]
        while at < end:
            reason, length = _header(buffer, at, end)
            if reason >= 0:
                counts[reason] += not (stream and reason == _CUT)
                break
            domain[m] = (exporters[k] << 32) | u32(buffer, at + 12)
            sequence[m], exported[m] = u32(buffer, at + 8), u32(buffer, at + 4)
            inner, last = at + HEADER_BYTES, at + length
            # A rest shorter than a set's header is padding.
            while last - inner >= SET_HEADER_BYTES:
                kind, size = u16(buffer, inner), u16(buffer, inner + 2)
                if kind == 0 and size == 0:
                    break
                if size < SET_HEADER_BYTES or size > last - inner:
                    counts[_SET_LENGTH] += 1
                    break
                if kind < 2 or 3 < kind < 256:
                    counts[_RESERVED] += 1
                else:
                    key[s], message[s] = (domain[m] << 16) | kind, m
                    content_at[s], content_size[s] = inner + SET_HEADER_BYTES, size - SET_HEADER_BYTES
                    s += 1
                inner += size
            m += 1
            at += length
            consumed[k] = at - offsets[k]
    return Walked(domain[:m], sequence[:m], exported[:m], key[:s], message[:s], content_at[:s], content_size[:s], counts, consumed)


@numba.njit(inline="always")
def _header(buffer, at, end):
    """Return the reason why there is no whole message at ``at`` (-1: there is one), and its length."""
    if end - at < HEADER_BYTES:
        return _CUT, 0
    length = u16(buffer, at + 2)
    if u16(buffer, at) != 10:
        return _VERSION, 0
    if length < HEADER_BYTES:
        return _LENGTH, 0
    if length > end - at:
        return _CUT, 0
    return -1, length


@numba.njit(cache=True, nogil=True)
def tally(records, messages, counts):
    """Add ``counts`` (sets,) of records to ``records`` of their ``messages`` (sets,), all int64; -1, unknown, stays."""
    for k in range(len(messages)):
        if records[messages[k]] >= 0:
            records[messages[k]] += counts[k]


@numba.njit(cache=True, nogil=True)
def records(buffer, sets, segments, counters):
    """Return the counters of all records of ``sets``, a ``Sets``, (n, counters) uint64 in the order of ``segments``.

    ``buffer`` uint8; ``segments`` (k, 3) int64 of adjacent counters: offset within the record, width in bytes (1 to 8), number.
    """
    starts, counts, record_bytes = sets
    values = np.empty((counts.sum(), counters), np.uint64)
    n = 0
    for k in range(len(starts)):
        base = starts[k]
        for _ in range(counts[k]):
            c = 0
            for g in range(len(segments)):
                at, width, number = base + segments[g, 0], segments[g, 1], segments[g, 2]
                if width == 8:
                    words = buffer[at : at + 8 * number].view(np.uint64)
                    for i in range(number):
                        values[n, c + i] = _swapped(words[i])
                elif width == 4:
                    halves = buffer[at : at + 4 * number].view(np.uint32)
                    for i in range(number):
                        values[n, c + i] = _swapped_half(halves[i])
                else:
                    for i in range(number):
                        value = np.uint64(0)
                        for b in range(at + i * width, at + (i + 1) * width):
                            value = (value << np.uint64(8)) | np.uint64(buffer[b])
                        values[n, c + i] = value
                c += number
            base += record_bytes
            n += 1
    return values


@numba.njit(inline="always")
def _swapped(x):
    """Return a 64-bit word with its bytes reversed, which compiles to one instruction."""
    low, high = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    x = ((x >> np.uint64(8)) & low) | ((x & low) << np.uint64(8))
    x = ((x >> np.uint64(16)) & high) | ((x & high) << np.uint64(16))
    return (x >> np.uint64(32)) | (x << np.uint64(32))


@numba.njit(inline="always")
def _swapped_half(x):
    """Return a 32-bit word with its bytes reversed, uint64."""
    return _swapped(np.uint64(x)) >> np.uint64(32)


@numba.njit(cache=True, nogil=True)
def times(buffer, sets, field, exported, last):
    """Return the time of each record of ``sets``, a ``Sets``, (n,) int64 ns since 1970, -1 where it has none or an impossible one.

    ``buffer`` uint8; ``field`` a ``TimeField``; ``exported`` (sets,) int64: the second since 1970 of each set's message.

    Nanoseconds alone count from the message's second, or from the second before, whose last records are exported in the next. The
    time of the preceding record decides; ``last`` is that of the record before the first, -1 if unknown.

    Eight bytes are a plain count of nanoseconds since 1970, as SONiC writes them. RFC 7011 (6.1.9) wants the NTP format
    instead. Its values of these decades have the top bit set, which no plain count has, so both are read.
    """
    starts, counts, record_bytes = sets
    mode, seconds_at, nanoseconds_at = field
    out = np.empty(counts.sum(), np.int64)
    n = 0
    if mode == TIME_WITHIN and last < 0:
        last = _before_the_first(buffer, sets, nanoseconds_at, exported)
    for k in range(len(starts)):
        base = starts[k]
        for _ in range(counts[k]):
            time = np.int64(-1)
            if mode == TIME_NS:
                raw = u64(buffer, base + nanoseconds_at)
                if raw >> np.uint64(63):
                    fraction = np.int64(raw & np.uint64(0xFFFFFFFF))
                    time = (np.int64(raw >> np.uint64(32)) - _NTP_EPOCH_S) * _NS_PER_S + ((fraction * _NS_PER_S) >> 32)
                elif raw < _TIME_MAX:
                    time = np.int64(raw)
            elif mode == TIME_SPLIT:
                time = u32(buffer, base + seconds_at) * _NS_PER_S + u32(buffer, base + nanoseconds_at)
            elif mode == TIME_WITHIN:
                time = exported[k] * _NS_PER_S + u32(buffer, base + nanoseconds_at)
                if last >= 0 and 0 <= time - _NS_PER_S - last < _NS_PER_S // 2 <= time - last:
                    time -= _NS_PER_S
                last = time
            else:
                time = exported[k] * _NS_PER_S
            out[n] = time
            base += record_bytes
            n += 1
    return out


@numba.njit(nogil=True)
def _before_the_first(buffer, sets, at, exported):
    """Return a time in ns before the first record of those with nanoseconds alone, -1 where they do not wrap within its second."""
    starts, counts, record_bytes = sets
    first, before = np.int64(-1), np.int64(-1)
    for k in range(len(starts)):
        for r in range(counts[k]):
            time = exported[k] * _NS_PER_S + u32(buffer, starts[k] + r * record_bytes + at)
            if first < 0:
                first = time
            elif before - time > _NS_PER_S // 2:
                return first - _NS_PER_S
            elif time - first > _NS_PER_S // 2:
                return np.int64(-1)
            before = time
    return np.int64(-1)


@numba.njit(cache=True, nogil=True)
def count_varying(buffer, starts, lengths, widths):
    """Return how many whole records of a template with variable lengths each set has (RFC 7011, 7), (sets,) int64.

    ``buffer`` uint8; ``starts`` and ``lengths`` (sets,) int64 bytes; ``widths`` (fields,) int64, 65535 where variable.
    """
    counts = np.zeros(len(starts), np.int64)
    for k in range(len(starts)):
        at, end = starts[k], starts[k] + lengths[k]
        while at < end:
            after = _record_end(buffer, at, end, widths)
            if after > end or after == at:
                break
            counts[k] += 1
            at = after
    return counts


@numba.njit(cache=True, nogil=True)
def _record_end(buffer, at, end, widths):
    """Return the end of the record at ``at``; beyond ``end`` if it is cut."""
    for width in widths:
        size = width
        if width == 65535:
            if at >= end:
                return end + 1
            size = np.int64(buffer[at])
            at += 1
            if size == 255:
                if at + 2 > end:
                    return end + 1
                size = u16(buffer, at)
                at += 2
        at += size
        if at > end:
            return end + 1
    return at


# The state of one observation domain's sequence.
SEQUENCE, PENDING, UNIT, SEQUENCE_COLUMNS = 0, 1, 2, 3
UNIT_UNKNOWN, UNIT_RECORDS, UNIT_MESSAGES, UNIT_NONE = range(4)


@numba.njit(cache=True, nogil=True)
def follow(state, sequences, counts, missed):
    """Follow the sequence numbers of one domain; return the gaps written, how many units are missing, and the restarts.

    ``state`` (3,) int64 is carried between calls, its sequence -1 before the first. ``sequences`` (n,) int64 of messages; ``counts``
    (n,) int64 of their data records, -1 if unknown. ``missed`` (k, 2) int64 receives the first missing number and how many are
    missing. RFC 7011 counts records; some devices count messages, or nothing: the unit that fits is learnt.
    """
    gaps = total = restarts = 0
    for i in range(len(sequences)):
        if state[SEQUENCE] >= 0 and state[PENDING] >= 0:
            step = (sequences[i] - state[SEQUENCE]) & 0xFFFFFFFF
            pending, unit = state[PENDING], state[UNIT]
            if unit == UNIT_UNKNOWN and pending > 0:
                if step == 0:
                    unit = UNIT_NONE
                elif step == pending and pending > 1:
                    unit = UNIT_RECORDS
                elif step == 1 and pending > 1:
                    unit = UNIT_MESSAGES
                state[UNIT] = unit
            expected = min(pending, 1) if unit == UNIT_MESSAGES else pending
            if unit == UNIT_NONE or step in (0, expected):
                pass
            elif step >= 1 << 31:
                restarts += 1
            elif step > expected:
                if gaps < len(missed):
                    missed[gaps, 0], missed[gaps, 1] = (state[SEQUENCE] + expected) & 0xFFFFFFFF, step - expected
                    gaps += 1
                total += step - expected
        state[SEQUENCE], state[PENDING] = sequences[i], counts[i]
    return gaps, total, restarts


@numba.njit(cache=True, nogil=True)
def gather(buffer, starts, lengths):
    """Return the pieces ``buffer[starts[k] : starts[k] + lengths[k]]`` (uint8; int64) joined."""
    out = np.empty(lengths.sum(), np.uint8)
    at = 0
    for k in range(len(starts)):
        out[at : at + lengths[k]] = buffer[starts[k] : starts[k] + lengths[k]]
        at += lengths[k]
    return out
