"""The fabric as a picture: switches above, hosts by rack below, a row for each rail, jobs at the foot.

Places are laid out here, in pixels from the top and in columns from the left: a column is a host or, of many, a rack.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import altair as alt
import polars as pl

from ... import theme

# From the top down; tiers not in this list are drawn above the leaves.
_TIERS = ("core", "spine", "aggregation")
_LEAF = "leaf"

_SWITCH, _SWITCH_GAP, _LINES = 26, 14, 46
_GRID_HEIGHT, _CELL_MIN, _CELL_MAX = 280, 12, 34
_RACK_LABEL, _JOB, _JOB_GAP = 24, 22, 10
# Letters in a line of the narrowest picture.
_LETTERS = 80
# More equally bad places than this are no outliers.
_RINGS_MAX = 3
# The height of the legend and the host names.
_LEGEND, _NAMES = 70, 75
# Between two racks, in columns.
_RACK_GAP = 0.5

# Labels in a row.
_NAMES_MAX, _RACKS_MAX, _SWITCHES_MAX = 40, 16, 16

_PLACE = {"name": pl.String, "x": pl.Float64, "x2": pl.Float64, "y": pl.Float64, "y2": pl.Float64}


@dataclass(frozen=True, slots=True)
class Scale:
    """The colour scale: title, number format, the smallest value of full colour, and where a logarithmic scale begins."""

    title: str
    form: str
    full: float
    log_from: float = 0.0


@dataclass(frozen=True, slots=True)
class _Grid:
    """The columns: left edge by name, and the first and last edge of each rack."""

    left: dict[str, float]
    racks: list[tuple[str, float, float]]
    width: float


def fabric(frame: pl.DataFrame, scale: Scale, *, dark: bool, columns: str = "host") -> alt.TopLevelMixin:
    """Draw places, rows of ``tier``, ``name``, ``rail``, ``value`` and ``worst`` (the link's end to look at); a click selects ``cell``.

    A place with no value is hollow, the worst one ringed.
    """
    hosts = frame.filter(tier="host")
    grid = _columns(hosts)
    pairs = frame.filter(pl.col("peer").is_not_null())
    switches, top, ticks = _switches(
        frame.filter(pl.col("tier") != "host", pl.col("peer").is_null()), grid.width, _LINES if pairs.height else _SWITCH_GAP
    )
    cells, bottom, rails = _cells(hosts, grid, top)
    ticks |= rails
    jobs, foot = _jobs(hosts, grid, bottom)
    if jobs.height:
        ticks[(bottom + _JOB_GAP + foot) / 2] = "jobs"
    places = pl.concat([switches, cells], how="diagonal_relaxed")
    layers = _PictureLayers(places, _lines(pairs, switches), jobs, _labels(grid, top, columns), _names(switches))
    if columns == "rack":
        names = {(x + x2) / 2: name for name, x, x2 in grid.racks[:: -(-len(grid.racks) // _RACKS_MAX) or 1]}
    else:
        names = {x + 0.5: name for name, x in grid.left.items()} if len(grid.left) <= _NAMES_MAX else {}
    return _drawn(layers, (grid.width, foot), (names, ticks), _Colours(scale, _largest(places), dark))


@dataclass(frozen=True, slots=True)
class _PictureLayers:
    places: pl.DataFrame
    lines: pl.DataFrame
    jobs: pl.DataFrame
    racks: pl.DataFrame
    names: pl.DataFrame


@dataclass(frozen=True, slots=True)
class _Colours:
    scale: Scale
    largest: float
    dark: bool

    @property
    def _ends(self) -> tuple[float, float]:
        return self.scale.log_from, max(self.scale.full, self.largest)

    def is_deep(self, values: pl.Series) -> pl.Series:
        """Return the condition for values on whose colour the theme's ink is not readable."""
        low, high = self._ends
        share = (values / low).log() / math.log(high / low) if low else values / high
        return (share > 0.45).fill_null(False)

    def encoding(self) -> alt.Color:
        """Return the scale with its legend."""
        scale = alt.Scale(
            type="log" if self.scale.log_from else "linear",
            domain=list(self._ends),
            range=theme.pressure(self.dark),
            interpolate="rgb",
            clamp=True,
        )
        legend = alt.Legend(
            title=self.scale.title, format=self.scale.form, type="gradient", orient="top", gradientLength=280, titleLimit=400, tickCount=4
        )
        return alt.Color("value:Q", scale=scale, legend=legend)


def natural(name: str | None) -> tuple[tuple[int, str], ...]:
    """Return a sort key of names that orders the numbers in them by value."""
    return tuple((int(digits), "") if digits else (-1, word) for digits, word in re.findall(r"(\d+)|(\D+)", name or ""))


def _columns(hosts: pl.DataFrame) -> _Grid:
    known = hosts.select("name", "stand", "is_rack").unique("name").rows() if hosts.height else []
    known.sort(key=lambda row: (natural(row[1]), natural(row[0])))
    left, racks, at = {}, [], 0.0
    for stand, members in groupby(known, key=lambda row: row[1]):
        names = list(members)
        label = f"rack {stand}" if names[0][2] and not str(stand).lower().startswith("rack") else str(stand)
        left |= {name: at + k for k, (name, _, _) in enumerate(names)}
        racks.append((label, at, at + len(names)))
        at += len(names) + _RACK_GAP * (len(names) > 1 or len(known) <= _NAMES_MAX)
    return _Grid(left, racks, max(1.0, racks[-1][2] if racks else 1.0))


def _switches(frame: pl.DataFrame, width: float, gap: float) -> tuple[pl.DataFrame, float, dict[float, str]]:
    """Lay each tier out over the whole width; return the places, their lower end, and the label of each row."""
    tiers = sorted(frame["tier"].unique().to_list(), key=lambda tier: (tier == _LEAF, (*_TIERS, tier).index(tier)))
    rows, ticks, y = [], {}, 0.0
    for tier in tiers:
        mine = sorted(frame.filter(tier=tier).iter_rows(named=True), key=lambda row: natural(row["name"]))
        step = width / len(mine)
        for k, row in enumerate(mine):
            edges = {"x": k * step + 0.07 * step, "x2": (k + 1) * step - 0.07 * step, "y": y, "y2": y + _SWITCH}
            rows.append(_place(row, row["name"], edges, count=len(mine)))
        ticks[y + _SWITCH / 2] = tier
        y += _SWITCH + (_SWITCH_GAP if tier == tiers[-1] else gap)
    return _framed(rows), y, ticks


def _cells(hosts: pl.DataFrame, grid: _Grid, top: float) -> tuple[pl.DataFrame, float, dict[float, str]]:
    rails = sorted(hosts["rail"].unique().to_list() if hosts.height else [], key=natural)
    height = min(_CELL_MAX, max(_CELL_MIN, _GRID_HEIGHT / max(1, len(rails))))
    y = top + _RACK_LABEL
    row_of = {rail: y + k * height for k, rail in enumerate(rails)}
    inset = 0.06 if len(grid.left) <= 2 * _NAMES_MAX else 0.02
    rows = []
    for row in hosts.iter_rows(named=True):
        x, at = grid.left[row["name"]], row_of[row["rail"]]
        edges = {"x": x + inset, "x2": x + 1 - inset, "y": at + 1, "y2": at + height - 1}
        rows.append(_place(row, f"{row['name']} · rail {row['rail']}", edges))
    labels = {at + height / 2: f"rail {rail}" if str(rail).isdigit() else str(rail) for rail, at in row_of.items()}
    return _framed(rows), y + height * len(rails), labels


def _place(row: dict, name: str, edges: dict[str, float], **more: object) -> dict:
    worst = row["worst"]
    ends = (worst["device"], worst["port"]), (worst["to_device"], worst["to_port"])
    worst_end, other = (" ".join(filter(None, end)) or "–" for end in ends)
    common = {key: row.get(key) for key in ("tier", "value", "job", "stand")}
    return {
        **common,
        "name": name,
        **edges,
        "column": row["name"],
        "device": ends[0][0],
        "port": ends[0][1],
        "worst_end": worst_end,
        "other": other,
        **more,
    }


def _framed(rows: Sequence[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame(schema=_PLACE | {"value": pl.Float64, "count": pl.Int64})


def _jobs(hosts: pl.DataFrame, grid: _Grid, bottom: float) -> tuple[pl.DataFrame, float]:
    """Lay out a bar under neighbouring hosts of the same job."""
    job_of = dict(hosts.select("name", "job").unique("name").iter_rows()) if hosts.height else {}
    jobs = sorted({job for job in job_of.values() if job}, key=natural)
    runs = []
    for job, names in groupby(grid.left, key=job_of.get):
        members = list(names)
        if job:
            x, x2 = grid.left[members[0]] + 0.06, grid.left[members[-1]] + 0.94
            runs.append({"name": job, "label": _fitting(job, (x2 - x) / grid.width), "x": x, "x2": x2, "hosts": len(members)})
    if not runs:
        return pl.DataFrame(), bottom
    y = bottom + _JOB_GAP
    return pl.DataFrame(runs).with_columns(
        y=pl.lit(float(y)), y2=pl.lit(float(y + _JOB)), number=pl.col("name").replace_strict({job: k for k, job in enumerate(jobs)})
    ), y + _JOB


def _lines(pairs: pl.DataFrame, switches: pl.DataFrame) -> pl.DataFrame:
    """Return a line for each pair of switches, from the lower edge of the upper one to the upper edge of the lower one."""
    if not pairs.height:
        return pl.DataFrame()
    ends = switches.select("name", at=(pl.col("x") + pl.col("x2")) / 2, top="y", foot="y2")
    both = pairs.select("name", "peer", "value").join(ends, on="name").join(ends, left_on="peer", right_on="name", suffix="_peer")
    upper = pl.col("top") <= pl.col("top_peer")
    own, other = (("at", "foot", "top"), ("at_peer", "foot_peer", "top_peer"))
    return both.select(
        "value",
        name=pl.format("{} to {}", "name", "peer"),
        x=pl.when(upper).then(own[0]).otherwise(other[0]),
        x2=pl.when(upper).then(other[0]).otherwise(own[0]),
        y=pl.when(upper).then(own[1]).otherwise(other[1]),
        y2=pl.when(upper).then(other[2]).otherwise(own[2]),
    ).sort("value", nulls_last=False)


def _labels(grid: _Grid, top: float, columns: str) -> pl.DataFrame:
    """Return the names of the racks above them, as many as fit."""
    step = -(-len(grid.racks) // _RACKS_MAX)
    y = top + _RACK_LABEL / 2
    rows = [(name, (x + x2) / 2, y) for name, x, x2 in (grid.racks[::step] if step and columns == "host" else ())]
    return pl.DataFrame(rows, schema={"name": pl.String, "x": pl.Float64, "y": pl.Float64}, orient="row")


def _names(switches: pl.DataFrame) -> pl.DataFrame:
    """Return the labels of the switches: their names without the common prefix of the tier."""
    rows = []
    for tier in switches["tier"].unique().to_list() if switches.height else ():
        mine = switches.filter(pl.col("tier") == tier, pl.col("count") <= _SWITCHES_MAX)
        names = mine["name"].to_list()
        common = _common(names)
        for name, x, x2, y, y2, value in mine.select("name", "x", "x2", "y", "y2", "value").iter_rows():
            rows.append((name.removeprefix(common), (x + x2) / 2, (y + y2) / 2 + 1, value))
    return pl.DataFrame(rows, schema={"name": pl.String, "x": pl.Float64, "y": pl.Float64, "value": pl.Float64}, orient="row")


def _common(names: Sequence[str]) -> str:
    """Return the common prefix of the names, up to a separator; empty for a single name."""
    if len(names) < 2:
        return ""
    same = next((k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names)))
    return re.sub(r"[^-_. ]*$", "", names[0][:same])


def _drawn(
    layers: _PictureLayers, size: tuple[float, float], ticks: tuple[dict[float, str], dict[float, str]], colours: _Colours
) -> alt.TopLevelMixin:
    width, height = size
    dark, ink = colours.dark, theme.INK[colours.dark]
    plain: dict[str, Any] = {
        "grid": False,
        "domain": False,
        "ticks": False,
        "title": None,
        "labelColor": ink,
        "labelLimit": 130,
        "labelOverlap": False,
    }
    x_axis = alt.Axis(**plain, values=list(ticks[0]), labelExpr=_lookup(ticks[0].items()), labelAngle=-60 if len(ticks[0]) > 8 else 0)
    y_axis = alt.Axis(**plain, values=list(ticks[1]), labelExpr=_lookup(ticks[1].items()), labelPadding=8)
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, width], nice=False), axis=x_axis)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[height, 0], nice=False), axis=y_axis)
    tips = [
        alt.Tooltip("name:N", title="place"),
        alt.Tooltip("value:Q", title=colours.scale.title, format=colours.scale.form),
        alt.Tooltip("worst_end:N", title="worst at"),
        alt.Tooltip("other:N", title="other end"),
        alt.Tooltip("job:N", title="job"),
    ]
    area = {"x": x, "x2": "x2:Q", "y": y, "y2": "y2:Q"}
    cell = alt.selection_point(name="cell", fields=["column", "device", "port", "tier"], on="click", empty=False)
    color = colours.encoding()
    known = alt.Chart(layers.places.filter(pl.col("value").is_not_null())).mark_rect(cursor="pointer", cornerRadius=2)
    deep = layers.names.with_columns(deep=colours.is_deep(layers.names["value"]))
    # All marks share the axes of the first layer.
    marks = [
        *_line_marks(layers.lines, area, color, ink),
        known.encode(**area, color=color, tooltip=tips).add_params(cell),
        alt.Chart(layers.places.filter(pl.col("value").is_null()))
        .mark_rect(cornerRadius=2, fillOpacity=0, stroke=ink, strokeOpacity=0.3, strokeDash=[2, 2])
        .encode(**area, tooltip=[tips[0], alt.Tooltip("tier:N", title="no data")]),
        *_rings(layers.places, area, colours),
        _words(layers.racks, x, y, ink, weight="bold"),
        *(_words(deep.filter(pl.col("deep") == is_deep), x, y, theme.PAPER[dark] if is_deep else ink) for is_deep in (False, True)),
    ]
    if layers.jobs.height:
        marks += _job_bars(layers.jobs, area, (x, y), dark)
    return alt.layer(*marks).resolve_scale(fill="independent").properties(height=height + _LEGEND + (_NAMES if ticks[0] else 0))


