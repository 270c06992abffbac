"""Posts a payload to one URL: one attempt, bounded in time and bytes, to a permitted address, without redirects.

Only the status code and ``Retry-After`` of the answer are used. Its body is read up to a bound and discarded. Neither the body nor the URL,
which often is a secret, appears in an error.
"""

import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.config import secret
from ...pipeline.errors import ConfigError
from . import guard, payload
from .base import Delivery, DeliveryResult, Kind, Outcome
from .signature import parse_secrets, sign

RESPONSE_BYTES_MAX = 64 * 1024
RETRY_AFTER_S_MAX = 3600.0
ADDRESSES_MAX = 4
SECRET_FILE_BYTES_MAX = 16 * 1024


@dataclass(frozen=True)
class HttpConfig:
    """The settings of every receiver with a URL. Give ``url``, or ``url_file`` to keep the URL out of the configuration."""

    name: str = "webhook"
    url: str = secret()
    url_file: str = ""
    send_resolved: bool = True
    timeout_s: float = 10.0
    # Alerts in one payload; the payload counts the others. 0 = no limit.
    max_alerts: int = 50
    # Networks that the receiver's address must be in; empty = any that guard.py permits.
    allow: tuple[str, ...] = ()


@dataclass(frozen=True)
class WebhookConfig(HttpConfig):
    """A webhook."""

    # File of secrets to sign with, one a line (whsec_...); empty = unsigned.
    secret_file: str = ""


