"""The arms of a comparison as one plot: each mean with its uncertainty, and which arms are separated."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy

from denoiserl.core.errors import RunError, require
from denoiserl.report.formatting import values
from denoiserl.report.style import LIGHT, Theme, canvas
from denoiserl.stats.interval import posterior
from denoiserl.stats.standing import ComparisonRow, ComparisonTable

ROW = 0.56
"""height of a row in inches"""


def violins(standings: ComparisonTable, theme: Theme = LIGHT, title: str | None = None) -> bytes:
    """Plot one row per arm, best first: mean, interval and distribution; letters of separation at the right.

    Over trials, half a violin shows the posterior of the mean, all at one height. For a rate it is
    Beta(1 + s, 1 + n - s), with s successes in n trials. For another mean it is x̄ + h/t_q · t_{n-1}: a flat prior, with
    a central interval of half-width h. Over seeds, a ring shows the mean of each seed, because a density of so few
    would show the formula, not the data. ``title``: by default the metric's description.
    """
    rows = standings.rows
    if not rows:
        raise RunError("There is nothing to compare: give at least one arm.")
    names = [_folded(row.name) for row in rows]
    tall = max(name.count("\n") for name in names)
    step = ROW + 0.17 * max(0, tall - 1)
    colours = theme.palette([row.name for row in rows])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        scale = 100 if standings.unit == "%" else 1
        low, high = _limits(standings, scale)
        axes.set_xlim(low, high)
        for place, row in enumerate(rows):
            _row(axes, row, place, standings, scale, colours[row.name], theme)
        _columns(axes, standings, colours, theme)
        axes.set_yticks(range(len(rows)), names)
        for text, row in zip(axes.get_yticklabels(), rows, strict=True):
            text.set_color(colours[row.name])
        axes.tick_params(axis="y", labelsize=10)
        axes.set_ylim(len(rows) - 0.62, -0.85)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        if standings.unit == "%":
            axes.xaxis.set_major_formatter(require("matplotlib.ticker", "demo").FuncFormatter(lambda v, _: f"{v:g}%"))
        elif standings.unit:
            axes.set_xlabel(standings.unit)
        less = " (lower is better)" if standings.better == "lower" else ""
        head = f"{standings.what or standings.metric}{less}" if title is None else title
        axes.set_title(textwrap.fill(head[:1].upper() + head[1:], 90))

    return canvas(
        draw, (8.0, step * (len(rows) + 0.25) + 0.75 + (0.2 if standings.unit not in ("", "%") else 0)), theme
    )


def _row(
    axes: Any, row: ComparisonRow, place: int, standings: ComparisonTable, scale: int, colour: str, theme: Theme
) -> None:
    given = row.interval
    if standings.basis == "seeds":
        low, high = axes.get_xlim()
        at, level = stack_points([scale * v for v in row.per_seed], 0.014 * (high - low))
        axes.plot(
            at,
            [place - 0.2 - 0.13 * up for up in level],
            "o",
            markersize=5,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=1.1,
            alpha=0.9,
        )
    elif given.high > given.low:
        x, density = posterior_of(row, standings.unit, standings.level)
        top = place - 0.1 - 0.56 * density / density.max()
        axes.fill_between(scale * x, place - 0.1, top, color=colour, alpha=0.22, linewidth=0)
        axes.plot(scale * x, top, color=colour, linewidth=0.9, alpha=0.75)
    axes.plot([scale * given.low, scale * given.high], [place, place], color=colour, linewidth=2.8, clip_on=False)
    axes.plot(
        [scale * given.mean], [place], "o", color=colour, markersize=7.5, markeredgecolor=theme.ground, clip_on=False
    )


def posterior_of(row: ComparisonRow, unit: str, level: float = 0.05, points: int = 400) -> tuple[Any, Any]:
    """Return the posterior density of an arm's mean over its trials on a grid: x [points] and p(x) [points]."""
    given = row.interval
    successes = given.mean * given.n
    if unit == "%" and abs(successes - round(successes)) < 1e-6 * given.n:
        beta = posterior(round(successes), given.n)
        low = 0.0 if successes < 0.5 else beta.quantile(5e-4)
        high = 1.0 if given.n - successes < 0.5 else beta.quantile(1 - 5e-4)
        x = numpy.linspace(low, high, points)
        return x, numpy.asarray(beta.density(x))
    from scipy.stats import t  # slow to import, and most pages do not need it

    student: Any = t(max(1, given.n - 1))
    spread = (given.high - given.low) / 2 / student.ppf(1 - level / 2)
    reach = min(student.ppf(1 - 5e-4), 5.0) * spread
    ends = (given.mean - reach, given.mean + reach)
    if unit == "%":
        ends = (max(0.0, ends[0]), min(1.0, ends[1]))
    x = numpy.linspace(*ends, points)
    return x, student.pdf((x - given.mean) / spread) / spread


