"""The queries of the Latency page: latency and RoCEv2 packets."""

from dataclasses import dataclass

from ....pipeline.tables.field import RESOLUTIONS_NS
from ...sql import Span, matches

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}

# Windows of the latency charts, fewer than the points of others because the histograms of all paths are merged.
POINTS_MAX = 400

PATHS_MAX = 200
OPERATIONS_MAX = 7


@dataclass(frozen=True, slots=True)
class Path:
    """The chosen paths; empty = all."""

    src: str = ""
    dst: str = ""
    kind: str = ""
    device: str = ""

    def where(self, *names: str) -> str:
        """Return the condition on a view that has the columns ``device`` and ``names``."""
        return matches(**{name: getattr(self, name) for name in ("device", *names)})


def addresses() -> str:
    """Every requester, responder and kind of latency sample, and where it was seen."""
    return """SELECT DISTINCT src, dst, kind, device FROM (
  SELECT src, dst, kind, device FROM state.latency_1h UNION ALL SELECT src, dst, '', device FROM state.roce_1h) ORDER BY ALL LIMIT 20000"""


def latency_summary(span: Span, path: Path) -> str:
    """The quantiles of a whole span in one row, in microseconds."""
    r = span.resolution(20)
    columns = ", ".join(f"{at(q)} / 1e3 AS {text_name(name)}" for name, q in QUANTILES.items())
    return f"""WITH {_merged(r, span, path, "")}
SELECT max(n)::BIGINT AS samples, {columns},
  (SELECT max(max_ns) / 1e3 FROM latency_{r} WHERE {span.inside(r)} AND {path.where("src", "dst", "kind")}) AS max_us
FROM cumulative"""


def latency_over_time(span: Span, path: Path) -> str:
    """The quantiles of each window over all chosen paths, in microseconds: histograms are added, not quantiles."""
    r = span.resolution(POINTS_MAX)
    columns = ", ".join(f"{at(q)} / 1e3 AS {text_name(name)}" for name, q in QUANTILES.items())
    return f"""WITH {_merged(r, span, path, "ts")}
SELECT epoch_ms(ts)::DOUBLE AS ms, max(n)::DOUBLE AS samples, {columns}
FROM cumulative GROUP BY ts ORDER BY ts"""


def latency_distribution(span: Span, path: Path) -> str:
    """The empirical distribution of a whole span, one row per bucket of the merged histogram."""
    r = span.resolution(20)
    return f"""WITH {_merged(r, span, path, "")}
SELECT weft_bucket_value(i) / 1e3 AS x, (upto / n)::DOUBLE AS share, (1 - (upto - c) / n)::DOUBLE AS beyond
FROM cumulative ORDER BY i"""


def latency_paths(span: Span, path: Path) -> str:
    """Each path of a span, the slowest first."""
    r = span.resolution(20)
    columns = ", ".join(f"{at(QUANTILES[name])} / 1e3 AS {text_name(name)}" for name in ("p50", "p99", "p99.9"))
    return f"""WITH {_merged(r, span, path, "src, dst, kind")}
SELECT src, dst, kind, max(n)::BIGINT AS samples, {columns},
  weft_ratio({at(0.99)}, {at(0.5)}) AS tail_ratio
FROM cumulative GROUP BY src, dst, kind ORDER BY {text_name("p99")} DESC LIMIT {PATHS_MAX}"""


def text_name(quantile: str) -> str:
    """Return the column of a quantile, such as p999_us."""
    return quantile.replace(".", "") + "_us"


def _merged(r: str, span: Span, path: Path, by: str) -> str:
    """The common tables that add histograms bucket by bucket within each group ``by`` and accumulate them."""
    keys = f"{by}, " if by else ""
    partition = f"PARTITION BY {by} " if by else ""
    return f"""buckets AS (
  SELECT {keys}b.i AS i, sum(b.c) AS c FROM (
    SELECT {keys}unnest(hist) AS b FROM latency_{r} WHERE {span.inside(r)} AND {path.where("src", "dst", "kind")})
  GROUP BY ALL
), cumulative AS (
  SELECT *, sum(c) OVER ({partition}ORDER BY i) AS upto, sum(c) OVER ({partition.strip()}) AS n FROM buckets
)"""


def at(q: float) -> str:
    """The bucket's value at which the accumulated counts come to a share q."""
    # The rank of ``weft_quantile``: the smallest value that at least a share q of the samples do not exceed.
    return f"weft_bucket_value(min(i) FILTER (upto >= greatest(ceil({q} * n - 1e-9), 1)))"


