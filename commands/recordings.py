"""``weft replay``, ``decode`` and ``record``: recordings in and out."""

import contextlib
import json
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from ..pipeline.clock import NS_PER_S, SystemClock
from ..pipeline.errors import BusError, ServiceError, WeftError
from ..pipeline.supervise import Child, Supervisor
from .compile import COLLECTORS, PROCESS, compile_first
from .services import collect_settings, host_options
from .settings import at_least_one, bus_of, claim_data_folder, load, passed_on

# Exit code of a feed whose bus was unreachable for too long: the supervisor starts it again.
AGAIN = 3

WAIT_S_MAX = 600.0

# Kinds of content: how rows are counted, and a first query for them; the first line with rows is suggested.
_STORED = {
    "bursts": ("count(*) FROM bursts", "FROM bursts ORDER BY bytes DESC LIMIT 10"),
    "roce_packets": ("sum(packets) FROM state.roce_1h", "FROM roce_1m ORDER BY packets DESC LIMIT 10"),
    "queue_readings": ("sum(readings) FROM state.queue_counters_1h", "FROM queues_1m ORDER BY pause_rx_ratio DESC LIMIT 10"),
    "port_readings": ("sum(readings) FROM state.port_counters_1h", "FROM ports_1m ORDER BY bytes DESC LIMIT 10"),
    "samples": ("sum(samples) FROM state.port_samples_1h", "FROM ports_1s ORDER BY utilization_max_ratio DESC LIMIT 10"),
    "latency_samples": ("sum(samples) FROM state.latency_1h", "FROM latency_1m ORDER BY p99_ns DESC LIMIT 10"),
    "adapter_readings": ("sum(readings) FROM state.nic_counters_1h", "FROM nics_1m ORDER BY ce_ratio DESC LIMIT 10"),
    "nvlink_readings": ("sum(readings) FROM state.nvlink_counters_1h", "FROM nvlinks_1m LIMIT 10"),
    "gpu_readings": ("sum(readings) FROM state.gpu_gauges_1h", "FROM gpus_1m LIMIT 10"),
    "other_readings": ("sum(samples) FROM state.readings_1h", "FROM readings_1m LIMIT 10"),
    "inventory_rows": ("count(*) FROM inventory", "FROM devices LIMIT 10"),
    "events": ("count(*) FROM events", "FROM events ORDER BY ts DESC LIMIT 10"),
    "gaps": ("count(*) FROM gaps", "FROM gaps ORDER BY ts DESC LIMIT 10"),
    "admitted_missing": ("sum(missed) FROM gaps", None),
    "late": ("sum(late) FROM state.quality_1h", None),
    "duplicates": ("sum(duplicates) FROM state.quality_1h", None),
    "implausible": ("sum(implausible) FROM state.quality_1h", None),
}


def _recording_options(parser: ArgumentParser) -> None:
    from ..collectors.replay import readers

    kinds = ", ".join(collector.name for collector in readers())
    parser.add_argument(
        "path",
        type=Path,
        help="capture (RoCEv2, sFlow), gNMI or IPFIX recording, Millisampler file or folder, topology, counter CSV or Parquet, "
        "a folder of recordings, or what 'weft record' wrote",
    )
    parser.add_argument("--kind", help=f"kind of the recording, if the file does not show it: {kinds}")
    parser.add_argument("--line-rate", type=_rate, metavar="BPS", help="line rate of the recorded ports in bit/s, such as 12.5e9")
    parser.add_argument("--device", help="name of the device that recorded it, if the file does not contain it")
    parser.add_argument("--check-icrc", action="store_true", help="check the invariant CRC of every RoCEv2 packet")
    parser.add_argument(
        "--run-samples",
        type=at_least_one,
        default=1000,
        metavar="N",
        help="samples per segment; any value gives the same tables (default: 1000)",
    )


def _options(chosen: Namespace) -> Any:
    from ..collectors.base import Options

    return Options(line_rate_bps=chosen.line_rate, device=chosen.device, check_icrc=chosen.check_icrc, run_samples=chosen.run_samples)


