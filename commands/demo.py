"""``weft demo``: a virtual fabric with a fault, its telemetry through real protocols, and the whole product on it."""

import shutil
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from ..lab.score.verdict import Watch, summary
from ..pipeline.clock import NS_PER_S, Clock, SystemClock
from ..pipeline.component import StopRequest, listen
from ..pipeline.errors import ServiceError
from ..pipeline.supervise import Child, Supervisor
from .compile import PARTS, compile_first
from .lab import fabric_options
from .settings import claim_data_folder, load, passed_on
from .up import children

DEFAULT_FAULTS = ("pause_storm",)
MARKER = "this-is-a-weft-demo"
# Created by a demo in its folder, and removed when the next one starts there.
_MADE = ("store", "bus", "lab", "weft.toml", "hft-templates.json")
PATIENCE_S = 60.0

_SETTINGS = """# Written by 'weft demo'.
[analyze.alerts]
profile = "training"
"""

QUERIES = (
    "SELECT rule, summary, state, fired_at FROM alerts ORDER BY starts_at DESC LIMIT 10",
    "SELECT device, port, max(pause_rx_ratio) AS paused, sum(ecn_marked_packets) AS marked, max(watermark_max_bytes) AS fullest"
    " FROM queues_1s WHERE direction = 'tx' AND ts >= (SELECT max(ts) FROM queues_1s) - INTERVAL 20 SECOND"
    " GROUP BY ALL ORDER BY paused DESC, marked DESC LIMIT 10",
    "SELECT device, port, avg(utilization_mean_ratio) AS mean, max(utilization_max_ratio) AS worst_millisecond, sum(burst_count) AS bursts"
    " FROM ports_1s WHERE direction = 'tx' AND sample_interval_ns = 1000000 GROUP BY ALL ORDER BY bursts DESC LIMIT 10",
)


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds")
    fabric_options(parser)
    parser.add_argument("--no-dashboard", action="store_true", help="do not serve the dashboard")
    parser.add_argument("--port", type=int, help="port of the dashboard (default: 8501)")


def demo(chosen: Namespace) -> int:
    """Run until Ctrl-C or for some seconds; then print the fault and what the store shows of it."""
    from ..dashboards import service as dashboard

    if chosen.config is not None:
        raise ServiceError("the demo brings its own configuration", "leave --config out, or run 'weft up' with it")
    make_folder(chosen)
    chosen.config = chosen.data / "weft.toml"
    # Only its own sections, so that the supervisor does not load the modules of its services.
    dash = load(chosen, dash=dashboard.DashConfig).dash
    port = chosen.port if chosen.port is not None else dash.port
    if not chosen.no_dashboard:
        dashboard.check_port(replace(dash, port=port))
    compile_first(*PARTS)
    clock = SystemClock()
    stop = listen()
    deadline = clock.monotonic_ns() + int(chosen.seconds * NS_PER_S) if chosen.seconds is not None else None
    lab = Supervisor([_lab(chosen)], clock)
    tree = Supervisor(children(chosen, port, processes=1, collected=chosen.data / "lab" / "collect.toml"), clock)
    watch = Watch(chosen.data)
    began = clock.monotonic_ns()
    try:
        lab.start()
        collects = _wait_for_settings(chosen, lab, clock, stop, deadline)
        if collects:
            tree.start()
            _welcome(chosen, f"http://{dash.address}:{port}")
        while collects and not stop.is_set() and (deadline is None or clock.monotonic_ns() < deadline):
            lab.step(0.1)
            tree.step(0.1)
            watch.step(clock, (clock.monotonic_ns() - began) / NS_PER_S)
    finally:
        # Stop the collectors first, so that they do not report the end of the fabric; then the others finish.
        tree.stop("collect")
        lab.stop()
        tree.stop()
    watch.close()
    print("\n".join(summary(chosen.data)))
    return 0


def make_folder(chosen: Namespace) -> None:
    """Create the demo's folder, or remove the data of an earlier demo from it.

    Raises:
        ServiceError: it holds other data, or cannot be created.
        StoreError: a demo is running in it.
    """
    data: Path = chosen.data
    claim_data_folder(chosen)
    if any(data.iterdir()) and not (data / MARKER).exists():
        raise ServiceError(
            f"{data} holds data that is not a demo's, and a demo starts with an empty folder", "choose another folder with --data"
        )
    try:
        for name in _MADE:
            path = data / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (data / MARKER).write_text("'weft demo' empties this folder when it starts.\n")
        (data / "weft.toml").write_text(_SETTINGS)
    except OSError as error:
        raise ServiceError(f"{error.filename} cannot be written ({error.strerror})", "choose another folder with --data") from None


def _lab(chosen: Namespace) -> Child:
    faults = [part for fault in chosen.fault or DEFAULT_FAULTS for part in ("--fault", fault)]
    made = ("--scale", chosen.scale, "--jobs", str(chosen.jobs), "--seed", str(chosen.seed), *faults)
    return Child("lab", ("lab", "fabric", *made, *passed_on(chosen)))


def _wait_for_settings(chosen: Namespace, lab: Supervisor, clock: Clock, stop: StopRequest, deadline: int | None) -> bool:
    """Wait until the fabric has written its settings; return whether it did before the demo was stopped."""
    patience = clock.monotonic_ns() + int(PATIENCE_S * NS_PER_S)
    while not (chosen.data / "lab" / "collect.toml").exists():
        lab.step(0.05)
        if stop.is_set() or (deadline is not None and clock.monotonic_ns() >= deadline):
            return False
        if clock.monotonic_ns() >= patience:
            raise ServiceError(f"the fabric did not start within {PATIENCE_S:.0f} s", "choose a smaller --scale")
    return True


def _welcome(chosen: Namespace, address: str) -> None:
    lines = [
        "A virtual fabric is running; a fault begins after some ten seconds. Ctrl-C stops it and shows where the fault was.",
        *([] if chosen.no_dashboard else [f"  dashboard  {address}"]),
        f"  DuckDB     duckdb -readonly {chosen.data / 'store' / 'current.duckdb'}",
        "  queries    (in DuckDB, or with weft sql)",
        *(f'  weft sql --data {chosen.data} "{query}"' for query in QUERIES),
    ]
    print("\n".join(lines), flush=True)
