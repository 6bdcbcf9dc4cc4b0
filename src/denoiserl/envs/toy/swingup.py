"""Cart-pole swing-up: a pole hangs from a cart and has to be swung up and balanced.

Observation (x, cos θ, sin θ, ẋ, θ̇), [5], θ = 0 upright. Action in [-1, 1]: a force of 10 newtons on the cart. Cart 1
kg, pole 0.1 kg and 1 m long, without friction; a step is two integration steps of 0.02 s. The cart stops at |x| = 2.4.
The pole begins hanging, nearly at rest. Only the limit of 250 steps ends an episode.

    reward = ½ (1 + cos θ) · (1 − (x / 2.4)²)      in [0, 1]

The equations of motion are those of Barto, Sutton and Anderson (1983), integrated semi-implicitly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.envs.toy.episodes import starting_mask_and_streams
from denoiserl.envs.toy.fork2d import Box

FORCE = 10.0
CART, POLE, HALF = 1.0, 0.1, 0.5
"""masses, and half the pole's length"""
GRAVITY = 9.81
TRACK = 2.4
STEP, STEPS = 0.02, 2
MAX_EPISODE_STEPS = 250


class SwingUp:
    """``num_envs`` environments of the task. A start state depends on its seed alone.

    It has Gymnasium's vector interface (the caller resets) and does not need Gymnasium.
    """

    steps_some = True

    def __init__(self, num_envs: int, max_episode_steps: int = MAX_EPISODE_STEPS) -> None:
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        wide = torch.full((5,), torch.inf)
        self.single_observation_space = Box(-wide, wide)
        self.single_action_space = Box(-torch.ones(1), torch.ones(1))
        self.state = torch.zeros(num_envs, 4)
        self.steps, self.episode = (torch.zeros(num_envs, dtype=torch.int64) for _ in range(2))
        self.seeds = torch.arange(num_envs)

    @property
    def observation(self) -> Tensor:
        """Return (x, cos θ, sin θ, ẋ, θ̇), [B, 5]."""
        x, angle, speed, spin = self.state.unbind(-1)
        return torch.stack([x, angle.cos(), angle.sin(), speed, spin], -1)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Start new episodes, in all environments or in those of ``options["reset_mask"]`` [B]."""
        mask, rng = starting_mask_and_streams(self, seed, options)
        start = 0.2 * (rng.uniform(self.num_envs, 4) - 0.5)
        start[:, 1] += math.pi
        self.state = torch.where(mask[:, None], start, self.state)
        self.steps = self.steps.masked_fill(mask, 0)
        self.episode = self.episode + mask
        return self.observation, {}

    def step(self, action: Any, mask: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Step the environments of ``mask`` [B] (all by default) with actions [B, 1]; return Gymnasium's five
        values."""
        action = torch.as_tensor(action, dtype=torch.float32)
        if action.shape != (self.num_envs, 1):
            raise InvalidInputError(f"the cart-pole takes actions {[self.num_envs, 1]}; got {list(action.shape)}")
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        state, force = self.state, FORCE * action[:, 0].clamp(-1, 1)
        for _ in range(STEPS):
            state = _moved(state, force)
        self.state = torch.where(mask[:, None], state, self.state)
        self.steps = self.steps + mask
        x, angle = self.state[:, 0], self.state[:, 1]
        reward = torch.where(mask, 0.5 * (1 + angle.cos()) * (1 - (x / TRACK).square()), 0.0)
        return self.observation, reward, torch.zeros_like(mask), mask & (self.steps >= self.max_episode_steps), {}


def _moved(state: Tensor, force: Tensor) -> Tensor:
    """Return (x, θ, ẋ, θ̇) [B, 4] after ``STEP`` seconds of a force [B]."""
    x, angle, speed, spin = state.unbind(-1)
    sin, cos = angle.sin(), angle.cos()
    total = CART + POLE
    push = (force + POLE * HALF * spin.square() * sin) / total
    turn = (GRAVITY * sin - cos * push) / (HALF * (4 / 3 - POLE * cos.square() / total))
    speed = speed + STEP * (push - POLE * HALF * turn * cos / total)
    spin = spin + STEP * turn
    x = x + STEP * speed
    stopped = x.abs() > TRACK
    return torch.stack([x.clamp(-TRACK, TRACK), angle + STEP * spin, speed.masked_fill(stopped, 0.0), spin], -1)


def energy(state: Tensor) -> Tensor:
    """Return the energy of (x, θ, ẋ, θ̇) [B, 4], which a free cart-pole conserves: [B]."""
    _, angle, speed, spin = state.unbind(-1)
    across, up = speed + HALF * spin * angle.cos(), HALF * spin * angle.sin()
    turning = POLE * HALF**2 / 3 * spin.square() / 2
    return (
        CART * speed.square() / 2
        + POLE * (across.square() + up.square()) / 2
        + turning
        + POLE * GRAVITY * HALF * angle.cos()
    )
