"""Learning curves and three-row comparisons as PNG bytes, for a report, a page or a notebook.

They use matplotlib's Agg canvas without pyplot, so no global state changes and no window opens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from denoiserl.core.errors import InvalidInputError, RunError, require
from denoiserl.report.formatting import count
from denoiserl.report.metrics import Curve, Row, curve, join_curves, progress_key, smooth
from denoiserl.report.style import LIGHT, Theme, canvas
from denoiserl.stats.comparison import Comparison


def plot(
    curves: Sequence[Curve],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    marks: Mapping[str, float] | None = None,
    half_life: float | None = None,
    unit: str = "",
    size: tuple[float, float] = (8.0, 3.6),
    theme: Theme = LIGHT,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """Plot curves with their bands on one panel, with their labels at the end of the lines.

    ``marks``: horizontal lines by label ("more imitation": 0.41). ``half_life``: draw ``smooth`` over the points of
    noisy curves. ``unit`` "%": show rates in [0, 1] as percentages. ``colours``: by label (default: the theme's, in the
    order of the curves).
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        ends = _curves(axes, curves, half_life, theme, marks or {}, colours)
        if unit == "%":
            axes.yaxis.set_major_formatter(require("matplotlib.ticker", "demo").PercentFormatter(1.0))
        shown = "" if unit == "%" else unit
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"{ylabel} ({shown})" if ylabel and shown else ylabel or shown)
        _name_ends(figure, axes, ends)

    return canvas(draw, size, theme)


def learning_curves(
    arms: Mapping[str, Sequence[Sequence[Row]]],
    key: str,
    x: str | None = None,
    band: Literal["interval", "range"] = "interval",
    title: str = "",
    unit: str = "",
    marks: Mapping[str, float] | None = None,
    theme: Theme = LIGHT,
) -> bytes:
    """Plot the mean over seeds of each arm with its band: ``key`` over ``x``, such as a usage count or the iteration.

    ``arms``: the rows of each seed's run, by arm. Seeds are averaged over their common range of x (``overlay``); a
    single seed has no band. The colours are those of ``violins`` for the same arms.
    """
    curves = [join_curves([curve(rows, key, x) for rows in runs], name, band) for name, runs in arms.items()]
    if unit == "%":  # rates are in [0, 1], and so are their intervals
        curves = [_within(c, 0.0, 1.0) for c in curves]
    at = x or next((found for runs in arms.values() for rows in runs if (found := progress_key(rows))), "row")
    return plot(curves, title, at, "", marks, None, unit, (8.0, 3.8), theme, theme.palette([*arms, *(marks or {})]))


def _within(given: Curve, least: float, most: float) -> Curve:
    """Return the curve with its band clipped to both bounds."""
    low, high = (
        None if v is None else tuple(min(most, max(least, x)) if math.isfinite(x) else x for x in v)
        for v in (given.low, given.high)
    )
    return replace(given, low=low, high=high)


def panels(
    groups: Mapping[str, Sequence[Curve]],
    xlabel: str = "",
    columns: int = 3,
    half_life: float | None = None,
    theme: Theme = LIGHT,
    colours: Mapping[str, str] | None = None,
) -> bytes:
    """Plot one panel per group, each with its own scale.

    With ``colours`` (by label) there is one legend above all panels; without, labels are at the end of the lines.
    """
    if not groups:
        raise RunError("There is nothing to draw: the run wrote no numbers.")
    columns = min(columns, len(groups))
    lines = math.ceil(len(groups) / columns)

    def draw(figure: Any) -> None:
        figure.get_layout_engine().set(h_pad=0.1)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        named = []
        for i, axes in enumerate(grid.flat):
            if i >= len(groups):
                axes.set_axis_off()
                continue
            title, curves = list(groups.items())[i]
            named.append((axes, _curves(axes, curves, half_life, theme, {}, colours)))
            axes.set_title(title)
            if i + columns >= len(groups):
                axes.set_xlabel(xlabel)
                axes.tick_params(labelbottom=True)
        if colours is None:
            for axes, ends in named:
                _name_ends(figure, axes, ends)
        elif len(colours) > 1:
            _name_above(figure, colours)

    room = 0.0 if colours is None else 0.35
    return canvas(draw, (3.5 * columns + (1.2 if columns < 3 and not room else 0), 2.5 * lines + room), theme)


def plot_comparisons(comparisons: Sequence[Comparison], theme: Theme = LIGHT) -> bytes:
    """Plot before, more imitation and after: a dot and its 95 % interval per row, one panel per comparison."""
    if not comparisons:
        raise RunError("There is nothing to compare: give at least one Comparison.")
    rows = [len(c.rows) for c in comparisons]

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=[n + 1.2 for n in rows])
        figure.get_layout_engine().set(h_pad=0.12)
        for axes, comparison in zip(grid.flat, comparisons, strict=True):
            _dots(axes, comparison, theme)

    return canvas(draw, (8.0, sum(0.34 * n + 0.85 for n in rows)), theme)


