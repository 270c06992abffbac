"""The views of traffic across the fabric: paths, operations, ports side by side, and other readings."""

from .base import Column, View, percent, plain, quantile

LATENCY = View(
    "latency",
    "latency of one path in one window",
    "state.latency_{r}",
    (
        plain("ts", "start of the window, UTC"),
        plain("device", "where it was seen"),
        plain("src", "requester"),
        plain("dst", "responder"),
        plain("kind", "ack (request to the acknowledgement that covers it), probe, transit or hop"),
        plain("samples", "number of samples; p99.9 needs 10,000, p99.99 100,000"),
        Column("mean_ns", "total / samples", "mean; prefer the quantiles", "ns"),
        *(Column(f"{percent(q)}_ns", quantile(q), f"{q:g} quantile, within 1 %", "ns") for q in (0.50, 0.90, 0.99, 0.999, 0.9999)),
        Column("max_ns", "high", "largest sample", "ns"),
        Column("tail_ratio", f"weft_ratio({quantile(0.99)}, {quantile(0.5)})", "p99 / p50"),
        Column("tail_ratio_999", f"weft_ratio({quantile(0.999)}, {quantile(0.5)})", "p99.9 / p50"),
        plain("hist", "histogram of the samples, for weft_quantile and weft_merge", "ns"),
    ),
)

# The upper three bits of the opcode are the transport, the lower five the operation (IBTA volume 1, 9.2.1).
_OPERATION = """CASE WHEN opcode = 129 THEN 'CNP' ELSE
    coalesce(list_extract(['RC', 'UC', 'RD', 'UD', 'CNP', 'XRC'], (opcode >> 5) + 1), 'transport ' || (opcode >> 5)) || ' ' ||
    coalesce(list_extract(['SEND first', 'SEND middle', 'SEND last', 'SEND last immediate', 'SEND only', 'SEND only immediate',
    'WRITE first', 'WRITE middle', 'WRITE last', 'WRITE last immediate', 'WRITE only', 'WRITE only immediate', 'READ request',
    'READ response first', 'READ response middle', 'READ response last', 'READ response only', 'ACK', 'ATOMIC ACK',
    'COMPARE SWAP', 'FETCH ADD', NULL, 'SEND last invalidate', 'SEND only invalidate', NULL, NULL, NULL, NULL, 'FLUSH', 'ATOMIC WRITE'],
    (opcode & 31) + 1), 'opcode ' || (opcode & 31)) END"""

ROCE = View(
    "roce",
    "RoCEv2 packets of one operation from one address to another in one window",
    "state.roce_{r}",
    (
        plain("ts", "start of the window, UTC"),
        plain("device", "where it was seen"),
        plain("src", "source address"),
        plain("dst", "destination address"),
        plain("opcode", "BTH opcode"),
        Column("operation", _OPERATION, "its name"),
        plain("packets", "packets seen"),
        plain("estimated_packets", "packets, scaled by their sampling rate"),
        plain("bytes", "bytes on the wire", "bytes"),
        plain("payload_bytes", "application bytes", "bytes"),
        Column("ce_ratio", "weft_ratio(ce_packets, ect_packets)", "congestion-marked share of the ECN-capable packets"),
        plain("naks", "negative acknowledgements"),
        plain("rnr_naks", "receiver-not-ready negative acknowledgements"),
        plain("psn_gaps", "times at which a queue pair's sequence jumped ahead"),
        plain("psn_missing", "sequence numbers jumped over"),
        plain("psn_repeats", "packets seen before: retransmissions; packets overtaken by at most 63 others are not counted"),
        Column("credits_mean", "weft_ratio(credit_total, credit_count)", "mean AETH credit code, 0 to 30"),
        Column("credits_min", "credit_low", "smallest"),
        Column("credits_max", "credit_high", "largest"),
    ),
)

_GROUPS_SOURCE = """(
  SELECT g.*, m.jain, m.max_to_mean, m.cv, c.incast_max, left(g.signal, 2) AS direction FROM state.groups_{r} g
  LEFT JOIN (
    SELECT ts, device, signal, interval_ns, sum(x) ** 2 / (count(*) * nullif(sum(x * x), 0)) AS jain, max(x) / nullif(avg(x), 0) AS max_to_mean,
      stddev_pop(x) / nullif(avg(x), 0) AS cv
    FROM (SELECT ts, device, port, signal, interval_ns, sum(total)::DOUBLE AS x FROM state.port_samples_{r} WHERE queue = '' GROUP BY ALL) GROUP BY ALL) m
    ON g.ts = m.ts AND g.group_id = m.device AND g.signal = m.signal AND g.interval_ns = m.interval_ns
  LEFT JOIN (SELECT ts, device, max(high) AS incast_max FROM state.port_samples_{r} WHERE signal = 'connections' GROUP BY ALL) c
    ON g.ts = c.ts AND g.group_id = c.device AND g.signal = 'rx_bytes')"""

GROUPS = View(
    "groups",
    "ports side by side in one window",
    _GROUPS_SOURCE,
    (
        plain("ts", "start of the window, UTC"),
        plain("group_kind", "device"),
        plain("group_id", "its name"),
        plain("direction", "rx or tx"),
        Column("sample_interval_ns", "interval_ns", "time that one sample covers", "ns"),
        plain("members", "ports with samples"),
        plain("slots", "sample intervals in which any port was sampled"),
        Column(
            "contention_mean", "weft_ratio(hot_total, slots)", "mean number of ports hot in the same interval (Ghabashneh et al., IMC 2022)"
        ),
        Column("contention_max", "hot_high", "most ports hot in one interval"),
        Column(
            "contended_ratio", "weft_ratio(contended_slots, busy_slots)", "share of the intervals with a hot port that have two or more"
        ),
        plain("busy_slots", "intervals with a hot port"),
        plain("contended_slots", "intervals with two or more"),
        plain("jain", "Jain's fairness of the ports' bytes; 1 = equal"),
        plain("max_to_mean", "busiest port's bytes over the mean"),
        plain("cv", "standard deviation of the ports' bytes over the mean"),
        plain("incast_max", "most connections of a port in one sample; NULL where not sampled"),
    ),
)

READINGS = View(
    "readings",
    "readings of an object in one window that no other view has a column for",
    "state.readings_{r}",
    (
        plain("ts", "start of the window, UTC"),
        plain("device", "switch or host"),
        plain("source", "the collector that read it"),
        plain("kind", "device, port, queue, transceiver, pool, ..."),
        plain("object", "its name; empty for the device"),
        plain("name", "what is read: the canonical name where the dictionary has one, else the source's own"),
        plain("samples", "readings in the window"),
        Column("value_min", "low", "smallest reading; NULL where readings are texts"),
        Column("value_max", "high", "largest reading; NULL where readings are texts"),
        plain("text", "the reading where it is a text"),
    ),
)
