"""The receiver of high-frequency telemetry: real sockets, many senders, changing names, and state saved for a restart."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ipfix_bytes import message, port_template, record

from weft.collectors.base import Batch
from weft.collectors.hft.receiver import Hft, HftConfig
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import ConfigError, ServiceError

from .hft_rig import PORTS, STEP, joined, samples, telemetry, walk

LIMIT_S = 20.0


def until(live: Hft, done: Callable[[list[Batch]], bool]) -> list[Batch]:
    """Drain until ``done`` is true; fail beyond the limit."""
    batches: list[Batch] = []
    end = time.monotonic() + LIMIT_S
    while not done(batches):
        assert time.monotonic() < end, "nothing came in time"
        batches += live.drain()
        time.sleep(0.005)
    return batches


def now_grid() -> int:
    """Return the current time, rounded down to the poll interval: records ahead of the collector's clock are refused."""
    return time.time_ns() // STEP * STEP


@pytest.fixture
def sessions(tmp_path):
    """Names of two ports in a file."""
    path = tmp_path / "names.toml"
    path.write_text(PORTS)
    return {"*": str(path)}


def started(**settings) -> Hft:
    """Return a collector that listens on free ports; its interval is configured, since a drain may return a single record."""
    live = Hft(HftConfig(enabled=True, port=0, **{"interval_us": STEP / 1000} | settings), SystemClock())
    live.start()
    return live


def test_live_over_udp(sessions):
    """Datagrams become samples under the names of device and port; every message, record and counter is counted."""
    live = started(sessions=sessions, devices={"127.0.0.1": "leaf7"}, tcp=False)
    try:
        n, values, start = 200, walk(200, 4), now_grid()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for one in [message([(2, port_template(256, 2))])] + [
                message([(256, record(start + k * STEP, row))], sequence=k) for k, row in enumerate(values.tolist())
            ]:
                out.sendto(one, ("127.0.0.1", live.udp_port))
        batches = until(
            live,
            lambda _: (
                live.counters()["weft_collectors_hft_records_total"] == n
                if "weft_collectors_hft_records_total" in live.counters()
                else False
            ),
        )
    finally:
        live.stop()
    batches += live.drain()
    assert list(samples(batches, device="leaf7", port="Ethernet4", signal="rx_bytes").values()) == np.diff(values[:, 2]).tolist()
    counters = live.counters()
    assert [counters[f"weft_collectors_hft_{what}_total"] for what in ("messages", "records", "counters", "samples")] == [
        201,
        200,
        800,
        4 * 199,
    ]


def test_live_over_tcp_in_pieces_beside_a_hostile_connection(sessions):
    """A stream in odd pieces gives all samples; only a connection that sends something else is closed."""
    live = started(sessions=sessions, udp=False)
    try:
        n, values, start = 200, walk(200, 2), now_grid()
        content = message([(2, port_template(256, 1))]) + telemetry(values, start + np.arange(n) * STEP)
        with socket.create_connection(("127.0.0.1", live.tcp_port)) as good, socket.create_connection(("127.0.0.1", live.tcp_port)) as bad:
            bad.settimeout(LIMIT_S)
            bad.sendall(b"GET / HTTP/1.1\r\n\r\n")
            batches: list[Batch] = []
            for at in range(0, len(content), 777):
                good.sendall(content[at : at + 777])
                batches += live.drain()
            batches += until(live, lambda _: live.counters().get("weft_collectors_hft_records_total") == n)
            until(live, lambda _: live.counters().get("weft_collectors_hft_tcp_cut_not_ipfix") == 1)
            assert bad.recv(1) == b""
            assert live.counters()["weft_collectors_hft_tcp_connections"] == 1
    finally:
        live.stop()
    assert list(samples(batches, port="Ethernet0", signal="rx_bytes").values()) == np.diff(values[:, 0]).tolist()


def is_closed_at_once(live: Hft) -> bool:
    """Return whether a new connection is closed by the other side without a byte."""
    with socket.create_connection(("127.0.0.1", live.tcp_port)) as one:
        one.settimeout(LIMIT_S)
        return one.recv(1) == b""


