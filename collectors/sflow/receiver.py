"""sFlow version 5: interface counters, sampled packets and drops that switches and hosts send by UDP, live or from a capture.

sFlow has no retransmission and no clock. The numbers of the datagrams show losses, which become rows of ``gap``; rows have the time
of arrival, stamped by the operating system. ``decoder`` decodes, ``batches`` and ``frames`` make the rows.
"""

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.clock import Clock
from ...pipeline.errors import InputError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, Collector, Options, gaps, lazy
from ..wire.listen import DATAGRAM_BYTES_MAX, Sources, UdpListener

if TYPE_CHECKING:
    import numpy as np

SOURCE = "sflow"
PORT = 6343


@dataclass(frozen=True)
class SflowConfig(Sources):
    """Section ``[collect.sflow]``: where to listen, who may send, names of devices and ports, and limits."""

    enabled: bool = False
    address: str = "127.0.0.1"
    port: int = PORT
    # Agent address -> device name; without an entry the address is the name.
    devices: dict[str, str] = field(default_factory=dict)
    # "device/number" -> port name; else the agent's name for it, else the number.
    ports: dict[str, str] = field(default_factory=dict)
    # Agents and interfaces beyond these are refused and counted.
    agents_max: int = 4096
    interfaces_max: int = 131_072
    # How much of one datagram is decoded.
    samples_max: int = 1024
    records_max: int = 64
    header_bytes_max: int = 512
    # Bytes that may wait for the next drain, and the receive buffer requested for the socket.
    buffer_bytes_max: int = 64 * 1024 * 1024
    receive_buffer_bytes: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port: {self.port} is no UDP port")
        limits = ("agents_max", "interfaces_max", "samples_max", "records_max", "header_bytes_max")
        for name in (*limits, "buffer_bytes_max", "receive_buffer_bytes"):
            if not 0 < getattr(self, name) < 2**31:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0 and below 2^31")


