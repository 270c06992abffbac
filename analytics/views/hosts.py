"""The views of hosts: adapters, scale-up links and GPUs."""

from .base import Column, View, where


def _one_source(table: str, key: str, names: tuple[str, ...]) -> str:
    """Return the SQL that selects, per object and window, the source with the most counters; intervals of sources differ."""
    known = " + ".join(f"({name} IS NOT NULL)::INT" for name in names)
    return f"(SELECT * FROM state.{table}_{{r}} QUALIFY row_number() OVER (PARTITION BY ts, device, {key} ORDER BY {known} DESC, readings DESC, source) = 1)"


def _per_gigabyte(count: str, side: str) -> str:
    return f"weft_ratio({count} * 1e9, {where(f'{side}_bytes', count)})"


def _used(side: str) -> str:
    return f"{where(f'{side}_bytes', f'{side}_covered_ns')} * 8e9 / speed_bps / nullif({side}_covered_ns, 0)"


_QUALITY = Column(
    "quality",
    "CASE WHEN covered_ns < 0.9 * {ns} THEN 'partial' WHEN covered_ns > 2 * {ns} THEN 'coarse' ELSE 'ok' END",
    "",
    "ok; partial where the counters cover less than 90 % of the window; coarse where their intervals are longer than it",
)
_SPEED = Column("speed_bps", "speed_bps", "bit/s", "line rate")
_SOURCE = Column("source", "source", "", "the collector that read the counters; if several did, the one with the most counters")
_READINGS = Column("readings", "readings", "", "counter samples in the window")
_GPU = Column("gpu", "gpu", "", "number of the GPU in its device")
_START = (Column("ts", "ts", "", "start of the window, UTC"), Column("device", "device", "", "host"))


def _counted(name: str, column: str, doc: str, unit: str = "") -> Column:
    return Column(name, column, unit, doc)


NICS = View(
    "nics",
    "one RDMA adapter in one window, from its counters",
    _one_source(
        "nic_counters", "port", ("tx_bytes", "rx_bytes", "cnp_sent", "cnp_handled", "out_of_sequence", "ack_timeout", "retransmits")
    ),
    (
        *_START,
        Column("port", "port", "", "the adapter's port"),
        _SOURCE,
        _SPEED,
        _READINGS,
        Column(
            "covered_ratio", "covered_ns / {ns}", "", "time covered by the counters over the window; above 1 where they are read less often"
        ),
        _QUALITY,
        *(
            _counted(f"{side}_{unit}", f"{side}_{unit}", f"{unit} {words}", unit if unit == "bytes" else "")
            for unit in ("bytes", "packets")
            for side, words in (("tx", "sent"), ("rx", "received"))
        ),
        Column("tx_utilization_ratio", _used("tx"), "", "utilisation of the line by the bytes sent, over the time covered by the counters"),
        Column("rx_utilization_ratio", _used("rx"), "", "the same for receiving"),
        _counted("ecn_marked_packets", "ecn_marked_packets", "packets received with a mark for congestion experienced"),
        Column(
            "ce_ratio",
            f"weft_ratio(ecn_marked_packets, {where('rx_packets', 'ecn_marked_packets')})",
            "",
            "marked share of the packets received",
        ),
        _counted("cnp_sent", "cnp_sent", "congestion notifications sent, as a receiver of marked packets"),
        _counted("cnp_handled", "cnp_handled", "congestion notifications obeyed, as a sender"),
        Column("cnp_per_gigabyte", _per_gigabyte("cnp_sent", "rx"), "", "notifications sent for each 10^9 bytes received"),
        Column("cnp_handled_per_gigabyte", _per_gigabyte("cnp_handled", "tx"), "", "notifications obeyed for each 10^9 bytes sent"),
        Column(
            "cnp_per_ce",
            f"weft_ratio(cnp_sent, {where('ecn_marked_packets', 'cnp_sent')})",
            "",
            "notifications sent for each marked packet; below 1 where one notification covers several packets",
        ),
        Column(
            "cnp_ignored_ratio",
            f"weft_ratio(cnp_ignored, cnp_ignored + {where('cnp_handled', 'cnp_ignored')})",
            "",
            "share of the notifications received that the sender ignored; above 0, its congestion control is off",
        ),
        Column(
            "out_of_sequence_per_gigabyte",
            _per_gigabyte("out_of_sequence", "rx"),
            "",
            "packets out of sequence for each 10^9 bytes received: loss, or reordering where paths are adaptive",
        ),
        _counted("retransmits", "retransmits", "retransmissions"),
        Column("retransmit_per_gigabyte", _per_gigabyte("retransmits", "tx"), "", "retransmissions for each 10^9 bytes sent"),
        Column(
            "goodput_ratio",
            f"1 - weft_share(retransmits, {where('tx_packets', 'retransmits')})",
            "",
            "share of the packets sent that are not retransmissions; only for adapters that count retransmissions in packets",
        ),
        _counted("sequence_naks", "packet_seq_err", "negative acknowledgements received for a gap in the sequence, as a sender"),
        _counted("implied_naks", "implied_nak", "gaps in the sequence of responses"),
        _counted("ack_timeouts", "ack_timeout", "acknowledgements that timed out: the worst kind of loss"),
        _counted("duplicate_requests", "duplicate_request", "requests received again"),
        _counted("rnr_naks", "rnr_nak", "receiver-not-ready negative acknowledgements: the host, not the network"),
        _counted("out_of_buffer", "out_of_buffer", "packets for which the host had no buffer"),
        _counted("retries_exceeded", "retries_exceeded", "connections given up; a single one ends a job"),
    ),
)

