"""The names and meanings of all vendors' counters: one dictionary, data in ``dictionary.toml``.

One quantity has a dozen names: pause frames of priority 3 are ``SAI_PORT_STAT_PFC_3_RX_PKTS`` on a SONiC switch and
``rx_prio3_pause`` at an mlx5 adapter. A canonical counter defines the quantity and its column. An alias defines the name at one
source, the register's width and unit, and whether it saturates. A new vendor needs new lines of data, no code.

The file bounds the memory. Names with ``{n}`` are expanded when the file is read, so a look-up is one ``dict`` access.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["counter", "gauge", "watermark", "state"]

KINDS = ("counter", "gauge", "watermark", "state")
OBJECTS = ("port", "queue", "priority_group", "buffer_pool", "nic", "nvlink", "gpu", "transceiver", "device")
# SAI object types with statistics, and their names here.
SAI_OBJECTS = {1: "port", 21: "queue", 24: "buffer_pool", 26: "priority_group"}

_FILE = Path(__file__).with_name("dictionary.toml")
_MATCHES_MAX = 200
# Keys of a counter that are not sources.
_OWN = frozenset(("unit", "kind", "doc"))
# Counters of 64 bits, whatever the registers behind them.
WIDE = "wide"
_PRIORITIES = (0, 7)
# The unit of a counter by the end of its name.
_UNITS = {"bytes": "bytes", "packets": "packets", "frames": "frames", "ns": "ns", "us": "us", "bps": "bit/s", "w": "W"}


@dataclass(frozen=True, slots=True)
class Counter:
    """A canonical counter: ``name`` is its column where ``family`` has one, else its name in a ``reading``."""

    name: str
    family: str
    unit: str
    kind: Kind
    doc: str

    @property
    def key(self) -> str:
        """The name in ``Dictionary.counters``: ``family.name``, since families share names."""
        return f"{self.family}.{self.name}"


@dataclass(frozen=True, slots=True)
class Alias:
    """The name of a counter at one source; ``{n}`` in it stands for a priority, lane or bin of ``span``.

    The canonical value is the raw one times ``scale``. The raw value ``unknown`` means that the device does not
    count this. A counter of ``width`` bits wraps at 2^width, or stays at its maximum if it ``saturates``. ``id`` is the source's number
    (a SAI statistic, a DCGM field), of index n ``id + step * n``.
    """

    source: str
    name: str
    counter: Counter
    object: str
    width: int = 64
    kind: Kind = "counter"
    scale: float = 1.0
    saturates: bool = False
    id: int | None = None
    step: int | None = None
    span: tuple[int, int] | None = None
    unknown: int | None = None

    def spell(self, n: int | None) -> str:
        """Return the name of index n."""
        return self.name if n is None else self.name.replace("{n}", str(n))

    def number(self, n: int | None) -> int | None:
        """Return the number of index n, ``None`` where the source has none."""
        return self.id if self.id is None or n is None else self.id + (self.step or 0) * n

    def indices(self) -> tuple[int | None, ...]:
        """Return every index of the name; ``(None,)`` if it has none."""
        return (None,) if self.span is None else tuple(range(self.span[0], self.span[1] + 1))


class Found(NamedTuple):
    """An alias, and the index in the name that was looked up."""

    alias: Alias
    n: int | None

    @property
    def name(self) -> str:
        """The name as its source spells it."""
        return self.alias.spell(self.n)


class Width(NamedTuple):
    """The width of a column: bits, kind, and whether it stays at its maximum instead of wrapping."""

    bits: int
    kind: Kind
    saturates: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A source of names: its description, and the default object and width of its aliases.

    With ``all_ones_unknown`` a register of all ones means unknown. ``also`` lists sources whose names it uses too.
    """

    name: str
    doc: str
    object: str
    width: int = 64
    all_ones_unknown: bool = False
    also: tuple[str, ...] = ()


