"""The zero-shot task: learn from maze data without rewards, then evaluate on nine rewards.

The data are positions and actions of goal-directed and of random episodes, without the goals. A policy is trained for
all tasks at once. The evaluation rewards are new to it: to be at each of six cells, in each of two corners, and as far
left as possible. With ``data`` at a path, the reward is that of the data, and ``env`` is the evaluation environment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from denoiserl.control.acting import eval_actor
from denoiserl.control.best_of_n import BestOfN
from denoiserl.control.zero_shot import (
    GoalReachingVerifier,
    SuccessorVerifier,
    TaskConditionedCodec,
    policy_for_reward,
    require_task_conditioned,
    states,
)
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.core.tree import cat
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs import evaluate
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.envs.by_name import environment as named
from denoiserl.envs.toy.maze import PointMaze, expert
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import VP, Diffusion, GaussianDenoiser, OneStep, ddim, time_grid
from denoiserl.recipes.zero_shot.common import demos, make_transitions
from denoiserl.report.episode_video import FEW, episode_video
from denoiserl.report.maze_plot import plot_paths, reward_grid
from denoiserl.tasks.base import Task
from denoiserl.tasks.zero_shot_data import Args, Reward, load_dataset, maze, required_env, rewards
from denoiserl.train import Run, fit

GAMMA = 0.98
"""discount factor per step of policies without their own"""


Act = Callable[[PointMaze, Tensor, Rng], Tensor]
"""``act(world, positions [n, 2], rng)``: the next actions, [n, H, 2]"""


class Trajectories(NamedTuple):
    """n episodes: rewards ``rewards`` [n, T], positions ``positions`` [n, T + 1, 2] and ``first_actions`` [n, H, 2]."""

    rewards: Tensor
    positions: Tensor
    first_actions: Tensor


@torch.no_grad()
def roll_out(base: Args, act: Act, reward: Reward, seed: int, n: int) -> Trajectories:
    """Run n episodes of ``max_episode_steps`` steps from held-out starts."""
    world = PointMaze(n, maze(base))
    seeds = [derive_seed(1_000_000 + seed, i) for i in range(n)]
    world.reset(seed=seeds)
    rng, path = Rng.rows(seeds), [world.position]
    first = actions = act(world, world.position, rng)
    while len(path) <= base.max_episode_steps:
        for action in actions.clamp(-1, 1).unbind(1):
            world.step(action)
            path.append(world.position)
        actions = act(world, world.position, rng)
    whole = torch.stack(path[: base.max_episode_steps + 1], 1)
    return Trajectories(reward(whole[:, 1:]), whole, first)


def adapt_and_roll_out(
    base: Args, policy: Policy, seen: Tensor, reward: Reward, seed: int, n: int
) -> tuple[Policy, Trajectories]:
    """Adapt the policy to a reward on states ``seen`` [N, 2] and run it; return the adapted policy and its episodes."""
    adapted = policy_for_reward(policy, seen, reward)
    return adapted, roll_out_policy(base, adapted, reward, seed, n)


def roll_out_policy(base: Args, policy: Policy, reward: Reward, seed: int, n: int) -> Trajectories:
    """Run n episodes of a policy that is already adapted to a task."""
    act = eval_actor(policy)
    return roll_out(base, lambda world, at, rng: act(at.to(policy.device), rng).cpu(), reward, seed, n)


@lru_cache(maxsize=4)
def references(base: Args, n: int = 200) -> dict[str, tuple[float, float]]:
    """Return mean returns of a policy that never moves, and of one on the shortest path to the nearest best cell."""
    cells, returns = maze(base).cells, {}
    for name, reward in rewards(base).items():
        worth = reward(cells)
        best = (worth >= worth.max() - 1e-6).nonzero().flatten()

        def shortest(world: PointMaze, position: Tensor, rng: Rng, best: Tensor = best) -> Tensor:
            far = world.maze.distance[world.maze.cell(position)][:, best]
            world.goal = cells[best[far.argmin(1)]]
            return expert(world)[:, None]

        idle = roll_out(base, lambda world, position, rng: torch.zeros_like(position)[:, None], reward, 0, n)
        returns[name] = (
            float(idle.rewards.sum(1).mean()),
            float(roll_out(base, shortest, reward, 0, n).rewards.sum(1).mean()),
        )
    return returns


def overestimation(policy: Policy, went: Trajectories, seen: Tensor, reward: Reward) -> Tensor:
    """Return Q of the first actions minus the discounted return, Σ γ^{H k} r_k over the ends of chunks: [n].

    The Q of a policy without a critic counts as 0.
    """
    verifier = policy.weights.control.verifier if isinstance(policy.weights.control, BestOfN) else None
    gamma = (verifier.gamma if isinstance(verifier, SuccessorVerifier) else GAMMA) ** policy.event_shape[0]
    ends = went.rewards[:, policy.event_shape[0] - 1 :: policy.event_shape[0]]
    returns = (ends * gamma ** torch.arange(ends.shape[1])).sum(1)
    if not isinstance(verifier, SuccessorVerifier):
        return -returns
    codec, begin, first = (
        require_task_conditioned(policy),
        went.positions[:, 0].to(policy.device),
        went.first_actions.to(policy.device),
    )
    back = verifier.represent.backward_embedding(codec.inner.condition(seen.to(policy.device)))
    size = (reward(seen).to(back)[:, None] * back).mean(0).norm() / len(codec.z) ** 0.5  # z is a direction alone
    return (size * verifier(policy, begin, codec.encode(first))).cpu() - returns


@torch.no_grad()
def outcomes(base: Args, policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """Return scores of n starts, overall and per reward, and Q minus the return; [n] each.

    Score 0 is no movement, 100 the shortest path.
    """
    if base.data != "maze":
        return logged_outcomes(base, policy, seed, n)
    scores, over = {}, []
    seen = states(demos(load_dataset(base, 0)))
    for name, reward in rewards(base).items():
        adapted, went = adapt_and_roll_out(base, policy, seen, reward, seed, n)
        low, high = references(base)[name]
        scores[name] = 100 * (went.rewards.sum(1) - low) / (high - low)
        over.append(overestimation(adapted, went, seen, reward))
    mean = torch.stack(list(scores.values())).mean(0)
    return {"score": mean, **scores, "overestimation": torch.stack(over).mean(0)}


def render_trials(base: Args, policy: Policy, seed: int, n: int) -> dict[str, bytes | str]:
    """Draw the maze for every reward, with paths of the adapted policy from at most eight starts.

    For data at a path, render a video of the policy adapted to the data's rewards. A policy that is already adapted
    keeps its task.
    """
    adapted, few = bool(require_task_conditioned(policy).z.any()), min(n, FEW)
    if base.data != "maze":
        return episode_video(
            eval_actor(policy if adapted else policy_for_data_rewards(base, policy)),
            named(required_env(base)),
            few,
            1_000_000 + seed,
        )
    if adapted:
        path = roll_out_policy(base, policy, lambda at: at[..., 0], seed, few).positions
        return {
            "ways.png": plot_paths(maze(base), {"its own task": (torch.zeros(reward_grid(maze(base)).shape[:2]), path)})
        }
    seen, at, panels = states(demos(load_dataset(base, 0))), reward_grid(maze(base)), {}
    for name, reward in rewards(base).items():
        went = adapt_and_roll_out(base, policy, seen, reward, seed, few)[1]
        panels[name] = reward(at), went.positions
    return {"ways.png": plot_paths(maze(base), panels)}


def logged_outcomes(base: Args, policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """Return outcomes of n episodes of the policy adapted to the rewards of the data."""
    env = named(required_env(base))
    return evaluate(eval_actor(policy_for_data_rewards(base, policy)), env, n, 1_000_000 + seed).outcomes


def policy_for_data_rewards(base: Args, policy: Policy) -> Policy:
    """Return the policy adapted to the rewards of the data at a path. Raise RunError if the data have none."""
    data = load_dataset(base, 0)
    if not isinstance(data, EpisodeDataset) or data.rewards is None:
        raise RunError(
            f"{base.data} holds no rewards: give a reward in Python, policy_for_reward(policy, data, reward)"
        )
    row = make_transitions(data)  # a reward belongs to the state that it is given in
    return policy_for_reward(policy, row["next_obs"], data.rewards[row["frame"]])


def diffusion(
    base: Args, data: Demonstrations | EpisodeDataset, size: int, seed: int, device: str | torch.device
) -> Policy:
    """Return an untrained variance-preserving diffusion policy, conditioned on a task of ``size`` numbers."""
    torch.manual_seed(seed)
    episodes, schedule = demos(data), VP(0.1, 10.0)
    event, obs_dim = (base.action_horizon, episodes.actions.shape[-1]), episodes.observations.shape[-1]
    net = MLP(event, obs_dim + size, base.policy_width, layer_norm=True)
    process = Diffusion(schedule, ddim(1.0), clip=1.0, weight="noise")
    steps = process.steps(time_grid(base.sampling_steps))
    codec = TaskConditionedCodec(ActionChunkCodec.fit(episodes), torch.zeros(size))
    return Policy.of(process, GaussianDenoiser(net, schedule, "eps"), event, steps, None, codec).to(device)


def untrained_policy(base: Args, seed: int, run: Run) -> Policy:
    """Return an untrained task-conditioned diffusion policy."""
    return diffusion(base, load_dataset(base, seed), base.task_dim, seed, run.device)


def squashed_policy(base: Args, seed: int, run: Run) -> Policy:
    """Return an untrained task-conditioned tanh-Gaussian policy, bounded by the range of the recorded actions."""
    torch.manual_seed(seed)
    episodes = demos(load_dataset(base, seed))
    event, obs_dim = (base.action_horizon, episodes.actions.shape[-1]), episodes.observations.shape[-1]
    net = MLP(
        event,
        obs_dim + base.task_dim,
        base.policy_width,
        2,
        0,
        False,
        activation="relu",
        out=(base.action_horizon, 2 * event[1]),
    )
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    actions = episodes.actions
    box = TanhCodec.from_box(actions.amin(0), actions.amax(0), Normalizer.fit(episodes.observations))
    return Policy.of(
        process, Actor(net), event, steps, serve, TaskConditionedCodec(box, torch.zeros(base.task_dim))
    ).to(run.device)


def goal_reaching_policy(base: Args, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """Train a goal-conditioned diffusion policy by imitation: yield metrics and return the policy.

    The goal is a state of the same episode, k steps later with probability ∝ γ^k.
    """
    data = load_dataset(base, seed)
    episodes, row, rng = demos(data), make_transitions(data, base.action_horizon), Rng(seed, run.device)
    made = diffusion(base, data, episodes.observations.shape[-1], seed, run.device)
    made.weights.control = BestOfN(GoalReachingVerifier(), 1)
    at, codec = row["frame"], require_task_conditioned(made)
    end = episodes.ends[torch.searchsorted(episodes.ends, at, right=True)] - 1
    ahead = (rng.uniform(len(at)).cpu().log() / torch.tensor(GAMMA).log()).long()
    obs = codec.inner.condition(episodes.observations)
    goal = obs[torch.minimum(at + 1 + ahead, end)]
    chunk, cond = codec.encode(row["action"]), cat([obs[at], goal], 1)
    more = {"batch": base.pretrain_batch_size, "lr": base.pretrain_lr, "run": run}
    yield from fit(made.process, made.denoiser, chunk, cond, base.pretrain_updates, rng, **more)
    return made


def metrics(base: Args) -> dict[str, tuple[str, str]]:
    """Return the metrics with their descriptions and units."""
    if base.data != "maze":
        return {"return": ("return of an episode", ""), "length": ("steps of an episode", "")}
    score = "mean over the rewards, 0 for no movement and 100 for the shortest path"
    each = {name: (f"score of {name!r}", "points") for name in rewards(base)}
    return {"score": (score, "points"), **each, "overestimation": ("Q minus the discounted return", "")}


def task(base: Args) -> Task:
    """Return the task: learn from data without rewards, evaluate on rewards that are specified later."""
    if base.data != "maze" and not Path(base.data).exists():
        raise RunError(f"there are no data {base.data!r}: name a path that exists, or maze")
    return Task(
        "zero-shot maze" if base.data == "maze" else base.data,
        {
            "diffusion": partial(untrained_policy, base),
            "squashed": partial(squashed_policy, base),
            "goals": partial(goal_reaching_policy, base),
        },
        lambda policy, seed, n: outcomes(base, policy, seed, n),
        metrics(base),
        data=lambda seed: load_dataset(base, seed),
        render=lambda policy, seed, n: render_trials(base, policy, seed, n),
        caption="Paths of the policy adapted to each reward (shaded): rings are starts, dots are ends."
        if base.data == "maze"
        else "Episodes of the policy adapted to the rewards of the data.",
        num_eval_trials=16,
    )
