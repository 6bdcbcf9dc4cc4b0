"""The task of acting in an environment: robots, Gymnasium, or a custom environment.

By default: a Meta-World task. Demonstrations come from a scripted expert whose estimate of the object and goal
positions is off by a few centimetres in every episode. A clone succeeds about as often as the script. More imitation
does not help, because the data never contain the true positions; the simulator's success signal does.

``env`` names another environment, ``data`` other demonstrations, ``start`` an existing policy. Methods that act learn
from the environment, methods that imitate from the demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.control.acting import check_policy_fits, eval_actor, set_execution_horizon
from denoiserl.control.noise_steering import as_deterministic, steer
from denoiserl.core.errors import RunError
from denoiserl.core.rng import Rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.data import Demonstrations, TanhCodec
from denoiserl.envs import Collector, evaluate
from denoiserl.envs.by_name import demonstrations, environment, has_script
from denoiserl.envs.frame_stack import ObservationHistory
from denoiserl.envs.success import reports_success
from denoiserl.policy.policy import Policy
from denoiserl.report.episode_video import FEW, episode_video
from denoiserl.tasks import clone
from denoiserl.tasks.base import Task
from denoiserl.tasks.policies import diffusion, flow, gaussian, policy_spec, probe_env
from denoiserl.tasks.policies import squashed_gaussian as squashed_policy
from denoiserl.tasks.user_inputs import load_policy, load_recording
from denoiserl.train import Run


@dataclass(frozen=True)
class Args(Settings):
    """Settings of the environment and the starting policy."""

    env: str = "metaworld:drawer-open-v3"
    """environment; a Gymnasium id, metaworld:TASK, pusht, pixels:ENV, envpool:ID, my_file.py:make_env, none"""
    data: str | None = None
    """data to learn from; demonstrations in a folder or file, or none (None: the expert's)"""
    out_of_bounds_actions: Literal["error", "clip"] = "error"
    """actions outside the action space of the data or the environment"""
    exclude_episodes: str = ""
    """numbers of episodes of --data to leave out: 0-2,5"""
    obs_keys: str = ""
    """names of observations of --data to keep: observation.state"""
    held_out_fraction: Fraction = 0.1
    """share that is held out for trials; of the episodes, with --env none"""
    start: str | None = None
    """policy to improve: a run, a saved policy, a LeRobot checkpoint, or none (None: a clone)"""
    obs_horizon: Count = 1
    """observations that the policy sees; the one at --start (T_o)"""
    max_episode_steps: Count | None = None
    """environment steps per episode (None: the environment's)"""
    num_demos: Count = 100
    """number of demonstrations of the expert"""
    demo_goal_error: NonNegative | None = None
    """error of the expert's object and goal, in metres (None: 0.04)"""
    demo_action_noise: NonNegative | None = None
    """std of the expert's action noise (None: 0.2; PushT 0)"""
    action_horizon: Count = 5
    """actions per chunk (H)"""
    execution_horizon: Count | None = None
    """actions executed of each chunk (T_a; None: all, or the policy's)"""
    sampling_steps: Count = 5
    """denoising steps"""
    min_denoising_std: Positive = 0.1
    """smallest std of a denoising step in training"""
    policy_width: Count = 256
    """width of the policy network"""
    policy_depth: Count = 2
    """layers of the policy network; hidden ones of a squashed policy"""
    pretrain_updates: CountOrZero = 9000
    """gradient steps of imitation"""
    pretrain_batch_size: Count = 256
    """items per gradient step of imitation; windows"""
    pretrain_lr: Positive = 1e-3
    """learning rate of imitation (AdamW, warm-up, cosine decay)"""
    noise_map: Literal["full", "repeated", "smooth"] = "full"
    """of a steered policy: how decisions become noise"""
    num_workers: Count = 1
    """worker processes that step the environments; faster for slow simulators"""
    on_fault: Literal["error", "restart"] = "error"
    """if an environment fails or returns NaN: raise an error, or make it again"""
    env_timeout: Positive | None = None
    """seconds until a silent worker is a fault (None: 300)"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        if self.start in (None, "none"):  # the policy at start has horizons of its own
            self.require_order("execution_horizon", "action_horizon")
            self.require_fit(self.obs_horizon == 1, f"obs_horizon = {self.obs_horizon} needs a policy at start: give 1")


Make = Callable[[Args, Demonstrations | Collector, int, str | torch.device], Policy]


def make_env(base: Args) -> Any:
    """Return the environment in a form that ``Collector`` and ``evaluate`` accept."""
    env = environment(base.env, base.max_episode_steps)
    return env if base.obs_horizon == 1 else partial(ObservationHistory, env, base.obs_horizon)


def start_path(base: Args) -> str | None:
    """Return the path of the policy to improve; None for a clone or an untrained policy."""
    return None if base.start == "none" else base.start


def has_demonstrations(base: Args) -> bool:
    """Return whether there are demonstrations to clone."""
    if base.start == "none":
        return False
    return base.data != "none" if base.data is not None else has_script(base.env)


@lru_cache(maxsize=2)
def load_demonstrations(base: Args, seed: int) -> Demonstrations:
    """Return demonstrations: the scripted expert's, failures included, or those at ``data``, equal for all seeds."""
    if not has_demonstrations(base):
        raise RunError(
            f"{base.env} has no scripted expert: give demonstrations with --data, or a policy with --start. Methods "
            "that learn from the environment can begin with an untrained policy: --start none"
        )
    if base.data is not None:
        choice = base.out_of_bounds_actions, base.exclude_episodes, base.obs_keys
        return load_recording(base.data, make_env(base), *choice).demos
    return demonstrations(
        base.env, base.num_demos, seed, base.max_episode_steps, base.demo_goal_error, base.demo_action_noise
    )


def imitate(
    policy: Policy,
    base: Args,
    seed: int,
    updates: int,
    lr: float,
    run: Run,
    stream: int = 0,
    demos: Demonstrations | None = None,
) -> Iterator[dict]:
    """Clone the demonstrations of ``seed`` (or ``demos``); each ``stream`` has its own minibatches and noise."""
    from denoiserl.recipes.imitation import diffusion_policy  # the recipe imports tasks

    rng = Rng(seed + 1_000_003 * stream, run.device)
    if updates:
        a = diffusion_policy.Args(updates, base.pretrain_batch_size, lr)
        yield from diffusion_policy.improve(policy, demos or load_demonstrations(base, seed), a, rng, run)


def untrained_policy(kind: Make, base: Args, source: Demonstrations | Collector, seed: int, run: Run) -> Policy:
    """Return an untrained policy of a kind, with the number of actions to execute of a chunk."""
    policy = kind(base, source, seed, run.device)
    set_execution_horizon(policy, base.execution_horizon)
    return policy


def load_start(base: Args, run: Run) -> Policy:
    """Return the policy at ``start``. Raise an error if it does not fit the environment."""
    path = start_path(base)
    assert path is not None
    policy = load_policy(path, run.device, base.sampling_steps, base.min_denoising_std)
    check_policy_fits(policy, probe_env(make_env(base)), path)
    set_execution_horizon(policy, base.execution_horizon)
    return policy


def untrained_start(base: Args, seed: int, run: Run) -> Policy:
    """Return an untrained diffusion policy for methods that imitate. Raise RunError if ``start`` is given."""
    if start_path(base) is not None:
        raise RunError(
            f"this method trains new weights, and start={base.start} names an existing policy: continue its cloning "
            "with diffusion_policy.improve(policy, demos, args, rng), or improve it by RL, run dppo --start ..."
        )
    return untrained_policy(diffusion, base, load_demonstrations(base, seed), seed, run)


def squashed_start(base: Args, seed: int, run: Run) -> Policy:
    """Return an untrained tanh-Gaussian policy, or the policy at ``start``."""
    if start_path(base) is not None:
        return load_start(base, run)
    env = probe_env(make_env(base))
    policy_spec(env)  # raises for unsupported observations and actions
    event, codec = (base.action_horizon, env.action_dim), TanhCodec.from_box(env.spec.low, env.spec.high)
    return squashed_policy(event, env.obs_dim, base.policy_width, base.policy_depth, codec, seed).to(run.device)


def cloned_policy(kind: Make, base: Args, seed: int, run: Run, nothing: bool = True) -> Generator[dict, None, Policy]:
    """Train a policy of a kind by imitation: yield metrics and return the policy.

    If ``start`` is given, return that policy. Return an untrained one if ``start`` or ``data`` is "none", or of a
    Gaussian policy without demonstrations. Otherwise raise RunError if there are none, or if ``nothing`` is False.
    """
    if start_path(base) is not None:
        return load_start(base, run)
    untrained = "none" in (base.start, base.data) or kind is gaussian
    if nothing and untrained and not has_demonstrations(base):
        return untrained_policy(kind, base, probe_env(make_env(base)), seed, run)
    demos = load_demonstrations(base, seed)
    policy = untrained_policy(kind, base, demos, seed, run)
    yield from imitate(policy, base, seed, base.pretrain_updates, base.pretrain_lr, run, demos=demos)
    return policy


def cloned_from_successes(base: Args, seed: int, run: Run) -> Generator[dict, None, Policy]:
    """Train a diffusion policy on the successful demonstrations only, for the same number of updates."""
    demos = load_demonstrations(base, seed)
    policy = untrained_policy(diffusion, base, demos, seed, run)
    yield from imitate(policy, base, seed, base.pretrain_updates, base.pretrain_lr, run, demos=demos.successful())
    return policy


def steered_start(base: Args, seed: int, run: Run, spread: float = 0.0) -> Generator[dict, None, Policy]:
    """Return a policy that steers the initial noise of the frozen diffusion policy, which is sampled by its ODE.

    ``spread=1`` and no training: narrow noise.
    """
    policy = yield from cloned_policy(diffusion, base, seed, run, False)
    return steer(
        as_deterministic(policy), probe_env(make_env(base)).obs_dim, noise_map=base.noise_map, eval_std_scale=spread
    )


METRICS = {
    "success": ("success from held-out starts", "%"),
    "return": ("return of an episode", ""),
    "length": ("steps of an episode", ""),
}


def make_eval_actor(policy: Policy, base: Args) -> Callable[[Any, Rng], Tensor]:
    """Return the policy's action function for evaluations.

    It executes as many actions as the policy says, or else ``execution_horizon``.
    """
    return eval_actor(policy, base.execution_horizon if policy.weights.execute is None else None)


def outcomes(policy: Policy, base: Args, seed: int, n: int) -> Mapping[str, Tensor]:
    """Evaluate n episodes from held-out start states: success where the environment reports it, return, length; [n]."""
    return evaluate(make_eval_actor(policy, base), make_env(base), n, 1_000_000 + seed).outcomes


def render_trials(policy: Policy, base: Args, seed: int, n: int) -> dict[str, bytes | str]:
    """Render the first episodes, eight at most, as one video; return a text file if rendering is not possible."""
    return episode_video(make_eval_actor(policy, base), make_env(base), min(n, FEW), 1_000_000 + seed)


def task(base: Args) -> Task:
    """Return the task: learn from the environment's reward, or from its demonstrations."""
    if base.env == "none":
        return clone.task(base)
    kinds = {"diffusion": diffusion, "gaussian": gaussian, "flow": flow}
    return Task(
        base.env.removeprefix("metaworld:"),
        {
            **{name: partial(cloned_policy, kind, base) for name, kind in kinds.items()},
            "successes": partial(cloned_from_successes, base),
            "steered": partial(steered_start, base),
            "narrow": partial(steered_start, base, spread=1.0),
            "squashed": partial(squashed_start, base),
            "untrained": partial(untrained_start, base),
        },
        lambda policy, seed, n: outcomes(policy, base, seed, n),
        METRICS
        if has_script(base.env) or reports_success(make_env(base))
        else {k: v for k, v in METRICS.items() if k != "success"},
        env=lambda copies, seed: Collector(
            make_env(base), copies, seed, base.num_workers, on_fault=base.on_fault, timeout=base.env_timeout
        ),
        data=(lambda seed: load_demonstrations(base, seed)) if has_demonstrations(base) else None,
        render=lambda policy, seed, n: render_trials(policy, base, seed, n),
        continue_imitation=(
            lambda policy, seed, updates, keep, number: imitate(
                policy, base, seed, updates, base.pretrain_lr, keep, number
            )
        )
        if has_demonstrations(base) and start_path(base) is None
        else None,
        caption="The first episodes from held-out starts, at twice their speed.",
        num_denoising_steps=base.sampling_steps if start_path(base) is None else None,
    )
