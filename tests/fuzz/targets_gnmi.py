"""gNMI messages, JSON values in them, and recordings of them under fuzz."""

import json
import tempfile
from pathlib import Path

import numpy as np
from gnmi_pb import gnmi_pb2

from weft.collectors.base import Options
from weft.collectors.gnmi.decoder import Decoded, Decoder, Limits, Messages
from weft.collectors.gnmi.recording import GnmiRecording, recognises
from weft.pipeline.errors import InputError

TS = 1_700_000_000_000_000_000


def _path(*names: str, **keys: str) -> gnmi_pb2.Path:
    path = gnmi_pb2.Path(elem=[gnmi_pb2.PathElem(name=name) for name in names])
    for key, value in keys.items():
        path.elem[1].key[key] = value
    return path


def _message(prefix: gnmi_pb2.Path, deletes: tuple[gnmi_pb2.Path, ...] = (), **values: gnmi_pb2.TypedValue) -> bytes:
    note = gnmi_pb2.Notification(timestamp=TS, prefix=prefix, delete=deletes, atomic=bool(deletes))
    for name, value in values.items():
        note.update.add(path=_path("state", "counters", name.replace("_", "-")), val=value, duplicates=1)
    return gnmi_pb2.SubscribeResponse(update=note).SerializeToString()


_V = gnmi_pb2.TypedValue
_TREE = {"interface": [{"name": "eth1", "state": {"oper-status": "UP", "counters": {"in-octets": "12", "x": [1, 2.5e3, "é\n", None]}}}]}
_PORT = _path("interfaces", "interface", name="eth1")
_MESSAGES = [
    _message(_PORT, in_octets=_V(uint_val=2**63), out_octets=_V(string_val="7"), x=_V(float_val=1.5), y=_V(bytes_val=b"1234")),
    _message(_PORT, (_path("state"),), a=_V(decimal_val=gnmi_pb2.Decimal64(digits=-5, precision=2)), b=_V(bool_val=True)),
    _message(_path("lldp", "interfaces"), c=_V(leaflist_val=gnmi_pb2.ScalarArray(element=[_V(uint_val=1)])), d=_V(json_val=b"[1]")),
    _message(gnmi_pb2.Path(target="COUNTERS_DB"), e=_V(json_ietf_val=json.dumps(_TREE).encode())),
    gnmi_pb2.SubscribeResponse(sync_response=True).SerializeToString(),
]


def _length(size: int) -> bytes:
    return bytes([size & 127 | 128, size >> 7]) if size > 127 else bytes([size])


_FILE = b"".join(_length(len(one)) + one for one in _MESSAGES)
_LIST = b'[{"update":{"timestamp":"5","update":[{"path":{"elem":[{"name":"a"}]},"val":{"uintVal":"3"}}]}},{"syncResponse":true}]'

SEEDS = {"gnmi": _MESSAGES, "gnmi_json": [json.dumps(_TREE).encode(), b'{"a":-1.5e-3,"b":[[]],"c":{}}'], "gnmi_recording": [_FILE, _LIST]}


def _decode(*raw: bytes) -> tuple[Decoder, Decoded, int]:
    decoder = Decoder(Limits(paths_per_stream_max=10_000))
    decoder.stream("device", names_devices=True)
    decoded = decoder.decode(Messages(raw, np.zeros(len(raw), np.int32), np.zeros(len(raw), np.int64)))
    return decoder, decoded, sum(batch.frame.height for batch in decoded.batches)


def fuzz_gnmi(data: bytes) -> None:
    """Bytes as a message: rows or an error, not both; the next message is read as if it were alone."""
    decoder, decoded, made = _decode(data)
    assert made <= len(data)
    assert decoder.counts["malformed"] == decoded.wrong.sum() <= 1
    assert not (decoded.wrong[0] and made)
    _, both, more = _decode(data, _MESSAGES[2])
    assert not both.wrong[1]
    assert more >= made


def fuzz_gnmi_json(data: bytes) -> None:
    """Bytes as a JSON value: rows or a counted error, not both."""
    note = gnmi_pb2.Notification(timestamp=TS)
    note.update.add(path=_path("root"), val=gnmi_pb2.TypedValue(json_val=data))
    decoder, decoded, made = _decode(gnmi_pb2.SubscribeResponse(update=note).SerializeToString())
    assert made <= len(data)
    assert not decoded.wrong.any()
    assert decoder.counts["json"] <= 1
    assert not (decoder.counts["json"] and made)


def fuzz_gnmi_recording(data: bytes) -> None:
    """Bytes as a file of messages: rows, then perhaps one error with a hint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input"
        path.write_bytes(data)
        recognises(path, data[:4096])
        try:
            for batch in GnmiRecording(path, Options()).batches():
                assert batch.frame.height <= len(data)
        except InputError as error:
            assert error.hint
