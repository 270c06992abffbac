"""``weft bench detect``: faults of the virtual fabric through the whole pipeline, scored against the ground truth.

Prints the error of each metric on quiet runs, the score of the rules for each kind of fault, and the rate of false positives. A fault that
no rule detects scores 0.
"""

import dataclasses
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...pipeline.clock import NS_PER_S, SystemClock
from ..score.run import CaseResult, Error, execute, matrix
from ..score.score import FalseAlarms, Score, false_alarms, score


def detect(chosen: Namespace) -> int:
    """Run the matrix and print its tables. Raises ``InputError`` for an invalid fault or scale."""
    from ...analytics.alerts.config import AlertsConfig
    from ...analytics.alerts.rules import load_folder, load_rules
    from ..fabric.faults import FAULTS

    profile = "training"
    rules = load_folder(chosen.rules, profile) if chosen.rules else load_rules(AlertsConfig(profile=profile))
    faults = tuple(FAULTS) if chosen.faults is None else chosen.faults
    cases = matrix(faults, chosen.scales, chosen.seeds, chosen.quiet_seeds, chosen.run_seconds)
    results: list[CaseResult] = []
    began = SystemClock().monotonic_ns()
    for number, case in enumerate(cases):
        if sys.stderr.isatty():
            print(
                f"\r{number + 1} of {len(cases)}: {case.kind:<20} seed {case.seed}, {case.scale} GPUs ", end="", file=sys.stderr, flush=True
            )
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
            results.append(execute(case, rules, Path(folder)))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    taken = (SystemClock().monotonic_ns() - began) / NS_PER_S
    simulated = sum(result.run.span_ns for result in results) / NS_PER_S
    errors, scores, alarms = summary(results)
    if chosen.format == "json":
        print(json.dumps(document(errors, scores, alarms, simulated, taken)))
    else:
        print("\n".join(table(errors, scores, alarms)))
        print(f"\n{len(results)} runs, {simulated:g} s of the fabric in {taken:.0f} s")
    return 0


def summary(results: Sequence[CaseResult]) -> tuple[list[Error], list[Score], FalseAlarms | None]:
    """Return the errors over all quiet runs, the score of each kind of fault in the order of the runs, and the false alarms."""
    kinds = dict.fromkeys(result.case.kind for result in results if result.case.fault)
    scores = [score(kind, [result.run for result in results if result.case.fault and result.case.kind == kind]) for kind in kinds]
    return _merged([error for result in results for error in result.errors]), scores, false_alarms(result.run for result in results)


def _merged(errors: Sequence[Error]) -> list[Error]:
    made = []
    for metric in dict.fromkeys(error.metric for error in errors):
        some = [error for error in errors if error.metric == metric and error.count]
        count = sum(error.count for error in some)
        mean = sum((error.mean or 0.0) * error.count for error in some) / count if count else None
        made.append(Error(metric, mean, max((error.worst or 0.0 for error in some), default=None), count))
    return made


def table(errors: Sequence[Error], scores: Sequence[Score], alarms: FalseAlarms | None) -> Iterator[str]:
    """Yield the lines of the tables."""
    if errors:
        yield f"{'metric':<30} {'mean error':>12} {'largest':>12} {'values':>8}"
        for error in errors:
            figures = (f"{error.mean:12.4%} {error.worst:12.4%} {error.count:8,}") if error.mean is not None else f"{'not measured':>12}"
            yield f"{error.metric:<30} {figures}"
        yield ""
    if scores:
        yield f"{'fault':<18} {'runs':>4} {'recall':>7} {'precision':>10} {'device':>7} {'place first':>12} {'detected in':>12}  by"
        for one in scores:
            after = "-" if one.detect_s is None else f"{one.detect_s:.1f} s"
            shares = f"{one.recall:>7.2f} {_ratio(one.precision):>10} {_ratio(one.device_ratio):>7} {one.localised:>12.2f}"
            yield f"{one.kind:<18} {one.runs:>4} {shares} {after:>12}  {', '.join(one.rules)}".rstrip()
        total = sum(one.runs for one in scores)
        alerts = sum(one.alerts for one in scores)
        yield (
            f"{'all':<18} {total:>4} {sum(one.detected for one in scores) / total:>7.2f} "
            f"{_ratio(sum(one.right for one in scores) / alerts if alerts else None):>10} "
            f"{_ratio(sum(one.device_right for one in scores) / alerts if alerts else None):>7} "
            f"{sum(one.first_right for one in scores) / total:>12.2f}"
        )
        yield ""
    if alarms is not None:
        yield (
            f"false alarms on quiet runs: {alarms.alarms} in {alarms.seconds:g} s, {alarms.a_day:,.0f} a day "
            f"(so short a time excludes only more than {alarms.at_most:,.0f} at 95 %)"
        )


def document(errors: Sequence[Error], scores: Sequence[Score], alarms: FalseAlarms | None, simulated: float, taken: float) -> dict:
    """Return the tables as one object for ``--format json``."""
    derived = ("recall", "precision", "device_ratio", "localised")
    return {
        "errors": [dataclasses.asdict(error) for error in errors],
        "faults": [dataclasses.asdict(one) | {name: getattr(one, name) for name in derived} for one in scores],
        "false_alarms": None if alarms is None else dataclasses.asdict(alarms) | {"a_day": alarms.a_day, "at_most": alarms.at_most},
        "simulated_s": simulated,
        "taken_s": taken,
    }


def _ratio(value: float | None) -> str:
    # Without alerts the precision is undefined; it scores 0, like a fault that is not detected.
    return f"{value or 0.0:.2f}"
