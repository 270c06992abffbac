"""sFlow version 5: interface counters, sampled packets and drops that switches and hosts send by UDP, live or from a capture.

sFlow has no retransmission and no clock. What is lost is known from the numbers of the datagrams and admitted in ``gap``; rows
have the time of arrival, which the kernel stamps. Decoding is in ``decode/sflow``, the rows are made in ``sflow_rows``.
"""

import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.clock import Clock
from ...pipeline.errors import InputError
from ..base import Batch, Collector, Options, lazy
from ..wire.listen import DATAGRAM_BYTES_MAX, Sources, UdpListener

if TYPE_CHECKING:
    import numpy as np

SOURCE = "sflow"
PORT = 6343

# A capture is looked into so far to find out what it holds.
_PEEK_BYTES = 64 * 1024


@dataclass(frozen=True)
class SflowConfig(Sources):
    """Section ``[collect.sflow]``: where to listen, who may send, how devices and ports are called, and the bounds."""

    enabled: bool = False
    address: str = "127.0.0.1"
    port: int = PORT
    # Agent address -> device name; without an entry the address is the name.
    devices: dict[str, str] = field(default_factory=dict)
    # "device/number" -> port name; else what the agent says, else the number.
    ports: dict[str, str] = field(default_factory=dict)
    # Agents and interfaces beyond these are refused and counted.
    agents_max: int = 4096
    interfaces_max: int = 131_072
    # How much of one datagram is looked at.
    samples_max: int = 1024
    records_max: int = 64
    header_bytes_max: int = 512
    # What may wait for the next drain, and what is asked of the kernel for each socket.
    buffer_bytes_max: int = 64 * 1024 * 1024
    receive_buffer_bytes: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port: {self.port} is no UDP port")
        for name in (
            "agents_max",
            "interfaces_max",
            "samples_max",
            "records_max",
            "header_bytes_max",
            "buffer_bytes_max",
            "receive_buffer_bytes",
        ):
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
        """The port that is listened on, once started."""
        return self._listener.port

    def start(self) -> None:
        """Listen. Raises ``ServiceError`` when the address or the port cannot be had."""
        from .batches import Naming, Rows, warm
        from .decoder import SflowLimits

        config = self._config
        self._rows = Rows(
            Naming(config.devices, config.ports),
            agents_max=config.agents_max,
            interfaces_max=config.interfaces_max,
            limits=SflowLimits(config.samples_max, config.records_max, config.header_bytes_max),
        )
        # The kernels are loaded, or compiled the first time, before datagrams can wait for them.
        warm()
        self._listener.start()

    def drain(self) -> list[Batch]:
        """Return the rows of all that came since the last call, and what was lost here on the way."""
        from .frames import of_gaps

        came = self._listener.take()
        batches = self._rows.of(came.buffer, came.offsets, came.lengths, came.recv_ts, lambda k: came.senders[came.sender[k]])
        lost = self._listener.lost()
        if lost:
            # Whose they were is not known: agents' own gaps say it, as far as their numbers go on.
            now, here = self._clock.now_ns(), socket.gethostname()
            batches.append(Batch("gap", of_gaps([(now, here, "datagrams", missed, reason) for reason, missed in lost.items()])))
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return what came, by kind, what was lost or refused, by reason, and how many agents and interfaces are known."""
        made = {f"{name}_total": float(number) for name, number in self._rows.counts.items()}
        made |= {"agents": float(len(self._rows.devices)), "interfaces": float(self._rows.interfaces)}
        made |= {f"socket_{name}": number for name, number in self._listener.counters().items()}
        return {f"weft_collectors_sflow_{name}": number for name, number in made.items()}

    def stop(self) -> None:
        """Close the socket; what the kernel has by now is drained once more. Idempotent."""
        self._listener.stop()


@dataclass(frozen=True, slots=True)
class _Came:
    """Datagrams of a recording, as ``Rows.of`` takes them, and how many the recorder admits to have lost."""

    buffer: "np.ndarray"
    offsets: "np.ndarray"
    lengths: "np.ndarray"
    recv_ts: "np.ndarray"
    sender_of: Callable[[int], str]
    missed: int = 0
    missed_ts: int = 0


class SflowRecording:
    """A pcap or pcapng file with sFlow to its usual port, or a file that is one datagram (its time is the file's)."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options
        self.counts: Mapping[str, int] = {}

    def batches(self) -> Iterator[Batch]:
        """Yield the rows in the order of the file.

        Raises ``InputError`` where the file is damaged, after everything good before that place.
        """
        from ...pipeline.tables.families import FAMILIES
        from .batches import Naming, Rows
        from .frames import of_gaps

        rows = Rows(Naming(nameless=self._options.device or self._path.stem))
        self.counts = rows.counts
        problem = None
        try:
            for came in self._pieces():
                yield from rows.of(came.buffer, came.offsets, came.lengths, came.recv_ts, came.sender_of)
                if came.missed:
                    here = self._options.device or self._path.stem
                    yield Batch("gap", of_gaps([(came.missed_ts, here, "datagrams", came.missed, "kernel_drop")]))
        except InputError as error:
            problem = error
        if rows.devices:
            yield Batch("port", FAMILIES["port"].empty(), rows.devices)
        if problem is not None:
            raise problem

    def _pieces(self) -> Iterator[_Came]:
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


def _one(raw: bytes, ts: int, name: str) -> _Came:
    import numpy as np

    return _Came(np.frombuffer(raw, np.uint8), np.zeros(1, np.int64), np.array([len(raw)]), np.array([ts]), lambda _k: name)


def _captured(path: Path, piece_bytes: int | None = None) -> Iterator[_Came]:
    from ..wire import roce
    from ..wire.capture import PIECE_BYTES, read_capture
    from ..wire.udp import payloads

    last_ts = 0
    for piece in read_capture(path, piece_bytes or PIECE_BYTES):
        found = payloads(piece.buffer, piece.offsets, piece.lengths, piece.links, PORT)
        last_ts = int(piece.ts[-1]) if len(piece.ts) else last_ts
        yield _Came(
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
        return (
            len(head) >= 28
            and struct.unpack_from(">I", head)[0] == 5
            and struct.unpack_from(">I", head, 4)[0] in (1, 2)
            and path.suffix == ".bin"
        )
    from ..wire.capture import read_capture
    from ..wire.headers import ROCE_PORT
    from ..wire.udp import payloads

    try:
        piece = next(read_capture(path, _PEEK_BYTES))
    except (InputError, StopIteration):
        return False
    packets = (piece.buffer, piece.offsets, piece.lengths, piece.links)
    sflow = payloads(*packets, PORT)
    is_five = sum(piece.buffer[at : at + 4].tobytes() == b"\0\0\0\5" for at in sflow.offsets)
    return is_five > len(payloads(*packets, ROCE_PORT).at)


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
