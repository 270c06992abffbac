"""The fabric as a picture: where, among all racks, rails and switches, the pressure is."""

import streamlit as st

from .. import charts_fabric, queries_fabric
from ..parts import Visit, age_badges, fetch, figure, nothing, number, number_column, percent, plain, ratio_column, table, tiles
from ..queries_fabric import MEASURES
from ..sql import Span

TITLE = "Fabric"
ICON = ":material/hub:"
STORED = True
LIVE = True

ALL = "all racks"

NO_FABRIC = (
    "What is connected to what is not known yet, so there is no fabric to draw. Name a file with your topology (containerlab, a SONiC "
    "configuration, NetBox or a table) in weft.toml under `[collect.inventory]`, let switches tell their LLDP neighbours "
    "(`[collect.gnmi]`), or replay such a file with `weft replay FILE`."
)
NO_DATA = "The fabric is known, and nothing of it has been heard yet: `weft up` starts the collectors that weft.toml names."


def render(visit: Visit) -> None:
    """Render the page."""
    span = visit.span(queries_fabric.bounds())
    age_badges(visit, span.to_ns if span else None)
    shape = visit.board.row(queries_fabric.shape())
    if not shape.get("links"):
        nothing(NO_FABRIC)
        return
    if span is None:
        nothing(NO_DATA)
        return
    measure, rack = _choose(visit)
    _tiles(visit, span, shape)
    hosts = shape.get("hosts")
    by_rack = not rack and isinstance(hosts, int) and hosts > queries_fabric.HOSTS_MAX
    left, right = st.columns([5, 3])
    with left:
        _picture(visit, span, measure, rack, by_rack)
    with right:
        _worst(visit, span, measure, rack)


def _choose(visit: Visit) -> tuple[str, str]:
    """Show the choice of measure and rack, and return it; no rack in particular is empty."""
    known = fetch(visit, queries_fabric.racks())
    racks = sorted(known["rack"].to_list(), key=charts_fabric.natural) if known is not None else []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = st.segmented_control(
            "Pressure is",
            list(MEASURES),
            default="paused",
            required=True,
            key="pressure",
            bind="query-params",
            help="  \n".join(f"**{name}**: {one.doc}" for name, one in MEASURES.items()),
        )
        rack = st.selectbox("Rack", [ALL, *racks], key="rack", bind="query-params", width=180, disabled=len(racks) < 2)
    return measure or "paused", "" if rack in (ALL, None) else str(rack)


def _tiles(visit: Visit, span: Span, shape: dict[str, object]) -> None:
    gpus = visit.board.row(queries_fabric.gpus(span))
    tiles(
        [
            ("Hosts", number(shape.get("hosts")), f"in {number(shape.get('racks'))} racks"),
            ("Switches", number(shape.get("switches")), "leaves, spines and what is above them"),
            ("Links", number(shape.get("links")), "links that the inventory or the devices themselves tell"),
            ("Jobs", number(shape.get("jobs")), "jobs of which somebody says where they run"),
            ("GPUs busy", percent(gpus.get("sm_active_ratio")), f"mean over {number(gpus.get('gpus'))} GPUs that tell how busy they are"),
            ("Busiest NVLink", percent(gpus.get("nvlink_ratio")), "largest utilisation of a GPU's scale-up links in a window"),
        ]
    )


def _picture(visit: Visit, span: Span, measure: str, rack: str, by_rack: bool) -> None:
    chosen = MEASURES[measure]
    event = figure(
        visit,
        "Where the pressure is" + (f": rack {plain(rack)}" if rack else ""),
        queries_fabric.picture(span, measure, rack, by_rack),
        lambda frame: charts_fabric.fabric(
            frame,
            chosen.title,
            form=chosen.form,
            logarithmic=chosen.logarithmic,
            dark=visit.dark,
            columns="rack" if by_rack else "host",
        ),
        key="fabric",
        describe=f"The fabric: switches above, hosts by rack below with a row for each rail; colour is the {chosen.title}",
        empty=NO_FABRIC,
        note=f"{chosen.doc[0].upper()}{chosen.doc[1:]}. A place is as bad as its worst link. Click it to look into "
        + ("the rack." if by_rack else "that link."),
        selects=True,
    )
    st.caption("Ringed: the worst place. Dashed: nothing is told of it. A click leads to the port; the bars at the foot are jobs.")
    cells = event.selection.get("cell", []) if event else []
    if cells:
        cell = cells[0]
        if by_rack and cell["tier"] == "host":
            visit.go("fabric", {"pressure": measure, "rack": cell["column"]})
        visit.go(chosen.page, {"device": cell["device"]} | ({"port": cell["port"]} if chosen.of_link and cell["port"] else {}))


def _worst(visit: Visit, span: Span, measure: str, rack: str) -> None:
    chosen = MEASURES[measure]
    label = measure
    columns = {
        "value": ratio_column(label, chosen.doc, bar=True)
        if chosen.form.endswith("%")
        else number_column(label, chosen.doc, {",.0f": "%.0f", ",.1f": "%.1f µs", ".1e": "%.1e"}[chosen.form]),
        "device": st.column_config.TextColumn("device", help="the end of the link that tells it"),
        "port": st.column_config.TextColumn("port"),
        "peer_device": st.column_config.TextColumn("other end"),
        "rail": st.column_config.TextColumn("rail", width="small"),
        **{
            name: st.column_config.LinkColumn(name, display_text="open", width="small", help=f"the page {name.capitalize()} of this end")
            for name in ("congestion", "bursts", "latency")
        },
    }
    table(
        visit,
        "The worst links",
        queries_fabric.worst(span, measure, rack),
        columns,
        key="worst",
        empty=f"Nobody tells this of any link in this range: {plain(chosen.doc)}.",
        note="Each link once, from the end that tells it.",
        height=560,
    )
