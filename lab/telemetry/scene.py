"""What a live fabric shows: how it is laid out, what runs on it, what goes wrong where, and which protocol tells of which switch.

Everything follows from a scale, a number of jobs, the faults that are asked for and a seed, so that a scene can be set again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from ...pipeline.errors import ConfigError
from ..fabric.faults import FAULTS, InjectedFault, link_of, wrong
from ..fabric.topology import AGGREGATION, LEAF, FabricTopology, clos, rail_fabric, sized, toy
from ..fabric.workload import Job, Phase, dense

HOST_GPUS = 8
# Layouts of whole racks begin here; smaller ones have racks of two hosts.
SIZED_GPUS = 192
GPUS_MAX = 4096
# Ports that a step of 100 us is affordable for, on half a core.
FINE_PORTS_MAX = 600


def _rail(gpus: int = 64) -> FabricTopology:
    racks, hosts = (gpus // 16, 2) if gpus >= 32 else (2, 1)
    return rail_fabric(racks, hosts, HOST_GPUS, racks_per_pod=max(1, racks // 2), spines=max(2, racks // 2 * hosts), parallel=1, storage=0)


def _clos() -> FabricTopology:
    return clos([("a", f"p{pod}", f"l{leaf}") for pod in range(2) for leaf in range(2) for _ in range(4)])


LAYOUTS: dict[str, Callable[[], FabricTopology]] = {"toy": toy, "rail": _rail, "clos": _clos}


def layout(scale: str) -> FabricTopology:
    """Return the layout of a name in ``LAYOUTS`` or of so many GPUs. Raises ``ConfigError``."""
    if scale in LAYOUTS:
        return LAYOUTS[scale]()
    gpus = int(scale) if scale.isdigit() else 0
    if not 16 <= gpus <= GPUS_MAX or gpus % 16 or (gpus >= SIZED_GPUS and gpus % 64):
        names = ", ".join(LAYOUTS)
        hint = f"give a multiple of 16 up to 176, of 64 up to {GPUS_MAX}, or one of {names}"
        raise ConfigError("--scale", f"{scale!r} is neither a layout nor a number of GPUs that fills racks", hint)
    return sized(gpus) if gpus >= SIZED_GPUS else _rail(gpus)


def step_ns(topology: FabricTopology) -> int:
    """Return the step that a layout can be run with in real time."""
    return 100_000 if topology.ports <= FINE_PORTS_MAX else 1_000_000


def jobs(topology: FabricTopology, count: int) -> tuple[Job, ...]:
    """Return ``count`` jobs on equal shares of the hosts, each spread over all pods; training and plain data parallelism in turn.

    Raises ``ConfigError`` where there are not two hosts for each.
    """
    hosts = topology.gpus // topology.rails
    if not 1 <= count <= hosts // 2:
        raise ConfigError("--jobs", f"{count} jobs do not fit on {hosts} hosts", f"give 1 to {hosts // 2}")
    # Neighbours in a job stand under different leaves, so that its collectives cross the spines.
    under = topology.leaf[: topology.gpus : topology.rails]
    rank = np.array([int((under[:host] == leaf).sum()) for host, leaf in enumerate(under)])
    order = np.lexsort((under, rank)).tolist()
    each = hosts // count
    made = []
    for number in range(count):
        mine = order[number * each : (number + 1) * each]
        if number % 2:
            made.append(dense(f"dense-{number}", mine))
        else:
            made.append(Job(f"train-{number}", tuple(mine), _TRAINING, block=next(size for size in (4, 2, 1) if each % size == 0)))
    return tuple(made)


# A mixture of experts that computes long: two iterations a second, which an eye can follow, and some thousand bursts, which a store can.
_EXPERTS = Phase(110 * NS_PER_MS, "alltoall", "block", 600_000_000)
_TRAINING = (
    *(_EXPERTS,) * 3,
    Phase(55 * NS_PER_MS, "reducescatter", "rail", 2_000_000_000),
    Phase(27 * NS_PER_MS, "allgather", "rail", 1_000_000_000),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """How bad a fault is in a scene, and how long it lasts (0: to the end). Units are those of ``FAULTS``."""

    severity: float = 0.5
    duration_s: int = 0


SHOWN: dict[str, Shown] = {
    "slow_nic": Shown(0.7),
    "pause_storm": Shown(0.8),
    "dirty_fibre": Shown(2e-3, 48),
    "link_flap": Shown(0.2),
    "silent_loss": Shown(0.01),
    "late_collector": Shown(3.0),
    "skewed_clock": Shown(2000.0),
}
# Faults of one switch's telemetry, and one that only the same clock at both ends of a link shows: no protocol carries their places.
APART = ("frozen_counter", "counter_reset", "lossy_collector", "late_collector", "skewed_clock", "silent_loss")
# SAI's statistics do not tell whether a link is up; gNMI does.
_LINK_STATE = ("link_flap", "rail_down")


def place_faults(asked: Sequence[str], topology: FabricTopology, seed: int, onset_s: float, apart_s: float) -> tuple[InjectedFault, ...]:
    """Return the faults asked for as ``kind`` or ``kind@place``, one beginning after the other; a place that is not told is drawn.

    Raises ``ConfigError`` for a kind or a place that there is not.
    """
    made = []
    for number, text in enumerate(asked):
        kind, _, place = text.partition("@")
        if problem := wrong(topology, kind, place):
            raise ConfigError(f"--fault {text}", *problem)
        place = place or _drawn(kind, topology, np.random.default_rng([seed, number]))
        shown = SHOWN.get(kind, Shown())
        begin_ns = int((onset_s + number * apart_s) * NS_PER_S)
        made.append(InjectedFault(kind, place, begin_ns, shown.duration_s * NS_PER_S or 2**62, shown.severity))
    return tuple(made)


def _drawn(kind: str, topology: FabricTopology, lots: np.random.Generator) -> str:
    """Return a place of the kind that a fault has; empty where it needs none."""
    names = topology.device_names
    leaves = [name for name, tier in zip(names, topology.tier.tolist(), strict=True) if tier == LEAF]
    adapter = int(lots.integers(topology.gpus))
    host = f"{names[adapter // topology.rails]}"
    what = FAULTS[kind].place
    if what == "link":
        ups = np.flatnonzero(topology.stage == 1)
        port = int(lots.choice(ups if len(ups) else np.flatnonzero(topology.stage == topology.stage.max())))
        return f"{names[topology.owner[port]]}/{topology.port_names[port]}"
    if what == "two leaves":
        far = [name for name in leaves if name.rpartition("-")[2] == leaves[0].rpartition("-")[2] and name != leaves[0]]
        return f"{leaves[0]},{(far or leaves[1:] or leaves)[0]}"
    above = [name for name, tier in zip(names, topology.tier.tolist(), strict=True) if tier >= AGGREGATION]
    return {
        "adapter": f"{host}/mlx5_{adapter % topology.rails}",
        "switch": str(lots.choice(leaves)),
        "device": host if kind == "noisy_neighbour" else str(lots.choice(above or leaves)),
    }.get(what, "")


# What each protocol tells of a switch that it carries; the lab's own rows tell the rest.
TELLS: dict[str, tuple[str, ...]] = {
    "hft": ("burst_sample", "port", "queue"),
    "gnmi": ("port", "queue"),
    "otlp": ("burst_sample", "port", "queue"),
    "sflow": ("port", "packet"),
}


def carriers(topology: FabricTopology, faults: Sequence[InjectedFault], protocols: Sequence[str] = tuple(TELLS)) -> dict[str, str]:
    """Return which protocol carries which leaf: one leaf for each, first those on which something goes wrong."""
    names = topology.device_names
    kept = {device for fault in faults if fault.kind in APART for device in _ends(fault.place, topology)}
    leaves = [name for name, tier in zip(names, topology.tier.tolist(), strict=True) if tier == LEAF and name not in kept]
    order = list(protocols)
    found: dict[str, str] = {}
    for fault in faults:
        here = [device for device in _ends(fault.place, topology) if device in leaves and device not in found]
        wanted = "gnmi" if fault.kind in _LINK_STATE else "hft"
        if here and wanted in order:
            found[here[0]] = wanted
            order.remove(wanted)
    free = [leaf for leaf in leaves if leaf not in found]
    return found | dict(zip(free, order, strict=False))


def _ends(place: str, topology: FabricTopology) -> set[str]:
    """Return the devices that a place names, and of a port also the one at its other end."""
    names = topology.device_names
    ends = {part.partition("/")[0] for part in place.split(",")}
    if "/" in place:
        ends |= {names[topology.owner[port]] for port in link_of(topology, place).tolist()}
    return ends & set(names)


def untold(frames: dict[str, pl.DataFrame], carried: dict[str, str]) -> dict[str, pl.DataFrame]:
    """Return the rows that no protocol tells, by family, so that each (device, family) has one source."""
    left = {}
    for family, frame in frames.items():
        told = [device for device, protocol in carried.items() if family in TELLS[protocol]]
        rest = frame.filter(~pl.col("device").is_in(told)) if told else frame
        if rest.height:
            left[family] = rest
    return left
