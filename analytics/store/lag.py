"""The progress of the store, published on the bus: a waiting process need not open the store."""

import json
from collections.abc import Mapping

from ...pipeline.bus import Bus, TopicPartition
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.states import STATES

POSITIONS_KEY = "analyze/positions"
RAW_SAMPLES_KEY = "analyze/ring"

# What is stored: every state table, and some families unchanged.
STORED_FAMILIES = ("gap", "event", "inventory", "self_metric")
TOPICS = (*(table.topic for table in STATES.values()), *(FAMILIES[name].topic for name in STORED_FAMILIES))

# Self metrics never end, so nothing waits for them.
_ENDLESS = FAMILIES["self_metric"].topic


def packed(positions: Mapping[TopicPartition, int]) -> bytes:
    """Return positions as published on the bus; equal positions give equal bytes."""
    return json.dumps({_name(partition): offset for partition, offset in positions.items()}, sort_keys=True).encode()


def stored_lag(bus: Bus) -> int:
    """Return how many offsets of the stored topics are not stored yet."""
    return _behind(bus, POSITIONS_KEY, [topic for topic in TOPICS if topic != _ENDLESS])


def raw_samples_lag(bus: Bus) -> int:
    """Return how many offsets of raw samples have not been read yet."""
    return _behind(bus, RAW_SAMPLES_KEY, [FAMILIES["burst_sample"].topic])


def _behind(bus: Bus, key: str, topics: list[str]) -> int:
    done = json.loads(bus.recall(key) or b"{}")
    ends = bus.ends(topics)
    return sum(max(0, end - done.get(_name(partition), 0)) for partition, end in ends.items())


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
