"""Fuzz targets of the sFlow and UDP decoders: any bytes give bounded rows and counted faults."""

import struct

import numpy as np

from weft.collectors.sflow import records as tables
from weft.collectors.sflow.agents import Agents
from weft.collectors.sflow.batches import Naming, Rows
from weft.collectors.sflow.decoder import FAULTS, HAS_HEADER, SflowLimits, decode
from weft.collectors.wire import udp
from weft.collectors.wire.headers import LINK_TYPES
from weft.pipeline.tables.families import FAMILIES

LIMITS = SflowLimits(samples_max=16, records_max=8, header_bytes_max=256)


def _words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def _tagged(kind: int, body: bytes) -> bytes:
    return _words(kind, len(body)) + body


def _datagram(*samples: bytes, sequence: int = 1) -> bytes:
    return _words(5, 1) + bytes([10, 0, 0, 1]) + _words(0, sequence, 1000, len(samples)) + b"".join(samples)


def _packet() -> bytes:
    bth = bytes([0x04, 0, 0xFF, 0xFF, 0, 0, 0, 9, 0, 0, 0, 1])
    transport = struct.pack(">4H", 777, 4791, 8 + len(bth) + 64 + 4, 0) + bth + bytes(68)
    network = struct.pack(">2B3H2BH", 0x45, 3, 20 + len(transport), 0, 0x4000, 64, 17, 0) + bytes([10, 1, 1, 1, 10, 1, 1, 2])
    return bytes(12) + b"\x08\x00" + network + transport


def _samples() -> list[bytes]:
    """Return one sample of every kind with every record that is decoded."""
    sampled = _packet()
    header = _tagged(tables.HEADER, _words(1, len(sampled) + 4, 4, len(sampled)) + sampled)
    extras = (_tagged(tables.EGRESS_QUEUE, _words(3)), _tagged(tables.TRANSIT, _words(700)), _tagged(tables.QUEUE_DEPTH, _words(9000)))
    generic = _tagged(tables.GENERIC, _words(3, 6, 93, 0x2274_5000, 1, 3) + bytes(64))
    ethernet, name = _tagged(tables.ETHERNET, _words(*range(13))), _tagged(tables.PORT_NAME, _words(4) + b"eno1")
    optics = _tagged(tables.SFP, _words(1, 4, 3300, 2**32 - 5, 1) + _words(1, *range(9)))
    more = (
        _tagged(tables.INFINIBAND, bytes(80)),
        _tagged(tables.INFINIBAND, bytes(64)),
        _tagged(tables.QUEUE_LENGTH, _words(*range(13))),
        _tagged(tables.PROCESSOR, bytes(28)),
    )
    return [
        _tagged(tables.FLOW, _words(1, 3, 1000, 9000, 5, 3, 7, 4) + header + b"".join(extras)),
        _tagged(tables.FLOW_EXPANDED, _words(1, 0, 3, 1000, 9000, 5, 0, 3, 1, 258, 1) + header),
        _tagged(tables.DISCARDED, _words(1, 0, 3, 5, 3, 7, 259, 2) + header + extras[0]),
        _tagged(tables.COUNTERS, _words(1, 3, 3) + generic + ethernet + name),
        _tagged(tables.COUNTERS_EXPANDED, _words(1, 0, 3, 6) + generic + optics + b"".join(more)),
    ]


SEEDS: dict[str, list[bytes]] = {
    "sflow_datagram": [_datagram(*_samples()), *(_datagram(sample) for sample in _samples())],
    "sflow_stream": [b"".join(struct.pack(">H", len(one)) + one for one in (_datagram(*_samples(), sequence=k) for k in (1, 2, 5, 4)))],
    "udp_ends": [bytes([1]) + _packet(), bytes([3]) + _packet()[14:]],
}


def fuzz_sflow_datagram(data: bytes) -> None:
    """Decode one datagram: rows point into it, fit its number of bytes, and a fault is a known one."""
    buffer = np.frombuffer(data, np.uint8)
    samples = decode(buffer, np.zeros(1, np.int64), np.array([len(data)]), np.zeros(1, np.int64), Agents(2, 8), LIMITS)
    assert len(samples.flows) + len(samples.counters) <= min(LIMITS.samples_max, len(data) // 40)
    assert len(samples.records) <= len(data) // 36
    assert len(samples.named) <= LIMITS.samples_max
    assert 0 <= samples.faults[0] < len(FAULTS)
    for at, size in ((samples.flows["header_at"], samples.flows["header_bytes"]), (samples.named["at"], samples.named["size"])):
        assert (at >= 0).all()
        assert (at + size <= len(data)).all()
    has_none = samples.flows["flags"] & HAS_HEADER == 0
    assert not samples.flows["header_bytes"][has_none].any()
    assert (samples.counters["place"] < 8).all()
    assert (samples.counters["place"] >= 0).all()


def fuzz_sflow_stream(data: bytes) -> None:
    """Make rows of several datagrams, each with its length before it: every frame fits its table, and the counts add up."""
    cut, at = [], 0
    while at + 2 <= len(data) and len(cut) < 32:
        size = min(struct.unpack_from(">H", data, at)[0], len(data) - at - 2)
        cut.append((at + 2, size))
        at += 2 + size
    places = np.array(cut, np.int64).reshape(-1, 2)
    rows = Rows(Naming(), agents_max=2, interfaces_max=8, limits=LIMITS)
    batches = rows.of(np.frombuffer(data, np.uint8), places[:, 0].copy(), places[:, 1].copy(), np.arange(len(cut)) * 10**6)
    for batch in batches:
        assert dict(batch.frame.schema) == FAMILIES[batch.family].polars
        assert batch.frame["ts"].is_sorted()
    heights = {batch.family: batch.frame.height for batch in batches}
    assert rows.counts["datagrams"] == len(cut)
    assert heights.get("port", 0) <= rows.counts["counter_samples"]
    assert heights.get("packet", 0) <= rows.counts["flow_samples"]
    assert rows.interfaces <= 8


def fuzz_udp_ends(data: bytes) -> None:
    """Find the ends of one packet of any link type: a payload lies in it, and its version is a known one."""
    links = [*LINK_TYPES, -1, 7]
    link = np.array([links[data[0] % len(links)] if data else -1])
    buffer = np.frombuffer(data[1:], np.uint8)
    (row,) = udp.ends(buffer, np.zeros(1, np.int64), np.array([len(buffer)]), link)
    assert row["version"] in (0, 4, 6)
    assert row["payload_bytes"] == -1 or 0 <= row["payload_at"] <= row["payload_at"] + row["payload_bytes"] <= len(buffer)
