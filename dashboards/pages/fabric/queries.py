"""The queries of the Fabric page: the places with most pressure, by several measures.

A place is one end of a link. Both ends measure the same wire, so a link has the value of its worse end, a switch that of its worst
link, and a host on one rail that of its worst link there. Values are those of the worst window of the span; shares of packets and
bytes are over the whole span.
"""

from dataclasses import dataclass

from ...sql import Span, text, weighted

ROWS_MAX = 200
# More links between switches than these are not drawn.
LINES_MAX = 600
# With more hosts than these the picture has a column for each rack.
HOSTS_MAX = 128

# One name for both ends of a link.
_AT, _TO = "(place.device || '/' || place.port)", "coalesce(place.to_device || '/' || place.to_port, place.device || '/' || place.port)"

# Tiers whose devices stand below the leaves.
_HOSTS = "('host', 'server', 'gpu', 'compute', 'storage')"


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of pressure: title with unit, number format, and the SQL of its value by device and port.

    ``full`` has the full colour, even where nothing is worse; a logarithmic scale begins at ``log_from``.
    """

    title: str
    doc: str
    form: str
    full: float
    value: str
    source: str
    page: str = "congestion"
    log_from: float = 0.0
    # Whether a value measured at one end of a link holds for the other.
    of_link: bool = True


# The measures by their name in the URL.
MEASURES = {
    "paused": Measure(
        "share of the time paused (PFC)",
        "worst window: share of the time in which pauses stopped the link, either way",
        ".1%",
        0.02,
        "max(greatest(pause_rx_ratio, pause_tx_ratio))",
        "queues_{r}",
    ),
    "marked": Measure(
        "share of the packets ECN-marked",
        "share of the packets that the queue marked congestion experienced",
        ".2%",
        0.01,
        weighted("ecn_mark_ratio", "packets"),
        "queues_{r}",
    ),
    "notified": Measure(
        "CNPs sent per gigabyte received",
        "congestion notifications that the adapter sent for each 10^9 bytes that it received",
        ",.0f",
        100,
        weighted("cnp_per_gigabyte", "rx_bytes"),
        "nics_{r}",
    ),
    "used": Measure(
        "largest utilisation of the line",
        "largest sample's share of the line; where there are no samples, the mean of the busiest window",
        ".0%",
        1,
        "coalesce(max(utilization_max_ratio), max(utilization_mean_ratio))",
        "ports_{r}",
        page="bursts",
    ),
    "lost": Measure(
        "packets dropped or sent again",
        "packets that queues or ports dropped or found broken, or that adapters sent again: the largest of the three",
        ",.0f",
        10,
        "greatest(sum(n) FILTER (who = 'queue'), sum(n) FILTER (who = 'port'), sum(n) FILTER (who = 'adapter'))::DOUBLE",
        """(SELECT ts, device, port, drops AS n, 'queue' AS who FROM queues_{r}
    UNION ALL SELECT ts, device, port, list_sum([discards, errors]), 'port' FROM ports_{r}
    UNION ALL SELECT ts, device, port, retransmits, 'adapter' FROM nics_{r})""",
    ),
    "latency": Measure(
        "p99 latency, µs",
        "worst window: p99 of the samples of the device, over all its ports",
        ",.1f",
        100,
        "max(p99_ns) / 1e3",
        "(SELECT ts, device, port, p99_ns FROM latency_{r} JOIN (SELECT DISTINCT device, port FROM links) USING (device))",
        page="latency",
        of_link=False,
    ),
    "errors": Measure(
        "bit errors before correction (BER)",
        "worst window: bit error ratio before forward error correction; RS(544,514) is specified for up to 2.4e-4",
        ".1e",
        2.4e-4,
        "max(nullif(prefec_ber, 0))",
        "ports_{r}",
        log_from=1e-9,
    ),
}


def bounds() -> str:
    """When the data of any measure begin and end."""
    tables = ("port_samples", "port_counters", "queue_counters", "nic_counters", "latency")
    each = " UNION ALL ".join(f"SELECT min(ts) AS first, max(ts) AS last FROM state.{table}_1s" for table in tables)
    return f"SELECT epoch_ns(min(first)) AS first_ns, epoch_ns(max(last)) + 1000000000 AS end_ns FROM ({each})"


def shape() -> str:
    """The number of hosts, switches, links, racks and jobs."""
    return f"""SELECT count(*) FILTER (is_host) AS hosts, count(*) FILTER (NOT is_host) AS switches, sum(ends)::BIGINT // 2 AS links,
  count(DISTINCT rack) FILTER (is_host) AS racks, (SELECT count(DISTINCT job) FROM jobs) AS jobs
FROM (
  SELECT device, any_value(rack) AS rack, lower(any_value(tier)) IN {_HOSTS} IS TRUE AS is_host, count(*) AS ends
  FROM links GROUP BY device)"""


def racks() -> str:
    """Every rack that has hosts."""
    return f"SELECT DISTINCT rack FROM links WHERE rack IS NOT NULL AND lower(tier) IN {_HOSTS} LIMIT 5000"


def gpus(span: Span) -> str:
    """The utilisation of the GPUs, and how many report it."""
    r = span.resolution(20)
    return f"""SELECT count(DISTINCT (device, gpu)) AS gpus, avg(sm_active_mean_ratio) AS sm_active_ratio,
  (SELECT max(utilization_ratio) FROM nvlinks_{r} WHERE {span.inside(r)}) AS nvlink_ratio
