"""The views of rows that are stored unchanged, and of the quality of the data."""

from .base import Column, View, plain

_LACKS = ("late", "duplicates", "implausible", "resets", "wraps", "gaps")

# The name of a scale-up link in ``quality``.
NVLINK_PLACE = "'gpu' || gpu || CASE WHEN link <> '' THEN '/' || link ELSE '' END"

# A union, grouped, is cheaper than a join, and a condition on the key is pushed down to every table.
_QUALITY_SOURCE = f"""(
  SELECT ts, device, port, signal, coalesce(sum(samples), 0) AS samples,
    coalesce(sum(sampled_ns) / {{ns}}, weft_share(max(covered_ns), {{ns}})) AS coverage_ratio,
    {", ".join(f"coalesce(sum({name}), 0)::UBIGINT AS {name}" for name in _LACKS)}
  FROM (
    SELECT ts, device, port, signal, samples, samples * interval_ns AS sampled_ns FROM state.port_samples_{{r}}
    UNION ALL BY NAME SELECT ts, device, port, 'port' AS signal, readings AS samples, covered_ns FROM state.port_counters_{{r}}
    UNION ALL BY NAME SELECT ts, device, port, 'queue' AS signal, readings AS samples, covered_ns FROM state.queue_counters_{{r}}
    UNION ALL BY NAME SELECT ts, device, port, 'nic' AS signal, readings AS samples, covered_ns FROM state.nic_counters_{{r}}
    UNION ALL BY NAME SELECT ts, device, {NVLINK_PLACE} AS port, 'nvlink' AS signal, readings AS samples, covered_ns FROM state.nvlink_counters_{{r}}
    UNION ALL BY NAME SELECT ts, device, 'gpu' || gpu AS port, 'gpu' AS signal, readings AS samples FROM state.gpu_gauges_{{r}}
    UNION ALL BY NAME SELECT ts, device, port, signal, {", ".join(_LACKS)} FROM state.quality_{{r}}
  ) GROUP BY ts, device, port, signal)"""

QUALITY = View(
    "quality",
    "completeness of the data of one port and signal in one window",
    _QUALITY_SOURCE,
    (
        plain("ts", "start of the window, UTC"),
        plain("device", "switch or host"),
        plain("port", "interface; of a GPU and its scale-up links, such as gpu0/3"),
        plain("signal", "what is sampled; port, queue, nic, nvlink or gpu where counters and gauges are read"),
        plain("samples", "samples, or counter samples, that count"),
        plain("coverage_ratio", "share of the window that was sampled, or covered by the counters"),
        plain("late", "samples or counter samples that came after their window had closed; not counted"),
        plain("duplicates", "samples received twice; not counted"),
        plain("implausible", "impossible samples, and counter samples that moved more than the line can carry; not counted"),
        plain("resets", "counter samples after a reset; the difference is unknown and not counted"),
        plain("wraps", "counter samples after a wrap; counted"),
        plain("gaps", "counter samples that come much later than usual; counted"),
    ),
)

BURSTS = View(
    "bursts",
    "one row per burst",
    "state.bursts",
    (
        plain("device", "switch or host"),
        plain("port", "interface"),
        plain("signal", "rx_bytes or tx_bytes"),
        Column("direction", "left(signal, 2)", "rx or tx"),
        plain("start_ts", "start of its first sample, UTC"),
        plain("duration_ns", "its samples times their interval", "ns"),
        plain("bytes", "sum of its samples", "bytes"),
        Column("peak_utilization_ratio", "peak / (speed_bps * interval_ns / 8e9)", "its largest sample against the line rate"),
        Column("mean_utilization_ratio", "bytes / (speed_bps * duration_ns / 8e9)", "mean of its samples against the line rate"),
        plain("interval_ns", "time that one sample covers", "ns"),
        plain("speed_bps", "line rate", "bit/s"),
        plain("contention_max", "most ports of the device hot in one of its samples, itself included"),
        plain("ecn_bytes", "congestion-marked bytes in it; NULL where not sampled", "bytes"),
        plain("retransmit_bytes", "retransmitted bytes in it; NULL where not sampled", "bytes"),
    ),
    resolutions=False,
)

SAMPLES = View(
    "samples",
    "raw samples of the last minutes, one row per segment",
    "state.samples",
    (
        plain("ts", "start of the first sample, UTC"),
        plain("device", "switch or host"),
        plain("port", "interface"),
        plain("queue", "queue, empty for the port itself"),
        plain("signal", "what is sampled"),
        plain("interval_ns", "time that one sample covers", "ns"),
        plain("speed_bps", "line rate", "bit/s"),
        Column("values", '"values"', "the samples in time order", "bytes"),
    ),
    resolutions=False,
)


def _record(name: str, table: str, doc: str, *columns: tuple[str, str]) -> View:
    return View(
        name, doc, f"state.{table}", tuple(Column(column, f'"{column}"', meaning) for column, meaning in columns), resolutions=False
    )


GAPS = _record(
    "gaps",
    "gap",
    "recorded losses of data",
    ("ts", "when, UTC"),
    ("source", "the collector or service that recorded it"),
    ("device", "switch or host"),
    ("what", "packets, samples, messages or rows"),
    ("from_sequence", "first missing number"),
    ("to_sequence", "last missing number"),
    ("missed", "how many are missing"),
    ("reason", "why"),
)
EVENTS = _record(
    "events",
    "event",
    "what happened",
    ("ts", "when, UTC"),
    ("source", "the collector"),
    ("device", "switch or host"),
    ("port", "interface"),
    ("kind", "what"),
    ("reason", "why"),
    ("detail", "more"),
)
PIPELINE = _record(
    "pipeline",
    "self_metric",
    "values of Weft's own counters and gauges",
    ("ts", "when, UTC"),
    ("source", "service"),
    ("device", "host that it runs on"),
    ("name", "weft_<room>_<what>_<unit>"),
    ("label", "what it refers to"),
    ("value", "its value"),
)
