"""The views of rows that are stored unchanged, and of the quality of the data."""

from .base import Column, View

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
        Column("ts", "ts", "", "start of the window, UTC"),
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface; for GPUs and scale-up links a name such as gpu0/3"),
        Column("signal", "signal", "", "the signal sampled; port, queue, nic, nvlink or gpu for counters and gauges"),
        Column("samples", "samples", "", "samples or counter samples that were used"),
        Column("coverage_ratio", "coverage_ratio", "", "share of the window that was sampled, or covered by the counters"),
        Column("late", "late", "", "samples or counter samples that arrived after their window was closed; not used"),
        Column("duplicates", "duplicates", "", "samples received twice; not used"),
        Column(
            "implausible",
            "implausible",
            "",
            "impossible samples, and counter samples whose delta exceeds the line rate; not used",
        ),
        Column("resets", "resets", "", "counter samples after a reset; the delta is unknown and not used"),
        Column("wraps", "wraps", "", "counter samples after a wrap; used"),
        Column("gaps", "gaps", "", "counter samples that came much later than usual; used"),
    ),
)

BURSTS = View(
    "bursts",
    "one row per burst",
    "state.bursts",
    (
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface"),
        Column("signal", "signal", "", "rx_bytes or tx_bytes"),
        Column("direction", "left(signal, 2)", "", "rx or tx"),
        Column("start_ts", "start_ts", "", "start of its first sample, UTC"),
        Column("duration_ns", "duration_ns", "ns", "its samples times their interval"),
        Column("bytes", "bytes", "bytes", "sum of its samples"),
        Column("peak_utilization_ratio", "peak / (speed_bps * interval_ns / 8e9)", "", "its largest sample against the line rate"),
        Column("mean_utilization_ratio", "bytes / (speed_bps * duration_ns / 8e9)", "", "mean of its samples against the line rate"),
        Column("interval_ns", "interval_ns", "ns", "time that one sample covers"),
        Column("speed_bps", "speed_bps", "bit/s", "line rate"),
        Column(
            "contention_max",
            "contention_max",
            "",
            "largest number of the device's ports in a burst in one of its intervals, itself included",
        ),
        Column("ecn_bytes", "ecn_bytes", "bytes", "congestion-marked bytes in it; NULL where not sampled"),
        Column("retransmit_bytes", "retransmit_bytes", "bytes", "retransmitted bytes in it; NULL where not sampled"),
    ),
    resolutions=False,
)

SAMPLES = View(
    "samples",
    "raw samples of the last minutes, one row per segment",
    "state.samples",
    (
        Column("ts", "ts", "", "start of the first sample, UTC"),
        Column("device", "device", "", "switch or host"),
        Column("port", "port", "", "interface"),
        Column("queue", "queue", "", "queue, empty for the port itself"),
        Column("signal", "signal", "", "what is sampled"),
        Column("interval_ns", "interval_ns", "ns", "time that one sample covers"),
        Column("speed_bps", "speed_bps", "bit/s", "line rate"),
        Column("values", '"values"', "bytes", "the samples in time order"),
    ),
    resolutions=False,
)


def _record(name: str, table: str, doc: str, *columns: tuple[str, str]) -> View:
    return View(
        name, doc, f"state.{table}", tuple(Column(column, f'"{column}"', "", meaning) for column, meaning in columns), resolutions=False
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
