"""fork2d: a point has to pass a disc, and demonstrations pass it on the left or on the right.

The mean of the two paths hits the disc, so a policy must choose a side and keep to it. Observation: position and goal,
[4]. Action: velocity in [-1, 1]², 0.06 per step. The episode ends with success within 0.1 of the goal, and with failure
on touching the disc (radius 0.3, at the origin) or after 60 steps.

``Fork2D`` steps all environments at once with Gymnasium's vector interface (the caller resets), but does not need
Gymnasium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data.demos import Demonstrations
from denoiserl.envs.toy.episodes import starting_mask_and_streams

RADIUS = 0.3
REACH = 0.1
SPEED = 0.06
MAX_EPISODE_STEPS = 60
WAY_X = 0.25
WAY_Y = (0.55, 0.65)
START = (-0.6, 0.05)
"""x, and the half-width of y"""
GOAL_X = 1.0
GOAL_Y = (-0.4, 0.4)


@dataclass(frozen=True)
class Box:
    """The space of vectors between ``low`` and ``high``."""

    low: Tensor
    high: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.low.shape)


class Fork2D:
    """``num_envs`` environments of the task. ``goal``: range of the goal's y. A start state depends on its seed
    alone."""

    steps_some = True
    """``step(actions, mask)`` moves the environments of the mask only"""

    def __init__(self, num_envs: int, goal: tuple[float, float] = GOAL_Y) -> None:
        self.num_envs, self.goal_band = num_envs, goal
        self.single_observation_space = Box(torch.full((4,), -torch.inf), torch.full((4,), torch.inf))
        self.single_action_space = Box(-torch.ones(2), torch.ones(2))
        self.position = torch.zeros(num_envs, 2)
        self.goal = torch.zeros(num_envs, 2)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.seeds = torch.arange(num_envs)
        self.episode = torch.zeros(num_envs, dtype=torch.int64)

    @property
    def observation(self) -> Tensor:
        """Return position and goal, [B, 4]."""
        return torch.cat([self.position, self.goal], -1)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start new episodes, in all environments or in those of ``options["reset_mask"]`` [B].

        Without a seed, each environment continues its own sequence of episodes.
        """
        mask, rng = starting_mask_and_streams(self, seed, options)
        u = rng.uniform(self.num_envs, 2)
        low, high = self.goal_band
        position = torch.stack([torch.full_like(u[:, 0], START[0]), START[1] * (2 * u[:, 0] - 1)], -1)
        goal = torch.stack([torch.full_like(u[:, 1], GOAL_X), low + (high - low) * u[:, 1]], -1)
        self.position = torch.where(mask[:, None], position, self.position)
        self.goal = torch.where(mask[:, None], goal, self.goal)
        self.steps = self.steps.masked_fill(mask, 0)
        self.episode = self.episode + mask
        return self.observation, {}

    def step(self, action: Any, mask: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Step the environments of ``mask`` [B] (all by default) with actions [B, 2]; the reward is 1 on success.

        Return Gymnasium's five values as tensors.
        """
        action = torch.as_tensor(action, dtype=torch.float32)
        if action.shape != (self.num_envs, 2):
            raise InvalidInputError(f"fork2d takes actions {[self.num_envs, 2]}; got {list(action.shape)}")
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        before = self.position
        moved = before + SPEED * action.clamp(-1, 1)
        self.position = torch.where(mask[:, None], moved, before)
        self.steps = self.steps + mask
        touched = mask & (_nearest(before, self.position) < RADIUS)
        success = mask & ~touched & ((self.position - self.goal).norm(dim=-1) < REACH)
        late = mask & ~touched & ~success & (self.steps >= MAX_EPISODE_STEPS)
        return self.observation, success.float(), touched | success, late, {"success": success}


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of the origin from the segments a-b [*batch, 2]: a fast point cannot jump over the disc."""
    along = b - a
    share = (-(a * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
    return (a + share[..., None] * along).norm(dim=-1)


def expert(position: Tensor, goal: Tensor, side: Tensor, height: Tensor) -> Tensor:
    """Return the scripted action [B, 2] in [-1, 1]: over (-0.25, ±h) and (0.25, ±h) to the goal.

    ``side`` [B] is ±1, ``height`` [B] is h.
    """
    y = side * height
    corner = torch.stack([torch.where(position[:, 0] < -WAY_X - 0.03, -WAY_X, WAY_X).to(y), y], -1)
    target = torch.where((position[:, :1] > WAY_X - 0.03), goal, corner)
    toward = target - position
    distance = toward.norm(dim=-1, keepdim=True)
    return toward / distance.clamp_min(1e-6) * (distance / SPEED).clamp(max=1.0)


def demonstrations(
    n: int, rng: Rng | int, noise: float = 0.05, goal: tuple[float, float] = GOAL_Y, clumsy: float = 0.0
) -> Demonstrations:
    """Return ``n`` scripted episodes, about half on each side.

    ``noise``: std of the noise on every action. A share ``clumsy`` of the episodes has noise 1, and often fails.
    """
    rng = as_rng(rng)
    world = Fork2D(n, goal)
    world.reset(seed=rng.integers(0, 2**31 - 1, n).tolist())
    side = rng.integers(0, 2, n).float() * 2 - 1
    height = WAY_Y[0] + (WAY_Y[1] - WAY_Y[0]) * rng.uniform(n)
    spread = torch.where(rng.uniform(n, 1) < clumsy, 1.0, noise)
    live = torch.ones(n, dtype=torch.bool)
    seen, done, alive, won = [], [], [], torch.zeros(n, dtype=torch.bool)
    while bool(live.any()):
        seen.append(world.observation)
        action = (expert(world.position, world.goal, side, height) + spread * rng.normal(n, 2)).clamp(-1, 1)
        done.append(action)
        alive.append(live)
        _, _, terminated, truncated, info = world.step(action, live)
        won |= info["success"]
        live = live & ~(terminated | truncated)
    observations, actions, length = torch.stack(seen, 1), torch.stack(done, 1), torch.stack(alive, 1).sum(1)
    episodes = [(observations[i, : length[i]], actions[i, : length[i]]) for i in range(n)]
    return Demonstrations.of(episodes, won.tolist(), won.float().tolist(), "fork2d")


def mode(path: Tensor) -> Tensor:
    """Return the side on which paths [*batch, T, 2] passed: +1 left (y > 0), -1 right, 0 if they never reach x = 0."""
    x, y = path[..., 0], path[..., 1]
    passed = (x >= 0).any(-1)
    first = (x >= 0).int().argmax(-1, keepdim=True)
    return y.gather(-1, first).squeeze(-1).sign().int() * passed
