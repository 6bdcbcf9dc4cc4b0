"""SHAPES: small pictures of coloured shapes, drawn from a prompt and read back by a parser.

A scene is nine cells of a 3 x 3 layout; a cell is empty or holds one of 4 shapes in one of 4 colours. The picture is
12 x 12 x 3 in [-1, 1]. Two things are not in the prompt and are left to the generator: the grey level of the
background and the brightness of the ink, so pictures of one prompt differ. The parser fits both and reads every cell,
hence the reward is verifiable: no learned judge, nothing to fool but the picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng

SHAPES = ("square", "disc", "cross", "bar")
COLOURS = ("red", "green", "blue", "yellow")
CELLS = 9
SIDE = 12
EVENT = (3, SIDE, SIDE)
PROMPT = CELLS * (len(SHAPES) + len(COLOURS) + 1)
EMPTY = 0
UNREADABLE = -1
GREY = (0.0, 0.3)
"""the background's grey level, of 1"""
BRIGHT = (0.7, 1.0)
"""the ink's brightness, of 1"""
READABLE = 0.01
"""largest mean squared error a pixel (levels of 0..1) of a cell that can be read"""

_MASK = torch.tensor(
    [
        [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]],
        [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]],
        [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]],
    ],
    dtype=torch.float32,
)
_RGB = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float32)

# every cell content as two 4 x 4 x 3 layers: where the ink is (times its colour), and where the background is
_INK = torch.cat([torch.zeros(1, 48), (_MASK[:, None, None] * _RGB[None, :, :, None, None]).reshape(16, 48)])
_PAPER = torch.cat(
    [torch.ones(1, 48), (1 - _MASK)[:, None, None].expand(4, 4, 3, 4, 4).reshape(16, 48)]
)  # content 1 + 4 * shape + colour


class Reading(NamedTuple):
    """What the parser sees. ``scene`` [*batch, 9] holds 0 for an empty cell, 1 + 4 · shape + colour for an object and
    -1 for a cell that is no rendering; ``residual`` [*batch, 9] is the mean squared error of the best one."""

    scene: Tensor
    residual: Tensor


def content(shape: str, colour: str) -> int:
    """The number of a cell's content, e.g. ``content("disc", "red")``."""
    return 1 + 4 * SHAPES.index(shape) + COLOURS.index(colour)


def scenes(n: int, rng: Rng, objects: tuple[int, int] = (1, 3)) -> Tensor:
    """``n`` random scenes [n, 9]: a uniform number of ``objects`` (both ends included) in different cells."""
    low, high = objects
    if not 0 <= low <= high <= CELLS:
        raise InvalidInputError(f"objects must be a range inside 0..{CELLS}; it is {objects}")
    rank = rng.uniform(n, CELLS).argsort(-1).argsort(-1)
    drawn = rng.integers(1, 17, n, CELLS)
    return drawn.masked_fill(rank >= rng.integers(low, high + 1, n, 1), EMPTY)


