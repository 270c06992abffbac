"""Faults: one line per kind in ``FAULTS``.

A fault of the fabric changes parameters of the model, a fault of the telemetry changes what is exported. Whenever a fault begins or ends,
and at each poll of the counters, all active faults are applied to the configured parameters, so that they combine and leave nothing behind.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...pipeline.clock import NS_PER_MS
from . import fec
from .state import WIRE_BYTES
from .topology import HOST, FabricTopology
from .workload import Job, Phase


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault: kind, place, time since the fabric's start, and severity (0..1); ``FAULTS`` has each kind's places and ranges."""

    kind: str
    place: str = ""
    begin_ns: int = 0
    duration_ns: int = 2**62
    severity: float = 0.5

    @property
    def end_ns(self) -> int:
        return self.begin_ns + self.duration_ns


class Tuning(NamedTuple):
    """The parameters that faults change: the model's own arrays, by port, adapter, device or job."""

    topology: FabricTopology
    ports: np.recarray  # rows of ``state.PORT``
    slow: np.ndarray
    seeds: np.ndarray
    queue_pairs: np.ndarray
    alias: np.ndarray
    error_ratio: np.ndarray  # bit errors before correction, by port
    job_names: tuple[str, ...]

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns that faults change, by name."""
        ports = {name: self.ports[name] for name in ("limit", "sink", "up", "lossless", "loss", "seen", "kmin", "kmax")}
        return ports | {name: getattr(self, name) for name in ("slow", "seeds", "queue_pairs", "alias", "error_ratio")}


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One line of ``FAULTS``: description, kind of place, and effect."""

    doc: str
    place: str  # what it names: an adapter or link as ``device/port``, a switch, a job, a device, two leaves, or nothing
    apply: Callable[[Tuning, InjectedFault, int], None] | None = None
    jobs: Callable[[FabricTopology, InjectedFault, int], tuple[Job, ...]] | None = None
    # The paths to which the flows of these jobs are pinned.
    paths: Callable[[FabricTopology, InjectedFault], tuple[tuple[int, ...], ...]] | None = None
    on_export: bool = False
    # The period at which an active fault changes.
    period_ns: Callable[[InjectedFault], int] | None = None


def adapter_of(topology: FabricTopology, place: str) -> int:
    """Return the adapter named ``host/port``. Raises ``ValueError`` if there is none."""
    device, _, port = place.partition("/")
    return topology.port_of(device, port) // 2


def link_of(topology: FabricTopology, place: str) -> np.ndarray:
    """Return both directed ports of the link at ``device/port``."""
    device, _, port = place.partition("/")
    number = topology.port_of(device, port)
    return np.array([number, number ^ 1])


def wrong(topology: FabricTopology, kind: str, place: str) -> tuple[str, str] | None:
    """Return the problem with a kind of fault and a place, and a hint; ``None`` if they are valid."""
    if kind not in FAULTS:
        return f"there is no fault {kind!r}", _nearest(kind, list(FAULTS))
    what, names = FAULTS[kind].place, list(topology.device_names)
    if what in ("", "job") or not place:
        return None
    for part in place.split(","):
        device, slash, port = part.partition("/")
        if device not in names:
            return f"there is no device {device!r}", _nearest(device, names)
        if what == "adapter" and topology.tier[names.index(device)] != HOST:
            return f"{device} is no host", "name an adapter as device/port"
        if what in ("adapter", "link") and not slash:
            return f"{part!r} names no port", f"write the port behind the device: {device}/..."
        if slash:
            try:
                topology.port_of(device, port)
            except ValueError as error:
                return str(error), "name one of its ports, such as mlx5_0 of a host or Ethernet0 of a switch"
    return None


def _nearest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(words[:20])}"


