"""Consumer groups of the embedded bus: assignment, and the tables of members, owners and offsets in the log file.

A member owns partition *indices*: the same index of every topic. ``owners.since`` is the generation in which it
got one. A commit must name the same member, instance and ``since``, checked inside the transaction that records
the offsets; so a partition that was lost and regained unnoticed is fenced, too.

Of ``n`` partitions each of ``m`` members gets ``n // m``, and the ``n % m`` members that own most already get one
more. Each member keeps its partitions up to its share; the rest goes to the others in order of index. So the
counts differ by at most one, and as few partitions as possible move.
"""

import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence

from ..clock import NS_PER_S
from ..errors import FencedError
from . import TopicPartition

# A member that has not polled for a session is removed.
SESSION_S = 10.0
HEARTBEAT_S = SESSION_S / 4


def share_out(owners: Mapping[int, str], members: Sequence[str], partitions: int) -> dict[int, str]:
    """Return the owner of each partition index: counts differ by at most one, and as few as possible move."""
    base, extra = divmod(partitions, len(members))
    kept: dict[str, list[int]] = {member: [] for member in sorted(members)}
    for number, member in sorted(owners.items()):
        if member in kept and number < partitions:
            kept[member].append(number)
    ranked = sorted(kept, key=lambda member: (-len(kept[member]), member))
    quota = {member: base + (place < extra) for place, member in enumerate(ranked)}
    shares = {member: numbers[: quota[member]] for member, numbers in kept.items()}
    taken = {number for numbers in shares.values() for number in numbers}
    free = iter(sorted(set(range(partitions)) - taken))
    for member, numbers in shares.items():
        numbers.extend(next(free) for _ in range(quota[member] - len(numbers)))
    return {number: member for member, numbers in shares.items() for number in numbers}


def committed(connection: sqlite3.Connection, group: str, topics: Sequence[str], partitions: int) -> dict[TopicPartition, int]:
    """Return the group's offsets, 0 where it has none."""
    offsets = {TopicPartition(topic, number): 0 for topic in topics for number in range(partitions)}
    for topic, number, offset in connection.execute("SELECT topic, number, next_offset FROM offsets WHERE grp = ?", (group,)):
        if (place := TopicPartition(topic, number)) in offsets:
            offsets[place] = offset
    return offsets


class Membership:
    """One instance of one member of a group. Its methods run inside a transaction of the caller."""

    def __init__(self, group: str, member: str, partitions: int) -> None:
        self.group = group
        self._instance = uuid.uuid4().hex
        self._member = member or self._instance
        self._partitions = partitions
        self._joined = False
        # Partition index -> the generation in which this member got it, at the last ``refresh``.
        self._owned: dict[int, int] = {}

    def stay(self, connection: sqlite3.Connection, now_ns: int) -> None:
        """Join or send a heartbeat; remove members whose session has expired.

        Raises:
            FencedError: another instance has joined under this name.
        """
        present = self._present(connection)
        if self._joined and present not in {None, self._instance}:
            raise self._replaced()
        connection.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?)", (self.group, self._member, self._instance, now_ns))
        # A time in the future was written before a reboot of the machine.
        oldest_ns, newest_ns = now_ns - int(SESSION_S * NS_PER_S), now_ns + NS_PER_S
        gone = "DELETE FROM members WHERE grp = ? AND NOT seen_ns BETWEEN ? AND ?"
        expired = connection.execute(gone, (self.group, oldest_ns, newest_ns)).rowcount
        if present is None or expired:
            self._rebalance(connection)
        self._joined = True

    def refresh(self, connection: sqlite3.Connection) -> tuple[list[int], list[int]]:
        """Return the partition indices that were lost and gained since the last call.

        Raises:
            FencedError: another instance has joined under this name.
        """
        present = self._present(connection)
        if present not in {None, self._instance}:
            raise self._replaced()
        owned = {} if present is None else self._stored(connection)
        before, after = set(self._owned.items()), set(owned.items())
        # If others have removed this member, its next ``stay`` joins again.
        self._joined, self._owned = present is not None, owned
        return [number for number, _ in before - after], [number for number, _ in after - before]

    def is_in(self) -> bool:
        """Return whether this instance was a member at the last ``stay`` or ``refresh``."""
        return self._joined

    def record(self, connection: sqlite3.Connection, offsets: Mapping[TopicPartition, int], now_ns: int) -> None:
        """Write the group's offsets. Raises ``FencedError`` unless all of the partitions are still owned."""
        if self._present(connection) != self._instance:
            raise FencedError(f"{self._member} is no longer in group {self.group}")
        owned = self._stored(connection)
        for place in offsets:
            if place.partition not in owned or owned[place.partition] != self._owned.get(place.partition):
                raise FencedError(f"{self._member} of group {self.group} no longer owns partition {place.partition} of {place.topic}")
        rows = ((self.group, *place, offset) for place, offset in offsets.items())
        connection.executemany("INSERT OR REPLACE INTO offsets VALUES (?, ?, ?, ?)", rows)
        connection.execute("UPDATE members SET seen_ns = ? WHERE grp = ? AND member = ?", (now_ns, self.group, self._member))

    def leave(self, connection: sqlite3.Connection) -> None:
        """Leave the group; its partitions go to the other members."""
        mine = "DELETE FROM members WHERE grp = ? AND member = ? AND instance = ?"
        if connection.execute(mine, (self.group, self._member, self._instance)).rowcount:
            self._rebalance(connection)

    def _replaced(self) -> FencedError:
        return FencedError(f"another consumer has joined group {self.group} as {self._member}")

    def _present(self, connection: sqlite3.Connection) -> str | None:
        row = connection.execute("SELECT instance FROM members WHERE grp = ? AND member = ?", (self.group, self._member)).fetchone()
        return None if row is None else row[0]

    def _stored(self, connection: sqlite3.Connection) -> dict[int, int]:
        rows = connection.execute("SELECT number, since FROM owners WHERE grp = ? AND member = ?", (self.group, self._member))
        return dict(rows.fetchall())

    def _rebalance(self, connection: sqlite3.Connection) -> None:
        group = (self.group,)
        connection.execute("INSERT INTO groups VALUES (?, 1) ON CONFLICT (grp) DO UPDATE SET generation = generation + 1", group)
        generation = connection.execute("SELECT generation FROM groups WHERE grp = ?", group).fetchone()[0]
        members = [row[0] for row in connection.execute("SELECT member FROM members WHERE grp = ?", group)]
        owners = dict(connection.execute("SELECT number, member FROM owners WHERE grp = ?", group).fetchall())
        shares = share_out(owners, members, self._partitions) if members else {}
        gone: Iterable[int] = owners.keys() - shares.keys()
        connection.executemany("DELETE FROM owners WHERE grp = ? AND number = ?", ((self.group, number) for number in gone))
        changed = ((self.group, number, member, generation) for number, member in shares.items() if owners.get(number) != member)
        connection.executemany("INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?)", changed)
