"""The contract of ``Bus`` over both implementations: groups, whose members join, leave, hang and are killed."""

import signal
import threading
import time
from collections import defaultdict

import pytest
from bus_rig import LIMIT_S, PRELUDE, Children, Rig, indices, line, publish, read, until
from hypothesis import given
from hypothesis import strategies as st

from weft.pipeline.bus import Consumer, Message, TopicPartition
from weft.pipeline.bus.membership import SESSION_S, share_out
from weft.pipeline.errors import FencedError


def test_a_group_starts_where_it_was(rig: Rig) -> None:
    """A member starts at the group's committed offsets, and where ``on_assign`` seeks if it does."""
    topic = rig.name("start")
    producer = rig.producer()
    publish(producer, topic, [("k", b"%d" % i) for i in range(6)])
    first = rig.consumer("start", group="group", member="one")
    messages = read(first, 6)
    place = TopicPartition(topic, messages[0].partition)
    with producer.transaction() as transaction:
        transaction.commit(first, {place: messages[2].offset})
    first.close()
    second = rig.consumer("start", group="group", member="one")
    assert [m.value for m in read(second, 4)] == [b"2", b"3", b"4", b"5"]
    second.close()
    third: Consumer = rig.consumer("start", group="group", member="one", on_assign=lambda _: third.seek(place, messages[5].offset))
    assert [m.value for m in read(third, 1)] == [b"5"]
    third.close()
    other = rig.consumer("start", group="other")
    assert len(read(other, 6)) == 6


def test_members_share_partitions_by_index(rig: Rig) -> None:
    """Members share all partitions, none twice, evenly, the same index of every topic; leaving gives them back."""
    events: dict[str, set[TopicPartition]] = defaultdict(set)

    def member(name: str) -> Consumer:
        options = {"on_assign": events[name].update, "on_revoke": events[name].difference_update}
        return rig.consumer("x", "y", group="group", member=name, **options)

    def balanced(*consumers: Consumer) -> bool:
        parts = [indices(consumer) for consumer in consumers]
        return set().union(*parts) == set(range(8)) and sum(map(len, parts)) == 8 and max(map(len, parts)) - min(map(len, parts)) <= 1

    one = member("one")
    until(lambda: balanced(one), one)
    two = member("two")
    until(lambda: balanced(one, two), one, two)
    before = indices(two)
    three = member("three")
    until(lambda: balanced(one, two, three), one, two, three)
    assert indices(two) <= before, "members keep what they have as far as possible"
    for name, consumer in (("one", one), ("two", two), ("three", three)):
        assert events[name] == consumer.assignment()
        assert consumer.assignment() == {TopicPartition(rig.name(t), i) for t in ("x", "y") for i in indices(consumer)}
    one.close()
    until(lambda: balanced(two, three), two, three)


def test_a_foreign_partition_cannot_be_committed(rig: Rig) -> None:
    """A commit for partitions of another member fails with ``FencedError`` and nothing of its transaction happens."""
    producer = rig.producer()
    one = rig.consumer("x", group="group", member="one")
    until(lambda: len(indices(one)) == 8, one)
    two = rig.consumer("x", group="group", member="two")
    until(lambda: len(indices(one)) == 4 and len(indices(two)) == 4, one, two)
    foreign = next(iter(two.assignment()))
    with pytest.raises(FencedError), producer.transaction() as transaction:
        transaction.publish(rig.name("out"), "k", b"never", {})
        transaction.commit(one, {foreign: 7})
    assert rig.bus.committed(rig.name("group"), [rig.name("x")])[foreign] == 0
    with producer.transaction() as transaction:
        transaction.publish(rig.name("out"), "k", b"1", {})
        transaction.commit(two, {foreign: 7})
    assert [m.value for m in read(rig.consumer("out"), 1)] == [b"1"]
    assert rig.bus.committed(rig.name("group"), [rig.name("x")])[foreign] == 7


def test_a_member_gets_its_partitions_back(rig: Rig) -> None:
    """A member that restarts under its name gets its partitions at once, no other loses any, and its former instance is fenced."""
    producer, revoked = rig.producer(), []
    one = rig.consumer("x", group="group", member="one")
    until(lambda: len(indices(one)) == 8, one)
    two = rig.consumer("x", group="group", member="two", on_revoke=revoked.append)
    until(lambda: len(indices(one)) == 4 and len(indices(two)) == 4, one, two)
    mine = one.assignment()
    again = rig.consumer("x", group="group", member="one")
    until(lambda: bool(again.assignment()), again, two, limit_s=SESSION_S / 2)
    assert again.assignment() == mine
    assert not revoked
    place = next(iter(mine))
    with pytest.raises(FencedError), producer.transaction() as transaction:
        transaction.commit(one, {place: 1})
    with producer.transaction() as transaction:
        transaction.commit(again, {place: 2})
    assert rig.bus.committed(rig.name("group"), [rig.name("x")])[place] == 2


