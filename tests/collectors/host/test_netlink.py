"""Interface counters: the kernel's own numbers, however many replies are decoded at once, whole or not."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.collectors.host.netlink import COUNTERS, NetlinkReader, ProcReader, open_reader

SYS = Path("/sys/class/net")
NAMES = {"rx_discards": "rx_dropped", "tx_discards": "tx_dropped"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="rtnetlink is Linux's")


def statistics(name: str) -> list[int]:
    return [int((SYS / name / "statistics" / NAMES.get(counter, counter)).read_text()) for counter in COUNTERS]


@pytest.mark.parametrize("kind", [NetlinkReader, ProcReader])
def test_counters_are_those_of_sysfs(kind):
    """Each value lies between those of sysfs before and after it, for every counter of every interface."""
    reader = kind()
    reader.open()
    names = reader.names()
    before = {name: statistics(name) for name in names.values()}
    links = reader.decode([reader.read() for _ in range(3)])
    after = {name: statistics(name) for name in names.values()}
    reader.close()
    reader.close()
    assert {names[link.key] for link in links} == set(before)
    for link in links:
        assert link.at.tolist() == [0, 1, 2]
        for row in link.counters.tolist():
            assert all(low <= value <= high for low, value, high in zip(before[names[link.key]], row, after[names[link.key]], strict=True))


def test_the_best_reader_is_chosen():
    """On any machine the reader that is returned is open and works."""
    reader = open_reader()
    assert reader.decode([reader.read()])
    reader.close()


def test_a_closed_reader_is_an_error_not_a_crash():
    """Reading before open is an OSError like any other failure."""
    with pytest.raises(OSError, match="not open"):
        NetlinkReader().read()


def message(key: int, counters: list[int]) -> bytes:
    """Return an RTM_NEWSTATS message as linux/if_link.h lays it out: 25 counters behind three headers."""
    data = struct.pack("=25Q", *counters, *range(25 - len(counters)))
    body = struct.pack("=BBHII", 0, 0, 0, key, 1) + struct.pack("=HH", 4 + len(data), 1) + data
    return struct.pack("=IHHII", 16 + len(body), 92, 2, 1, 0) + body


DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)

tables = st.lists(
    st.dictionaries(st.integers(1, 5), st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8), max_size=4), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(tables=tables)
def test_replies_of_any_mixture_decode_as_they_were_packed(tables):
    """Interfaces that come, go and change their order between replies keep their numbers and their places."""
    replies = [b"".join(message(key, counters) for key, counters in table.items()) + DONE for table in tables]
    found = {
        (int(at), link.key): row
        for link in NetlinkReader().decode(replies)
        for at, row in zip(link.at, link.counters.tolist(), strict=True)
    }
    assert found == {(at, key): counters for at, table in enumerate(tables) for key, counters in table.items()}


@settings(max_examples=150, deadline=None)
@given(reply=st.binary(max_size=600), cut=st.integers(0, 500))
def test_garbage_is_passed_over(reply, cut):
    """Random or cut replies give their whole entries, and never raise."""
    whole = message(3, list(range(8))) + message(4, list(range(8, 16))) + DONE
    links = {link.key: link.counters for link in NetlinkReader().decode([whole[:cut]])}
    assert (3 in links) == (cut >= 232)
    assert (4 in links) == (cut >= 464)
    if 3 in links:
        assert np.array_equal(links[3], np.arange(8, dtype=np.uint64)[None])
    NetlinkReader().decode([reply, whole, reply[::-1]])


def test_proc_net_dev_of_changing_interfaces(tmp_path):
    """The fallback finds each interface by its name, when lines come, go and widen."""
    head = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n"
    line = "{:>6}: {} 2 3 4 5 6 7 8 {} 10 11 12 13 14 15 16\n"
    path = tmp_path / "dev"
    reader, replies = ProcReader(str(path)), []
    for text in (line.format("lo", 1, 9), line.format("lo", 100, 900) + line.format("e1", 7, 8), line.format("e1", 70, 80)):
        path.write_text(head + text)
        reader.open()
        replies.append(reader.read())
    reader.close()
    links = {link.key: link for link in reader.decode([*replies, b"", b"x y z"])}
    used = [COUNTERS.index("rx_bytes"), COUNTERS.index("tx_bytes"), COUNTERS.index("tx_packets"), COUNTERS.index("rx_discards")]
    assert links["lo"].at.tolist() == [0, 1]
    assert links["lo"].counters[:, used].tolist() == [[1, 9, 10, 4], [100, 900, 10, 4]]
    assert links["e1"].at.tolist() == [1, 2]
    assert links["e1"].counters[:, used].tolist() == [[7, 8, 10, 4], [70, 80, 10, 4]]
