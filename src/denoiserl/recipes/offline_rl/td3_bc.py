"""TD3+BC: TD3 on logged data, with a behaviour-cloning term

paper: arXiv 2106.06860
signal: data
family: offline actor-critic
side: B
base: gaussian
task: policy learning
stage: from scratch
output: actions
process: one-step
likelihood: none

A decision is a = tanh μ(s), in units of the actions' box. Critics learn as TD3's do, from rows of logged data. The
policy maximises Q normalised by its scale, so that the unit of reward does not matter, and stays near the data:

    y = r + γ^n min Q̄(s', clip(μ̄(s') + clip(ε, ±c), ±1)),   ε ~ N(0, σ²)
    L_Q = ½ (Q(s, a) − y)²,   every ``policy_delay`` updates L_π = −α Q₁(s, μ(s)) / E|Q₁| + |μ(s) − a|²

As published: α = 2.5, smoothing 0.2 clipped at 0.5, a delay of 2, standardised observations, learning rates of 3e-4.

Differences:

- E|Q| has a floor of 1e-3.
- Rows may be chunks and n-step returns.
- For a laptop, networks are smaller, updates fewer (1M of width 256 as published) and targets faster (τ is 0.005 as
  published).

α = 0 is behaviour cloning. TD3 and SAC can improve the policy further online.

Expect, with the defaults, on locosmall's pendulum-medium, whose own returns are -713, a score of 46 between random (0)
and expert (100) (50 starts; one seed):

| updates | 1500 | 3000 | 4500 |
|---|---|---|---|
| held-out return | -569 | -328 | -272 |
| score | 60 | 82 | 88 |

On its medium-replay, SAC's first 3200 environment steps, it learns nothing in that time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.acting import set_execution_horizon
from denoiserl.control.squashed_actions import add_clipped_noise, mean_action, require_squashed_policy
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import ReplayBuffer
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import masked_mean, normalized_q_loss
from denoiserl.nn import frozen
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.recipes.offline_rl.common import offline_minibatches, to_replay_buffer
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step
from denoiserl.train.metric_means import MetricMeans


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 45
    """iterations of the run"""
    updates_per_iteration: Count = 100
    """updates per iteration; of the critics"""
    batch_size: Count = 128
    """items per gradient step; decisions (256 as published)"""
    q_weight: NonNegative = 2.5
    """weight of the critic's value in the policy loss; α, against staying near the data"""
    target_noise: NonNegative = 0.2
    """std of the noise on the target action, in half widths of the action box"""
    target_noise_clip: NonNegative = 0.5
    """largest noise on the target action"""
    policy_delay: Count = 2
    """updates of the critics per update of the policy and the targets"""
    n_step: Count = 1
    """decisions per return"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    tau: PositiveFraction = 0.02
    """Polyak rate of the target networks; 0.005 as published"""
    lr: Positive = 1e-3
    """learning rate; of policy and critics (3e-4 as published)"""
    critic_width: Count = 128
    """width of the critics"""
    layer_norm: bool = True
    """use layer norm in the critics"""


def improve(
    policy: Policy, data: EpisodeDataset | ReplayBuffer, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a policy with bounded actions from logged data; it acts by its mean."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, _ = run or Run(), require_squashed_policy(policy, "TD3+BC")
    replay = to_replay_buffer(policy, data, args.batch_size, args.n_step, args.gamma)
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    size = replay.columns["obs"].shape[1:]
    more: Any = {"width": args.critic_width, "layer_norm": args.layer_norm}
    critics = TwinCritics(size, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    policy.weights.snapshot("target")
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)

    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "rng": rng}
    state["data"] = replay if replay is data else None  # a buffer may be refilled between iterations
    for iteration in run.loop(args.iterations, given=data, **state):
        metrics, first = MetricMeans(), iteration * args.updates_per_iteration + 1
        batches = offline_minibatches(replay, args.updates_per_iteration, args.batch_size, args.gamma, rng)
        for update, batch in enumerate(batches, first):
            # Estimate the TD target, and update the critics.
            obs, next_obs, action = batch["obs"], batch["next_obs"], batch["action"]
            with torch.no_grad():  # y = r + γ^n min Q̄(s', clip(μ̄(s') + clip(ε, ±c), ±1))
                next_action = mean_action(policy, next_obs, "target")
                next_action = add_clipped_noise(next_action, args.target_noise, args.target_noise_clip, rng)
                td_target = batch["reward"] + batch["discount"] * critics.target(next_obs, next_action).amin(0)
            row = critics.td_update(obs, action, td_target)

            # Update the policy: −α Q₁(s, μ(s)) / E|Q₁| + |μ(s) − a|².
            if update % args.policy_delay == 0:
                with frozen(critics.net):
                    policy_action = mean_action(policy, obs)
                    bc_loss = (policy_action - action).square()
                    bc_loss = bc_loss.mean() if batch["counts"] is None else masked_mean(bc_loss, batch["counts"])
                    q_loss = normalized_q_loss(critics(obs, policy_action)[0]).mean()
                    optimizer_step(optimizer, args.q_weight * q_loss + bc_loss)
                critics.update_target()
                policy.weights.ema_update("target", 1 - args.tau)
                metrics.add(row | {"loss/bc_mse": bc_loss.detach()})
        yield metrics.mean()


SIGNAL = "data"
START = "squashed"
DEFAULT_TASK = "offline"
DEFAULT_TASK_ARGS = {"data": "locosmall:pendulum-medium"}
EXTENDABLE: dict[str, Any] = {}
