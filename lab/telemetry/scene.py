"""The scene of a live fabric: layout, jobs, faults with their places, and the protocol that carries each switch.

A scene is a function of a scale, a number of jobs, the requested faults and a seed, so it can be repeated.
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
# From here on layouts have whole racks; smaller ones have racks of two hosts.
SIZED_GPUS = 192
GPUS_MAX = 4096
# Up to this many ports, half a core can compute steps of 100 us in real time.
FINE_PORTS_MAX = 600


def _rail(gpus: int = 64) -> FabricTopology:
    racks, hosts = (gpus // 16, 2) if gpus >= 32 else (2, 1)
    return rail_fabric(racks, hosts, HOST_GPUS, racks_per_pod=max(1, racks // 2), spines=max(2, racks // 2 * hosts), parallel=1, storage=0)


def _clos() -> FabricTopology:
    return clos([("a", f"p{pod}", f"l{leaf}") for pod in range(2) for leaf in range(2) for _ in range(4)])


LAYOUTS: dict[str, Callable[[], FabricTopology]] = {"toy": toy, "rail": _rail, "clos": _clos}


def layout(scale: str) -> FabricTopology:
    """Return the layout of a name in ``LAYOUTS`` or of a number of GPUs. Raises ``ConfigError``."""
    if scale in LAYOUTS:
        return LAYOUTS[scale]()
    gpus = int(scale) if scale.isdigit() else 0
    if not 16 <= gpus <= GPUS_MAX or gpus % 16 or (gpus >= SIZED_GPUS and gpus % 64):
        names = ", ".join(LAYOUTS)
        hint = f"give a multiple of 16 up to 176, of 64 up to {GPUS_MAX}, or one of {names}"
        raise ConfigError("--scale", f"{scale!r} is neither a layout nor a number of GPUs that fills racks", hint)
    return sized(gpus) if gpus >= SIZED_GPUS else _rail(gpus)


def step_ns(topology: FabricTopology) -> int:
    """Return the step with which a layout runs in real time."""
    return 100_000 if topology.ports <= FINE_PORTS_MAX else 1_000_000


def jobs(topology: FabricTopology, count: int) -> tuple[Job, ...]:
    """Return ``count`` jobs on equal shares of the hosts, each spread over all pods; training and plain data parallelism in turn.

    Raises ``ConfigError`` if there are fewer than two hosts per job.
    """
    hosts = topology.gpus // topology.rails
    if not 1 <= count <= hosts // 2:
        raise ConfigError("--jobs", f"{count} jobs do not fit on {hosts} hosts", f"give 1 to {hosts // 2}")
    # Neighbours in a job are under different leaves, so that collectives cross the spines.
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


# A mixture of experts with long computing: two iterations per second, visible on a chart, and some thousand bursts, fine for a store.
_EXPERTS = Phase(110 * NS_PER_MS, "alltoall", "block", 600_000_000)
_TRAINING = (
    *(_EXPERTS,) * 3,
    Phase(55 * NS_PER_MS, "reducescatter", "rail", 2_000_000_000),
    Phase(27 * NS_PER_MS, "allgather", "rail", 1_000_000_000),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Severity of a fault in a scene, in the units of ``FAULTS``, and duration (0: to the end)."""

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
# Faults of a switch's telemetry, and one that needs the same clock at both ends of a link: no protocol carries their switches.
APART = ("frozen_counter", "counter_reset", "lossy_collector", "late_collector", "skewed_clock", "silent_loss")
# gNMI reports whether a link is up, SAI's statistics do not.
_LINK_STATE = ("link_flap", "rail_down")


def place_faults(
    requested: Sequence[str], topology: FabricTopology, seed: int, onset_s: float, apart_s: float
) -> tuple[InjectedFault, ...]:
    """Return the faults requested as ``kind`` or ``kind@place``, one beginning after the other; a missing place is drawn at random.

    Raises ``ConfigError`` for an unknown kind or place.
    """
    made = []
    for number, text in enumerate(requested):
        kind, _, place = text.partition("@")
        if problem := wrong(topology, kind, place):
            raise ConfigError(f"--fault {text}", *problem)
        place = place or _drawn(kind, topology, np.random.default_rng([seed, number]))
        shown = SHOWN.get(kind, Shown())
        begin_ns = int((onset_s + number * apart_s) * NS_PER_S)
        made.append(InjectedFault(kind, place, begin_ns, shown.duration_s * NS_PER_S or 2**62, shown.severity))
    return tuple(made)


def _drawn(kind: str, topology: FabricTopology, lots: np.random.Generator) -> str:
    """Return a random place for a kind of fault; empty if it has none."""
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


# The families that each protocol carries; the lab publishes the others as rows.
CARRIED: dict[str, tuple[str, ...]] = {
    "hft": ("burst_sample", "port", "queue"),
    "gnmi": ("port", "queue"),
    "otlp": ("burst_sample", "port", "queue"),
    "sflow": ("port", "packet"),
}


def carriers(topology: FabricTopology, faults: Sequence[InjectedFault], protocols: Sequence[str] = tuple(CARRIED)) -> dict[str, str]:
    """Return the protocol of each carried leaf: one leaf per protocol, leaves with a fault first."""
    names = topology.device_names
    apart = {device for fault in faults if fault.kind in APART for device in _ends(fault.place, topology)}
    leaves = [name for name, tier in zip(names, topology.tier.tolist(), strict=True) if tier == LEAF and name not in apart]
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
    """Return the devices that a place names; for a port also the device at its other end."""
    names = topology.device_names
    ends = {part.partition("/")[0] for part in place.split(",")}
    if "/" in place:
        ends |= {names[topology.owner[port]] for port in link_of(topology, place).tolist()}
    return ends & set(names)


def uncarried(frames: dict[str, pl.DataFrame], carried: dict[str, str]) -> dict[str, pl.DataFrame]:
    """Return the rows that no protocol carries, by family, so that each (device, family) has one source."""
    left = {}
    for family, frame in frames.items():
        devices = [device for device, protocol in carried.items() if family in CARRIED[protocol]]
        rest = frame.filter(~pl.col("device").is_in(devices)) if devices else frame
        if rest.height:
            left[family] = rest
    return left
