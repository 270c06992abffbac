"""Updates to rows, in compiled code: one row for each object and time, its columns filled from all updates of that time.

Devices send a port's line rate and their boot time only when these change, but every row has them: the last values are kept
until a delete, or a notification that replaces what lies above them.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..wire.hash_table import ENTRIES, WordTable, entry_of, new_index, new_seed, refill, word_table
from ..wire.octets import u32
from .kernel import BEGIN, BITS, BOOL, BYTES, DELETE, DOUBLE, INT, KIND, NODE, NONE, NOTE, SIZE, TEXT, UINT, number
from .paths import COLUMNS, EPOCH, FORGET_DEVICE, FORGET_NOTHING, PORT, QUEUE, SPEED, UNREADABLE, UP

PORT_SPEED, QUEUE_SPEED = COLUMNS[PORT].index("speed_bps"), COLUMNS[QUEUE].index("speed_bps")

# Reasons that are counted here, items of ``counts``.
NOT_A_NUMBER, UNREADABLE_PATH, PORTS_FULL = range(3)
COUNTS = 3

UNKNOWN = -1

_ZERO, _NINE, _COLON = 48, 57, 58
_IEEE_FLOAT_BYTES = 4
_TOP = 18446744073709551615.0
_NS_PER_S = 1_000_000_000
# A boot time below this is in seconds: as nanoseconds it would be in 1970.
_SECONDS_MAX = 10**15
# No switch boots twice within this time.
_SAME_BOOT_NS = 10 * _NS_PER_S


class FamilyColumns(NamedTuple):
    """Rows of one family: values (columns, rows) int64 and whether each is valid, bool; both zero at first.

    epoch (rows,) int64; port (rows,) int64: entry of each row's port in ``PortStates``, -1 = none.
    """

    values: np.ndarray
    valid: np.ndarray
    epoch: np.ndarray
    port: np.ndarray


class UpdateValue(NamedTuple):
    """Value of an update, all int64 (see ``kernel``): its kind and 64 bits, or where its bytes lie."""

    kind: int | np.integer
    bits: int | np.integer
    begin: int | np.integer
    size: int | np.integer


class PortStates(NamedTuple):
    """State kept from call to call: ports is a table of (device, port), speed (ports,) int64 bits per second or ``UNKNOWN``.

    generation (ports,) int64: the device's when the speed was written; newest (devices,) int64: grows when all of a device is
    forgotten; epochs (devices,) int64: boot time, UTC nanoseconds, 0 = unknown.
    """

    ports: WordTable
    speed: np.ndarray
    generation: np.ndarray
    newest: np.ndarray
    epochs: np.ndarray


@numba.njit(cache=True, nogil=True)
def group(updates, devices, times, family, thing, seed):
    """Give each update of a PORT or QUEUE its row: one for each (device, time, thing).

    Args:
        updates: (n, columns) int64, see ``kernel``.
        devices, times: of each notification, int32 and int64 UTC nanoseconds.
        family, thing: of each node, uint8 and int32.

    Returns:
        (n,) int32, the row of each update, -1 for other families; then (rows,) int32 four times: for ports and for queues, the
        notification and the thing of each row.
    """
    n = updates.shape[0]
    rows, table, row_of = np.full(n, -1, np.int32), word_table(n, seed), np.empty(n, np.int32)
    heads, things = np.empty((2, n), np.int32), np.empty((2, n), np.int32)
    filled, last = np.zeros(2, np.int64), np.full(2, -1, np.int64)
    for u in range(n):
        node, note = updates[u, NODE], updates[u, NOTE]
        if node < 0 or updates[u, KIND] >= DELETE:
            continue
        kin = np.int64(family[node])
        if kin not in (PORT, QUEUE):
            continue
        which, one = kin - PORT, np.int64(thing[node])
        row = last[which]
        if row < 0 or things[which, row] != one or heads[which, row] != note:
            known = table.state[ENTRIES]
            entry = entry_of(table, np.uint64(devices[note]) << np.uint64(1) | np.uint64(which), np.uint64(times[note]), np.uint64(one))
            # Without an entry (the probe limit) an object gets further rows, which are still correct.
            row = np.int64(row_of[entry]) if 0 <= entry < known else filled[which]
            if row == filled[which]:
                heads[which, row], things[which, row] = note, one
                filled[which] += 1
                if entry >= 0:
                    row_of[entry] = row
            last[which] = row
        rows[u] = row
    return rows, heads[0, : filled[0]], things[0, : filled[0]], heads[1, : filled[1]], things[1, : filled[1]]


@numba.njit
def _whole(buffer, value):
    """Return (kind, bits) of a number, which may be a text; kind -1 where it is none."""
    end = value.begin + value.size
    if value.kind == TEXT:
        found, made, after = number(buffer, value.begin, end)
        return (np.int64(found) if found and after == end else np.int64(-1)), made
    if value.kind == BYTES and value.size == _IEEE_FLOAT_BYTES:
        # The only binary type of four bytes in the OpenConfig models is ieeefloat32, most significant byte first.
        return np.int64(DOUBLE), np.float64(np.uint32(u32(buffer, value.begin)).view(np.float32)).view(np.int64)
    return (value.kind if value.kind in (UINT, INT, DOUBLE, BOOL) else np.int64(-1)), value.bits


@numba.njit
def _count(buffer, value, scale):
    """Return (whether it is a count, its 64 unsigned bits) of a value times ``scale``."""
    what, made = _whole(buffer, value)
    if what == DOUBLE:
        value = np.int64(made).view(np.float64) * scale
    elif what in (UINT, BOOL) or (what == INT and made >= 0):
        count = np.uint64(made)
        factor = np.uint64(scale)
        if factor > np.uint64(0) and np.float64(factor) == scale and count <= np.uint64(0xFFFFFFFFFFFFFFFF) // factor:
            return True, np.int64(count * factor)
        value = np.float64(count) * scale
    else:
        return False, np.int64(0)
    if not 0 <= value < _TOP:
        return False, np.int64(0)
    return True, np.int64(np.uint64(value + 0.5))


@numba.njit
def _is_word(buffer, value, word):
    """Return whether a text is a word in any case, with or without a module's name before it."""
    at = value.begin + value.size - len(word)
    if at < value.begin or (at > value.begin and buffer[at - 1] != _COLON):
        return False
    k = 0
    while k < len(word) and (buffer[at + k] | 32) == word[k]:
        k += 1
    return k == len(word)


