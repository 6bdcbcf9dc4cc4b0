"""The language experiment: 4 x 4 sudoku by masked diffusion, several cells at a time.

A puzzle is a canvas of 16 cells with 8 to 12 holes, filled in place. The 288 completed grids are split once; no test
puzzle has a solution that was trained on. One cell a step is easy for a well-trained model; two or four at once are
drawn independently given the clues, so they contradict each other. That is the price of parallel decoding, which more
imitation cannot lower, and what a policy gradient over the decoder's own steps can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from denoiserl.labs import sudoku
from denoiserl.net import Transformer
from denoiserl.policy import Infill, Policy
from denoiserl.process import Logits, Masked, grid
from denoiserl.rng import Rng
from denoiserl.train import Keep, fit

HOLES = (8, 12)


@dataclass(frozen=True)
class Base:
    """The model before reward."""

    updates: int = 600
    """gradient steps of imitation"""
    batch: int = 128
    """grids a gradient step"""
    lr: float = 2e-3
    """AdamW's learning rate, with warm-up and cosine decay"""
    width: int = 64
    """features a cell"""
    depth: int = 3
    """transformer layers"""
    tokens: int = 2
    """cells revealed a step while learning from reward"""
    temperature: float = 1.0
    """of the decoder; part of the policy"""


def process(base: Base, tokens: int | None = None) -> Masked:
    """Confidence unmasking, ``tokens`` cells a step."""
    return Masked(sudoku.VOCAB, "confidence", tokens=tokens or base.tokens, temperature=base.temperature)


def decoding(made: Policy, tokens: int) -> Policy:
    """The same weights, decoded ``tokens`` cells a step."""
    assert isinstance(made.process, Masked)
    other = replace(made.process, tokens=tokens)
    steps = other.steps(grid(-(-HOLES[1] // tokens)))
    return replace(made, process=other, train=steps, serve=steps)


def policy(base: Base, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A bidirectional transformer with row, column and box positions."""
    torch.manual_seed(seed)
    net = Logits(Transformer(sudoku.VOCAB, sudoku.CELLS, base.width, base.depth, position="grid")).to(device)
    masked = process(base)
    steps = masked.steps(grid(-(-HOLES[1] // base.tokens)))
    return Policy.of(masked, net, (sudoku.CELLS,), steps, codec=Infill())


def prompts(seed: int, n: int = 4096) -> tuple[Tensor, Tensor]:
    """Training canvases [n, 16] and 1024 test canvases [1024, 16] whose solutions were never trained on."""
    train, test = sudoku.split(seed)
    return sudoku.puzzles(train, n, Rng(seed + 11), HOLES)[0], sudoku.puzzles(test, 1024, Rng(seed + 12), HOLES)[0]


def imitate(made: Policy, base: Base, seed: int, updates: int | None, lr: float, keep: Keep) -> Iterator[dict]:
    """Fit the model to the training grids by the masked-diffusion loss."""
    train = sudoku.split(seed)[0].to(made.device)
    yield from fit(
        made.process, made.denoiser, train, None, updates or base.updates, Rng(seed, made.device), batch=base.batch,
        lr=lr, keep=keep,
    )  # fmt: skip


def pretrain(base: Base, seed: int, keep: Keep) -> Iterator[dict]:
    """A policy that has imitated; a generator that yields metrics and returns the policy."""
    made = policy(base, seed, keep.device)
    yield from imitate(made, base, seed, None, base.lr, keep)
    return made


def evaluate(made: Policy, held_out: Tensor, rng: Rng, tokens: tuple[int, ...] = (1, 2, 4)) -> dict[str, float]:
    """Sampled exact-solve rate of the training decoder on held-out puzzles, at each number of cells a step."""
    rates = {}
    for k in tokens:
        answer = decoding(made, k).draw(held_out, rng)
        rates[f"solved at {k}"] = float(sudoku.verify(answer, held_out).float().mean())
    return rates
