"""The view of ports: burst samples and counters of one port and direction side by side."""

from ...pipeline.tables.field import FEC_BINS, LADDER
from .base import SOURCE, Column, View, one_source, percent, plain, quantile

BLOCKS = (1, *LADDER)

# Index of dispersion for bytes counts in full-size frames, so that Poisson packets of that size give 1.
UNIT_BYTES = 1500

# Scales of the aggregated-variance Hurst estimate, in samples.
HURST_SCALES = tuple(m for m in BLOCKS if m <= 64)


def _blocks(m: int) -> tuple[str, str, str]:
    return ("samples", "total", "squares") if m == 1 else (f"blocks_{m}", f"block_total_{m}", f"block_squares_{m}")


def _idc(m: int) -> Column:
    n, total, squares = _blocks(m)
    sql = f"CASE WHEN {n} > 0 AND {total} > 0 THEN weft_variance({n}, {total}, {squares}) / ({total} / {n}) / {UNIT_BYTES} END"
    return Column(
        f"idc_{m}",
        sql,
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
_CER = "weft_ratio(c_fec_uncorrectable, c_fec_uncorrectable + c_fec_clean + c_fec_corrected)"


def _beside(name: str, signal: str) -> str:
    """Return the joins of a signal beside the bytes: ``name`` at their interval, ``name``_whole at any, for recordings of sums."""
    joins = []
    for alias, same in ((name, ("ts", "device", "port", "interval_ns")), (f"{name}_whole", ("ts", "device", "port"))):
        keys = " AND ".join(f"p.{key} = {alias}.{key}" for key in same)
        joins.append(f"""LEFT JOIN (SELECT {", ".join(same)}, signal, sum(total) AS total, sum(samples * interval_ns) AS sampled_ns FROM state.port_samples_{{r}}
    WHERE signal LIKE '%{signal}' AND queue = '' GROUP BY ALL) {alias} ON {keys} AND {alias}.signal = left(p.signal, 2) || '{signal}'""")
    return "\n  ".join(joins)


def _all_of(name: str) -> str:
    """Return the total of what was sampled beside the bytes; NULL unless it covers the same time, within 1 %."""
    sampled_ns, total = (f"coalesce({name}.{column}, {name}_whole.{column})" for column in ("sampled_ns", "total"))
    return f"CASE WHEN abs({sampled_ns} / (p.samples * p.interval_ns) - 1) <= 0.01 THEN {total} END"


_SAMPLES = f"""SELECT p.*, p.interval_ns AS sample_interval_ns, left(p.signal, 2) AS direction,
    {_all_of("ecn")} AS ecn_total, {_all_of("retransmit")} AS retransmit_total
  FROM state.port_samples_{{r}} p
  {_beside("ecn", "_ecn_bytes")}
  {_beside("retransmit", "_retransmit_bytes")}
  WHERE p.signal IN ('rx_bytes', 'tx_bytes') AND p.queue = ''"""

# Some counters exist for one direction only: a receiver corrects errors, and a queue marks what it sends.
_OF_SIDE = {
    "bytes": ("rx_bytes", "tx_bytes"),
    "bytes_covered_ns": ("rx_covered_ns", "tx_covered_ns"),
    "covered_bytes": ("[rx_bytes where rx_covered_ns]", "[tx_bytes where tx_covered_ns]"),
    "packets": ("rx_packets", "tx_packets"),
    "discards": ("rx_discards", "tx_discards"),
    "errors": ("rx_errors", "tx_errors"),
    "pause_frames": ("rx_pause_frames", "tx_pause_frames"),
    "ecn_marked_packets": ("NULL", "ecn_marked_packets"),
    "fec_corrected": ("[fec_corrected where fec_uncorrectable]", "NULL"),
    "fec_clean": ("[fec_bin_0 where fec_uncorrectable]", "NULL"),
    "fec_uncorrectable": ("fec_uncorrectable", "NULL"),
    "corrected_bits": ("[corrected_bits where fec_covered_ns]", "NULL"),
    **{f"fec_bin_{k}": (f"fec_bin_{k}", "NULL") for k in range(FEC_BINS)},
}
_OF_PORT = ("source", "readings", "covered_ns", "fec_covered_ns", "flaps", "up_ns", "down_ns", "speed_bps")


_KEY = ("ts", "device", "port", "direction")


def _same(left: str, right: str) -> str:
    return " AND ".join(f"{left}.{name} = {right}.{name}" for name in _KEY)


_COUNTERS = f"""SELECT ts, device, port, direction, {", ".join(f"{name} AS c_{name}" for name in _OF_PORT)},
    {", ".join(f"CASE direction WHEN 'rx' THEN {rx} ELSE {tx} END AS c_{name}" for name, (rx, tx) in _OF_SIDE.items())}
  FROM {one_source("port_counters", "device, port", ("rx_bytes", "rx_packets", "rx_errors", "corrected_bits", "up_ns"))},
    (VALUES ('rx'), ('tx')) AS directions(direction)"""

# A union instead of a full join, so that a condition on the key is pushed down to every table.
_PORTS_SOURCE = f"""(
  SELECT s.*, c.* EXCLUDE ({", ".join(_KEY)}) FROM ({_SAMPLES}) s LEFT JOIN ({_COUNTERS}) c ON {_same("s", "c")}
  UNION ALL BY NAME
  SELECT c.* FROM ({_COUNTERS}) c ANTI JOIN (
    SELECT ts, device, port, left(signal, 2) AS direction FROM state.port_samples_{{r}}
    WHERE signal IN ('rx_bytes', 'tx_bytes') AND queue = ''
  ) s ON {_same("c", "s")})"""

_BINS = f"[{', '.join(f'c_fec_bin_{k}' for k in range(FEC_BINS))}]"


def _counted(name: str, doc: str, unit: str = "", sql: str = "") -> Column:
    return Column(name, "", doc, unit, sql or f"c_{name}")


PORTS = View(
    "ports",
    "one port and direction in one window, from its burst samples and its counters",
    _PORTS_SOURCE,
    (
        plain("ts", "start of the window, UTC"),
        plain("device", "switch or host"),
        plain("port", "interface"),
        plain("direction", "rx or tx, as the port's owner sees it"),
        plain("sample_interval_ns", "time that one sample covers; burst figures of different intervals do not compare", "ns"),
        Column("speed_bps", "speed_bps", "line rate", "bit/s", counters="c_speed_bps"),
        plain("samples", "samples in the window"),
        Column("coverage_ratio", "samples * sample_interval_ns / {ns}", "share of the window that was sampled"),
        Column(
            "quality",
            "CASE WHEN samples * sample_interval_ns >= 0.999 * {ns} THEN 'ok' WHEN samples > 0 THEN 'partial' END",
            """ok; partial where less than 99.9 % of the window was sampled or, without samples, the counters cover less than 90 %
 of it; coarse where, without samples, their intervals are longer than the window""".replace("\n", ""),
            counters="CASE WHEN c_covered_ns < 0.9 * {ns} THEN 'partial' WHEN c_covered_ns > 2 * {ns} THEN 'coarse' ELSE 'ok' END",
        ),
        Column("bytes", "total", "bytes in all samples; without samples from the counters", "bytes", counters="c_bytes"),
        Column(
            "utilization_mean_ratio",
            f"total / samples / {_CAPACITY}",
            "mean utilisation of the line over the samples; without samples over the time covered by the counters",
            counters="c_covered_bytes * 8e9 / c_speed_bps / nullif(c_bytes_covered_ns, 0)",
        ),
        *(
            Column(
                f"utilization_{percent(q)}_ratio",
                f"({quantile(q)}) / {_CAPACITY}",
                f"{q:g} quantile of the samples' utilisation, within 1 %",
            )
            for q in (0.50, 0.90, 0.99, 0.999)
        ),
        Column("utilization_max_ratio", f"high / {_CAPACITY}", "largest sample's utilisation"),
        Column("burst_count", "bursts", "bursts that start in the window: consecutive samples above the burst threshold"),
        Column(
            "burst_threshold_ratio",
            "threshold_ratio",
            "burst threshold over the line rate; of several the largest, NULL where an older version stored the window",
        ),
        Column("burst_time_ratio", "hot / samples", "share of the samples that are in bursts"),
        Column("burst_bytes", "hot_total", "bytes in bursts", "bytes"),
        Column("burst_bytes_ratio", "weft_ratio(hot_total, total)", "share of the bytes that are in bursts"),
        Column(
            "burst_gap_mean_ns", "weft_ratio(gap_total * sample_interval_ns, gaps)", "mean time from a burst's end to the next start", "ns"
        ),
        Column("burst_gap_p50_ns", "gap_hist_p50 * sample_interval_ns", "median of it, within 1 %", "ns"),
        Column(
            "clustering_ratio",
            f"CASE WHEN hot_hot + hot_cold > 0 AND cold_hot > 0 THEN {_P11} / {_P01} END",
            "p(hot after hot) / p(hot after cold); 1 = independent",
        ),
        Column(
            "burstiness_cv",
            "CASE WHEN total > 0 THEN sqrt(weft_variance(samples, total, squares)) / (total / samples) END",
            "standard deviation of the samples over their mean",
        ),
        Column("peak_to_mean", "CASE WHEN total > 0 THEN high * samples / total END", "largest sample over the mean"),
        *(_idc(m) for m in BLOCKS),
        Column(
            "hurst",
            _hurst(),
            "Hurst exponent by aggregated variance over 1 to 64 samples; 0.5 = no memory. Periodic traffic is not self-similar: look for a period first",
        ),
        Column(
            "goh_barabasi",
            f"CASE WHEN tau_count > 1 THEN ({_TAU_R} - 1) / ({_TAU_R} + 1) END",
            "burstiness B of the times between burst starts: -1 periodic, 0 Poisson, 1 bursty",
        ),
        Column(
            "goh_barabasi_finite",
            f"CASE WHEN tau_count > 1 THEN (sqrt(tau_count + 1) * {_TAU_R} - sqrt(tau_count - 1)) / ((sqrt(tau_count + 1) - 2) * {_TAU_R} + sqrt(tau_count - 1)) END",
            "the same corrected for few events (Kim and Jo, 2016)",
        ),
        Column(
            "memory",
            """CASE WHEN pair_count > 1 AND weft_variance(pair_count, pair_x, pair_xx) > 0 AND weft_variance(pair_count, pair_y, pair_yy) > 0 THEN
            (pair_count::HUGEINT * pair_xy::HUGEINT - pair_x::HUGEINT * pair_y::HUGEINT)::DOUBLE / (pair_count::DOUBLE * pair_count)
            / sqrt(weft_variance(pair_count, pair_x, pair_xx) * weft_variance(pair_count, pair_y, pair_yy)) END""",
            "correlation of consecutive times between burst starts; above 0: bursts of bursts",
        ),
        Column(
            "ce_ratio",
            "weft_ratio(ecn_total, total)",
            "congestion-marked share of the received bytes; NULL where not sampled for the same time",
        ),
        Column(
            "retransmit_ratio",
            "weft_ratio(retransmit_total, total)",
            "retransmitted share of the bytes; NULL where not sampled for the same time",
        ),
        plain("hist", "histogram of the samples, for weft_quantile and weft_merge", "bytes"),
        plain("profile", "bytes in each 10 ms of the window; at 1 s only", "bytes"),
        _counted("packets", "packets, from the counters"),
        _counted("discards", "packets discarded, from the counters"),
        _counted("errors", "packets in error, from the counters"),
        _counted(
            "prefec_ber",
            "bits that FEC corrected over the bits that the line carries at its rate; rx only",
            sql="c_corrected_bits * 1e9 / c_speed_bps / nullif(c_fec_covered_ns, 0)",
        ),
        _counted("cer", "share of the codewords that FEC could not correct; rx only", sql=_CER),
        _counted(
            "flr_observed",
            "frame loss ratio that follows from it (IEEE 802.3: interleaving of codewords)",
            sql=f"weft_flr({_CER}, c_speed_bps)",
        ),
        _counted(
            "flr_predicted",
            "the same by a straight line through the logarithm of the codewords with 1 to 15 symbol errors; rx only",
            sql=f"weft_flr(weft_cer_predicted({_BINS}), c_speed_bps)",
        ),
        _counted(
            "fec_max_bin",
            "most symbol errors in one codeword, which is lost above 15; rises before the first loss; rx only",
            sql="greatest(" + ", ".join(f"CASE WHEN c_fec_bin_{k} > 0 THEN {k} END" for k in range(FEC_BINS)) + ")",
        ),
        _counted("flaps", "changes of the link's state, either way"),
        _counted("up_ratio", "share of the time in which the link was up", sql="weft_ratio(c_up_ns, c_up_ns + c_down_ns)"),
        _counted("ecn_marked_packets", "packets marked congestion experienced; tx only"),
        _counted("pause_frames", "pause frames of the port, not of a priority"),
        _counted("counter_bytes", "bytes from the counters, also where there are samples", "bytes", sql="c_bytes"),
        _counted(
            "counter_covered_ratio",
            "time covered by the counters over the window: intervals count where they end, so above 1 where they are longer than it",
            sql="c_covered_ns / {ns}",
        ),
        Column("source", "", SOURCE.doc, counters="c_source"),
    ),
)
