"""Finds the place of a demo's fault in the store without knowing it: the device or port with the strongest symptom of that kind of fault.

Each query ranks all devices or ports by one symptom over a span of time, the worst first: columns ``device``, ``port`` (or NULL) and
``value``. Both ends of a link show the same problem, so a port and its peer count as one place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...analytics.store.light_reader import RowQuery, light_reader

_LINKED = "JOIN links l ON l.device = t.device AND l.port = t.port"
_FAR_END = f"{_LINKED} JOIN ports_1s r ON r.ts = t.ts AND r.device = l.peer_device AND r.port = l.peer_port AND r.direction = 'rx'"
_SPAN = "ts >= $from AND ts < $to"
_T_SPAN = "t.ts >= $from AND t.ts < $to AND t.direction = 'tx'"

PAUSED = f"""SELECT device, port, avg(pause_rx_ratio) AS value FROM queues_1s
WHERE {_SPAN} AND direction = 'tx' GROUP BY ALL"""
QUEUED = f"SELECT device, port, avg(watermark_max_bytes) AS value FROM queues_1s WHERE {_SPAN} AND direction = 'tx' GROUP BY ALL"
MARKED_MORE = """SELECT device, NULL AS port, avg(marked) FILTER (ts >= $from) - avg(marked) FILTER (ts < $from) AS value FROM (
  SELECT ts, device, sum(ecn_marked_packets) AS marked FROM queues_1s WHERE ts < $to AND direction = 'tx' GROUP BY ALL) GROUP BY ALL"""
MARKED_LATE = f"""SELECT device, NULL AS port, sum(paused) AS value FROM (
  SELECT ts, device, sum(pause_tx_ratio) AS paused, sum(ecn_marked_packets) AS marked FROM queues_1s
  WHERE {_SPAN} AND direction = 'tx' GROUP BY ALL) WHERE marked = 0 GROUP BY ALL"""
DROPPED = f"SELECT device, NULL AS port, sum(drops) AS value FROM queues_1s WHERE {_SPAN} AND direction = 'tx' GROUP BY ALL"
WRONG_BITS = f"SELECT device, port, max(prefec_ber) AS value FROM ports_1s WHERE {_SPAN} AND direction = 'rx' GROUP BY ALL"
FLAPS = f"SELECT device, port, sum(flaps) AS value FROM ports_1s WHERE {_SPAN} AND direction = 'rx' GROUP BY ALL"
DOWN = f"SELECT device, port, avg(1 - up_ratio) AS value FROM ports_1s WHERE {_SPAN} AND direction = 'rx' GROUP BY ALL"
VANISHED = f"""SELECT t.device, t.port, 1 - sum(r.counter_bytes) / sum(t.counter_bytes) AS value FROM ports_1s t {_FAR_END}
WHERE {_T_SPAN} AND r.source = t.source AND t.counter_bytes > 0 GROUP BY ALL"""
FROZEN = f"""SELECT t.device, NULL AS port, sum(r.counter_bytes) AS value FROM ports_1s t {_FAR_END}
WHERE {_T_SPAN} AND r.source = t.source AND t.counter_bytes = 0 AND r.counter_bytes > 0 GROUP BY ALL"""
UNEVEN = f"""SELECT t.device, NULL AS port, avg(uneven) AS value FROM (
  SELECT t.ts, t.device, max(t.bytes) / avg(t.bytes) AS uneven FROM ports_1s t {_LINKED} JOIN devices d ON d.device = l.peer_device
  WHERE {_T_SPAN} AND l.tier = 'leaf' AND d.tier = 'spine' GROUP BY ALL HAVING avg(t.bytes) > 0) t GROUP BY ALL"""
GROWN = """SELECT device, NULL AS port, avg(sent) FILTER (ts >= $from) / avg(sent) FILTER (ts < $from) AS value FROM (
  SELECT ts, device, sum(bytes) AS sent FROM ports_1s JOIN devices USING (device)
  WHERE ts < $to AND tier = 'host' AND direction = 'tx' GROUP BY ALL) GROUP BY ALL"""
# Relative to the seconds in which any device of the tier was sampled.
_SAMPLED = f"""SELECT * FROM ports_1s JOIN devices USING (device)
WHERE {_SPAN} AND direction = 'tx' AND coverage_ratio IS NOT NULL AND tier <> 'host'"""
MISSING = f"""SELECT device, NULL AS port, 1 - sum(coverage_ratio) / count(DISTINCT port) / any_value(seconds) AS value FROM ({_SAMPLED})
JOIN (SELECT tier, count(DISTINCT ts) AS seconds FROM ({_SAMPLED}) GROUP BY ALL) USING (tier) GROUP BY ALL"""


def _shift(later: str, earlier: str) -> str:
    """Return the query for the change of the distance between two timestamps of a device's samples, in seconds."""
    apart = f"avg(epoch_ns({later}) - epoch_ns({earlier}))"
    value = f"({apart} FILTER (ts >= $from) - {apart} FILTER (ts < $from)) / 1e9"
    return f"SELECT device, NULL AS port, {value} AS value FROM state.samples WHERE ts < $to GROUP BY ALL"


def _quality(name: str) -> str:
    return f"SELECT device, NULL AS port, sum({name}) AS value FROM quality_1s WHERE {_SPAN} GROUP BY ALL"


@dataclass(frozen=True, slots=True)
class Symptom:
    """The symptom of a kind of fault: a query that ranks places, a text for its value, and the rules that detect it."""

    query: str
    text: str
    rules: tuple[str, ...] = ()