def _rate(text: str) -> int:
    with contextlib.suppress(ValueError):
        rate = float(text)
        if 1 <= rate < 2**62:
            return int(rate)
    raise ArgumentTypeError(f"{text} is not a line rate: write bits per second, such as 400e9")


def replay_options(parser: ArgumentParser) -> None:
    _recording_options(parser)
    parser.add_argument("--speed", default="max", help="max, or a multiple of real time such as 1x or 10x (default: max)")
    parser.add_argument("--process", type=at_least_one, default=1, metavar="N", help="number of process services (default: 1)")
    parser.add_argument("--feed-only", action="store_true", help="only publish to the bus; the other services run elsewhere")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="format of the summary (default: text)")


def replay(chosen: Namespace) -> int:
    """Feed a recording through the pipeline; return when it is stored and published."""
    from ..collectors.replay import Replay, reader

    clock = SystemClock()
    speed = _speed(chosen.speed)
    reader(chosen.path, chosen.kind, _options(chosen))
    settings = load(chosen)
    if chosen.feed_only:
        return _feed(chosen, settings, clock, speed)
    claim_data_folder(chosen)
    bus = bus_of(chosen, settings)
    job = Replay(chosen.path, chosen.kind, _options(chosen), bus, clock)
    if (earlier := job.done()) is not None:
        bus.close()
        if earlier.get("problem"):
            raise ServiceError(str(earlier["problem"]), f"everything before it is in {chosen.data} since an earlier replay")
        print(f"{chosen.path} has been replayed into {chosen.data} before; nothing to do (choose another --data to replay it again)")
        return 0
    compile_first(PROCESS, COLLECTORS)
    began = clock.monotonic_ns()
    supervisor = Supervisor(_children(chosen), clock)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        supervisor.start()
        _until_stored(supervisor, bus, job, clock)
        supervisor.stop(*(name for name in supervisor.pids() if name != "analyze"))
        supervisor.stop()
    finally:
        supervisor.stop()
    note = job.done() or {}
    bus.close()
    _summary(chosen, note, (clock.monotonic_ns() - began) / NS_PER_S, dict(supervisor.restarts))
    if note.get("problem"):
        raise ServiceError(str(note["problem"]), "everything before it is stored")
    return 0


def _children(chosen: Namespace) -> list[Child]:
    shared = passed_on(chosen)
    feed = ["replay", "--feed-only", "--speed", chosen.speed, "--run-samples", str(chosen.run_samples)]
    for name, value in (("--kind", chosen.kind), ("--line-rate", chosen.line_rate), ("--device", chosen.device)):
        feed += [name, str(value)] if value is not None else []
    feed += ["--check-icrc"] if chosen.check_icrc else []
    members = [Child(f"process-{n}", ("process", "--member", f"process-{n}", *shared)) for n in range(chosen.process)]
    return [*members, Child("analyze", ("analyze", *shared)), Child("feed", (*feed, str(chosen.path), *shared), once=True)]


def _feed(chosen: Namespace, settings: Any, clock: SystemClock, speed: float | None) -> int:
    from ..collectors.replay import Replay, ReplayProgress

    bus = bus_of(chosen, settings)

    def show(progress: ReplayProgress) -> None:
        if sys.stderr.isatty():
            print(f"\r{progress.rows:,} rows, {progress.bytes / 1e6:,.1f} MB", end="", file=sys.stderr, flush=True)

    job = Replay(chosen.path, chosen.kind, _options(chosen), bus, clock, speed=speed)
    try:
        if job.done() is None:
            job.run(show)
    except BusError as error:
        # The next attempt, started by the supervisor, finds out whether the last transaction was committed.
        print(f"weft: {error}", file=sys.stderr)
        return AGAIN
    except WeftError:
        # The note on the bus holds the problem; the waiting replay reports it after the good part is stored.
        if job.done() is None:
            raise
    bus.close()
    return 0


