"""Signs webhooks by Standard Webhooks 1.0.0, so that a receiver can verify the sender.

The signature is HMAC-SHA256 over ``{id}.{timestamp}.{body}``. Several secrets give several signatures in one header, so the secret can be
rotated without rejected messages.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from ...pipeline.errors import ConfigError

SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
_PREFIX = "whsec_"


def parse_secrets(text: str, where: str) -> tuple[bytes, ...]:
    """Return the secrets of a file, one per line as ``whsec_`` and base64; an error names the line, never the secret."""
    secrets = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip()
        if not word or word.startswith("#"):
            continue
        try:
            secret = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not word.startswith(_PREFIX) or not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            hint = f"write whsec_ and the base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes"
            raise ConfigError(f"{where}:{number}", "is not a webhook secret", hint)
        secrets.append(secret)
    if not secrets:
        raise ConfigError(where, "holds no webhook secret", "write one per line, as whsec_ and base64")
    return tuple(secrets)


def sign(secrets: Sequence[bytes], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``: one ``v1,...`` per secret."""
    assert "." not in webhook_id
    content = f"{webhook_id}.{timestamp_s}.".encode() + body
    return " ".join("v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode() for secret in secrets)
