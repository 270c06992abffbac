"""Shared by the lab's tests: tshark as an independent decoder, captures of made datagrams, certificates of an authority."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

TSHARK_LIMIT_S = 60


def capture(path: Path, datagrams: Iterable[bytes], port: int) -> Path:
    """Write a pcap file of UDP datagrams over IPv4 and Ethernet, a microsecond apart."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    for number, body in enumerate(datagrams):
        udp = struct.pack(">HHHH", 50000, port, 8 + len(body), 0) + body
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes([127, 0, 0, 1]), bytes([127, 0, 0, 1]))
        frame = bytes(12) + b"\x08\x00" + ip + udp
        out += struct.pack("<IIII", 0, number, len(frame), len(frame)) + frame
    path.write_bytes(out)
    return path


@pytest.fixture
def tshark(tmp_path: Path) -> Callable[..., str]:
    """Return a function that dissects datagrams with tshark and returns its output."""
    if shutil.which("tshark") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no tshark: install the package tshark", pytrace=False)
        pytest.skip("no tshark: install the package tshark")

    def run(datagrams: Iterable[bytes], port: int, *arguments: str) -> str:
        path = capture(tmp_path / "made.pcap", datagrams, port)
        command = ["tshark", "-r", str(path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TSHARK_LIMIT_S, stdin=subprocess.DEVNULL, check=True)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as ``weft lab serve --certificates`` takes it: an authority, a server of localhost, a client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no openssl: install the package openssl", pytrace=False)
        pytest.skip("no openssl: install the package openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, capture_output=True, check=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for authority in ("ca", "other"):
        run("req", "-x509", *curve, "-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-subj", f"/CN=lab {authority}")
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        run("req", *curve[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
    return folder
