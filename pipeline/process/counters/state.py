"""What is known of the objects whose counters are read: kept by device between windows, and as bytes between processes."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import polars as pl

from .columns import Columns, Plan
from .kernel import LAST_TS, MARKS, NOTHING, SEEN_COLUMNS, TS

_MARKS = "marks"


@dataclass(slots=True)
class Known:
    """Objects with what is known of them. ``keys`` has a row for each; of the arrays, the axis named ``objects`` is theirs.

    ``marks`` is (objects, MARKS), ``seen`` (counters, objects, SEEN_COLUMNS), both int64; see ``counters_kernel``.
    """

    keys: pl.DataFrame
    marks: np.ndarray
    seen: np.ndarray
    # Where the objects of each device stand; empty where that is still to be found, since some are new or there are too many.
    places: dict[str, slice] = field(default_factory=dict)

    def pick(self, which: np.ndarray) -> "Known":
        """Return these objects alone."""
        return Known(self.keys[which], self.marks[which], self.seen[:, which])


class Remembered:
    """What is known of the objects of every device; of ``objects_max`` of each at most."""

    def __init__(self, plan: Plan, objects_max: int) -> None:
        self._plan = plan
        self._objects_max = objects_max
        self._devices: dict[str, Known] = {}
        self.dropped = 0

    def take(self, devices: Iterable[str], columns: Columns) -> tuple[Known, np.ndarray]:
        """Return what is known of all objects of these devices and of those in the rows; and of which object each row is."""
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
        # A carry may come from a service that was allowed more.
        settled = not fresh.height and max(sizes, default=0) <= self._objects_max
        spans = pairwise(np.cumsum([0, *sizes]).tolist())
        places = {device: slice(*span) for device, span in zip(met, spans, strict=True)} if settled else {}
        seen = np.concatenate([*(one.seen for one in old), blank], axis=1)
        return Known(known, marks, seen, places), code.cast(pl.Int64).to_numpy(writable=True)

    def overflows(self, known: Known) -> bool:
        """Return whether a device has more objects than are remembered of it."""
        most = known.keys["device"].value_counts()["count"].max()
        return isinstance(most, int) and most > self._objects_max

    def keep(self, known: Known) -> None:
        """Remember these objects; of a device with too many, the longest silent are forgotten."""
        for device, place in known.places.items():
            # Copies: a device that falls silent must not keep what was known of all others.
            self._devices[device] = Known(self._devices[device].keys, known.marks[place].copy(), known.seen[:, place].copy())
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

    def forget(self, device: str) -> Known | None:
        """Return what is known of the objects of ``device``, for the last time."""
        return self._devices.pop(device, None)

    def carry(self, device: str) -> bytes:
        """Return the objects of ``device`` as an Arrow stream: a row for each, its keys and one column of all that is known.

        That column's name lists what is in it: the marks, then each counter that was ever read. One column, since this is done
        for every device of every commit, and a column costs more than what is in it.
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
        """Take over a carry; counters that this Weft does not know are left out."""
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
        self._devices[device] = Known(frame.select("device", *self._plan.keys), known[:, :MARKS].copy(), seen)

    def _newest(self, known: Known) -> np.ndarray:
        # By their keys where they were last heard at one time, so that the order of arrival does not decide.
        surplus = len(known.marks) - self._objects_max
        order = known.keys.with_columns(pl.Series("last", known.marks[:, LAST_TS]), row=pl.int_range(pl.len()))
        kept = order.sort("last", *self._plan.keys, descending=[True] + [False] * len(self._plan.keys))["row"][: self._objects_max]
        self.dropped += surplus
        return np.sort(kept.to_numpy())
