"""The queries of the Congestion page: pauses, marks, drops, buffer occupancy, and failing links."""

from dataclasses import dataclass

from ...sql import Span, matches, weighted

HEAT_COLUMNS_MAX = 120
HEAT_ROWS_MAX = 24
ROWS_MAX = 200

# The measures of the heat map by their name in the URL: label, and SQL over several windows.
MEASURES = {
    "paused": ("paused by its peer", "max(pause_rx_ratio)"),
    "pausing": ("pausing its peer", "max(pause_tx_ratio)"),
    "marked": ("ECN-marked", weighted("ecn_mark_ratio", "packets")),
    "used": ("used of the line", "max(utilization)"),
    "dropped": ("dropped", weighted("drop_ratio", "drops + packets")),
}


@dataclass(frozen=True, slots=True)
class PortChoice:
    """The chosen device and port; empty = all."""

    device: str = ""
    port: str = ""

    def where(self) -> str:
        """Return the condition on any view with a device and a port."""
        return matches(device=self.device, port=self.port)


def bounds() -> str:
    """When counters of ports and queues begin and end."""
    return """SELECT epoch_ns(min(first)) AS first_ns, epoch_ns(max(last)) + 1000000000 AS end_ns FROM (
  SELECT min(ts) AS first, max(ts) AS last FROM state.queue_counters_1s
  UNION ALL SELECT min(ts), max(ts) FROM state.port_counters_1s)"""


def places() -> str:
    """Every port with counters of its own or of its queues."""
    return """SELECT DISTINCT device, port FROM (
  SELECT device, port FROM state.port_counters_1h UNION SELECT device, port FROM state.queue_counters_1h)
WHERE port <> '' ORDER BY device, port LIMIT 20000"""


def summary(span: Span, place: PortChoice) -> str:
    """The worst of everything in one row."""
    r = span.resolution(100)
    where = f"{span.inside(r)} AND {place.where()}"
    return f"""SELECT q.*, p.*, (
  SELECT count(*) FROM events WHERE kind = 'storm_start' AND {span.between("ts")} AND {place.where()}) AS storms
FROM (
  SELECT max(pause_rx_ratio) AS pause_rx_ratio, max(pause_tx_ratio) AS pause_tx_ratio,
    count(DISTINCT (device, port, queue)) FILTER (pause_rx_ratio > 0) AS paused, count(DISTINCT (device, port, queue)) AS queues,
    {weighted("ecn_mark_ratio", "packets")} AS ecn_mark_ratio,
    sum(drops)::BIGINT AS drops, {weighted("drop_ratio", "drops + packets")} AS drop_ratio,
    count(*) FILTER (pfc_before_ecn) AS pfc_before_ecn, max(watermark_max_bytes) AS watermark_max_bytes
  FROM queues_{r} WHERE {where}
) q, (
  SELECT max(prefec_ber) AS prefec_ber, sum(flaps)::BIGINT AS flaps, sum(discards)::BIGINT AS discards
  FROM ports_{r} WHERE {where}
) p"""


def heat(span: Span, measure: str, place: PortChoice) -> str:
    """One measure of the worst queues over time."""
    r = span.resolution(300)
    step = span.step_ns(HEAT_COLUMNS_MAX)
    step = max(step, {"1s": 10**9, "10s": 10**10, "1m": 6 * 10**10, "1h": 36 * 10**11}[r])
    return f"""WITH cells AS (
  SELECT device, port, queue, direction, epoch_ns(ts) // {step} AS slot, {MEASURES[measure][1]} AS ratio
  FROM queues_{r} WHERE {span.inside(r)} AND {place.where()} GROUP BY ALL HAVING ratio IS NOT NULL
), worst AS (
  SELECT device, port, queue, direction, avg(ratio) AS rank FROM cells GROUP BY ALL HAVING rank > 0
  ORDER BY rank DESC, device, port, queue, direction LIMIT {HEAT_ROWS_MAX}
)
SELECT concat_ws(' ', device, nullif(port, ''), 'q' || queue, direction) AS name, device, port, queue, direction,
  slot * {step / 1e6:g} AS ms, (slot + 1) * {step / 1e6:g} AS end_ms, ratio, rank
FROM worst JOIN cells USING (device, port, queue, direction) ORDER BY rank DESC, name, ms"""


