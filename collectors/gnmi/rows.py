"""Updates to rows, in compiled code: one row for each object and time, its columns filled from all updates of that time.

What devices send only when it changes is remembered by port (line rate, link state) and by device (boot time), since rows
of counters need it and carry no such thing. What is remembered ends with a delete, or with a notification that
replaces what lies above it.
"""

import numba
import numpy as np

from .json_kernel import BOOL, BYTES, DELETE, DOUBLE, INT, NONE, TEXT, UINT, number
from .paths import COLUMNS, EPOCH, FORGET_DEVICE, FORGET_NOTHING, PORT, QUEUE, SPEED, UNREADABLE, UP

PORT_SPEED, QUEUE_SPEED = COLUMNS[PORT].index("speed_bps"), COLUMNS[QUEUE].index("speed_bps")

# Reasons that are counted here, columns of ``counts``.
NOT_A_NUMBER, UNREADABLE_PATH, PORTS_FULL = range(3)
COUNTS = 3

UNKNOWN = -1

_PRIME = 0x2545F4914F6CDD1D
_PROBES_MAX = 64
_IEEE_FLOAT_BYTES = 4
_TOP = 18446744073709551615.0
_NS_PER_S = 1_000_000_000
# A boot time below this is in seconds: as nanoseconds it would be in 1970.
_SECONDS_MAX = 10**15
# No switch boots twice within so short a time.
_SAME_BOOT_NS = 10 * _NS_PER_S


