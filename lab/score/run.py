"""One run of the virtual fabric through the whole pipeline in this process, compared with the ground truth.

Rows go to a bus in the order of receiving, as in live operation; windows, store and rules are the ordinary ones. Rules are evaluated after
everything is stored, window by window in event time, so that the alerts do not depend on the speed of the machine.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ...pipeline.clock import NS_PER_S, SystemClock
from ...pipeline.errors import StoreError
from .score import FaultPlace, ScoredAlert, ScoredRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...analytics.alerts.rules import Rule
    from ...analytics.store.writer import Store
    from ...pipeline.bus import Bus
    from ..fabric.fabric import Fabric
    from ..fabric.faults import InjectedFault


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the matrix; without a fault it is a quiet run."""

    scale: str
    seed: int
    fault: str = ""
    seconds: float = 8.0

    @property
    def kind(self) -> str:
        return self.fault.partition("@")[0] or "quiet"


@dataclass(frozen=True, slots=True)
class Error:
    """Relative error of a metric over ``count`` values; ``None``: the store does not have the metric."""

    metric: str
    mean: float | None = None
    worst: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of a case."""

    case: Case
    run: ScoredRun
    errors: tuple[Error, ...]


def execute(case: Case, rules: "Sequence[Rule]", folder: Path) -> CaseResult:
    """Run a case in an empty folder and evaluate ``rules``. Raises ``InputError`` for an invalid scale or fault."""
    from ...analytics.store.writer import Store, StoreConfig
    from ...pipeline.bus import BusConfig, open_bus
    from ..fabric.fabric import Fabric
    from ..telemetry.scenario import scenario

    config = scenario(case.scale, [case.fault] if case.fault else [], case.seed, case.seconds)
    fabric = Fabric(config, case.seed)
    bus = open_bus(BusConfig(), folder / "data")
    store = Store(folder / "data" / "store", StoreConfig())
    try:
        latency = _feed(fabric, bus, folder / "truth", round(case.seconds * NS_PER_S))
        _process(bus)
        store.start()
        alerts = _evaluate(store, bus, rules, config.start_ns + round(case.seconds * NS_PER_S))
        errors = metric_errors(store, folder / "truth", latency) if not case.fault else ()
    finally:
        store.stop()
        bus.close()
    return CaseResult(case, _run_of(case, fabric, alerts), errors)


def _feed(fabric: "Fabric", bus: "Bus", truth: Path, until_ns: int) -> pl.DataFrame:
    """Run the fabric and publish its rows, second by second of receiving; return the true delays of the probes."""
    from ...collectors.base import Batch
    from ...collectors.publish import BatchPublisher
    from ..fabric.answers import Answers
    from ..telemetry.export import FabricExporter

    exporter, answers = FabricExporter(fabric), Answers(truth, fabric)
    producer = bus.producer("lab")
    feed = BatchPublisher(producer, "lab", SystemClock(), live=False, epoch=0)
    feed.publish([Batch("inventory", exporter.inventory())])
    in_transit: dict[str, pl.DataFrame] = {}
    delays = []
    while fabric.now_ns < until_ns:
        step = fabric.advance(min(until_ns, fabric.now_ns + NS_PER_S))
        answers.write(step)
        delays.append(_delays(fabric, step))
        for family, frame in exporter.frames(step).items():
            in_transit[family] = pl.concat([in_transit[family], frame]) if family in in_transit else frame
        # The last rows are received shortly after the fabric stops; those of a late collector never.
        now = fabric.config.start_ns + step.until_ns + NS_PER_S // 10
        feed.publish(
            [Batch(family, rows) for family, frame in in_transit.items() if (rows := frame.filter(pl.col("recv_ts") <= now)).height]
        )
        in_transit = {family: frame.filter(pl.col("recv_ts") > now) for family, frame in in_transit.items()}
    answers.close()
    feed.publish([Batch("port", exporter.inventory().clear(), fabric.topology.device_names)])
    producer.close()
    return pl.concat(delays)


def _delays(fabric: "Fabric", step) -> pl.DataFrame:
    topology = fabric.topology
    addresses = [[topology.address(int(end)) for end in pair] for pair in fabric.probe_pairs]
    return pl.DataFrame(
        {
            "ts": np.full(len(addresses), fabric.config.start_ns + step.first_ns),
            "src": [src for src, _ in addresses],
            "dst": [dst for _, dst in addresses],
            "values": pl.Series(np.ascontiguousarray(step.latency_ns.T)),
        }
    )


def _process(bus: "Bus") -> None:
    """Compute all windows."""
    from ...pipeline.process.service import GROUP, ProcessConfig, ProcessService
    from ...pipeline.report import Report, lag

    clock = SystemClock()
    service = ProcessService(ProcessConfig(), bus, clock, Report.of_this_host("bench", clock), "bench")
    service.start()
    while True:
        service.step()
        if not lag(bus, GROUP, list(ProcessService.topics)):
            break
    service.stop()


def _evaluate(store: "Store", bus: "Bus", rules: "Sequence[Rule]", until_ns: int) -> tuple[ScoredAlert, ...]:
    """Store everything, evaluate the rules, and return the alerts."""
    from ...analytics import alerts
    from ...analytics.alerts.evaluate import Evaluator
    from ...analytics.store.archive import Archive, ArchiveConfig
    from ...analytics.store.publish import catalog
    from ...analytics.store.sink import Sink
    from ...pipeline.report import Report

    clock = SystemClock()
    report = Report.of_this_host("bench", clock)
    for statement in alerts.ddl():
        store.execute(statement)
    archive = Archive(store, ArchiveConfig(), clock, report)
    archive.start()
    sink = Sink(store, archive, bus, report)
    sink.start()
    while messages := list(sink.poll(0.2)):
        sink.store(messages)
        if sink.full:
            sink.fold()
    sink.fold()
    sink.stop()
    for statement in catalog(store):
        store.execute(statement)
    Evaluator(rules, store).evaluate(until_ns // NS_PER_S * NS_PER_S)
    wrong = store.query("SELECT rule, last_error FROM state.alert_rules WHERE state = 'error'")
    if wrong:
        raise StoreError(f"the rule {wrong[0]['rule']} cannot be evaluated: {wrong[0]['last_error']}", "correct its query")
    rows = store.query("SELECT rule, labels, fired_at FROM state.alerts WHERE fired_at IS NOT NULL")
    return tuple(ScoredAlert(str(row["rule"]), json.loads(str(row["labels"])), int(str(row["fired_at"]))) for row in rows)


def _run_of(case: Case, fabric: "Fabric", alerts: tuple[ScoredAlert, ...]) -> ScoredRun:
    start, span = fabric.config.start_ns, round(case.seconds * NS_PER_S)
    if not case.fault:
        return ScoredRun("quiet", span, alerts)
    fault = fabric.config.faults[0]
    return ScoredRun(case.kind, span, alerts, place_of(fabric, fault), start + fault.begin_ns, start + min(fault.end_ns, span))


def place_of(fabric: "Fabric", fault: "InjectedFault") -> FaultPlace:
    """Return the place of a fault: both ends of a link, a device, a job, or everywhere."""
    from ..fabric.faults import FAULTS

    topology = fabric.topology
    wanted = FAULTS[fault.kind].place
    if not fault.place:
        return FaultPlace()
    if wanted == "job":
        return FaultPlace(job=fault.place)
    if "/" in fault.place:
        device, _, port = fault.place.partition("/")
        number = topology.port_of(device, port)
        return FaultPlace(frozenset((topology.device_names[topology.owner[end]], topology.port_names[end]) for end in (number, number ^ 1)))
    return FaultPlace(devices=frozenset(fault.place.split(",")))


def metric_errors(store: "Store", truth: Path, latency: pl.DataFrame) -> tuple[Error, ...]:
    """Return the errors of the store's metrics in a run without faults."""
    return (*_utilisation(store, truth), *_bursts(store, truth), *_latency(store, latency), _iterations(store, truth))


