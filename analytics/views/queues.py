"""The views of queues, priorities and buffers, and of drops by reason."""

from .base import COVERED, QUALITY, READINGS, SOURCE, Column, View, one_source, plain

_KEYS = "device, port, queue, direction"
# The largest occupancies are those of any source.
_FULLEST = ", ".join(
    f"max({name}) OVER (PARTITION BY ts, {_KEYS}) AS {name}"
    for name in ("occupancy_high", "watermark_high", "headroom_high", "delay_high_ns")
)
_KNOWN = ("bytes", "packets", "pfc_rx_frames", "pfc_rx_pause_us", "dropped_packets", "watermark_high")


def _pause_ns(side: str) -> str:
    """Return the time in pause, over the windows in which the time that it was counted in is known."""
    us, quanta = (f"[pfc_{side}_pause_{unit} where pause_{side}_covered_ns]" for unit in ("us", "quanta"))
    return f"coalesce({us} * 1000.0, {quanta} * 512e9 / coalesce(q.speed_bps, p.speed_bps))"


# The line rate of a queue is its port's.
_QUEUES_SOURCE = f"""(
  SELECT q.* EXCLUDE (speed_bps), coalesce(q.speed_bps, p.speed_bps) AS speed_bps,
    coalesce(q.dropped_packets, q.wred_dropped_packets) AS drops,
    {_pause_ns("rx")} AS pause_rx_ns, {_pause_ns("tx")} AS pause_tx_ns
  FROM {one_source("queue_counters", _KEYS, _KNOWN, f" REPLACE ({_FULLEST})")} q
  LEFT JOIN (SELECT ts, device, port, max(speed_bps) AS speed_bps FROM state.port_counters_{{r}} GROUP BY ALL) p
    ON q.ts = p.ts AND q.device = p.device AND q.port = p.port)"""

# An XOFF frame stops its priority for at most 65535 quanta of 512 bit times.
_XOFF_NS = "(65535 * 512e9 / speed_bps)"


def _bounded(frames: str) -> str:
    return f"weft_share({frames} * {_XOFF_NS}, [covered_ns where {frames}])"


def _paused(side: str) -> str:
    """Return the share of the time in pause: measured, or the bound where only frames are counted."""
    measured = f"weft_share(pause_{side}_ns, pause_{side}_covered_ns)"
    return f"coalesce({measured}, {_bounded(f'pfc_{side}_frames')})"


QUEUES = View(
    "queues",
    "one queue, priority or buffer in one window, from its counters",
    _QUEUES_SOURCE,
    (
        plain("ts", "start of the window, UTC"),
        plain("device", "switch or host"),
        plain("port", "interface; empty for a shared buffer"),
        plain("queue", "queue, priority or buffer"),
        plain("direction", "tx: egress queue or priority; rx: ingress priority group; pool: shared buffer"),
        SOURCE,
        plain("speed_bps", "line rate of the port", "bit/s"),
        READINGS,
        COVERED,
        QUALITY,
        plain("packets", "packets sent from it"),
        plain("bytes", "bytes sent from it", "bytes"),
        Column("utilization", "bytes * 8e9 / speed_bps / nullif([covered_ns where bytes], 0)", "utilisation of the line by it"),
        plain("ecn_marked_packets", "packets marked congestion experienced"),
        Column("ecn_mark_ratio", "weft_ratio(ecn_marked_packets, [packets where ecn_marked_packets])", "marked share of the packets"),
        Column(
            "pause_rx_ratio",
            _paused("rx"),
            "share of the time in which received pauses stopped it; the bound where durations are not counted, see pause_by",
        ),
        Column("pause_tx_ratio", _paused("tx"), "share of the time in which it paused its peer; likewise"),
        Column(
            "pause_rx_bound_ratio",
            _bounded("pfc_rx_frames"),
            "upper bound from the pause frames received: 65535 quanta of 512 bit times each",
        ),
        Column("pause_tx_bound_ratio", _bounded("pfc_tx_frames"), "the same for the frames sent"),
        Column(
            "pause_by",
            """CASE WHEN pause_rx_ns IS NULL AND pfc_rx_frames IS NOT NULL OR pause_tx_ns IS NULL AND pfc_tx_frames IS NOT NULL
      THEN CASE WHEN pause_rx_ns IS NOT NULL THEN 'rx duration, tx frames' WHEN pause_tx_ns IS NOT NULL THEN 'rx frames, tx duration' ELSE 'frames' END
      WHEN pause_rx_ns IS NOT NULL OR pause_tx_ns IS NOT NULL THEN 'duration' END""",
            "duration: measured; frames: an upper bound; both with their direction; NULL where pauses are not counted",
        ),
        Column(
            "pause_mean_ns",
            "weft_ratio(pause_rx_ns, coalesce([pfc_on2off where pfc_rx_pause_us], [pfc_on2off where pfc_rx_pause_quanta]))",
            "mean length of a pause received",
            "ns",
        ),
        Column("pause_rx_frames", "pfc_rx_frames", "pause frames received"),
        Column("pause_tx_frames", "pfc_tx_frames", "pause frames sent"),
        Column("storm_ratio", "weft_share(storm_ns, [covered_ns where storm_ns])", "share of the time in a storm of pauses"),
        Column(
            "pfc_before_ecn",
            "CASE WHEN ecn_marked_packets IS NOT NULL THEN greatest(coalesce(pfc_rx_frames, 0), coalesce(pfc_tx_frames, 0)) > 0 AND ecn_marked_packets = 0 END",
            "paused although no packet was marked: the ECN thresholds are too high",
        ),
        Column(
            "occupancy_mean_bytes",
            "weft_ratio(occupancy_total, occupancy_count)",
            "mean of the occupancies read; of high-frequency telemetry, mean of the largest of each second",
            "bytes",
        ),
        Column("occupancy_max_bytes", "occupancy_high", "largest occupancy read", "bytes"),
        Column("watermark_max_bytes", "watermark_high", "largest watermark of the occupancy", "bytes"),
        Column("headroom_max_bytes", "headroom_high", "largest watermark of the headroom", "bytes"),
        Column("delay_max_ns", "delay_high_ns", "largest watermark of the delay", "ns"),
        plain("drops", "packets dropped"),
        Column(
            "drop_ratio",
            "weft_ratio(drops, drops + coalesce([packets where dropped_packets], [packets where wred_dropped_packets]))",
            "share of the packets that were dropped",
        ),
        Column("wred_drops", "wred_dropped_packets", "of these, by random early detection"),
        Column("trimmed", "trimmed_packets", "packets cut to their header because it was full"),
    ),
)

DROPS = View(
    "drops",
    "drops that devices report one by one, by reason",
    "(SELECT make_timestamp_ns(epoch_ns(ts) // {ns} * {ns}) AS bucket, * FROM state.event WHERE kind = 'drop')",
    (
        Column("ts", "bucket", "start of the window, UTC"),
        plain("device", "switch or host"),
        plain("port", "interface"),
        plain("reason", "the reason, as the source names it"),
        plain("source", "the collector"),
        Column("drops", "count(*)", "drops reported"),
    ),
    where="true GROUP BY bucket, device, port, reason, source",
)
