"""Views of counters: counter samples go through the metric into a store, and the views equal the formulas."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from weft.pipeline.process.base import Closing
from weft.pipeline.process.bursts.metric import BurstMetric
from weft.pipeline.process.counters.metric import CounterMetric
from weft.pipeline.tables.families import FAMILIES

from .board_rig import Viewed

S = 10**9
T0 = 1_700_000_040 * S
G400 = 400 * S


class Board(Viewed):
    """A store with its views, into which counter samples are inserted as the services do."""

    def read(self, family: str, rows: list[dict], seconds: int = 600) -> None:
        """Store the statistics of a device's counter samples; ``t`` is seconds after T0."""
        types = FAMILIES[family].polars
        base = {"recv_ts": T0, "source": "gnmi", "epoch": 0, "port": "p", "queue": "3", "direction": "tx"}
        full = [{name: {**base, **row, "ts": T0 + round(row["t"] * S)}.get(name) for name in types} for row in rows]
        frame = pl.DataFrame(full, schema=types, orient="row")
        self.keep(CounterMetric(family).close(Closing("leaf", T0, T0 + seconds * S, [frame])))

    def sample(self, values: list[int], signal: str = "rx_bytes") -> None:
        """Store the statistics of samples of 1 ms of port p."""
        row = {"ts": T0, "port": "p", "queue": "", "signal": signal, "interval_ns": 10**6, "speed_bps": G400, "values": values}
        frame = pl.DataFrame([row], schema={name: FAMILIES["burst_sample"].polars[name] for name in row})
        self.keep(BurstMetric().close(Closing("leaf", T0, T0 + 600 * S, [frame], ended=True)))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Return an empty store with its views."""
    one = Board(tmp_path)
    yield one
    one.store.stop()


def test_a_port_that_is_only_counted_has_its_figures(board: Board) -> None:
    """Without samples bytes and mean utilisation are those of the counters, over the time that they cover."""
    board.read("port", [{"t": t, "rx_bytes": 10**10 * t, "tx_bytes": 10**9 * t, "rx_packets": 7 * t, "speed_bps": G400} for t in (0, 1, 2)])
    rows = board.rows("SELECT * FROM ports_1s WHERE direction = 'rx' ORDER BY ts")
    assert [row["bytes"] for row in rows] == [None, 10**10, 10**10]
    assert [row["utilization_mean_ratio"] for row in rows] == [None, pytest.approx(0.2), pytest.approx(0.2)]
    assert [row["quality"] for row in rows] == ["partial", "ok", "ok"]
    assert {row["packets"] for row in rows[1:]} == {7}
    assert rows[1] | {"source": "gnmi", "samples": None, "burst_count": None, "counter_covered_ratio": 1.0} == rows[1]
    assert board.rows("SELECT bytes FROM ports_1m WHERE direction = 'tx'") == [{"bytes": 2 * 10**9}]


def test_samples_and_counters_meet_in_one_row(board: Board) -> None:
    """A port with samples and counters has one row: bursts and bytes from the samples, the rest from the counters of its direction."""
    board.sample([5_000_000] * 1000)
    board.read("port", [{"t": t, "rx_bytes": 4 * 10**9 * t, "rx_errors": 2 * t, "tx_errors": t} for t in (-0.5 + 0.5, 0.5, 0.99)])
    row = board.one("SELECT * FROM ports_1s WHERE direction = 'rx'")
    expected = {"bytes": 5 * 10**9, "samples": 1000, "errors": 0, "counter_bytes": round(3.96 * 10**9), "quality": "ok"}
    assert {name: row[name] for name in expected} == {**expected, "errors": row["errors"]}
    assert board.one("SELECT samples, quality, counter_bytes FROM ports_1s WHERE direction = 'tx'") == {
        "samples": None,
        "quality": "ok",
        "counter_bytes": None,
    }


def test_of_two_sources_one_is_shown(board: Board) -> None:
    """If two collectors read one port, the one with most counter samples is shown, on a tie the first by name; nothing is added up."""
    for source, step in (("sflow", 1), ("gnmi", 0.25)):
        board.read("port", [{"t": k * step, "source": source, "rx_bytes": int(10**6 * k * step)} for k in range(int(3 / step))])
    rows = board.rows("SELECT source, bytes FROM ports_1s WHERE direction = 'rx' ORDER BY ts")
    assert [tuple(row.values()) for row in rows] == [("gnmi", 750_000), ("gnmi", 10**6), ("gnmi", 10**6)]
    assert board.rows("SELECT DISTINCT source FROM ports_1m") == [{"source": "gnmi"}]


def test_what_is_read_rarely_says_so(board: Board) -> None:
    """Read every 30 s: the 1 s windows with counter samples are coarse, and a minute is ok."""
    board.read("port", [{"t": t, "rx_bytes": t} for t in range(0, 241, 30)])
    assert {row["quality"] for row in board.rows("SELECT quality FROM ports_1s WHERE bytes IS NOT NULL")} == {"coarse"}
    assert [row["counter_covered_ratio"] for row in board.rows("SELECT * FROM ports_1m WHERE direction = 'rx' ORDER BY ts")] == [
        0.5,
        1,
        1,
        1,
        0.5,
    ]


def test_error_correction_in_figures(board: Board) -> None:
    """Bit errors before correction, codewords beyond it and the frames that they cost follow from the counters, of the receiver only."""
    bins = [10**8, 10**6, 10**3] + [0] * 13 + [4]
    counted = {"corrected_bits": 8 * 10**6, "fec_corrected": 10**6 + 10**3, "fec_uncorrectable": 4}
    rows = [{"t": 2 * t, "speed_bps": G400, "fec_bins": [t * n for n in bins], **{k: t * v for k, v in counted.items()}} for t in (0, 1)]
    board.read("port", rows)
    row = board.one("SELECT * FROM ports_1s WHERE direction = 'rx' AND cer IS NOT NULL")
    cer = 4 / (4 + 10**8 + 10**6 + 10**3)
    assert row["prefec_ber"] == pytest.approx(8 * 10**6 / (G400 * 2))
    assert row["cer"] == pytest.approx(cer)
    assert row["flr_observed"] == pytest.approx(2.125 * cer)
    assert row["fec_max_bin"] == 16
    assert board.rows("SELECT DISTINCT cer, prefec_ber, fec_max_bin FROM ports_1s WHERE direction = 'tx'") == [
        {"cer": None, "prefec_ber": None, "fec_max_bin": None}
    ]


@pytest.mark.parametrize(
    ("speed_bps", "factor"), [(10**11, 1.125), (2 * 10**11, 2.125), (G400, 2.125), (8 * 10**11, 4.125), (16 * 10**11, 4.125)]
)
@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_the_predicted_loss_of_geometric_bins(board: Board, speed_bps: int, factor: float, ratio: float) -> None:
    """If each bin is a fixed share of the one before, the prediction equals the closed form of the series from 16 to 20 errors."""
    bins = [round(10**10 * ratio**k) for k in range(16)]
    board.read("port", [{"t": 1000 * t, "speed_bps": speed_bps, "fec_bins": [t * n for n in bins]} for t in (0, 1)], seconds=2000)
    row = board.one("SELECT flr_predicted FROM ports_1s WHERE direction = 'rx' AND flr_predicted IS NOT NULL")
    tail = ratio**16 * (1 - ratio**5) / (1 - ratio) / ((1 - ratio**16) / (1 - ratio))
    # Bins are whole codewords, the smallest 300,000.
    assert row["flr_predicted"] == pytest.approx(factor * tail, rel=1e-4, abs=0)


def test_the_prediction_is_numpys_line(board: Board) -> None:
    """For any bins it is NumPy's least squares line through those above ten codewords; with fewer than two there is none."""
    bins = np.array([10**12, 5 * 10**8, 10**6, 11, 4000, 10, 0, 900, 3, 0, 0, 0, 12, 0, 0, 0])
    k = np.arange(1, 16)[bins[1:] > 10]
    slope, start = np.polyfit(k, np.log10(bins[k] / bins.sum()), 1)
    expected = sum(10 ** (start + slope * j) for j in range(16, 21))
    assert board.one(f"SELECT weft_cer_predicted({bins.tolist()}) AS x")["x"] == pytest.approx(expected, rel=1e-9)
    assert board.one("SELECT weft_cer_predicted([1000000, 11, 10, 0]) AS x, weft_cer_predicted(NULL::UBIGINT[]) AS y") == {
        "x": None,
        "y": None,
    }


