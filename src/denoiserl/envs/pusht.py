"""PushT: a disc pushes a T-shaped block onto its goal; with a scripted demonstrator.

The simulator is gym-pusht (planar, 10 decisions a second, quasi-static). An action is where the disc should go, in
pixels of the 512 x 512 table. Success is a coverage of the goal by the block of more than 0.95.

The demonstrator is greedy: he tries pushes (points around the block x directions x lengths) on a second copy of the
table, takes one of the best, walks round the block to where it begins, and looks again when it is done. Where several
pushes are about as good he chooses at random, so demonstrations have modes. He solved 38 of 38 starts, in 128 ticks on
average; with noise of 10 pixels on his actions 6 of 16.

Needs ``pip install 'denoiserl[robotics]'``; nothing is imported before a table is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, require, unknown_name_message
from denoiserl.core.rng import Rng
from denoiserl.core.tree import tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset

SIZE = 512.0
"""pixels of the table's side"""
MARGIN = 24.0
"""the disc's centre keeps this far from the table's edge when it walks"""
DISC = 15.0
"""the disc's radius"""
COVERAGE = 0.95
VIEWS = {
    "state": "state",
    "keypoints": "environment_state_agent_pos",
    "lerobot": "environment_state_agent_pos",
    "pixels": "pixels_agent_pos",
}

View = Literal["state", "keypoints", "lerobot", "pixels"]


def _simulator(**kwargs: Any) -> Any:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws in memory
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return require("gym_pusht.envs.pusht", "robotics").PushTEnv(**kwargs)


class PushT:
    """The task as a Gymnasium environment.

    ``view``: "state" is (disc x, y, block x, y, angle), [5]; "keypoints" the block's eight corners and the disc, [18],
    which do not jump where the angle does; "lerobot" the same with the disc first, as LeRobot's checkpoints see it;
    "pixels" a dict of ``image`` [size, size, 3] uint8 and ``state``, the disc's place [2]. ``horizon``: ticks until
    truncation. ``dense``: the reward is the coverage, up to 1, in every tick; otherwise 1 in the tick of success and 0
    else. Success ends the episode.
    """

    def __init__(self, view: View = "keypoints", horizon: int = 300, dense: bool = False, size: int = 96) -> None:
        if view not in VIEWS:
            raise InvalidInputError(unknown_name_message(view, VIEWS, "view of PushT"))
        spaces = require("gymnasium", "robotics").spaces
        self.view, self.horizon, self.dense = view, horizon, dense
        self.sim = _simulator(obs_type=VIEWS[view], observation_width=size, observation_height=size)
        self.action_space = self.sim.action_space
        table = spaces.Box(0.0, SIZE, (18,), np.float32)
        if view == "state":
            table = spaces.Box(np.zeros(5, np.float32), np.array([SIZE] * 4 + [2 * np.pi], np.float32))
        if view == "pixels":
            image = spaces.Box(0, 255, (size, size, 3), np.uint8)
            table = spaces.Dict({"image": image, "state": spaces.Box(0.0, SIZE, (2,), np.float32)})
        self.observation_space = table
        self.ticks = 0

    def _seen(self, observation: Any) -> Any:
        if self.view == "state":
            return observation.astype(np.float32)
        disc = observation["agent_pos"].astype(np.float32)
        if self.view == "pixels":
            return {"image": observation["pixels"], "state": disc}
        parts = [observation["environment_state"].astype(np.float32), disc]
        return np.concatenate(parts[::-1] if self.view == "lerobot" else parts)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A new episode: disc and block somewhere else."""
        observation, info = self.sim.reset(seed=seed)
        self.ticks = 0
        return self._seen(observation), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One tick of a tenth of a second; ``info["success"]`` and ``info["coverage"]``."""
        observation, covered, _, _, info = self.sim.step(np.asarray(action, np.float64))
        self.ticks += 1
        success = bool(info["coverage"] > COVERAGE)
        reward = float(covered) if self.dense else float(success)
        info = {**info, "success": success}
        return self._seen(observation), reward, success, self.ticks >= self.horizon and not success, info

    def render(self, size: int = 256) -> np.ndarray:
        """The table from above, [size, size, 3] uint8."""
        self.sim.visualization_width = self.sim.visualization_height = size
        return np.ascontiguousarray(self.sim.render())

    def close(self) -> None:
        """Free the drawing surface."""
        self.sim.close()


