"""Datagrams from the slots of a bulk receive into bounded memory: who sent them, when, and whether they may come in.

A kernel reads what ``recvmmsg`` left: lengths and flags of the messages, the senders' addresses, and the control messages in
which the kernel of the machine tells the time of arrival and how many it dropped (struct cmsghdr of 64-bit Linux).
"""

import os
import socket
from functools import lru_cache

import numba
import numpy as np

# Memory that a datagram costs beside its bytes: its row of columns. It bounds how many short ones may wait.
_ROW_BYTES = 128
# The order of ``listen.TALLY``.
_DATAGRAMS, _BYTES, _REFUSED, _FULL, _TRUNCATED, _DROPS = range(6)
# Addresses are hashed; the multipliers are drawn anew in every process, so that no sender can choose where he falls.
_MULTIPLIERS = np.frombuffer(os.urandom(16), np.uint64) | np.uint64(1)


class Store:
    """Bounded memory that one kernel call after another appends datagrams to."""

    def __init__(self, size_bytes: int, networks: np.ndarray, tally: np.ndarray) -> None:
        self._networks, self._tally = networks, tally
        self._verdicts = np.zeros((3, 1024), np.uint64)
        self.buffer = np.empty(size_bytes, np.uint8)
        self.marks = np.empty((3, size_bytes // _ROW_BYTES + 1), np.int64)
        self.addresses = np.empty((2, size_bytes // _ROW_BYTES + 1), np.uint64)
        # Bytes used, datagrams kept.
        self.fill = np.zeros(2, np.int64)

    def append(
        self, messages: np.ndarray, data: np.ndarray, stride: int, names: np.ndarray, controls: np.ndarray, ipv6: bool, now_ns: int
    ) -> None:
        """Take in what one call received; datagrams that the kernel did not stamp came at ``now_ns``."""
        _sift(
            *(messages, data, stride, names, controls, ipv6, now_ns),
            *(self._networks, self._verdicts, _MULTIPLIERS, self.buffer, self.marks, self.addresses, self.fill, self._tally),
        )

    def learn_drops(self, told: int) -> None:
        """Take in the kernel's own count of what it dropped, of which ``told`` is the lower 32 bits."""
        self._tally[_DROPS] = later(self._tally[_DROPS], told)

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
        """Return a copy of what is here, as the fields of ``listen.Datagrams``, and be empty."""
        used, kept = self.fill.tolist()
        self.fill[:] = 0
        sender, first = _codes(self.addresses[:, :kept], _MULTIPLIERS)
        senders = tuple(_text(*pair) for pair in self.addresses[:, first].T.tolist())
        offsets, lengths, recv_ts = (column[:kept].copy() for column in self.marks)
        return self.buffer[:used].copy(), offsets, lengths, recv_ts, sender, senders


@lru_cache(maxsize=65_536)
def _text(high: int, low: int) -> str:
    if high == 0 and low >> 32 == 0xFFFF:
        return socket.inet_ntop(socket.AF_INET, (low & 0xFFFFFFFF).to_bytes(4))
    return socket.inet_ntop(socket.AF_INET6, high.to_bytes(8) + low.to_bytes(8))


@numba.njit(cache=True)
def later(known, told):
    """Return the total that ``told``, its lower 32 bits, means, given one that was known before; never less."""
    ahead = (told - known) & 0xFFFFFFFF
    return known + ahead if ahead < 0x80000000 else known


@numba.njit(cache=True, nogil=True)
def _sift(
    messages, data, stride, names, controls, ipv6, now_ns, networks, verdicts, multipliers, buffer, marks, addresses, fill, tally
):  # fmt: skip
    """Append the datagrams of ``messages`` that are whole, allowed and fit, and count the others."""
    truncated_flag = 0x20
    for k in range(len(messages)):
        size = np.int64(messages[k].bytes)
        ts, drops = _control(controls, k * 128, np.int64(messages[k].header.control_bytes))
        if drops >= 0:
            tally[_DROPS] = later(tally[_DROPS], drops)
        high, low = _sender(names, k * 28, ipv6)
        if not _allowed(high, low, networks, verdicts, multipliers):
            tally[_REFUSED] += 1
            continue
        tally[_DATAGRAMS] += 1
        tally[_BYTES] += size
        if messages[k].header.flags & truncated_flag:
            tally[_TRUNCATED] += 1
            continue
        used, kept = fill[0], fill[1]
        if used + size > len(buffer) or kept >= marks.shape[1]:
            tally[_FULL] += 1
            continue
        buffer[used : used + size] = data[k * stride : k * stride + size]
        marks[0, kept], marks[1, kept], marks[2, kept] = used, size, ts if ts else now_ns
        addresses[0, kept], addresses[1, kept] = high, low
        fill[0], fill[1] = used + size, kept + 1


@numba.njit(nogil=True)
def _control(controls, at, size):
    """Return the kernel's time of arrival (0: not told) and the number that it has dropped so far (-1: not told)."""
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
    high, low = np.uint64(0), np.uint64(0)
    if not ipv6:
        for k in range(4, 8):
            low = low << np.uint64(8) | np.uint64(names[at + k])
        return high, low | np.uint64(0xFFFF00000000)
    for k in range(8, 16):
        high = high << np.uint64(8) | np.uint64(names[at + k])
        low = low << np.uint64(8) | np.uint64(names[at + k + 8])
    return high, low


@numba.njit(inline="always")
def _hash(high, low, multipliers):
    mixed = (high ^ (low >> np.uint64(32))) * multipliers[0] + (low ^ (high << np.uint64(7))) * multipliers[1]
    return np.int64((mixed ^ (mixed >> np.uint64(29))) * multipliers[1] >> np.uint64(40))


@numba.njit(nogil=True)
def _allowed(high, low, networks, verdicts, multipliers):
    """Return whether a sender may send; what was found of it is kept until another sender falls into its place."""
    place = _hash(high, low, multipliers) & (verdicts.shape[1] - 1)
    if verdicts[2, place] and verdicts[0, place] == high and verdicts[1, place] == low:
        return verdicts[2, place] == 2
    ipv4 = high == 0 and low >> np.uint64(32) == 0xFFFF
    allowed = False
    for k in range(len(networks)):
        network = networks[k]
        if (network[4] == 1) == ipv4 and high & network[2] == network[0] and low & network[3] == network[1]:
            allowed = True
            break
    verdicts[0, place], verdicts[1, place], verdicts[2, place] = high, low, 2 if allowed else 1
    return allowed


@numba.njit(cache=True, nogil=True)
def _codes(addresses, multipliers):
    """Return a number for each address, the same for the same, and where each number came first."""
    count = addresses.shape[1]
    size = 16
    while size < 2 * count:
        size *= 2
    slots = np.full(size, -1, np.int32)
    codes, first, known = np.empty(count, np.int32), np.empty(count, np.int64), 0
    for k in range(count):
        high, low = addresses[0, k], addresses[1, k]
        place = _hash(high, low, multipliers) & (size - 1)
        while slots[place] >= 0 and (addresses[0, first[slots[place]]] != high or addresses[1, first[slots[place]]] != low):
            place = (place + 1) & (size - 1)
        if slots[place] < 0:
            slots[place], first[known] = known, k
            known += 1
        codes[k] = slots[place]
    return codes, first[:known]
