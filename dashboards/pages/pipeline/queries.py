"""The queries of the Pipeline page: reports of services, recorded losses, quality of the data."""

from ...sql import Span, matches

# Points of a chart of reports, whose times are of Weft's own clock.
POINTS_MAX = 300

GAPS_MAX = 200

# Counters that should not grow.
_BAD = "(name LIKE '%dropped%' OR name LIKE '%errors%' OR name LIKE '%missed%' OR name LIKE '%late_ticks%' OR name LIKE '%outbox_dead%')"

# The label of a counter in a legend.
_TROUBLE = "source || ': ' || regexp_replace(name, '^weft_[a-z]+_(.*?)(_total)?$', '\\1') || coalesce(' ' || nullif(label, ''), '')"


def bounds() -> str:
    """When reports of services begin and end."""
    return "SELECT epoch_ns(min(ts)) AS first_ns, epoch_ns(max(ts)) + 1000000000 AS end_ns FROM pipeline"


def services(span: Span) -> str:
    """The newest report of each service: memory, processor, rows, drops, lag."""
    return f"""WITH reports AS (
  SELECT source, device, name, label, arg_max("value", ts) AS latest, max("value") - min("value") AS grown, max(ts) AS ts,
    (epoch_ns(max(ts)) - epoch_ns(min(ts))) / 1e9 AS span_s
  FROM pipeline WHERE {span.between("ts")} GROUP BY ALL
)
SELECT source, device AS host, max(ts) AS last_report,
  max(latest) FILTER (name = 'weft_process_resident_bytes') / 1e6 AS resident_megabytes,
  weft_ratio(max(grown) FILTER (name = 'weft_process_cpu_seconds_total'), max(span_s)) AS cpu_ratio,
  weft_ratio(sum(grown) FILTER (name LIKE '%\\_rows\\_total' ESCAPE '\\' AND name NOT LIKE '%dropped%'), max(span_s)) AS rows_per_s,
  max(latest) FILTER (name LIKE '%\\_lag\\_%' ESCAPE '\\') AS lag_messages,
  coalesce(sum(latest) FILTER {_BAD}, 0)::BIGINT AS troubles
FROM reports GROUP BY source, device ORDER BY source, host LIMIT 200"""


def rates(span: Span) -> str:
    """Rows per second through each service."""
    return _growth(span, "name LIKE '%\\_rows\\_total' ESCAPE '\\' AND name NOT LIKE '%dropped%'", "source")


def processors(span: Span) -> str:
    """Processor time of each service, in cores."""
    return _growth(span, "name = 'weft_process_cpu_seconds_total'", "source")


def troubles(span: Span) -> str:
    """Drops and errors per second, by kind."""
    return _growth(span, _BAD, _TROUBLE, "WHERE y > 0")


def _growth(span: Span, condition: str, series: str, where: str = "WHERE y IS NOT NULL") -> str:
    """The growth of counters per second. A counter that falls was reset, so its value has grown since."""
    step = max(1, span.width_ns // 1_000_000_000 // POINTS_MAX)
    return f"""WITH reports AS (
  SELECT source, device, name, label, time_bucket(INTERVAL {step} SECOND, ts::TIMESTAMP) AS ts, max(ts) AS seen, arg_max("value", ts) AS v
  FROM pipeline WHERE {span.between("ts")} AND {condition} GROUP BY ALL
), growth AS (
  SELECT source, name, label, seen, CASE WHEN v >= lag(v) OVER w THEN v - lag(v) OVER w WHEN lag(v) OVER w IS NOT NULL THEN v END
    / nullif((epoch_ns(seen) - epoch_ns(lag(seen) OVER w)) / 1e9, 0) AS y
  FROM reports WINDOW w AS (PARTITION BY source, device, name, label ORDER BY seen)
)
SELECT epoch_ms(seen)::DOUBLE AS ms, {series} AS series, sum(y)::DOUBLE AS y FROM growth {where} GROUP BY ALL ORDER BY ms, series"""


def gauges(span: Span, condition: str, series: str, scale: float = 1) -> str:
    """Gauges over time."""
    step = max(1, span.width_ns // 1_000_000_000 // POINTS_MAX)
    return f"""SELECT epoch_ms(max(ts))::DOUBLE AS ms, {series} AS series, arg_max("value", ts) / {scale:g} AS y
FROM pipeline WHERE {span.between("ts")} AND {condition}
GROUP BY time_bucket(INTERVAL {step} SECOND, ts::TIMESTAMP), series ORDER BY ms, series"""


def lags(span: Span) -> str:
    """How many messages each service has not read yet."""
    return gauges(span, "name LIKE '%\\_lag\\_%' ESCAPE '\\'", "source || coalesce(' ' || nullif(label, ''), '')")


def memory(span: Span) -> str:
    """Resident memory of each service, in MB."""
    return gauges(span, "name = 'weft_process_resident_bytes'", "source", 1e6)


def publishing(span: Span) -> str:
    """The duration of publishing a snapshot, in milliseconds."""
    return gauges(span, "name = 'weft_analyze_publish_seconds'", "source", 1e-3)


def gaps(device: str) -> str:
    """Recorded losses, the newest first."""
    return f"""SELECT ts, source, device, what, missed, reason, from_sequence, to_sequence FROM gaps
WHERE {matches(device=device)} ORDER BY ts DESC LIMIT {GAPS_MAX}"""


def gap_summary(device: str) -> str:
    """The total of recorded losses by kind and reason."""
    return f"""SELECT what, reason, count(*) AS admissions, sum(coalesce(missed, 0))::BIGINT AS missed, max(ts) AS last FROM gaps
WHERE {matches(device=device)} GROUP BY what, reason ORDER BY missed DESC LIMIT 50"""


def devices() -> str:
    """Every device."""
    return "SELECT device FROM devices WHERE last_ts IS NOT NULL ORDER BY device LIMIT 5000"


def quality(span: Span, device: str) -> str:
    """The completeness of the samples of each device, and the rejected ones."""
    r = span.resolution(100)
    return f"""SELECT device, port, signal, sum(samples)::BIGINT AS samples, avg(coverage_ratio) AS coverage_ratio,
  sum(late)::BIGINT AS late, sum(duplicates)::BIGINT AS duplicates, sum(implausible)::BIGINT AS implausible
FROM quality_{r} WHERE {span.inside(r)} AND {matches(device=device)}
GROUP BY device, port, signal ORDER BY sum(late + duplicates + implausible) DESC, avg(coverage_ratio), device, port, signal LIMIT 200"""