def roce_summary(span: Span, path: Path) -> str:
    """The packets of a whole span in one row."""
    r = span.resolution(20)
    return f"""SELECT sum(packets)::BIGINT AS packets, sum(bytes) / 1e6 AS megabytes,
  weft_ratio(sum(ce_packets), sum(ect_packets)) AS ce_ratio, sum(ect_packets)::BIGINT AS ect_packets,
  coalesce(sum(packets) FILTER (opcode = 129), 0)::BIGINT AS cnps, sum(naks)::BIGINT AS naks, sum(rnr_naks)::BIGINT AS rnr_naks,
  sum(psn_gaps)::BIGINT AS psn_gaps, sum(psn_missing)::BIGINT AS psn_missing, sum(psn_repeats)::BIGINT AS psn_repeats,
  weft_ratio(sum(credit_total), sum(credit_count)) AS credits_mean, min(credit_low) AS credits_min, max(credit_high) AS credits_max
FROM state.roce_{r} WHERE {span.inside(r)} AND {path.where("src", "dst")}"""


def operations(span: Span, path: Path) -> str:
    """Packets and bytes of each operation."""
    r = span.resolution(20)
    return f"""SELECT operation, sum(estimated_packets)::DOUBLE AS packets,
  sum(bytes)::DOUBLE AS bytes, sum(bytes) / sum(packets) AS bytes_per_packet
FROM roce_{r} WHERE {span.inside(r)} AND {path.where("src", "dst")} GROUP BY operation ORDER BY packets DESC LIMIT 24"""


def operations_over_time(span: Span, path: Path) -> str:
    """Packets per second of the most frequent operations; the rest together."""
    r = span.resolution(POINTS_MAX)
    seconds = RESOLUTIONS_NS[r] // 1_000_000_000
    condition = f"{span.inside(r)} AND {path.where('src', 'dst')}"
    return f"""WITH top AS (
  SELECT operation FROM roce_{r} WHERE {condition}
  GROUP BY operation ORDER BY sum(estimated_packets) DESC, operation LIMIT {OPERATIONS_MAX - 1}
), rates AS (
  SELECT ts, CASE WHEN operation IN (FROM top) THEN operation ELSE 'other' END AS series, sum(estimated_packets)::DOUBLE / {seconds} AS y
  FROM roce_{r} WHERE {condition} GROUP BY ALL
)
SELECT epoch_ms(ts)::DOUBLE AS ms, ms + {seconds * 1000} AS end_ms, series, y,
  sum(y) OVER (PARTITION BY ts ORDER BY series) - y AS low, sum(y) OVER (PARTITION BY ts ORDER BY series) AS high
FROM rates ORDER BY ms, series"""


def trouble_over_time(span: Span, path: Path) -> str:
    """Signs of congestion and loss in each window."""
    r = span.resolution(POINTS_MAX)
    return f"""UNPIVOT (
  SELECT epoch_ms(ts)::DOUBLE AS ms, sum(ce_packets)::DOUBLE AS "CE marks",
    coalesce(sum(packets) FILTER (opcode = 129), 0)::DOUBLE AS "CNP", sum(naks)::DOUBLE AS "NAK", sum(rnr_naks)::DOUBLE AS "RNR NAK",
    sum(psn_gaps)::DOUBLE AS "PSN gaps", sum(psn_repeats)::DOUBLE AS "PSN repeats"
  FROM state.roce_{r} WHERE {span.inside(r)} AND {path.where("src", "dst")} GROUP BY ts)
ON COLUMNS(* EXCLUDE ms) INTO NAME series VALUE y ORDER BY ms, series"""


def flows(span: Span, path: Path) -> str:
    """The packets of each pair of addresses."""
    r = span.resolution(20)
    return f"""SELECT src, dst, sum(packets)::BIGINT AS packets, sum(bytes) / 1e6 AS megabytes,
  weft_ratio(sum(payload_bytes), sum(bytes)) AS goodput_ratio,
  weft_ratio(sum(ce_packets), sum(ect_packets)) AS ce_ratio, sum(naks)::BIGINT AS naks, sum(psn_gaps)::BIGINT AS psn_gaps,
  sum(psn_missing)::BIGINT AS psn_missing, sum(psn_repeats)::BIGINT AS psn_repeats
FROM state.roce_{r} WHERE {span.inside(r)} AND {path.where("src", "dst")} GROUP BY src, dst ORDER BY packets DESC LIMIT {PATHS_MAX}"""