class _Pinned(http.client.HTTPConnection):
    """Connects to the given address without resolving the name again; TLS still verifies the name."""

    def __init__(self, host: str, port: int, address: str, timeout_s: float, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._address = address
        self._context = context

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._context is not None:
            # The handshake starts once the socket is set, so that the deadline covers it too.
            tls = self._context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = tls
            tls.do_handshake()


class _Deadline:
    """Closes the connection when the whole attempt takes too long.

    A socket's own time limit restarts with each byte: a receiver that sends slowly would block the thread for ever.
    """

    def __init__(self, timeout_s: float) -> None:
        self.expired = False
        self.connection: _Pinned | None = None
        self._timer = threading.Timer(timeout_s, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self.connection is not None:
            self.connection.close()

    def _cut(self) -> None:
        self.expired = True
        if self.connection is not None and self.connection.sock is not None:
            with contextlib.suppress(OSError):
                # Shut down the plain socket: the TLS socket's shutdown would race with the reading thread.
                socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)


class HttpNotifier:
    """Delivers to one URL."""

    def __init__(self, config: HttpConfig, clock: Clock, section: str) -> None:
        self._config = config
        self._clock = clock
        self._section = section
        self._url: SplitResult | None = None
        self._port = 0
        self._allow: tuple[guard.Network, ...] = ()
        self._context: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.name!r})"

    def start(self) -> None:
        where = self._section
        if bool(self._config.url) == bool(self._config.url_file):
            raise ConfigError(where, "needs exactly one of url and url_file", "write one of them")
        if not 0 < self._config.timeout_s <= 60:
            raise ConfigError(f"{where} timeout_s", "is no time limit for a webhook", "use more than 0 and at most 60 seconds")
        text = self._config.url or read_secret(self._config.url_file, f"{where} url_file").strip()
        self._url, self._port = _parse(text, where)
        self._allow = guard.parse_networks(self._config.allow, where)
        self._context = ssl.create_default_context() if self._url.scheme == "https" else None

    def deliver(self, delivery: Delivery) -> DeliveryResult:
        if self._url is None:
            return self._failed(delivery, "not started")
        host = self._url.hostname or ""
        try:
            addresses = guard.resolve(host, self._port, self._allow)
        except (OSError, UnicodeError):
            return self._failed(delivery, "the host name cannot be resolved")
        if not addresses:
            return self._failed(delivery, "the address is not permitted", outcome=Outcome.REFUSED)
        with _Deadline(self._config.timeout_s) as deadline:
            failure = self._connect(deadline, host, addresses[:ADDRESSES_MAX])
            if failure or deadline.connection is None:
                return self._failed(delivery, failure)
            return self._exchange(deadline, deadline.connection, delivery)

    def _connect(self, deadline: _Deadline, host: str, addresses: list[str]) -> str:
        """Connect to the first address that answers; return the error, empty on success."""
        for address in addresses:
            connection = _Pinned(host, self._port, address, self._config.timeout_s, self._context)
            deadline.connection = connection
            try:
                connection.connect()
                return ""
            except ssl.SSLCertVerificationError:
                return "the certificate is not accepted"
            except OSError as error:
                connection.close()
                if deadline.expired or isinstance(error, TimeoutError):
                    return "no connection in time"
        return "no connection"

    def _exchange(self, deadline: _Deadline, connection: _Pinned, delivery: Delivery) -> DeliveryResult:
        body = delivery.payload.encode()
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "weft", "Connection": "close"}
            connection.request("POST", self._target(), body, headers | self.headers(delivery, body))
            response = connection.getresponse()
            # The status line decides; errors while reading the body do not matter.
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read(RESPONSE_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            late = deadline.expired or isinstance(error, TimeoutError)
            return self._failed(delivery, "no answer in time" if late else "the connection broke", certain=False)
        return self._result_of(delivery, response.status, response.getheader("Retry-After"))

    def _result_of(self, delivery: Delivery, status: int, retry_after: str | None) -> DeliveryResult:
        if 200 <= status < 300:
            return DeliveryResult(delivery.id, delivery.endpoint, Outcome.DELIVERED)
        error = f"HTTP {status}"
        if status == 410:
            return self._failed(delivery, f"{error}: the endpoint is gone", outcome=Outcome.GONE)
        if status == 429 or status >= 500:
            return self._failed(delivery, error, retry_after_s=self._seconds(retry_after))
        if 300 <= status < 400:
            error = f"{error}: redirects are not followed"
        return self._failed(delivery, error, outcome=Outcome.REFUSED)

    def _failed(
        self, delivery: Delivery, error: str, *, outcome: Outcome = Outcome.RETRY, certain: bool = True, retry_after_s: float | None = None
    ) -> DeliveryResult:
        return DeliveryResult(delivery.id, delivery.endpoint, outcome, certain, retry_after_s, error)

    def _seconds(self, retry_after: str | None) -> float | None:
        """Return the wait in ``Retry-After``, given as seconds or as a date, bounded; ``None`` if it is invalid."""
        if retry_after is None:
            return None
        text = retry_after.strip()
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), RETRY_AFTER_S_MAX)
        try:
            at_s = email.utils.parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError, TypeError):
            return None
        return min(max(0.0, at_s - self._clock.now_ns() / NS_PER_S), RETRY_AFTER_S_MAX)

    def _target(self) -> str:
        assert self._url is not None
        return (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")

    def headers(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        """Return the headers of this kind of receiver."""
        return {}


class Webhook(HttpNotifier):
    """Delivers Alertmanager's payload, signed where the configuration names a file of secrets."""

    def __init__(self, config: WebhookConfig, clock: Clock, section: str) -> None:
        super().__init__(config, clock, section)
        self._secret_file = config.secret_file
        self._secrets: tuple[bytes, ...] = ()

    def start(self) -> None:
        super().start()
        if self._secret_file:
            self._secrets = parse_secrets(read_secret(self._secret_file, f"{self._section} secret_file"), self._secret_file)

    def headers(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        timestamp_s = self._clock.now_ns() // NS_PER_S
        headers = {"webhook-id": delivery.webhook_id, "webhook-timestamp": str(timestamp_s)}
        if self._secrets:
            headers["webhook-signature"] = sign(self._secrets, delivery.webhook_id, timestamp_s, body)
        return headers


WEBHOOK = Kind("Alertmanager's version 4 JSON by HTTP POST, signed if configured", WebhookConfig, payload.render, Webhook)


def read_secret(path: str, where: str) -> str:
    """Return the text of a file that holds a secret. The ``ConfigError`` that it raises does not repeat the content."""
    try:
        with Path(path).open("rb") as file:
            return file.read(SECRET_FILE_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(where, f"{path} cannot be read", "check that it exists and is readable text") from error


def _parse(text: str, where: str) -> tuple[SplitResult, int]:
    """Return the URL and its port. Errors do not repeat the URL: it may be the secret."""
    hint = "write it as in https://host:port/path, without user, password or fragment"
    try:
        url = urlsplit(text)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        # The text of the cause would quote the URL.
        raise ConfigError(where, "the url cannot be read", hint) from None
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None or url.fragment:
        raise ConfigError(where, "the url cannot be used", hint)
    if not text.isascii() or any(character <= " " or character == "\x7f" for character in text):
        raise ConfigError(where, "the url holds a blank or a character that must be escaped", hint)
    return url, port
