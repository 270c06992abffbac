"""The RoCEv2 headers as tables: which extension headers follow the BTH of each opcode, and where.

InfiniBand Architecture Specification, volume 1, chapter 9 (packet layouts) and annex A17 (RoCEv2). The top three
bits of an opcode are the service (0 RC, 1 UC, 2 RD, 3 UD, 5 XRC), the lower five the operation. ``HEADER_BYTES[op]``
is the BTH and everything before the payload, ``AETH_AT`` and ``RETH_AT`` are offsets from the start of the BTH, 0 where
there is no such header. An opcode outside the specification has a bare BTH.
"""

import numpy as np

# Link types as the registry of pcap files numbers them.
NULL, ETHERNET, OLD_RAW, RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 0, 1, 12, 101, 108, 113, 228, 229, 276
LINK_TYPES = (NULL, ETHERNET, OLD_RAW, RAW, LOOP, SLL, IPV4, IPV6, SLL2)

ROCE_PORT = 4791
BTH_BYTES = 12
ICRC_BYTES = 4
CNP = 0x81

_RC, _UC, _RD, _UD, _XRC = 0x00, 0x20, 0x40, 0x60, 0xA0
_RETH, _AETH, _IMMEDIATE, _ATOMIC, _ATOMIC_ACK, _IETH, _FETH = 16, 4, 4, 28, 8, 4, 4
_RDETH, _DETH, _XRCETH = 4, 8, 4
_CNP_RESERVED = 16

_SENDS_AND_WRITES = dict.fromkeys((0x00, 0x01, 0x02, 0x04, 0x07, 0x08), 0) | dict.fromkeys((0x03, 0x05, 0x09), _IMMEDIATE)
_SENDS_AND_WRITES |= {0x06: _RETH, 0x0A: _RETH, 0x0B: _RETH + _IMMEDIATE}
_REQUESTS = {**_SENDS_AND_WRITES, 0x0C: _RETH, 0x13: _ATOMIC, 0x14: _ATOMIC, 0x16: _IETH, 0x17: _IETH, 0x1C: _FETH + _RETH, 0x1D: _RETH}
_RESPONSES = {0x0D: _AETH, 0x0E: 0, 0x0F: _AETH, 0x10: _AETH, 0x11: _AETH, 0x12: _AETH + _ATOMIC_ACK}
# Operations with a RETH, and the bytes before it; the last two are FLUSH and ATOMIC WRITE of annex A19.
_BEFORE_RETH = {0x06: 0, 0x0A: 0, 0x0B: 0, 0x0C: 0, 0x1C: _FETH, 0x1D: 0}


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    header = np.full(256, BTH_BYTES, np.int64)
    aeth, reth = np.zeros(256, np.int64), np.zeros(256, np.int64)
    request_before = {_RC: 0, _RD: _RDETH + _DETH, _XRC: _XRCETH}
    response_before = {_RC: 0, _RD: _RDETH, _XRC: 0}
    for service, before in request_before.items():
        for op, more in _REQUESTS.items():
            header[service + op] += before + more
            reth[service + op] = BTH_BYTES + before + _BEFORE_RETH[op] if op in _BEFORE_RETH else 0
        for op, more in _RESPONSES.items():
            header[service + op] += response_before[service] + more
            aeth[service + op] = BTH_BYTES + response_before[service] if more else 0
    for op, more in _SENDS_AND_WRITES.items():
        header[_UC + op] += more
        reth[_UC + op] = BTH_BYTES if op in _BEFORE_RETH else 0
    header[_RD + 0x15] += _RDETH + _DETH  # RESYNC
    header[_UD + 0x04] += _DETH
    header[_UD + 0x05] += _DETH + _IMMEDIATE
    header[CNP] += _CNP_RESERVED
    return header, aeth, reth


HEADER_BYTES, AETH_AT, RETH_AT = _tables()