@numba.njit
def _up(buffer, value):
    """Return (whether it is a state, 1 for up)."""
    if value.kind == BOOL:
        return True, value.bits
    if value.kind != TEXT or _is_word(buffer, value, b"unknown"):
        return False, np.int64(0)
    up = _is_word(buffer, value, b"up") or _is_word(buffer, value, b"enable") or _is_word(buffer, value, b"enabled")
    return True, np.int64(up)


@numba.njit
def _speed(buffer, value, scale):
    """Return (whether it is a rate, bits per second) of ``SPEED_400GB``, ``400G``, or a number times ``scale``."""
    if value.kind != TEXT:
        return _count(buffer, value, scale)
    at, end = value.begin, value.begin + value.size
    while at < end and not _ZERO <= buffer[at] <= _NINE:
        at += 1
    what, made, at = number(buffer, at, end)
    if what == NONE:
        return False, np.int64(0)
    unit = np.int64(buffer[at] | 32) if at < end else np.int64(0)
    factor = 1e3 if unit == 107 else 1e6 if unit == 109 else 1e9 if unit == 103 else 1e12 if unit == 116 else scale
    return _count(buffer, UpdateValue(np.int64(what), made, value.begin, value.size), factor)


@numba.njit(cache=True, nogil=True)
def places(devices, ports, states):
    """Return the entry in ``PortStates`` of each (device, port), both (rows,) int32, as (rows,) int64; -1 where there is no room."""
    found = np.empty(devices.shape[0], np.int64)
    for row in range(devices.shape[0]):
        if row and devices[row] == devices[row - 1] and ports[row] == ports[row - 1]:
            found[row] = found[row - 1]
        else:
            found[row] = entry_of(states.ports, np.uint64(devices[row]), np.uint64(ports[row]), np.uint64(0))
    return found


