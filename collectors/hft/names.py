"""Names of the labels of high-frequency telemetry, read from a file beside the stream.

A SONiC switch sends counters under numbers. Names, templates and the poll interval are in its databases, in the records
``HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE|<profile>|<group>`` of STATE_DB. The file is a dump of these records as JSON
(``sonic-db-dump -n STATE_DB -y``, or any object with such keys), or written by hand, as TOML or JSON::

    [[session]]
    name = "profile|PORT"            # the last part is the group: PORT, QUEUE, INGRESS_PRIORITY_GROUP, BUFFER_POOL
    poll_interval_us = 100
    object_names = ["Ethernet0", "Ethernet4"]
    object_ids = [1, 2]
    session_config = "000a..."       # templates as an IPFIX message, hex or base64; optional

Lists may also be comma-separated texts, as in the database. Labels are unique within their group; a label not found there is looked up
in all groups.
"""

import base64
import binascii
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...pipeline.dictionary import SAI_OBJECTS
from ...pipeline.errors import InputError
from ..sampling.sai import GROUP, POOL, PORT, QUEUE

FILE_BYTES_MAX = 64 * 2**20
LABELS_MAX = 32_767

_TABLES = ("HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE", "HIGH_FREQUENCY_TELEMETRY_SESSION")
_GROUPS = {"PORT": PORT, "QUEUE": QUEUE, "BUFFER_POOL": POOL, "INGRESS_PRIORITY_GROUP": GROUP}
_HINT = "dump the records again, or write them as the documentation of the collector hft shows"


@dataclass(frozen=True, slots=True)
class Names:
    """Names of labels by SAI type (0: any), templates as IPFIX messages, and the poll interval, 0 if unknown."""

    names: Mapping[tuple[int, int], str] = field(default_factory=dict)
    templates: tuple[bytes, ...] = ()
    interval_ns: int = 0

    def of(self, kind: int, label: int) -> str:
        """Return the name of a label of a SAI type, made of type and number if there is none."""
        return self.names.get((kind, label)) or self.names.get((0, label)) or f"{SAI_OBJECTS.get(kind, 'label')}{label}"


def read_names(path: Path) -> Names:
    """Read a file of sessions. Raises ``InputError`` if it cannot be read or is malformed."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    if len(content) > FILE_BYTES_MAX:
        raise InputError(str(path), f"is larger than {FILE_BYTES_MAX} bytes", "dump the table of the sessions alone")
    try:
        tree = tomllib.loads(content.decode()) if path.suffix == ".toml" else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is no {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}", _HINT) from None
    return _names(path, _sessions(path, tree))


def _sessions(path: Path, tree: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and fields of each session of the file."""
    if not isinstance(tree, Mapping):
        raise InputError(str(path), "is no table of sessions", _HINT)
    written = tree.get("session")
    if isinstance(written, list) and all(isinstance(one, Mapping) for one in written):
        return [(str(one.get("name", "")), one) for one in written]
    found = []
    for key, record in tree.items():
        table, _, name = key.partition("|")
        if table in _TABLES and isinstance(record, Mapping):
            fields = record.get("value", record)
            found.append((name, fields if isinstance(fields, Mapping) else {}))
    if not found:
        raise InputError(str(path), "has no session", _HINT)
    return found


def _names(path: Path, sessions: list[tuple[str, Mapping[str, Any]]]) -> Names:
    names: dict[tuple[int, int], str] = {}
    templates = []
    interval_ns = 0
    for session, fields in sessions:
        kind = _GROUPS.get(session.rpartition("|")[2].upper(), 0)
        objects, ids = _list(fields.get("object_names", [])), _list(fields.get("object_ids", []))
        if not ids and objects:
            # Older versions store no labels: they are the indices in the list, from 1.
            ids = [str(place) for place in range(1, len(objects) + 1)]
        if len(objects) != len(ids):
            raise InputError(str(path), f"session {session!r} has {len(objects)} names and {len(ids)} ids", _HINT)
        for name, number in zip(objects, ids, strict=True):
            if not (number.isdecimal() and 1 <= int(number[:8]) <= LABELS_MAX):
                raise InputError(str(path), f"session {session!r}: id {number[:20]!r} is not from 1 to {LABELS_MAX}", _HINT)
            names[kind, int(number)] = name
            names.setdefault((0, int(number)), name)
        if config := fields.get("session_config"):
            templates.append(_binary(path, session, config))
        interval_ns = interval_ns or _interval(path, session, fields.get("poll_interval_us", fields.get("poll_interval", 0)))
    return Names(names, tuple(dict.fromkeys(templates)), interval_ns)


def _list(value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [text for part in parts if (text := str(part).strip())]


def _interval(path: Path, session: str, value: Any) -> int:
    try:
        return max(0, min(round(float(value) * 1000), 10**12))
    except (TypeError, ValueError, OverflowError):
        raise InputError(str(path), f"session {session!r}: poll interval {value!r} is no number", "give it in microseconds") from None


def _binary(path: Path, session: str, value: Any) -> bytes:
    """Return the templates from hex, base64, or the bytes as characters; all begin with version 10."""
    text = str(value)
    for decode in (bytes.fromhex, lambda plain: base64.b64decode(plain.strip(), validate=True), lambda plain: plain.encode("latin-1")):
        try:
            content = decode(text)
        except (ValueError, binascii.Error):
            continue
        if content[:2] == b"\x00\x0a":
            return content
    raise InputError(str(path), f"session {session!r}: session_config is no IPFIX message", "write it in hex or base64")