class Dictionary:
    """All counters and all their names. ``counters`` is keyed by ``family.name``.

    ``collectors`` maps each collector to the source of its registers, or to ``WIDE`` where it publishes 64 bits.
    """

    def __init__(
        self, sources: Mapping[str, Source], aliases: tuple[Alias, ...], counters: Mapping[str, Counter], collectors: Mapping[str, str]
    ) -> None:
        self.sources = sources
        self.collectors = collectors
        self.aliases = aliases
        self.counters = counters
        self._found: dict[tuple[str, str], Found] = {}
        self._numbered: dict[tuple[str, str, int], Found] = {}
        self._of: dict[Counter, list[Alias]] = {}
        for alias in aliases:
            self._of.setdefault(alias.counter, []).append(alias)
            for n in alias.indices():
                found = Found(alias, n)
                self._found.setdefault((alias.source, alias.spell(n)), found)
                number = alias.number(n)
                if number is not None:
                    self._numbered.setdefault((alias.source, alias.object, number), found)

    def find(self, source: str, name: str) -> Found | None:
        """Return the counter that a source calls exactly this; a blank equals ``_``."""
        name = name.replace(" ", "_")
        found = self._found.get((source, name))
        if found is None and source in self.sources:
            found = next((one for other in self.sources[source].also if (one := self._found.get((other, name)))), None)
        return found

    def sai(self, object_type: int, stat: int) -> Found | None:
        """Return the statistic ``stat`` of a SAI object type: 1 port, 21 queue, 24 buffer pool, 26 ingress priority group."""
        return self._numbered.get(("sai", SAI_OBJECTS.get(object_type, ""), stat))

    def number(self, source: str, kind: str, number: int) -> Found | None:
        """Return the counter with this number at a source, of one kind of object (a DCGM field: ``dcgm``, ``gpu``)."""
        return self._numbered.get((source, kind, number))

    def of(self, counter: str) -> list[Alias]:
        """Return all names of a canonical counter, given as ``family.name`` or as a name, which several families may share."""
        exact = self.counters.get(counter)
        named = [exact] if exact is not None else [one for one in self.counters.values() if one.name == counter]
        return [alias for one in named for alias in self._of.get(one, ())]

    def width(self, collector: str, family: str, column: str) -> Width:
        """Return how a column wraps as a collector publishes it: as the narrowest register behind it that the collector passes on.

        Rows of an undeclared collector (a user's file) count as 64 bits wide. That is the safe side: a counter that goes
        back is then a reset, which ``quality`` counts, and never becomes false traffic.
        """
        counter = self.counters.get(f"{family}.{column}")
        kind = counter.kind if counter is not None else "counter"
        source = self.collectors.get(collector, WIDE)
        if counter is None or source == WIDE:
            return Width(64, kind, False)
        mine = [alias for alias in self._of.get(counter, ()) if alias.source == source]
        if not mine:
            return Width(64, kind, False)
        narrow = min(mine, key=lambda alias: alias.width)
        return Width(narrow.width, narrow.kind, narrow.saturates)

    def explain(self, text: str) -> list[Found]:
        """Return the possible meanings of a text in any source, best first: a name, a canonical name, or a part of a name.

        Case and separators do not matter: ``PFC_3_RX`` is ``SAI_PORT_STAT_PFC_3_RX_PKTS`` and longer names with these
        words in this order. Parts count only where nothing has the whole name.
        """
        words = _words(text)
        if not words:
            return []
        best = [self._found[key] for key, theirs in self._spelled.items() if theirs == words]
        named = [one for one in self.counters.values() if words in (_words(one.name), _words(one.key))]
        known = {found.alias.counter for found in best}
        best += [Found(alias, None) for one in named if one not in known for alias in self._of.get(one, ())]
        if best:
            return best
        parts = [(len(theirs), place, key) for key, theirs in self._spelled.items() if (place := _place(words, theirs)) is not None]
        parts.sort(key=lambda part: (part[0], part[1]))
        return [self._found[key] for _, _, key in parts[:_MATCHES_MAX]]

    def near(self, text: str, count: int = 5) -> list[str]:
        """Return the names most similar to a mistyped one."""
        names = {"_".join(_words(name)): name for _, name in self._found}
        names |= {"_".join(_words(one.name)): one.name for one in self.counters.values()}
        return [names[near] for near in get_close_matches("_".join(_words(text)), names, n=count, cutoff=0.6)]

    @cached_property
    def _spelled(self) -> dict[tuple[str, str], tuple[str, ...]]:
        return {key: _words(key[1]) for key in self._found}


