"""gNMI messages to rows: compared with another collector's output for real devices, and with protobuf and JSON libraries."""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from gnmi_pb import gnmi_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import SHARED

from weft.collectors.gnmi.decoder import Decoded, Decoder, Limits, Messages
from weft.pipeline.dictionary import Found, dictionary

REAL = SHARED / "gnmi"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared data folder is not here")

TS = 1_700_000_000_000_000_000
COMMON = ("ts", "recv_ts", "source", "device", "epoch")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def decode(*raw: bytes, decoder: Decoder | None = None, device: str = "leaf1", stream: int | None = None) -> Decoded:
    """Return the rows of a decoder, by default a new one, for messages of one stream."""
    decoder = decoder or Decoder()
    number = decoder.stream(device, names_devices=True) if stream is None else stream
    return decoder.decode(Messages(raw, np.full(len(raw), number, np.int32), np.full(len(raw), TS + 7, np.int64)))


def rows(decoded: Decoded, family: str) -> list[dict]:
    """Return the rows of one family, as dicts without nulls."""
    frames = [batch.frame for batch in decoded.batches if batch.family == family]
    return [{name: value for name, value in row.items() if value is not None} for frame in frames for row in frame.iter_rows(named=True)]


def path(text: str) -> gnmi_pb2.Path:
    """Return the path of `/a/b[k=v]/c`."""
    made = gnmi_pb2.Path()
    for name, keys in re.findall(r"/([^/\[]+)((?:\[[^\]]*\])*)", text):
        made.elem.add(name=name, key=dict(re.findall(r"\[([^=]+)=([^\]]*)\]", keys)))
    return made


def value(one: object) -> gnmi_pb2.TypedValue:
    """Return a typed value of a Python one."""
    if isinstance(one, gnmi_pb2.TypedValue):
        return one
    if isinstance(one, bool):
        return gnmi_pb2.TypedValue(bool_val=one)
    if isinstance(one, int):
        return gnmi_pb2.TypedValue(uint_val=one) if one >= 0 else gnmi_pb2.TypedValue(int_val=one)
    if isinstance(one, float):
        return gnmi_pb2.TypedValue(double_val=one)
    return gnmi_pb2.TypedValue(string_val=str(one)) if isinstance(one, str) else gnmi_pb2.TypedValue(json_ietf_val=json.dumps(one).encode())


def message(updates: dict[str, object], prefix: str = "", deletes: Iterable[str] = (), ts: int = TS, **fields) -> bytes:
    """Return a SubscribeResponse with one notification."""
    note = gnmi_pb2.Notification(timestamp=ts, delete=[path(one) for one in deletes], atomic=fields.get("atomic", False))
    note.prefix.CopyFrom(path(prefix))
    note.prefix.target, note.prefix.origin = fields.get("target", ""), fields.get("origin", "")
    for where, one in updates.items():
        note.update.add(path=path(where), val=value(one))
    return gnmi_pb2.SubscribeResponse(update=note).SerializeToString()


# Against another collector


def line_protocol(text: str) -> Iterator[tuple[str, dict[str, str], dict[str, object], int]]:
    """Yield (measurement, tags, fields, time) of InfluxDB lines."""
    for line in filter(None, text.splitlines()):
        head, fields, ts = re.fullmatch(r'(\S+) ((?:[^" ]|"(?:[^"\\]|\\.)*")+) (\d+)', line).groups()
        measurement, *tags = head.split(",")
        pairs = re.findall(r'([^=,]+)=("(?:[^"\\]|\\.)*"|[^,]+)', fields)
        yield measurement, dict(tag.split("=", 1) for tag in tags), {name: field_value(raw) for name, raw in pairs}, int(ts)


def field_value(raw: str) -> object:
    """Return the value of a field of a line: text in quotes, `u` and `i` behind whole numbers, true and false."""
    if raw[0] == '"':
        return re.sub(r"\\(.)", r"\1", raw[1:-1])
    if raw in ("true", "false"):
        return raw == "true"
    return int(raw[:-1]) if raw[-1] in "ui" else float(raw)


def plain(name: str) -> str:
    """Return a path with the dashes that the other collector writes as underscores."""
    return name.replace("-", "_")


