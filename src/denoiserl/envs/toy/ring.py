"""The ring bandit: eight good actions on a ring, one of them twice as good, with a known optimum.

One decision a ∈ [-1, 1]², no state. Behaviour data are p = ⅛ Σ_k N(c_k, s² I) with c_k on a ring of radius 0.7 and s =
0.05. The reward has a bump at every c_k: r(a) = Σ_k h_k exp(-|a - c_k|² / 2w²), w = 0.1, h₀ = 2 and the others 1.

Maximising E_q[r] - β KL(q ‖ p) has the optimum p* ∝ p exp(r/β), of value β log Z. Z = E_p[exp(r/β)] is a sum of eight
integrals over Gaussians, which quadrature gives to many digits. ``Optimum`` holds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data.demos import Demonstrations
from denoiserl.envs.toy.fork2d import Box
from denoiserl.oracles.worlds import MixtureWorld

PLACES = 8
RADIUS = 0.7
STD = 0.05
WIDTH = 0.1
HIGH = 2.0
NODES = 48
"""nodes of the quadrature, in each dimension"""

CENTRES = RADIUS * torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(PLACES)])
HEIGHTS = torch.tensor([HIGH] + [1.0] * (PLACES - 1))

BEHAVIOUR = MixtureWorld(CENTRES, torch.full((PLACES,), 1 / PLACES), STD)
"""p: it samples, has a density, and has an exact denoiser"""


def reward(action: Tensor) -> Tensor:
    """Return r(a) of actions [*batch, 2]: [*batch]."""
    near = (action[..., None, :] - CENTRES.to(action)).square().sum(-1)
    return (HEIGHTS.to(action) * torch.exp(-near / (2 * WIDTH**2))).sum(-1)


def nearest_mode(action: Tensor, within: float = 0.2) -> Tensor:
    """Return the index of the centre nearest to each action [*batch, 2], [*batch] int64.

    It is -1 if all eight centres are ``within`` or farther away.
    """
    near = (action[..., None, :] - CENTRES.to(action)).norm(dim=-1)
    least, which = near.min(-1)
    return torch.where(least < within, which, -1)


@dataclass(frozen=True)
class Optimum:
    """p* ∝ p exp(r/β): ``masses`` [8] of the centres, ``reward`` E*[r], ``kl`` KL(p* ‖ p), and log Z."""

    beta: float
    log_z: float
    masses: Tensor
    reward: float
    kl: float

    @property
    def value(self) -> float:
        """max_q E_q[r] - β KL(q ‖ p) = β log Z"""
        return self.beta * self.log_z

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p*(a) of actions [*batch, 2]: [*batch]."""
        return BEHAVIOUR.log_prob(action) + reward(action) / self.beta - self.log_z

    def sample(self, n: int, rng: Rng | int) -> Tensor:
        """Sample actions [n, 2]: a centre by its mass, then rejection from that centre's Gaussian."""
        rng = as_rng(rng)
        which = torch.searchsorted(self.masses.cumsum(0), rng.uniform(n)).clamp_max(PLACES - 1)
        centre, action = CENTRES[which], torch.zeros(n, 2)
        most, left = reward(centre) + 1e-3, torch.ones(n, dtype=torch.bool)  # r is nearly largest at a centre
        while bool(left.any()):
            tried = centre + STD * rng.normal(n, 2)
            taken = left & (rng.uniform(n).log() < (reward(tried) - most) / self.beta)
            action = torch.where(taken[:, None], tried, action)
            left = left & ~taken
        return action


def optimum(beta: float) -> Optimum:
    """Return the optimum of the KL-regularised bandit at temperature ``beta``."""
    if not beta > 0:
        raise InvalidInputError(f"beta={beta}: the optimum against a reference needs a positive temperature")
    x, w = np.polynomial.hermite_e.hermegauss(NODES)
    x, w = torch.from_numpy(x), torch.from_numpy(w / w.sum())
    grid = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    weight = (w[:, None] * w).flatten().log()
    r = reward(CENTRES.double()[:, None] + STD * grid)  # [8, nodes²]
    joint = weight + r / beta - math.log(PLACES)
    log_z = joint.flatten().logsumexp(0)
    p = (joint - log_z).exp()
    mean = float((p * r).sum())
    return Optimum(beta, float(log_z), p.sum(-1).float(), mean, mean / beta - float(log_z))


class RingBandit:
    """``num_envs`` environments of the bandit: it observes a zero, [B, 1], and every episode is one decision.

    ``success``: within 0.2 of the centre with the high reward.
    """

    steps_some = True

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(torch.zeros(1), torch.zeros(1))
        self.single_action_space = Box(-torch.ones(2), torch.ones(2))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Return the observation [B, 1]: all episodes begin alike."""
        return torch.zeros(self.num_envs, 1), {}

    def step(self, action: Any, mask: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Return the rewards of actions [B, 2] in Gymnasium's five values, as tensors."""
        action = torch.as_tensor(action, dtype=torch.float32)
        if action.shape != (self.num_envs, 2):
            raise InvalidInputError(f"the ring bandit takes actions {[self.num_envs, 2]}; got {list(action.shape)}")
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        action = action.clamp(-1, 1)
        gain = torch.where(mask, reward(action), 0.0)
        return (
            torch.zeros(self.num_envs, 1),
            gain,
            mask,
            torch.zeros_like(mask),
            {"success": mask & (nearest_mode(action) == 0)},
        )


def demonstrations(n: int, rng: Rng | int) -> Demonstrations:
    """Return ``n`` actions of the behaviour, one per episode; ``success``: at the centre with the high reward."""
    rng = as_rng(rng)
    action = BEHAVIOUR.sample(n, rng)
    outcome = [(nearest_mode(action) == 0).tolist(), reward(action).tolist()]
    return Demonstrations(
        torch.zeros(n, 1), action, torch.arange(1, n + 1), torch.tensor(outcome[0]), torch.tensor(outcome[1]), "ring"
    )
