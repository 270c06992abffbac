"""Starting and stopping the dashboard, and its security settings."""

import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from weft.dashboards.service import DashConfig, check_port, options
from weft.pipeline.errors import ServiceError


def test_a_port_in_use_is_one_sentence():
    """A port in use is reported with a hint."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError) as caught:
            check_port(DashConfig(port=port))
    assert str(caught.value) == f"port {port} is in use; choose another with --port"


@pytest.mark.parametrize("config", [DashConfig(address="203.0.113.7"), DashConfig(port=70_000)])
def test_an_address_that_cannot_be_listened_on_is_one_sentence(config):
    """An address of another machine, or an invalid port, is reported with a hint."""
    with pytest.raises(ServiceError, match="choose another with --address and --port"):
        check_port(config)


def test_what_is_open_by_default_is_closed():
    """Only loopback can connect, no usage data is sent, errors show no code, and agents and large uploads are refused."""
    settings = options(DashConfig())
    expected = {
        "server.address": "127.0.0.1",
        "server.allowedHosts": ["127.0.0.1", "localhost", "::1"],
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableAgentApi": False,
        "server.enableStaticServing": False,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
    }
    assert {name: settings[name] for name in expected} == expected


def test_every_setting_is_one_that_streamlit_knows():
    """No setting is misspelt: a misspelt one would leave its default in force."""
    from streamlit import config

    known = config.get_config_options()
    assert [name for name in options(DashConfig()) if name not in known] == []


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_it_serves_writes_nothing_and_ends_when_told(seed, serve):
    """It answers on loopback, leaves the data folder as it was, and a SIGTERM ends it with code 0 within seconds."""
    before = listing(seed.data)
    address, process = serve(seed.data)
    with urllib.request.urlopen(f"{address}/", timeout=10) as answer:
        assert answer.status == 200
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert listing(seed.data) == before


def test_two_on_one_port_is_an_error_not_a_hang(seed, serve):
    """A second dashboard on a port ends at once with a one-sentence error."""
    import sys

    address, _ = serve(seed.data)
    port = address.rpartition(":")[2]
    program = (
        "import sys; from pathlib import Path; from weft.dashboards.service import *; run(DashConfig(port=int(sys.argv[1])), Path('.'))"
    )
    done = subprocess.run([sys.executable, "-c", program, port], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert f"port {port} is in use" in done.stderr
