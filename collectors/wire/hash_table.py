"""The hash table of the kernels: seeded hashes of words and bytes, and an index from hashes to entries by open addressing.

An entry is a number from 0 up. Its owner stores the keys and their ``hashes`` (int64) and compares keys, so that these may be words or
byte strings in an arena. ``index`` (int32, a power of two of places) holds entries or ``EMPTY``; the owner keeps it at most half
full, and replaces it to grow (``new_index``, ``refill``). A lookup:

    probe = seek(index, hashes, h, 0)
    while probe >= 0:
        entry = index[place_of(index, h, probe)]
        if entry == EMPTY or <the entry's key is the key>:
            break
        probe = seek(index, hashes, h, probe + 1)

Hashes start from ``new_seed()``. Changing a word changes its hash by an amount that depends on the seed, so no sender can make keys
collide, and ``PROBES_MAX`` bounds the cost of a lookup. Pass seeds as data: Numba compiles a global constant into its cache.

In a hot loop name the arrays of a tuple in place (``table.index[k]``): Numba counts references of every variable that holds one
across a branch, which costs more than the lookup.
"""

import secrets
from typing import NamedTuple

import numba
import numpy as np

from .octets import u64

EMPTY = np.int32(-1)
# At half load, one of 10^20 lookups needs more.
PROBES_MAX = 256
_PRIME = 0x2545F4914F6CDD1D
_LOW_HALF = 0xFFFFFFFF
# Items of ``WordTable.state``.
ENTRIES, SEED = 0, 1


def new_seed() -> int:
    """Return a random start for hashes."""
    return secrets.randbits(63)


@numba.njit(nogil=True)
def mix(h, word):
    """Return the hash int64 of a hash ``h`` int64 followed by a word of 64 bits."""
    x = h ^ np.int64(word)
    # The product of the halves, both hidden by the seed: a difference of words has no known difference of products.
    x = (x & _LOW_HALF) * ((x >> 32) & _LOW_HALF) + x * _PRIME
    return x ^ ((x >> 32) & _LOW_HALF)


@numba.njit(nogil=True)
def mix_bytes(h, buffer, at, end):
    """Return the hash int64 of a hash ``h`` followed by ``buffer[at:end]`` (uint8)."""
    while end - at >= 8:
        h = mix(h, u64(buffer, at))
        at += 8
    word = end - at
    while at < end:
        word = (word << 8) | np.int64(buffer[at])
        at += 1
    return mix(h, word)


@numba.njit(nogil=True)
def same_bytes(arena, at, buffer, begin, end):
    """Return whether ``arena`` (uint8) holds ``buffer[begin:end]`` (uint8) at ``at``."""
    k, size = 0, end - begin
    while size - k >= 8 and u64(arena, at + k) == u64(buffer, begin + k):
        k += 8
    while k < size and arena[at + k] == buffer[begin + k]:
        k += 1
    return k == size


@numba.njit(nogil=True)
def place_of(index, h, probe):
    """Return the place in ``index`` (int32) of a hash's ``probe``-th probe."""
    return (h + probe) & (len(index) - 1)


@numba.njit(nogil=True)
def seek(index, hashes, h, probe):
    """Return the first probe from ``probe`` on that finds an entry of hash ``h`` or an empty place; -1 after ``PROBES_MAX``.

    ``index`` (places,) int32, ``hashes`` (entries,) int64, ``h`` int64.
    """
    while probe < PROBES_MAX:
        entry = index[place_of(index, h, probe)]
        if entry == EMPTY or hashes[entry] == h:
            return probe
        probe += 1
    return -1


@numba.njit(cache=True, nogil=True)
def new_index(entries):
    """Return an empty index with room for ``entries``."""
    places = 16
    while places < 2 * entries:
        places *= 2
    return np.full(places, EMPTY, np.int32)


@numba.njit(cache=True, nogil=True)
def refill(index, hashes, count):
    """Enter the first ``count`` entries of ``hashes`` (int64) into an empty ``index`` (int32)."""
    for entry in range(count):
        probe = 0
        while index[place_of(index, hashes[entry], probe)] != EMPTY:
            probe += 1
        index[place_of(index, hashes[entry], probe)] = entry


class WordTable(NamedTuple):
    """A table of keys of three words, of a fixed size: index (places,) int32, hashes (size,) int64, keys (size, 3) uint64.

    ``state`` (2,) int64: ``ENTRIES``, how many keys it holds, and ``SEED``.
    """

    index: np.ndarray
    hashes: np.ndarray
    keys: np.ndarray
    state: np.ndarray


@numba.njit(cache=True, nogil=True)
def word_table(size, seed):
    """Return an empty table for ``size`` keys."""
    return WordTable(new_index(size), np.empty(size, np.int64), np.empty((size, 3), np.uint64), np.array([0, seed], np.int64))


@numba.njit(nogil=True)
def entry_of(table, a, b, c):
    """Return the entry of the key (a, b, c), each uint64, in a ``WordTable``; added if it is new, -1 if there is no room for it."""
    h = mix(mix(mix(table.state[SEED], a), b), c)
    for probe in range(PROBES_MAX):
        place = place_of(table.index, h, probe)
        entry = np.int64(table.index[place])
        if entry == EMPTY:
            return _add(table, place, h, a, b, c)
        if table.hashes[entry] == h and (table.keys[entry, 0] == a) & (table.keys[entry, 1] == b) & (table.keys[entry, 2] == c):
            return entry
    return np.int64(-1)


@numba.njit(nogil=True)
def _add(table, place, h, a, b, c):
    """Enter a new key at an empty place of the index; return its entry, -1 if the table is full."""
    entry = table.state[ENTRIES]
    if entry >= len(table.keys):
        return np.int64(-1)
    table.hashes[entry], table.keys[entry, 0], table.keys[entry, 1], table.keys[entry, 2] = h, a, b, c
    table.index[place], table.state[ENTRIES] = entry, entry + 1
    return entry
