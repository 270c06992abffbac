"""A tapped switch of the virtual fabric is a source for the exporters and reports the fabric's values."""

import numpy as np
import polars as pl
import pytest
from switch_rig import port_frame, queue_frame

from weft.lab.fabric.fabric import Fabric, FabricConfig
from weft.lab.fabric.faults import InjectedFault
from weft.lab.fabric.topology import toy
from weft.lab.fabric.workload import Job, Phase
from weft.lab.switch import hft, sai
from weft.lab.telemetry.export import FabricExporter
from weft.lab.telemetry.tap import Tap

MS = 1_000_000
LEAF = "leaf-00-0"
JOB = Job("ring", (0, 1, 2, 3), (Phase(MS, "allreduce", "rail", 5_000_000),))


def tapped(*faults: InjectedFault) -> tuple[Tap, dict[str, pl.DataFrame]]:
    """Return a tap of a leaf after half a second in five calls, and its exported rows."""
    fabric = Fabric(FabricConfig(toy(), (JOB,), faults, step_ns=100_000, clock_skew_ns=0), 1)
    tap, exporter, parts = Tap(fabric, LEAF), FabricExporter(fabric), []
    for call in range(1, 6):
        step = fabric.advance(call * 100 * MS)
        tap.take(step)
        parts.append(exporter.frames(step))
    return tap, {family: pl.concat([part[family] for part in parts]) for family in ("port", "queue")}


@pytest.mark.parametrize(
    "faults",
    [
        (
            InjectedFault("link_flap", f"{LEAF}/Ethernet16", 120 * MS, 100 * MS, 1.0),
            InjectedFault("dirty_fibre", f"{LEAF}/Ethernet0", severity=3e-3),
        ),
        (InjectedFault("counter_reset", LEAF, 200 * MS),),
        (InjectedFault("counter_reset", LEAF, 250 * MS),),
        (InjectedFault("frozen_counter", LEAF, 200 * MS, 150 * MS),),
    ],
)
def test_exporters_and_rows_agree(faults):
    """At each counter sample, the tapped state equals the exported rows, column by column, also with faults."""
    tap, rows = tapped(*faults)
    mine = pl.col("device") == LEAF
    ts = rows["port"].filter(mine)["ts"].unique().sort()
    state = tap.at(ts.to_numpy())
    order = ["ts", "port"]
    expected = rows["port"].filter(mine).sort(order)
    found = port_frame(tap.switch, state).sort(order)
    for name in (
        "oper_up",
        "tx_bytes",
        "rx_bytes",
        "tx_packets",
        "rx_errors",
        "tx_discards",
        "fec_corrected",
        "fec_uncorrectable",
        "speed_bps",
    ):
        assert found[name].to_list() == expected[name].to_list(), name
    assert found["fec_bins"].to_list() == expected["fec_bins"].to_list()
    queues = queue_frame(tap.switch, state).filter(queue="3")
    for direction, names in (
        ("tx", ("bytes", "occupancy_bytes", "watermark_bytes", "pfc_rx_pause_us", "pfc_tx_frames")),
        ("rx", ("watermark_bytes",)),
    ):
        a = queues.filter(direction=direction).sort(order)
        b = rows["queue"].filter(mine, direction=direction).sort(order)
        for name in names:
            assert a[name].to_list() == b[name].to_list(), (direction, name)


def test_telemetry_of_a_tapped_switch():
    """High-frequency telemetry of a tapped switch has its bytes every millisecond, equal to the counter samples."""
    tap, rows = tapped()
    session = hft.session(tap, sai.PORT, ("IF_OUT_OCTETS",))
    ts = tap.fabric.config.start_ns + MS * np.arange(1, 500)
    message = bytes(next(iter(hft.HftExporter(tap, [session], hft.Layout(records=len(ts))).data(ts))))
    # 16 bytes of message header, 4 of set header, then 8 of time and 8 of each counter.
    records = np.frombuffer(message, ">u8", offset=20).reshape(-1, 1 + len(tap.switch.ports)).astype(np.int64)
    assert (records[:, 0] == ts[: len(records)]).all() and (np.diff(records[:, 1:], axis=0) >= 0).all()
    expected = rows["port"].filter(pl.col("device") == LEAF).sort("ts", maintain_order=True)["tx_bytes"].to_list()
    at_readings = records[99::100, 1:].reshape(-1).tolist()
    assert at_readings and at_readings == expected[: len(at_readings)]


def test_a_skewed_clock_calls_another_moment_now():
    """With its clock ahead by 4 ms, a switch reports the values of 4 ms before."""
    tap, _ = tapped()
    ahead, _ = tapped(InjectedFault("skewed_clock", LEAF, severity=4.0))
    ts = tap.fabric.config.start_ns + MS * np.arange(50, 400, 7)
    assert (ahead.at(ts).port("tx_bytes") == tap.at(ts - 4 * MS).port("tx_bytes")).all()
    assert (ahead.at(ts).ts == ts).all()