@cache
def dictionary() -> Dictionary:
    """Return Weft's dictionary; read once."""
    with _FILE.open("rb") as file:
        return read(tomllib.load(file))


def read(data: Mapping[str, Mapping[str, Any]]) -> Dictionary:
    """Return the dictionary of a parsed file: ``sources`` and ``collectors`` first, then a table of counters for each family.

    A counter has ``doc``, a ``kind`` unless it is a counter, a ``unit`` unless its name ends in one, and under each source its name or
    names there. Words after a name override the source's defaults: an object; ``32``, the bits; ``x4``, the scale; ``saturates``; a
    kind; ``#0x67+2``, the number and the step of ``{n}``; ``0..7``, the range of n. Raises ``ValueError`` for any other word and
    ``KeyError`` for an undeclared source.
    """
    sources = {name: Source(name, **table) for name, table in data["sources"].items()}
    counters: dict[str, Counter] = {}
    aliases: list[Alias] = []
    for family, tables in data.items():
        if family in ("sources", "collectors"):
            continue
        for name, table in tables.items():
            counter = Counter(name, family, table.get("unit", _unit(name)), table.get("kind", "counter"), table["doc"])
            counters[counter.key] = counter
            for source, spelled in table.items():
                if source not in _OWN:
                    lines = [spelled] if isinstance(spelled, str) else spelled
                    aliases += [_alias(sources[source], counter, line) for line in lines]
    collectors = {name: WIDE if source == WIDE else sources[source].name for name, source in data.get("collectors", {}).items()}
    return Dictionary(sources, tuple(aliases), counters, collectors)


def _alias(source: Source, counter: Counter, line: str) -> Alias:
    name, *words = line.split()
    seen = {"object": source.object, "width": source.width, "kind": counter.kind, "span": _PRIORITIES if "{n}" in name else None}
    for word in words:
        seen |= _meaning(word)
    if source.all_ones_unknown:
        seen["unknown"] = (1 << seen["width"]) - 1
    return Alias(source.name, name, counter, **seen)


def _meaning(word: str) -> dict:
    """Return the attributes that one word after a name sets."""
    if word in OBJECTS:
        return {"object": word}
    if word in KINDS:
        return {"kind": word}
    if word == "saturates":
        return {"saturates": True}
    if word.isdigit():
        return {"width": int(word)}
    if word[0] == "x":
        return {"scale": float(word[1:])}
    if word[0] == "#":
        number, _, step = word[1:].partition("+")
        return {"id": int(number, 0), "step": int(step, 0) if step else None}
    first, dots, last = word.partition("..")
    if not dots:
        raise ValueError(f"{word!r} is no word of the dictionary")
    return {"span": (int(first), int(last))}


def _unit(name: str) -> str:
    return _UNITS.get(name.rpartition("_")[2], "")


_WORD = re.compile(r"[a-z]+|[0-9]+")


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: letters or digits."""
    return tuple(_WORD.findall(name.lower()))


def _place(words: tuple[str, ...], name: tuple[str, ...]) -> int | None:
    """Return the last place where the words are adjacent in a name, ``None`` if there is none."""
    spots = range(len(name) - len(words), -1, -1)
    return next((len(name) - spot for spot in spots if name[spot : spot + len(words)] == words), None)