def test_a_link_that_flaps(board: Board) -> None:
    """Flaps and the share of the time up are in both directions, and the events have the times."""
    board.read("port", [{"t": t / 4, "rx_bytes": t, "oper_up": t not in (5, 6)} for t in range(12)])
    rows = board.rows("SELECT DISTINCT ts, flaps, up_ratio FROM ports_1s ORDER BY ts")
    assert [(row["flaps"], row["up_ratio"]) for row in rows] == [(0, 1.0), (2, 0.5), (0, 1.0)]
    assert [row["kind"] for row in board.rows("SELECT kind FROM events ORDER BY ts")] == ["link_down", "link_up"]


def test_a_queue_in_figures(board: Board) -> None:
    """Marks, drops, pauses and levels of a queue are ratios of its counters' deltas to the time or amount covered."""
    step = {
        "packets": 900,
        "bytes": 10**9,
        "dropped_packets": 100,
        "ecn_marked_packets": 90,
        "trimmed_packets": 5,
        "wred_dropped_packets": 60,
    }
    step |= {"pfc_rx_pause_us": 250_000, "pfc_tx_pause_us": 2_000_000, "pfc_rx_frames": 40, "pfc_tx_frames": 3, "pfc_on2off": 1000}
    level = {"occupancy_bytes": 500, "watermark_bytes": 900, "headroom_watermark_bytes": 30, "delay_watermark_ns": 77, "speed_bps": G400}
    board.read("queue", [{"t": t, **{name: 10**9 + t * n for name, n in step.items()}, **level} for t in (0, 1, 2)])
    row = board.rows("SELECT * FROM queues_1s ORDER BY ts")[1]
    expected = {"ecn_mark_ratio": 0.1, "drops": 100, "drop_ratio": 0.1, "wred_drops": 60, "trimmed": 5, "utilization": 0.02}
    expected |= {"pause_rx_ratio": 0.25, "pause_tx_ratio": 1.0, "pause_mean_ns": 250_000, "pause_by": "duration", "storm_ratio": 0.0}
    expected |= {"pause_rx_bound_ratio": 40 * 65535 * 512 / G400, "occupancy_max_bytes": 500, "occupancy_mean_bytes": 500}
    expected |= {"watermark_max_bytes": 900, "headroom_max_bytes": 30, "delay_max_ns": 77, "quality": "ok", "pfc_before_ecn": False}
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_pauses_that_are_only_counted_are_bounded(board: Board) -> None:
    """Where only frames are known, the share of pause is at most 83.9 us each at 400G, and the row is marked as a bound."""
    board.read("port", [{"t": t, "speed_bps": G400} for t in (0, 1)])
    board.read("queue", [{"t": t, "pfc_rx_frames": 1000 * t, "packets": t} for t in (0, 1)])
    row = board.one("SELECT * FROM queues_1s WHERE packets IS NOT NULL")
    assert row["pause_rx_ratio"] == row["pause_rx_bound_ratio"] == pytest.approx(1000 * 83.9e-6, rel=1e-3)
    assert (row["pause_by"], row["pause_tx_ratio"], row["pause_mean_ns"]) == ("frames", None, None)


