"""SHAPES: small images of coloured shapes, generated from a prompt and read by a parser.

A scene is nine cells of a 3 x 3 layout; a cell is empty or holds one of 4 shapes in one of 4 colours. The image is
12 x 12 x 3 in [-1, 1]. The prompt does not fix the grey level of the background and the brightness of the ink, so
images of one prompt differ. The parser fits both and reads every cell: the reward is verifiable, without a reward
model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng

SHAPES = ("square", "disc", "cross", "bar")
COLOURS = ("red", "green", "blue", "yellow")
CELLS = 9
SIDE = 12
EVENT = (3, SIDE, SIDE)
PROMPT = CELLS * (len(SHAPES) + len(COLOURS) + 1)
EMPTY = 0
UNREADABLE = -1
GREY = (0.0, 0.3)
"""range of the background's grey level, in [0, 1]"""
BRIGHT = (0.7, 1.0)
"""range of the ink's brightness, in [0, 1]"""
READABLE = 0.01
"""largest mean squared error per pixel (levels in [0, 1]) of a readable cell"""

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
    """The parser's result: ``scene`` and ``residual``, [*batch, 9] each.

    ``scene`` is 0 for an empty cell, 1 + 4 · shape + colour for an object, and -1 for an unreadable cell. ``residual``
    is the mean squared error of the best rendering.
    """

    scene: Tensor
    residual: Tensor


def content(shape: str, colour: str) -> int:
    """Return the number of a cell's content, e.g. ``content("disc", "red")``."""
    return 1 + 4 * SHAPES.index(shape) + COLOURS.index(colour)


def random_scenes(n: int, rng: Rng | int, objects: tuple[int, int] = (1, 3)) -> Tensor:
    """Draw ``n`` random scenes [n, 9]: a uniform number of ``objects`` (both ends included) in different cells."""
    rng = as_rng(rng)
    low, high = objects
    if not 0 <= low <= high <= CELLS:
        raise InvalidInputError(f"objects = {objects}: give a range inside 0..{CELLS}")
    rank = rng.uniform(n, CELLS).argsort(-1).argsort(-1)
    drawn = rng.integers(1, 17, n, CELLS)
    return drawn.masked_fill(rank >= rng.integers(low, high + 1, n, 1), EMPTY)


def encode(scene: Tensor) -> Tensor:
    """Return the prompt of a scene [*batch, 9]: a multi-hot vector [*batch, 81], per cell empty | shape | colour."""
    known = scene.clamp_min(1) - 1
    shape = torch.nn.functional.one_hot(known // 4, len(SHAPES))
    colour = torch.nn.functional.one_hot(known % 4, len(COLOURS))
    present = (scene > 0)[..., None].long()
    return torch.cat([1 - present, shape * present, colour * present], -1).flatten(-2).float()


def decode(prompt: Tensor) -> Tensor:
    """Return the scene of a prompt, the inverse of ``encode``: [*batch, 81] -> [*batch, 9]."""
    if prompt.shape[-1] != PROMPT:
        raise InvalidInputError(f"prompts have shape {tuple(prompt.shape)}: give [*batch, {PROMPT}]")
    cell = prompt.unflatten(-1, (CELLS, 9))
    return torch.where(cell[..., 0] > 0.5, EMPTY, 1 + 4 * cell[..., 1:5].argmax(-1) + cell[..., 5:].argmax(-1))


def describe_scene(scene: Tensor) -> str:
    """Describe one scene [9] in English: "red disc top left, blue bar centre"."""
    place = [
        f"{row} {column}".strip().replace("middle middle", "centre")
        for row in ("top", "middle", "bottom")
        for column in ("left", "middle", "right")
    ]
    parts = [
        f"{COLOURS[(c - 1) % 4]} {SHAPES[(c - 1) // 4]} {place[i]}" for i, c in enumerate(scene.tolist()) if c > EMPTY
    ]
    return ", ".join(parts) or "nothing"


def render(scene: Tensor, grey: Tensor | float = 0.0, bright: Tensor | float = 1.0) -> Tensor:
    """Render scenes [*batch, 9] as images [*batch, 3, 12, 12] in [-1, 1]; ``grey`` and ``bright`` are per image."""
    if bool(((scene < 0) | (scene > 16)).any()):
        raise InvalidInputError("a cell is not in 0..16: give 0 (empty) or 1..16; unreadable cells cannot be rendered")
    levels = [torch.as_tensor(v, dtype=torch.float32).expand(scene.shape[:-1])[..., None, None] for v in (grey, bright)]
    cell = levels[0] * _PAPER[scene] + levels[1] * _INK[scene]
    pixels = cell.unflatten(-1, (3, 4, 4)).unflatten(-4, (3, 3))  # [*batch, row, column, rgb, y, x]
    pixels = pixels.movedim(-3, -5).movedim(-2, -3)  # [*batch, rgb, row, y, column, x]
    return 2 * pixels.flatten(-4, -3).flatten(-2, -1) - 1


def draw(scene: Tensor, rng: Rng | int) -> Tensor:
    """Draw images of scenes [*batch, 9] with random background and brightness, as data."""
    rng = as_rng(rng, scene.device)
    grey = GREY[0] + (GREY[1] - GREY[0]) * rng.uniform(*scene.shape[:-1])
    bright = BRIGHT[0] + (BRIGHT[1] - BRIGHT[0]) * rng.uniform(*scene.shape[:-1])
    return render(scene, grey, bright)


def parse(image: Tensor) -> Reading:
    """Read images [*batch, 3, 12, 12]: assign each cell to the nearest of its 17 renderings.

    Grey and brightness are fitted to each cell by least squares and clipped to the renderer's range.
    """
    pixels = (image + 1) / 2
    if image.shape[-3:] != EVENT:
        raise InvalidInputError(f"images have shape {tuple(image.shape)}: give [*batch, {', '.join(map(str, EVENT))}]")
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
    """Return the verifiable rewards of images for prompts [*batch, 81], each [*batch].

    ``objects_found``: the fraction of prompted objects in the right cell; ``exact_match``: 1 if the whole scene is
    right, including empty cells; ``count_correct``: 1 if the number of objects is right.
    """
    scene, target = parse(image).scene, decode(prompts)
    there = target > EMPTY
    hit = (scene == target) & there
    return {
        "objects_found": hit.sum(-1) / there.sum(-1).clamp_min(1),
        "exact_match": (scene == target).all(-1).float(),
        "count_correct": ((scene != EMPTY).sum(-1) == there.sum(-1)).float(),
    }


def on_manifold(image: Tensor) -> Tensor:
    """Return whether every cell is a rendering (right or wrong), [*batch] bool: a test for reward hacking."""
    return (parse(image).scene != UNREADABLE).all(-1)


def diversity(image: Tensor) -> Tensor:
    """Return the mean distance (RMS per pixel) between images of one prompt, [prompts, group, 3, 12, 12] -> [prompts].

    Data have about 0.2 from the background and the ink alone; a collapsed generator has 0.
    """
    group = image.shape[1]
    if group < 2:
        raise InvalidInputError("diversity compares images of one prompt: give groups of at least 2")
    flat = image.flatten(2)
    distance = torch.cdist(flat, flat) / flat.shape[-1] ** 0.5
    return distance.sum((1, 2)) / (group * (group - 1))
