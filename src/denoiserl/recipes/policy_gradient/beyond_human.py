"""Beyond Human: demonstrations that nobody gave, from a policy that reinforcement learning has made good.

paper: arXiv 2509.19752
signal: env
family: data generation
side: B
base: diffusion
task: exploration, policy learning
stage: fine-tuning, distillation
output: actions
process: diffusion, flow, one-step
likelihood: replay, none

The data flywheel. A small policy that has imitated a few demonstrations is improved online (the generator), plays as it
is served, and its clean episodes are the demonstrations of a new policy (the student):

    generate -> keep successes -> drop the longest (beyond the ``quantile`` of their lengths) -> clone

The generator is DPPO's diffusion policy, or PPO's where the given policy decides in one Gaussian step. The student is
the same network with new weights; it keeps the codec, so what generator and student call smooth is the same. In place:
the policy is the generator first and ends as the student, whom it is worth comparing with a clone of as many of the
demonstrations that the generator began with. The last row says what the data are like (``data.trajectory_metrics``):
the success of the generator, the jerk of its actions, how much actions differ at like states, and the share of start
states that are still covered after filtering. In a folder, ``generated`` holds the demonstrations and ``generator`` the
policy.

The paper has no public code. As told: a sparse reward, few denoising steps, a discount, so that early success is worth
more, a critic that learns first (``warmup``), exploration noise off while recording, successes only. Left out: a
regulariser towards the demonstrations' chains, the vision encoder, the vision-language-action model as student.

Expect, on fork2d with 20 iterations of 64 x 12 decisions, a student with a success of 0.97 and a jerk of 0.53, where
the clone of as many clumsy demonstrations has 0.51 and 1.04 (one seed, 300 held-out starts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.acting import carry, eval_actor, renewable, whole
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.data import Demonstrations
from denoiserl.data.trajectory_metrics import Valid, coverage, keep_short_successes, motion, starts
from denoiserl.envs import Collector
from denoiserl.envs.record import collect
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep
from denoiserl.recipes.imitation import diffusion_policy
from denoiserl.recipes.policy_gradient import dppo, ppo
from denoiserl.train import Keep


@dataclass(frozen=True)
class Args:
    iters: int = 26
    """collect-and-update rounds of the generator"""
    copies: int = 40
    """environments side by side"""
    steps: int = 22
    """decisions each environment takes an iteration"""
    gamma: float = 0.99
    """discount a tick"""
    lr: float = 0.0
    """the generator's learning rate; 0 is its method's own"""
    warmup: int = 2
    """iterations in which only the critic learns"""
    episodes: int = 100
    """clean episodes that the student learns from"""
    most: int = 1000
    """most episodes that are played for them"""
    quantile: float = 0.8
    """longer successes than this share of them are dropped"""
    updates: int = 9000
    """gradient steps of the student"""
    student_batch: int = 256
    """windows a gradient step of the student"""
    student_lr: float = 1e-3
    """the student's learning rate, with warm-up and cosine decay"""


def improve(
    policy: Policy, env: Collector, a: Any, rng: Rng, keep: Keep | None = None, valid: Valid | None = None
) -> Iterator[dict]:
    """Improve the policy, then replace it by a student of what it does.

    ``valid``: see ``data.trajectory_metrics.keep_short_successes``.
    """
    keep = keep or Keep()
    whole(policy, "The student is a new network for all steps")
    renewable(policy, "The student is a new network")
    carry(policy)
    method = ppo if isinstance(policy.process, OneStep) else dppo
    names = ("iters", "copies", "steps", "gamma", "warmup")
    settings = method.Args(**{name: getattr(a, name) for name in names}, **({"lr": a.lr} if a.lr else {}))
    yield from method.improve(policy, env, settings, rng, keep.stage("generate"))
    for _ in keep.stage("student").loop(1, policy=policy, rng=rng, env=env):
        if keep.folder is not None:
            policy.save(keep.folder / "generator")
        played, kept = generated(policy, env, a, rng, valid)
        if keep.folder is not None:
            kept.save(keep.folder / "generated")
        policy.denoiser.load_state_dict(rng.init(from_config, to_config(policy.denoiser)).state_dict())
        learning = diffusion_policy.Args(updates=a.updates, batch=a.student_batch, lr=a.student_lr)
        told: dict[str, float] = {}
        for told in diffusion_policy.improve(policy, kept, learning, rng, Keep(device=keep.device)):  # noqa: B007
            pass
        flat = isinstance(kept.observations, torch.Tensor)  # states with pictures are not compared
        like = motion(kept) if flat else kept.statistics()
        like = {f"data {k}": v for k, v in like.items() if k not in ("success", "return")}
        like |= {"covered": coverage(starts(played), starts(kept))} if flat else {}
        assert played.success is not None
        yield {"generator success": float(played.success.float().mean()), **like, **told}


def generated(
    policy: Policy, env: Collector, a: Any, rng: Rng, valid: Valid | None = None
) -> tuple[Demonstrations, Demonstrations]:
    """Everything that was played, and ``a.episodes`` clean episodes of it (fewer where ``a.most`` were not enough)."""
    act, parts, won, seed = eval_actor(policy), [], 0, int(rng.integers(0, 2**31, 1))
    wanted = a.episodes / a.quantile
    while won < wanted and sum(len(part) for part in parts) < a.most:
        part = collect(env, act, env.copies, seed + len(parts))
        if part.success is None:
            raise InvalidInputError(f"{env.name} does not report success, and only successes become demonstrations")
        parts.append(part)
        won += int(part.success.sum())
    played = Demonstrations.joined(parts)
    kept = keep_short_successes(played, a.quantile, valid)
    return played, kept.take(torch.arange(min(a.episodes, len(kept))))


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
