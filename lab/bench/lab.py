"""The lab's exporters: whether one core sends as much as the collectors are measured with."""

import socket
from collections.abc import Iterator

import numpy as np

from .measure import Line, best_rate


def lab(_seconds: int) -> Iterator[Line]:
    """Measure building and sending sFlow datagrams, and 30 statistics of 64 ports every 100 us, beside copies of the same bytes."""
    from ...pipeline.clock import SystemClock
    from ...pipeline.memory import keep_freed
    from ..switch import hft, roce, sai
    from ..switch.script import START_NS, Script, Shape
    from ..switch.sflow import Agent
    from ..switch.wire import Udp

    keep_freed()
    script = Script(Shape(ports=64))
    agent, now = Agent(script), START_NS + 10_000_000
    flows = roce.sampled(script, now, 7_000)
    made = agent.flows(flows, now)
    built = best_rate(lambda: agent.flows(flows, now), len(made), runs=20)
    copied = best_rate(made.buffer.copy, len(made), runs=20)
    what = f"sFlow datagrams made, {len(flows.in_port) // len(made) + 1} samples each"
    yield Line(what, f"{built / 1e3:.0f} k/s", f"{built / copied:.3f} of copying the bytes", ">= 100 k/s")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        sender = Udp("127.0.0.1", receiver.getsockname()[1], SystemClock())
        sender.start()
        sent = best_rate(lambda: sender.send(made), len(made), runs=20)
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.connect(receiver.getsockname())
        whole = list(made)
        single = best_rate(lambda: [one.send(part) for part in whole], len(made))
        one.close()
        sender.stop()
    yield Line("the same sent by UDP", f"{sent / 1e3:.0f} k/s", f"{sent / single:.1f} x one send each", ">= 100 k/s")
    session = hft.Session(sai.PORT, tuple(range(64)), sai.of(sai.PORT)[:30])
    exporter = hft.HftExporter(script, [session], hft.Layout(records=4))
    ts = START_NS + np.arange(256) * 100_000
    counters = len(ts) * len(session.objects) * len(session.stats)
    rate = best_rate(lambda: exporter.data(ts), counters, runs=20)
    plain = np.empty(counters, ">u8")
    swapped = best_rate(lambda: plain.astype(np.int64), counters)
    need = 30 * 64 * 10_000
    yield Line(
        "telemetry counters modelled and written",
        f"{rate / 1e6:.1f} M/s",
        f"{rate / swapped:.3f} of swapping bytes",
        f">= {need / 1e6:.1f} M/s",
    )