def _frame(store: "Store", query: str) -> pl.DataFrame:
    return pl.DataFrame(store.query(query), infer_schema_length=None)


def _utilisation(store: "Store", truth: Path) -> list[Error]:
    links = pl.read_parquet(truth / "links" / "*.parquet")
    found = _frame(
        store,
        """SELECT epoch_ns(ts) AS ts, device, port, speed_bps::BIGINT AS speed_bps,
          utilization_mean_ratio AS mean, utilization_max_ratio AS high
        FROM ports_1s WHERE direction = 'tx' AND samples > 0""",
    )
    capacity = pl.col("speed_bps") * pl.col("interval_ns") / 8e9
    both = found.join(links, on=["ts", "device", "port"]).with_columns(
        true_mean=pl.col("sent").list.mean() / capacity, true_high=pl.col("sent").list.max() / capacity
    )
    return [
        _error(f"utilisation, {what}", both[name], both[f"true_{name}"]) for what, name in (("mean", "mean"), ("highest sample", "high"))
    ]


def _bursts(store: "Store", truth: Path) -> list[Error]:
    found = _frame(store, "SELECT device, port, duration_ns FROM bursts WHERE signal = 'tx_bytes'")
    key = ["device", "port"]
    switches = _frame(store, "SELECT DISTINCT device, port FROM ports_1s WHERE direction = 'tx' AND samples > 0")
    true = pl.read_parquet(truth / "bursts" / "*.parquet").join(switches, on=key)

    def counted(frame: pl.DataFrame, name: str) -> pl.DataFrame:
        return frame.group_by(key).agg(pl.len().alias(f"{name}_count"), pl.col("duration_ns").sum().cast(pl.Int64).alias(f"{name}_time"))

    if not found.height or not true.height:
        return [Error("bursts of a port, number"), Error("bursts of a port, time")]
    both = counted(true, "true").join(counted(found, "found"), on=key, how="full", coalesce=True).fill_null(0)
    return [
        _error(f"bursts of a port, {what}", both[f"found_{name}"], both[f"true_{name}"])
        for what, name in (("number", "count"), ("time", "time"))
    ]


