"""The views of what exists: devices and their places, links and whether their ends agree.

The table has every statement; the view ``inventory`` has the valid ones. Rows of source ``inventory`` come as publications:
the newest complete one of an origin (``epoch``) is valid, and no older one. Of rows that a device reports one by one (its
LLDP neighbours), the last row of a key is valid. Places that are not stated are derived from names: rows of kind ``naming``
have patterns, and values in which ``\\1`` to ``\\9`` stand for their groups.
"""

from .base import Column, View, plain

PLACE = ("rack", "rail", "plane", "tier", "role")

# Sources that state what should be; the others report what is.
_STATED = "source IN ('inventory', 'recording')"

# The newest complete publication of each origin; the same row may have come several times.
_WHOLE = """(
    SELECT epoch, max(ts) AS ts FROM (
      SELECT epoch, ts, count(DISTINCT (kind, device, key)) AS found, max("rows") AS expected
      FROM {table} WHERE source = 'inventory' GROUP BY epoch, ts)
    WHERE found > expected GROUP BY epoch)"""

_INVENTORY = f"""(
  SELECT i.* FROM state.inventory i LEFT JOIN {_WHOLE.format(table="state.inventory")} w ON i.source = 'inventory' AND i.epoch = w.epoch
  WHERE (i.source IS DISTINCT FROM 'inventory' OR i.ts = w.ts) AND i.kind <> 'publication'
  QUALIFY row_number() OVER (PARTITION BY i.source, i.kind, i.device, i.key, CASE WHEN i.source = 'inventory' THEN i.epoch END
    ORDER BY i.ts DESC, i.recv_ts DESC) = 1)"""

# Rows of the hot table that can no longer be in the view: those of an older publication, and all but the last row of a key.
SUPERSEDED = f"""rowid NOT IN (
  SELECT i.rowid FROM base.inventory i LEFT JOIN {_WHOLE.format(table="base.inventory")} w ON i.source = 'inventory' AND i.epoch = w.epoch
  WHERE i.source IS DISTINCT FROM 'inventory' OR w.ts IS NULL OR i.ts >= w.ts
  QUALIFY row_number() OVER (PARTITION BY i.source, i.kind, i.device, i.key,
    CASE WHEN i.source = 'inventory' THEN {{epoch: i.epoch, ts: i.ts}} END ORDER BY i.ts DESC, i.recv_ts DESC) = 1)"""


def _named(names: str, text: str, keys: str, what: str) -> str:
    """Return the SELECT that derives places: of ``text`` in ``names``, by the first matching pattern of ``what``."""
    made = [f"nullif(TRY(regexp_replace({text}, '^(?:' || pattern || ')$', {column})), '')" for column in PLACE]
    columns = ", ".join(f"arg_min({sql}, key) AS {column}" for sql, column in zip(made, PLACE, strict=True))
    return f"""SELECT {keys}, {columns} FROM {names} n
    JOIN (SELECT key, pattern, {", ".join(f"{column} AS {column}" for column in PLACE)} FROM statements WHERE kind = 'naming' AND key LIKE '{what} %') p
      ON TRY(regexp_full_match({text}, pattern)) GROUP BY ALL"""


def _last(*columns: str) -> str:
    return ", ".join(f"arg_max({column}, ts) AS {column}" for column in columns)


# Links with the name of their other end as in the inventory: LLDP may report a host with its domain.
_REPORTED = """
    listed AS (SELECT DISTINCT device FROM statements WHERE kind IN ('device', 'port', 'link')),
    reported AS (
      SELECT l.*, CASE WHEN w.device IS NULL AND s.device IS NOT NULL THEN s.device ELSE l.peer_device END AS peer
      FROM statements l LEFT JOIN listed w ON w.device = l.peer_device LEFT JOIN listed s ON s.device = split_part(l.peer_device, '.', 1)
      WHERE l.kind = 'link' AND l.peer_device <> '')"""

# All names, and the place of each device: as stated, else derived from its name.
_PLACES = f"""
    stated AS (SELECT device, {_last(*PLACE)} FROM statements WHERE kind = 'device' GROUP BY device),
    named AS ({_named("names", "n.device", "n.device", "device")}),
    places AS (
      SELECT n.device, {", ".join(f"coalesce(s.{column}, m.{column}) AS {column}" for column in PLACE)}
      FROM names n LEFT JOIN stated s ON s.device = n.device LEFT JOIN named m ON m.device = n.device)"""

