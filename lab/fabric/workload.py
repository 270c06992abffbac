"""Jobs as phases of computing and collectives, and the flows that these make on the network.

A collective of S bytes per rank over n ranks sends, per rank: ring all-reduce 2 (n-1)/n S, all-gather and reduce-scatter (n-1)/n S,
all-to-all S/n to each [NCCL tests, PERFORMANCE]. A ring over whole hosts is one ring per rail, each with its share of S; it uses the rail's
adapter between hosts and NVLink inside a host. An all-to-all goes over NVLink to the GPU on the receiver's rail and then over the network,
so a rail's flow between two hosts carries what all GPUs of one host send to one GPU of the other. A tree all-reduce is two binary trees,
each with half of S up and down every edge.

``training`` has the proportions of published mixture-of-experts runs: per layer 3.5 ms of attention and 8 ms of expert computing forward
and as much backward, two all-to-alls of 100 MB each way, and a reduce-scatter of 5.6 GB and an all-gather of 2.8 GB per 192 layers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from .rng import units
from .schedule import COMPUTING, GROUP, JOB, KIND, MEMBER, PHASE, Programs
from .state import PACKET_BYTES, PAYLOAD_BYTES, make_flows, rows
from .topology import FabricTopology

NEVER_NS = 2**62
PHASES_MAX = 4096
FLOWS_MAX = 4_000_000


@dataclass(frozen=True, slots=True)
class Phase:
    """Computing, then a collective of ``payload_bytes`` per rank ``over`` a group, in every ``every``-th iteration."""

    compute_ns: int
    collective: str = ""  # empty: none
    over: str = "all"
    payload_bytes: int = 0
    every: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """A job on whole hosts or on some of their rails; times are ns since the fabric's start."""

    name: str
    hosts: tuple[int, ...]
    phases: tuple[Phase, ...]
    rails: tuple[int, ...] | None = None  # None: all
    stages: int = 1  # of the pipeline: equal parts of the hosts, in order
    block: int = 1  # hosts that share their experts
    queue_pairs: int = 4  # per connection
    jitter: float = 0.01  # relative, of the computing times, either way
    adaptive: bool = False
    synchronous: bool = True
    start_ns: int = 0
    stop_ns: int = NEVER_NS
    target: int | None = None  # destination adapter of an incast


@dataclass(slots=True)
class _MemberGroup:
    """Members of a group as (index of the host in the job, rail, member)."""

    members: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def hosts(self) -> list[int]:
        return sorted({host for host, _, _ in self.members})

    @property
    def rails(self) -> list[int]:
        return sorted({rail for _, rail, _ in self.members})


Edge = tuple[int, int, int]  # sending member, receiving member, edge whose bytes it forwards or -1


def _ring(group: _MemberGroup) -> Iterator[Edge]:
    at = {(host, rail): member for host, rail, member in group.members}
    hosts, edges = group.hosts, 0
    for rail in group.rails:
        for place, host in enumerate(hosts if len(hosts) > 1 else ()):
            yield at[host, rail], at[hosts[(place + 1) % len(hosts)], rail], edges + (place - 1) % len(hosts)
        edges += len(hosts)


def _pairs(group: _MemberGroup) -> Iterator[Edge]:
    at = {(host, rail): member for host, rail, member in group.members}
    for rail in group.rails:
        for sender in group.hosts:
            for receiver in group.hosts:
                if sender != receiver:
                    yield at[sender, rail], at[receiver, rail], -1


