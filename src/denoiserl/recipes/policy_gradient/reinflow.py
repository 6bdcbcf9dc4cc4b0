"""ReinFlow: PPO on a flow policy of few steps, through a learned noise that is thrown away afterwards.

paper: arXiv 2505.22094
signal: env
family: path policy gradient
side: B
base: diffusion
task: policy learning
stage: fine-tuning
output: actions
process: flow, diffusion
likelihood: replay

A flow is deterministic, so its steps have no density. While it learns, a small network beside it adds noise to every
step, and the step becomes a Gaussian:

    x_{k+1} ~ N(x_k + v_θ(x_k, t_k, s) Δt, σ_φ(x_k, t_k, s)²),   σ_φ in [least, most]

θ and φ learn together from *one* clipped ratio a decision, that of the whole path: log π is the sum over steps and
dimensions of the executed actions, divided by how many there are (so ρ is a geometric mean, and ``clip_range`` is
small). The first state is drawn from N(0, 1) whatever θ is, and cancels in ρ. With Â from GAE over chunks,

    L = mean over decisions of −min(ρ Â, clip(ρ, 1 ± ε) Â) − c H + b E_z‖a_θ(z) − a_base(z)‖²

H is the entropy a dimension of a step; the last term (``bc_weight``, off by default) is a bound on the squared W₂
distance from the policy that it started from, both run as ODEs from the same noise z. As published: ``noise_std_max``
is held for the first 35 % of the iterations and then falls by a cosine to least + 0.7 (most − least); one optimiser for
θ and φ; the noise net is not saved and the policy is served as an ODE. Differences: one grid for drawing and scoring,
from t = 1 in equal steps (released versions have drawn at times that include the data's end, and scored at others); the
estimate is clamped where the process says so, and not the state after a step; draws are not cut at three std, nor
log-probs clamped to a range (a clamp passes no gradient); σ may depend on x_k, as in the paper; z is drawn anew (the
released code takes z = 0); what an episode's end left of a chunk has no part in ρ, H and the distance; the critic
learns on where the actor has stopped.

With one step, only the injected noise explores around a draw of z, and that is enough. One ratio a path averages more
numbers than DPPO's, one a step: the same ``clip_range`` lets the law move further.

Expect, on the fork2d of the claim ``reinflow`` (``rollout_steps=12``, one seed), a flow cloned to a success of 0.36 to
be at 0.60, 0.75 and 0.87 after 8, 16 and 24 iterations, served as an ODE; DPPO on the same flow is at 0.50 after 24.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from denoiserl.control.value_baseline import ValueBaseline, critic_features
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.settings import Count, CountOrZero, Fraction, NonNegative, Positive, Settings
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
    noise_std_min: NonNegative = 0.1
    """smallest std of the injected noise"""
    noise_std_max: Positive = 0.24
    """largest std of the injected noise"""
    noise_hold_fraction: Fraction = 0.35
    """fraction of the iterations in which the noise ceiling stays at noise_std_max"""
    noise_final_fraction: Fraction = 0.7
    """final noise ceiling, as a fraction of the range from noise_std_min to noise_std_max"""
    clip_range: Positive = 0.01
    """range ε of the ratio, clipped to 1 ± ε; of the geometric mean over a decision's path"""
    entropy_coef: NonNegative = 0.03
    """weight of the entropy bonus; per dimension"""
    bc_weight: NonNegative = 0.0
    """weight of the imitation loss; the distance to the starting policy; 0 needs no pass of it"""
    lr: NonNegative = 3e-4
    """learning rate; of flow and noise"""
    value_lr: NonNegative = 1e-3
    """learning rate of the value function"""
    epochs: Count = 5
    """passes over the data of an iteration; at most, see target_kl"""
    batch_size: Count = 220
    """items per gradient step; decisions"""
    target_kl: Positive = 1.0
    """approximate KL of a minibatch at which the policy stops learning for this iteration; per dimension of the path"""
    critic_warmup: CountOrZero = 0
    """iterations in which only the critic learns"""


def improve(policy: Policy, env: Collector, args: Args, rng: Rng | int, run: Run | None = None) -> Iterator[Metrics]:
    """Improve a policy that is served as an ODE; it gets no noise net, and no step more."""
    rng = as_rng(rng, policy.device)
    run, execute, obs_size = run or Run(), carry(policy), critic_features(policy, env)[1]
    noisy, explorer = rng.init(with_noise_net, policy, obs_size, args.noise_std_min, args.noise_std_max)
    env.discount(args.gamma)
    k = len(noisy.train_steps)
    act = training_actor(noisy, k, execute)
    if args.bc_weight > 0:
        policy.weights.snapshot("base")
    baseline = ValueBaseline(policy, env, args.value_lr, args.gamma, args.gae_lambda, rng)
    optimizer = adamw(noisy.parameters(), args.lr)
    check_optimizer_covers(optimizer, explorer)
    state = {"policy": policy, "noise": explorer.noise, "optimizer": optimizer, "baseline": baseline}
    for it in run.loop(args.iterations, **state, rng=rng, env=env, seen=statistics(policy)):
        explorer.most = max_noise_schedule(
            it / args.iterations,
            args.noise_std_min,
            args.noise_std_max,
            args.noise_hold_fraction,
            args.noise_final_fraction,
        )
        ep = env.collect(act, args.rollout_steps, rng)
        assert ep.chain is not None
        chain, alive = mask_unexecuted(ep.chain, ep.executed_mask), ep.valid.to(policy.device).flatten()
        estimate = baseline.estimate(ep)
        advantage, index = estimate.advantages.flatten(), torch.nonzero(alive).flatten()
        with torch.no_grad():
            law, y = noisy.rescore(chain)
            old = path_log_prob(law, y, k)
        if it == 0:
            on_policy(law, y, chain)
        del law, y  # as large as the chain
        metrics, learns = MetricMeans(), it >= args.critic_warmup
        for i in minibatches(index, args.batch_size, args.epochs, rng, even=True):
            baseline.update(estimate, i)
            if learns:
                rows = chain.steps_at((i[:, None] * k + torch.arange(k, device=i.device)).flatten())
                row = update_policy(policy, noisy, optimizer, rows, old[i], standard(advantage[i]), args, rng)
                metrics.add(row or {})
                learns = row is not None
        yield rollout_metrics(ep, estimate) | metrics.mean()