MEMBER = """
consumer = bus.consumer([f"x.{suffix}"], group=f"group.{suffix}", member="child")
producer = bus.producer(f"child.{suffix}")
while not consumer.assignment():
    consumer.poll(0.05)
place = min(consumer.assignment())
say(place.partition)
sys.stdin.readline()
try:
    with producer.transaction() as transaction:
        transaction.publish(f"out.{suffix}", "k", b"zombie", {})
        transaction.commit(consumer, {place: 99})
    say("committed")
except FencedError:
    say("fenced")
end = time.monotonic() + 30
while len(consumer.assignment()) != 4 and time.monotonic() < end:
    consumer.poll(0.05)
say(len(consumer.assignment()))
while True:
    consumer.poll(0.05)
"""


def test_a_zombie_is_fenced_and_comes_back(rig: Rig, children: Children) -> None:
    """A member that hangs past the session loses its partitions; when it resumes, its commit is fenced and it joins again."""
    child = children(PRELUDE + MEMBER, *rig.arguments())
    partition = int(line(child))
    mine = rig.consumer("x", group="group", member="parent")
    child.send_signal(signal.SIGSTOP)
    until(lambda: len(indices(mine)) == 8, mine)
    place = TopicPartition(rig.name("x"), partition)
    with rig.producer().transaction() as transaction:
        transaction.commit(mine, {place: 5})
    child.send_signal(signal.SIGCONT)
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert line(child) == "fenced"
    # Both have to poll until both have their share.
    lines: list[str] = []
    listener = threading.Thread(target=lambda: lines.append(line(child)))
    listener.start()
    until(lambda: bool(lines) and len(indices(mine)) == 4, mine)
    listener.join()
    assert lines == ["4"]
    assert len(indices(mine)) == 4
    assert rig.bus.committed(rig.name("group"), [rig.name("x")])[place] == 5
    assert list(rig.consumer("out").poll(0.3)) == []


WORKER = """
consumer = bus.consumer([f"in.{suffix}"], group=f"group.{suffix}", member=sys.argv[5])
producer = bus.producer(sys.argv[5] + "." + suffix)
say("ready")
while True:
    messages = consumer.poll(0.05, max_bytes=2000)
    if not messages:
        continue
    try:
        with producer.transaction() as transaction:
            for message in messages:
                transaction.publish(f"out.{suffix}", message.key, message.value, {})
            transaction.commit(consumer, {TopicPartition(m.topic, m.partition): m.offset + 1 for m in messages})
    except FencedError:
        committed = bus.committed(f"group.{suffix}", [f"in.{suffix}"])
        for place in consumer.assignment():
            consumer.seek(place, committed[place])
"""


def test_everything_once_while_workers_come_die_and_go(rig: Rig, children: Children) -> None:
    """Workers that read, publish and commit in one transaction handle each message exactly once while they are killed and joined."""
    producer, reader = rig.producer("source"), rig.consumer("out")
    rig.consumer("in")
    got: list[Message] = []
    workers = {name: children(PRELUDE + WORKER, *rig.arguments(), name) for name in ("one", "two")}
    total = 0
    for round_ in range(6):
        publish(producer, rig.name("in"), [(f"k{i % 40}", b"%d" % (total + i)) for i in range(400)])
        total += 400
        got.extend(reader.poll(0.5))
        if round_ == 2:
            workers["one"].kill()
            workers["three"] = children(PRELUDE + WORKER, *rig.arguments(), "three")
        if round_ == 4:
            workers["one"] = children(PRELUDE + WORKER, *rig.arguments(), "one")
            workers["two"].kill()
    deadline = time.monotonic() + LIMIT_S
    while len(got) < total:
        got.extend(reader.poll(0.2))
        assert time.monotonic() < deadline, f"{len(got)} of {total}"
    got.extend(reader.poll(1.0))
    assert sorted(int(m.value) for m in got) == list(range(total))
    by_key: dict[str, list[int]] = defaultdict(list)
    for message in got:
        by_key[message.key].append(int(message.value))
    assert all(values == sorted(values) for values in by_key.values()), "one key keeps its order across members"


@given(
    owners=st.dictionaries(st.integers(0, 15), st.sampled_from("abcdefg")),
    members=st.sets(st.sampled_from("abcdefg"), min_size=1),
    partitions=st.integers(1, 16),
)
def test_shares_are_even_and_move_little(owners: dict[int, str], members: set[str], partitions: int) -> None:
    """Every assignment gives each partition to one member, evenly, and moves no more than that requires."""
    shares = share_out(owners, sorted(members), partitions)
    counts = sorted(sum(to == member for to in shares.values()) for member in members)
    assert set(shares) == set(range(partitions))
    assert counts[-1] - counts[0] <= 1
    owned = {m: sum(owners.get(n) == m for n in range(partitions)) for m in members}
    base, extra = divmod(partitions, len(members))
    # The most that can stay: each keeps up to the base, and as many as there are extra shares keep one more.
    most = sum(min(count, base) for count in owned.values()) + min(extra, sum(count > base for count in owned.values()))
    assert sum(owners.get(n) == m for n, m in shares.items()) == most
