"""The pages, in the order of the navigation; a name is a folder here and the page's path in the URL.

The module ``page`` of the folder declares ``TITLE``, ``ICON``, whether it reads a store (``STORED``), whether it refreshes
(``LIVE``), and ``render``.
"""

from importlib import import_module
from types import ModuleType

_NAMES = (
    "overview",
    "fabric",
    "bursts",
    "congestion",
    "latency",
    "pipeline",
    "sql",
    "docs",
)

PAGES: dict[str, ModuleType] = {name: import_module(f".{name}.page", __name__) for name in _NAMES}
