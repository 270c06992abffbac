"""Recorded SubscribeResponses: a JSON list of them (protobuf's JSON form), or messages one after another, each behind its length."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
from gnmi_pb import gnmi_pb2
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError

from ...pipeline.errors import InputError
from ..base import Batch, Options
from ..sampling.runs import closing
from .decoder import PASS_BYTES, Decoder, Messages

# A JSON file is read whole and takes about ten times its size in memory.
JSON_BYTES_MAX = 128 * 1024 * 1024
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_LENGTH_BYTES_MAX = 5
_HINT = "name the file of another collector's kind with --kind, or record it again"
_NOTIFICATION, _TIMESTAMP = 0x0A, 0x08


class GnmiRecording:
    """A file of responses of one device, or of the devices that the prefixes name as targets."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options

    def batches(self) -> Iterator[Batch]:
        """Yield rows in the order of the file, sorted by time within 2 MiB of it.

        Raises ``InputError`` where the file is cut, or at its end if some messages are not SubscribeResponses; in both cases after the last
        good row.
        """
        return closing(self._batches())

    def _batches(self) -> Iterator[Batch]:
        decoder = Decoder()
        stream = decoder.stream(self._options.device or self._path.stem, names_devices=self._options.device is None)
        wrong, first, number, problem = 0, 0, 0, None
        messages = self._messages()
        while problem is None:
            raw, problem = _part(messages)
            if not raw:
                break
            decoded = decoder.decode(Messages(raw, np.full(len(raw), stream, np.int32), np.zeros(len(raw), np.int64)))
            for batch in decoded.batches:
                yield replace(batch, frame=batch.frame.with_columns(recv_ts=pl.col("ts")).sort("ts", maintain_order=True))
            if not wrong and decoded.wrong.any():
                first = number + int(np.argmax(decoded.wrong)) + 1
            wrong += int(decoded.wrong.sum())
            number += len(raw)
        if problem is not None:
            raise problem
        if wrong:
            raise InputError(str(self._path), f"{wrong} messages, the first is number {first}, are no SubscribeResponses", _HINT)

    def _messages(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                head = file.read(4096)
                file.seek(0)
                yield from (_json(self._path, file) if head.lstrip()[:1] in (b"[", b"{") else _delimited(self._path, file))
        except OSError as error:
            raise InputError(str(self._path), f"cannot be read ({error.strerror})", "check its permissions") from None


def _part(messages: Iterator[bytes]) -> tuple[list[bytes], InputError | None]:
    """Return the next messages, about ``PASS_BYTES`` in all, and the error behind them."""
    part: list[bytes] = []
    size = 0
    try:
        for message in messages:
            part.append(message)
            size += len(message)
            if size >= PASS_BYTES:
                break
    except InputError as error:
        return part, error
    return part, None


def _delimited(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield messages that follow their length as a varint."""
    while head := file.read(1):
        length, shift = head[0] & 127, 7
        while head and head[0] >= 128 and shift < 7 * _LENGTH_BYTES_MAX:
            head = file.read(1)
            length |= (head[0] & 127) << shift if head else 0
            shift += 7
        if not head or head[0] >= 128 or length > MESSAGE_BYTES_MAX:
            raise InputError(str(path), f"has no message's length at byte {file.tell()}", _HINT)
        raw = file.read(length)
        if len(raw) < length:
            raise InputError(
                str(path), f"ends within a message, {length - len(raw)} bytes early", "use what came before it, or record it again"
            )
        yield raw


def _json(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the messages of a JSON list, or of one object."""
    raw = file.read(JSON_BYTES_MAX + 1)
    if len(raw) > JSON_BYTES_MAX:
        raise InputError(str(path), "is above 128 MiB of JSON", "split it, or record length-delimited protobuf")
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON ({error})", _HINT) from None
    for number, one in enumerate(tree if isinstance(tree, list) else [tree], 1):
        try:
            if not isinstance(one, dict):
                raise ParseError("not an object")
            yield ParseDict(one, gnmi_pb2.SubscribeResponse(), ignore_unknown_fields=True).SerializeToString()
        except (ParseError, TypeError, ValueError, AttributeError) as error:
            problem = " ".join(str(error).split())[:200]
            raise InputError(str(path), f"entry {number} is no SubscribeResponse ({problem})", _HINT) from None


def recognises(path: Path, head: bytes) -> bool:
    """Return whether a file begins with a response, in either form."""
    text = head.lstrip()
    if text[:1] in (b"[", b"{"):
        return (b'"update"' in text and b'"timestamp"' in text) or b'"syncResponse"' in text
    if len(head) < 4:
        return False
    length, at = head[0], 1
    if length >= 128:
        length, at = (length & 127) | (head[1] & 127) << 7, 2
        if head[1] >= 128:
            length, at = length | (head[2] & 127) << 14, 3
    first = head[at : at + length]
    if len(first) == length and length > 0:
        try:
            response = gnmi_pb2.SubscribeResponse.FromString(first)
        except DecodeError:
            return False
        return response.WhichOneof("response") in ("update", "sync_response")
    # A message longer than the head: a notification that fills it and begins with its time.
    inner = head[at + 1 : at + 6]
    size, used = 0, 0
    for used, byte in enumerate(inner, 1):
        size |= (byte & 127) << 7 * (used - 1)
        if byte < 128:
            break
    return head[at] == _NOTIFICATION and size + used + 1 <= length and head[at + 1 + used : at + 2 + used] == bytes([_TIMESTAMP])