def _trees(group: _MemberGroup) -> Iterator[Edge]:
    at = {(host, rail): member for host, rail, member in group.members}
    hosts = group.hosts
    for rail in group.rails:
        for shift in (0, 1):
            order = [hosts[(place + shift) % len(hosts)] for place in range(len(hosts))]
            for place in range(1, len(order)):
                child, parent = at[order[place], rail], at[order[(place - 1) // 2], rail]
                yield child, parent, -1
                yield parent, child, -1


def _next(group: _MemberGroup) -> Iterator[Edge]:
    members = [member for _, _, member in group.members]
    if len(members) > 1:
        yield from ((member, members[(place + 1) % len(members)], -1) for place, member in enumerate(members))


def _ring_share(times: int) -> Callable[[int, int, int], Fraction]:
    return lambda n, rails, _hosts: Fraction(times * (n - 1), n * rails)


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective: its edges, and the share of S on each edge and on each rank's NVLink as functions of (n, rails, hosts)."""

    edges: Callable[[_MemberGroup], Iterator[Edge]]
    edge_share: Callable[[int, int, int], Fraction]
    nvlink_share: Callable[[int, int, int], Fraction]


def _inside(times: int) -> Callable[[int, int, int], Fraction]:
    return lambda n, rails, _hosts: Fraction(times * (n - 1) * (rails - 1), n * rails)


def _whole(_n: int, _rails: int, _hosts: int) -> Fraction:
    return Fraction(1)


def _nothing(_n: int, _rails: int, _hosts: int) -> Fraction:
    return Fraction(0)


def _no_edges(_group: _MemberGroup) -> Iterator[Edge]:
    yield from ()


# The edges of these come from the job, since they leave the group.
_OUTWARD = Collective(_no_edges, _whole, _nothing)
COLLECTIVES = {
    "allreduce": Collective(_ring, _ring_share(2), _inside(2)),
    "allreduce_tree": Collective(_trees, lambda _n, rails, _hosts: Fraction(1, 2 * rails), _inside(2)),
    "allgather": Collective(_ring, _ring_share(1), _inside(1)),
    "reducescatter": Collective(_ring, _ring_share(1), _inside(1)),
    "alltoall": Collective(_pairs, lambda n, rails, _h: Fraction(rails, n), lambda n, rails, hosts: Fraction((rails - 1) * hosts, n)),
    "send": Collective(_next, _whole, _nothing),
    **dict.fromkeys(("store", "incast", "request"), _OUTWARD),
    "barrier": Collective(_no_edges, _nothing, _nothing),
}

# The key of a member's group, by (index of the host, rail, hosts per stage, hosts per block).
OVER: dict[str, Callable[[int, int, int, int], tuple[int, ...]]] = {
    "host": lambda host, _rail, _stage, _block: (host,),
    "rail": lambda host, rail, stage, _block: (host // stage, rail),
    "block": lambda host, _rail, stage, block: (host // stage, host % stage // block),
    "stage": lambda host, _rail, stage, _block: (host // stage,),
    "column": lambda host, rail, stage, _block: (host % stage, rail),
    "all": lambda _host, _rail, _stage, _block: (),
    "self": lambda host, rail, _stage, _block: (host, rail),
}
# Possible receivers of a member's requests.
PEERS = 8


class Workload:
    """All jobs as tables; at first ``flows`` are at rest and ``members`` compute."""

    def __init__(self, topology: FabricTopology, jobs: Sequence[Job], seed: int) -> None:
        self._topology, self._seed = topology, seed
        self.jobs = tuple(jobs)
        self._edges: list[tuple[int, int, int, int]] = []  # sender, receiver member, receiver adapter, edge ahead
        self._queue_pairs: list[int] = []
        self._group_members: list[list[int]] = []
        self._members: list[tuple[int, int]] = []  # job, gpu
        self._kinds: dict[tuple[int, str, str], int] = {}
        self._group_of: list[dict[int, int]] = []
        self._edges_of: list[dict[int, list[int]]] = []
        phases: list[tuple[int, int, int, int, int]] = []
        starts = [0]
        for number, job in enumerate(self.jobs):
            phases += self._job(number, job)
            starts.append(len(phases))
        self.flows, first_flow = self._make_flows()
        self.members = self._make_members(starts)
        self.groups = self._make_groups()
        self.programs = self._make_programs(np.array(phases, np.int64).reshape(-1, 5), starts, first_flow)
        self.members.ready_ns[:] = self.members.since_ns + self.programs.phases.compute_ns[self.members.phase]

    def _job(self, number: int, job: Job) -> list[tuple[int, int, int, int, int]]:
        """Add a job's members and groups; return its phases as rows (compute ns, kind, flow bytes, NVLink bytes, every)."""
        rails = job.rails or tuple(range(self._topology.rails))
        stage = len(job.hosts) // job.stages
        if not job.hosts or not job.phases or stage * job.stages != len(job.hosts) or stage % job.block or len(job.phases) >= PHASES_MAX:
            raise ValueError(f"job {job.name}: its hosts do not divide into its stages and blocks, or it has no phases")
        places = []
        for place, host in enumerate(job.hosts):
            for rail in rails:
                places.append((place, rail, len(self._members)))
                self._members.append((number, host * self._topology.rails + rail))
        rows = []
        for phase in (*job.phases, *((Phase(0, "barrier"),) if job.synchronous else ())):
            if not phase.collective:
                rows.append((phase.compute_ns, -1, 0, 0, phase.every))
                continue
            kind, n, used, hosts = self._kind(number, job, phase, places, stage)
            how = COLLECTIVES[phase.collective]
            payload = -(-phase.payload_bytes * how.edge_share(n, used, hosts).numerator // how.edge_share(n, used, hosts).denominator)
            inside = int(phase.payload_bytes * how.nvlink_share(n, used, hosts))
            rows.append((phase.compute_ns, kind, -(-payload * PACKET_BYTES // PAYLOAD_BYTES), inside, phase.every))
        return rows

    def _kind(self, number: int, job: Job, phase: Phase, places: list[tuple[int, int, int]], stage: int) -> tuple[int, int, int, int]:
        """Return the kind of a phase's groups, and the numbers of members, rails and hosts in a group."""
        groups: dict[tuple[int, ...], _MemberGroup] = defaultdict(_MemberGroup)
        for place, rail, member in places:
            groups[OVER[phase.over](place, rail, stage, job.block)].members.append((place, rail, member))
        shapes = {(len(group.members), len(group.rails), len(group.hosts)) for group in groups.values()}
        if len(shapes) > 1:
            raise ValueError(f"job {job.name}: groups over {phase.over} differ in size")
        # All-reduce, all-gather and reduce-scatter run on the same connections.
        same = {"allgather": "allreduce", "reducescatter": "allreduce"}.get(phase.collective, phase.collective)
        key = (number, same, phase.over)
        if key not in self._kinds:
            self._kinds[key] = len(self._group_of)
            self._enter(job, same, groups, places)
        return (self._kinds[key], *shapes.pop())

    def _enter(self, job: Job, collective: str, groups: dict[tuple[int, ...], _MemberGroup], places: list[tuple[int, int, int]]) -> None:
        group_of: dict[int, int] = {}
        edges_of: dict[int, list[int]] = defaultdict(list)
        for group in groups.values():
            for _, _, member in group.members:
                group_of[member] = len(self._group_members)
            self._group_members.append([member for _, _, member in group.members])
            base = len(self._edges)
            for sender, receiver, ahead in COLLECTIVES[collective].edges(group):
                edges_of[sender].append(len(self._edges))
                self._edges.append((sender, receiver, -1, base + ahead if ahead >= 0 else -1))
        for _, _, member in places:
            for adapter, receiver in self._outward(job, collective, member, places):
                edges_of[member].append(len(self._edges))
                self._edges.append((member, receiver, adapter, -1))
        self._queue_pairs += [job.queue_pairs] * (len(self._edges) - len(self._queue_pairs))
        self._group_of.append(group_of)
        self._edges_of.append(edges_of)

    def _outward(self, job: Job, collective: str, member: int, places: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
        """Return the (adapter, member or -1) pairs to which a member of a store, incast or request collective sends."""
        topology, gpu = self._topology, self._members[member][1]
        if collective == "store":
            stores = topology.adapters // topology.rails - topology.gpus // topology.rails
            if not stores:
                raise ValueError(f"job {job.name}: the fabric has no storage hosts")
            host = topology.gpus // topology.rails + gpu // topology.rails % stores
            return [(host * topology.rails + gpu % topology.rails, -1)]
        if collective == "incast":
            if job.target is None:
                raise ValueError(f"job {job.name}: an incast has a target")
            return [(job.target, -1)]
        if collective == "request":
            others = [other for _, _, other in places if self._members[other][1] // topology.rails != gpu // topology.rails]
            lots = units(self._seed, (5 << 40) + member, PEERS)
            return [(-1, others[int(lot * len(others))]) for lot in lots] if others else []
        return []

    def _make_flows(self) -> tuple[np.recarray, np.ndarray]:
        pairs = np.array(self._queue_pairs, np.int64)
        first = np.concatenate([[0], np.cumsum(pairs)])
        if first[-1] > FLOWS_MAX:
            raise ValueError(f"{first[-1]} flows, more than {FLOWS_MAX}")
        flows = make_flows(int(first[-1]))
        edges = np.array(self._edges, np.int64).reshape(-1, 4)
        gpu = np.array([gpu for _, gpu in self._members], np.int64)
        edge = np.repeat(np.arange(len(pairs)), pairs)
        flows.ordinal[:] = np.arange(len(edge)) - first[edge]
        flows.member[:], flows.other[:] = edges[edge, 0], edges[edge, 1]
        flows.source[:] = gpu[flows.member]
        flows.target[:] = np.where(edges[edge, 2] >= 0, edges[edge, 2], gpu[np.maximum(flows.other, 0)])
        ahead = edges[edge, 3]
        flows.ahead[:] = np.where(ahead >= 0, first[np.maximum(ahead, 0)] + flows.ordinal, -1)
        flows.entropy[:] = 49_152 + (units(self._seed, 6 << 40, len(edge)) * 16_384).astype(np.int64)
        flows.queue_pair[:] = 0x100 + np.arange(len(edge)) % (2**24 - 0x100)
        return flows, first

    def _make_members(self, starts: list[int]) -> np.recarray:
        members = rows(MEMBER, len(self._members))
        members.job[:] = [job for job, _ in self._members]
        members.gpu[:] = [gpu for _, gpu in self._members]
        members.state[:] = COMPUTING
        members.phase[:] = np.array(starts[:-1], np.int64)[members.job]
        members.group[:] = -1
        members.since_ns[:] = np.array([job.start_ns for job in self.jobs], np.int64)[members.job]
        return members

    def _make_groups(self) -> np.recarray:
        groups = rows(GROUP, len(self._group_members))
        groups.last[:] = np.cumsum([len(members) for members in self._group_members])
        groups.first[1:] = groups.last[:-1]
        return groups

    def _make_programs(self, phases: np.ndarray, starts: list[int], first_flow: np.ndarray) -> Programs:
        members, kinds = len(self._members), len(self._group_of)
        group_of = np.full((kinds, members), -1, np.int64)
        flow_start = np.zeros((kinds, members + 1), np.int64)
        index: list[np.ndarray] = [np.zeros(0, np.int64)]
        total = 0
        for kind in range(kinds):
            for member, group in self._group_of[kind].items():
                group_of[kind, member] = group
            for member in range(members):
                flow_start[kind, member] = total
                for edge in self._edges_of[kind].get(member, ()):
                    index.append(np.arange(first_flow[edge], first_flow[edge + 1]))
                    total += len(index[-1])
            flow_start[kind, members] = total
        of_member = np.array([member for group in self._group_members for member in group], np.int64)
        tables = self._phase_rows(phases), self._job_rows(starts), self._kind_rows()
        return Programs(*tables, group_of, of_member, flow_start, np.concatenate(index), np.ones(self._topology.adapters))

    def _phase_rows(self, phases: np.ndarray) -> np.recarray:
        made = rows(PHASE, len(phases))
        for name, column in zip(("compute_ns", "kind", "flow_bytes", "nvlink_bytes", "every"), phases.T, strict=True):
            made[name] = column
        return made

    def _job_rows(self, starts: list[int]) -> np.recarray:
        made = rows(JOB, len(self.jobs))
        made.first[:], made.last[:] = starts[:-1], starts[1:]
        made.begun_ns[:] = [job.start_ns for job in self.jobs]
        for name in ("stop_ns", "queue_pairs", "jitter", "synchronous", "adaptive"):
            made[name] = [getattr(job, name) for job in self.jobs]
        return made

    def _kind_rows(self) -> np.recarray:
        made = rows(KIND, len(self._group_of))
        for (job, collective, _), kind in self._kinds.items():
            made.connections[kind] = self.jobs[job].queue_pairs
            made.pick[kind] = collective == "request"
        return made


_MS = 1_000_000
_LAYERS = 192  # of the published schedule: 24 micro-batches of 8 layers
_GRADIENT_BYTES, _PARAMETER_BYTES = 5_615_517_696, 2_807_758_848
_EXPERT_BYTES, _TENSOR_BYTES, _PIPELINE_BYTES = 100_663_296, 50_331_648, 50_331_648


def training(name: str, hosts: Sequence[int], *, microbatches: int = 4, layers: int = 2, block: int = 4, stages: int = 1, **more) -> Job:
    """Return a mixture-of-experts job: experts shared by ``block`` hosts, data parallel over the rails, a checkpoint if ``store_every``."""
    store_every: int = more.pop("store_every", 0)
    forward = (
        Phase(7 * _MS // 2, "allgather", "host", _TENSOR_BYTES),
        Phase(8 * _MS, "alltoall", "block", _EXPERT_BYTES),
        Phase(_MS // 2, "alltoall", "block", _EXPERT_BYTES),
    )
    hop = (Phase(0, "send", "column", _PIPELINE_BYTES),) if stages > 1 else ()
    share = Fraction(microbatches * layers, _LAYERS)
    update = (
        Phase(0, "reducescatter", "rail", int(_GRADIENT_BYTES * share)),
        Phase(int(30 * _MS * share), "allgather", "rail", int(_PARAMETER_BYTES * share)),
    )
    save = (Phase(0, "store", "self", int(_PARAMETER_BYTES * share), every=store_every),) if store_every else ()
    one = forward * layers + hop
    return Job(name, tuple(hosts), one * (2 * microbatches) + update + save, block=block, stages=stages, **more)


def dense(
    name: str, hosts: Sequence[int], *, compute_ns: int = 200 * _MS, payload_bytes: int = 1_000_000_000, buckets: int = 4, **more
) -> Job:
    """Return a data-parallel job: computing, then an all-reduce of ``payload_bytes`` of gradients over all GPUs, bucket by bucket."""
    bucket = Phase(compute_ns // (2 * buckets), "allreduce", "all", payload_bytes // buckets)
    return Job(name, tuple(hosts), (Phase(compute_ns // 2), *(bucket,) * buckets), **more)


def inference(name: str, hosts: Sequence[int], *, think_ns: int = 2 * _MS, payload_bytes: int = 65_536, **more) -> Job:
    """Return an inference job: each GPU sends requests of heavy-tailed sizes to random peers at irregular times."""
    return Job(name, tuple(hosts), (Phase(think_ns, "request", "self", payload_bytes),), jitter=0.9, synchronous=False, **more)
