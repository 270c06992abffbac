"""Helpers of the bus tests: a bus to test, reading with a time limit, and the start of a child's program."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from weft.pipeline.bus import Bus, BusConfig, Consumer, Message, Producer, open_bus

# The longest wait of these tests; without a defect they take much less.
LIMIT_S = 60.0
Children = Callable[..., "subprocess.Popen[str]"]

PRELUDE = """
import sys, time
from pathlib import Path
from weft.pipeline.bus import BusConfig, TopicPartition, open_bus
from weft.pipeline.errors import BusError, FencedError
kind, servers, folder, suffix = sys.argv[1:5]
bus = open_bus(BusConfig(kind=kind, servers=servers, patience_s=30), Path(folder))
def say(*words):
    print(*words, flush=True)
"""


class Rig:
    """One bus to test: opens it, gives each test its own names, and closes everything at the end."""

    def __init__(self, kind: str, servers: str, folder: Path, patience_s: float = 30) -> None:
        self.kind = kind
        self.servers = servers
        self.folder = folder
        self.suffix = os.urandom(4).hex()
        self.config = BusConfig(kind=kind, servers=servers, patience_s=patience_s)
        self._opened: list[Any] = []
        self.bus = self.open()

    def open(self) -> Bus:
        bus = open_bus(self.config, self.folder)
        self._opened.append(bus)
        return bus

    def name(self, stem: str) -> str:
        return f"{stem}.{self.suffix}"

    def producer(self, stem: str = "writer") -> Producer:
        producer = self.bus.producer(self.name(stem))
        self._opened.append(producer)
        return producer

    def consumer(self, *stems: str, group: str | None = None, **options: Any) -> Consumer:
        topics = [self.name(stem) for stem in stems]
        consumer = self.bus.consumer(topics, group=None if group is None else self.name(group), **options)
        self._opened.append(consumer)
        return consumer

    def arguments(self) -> list[str]:
        return [self.kind, self.servers, str(self.folder), self.suffix]

    def close(self) -> None:
        for opened in reversed(self._opened):
            opened.close()


def publish(producer: Producer, topic: str, messages: Sequence[tuple[str, bytes]], headers: Mapping[str, str] | None = None) -> None:
    with producer.transaction() as transaction:
        for key, value in messages:
            transaction.publish(topic, key, value, headers or {})


def read(consumer: Consumer, count: int, limit_s: float = LIMIT_S) -> list[Message]:
    """Return the next ``count`` messages or fail."""
    messages: list[Message] = []
    deadline = time.monotonic() + limit_s
    while len(messages) < count:
        messages.extend(consumer.poll(0.2))
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages came"
    assert len(messages) == count
    return messages


def read_out(bus: Bus, consumer: Consumer, topics: Sequence[str]) -> list[Message]:
    """Return everything up to the ends of the bus."""
    messages: list[Message] = []
    deadline = time.monotonic() + LIMIT_S
    ends = {place: end for place, end in bus.ends(topics).items() if place in consumer.assignment()}
    while any(consumer.position(place) < end for place, end in ends.items()):
        messages.extend(consumer.poll(0.1))
        assert time.monotonic() < deadline
    return messages


def until(condition: Callable[[], bool], *consumers: Consumer, limit_s: float = LIMIT_S) -> list[Message]:
    """Poll the consumers side by side, as members in processes of their own do, until the condition holds; return what they read."""
    messages: list[Message] = []
    deadline = time.monotonic() + limit_s
    with ThreadPoolExecutor(max(1, len(consumers))) as pool:
        while not condition():
            for batch in pool.map(lambda consumer: consumer.poll(0.05), consumers):
                messages.extend(batch)
            assert time.monotonic() < deadline
    return messages


def line(child: "subprocess.Popen[str]") -> str:
    """Return the next line of a child's output, which may take ``LIMIT_S``."""
    assert child.stdout is not None
    timer = threading.Timer(LIMIT_S, child.kill)
    timer.start()
    text = child.stdout.readline().strip()
    timer.cancel()
    return text


def indices(consumer: Consumer) -> set[int]:
    """Return the partition indices that a consumer has."""
    return {place.partition for place in consumer.assignment()}
