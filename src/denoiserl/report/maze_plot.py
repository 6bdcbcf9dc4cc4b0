"""Plots of a policy's paths through a maze, one plan per reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from denoiserl.core.errors import RunError, require
from denoiserl.envs.toy.maze import Maze
from denoiserl.report.style import LIGHT, Theme, canvas

COLUMNS = 5
GRAIN = 8
"""grid points per cell (in each dimension) at which a reward is drawn"""


def plot_paths(maze: Maze, panels: Mapping[str, tuple[Tensor, Iterable[Tensor]]], theme: Theme = LIGHT) -> bytes:
    """Plot a panel per name as PNG: (a reward at ``reward_grid(maze)`` [H, W], paths of positions [T, 2]).

    Walls are grey and rewards are shaded; a ring is the start of a path, a dot its end.
    """
    if not panels:
        raise RunError("there is nothing to draw: give at least one reward and its paths")
    high, wide = maze.walls.shape
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, (worth, paths)) in zip(grid, panels.items(), strict=False):
            edges = (0, wide, high, 0)
            axes.imshow(worth.numpy(), extent=edges, cmap=_shades(theme), vmin=0, vmax=1, alpha=0.45)
            axes.imshow(numpy.ma.masked_equal(maze.walls.numpy(), False), extent=edges, cmap="Greys", vmin=0, vmax=2)
            for path in paths:
                x, y = path.numpy().T
                axes.plot(x, y, color=theme.after, linewidth=1.0, alpha=0.8)
                axes.plot(x[0], y[0], "o", color=theme.after, markersize=4, fillstyle="none")
                axes.plot(x[-1], y[-1], "o", color=theme.after, markersize=4)
            axes.set_title(name)
            axes.set_xlim(0, wide)
            axes.set_ylim(high, 0)
        for axes in grid:
            axes.set_axis_off()

    return canvas(draw, (2.1 * columns, 2.4 * rows), theme)


def reward_grid(maze: Maze) -> Tensor:
    """Return the positions at which rewards are drawn, [H, W, 2], ``GRAIN`` per cell."""
    high, wide = (int(n) * GRAIN for n in maze.walls.shape)
    y, x = torch.meshgrid((torch.arange(high) + 0.5) / GRAIN, (torch.arange(wide) + 0.5) / GRAIN, indexing="ij")
    return torch.stack([x, y], -1)


def _shades(theme: Theme) -> Any:
    colours = require("matplotlib.colors", "demo")
    return colours.LinearSegmentedColormap.from_list("pays", [theme.ground, theme.imitation])
