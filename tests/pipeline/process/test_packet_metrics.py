"""The packet metric against plain Python over single packets, with any split."""

import io
import struct
from collections import defaultdict
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import SHARED

from weft.pipeline import histogram
from weft.pipeline.process.base import Closing
from weft.pipeline.process.packets.metric import PacketMetric, PacketMetricConfig
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.states import STATES

REAL = SHARED / "roce-pcap/oferby_roce.pcap"

S = 10**9
SEND, WRITE_FIRST, WRITE_MIDDLE, READ, READ_FIRST, READ_MIDDLE, READ_LAST, READ_ONLY, ACK, ATOMIC_ACK, FETCH_ADD = (
    *(0x04, 0x06, 0x07, 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x11, 0x12, 0x14),
)
UC_SEND, UD_SEND, CNP = 0x24, 0x64, 0x81
WITH_AETH = (READ_FIRST, READ_LAST, READ_ONLY, ACK, ATOMIC_ACK)


def packet(ts: int, opcode: int, psn: int, *, way: str = "ab", qp: int = 2, syndrome: int = 0, **more) -> dict:
    """Return a row of ``packet`` from the first to the second letter of ``way``."""
    with_aeth = opcode in WITH_AETH
    return {
        "ts": ts,
        "src": way[0],
        "dst": way[1],
        "qp": qp,
        "opcode": opcode,
        "psn": psn % 2**24,
        "ack_psn": psn % 2**24 if with_aeth else None,
        "syndrome": syndrome if with_aeth else None,
        "credits": syndrome & 31 if with_aeth and syndrome >> 5 == 0 else None,
        "length": 100,
        "payload_bytes": 40,
        "ecn": 2,
        "sampling_rate": 1,
        **more,
    }


def ack(ts: int, psn: int, *, way: str = "ba", qp: int = 1, **more) -> dict:
    """Return an acknowledgement."""
    return packet(ts, ACK, psn, way=way, qp=qp, **more)


def frame_of(packets: list[dict]) -> pl.DataFrame:
    """Return packets as a frame of the family."""
    table = FAMILIES["packet"].polars
    return pl.DataFrame(packets, schema={name: table[name] for name in packet(0, 0, 0, dma_bytes=0)} if packets else table).select(
        pl.col(name) if packets and name in packet(0, 0, 0, dma_bytes=0) else pl.lit(None, dtype).alias(name)
        for name, dtype in table.items()
    )


def close(packets: list[dict], metric: PacketMetric | None = None, end_s: int = 100) -> dict[str, pl.DataFrame]:
    """Return the tables of one call with all packets."""
    return (metric or PacketMetric()).close(Closing("tap", 0, end_s * S, [frame_of(packets)]))


def totals(packets: list[dict]) -> tuple[int, int, int]:
    """Return the sums of gaps, missing numbers and repeats."""
    roce = close(packets)["roce"]
    return roce["psn_gaps"].sum(), roce["psn_missing"].sum(), roce["psn_repeats"].sum()


def latencies(packets: list[dict], metric: PacketMetric | None = None) -> list[tuple[str, str, int, int]]:
    """Return requester, responder, samples and total of each path."""
    table = close(packets, metric)["latency"]
    return table.group_by("src", "dst").agg(pl.col("samples", "total").sum()).sort("src", "dst").rows()


def counter(metric: PacketMetric, name: str) -> float:
    """Return one of the metric's counters."""
    return metric.counters()[f"weft_pipeline_packets_{name}_total"]


def real_packets() -> list[tuple[int, str, str, int, int, int]]:
    """Return time, source, destination, queue pair, opcode and PSN of the real capture, read with struct alone."""
    content, at, out = REAL.read_bytes(), 24, []
    while at < len(content):
        seconds, micros, size, _ = struct.unpack_from("<IIII", content, at)
        raw, at = content[at + 16 : at + 16 + size], at + 16 + size
        if raw[12:14] == b"\x08\0" and raw[23] == 17 and raw[36:38] == b"\x12\xb7":
            src, dst = (".".join(str(byte) for byte in raw[k : k + 4]) for k in (26, 30))
            out.append((seconds * S + micros * 1000, src, dst, int.from_bytes(raw[47:50]), raw[42], int.from_bytes(raw[51:54])))
    return sorted(out, key=lambda row: row[0])


