"""Inventory files: the rows of ``inventory`` and ``reading`` of a file, and the reader of tables.

Read here: tables (CSV and TOML) with the columns of the family, and the published table of a three-tier Clos (``ip, DSW, PSW, ASW``: a
host and the switches above it). Other modules read a switch's configuration (``sonic``), a lab's (``clab``), and LLDP in captures
(``lldp``).

A file that is broken as a whole raises ``InputError``; a faulty entry is skipped and recorded as a fault with its place.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import polars as pl

from ...pipeline.errors import InputError
from ...pipeline.tables.families import FAMILIES
from ..recordings import text_table

INVENTORY, READING = FAMILIES["inventory"].polars, FAMILIES["reading"].polars

KINDS = ("device", "port", "link", "job")
# Columns that a publication adds to every row.
STAMPS = ("ts", "recv_ts", "source", "epoch")
COLUMNS = tuple(name for name in INVENTORY if name not in (*STAMPS, "pattern", "rows"))

FAULTS_MAX = 100
# Rows of one file: ten ports for each of a hundred thousand GPUs.
ROWS_MAX = 1_000_000
# The longest name; it is repeated in every row.
NAME_CHARS_MAX = 512
SPEED_BPS_MAX = 10**15
# tomllib takes time quadratic in the length of a dotted key, so no line may be long.
TOML_LINE_CHARS_MAX = 4096

CLOS_HEADER = ("ip", "dsw", "psw", "asw")
_CLOS_TIERS = (("DSW", "core"), ("PSW", "spine"), ("ASW", "leaf"))

_DIGITS = re.compile(r"\d{1,16}", re.ASCII)
_HINT = "correct the entry; the others are used"

# A row: column to value; missing columns are null.
Row = dict[str, Any]


@dataclass(slots=True)
class InventoryRows:
    """The rows and faults of one file. ``scope`` is the switch whose own configuration it is, else empty."""

    path: Path
    things: list[Row] = field(default_factory=list)
    readings: list[Row] = field(default_factory=list)
    frame: pl.DataFrame | None = None
    faults: list[InputError] = field(default_factory=list)
    faulty: int = 0
    scope: str = ""
    rows_max: int = ROWS_MAX

    def fault(self, place: str, problem: str, hint: str = _HINT) -> None:
        """Record that an entry cannot be used."""
        self.faulty += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(InputError(str(self.path), _encodable(f"{place}: {problem}"), hint))

    def thing(self, place: str, kind: str, device: str, key: str, **columns: Any) -> None:
        """Add a row of the family ``inventory``, or a fault where a name is missing or too long."""
        row = {"kind": kind, "device": device, "key": key, **{name: value for name, value in columns.items() if value not in (None, "")}}
        row = {name: _encodable(value) if isinstance(value, str) else value for name, value in row.items()}
        wrong = next((name for name, value in row.items() if isinstance(value, str) and len(value) > NAME_CHARS_MAX), None)
        if wrong is not None or not device:
            self.fault(place, f"{wrong} is longer than {NAME_CHARS_MAX} characters" if wrong else "has no name")
        else:
            self._add(self.things, row)

    def reading(self, kind: str, name: str, value: Any, what: str = "", device: str = "") -> None:
        """Add a row of the family ``reading`` of ``device``, else of ``scope``; none where ``value`` is no scalar."""
        head = {
            "device": _encodable((device or self.scope)[:NAME_CHARS_MAX]),
            "kind": kind,
            "object": _encodable(what[:NAME_CHARS_MAX]),
            "name": name,
        }
        if isinstance(value, str):
            self._add(self.readings, {**head, "text": _encodable(value[:NAME_CHARS_MAX])})
        elif isinstance(value, int | float):
            self._add(self.readings, {**head, "value": float(value), "count": value if isinstance(value, int) else None})

    def _add(self, rows: list[Row], row: Row) -> None:
        if len(self.things) + len(self.readings) >= self.rows_max:
            raise InputError(str(self.path), f"gives more than {self.rows_max} rows", "cut it into several files, or raise rows_max")
        rows.append(row)

    @property
    def height(self) -> int:
        """The number of rows of both families."""
        return len(self.readings) + (len(self.things) if self.frame is None else self.frame.height)

    def inventory(self) -> pl.DataFrame:
        """Return the rows of the family, unstamped."""
        schema = {name: dtype for name, dtype in INVENTORY.items() if name not in STAMPS}
        return self.frame if self.frame is not None else pl.DataFrame(self.things, schema=schema)

    def values(self) -> pl.DataFrame:
        """Return the rows of the family ``reading``."""
        return pl.DataFrame(self.readings, schema={name: dtype for name, dtype in READING.items() if name not in STAMPS})


def text_of(value: Any) -> str:
    """Return a scalar of JSON or TOML as text, '' for anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        # Python may refuse to print a longer one.
        return str(value) if abs(value) < 2**64 else ""
    return str(value) if isinstance(value, str | float) else ""


