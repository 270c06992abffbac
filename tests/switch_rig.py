"""The rows that a collector should make of a scripted switch, in the columns and units of the families, and messages sent over TCP."""

import socket

import numpy as np
import polars as pl

from weft.lab.switch.script import FEC_BINS, PRIORITIES, Switch, SwitchState
from weft.lab.switch.wire import MessageBuffer
from weft.pipeline.errors import ServiceError

CONNECT_S_MAX = 10.0

PORT_COLUMNS = (
    *("speed_bps", "oper_up", "admin_up"),
    *(f"{side}_{what}" for what in ("bytes", "packets", "unicast_packets", "discards", "errors") for side in ("rx", "tx")),
    *("fec_corrected", "fec_uncorrectable", "corrected_bits", "symbol_errors", "carrier_changes", "ecn_marked_packets", "fcs_errors"),
)
QUEUE_COLUMNS = (
    *("packets", "bytes", "dropped_packets", "dropped_bytes", "ecn_marked_packets", "ecn_marked_bytes"),
    *("occupancy_bytes", "watermark_bytes", "delay_watermark_ns"),
    *("pfc_rx_frames", "pfc_tx_frames", "pfc_rx_pause_us", "pfc_tx_pause_us", "pfc_on2off"),
)
GROUP_COLUMNS = ("packets", "bytes", "dropped_packets", "occupancy_bytes", "watermark_bytes", "headroom_watermark_bytes")
POOL_COLUMNS = ("occupancy_bytes", "watermark_bytes", "dropped_packets")
_BOOLEANS = ("oper_up", "admin_up")


def port_frame(switch: Switch, state: SwitchState) -> pl.DataFrame:
    """Return one row per instant and port: ``ts, boot_ts, device, port`` and the columns of family ``port`` that the switch has."""
    columns = {name: _column(name, state.port(name)) for name in PORT_COLUMNS}
    bins = pl.Series("fec_bins", state.fec_bins.reshape(-1, FEC_BINS).astype(np.uint64)).arr.to_list()
    return _frame(switch, state, len(switch.ports)).with_columns(
        pl.Series("port", list(switch.ports) * len(state.ts)), *(pl.Series(name, column) for name, column in columns.items()), bins
    )


def queue_frame(switch: Switch, state: SwitchState) -> pl.DataFrame:
    """Return the rows of family ``queue``: egress queues and priorities (tx), ingress priority groups (rx), the shared buffer (pool)."""
    ports = np.repeat(np.array(switch.ports, object), PRIORITIES).tolist()
    queues = [str(number) for number in range(PRIORITIES)] * len(switch.ports)
    parts = [
        _part(switch, state, ports, queues, "tx", {name: state.queue(name) for name in QUEUE_COLUMNS}),
        _part(switch, state, ports, queues, "rx", {name: state.group(name) for name in GROUP_COLUMNS}),
        _part(switch, state, [""], [switch.pool], "pool", {name: state.pool(name) for name in POOL_COLUMNS}),
    ]
    return pl.concat(parts, how="diagonal")


def _part(
    switch: Switch, state: SwitchState, ports: list[str], queues: list[str], direction: str, columns: dict[str, np.ndarray]
) -> pl.DataFrame:
    instants = len(state.ts)
    return _frame(switch, state, len(ports)).with_columns(
        pl.Series("port", ports * instants),
        pl.Series("queue", queues * instants),
        pl.lit(direction).alias("direction"),
        *(pl.Series(name, _column(name, column)) for name, column in columns.items()),
    )


def _frame(switch: Switch, state: SwitchState, objects: int) -> pl.DataFrame:
    times = {"ts": np.repeat(state.ts, objects), "boot_ts": np.repeat(state.boot_ts, objects)}
    return pl.DataFrame(times).with_columns(pl.lit(switch.device).alias("device"))


def _column(name: str, values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).astype(bool if name in _BOOLEANS else np.uint64)


class Tcp:
    """Sends messages one after another over a connection."""

    def __init__(self, address: str, port: int) -> None:
        self._to = (address, port)
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Connect. Raises ``ServiceError`` if nobody listens there."""
        try:
            self._socket = socket.create_connection(self._to, timeout=CONNECT_S_MAX)
        except OSError as error:
            where = f"{self._to[0]}:{self._to[1]}"
            raise ServiceError(f"lab: cannot connect to {where} ({error.strerror or error})", "start the collector first") from None
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, messages: MessageBuffer, piece_bytes: int = 0) -> None:
        """Send all, in writes of ``piece_bytes`` if given, regardless of message boundaries."""
        assert self._socket is not None
        whole = memoryview(contents(messages))
        step = piece_bytes or max(1, len(whole))
        for first in range(0, len(whole), step):
            self._socket.sendall(whole[first : first + step])

    def stop(self) -> None:
        """Close the connection. Idempotent."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def contents(messages: MessageBuffer) -> bytes:
    """Return all messages in order as one byte string."""
    return b"".join(messages)
