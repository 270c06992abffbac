"""Charts: frames in, Altair charts out. Every chart has units, times in UTC, and series that differ in more than colour.

A frame's time column is ``ms``: milliseconds since 1970 as a number, because a browser would show a timestamp without a zone in
its local zone.
"""

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from . import theme

HEIGHT = 330
TALL = 500

# Lines with fewer points than this also show the points.
POINTED_MAX = 60

# Series in one legend line.
LEGEND_COLUMNS = 6

# Labels of a time axis.
TICKS_MAX = 6

_S = 1_000
_MIN = 60 * _S
_HOUR = 60 * _MIN
_STEPS_MS = (
    *(factor * 10**power for power in range(-3, 3) for factor in (1, 2, 5)),
    *(factor * _S for factor in (1, 2, 5, 10, 15, 30)),
    *(factor * _MIN for factor in (1, 2, 5, 10, 15, 30)),
    *(factor * _HOUR for factor in (1, 2, 3, 6, 12, 24, 48, 168, 720)),
)


def lines(
    frame: pl.DataFrame,
    title: str,
    *,
    dark: bool,
    names: Mapping[str, str] | None = None,
    percent: bool = False,
    log: bool = False,
    rule: tuple[float, str] | None = None,
    steps: bool = False,
    columns: int = LEGEND_COLUMNS,
    height: int = HEIGHT,
) -> alt.TopLevelMixin:
    """Draw lines over time: the columns of ``names`` (column -> label), or rows of ``series`` and ``y``.

    With ``steps`` each row holds until the next, the last one until its ``end_ms``.
    """
    if steps:
        frame = pl.concat([frame, frame.tail(1).with_columns(ms=pl.col("end_ms"))])
    chart = _stamped(alt.Chart(frame))
    if names:
        labels = list(names.values())
        chart = chart.transform_calculate(**{label: f"datum['{column}']" for column, label in names.items()})
        chart = chart.transform_fold([*labels], as_=["series", "y"]).transform_filter("isValid(datum.y)")
        top = max((_number(frame[column].max()) for column in names), default=0.0)
    else:
        labels = sorted({str(name) for name in frame["series"].unique()})
        top = _number(frame["y"].max())
    color, dash = _series(labels, dark, columns)
    pointed = not steps and frame.height < POINTED_MAX * (1 if names else len(labels))
    mark = chart.mark_line(interpolate="step-after" if steps else "linear", strokeWidth=2.5, point={"size": 40} if pointed else False)
    tips = [_when(), alt.Tooltip("series:N", title="what"), alt.Tooltip("y:Q", title=title, format=".2%" if percent else ".4~g")]
    layer = mark.encode(x=_time(frame), y=_value("y", title, top=top, percent=percent, log=log), color=color, strokeDash=dash, tooltip=tips)
    return alt.layer(layer, *_rule(rule, dark)).properties(height=height)


def stacks(frame: pl.DataFrame, title: str, *, dark: bool) -> alt.Chart:
    """Draw stacked bars over time: each row a ``series`` from ``ms`` to ``end_ms`` and from ``low`` to ``high``."""
    names = frame.group_by("series").agg(pl.col("y").sum()).sort("y", "series", descending=[True, False])["series"].to_list()
    colours = theme.categories(dark)
    scale = alt.Scale(domain=names, range=[colours[k % len(colours)] for k in range(len(names))])
    color = alt.Color("series:N", sort=names, scale=scale, legend=_legend())
    tips = [_when(), alt.Tooltip("series:N", title="what"), alt.Tooltip("y:Q", title=title, format=".4~g")]
    y = alt.Y("low:Q", axis=alt.Axis(title=title, format="~s", tickCount=6))
    bars = _stamped(alt.Chart(frame)).mark_rect(stroke="#808080", strokeWidth=0.5)
    return bars.encode(x=_time(frame, "end_ms"), x2="end_ms:Q", y=y, y2="high:Q", color=color, tooltip=tips).properties(height=HEIGHT)


def heat(
    frame: pl.DataFrame,
    title: str,
    *,
    dark: bool,
    what: str = "time in bursts",
    pick: Sequence[str] = ("device", "port", "direction", "ms"),
) -> alt.Chart:
    """Draw one row per ``name`` and one cell per span of time; a click selects ``cell`` with the columns ``pick``."""
    names = frame["name"].unique(maintain_order=True).to_list()
    top = max(0.01, _number(frame["ratio"].max()))
    legend = alt.Legend(title=title, format=".0%", orient="top", gradientLength=280, titleLimit=400)
    scale = alt.Scale(range=theme.sequence(dark), domain=[0, top], interpolate="rgb")
    cell = alt.selection_point(name="cell", fields=list(pick), on="click", empty=False)
    tips = [
        alt.Tooltip("name:N", title="where"),
        _when("from, UTC"),
        alt.Tooltip("ratio:Q", title=what, format=".1%"),
        alt.Tooltip("rank:Q", title="in the whole range", format=".1%"),
    ]
    y = alt.Y("name:N", sort=names, axis=alt.Axis(title=None, labelLimit=260, ticks=False, labelOverlap=False))
    cells = _stamped(alt.Chart(frame)).mark_rect(cursor="pointer")
    return (
        cells.encode(x=_time(frame, "end_ms"), x2="end_ms:Q", y=y, color=alt.Color("ratio:Q", scale=scale, legend=legend), tooltip=tips)
        .properties(height=150 + 20 * len(names))
        .add_params(cell)
    )


