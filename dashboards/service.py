"""Serves the dashboard: Streamlit in this process, with safe settings.

Nothing is sent anywhere, only this machine can connect unless configured otherwise, errors show no code, and no file is
watched or written.
"""

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.errors import ServiceError
from . import theme

APP = Path(__file__).parent / "app" / "main.py"

# Passes the data folder to the app, a script that Streamlit runs.
DATA_VARIABLE = "WEFT_DASH_DATA"

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class DashConfig:
    """Where to serve. ``allowed_hosts``: host names that a browser may use, empty = any (on loopback: only loopback's).

    The dashboard has no login: on another ``address`` than loopback, put a proxy with authentication in front of it.
    """

    port: int = 8501
    address: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()


def run(config: DashConfig, data: Path) -> None:
    """Serve until SIGTERM or SIGINT, in the main thread of this process.

    Raises:
        ServiceError: the port is in use or may not be used.
    """
    check_port(config)
    os.environ[DATA_VARIABLE] = str(data.resolve())
    from streamlit.web import bootstrap

    flags = {name.replace(".", "_"): value for name, value in options(config).items()}
    bootstrap.load_config_options(flags)
    bootstrap.run(str(APP), False, [], flags)


def check_port(config: DashConfig) -> None:
    """Raise ``ServiceError`` if the address and port cannot be listened on."""
    family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.address, config.port))
        except PermissionError:
            raise ServiceError(f"port {config.port} may not be used", "choose one above 1023 with --port") from None
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise ServiceError(f"port {config.port} is in use", "choose another with --port") from None
            raise ServiceError(
                f"{config.address} port {config.port} cannot be listened on ({error})", "choose another with --address and --port"
            ) from None


def options(config: DashConfig) -> dict[str, object]:
    """Return Streamlit's configuration."""
    hosts = list(config.allowed_hosts or (_LOOPBACK if config.address in _LOOPBACK else ()))
    return {
        "global.developmentMode": False,
        "global.disableWidgetStateDuplicationWarning": True,
        "server.port": config.port,
        "server.address": config.address,
        "server.headless": True,
        "server.allowedHosts": hosts,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.maxUploadSize": 1,
        "server.maxMessageSize": 20,
        "server.showEmailPrompt": False,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
        "runner.magicEnabled": False,
        **theme.options(),
    }