def encode(scene: Tensor) -> Tensor:
    """The prompt of a scene [*batch, 9]: a multi-hot vector [*batch, 81], for each cell empty | shape | colour."""
    known = scene.clamp_min(1) - 1
    shape = torch.nn.functional.one_hot(known // 4, len(SHAPES))
    colour = torch.nn.functional.one_hot(known % 4, len(COLOURS))
    present = (scene > 0)[..., None].long()
    return torch.cat([1 - present, shape * present, colour * present], -1).flatten(-2).float()


def decode(prompt: Tensor) -> Tensor:
    """The scene of a prompt: the inverse of ``encode``, [*batch, 81] -> [*batch, 9]."""
    if prompt.shape[-1] != PROMPT:
        raise InvalidInputError(f"a prompt ends in {PROMPT} numbers; got {tuple(prompt.shape)}")
    cell = prompt.unflatten(-1, (CELLS, 9))
    return torch.where(cell[..., 0] > 0.5, EMPTY, 1 + 4 * cell[..., 1:5].argmax(-1) + cell[..., 5:].argmax(-1))


def words(scene: Tensor) -> str:
    """One scene [9] in English: "red disc top left, blue bar centre"."""
    place = [
        f"{row} {column}".strip().replace("middle middle", "centre")
        for row in ("top", "middle", "bottom")
        for column in ("left", "middle", "right")
    ]
    said = [
        f"{COLOURS[(c - 1) % 4]} {SHAPES[(c - 1) // 4]} {place[i]}" for i, c in enumerate(scene.tolist()) if c > EMPTY
    ]
    return ", ".join(said) or "nothing"


def render(scene: Tensor, grey: Tensor | float = 0.0, bright: Tensor | float = 1.0) -> Tensor:
    """Pictures [*batch, 3, 12, 12] in [-1, 1] of scenes [*batch, 9]; ``grey`` and ``bright`` are one a picture."""
    if bool(((scene < 0) | (scene > 16)).any()):
        raise InvalidInputError("a scene holds 0 (empty) or 1..16 in every cell; unreadable cells cannot be drawn")
    levels = [torch.as_tensor(v, dtype=torch.float32).expand(scene.shape[:-1])[..., None, None] for v in (grey, bright)]
    cell = levels[0] * _PAPER[scene] + levels[1] * _INK[scene]
    pixels = cell.unflatten(-1, (3, 4, 4)).unflatten(-4, (3, 3))  # [*batch, row, column, rgb, y, x]
    pixels = pixels.movedim(-3, -5).movedim(-2, -3)  # [*batch, rgb, row, y, column, x]
    return 2 * pixels.flatten(-4, -3).flatten(-2, -1) - 1


def draw(scene: Tensor, rng: Rng) -> Tensor:
    """Data: pictures of scenes [*batch, 9] with random background and brightness."""
    grey = GREY[0] + (GREY[1] - GREY[0]) * rng.uniform(*scene.shape[:-1])
    bright = BRIGHT[0] + (BRIGHT[1] - BRIGHT[0]) * rng.uniform(*scene.shape[:-1])
    return render(scene, grey, bright)


def parse(image: Tensor) -> Reading:
    """Read pictures [*batch, 3, 12, 12]: each cell is explained by the nearest of its 17 renderings.

    Grey and brightness are fitted to each cell by least squares and kept inside the renderer's range.
    """
    pixels = (image + 1) / 2
    if image.shape[-3:] != EVENT:
        raise InvalidInputError(f"pictures end in {EVENT}; got {tuple(image.shape)}")
    cell = pixels.unflatten(-1, (3, 4)).unflatten(-3, (3, 4))  # [*batch, rgb, row, y, column, x]
    cell = cell.movedim(-2, -3).movedim(-5, -3)  # [*batch, row, column, rgb, y, x]
    cell = cell.flatten(-5, -4).flatten(-3)  # [*batch, 9, 48]
    ink, paper = _INK.to(image.device), _PAPER.to(image.device)
    bright = (cell @ ink.T / ink.sum(-1).clamp_min(1)).clamp(*BRIGHT)
    grey = (cell @ paper.T / paper.sum(-1).clamp_min(1)).clamp(*GREY)
    fitted = grey[..., None] * paper + bright[..., None] * ink
    error = (cell[..., None, :] - fitted).square().mean(-1)  # [*batch, 9, 17]
    residual, scene = error.min(-1)
    return Reading(scene.masked_fill(residual > READABLE, UNREADABLE), residual)


def reward(image: Tensor, prompts: Tensor) -> dict[str, Tensor]:
    """The verifiable rewards of pictures for prompts [*batch, 81], each [*batch]:

    ``found``: the fraction of prompted objects that stand where they should; ``strict``: 1 when the whole scene is
    right, empty cells too; ``count``: 1 when the number of objects is right.
    """
    seen, asked = parse(image).scene, decode(prompts)
    there = asked > EMPTY
    hit = (seen == asked) & there
    return {
        "objects_found": hit.sum(-1) / there.sum(-1).clamp_min(1),
        "exact_match": (seen == asked).all(-1).float(),
        "count_correct": ((seen != EMPTY).sum(-1) == there.sum(-1)).float(),
    }


def on_manifold(image: Tensor) -> Tensor:
    """Whether every cell is some rendering (right or wrong), [*batch] bool: the check against reward hacking."""
    return (parse(image).scene != UNREADABLE).all(-1)


def diversity(image: Tensor) -> Tensor:
    """The mean distance (RMS a pixel) between pictures of one prompt, [prompts, group, 3, 12, 12] -> [prompts].

    Data have about 0.2 from the background and the ink alone; a collapsed generator has 0.
    """
    group = image.shape[1]
    if group < 2:
        raise InvalidInputError("diversity compares pictures of one prompt: it needs a group of at least 2")
    flat = image.flatten(2)
    distance = torch.cdist(flat, flat) / flat.shape[-1] ** 0.5
    return distance.sum((1, 2)) / (group * (group - 1))
