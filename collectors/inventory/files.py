"""The inventory: devices, ports, links, racks, rails, planes and tiers, from files.

Samples show that port 7 of leaf 3 was congested; a file shows that it leads to rack 12 on rail 4. Files are read when the collector
starts and whenever one changes. Their rows together are one publication: they share their ``ts``, and an ``epoch`` for the publishing
collector. The store uses the newest complete publication, so removed entries disappear, and nothing flickers while rows arrive. It is
repeated every ``every_s``, since a reader may start at any time.

Where names contain the place (``rack12-leaf3``), no file is needed: the patterns of ``device_names`` and ``port_names`` are published as
rows of kind ``naming``, and the store applies them to every name.
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
from ..base import Batch, Collector, Options, gaps
from .clab import PLACE, read_clab
from .sonic import is_sonic, read_sonic
from .topology import NAME_CHARS_MAX, ROWS_MAX, STAMPS, InventoryRows, is_clos, is_table, read_clos, read_csv, read_toml

SOURCE = "inventory"
# A file is in memory as text and as a tree, some ten times its size.
FILE_BYTES_MAX = 32 * 1024 * 1024
FILES_MAX = 10_000
HEAD_BYTES = 4096

# The store refers to groups as \1 to \9.
_GROUPS_MAX = 9
_TOML = re.compile(rb"^\s*\[\[\s*(device|port|link|job)\s*\]\]", re.MULTILINE)
_CLAB = re.compile(rb"^topology\s*:", re.MULTILINE)
_FORMS = "give a SONiC config_db.json, a containerlab topology, or CSV or TOML with the columns of inventory"

# The columns that identify an entry; all columns before the stamps are added.
_IDENTITY = ("kind", "device", "key")
_UNSTAMPED = [name for name in FAMILIES["inventory"].polars if name not in STAMPS]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InventoryConfig:
    """Section ``[collect.inventory]``; off while it has no file and no pattern."""

    # SONiC config_db.json, containerlab YAML, or CSV and TOML with the columns of the family.
    files: tuple[str, ...] = ()
    # Regular expressions for whole device names, with groups named rack, rail, plane, tier or role.
    device_names: tuple[str, ...] = ()
    # The same for ports, matched with "device/port".
    port_names: tuple[str, ...] = ()
    # Name of the publisher; empty = the host name. A container whose name changes needs a fixed one.
    name: str = ""
    # Time between two publications without a change.
    every_s: float = 600.0
    # Time between two checks for changed files.
    look_s: float = 5.0
    # Maximum rows of one file.
    rows_max: int = ROWS_MAX

    def __post_init__(self) -> None:
        if self.every_s <= 0 or self.look_s <= 0 or self.rows_max <= 0:
            raise ConfigError("collect.inventory", "every_s, look_s and rows_max are positive", "correct the value")
        if len(self.files) > FILES_MAX:
            raise ConfigError("collect.inventory.files", f"names more than {FILES_MAX} files", "join some of them")
        naming(self)

    @property
    def enabled(self) -> bool:
        return bool(self.files or self.device_names or self.port_names)


def naming(config: InventoryConfig) -> pl.DataFrame:
    """Return the rows with the patterns. Raises ``ConfigError`` for one without a named group or that the store cannot use."""
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
        # Neither the store's expressions nor those of Polars support look-around and back references.
        pl.Series([""]).str.contains(pattern)
    except (re.error, OverflowError, RecursionError, pl.exceptions.PolarsError) as error:
        problem = str(error).strip().split("\n", maxsplit=1)[0]
        raise ConfigError(where, f"{pattern!r} is not a usable pattern ({problem})", "correct it; look-around is not supported") from None
    wrong = next((name for name in groups if name not in PLACE), None)
    if wrong is not None or not groups:
        problem = f"has a group {wrong!r}" if wrong else "has no named group"
        raise ConfigError(where, f"{pattern!r} {problem}", f"name groups as in (?P<rack>...): {', '.join(PLACE)}")
    if max(groups.values()) > _GROUPS_MAX:
        raise ConfigError(
            where, f"{pattern!r} has too many groups", f"put named ones among the first {_GROUPS_MAX}; write others as (?:...)"
        )
    return dict(groups)


def read_file(path: Path, fallback: str | None, rows_max: int = ROWS_MAX) -> InventoryRows:
    """Return the rows of a file, recognised by its content; ``fallback`` names a switch whose configuration does not.

    Raises:
        InputError: it cannot be read, is too large, is of no known form, or is broken as a whole.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(str(path), "is no regular file", _FORMS)
        if status.st_size > FILE_BYTES_MAX:
            raise InputError(str(path), f"holds {status.st_size} bytes, more than {FILE_BYTES_MAX}", "cut it into several files")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)[:FILE_BYTES_MAX]
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    read = _form(path, content[:HEAD_BYTES])
    if read is None:
        raise InputError(str(path), "is no inventory that Weft knows", _FORMS)
    topology = read(path, content, fallback or path.stem, rows_max)
    if topology.height > rows_max:
        raise InputError(str(path), f"gives more than {rows_max} rows", "cut it into several files, or raise rows_max")
    return topology


def _form(path: Path, head: bytes) -> Callable[[Path, bytes, str, int], InventoryRows] | None:
    """Return the function that reads a file that begins with ``head``."""
    first, suffix = head.split(b"\n", 1)[0], path.suffix.lower()
    if is_sonic(head):
        return read_sonic
    if b"\0" in first[:24]:
        # Text has no such byte. The compiled capture reader is loaded for captures only.
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


