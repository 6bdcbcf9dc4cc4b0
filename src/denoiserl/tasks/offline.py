"""The experiment of learning from logged data: a recording, a policy that knows nothing, the recording's environment.

What a method learns from, ``Task.data(seed)``, is a ``EpisodeDataset``; ``remembered`` makes rows of it, with the
method's chunk, n and discount, in the policy's units. Data are named by a word:

    maze:SIZE-KIND          a point maze, small, medium or large, and its players (see ``envs.toy.maze``): expert,
                            noisy, random, stitch, navigate; told for one goal or, with goal="any", for each
                            player's own
    locosmall:WORLD-GRADE   pendulum, reacher or swingup; random, medium or medium-replay (see ``_locosmall``)
    ring                    the ring bandit
    a path of yours         Minari, LeRobot, our own, or one flat HDF5 file (see ``data.formats.any``); ``env`` says
                            where policies are judged

Starting policies are untrained: "gaussian", "squashed" (TD3, SAC), "diffusion" and "flow". Each of them decides a chunk
in units of the actions' box (of the recorded actions, where nobody knows the box) and sees standardised observations.
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
from denoiserl.core.settings import Count, NonNegative, Settings
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
from denoiserl.tasks import locosmall as _locosmall
from denoiserl.tasks import policies as _kinds
from denoiserl.tasks.base import Task
from denoiserl.tasks.user_inputs import load_recording
from denoiserl.train import Run

SIZES = {"small": 3, "medium": 4, "large": 6}
"""rooms a side"""
PLAN = 7
"""the seed of all plans: mazes differ in size, not from seed to seed"""
COPIES = 64
LIMIT = 10.0
"""standard deviations at which observations are clipped"""


@dataclass(frozen=True)
class Args(Settings):
    """The data, where policies are judged, and the policy before it has learned."""

    data: str = "maze:small-navigate"
    """maze:SIZE-KIND, locosmall:WORLD-GRADE, ring, or a path"""
    env: str | None = None
    """environment to evaluate in, with a path as --data: an id, metaworld:TASK, FILE.py:FUNCTION"""
    out_of_bounds_actions: Literal["error", "clip"] = "error"
    """actions outside the action space of the data or the environment"""
    exclude_episodes: str = ""
    """numbers of episodes of --data to leave out: 0-2,5"""
    obs_keys: str = ""
    """names of observations of --data to keep: observation.state"""
    max_transitions: Count | None = None
    """largest number of transitions, in whole episodes (None: all)"""
    num_episodes: Count = 500
    """episodes of a maze's players, decisions of the bandit"""
    goal: str = "one"
    """goal in mazes: "one" for all, or "any" for each episode"""
    action_horizon: Count = 1
    """actions per chunk (H)"""
    sampling_steps: Count = 5
    """denoising steps of a diffusion or flow policy"""
    min_denoising_std: NonNegative = 0.1
    """smallest std of a denoising step in online training"""
    policy_width: Count = 128
    """width of the policy network"""


class DataSource(NamedTuple):
    """Where data come from: ``record(seed)``; ``env``, what ``evaluate`` takes; the main metric; and the returns of a
    random and of an expert player, where they are known."""

    record: Callable[[int], EpisodeDataset]
    env: Any
    metric: str
    known: tuple[float, float] | None


def maze(size: str) -> Maze:
    """The maze of a size."""
    if size not in SIZES:
        raise RunError(unknown_name_message(size, SIZES, "size of maze"))
    return Maze.random(SIZES[size], Rng(PLAN))


def data_source(base: Args) -> DataSource:
    """What the data's word means."""
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
        world = _locosmall.world(size)
        return DataSource(lambda seed: _locosmall.load_dataset(size, kind), world.make, "score", world.known)
    if base.data == "ring":
        make = partial(RingBandit, COPIES)
        return DataSource(lambda seed: bandit(base.num_episodes, Rng(seed)), make, "return", None)
    if not Path(base.data).exists():
        raise RunError(
            f"there are no data {base.data!r}: name maze:SIZE-KIND, locosmall:WORLD-GRADE, ring, or a path that exists"
        )
    if base.env is None:
        raise RunError(f"where are policies that learn from {base.data} judged? Say --env, such as --env Hopper-v5")
    env = named(base.env)
    return DataSource(
        lambda seed: load_recording(base.data, env, base.out_of_bounds_actions, base.exclude_episodes, base.obs_keys),
        env,
        "return",
        None,
    )


@lru_cache(maxsize=2)
def load_dataset(base: Args, seed: int) -> EpisodeDataset:
    """The recording that a seed learns from: our own players' or the user's, whole or ``max_transitions`` of it."""
    data = data_source(base).record(seed)
    if base.max_transitions is None or base.max_transitions >= len(data.demos.actions):
        return data
    order = Rng(seed).permutation(len(data.demos))
    count = int((data.demos.lengths[order].cumsum(0) <= base.max_transitions).sum())
    return data.take(order[: max(1, count)].sort().values)