def stack_points(given: Sequence[float], gap: float) -> tuple[list[float], list[int]]:
    """Sort values, and return for each the lowest level at which it is ``gap`` away from its neighbours."""
    last: list[float] = []
    levels: list[int] = []
    order = sorted(given)
    for value in order:
        free = [i for i, at in enumerate(last) if value - at >= gap]
        level = free[0] if free else len(last)
        last[level : level + 1] = [value]
        levels.append(level)
    return order, levels


def _columns(axes: Any, standings: ComparisonTable, colours: dict[str, str], theme: Theme) -> None:
    """Write mean, letters and number of observations right of the axes."""
    text = values(standings)
    n = {"seeds": "seeds", "trials": "trials"}[standings.basis]
    columns: list[tuple[str, list[str]]] = [("mean", [text(row.interval.mean) for row in standings.rows])]
    if any(row.letters for row in standings.rows):
        columns.append(("group", [row.letters for row in standings.rows]))
    seeds = standings.basis == "seeds"
    columns.append((n, [str(len(row.per_seed) if seeds else row.interval.n) for row in standings.rows]))
    at = 12.0
    for head, cells in columns:
        wide = 6.6 * max(len(head) - 0.5, *(len(c) for c in cells))
        for place, (cell, row) in enumerate([(head, None), *zip(cells, standings.rows, strict=True)]):
            mean = head == "mean"
            axes.annotate(
                cell,
                (1, place - 1 if row else -0.72),
                (at + (wide if head != "group" else 0), 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="left" if head == "group" else "right",
                va="center",
                color=theme.faint if row is None or not (mean or head == "group") else colours[row.name],
                weight="bold" if row is not None and mean else "normal",
                fontsize=10 if row else 8.5,
                annotation_clip=False,
            )
        at += wide + 14


def _limits(standings: ComparisonTable, scale: int) -> tuple[float, float]:
    """Return the ends of the axis: a rate's whole range, unless the arms are too close together for it."""
    found = [v for row in standings.rows for v in (row.interval.low, row.interval.high, row.interval.mean)]
    if standings.basis == "seeds":
        found += [v for row in standings.rows for v in row.per_seed]
    else:
        for row in standings.rows:
            if row.interval.high > row.interval.low:
                x, _ = posterior_of(row, standings.unit, standings.level, 2)
                found += [float(x[0]), float(x[-1])]
    low, high = scale * min(found), scale * max(found)
    if standings.unit == "%" and (high - low > 30 or len(standings.rows) == 1):
        return -2.0, 102.0
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    if standings.unit == "%":
        return max(-0.06 * (high - low) - 0.1, low - room), min(100.1 + 0.06 * (high - low), high + room)
    return low - room, high + room


def _folded(name: str, width: int = 24) -> str:
    """Break a long name into lines of about equal length, at spaces, hyphens and underscores."""
    lines = -(-len(name) // width)
    parts = textwrap.wrap(name.replace("_", "_ "), min(width, len(name) // lines + 6))
    return "\n".join(part.replace("_ ", "_") for part in parts)
