"""The IPFIX decoder: every layout that switches send, templates that come late, change and are withdrawn, and malformed bytes."""

import shutil
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipfix_bytes import PAD, SECOND, T0, TIME_NS, TIME_SPLIT, counter, message, port_template, record, template
from shared_data import SHARED

from weft.collectors.hft.ipfix import Block, IpfixDecoder
from weft.collectors.wire.capture import read_capture
from weft.collectors.wire.udp import payloads

TELEGRAF = SHARED / "ipfix/telegraf/ipfix_example"
needs_shared = pytest.mark.skipif(not TELEGRAF.is_dir(), reason="the shared data folder is not here")


def feed(decoder: IpfixDecoder, *datagrams: bytes, exporter: int = 0, now_ns: int = T0) -> list[Block]:
    """Feed datagrams in one call."""
    buffer = np.frombuffer(b"".join(datagrams), np.uint8)
    lengths = np.array([len(one) for one in datagrams], np.int64)
    return decoder.feed(buffer, np.cumsum(lengths) - lengths, lengths, np.full(len(datagrams), exporter), now_ns)


def shown(blocks: list[Block]) -> list[tuple[list[int], list[list[int]]]]:
    """Return times and values of blocks as plain lists."""
    return [(block.times.tolist(), block.values.tolist()) for block in blocks]


def test_the_plain_layout_gives_times_and_counters():
    """A template of one 8-byte UNIX time and 8-byte counters gives these values, with labels, types and statistics."""
    (block,) = feed(IpfixDecoder(), message([(2, port_template(256, 2))]), message([(256, record(T0, [1, 2, 3, 2**64 - 1]))]))
    assert shown([block]) == [([T0], [[1, 2, 3, 2**64 - 1]])]
    assert block.template.labels.tolist() == [1, 1, 2, 2]
    assert block.template.types.tolist() == [1, 1, 1, 1]
    assert block.template.stats.tolist() == [0, 9, 0, 9]


def test_time_in_seconds_and_nanoseconds():
    """Seconds (322) and nanoseconds (325) of four bytes each make one time, in either order."""
    swapped = TIME_SPLIT[4:] + TIME_SPLIT[:4]
    sets = [(2, template(256, [TIME_SPLIT, counter(1, 1, 0)]) + template(257, [swapped, counter(1, 1, 0)]))]
    data = [(256, struct.pack(">IIQ", SECOND, 123_456_789, 7)), (257, struct.pack(">IIQ", 987_654_321, SECOND, 8))]
    blocks = feed(IpfixDecoder(), message(sets + data))
    assert shown(blocks) == [([T0 + 123_456_789], [[7]]), ([T0 + 987_654_321], [[8]])]


def test_time_in_the_format_of_the_standard():
    """NTP time in element 325, as of RFC 7011, is distinguished from a plain count of nanoseconds by its size."""
    ntp = (SECOND + 2_208_988_800) << 32 | 1 << 31
    (block,) = feed(IpfixDecoder(), message([(2, port_template(256, 1)), (256, record(ntp, [1, 2]))]))
    assert block.times.tolist() == [T0 + 500_000_000]


def test_nanoseconds_alone_lie_within_the_second_of_the_message():
    """Four bytes of nanoseconds without seconds count from the second in which the message was sent."""
    fields = [struct.pack(">HH", 325, 4), counter(1, 1, 0)]
    (block,) = feed(IpfixDecoder(), message([(2, template(256, fields)), (256, struct.pack(">IQ", 42, 5))], exported=SECOND + 3))
    assert shown([block]) == [([T0 + 3_000_000_042], [[5]])]


def test_a_time_that_cannot_be_is_told_as_none():
    """A count of nanoseconds beyond 2116 is not a time."""
    (block,) = feed(IpfixDecoder(), message([(2, port_template(256, 1)), (256, record(2**62, [1, 2]))]))
    assert block.times.tolist() == [-1]


