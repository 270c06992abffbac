"""Problems of a target in plain words with a hint, logged at a bounded rate."""

import logging
from dataclasses import dataclass

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import WeftError
from .config import Dial

# A problem that persists is logged again after this time at the earliest.
LOG_EVERY_S = 300.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A reason in one word, the problem, and what to do."""

    reason: str
    problem: str
    hint: str


# By text in grpc's details, the first match wins; `{...}` are filled in.
_BY_DETAILS = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        Trouble(
            "certificate_unknown",
            "its certificate is not valid, or not signed by {authority}",
            "set ca_file to the certificate of its authority, and check that its own has not expired",
        ),
    ),
    (
        "Hostname Verification",
        Trouble("certificate_name", "its certificate is for another name", "set server_name to a name in its certificate"),
    ),
    (
        "WRONG_VERSION_NUMBER",
        Trouble("no_tls", "it does not speak TLS there", "use its TLS port, or set insecure = true: everything is sent in clear text"),
    ),
    (
        "security handshaker",
        Trouble("certificate_file", "a file of certificates is not in PEM form", "correct ca_file, cert_file and key_file"),
    ),
    ("Connection refused", Trouble("refused", "nothing listens at {address}", "check whether gNMI is on, and at which port")),
    ("resolving", Trouble("no_such_host", "there is no host of that name", "correct the address")),
    ("larger than max", Trouble("message_large", "it sent a message above message_bytes_max", "raise message_bytes_max")),
)
_CLOSED = {
    True: Trouble("closed", "it closed the connection at once", "if it speaks TLS, remove insecure = true"),
    False: Trouble("closed", "it closed the connection", "if it requires client certificates, set cert_file and key_file"),
}
_BY_CODE = {
    "UNAUTHENTICATED": Trouble("unauthenticated", "it does not know this user or password", "correct username and password_file"),
    "PERMISSION_DENIED": Trouble("denied", "this user may not subscribe", "grant the user this right on the device"),
    "DEADLINE_EXCEEDED": Trouble("timeout", "it does not answer", "check for a firewall in between"),
}


def explain(dial: Dial, code: str, details: str) -> Trouble:
    """Return the problem behind the status of a call, given its code and details."""
    known = next((trouble for part, trouble in _BY_DETAILS if part in details), None)
    if known is None and "Socket closed" in details:
        known = _CLOSED[dial.insecure]
    known = known or _BY_CODE.get(code) or Trouble("unavailable", details or code, "it is dialled again")
    authority = f"an authority in {dial.ca_file}" if dial.ca_file else "an authority that this system trusts"
    return Trouble(known.reason, known.problem.replace("{authority}", authority).replace("{address}", dial.address), known.hint)


def own(error: Exception) -> Trouble:
    """Return the problem behind an error on this side."""
    problem, _, hint = str(error).partition("; ")
    return Trouble(
        "stream_ended" if isinstance(error, WeftError) else "system", problem or type(error).__name__, hint or "it is dialled again"
    )


class Complaints:
    """Logs problems of targets: each at once, then at most every ``LOG_EVERY_S``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str, str], int] = {}

    def log(self, target: str, trouble: Trouble) -> None:
        """Log a problem of a target unless it was logged recently."""
        key = (target, trouble.reason, trouble.problem)
        now = self._clock.monotonic_ns()
        if now - self._logged.get(key, -(10**18)) >= LOG_EVERY_S * NS_PER_S:
            self._logged = {one: at for one, at in self._logged.items() if now - at < LOG_EVERY_S * NS_PER_S}
            self._logged[key] = now
            _log.warning("gnmi: %s: %s; %s", target, trouble.problem, trouble.hint)
