"""How far the store is, told through the bus: for whoever waits for it without opening it."""

import json
from collections.abc import Mapping

from ...pipeline.bus import Bus, TopicPartition
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.states import STATES

POSITIONS_KEY = "analyze/positions"
RAW_SAMPLES_KEY = "analyze/ring"

# What the store takes in: every state table, and the families that are kept as they come.
KEPT_FAMILIES = ("gap", "event", "inventory", "self_metric")
TOPICS = (*(table.topic for table in STATES.values()), *(FAMILIES[name].topic for name in KEPT_FAMILIES))

# Weft's own readings never end, so nobody waits for them.
_ENDLESS = FAMILIES["self_metric"].topic


def packed(positions: Mapping[TopicPartition, int]) -> bytes:
    """Return positions as they are remembered on the bus; equal positions give equal bytes."""
    return json.dumps({_name(partition): offset for partition, offset in positions.items()}, sort_keys=True).encode()


def stored_lag(bus: Bus) -> int:
    """Return how many offsets of what the store takes in are not stored yet."""
    return _behind(bus, POSITIONS_KEY, [topic for topic in TOPICS if topic != _ENDLESS])


def raw_samples_lag(bus: Bus) -> int:
    """Return how many offsets of raw runs the ring has not read yet."""
    return _behind(bus, RAW_SAMPLES_KEY, [FAMILIES["burst_sample"].topic])


def _behind(bus: Bus, key: str, topics: list[str]) -> int:
    done = json.loads(bus.recall(key) or b"{}")
    ends = bus.ends(topics)
    return sum(max(0, end - done.get(_name(partition), 0)) for partition, end in ends.items())


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
