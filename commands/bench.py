"""``weft bench``: rates and memory of this machine, each compared with a limit or a peer in the same run.

A rate alone depends on the machine. So every line has a ratio: to the bare kernel over the same data, to scapy over the same packets, or to
the memory goal.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from ..lab.bench.bursts import DEVICES, PORTS
from ..lab.bench.detect import detect
from ..lab.bench.table import PARTS, table
from ..pipeline.errors import ServiceError
from .lab import fault_text


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "part",
        nargs="*",
        type=_part,
        metavar="PART",
        help=f"parts to run: {', '.join(PARTS)}; or detect, which scores the rules against known faults",
    )
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="the same as PART; may be repeated")
    parser.add_argument(
        "--seconds",
        type=int,
        default=20,
        metavar="N",
        help=f"seconds of {DEVICES * PORTS:,} ports at 1 ms to measure with, fewer at shorter intervals (default: 20)",
    )
    _detect_options(parser)


def bench(chosen: Namespace) -> int:
    """Run the parts and print a table as they finish; ``detect`` has tables of its own."""
    if "detect" in chosen.part:
        if len(chosen.part) > 1 or chosen.only:
            raise ServiceError("bench: detect prints its own tables", "run it alone: weft bench detect")
        return detect(chosen)
    for line in table({*chosen.part, *(chosen.only or ())}, chosen.seconds):
        print(line, flush=True)
    return 0


def _detect_options(parser: ArgumentParser) -> None:
    """Add the options of ``weft bench detect`` alone."""
    parser.add_argument(
        "--faults",
        type=_faults,
        metavar="NAMES",
        help="detect: comma-separated faults, as in weft lab record; none: quiet runs only (default: all)",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="detect: runs of each fault, each with its own seed (default: 1)")
    parser.add_argument("--quiet-seeds", type=int, default=3, metavar="N", help="detect: runs without a fault (default: 3)")
    parser.add_argument(
        "--scales", type=_names, default=("64",), metavar="GPUS", help="detect: GPUs or layouts, as in weft lab record (default: 64)"
    )
    parser.add_argument(
        "--run-seconds", type=float, default=8.0, metavar="N", help="detect: seconds of the fabric in each run (default: 8)"
    )
    parser.add_argument(
        "--rules", type=Path, metavar="DIR", help="detect: folder of the rules to score (default: all default rules, profile training)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="detect: format of the tables (default: text)")


def _part(text: str) -> str:
    if text not in PARTS and text != "detect":
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(PARTS)}, detect")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _faults(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(map(fault_text, _names(text)))
