"""gNMI dial-in: subscribes to switches and reconnects. The only module of the collector that uses grpc.

One thread runs all streams: a coroutine for each puts raw messages into a bounded inbox, from which ``drain`` decodes all of
them in one call. Where the inbox is full, or a target has too much in it, reading pauses and the protocol's flow control
holds the device back: nothing is dropped here.

A pack is one stream of its target. If a device refuses it, its paths are subscribed to one by one, so that only the refused
ones are missing; a path that cannot be sent on change is sampled. A lost target is dialled again after growing random delays,
at most ``dials_max`` at the same time; the time without data becomes a ``gap`` row.
"""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import polars as pl
from gnmi_pb import gnmi_pb2
from google.protobuf.message import DecodeError

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ServiceError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch
from .config import ENCODINGS, Dial, GnmiConfig, Pack, Wanted
from .decoder import SOURCE, Decoder, Limits, Messages, warm
from .inbox import Inbox
from .trouble import Complaints, Trouble, explain, own

_SUBSCRIBE, _CAPABILITIES = "/gnmi.gNMI/Subscribe", "/gnmi.gNMI/Capabilities"
# Time limit of the first call, connection included.
_ANSWER_S = 10.0
# How often each target reports whether it is up.
_UP_EVERY_NS = 10 * NS_PER_S
# Codes of a device that refuses a request: dialling again would not help.
_REFUSALS = frozenset(
    (
        *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED),
        *(grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE),
    )
)
_SAMPLED_INSTEAD_MS = 10_000


@dataclass(slots=True)
class _State:
    """State of a target."""

    dial: Dial
    stream: int
    up: bool = False
    # Receive time of its last message, 0 = none.
    last_ns: int = 0
    down: bool = False
    failures: int = 0
    files: tuple[bytes | None, ...] = ()
    # For the next drain: (time, kind, reason, detail) of events, (from, to) of gaps.
    events: list[tuple[int, str, str, str]] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)


class _RedialError(Exception):
    """The stream ended without an error: connect again at once."""


