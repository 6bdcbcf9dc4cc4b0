"""A filled sudoku as a drawing: clues, what the model filled in, and what of it is wrong."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError

CELL = 36
Grid = Tensor | Sequence[int] | Sequence[Sequence[int]]


def wrong_cells(clues: Grid, filled: Grid, solution: Grid | None = None) -> Tensor:
    """The wrong cells, bool [n, n]: filled in and unlike the ``solution``, or a clue that was changed.

    Without a solution: filled in and equal to another number in the same row, column or box. Empty cells are 0.
    They and unchanged clues are never wrong.
    """
    given, made = _square(clues, "clues"), _square(filled, "filled")
    if given.shape != made.shape:
        raise InvalidInputError(
            f"clues are {list(given.shape)} and the filled grid is {list(made.shape)}: give equal sizes."
        )
    changed = (given > 0) & (made != given)
    if solution is not None:
        right = _square(solution, "solution")
        if right.shape != made.shape:
            raise InvalidInputError(
                f"the solution is {list(right.shape)}, the grid {list(made.shape)}: give equal sizes."
            )
        return changed | ((made > 0) & (made != right))
    n = len(made)
    root = math.isqrt(n)
    row, column = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    box = row // root * root + column // root
    parts = torch.stack([p.flatten() for p in (row, column, box)])
    together = (parts[:, :, None] == parts[:, None, :]).any(0) & ~torch.eye(n * n, dtype=torch.bool)
    value = made.flatten()
    clash = (together & (value[:, None] == value[None]) & (value > 0)).any(1).reshape(n, n)
    return changed | (clash & (given == 0))


def sudoku_svg(clues: Grid, filled: Grid, solution: Grid | None = None, title: str = "") -> str:
    """An SVG of the grid: clues upright on grey, filled cells in colour, wrong ones red and struck through.

    Takes the page's theme colours where there is a page, and its own where there is none.
    """
    wrong = wrong_cells(clues, filled, solution)
    given, made = _square(clues, "clues"), _square(filled, "filled")
    n = len(given)
    root, side = math.isqrt(n), n * CELL
    count, empty = int(wrong.sum()), int((made == 0).sum())
    state = ", ".join([f"{count} wrong"] * (count > 0) + [f"{empty} empty"] * (empty > 0)) or "solved"
    parts = [f"<title>{html.escape(f'{title}: {state}' if title else state)}</title>"]
    for i in range(n):
        for j in range(n):
            x, y, value = j * CELL, i * CELL, int(made[i, j])
            clue, bad = bool(given[i, j] > 0), bool(wrong[i, j])
            if clue:
                parts.append(_rect(x, y, "var(--panel,#eef0f3)"))
            if bad:
                parts.append(_rect(x, y, "var(--wrong,#c62f2f)", 0.16))
            if not value:
                continue
            colour = "var(--wrong,#c62f2f)" if bad else "var(--ink,#1c2128)" if clue else "var(--after,#1668b8)"
            parts.append(
                f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2:g}" dy="0.36em" text-anchor="middle" '
                f'font-weight="{700 if clue else 400}" style="fill:{colour}">{value}</text>'
            )
            if bad:
                parts.append(_line(x + 9, y + CELL - 9, x + CELL - 9, y + 9, "var(--wrong,#c62f2f)", 1.6))
    for k in range(n + 1):
        width = 1.8 if k % root == 0 else 0.6
        colour = "var(--ink,#1c2128)" if k % root == 0 else "var(--faint,#656d78)"
        parts += [_line(k * CELL, 0, k * CELL, side, colour, width), _line(0, k * CELL, side, k * CELL, colour, width)]
    return (
        f'<svg role="img" width="{side + 4}" height="{side + 4}" viewBox="-2 -2 {side + 4} {side + 4}" '
        f'font-size="18" font-family="system-ui,sans-serif">{"".join(parts)}</svg>'
    )


def _rect(x: int, y: int, colour: str, opacity: float = 1.0) -> str:
    return f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" style="fill:{colour};fill-opacity:{opacity:g}"/>'


def _line(x0: int, y0: int, x1: int, y1: int, colour: str, width: float) -> str:
    return f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" style="stroke:{colour};stroke-width:{width:g}"/>'


def _square(grid: Grid, name: str) -> Tensor:
    """[n, n] with n a square number and entries from 0 (empty) to n; flat grids are folded."""
    x = torch.as_tensor(grid).cpu()
    n = math.isqrt(x.numel())
    if x.is_floating_point() or n * n != x.numel() or math.isqrt(n) ** 2 != n or n == 0:
        raise InvalidInputError(
            f"{name} of shape {list(x.shape)} and type {x.dtype} is no sudoku: give whole numbers [n, n]."
        )
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape != (n, n)):
        raise InvalidInputError(f"{name} of shape {list(x.shape)} is no sudoku: give [n, n] or [n * n].")
    x = x.reshape(n, n).long()
    if x.min() < 0 or x.max() > n:
        raise InvalidInputError(
            f"{name} goes from {int(x.min())} to {int(x.max())}: cells are 1 to {n}, 0 is empty; map mask tokens to 0."
        )
    return x
