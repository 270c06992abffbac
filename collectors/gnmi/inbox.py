"""A bounded queue of raw messages between the streams' thread and the next drain, with a limit for each stream."""

import asyncio
import threading
from collections import Counter


class Inbox:
    """``put`` waits while there is no room; ``take`` returns all and makes room. One event loop puts, another thread takes.

    An empty inbox accepts any message, so that none waits for ever; ``message_bytes_max`` limits a single message.
    """

    def __init__(self, bytes_max: int, stream_bytes_max: int) -> None:
        self._bytes_max, self._stream_bytes_max = bytes_max, stream_bytes_max
        self._lock = threading.Lock()
        self._raw: list[bytes] = []
        self._streams: list[int] = []
        self._recv_ts: list[int] = []
        self._bytes: Counter[int] = Counter()
        self.waiting_bytes = 0
        self.counts: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room: asyncio.Event | None = None
        self._wanted = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the loop whose coroutines call ``put``; call in that loop."""
        self._loop, self._room = loop, asyncio.Event()

    async def put(self, stream: int, raw: bytes, recv_ts: int) -> None:
        """Add a message as soon as there is room."""
        assert self._room is not None
        waited = False
        while not self._put(stream, raw, recv_ts):
            if not waited:
                waited = True
                self.counts["paused"] += 1
            await self._room.wait()

    def _put(self, stream: int, raw: bytes, recv_ts: int) -> bool:
        size = len(raw)
        with self._lock:
            queued, waiting = self._bytes[stream], self.waiting_bytes
            if (queued and queued + size > self._stream_bytes_max) or (waiting and waiting + size > self._bytes_max):
                self._wanted = True
                assert self._room is not None
                self._room.clear()
                return False
            self._bytes[stream] += size
            self.waiting_bytes += size
            self._raw.append(raw)
            self._streams.append(stream)
            self._recv_ts.append(recv_ts)
            self.counts["messages"] += 1
            self.counts["bytes"] += size
            return True

    def take(self) -> tuple[list[bytes], list[int], list[int]]:
        """Return all messages, the stream and the receive time of each."""
        with self._lock:
            taken = self._raw, self._streams, self._recv_ts
            self._raw, self._streams, self._recv_ts = [], [], []
            self._bytes.clear()
            self.waiting_bytes = 0
            wanted, self._wanted = self._wanted, False
        if wanted and self._loop is not None and self._room is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._room.set)
        return taken
