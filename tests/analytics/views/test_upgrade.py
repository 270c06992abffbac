"""Ratios of roll-ups after an upgrade that added a statistic: older windows must not dilute them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from store_rig import fold_all

from weft.analytics.store.ddl import COARSER, stored
from weft.analytics.store.publish import catalog
from weft.analytics.store.writer import Store
from weft.analytics.views import CONDITIONAL_SUMS, conditional_name
from weft.pipeline.tables.field import RESOLUTIONS_NS
from weft.pipeline.tables.states import STATES

SPEED_BPS = 400_000_000_000
S = 1_000_000_000
KEYS = {"device": "d", "port": "p", "queue": "3", "direction": "tx", "source": "gnmi", "gpu": "0", "link": "1"}

Sums = dict[str, float]

# View, column, the statistics missing in older rows, and the column from the sums of the newer rows. A switch counts pauses in one unit
# only.
RATIOS: list[tuple[str, str, tuple[str, ...], Callable[[Sums], float]]] = [
    ("queues", "ecn_mark_ratio", ("ecn_marked_packets",), lambda s: s["ecn_marked_packets"] / s["packets"]),
    ("queues", "drop_ratio", ("dropped_packets",), lambda s: s["dropped_packets"] / (s["dropped_packets"] + s["packets"])),
    ("queues", "utilization", ("bytes",), lambda s: s["bytes"] * 8e9 / SPEED_BPS / s["covered_ns"]),
    ("queues", "storm_ratio", ("storm_ns",), lambda s: s["storm_ns"] / s["covered_ns"]),
    ("queues", "pause_rx_ratio", ("pause_rx_covered_ns",), lambda s: s["pfc_rx_pause_us"] * 1000 / s["pause_rx_covered_ns"]),
    ("queues", "pause_tx_ratio", ("pause_tx_covered_ns",), lambda s: s["pfc_tx_pause_us"] * 1000 / s["pause_tx_covered_ns"]),
    ("queues", "pause_rx_bound_ratio", ("pfc_rx_frames",), lambda s: s["pfc_rx_frames"] * 65535 * 512e9 / SPEED_BPS / s["covered_ns"]),
    ("queues", "pause_tx_bound_ratio", ("pfc_tx_frames",), lambda s: s["pfc_tx_frames"] * 65535 * 512e9 / SPEED_BPS / s["covered_ns"]),
    ("queues", "pause_mean_ns", ("pfc_rx_pause_us",), lambda s: s["pfc_rx_pause_us"] * 1000 / s["pfc_on2off"]),
    ("nics", "ce_ratio", ("ecn_marked_packets",), lambda s: s["ecn_marked_packets"] / s["rx_packets"]),
    ("nics", "cnp_per_gigabyte", ("cnp_sent",), lambda s: s["cnp_sent"] * 1e9 / s["rx_bytes"]),
    ("nics", "cnp_handled_per_gigabyte", ("cnp_handled",), lambda s: s["cnp_handled"] * 1e9 / s["tx_bytes"]),
    ("nics", "cnp_per_ce", ("cnp_sent",), lambda s: s["cnp_sent"] / s["ecn_marked_packets"]),
    ("nics", "cnp_ignored_ratio", ("cnp_ignored",), lambda s: s["cnp_ignored"] / (s["cnp_ignored"] + s["cnp_handled"])),
    ("nics", "out_of_sequence_per_gigabyte", ("out_of_sequence",), lambda s: s["out_of_sequence"] * 1e9 / s["rx_bytes"]),
    ("nics", "retransmit_per_gigabyte", ("retransmits",), lambda s: s["retransmits"] * 1e9 / s["tx_bytes"]),
    ("nics", "goodput_ratio", ("retransmits",), lambda s: 1 - s["retransmits"] / s["tx_packets"]),
    ("nics", "tx_utilization_ratio", ("tx_covered_ns",), lambda s: s["tx_bytes"] * 8e9 / SPEED_BPS / s["tx_covered_ns"]),
    ("nics", "rx_utilization_ratio", ("rx_covered_ns",), lambda s: s["rx_bytes"] * 8e9 / SPEED_BPS / s["rx_covered_ns"]),
    (
        "nvlinks",
        "utilization_ratio",
        ("tx_covered_ns", "rx_covered_ns"),
        lambda s: max(s[f"{side}_bytes"] / s[f"{side}_covered_ns"] for side in ("tx", "rx")) * 8e9 / SPEED_BPS,
    ),
    ("ports", "utilization_mean_ratio", ("tx_covered_ns",), lambda s: s["tx_bytes"] * 8e9 / SPEED_BPS / s["tx_covered_ns"]),
    ("ports", "prefec_ber", ("fec_covered_ns",), lambda s: s["corrected_bits"] * 1e9 / SPEED_BPS / s["fec_covered_ns"]),
    (
        "ports",
        "cer",
        ("fec_uncorrectable",),
        lambda s: s["fec_uncorrectable"] / (s["fec_uncorrectable"] + s["fec_bin_0"] + s["fec_corrected"]),
    ),
]
TABLES = {"queues": "queue_counters", "nics": "nic_counters", "nvlinks": "nvlink_counters", "ports": "port_counters"}
# Of the receiver, so a row of the other direction has none.
RECEIVED = ("prefec_ber", "cer")


def made(table: str, ts: list[int], seed: int, lacking: tuple[str, ...] = ()) -> pl.DataFrame:
    """Return rows of a state table in which every statistic has a number of its own, but for those that are lacking."""
    rng = np.random.default_rng(seed)
    absent = {*lacking, "pfc_rx_pause_quanta", "pfc_tx_pause_quanta", "wred_dropped_packets"}
    columns = {}
    for field in STATES[table].fields:
        if field.name == "ts":
            columns["ts"] = ts
        elif field.role == "key":
            columns[field.name] = [KEYS[field.name]] * len(ts)
        elif field.name == "speed_bps":
            columns[field.name] = [SPEED_BPS] * len(ts)
        elif field.name not in absent:
            high = 10**12 if field.name.endswith(("covered_ns", "_bytes")) or field.name == "bytes" else 10**6
            columns[field.name] = [int(value) for value in rng.integers(high // 10, high, len(ts))]
    return pl.DataFrame(columns).select(
        (pl.col(name) if name in columns else pl.lit(None)).cast(dtype).alias(name) for name, dtype in STATES[table].polars.items()
    )


def older_store(folder: Path, table: str, lacking: tuple[str, ...]) -> None:
    """Make a store whose tables lack some columns, with one row of them in every roll-up."""
    store = Store(folder)
    store.start()
    dropped = {*lacking, *(conditional_name(*pair) for pair in CONDITIONAL_SUMS[table])}
    for resolution in ("1s", *COARSER):
        name = f"base.{table}_{resolution}"
        there = {row["column_name"] for row in store.query(f"DESCRIBE {name}")}
        for column in dropped & there:
            store.execute(f"ALTER TABLE {name} DROP COLUMN {column}")
        if resolution != "1s":
            rows = stored(STATES[table], made(table, [0], 1, lacking))
            store.insert(name, rows.drop(dropped & set(rows.columns)))
    store.stop()


@pytest.mark.parametrize(("view", "column", "lacking", "expected"), RATIOS, ids=[f"{view}.{column}" for view, column, *_ in RATIOS])
def test_a_ratio_counts_only_the_windows_that_have_its_statistics(view, column, lacking, expected, tmp_path):
    """After an upgrade, a roll-up with windows of both versions has the ratio of the newer windows alone."""
    table = TABLES[view]
    older_store(tmp_path, table, lacking)
    newer = made(table, [second * S for second in range(3, 9)], 2)
    store = Store(tmp_path)
    store.start()
    with store.transaction():
        store.insert(f"base.{table}_1s", stored(STATES[table], newer))
        # In two steps, so that rows which have been merged already are merged again.
        fold_all(store, STATES[table], newer.head(2))
        fold_all(store, STATES[table], newer.tail(4))
    for statement in catalog(store):
        store.execute(statement)
    sums = {name: float(newer[name].sum()) for name, dtype in newer.schema.items() if dtype.is_integer()}
    direction = f"WHERE direction = '{'rx' if column in RECEIVED else 'tx'}'" if view == "ports" else ""
    assert set(COARSER) == RESOLUTIONS_NS.keys() - {"1s"}
    for resolution in COARSER:
        (row,) = store.query(f"SELECT {column} AS ratio FROM {view}_{resolution} {direction}")
        assert row["ratio"] == pytest.approx(expected(sums)), resolution
    store.stop()


def test_every_ratio_with_a_condition_is_tested():
    """Each pair of statistics that a view relates has a case above that lacks one of the two, pauses in quanta excepted."""
    lacking = {(TABLES[view], name) for view, _, names, _ in RATIOS for name in names}
    pairs = {(table, known) for table, listed in CONDITIONAL_SUMS.items() for _, known in listed}
    assert pairs - lacking == {
        ("queue_counters", "pfc_rx_pause_quanta"),
        ("queue_counters", "wred_dropped_packets"),
        ("port_counters", "rx_covered_ns"),
    }
