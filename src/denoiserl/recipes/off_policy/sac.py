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

A decision is a = tanh u with u ~ N(μ(s), σ(s)²), in units of the actions' box. With twin critics, target networks, and
transitions from a replay buffer,

    y = r + γ^n (min Q̄(s', a') − α log π(a' | s')),   a' ~ π
    L_Q = ½ (Q(s, a) − y)²,   L_π = α log π(a | s) − min Q(s, a),   L_α = −α (log π + H̄)

A decision is an action or a chunk of them; ``n_step`` decisions make one return. A time limit bootstraps, a true end
does not.

As published: two critics and their minimum, and one update per decision (``utd``). Batches are of 256, the learning
rate is 3e-4, τ is 0.005. The target entropy is minus the number of dimensions (of the box [−1, 1]), and actions are
uniform at the start.

Differences:

- The bound of log σ is smooth.
- Updates come after every ``rollout_steps`` decisions instead of after each.
- Critics may be more than two and have layer norm, for many updates per decision.

Expect, with the defaults, on Pendulum-v1, where optimal policies are at about -150 over many starts (20 held-out
starts; one seed):

| environment steps | 0 | 6 000 | 9 000 | 12 000 | 15 000 |
|---|---|---|---|---|---|
| return | -1300 | -191 | -179 | -180 | -184 |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.control.acting import rollout_metrics, set_execution_horizon
from denoiserl.control.squashed_actions import (
    action_distribution,
    due_minibatches,
    exploration_actor,
    require_squashed_policy,
    to_unit_box,
)
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import ReplayBuffer
from denoiserl.envs import Collector
from denoiserl.nn import Temperature, frozen
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
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
    utd: Positive = 1.0
    """updates per decision"""
    batch_size: Count = 256
    """items per gradient step; decisions"""
    buffer_size: Count = 1_000_000
    """size of the replay buffer, in decisions"""
    n_step: Count = 1
    """decisions per return"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    tau: PositiveFraction = 0.005
    """Polyak rate of the target networks"""
    lr: Positive = 1e-3
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

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_order("batch_size", "buffer_size")
        self.require_decisions(max(self.learning_starts + 1, self.batch_size))


def improve(
    policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None, replay: Any = None
) -> Iterator[Metrics]:
    """Improve a policy with bounded actions in an environment. ``replay``: a buffer to use in place of a new one."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, codec = run or Run(), require_squashed_policy(policy, "SAC")
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    env.discount(args.gamma)
    more: Any = {"num_critics": args.num_critics, "width": args.critic_width, "layer_norm": args.layer_norm}
    critics = TwinCritics(env.obs_dim, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    temperature = Temperature(args.temperature_init, args.min_temperature).to(policy.device)
    optimizer, temperature_optimizer = (adamw(m.parameters(), args.lr) for m in (policy.weights.module, temperature))
    check_optimizer_covers([optimizer, temperature_optimizer], policy.weights.module, temperature)
    if replay is None:
        replay = ReplayBuffer(args.buffer_size, policy.device, run.folder and run.folder / "replay")
    target_entropy = -math.prod(policy.event_shape) if args.target_entropy is None else args.target_entropy

    def sample_action(cond: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        noise = rng.normal(len(cond), *policy.event_shape)
        return action_distribution(policy, cond).sample_with_log_prob(noise)

    def explore(cond: Tensor, rng: Rng) -> Tensor:
        return sample_action(cond, rng)[0]

    act = exploration_actor(policy, codec, replay, explore, args.learning_starts, args.warmup_policy)
    when_due = args.utd, args.batch_size, args.learning_starts
    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "temperature": temperature, "rng": rng}
    state["temperature_optimizer"] = temperature_optimizer
    for _ in run.loop(args.iterations, **state, replay=replay, env=env):
        # Collect decisions.
        before, metrics = replay.count, MetricMeans()
        rollout = env.collect(act, args.rollout_steps, rng)
        replay.add(rollout, action=to_unit_box(codec, rollout.action))

        for batch in due_minibatches(replay, before, *when_due, args.gamma, args.n_step, rng):
            # Estimate the TD target, and update the critics.
            obs, next_obs = codec.condition(batch["obs"]), codec.condition(batch["next_obs"])
            alpha = temperature.alpha
            with torch.no_grad():  # y = r + γ^n (min Q̄(s', a') − α log π(a' | s'))
                next_action, log_prob = sample_action(next_obs, rng)
                next_value = critics.target(next_obs, next_action).amin(0) - alpha * log_prob
                td_target = batch["reward"] + batch["discount"] * next_value
            row = critics.td_update(obs, batch["action"], td_target)

            # Update the policy, its temperature and the target networks.
            with frozen(critics.net):
                action, log_prob = sample_action(obs, rng)
                q = critics(obs, action).amin(0)
                optimizer_step(optimizer, (alpha * log_prob - q).mean())  # α log π − min Q
            optimizer_step(temperature_optimizer, temperature.loss(log_prob.detach(), target_entropy).mean())
            critics.update_target()
            row |= {"q/policy": q.detach().mean(), "policy/entropy": -log_prob.detach().mean()}
            metrics.add(row | {"policy/temperature": alpha})
        yield rollout_metrics(rollout) | metrics.mean()


SIGNAL = "env"
START = "squashed"
DEFAULT_TASK = "env"
DEFAULT_TASK_ARGS = {"env": "Pendulum-v1", "action_horizon": 1, "policy_width": 64}
EXTENDABLE: dict[str, Any] = {}
