"""The language task: 4 x 4 sudoku by masked diffusion, several cells per step, pre-trained on grids with errors.

A puzzle is a canvas of 16 cells with 8 to 12 holes, filled in place. The 288 completed grids are split once; no test
puzzle has a solution from the training set. In the corpus every cell is wrong with probability ``label_noise``, and a
model that fits it reproduces such errors, however long it imitates. Also, cells that are sampled together, two or four
per step, contradict each other. A verifier's reward reduces both errors.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, Positive, Settings
from denoiserl.nn import Transformer
from denoiserl.oracles import sudoku
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Masked, TokenDenoiser, time_grid
from denoiserl.report import image_grid
from denoiserl.tasks.base import Task
from denoiserl.train import Run

HOLES = (8, 12)
"""minimum and maximum number of holes of a puzzle"""


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the pre-trained model."""

    pretrain_updates: CountOrZero = 2000
    """gradient steps of imitation"""
    pretrain_batch_size: Count = 128
    """items per gradient step of imitation; grids"""
    pretrain_micro_batch_size: Count | None = None
    """grids per forward pass (None: all)"""
    pretrain_lr: Positive = 3e-3
    """learning rate of imitation (AdamW, cosine decay)"""
    policy_width: Count = 48
    """width of the policy network; features per cell"""
    policy_depth: Count = 2
    """layers of the policy network"""
    tokens_per_step: Count = 4
    """tokens revealed per step; cells, in training"""
    label_noise: Fraction = 0.05
    """probability that a label is wrong; a cell of the corpus"""
    decoder_temperature: Positive = 1.0
    """temperature of the decoder, a part of the policy"""
    elbo_draws: CountOrZero = 0
    """maskings per grid for the likelihood bound (0: do not measure it)"""


