"""A run of the virtual fabric from text: a scale and faults.

A fault is ``NAME[@PLACE[@ONSET[@DURATION[@SEVERITY]]]]``, times in seconds. Defaults: a place that the job uses, drawn from the seed; onset
after a third of the run; duration half of the run; a severity with a visible effect.
"""

from collections.abc import Sequence

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ...pipeline.errors import InputError
from ..fabric.fabric import FabricConfig
from ..fabric.faults import FAULTS, InjectedFault, wrong
from ..fabric.rng import unit
from ..fabric.topology import LEAF, FabricTopology
from ..fabric.workload import Job, Phase
from .scene import layout

JOB = "train"
PLACE_DRAW = 14 << 40

# Defaults other than 0.5: a bit error ratio (up to some 2e-4 is corrected), a share of lost packets, milliseconds, seconds; a slow GPU at
# 1 takes twice as long.
_SEVERITY = {"dirty_fibre": 1e-3, "silent_loss": 0.01, "skewed_clock": 20.0, "late_collector": 2.0, "slow_gpu": 1.0, "pause_storm": 0.8}


def scenario(scale: str, faults: Sequence[str], seed: int, seconds: float, *, step_ns: int = 50_000) -> FabricConfig:
    """Return a fabric of a scale with one training job on all its hosts, and these faults in a run of ``seconds``.

    Raises ``ConfigError`` for an invalid scale, ``InputError`` for an invalid fault, place or number.
    """
    topology = layout(scale)
    hosts = tuple(range(topology.gpus // topology.rails))
    return FabricConfig(topology, (job_of(hosts),), tuple(fault_of(topology, text, seed, seconds) for text in faults), step_ns=step_ns)


def job_of(hosts: Sequence[int]) -> Job:
    """Return a job with iterations of some 100 ms: computing, an all-to-all on each rail, an all-reduce of gradients in two buckets."""
    bucket = Phase(10 * NS_PER_MS, "allreduce", "all", 500_000_000)
    return Job(JOB, tuple(hosts), (Phase(40 * NS_PER_MS), Phase(0, "alltoall", "rail", 400_000_000), bucket, bucket))


def fault_of(topology: FabricTopology, text: str, seed: int, seconds: float) -> InjectedFault:
    """Return the fault that a text describes. Raises ``InputError``."""
    kind, *given = text.split("@")
    if len(given) > 4:
        raise InputError(text, "has too many parts", "write NAME@PLACE@ONSET@DURATION@SEVERITY; the last parts may be left out")
    place, *numbers = [*given, "", "", "", ""][:4]
    if problem := wrong(topology, kind, place):
        raise InputError(text, *problem)
    defaults = (seconds / 3, seconds / 2, _SEVERITY.get(kind, 0.5))
    try:
        onset, duration, severity = (float(number) if number else usual for number, usual in zip(numbers, defaults, strict=True))
    except ValueError:
        raise InputError(
            text, "has a time or a severity that is not a number", "write seconds, such as slow_nic@host-0003/mlx5_2@1.5@3"
        ) from None
    if not (0 <= onset < 2**32 and 0 < duration < 2**32 and 0 <= severity < 2**32):
        raise InputError(text, "has a number that is out of range", "write times in seconds, at least 0")
    return InjectedFault(kind, place or _place(topology, kind, seed), round(onset * NS_PER_S), round(duration * NS_PER_S), severity)


def _place(topology: FabricTopology, kind: str, seed: int) -> str:
    """Return a random place for a kind of fault."""
    lot = float(unit(seed, PLACE_DRAW + list(FAULTS).index(kind), 0))
    wanted = FAULTS[kind].place
    names, leaves = topology.device_names, np.flatnonzero(topology.tier == LEAF)
    if wanted == "adapter":
        adapter = int(lot * topology.gpus)
        return f"{names[topology.owner[2 * adapter]]}/{topology.port_names[2 * adapter]}"
    if wanted == "link":
        # The leaf's end of a link to one of the job's hosts: every ring uses it.
        port = 2 * int(lot * topology.gpus) + 1
        return f"{names[topology.owner[port]]}/{topology.port_names[port]}"
    if wanted == "two leaves":
        return f"{names[leaves[0]]},{names[leaves[-1]]}"
    if wanted == "job":
        return JOB
    if kind == "noisy_neighbour":
        return names[int(lot * topology.gpus) // topology.rails]
    return names[leaves[int(lot * len(leaves))]] if wanted else ""