@pytest.mark.parametrize("width", range(1, 9))
def test_counters_of_every_width(width):
    """Adjacent counters of one to eight bytes are decoded as big-endian numbers."""
    values = [0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1) + 5]
    fields = [TIME_NS, *(counter(k + 1, 1, 0, width) for k in range(4)), counter(9, 1, 9, 8)]
    data = struct.pack(">Q", T0) + b"".join(value.to_bytes(width, "big") for value in values) + struct.pack(">Q", 77)
    (block,) = feed(IpfixDecoder(), message([(2, template(300, fields)), (300, data)]))
    assert block.values.tolist() == [[*values, 77]]
    assert block.template.widths.tolist() == [width] * 4 + [8]


def test_placeholders_take_bytes_and_are_no_counters():
    """Element 0 of enterprise 0, anywhere and any number of times, is skipped, and so is any field that is not a counter."""
    address = struct.pack(">HH", 8, 4)
    fields = [PAD, TIME_NS, PAD, counter(1, 1, 0), PAD, PAD, address, counter(2, 1, 9, 4), PAD]
    data = b"\xee" * 8 + struct.pack(">Q", T0) + b"\xee" * 8 + struct.pack(">Q", 5) + b"\xee" * 20 + struct.pack(">I", 6) + b"\xee" * 8
    (block,) = feed(IpfixDecoder(), message([(2, template(256, fields)), (256, data * 2)]))
    assert shown([block]) == [([T0, T0], [[5, 6], [5, 6]])]


def test_extension_bits_add_to_type_and_statistic():
    """The top bit of either half of the enterprise number adds 0x20000000."""
    fields = [TIME_NS, counter(0x7FFF, 0x2000_0005, 0x2000_0123), counter(1, 21, 0x27)]
    (block,) = feed(IpfixDecoder(), message([(2, template(256, fields)), (256, record(T0, [1, 2]))]))
    assert block.template.types.tolist() == [0x2000_0005, 21]
    assert block.template.stats.tolist() == [0x2000_0123, 0x27]
    assert block.template.labels.tolist() == [0x7FFF, 1]


def test_real_enterprises_are_no_sai_counters():
    """Fields with an enterprise number of IANA's list are skipped, and their records counted."""
    decoder = IpfixDecoder()
    fields = [TIME_NS, struct.pack(">HHI", 0x8000 | 5, 8, 29305)]
    assert feed(decoder, message([(2, template(256, fields)), (256, record(T0, [1]))])) == []
    assert decoder.counts()["records_without_counters"] == 1


def test_many_records_many_messages_one_block():
    """Records of one template, in sets and messages of one or many datagrams, form one block in their order."""
    first = message([(2, port_template(256, 1))]) + message([(256, record(T0, [1, 2]) + record(T0 + 1, [3, 4]))])
    second = message([(256, record(T0 + 2, [5, 6])), (256, record(T0 + 3, [7, 8]))])
    assert shown(feed(IpfixDecoder(), first, second)) == [([T0, T0 + 1, T0 + 2, T0 + 3], [[1, 2], [3, 4], [5, 6], [7, 8]])]


def test_padding_is_no_record():
    """A rest of a set shorter than a record, and a rest of a message shorter than a set header, are padding."""
    sets = [(2, port_template(256, 1) + b"\0\0"), (256, record(T0, [1, 2]) + b"\0" * 7)]
    decoder = IpfixDecoder()
    assert shown(feed(decoder, message(sets, pad=b"\0\0"))) == [([T0], [[1, 2]])]
    assert not [what for what in decoder.counts() if what.startswith("bad_")]


def test_data_waits_for_its_template():
    """Data received before its template is decoded when the template comes, in order, without a loss."""
    decoder = IpfixDecoder()
    assert feed(decoder, message([(256, record(T0, [1, 2]))])) == []
    assert feed(decoder, message([(256, record(T0 + 1, [3, 4]))])) == []
    late = feed(decoder, message([(2, port_template(256, 1)), (256, record(T0 + 2, [5, 6]))]))
    assert [time for block in late for time in block.times.tolist()] == [T0, T0 + 1, T0 + 2]
    assert decoder.losses() == []
    assert decoder.counts()["held_bytes"] == 0


