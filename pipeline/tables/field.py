"""What a table is: a named, versioned tuple of ``Field``; and the fields and sizes that several tables share.

The codec, the DuckDB tables, the labels and the generated docs derive from the fields, so a column is added in one line.
Adding a nullable field keeps the version; anything else is a new version and with it a new topic. The tables themselves:
``families.py`` (what collectors publish) and ``states.py`` (what is computed and stored).

Units: times are UTC nanoseconds, sizes bytes, ratios 0..1, names in ``_bps`` bits per second, names in
``_ns`` nanoseconds.
"""

from dataclasses import dataclass, replace
from typing import Literal

import polars as pl

WINDOW_NS = 1_000_000_000
RESOLUTIONS_NS = {"1s": WINDOW_NS, "10s": 10 * WINDOW_NS, "1m": 60 * WINDOW_NS, "1h": 3600 * WINDOW_NS}

# Block sizes of the dyadic ladder, in samples. Variances over them give IDC(m) and the Hurst exponent.
LADDER = tuple(2**level for level in range(1, 11))

# RS(544,514) tells codewords with 0 to 15 symbol errors, which it corrects, and those with more.
FEC_BINS = 17

Role = Literal["key", "sum", "min", "max", "hist", "attribute"]

# Exact sums of squares: 1000 squared samples of an 800G port pass 64 bits, so they travel as 128.
SQUARES = pl.Decimal(38, 0)
HISTOGRAM = pl.List(pl.Struct({"i": pl.Int16, "c": pl.UInt32}))


@dataclass(frozen=True, slots=True)
class Field:
    """One column: name, Polars type, unit, one sentence; ``role`` says how two rows of a key merge.

    A ``cumulative`` one is a counter of the device's: what counts of it is the difference of two readings.
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


def keys(*fields: Field) -> tuple[Field, ...]:
    """Return the fields as the key of a table."""
    return tuple(replace(field, role="key") for field in fields)


TS = Field("ts", pl.Int64, "ns", "time of the reading by the device's clock; of a run, the start of its first sample")
DEVICE = Field("device", pl.String, "", "name of the switch or host")
PORT = Field("port", pl.String, "", "name of the interface, as its device spells it")
QUEUE = Field("queue", pl.String, "", "name of the egress queue or priority group; empty where the signal is the port's")
SIGNAL = Field(
    "signal",
    pl.String,
    "",
    "what is sampled: rx_bytes, tx_bytes, queue_bytes, rx_ecn_bytes, rx_retransmit_bytes, tx_retransmit_bytes, connections",
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
    Field("recv_ts", pl.Int64, "ns", "time at which the collector had it, by the collector's clock"),
    SOURCE,
    DEVICE,
    Field("epoch", pl.Int64, "", "changes when the device's counters start anew; deltas are taken only inside one epoch"),
)
