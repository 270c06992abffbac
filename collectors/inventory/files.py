"""What exists: devices, ports, links, racks, rails, planes and tiers, from the files in which people keep them.

Samples say that port 7 of leaf 3 was congested; that it leads to rack 12 on rail 4 stands in a file. Files are read when
the collector starts and whenever one changes, and all that they say together is one publication: rows that share their ``ts``, and
their ``epoch``, which stands for who says it. The store goes by the newest one that is whole, so what a file no longer has is gone, and
nothing flickers while rows arrive. A publication is repeated every ``every_s``, since nobody can say when a reader begins to listen.

Where names tell the place (``rack12-leaf3``), no file is needed: the patterns of ``device_names`` and ``port_names`` are
published as rows of kind ``naming``, and the store applies them to every name that it hears of.
"""

import hashlib
import logging
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ConfigError, InputError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, Collector, Options
from .clab import PLACE, read_clab
from .sonic import is_sonic, read_sonic
from .topology import NAME_CHARS_MAX, ROWS_MAX, STAMPS, Topology, is_clos, is_table, read_clos, read_csv, read_toml

SOURCE = "inventory"
# A file is in memory as text and as a tree, some ten times its size.
FILE_BYTES_MAX = 32 * 1024 * 1024
FILES_MAX = 10_000
HEAD_BYTES = 4096

# The store takes a match apart by \1 to \9.
_GROUPS_MAX = 9
_TOML = re.compile(rb"^\s*\[\[\s*(device|port|link|job)\s*\]\]", re.MULTILINE)
_CLAB = re.compile(rb"^topology\s*:", re.MULTILINE)
_FORMS = "give a SONiC config_db.json, a containerlab topology, or CSV or TOML with the columns of inventory"

# What makes two rows speak of one thing; the columns that they have before they are stamped.
_IDENTITY = ("kind", "device", "key")
_UNSTAMPED = [name for name in FAMILIES["inventory"].polars if name not in STAMPS]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InventoryConfig:
    """Section ``[collect.inventory]``; off while it names nothing."""

    # SONiC config_db.json, containerlab YAML, or CSV and TOML with the columns of the family.
    files: tuple[str, ...] = ()
    # Regular expressions for whole device names, with groups named rack, rail, plane, tier or role.
    device_names: tuple[str, ...] = ()
    # The same for ports, matched with "device/port".
    port_names: tuple[str, ...] = ()
    # Whose word it is; empty = the host name. A container that gets a new name each time wants one that stays.
    name: str = ""
    # Time between two publications of what has not changed.
    every_s: float = 600.0
    # Time between two looks whether a file has changed.
    look_s: float = 5.0
    # Rows that one file may stand for.
    rows_max: int = ROWS_MAX

    def __post_init__(self) -> None:
        if self.every_s <= 0 or self.look_s <= 0 or self.rows_max <= 0:
            raise ConfigError("collect.inventory", "every_s, look_s and rows_max are positive", "correct the value")
        if len(self.files) > FILES_MAX:
            raise ConfigError("collect.inventory.files", f"names more than {FILES_MAX} files", "put what belongs together into one")
        naming(self)

    @property
    def enabled(self) -> bool:
        return bool(self.files or self.device_names or self.port_names)


def naming(config: InventoryConfig) -> pl.DataFrame:
    """Return the rows that carry the patterns. Raises ``ConfigError`` for one that says nothing or that the store cannot use."""
    rows = []
    for field in ("device_names", "port_names"):
        for number, pattern in enumerate(getattr(config, field)):
            groups = _groups(f"collect.inventory.{field}", pattern)
            templates = {name: f"\\{group}" for name, group in groups.items()}
            rows.append({"kind": "naming", "key": f"{field.removesuffix('_names')} {number:04d}", "pattern": pattern, **templates})
    return pl.DataFrame(rows, schema=FAMILIES["inventory"].polars)


def _groups(where: str, pattern: str) -> dict[str, int]:
    try:
        groups = re.compile(pattern).groupindex
        # The store's expressions know no look-around and no back reference; neither do those of Polars.
        pl.Series([""]).str.contains(pattern)
    except (re.error, OverflowError, RecursionError, pl.exceptions.PolarsError) as error:
        problem = str(error).strip().split("\n", maxsplit=1)[0]
        raise ConfigError(
            where, f"{pattern!r} is no pattern that can be used ({problem})", "correct it; look-around is not supported"
        ) from None
    wrong = next((name for name in groups if name not in PLACE), None)
    if wrong is not None or not groups:
        problem = f"has a group {wrong!r}" if wrong else "has no named group"
        raise ConfigError(where, f"{pattern!r} {problem}", f"name groups as in (?P<rack>...): {', '.join(PLACE)}")
    if max(groups.values()) > _GROUPS_MAX:
        raise ConfigError(
            where, f"{pattern!r} has too many groups", f"put named ones among the first {_GROUPS_MAX}; write others as (?:...)"
        )
    return dict(groups)


