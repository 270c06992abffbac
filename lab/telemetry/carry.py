"""Four switches of a live fabric on loopback: one serves gNMI, one sends high-frequency telemetry, one OTLP, one sFlow.

They report up to ``until_ns``, the current time of the fabric, and never beyond it.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.clock import NS_PER_MS, NS_PER_S, Clock
from ..fabric.fabric import Fabric, Step
from ..switch import hft, sai
from ..switch.gnmi import Server, ServerConfig
from ..switch.hft import Session
from ..switch.otlp import GaugePoints, OtlpSender, OtlpSenderConfig, points
from ..switch.script import LOSSLESS
from ..switch.serve import write_sessions
from ..switch.sflow import Agent, AgentConfig
from ..switch.wire import Udp, free_port
from . import export
from .tap import Tap

# The gNMI server's clock is behind this machine's by so much, so that the fabric has reached its time.
DELAY_NS = 500 * NS_PER_MS
POLL_NS = NS_PER_MS
# OTLP writes every point separately, so it samples ten times less often.
OTLP_POLL_NS = 10 * NS_PER_MS
TEMPLATES_NS = 5 * NS_PER_S
SFLOW_ADDRESS = "192.0.2.1"
# One switch sends little; the default buffer of a listener is for hundreds.
_BUFFER = {"buffer_bytes_max": 8 * 2**20}

_BYTES = ("IF_IN_OCTETS", "IF_OUT_OCTETS", "OUT_CURR_OCCUPANCY_BYTES")
_PORT = (
    *("IF_IN_UCAST_PKTS", "IF_OUT_UCAST_PKTS", "IF_IN_DISCARDS", "IF_OUT_DISCARDS", "IF_IN_ERRORS", "IF_OUT_ERRORS"),
    *("IF_IN_FEC_CORRECTABLE_FRAMES", "IF_IN_FEC_NOT_CORRECTABLE_FRAMES", "IF_IN_FEC_SYMBOL_ERRORS", "IF_IN_FEC_CORRECTED_BITS"),
    *(f"IF_IN_FEC_CODEWORD_ERRORS_S{n}" for n in range(16)),
    *(f"PFC_{LOSSLESS}_{name}" for name in ("RX_PKTS", "TX_PKTS", "RX_PAUSE_DURATION_US", "TX_PAUSE_DURATION_US", "ON2OFF_RX_PKTS")),
)
_QUEUE = ("PACKETS", "DROPPED_PACKETS", "WATERMARK_BYTES", "WRED_ECN_MARKED_PACKETS", "DELAY_WATERMARK_NS")
_GROUP = ("WATERMARK_BYTES", "XOFF_ROOM_WATERMARK_BYTES")


class FabricClock:
    """A clock that runs behind this machine's and never ahead of the fabric."""

    def __init__(self, clock: Clock, until_ns: int) -> None:
        self._clock, self.until_ns = clock, until_ns

    def now_ns(self) -> int:
        return min(self._clock.now_ns() - DELAY_NS, self.until_ns)

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()

    def wait(self, seconds: float, until: threading.Event | None = None) -> bool:
        return self._clock.wait(seconds, until)


