"""The language experiment: 4 x 4 sudoku by masked diffusion, several cells at a time, learned from mistyped grids.

A puzzle is a canvas of 16 cells with 8 to 12 holes, filled in place. The 288 completed grids are split once; no test
puzzle has a solution that was trained on. In the corpus every cell is mistyped with probability ``label_noise``: a
faithful model makes the typos of its text however long it imitates, and cells that are drawn together, two or four at
once, contradict each other as well. A verifier can teach it to decide.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.nn import Transformer
from denoiserl.oracles import sudoku
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.report import image_grid
from denoiserl.tasks.base import Task
from denoiserl.train import Run

HOLES = (8, 12)
"""holes of a puzzle, fewest and most"""


@dataclass(frozen=True)
class Args(Settings):
    """The model before reward."""

    pretrain_updates: CountOrZero = 2000
    """gradient steps of imitation"""
    pretrain_batch_size: Count = 128
    """grids per gradient step of imitation"""
    pretrain_micro_batch_size: Count | None = None
    """grids per forward pass (None: all)"""
    pretrain_lr: NonNegative = 3e-3
    """learning rate of imitation (AdamW, cosine decay)"""
    policy_width: Count = 48
    """features per cell of the transformer"""
    policy_depth: Count = 2
    """transformer layers"""
    tokens_per_step: Count = 4
    """cells revealed per step in training"""
    label_noise: Fraction = 0.05
    """probability that a cell of the corpus is mistyped"""
    decoder_temperature: Positive = 1.0
    """temperature of the decoder, a part of the policy"""
    elbo_draws: CountOrZero = 0
    """maskings per grid of the likelihood bound (0: it is no metric)"""


def untrained_policy(base: Args, seed: int, device: str | torch.device = "cpu") -> Policy:
    """A bidirectional transformer with row, column and box positions, decoded by confidence."""
    torch.manual_seed(seed)
    net = Transformer(sudoku.VOCAB, sudoku.CELLS, base.policy_width, base.policy_depth, position="grid")
    masked = Masked(sudoku.VOCAB, "confidence", tokens=base.tokens_per_step, temperature=base.decoder_temperature)
    table = masked.steps(time_grid(-(-HOLES[1] // base.tokens_per_step)))
    return Policy.of(masked, TokenDenoiser(net).to(device), (sudoku.CELLS,), table, codec=InfillCodec())


def with_tokens_per_step(made: Policy, tokens: int) -> Policy:
    """The same weights, decoded ``tokens`` cells a step."""
    assert isinstance(made.process, Masked)
    other = replace(made.process, tokens=tokens)
    table = other.steps(time_grid(-(-HOLES[1] // tokens)))
    return replace(made, process=other, train_steps=table, eval_steps=table)


def puzzles(seed: int, n: int, held_out: bool = False) -> Tensor:
    """Canvases [n, 16] with holes. The grids are split once and for all seeds; ``held_out`` takes the unseen ones."""
    grids = sudoku.split()[int(held_out)]
    return sudoku.puzzles(grids, n, Rng(2 * seed + int(held_out)), HOLES)[0]


def corpus(base: Args, seed: int) -> Tensor:
    """The text that is imitated, [4096, 16]: training grids in which every cell is mistyped with probability
    ``label_noise``."""
    rng, grids = Rng(seed + 77), sudoku.split()[0]
    text = grids[rng.integers(0, len(grids), 4096)]
    slip = rng.uniform(*text.shape) < base.label_noise
    return torch.where(slip, rng.integers(0, sudoku.VOCAB, *text.shape), text)


def imitate(made: Policy, base: Args, seed: int, updates: int, lr: float, run: Run, stream: int = 0) -> Iterator[dict]:
    """Fit the model to the corpus of ``seed``, with minibatches and masks of their own for every ``stream``."""
    from denoiserl.recipes.language import mdlm  # the method; its experiment is this one

    a = mdlm.Args(updates, base.pretrain_batch_size, base.pretrain_micro_batch_size, lr)
    rng = Rng(seed + 1_000_003 * stream, run.device)
    yield from mdlm.improve(made, corpus(base, seed).to(made.device), a, rng, run)


def pretrained_policy(base: Args, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """A policy that has imitated; a generator that yields metrics and returns the policy."""
    made = untrained_policy(base, seed, run.device)
    yield from imitate(made, base, seed, base.pretrain_updates, base.pretrain_lr, run)
    return made


def untrained_start(base: Args, seed: int, run: Run) -> Policy:
    """Return a model that has learned nothing, for methods that imitate."""
    return untrained_policy(base, seed, run.device)


def tokens_per_step_options(base: Args) -> tuple[int, ...]:
    """The numbers of cells a step at which a model is judged: the one that it learns with, then four and two, and one
    where the text is judged too."""
    return tuple(dict.fromkeys((base.tokens_per_step, 4, 2, *((1,) if base.elbo_draws else ()))))


def evaluate_outcomes(
    made: Policy, held_out: Tensor, rng: Rng, tokens: tuple[int, ...] = (1, 2, 4)
) -> dict[str, Tensor]:
    """What one draw of the training decoder solves of the held-out canvases [n, 16]: bool [n] for each cells a step."""
    found = {}
    for k in tokens:
        answer = with_tokens_per_step(made, k).generate(held_out, rng)
        found[f"solved_at_{k}"] = sudoku.verify(answer, held_out)
    return found


def evaluate(made: Policy, held_out: Tensor, rng: Rng, tokens: tuple[int, ...] = (1, 2, 4)) -> dict[str, float]:
    """The sampled solve rate on held-out canvases at each number of cells a step."""
    return {k: float(v.float().mean()) for k, v in evaluate_outcomes(made, held_out, rng, tokens).items()}


def outcomes(made: Policy, base: Args, seed: int, n: int) -> dict[str, Tensor]:
    """0 or 1 for n held-out puzzles, at each of the numbers of cells a step, [n] each."""
    ks = tokens_per_step_options(base)
    found = evaluate_outcomes(made, puzzles(seed, n, True).to(made.device), Rng(seed, made.device), tuple(sorted(ks)))
    told = {f"solved_at_{k}": found[f"solved_at_{k}"].float().cpu() for k in ks}
    return told | (likelihoods(made, seed, n, base.elbo_draws) if base.elbo_draws else {})


@torch.no_grad()
def likelihoods(made: Policy, seed: int, n: int, draws: int) -> dict[str, Tensor]:
    """Return the likelihood bound of completed grids in nats per cell, [n] each: of held-out grids and of those that
    are trained on. Trial i takes grid i of its kind, from the first again where there are fewer."""
    told = {}
    for name, grids in (("elbo", sudoku.split()[1]), ("train_elbo", sudoku.split()[0])):
        some = grids[torch.arange(n) % len(grids)].to(made.device)
        told[name] = made.elbo(some, None, Rng(seed + 1, made.device), draws).mean(-1).cpu() / sudoku.CELLS
    return told


def look(made: Policy, base: Args, seed: int, n: int) -> dict[str, bytes | str]:
    """The answers to n held-out puzzles at four cells a step; what is wrong is red."""
    asked = puzzles(seed, n, True)
    answer = with_tokens_per_step(made, 4).generate(asked.to(made.device), Rng(seed, made.device))
    shown = [sudoku.picture(a, q) for a, q in zip(answer.cpu(), asked, strict=True)]
    return {"grids.png": image_grid(np.stack(shown), scale=1, pad=12)}


def metrics(base: Args) -> dict[str, tuple[str, str]]:
    """Return what is judged."""
    solved = {f"solved_at_{k}": (f"puzzles solved, {k} cells a step", "%") for k in tokens_per_step_options(base)}
    words = {"elbo": "likelihood bound of held-out grids", "train_elbo": "likelihood bound of training grids"}
    return solved | ({k: (v, "nats per cell") for k, v in words.items()} if base.elbo_draws else {})


def task(base: Args) -> Task:
    """The task: learn from a verifier, or from the corpus."""
    return Task(
        "sudoku",
        {"masked": partial(pretrained_policy, base), "untrained": partial(untrained_start, base)},
        lambda made, seed, n: outcomes(made, base, seed, n),
        metrics(base),
        reward=sudoku.reward,
        prompts=lambda seed: puzzles(seed, 20_000),
        data=lambda seed: corpus(base, seed),
        look=lambda made, seed, n: look(made, base, seed, n),
        imitate=lambda made, seed, updates, keep, stream: imitate(
            made, base, seed, updates, base.pretrain_lr, keep, stream
        ),
        caption="Clues are black, answers blue, and what breaks a row, a column or a box is red.",
        num_eval_trials=1024,
    )
