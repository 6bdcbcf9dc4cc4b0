"""The zero-shot experiment: a maze is explored without any reward, and then nine rewards are asked for.

Players who had goals of their own and players who wandered left their ways; what they were after is not in the data. A
policy is trained on them for all tasks at once, and judged by rewards that nobody knew of: to be at each of six cells,
in each of two corners, and as far left as can be. With ``data`` a file of yours is learned from, its rewards are asked
for, and ``env`` is where the policy is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

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
from denoiserl.core.settings import Count, CountOrZero, NonNegative, Settings
from denoiserl.core.tree import cat
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.envs import evaluate
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.envs.by_name import environment as named
from denoiserl.envs.toy.maze import Maze, PointMaze, demonstrations, expert
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import VP, Diffusion, GaussianDenoiser, OneStep, ddim, time_grid
from denoiserl.recipes.zero_shot.common import demos, make_transitions
from denoiserl.report.episode_video import FEW, episode_video
from denoiserl.report.maze_plot import plot_paths, reward_grid
from denoiserl.tasks.base import Task
from denoiserl.tasks.user_inputs import load_recording
from denoiserl.train import Run, fit

NEAR = 1.0
"""cells within which a goal pays; players turned round half a cell before theirs, so few have been closer"""
GAMMA = 0.98
"""the discount a tick of who has not said another"""
Reward = Callable[[Tensor], Tensor]
"""positions [N, 2] to rewards [N] in [0, 1]"""


@dataclass(frozen=True)
class Args(Settings):
    """The data without rewards, the rewards that are asked for, and the policy before it has learned."""

    data: str = "maze"
    """maze, or a path (Minari, LeRobot, HDF5) whose rewards come later"""
    env: str | None = None
    """environment to evaluate in, with a path as --data: an id, metaworld:TASK, FILE.py:FUNCTION"""
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
    """episodes of each kind of player"""
    episode_steps: Count = 500
    """environment steps per episode of a player"""
    max_episode_steps: Count = 150
    """environment steps per held-out trial"""
    task_dim: Count = 32
    """dimensions of a task (d; 50 as published)"""
    action_horizon: Count = 5
    """actions per chunk (H); a player crosses a cell in five steps"""
    sampling_steps: Count = 5
    """denoising steps"""
    policy_width: Count = 128
    """width of the policy network"""
    pretrain_updates: CountOrZero = 4000
    """gradient steps of the baseline that only imitates"""
    pretrain_batch_size: Count = 256
    """rows per gradient step of the baseline"""
    pretrain_lr: NonNegative = 1e-3
    """learning rate of the baseline"""


@lru_cache(maxsize=4)
def maze(base: Args) -> Maze:
    """The maze."""
    return Maze.random(base.rooms, Rng(base.maze_seed))


@lru_cache(maxsize=2)
def load_dataset(base: Args, seed: int) -> Demonstrations | EpisodeDataset:
    """What players left behind: where they were and what they did. Data of a user's are the same for every seed."""
    if base.data != "maze":
        return load_recording(
            base.data, named(required_env(base)), base.out_of_bounds_actions, base.exclude_episodes, base.obs_keys
        )
    rng, parts = Rng(seed), []
    for kind in ("navigate", "random"):
        demos = demonstrations(maze(base), base.num_episodes, rng, kind, base.episode_steps)
        parts += [(seen[:, :2], done) for seen, done in map(demos.episode, range(len(demos)))]  # without the goal
    return Demonstrations.of(parts, name="maze without rewards")


def rewards(base: Args) -> dict[str, Reward]:
    """What is asked for, by name."""
    if base.data != "maze":
        return {}
    found, cells = maze(base), maze(base).cells
    chosen = [0]
    for _ in range(5):  # each as far from the others as can be
        chosen.append(int(found.distance[chosen].amin(0).argmax()))
    high, wide = found.walls.shape
    told = {f"goal_{i + 1}": partial(_near, cells[c]) for i, c in enumerate(chosen)}
    corners = {"top_right": (wide / 2, 0.0), "bottom_left": (0.0, high / 2)}
    told |= {name: partial(_inside, torch.tensor(at), wide / 2, high / 2) for name, at in corners.items()}
    return told | {"stay_left": partial(_left, wide)}


def _near(goal: Tensor, position: Tensor) -> Tensor:
    return ((position - goal).norm(dim=-1) < NEAR).float()


def _inside(corner: Tensor, wide: float, high: float, position: Tensor) -> Tensor:
    return ((position >= corner) & (position < corner + torch.tensor([wide, high]))).all(-1).float()


def _left(wide: float, position: Tensor) -> Tensor:
    return 1 - position[..., 0] / wide


Act = Callable[[PointMaze, Tensor, Rng], Tensor]
"""``act(world, positions [n, 2], rng)``: the next actions, [n, H, 2]"""


class Walk(NamedTuple):
    """n episodes: ``gained`` [n, ticks], ``path`` [n, ticks + 1, 2] and the ``first`` actions [n, H, 2]."""

    gained: Tensor
    path: Tensor
    first: Tensor


