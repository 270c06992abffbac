"""This machine's interfaces: bytes per millisecond as burst samples, all counters once a second.

A sample is the difference of two consecutive readings and stands in the slot between their deadlines. A reading that
comes within its interval is jitter, measured and published. One that misses a whole tick covers more than one slot:
to spread its bytes would invent samples, to put them into one would invent a burst, so the run ends there, the slots
are admitted as a ``gap`` row, and the next run starts after. Without gaps the samples of a port add up to what its
counter moved, exactly.
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

from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ...pipeline.dictionary import WIDE
from ...pipeline.errors import ConfigError, ServiceError
from ...pipeline.tables.families import FAMILIES
from ..base import Batch, Collector
from ..sampling.runs import list_column
from .deltas import PortState, Runs, extend
from .netlink import COUNTERS, CounterReader, open_reader
from .ticker import Change, Reading, Regime, Ticker

INTERVAL_MS_MIN, INTERVAL_MS_MAX = 0.5, 100.0
# More are passed over, lowest index first kept: a host with more has one per container.
INTERFACES_MAX = 64
# Readings over which jitter is measured: some ten seconds at 1 ms.
JITTER_READINGS = 10_000
# How long another thread may keep the interpreter from the reader. Python's default of 5 ms is five ticks.
SWITCH_S_MAX = 0.0005

_PORT_ROWS_NS = NS_PER_S
_SYS = Path("/sys/class/net")
_IFF_UP = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostConfig:
    """Section ``[collect.host]``."""

    enabled: bool = True
    # Time between two readings, 0.5 to 100.
    interval_ms: float = 1.0
    # Names of the interfaces to read; empty = all that are up.
    interfaces: tuple[str, ...] = ()
    # Line rate by interface, where what the kernel says is not what matters.
    line_rate_bps: dict[str, int] = field(default_factory=dict)
    # Line rate of interfaces that tell none, such as lo and veth.
    assumed_line_rate_bps: int = 10_000_000_000
    # Name under which this machine reports; empty = its host name.
    device: str = ""

    def __post_init__(self) -> None:
        if not INTERVAL_MS_MIN <= self.interval_ms <= INTERVAL_MS_MAX:
            hint = f"choose from {INTERVAL_MS_MIN:g} to {INTERVAL_MS_MAX:g}"
            raise ConfigError("collect.host.interval_ms", f"{self.interval_ms} is out of range", hint)
        if self.assumed_line_rate_bps <= 0 or any(rate <= 0 for rate in self.line_rate_bps.values()):
            raise ConfigError("collect.host.line_rate_bps", "a line rate is not positive", "give bits per second")


class Host:
    """Reads this machine's interfaces between ``start`` and ``stop``."""

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
        """Open the counters and begin to read. Raises ``ConfigError`` for an unknown interface, ``ServiceError`` where none can be read."""
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
        """Go once through all that a drain does: what libraries do at first use would make hundreds of ticks late."""
        regime, port, runs = Regime(NS_PER_MS, 0), PortState("", 1), Runs()
        serials = np.arange(3)
        links = reader.decode([reader.read() for _ in serials])
        for link in links[:1]:
            extend(port, regime, serials * NS_PER_MS, serials, link, runs)
        runs.miss("", 0, 0)
        self._sample_batches(runs, 0)

    def stop(self) -> None:
        """End reading. Idempotent."""
        if self._ticker is not None:
            self._ticker.stop()
        if self._reader is not None:
            self._reader.close()
        if self._switch_s is not None:
            sys.setswitchinterval(self._switch_s)
            self._switch_s = None

    def drain(self) -> list[Batch]:
        """Return the samples of the readings since the last call, and once a second the counters."""
        if self._ticker is None or self._reader is None:
            return []
        now_ns = self._clock.now_ns()
        readings = self._ticker.take()
        runs = Runs()
        for regime, group in groupby(readings, key=lambda reading: reading.regime):
            self._digest(regime, list(group), runs)
        batches = [*self._sample_batches(runs, now_ns), *self._change_batches(self._ticker.changes(), now_ns)]
        if now_ns >= self._ports_due_ns:
            self._ports_due_ns = now_ns // _PORT_ROWS_NS * _PORT_ROWS_NS + _PORT_ROWS_NS
            self._find_ports()
            batches += self._port_batches(now_ns)
        return batches

    def counters(self) -> Mapping[str, float]:
        """Return the interval held, the reader's jitter and cost, and what was lost."""
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

    def _digest(self, regime: Regime, readings: Sequence[Reading], runs: Runs) -> None:
        """Turn the readings of one grid into runs, port by port."""
        assert self._reader is not None
        stamps = np.array([reading.stamp_ns for reading in readings], dtype=np.int64)
        dues = np.array([reading.due_ns for reading in readings], dtype=np.int64)
        serials = np.array([reading.serial for reading in readings], dtype=np.int64)
        self._dropped += int(serials[-1]) + 1 - self._next_serial - len(serials)
        self._next_serial = int(serials[-1]) + 1
        self._jitter_ns = np.concatenate((self._jitter_ns, stamps - dues))[-JITTER_READINGS:]
        links = self._reader.decode([reading.reply for reading in readings])
        keys = {link.key for link in links}
        if not keys <= self._seen:
            self._find_ports()
        self._seen = keys
        for link in links:
            port = self._ports.get(link.key)
            if port is not None and len(link.at):
                extend(port, regime, stamps[link.at] + regime.offset_ns, serials[link.at], link, runs)

    def _sample_batches(self, runs: Runs, now_ns: int) -> list[Batch]:
        batches = []
        if runs.heads:
            order = sorted(range(len(runs.heads)), key=lambda index: tuple(runs.heads[index][name] for name in ("ts", "port", "signal")))
            values = [runs.values[index] for index in order]
            offsets = np.concatenate(([0], np.cumsum([len(one) for one in values])))
            column = list_column("values", np.concatenate(values), offsets)
            batches.append(self._batch("burst_sample", [runs.heads[index] for index in order], now_ns, column))
        if runs.missed:
            rows = [{"ts": ts, "what": "samples", "missed": missed, "reason": reason} for reason, (missed, ts) in runs.missed.items()]
            batches.append(self._batch("gap", rows, now_ns))
        return batches

    def _change_batches(self, changes: Sequence[Change], now_ns: int) -> list[Batch]:
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

    def _batch(self, family: str, rows: Sequence[Mapping[str, Any]], now_ns: int, *columns: pl.Series) -> Batch:
        """Return rows as a batch. Columns are made one by one: an expression engine costs more than so few rows."""
        common = {"recv_ts": now_ns, "source": "host", "device": self._device, "epoch": 0, "queue": ""}
        whole = {column.name: column for column in columns}
        made = [
            whole[name] if name in whole else pl.Series(name, [row.get(name, common.get(name)) for row in rows], dtype=dtype)
            for name, dtype in FAMILIES[family].polars.items()
        ]
        return Batch(family, pl.DataFrame(made))

    def _find_ports(self) -> None:
        """Look which interfaces there are: new ones begin with their next reading, those that went end."""
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
    """Return what sysfs says of an interface, nothing where it says nothing or the interface has gone."""
    try:
        return (_SYS / name / what).read_text().strip()
    except OSError:
        return ""


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _speed_bps(name: str) -> int | None:
    # Megabits per second; -1 or nothing where the driver does not know.
    return (_whole(_sys(name, "speed")) or 0) * 1_000_000 or None


def _is_up(name: str) -> bool:
    try:
        return bool(int(_sys(name, "flags") or "0", 16) & _IFF_UP)
    except ValueError:
        return False


def _live(config: HostConfig, clock: Clock) -> Host:
    return Host(config, clock)


HOST = Collector(
    name="host",
    doc="this machine's interfaces: bytes every millisecond, all counters every second",
    families=("burst_sample", "port", "gap", "event"),
    config=HostConfig,
    registers=WIDE,
    live=_live,
)