def test_connections_are_limited():
    """A connection beyond the limit, or from an address that is not allowed, is closed at once and counted."""
    live = started(udp=False, connections_max=1)
    try:
        with socket.create_connection(("127.0.0.1", live.tcp_port)):
            until(live, lambda _: live.counters().get("weft_collectors_hft_tcp_accepted") == 1)
            assert is_closed_at_once(live)
    finally:
        live.stop()
    assert live.counters()["weft_collectors_hft_tcp_refused_full"] == 1
    live = started(udp=False, allow=("192.0.2.0/24",))
    try:
        assert is_closed_at_once(live)
    finally:
        live.stop()
    assert live.counters()["weft_collectors_hft_tcp_refused"] == 1


def test_a_sender_faster_than_its_reader_waits():
    """A connection whose bytes are not taken is paused, and loses nothing."""
    live = started(udp=False, connection_bytes_max=100_000)
    try:
        n, start = 20_000, now_grid() - 10**10
        content = message([(2, port_template(256, 1))]) + telemetry(walk(n, 2), start + np.arange(n) * STEP)
        with socket.create_connection(("127.0.0.1", live.tcp_port)) as out:
            out.settimeout(LIMIT_S)
            out.setblocking(False)
            sent, batches, end = 0, [], time.monotonic() + LIMIT_S
            while sent < len(content):
                assert time.monotonic() < end
                try:
                    sent += out.send(content[sent : sent + 65536])
                except BlockingIOError:
                    batches += live.drain()
            batches += until(live, lambda _: live.counters().get("weft_collectors_hft_records_total") == n)
    finally:
        live.stop()
    assert len(samples(batches, signal="rx_bytes")) == n - 1


def test_templates_outlive_a_restart(tmp_path):
    """Learnt templates are saved in a file and loaded, so that data after a restart is decoded at once."""
    state = str(tmp_path / "state")
    for life, content in enumerate([message([(2, port_template(256, 1))]), message([(256, record(now_grid(), [1, 2]))])]):
        live = started(state=state, tcp=False)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.sendto(content, ("127.0.0.1", live.udp_port))
            until(live, lambda _, live=live: live.counters().get("weft_collectors_hft_messages_total") == 1)
            if life == 0:
                until(live, lambda _: (tmp_path / "state" / "hft-templates.json").is_file())
        finally:
            live.stop()
    assert live.counters()["weft_collectors_hft_counters_total"] == 2


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"templates": {"10.0.0.1": [[1, 256, "zz"]]}}', '{"templates": {"10.0.0.1": [[1, 256, "8001"]]}}', '{"templates": []}'],
)
def test_a_kept_file_that_is_broken_only_costs_time(tmp_path, content):
    """A file of templates that cannot be read is ignored, counted, and replaced later."""
    (tmp_path / "hft-templates.json").write_text(content)
    live = started(state=str(tmp_path), tcp=False)
    live.stop()
    assert live.drain() == []


def test_new_names_are_taken_up(tmp_path, sessions):
    """When the file of sessions changes, later rows have the new names."""
    live = started(sessions=sessions, tcp=False)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:

            def send(k: int) -> None:
                data = b"".join(record(start + (100 * k + j) * STEP, [j, j]) for j in range(10))
                out.sendto(message([(2, port_template(256, 1)), (256, data)]), ("127.0.0.1", live.udp_port))

            start = now_grid()
            send(0)
            until(live, lambda batches: any(batch.family == "burst_sample" for batch in batches))
            Path(sessions["*"]).write_text(PORTS.replace("Ethernet0", "Ethernet100"))
            count = 1
            batches: list[Batch] = []
            end = time.monotonic() + LIMIT_S
            while "Ethernet100" not in joined(batches, "burst_sample")["port"]:
                assert time.monotonic() < end
                send(count)
                count += 1
                batches += live.drain()
                time.sleep(0.05)
    finally:
        live.stop()


def test_a_port_in_use_says_so():
    """A port in use is an error with a hint, for UDP and for TCP."""
    live = started()
    try:
        for which, port in (("udp", live.udp_port), ("tcp", live.tcp_port)):
            other = Hft(HftConfig(port=port, udp=which == "udp", tcp=which == "tcp"), SystemClock())
            with pytest.raises(ServiceError, match=str(port)):
                other.start()
            other.stop()
    finally:
        live.stop()


@pytest.mark.parametrize("wrong", [{"interval_us": -1.0}, {"interval_us": 2e6}, {"counters_interval_ms": 0}, {"exporters_max": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    """A setting out of range is an error that names it."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HftConfig(**wrong)