def untrained_policy(base: Args, seed: int, device: str | torch.device = "cpu") -> Policy:
    """Return a bidirectional transformer with row, column and box positions, decoded by confidence."""
    torch.manual_seed(seed)
    net = Transformer(sudoku.VOCAB, sudoku.CELLS, base.policy_width, base.policy_depth, position="grid")
    masked = Masked(sudoku.VOCAB, "confidence", tokens=base.tokens_per_step, temperature=base.decoder_temperature)
    table = masked.steps(time_grid(-(-HOLES[1] // base.tokens_per_step)))
    return Policy.of(masked, TokenDenoiser(net).to(device), (sudoku.CELLS,), table, codec=InfillCodec())


def with_tokens_per_step(policy: Policy, tokens: int) -> Policy:
    """Return a policy on the same weights that decodes ``tokens`` cells per step."""
    assert isinstance(policy.process, Masked)
    other = replace(policy.process, tokens=tokens)
    table = other.steps(time_grid(-(-HOLES[1] // tokens)))
    return replace(policy, process=other, train_steps=table, eval_steps=table)


def puzzles(seed: int, n: int, held_out: bool = False) -> Tensor:
    """Return canvases [n, 16] with holes, from training or ``held_out`` grids; the split is the same for all seeds."""
    grids = sudoku.split()[int(held_out)]
    return sudoku.puzzles(grids, n, Rng(2 * seed + int(held_out)), HOLES)[0]


def corpus(base: Args, seed: int) -> Tensor:
    """Return the corpus [4096, 16]: training grids in which every cell is random with probability ``label_noise``."""
    rng, grids = Rng(seed + 77), sudoku.split()[0]
    text = grids[rng.integers(0, len(grids), 4096)]
    wrong = rng.uniform(*text.shape) < base.label_noise
    return torch.where(wrong, rng.integers(0, sudoku.VOCAB, *text.shape), text)


def imitate(
    policy: Policy, base: Args, seed: int, updates: int, lr: float, run: Run, stream: int = 0
) -> Iterator[dict]:
    """Fit the model to the corpus of ``seed``; each ``stream`` has its own minibatches and masks."""
    from denoiserl.recipes.language import mdlm  # the recipe imports tasks

    if not updates:
        return
    a = mdlm.Args(updates, base.pretrain_batch_size, base.pretrain_micro_batch_size, lr)
    rng = Rng(seed + 1_000_003 * stream, run.device)
    yield from mdlm.improve(policy, corpus(base, seed).to(policy.device), a, rng, run)


def pretrained_policy(base: Args, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """Train a policy by imitation: yield metrics and return the policy."""
    policy = untrained_policy(base, seed, run.device)
    yield from imitate(policy, base, seed, base.pretrain_updates, base.pretrain_lr, run)
    return policy


def untrained_start(base: Args, seed: int, run: Run) -> Policy:
    """Return an untrained model, for methods that imitate."""
    return untrained_policy(base, seed, run.device)


def tokens_per_step_options(base: Args) -> tuple[int, ...]:
    """Return the numbers of cells per step at which to evaluate: that of training, 4, 2, and 1 with ``elbo_draws``."""
    return tuple(dict.fromkeys((base.tokens_per_step, 4, 2, *((1,) if base.elbo_draws else ()))))


def evaluate_outcomes(
    policy: Policy, held_out: Tensor, rng: Rng | int, tokens: tuple[int, ...] = (1, 2, 4)
) -> dict[str, Tensor]:
    """Sample one solution per held-out canvas [n, 16] and verify it: bool [n] for each number of cells per step."""
    rng = as_rng(rng, policy.device)
    found = {}
    for k in tokens:
        solution = with_tokens_per_step(policy, k).generate(held_out, rng)
        found[f"solved_at_{k}"] = sudoku.verify(solution, held_out)
    return found


def evaluate(policy: Policy, held_out: Tensor, rng: Rng | int, tokens: tuple[int, ...] = (1, 2, 4)) -> dict[str, float]:
    """Return the solve rate of samples on held-out canvases at each number of cells per step."""
    rng = as_rng(rng, policy.device)
    return {k: float(v.float().mean()) for k, v in evaluate_outcomes(policy, held_out, rng, tokens).items()}


def outcomes(policy: Policy, base: Args, seed: int, n: int) -> dict[str, Tensor]:
    """Return 0 or 1 for n held-out puzzles at each number of cells per step, [n] each, and likelihood bounds."""
    ks = tokens_per_step_options(base)
    found = evaluate_outcomes(
        policy, puzzles(seed, n, True).to(policy.device), Rng(seed, policy.device), tuple(sorted(ks))
    )
    solved = {f"solved_at_{k}": found[f"solved_at_{k}"].float().cpu() for k in ks}
    return solved | (likelihoods(policy, seed, n, base.elbo_draws) if base.elbo_draws else {})


@torch.no_grad()
def likelihoods(policy: Policy, seed: int, n: int, draws: int) -> dict[str, Tensor]:
    """Return the likelihood bound of completed grids in nats per cell, [n] each, for held-out and training grids.

    Trial i uses grid i modulo the number of grids.
    """
    bounds = {}
    for name, grids in (("elbo", sudoku.split()[1]), ("train_elbo", sudoku.split()[0])):
        some = grids[torch.arange(n) % len(grids)].to(policy.device)
        bounds[name] = policy.elbo(some, None, Rng(seed + 1, policy.device), draws).mean(-1).cpu() / sudoku.CELLS
    return bounds


def render_trials(policy: Policy, base: Args, seed: int, n: int) -> dict[str, bytes | str]:
    """Render solutions of n held-out puzzles at four cells per step, with errors in red."""
    canvas = puzzles(seed, n, True)
    solution = with_tokens_per_step(policy, 4).generate(canvas.to(policy.device), Rng(seed, policy.device))
    shown = [sudoku.picture(a, q) for a, q in zip(solution.cpu(), canvas, strict=True)]
    return {"grids.png": image_grid(np.stack(shown), scale=1, pad=12)}


def metrics(base: Args) -> dict[str, tuple[str, str]]:
    """Return the metrics with their descriptions and units."""
    solved = {f"solved_at_{k}": (f"puzzles solved, {k} cells per step", "%") for k in tokens_per_step_options(base)}
    words = {"elbo": "likelihood bound of held-out grids", "train_elbo": "likelihood bound of training grids"}
    return solved | ({k: (v, "nats per cell") for k, v in words.items()} if base.elbo_draws else {})


def task(base: Args) -> Task:
    """Return the task: learn from a verifier, or from the corpus."""
    return Task(
        "sudoku",
        {"masked": partial(pretrained_policy, base), "untrained": partial(untrained_start, base)},
        lambda policy, seed, n: outcomes(policy, base, seed, n),
        metrics(base),
        reward=sudoku.reward,
        prompts=lambda seed: puzzles(seed, 20_000),
        data=lambda seed: corpus(base, seed),
        render=lambda policy, seed, n: render_trials(policy, base, seed, n),
        continue_imitation=lambda policy, seed, updates, keep, stream: imitate(
            policy, base, seed, updates, base.pretrain_lr, keep, stream
        ),
        caption="Clues are black, sampled cells blue, and conflicts in a row, column or box red.",
        num_eval_trials=1024,
    )
