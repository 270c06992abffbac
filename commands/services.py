"""``weft collect``, ``process``, ``analyze``, ``dash``: single services, each for its own machine or container."""

import socket
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from ..pipeline.clock import SystemClock
from ..pipeline.component import run
from ..pipeline.supervise import is_supervised
from .compile import COLLECTORS, PROCESS, compile_first
from .settings import bus_of, load


def collect_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--member", default=f"collect-{socket.gethostname()}", help="name of this collector; run only one (default: collect-HOST)"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")
    host_options(parser)


def host_options(parser: ArgumentParser) -> None:
    """Add the options of the collector of this machine's interfaces."""
    parser.add_argument("--interface", action="append", default=[], help="interface to read, may be repeated (default: all that are up)")
    parser.add_argument("--interval-ms", type=float, help="time between two polls, 0.5 to 100 (default: 1)")


def serve(chosen: Namespace, settings: Any, name: str, make: Callable[..., Any]) -> int:
    """Run the service that ``make`` returns for a bus, a clock and a report, until it is stopped."""
    from ..pipeline.report import Report

    clock, bus = SystemClock(), bus_of(chosen, settings)
    run(make(bus, clock, Report.of_this_host(name, clock)), clock, seconds=chosen.seconds)
    bus.close()
    return 0


def collect(chosen: Namespace) -> int:
    """Run the live collectors."""
    from ..collectors.service import CollectService

    compile_first(COLLECTORS)
    settings = collect_settings(chosen)
    return serve(chosen, settings, chosen.member, lambda *on: CollectService(settings.collect, *on, name=chosen.member))


def collect_settings(chosen: Namespace) -> Any:
    """Return the configuration of the collectors, with the options of ``host_options``."""
    from dataclasses import replace

    from ..collectors.service import CollectConfig

    settings = load(chosen, collect=CollectConfig)
    host = settings.collect.host
    if chosen.interface:
        host = replace(host, interfaces=tuple(chosen.interface))
    if chosen.interval_ms is not None:
        host = replace(host, interval_ms=chosen.interval_ms)
    return replace(settings, collect=replace(settings.collect, host=host))


def process_options(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")
    parser.add_argument(
        "--member", default=f"process-{socket.gethostname()}", help="stable name of this member of the group (default: process-HOST)"
    )


def process(chosen: Namespace) -> int:
    """Run one member of the group that computes windows."""
    from ..pipeline.process.service import ProcessConfig, ProcessService

    compile_first(PROCESS)
    settings = load(chosen, process=ProcessConfig)
    return serve(chosen, settings, chosen.member, lambda *on: ProcessService(settings.process, *on, member=chosen.member))


def analyze_options(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")


def analyze(chosen: Namespace) -> int:
    """Run the one writer of the store."""
    from ..analytics.service import AnalyzeConfig, AnalyzeService
    from ..analytics.store.writer import Store

    settings = load(chosen, analyze=AnalyzeConfig)
    store = Store(chosen.data / "store", settings.analyze.store)
    return serve(chosen, settings, "analyze", lambda *on: AnalyzeService(settings.analyze, store, *on))


def dash_options(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help="port to serve on (default: 8501)")
    parser.add_argument("--address", help="address to listen on (default: 127.0.0.1, this machine only)")


def dash(chosen: Namespace) -> int:
    """Serve the dashboard."""
    from dataclasses import replace

    from ..dashboards import service

    settings = load(chosen, dash=service.DashConfig)
    config = settings.dash
    if chosen.port is not None:
        config = replace(config, port=chosen.port)
    if chosen.address is not None:
        config = replace(config, address=chosen.address)
    service.check_port(config)
    if not is_supervised():
        print(f"dashboard of {chosen.data}: http://{config.address}:{config.port}", flush=True)
    service.run(config, chosen.data)
    return 0
