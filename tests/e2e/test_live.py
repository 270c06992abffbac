"""Everything at once on this machine: traffic shows, an alert is sent and resolved, and everything stops on request."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.alone

# The best of this many transfers counts, because others may use the machine and its loopback, too.
TRANSFERS = 3
TRANSFER_S = 0.8
LIMIT_S = 60.0

RULE = """
name = "loopback-busy"
query = "SELECT ts, device, port, max(burst_time_ratio) AS value FROM ports_1s WHERE ts >= $from AND ts < $to AND port = 'lo' GROUP BY ALL"
condition = "> 0.2"
for_s = 0
severity = "info"
[annotations]
summary = "{port} of {device} is busy"
"""

# Another program that reads the store with nothing but DuckDB; on each request it prints when the newest burst began.
READER = """
import sys, duckdb
query = "SELECT coalesce(max(epoch_ns(start_ts)), 0) FROM bursts WHERE port = 'lo'"
while sys.stdin.readline():
    print(duckdb.connect(sys.argv[1], read_only=True).execute(query).fetchall()[0][0], flush=True)
"""


class Receiver(http.server.ThreadingHTTPServer):
    """Records webhooks with the time of their arrival."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[float, dict[str, Any]]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        arrived = time.time()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["groupLabels"]["alertname"] == "loopback-busy":
            # Other rules may fire on a machine as busy as this.
            self.server.got.append((arrived, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a receiver of webhooks on this machine."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Live:
    """A running ``weft up``."""

    process: "subprocess.Popen[str]"
    data: Path
    config: Path


@pytest.fixture
def live(weft: Any, receiver: Receiver, tmp_path: Path) -> Live:
    """Return ``weft up`` on the loopback interface, with a rule on its bursts and a receiver, once it publishes."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "loopback-busy.toml").write_text(RULE)
    config = tmp_path / "weft.toml"
    config.write_text(
        f"""
[collect.host]
interfaces = ["lo"]
line_rate_bps = {{ lo = 2_000_000_000 }}
[analyze.alerts]
rules = "{tmp_path / "rules"}"
[[analyze.notify.webhook]]
url = "http://127.0.0.1:{receiver.server_port}/hook"
"""
    )
    data = tmp_path / "data"
    with (tmp_path / "said").open("w") as said:
        process = weft.start("up", "--no-dashboard", "--config", config, "--data", data, stdout=said, stderr=said)
    live = Live(process, data, config)
    _until(lambda: (data / "store" / "current.duckdb").exists() and _windows(weft, data) > 1, live)
    return live


def _until(condition: Any, live: Live) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert live.process.poll() is None and time.monotonic() < deadline, (live.data.parent / "said").read_text()
        time.sleep(0.05)


def _within(seconds: float, condition: Any) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(found)


def _story(weft: Any, live: Live) -> str:
    """Return details for a failed test."""
    query = "SELECT ts, direction, sample_interval_ns, samples, burst_time_ratio FROM ports_1s WHERE burst_time_ratio > 0 ORDER BY ALL"
    story = [weft.run("sql", "--data", live.data, sql).stdout for sql in (query, "FROM state.alerts", "FROM state.outbox")]
    return "\n".join([*story, (live.data.parent / "said").read_text()])


def _windows(weft: Any, data: Path) -> int:
    return json.loads(weft.run("sql", "--data", data, "--format", "json", "SELECT count(DISTINCT ts) AS n FROM ports_1s").stdout)["n"]


def _transfer() -> tuple[float, float]:
    """Send over loopback TCP for a while; return begin and end."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def swallow() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(1 << 20):
                    pass

        thread = threading.Thread(target=swallow)
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            began = time.time()
            chunk = bytes(1 << 20)
            while time.time() - began < TRANSFER_S:
                client.sendall(chunk)
        ended = time.time()
        thread.join()
    return began, ended


class Watcher:
    """The other program, queried repeatedly; a failed read ends it, and the test."""

    def __init__(self, data: Path) -> None:
        command = [sys.executable, "-c", READER, str(data / "store" / "current.duckdb")]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def newest_burst_s(self) -> float:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return int(self._child.stdout.readline()) / 1e9

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


@pytest.fixture
def watcher(live: Live) -> Iterator[Watcher]:
    """Return another program that reads the live store."""
    watcher = Watcher(live.data)
    yield watcher
    watcher.close()


def _firing(receiver: Receiver, after: float) -> tuple[float, float] | None:
    """Return arrival and end of the window of the first notification that fires for a window after the given time."""
    for arrived, body in list(receiver.got):
        starts = [datetime.fromisoformat(alert["startsAt"]).timestamp() for alert in body["alerts"] if alert["status"] == "firing"]
        if body["status"] == "firing" and starts and min(starts) + 1 > after:
            return arrived, min(starts) + 1
    return None


def _resolved(receiver: Receiver, after: float) -> bool:
    return any(arrived > after and body["status"] == "resolved" for arrived, body in list(receiver.got))


def test_traffic_shows_and_alerts(weft: Any, live: Live, receiver: Receiver, watcher: Watcher) -> None:
    """A transfer is in the store within 5 s, for any DuckDB client; its alert arrives within 2 s of the window's end and resolves later."""
    seen_s, told_s, resolved = [], [], 0
    for _ in range(TRANSFERS):
        began, ended = _transfer()
        _until(lambda began=began: watcher.newest_burst_s() >= began - 1, live)
        seen_s.append(time.time() - ended)
        if _within(8, lambda began=began: _firing(receiver, began) is not None):
            arrived, window_end = _firing(receiver, began) or (0.0, 0.0)
            told_s.append(arrived - window_end)
            resolved += _within(8, lambda arrived=arrived: _resolved(receiver, arrived))
    print(f"seen after {seen_s} s, notified after {told_s} s, resolved {resolved}")
    assert min(seen_s) < 5 and told_s and min(told_s) < 2 and resolved, _story(weft, live)
    rows = weft.run("sql", "--data", live.data, "--format", "json", "SELECT DISTINCT port, direction FROM bursts").stdout.splitlines()
    assert {tuple(json.loads(row).values()) for row in rows} == {("lo", "rx"), ("lo", "tx")}
    firing = next(body for _, body in receiver.got if body["status"] == "firing")
    assert firing["version"] == "4" and firing["commonAnnotations"]["summary"].startswith("lo of ")
    _stop(live)


def _stop(live: Live) -> None:
    """Stop it: exit code 0, and no process is left."""
    tree = psutil.Process(live.process.pid).children(recursive=True)
    assert len(tree) >= 3
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(30) == 0
    assert not psutil.wait_procs(tree, timeout=5)[1]
    assert "Traceback" not in (live.data.parent / "said").read_text()


def test_a_data_folder_has_one_owner(weft: Any, live: Live, recording: Any) -> None:
    """A second up, replay or analyze on the same data folder is refused in a sentence, and does not disturb the first."""
    for command in (("up", "--no-dashboard"), ("replay", recording.path), ("analyze",)):
        said = weft.fails(*command, "--data", live.data)
        assert f"another process writes {live.data / 'store'}; stop it, or choose another folder with --data" in said
    before = _windows(weft, live.data)
    _until(lambda: _windows(weft, live.data) > before + 2, live)


def test_nobody_outlives_the_supervisor(live: Live) -> None:
    """When ``weft up`` itself is killed, its services end without it, so that the next start finds the folder free."""
    tree = psutil.Process(live.process.pid).children(recursive=True)
    live.process.kill()
    live.process.wait()
    gone, alive = psutil.wait_procs(tree, timeout=30)
    assert len(gone) >= 3 and not alive


@pytest.mark.parametrize("command", ["up", "dash"])
def test_a_port_in_use(weft: Any, tmp_path: Path, command: str) -> None:
    """A port in use by another program is reported with a hint."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use; choose another with --port" == weft.fails(command, "--port", port, "--data", tmp_path)


def test_a_terminal_can_end_it(weft: Any, tmp_path: Path) -> None:
    """Ctrl-C on a command under way ends it and its services, without a traceback."""
    process = weft.start("up", "--no-dashboard", "--data", tmp_path / "data", start_new_session=True)
    deadline = time.monotonic() + LIMIT_S
    while len(tree := psutil.Process(process.pid).children()) < 3 or not (tmp_path / "data" / "store").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said, said
    assert not psutil.wait_procs(tree, timeout=5)[1]
