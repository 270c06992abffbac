"""SONiC high-frequency telemetry: counters of a switch every 10 us to some ms, as IPFIX over UDP, over TCP, or in a file.

The stream carries only numbers: SAI types, statistics and labels. ``ipfix`` decodes it to columns, a file names the labels (``names``),
``sampling.sai`` names the statistics, and ``sampling.readings`` turns the columns into segments of samples and rows of counters. The
switch sends the messages to a local socket only; a relay on the switch, or a recording of that socket, brings them here.
"""

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ...pipeline.errors import InputError, ServiceError
from ..base import Batch
from ..sampling.readings import Pace
from ..wire import capture, listen, roce, udp
from ..wire.listen import ReceivedDatagrams, UdpListener
from ..wire.listen_tcp import Stretch, TcpListener
from ..wire.octets import octets
from .config import PORT, SOURCE, HftConfig
from .ipfix import IpfixDecoder, IpfixLoss
from .ipfix_kernel import HEADER_BYTES
from .names import Names, read_names
from .streams import Streams, gaps

STATE_FILE = "hft-templates.json"
STATE_BYTES_MAX = 64 * 2**20

_CHECK_NS = NS_PER_S
_GAUGES = ("held_bytes", "templates", "streams", "series", "unknown_series")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _SessionFile:
    """A file of sessions as last read."""

    names: Names
    stamp: tuple[int, int] | None = None