NVLINKS = View(
    "nvlinks",
    "one scale-up link, or all of a GPU together, in one window, from its counters",
    _one_source("nvlink_counters", "gpu, link", ("tx_bytes", "rx_bytes", "replay", "recovery", "crc", "symbol_errors")),
    (
        *_START,
        _GPU,
        Column("link", "link", "", "number of the link; empty where all links of the GPU are counted together"),
        _SOURCE,
        _SPEED,
        _READINGS,
        _QUALITY,
        _counted("tx_bytes", "tx_bytes", "bytes sent", "bytes"),
        _counted("rx_bytes", "rx_bytes", "bytes received", "bytes"),
        Column(
            "utilization_ratio",
            f"greatest({_used('tx')}, {_used('rx')})",
            "",
            "utilisation of the line in the busier direction, over the time covered by the counters",
        ),
        _counted("replays", "replay", "replays"),
        _counted("recoveries", "recovery", "recoveries"),
        _counted(
            "errors",
            "CASE WHEN crc IS NOT NULL OR symbol_errors IS NOT NULL THEN coalesce(crc, 0) + coalesce(symbol_errors, 0) END",
            "errors of checksums and symbols",
        ),
    ),
)


def _gauge(name: str, gauge: str, unit: str, parts: float, doc: str) -> tuple[Column, ...]:
    """Return mean, smallest and largest of a gauge; ``name`` has a unit after its last underscore, which stays last."""
    stem, _, ending = name.rpartition("_")
    return (
        Column(f"{stem}_mean_{ending}", f"weft_ratio({gauge}_total / {parts:.0e}, {gauge}_count)", unit, f"{doc}: mean of the samples"),
        Column(f"{stem}_min_{ending}", f"{gauge}_low / {parts:.0e}", unit, "smallest sample"),
        Column(f"{stem}_max_{ending}", f"{gauge}_high / {parts:.0e}", unit, "largest sample"),
    )


GPUS = View(
    "gpus",
    "one GPU in one window, from its gauges",
    _one_source("gpu_gauges", "gpu", ("sm_active_total", "tensor_active_total", "power_total", "xid_readings")),
    (
        *_START,
        _GPU,
        _SOURCE,
        _READINGS,
        *_gauge("sm_active_ratio", "sm_active", "", 1e9, "share of the time with work on the multiprocessors"),
        *_gauge("tensor_active_ratio", "tensor_active", "", 1e9, "share of the time with work on the tensor cores"),
        *_gauge("power_w", "power", "W", 1e3, "power drawn"),
        Column("xid_readings", "xid_readings", "", "samples in which the driver reported an error; NULL where errors are not read"),
        Column("xid", "xid", "", "code of the error; the largest if there are several"),
    ),
)