def _latency(store: "Store", latency: pl.DataFrame) -> list[Error]:
    found = _frame(store, "SELECT epoch_ns(ts) AS ts, src, dst, p50_ns, p99_ns FROM latency_1s WHERE kind = 'probe'")
    second = pl.col("ts") // NS_PER_S * NS_PER_S
    # A pair may be drawn twice; then the samples of both are merged.
    true = (
        latency.explode("values")
        .group_by(second, "src", "dst")
        .agg(*(pl.col("values").quantile(q, "nearest").alias(f"true_{q}") for q in (0.5, 0.99)))
    )
    both = found.join(true, on=["ts", "src", "dst"])
    return [_error(f"latency of a path, {name}", both[f"{name}_ns"], both[f"true_{q}"]) for name, q in (("p50", 0.5), ("p99", 0.99))]


def _iterations(store: "Store", truth: Path) -> Error:
    """Compare the median iteration period of each job, if the store has a view of iterations."""
    name = "iteration period of a job"
    if not store.query("SELECT 1 FROM duckdb_views() WHERE view_name = 'iterations' AND schema_name = 'main'"):
        return Error(name)
    found = _frame(store, "SELECT job, median(period_ns) AS found FROM iterations GROUP BY job")
    true = pl.read_parquet(truth / "iterations" / "*.parquet").group_by("job").agg(pl.col("period_ns").median().alias("true"))
    both = true.join(found, on="job") if found.height else true.clear().with_columns(found=pl.lit(0.0))
    return _error(name, both["found"], both["true"])


def _error(metric: str, found: pl.Series, true: pl.Series) -> Error:
    """Return the mean and the largest relative error over values whose truth is not zero."""
    pairs = pl.DataFrame({"found": found.cast(pl.Float64), "true": true.cast(pl.Float64)}).drop_nulls().filter(pl.col("true") > 0)
    if not pairs.height:
        return Error(metric)
    relative = (pairs["found"] / pairs["true"] - 1).abs()
    return Error(metric, float(relative.mean()), float(relative.max()), pairs.height)  # type: ignore[arg-type]


def matrix(faults: tuple[str, ...], scales: tuple[str, ...], seeds: int, quiet: int, seconds: float) -> list[Case]:
    """Return all cases: quiet runs first, then each fault, for each scale and seed."""
    return [
        *(Case(scale, seed, "", seconds) for scale in scales for seed in range(1, quiet + 1)),
        *(Case(scale, seed, fault, seconds) for scale in scales for fault in faults for seed in range(1, seeds + 1)),
    ]
