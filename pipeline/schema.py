"""Every table that crosses a process: what collectors publish and what the store keeps.

A table is a tuple of ``Field``; the codec, the DuckDB tables, the labels and the generated docs derive from
it, so a column is added in one line here. Adding a nullable field keeps the version; anything else is a new
version and with it a new topic.

Units: times are UTC nanoseconds, sizes bytes, ratios 0..1, names in ``_bps`` bits per second, names in
``_ns`` nanoseconds.
"""

from collections.abc import Iterable
from dataclasses import replace

import polars as pl

from .table import (
    COMMON,
    DEVICE,
    DIRECTION,
    GPU,
    HISTOGRAM,
    INTERVAL,
    LINK,
    PORT,
    QUEUE,
    SIGNAL,
    SOURCE,
    SPEED,
    SQUARES,
    TS,
    Field,
    Table,
    keys,
)

WINDOW_NS = 1_000_000_000
RESOLUTIONS_NS = {"1s": WINDOW_NS, "10s": 10 * WINDOW_NS, "1m": 60 * WINDOW_NS, "1h": 3600 * WINDOW_NS}

# Block sizes of the dyadic ladder, in samples. Variances over them give IDC(m) and the Hurst exponent.
LADDER = tuple(2**level for level in range(1, 11))

# RS(544,514) tells codewords with 0 to 15 symbol errors, which it corrects, and those with more.
FEC_BINS = 17


def _counters(*names: str, unit: str = "") -> tuple[Field, ...]:
    def unit_of(name: str) -> str:
        return unit or ("bytes" if "bytes" in name else "ns" if name.endswith("_ns") else "")

    return tuple(Field(name, pl.UInt64, unit_of(name), f"cumulative {name.replace('_', ' ')}", cumulative=True) for name in names)


_FAMILY_LIST = (
    Table(
        "port",
        "one reading of an interface's counters",
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
        "one reading of an egress queue, a priority or a buffer",
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
        "one reading of an RDMA adapter's counters",
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
        "one reading of a scale-up link, or of a GPU's links together",
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
        "one reading of a GPU",
        (
            *COMMON,
            GPU,
            Field("sm_active_ratio", pl.Float64, "", "share of the time since the last reading with work on the multiprocessors"),
            Field("tensor_active_ratio", pl.Float64, "", "the same of the tensor cores"),
            Field("power_w", pl.Float64, "W", "power drawn now"),
            Field("xid", pl.UInt64, "", "code of the last error that the driver told; null where none"),
        ),
    ),
    Table(
        "reading",
        "one value that no other family has a column for",
        (
            *COMMON,
            Field("kind", pl.String, "", "what it is read of: device, port, queue, transceiver, pool, ..."),
            Field("object", pl.String, "", "its name: the port, port/queue, the component; empty for the device"),
            Field("name", pl.String, "", "canonical name where the dictionary has one, else the source's own"),
            Field("value", pl.Float64, "", "the value; a counter above 2^53 is rounded here and exact in count"),
            Field("count", pl.UInt64, "", "the value where it is a whole number, exactly; null otherwise"),
            Field("text", pl.String, "", "the value where it is a text; null otherwise"),
        ),
    ),
    Table(
        "burst_sample",
        "a run of equal-interval samples of one signal of one port",
        (
            *COMMON,
            PORT,
            QUEUE,
            SIGNAL,
            INTERVAL,
            SPEED,
            Field("values", pl.List(pl.UInt64), "bytes", "the samples in time order: what passed (or stood) in each interval"),
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
            Field("reason", pl.String, "", "why, in the source's own words"),
            Field("detail", pl.String, "", "anything more, as text"),
        ),
    ),
    Table(
        "inventory",
        "what exists: a device, port, link or job; the last row of a key wins",
        (
            *COMMON,
            Field("kind", pl.String, "", "device, port, link or job; naming: how names tell a place; publication: a whole of rows"),
            Field("key", pl.String, "", "its name; of a link, the port of its device, empty where that is not told"),
            *(
                Field(name, pl.String, "", name.replace("_", " "))
                for name in ("rack", "rail", "plane", "tier", "role", "peer_device", "peer_port", "job")
            ),
            SPEED,
            Field("alias", pl.String, "", "of a port, the other name by which its neighbours may know it"),
            Field("pattern", pl.String, "", "of a naming, what the whole name has to match; rack to role then say what to make of it"),
            Field("rows", pl.UInt64, "", "of a publication, how many rows of the same source, epoch and ts it has besides this one"),
        ),
    ),
    Table(
        "gap",
        "an admission of loss",
        (
            *COMMON,
            Field("what", pl.String, "", "what is missing: packets, samples, messages, rows"),
            Field("from_sequence", pl.UInt64, "", "first missing sequence number; null where there is none"),
            Field("to_sequence", pl.UInt64, "", "last missing sequence number; null where there is none"),
            Field("missed", pl.UInt64, "", "how many are missing"),
            Field("reason", pl.String, "", "why, one word of a fixed set"),
        ),
    ),
    Table(
        "self_metric",
        "one reading of one of Weft's own counters or gauges",
        (
            *COMMON,
            Field("name", pl.String, "", "Prometheus style name, weft_<room>_<what>_<unit>"),
            Field("label", pl.String, "", "what it is of: a collector, a topic, a reason"),
            Field("value", pl.Float64, "", "the reading; counters are cumulative since the service started"),
        ),
    ),
)

