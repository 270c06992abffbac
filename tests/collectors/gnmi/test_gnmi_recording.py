"""Recorded gNMI responses: both forms give the same rows; cut and foreign files are errors after all good rows."""

import json
from pathlib import Path

import polars as pl
import pytest
from gnmi_pb import gnmi_pb2
from google.protobuf.internal.encoder import _VarintBytes
from google.protobuf.json_format import MessageToDict

from weft.collectors.base import Options
from weft.collectors.gnmi.recording import GnmiRecording
from weft.collectors.replay import recogniser
from weft.pipeline.errors import InputError

TS = 1_700_000_000_000_000_000


def responses(count: int, leaves: int = 1) -> list[gnmi_pb2.SubscribeResponse]:
    """Return notifications of one port's counter, a second apart, then the end of the initial dump."""
    made = []
    for n in range(count):
        note = gnmi_pb2.Notification(timestamp=TS + n * 10**9)
        for leaf in range(leaves):
            update = note.update.add()
            for name in ("interfaces", "interface", "state", "counters", "in-octets" if not leaf else f"leaf-{leaf}"):
                update.path.elem.add(name=name)
            update.path.elem[1].key["name"] = "eth1"
            update.val.uint_val = n + leaf
        made.append(gnmi_pb2.SubscribeResponse(update=note))
    return [*made, gnmi_pb2.SubscribeResponse(sync_response=True)]


def delimited(messages: list[gnmi_pb2.SubscribeResponse]) -> bytes:
    """Return messages, each behind its length, by protobuf's own writer."""
    return b"".join(_VarintBytes(one.ByteSize()) + one.SerializeToString() for one in messages)


def read(path: Path, **options) -> tuple[pl.DataFrame, InputError | None, list]:
    """Return the port rows of a recording, the error at its end, and its batches."""
    batches, problem = [], None
    try:
        for batch in GnmiRecording(path, Options(**options)).batches():
            batches.append(batch)
    except InputError as error:
        problem = error
    return pl.concat([batch.frame for batch in batches if batch.family == "port"]), problem, batches


def test_both_forms_are_one(tmp_path):
    """JSON and length-delimited protobuf of the same responses are recognised and give the same rows, for the requested device."""
    messages = responses(5)
    (tmp_path / "a.json").write_text(json.dumps([MessageToDict(one) for one in messages]))
    (tmp_path / "a.bin").write_bytes(delimited(messages))
    frames = []
    for name in ("a.json", "a.bin"):
        assert recogniser(tmp_path / name, None).name == "gnmi"
        frame, problem, batches = read(tmp_path / name, device="leaf1")
        assert problem is None
        assert batches[-1].ended == ("leaf1",)
        frames.append(frame)
    assert frames[0].equals(frames[1])
    assert frames[0]["rx_bytes"].to_list() == [0, 1, 2, 3, 4]
    assert frames[0]["recv_ts"].to_list() == frames[0]["ts"].to_list() == [TS + n * 10**9 for n in range(5)]


def test_a_large_first_message_is_recognised(tmp_path):
    """A file whose first message is longer than the head is still recognised."""
    (tmp_path / "a.bin").write_bytes(delimited(responses(1, leaves=200)))
    assert recogniser(tmp_path / "a.bin", None).name == "gnmi"


def test_a_cut_file_gives_what_came_before(tmp_path):
    """A file that ends within a message gives the rows before it, and then the error."""
    (tmp_path / "a.bin").write_bytes(delimited(responses(3))[:-5])
    frame, problem, _ = read(tmp_path / "a.bin")
    assert frame.height == 2
    assert problem is not None and "ends within a message" in str(problem)


def test_a_wrong_message_is_left_out_and_said(tmp_path):
    """A malformed message is skipped; its number is reported at the end."""
    good = [one.SerializeToString() for one in responses(3)]
    raw = [good[0], b"\x0a\x7f", good[1], good[2]]
    (tmp_path / "a.bin").write_bytes(b"".join(bytes([len(one)]) + one for one in raw))
    frame, problem, _ = read(tmp_path / "a.bin")
    assert frame.height == 3
    assert problem is not None and "the first is number 2" in str(problem)


@pytest.mark.parametrize("text", ['[{"update": {"timestamp": "x"}}]', '[{"update": 5}]', '["a"]', '[{"update": {"timestamp": 1'])
def test_json_that_is_none_is_an_error(tmp_path, text):
    """Invalid JSON, or JSON that is not a response, is an error with its place and a hint."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as raised:
        list(GnmiRecording(tmp_path / "a.json", Options()).batches())
    assert raised.value.hint
