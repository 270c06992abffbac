"""A whole switch at 100 us over a real socket: the collect service publishes exactly what the switch counted, completely."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from weft.lab.switch.hft import Layout
from weft.lab.switch.serve import Lab, LabConfig
from weft.lab.switch.wire import free_port
from weft.pipeline.bus import Bus, BusConfig, open_bus
from weft.pipeline.clock import NS_PER_S, SystemClock
from weft.pipeline.codec import decode
from weft.pipeline.tables.families import FAMILIES

LIMIT_S, SECONDS, PORTS, POLL_NS = 90.0, 3.0, 64, 100_000
STATS = (
    *("IF_IN_OCTETS", "IF_OUT_OCTETS", "OUT_CURR_OCCUPANCY_BYTES", "IF_OUT_DISCARDS", "ECN_MARKED_PACKETS"),
    *(f"PFC_{n}_{way}_PKTS" for n in range(5) for way in ("RX", "TX")),
    *(f"IF_IN_FEC_CODEWORD_ERRORS_S{n}" for n in range(15)),
)


class _Clock(SystemClock):
    """The time of this machine, or a time at which it is held."""

    held_ns = 0

    def now_ns(self) -> int:
        return self.held_ns or super().now_ns()


def _read(bus: Bus, family: str) -> pl.DataFrame:
    """Return all rows of a family that are on the bus."""
    table = FAMILIES[family]
    consumer, frames = bus.consumer([table.topic]), [table.empty()]
    while messages := consumer.poll(2.0):
        frames += [decode(message.value, table) for message in messages]
    consumer.close()
    return pl.concat(frames)


def _send(weft: Any, bus: Bus, folder: Path) -> Lab:
    """Let the lab send to a collect service until the time is over; end the service; return the lab."""
    clock = _Clock()
    config = LabConfig(("hft",), {"hft": free_port()}, None, PORTS, 1, POLL_NS, STATS, (), Layout(records=4))
    lab = Lab(config, clock, folder / "lab")
    lab.start()
    file = folder / "weft.toml"
    file.write_text(f"{lab.toml()}\ninterval_us = 100\n[collect.host]\nenabled = false\n")
    lab.stop()
    service = weft.start("collect", "--config", file, "--data", folder)
    published, deadline = bus.consumer([FAMILIES["self_metric"].topic]), time.monotonic() + LIMIT_S
    while not published.poll(0.1):
        assert service.poll() is None and time.monotonic() < deadline
    published.close()
    lab.start()
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        lab.step()
    _close(lab, clock)
    lab.stop()
    service.terminate()
    _, err = service.communicate(timeout=LIMIT_S)
    assert service.returncode == 0 and "Traceback" not in err, err
    return lab


def _close(lab: Lab, clock: _Clock) -> None:
    """Send until all of a step finds room at the receiver: whatever was lost before then shows as a hole.

    The clock is held, so that no more is due than two messages, however long the receiver takes for what it has.
    """
    port, deadline = int(lab.addresses()["hft"].rpartition(":")[2]), time.monotonic() + LIMIT_S
    clock.held_ns = clock.now_ns()
    while True:
        waiting, dropped = _socket(port)
        if not waiting:
            clock.held_ns += 8 * POLL_NS
            lab.step()
            if _socket(port)[1] == dropped:
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _socket(port: int) -> tuple[int, int]:
    """Return the bytes that the kernel holds for the socket on a port of UDP over IPv4, and how many datagrams it has dropped."""
    lines = (line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:])
    (found,) = (line for line in lines if int(line[1].rpartition(":")[2], 16) == port)
    return int(found[4].rpartition(":")[2], 16), int(found[-1])


@pytest.mark.alone
def test_thirty_statistics_of_sixty_four_ports(weft: Any, tmp_path: Path) -> None:
    """Every poll of the switch is a sample, with exactly the bytes that it counted, or is in a recorded gap."""
    assert len(STATS) == 30
    bus = open_bus(BusConfig(), tmp_path)
    lab = _send(weft, bus, tmp_path)
    rows, gaps = _read(bus, "burst_sample"), _read(bus, "gap").filter(what="samples")
    bus.close()
    sent, skipped = lab.polls
    assert sent > 0
    signals = {"rx_bytes": -1, "tx_bytes": -1, "queue_bytes": 0}
    assert set(rows["signal"]) == set(signals) and set(rows["port"]) == set(lab.script.switch.ports)
    expected = PORTS * sum(sent + skipped + less for less in signals.values())
    assert int(rows["values"].list.len().sum()) + int(gaps["missed"].sum()) == expected
    _assert_is_the_switch_s(lab, rows)


def _assert_is_the_switch_s(lab: Lab, rows: pl.DataFrame) -> None:
    """Each sample equals the switch's closed form for its slot."""
    assert set(rows["interval_ns"]) == {POLL_NS}
    index = {name: k for k, name in enumerate(lab.script.switch.ports)}
    begin, runs = int(rows["ts"].min()), rows.with_columns(count=pl.col("values").list.len())  # type: ignore[arg-type]
    slots = int((runs["ts"] - begin + runs["count"].cast(pl.Int64) * POLL_NS).max()) // POLL_NS  # type: ignore[arg-type,operator]
    assert slots * POLL_NS < LIMIT_S * NS_PER_S
    state = lab.script.at(begin + np.arange(slots + 1) * POLL_NS)
    wanted = {
        "rx_bytes": np.diff(state.port("rx_bytes"), axis=0),
        "tx_bytes": np.diff(state.port("tx_bytes"), axis=0),
        "queue_bytes": state.port("out_occupancy_bytes"),
    }
    seen = {signal: np.zeros((slots + 1, PORTS), bool) for signal in wanted}
    for ts, port, signal, values in rows.select("ts", "port", "signal", "values").iter_rows():
        first, column = divmod(ts - begin, POLL_NS)[0], index[port]
        part = slice(first, first + len(values))
        assert values == wanted[signal][part, column].tolist(), (ts, port, signal)
        assert not seen[signal][part, column].any()
        seen[signal][part, column] = True
    assert all(wanted[signal].any() for signal in wanted)
