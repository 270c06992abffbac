"""The benchmark table of ``weft bench``: its parts, and each measurement as a line of text."""

from collections.abc import Callable, Collection, Iterator

from .bursts import bursts, live
from .counters import counters
from .fabric import fabric
from .gnmi import gnmi
from .hft import hft
from .lab import lab
from .measure import Line
from .packets import packets
from .sflow import sflow

# Each takes the seconds to measure for.
PARTS: dict[str, Callable[[int], Iterator[Line]]] = {
    "bursts": bursts,
    "live": live,
    "packets": packets,
    "counters": counters,
    "sflow": sflow,
    "hft": hft,
    "gnmi": gnmi,
    "lab": lab,
    "fabric": fabric,
}


def table(wanted: Collection[str], seconds: int) -> Iterator[str]:
    """Run the wanted parts, all of them if none is named; yield the head and each line as it is measured."""
    yield f"{'what':<46} {'measured':>18}  {'beside':<44} goal"
    for name, part in PARTS.items():
        if not wanted or name in wanted:
            for line in part(seconds):
                yield f"{line.what:<46} {line.value:>18}  {line.beside:<44} {line.goal}"
