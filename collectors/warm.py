"""Compiles the kernels of the collectors: ``python -m weft.collectors.warm [NAME ...]``, before a first start.

A kernel is compiled for the types of its arguments, so each collector decodes a few built-in bytes as it decodes a live stream.
"""

import sys
from collections.abc import Sequence

from . import COLLECTORS


def warm(names: Sequence[str] = ()) -> None:
    """Compile the kernels of the collectors named, of all of them where none is."""
    for name, collector in COLLECTORS.items():
        if collector.warm is not None and (not names or name in names):
            collector.warm()


if __name__ == "__main__":
    warm(sys.argv[1:])