def whole(value: Any) -> int | None:
    """Return a whole number, also one written as text, else ``None``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 10**16 else None
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value.strip()) else None


def table_of(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a table, else an empty one."""
    return value if isinstance(value, dict) else {}


def is_clos(header: bytes) -> bool:
    """Return whether a CSV's first line is that of the published Clos table."""
    return tuple(name.strip().strip('"').lower() for name in header.decode("utf-8-sig", "replace").strip().split(",")) == CLOS_HEADER


def is_table(header: bytes) -> bool:
    """Return whether a CSV's first line has a kind and a key, and no time: rows with a time are a recording."""
    names = {name.strip().strip('"') for name in header.decode("utf-8-sig", "replace").strip().split(",")}
    return {"kind", "key"} <= names and "ts" not in names and "name" not in names


def read_clos(path: Path, content: bytes) -> InventoryRows:
    """Return hosts and the switches above them, each linked to the next tier by an unknown port.

    A switch's number is unique below its parent, so its name is the path to it: ``G6-P10-S14``.
    """
    columns = text_table.header_of(path, content)
    frame, fault = text_table.read(path, content, dict.fromkeys(columns, pl.String), columns)
    frame = frame.rename(dict(zip(columns, ("ip", "DSW", "PSW", "ASW"), strict=True)))
    rows = [frame.select(kind=pl.lit("device"), device="ip", key="ip", tier=pl.lit("host"), role=pl.lit("host"))]
    above = "ip"
    links = []
    for depth in range(len(_CLOS_TIERS), 0, -1):
        parts, tier = [name for name, _ in _CLOS_TIERS[:depth]], _CLOS_TIERS[depth - 1][1]
        frame = frame.with_columns(pl.concat_str(parts, separator="-").alias(tier))
        switches = frame.select(kind=pl.lit("device"), device=tier, key=tier, tier=pl.lit(tier), role=pl.lit(parts[-1])).unique(
            maintain_order=True
        )
        rows.append(switches)
        links.append(
            frame.select(kind=pl.lit("link"), device=above, key=pl.lit(""), peer_device=tier).unique(maintain_order=True),
        )
        above = tier
    rack = pl.when(pl.col("tier") == "host").then(pl.col("rack")).otherwise(pl.when(pl.col("tier") == "leaf").then(pl.col("device")))
    racks = frame.select(device="ip", rack="leaf").unique("device", keep="last")
    devices = pl.concat(rows).join(racks, on="device", how="left", maintain_order="left").with_columns(rack=rack)
    return _of_frame(path, pl.concat([devices, *links], how="diagonal"), fault)


def read_csv(path: Path, content: bytes) -> InventoryRows:
    """Return the rows of a table with the family's columns."""
    columns = text_table.header_of(path, content)
    strangers = [name for name in columns if name not in COLUMNS]
    if strangers:
        raise InputError(str(path), f"line 1: inventory has no column {strangers[0]!r}", _did_you_mean(strangers[0], COLUMNS))
    frame, fault = text_table.read(path, content, {name: INVENTORY[name] for name in columns}, ["kind", "key"])
    return _checked(_of_frame(path, frame, fault))