# The tables that show that a device is alive.
_HEARD = " UNION ALL BY NAME ".join(
    f"SELECT device, {ports} AS ports, min(ts) AS first_ts, max(ts) AS last_ts FROM state.{table}_1m GROUP BY device"
    for table, ports in (
        *((table, "count(DISTINCT port)") for table in ("port_samples", "port_counters", "nic_counters")),
        *((table, "0") for table in ("roce", "gpu_gauges")),
    )
)

_DEVICES = f"""(
  WITH statements AS MATERIALIZED (SELECT * FROM main.inventory),{_REPORTED},
    heard AS (
      SELECT device, max(ports) AS ports, min(first_ts) AS first_ts, max(last_ts) AS last_ts FROM ({_HEARD}) GROUP BY device),
    known AS (
      SELECT device, count(DISTINCT nullif(port, '')) AS known_ports FROM (
        SELECT device, CASE WHEN kind <> 'device' THEN key END AS port FROM statements WHERE kind IN ('device', 'port', 'link')
        UNION ALL SELECT peer, peer_port FROM reported)
      GROUP BY device),
    names AS (SELECT device FROM heard UNION SELECT device FROM known),{_PLACES}
  SELECT p.*, coalesce(h.ports, 0) AS ports, h.first_ts, h.last_ts, coalesce(k.known_ports, 0) AS known_ports, k.device IS NOT NULL AS known
  FROM places p LEFT JOIN heard h ON h.device = p.device LEFT JOIN known k ON k.device = p.device)"""

_LINKS = f"""(
  WITH statements AS MATERIALIZED (SELECT * FROM main.inventory),{_REPORTED},
    interfaces AS (SELECT device, key AS port, {_last("speed_bps", "rail", "plane", "alias")} FROM statements WHERE kind = 'port' GROUP BY device, key),
    aliases AS (SELECT device, alias, min(port) AS port FROM interfaces WHERE alias IS NOT NULL GROUP BY ALL),
    claims AS (
      SELECT t.device, coalesce(m.port, t.key) AS port, t.peer AS peer_device, coalesce(o.port, nullif(t.peer_port, '')) AS peer_port,
        {_STATED} AS is_stated, t.speed_bps, t.rail, t.plane, t.ts
      FROM reported t LEFT JOIN aliases m ON m.device = t.device AND m.alias = t.key
        LEFT JOIN aliases o ON o.device = t.peer AND o.alias = t.peer_port
      QUALIFY row_number() OVER (PARTITION BY t.device, coalesce(m.port, t.key), {_STATED} ORDER BY t.ts DESC) = 1),
    sides AS (
      SELECT device, port, peer_device, peer_port, is_stated, false AS is_other, speed_bps, rail, plane, ts FROM claims
      UNION ALL SELECT peer_device, peer_port, device, nullif(port, ''), is_stated, true, speed_bps, rail, plane, ts FROM claims
      WHERE peer_port IS NOT NULL),
    ends AS (
      SELECT device, port, {_last("speed_bps", "rail", "plane")},
        arg_max({{device: peer_device, port: peer_port}}, (NOT is_other, ts)) FILTER (is_stated) AS configured,
        arg_max({{device: peer_device, port: peer_port}}, (NOT is_other, ts)) FILTER (NOT is_stated) AS found,
        max(ts) FILTER (NOT is_stated) AS found_ts,
        count(DISTINCT peer_device) > 1 OR count(DISTINCT peer_port) > 1 AS torn, count(DISTINCT (is_stated, is_other)) AS witnesses
      FROM sides GROUP BY device, port),
    paired AS (SELECT *, coalesce(found, configured).device AS peer_device, coalesce(found, configured).port AS peer_port FROM ends),
    names AS (SELECT device FROM paired UNION SELECT peer_device FROM paired),{_PLACES},
    port_names AS ({_named("(SELECT device, port FROM ends)", "n.device || '/' || n.port", "n.device, n.port", "port")})
  SELECT e.device, e.port, e.peer_device, e.peer_port,
    coalesce(e.speed_bps, i.speed_bps, j.speed_bps) AS speed_bps, h.rack, p.rack AS peer_rack, h.tier, p.tier AS peer_tier,
    coalesce(e.rail, i.rail, j.rail, m.rail, n.rail, h.rail, p.rail) AS rail,
    coalesce(e.plane, i.plane, j.plane, m.plane, n.plane, h.plane, p.plane) AS plane,
    e.configured.device AS configured_device, e.configured.port AS configured_port,
    e.found.device AS found_device, e.found.port AS found_port, e.found_ts,
    CASE WHEN e.torn OR o.torn THEN false WHEN e.witnesses > 1 THEN true END AS agrees
  FROM paired e LEFT JOIN ends o ON o.device = e.peer_device AND o.port = e.peer_port
    LEFT JOIN interfaces i ON i.device = e.device AND i.port = e.port
    LEFT JOIN interfaces j ON j.device = e.peer_device AND j.port = e.peer_port
    LEFT JOIN port_names m ON m.device = e.device AND m.port = e.port
    LEFT JOIN port_names n ON n.device = e.peer_device AND n.port = e.peer_port
    LEFT JOIN places h ON h.device = e.device LEFT JOIN places p ON p.device = e.peer_device)"""