class Gnmi:
    """Subscribes to the targets between ``start`` and ``stop``."""

    def __init__(self, config: GnmiConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        limits = Limits(
            paths_max=config.paths_max,
            paths_per_stream_max=config.paths_target_max,
            json_leaves_max=config.json_leaves_max,
            ports_max=config.ports_max,
            neighbours_max=config.neighbours_max,
        )
        self._decoder = Decoder(limits)
        self._inbox = Inbox(config.waiting_bytes_max, config.waiting_bytes_target_max)
        self._complaints = Complaints(clock)
        self._random = random.Random()
        self._states: list[_State] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event | None = None
        self._up_due_ns = 0
        self._defect: BaseException | None = None

    def start(self) -> None:
        """Begin to dial. Raises ``ServiceError`` when a certificate or password file cannot be read."""
        dials = [self._config.complete(target) for target in self._config.targets]
        for dial in dials:
            dial.certificates()
            dial.metadata()
        self._states = [_State(dial, self._decoder.stream(dial.name, names_devices=dial.gateway)) for dial in dials]
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="gnmi", daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """End all streams. Idempotent."""
        if self._loop is not None and self._thread is not None and self._ended is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
        self._loop = self._thread = None

    def drain(self) -> list[Batch]:
        """Return rows of the messages since the last call; streams that wait for room in the inbox continue."""
        if self._defect is not None:
            raise self._defect
        now = self._clock.now_ns()
        raw, streams, recv_ts = self._inbox.take()
        batches = []
        if raw:
            decoded = self._decoder.decode(Messages(raw, np.array(streams, np.int32), np.array(recv_ts, np.int64)))
            batches = decoded.batches
            self._counts["synced"] += int(decoded.synced.sum())
        return [*batches, *self._own_rows(now)]

    def counters(self) -> Mapping[str, float]:
        """Return targets and how many are up, and messages, bytes, dials and errors since the start."""
        up = sum(state.up for state in self._states)
        gauges = {"targets": len(self._states), "targets_up": up, "waiting_bytes": self._inbox.waiting_bytes, "paths": self._decoder.paths}
        with self._lock:
            counts = {**self._decoder.counts, **self._counts, **self._inbox.counts}
        return {f"weft_collectors_gnmi_{name}": float(value) for name, value in gauges.items()} | {
            f"weft_collectors_gnmi_{name}_total": float(value) for name, value in counts.items()
        }

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _own_rows(self, now: int) -> list[Batch]:
        """Return events and gaps since the last call, and every ten seconds whether each target is up."""
        events, gaps, readings = [], [], []
        for state in self._states:
            with self._lock:
                happened, state.events = state.events, []
                silent, state.gaps = state.gaps, []
            head = {"source": SOURCE, "device": state.dial.name, "epoch": 0}
            events += [
                {**head, "ts": ts, "recv_ts": ts, "port": "", "kind": kind, "reason": reason, "detail": detail}
                for ts, kind, reason, detail in happened
            ]
            gaps += [{**head, "ts": first, "recv_ts": last, "what": "updates", "reason": "stream_down"} for first, last in silent]
            if now >= self._up_due_ns:
                subject = {"kind": "device", "object": "", "name": "gnmi_up"}
                readings.append({**head, "ts": now, "recv_ts": now, **subject, "value": float(state.up), "count": int(state.up)})
        if now >= self._up_due_ns:
            self._up_due_ns = now + _UP_EVERY_NS
        made = {"event": events, "gap": gaps, "reading": readings}
        return [Batch(family, pl.DataFrame(rows, schema=FAMILIES[family].polars)) for family, rows in made.items() if rows]

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._inbox.attach(self._loop)
        self._dials = asyncio.Semaphore(self._config.dials_max)
        ready.set()
        # Before the first subscription: else messages would wait until the kernels are compiled.
        await asyncio.to_thread(warm)
        ended = asyncio.create_task(self._ended.wait())
        tasks = [asyncio.create_task(self._target(state)) for state in self._states]
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        # A target's task ends only by a defect, which the next drain raises.
        self._defect = next((task.exception() for task in tasks if task.done()), None)
        for task in (ended, *tasks):
            task.cancel()
        await asyncio.gather(ended, *tasks, return_exceptions=True)

    async def _target(self, state: _State) -> None:
        """Dial one target again and again."""
        while True:
            wait = True
            try:
                await self._session(state)
            except _RedialError as reason:
                self._down(state, "certificates_changed", str(reason))
                wait = False
            except (grpc.aio.AioRpcError, ServiceError, OSError, ValueError) as error:
                called = isinstance(error, grpc.aio.AioRpcError)
                trouble = explain(state.dial, error.code().name, error.details() or "") if called else own(error)
                self._count(trouble.reason)
                self._complaints.log(state.dial.name, trouble)
                self._down(state, trouble.reason, trouble.problem)
            if wait:
                await asyncio.sleep(self._pause_s(state))

    def _pause_s(self, state: _State) -> float:
        """Return how long to wait before the next dial: twice as long each time, times a random factor."""
        longest = min(self._config.backoff_s * 2.0 ** min(state.failures, 30), self._config.backoff_s_max)
        state.failures += 1
        return longest * self._random.uniform(0.5, 1.0)

    async def _session(self, state: _State) -> None:
        """Connect, subscribe and read; raise what ends it."""
        dial = state.dial
        state.files = dial.certificates()
        self._count("dials")
        async with _channel(dial, self._config, state.files) as channel:
            async with self._dials:
                offered = await self._offered(channel, dial)
            work = [self._paths(state, channel, pack, pack.paths, pack.encoding(offered)) for pack in dial.packs]
            await _first_to_fail([*work, self._watch_files(state)])

    async def _offered(self, channel: grpc.aio.Channel, dial: Dial) -> tuple[str, ...]:
        """Return the encodings that a device offers, none if it does not answer that."""
        try:
            answer = await channel.unary_unary(_CAPABILITIES)(b"", metadata=dial.metadata(), timeout=_ANSWER_S)
            known = gnmi_pb2.CapabilityResponse.FromString(answer).supported_encodings
        except DecodeError:
            return ()
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                return ()
            raise
        return tuple(name for name in ENCODINGS if gnmi_pb2.Encoding.Value(name) in known)

    async def _paths(self, state: _State, channel: grpc.aio.Channel, pack: Pack, paths: Sequence[Wanted], encoding: str) -> None:
        """Subscribe to paths of a pack in one stream; if the device refuses, to each in a stream of its own."""
        while True:
            try:
                await self._stream(state, channel, pack, paths, encoding)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _REFUSALS:
                    raise
                if len(paths) > 1:
                    await _first_to_fail([self._paths(state, channel, pack, [one], encoding) for one in paths])
                elif paths[0].mode == "on_change":
                    paths = [Wanted(paths[0].path, "sample", _SAMPLED_INSTEAD_MS, 0)]
                else:
                    self._count("paths_refused")
                    self._complaints.log(state.dial.name, _refused(pack, paths[0], error))
                    await asyncio.sleep(self._config.backoff_s_max)

    async def _stream(self, state: _State, channel: grpc.aio.Channel, pack: Pack, paths: Sequence[Wanted], encoding: str) -> None:
        """Read one stream; raise what ends it."""
        wanted = gnmi_pb2.SubscriptionList(
            mode=gnmi_pb2.SubscriptionList.STREAM,
            encoding=encoding,
            prefix=gnmi_pb2.Path(target=pack.target) if pack.target else None,
            subscription=[one.subscription(pack.origin, state.dial.interval_ms) for one in paths],
        )
        call = channel.stream_stream(_SUBSCRIBE)(metadata=state.dial.metadata())
        try:
            # The request side stays open: half-closing it ends the stream at some devices.
            await call.write(gnmi_pb2.SubscribeRequest(subscribe=wanted).SerializeToString())
            async for message in call:
                now = self._clock.now_ns()
                self._received(state, now)
                await self._inbox.put(state.stream, message, now)
        finally:
            call.cancel()
        code = await call.code()
        if code != grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), await call.details())
        raise ServiceError("the device ended the stream", "check its log")

    async def _watch_files(self, state: _State) -> None:
        """Raise ``_RedialError`` when a certificate differs from the one that the channel was opened with."""
        while True:
            await asyncio.sleep(self._config.certificates_s)
            if not any(state.files):
                continue
            with contextlib.suppress(ServiceError):
                # A file that is just being written is checked again next time.
                if await asyncio.to_thread(state.dial.certificates) != state.files:
                    raise _RedialError("a certificate file has changed")

    def _received(self, state: _State, now: int) -> None:
        """Record the time of a message; the first of a session marks the target as up, and makes a gap of the time before."""
        if not state.up:
            state.up, state.failures = True, 0
            with self._lock:
                state.events.append((now, "target_up", "", state.dial.address))
                if state.last_ns:
                    state.gaps.append((state.last_ns, now))
        state.last_ns = now

    def _down(self, state: _State, reason: str, detail: str) -> None:
        if state.up or not state.down:
            with self._lock:
                state.events.append((self._clock.now_ns(), "target_down", reason, detail))
        state.up, state.down = False, True


def _channel(dial: Dial, config: GnmiConfig, files: tuple[bytes | None, ...]) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", config.message_bytes_max),
        ("grpc.keepalive_time_ms", round(config.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_s * 500)),
        ("grpc.enable_retries", 0),
        # Else channels of one address would share a connection and its backoff.
        ("grpc.use_local_subchannel_pool", 1),
        # Devices are reached directly, without the web proxy of this machine.
        ("grpc.enable_http_proxy", 0),
    ]
    if dial.insecure:
        return grpc.aio.insecure_channel(dial.address, options)
    if dial.server_name:
        options.append(("grpc.ssl_target_name_override", dial.server_name))
    ca, key, cert = files
    return grpc.aio.secure_channel(dial.address, grpc.ssl_channel_credentials(ca, key, cert), options)


async def _first_to_fail(work: list[Coroutine[Any, Any, None]]) -> None:
    """Run all at the same time; the first that fails cancels the others, and its error is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _refused(pack: Pack, wanted: Wanted, error: grpc.aio.AioRpcError) -> Trouble:
    return Trouble(
        "path_refused",
        f"does not serve {wanted.path} ({error.details() or error.code().name})",
        f"only this path is missing; choose packs without {pack.name!r} for this device to stop this message",
    )
