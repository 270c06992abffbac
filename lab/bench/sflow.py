"""``weft bench --only sflow``: sFlow datagrams to rows beside a copy of the same bytes, and datagrams off a real socket.

All rates are of whole batches as the collector publishes them, with names and nulls, not of the decoder alone.
"""

import multiprocessing
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_S, SystemClock
from .measure import Line, best_rate
from .packets import roce_frame

_DATAGRAMS, _AGENTS, _PORTS, _RUNS = 3000, 20, 64, 20
_RATE, _SECONDS, _BURST_S = 100_000, 2, 0.001


def sflow(seconds: int) -> Iterator[Line]:
    """Measure flow samples and counter samples to rows on one core, then 100,000 datagrams per second over loopback."""
    from ...pipeline.memory import keep_freed

    keep_freed()
    for what, made in (("flow samples", _flow_datagrams()), ("counter samples", _counter_datagrams())):
        datagrams, each = made
        rate, copied = _decode_rate(datagrams, each)
        yield Line(f"sFlow {what} to rows, one core", f"{rate / 1e6:.2f} M samples/s", f"{rate / copied:.3f} of a memory copy", ">= 2 M/s")
    yield from _received(min(seconds, _SECONDS))


def _decode_rate(datagrams: list[bytes], each: int) -> tuple[float, float]:
    """Return samples/s of the decoder, and of a plain copy of the same datagrams."""
    from ...collectors.sflow.batches import Naming, Rows

    buffer = np.frombuffer(bytearray(b"".join(datagrams)), np.uint8)
    lengths = np.array([len(one) for one in datagrams])
    offsets = np.cumsum(lengths) - lengths
    ts = np.arange(len(datagrams)) * 1000
    rows = Rows(Naming(), agents_max=64, interfaces_max=4096)
    numbers, numbers_at = np.arange(len(datagrams)) % (_DATAGRAMS // _AGENTS), offsets[:, None] + np.arange(16, 20)

    def work() -> None:
        # Each run has the next sequence numbers of its agents: the decoder drops duplicates.
        numbers[:] += _DATAGRAMS // _AGENTS
        buffer[numbers_at] = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
        rows.of(buffer, offsets, lengths, ts)

    count = len(datagrams) * each
    return best_rate(work, count, _RUNS), best_rate(buffer.copy, count, _RUNS)


def _datagram(number: int, samples: list[bytes]) -> bytes:
    agent, sequence = divmod(number, _DATAGRAMS // _AGENTS)
    head = struct.pack(">2I4s4I", 5, 1, bytes([10, 0, 0, 1 + agent]), 0, sequence + 1, 1000 + sequence, len(samples))
    return head + b"".join(samples)


def _flow_datagrams() -> tuple[list[bytes], int]:
    """Return datagrams of 7 flow samples, each with the first 128 bytes of a RoCEv2 packet and an extended switch record."""
    payload = bytes(1040)
    made = []
    for number in range(_DATAGRAMS):
        samples = []
        for k in range(7):
            psn = number * 7 + k
            addresses = bytes([10, 1, psn % 32, 1, 10, 1, psn % 31, 2])
            packet = roce_frame(0x04, psn % 250, psn % 2**24, payload, 49152 + psn % 1000, addresses)
            header = struct.pack(">6I", 1, 144, 1, len(packet) + 4, 4, 128) + packet[:128]
            switch = struct.pack(">6I", 1001, 16, 100, 0, 100, 0)
            body = struct.pack(">8I", psn, k + 1, 1000, psn * 1000, 0, k + 1, k + 2, 2) + header + switch
            samples.append(struct.pack(">2I", 1, len(body)) + body)
        made.append(_datagram(number, samples))
    return made, 7


def _counter_datagrams() -> tuple[list[bytes], int]:
    """Return datagrams of 7 counter samples with the generic and the Ethernet record."""
    random = np.random.default_rng(1)
    made = []
    for number in range(_DATAGRAMS):
        samples = []
        for k in range(7):
            index = 1 + (number * 7 + k) % _PORTS
            counts = random.integers(0, 2**31, 12, dtype=np.uint32).astype(">u4").tobytes()
            generic = struct.pack(">2I", 1, 88) + struct.pack(">2IQ2IQ", index, 6, 400_000_000_000, 1, 3, number * 10**9)
            generic += counts[:24] + struct.pack(">Q", number * 10**9) + counts[24:44] + bytes(4)
            body = struct.pack(">3I", number, index, 2) + generic + struct.pack(">2I", 2, 52) + bytes(52)
            samples.append(struct.pack(">2I", 2, len(body)) + body)
        made.append(_datagram(number, samples))
    return made, 7


def _send(port: int, seconds: int, sent: Any) -> None:
    """Send one agent's counter datagrams at the rate, in bursts of a millisecond."""
    clock = SystemClock()
    body = _counter_datagrams()[0][0][28:]
    heads = [
        struct.pack(">2I4s2I", 5, 1, bytes([10, 0, 0, 1]), 0, number) + struct.pack(">2I", 1, 7) for number in range(1, _RATE * seconds + 1)
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("127.0.0.1", port))
        began, number = clock.monotonic_ns(), 0
        while number < len(heads):
            due = min(len(heads), int((clock.monotonic_ns() - began) / NS_PER_S * _RATE))
            for head in heads[number:due]:
                out.sendmsg((head, body))
            number = max(number, due)
            clock.wait(_BURST_S)
        sent.value = number


def _received(seconds: int) -> Iterator[Line]:
    from ...collectors.sflow.receiver import SflowConfig, SflowListener

    clock = SystemClock()
    live = SflowListener(SflowConfig(enabled=True, port=0), clock)
    live.start()
    context = multiprocessing.get_context("spawn")
    sent = context.Value("q", 0)
    child = context.Process(target=_send, args=(live.port, seconds, sent))
    child.start()
    frames: list[tuple[str, pl.DataFrame]] = []
    while child.is_alive():
        frames += [(batch.family, batch.frame) for batch in live.drain()]
        clock.wait(0.1)
    live.stop()
    frames += [(batch.family, batch.frame) for batch in live.drain()]
    rows = sum(frame.height for family, frame in frames if family == "port")
    # Gaps in sequence numbers count the same datagrams again.
    missed = sum(int(frame.filter(pl.col("reason") != "sequence")["missed"].sum()) for family, frame in frames if family == "gap")
    decoded = rows // 7
    yield Line(
        f"sFlow datagrams off a socket, {seconds} s",
        f"{decoded / seconds / 1e3:.0f} k datagrams/s",
        f"{sent.value:,} sent = {decoded:,} decoded + {missed:,} admitted"
        if sent.value == decoded + missed
        else f"{sent.value - decoded - missed:,} MISSING of {sent.value:,}",
        ">= 100 k/s, none missing",
    )