KNOWN: dict[str, list[Found]] = {}
for _alias in dictionary().aliases:
    if _alias.source in ("openconfig", "juniper"):
        for _n in _alias.indices():
            KNOWN.setdefault(_alias.counter.name, []).append(Found(_alias, _n))


def raw(one: object, scale: float) -> object:
    """Return a value before it was scaled."""
    return one if isinstance(one, str) or scale == 1 else one / scale


def values_by_path(decoded: Decoded) -> dict[tuple[int, str, str], list[object]]:
    """Return all values by (time, object, each path that the dictionary lists for this column)."""
    found: dict[tuple[int, str, str], list[object]] = {}
    for family in ("port", "queue"):
        for row in rows(decoded, family):
            where = "/".join(part for part in (row["port"], row.get("queue", "")) if part)
            for column in row.keys() - {*COMMON, "port", "queue", "direction", "speed_bps"}:
                for one in KNOWN[column]:
                    found.setdefault((row["ts"], where, plain(one.name)), []).append(raw(row[column], one.alias.scale))
    for row in rows(decoded, "reading"):
        one = row.get("text", row.get("count", row.get("value")))
        names = [(row["name"], row["object"], 1.0)] if row["name"].startswith("/") else []
        for known in KNOWN.get(row["name"], ()):
            suffix = "" if known.n is None else f"/{known.n}"
            if row["object"].endswith(suffix):
                names.append((known.name, row["object"].removesuffix(suffix), known.alias.scale))
        for name, where, scale in names:
            found.setdefault((row["ts"], where, plain(name)), []).append(raw(one, scale))
    return found


@needs_real
@pytest.mark.parametrize("case", ["issue_13512", "issue_16476", "issue_16515", "issue_17154"])
def test_real_devices_give_what_another_collector_reads(case):
    """Every field that another collector makes of a device's messages is there: same object, time, path and value; and no more."""
    responses = json.loads((REAL / case / "responses.json").read_text())
    decoded = decode(*(ParseDict(one, gnmi_pb2.SubscribeResponse()).SerializeToString() for one in responses))
    found, expected = values_by_path(decoded), 0
    for _, tags, fields, ts in line_protocol((REAL / case / "expected.out").read_text()):
        where = "/".join(tags[key] for key in ("name", "queue_number", "lane_number") if key in tags)
        for name, one in fields.items():
            expected += 1
            # It shortens paths by its own subscriptions; the end of the path is always complete.
            values = [
                seen for (at, thing, key), some in found.items() if (at, thing) == (ts, where) and key.endswith(f"/{name}") for seen in some
            ]
            assert one in values, f"{where} {name}: {values}"
    number = sum(len(row.keys() - {*COMMON, "port", "queue", "direction"}) for family in ("port", "queue") for row in rows(decoded, family))
    assert number + len(rows(decoded, "reading")) == expected


# Against protobuf


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
paths = st.builds(
    lambda elems, origin: gnmi_pb2.Path(elem=[gnmi_pb2.PathElem(name=name, key=keys) for name, keys in elems], origin=origin),
    st.lists(st.tuples(texts, st.dictionaries(texts, texts, max_size=2)), min_size=1, max_size=3),
    st.sampled_from(["", "openconfig", "x"]),
)
u64, i64 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
doubles = st.floats(allow_nan=False)
typed_values = st.one_of(
    st.builds(lambda v: gnmi_pb2.TypedValue(uint_val=v), u64),
    st.builds(lambda v: gnmi_pb2.TypedValue(int_val=v), i64),
    st.builds(lambda v: gnmi_pb2.TypedValue(bool_val=v), st.booleans()),
    st.builds(lambda v: gnmi_pb2.TypedValue(double_val=v), doubles),
    st.builds(lambda v: gnmi_pb2.TypedValue(float_val=v), st.floats(width=32, allow_nan=False)),
    st.builds(lambda v: gnmi_pb2.TypedValue(string_val=v), st.text(st.characters(codec="utf-8"), max_size=20)),
    st.builds(lambda v: gnmi_pb2.TypedValue(ascii_val=v), texts),
    st.builds(lambda v: gnmi_pb2.TypedValue(bytes_val=v), st.binary(max_size=6)),
    st.builds(lambda d, p: gnmi_pb2.TypedValue(decimal_val=gnmi_pb2.Decimal64(digits=d, precision=p)), i64, st.integers(0, 18)),
    st.builds(lambda v: gnmi_pb2.TypedValue(leaflist_val=gnmi_pb2.ScalarArray(element=v)), st.just([gnmi_pb2.TypedValue(uint_val=3)])),
    st.builds(lambda v: gnmi_pb2.TypedValue(json_val=json.dumps(v).encode()), st.one_of(u64, doubles.filter(math.isfinite), texts)),
)
notifications = st.builds(
    lambda ts, prefix, updates, duplicates, atomic: gnmi_pb2.Notification(
        timestamp=ts,
        prefix=prefix,
        update=[gnmi_pb2.Update(path=where, val=one, duplicates=duplicates) for where, one in updates],
        atomic=atomic,
    ),
    st.integers(1, 2**62),
    paths,
    st.lists(st.tuples(paths, typed_values), max_size=6),
    st.integers(0, 3),
    st.booleans(),
)


