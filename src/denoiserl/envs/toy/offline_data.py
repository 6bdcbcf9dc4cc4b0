"""Data sets of the small environments with known dynamics: rewards and last observations of recorded players.

A maze's players (``envs.toy.maze.demonstrations``) are recorded without rewards. Every recorded step is played again in
the environment, all at once, so rewards and successors are exact. The goal does not affect the dynamics, so the same
steps can be relabelled with another goal. An episode ends in the step in which the goal is reached; its rest is the
next episode.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs.toy import ring
from denoiserl.envs.toy.maze import Maze, PointMaze, demonstrations


def relabel_rewards(maze: Maze, demos: Demonstrations, goal: Tensor | None = None) -> EpisodeDataset:
    """Return demonstrations in a maze (of velocities) with rewards: 1 where the goal is reached, which ends the
    episode.

    ``goal`` [2]: one goal for all episodes, in place of each player's own.
    """
    observations = demos.observations.clone()
    if goal is not None:
        observations[:, -2:] = goal
    world = PointMaze(len(observations), maze)
    world.position, world.goal = observations[:, :2], observations[:, -2:]
    after, reward, success, _, _ = world.step(demos.actions)
    stop = success.clone()
    stop[demos.ends - 1] = True
    ends = stop.nonzero().flatten() + 1
    won = success[ends - 1]
    again = replace(demos, observations=observations, ends=ends, success=won, returns=reward[ends - 1])
    one = torch.ones(demos.actions.shape[1])
    return EpisodeDataset(again, reward, after[ends - 1], won, -one, one)


def farthest_cell(maze: Maze) -> Tensor:
    """Return the centre [2] of a cell whose distance to some other cell is the largest."""
    return maze.cells[int(maze.distance.max(1).values.argmax())]


def mazes(
    maze: Maze,
    episodes: int,
    rng: Rng | int,
    kind: str = "navigate",
    goal: Tensor | None = None,
    max_episode_steps: int | None = None,
) -> EpisodeDataset:
    """Return ``episodes`` of a maze's players of a ``kind``, with rewards for one ``goal`` [2] or for each player's
    own."""
    return relabel_rewards(maze, demonstrations(maze, episodes, rng, kind, max_episode_steps), goal)


def bandit(n: int, rng: Rng | int) -> EpisodeDataset:
    """Return ``n`` actions of the ring bandit's behaviour, each a whole episode."""
    demos = ring.demonstrations(n, rng)
    assert demos.returns is not None
    one = torch.ones(2)
    return EpisodeDataset(demos, demos.returns, torch.zeros(n, 1), torch.ones(n, dtype=torch.bool), -one, one)