@pytest.mark.skipif(not REAL.is_file(), reason="the shared data folder is not here")
def test_latency_of_the_real_capture():
    """The real capture gives 68 latencies, exactly those of a plain search over its packets, and no gap."""
    rows = real_packets()
    expected = defaultdict(list)
    for ts, src, dst, _, opcode, psn in rows:
        if opcode != ACK:
            at = min(other[0] for other in rows if other[4] == ACK and other[1] == dst and other[5] >= psn and other[0] >= ts)
            expected[at // S * S, src, dst].append(at - ts)
    packets = [packet(ts, opcode, psn, src=src, dst=dst, qp=qp) for ts, src, dst, qp, opcode, psn in rows]
    start = rows[0][0] // S * S
    tables = PacketMetric().close(Closing("tap", start, start + 60 * S, [frame_of(packets)]))
    found = {(row["ts"], row["src"], row["dst"]): row for row in tables["latency"].to_dicts()}
    assert set(found) == set(expected)
    for key, values in expected.items():
        row = found[key]
        assert (row["samples"], row["total"], row["low"], row["high"]) == (len(values), sum(values), min(values), max(values))
        counts = np.unique(histogram.buckets(np.array(values)), return_counts=True)
        assert [(pair["i"], pair["c"]) for pair in row["hist"]] == list(zip(*counts, strict=True))
    everything = sorted(value for values in expected.values() for value in values)
    assert len(everything) == 68
    assert everything[33] == everything[34] == 19_000
    assert everything[-1] == 25_000
    assert tables["roce"]["packets"].sum() == 105
    assert tables["roce"]["psn_gaps"].sum() == tables["roce"]["psn_repeats"].sum() == 0


def test_counts_of_a_window():
    """Packets, bytes, marks, acknowledgement kinds and credits are counted per operation, path and second."""
    packets = [
        packet(1 * S, SEND, 5, ecn=3),
        packet(1 * S + 1, SEND, 6, ecn=0, length=9, payload_bytes=1),
        packet(2 * S, SEND, 7, sampling_rate=1000),
        ack(1 * S + 2, 5, syndrome=0x03),
        ack(1 * S + 3, 6, syndrome=0x1F),
        ack(1 * S + 4, 6, syndrome=0x05),
        ack(1 * S + 5, 6, syndrome=0x60),
        ack(1 * S + 6, 6, syndrome=0x21),
        packet(1 * S + 7, CNP, 0, way="ba", ecn=1),
    ]
    table = close(packets)["roce"]
    assert table.schema == pl.Schema(STATES["roce"].polars)
    rows = {(row["ts"] // S, row["src"], row["opcode"]): row for row in table.to_dicts()}
    assert set(rows) == {(1, "a", SEND), (2, "a", SEND), (1, "b", ACK), (1, "b", CNP)}
    sends, acks = rows[1, "a", SEND], rows[1, "b", ACK]
    assert [sends[name] for name in ("packets", "bytes", "payload_bytes", "ce_packets", "ect_packets")] == [2, 109, 41, 1, 1]
    assert [sends[name] for name in ("naks", "credit_count", "credit_total", "credit_low", "credit_high")] == [0, 0, 0, None, None]
    assert [acks[name] for name in ("naks", "rnr_naks", "credit_count", "credit_total", "credit_low", "credit_high")] == [1, 1, 2, 8, 3, 5]
    assert (rows[2, "a", SEND]["packets"], rows[2, "a", SEND]["estimated_packets"]) == (1, 1000)
    assert rows[1, "b", CNP]["ect_packets"] == 1
    sampled = [packet(S + k, SEND, k, ecn=3 if k < 10 else 2, sampling_rate=1000 if k < 10 else 100_000) for k in range(20)]
    row = close(sampled)["roce"].to_dicts()[0]
    assert (row["packets"], row["ce_packets"], row["ect_packets"]) == (20, 10_000, 1_010_000)


def test_a_jump_ahead_is_one_gap_of_its_width():
    """Missing numbers are one gap and counted each, also across the 24-bit wrap."""
    assert totals([packet(k, SEND, psn) for k, psn in enumerate([1, 2, 5, 6, 10])]) == (2, 5, 0)
    assert totals([packet(k, SEND, psn) for k, psn in enumerate([2**24 - 2, 2**24 - 1, 0, 1])]) == (0, 0, 0)
    assert totals([packet(k, SEND, psn) for k, psn in enumerate([2**24 - 2, 2, 3])]) == (1, 3, 0)


def test_numbers_seen_again_are_repeats():
    """Go-back-N counts each retransmitted packet, and continues where it was."""
    assert totals([packet(k, SEND, psn) for k, psn in enumerate([1, 2, 3, 4, 2, 3, 4, 5])]) == (0, 0, 3)
    assert totals([packet(k, SEND, psn) for k, psn in enumerate([2**24 - 1, 0, 1, 2**24 - 1, 0, 2])]) == (0, 0, 2)
    assert totals([packet(k, SEND, psn) for k, psn in enumerate([1, 100, 1])]) == (1, 98, 1)


def test_what_was_overtaken_is_no_repeat():
    """A missing number that arrives late is a repeat only the second time, also across the wrap and inside read responses."""
    for first in (10, 2**24 - 3):
        numbers = [(first + step) % 2**24 for step in (0, 1, 4, 2, 3, 5, 3, 6)]
        assert totals([packet(k, SEND, psn) for k, psn in enumerate(numbers)]) == (1, 2, 1)
    answers = [(READ_FIRST, 10), (READ_MIDDLE, 12), (READ_MIDDLE, 11), (READ_MIDDLE, 13), (READ_MIDDLE, 11), (READ_LAST, 14)]
    assert totals([packet(k, opcode, psn, way="ba", qp=1) for k, (opcode, psn) in enumerate(answers)]) == (1, 1, 1)
    read = [packet(0, WRITE_FIRST, 9, payload_bytes=1024), packet(1, READ, 10, dma_bytes=4096), packet(2, SEND, 16)]
    assert totals([*read, packet(3, SEND, 14), packet(4, SEND, 12), packet(5, SEND, 15)]) == (1, 2, 1)


def test_what_was_overtaken_is_known_in_the_next_window():
    """Missing numbers are carried from window to window, and a carry without them is still restored."""
    metric, later = PacketMetric(), PacketMetric()
    close([packet(k, SEND, psn) for k, psn in enumerate([1, 2, 5])], metric, 1)
    carry = metric.carry("tap")
    later.restore("tap", carry)
    rows = [packet(S, SEND, 3), packet(S + 1, SEND, 3), packet(S + 2, SEND, 2)]
    roce = later.close(Closing("tap", S, 2 * S, [frame_of(rows)]))["roce"]
    assert (roce["psn_gaps"].sum(), roce["psn_repeats"].sum()) == (0, 2)
    older = io.BytesIO()
    pl.read_ipc_stream(carry).drop("seen", "response_seen").write_ipc_stream(older)
    later.restore("tap", older.getvalue())
    assert later.close(Closing("tap", S, 2 * S, [frame_of([packet(S, SEND, 7)])]))["roce"]["psn_missing"].sum() == 1


def test_a_new_connection_on_an_old_number_is_neither():
    """A far jump either way is counted as a restart."""
    metric = PacketMetric()
    roce = close([packet(k, SEND, psn) for k, psn in enumerate([5, 6, 5_000_000, 5_000_001, 100, 101])], metric)["roce"]
    assert roce.select("psn_gaps", "psn_missing", "psn_repeats").row(0) == (0, 0, 0)
    assert counter(metric, "restarts") == 2


def test_flows_have_sequences_of_their_own():
    """Other queue pairs, directions, acknowledgements, CNPs and sampled packets do not affect a sequence."""
    packets = [packet(0, SEND, 1), packet(1, SEND, 700, qp=3), packet(2, SEND, 40, way="ba"), ack(3, 90, qp=2, way="ab")]
    packets += [packet(4, CNP, 0), packet(5, SEND, 500, sampling_rate=64), packet(6, UD_SEND, 77), packet(7, SEND, 2)]
    assert totals(packets) == (0, 0, 0)


def test_unreliable_connections_are_followed_and_not_timed():
    """A UC flow has gaps; an acknowledgement never covers it."""
    packets = [packet(0, UC_SEND, 1), packet(1, UC_SEND, 4), ack(5, 4)]
    assert totals(packets) == (1, 2, 0)
    assert latencies(packets) == []


@pytest.mark.parametrize(
    ("dma_bytes", "advance", "gap"), [(0, 1, 0), (1024, 1, 0), (4096, 4, 0), (4096, 1, 0), (4096, 16, 0), (4096, 17, 1), (1 << 20, 4096, 0)]
)
def test_a_read_uses_up_its_responses_numbers(dma_bytes: int, advance: int, gap: int):
    """While the MTU is unknown, any number that some MTU allows may follow a READ; one more is a gap."""
    gaps, missing, repeats = totals([packet(0, READ, 10, dma_bytes=dma_bytes), packet(1, SEND, 10 + advance)])
    assert (gaps, missing, repeats) == (gap, gap, 0)


def test_a_read_uses_up_exactly_as_many_where_the_mtu_is_known():
    """After a first packet of 1,024 bytes a READ of 4,000 consumes four numbers: five are a gap, three a repeat."""
    for advance, expected in ((4, (0, 0, 0)), (5, (1, 1, 0)), (3, (0, 0, 1))):
        packets = [packet(0, WRITE_FIRST, 9, payload_bytes=1024), packet(1, READ, 10, dma_bytes=4000), packet(2, SEND, 10 + advance)]
        assert totals(packets) == expected


def test_gaps_inside_a_read_response():
    """A lost middle packet of a read response is a gap of the responder's flow; distance between responses is not."""
    answers = [(READ_FIRST, 10), (READ_MIDDLE, 11), (READ_MIDDLE, 13), (READ_LAST, 14), (READ_FIRST, 90), (READ_LAST, 91), (READ_ONLY, 99)]
    assert totals([packet(k, opcode, psn, way="ba", qp=1) for k, (opcode, psn) in enumerate(answers)]) == (1, 1, 0)


def test_an_acknowledgement_covers_all_before_it():
    """Requests up to the acknowledged number give a sample each, later ones wait for the next."""
    packets = [packet(10, SEND, 1), packet(20, SEND, 2), packet(30, SEND, 3), ack(100, 2), ack(150, 3)]
    assert latencies(packets) == [("a", "b", 3, 90 + 80 + 120)]


def test_a_negative_acknowledgement_covers_what_is_before_it():
    """A NAK or RNR NAK acknowledges all requests before its number, but not its own; a reserved syndrome none."""
    packets = [packet(10 + k, SEND, k) for k in range(4)]
    packets += [ack(20, 1, syndrome=0x60), ack(30, 2, syndrome=0x25), ack(40, 3, syndrome=0x40), ack(100, 3)]
    assert latencies(packets) == [("a", "b", 4, 10 + (30 - 11) + (100 - 12) + (100 - 13))]


def test_what_was_overtaken_waits_like_any_other():
    """An overtaken request is timed from its own arrival; one acknowledged before its arrival gives no sample."""
    packets = [
        packet(0, SEND, 1),
        packet(10, SEND, 3),
        packet(12, SEND, 2),
        ack(30, 3),
        packet(40, SEND, 6),
        ack(50, 6),
        packet(60, SEND, 5),
    ]
    assert latencies([*packets, packet(70, SEND, 7), ack(80, 7)]) == [("a", "b", 5, 30 + 20 + 18 + 10 + 10)]


def test_reads_and_atomics_wait_for_their_response():
    """The first response packet acknowledges a READ, the atomic acknowledge an atomic; both cover earlier requests."""
    packets = [packet(1, SEND, 9), packet(2, READ, 10, dma_bytes=9000), packet(3, FETCH_ADD, 13)]
    packets += [packet(12, READ_FIRST, 10, way="ba", qp=1), packet(13, READ_MIDDLE, 11, way="ba", qp=1)]
    packets += [packet(14, READ_LAST, 12, way="ba", qp=1), packet(23, ATOMIC_ACK, 13, way="ba", qp=1)]
    assert latencies(packets) == [("a", "b", 3, 11 + 10 + 20)]


def test_what_was_sent_again_is_not_timed():
    """A retransmitted request gives no sample, because either may be acknowledged (Karn); its neighbours do."""
    metric = PacketMetric()
    packets = [packet(10, SEND, 1), packet(11, SEND, 2), packet(12, SEND, 3), packet(50, SEND, 2), ack(60, 3)]
    assert latencies(packets, metric) == [("a", "b", 2, 50 + 48)]
    assert counter(metric, "requests_repeated") == 1


def test_a_read_sent_again_from_its_middle_is_not_timed():
    """A READ retransmitted from inside its numbers is a repeat of the whole."""
    packets = [packet(1, READ, 10, dma_bytes=16384), packet(5, READ, 12, dma_bytes=8192), packet(9, READ_FIRST, 12, way="ba", qp=1)]
    assert latencies(packets) == []


def test_acknowledgements_are_bound_to_the_flow_that_they_fit():
    """Two queue pairs between two hosts with distant numbers get their own acknowledgements, also when the numbers meet later."""
    packets = [packet(1, SEND, 100, qp=2), packet(2, SEND, 900, qp=4), ack(11, 100, qp=1), ack(22, 900, qp=3)]
    packets += [packet(30 + k, SEND, 101 + k, qp=2) for k in range(3)] + [packet(40 + k, SEND, 901 + k, qp=4) for k in range(3)]
    packets += [ack(50, 103, qp=1), ack(60, 903, qp=3)]
    assert latencies(packets) == [("a", "b", 8, 10 + 20 + (20 + 19 + 18) + (20 + 19 + 18))]


def test_what_fits_two_flows_is_counted_and_not_guessed():
    """An acknowledgement that fits two flows is counted; the requests that it may cover give no sample, later ones do."""
    metric = PacketMetric()
    packets = [
        packet(1, SEND, 5, qp=2),
        packet(2, SEND, 5, qp=4),
        packet(3, SEND, 6, qp=4),
        ack(10, 5, qp=1),
        ack(20, 6, qp=3),
        ack(30, 5, qp=1),
    ]
    assert latencies(packets, metric) == [("a", "b", 1, 17)]
    assert counter(metric, "acks_ambiguous") == 1
    assert counter(metric, "requests_ambiguous") == 2


def rounds(number: int, with_foreign: bool = False) -> list[dict]:
    """Return two queue pairs in step, acknowledged after 5 and 100 us, with the second's first request missing."""
    packets = [ack(2000, 5000, qp=111)] if not with_foreign else []
    for k in range(number):
        at, psn = k * 200_000, 5000 + k
        packets += [packet(at, SEND, psn, qp=10), ack(at + 5000, psn, qp=110)]
        if with_foreign:
            # It fits the requests of the only visible pair, every second time before its own acknowledgement.
            packets.append(ack(at + (3000 if k % 2 else 7000), psn, qp=111))
        elif k:
            packets += [packet(at + 50_000, SEND, psn, qp=11), ack(at + 150_000, psn, qp=111)]
    return sorted(packets, key=lambda row: row["ts"])


def test_a_wrong_binding_is_noticed():
    """A flow that the first acknowledgement binds to the wrong queue pair is unbound by its own and bound to them."""
    (row,) = close(rounds(500))["latency"].group_by("src").agg(pl.col("samples", "total").sum(), pl.col("low").min()).to_dicts()
    # The wrong acknowledgement measures one request; two more give no sample.
    assert (row["samples"], row["total"], row["low"]) == (1 + 498 + 498, 2000 + 498 * 5000 + 498 * 100_000, 2000)


def test_many_queue_pairs_of_two_hosts_are_bound_one_by_one():
    """Any number of bound flows allows one more; only too many unbound flows prevent binding."""
    packets = []
    for k in range(300):
        packets += [packet(k * 1000, SEND, 10_000 * k, qp=k), ack(k * 1000 + 7, 10_000 * k, qp=1000 + k)]
    assert latencies(packets) == [("a", "b", 300, 300 * 7)]
    metric = PacketMetric()
    assert latencies([row | {"ts": row["ts"] + S * (row["opcode"] == ACK)} for row in packets], metric) == []
    assert counter(metric, "acks_ambiguous") == 300


def test_a_flow_that_two_claim_is_measured_by_neither():
    """A flow that unseen requests' acknowledgements contest again and again is no longer bound; each request is counted."""
    metric = PacketMetric()
    ((_, _, samples, total),) = latencies(rounds(1000, with_foreign=True), metric)
    assert 0 < samples <= 16 and total == samples * 5000
    assert samples + counter(metric, "requests_ambiguous") + counter(metric, "requests_expired") == 1000


def test_acknowledgements_of_nothing_are_counted():
    """An acknowledgement whose requests were not seen is counted."""
    metric = PacketMetric()
    assert latencies([ack(10, 5), packet(20, SEND, 90), ack(30, 5)], metric) == []
    assert counter(metric, "acks_unmatched") == 2


def test_a_connection_that_starts_anew_is_bound_anew():
    """After a restart the flow's acknowledgements may come from another queue pair."""
    packets = [packet(1, SEND, 5), ack(11, 5, qp=1), packet(20, SEND, 6_000_000), ack(40, 6_000_000, qp=8)]
    assert latencies(packets) == [("a", "b", 2, 10 + 20)]


def test_waits_are_bounded():
    """A request without acknowledgement for five seconds, or with 4,096 later ones, is dropped and counted."""
    metric = PacketMetric()
    assert latencies([packet(0, SEND, 1), packet(6 * S, SEND, 2), ack(6 * S + 7, 2)], metric) == [("a", "b", 1, 7)]
    assert counter(metric, "requests_expired") == 1
    metric = PacketMetric()
    packets = [packet(k, SEND, k) for k in range(5000)] + [ack(6000, 4999)]
    ((_, _, samples, total),) = latencies(packets, metric)
    assert (samples, total) == (4096, sum(6000 - k for k in range(904, 5000)))
    assert counter(metric, "requests_dropped") == 904


def test_what_is_carried_is_bounded():
    """Beyond the limit the least recent flow is dropped and counted at the end of its window; a later packet starts over."""
    metric = PacketMetric(PacketMetricConfig(flows_max=2))
    packets = [packet(k, SEND, 10, qp=k) for k in range(3)] + [packet(S + k, SEND, 13, qp=k) for k in range(3)]
    assert close(packets, metric)["roce"]["psn_gaps"].sum() == 2
    assert counter(metric, "flows_dropped") == 2
    metric = PacketMetric(PacketMetricConfig(pending_max=3))
    assert latencies([*(packet(k, SEND, k) for k in range(10)), ack(S, 9)], metric) == [("a", "b", 3, 3 * S - 7 - 8 - 9)]
    assert counter(metric, "requests_dropped") == 7


def test_only_the_closed_windows_count():
    """Rows outside the closed windows are left for their own call; latency counts in the acknowledgement's window."""
    metric = PacketMetric()
    frame = frame_of([packet(S - 5, SEND, 1), ack(S + 5, 1), packet(2 * S, SEND, 2)])
    first = metric.close(Closing("tap", 0, S, [frame]))
    assert (first["roce"]["packets"].sum(), first["latency"].height) == (1, 0)
    second = metric.close(Closing("tap", S, 2 * S, [frame]))
    assert second["roce"]["packets"].sum() == 1
    assert second["latency"].select("ts", "samples", "total").rows() == [(S, 1, 10)]


def test_devices_are_apart_and_end():
    """Each device has its own flows; after its end nothing is carried."""
    metric = PacketMetric()
    frame = frame_of([packet(1, SEND, 1)])
    metric.close(Closing("one", 0, S, [frame]))
    assert metric.carry("one")
    assert metric.carry("two") == b""
    later = frame_of([packet(S, SEND, 9)])
    assert metric.close(Closing("two", S, 2 * S, [later]))["roce"]["psn_gaps"].sum() == 0
    assert metric.close(Closing("one", S, 2 * S, [later], ended=True))["roce"]["psn_gaps"].sum() == 1
    assert metric.carry("one") == b""


def test_nothing_gives_empty_tables():
    """A call without frames gives empty tables of the right columns."""
    tables = PacketMetric().close(Closing("tap", 0, S, [], ended=True))
    assert {name: table.schema for name, table in tables.items()} == {name: pl.Schema(STATES[name].polars) for name in ("roce", "latency")}
    assert all(table.is_empty() for table in tables.values())


OPCODES = (
    SEND,
    SEND,
    SEND,
    ACK,
    ACK,
    ACK,
    WRITE_FIRST,
    WRITE_MIDDLE,
    READ,
    READ_FIRST,
    READ_MIDDLE,
    READ_LAST,
    FETCH_ADD,
    ATOMIC_ACK,
    UC_SEND,
    UD_SEND,
    CNP,
)


@st.composite
def traffic(draw: st.DrawFn) -> list[dict]:
    """Draw packets of a few flows over some seconds, sorted by time, with losses, repeats, restarts and equal times."""
    step = st.sampled_from([0, 1, 1000, S // 3, S, 3 * S])
    psn = st.one_of(st.integers(0, 12), st.integers(2**24 - 6, 2**24 - 1), st.sampled_from([6_000_000, 12_000_000]))
    ts, packets = 0, []
    for _ in range(draw(st.integers(0, 60))):
        ts += draw(step)
        opcode, way = draw(st.sampled_from(OPCODES)), draw(st.sampled_from(["ab", "ba", "ac", "aa"]))
        more = {"dma_bytes": draw(st.sampled_from([0, 300, 5000, None])) if opcode == READ else None}
        more |= {"payload_bytes": draw(st.sampled_from([40, 256, 1024])), "sampling_rate": draw(st.sampled_from([1, 1, 1, 1, 8]))}
        syndrome = draw(st.sampled_from([0, 5, 31, 0x20, 0x60]))
        packets.append(packet(ts, opcode, draw(psn), way=way, qp=draw(st.integers(1, 3)), syndrome=syndrome, **more))
    return packets


@given(traffic(), st.data(), st.sampled_from([PacketMetricConfig(), PacketMetricConfig(flows_max=2, pending_max=3)]))
@settings(deadline=None, max_examples=200)
def test_any_cut_gives_the_same_tables(packets: list[dict], data: st.DataObject, config: PacketMetricConfig):
    """Any split into frames and calls, each continued by a new metric from the carry, gives the tables and counters of one call."""
    frame = frame_of(packets)
    end_s = (packets[-1]["ts"] // S + 2) if packets else 1
    whole = PacketMetric(config)
    expected = whole.close(Closing("tap", 0, end_s * S, [frame]))
    edges = sorted({0, end_s, *data.draw(st.lists(st.integers(0, end_s), max_size=6))})
    cuts = sorted({0, frame.height, *data.draw(st.lists(st.integers(0, frame.height), max_size=6))})
    frames = [frame[low:high] for low, high in pairwise(cuts)]
    carry, parts, counts = b"", defaultdict(list), defaultdict(float)
    for start, end in pairwise(edges):
        metric = PacketMetric(config)
        metric.restore("tap", carry)
        touched = [part for part in frames if part["ts"].is_between(start * S, end * S, closed="left").any()]
        for name, table in metric.close(Closing("tap", start * S, end * S, touched)).items():
            parts[name].append(table)
        carry = metric.carry("tap")
        for name, value in metric.counters().items():
            counts[name] += value
    for name, table in expected.items():
        assert pl.concat(parts[name]).equals(table)
    assert carry == whole.carry("tap")
    forgotten = ("weft_pipeline_packets_requests_expired_total", "weft_pipeline_packets_requests_dropped_total")
    assert {name: value for name, value in counts.items() if name not in forgotten} == {
        name: value for name, value in whole.counters().items() if name not in forgotten
    }


def oracle(packets: list[dict]) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Follow sends of one flow and acknowledgements of another in plain Python: marks by packet, and samples (time, wait)."""
    expected, acknowledged, waiting, seen, seen_again = None, -1, {}, set(), set()
    marks, samples = [], []
    for row in packets:
        number = row["psn"]
        if row["opcode"] == ACK:
            marks.append((0, 0, 0))
            acknowledged = max(acknowledged, number - (row["syndrome"] != 0))
            for psn in [psn for psn in waiting if psn <= acknowledged]:
                sent = waiting.pop(psn)
                if psn not in seen_again:
                    samples.append((row["ts"], row["ts"] - sent))
            continue
        if expected is None or number >= expected:
            missing = 0 if expected is None else number - expected
            marks.append((int(missing > 0), missing, 0))
            expected, waiting[number] = number + 1, row["ts"]
            seen_again.discard(number)
        else:
            marks.append((0, 0, int(number in seen)))
            seen_again |= {number} & seen
            if number not in seen and number > acknowledged:
                waiting[number] = row["ts"]
        seen.add(number)
    return marks, samples


@given(st.lists(st.tuples(st.sampled_from([None, None, 0, 0x20, 0x60]), st.integers(-4, 4), st.integers(0, S // 20)), max_size=80))
@settings(deadline=None, max_examples=200)
def test_one_connection_is_what_plain_python_finds(steps: list[tuple[int | None, int, int]]):
    """Losses, overtaking, repeats and acknowledgements of one connection give the counts and latencies of a plain walk."""
    ts, sent, packets = 0, 1000, [packet(0, SEND, 1000)]
    for syndrome, move, wait in steps:
        ts += wait
        if syndrome is not None:
            packets.append(ack(ts, sent - abs(move), syndrome=syndrome))
        else:
            packets.append(packet(ts, SEND, sent + 1 + move))
            sent = max(sent, sent + 1 + move)
    # Acknowledgements before the first that fits are not bound.
    oldest = packets[0]["psn"]
    packets = [row for row in packets if row["opcode"] != ACK or row["psn"] >= oldest]
    marks, samples = oracle(packets)
    tables = close(packets)
    roce = tables["roce"]
    assert tuple(roce[name].sum() for name in ("psn_gaps", "psn_missing", "psn_repeats")) == tuple(
        sum(column) for column in zip(*marks, strict=True)
    )
    expected = defaultdict(list)
    for at, wait in samples:
        expected[at // S * S].append(wait)
    found = tables["latency"].select("ts", "samples", "total", "low", "high").rows()
    assert found == [(at, len(waits), sum(waits), min(waits), max(waits)) for at, waits in sorted(expected.items())]