@pytest.mark.parametrize(("limits", "later_ns"), [({"held_bytes_max": 1000}, 0), ({"held_ns_max": 10}, 11)])
def test_what_waits_is_bounded_and_admitted(limits, later_ns):
    """Data without a template is dropped beyond the limits of bytes and time, counted, and reported as lost."""
    decoder = IpfixDecoder(**limits)
    feed(decoder, message([(256, record(T0, [1, 2]))]), message([(257, record(T0, [1, 2]))]))
    decoder.expire(T0 + later_ns)
    losses = decoder.losses()
    assert {(loss.what, loss.reason) for loss in losses} == {("sets", "no_template")}
    assert sum(loss.missed for loss in losses) == decoder.counts()["unknown_template_sets"] == (1 if "held_bytes_max" in limits else 2)


def test_a_template_that_repeats_changes_nothing():
    """A template sent again unchanged is not a new generation: later blocks have the same object."""
    decoder = IpfixDecoder()
    (first,) = feed(decoder, message([(2, port_template(256, 1))]), message([(256, record(T0, [1, 2]))]))
    (second,) = feed(decoder, message([(2, port_template(256, 1))]), message([(256, record(T0, [1, 2]))]))
    assert second.template is first.template
    assert decoder.counts()["templates_new"] == 1


def test_a_changed_template_counts_from_its_place_on():
    """Data before a changed template is decoded by the old one, data behind it by the new one, in one call."""
    old, new = port_template(256, 1), port_template(256, 2)
    sets = [(2, old), (256, record(T0, [1, 2])), (2, new), (256, record(T0 + 1, [1, 2, 3, 4]))]
    assert shown(feed(IpfixDecoder(), message(sets))) == [([T0], [[1, 2]]), ([T0 + 1], [[1, 2, 3, 4]])]


def test_generations_overlap():
    """Two templates of one device are valid together, with their data interleaved."""
    decoder = IpfixDecoder()
    feed(decoder, message([(2, port_template(256, 1) + port_template(257, 2))]))
    data = [message([(256 + k % 2, record(T0 + k, [k] * (2 + 2 * (k % 2))))]) for k in range(6)]
    assert {tuple(block.times.tolist()) for block in feed(decoder, *data)} == {(T0, T0 + 2, T0 + 4), (T0 + 1, T0 + 3, T0 + 5)}


def test_templates_belong_to_their_exporter_and_domain():
    """The same template id of another exporter or observation domain is another template."""
    decoder = IpfixDecoder()
    feed(decoder, message([(2, port_template(256, 1))], domain=1), exporter=1)
    feed(decoder, message([(2, port_template(256, 2))], domain=2), exporter=1)
    assert feed(decoder, message([(256, record(T0, [1, 2]))], domain=1), exporter=2) == []
    (one,) = feed(decoder, message([(256, record(T0, [1, 2, 3, 4]))], domain=2), exporter=1)
    assert (one.exporter, one.domain, one.values.tolist()) == (1, 2, [[1, 2, 3, 4]])


@pytest.mark.parametrize("withdrawn", [256, 2])
def test_a_withdrawn_template_is_forgotten(withdrawn):
    """A template without fields withdraws its id, id 2 all ids of its domain: data waits again."""
    decoder = IpfixDecoder()
    feed(decoder, message([(2, port_template(256, 1)), (2, struct.pack(">HH", withdrawn, 0))]))
    assert feed(decoder, message([(256, record(T0, [1, 2]))])) == []
    assert decoder.counts()["templates"] == 0


def test_options_are_passed_over():
    """Records of an options template are counted and have no counters; the sets around them are decoded."""
    options = struct.pack(">HHHHH", 400, 2, 1, 149, 4) + counter(1, 1, 0)
    decoder = IpfixDecoder()
    sets = [(3, options), (2, port_template(256, 1)), (400, struct.pack(">IQ", 1, 2) * 3), (256, record(T0, [1, 2]))]
    assert shown(feed(decoder, message(sets))) == [([T0], [[1, 2]])]
    decoder.end()
    assert (decoder.counts()["records"], decoder.losses()) == (4, [])


