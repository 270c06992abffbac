"""The state tables: sufficient statistics of windows, published by the process service and stored by analytics.

``Field.role`` defines how two rows of a key merge; ``merge`` returns the Polars aggregations.
"""

from collections.abc import Iterable
from dataclasses import replace

import polars as pl

from .families import FAMILIES, counters_of
from .field import (
    DEVICE,
    DIRECTION,
    FEC_BINS,
    GPU,
    HISTOGRAM,
    INTERVAL,
    LADDER,
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

_SAMPLES_KEY = keys(TS, DEVICE, PORT, QUEUE, SIGNAL, INTERVAL, SPEED)


def _moved(family: str) -> tuple[Field, ...]:
    """Return a sum of deltas for each counter of ``family``, null where no delta counts."""
    fields = {field.name: field for field in FAMILIES[family].fields}
    return tuple(
        replace(fields[name], doc=f"sum of the deltas of {name} in the window; null where none counts", role="sum", cumulative=False)
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
                ("cold_cold", "neighbouring samples: neither is hot"),
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
            *_sums(pl.UInt64, "", ("contended_hot", "hot samples at times when another port of the device is hot too; 0 for queues")),
            Field("threshold_ratio", pl.Float64, "", "burst threshold over the line rate; null where no burst is looked for", "max"),
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
                ("estimated_packets", "packets scaled by their sampling rate"),
                ("bytes", "bytes on the wire"),
                ("payload_bytes", "application bytes"),
                ("ce_packets", "packets marked congestion experienced, scaled by their sampling rate"),
                ("ect_packets", "packets of an ECN-capable transport, marked or not, scaled by their sampling rate"),
                ("naks", "negative acknowledgements"),
                ("rnr_naks", "receiver-not-ready negative acknowledgements"),
                ("psn_gaps", "times at which the sequence of a queue pair jumped ahead"),
                ("psn_missing", "sequence numbers jumped over"),
                (
                    "psn_repeats",
                    "packets with a sequence number seen before: retransmissions, but not packets overtaken by at most 63 others",
                ),
                ("credit_count", "acknowledgements with a credit count"),
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
        "samples of one object in one window, without a column in another table",
        (
            *keys(
                TS,
                DEVICE,
                Field("source", pl.String, "", "the collector that sampled it"),
                Field("kind", pl.String, "", "kind of object: device, port, queue, transceiver, pool, ..."),
                Field("object", pl.String, "", "its name; empty for the device"),
                Field("name", pl.String, "", "name of the value"),
            ),
            *_sums(pl.UInt64, "", ("samples", "number of samples")),
            Field("low", pl.Float64, "", "smallest sample; null where samples are texts", "min"),
            Field("high", pl.Float64, "", "largest sample; null where samples are texts", "max"),
            Field("text", pl.String, "", "the sample where it is a text; the last in alphabetical order if there are several", "max"),
        ),
        state=True,
    ),
    Table(
        "quality",
        "faults in the data of one entity in one window",
        (
            *keys(TS, DEVICE, PORT, SIGNAL),
            *_sums(
                pl.UInt64,
                "",
                ("late", "samples or packets that arrived after their window had closed"),
                ("duplicates", "samples that were present already"),
                ("implausible", "impossible samples: above 1 MiB per nanosecond, ahead of time, or off the grid"),
                ("resets", "counter samples after a restart of the counters"),
                ("wraps", "counter samples after a wrap of a counter; their deltas count"),
                ("gaps", "counter samples much later than usual after the one before; their deltas count"),
            ),
        ),
        state=True,
    ),
    Table(
        "port_counters",
        "counter deltas of one port in one window, as one source reports them",
        (
            *keys(TS, DEVICE, PORT, SOURCE),
            *_sums(
                pl.UInt64,
                "",
                ("readings", "counter samples in the window"),
                ("covered_ns", "time that the deltas cover: the intervals between counter samples that end here"),
                ("rx_covered_ns", "the same of rx_bytes"),
                ("tx_covered_ns", "the same of tx_bytes"),
                ("fec_covered_ns", "the same of the counters of forward error correction"),
                *((f"fec_bin_{k}", f"codewords with {k} symbol errors") for k in range(FEC_BINS)),
                ("flaps", "changes of the link state, up or down"),
                ("up_ns", "time between counter samples that began with the link up"),
                ("down_ns", "time between counter samples that began with the link down"),
            ),
            Field("speed_bps", pl.UInt64, "bit/s", "line rate of the port; null where unknown", "max"),
            *_moved("port"),
        ),
        state=True,
    ),
    Table(
        "queue_counters",
        "counter deltas of one queue, priority or buffer in one window, as one source reports them",
        (
            *keys(TS, DEVICE, PORT, QUEUE, DIRECTION, SOURCE),
            *_sums(
                pl.UInt64,
                "",
                ("readings", "counter samples in the window"),
                ("covered_ns", "time that the deltas cover: the intervals between counter samples that end here"),
                ("pause_rx_covered_ns", "the same of the pauses received"),
                ("pause_tx_covered_ns", "the same of the pauses sent"),
                ("storm_ns", "time in pause storms that reached the detection time"),
                ("occupancy_count", "samples of the occupancy"),
                ("occupancy_total", "sum of them, in bytes"),
            ),
            *(
                Field(name, pl.UInt64, unit, f"largest {doc}", "max")
                for name, unit, doc in (
                    ("occupancy_high", "bytes", "occupancy sampled"),
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
            f"counter deltas of one {what} in one window, as one source reports them",
            (
                *keys(TS, DEVICE, *key, SOURCE),
                *_sums(
                    pl.UInt64,
                    "",
                    ("readings", "counter samples in the window"),
                    ("covered_ns", "time that the deltas cover: the intervals between counter samples that end here"),
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
        "gauges of one GPU in one window, as one source reports them",
        (
            *keys(TS, DEVICE, GPU, SOURCE),
            *_sums(pl.UInt64, "", ("readings", "counter samples in the window")),
            # Integers, so that sums do not depend on their order.
            *(
                field
                for gauge, unit, doc in (
                    ("sm_active", "1e-9", "share of the time with work on the multiprocessors"),
                    ("tensor_active", "1e-9", "the same of the tensor cores"),
                    ("power", "mW", "power"),
                )
                for field in (
                    Field(f"{gauge}_count", pl.UInt64, "", f"samples of the {doc}", "sum"),
                    Field(f"{gauge}_total", pl.UInt64, unit, "sum of them; null where there are none", "sum"),
                    Field(f"{gauge}_low", pl.UInt64, unit, "smallest", "min"),
                    Field(f"{gauge}_high", pl.UInt64, unit, "largest", "max"),
                )
            ),
            Field("xid_readings", pl.UInt64, "", "samples with a driver error; null where no sample reports errors", "sum"),
            Field("xid", pl.UInt64, "", "code of the error; the largest if there are several", "max"),
        ),
        state=True,
    ),
    Table(
        "bursts",
        "one row per burst: a maximal sequence of samples above the burst threshold",
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

    A column that is null in every row stays null: not counted is not zero.
    """
    given = set(by)
    how = {"sum": add_known, "min": pl.Expr.min, "max": pl.Expr.max}
    return [how[field.role](pl.col(field.name)) for field in table.fields if field.role in how and field.name not in given]


def add_known(column: pl.Expr) -> pl.Expr:
    """Return the sum of what is known; null where nothing is."""
    return pl.when(column.count() > 0).then(column.sum())
