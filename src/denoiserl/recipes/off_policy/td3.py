"""TD3: twin critics for a deterministic policy, the off-policy baseline without entropy

paper: arXiv 1802.09477
signal: env
family: off-policy actor-critic
side: B
base: gaussian
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: one-step
likelihood: none

A decision is a = tanh μ(s), in units of the actions' box; exploration adds noise in the box. With target networks of
critics and actor, and transitions from a replay buffer,

    y = r + γ^n min Q̄(s', clip(μ̄(s') + clip(ε, ±c), ±1)),   ε ~ N(0, σ²)
    L_Q = ½ (Q(s, a) − y)²,   every ``policy_delay`` updates L_π = −Q₁(s, μ(s))

As published: exploration noise 0.1, smoothing 0.2 clipped at 0.5, a delay of 2, uniform actions at the start, one
update per decision. A time limit bootstraps.

Differences:

- Updates come after every ``rollout_steps`` decisions instead of after each.
- The policy's network also returns a std, which is neither trained nor used to draw.

Expect, with the defaults, on Pendulum-v1 (20 held-out starts; one seed):

| environment steps | 0 | 6 000 | 9 000 | 12 000 | 15 000 |
|---|---|---|---|---|---|
| return | -1300 | -350 | -184 | -186 | -182 |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from denoiserl.control.acting import rollout_metrics, set_execution_horizon
from denoiserl.control.squashed_actions import (
    add_clipped_noise,
    due_minibatches,
    exploration_actor,
    mean_action,
    num_updates_due,
    require_squashed_policy,
    to_unit_box,
)
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import ReplayBuffer
from denoiserl.envs import Collector
from denoiserl.nn import frozen
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
    exploration_noise: NonNegative = 0.1
    """std of the noise on actions, in half widths of the action box"""
    target_noise: NonNegative = 0.2
    """std of the noise on the target action, in half widths of the action box"""
    target_noise_clip: NonNegative = 0.5
    """largest noise on the target action"""
    policy_delay: Count = 2
    """updates of the critics per update of the policy and the targets"""
    utd: Positive = 1.0
    """updates per decision; of the critics"""
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
    """learning rate; of policy and critics"""
    critic_width: Count = 64
    """width of the critics; 256 as published"""
    layer_norm: bool = False
    """use layer norm in the critics"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_order("batch_size", "buffer_size")
        self.require_decisions(max(self.learning_starts + 1, self.batch_size))


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a policy with bounded actions in an environment; it acts by its mean."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, codec = run or Run(), require_squashed_policy(policy, "TD3")
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    env.discount(args.gamma)
    more: Any = {"width": args.critic_width, "layer_norm": args.layer_norm}
    critics = TwinCritics(env.obs_dim, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    policy.weights.snapshot("target")
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)
    replay = ReplayBuffer(args.buffer_size, policy.device, run.folder and run.folder / "replay")

    def explore(cond: Tensor, rng: Rng) -> Tensor:
        return add_clipped_noise(mean_action(policy, cond), args.exploration_noise, 2.0, rng)

    act = exploration_actor(policy, codec, replay, explore, args.learning_starts, args.warmup_policy)
    when_due = args.utd, args.batch_size, args.learning_starts
    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "rng": rng}
    for _ in run.loop(args.iterations, **state, replay=replay, env=env):
        # Collect decisions.
        before, metrics = replay.count, MetricMeans()
        rollout = env.collect(act, args.rollout_steps, rng)
        replay.add(rollout, action=to_unit_box(codec, rollout.action))

        batches = due_minibatches(replay, before, *when_due, args.gamma, args.n_step, rng)
        for update, batch in enumerate(batches, num_updates_due(before, *when_due) + 1):
            # Estimate the TD target, and update the critics.
            obs, next_obs = codec.condition(batch["obs"]), codec.condition(batch["next_obs"])
            with torch.no_grad():  # y = r + γ^n min Q̄(s', clip(μ̄(s') + clip(ε, ±c), ±1))
                next_action = mean_action(policy, next_obs, "target")
                next_action = add_clipped_noise(next_action, args.target_noise, args.target_noise_clip, rng)
                td_target = batch["reward"] + batch["discount"] * critics.target(next_obs, next_action).amin(0)
            metrics.add(critics.td_update(obs, batch["action"], td_target))

            # Update the policy, −Q₁(s, μ(s)), and the target networks.
            if update % args.policy_delay == 0:
                with frozen(critics.net):
                    optimizer_step(optimizer, -critics(obs, mean_action(policy, obs))[0].mean())
                critics.update_target()
                policy.weights.ema_update("target", 1 - args.tau)
        yield rollout_metrics(rollout) | metrics.mean()


SIGNAL = "env"
START = "squashed"
DEFAULT_TASK = "env"
DEFAULT_TASK_ARGS = {"env": "Pendulum-v1", "action_horizon": 1, "policy_width": 64}
EXTENDABLE: dict[str, Any] = {}