def test_too_many_templates_are_refused():
    """Templates of an exporter beyond the limit are refused and counted; known ones may still change."""
    decoder = IpfixDecoder(templates_max=2)
    feed(decoder, message([(2, b"".join(port_template(name, 1) for name in (256, 257, 258)))]), message([(2, port_template(257, 2))]))
    assert decoder.counts()["templates_refused"] == 1
    assert decoder.counts()["templates"] == 2
    assert decoder.counts()["templates_changed"] == 1


@pytest.mark.parametrize(
    ("numbers", "records", "missed"),
    [
        ([0, 1, 2, 3], [1, 1, 1, 1], 0),
        ([0, 1, 4, 5], [1, 1, 1, 1], 2),
        ([0, 3, 9, 12], [3, 3, 3, 3], 3),
        ([0, 1, 2, 5], [3, 3, 3, 3], 2),
        ([0, 0, 0, 0], [3, 3, 3, 3], 0),
        ([2**32 - 2, 2**32 - 1, 0, 1], [1, 1, 1, 1], 0),
        ([2**32 - 2, 2**32 - 1, 3, 4], [1, 1, 1, 1], 3),
        ([7, 8, 0, 1], [1, 1, 1, 1], 0),
    ],
    ids=["whole", "two", "counts records", "counts messages", "counts nothing", "wraps", "gap over the wrap", "begins anew"],
)
def test_sequence_numbers_tell_what_is_missing(numbers, records, missed):
    """Gaps are found whether a device counts records, messages or nothing, over the wrap, in one call or in many."""
    data = [message([(256, b"".join(record(T0, [1, 2]) for _ in range(n)))], sequence=s) for s, n in zip(numbers, records, strict=True)]
    for cut in (1, len(data)):
        decoder = IpfixDecoder()
        feed(decoder, message([(2, port_template(256, 1))], domain=5))
        feed(decoder, message([(2, port_template(256, 1))], sequence=numbers[0]))
        for at in range(0, len(data), cut):
            feed(decoder, *data[at : at + cut])
        losses = decoder.losses()
        assert sum(loss.missed for loss in losses) == missed
        assert {loss.reason for loss in losses} <= {"sequence"}


def test_a_gap_names_its_first_sequence_number():
    """The gap has the first missing number, and how many are missing."""
    decoder = IpfixDecoder()
    feed(decoder, message([(2, port_template(256, 1))]), *(message([(256, record(T0, [1, 2]))], sequence=s) for s in (0, 1, 2, 10)))
    (loss,) = decoder.losses()
    assert (loss.first, loss.missed) == (3, 7)


WHOLE = [message([(2, port_template(256, 2))]), *(message([(256, record(T0 + k, [k, 2, 3, 4]))], sequence=k) for k in range(3))]


def test_a_stream_cut_anywhere_gives_the_same():
    """A stream in two pieces, cut at every byte, gives all records once."""
    whole = b"".join(WHOLE)
    for cut in range(len(whole) + 1):
        decoder, left, times = IpfixDecoder(), b"", []
        for piece in (whole[:cut], whole[cut:]):
            content = np.frombuffer(left + piece, np.uint8)
            blocks, used, problem = decoder.feed_stream(content, 0, T0)
            assert problem == ""
            left = content[used:].tobytes()
            times += [time for block in blocks for time in block.times.tolist()]
        assert (left, times) == (b"", [T0, T0 + 1, T0 + 2])


def test_a_datagram_cut_anywhere_is_counted():
    """A datagram that ends at any byte gives the records of its whole messages, and the cut is counted."""
    whole = b"".join(WHOLE)
    edges = np.cumsum([0, *(len(one) for one in WHOLE)]).tolist()
    for cut in range(1, len(whole)):
        decoder = IpfixDecoder()
        blocks = feed(decoder, whole[:cut])
        whole_messages = sum(edge <= cut for edge in edges[1:])
        assert sum(len(block.times) for block in blocks) == max(0, whole_messages - 1)
        assert decoder.counts().get("bad_cut", 0) == (cut not in edges)