@torch.no_grad()
def roll_out(base: Args, act: Act, reward: Reward, seed: int, n: int) -> Walk:
    """n episodes from held-out starts. Nothing ends them but the time."""
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
    return Walk(reward(whole[:, 1:]), whole, first)


def adapt_and_roll_out(
    base: Args, policy: Policy, seen: Tensor, reward: Reward, seed: int, n: int
) -> tuple[Policy, Walk]:
    """The policy that was told a reward on states [N, 2], and where it went."""
    made = policy_for_reward(policy, seen, reward)
    return made, roll_out_policy(base, made, reward, seed, n)


def roll_out_policy(base: Args, policy: Policy, reward: Reward, seed: int, n: int) -> Walk:
    """Where a policy goes that has been told."""
    act = eval_actor(policy)
    return roll_out(base, lambda world, at, rng: act(at.to(policy.device), rng).cpu(), reward, seed, n)


@lru_cache(maxsize=4)
def references(base: Args, n: int = 200) -> dict[str, tuple[float, float]]:
    """Mean returns of who stays where he starts, and of who walks the shortest way to the nearest best cell."""
    cells, told = maze(base).cells, {}
    for name, reward in rewards(base).items():
        worth = reward(cells)
        best = (worth >= worth.max() - 1e-6).nonzero().flatten()

        def shortest(world: PointMaze, position: Tensor, rng: Rng, best: Tensor = best) -> Tensor:
            far = world.maze.distance[world.maze.cell(position)][:, best]
            world.goal = cells[best[far.argmin(1)]]
            return expert(world)[:, None]

        idle = roll_out(base, lambda world, position, rng: torch.zeros_like(position)[:, None], reward, 0, n)
        told[name] = (
            float(idle.gained.sum(1).mean()),
            float(roll_out(base, shortest, reward, 0, n).gained.sum(1).mean()),
        )
    return told


def overestimation(policy: Policy, went: Walk, seen: Tensor, reward: Reward) -> Tensor:
    """Q of the first actions less the discounted return, Σ γ^{H k} r_k over the ends of decisions: [n].

    A policy that has no Q promised nothing, 0.
    """
    verifier = policy.weights.control.verifier if isinstance(policy.weights.control, BestOfN) else None
    gamma = (verifier.gamma if isinstance(verifier, SuccessorVerifier) else GAMMA) ** policy.event_shape[0]
    ends = went.gained[:, policy.event_shape[0] - 1 :: policy.event_shape[0]]
    came = (ends * gamma ** torch.arange(ends.shape[1])).sum(1)
    if not isinstance(verifier, SuccessorVerifier):
        return -came
    codec, begin, first = (
        require_task_conditioned(policy),
        went.path[:, 0].to(policy.device),
        went.first.to(policy.device),
    )
    back = verifier.represent.backward_embedding(codec.inner.condition(seen.to(policy.device)))
    size = (reward(seen).to(back)[:, None] * back).mean(0).norm() / len(codec.z) ** 0.5  # z is a direction alone
    return (size * verifier(policy, begin, codec.encode(first))).cpu() - came


