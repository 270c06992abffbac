"""``weft bench --only hft``: high-frequency telemetry and OTLP, from the bytes of messages to columns and to rows.

The peer of the decoder is ``numpy.frombuffer`` over the same number of values, which only swaps their bytes and so is a limit. Rows are
whole batches as the collector publishes them.
"""

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...pipeline.bus import Bus, BusConfig, open_bus
from ...pipeline.clock import NS_PER_S, SystemClock
from ...pipeline.tables.families import FAMILIES
from .measure import Line, best_rate

if TYPE_CHECKING:
    from ..switch.serve import LabConfig

_VALUES = 4_000_000
_PORTS, _INTERVAL_NS = 64, 100_000
# Octets, packets, errors, discards, marks, FEC, pauses of two priorities, and FEC bins: 30 per port.
_STATS = (0, 9, 1, 10, 3, 12, 4, 13, 0x46, 0xB2, 0xB3, 0xB4, 0x6D, 0x6E, 0x8D, 0x8E, *range(0xB7, 0xC5))
_START_NS = 1_700_000_000 * NS_PER_S
_POINTS, _SERIES = 100_000, 500
# Duration of the live measurement; time limit for a service to start; pause that lets it catch up.
_LIVE_S, _PATIENCE_S, _REST_S = 10, 60, 0.2


def hft(seconds: int) -> Iterator[Line]:
    """Measure decoding at three message sizes, a second of a switch to rows, OTLP points to rows, and a switch that sends in real time."""
    from ...pipeline.memory import keep_freed

    keep_freed()
    for counters, goal in ((8000, ">= 300 M/s"), (128, ">= 100 M/s"), (2, ">= 10 M/s")):
        rate, plain = _decode_rate(counters)
        beside = f"{rate / plain:.2f} of numpy.frombuffer('>u8')"
        yield Line(f"IPFIX decode, {counters:,} counters a message", f"{rate / 1e6:.1f} M counters/s", beside, goal)
    rate = _rows_rate()
    needed = len(_STATS) * _PORTS * NS_PER_S // _INTERVAL_NS
    yield Line(
        "IPFIX to rows, 30 statistics x 64 ports", f"{rate / 1e6:.1f} M counters/s", f"{rate / needed:.1f} x real time at 100 us", ">= 1 x"
    )
    yield from _otlp()
    yield from _live(min(seconds, _LIVE_S))


