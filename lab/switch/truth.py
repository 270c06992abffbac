"""The rows that a collector should make of a switch, in the columns and units of the families; tests compare with them."""

import numpy as np
import polars as pl

from .script import FEC_BINS, PRIORITIES, Switch, SwitchState

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
