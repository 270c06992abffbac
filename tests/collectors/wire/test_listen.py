"""The UDP listener: every datagram that is sent is taken, refused or counted as lost."""

import errno
import os
import socket
import threading

import numpy as np
import pytest

from weft.collectors.wire import arrivals, listen
from weft.collectors.wire.listen import LOOPBACK, Sources, UdpListener
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import ServiceError

pytestmark = pytest.mark.alone

CLOCK = SystemClock()
PATIENCE_S = 10.0


def listener(**more) -> UdpListener:
    """Return a listener on a free port of the loopback interface."""
    made = {"address": "127.0.0.1", "port": 0, "allow": LOOPBACK, "clock": CLOCK, "name": "test", "buffer_bytes_max": 1 << 20} | more
    address, port, allow, clock = (made.pop(key) for key in ("address", "port", "allow", "clock"))
    return UdpListener(address, port, allow, clock, **made)


def sender(family: int = socket.AF_INET) -> socket.socket:
    """Return a socket to send with."""
    return socket.socket(family, socket.SOCK_DGRAM)


def gather(one: UdpListener, number: int) -> list[tuple[bytes, int, str]]:
    """Take until ``number`` datagrams were received; return content, time and sender of each."""
    found: list[tuple[bytes, int, str]] = []
    deadline = CLOCK.monotonic_ns() + int(PATIENCE_S * 1e9)
    while len(found) < number:
        assert CLOCK.monotonic_ns() < deadline, f"{len(found)} of {number} came"
        found += content(one.take())
        CLOCK.wait(0.005)
    return found


def content(taken: listen.ReceivedDatagrams) -> list[tuple[bytes, int, str]]:
    """Return content, time and sender of each datagram."""
    rows = zip(taken.offsets.tolist(), taken.lengths.tolist(), taken.recv_ts.tolist(), taken.sender.tolist(), strict=True)
    return [(taken.buffer[at : at + size].tobytes(), ts, taken.senders[who]) for at, size, ts, who in rows]


@pytest.fixture(params=["recvmmsg", "recvmsg"])
def calls(request, monkeypatch) -> str:
    """Run a test with the bulk call and without it."""
    if request.param == "recvmsg":
        monkeypatch.setattr(listen, "_RECVMMSG", None)
    return request.param


def test_datagrams_come_whole_in_order_and_stamped(calls):
    """Datagrams of all sizes, from empty to largest, are received in order, with their times of arrival and senders."""
    one = listener()
    one.start()
    sizes = [0, 1, 1400, 65_507, 7, *range(100, 400)]
    sent = [os.urandom(size) for size in sizes]
    before = CLOCK.now_ns()
    with sender() as out:
        for raw in sent:
            out.sendto(raw, ("127.0.0.1", one.port))
    found = gather(one, len(sent))
    after = CLOCK.now_ns()
    one.stop()
    assert [raw for raw, _, _ in found] == sent
    assert {who for _, _, who in found} == {"127.0.0.1"}
    times = [ts for _, ts, _ in found]
    assert times == sorted(times)
    assert before <= times[0] and times[-1] <= after
    assert one.lost() == {}
    assert one.counters()["bytes_total"] == sum(sizes)


def test_senders_that_are_not_allowed_are_refused_and_counted(calls):
    """Datagrams from outside the allow-list are dropped and counted; several senders are distinguished."""
    one = listener(address="127.0.0.1", allow=("127.0.0.2/32", "127.1.0.0/16"))
    one.start()
    for source in ("127.0.0.1", "127.0.0.2", "127.1.2.3", "127.2.0.1", "127.0.0.2"):
        with sender() as out:
            out.bind((source, 0))
            out.sendto(source.encode(), ("127.0.0.1", one.port))
    found = gather(one, 3)
    one.stop()
    assert [(raw.decode(), who) for raw, _, who in found] == [(who, who) for who in ("127.0.0.2", "127.1.2.3", "127.0.0.2")]
    assert one.counters()["refused_total"] == 2
    assert one.take().lengths.tolist() == []


def test_ipv6_and_ipv4_on_one_socket(calls):
    """A socket on :: receives both protocols and reports IPv4 senders as IPv4; an IPv6 network allows no IPv4 sender."""
    one = listener(address="::", allow=("::1/128", "127.0.0.1/32"))
    other = listener(address="::", allow=("::/0",))
    one.start()
    other.start()
    for port in (one.port, other.port):
        with sender() as out:
            out.sendto(b"four", ("127.0.0.1", port))
        with sender(socket.AF_INET6) as out:
            out.sendto(b"six", ("::1", port))
    assert {(raw, who) for raw, _, who in gather(one, 2)} == {(b"four", "127.0.0.1"), (b"six", "::1")}
    assert [raw for raw, _, _ in gather(other, 1)] == [b"six"]
    one.stop()
    other.stop()
    assert other.counters()["refused_total"] == 1