@numba.njit
def _rate(states, device, port):
    """Return the line rate that the port of an entry reported last, ``UNKNOWN`` where it has none."""
    if port < 0 or states.generation[port] != states.newest[device]:
        return np.int64(UNKNOWN)
    return states.speed[port]


@numba.njit
def _forget(states, device, forget):
    """Forget line rates after a delete: of a port, or of a device; ``forget`` as in ``NodeMeanings``."""
    if forget == FORGET_DEVICE:
        states.newest[device] += 1
    elif forget != FORGET_NOTHING:
        at = entry_of(states.ports, np.uint64(device), np.uint64(forget), np.uint64(0))
        if at >= 0:
            states.speed[at] = UNKNOWN


@numba.njit
def _boot(states, device, booted):
    """Take a boot time in seconds or nanoseconds."""
    booted = booted * _NS_PER_S if booted < _SECONDS_MAX // 1000 else booted
    # Some devices compute it from their clock, so it moves when the clock is set.
    if abs(booted - states.epochs[device]) > _SAME_BOOT_NS:
        states.epochs[device] = booted


@numba.njit(cache=True, nogil=True)
def fill(buffer, updates, rows, devices, meanings, tables, states, counts):
    """Fill the columns of all rows in the order of the updates.

    Args:
        buffer: uint8; updates: (n, columns) int64, see ``kernel``; rows: (n,) int32, the row of each (``group``).
        devices: (notifications,) int32.
        meanings: ``NodeMeanings``; tables: the ``FamilyColumns`` of ports and of queues; states: ``PortStates``.
        counts: (COUNTS,) int64, added to.
    """
    begun = (np.zeros(len(tables[0].epoch), np.bool_), np.zeros(len(tables[1].epoch), np.bool_))
    for u in range(updates.shape[0]):
        at, device, kind = updates[u, NODE], np.int64(devices[updates[u, NOTE]]), updates[u, KIND]
        if at < 0:
            continue
        if kind >= DELETE:
            _forget(states, device, meanings.forget[at])
            continue
        kin, row = np.int64(meanings.family[at]), rows[u]
        value = UpdateValue(kind, updates[u, BITS], updates[u, BEGIN], updates[u, SIZE])
        if kin == UNREADABLE:
            counts[UNREADABLE_PATH] += 1
        elif kin == EPOCH:
            good, booted = _count(buffer, value, 1.0)
            if good and booted > 0:
                _boot(states, device, booted)
        elif kin in (PORT, QUEUE):
            good, bits = _column(buffer, value, meanings.form[at], meanings.scale[at])
            if not good:
                counts[NOT_A_NUMBER] += 1
                continue
            table, column, speed = tables[kin - PORT], meanings.name[at], PORT_SPEED if kin == PORT else QUEUE_SPEED
            # A row has the line rate at its first update; later updates of this call may change the rate.
            if not begun[kin - PORT][row]:
                begun[kin - PORT][row] = True
                rate = _rate(states, device, table.port[row])
                table.values[speed, row], table.valid[speed, row] = rate, rate > 0
            table.values[column, row], table.valid[column, row] = bits, True
            table.epoch[row] = states.epochs[device]
            if kin == PORT and column == PORT_SPEED:
                port = table.port[row]
                counts[PORTS_FULL] += port < 0
                if port >= 0:
                    states.speed[port], states.generation[port] = bits, states.newest[device]


