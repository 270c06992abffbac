"""The pages, in the order of the navigation: name in the URL -> module with ``TITLE``, ``ICON``, ``render``, whether it needs a store
(``STORED``) and whether it refreshes (``LIVE``)."""

from types import ModuleType

from . import bursts, congestion, docs, fabric, latency, overview, pipeline, sql

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
