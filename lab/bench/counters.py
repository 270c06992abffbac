"""Counters from the bus to the store, beside Polars' own grouping of the same rows.

Ports of a switch are polled every 10 ms, as with high-frequency telemetry: eight counters grow with the traffic, twelve hardly. The peer is
a grouping of the same frames by port and second in this process: maximum minus minimum of each counter, without checks for order, restarts,
wraps or line rate.
"""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from ...pipeline.bus import Bus, BusConfig, open_bus
from ...pipeline.clock import SystemClock
from ...pipeline.tables.families import FAMILIES, counters_of
from .measure import Line, best_rate
from .services import Services, memory

DEVICES, PORTS = 40, 64
POLLS_PER_S = 100
COUNTERS = counters_of("port")[:20]

# Increments per byte on the line; other counters grow by at most one.
_PACKETS, _CODEWORDS, _BITS = 1 / 1024, 8 / 5440 / 100, 8 / 5440 / 50
_MOVES = {
    **{f"{side}_bytes": 1.0 for side in ("rx", "tx")},
    **{f"{side}_{kind}": _PACKETS for side in ("rx", "tx") for kind in ("packets", "unicast_packets")},
    "fec_corrected": _CODEWORDS,
    "corrected_bits": _BITS,
}

_START_NS = 1_767_225_600 * 1_000_000_000
_STEP_NS = 1_000_000_000 // POLLS_PER_S
_SPEED_BPS = 400_000_000_000
# Counter samples of a device per message: 512 KiB.
_MESSAGE_POLLS = 40


def counters(seconds: int) -> Iterator[Line]:
    """Measure counter values from the bus through all stages to the store, beside Polars' grouping."""
    seconds = max(2, seconds // 2)
    values = DEVICES * PORTS * POLLS_PER_S * seconds * len(COUNTERS)
    few = pl.concat(frame for _, frame in frames(4, 2))
    limit = best_rate(lambda: _grouped(few), few.height * len(COUNTERS), runs=3)
    yield Line("Polars: largest less smallest by second", f"{limit / 1e6:.0f} M values/s", "the same frames, in memory, two cores")
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        data = Path(folder)
        bus = open_bus(BusConfig(), data)
        _fill(bus, seconds)
        with Services(data, ("process", "--member", "process-0"), ("process", "--member", "process-1"), ("analyze",)) as services:
            rate = services.drain(bus, values)
            yield Line(
                "counters, bus to store, two cores", f"{rate / 1e6:.1f} M values/s", f"{rate / limit:.2f} of Polars' grouping", ">= 20 M/s"
            )
            yield Line("peak memory, draining counters", memory(services.peak_bytes()))
        bus.close()


def frames(devices: int, seconds: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield made counter samples message by message in order of time: the device, and its rows."""
    random = np.random.default_rng(1)
    names = [f"Ethernet{port * 8}" for port in range(PORTS)]
    moves = np.array([_MOVES.get(name, 0.0) * _SPEED_BPS / 8 / POLLS_PER_S or 1.0 for name in COUNTERS])
    last = np.zeros((devices, PORTS, len(COUNTERS)), np.int64)
    for first in range(0, seconds * POLLS_PER_S, _MESSAGE_POLLS):
        for device in range(devices):
            steps = (random.random((_MESSAGE_POLLS, PORTS, len(COUNTERS))) * moves).astype(np.int64)
            samples = last[device] + np.cumsum(steps, axis=0)
            last[device] = samples[-1]
            yield f"leaf-{device:03d}", _frame(f"leaf-{device:03d}", first, names, samples)


def _frame(device: str, first: int, names: list[str], samples: np.ndarray) -> pl.DataFrame:
    ts = np.repeat(_START_NS + (first + np.arange(len(samples))) * _STEP_NS, PORTS)
    return pl.DataFrame(
        {
            "ts": ts,
            "recv_ts": ts + _STEP_NS,
            "source": "bench",
            "device": device,
            "epoch": 0,
            "port": names * len(samples),
            "speed_bps": np.full(len(ts), _SPEED_BPS, np.uint64),
            **{name: samples[:, :, k].ravel().astype(np.uint64) for k, name in enumerate(COUNTERS)},
        }
    )


def _grouped(frame: pl.DataFrame) -> pl.DataFrame:
    second = (pl.col("ts") // 1_000_000_000).alias("second")
    return frame.group_by("device", "port", second).agg(pl.col(*COUNTERS).max() - pl.col(*COUNTERS).min().name.keep())


def _fill(bus: Bus, seconds: int) -> None:
    from ...collectors.base import Batch
    from ...collectors.publish import BatchPublisher

    producer = bus.producer("bench")
    feed = BatchPublisher(producer, "bench", SystemClock(), live=False, epoch=0)
    made = frames(DEVICES, seconds)
    while some := [Batch("port", frame) for _, frame in islice(made, DEVICES)]:
        feed.publish(some)
    feed.publish([Batch("port", FAMILIES["port"].empty(), tuple(f"leaf-{n:03d}" for n in range(DEVICES)))])
    producer.close()
