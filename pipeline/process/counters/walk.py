"""One walk over rows of counters: sort them, run the kernels, turn the results into rows."""

import numpy as np
import polars as pl

from ...tables.families import FAMILIES
from ...tables.field import WINDOW_NS
from ...tables.states import STATES
from . import kernel, storms
from .columns import BINS, CounterColumns, CounterPlan, Widths
from .state import ObjectStates

_FEC = (*BINS, "fec_corrected", "fec_uncorrectable", "corrected_bits")
# The time covered by some counters, by column.
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
    """The counter samples of some objects in some windows, at least one; updates ``known``."""

    def __init__(self, plan: CounterPlan, known: ObjectStates, code: np.ndarray, columns: CounterColumns) -> None:
        self._plan = plan
        self._known = known
        self._columns = columns
        order, start, cell, self._first = _in_order(code, columns, len(known.marks))
        self._head = order[start[:-1]]
        self._samples = kernel.CounterSamples(order, start, code[self._head], columns.ts[self._head], columns.epoch[self._head], cell)
        count = len(cell)
        self._verdicts = kernel.Verdicts(np.zeros(count, np.int64), np.zeros(count, np.bool_), np.zeros(count, np.int64))
        self._cells = len(self._first) - 1
        self._sums: dict[str, kernel.Sums] = {}

    def run(self, detection_ns: int, restoration_ns: int) -> dict[str, pl.DataFrame]:
        """Return the rows of the state table, of ``quality`` and of ``event``."""
        rows, link = self._columns, np.zeros((4, self._cells), np.int64)
        generation, rate, bound, change = kernel.follow(self._samples, rows.speed, rows.up, self._known.marks, link, self._verdicts.flags)
        moved, since = self._differ(kernel.LineRates(generation, bound))
        occupancy = self._gauges()
        event = self._links(change)
        fastest = np.maximum.reduceat(rate, self._first[:-1])
        more = {"speed_bps": _nullable(fastest, fastest)}
        if self._plan.family == "queue":
            event, more["storm_ns"] = self._storms((detection_ns, restoration_ns), moved, since, occupancy)
        elif self._plan.family == "port":
            more |= self._link_columns(link)
        return {self._plan.table: self._table(more), "quality": self._quality(), "event": event}

    def _differ(self, line: kernel.LineRates) -> tuple[np.ndarray, np.ndarray]:
        """Add up the deltas of every counter; return the inputs of the storm rules by sample: deltas, and since when."""
        queue, count = self._plan.family == "queue", len(self._head)
        moved, since = (np.full((len(_STORM_INPUTS) if queue else 0, count), -1, np.int64) for _ in range(2))
        limits = Widths(self._plan, self._known.keys["source"])
        restarted = self._samples.code[line.generation > 0]
        bounds = {name: limits.of(name) for name in self._plan.counters}
        for k, name in sorted(enumerate(self._plan.counters), key=lambda one: -int(bounds[one[1]][0].min())):
            numbers = self._columns.numbers(name)
            if numbers is None:
                self._known.seen[k, restarted, kernel.TS] = -1
                continue
            at = _STORM_INPUTS.index(name) if queue and name in _STORM_INPUTS else -1
            movement = kernel.Movement(moved[at], since[at]) if at >= 0 else kernel.Movement(_NOT_WANTED, _NOT_WANTED)
            limit = kernel.CounterLimits(*bounds[name], self._plan.cost(name))
            kernel.differ(numbers, self._samples, line, limit, self._known.seen[k], self._new_sums(name), self._verdicts, movement)
        return moved, since

    def _gauges(self) -> np.ndarray:
        """Add up the gauges; return the occupancy by sample, -1 where it is unknown."""
        occupancy = np.full(len(self._head), -1, np.int64)
        for name in self._plan.gauges:
            numbers = self._columns.numbers(name)
            if numbers is not None:
                read = occupancy if name == "occupancy_bytes" else _NOT_WANTED
                kernel.gauge(numbers, self._samples, self._new_sums(name), self._verdicts.repeats, read)
        return occupancy

    def _new_sums(self, name: str) -> kernel.Sums:
        cells = self._cells
        self._sums[name] = kernel.Sums(np.zeros(cells, np.uint64), np.zeros(cells, np.int64), np.zeros(cells, np.int64))
        return self._sums[name]

    def _table(self, more: dict[str, pl.Series]) -> pl.DataFrame:
        columns = self._columns_of_cells()
        columns["readings"] = pl.Series(np.diff(self._first))
        columns["covered_ns"] = self._longest(self._plan.counters)
        columns |= {name: self._longest(counters) for name, counters in _COVERED[self._plan.family].items()}
        for side in ("rx", "tx") if self._plan.family == "port" else ():
            self._add_up_packets(side)
        columns |= {name: _nullable(self._sums[name].total, self._sums[name].counted) for name in self._plan.counters if name in self._sums}
        for name, high in self._plan.gauges.items():
            if name in self._sums:
                columns[high] = _nullable(self._sums[name].covered.view(np.uint64), self._sums[name].counted)
        if "occupancy_bytes" in self._sums:
            occupancy = self._sums["occupancy_bytes"]
            columns |= {"occupancy_count": pl.Series(occupancy.counted), "occupancy_total": pl.Series(occupancy.total)}
        columns |= more
        return STATES[self._plan.table].frame(columns)

    def _columns_of_cells(self) -> dict[str, pl.Series]:
        first = self._first[:-1]
        keys = self._known.keys[self._samples.code[first]]
        return {"ts": pl.Series(self._samples.ts[first] // WINDOW_NS * WINDOW_NS), **{key.name: key for key in keys}}

    def _longest(self, counters: tuple[str, ...]) -> pl.Series:
        spans = [self._sums[name].covered for name in counters if name in self._sums]
        return pl.Series(np.maximum.reduce(spans) if spans else np.zeros(self._cells, np.int64))

    def _add_up_packets(self, side: str) -> None:
        """If a source counts packets by kind but has no total, set the total to the sum of the kinds, if each of their deltas is valid."""
        name, parts = f"{side}_packets", [f"{side}_{kind}_packets" for kind in ("unicast", "multicast", "broadcast")]
        parts = [part for part in parts if part in self._sums]
        if parts:
            whole = self._sums[name] if name in self._sums else self._new_sums(name)
            counts = np.stack([self._sums[part].counted > 0 for part in parts])
            known = np.stack([self._has(part) for part in parts])
            summed = counts.any(axis=0) & (counts | ~known).all(axis=0) & ~self._has(name)
            whole.total[summed] = np.add.reduce([self._sums[part].total for part in parts])[summed]
            whole.counted[summed] = 1

    def _has(self, counter: str) -> np.ndarray:
        """Return, by cell, whether its object has this counter at all."""
        seen = self._known.seen[self._plan.counters.index(counter)]
        return seen[self._samples.code[self._first[:-1]], kernel.TS] >= 0

    def _link_columns(self, link: np.ndarray) -> dict[str, pl.Series]:
        known, changes, up, down = link
        columns = {"up_ns": _nullable(up, known), "down_ns": _nullable(down, known), "flaps": _nullable(changes, known)}
        if "carrier_changes" in self._sums:
            total, _, counted = self._sums["carrier_changes"]
            flaps = np.where(counted > 0, total.astype(np.int64), changes)
            columns["flaps"] = _nullable(flaps, np.maximum(counted, known))
        return columns

    def _quality(self) -> pl.DataFrame:
        if not self._verdicts.flags.any() and not self._verdicts.repeats.any():
            return STATES["quality"].empty()
        columns = self._columns_of_cells()
        port = self._plan.place(pl.DataFrame([columns[name] for name in self._plan.keys]))
        kinds = {
            name: np.add.reduceat((self._verdicts.flags & bit != 0).astype(np.int64), self._first[:-1]) for name, bit in _KINDS.items()
        }
        kinds["duplicates"] = np.add.reduceat(self._verdicts.repeats, self._first[:-1])
        rows = pl.DataFrame(
            {"ts": columns["ts"], "device": columns["device"], "port": port, **kinds, "late": np.zeros(self._cells, np.int64)}
        ).filter(pl.any_horizontal(pl.col(*kinds) > 0))
        rows = rows.group_by("ts", "device", "port").sum().with_columns(signal=pl.lit(self._plan.family))
        return STATES["quality"].frame(rows)

    def _links(self, change: np.ndarray) -> pl.DataFrame:
        at = np.flatnonzero(change)
        kinds = pl.Series(["link_up" if one > 0 else "link_down" for one in change[at]], dtype=pl.String)
        return self._events(at, kinds, "oper_up", "")

    def _storms(
        self, spans: tuple[int, int], moved: np.ndarray, since: np.ndarray, occupancy: np.ndarray
    ) -> tuple[pl.DataFrame, pl.Series]:
        storm_ns = np.zeros(self._cells, np.int64)
        inputs = storms.Inputs(moved, since, occupancy)
        event, rule, begin = storms.watch(self._samples, inputs, self._verdicts.flags, self._known.marks, spans, storm_ns)
        at = np.flatnonzero(event)
        kinds = pl.Series(["storm_start" if one == storms.STARTED else "storm_end" for one in event[at]], dtype=pl.String)
        reasons = pl.Series([storms.REASONS.get(one, "counters_reset") for one in rule[at].tolist()], dtype=pl.String)
        return self._events(at, kinds, reasons, details(self._known.keys[self._samples.code[at]], begin[at])), pl.Series(storm_ns)

    def _events(self, at: np.ndarray, kinds: pl.Series, reasons: pl.Series | str, detail: pl.Series | str) -> pl.DataFrame:
        if not len(at):
            return FAMILIES["event"].empty()
        samples = self._samples
        received = np.minimum.reduceat(self._columns.recv[samples.order], samples.start[:-1])
        keys = {key.name: key for key in self._known.keys[samples.code[at]]}
        times = {"ts": pl.Series(samples.ts[at]), "recv_ts": pl.Series(received[at]), "epoch": pl.Series(samples.epoch[at])}
        return FAMILIES["event"].frame({**keys, **times, "kind": kinds, "reason": reasons, "detail": detail})


def details(keys: pl.DataFrame, since_ns: np.ndarray) -> pl.Series:
    """Return the details of storm events: the queue, and the start of the storm."""
    return keys.select(pl.format("queue {} {}, since {}", "queue", "direction", pl.Series(since_ns))).to_series()


def end_of_storms(known: ObjectStates) -> pl.DataFrame:
    """Return the events that end these objects' storms at their last samples, because no rows follow."""
    at = np.flatnonzero(known.marks[:, kernel.STORM])
    keys = known.keys[at]
    times = {name: pl.Series(known.marks[at, column]) for name, column in (("ts", kernel.LAST_TS), ("epoch", kernel.EPOCH))}
    columns = {**{key.name: key for key in keys}, **times, "recv_ts": times["ts"], "detail": details(keys, known.marks[at, kernel.HELD])}
    columns |= {"kind": "storm_end", "reason": "data_ended"}
    return FAMILIES["event"].frame(columns)


def _in_order(code: np.ndarray, columns: CounterColumns, objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted rows, the start of each counter sample, its cell, and the first sample of each cell."""
    order = kernel.place(code, objects)
    start, cell, first = kernel.samples_of(order, code, columns.ts, columns.epoch, WINDOW_NS)
    if not len(start):
        order = np.lexsort((columns.epoch, columns.ts, code))
        start, cell, first = kernel.samples_of(order, code, columns.ts, columns.epoch, WINDOW_NS)
    return order, start, cell, first


def _nullable(values: np.ndarray, counted: np.ndarray) -> pl.Series:
    """Return the values as a column, null where the count is zero."""
    if counted.all():
        return pl.Series(values)
    return pl.Series(values).set(pl.Series(counted == 0), None)
