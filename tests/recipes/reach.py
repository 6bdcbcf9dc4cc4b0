"""A point that is to be put at a target, and small policies that act on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from denoiserl import Diffusion, GaussianDenoiser, OneStep, Policy, time_grid
from denoiserl.nn import MLP
from denoiserl.processes import GaussianHead, ddim, linear, with_min_std

gymnasium = pytest.importorskip("gymnasium")


class Reach(gymnasium.Env):
    """A point on a line is to be put at a target that is seen: success, and the end, within 0.3; six ticks."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-4, 4, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def _seen(self) -> np.ndarray:
        return np.array([self.x, self.target], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.target, self.ticks = 0.0, float(self.np_random.uniform(-1, 1)), 0
        return self._seen(), {}

    def step(self, action):
        self.x, self.ticks = float(np.clip(self.x + 0.5 * action[0], -4, 4)), self.ticks + 1
        won = abs(self.x - self.target) < 0.3
        return self._seen(), float(won), won, self.ticks >= 6, {"success": won}


def policy(serve: float = 0.0, steps: int = 3) -> Policy:
    torch.manual_seed(0)
    process, times = Diffusion(linear, with_min_std(ddim(0.0), 0.2), clip=1.0), time_grid(steps)
    net = MLP((2, 1), cond=2, width=32, depth=2)
    return Policy.of(
        process, GaussianDenoiser(net, linear, "v"), (2, 1), process.steps(times), process.steps(times, ddim(serve))
    )


def weights(made: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.denoiser.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def wide() -> Policy:
    """Draws from N(0, 0.6²) in both actions, whatever it sees."""
    torch.manual_seed(0)
    process = OneStep()
    head = GaussianHead(MLP((2, 1), cond=2, width=8, time=0, zero=True), 1, 0.6)
    return Policy.of(process, head, (2, 1), process.steps(time_grid(1)))
