"""The virtual fabric: a cluster's network under training traffic, as a function of its configuration, a seed and time.

A fluid model in steps of 10 us to 1 ms: queue pairs are flows, queues are integers of bytes; ``queues``, ``dcqcn`` and ``schedule`` hold
the behaviour of switches, adapters and jobs. Use steps of at most 50 us where the dynamics of congestion control matter; coarser steps give
the same shares and pauses on average.

The state after a time does not depend on the number of calls of ``advance``: every draw is a function of the seed and of its subject. Bytes
are exact: after every step, for every port and every flow, bytes sent are bytes received, queued or lost.
"""

from dataclasses import dataclass, field

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S
from . import fec
from .dcqcn import Control
from .engine import PACKETS_MAX, Pacing, PortBytes, World, reroute, run
from .faults import FAULTS, FaultPlan, InjectedFault, Tuning
from .queues import Buffers
from .rng import units
from .routing import HOPS_MAX, net_of, route
from .schedule import FLOW_LOG, ITERATION_LOG, Log
from .state import ADAPTER, PACKET_BYTES, WIRE_BYTES, make_order, make_ports, rows
from .topology import FabricTopology, rail_fabric
from .workload import Job, Workload

STEP_NS_MIN, STEP_NS_MAX = 10_000, NS_PER_MS
# Delay of a hop without a queue: switching and some metres of fibre.
HOP_NS = 900
# Size of the series that one call of ``advance`` returns.
SERIES_BYTES_MAX = 2 << 30
# Columns of the ports in a counter sample.
_READ = (
    *("sent", "dropped", "vanished", "broken", "marked", "paused_ns", "pauses", "frames", "depth", "depth_max", "held"),
    *("held_max", "headroom_max"),
)
SEED_DRAW, FEC_DRAW, PROBE_DRAW = 8 << 40, 9 << 40, 10 << 40


@dataclass(frozen=True, slots=True)
class FabricConfig:
    """A fabric and what happens in it. Buffer and marking defaults are those of a 64-port 400G switch, scaled by speed where noted."""

    topology: FabricTopology = field(default_factory=rail_fabric)
    jobs: tuple[Job, ...] = ()
    faults: tuple[InjectedFault, ...] = ()
    start_ns: int = 1_767_225_600 * NS_PER_S  # UTC of the first step
    step_ns: int = 50_000
    sample_ns: int = NS_PER_MS
    counter_ns: int = 100 * NS_PER_MS
    buffer_bytes: int = 64_000_000
    headroom_bytes: int = 400_000  # per ingress, beside the buffer
    buffer_alpha: float = 0.125
    pause_delay_ns: int = 2_000
    hysteresis_bytes: int = 40_000
    # Marking at 400G, scaled for ports of another speed.
    ecn_kmin_bytes: int = 400_000
    ecn_kmax_bytes: int = 1_600_000
    ecn_pmax: float = 0.2
    dcqcn: bool = True
    dcqcn_gain: float = 1 / 256
    dcqcn_notify_ns: int = 50_000
    dcqcn_timer_ns: int = 55_000
    dcqcn_counter_bytes: int = 10_000_000
    dcqcn_rounds: int = 5
    # As shares of the line rate.
    dcqcn_add: float = 1 / 500
    dcqcn_hyper: float = 1 / 100
    dcqcn_least: float = 1 / 1000
    round_trip_ns: int = 8_000
    ack_timeout_ns: int = 16 * NS_PER_MS
    ring_window_bytes: int = 1 << 20  # how far a rank of a ring may send ahead of the data received; at least two steps of line rate
    nvlink_bps: int = 3_600_000_000_000
    bit_error_ratio: float = 1e-8  # before correction, of a healthy link; each link draws its own around it
    clock_skew_ns: int = 200  # of a healthy device, either way
    packet_sampling: int = 100_000  # one packet in this many, 0: none
    probes: int = 64  # pairs of adapters whose latency is measured

    def __post_init__(self) -> None:
        if not STEP_NS_MIN <= self.step_ns <= STEP_NS_MAX:
            raise ValueError(f"step_ns {self.step_ns} is not between {STEP_NS_MIN} and {STEP_NS_MAX}")
        if self.sample_ns % self.step_ns or self.counter_ns % self.sample_ns:
            raise ValueError("sample_ns has to be a multiple of step_ns, counter_ns one of sample_ns")


