"""PPO: the clipped policy gradient of a Gaussian policy, the baseline of all methods that act in an environment.

paper: arXiv 1707.06347
signal: env
family: path policy gradient
side: B
base: gaussian
task: policy learning
stage: from scratch, fine-tuning
output: actions
process: one-step
likelihood: rescore

A decision is drawn in one step, a ~ N(μ(s), σ²), where σ is learned and does not depend on the state. A discrete action
is drawn from a categorical distribution. With Â from GAE,

    L = mean over decisions of −min(ρ Â, clip(ρ, 1 ± ε) Â) − c H,   ρ = π(a | s) / π_old(a | s)

A decision is an action or a chunk of them; ρ is the joint ratio over the executed actions (DPPO takes the geometric
mean, so their ε differ). As in the released code: advantages are normalised per minibatch, learning rates may fall
linearly, Adam's ε is 1e-5, and gradients are clipped at 0.5. Rewards are scaled by the running std of the return. The
codec standardises observations (``ActionChunkCodec``'s normaliser, or the statistics of ``RunningNormCodec``, which are
updated while it acts). The value has a network of its own and is not clipped. A time limit bootstraps. Actions are
clipped by the environment and not in the density. The actor stops when the approximate KL exceeds ``target_kl``.

Differences:

- Actor and critic have an optimiser each, so there is no value coefficient.
- The critic goes on learning after the actor has stopped.
- The KL is checked before every gradient step, not once per epoch.

Start from a policy with ``GaussianHead``: its mean at 0, or cloned from demonstrations. A clone learns with a low
``lr``, and after ``critic_warmup`` iterations for the critic alone. ``CategoricalHead`` is for discrete actions.

Expect, with the defaults, on Meta-World's drawer-open (100 held-out starts; one seed), for a clone that is served by
its mean:

| iterations | 0 | 10 | 20 | 30 | 40 |
|---|---|---|---|---|---|
| success | 0.50 | 0.57 | 0.78 | 0.83 | 0.91 |

With ``lr=1e-4`` it is at about 0.65 after 26, with 3e-4 below where it began. The cloned std is about 0.13 in each of
20 dimensions, so a small step of the weights is a large one of the distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from denoiserl.control.acting import (
    mask_unexecuted,
    normalise_minibatch,
    on_policy,
    rollout_metrics,
    set_execution_horizon,
    statistics,
    training_actor,
)
from denoiserl.control.value_baseline import ValueBaseline
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, OpenFraction, Positive, Settings
from denoiserl.distributions import Categorical, Gaussian
from denoiserl.envs import Collector
from denoiserl.losses import approx_kl, clip_fraction, ppo_clip
from denoiserl.policy.chain import ChainSteps
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep
from denoiserl.recipes import check_inputs
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
    clip_range: OpenFraction = 0.2
    """range ε of the ratio, clipped to 1 ± ε; of the joint ratio of a decision"""
    entropy_coef: NonNegative = 0.0
    """weight of the entropy bonus"""
    lr: Positive | None = None
    """learning rate; of the policy at the start (None: 1e-5 for a clone, 3e-4 for one that begins untrained, whose
    codec has running statistics)"""
    value_lr: Positive = 1e-3
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

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_below("critic_warmup", "iterations")


def improve(
    policy: Policy,
    env: Collector,
    args: Args,
    rng: Rng | int,
    run: Run | None = None,
    penalty: Callable[[Gaussian], Tensor] | None = None,
) -> Iterator[Metrics]:
    """Improve a Gaussian policy in an environment. ``penalty(law)`` [N], of its distribution, is added to the loss."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    if not isinstance(policy.process, OneStep):
        raise InvalidInputError("PPO improves policies that decide in one step, OneStep(): a denoising one needs dppo")
    run, execute = run or Run(), set_execution_horizon(policy)
    env.discount(args.gamma)
    act = training_actor(policy, len(policy.train_steps), execute)
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng, args.max_grad_norm)
    policy_lr = args.lr or (1e-5 if statistics(policy) is None else 3e-4)
    optimizer = adamw(policy.parameters(), policy_lr)
    check_optimizer_covers(optimizer, policy.weights.module)

    state = {"policy": policy, "optimizer": optimizer, "baseline": baseline, "rng": rng, "env": env}
    for iteration in run.loop(args.iterations, **state, statistics=statistics(policy)):
        lr_fraction = 1 - (1 - args.final_lr_fraction) * iteration / args.iterations
        for each, lr in ((optimizer, policy_lr), (baseline.optimizer, args.value_lr)):
            for group in each.param_groups:
                group["lr"], group["eps"] = lr * lr_fraction, 1e-5

        # Collect decisions.
        rollout = env.collect(act, args.rollout_steps, rng)
        assert rollout.chain is not None
        chain, valid = mask_unexecuted(rollout.chain, rollout.executed_mask), rollout.valid.to(policy.device).flatten()

        # Estimate advantages, and the log-probabilities before the update.
        estimate = baseline.estimate(rollout)  # GAE
        advantage, index = estimate.advantages.flatten(), torch.nonzero(valid).flatten()
        with torch.no_grad():
            law, y = rescore(policy.process, policy.denoiser, chain)
            old_log_prob = law.log_prob(y).flatten()  # log π_old(a | s)
        if iteration == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain

        # Update policy and critic; the policy stops for this iteration where the KL is too large.
        metrics, policy_learns = MetricMeans(), iteration >= args.critic_warmup
        for i in minibatches(index, args.batch_size, args.epochs, rng, even=True):
            baseline.update(estimate, i)
            if policy_learns:
                batch = chain.steps_at(i), old_log_prob[i], normalise_minibatch(advantage[i])
                row = update_policy(policy, optimizer, *batch, args, penalty)
                metrics.add(row or {})
                policy_learns = row is not None
        yield rollout_metrics(rollout, estimate) | metrics.mean()


def update_policy(
    policy: Policy,
    optimizer: Optimizer,
    steps: ChainSteps,
    old_log_prob: Tensor,
    advantage: Tensor,
    args: Args,
    penalty: Callable[[Gaussian], Tensor] | None,
) -> Metrics | None:
    """Take a gradient step on a minibatch; return its metrics, or None if the KL exceeds ``target_kl``.

    This is a function, so that a minibatch is freed before the next one runs.
    """
    law, y = policy.rescore(steps)
    assert isinstance(law, Gaussian | Categorical)
    log_prob = law.log_prob(y)  # log π(a | s)
    kl = float(approx_kl(log_prob.detach(), old_log_prob))
    if kl > args.target_kl:
        return None
    loss = ppo_clip(log_prob, old_log_prob, advantage, args.clip_range).mean()  # −min(ρ Â, clip(ρ, 1 ± ε) Â)
    entropy = law.entropy().mean()
    loss = loss - args.entropy_coef * entropy  # − c H
    if penalty is not None:
        assert isinstance(law, Gaussian)
        loss = loss + penalty(law).mean()
    row = {"loss/policy": optimizer_step(optimizer, loss, clip=args.max_grad_norm)["loss"], "ppo/approx_kl": kl}
    row["ppo/clip_fraction"] = float(clip_fraction(log_prob.detach(), old_log_prob, args.clip_range))
    spread = (
        {"policy/std": law.std.detach().mean()} if isinstance(law, Gaussian) else {"policy/entropy": entropy.detach()}
    )
    return row | {name: float(value) for name, value in spread.items()}


SIGNAL = "env"
START = "gaussian"
DEFAULT_TASK = "env"
EXTENDABLE: dict[str, Any] = {"final_lr_fraction": 1.0}
