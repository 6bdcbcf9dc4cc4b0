"""IQL: implicit Q-learning, which evaluates the critic only at decisions of the data

paper: arXiv 2110.06169
signal: data
family: offline actor-critic
side: B
base: gaussian, diffusion
task: policy learning
stage: from scratch
output: actions
process: one-step, diffusion, flow
likelihood: none

V is the τ-expectile of the critic over the decisions of the data: in every state near the best of them.

    L_V = |τ − 1{Q̄ < V}| (Q̄(s, a) − V(s))²,   Q̄ = min of the target twins
    L_Q = ½ (Q(s, a) − r − γ^n V(s'))²
    L_π = min(exp(β A), 100) ℓ(a | s),   A = Q̄(s, a) − V(s)

with ℓ = −log π of a Gaussian, and the denoising loss of a diffusion or flow policy. The policy does not enter the
critics, so a policy of any kind can be fitted with the same weights. (IDQL, 2304.10573, as released, imitates without
weights and chooses among decisions when it serves.)

As published: the clip of the weights, twin critics, and targets that follow with 0.005. τ is 0.9 and β is 10 for mazes
(0.7 and 3 elsewhere). Learning rates are 3e-4, with a cosine for the actor.

Differences:

- Rewards are as they come (minus one in the released mazes, divided by the range of returns in the released
  locomotion).
- The Gaussian's mean is not pressed by tanh, as it is in the released code. Its actions are clipped to the box when
  decoded.
- Q and π see V as it was before the update, and the released ones after it.
- Networks are smaller and updates fewer (1M of width 256 as published).

Expect, with the defaults, on a small maze whose players (70,000 environment steps) had other goals, a success of 0.94
after 1500 updates. A clone of them (``dql`` with ``q_weight=0``) has 0.00 (50 held-out starts; one seed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from denoiserl.control.acting import set_execution_horizon
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, OpenFraction, Positive, PositiveFraction, Settings
from denoiserl.data import ReplayBuffer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import ess_fraction, exp_weights, expectile, weighted_loss
from denoiserl.nn import Value
from denoiserl.policy.policy import Policy
from denoiserl.recipes import check_inputs
from denoiserl.recipes.offline_rl.common import offline_minibatches, to_replay_buffer
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, training_losses, warmup_cosine
from denoiserl.train.metric_means import MetricMeans


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 40
    """iterations of the run"""
    updates_per_iteration: Count = 100
    """updates per iteration"""
    batch_size: Count = 128
    """items per gradient step; decisions (256 as published)"""
    expectile: OpenFraction = 0.9
    """expectile τ of Q that V is fitted to; ½ is the mean, 1 the maximum"""
    inverse_temperature: NonNegative = 10.0
    """inverse temperature β of the exponential weights; per unit of return; 0 imitates"""
    max_weight: Positive = 100.0
    """largest exponential weight"""
    n_step: Count = 10
    """decisions per return; 10 suits sparse rewards (1 as published)"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    tau: PositiveFraction = 0.005
    """Polyak rate of the target networks"""
    lr: Positive = 1e-3
    """learning rate; of policy and critics (3e-4 as published)"""
    critic_width: Count = 128
    """width of the critics"""
    layer_norm: bool = True
    """use layer norm in the critics"""


def improve(
    policy: Policy, data: EpisodeDataset | ReplayBuffer, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a policy of any kind that has a denoising loss or a likelihood, from logged data."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    if isinstance(policy.codec, TanhCodec):
        raise InvalidInputError(
            "IQL fits the likelihood of actions, which a squashed policy lacks on the edge: start 'gaussian'"
        )
    replay = to_replay_buffer(policy, data, args.batch_size, args.n_step, args.gamma)
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    size, more = replay.columns["obs"].shape[1:], {"width": args.critic_width, "layer_norm": args.layer_norm}
    critics = TwinCritics(size, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    value = rng.init(Value, size, depth=2, **more).to(policy.device)
    optimizer, value_optimizer = (adamw(m.parameters(), args.lr) for m in (policy.weights.module, value))
    check_optimizer_covers([optimizer, value_optimizer], policy.weights.module, value)
    lr_schedule = warmup_cosine(optimizer, 0, args.iterations * args.updates_per_iteration)
    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "value": value, "rng": rng}
    state |= {"value_optimizer": value_optimizer, "lr_schedule": lr_schedule}
    state["data"] = replay if replay is data else None  # a buffer may be refilled on the way
    for _ in run.loop(args.iterations, given=data, **state):
        metrics = MetricMeans()
        for batch in offline_minibatches(replay, args.updates_per_iteration, args.batch_size, args.gamma, rng):
            # Estimate values: the expectile target of V, the TD target of Q, the advantage.
            obs, action = batch["obs"], batch["action"]
            with torch.no_grad():
                q = critics.target(obs, action).amin(0)  # Q̄(s, a)
                td_target = batch["reward"] + batch["discount"] * value(batch["next_obs"])  # r + γ^n V(s')
            v = value(obs)
            advantage = q - v.detach()  # A = Q̄(s, a) − V(s)

            # Update V and Q.
            value_loss = optimizer_step(value_optimizer, expectile(v, q, args.expectile).mean())["loss"]
            critic_loss = critics.td_update(obs, action, td_target)["loss/critic"]

            # Update the policy by weighted imitation: min(exp(β A), 100) ℓ(a | s).
            weight = exp_weights(args.inverse_temperature * advantage, 1.0, args.max_weight)
            bc_loss = training_losses(policy.process, policy.denoiser, action, obs, rng, counts=batch["counts"])
            policy_loss = optimizer_step(optimizer, weighted_loss(bc_loss, weight).mean())["loss"]
            lr_schedule.step()
            critics.update_target()
            row = {"loss/policy": policy_loss, "loss/critic": critic_loss, "loss/value": value_loss}
            metrics.add(row | {"v/data": v.detach().mean(), "awr/ess_fraction": ess_fraction(weight)})
        yield metrics.mean()


SIGNAL = "data"
START = "gaussian"
DEFAULT_TASK = "offline"
