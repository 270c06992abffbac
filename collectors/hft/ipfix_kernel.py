"""The byte loops of IPFIX: where messages and sets are, and what the records of a template say.

The first kernel walks the messages of many datagrams (or of a stretch of a stream) and writes down every set; the others
read the records of all sets of one template into columns. No length on the wire is believed before it is compared with
the bytes that are there, so nothing is read beyond them, and each byte is looked at a fixed number of times.

Runs of counters that stand side by side and are equally wide are read as one stretch: for eight and four bytes that is a
byte swap of whole words.
"""

from typing import NamedTuple

import numba
import numpy as np

HEADER_BYTES = 16
SET_HEADER_BYTES = 4

# Why a walk stopped or passed something over; the columns of its counts.
REASONS = ("version", "length", "cut", "set_length", "reserved_set")
_VERSION, _LENGTH, _CUT, _SET_LENGTH, _RESERVED = range(len(REASONS))

# How a record tells its time: not at all, nanoseconds since 1970 in eight bytes, seconds and nanoseconds in four bytes each,
# nanoseconds within the second in which the message was sent.
TIME_NONE, TIME_NS, TIME_SPLIT, TIME_WITHIN = range(4)

_NS_PER_S = 1_000_000_000
# Seconds from 1900, where NTP begins, to 1970.
_NTP_EPOCH_S = 2_208_988_800
# Beyond 2116 a number is no time.
_TIME_MAX = np.uint64(2**62)


@numba.njit(inline="always")
def _half(buffer, at):
    return (np.int64(buffer[at]) << 8) | np.int64(buffer[at + 1])


@numba.njit(inline="always")
def _word(buffer, at):
    return (_half(buffer, at) << 16) | _half(buffer, at + 2)


class Sets(NamedTuple):
    """Data sets of one template: of each, (n,) int64, where its records start and how many it has, all of ``record_bytes``."""

    starts: np.ndarray
    counts: np.ndarray
    record_bytes: int


class TimeField(NamedTuple):
    """How records tell their time, one of ``TIME_*``, and the offsets in the record of seconds and nanoseconds in bytes."""

    mode: int
    seconds_at: int
    nanoseconds_at: int


class Walked(NamedTuple):
    """What a walk found, in columns. ``domain`` of a message is its exporter (bits 32 and up) and observation domain.

    ``key`` of a set is the domain of its message and below it, in 16 bits, the set's id. ``at`` and ``size``: its content.
    ``counts``: pieces or messages given up, by ``REASONS``. ``consumed``: of each piece, the bytes of its whole messages.
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
    """Walk the messages that stand one after another in each piece ``buffer[offsets[k] : offsets[k] + lengths[k]]``.

    With ``stream`` the pieces are stretches of a stream: a message that is cut at the end is not an error but left.
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
            domain[m] = (exporters[k] << 32) | _word(buffer, at + 12)
            sequence[m], exported[m] = _word(buffer, at + 8), _word(buffer, at + 4)
            inner, last = at + HEADER_BYTES, at + length
            # What is shorter than a set's header at the end is padding.
            while last - inner >= SET_HEADER_BYTES:
                kind, size = _half(buffer, inner), _half(buffer, inner + 2)
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
    """Return why there is no whole message at ``at`` (-1: there is one), and its length."""
    if end - at < HEADER_BYTES:
        return _CUT, 0
    length = _half(buffer, at + 2)
    if _half(buffer, at) != 10:
        return _VERSION, 0
    if length < HEADER_BYTES:
        return _LENGTH, 0
    if length > end - at:
        return _CUT, 0
    return -1, length


@numba.njit(cache=True, nogil=True)
def tally(records, messages, counts):
    """Add the records of sets to those of their messages; -1 stays, and says that nobody can tell."""
    for k in range(len(messages)):
        if records[messages[k]] >= 0:
            records[messages[k]] += counts[k]


@numba.njit(cache=True, nogil=True)
def records(buffer, sets, segments, counters):
    """Return the counters of all records of ``sets``, a ``Sets``, (n, counters) uint64 in the order of ``segments``.

    ``buffer`` uint8; ``segments`` (k, 3) int64: offset within the record and width in bytes, 1 to 8, and number of the counters
    that stand side by side there.
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
    """Return a 64-bit word with its bytes the other way round; the compiler makes one instruction of it."""
    low, high = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    x = ((x >> np.uint64(8)) & low) | ((x & low) << np.uint64(8))
    x = ((x >> np.uint64(16)) & high) | ((x & high) << np.uint64(16))
    return (x >> np.uint64(32)) | (x << np.uint64(32))


@numba.njit(inline="always")
def _swapped_half(x):
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
                raw = (np.uint64(_word(buffer, base + nanoseconds_at)) << np.uint64(32)) | np.uint64(
                    _word(buffer, base + nanoseconds_at + 4)
                )
                if raw >> np.uint64(63):
                    fraction = np.int64(raw & np.uint64(0xFFFFFFFF))
                    time = (np.int64(raw >> np.uint64(32)) - _NTP_EPOCH_S) * _NS_PER_S + ((fraction * _NS_PER_S) >> 32)
                elif raw < _TIME_MAX:
                    time = np.int64(raw)
            elif mode == TIME_SPLIT:
                time = _word(buffer, base + seconds_at) * _NS_PER_S + _word(buffer, base + nanoseconds_at)
            elif mode == TIME_WITHIN:
                time = exported[k] * _NS_PER_S + _word(buffer, base + nanoseconds_at)
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
            time = exported[k] * _NS_PER_S + _word(buffer, starts[k] + r * record_bytes + at)
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
    """Return how many whole records of a template with variable lengths (width 65535) each set has (RFC 7011, 7)."""
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
    """Return where the record at ``at`` ends; beyond ``end`` if it is cut."""
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
                size = _half(buffer, at)
                at += 2
        at += size
        if at > end:
            return end + 1
    return at


# Columns of what is known of the sequence of one observation domain.
SEQUENCE, PENDING, UNIT, SEQUENCE_COLUMNS = 0, 1, 2, 3
UNIT_UNKNOWN, UNIT_RECORDS, UNIT_MESSAGES, UNIT_NONE = range(4)


@numba.njit(cache=True, nogil=True)
def follow(state, sequences, counts, missed):
    """Follow the sequence numbers of one domain; ``counts``: data records of each message, -1 where nobody can tell.

    ``state`` (3) is carried from call to call, its sequence -1 before the first. RFC 7011 counts records, some devices count
    messages, some nothing: what fits is learnt. ``missed`` (k, 2) takes the first missing number and how many are
    missing. Returns the gaps written, all that is missing, and how often the sequence began anew.
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
    """Return a copy of the stretches, one behind the other."""
    out = np.empty(lengths.sum(), np.uint8)
    at = 0
    for k in range(len(starts)):
        out[at : at + lengths[k]] = buffer[starts[k] : starts[k] + lengths[k]]
        at += lengths[k]
    return out
