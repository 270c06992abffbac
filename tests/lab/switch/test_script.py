"""The scripted switch: counters conserve packets, never decrease, and agree with a queue simulated step by step."""

import numpy as np
import polars as pl
import pytest
from switch_rig import GROUP_COLUMNS, PORT_COLUMNS, QUEUE_COLUMNS, port_frame, queue_frame

from weft.lab.switch.script import LOSSLESS, PRIORITIES, START_NS, Script, Shape
from weft.lab.switch.sflow import Agent
from weft.pipeline.tables.families import FAMILIES

GAUGES = {"occupancy_bytes", "watermark_bytes", "delay_watermark_ns", "headroom_watermark_bytes", "oper_up"}
# Irregular instants over ten periods and some hours.
TIMES = START_NS + np.unique(np.concatenate([np.cumsum(np.arange(1, 800) * 7_919 % 2_500_000), np.arange(1, 100) * 97_000_000_003]))


@pytest.fixture(scope="module")
def script() -> Script:
    """Return a switch of sixteen ports."""
    return Script(Shape(ports=16))


def test_the_same_seed_gives_the_same_switch():
    """Two switches of one seed count the same and send the same bytes; another seed gives another switch."""
    ts = [START_NS + 12_345_678_901]
    one, two, other = (port_frame(s.switch, s.at(ts)) for s in (Script(Shape(seed=5)), Script(Shape(seed=5)), Script(Shape(seed=6))))
    assert one.equals(two)
    assert not one.equals(other)
    first, second = (list(Agent(Script(Shape(seed=5))).counters(ts[0])) for _ in range(2))
    assert first == second


def test_an_instant_does_not_depend_on_others(script):
    """The value at an instant is the same whether read alone or among many."""
    many = queue_frame(script.switch, script.at(TIMES[:50]))
    alone = queue_frame(script.switch, script.at(TIMES[49:50]))
    assert many.filter(pl.col("ts") == int(TIMES[49])).equals(alone)


def test_counters_never_go_back(script):
    """Every cumulative counter of ports, queues and priority groups only grows."""
    state = script.at(TIMES)
    columns = {f"port {name}": state.port(name) for name in PORT_COLUMNS if name not in GAUGES}
    columns |= {f"queue {name}": state.queue(name) for name in QUEUE_COLUMNS if name not in GAUGES}
    columns |= {f"group {name}": state.group(name) for name in GROUP_COLUMNS if name not in GAUGES}
    columns["fec_bins"] = state.fec_bins
    assert [name for name, values in columns.items() if (np.diff(values, axis=0) < 0).any()] == []
    assert [name for name, values in columns.items() if (values < 0).any()] == []


def test_bytes_are_conserved(script):
    """Packets in are packets out, dropped or in the buffer; queues sum to ports."""
    state = script.at(TIMES)
    kept = state.port("tx_bytes").sum(axis=1) + state.queue("dropped_bytes").sum(axis=(1, 2)) + state.pool("occupancy_bytes")
    assert (state.port("rx_bytes").sum(axis=1) == kept).all()
    assert (state.queue("bytes").sum(axis=2) == state.port("tx_bytes")).all()
    assert (state.group("packets").sum(axis=2) == state.port("rx_packets")).all()
    assert (state.queue("dropped_packets").sum(axis=2) == state.port("tx_discards")).all()


def test_no_port_is_faster_than_its_line(script):
    """Over any millisecond no port sends or receives more than its line carries."""
    state = script.at(START_NS + np.arange(0, 300) * 1_000_000)
    most = script.shape.speed_bps // 8 // 1000
    for side in ("rx_bytes", "tx_bytes"):
        deltas = np.diff(state.port(side), axis=0)
        assert 0.5 * most < deltas.max() <= most


