"""The topology as arrays: GPUs behind adapters, adapters on leaves, leaves under one or two tiers of switches.

A link is two directed ports, ``p`` and ``p ^ 1``; a directed port belongs to the device that sends by it. Adapter ``n`` sends by port
``2 n`` and receives by its leaf's port ``2 n + 1``. Adapter ``host * rails + rail`` belongs to the GPU of the same number; storage hosts
follow the GPU hosts and have adapters without GPUs.

Each port has a stage, its position on a path, so that one sweep over the stages moves a byte from end to end:
0 adapter, 1 leaf up, 2 aggregation up, 3 core down, 4 aggregation or spine down, 5 leaf down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ...pipeline.errors import InputError

STAGES = 6
HOST, LEAF, AGGREGATION, CORE = range(4)
GPUS_MAX = 65_536


@dataclass(frozen=True, slots=True)
class FabricTopology:
    """A cluster as columns. Devices are numbered hosts first, then switches from ``first_switch`` on."""

    rails: int
    gpus: int
    device_names: tuple[str, ...]
    tier: np.ndarray  # (devices,) HOST .. CORE
    rack: np.ndarray  # (devices,) rack of a host, -1 for a switch
    owner: np.ndarray  # (ports,) int32, the sending device
    stage: np.ndarray  # (ports,) int32, 0 .. STAGES - 1
    speed_bps: np.ndarray  # (ports,) int64
    port_names: tuple[str, ...]  # (ports,) the name on the owner
    leaf: np.ndarray  # (adapters,) int32, device number of the leaf
    # Compressed rows, int32: ports up from a device, and ports down from a device to a leaf (row device * leaves + number of the leaf).
    up_start: np.ndarray
    up_port: np.ndarray
    down_start: np.ndarray
    down_port: np.ndarray
    leaf_number: np.ndarray  # (devices,) int32, -1 for other devices

    @property
    def ports(self) -> int:
        return len(self.owner)

    @property
    def adapters(self) -> int:
        return len(self.leaf)

    @property
    def first_switch(self) -> int:
        return int(np.argmax(self.tier > HOST))

    @property
    def peer(self) -> np.ndarray:
        """Return the device at the far end of each port."""
        return self.owner[np.arange(self.ports) ^ 1]

    def address(self, adapter: int) -> str:
        """Return the IPv4 address of an adapter."""
        return f"10.{adapter >> 16 & 255}.{adapter >> 8 & 255}.{adapter & 255}"

    def port_of(self, device: str, port: str) -> int:
        """Return the number of a port by its names. Raises ``ValueError`` where there is none."""
        for number in np.flatnonzero(self.owner == self.device_names.index(device)).tolist():
            if self.port_names[number] == port:
                return number
        raise ValueError(f"{device} has no port {port}")


class _TopologyBuilder:
    """Collects devices and links; add the adapters' links first."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tier: list[int] = []
        self.rack: list[int] = []
        self.ends: list[tuple[int, int, int]] = []
        self.leaves: list[int] = []

    def device(self, name: str, tier: int, rack: int = -1) -> int:
        self.names.append(name)
        self.tier.append(tier)
        self.rack.append(rack)
        return len(self.names) - 1

    def link(self, lower: int, upper: int, speed_bps: int) -> None:
        self.ends.append((lower, upper, speed_bps))

    def build(self, rails: int, gpus: int) -> FabricTopology:
        tier = np.array(self.tier)
        owner = np.array([end for lower, upper, _ in self.ends for end in (lower, upper)])
        peer = owner[np.arange(len(owner)) ^ 1]
        top = tier.max()
        # The spines of a two-tier fabric use the stages of aggregation switches.
        up_stage = np.array([0, 1, 2])[np.minimum(tier[owner], 2)]
        down_stage = np.array([5, 5, 4, 3])[tier[owner]]
        stage = np.where(tier[owner] < tier[peer], up_stage, down_stage)
        leaf_devices = np.flatnonzero(tier == LEAF)
        leaf_number = np.full(len(tier), -1)
        leaf_number[leaf_devices] = np.arange(len(leaf_devices))
        adapters = int((stage == 0).sum())
        ups = [np.flatnonzero((owner == d) & (tier[owner] < tier[peer]) & (tier[owner] > HOST)) for d in range(len(tier))]
        downs = _downs(tier, owner, peer, leaf_devices, top)
        return FabricTopology(
            rails,
            gpus,
            tuple(self.names),
            tier,
            np.array(self.rack),
            owner.astype(np.int32),
            stage.astype(np.int32),
            np.repeat(np.array([speed for _, _, speed in self.ends], np.int64), 2),
            _port_names(owner, tier),
            peer[0 : 2 * adapters : 2].astype(np.int32),
            *_rows(ups),
            *_rows(downs),
            leaf_number.astype(np.int32),
        )