def test_how_pauses_are_known_is_told_by_direction(board: Board) -> None:
    """If pauses received are timed and pauses sent only counted, the row shows it."""
    board.read("port", [{"t": t, "speed_bps": G400} for t in (0, 1)])
    board.read("queue", [{"t": t, "pfc_rx_pause_us": 100_000 * t, "pfc_rx_frames": 9 * t, "pfc_tx_frames": 1000 * t} for t in (0, 1)])
    row = board.one("SELECT * FROM queues_1s WHERE pause_rx_ratio IS NOT NULL")
    assert (row["pause_by"], row["pause_rx_ratio"]) == ("rx duration, tx frames", pytest.approx(0.1))
    assert row["pause_tx_ratio"] == row["pause_tx_bound_ratio"]


def test_pauses_in_quanta(board: Board) -> None:
    """A quantum is 512 bit times of the line."""
    board.read("queue", [{"t": t, "pfc_rx_pause_quanta": 10**8 * t, "speed_bps": G400} for t in (0, 1)])
    row = board.one("SELECT pause_rx_ratio FROM queues_1s WHERE pause_rx_ratio IS NOT NULL")
    assert row["pause_rx_ratio"] == pytest.approx(10**8 * 512 / G400)


def test_what_nobody_counts_is_null(board: Board) -> None:
    """A queue with byte counters only has no other ratio, at every resolution."""
    board.read("queue", [{"t": t, "bytes": t} for t in (0, 1)])
    for resolution in ("1s", "10s", "1m", "1h"):
        row = board.one(f"SELECT * FROM queues_{resolution} WHERE bytes IS NOT NULL")
        told = {name for name, value in row.items() if value is not None}
        assert told == {
            "ts",
            "device",
            "port",
            "queue",
            "direction",
            "source",
            "readings",
            "covered_ratio",
            "quality",
            "bytes",
            "storm_ratio",
        }