def _messages(counters: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a template and ``number`` messages of one record of ``counters`` counters: bytes, offsets, lengths."""
    fields = b"".join(struct.pack(">HHI", 0x8000 | k % 32767 + 1, 8, 1 << 16 | k % 100) for k in range(counters))
    template = _message(2, struct.pack(">HHHH", 256, counters + 1, 325, 8) + fields)
    record = _message(256, bytes(8 + 8 * counters))
    data = np.tile(np.frombuffer(record, np.uint8), (number, 1))
    data[:, 8:12] = np.arange(number).astype(">u4").view(np.uint8).reshape(-1, 4)
    data[:, 20:28] = (_START_NS + np.arange(number) * _INTERVAL_NS).astype(">u8").view(np.uint8).reshape(-1, 8)
    # Every counter grows by its own step.
    values = (np.arange(number)[:, None] * (1 + np.arange(counters))[None, :]).astype(">u8")
    data[:, 28:] = values.view(np.uint8).reshape(number, -1)
    lengths = np.array([len(template), *[len(record)] * number])
    return np.concatenate((np.frombuffer(template, np.uint8), data.reshape(-1))), np.cumsum(lengths) - lengths, lengths


def _message(kind: int, content: bytes) -> bytes:
    return struct.pack(">HHIIIHH", 10, 20 + len(content), _START_NS // NS_PER_S, 0, 0, kind, 4 + len(content)) + content


def _decode_rate(counters: int) -> tuple[float, float]:
    """Return counters/s of the decoder with many messages per call, and of a byte swap of as many values."""
    from ...collectors.hft.ipfix import IpfixDecoder

    number = _VALUES // counters
    buffer, offsets, lengths = _messages(counters, number)
    decoder, exporters = IpfixDecoder(), np.zeros(len(offsets), np.int64)
    plain = buffer[: len(buffer) // 8 * 8]
    swap = best_rate(lambda: np.frombuffer(plain, ">u8").astype(np.uint64), len(plain) // 8)
    return best_rate(lambda: decoder.feed(buffer, offsets, lengths, exporters, 0), number * counters, 10), swap


def _rows_rate() -> float:
    """Return counters/s for a second of one switch, drained every 100 ms, from messages to frames of rows."""
    from ...collectors.hft.ipfix import IpfixDecoder
    from ...collectors.hft.names import Names
    from ...collectors.hft.streams import Streams
    from ...collectors.sampling.readings import Pace

    counters, drain = len(_STATS) * _PORTS, 1000
    specifiers = [(port, stat) for port in range(_PORTS) for stat in _STATS]
    fields = b"".join(struct.pack(">HHI", 0x8000 | port + 1, 8, 1 << 16 | stat) for port, stat in specifiers)
    buffer, offsets, lengths = _messages(counters, drain)
    decoder, streams, zero = IpfixDecoder(), Streams(Pace(), 1_000_000), np.zeros(1, np.int64)
    template = np.frombuffer(_message(2, struct.pack(">HHHH", 256, counters + 1, 325, 8) + fields), np.uint8)
    who = {0: ("leaf1", Names({(1, port + 1): f"Ethernet{4 * port}" for port in range(_PORTS)}))}
    decoder.feed(template, zero, zero + len(template), zero, 0)
    buffer, offsets, lengths = buffer[lengths[0] :], offsets[1:] - lengths[0], lengths[1:]
    records = buffer.reshape(drain, -1)
    ts, steps, exporters = records[:, 20:28], np.arange(drain) * _INTERVAL_NS, np.zeros(drain, np.int64)
    at = 0

    def work() -> None:
        nonlocal at
        for _ in range(10):
            ts[:] = (_START_NS + at * _INTERVAL_NS + steps).astype(">u8").view(np.uint8).reshape(-1, 8)
            now_ns = _START_NS + (at + drain) * _INTERVAL_NS
            streams.take(decoder.feed(buffer, offsets, lengths, exporters, now_ns), who, now_ns)
            at += drain

    work()
    return best_rate(work, 10 * drain * counters)


def _otlp() -> Iterator[Line]:
    """Measure gauge points as a switch exports them: to columns, beside protobuf's own parse, and to rows."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    from ...collectors.otlp import kernel
    from ...collectors.otlp.points import OtlpSeries, Request
    from ...collectors.sampling.readings import Pace

    made = ExportMetricsServiceRequest()
    scope = made.resource_metrics.add().scope_metrics.add()
    polls = _POINTS // _SERIES
    for series in range(_SERIES):
        metric = scope.metrics.add(name=f"sai_counter_type_1_stat_{_STATS[series % 10]}", description="SAI counter", unit="1")
        for k in range(polls):
            point = metric.gauge.data_points.add(time_unix_nano=_START_NS + k * 1_000_000, as_double=float(k * series))
            for key, text in (("object_name", f"Ethernet{series // 10}"), ("sai_type_id", "1"), ("sai_stat_id", str(series % 10))):
                point.attributes.add(key=key).value.string_value = text
    content = made.SerializeToString()
    raw = np.frombuffer(content, np.uint8)
    parse = best_rate(lambda: ExportMetricsServiceRequest.FromString(content), _POINTS)
    walk = best_rate(lambda: kernel.walk(raw, kernel.SEED), _POINTS)
    yield Line("OTLP points to columns", f"{walk / 1e6:.1f} M points/s", f"{walk / parse:.1f} x protobuf's bare parse", ">= 1 x")
    points, at = OtlpSeries(Pace(), {}, "", 10_000), 0

    def work() -> None:
        nonlocal at
        rows = kernel.walk(raw, kernel.SEED)[0]
        rows[:, kernel.TIME] += at
        at += polls * 1_000_000
        points.take([Request("10.0.0.1", raw, rows)], _START_NS + at)

    rate = best_rate(work, _POINTS)
    yield Line("OTLP points to rows", f"{rate / 1e6:.2f} M points/s", f"{rate / parse:.2f} of protobuf's bare parse", ">= 1 M/s")


def _live(seconds: int) -> Iterator[Line]:
    """Let a switch send in real time to the collect service on its own core, and count the samples on the bus."""
    from ..switch.serve import Lab
    from ..switch.wire import free_port
    from .services import Services

    clock, cores = SystemClock(), sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        data, bus = Path(folder), open_bus(BusConfig(), Path(folder))
        lab = Lab(_switch(free_port()), clock, data)
        lab.start()
        (data / "weft.toml").write_text(f"{lab.toml()}\n[collect.host]\nenabled = false\n")
        lab.stop()
        # The threads of a process stay on the core on which it started.
        os.sched_setaffinity(0, cores[:1])
        with Services(data, ("collect", "--config", str(data / "weft.toml"))) as services:
            os.sched_setaffinity(0, cores[1:] or cores)
            _await(bus, "self_metric")
            lab.start()
            began, before, mine = clock.monotonic_ns(), services.cpu_seconds(), sum(os.times()[:2])
            while clock.monotonic_ns() - began < seconds * NS_PER_S:
                lab.step()
            took = (clock.monotonic_ns() - began) / NS_PER_S
            spent, mine = services.cpu_seconds() - before, sum(os.times()[:2]) - mine
            # The next samples reveal losses up to here as gaps.
            clock.wait(_REST_S)
            lab.step()
            lab.stop()
        os.sched_setaffinity(0, cores)
        series, samples, missed = _arrived(bus)
        bus.close()
    sent, skipped = lab.polls
    # A gauge gives a sample per poll, a counter one per pair of polls.
    wanted = sum(sent + skipped - (signal != "queue_bytes") for _, signal in series)
    real = sent * _INTERVAL_NS / NS_PER_S / (took + _REST_S)
    sums = f"{wanted:,} samples = {samples:,} on the bus + {missed:,} in gaps"
    unaccounted = wanted - samples - missed
    yield Line(
        f"the lab's switch of {_PORTS} ports, live, {seconds} s",
        f"{real:.2f} x real time",
        sums if not unaccounted else f"{unaccounted:,} MISSING of {wanted:,}",
        "1 x, none missing",
    )
    yield Line("the same, processor", f"{100 * spent / took:.0f} % of a core", f"the lab {100 * mine / took:.0f} % of another", "<= 100 %")


def _switch(port: int) -> "LabConfig":
    """Return the configuration of a switch that streams 30 statistics of 64 ports, four polls per message."""
    from ..switch.hft import Layout
    from ..switch.serve import LabConfig

    stats = ("IF_IN_OCTETS", "IF_OUT_OCTETS", "IF_IN_UCAST_PKTS", "IF_OUT_UCAST_PKTS", "IF_IN_DISCARDS", "IF_OUT_DISCARDS")
    stats += ("IF_IN_ERRORS", "IF_OUT_ERRORS", "ECN_MARKED_PACKETS", "IN_CURR_OCCUPANCY_BYTES", "OUT_CURR_OCCUPANCY_BYTES")
    stats += tuple(f"IF_IN_FEC_{what}" for what in ("CORRECTABLE_FRAMES", "NOT_CORRECTABLE_FRAMES", "SYMBOL_ERRORS"))
    stats += tuple(f"PFC_3_{what}" for what in ("RX_PKTS", "TX_PKTS", "RX_PAUSE_DURATION_US", "TX_PAUSE_DURATION_US"))
    stats += tuple(f"IF_IN_FEC_CODEWORD_ERRORS_S{n}" for n in range(len(_STATS) - len(stats)))
    return LabConfig(
        ("hft",), {"hft": port}, None, _PORTS, poll_ns=_INTERVAL_NS, port_stats=stats, queue_stats=(), layout=Layout(records=4)
    )


def _await(bus: Bus, family: str) -> None:
    """Wait until rows of a family are on the bus."""
    consumer, clock = bus.consumer([FAMILIES[family].topic]), SystemClock()
    deadline = clock.monotonic_ns() + _PATIENCE_S * NS_PER_S
    while not consumer.poll(0.1) and clock.monotonic_ns() < deadline:
        pass
    consumer.close()


def _arrived(bus: Bus) -> tuple[set[tuple[str, str]], int, int]:
    """Return the series (port, signal) on the bus, the number of their samples, and the number of samples recorded as gaps."""
    from ...pipeline.codec import decode

    tables = {FAMILIES[name].topic: FAMILIES[name] for name in ("burst_sample", "gap")}
    series: set[tuple[str, str]] = set()
    samples = missed = 0
    consumer = bus.consumer(list(tables))
    while came := consumer.poll(1.0):
        for message in came:
            frame = decode(message.value, tables[message.topic])
            if tables[message.topic].name == "gap":
                missed += int(frame.filter(what="samples")["missed"].sum())
            else:
                series.update(frame.select("port", "signal").unique().rows())
                samples += int(frame["values"].list.len().sum())
    consumer.close()
    return series, samples, missed
