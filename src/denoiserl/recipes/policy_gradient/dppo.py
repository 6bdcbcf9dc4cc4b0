"""DPPO: PPO on a diffusion policy; the environment's advantage is shared by the denoising steps.

paper: arXiv 2409.00588
signal: env
family: path policy gradient
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: actions
process: diffusion, flow
likelihood: replay

Every denoising step is a decision of a longer process: state (s, x_k), action x_{k−1}, reward only when the chunk is
executed. With Â from GAE over chunks,

    L = mean over (chunk, k) of −min(ρ Â_k, clip(ρ, 1 ± ε_k) Â_k),   Â_k = γ_d^{distance of k from the last step} Â

As published: the step's std is floored (exploration, and a density at every step), the estimate is clipped, only the
last ``finetune_denoising_steps`` steps learn while a frozen copy runs the others, ρ is the geometric mean over the
dimensions of the executed actions (log-probs over ``law.num_factors``), ε_k grows from ``clip_range_noisiest`` at the
noisiest step to ``clip_range``, minibatches are drawn over (environment step × denoising step), rewards are scaled by
the running std of the return, the actor stops for an iteration when the approximate KL of ρ passes ``target_kl``, and
truncation bootstraps. Differences: one floor for drawing and scoring (the released code has two); draws are not cut at
three std, and per-dimension log-probs are not clamped to [−5, 2] (a clamp passes no gradient, and one draw in 3000
meets it); scaled rewards are not clipped at ±10; ``gamma`` is the discount a tick, also inside a chunk, where the
released code sums a chunk's rewards and discounts once a chunk; what an episode's end left of a chunk has no part in ρ;
the critic learns on where the actor has stopped; advantages are normalised over an iteration and not a minibatch, and
are not clipped at a quantile.

With ``finetune_denoising_steps`` the policy becomes one of two networks, ``processes.Relay``: the frozen weights stay
part of it, and it is drawn, served, saved and improved again as it acted while it learned.

Expect, with the defaults, Meta-World's drawer-open from a success of about 0.65 to above 0.95 in 26 iterations (110 000
ticks, 55 s on a CPU core).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from denoiserl.advantages import normalise, over_denoising
from denoiserl.control.acting import (
    carry,
    learner,
    mask_unexecuted,
    mean_log_prob,
    on_policy,
    relay,
    rollout_metrics,
    statistics,
    training_actor,
)
from denoiserl.control.value_baseline import ValueBaseline
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.envs import Collector
from denoiserl.losses import approx_kl, clip_fraction, denoise_clip, ppo_clip
from denoiserl.policy.chain import ChainSteps
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy
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
    finetune_denoising_steps: Count | None = None
    """number of last denoising steps that learn; None: all that are not frozen"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    gae_lambda: Fraction = 0.95
    """λ of GAE, over decisions"""
    denoising_discount: Fraction = 0.99
    """discount of the advantage per denoising step"""
    clip_range: Positive = 0.01
    """range ε of the ratio, clipped to 1 ± ε; of the geometric mean over dimensions, at the cleanest step"""
    clip_range_noisiest: Positive = 0.01
    """range of the ratio at the noisiest step that learns"""
    clip_range_rate: NonNegative = 3.0
    """growth rate of the clip range from the noisiest to the cleanest step"""
    lr: NonNegative = 3e-4
    """learning rate; of the policy"""
    value_lr: NonNegative = 1e-3
    """learning rate of the value function"""
    epochs: Count = 5
    """passes over the data of an iteration; at most, see target_kl"""
    batch_size: Count = 1000
    """items per gradient step; rows (decision, denoising step)"""
    target_kl: Positive = 1.0
    """approximate KL of a minibatch at which the policy stops learning for this iteration; per dimension"""
    critic_warmup: CountOrZero = 0
    """iterations in which only the critic learns"""


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a diffusion or flow policy in an environment."""
    rng = as_rng(rng, policy.device)
    run = run or Run()
    env.discount(args.gamma)
    execute, tuned = carry(policy), relay(policy, args.finetune_denoising_steps)
    act = training_actor(policy, tuned, execute)
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)
    clips = denoise_clip(tuned, args.clip_range_noisiest, args.clip_range, args.clip_range_rate).to(policy.device)
    state = {"policy": policy, "optimizer": optimizer, "baseline": baseline, "rng": rng, "env": env}
    for it in run.loop(args.iterations, **state, seen=statistics(policy)):
        ep = env.collect(act, args.rollout_steps, rng)
        assert ep.chain is not None
        chain, alive = mask_unexecuted(ep.chain, ep.executed_mask), ep.valid.to(policy.device)
        estimate = baseline.estimate(ep)
        shared = over_denoising(normalise(estimate.advantages, alive), tuned, args.denoising_discount).flatten()
        index = torch.nonzero(alive.flatten().repeat_interleave(tuned)).flatten()
        with torch.no_grad():
            law, y = rescore(policy.process, learner(policy), chain)
            old = mean_log_prob(law, y).flatten()
        if it == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain
        metrics, learns = MetricMeans(), it >= args.critic_warmup
        for i in minibatches(index, args.batch_size, args.epochs, rng):
            rows = chain.steps_at(i)
            baseline.update(estimate, rows.chain_index)
            if learns:
                row = update_policy(policy, optimizer, rows, old[i], shared[i], clips[i % tuned], args)
                metrics.add(row or {})
                learns = row is not None
        yield rollout_metrics(ep, estimate) | metrics.mean()


def update_policy(
    policy: Policy, optimizer: Optimizer, rows: ChainSteps, old: Tensor, advantage: Tensor, clip: Tensor, args: Args
) -> dict[str, float] | None:
    """Step on a minibatch; return its loss, KL and clipped share, or None where the KL passes ``target_kl``.

    A function, so that nothing of a minibatch is in memory when the next one runs.
    """
    logp = mean_log_prob(*rescore(policy.process, learner(policy), rows))
    kl = float(approx_kl(logp.detach(), old))
    if kl > args.target_kl:
        return None
    loss = ppo_clip(logp, old, advantage, clip).mean()
    row = {"loss/policy": optimizer_step(optimizer, loss, clip=1.0)["loss"], "ppo/approx_kl": kl}
    return row | {"ppo/clip_fraction": float(clip_fraction(logp.detach(), old, clip))}


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
GROWS: dict[str, Any] = {}
DEMO = Args(iterations=26)