def _words(places: pl.DataFrame, x: alt.X, y: alt.Y, colour: str, weight: Any = "normal") -> alt.Chart:
    mark = alt.Chart(places).mark_text(color=colour, baseline="middle", fontSize=11, fontWeight=weight)
    return mark.encode(x=x, y=y, text="name:N")


def _line_marks(lines: pl.DataFrame, area: dict, color: alt.Color, ink: str) -> list[alt.Chart]:
    """Return faint lines for links, and coloured ones over links that are not at rest."""
    if not lines.height:
        return []
    tips = [alt.Tooltip("name:N", title="links"), alt.Tooltip("value:Q", title="pressure", format=".3~g")]
    pressed = lines.filter(pl.col("value") > 0)
    # The legend shows the places: with the lines, it would show strokes.
    stroke = alt.Stroke("value:Q", scale=color["scale"], legend=None)
    faint = alt.Chart(lines).mark_rule(strokeWidth=1, opacity=0.12, color=ink).encode(**area)
    return [faint, *([alt.Chart(pressed).mark_rule(strokeWidth=1.5).encode(**area, stroke=stroke, tooltip=tips)] if pressed.height else [])]


def _largest(places: pl.DataFrame) -> float:
    largest = places["value"].max()
    return float(largest) if isinstance(largest, int | float) else 0.0


