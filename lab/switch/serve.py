"""A scripted switch in real time that serves gNMI and sends sFlow, high-frequency telemetry and OTLP."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ...pipeline.errors import ServiceError
from ...pipeline.memory import keep_freed
from . import hft, roce, sai
from .gnmi import Server, ServerConfig
from .otlp import OtlpSender, OtlpSenderConfig, points
from .script import LOSSLESS, Script, Shape
from .sflow import NO_BUFFER_SPACE, Agent
from .wire import Udp

PROTOCOLS = ("gnmi", "sflow", "hft", "otlp")
PORTS = {"gnmi": 9339, "sflow": 6343, "hft": 4739, "otlp": 4317}

# Send at this interval, or after this many polls of high-frequency telemetry, so that no burst exceeds a receiver's buffer.
STEP_S, STEP_POLLS = 0.05, 100
# After a delay, catch up by this many polls per step: a whole second at once would overrun the receiver.
CATCH_UP_POLLS = 2 * STEP_POLLS
TEMPLATES_S = 5
SAMPLES_A_STEP = 20
# Polls further behind are skipped, as a switch's ring buffer would be overwritten.
BEHIND_NS_MAX = NS_PER_S


@dataclass(frozen=True, slots=True)
class LabConfig:
    """What to serve on loopback: ``ports``: gNMI listens on its port (0: any), the others send to theirs.

    ``certificates`` is a folder: ``server.crt`` and ``server.key`` enable TLS for gNMI; with ``ca.crt`` it requires client certificates
    signed by that CA, and OTLP verifies its receiver by it (and presents ``client.crt`` and ``client.key`` if they exist).
    """

    only: tuple[str, ...] = PROTOCOLS
    ports: dict[str, int] = field(default_factory=dict)
    certificates: Path | None = None
    switch_ports: int = 32
    seed: int = 1
    # High-frequency telemetry: poll interval, statistics of each port and of each lossless queue, format.
    poll_ns: int = NS_PER_MS
    port_stats: tuple[str, ...] = ("IF_IN_OCTETS", "IF_OUT_OCTETS", "IF_OUT_DISCARDS")
    queue_stats: tuple[str, ...] = ("BYTES", "CURR_OCCUPANCY_BYTES", "WRED_ECN_MARKED_PACKETS")
    layout: hft.Layout = field(default_factory=lambda: hft.Layout(records=10, message_bytes_max=9000))


class Lab:
    """A switch as a service. ``toml`` returns the configuration that collects from it."""

    def __init__(self, config: LabConfig, clock: Clock, folder: Path) -> None:
        self._config, self._clock = config, clock
        self._to = PORTS | config.ports
        self.sessions_file = folder / "hft-sessions.json"
        self._ended = threading.Event()
        self._parts: list[Server | Udp] = []
        self._gnmi: Server | None = None
        self._otlp: threading.Thread | None = None

    def start(self) -> None:
        """Open all protocols. Raises ``ServiceError`` if a port or a certificate cannot be used."""
        config, now = self._config, self._clock.now_ns()
        self.script = Script(Shape(ports=config.switch_ports, seed=config.seed, boots_ns=(now - 60 * NS_PER_S,)))
        self._agent, self._counters_ns = Agent(self.script), 0
        lossless = hft.session(self.script, sai.QUEUE, config.queue_stats, (LOSSLESS,))
        self._sessions = [hft.session(self.script, sai.PORT, config.port_stats), lossless][: 2 if config.queue_stats else 1]
        self._exporter = hft.HftExporter(self.script, self._sessions, config.layout)
        self._skipped, self._templates_ns = 0, 0
        self._hft_ns = now // config.poll_ns * config.poll_ns
        keep_freed()
        try:
            self._open()
        except ServiceError:
            self.stop()
            raise

    def step(self) -> None:
        """Send due telemetry, then wait for the next time."""
        now = self._clock.now_ns()
        if self._sflow is not None:
            self._send_sflow(self._sflow, now)
        if self._hft is not None:
            self._send_hft(self._hft, now)
        self._clock.wait(min(STEP_S, STEP_POLLS * self._config.poll_ns / NS_PER_S), self._ended)

    @property
    def polls(self) -> tuple[int, int]:
        """Polls of high-frequency telemetry since the start: sent, and skipped after a delay."""
        return self._exporter.records // len(self._sessions), self._skipped

    def stop(self) -> None:
        """Close everything. Idempotent."""
        self._ended.set()
        for part in self._parts:
            part.stop()
        self._parts.clear()
        if self._otlp is not None:
            self._otlp.join()
        self._otlp = None

    def addresses(self) -> dict[str, str]:
        """Return the address of each protocol: gNMI listens there, the others send there."""
        return {name: f"127.0.0.1:{self._gnmi.port if name == 'gnmi' and self._gnmi else self._to[name]}" for name in self._config.only}

    def toml(self) -> str:
        """Return the sections of ``weft.toml`` that collect from this switch."""
        device, to = self.script.switch.device, self._to
        port = self._gnmi.port if self._gnmi else to["gnmi"]
        dial, take = self._tls()
        target = {"name": device, "address": f"{'localhost' if dial else '127.0.0.1'}:{port}", **(dial or {"insecure": True})}
        local, sessions = {"127.0.0.1": device}, {"*": str(self.sessions_file)}
        sections: dict[str, dict[str, Any]] = {
            "gnmi": {"targets": [target | {"packs": ["openconfig", "sonic", "lldp"]}]},
            "sflow": {"enabled": True, "port": to["sflow"], "devices": {"192.0.2.1": device}},
            "hft": {"enabled": True, "port": to["hft"], "devices": local, "sessions": sessions},
            "otlp": {"enabled": True, "port": to["otlp"], "devices": local, **take},
        }
        return collect_toml({name: sections[name] for name in self._config.only})

    def _tls(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the TLS settings of a gNMI client and of an OTLP receiver."""
        folder = self._config.certificates
        if folder is None:
            return {}, {}
        ca = folder / "ca.crt"
        dial = {"ca_file": str(ca if ca.exists() else folder / "server.crt")}
        if not ca.exists():
            return dial, {}
        pair = {"cert_file": str(folder / "client.crt"), "key_file": str(folder / "client.key")}
        return dial | pair, {"certificate": str(folder / "server.crt"), "key": str(folder / "server.key"), "client_authority": str(ca)}

    def _open(self) -> None:
        only, folder = self._config.only, self._config.certificates
        self._ended.clear()
        self._sflow = self._udp("sflow") if "sflow" in only else None
        self._hft = self._udp("hft") if "hft" in only else None
        if "hft" in only:
            write_sessions(self.sessions_file, self._exporter)
        if "gnmi" in only:
            ca = folder / "ca.crt" if folder and (folder / "ca.crt").exists() else None
            tls = {"certificate": folder / "server.crt", "key": folder / "server.key", "client_ca": ca} if folder else {}
            self._gnmi = Server(self.script, ServerConfig(port=self._to["gnmi"], **tls), self._clock)
            self._gnmi.start()
            self._parts.append(self._gnmi)
        if "otlp" in only:
            self._otlp = threading.Thread(target=self._run_otlp, name="lab-otlp", daemon=True)
            self._otlp.start()

    def _udp(self, name: str) -> Udp:
        sender = Udp("127.0.0.1", self._to[name], self._clock)
        sender.start()
        self._parts.append(sender)
        return sender

    def _send_sflow(self, udp: Udp, now: int) -> None:
        if now - self._counters_ns >= NS_PER_S:
            self._counters_ns = now
            udp.send(self._agent.counters(now))
            lost = roce.sampled(self.script, now, 4)
            udp.send(self._agent.discards(lost, np.full(4, NO_BUFFER_SPACE), now))
        for opcode in (roce.WRITE_MIDDLE, roce.ACKNOWLEDGE, roce.CONGESTION):
            udp.send(self._agent.flows(roce.sampled(self.script, now, SAMPLES_A_STEP, opcode), now))

    def _send_hft(self, udp: Udp, now: int) -> None:
        poll_ns = self._config.poll_ns
        behind = max(0, (now - BEHIND_NS_MAX) // poll_ns - self._hft_ns // poll_ns)
        self._skipped += behind
        self._hft_ns += behind * poll_ns
        if now - self._templates_ns >= TEMPLATES_S * NS_PER_S:
            self._templates_ns = now
            udp.send(self._exporter.templates(export_ns=now))
        # Messages are sent when full; few are made at a time, so that they fit into the processor's cache.
        each = self._config.layout.records
        due = np.arange(self._hft_ns, now, poll_ns)[:CATCH_UP_POLLS]
        for first in range(0, len(due) // each * each, STEP_POLLS):
            some = due[first : min(first + STEP_POLLS, len(due) // each * each)]
            udp.send(self._exporter.data(some))
            self._hft_ns = int(some[-1]) + poll_ns

    def _run_otlp(self) -> None:
        folder = self._config.certificates
        ca, certificate, key = ((folder / name if folder else None) for name in ("ca.crt", "client.crt", "client.key"))
        shows = certificate if certificate and certificate.exists() else None
        address = f"localhost:{self._to['otlp']}" if ca else f"127.0.0.1:{self._to['otlp']}"
        config = OtlpSenderConfig(address, ca if ca and ca.exists() else None, shows, key if shows else None)
        sender = OtlpSender(self.script, config, self._clock, self._ended)
        sender.start()
        while not self._ended.is_set():
            now = self._clock.now_ns() // NS_PER_S * NS_PER_S
            sender.send(points(self.script, self._sessions, [now]))
            self._clock.wait((now + NS_PER_S - self._clock.now_ns()) / NS_PER_S, self._ended)
        sender.stop()


def write_sessions(path: Path, exporter: hft.HftExporter) -> None:
    """Write the object names of an exporter of high-frequency telemetry. Raises ``ServiceError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(exporter.side_channel(), indent=1))
    except OSError as error:
        raise ServiceError(f"lab: {path} cannot be written ({error.strerror})", "choose another folder with --data") from None


def collect_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sections ``[collect.*]`` of a configuration as TOML."""
    return "\n".join(
        f"[collect.{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in section.items()) for name, section in sections.items()
    )


def _toml(value: Any) -> str:
    """Return a value as TOML: texts, numbers and booleans are written as in JSON, tables inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