@lru_cache(maxsize=1)
def _around(count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Places of the disc's centre just off the block, and the directions inward: [count, 2] in the block's frame."""
    ops, geometry = require("shapely.ops", "robotics"), require("shapely.geometry", "robotics")
    sim = _simulator()
    sim.reset(seed=0)
    block = ops.unary_union([geometry.Polygon(s.get_vertices()) for s in sim.block.shapes])
    ring = block.buffer(DISC + 2.0).exterior
    places = [ring.interpolate(i / count, normalized=True) for i in range(count)]
    feet = [block.exterior.interpolate(block.exterior.project(p)) for p in places]
    place, foot = (np.array([(p.x, p.y) for p in points]) for points in (places, feet))
    inward = foot - place
    return place, inward / np.linalg.norm(inward, axis=-1, keepdims=True)


def _turn(vectors: np.ndarray, angle: Any) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * vectors[..., 0] - s * vectors[..., 1], s * vectors[..., 0] + c * vectors[..., 1]], -1)


CORNERS = np.array([(-60, 30), (60, 30), (60, 0), (-60, 0), (-15, 30), (15, 30), (15, 120), (-15, 120)], float)
"""of the block, in its frame"""


class Expert:
    """The scripted demonstrator of one table: ``expert.act(env)`` is his next action. He looks at the simulator."""

    angles = (0.0, -0.5, 0.5)
    """directions of a push, against the inward normal"""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.twin = _simulator()
        self.twin.reset(seed=0)
        self.path: list[np.ndarray] = []
        self.last: np.ndarray | None = None
        self.patience = 0

    def act(self, env: PushT) -> np.ndarray:
        """Where the disc should go, [2] in pixels."""
        sim = env.sim
        disc = np.array(sim.agent.position)
        while self.path and np.linalg.norm(self.path[0] - disc) < (14.0 if len(self.path) > 1 else 1.5):
            self.path.pop(0)
        self.patience -= 1
        if not self.path or self.patience <= 0:
            self._plan(sim, disc)
        target = self.path[0]
        step = target - disc
        far = float(np.linalg.norm(step))
        reach = 60.0 if len(self.path) > 1 else 45.0
        return (disc + step * min(1.0, reach / max(far, 1e-6))).astype(np.float32)

    def _cost(self, block: Any, goal: np.ndarray) -> float:
        here = _turn(CORNERS, block.angle) + np.array(block.position)
        return float(np.linalg.norm(here - goal, axis=-1).mean())

    def _plan(self, sim: Any, disc: np.ndarray) -> None:
        """Try every push on the twin, choose one of the best, and lay the path to it."""
        x, y, theta = sim.goal_pose
        goal = _turn(CORNERS, theta) + np.array([x, y])
        place, angle = np.array(sim.block.position), float(sim.block.angle)
        now = self._cost(sim.block, goal)
        local, inward = _around()
        starts, normals = _turn(local, angle) + place, _turn(inward, angle)
        pace, most = (3.0, 20) if now > 30 else (1.0, 24) if now > 8 else (0.5, 16)
        tried = []
        for start, normal in zip(starts, normals, strict=True):
            if not ((start > MARGIN) & (start < SIZE - MARGIN)).all():
                continue
            for turn in self.angles:
                way = _turn(normal, turn)
                ends = self._try(place, angle, start, way, pace, most, goal)
                best = min(range(len(ends)), key=ends.__getitem__)
                walk = float(np.linalg.norm(start - disc))
                tried.append((ends[best] + 0.004 * min(walk, 400.0), start, way, pace * (best + 1)))
        tried.sort(key=lambda t: t[0])
        gain = now - tried[0][0]
        near = [t for t in tried if now - t[0] >= (0.9 * gain if gain > 0.2 else -2.0)]
        near = near[: 4 if gain > 0.2 else 12]  # where nothing helps, any small push may
        _, start, way, length = near[int(self.rng.integers(0, len(near), 1, 1).item())]
        end = np.clip(start + way * length, DISC + 5, SIZE - DISC - 5)
        self.path = [*self._walk(sim, disc, start), start, end]
        self.patience = 60

    def _try(
        self, place: np.ndarray, angle: float, start: np.ndarray, way: np.ndarray, pace: float, most: int, goal: Any
    ) -> list[float]:
        """The cost after each of ``most`` lengths of one push."""
        twin = self.twin
        twin.block.angle, twin.block.position = angle, tuple(place)
        twin.block.velocity, twin.block.angular_velocity = (0.0, 0.0), 0.0
        twin.agent.position = tuple(start)
        velocity = way * (pace / twin.dt)
        twin.agent.velocity = (float(velocity[0]), float(velocity[1]))
        twin.space.reindex_shapes_for_body(twin.block)
        costs = []
        for _ in range(most):
            twin.space.step(twin.dt)
            costs.append(self._cost(twin.block, goal))
        return costs

    def _walk(self, sim: Any, disc: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
        """Corners of a shortest way for the disc round the block."""
        shapely, geometry = require("shapely", "robotics"), require("shapely.geometry", "robotics")
        parts = [geometry.Polygon([s.body.local_to_world(v) for v in s.get_vertices()]) for s in sim.block.shapes]
        block = shapely.union_all(parts).buffer(DISC + 1.0)
        if not geometry.LineString([disc, start]).intersects(block):
            return []
        axis = np.arange(MARGIN, SIZE - MARGIN + 1, 20.0)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        wide = block.buffer(5.0)
        free = ~shapely.contains_xy(wide, grid[:, 0], grid[:, 1])
        nodes = np.concatenate([[disc], [start], grid[free]])
        apart = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
        link = apart < 30.0
        link[:2], link[:, :2] = apart[:2] < 45.0, apart[:, :2] < 45.0
        _, before = dijkstra(csr_matrix(np.where(link, apart, 0.0)), indices=0, return_predecessors=True)
        if before[1] < 0:
            return []
        way, node = [], int(before[1])
        while node > 0:
            way.append(nodes[node])
            node = int(before[node])
        way = [disc, *way[::-1], start]
        kept, i = [], 0
        while i < len(way) - 1:  # straighten: the farthest corner in sight
            j = len(way) - 1
            while j > i + 1 and geometry.LineString([way[i], way[j]]).intersects(wide if j < len(way) - 1 else block):
                j -= 1
            kept.append(way[j])
            i = j
        return kept[:-1]


def demonstrations(
    n: int, seed: int = 0, view: View = "keypoints", horizon: int = 300, noise: float = 0.0
) -> Demonstrations:
    """``n`` episodes in which the demonstrator succeeded; those in which he did not are left out.

    ``noise``: N(0, noise²) pixels on every action; what was executed is recorded, and he corrects himself.
    """
    if n < 1:
        raise InvalidInputError(f"demonstrations are at least one, not {n}")
    env, played, tried = PushT(view, horizon), [], 0
    while len(played) < n:
        if tried >= 8 + 4 * n:
            raise InvalidInputError(
                f"he solved {len(played)} of {tried} episodes of {horizon} ticks: give him more ticks"
            )
        episode = _episode(env, (seed * 1_000_003 + tried) % 2**31, noise)
        tried += 1
        if episode.won:
            played.append(episode)
    env.close()
    return Demonstrations.of([(e.seen, e.done) for e in played], [True] * n, [1.0] * n, "pusht")


def record(
    n: int,
    seed: int = 0,
    view: View = "keypoints",
    horizon: int = 300,
    told: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> EpisodeDataset:
    """``n`` episodes of the demonstrator with all that data formats ask for, failures included. ``told(done, won)``
    hears how many are through; ``first`` is the number of the first one."""
    if n < 1:
        raise InvalidInputError(f"a recording has at least one episode, not {n}")
    env, played = PushT(view, horizon), []
    for i in range(n):
        played.append(_episode(env, (seed * 1_000_003 + first + i) % 2**31, 0.0))
        if told is not None:
            told(i + 1, sum(e.won for e in played))
    env.close()
    won = [e.won for e in played]
    demos = Demonstrations.of([(e.seen, e.done) for e in played], won, [float(w) for w in won], "pusht")
    count_usage("env_steps", len(demos.actions))
    rewards = torch.zeros(len(demos.actions))
    rewards[demos.ends - 1] = torch.tensor(won).float()
    last = tree_map(lambda *v: torch.stack(v), played[0].last, *[e.last for e in played[1:]])
    return EpisodeDataset(demos, rewards, last, torch.tensor(won), torch.zeros(2), torch.full((2,), SIZE))


class _Episode(NamedTuple):
    """What was seen [L, ...], done [L, 2], seen last [...], and whether he succeeded."""

    seen: Any
    done: torch.Tensor
    last: Any
    won: bool


def _episode(env: PushT, seed: int, noise: float) -> _Episode:
    """One episode of the demonstrator."""
    rng = Rng.rows([seed])
    expert = Expert(rng)
    observation, _ = env.reset(seed=seed)
    seen, done, over, success = [], [], False, False
    while not over:
        action = expert.act(env) + noise * rng.normal(1, 2)[0].numpy()
        action = np.clip(action, 0.0, SIZE).astype(np.float32)
        seen.append(observation)
        done.append(torch.from_numpy(action))
        observation, _, success, late, _ = env.step(action)
        over = success or late
    told = tree_map(lambda *v: torch.from_numpy(np.stack(v)), seen[0], *seen[1:])
    return _Episode(told, torch.stack(done), tree_map(torch.from_numpy, observation), success)
