"""Partitions that an open transaction blocks: readers of committed messages stop there without an error."""

from collections.abc import Collection

from kafka import OffsetSpec  # pyright: ignore[reportAttributeAccessIssue]
from kafka import TopicPartition as KafkaPlace  # pyright: ignore[reportAttributeAccessIssue]

from ..clock import NS_PER_S
from .kafka_cluster import KafkaCluster

CHECK_INTERVAL_S = 30.0
# Well above the transaction timeout of Weft's producers, after which the broker aborts by itself.
BLOCKED_S = 60.0
REPORT_INTERVAL_S = 300.0


class StallWatch:
    """Finds the partitions whose last stable offset stands still behind the high watermark."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self._check_due_ns = 0
        self._report_due_ns = 0
        # Partition -> its last stable offset, and the time since when it has not moved.
        self._blocked: dict[KafkaPlace, tuple[int, int]] = {}

    def due(self) -> bool:
        """Return whether the last check is ``CHECK_INTERVAL_S`` ago."""
        return self._cluster.clock.monotonic_ns() >= self._check_due_ns

    def check(self, places: Collection[KafkaPlace]) -> str | None:
        """Return a line to log, if there is something to report. Raises the client's errors."""
        now_ns = self._cluster.clock.monotonic_ns()
        self._check_due_ns = now_ns + int(CHECK_INTERVAL_S * NS_PER_S)
        # In this order, so that a transaction which ends between the two requests does not look open.
        written = self._cluster.written(places)
        stable = self._cluster.offsets(places, OffsetSpec.LATEST)
        since = {place: before for place, before in self._blocked.items() if before[0] == stable.get(place)}
        self._blocked = {place: since.get(place, (end, now_ns)) for place, end in stable.items() if end < written[place]}
        overdue = sorted(place for place, (_, since_ns) in self._blocked.items() if now_ns - since_ns >= BLOCKED_S * NS_PER_S)
        if not overdue or now_ns < self._report_due_ns:
            return None
        self._report_due_ns = now_ns + int(REPORT_INTERVAL_S * NS_PER_S)
        first = overdue[0]
        more = f" and {len(overdue) - 1} more" if len(overdue) > 1 else ""
        return (
            f"an open transaction blocks {first.topic} partition {first.partition}{more} at offset {self._blocked[first][0]}; "
            "see Troubleshooting, 'A transaction without an end'"
        )
