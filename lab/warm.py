"""Compiles the kernels of the virtual fabric: ``python -m weft.lab.warm``, before a first run."""

import tempfile
from pathlib import Path

from ..pipeline.clock import NS_PER_MS
from .fabric.answers import Answers
from .fabric.fabric import Fabric, FabricConfig
from .fabric.faults import InjectedFault
from .fabric.topology import toy
from .fabric.workload import Job, Phase
from .telemetry.export import FabricExporter


def warm() -> None:
    """Run a few milliseconds of the smallest fabric through every kernel."""
    job = Job("warm", (0, 1, 2, 3), (Phase(NS_PER_MS, "allreduce", "rail", 1_000_000),))
    config = FabricConfig(
        toy(), (job,), (InjectedFault("hash_polarization"), InjectedFault("dirty_fibre", "host-0000/mlx5_0")), packet_sampling=10
    )
    fabric = Fabric(config)
    exporter = FabricExporter(fabric)
    with tempfile.TemporaryDirectory(prefix="weft-warm-") as folder:
        answers = Answers(Path(folder), fabric)
        step = fabric.advance(config.counter_ns)
        exporter.frames(step)
        answers.write(step)


if __name__ == "__main__":
    warm()