def _of_frame(path: Path, frame: pl.DataFrame, fault: InputError | None) -> InventoryRows:
    frame = FAMILIES["inventory"].frame(frame).drop(STAMPS)
    return InventoryRows(path, frame=frame, faults=[fault] if fault else [], faulty=int(fault is not None))


def _checked(topology: InventoryRows) -> InventoryRows:
    """Drop the faulty rows of a table: an unknown kind, no device, a name that is too long."""
    assert topology.frame is not None
    frame = topology.frame.with_columns(
        device=pl.when(pl.col("kind").is_in(("device", "job"))).then(pl.coalesce("device", "key")).otherwise("device")
    )
    texts = [pl.col(name).str.len_chars() > NAME_CHARS_MAX for name, dtype in frame.schema.items() if dtype == pl.String]
    tests = {
        f"kind must be one of {', '.join(KINDS)}": ~pl.col("kind").is_in(KINDS),
        "device is empty": pl.col("device").fill_null("") == "",
        f"a name is longer than {NAME_CHARS_MAX} characters": pl.any_horizontal(texts).fill_null(False),
        f"speed_bps is above {SPEED_BPS_MAX}": (pl.col("speed_bps") > SPEED_BPS_MAX).fill_null(False),
    }
    flags = frame.select(test.alias(name) for name, test in tests.items())
    for name in flags.columns:
        for row in flags[name].arg_true().head(FAULTS_MAX).to_list():
            topology.fault(f"row {row + 1}", name)
    bad = flags.select(pl.any_horizontal(pl.all())).to_series() if frame.height else pl.Series([], dtype=pl.Boolean)
    topology.faulty = int(bad.sum()) + sum(1 for fault in topology.faults if "line " in fault.problem)
    topology.frame = frame.filter(~bad)
    return topology


def read_toml(path: Path, content: bytes, rows_max: int = ROWS_MAX) -> InventoryRows:
    """Return the rows of ``[[device]]``, ``[[port]]``, ``[[link]]`` and ``[[job]]``, whose keys are the family's columns."""
    topology = InventoryRows(path, rows_max=rows_max)
    for kind, entries in _parsed_toml(path, content).items():
        if kind not in KINDS:
            raise InputError(str(path), f"[[{kind}]] is no kind of thing", _did_you_mean(kind, KINDS))
        if not isinstance(entries, list):
            raise InputError(str(path), f"{kind!r} is no list of tables", f"write each one under [[{kind}]]")
        for number, entry in enumerate(entries, 1):
            _toml_entry(topology, kind, f"{kind} {number}", table_of(entry))
    return topology


def _parsed_toml(path: Path, content: bytes) -> dict[str, Any]:
    line = max(content.splitlines(), key=len, default=b"")
    if len(line) > TOML_LINE_CHARS_MAX:
        raise InputError(str(path), f"has a line of {len(line)} characters", "write one entry a line")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text", "save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InputError(str(path), f"is not TOML: {str(error)[:200]}", "correct that line") from None


def _toml_entry(topology: InventoryRows, kind: str, place: str, entry: Mapping[str, Any]) -> None:
    known = [name for name in COLUMNS if name != "kind"]
    stranger = next((name for name in entry if name not in known), None)
    if stranger is not None:
        topology.fault(place, f"unknown key {stranger!r}", _did_you_mean(stranger, known))
        return
    row: Row = {name: text_of(value) for name, value in entry.items() if name != "speed_bps"}
    if "speed_bps" in entry:
        row["speed_bps"] = whole(entry["speed_bps"])
        if row["speed_bps"] is None or row["speed_bps"] > SPEED_BPS_MAX:
            topology.fault(place, f"speed_bps is {str(entry['speed_bps'])[:40]!r}", f"give bits per second, at most {SPEED_BPS_MAX}")
            return
    key = row.pop("key", "")
    device = row.pop("device", "") or (key if kind in ("device", "job") else "")
    topology.thing(place, kind, device, key, **row)


def _encodable(text: str) -> str:
    """Return text that can be encoded as UTF-8: JSON may escape half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _did_you_mean(name: str, known: Any) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