class Hft:
    """Receives from switches between ``start`` and ``stop``."""

    def __init__(self, config: HftConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._decoder = config.decoder()
        self._streams = Streams(config.pace, config.series_max)
        self._udp: UdpListener | None = None
        self._tcp: TcpListener | None = None
        self._senders: dict[str, int] = {}
        self._connections: dict[int, tuple[int, bytes]] = {}
        self._free = list(range(config.exporters_max - 1, -1, -1))
        self._devices: dict[int, tuple[str, Names]] = {}
        self._addresses: dict[int, str] = {}
        self._files: dict[str, _SessionFile] = {}
        self._saved = 0
        self._next_check_ns = 0
        self._stopped = False
        self._counts: Counter[str] = Counter()

    @property
    def udp_port(self) -> int:
        """The bound UDP port."""
        return self._udp.port if self._udp is not None else 0

    @property
    def tcp_port(self) -> int:
        """The bound TCP port."""
        return self._tcp.port if self._tcp is not None else 0

    def start(self) -> None:
        """Read the names, load saved templates, and listen.

        Raises:
            InputError: a file of sessions cannot be read or is malformed.
            ServiceError: an address is not available.
        """
        config = self._config
        for path in dict.fromkeys(config.sessions.values()):
            self._files[path] = _SessionFile(read_names(Path(path)), _stamp(path))
        self._load_templates()
        warm()
        if config.udp:
            limits = {"buffer_bytes_max": config.buffer_bytes_max, "receive_buffer_bytes": config.receive_buffer_bytes}
            self._udp = UdpListener(config.address, config.port, config.allow, self._clock, **limits, name=SOURCE)
            self._udp.start()
        if config.tcp:
            limits = {"connections_max": config.connections_max, "connection_bytes_max": config.connection_bytes_max}
            self._tcp = TcpListener(config.address, config.port, config.allow, self._clock, **limits, name=SOURCE)
            try:
                self._tcp.start()
            except ServiceError:
                self.stop()
                raise

    def stop(self) -> None:
        """Close the sockets. Idempotent."""
        for listener in (self._udp, self._tcp):
            if listener is not None:
                listener.stop()
        self._stopped = True

    def drain(self) -> list[Batch]:
        """Return the rows of the messages since the last call."""
        now_ns = self._clock.now_ns()
        batches: list[Batch] = []
        losses: list[tuple[str, IpfixLoss]] = []
        if self._udp is not None:
            batches += self._datagrams(self._udp.take(), now_ns)
            here = socket.gethostname()
            losses += [(here, IpfixLoss(0, "datagrams", number, reason)) for reason, number in self._udp.lost().items() if number]
        if self._tcp is not None:
            for stretch in self._tcp.take():
                batches += self._stretch(stretch, now_ns)
        if self._stopped:
            self._decoder.end()
            batches += self._streams.end(now_ns)
        self._decoder.expire(now_ns)
        losses += self._named_losses()
        batches += [*self._streams.quiet(now_ns), *gaps(losses, now_ns)]
        if now_ns >= self._next_check_ns:
            self._next_check_ns = now_ns + _CHECK_NS
            batches += self._check_files(now_ns)
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return messages, records, counters, samples, and losses and refusals by reason."""
        counts = {**self._decoder.counts(), **self._streams.counters(), **self._counts}
        named = {what if what in _GAUGES else f"{what}_total": float(number) for what, number in counts.items()}
        for prefix, listener in (("udp", self._udp), ("tcp", self._tcp)):
            named |= {f"{prefix}_{what}": float(number) for what, number in (listener.counters() if listener is not None else {}).items()}
        return {f"weft_collectors_{SOURCE}_{what}": number for what, number in named.items()}

    def _datagrams(self, got: ReceivedDatagrams, now_ns: int) -> list[Batch]:
        if not len(got.offsets):
            return []
        numbers = np.array([self._exporter(sender) for sender in got.senders], np.int64)
        exporters, offsets, lengths = numbers[got.sender], got.offsets, got.lengths
        if (numbers < 0).any():
            known = exporters >= 0
            self._counts["refused_exporters_datagrams"] += int((~known).sum())
            exporters, offsets, lengths = exporters[known], offsets[known], lengths[known]
        return self._streams.take(self._decoder.feed(got.buffer, offsets, lengths, exporters, now_ns), self._devices, now_ns)

    def _stretch(self, stretch: Stretch, now_ns: int) -> list[Batch]:
        """Decode the bytes of a connection; close one that sends no IPFIX."""
        number, left = self._connections.get(stretch.connection, (-1, b""))
        batches: list[Batch] = []
        if number < 0 and stretch.content:
            number = self._number(stretch.sender)
            self._connections[stretch.connection] = (number, b"")
            if number >= 0:
                batches += self._learn_from_file(number, stretch.sender, now_ns)
        if number >= 0 and stretch.content:
            content = np.frombuffer(left + stretch.content, np.uint8)
            blocks, used, problem = self._decoder.feed_stream(content, number, now_ns)
            batches += self._streams.take(blocks, self._devices, now_ns)
            self._connections[stretch.connection] = (number, b"" if problem else content[used:].tobytes())
            if problem and self._tcp is not None:
                _log.warning("hft collector: closed the connection from %s: its message %s", stretch.sender, problem)
                self._tcp.cut(stretch.connection, "not_ipfix")
        elif stretch.content and self._tcp is not None:
            self._tcp.cut(stretch.connection, "exporters_max")
        if stretch.ended:
            number, left = self._connections.pop(stretch.connection, (-1, b""))
            self._counts["cut_messages"] += bool(left)
            if number >= 0:
                batches += self._streams.forget(number, now_ns)
                self._decoder.forget(number)
                batches += gaps(self._named_losses(), now_ns)
                del self._devices[number], self._addresses[number]
                self._free.append(number)
        return batches

    def _named_losses(self) -> list[tuple[str, IpfixLoss]]:
        return [(self._devices[loss.exporter][0], loss) for loss in self._decoder.losses()]

    def _exporter(self, sender: str) -> int:
        """Return the number of a sender of datagrams, -1 beyond the limit."""
        if (number := self._senders.get(sender)) is None:
            number = self._number(sender)
            if number >= 0:
                self._senders[sender] = number
                self._learn_from_file(number, sender, self._clock.now_ns())
        return number

    def _number(self, sender: str) -> int:
        if not self._free:
            return -1
        number = self._free.pop()
        device = self._config.devices.get(sender, sender)
        self._devices[number], self._addresses[number] = (device, self._names(sender)), sender
        return number

    def _path(self, sender: str) -> str | None:
        sessions = self._config.sessions
        device = self._config.devices.get(sender, sender)
        return sessions.get(device) or sessions.get(sender) or sessions.get("*")

    def _names(self, sender: str) -> Names:
        path = self._path(sender)
        return self._files[path].names if path is not None else Names()

    def _learn_from_file(self, number: int, sender: str, now_ns: int) -> list[Batch]:
        """Learn the templates of the sender's file of sessions; return the rows of data that waited for them."""
        blocks = [block for message in self._names(sender).templates for block in self._decoder.learn(number, message, now_ns)]
        return self._streams.take(blocks, self._devices, now_ns)

    def _check_files(self, now_ns: int) -> list[Batch]:
        """Once a second: save changed templates, and read changed files of sessions."""
        if self._decoder.changes != self._saved:
            self._save_templates()
        changed = set()
        for path, file in self._files.items():
            if (stamp := _stamp(path)) is None or stamp == file.stamp:
                continue
            file.stamp = stamp
            try:
                file.names = read_names(Path(path))
                changed.add(path)
            except InputError as error:
                self._counts["bad_session_files"] += 1
                _log.warning("hft collector: %s", error)
        batches = []
        for number, sender in self._addresses.items() if changed else ():
            if self._path(sender) in changed:
                self._devices[number] = (self._devices[number][0], self._names(sender))
                batches += self._learn_from_file(number, sender, now_ns)
        return batches

    def _save_templates(self) -> None:
        """Save the templates of senders of datagrams for a restart; a new connection sends its own again."""
        self._saved = self._decoder.changes
        if not self._config.state:
            return
        found = self._decoder.templates()
        saved = {
            sender: [[domain, name, content.hex()] for domain, name, content in found.get(number, [])]
            for sender, number in self._senders.items()
        }
        path = Path(self._config.state) / STATE_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps({"version": 1, "templates": saved}))
            os.replace(fresh, path)
        except OSError as error:
            self._counts["state_errors"] += 1
            _log.warning("hft collector: templates cannot be saved in %s (%s)", self._config.state, error.strerror)

    def _load_templates(self) -> None:
        """Load the templates saved before a restart; if that fails, wait for the senders to repeat them."""
        path = Path(self._config.state) / STATE_FILE
        if not self._config.state or not path.is_file():
            return
        try:
            if path.stat().st_size > STATE_BYTES_MAX:
                raise ValueError("too large")
            for sender, templates in json.loads(path.read_text())["templates"].items():
                number = self._exporter(str(sender))
                for domain, name, content in templates if number >= 0 else ():
                    self._decoder.learn(number, _message(int(domain), int(name), bytes.fromhex(content)), self._clock.now_ns())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            self._counts["state_errors"] += 1
            _log.warning("hft collector: %s cannot be read (%s), waiting for the senders to repeat their templates", path, error)


