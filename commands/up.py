"""``weft up``: the whole product on this machine, as one supervised tree of processes."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from ..pipeline.clock import SystemClock
from ..pipeline.component import listen
from ..pipeline.supervise import Child, Supervisor
from .compile import COLLECTORS, PROCESS, compile_first
from .settings import at_least_one, claim_data_folder, everything, passed_on


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")
    parser.add_argument("--no-dashboard", action="store_true", help="do not serve the dashboard")
    parser.add_argument("--port", type=int, help="port of the dashboard (default: 8501)")
    parser.add_argument("--process", type=at_least_one, default=1, metavar="N", help="number of process services (default: 1)")


def up(chosen: Namespace) -> int:
    """Start collect, process, analyze and the dashboard; keep them running until Ctrl-C."""
    from ..dashboards import service as dashboard

    settings = everything(chosen)
    dash = replace(settings.dash, port=chosen.port) if chosen.port is not None else settings.dash
    if not chosen.no_dashboard:
        dashboard.check_port(dash)
    claim_data_folder(chosen)
    compile_first(PROCESS, COLLECTORS)
    clock = SystemClock()
    supervisor = Supervisor(children(chosen, dash.port, processes=chosen.process), clock)
    stop = listen()
    deadline = clock.monotonic_ns() + int(chosen.seconds * 1e9) if chosen.seconds is not None else None
    try:
        supervisor.start()
        _welcome(chosen, f"http://{dash.address}:{dash.port}")
        while not stop.is_set() and (deadline is None or clock.monotonic_ns() < deadline):
            supervisor.step()
    finally:
        supervisor.stop()
    return 0


def children(chosen: Namespace, port: int, *, processes: int, collected: Path | None = None) -> list[Child]:
    """Return the services in the order in which they start and stop; ``collected`` is the configuration of collect, if it has its own."""
    shared = passed_on(chosen)
    collect = passed_on(Namespace(**{**vars(chosen), "config": collected})) if collected else shared
    members = [Child(f"process-{n}", ("process", "--member", f"process-{n}", *shared)) for n in range(processes)]
    dash = [] if chosen.no_dashboard else [Child("dash", ("dash", "--port", str(port), *shared))]
    return [Child("collect", ("collect", *collect)), *members, Child("analyze", ("analyze", *shared)), *dash]


def _welcome(chosen: Namespace, address: str) -> None:
    current = chosen.data / "store" / "current.duckdb"
    lines = [
        "Weft watches this machine's interfaces. Ctrl-C stops it.",
        *([] if chosen.no_dashboard else [f"  dashboard  {address}"]),
        f'  SQL        weft sql --data {chosen.data} "SELECT * FROM bursts ORDER BY start_ts DESC LIMIT 10"',
        f"  DuckDB     duckdb -readonly {current}",
    ]
    print("\n".join(lines), flush=True)