@numba.njit
def _hash(a, b, c):
    h = a * _PRIME
    h = (h ^ (h >> 31) ^ b) * _PRIME
    h = (h ^ (h >> 31) ^ c) * _PRIME
    return h ^ ((h >> 32) & 0xFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def group(notification, node, kind, devices, times, family, thing, rows):
    """Give each update of a PORT or QUEUE its row: one for each (device, time, thing).

    Args:
        notification, node, kind: of each of the n updates.
        devices, times: of each notification.
        family, thing: of each node.
        rows: (n,) int32, set; -1 for other families.

    Returns:
        For ports, then for queues: the notification and the thing of each row.
    """
    n = notification.shape[0]
    size = 16
    while size < 2 * n:
        size *= 2
    slots = np.zeros(size, np.int32)
    heads = np.empty((2, n), np.int32)
    things = np.empty((2, n), np.int32)
    filled = np.zeros(2, np.int64)
    last = np.full(2, -1, np.int64)
    for u in range(n):
        rows[u] = -1
        if node[u] < 0 or kind[u] >= DELETE:
            continue
        kin = family[node[u]]
        if kin not in (PORT, QUEUE):
            continue
        which, one, at = np.int64(kin) - PORT, thing[node[u]], notification[u]
        row = last[which]
        if row < 0 or things[which, row] != one or heads[which, row] != at:
            row = _row(slots, heads, things, filled, which, at, one, devices, times)
            last[which] = row
        rows[u] = row
    return heads[0, : filled[0]], things[0, : filled[0]], heads[1, : filled[1]], things[1, : filled[1]]


@numba.njit
def _row(slots, heads, things, filled, which, at, one, devices, times):
    mask = slots.shape[0] - 1
    place = _hash(np.int64(devices[at]), times[at], np.int64(one)) & mask
    while slots[place]:
        # Ports and queues share the slots: the lowest bit says whose row it is.
        row, whose = (slots[place] - 1) >> 1, (slots[place] - 1) & 1
        head = heads[whose, row]
        if whose == which and things[whose, row] == one and devices[head] == devices[at] and times[head] == times[at]:
            return np.int64(row)
        place = (place + 1) & mask
    row = filled[which]
    slots[place] = row * 2 + which + 1
    heads[which, row], things[which, row] = at, one
    filled[which] = row + 1
    return row


@numba.njit
def _whole(buffer, kind, bits, begin, size):
    """Return (kind, bits) of a value that may be a number in a text; kind -1 where it is no number."""
    if kind == TEXT:
        found, made, after = number(buffer, begin, begin + size)
        return (np.int64(found) if found and after == begin + size else np.int64(-1)), made
    if kind == BYTES and size == _IEEE_FLOAT_BYTES:
        # The only binary type of four bytes in the OpenConfig models is ieeefloat32, most significant byte first.
        raw = np.int64(0)
        for k in range(_IEEE_FLOAT_BYTES):
            raw = (raw << 8) | np.int64(buffer[begin + k])
        return np.int64(DOUBLE), np.float64(np.uint32(raw).view(np.float32)).view(np.int64)
    return (np.int64(kind) if kind in (UINT, INT, DOUBLE, BOOL) else np.int64(-1)), bits


@numba.njit
def _count(buffer, kind, bits, begin, size, scale):
    """Return (whether it is a count, its 64 unsigned bits) of a value times ``scale``."""
    what, made = _whole(buffer, kind, bits, begin, size)
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
def _says(buffer, begin, size, word):
    """Return whether a text is a word in any case, perhaps behind a module's name."""
    if size < len(word) or (size > len(word) and buffer[begin + size - len(word) - 1] != 58):
        return False
    at = begin + size - len(word)
    k = 0
    while k < len(word) and (buffer[at + k] | 32) == word[k]:
        k += 1
    return k == len(word)


@numba.njit
def _up(buffer, kind, bits, begin, size):
    """Return (whether it tells a state, 1 for up)."""
    if kind == BOOL:
        return True, bits
    if kind != TEXT or _says(buffer, begin, size, b"unknown"):
        return False, np.int64(0)
    up = _says(buffer, begin, size, b"up") or _says(buffer, begin, size, b"enable") or _says(buffer, begin, size, b"enabled")
    return True, np.int64(up)


@numba.njit
def _speed(buffer, kind, bits, begin, size, scale):
    """Return (whether it tells a rate, bits per second) of ``SPEED_400GB``, ``400G``, or a number times ``scale``."""
    if kind != TEXT:
        return _count(buffer, kind, bits, begin, size, scale)
    at, end = begin, begin + size
    while at < end and not 48 <= buffer[at] <= 57:
        at += 1
    what, made, at = number(buffer, at, end)
    if what == NONE:
        return False, np.int64(0)
    unit = np.int64(buffer[at] | 32) if at < end else np.int64(0)
    factor = 1e3 if unit == 107 else 1e6 if unit == 109 else 1e9 if unit == 103 else 1e12 if unit == 116 else scale
    return _count(buffer, np.int64(what), made, begin, size, factor)


@numba.njit
def _port(states, device, port):
    """Return the place of a port's state, made if it is new; -1 where there is no room."""
    slots, keys, _, _, filled, _ = states
    key = (np.int64(device) << 32) | np.int64(port)
    mask = slots.shape[0] - 1
    place = _hash(key, np.int64(0), np.int64(0)) & mask
    for _ in range(_PROBES_MAX):
        found = np.int64(slots[place]) - 1
        if found < 0:
            if filled[0] >= keys.shape[0]:
                return np.int64(-1)
            found = filled[0]
            slots[place], keys[found], filled[0] = found + 1, key, found + 1
            return found
        if keys[found] == key:
            return found
        place = (place + 1) & mask
    return np.int64(-1)


@numba.njit
def _current(states, device, at):
    """Clear a port's state if its device was forgotten since it was written."""
    _, _, speed, generation, _, newest = states
    if generation[at] != newest[device]:
        generation[at], speed[at] = newest[device], UNKNOWN


@numba.njit
def _forget(states, device, forget):
    if forget == FORGET_DEVICE:
        states[5][device] += 1
    elif forget != FORGET_NOTHING:
        at = _port(states, device, forget)
        if at >= 0:
            states[2][at] = UNKNOWN


@numba.njit(cache=True, nogil=True)
def fill(buffer, updates, devices, meanings, port_of_row, port_of_queue_row, rows, ports, queues, states, epochs, counts):
    """Fill the columns of all rows in the order of the updates.

    Args:
        updates: notification, node, kind, bits, begin, size of each (``gnmi_kernel.walk``); rows: the row of each (``group``).
        devices: device of each notification.
        meanings: family, name, form, scale, forget of each node; port_of_row, port_of_queue_row: number of the port of each row.
        ports, queues: (values, valid, epoch), values (columns, rows) int64, valid the same in bool, both zero; epoch (rows,).
        states: see ``States``; epochs: of each device; both are kept from call to call.
        counts: (COUNTS,), added to.
    """
    notification, node, kind, bits, begin, size = updates
    family, name, form, scale, forget = meanings
    begun_ports, begun_queues = np.zeros(len(ports[2]), np.bool_), np.zeros(len(queues[2]), np.bool_)
    for u in range(notification.shape[0]):
        at = node[u]
        device = devices[notification[u]]
        if at < 0:
            continue
        if kind[u] >= DELETE:
            _forget(states, device, forget[at])
            continue
        kin = family[at]
        if kin == UNREADABLE:
            counts[UNREADABLE_PATH] += 1
        elif kin == EPOCH:
            good, value = _count(buffer, kind[u], bits[u], np.int64(begin[u]), np.int64(size[u]), 1.0)
            if good and value > 0:
                booted = value * _NS_PER_S if value < _SECONDS_MAX // 1000 else value
                # Where it is the clock less the time since, it moves by what the clock is set by.
                if abs(booted - epochs[device]) > _SAME_BOOT_NS:
                    epochs[device] = booted
        elif kin in (PORT, QUEUE):
            good, value = _value(buffer, form[at], kind[u], bits[u], np.int64(begin[u]), np.int64(size[u]), scale[at])
            if not good:
                counts[NOT_A_NUMBER] += 1
                continue
            values, valid, epoch = ports if kin == PORT else queues
            # A row has the line rate of the moment in which it begins, which a later update of this call may change.
            if kin == PORT and not begun_ports[rows[u]]:
                begun_ports[rows[u]] = True
                rate = _rate(states, device, port_of_row[rows[u]])
                values[PORT_SPEED, rows[u]], valid[PORT_SPEED, rows[u]] = rate, rate > 0
            elif kin == QUEUE and not begun_queues[rows[u]]:
                begun_queues[rows[u]] = True
                rate = _rate(states, device, port_of_queue_row[rows[u]])
                values[QUEUE_SPEED, rows[u]], valid[QUEUE_SPEED, rows[u]] = rate, rate > 0
            values[name[at], rows[u]], valid[name[at], rows[u]] = value, True
            epoch[rows[u]] = epochs[device]
            if kin == PORT and name[at] == PORT_SPEED and not _tell(states, device, port_of_row[rows[u]], value):
                counts[PORTS_FULL] += 1


@numba.njit
def _value(buffer, form, kind, bits, begin, size, scale):
    """Return (whether there is one, the 64 bits) of a column's value."""
    if form == UP:
        return _up(buffer, kind, bits, begin, size)
    if form == SPEED:
        return _speed(buffer, kind, bits, begin, size, scale)
    return _count(buffer, kind, bits, begin, size, scale)


@numba.njit
def _tell(states, device, port, rate):
    """Remember a port's line rate; return whether there is room."""
    at = _port(states, device, port)
    if at < 0:
        return False
    _current(states, device, at)
    states[2][at] = rate
    return True


@numba.njit(cache=True, nogil=True)
def speeds(devices, ports, states, values, valid):
    """Give the rows of ``devices`` and ``ports`` that came before any line rate, in ``values`` and ``valid``, the one told since."""
    for row in range(devices.shape[0]):
        if not valid[row]:
            rate = _rate(states, devices[row], ports[row])
            values[row], valid[row] = rate, rate > 0


@numba.njit
def _rate(states, device, port):
    """Return the line rate that a port has told last, 0 where it has told none."""
    at = _port(states, device, port) if port >= 0 else -1
    if at < 0:
        return np.int64(0)
    _current(states, device, at)
    return max(np.int64(0), np.int64(states[2][at]))


@numba.njit(cache=True, nogil=True)
def measure(buffer, kind, bits, begin, size, scale):
    """Return value, whether it has one, count, whether it has one, of each of n readings; all (n,)."""
    n = kind.shape[0]
    value, has_value = np.zeros(n, np.float64), np.zeros(n, np.bool_)
    count, has_count = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    for k in range(n):
        what, made = _whole(buffer, kind[k], bits[k], np.int64(begin[k]), np.int64(size[k]))
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
    """Copy the slices of ``buffer`` one after another to ``out``; slice k ends at ``ends[k]``."""
    for k in range(begin.shape[0]):
        at = ends[k] - size[k]
        for j in range(size[k]):
            out[at + j] = buffer[begin[k] + j]


class States:
    """What is remembered of ports, in at most ``ports_max`` places, and of devices.

    Arrays: slots of the table, keys (device and port), line rate (``UNKNOWN`` where not told), generation, how many places are filled,
    and the generation of each device: one more with each time that all of a device is forgotten.
    """

    def __init__(self, ports_max: int) -> None:
        self._max = ports_max
        self._keys = np.zeros(1024, np.int64)
        self._columns = [np.full(1024, UNKNOWN, np.int64), np.zeros(1024, np.int32)]
        self._slots = np.zeros(4096, np.int32)
        self._filled = np.zeros(1, np.int64)
        self._newest = np.zeros(16, np.int32)
        self.epochs = np.zeros(16, np.int64)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self._slots, self._keys, *self._columns, self._filled, self._newest

    def room(self, ports: int, devices: int) -> None:
        """Make room for so many more ports, and for ``devices`` in all."""
        while int(self._filled[0]) + ports > len(self._keys) and len(self._keys) < self._max:
            self._grow()
        while devices > len(self.epochs):
            self._newest = np.concatenate((self._newest, np.zeros_like(self._newest)))
            self.epochs = np.concatenate((self.epochs, np.zeros_like(self.epochs)))

    def _grow(self) -> None:
        size = min(2 * len(self._keys), self._max)
        more = size - len(self._keys)
        filler = (UNKNOWN, 0)
        self._columns = [np.concatenate((one, np.full(more, fill, one.dtype))) for one, fill in zip(self._columns, filler, strict=True)]
        self._keys = np.concatenate((self._keys, np.zeros(more, np.int64)))
        self._slots = np.zeros(2 * len(self._slots), np.int32)
        _refill(self._slots, self._keys, int(self._filled[0]))


@numba.njit(cache=True)
def _refill(slots, keys, filled):
    mask = slots.shape[0] - 1
    for at in range(filled):
        place = _hash(keys[at], np.int64(0), np.int64(0)) & mask
        while slots[place]:
            place = (place + 1) & mask
        slots[place] = at + 1