@dataclass(frozen=True, slots=True)
class FabricCounters:
    """One counter sample of the whole fabric (time in ns since its start): columns over directed ports, adapters and GPUs."""

    at_ns: int
    ports: dict[str, np.ndarray]
    adapters: dict[str, np.ndarray]
    gpus: dict[str, np.ndarray]
    fec_bins: np.ndarray  # (ports, BINS) int64, codewords at the receiving end


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one call of ``advance``. Times are ns since the fabric's start, ports are directed, arrays are int64.

    ``sent``, ``received`` and ``depth`` are (samples, ports): bytes sent in each sample interval, bytes that reached the far end in it,
    bytes queued at its end; the first interval begins at ``first_ns``. ``flows`` has rows (flow, begin, end, bytes); ``iterations`` (job,
    number, begin, end, mean communicating time, slowest member, its wait); ``packets`` (flow, time, number in the flow, chance of a mark in
    2^-40); ``events`` (time, port, 1 = up or 0 = down); ``latency_ns`` is (samples, probes).
    """

    first_ns: int
    until_ns: int
    sent: np.ndarray
    received: np.ndarray
    depth: np.ndarray
    counters: tuple[FabricCounters, ...]
    flows: np.ndarray
    iterations: np.ndarray
    packets: np.ndarray
    packets_left_out: int
    events: np.ndarray
    latency_ns: np.ndarray


class Fabric:
    """A running fabric. The constructor builds the tables and moves no bytes."""

    def __init__(self, config: FabricConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        topology = self.topology = config.topology
        visiting, paths = _visiting(topology, config.faults)
        self.workload = Workload(topology, (*config.jobs, *visiting), seed)
        self.world = self._make_world()
        self._pin({len(config.jobs) + number: path for number, path in paths.items()})
        self.error_ratio = config.bit_error_ratio * (0.5 + units(seed, FEC_DRAW, topology.ports))
        self._codewords = np.zeros((topology.ports, fec.BINS))
        self._codewords_ns = 0
        lots = [units(seed, FEC_DRAW + 1 + bin_, topology.ports) for bin_ in range(fec.BINS)]
        self._fec_offsets = np.stack(lots, axis=1)
        self._chances = np.zeros((topology.ports, fec.BINS))
        self._chances_of = np.full(topology.ports, -1.0)
        self._plan = FaultPlan(config.faults, self._tuning())
        self._was_up = self.world.ports.up.copy()
        self._last = np.zeros((2, topology.ports), np.int64)
        self.probe_pairs, self._probe_paths = self._make_probes()
        self._step = self._due_ns = 0
        self._pacing = Pacing(
            config.step_ns,
            max(config.ring_window_bytes, int(2 * float(topology.speed_bps.max()) / 8 * config.step_ns / NS_PER_S)),
            config.nvlink_bps / 8,
            config.packet_sampling,
            config.sample_ns // config.step_ns,
            seed,
        )

    @property
    def now_ns(self) -> int:
        """Return the fabric's time, in ns since its start."""
        return self._step * self.config.step_ns

    def advance(self, until_ns: int) -> Step:
        """Run to ``until_ns`` since the fabric's start, rounded down to a whole sample interval, and return what happened.

        Raises ``ValueError`` if the series would take more than ``SERIES_BYTES_MAX``.
        """
        config = self.config
        first_ns, last = self.now_ns, until_ns // config.sample_ns * config.sample_ns // config.step_ns
        samples = max(0, last - self._step) * config.step_ns // config.sample_ns
        if 3 * 8 * samples * self.topology.ports > SERIES_BYTES_MAX:
            raise ValueError(f"{samples} samples of {self.topology.ports} ports at once are too many: advance in shorter pieces")
        series = PortBytes(*(np.zeros((samples, self.topology.ports), np.int64) for _ in range(3)))
        parts = _Parts()
        while self._step < last:
            if self.now_ns == self._due_ns:
                self._turn(parts)
            done = (self.now_ns - first_ns) // config.sample_ns
            self._run(min(last, self._due_ns // config.step_ns), PortBytes(*(column[done:] for column in series)), parts)
            if self.now_ns % config.counter_ns == 0:
                parts.counters.append(self._read())
        moved = [np.diff(column, axis=0, prepend=last[None]) for column, last in zip(series, self._last, strict=False)]
        if samples:
            self._last = np.stack([series.sent[-1], series.received[-1]])
        return parts.step(first_ns, self.now_ns, PortBytes(moved[0], moved[1], series.depth), self._latency(series.depth))

    def _turn(self, parts: "_Parts") -> None:
        """Apply the faults of this time, set the next time at which they change, and reroute flows."""
        world, now_ns, step_ns = self.world, self.now_ns, self.config.step_ns
        self._count_codewords()
        if self._plan.apply(now_ns):
            reroute(world, True)
        for port in np.flatnonzero(world.ports.up != self._was_up).tolist():
            parts.events.append((now_ns, port, int(world.ports.up[port])))
        self._was_up = world.ports.up.copy()
        counters = (now_ns // self.config.counter_ns + 1) * self.config.counter_ns
        # A fault acts from the first step that begins at or after its time.
        self._due_ns = min(counters, -(-self._plan.next_edge(now_ns) // step_ns) * step_ns)

    def _run(self, until: int, series: PortBytes, parts: "_Parts") -> None:
        """Run to step ``until``; empty the kernel's log as often as necessary."""
        per_sample, began = self._pacing.sample_steps, self._step
        while self._step < until:
            row = self._step // per_sample - began // per_sample
            self._step = run(self.world, self._step, until, self._pacing, PortBytes(*(column[row:] for column in series)))
            parts.take(self.world)

    def _read(self) -> FabricCounters:
        """Return all counters, and clear the maxima."""
        self._count_codewords()
        world = self.world
        gpus = {name: np.zeros(self.topology.adapters, np.int64) for name in ("busy_ns", "nvlink")}
        for name, column in gpus.items():
            np.add.at(column, world.members.gpu, world.members[name])
        ports = {name: world.ports[name].copy() for name in _READ}
        ports["up"] = world.ports.up.copy()
        for name in ("depth_max", "held_max", "headroom_max"):
            world.ports[name] = 0
        adapters = {name: world.adapters[name].copy() for name in ADAPTER.names or ()}
        bins = (self._codewords + self._fec_offsets).astype(np.int64)
        return FabricCounters(self.now_ns, ports, adapters, gpus, bins)

    def _count_codewords(self) -> None:
        """Count the codewords since the last call, at the error ratios that applied until now."""
        span_ns = self.now_ns - self._codewords_ns
        if span_ns == 0:
            return
        for port in np.flatnonzero(self._chances_of != self.error_ratio).tolist():
            self._chances[port] = fec.chances(self.error_ratio[port])
        self._chances_of = self.error_ratio.copy()
        passed = np.where(self.world.ports.up, fec.codewords(1.0, span_ns) * self.topology.speed_bps, 0.0)
        self._codewords += passed[:, None] * self._chances
        self._codewords_ns = self.now_ns

    def _latency(self, depth: np.ndarray) -> np.ndarray:
        """Return the one-way delay (samples, probes) in ns: a constant per hop and the queues on the path."""
        paths, rate = self._probe_paths, self.world.ports.rate
        delay = np.full((len(depth), len(paths)), 0, np.int64)
        for hop in range(HOPS_MAX):
            there = paths[:, hop] >= 0
            ports = paths[:, hop].clip(min=0)
            waiting = (depth[:, ports] * (NS_PER_S / rate[ports])).astype(np.int64)
            delay += np.where(there, waiting + HOP_NS, 0)
        return delay

    def _make_world(self) -> World:
        config, topology = self.config, self.topology
        work, net = self.workload, net_of(topology)
        ports = make_ports(topology)
        scale = topology.speed_bps / 400e9
        ports.kmin[:], ports.kmax[:] = config.ecn_kmin_bytes * scale, config.ecn_kmax_bytes * scale
        ports.pmax[:] = config.ecn_pmax
        into = [np.flatnonzero(net.peer == device) for device in range(len(topology.tier))]
        start = np.concatenate([[0], np.cumsum([len(ports_in) for ports_in in into])]).astype(np.int64)
        sizes = config.buffer_bytes, config.headroom_bytes, config.buffer_alpha, config.pause_delay_ns, config.hysteresis_bytes
        buffers = Buffers(*sizes, start, np.concatenate(into).astype(np.int64))
        flows = len(work.flows)
        room = max(65_536, 2 * flows)
        iterations = room + len(work.groups)
        log = Log(np.zeros((room, FLOW_LOG), np.int64), np.zeros((iterations, ITERATION_LOG), np.int64), np.zeros(2, np.int64))
        seeds = (units(self.seed, SEED_DRAW, len(topology.tier)) * 2**53).astype(np.int64)
        tables = net, work.flows, ports, rows(ADAPTER, topology.adapters), make_order(flows, topology.ports)
        jobs = work.members, work.programs, work.groups, log
        sampled = np.zeros((PACKETS_MAX, 4), np.int64), np.zeros(2, np.int64)
        return World(*tables, *jobs, buffers, self._control(), seeds, np.arange(topology.adapters), *sampled)

    def _pin(self, paths: dict[int, tuple[int, ...]]) -> None:
        """Pin all flows of some jobs to one path each."""
        flows = self.world.flows
        for job, path in paths.items():
            mine = self.world.members.job[flows.member] == job
            flows.path[mine, : len(path)] = path
            flows.hops[mine] = len(path)
            flows.pinned[mine] = True

    def _control(self) -> Control:
        config = self.config
        line = float(self.topology.speed_bps.max()) / 8 * PACKET_BYTES / WIRE_BYTES
        return Control(
            config.dcqcn,
            config.dcqcn_gain,
            config.dcqcn_notify_ns,
            config.dcqcn_timer_ns,
            config.dcqcn_counter_bytes,
            config.dcqcn_rounds,
            config.dcqcn_add,
            config.dcqcn_hyper,
            config.dcqcn_least * line,
            config.round_trip_ns,
            config.ack_timeout_ns,
        )

    def _tuning(self) -> Tuning:
        world, names = self.world, tuple(job.name for job in self.workload.jobs)
        programs = world.programs
        return Tuning(
            self.topology, world.ports, programs.slow, world.seeds, programs.jobs["queue_pairs"], world.alias, self.error_ratio, names
        )

    def _make_probes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of adapters on different hosts, and their paths in the healthy fabric."""
        topology, world = self.topology, self.world
        lots = (units(self.seed, PROBE_DRAW, 2 * self.config.probes) * topology.adapters).astype(np.int64).reshape(-1, 2)
        pairs = lots[lots[:, 0] // topology.rails != lots[:, 1] // topology.rails]
        paths = np.full((len(pairs), HOPS_MAX), -1, np.int32)
        for path, (source, target) in zip(paths, pairs, strict=True):
            route(world.net, world.ports, world.seeds, source, target, 50_000, False, path)
        return pairs, paths


def _visiting(topology: FabricTopology, faults: tuple[InjectedFault, ...]) -> tuple[list[Job], dict[int, tuple[int, ...]]]:
    """Return the jobs that faults add, and the pinned paths by job number."""
    jobs: list[Job] = []
    paths: dict[int, tuple[int, ...]] = {}
    for number, fault in enumerate(faults):
        kind = FAULTS.get(fault.kind)
        if kind is None or kind.jobs is None:
            continue
        if kind.paths is not None:
            paths |= dict(enumerate(kind.paths(topology, fault), start=len(jobs)))
        jobs += kind.jobs(topology, fault, number)
    return jobs, paths


@dataclass(slots=True)
class _Parts:
    """The results that a call of ``advance`` collects."""

    counters: list[FabricCounters] = field(default_factory=list)
    flows: list[np.ndarray] = field(default_factory=list)
    iterations: list[np.ndarray] = field(default_factory=list)
    packets: list[np.ndarray] = field(default_factory=list)
    left_out: int = 0
    events: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, world: World) -> None:
        """Move the rows of the kernel's logs here."""
        log = world.log
        self.flows.append(log.flow[: log.count[0]].copy())
        self.iterations.append(log.iteration[: log.count[1]].copy())
        self.packets.append(world.packets[: world.sampled[0]].copy())
        self.left_out += int(world.sampled[1])
        log.count[:] = 0
        world.sampled[:] = 0

    def step(self, first_ns: int, until_ns: int, series: PortBytes, latency_ns: np.ndarray) -> Step:
        """Return the collected results."""
        return Step(
            first_ns,
            until_ns,
            *series,
            tuple(self.counters),
            np.concatenate([np.zeros((0, FLOW_LOG), np.int64), *self.flows]),
            np.concatenate([np.zeros((0, ITERATION_LOG), np.int64), *self.iterations]),
            np.concatenate([np.zeros((0, 4), np.int64), *self.packets]),
            self.left_out,
            np.array(self.events, np.int64).reshape(-1, 3),
            latency_ns,
        )