def _rings(places: pl.DataFrame, area: dict, colours: _Colours) -> list[alt.Chart]:
    """Return rings around the worst places, which colour alone must not show; none where many are alike or nothing is bad."""
    worst = places.filter(pl.col("tier") == "host", colours.is_deep(places["value"]), pl.col("value") >= 0.999 * colours.largest)
    mark = alt.Chart(worst).mark_rect(fillOpacity=0, stroke=theme.categories(colours.dark)[1], strokeWidth=3, cornerRadius=3)
    return [mark.encode(**area)] if 0 < worst.height <= _RINGS_MAX else []


def _job_bars(jobs: pl.DataFrame, area: dict, axes: tuple[alt.X, alt.Y], dark: bool) -> list[alt.Chart]:
    # Rings have the second colour.
    palette = [colour for k, colour in enumerate(theme.categories(dark)) if k != 1]
    ink = theme.INK[dark]
    bars = jobs.with_columns(fill=pl.col("number").map_elements(lambda k: palette[k % len(palette)], return_dtype=pl.String))
    words = jobs.with_columns(x=(pl.col("x") + pl.col("x2")) / 2, y=(pl.col("y") + pl.col("y2")) / 2 + 1).filter(pl.col("label") != "")
    return [
        alt.Chart(bars)
        .mark_rect(cornerRadius=4, fillOpacity=0.3, strokeWidth=1.5)
        .encode(
            **area,
            fill=alt.Fill("fill:N", scale=None),
            stroke=alt.Stroke("fill:N", scale=None),
            tooltip=[alt.Tooltip("name:N", title="job"), alt.Tooltip("hosts:Q", title="hosts in a row")],
        ),
        alt.Chart(words).mark_text(fontSize=12, color=ink, baseline="middle", limit=200).encode(x=axes[0], y=axes[1], text="label:N"),
    ]


def _fitting(name: str, share: float) -> str:
    """Return a name cut to the width of its bar."""
    room = int(share * _LETTERS)
    return name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else ""


def _lookup(labels: Iterable[tuple[float, str]]) -> str:
    """Return an expression of Vega that gives the label of a position."""
    quoted = ", ".join(f"'{at:.3f}': '{_escaped(name)}'" for at, name in labels)
    return f"({{{quoted}}})[format(datum.value, '.3f')] || ''"


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ")
