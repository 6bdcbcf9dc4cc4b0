"""Networks that are right by construction, wrapped as users would, and in every wrong way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, time_grid
from denoiserl.core.tree import expand_right
from denoiserl.oracles.prompted import Prompted, make_prompted_world
from denoiserl.oracles.worlds import MixtureWorld
from denoiserl.processes import cosine, ddim, with_min_std

PM = make_prompted_world(0)
TWO = MixtureWorld(torch.tensor([[0.8, 0.8], [-0.8, 0.6]]), torch.tensor([0.5, 0.5]), 0.1)


class Oracle(nn.Module):
    """The exact posterior mean of a world as a raw network that answers ``kind``, on a clock of its own.

    ``reverse``: it calls noise 0 and data 1; ``scale``: it counts times from 0 to ``scale``. Its one parameter
    multiplies the answer.
    """

    def __init__(self, world: Any, schedule: Any, kind: str, reverse: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.world, self.schedule, self.kind, self.reverse, self.scale = world, schedule, kind, reverse, scale
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        t = (t / self.scale).expand(len(x)).clamp(0, 1)
        t = (1 - t if self.reverse else t).clamp(1e-4, 1 - 1e-4)
        alpha, sigma = self.schedule(t)
        mean = self.world.posterior_mean(x, alpha, sigma, cond)
        a, s = expand_right(alpha, x), expand_right(sigma, x)
        eps = (x - a * mean) / s
        preserving = abs(float(alpha[0] ** 2 + sigma[0] ** 2) - 1) < 1e-5
        answers = {"x0": mean, "eps": eps, "v": a * eps - s * mean if preserving else eps - mean}
        return self.gain * answers[self.kind]


def policy(
    net: nn.Module, dim: int, schedule: Any = cosine, predicts: str = "v", n: int = 10, floor: float = 0.1, **more: Any
) -> Policy:
    """A policy around a raw network: explores with a floor, serves the ODE."""
    process = Diffusion(schedule, with_min_std(ddim(1.0), floor))
    times = time_grid(n)
    made = GaussianDenoiser(net, schedule, predicts)
    return Policy.of(process, made, (dim,), process.steps(times), process.steps(times, ddim(0.0)), **more)


def generator(**more: Any) -> Policy:
    """A healthy generator of the prompted mixture."""
    return policy(Oracle(PM, cosine, "v"), PM.dim, **more)


def reward(x: Tensor, prompts: Tensor) -> Tensor:
    """1 for a good mode."""
    return PM.reward(x, prompts)


__all__ = ["PM", "TWO", "Oracle", "Prompted", "generator", "policy", "reward"]
