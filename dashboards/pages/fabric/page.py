"""The fabric as a picture: where among racks, rails and switches the pressure is."""

import streamlit as st

from ... import charts
from ...parts import Visit, beside, choose, fetch, figure, nothing, number, opened, percent, plain, table, tiles
from ...sql import WORDS, Span
from . import charts as charts_fabric
from . import queries
from .queries import MEASURES

TITLE = "Fabric"
ICON = ":material/hub:"
STORED = True
LIVE = True

ALL = "all racks"

# Lines of the chart over time.
SERIES = 6

# The format of the table for each format of the legend.
_FORMS = {".0%": "percent", ".1%": "percent", ".2%": "percent", ",.0f": "%.1f", ",.1f": "%.1f µs", ".1e": "scientific"}

NO_FABRIC = (
    "The links are not known yet, so there is no fabric to draw. Name topology files under `[collect.inventory]` in "
    "weft.toml (SONiC, containerlab, or a table of links), read the neighbours from switches (`[collect.gnmi]`), or replay such a file "
    "with `weft replay FILE`. `weft demo` shows a whole fabric."
)
NO_DATA = "The fabric is known and has no data yet: `weft up` starts the collectors that weft.toml names."


def render(visit: Visit) -> None:
    """Render the page."""
    span = opened(visit, queries.bounds(), "")
    shape = visit.board.row(queries.shape())
    if span is None or not shape.get("links"):
        nothing(NO_DATA if shape.get("links") else NO_FABRIC)
        return
    measure, rack = _choose(visit)
    _tiles(visit, span, shape)
    hosts = shape.get("hosts")
    by_rack = not rack and isinstance(hosts, int) and hosts > queries.HOSTS_MAX
    beside(lambda: _picture(visit, span, measure, rack, by_rack), lambda: _lists(visit, span, measure, rack))


def _lists(visit: Visit, span: Span, measure: str, rack: str) -> None:
    _worst(visit, span, measure, rack)
    _over_time(visit, span, measure, rack)


def _choose(visit: Visit) -> tuple[str, str]:
    """Show the choice of measure and rack, and return it; no rack in particular is empty."""
    known = fetch(visit, queries.racks())
    racks = sorted(known["rack"].to_list(), key=charts_fabric.natural) if known is not None else []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        docs = "  \n".join(f"**{name}**: {one.doc}" for name, one in MEASURES.items())
        measure = choose("Pressure is", MEASURES, "pressure", docs)
        rack = st.selectbox("Rack", [ALL, *racks], key="rack", bind="query-params", width=180, disabled=len(racks) < 2)
    return measure, "" if rack in (ALL, None) else str(rack)


def _tiles(visit: Visit, span: Span, shape: dict[str, object]) -> None:
    gpus = visit.board.row(queries.gpus(span))
    tiles(
        [
            ("Hosts", number(shape.get("hosts")), f"in {number(shape.get('racks'))} racks"),
            ("Switches", number(shape.get("switches")), "leaves, spines and what is above them"),
            ("Links", number(shape.get("links")), "links in the inventory or reported by the devices"),
            ("Jobs", number(shape.get("jobs")), "jobs whose hosts are known"),
            ("GPUs busy", percent(gpus.get("sm_active_ratio")), f"mean over {number(gpus.get('gpus'))} GPUs that report it"),
            ("Busiest NVLink", percent(gpus.get("nvlink_ratio")), "largest utilisation of a GPU's scale-up links in a window"),
        ]
    )


def _picture(visit: Visit, span: Span, measure: str, rack: str, by_rack: bool) -> None:
    chosen = MEASURES[measure]
    scale = charts_fabric.Scale(chosen.title, chosen.form, chosen.full, chosen.log_from)
    cell = figure(
        visit,
        "Where the pressure is" + (f": rack {plain(rack)}" if rack else ""),
        queries.picture(span, measure, rack, by_rack),
        lambda frame: charts_fabric.fabric(frame, scale, dark=visit.dark, columns="rack" if by_rack else "host"),
        key="fabric",
        describe=f"The fabric: switches above, hosts by rack below with a row for each rail; colour is the {chosen.title}",
        empty=NO_FABRIC,
        note=f"{chosen.doc[0].upper()}{chosen.doc[1:]}. A place has the value of its worst link. Click it to open "
        + ("the rack." if by_rack else "that link."),
        selects=True,
    )
    leads = "its hosts" if by_rack else "the port; the bars at the foot are jobs"
    st.caption(f"Ringed: the worst place. Dashed: no data. A click opens {leads}.")
    if cell:
        if by_rack and cell["tier"] == "host":
            visit.go("fabric", {"pressure": measure, "rack": cell["column"]})
        visit.go(chosen.page, {"device": cell["device"]} | ({"port": cell["port"]} if chosen.of_link and cell["port"] else {}))


def _worst(visit: Visit, span: Span, measure: str, rack: str) -> None:
    chosen = MEASURES[measure]
    sql = queries.worst(span, measure, rack)
    frame = fetch(visit, sql)
    top = frame["value"].max() if frame is not None and frame.height else 1
    columns = {
        "value": st.column_config.ProgressColumn(
            measure,
            help=chosen.doc,
            format=_FORMS[chosen.form],
            min_value=0,
            max_value=float(top) if isinstance(top, int | float) and top else 1.0,
        ),
        "end": st.column_config.TextColumn("link", width=130, help="the end that measured it"),
        "peer_device": st.column_config.TextColumn("other end", width=80),
        "rail": st.column_config.TextColumn("rail", width=30),
        **{
            name: st.column_config.LinkColumn(
                name.capitalize(), display_text="open", width=width, help=f"the page {name.capitalize()} of this end"
            )
            for name, width in (("congestion", 88), ("bursts", 60), ("latency", 66))
        },
    }
    table(
        visit,
        "The worst links",
        sql,
        columns,
        key="worst",
        empty="Every link that measures this is at rest in this range.",
        good=True,
        note="Each link once, at the end that measured it; links at rest are left out.",
        height=283,
    )


def _over_time(visit: Visit, span: Span, measure: str, rack: str) -> None:
    chosen = MEASURES[measure]
    figure(
        visit,
        f"The {SERIES} worst over time, in each {WORDS[span.resolution(300)]}",
        queries.over_time(span, measure, rack, SERIES),
        lambda frame: charts.lines(
            frame, chosen.title, dark=visit.dark, percent=chosen.form.endswith("%"), log=chosen.log_from > 0, columns=3
        ),
        key="over_time",
        describe=f"Lines over time: {chosen.title} of the worst places",
        note="When it began, and whether it comes and goes.",
        empty="Every link that measures this is at rest in this range.",
        good=True,
    )
