"""Decoded sFlow samples to rows of each family.

* Counter samples give ``port``, and ``reading`` for values that no column holds, named and scaled by the dictionary. An interface's
  type, duplex and promiscuous mode give rows only when they change, since every agent repeats them every few seconds.
* Flow samples with a transit delay give ``latency``, with egress queue and depth ``queue``; discarded packets give ``event``.

sFlow carries no time, so ``ts`` is the time of arrival. Frames are made column by column: for the few rows of one drain an
expression engine costs more than the work itself.
"""

from collections.abc import Iterable
from functools import cache

import numpy as np
import polars as pl

from ...pipeline.dictionary import dictionary
from ...pipeline.tables.families import FAMILIES
from ...pipeline.tables.field import WINDOW_NS, masked
from ..wire import roce
from . import records as tables
from .decoder import HAS_DEPTH, HAS_HEADER, HAS_QUEUE, HAS_TRANSIT, NO_REASON, Samples

SOURCE = "sflow"

_UNKNOWN, _UNKNOWN_WORD = np.uint64(2**64 - 1), np.uint32(2**32 - 1)
_REASON_NAMES = pl.DataFrame({"code": list(tables.REASONS), "reason": list(tables.REASONS.values())}, schema_overrides={"code": pl.Int32})

Columns = dict[str, "np.ndarray | pl.Series | str"]
Frames = list[tuple[str, pl.DataFrame]]


class CommonColumns:
    """The common input of all families' rows: the columns of their datagrams, and the names of interfaces."""

    def __init__(self, samples: Samples, ts: np.ndarray, devices: pl.Series, ports: pl.Series) -> None:
        self._agent, self._epoch, self._ts = samples.tracked.agent, samples.tracked.epoch, ts
        self._devices, self._ports = devices, ports

    def common(self, datagram: np.ndarray) -> Columns:
        """Return the columns that every family has."""
        ts = self._ts[datagram]
        device, epoch = self._devices.gather(self._agent[datagram]), self._epoch[datagram]
        return {"ts": ts, "recv_ts": ts, "source": SOURCE, "device": device, "epoch": epoch}

    def port(self, place: np.ndarray) -> pl.Series:
        """Return the names of interfaces, empty for none (-1)."""
        if not len(place) or (place >= 0).all():
            return self._ports.gather(place)
        # The last name stands for no interface.
        return pl.concat([self._ports, pl.Series([""])]).gather(np.where(place < 0, len(self._ports), place))


def of_counters(buffer: np.ndarray, samples: Samples, view: CommonColumns) -> Frames:
    """Return the rows of counter samples, by family."""
    made: Frames = []
    if len(samples.counters):
        made.append(("port", _ports(samples, view)))
        changed = samples.counters[samples.counters["states_changed"]]
        if len(changed):
            made.append(("reading", _states(changed, view)))
    if len(samples.records):
        made += _records(buffer, samples.records, view)
    return made


def of_flows(samples: Samples, view: CommonColumns, ends: np.ndarray) -> Frames:
    """Return the rows of flow samples and discarded packets, by family; ``ends`` are the ``udp.END`` rows of their headers."""
    flags = samples.flows["flags"]
    deep = (flags & (HAS_DEPTH | HAS_QUEUE) == HAS_DEPTH | HAS_QUEUE) & (samples.flows["output"] >= 0)
    delayed, dropped = flags & HAS_TRANSIT != 0, samples.flows["reason"] != NO_REASON
    makers = (("queue", deep, _depths), ("latency", delayed, _delays), ("event", dropped, _drops))
    return [(family, make(samples.flows[chosen], view, ends[chosen])) for family, chosen, make in makers if chosen.any()]


def _ports(samples: Samples, view: CommonColumns) -> pl.DataFrame:
    rows = samples.counters
    columns = dict(zip(tables.COLUMNS, samples.columns, strict=True))
    missing = {name: columns[name] == _UNKNOWN if number else None for name, number in zip(columns, samples.unknowns, strict=True)}
    # Agents report an unknown speed as 0.
    missing["speed_bps"] = (columns["speed_bps"] == _UNKNOWN) | (columns["speed_bps"] == 0)
    made: Columns = {name: masked(values, missing[name]) for name, values in columns.items()}
    for side in ("rx", "tx"):
        parts = [f"{side}_{kind}_packets" for kind in ("unicast", "multicast", "broadcast")]
        # Each of the three wraps at 2^32, so their sum does, too.
        total = (columns[parts[0]] + columns[parts[1]] + columns[parts[2]]) & np.uint64(0xFFFFFFFF)
        masks = [mask for part in parts if (mask := missing[part]) is not None]
        made[f"{side}_packets"] = masked(total, np.any(masks, axis=0) if masks else None)
    silent = rows["status"] == _UNKNOWN_WORD
    made |= {name: masked(rows["status"] & bit != 0, silent) for name, bit in (("admin_up", 1), ("oper_up", 2))}
    return FAMILIES["port"].frame({**view.common(rows["datagram"]), **made, "port": view.port(rows["place"])})


