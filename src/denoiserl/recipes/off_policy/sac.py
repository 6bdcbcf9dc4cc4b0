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

A decision is an action or a chunk of them; ``n_step`` rows make one return. A time limit bootstraps, a true end does
not. As published: two critics and their minimum, one update a decision (``utd``), batches of 256, learning rate 3e-4, τ
= 0.005, a target entropy of minus the number of dimensions (of the box [−1, 1]), an even start without learning.
Differences: the bound of log σ is smooth; updates come after every ``rollout_steps`` decisions instead of after each;
critics may be more than two and have layer norm, for many updates a decision.

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
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.data import ReplayBuffer
from denoiserl.envs import Collector
from denoiserl.nn import Temperature, frozen
from denoiserl.policy.policy import Policy
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step
from denoiserl.train.metric_means import MetricMeans


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 300
    """iterations of the run; collect and update"""
    num_envs: Count = 1
    """parallel environments"""
    rollout_steps: Count = 50
    """decisions per environment and iteration"""
    learning_starts: CountOrZero = 500
    """decisions before learning starts; a full batch is needed too"""
    warmup_policy: Literal["random", "policy"] = "random"
    """how actions are chosen before learning starts; uniformly at random, or by the policy, for one that is
    pretrained"""
    utd: NonNegative = 1.0
    """updates per decision"""
    batch_size: Count = 256
    """items per gradient step; decisions"""
    buffer_size: Count = 1_000_000
    """size of the replay buffer, in decisions"""
    n_step: Count = 1
    """decisions per return"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    tau: Fraction = 0.005
    """Polyak rate of the target networks"""
    lr: NonNegative = 1e-3
    """learning rate; of policy, critics and temperature (3e-4 as published; 1e-3 for a small task)"""
    temperature_init: Positive = 1.0
    """entropy temperature at the start"""
    min_temperature: NonNegative = 0.0
    """lower bound of the entropy temperature"""
    target_entropy: float | None = None
    """entropy that the temperature is tuned to; None: minus the dimensions of a decision"""
    num_critics: Count = 2
    """number of critics, whose minimum is the target"""
    critic_width: Count = 64
    """width of the critics; 256 as published"""
    layer_norm: bool = False
    """use layer norm in the critics"""


def improve(
    policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None, replay: Any = None
) -> Iterator[Metrics]:
    """Improve a policy that decides inside a box, in an environment. ``replay``: a buffer of another kind."""
    rng = as_rng(rng, policy.device)
    run, codec = run or Run(), require_squashed_policy(policy, "SAC")
    carry(policy, policy.event_shape[0])  # a decision is a whole chunk
    env.discount(args.gamma)
    more: Any = {"num_critics": args.num_critics, "width": args.critic_width, "layer_norm": args.layer_norm}
    critics = TwinCritics(env.obs_dim, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    temperature = Temperature(args.temperature_init, args.min_temperature).to(policy.device)
    optimizer, temperature_optimizer = (adamw(m.parameters(), args.lr) for m in (policy.weights.module, temperature))
    check_optimizer_covers([optimizer, temperature_optimizer], policy.weights.module, temperature)
    if replay is None:
        replay = ReplayBuffer(args.buffer_size, policy.device, run.folder and run.folder / "replay")
    target_entropy = -math.prod(policy.event_shape) if args.target_entropy is None else args.target_entropy
    act = exploration_actor(
        policy,
        codec,
        replay,
        lambda c, rng: action_distribution(policy, c).sample(action_noise(policy, c, rng)),
        args.learning_starts,
        args.warmup_policy,
    )
    ready = args.utd, args.batch_size, args.learning_starts
    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "temperature": temperature, "rng": rng}
    state["temperature_optimizer"] = temperature_optimizer
    for _ in run.loop(args.iterations, **state, replay=replay, env=env):
        before, ep, metrics = replay.count, env.collect(act, args.rollout_steps, rng), MetricMeans()
        replay.add(ep, action=to_unit_box(codec, ep.action))
        for rows in due_minibatches(replay, before, *ready, args.gamma, args.n_step, rng):
            cond, after = codec.condition(rows["obs"]), codec.condition(rows["next_obs"])
            alpha = temperature.alpha
            with torch.no_grad():
                action, logp = action_distribution(policy, after).sample_with_log_prob(action_noise(policy, after, rng))
                y = rows["reward"] + rows["discount"] * (critics.target(after, action).amin(0) - alpha * logp)
            row = critics.td_update(cond, rows["action"], y)
            with frozen(critics.net):
                action, logp = action_distribution(policy, cond).sample_with_log_prob(action_noise(policy, cond, rng))
                value = critics(cond, action).amin(0)
                optimizer_step(optimizer, (alpha * logp - value).mean())
            optimizer_step(temperature_optimizer, temperature.loss(logp.detach(), target_entropy).mean())
            critics.update_target()
            row |= {
                "q/policy": value.detach().mean(),
                "policy/entropy": -logp.detach().mean(),
                "policy/temperature": alpha,
            }
            metrics.add(row)
        yield rollout_metrics(ep) | metrics.mean()


def action_noise(policy: Policy, cond: torch.Tensor, rng: Rng) -> torch.Tensor:
    """The noise of a decision for every row."""
    return rng.normal(len(cond), *policy.event_shape)


SIGNAL = "env"
START = "squashed"
DEFAULT_TASK = "env"
DEFAULT_TASK_ARGS = {"env": "Pendulum-v1", "action_horizon": 1, "policy_width": 64}
GROWS: dict[str, Any] = {}
