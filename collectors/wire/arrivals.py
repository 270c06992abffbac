"""Datagrams from the slots of a bulk receive into bounded memory, with senders and times, without those that are not allowed.

A Numba kernel reads the output of ``recvmmsg``: lengths and flags, the senders' addresses, and the control messages with which
Linux reports the time of arrival and its count of dropped datagrams (struct cmsghdr, 64 bits).
"""

import socket
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

from .hash_table import ENTRIES, entry_of, mix, new_seed, word_table

# Memory of a datagram's columns; it bounds how many short datagrams may wait.
_ROW_BYTES = 128
# The order of ``listen.TALLY``.
_DATAGRAMS, _BYTES, _REFUSED, _FULL, _TRUNCATED, _DROPS = range(6)
_SEED = new_seed()


class _Received(NamedTuple):
    """The output of ``recvmmsg`` for n datagrams.

    ``messages`` (n,) ``listen._MESSAGE``; k-th bytes at ``k * stride`` of ``data`` uint8, address at ``28 * k`` of ``names`` uint8, control
    messages at ``128 * k`` of ``controls`` uint8; ``now_ns`` is the time in ns of datagrams without a time stamp.
    """

    messages: np.ndarray
    data: np.ndarray
    stride: int
    names: np.ndarray
    controls: np.ndarray
    ipv6: bool
    now_ns: int


class _Allowed(NamedTuple):
    """Networks (n, 5) uint64 as ``listen._networks`` makes them, and a cache (3, 1024) uint64: address (high, low), 1 no or 2 yes."""

    networks: np.ndarray
    verdicts: np.ndarray
    seed: int


class _Packed(NamedTuple):
    """Datagrams one after another in ``buffer`` uint8; of each offset, length and time in ns, ``marks`` (3, n) int64.

    ``addresses`` (2, n) uint64 are the high and low halves of the senders; ``fill`` (2,) int64 bytes and datagrams in use.
    """

    buffer: np.ndarray
    marks: np.ndarray
    addresses: np.ndarray
    fill: np.ndarray


class DatagramBuffer:
    """Bounded memory to which datagrams are appended until they are taken."""

    def __init__(self, size_bytes: int, networks: np.ndarray, tally: np.ndarray) -> None:
        self._allowed, self._tally = _Allowed(networks, np.zeros((3, 1024), np.uint64), _SEED), tally
        rows = size_bytes // _ROW_BYTES + 1
        self._packed = _Packed(
            np.empty(size_bytes, np.uint8), np.empty((3, rows), np.int64), np.empty((2, rows), np.uint64), np.zeros(2, np.int64)
        )

    def append(
        self, messages: np.ndarray, data: np.ndarray, stride: int, names: np.ndarray, controls: np.ndarray, ipv6: bool, now_ns: int
    ) -> None:
        """Append the datagrams of one receive call; those without a time stamp get ``now_ns``."""
        _append(_Received(messages, data, stride, names, controls, ipv6, now_ns), self._allowed, self._packed, self._tally)

    def count_drops(self, low_bits: int) -> None:
        """Set the count of datagrams dropped by the operating system, whose lower 32 bits are ``low_bits``."""
        self._tally[_DROPS] = extended(self._tally[_DROPS], low_bits)

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
        """Return a copy of the datagrams as the fields of ``listen.ReceivedDatagrams``, and empty the buffer."""
        buffer, marks, addresses, fill = self._packed
        used, count = fill.tolist()
        fill[:] = 0
        sender, keys = _codes(addresses, count, _SEED)
        senders = tuple(_text(high, low) for high, low, _ in keys.tolist())
        offsets, lengths, recv_ts = (column[:count].copy() for column in marks)
        return buffer[:used].copy(), offsets, lengths, recv_ts, sender, senders


@lru_cache(maxsize=65_536)
def _text(high: int, low: int) -> str:
    if high == 0 and low >> 32 == 0xFFFF:
        return socket.inet_ntop(socket.AF_INET, (low & 0xFFFFFFFF).to_bytes(4))
    return socket.inet_ntop(socket.AF_INET6, high.to_bytes(8) + low.to_bytes(8))


@numba.njit(cache=True)
def extended(known, low_bits):
    """Return the total whose lower 32 bits are ``low_bits``, given an earlier total ``known``; never less than that."""
    ahead = (low_bits - known) & 0xFFFFFFFF
    return known + ahead if ahead < 0x80000000 else known


