"""The packets collector: capture files of every kind, cut and damaged ones, and packets from an interface."""

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.contrib.roce import BTH
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import PcapNgReader, PcapReader, wrpcap, wrpcapng
from shared_data import SHARED

from weft.collectors.base import Options
from weft.collectors.packets.receiver import BATCH_PACKETS, PACKETS, PacketCapture, PacketRecording, PacketsConfig
from weft.collectors.wire import capture
from weft.pipeline.clock import SystemClock
from weft.pipeline.errors import ConfigError, InputError, ServiceError
from weft.pipeline.tables.families import FAMILIES

REAL = SHARED / "roce-pcap/oferby_roce.pcap"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="the shared data folder is not here")

MAC = "02:00:00:00:00:01"
START_NS = 1_700_000_000_000_000_000


def packet(psn: int, *, size: int = 16) -> bytes:
    """Return one RoCEv2 send over Ethernet and IPv4 with a valid ICRC."""
    ip = IP(src="10.1.1.1", dst="10.1.1.2", tos=2)
    return bytes(Ether(src=MAC, dst=MAC) / ip / UDP(sport=777, dport=4791) / BTH(opcode=0x04, psn=psn, dqpn=9) / Raw(b"d" * size))


PLAIN = [packet(psn) for psn in range(5)]


