"""The identity of an alert: a hash of its labels and nothing else.

FNV-1a with 64 bits over the labels sorted by name, each as name, 0xff, value, 0xff (0xff occurs in no UTF-8 text, so two
different label sets never give the same bytes). It is the hash Prometheus and Alertmanager use, so that an alert
has the same fingerprint here as in an Alertmanager that receives it.
"""

from collections.abc import Mapping
from functools import lru_cache

_OFFSET = 14695981039346656037
_PRIME = 1099511628211
_MASK = (1 << 64) - 1

# The same alerts come in every window; an entry takes some 500 bytes.
_CACHED_MAX = 16_384


def fingerprint(labels: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits that depend on ``labels`` only, whatever their order."""
    return _hash(tuple(sorted(labels.items())))


@lru_cache(maxsize=_CACHED_MAX)
def _hash(labels: tuple[tuple[str, str], ...]) -> str:
    text = b"".join(name.encode() + b"\xff" + value.encode() + b"\xff" for name, value in labels)
    value = _OFFSET
    for byte in text:
        value = ((value ^ byte) * _PRIME) & _MASK
    return f"{value:016x}"