@numba.njit(cache=True, nogil=True)
def _append(received, allowed, packed, tally):
    """Append the datagrams of ``received`` that are whole, allowed and fit into ``packed``; count all by ``listen.TALLY``.

    ``received`` a ``_Received``, ``allowed`` an ``_Allowed``, ``packed`` a ``_Packed``, ``tally`` (6,) int64.
    """
    messages, data, stride, names, controls, ipv6, now_ns = received
    buffer, marks, addresses, fill = packed
    truncated_flag = 0x20
    for k in range(len(messages)):
        size = np.int64(messages[k].bytes)
        ts, drops = _control(controls, k * 128, np.int64(messages[k].header.control_bytes))
        if drops >= 0:
            tally[_DROPS] = extended(tally[_DROPS], drops)
        high, low = _sender(names, k * 28, ipv6)
        if not _is_allowed(high, low, allowed):
            tally[_REFUSED] += 1
            continue
        tally[_DATAGRAMS] += 1
        tally[_BYTES] += size
        if messages[k].header.flags & truncated_flag:
            tally[_TRUNCATED] += 1
            continue
        used, count = fill[0], fill[1]
        if used + size > len(buffer) or count >= marks.shape[1]:
            tally[_FULL] += 1
            continue
        buffer[used : used + size] = data[k * stride : k * stride + size]
        marks[0, count], marks[1, count], marks[2, count] = used, size, ts if ts else now_ns
        addresses[0, count], addresses[1, count] = high, low
        fill[0], fill[1] = used + size, count + 1


@numba.njit(nogil=True)
def _control(controls, at, size):
    """Return the kernel's time of arrival in ns (0: none) and how many datagrams it has dropped so far (-1: unknown).

    ``controls`` uint8, ``size`` bytes of it from ``at`` on.
    """
    words = controls.view(np.uint64)
    ts, drops = np.int64(0), np.int64(-1)
    end = at + min(size, 128)
    # struct cmsghdr: size_t length, int level, int type.
    while at + 16 <= end:
        length = np.int64(words[at >> 3])
        if length < 16 or at + length > end:
            break
        halves = words[at >> 3 : (at >> 3) + 4].view(np.uint32)
        if halves[2] == 1 and halves[3] == 35 and length >= 32:
            ts = np.int64(words[(at >> 3) + 2]) * 1_000_000_000 + np.int64(words[(at >> 3) + 3])
        elif halves[2] == 1 and halves[3] == 40 and length >= 20:
            drops = np.int64(halves[4])
        at += (length + 7) & ~7
    return ts, drops


@numba.njit(nogil=True)
def _sender(names, at, ipv6):
    """Return the halves (uint64) of the address in the socket address at ``at`` of ``names`` (uint8), IPv4 as IPv6 maps it."""
    high, low = np.uint64(0), np.uint64(0)
    if not ipv6:
        for k in range(4, 8):
            low = low << np.uint64(8) | np.uint64(names[at + k])
        return high, low | np.uint64(0xFFFF00000000)
    for k in range(8, 16):
        high = high << np.uint64(8) | np.uint64(names[at + k])
        low = low << np.uint64(8) | np.uint64(names[at + k + 8])
    return high, low


@numba.njit(nogil=True)
def _is_allowed(high, low, allowed):
    """Return whether a sender is allowed; the verdict is cached until another sender takes its place."""
    networks, verdicts, seed = allowed
    place = mix(mix(seed, high), low) & (verdicts.shape[1] - 1)
    if verdicts[2, place] and verdicts[0, place] == high and verdicts[1, place] == low:
        return verdicts[2, place] == 2
    ipv4 = high == 0 and low >> np.uint64(32) == 0xFFFF
    is_allowed = False
    for k in range(len(networks)):
        network = networks[k]
        if (network[4] == 1) == ipv4 and high & network[2] == network[0] and low & network[3] == network[1]:
            is_allowed = True
            break
    verdicts[0, place], verdicts[1, place], verdicts[2, place] = high, low, 2 if is_allowed else 1
    return is_allowed


@numba.njit(cache=True, nogil=True)
def _codes(addresses, count, seed):
    """Return codes (count,) int32 of the first ``addresses`` (2, n) uint64, and the distinct ones, (codes, 3) uint64 ending in 0."""
    table, codes = word_table(count, seed), np.empty(count, np.int32)
    for k in range(count):
        codes[k] = entry_of(table, addresses[0, k], addresses[1, k], np.uint64(0))
    return codes, table.keys[: table.state[ENTRIES]]
