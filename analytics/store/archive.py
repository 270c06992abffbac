"""Segments and retention: rows that leave the hot tables become sorted Parquet files, and old files are deleted.

A table is cut when it has more than ``hot_rows_max`` rows, or rows of an hour too old for late data. The manifest row of a
file and the deletion of its hot rows are one transaction, so after a crash a file without a manifest row is removed.

The inventory is state, not history: it is never cut; only rows that newer ones replace are deleted.
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

# This many rows of one table in one transaction become a segment at once.
BULK_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class ArchiveConfig:
    """How much stays hot, and for how many days each resolution is stored ("" = tables without one); what is missing has its default."""

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
        self._to_delete: list[tuple[int, str]] = []
        self._inventory_rows: object = 0

    def start(self) -> None:
        """Remove files that no manifest row knows."""
        known = {str(row["path"]) for row in self._store.query("SELECT path FROM base.segments")}
        for path in (self._store.folder / SEGMENTS).rglob("*"):
            if path.is_file() and str(path.relative_to(self._store.folder)) not in known:
                path.unlink(missing_ok=True)

    def run(self) -> None:
        """Cut tables that are due and delete what is too old. Raises ``StoreError`` on a full disk."""
        for name in base_tables():
            if name == "inventory":
                self._delete_superseded()
                continue
            self._cut(name)
            self._expire(name)
        now = self._clock.monotonic_ns()
        for due, path in [entry for entry in self._to_delete if entry[0] <= now]:
            (self._store.folder / path).unlink(missing_ok=True)
            self._to_delete.remove((due, path))

    def _cut(self, name: str) -> None:
        ts = _time_of(name)
        found = self._store.query(f"SELECT count(*) AS rows, epoch_ns(min({ts})) AS low, epoch_ns(max({ts})) AS high FROM base.{name}")[0]
        rows, low, high = (int(str(found[key] or 0)) for key in ("rows", "low", "high"))
        border = (high - int(self._config.hot_s * NS_PER_S)) // HOUR_NS * HOUR_NS
        resolution = RESOLUTIONS_NS.get(name.rsplit("_", 1)[-1], NS_PER_S)
        if rows > self._config.hot_rows_max:
            # Cut half of the time span, at a full minute: one large segment instead of one per row.
            border = max(border, (low + high) // 2 // (60 * NS_PER_S) * 60 * NS_PER_S)
        # The newest coarse row may still grow, so it stays.
        border = min(border // resolution, high // resolution) * resolution
        if not rows or border <= low:
            return
        self._move(name, ts, low, border)

    def _delete_superseded(self) -> None:
        """Delete inventory rows that newer ones have replaced, if any row was added since the last time."""
        rows = self._store.query("SELECT count(*) AS rows FROM base.inventory")[0]["rows"]
        if rows == self._inventory_rows:
            return
        with self._store.transaction():
            self._store.execute(f"DELETE FROM base.inventory WHERE {SUPERSEDED}")
        self._inventory_rows = self._store.query("SELECT count(*) AS rows FROM base.inventory")[0]["rows"]

    def _move(self, name: str, ts: str, low: int, border: int) -> None:
        path, target = self._place(name, low, border)
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
        """Write many rows in stored form as a segment, inside the caller's transaction.

        A backlog bypasses the hot tables, which would write every row twice.
        """
        ts = _time_of(name)
        low, high = (int(frame[ts].cast(pl.Int64).min()), int(frame[ts].cast(pl.Int64).max()))  # type: ignore[arg-type]
        path, target = self._place(name, low, high)
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

    def _place(self, name: str, from_ns: int, to_ns: int) -> tuple[str, Path]:
        """Return the path of a new segment in the store's folder, and in full; create its folder."""
        path = f"{SEGMENTS}/{name}/{from_ns:020d}-{to_ns:020d}-{self._clock.now_ns():020d}.parquet"
        target = self._store.folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{target.parent} cannot be made: {error.strerror}", "see that the disk has space and may be written"
            ) from None
        return path, target

    def _expire(self, name: str) -> None:
        resolution = name.rsplit("_", 1)[-1]
        days = self._keep_days.get(resolution, self._keep_days[""])
        oldest = self._clock.now_ns() - int(days * 86_400 * NS_PER_S)
        if name in FAMILIES:
            # Relative to the newest row received, so that a store of an old recording keeps its rows.
            newest = f"(SELECT max(recv_ts) FROM base.{name})"
            self._store.execute(f"DELETE FROM base.{name} WHERE recv_ts < {newest} - to_seconds({int(days * 86_400)})")
        # A replayed recording is new to this store: age counts from when a segment was cut.
        for row in self._store.query("SELECT path FROM base.segments WHERE name = ?", [name]):
            path = str(row["path"])
            if int(path.rsplit("-", 1)[-1].removesuffix(".parquet")) < oldest:
                with self._store.transaction():
                    self._store.execute("DELETE FROM base.segments WHERE path = ?", [path])
                    refresh(self._store, name)
                self._to_delete.append((self._clock.monotonic_ns() + GRACE_S * NS_PER_S, path))


def _keep_days(config: ArchiveConfig) -> dict[str, float]:
    """Return for how many days each resolution is stored. Raises ``ConfigError`` for an unknown one and for zero days."""
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
    """Return the time column of a table."""
    return "start_ts" if name == "bursts" else "ts"