def pcap(
    packets: list[bytes],
    *,
    order: str = "<",
    nano: bool = False,
    link: int = 1,
    step_ns: int = 1000,
    start_ns: int = START_NS,
    snap: int = 262144,
) -> bytes:
    """Return a pcap file, one packet every ``step_ns``, ``snap`` bytes of it at most."""
    out = struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, snap, link)
    for k, raw in enumerate(packets):
        seconds, rest = divmod(start_ns + k * step_ns, 10**9)
        out += struct.pack(order + "IIII", seconds, rest if nano else rest // 1000, min(len(raw), snap), len(raw)) + raw[:snap]
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """Return one pcapng block."""
    body += b"\0" * (-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def option(code: int, value: bytes, order: str = "<") -> bytes:
    """Return one pcapng option."""
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def section(order: str = "<") -> bytes:
    """Return a section header."""
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(order: str = "<", link: int = 1, options: bytes = b"", snap: int = 0) -> bytes:
    """Return an interface description."""
    return block(1, struct.pack(order + "HHI", link, 0, snap) + options, order)


def enhanced(raw: bytes, ticks: int, order: str = "<", number: int = 0) -> bytes:
    """Return an enhanced packet block."""
    return block(6, struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(raw), len(raw)) + raw, order)


def read(path: Path, **options) -> tuple[pl.DataFrame, list, InputError | None]:
    """Return the packets of a recording as one frame, its batches, and the error at its end."""
    batches, error = [], None
    try:
        for batch in PacketRecording(path, Options(**options)).batches():
            batches.append(batch)
    except InputError as problem:
        error = problem
    frames = [batch.frame for batch in batches if batch.family == "packet"]
    return pl.concat([FAMILIES["packet"].empty(), *frames]), batches, error


def write(tmp_path: Path, content: bytes, name: str = "some.pcap") -> Path:
    """Write a file and return its path."""
    path = tmp_path / name
    path.write_bytes(content)
    return path


@needs_real
def test_the_real_capture_gives_its_known_packets():
    """The real capture has 105 RoCEv2 packets of known opcodes, all ECT(0), with valid ICRCs; 18 others are counted."""
    recording = PacketRecording(REAL, Options(check_icrc=True))
    (batch,) = recording.batches()
    assert Counter(batch.frame["opcode"]) == {0x00: 33, 0x03: 33, 0x05: 2, 0x11: 37}
    assert set(batch.frame["ecn"]) == {2}
    assert set(batch.frame["qp"]) == {69, 72}
    assert batch.ended == ("oferby_roce",)
    assert recording.counts["skipped_other"] == 18
    assert recording.counts["skipped_icrc"] == 0


@needs_real
def test_the_real_capture_is_what_scapy_reads():
    """Times, lengths and sequence numbers of the real capture equal scapy's."""
    frame, _, _ = read(REAL)
    with PcapReader(str(REAL)) as reader:
        seen = [(int(p.time * 10**6) * 1000, p) for p in reader if UDP in p and p[UDP].dport == 4791]
    seen = sorted(seen, key=lambda pair: pair[0])
    assert frame["ts"].to_list() == [ts for ts, _ in seen]
    assert frame["length"].to_list() == [len(p) for _, p in seen]
    assert frame["psn"].to_list() == [p[BTH].psn for _, p in seen]


@needs_real
def test_the_real_capture_is_what_tshark_reads():
    """tshark finds the same packets with the same fields."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    fields = ["infiniband.bth.opcode", "infiniband.bth.destqp", "infiniband.bth.psn", "ip.src", "frame.len"]
    command = ["tshark", "-r", str(REAL), "--disable-protocol", "tftp", "-Y", "infiniband.bth", "-T", "fields"]
    command += [part for name in fields for part in ("-e", name)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL).stdout
    expected = sorted(
        (int(op), int(qp, 0), int(psn), src, int(size)) for op, qp, psn, src, size in (line.split() for line in out.splitlines())
    )
    frame, _, _ = read(REAL)
    assert sorted(frame.select("opcode", "qp", "psn", "src", "length").rows()) == expected


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_of_both_orders_and_resolutions(tmp_path: Path, order: str, nano: bool):
    """pcap files of every byte order and resolution give their packets at their times."""
    frame, batches, error = read(write(tmp_path, pcap(PLAIN, order=order, nano=nano, step_ns=1_000_001)))
    assert error is None
    assert frame["psn"].to_list() == [0, 1, 2, 3, 4]
    exact = [START_NS + k * 1_000_001 for k in range(5)]
    assert frame["ts"].to_list() == (exact if nano else [ts // 1000 * 1000 for ts in exact])
    assert frame["recv_ts"].equals(frame["ts"].alias("recv_ts"))
    assert batches[-1].ended == ("some",)
    assert frame.schema == pl.Schema(FAMILIES["packet"].polars)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_both_orders(tmp_path: Path, order: str):
    """Resolutions of powers of ten and two and time offsets of several interfaces give the right nanoseconds."""
    content = section(order)
    content += interface(order) + interface(order, options=option(9, b"\x09", order))
    content += interface(order, options=option(9, b"\x94", order)) + interface(
        order, options=option(14, struct.pack(order + "q", 100), order)
    )
    content += interface(order, options=option(9, b"\x0c", order))
    times = [1_500_000, 1_500_000_001, (3 << 20) + 1, 2_000_000, 7_000_000_001_500]
    content += b"".join(enhanced(PLAIN[k], ticks, order, k) for k, ticks in enumerate(times))
    frame, _, error = read(write(tmp_path, content))
    assert error is None
    by_psn = dict(frame.select("psn", "ts").rows())
    assert by_psn == {0: 1_500_000_000, 1: 1_500_000_001, 2: 3_000_000_953, 3: 102_000_000_000, 4: 7_000_000_001}


def test_simple_and_obsolete_packet_blocks(tmp_path: Path):
    """A simple packet has the time of the packet before it and the snap length's bytes; an obsolete block is decoded like a new one."""
    long = packet(9, size=100)
    content = section() + interface(snap=80, options=option(9, b"\x09")) + enhanced(PLAIN[0], 5000)
    content += block(3, struct.pack("<I", len(long)) + long[:80]) + block(0x0BAD, b"skip me")
    content += block(2, struct.pack("<HHIIII", 0, 3, 0, 6000, len(PLAIN[1]), len(PLAIN[1])) + PLAIN[1])
    frame, _, error = read(write(tmp_path, content))
    assert error is None
    assert frame.select("psn", "ts", "payload_bytes").rows() == [(0, 5000, 16), (9, 5000, 100), (1, 6000, 16)]


def test_a_simple_packet_before_any_other_has_time_zero(tmp_path: Path):
    """A simple packet block with nothing before it has time 0."""
    frame, _, _ = read(write(tmp_path, section() + interface() + block(3, struct.pack("<I", len(PLAIN[0])) + PLAIN[0])))
    assert frame.select("psn", "ts").rows() == [(0, 0)]


def test_sections_have_interfaces_of_their_own(tmp_path: Path):
    """A second section of the other byte order starts with no interfaces and is decoded."""
    content = section() + interface() + enhanced(PLAIN[0], 1) + section(">") + interface(">", options=option(9, b"\x09", ">"))
    frame, _, error = read(write(tmp_path, content + enhanced(PLAIN[1], 2000, ">")))
    assert error is None
    assert frame.select("psn", "ts").rows() == [(0, 1000), (1, 2000)]


def test_drops_of_interface_statistics_become_gaps(tmp_path: Path):
    """Drop counts are cumulative: each statistics block gives a gap of its growth, also behind the last packet."""

    def statistics(dropped: int, by_system: int) -> bytes:
        return block(5, struct.pack("<III", 0, 0, 0) + option(5, struct.pack("<Q", dropped)) + option(7, struct.pack("<Q", by_system)))

    content = section() + interface() + statistics(2, 1) + enhanced(PLAIN[0], 1) + statistics(2, 1) + statistics(5, 5)
    _, batches, error = read(write(tmp_path, content))
    assert error is None
    gaps = pl.concat([batch.frame for batch in batches if batch.family == "gap"])
    assert gaps.schema == pl.Schema(FAMILIES["gap"].polars)
    assert gaps["missed"].sum() == 10
    assert set(gaps["reason"]) == {"kernel_drop"}
    assert [batch.ended for batch in batches][-1] == ("some",)
    assert all(not batch.ended for batch in batches[:-1])


def test_pcapng_that_scapy_wrote(tmp_path: Path):
    """A pcapng file written by scapy gives the packets that scapy reads from it."""
    path = tmp_path / "scapy.pcapng"
    wrpcapng(str(path), [Ether(raw) for raw in PLAIN])
    frame, _, error = read(path)
    assert error is None
    with PcapNgReader(str(path)) as reader:
        seen = [(p[BTH].psn, int(p.time * 10**6) * 1000) for p in reader]
    assert frame.select("psn", "ts").rows() == seen


@needs_real
@pytest.mark.parametrize("kind", ["pcapng", "nsecpcap"])
def test_other_formats_of_the_real_capture_give_the_same_rows(tmp_path: Path, kind: str):
    """The real capture converted by editcap gives the same rows."""
    if shutil.which("editcap") is None:
        pytest.skip("editcap is not installed")
    path = tmp_path / "other"
    subprocess.run(["editcap", "-F", kind, str(REAL), str(path)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    frame, _, error = read(path, device="d")
    assert error is None
    assert frame.equals(read(REAL, device="d")[0])


@needs_real
def test_a_snapped_capture_gives_the_same_rows(tmp_path: Path):
    """A capture of the first 90 bytes of each packet gives the rows of the whole."""
    if shutil.which("editcap") is None:
        pytest.skip("editcap is not installed")
    path = tmp_path / "snapped.pcap"
    subprocess.run(["editcap", "-F", "pcap", "-s", "90", str(REAL), str(path)], check=True, timeout=60, stdin=subprocess.DEVNULL)
    assert read(path, device="d")[0].equals(read(REAL, device="d")[0])


def whole_before(content: bytes, cut: int) -> int:
    """Return how many records of a little-endian pcap file lie wholly before ``cut``."""
    at, count = 24, 0
    while at + 16 <= cut and (at := at + 16 + struct.unpack_from("<I", content, at + 8)[0]) <= cut:
        count += 1
    return count


def test_a_file_cut_anywhere_keeps_the_packets_before(tmp_path: Path):
    """Cut at any byte, a pcap file gives every whole packet, then an error with the place."""
    content = pcap(PLAIN)
    for cut in range(24, len(content)):
        path = write(tmp_path, content[:cut])
        frame, batches, error = read(path)
        whole = whole_before(content, cut)
        assert frame["psn"].to_list() == list(range(whole))
        if cut == 24 + whole * (16 + len(PLAIN[0])):
            assert error is None
        else:
            assert f"ends inside packet {whole + 1} at byte {cut}; the {whole} packets before it were kept" in str(error)
        assert not batches or batches[-1].ended == ("some",)


def test_a_pcapng_cut_anywhere_keeps_the_packets_before(tmp_path: Path):
    """Cut at any byte, a pcapng file gives every whole packet and an error unless the cut lies between blocks."""
    head = section() + interface()
    blocks = [enhanced(raw, 10 + k) for k, raw in enumerate(PLAIN)]
    content = head + b"".join(blocks)
    for cut in range(24, len(content)):
        frame, _, error = read(write(tmp_path, content[:cut]))
        whole = max(0, cut - len(head)) // len(blocks[0])
        assert frame["psn"].to_list() == list(range(whole))
        between = cut in (len(section()), *(len(head) + k * len(blocks[0]) for k in range(len(blocks))))
        assert (error is None) == between


@pytest.mark.parametrize("size", [1, 16, 17, 100, 4096])
@pytest.mark.parametrize("ng", [False, True])
def test_any_piece_size_gives_the_same_packets(tmp_path: Path, size: int, ng: bool):
    """The size of the pieces in which a file is read does not change the result."""
    content = section() + interface() + b"".join(enhanced(raw, k) for k, raw in enumerate(PLAIN)) if ng else pcap(PLAIN)
    pieces = list(capture.read_capture(write(tmp_path, content), size))
    found = [bytes(p.buffer[o : o + n]) for p in pieces for o, n in zip(p.offsets, p.lengths, strict=True)]
    assert found == PLAIN


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [pcap([])[:24], pcap([], order=">"), section(), section() + interface(), section() + interface() + enhanced(PLAIN[0], 1)]
    ),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_well_or_in_an_input_error(tmp_path: Path, rest: bytes, head: bytes):
    """Any bytes behind a header, or with none, give packets and at most an InputError."""
    for content in (rest, head + rest):
        frame, _, error = read(write(tmp_path, content))
        assert frame.schema == pl.Schema(FAMILIES["packet"].polars)
        assert error is None or str(error).startswith(str(tmp_path))


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8), st.booleans())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_end_well_or_in_an_input_error(tmp_path: Path, at: int, damage: bytes, ng: bool):
    """A good file overwritten anywhere gives packets and at most an InputError."""
    content = (
        section() + interface(options=option(9, b"\x89")) + b"".join(enhanced(raw, k << 33) for k, raw in enumerate(PLAIN))
        if ng
        else pcap(PLAIN)
    )
    frame, _, error = read(write(tmp_path, content[:at] + damage + content[at + len(damage) :]))
    assert frame.height <= len(PLAIN)
    assert error is None or isinstance(error, InputError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"GIF89a and so on, not a capture", "neither pcap nor pcapng"),
        (pcap(PLAIN, link=147), "has link type 147, which is not decoded; capture on an Ethernet"),
        (pcap([])[:20], "ends inside the file header at byte 20"),
        (pcap(PLAIN)[:24] + struct.pack("<IIII", 1, 1, 2**31, 2**31), "longer than any packet; the 0 packets before it were kept"),
        (section() + enhanced(PLAIN[0], 1), "is not a block"),
        (section() + interface() + b"\1\2\3\4" + b"\0" * 20, "is not a block"),
    ],
)
def test_what_is_no_capture_is_said_in_one_sentence(tmp_path: Path, content: bytes, words: str):
    """Files that cannot be read give an error with a reason and a hint, in one line."""
    path = write(tmp_path, content)
    _, _, error = read(path)
    assert words in str(error)
    assert "\n" not in str(error)
    assert str(error).count(";") >= 1


