"""The state of counter objects: by device between windows, and as bytes between processes."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import polars as pl

from .columns import CounterColumns, CounterPlan
from .kernel import LAST_TS, MARKS, NOTHING, SEEN_COLUMNS, TS

_MARKS = "marks"


@dataclass(slots=True)
class ObjectStates:
    """Objects and their state. ``keys`` has a row for each object.

    ``marks`` is (objects, MARKS), ``seen`` (counters, objects, SEEN_COLUMNS), both int64; see ``kernel``.
    """

    keys: pl.DataFrame
    marks: np.ndarray
    seen: np.ndarray
    # The slice of each device's objects; empty if some objects are new or there are too many.
    places: dict[str, slice] = field(default_factory=dict)

    def pick(self, which: np.ndarray) -> "ObjectStates":
        """Return these objects alone."""
        return ObjectStates(self.keys[which], self.marks[which], self.seen[:, which])


class StatesByDevice:
    """The states of the objects of every device; at most ``objects_max`` of each."""

    def __init__(self, plan: CounterPlan, objects_max: int) -> None:
        self._plan = plan
        self._objects_max = objects_max
        self._devices: dict[str, ObjectStates] = {}
        self.dropped = 0

    def take(self, devices: Iterable[str], columns: CounterColumns) -> tuple[ObjectStates, np.ndarray]:
        """Return the states of all objects of these devices and of those in the rows, and the object of each row."""
        met = [device for device in devices if device in self._devices]
        old = [self._devices[device] for device in met]
        keys = columns.keys()
        known = pl.concat([keys.clear(), *(one.keys for one in old)])
        fresh = keys.unique(maintain_order=True).join(known, on=keys.columns, how="anti", maintain_order="left")
        known = pl.concat([known, fresh])
        code = keys.join(known.with_row_index("code"), on=keys.columns, how="left", maintain_order="left")["code"]
        marks = np.concatenate([*(one.marks for one in old), np.tile(NOTHING, (fresh.height, 1))])
        blank = np.full((len(self._plan.counters), fresh.height, SEEN_COLUMNS), -1, np.int64)
        sizes = [len(one.marks) for one in old]
        # A carry may come from a service with a higher limit.
        fixed = not fresh.height and max(sizes, default=0) <= self._objects_max
        spans = pairwise(np.cumsum([0, *sizes]).tolist())
        places = {device: slice(*span) for device, span in zip(met, spans, strict=True)} if fixed else {}
        seen = np.concatenate([*(one.seen for one in old), blank], axis=1)
        return ObjectStates(known, marks, seen, places), code.cast(pl.Int64).to_numpy(writable=True)

    def overflows(self, known: ObjectStates) -> bool:
        """Return whether a device has more objects than its limit."""
        most = known.keys["device"].value_counts()["count"].max()
        return isinstance(most, int) and most > self._objects_max

    def store(self, known: ObjectStates) -> None:
        """Store these states; a device with too many objects loses the longest silent ones."""
        for device, place in known.places.items():
            # Copies: a device that falls silent must not keep the arrays of all others alive.
            self._devices[device] = ObjectStates(self._devices[device].keys, known.marks[place].copy(), known.seen[:, place].copy())
        if known.places:
            return
        place = known.keys.select(pl.col("device").rank("dense")).to_series().to_numpy().astype(np.int64)
        order = np.argsort(place, kind="stable")
        for which in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
            if len(which):
                mine = known.pick(which)
                if len(which) > self._objects_max:
                    mine = mine.pick(self._newest(mine))
                self._devices[mine.keys["device"][0]] = mine

    def forget(self, device: str) -> ObjectStates | None:
        """Return and drop the states of ``device``."""
        return self._devices.pop(device, None)

    def carry(self, device: str) -> bytes:
        """Return the objects of ``device`` as an Arrow stream: a row for each, with its keys and one column of its state.

        The column's name lists its parts: the marks, then each counter with a sample. It is one column because every commit writes
        every device, and a column costs more than its contents.
        """
        known = self._devices.get(device)
        if known is None:
            return b""
        read = np.flatnonzero((known.seen[:, :, TS] >= 0).any(axis=1))
        seen = known.seen[read].transpose(1, 0, 2).reshape(len(known.marks), -1)
        named = " ".join([_MARKS, *(self._plan.counters[k] for k in read)])
        buffer = io.BytesIO()
        frame = pl.DataFrame([*known.keys, pl.Series(named, np.concatenate([known.marks, seen], axis=1))])
        frame.write_ipc_stream(buffer, compression="lz4")
        return buffer.getvalue()

    def restore(self, device: str, carry: bytes) -> None:
        """Restore a carry; counters unknown to this Weft are dropped."""
        self._devices.pop(device, None)
        if not carry:
            return
        frame = pl.read_ipc_stream(io.BytesIO(carry))
        (named,) = (name for name in frame.columns if name.split()[0] == _MARKS)
        known = frame[named].to_numpy()
        read = known[:, MARKS:].reshape(frame.height, -1, SEEN_COLUMNS)
        place = {name: k for k, name in enumerate(named.split()[1:])}
        seen = np.full((len(self._plan.counters), frame.height, SEEN_COLUMNS), -1, np.int64)
        for k, name in enumerate(self._plan.counters):
            if name in place:
                seen[k] = read[:, place[name]]
        self._devices[device] = ObjectStates(frame.select("device", *self._plan.keys), known[:, :MARKS].copy(), seen)

    def _newest(self, known: ObjectStates) -> np.ndarray:
        # Ties are broken by the keys, so that the order of arrival does not matter.
        surplus = len(known.marks) - self._objects_max
        order = known.keys.with_columns(pl.Series("last", known.marks[:, LAST_TS]), row=pl.int_range(pl.len()))
        newest = order.sort("last", *self._plan.keys, descending=[True] + [False] * len(self._plan.keys))["row"][: self._objects_max]
        self.dropped += surplus
        return np.sort(newest.to_numpy())
