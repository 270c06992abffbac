"""The queries of the Overview page: the state of ports, devices, latency and alerts."""

from ...queries import worst_ports
from ...sql import Span, instant, weighted

HEAT_COLUMNS_MAX = 120
HEAT_PORTS_MAX = 24

# Up to this width the heat map is drawn from the bursts themselves, finer than a window.
FINE_HEAT_NS_MAX = 120_000_000_000


def summary(span: Span) -> str:
    """The state of all ports in one row."""
    last = span.last(60)
    r = last.resolution()
    return f"""SELECT
  (SELECT count(DISTINCT device) FROM devices WHERE last_ts >= {instant(span.to_ns)} - INTERVAL 2 MINUTE) AS devices_heard,
  (SELECT count(DISTINCT device) FROM devices WHERE last_ts IS NOT NULL) AS devices,
  count(DISTINCT (device, port)) FILTER (samples > 0) AS ports,
  coalesce(sum(burst_count), 0)::BIGINT AS bursts,
  max(burst_time_ratio) AS burst_time_ratio,
  CASE WHEN min(burst_threshold_ratio) = max(burst_threshold_ratio) THEN max(burst_threshold_ratio) END AS burst_threshold_ratio
FROM ports_{r} WHERE {last.inside(r)}"""


def latency_p99(span: Span) -> str:
    """The p99 of all latency samples in the span, in microseconds."""
    r = span.resolution(20)
    return f"SELECT weft_quantile(weft_merge(list(hist)), 0.99) / 1e3 AS p99_us FROM latency_{r} WHERE {span.inside(r)}"


def heat(span: Span) -> str:
    """The share of the time in bursts of the worst ports, over time; from bursts for short spans, else from windows."""
    step = span.step_ns(HEAT_COLUMNS_MAX)
    fine = span.width_ns <= FINE_HEAT_NS_MAX
    return f"""WITH worst AS (
  {worst_ports(span, HEAT_PORTS_MAX).replace(chr(10), chr(10) + "  ")}
), cells AS (
  {(_fine_cells(span, step) if fine else _coarse_cells(span, step)).replace(chr(10), chr(10) + "  ")}
)
SELECT device || ' ' || port || ' ' || direction AS name, worst.device, worst.port, worst.direction,
  slot * {step / 1e6:g} AS ms, (slot + 1) * {step / 1e6:g} AS end_ms, cells.ratio, worst.burst_time_ratio AS rank
FROM worst JOIN cells USING (device, port, direction, sample_interval_ns) ORDER BY rank DESC, name, ms"""


def _fine_cells(span: Span, step: int) -> str:
    first, end = span.from_ns // step, (span.to_ns - 1) // step
    return f"""SELECT device, port, direction, interval_ns AS sample_interval_ns, slot,
  least(1, sum(least(end_ns, (slot + 1) * {step}) - greatest(start_ns, slot * {step})) / {step}) AS ratio
FROM (
  SELECT *, unnest(range(greatest({first}, start_ns // {step}), 1 + least({end}, (end_ns - 1) // {step}))) AS slot
  FROM (SELECT *, epoch_ns(start_ts) AS start_ns, epoch_ns(start_ts) + duration_ns AS end_ns FROM bursts WHERE {span.between("start_ts")})
)
GROUP BY ALL"""


def _coarse_cells(span: Span, step: int) -> str:
    r = span.resolution(HEAT_COLUMNS_MAX * 10)
    return f"""SELECT device, port, direction, sample_interval_ns, epoch_ns(ts) // {step} AS slot,
  {weighted("burst_time_ratio", "samples")} AS ratio
FROM ports_{r} WHERE {span.inside(r)} GROUP BY ALL"""


def freshness(span: Span) -> str:
    """The newest data of each device and their quality."""
    r = span.resolution(20)
    return f"""SELECT device, max(d.ports) AS ports, max(d.last_ts) AS last_minute,
  avg(coverage_ratio) AS coverage_ratio, coalesce(sum(late), 0)::BIGINT AS late,
  coalesce(sum(duplicates), 0)::BIGINT AS duplicates, coalesce(sum(implausible), 0)::BIGINT AS implausible
FROM devices d LEFT JOIN (SELECT * FROM quality_{r} WHERE {span.inside(r)}) q USING (device)
WHERE d.last_ts IS NOT NULL GROUP BY device ORDER BY device LIMIT 500"""


def alerts() -> str:
    """The alerts: firing ones first, by severity, then pending, then resolved ones."""
    return """SELECT state, severity, summary, device, port, value, starts_at, ends_at, path, rule, evidence_sql
FROM alerts ORDER BY (state = 'resolved')::INT, (state = 'pending')::INT,
  list_position(['critical', 'error', 'warning', 'info'], severity) NULLS LAST, starts_at DESC LIMIT 200"""


def alert_count() -> str:
    """How many alerts there are in each state."""
    return """SELECT count(*) FILTER (state IN ('firing', 'no_data', 'error')) AS firing, count(*) FILTER (state = 'pending') AS pending,
  count(*) FILTER (state = 'resolved') AS resolved, count(*) FILTER (state = 'firing' AND severity = 'critical') AS critical FROM alerts"""