def over_time(span: Span, place: PortChoice) -> str:
    """Marks, pauses and drops of all chosen queues together."""
    r = span.resolution(300)
    return f"""SELECT epoch_ms(ts)::DOUBLE AS ms,
  {weighted("ecn_mark_ratio", "packets")} AS marked,
  max(pause_rx_ratio) AS paused, max(pause_tx_ratio) AS pausing,
  {weighted("drop_ratio", "drops + packets")} AS dropped
FROM queues_{r} WHERE {span.inside(r)} AND {place.where()} GROUP BY ts ORDER BY ts"""


def buffers(span: Span, place: PortChoice) -> str:
    """The fullest buffer over time."""
    r = span.resolution(300)
    return f"""SELECT epoch_ms(ts)::DOUBLE AS ms, max(watermark_max_bytes)::DOUBLE AS watermark,
  max(occupancy_max_bytes)::DOUBLE AS occupancy, max(headroom_max_bytes)::DOUBLE AS headroom
FROM queues_{r} WHERE {span.inside(r)} AND {place.where()} GROUP BY ts
HAVING watermark IS NOT NULL OR occupancy IS NOT NULL OR headroom IS NOT NULL ORDER BY ts"""


def worst_queues(span: Span, place: PortChoice) -> str:
    """The queues with most pauses, then marks, then drops."""
    r = span.resolution(20)
    return f"""SELECT device, port, queue, direction, max(pause_rx_ratio) AS pause_rx_ratio, max(pause_tx_ratio) AS pause_tx_ratio,
  max(pause_mean_ns) / 1e3 AS pause_mean_us, arg_max(pause_by, ts) AS pause_by, max(storm_ratio) AS storm_ratio,
  {weighted("ecn_mark_ratio", "packets")} AS ecn_mark_ratio,
  sum(drops)::BIGINT AS drops, max(utilization) AS utilization, max(watermark_max_bytes) / 1e6 AS watermark_megabytes,
  max(delay_max_ns) / 1e3 AS delay_us, bool_or(pfc_before_ecn) AS pfc_before_ecn, max(quality) AS quality
FROM queues_{r} WHERE {span.inside(r)} AND {place.where()} GROUP BY device, port, queue, direction
ORDER BY coalesce(max(pause_rx_ratio), 0) + coalesce(max(pause_tx_ratio), 0) DESC, ecn_mark_ratio DESC NULLS LAST, drops DESC NULLS LAST,
  device, port, queue, direction LIMIT {ROWS_MAX}"""


def drops(span: Span, place: PortChoice) -> str:
    """Dropped packets by reason: counted by queues and ports, and reported one by one."""
    r = span.resolution(100)
    where = f"{span.inside(r)} AND {place.where()}"
    return f"""SELECT reason, sum(n)::BIGINT AS packets FROM (
  SELECT 'counted: queue full' AS reason, drops - coalesce(wred_drops, 0) AS n FROM queues_{r} WHERE {where}
  UNION ALL SELECT 'counted: early detection', wred_drops FROM queues_{r} WHERE {where}
  UNION ALL SELECT 'counted: port discards ' || direction, discards FROM ports_{r} WHERE {where}
  UNION ALL SELECT 'reported: ' || coalesce(nullif(reason, ''), 'no reason'), drops FROM drops_{r} WHERE {where}
) GROUP BY reason HAVING packets > 0 ORDER BY packets DESC, reason LIMIT 20"""


def links(span: Span, place: PortChoice) -> str:
    """The links that are failing: bit errors before and after correction, flaps, errors."""
    r = span.resolution(20)
    return f"""SELECT device, port, max(prefec_ber) AS prefec_ber, max(flr_predicted) AS flr_predicted, max(flr_observed) AS flr_observed,
  max(fec_max_bin) AS fec_max_bin, sum(flaps) FILTER (direction = 'rx')::BIGINT AS flaps, min(up_ratio) AS up_ratio,
  sum(errors)::BIGINT AS errors, sum(discards)::BIGINT AS discards, max(utilization_mean_ratio) AS utilization_mean_ratio,
  max(speed_bps) / 1e9 AS speed_gbps, max(source) AS source
FROM ports_{r} WHERE {span.inside(r)} AND {place.where()} AND source IS NOT NULL GROUP BY device, port
ORDER BY coalesce(sum(flaps), 0) DESC, prefec_ber DESC NULLS LAST, coalesce(sum(errors), 0) + coalesce(sum(discards), 0) DESC,
  device, port LIMIT {ROWS_MAX}"""


def events(span: Span, place: PortChoice) -> str:
    """Events, the newest first."""
    return f"""SELECT ts, device, port, kind, reason, detail, source FROM events
WHERE {span.between("ts")} AND {place.where()} ORDER BY ts DESC, device, port LIMIT {ROWS_MAX}"""
