"""``weft lab``: a scripted switch or a virtual fabric, to run collectors without a network: live, or as recordings."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from difflib import get_close_matches
from pathlib import Path

from ..pipeline.clock import NS_PER_S, SystemClock
from ..pipeline.component import run
from ..pipeline.errors import ServiceError
from .compile import LAB, compile_first
from .services import serve
from .settings import load

_PROTOCOLS = ("gnmi", "sflow", "hft", "otlp")
# Those of ``lab/fabric/faults.py``, which takes too long to load for help.
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
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds (record: default 10)")
    parser.add_argument(
        "--only",
        type=_names,
        default=_PROTOCOLS,
        metavar="NAMES",
        help=f"serve: only these protocols of {','.join(_PROTOCOLS)} (default: all)",
    )
    parser.add_argument(
        "--certificates",
        type=Path,
        metavar="DIR",
        help="serve: TLS with server.crt and server.key; with ca.crt clients need certificates too",
    )
    parser.add_argument(
        "--port",
        type=_port,
        action="append",
        default=[],
        metavar="NAME=PORT",
        help="serve: port on which gnmi listens (0: any) or to which another protocol sends; may be repeated",
    )
    fabric_options(parser)


def fabric_options(parser: ArgumentParser) -> None:
    """Add the options of a virtual fabric."""
    parser.add_argument("--scale", default="rail", metavar="SIZE", help="GPUs, or a layout: toy, rail (64 GPUs), clos (default: rail)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="training jobs on the fabric in real time (default: 1)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of all random choices (default: 1)")
    parser.add_argument(
        "--fault",
        type=fault_text,
        action="append",
        metavar="NAME[@PLACE]",
        help=f"a fault and its place (default: drawn at random); in a recording also when, for how long and how severe: "
        f"NAME[@PLACE[@ONSET[@DURATION[@SEVERITY]]]], times in seconds; may be repeated. One of {', '.join(FAULT_NAMES)}",
    )


def lab(chosen: Namespace) -> int:
    """Serve or run until stopped, and print the addresses and a configuration that collects from them; or record."""
    compile_first(LAB)
    if chosen.action == "fabric":
        return _fabric(chosen)
    if chosen.action == "record":
        return _record(chosen)
    from ..lab.switch.serve import Lab, LabConfig

    clock = SystemClock()
    service = _AnnouncedLab(
        Lab(LabConfig(chosen.only, dict(chosen.port), _folder(chosen.certificates)), clock, (chosen.data / "lab").absolute())
    )
    run(service, clock, seconds=chosen.seconds)
    return 0


def _fabric(chosen: Namespace) -> int:
    """Run a fabric in real time; its rows go onto the bus of the data folder."""
    from ..collectors.service import CollectConfig, CollectService
    from ..lab.telemetry.live import LiveConfig, LiveFabric

    config = LiveConfig(chosen.scale, chosen.jobs, tuple(chosen.fault or ()), chosen.seed)
    fabric = LiveFabric(config, SystemClock(), (chosen.data / "lab").absolute())
    return serve(chosen, load(chosen), "lab", lambda *on: CollectService(CollectConfig(), *on, name="lab", given={"lab": fabric}))


def _record(chosen: Namespace) -> int:
    from ..lab.telemetry.files import Files, RecordProgress
    from ..lab.telemetry.scenario import scenario

    seconds = 10.0 if chosen.seconds is None else chosen.seconds
    if chosen.folder is None or not seconds > 0:
        raise ServiceError("lab: record needs a new folder and more than 0 seconds", "write: weft lab record FOLDER --seconds 10")
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
    print(f"recorded {seconds:g} s, {size / 1e6:,.1f} MB; the ground truth is in {chosen.folder / 'truth'}")
    print(f"replay it with: weft replay {chosen.folder}")
    return 0


class _AnnouncedLab:
    """The lab as a service that prints its addresses once it has started."""

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
        raise ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(_PROTOCOLS)}")
    return tuple(name for name in _PROTOCOLS if name in names)


def fault_text(text: str) -> str:
    """Check the name of a fault, for ``argparse``."""
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
