"""``weft lab``: the device side of every protocol, to see collectors at work without a network: live, or as recordings."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from difflib import get_close_matches
from pathlib import Path

from ..pipeline.clock import NS_PER_S, SystemClock
from ..pipeline.component import run
from ..pipeline.errors import ServiceError
from .settings import bus_of, load

_PROTOCOLS = ("gnmi", "sflow", "hft", "otlp")
# Those of ``lab/fabric/faults.py``, which takes too long to load for a word of help.
FAULT_NAMES = (
    *("slow_nic", "pause_storm", "dirty_fibre", "link_flap", "rail_down", "hash_polarization", "few_qps", "incast", "ecn_thresholds"),
    *("pfc_off", "cyclic_buffers", "slow_gpu", "noisy_neighbour", "silent_loss", "frozen_counter", "counter_reset", "lossy_collector"),
    *("late_collector", "skewed_clock"),
)


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("serve", "fabric", "record"),
        help="serve: one scripted switch on loopback; fabric: a virtual fabric in real time; record: a run of it, for weft replay",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="record: the new folder to write")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after so many seconds (record: default 10)")
    parser.add_argument("--only", type=_names, default=_PROTOCOLS, metavar="NAMES", help=f"of {','.join(_PROTOCOLS)} (default: all)")
    parser.add_argument(
        "--certificates", type=Path, metavar="DIR", help="TLS with server.crt and server.key; with ca.crt clients need certificates too"
    )
    parser.add_argument(
        "--port",
        type=_port,
        action="append",
        default=[],
        metavar="NAME=PORT",
        help="serve: where gnmi listens (0: any), where another one sends to; may be repeated",
    )
    fabric_options(parser)


def fabric_options(parser: ArgumentParser) -> None:
    """Add what a virtual fabric is made by."""
    parser.add_argument("--scale", default="rail", metavar="SIZE", help="GPUs, or a layout: toy, rail (64 GPUs), clos (default: rail)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="training jobs on the fabric in real time (default: 1)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of everything that is drawn (default: 1)")
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        metavar="NAME[@PLACE]",
        help=f"what goes wrong, and where (default: drawn), and in a recording when, for how long and how badly: "
        f"NAME[@PLACE[@ONSET[@DURATION[@SEVERITY]]]], times in seconds; may be repeated. One of {', '.join(FAULT_NAMES)}",
    )


def lab(chosen: Namespace) -> int:
    """Serve or run until asked to stop, and print where and the configuration that collects from it; or record."""
    if chosen.action == "fabric":
        return _fabric(chosen)
    if chosen.action == "record":
        return _record(chosen)
    from ..lab.switch.serve import Lab, LabConfig

    clock = SystemClock()
    service = _Announced(
        Lab(LabConfig(chosen.only, dict(chosen.port), _folder(chosen.certificates)), clock, (chosen.data / "lab").absolute())
    )
    run(service, clock, seconds=chosen.seconds)
    return 0


def _fabric(chosen: Namespace) -> int:
    """Run a fabric in real time; its rows go onto the bus of the data folder."""
    from ..collectors.service import CollectConfig, CollectService
    from ..lab.telemetry.live import LiveConfig, LiveFabric
    from ..pipeline.report import Report

    clock = SystemClock()
    settings = load(chosen)
    bus = bus_of(chosen, settings)
    config = LiveConfig(chosen.scale, chosen.jobs, tuple(chosen.fault or ()), chosen.seed)
    fabric = LiveFabric(config, clock, (chosen.data / "lab").absolute())
    given = {"lab": fabric}
    run(CollectService(CollectConfig(), bus, clock, Report.of_this_host("lab", clock), "lab", given), clock, seconds=chosen.seconds)
    bus.close()
    return 0


def _record(chosen: Namespace) -> int:
    from ..lab.telemetry.files import Files, RecordProgress
    from ..lab.telemetry.scenario import scenario

    seconds = 10.0 if chosen.seconds is None else chosen.seconds
    if chosen.folder is None or not seconds > 0:
        raise ServiceError("lab: record writes a folder, of more than 0 seconds", "name a new folder: weft lab record FOLDER --seconds 10")
    config = scenario(chosen.scale, chosen.fault or (), chosen.seed, seconds)
    size = 0

    def show(progress: RecordProgress) -> None:
        nonlocal size
        size = progress.bytes
        if sys.stderr.isatty():
            print(f"\r{progress.done_ns / NS_PER_S:.0f} of {seconds:g} s, {size / 1e6:,.1f} MB", end="", file=sys.stderr, flush=True)

    Files(chosen.folder, config, chosen.seed).write(round(seconds * NS_PER_S), show)
    for fault in config.faults:
        at = f" at {fault.place}" if fault.place else ""
        print(f"{fault.kind}{at}, from {fault.begin_ns / NS_PER_S:g} s for {fault.duration_ns / NS_PER_S:g} s, severity {fault.severity:g}")
    print(f"recorded {seconds:g} s, {size / 1e6:,.1f} MB; what happened is in {chosen.folder / 'truth'}")
    print(f"replay it with: weft replay {chosen.folder}")
    return 0


class _Announced:
    """The lab as a service that says where it is once it is there."""

    def __init__(self, lab) -> None:
        self._lab = lab
        self.step, self.stop = lab.step, lab.stop

    def start(self) -> None:
        self._lab.start()
        where = "".join(f"#   {name:<6} {'on' if name == 'gnmi' else 'to'} {address}\n" for name, address in self._lab.addresses().items())
        print(
            f"# A scripted switch, {self._lab.script.switch.device}. Ctrl-C stops it.\n{where}# weft.toml:\n\n{self._lab.toml()}",
            flush=True,
        )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if unknown := [name for name in names if name not in _PROTOCOLS]:
        raise ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_PROTOCOLS)}")
    return tuple(name for name in _PROTOCOLS if name in names)


def _fault(text: str) -> str:
    name = text.partition("@")[0]
    if name not in FAULT_NAMES:
        near = get_close_matches(name, FAULT_NAMES, n=1)
        raise ArgumentTypeError(f"there is no fault {name!r}; " + (f"did you mean {near[0]!r}?" if near else "see --help"))
    return text


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in _PROTOCOLS or not number.isdigit() or int(number) > 65535:
        raise ArgumentTypeError(f"{text!r} is not NAME=PORT with a name of {', '.join(_PROTOCOLS)}")
    return name, int(number)


def _folder(folder: Path | None) -> Path | None:
    if folder is not None and not (folder / "server.crt").exists():
        raise ServiceError(f"lab: {folder} has no server.crt", "name the folder that holds server.crt and server.key")
    return folder.absolute() if folder else None
