"""All protocols of a switch at once: the scripted switch, the ordinary collectors, the pipeline and the store, on both buses."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.lab.switch.script import LOSSLESS, Script, Shape
from weft.lab.switch.wire import free_port
from weft.pipeline.clock import NS_PER_S

LIMIT_S = 150.0
SOURCES = ("gnmi", "hft", "otlp", "sflow")

# The columns that only one source provides.
BROUGHT = """SELECT
  (SELECT list(DISTINCT source ORDER BY source) FROM state.port_counters_1s WHERE rx_bytes > 0) AS counted,
  (SELECT count(*) FROM ports_1s WHERE samples = 1000 AND port LIKE 'Ethernet%') AS sampled,
  (SELECT count(*) FROM state.port_samples_1s WHERE signal = 'queue_bytes') AS occupied,
  (SELECT coalesce(sum(packets), 0)::INT FROM roce_1s) AS packets,
  (SELECT coalesce(sum(samples), 0)::INT FROM latency_1s WHERE kind = 'transit') AS delays,
  (SELECT count(*) FROM queues_1s WHERE pause_rx_ratio > 0 AND ecn_mark_ratio IS NOT NULL) AS paused,
  (SELECT coalesce(sum(drops), 0)::INT FROM drops_1s WHERE reason = 'no_buffer_space') AS drops,
  (SELECT count(*) FROM links WHERE peer_device LIKE 'gpu-%') AS links,
  (SELECT count(*) FROM readings_1s) AS readings,
  (SELECT count(*) FROM events WHERE kind = 'target_up') AS up"""


def _serve(weft: Any, folder: Path, ports: dict[str, int]) -> Path:
    """Start the scripted switch and return the configuration that it prints, this machine's own interfaces left out."""
    named = [word for name, port in ports.items() for word in ("--port", f"{name}={port}")]
    lab = weft.start("lab", "serve", "--seconds", LIMIT_S, "--data", folder / "lab", *named, bufsize=1)
    lines: list[str] = []
    deadline = time.monotonic() + LIMIT_S
    while not any("[collect.otlp]" in line for line in lines) or lines[-1].strip():
        assert time.monotonic() < deadline and lab.poll() is None, lines
        lines.append(lab.stdout.readline())
    file = folder / "weft.toml"
    file.write_text("".join(lines) + "\n[collect.host]\nenabled = false\n")
    return file


def _row(weft: Any, data: Path, query: str) -> dict[str, Any]:
    """Return the one row of a query, ``None`` while there is no store yet."""
    process = weft.start("sql", "--data", data, "--format", "json", query)
    out, _ = process.communicate(timeout=60)
    return json.loads(out.splitlines()[0]) if process.returncode == 0 and out.strip() else {}


def _until(condition: Callable[[], dict[str, Any] | None], up: Any) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline and up.poll() is None, condition()
        time.sleep(1)


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_every_protocol_at_once(weft: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """`weft up` collects gNMI, sFlow, high-frequency telemetry and OTLP of one switch; the store has what the switch counted."""
    environment = {}
    if kind == "kafka":
        environment = {"WEFT_BUS__KIND": "kafka", "WEFT_BUS__SERVERS": request.getfixturevalue("clean_kafka")}
    config = _serve(weft, tmp_path, {name: free_port() for name in SOURCES})
    data = tmp_path / "data"
    up = weft.start("up", "--config", config, "--data", data, "--no-dashboard", environment=environment)
    brought: dict[str, Any] = {}

    def all_there() -> dict[str, Any] | None:
        brought.update(_row(weft, data, BROUGHT))
        there = set(brought.get("counted") or ()) >= {"gnmi", "sflow"}
        return brought if there and all(brought[name] for name in brought if name != "counted") else None

    _until(all_there, up)
    _assert_samples_are_the_switch_s(weft, data)
    _assert_marks_are_the_switch_s(weft, data)
    up.terminate()
    _, err = up.communicate(timeout=60)
    assert "Traceback" not in err, err


def _script() -> Script:
    """Return the switch of `weft lab serve`, except for its boot time, on which deltas do not depend."""
    return Script(Shape(seed=1))


def _assert_samples_are_the_switch_s(weft: Any, data: Path) -> None:
    """Bytes of seconds sampled without a gap equal those that the switch moved in these seconds, to the last byte."""
    query = """SELECT list({'ts': epoch_ns(ts), 'port': port, 'direction': direction, 'bytes': bytes::BIGINT}) AS rows FROM ports_1s
         WHERE samples = 1000 AND sample_interval_ns = 1000000"""
    rows = _row(weft, data, query)["rows"]
    rows = json.loads(rows) if isinstance(rows, str) else rows
    script = _script()
    index = {name: k for k, name in enumerate(script.switch.ports)}
    starts = sorted({row["ts"] for row in rows})
    state = script.at(np.array([edge for start in starts for edge in (start, start + NS_PER_S)]))
    moved = {side: np.diff(state.port(f"{side}_bytes").reshape(len(starts), 2, -1), axis=1)[:, 0] for side in ("rx", "tx")}
    place = {start: k for k, start in enumerate(starts)}
    for row in rows:
        assert row["bytes"] == int(moved[row["direction"]][place[row["ts"]], index[row["port"]]]), row
    assert sum(row["bytes"] for row in rows) > 0


def _assert_marks_are_the_switch_s(weft: Any, data: Path) -> None:
    """The marked share of a lossless queue, over seconds, is the switch's own."""
    query = f"""SELECT port, sum(ecn_marked_packets)::BIGINT AS marked, sum(packets)::BIGINT AS packets FROM queues_1s
        WHERE source = 'gnmi' AND direction = 'tx' AND queue = '{LOSSLESS}' AND packets > 0 GROUP BY port ORDER BY marked DESC LIMIT 1"""
    row = _row(weft, data, query)
    script = _script()
    port = script.switch.ports.index(row["port"])
    state = script.at(np.array([script.shape.boots_ns[0] + k * NS_PER_S for k in (1, 11)]))
    marked, packets = (np.diff(state.queue(name)[:, port, LOSSLESS])[0] for name in ("ecn_marked_packets", "packets"))
    assert row["marked"] / row["packets"] == pytest.approx(float(marked / packets), rel=0.05, abs=0.002)


def test_the_lab_prints_where_it_is(weft: Any, tmp_path: Path) -> None:
    """`weft lab serve` prints a configuration that `weft check` accepts."""
    config = _serve(weft, tmp_path, {name: free_port() for name in SOURCES})
    done = weft.run("check", "--config", config, "--data", tmp_path / "data", "--dump")
    sections = dict(re.findall(r"^\[([\w.]+)\]\n((?:[^\[\n].*\n)*)", done.stdout, re.MULTILINE))
    assert [name for name in ("sflow", "hft", "otlp", "host") if "enabled = true" in sections[f"collect.{name}"]] == [
        "sflow",
        "hft",
        "otlp",
    ]
    assert "lab-leaf-1" in sections["collect.gnmi"]
