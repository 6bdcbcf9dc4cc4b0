"""Improve your own diffusion policy in your own environment: clone a few demonstrations, then DPPO.

Copy this file and replace what is marked YOURS. It runs in about half a minute on a laptop.
"""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import Env, spaces
from torch import Tensor, nn

from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.envs import Collector, evaluate
from denoiserl.processes import cosine, ddim, with_capped_std, with_min_std
from denoiserl.recipes import dppo
from denoiserl.train import Run, fit

CHUNK, DIM = 4, 2  # the policy plans 4 actions of 2 numbers and executes them all


class Reach(Env):
    """YOURS: any environment with Gymnasium's interface, or the id of a registered one."""

    observation_space, action_space = spaces.Box(-2, 2, (4,), np.float32), spaces.Box(-1, 1, (DIM,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)  # seeds self.np_random
        self.hand, self.goal, self.steps = np.zeros(2), self.np_random.uniform(-1, 1, 2), 0
        return np.concatenate([self.hand, self.goal], dtype=np.float32), {}

    def step(self, action):
        self.hand, self.steps = self.hand + 0.2 * np.clip(action, -1, 1), self.steps + 1
        there = bool(np.linalg.norm(self.hand - self.goal) < 0.15)
        seen = np.concatenate([self.hand, self.goal], dtype=np.float32)
        return seen, float(there), there, self.steps >= 12, {"success": there}


class Net(nn.Module):
    """YOURS: any network (noisy chunk [B, 4, 2], time [1] or [B], observation [B, 4]) -> [B, 4, 2]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        first, last = nn.Linear(CHUNK * DIM + 1 + 4, width), nn.Linear(width, CHUNK * DIM)
        self.layers = nn.Sequential(first, nn.GELU(), nn.Linear(width, width), nn.GELU(), last)

    def forward(self, x: Tensor, time: Tensor, observation: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), time.view(-1, 1).expand(len(x), 1), observation], 1)).view_as(x)


def demonstrations(n: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """YOURS: observations [n, 4] and the chunks of actions that followed them [n, 4, 2]. These stop short."""
    hand, goal = (2 * rng.uniform(n, 2) - 1 for _ in range(2))
    action = ((0.7 * goal - hand) / (0.2 * CHUNK)).clamp(-1, 1)
    return torch.cat([hand, goal], 1), action[:, None].expand(n, CHUNK, DIM)


def main(iterations: int = 20, updates: int = 800, episodes: int = 100) -> tuple[float, float]:
    torch.manual_seed(0)
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.1), clip=1.0)  # noise at every step: each is a decision
    train, serve = process.steps(time_grid(6)), process.steps(time_grid(6), with_capped_std(ddim(1.0)))
    policy = Policy.of(process, GaussianDenoiser(Net(), cosine, "v"), (CHUNK, DIM), train, serve)

    def success() -> float:
        return evaluate(policy.generate, Reach, episodes, seed=1000, num_envs=50).summary()["success"]

    observations, chunks = demonstrations(4000, Rng(0))
    list(fit(process, policy.denoiser, chunks, observations, updates, Rng(1)))
    before = success()
    settings = dppo.Args(iterations=iterations, rollout_steps=6)
    for row in dppo.improve(policy, Collector(Reach, num_envs=40), settings, Rng(2), Run()):
        print(f"reward a step {row['rollout/reward']:.3f}")
    print(f"success: {before:.2f} cloned, {(after := success()):.2f} improved")
    policy.save("runs/your_robot")  # Policy.load("runs/your_robot", net=Net()) brings it back
    return before, after


if __name__ == "__main__":
    main()
