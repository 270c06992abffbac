"""A gNMI server (gNMI specification 0.10): Capabilities, Get, Subscribe ONCE, POLL and STREAM.

Streams support SAMPLE, ON_CHANGE, heartbeats and suppression of unchanged values. The values of one object go into one notification whose
prefix names the object; values that disappear are deleted.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
from gnmi_pb import gnmi_pb2, gnmi_pb2_grpc

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ServiceError
from . import tree
from .paths import ENCODINGS, PROTO, RequestPath, document, relative, typed
from .script import SwitchSource

# Each stream occupies a thread.
STREAMS_MAX = 64
MESSAGE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where to listen and how: ``certificate`` and ``key`` enable TLS, ``client_ca`` requires client certificates.

    ``users`` are names and passwords, required in the metadata of each call if there are any. ``sample_ns`` applies where a subscription
    leaves the interval to the server; ``change_ns`` is the interval at which values are compared for ON_CHANGE. Without ``prefixes`` each
    update has its whole path. With ``trees`` a subscription in JSON gets one tree per object, as from some devices, not one value per leaf.
    """

    address: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    users: dict[str, str] = field(default_factory=dict)
    sample_ns: int = NS_PER_S
    change_ns: int = NS_PER_S // 10
    prefixes: bool = True
    trees: bool = False


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Return the credentials of a server from files. Raises ``ServiceError`` if one cannot be read."""
    try:
        pair = (key.read_bytes(), certificate.read_bytes())
        ca = client_ca.read_bytes() if client_ca else None
    except OSError as error:
        raise ServiceError(f"lab: {error.filename} cannot be read ({error.strerror})", "name the folder of the certificates") from None
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


class Server:
    """The gNMI service of a switch. It keeps its port across ``stop`` and ``start``."""

    def __init__(self, source: SwitchSource, config: ServerConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._servicer = _Servicer(source, config, clock)
        self._server: grpc.Server | None = None
        self.port = config.port

    def start(self) -> None:
        """Listen. Raises ``ServiceError`` if the port is in use or a certificate cannot be read."""
        config = self._config
        options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", MESSAGE_BYTES_MAX)]
        server = grpc.server(futures.ThreadPoolExecutor(STREAMS_MAX, "lab-gnmi"), options=options)
        gnmi_pb2_grpc.add_gNMIServicer_to_server(self._servicer, server)
        where = f"{config.address}:{self.port}"
        try:
            if config.certificate and config.key:
                self.port = server.add_secure_port(where, server_credentials(config.certificate, config.key, config.client_ca))
            else:
                self.port = server.add_insecure_port(where)
        except RuntimeError:
            raise ServiceError(f"lab: cannot listen on {where}", "choose another port, or 0 for any") from None
        self._servicer.ended.clear()
        server.start()
        self._server = server

    def stop(self) -> None:
        """End all streams and stop listening. Idempotent."""
        if self._server is not None:
            self._servicer.ended.set()
            self._server.stop(grace=0.2).wait()
        self._server = None


@dataclass(slots=True)
class _Watch:
    """An active subscription: its leaves by number, when they are due, and their last sent values."""

    query: RequestPath
    leaves: list[int]
    every_ns: int
    changes: bool
    heartbeat_ns: int
    suppress: bool
    due_ns: int = 0
    heartbeat_due_ns: int = 0
    sent: dict[int, Any] = field(default_factory=dict)


class _Servicer(gnmi_pb2_grpc.gNMIServicer):
    def __init__(self, source: SwitchSource, config: ServerConfig, clock: Clock) -> None:
        self._source, self._config, self._clock = source, config, clock
        self._trees = {one.origin: one for one in (tree.openconfig(source), tree.sonic(source))}
        # The values of the last instant by origin: a subscription of many paths reads them once per path.
        self._cache: dict[str, tuple[int, list[Any]]] = {}
        self.ended = threading.Event()

    def Capabilities(self, request: Any, context: grpc.ServicerContext) -> gnmi_pb2.CapabilityResponse:
        self._admit(context)
        return gnmi_pb2.CapabilityResponse(
            supported_models=[gnmi_pb2.ModelData(name=name, organization=who, version=version) for name, who, version in tree.MODELS],
            supported_encodings=ENCODINGS,
            gNMI_version="0.10.0",
        )

    def Get(self, request: gnmi_pb2.GetRequest, context: grpc.ServicerContext) -> gnmi_pb2.GetResponse:
        self._admit(context)
        self._check_encoding(request.encoding, context)
        now = self._clock.now_ns()
        response = gnmi_pb2.GetResponse()
        for path in request.path or [gnmi_pb2.Path()]:
            query = RequestPath(request.prefix, path)
            leaves = self._find(query)
            values = self._values(query.origin, now)
            found = [(number, values[number]) for number in leaves if values[number] is not None]
            if not found:
                _refuse(context, grpc.StatusCode.NOT_FOUND, f"nothing at {_text(query)}")
            note = response.notification.add(timestamp=now, prefix=query.prefix())
            self._documents(note, query, found, request.encoding)
        return response

    def Subscribe(
        self, requests: Iterator[gnmi_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[gnmi_pb2.SubscribeResponse]:
        self._admit(context)
        first = next(requests, None)
        if first is None or not first.HasField("subscribe"):
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the first message must hold a subscription list")
        wanted = first.subscribe
        self._check_encoding(wanted.encoding, context)
        watches = [self._watch(wanted, one) for one in wanted.subscription]
        if wanted.mode == gnmi_pb2.SubscriptionList.STREAM:
            yield from self._stream(watches, wanted, context)
            return
        yield from self._snapshot(watches, wanted.encoding)
        if wanted.mode == gnmi_pb2.SubscriptionList.POLL:
            for request in requests:
                if not request.HasField("poll"):
                    _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "after the subscription only polls are taken")
                yield from self._snapshot(watches, wanted.encoding)

    def _admit(self, context: grpc.ServicerContext) -> None:
        given = {key: str(value) for key, value in context.invocation_metadata()}
        users = self._config.users
        # An unknown user has no password (``None``), which must not equal a missing one.
        if users and users.get(given.get("username", "")) != given.get("password", ""):
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED, "wrong user name or password")

    def _check_encoding(self, encoding: int, context: grpc.ServicerContext) -> None:
        if encoding not in ENCODINGS:
            _refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"encoding {gnmi_pb2.Encoding.Name(encoding)} is not offered")

    def _find(self, query: RequestPath) -> list[int]:
        one = self._trees.get(query.origin)
        if one is None:
            return []
        return [number for number, leaf in enumerate(one.leaves) if tree.matches(query.elements, leaf, one.origin)]

    def _values(self, origin: str, ts: int) -> list[Any]:
        """Return the value of every leaf of an origin at an instant."""
        one = self._trees.get(origin)
        if one is None:
            return []
        cached = self._cache.get(origin)
        if cached is None or cached[0] != ts:
            columns = one.read(self._source.at([ts]))
            cached = self._cache[origin] = ts, [columns[leaf.column][leaf.index] for leaf in one.leaves]
        return cached[1]

    def _watch(self, wanted: gnmi_pb2.SubscriptionList, one: gnmi_pb2.Subscription) -> _Watch:
        query = RequestPath(wanted.prefix, one.path)
        changes = one.mode == gnmi_pb2.ON_CHANGE
        every = self._config.change_ns if changes else one.sample_interval or self._config.sample_ns
        return _Watch(query, self._find(query), every, changes, one.heartbeat_interval, changes or one.suppress_redundant)

    def _snapshot(self, watches: list[_Watch], encoding: int) -> Iterator[gnmi_pb2.SubscribeResponse]:
        now = self._clock.now_ns()
        for watch in watches:
            watch.sent.clear()
            yield from self._send(watch, now, encoding, everything=True)
        yield gnmi_pb2.SubscribeResponse(sync_response=True)

    def _stream(
        self, watches: list[_Watch], wanted: gnmi_pb2.SubscriptionList, context: grpc.ServicerContext
    ) -> Iterator[gnmi_pb2.SubscribeResponse]:
        gone = threading.Event()
        context.add_callback(gone.set)
        now = self._clock.now_ns()
        for watch in watches:
            if wanted.updates_only:
                values = self._values(watch.query.origin, now)
                watch.sent = {number: values[number] for number in watch.leaves if values[number] is not None}
            else:
                yield from self._send(watch, now, wanted.encoding, everything=True)
            watch.due_ns, watch.heartbeat_due_ns = now + watch.every_ns, now + watch.heartbeat_ns
        yield gnmi_pb2.SubscribeResponse(sync_response=True)
        while watches and not gone.is_set() and not self.ended.is_set():
            due = min(watch.due_ns for watch in watches)
            # In short steps, to notice the end of the server.
            self._clock.wait(min(0.1, max(0.0, (due - self._clock.now_ns()) / NS_PER_S)), gone)
            now = self._clock.now_ns()
            for watch in watches:
                if now >= watch.due_ns:
                    beat = bool(watch.heartbeat_ns) and now >= watch.heartbeat_due_ns
                    yield from self._send(watch, now, wanted.encoding, everything=beat or not watch.suppress)
                    watch.due_ns += max(1, -(-(now - watch.due_ns + 1) // watch.every_ns)) * watch.every_ns
                    if beat:
                        watch.heartbeat_due_ns = now + watch.heartbeat_ns
        if self.ended.is_set() and not gone.is_set():
            _refuse(context, grpc.StatusCode.UNAVAILABLE, "the server stops")

    def _send(self, watch: _Watch, now: int, encoding: int, *, everything: bool) -> Iterator[gnmi_pb2.SubscribeResponse]:
        """Yield the due values of a subscription, object by object, and deletes for those that disappeared."""
        query, values = watch.query, self._values(watch.query.origin, now)
        leaves = self._trees[query.origin].leaves if watch.leaves else ()
        objects: dict[tuple[tree.Element, ...], list[tuple[int, Any]]] = {}
        gone: set[tuple[tree.Element, ...]] = set()
        touched: set[tuple[tree.Element, ...]] = set()
        for number in watch.leaves:
            leaf, value = leaves[number], values[number]
            if value is None:
                if number in watch.sent:
                    del watch.sent[number]
                    gone.add(leaf.elements[: leaf.depth - (leaf.elements[leaf.depth - 1].name == "state")])
                continue
            key = leaf.elements[: leaf.depth]
            objects.setdefault(key, []).append((number, value))
            if everything or watch.sent.get(number) != value:
                touched.add(key)
        for key in gone:
            note = gnmi_pb2.Notification(timestamp=now, prefix=query.prefix(), delete=[query.path(key)])
            yield gnmi_pb2.SubscribeResponse(update=note)
        due = {key: some for key, some in objects.items() if key in touched}
        if query.origin == tree.SONIC and encoding != PROTO and due:
            # SONiC's database answers with one value for the requested path.
            note = gnmi_pb2.Notification(timestamp=now, prefix=query.prefix())
            self._documents(note, query, [pair for some in due.values() for pair in some], encoding)
            yield gnmi_pb2.SubscribeResponse(update=note)
        else:
            for key, some in due.items():
                yield self._object(watch, key, some, now, encoding, everything)
        watch.sent.update((number, value) for some in due.values() for number, value in some)

    def _object(
        self, watch: _Watch, key: tuple[tree.Element, ...], some: list[tuple[int, Any]], now: int, encoding: int, everything: bool
    ) -> gnmi_pb2.SubscribeResponse:
        """Return a notification with the changed leaves of an object; an atomic object sends all of its leaves."""
        query, leaves = watch.query, self._trees[watch.query.origin].leaves
        atomic = leaves[some[0][0]].atomic
        short = atomic or self._config.prefixes
        note = gnmi_pb2.Notification(timestamp=now, prefix=query.prefix(key if short else ()), atomic=atomic)
        if self._config.trees and encoding != PROTO:
            pairs = [(leaves[number], value) for number, value in some]
            note.update.add(path=relative(()) if short else query.path(key), val=document(pairs, len(key), encoding))
            return gnmi_pb2.SubscribeResponse(update=note)
        for number, value in some:
            if everything or atomic or watch.sent.get(number) != value:
                leaf = leaves[number]
                path = relative(leaf.elements[leaf.depth :]) if short else query.path(leaf.elements)
                note.update.add(path=path, val=typed(leaf, value, encoding))
        return gnmi_pb2.SubscribeResponse(update=note)

    def _documents(self, note: gnmi_pb2.Notification, query: RequestPath, found: list[tuple[int, Any]], encoding: int) -> None:
        """Add leaves, or for JSON one tree per node that the path matches."""
        leaves = self._trees[query.origin].leaves
        depth = len(query.elements)
        if query.origin == tree.SONIC and encoding != PROTO:
            pairs = [(leaves[number], value) for number, value in found]
            note.update.add(path=query.path(query.elements), val=_database_value(query, pairs, encoding))
            return
        nodes: dict[tuple[tree.Element, ...], list[tuple[tree.Leaf, Any]]] = {}
        for number, value in found:
            leaf = leaves[number]
            nodes.setdefault(leaf.elements[:depth], []).append((leaf, value))
        for key, some in nodes.items():
            if encoding == PROTO or len(some[0][0].elements) == depth:
                for leaf, value in some:
                    note.update.add(path=query.path(leaf.elements), val=typed(leaf, value, encoding))
            else:
                note.update.add(path=query.path(key) if key else gnmi_pb2.Path(), val=document(some, depth, encoding))


class Stream:
    """Subscriptions of a switch without a connection, at instants that the caller chooses.

    A subscription is a path, a filter for the leaves below it, and whether unchanged values are suppressed. Every notification names the
    switch as its target.
    """

    def __init__(
        self, source: SwitchSource, clock: Clock, subscriptions: Sequence[tuple[Sequence[tree.Element], Callable[[tree.Leaf], bool], bool]]
    ) -> None:
        self._servicer = _Servicer(source, ServerConfig(), clock)
        wanted = gnmi_pb2.SubscriptionList(prefix=gnmi_pb2.Path(target=source.switch.device), encoding=PROTO)
        self._watches = []
        for elements, wanted_leaf, changes in subscriptions:
            one = wanted.subscription.add(path=relative(elements), mode=gnmi_pb2.ON_CHANGE if changes else gnmi_pb2.SAMPLE)
            watch = self._servicer._watch(wanted, one)
            leaves = self._servicer._trees[watch.query.origin].leaves
            watch.leaves = [number for number in watch.leaves if wanted_leaf(leaves[number])]
            self._watches.append(watch)

    def at(self, ts: int) -> bytes:
        """Return the messages that are due at ``ts`` (ns UTC), each after its length as a varint."""
        made = bytearray()
        for watch in self._watches:
            for response in self._servicer._send(watch, ts, PROTO, everything=not watch.suppress):
                raw = response.SerializeToString()
                made += _varint(len(raw)) + raw
        return bytes(made)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def _database_value(query: RequestPath, found: list[tuple[tree.Leaf, Any]], encoding: int) -> gnmi_pb2.TypedValue:
    """Return a single field as a string, the fields of one key as an object, those of several keys as objects by key."""
    names = [element.name for element in query.elements]
    below = next((at + 1 for at, name in enumerate(names) if name in ("Queues", "PriorityGroups")), 0)
    wild = next((at for at, name in enumerate(names) if "*" in name), len(names))
    skip = min(below, len(names)) if below else wild
    if len(found) == 1 and len(found[0][0].elements) == skip:
        return typed(found[0][0], found[0][1], encoding)
    return document(found, min(skip, min(len(leaf.elements) for leaf, _ in found) - 1), encoding)


def _text(query: RequestPath) -> str:
    return "/" + "/".join(element.name + "".join(f"[{key}={value}]" for key, value in element.keys) for element in query.elements)


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, why: str) -> NoReturn:
    context.abort(code, why)
    raise AssertionError("abort raises")
