"""The views of hosts: adapters, scale-up links and GPUs."""

from .base import COVERED, QUALITY, READINGS, SOURCE, Column, View, one_source, plain


def _per_gigabyte(count: str, side: str) -> str:
    return f"weft_ratio({count} * 1e9, [{side}_bytes where {count}])"


def _used(side: str) -> str:
    return f"[{side}_bytes where {side}_covered_ns] * 8e9 / speed_bps / nullif({side}_covered_ns, 0)"


_SPEED = plain("speed_bps", "line rate", "bit/s")
_GPU = plain("gpu", "number of the GPU in its device")
_START = (plain("ts", "start of the window, UTC"), plain("device", "host"))


NICS = View(
    "nics",
    "one RDMA adapter in one window, from its counters",
    one_source(
        "nic_counters", "device, port", ("tx_bytes", "rx_bytes", "cnp_sent", "cnp_handled", "out_of_sequence", "ack_timeout", "retransmits")
    ),
    (
        *_START,
        plain("port", "the adapter's port"),
        SOURCE,
        _SPEED,
        READINGS,
        COVERED,
        QUALITY,
        *(
            plain(f"{side}_{unit}", f"{unit} {words}", unit if unit == "bytes" else "")
            for unit in ("bytes", "packets")
            for side, words in (("tx", "sent"), ("rx", "received"))
        ),
        Column("tx_utilization_ratio", _used("tx"), "utilisation of the line by what it sent, over the time covered by the counters"),
        Column("rx_utilization_ratio", _used("rx"), "the same for receiving"),
        plain("ecn_marked_packets", "packets received with a mark for congestion experienced"),
        Column("ce_ratio", "weft_ratio(ecn_marked_packets, [rx_packets where ecn_marked_packets])", "marked share of the packets received"),
        plain("cnp_sent", "congestion notifications sent, as a receiver of marked packets"),
        plain("cnp_handled", "congestion notifications obeyed, as a sender"),
        Column("cnp_per_gigabyte", _per_gigabyte("cnp_sent", "rx"), "notifications sent for each 10^9 bytes received"),
        Column("cnp_handled_per_gigabyte", _per_gigabyte("cnp_handled", "tx"), "notifications obeyed for each 10^9 bytes sent"),
        Column(
            "cnp_per_ce",
            "weft_ratio(cnp_sent, [ecn_marked_packets where cnp_sent])",
            "notifications sent for each marked packet; below 1 where one answers several",
        ),
        Column(
            "cnp_ignored_ratio",
            "weft_ratio(cnp_ignored, cnp_ignored + [cnp_handled where cnp_ignored])",
            "share of the notifications received that the sender ignored; above 0, its congestion control is off",
        ),
        Column(
            "out_of_sequence_per_gigabyte",
            _per_gigabyte("out_of_sequence", "rx"),
            "packets out of sequence for each 10^9 bytes received: loss, or reordering where paths are adaptive",
        ),
        plain("retransmits", "retransmissions"),
        Column("retransmit_per_gigabyte", _per_gigabyte("retransmits", "tx"), "retransmissions for each 10^9 bytes sent"),
        Column(
            "goodput_ratio",
            "1 - weft_share(retransmits, [tx_packets where retransmits])",
            "share of the packets sent that are no retransmissions; of adapters that count retransmissions in packets",
        ),
        Column("sequence_naks", "packet_seq_err", "negative acknowledgements received for a gap in the sequence, as a sender"),
        Column("implied_naks", "implied_nak", "gaps in the sequence of responses"),
        Column("ack_timeouts", "ack_timeout", "acknowledgements that timed out: the worst kind of loss"),
        Column("duplicate_requests", "duplicate_request", "requests received again"),
        Column("rnr_naks", "rnr_nak", "receiver-not-ready negative acknowledgements: the host, not the network"),
        plain("out_of_buffer", "packets for which the host had no buffer"),
        plain("retries_exceeded", "connections given up; one ends a job"),
    ),
)

NVLINKS = View(
    "nvlinks",
    "one scale-up link, or all of a GPU together, in one window, from its counters",
    one_source("nvlink_counters", "device, gpu, link", ("tx_bytes", "rx_bytes", "replay", "recovery", "crc", "symbol_errors")),
    (
        *_START,
        _GPU,
        plain("link", "number of the link; empty where all links of the GPU are counted together"),
        SOURCE,
        _SPEED,
        READINGS,
        QUALITY,
        plain("tx_bytes", "bytes sent", "bytes"),
        plain("rx_bytes", "bytes received", "bytes"),
        Column(
            "utilization_ratio",
            f"greatest({_used('tx')}, {_used('rx')})",
            "utilisation of the line in the busier direction, over the time covered by the counters",
        ),
        Column("replays", "replay", "replays"),
        Column("recoveries", "recovery", "recoveries"),
        Column(
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
        Column(f"{stem}_mean_{ending}", f"weft_ratio({gauge}_total / {parts:.0e}, {gauge}_count)", f"{doc}: mean of the readings", unit),
        Column(f"{stem}_min_{ending}", f"{gauge}_low / {parts:.0e}", "smallest reading", unit),
        Column(f"{stem}_max_{ending}", f"{gauge}_high / {parts:.0e}", "largest reading", unit),
    )


GPUS = View(
    "gpus",
    "one GPU in one window, from its gauges",
    one_source("gpu_gauges", "device, gpu", ("sm_active_total", "tensor_active_total", "power_total", "xid_readings")),
    (
        *_START,
        _GPU,
        SOURCE,
        READINGS,
        *_gauge("sm_active_ratio", "sm_active", "", 1e9, "share of the time with work on the multiprocessors"),
        *_gauge("tensor_active_ratio", "tensor_active", "", 1e9, "share of the time with work on the tensor cores"),
        *_gauge("power_w", "power", "W", 1e3, "power drawn"),
        plain("xid_readings", "readings in which the driver reported an error; NULL where errors are not read"),
        plain("xid", "its code; of several the largest"),
    ),
)