def _dots(axes: Any, comparison: Comparison, theme: Theme) -> None:
    scale = 100 if comparison.unit == "%" else 1
    rows = comparison.rows
    for place, (label, row) in enumerate(rows):
        colour = theme.arm(label)
        axes.plot([scale * row.low, scale * row.high], [place, place], color=colour, linewidth=2.6)
        axes.plot([scale * row.mean], [place], "o", color=colour, markersize=7.5, markeredgecolor=theme.ground)
        axes.annotate(
            comparison.format_value(row.mean),
            (1, place),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold" if label == rows[-1][0] else "normal",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=10)
    for text, (label, _) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color(theme.arm(label))
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    low = scale * min(row.low for _, row in rows)
    high = scale * max(row.high for _, row in rows)
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    axes.set_xlim(low - room, high + room)
    if comparison.unit == "%":  # show the whole range of a rate
        axes.set_xlim(-2, 102)
        axes.xaxis.set_major_formatter(require("matplotlib.ticker", "demo").PercentFormatter(100))
    arrow = "" if comparison.better == "higher" else " (lower is better)"
    axes.set_title(f"{comparison.name}: {comparison.metric}{arrow}")


def _curves(
    axes: Any,
    curves: Sequence[Curve],
    half_life: float | None,
    theme: Theme,
    marks: Mapping[str, float],
    colours: Mapping[str, str] | None = None,
) -> list[tuple[str, float, str]]:
    """Draw the curves, and return (name, y, colour) of the labels at the right edge."""
    if not curves:
        raise RunError("There is nothing to draw: give at least one curve.")
    ends: list[tuple[str, float, str]] = []
    for i, given in enumerate(curves):
        colour = colours[given.label] if colours else theme.series[i % len(theme.series)]
        finite = [y for y in given.y if math.isfinite(y)]
        if not finite:
            raise InvalidInputError(f"curve {given.label!r} has no finite value: remove it, or find the cause.")
        if given.low is not None:
            axes.fill_between(given.x, given.low, given.high, color=colour, alpha=0.18, linewidth=0)
        line = given
        if half_life is not None and _noisy(finite):
            axes.plot(given.x, given.y, color=colour, alpha=0.3, linewidth=0.9)
            line = smooth(given, half_life)
        axes.plot(line.x, line.y, color=colour, marker="o" if _sparse(line) else None, markersize=4)
        ends.append((given.label, next(y for y in reversed(line.y) if math.isfinite(y)), colour))
    for name, level in marks.items():
        colour = colours[name] if colours and name in colours else theme.arm(name)
        axes.axhline(level, color=colour, linewidth=1.2, dashes=(4, 3))
        ends.append((name, level, colour))
    drawn = sorted(y for given in curves for y in given.y if math.isfinite(y))
    if drawn[0] > 0 and drawn[-1 - len(drawn) // 20] > 300 * drawn[len(drawn) // 20]:
        axes.set_yscale("log")
    elif drawn[0] == drawn[-1]:  # a constant: without this the axis would show rounding noise
        room = 0.05 * abs(drawn[0]) or 0.05
        axes.set_ylim(drawn[0] - room, drawn[0] + room)
    axes.margins(x=0.02)
    ticker = require("matplotlib.ticker", "demo")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=_whole(curves), steps=[1, 2, 5, 10]))
    if max((x for given in curves for x in given.x if math.isfinite(x)), default=0.0) >= 10_000:
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: count(x)))
    return ends if len(ends) > 1 else []


def _name_ends(figure: Any, axes: Any, ends: list[tuple[str, float, str]]) -> None:
    """Write the labels right of the axes at the height of the lines' ends, moved apart where they overlap."""
    if not ends:
        return
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    height = [axes.transData.transform((0, y))[1] * points for _, y, _ in ends]
    floor, ceiling = (v * points for v in (axes.bbox.y0, axes.bbox.y1))
    places = spread_labels(height, 12.5, floor, ceiling)
    moved = max(abs(a - b) for a, b in zip(places, height, strict=True)) > 4
    for (name, y, colour), at, now in zip(ends, places, height, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.6, "shrinkA": 2, "shrinkB": 0}
        axes.annotate(
            name,
            (1, y),
            (18 if moved else 6, at - now),
            arrowprops=leader | {"relpos": (0.0, 0.5)} if moved else None,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            annotation_clip=False,
        )


def _name_above(figure: Any, colours: Mapping[str, str]) -> None:
    lines = require("matplotlib.lines", "demo")
    handles = [lines.Line2D([], [], color=colour, linewidth=2.4, label=name) for name, colour in colours.items()]
    wide = sum(len(name) + 6 for name in colours)
    columns = len(colours) if wide < 110 else max(1, 110 // max(len(name) + 6 for name in colours))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, labelcolor="linecolor", fontsize=10
    )


def spread_labels(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights at least ``gap`` apart inside [low, high], by a sweep up and a sweep down; keep their order.

    If they do not fit, the lowest are below ``low``.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    out = list(heights)
    last = low - gap
    for i in order:
        last = out[i] = max(out[i], last + gap)
    last = high + gap
    for i in reversed(order):
        last = out[i] = min(out[i], last - gap)
    return out


def _sparse(given: Curve) -> bool:
    """Return whether a curve needs markers: few points, or points with gaps on both sides."""
    return len(given.y) <= 12 or any(
        math.isfinite(y)
        and not (i and math.isfinite(given.y[i - 1]))
        and not (i + 1 < len(given.y) and math.isfinite(given.y[i + 1]))
        for i, y in enumerate(given.y)
    )


def _noisy(values: Sequence[float]) -> bool:
    """Return whether the total variation exceeds three times the range; smoothing only distorts other curves."""
    variation = sum(abs(b - a) for a, b in pairwise(values))
    return len(values) > 12 and variation > 3 * (max(values) - min(values))


def _whole(curves: Sequence[Curve]) -> bool:
    return all(float(x).is_integer() for given in curves for x in given.x if math.isfinite(x))
