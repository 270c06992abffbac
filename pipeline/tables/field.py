"""The type of a table, a named, versioned tuple of ``Field``, and the fields and sizes that several tables share.

The codec, the DuckDB tables, the labels and the generated docs derive from the fields, so a column is one line. A new nullable
field keeps the version; any other change needs a new version and a new topic. ``families.py`` has the tables that collectors
publish, ``states.py`` those that are computed and stored.

Units: times are UTC nanoseconds, sizes bytes, ratios 0..1, names in ``_bps`` bits per second, names in
``_ns`` nanoseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

WINDOW_NS = 1_000_000_000
RESOLUTIONS_NS = {"1s": WINDOW_NS, "10s": 10 * WINDOW_NS, "1m": 60 * WINDOW_NS, "1h": 3600 * WINDOW_NS}

# Block sizes of the dyadic ladder, in samples. Variances over them give IDC(m) and the Hurst exponent.
LADDER = tuple(2**level for level in range(1, 11))

# RS(544,514) counts codewords with 0 to 15 symbol errors, which it corrects, and codewords with more.
FEC_BINS = 17

Role = Literal["key", "sum", "min", "max", "hist", "attribute"]

# Exact sums of squares: 1000 squared samples of an 800G port pass 64 bits, so they travel as 128.
SQUARES = pl.Decimal(38, 0)
HISTOGRAM = pl.List(pl.Struct({"i": pl.Int16, "c": pl.UInt32}))


@dataclass(frozen=True, slots=True)
class Field:
    """One column: name, Polars type, unit, one sentence; ``role`` defines how two rows of a key merge.

    A ``cumulative`` field is a device counter, of which only differences between counter samples are used.
    """

    name: str
    dtype: pl.DataType | type[pl.DataType]
    unit: str
    doc: str
    role: Role = "attribute"
    cumulative: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A named, versioned tuple of fields with the topic that carries it."""

    name: str
    doc: str
    fields: tuple[Field, ...]
    version: int = 1
    state: bool = False

    @property
    def topic(self) -> str:
        return f"weft.{'state.' if self.state else ''}{self.name}.v{self.version}"

    @property
    def polars(self) -> dict[str, pl.DataType | type[pl.DataType]]:
        return {field.name: field.dtype for field in self.fields}

    def having(self, role: Role) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields if field.role == role)

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.polars)

    def frame(self, columns: pl.DataFrame | Mapping[str, Any]) -> pl.DataFrame:
        """Return ``columns`` in the order and types of this table: a scalar fills all rows, missing ones are null, others are dropped."""
        found = columns.to_dict() if isinstance(columns, pl.DataFrame) else columns
        height = next((len(column) for column in found.values() if not _is_scalar(column)), 1)
        return pl.DataFrame([_typed(found.get(name), name, dtype, height) for name, dtype in self.polars.items()])


def masked(values: np.ndarray, missing: np.ndarray | None) -> pl.Series:
    """Return numbers or bools (rows,) as a column, null where ``missing`` (rows,) bool. Unlike ``pa.array`` it does not load pandas."""
    null = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    data = pa.py_buffer(np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values))
    return pl.Series(pl.from_arrow(pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [null, data])))


def nulls(name: str, dtype: pl.DataType | type[pl.DataType], height: int) -> pl.Series:
    """Return a column of ``height`` nulls."""
    return _null(name, dtype).new_from_index(0, height)


@cache
def _null(name: str, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.Series(name, [None], dtype=dtype)


def _is_scalar(column: Any) -> bool:
    return column is None or isinstance(column, str | int | float)


def _typed(column: Any, name: str, dtype: pl.DataType | type[pl.DataType], height: int) -> pl.Series:
    if column is None:
        return nulls(name, dtype, height)
    if _is_scalar(column):
        return pl.Series(name, [column], dtype=dtype).new_from_index(0, height)
    given = column if isinstance(column, pl.Series) else pl.Series(name, column)
    typed = given if given.dtype == dtype else given.cast(dtype)
    return typed if typed.name == name else typed.alias(name)


def keys(*fields: Field) -> tuple[Field, ...]:
    """Return the fields as the key of a table."""
    return tuple(replace(field, role="key") for field in fields)


TS = Field("ts", pl.Int64, "ns", "time of the sample by the device's clock; of a segment, the start of its first sample")
DEVICE = Field("device", pl.String, "", "name of the switch or host")
PORT = Field("port", pl.String, "", "name of the interface, as its device spells it")
QUEUE = Field("queue", pl.String, "", "name of the egress queue or priority group; empty where the signal is the port's")
SIGNAL = Field(
    "signal",
    pl.String,
    "",
    "sampled signal: rx_bytes, tx_bytes, queue_bytes, rx_ecn_bytes, rx_retransmit_bytes, tx_retransmit_bytes, connections",
)
INTERVAL = Field("interval_ns", pl.Int64, "ns", "time that one sample covers")
SPEED = Field("speed_bps", pl.UInt64, "bit/s", "line rate of the port; null where unknown")
SOURCE = Field("source", pl.String, "", "the collector that made this row")
GPU = Field("gpu", pl.String, "", "number of the GPU in its device")
LINK = Field("link", pl.String, "", "number of the link; empty where all links of the GPU are counted together")
DIRECTION = Field(
    "direction",
    pl.String,
    "",
    "tx: egress queue or priority; rx: ingress priority group; pool: shared buffer, whose port is empty",
)

COMMON = (
    TS,
    Field("recv_ts", pl.Int64, "ns", "time of receipt by the collector's clock"),
    SOURCE,
    DEVICE,
    Field("epoch", pl.Int64, "", "changes when the device's counters restart; deltas are taken only inside one epoch"),
)
