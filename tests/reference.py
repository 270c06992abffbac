"""Writes the generated pages of the docs: ``make docs``. A test fails where they are stale."""

from argparse import Namespace
from pathlib import Path

from weft import cli
from weft.analytics import views
from weft.analytics.alerts.rules import DEFAULT_RULES, PROFILES, Rule, load_rule
from weft.analytics.store import macros
from weft.commands.counters import notes
from weft.commands.settings import everything
from weft.pipeline import config as configuration
from weft.pipeline.dictionary import Counter, dictionary
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.field import RESOLUTIONS_NS, Table
from weft.pipeline.tables.states import STATES

FOLDER = Path(__file__).parent.parent / "dashboards" / "docs"


def pages() -> dict[str, str]:
    """Return the text of each generated page by its file's name."""
    return {
        "28-default-rules.md": _rules(),
        "30-metrics.md": _metrics(),
        "35-counters.md": _counters(),
        "50-reference.md": _reference(),
        "55-tables.md": _tables(),
    }


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def _rules() -> str:
    lines = [
        "# Default alert rules",
        "",
        "Generated from `analytics/rules/`. [Alert rules](27-rules.md) shows how to disable or replace one and how to write one.",
    ]
    for path in sorted(DEFAULT_RULES.rglob("*.toml"), key=lambda path: path.stem):
        rule = load_rule(path)
        lines += ["", f"## {rule.name}", "", path.read_text().splitlines()[0].removeprefix("# "), ""]
        lines += [f"- fires when: `value {rule.condition}`{_span(rule)} ({rule.severity}, {path.parent.name})"]
        for profile in PROFILES:
            other = load_rule(path, profile)
            if other.profile:
                lines += [f"- in profile `{profile}`: " + (f"`value {other.condition}`{_span(other)}" if other.enabled else "does not run")]
        lines += [f"- {what}: {rule.annotations[name]}" for what, name in (("threshold", "source"), ("what to do", "runbook"))]
    return "\n".join(lines) + "\n"


def _span(rule: Rule) -> str:
    return f" for {rule.for_s:g} s" if rule.for_s else ""


def _metrics() -> str:
    lines = [
        "# Metrics: the views and their columns",
        "",
        "Generated from `analytics/views/`. Views with resolutions exist as "
        + ", ".join(f"`_{name}`" for name in RESOLUTIONS_NS)
        + " with the same columns; times are UTC, ratios 0..1, sizes bytes.",
    ]
    for view in views.VIEWS:
        lines += ["", f"## {view.name}{'_*' if view.resolutions else ''}", "", f"{view.doc[0].upper()}{view.doc[1:]}.", ""]
        lines += ["| column | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{column.name}` | {column.unit} | {_cell(column.doc)} |" for column in view.columns]
    lines += [
        "",
        "## alerts, alert_rules, notifications",
        "",
        "Alerts that are pending, firing and resolved; the progress of each rule's evaluation; notifications sent.",
    ]
    lines += ["", "## Macros", "", "| macro | gives |", "|---|---|"]
    lines += [f"| `{head}` | {_cell(doc)} |" for head, (_, doc) in macros.MACROS.items()]
    return "\n".join(lines) + "\n"


def _counters() -> str:
    known = dictionary()
    lines = [
        "# Counters: who calls what how",
        "",
        "Generated from `pipeline/dictionary.toml`. `weft counters NAME` explains any of these names from either side.",
        "",
        "Each name appears once for all its indices: `{n}` is a priority, lane or bin. Notes behind a name are exceptions to the usual,",
        "a counter of 64 bits that wraps. Traps that the dictionary knows of:",
        "",
        "* A counter of 32 bits wraps: 4 KiB packets at 400 Gbit/s take it round in under six minutes.",
        "* InfiniBand's error counters have 4 to 16 bits and stop at their maximum until they are reset: a full one means *at least*.",
        "* InfiniBand counts data in words of 4 bytes; AWS counts bytes under the same kind of name.",
        "* A watermark is the maximum since it was last cleared. Reading may clear it, so with two readers each misses values.",
        "* All ones in a 32-bit field of sFlow mean that the device does not count this. It is no count of 4,294,967,295.",
        "* Pause in quanta is pause in 512 bit times of the port, so its length depends on the line rate.",
        "",
        "Counters of a family in the schema are its columns; the others are rows of `reading` under their name.",
        "",
        "| source | what |",
        "|---|---|",
        *(f"| `{source.name}` | {_cell(source.doc)} |" for source in known.sources.values()),
    ]
    for family in dict.fromkeys(counter.family for counter in known.counters.values()):
        lines += ["", f"## {family}", "", "| counter | unit | kind | meaning | names |", "|---|---|---|---|---|"]
        for counter in known.counters.values():
            if counter.family == family:
                lines.append(f"| `{counter.name}` | {counter.unit} | {counter.kind} | {_cell(counter.doc)} | {_names(counter)} |")
    return "\n".join(lines) + "\n"


def _names(counter: Counter) -> str:
    """Return what the sources call it, each name with what is special about it."""
    said: dict[str, list[str]] = {}
    for alias in dictionary().of(counter.key):
        special = [f"{alias.width} bits"] if alias.width < 64 else []
        special += [note for note in notes(alias).split(", ") if note and not note.startswith(("id ", "field ", "all ones"))]
        said.setdefault(alias.source, []).append(f"`{alias.name}`" + (f" ({', '.join(special)})" if special else ""))
    return "; ".join(f"{source}: {', '.join(names)}" for source, names in said.items())


def _reference() -> str:
    lines = ["# Commands and configuration", "", "Generated from the code. Exit codes: 0 done, 1 failed, 2 wrong command line.", ""]
    for name, command in cli.COMMANDS.items():
        lines += [f"## weft {name}", "", f"{command.doc[0].upper()}{command.doc[1:]}.", "", "| option | meaning |", "|---|---|"]
        for flags, meaning in cli.options_of(name):
            lines.append(f"| `{flags}` | {_cell(meaning)} |")
        lines += ["", *(f"    {example}" for example in command.examples), ""]
    lines += [
        "## Configuration",
        "",
        "One TOML file (`--config`, or `weft.toml` where you are), all of it optional. These are all settings with their",
        "defaults, as `weft check --dump` prints them. `WEFT_BUS__KIND=kafka` in the environment sets `kind` in `[bus]`.",
        "",
        "```toml",
        *configuration.dump(everything(Namespace(config=None))),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _tables() -> str:
    lines = [
        "# Tables on the bus and in the store",
        "",
        "Generated from `pipeline/tables/schema.py`.",
        "",
        "## Families: what collectors publish",
        "",
    ]
    for table in FAMILIES.values():
        lines += _table(table)
    lines += [
        "## State: what the store keeps",
        "",
        "With keys at every resolution, in schema `state`. *Merge* defines how rows of one key become one.",
        "",
    ]
    for table in STATES.values():
        lines += _table(table)
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    head = [
        f"### {table.name} (`{table.topic}`)",
        "",
        f"{table.doc[0].upper()}{table.doc[1:]}.",
        "",
        "| column | type | unit | merge | meaning |",
        "|---|---|---|---|---|",
    ]
    rows = [
        f"| `{f.name}` | {_cell(str(f.dtype))} | {f.unit} | {'' if f.role == 'attribute' else f.role} | {_cell(f.doc)} |"
        for f in table.fields
    ]
    return [*head, *rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
