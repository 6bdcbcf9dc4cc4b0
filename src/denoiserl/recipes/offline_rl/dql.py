"""DQL: Diffusion Q-learning, a diffusion policy trained by behaviour cloning plus Q maximisation

paper: arXiv 2208.06193
signal: data
family: offline actor-critic
side: B
base: diffusion
task: policy learning
stage: from scratch
output: actions
process: diffusion, flow
likelihood: none

A decision a₀ is the end of K denoising steps, and the gradient of its value flows through all of them:

    y = r + γ^n min Q̄(s', a'),   a' ~ π̄(s')          L_Q = ½ (Q(s, a) − y)²
    L_π = L_denoise(a | s) − η E[Q(s, a₀)] / E|Q(s, a₀)|,   a₀ ~ π(s)

The actor maximises one of the twin critics, chosen at random; the loss is normalised by the mean absolute value of the
other. The policy serves the best of ``num_candidates`` decisions, or one drawn by a softmax of their values; that
control is saved with the policy.

As published: K = 5, targets of critics and policy that follow with 0.005, and clipped gradients. A softmax of
temperature 1 over 50 candidates serves (``choice_temperature``); values are about 100 there, so that it nearly takes
the best. η is 0.05 to 2 by data set. For mazes the largest of several target values counts (``num_backup_samples``).
Imitation is at the K levels of the chain alone. At continuous times those levels are free to follow the critic out of
the data.

Differences:

- The denoiser predicts v on a cosine schedule, where published runs predict eps on a VP schedule.
- E|Q| has a floor of 1e-3.
- Targets follow from the first update.
- Networks are smaller and updates fewer.

DPPO can improve the policy further online, without its control (``policy.with_controller(None)``).

Expect, with the defaults, on a small maze whose players were on their way elsewhere (50 held-out starts; one seed):

| updates | 500 | 1000 | 1500 | imitation alone (``q_weight=0``, one candidate) |
|---|---|---|---|---|
| success | 0.90 | 0.94 | 0.94 | 0.00 |

Where data are noisy η matters. On 200 noisy episodes of Meta-World's drawer-open (17 % succeed) success is 0.81 with η
= 0.2. With η = 1 it is zero: the policy leaves the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from denoiserl.control.acting import set_execution_horizon
from denoiserl.control.twin_critics import TwinCritics
from denoiserl.control.value_weighted import make_q_controller
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, Fraction, NonNegative, Positive, PositiveFraction, Settings
from denoiserl.data import ReplayBuffer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.losses import normalized_q_loss
from denoiserl.nn import frozen
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample
from denoiserl.recipes import check_inputs
from denoiserl.recipes.offline_rl.common import offline_minibatches, to_replay_buffer
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step, training_losses
from denoiserl.train.metric_means import MetricMeans


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 20
    """iterations of the run"""
    updates_per_iteration: Count = 100
    """updates per iteration"""
    batch_size: Count = 128
    """items per gradient step; decisions (256 as published)"""
    q_weight: NonNegative = 1.0
    """weight of the critic's value in the policy loss; η"""
    num_backup_samples: Count = 1
    """actions per next state, of which the largest value is the target; 10 as published for mazes"""
    num_candidates: Count = 16
    """candidates that the served action is chosen from; by their values"""
    choice_temperature: NonNegative = 0.0
    """temperature of the softmax over values that chooses among the candidates; 0 takes the best (1 as published)"""
    n_step: Count = 10
    """decisions per return; 10 suits sparse rewards (1 as published)"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    tau: PositiveFraction = 0.005
    """Polyak rate of the target networks"""
    lr: Positive = 1e-3
    """learning rate; of policy and critics (3e-4 as published)"""
    max_grad_norm: Positive = 1.0
    """largest norm of the gradient"""
    critic_width: Count = 128
    """width of the critics"""
    layer_norm: bool = True
    """use layer norm in the critics"""


def improve(
    policy: Policy, data: EpisodeDataset | ReplayBuffer, args: Args, rng: Rng | int, run: Run | None = None
) -> Iterator[Metrics]:
    """Improve a denoising policy from logged data; it serves the best of its candidates by Q."""
    check_inputs(policy, data, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    if isinstance(policy.codec, TanhCodec) or len(policy.eval_steps) < 2:
        raise InvalidInputError(
            "DQL improves policies that denoise: start 'diffusion' or 'flow' (td3_bc and iql take others)"
        )
    replay = to_replay_buffer(policy, data, args.batch_size, args.n_step, args.gamma)
    set_execution_horizon(policy, policy.event_shape[0])  # a decision is a whole chunk
    size = replay.columns["obs"].shape[1:]
    more: Any = {"width": args.critic_width, "layer_norm": args.layer_norm, "max_grad_norm": args.max_grad_norm}
    critics = TwinCritics(size, policy.event_shape, args.lr, args.tau, rng, policy.device, **more)
    policy.weights.snapshot("target")
    policy.weights.control = make_q_controller(critics.target_net, args.num_candidates, args.choice_temperature)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)
    K = len(policy.eval_steps)
    sample = policy.make_sampler(use_eval_steps=True, record=RecordSample(), differentiable_steps=K)
    target_sample = policy.with_weights("target").make_sampler(use_eval_steps=True, record=RecordSample())
    times = policy.eval_steps.times[:K].float().to(policy.device)

    state = {"policy": policy, "optimizer": optimizer, "critics": critics, "rng": rng}
    for _ in run.loop(args.iterations, given=data, **state):
        metrics = MetricMeans()
        for batch in offline_minibatches(replay, args.updates_per_iteration, args.batch_size, args.gamma, rng):
            # Estimate the TD target, and update the critics.
            obs, action = batch["obs"], batch["action"]
            with torch.no_grad():  # y = r + γ^n min Q̄(s', a'),  a' ~ π̄(s')
                next_obs = batch["next_obs"].repeat_interleave(args.num_backup_samples, 0)
                next_q = critics.target(next_obs, target_sample(next_obs, rng).sample)
                next_q = next_q.unflatten(1, (-1, args.num_backup_samples)).amax(-1)  # of several a' the largest
                td_target = batch["reward"] + batch["discount"] * next_q.amin(0)
            row = critics.td_update(obs, action, td_target)

            # Imitate the data at the levels of the chain: L_denoise(a | s).
            t = times[rng.integers(0, K, len(action))]
            how = {"t": t, "counts": batch["counts"]}
            bc_loss = training_losses(policy.process, policy.denoiser, action, obs, rng, **how).mean()

            # Update the policy: maximise one critic, scaled by the other.
            with frozen(critics.net):
                q = critics(obs, sample(obs, rng).sample)  # a₀ ~ π(s), through all K steps
                q, q_scale = q[[0, 1] if float(rng.uniform(1)) < 0.5 else [1, 0]]
                q_loss = normalized_q_loss(q, q_scale.detach()).mean()  # −E[Q] / E|Q|
                optimizer_step(optimizer, bc_loss + args.q_weight * q_loss, args.max_grad_norm)
            critics.update_target()
            policy.weights.ema_update("target", 1 - args.tau)
            metrics.add({"loss/bc": bc_loss.detach()} | row | {"q/policy": q.detach().mean()})
        yield metrics.mean()


SIGNAL = "data"
START = "diffusion"
DEFAULT_TASK = "offline"
EXTENDABLE: dict[str, Any] = {}
