"""One walk over some rows of counters: they are put in order, the passes run, and what these found becomes rows."""

import numpy as np
import polars as pl
import pyarrow as pa

from ...tables.families import FAMILIES
from ...tables.field import WINDOW_NS
from ...tables.states import STATES
from . import kernel, storms
from .columns import BINS, Columns, Limits, Plan
from .state import Known

_FEC = (*BINS, "fec_corrected", "fec_uncorrectable", "corrected_bits")
# Columns that say of what time some counters speak.
_SIDES = {"rx_covered_ns": ("rx_bytes",), "tx_covered_ns": ("tx_bytes",)}
_COVERED = {
    "port": _SIDES | {"fec_covered_ns": _FEC},
    "nic": _SIDES,
    "nvlink": _SIDES,
    "queue": {
        "pause_rx_covered_ns": ("pfc_rx_pause_us", "pfc_rx_pause_quanta"),
        "pause_tx_covered_ns": ("pfc_tx_pause_us", "pfc_tx_pause_quanta"),
    },
}
_STORM_INPUTS = ("pfc_rx_frames", "pfc_on2off", "pfc_rx_pause_us", "packets")
_KINDS = {"resets": kernel.RESET, "wraps": kernel.WRAP, "gaps": kernel.GAP, "implausible": kernel.IMPLAUSIBLE}
_NOT_WANTED = np.zeros(0, np.int64)


