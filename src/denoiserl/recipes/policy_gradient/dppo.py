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
likelihood: rescore

Every denoising step is a decision of a longer process: state (s, x_k), action x_{k−1}, reward only when the chunk is
executed. With Â from GAE over chunks,

    L = mean over (chunk, k) of −min(ρ Â_k, clip(ρ, 1 ± ε_k) Â_k),   Â_k = γ_d^{distance of k from the last step} Â

As published: the step's std is floored (exploration, and a density at every step) and the estimate is clipped. Only the
last ``finetune_denoising_steps`` steps learn, while a frozen copy runs the others. The ratio ρ is the geometric mean
over the dimensions of the executed actions (log-probs over ``law.num_factors``). Its range ε_k grows from
``clip_range_noisiest`` at the noisiest step to ``clip_range``. Minibatches are drawn over (environment step × denoising
step). Rewards are scaled by the running std of the return. The actor stops for an iteration when the approximate KL of
ρ exceeds ``target_kl``. Truncation bootstraps.

Differences:

- There is one floor for drawing and scoring (the released code has two).
- Draws are not cut at three std. Per-dimension log-probs are not clamped to [−5, 2]: a clamp passes no gradient, and
  one draw in 3000 meets it. Scaled rewards are not clipped at ±10.
- ``gamma`` is the discount per environment step, also inside a chunk. The released code sums a chunk's rewards and
  discounts once per chunk.
- The part of a chunk after an episode's end is left out of ρ.
- The critic goes on learning after the actor has stopped.
- Advantages are normalised over an iteration and not a minibatch, and are not clipped at a quantile.

With ``finetune_denoising_steps`` the policy becomes one of two networks, ``processes.Relay``. The frozen weights stay
part of it: it is drawn, served, saved and improved again as it acted while it learned.

Expect, with the defaults, Meta-World's drawer-open from a success of about 0.65 to above 0.95 in 26 iterations (110 000
environment steps, 55 s on a CPU core).
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
    freeze_early_steps,
    learner,
    mask_unexecuted,
    mean_log_prob,
    on_policy,
    rollout_metrics,
    set_execution_horizon,
    statistics,
    training_actor,
)
from denoiserl.control.value_baseline import ValueBaseline
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, OpenFraction, Positive, Settings
from denoiserl.envs import Collector
from denoiserl.losses import approx_kl, clip_fraction, denoise_clip, ppo_clip
from denoiserl.policy.chain import ChainSteps
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy
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
    finetune_denoising_steps: Count | None = None
    """number of last denoising steps that learn; None: all that are not frozen"""
    gamma: Fraction = 0.99
    """discount factor per environment step"""
    gae_lambda: Fraction = 0.95
    """λ of GAE, over decisions"""
    denoising_discount: Fraction = 0.99
    """discount of the advantage per denoising step"""
    clip_range: OpenFraction = 0.01
    """range ε of the ratio, clipped to 1 ± ε; of the geometric mean over dimensions, at the cleanest step"""
    clip_range_noisiest: OpenFraction = 0.01
    """range of the ratio at the noisiest step that learns"""
    clip_range_rate: NonNegative = 3.0
    """growth rate of the clip range from the noisiest to the cleanest step"""
    lr: Positive = 3e-4
    """learning rate; of the policy"""
    value_lr: Positive = 1e-3
    """learning rate of the value function"""
    epochs: Count = 5
    """passes over the data of an iteration; at most, see target_kl"""
    batch_size: Count = 1000
    """items per gradient step; rows (decision, denoising step)"""
    target_kl: Positive = 1.0
    """approximate KL of a minibatch at which the policy stops learning for this iteration; per dimension"""
    critic_warmup: CountOrZero = 0
    """iterations in which only the critic learns"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_below("critic_warmup", "iterations")

    def check_denoising_steps(self, num_steps: int) -> None:
        """Raise RunError if more steps are to learn than the policy has."""
        own = self.finetune_denoising_steps
        problem = f"finetune_denoising_steps = {own} is above the policy's {num_steps} steps: give at most {num_steps}"
        self.require_fit(own is None or own <= num_steps, problem)


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a diffusion or flow policy in an environment."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run = run or Run()
    env.discount(args.gamma)
    execute, K = (
        set_execution_horizon(policy),
        freeze_early_steps(policy, args.finetune_denoising_steps),
    )  # a frozen copy runs all but the last K
    act = training_actor(policy, K, execute)
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng)
    optimizer = adamw(policy.parameters(), args.lr)
    check_optimizer_covers(optimizer, policy.weights.module)
    clip_range = denoise_clip(K, args.clip_range_noisiest, args.clip_range, args.clip_range_rate)  # ε_k
    clip_range = clip_range.to(policy.device)

    state = {"policy": policy, "optimizer": optimizer, "baseline": baseline, "rng": rng, "env": env}
    for iteration in run.loop(args.iterations, **state, statistics=statistics(policy)):
        # Collect chunks with their denoising steps.
        rollout = env.collect(act, args.rollout_steps, rng)
        assert rollout.chain is not None
        chain, valid = mask_unexecuted(rollout.chain, rollout.executed_mask), rollout.valid.to(policy.device)

        # Estimate advantages, which the denoising steps of a chunk share, and the log-probabilities before the update.
        estimate = baseline.estimate(rollout)  # GAE over chunks
        advantage = over_denoising(normalise(estimate.advantages, valid), K, args.denoising_discount).flatten()  # Â_k
        index = torch.nonzero(valid.flatten().repeat_interleave(K)).flatten()
        with torch.no_grad():
            law, y = rescore(policy.process, learner(policy), chain)
            old_log_prob = mean_log_prob(law, y).flatten()
        if iteration == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain

        # Update policy and critic; the policy stops for this iteration where the KL is too large.
        metrics, policy_learns = MetricMeans(), iteration >= args.critic_warmup
        for i in minibatches(index, args.batch_size, args.epochs, rng):
            steps = chain.steps_at(i)
            baseline.update(estimate, steps.chain_index)
            if policy_learns:
                batch = steps, old_log_prob[i], advantage[i], clip_range[i % K]
                row = update_policy(policy, optimizer, *batch, args.target_kl)
                metrics.add(row or {})
                policy_learns = row is not None
        yield rollout_metrics(rollout, estimate) | metrics.mean()


def update_policy(
    policy: Policy,
    optimizer: Optimizer,
    steps: ChainSteps,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: Tensor,
    target_kl: float,
) -> Metrics | None:
    """Take a gradient step on a minibatch; return its metrics, or None if the KL exceeds ``target_kl``.

    This is a function, so that a minibatch is freed before the next one runs.
    """
    log_prob = mean_log_prob(*rescore(policy.process, learner(policy), steps))  # of the geometric mean
    kl = float(approx_kl(log_prob.detach(), old_log_prob))
    if kl > target_kl:
        return None
    loss = ppo_clip(log_prob, old_log_prob, advantage, clip_range).mean()  # −min(ρ Â_k, clip(ρ, 1 ± ε_k) Â_k)
    row = {"loss/policy": optimizer_step(optimizer, loss, clip=1.0)["loss"], "ppo/approx_kl": kl}
    return row | {"ppo/clip_fraction": float(clip_fraction(log_prob.detach(), old_log_prob, clip_range))}


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
EXTENDABLE: dict[str, Any] = {}
DEMO = Args(iterations=26)
