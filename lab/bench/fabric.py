"""The speed of the virtual fabric, beside real time and beside copies of its table of flows."""

import resource
from collections.abc import Iterator

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S, SystemClock
from .measure import Line, best_rate

SIZES = (64, 512, 4096)


def fabric(seconds: int) -> Iterator[Line]:
    """Measure the model at steps of 1 ms on one core, with all GPUs in one training job, for 64, 512 and 4,096 GPUs."""
    from ..fabric.fabric import Fabric, FabricConfig
    from ..fabric.topology import sized
    from ..fabric.workload import dense

    clock = SystemClock()
    span_ns = min(seconds, 2) * NS_PER_S
    for gpus in SIZES:
        topology = sized(gpus)
        job = dense("dense", range(gpus // topology.rails), compute_ns=40 * NS_PER_MS, payload_bytes=4_000_000_000)
        made = Fabric(FabricConfig(topology, (job,), step_ns=NS_PER_MS), 1)
        made.advance(100 * NS_PER_MS)
        began = clock.monotonic_ns()
        for part in range(1, 11):
            made.advance(100 * NS_PER_MS + part * span_ns // 10)
        spent = clock.monotonic_ns() - began
        copied = best_rate(made.world.flows.copy, 1)
        yield Line(
            f"virtual fabric, {gpus:,} GPUs at 1 ms, one core",
            f"{span_ns / spent:.1f} x real time",
            f"a step costs {copied * spent * NS_PER_MS / span_ns / NS_PER_S:.1f} copies of its {len(made.world.flows):,} flows",
            ">= 1 x up to 512",
        )
        size = sum(column.nbytes for column in made.world.programs if isinstance(column, np.ndarray)) + made.world.flows.nbytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        yield Line("the same, memory", f"{size / 1e6:.0f} MB of tables", f"{peak / 1e6:.0f} MB peak of the process so far")