@numba.njit
def _column(buffer, value, form, scale):
    """Return (whether there is one, the 64 bits) of a column's value."""
    if form == UP:
        return _up(buffer, value)
    if form == SPEED:
        return _speed(buffer, value, scale)
    return _count(buffer, value, scale)


@numba.njit(cache=True, nogil=True)
def speeds(devices, ports, states, values, valid):
    """Give the line rate to rows that came before the first report of one: devices int32 and ports (entries) int64, all (rows,).

    ``values`` int64 bits per second, ``valid`` bool.
    """
    for row in range(devices.shape[0]):
        if not valid[row]:
            rate = _rate(states, devices[row], ports[row])
            values[row], valid[row] = rate, rate > 0


@numba.njit(cache=True, nogil=True)
def measure(buffer, updates, scale):
    """Return the values of n updates times ``scale`` (n,) float64: value float64 and count int64 (64 unsigned bits), each with valid bool.

    ``buffer`` uint8, ``updates`` (n, columns) int64, see ``kernel``.
    """
    n = updates.shape[0]
    value, has_value = np.zeros(n, np.float64), np.zeros(n, np.bool_)
    count, has_count = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    for k in range(n):
        what, made = _whole(buffer, UpdateValue(updates[k, KIND], updates[k, BITS], updates[k, BEGIN], updates[k, SIZE]))
        if what < 0:
            continue
        has_value[k] = True
        if what == DOUBLE:
            value[k] = np.int64(made).view(np.float64) * scale[k]
        elif what == INT:
            value[k] = np.float64(made) * scale[k]
            has_count[k] = made >= 0 and scale[k] == 1.0
        else:
            value[k] = np.float64(np.uint64(made)) * scale[k]
            has_count[k] = scale[k] == 1.0
        count[k] = made
    return value, has_value, count, has_count


@numba.njit(cache=True, nogil=True)
def gather(buffer, begin, size, ends, out):
    """Copy n slices of ``buffer`` uint8 one after another to ``out`` uint8; slice k ends at ``ends[k]``; all (n,) int64."""
    for k in range(begin.shape[0]):
        at = ends[k] - size[k]
        for j in range(size[k]):
            out[at + j] = buffer[begin[k] + j]


class States:
    """Owns a ``PortStates``, grown by doubling up to ``ports_max`` ports."""

    def __init__(self, ports_max: int) -> None:
        self._max = ports_max
        size, devices = min(1024, ports_max), np.zeros(16, np.int64)
        self.arrays = PortStates(
            word_table(size, new_seed()), np.full(size, UNKNOWN, np.int64), np.zeros(size, np.int64), devices, devices.copy()
        )

    def room(self, ports: int, devices: int) -> None:
        """Make room for this many more ports, and for ``devices`` in total."""
        while self.arrays.ports.state[ENTRIES] + ports > len(self.arrays.speed) and len(self.arrays.speed) < self._max:
            self._grow()
        while devices > len(self.arrays.epochs):
            newest, epochs = (np.concatenate((one, np.zeros_like(one))) for one in (self.arrays.newest, self.arrays.epochs))
            self.arrays = self.arrays._replace(newest=newest, epochs=epochs)

    def _grow(self) -> None:
        table, speed, generation, *devices = self.arrays
        size = min(2 * len(speed), self._max)
        more = size - len(speed)
        hashes = np.concatenate((table.hashes, np.zeros(more, np.int64)))
        keys = np.concatenate((table.keys, np.zeros((more, 3), np.uint64)))
        index = new_index(size)
        refill(index, hashes, table.state[ENTRIES])
        filler = np.full(more, UNKNOWN, np.int64), np.zeros(more, np.int64)
        speed, generation = (np.concatenate(pair) for pair in zip((speed, generation), filler, strict=True))
        self.arrays = PortStates(WordTable(index, hashes, keys, table.state), speed, generation, *devices)