def test_an_absent_file_is_said_in_one_sentence(tmp_path: Path):
    """A missing path is an input error, not a traceback."""
    _, _, error = read(tmp_path / "absent.pcap")
    assert "No such file" in str(error)


def test_an_unknown_link_type_beside_a_known_one_loses_nothing_good(tmp_path: Path):
    """Packets of an interface that is not decoded are left out and reported at the end; those of others are all there."""
    content = section() + interface(link=147) + interface() + b"".join(enhanced(raw, k, number=k % 2) for k, raw in enumerate(PLAIN))
    frame, batches, error = read(write(tmp_path, content))
    assert frame["psn"].to_list() == [1, 3]
    assert batches[-1].ended == ("some",)
    assert "3 packets have link type 147" in str(error)


def test_what_gives_no_row_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Packets captured too short for their headers become a gap; they and other protocols are reported at the end of a file."""
    caplog.set_level("INFO")
    other = bytes(Ether(src=MAC, dst=MAC) / IP(src="10.1.1.1", dst="10.1.1.2") / UDP(sport=777, dport=53) / Raw(b"d"))
    tagged = [bytes(Ether(raw[:12] + b"\x81\x00\x00\x05" + raw[12:])) for raw in PLAIN[1:3]]
    frame, batches, error = read(write(tmp_path, pcap([PLAIN[0], *tagged, other, PLAIN[3], other, other], snap=54)))
    assert (frame["psn"].to_list(), error) == ([0, 3], None)
    (gap,) = [batch.frame.row(0, named=True) for batch in batches if batch.family == "gap"]
    assert (gap["what"], gap["missed"], gap["reason"], gap["device"]) == ("packets", 2, "cut", "some")
    assert caplog.messages == [f"{tmp_path / 'some.pcap'}: packets without a row: 3 not RoCEv2, 2 captured too short"]
    caplog.clear()
    read(write(tmp_path, pcap(PLAIN)))
    assert caplog.messages == []


def test_a_snap_length_up_to_the_bth_loses_no_sequence_number(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Writes whose RETH was cut off keep their rows, so that no false sequence gap appears; this is reported at the end of the file."""
    caplog.set_level("INFO")
    below = Ether(src=MAC, dst=MAC) / IP(src="10.1.1.1", dst="10.1.1.2") / UDP(sport=777, dport=4791)
    writes = [bytes(below / Raw(struct.pack(">BBHII", 0x0A, 0x40, 0xFFFF, 5, psn) + b"r" * 16 + b"\0" * 4)) for psn in range(9)]
    frame, batches, error = read(write(tmp_path, pcap(writes, snap=64)))
    assert (frame["psn"].to_list(), error) == (list(range(9)), None)
    assert frame["dma_bytes"].null_count() == 9
    assert [batch.family for batch in batches] == ["packet"]
    assert len(caplog.messages) == 1
    assert "captured too short for their RETH or AETH, whose fields are null: 9;" in caplog.messages[0]


