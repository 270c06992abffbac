"""``weft lab``: the device side of every protocol, to see collectors at work without a network: live, or as recordings."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from ..pipeline.clock import NS_PER_S, SystemClock
from ..pipeline.component import run
from ..pipeline.errors import ServiceError

_PROTOCOLS = ("gnmi", "sflow", "hft", "otlp")


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("serve", "record"),
        help="serve: one scripted switch on loopback until Ctrl-C; record: a run of the virtual fabric, for weft replay",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="record: the new folder to write")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after so many seconds (record: default 10)")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="FAULT",
        help="record: NAME[@PLACE[@ONSET[@DURATION[@SEVERITY]]]], times in seconds; what is left out is chosen; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="record: the same seed gives the same bytes (default: 1)")
    parser.add_argument("--scale", default="64", metavar="GPUS", help="record: 8, 64, 256, 512 or 4096 GPUs (default: 64)")
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
        help="where gnmi listens (0: any), where another one sends to; may be repeated",
    )


def lab(chosen: Namespace) -> int:
    """Serve until asked to stop, and print where and the configuration that collects from it; or record."""
    if chosen.action == "record":
        return _record(chosen)
    from ..collectors.lab.serve import Lab, LabConfig

    clock = SystemClock()
    service = _Announced(
        Lab(LabConfig(chosen.only, dict(chosen.port), _folder(chosen.certificates)), clock, (chosen.data / "lab").absolute())
    )
    run(service, clock, seconds=chosen.seconds)
    return 0


def _record(chosen: Namespace) -> int:
    from ..collectors.lab.files import Files, Progress
    from ..collectors.lab.scenario import scenario

    seconds = 10.0 if chosen.seconds is None else chosen.seconds
    if chosen.folder is None or not seconds > 0:
        raise ServiceError("lab: record writes a folder, of more than 0 seconds", "name a new folder: weft lab record FOLDER --seconds 10")
    config = scenario(chosen.scale, chosen.fault, chosen.seed, seconds)
    size = 0

    def show(progress: Progress) -> None:
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


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in _PROTOCOLS or not number.isdigit() or int(number) > 65535:
        raise ArgumentTypeError(f"{text!r} is not NAME=PORT with a name of {', '.join(_PROTOCOLS)}")
    return name, int(number)


def _folder(folder: Path | None) -> Path | None:
    if folder is not None and not (folder / "server.crt").exists():
        raise ServiceError(f"lab: {folder} has no server.crt", "name the folder that holds server.crt and server.key")
    return folder.absolute() if folder else None
