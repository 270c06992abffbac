"""The views that users query: metrics as expressions over stored statistics, one line per column.

``VIEWS`` has the formula of every metric; the views at every resolution, the docs page and the dashboard's labels derive
from it. A new ratio over stored statistics is one new line and no migration.
"""

from ...pipeline.tables.field import RESOLUTIONS_NS
from ...pipeline.tables.states import STATES
from .base import Column, View, conditional_name
from .fabric import GROUPS, LATENCY, READINGS, ROCE
from .hosts import GPUS, NICS, NVLINKS
from .inventory import DEVICES, INVENTORY, JOBS, LINKS
from .ports import BLOCKS, HURST_SCALES, PORTS, UNIT_BYTES
from .queues import DROPS, QUEUES
from .records import BURSTS, EVENTS, GAPS, PIPELINE, QUALITY, SAMPLES

__all__ = ["BLOCKS", "CONDITIONAL_SUMS", "HURST_SCALES", "PORTS", "UNIT_BYTES", "VIEWS", "Column", "View", "conditional_name", "statements"]

VIEWS: tuple[View, ...] = (
    PORTS,
    QUEUES,
    DROPS,
    NICS,
    NVLINKS,
    GPUS,
    LATENCY,
    ROCE,
    GROUPS,
    READINGS,
    QUALITY,
    BURSTS,
    SAMPLES,
    INVENTORY,
    DEVICES,
    LINKS,
    JOBS,
    GAPS,
    EVENTS,
    PIPELINE,
)

# The pairs (value, known) of each state table whose roll-ups also sum ``value`` over the windows in which ``known`` is known.
CONDITIONAL_SUMS: dict[str, tuple[tuple[str, str], ...]] = {
    table: tuple(sorted(set().union(*(view.conditional_sums().get(table, set()) for view in VIEWS)))) for table in STATES
}


def statements() -> list[str]:
    """Return the statements that create every view at every resolution."""
    return [view.sql(resolution) for view in VIEWS for resolution in (RESOLUTIONS_NS if view.resolutions else ("",))]