def read_file(path: Path, fallback: str | None, rows_max: int = ROWS_MAX) -> Topology:
    """Return what a file says, recognised by its content; ``fallback`` names a switch whose configuration does not.

    Raises:
        InputError: it cannot be read, is too large, is of no known form, or is broken as a whole.
    """
    try:
        said = path.stat()
        if not stat.S_ISREG(said.st_mode):
            raise InputError(str(path), "is no regular file", _FORMS)
        if said.st_size > FILE_BYTES_MAX:
            raise InputError(str(path), f"holds {said.st_size} bytes, more than {FILE_BYTES_MAX}", "cut it into several files")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)[:FILE_BYTES_MAX]
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    read = _form(path, content[:HEAD_BYTES])
    if read is None:
        raise InputError(str(path), "is no inventory that Weft knows", _FORMS)
    topology = read(path, content, fallback or path.stem, rows_max)
    if topology.height > rows_max:
        raise InputError(str(path), f"stands for more than {rows_max} rows", "cut it into several files, or raise rows_max")
    return topology


def _form(path: Path, head: bytes) -> Callable[[Path, bytes, str, int], Topology] | None:
    """Return what reads a file that begins with ``head``."""
    first, suffix = head.split(b"\n", 1)[0], path.suffix.lower()
    if is_sonic(head):
        return read_sonic
    if b"\0" in first[:24]:
        # Text holds no such byte, and what walks captures is compiled, so it is not loaded for text.
        from ..wire.capture import is_capture
        from .lldp import read_lldp

        return (lambda path, _content, _, rows_max: read_lldp(path, rows_max)) if is_capture(head) else None
    if suffix in (".yml", ".yaml") and (_CLAB.search(head) or ".clab." in path.name.lower()):
        return lambda path, content, _, rows_max: read_clab(path, content, rows_max)
    if is_clos(first):
        return lambda path, content, *_: read_clos(path, content)
    if suffix == ".csv" and is_table(first):
        return lambda path, content, *_: read_csv(path, content)
    if suffix == ".toml" and _TOML.search(head):
        return lambda path, content, _, rows_max: read_toml(path, content, rows_max)
    return None


def publication(origin: str, topologies: Sequence[Topology], names: pl.DataFrame, ts: int) -> list[Batch]:
    """Return what files and names say as one whole: of what several files say of a thing, the last word on each column.

    ``origin`` is who says it: a newer publication of the same origin takes the place of this one.
    """
    epoch = int.from_bytes(hashlib.sha256(origin.encode("utf-8", "replace")).digest()[:8], "big") >> 1
    said = pl.concat([names, *(topology.inventory().select(names.columns) for topology in topologies)])
    rest = [name for name in said.columns if name not in _IDENTITY]
    merged = said.group_by(_IDENTITY, maintain_order=True).agg(pl.col(rest).drop_nulls().last())
    row = {"kind": "publication", "device": socket.gethostname(), "key": origin[:NAME_CHARS_MAX], "rows": merged.height}
    head = pl.DataFrame([row], schema=said.schema)
    readings = pl.concat([topology.values() for topology in topologies]) if topologies else pl.DataFrame()
    frames = {"inventory": pl.concat([head, merged.select(said.columns)]), "reading": readings}
    return [_stamped(family, frame, ts, epoch) for family, frame in frames.items() if frame.height]


def _stamped(family: str, frame: pl.DataFrame, ts: int, epoch: int) -> Batch:
    stamps = {"ts": pl.lit(ts), "recv_ts": pl.lit(ts), "source": pl.lit(SOURCE), "epoch": pl.lit(epoch)}
    types = FAMILIES[family].polars
    return Batch(family, frame.select(stamps.get(name, pl.col(name)).cast(dtype).alias(name) for name, dtype in types.items()))


@dataclass(slots=True)
class _File:
    """A file as it was read last."""

    path: Path
    mark: tuple[int, ...] = ()
    said: Topology | None = None


