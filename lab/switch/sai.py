"""The SAI statistics of the scripted switch: object type, number and name (Open Compute SAI headers), and values.

High-frequency telemetry and OTLP carry the numbers, SONiC's COUNTERS_DB the names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .script import FEC_BINS, PRIORITIES, Switch, SwitchState

PORT, QUEUE, POOL, GROUP = 1, 21, 24, 26
# Vendor extensions are numbered from here.
EXTENSION = 0x2000_0000

_PREFIX = {PORT: "SAI_PORT_STAT_", QUEUE: "SAI_QUEUE_STAT_", POOL: "SAI_BUFFER_POOL_STAT_", GROUP: "SAI_INGRESS_PRIORITY_GROUP_STAT_"}


@dataclass(frozen=True, slots=True)
class Stat:
    """One statistic: its column in the family, and for ports the priority or the FEC bin, if any."""

    object_type: int
    number: int
    name: str
    column: str
    index: int = -1

    def values(self, state: SwitchState) -> np.ndarray:
        """Return the values (instants, objects) int64, objects in the order of ``objects``."""
        if self.object_type == POOL:
            return state.pool(self.column)[:, None]
        if self.object_type != PORT:
            values = state.queue(self.column) if self.object_type == QUEUE else state.group(self.column)
            return values.reshape(len(state.ts), -1)
        if self.column == "fec_bins":
            return state.fec_bins[:, :, self.index]
        return state.queue(self.column)[:, :, self.index] if self.index >= 0 else state.port(self.column)


def objects(switch: Switch, object_type: int) -> tuple[str, ...]:
    """Return the names of the objects of a type, as SONiC writes them: ``Ethernet0``, ``Ethernet0|3``, the pool."""
    if object_type == PORT:
        return switch.ports
    if object_type == POOL:
        return (switch.pool,)
    return tuple(f"{port}|{number}" for port in switch.ports for number in range(PRIORITIES))


def of(object_type: int, names: Sequence[str] = ()) -> tuple[Stat, ...]:
    """Return all statistics of a type, or those with the given names (without prefix)."""
    if not names:
        return tuple(stat for stat in STATS if stat.object_type == object_type)
    known = {stat.name: stat for stat in STATS}
    return tuple(known[_PREFIX[object_type] + name] for name in names)


def _table() -> Iterator[Stat]:
    def stats(object_type: int, *rows: tuple[int, str, str]) -> Iterator[Stat]:
        return (Stat(object_type, number, _PREFIX[object_type] + name, column) for number, name, column in rows)

    yield from stats(
        PORT,
        *((0x0, "IF_IN_OCTETS", "rx_bytes"), (0x1, "IF_IN_UCAST_PKTS", "rx_unicast_packets"), (0x3, "IF_IN_DISCARDS", "rx_discards")),
        *((0x4, "IF_IN_ERRORS", "rx_errors"), (0x9, "IF_OUT_OCTETS", "tx_bytes"), (0xA, "IF_OUT_UCAST_PKTS", "tx_unicast_packets")),
        *((0xC, "IF_OUT_DISCARDS", "tx_discards"), (0xD, "IF_OUT_ERRORS", "tx_errors"), (0x46, "ECN_MARKED_PACKETS", "ecn_marked_packets")),
        *((0x5B, "IN_CURR_OCCUPANCY_BYTES", "in_occupancy_bytes"), (0x5F, "OUT_CURR_OCCUPANCY_BYTES", "out_occupancy_bytes")),
        *((0xB2, "IF_IN_FEC_CORRECTABLE_FRAMES", "fec_corrected"), (0xB3, "IF_IN_FEC_NOT_CORRECTABLE_FRAMES", "fec_uncorrectable")),
        *((0xB4, "IF_IN_FEC_SYMBOL_ERRORS", "symbol_errors"), (0xC8, "IF_IN_FEC_CORRECTED_BITS", "corrected_bits")),
    )
    for n in range(PRIORITIES):
        for number, name, column in (
            (0x67 + 2 * n, f"PFC_{n}_RX_PKTS", "pfc_rx_frames"),
            (0x68 + 2 * n, f"PFC_{n}_TX_PKTS", "pfc_tx_frames"),
            (0x87 + 2 * n, f"PFC_{n}_RX_PAUSE_DURATION_US", "pfc_rx_pause_us"),
            (0x88 + 2 * n, f"PFC_{n}_TX_PAUSE_DURATION_US", "pfc_tx_pause_us"),
            (0x97 + n, f"PFC_{n}_ON2OFF_RX_PKTS", "pfc_on2off"),
        ):
            yield Stat(PORT, number, _PREFIX[PORT] + name, column, n)
    for n in range(FEC_BINS):
        yield Stat(PORT, 0xB7 + n, f"{_PREFIX[PORT]}IF_IN_FEC_CODEWORD_ERRORS_S{n}", "fec_bins", n)
    yield from stats(
        QUEUE,
        *((0x0, "PACKETS", "packets"), (0x1, "BYTES", "bytes"), (0x2, "DROPPED_PACKETS", "dropped_packets")),
        *((0x3, "DROPPED_BYTES", "dropped_bytes"), (0x18, "CURR_OCCUPANCY_BYTES", "occupancy_bytes")),
        *((0x19, "WATERMARK_BYTES", "watermark_bytes"), (0x22, "WRED_ECN_MARKED_PACKETS", "ecn_marked_packets")),
        *((0x23, "WRED_ECN_MARKED_BYTES", "ecn_marked_bytes"), (0x27, "DELAY_WATERMARK_NS", "delay_watermark_ns")),
    )
    yield from stats(
        GROUP,
        *((0x0, "PACKETS", "packets"), (0x1, "BYTES", "bytes"), (0x2, "CURR_OCCUPANCY_BYTES", "occupancy_bytes")),
        *((0x3, "WATERMARK_BYTES", "watermark_bytes"), (0x7, "XOFF_ROOM_WATERMARK_BYTES", "headroom_watermark_bytes")),
        (0x8, "DROPPED_PACKETS", "dropped_packets"),
    )
    yield from stats(
        POOL,
        *((0x0, "CURR_OCCUPANCY_BYTES", "occupancy_bytes"), (0x1, "WATERMARK_BYTES", "watermark_bytes")),
        (0x2, "DROPPED_PACKETS", "dropped_packets"),
    )
    yield Stat(PORT, EXTENSION + 5, "SAI_PORT_STAT_VENDOR_5", "tx_bytes")


STATS: tuple[Stat, ...] = tuple(_table())