def action_box(data: EpisodeDataset) -> tuple[Tensor, Tensor]:
    """Low and high [d] of the actions: the box, or what was recorded where it is not known in all dimensions."""
    if bool((data.high - data.low).isfinite().all()):
        return data.low, data.high
    return data.demos.actions.amin(0), data.demos.actions.amax(0)


def make_codec(data: EpisodeDataset, kind: str) -> ActionChunkCodec | TanhCodec:
    """Standardised observations, clipped at 10, and actions in units of their box."""
    if not isinstance(data.demos.observations, Tensor) or data.demos.observations.ndim != 2:
        raise InvalidInputError(
            f"{data.demos.name or 'the data'} observe no flat numbers [o]: concatenate the parts first"
        )
    name = f"the observations of {data.demos.name or 'the data'}"
    seen = Normalizer.fit(data.demos.observations, "std", name=name, ends=data.demos.ends)
    low, high = action_box(data)
    if kind == "squashed":
        return replace(TanhCodec.from_box(low, high, seen), limit=LIMIT)
    return ActionChunkCodec(seen, Normalizer.fit(torch.stack([low, high])), LIMIT)


MAKERS: dict[str, Callable[..., Policy]] = {
    "diffusion": _kinds.diffusion,
    "flow": _kinds.flow,
    "gaussian": _kinds.gaussian,
    "meanflow": _kinds.meanflow,
    "student": _kinds.one_step_flow,
}
"""what makes an untrained policy of a kind"""


def untrained_policy(
    base: Args, data: EpisodeDataset, kind: str, seed: int, device: str | torch.device = "cpu"
) -> Policy:
    """An untrained policy of a kind for what the data observe and do."""
    if kind == "squashed":
        event, seen = (base.action_horizon, data.demos.actions.shape[-1]), data.demos.observations.shape[-1]
        return _kinds.squashed_gaussian(event, seen, base.policy_width, 3, make_codec(data, kind), seed).to(device)
    return replace(MAKERS[kind](base, data.demos, seed, "cpu"), codec=make_codec(data, kind)).to(device)


def start_policy(base: Args, kind: str, seed: int, run: Run) -> Policy:
    """Where a policy of this kind starts."""
    return untrained_policy(base, load_dataset(base, seed), kind, seed, run.device)


METRICS = {
    "success": ("episodes that succeed", "%"),
    "score": ("return, 0 for random and 100 for expert players", ""),
    "return": ("return of an episode", ""),
    "length": ("steps of an episode", ""),
}


def outcomes(base: Args, made: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """Return and ticks of n episodes; success where it is reported, score where references are known: [n] each."""
    where = data_source(base)
    done = evaluate(eval_actor(made), where.env, n, 1_000_000 + seed)
    if where.known is None:
        return done.outcomes
    low, high = where.known
    return {**done.outcomes, "score": 100 * (done.returns - low) / (high - low)}


def look(base: Args, made: Policy, seed: int, n: int) -> dict[str, bytes | str]:
    """A film of the first episodes, eight at most; of a maze, its plan with the ways through it."""
    where, few = data_source(base), min(n, FEW)
    if not base.data.startswith("maze:"):
        return episode_video(eval_actor(made), where.env, few, 1_000_000 + seed)
    plan = maze(base.data.partition(":")[2].partition("-")[0])
    went = played(where.env, eval_actor(made), few, 1_000_000 + seed).demos
    paths = [went.episode(i)[0][:, :2] for i in range(few)]
    far = (reward_grid(plan)[..., None, :] - went.observations[went.ends - 1, -2:]).norm(dim=-1).amin(-1)
    won = 0 if went.success is None else int(went.success.sum())
    return {"ways.png": plot_paths(plan, {f"{won} of {few} reach the goal": ((far < REACH).float(), paths)})}


KINDS = (*MAKERS, "squashed")


def task(base: Args) -> Task:
    """The task: learn from the recording, be judged where it was recorded."""
    main = data_source(base).metric
    return Task(
        base.data,
        {kind: partial(start_policy, base, kind) for kind in KINDS}
        | {"untrained": partial(start_policy, base, "diffusion")},
        lambda made, seed, n: outcomes(base, made, seed, n),
        {main: METRICS[main], **{k: v for k, v in METRICS.items() if k != main}},
        data=lambda seed: load_dataset(base, seed),
        look=lambda made, seed, n: look(base, made, seed, n),
        caption="What the policy does from held-out starts. In a maze rings are starts and dots are ends.",
    )