def test_a_queue_is_what_its_packets_make_it(script):
    """Occupancy, drops and marks of each lossless queue equal those of a queue simulated in steps of a microsecond."""
    plan, step, look = script.plan, 1000, 50_000
    ts = np.arange(0, 40_000_000, step)
    for queue in np.flatnonzero(plan.priority == LOSSLESS)[:6]:
        arrive, serve, on = (float(x[queue]) for x in (plan.arrive, plan.serve, plan.on))
        standing = dropped = marked = 0.0
        seen = []
        for at in ts.tolist():
            if at % look == 0:
                seen.append((standing, dropped, marked))
            standing += arrive / on * step if at < on else 0
            sent = min(standing, serve / on * step)
            marked += sent if standing - sent > plan.mark[queue] else 0
            standing -= sent
            dropped += max(0.0, standing - plan.buffer[queue])
            standing = min(standing, float(plan.buffer[queue]))
        state = script.at(START_NS + int(plan.offset[queue]) + ts[:: look // step])
        size, port = int(plan.size[queue]), int(plan.port[queue])
        expected = np.array(seen)
        actual = [state.queue(name)[:, port, LOSSLESS] for name in ("occupancy_bytes", "dropped_packets", "ecn_marked_packets")]
        assert np.abs(actual[0] / size - expected[:, 0]).max() <= 12.0 + 2
        assert np.abs(actual[1] - expected[:, 1]).max() <= 12.0 + 2
        # Marking begins where a slope crosses a threshold: a packet there is some microseconds of marks.
        assert np.abs(actual[2] - expected[:, 2]).max() <= 0.02 * max(1.0, expected[-1, 2]) + 12


def test_pauses_are_where_the_queue_is_high(script):
    """A sender is paused while the queue is above the threshold, and the paused time does not exceed the elapsed time."""
    plan = script.plan
    ts = START_NS + np.arange(0, 200_000_000, 10_000)
    state = script.at(ts)
    standing = state.queue("occupancy_bytes")[:, 2, LOSSLESS]
    size, xoff = int(plan.size[0]), int(plan.xoff[0])
    paused = np.diff(state.queue("pfc_tx_pause_us")[:, 0, LOSSLESS])
    assert paused.max() <= 10
    # Occupancies are whole packets, up to one or two in flight.
    high, low = standing > (xoff + 3) * size, standing < (xoff - 3) * size
    assert high.any() and low.any()
    assert (paused[high[:-1] & high[1:]] == 10).all()
    assert (paused[low[:-1] & low[1:]] == 0).all()


def test_watermarks_hold_the_highest_fill(script):
    """A watermark is at least every occupancy since it was cleared, and at most the queue's maximum."""
    ts = START_NS + 1_000_000_000 + np.arange(0, 990_000_000, 1_000_000)
    state = script.at(ts)
    highest = np.maximum.accumulate(state.queue("occupancy_bytes"), axis=0)
    watermark = state.queue("watermark_bytes")
    assert (watermark >= highest - 2 * 4158).all()
    assert watermark.max() <= (script.plan.buffer.max() + 2) * 4158


def test_a_boot_restarts_all_counters():
    """After the second boot counters restart at zero, and the boot time is reported."""
    again = START_NS + 5_000_000_000
    script = Script(Shape(ports=8, boots_ns=(START_NS, again)))
    state = script.at([START_NS + 4_999_000_000, again, again + 4_999_000_000])
    assert state.boot_ts.tolist() == [START_NS, again, again]
    first, boot, second = state.port("rx_bytes").sum(axis=1).tolist()
    assert (boot, first) == (0, second)
    assert first > 0


def test_one_link_goes_up_and_down(script):
    """The last port is down for the last fifth of its period, and each change is counted."""
    state = script.at(START_NS + np.arange(0, 40) * 500_000_000)
    up, changes = state.port("oper_up")[:, -1].astype(bool), state.port("carrier_changes")[:, -1]
    assert np.diff(changes).tolist() == (up[1:] != up[:-1]).astype(int).tolist()
    assert 0 < (~up).sum() < len(up)
    assert state.port("oper_up")[:, :-1].all()


def test_the_truth_is_in_the_columns_of_the_families(script):
    """The truth's frames have the names, types and keys of their tables."""
    state = script.at(TIMES[:3])
    for family, frame, rows in (
        ("port", port_frame(script.switch, state), 3 * 16),
        ("queue", queue_frame(script.switch, state), 3 * (2 * 16 * PRIORITIES + 1)),
    ):
        known = FAMILIES[family].polars
        assert {name: dtype for name, dtype in frame.schema.items() if name != "boot_ts"} == {
            name: known[name] for name in frame.columns if name != "boot_ts"
        }
        assert frame.height == rows