def number_and_text(one: gnmi_pb2.TypedValue) -> tuple[float | None, str | None]:
    """Return the number and the text that a value is, as the protocol's own library reads it."""
    which = one.WhichOneof("value")
    if which in ("uint_val", "int_val", "bool_val", "double_val", "float_val"):
        return float(getattr(one, which)), None
    if which == "decimal_val":
        return one.decimal_val.digits / 10**one.decimal_val.precision, None
    if which == "leaflist_val":
        return None, json.dumps([element.uint_val for element in one.leaflist_val.element])
    if which == "bytes_val":
        raw = one.bytes_val
        return (struct.unpack(">f", raw)[0], None) if len(raw) == 4 else (None, raw.hex())
    if which == "json_val":
        tree = json.loads(one.json_val)
        return (None, tree) if isinstance(tree, str) else (float(tree), None)
    return None, getattr(one, which)


def is_number(text: str | None) -> bool:
    """Return whether a text has the form of a number, which becomes a number too."""
    return text is not None and re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", text, re.ASCII) is not None


@quick
@given(st.lists(notifications, min_size=1, max_size=3))
def test_the_walk_reads_what_protobuf_reads(notes):
    """For any notifications, there is one reading for each update, in order, with the time, the value and the text that protobuf gives."""
    decoder = Decoder()
    decoded = decode(*(gnmi_pb2.SubscribeResponse(update=note).SerializeToString() for note in notes), decoder=decoder)
    expected = [(note.timestamp, *number_and_text(update.val)) for note in notes for update in note.update]
    found = [(row["ts"], row.get("value"), row.get("text")) for row in rows(decoded, "reading")]
    assert len(found) == len(expected)
    for (ts, number, text), (at, seen, read) in zip(expected, found, strict=True):
        assert (at, read) == (ts, text)
        if number is not None:
            assert seen == pytest.approx(number, rel=1e-14, nan_ok=True)
        elif not is_number(text):
            assert seen is None
    assert decoder.counts["duplicates"] == sum(update.duplicates for note in notes for update in note.update)
    assert decoder.counts["malformed"] == 0


@quick
@given(st.lists(notifications, min_size=1, max_size=2), st.data())
def test_what_protobuf_refuses_gives_no_row(notes, data):
    """A message that is cut or changed gives rows only if protobuf can read it; the next message is read in any case."""
    raw = bytearray(gnmi_pb2.SubscribeResponse(update=notes[0]).SerializeToString())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] = data.draw(st.integers(0, 255))
    decoder = Decoder()
    decoded = decode(bytes(raw), message({"/good": 1}), decoder=decoder)
    readable = True
    try:
        gnmi_pb2.SubscribeResponse.FromString(bytes(raw))
    except DecodeError:
        readable = False
    if decoded.wrong[0]:
        assert rows(decoded, "reading")[0]["name"] == "/good"
        assert decoder.counts["malformed"] == 1
        # Only groups and invalid text are treated differently by protobuf.
        assert not readable or b"\x0b" in raw or any(byte & 7 in (3, 4) for byte in raw)
    assert rows(decoded, "reading")[-1]["name"] == "/good"


# JSON


