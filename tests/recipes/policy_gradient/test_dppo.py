"""DPPO beside 2409.00588, section 4: the steps of a chain as decisions, each with its own discount and clip."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.data import ActionChunkCodec, Normalizer, RunningNormCodec
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, cosine, ddim, linear, time_grid, with_min_std
from denoiserl.recipes.policy_gradient import dppo
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, experience, gae, moments, scaled
from tests.recipes.worlds import discounted, planned

pytestmark = pytest.mark.usefixtures("double")

H, D, DONE = 3, 2, 2
SCALE, CENTRE, LIMIT = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2]), 1.3
A = dppo.Args(
    iterations=3,
    num_envs=4,
    rollout_steps=5,
    gamma=0.8,
    gae_lambda=0.7,
    denoising_discount=0.6,
    lr=0.01,
    value_lr=0.004,
    epochs=2,
    batch_size=9,
)
EPS = {  # DDPM on a squared cosine; only the last three of five steps learn, after an iteration for the critic alone
    "steps": 5, "eta": 1.0, "floor": 0.3, "clip": 1.2,
    "args": replace(
        A, finetune_denoising_steps=3, clip_range=0.04, clip_range_noisiest=0.01, clip_range_rate=2.0, critic_warmup=1,
        target_kl=1e9,
    ),
}  # fmt: skip
FLOW = {  # a flow whose three steps learn, until the KL of an iteration is too large; one clip for all
    "steps": 3, "eta": 0.6, "floor": 0.25, "clip": 0.9,
    "args": replace(A, clip_range=0.01, clip_range_noisiest=0.01, target_kl=1e-3),
}  # fmt: skip


def start(case: dict) -> Policy:
    torch.manual_seed(4)
    schedule, predicts = (cosine, "eps") if case is EPS else (linear, "v")
    process = Diffusion(schedule, with_min_std(ddim(case["eta"]), case["floor"]), case["clip"])
    seen = replace(Normalizer.identity(2), centre=torch.tensor([0.2, -0.1]), scale=torch.tensor([0.6, 0.9]))
    acts = replace(Normalizer.identity(2), centre=CENTRE, scale=SCALE)
    codec = (
        RunningNormCodec.without_statistics(2, SCALE, LIMIT, CENTRE)
        if case is EPS
        else ActionChunkCodec(seen, acts, LIMIT)
    )
    net = GaussianDenoiser(MLP((H, D), 2, 8, 2, 4, activation="tanh"), schedule, predicts)
    return Policy.of(
        process, net, (H, D), process.steps(time_grid(case["steps"])), process.steps(time_grid(2), ddim(0)), codec
    )


@pytest.mark.parametrize("case", [EPS, FLOW], ids=["eps", "flow"])
def test_two_updates_are_those_of_the_paper(case: dict) -> None:
    a, n = case["args"], case["steps"]
    made, env, rng = start(case).with_execution_horizon(DONE), Heard(planned(), case["args"].num_envs, 1), Tape(3)
    env.owner.on_fault = "restart"
    spy = Spy(rng)
    logged = list(dppo.improve(made, env, a, rng, spy))

    policy, v, tuned = spy.start["policy"], spy.start["baseline.net"], a.finetune_denoising_steps or n
    first, last = (policy.denoiser.first, policy.denoiser.last) if tuned < n else (None, policy.denoiser)
    if first is not None:
        agree(first.state_dict(), last.state_dict(), 0.0)  # both begin as the policy that was given
    frozen = {k: w.clone() for k, w in first.state_dict().items()} if first is not None else {}
    opt, value_opt = adam(last.parameters(), a.lr), adam(v.parameters(), a.value_lr)

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t: ᾱ = cos²((t + 0.008)/1.008 · π/2) over its value at 0, α at least 1e-4; or 1 − t and t."""
        if case is FLOW:
            return 1 - t, t
        angle = (t + 0.008) / 1.008 * math.pi / 2
        alpha = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).clamp(1e-4, 1)
        return alpha, (1 - alpha**2).clamp_min(0).sqrt()

    def law(net: torch.nn.Module, x: Tensor, k: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and std of step k from t = 1 − k/K to s = 1 − (k + 1)/K, and how far the estimate was."""
        t, s = 1 - k.double() / n, 1 - (k.double() + 1) / n
        (a_t, s_t), (a_s, s_s) = ((c.view(-1, 1, 1) for c in levels(time)) for time in (t, s))
        out = answer(net.net, x, t, z)
        raw = (x - s_t * out) / a_t if case is EPS else x - s_t * out
        x0 = raw.clamp(-case["clip"], case["clip"])
        std = case["eta"] * s_s * (1 - (s_s * a_t / (a_s * s_t)) ** 2).clamp_min(0).sqrt()
        mean = a_s * x0 + (s_s**2 - std**2).clamp_min(0).sqrt() * (x - a_t * x0) / s_t
        return mean, std.clamp_min(case["floor"]), raw

    def log_density(x: Tensor, y: Tensor, k: Tensor, z: Tensor, live: Tensor) -> Tensor:
        """log π(x_{k−1} | x_k, s) of the executed actions, over how many numbers they are."""
        mean, std, _ = law(last, x, k, z)
        each = -0.5 * ((y - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        return (each * live).sum((1, 2)) / live.sum((1, 2)).clamp_min(1)

    def standard(obs: Tensor, seen: Tensor) -> Tensor:
        """What the networks see: standardised by what was seen so far, or by the normaliser; clipped."""
        centre, scale = seen.mean(0), (seen.var(0, correction=0) + 1e-8).sqrt()
        if case is FLOW:
            centre, scale = torch.tensor([0.2, -0.1]), torch.tensor([0.6, 0.9])
        return ((obs - centre) / scale).clamp(-LIMIT, LIMIT)

    seen, past, low, high, ends, moved, cut = torch.empty(0, 2), {}, 0, 0, [0, 0, 0], [], []
    for it in range(a.iterations):
        ep = env.episodes[it]
        agree(ep.reward, discounted(ep, a.gamma), where="rewards inside a chunk")
        conds = []
        for t in range(a.rollout_steps):
            seen = torch.cat([seen, ep.obs[t]])
            conds.append(standard(ep.obs[t], seen))
            with torch.no_grad():
                x = levels(torch.ones(()))[1] * rng.take("normal", a.num_envs, H, D)
                noise = [*rng.take("normal", n - tuned, a.num_envs, H, D)] if tuned < n else []
                for k, xi in enumerate([*noise, *rng.take("normal", tuned, a.num_envs, H, D)]):
                    if k >= n - tuned:
                        agree(ep.chain.states[t, :, k - (n - tuned)], x, where=f"states before step {k}")
                    net = first if k < n - tuned else last
                    mean, std, raw = law(net, x, torch.full((a.num_envs,), k), conds[t])
                    x = mean + std * xi
                    cut += [float((raw.abs() > case["clip"]).double().mean())] * (k >= n - tuned)
            agree(ep.chain.sample[t], x, where="decisions")
            agree(ep.action[t], CENTRE + SCALE * (x if case is EPS else x.clamp(-1, 1))[:, :DONE], where="actions")

        alive, cond, chain = ep.executed_mask.any(-1), torch.cat(conds), ep.chain.states.flatten(0, 1)
        live = torch.zeros(len(cond), H, D)
        live[:, :DONE] = ep.executed_mask.flatten(0, 1)[..., None].double()
        owner = torch.arange(len(cond)).repeat_interleave(tuned)  # a row is a decision and one of its last steps
        step = torch.arange(tuned).repeat(len(cond))
        before, after = chain[owner, step], chain[owner, step + 1]
        with torch.no_grad():
            old = log_density(before, after, n - tuned + step, cond[owner], live[owner])
            sees, then = (standard(o.flatten(0, 1), seen) for o in (ep.obs, ep.next_obs))
            now, next_value = v(sees).view(alive.shape), v(then).view(alive.shape)
            discount = a.gamma ** ep.num_executed.float() * (~ep.terminated).float()
            credit = gae(scaled(ep, a.gamma, past), discount, now, next_value, ep.done, a.gae_lambda)
            goal = (credit + now).flatten()
            unit = (credit - credit[alive].mean()) / credit[alive].std(correction=0)
            share = unit.flatten()[owner] * a.denoising_discount ** (tuned - 1 - step).double()
            place = step / (tuned - 1)  # 0 at the noisiest step that learns, 1 at the cleanest
            grown = (torch.exp(a.clip_range_rate * place) - 1) / (math.exp(a.clip_range_rate) - 1)
            eps = a.clip_range_noisiest + (a.clip_range - a.clip_range_noisiest) * grown

        index, rows, moves, done, total = alive.flatten()[owner].nonzero().flatten(), [], it >= a.critic_warmup, 0, 0
        for _ in range(a.epochs):
            for i in index[rng.take("permutation", len(index))].split(a.batch_size):
                descend(value_opt, (0.5 * (v(sees[owner[i]]) - goal[owner[i]]) ** 2).mean(), 1.0)
                log_rho = log_density(before[i], after[i], n - tuned + step[i], cond[owner[i]], live[owner[i]]) - old[i]
                rho, e = log_rho.exp(), eps[i]
                kl = (rho - 1 - log_rho).detach().mean()
                moves, total = moves and float(kl) <= a.target_kl, total + 1
                done += moves
                if not moves:
                    continue
                loss = -torch.minimum(rho * share[i], torch.clamp(rho, 1 - e, 1 + e) * share[i]).mean()
                low, high = low + int((rho < 1 - e).sum()), high + int((rho > 1 + e).sum())
                rows.append([loss.detach(), kl, ((rho - 1).abs() > e).double().mean()])
                descend(opt, loss, 1.0)

        state = spy.states[it + 1]
        agree(state["policy"], policy.state_dict(), where=f"policy after iteration {it}")
        agree(state["baseline.net"], v.state_dict(), where=f"critic after iteration {it}")
        row = experience(ep, credit)
        if rows:
            loss, kl, clipped = torch.tensor(rows).mean(0)
            row |= {"loss/policy": loss, "ppo/approx_kl": kl, "ppo/clip_fraction": clipped}
        agree(logged[it], row, 1e-4, where=f"row {it}")  # terms of the loss cancel
        kinds = (ep.terminated, ep.done & alive & ~ep.terminated, ~alive)
        ends = [m + int(kind.sum()) for m, kind in zip(ends, kinds, strict=True)]
        moved.append(done / total)

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments of the actor")
    agree(moments(spy.named["baseline.optimizer"]), moments(value_opt), where="moments of the critic")
    if first is not None:
        agree(made.denoiser.first.state_dict(), frozen, 0.0)
    assert min(ends) > 0, "true ends, time limits and lost decisions were in the batches"
    assert low > 0 and high > 0, "the clip was met on both sides"
    assert 0 < sum(cut) / len(cut) < 1, "some estimates were cut"
    assert moved == [0.0, 1.0, 1.0] if a.critic_warmup else any(0 < share < 1 for share in moved)