class SflowListener:
    """Receives and decodes between ``start`` and ``stop``."""

    def __init__(self, config: SflowConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._listener = UdpListener(
            config.address,
            config.port,
            config.allow,
            clock,
            buffer_bytes_max=config.buffer_bytes_max,
            receive_buffer_bytes=config.receive_buffer_bytes,
            name=SOURCE,
        )

    @property
    def port(self) -> int:
        """The port, once started."""
        return self._listener.port

    def start(self) -> None:
        """Listen. Raises ``ServiceError`` if the address or the port is not available."""
        from .batches import Naming, Rows, warm
        from .decoder import SflowLimits

        config = self._config
        self._rows = Rows(
            Naming(config.devices, config.ports),
            agents_max=config.agents_max,
            interfaces_max=config.interfaces_max,
            limits=SflowLimits(config.samples_max, config.records_max, config.header_bytes_max),
        )
        # Load or compile the kernels before datagrams arrive.
        warm()
        self._listener.start()

    def drain(self) -> list[Batch]:
        """Return the rows of all datagrams received since the last call, and the losses on this machine."""
        got = self._listener.take()
        batches = self._rows.of(got.buffer, got.offsets, got.lengths, got.recv_ts, lambda k: got.senders[got.sender[k]])
        lost = self._listener.lost()
        if lost:
            # The agents are unknown here; their own gaps appear when their numbers go on.
            now, here = self._clock.now_ns(), socket.gethostname()
            batches += gaps(SOURCE, [(here, "datagrams", missed, reason, None) for reason, missed in lost.items()], now)
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return datagrams and samples by kind, losses and refusals by reason, and the number of known agents and interfaces."""
        made = {f"{name}_total": float(number) for name, number in self._rows.counts.items()}
        made |= {"agents": float(len(self._rows.devices)), "interfaces": float(self._rows.interfaces)}
        made |= {f"socket_{name}": number for name, number in self._listener.counters().items()}
        return {f"weft_collectors_sflow_{name}": number for name, number in made.items()}

    def stop(self) -> None:
        """Close the socket; datagrams received by now are left for one more ``drain``. Idempotent."""
        self._listener.stop()


@dataclass(frozen=True, slots=True)
class _RecordedDatagrams:
    """Datagrams of a recording, as ``Rows.of`` takes them, and how many the recorder reports lost."""

    buffer: "np.ndarray"
    offsets: "np.ndarray"
    lengths: "np.ndarray"
    recv_ts: "np.ndarray"
    sender_of: Callable[[int], str]
    missed: int = 0
    missed_ts: int = 0


class SflowRecording:
    """A pcap or pcapng file with sFlow to its usual port, or a file that is one datagram, with the file's time."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options
        self.counts: Mapping[str, int] = {}

    def batches(self) -> Iterator[Batch]:
        """Yield the rows in the order of the file.

        Raises ``InputError`` where the file is damaged, after all rows before that place.
        """
        from .batches import Naming, Rows

        rows = Rows(Naming(nameless=self._options.device or self._path.stem))
        self.counts = rows.counts
        problem = None
        try:
            for piece in self._pieces():
                yield from rows.of(piece.buffer, piece.offsets, piece.lengths, piece.recv_ts, piece.sender_of)
                if piece.missed:
                    here = self._options.device or self._path.stem
                    yield from gaps(SOURCE, [(here, "datagrams", piece.missed, "kernel_drop", None)], piece.missed_ts)
        except InputError as error:
            problem = error
        if rows.devices:
            yield Batch("port", FAMILIES["port"].empty(), rows.devices)
        if problem is not None:
            raise problem

    def _pieces(self) -> Iterator[_RecordedDatagrams]:
        from ..wire.capture import is_capture

        try:
            with self._path.open("rb") as file:
                head = file.read(DATAGRAM_BYTES_MAX + 1)
            written_ns = self._path.stat().st_mtime_ns
        except OSError as error:
            raise InputError(str(self._path), error.strerror or "cannot be read", "give a file that this user may read") from None
        if is_capture(head):
            yield from _captured(self._path)
        elif len(head) > DATAGRAM_BYTES_MAX:
            raise InputError(str(self._path), "is no capture, and longer than one datagram", "give a pcap or pcapng file, or one datagram")
        else:
            yield _one(head, written_ns, self._path.stem)


def _one(raw: bytes, ts: int, name: str) -> _RecordedDatagrams:
    import numpy as np

    return _RecordedDatagrams(np.frombuffer(raw, np.uint8), np.zeros(1, np.int64), np.array([len(raw)]), np.array([ts]), lambda _k: name)


def _captured(path: Path, piece_bytes: int | None = None) -> Iterator[_RecordedDatagrams]:
    from ..wire import roce
    from ..wire.capture import PIECE_BYTES, read_capture
    from ..wire.udp import payloads

    last_ts = 0
    for piece in read_capture(path, piece_bytes or PIECE_BYTES):
        found = payloads(piece.buffer, piece.offsets, piece.lengths, piece.links, PORT)
        last_ts = int(piece.ts[-1]) if len(piece.ts) else last_ts
        yield _RecordedDatagrams(
            piece.buffer,
            found.offsets,
            found.lengths,
            piece.ts[found.at],
            lambda k, ends=found.ends: roce.addresses(ends[k : k + 1])[0].item(),
            piece.dropped,
            last_ts,
        )


def _recognises(path: Path, head: bytes) -> bool:
    """Return whether a file is one datagram, or a capture whose first packets hold more sFlow than RoCEv2."""
    from ..wire.capture import is_capture

    if not is_capture(head):
        return len(head) >= 28 and head[:4] == b"\0\0\0\5" and head[4:8] in (b"\0\0\0\1", b"\0\0\0\2") and path.suffix == ".bin"
    from ..wire.udp import is_capture_of

    return is_capture_of(path, PORT, b"\0\0\0\5")


SFLOW = Collector(
    name=SOURCE,
    doc="sFlow version 5 from switches and hosts, live or from a capture: counters, sampled RoCEv2 packets, delays, drops",
    families=("port", "queue", "reading", "packet", "latency", "event", "gap"),
    config=SflowConfig,
    registers="sflow",
    live=SflowListener,
    recorded=SflowRecording,
    recognises=_recognises,
    warm=lazy("sflow.batches", "warm"),
)