def _until_stored(supervisor: Supervisor, bus: Any, job: Any, clock: SystemClock) -> None:
    """Wait until the recording is fed, computed and stored, keeping the services alive."""
    from ..analytics.store.lag import raw_samples_lag, stored_lag
    from ..pipeline.process.service import GROUP, ProcessService
    from ..pipeline.report import lag

    idle_since, last = clock.monotonic_ns(), (-1, -1, -1)
    while True:
        supervisor.step(0.05)
        if not supervisor.finished("feed") or job.done() is None:
            idle_since = clock.monotonic_ns()
            continue
        left = (lag(bus, GROUP, list(ProcessService.topics)), stored_lag(bus), raw_samples_lag(bus))
        if not any(left):
            return
        if left != last:
            idle_since, last = clock.monotonic_ns(), left
        if clock.monotonic_ns() - idle_since > WAIT_S_MAX * NS_PER_S:
            raise ServiceError(f"no progress for {WAIT_S_MAX:.0f} s with {sum(left)} messages left", "see the services' log above")


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if speed <= 0:
        raise ServiceError(f"--speed {text!r} is not a speed", "write max, 1x, 10x ...")
    return speed


def _summary(chosen: Namespace, note: dict, seconds: float, restarts: dict[str, int]) -> None:
    from ..analytics.store.reader import Reader

    reader = Reader(chosen.data / "store")
    columns = ", ".join(f"coalesce((SELECT {count}), 0)::BIGINT AS {name}" for name, (count, _) in _STORED.items())
    counted = reader.frame(f"SELECT {columns}").row(0, named=True)
    reader.close()
    result = {
        "recording": str(chosen.path),
        "rows": note.get("rows", 0),
        "seconds": round(seconds, 1),
        "store": counted,
        "restarts": restarts,
    }
    if chosen.format == "json":
        print(json.dumps(result))
        return
    figures = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counted.items() if value) or "nothing yet"
    print(f"replayed {chosen.path}: {result['rows']:,} rows in {seconds:.1f} s\nthe store now holds {figures}")
    look = next((look for name, (_, look) in _STORED.items() if look and counted[name]), None)
    if look is not None:
        print(f'look at it:  weft sql --data {chosen.data} "{look}"   or   weft dash --data {chosen.data}')


def decode_options(parser: ArgumentParser) -> None:
    _recording_options(parser)
    from ..pipeline.tables.families import FAMILIES

    parser.add_argument("--family", choices=sorted(FAMILIES), help="only the rows of this family")
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "parquet"), default="table", help="format of the rows (default: table)"
    )
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="stop after N rows")


def decode(chosen: Namespace) -> int:
    """Print the rows that a collector makes of a recording."""
    from ..collectors.replay import read
    from .output import Printer

    compile_first(COLLECTORS)
    printer = Printer(chosen.format)
    left = chosen.limit if chosen.limit is not None else sys.maxsize
    families: dict[str, int] = {}
    try:
        for batch in read(chosen.path, chosen.kind, _options(chosen)):
            if chosen.family not in (None, batch.family) or not batch.frame.height or left <= 0:
                continue
            frame = batch.frame.head(left)
            left -= frame.height
            families[batch.family] = families.get(batch.family, 0) + frame.height
            printer.add(frame, batch.family)
    finally:
        printer.close()
        print(", ".join(f"{count:,} {family} rows" for family, count in families.items()) or "no rows", file=sys.stderr)
    return 0


def record_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="file (.weft) or folder to write")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds (default: on Ctrl-C)")
    host_options(parser)


def record(chosen: Namespace) -> int:
    """Write the rows of the live collectors to a file."""
    from ..collectors.record import RecordService
    from ..pipeline.component import run
    from ..pipeline.report import Report

    compile_first(COLLECTORS)
    clock = SystemClock()
    service = RecordService(collect_settings(chosen).collect, chosen.path, clock, Report.of_this_host("record", clock))
    run(service, clock, seconds=chosen.seconds)
    print(f"recorded {service.rows:,} rows to {chosen.path}; replay them with: weft replay {chosen.path}")
    return 0
