"""Publishing: readers open a copy of the hot database (a snapshot), behind a link that is swapped atomically.

A copy is taken right after a checkpoint, without a write in between, so it is complete and needs no log. An old snapshot is
deleted when three newer ones exist and no query can still use it. Copies take at most a tenth of the writer's time.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import StoreError
from ...pipeline.report import Report
from ...pipeline.tables.families import FAMILIES
from .. import views
from . import macros
from .ddl import base_tables, columns, literal
from .files import CURRENT, SAMPLES, SNAPSHOTS
from .writer import Store

KEEP = 3

# Files that are no longer current stay this long for queries that are under way.
GRACE_S = 120

COST_RATIO_MAX = 0.1


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """Publish at most every ``every_s``."""

    every_s: float = 2.0


class Publisher:
    """Makes snapshots of one store."""

    def __init__(self, store: Store, config: PublishConfig, clock: Clock, report: Report, extra: tuple[str, ...] = ()) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._report = report
        self._extra = extra
        self._published = -1
        self._catalog: list[str] = []
        self._due_ns = 0
        self._number = 0

    def start(self) -> None:
        """Continue the numbering of the snapshots, and publish what is stored."""
        numbers = [int(path.stem) for path in (self._store.folder / SNAPSHOTS).glob("*.duckdb") if path.stem.isdigit()]
        self._number = max(numbers, default=0)
        for torn in (self._store.folder / SNAPSHOTS).glob("*.part*"):
            torn.unlink(missing_ok=True)
        self.publish()

    def due_ns(self) -> int:
        """Return when the next snapshot is due, by the monotonic clock."""
        return self._due_ns

    def publish(self) -> bool:
        """Publish if anything has changed; return whether. Raises ``StoreError`` on a full disk."""
        if self._published == self._store.writes:
            self._due_ns = self._clock.monotonic_ns() + int(self._config.every_s * NS_PER_S)
            return False
        began = self._clock.monotonic_ns()
        self._refresh_catalog()
        self._store.checkpoint()
        target = self._copy()
        self._prune()
        self._published = self._store.writes
        took = self._clock.monotonic_ns() - began
        self._due_ns = self._clock.monotonic_ns() + max(int(self._config.every_s * NS_PER_S), int(took / COST_RATIO_MAX))
        self._report.set("weft_analyze_publish_seconds", took / NS_PER_S)
        self._report.set("weft_analyze_snapshot_bytes", target.stat().st_size)
        self._report.count("weft_analyze_snapshots_total")
        return True

    def _refresh_catalog(self) -> None:
        """Create the macros and views again that read other files than before."""
        wanted = catalog(self._store, self._extra)
        if wanted == self._catalog:
            return
        # A view resolves names at each query, so only views with changed text are created.
        known = set(self._catalog)
        for statement in wanted:
            if statement not in known:
                self._store.execute(statement)
        self._catalog = wanted

    def _copy(self) -> Path:
        self._number += 1
        target = self._store.folder / SNAPSHOTS / f"{self._number:010d}.duckdb"
        part = target.with_suffix(".part")
        try:
            self._store.copy(part)
            os.replace(part, target)
            self._swap(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StoreError(f"a snapshot cannot be written: {error.strerror}", "free space; the last one stays readable") from None
        return target

    def _swap(self, target: Path) -> None:
        link = self._store.folder / CURRENT
        fresh = self._store.folder / "current.part"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path(SNAPSHOTS) / target.name)
        os.replace(fresh, link)

    def _prune(self) -> None:
        old = sorted((self._store.folder / SNAPSHOTS).glob("*.duckdb"))[:-KEEP]
        for path in old:
            if self._clock.now_ns() - path.stat().st_mtime_ns > GRACE_S * NS_PER_S or len(old) > 10 * KEEP:
                path.unlink(missing_ok=True)


def catalog(store: Store, extra: tuple[str, ...] = ()) -> list[str]:
    """Return the statements that create macros and views over the hot tables, the segments and the raw samples."""
    listed: dict[str, list[str]] = {}
    for row in store.query("SELECT name, path FROM base.segments ORDER BY path"):
        listed.setdefault(str(row["name"]), []).append(str((store.folder / str(row["path"])).resolve()))
    statements = macros.statements()
    for name in base_tables():
        statements.append(_whole(name, listed.get(name, [])))
    # Escape the wildcards in the folder's own name.
    raw_samples = literal(re.sub(r"([*?[])", r"[\1]", str((store.folder / SAMPLES).resolve())) + "/*.parquet")
    fields = [definition.split(maxsplit=1) for definition in columns(FAMILIES["burst_sample"]).split(", ")]
    seed = "SELECT " + ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in fields) + " WHERE false"
    rows = store.query("SELECT count(*) AS files FROM base.ring")
    read = f" UNION ALL BY NAME SELECT * FROM read_parquet({raw_samples}, union_by_name = true)" if rows[0]["files"] else ""
    statements.append(f"CREATE OR REPLACE VIEW state.samples AS {seed}{read}")
    return [*statements, *views.statements(), *extra]


def refresh(store: Store, name: str) -> None:
    """Recreate the writer's view of a table after its segments have changed, inside the same transaction."""
    rows = store.query("SELECT path FROM base.segments WHERE name = ? ORDER BY path", [name])
    store.execute(_whole(name, [str((store.folder / str(row["path"])).resolve()) for row in rows]))


def _whole(name: str, paths: list[str]) -> str:
    files = ", ".join(literal(path) for path in paths)
    union = f" UNION ALL BY NAME SELECT * FROM read_parquet([{files}], union_by_name = true)" if files else ""
    return f"CREATE OR REPLACE VIEW state.{name} AS SELECT * FROM base.{name}{union}"
