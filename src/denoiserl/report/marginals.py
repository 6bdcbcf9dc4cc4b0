"""Plots of generated against recorded data: the marginals of every column, and distances to training rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.report.style import LIGHT, Theme, canvas

MOST = 23
"""largest number of columns to draw; the worst ones if there are more"""
ACROSS = 4
BINS = 36
FEW = 12
"""largest number of distinct values for one bar per value"""


def marginals_plot(
    names: tuple[str, ...],
    real: Tensor,
    made: Tensor,
    ks: tuple[float, ...],
    distances: tuple[Tensor, Tensor],
    theme: Theme = LIGHT,
) -> bytes:
    """Plot one panel per column as PNG: densities of recorded rows [N, C], filled, and generated rows [M, C], a line.

    The last panel shows the distances to the nearest training row, of held-out and of generated rows.
    """
    if not (len(names) == real.shape[1] == made.shape[1] == len(ks)):
        raise RunError(
            f"{len(names)} names and {len(ks)} distances for {real.shape[1]} and {made.shape[1]} columns: give one "
            "per column"
        )
    drawn = sorted(sorted(range(len(names)), key=lambda c: -ks[c])[:MOST])
    panels = len(drawn) + 1
    down = math.ceil(panels / ACROSS)

    def draw(figure: Any) -> None:
        axes = figure.subplots(down, ACROSS, squeeze=False).ravel()
        for place, column in zip(axes, drawn, strict=False):
            _panel(place, _numpy(real[:, column]), _numpy(made[:, column]), theme)
            place.set_title(f"{names[column]}   KS {ks[column]:.3f}", fontsize=9.5)
        last = axes[len(drawn)]
        new, copied = (_numpy(v) for v in distances)
        _panel(last, new, copied, theme)
        last.set_title("distance to a training row", fontsize=9.5)
        for place in axes[panels:]:
            place.set_visible(False)
        hidden = len(names) - len(drawn)
        more = f"; {hidden} columns that fit better are not shown" if hidden else ""
        head = f"Recorded (filled) and generated (line){more}"
        figure.suptitle(head, x=0.01, ha="left", fontsize=12, fontweight="bold")

    return canvas(draw, (2.7 * ACROSS, 1.75 * down + 0.45), theme)


def _panel(axes: Any, real: Any, made: Any, theme: Theme) -> None:
    both = np.concatenate([real, made])
    values = np.unique(both[: 10**5])
    if len(values) == 1:
        axes.text(0.5, 0.5, f"always {values[0]:g}", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
    elif len(values) <= FEW:
        where = np.arange(len(values))
        for v, style in ((real, {"color": theme.before, "alpha": 0.45}), (made, {"fill": False, "ec": theme.after})):
            share = [(v == x).mean() for x in values]
            axes.bar(where, share, 0.7, linewidth=1.6, **style)
        axes.set_xticks(where, [f"{x:.3g}" for x in values])
    else:
        low, high = np.quantile(both, [0.002, 0.998])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        axes.hist(real, edges, density=True, color=theme.before, alpha=0.45)
        axes.hist(made, edges, density=True, histtype="step", color=theme.after, linewidth=1.6)
        axes.locator_params(axis="x", nbins=4)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)


def _numpy(v: Tensor) -> Any:
    return v.detach().cpu().double().numpy()
