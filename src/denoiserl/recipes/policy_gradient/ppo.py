"""PPO: the clipped policy gradient of a Gaussian policy, the baseline of every method that acts.

paper: arXiv 1707.06347
signal: env
family: path policy gradient
side: B
base: gaussian
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: one-step
likelihood: replay

A decision is drawn in one step, a ~ N(μ(s), σ²), where σ is learned and does not depend on the state. With Â from GAE,

    L = mean over decisions of −min(ρ Â, clip(ρ, 1 ± ε) Â) − c H,   ρ = π(a | s) / π_old(a | s)

A decision is an action or a chunk of them; ρ is the joint ratio over the executed actions (DPPO takes the geometric
mean, so their ε differ). With the details that released code agrees on: advantages are normalised a minibatch, learning
rates may fall on a line, Adam's ε is 1e-5, gradients are clipped at 0.5, rewards are scaled by the running std of the
return, observations are standardised by the codec (``ActionChunkCodec``'s normaliser, or the statistics of
``RunningNormCodec``, which are updated
as it acts), the value has a network of its own and is not clipped, a time limit bootstraps, actions are clipped by the
environment and not in the density, the actor stops when the approximate KL passes ``target_kl``.
Differences: actor and critic have an optimiser each, so there is no value coefficient, and the critic goes on where the
actor has stopped; the KL is looked at before every gradient step, not once an epoch.

Start from a policy with ``GaussianHead``: its mean at 0, or cloned from demonstrations. The defaults are for a clone: a
low ``lr``, and ``critic_warmup`` iterations for the critic alone.

Expect, with the defaults, Meta-World's drawer-open from a success of 0.50 (cloned, served by its mean) to about 0.9 in
40 iterations (0.57, 0.78, 0.83 and 0.91 of 100 held-out starts after 10, 20, 30 and 40; one seed). With ``lr=1e-4`` it
is at about 0.65 after 26, with 3e-4 below where it began: the cloned std is about 0.13 in each of 20 dimensions, so a
small step of the weights is a large one of the law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from denoiserl.control.acting import (
    carry,
    mask_unexecuted,
    on_policy,
    rollout_metrics,
    standard,
    statistics,
    training_actor,
)
from denoiserl.control.value_baseline import ValueBaseline
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.distributions import Gaussian
from denoiserl.envs import Collector
from denoiserl.losses import approx_kl, clip_fraction, ppo_clip
from denoiserl.policy.chain import ChainSteps
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep
from denoiserl.train import Metrics, Run, adamw, check_optimizer_covers, optimizer_step
from denoiserl.train.metric_means import MetricMeans
from denoiserl.train.minibatches import minibatches


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
    clip_range: Positive = 0.2
    """range ε of the ratio, clipped to 1 ± ε; of the joint ratio of a decision"""
    entropy_coef: NonNegative = 0.0
    """weight of the entropy bonus"""
    lr: NonNegative = 1e-5
    """learning rate; of the policy at the start: small for a pretrained one, 3e-4 and more for a small one from
    scratch"""
    value_lr: NonNegative = 1e-3
    """learning rate of the value function; at the start"""
    final_lr_fraction: Fraction = 1.0
    """fraction of the learning rates that is left at the end of a linear decay; 1 is constant, 0 is usual from
    scratch"""
    epochs: Count = 10
    """passes over the data of an iteration; at most, see target_kl"""
    batch_size: Count = 220
    """items per gradient step; decisions"""
    max_grad_norm: Positive = 0.5
    """largest norm of the gradient"""
    target_kl: Positive = 0.1
    """approximate KL of a minibatch at which the policy stops learning for this iteration"""
    critic_warmup: CountOrZero = 2
    """iterations in which only the critic learns; for pretrained policies"""


def improve(
    policy: Policy,
    env: Collector,
    args: Args,
    rng: Rng | int,
    run: Run | None = None,
    penalty: Callable[[Gaussian], Tensor] | None = None,
) -> Iterator[Metrics]:
    """Improve a Gaussian policy in an environment. ``penalty(law)`` [N], of what it decides, is added to the loss."""
    rng = as_rng(rng, policy.device)
    if not isinstance(policy.process, OneStep) or policy.process.law != "gaussian":
        raise InvalidInputError(
            "PPO improves policies that decide in one Gaussian step, OneStep(): a denoising one needs dppo"
        )
    run, execute = run or Run(), carry(policy)
    env.discount(args.gamma)
    act = training_actor(policy, len(policy.train_steps), execute)
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng, args.max_grad_norm)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)
    state = {"policy": policy, "optimizer": optimizer, "baseline": baseline, "rng": rng, "env": env}
    for it in run.loop(args.iterations, **state, seen=statistics(policy)):
        left = 1 - (1 - args.final_lr_fraction) * it / args.iterations
        for each, lr in ((optimizer, args.lr), (baseline.optimizer, args.value_lr)):
            for group in each.param_groups:
                group["lr"], group["eps"] = lr * left, 1e-5
        ep = env.collect(act, args.rollout_steps, rng)
        assert ep.chain is not None
        chain, alive = mask_unexecuted(ep.chain, ep.executed_mask), ep.valid.to(policy.device).flatten()
        estimate = baseline.estimate(ep)
        advantage, index = estimate.advantages.flatten(), torch.nonzero(alive).flatten()
        with torch.no_grad():
            law, y = rescore(policy.process, policy.denoiser, chain)
            old = law.log_prob(y).flatten()
        if it == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain
        metrics, learns = MetricMeans(), it >= args.critic_warmup
        for i in minibatches(index, args.batch_size, args.epochs, rng, even=True):
            baseline.update(estimate, i)
            if learns:
                rows = chain.steps_at(i)
                row = update_policy(policy, optimizer, rows, old[i], standard(advantage[i]), args, penalty)
                metrics.add(row or {})
                learns = row is not None
        yield rollout_metrics(ep, estimate) | metrics.mean()


def update_policy(
    policy: Policy,
    optimizer: Optimizer,
    rows: ChainSteps,
    old: Tensor,
    advantage: Tensor,
    args: Args,
    penalty: Callable[[Gaussian], Tensor] | None,
) -> dict[str, float] | None:
    """Step on a minibatch; return its loss, KL, clipped share and std, or None where the KL passes ``target_kl``.

    A function, so that nothing of a minibatch is in memory when the next one runs.
    """
    law, y = policy.rescore(rows)
    assert isinstance(law, Gaussian)
    logp = law.log_prob(y)
    kl = float(approx_kl(logp.detach(), old))
    if kl > args.target_kl:
        return None
    loss = ppo_clip(logp, old, advantage, args.clip_range).mean() - args.entropy_coef * law.entropy().mean()
    if penalty is not None:
        loss = loss + penalty(law).mean()
    row = {"loss/policy": optimizer_step(optimizer, loss, clip=args.max_grad_norm)["loss"], "ppo/approx_kl": kl}
    row["ppo/clip_fraction"] = float(clip_fraction(logp.detach(), old, args.clip_range))
    return row | {"policy/std": float(law.std.detach().mean())}


SIGNAL = "env"
START = "gaussian"
DEFAULT_TASK = "env"
GROWS: dict[str, Any] = {"final_lr_fraction": 1.0}