def publication(origin: str, topologies: Sequence[InventoryRows], names: pl.DataFrame, ts: int) -> list[Batch]:
    """Return all rows as one publication; where several files have an entry, the last value of each column counts.

    A newer publication of the same ``origin`` replaces this one.
    """
    epoch = int.from_bytes(hashlib.sha256(origin.encode("utf-8", "replace")).digest()[:8], "big") >> 1
    rows = pl.concat([names, *(topology.inventory().select(names.columns) for topology in topologies)])
    rest = [name for name in rows.columns if name not in _IDENTITY]
    merged = rows.group_by(_IDENTITY, maintain_order=True).agg(pl.col(rest).drop_nulls().last())
    row = {"kind": "publication", "device": socket.gethostname(), "key": origin[:NAME_CHARS_MAX], "rows": merged.height}
    head = pl.DataFrame([row], schema=rows.schema)
    readings = pl.concat([topology.values() for topology in topologies]) if topologies else pl.DataFrame()
    frames = {"inventory": pl.concat([head, merged.select(rows.columns)]), "reading": readings}
    stamps = {"ts": ts, "recv_ts": ts, "source": SOURCE, "epoch": epoch}
    return [Batch(family, FAMILIES[family].frame(frame.to_dict() | stamps)) for family, frame in frames.items() if frame.height]


@dataclass(slots=True)
class _WatchedFile:
    """A file as it was last read."""

    path: Path
    mark: tuple[int, ...] = ()
    rows: InventoryRows | None = None


class Inventory:
    """Publishes the rows of the files and patterns between ``start`` and ``stop``.

    A separate thread reads the files: a large one takes seconds, and a drain must not wait.
    """

    def __init__(self, config: InventoryConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._name = config.name or socket.gethostname()
        self._files = [_WatchedFile(Path(name)) for name in config.files]
        self._lock = threading.Lock()
        self._whole: list[Batch] = []
        self._gaps: list[Batch] = []
        self._due_ns = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts = dict.fromkeys(("publications", "unreadable_files", "faulty_entries"), 0)

    def start(self) -> None:
        """Read the files, then watch them for changes. Raises ``InputError`` for a file that cannot be read."""
        for file in self._files:
            self._read(file)
        self._renew()
        self._stop.clear()
        self._thread = threading.Thread(target=self._look, name="inventory", daemon=True)
        self._thread.start()

    def drain(self) -> list[Batch]:
        """Return the publication if it has changed since the last call or is due again, else nothing but gaps."""
        with self._lock:
            batches, self._gaps = self._gaps, []
            if self._thread is not None and self._clock.monotonic_ns() >= self._due_ns:
                self._due_ns = self._clock.monotonic_ns() + int(self._config.every_s * NS_PER_S)
                self._counts["publications"] += 1
                batches = batches + self._whole
        received = pl.lit(self._clock.now_ns())
        return [Batch(batch.family, batch.frame.with_columns(recv_ts=received)) for batch in batches]

    def counters(self) -> Mapping[str, float]:
        """Return the number of files and rows, publications, and faults."""
        with self._lock:
            return {
                "weft_collectors_inventory_files": len(self._files),
                "weft_collectors_inventory_rows": sum(batch.frame.height for batch in self._whole),
                **{f"weft_collectors_inventory_{name}_total": count for name, count in self._counts.items()},
            }

    def stop(self) -> None:
        """Stop watching the files. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _look(self) -> None:
        while not self._clock.wait(self._config.look_s, self._stop):
            changed = [file for file in self._files if _mark(file.path) != file.mark]
            if [file for file in changed if self._reread(file)]:
                self._renew()

    def _reread(self, file: _WatchedFile) -> bool:
        try:
            self._read(file)
        except InputError as error:
            _log.warning("inventory: %s; its earlier content stays in use", error)
            loss = (self._name, "inventory", None, "unreadable_file", None)
            with self._lock:
                self._counts["unreadable_files"] += 1
                self._gaps += gaps(SOURCE, [loss], self._clock.now_ns())
            return False
        return True

    def _read(self, file: _WatchedFile) -> None:
        # The mark is taken first: a file that changes while it is read is read again.
        file.mark = _mark(file.path)
        file.rows = read_file(file.path, None, self._config.rows_max)
        self._counts["faulty_entries"] += file.rows.faulty
        for fault in file.rows.faults[:1]:
            _log.warning("inventory: %s (%d faulty entries in this file)", fault, file.rows.faulty)

    def _renew(self) -> None:
        rows = [file.rows for file in self._files if file.rows is not None]
        names = naming(self._config).with_columns(device=pl.lit(self._name)).select(_UNSTAMPED)
        whole = publication(f"collector {self._name}", rows, names, self._clock.now_ns())
        with self._lock:
            self._whole, self._due_ns = whole, 0


def _mark(path: Path) -> tuple[int, ...]:
    """Return change time, size and number of a file: a copy may preserve its modification time, but not these."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ctime_ns, status.st_size, status.st_ino


class InventoryFile:
    """One file as a recording: all its rows, at the time of its last change."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path = path
        self._options = options

    def batches(self) -> Iterator[Batch]:
        """Yield the rows; then raise ``InputError`` for the first faulty entry, if there is one."""
        mark = _mark(self._path)
        topology = read_file(self._path, self._options.device)
        # A switch's configuration belongs to that switch wherever the file is; other files are identified by their path.
        origin = f"configuration of {topology.scope}" if topology.scope else f"file {self._path.resolve()}"
        if topology.height:
            yield from publication(origin, [topology], FAMILIES["inventory"].empty().select(_UNSTAMPED), mark[0] if mark else 0)
        if topology.faults:
            raise topology.faults[0]
        if not topology.height:
            raise InputError(str(self._path), "has no entries", _FORMS)


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
