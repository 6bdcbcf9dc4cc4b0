"""Beyond Human: demonstrations from a policy that reinforcement learning has improved, for a new policy to clone.

paper: arXiv 2509.19752
signal: env
family: data generation
side: B
base: diffusion
task: exploration, policy learning
stage: fine-tuning, distillation
output: actions
process: diffusion, flow, one-step
likelihood: rescore, none

The data flywheel. A small policy that has imitated a few demonstrations (the generator) is improved online. It then
plays with its evaluation steps, and its clean episodes are the demonstrations of a new policy (the student):

    generate -> keep successes -> drop the longest (beyond the ``length_quantile`` of their lengths) -> clone

The generator is DPPO's diffusion policy, or PPO's if the given policy decides in one Gaussian step. The student is the
same network with new weights. It keeps the codec, so both measure smoothness in the same units. All is in place: the
policy is the generator first and ends as the student. Compare it with a clone of as many of the demonstrations that the
generator began with. The last row describes the data (``data.trajectory_metrics``). It has the success of the
generator, the jerk of its actions, and how much actions differ at similar states. It also has the fraction of start
states that filtering left. In a run folder, ``generated`` holds the demonstrations and ``generator`` the policy.

The paper has no public code. As described: a sparse reward, few denoising steps, and a discount, so that early success
is worth more. A critic learns first (``critic_warmup``). There is no exploration noise while recording, and only
successes count. Left out: a regulariser towards the demonstrations' chains, the vision encoder, the
vision-language-action model as student.

Expect, on fork2d with 20 iterations of 64 x 12 decisions (one seed, 300 held-out starts):

| policy | success | jerk |
|---|---|---|
| student | 0.97 | 0.53 |
| clone of as many clumsy demonstrations | 0.51 | 1.04 |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.acting import (
    eval_actor,
    require_rebuildable_network,
    require_single_network,
    set_execution_horizon,
)
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import Demonstrations
from denoiserl.data.trajectory_metrics import Valid, coverage, keep_short_successes, motion, starts
from denoiserl.envs import Collector
from denoiserl.envs.record import collect
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep
from denoiserl.recipes import check_inputs
from denoiserl.recipes.imitation import diffusion_policy
from denoiserl.recipes.policy_gradient import dppo, ppo
from denoiserl.train import Metrics, Run


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 26
    """iterations of the run; collect and update, of the generator"""
    num_envs: Count = 40
    """parallel environments"""
    rollout_steps: Count = 22
    """decisions per environment and iteration"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    generator_lr: NonNegative = 0.0
    """learning rate of the generator; 0: the default of its method"""
    critic_warmup: CountOrZero = 2
    """iterations in which only the critic learns; of the generator"""
    num_student_episodes: Count = 100
    """episodes that the student learns from"""
    max_recorded_episodes: Count = 1000
    """largest number of episodes that are recorded"""
    length_quantile: PositiveFraction = 0.8
    """successes longer than this quantile of their lengths are dropped"""
    student_updates: Count = 9000
    """gradient steps of the student"""
    student_batch_size: Count = 256
    """windows per gradient step of the student"""
    student_lr: Positive = 1e-3
    """learning rate of the student, with warm-up and cosine decay"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_order("num_student_episodes", "max_recorded_episodes")
        self.require_below("critic_warmup", "iterations")


def improve(
    policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None, valid: Valid | None = None
) -> Iterator[Metrics]:
    """Improve the policy, then replace it by a student of its episodes.

    ``valid``: see ``data.trajectory_metrics.keep_short_successes``.
    """
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    require_single_network(policy, "The student is a new network for all steps")
    require_rebuildable_network(policy, "The student is a new network")
    set_execution_horizon(policy)

    # Improve the generator.
    method = ppo if isinstance(policy.process, OneStep) else dppo
    names = ("iterations", "num_envs", "rollout_steps", "gamma", "critic_warmup")
    shared: dict[str, Any] = {name: getattr(args, name) for name in names}
    shared |= {"lr": args.generator_lr} if args.generator_lr else {}
    settings: Any = method.Args(**shared)
    yield from method.improve(policy, env, settings, rng, run.stage("generate"))

    for _ in run.stage("student").loop(1, policy=policy, rng=rng, env=env):
        # Generate demonstrations and filter them.
        if run.folder is not None:
            policy.save(run.folder / "generator")
        played, kept = generate_demonstrations(policy, env, args, rng, valid)
        if run.folder is not None:
            kept.save(run.folder / "generated")

        # Clone them with new weights.
        policy.denoiser.load_state_dict(rng.init(from_config, to_config(policy.denoiser)).state_dict())
        cloning = {"num_updates": args.student_updates, "batch_size": args.student_batch_size, "lr": args.student_lr}
        row: Metrics = {}
        for row in diffusion_policy.improve(  # noqa: B007
            policy, kept, diffusion_policy.Args(**cloning), rng, Run(device=run.device)
        ):
            pass
        flat = isinstance(kept.observations, torch.Tensor)  # states with images are not compared
        statistics = motion(kept) if flat else kept.statistics()
        statistics = {f"demos/{k}": v for k, v in statistics.items() if k not in ("success", "return")}
        statistics |= {"demos/start_coverage": coverage(starts(played), starts(kept))} if flat else {}
        assert played.success is not None
        yield {"generator/success": float(played.success.float().mean()), **statistics, **row}


def generate_demonstrations(
    policy: Policy, env: Collector, args: Args, rng: Rng | int, valid: Valid | None = None
) -> tuple[Demonstrations, Demonstrations]:
    """Return all recorded episodes, and ``num_student_episodes`` clean ones of them, or fewer if there are fewer.

    Raise InvalidInputError if the environment does not report success.
    """
    rng = as_rng(rng, policy.device)
    act, parts, successes, seed = eval_actor(policy), [], 0, int(rng.integers(0, 2**31, 1))
    needed = args.num_student_episodes / args.length_quantile
    while successes < needed and sum(len(part) for part in parts) < args.max_recorded_episodes:
        part = collect(env, act, env.num_envs, seed + len(parts))
        if part.success is None:
            raise InvalidInputError(f"{env.name} does not report success, and only successes become demonstrations")
        parts.append(part)
        successes += int(part.success.sum())
    played = Demonstrations.concat(parts)
    kept = keep_short_successes(played, args.length_quantile, valid)
    return played, kept.take(torch.arange(min(args.num_student_episodes, len(kept))))


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
