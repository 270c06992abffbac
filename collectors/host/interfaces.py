"""This machine's interfaces: bytes per millisecond as burst samples, all counters once a second.

A sample is the difference of two consecutive polls, in the slot between their deadlines. A poll that is late by less than its interval is
jitter, measured and published. A poll that misses a whole tick covers more than one slot: spreading its bytes would invent samples,
putting them into one slot a burst. So the segment ends, the slots become a ``gap`` row, and a new segment starts. Without gaps the
samples of a port add up exactly to the movement of its counter.
"""

import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...pipeline import histogram
from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ...pipeline.dictionary import WIDE
from ...pipeline.errors import ConfigError, ServiceError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, Collector
from .deltas import PortState, SegmentColumns, extend
from .netlink import COUNTERS, CounterReader, open_reader
from .ticker import IntervalChange, Poll, Regime, Ticker

INTERVAL_MS_MIN, INTERVAL_MS_MAX = 0.5, 100.0
# Interfaces above this number are ignored, highest index first: a host with more has one per container.
INTERFACES_MAX = 64
# Polls over which jitter is measured: ten seconds at 1 ms.
JITTER_POLLS = 10_000
# How long another thread may hold the interpreter. Python's default of 5 ms is five ticks.
SWITCH_S_MAX = 0.0005

_PORT_ROWS_NS = NS_PER_S
_SYS = Path("/sys/class/net")
_IFF_UP = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostConfig:
    """Section ``[collect.host]``."""

    enabled: bool = True
    # Time between two polls, 0.5 to 100.
    interval_ms: float = 1.0
    # Names of the interfaces to read; empty = all that are up.
    interfaces: tuple[str, ...] = ()
    # Line rate by interface, instead of the kernel's value.
    line_rate_bps: dict[str, int] = field(default_factory=dict)
    # Line rate of interfaces that report none, such as lo and veth.
    assumed_line_rate_bps: int = 10_000_000_000
    # Device name of this machine; empty = its host name.
    device: str = ""

    def __post_init__(self) -> None:
        if not INTERVAL_MS_MIN <= self.interval_ms <= INTERVAL_MS_MAX:
            hint = f"choose from {INTERVAL_MS_MIN:g} to {INTERVAL_MS_MAX:g}"
            raise ConfigError("collect.host.interval_ms", f"{self.interval_ms} is out of range", hint)
        if self.assumed_line_rate_bps <= 0 or any(rate <= 0 for rate in self.line_rate_bps.values()):
            raise ConfigError("collect.host.line_rate_bps", "a line rate is not positive", "give bits per second")