def warm() -> None:
    """Compile the kernels of datagrams, streams and captures by decoding a few messages, so that none waits at its first use."""
    listen.warm()
    capture.warm()
    decoder, one = IpfixDecoder(), np.array([0])
    counter = b"\x80\x01\x00\x08\x00\x01\x00\x00"
    messages = [_message(0, 256, b"\x01\x45\x00\x08" + counter), _message(0, 257, b"\x00\x01\xff\xff")]
    for number in range(1, 4):
        record = (number * NS_PER_S).to_bytes(8, "big") + bytes(8)
        messages.insert(number, b"\x00\x0a\x00\x24" + bytes(12) + b"\x01\x00\x00\x14" + record)
    # One record of variable length, and one without a template.
    messages += [b"\x00\x0a\x00\x18" + bytes(12) + name + b"\x00\x08" + bytes(4) for name in (b"\x01\x01", b"\x01\x02")]
    content = octets(b"".join(messages))
    for interval_ns in (0, NS_PER_MS):
        streams = Streams(Pace(interval_ns), 1)
        streams.take(decoder.feed(content, one, one + len(content), one, 0), {0: ("", Names())}, None)
        streams.end(None)
    roce.addresses(udp.payloads(content, one, one, one, PORT).ends)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _message(domain: int, name: int, content: bytes) -> bytes:
    """Return an IPFIX message with one template of the given field specifiers."""
    fields, at = 0, 0
    while at < len(content):
        at += 8 if content[at] & 0x80 else 4
        fields += 1
    record = name.to_bytes(2, "big") + fields.to_bytes(2, "big") + content
    size = len(record) + 4
    head = b"\x00\x0a" + (size + HEADER_BYTES).to_bytes(2, "big") + bytes(8) + domain.to_bytes(4, "big")
    return head + b"\x00\x02" + size.to_bytes(2, "big") + record