scalars = st.one_of(st.none(), st.booleans(), i64, u64, doubles.filter(math.isfinite), st.text(st.characters(codec="utf-8"), max_size=8))
names = st.text(st.characters(codec="utf-8", exclude_characters="/:"), min_size=1, max_size=6)
trees = st.recursive(scalars, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12)


def json_leaves(tree: object, where: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of a tree of objects."""
    if isinstance(tree, dict):
        for name, one in tree.items():
            yield from json_leaves(one, f"{where}/{name}")
    elif tree is not None:
        yield where, tree


@quick
@given(trees, st.sampled_from([None, 1]), st.booleans())
def test_json_trees_become_their_leaves(tree, indent, ascii_only):
    """For any tree of JSON objects, written in any way, each leaf is a reading under its path, with its value."""
    raw = json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode()
    decoded = decode(message({"/top": gnmi_pb2.TypedValue(json_ietf_val=raw)}))
    expected = list(json_leaves(tree, "/top"))
    found = rows(decoded, "reading")
    assert [row["name"] for row in found] == [where for where, _ in expected]
    for row, (_, one) in zip(found, expected, strict=True):
        if isinstance(one, str):
            assert row["text"] == one
        else:
            assert row["value"] == pytest.approx(float(one), rel=1e-14)
        if isinstance(one, int) and one >= 0:
            assert row["count"] == one


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b'{"a"}',
        b'{"a":1,}',
        b'{"a":1}}',
        b"[{},]",
        b'[{"a":1},2]',
        b"nul",
        b"1 2",
        b"-",
        b'"',
        b'{"a":"\n"}',
        b"[[" * 40,
        b'{"a":' * 40,
        b"",
    ],
)
def test_what_is_no_json_is_counted(raw):
    """A value that is not JSON, or nested too deep, gives no row but a count, and the next update of the message is read."""
    decoder = Decoder()
    note = gnmi_pb2.Notification(timestamp=TS)
    note.update.add(path=path("/bad"), val=gnmi_pb2.TypedValue(json_val=raw))
    note.update.add(path=path("/good"), val=value(1))
    decoded = decode(gnmi_pb2.SubscribeResponse(update=note).SerializeToString(), decoder=decoder)
    assert [row["name"] for row in rows(decoded, "reading")] == ["/good"]
    assert decoder.counts["json"] == 1


@pytest.mark.parametrize(
    "raw", [b'{"a":NaN}', b"-Infinity", b'{"a":' + b"9" * 5000 + b"}", b"[" * 5000 + b"]" * 5000, b"[" * 17 + b"]" * 17]
)
def test_json_beyond_its_bounds_is_counted(raw):
    """Constants that are not JSON, numbers of thousands of digits and deep lists are counted errors."""
    decoder = Decoder()
    decoded = decode(message({"/bad": gnmi_pb2.TypedValue(json_val=raw), "/good": 1}), decoder=decoder)
    assert [row["name"] for row in rows(decoded, "reading")] == ["/good"]
    assert decoder.counts["json"] == 1


@pytest.mark.parametrize(
    ("raw", "text", "broken"),
    [
        (b'"\\ud800"', "?", 1),
        (b'"\xff"', "\ufffd", 1),
        (b'"a\\u0000b"', "a\0b", 0),
        ('"é"'.encode(), "é", 0),
        (b'[1, "x", {"y": [2.5]}]', '[1, "x", {"y": [2.5]}]', 0),
    ],
)
@pytest.mark.parametrize("beside", [b'"z"', b"7"])
def test_texts_of_json_keep_their_characters(raw, text, broken, beside):
    """Texts in JSON are read as they are; what is not Unicode is replaced and counted; leaves beside them are untouched."""
    decoder = Decoder()
    value = gnmi_pb2.TypedValue(json_val=b'{"a":%s,"b":%s}' % (raw, beside))
    found = rows(decode(message({"/top": value}), decoder=decoder), "reading")
    assert [(row["name"], row["text"]) for row in found if row["name"] == "/top/a"] == [("/top/a", text)]
    assert [row.get("text", row.get("count")) for row in found if row["name"] == "/top/b"] == [json.loads(beside)]
    assert decoder.counts["not_utf8"] == broken


def test_json_numbers_beyond_64_bits_are_doubles():
    """Whole numbers that 64 bits cannot hold are rounded, or infinite, and are no counts."""
    found = rows(decode(message({"/top": {"a": 2**64, "b": -(2**70), "c": 10**400, "d": 2**64 - 1}})), "reading")
    assert [row["value"] for row in found] == [2.0**64, -(2.0**70), math.inf, float(2**64 - 1)]
    assert [row.get("count") for row in found] == [None, None, None, 2**64 - 1]


def test_of_members_of_one_name_the_last_counts():
    """A JSON object with a member twice is read as the library does: the last one wins."""
    value = gnmi_pb2.TypedValue(json_val=b'{"a":"x","a":"y"}')
    assert [row["text"] for row in rows(decode(message({"/top": value})), "reading")] == ["y"]


def test_objects_of_the_same_node_may_change_their_members():
    """Objects that come with other members, or in another order, than before are read by their own names."""
    decoder = Decoder()
    for names in (("a", "b"), ("b", "a"), ("a", "b", "c"), ("b",), ()):
        tree = {"x": {name: f"{name}{len(names)}" for name in names}}
        found = rows(decode(message({"/top": tree}), decoder=decoder), "reading")
        assert [(row["name"], row["text"]) for row in found] == [(f"/top/x/{name}", f"{name}{len(names)}") for name in names]


def test_json_below_a_refused_path_is_admitted():
    """Leaves of a JSON value for whose paths there is no room are missed updates, one for each."""
    decoder = Decoder(Limits(paths_per_stream_max=2))
    decoded = decode(message({"/a": 1, "/b": {"c": "1", "d": "2", "e": {"f": 3}}}), decoder=decoder)
    assert [row["name"] for row in rows(decoded, "reading")] == ["/a"]
    assert [(row["missed"], row["reason"]) for row in rows(decoded, "gap")] == [(3, "paths_full")]


def test_a_json_value_has_a_limit_of_leaves():
    """A JSON value of more leaves than allowed gives none of them, and is counted."""
    decoder = Decoder(Limits(json_leaves_max=3))
    decoded = decode(message({"/a": {str(n): n for n in range(3)}, "/b": {str(n): n for n in range(4)}}), decoder=decoder)
    assert [row["name"] for row in rows(decoded, "reading")] == ["/a/0", "/a/1", "/a/2"]
    assert decoder.counts["json_large"] == 1


def test_a_tree_of_a_model_is_the_same_as_its_leaves():
    """Counters in one tree of RFC 7951, with a list, its keys and 64 bit numbers as texts, make the row that single leaves make."""
    names_and_values = {"in-octets": 2**60 + 1, "out-octets": 7, "in-pkts": 3}
    base = "/interfaces/interface[name=eth1]/state"
    leaves = {f"{base}/counters/{name}": one for name, one in names_and_values.items()} | {f"{base}/oper-status": "UP"}
    counters = {name: str(one) for name, one in names_and_values.items()}
    interface = {"state": {"oper-status": "UP", "counters": counters}, "name": "eth1"}
    tree = {"openconfig-interfaces:interfaces": {"interface": [interface]}}
    prefix, below = "/interfaces/interface[name=eth1]", {"/state": {"openconfig-interfaces:counters": counters, "oper-status": "UP"}}
    expected = rows(decode(message(leaves)), "port")
    assert expected[0]["rx_bytes"] == 2**60 + 1 and expected[0]["port"] == "eth1" and expected[0]["oper_up"]
    assert rows(decode(message({"": tree})), "port") == expected
    assert rows(decode(message(below, prefix)), "port") == expected


def test_list_entries_are_told_apart():
    """Entries of a JSON list are objects of their own: by name, by a key that ends in id, else by their place."""
    tree = {
        "a": [{"value": 1, "name": "x"}, {"value": 2, "name": "y"}],
        "b": [{"lane-id": 5, "value": 3}],
        "c": [{"value": 4}, {"value": 5}],
    }
    found = {
        (row["object"], row["name"]): row["count"]
        for row in rows(decode(message({"/t": tree})), "reading")
        if row["name"].endswith("value")
    }
    assert found == {("x", "/t/a/value"): 1, ("y", "/t/a/value"): 2, ("5", "/t/b/value"): 3, ("0", "/t/c/value"): 4, ("1", "/t/c/value"): 5}
