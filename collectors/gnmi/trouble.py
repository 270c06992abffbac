"""What went wrong with a target, in plain words with the mend, and said at a bounded rate."""

import logging
from dataclasses import dataclass

from ...pipeline.clock import NS_PER_S, Clock
from ...pipeline.errors import WeftError
from .config import Dial

# The same trouble of the same target is said again after this time at the earliest, if it still is.
SAY_EVERY_S = 300.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A reason in one word, what is the matter, and what to do."""

    reason: str
    problem: str
    hint: str


# What grpc's details hold, in order of who comes first; `{...}` are fields of a Dial.
_BY_DETAILS = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        Trouble(
            "certificate_unknown",
            "its certificate is not valid, or not signed by {who}",
            "name the certificate of who signed it as ca_file, and see that it has not expired",
        ),
    ),
    (
        "Hostname Verification",
        Trouble("certificate_name", "its certificate is for another name", "set server_name to a name that stands in its certificate"),
    ),
    (
        "WRONG_VERSION_NUMBER",
        Trouble("no_tls", "it does not speak TLS there", "use the port that does, or set insecure = true: everything in clear text"),
    ),
    (
        "security handshaker",
        Trouble("certificate_file", "a file of certificates is not in PEM form", "correct ca_file, cert_file and key_file"),
    ),
    ("Connection refused", Trouble("refused", "nothing listens at {address}", "see whether gNMI is on, and at which port")),
    ("resolving", Trouble("no_such_host", "there is no host of that name", "correct the address")),
    ("larger than max", Trouble("message_large", "it sent a message above message_bytes_max", "raise message_bytes_max")),
)
_CLOSED = {
    True: Trouble("closed", "it closed the connection at once", "if it speaks TLS, take insecure = true out"),
    False: Trouble("closed", "it closed the connection", "if it wants a certificate of its clients, give cert_file and key_file"),
}
_BY_CODE = {
    "UNAUTHENTICATED": Trouble("unauthenticated", "it does not know this user or password", "correct username and password_file"),
    "PERMISSION_DENIED": Trouble("denied", "this user may not subscribe", "give the user that right at the device"),
    "DEADLINE_EXCEEDED": Trouble("timeout", "it does not answer", "see whether a firewall stands between"),
}


def explain(dial: Dial, code: str, details: str) -> Trouble:
    """Return what the status of a call means for this target: the name of its code, and its details."""
    known = next((trouble for part, trouble in _BY_DETAILS if part in details), None)
    if known is None and "Socket closed" in details:
        known = _CLOSED[dial.insecure]
    known = known or _BY_CODE.get(code) or Trouble("unavailable", details or code, "it is tried again")
    who = f"whom {dial.ca_file} names" if dial.ca_file else "anyone whom this system trusts"
    return Trouble(known.reason, known.problem.replace("{who}", who).replace("{address}", dial.address), known.hint)


def own(error: Exception) -> Trouble:
    """Return what an error on this side means."""
    problem, _, hint = str(error).partition("; ")
    return Trouble(
        "stream_ended" if isinstance(error, WeftError) else "system", problem or type(error).__name__, hint or "it is tried again"
    )


class Complaints:
    """Logs the troubles of targets: each kind at once, and then at most every ``SAY_EVERY_S``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[tuple[str, str, str], int] = {}

    def say(self, target: str, trouble: Trouble) -> None:
        """Log a trouble of a target unless it was said of late."""
        key = (target, trouble.reason, trouble.problem)
        now = self._clock.monotonic_ns()
        if now - self._said.get(key, -(10**18)) >= SAY_EVERY_S * NS_PER_S:
            # What was said long ago is said again, so it need not be kept.
            self._said = {one: at for one, at in self._said.items() if now - at < SAY_EVERY_S * NS_PER_S}
            self._said[key] = now
            _log.warning("gnmi: %s: %s; %s", target, trouble.problem, trouble.hint)