FROM gpus_{r} WHERE {span.inside(r)}"""


def _ends(span: Span, measure: str, rack: str) -> str:
    """Return the CTEs of every link end with the value of the worse end; of the hosts of one rack, if one is chosen."""
    r, chosen = span.resolution(20), MEASURES[measure]
    source = chosen.source.replace("{r}", r)
    other = (
        """LEFT JOIN measured o ON o.device = l.peer_device AND o.port = l.peer_port""",
        "greatest(m.value, o.value)",
        "coalesce(o.value > coalesce(m.value, -1), false)",
    )
    join, value, is_other = other if chosen.of_link else ("", "m.value", "false")
    within = f"WHERE l.rack = {text(rack)} OR (l.tier IS NULL OR lower(l.tier) NOT IN {_HOSTS})" if rack else ""
    return f"""WITH measured AS (
  SELECT device, port, {chosen.value} AS value
  FROM {source} WHERE {span.inside(r)} AND port <> '' GROUP BY device, port
), ends AS (
  SELECT l.device, l.port, l.peer_device, l.peer_port, coalesce(lower(l.tier), 'tier unknown') AS tier, l.rail, l.rack,
    lower(l.tier) IN {_HOSTS} IS TRUE AS is_host, lower(l.peer_tier) IN {_HOSTS} IS TRUE AS is_under, {value} AS value,
    CASE WHEN {is_other} THEN {{device: l.peer_device, port: l.peer_port, to_device: l.device, to_port: l.port}}
      ELSE {{device: l.device, port: l.port, to_device: l.peer_device, to_port: l.peer_port}} END AS place,
    min(l.peer_device) OVER (PARTITION BY l.device) AS above
  FROM links l LEFT JOIN measured m ON m.device = l.device AND m.port = l.port {join} {within}
)"""


def picture(span: Span, measure: str, rack: str, by_rack: bool) -> str:
    """Every host (or rack, where there are many hosts) on every rail and every switch, each with its worst link.

    Up to ``LINES_MAX``, also pairs of switches, which have a ``peer``.
    """
    column = "coalesce(rack, above)" if by_rack else "device"
    job = "NULL" if by_rack else "any_value(job)"
    return f"""{_ends(span, measure, rack)}, working AS (
  SELECT device, string_agg(DISTINCT job, ', ' ORDER BY job) AS job FROM jobs GROUP BY device
)
SELECT 'host' AS tier, {column} AS name, any_value(coalesce(rack, above)) AS stand, bool_or(rack IS NOT NULL) AS is_rack,
  coalesce(rail, port) AS rail, max(value) AS value, {job} AS job, count(DISTINCT device) AS members,
  arg_max(place, coalesce(value, -1)) AS worst
FROM ends LEFT JOIN working USING (device) WHERE is_host GROUP BY {column}, coalesce(rail, port)
UNION ALL BY NAME
SELECT tier, device AS name, max(value) AS value, count(*) AS members, arg_max(place, coalesce(value, -1)) AS worst
FROM ends WHERE NOT is_host GROUP BY tier, device
UNION ALL BY NAME
SELECT tier, device AS name, peer_device AS peer, max(value) AS value, count(*) AS members, arg_max(place, coalesce(value, -1)) AS worst
FROM ends WHERE NOT is_host AND NOT is_under AND device < peer_device GROUP BY tier, device, peer_device
QUALIFY count(*) OVER () <= {LINES_MAX}
ORDER BY tier, name, rail, peer"""


def worst(span: Span, measure: str, rack: str, count: int = ROWS_MAX) -> str:
    """The links with most pressure, each once, at the end that measured it; devices, for a measure of devices."""
    link = f"least({_AT}, {_TO}), greatest({_AT}, {_TO})" if MEASURES[measure].of_link else "device"
    return f"""{_ends(span, measure, rack)}
SELECT value, concat_ws(' ', place.device, place.port) AS "end",
  place.device AS device, place.port AS port, place.to_device AS peer_device, place.to_port AS peer_port, rail, rack,
  '/congestion?device=' || url_encode(place.device) || '&port=' || url_encode(place.port) AS congestion,
  '/bursts?device=' || url_encode(place.device) || '&port=' || url_encode(place.port) AS bursts,
  '/latency?device=' || url_encode(CASE WHEN is_under THEN ends.peer_device ELSE ends.device END) AS latency
FROM ends WHERE value > 0
QUALIFY row_number() OVER (PARTITION BY {link} ORDER BY value DESC, is_host DESC, ends.device, ends.port) = 1
ORDER BY value DESC, is_host DESC, ends.device, ends.port LIMIT {count}"""


def over_time(span: Span, measure: str, rack: str, count: int) -> str:
    """The measure of the worst places over time, one series per end that measured it."""
    r, chosen = span.resolution(300), MEASURES[measure]
    source = chosen.source.replace("{r}", r)
    keys = "device, port" if chosen.of_link else "device"
    return f"""WITH worst AS (
  {worst(span, measure, rack, count).replace(chr(10), chr(10) + "  ")}
)
SELECT epoch_ms(ts)::DOUBLE AS ms, concat_ws(' ', {keys}) AS series, {chosen.value} AS y
FROM {source} SEMI JOIN worst USING ({keys}) WHERE {span.inside(r)} GROUP BY ts, {keys} HAVING y IS NOT NULL ORDER BY series, ms"""