class Walk:
    """The readings of some objects in some windows; at least one row. Brings ``known`` up to their time."""

    def __init__(self, plan: Plan, known: Known, code: np.ndarray, columns: Columns) -> None:
        self._plan = plan
        self._known = known
        self._code = code
        self._columns = columns
        self._order, self._start, self._cell, self._first = _in_order(code, columns, len(known.marks))
        self._head = self._order[self._start[:-1]]
        self._flags = np.zeros(len(self._cell), np.int64)
        self._repeats = np.zeros(len(self._cell), np.int64)
        self._cells = len(self._first) - 1
        # By counter or gauge: its sum (or largest), the time that it covers, and how many intervals (or readings) count.
        self._total: dict[str, np.ndarray] = {}
        self._covered: dict[str, np.ndarray] = {}
        self._counted: dict[str, np.ndarray] = {}

    def run(self, detection_ns: int, restoration_ns: int) -> dict[str, pl.DataFrame]:
        """Return the rows of the state table, of ``quality`` and of ``event``."""
        link, rate, bound, change, generation = self._follow()
        moved, since = self._differ(bound, generation)
        occupancy = self._gauges()
        event = self._links(change)
        fastest = np.maximum.reduceat(rate, self._first[:-1])
        more = {"speed_bps": _nullable(fastest, fastest)}
        if self._plan.family == "queue":
            event, more["storm_ns"] = self._storms((detection_ns, restoration_ns), moved, since, occupancy)
        elif self._plan.family == "port":
            more |= self._of_link(link)
        return {self._plan.table: self._table(more), "quality": self._quality(), "event": event}

    def _follow(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rows, link = self._columns, np.zeros((4, self._cells), np.int64)
        generation, rate, bound, change = kernel.follow(
            self._order,
            self._start,
            self._code,
            rows.ts,
            rows.epoch,
            self._cell,
            rows.speed,
            rows.up,
            self._known.marks,
            link,
            self._flags,
        )
        return link, rate, bound, change, generation

    def _differ(self, bound: np.ndarray, generation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum up what every counter moved; return, for the rules of storms, what some moved by reading and since when."""
        queue = self._plan.family == "queue"
        moved, since = (np.full((len(_STORM_INPUTS) if queue else 0, len(self._cell)), -1, np.int64) for _ in range(2))
        readings = (self._start, self._code[self._head], self._columns.ts[self._head], generation, bound, self._cell)
        limits = Limits(self._plan, self._known.keys["source"])
        restarted = self._code[self._head[generation > 0]]
        anew = np.zeros(len(self._cell), np.bool_)
        bounds = {name: limits.of(name) for name in self._plan.counters}
        for k, name in sorted(enumerate(self._plan.counters), key=lambda one: -int(bounds[one[1]][0].min())):
            numbers = self._columns.numbers(name)
            if numbers is None:
                self._known.seen[k, restarted, kernel.TS] = -1
                continue
            sums = self._sums(name)
            at = _STORM_INPUTS.index(name) if queue and name in _STORM_INPUTS else -1
            wanted = (moved[at], since[at]) if at >= 0 else (_NOT_WANTED, _NOT_WANTED)
            limit, seen = (*bounds[name], self._plan.cost(name)), self._known.seen[k]
            kernel.differ(*numbers, self._order, readings, limit, seen, sums, self._flags, anew, self._repeats, *wanted)
        return moved, since

    def _gauges(self) -> np.ndarray:
        """Take up the gauges; return the occupancy by reading, -1 where it was not read."""
        occupancy = np.full(len(self._cell), -1, np.int64)
        for name in self._plan.gauges:
            numbers = self._columns.numbers(name)
            if numbers is not None:
                total, high, counted = self._sums(name)
                read = occupancy if name == "occupancy_bytes" else _NOT_WANTED
                kernel.gauge(*numbers, self._order, self._start, self._cell, high.view(np.uint64), total, counted, self._repeats, read)
        return occupancy

    def _sums(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._total[name] = np.zeros(self._cells, np.uint64)
        self._covered[name], self._counted[name] = np.zeros(self._cells, np.int64), np.zeros(self._cells, np.int64)
        return self._total[name], self._covered[name], self._counted[name]

    def _table(self, more: dict[str, pl.Series]) -> pl.DataFrame:
        columns = self._columns_of_cells()
        columns["readings"] = pl.Series(np.diff(self._first))
        columns["covered_ns"] = self._longest(self._plan.counters)
        columns |= {name: self._longest(counters) for name, counters in _COVERED[self._plan.family].items()}
        for side in ("rx", "tx") if self._plan.family == "port" else ():
            self._add_up_packets(side)
        columns |= {name: _nullable(self._total[name], self._counted[name]) for name in self._plan.counters if name in self._total}
        for name, high in self._plan.gauges.items():
            if name in self._total:
                columns[high] = _nullable(self._covered[name].view(np.uint64), self._counted[name])
        if "occupancy_bytes" in self._total:
            columns["occupancy_count"] = pl.Series(self._counted["occupancy_bytes"])
            columns["occupancy_total"] = pl.Series(self._total["occupancy_bytes"])
        columns |= more
        return _shaped(STATES[self._plan.table].polars, columns, self._cells)

    def _columns_of_cells(self) -> dict[str, pl.Series]:
        head = self._head[self._first[:-1]]
        keys = self._known.keys[self._code[head]]
        return {"ts": pl.Series(self._columns.ts[head] // WINDOW_NS * WINDOW_NS), **{key.name: key for key in keys}}

    def _longest(self, counters: tuple[str, ...]) -> pl.Series:
        spans = [self._covered[name] for name in counters if name in self._covered]
        return pl.Series(np.maximum.reduce(spans) if spans else np.zeros(self._cells, np.int64))

    def _add_up_packets(self, side: str) -> None:
        """Where a source tells unicast, multicast and broadcast packets and no total, their sum is the total, if all of them count."""
        name, parts = f"{side}_packets", [f"{side}_{kind}_packets" for kind in ("unicast", "multicast", "broadcast")]
        parts = [part for part in parts if part in self._total]
        if parts:
            total, _, counted = (self._total[name], None, self._counted[name]) if name in self._total else self._sums(name)
            counts = np.stack([self._counted[part] > 0 for part in parts])
            told = counts.any(axis=0) & (counts | ~np.stack([self._is_told(part) for part in parts])).all(axis=0) & ~self._is_told(name)
            total[told] = np.add.reduce([self._total[part] for part in parts])[told]
            counted[told] = 1

    def _is_told(self, counter: str) -> np.ndarray:
        """Return, by cell, whether its object has this counter at all."""
        seen = self._known.seen[self._plan.counters.index(counter)]
        return seen[self._code[self._head[self._first[:-1]]], kernel.TS] >= 0

    def _of_link(self, link: np.ndarray) -> dict[str, pl.Series]:
        known, changes, up, down = link
        columns = {"up_ns": _nullable(up, known), "down_ns": _nullable(down, known), "flaps": _nullable(changes, known)}
        if "carrier_changes" in self._total:
            counted = self._counted["carrier_changes"]
            flaps = np.where(counted > 0, self._total["carrier_changes"].astype(np.int64), changes)
            columns["flaps"] = _nullable(flaps, np.maximum(counted, known))
        return columns

    def _quality(self) -> pl.DataFrame:
        table = STATES["quality"].polars
        if not self._flags.any() and not self._repeats.any():
            return STATES["quality"].empty()
        columns = self._columns_of_cells()
        port = self._plan.place(pl.DataFrame([columns[name] for name in self._plan.keys]))
        kinds = {name: np.add.reduceat((self._flags & bit != 0).astype(np.int64), self._first[:-1]) for name, bit in _KINDS.items()}
        kinds["duplicates"] = np.add.reduceat(self._repeats, self._first[:-1])
        rows = pl.DataFrame(
            {"ts": columns["ts"], "device": columns["device"], "port": port, **kinds, "late": np.zeros(self._cells, np.int64)}
        ).filter(pl.any_horizontal(pl.col(*kinds) > 0))
        rows = rows.group_by("ts", "device", "port").sum().with_columns(signal=pl.lit(self._plan.family))
        return rows.select(pl.col(name).cast(dtype) for name, dtype in table.items())

    def _links(self, change: np.ndarray) -> pl.DataFrame:
        at = np.flatnonzero(change)
        kinds = pl.Series(["link_up" if one > 0 else "link_down" for one in change[at]], dtype=pl.String)
        return self._events(at, kinds, pl.repeat("oper_up", len(at), eager=True), pl.repeat("", len(at), eager=True))

    def _storms(
        self, spans: tuple[int, int], moved: np.ndarray, since: np.ndarray, occupancy: np.ndarray
    ) -> tuple[pl.DataFrame, pl.Series]:
        storm_ns = np.zeros(self._cells, np.int64)
        code, ts = self._code[self._head], self._columns.ts[self._head]
        event, rule, begin = storms.watch(code, ts, self._cell, self._flags, moved, since, occupancy, self._known.marks, *spans, storm_ns)
        at = np.flatnonzero(event)
        kinds = pl.Series(["storm_start" if one == storms.STARTED else "storm_end" for one in event[at]], dtype=pl.String)
        reasons = pl.Series([storms.REASONS.get(one, "counters_reset") for one in rule[at].tolist()], dtype=pl.String)
        return self._events(at, kinds, reasons, details(self._known.keys[code[at]], begin[at])), pl.Series(storm_ns)

    def _events(self, at: np.ndarray, kinds: pl.Series, reasons: pl.Series, detail: pl.Series) -> pl.DataFrame:
        if not len(at):
            return FAMILIES["event"].empty()
        received = np.minimum.reduceat(self._columns.recv[self._order], self._start[:-1])
        head = self._head[at]
        keys = {key.name: key for key in self._known.keys[self._code[head]]}
        times = {"ts": pl.Series(self._columns.ts[head]), "recv_ts": pl.Series(received[at]), "epoch": pl.Series(self._columns.epoch[head])}
        return _shaped(FAMILIES["event"].polars, {**keys, **times, "kind": kinds, "reason": reasons, "detail": detail}, len(at))


def details(keys: pl.DataFrame, since_ns: np.ndarray) -> pl.Series:
    """Return what an event says of storms besides its port: the queue, and since when it was stopped."""
    return keys.select(pl.format("queue {} {}, since {}", "queue", "direction", pl.Series(since_ns))).to_series()


def end_of_storms(known: Known) -> pl.DataFrame:
    """Return the events that end these objects' storms at the last time that they were read: nothing will follow."""
    at = np.flatnonzero(known.marks[:, kernel.STORM])
    keys = known.keys[at]
    times = {name: pl.Series(known.marks[at, column]) for name, column in (("ts", kernel.LAST_TS), ("epoch", kernel.EPOCH))}
    columns = {**{key.name: key for key in keys}, **times, "recv_ts": times["ts"], "detail": details(keys, known.marks[at, kernel.HELD])}
    columns |= {name: pl.repeat(text, len(at), eager=True) for name, text in (("kind", "storm_end"), ("reason", "data_ended"))}
    return _shaped(FAMILIES["event"].polars, columns, len(at))


def _in_order(code: np.ndarray, columns: Columns, objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows in order of object, time and epoch, where each reading begins, its cell, and each cell's first reading."""
    order = kernel.place(code, objects)
    start, cell, first = kernel.readings(order, code, columns.ts, columns.epoch, WINDOW_NS)
    if not len(start):
        order = np.lexsort((columns.epoch, columns.ts, code))
        start, cell, first = kernel.readings(order, code, columns.ts, columns.epoch, WINDOW_NS)
    return order, start, cell, first


def _nullable(values: np.ndarray, counted: np.ndarray) -> pl.Series:
    """Return the values as a column, null where nothing counts."""
    if counted.all():
        return pl.Series(values)
    return pl.Series(values=pl.from_arrow(pa.array(values, mask=counted == 0)))  # type: ignore[arg-type]


def _shaped(table: dict, columns: dict[str, pl.Series], height: int) -> pl.DataFrame:
    """Return the columns of a table, those that are not there null."""
    missing = pl.Series([None])
    made = [
        columns[name].cast(dtype).alias(name) if name in columns else missing.cast(dtype).alias(name).new_from_index(0, height)
        for name, dtype in table.items()
    ]
    return pl.DataFrame(made)