def test_lengths_that_lie_cost_their_message_only():
    """A set longer than its message, or shorter than its header, ends that message; the next one is decoded."""
    for length in (3, 2000):
        bad = bytearray(WHOLE[1])
        struct.pack_into(">H", bad, 18, length)
        decoder = IpfixDecoder()
        blocks = feed(decoder, WHOLE[0] + bytes(bad) + WHOLE[2])
        assert [block.times.tolist() for block in blocks] == [[T0 + 1]]
        assert decoder.counts()["bad_set_length"] == 1


def test_a_template_that_claims_more_fields_than_it_has():
    """A template whose fields are cut is counted and not learnt; those before it are."""
    broken = struct.pack(">HH", 300, 60000) + TIME_NS
    decoder = IpfixDecoder()
    feed(decoder, message([(2, port_template(256, 1) + broken)]))
    assert decoder.counts()["bad_template_cut"] == 1
    assert decoder.counts()["templates"] == 1


@given(st.binary(max_size=400), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_records_or_counts(noise, flips):
    """Random bytes, and valid messages with random changes, never raise, and give at most as many values as bytes."""
    damaged = bytearray(b"".join(WHOLE))
    for at, value in flips:
        damaged[at % len(damaged)] = value
    decoder = IpfixDecoder(held_bytes_max=1000)
    for content in (noise, bytes(damaged), bytes(damaged) + noise):
        blocks = feed(decoder, content)
        assert sum(block.values.size for block in blocks) <= len(content) + 2000
        decoder.feed_stream(np.frombuffer(content, np.uint8), 1, T0)
    assert decoder.counts()["held_bytes"] <= 1000


@needs_shared
def test_real_flow_exports_are_framed_without_error():
    """Templates of real flow exporters are learnt and their records counted; none of them is decoded as SAI counters."""
    decoder = IpfixDecoder()
    files = sorted(TELEGRAF.glob("*.bin"))
    blocks = feed(decoder, *(file.read_bytes() for file in files))
    decoder.end()
    counts = decoder.counts()
    # One line for each record.
    expected = sum(1 for line in (TELEGRAF / "expected.out").read_text().splitlines() if line.strip())
    assert (blocks, counts["messages"], counts["records"], decoder.losses()) == ([], len(files), expected, [])
    assert not [what for what in counts if what.startswith("bad_")]


@needs_shared
def test_a_real_capture_of_flows_is_framed_without_error():
    """The IPFIX of scapy's own tests has two templates, one record as in Wireshark, and a jump of its sequence."""
    decoder = IpfixDecoder()
    for piece in read_capture(SHARED / "ipfix/scapy_ipfix.pcap"):
        found = payloads(piece.buffer, piece.offsets, piece.lengths, piece.links, 9995)
        assert decoder.feed(piece.buffer, found.offsets, found.lengths, np.zeros(len(found.offsets), np.int64), T0) == []
    decoder.end()
    counts = decoder.counts()
    assert (counts["messages"], counts["templates"], counts["records"]) == (3, 2, 1)
    assert not [what for what in counts if what.startswith(("bad_", "unknown_"))]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_frames_the_same(tmp_path):
    """Wireshark sees the same messages, set ids and template fields in what the tests build."""
    datagrams = [*WHOLE, message([(2, template(300, [TIME_SPLIT, PAD, counter(1, 21, 1, 5)])), (300, bytes(29))], sequence=3)]
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for one in datagrams:
        udp = struct.pack(">HHHH", 4000, 4739, 8 + len(one), 0) + one
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])) + udp
        frame = b"\2" * 12 + b"\x08\x00" + ip
        out += struct.pack("<IIII", SECOND, 0, len(frame), len(frame)) + frame
    path = tmp_path / "some.pcap"
    path.write_bytes(out)
    fields = ["-e", "cflow.sequence", "-e", "cflow.flowset_id", "-e", "cflow.template_field_count"]
    command = ["tshark", "-r", str(path), "-d", "udp.port==4739,cflow", "-T", "fields", "-E", "occurrence=a", *fields]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert [line.split("\t") for line in told] == [
        ["0", "2", "5"],
        ["0", "256", ""],
        ["1", "256", ""],
        ["2", "256", ""],
        ["3", "2,300", "4"],
    ]
