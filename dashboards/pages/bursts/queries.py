"""The queries of the Bursts page: each function returns one as SQL, with its values as literals."""

from dataclasses import dataclass

from ....analytics.store.reader import SEGMENT_NS_MAX
from ....analytics.views import BLOCKS, PORTS
from ....pipeline.tables.field import RESOLUTIONS_NS
from ....pipeline.tables.states import STATES
from ...sql import Span, instant, text

# Points in the chart of one burst; with more samples than points, each point shows the largest of its samples.
MICROSCOPE_POINTS_MAX = 1500

BURSTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Entity:
    """One direction of one port, sampled at one interval."""

    device: str
    port: str
    direction: str
    interval_ns: int
    speed_bps: int | None = None

    def where(self) -> str:
        """Return the condition on a view of ports."""
        return (
            f"device = {text(self.device)} AND port = {text(self.port)} AND direction = {text(self.direction)}"
            f" AND sample_interval_ns = {self.interval_ns}"
        )

    def where_burst(self) -> str:
        """Return the condition on the view of bursts."""
        return self.where().replace("sample_interval_ns", "interval_ns")


def ports() -> str:
    """Every direction of every sampled port."""
    return """SELECT device, port, left(signal, 2) AS direction, interval_ns AS sample_interval_ns, max(speed_bps) AS speed_bps
FROM state.port_samples_1h WHERE signal IN ('rx_bytes', 'tx_bytes') AND queue = ''
GROUP BY ALL ORDER BY device, port, direction, sample_interval_ns LIMIT 20000"""


def utilization(span: Span, entity: Entity) -> str:
    """The same traffic at the sampling interval and as a mean of each window."""
    r = span.resolution()
    return f"""SELECT epoch_ms(ts)::DOUBLE AS ms, ms + {RESOLUTIONS_NS[r] // 1_000_000} AS end_ms,
  utilization_max_ratio, utilization_p99_ratio, utilization_mean_ratio
FROM ports_{r} WHERE {span.inside(r)} AND {entity.where()} ORDER BY ts"""


def bursts(span: Span, entity: Entity) -> str:
    """The largest bursts of a port."""
    return f"""SELECT start_ts, duration_ns / 1e6 AS duration_ms, bytes / 1e6 AS megabytes,
  peak_utilization_ratio, mean_utilization_ratio, contention_max,
  weft_ratio(ecn_bytes, bytes) AS ce_ratio, weft_ratio(retransmit_bytes, bytes) AS retransmit_ratio, epoch_ns(start_ts) AS start_ns
FROM bursts WHERE {span.between("start_ts")} AND {entity.where_burst()} ORDER BY bytes DESC, start_ts LIMIT {BURSTS_MAX}"""


def microscope(window: Span, entity: Entity, files: list[str]) -> str:
    """The raw samples of a short span, as utilisation: maximum and mean of each point, and the mean of the second."""
    points = -(-window.width_ns // entity.interval_ns)
    bin_ns = entity.interval_ns * max(1, -(-points // MICROSCOPE_POINTS_MAX))
    signal = f"{entity.direction}_bytes"
    second = 1_000_000_000
    # Files have the narrowest type for their samples, so types are unified too.
    source = f"read_parquet([{', '.join(text(file) for file in files)}], union_by_name = true)"
    wide = Span(window.from_ns // second * second, -(-window.to_ns // second) * second)
    return f"""WITH segments AS (
  SELECT epoch_ns(ts) AS start_ns, interval_ns, speed_bps, "values" FROM {source}
  WHERE device = {text(entity.device)} AND port = {text(entity.port)} AND signal = {text(signal)} AND queue = ''
    AND interval_ns = {entity.interval_ns} AND ts >= {instant(wide.from_ns - SEGMENT_NS_MAX)} AND ts < {instant(wide.to_ns)}
), samples AS (
  SELECT start_ns + (unnest(range(len("values"))) * interval_ns) AS t, unnest("values") / (speed_bps * interval_ns / 8e9) AS x FROM segments
), seconds AS (
  SELECT *, avg(x) OVER (PARTITION BY t // {second}) AS second_mean FROM samples WHERE t >= {wide.from_ns} AND t < {wide.to_ns}
)
SELECT min(t) / 1e6 AS ms, max(t) / 1e6 + {entity.interval_ns / 1e6:g} AS end_ms, (min(t) - {window.from_ns}) / 1e6 AS offset_ms,
  max(x) AS utilization_ratio, avg(x) AS mean_ratio, max(second_mean) AS second_mean_ratio
FROM seconds WHERE t >= {window.from_ns} AND t < {window.to_ns} GROUP BY t // {bin_ns} ORDER BY ms"""


def distributions(span: Span, where: str) -> str:
    """The empirical distributions of burst lengths, and of the gaps from a burst's end to the next start on the same port."""
    return f"""WITH b AS (
  SELECT duration_ns, epoch_ns(start_ts) - lag(epoch_ns(start_ts) + duration_ns) OVER
    (PARTITION BY device, port, direction, interval_ns ORDER BY start_ts) AS gap_ns
  FROM bursts WHERE {span.between("start_ts")} AND {where}
), x AS (
  SELECT 'length' AS what, duration_ns / 1e6 AS ms FROM b UNION ALL SELECT 'gap to the next', gap_ns / 1e6 FROM b WHERE gap_ns IS NOT NULL
)
SELECT what AS series, count(*) AS n, unnest(quantile_disc(ms, list_transform(range(0, 201), lambda k: k / 200))) AS x,
  unnest(list_transform(range(0, 201), lambda k: k / 200)) AS share
FROM x GROUP BY what ORDER BY series, share"""


_SKIPPED = (
    "ts",
    "device",
    "port",
    "direction",
    "hist",
    "profile",
    "quality",
    "ce_ratio",
    "retransmit_ratio",
    "coverage_ratio",
    "burst_gap_p50_ns",
)


def burst_metrics(span: Span, entity: Entity) -> str:
    """The burst metrics of a span in one row: the formulas of the view on the merged statistics of its windows."""
    r = span.resolution(100)
    table = STATES["port_samples"]
    columns = [column for column in PORTS.columns if column.sql and column.name not in _SKIPPED and "hist" not in column.sql]
    used = " ".join(column.sql for column in columns)
    merged = [field for field in table.fields if field.role in ("sum", "min", "max") and field.name in used]
    folded = ", ".join(f"{field.role}({field.name}) AS {field.name}" for field in merged)
    formulas = ",\n  ".join(f"{column.sql} AS {column.name}" for column in columns)
    return f"""WITH merged AS (
  SELECT interval_ns AS sample_interval_ns, max(speed_bps) AS speed_bps, {folded}
  FROM state.port_samples_{r}
  WHERE {span.inside(r)} AND device = {text(entity.device)} AND port = {text(entity.port)}
    AND signal = {text(entity.direction + "_bytes")} AND queue = '' AND interval_ns = {entity.interval_ns}
  GROUP BY interval_ns
)
SELECT
  {formulas}
FROM merged"""


def dispersion(span: Span, entity: Entity) -> str:
    """The index of dispersion by time scale, in powers of two."""
    pairs = ", ".join(f"({m * entity.interval_ns / 1e6:g}, idc_{m})" for m in BLOCKS)
    return f"""SELECT scale_ms AS x, idc AS y FROM (
{burst_metrics(span, entity)}
) m, LATERAL (VALUES {pairs}) ladder(scale_ms, idc) WHERE idc > 0 ORDER BY x"""
