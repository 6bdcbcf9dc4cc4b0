"""The task of learning from logged data: a data set, an untrained policy, and an environment for evaluation.

The signal, ``Task.data(seed)``, is an ``EpisodeDataset``. Data are named by a word:

    maze:SIZE-KIND          a point maze, small, medium or large, and its behaviour policy (see ``envs.toy.maze``):
                            expert, noisy, random, stitch, navigate; rewards for one goal or, with goal="any", for
                            the goal of each episode
    locosmall:WORLD-GRADE   pendulum, reacher or swingup; random, medium or medium-replay (see ``tasks.locosmall``)
    ring                    the ring bandit
    a path                  Minari, LeRobot, denoiserl, or one flat HDF5 file (see ``data.formats.any``); ``env`` is
                            the evaluation environment

Starting policies are untrained: "gaussian", "squashed" (TD3, SAC), "diffusion" and "flow". Actions are chunks scaled by
the action bounds (by the recorded actions where the bounds are unknown); observations are standardised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from denoiserl.control.acting import eval_actor
from denoiserl.core.errors import InvalidInputError, RunError, unknown_name_message
from denoiserl.core.rng import Rng
from denoiserl.core.settings import Count, Positive, Settings
from denoiserl.data import ActionChunkCodec, Normalizer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs import evaluate
from denoiserl.envs.by_name import environment as named
from denoiserl.envs.record import record as played
from denoiserl.envs.toy.maze import KINDS as PLAYERS
from denoiserl.envs.toy.maze import REACH, SPEED, Maze, PointMaze
from denoiserl.envs.toy.offline_data import bandit, farthest_cell, mazes
from denoiserl.envs.toy.ring import RingBandit
from denoiserl.policy.policy import Policy
from denoiserl.report.episode_video import FEW, episode_video
from denoiserl.report.maze_plot import plot_paths, reward_grid
from denoiserl.tasks import locosmall, policies
from denoiserl.tasks.base import Task
from denoiserl.tasks.user_inputs import load_recording
from denoiserl.train import Run

SIZES = {"small": 3, "medium": 4, "large": 6}
"""rooms per side"""
PLAN = 7
"""the seed of all maze layouts: mazes differ in size, not from seed to seed"""
COPIES = 64
LIMIT = 10.0
"""standard deviations at which observations are clipped"""


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the data, the evaluation environment and the untrained policy."""

    data: str = "maze:small-navigate"
    """data to learn from; maze:SIZE-KIND, locosmall:WORLD-GRADE, ring, or a path"""
    env: str | None = None
    """environment; to evaluate in, with a path as --data (an id, metaworld:TASK, FILE.py:FUNCTION)"""
    out_of_bounds_actions: Literal["error", "clip"] = "error"
    """actions outside the action space of the data or the environment"""
    exclude_episodes: str = ""
    """numbers of episodes of --data to leave out: 0-2,5"""
    obs_keys: str = ""
    """names of observations of --data to keep: observation.state"""
    max_transitions: Count | None = None
    """largest number of transitions, in whole episodes (None: all)"""
    num_episodes: Count = 500
    """number of episodes; of a maze, or actions of the bandit"""
    goal: str = "one"
    """goal in mazes: "one" for all, or "any" for each episode"""
    action_horizon: Count = 1
    """actions per chunk (H)"""
    sampling_steps: Count = 5
    """denoising steps; of a diffusion or flow policy"""
    min_denoising_std: Positive = 0.1
    """smallest std of a denoising step in training; online"""
    policy_width: Count = 128
    """width of the policy network"""


class DataSource(NamedTuple):
    """The data ``record(seed)``, the evaluation environment, the main metric, and known returns of (random, expert)."""

    record: Callable[[int], EpisodeDataset]
    env: Any
    metric: str
    known: tuple[float, float] | None


def maze(size: str) -> Maze:
    """Return the maze of a size."""
    if size not in SIZES:
        raise RunError(unknown_name_message(size, SIZES, "size of maze"))
    return Maze.random(SIZES[size], Rng(PLAN))


def data_source(base: Args) -> DataSource:
    """Return the source that ``base.data`` names. Raise RunError if there is none."""
    family, _, rest = base.data.partition(":")
    size, _, kind = rest.partition("-")
    if family == "maze":
        if kind not in PLAYERS:
            raise RunError(unknown_name_message(kind, PLAYERS, "kind of maze data") + " Data are named maze:SIZE-KIND.")
        if base.goal not in ("one", "any"):
            raise RunError(unknown_name_message(base.goal, ("one", "any"), "goal of a maze"))
        plan = maze(size)
        goal = farthest_cell(plan) if base.goal == "one" else None
        ticks = 2 * round(int(plan.distance.max()) / SPEED)
        at = None if goal is None else (float(goal[0]), float(goal[1]))
        make = partial(PointMaze, COPIES, plan, at, max_episode_steps=ticks)
        return DataSource(
            lambda seed: mazes(plan, base.num_episodes, Rng(seed), kind, goal, ticks), make, "success", None
        )
    if family == "locosmall":
        world = locosmall.find_world(size)
        return DataSource(lambda seed: locosmall.load_dataset(size, kind), world.make, "score", world.known)
    if base.data == "ring":
        make = partial(RingBandit, COPIES)
        return DataSource(lambda seed: bandit(base.num_episodes, Rng(seed)), make, "return", None)
    if not Path(base.data).exists():
        raise RunError(
            f"there are no data {base.data!r}: name maze:SIZE-KIND, locosmall:WORLD-GRADE, ring, or a path that exists"
        )
    if base.env is None:
        raise RunError(f"no evaluation environment for the data {base.data}: pass --env, for example --env Hopper-v5")
    env = named(base.env)
    return DataSource(
        lambda seed: load_recording(base.data, env, base.out_of_bounds_actions, base.exclude_episodes, base.obs_keys),
        env,
        "return",
        None,
    )


