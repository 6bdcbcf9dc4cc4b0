"""Data and rewards of the zero-shot experiment: exploration of a maze without rewards, or a user's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.core.settings import Count, CountOrZero, Positive, Settings
from denoiserl.data import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs.by_name import environment as named
from denoiserl.envs.toy.maze import Maze, demonstrations
from denoiserl.tasks.user_inputs import load_recording

NEAR = 1.0
"""radius of a goal's reward in cells; episodes of the data turn half a cell before their goal"""
Reward = Callable[[Tensor], Tensor]
"""positions [N, 2] to rewards [N] in [0, 1]"""


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the data, the evaluation rewards and the untrained policy."""

    data: str = "maze"
    """data to learn from; maze, or a path (Minari, LeRobot, HDF5) whose rewards come later"""
    env: str | None = None
    """environment; to evaluate in, with a path as --data (an id, metaworld:TASK, FILE.py:FUNCTION)"""
    out_of_bounds_actions: Literal["error", "clip"] = "error"
    """actions outside the action space of the data or the environment"""
    exclude_episodes: str = ""
    """numbers of episodes of --data to leave out: 0-2,5"""
    obs_keys: str = ""
    """names of observations of --data to keep: observation.state"""
    rooms: Count = 3
    """rooms per side of the maze"""
    maze_seed: CountOrZero = 0
    """random seed of the maze"""
    num_episodes: Count = 100
    """number of episodes; of each kind of player"""
    episode_steps: Count = 500
    """environment steps per episode of a player"""
    max_episode_steps: Count = 150
    """environment steps per episode; of a held-out trial"""
    task_dim: Count = 32
    """dimensions of a task vector (d; 50 as published)"""
    action_horizon: Count = 5
    """actions per chunk (H); a player crosses a cell in five steps"""
    sampling_steps: Count = 5
    """denoising steps"""
    policy_width: Count = 128
    """width of the policy network"""
    pretrain_updates: CountOrZero = 4000
    """gradient steps of imitation; of the baseline"""
    pretrain_batch_size: Count = 256
    """items per gradient step of imitation; rows"""
    pretrain_lr: Positive = 1e-3
    """learning rate of imitation; of the baseline"""


@lru_cache(maxsize=4)
def maze(base: Args) -> Maze:
    """Return the maze."""
    return Maze.random(base.rooms, Rng(base.maze_seed))


@lru_cache(maxsize=2)
def load_dataset(base: Args, seed: int) -> Demonstrations | EpisodeDataset:
    """Return a maze's positions and actions without rewards, or the data at ``data``, equal for all seeds."""
    if base.data != "maze":
        return load_recording(
            base.data, named(required_env(base)), base.out_of_bounds_actions, base.exclude_episodes, base.obs_keys
        )
    rng, parts = Rng(seed), []
    for kind in ("navigate", "random"):
        demos = demonstrations(maze(base), base.num_episodes, rng, kind, base.episode_steps)
        parts += [(obs[:, :2], action) for obs, action in map(demos.episode, range(len(demos)))]  # without the goal
    return Demonstrations.of(parts, name="maze without rewards")


def rewards(base: Args) -> dict[str, Reward]:
    """Return the evaluation rewards by name; none for data at a path."""
    if base.data != "maze":
        return {}
    found, cells = maze(base), maze(base).cells
    chosen = [0]
    for _ in range(5):  # each as far from the others as possible
        chosen.append(int(found.distance[chosen].amin(0).argmax()))
    high, wide = found.walls.shape
    by_name = {f"goal_{i + 1}": partial(_near, cells[c]) for i, c in enumerate(chosen)}
    corners = {"top_right": (wide / 2, 0.0), "bottom_left": (0.0, high / 2)}
    by_name |= {name: partial(_inside, torch.tensor(at), wide / 2, high / 2) for name, at in corners.items()}
    return by_name | {"stay_left": partial(_left, wide)}


def _near(goal: Tensor, position: Tensor) -> Tensor:
    return ((position - goal).norm(dim=-1) < NEAR).float()


def _inside(corner: Tensor, wide: float, high: float, position: Tensor) -> Tensor:
    return ((position >= corner) & (position < corner + torch.tensor([wide, high]))).all(-1).float()


def _left(wide: float, position: Tensor) -> Tensor:
    return 1 - position[..., 0] / wide


def required_env(base: Args) -> str:
    """Return the evaluation environment of data at a path. Raise RunError if ``env`` is not given."""
    if base.env is None:
        raise RunError(f"no evaluation environment for the data {base.data}: pass --env, for example --env Hopper-v5")
    return base.env
