"""FPO: PPO on a flow policy without a likelihood; its ratio comes from the denoising loss.

paper: arXiv 2507.21053
signal: env
family: elbo policy gradient
side: B
base: diffusion
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: flow, diffusion, one-step
likelihood: elbo

The training loss of a flow at an action a is the negative of a (weighted) ELBO, however a was drawn. For every decision
n pairs (ε_i, t_i) are drawn once and kept, with the losses ℓ_i of the policy that acted, and

    ρ = exp(mean_i clamp(ℓ_i^old − ℓ_i^θ, ±3)),   L = mean over decisions of −min(ρ Â, clip(ρ, 1 ± ε) Â)

with Â from GAE over chunks. The pairs belong to the decision, as its action does: with new pairs, ρ would be noise and
not 1 before the first step (every iteration checks that it is 1). At ρ = 1 the gradient is that of REINFORCE on the
ELBO. An ELBO's ratio is not a likelihood's: where Â < 0 the loss of an action can be raised without making it rarer.

As published: ℓ is the error of ε per dimension, mean (ε̂ − ε)² (``loss_weight="noise"``), whatever the network
predicts. The mean is taken inside the exponential. ``ratio_per="each"`` gives every pair a ratio and a clip of its own,
which the released code can too. Advantages are normalised per minibatch. Acting runs the evaluation steps
(``rollout_sampler="eval"``).

Differences:

- Times are stratified over (0, 1), where the released code draws them from its sampler's grid.
- The clamp holds in both kinds of ratio (released: in "each" only).
- Only executed actions count in ℓ.
- The critic has a loss and an optimiser of its own.
- Gradients are clipped.

A policy of one step, ``OneStep``, has an exact −log π for a loss: ρ is the likelihood ratio, and FPO is PPO. Its
evaluation step is its mean, so it acts with ``rollout_sampler="train"``. A flow of a single step does not learn (on a
bandit it diverges): its loss does not describe what it draws.

Expect, on the fork2d of the claim ``fpo`` (``rollout_steps=12``, one seed), from a flow cloned to a success of 0.36:

| iterations | 8 | 16 | 24 |
|---|---|---|---|
| success | 0.85 | 0.88 | 0.80 |
| with ``clip_range=0.02, lr=5e-5`` | 0.69 | 0.92 | 0.95 |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from denoiserl.control.acting import normalise_minibatch, rollout_metrics, statistics
from denoiserl.control.value_baseline import ValueBaseline
from denoiserl.core.errors import InvalidInputError, unknown_name_message
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, OpenFraction, Positive, Settings
from denoiserl.core.tree import Tree, index_rows
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.losses import clip_fraction, ppo_clip
from denoiserl.policy.likelihood import assert_on_policy, denoising_losses, renoise
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, Noised, Process
from denoiserl.recipes import check_inputs
from denoiserl.recipes.common import select_rows
from denoiserl.recipes.policy_gradient.common import chunk_actor, recorded_chunks
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step
from denoiserl.train.metric_means import MetricMeans
from denoiserl.train.minibatches import minibatches

RATIOS = ("mean", "each")
MAX_LOSS_GAP = 3.0
"""the largest difference of two losses of one pair that counts"""


@dataclass(frozen=True)
class Args(Settings):
    iterations: Count = 40
    """iterations of the run; collect and update"""
    num_envs: Count = 40
    """parallel environments"""
    rollout_steps: Count = 22
    """decisions per environment and iteration"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    gae_lambda: Fraction = 0.95
    """λ of GAE, over decisions"""
    num_noise_samples: Count = 8
    """samples of noise and time per decision"""
    loss_weight: Literal["noise", "velocity", "data"] = "noise"
    """the matching loss; squared error of the noise, of the velocity, or of the data"""
    ratio_per: Literal["mean", "each"] = "mean"
    """what a ratio is of; the mean loss of a decision, or each of its pairs"""
    rollout_sampler: Literal["eval", "train"] = "eval"
    """the denoising steps that act; those that users run, or those with noise, which policy gradients need"""
    clip_range: OpenFraction = 0.05
    """range ε of the ratio, clipped to 1 ± ε"""
    lr: Positive = 1e-4
    """learning rate; of the policy: small for a pretrained one, 3e-4 is published for policies from scratch"""
    value_lr: Positive = 1e-3
    """learning rate of the value function"""
    epochs: Count = 10
    """passes over the data of an iteration"""
    batch_size: Count = 220
    """items per gradient step; decisions"""
    critic_warmup: CountOrZero = 2
    """iterations in which only the critic learns; for pretrained policies"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_below("critic_warmup", "iterations")


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve any policy over chunks of actions in an environment; its steps need no density."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    if args.ratio_per not in RATIOS:
        raise InvalidInputError(unknown_name_message(args.ratio_per, RATIOS, "ratio"))
    run, act = run or Run(), make_actor(policy, args.rollout_sampler)
    process = with_loss_weight(policy.process, args.loss_weight)
    env.discount(args.gamma)
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)

    state = {"policy": policy, "optimizer": optimizer, "baseline": baseline, "rng": rng, "env": env}
    for iteration in run.loop(args.iterations, **state, statistics=statistics(policy)):
        # Collect decisions.
        rollout = env.collect(act, args.rollout_steps, rng)

        # Estimate advantages; draw the pairs (ε_i, t_i) of every decision, and their losses before the update.
        estimate = baseline.estimate(rollout)  # GAE over chunks
        index = torch.nonzero(rollout.valid.to(policy.device).flatten()).flatten()
        pairs, cond = draw_noise_pairs(rollout, process, args.num_noise_samples, rng, index)
        advantage = estimate.advantages.flatten()[index]
        with torch.no_grad():
            old_losses = losses(policy, process, pairs, cond)  # ℓ_i^old

        # Update policy and critic.
        metrics = MetricMeans()
        for i in minibatches(len(index), args.batch_size, args.epochs, rng, even=True):
            baseline.update(estimate, index[i])
            if iteration < args.critic_warmup:
                continue
            batch = select_rows(pairs, i), index_rows(cond, i), old_losses[i], normalise_minibatch(advantage[i])
            metrics.add(update_policy(policy, process, optimizer, *batch, args, check=not len(metrics)))
        yield rollout_metrics(rollout, estimate) | metrics.mean()


def update_policy(
    policy: Policy,
    process: Process,
    optimizer: Optimizer,
    pairs: Noised,
    cond: Tree,
    old_losses: Tensor,
    advantage: Tensor,
    args: Args,
    check: bool,
) -> Metrics:
    """Take a gradient step on a minibatch; return its metrics.

    This is a function, so that a minibatch is freed before the next one runs. ``check``: nothing has learned since
    ``old_losses``, so the ratio must be 1.
    """
    log_ratio = (old_losses - losses(policy, process, pairs, cond)).clamp(-MAX_LOSS_GAP, MAX_LOSS_GAP)
    log_ratio = log_ratio.mean(-1, keepdim=True) if args.ratio_per == "mean" else log_ratio  # log ρ
    zero = torch.zeros_like(log_ratio)
    if check:
        assert_on_policy(log_ratio, zero)
    advantage = advantage[:, None].expand_as(log_ratio)
    loss = ppo_clip(log_ratio, zero, advantage, args.clip_range).mean()  # −min(ρ Â, clip(ρ, 1 ± ε) Â)
    row, log_ratio = {"loss/policy": optimizer_step(optimizer, loss, clip=1.0)["loss"]}, log_ratio.detach()
    row["ppo/abs_log_ratio"] = float(log_ratio.abs().mean())
    return row | {"ppo/clip_fraction": float(clip_fraction(log_ratio, zero, args.clip_range))}


def make_actor(policy: Policy, sampler: str) -> Any:
    """Return an actor on the steps ``sampler``. Raise InvalidInputError if they always draw the same action."""
    act = chunk_actor(policy, sampler)
    steps = policy.eval_steps if sampler == "eval" else policy.train_steps
    if not any(steps.dense) and not policy.process.prior((1, *policy.event_shape)).has_density:
        raise InvalidInputError(
            "these steps always draw the same action, so there is nothing to learn from: rollout_sampler='train'"
        )
    return act


def with_loss_weight(process: Process, weight: Any) -> Process:
    """Return a diffusion process with the loss weight ``weight``; other processes are unchanged."""
    return replace(process, weight=weight) if isinstance(process, Diffusion) else process


def draw_noise_pairs(rollout: Rollout, process: Process, n: int, rng: Rng | int, index: Tensor) -> tuple[Noised, Tree]:
    """Return n pairs of noise and time for the decisions ``index`` of [T·B], [N, n, ...], and their conditions.

    The whole chunk is noised; what was executed has a loss.
    """
    chunk, cond, mask = index_rows(recorded_chunks(rollout), index)
    pairs = renoise(process, chunk, n, rng, uniform=True)
    return pairs._replace(mask=mask[:, None].expand(pairs.x.shape)), cond


def losses(policy: Policy, process: Process, pairs: Noised, cond: Tree) -> Tensor:
    """Return the denoising loss of every pair under the policy's weights, [N, n]."""
    return denoising_losses(process, policy.denoiser, pairs, policy.denoiser.embed_condition(cond))


SIGNAL = "env"
START = "flow"
DEFAULT_TASK = "env"
EXTENDABLE: dict[str, Any] = {}
