"""Transactions whose end a broker has forgotten, and that readers would wait for without end.

A broker that dies between the ends of a transaction (one is written into each of its partitions) has to write those that
are missing when it is back. It may not: Kafka 4.4 has been seen to take such a transaction for complete at its coordinator
while a partition still holds it open. Whoever reads that partition then stands still until somebody ends it, which Kafka's
operators do by hand (KIP-664). Here it ends as its coordinator says that it ended.
"""

# The checker knows the stubs of an older client.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kafka import TopicPartition as KafkaPlace
from kafka import errors as kafka_errors
from kafka.admin._transactions import AbortTransactionSpec, TransactionState

from ..clock import NS_PER_S, Clock
from .kafka_settings import PRODUCER_PREFIX

# Offsets of groups are committed here, in the same transactions.
OFFSETS_TOPIC = "__consumer_offsets"

# Nobody knows any more how it ended: it is given up when it has been open for longer than any transaction may be.
UNKNOWN_S = 60.0


class Open(NamedTuple):
    """A transaction that a partition holds open: where, whose, and since which offset."""

    place: KafkaPlace
    producer_id: int
    producer_epoch: int
    coordinator_epoch: int
    from_offset: int


class Mender:
    """Ends what a broker has forgotten to end. ``admin`` is Kafka's client, whose errors pass through."""

    def __init__(self, admin: Any, clock: Clock) -> None:
        self._admin = admin
        self._clock = clock
        self._unknown_ns: dict[Open, int] = {}

    def hint(self, topics: Iterable[str]) -> Iterator[str]:
        """End what is forgotten in these topics, of which some may not exist; yield a sentence for each."""
        found = {topic["name"]: len(topic["partitions"]) for topic in self._admin.describe_topics(list(topics))}
        open_now = self._open({KafkaPlace(topic, number) for topic, count in found.items() for number in range(count)})
        self._unknown_ns = {
            seen: since_ns for seen, since_ns in self._unknown_ns.items() if seen in open_now or seen.place.topic not in found
        }
        ends = self._ends(open_now) if open_now else {}
        # What is still open now was open when its coordinator had already called it complete.
        for forgotten in ends.keys() & self._open({seen.place for seen in ends}):
            name, commit = ends[forgotten]
            self._end(forgotten, commit)
            yield (
                f"the broker has forgotten to end a transaction of {name or 'an unknown producer'} in {forgotten.place.topic}"
                f"/{forgotten.place.partition}; it is {'committed' if commit else 'aborted'} now"
            )

    def ended(self, name: str) -> bool:
        """Return whether the coordinator is through with the last transaction of a producer, or has to abort it first."""
        try:
            last = self._admin.describe_transactions([name])[name]
        except kafka_errors.TransactionalIdNotFoundError:
            return True
        return last.state not in (TransactionState.PREPARE_COMMIT, TransactionState.PREPARE_ABORT)

    def _open(self, places: set[KafkaPlace]) -> set[Open]:
        found = self._admin.describe_producers(places)
        return {
            Open(place, each.producer_id, each.producer_epoch, each.coordinator_epoch, each.current_transaction_start_offset)
            for place, state in found.items()
            for each in state.active_producers
            if each.current_transaction_start_offset >= 0
        }

    def _ends(self, open_now: set[Open]) -> dict[Open, tuple[str, bool]]:
        """Return of what is no longer under way whose it is (empty where nobody knows) and whether it was committed."""
        listed = self._admin.list_transactions(producer_id_filters=sorted({seen.producer_id for seen in open_now}))
        names = {each.producer_id: each.transactional_id for listing in listed.values() for each in listing}
        told = self._admin.describe_transactions(sorted(set(names.values())))
        ends: dict[Open, tuple[str, bool]] = {}
        for seen in open_now:
            name = names.get(seen.producer_id, "")
            # Where nobody knows whose it is: others commit their offsets on this cluster, too.
            ours = name.startswith(PRODUCER_PREFIX) if name else seen.place.topic != OFFSETS_TOPIC
            if not ours:
                continue
            last = told.get(name)
            if last is not None and last.producer_epoch == seen.producer_epoch:
                if last.state in (TransactionState.COMPLETE_COMMIT, TransactionState.COMPLETE_ABORT):
                    ends[seen] = name, last.state == TransactionState.COMPLETE_COMMIT
                continue
            since_ns = self._unknown_ns.setdefault(seen, self._clock.monotonic_ns())
            if self._clock.monotonic_ns() - since_ns > UNKNOWN_S * NS_PER_S:
                ends[seen] = name, False
        return ends

    def _end(self, forgotten: Open, commit: bool) -> None:
        # The client knows how to abort only; the request is the same but for the verdict.
        place, producer_id, producer_epoch, coordinator_epoch, _ = forgotten
        spec = AbortTransactionSpec(place, producer_id, producer_epoch, coordinator_epoch)
        request = self._admin._abort_transaction_request(spec)
        request.markers[0].transaction_result = commit
        self._admin._manager.run(self._send, request, spec)

    async def _send(self, request: Any, spec: AbortTransactionSpec) -> None:
        leader = next(iter(await self._admin._async_get_leader_for_partitions([spec.topic_partition])))
        response = await self._admin._manager.send(request, node_id=leader)
        self._admin._abort_transaction_process_response(response, spec)
