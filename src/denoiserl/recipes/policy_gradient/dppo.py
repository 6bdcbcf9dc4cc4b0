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
    critic_features,
    estimate_advantages,
    learner,
    mask_unexecuted,
    mean_log_prob,
    on_policy,
    relay,
    rollout_metrics,
    statistics,
    training_actor,
)
from denoiserl.core.rng import Rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
from denoiserl.envs import Collector
from denoiserl.envs.reward_scale import RewardScale
from denoiserl.losses import approx_kl, clip_fraction, denoise_clip, half_squared_error, ppo_clip
from denoiserl.nn import Value
from denoiserl.policy.chain import ChainSteps
from denoiserl.policy.likelihood import rescore
from denoiserl.policy.policy import Policy
from denoiserl.train import Run, adamw, check_optimizer_covers, optimizer_step


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


def improve(policy: Policy, env: Collector, args: Args, rng: Rng, run: Run | None = None) -> Iterator[dict]:
    """Improve a diffusion or flow policy in an environment."""
    run = run or Run()
    env.discount(args.gamma)
    execute, tuned = carry(policy), relay(policy, args.finetune_denoising_steps)
    act, (see, size) = training_actor(policy, tuned, execute), critic_features(policy, env)
    value, scale = rng.init(Value, size, width=256).to(policy.device), RewardScale()
    opt, critic = adamw(policy.parameters(), args.lr), adamw(value.parameters(), args.value_lr)
    check_optimizer_covers([opt, critic], policy.weights.module, value)
    clips = denoise_clip(tuned, args.clip_range_noisiest, args.clip_range, args.clip_range_rate).to(policy.device)
    named = {"policy": policy, "value": value, "opt": opt, "critic": critic, "scale": scale, "rng": rng, "env": env}
    for it in run.loop(args.iterations, **named, seen=statistics(policy)):
        ep = env.collect(act, args.rollout_steps, rng)
        assert ep.chain is not None
        chain, alive = mask_unexecuted(ep.chain, ep.executed_mask), ep.valid.to(policy.device)
        critique = estimate_advantages(ep, value, see, scale, args.gamma, args.gae_lambda)
        seen, goal = critique.features, critique.returns
        shared = over_denoising(normalise(critique.advantages, alive), tuned, args.denoising_discount).flatten()
        index = torch.nonzero(alive.flatten().repeat_interleave(tuned)).flatten()
        with torch.no_grad():
            law, y = rescore(policy.process, learner(policy), chain)
            old = mean_log_prob(law, y).flatten()
        if it == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain
        updates, moves = [], it >= args.critic_warmup
        for i in (i for _ in range(args.epochs) for i in index[rng.permutation(len(index))].split(args.batch_size)):
            rows = chain.steps_at(i)
            optimizer_step(
                critic, half_squared_error(value(seen[rows.chain_index]), goal[rows.chain_index]).mean(), clip=1.0
            )
            if moves:
                done = update_policy(policy, opt, rows, old[i], shared[i], clips[i % tuned], args)
                moves = done is not None
                updates += [] if done is None else [done]
        means = torch.tensor(updates).mean(0).tolist() if updates else ()
        yield rollout_metrics(ep, critique) | dict(zip(("loss", "kl", "clipped"), means, strict=bool(updates)))


def update_policy(
    policy: Policy, opt: Optimizer, rows: ChainSteps, old: Tensor, advantage: Tensor, clip: Tensor, args: Args
) -> tuple[float, float, float] | None:
    """Step on a minibatch; return its loss, KL and clipped share, or None where the KL passes ``target_kl``.

    A function, so that nothing of a minibatch is in memory when the next one runs.
    """
    logp = mean_log_prob(*rescore(policy.process, learner(policy), rows))
    kl = float(approx_kl(logp.detach(), old))
    if kl > args.target_kl:
        return None
    loss = ppo_clip(logp, old, advantage, clip).mean()
    return optimizer_step(opt, loss, clip=1.0)["loss"], kl, float(clip_fraction(logp.detach(), old, clip))


SIGNAL = "env"
START = None
DEFAULT_TASK = "env"
GROWS: dict[str, Any] = {}
DEMO = Args(iterations=26)