def test_too_long_is_lost_not_shortened(calls):
    """A datagram above the expected size is dropped and counted as truncated."""
    one = listener(datagram_bytes_max=1000)
    one.start()
    with sender() as out:
        for size in (1000, 1001, 4000, 10):
            out.sendto(bytes(size), ("127.0.0.1", one.port))
    found = gather(one, 2)
    one.stop()
    assert [len(raw) for raw, _, _ in found] == [1000, 10]
    assert one.lost() == {"truncated": 2}
    assert one.lost() == {}


def test_what_nobody_takes_is_bounded_and_counted(calls):
    """Without ``take``, memory stays bounded, the oldest datagrams remain, and the others are counted."""
    one = listener(buffer_bytes_max=100_000)
    one.start()
    with sender() as out:
        for number in range(200):
            out.sendto(number.to_bytes(2, "big") * 500, ("127.0.0.1", one.port))
    one.stop()
    found, lost = content(one.take()), one.lost()
    assert [raw[:2] for raw, _, _ in found] == [number.to_bytes(2, "big") for number in range(50)]
    assert len(found) + sum(lost.values()) == 200
    assert set(lost) <= {"buffer_full", "kernel_drop"}


def test_many_short_ones_are_bounded_too(calls):
    """The number of empty datagrams in memory is bounded, too."""
    one = listener(buffer_bytes_max=256 * 100)
    one.start()
    with sender() as out:
        for _ in range(300):
            out.sendto(b"", ("127.0.0.1", one.port))
    one.stop()
    taken = len(one.take().lengths)
    assert taken <= 101
    assert taken + sum(one.lost().values()) == 300


@pytest.mark.parametrize("receive_buffer_bytes", [4096, 8 * 1024 * 1024])
def test_every_datagram_of_a_flood_is_accounted_for(receive_buffer_bytes: int):
    """Three senders at full speed against small and large buffers: sent = taken + lost, exactly."""
    one = listener(buffer_bytes_max=1 << 20, receive_buffer_bytes=receive_buffer_bytes)
    one.start()
    each, done = 20_000, threading.Event()

    def flood() -> None:
        with sender() as out:
            out.connect(("127.0.0.1", one.port))
            for _ in range(each):
                out.send(b"x" * 200)

    threads = [threading.Thread(target=flood) for _ in range(3)]
    taken, lost = 0, 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += len(one.take().lengths)
        lost += sum(one.lost().values())
        CLOCK.wait(0.002, done)
    one.stop()
    taken += len(one.take().lengths)
    lost += sum(one.lost().values())
    assert taken + lost == 3 * each
    assert taken > 0
    assert one.lost() == {}


def test_drops_at_the_very_end_are_admitted():
    """Drops after the last received datagram are counted, at each start of a listener."""
    one = listener(receive_buffer_bytes=2048)
    for _ in range(2):
        one.start()
        with sender() as out:
            for _ in range(5000):
                out.sendto(bytes(1000), ("127.0.0.1", one.port))
        one.stop()
        assert len(one.take().lengths) + sum(one.lost().values()) == 5000


def test_a_listener_can_be_stopped_twice_and_started_again():
    """A second stop does nothing; before the start and after the stop ``take`` returns nothing."""
    one = listener()
    assert one.take().lengths.size == 0
    one.stop()
    one.start()
    port = one.port
    one.stop()
    one.stop()
    assert one.take().lengths.size == 0
    again = listener(port=port)
    again.start()
    assert again.port == port
    again.stop()


def test_a_port_in_use_is_said_with_the_mend():
    """A port in use, an address of another machine and an invalid address give errors of one sentence."""
    with sender() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            ServiceError, match=rf"127.0.0.1:{port} is in use; end the program that has it or choose another collect.test.port"
        ):
            listener(port=port).start()
    with pytest.raises(ServiceError, match=r"192.0.2.1 is no address of this machine; write one of its own in collect.test.address"):
        listener(address="192.0.2.1").start()


def test_a_port_that_is_not_allowed_is_said_with_the_mend():
    """A refused low port gives an error that suggests another one."""
    text = str(listener(port=53)._refusal(OSError(errno.EACCES, "no")))
    assert text == "test: this user may not listen on 127.0.0.1:53; choose a collect.test.port of 1024 or above"


@pytest.mark.parametrize("bad", ["10.0.0.0/33", "leaf-1", ""])
def test_a_wrong_network_is_refused_at_once(bad: str):
    """An invalid network is a configuration error, before anything listens."""
    with pytest.raises(ValueError, match="is no network such as"):
        Sources((bad,))
    with pytest.raises(ValueError, match="at most 1024"):
        Sources(("10.0.0.0/8",) * 1025)


def test_drop_counts_survive_their_32_bits():
    """A total continues over the wrap of the 32-bit drop counter, and an older value does not decrease it."""
    assert arrivals.extended(np.int64(0xFFFFFFF0), np.int64(0x10)) == 0x100000010
    assert arrivals.extended(np.int64(0x100000010), np.int64(0xFFFFFFFF)) == 0x100000010
    assert arrivals.extended(np.int64(5), np.int64(9)) == 9
