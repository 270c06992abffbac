"""The hash table of the kernels against dictionaries of Python."""

import numba
import numpy as np
import pytest

from weft.collectors.wire import hash_table
from weft.collectors.wire.hash_table import EMPTY, PROBES_MAX, entry_of, mix, mix_bytes, new_index, new_seed, place_of, refill, seek


@numba.njit
def _enter(table, keys):
    found = np.empty(len(keys), np.int64)
    for k in range(len(keys)):
        found[k] = entry_of(table, keys[k, 0], keys[k, 1], keys[k, 2])
    return found


@numba.njit
def _hashes(words, seed):
    found = np.empty(len(words), np.int64)
    for k in range(len(words)):
        found[k] = mix(mix(seed, words[k, 0]), words[k, 1])
    return found


def test_words_get_numbers_in_the_order_of_their_first_appearance():
    """Keys of three words are numbered as a dictionary numbers them, also when most of them repeat."""
    keys = np.random.default_rng(1).integers(0, 12, (20_000, 3), np.uint64)
    keys[::3] |= np.uint64(1 << 63)
    numbers: dict[tuple[int, ...], int] = {}
    expected = [numbers.setdefault(tuple(key), len(numbers)) for key in keys.tolist()]
    table = hash_table.word_table(len(numbers), new_seed())
    assert _enter(table, keys).tolist() == expected
    assert table.state[hash_table.ENTRIES] == len(numbers)
    assert [tuple(key) for key in table.keys.tolist()] == list(numbers)


def test_full_table_refuses_new_keys_and_finds_known_ones():
    """A table of four keys refuses the fifth and still finds the four."""
    keys = np.arange(15, dtype=np.uint64).reshape(5, 3)
    table = hash_table.word_table(4, new_seed())
    assert _enter(table, keys).tolist() == [0, 1, 2, 3, -1]
    assert _enter(table, keys).tolist() == [0, 1, 2, 3, -1]


def test_half_full_table_of_many_keys_refuses_none():
    """At the load that the owners allow, no key needs more probes than the bound."""
    size = 1 << 18
    keys = np.zeros((size, 3), np.uint64)
    keys[:, 2] = np.arange(size)
    table = hash_table.word_table(size, new_seed())
    assert _enter(table, keys).tolist() == list(range(size))


def test_probes_are_bounded_when_all_hashes_are_equal():
    """Where every place is taken by another key of one hash, a lookup ends after the bound."""
    index, hashes = np.arange(1024, dtype=np.int32), np.zeros(1024, np.int64)
    probe, probes = seek(index, hashes, 0, 0), 0
    while probe >= 0:
        probe, probes = seek(index, hashes, 0, probe + 1), probes + 1
    assert probes == PROBES_MAX
    assert seek(index, hashes, 7, 0) == -1


def test_refilled_index_finds_every_entry():
    """An index that was replaced by a larger one leads to the same entries, past others in their places."""
    rng = np.random.default_rng(2)
    hashes = np.unique(rng.integers(-(1 << 62), 1 << 62, 3000))
    hashes[:40] = hashes[:40] >> 12 << 12
    index = new_index(len(hashes))
    assert len(index) == 8192 and (index == EMPTY).all()
    refill(index, hashes, len(hashes))
    for entry, h in enumerate(hashes.tolist()):
        found, probe = [], seek(index, hashes, h, 0)
        while (other := index[place_of(index, h, probe)]) != EMPTY:
            found.append(int(other))
            probe = seek(index, hashes, h, probe + 1)
        assert entry in found


@pytest.mark.parametrize("flip", [(1 << 63, (1 << 63) | (1 << 31)), (1 << 63, 1 << 63), (1 << 32, 1 << 32)])
def test_differences_that_cancel_without_the_products_do_not_collide(flip: tuple[int, int]):
    """Differences of two words that cancel in a hash of xor and multiplication alone give other hashes under every seed."""
    words = np.random.default_rng(3).integers(0, 1 << 63, (1000, 2), np.uint64)
    others = words ^ np.array(flip, np.uint64)
    for _ in range(20):
        seed = new_seed()
        assert not (_hashes(words, seed) == _hashes(others, seed)).any()


def test_hash_depends_on_the_seed():
    """The same words have other hashes, and other places, under another seed."""
    words = np.arange(2000, dtype=np.uint64).reshape(1000, 2)
    same = _hashes(words, 1) & 1023 == _hashes(words, 2) & 1023
    assert 0 <= same.sum() < 20


def test_places_are_spread_evenly():
    """Consecutive numbers fall into the places of a small index about equally often."""
    words = np.zeros((64_000, 2), np.uint64)
    words[:, 1] = np.arange(64_000)
    counts = np.bincount(_hashes(words, new_seed()) & 63, minlength=64)
    assert counts.min() > 800 and counts.max() < 1200


def test_bytes_are_told_apart_by_content_and_length():
    """Strings of all lengths up to 40, zeros among them, have hashes of their own, wherever they lie."""
    seed, strings = new_seed(), {bytes([fill]) * size for size in range(41) for fill in (0, 1, 255)}
    hashes = set()
    for text in strings:
        for before in (0, 3):
            buffer = np.frombuffer(b"x" * before + text + b"yz", np.uint8)
            hashes.add((text, mix_bytes(seed, buffer, before, before + len(text))))
    assert len(hashes) == len(strings) == len({h for _, h in hashes})


def test_bytes_are_compared_to_the_last():
    """Two strings are the same only if no byte differs; bytes behind them do not count."""
    for size in range(20):
        text = bytes(range(1, size + 1))
        arena, buffer = np.frombuffer(b"ab" + text + b"cd", np.uint8), np.frombuffer(b"x" + text + b"yy", np.uint8)
        assert hash_table.same_bytes(arena, 2, buffer, 1, 1 + size)
        for k in range(size):
            other = buffer.copy()
            other[1 + k] ^= 128
            assert not hash_table.same_bytes(arena, 2, other, 1, 1 + size)
