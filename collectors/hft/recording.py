"""Recorded high-frequency telemetry: IPFIX messages one after another in a file, or in the UDP packets of a capture.

A file beside the recording, ``<recording>.toml`` or ``<recording>.json`` (``names``), maps labels to names; its templates are known before
the first message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_MS
from ...pipeline.errors import InputError
from ..base import Batch, Options
from ..sampling.readings import Pace
from ..sampling.runs import closing
from .config import PORT
from .ipfix import EXPORTERS_MAX, Block, IpfixDecoder, IpfixLoss
from .ipfix_kernel import HEADER_BYTES
from .names import Names, read_names
from .streams import Streams, gaps

SPAN_NS = 1000 * NS_PER_MS
SERIES_MAX = 500_000

_PIECE_BYTES = 4 * 2**20
_HINT = "record the messages again; those before are used"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Blocks of a piece of the file; ``problem`` is the error of the message at byte ``at``, empty if there is none."""

    blocks: list[Block]
    at: int = 0
    problem: str = ""
    dropped: int = 0


class HftRecording:
    """A file of IPFIX messages or a capture."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._device = path, options.device
        self._decoder = IpfixDecoder()
        rates = {"": options.line_rate_bps} if options.line_rate_bps else {}
        self._streams = Streams(Pace(0, SPAN_NS, rates), SERIES_MAX)
        self._names = Names()
        self._senders: dict[str, int] = {}
        self._devices: dict[int, tuple[str, Names]] = {}

    def batches(self) -> Iterator[Batch]:
        """Yield rows in time slices; raise ``InputError`` after the last good one."""
        yield from closing(self._open_ended())

    def counters(self) -> Mapping[str, float]:
        """Return the counters of the live collector for this file."""
        return {**self._decoder.counts(), **self._streams.counters()}

    def _open_ended(self) -> Iterator[Batch]:
        from ..wire.capture import is_capture

        beside = [self._path.with_name(self._path.name + end) for end in (".toml", ".json")]
        self._names = next((read_names(path) for path in beside if path.is_file()), Names())
        fault, newest, last = None, 0, _Piece([])
        try:
            with self._path.open("rb") as file:
                head = file.read(HEADER_BYTES)
            for last in self._captured() if is_capture(head) else self._messages():
                newest = max([newest, *(int(block.times.max()) for block in last.blocks if len(block.times))])
                yield from self._streams.take(last.blocks, self._devices, None)
                yield from gaps(self._named_losses(last.dropped), newest)
        except InputError as error:
            fault = error
        except OSError as error:
            fault = InputError(str(self._path), f"cannot be read ({error.strerror})", "check the path and its permissions")
        self._decoder.end()
        yield from self._streams.end(None)
        yield from gaps(self._named_losses(0), newest)
        if fault is None and last.problem:
            fault = InputError(str(self._path), f"the message at byte {last.at} {last.problem}", _HINT)
        if fault is not None:
            raise fault

    def _named_losses(self, dropped: int) -> list[tuple[str, IpfixLoss]]:
        lost = [(self._devices[loss.exporter][0], loss) for loss in self._decoder.losses()]
        here = self._device or self._path.stem
        return [*lost, (here, IpfixLoss(0, "datagrams", dropped, "kernel_drop"))] if dropped else lost

    def _messages(self) -> Iterator[_Piece]:
        number = self._exporter(self._device or self._path.stem)
        at, left = 0, b""
        with self._path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                content = np.frombuffer(left + piece, np.uint8)
                blocks, used, problem = self._decoder.feed_stream(content, number, 0)
                at, left = at + used, content[used:].tobytes()
                yield _Piece(blocks, at, problem)
                if problem:
                    return
        if left:
            yield _Piece([], at, "is cut")

    def _captured(self) -> Iterator[_Piece]:
        from ..wire import roce
        from ..wire.capture import read_capture
        from ..wire.udp import payloads

        for piece in read_capture(self._path):
            found = payloads(piece.buffer, piece.offsets, piece.lengths, piece.links, PORT)
            blocks = []
            if len(found.at):
                senders = roce.addresses(found.ends)[0]
                numbers = {sender: self._exporter(sender) for sender in senders.unique().to_list()}
                exporters = senders.replace_strict(numbers, return_dtype=pl.Int64).to_numpy()
                blocks = self._decoder.feed(piece.buffer, found.offsets, found.lengths, exporters, 0)
            yield _Piece(blocks, dropped=piece.dropped)

    def _exporter(self, sender: str) -> int:
        """Return the number of a sender, with the templates of the names file; all beyond the limit share the last one."""
        if sender not in self._senders:
            number = self._senders[sender] = min(len(self._senders), EXPORTERS_MAX - 1)
            self._devices.setdefault(number, (self._device or sender, self._names))
            for message in self._names.templates:
                self._decoder.learn(number, message, 0)
        return self._senders[sender]


def recognises(path: Path, head: bytes) -> bool:
    """Return whether a file begins with an IPFIX header that fits the bytes behind it, or is a capture of IPFIX."""
    from ..wire.capture import is_capture
    from ..wire.udp import is_capture_of

    if is_capture(head):
        return is_capture_of(path, PORT, b"\x00\x0a")
    length = int.from_bytes(head[2:4], "big")
    return head[:2] == b"\x00\x0a" and length >= HEADER_BYTES and head[length : length + 2] in (b"", b"\x00", b"\x00\x0a")
