"""Sudoku on 4 x 4: a language of 288 sequences, each of which can be verified.

Digits are the tokens 0..3, and a hole is the mask token 4. A puzzle is a *canvas*: the 16 cells of one grid, row by
row, with the clues in place (in-place infilling). A puzzle may have several solutions; each of them is accepted.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng

VOCAB = 4
MASK = 4
CELLS = 16

_ROW = [[4 * r + c for c in range(4)] for r in range(4)]
_COLUMN = [[4 * r + c for r in range(4)] for c in range(4)]
_BOX = [[4 * (2 * i + r) + 2 * j + c for r in range(2) for c in range(2)] for i in range(2) for j in range(2)]
UNITS = torch.tensor([*_ROW, *_COLUMN, *_BOX])
"""The 12 rows, columns and boxes as cell indices, [12, 4]."""


def valid(tokens: Tensor) -> Tensor:
    """Return whether each row, column and box of ``tokens`` [*batch, 16] holds all four digits: [*batch] bool."""
    units = tokens[..., UNITS.to(tokens.device)].sort(-1).values
    return (units == torch.arange(VOCAB, device=tokens.device)).all(-1).all(-1)


@lru_cache(maxsize=1)
def _grids() -> Tensor:
    rows = torch.tensor(list(permutations(range(VOCAB))))
    pairs = rows[torch.cartesian_prod(*[torch.arange(len(rows))] * 2)].flatten(1)  # two rows, [576, 8]
    boxes = torch.stack([pairs[:, [0, 1, 4, 5]], pairs[:, [2, 3, 6, 7]]], 1).sort(-1).values
    pairs = pairs[(boxes == torch.arange(VOCAB)).all(-1).all(-1)]
    grid = pairs[torch.cartesian_prod(*[torch.arange(len(pairs))] * 2)].flatten(1)
    return grid[valid(grid)]


def grids() -> Tensor:
    """Return all 288 completed grids, [288, 16] int64, in lexicographic order."""
    return _grids().clone()


def split(seed: int = 0, train: int = 200) -> tuple[Tensor, Tensor]:
    """Split the completed grids: ([train, 16], [288 - train, 16]). No test solution is a training solution."""
    every = grids()
    if not 0 < train < len(every):
        raise InvalidInputError(f"train must leave both sides some of the {len(every)} grids; it is {train}")
    order = Rng(seed).permutation(len(every))
    return every[order[:train]], every[order[train:]]


def puzzles(solutions: Tensor, n: int, rng: Rng | int, holes: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor]:
    """Return ``n`` puzzles from completed grids: (canvas [n, 16] with ``MASK`` in the holes, solution [n, 16]).

    The number of holes is uniform on ``holes`` (both ends included), and so is the choice of cells.
    """
    rng = as_rng(rng)
    low, high = holes
    if not 0 <= low <= high <= CELLS:
        raise InvalidInputError(f"holes must be a range inside 0..{CELLS}; it is {holes}")
    solution = solutions[rng.integers(0, len(solutions), n)]
    rank = rng.uniform(n, CELLS).argsort(-1).argsort(-1)
    canvas = solution.masked_fill(rank < rng.integers(low, high + 1, n, 1), MASK)
    return canvas, solution


def verify(tokens: Tensor, canvas: Tensor) -> Tensor:
    """Return whether ``tokens`` [*batch, 16] solves ``canvas``: a valid grid that keeps every clue. [*batch] bool."""
    if tokens.shape[-1] != CELLS or canvas.shape[-1] != CELLS:
        raise InvalidInputError(f"a sudoku has {CELLS} cells; got {tuple(tokens.shape)} and {tuple(canvas.shape)}")
    return valid(tokens) & ((canvas == MASK) | (canvas == tokens)).all(-1)


def reward(tokens: Tensor, canvas: Tensor) -> Tensor:
    """Return 1 for a solved puzzle, else 0: [*batch] float32."""
    return verify(tokens, canvas).float()


def format_grid(tokens: Tensor, canvas: Tensor | None = None) -> str:
    """Return one grid [16] as four lines; holes are dots, and filled-in digits are bracketed if a canvas is given."""
    cell = []
    for i, token in enumerate(tokens.tolist()):
        mark = "." if token == MASK else str(token + 1)
        cell.append(f"[{mark}]" if canvas is not None and int(canvas[i]) == MASK and token != MASK else f" {mark} ")
    lines = ["".join(cell[4 * r : 4 * r + 2]) + "|" + "".join(cell[4 * r + 2 : 4 * r + 4]) for r in range(4)]
    return "\n".join([*lines[:2], "------+------", *lines[2:]])


_FONT = {0: "010110010010111", 1: "110001010100111", 2: "111001011001111", 3: "101101111001001", 4: "000000010000000"}


def picture(tokens: Tensor, canvas: Tensor | None = None, scale: int = 4) -> np.ndarray:
    """Draw one grid [16] as an image [H, W, 3] uint8.

    Clues are black and filled-in digits blue; on a complete grid, digits that break a row, column or box are red.
    """
    size = 9 * scale
    image = np.full((4 * size + 1, 4 * size + 1, 3), 255, np.uint8)
    wrong = set()
    for unit in UNITS.tolist():
        inside = tokens[unit]
        wrong |= {i for i in unit if int(tokens[i]) != MASK and int((inside == tokens[i]).sum()) > 1}
    for i, token in enumerate(tokens.tolist()):
        clue = canvas is None or int(canvas[i]) != MASK
        ink = (200, 30, 30) if i in wrong else (20, 20, 20) if clue else (30, 80, 220)
        if token == MASK:
            ink = (190, 190, 190)
        glyph = np.array([int(bit) for bit in _FONT[token]], bool).reshape(5, 3).repeat(scale, 0).repeat(scale, 1)
        top, left = (i // 4) * size + 2 * scale, (i % 4) * size + 3 * scale
        image[top : top + 5 * scale, left : left + 3 * scale][glyph] = ink
    for k in range(5):
        shade = 0 if k % 2 == 0 else 190
        image[k * size, :] = image[:, k * size] = shade
    return image
