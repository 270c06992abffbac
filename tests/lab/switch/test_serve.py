"""``weft lab serve``: one switch speaks every protocol, and the output is a configuration."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from time import monotonic

import grpc
import pytest
from gnmi_pb import gnmi_pb2, gnmi_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from weft import cli
from weft.commands import lab
from weft.lab.switch import serve

LIMIT_S = 60


@pytest.fixture
def lab_process(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], str]]]:
    """Return a function that runs ``weft lab serve`` and returns it with its output up to the end of the configuration."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, sections: int) -> tuple[subprocess.Popen[bytes], str]:
        command = [sys.executable, "-m", "weft", "lab", "serve", "--data", str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
        started.append(process)
        assert process.stdout is not None
        printed, deadline = "", monotonic() + LIMIT_S
        while printed.count("[collect.") < sections or not printed.endswith("\n\n"):
            assert select.select([process.stdout], [], [], max(0, deadline - monotonic()))[0], printed
            some = os.read(process.stdout.fileno(), 65_536).decode()
            assert some, process.communicate()
            printed += some
        return process, printed

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=10)


class Takes(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Counts data points."""

    points = 0

    def Export(self, request, context):
        """Take a request."""
        self.points += sum(len(m.gauge.data_points) for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def udp() -> socket.socket:
    """Return a socket on a free port."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(LIMIT_S)
    return receiver


def test_every_protocol_comes_from_one_switch(lab_process, tmp_path: Path):
    """Listeners receive each protocol, gNMI answers, the printed configuration names their addresses, and a signal ends it cleanly."""
    takes = Takes()
    collector = grpc.server(futures.ThreadPoolExecutor(2))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(takes, collector)
    otlp_port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    with udp() as sflow, udp() as hft:
        ports = {"gnmi": 0, "sflow": sflow.getsockname()[1], "hft": hft.getsockname()[1], "otlp": otlp_port}
        process, printed = lab_process(*(part for name, port in ports.items() for part in ("--port", f"{name}={port}")), sections=4)
        parts = tomllib.loads(printed)["collect"]
        assert {name: parts[name]["port"] for name in ("sflow", "hft", "otlp")} == {name: ports[name] for name in ("sflow", "hft", "otlp")}
        assert struct.unpack(">I", sflow.recv(65_535)[:4]) == (5,)
        template, data = (hft.recv(65_535) for _ in range(2))
        assert struct.unpack(">H", template[16:18]) == (2,)
        assert struct.unpack(">H", data[16:18]) >= (256,)
    (target,) = parts["gnmi"]["targets"]
    with grpc.insecure_channel(target["address"]) as channel:
        got = gnmi_pb2_grpc.gNMIStub(channel).Get(
            gnmi_pb2.GetRequest(path=[gnmi_pb2.Path(elem=[gnmi_pb2.PathElem(name="system")])], encoding=gnmi_pb2.PROTO), timeout=LIMIT_S
        )
    assert got.notification[0].update[0].val.string_val == target["name"]
    deadline = monotonic() + LIMIT_S
    while not takes.points and monotonic() < deadline:
        select.select([], [], [], 0.02)
    assert takes.points > 0
    sessions = Path(parts["hft"]["sessions"]["*"])
    assert sessions.is_relative_to(tmp_path) and '"object_ids"' in sessions.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=LIMIT_S) == 0
    collector.stop(None).wait()


def test_certificates_make_it_safe(lab_process, certificates: Path):
    """With a folder of certificates a client with a certificate of the authority is answered."""
    _, printed = lab_process("--only", "gnmi", "--port", "gnmi=0", "--certificates", str(certificates), sections=1)
    (target,) = tomllib.loads(printed)["collect"]["gnmi"]["targets"]
    read = [Path(target[name]).read_bytes() for name in ("ca_file", "key_file", "cert_file")]
    with grpc.secure_channel(target["address"], grpc.ssl_channel_credentials(*read)) as channel:
        assert gnmi_pb2_grpc.gNMIStub(channel).Capabilities(gnmi_pb2.CapabilityRequest(), timeout=LIMIT_S).gNMI_version


def test_it_ends_after_its_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With --seconds it prints its addresses and stops after that time."""
    assert cli.main(["lab", "serve", "--only", "hft,gnmi", "--port", "gnmi=0", "--seconds", "0.1", "--data", str(tmp_path)]) == 0
    assert sorted(tomllib.loads(capsys.readouterr().out)["collect"]) == ["gnmi", "hft"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--only", "snmp"), 2, "'snmp' is not one of gnmi, sflow, hft, otlp"),
        (("--port", "gnmi:1"), 2, "'gnmi:1' is not NAME=PORT"),
        (("--certificates", "nowhere"), 1, "weft: lab: nowhere has no server.crt"),
    ],
)
def test_a_wrong_command_line_is_reported(capsys: pytest.CaptureFixture[str], arguments, code, said):
    """An invalid option is one sentence and the exit code of its kind."""
    try:
        ended = cli.main(["lab", "serve", *arguments])
    except SystemExit as end:
        ended = end.code
    assert ended == code
    assert said in capsys.readouterr().err


def test_the_command_line_knows_the_protocols():
    """The command's list of protocols, which avoids loading the lab, equals the lab's."""
    assert lab._PROTOCOLS == serve.PROTOCOLS