@lru_cache(maxsize=2)
def load_dataset(base: Args, seed: int) -> EpisodeDataset:
    """Return the data set of a seed: all of it, or at most ``max_transitions``."""
    data = data_source(base).record(seed)
    if base.max_transitions is None or base.max_transitions >= len(data.demos.actions):
        return data
    order = Rng(seed).permutation(len(data.demos))
    count = int((data.demos.lengths[order].cumsum(0) <= base.max_transitions).sum())
    return data.take(order[: max(1, count)].sort().values)


def action_box(data: EpisodeDataset) -> tuple[Tensor, Tensor]:
    """Return low and high [d] of the actions: their bounds, or the recorded range if a bound is unknown."""
    if bool((data.high - data.low).isfinite().all()):
        return data.low, data.high
    return data.demos.actions.amin(0), data.demos.actions.amax(0)


def make_codec(data: EpisodeDataset, kind: str) -> ActionChunkCodec | TanhCodec:
    """Return the codec: observations standardised and clipped at 10 std, actions scaled by their bounds."""
    if not isinstance(data.demos.observations, Tensor) or data.demos.observations.ndim != 2:
        raise InvalidInputError(
            f"the observations of {data.demos.name or 'the data'} are not flat numbers [o]: concatenate them first"
        )
    name = f"the observations of {data.demos.name or 'the data'}"
    observation = Normalizer.fit(data.demos.observations, "std", name=name, ends=data.demos.ends)
    low, high = action_box(data)
    if kind == "squashed":
        return replace(TanhCodec.from_box(low, high, observation), limit=LIMIT)
    return ActionChunkCodec(observation, Normalizer.fit(torch.stack([low, high])), LIMIT)


MAKERS: dict[str, Callable[..., Policy]] = {
    "diffusion": policies.diffusion,
    "flow": policies.flow,
    "gaussian": policies.gaussian,
    "meanflow": policies.meanflow,
    "student": policies.one_step_flow,
}
"""functions that make an untrained policy, by kind"""


def untrained_policy(
    base: Args, data: EpisodeDataset, kind: str, seed: int, device: str | torch.device = "cpu"
) -> Policy:
    """Return an untrained policy of a kind for the observations and actions of the data."""
    if kind == "squashed":
        event, obs_dim = (base.action_horizon, data.demos.actions.shape[-1]), data.demos.observations.shape[-1]
        return policies.squashed_gaussian(event, obs_dim, base.policy_width, 3, make_codec(data, kind), seed).to(device)
    return replace(MAKERS[kind](base, data.demos, seed, "cpu"), codec=make_codec(data, kind)).to(device)


def start_policy(base: Args, kind: str, seed: int, run: Run) -> Policy:
    """Return the untrained policy of a kind for the data of ``seed``."""
    return untrained_policy(base, load_dataset(base, seed), kind, seed, run.device)


METRICS = {
    "success": ("episodes that succeed", "%"),
    "score": ("return, 0 for a random and 100 for an expert policy", ""),
    "return": ("return of an episode", ""),
    "length": ("steps of an episode", ""),
}


def outcomes(base: Args, policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """Evaluate n episodes: return and length, success where reported, score where references are known; [n] each."""
    source = data_source(base)
    done = evaluate(eval_actor(policy), source.env, n, 1_000_000 + seed)
    if source.known is None:
        return done.outcomes
    low, high = source.known
    return {**done.outcomes, "score": 100 * (done.returns - low) / (high - low)}


def render_trials(base: Args, policy: Policy, seed: int, n: int) -> dict[str, bytes | str]:
    """Render the first episodes, eight at most, as a video; for a maze, draw their paths on its plan."""
    source, few = data_source(base), min(n, FEW)
    if not base.data.startswith("maze:"):
        return episode_video(eval_actor(policy), source.env, few, 1_000_000 + seed)
    plan = maze(base.data.partition(":")[2].partition("-")[0])
    episodes = played(source.env, eval_actor(policy), few, 1_000_000 + seed).demos
    paths = [episodes.episode(i)[0][:, :2] for i in range(few)]
    far = (reward_grid(plan)[..., None, :] - episodes.observations[episodes.ends - 1, -2:]).norm(dim=-1).amin(-1)
    won = 0 if episodes.success is None else int(episodes.success.sum())
    return {"ways.png": plot_paths(plan, {f"{won} of {few} reach the goal": ((far < REACH).float(), paths)})}


KINDS = (*MAKERS, "squashed")


def task(base: Args) -> Task:
    """Return the task: learn from the data set, and evaluate in its environment."""
    main = data_source(base).metric
    return Task(
        base.data,
        {kind: partial(start_policy, base, kind) for kind in KINDS}
        | {"untrained": partial(start_policy, base, "diffusion")},
        lambda policy, seed, n: outcomes(base, policy, seed, n),
        {main: METRICS[main], **{k: v for k, v in METRICS.items() if k != main}},
        data=lambda seed: load_dataset(base, seed),
        render=lambda policy, seed, n: render_trials(base, policy, seed, n),
        caption="Episodes from held-out starts. In a maze rings are starts and dots are ends.",
    )
