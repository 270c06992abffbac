"""The pages, in the order of the navigation: name in the URL -> module with ``TITLE``, ``ICON``, ``render``, whether it needs a store
(``STORED``) and whether it refreshes (``LIVE``)."""

from types import ModuleType

from .bursts import page as bursts
from .congestion import page as congestion
from .docs import page as docs
from .fabric import page as fabric
from .latency import page as latency
from .overview import page as overview
from .pipeline import page as pipeline
from .sql import page as sql

VIEWS: dict[str, ModuleType] = {
    "overview": overview,
    "fabric": fabric,
    "bursts": bursts,
    "congestion": congestion,
    "latency": latency,
    "pipeline": pipeline,
    "sql": sql,
    "docs": docs,
}
