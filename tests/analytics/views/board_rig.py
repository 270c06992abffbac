"""A store with its views, into which tests insert rows as the services do."""

from pathlib import Path
from typing import Any

import polars as pl
from store_rig import fold_all

from weft.analytics.store.ddl import stored
from weft.analytics.store.publish import catalog
from weft.analytics.store.writer import Store
from weft.pipeline.tables.families import FAMILIES
from weft.pipeline.tables.states import STATES


class Viewed:
    """An open store in a folder; ``store.stop()`` closes it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.store.start()
        for statement in catalog(self.store):
            self.store.execute(statement)

    def keep(self, tables: dict[str, pl.DataFrame]) -> None:
        """Store the output of a metric: rows of state tables at every resolution, other rows unchanged."""
        for name, frame in tables.items():
            if name in STATES and STATES[name].having("key"):
                self.store.insert(f"base.{name}_1s", stored(STATES[name], frame))
                fold_all(self.store, STATES[name], frame)
            elif name in FAMILIES:
                self.store.insert(f"base.{name}", stored(FAMILIES[name], frame))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return self.store.query(sql)

    def one(self, sql: str) -> dict[str, Any]:
        (row,) = self.rows(sql)
        return row
