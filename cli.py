"""The command line.

Each command builds its parts from the configuration and runs them. A user's error is one sentence on standard error and exit code 1 (2 for
a wrong command line), never a traceback.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from . import __version__
from .pipeline.errors import WeftError
from .pipeline.memory import use_one_allocator
from .pipeline.supervise import follow_supervisor


@dataclass(frozen=True, slots=True)
class Command:
    """One line of ``COMMANDS``: description and module in ``commands``.

    A module is loaded only for its own command, so that a supervisor does not load the modules of its services and help is quick.
    """

    doc: str
    module: str
    examples: tuple[str, ...] = ()
    # The default data folder.
    data: str = "weft-data"

    def load(self, name: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]:
        """Return the function that adds the command's options to a parser, and the one that runs it."""
        module = import_module(f".commands.{self.module}", __package__)
        return getattr(module, f"{name}_options", None) or module.options, getattr(module, name)


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "watch a virtual fabric with a fault, next to this machine's own interfaces",
        "demo",
        ("weft demo", "weft demo --fault incast --fault link_flap@leaf-00-0/Ethernet32", "weft demo --seconds 60 --no-dashboard"),
        data="weft-demo",
    ),
    "up": Command(
        "collect from this machine, compute, store, alert and show, in one command",
        "up",
        ("weft up", "weft up --seconds 60 --no-dashboard"),
    ),
    "collect": Command("run the configured live collectors", "services", ("weft collect",)),
    "process": Command("compute windows; run several to share the work", "services", ("weft process --member process-1",)),
    "analyze": Command("store, evaluate the rules and publish; one per store", "services", ("weft analyze",)),
    "dash": Command("serve the dashboard", "services", ("weft dash --port 8600",)),
    "replay": Command(
        "feed a recording through the whole pipeline to its end",
        "recordings",
        ("weft replay capture.pcap", "weft replay metadc_test.csv --line-rate 12.5e9 --data demo", "weft replay night.weft --speed 1x"),
    ),
    "decode": Command(
        "print the rows that a collector makes of a recording",
        "recordings",
        ("weft decode capture.pcap", "weft decode capture.pcap --format json | head", "weft decode night.weft --family port --format csv"),
    ),
    "record": Command(
        "write the rows of the live collectors to a file, to replay later",
        "recordings",
        ("weft record night.weft --seconds 600",),
    ),
    "sql": Command(
        "query the published store; without a query, a prompt",
        "query",
        ('weft sql "SELECT * FROM bursts ORDER BY bytes DESC LIMIT 10"', 'weft sql --format csv "FROM ports_1m"'),
    ),
    "counters": Command(
        "explain a counter: what it counts, where Weft stores it, its name at each vendor",
        "counters",
        (
            "weft counters PFC_3_RX",
            "weft counters rx_packets",
            "weft counters out_of_sequence --source ionic",
            "weft counters --source efa",
            "weft counters --format json",
        ),
    ),
    "lab": Command(
        "simulate a switch that speaks every protocol, or a whole fabric, on this machine; or record a run of the fabric",
        "lab",
        (
            "weft lab serve --seconds 60 --only gnmi,sflow",
            "weft lab fabric --scale 32 --fault incast",
            "weft lab record run1 --fault pause_storm",
        ),
    ),
    "check": Command(
        "validate the configuration and the environment; each finding has a hint",
        "check",
        ("weft check", "weft check --dump"),
    ),
    "bench": Command(
        "measure rates and memory on this machine, compared with limits; or score the rules against known faults",
        "bench",
        ("weft bench", "weft bench --only bursts", "weft bench detect", "weft bench detect --faults pause_storm,link_flap --seeds 3"),
    ),
}


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the options of the commands that occur in the arguments."""
    top = argparse.ArgumentParser(prog="weft", description="Telemetry and analytics for the back-end fabric of GPU clusters.")
    top.add_argument("--version", action="version", version=f"weft {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        examples = "".join(f"\n  {example}" for example in command.examples)
        sub = subparsers.add_parser(
            name,
            parents=[_shared(command)],
            help=command.doc,
            description=command.doc[0].upper() + command.doc[1:] + ".",
            epilog=f"examples:{examples}\n\nexit codes: 0 done, 1 failed, 2 wrong command line",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(parser=sub)
        if name in arguments:
            command.load(name)[0](sub)
    return top


def _shared(command: Command) -> argparse.ArgumentParser:
    """Return the options that every command has."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, metavar="FILE", help="configuration (TOML); all of it is optional")
    shared.add_argument(
        "--data",
        type=Path,
        default=Path(command.data),
        metavar="DIR",
        help=f"folder of the store and the embedded bus (default: ./{command.data})",
    )
    shared.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="least severe messages on standard error (default: info)",
    )
    return shared


def options_of(name: str) -> list[tuple[str, str]]:
    """Return the options of one command for the generated docs: flags and meaning."""
    sub = argparse.ArgumentParser(add_help=False)
    COMMANDS[name].load(name)[0](sub)
    listed = []
    for action in sub._actions:
        flags = ", ".join(action.option_strings) or action.dest
        value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
        listed.append((flags + value, action.help or ""))
    return listed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen, unknown = parser(words).parse_known_args(words)
    if unknown:
        _refuse(chosen.parser, unknown[0])
    logging.basicConfig(
        level=chosen.log_level.upper(), format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL if chosen.log_level == "info" else logging.INFO)
    if arguments is None and chosen.command != "dash":
        use_one_allocator()
    try:
        follow_supervisor()
        return COMMANDS[chosen.command].load(chosen.command)[1](chosen)
    except WeftError as error:
        print(f"weft: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _abandon_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _abandon_output()
        print("weft: the output cannot be written, its disk is full; free space or write elsewhere", file=sys.stderr)
        return 1


def _refuse(sub: argparse.ArgumentParser, word: str) -> NoReturn:
    """Exit with a message about an unknown argument."""
    flags = [flag for action in sub._actions for flag in action.option_strings]
    near = get_close_matches(word.partition("=")[0], flags, n=1)
    sub.error(f"there is no {word!r} here; {f'did you mean {near[0]}' if near else f'see {sub.prog} --help'}")


def _abandon_output() -> None:
    """Discard the rest of the output, which Python would fail to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
