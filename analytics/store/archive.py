"""Segments and retention: what leaves the hot tables becomes sorted Parquet, and what is too old goes.

A table is cut when it holds more than ``hot_rows_max`` rows or rows of an hour that closed long enough ago that
nothing late can reach it. The file is written first under a temporary name; its manifest row and the deletion of the
hot rows are one transaction, so after a crash a file that no manifest knows is garbage and is removed.

The inventory is no history: it is never cut and never too old, and loses only what newer rows have replaced.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.report import Report
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import RESOLUTIONS_NS
from ..views.inventory import SUPERSEDED
from .ddl import base_tables, literal
from .files import SEGMENTS
from .publish import GRACE_S, refresh
from .writer import Store

HOUR_NS = 3600 * NS_PER_S

# From so many rows of one table in one transaction on, they become a segment right away.
BULK_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class ArchiveConfig:
    """How much stays hot, and how long each resolution is kept at all, in days: "" is what has none; what is not said is as it is here."""

    hot_s: float = 3 * 3600
    hot_rows_max: int = 400_000
    keep_days: tuple[tuple[str, float], ...] = (("1s", 2), ("10s", 14), ("1m", 90), ("1h", 730), ("", 30))


class Archive:
    """Moves rows of one store out of the hot tables."""

    def __init__(self, store: Store, config: ArchiveConfig, clock: Clock, report: Report) -> None:
        self._store = store
        self._config = config
        self._keep_days = _keep_days(config)
        self._clock = clock
        self._report = report
        self._doomed: list[tuple[int, str]] = []
        self._inventory_rows: object = 0

    def start(self) -> None:
        """Remove files that no manifest row knows."""
        known = {str(row["path"]) for row in self._store.query("SELECT path FROM base.segments")}
        for path in (self._store.folder / SEGMENTS).rglob("*"):
            if path.is_file() and str(path.relative_to(self._store.folder)) not in known:
                path.unlink(missing_ok=True)

    def run(self) -> None:
        """Cut what is due and drop what is too old. Raises ``StoreError`` on a full disk."""
        for name in base_tables():
            if name == "inventory":
                self._keep_last()
                continue
            self._cut(name)
            self._expire(name)
        now = self._clock.monotonic_ns()
        for due, path in [entry for entry in self._doomed if entry[0] <= now]:
            (self._store.folder / path).unlink(missing_ok=True)
            self._doomed.remove((due, path))

    def _cut(self, name: str) -> None:
        ts = _time_of(name)
        found = self._store.query(f"SELECT count(*) AS rows, epoch_ns(min({ts})) AS low, epoch_ns(max({ts})) AS high FROM base.{name}")[0]
        rows, low, high = (int(str(found[key] or 0)) for key in ("rows", "low", "high"))
        border = (high - int(self._config.hot_s * NS_PER_S)) // HOUR_NS * HOUR_NS
        resolution = RESOLUTIONS_NS.get(name.rsplit("_", 1)[-1], NS_PER_S)
        if rows > self._config.hot_rows_max:
            # Half of the time span goes, at a minute, so that one segment a cut is made and not one a row.
            border = max(border, (low + high) // 2 // (60 * NS_PER_S) * 60 * NS_PER_S)
        # A coarse row may still grow while it is the newest, so the newest never goes.
        border = min(border // resolution, high // resolution) * resolution
        if not rows or border <= low:
            return
        self._move(name, ts, low, border)

    def _keep_last(self) -> None:
        """Delete what newer rows of the inventory have replaced; where none came since the last time, there is nothing to do."""
        rows = self._store.query("SELECT count(*) AS rows FROM base.inventory")[0]["rows"]
        if rows == self._inventory_rows:
            return
        with self._store.transaction():
            self._store.execute(f"DELETE FROM base.inventory WHERE {SUPERSEDED}")
        self._inventory_rows = self._store.query("SELECT count(*) AS rows FROM base.inventory")[0]["rows"]

    def _move(self, name: str, ts: str, low: int, border: int) -> None:
        path = f"{SEGMENTS}/{name}/{low:020d}-{border:020d}-{self._clock.now_ns():020d}.parquet"
        target = self._place(path)
        where = f"{ts} < make_timestamp_ns({border})"
        with self._store.transaction():
            self._store.execute(
                f"COPY (SELECT * FROM base.{name} WHERE {where} ORDER BY ALL) TO {literal(target)} (FORMAT parquet, COMPRESSION zstd)"
            )
            size = target.stat().st_size
            self._store.execute(
                f"""INSERT INTO base.segments SELECT ?, ?, min({ts}), max({ts}), count(*), ? FROM base.{name} WHERE {where}""",
                [name, path, size],
            )
            self._store.execute(f"DELETE FROM base.{name} WHERE {where}")
            refresh(self._store, name)
        self._report.count("weft_analyze_segment_bytes_total", size, label=name)

    def bulk(self, name: str, frame: pl.DataFrame) -> None:
        """Make many rows, as the store keeps them, a segment at once, inside the caller's transaction.

        A backlog need not pass through the hot tables: that would write every row twice.
        """
        ts = _time_of(name)
        low, high = (int(frame[ts].cast(pl.Int64).min()), int(frame[ts].cast(pl.Int64).max()))  # type: ignore[arg-type]
        path = f"{SEGMENTS}/{name}/{low:020d}-{high:020d}-{self._clock.now_ns():020d}.parquet"
        target = self._place(path)
        try:
            frame.sort(ts, "group_id" if "group_id" in frame.columns else "device").write_parquet(
                target, compression="lz4", statistics=True, row_group_size=BULK_ROWS
            )
        except (OSError, pl.exceptions.PolarsError) as error:
            target.unlink(missing_ok=True)
            raise StoreError(f"a segment cannot be written: {error}", "free space; what is on the bus will be stored then") from None
        self._store.execute(
            "INSERT INTO base.segments VALUES (?, ?, make_timestamp_ns(?), make_timestamp_ns(?), ?, ?)",
            [name, path, low, high, frame.height, target.stat().st_size],
        )
        refresh(self._store, name)
        self._report.count("weft_analyze_segment_bytes_total", target.stat().st_size, label=name)

    def _place(self, path: str) -> Path:
        target = self._store.folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{target.parent} cannot be made: {error.strerror}", "see that the disk has space and may be written"
            ) from None
        return target

    def _expire(self, name: str) -> None:
        resolution = name.rsplit("_", 1)[-1]
        days = self._keep_days.get(resolution, self._keep_days[""])
        oldest = self._clock.now_ns() - int(days * 86_400 * NS_PER_S)
        if name in FAMILIES:
            # Against what was received last: a store of an old recording keeps what came with it.
            newest = f"(SELECT max(recv_ts) FROM base.{name})"
            self._store.execute(f"DELETE FROM base.{name} WHERE recv_ts < {newest} - to_seconds({int(days * 86_400)})")
        # A replay of old recordings is news to this store: age counts from when a segment was cut.
        for row in self._store.query("SELECT path FROM base.segments WHERE name = ?", [name]):
            path = str(row["path"])
            if int(path.rsplit("-", 1)[-1].removesuffix(".parquet")) < oldest:
                with self._store.transaction():
                    self._store.execute("DELETE FROM base.segments WHERE path = ?", [path])
                    refresh(self._store, name)
                self._doomed.append((self._clock.monotonic_ns() + GRACE_S * NS_PER_S, path))


def _keep_days(config: ArchiveConfig) -> dict[str, float]:
    """Return how long each resolution is kept. Raises ``ConfigError`` for one that is not there, and where nothing would be kept."""
    usual = dict(ArchiveConfig().keep_days)
    for resolution, days in config.keep_days:
        if resolution not in usual:
            raise ConfigError(
                "analyze.archive.keep_days", f"there is no resolution {resolution!r}", f"write one of {', '.join(map(repr, usual))}"
            )
        if not days > 0:
            raise ConfigError("analyze.archive.keep_days", f"{resolution!r} is kept for {days} days", "write more than 0")
    return usual | dict(config.keep_days)


def _time_of(name: str) -> str:
    """Return the column that says when a row of a table is."""
    return "start_ts" if name == "bursts" else "ts"
