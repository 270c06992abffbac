"""IPFIX messages built with ``struct``, from RFC 7011 and the layouts that SONiC switches send, independent of the decoder."""

import struct

T0 = 1_700_000_000_000_000_000
SECOND = 1_700_000_000


def message(sets: list[tuple[int, bytes]], *, sequence: int = 0, domain: int = 0, exported: int = SECOND, pad: bytes = b"") -> bytes:
    """Return one message of sets, each (id, content)."""
    body = b"".join(struct.pack(">HH", kind, len(content) + 4) + content for kind, content in sets) + pad
    return struct.pack(">HHIII", 10, 16 + len(body), exported, sequence, domain) + body


def enterprise(kind: int, stat: int) -> int:
    """Return the enterprise number of a SAI type and statistic, each with its extension bit above 0x20000000."""
    halves = [(one & 0x7FFF) | (0x8000 if one >= 0x2000_0000 else 0) for one in (kind, stat)]
    return halves[0] << 16 | halves[1]


def counter(label: int, kind: int, stat: int, width: int = 8) -> bytes:
    """Return the specifier of one counter of the object ``label``."""
    return struct.pack(">HHI", 0x8000 | label, width, enterprise(kind, stat))


PAD = struct.pack(">HHI", 0x8000, 8, 0)
TIME_NS = struct.pack(">HH", 325, 8)
TIME_SPLIT = struct.pack(">HHHH", 322, 4, 325, 4)


def template(name: int, fields: list[bytes]) -> bytes:
    """Return one template record; each field is a specifier, or several in one text of bytes (``TIME_SPLIT``)."""
    content, at, count = b"".join(fields), 0, 0
    while at < len(content):
        at += 8 if content[at] & 0x80 else 4
        count += 1
    return struct.pack(">HH", name, count) + content


def port_template(name: int, ports: int, stats: tuple[int, ...] = (0, 9)) -> bytes:
    """Return the template of some statistics of ``ports`` ports, labels from 1, time in eight bytes."""
    return template(name, [TIME_NS, *(counter(port + 1, 1, stat) for port in range(ports) for stat in stats)])


def record(ts: int, values: list[int]) -> bytes:
    """Return one record with its time in eight bytes and counters of eight."""
    return struct.pack(f">Q{len(values)}Q", ts, *values)