class Host:
    """Polls this machine's interfaces between ``start`` and ``stop``."""

    def __init__(self, config: HostConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._device = config.device or socket.gethostname()
        self._reader: CounterReader | None = None
        self._ticker: Ticker | None = None
        self._ports: dict[int | str, PortState] = {}
        self._seen: set[int | str] = set()
        self._ports_due_ns = 0
        self._next_serial = 0
        self._dropped = 0
        self._ignored = 0
        self._jitter_ns = np.zeros(0, dtype=np.int64)
        self._switch_s: float | None = None

    def start(self) -> None:
        """Open the counters and start to poll. Raises ``ConfigError`` for an unknown interface, ``ServiceError`` where none can be read."""
        try:
            self._reader = open_reader()
        except OSError as error:
            hint = "run on Linux with /proc mounted, or switch collect.host off"
            raise ServiceError(f"interface counters cannot be read ({error.strerror})", hint) from None
        known = set(self._reader.names().values())
        absent = next((name for name in self._config.interfaces if name not in known), None)
        if absent is not None:
            self._reader.close()
            near = get_close_matches(absent, known, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"choose from {', '.join(sorted(known))}"
            raise ConfigError("collect.host.interfaces", f"there is no interface {absent!r}", hint)
        self._ports, self._next_serial = {}, 0
        self._find_ports()
        self._prime(self._reader)
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_s, SWITCH_S_MAX))
        self._ticker = Ticker(self._reader, self._clock, round(self._config.interval_ms * NS_PER_MS))
        self._ticker.start()

    def _prime(self, reader: CounterReader) -> None:
        """Run the code of a drain once: the first use of libraries would make hundreds of ticks late."""
        regime, port, segments = Regime(NS_PER_MS, 0), PortState("", 1), SegmentColumns()
        serials = np.arange(3)
        links = reader.decode([reader.read() for _ in serials])
        for link in links[:1]:
            extend(port, regime, serials * NS_PER_MS, serials, link, segments)
        segments.miss("", 0, 0)
        self._sample_batches(segments, 0)

    def stop(self) -> None:
        """Stop polling. Idempotent."""
        if self._ticker is not None:
            self._ticker.stop()
        if self._reader is not None:
            self._reader.close()
        if self._switch_s is not None:
            sys.setswitchinterval(self._switch_s)
            self._switch_s = None

    def drain(self) -> list[Batch]:
        """Return the samples since the last call, and once a second the counters."""
        if self._ticker is None or self._reader is None:
            return []
        now_ns = self._clock.now_ns()
        polls = self._ticker.take()
        segments = SegmentColumns()
        for regime, group in groupby(polls, key=lambda poll: poll.regime):
            self._digest(regime, list(group), segments)
        batches = [*self._sample_batches(segments, now_ns), *self._change_batches(self._ticker.changes(), now_ns)]
        if now_ns >= self._ports_due_ns:
            self._ports_due_ns = now_ns // _PORT_ROWS_NS * _PORT_ROWS_NS + _PORT_ROWS_NS
            self._find_ports()
            batches += self._port_batches(now_ns)
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return the current interval, jitter and processor time of the thread, and losses."""
        ticker = self._ticker
        jitter = self._jitter_ns
        p50, p99, top = np.percentile(jitter, [50, 99, 100]).tolist() if len(jitter) else (0.0, 0.0, 0.0)
        return {
            "weft_collectors_interval_ns": ticker.interval_ns if ticker else self._config.interval_ms * NS_PER_MS,
            "weft_collectors_jitter_p50_ns": p50,
            "weft_collectors_jitter_p99_ns": p99,
            "weft_collectors_jitter_max_ns": top,
            "weft_collectors_reader_cpu_ratio": ticker.cpu_ratio if ticker else 0.0,
            "weft_collectors_readings_total": ticker.serial if ticker else 0,
            "weft_collectors_late_ticks_total": ticker.late_ticks if ticker else 0,
            "weft_collectors_read_errors_total": ticker.read_errors if ticker else 0,
            "weft_collectors_dropped_readings_total": self._dropped,
            "weft_collectors_interfaces": len(self._ports),
            "weft_collectors_interfaces_ignored": self._ignored,
        }

    def _digest(self, regime: Regime, polls: Sequence[Poll], segments: SegmentColumns) -> None:
        """Turn the polls of one grid into segments, port by port."""
        assert self._reader is not None
        stamps = np.array([poll.stamp_ns for poll in polls], dtype=np.int64)
        dues = np.array([poll.due_ns for poll in polls], dtype=np.int64)
        serials = np.array([poll.serial for poll in polls], dtype=np.int64)
        self._dropped += int(serials[-1]) + 1 - self._next_serial - len(serials)
        self._next_serial = int(serials[-1]) + 1
        self._jitter_ns = np.concatenate((self._jitter_ns, stamps - dues))[-JITTER_POLLS:]
        links = self._reader.decode([poll.reply for poll in polls])
        keys = {link.key for link in links}
        if not keys <= self._seen:
            self._find_ports()
        self._seen = keys
        for link in links:
            port = self._ports.get(link.key)
            if port is not None and len(link.at):
                extend(port, regime, stamps[link.at] + regime.offset_ns, serials[link.at], link, segments)

    def _sample_batches(self, segments: SegmentColumns, now_ns: int) -> list[Batch]:
        batches = []
        if segments.heads:
            order = sorted(
                range(len(segments.heads)), key=lambda index: tuple(segments.heads[index][name] for name in ("ts", "port", "signal"))
            )
            values = [segments.values[index] for index in order]
            offsets = np.concatenate(([0], np.cumsum([len(one) for one in values])))
            column = histogram.lists("values", offsets, pl.Series(np.concatenate(values)))
            batches.append(self._batch("burst_sample", [segments.heads[index] for index in order], now_ns, column))
        if segments.missed:
            rows = [{"ts": ts, "what": "samples", "missed": missed, "reason": reason} for reason, (missed, ts) in segments.missed.items()]
            batches.append(self._batch("gap", rows, now_ns))
        return batches

    def _change_batches(self, changes: Sequence[IntervalChange], now_ns: int) -> list[Batch]:
        rows = []
        for change in changes:
            kind = "clock_step" if change.reason == "clock_step" else "interval_changed"
            _log.warning("host collector: %s (%s), %s", kind.replace("_", " "), change.reason.replace("_", " "), change.detail)
            rows.append({"ts": change.ts, "port": "", "kind": kind, "reason": change.reason, "detail": change.detail})
        return [self._batch("event", rows, now_ns)] if rows else []

    def _port_batches(self, now_ns: int) -> list[Batch]:
        rows = []
        for port in self._ports.values():
            if port.counters is not None:
                head = {"ts": port.ts, "epoch": port.epoch, "port": port.name, "speed_bps": port.speed_bps, "oper_up": port.oper_up}
                counters = dict(zip(COUNTERS, port.counters.tolist(), strict=True))
                rows.append({**head, **counters, "carrier_changes": port.carrier_changes})
        return [self._batch("port", rows, now_ns)] if rows else []

    def _batch(self, family: str, rows: Sequence[dict[str, Any]], now_ns: int, *columns: pl.Series) -> Batch:
        common = {"recv_ts": now_ns, "source": "host", "device": self._device, "epoch": 0, "queue": ""}
        frame = pl.DataFrame([common | row for row in rows], schema=FAMILIES[family].polars)
        return Batch(family, FAMILIES[family].frame(frame.with_columns(*columns)))

    def _find_ports(self) -> None:
        """Find the current interfaces: new ones start with their next poll, removed ones end."""
        assert self._reader is not None
        wanted = set(self._config.interfaces)
        found = sorted(self._reader.names().items(), key=lambda item: str(item[0]).rjust(20))
        chosen = [(key, name) for key, name in found if (name in wanted if wanted else _is_up(name))]
        self._ignored = max(0, len(chosen) - INTERFACES_MAX)
        ports: dict[int | str, PortState] = {}
        for key, name in chosen[:INTERFACES_MAX]:
            port = self._ports.get(key)
            if port is None or port.name != name:
                port = PortState(name, self._config.assumed_line_rate_bps)
            port.speed_bps = self._config.line_rate_bps.get(name) or _speed_bps(name) or self._config.assumed_line_rate_bps
            state = _sys(name, "operstate")
            port.oper_up = state == "up" or (state == "unknown" and _is_up(name))
            port.carrier_changes = _whole(_sys(name, "carrier_changes"))
            ports[key] = port
        self._ports = ports


def _sys(name: str, what: str) -> str:
    """Return an attribute of an interface in sysfs, '' where it is missing or the interface has gone."""
    try:
        return (_SYS / name / what).read_text().strip()
    except OSError:
        return ""


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _speed_bps(name: str) -> int | None:
    # Mb/s; -1 or empty where the driver does not know.
    return (_whole(_sys(name, "speed")) or 0) * 1_000_000 or None


def _is_up(name: str) -> bool:
    try:
        return bool(int(_sys(name, "flags") or "0", 16) & _IFF_UP)
    except ValueError:
        return False


HOST = Collector(
    name="host",
    doc="this machine's interfaces: bytes every millisecond, all counters every second",
    families=("burst_sample", "port", "gap", "event"),
    config=HostConfig,
    registers=WIDE,
    live=Host,
)