FAMILIES: dict[str, Table] = {table.name: table for table in _FAMILY_LIST}

_SAMPLES_KEY = keys(TS, DEVICE, PORT, QUEUE, SIGNAL, INTERVAL, SPEED)


def counters_of(family: str) -> tuple[str, ...]:
    """Return the columns of ``family`` that are cumulative counters, in their order."""
    return tuple(field.name for field in FAMILIES[family].fields if field.cumulative)


def _moved(family: str) -> tuple[Field, ...]:
    """Return a sum of deltas for each counter of ``family``; null where no interval of it counts."""
    fields = {field.name: field for field in FAMILIES[family].fields}
    return tuple(
        replace(fields[name], doc=f"what {name} moved in all intervals that count; null where none does", role="sum", cumulative=False)
        for name in counters_of(family)
    )


def _sums(dtype: type[pl.DataType] | pl.DataType, unit: str, *pairs: tuple[str, str]) -> tuple[Field, ...]:
    return tuple(Field(name, dtype, "ns" if name.endswith("_ns") else unit, doc, "sum") for name, doc in pairs)


_STATE_LIST = (
    Table(
        "port_samples",
        "sufficient statistics of one signal of one port in one window",
        (
            *_SAMPLES_KEY,
            *_sums(pl.UInt64, "", ("samples", "number of samples"), ("total", "sum of the samples")),
            *_sums(SQUARES, "", ("squares", "sum of the squared samples")),
            Field("low", pl.UInt64, "", "smallest sample", "min"),
            Field("high", pl.UInt64, "", "largest sample", "max"),
            *_sums(
                pl.UInt64,
                "",
                ("hot", "samples above the burst threshold"),
                ("hot_total", "sum of the samples above the burst threshold"),
                ("bursts", "bursts that start in this window"),
                ("cold_cold", "neighbouring samples: neither hot"),
                ("cold_hot", "neighbouring samples: hot after cold"),
                ("hot_cold", "neighbouring samples: cold after hot"),
                ("hot_hot", "neighbouring samples: both hot"),
                ("gaps", "gaps between bursts that end in this window"),
                ("gap_total", "sum of those gaps, in samples"),
                ("tau_count", "times between starts of consecutive bursts, the later one here"),
                ("tau_total", "sum of those times, in samples"),
            ),
            *_sums(SQUARES, "", ("tau_squares", "sum of their squares")),
            *_sums(pl.UInt64, "", ("pair_count", "consecutive pairs (x, y) of such times"), ("pair_x", "sum of x"), ("pair_y", "sum of y")),
            *_sums(SQUARES, "", ("pair_xx", "sum of x squared"), ("pair_yy", "sum of y squared"), ("pair_xy", "sum of x times y")),
            *(
                field
                for m in LADDER
                for field in (
                    *_sums(
                        pl.UInt64,
                        "",
                        (f"blocks_{m}", f"complete blocks of {m} samples that end here"),
                        (f"block_total_{m}", "sum of their sums"),
                    ),
                    *_sums(SQUARES, "", (f"block_squares_{m}", "sum of their squared sums")),
                )
            ),
            Field("hist", HISTOGRAM, "", "logarithmic histogram of the samples", "hist"),
            Field("gap_hist", HISTOGRAM, "", "logarithmic histogram of the gaps, in samples", "hist"),
            Field("profile", pl.List(pl.UInt32), "bytes", "bytes in each of the 100 spans of 10 ms; kept at 1 s only"),
        ),
        state=True,
    ),
    Table(
        "groups",
        "samples of a device's ports side by side in one window",
        (
            *keys(
                TS,
                Field("group_kind", pl.String, "", "device; wider kinds are computed from closed windows"),
                Field("group_id", pl.String, "", "name of the group"),
                SIGNAL,
                INTERVAL,
            ),
            Field("members", pl.UInt64, "", "ports with samples in the window", "max"),
            *_sums(
                pl.UInt64,
                "",
                ("slots", "sample intervals in which any port was sampled"),
                ("hot_total", "sum over the intervals of the number of hot ports"),
                ("busy_slots", "intervals with at least one hot port"),
                ("contended_slots", "intervals with at least two hot ports"),
            ),
            Field("hot_high", pl.UInt64, "", "most ports hot in one interval", "max"),
        ),
        state=True,
    ),
    Table(
        "roce",
        "RoCEv2 packets of one operation from one address to another in one window",
        (
            *keys(
                TS,
                DEVICE,
                Field("src", pl.String, "", "source address"),
                Field("dst", pl.String, "", "destination address"),
                Field("opcode", pl.UInt8, "", "BTH opcode"),
            ),
            *_sums(
                pl.UInt64,
                "",
                ("packets", "packets seen"),
                ("estimated_packets", "packets that they stand for at their sampling rate"),
                ("bytes", "bytes on the wire"),
                ("payload_bytes", "application bytes"),
                ("ce_packets", "packets marked congestion experienced, at their sampling rate"),
                ("ect_packets", "packets of an ECN-capable transport, marked or not, at their sampling rate"),
                ("naks", "negative acknowledgements"),
                ("rnr_naks", "receiver-not-ready negative acknowledgements"),
                ("psn_gaps", "times at which the sequence of a queue pair jumped ahead"),
                ("psn_missing", "sequence numbers jumped over"),
                (
                    "psn_repeats",
                    "packets whose sequence number had been seen before: retransmissions; one that was overtaken by at most 63 is none",
                ),
                ("credit_count", "acknowledgements that give a credit count"),
                ("credit_total", "sum of their credit codes"),
            ),
            Field("credit_low", pl.UInt8, "", "smallest credit code", "min"),
            Field("credit_high", pl.UInt8, "", "largest credit code", "max"),
        ),
        state=True,
    ),
    Table(
        "latency",
        "latency of one path in one window",
        (
            *keys(
                TS,
                DEVICE,
                Field("src", pl.String, "", "source address"),
                Field("dst", pl.String, "", "destination address"),
                Field("kind", pl.String, "", "ack, probe, transit or hop"),
            ),
            *_sums(pl.UInt64, "", ("samples", "number of samples"), ("total", "sum of the samples, ns")),
            Field("low", pl.UInt64, "ns", "smallest sample", "min"),
            Field("high", pl.UInt64, "ns", "largest sample", "max"),
            Field("hist", HISTOGRAM, "", "logarithmic histogram of the samples, ns", "hist"),
        ),
        state=True,
    ),
    Table(
        "readings",
        "what one object was read to be in one window, where no other table has a column for it",
        (
            *keys(
                TS,
                DEVICE,
                Field("source", pl.String, "", "the collector that read it"),
                Field("kind", pl.String, "", "what it is read of: device, port, queue, transceiver, pool, ..."),
                Field("object", pl.String, "", "its name; empty for the device"),
                Field("name", pl.String, "", "what is read"),
            ),
            *_sums(pl.UInt64, "", ("samples", "number of readings")),
            Field("low", pl.Float64, "", "smallest reading; null where readings are texts", "min"),
            Field("high", pl.Float64, "", "largest reading; null where readings are texts", "max"),
            Field("text", pl.String, "", "the reading where it is a text; of several the last of the alphabet", "max"),
        ),
        state=True,
    ),
    Table(
        "quality",
        "what one entity's data lack in one window",
        (
            *keys(TS, DEVICE, PORT, SIGNAL),
            *_sums(
                pl.UInt64,
                "",
                ("late", "samples or packets that came after their window had closed"),
                ("duplicates", "samples that had been there already"),
                ("implausible", "samples that cannot be: above 1 MiB a nanosecond, ahead of time, or not fitting the grid"),
                ("resets", "readings in which counters had started anew"),
                ("wraps", "readings in which a counter had wrapped; these count"),
                ("gaps", "readings that come much later than usual after the one before; these count"),
            ),
        ),
        state=True,
    ),
    Table(
        "port_counters",
        "what the counters of one port moved in one window, as one source tells it",
        (
            *keys(TS, DEVICE, PORT, SOURCE),
            *_sums(
                pl.UInt64,
                "",
                ("readings", "readings in the window"),
                ("covered_ns", "time that the counters speak of: of the intervals between readings that end here"),
                ("rx_covered_ns", "the same of rx_bytes"),
                ("tx_covered_ns", "the same of tx_bytes"),
                ("fec_covered_ns", "the same of the counters of forward error correction"),
                *((f"fec_bin_{k}", f"codewords with {k} symbol errors") for k in range(FEC_BINS)),
                ("flaps", "changes of the link's state, either way"),
                ("up_ns", "time between readings that began with the link up"),
                ("down_ns", "time between readings that began with the link down"),
            ),
            Field("speed_bps", pl.UInt64, "bit/s", "line rate of the port; null where unknown", "max"),
            *_moved("port"),
        ),
        state=True,
    ),
    Table(
        "queue_counters",
        "what the counters of one queue, priority or buffer moved in one window, as one source tells it",
        (
            *keys(TS, DEVICE, PORT, QUEUE, DIRECTION, SOURCE),
            *_sums(
                pl.UInt64,
                "",
                ("readings", "readings in the window"),
                ("covered_ns", "time that the counters speak of: of the intervals between readings that end here"),
                ("pause_rx_covered_ns", "the same of the pauses received"),
                ("pause_tx_covered_ns", "the same of the pauses sent"),
                ("storm_ns", "time in storms of pauses, those that lasted long enough to be one"),
                ("occupancy_count", "readings of the occupancy"),
                ("occupancy_total", "sum of them, in bytes"),
            ),
            *(
                Field(name, pl.UInt64, unit, f"largest {doc}", "max")
                for name, unit, doc in (
                    ("occupancy_high", "bytes", "occupancy read"),
                    ("watermark_high", "bytes", "watermark of the occupancy"),
                    ("headroom_high", "bytes", "watermark of the headroom"),
                    ("delay_high_ns", "ns", "watermark of the delay"),
                    ("speed_bps", "bit/s", "line rate of the port; null where unknown"),
                )
            ),
            *_moved("queue"),
        ),
        state=True,
    ),
    *(
        Table(
            f"{family}_counters",
            f"what the counters of one {what} moved in one window, as one source tells it",
            (
                *keys(TS, DEVICE, *key, SOURCE),
                *_sums(
                    pl.UInt64,
                    "",
                    ("readings", "readings in the window"),
                    ("covered_ns", "time that the counters speak of: of the intervals between readings that end here"),
                    ("rx_covered_ns", "the same of rx_bytes"),
                    ("tx_covered_ns", "the same of tx_bytes"),
                ),
                Field("speed_bps", pl.UInt64, "bit/s", "line rate; null where unknown", "max"),
                *_moved(family),
            ),
            state=True,
        )
        for family, what, key in (("nic", "adapter", (PORT,)), ("nvlink", "scale-up link", (GPU, LINK)))
    ),
    Table(
        "gpu_gauges",
        "what one GPU was read to be in one window, as one source tells it",
        (
            *keys(TS, DEVICE, GPU, SOURCE),
            *_sums(pl.UInt64, "", ("readings", "readings in the window")),
            # Whole numbers, so that sums are the same in whatever order they are made.
            *(
                field
                for gauge, unit, doc in (
                    ("sm_active", "1e-9", "share of the time with work on the multiprocessors"),
                    ("tensor_active", "1e-9", "the same of the tensor cores"),
                    ("power", "mW", "power"),
                )
                for field in (
                    Field(f"{gauge}_count", pl.UInt64, "", f"readings of the {doc}", "sum"),
                    Field(f"{gauge}_total", pl.UInt64, unit, "sum of them; null where there are none", "sum"),
                    Field(f"{gauge}_low", pl.UInt64, unit, "smallest", "min"),
                    Field(f"{gauge}_high", pl.UInt64, unit, "largest", "max"),
                )
            ),
            Field("xid_readings", pl.UInt64, "", "readings that tell an error of the driver; null where none speaks of errors", "sum"),
            Field("xid", pl.UInt64, "", "its code; of several the largest", "max"),
        ),
        state=True,
    ),
    Table(
        "bursts",
        "one row per burst: a maximal run of samples above the burst threshold",
        (
            DEVICE,
            PORT,
            QUEUE,
            SIGNAL,
            Field("start_ts", pl.Int64, "ns", "start of its first sample"),
            Field("duration_ns", pl.Int64, "ns", "number of its samples times their interval"),
            Field("bytes", pl.UInt64, "bytes", "sum of its samples"),
            Field("peak", pl.UInt64, "bytes", "its largest sample"),
            INTERVAL,
            SPEED,
            Field("contention_max", pl.UInt32, "", "most ports of the device hot in one of its intervals, itself included"),
            Field("ecn_bytes", pl.UInt64, "bytes", "congestion-marked bytes in it; null where not sampled"),
            Field("retransmit_bytes", pl.UInt64, "bytes", "retransmitted bytes in it; null where not sampled"),
        ),
        state=True,
    ),
)

STATES: dict[str, Table] = {table.name: table for table in _STATE_LIST}


def merge(table: Table, by: Iterable[str]) -> list[pl.Expr]:
    """Return the Polars aggregations that merge rows of ``table`` (histograms excepted) under the keys ``by``.

    What is null in every row stays null: what nobody counted is not zero.
    """
    given = set(by)
    how = {"sum": _sum, "min": pl.Expr.min, "max": pl.Expr.max}
    return [how[field.role](pl.col(field.name)) for field in table.fields if field.role in how and field.name not in given]


def _sum(column: pl.Expr) -> pl.Expr:
    return pl.when(column.count() > 0).then(column.sum())