def microscope(frame: pl.DataFrame, *, dark: bool, interval: str, threshold_ratio: float | None) -> alt.TopLevelMixin:
    """Draw raw samples as bars, those above the burst threshold in full colour, beside the mean of the second."""
    each, second = f"each {interval}", "mean of the second"
    chart = _stamped(alt.Chart(frame)).transform_calculate(each=f"'{each}'", second=f"'{second}'")
    color = alt.Scale(domain=[each, second], range=theme.categories(dark)[:2])
    legend = _legend()
    x = _time(frame, "end_ms")
    y = _value("utilization_ratio", "utilisation of the line", top=_number(frame["utilization_ratio"].max()), percent=True)
    tips = [
        _when(),
        alt.Tooltip("utilization_ratio:Q", title="utilisation", format=".1%"),
        alt.Tooltip("second_mean_ratio:Q", title=second, format=".1%"),
    ]
    strength = alt.condition(f"datum.utilization_ratio > {threshold_ratio or 0}", alt.value(1), alt.value(0.45))
    bars = chart.mark_rect().encode(
        x=x, x2="end_ms:Q", y=y, y2=alt.datum(0), tooltip=tips, color=alt.Color("each:N", scale=color, legend=legend), opacity=strength
    )
    mean = chart.mark_line(strokeWidth=3, interpolate="step-after").encode(
        x=x, y="second_mean_ratio:Q", color=alt.Color("second:N", scale=color, legend=legend)
    )
    return alt.layer(bars, mean, *_rule(burst_rule(threshold_ratio), dark)).properties(height=TALL)


def burst_rule(threshold_ratio: float | None) -> tuple[float, str] | None:
    """Return the level of the burst threshold with its label; none where it is not known."""
    return None if threshold_ratio is None else (threshold_ratio, f"burst above {threshold_ratio * 100:g} %")


def distribution(frame: pl.DataFrame, x_title: str, *, dark: bool, names: Sequence[str]) -> alt.Chart:
    """Draw empirical distributions as steps: rows of ``series``, ``x`` and ``share``, over a logarithmic axis."""
    color, dash = _series(names, dark)
    tips = [
        alt.Tooltip("series:N", title="what"),
        alt.Tooltip("x:Q", title=x_title, format=".4~g"),
        alt.Tooltip("share:Q", title="share at or below", format=".1%"),
    ]
    y = alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title="share at or below", format=".0%", tickCount=6))
    mark = alt.Chart(frame).mark_line(interpolate="step-after", strokeWidth=2.5)
    return mark.encode(x=_log("x", x_title), y=y, color=color, strokeDash=dash, order="share:Q", tooltip=tips).properties(height=HEIGHT)


