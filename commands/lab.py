"""``weft lab``: the device side of every protocol on this machine, to see collectors at work without a network."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from ..pipeline.clock import SystemClock
from ..pipeline.component import run
from ..pipeline.errors import ServiceError

_PROTOCOLS = ("gnmi", "sflow", "hft", "otlp")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("serve",), help="serve: one scripted switch on loopback until Ctrl-C")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after so many seconds")
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
    """Serve until asked to stop; print where, and the configuration that collects from it."""
    from ..collectors.lab.serve import Lab, LabConfig

    clock = SystemClock()
    service = _Announced(
        Lab(LabConfig(chosen.only, dict(chosen.port), _folder(chosen.certificates)), clock, (chosen.data / "lab").absolute())
    )
    run(service, clock, seconds=chosen.seconds)
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
