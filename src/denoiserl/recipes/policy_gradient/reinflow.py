"""ReinFlow: PPO on a flow policy of few steps, through a learned noise that is removed after training.

paper: arXiv 2505.22094
signal: env
family: path policy gradient
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: actions
process: flow, diffusion
likelihood: rescore

A flow is deterministic, so its steps have no density. During training a small network beside it adds noise to every
step, and the step becomes a Gaussian:

    x_{k+1} ~ N(x_k + v_θ(x_k, t_k, s) Δt, σ_φ(x_k, t_k, s)²),   σ_φ in [σ_min, σ_max]

θ and φ learn together from *one* clipped ratio per decision, that of the whole path. Its log π is the sum over steps
and dimensions of the executed actions, divided by how many there are. So ρ is a geometric mean, and ``clip_range`` is
small. The first state is drawn from N(0, 1) whatever θ is, and cancels in ρ. With Â from GAE over chunks,

    L = mean over decisions of −min(ρ Â, clip(ρ, 1 ± ε) Â) − c H + b E_z‖a_θ(z) − a_base(z)‖²

H is the entropy per dimension of a step. The last term (``bc_weight``, off by default) bounds the squared W₂ distance
from the starting policy, both run as ODEs from the same noise z.

As published: ``noise_std_max`` is held for the first 35 % of the iterations. Then it falls by a cosine to σ_min + 0.7
(σ_max − σ_min). There is one optimiser for θ and φ. The noise net is not saved, and the policy is served as an ODE.

Differences:

- There is one grid for drawing and scoring, from t = 1 in equal steps. Released versions have drawn at times that
  include the data's end, and scored at others.
- The estimate is clamped where the process says so, and not the state after a step.
- Draws are not cut at three std, nor log-probs clamped to a range: a clamp passes no gradient.
- σ may depend on x_k, as in the paper. z is drawn anew (the released code takes z = 0).
- The part of a chunk after an episode's end is left out of ρ, H and the distance.
- The critic goes on learning after the policy has stopped.

With one step, only the injected noise explores around a draw of z, and that is enough. One ratio per path averages more
numbers than DPPO's, one per step: the same ``clip_range`` lets the distribution move further.

Expect, on the fork2d of the claim ``reinflow`` (``rollout_steps=12``, one seed), served as an ODE, from a flow cloned
to a success of 0.36:

| iterations | 8 | 16 | 24 |
|---|---|---|---|
| ReinFlow | 0.60 | 0.75 | 0.87 |
| DPPO on the same flow | | | 0.50 |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from denoiserl.control.value_baseline import ValueBaseline, critic_features
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, OpenFraction, Positive, Settings
from denoiserl.core.tree import Tree, index_rows
from denoiserl.core.tree import batch_size as count_rows
from denoiserl.distributions import Distribution, Gaussian
from denoiserl.envs import Collector
from denoiserl.losses import approx_kl, clip_fraction, ppo_clip
from denoiserl.nn import MLP
from denoiserl.policy.chain import ChainSteps
from denoiserl.policy.policy import Policy
from denoiserl.policy.sampler import RecordSample, make_sampler
from denoiserl.policy.weights import Weights
from denoiserl.processes import Diffusion, NoiseInjectedDenoiser, ddim, with_learned_std
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
    noise_std_min: Positive = 0.1
    """smallest std of the injected noise"""
    noise_std_max: Positive = 0.24
    """largest std of the injected noise"""
    noise_hold_fraction: Fraction = 0.35
    """fraction of the iterations in which the noise ceiling stays at noise_std_max"""
    noise_final_fraction: Fraction = 0.7
    """final noise ceiling, as a fraction of the range from noise_std_min to noise_std_max"""
    clip_range: OpenFraction = 0.01
    """range ε of the ratio, clipped to 1 ± ε; of the geometric mean over a decision's path"""
    entropy_coef: NonNegative = 0.03
    """weight of the entropy bonus; per dimension"""
    bc_weight: NonNegative = 0.0
    """weight of the imitation loss; the distance to the starting policy; 0 needs no pass of it"""
    lr: Positive = 3e-4
    """learning rate; of flow and noise"""
    value_lr: Positive = 1e-3
    """learning rate of the value function"""
    epochs: Count = 5
    """passes over the data of an iteration; at most, see target_kl"""
    batch_size: Count = 220
    """items per gradient step; decisions"""
    target_kl: Positive = 1.0
    """approximate KL of a minibatch at which the policy stops learning for this iteration; per dimension of the path"""
    critic_warmup: CountOrZero = 0
    """iterations in which only the critic learns"""

    def check_relations(self) -> None:
        """Raise RunError if settings do not fit each other."""
        self.require_order("noise_std_min", "noise_std_max")
        self.require_below("critic_warmup", "iterations")


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a policy that is served as an ODE, on its own steps; afterwards it has no noise net."""
    check_inputs(policy, env, SIGNAL, args, Args)
    rng = as_rng(rng, policy.device)
    run, execute, features = run or Run(), set_execution_horizon(policy), critic_features(policy, env)
    noise_range = args.noise_std_min, args.noise_std_max
    noisy, noise_injected = rng.init(with_noise_net, policy, features[1], *noise_range)
    env.discount(args.gamma)
    K = len(noisy.train_steps)
    act = training_actor(noisy, K, execute)
    if args.bc_weight > 0:
        policy.weights.snapshot("base")
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng, features=features)
    optimizer = adamw(noisy.parameters(), args.lr)
    check_optimizer_covers(optimizer, noise_injected)

    state = {"policy": policy, "noise": noise_injected.noise, "optimizer": optimizer, "baseline": baseline, "rng": rng}
    for iteration in run.loop(args.iterations, **state, env=env, statistics=statistics(policy)):
        # Collect with noise up to σ_max.
        schedule = args.noise_hold_fraction, args.noise_final_fraction
        noise_injected.max_std = max_noise_schedule(iteration / args.iterations, *noise_range, *schedule)
        rollout = env.collect(act, args.rollout_steps, rng)
        assert rollout.chain is not None
        chain, valid = mask_unexecuted(rollout.chain, rollout.executed_mask), rollout.valid.to(policy.device).flatten()

        # Estimate advantages, and the log-probabilities of the paths before the update.
        estimate = baseline.estimate(rollout)  # GAE over chunks
        advantage, index = estimate.advantages.flatten(), torch.nonzero(valid).flatten()
        with torch.no_grad():
            law, y = noisy.rescore(chain)
            old_log_prob = path_log_prob(law, y, K)
        if iteration == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain

        # Update flow, noise net and critic; the policy stops for this iteration where the KL is too large.
        metrics, policy_learns = MetricMeans(), iteration >= args.critic_warmup
        for i in minibatches(index, args.batch_size, args.epochs, rng, even=True):
            baseline.update(estimate, i)
            if policy_learns:
                steps = chain.steps_at((i[:, None] * K + torch.arange(K, device=i.device)).flatten())
                batch = steps, old_log_prob[i], normalise_minibatch(advantage[i])
                row = update_policy(policy, noisy, optimizer, *batch, args, rng)
                metrics.add(row or {})
                policy_learns = row is not None
        yield rollout_metrics(rollout, estimate) | metrics.mean()


def update_policy(
    policy: Policy,
    noisy: Policy,
    optimizer: Optimizer,
    steps: ChainSteps,
    old_log_prob: Tensor,
    advantage: Tensor,
    args: Args,
    rng: Rng | int,
) -> Metrics | None:
    """Take a gradient step on a minibatch; return its metrics, or None if the KL exceeds ``target_kl``.

    This is a function, so that a minibatch is freed before the next one runs.
    """
    K = len(noisy.train_steps)
    law, y = noisy.rescore(steps)
    assert isinstance(law, Gaussian)
    log_prob = path_log_prob(law, y, K)
    kl = float(approx_kl(log_prob.detach(), old_log_prob))
    if kl > args.target_kl:
        return None
    loss = ppo_clip(log_prob, old_log_prob, advantage, args.clip_range).mean()  # −min(ρ Â, clip(ρ, 1 ± ε) Â)
    loss = loss - args.entropy_coef * (law.entropy() / law.num_factors.clamp_min(1)).mean()  # − c H
    if args.bc_weight > 0:  # + b E‖a_θ(z) − a_base(z)‖²
        cond, mask = index_rows((steps.cond, steps.mask), slice(None, None, K))
        loss = loss + args.bc_weight * w2_bound(policy, cond, rng, mask).mean()
    row = {"loss/policy": optimizer_step(optimizer, loss, clip=1.0)["loss"], "ppo/approx_kl": kl}
    row["ppo/clip_fraction"] = float(clip_fraction(log_prob.detach(), old_log_prob, args.clip_range))
    return row | {"policy/noise_std": float(law.std.detach().mean())}


def with_noise_net(
    policy: Policy, obs_dim: int, std_min: float, std_max: float
) -> tuple[Policy, NoiseInjectedDenoiser]:
    """Return the policy with a noise net beside it, on its own training grid; the denoiser is shared, not copied."""
    if not isinstance(policy.process, Diffusion):
        raise InvalidInputError("ReinFlow improves flow and diffusion policies, Diffusion(): a Gaussian one needs ppo")
    if any(policy.eval_steps.dense):
        raise InvalidInputError(
            "ReinFlow trains the ODE of a policy, and this one is served with noise: "
            "eval_steps=process.steps(times, ddim(0.0)), or use dppo"
        )
    net = MLP(policy.event_shape, obs_dim, 64, 2, residual=False, activation="tanh", zero=True)  # layers of (64, 64)
    noise_injected = NoiseInjectedDenoiser(policy.denoiser, net.to(policy.device), std_min, std_max)
    steps = policy.process.steps(policy.train_steps.times, with_learned_std())
    return replace(policy, weights=Weights(noise_injected), train_steps=steps), noise_injected


def max_noise_schedule(
    progress: float, std_min: float, std_max: float, hold_fraction: float, final_fraction: float
) -> float:
    """Return σ_max after a fraction ``progress`` of training.

    It is held, then falls on a cosine to std_min + final_fraction (std_max − std_min).
    """
    if progress <= hold_fraction:
        return std_max
    fall = 0.5 - 0.5 * math.cos(math.pi * (progress - hold_fraction) / (1 - hold_fraction))
    return std_max - fall * (1 - final_fraction) * (std_max - std_min)


def path_log_prob(law: Distribution, y: Tensor, num_steps: int) -> Tensor:
    """Return the mean log-probability per executed number of each path of ``num_steps`` steps, [N]."""
    log_prob, size = (v.reshape(-1, num_steps).sum(-1) for v in (law.log_prob(y), law.num_factors))
    return log_prob / size.clamp_min(1)


def w2_bound(policy: Policy, cond: Tree, rng: Rng | int, mask: Tensor | int | None = None) -> Tensor:
    """Return ‖a_θ(z) − a_base(z)‖² per dimension of the executed actions, [B]; both ODEs run from the same z.

    ``mask``: the numbers [B, H, d] that were executed, or how many actions of each chunk (None: all).
    """
    rng = as_rng(rng, policy.device)
    assert isinstance(policy.process, Diffusion)
    ode = policy.process.steps(policy.train_steps.times, ddim(0.0))
    shape = (count_rows(cond), *policy.event_shape)
    z = policy.process.prior(shape, policy.device).sample(rng.normal(*shape))
    ends = []
    for name, grad in (("current", len(ode)), ("base", 0)):
        sample = make_sampler(policy.process, policy.weights.using(name), ode, policy.event_shape, grad, RecordSample())
        ends.append(sample(cond, rng, start=(z, 0)).sample)
    if mask is None or isinstance(mask, int):
        mask = (torch.arange(shape[1], device=z.device) < (mask or shape[1]))[:, None].expand(shape)
    size = mask.flatten(1).sum(-1).clamp_min(1)
    return ((ends[0] - ends[1]).square() * mask).flatten(1).sum(-1) / size


SIGNAL = "env"
START = "flow"
DEFAULT_TASK = "env"
