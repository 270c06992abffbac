"""SAI statistics of named objects: the family, column and kind of each, and whether it is sampled.

High-frequency telemetry and OTLP identify a value by SAI object type, statistic and object name; this module turns the three into a
``Series``. The dictionary has the numbers; an unknown one becomes a ``reading`` under its number, and is counted.

Octets and bytes are sampled as differences, occupancies as they are, so that bursts show at the rate of the poll; all statistics also
go into rows of counters, at a slower pace.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from ...pipeline.dictionary import SAI_OBJECTS, dictionary
from . import kernel

PORT, QUEUE, POOL, GROUP = 1, 21, 24, 26

# Signal and kind of sampling by type and statistic: 0x0 and 0x9 are octets in and out of a port, 0x5f its egress occupancy.
_SAMPLED = {
    (PORT, 0x00): ("rx_bytes", kernel.DIFFERENCES),
    (PORT, 0x09): ("tx_bytes", kernel.DIFFERENCES),
    (PORT, 0x5F): ("queue_bytes", kernel.LEVELS),
    (QUEUE, 0x01): ("tx_bytes", kernel.DIFFERENCES),
    (QUEUE, 0x18): ("queue_bytes", kernel.LEVELS),
    (POOL, 0x00): ("queue_bytes", kernel.LEVELS),
    (GROUP, 0x01): ("rx_bytes", kernel.DIFFERENCES),
    (GROUP, 0x02): ("queue_bytes", kernel.LEVELS),
}
# Occupancies and watermarks without a column, reported by their highest value.
_HIGHEST = {(PORT, stat) for stat in range(0x5B, 0x63)} | {
    (QUEUE, 0x1A),
    (QUEUE, 0x1B),
    (GROUP, 0x04),
    (GROUP, 0x05),
    (GROUP, 0x06),
    (POOL, 0x13),
}
_KINDS = {"counter": kernel.COUNTER, "gauge": kernel.HIGHEST, "watermark": kernel.HIGHEST, "state": kernel.NEWEST}

_NUMBERED = re.compile(r"sai_counter_type_(\d{1,10})_stat_(\d{1,10})")
_UNKNOWN = re.compile(r"UNKNOWN_SAI_STAT_TYPE_(\d{1,10})_ID_(\d{1,10})")
_OBJECT_TYPES = {kind: number for number, kind in SAI_OBJECTS.items()}


@dataclass(frozen=True, slots=True)
class Series:
    """One counter of one object. ``family`` is port, queue or reading, ``column`` the column there or the reading's name.

    ``index`` is the place in ``fec_bins``. ``sampled`` is how it gives samples, of ``signal`` and ``sampled_queue``. ``known`` is false
    where the dictionary has no entry.
    """

    type: int
    stat: int
    object: str
    family: str
    column: str
    kind: int
    bits: int
    port: str
    queue: str = ""
    direction: str = ""
    index: int = 0
    object_kind: str = ""
    signal: str = ""
    sampled_queue: str = ""
    sampled: int = kernel.UNSAMPLED
    known: bool = True


def series(kind: int, stat: int, name: str, bits: int = 64) -> Series:
    """Return the series of the statistic ``stat`` of the object ``name`` of SAI type ``kind``, a register of ``bits`` bits."""
    found = dictionary().sai(kind, stat)
    what = SAI_OBJECTS.get(kind, f"sai_{kind}")
    port, queue = split(kind, name)
    signal, sampled = _SAMPLED.get((kind, stat), ("", kernel.UNSAMPLED))
    # An ingress priority group and an egress queue of one port share their number, so the group's occupancy gets another name.
    sampled_queue = f"pg{queue}" if (kind, signal) == (GROUP, "queue_bytes") else queue
    common = {"type": kind, "stat": stat, "object": name, "bits": bits, "port": port, "object_kind": what}
    common |= {"signal": signal, "sampled": sampled, "sampled_queue": sampled_queue}
    if found is None:
        highest = kernel.HIGHEST if (kind, stat) in _HIGHEST else kernel.NEWEST
        return Series(family="reading", column=numbered(kind, stat), kind=highest, queue=queue, known=False, **common)
    counter = found.alias.counter
    column = {"column": counter.name, "kind": _KINDS[found.alias.kind], "index": found.n or 0}
    if counter.family == "port":
        return Series(family="port", **column, **common)
    if counter.family == "queue":
        # Per-priority counters of a port go into rows of egress queues, under the priority's number.
        queue = str(found.n) if kind == PORT and found.n is not None else queue
        direction = {POOL: "pool", GROUP: "rx"}.get(kind, "tx")
        return Series(family="queue", queue=queue, direction=direction, **column, **common)
    return Series(family="reading", queue=queue, **column, **common)


def numbered(kind: int, stat: int) -> str:
    """Return the name under which a switch exports a statistic that it has no name for."""
    return f"sai_counter_type_{kind}_stat_{stat}"


def split(kind: int, name: str) -> tuple[str, str]:
    """Return port and queue of an object's name, such as ``Ethernet0|3`` of a queue or group; a pool has no port."""
    if kind == POOL:
        return "", name
    if kind in (QUEUE, GROUP):
        for sign in "|:":
            port, found, queue = name.rpartition(sign)
            if found:
                return port, queue
    return name, ""


@lru_cache(maxsize=4096)
def numbers(name: str) -> tuple[int, int] | None:
    """Return type and statistic of a metric's name: by number, or as SAI spells it; ``None`` where it is no SAI statistic."""
    if match := _NUMBERED.fullmatch(name) or _UNKNOWN.fullmatch(name):
        return int(match[1]), int(match[2])
    found = dictionary().find("sai", name)
    if found is None or found.alias.object not in _OBJECT_TYPES or (stat := found.alias.number(found.n)) is None:
        return None
    return _OBJECT_TYPES[found.alias.object], stat
