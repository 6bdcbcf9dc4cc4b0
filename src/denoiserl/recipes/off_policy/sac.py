"""SAC: soft actor-critic, the strong off-policy baseline

paper: arXiv 1812.05905
signal: env
family: off-policy actor-critic
side: B
base: gaussian
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: one-step
likelihood: none

A decision is a = tanh u with u ~ N(μ(s), σ(s)²), in units of the actions' box. With twin critics, targets that follow
slowly, and rows from a replay buffer,

    y = r + γ^n (min Q̄(s', a') − α log π(a' | s')),   a' ~ π
    L_Q = ½ (Q(s, a) − y)²,   L_π = α log π(a | s) − min Q(s, a),   L_α = −α (log π + H̄)

A decision is an action or a chunk of them; ``n`` rows make one return. A time limit bootstraps, a true end does not.
As published: two critics and their minimum, one update a decision (``utd``), batches of 256, learning rate 3e-4, τ =
0.005, a target entropy of minus the number of dimensions (of the box [−1, 1]), an even start without learning.
Differences: the bound of log σ is smooth; updates come after every ``steps`` decisions instead of after each; critics
may be more than two and have layer norm, for many updates a decision.

Expect, with the defaults, Pendulum-v1 from a return of -1300 to about -180 of 20 held-out starts (-191, -179, -180 and
-184 after 6 000, 9 000, 12 000 and 15 000 ticks; one seed), where optimal policies are at about -150 over many starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from denoiserl.control.acting import carry, rollout_metrics
from denoiserl.control.squashed_actions import (
    action_distribution,
    due_minibatches,
    exploration_actor,
    require_squashed_policy,
    to_unit_box,
)
from denoiserl.core.rng import Rng
from denoiserl.data import ReplayBuffer
from denoiserl.envs import Collector
from denoiserl.losses import half_squared_error
from denoiserl.nn import Critics, Temperature, frozen, polyak_update, target_copy
from denoiserl.policy.policy import Policy
from denoiserl.train import Keep, adamw, check_optimizer_covers, optimizer_step


@dataclass(frozen=True)
class Args:
    iters: int = 300
    """collect-and-update rounds"""
    copies: int = 1
    """environments side by side"""
    steps: int = 50
    """decisions each environment takes an iteration"""
    begin: int = 500
    """first decisions, without learning; it waits for a batch of them too"""
    first: Literal["even", "policy"] = "even"
    """who takes them: chance, evenly in the box, or the policy, for one that knows something already"""
    utd: float = 1.0
    """updates a decision"""
    batch: int = 256
    """decisions an update"""
    capacity: int = 1_000_000
    """decisions that are remembered"""
    n: int = 1
    """decisions of a return"""
    gamma: float = 0.99
    """discount a tick"""
    tau: float = 0.005
    """how fast the targets follow, an update"""
    lr: float = 1e-3
    """the learning rate of actor, critics and temperature: 3e-4 as published, 1e-3 for a small task"""
    alpha: float = 1.0
    """the temperature at the start"""
    alpha_least: float = 0.0
    """its floor"""
    entropy: float | None = None
    """the policy's entropy that the temperature aims at (None: minus the dimensions of a decision)"""
    critics: int = 2
    """critics, whose minimum counts"""
    width: int = 64
    """the critics' width: 256 as published"""
    layer_norm: bool = False
    """layer norm in the critics"""


def improve(
    policy: Policy, env: Collector, a: Any, rng: Rng, keep: Keep | None = None, replay: Any = None
) -> Iterator[dict]:
    """Improve a policy that decides inside a box, in an environment. ``replay``: a buffer of another kind."""
    keep, codec = keep or Keep(), require_squashed_policy(policy, "SAC")
    carry(policy, policy.event_shape[0])  # a decision is a whole chunk
    env.discount(a.gamma)
    critic = rng.init(Critics, env.obs_dim, policy.event_shape, a.critics, a.width, layer_norm=a.layer_norm).to(
        policy.device
    )
    slow, heat = target_copy(critic), Temperature(a.alpha, a.alpha_least).to(policy.device)
    opt, critic_opt, heat_opt = (adamw(m.parameters(), a.lr) for m in (policy.weights.module, critic, heat))
    check_optimizer_covers([opt, critic_opt, heat_opt], policy.weights.module, critic, heat)
    if replay is None:
        replay = ReplayBuffer(a.capacity, policy.device, keep.folder and keep.folder / "replay")
    goal = -math.prod(policy.event_shape) if a.entropy is None else a.entropy
    act = exploration_actor(
        policy, codec, replay, a, lambda c, rng: action_distribution(policy, c).sample(normal(policy, c, rng))
    )
    learners = {"opt": opt, "critic": critic, "critic_opt": critic_opt, "slow": slow, "heat": heat, "warm": heat_opt}
    for _ in keep.loop(a.iters, policy=policy, replay=replay, rng=rng, env=env, **learners):
        before, ep, seen = replay.count, env.collect(act, a.steps, rng), []
        replay.add(ep, action=to_unit_box(codec, ep.action))
        for rows in due_minibatches(replay, before, a, rng):
            cond, after = codec.condition(rows["obs"]), codec.condition(rows["next_obs"])
            alpha = heat.alpha
            with torch.no_grad():
                action, logp = action_distribution(policy, after).sample_with_log_prob(normal(policy, after, rng))
                y = rows["reward"] + rows["discount"] * (slow(after, action).amin(0) - alpha * logp)
            error = half_squared_error(critic(cond, rows["action"]), y.expand(a.critics, -1)).sum(0).mean()
            error = optimizer_step(critic_opt, error)["loss"]
            with frozen(critic):
                action, logp = action_distribution(policy, cond).sample_with_log_prob(normal(policy, cond, rng))
                value = critic(cond, action).amin(0)
                optimizer_step(opt, (alpha * logp - value).mean())
            optimizer_step(heat_opt, heat.loss(logp.detach(), goal).mean())
            polyak_update(slow, critic, a.tau)
            seen.append((error, float(value.detach().mean()), -float(logp.detach().mean()), float(alpha)))
        means = torch.tensor(seen).mean(0).tolist() if seen else ()
        yield rollout_metrics(ep) | dict(zip(("critic loss", "value", "entropy", "alpha"), means, strict=bool(seen)))


def normal(policy: Policy, cond: torch.Tensor, rng: Rng) -> torch.Tensor:
    """The noise of a decision for every row."""
    return rng.normal(len(cond), *policy.event_shape)


SIGNAL = "env"
START = "squashed"
DEFAULT_TASK = "env"
DEFAULT_TASK_ARGS = {"env": "Pendulum-v1", "chunk": 1, "width": 64}
GROWS: dict[str, Any] = {}