SYMPTOMS: dict[str, Symptom] = {
    "slow_nic": Symptom(PAUSED, "paused {:.1%} of the time", ("queue-paused",)),
    "pause_storm": Symptom(PAUSED, "paused {:.1%} of the time", ("queue-paused",)),
    "incast": Symptom(QUEUED, "{:,.0f} bytes in its queue at the most, on average", ("queue-full", "queue-paused")),
    "ecn_thresholds": Symptom(MARKED_LATE, "{:.3f} port seconds of pauses in seconds without a mark", ("marks-too-late",)),
    "pfc_off": Symptom(DROPPED, "{:,.0f} packets dropped", ("queue-drops",)),
    "dirty_fibre": Symptom(WRONG_BITS, "bit error ratio {:.1e} before correction", ("fec-margin",)),
    "link_flap": Symptom(FLAPS, "{:.0f} changes of the link's state", ("link-flap", "queue-drops")),
    "rail_down": Symptom(DOWN, "down {:.0%} of the time", ("link-down", "link-flap")),
    "hash_polarization": Symptom(UNEVEN, "busiest uplink {:.2f} times the mean"),
    "few_qps": Symptom(UNEVEN, "busiest uplink {:.2f} times the mean"),
    "cyclic_buffers": Symptom(MARKED_MORE, "marks {:,.0f} packets a second more than before"),
    "noisy_neighbour": Symptom(GROWN, "sends {:.2f} times what it sent before"),
    "silent_loss": Symptom(VANISHED, "{:.2%} of what it sent did not arrive", ("bytes-vanish",)),
    "frozen_counter": Symptom(FROZEN, "does not report {:,.0f} bytes that its neighbours received", ("counters-frozen",)),
    "counter_reset": Symptom(_quality("resets"), "{:.0f} counters restarted", ("counters-reset",)),
    "lossy_collector": Symptom(MISSING, "{:.0%} of its samples are missing", ("readings-missing", "samples-missing")),
    "late_collector": Symptom(_shift("recv_ts", "ts"), "samples come {:.2f} s later than they did"),
    "skewed_clock": Symptom(_shift("ts", "recv_ts"), "its clock is {:.2f} s further ahead than it was"),
}


@dataclass(frozen=True, slots=True)
class RecordedFault:
    """A fault of the ground truth; time in UTC nanoseconds."""

    kind: str
    place: str
    begin_ns: int


@dataclass(frozen=True, slots=True)
class FaultFinding:
    """The place with the strongest symptom; ``is_it``: whether the fault is there, ``None`` if it has no single place."""

    device: str
    port: str
    text: str
    is_it: bool | None

    @property
    def place(self) -> str:
        return f"{self.device}/{self.port}" if self.port else self.device


class Fired(NamedTuple):
    """An alert that fires or has fired."""

    rule: str
    summary: str
    fired_ns: int


def injected(data: Path) -> list[RecordedFault]:
    """Return the faults of the ground truth in a demo's folder, none before it is written."""
    files = [str(path) for path in sorted((data / "lab" / "truth" / "faults").glob("*.parquet"))]
    if not files:
        return []
    with light_reader() as query:
        return [RecordedFault(*row) for row in query("SELECT kind, place, begin_ts FROM read_parquet(?) ORDER BY begin_ts", [files])]


def find(query: RowQuery, fault: RecordedFault) -> FaultFinding | None:
    """Return the place with the strongest symptom since the fault's begin; ``None`` if no place has it."""
    symptom = SYMPTOMS.get(fault.kind)
    if symptom is None:
        return None
    begin_s = fault.begin_ns // 1_000_000_000
    ((last_s,),) = query("SELECT epoch(max(ts)) + 1 FROM ports_1s")
    if last_s is None or last_s <= begin_s:
        return None
    filled = symptom.query.replace("$from", _instant(begin_s)).replace("$to", _instant(last_s))
    ranked = query(
        f"SELECT device, port, value FROM ({filled}) WHERE value > 0 AND NOT isnan(value) ORDER BY value DESC, device, port LIMIT 1"
    )
    if not ranked:
        return None
    ((device, port, value),) = ranked
    return FaultFinding(device, port or "", symptom.text.format(float(value)), _same(query, fault, device, port or ""))


def _instant(second: float) -> str:
    return f"make_timestamp_ns({second:.0f}000000000)"


def _same(query: RowQuery, fault: RecordedFault, device: str, port: str) -> bool | None:
    """Return whether a found place is the fault's: the same, the other end of its link, or a host of the job that it added."""
    place = fault.place
    if fault.kind == "noisy_neighbour":
        sql = "SELECT 1 FROM inventory WHERE kind = 'job' AND device = ? AND starts_with(job, 'neighbour-')"
        return bool(query(sql, [device]))
    if not place or ("/" not in place and not _is_device(query, place)):
        return None
    if "/" not in place:
        return device in place.split(",")
    if not port:
        return device == place.partition("/")[0]
    sql = "SELECT peer_device || '/' || peer_port FROM links WHERE device = ? AND port = ?"
    return place in {f"{device}/{port}", *(other for (other,) in query(sql, [device, port]))}


def _is_device(query: RowQuery, place: str) -> bool:
    return bool(query("SELECT 1 FROM devices WHERE device IN (SELECT unnest(string_split(?, ',')))", [place]))


def rules_for(kind: str) -> tuple[str, ...]:
    """Return the rules that detect a kind of fault."""
    return SYMPTOMS[kind].rules if kind in SYMPTOMS else ()


def alerts_of(query: RowQuery) -> list[Fired]:
    """Return the alerts that have fired, in order of time."""
    rows = query("""SELECT rule, summary, epoch_ns(fired_at) FROM alerts
        WHERE fired_at IS NOT NULL ORDER BY fired_at, rule, device, port""")
    return [Fired(*row) for row in rows]
