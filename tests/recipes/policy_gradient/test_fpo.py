"""FPO beside 2507.21053: the ratio exp(ℓ_old − ℓ_θ) of pairs that are kept, its clip, and PPO of one step as a case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.data import ActionChunkCodec, Normalizer, RunningNormCodec
from denoiserl.nn import MLP
from denoiserl.policy.likelihood import renoise
from denoiserl.policy.policy import Policy
from denoiserl.processes import (
    Diffusion,
    GaussianDenoiser,
    GaussianHead,
    OneStep,
    cosine,
    ddim,
    linear,
    time_grid,
    with_min_std,
)
from denoiserl.recipes.policy_gradient import fpo
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, experience, gae, moments, scaled
from tests.recipes.worlds import discounted, planned

pytestmark = pytest.mark.usefixtures("double")

H, D, DONE = 3, 2, 2
SCALE, CENTRE, LIMIT = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2]), 1.3
MEAN, STD = torch.tensor([0.2, -0.1]), torch.tensor([0.6, 0.9])
A = fpo.Args(
    iterations=3, num_envs=4, rollout_steps=5, gamma=0.8, gae_lambda=0.7, num_noise_samples=3, clip_range=0.05, lr=0.01,
    value_lr=0.004, epochs=2, batch_size=5, critic_warmup=1,
)  # fmt: skip
CASES = {
    "flow": A,  # mean (ε̂ − ε)², one ratio per decision, acted by the ODE
    "eps": replace(
        A, loss_weight="velocity", ratio_per="each", rollout_sampler="train", critic_warmup=0
    ),  # 1/σ² (x̂₀ − a)², one per pair, DDPM
    "one_step": replace(A, rollout_sampler="train", critic_warmup=0, clip_range=0.2),
}


def start(kind: str) -> Policy:
    torch.manual_seed(4)
    seen, acts = (
        replace(Normalizer.identity(2), centre=centre, scale=scale) for centre, scale in ((MEAN, STD), (CENTRE, SCALE))
    )
    codec = (
        RunningNormCodec.without_statistics(2, SCALE, LIMIT, CENTRE)
        if kind == "eps"
        else ActionChunkCodec(seen, acts, LIMIT)
    )
    if kind == "one_step":
        one = OneStep()
        net = GaussianHead(MLP((H, D), 2, 8, 2, 0, False, activation="tanh"), D, 0.7, 0.2)
        return Policy.of(one, net, (H, D), one.steps(time_grid(1)), one.steps(time_grid(1), std_scale=0.0), codec)
    if kind == "eps":
        process = Diffusion(cosine, with_min_std(ddim(1.0), 0.3), 1.2)
        train, serve = process.steps(time_grid(3)), process.steps(time_grid(2), ddim(0.0))
    else:
        process = Diffusion(linear, ddim(0.0), 0.9)
        train, serve = process.steps(time_grid(2), with_min_std(ddim(1.0), 0.3)), process.steps(time_grid(3), ddim(0.0))
    net = GaussianDenoiser(
        MLP((H, D), 2, 8, 2, 4, activation="tanh"), process.schedule, "eps" if kind == "eps" else "v"
    )
    return Policy.of(process, net, (H, D), train, serve, codec)


@pytest.mark.parametrize("kind", CASES)
def test_two_updates_are_those_of_the_paper(kind: str) -> None:
    a = CASES[kind]
    made, env, rng = start(kind).with_execution_horizon(DONE), Heard(planned(), a.num_envs, 1), Tape(3)
    env.owner.on_fault = "restart"
    spy = Spy(rng)
    logged = list(fpo.improve(made, env, a, rng, spy))
    net, v = spy.start["policy"].denoiser, spy.start["baseline.net"]
    opt, value_opt = adam(net.parameters(), a.lr), adam(v.parameters(), a.value_lr)

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t: ᾱ = cos²((t + 0.008)/1.008 · π/2) over its value at 0, α at least 1e-4; or 1 − t and t."""
        if kind == "flow":
            return 1 - t, t
        angle = (t + 0.008) / 1.008 * math.pi / 2
        alpha = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).clamp(1e-4, 1)
        return alpha, (1 - alpha**2).clamp_min(0).sqrt()

    def sigma() -> Tensor:
        return (0.2**2 + (2 * net.log_std).exp()).sqrt()

    def drawn(z: Tensor) -> Tensor:
        """A chunk: μ + σ ξ; or three steps of the ODE; or three of DDPM, whose std is at least 0.3."""
        if kind == "one_step":
            return answer(net.net, torch.zeros(len(z), H, D), 1.0, z) + sigma() * rng.take("normal", 1, len(z), H, D)[0]
        x, noise = rng.take("normal", len(z), H, D), rng.take("normal", 3, len(z), H, D)
        for k in range(3):
            t, s = torch.tensor(1 - k / 3), torch.tensor(1 - (k + 1) / 3)
            (a_t, s_t), (a_s, s_s) = levels(t), levels(s)
            out = answer(net.net, x, t, z)
            x0 = ((x - s_t * out) / a_t).clamp(-1.2, 1.2) if kind == "eps" else (x - s_t * out).clamp(-0.9, 0.9)
            std = s_s * (1 - (s_s * a_t / (a_s * s_t)) ** 2).clamp_min(0).sqrt() if kind == "eps" else torch.zeros(())
            x = a_s * x0 + (s_s**2 - std**2).sqrt() * (x - a_t * x0) / s_t
            x = x + std.clamp_min(0.3) * noise[k] if kind == "eps" else x
        return x

    def losses(action: Tensor, noise: Tensor, t: Tensor, z: Tensor, live: Tensor) -> Tensor:
        """ℓ of every pair, [N, n]: −log π(a | s), or a mean over the executed numbers of (ε̂ − ε)² or (x̂₀ − a)²/σ²."""
        if kind == "one_step":
            mu = answer(net.net, torch.zeros(len(z), H, D), 1.0, z)
            each = 0.5 * ((action - mu) / sigma()) ** 2 + sigma().log() + 0.5 * math.log(2 * math.pi)
            return (each * live).sum((1, 2))[:, None].expand(-1, a.num_noise_samples)
        alpha, std = (c[..., None, None] for c in levels(t))
        x = alpha * action[:, None] + std * noise
        out = answer(net.net, x.flatten(0, 1), t.flatten(), z.repeat_interleave(a.num_noise_samples, 0)).view(x.shape)
        if kind == "flow":  # x̂₀ = x − t v̂ and ε̂ = x + (1 − t) v̂
            error = (x + alpha * out - noise) ** 2
        else:
            error = ((x - std * out) / alpha - action[:, None]) ** 2 / std**2
        return (error * live[:, None]).sum((2, 3)) / live.sum((1, 2))[:, None]

    seen, past, low, high, ends, far = torch.empty(0, 2), {}, 0, 0, [0, 0, 0], []
    for it in range(a.iterations):
        ep = env.episodes[it]
        agree(ep.reward, discounted(ep, a.gamma), where="rewards inside a chunk")
        conds = []
        for t in range(a.rollout_steps):
            seen = torch.cat([seen, ep.obs[t]])
            centre, scale = (seen.mean(0), (seen.var(0, correction=0) + 1e-8).sqrt()) if kind == "eps" else (MEAN, STD)
            conds.append(((ep.obs[t] - centre) / scale).clamp(-LIMIT, LIMIT))
            with torch.no_grad():
                x = drawn(conds[t])
            agree(ep.chain.sample[t], x, where="decisions")
            actions = CENTRE + SCALE * (x if kind == "eps" else x.clamp(-1, 1))
            agree(ep.action[t], actions[:, :DONE], where="actions")
        alive = ep.executed_mask.any(-1)
        with torch.no_grad():
            sees, then = (((o.flatten(0, 1) - centre) / scale).clamp(-LIMIT, LIMIT) for o in (ep.obs, ep.next_obs))
            now, after = v(sees).view(alive.shape), v(then).view(alive.shape)
            discount = a.gamma ** ep.num_executed.float() * (~ep.terminated).float()
            credit = gae(scaled(ep, a.gamma, past), discount, now, after, ep.done, a.gae_lambda)

        index = alive.flatten().nonzero().flatten()
        action, z, n = ep.chain.sample.flatten(0, 1)[index], torch.cat(conds)[index], len(index)
        live = torch.zeros(n, H, D)
        live[:, :DONE] = ep.executed_mask.flatten(0, 1)[index][..., None].double()
        sees, goal, adv_of = sees[index], (credit + now).flatten()[index], credit.flatten()[index]
        noise, t = torch.zeros(n, a.num_noise_samples, H, D), torch.ones(n, a.num_noise_samples)
        if kind != "one_step":  # a time in each of n strata, in an order of each decision's own; drawn once
            u = (torch.arange(a.num_noise_samples) + rng.take("uniform", n, a.num_noise_samples)) / a.num_noise_samples
            t = u.gather(1, rng.take("uniform", n, a.num_noise_samples).argsort(1)).clamp(1e-6, 1 - 1e-6)
            noise = rng.take("normal", n, a.num_noise_samples, H, D)
        with torch.no_grad():
            old = losses(action, noise, t, z, live)

        rows = []
        for _ in range(a.epochs):
            for i in rng.take("permutation", n).tensor_split(max(1, n // a.batch_size)):
                descend(value_opt, (0.5 * (v(sees[i]) - goal[i]) ** 2).mean(), 1.0)
                if it < a.critic_warmup:
                    continue
                gap = old[i] - losses(action[i], noise[i], t[i], z[i], live[i])
                far += [(gap < -3).any(), (gap > 3).any()]
                log_rho = gap.clamp(-3, 3)
                if a.ratio_per == "mean":
                    log_rho = log_rho.mean(1, keepdim=True)
                rho = log_rho.exp()
                adv = ((adv_of[i] - adv_of[i].mean()) / adv_of[i].std(correction=0))[:, None]
                loss = -torch.minimum(rho * adv, rho.clamp(1 - a.clip_range, 1 + a.clip_range) * adv).mean()
                below, above = (rho < 1 - a.clip_range).double().mean(), (rho > 1 + a.clip_range).double().mean()
                low, high = low + float(below), high + float(above)
                rows.append([loss.detach(), log_rho.detach().abs().mean(), below + above])
                descend(opt, loss, 1.0)

        state = spy.states[it + 1]
        agree(state["policy"]["current"], net.state_dict(), where=f"policy after iteration {it}")
        agree(state["baseline.net"], v.state_dict(), where=f"critic after iteration {it}")
        row = experience(ep, credit)
        if rows:
            row |= dict(
                zip(("loss/policy", "ppo/abs_log_ratio", "ppo/clip_fraction"), torch.tensor(rows).mean(0), strict=True)
            )
        agree(logged[it], row, 1e-4, where=f"row {it}")  # terms of the loss cancel
        kinds = (ep.terminated, ep.done & alive & ~ep.terminated, ~alive)
        ends = [m + int(found.sum()) for m, found in zip(ends, kinds, strict=True)]

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments of the actor")
    agree(moments(spy.named["baseline.optimizer"]), moments(value_opt), where="moments of the critic")
    assert min(ends) > 0, "true ends, time limits and lost decisions were in the batches"
    assert low > 0 and high > 0, "the clip was met on both sides"
    assert kind != "eps" or (any(far[::2]) and any(far[1::2])), "so was the largest difference of two losses"


def test_a_pair_that_is_far_off_counts_three_in_the_mean() -> None:
    """ℓ_old − ℓ of (5, −1, 0) and (−9, 1, 2) have the log ratios (3 − 1 + 0)/3 = ⅔ and (−3 + 1 + 2)/3 = 0."""
    a, policy, gaps = (
        replace(A, clip_range=0.05),
        start("flow").with_execution_horizon(DONE),
        torch.tensor([[5.0, -1.0, 0.0], [-9.0, 1.0, 2.0]]),
    )
    process = fpo.with_loss_weight(policy.process, "noise")
    pairs = renoise(process, torch.randn(2, H, D), 3, Tape(3), uniform=True)
    cond, opt = torch.randn(2, 2), adam(policy.parameters(), 0.0)
    now = fpo.losses(policy, process, pairs, cond)
    slopes = [torch.autograd.grad(now[1, i], list(policy.parameters()), retain_graph=True) for i in (1, 2)]

    advantage = torch.tensor([2.0, -1.0])
    row = fpo.update_policy(policy, process, opt, pairs, cond, now.detach() + gaps, advantage, a, check=False)
    agree(row, {"loss/policy": (-1.05 * 2.0 + 1.0) / 2, "ppo/abs_log_ratio": 1 / 3, "ppo/clip_fraction": 0.5})
    # the first ratio is clipped, the second is 1 and its first loss is too far to count
    slope = [-(g1 + g2) / 6 for g1, g2 in zip(*slopes, strict=True)]
    norm = sum(float(g.square().sum()) for g in slope) ** 0.5
    agree(moments(opt)[::2], [0.1 * g / max(1.0, norm) for g in slope], 1e-4)