def _states(rows: np.ndarray, view: CommonColumns) -> pl.DataFrame:
    port = view.port(rows["place"])
    values = ((state, tables.Value(field, 0)) for state, field in tables.STATES.items())
    return _in_time(
        _readings(view, rows, "port", port, value, rows[state].astype(np.uint64), rows[state] == _UNKNOWN_WORD) for state, value in values
    )


def _in_time(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames).sort("ts", maintain_order=True)


def _records(buffer: np.ndarray, records: np.ndarray, view: CommonColumns) -> Frames:
    """Return the counter records that have no columns of their own as rows of ``reading``."""
    readers = ((tables.PROCESSOR, _processor), (tables.INFINIBAND, _infiniband), (tables.SFP, _transceiver), (tables.QUEUE_LENGTH, _queue))
    by_format = ((read, records[records["format"] == what]) for what, read in readers)
    return [("reading", _in_time(read(buffer, rows, view))) for read, rows in by_format if len(rows)]


def _processor(buffer: np.ndarray, rows: np.ndarray, view: CommonColumns) -> list[pl.DataFrame]:
    return _values(buffer, rows, rows["at"], tables.PROCESSOR_VALUES, "device", pl.repeat("", len(rows), eager=True), view)


def _queue(buffer: np.ndarray, rows: np.ndarray, view: CommonColumns) -> list[pl.DataFrame]:
    queue = pl.Series(_raw(buffer, rows["at"], tables.QUEUE_INDEX)[0]).cast(pl.String)
    return _values(buffer, rows, rows["at"], tables.QUEUE_LENGTH_VALUES, "queue", view.port(rows["place"]) + "/" + queue, view)


def _infiniband(buffer: np.ndarray, rows: np.ndarray, view: CommonColumns) -> list[pl.DataFrame]:
    made = []
    for size, values in tables.INFINIBAND_VALUES.items():
        mine = rows[rows["size"] == size]
        made += _values(buffer, mine, mine["at"], values, "port", view.port(mine["place"]), view)
    return made


def _transceiver(buffer: np.ndarray, rows: np.ndarray, view: CommonColumns) -> list[pl.DataFrame]:
    made = _values(buffer, rows, rows["at"], tables.MODULE_VALUES, "transceiver", view.port(rows["place"]), view)
    room = (rows["size"] - tables.SFP_BYTES) // tables.LANE_BYTES
    lanes = np.minimum(_raw(buffer, rows["at"], tables.SFP_LANES)[0].astype(np.int64), room)
    for lane in range(min(int(lanes.max()), tables.LANES_MAX)):
        mine = rows[lanes > lane]
        at = mine["at"] + tables.SFP_BYTES + lane * tables.LANE_BYTES
        # Lanes are numbered from 1; 0 is a lane without a number.
        index = _raw(buffer, at, tables.LANE_INDEX)[0].astype(np.int64)
        number = pl.Series(np.where((index == 0) | (index > tables.LANES_MAX), lane + 1, index)).cast(pl.String)
        made += _values(buffer, mine, at, tables.LANE_VALUES, "transceiver", view.port(mine["place"]) + "/" + number, view)
    return made


def _values(
    buffer: np.ndarray, rows: np.ndarray, at: np.ndarray, values: tuple[tables.Value, ...], kind: str, names: pl.Series, view: CommonColumns
) -> list[pl.DataFrame]:
    """Return a frame of ``reading`` for each field of records that start at ``at``."""
    return [_readings(view, rows, kind, names, value, *_raw(buffer, at, value)) for value in values]


def _readings(
    view: CommonColumns, rows: np.ndarray, kind: str, names: pl.Series, value: tables.Value, raw: np.ndarray, missing: np.ndarray
) -> pl.DataFrame:
    """Return rows of ``reading``, without unknown values."""
    name, scale = _meaning(value)
    rows, names, raw = rows[~missing], names.filter(pl.Series(~missing)), raw[~missing]
    made: Columns = {"kind": kind, "object": names, "name": name, "value": (raw.view(np.int64) if value.signed else raw) * scale}
    if not value.signed and scale >= 1:
        # Values near 2^64 come only from a broken agent; one that would overflow has no exact count.
        too_many = raw > np.uint64(2**64 - 1) // np.uint64(scale)
        made["count"] = masked(np.where(too_many, np.uint64(0), raw) * np.uint64(scale), too_many)
    return FAMILIES["reading"].frame({**view.common(rows["datagram"]), **made})


