"""Compare methods on a task of your own: equal budgets, paired seeds, verdicts with stated error rates.

Copy this file and replace what is marked YOURS, then

    denoiserl compare --task your_task.py:make_task --methods dppo,drwr,none --budget 30k --unit env_steps --num-seeds 5

trains every method from the same clones, judges all of them on the same held-out starts, and writes a report. A second
call goes on where an interrupted one stopped; one with more seeds adds them.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from your_robot import CHUNK, DIM, Net, Reach, demonstrations  # YOURS: the environment and the network of that example

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.control.acting import eval_actor
from denoiserl.envs import Collector, evaluate
from denoiserl.processes import cosine, ddim, with_capped_std, with_min_std
from denoiserl.tasks.base import Task
from denoiserl.train import Run, fit


def policy(seed: int) -> Policy:
    """YOURS: a policy before it has learned anything."""
    torch.manual_seed(seed)
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.1), clip=1.0)
    train, serve = process.steps(time_grid(6)), process.steps(time_grid(6), with_capped_std(ddim(1.0)))
    return Policy.of(process, GaussianDenoiser(Net(), cosine, "v"), (CHUNK, DIM), train, serve)


def make_task(updates: int = 800) -> Task:
    """A hand that should reach a goal. Arguments are settings: --task.updates 400."""

    def start(seed: int, keep: Run) -> Generator[dict, None, Policy]:
        """Where every method starts: a clone of that seed. Yields metrics, returns the policy."""
        made = policy(seed)
        observations, chunks = demonstrations(4000, Rng(seed))
        yield from fit(made.process, made.denoiser, chunks, observations, updates, Rng(seed), run=keep)
        return made

    def outcomes(made: Policy, seed: int, n: int) -> dict[str, Tensor]:
        """n held-out trials, one number each: the same seed must give the same trials."""
        done = evaluate(eval_actor(made, CHUNK), Reach, n, seed, num_envs=50)
        return {"success": done.outcomes["success"], "length": done.outcomes["length"]}

    return Task(
        "reach",
        {"diffusion": start},
        outcomes,
        {"success": ("goals reached", "%"), "length": ("steps until the end", "")},
        env=lambda num_envs, seed: Collector(Reach, num_envs, seed),
        restore=lambda path, device: Policy.load(path, Net(), device),  # because Net is not of this package
    )