class Inventory:
    """Publishes what the files and the naming say, between ``start`` and ``stop``.

    Files are read by a thread of its own: a large one takes seconds, and a drain must not wait.
    """

    def __init__(self, config: InventoryConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._name = config.name or socket.gethostname()
        self._files = [_File(Path(name)) for name in config.files]
        self._lock = threading.Lock()
        self._whole: list[Batch] = []
        self._gaps: list[Batch] = []
        self._due_ns = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts = dict.fromkeys(("publications", "unreadable_files", "faulty_entries"), 0)

    def start(self) -> None:
        """Read the files once, and look for changes from then on. Raises ``InputError`` for a file that cannot be read at all."""
        for file in self._files:
            self._read(file)
        self._renew()
        self._stop.clear()
        self._thread = threading.Thread(target=self._look, name="inventory", daemon=True)
        self._thread.start()

    def drain(self) -> list[Batch]:
        """Return everything where it has changed since the last call or is due again, else nothing."""
        with self._lock:
            batches, self._gaps = self._gaps, []
            if self._thread is not None and self._clock.monotonic_ns() >= self._due_ns:
                self._due_ns = self._clock.monotonic_ns() + int(self._config.every_s * NS_PER_S)
                self._counts["publications"] += 1
                batches = batches + self._whole
        received = pl.lit(self._clock.now_ns())
        return [Batch(batch.family, batch.frame.with_columns(recv_ts=received)) for batch in batches]

    def counters(self) -> Mapping[str, float]:
        """Return how much is known and what could not be read."""
        with self._lock:
            return {
                "weft_collectors_inventory_files": len(self._files),
                "weft_collectors_inventory_rows": sum(batch.frame.height for batch in self._whole),
                **{f"weft_collectors_inventory_{name}_total": count for name, count in self._counts.items()},
            }

    def stop(self) -> None:
        """End looking. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _look(self) -> None:
        while not self._clock.wait(self._config.look_s, self._stop):
            changed = [file for file in self._files if _mark(file.path) != file.mark]
            if [file for file in changed if self._reread(file)]:
                self._renew()

    def _reread(self, file: _File) -> bool:
        try:
            self._read(file)
        except InputError as error:
            _log.warning("inventory: %s; what it said before still holds", error)
            now = self._clock.now_ns()
            row = {"ts": now, "source": SOURCE, "device": self._name, "epoch": 0, "what": "inventory", "reason": "unreadable_file"}
            with self._lock:
                self._counts["unreadable_files"] += 1
                self._gaps.append(Batch("gap", pl.DataFrame([row], schema=FAMILIES["gap"].polars)))
            return False
        return True

    def _read(self, file: _File) -> None:
        # The mark comes first: a file that changes while it is read is read again.
        file.mark = _mark(file.path)
        file.said = read_file(file.path, None, self._config.rows_max)
        self._counts["faulty_entries"] += file.said.faulty
        for fault in file.said.faults[:1]:
            _log.warning("inventory: %s (%d faulty entries in this file)", fault, file.said.faulty)

    def _renew(self) -> None:
        said = [file.said for file in self._files if file.said is not None]
        names = naming(self._config).with_columns(device=pl.lit(self._name)).select(_UNSTAMPED)
        whole = publication(f"collector {self._name}", said, names, self._clock.now_ns())
        with self._lock:
            self._whole, self._due_ns = whole, 0


def _mark(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does, beginning with when that was; a copy may keep an older time, but not this one."""
    try:
        said = path.stat()
    except OSError:
        return ()
    return said.st_ctime_ns, said.st_size, said.st_ino


class InventoryFile:
    """One file as a recording: everything it says, at the time at which it changed last."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self._options = options

    def batches(self) -> Iterator[Batch]:
        """Yield the rows; raise ``InputError`` for the first entry that is wrong after everything good."""
        mark = _mark(self._path)
        topology = read_file(self._path, self._options.device)
        # A switch's configuration is that switch's wherever it lies; anything else is known by its path.
        origin = f"configuration of {topology.scope}" if topology.scope else f"file {self._path.resolve()}"
        if topology.height:
            yield from publication(origin, [topology], FAMILIES["inventory"].empty().select(_UNSTAMPED), mark[0] if mark else 0)
        if topology.faults:
            raise topology.faults[0]
        if not topology.height:
            raise InputError(str(self._path), "says of nothing that it exists", _FORMS)


def recognises(path: Path, head: bytes) -> bool:
    """Return whether the path is a file of one of these forms."""
    return not path.is_dir() and _form(path, head) is not None


INVENTORY = Collector(
    name=SOURCE,
    doc="devices, ports, links and their places, from SONiC and containerlab files, CSV, TOML, or the names themselves",
    families=("inventory", "reading", "gap"),
    config=InventoryConfig,
    registers=None,
    live=Inventory,
    recorded=InventoryFile,
    recognises=recognises,
)