@cache
def _meaning(value: tables.Value) -> tuple[str, float]:
    """Return the canonical name of a field and its scale."""
    found = None if value.name else dictionary().find(SOURCE, value.field)
    return (value.name or value.field, value.scale) if found is None else (found.alias.counter.name, found.alias.scale)


def _raw(buffer: np.ndarray, at: np.ndarray, value: tables.Value) -> tuple[np.ndarray, np.ndarray]:
    """Return a field of many records as unsigned 64 bits, sign extended if signed, and where it is unknown."""
    octets = buffer[at[:, None] + (value.at + np.arange(value.size))]
    read = octets.view(f">u{value.size}").reshape(len(at))
    if value.signed:
        # All ones is -1 here, not unknown.
        return read.view(f">i{value.size}").astype(np.int64).view(np.uint64), np.zeros(len(at), bool)
    return read.astype(np.uint64), read == (1 << 8 * value.size) - 1


def _depths(rows: np.ndarray, view: CommonColumns, _ends: np.ndarray) -> pl.DataFrame:
    """Return the occupancy that sampled packets found in their egress queues, as rows of ``queue``.

    Packets of one datagram have one time; for each queue the largest occupancy counts.
    """
    names = {"port": view.port(rows["output"]), "queue": pl.Series(rows["queue"]), "direction": "tx"}
    found = FAMILIES["queue"].frame({**view.common(rows["datagram"]), **names, "occupancy_bytes": rows["depth_bytes"]})
    fullest = pl.col("occupancy_bytes").rank("ordinal", descending=True).over("ts", "device", "port", "queue") == 1
    return found.filter(fullest)


def _delays(rows: np.ndarray, view: CommonColumns, ends: np.ndarray) -> pl.DataFrame:
    """Return the transit delays of sampled packets, a row for each path and window; 2^32 - 1 means that or more."""
    src, dst = roce.addresses(ends)
    columns = {**view.common(rows["datagram"]), "src": src, "dst": dst, "values_ns": rows["transit_ns"].astype(np.uint64)}
    window = (pl.col("ts") // WINDOW_NS).alias("window")
    grouped = pl.DataFrame(columns).group_by("device", "epoch", "src", "dst", window, maintain_order=True)
    paths = grouped.agg(pl.col("ts").first(), pl.col("recv_ts").last(), pl.col("values_ns"))
    return FAMILIES["latency"].frame({**paths.to_dict(), "source": SOURCE, "kind": "transit"})


def _drops(rows: np.ndarray, view: CommonColumns, ends: np.ndarray) -> pl.DataFrame:
    """Return dropped packets, at their output port if known, else at their input port."""
    src, dst = roce.addresses(ends)
    has = {name: rows["flags"] & flag != 0 for name, flag in (("queue", HAS_QUEUE), ("length", HAS_HEADER))}
    transport = np.isin(ends["protocol"], (6, 17)) & (ends["src_port"] > 0)
    facts = (
        ("input", view.port(rows["input"]), rows["input"] >= 0),
        ("output", view.port(rows["output"]), rows["output"] >= 0),
        ("queue", pl.Series(rows["queue"]), has["queue"]),
        ("src", src, ends["version"] > 0),
        ("dst", dst, ends["version"] > 0),
        ("protocol", pl.Series(ends["protocol"]), ends["version"] > 0),
        ("src_port", pl.Series(ends["src_port"]), transport),
        ("dst_port", pl.Series(ends["dst_port"]), transport),
        ("length", pl.Series(rows["frame_bytes"]), has["length"]),
        ("sampling_rate", pl.Series(rows["rate"]), ~rows["notice"]),
    )
    texts = pl.DataFrame({name: _text(value, known) for name, value, known in facts})
    details = [pl.format(name + "={}", pl.col(name)) for name in texts.columns]
    reasons = pl.DataFrame({"code": rows["reason"]}).join(_REASON_NAMES, on="code", how="left", maintain_order="left")
    names = {"port": view.port(np.where(rows["output"] >= 0, rows["output"], rows["input"])), "kind": "drop"}
    names["reason"] = reasons.select(pl.col("reason").fill_null("reason_" + pl.col("code").cast(pl.String))).to_series()
    names["detail"] = texts.select(pl.concat_str(details, separator=" ", ignore_nulls=True)).to_series()
    return FAMILIES["event"].frame({**view.common(rows["datagram"]), **names})


def _text(values: pl.Series, known: np.ndarray) -> pl.Series:
    """Return values as text, null where unknown."""
    return values.cast(pl.String).zip_with(pl.Series(known), pl.Series([None], dtype=pl.String))