def _downs(tier: np.ndarray, owner: np.ndarray, peer: np.ndarray, leaves: np.ndarray, top: int) -> list[np.ndarray]:
    """Return the ports from each device to each leaf, device by device."""
    downward = np.flatnonzero((tier[owner] > tier[peer]) & (tier[peer] > HOST))
    reached: dict[tuple[int, int], list[int]] = {}
    covers: dict[int, set[int]] = {int(leaf): {int(leaf)} for leaf in leaves}
    for level in range(AGGREGATION, top + 1):
        for port in downward[tier[owner[downward]] == level].tolist():
            device, below = int(owner[port]), int(peer[port])
            for leaf in sorted(covers[below]):
                reached.setdefault((device, leaf), []).append(port)
        for device, leaf in [key for key in reached if tier[key[0]] == level]:
            covers.setdefault(device, set()).add(leaf)
    return [np.array(reached.get((device, int(leaf)), ()), np.int64) for device in range(len(tier)) for leaf in leaves]


def _rows(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    start = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return start, (np.concatenate(rows) if rows else np.zeros(0)).astype(np.int32)


def _port_names(owner: np.ndarray, tier: np.ndarray) -> tuple[str, ...]:
    seen = np.zeros(len(tier), np.int64)
    names = []
    for device in owner.tolist():
        number = int(seen[device])
        names.append(f"mlx5_{number}" if tier[device] == HOST else f"Ethernet{8 * number}")
        seen[device] += 1
    return tuple(names)


def rail_fabric(
    racks: int = 4,
    hosts_per_rack: int = 8,
    rails: int = 8,
    *,
    speed_bps: int = 400_000_000_000,
    racks_per_pod: int = 2,
    spines: int = 8,
    parallel: int = 2,
    storage: int = 1,
) -> FabricTopology:
    """Return a rail-optimised leaf-spine fabric: in each pod, one leaf per rail; ``parallel`` links from each leaf to each spine.

    Each pod has ``storage`` hosts beside the racks. The defaults are 256 GPUs on 400G with no oversubscription between pods.
    """
    pods = -(-racks // racks_per_pod)
    if racks * hosts_per_rack * rails > GPUS_MAX:
        raise ValueError(f"more than {GPUS_MAX} GPUs")
    build = _TopologyBuilder()
    hosts = [build.device(f"host-{n:04d}", HOST, n // hosts_per_rack) for n in range(racks * hosts_per_rack)]
    stores = [build.device(f"storage-{n:02d}", HOST, n // max(1, storage)) for n in range(storage * pods)]
    leaves = [[build.device(f"leaf-{pod:02d}-{rail}", LEAF) for rail in range(rails)] for pod in range(pods)]
    tops = [build.device(f"spine-{n:02d}", AGGREGATION) for n in range(spines if pods * rails > 1 else 0)]
    for n, host in enumerate(hosts):
        for rail in range(rails):
            build.link(host, leaves[n // hosts_per_rack // racks_per_pod][rail], speed_bps)
    for n, store in enumerate(stores):
        for rail in range(rails):
            build.link(store, leaves[n // storage][rail], speed_bps)
    for leaf in (leaf for pod in leaves for leaf in pod):
        # All spines once, then again: so equal hash seeds make a spine's choice a function of the leaf's, as in real fabrics.
        for _ in range(parallel):
            for spine in tops:
                build.link(leaf, spine, speed_bps)
    return build.build(rails, len(hosts) * rails)


def sized(gpus: int) -> FabricTopology:
    """Return a rail-optimised fabric of 64 to 4,096 GPUs (whole racks of 64), non-blocking between pods."""
    racks = -(-gpus // 64)
    per_pod = max(1, racks // 8)
    return rail_fabric(racks, racks_per_pod=per_pod, spines=4 * per_pod, parallel=2)


def toy(rails: int = 2, hosts_per_rack: int = 2, *, speed_bps: int = 100_000_000_000, spines: int = 2, parallel: int = 1) -> FabricTopology:
    """Return two racks, each its own pod, small enough to check by hand."""
    return rail_fabric(2, hosts_per_rack, rails, speed_bps=speed_bps, racks_per_pod=1, spines=spines, parallel=parallel, storage=0)


def clos(
    places: Sequence[tuple[str, str, str]],
    *,
    adapters_per_host: int = 2,
    speed_bps: int = 200_000_000_000,
    aggregations: int = 4,
    cores: int = 4,
    parallel: int = 1,
) -> FabricTopology:
    """Return a three-tier Clos of hosts at the given (core group, pod, leaf) names.

    All adapters of a host go to its leaf; each pod has ``aggregations`` switches over all its leaves, each core group ``cores`` switches
    over all aggregation switches of its pods. The name of a leaf is unique within its pod.
    """
    build = _TopologyBuilder()
    if len(places) * adapters_per_host > GPUS_MAX:
        raise ValueError(f"more than {GPUS_MAX} GPUs")
    leaf_keys = sorted(set(places))
    pod_keys = sorted({key[:2] for key in leaf_keys})
    groups = sorted({key[0] for key in leaf_keys})
    hosts = [build.device(f"host-{n:04d}", HOST, leaf_keys.index(place)) for n, place in enumerate(places)]
    leaves = {key: build.device("-".join(("leaf", *key)), LEAF) for key in leaf_keys}
    middles = {key: [build.device(f"agg-{'-'.join(key)}-{n}", AGGREGATION) for n in range(aggregations)] for key in pod_keys}
    tops = {key: [build.device(f"core-{key}-{n}", CORE) for n in range(cores)] for key in groups}
    for host, place in zip(hosts, places, strict=True):
        for _ in range(adapters_per_host):
            build.link(host, leaves[place], speed_bps)
    for key, leaf in leaves.items():
        for middle in middles[key[:2]]:
            for _ in range(parallel):
                build.link(leaf, middle, 2 * speed_bps)
    for key, switches in middles.items():
        for middle in switches:
            for core in tops[key[0]]:
                build.link(middle, core, 2 * speed_bps)
    return build.build(adapters_per_host, len(places) * adapters_per_host)


def clos_from(path: Path, *, hosts_max: int | None = None, adapters_per_host: int = 2) -> FabricTopology:
    """Return the Clos of a CSV with a row per host and columns DSW, PSW, ASW (core, aggregation and access switch).

    Raises ``InputError`` if the file has no such columns.
    """
    try:
        frame = pl.read_csv(path, columns=["DSW", "PSW", "ASW"], schema_overrides=dict.fromkeys(("DSW", "PSW", "ASW"), pl.String))
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(str(path), "has no columns DSW, PSW, ASW", "give a CSV with a row per host and these columns") from None
    return clos(frame.drop_nulls().head(hosts_max or frame.height).rows(), adapters_per_host=adapters_per_host)
