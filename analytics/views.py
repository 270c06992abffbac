"""The views that users query: metrics as expressions over stored statistics, one line a column.

``VIEWS`` is the one place where a metric's formula stands; the views at every resolution, the docs page and the
labels of the dashboard derive from it. A new ratio over kept statistics is a new line here and no migration.
"""

from dataclasses import dataclass

from ..pipeline.schema import LADDER, RESOLUTIONS_NS
from . import views_inventory

BLOCKS = (1, *LADDER)

# Index of dispersion for bytes counts in full-size frames, so that Poisson packets of that size give 1.
UNIT_BYTES = 1500

# Scales of the aggregated-variance Hurst estimate, in samples.
HURST_SCALES = tuple(m for m in BLOCKS if m <= 64)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, SQL over the source, unit, meaning."""

    name: str
    sql: str
    unit: str
    doc: str


@dataclass(frozen=True, slots=True)
class View:
    """One view; with ``resolutions`` it exists once for each, and ``{r}`` and ``{ns}`` in the SQL are replaced."""

    name: str
    doc: str
    source: str
    columns: tuple[Column, ...]
    resolutions: bool = True
    where: str = ""

    def sql(self, resolution: str = "") -> str:
        """Return the statement that creates the view."""
        name = f"{self.name}_{resolution}" if self.resolutions else self.name
        select = ",\n  ".join(f"{column.sql} AS {column.name}" for column in self.columns)
        text = f"CREATE OR REPLACE VIEW main.{name} AS SELECT\n  {select}\nFROM {self.source}{f' WHERE {self.where}' if self.where else ''}"
        return text.replace("{r}", resolution).replace("{ns}", str(RESOLUTIONS_NS.get(resolution, 0)))


def _percent(q: float) -> str:
    """Return p50 for 0.5, p999 for 0.999."""
    return "p" + f"{q * 100:g}".replace(".", "")


def _blocks(m: int) -> tuple[str, str, str]:
    return ("samples", "total", "squares") if m == 1 else (f"blocks_{m}", f"block_total_{m}", f"block_squares_{m}")


def _idc(m: int) -> Column:
    n, total, squares = _blocks(m)
    sql = f"CASE WHEN {n} > 0 AND {total} > 0 THEN weft_variance({n}, {total}, {squares}) / ({total} / {n}) / {UNIT_BYTES} END"
    return Column(
        f"idc_{m}",
        sql,
        "",
        f"index of dispersion of the bytes in {m} samples, in {UNIT_BYTES}-byte units; 1 = Poisson, grows with m where traffic clusters",
    )


def _hurst() -> str:
    """Slope of ln Var(X^(m)) over ln m by least squares: m doubles, so x is 0, 1 ... and only its mean matters."""
    middle = (len(HURST_SCALES) - 1) / 2
    spread = sum((k - middle) ** 2 for k in range(len(HURST_SCALES)))
    terms = []
    for k, m in enumerate(HURST_SCALES):
        n, total, squares = _blocks(m)
        terms.append(f"{k - middle} * ln(weft_variance({n}, {total}, {squares}) / {m * m})")
    enough = " AND ".join(f"weft_variance({', '.join(_blocks(m))}) > 0" for m in HURST_SCALES)
    return f"CASE WHEN blocks_{HURST_SCALES[-1]} > 1 AND {enough} THEN 1 + ({' + '.join(terms)}) / {spread} / ln(2) / 2 END"


_CAPACITY = "(speed_bps * sample_interval_ns / 8e9)"
_TAU_R = "(sqrt(greatest(weft_variance(tau_count, tau_total, tau_squares), 0)) / (tau_total / tau_count))"
_P01 = "(cold_hot / (cold_cold + cold_hot))"
_P11 = "(hot_hot / (hot_cold + hot_hot))"

_PORTS_SOURCE = """(
  SELECT p.*, p.interval_ns AS sample_interval_ns, left(p.signal, 2) AS direction, e.total AS ecn_total, t.total AS retransmit_total
  FROM state.port_samples_{r} p
  LEFT JOIN (SELECT ts, device, port, sum(total) AS total FROM state.port_samples_{r} WHERE signal = 'rx_ecn_bytes' GROUP BY ALL) e
    ON p.ts = e.ts AND p.device = e.device AND p.port = e.port AND p.signal = 'rx_bytes'
  LEFT JOIN (SELECT ts, device, port, signal, sum(total) AS total FROM state.port_samples_{r} WHERE signal LIKE '%_retransmit_bytes' GROUP BY ALL) t
    ON p.ts = t.ts AND p.device = t.device AND p.port = t.port AND t.signal = left(p.signal, 2) || '_retransmit_bytes'
  WHERE p.signal IN ('rx_bytes', 'tx_bytes') AND p.queue = '')"""

PORTS = View(
    "ports",
    "one port and direction in one window, from its burst samples",
    _PORTS_SOURCE,
    (
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface"),
        Column("direction", "direction", "", "rx or tx, as the port's owner sees it"),
        Column(
            "sample_interval_ns",
            "sample_interval_ns",
            "ns",
            "time that one sample covers; burst figures of different intervals do not compare",
        ),
        Column("speed_bps", "speed_bps", "bit/s", "line rate"),
        Column("samples", "samples", "", "samples in the window"),
        Column("coverage_ratio", "samples * sample_interval_ns / {ns}", "", "share of the window that was sampled"),
        Column(
            "quality",
            "CASE WHEN samples * sample_interval_ns >= 0.999 * {ns} THEN 'ok' ELSE 'partial' END",
            "",
            "ok, or partial where less than 99.9 % of the window was sampled",
        ),
        Column("bytes", "total", "bytes", "bytes in all samples"),
        Column("utilization_mean_ratio", f"total / samples / {_CAPACITY}", "", "mean utilisation of the line over the samples"),
        *(
            Column(
                f"utilization_{_percent(q)}_ratio",
                f"hist_{_percent(q)} / {_CAPACITY}",
                "",
                f"{q:g} quantile of the samples' utilisation, within 1 %",
            )
            for q in (0.50, 0.90, 0.99, 0.999)
        ),
        Column("utilization_max_ratio", f"high / {_CAPACITY}", "", "largest sample's utilisation"),
        Column("burst_count", "bursts", "", "bursts that start in the window: runs of samples above half of the line rate"),
        Column("burst_time_ratio", "hot / samples", "", "share of the samples that are in bursts"),
        Column("burst_bytes", "hot_total", "bytes", "bytes in bursts"),
        Column("burst_bytes_ratio", "weft_ratio(hot_total, total)", "", "share of the bytes that are in bursts"),
        Column(
            "burst_gap_mean_ns", "weft_ratio(gap_total * sample_interval_ns, gaps)", "ns", "mean time from a burst's end to the next start"
        ),
        Column("burst_gap_p50_ns", "gap_hist_p50 * sample_interval_ns", "ns", "median of it, within 1 %"),
        Column(
            "clustering_ratio",
            f"CASE WHEN hot_hot + hot_cold > 0 AND cold_hot > 0 THEN {_P11} / {_P01} END",
            "",
            "p(hot after hot) / p(hot after cold); 1 = independent",
        ),
        Column(
            "burstiness_cv",
            "CASE WHEN total > 0 THEN sqrt(weft_variance(samples, total, squares)) / (total / samples) END",
            "",
            "standard deviation of the samples over their mean",
        ),
        Column("peak_to_mean", "CASE WHEN total > 0 THEN high * samples / total END", "", "largest sample over the mean"),
        *(_idc(m) for m in BLOCKS),
        Column(
            "hurst",
            _hurst(),
            "",
            "Hurst exponent by aggregated variance over 1 to 64 samples; 0.5 = no memory. Periodic traffic is not self-similar: look for a period first",
        ),
        Column(
            "goh_barabasi",
            f"CASE WHEN tau_count > 1 THEN ({_TAU_R} - 1) / ({_TAU_R} + 1) END",
            "",
            "burstiness B of the times between burst starts: -1 periodic, 0 Poisson, 1 bursty",
        ),
        Column(
            "goh_barabasi_finite",
            f"CASE WHEN tau_count > 1 THEN (sqrt(tau_count + 1) * {_TAU_R} - sqrt(tau_count - 1)) / ((sqrt(tau_count + 1) - 2) * {_TAU_R} + sqrt(tau_count - 1)) END",
            "",
            "the same corrected for few events (Kim and Jo, 2016)",
        ),
        Column(
            "memory",
            """CASE WHEN pair_count > 1 AND weft_variance(pair_count, pair_x, pair_xx) > 0 AND weft_variance(pair_count, pair_y, pair_yy) > 0 THEN
            (pair_count::HUGEINT * pair_xy::HUGEINT - pair_x::HUGEINT * pair_y::HUGEINT)::DOUBLE / (pair_count::DOUBLE * pair_count)
            / sqrt(weft_variance(pair_count, pair_x, pair_xx) * weft_variance(pair_count, pair_y, pair_yy)) END""",
            "",
            "correlation of consecutive times between burst starts; above 0: bursts of bursts",
        ),
        Column("ce_ratio", "weft_ratio(ecn_total, total)", "", "congestion-marked share of the received bytes; NULL where not sampled"),
        Column("retransmit_ratio", "weft_ratio(retransmit_total, total)", "", "retransmitted share of the bytes; NULL where not sampled"),
        Column("hist", "hist", "bytes", "histogram of the samples, for weft_quantile and weft_merge"),
        Column("profile", "profile", "bytes", "bytes in each 10 ms of the window; at 1 s only"),
    ),
)

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
        Column("samples", "samples", "", "number of samples; p99.9 wants 10,000, p99.99 100,000"),
        Column("mean_ns", "total / samples", "ns", "mean; say the quantiles instead"),
        *(
            Column(f"{_percent(q)}_ns", f"hist_{_percent(q)}", "ns", f"{q:g} quantile, within 1 %")
            for q in (0.50, 0.90, 0.99, 0.999, 0.9999)
        ),
        Column("max_ns", "high", "ns", "largest sample"),
        Column("tail_ratio", "weft_ratio(hist_p99, hist_p50)", "", "p99 / p50"),
        Column("tail_ratio_999", "weft_ratio(hist_p999, hist_p50)", "", "p99.9 / p50"),
        Column("hist", "hist", "ns", "histogram of the samples, for weft_quantile and weft_merge"),
    ),
)

# The upper three bits of the opcode are the transport, the lower five the operation (IBTA volume 1, 9.2.1).
_OPERATION = """CASE WHEN opcode = 129 THEN 'CNP' ELSE
    coalesce(list_extract(['RC', 'UC', 'RD', 'UD', 'CNP', 'XRC'], (opcode >> 5) + 1), 'transport ' || (opcode >> 5)) || ' ' ||
    coalesce(list_extract(['SEND first', 'SEND middle', 'SEND last', 'SEND last immediate', 'SEND only', 'SEND only immediate',
    'WRITE first', 'WRITE middle', 'WRITE last', 'WRITE last immediate', 'WRITE only', 'WRITE only immediate', 'READ request',
    'READ response first', 'READ response middle', 'READ response last', 'READ response only', 'ACK', 'ATOMIC ACK',
    'COMPARE SWAP', 'FETCH ADD', 'reserved', 'SEND last invalidate', 'SEND only invalidate'], (opcode & 31) + 1), 'opcode ' || (opcode & 31)) END"""

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
        Column("estimated_packets", "estimated_packets", "", "packets that they stand for at their sampling rate"),
        Column("bytes", "bytes", "bytes", "bytes on the wire"),
        Column("payload_bytes", "payload_bytes", "bytes", "application bytes"),
        Column("ce_ratio", "weft_ratio(ce_packets, ect_packets)", "", "congestion-marked share of the ECN-capable packets"),
        Column("naks", "naks", "", "negative acknowledgements"),
        Column("rnr_naks", "rnr_naks", "", "receiver-not-ready negative acknowledgements"),
        Column("psn_gaps", "psn_gaps", "", "times at which a queue pair's sequence jumped ahead"),
        Column("psn_missing", "psn_missing", "", "sequence numbers jumped over"),
        Column("psn_repeats", "psn_repeats", "", "packets seen before: retransmissions"),
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

QUALITY = View(
    "quality",
    "what the data of one entity lack in one window",
    """(SELECT coalesce(p.ts, q.ts) AS ts, coalesce(p.device, q.device) AS device, coalesce(p.port, q.port) AS port,
      coalesce(p.signal, q.signal) AS signal, coalesce(p.samples, 0) AS samples, p.coverage_ratio,
      coalesce(q.late, 0) AS late, coalesce(q.duplicates, 0) AS duplicates, coalesce(q.implausible, 0) AS implausible
    FROM (SELECT ts, device, port, signal, sum(samples) AS samples, sum(samples * interval_ns) / {ns} AS coverage_ratio
      FROM state.port_samples_{r} GROUP BY ALL) p
    FULL JOIN (SELECT ts, device, port, signal, sum(late)::UBIGINT AS late, sum(duplicates)::UBIGINT AS duplicates,
      sum(implausible)::UBIGINT AS implausible
      FROM state.quality_{r} GROUP BY ALL) q ON p.ts = q.ts AND p.device = q.device AND p.port = q.port AND p.signal = q.signal)""",
    (
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface"),
        Column("signal", "signal", "", "what is sampled"),
        Column("samples", "samples", "", "samples that count"),
        Column("coverage_ratio", "coverage_ratio", "", "share of the window that was sampled"),
        Column("late", "late", "", "samples that came after their window had closed; not counted"),
        Column("duplicates", "duplicates", "", "samples that had been there already; not counted"),
        Column("implausible", "implausible", "", "samples that cannot be; not counted"),
    ),
)

BURSTS = View(
    "bursts",
    "one row per burst",
    "state.bursts",
    (
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface"),
        Column("signal", "signal", "", "rx_bytes or tx_bytes"),
        Column("direction", "left(signal, 2)", "", "rx or tx"),
        Column("start_ts", "start_ts", "", "start of its first sample, UTC"),
        Column("duration_ns", "duration_ns", "ns", "its samples times their interval"),
        Column("bytes", "bytes", "bytes", "sum of its samples"),
        Column("peak_utilization_ratio", "peak / (speed_bps * interval_ns / 8e9)", "", "its largest sample against the line rate"),
        Column("mean_utilization_ratio", "bytes / (speed_bps * duration_ns / 8e9)", "", "all of it against the line rate"),
        Column("interval_ns", "interval_ns", "ns", "time that one sample covers"),
        Column("speed_bps", "speed_bps", "bit/s", "line rate"),
        Column("contention_max", "contention_max", "", "most ports of the device hot in one of its samples, itself included"),
        Column("ecn_bytes", "ecn_bytes", "bytes", "congestion-marked bytes in it; NULL where not sampled"),
        Column("retransmit_bytes", "retransmit_bytes", "bytes", "retransmitted bytes in it; NULL where not sampled"),
    ),
    resolutions=False,
)

SAMPLES = View(
    "samples",
    "the raw runs: what was sampled, for as long as the ring holds it",
    "state.samples",
    (
        Column("ts", "ts", "", "start of the first sample, UTC"),
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface"),
        Column("queue", "queue", "", "queue, empty for the port itself"),
        Column("signal", "signal", "", "what is sampled"),
        Column("interval_ns", "interval_ns", "ns", "time that one sample covers"),
        Column("speed_bps", "speed_bps", "bit/s", "line rate"),
        Column("values", '"values"', "bytes", "the samples in time order"),
    ),
    resolutions=False,
)

INVENTORY, DEVICES, LINKS = (
    View(name, doc, source, tuple(Column(*column) for column in columns), resolutions=False)
    for name, doc, source, columns in views_inventory.ALL
)


def _kept(name: str, table: str, doc: str, *columns: tuple[str, str]) -> View:
    return View(
        name, doc, f"state.{table}", tuple(Column(column, f'"{column}"', "", meaning) for column, meaning in columns), resolutions=False
    )


GAPS = _kept(
    "gaps",
    "gap",
    "admissions of loss",
    ("ts", "when, UTC"),
    ("source", "who admits it"),
    ("device", "switch or host"),
    ("what", "packets, samples, messages or rows"),
    ("from_sequence", "first missing number"),
    ("to_sequence", "last missing number"),
    ("missed", "how many"),
    ("reason", "why"),
)
EVENTS = _kept(
    "events",
    "event",
    "what happened",
    ("ts", "when, UTC"),
    ("source", "who tells it"),
    ("device", "switch or host"),
    ("port", "interface"),
    ("kind", "what"),
    ("reason", "why"),
    ("detail", "more"),
)
PIPELINE = _kept(
    "pipeline",
    "self_metric",
    "readings of Weft's own counters and gauges",
    ("ts", "when, UTC"),
    ("source", "service"),
    ("device", "host that it runs on"),
    ("name", "weft_<room>_<what>_<unit>"),
    ("label", "of what"),
    ("value", "the reading"),
)

VIEWS: tuple[View, ...] = (PORTS, LATENCY, ROCE, GROUPS, QUALITY, BURSTS, SAMPLES, INVENTORY, DEVICES, LINKS, GAPS, EVENTS, PIPELINE)


def statements() -> list[str]:
    """Return the statements that create every view at every resolution."""
    return [view.sql(resolution) for view in VIEWS for resolution in (RESOLUTIONS_NS if view.resolutions else ("",))]