@pytest.mark.parametrize("order", "<>")
def test_times_of_pcap_go_up_to_2106(tmp_path: Path, order: str):
    """The seconds of a pcap record are unsigned: packets captured after 2038-01-19 keep their time."""
    content = bytearray(pcap(PLAIN, order=order))
    at = 24
    for k, raw in enumerate(PLAIN):
        struct.pack_into(f"{order}I", content, at, 2**32 - 5 + k)
        at += 16 + len(raw)
    frame, _, error = read(write(tmp_path, bytes(content)))
    assert error is None
    assert (frame["ts"] // 10**9).to_list() == [2**32 - 5 + k for k in range(5)]


@pytest.mark.parametrize("between", ["interface", "statistics", "section"])
def test_a_block_between_packets_does_not_part_their_order(tmp_path: Path, between: str):
    """Packets out of order are put in order, also with an interface, a statistics or a section block between them."""
    drops = block(5, struct.pack("<III", 0, 0, 0) + option(5, struct.pack("<Q", 3)))
    blocks = {"interface": interface(), "statistics": drops, "section": section() + interface()}
    ticks = [40, 50, 10, 20, 30]
    packets = [enhanced(raw, tick) for raw, tick in zip(PLAIN, ticks, strict=True)]
    content = [section(), interface(), *packets[:2], blocks[between], *packets[2:]]
    frame, batches, error = read(write(tmp_path, b"".join(content)))
    assert (frame["psn"].to_list(), error) == ([2, 3, 4, 0, 1], None)
    missed = [batch.frame["missed"].item() for batch in batches if batch.family == "gap"]
    assert missed == ([3] if between == "statistics" else [])


def test_wrong_icrcs_become_a_gap(tmp_path: Path):
    """With the check on, damaged packets are left out and become one gap; without it they are rows."""
    damaged = PLAIN[1][:-5] + b"\xff" + PLAIN[1][-4:]
    path = write(tmp_path, pcap([PLAIN[0], damaged, PLAIN[2]]))
    frame, batches, _ = read(path, check_icrc=True)
    assert frame["psn"].to_list() == [0, 2]
    (gap,) = [batch.frame.row(0, named=True) for batch in batches if batch.family == "gap"]
    assert (gap["what"], gap["missed"], gap["reason"], gap["device"]) == ("packets", 1, "icrc", "some")
    assert read(path)[0].height == 3


def test_batches_are_bounded_ordered_and_always_the_same(tmp_path: Path):
    """Many packets give batches of at most 20,000 in time order, the same in each replay, up to the device's end."""
    content = pcap([PLAIN[k % 5] for k in range(2 * BATCH_PACKETS + 5)])
    first, at = content[24 : 24 + 16 + len(PLAIN[0])], 24 + 16 + len(PLAIN[0])
    path = write(tmp_path, content[:24] + content[at : at + len(first)] + first + content[at + len(first) :])
    frame, batches, error = read(path, device="tap")
    assert error is None
    assert [batch.frame.height for batch in batches] == [BATCH_PACKETS, BATCH_PACKETS, 5]
    assert [batch.ended for batch in batches] == [(), (), ("tap",)]
    assert frame["ts"].is_sorted()
    assert set(frame["device"]) == {"tap"}
    assert frame.equals(read(path, device="tap")[0])


def test_a_capture_without_roce_ends_its_device(tmp_path: Path):
    """A capture without any RoCEv2 packet gives one empty batch that ends the device."""
    frame, (batch,), error = read(write(tmp_path, pcap([b"\0" * 60])))
    assert error is None
    assert frame.is_empty()
    assert batch.ended == ("some",)


def test_captures_are_recognised_by_their_first_bytes(tmp_path: Path):
    """The collector knows pcap and pcapng files by their magic, and nothing else."""
    recognises = PACKETS.recognises
    assert recognises is not None
    for head in (pcap([]), pcap([], order=">"), pcap([], nano=True), pcap([], nano=True, order=">"), section(), section(">")):
        assert recognises(tmp_path, head)
    for head in (b"", b"\xa1", b"rackid,hostid", b"\x1f\x8b\x08\0"):
        assert not recognises(tmp_path, head)


def test_importing_the_collector_loads_neither_scapy_nor_numba():
    """Loading the table of collectors loads neither scapy nor kernels."""
    code = "import sys, weft.collectors.packets.receiver; print('scapy' in sys.modules, 'numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.split() == ["False", "False"]


@pytest.fixture
def live() -> Iterator[PacketCapture]:
    """Capture on the loopback interface, where this user may."""
    source = PacketCapture(PacketsConfig(interface="lo", device="here", ring_blocks=8, check_icrc=False), SystemClock())
    try:
        source.start()
    except ServiceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    yield source
    source.stop()


def bth(psn: int, size: int) -> bytes:
    """Return BTH, payload and ICRC of a send of ``size`` bytes."""
    return struct.pack(">BBHII", 0x04, 0, 0xFFFF, 0x123, psn) + b"x" * size + b"\0" * 4


def test_live_capture_gives_each_packet_once(live: PacketCapture):
    """Packets sent over loopback, IPv4 and IPv6, are captured once each with their fields; other ports are not."""
    clock = SystemClock()
    sent = [(psn, 4 * (psn % 30)) for psn in range(600)]
    before = clock.now_ns()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
        for psn, size in sent:
            if psn % 2:
                six.sendto(bth(psn, size), ("::1", 4791))
            else:
                four.sendto(bth(psn, size), ("127.0.0.1", 4791))
            four.sendto(b"another port", ("127.0.0.1", 4792))
    frames: list[pl.DataFrame] = []
    deadline = clock.monotonic_ns() + 10 * 10**9
    while sum(frame.height for frame in frames) < len(sent) and clock.monotonic_ns() < deadline:
        frames += [batch.frame for batch in live.drain() if batch.family == "packet"]
        clock.wait(0.01)
    frame = pl.concat(frames)
    assert frame.select("psn", "payload_bytes").rows() == sent
    assert frame["src"].to_list() == ["::1" if psn % 2 else "127.0.0.1" for psn, _ in sent]
    assert (frame["length"] == frame["payload_bytes"] + 16 + 8 + 14 + pl.Series([40 if psn % 2 else 20 for psn, _ in sent])).all()
    assert frame["ts"].is_between(before, clock.now_ns()).all()
    assert (frame["recv_ts"] >= frame["ts"]).all()
    assert set(frame["device"]) == {"here"}
    assert live.counters()["weft_collectors_packets_decoded_total"] == len(sent)
    assert live.counters()["weft_collectors_packets_skipped_other_total"] == 0


def test_what_came_before_the_stop_is_drained_after_it(live: PacketCapture):
    """Packets captured before a stop are drained after it; a second stop and drain do nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
        for psn in range(10):
            four.sendto(bth(psn, 8), ("127.0.0.1", 4791))
    live.stop()
    live.stop()
    assert sum(batch.frame.height for batch in live.drain()) == 10
    assert live.drain() == []


def test_a_full_ring_becomes_a_gap():
    """Packets that do not fit into the ring are dropped, counted, and reported as a gap."""
    source = PacketCapture(PacketsConfig(interface="lo", ring_blocks=2, block_bytes=1 << 16), SystemClock())
    try:
        source.start()
    except ServiceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
        for psn in range(3000):
            four.sendto(bth(psn, 100), ("127.0.0.1", 4791))
    source.stop()
    batches = source.drain()
    packets = sum(batch.frame.height for batch in batches if batch.family == "packet")
    missed = sum(batch.frame["missed"].sum() for batch in batches if batch.family == "gap")
    assert missed > 0
    assert packets + missed == 3000
    assert source.counters()["weft_collectors_packets_missed_kernel_drop_total"] == missed


def test_an_unknown_interface_is_a_configuration_error():
    """An unknown interface gives an error that lists the existing ones."""
    with pytest.raises(ConfigError, match=r"there is no interface 'nowhere0'; write one of .*lo"):
        PacketCapture(PacketsConfig(interface="nowhere0"), SystemClock()).start()


def test_who_may_not_capture_is_told_the_mend():
    """Without the privilege the start fails with an error of one sentence that names it."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to give the privilege away")
    code = (
        "from weft.collectors.packets.receiver import PacketCapture, PacketsConfig\n"
        "from weft.pipeline.clock import SystemClock\n"
        "from weft.pipeline.errors import ServiceError\n"
        "try:\n    PacketCapture(PacketsConfig(interface='lo'), SystemClock()).start()\n"
        "except ServiceError as error:\n    print(error)\n"
    )
    drop = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    out = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "run as root or give the process CAP_NET_RAW" in out.stdout


def test_scapy_written_pcap(tmp_path: Path):
    """A pcap file that scapy wrote gives its packets, with valid ICRCs."""
    path = tmp_path / "written.pcap"
    wrpcap(str(path), [Ether(raw) for raw in PLAIN])
    frame, _, error = read(path, check_icrc=True)
    assert error is None
    assert frame["psn"].to_list() == [0, 1, 2, 3, 4]