@torch.no_grad()
def outcomes(base: Args, policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """The score of n starts, 0 who stays and 100 who walks the shortest way; by reward too, and Q − what came."""
    if base.data != "maze":
        return logged_outcomes(base, policy, seed, n)
    told, over = {}, []
    seen = states(demos(load_dataset(base, 0)))
    for name, reward in rewards(base).items():
        made, went = adapt_and_roll_out(base, policy, seen, reward, seed, n)
        low, high = references(base)[name]
        told[name] = 100 * (went.gained.sum(1) - low) / (high - low)
        over.append(overestimation(made, went, seen, reward))
    return {"score": torch.stack(list(told.values())).mean(0), **told, "overestimation": torch.stack(over).mean(0)}


def look(base: Args, policy: Policy, seed: int, n: int) -> dict[str, bytes | str]:
    """A plan of the maze for every reward, with where the policy that was told it goes from at most eight starts; of a
    user's data, a film of the policy that was told theirs. A policy that has been told goes for what it was told."""
    told, few = bool(require_task_conditioned(policy).z.any()), min(n, FEW)
    if base.data != "maze":
        return episode_video(
            eval_actor(policy if told else policy_for_data_rewards(base, policy)),
            named(required_env(base)),
            few,
            1_000_000 + seed,
        )
    if told:
        path = roll_out_policy(base, policy, lambda at: at[..., 0], seed, few).path
        return {
            "ways.png": plot_paths(
                maze(base), {"what it was told": (torch.zeros(reward_grid(maze(base)).shape[:2]), path)}
            )
        }
    seen, at, panels = states(demos(load_dataset(base, 0))), reward_grid(maze(base)), {}
    for name, reward in rewards(base).items():
        went = adapt_and_roll_out(base, policy, seen, reward, seed, few)[1]
        panels[name] = reward(at), went.path
    return {"ways.png": plot_paths(maze(base), panels)}


def logged_outcomes(base: Args, policy: Policy, seed: int, n: int) -> Mapping[str, Tensor]:
    """Returns of n episodes, of the policy that was told the rewards of the data."""
    env = named(required_env(base))
    return evaluate(eval_actor(policy_for_data_rewards(base, policy)), env, n, 1_000_000 + seed).outcomes


def required_env(base: Args) -> str:
    """Where policies that learn from data of a user's are judged."""
    if base.env is None:
        raise RunError(f"where are policies that learn from {base.data} judged? Say --env, such as --env Hopper-v5")
    return base.env


def policy_for_data_rewards(base: Args, policy: Policy) -> Policy:
    """The policy that was told the rewards of a user's data."""
    data = load_dataset(base, 0)
    if not isinstance(data, EpisodeDataset) or data.rewards is None:
        raise RunError(
            f"{base.data} holds no rewards to ask for: tell one in Python, policy_for_reward(policy, data, reward)"
        )
    row = make_transitions(data)  # a reward belongs to the state that it is given in
    return policy_for_reward(policy, row["after"], data.rewards[row["at"]])


def diffusion(
    base: Args, data: Demonstrations | EpisodeDataset, size: int, seed: int, device: str | torch.device
) -> Policy:
    """An untrained variance-preserving diffusion policy that sees a task of ``size`` numbers."""
    torch.manual_seed(seed)
    told, schedule = demos(data), VP(0.1, 10.0)
    event, seen = (base.action_horizon, told.actions.shape[-1]), told.observations.shape[-1]
    net = MLP(event, seen + size, base.policy_width, layer_norm=True)
    process = Diffusion(schedule, ddim(1.0), clip=1.0, weight="noise")
    steps = process.steps(time_grid(base.sampling_steps))
    codec = TaskConditionedCodec(ActionChunkCodec.fit(told), torch.zeros(size))
    return Policy.of(process, GaussianDenoiser(net, schedule, "eps"), event, steps, None, codec).to(device)


def untrained_policy(base: Args, seed: int, run: Run) -> Policy:
    """A diffusion policy for tasks."""
    return diffusion(base, load_dataset(base, seed), base.task_dim, seed, run.device)


def squashed_policy(base: Args, seed: int, run: Run) -> Policy:
    """A Gaussian policy for tasks, pressed into the box of the recorded actions; untrained."""
    torch.manual_seed(seed)
    told = demos(load_dataset(base, seed))
    event, seen = (base.action_horizon, told.actions.shape[-1]), told.observations.shape[-1]
    net = MLP(
        event,
        seen + base.task_dim,
        base.policy_width,
        2,
        0,
        False,
        activation="relu",
        out=(base.action_horizon, 2 * event[1]),
    )
    process = OneStep()
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), spread=0.0)
    box = TanhCodec.from_box(told.actions.amin(0), told.actions.amax(0), Normalizer.fit(told.observations))
    return Policy.of(
        process, Actor(net), event, steps, serve, TaskConditionedCodec(box, torch.zeros(base.task_dim))
    ).to(run.device)


def goal_reaching_policy(base: Args, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """A diffusion policy that has imitated how players came to where they came: a task is a state of the same episode,
    reached k ticks later with probability ∝ γ^k."""
    data = load_dataset(base, seed)
    told, row, rng = demos(data), make_transitions(data, base.action_horizon), Rng(seed, run.device)
    made = diffusion(base, data, told.observations.shape[-1], seed, run.device)
    made.weights.control = BestOfN(GoalReachingVerifier(), 1)
    at, codec = row["at"], require_task_conditioned(made)
    end = told.ends[torch.searchsorted(told.ends, at, right=True)] - 1
    ahead = (rng.uniform(len(at)).cpu().log() / torch.tensor(GAMMA).log()).long()
    seen = codec.inner.condition(told.observations)
    reached = seen[torch.minimum(at + 1 + ahead, end)]
    chunk, cond = codec.encode(row["action"]), cat([seen[at], reached], 1)
    more = {"batch": base.pretrain_batch_size, "lr": base.pretrain_lr, "run": run}
    yield from fit(made.process, made.denoiser, chunk, cond, base.pretrain_updates, rng, **more)
    return made


def metrics(base: Args) -> dict[str, tuple[str, str]]:
    """What is judged."""
    if base.data != "maze":
        return {"return": ("return of an episode", ""), "length": ("steps of an episode", "")}
    score = "mean over the rewards, 0 to stay and 100 for the shortest way"
    each = {name: (f"score of {name!r}", "points") for name in rewards(base)}
    return {"score": (score, "points"), **each, "overestimation": ("Q less the discounted return that came", "")}


def task(base: Args) -> Task:
    """The task: learn from data without rewards, be judged by rewards that come later."""
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
        look=lambda policy, seed, n: look(base, policy, seed, n),
        caption="Where a policy goes once it is told what pays (shaded): rings are starts, dots are ends."
        if base.data == "maze"
        else "What the policy does that was told the rewards of the data.",
        num_eval_trials=16,
    )
