"""Queries that several pages share; each function returns SQL with its values as literals."""

from .sql import Span, weighted

# The order in which the port to show is chosen. Ports sampled more slowly than every 10 ms show no microbursts and come last:
# their values cannot be compared with the others.
WORST_ORDER = (
    "sample_interval_ns > 10000000, burst_time_ratio DESC NULLS LAST, utilization_max_ratio DESC NULLS LAST, device, port, direction"
)


def samples_bounds() -> str:
    """When the samples of ports begin and end."""
    return "SELECT epoch_ns(min(ts)) AS first_ns, epoch_ns(max(ts)) + 1000000000 AS end_ns FROM state.port_samples_1s"


def packets_bounds() -> str:
    """When latency samples and packets begin and end."""
    return """SELECT epoch_ns(min(first)) AS first_ns, epoch_ns(max(last)) + 1000000000 AS end_ns FROM (
  SELECT min(ts) AS first, max(ts) AS last FROM state.latency_1s UNION ALL SELECT min(ts), max(ts) FROM state.roce_1s)"""


def worst_ports(span: Span, limit: int = 50, where: str = "true") -> str:
    """The ports with most time in bursts, each at the sampling interval that covers most of the span."""
    r = span.resolution(20)
    return f"""SELECT device, port, direction,
  {weighted("burst_time_ratio", "samples")} AS burst_time_ratio,
  sum(burst_count)::BIGINT AS bursts,
  {weighted("burst_bytes_ratio", "bytes")} AS burst_bytes_ratio,
  max(utilization_max_ratio) AS utilization_max_ratio,
  {weighted("utilization_mean_ratio", "samples")} AS utilization_mean_ratio,
  sum(bytes) / 1e9 AS gigabytes,
  {weighted("ce_ratio", "bytes")} AS ce_ratio,
  sample_interval_ns / 1e6 AS sample_ms,
  max(speed_bps) / 1e9 AS speed_gbps,
  sample_interval_ns, max(speed_bps) AS speed_bps
FROM ports_{r} WHERE {span.inside(r)} AND samples > 0 AND {where}
GROUP BY device, port, direction, sample_interval_ns
QUALIFY row_number() OVER (PARTITION BY device, port, direction ORDER BY sum(samples) * sample_interval_ns DESC) = 1
ORDER BY {WORST_ORDER} LIMIT {limit}"""