INVENTORY = View(
    "inventory",
    "what exists according to files and devices, one row for each object and source",
    _INVENTORY,
    (
        plain("kind", "device, port, link, job or naming"),
        plain("device", "switch or host"),
        plain("key", "its name; of a link, the port of the device, empty where unknown"),
        *(plain(name, name) for name in PLACE),
        plain("peer_device", "of a link, the other end"),
        plain("peer_port", "its port; NULL where unknown"),
        plain("job", "of a job, its name"),
        plain("speed_bps", "line rate", "bit/s"),
        plain("alias", "of a port, the other name by which its neighbours may know it"),
        plain("pattern", "of a naming, the pattern that the whole name must match"),
        plain("source", "inventory (a file), recording, or the collector to which the device reported it"),
        plain("epoch", "of source inventory, which publication"),
        plain("ts", "time of the statement, UTC"),
        plain("recv_ts", "time of its last repetition, UTC"),
    ),
    resolutions=False,
)

DEVICES = View(
    "devices",
    "every device that has data or is in the inventory",
    _DEVICES,
    (
        plain("device", "switch or host"),
        plain("ports", "ports with samples or counters"),
        plain("first_ts", "first minute with data, UTC; NULL where there are none"),
        plain("last_ts", "last minute with data, UTC; NULL where there are none"),
        plain("rack", "its rack; like the next four columns, NULL where neither stated nor derived from its name"),
        plain("rail", "rail that it serves"),
        plain("plane", "plane of the fabric that it is in"),
        plain("tier", "host, leaf, spine or core, or as its file says"),
        plain("role", "what it is, as its file says"),
        plain("known_ports", "ports in the inventory"),
        plain("known", "whether it is in the inventory"),
    ),
    resolutions=False,
)

LINKS = View(
    "links",
    "every end of every link: as configured, as reported by the devices, and whether both agree",
    _LINKS,
    (
        plain("device", "this end: switch or host"),
        plain("port", "its interface, empty where unknown"),
        plain("peer_device", "other end as reported by devices, else as configured"),
        plain("peer_port", "its interface; NULL where unknown"),
        plain("speed_bps", "line rate in the inventory", "bit/s"),
        plain("rack", "rack of this end"),
        plain("peer_rack", "rack of the other"),
        plain("rail", "rail: of the link, else of one of its ports, else of one of its devices"),
        plain("plane", "plane, found the same way"),
        plain("tier", "tier of this end"),
        plain("peer_tier", "tier of the other"),
        plain("configured_device", "other end according to files; NULL where none has it"),
        plain("configured_port", "its interface according to them"),
        plain("found_device", "other end according to LLDP; NULL where neither end reports one"),
        plain("found_port", "its interface according to LLDP"),
        plain("found_ts", "time of the last report by LLDP, UTC"),
        plain(
            "agrees",
            "false where two statements about this link contradict each other, true where they agree, NULL where there is only one",
        ),
    ),
    resolutions=False,
)

JOBS = View(
    "jobs",
    "which hosts a job runs on, one row for each",
    "main.inventory",
    (
        Column("job", "coalesce(job, key)", "its name"),
        plain("device", "host"),
        plain("role", "what the host does in it; NULL where unknown"),
        plain("source", "inventory (a file), recording, or a collector"),
        plain("ts", "time of the statement, UTC"),
    ),
    resolutions=False,
    where="kind = 'job'",
)