def curve(frame: pl.DataFrame, x_title: str, y_title: str, *, dark: bool, log_y: bool = False, points: bool = False) -> alt.Chart:
    """Draw one curve, rows of ``x`` and ``y``, over a logarithmic axis."""
    linear = alt.Y("y:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(title=y_title, format=".0%", tickCount=6))
    y = _value("y", y_title, top=1, log=True) if log_y else linear
    mark = alt.Chart(frame).mark_line(
        interpolate="linear" if points else "step-after",
        strokeWidth=2.5,
        color=theme.categories(dark)[0],
        point={"size": 80} if points else False,
    )
    tips = [alt.Tooltip("x:Q", title=x_title, format=".4~g"), alt.Tooltip("y:Q", title=y_title, format=".4~g")]
    return mark.encode(x=_log("x", x_title), y=y, order="x:Q", tooltip=tips).properties(height=HEIGHT)


def bars(frame: pl.DataFrame, name: str, value: str, title: str, *, dark: bool, tips: Sequence[str] = ()) -> alt.TopLevelMixin:
    """Draw one horizontal bar per row, labelled with its value."""
    base = alt.Chart(frame).encode(
        y=alt.Y(f"{name}:N", sort=None, axis=alt.Axis(title=None, labelLimit=240, ticks=False)),
        x=alt.X(f"{value}:Q", axis=alt.Axis(title=title, format="~s", tickCount=5)),
        tooltip=[
            alt.Tooltip(f"{field}:Q" if field != name else f"{name}:N", format=".4~g" if field != name else "")
            for field in (name, value, *tips)
        ],
    )
    words = base.mark_text(align="left", dx=5, fontSize=12, color=_ink(dark)).encode(text=alt.Text(f"{value}:Q", format=".4~s"))
    return alt.layer(base.mark_bar(color=theme.categories(dark)[0]), words).properties(height=max(HEIGHT, 60 + 26 * frame.height))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _ink(dark: bool) -> str:
    return theme.INK[dark]


def _time(frame: pl.DataFrame, end: str = "ms") -> alt.X:
    """Return the time axis, with labels as fine as its width needs."""
    low, high = _number(frame["ms"].min()), _number(frame[end].max())
    width = high - low
    style = "%H:%M:%S.%L" if width < 10 * _S else "%H:%M:%S" if width < 20 * _MIN else "%H:%M" if width < 36 * 60 * _MIN else "%b %d %H:%M"
    label = f"utcFormat(datum.value, '{style}')"
    axis = alt.Axis(title="time, UTC", labelExpr=label, values=_ticks(low, high), grid=False, labelFlush=False, labelOverlap="greedy")
    # A numeric axis: a time axis would be in the browser's zone.
    return alt.X("ms:Q", scale=alt.Scale(domain=[low, max(high, low + 1)], nice=False, zero=False), axis=axis)


def _ticks(low_ms: float, high_ms: float) -> list[float]:
    """Return round instants for labels: Vega omits most labels below a second."""
    step = next((step for step in _STEPS_MS if (high_ms - low_ms) / step <= TICKS_MAX), _STEPS_MS[-1])
    first = -(-low_ms // step)
    return [(first + k) * step for k in range(int((high_ms // step) - first) + 1)][: 10 * TICKS_MAX]


def _stamped(chart: alt.Chart) -> alt.Chart:
    return chart.transform_calculate(stamp="utcFormat(datum.ms, '%Y-%m-%d %H:%M:%S.%L')")


def _when(title: str = "time, UTC") -> alt.Tooltip:
    return alt.Tooltip("stamp:N", title=title)


def _value(field: str, title: str, *, top: float, percent: bool = False, log: bool = False) -> alt.Y:
    """Return an axis from zero to ``top``, or a logarithmic one."""
    if log:
        return alt.Y(f"{field}:Q", scale=alt.Scale(type="log", nice=True), axis=alt.Axis(title=title, format="~g", tickCount=5))
    if percent:
        ceiling = max(1.0, top * 1.02) if top > 0.05 else max(0.001, top * 1.1)
        axis = alt.Axis(title=title, format=".0%" if ceiling > 0.05 else ".2%", tickCount=6)
        return alt.Y(f"{field}:Q", scale=alt.Scale(domain=[0, ceiling], nice=False), axis=axis)
    # Zeros alone have no extent.
    return alt.Y(
        f"{field}:Q",
        scale=alt.Scale(domain=[0, top * 1.05 if top > 0 else 1], nice=True),
        axis=alt.Axis(title=title, format="~s", tickCount=6),
    )


def _log(field: str, title: str) -> alt.X:
    return alt.X(
        f"{field}:Q", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(title=title, format="~g", tickCount=8, labelOverlap="greedy")
    )


def _legend() -> alt.Legend:
    return alt.Legend(title=None, orient="top", labelLimit=340, columns=LEGEND_COLUMNS, symbolType="square", symbolSize=160)


def _series(names: Sequence[str], dark: bool, columns: int = LEGEND_COLUMNS) -> tuple[alt.Color, alt.StrokeDash]:
    """Return a colour and a dash pattern for each name, in one legend."""
    colours, dashes = theme.categories(dark), list(theme.DASHES)
    count = len(names)
    color = alt.Scale(domain=list(names), range=[colours[k % len(colours)] for k in range(count)])
    dash = alt.Scale(domain=list(names), range=[dashes[k % len(dashes)] for k in range(count)])
    legend = alt.Legend(title=None, orient="top", labelLimit=340, columns=columns, symbolType="stroke", symbolSize=400, symbolStrokeWidth=3)
    return (
        alt.Color("series:N", sort=list(names), scale=color, legend=legend),
        alt.StrokeDash("series:N", sort=list(names), scale=dash, legend=legend),
    )


def _rule(rule: tuple[float, str] | None, dark: bool) -> list[alt.Chart]:
    """Return a horizontal line at a level, with its label on a halo."""
    if rule is None:
        return []
    level = alt.Chart(pl.DataFrame({"y": [rule[0]], "label": [rule[1]]}))
    words = {"align": "right", "baseline": "bottom", "dx": -6, "dy": -5, "fontSize": 13, "fontWeight": "bold"}
    right = alt.value("width")
    return [
        level.mark_rule(strokeDash=[5, 4], strokeWidth=2, color=_ink(dark)).encode(y="y:Q"),
        level.mark_text(**words, stroke=theme.PAPER[dark], strokeWidth=5).encode(x=right, y="y:Q", text="label:N"),
        level.mark_text(**words, color=_ink(dark)).encode(x=right, y="y:Q", text="label:N"),
    ]
