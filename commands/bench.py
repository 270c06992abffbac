"""``weft bench``: rates and memory of this machine, each beside its limit or a peer in the same run.

A rate alone says more about a machine than about code, so every line has a ratio: to the bare kernel over the
same data, to scapy over the same packets, to the goal in memory.
"""

import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..lab.bench import detect as bench_detect
from ..lab.bench.counters import counters
from ..lab.bench.fabric import fabric
from ..lab.bench.gnmi import gnmi
from ..lab.bench.hft import hft
from ..lab.bench.lab import lab
from ..lab.bench.measure import Line, best_rate
from ..lab.bench.services import Services, memory
from ..lab.bench.sflow import sflow
from ..pipeline.bus import Bus, BusConfig, open_bus
from ..pipeline.clock import NS_PER_S, SystemClock
from ..pipeline.errors import ServiceError

DEVICES, PORTS = 40, 50
MEMORY_GOAL_BYTES = 600e6
MS_NS = 1_000_000

# Sample intervals, and for which share of the seconds asked for there is traffic.
LADDER = ((MS_NS, 1.0), (MS_NS // 10, 0.25), (MS_NS // 100, 0.1))


def options(parser: ArgumentParser) -> None:
    parser.add_argument("part", nargs="*", type=_part, metavar="PART", help="only these parts; or detect, which has tables of its own")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="only this part, may be repeated")
    parser.add_argument(
        "--seconds",
        type=int,
        default=20,
        metavar="N",
        help=f"seconds of {DEVICES * PORTS:,} ports at 1 ms to measure with, fewer at shorter intervals (default: 20)",
    )
    bench_detect.options(parser)


def bench(chosen: Namespace) -> int:
    """Run the parts and print a table as they finish; ``detect`` has tables of its own."""
    if "detect" in chosen.part:
        if len(chosen.part) > 1 or chosen.only:
            raise ServiceError("bench: detect has tables of its own", "run it alone: weft bench detect")
        return bench_detect.detect(chosen)
    wanted = {*chosen.part, *(chosen.only or ())}
    print(f"{'what':<46} {'measured':>18}  {'beside':<44} goal")
    for name, part in PARTS.items():
        if not wanted or name in wanted:
            for line in part(chosen.seconds):
                print(f"{line.what:<46} {line.value:>18}  {line.beside:<44} {line.goal}", flush=True)
    return 0


def _kernel(interval_ns: int) -> float:
    """Return samples/s of the bare single pass on one core, over the same made traffic."""
    from ..lab.bench.traffic import SPEED_BPS, START_NS, batches
    from ..pipeline.process.bursts import kernel

    # As many samples as one call of the kernel has in the service, in the width that they have there.
    seconds = max(1, 5 * interval_ns // MS_NS)
    runs = [np.stack(batch.frame["values"].to_list()) for batch in batches(4, PORTS, seconds, interval_ns=interval_ns)]
    matrix = np.concatenate(runs).astype(np.int32)
    entities, slots = matrix.shape
    first = START_NS // interval_ns
    none = np.full(entities, -1, np.int64)
    threshold = np.full(entities, SPEED_BPS * interval_ns // (2 * 8 * NS_PER_S))
    arguments = (
        (matrix, first, np.array([first, first + slots]), np.array([START_NS]), interval_ns, threshold),
        (np.zeros(entities, np.int64), np.zeros((1, slots), np.int32), none, none),
    )
    return best_rate(lambda: kernel.walk(*arguments[0], kernel.empty_carry(entities), *arguments[1]), matrix.size)


def _bursts(seconds: int) -> Iterator[Line]:
    """Burst samples from the bus through every metric to the store, beside two bare kernels.

    A window of a port costs something, and each of its samples: how many there are to a window decides how much of the
    kernel's rate is left. So this is shown from 1 ms down to 10 us, with more samples in less time.
    """
    for interval_ns, share in LADDER:
        at = f"{interval_ns // 1000:,} us"
        kernel = _kernel(interval_ns)
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


def _live(seconds: int) -> Iterator[Line]:
    """2,000 ports at 1 ms in real time: memory and processor of the services."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        data = Path(folder)
        bus = open_bus(BusConfig(), data)
        with Services(data, ("process", "--member", "process-0"), ("analyze",)) as services:
            began = clock.monotonic_ns()
            _fill(bus, seconds, MS_NS, pace=clock)
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


def _packets(_seconds: int) -> Iterator[Line]:
    """RoCEv2 packets decoded in bulk, beside scapy over the same packets."""
    from ..collectors.packets.receiver import dissect
    from ..collectors.wire.roce import decode

    raw, count = _made_packets(), 200_000
    buffer = b"".join(raw) * (count // len(raw))
    lengths = np.tile([len(packet) for packet in raw], count // len(raw))
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ts = np.arange(len(lengths), dtype=np.int64)
    fast = best_rate(lambda: decode(buffer, offsets, lengths, ts, 1), len(lengths))
    few = (raw * 20)[:1000]
    slow = best_rate(lambda: [dissect(packet) for packet in few], len(few), runs=1)
    yield Line(
        "RoCEv2 packets decoded, one core",
        f"{fast / 1e6:.1f} M packets/s",
        f"{fast / slow:,.0f} x scapy ({slow:,.0f} packets/s)",
        ">= 1,000 x",
    )


def _made_packets() -> list[bytes]:
    """Return 50 Ethernet frames with SENDs of 1 KiB and their acknowledgements."""
    frames = []
    for n in range(50):
        ack = n % 2
        body = bytes([0x11 if ack else 0x04, 0, 0xFF, 0xFF, 0, 0, 0, 72 - ack, 0]) + n.to_bytes(3, "big")
        body += bytes([0, 0, 0, n]) if ack else bytes(1024)
        udp = (
            (49152 + n).to_bytes(2, "big") + (4791).to_bytes(2, "big") + (8 + len(body) + 4).to_bytes(2, "big") + bytes(2) + body + bytes(4)
        )
        ip = (
            bytes([0x45, 2])
            + (20 + len(udp)).to_bytes(2, "big")
            + bytes([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1 + ack, 10, 0, 0, 2 - ack])
        )
        frames.append(bytes(12) + b"\x08\x00" + ip + udp)
    return frames


PARTS: dict[str, Callable[[int], Iterator[Line]]] = {
    "bursts": _bursts,
    "live": _live,
    "packets": _packets,
    "counters": counters,
    "sflow": sflow,
    "hft": hft,
    "gnmi": gnmi,
    "lab": lab,
    "fabric": fabric,
}


def _part(text: str) -> str:
    if text not in PARTS and text != "detect":
        raise ArgumentTypeError(f"{text!r} is none of {', '.join(PARTS)}, detect")
    return text


def _fill(bus: Bus, seconds: int, interval_ns: int, pace: SystemClock | None = None) -> tuple[int, int]:
    """Publish made traffic, at real time if there is a ``pace``; return bytes and samples."""
    from ..collectors.base import Batch
    from ..collectors.publish import Feed
    from ..lab.bench.traffic import START_NS, batches
    from ..pipeline.tables.families import FAMILIES

    clock = SystemClock()
    producer = bus.producer("bench")
    feed = Feed(producer, "bench", clock, live=pace is not None, epoch=0)
    began, size = clock.monotonic_ns(), 0
    # What is live is of the second that has just ended.
    start_ns = START_NS if pace is None else (pace.now_ns() // NS_PER_S - 1) * NS_PER_S
    for number, batch in enumerate(batches(DEVICES, PORTS, seconds, interval_ns=interval_ns, start_ns=start_ns)):
        size += feed.publish([batch])
        if pace is not None and (number + 1) % DEVICES == 0:
            pace.wait((number + 1) / DEVICES - (pace.monotonic_ns() - began) / NS_PER_S)
    feed.publish([Batch("burst_sample", FAMILIES["burst_sample"].empty(), tuple(f"leaf-{n:03d}" for n in range(DEVICES)))])
    producer.close()
    return size, DEVICES * PORTS * seconds * (NS_PER_S // interval_ns)
