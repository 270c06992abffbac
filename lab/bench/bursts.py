"""Burst samples from the bus to the store, and 2,000 ports in real time, beside the bare kernel over the same made traffic.

The traffic is that of ports of a training job, which wait and then send near the line rate, all from a seed.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ...collectors.base import Batch
from ...pipeline.bus import Bus, BusConfig, open_bus
from ...pipeline.clock import NS_PER_MS, NS_PER_S, SystemClock
from ...pipeline.tables.families import FAMILIES
from .measure import Line, best_rate
from .services import Services, memory

DEVICES, PORTS = 40, 50
MEMORY_GOAL_BYTES = 600e6
START_NS = 1_767_225_600 * NS_PER_S
SPEED_BPS = 400_000_000_000

# Sample intervals, and the share of the requested seconds for which there is traffic.
LADDER = ((NS_PER_MS, 1.0), (NS_PER_MS // 10, 0.25), (NS_PER_MS // 100, 0.1))


def bursts(seconds: int) -> Iterator[Line]:
    """Measure burst samples from the bus through all metrics to the store, beside two bare kernels.

    Each window and each sample has a cost, so the share of the kernel's rate depends on the number of samples per window: measure from 1 ms
    down to 10 us.
    """
    for interval_ns, share in LADDER:
        at = f"{interval_ns // 1000:,} us"
        kernel = _kernel_rate(interval_ns)
        yield Line(f"single-pass kernel at {at}, one core", f"{kernel / 1e6:.0f} M samples/s")
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
            data = Path(folder)
            bus = open_bus(BusConfig(), data)
            size, samples = _fill(bus, max(2, int(seconds * share)), interval_ns)
            yield Line(f"on the bus at {at}, lz4", f"{size / samples:.2f} B/sample", "8 B plain, 4 B as 32 bits")
            with Services(data, *(("process", "--member", f"process-{n}") for n in range(2)), ("analyze",)) as services:
                rate = services.drain(bus, samples)
                yield Line(
                    f"bus to store at {at}, two cores",
                    f"{rate / 1e6:.1f} M samples/s",
                    f"{rate / kernel / 2:.2f} of two kernels",
                    ">= 60 M/s, >= 0.25",
                )
                yield Line("peak memory, draining a backlog", memory(services.peak_bytes()))
            bus.close()


def live(seconds: int) -> Iterator[Line]:
    """Measure memory and processor time of the services with 2,000 ports at 1 ms in real time."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        data = Path(folder)
        bus = open_bus(BusConfig(), data)
        with Services(data, ("process", "--member", "process-0"), ("analyze",)) as services:
            began = clock.monotonic_ns()
            _fill(bus, seconds, NS_PER_MS, pace=clock)
            spent = services.cpu_seconds() / ((clock.monotonic_ns() - began) / NS_PER_S)
            peak = services.peak_bytes()
            yield Line(
                f"live, {DEVICES * PORTS:,} ports x 1 ms, peak memory",
                memory(peak),
                f"{sum(peak.values()) / MEMORY_GOAL_BYTES:.2f} of the goal",
                "< 600 MB",
            )
            yield Line("the same, processor", f"{100 * spent:.0f} % of a core", "process and analyze together")
        bus.close()


def _kernel_rate(interval_ns: int) -> float:
    """Return samples/s of the bare burst kernel on one core, over the same made traffic."""
    from ...pipeline.process.bursts import kernel

    # As many samples per call of the kernel, of the same width, as in the service.
    seconds = max(1, 5 * interval_ns // NS_PER_MS)
    runs = [np.stack(batch.frame["values"].to_list()) for batch in batches(4, PORTS, seconds, interval_ns=interval_ns)]
    matrix = np.concatenate(runs).astype(np.int32)
    entities, slots = matrix.shape
    first = START_NS // interval_ns
    none = np.full(entities, -1, np.int64)
    threshold = np.full(entities, SPEED_BPS * interval_ns // (2 * 8 * NS_PER_S))
    hot, group = np.zeros((1, slots), np.int32), np.zeros(entities, np.int64)
    grid = kernel.Grid(matrix, hot, np.array([first, first + slots]), np.array([START_NS]), interval_ns)
    return best_rate(lambda: kernel.walk(grid, kernel.Entities(threshold, group, none, none, kernel.empty_carry(entities))), matrix.size)


def _fill(bus: Bus, seconds: int, interval_ns: int, pace: SystemClock | None = None) -> tuple[int, int]:
    """Publish made traffic, in real time if there is a ``pace``; return bytes and samples."""
    from ...collectors.publish import BatchPublisher

    clock = SystemClock()
    producer = bus.producer("bench")
    publisher = BatchPublisher(producer, "bench", clock, live=pace is not None, epoch=0)
    began, size = clock.monotonic_ns(), 0
    # A live source reports the second that has just ended.
    start_ns = START_NS if pace is None else (pace.now_ns() // NS_PER_S - 1) * NS_PER_S
    for number, batch in enumerate(batches(DEVICES, PORTS, seconds, interval_ns=interval_ns, start_ns=start_ns)):
        size += publisher.publish([batch])
        if pace is not None and (number + 1) % DEVICES == 0:
            pace.wait((number + 1) / DEVICES - (pace.monotonic_ns() - began) / NS_PER_S)
    publisher.publish([Batch("burst_sample", FAMILIES["burst_sample"].empty(), tuple(f"leaf-{n:03d}" for n in range(DEVICES)))])
    producer.close()
    return size, DEVICES * PORTS * seconds * (NS_PER_S // interval_ns)


def batches(
    devices: int, ports: int, seconds: int, *, interval_ns: int = NS_PER_MS, seed: int = 1, start_ns: int = START_NS
) -> Iterator[Batch]:
    """Yield one batch per device and second: ``ports`` segments of received bytes, a sample every ``interval_ns`` (at most 1 ms).

    The ports of a device alternate together between computing (little traffic) and communicating (0.80 to 0.97 of the line rate), each
    phase 20 to 120 ms.
    """
    random = np.random.default_rng(seed)
    capacity = SPEED_BPS * interval_ns // 8_000_000_000
    shape = (ports, 1_000_000_000 // interval_ns)
    for second in range(seconds):
        for device in range(devices):
            phase = np.repeat(np.arange(100) % 2, random.integers(20, 120, 100) * (NS_PER_MS // interval_ns))[: shape[1]] == 1
            small = np.where(random.random(shape) < 0.3, random.lognormal(6, 1.5, shape), 0).astype(np.uint32)
            large = (capacity * random.uniform(0.80, 0.97, shape)).astype(np.uint32)
            ts = start_ns + second * 1_000_000_000
            yield Batch("burst_sample", _frame(f"leaf-{device:03d}", ts, np.where(phase, large, small), interval_ns))


def _frame(device: str, ts: int, values: np.ndarray, interval_ns: int) -> pl.DataFrame:
    ports = len(values)
    return pl.DataFrame(
        {
            "ts": np.full(ports, ts),
            "recv_ts": np.full(ports, ts + 1_000_000_000),
            "source": "bench",
            "device": device,
            "epoch": 0,
            "queue": "",
            "signal": "rx_bytes",
            "port": [f"Ethernet{port * 8}" for port in range(ports)],
            "interval_ns": np.full(ports, interval_ns),
            "speed_bps": np.full(ports, SPEED_BPS, np.uint64),
            "values": pl.Series(values).arr.to_list(),
        }
    )
