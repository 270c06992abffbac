"""The views of traffic across the fabric: paths, operations, ports side by side, and other readings."""

from .base import Column, View, percent, quantile

LATENCY = View(
    "latency",
    "latency of one path in one window",
    "state.latency_{r}",
    (
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("device", "device", "", "where it was seen"),
        Column("src", "src", "", "requester"),
        Column("dst", "dst", "", "responder"),
        Column("kind", "kind", "", "ack (request to the acknowledgement that covers it), probe, transit or hop"),
        Column("samples", "samples", "", "number of samples; p99.9 needs 10,000, p99.99 100,000"),
        Column("mean_ns", "total / samples", "ns", "mean; prefer the quantiles"),
        *(Column(f"{percent(q)}_ns", quantile(q), "ns", f"{q:g} quantile, within 1 %") for q in (0.50, 0.90, 0.99, 0.999, 0.9999)),
        Column("max_ns", "high", "ns", "largest sample"),
        Column("tail_ratio", f"weft_ratio({quantile(0.99)}, {quantile(0.5)})", "", "p99 / p50"),
        Column("tail_ratio_999", f"weft_ratio({quantile(0.999)}, {quantile(0.5)})", "", "p99.9 / p50"),
        Column("hist", "hist", "ns", "histogram of the samples, for weft_quantile and weft_merge"),
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
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("device", "device", "", "where it was seen"),
        Column("src", "src", "", "source address"),
        Column("dst", "dst", "", "destination address"),
        Column("opcode", "opcode", "", "BTH opcode"),
        Column("operation", _OPERATION, "", "its name"),
        Column("packets", "packets", "", "packets seen"),
        Column("estimated_packets", "estimated_packets", "", "packets, scaled by their sampling rate"),
        Column("bytes", "bytes", "bytes", "bytes on the wire"),
        Column("payload_bytes", "payload_bytes", "bytes", "application bytes"),
        Column("ce_ratio", "weft_ratio(ce_packets, ect_packets)", "", "congestion-marked share of the ECN-capable packets"),
        Column("naks", "naks", "", "negative acknowledgements"),
        Column("rnr_naks", "rnr_naks", "", "receiver-not-ready negative acknowledgements"),
        Column("psn_gaps", "psn_gaps", "", "times at which a queue pair's sequence jumped ahead"),
        Column("psn_missing", "psn_missing", "", "sequence numbers jumped over"),
        Column(
            "psn_repeats", "psn_repeats", "", "packets seen before: retransmissions; packets overtaken by at most 63 others are not counted"
        ),
        Column("credits_mean", "weft_ratio(credit_total, credit_count)", "", "mean AETH credit code, 0 to 30"),
        Column("credits_min", "credit_low", "", "smallest"),
        Column("credits_max", "credit_high", "", "largest"),
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
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("group_kind", "group_kind", "", "device"),
        Column("group_id", "group_id", "", "its name"),
        Column("direction", "direction", "", "rx or tx"),
        Column("sample_interval_ns", "interval_ns", "ns", "time that one sample covers"),
        Column("members", "members", "", "ports with samples"),
        Column("slots", "slots", "", "sample intervals in which any port was sampled"),
        Column(
            "contention_mean",
            "weft_ratio(hot_total, slots)",
            "",
            "mean number of ports hot in the same interval (Ghabashneh et al., IMC 2022)",
        ),
        Column("contention_max", "hot_high", "", "most ports hot in one interval"),
        Column(
            "contended_ratio", "weft_ratio(contended_slots, busy_slots)", "", "share of the intervals with a hot port that have two or more"
        ),
        Column("busy_slots", "busy_slots", "", "intervals with a hot port"),
        Column("contended_slots", "contended_slots", "", "intervals with two or more"),
        Column("jain", "jain", "", "Jain's fairness of the ports' bytes; 1 = equal"),
        Column("max_to_mean", "max_to_mean", "", "busiest port's bytes over the mean"),
        Column("cv", "cv", "", "standard deviation of the ports' bytes over the mean"),
        Column("incast_max", "incast_max", "", "most connections of a port in one sample; NULL where not sampled"),
    ),
)

READINGS = View(
    "readings",
    "readings of an object in one window that no other view has a column for",
    "state.readings_{r}",
    (
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("device", "device", "", "switch or host"),
        Column("source", "source", "", "the collector that read it"),
        Column("kind", "kind", "", "device, port, queue, transceiver, pool, ..."),
        Column("object", '"object"', "", "its name; empty for the device"),
        Column("name", '"name"', "", "what is read: the canonical name where the dictionary has one, else the source's own"),
        Column("samples", "samples", "", "readings in the window"),
        Column("value_min", "low", "", "smallest reading; NULL where readings are texts"),
        Column("value_max", "high", "", "largest reading; NULL where readings are texts"),
        Column("text", '"text"', "", "the reading where it is a text"),
    ),
)