def update_policy(
    policy: Policy,
    noisy: Policy,
    optimizer: Optimizer,
    rows: ChainSteps,
    old: Tensor,
    advantage: Tensor,
    args: Args,
    rng: Rng,
) -> dict[str, float] | None:
    """Step on a minibatch; return its loss, KL, clipped share and std, or None where the KL passes ``target_kl``.

    A function, so that nothing of a minibatch is in memory when the next one runs.
    """
    k = len(noisy.train_steps)
    law, y = noisy.rescore(rows)
    assert isinstance(law, Gaussian)
    logp = path_log_prob(law, y, k)
    kl = float(approx_kl(logp.detach(), old))
    if kl > args.target_kl:
        return None
    loss = ppo_clip(logp, old, advantage, args.clip_range).mean()
    loss = loss - args.entropy_coef * (law.entropy() / law.num_factors.clamp_min(1)).mean()
    if args.bc_weight > 0:
        cond, live = index_rows((rows.cond, rows.mask), slice(None, None, k))
        loss = loss + args.bc_weight * w2_bound(policy, cond, rng, live).mean()
    row = {"loss/policy": optimizer_step(optimizer, loss, clip=1.0)["loss"], "ppo/approx_kl": kl}
    row["ppo/clip_fraction"] = float(clip_fraction(logp.detach(), old, args.clip_range))
    return row | {"policy/noise_std": float(law.std.detach().mean())}


def with_noise_net(policy: Policy, obs: int, least: float, most: float) -> tuple[Policy, NoiseInjectedDenoiser]:
    """The policy with a noise net beside it, on its own training grid; the denoiser is shared and not copied."""
    if not isinstance(policy.process, Diffusion):
        raise InvalidInputError("ReinFlow improves flow and diffusion policies, Diffusion(): a Gaussian one needs ppo")
    if any(policy.eval_steps.dense):
        raise InvalidInputError(
            "ReinFlow trains the ODE of a policy, and this one is served with noise: "
            "serve=process.steps(times, ddim(0.0)), or use dppo"
        )
    net = MLP(policy.event_shape, obs, 64, 2, residual=False, activation="tanh", zero=True)  # a perceptron of (64, 64)
    explorer = NoiseInjectedDenoiser(policy.denoiser, net.to(policy.device), least, most)
    steps = policy.process.steps(policy.train_steps.times, with_learned_std())
    return replace(policy, weights=Weights(explorer), train_steps=steps), explorer


def max_noise_schedule(done: float, least: float, most: float, hold: float, last: float) -> float:
    """The largest std after a share ``done`` of learning: held, then on a cosine to least + last (most − least)."""
    fallen = 0.0 if done <= hold else 0.5 - 0.5 * math.cos(math.pi * (done - hold) / (1 - hold))
    return most - fallen * (1 - last) * (most - least)


def path_log_prob(law: Distribution, y: Tensor, k: int) -> Tensor:
    """Return the log-probability of each path of ``k`` steps over the numbers that it decided, [N]."""
    logp, size = (v.reshape(-1, k).sum(-1) for v in (law.log_prob(y), law.num_factors))
    return logp / size.clamp_min(1)


def w2_bound(policy: Policy, cond: Tree, rng: Rng | int, live: Tensor | int | None = None) -> Tensor:
    """Return ‖a_θ(z) − a_base(z)‖² a dimension of the executed actions, [B]: both ODEs run from the same z.

    ``live``: the numbers [B, H, d] that were executed, or how many actions of each chunk (None: all).
    """
    rng = as_rng(rng, policy.device)
    assert isinstance(policy.process, Diffusion)
    ode = policy.process.steps(policy.train_steps.times, ddim(0.0))
    shape = (count_rows(cond), *policy.event_shape)
    z = policy.process.prior(shape, policy.device).sample(rng.normal(*shape))
    ends = []
    for name, grad in (("current", len(ode)), ("base", 0)):
        draw = make_sampler(policy.process, policy.weights.using(name), ode, policy.event_shape, grad, RecordSample())
        ends.append(draw(cond, rng, start=(z, 0)).sample)
    if live is None or isinstance(live, int):
        live = (torch.arange(shape[1], device=z.device) < (live or shape[1]))[:, None].expand(shape)
    size = live.flatten(1).sum(-1).clamp_min(1)
    return ((ends[0] - ends[1]).square() * live).flatten(1).sum(-1) / size


SIGNAL = "env"
START = "flow"
DEFAULT_TASK = "env"
