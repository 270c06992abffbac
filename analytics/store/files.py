"""The files of a store, and what errors of them mean.

DuckDB lets one process write or many read, so a store has one writer, and files appear only by rename::

    hot.duckdb            the writer's database: base tables in schema ``base``
    segments/<table>/     sorted Parquet that has left the hot tables, immutable
    samples/              the raw samples of the last minutes, Parquet
    snapshots/<n>.duckdb  copies of the hot database, with views over the two folders above
    current.duckdb        a symbolic link to the newest snapshot, swapped atomically

Readers open ``current.duckdb`` read-only and need no extension.
"""

import os
from pathlib import Path

import duckdb

from ...pipeline.errors import StoreError

STORE = "store"
HOT = "hot.duckdb"
CURRENT = "current.duckdb"
SEGMENTS = "segments"
SAMPLES = "samples"
SNAPSHOTS = "snapshots"


def explain(error: duckdb.Error, folder: Path) -> StoreError:
    """Return DuckDB's error on the store in ``folder`` with a hint."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    lower = text.lower()
    if ("lock" in lower and "conflict" in lower) or "could not set lock" in lower:
        return StoreError(f"another process writes {folder}", "stop it, or choose another folder with --data")
    # A disk fills up while DuckDB writes, and while it spills.
    if "no space left" in lower or "failed to offload" in lower or ("disk" in lower and "full" in lower):
        return StoreError(
            f"the disk under {folder} is full", "free space; nothing that was stored is lost, and what is on the bus will be stored then"
        )
    if not os.access(folder, os.W_OK):
        return StoreError(f"{folder} cannot be written", "choose another folder with --data")
    return StoreError(text, "run 'weft check' and see the troubleshooting page")
