"""High-frequency telemetry: tshark and a minimal reader find the switch's counters in its IPFIX messages, in every layout."""

import json
import re
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from switch_rig import Tcp, contents

from weft.lab.switch import hft, sai
from weft.lab.switch.script import LOSSLESS, START_NS, Script, Shape
from weft.pipeline.errors import ServiceError

IPFIX_PORT = 4739
TS = START_NS + 1_234_500_000 + np.arange(10) * 100_000


@pytest.fixture(scope="module")
def script() -> Script:
    """Return a switch of eight ports."""
    return Script(Shape(ports=8))


def sessions(script: Script) -> list[hft.Session]:
    """Return a session of ports and one of lossless queues."""
    return [
        hft.session(script, sai.PORT, ("IF_IN_OCTETS", "IF_OUT_OCTETS", "VENDOR_5")),
        hft.session(script, sai.QUEUE, ("BYTES", "CURR_OCCUPANCY_BYTES"), (LOSSLESS,)),
    ]


def sets(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each set of one IPFIX message."""
    version, length = struct.unpack(">HH", message[:4])
    assert (version, length) == (10, len(message))
    at = 16
    while at < length:
        number, size = struct.unpack(">HH", message[at : at + 4])
        yield number, message[at + 4 : at + size]
        at += size
    assert at == length


def templates(message: bytes) -> dict[int, list[tuple[int, int, int]]]:
    """Return the fields (element, length, enterprise) of each template of a message, by its number."""
    found = {}
    for number, body in sets(message):
        assert number == 2
        at = 0
        while at < len(body):
            template, count = struct.unpack(">HH", body[at : at + 4])
            at += 4
            fields = []
            for _ in range(count):
                element, size = struct.unpack(">HH", body[at : at + 4])
                at += 4
                enterprise = 0
                if element & 0x8000:
                    (enterprise,) = struct.unpack(">I", body[at : at + 4])
                    at += 4
                fields.append((element, size, enterprise))
            found[template] = fields
    return found


def values(body: bytes, fields: list[tuple[int, int, int]], tail: int) -> Iterator[tuple[int, list[int]]]:
    """Yield time and counters of each record of a set, without padding fields."""
    at, stride = 0, sum(size for _, size, _ in fields)
    while len(body) - at >= stride:
        seconds = ns = 0
        counters = []
        for element, size, enterprise in fields:
            value = int.from_bytes(body[at : at + size], "big")
            at += size
            if element == 322:
                seconds = value
            elif element == 325:
                ns = value
            elif enterprise:
                counters.append(value)
            else:
                assert (element, value) == (0x8000, 0)
        yield seconds * 10**9 + ns, counters
    assert body[at:] == bytes(tail)


LAYOUTS = {
    "eight bytes": hft.Layout(),
    "seconds and nanoseconds": hft.Layout(time="pair"),
    "narrow counters": hft.Layout(widths=(1, 2, 3, 4, 5, 6, 7, 8)),
    "placeholders": hft.Layout(pad_every=2, pad_bytes=8),
    "all of it": hft.Layout(time="pair", widths=(8, 5, 3), pad_every=3, pad_bytes=2, first_label=400, records=4, tail=3),
    "as many records as fit": hft.Layout(records=0, message_bytes_max=1000),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_holds_the_counters_of_the_switch(script, layout):
    """Read by its template, each record has its time and the switch's values, truncated to the width of the field."""
    wanted = sessions(script)
    exporter = hft.HftExporter(script, wanted, layout)
    (announced,) = exporter.templates()
    known = templates(announced)
    assert len(known) == 2
    state, seen = script.at(TS), dict.fromkeys(known, 0)
    for message in exporter.data(TS):
        for number, body in sets(message):
            one = wanted[number - 256]
            fields = [field for field in known[number] if field[2]]
            stats = [stat.values(state)[:, list(one.objects)] for stat in one.stats]
            for ts, counters in values(body, known[number], layout.tail):
                row = TS.tolist().index(ts)
                expected = [int(stat[row, k]) for k in range(len(one.objects)) for stat in stats]
                assert counters == [value % 256 ** fields[n][1] for n, value in enumerate(expected)]
                seen[number] += 1
    assert set(seen.values()) == {len(TS)}


def test_fields_name_the_object_and_the_statistic(script):
    """The element is the object's label with the enterprise bit; the enterprise is type and statistic, top bits for vendor extensions."""
    exporter = hft.HftExporter(script, sessions(script), hft.Layout(first_label=7))
    port, queue = templates(next(iter(exporter.templates()))).values()
    assert port[:4] == [(325, 8, 0), (0x8007, 8, 0x0001_0000), (0x8007, 8, 0x0001_0009), (0x8007, 8, 0x0001_8005)]
    assert queue[:3] == [(325, 8, 0), (0x8007, 8, 0x0015_0001), (0x8007, 8, 0x0015_0018)]
    assert port[-1][0] == 0x8007 + 7


def test_tshark_reads_templates_and_counters(script, tshark):
    """tshark finds the templates, all records, all counters, and no gap in the sequence numbers."""
    exporter = hft.HftExporter(script, sessions(script), hft.Layout(widths=(8, 4), pad_every=5, records=3))
    sent = [*exporter.templates(), *exporter.data(TS)]
    out = tshark(sent, IPFIX_PORT, "-o", "cflow.max_template_fields:0", "-d", f"udp.port=={IPFIX_PORT},cflow", "-V")
    assert "Malformed" not in out
    assert "Unexpected flow sequence" not in out
    assert re.findall(r"\(Data Template\): (\S+)", out) == ["256,257"]
    assert len(re.findall(r"^\s+Flow \d+$", out, re.M)) == 2 * len(TS)
    shown = [int(text.replace(" ", ""), 16) for text in re.findall(r"Type [1-9]\d*: Value \(hex bytes\): ([0-9a-f ]+)", out)]
    state, expected = script.at(TS), []
    for first in range(0, len(TS), 3):
        for one in sessions(script):
            stats = [stat.values(state)[:, list(one.objects)] for stat in one.stats]
            expected += [
                int(stat[row, k]) for row in range(first, min(first + 3, len(TS))) for k in range(len(one.objects)) for stat in stats
            ]
    width = [8, 4]
    counters = [len(one.objects) * len(one.stats) for one in sessions(script)]
    narrow = [n % 2 for first in range(0, len(TS), 3) for count in counters for _ in range(min(3, len(TS) - first)) for n in range(count)]
    assert shown == [value % 256 ** width[n] for value, n in zip(expected, narrow, strict=True)]


def test_sequence_numbers_count_records(script):
    """The sequence number is the number of earlier data records in the domain, without templates."""
    exporter = hft.HftExporter(script, sessions(script), hft.Layout(records=4), domain=77)
    first, template, second = list(exporter.data(TS)), list(exporter.templates()), list(exporter.data(TS + 10**9))
    heads = [struct.unpack(">IIII", message[:16]) for message in (*first, *template, *second)]
    assert {head[3] for head in heads} == {77}
    counts = [4, 4, 4, 4, 2, 2]
    assert [head[2] for head in heads] == [0, *np.cumsum(counts).tolist(), *(20 + np.cumsum([0, *counts[:-1]])).tolist()]
    assert [head[1] for head in heads[:6]] == [int(TS[0]) // 10**9] * 6


def test_generations_overlap(script):
    """A reconfigured stream has new template numbers; the old generation may continue until it is withdrawn."""
    exporter = hft.HftExporter(script, sessions(script))
    renewed = exporter.renew(sessions(script)[:1], hft.Layout(widths=(4,)))
    old, new = (set(templates(next(iter(exporter.templates(number))))) for number in (0, renewed))
    assert (old, new) == ({256, 257}, {258})
    mixed = [*exporter.data(TS[:1], 0), *exporter.data(TS[:1], renewed)]
    assert [number for message in mixed for number, _ in sets(message)] == [256, 257, 258]
    (gone,) = exporter.withdrawal(0)
    assert templates(gone) == {256: [], 257: []}


def test_a_large_session_is_split_over_templates():
    """A template too large for one message is split over several, with consecutive labels."""
    script = Script(Shape(ports=128))
    exporter = hft.HftExporter(script, [hft.session(script, sai.PORT)])
    announced = list(exporter.templates())
    assert len(announced) > 1
    assert max(map(len, announced)) <= 65_535
    known = [templates(message) for message in announced]
    labels = [field[0] & 0x7FFF for template in known for fields in template.values() for field in fields if field[2]]
    assert sorted(set(labels)) == list(range(1, 129))
    assert len(labels) == 128 * len(sai.of(sai.PORT))
    assert all(len(message) <= 65_535 for message in exporter.data(TS[:1]))


def test_the_side_channel_names_labels_and_holds_the_template(script):
    """The STATE_DB record lists names and numbers of the objects in order, and its template equals the sent one."""
    exporter = hft.HftExporter(script, sessions(script))
    records = json.loads(json.dumps(exporter.side_channel("leaf", ids_on_wire=True)))
    assert list(records) == [f"HIGH_FREQUENCY_TELEMETRY_SESSION_TABLE|leaf|{group}" for group in ("PORT", "QUEUE")]
    port, queue = records.values()
    assert port["object_names"].split(",") == list(script.switch.ports)
    assert port["object_ids"].split(",") == [str(0x8000 + n) for n in range(1, 9)]
    assert queue["object_names"].split(",")[:2] == ["Ethernet0|3", "Ethernet8|3"]
    sent = templates(next(iter(exporter.templates())))
    assert templates(bytes.fromhex(port["session_config"])) == {256: sent[256]}
    assert templates(bytes.fromhex(queue["session_config"])) == {257: sent[257]}


def test_messages_share_a_write(script):
    """Several messages per datagram, and all in one stream, have the same bytes in the same order."""
    made = hft.HftExporter(script, sessions(script)).data(TS)
    whole = b"".join(made)
    assert [len(list(hft.stream(made, each))) for each in (1, 3, 0)] == [20, 7, 1]
    assert all(b"".join(hft.stream(made, each)) == whole for each in (1, 3, 0))


@pytest.mark.parametrize("piece_bytes", [0, 7, 1000])
def test_a_connection_carries_the_same_bytes(script, piece_bytes):
    """Over TCP all messages arrive in order, for any size of writes."""
    made = hft.HftExporter(script, sessions(script)).data(TS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        sender = Tcp(*listener.getsockname())
        sender.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            sender.send(made, piece_bytes)
            sender.stop()
            received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received == contents(made) == b"".join(made)


def test_a_missing_listener_is_reported():
    """Without a listener, connecting fails in one sentence with a hint."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ServiceError, match="start the collector first"):
        Tcp(*address).start()
