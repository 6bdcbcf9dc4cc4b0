"""Point mazes: a point finds its way through corridors to a goal cell, at hundreds of thousands of steps per second.

A ``Maze`` is a plan of unit cells, walls and free ones; ``Maze.random(n, rng)`` draws one of n x n rooms. Shortest
paths between all pairs of cells are known. ``PointMaze`` is the task. Observation: (position, goal), [4], or (position,
velocity, goal), [6]. An action in [-1, 1]² is a velocity, 0.2 cells per step, or an acceleration. A wall stops the
component of the motion that runs into it. The reward is 1 within 0.5 of the goal, which ends the episode.

``demonstrations`` records players of known kinds, for offline methods:

    expert     the shortest path                       noisy     the same with noise of 0.5 on every action
    random     a correlated random walk                stitch    paths of at most 4 cells: no episode crosses the maze
    navigate   one goal after another, without end
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.data.demos import Demonstrations
from denoiserl.envs.toy.episodes import starting_mask_and_streams
from denoiserl.envs.toy.fork2d import Box

SPEED = 0.2
"""largest velocity in each direction, in cells per step"""
PUSH = 0.05
"""change of velocity per step for an acceleration of 1"""
REACH = 0.5
SEGMENT = 4
"""most cells that a ``stitch`` episode crosses"""
KINDS = ("expert", "noisy", "random", "stitch", "navigate")


@dataclass(frozen=True, eq=False)
class Maze:
    """A plan: ``walls`` [H, W] bool. Cell (i, j) is the square [j, j + 1) x [i, i + 1); positions are (x, y)."""

    walls: Tensor

    def __post_init__(self) -> None:
        border = torch.cat([self.walls[0], self.walls[-1], self.walls[:, 0], self.walls[:, -1]])
        if not bool(border.all()) or not bool((~self.walls).any()):
            raise InvalidInputError("a maze needs walls all around and a free cell inside")
        if not np.isfinite(self._steps[0]).all():
            raise InvalidInputError(
                "this maze is in parts: open a wall, so that every cell can be reached from every other"
            )

    @staticmethod
    def parse(plan: str) -> Maze:
        """Return the maze of lines of characters: # is a wall, anything else is free."""
        lines = plan.strip().splitlines()
        if len({len(line.strip()) for line in lines}) != 1:
            raise InvalidInputError("the lines of a maze are equally long")
        return Maze(torch.tensor([[c == "#" for c in line.strip()] for line in lines]))

    @staticmethod
    def random(n: int, rng: Rng | int, loops: float = 0.1) -> Maze:
        """Draw n x n rooms joined by a random spanning tree; a share ``loops`` of the other walls is opened too.

        With 0 there is one path between any two rooms. The plan has 2n + 1 cells per side.
        """
        rng = as_rng(rng)
        if n < 2:
            raise InvalidInputError(f"a maze has at least 2 x 2 rooms, not {n} x {n}")
        room = np.arange(n * n).reshape(n, n)
        a = np.concatenate([room[:, :-1].ravel(), room[:-1].ravel()])
        b = np.concatenate([room[:, 1:].ravel(), room[1:].ravel()])
        weight = 1 + rng.uniform(len(a)).double().numpy()
        tree = minimum_spanning_tree(csr_matrix((weight, (a, b)), (n * n, n * n))).toarray() > 0
        opened = tree[a, b] | (rng.uniform(len(a)) < loops).numpy()
        walls = np.ones((2 * n + 1, 2 * n + 1), bool)
        walls[1::2, 1::2] = False
        walls[(a // n + b // n + 1)[opened], (a % n + b % n + 1)[opened]] = False
        return Maze(torch.from_numpy(walls))

    def __str__(self) -> str:
        return "\n".join("".join("#" if w else "." for w in row) for row in self.walls.tolist())

    @cached_property
    def cells(self) -> Tensor:
        """centres of the free cells, [F, 2] as (x, y)"""
        return (~self.walls).nonzero().flip(-1).float() + 0.5

    @cached_property
    def _number(self) -> Tensor:
        """number of each free cell of the plan, -1 for walls"""
        return torch.where(self.walls, -1, (~self.walls).flatten().cumsum(0).reshape(self.walls.shape) - 1)

    @cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """steps between free cells [F, F], and the cell before each on a shortest path"""
        near = (self.cells[:, None] - self.cells).abs().sum(-1) == 1
        return shortest_path(csr_matrix(near.numpy()), unweighted=True, return_predecessors=True)

    @cached_property
    def distance(self) -> Tensor:
        """steps of a shortest path between free cells, [F, F] int64"""
        return torch.from_numpy(self._steps[0]).long()

    @cached_property
    def next_cell(self) -> Tensor:
        """next cell on a shortest path, [F (from), F (to)]; at the goal it is the goal"""
        before = torch.from_numpy(
            self._steps[1].astype(np.int64)
        ).T.clone()  # symmetric: before `from`, coming from `to`
        before.fill_diagonal_(0)
        return before + torch.diag(torch.arange(len(self.cells)))

    def cell(self, position: Tensor) -> Tensor:
        """Return the number of the free cell of positions [*batch, 2]: [*batch]; -1 in a wall."""
        x, y = position.floor().long().unbind(-1)
        inside = (x >= 0) & (y >= 0) & (x < self.walls.shape[1]) & (y < self.walls.shape[0])
        at = (y * self.walls.shape[1] + x).clamp(0, self.walls.numel() - 1)
        return torch.where(inside, self._number.flatten()[at], -1)


class PointMaze:
    """``num_envs`` environments of the task. ``goal``: a fixed goal (x, y), otherwise any cell.

    ``accelerate``: actions are accelerations. ``max_episode_steps``: time limit (default: enough for six times the
    longest path). A start depends on its seed alone. It has Gymnasium's vector interface and does not need Gymnasium.
    """

    steps_some = True

    def __init__(
        self,
        num_envs: int,
        maze: Maze,
        goal: tuple[float, float] | None = None,
        accelerate: bool = False,
        max_episode_steps: int | None = None,
    ) -> None:
        self.num_envs, self.maze, self.accelerate = num_envs, maze, accelerate
        self.max_episode_steps = (
            6 * round(int(maze.distance.max()) / SPEED) if max_episode_steps is None else max_episode_steps
        )
        self.fixed = None if goal is None else torch.tensor(goal, dtype=torch.float32)
        if self.fixed is not None and int(maze.cell(self.fixed)) < 0:
            raise InvalidInputError(
                f"the goal {goal} is in a wall: give (x, y) in a free cell, such as one of maze.cells"
            )
        size = torch.tensor([*maze.walls.shape[::-1]], dtype=torch.float32)
        pace = [torch.full((2,), SPEED)] if accelerate else []
        high = torch.cat([size, *pace, size])
        self.single_observation_space = Box(torch.cat([0 * size, *(-p for p in pace), 0 * size]), high)
        self.single_action_space = Box(-torch.ones(2), torch.ones(2))
        self.position, self.velocity, self.goal = (torch.zeros(num_envs, 2) for _ in range(3))
        self.steps, self.episode = (torch.zeros(num_envs, dtype=torch.int64) for _ in range(2))
        self.seeds = torch.arange(num_envs)
        self._wall = maze.walls.flatten()

    @property
    def observation(self) -> Tensor:
        """Return position and goal, [B, 4]. With ``accelerate``: position, velocity and goal, [B, 6]."""
        moving = [self.velocity] if self.accelerate else []
        return torch.cat([self.position, *moving, self.goal], -1)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Start new episodes, in all environments or in those of ``options["reset_mask"]`` [B].

        No start is in the goal's cell.
        """
        mask, rng = starting_mask_and_streams(self, seed, options)
        u = rng.uniform(self.num_envs, 4)
        free = len(self.maze.cells)
        if self.fixed is None:
            end = (u[:, 0] * free).long()
            goal = self.maze.cells[end]
        else:
            goal = self.fixed.expand(self.num_envs, 2)
            end = self.maze.cell(goal)
        begin = (end + 1 + (u[:, 1] * (free - 1)).long()) % free
        position = self.maze.cells[begin] + 0.4 * (u[:, 2:] - 0.5)
        self.position = torch.where(mask[:, None], position, self.position)
        self.goal = torch.where(mask[:, None], goal, self.goal)
        self.velocity = self.velocity.masked_fill(mask[:, None], 0.0)
        self.steps = self.steps.masked_fill(mask, 0)
        self.episode = self.episode + mask
        return self.observation, {}

    def _blocked(self, x: Tensor, y: Tensor) -> Tensor:
        return self._wall[y.long() * self.maze.walls.shape[1] + x.long()]

    def step(self, action: Any, mask: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Step the environments of ``mask`` [B] (all by default) with actions [B, 2]; return Gymnasium's five
        values."""
        action = torch.as_tensor(action, dtype=torch.float32)
        if action.shape != (self.num_envs, 2):
            raise InvalidInputError(f"a point maze takes actions {[self.num_envs, 2]}; got {list(action.shape)}")
        mask = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        push = action.clamp(-1, 1)
        velocity = (self.velocity + PUSH * push).clamp(-SPEED, SPEED) if self.accelerate else SPEED * push
        velocity = velocity * mask[:, None]
        (x, y), (dx, dy) = self.position.unbind(-1), velocity.unbind(-1)
        dx = dx.masked_fill(self._blocked(x + dx, y), 0.0)  # first x, then y: the point slides along walls
        x = x + dx
        dy = dy.masked_fill(self._blocked(x, y + dy), 0.0)
        self.position, moved = torch.stack([x, y + dy], -1), torch.stack([dx, dy], -1)
        self.velocity = torch.where(mask[:, None], moved, self.velocity)
        self.steps = self.steps + mask
        success = mask & ((self.position - self.goal).square().sum(-1) < REACH**2)
        return (
            self.observation,
            success.float(),
            success,
            mask & ~success & (self.steps >= self.max_episode_steps),
            {"success": success},
        )


def expert(world: PointMaze) -> Tensor:
    """Return the expert's action [B, 2] in [-1, 1]: to the centre of the next cell, and in the last cell to the
    goal."""
    at, end = world.maze.cell(world.position), world.maze.cell(world.goal)
    target = torch.where((at == end)[:, None], world.goal, world.maze.cells[world.maze.next_cell[at, end]])
    wanted = (target - world.position).clamp(-SPEED, SPEED)
    if world.accelerate:
        return ((0.5 * wanted - world.velocity) / PUSH).clamp(-1, 1)
    return wanted / SPEED


def demonstrations(
    maze: Maze,
    n: int,
    rng: Rng | int,
    kind: str = "expert",
    max_episode_steps: int | None = None,
    accelerate: bool = False,
) -> Demonstrations:
    """Return ``n`` episodes of a player of this ``kind`` (see above), failures included.

    ``max_episode_steps``: time limit, and the length of ``navigate`` episodes. ``returns`` counts the goals reached.
    """
    rng = as_rng(rng)
    if kind not in KINDS:
        raise InvalidInputError(unknown_name_message(kind, KINDS, "kind of maze data"))
    world = PointMaze(n, maze, accelerate=accelerate, max_episode_steps=max_episode_steps)
    world.reset(seed=rng.integers(0, 2**31 - 1, n).tolist())
    if kind == "stitch":
        far = maze.distance[maze.cell(world.position)]
        share = rng.uniform(n, len(maze.cells)).masked_fill((far < 1) | (far > SEGMENT), -1.0)
        world.goal = maze.cells[share.argmax(-1)]
    live, walk = torch.ones(n, dtype=torch.bool), torch.zeros(n, 2)
    seen, done, alive, reached = [], [], [], torch.zeros(n)
    while bool(live.any()):
        if kind == "random":
            walk = 0.9 * walk + 0.44 * rng.normal(n, 2)  # of std 1, correlated over about ten steps
            action = walk.clamp(-1, 1)
        else:
            action = (expert(world) + (0.5 if kind == "noisy" else 0.05) * rng.normal(n, 2)).clamp(-1, 1)
        seen.append(world.observation)
        done.append(action)
        alive.append(live)
        _, _, success, late, _ = world.step(action, live)
        reached += success
        if kind == "navigate":
            other = maze.cells[rng.integers(0, len(maze.cells), n)]
            world.goal = torch.where(success[:, None], other, world.goal)
            live = live & (world.steps < world.max_episode_steps)
        else:
            live = live & ~(success | late)
    observations, actions, length = torch.stack(seen, 1), torch.stack(done, 1), torch.stack(alive, 1).sum(1)
    episodes = [(observations[i, : length[i]], actions[i, : length[i]]) for i in range(n)]
    return Demonstrations.of(episodes, (reached > 0).tolist(), reached.tolist(), f"maze-{kind}")