class Carriers:
    """The device side of the protocols; ``carried`` maps each carried device to its protocol."""

    def __init__(self, fabric: Fabric, carried: Mapping[str, str], clock: Clock, folder: Path) -> None:
        self._fabric, self._clock, self._folder = fabric, clock, folder
        # Two seconds of history are enough for late requests.
        self._taps = {protocol: Tap(fabric, device, steps_kept=8) for device, protocol in carried.items()}
        self._ports = {protocol: free_port() for protocol in self._taps}
        self._time = FabricClock(clock, fabric.config.start_ns)
        self._ended = threading.Event()
        self._gnmi: Server | None = None
        self._udp: dict[str, Udp] = {}
        self._otlp: threading.Thread | None = None
        self._hft_ns = fabric.config.start_ns
        self._templates_ns = self._sflow_ns = 0

    def start(self) -> None:
        """Open all protocols. Raises ``ServiceError`` if one cannot be opened."""
        self._ended.clear()
        if "gnmi" in self._taps:
            self._gnmi = Server(self._taps["gnmi"], ServerConfig(port=self._ports["gnmi"]), self._time)
            self._gnmi.start()
        for name in self._taps.keys() & {"hft", "sflow"}:
            self._udp[name] = Udp("127.0.0.1", self._ports[name], self._clock)
            self._udp[name].start()
        if "hft" in self._taps:
            tap = self._taps["hft"]
            self._exporter = hft.HftExporter(tap, _sessions(tap, _BYTES + _PORT), hft.Layout(records=10, message_bytes_max=9000))
            write_sessions(self._folder / "hft-sessions.json", self._exporter)
        if "sflow" in self._taps:
            rate = max(1, self._fabric.config.packet_sampling)
            # Queues have another source, and each value has one source only.
            records = {"records": ("generic", "ethernet", "port_name"), "flow_records": ("transit",)}
            self._agent = Agent(self._taps["sflow"], AgentConfig(SFLOW_ADDRESS, sampling_rate=rate, **records))
        if "otlp" in self._taps:
            self._otlp = threading.Thread(target=self._run_otlp, name="lab-otlp", daemon=True)
            self._otlp.start()

    def take(self, step: Step) -> None:
        """Add a step of the fabric and send its telemetry."""
        for tap in self._taps.values():
            tap.take(step)
        self._time.until_ns = until_ns = self._fabric.config.start_ns + step.until_ns
        if "hft" in self._udp:
            self._send_hft(self._udp["hft"], until_ns)
        if "sflow" in self._udp:
            self._send_sflow(self._udp["sflow"], step, until_ns)

    def counters(self) -> dict[str, float]:
        """Return the numbers of datagrams sent, by protocol."""
        return {f"weft_lab_{name}_datagrams_total": float(udp.sent) for name, udp in self._udp.items()}

    def stop(self) -> None:
        """Close everything. Idempotent."""
        self._ended.set()
        if self._gnmi is not None:
            self._gnmi.stop()
        for udp in self._udp.values():
            udp.stop()
        self._udp.clear()
        if self._otlp is not None:
            self._otlp.join()
        self._gnmi = self._otlp = None

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the sections ``[collect.*]`` that collect from these switches."""
        device = {protocol: tap.device for protocol, tap in self._taps.items()}
        ports = self._ports
        line = {"": int(self._fabric.topology.speed_bps.max())}
        made: dict[str, dict[str, Any]] = {}
        if "gnmi" in device:
            target = {"name": device["gnmi"], "address": f"127.0.0.1:{ports['gnmi']}", "insecure": True}
            made["gnmi"] = {"targets": [target | {"packs": ["openconfig", "sonic"]}]}
        if "sflow" in device:
            made["sflow"] = {"enabled": True, "port": ports["sflow"], "devices": {SFLOW_ADDRESS: device["sflow"]}, **_BUFFER}
        if "hft" in device:
            sessions = {"*": str(self._folder / "hft-sessions.json")}
            here = {"port": ports["hft"], "devices": {"127.0.0.1": device["hft"]}, "sessions": sessions}
            made["hft"] = {"enabled": True, "tcp": False, **here, "line_rate_bps": line, **_BUFFER}
        if "otlp" in device:
            made["otlp"] = {"enabled": True, "port": ports["otlp"], "devices": {"127.0.0.1": device["otlp"]}, "line_rate_bps": line}
        return made

    def _send_hft(self, udp: Udp, until_ns: int) -> None:
        if until_ns - self._templates_ns >= TEMPLATES_NS:
            self._templates_ns = until_ns
            udp.send(self._exporter.templates(export_ns=until_ns))
        due = np.arange(self._hft_ns, until_ns, POLL_NS)
        if len(due):
            udp.send(self._exporter.data(due))
            self._hft_ns = int(due[-1]) + POLL_NS

    def _send_sflow(self, udp: Udp, step: Step, until_ns: int) -> None:
        if until_ns - self._sflow_ns >= NS_PER_S:
            self._sflow_ns = until_ns
            udp.send(self._agent.counters(until_ns))
        for flows in self._taps["sflow"].sampled(export.sampled(self._fabric, step)):
            udp.send(self._agent.flows(flows, until_ns))

    def _run_otlp(self) -> None:
        tap = self._taps["otlp"]
        fast, slow = _sessions(tap, _BYTES)[:1], _sessions(tap, _PORT)
        sender = OtlpSender(tap, OtlpSenderConfig(f"127.0.0.1:{self._ports['otlp']}", pause_s_max=1.0), self._time, self._ended)
        sender.start()
        last_ns = self._time.until_ns
        while not self._clock.wait(0.2, self._ended):
            until_ns = self._time.until_ns // NS_PER_S * NS_PER_S
            # The sender waits until there is a listener; older samples are dropped, since the switch keeps only the last second.
            last_ns = max(last_ns, until_ns - NS_PER_S)
            if until_ns > last_ns:
                made: list[GaugePoints] = points(tap, fast, np.arange(last_ns + OTLP_POLL_NS, until_ns + 1, OTLP_POLL_NS))
                sender.send(made + points(tap, slow, [until_ns]))
                last_ns = until_ns
        sender.stop()


def _sessions(tap: Tap, ports: tuple[str, ...]) -> list[Session]:
    """Return the sessions of ports, of the lossless queue and priority group, and of the buffer."""
    return [
        hft.session(tap, sai.PORT, ports),
        hft.session(tap, sai.QUEUE, _QUEUE, (LOSSLESS,)),
        hft.session(tap, sai.GROUP, _GROUP, (LOSSLESS,)),
        hft.session(tap, sai.POOL, ("WATERMARK_BYTES",)),
    ]
