"""``weft counters``: what a counter is, where Weft keeps it, and what everybody else calls it."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence

from ..pipeline.dictionary import Alias, Counter, Dictionary, Found, Source, dictionary
from ..pipeline.errors import InputError

# Counters that are shown with all their names, and those that are only named after them.
_FULL_MAX = 3
_BRIEF_MAX = 20


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="a name or a part of one, in any source or Weft's own; case and separators do not matter. Without it: the sources",
    )
    parser.add_argument(
        "--source", choices=tuple(dictionary().sources), metavar="NAME", help="only what this source calls so; without TEXT, all its names"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json: one line a name (default: table)")


def counters(chosen: Namespace) -> int:
    """Explain a name, list a source or list the sources."""
    known = dictionary()
    if chosen.text is None:
        _listing(known, chosen.source, chosen.format)
        return 0
    found = [one for one in known.explain(chosen.text) if chosen.source in (None, one.alias.source)]
    if not found:
        raise _unknown(known, chosen.text, chosen.source)
    if chosen.format == "json":
        _lines(found)
    else:
        _explain(known, found)
    return 0


def _unknown(known: Dictionary, text: str, source: str | None) -> InputError:
    elsewhere = {one.alias.source for one in known.explain(text)} - {source}
    if elsewhere:
        return InputError(text, f"{source} has no such counter", f"it is one of {', '.join(sorted(elsewhere))}")
    near = known.near(text)
    mend = f"did you mean {', '.join(near)}" if near else "give a part of the name, as in 'weft counters pause', or list with --source"
    return InputError(text, "no counter is called so", mend)


def _explain(known: Dictionary, found: Sequence[Found]) -> None:
    """Print the first counters in full, the others by name."""
    indices: dict[Counter, set[int | None]] = {}
    for one in found:
        indices.setdefault(one.alias.counter, set()).add(one.n)
    shown = list(indices)
    for counter in shown[:_FULL_MAX]:
        n = next(iter(indices[counter])) if len(indices[counter]) == 1 else None
        print("\n".join(_full(counter, known.of(counter.key), n)) + "\n")
    rest = shown[_FULL_MAX:]
    if rest:
        first = {counter: next(one for one in found if one.alias.counter is counter) for counter in rest}
        print("also:")
        _columns([(f"  {first[counter].name}", counter.key, counter.doc) for counter in rest[:_BRIEF_MAX]])
    if len(rest) > _BRIEF_MAX:
        print(f"  and {len(rest) - _BRIEF_MAX} more: give more of the name")


def _full(counter: Counter, aliases: Iterable[Alias], n: int | None) -> list[str]:
    index = "" if n is None else f"  (n = {n})"
    unit = f", in {counter.unit}" if counter.unit else ""
    where = "reading.name" if counter.family == "reading" else f"column {counter.name} of family {counter.family}"
    lines = [f"{counter.key}{index}", f"  {counter.doc}", f"  {counter.kind}{unit}; {where}", ""]
    rows = [("  SOURCE", "NAME", "OF", "BITS", "NOTES")]
    rows += [(f"  {one.source}", one.spell(n if one.span else None), one.object, str(one.width), _notes(one, n)) for one in aliases]
    return lines + _aligned(rows)


def _notes(alias: Alias, n: int | None) -> str:
    """Say what a reader of the raw value has to know."""
    notes = []
    number = alias.number(n)
    if number is not None:
        notes.append(f"id {number:#x}" if alias.source == "sai" else f"field {number}")
        if n is None and alias.step is not None:
            notes[-1] += f" + {alias.step}n"
    if alias.span is not None and n is None:
        notes.append(f"n = {alias.span[0]} to {alias.span[1]}")
    if alias.scale != 1:
        notes.append(f"times {alias.scale:g}")
    if alias.kind == "watermark":
        notes.append("cleared by the device or by reading")
    elif alias.kind != "counter":
        notes.append(alias.kind)
    if alias.saturates:
        notes.append(f"stops at {2**alias.width - 1}")
    elif alias.kind == "counter" and alias.width < 64:
        notes.append(f"wraps at 2^{alias.width}")
    if alias.unknown is not None:
        notes.append("all ones: unknown")
    return ", ".join(notes)


def _listing(known: Dictionary, source: str | None, form: str) -> None:
    """Print every name of one source, or the sources; as JSON every name of all."""
    aliases = [one for one in known.aliases if source in (None, one.source)]
    if form == "json":
        _lines(Found(one, None) for one in aliases)
    elif source is not None:
        _columns([("NAME", "IS", "MEANING"), *((one.name, one.counter.key, one.counter.doc) for one in aliases)])
    else:
        _columns([("SOURCE", "NAMES", "WHAT"), *_sources(known)])
        print("\nweft counters TEXT explains a name; weft counters --source NAME lists one source")


def _sources(known: Dictionary) -> list[tuple[str, str, str]]:
    def line(source: Source) -> tuple[str, str, str]:
        names = sum(len(one.indices()) for one in known.aliases if one.source == source.name)
        return source.name, str(names), source.doc

    return [line(source) for source in known.sources.values()]


def _lines(found: Iterable[Found]) -> None:
    for alias, n in found:
        counter = alias.counter
        line = {"counter": counter.key, "family": counter.family, "name": counter.name, "unit": counter.unit, "doc": counter.doc}
        line |= {"source": alias.source, "source_name": alias.spell(n), "n": n, "object": alias.object, "bits": alias.width}
        line |= {"kind": alias.kind, "scale": alias.scale, "saturates": alias.saturates, "id": alias.number(n), "unknown": alias.unknown}
        print(json.dumps(line))
    sys.stdout.flush()


def _columns(rows: Sequence[tuple[str, ...]]) -> None:
    print("\n".join(_aligned(rows)))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
