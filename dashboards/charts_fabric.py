"""The fabric as a picture: switches above, hosts by rack below, a row for each rail, jobs at the foot.

Places are laid out here, in pixels from the top and in columns from the left: a column is a host or, of many, a rack.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import altair as alt
import polars as pl

from . import theme

# From the top down; a tier that is not named here stands above the leaves.
_TIERS = ("core", "spine", "aggregation")
_LEAF = "leaf"

_SWITCH, _SWITCH_GAP = 30, 20
_GRID_HEIGHT, _CELL_MIN, _CELL_MAX = 300, 12, 34
_RACK_LABEL, _JOB, _JOB_GAP = 26, 20, 10
# Between two racks, in columns.
_RACK_GAP = 0.5

# How many labels a row has room for.
_NAMES_MAX, _RACKS_MAX, _SWITCHES_MAX = 40, 16, 16

_PLACE = {"name": pl.String, "x": pl.Float64, "x2": pl.Float64, "y": pl.Float64, "y2": pl.Float64}


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the columns stand: by name, left edge; and each rack's first and last edge."""

    left: dict[str, float]
    racks: list[tuple[str, float, float]]
    width: float


def fabric(frame: pl.DataFrame, title: str, *, form: str, logarithmic: bool, dark: bool, columns: str = "host") -> alt.TopLevelMixin:
    """Draw places, rows of ``tier``, ``name``, ``rail``, ``value`` and ``worst`` (the link's end to look at); a click selects ``cell``.

    A place with no value is hollow, the worst one ringed.
    """
    hosts = frame.filter(tier="host")
    grid = _columns(hosts)
    switches, top, ticks = _switches(frame.filter(pl.col("tier") != "host"), grid.width)
    cells, bottom, rails = _cells(hosts, grid, top)
    ticks |= rails
    jobs, foot = _jobs(hosts, grid, bottom)
    if jobs.height:
        ticks[(bottom + _JOB_GAP + foot) / 2] = "jobs"
    places = pl.concat([switches, cells], how="diagonal_relaxed")
    frames = _Frames(places, jobs, _labels(switches, grid, top, columns))
    names = {grid.left[name] + 0.5: name for name in grid.left} if 0 < len(grid.left) <= _NAMES_MAX else {}
    return _drawn(frames, (grid.width, foot), (names, ticks), _Colours(title, form, logarithmic, dark))


@dataclass(frozen=True, slots=True)
class _Frames:
    places: pl.DataFrame
    jobs: pl.DataFrame
    labels: pl.DataFrame


@dataclass(frozen=True, slots=True)
class _Colours:
    title: str
    form: str
    logarithmic: bool
    dark: bool

    def scale(self, values: pl.Series) -> alt.Scale:
        """Return the scale from rest to the largest value; where all are at rest, to one of the smallest unit shown."""
        high = values.max()
        high = float(high) if isinstance(high, int | float) and high > 0 else 1.0 if self.form.startswith(",") else 0.01
        low = values.filter(values > 0).min()
        if self.logarithmic:
            low = float(low) if isinstance(low, int | float) and low < high else high / 10
            return alt.Scale(type="log", domain=[low, high], range=theme.pressure(self.dark), interpolate="rgb")
        return alt.Scale(domain=[0, high], range=theme.pressure(self.dark), interpolate="rgb")


def natural(name: str | None) -> tuple[tuple[int, str], ...]:
    """Return what orders names as people do: numbers in them by their size."""
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


def _switches(frame: pl.DataFrame, width: float) -> tuple[pl.DataFrame, float, dict[float, str]]:
    """Lay each tier out over the whole width; return the places, where they end, and the label of each row."""
    tiers = sorted(frame["tier"].unique().to_list(), key=lambda tier: (tier == _LEAF, (*_TIERS, tier).index(tier)))
    rows, ticks, y = [], {}, 0.0
    for tier in tiers:
        mine = sorted(frame.filter(tier=tier).iter_rows(named=True), key=lambda row: natural(row["name"]))
        step = width / len(mine)
        for k, row in enumerate(mine):
            edges = {"x": k * step + 0.07 * step, "x2": (k + 1) * step - 0.07 * step, "y": y, "y2": y + _SWITCH}
            rows.append(_place(row, row["name"], edges, count=len(mine)))
        ticks[y + _SWITCH / 2] = tier
        y += _SWITCH + _SWITCH_GAP
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
    says, other = (" ".join(filter(None, end)) or "–" for end in ends)
    kept = {key: row.get(key) for key in ("tier", "value", "job", "stand")}
    return {
        **kept,
        "name": name,
        **edges,
        "column": row["name"],
        "device": ends[0][0],
        "port": ends[0][1],
        "says": says,
        "other": other,
        **more,
    }


