"""ReinFlow beside 2505.22094: a path's density under injected noise, one ratio per decision, entropy, the W₂ bound."""

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
from denoiserl.recipes.policy_gradient import reinflow
from tests.recipes.kit import Heard, Spy, Tape, adam, agree, answer, descend, experience, gae, moments, scaled
from tests.recipes.worlds import discounted, planned

pytestmark = pytest.mark.usefixtures("double")

H, D, DONE = 3, 2, 2
SCALE, CENTRE, LIMIT = torch.tensor([1.5, 0.8]), torch.tensor([0.9, 1.2]), 1.3
MEAN, STD = torch.tensor([0.2, -0.1]), torch.tensor([0.6, 0.9])
A = reinflow.Args(
    iterations=3, num_envs=3, rollout_steps=5, gamma=0.8, gae_lambda=0.7, noise_std_min=0.15, noise_std_max=0.6,
    noise_hold_fraction=0.3, noise_final_fraction=0.4, clip_range=0.02, entropy_coef=0.3, bc_weight=0.5, lr=0.01,
    value_lr=0.004, epochs=2, batch_size=5, target_kl=1e9,
)  # fmt: skip
CASES = {  # steps, clip of the estimate, settings
    "flow": (3, 1.1, A),
    "eps": (
        2,
        1.2,
        replace(A, iterations=2, bc_weight=0.0, lr=0.004, clip_range=0.003, target_kl=3e-4, batch_size=3),
    ),  # stops; DDIM
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
    n, clip, _ = CASES[kind]
    process = Diffusion(cosine if kind == "eps" else linear, ddim(0.0), clip)
    net = GaussianDenoiser(
        MLP((H, D), 2, 8, 2, 4, activation="tanh"), process.schedule, "eps" if kind == "eps" else "v"
    )
    train = process.steps(time_grid(n), with_min_std(ddim(1.0), 0.3))  # not what it learns with: that is its own noise
    return Policy.of(process, net, (H, D), train, process.steps(time_grid(5)), codec)


@pytest.mark.parametrize("kind", CASES)
def test_two_updates_are_those_of_the_paper(kind: str) -> None:
    n, clip, a = CASES[kind]
    made, env, rng = start(kind).with_execution_horizon(DONE), Heard(planned(), a.num_envs, 1), Tape(3)
    env.owner.on_fault = "restart"
    spy = Spy(rng)
    logged = list(reinflow.improve(made, env, a, rng, spy))

    net, phi, v = spy.start["policy"].denoiser, spy.start["noise"], spy.start["baseline.net"]
    base = start(kind).denoiser
    agree(net.state_dict(), base.state_dict(), 0.0)
    opt, value_opt = adam([*net.parameters(), *phi.parameters()], a.lr), adam(v.parameters(), a.value_lr)

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t: ᾱ = cos²((t + 0.008)/1.008 · π/2) over its value at 0, α at least 1e-4; or 1 − t and t."""
        if kind == "flow":
            return 1 - t, t
        angle = (t + 0.008) / 1.008 * math.pi / 2
        alpha = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).clamp(1e-4, 1)
        return alpha, (1 - alpha**2).clamp_min(0).sqrt()

    def ode(net: torch.nn.Module, x: Tensor, k: int, z: Tensor) -> Tensor:
        """x + v Δt from t = 1 − k/K to s = 1 − (k + 1)/K with a clamped estimate: α_s x̂₀ + σ_s ε̂."""
        t, s = torch.tensor(1 - k / n), torch.tensor(1 - (k + 1) / n)
        (a_t, s_t), (a_s, s_s) = levels(t), levels(s)
        out = answer(net.net, x, t, z)
        raw = (x - s_t * out) / a_t if kind == "eps" else x - t * out
        cut.append(float((raw.abs() > clip).double().mean()))
        if kind == "flow" and cut[-1] == 0:
            agree(x - (t - s) * out, a_s * raw + s_s * (x - a_t * raw) / s_t)  # the paper's Euler step
        x0 = raw.clamp(-clip, clip)
        return a_s * x0 + s_s * (x - a_t * x0) / s_t

    def std_of(x: Tensor, k: int, z: Tensor) -> Tensor:
        """σ_φ in [least, most]: log σ = log least + ½ (1 + tanh f) (log most − log least)."""
        f = answer(phi, x, 1 - k / n, z)
        return (math.log(a.noise_std_min) + 0.5 * (1 + f.tanh()) * (math.log(most) - math.log(a.noise_std_min))).exp()

    def path(chain: Tensor, z: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log π of a path over how many numbers it decided, the entropy of each, and all σ."""
        total, entropy, stds = torch.zeros(len(z)), torch.zeros(len(z)), []
        size = live.sum((1, 2)).clamp_min(1)
        for k in range(n):
            mean, std = ode(net, chain[:, k], k, z), std_of(chain[:, k], k, z)
            each = -0.5 * ((chain[:, k + 1] - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
            total = total + (each * live).sum((1, 2))
            entropy = entropy + ((std.log() + 0.5 * math.log(2 * math.pi * math.e)) * live).sum((1, 2)) / size / n
            stds.append(std.detach())
        return total / size / n, entropy, torch.stack(stds)

    cut: list[float] = []
    seen, past, low, high, ends, moved = torch.empty(0, 2), {}, 0, 0, [0, 0, 0], []
    for it in range(a.iterations):
        ep, share = env.episodes[it], it / a.iterations
        fall = (
            0.0
            if share <= a.noise_hold_fraction
            else (1 - math.cos(math.pi * (share - a.noise_hold_fraction) / (1 - a.noise_hold_fraction))) / 2
        )
        most = a.noise_std_max + fall * (
            a.noise_std_min + a.noise_final_fraction * (a.noise_std_max - a.noise_std_min) - a.noise_std_max
        )  # held, then on a cosine to its last
        agree(ep.reward, discounted(ep, a.gamma), where="rewards inside a chunk")
        conds = []
        for t in range(a.rollout_steps):
            seen = torch.cat([seen, ep.obs[t]])
            centre, scale = (seen.mean(0), (seen.var(0, correction=0) + 1e-8).sqrt()) if kind == "eps" else (MEAN, STD)
            conds.append(((ep.obs[t] - centre) / scale).clamp(-LIMIT, LIMIT))
            with torch.no_grad():
                x = levels(torch.ones(()))[1] * rng.take("normal", a.num_envs, H, D)
                for k, xi in enumerate(rng.take("normal", n, a.num_envs, H, D)):
                    agree(ep.chain.states[t, :, k], x, where=f"states before step {k}")
                    x = ode(net, x, k, conds[t]) + std_of(x, k, conds[t]) * xi
            agree(ep.chain.sample[t], x, where="decisions")
            agree(ep.action[t], CENTRE + SCALE * (x if kind == "eps" else x.clamp(-1, 1))[:, :DONE], where="actions")

        alive, cond, chain = ep.executed_mask.any(-1), torch.cat(conds), ep.chain.states.flatten(0, 1)
        live = torch.zeros(len(cond), H, D)
        live[:, :DONE] = ep.executed_mask.flatten(0, 1)[..., None].double()
        with torch.no_grad():
            old = path(chain, cond, live)[0]
            sees, then = (((o.flatten(0, 1) - centre) / scale).clamp(-LIMIT, LIMIT) for o in (ep.obs, ep.next_obs))
            now, after = v(sees).view(alive.shape), v(then).view(alive.shape)
            discount = a.gamma ** ep.num_executed.float() * (~ep.terminated).float()
            credit = gae(scaled(ep, a.gamma, past), discount, now, after, ep.done, a.gae_lambda)
            goal = (credit + now).flatten()

        index, rows, moves, total = alive.flatten().nonzero().flatten(), [], it >= a.critic_warmup, 0
        for _ in range(a.epochs):
            order = index[rng.take("permutation", len(index))]
            for i in order.tensor_split(max(1, len(index) // a.batch_size)):
                total += 1
                descend(value_opt, (0.5 * (v(sees[i]) - goal[i]) ** 2).mean(), 1.0)
                logp, entropy, std = path(chain[i], cond[i], live[i])
                log_rho = logp - old[i]
                rho = log_rho.exp()
                kl = (rho - 1 - log_rho).detach().mean()
                moves = moves and float(kl) <= a.target_kl
                if not moves:
                    continue
                adv = credit.flatten()[i]
                adv = (adv - adv.mean()) / adv.std(correction=0)
                loss = -torch.minimum(rho * adv, rho.clamp(1 - a.clip_range, 1 + a.clip_range) * adv).mean()
                loss = loss - a.entropy_coef * entropy.mean()
                if a.bc_weight:
                    z = levels(torch.ones(()))[1] * rng.take("normal", len(i), H, D)
                    ours, theirs = z, z
                    for k in range(n):
                        ours, theirs = ode(net, ours, k, cond[i]), ode(base, theirs, k, cond[i]).detach()
                    apart = ((ours - theirs) ** 2 * live[i]).sum((1, 2)) / live[i].sum((1, 2))
                    loss = loss + a.bc_weight * apart.mean()
                below, above = (rho < 1 - a.clip_range).double().mean(), (rho > 1 + a.clip_range).double().mean()
                low, high = low + float(below), high + float(above)
                rows.append([loss.detach(), kl, below + above, std.mean()])
                descend(opt, loss, 1.0)

        state = spy.states[it + 1]
        agree(state["policy"]["current"], net.state_dict(), where=f"flow after iteration {it}")
        # f begins at 0: Adam divides gradients of its inner layers by themselves, and with them their last digits
        agree(state["noise"], phi.state_dict(), 1e-3, where=f"noise net after iteration {it}")
        agree(state["baseline.net"], v.state_dict(), where=f"critic after iteration {it}")
        row = experience(ep, credit)
        if rows:
            row |= dict(
                zip(
                    ("loss/policy", "ppo/approx_kl", "ppo/clip_fraction", "policy/noise_std"),
                    torch.tensor(rows).mean(0),
                    strict=True,
                )
            )
        agree(logged[it], row, 1e-4, where=f"row {it}")  # terms of the loss cancel
        kinds = (ep.terminated, ep.done & alive & ~ep.terminated, ~alive)
        ends = [m + int(found.sum()) for m, found in zip(ends, kinds, strict=True)]
        moved.append(len(rows) / total)

    agree(moments(spy.named["optimizer"]), moments(opt), 1e-4, where="moments of flow and noise")
    agree(moments(spy.named["baseline.optimizer"]), moments(value_opt), where="moments of the critic")
    assert min(ends) > 0, "true ends, time limits and lost decisions were in the batches"
    assert low > 0 and high > 0, "the clip was met on both sides"
    assert any(0 < share < 1 for share in cut), "some estimates were cut"
    assert moved == [1.0, 1.0, 1.0] if kind == "flow" else any(0 < share < 1 for share in moved)
