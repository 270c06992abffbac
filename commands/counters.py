"""``weft counters``: the meaning of a counter, where Weft stores it, and its name in each source."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter as Counts
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..pipeline.dictionary import Alias, Counter, Dictionary, Found, dictionary
from ..pipeline.errors import InputError
from ..pipeline.tables.families import FAMILIES

# Maximum of counters shown with all their names, and of counters only listed after them.
_FULL_MAX = 3
_BRIEF_MAX = 20


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="a name or a part of one, in any source or Weft's own; case and separators do not matter. Without it: the sources",
    )
    parser.add_argument("--source", metavar="NAME", help="only the names of this source; without TEXT, all of them")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json: one line per name (default: table)")


def counters(chosen: Namespace) -> int:
    """Explain a name, list a source or list the sources. Raises ``InputError`` for an unknown name."""
    known = dictionary()
    source = chosen.source
    if source is not None and source not in known.sources:
        raise InputError(f"--source {source}", "there is no such source", f"choose from {', '.join(known.sources)}")
    if chosen.text is None:
        _listing(known, source, chosen.format)
        return 0
    answers = _answers(known, known.explain(chosen.text), source)
    if not answers:
        raise _unknown(known, chosen.text, source)
    if chosen.format == "json":
        _lines(Found(alias, answer.n if alias.span else None) for answer in answers for alias in answer.aliases)
    else:
        _explain(answers)
    return 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A matching counter, the matched index if it is unique, the matched name, and the names to show."""

    counter: Counter
    n: int | None
    name: str
    aliases: tuple[Alias, ...]


def _answers(known: Dictionary, found: Sequence[Found], source: str | None) -> list[_Answer]:
    indices: dict[Counter, set[int | None]] = {}
    for one in found:
        indices.setdefault(one.alias.counter, set()).add(one.n)
    answers = []
    for counter, those in indices.items():
        n = next(iter(those)) if len(those) == 1 else None
        matched = next(one.alias for one in found if one.alias.counter is counter)
        named = (alias for alias in known.of(counter.key) if source in (None, alias.source))
        aliases = tuple(alias for alias in named if n is None or alias.span is None or n in alias.indices())
        if aliases:
            answers.append(_Answer(counter, n, matched.spell(n), aliases))
    return answers


def _unknown(known: Dictionary, text: str, source: str | None) -> InputError:
    elsewhere = {alias.source for one in known.explain(text) for alias in known.of(one.alias.counter.key)}
    if elsewhere:
        return InputError(text, f"{source} has no such counter", f"these have: {', '.join(sorted(elsewhere))}")
    near = known.near(text)
    hint = f"did you mean {', '.join(near)}" if near else "give a part of the name, as in 'weft counters pause', or list with --source"
    return InputError(text, "no counter is called so", hint)


def _explain(answers: Sequence[_Answer]) -> None:
    """Print the first counters in full, the others by name."""
    for answer in answers[:_FULL_MAX]:
        print("\n".join(_full(answer)) + "\n")
    rest = answers[_FULL_MAX:]
    if rest:
        print("also:")
        _columns([(f"  {one.name}", one.counter.key, one.counter.doc) for one in rest[:_BRIEF_MAX]])
    if len(rest) > _BRIEF_MAX:
        print(f"  and {len(rest) - _BRIEF_MAX} more: give more of the name")


def _full(answer: _Answer) -> list[str]:
    counter, n = answer.counter, answer.n
    index = "" if n is None else f"  (n = {n})"
    unit = f", in {counter.unit}" if counter.unit else ""
    lines = [f"{counter.key}{index}", f"  {counter.doc}", f"  {counter.kind}{unit}; {place(counter)}", ""]
    rows = [("  SOURCE", "NAME", "OF", "BITS", "NOTES")]
    for one in answer.aliases:
        index = n if one.span else None
        rows.append((f"  {one.source}", one.spell(index), one.object, str(one.width), notes(one, index)))
    return lines + _aligned(rows)


def place(counter: Counter) -> str:
    """Describe where Weft stores a counter: in a column of a family, or as a ``reading`` of that name."""
    table = FAMILIES.get(counter.family)
    if counter.family == "reading" or table is None or counter.name not in table.polars:
        return f"kept as a reading named {counter.name}"
    return f"kept in column {counter.name} of family {counter.family}"


def notes(alias: Alias, n: int | None = None) -> str:
    """Describe the width, scale and behaviour of the raw value."""
    parts = []
    number = alias.number(n)
    if number is not None:
        parts.append(f"id {number:#x}" if alias.source == "sai" else f"field {number}")
        if n is None and alias.step is not None:
            parts[-1] += f" + {alias.step}n"
    if alias.span is not None and n is None:
        parts.append(f"n = {alias.span[0]} to {alias.span[1]}")
    if alias.scale != 1:
        parts.append(f"times {alias.scale:g}")
    if alias.kind == "watermark":
        parts.append("cleared by the device or by reading")
    elif alias.kind != "counter":
        parts.append(alias.kind)
    if alias.saturates:
        parts.append(f"stops at {2**alias.width - 1}")
    elif alias.kind == "counter" and alias.width < 64:
        parts.append(f"wraps at 2^{alias.width}")
    if alias.unknown is not None:
        parts.append("all ones: unknown")
    return ", ".join(parts)


def _listing(known: Dictionary, source: str | None, form: str) -> None:
    """Print all names of one source, or the sources; as JSON all names of all sources."""
    aliases = [one for one in known.aliases if source in (None, one.source)]
    if form == "json":
        _lines(Found(one, None) for one in aliases)
    elif source is not None:
        _columns([("NAME", "IS", "MEANING"), *((one.name, one.counter.key, one.counter.doc) for one in aliases)])
    else:
        names = Counts(alias.source for alias in aliases for _ in alias.indices())
        _columns([("SOURCE", "NAMES", "WHAT"), *((name, str(names[name]), one.doc) for name, one in known.sources.items())])
        print("\nweft counters TEXT explains a name; weft counters --source NAME lists one source")


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