def _framed(rows: Sequence[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None) if rows else pl.DataFrame(schema=_PLACE | {"value": pl.Float64, "count": pl.Int64})


def _jobs(hosts: pl.DataFrame, grid: _Grid, bottom: float) -> tuple[pl.DataFrame, float]:
    """Lay out a bar under each run of hosts that work on the same job."""
    job_of = dict(hosts.select("name", "job").unique("name").iter_rows()) if hosts.height else {}
    jobs = sorted({job for job in job_of.values() if job}, key=natural)
    runs = []
    for job, names in groupby(grid.left, key=job_of.get):
        members = list(names)
        if job:
            runs.append({"name": job, "x": grid.left[members[0]] + 0.06, "x2": grid.left[members[-1]] + 0.94, "hosts": len(members)})
    if not runs:
        return pl.DataFrame(), bottom
    y = bottom + _JOB_GAP
    return pl.DataFrame(runs).with_columns(
        y=pl.lit(float(y)), y2=pl.lit(float(y + _JOB)), number=pl.col("name").replace_strict({job: k for k, job in enumerate(jobs)})
    ), y + _JOB


def _labels(switches: pl.DataFrame, grid: _Grid, top: float, columns: str) -> pl.DataFrame:
    rows = []
    if columns == "host" or len(grid.racks) <= _NAMES_MAX:
        step = -(-len(grid.racks) // _RACKS_MAX)
        for name, x, x2 in grid.racks[::step] if columns == "host" else ():
            rows.append({"name": name, "x": (x + x2) / 2, "y": top + _RACK_LABEL / 2 + 2, "room": (x2 - x) * step})
    if switches.height:
        named = switches.filter(pl.col("count") <= _SWITCHES_MAX)
        for name, x, x2, y2 in named.select("name", "x", "x2", "y2").iter_rows():
            rows.append({"name": name, "x": (x + x2) / 2, "y": y2 + 8, "room": x2 - x})
    return pl.DataFrame(rows, schema={"name": pl.String, "x": pl.Float64, "y": pl.Float64, "room": pl.Float64})


def _drawn(
    frames: _Frames, size: tuple[float, float], ticks: tuple[dict[float, str], dict[float, str]], colours: _Colours
) -> alt.TopLevelMixin:
    width, height = size
    dark, ink = colours.dark, theme.INK[colours.dark]
    plain = {"grid": False, "domain": False, "ticks": False, "title": None, "labelColor": ink, "labelLimit": 130, "labelOverlap": False}
    x_axis = alt.Axis(**plain, values=list(ticks[0]), labelExpr=_lookup(ticks[0].items()), labelAngle=-60 if len(ticks[0]) > 8 else 0)
    y_axis = alt.Axis(**plain, values=list(ticks[1]), labelExpr=_lookup(ticks[1].items()), labelPadding=8)
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, width], nice=False), axis=x_axis)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[height, 0], nice=False), axis=y_axis)
    legend = alt.Legend(title=colours.title, format=colours.form, orient="top", gradientLength=280, titleLimit=400, tickCount=4)
    scale = colours.scale(frames.places["value"].drop_nulls().cast(pl.Float64))
    tips = [
        alt.Tooltip("name:N", title="place"),
        alt.Tooltip("value:Q", title=colours.title, format=colours.form),
        alt.Tooltip("says:N", title="worst at"),
        alt.Tooltip("other:N", title="other end"),
        alt.Tooltip("job:N", title="job"),
    ]
    area = {"x": x, "x2": "x2:Q", "y": y, "y2": "y2:Q"}
    cell = alt.selection_point(name="cell", fields=["column", "device", "port", "tier"], on="click", empty=False)
    known = alt.Chart(frames.places.filter(pl.col("value").is_not_null())).mark_rect(cursor="pointer", cornerRadius=2)
    # All marks below share the axes of the first layer.
    layers = [
        known.encode(**area, color=alt.Color("value:Q", scale=scale, legend=legend), tooltip=tips).add_params(cell),
        alt.Chart(frames.places.filter(pl.col("value").is_null()))
        .mark_rect(cornerRadius=2, fillOpacity=0, stroke=ink, strokeOpacity=0.3, strokeDash=[2, 2])
        .encode(**area, tooltip=[tips[0], alt.Tooltip("tier:N", title="no data")]),
        *_ring(frames.places, area, dark),
        alt.Chart(frames.labels).mark_text(fontSize=11, color=ink, baseline="middle").encode(x=x, y=y, text="name:N"),
    ]
    if frames.jobs.height:
        layers += _job_bars(frames.jobs, area, (x, y), dark)
    return alt.layer(*layers).resolve_scale(color="independent").properties(height=height)


def _ring(places: pl.DataFrame, area: dict, dark: bool) -> list[alt.Chart]:
    """Return a ring around the worst place, so that not its colour alone tells it."""
    worst = places.filter(pl.col("value") > 0).sort(pl.col("tier") != "host", "value", descending=[False, True])
    worst = places.filter((pl.col("value") == pl.col("value").max()) & (pl.col("value") > 0)).sort(pl.col("tier") != "host").head(1)
    mark = alt.Chart(worst).mark_rect(fillOpacity=0, stroke=theme.categories(dark)[1], strokeWidth=3, cornerRadius=3)
    return [mark.encode(**area)] if worst.height else []


def _job_bars(jobs: pl.DataFrame, area: dict, axes: tuple[alt.X, alt.Y], dark: bool) -> list[alt.Chart]:
    palette = theme.categories(dark)
    ink = theme.INK[dark]
    bars = jobs.with_columns(fill=pl.col("number").map_elements(lambda k: palette[k % len(palette)], return_dtype=pl.String))
    words = jobs.with_columns(x=(pl.col("x") + pl.col("x2")) / 2, y=(pl.col("y") + pl.col("y2")) / 2 + 1)
    return [
        alt.Chart(bars)
        .mark_rect(cornerRadius=4, fillOpacity=0.3, strokeWidth=1.5)
        .encode(
            **area,
            fill=alt.Fill("fill:N", scale=None),
            stroke=alt.Stroke("fill:N", scale=None),
            tooltip=[alt.Tooltip("name:N", title="job"), alt.Tooltip("hosts:Q", title="hosts in a row")],
        ),
        alt.Chart(words).mark_text(fontSize=12, color=ink, baseline="middle", limit=200).encode(x=axes[0], y=axes[1], text="name:N"),
    ]


def _lookup(labels: Iterable[tuple[float, str]]) -> str:
    """Return an expression of Vega that gives the label of a position."""
    quoted = ", ".join(f"'{at:.3f}': '{_escaped(name)}'" for at, name in labels)
    return f"({{{quoted}}})[format(datum.value, '.3f')] || ''"


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ")