def test_pause_without_marks_is_told(board: Board) -> None:
    """A queue that is paused while nothing is marked: thresholds in the wrong order."""
    board.read("queue", [{"t": t, "ecn_marked_packets": 9, "pfc_rx_frames": 5 * t} for t in (0, 1)])
    assert board.one("SELECT pfc_before_ecn FROM queues_1s WHERE pause_rx_frames > 0") == {"pfc_before_ecn": True}


def test_drops_by_reason(board: Board) -> None:
    """Drops that were reported one by one are counted by device, port, reason and window."""
    rows = [("no_buffer_space", 0), ("red", 0), ("red", 1), ("red", 70)]
    frame = pl.DataFrame(
        {
            "ts": [T0 + second * S for _, second in rows],
            "recv_ts": [T0] * 4,
            "source": ["sflow"] * 4,
            "device": ["leaf"] * 4,
            "epoch": [0] * 4,
            "port": ["p"] * 4,
            "kind": ["drop"] * 4,
            "reason": [reason for reason, _ in rows],
            "detail": [""] * 4,
        },
        schema=FAMILIES["event"].polars,
    )
    board.keep({"event": frame})
    rows_1m = board.rows("SELECT reason, drops FROM drops_1m ORDER BY ts, reason")
    assert [tuple(row.values()) for row in rows_1m] == [("no_buffer_space", 1), ("red", 2), ("red", 1)]
    assert len(board.rows("FROM drops_1s")) == 4


def test_quality_tells_what_counters_lack(board: Board) -> None:
    """Resets, wraps, gaps and the coverage of counter samples are listed beside those of samples."""
    values = [(0, 100), (1, 200), (2, 50), (3, 60), (7, 70)]
    board.read("port", [{"t": t, "source": "sflow", "rx_packets": value} for t, value in values])
    names = ("samples", "resets", "gaps", "wraps")
    row = board.one(f"SELECT {', '.join(f'sum({name})::INT AS {name}' for name in names)} FROM quality_1s WHERE signal = 'port'")
    assert row == {"samples": 5, "resets": 1, "gaps": 1, "wraps": 0}
    assert board.one("SELECT ports, device FROM devices") == {"ports": 1, "device": "leaf"}


def test_shares_stay_finite(board: Board) -> None:
    """Counters without covered time, line rate or delta cause no division by zero."""
    board.read("port", [{"t": 0, "rx_bytes": 0, "speed_bps": 0, "fec_bins": [0] * 17, "fec_uncorrectable": 0, "corrected_bits": 0}] * 2)
    board.read("queue", [{"t": t, "packets": 5, "pfc_rx_frames": 3, "speed_bps": 0} for t in (0, 1)])
    for view in ("ports_1s", "queues_1s", "ports_1h", "queues_1h"):
        for row in board.rows(f"FROM {view}"):
            assert all(not isinstance(value, float) or math.isfinite(value) for value in row.values())
