"""Swing-up data of a known behaviour policy, and the true dynamics, for claims about generated data."""

from __future__ import annotations

import torch
from torch import Tensor

from denoiserl.core.rng import Rng, as_rng
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs.toy.swingup import SwingUp


def swingup_policy(obs: Tensor) -> Tensor:
    """Return actions that swing up, [N, 1] in (−1, 1): push with the pole, and back to the middle."""
    x, cos, _, speed, spin = obs.unbind(-1)
    return torch.tanh(0.8 * spin * cos - 0.5 * x - 0.3 * speed)[:, None]


def record_episodes(episodes: int, steps: int, lean: float, rng: Rng | int) -> EpisodeDataset:
    """Record episodes with ``lean`` times the action that swings up, plus autocorrelated noise of std 0.5."""
    rng = as_rng(rng)
    world = SwingUp(episodes, steps)
    world.reset(seed=rng.integers(0, 2**31 - 1, episodes).tolist())
    noise, observations, actions, rewards = torch.zeros(episodes, 1), [], [], []
    for _ in range(steps):
        obs = world.observation.clone()
        noise = 0.8 * noise + 0.3 * rng.normal(episodes, 1)
        action = (lean * swingup_policy(obs) + noise).clamp(-1, 1)
        _, reward, *_ = world.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(torch.as_tensor(reward, dtype=torch.float32))
    obs, action, reward = (torch.stack(v, 1) for v in (observations, actions, rewards))
    demos = Demonstrations.of([(obs[i], action[i]) for i in range(episodes)], None, reward.sum(1).tolist(), "swingup")
    never = torch.zeros(episodes, dtype=torch.bool)
    return EpisodeDataset(demos, reward.flatten(), world.observation.clone(), never, -torch.ones(1), torch.ones(1))


def true_next_obs(obs: Tensor, action: Tensor) -> Tensor:
    """Return the true next observations, [N, 5], of observations [N, 5] and actions [N, 1]."""
    world = SwingUp(len(obs))
    world.reset(seed=0)
    x, cos, sin, speed, spin = obs.unbind(-1)
    world.state = torch.stack([x, torch.atan2(sin, cos), speed, spin], -1)
    world.step(action)
    return world.observation