def _slow_adapter(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    adapter = adapter_of(on.topology, fault.place)
    on.ports.limit[2 * adapter] *= 1 - fault.severity
    on.ports.sink[2 * adapter + 1] *= 1 - fault.severity


def _pause_storm(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    on.ports.sink[2 * adapter_of(on.topology, fault.place) + 1] *= 1 - fault.severity


def _dirty_fibre(on: Tuning, fault: InjectedFault, now_ns: int) -> None:
    """Double the bit error ratio with each eighth of the fault's duration, up to ``severity``."""
    age = min(1.0, (now_ns - fault.begin_ns) / max(1, fault.duration_ns))
    steps = 8 - int(8 * age)
    for port in link_of(on.topology, fault.place).tolist():
        # Division rounds alike on all machines, a power need not.
        ratio = fault.severity
        for _ in range(steps - 1):
            ratio /= 2
        on.error_ratio[port] = max(on.error_ratio[port], ratio)


def _flap(on: Tuning, fault: InjectedFault, now_ns: int) -> None:
    if (now_ns - fault.begin_ns) // _flap_period(fault) % 2 == 0:
        on.ports.up[link_of(on.topology, fault.place)] = False


def _flap_period(fault: InjectedFault) -> int:
    """Return how long the link is down, and then up: 100 ms at severity 1, 200 ms at 0.5."""
    return int(100 * NS_PER_MS / max(fault.severity, 0.01))


def _rail_down(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    """Take an adapter's link down; the next rail of its host sends and receives instead."""
    adapter = adapter_of(on.topology, fault.place)
    on.ports.up[2 * adapter : 2 * adapter + 2] = False
    host, rail = divmod(adapter, on.topology.rails)
    on.alias[adapter] = host * on.topology.rails + (rail + 1) % on.topology.rails


def _polarise(on: Tuning, _fault: InjectedFault, _now_ns: int) -> None:
    on.seeds[:] = on.seeds[0]


def _few_queue_pairs(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    on.queue_pairs[_jobs(on, fault.place)] = 1


def _jobs(on: Tuning, place: str) -> np.ndarray:
    named = np.array([place in ("", name) for name in on.job_names])
    if not named.any():
        raise ValueError(f"no job is called {place}")
    return np.flatnonzero(named)


def _marking(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    """Multiply Kmin and Kmax of a switch (all, without a place) by 1 + 1000 x severity: ports are paused before anything is marked."""
    ports = _owned(on.topology, fault.place)
    on.ports.kmin[ports] = on.ports.kmin[ports] * int(1 + 1000 * fault.severity)
    on.ports.kmax[ports] = on.ports.kmax[ports] * int(1 + 1000 * fault.severity)


def _owned(topology: FabricTopology, place: str) -> np.ndarray:
    if not place:
        return np.arange(topology.ports)
    return np.flatnonzero(topology.owner == topology.device_names.index(place))


def _no_pause(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    """Disable pauses by a switch, or on one link only."""
    if "/" in fault.place:
        on.ports.lossless[link_of(on.topology, fault.place)[1]] = False
    else:
        on.ports.lossless[_owned(on.topology, fault.place) ^ 1] = False


def _slow_gpu(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    on.slow[adapter_of(on.topology, fault.place)] *= 1 + fault.severity


def _silent_loss(on: Tuning, fault: InjectedFault, _now_ns: int) -> None:
    ports = link_of(on.topology, fault.place)
    on.ports.loss[ports] += fault.severity
    on.ports.seen[ports] = False


def _incast(topology: FabricTopology, fault: InjectedFault, number: int) -> tuple[Job, ...]:
    """Return a job in which all other hosts send to one adapter at once, 1 to 32 MB each, every 20 ms."""
    target = adapter_of(topology, fault.place)
    rail = target % topology.rails
    hosts = tuple(host for host in range(topology.gpus // topology.rails) if host != target // topology.rails)
    size = int(1_000_000 + 31_000_000 * fault.severity)
    phase = Phase(20 * NS_PER_MS, "incast", "all", size)
    return (_visitor(f"incast-{number}", fault, hosts, phase, rails=(rail,), target=target, jitter=0.0),)


def _neighbour(topology: FabricTopology, fault: InjectedFault, number: int) -> tuple[Job, ...]:
    """Return a second job on up to four hosts, which all-reduces up to 2 GB every 50 ms."""
    first = topology.device_names.index(fault.place) if fault.place else 0
    count = topology.gpus // topology.rails
    hosts = tuple(sorted({(first + k * max(1, count // 4)) % count for k in range(4)}))
    phase = Phase(50 * NS_PER_MS, "allreduce", "rail", int(2_000_000_000 * fault.severity / 8))
    return (_visitor(f"neighbour-{number}", fault, hosts, phase),)


def _cycle_ends(topology: FabricTopology, fault: InjectedFault) -> tuple[list[int], list[int]]:
    """Return two adapters on each of two leaves, named with a comma between."""
    leaves = [topology.device_names.index(name) for name in fault.place.split(",")]
    found = [np.flatnonzero(topology.leaf[: topology.gpus] == leaf).tolist() for leaf in leaves]
    if len(found) != 2 or min(map(len, found)) < 2:
        raise ValueError(f"{fault.kind}: {fault.place!r} is not two leaves with two adapters each")
    return found[0][:2], found[1][:2]


def _cycle_jobs(topology: FabricTopology, fault: InjectedFault, number: int) -> tuple[Job, ...]:
    phase = Phase(0, "incast", "self", int(1_000_000_000 * fault.severity))
    made = []
    for letter, (source, target) in zip("ab", _cycle_ends(topology, fault), strict=True):
        host, rail = divmod(source, topology.rails)
        made.append(_visitor(f"cycle-{number}-{letter}", fault, (host,), phase, rails=(rail,), queue_pairs=1, jitter=0.0, target=target))
    return tuple(made)


def _cycle_paths(topology: FabricTopology, fault: InjectedFault) -> tuple[tuple[int, ...], ...]:
    """Return two paths that go up a second time, as misconfigured routes do: leaf a, spine, leaf b, other spine, leaf a; likewise from b.

    The ingress of each of the four switches then waits for the next one in the ring.
    """
    ends = _cycle_ends(topology, fault)
    a, b = (int(topology.leaf[pair[0]]) for pair in ends)
    above = [np.flatnonzero((topology.owner == leaf) & (topology.stage == 1)) for leaf in (a, b)]
    spines = [sorted(set(topology.peer[ports].tolist())) for ports in above]
    if len(spines[0]) < 2 or spines[0] != spines[1]:
        raise ValueError(f"{fault.kind}: {fault.place!r} have no two spines in common")
    first, second = spines[0][:2]
    up = {leaf: {int(topology.peer[port]): int(port) for port in ports} for leaf, ports in zip((a, b), above, strict=True)}
    ring = (up[a][first], up[b][first] ^ 1, up[b][second], up[a][second] ^ 1)
    around = (ring, ring[2:] + ring[:2])
    return tuple((2 * source, *way, 2 * target + 1) for (source, target), way in zip(ends, around, strict=True))


def _visitor(name: str, fault: InjectedFault, hosts: tuple[int, ...], phase: Phase, **more) -> Job:
    return Job(name, hosts, (phase,), start_ns=fault.begin_ns, stop_ns=fault.end_ns, **more)


FAULTS: dict[str, FaultKind] = {
    "slow_nic": FaultKind("an adapter, or the bus behind it, is slower by the severity, in both directions", "adapter", _slow_adapter),
    "pause_storm": FaultKind("a host accepts less by the severity (at 1 nothing) and pauses its leaf", "adapter", _pause_storm),
    "dirty_fibre": FaultKind("a link's bit error ratio doubles step by step up to the severity", "link", _dirty_fibre),
    "link_flap": FaultKind("a link goes down and comes back, faster with the severity", "link", _flap, period_ns=_flap_period),
    "rail_down": FaultKind("an adapter's link is dead, the next rail takes over", "adapter", _rail_down),
    "hash_polarization": FaultKind("all switches hash with one seed", "", _polarise),
    "few_qps": FaultKind("connections of a job use one queue pair", "job", _few_queue_pairs),
    "incast": FaultKind("all hosts send to one adapter at once, repeatedly", "adapter", jobs=_incast),
    "ecn_thresholds": FaultKind("marking begins too late: ports are paused first", "switch", _marking),
    "pfc_off": FaultKind("a switch, or the far end of one link, drops instead of pausing its senders", "switch", _no_pause),
    "cyclic_buffers": FaultKind(
        "misrouted flows make four switches wait for each other", "two leaves", jobs=_cycle_jobs, paths=_cycle_paths
    ),
    "slow_gpu": FaultKind("a GPU computes longer by the severity", "adapter", _slow_gpu),
    "noisy_neighbour": FaultKind("another job shares hosts and links", "device", jobs=_neighbour),
    "silent_loss": FaultKind("a link loses a share of packets (the severity), and no counter shows it", "link", _silent_loss),
    "frozen_counter": FaultKind("a device's counters keep their value", "device", on_export=True),
    "counter_reset": FaultKind("a device's counters start again from zero", "device", on_export=True),
    "lossy_collector": FaultKind("a share of a device's samples is lost", "device", on_export=True),
    "late_collector": FaultKind("a device's samples are received late, by the severity in seconds", "device", on_export=True),
    "skewed_clock": FaultKind("a device's clock is ahead, by the severity in milliseconds", "device", on_export=True),
}


class FaultPlan:
    """The faults of a run, applied to the configured fabric."""

    def __init__(self, faults: tuple[InjectedFault, ...], tuning: Tuning) -> None:
        for fault in faults:
            if fault.kind not in FAULTS:
                raise ValueError(f"there is no fault {fault.kind}; there are {', '.join(FAULTS)}")
        self.faults = tuple(fault for fault in faults if not FAULTS[fault.kind].on_export)
        self._tuning = tuning
        self._base = {name: column.copy() for name, column in tuning.columns().items()}

    def next_edge(self, now_ns: int) -> int:
        """Return the first time after ``now_ns`` at which a fault begins, changes or ends."""
        edges = [2**62]
        for fault in self.faults:
            edges += [edge for edge in (fault.begin_ns, fault.end_ns) if edge > now_ns]
            period = FAULTS[fault.kind].period_ns
            if period is not None and fault.begin_ns <= now_ns < fault.end_ns:
                edges.append(now_ns + period(fault) - (now_ns - fault.begin_ns) % period(fault))
        return min(edges)

    def apply(self, now_ns: int) -> bool:
        """Apply the faults that are active at this time; return whether flows have to be rerouted."""
        columns = self._tuning.columns()
        before = {name: columns[name].copy() for name in ("up", "seeds", "alias")}
        for name, column in self._base.items():
            columns[name][:] = column
        for fault in self.faults:
            act = FAULTS[fault.kind].apply
            if act is not None and fault.begin_ns <= now_ns < fault.end_ns:
                act(self._tuning, fault, now_ns)
        _fibre_loss(self._tuning)
        return any((columns[name] != column).any() for name, column in before.items())


def _fibre_loss(on: Tuning) -> None:
    """Turn uncorrectable bit errors into lost packets, which the receiver counts as errors."""
    for port in np.flatnonzero(on.error_ratio > 1e-5).tolist():
        chance = fec.packet_loss(float(on.error_ratio[port]), WIRE_BYTES)
        if chance > on.ports.loss[port]:
            on.ports.loss[port], on.ports.seen[port] = chance, True
