"""The scripted expert of PushT, and its demonstrations.

The expert is greedy. It tries pushes (points around the block x directions x lengths) in a second simulator, chooses
one of the best, walks around the block to its start, executes it, and plans again. Among pushes of similar value it
chooses at random, so demonstrations have several modes. It solved 38 of 38 starts, in 128 steps on average; with noise
of 10 pixels on its actions, 6 of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from denoiserl.core.counters import count_usage
from denoiserl.core.errors import InvalidInputError, require
from denoiserl.core.progress import track
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import tree_map
from denoiserl.data.demos import Demonstrations
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs.pusht import SIZE, PushT, View, make_simulator

MARGIN = 24.0
"""least distance of the disc's centre from the table's edge while it walks, in pixels"""
DISC = 15.0
"""the disc's radius in pixels"""


@lru_cache(maxsize=1)
def _around(count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of the disc's centre just off the block, and inward directions: [count, 2] in the block's
    frame."""
    ops, geometry = require("shapely.ops", "robotics"), require("shapely.geometry", "robotics")
    sim = make_simulator()
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
    """The scripted expert of one table: ``expert.act(env)`` is its next action. It reads the state of the simulator."""

    angles = (0.0, -0.5, 0.5)
    """directions of a push, relative to the inward normal"""

    def __init__(self, rng: Rng | int) -> None:
        rng = as_rng(rng)
        self.rng = rng
        self.twin = make_simulator()
        self.twin.reset(seed=0)
        self.path: list[np.ndarray] = []
        self.last: np.ndarray | None = None
        self.patience = 0

    def act(self, env: PushT) -> np.ndarray:
        """Return the disc's target position, [2] in pixels."""
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
        """Try every push in the twin simulator, choose one of the best, and plan the path to it."""
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
        near = near[: 4 if gain > 0.2 else 12]  # if nothing improves, try any small push
        _, start, way, length = near[int(self.rng.integers(0, len(near), 1, 1).item())]
        end = np.clip(start + way * length, DISC + 5, SIZE - DISC - 5)
        self.path = [*self._walk(sim, disc, start), start, end]
        self.patience = 60

    def _try(
        self, place: np.ndarray, angle: float, start: np.ndarray, way: np.ndarray, pace: float, most: int, goal: Any
    ) -> list[float]:
        """Return the cost after each of ``most`` lengths of one push."""
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
        """Return the corners of a shortest path of the disc around the block."""
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
    """Return ``n`` successful episodes of the expert; failed ones are left out.

    ``noise``: std of the noise on every action in pixels. The executed action is recorded, and the expert corrects for
    it. Raise InvalidInputError if too few episodes succeed.
    """
    if n < 1:
        raise InvalidInputError(f"there is at least one demonstration, not {n}: raise n")
    env, played, tried = PushT(view, horizon), [], 0
    with track("record demonstrations", n) as advance:
        while len(played) < n:
            if tried >= 8 + 4 * n:
                raise InvalidInputError(
                    f"the expert solved {len(played)} of {tried} episodes of {horizon} steps: raise horizon"
                )
            episode = _episode(env, (seed * 1_000_003 + tried) % 2**31, noise)
            tried += 1
            if episode.won:
                played.append(episode)
                advance()
    env.close()
    return Demonstrations.of([(e.seen, e.done) for e in played], [True] * n, [1.0] * n, "pusht")


def record(
    n: int,
    seed: int = 0,
    view: View = "keypoints",
    horizon: int = 300,
    on_progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> EpisodeDataset:
    """Return ``n`` episodes of the expert with all that data formats need, failures included.

    ``on_progress(done, won)`` is called with the numbers of finished and of successful episodes; ``first``: number of
    the first one.
    """
    if n < 1:
        raise InvalidInputError(f"a data set has at least one episode, not {n}: raise n")
    env, played = PushT(view, horizon), []
    for i in range(n):
        played.append(_episode(env, (seed * 1_000_003 + first + i) % 2**31, 0.0))
        if on_progress is not None:
            on_progress(i + 1, sum(e.won for e in played))
    env.close()
    won = [e.won for e in played]
    demos = Demonstrations.of([(e.seen, e.done) for e in played], won, [float(w) for w in won], "pusht")
    count_usage("env_steps", len(demos.actions))
    rewards = torch.zeros(len(demos.actions))
    rewards[demos.ends - 1] = torch.tensor(won).float()
    last = tree_map(lambda *v: torch.stack(v), played[0].last, *[e.last for e in played[1:]])
    return EpisodeDataset(demos, rewards, last, torch.tensor(won), torch.zeros(2), torch.full((2,), SIZE))


class _Episode(NamedTuple):
    """Observations [L, ...], actions [L, 2], the last observation [...], and success."""

    seen: Any
    done: torch.Tensor
    last: Any
    won: bool


def _episode(env: PushT, seed: int, noise: float) -> _Episode:
    """Play one episode of the expert."""
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
    stacked = tree_map(lambda *v: torch.from_numpy(np.stack(v)), seen[0], *seen[1:])
    return _Episode(stacked, torch.stack(done), tree_map(torch.from_numpy, observation), success)
