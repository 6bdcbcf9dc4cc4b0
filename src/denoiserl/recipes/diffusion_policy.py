"""Diffusion Policy: clone demonstrations with a diffusion model over chunks of actions.

paper: arXiv 2303.04137
signal: data
family: imitation

Every window of a demonstration pairs the last T_o observations with the next H actions. A network learns to denoise
the chunk given the observations, E ‖x̂₀ − x₀‖² weighted as its prediction asks; the moving average of its weights is
what acts. In the environment a chunk is drawn, its first T_a actions are executed, and the policy plans again.

As published: min-max normalisation to [−1, 1], padding by repeated frames, EMA, receding horizon. Differences: times
are continuous on a cosine schedule instead of 100 levels, so any number of steps serves; the network is an MLP (small
actions) or the 1-D U-Net with GELU (Mish costs 13 times as much on a CPU).

Expect, with the defaults, a success of 0.5 to 0.75 on Meta-World's drawer-open, cloned from a demonstrator that
misjudges where things are and succeeds in a third of his episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.data import Demos, windows
from denoiserl.errors import BadSignal
from denoiserl.policy import Policy
from denoiserl.recipes import _robot
from denoiserl.rng import Rng
from denoiserl.train import Keep, fit


@dataclass(frozen=True)
class Args:
    seed: int = 0
    base: _robot.Base = _robot.Base()
    """the task, its demonstrations and the network"""


def improve(policy: Policy, data: Demos, a: Any, rng: Rng, keep: Keep | None = None) -> Iterator[dict]:
    """Clone ``data``: ``a`` names updates, batch, lr, history (T_o) and execute (T_a)."""
    horizon, history = policy.event[0], a.history
    window = windows(data.ends, horizon, history, a.execute)
    every = torch.arange(len(window))
    chunk = policy.codec.encode(window.actions(data.actions, every))
    seen = policy.codec.condition(window.observations(data.observations, every))
    if not isinstance(seen, torch.Tensor) or not isinstance(chunk, torch.Tensor):
        raise BadSignal("cloning takes flat observations and actions: concatenate the parts first")
    seen = seen.flatten(1) if history > 1 else seen[:, 0]
    yield from fit(
        policy.process, policy.denoiser, chunk, seen, a.updates, rng, batch=a.batch, lr=a.lr, warmup=100, keep=keep
    )


def train(a: Args, keep: Keep | None = None) -> Iterator[dict]:
    """A Meta-World task, cloned from a scripted demonstrator with flaws."""
    keep = keep or Keep()
    policy = yield from _robot.pretrain(a.base, a.seed, keep.stage("imitate"))
    numbers, score = _robot.report(policy, a.base, a.seed + 900)
    keep.best(policy, score)
    keep.last(policy)
    yield numbers


experiment = _robot
