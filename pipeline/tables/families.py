"""The families: the rows that collectors publish on the bus. One ``Table`` per kind of row."""

import polars as pl

from .field import COMMON, DIRECTION, GPU, INTERVAL, LINK, PORT, QUEUE, SIGNAL, SPEED, Field, Table


def _counters(*names: str, unit: str = "") -> tuple[Field, ...]:
    def unit_of(name: str) -> str:
        return unit or ("bytes" if "bytes" in name else "ns" if name.endswith("_ns") else "")

    return tuple(Field(name, pl.UInt64, unit_of(name), f"cumulative {name.replace('_', ' ')}", cumulative=True) for name in names)


_FAMILY_LIST = (
    Table(
        "port",
        "one counter sample of an interface",
        (
            *COMMON,
            PORT,
            SPEED,
            Field("oper_up", pl.Boolean, "", "whether the link is up"),
            *_counters("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_discards", "tx_discards", "rx_errors", "tx_errors"),
            *_counters("fec_corrected", "fec_uncorrectable"),
            Field("fec_bins", pl.List(pl.UInt64), "codewords", "cumulative codewords by number of symbol errors"),
            *_counters("corrected_bits", "symbol_errors", "carrier_changes"),
            *_counters(
                *(f"{side}_{kind}_packets" for side in ("rx", "tx") for kind in ("unicast", "multicast", "broadcast")),
                *("rx_pause_frames", "tx_pause_frames", "trimmed_packets", "ecn_marked_packets", "rx_unknown_protocols"),
                *("fcs_errors", "alignment_errors", "frame_too_long_errors", "carrier_sense_errors", "sqe_test_errors"),
                *("internal_rx_errors", "internal_tx_errors", "single_collisions", "multiple_collisions", "late_collisions"),
                *("excessive_collisions", "deferred_transmissions"),
            ),
            Field("admin_up", pl.Boolean, "", "whether the operator wants the link up"),
        ),
    ),
    Table(
        "queue",
        "one counter sample of an egress queue, a priority or a buffer",
        (
            *COMMON,
            PORT,
            QUEUE,
            DIRECTION,
            SPEED,
            *_counters("packets", "bytes", "dropped_packets", "dropped_bytes", "ecn_marked_packets", "ecn_marked_bytes"),
            *_counters("wred_dropped_packets", "wred_dropped_bytes", "trimmed_packets"),
            *(
                Field(name, pl.UInt64, unit, doc)
                for name, unit, doc in (
                    ("occupancy_bytes", "bytes", "bytes in the queue now (gauge)"),
                    ("watermark_bytes", "bytes", "most bytes in it since the device last cleared this"),
                    ("headroom_watermark_bytes", "bytes", "most bytes in its headroom since the device last cleared this"),
                    ("delay_watermark_ns", "ns", "longest delay in it since the device last cleared this"),
                )
            ),
            *_counters("pfc_rx_frames", "pfc_tx_frames"),
            *_counters("pfc_rx_pause_us", "pfc_tx_pause_us", unit="us"),
            *_counters("pfc_rx_pause_quanta", "pfc_tx_pause_quanta", unit="512 bit times"),
            *_counters("pfc_on2off"),
        ),
    ),
    Table(
        "nic",
        "one counter sample of an RDMA adapter",
        (
            *COMMON,
            PORT,
            SPEED,
            *_counters("tx_bytes", "rx_bytes", "tx_packets", "rx_packets"),
            *_counters("ecn_marked_packets", "cnp_sent", "cnp_handled", "cnp_ignored"),
            *_counters("out_of_sequence", "packet_seq_err", "implied_nak", "ack_timeout", "retransmits", "duplicate_request"),
            *_counters("rnr_nak", "out_of_buffer", "retries_exceeded"),
        ),
    ),
    Table(
        "nvlink",
        "one counter sample of a scale-up link, or of a GPU's links together",
        (
            *COMMON,
            GPU,
            LINK,
            SPEED,
            *_counters("tx_bytes", "rx_bytes", "replay", "recovery", "crc", "symbol_errors"),
        ),
    ),
    Table(
        "gpu",
        "one sample of a GPU's gauges",
        (
            *COMMON,
            GPU,
            Field("sm_active_ratio", pl.Float64, "", "share of the time since the last sample with work on the multiprocessors"),
            Field("tensor_active_ratio", pl.Float64, "", "the same of the tensor cores"),
            Field("power_w", pl.Float64, "W", "power drawn now"),
            Field("xid", pl.UInt64, "", "code of the last error that the driver reported; null where none"),
        ),
    ),
    Table(
        "reading",
        "one value without a column in another family",
        (
            *COMMON,
            Field("kind", pl.String, "", "kind of object: device, port, queue, transceiver, pool, ..."),
            Field("object", pl.String, "", "its name: the port, port/queue, the component; empty for the device"),
            Field("name", pl.String, "", "canonical name where the dictionary has one, else the source's own"),
            Field("value", pl.Float64, "", "the value; a counter above 2^53 is rounded here and exact in count"),
            Field("count", pl.UInt64, "", "the value where it is a whole number, exactly; null otherwise"),
            Field("text", pl.String, "", "the value where it is a text; null otherwise"),
        ),
    ),
    Table(
        "burst_sample",
        "a segment: consecutive samples of equal interval of one signal of one port",
        (
            *COMMON,
            PORT,
            QUEUE,
            SIGNAL,
            INTERVAL,
            SPEED,
            Field("values", pl.List(pl.UInt64), "bytes", "the samples in time order: bytes that passed (or were queued) in each interval"),
        ),
    ),
    Table(
        "packet",
        "one decoded RoCEv2 packet or sampled header",
        (
            *COMMON,
            Field("src", pl.String, "", "source address"),
            Field("dst", pl.String, "", "destination address"),
            Field("src_port", pl.UInt16, "", "UDP source port: the entropy that ECMP hashes"),
            Field("qp", pl.UInt32, "", "destination queue pair (24 bits)"),
            Field("opcode", pl.UInt8, "", "BTH opcode; 0x11 acknowledge, 0x81 CNP"),
            Field("psn", pl.UInt32, "", "packet sequence number (24 bits)"),
            Field("ack_psn", pl.UInt32, "", "last sequence number that an AETH acknowledges; null without AETH"),
            Field("syndrome", pl.UInt8, "", "AETH syndrome: 0b000 ACK, 0b001 RNR NAK, 0b011 NAK in bits 5-6; null without AETH"),
            Field("credits", pl.UInt8, "", "AETH credit count code 0..31 of an ACK, 31 = not given; null without AETH"),
            Field("dma_bytes", pl.UInt32, "bytes", "RETH length of an RDMA read or write request; null without RETH"),
            Field("length", pl.UInt32, "bytes", "bytes on the wire, link layer header to the end of the ICRC"),
            Field("payload_bytes", pl.UInt32, "bytes", "application bytes, without headers, pad and ICRC"),
            Field("ecn", pl.UInt8, "", "IP ECN field; 3 = congestion experienced"),
            Field("dscp", pl.UInt8, "", "IP DSCP field"),
            Field("sampling_rate", pl.UInt32, "", "packets that this one stands for; 1 = every packet captured"),
        ),
    ),
    Table(
        "latency",
        "a batch of latency samples of one path",
        (
            *COMMON,
            Field("src", pl.String, "", "source address"),
            Field("dst", pl.String, "", "destination address"),
            Field("kind", pl.String, "", "ack, probe, transit or hop"),
            Field("values_ns", pl.List(pl.UInt64), "ns", "the samples"),
        ),
    ),
    Table(
        "event",
        "something that happened",
        (
            *COMMON,
            PORT,
            Field("kind", pl.String, "", "link_up, link_down, storm_start, storm_end, drop, microburst, ..."),
            Field("reason", pl.String, "", "reason as the source reports it"),
            Field("detail", pl.String, "", "further details as text"),
        ),
    ),
    Table(
        "inventory",
        "an existing device, port, link or job; the last row of a key wins",
        (
            *COMMON,
            Field(
                "kind",
                pl.String,
                "",
                "device, port, link or job; naming: a pattern that derives the place from names; publication: a complete set of rows",
            ),
            Field("key", pl.String, "", "its name; for a link, the port of its device, empty where unknown"),
            *(
                Field(name, pl.String, "", name.replace("_", " "))
                for name in ("rack", "rail", "plane", "tier", "role", "peer_device", "peer_port", "job")
            ),
            SPEED,
            Field("alias", pl.String, "", "for a port, the other name that neighbours may report"),
            Field("pattern", pl.String, "", "of a naming, the pattern that the whole name must match; rack to role are its templates"),
            Field("rows", pl.UInt64, "", "of a publication, the number of its other rows with the same source, epoch and ts"),
        ),
    ),
    Table(
        "gap",
        "a recorded loss",
        (
            *COMMON,
            Field("what", pl.String, "", "kind of what is missing: packets, samples, messages, rows"),
            Field("from_sequence", pl.UInt64, "", "first missing sequence number; null where there is none"),
            Field("to_sequence", pl.UInt64, "", "last missing sequence number; null where there is none"),
            Field("missed", pl.UInt64, "", "number of missing items"),
            Field("reason", pl.String, "", "reason, one word of a fixed set"),
        ),
    ),
    Table(
        "self_metric",
        "one value of one of Weft's own counters or gauges",
        (
            *COMMON,
            Field("name", pl.String, "", "Prometheus style name, weft_<room>_<what>_<unit>"),
            Field("label", pl.String, "", "label: a collector, a topic, a reason"),
            Field("value", pl.Float64, "", "the value; counters are cumulative since the service started"),
        ),
    ),
)

FAMILIES: dict[str, Table] = {table.name: table for table in _FAMILY_LIST}


def counters_of(family: str) -> tuple[str, ...]:
    """Return the columns of ``family`` that are cumulative counters, in their order."""
    return tuple(field.name for field in FAMILIES[family].fields if field.cumulative)
