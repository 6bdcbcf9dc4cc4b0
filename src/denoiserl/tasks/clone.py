"""A clone without a simulator: demonstrations alone, and the denoising loss on held-out episodes.

    denoiserl run diffusion_policy --data my_demonstrations --env none

The loss orders policies that are trained on the same data; it does not say how often a robot succeeds. That needs an
environment: ``denoiserl eval RUN --env my_file.py:make_env``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import tree_map
from denoiserl.data import Demonstrations
from denoiserl.data.formats.any import read
from denoiserl.policy.policy import Policy
from denoiserl.tasks.base import Task
from denoiserl.tasks.policies import diffusion
from denoiserl.train import Run
from denoiserl.train.fit import training_losses

BLOCK = 256
"""windows whose loss is computed together"""


@lru_cache(maxsize=2)
def load_episodes(base: Any) -> Demonstrations:
    """Return all episodes. Raise RunError if there are none to learn from, or only one."""
    if base.data in (None, "none"):
        raise RunError("--env none has nothing to learn from: give demonstrations with --data")
    keys = [key.strip() for key in base.obs_keys.split(",") if key.strip()] or None
    limits = {"out_of_bounds_actions": base.out_of_bounds_actions, "exclude_episodes": base.exclude_episodes}
    demos = read(base.data, obs_keys=keys, **limits).demos
    if len(demos) < 2:
        raise RunError(f"{base.data} holds one episode, and a part is held out for validation: record two or more")
    return demos


def split_episodes(base: Any) -> tuple[Demonstrations, Demonstrations]:
    """Return the episodes to clone and the held-out ones: a share of all, at least one, the same for all seeds."""
    demos = load_episodes(base)
    count = max(1, round(base.held_out_fraction * len(demos)))
    held_out = torch.zeros(len(demos), dtype=torch.bool)
    held_out[Rng(0).permutation(len(demos))[: min(count, len(demos) - 1)]] = True
    return demos.take(~held_out), demos.take(held_out)


def start(base: Any, seed: int, run: Run) -> Policy:
    """Return an untrained diffusion policy, whose units are those of all episodes."""
    return diffusion(base, load_episodes(base), seed, run.device)


@torch.no_grad()
def outcomes(policy: Policy, base: Any, seed: int, n: int) -> Mapping[str, Tensor]:
    """Return the denoising loss [n] of windows of held-out episodes, each at its own time and with its own noise."""
    from denoiserl.recipes.imitation import diffusion_policy  # the recipe imports tasks

    rows = diffusion_policy.training_rows(policy, split_episodes(base)[1], diffusion_policy.Args())
    index, found = Rng(seed).integers(0, rows.size, n), []
    for part in torch.arange(n).split(BLOCK):
        some = tree_map(
            lambda v: v.to(policy.device), {k: v for k, v in rows.take(index[part]).items() if v is not None}
        )
        streams = Rng.rows([(seed * 1_000_003 + i) % 2**63 for i in part.tolist()], policy.device)
        loss = training_losses(
            policy.process, policy.denoiser, some["x0"], some["cond"], streams, counts=some.get("counts")
        )
        found.append(loss.cpu())
    return {"validation_loss": torch.cat(found)}


def task(base: Any) -> Task:
    """Return the task: clone demonstrations, evaluated by the loss on held-out episodes."""
    train, held_out = split_episodes(base)
    return Task(
        Path(str(base.data)).stem,
        {"untrained": lambda seed, run: start(base, seed, run)},
        lambda policy, seed, n: outcomes(policy, base, seed, n),
        {"validation_loss": (f"denoising loss on held-out episodes ({len(held_out)})", "")},
        data=lambda seed: train,
        num_eval_trials=1024,
        better="lower",
    )
