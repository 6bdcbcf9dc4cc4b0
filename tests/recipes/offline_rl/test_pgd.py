"""PGD beside 2404.06356, algorithm 1: windows, EDM (2206.00364), guided draws, made rows, shares, two learners."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.trajectories import Model
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep, time_grid
from denoiserl.recipes.offline_rl import pgd
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments

pytestmark = pytest.mark.usefixtures("double")

D, S, L, STRIDE, STEPS, LIMIT = 2, 3, 4, 2, 3, 1.3
MEAN, STD = torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.7, 1.4, 1.0])
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 2.0])
CENTRE, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2
ENDS = torch.tensor([6, 8, 13, 20])
ENDED = torch.tensor([True, True, False, True])
MODEL = Model(L, STRIDE, 10, 5, 0.02, (16,), STEPS, 0.9)
A = pgd.Args(
    iterations=2, updates_per_iteration=2, batch_size=9, synthetic_fraction=0.6, num_windows=8, refill_every=1,
    guidance_scale=0.8, guidance_wave=0.4, gamma=0.8, tau=0.3, lr=0.02, critic_width=8, q_weight=1.7, target_noise=0.5,
    target_noise_clip=0.4, policy_delay=2, model=MODEL,
)  # fmt: skip
OTHER = replace(
    A,
    learner="iql",
    guide_at_estimate=False,
    refill_every=2,
    inverse_temperature=2.0,
    max_weight=0.6,
    expectile=0.8,
    model=replace(MODEL, churn=0.0),
)
CASES = {"td3_bc": A, "iql": OTHER}


def start(case: str) -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(S), centre=MEAN, scale=STD)
    net = Actor(MLP((1, D), S, 8, 2, 0, False, activation="relu", out=(1, 2 * D)))
    if case == "td3_bc":
        codec = replace(TanhCodec.from_box(LOW, HIGH, seen), limit=LIMIT)
    else:
        codec = ActionChunkCodec(
            seen, replace(Normalizer.identity(D), centre=CENTRE, scale=HALF, low=LOW, high=HIGH), LIMIT
        )
    return Policy.of(
        process, net, (1, D), process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0), codec
    )


def recorded() -> EpisodeDataset:
    torch.manual_seed(6)
    seen, last = torch.randn(20, S), torch.randn(4, S)
    seen[:, 2] = last[:, 2] = 0.7  # a number that never changes
    acted = LOW + (HIGH - LOW) * torch.rand(20, D)
    acted[::4, 0] = 3.0  # on the edge of the box, where atanh is infinite
    return EpisodeDataset(Demonstrations(seen, acted, ENDS), torch.randn(20) - 1, last, ENDED, LOW, HIGH)


def normed(obs: Tensor) -> Tensor:
    return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)


def windowed(data: EpisodeDataset) -> tuple[list[Tensor], Tensor]:
    """What changes, [W, L] each, and the ends. Windows lie in their episode; true ends are told to the end."""
    unit, parts = (data.demos.actions - CENTRE) / HALF, []
    for first, end, ended in zip([0, *ENDS.tolist()], ENDS.tolist(), ENDED.tolist(), strict=False):
        for at in range(first, end if ended else end - L + 1):
            frames = [min(at + j, end - 1) for j in range(L)]
            done = torch.tensor([float(ended and at + j >= end - 1) for j in range(L)])
            parts.append((data.demos.observations[frames], unit[frames], data.rewards[frames], done))
    assert len(parts) == 17
    seen, acted, paid, done = (torch.stack([p[k] for p in parts[::STRIDE]]) for k in range(4))
    pressed = torch.atanh(acted.clamp(-0.999, 0.999))
    return [seen[..., 0], seen[..., 1], pressed[..., 0], pressed[..., 1], paid], done


def sigma_of(t: float | Tensor) -> Tensor:
    """σ(t) from 0.002 to 80, equation 5 of 2206.00364."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (low + torch.as_tensor(t) * (high - low)) ** 7


def time_of(sigma: Tensor) -> Tensor:
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (sigma ** (1 / 7) - low) / (high - low)


@pytest.mark.parametrize("case", CASES)
def test_the_model_learns_windows_as_published(case: str) -> None:
    """The rate rises in a tenth of the updates and falls, the average runs; the first two updates are computed anew."""
    data, rng = recorded(), Tape(3)
    a, spy = CASES[case], Spy(rng)
    logged = list(pgd.improve(start(case), data, a, rng, spy))
    numbers, done = windowed(data)
    spread = [(v - v.mean().float()) / v.var(correction=0).sqrt().float() for v in numbers]
    windows = torch.stack([*spread, done], -1)
    assert windows.shape == (9, L, 6)

    model = spy.stages["model"]
    gauss, n = model.start["denoiser"], a.model.batch_size
    opt = adam(gauss.parameters(), a.model.lr)
    for it in range(2):
        i = rng.take("integers", n)
        u, order = rng.take("uniform", (n + 1) // 2), rng.take("permutation", n)
        half = (torch.arange(len(u)) + u) / n
        u = torch.cat([half, 1 - half[: n // 2]])[order]
        t = time_of((-1.2 + 1.2 * torch.special.ndtri(u)).exp().clamp(0.002, 80))  # ln σ ~ N(−1.2, 1.2²)
        sigma, x0 = sigma_of(t)[:, None, None], windows[i]
        x, total = x0 + sigma * rng.take("normal", n, L, 6), (sigma**2 + 1).sqrt()
        F = answer(gauss.net, x / total, t, None).float()  # x̂₀ = c_skip x + c_out F(c_in x), and λ(σ) c_out² = 1
        loss = ((F - (x0 - x / total**2) / (sigma / total)) ** 2).mean()  # equation 8
        for group in opt.param_groups:
            group["lr"] = a.model.lr * (1 if it == 0 else 0.5 * (1 + math.cos(math.pi * (it - 1) / 9)))
        norm = descend(opt, loss, 1.0)
        agree(model.states[it + 1]["denoiser"], gauss.state_dict(), where=f"model after update {it}")
        agree(logged[it], {"loss/denoising": loss, "train/grad_norm": norm}, where=f"row {it}")
    held = model.states[2]["opt"]["state"]
    agree([held[k][m] for k in held for m in ("exp_avg", "exp_avg_sq")], moments(opt), where="moments")

    average: dict[str, Tensor] = {}
    for it in range(10):
        rate = 1 if it == 0 else 0.5 * (1 + math.cos(math.pi * (it - 1) / 9))
        agree(
            model.states[it]["opt"]["param_groups"][0]["lr"],
            a.model.lr * rate,
            1e-9,
            where=f"rate of update {it}",
        )
        decay = 1 - (1 + it) ** -0.75
        for k, v in model.states[it + 1]["denoiser"].items():
            average[k] = v if it == 0 else decay * average[k] + (1 - decay) * v
    agree(model.named["denoiser"].state_dict(), average, where="the average")


@pytest.mark.parametrize("case", CASES)
def test_draws_are_guided_and_the_learners_two_iterations_are_those_of_the_paper(case: str) -> None:
    a, data, rng, made = CASES[case], recorded(), Tape(3), start(case)
    spy = Spy(rng)
    logged = list(pgd.improve(made, data, a, rng, spy))[10:]
    learn, net = spy.stages["learn"], spy.stages["model"].named["denoiser"].net
    rng.drawn = rng.drawn[spy.stages["model"].draws[-1] :]  # the model is trained
    numbers, _ = windowed(data)
    centre, scale = [v.mean().float() for v in numbers], [v.var(correction=0).sqrt().float() for v in numbers]

    policy = learn.start["policy"].weights
    actor, critic, slow = policy.module, learn.start["critics.net"], learn.start["critics.target_net"]
    agree(slow.state_dict(), critic.state_dict(), 0.0)
    opt, critic_opt = adam(actor.parameters(), a.lr), adam(critic.parameters(), a.lr)

    def law(cond: Tensor, who: torch.nn.Module = actor) -> tuple[Tensor, Tensor]:
        out = answer(who, torch.zeros(len(cond), 1, D), 1.0, cond)  # type: ignore[arg-type]
        return out.mean, out.extra["std"]

    def log_pi(cond: Tensor, action: Tensor) -> Tensor:
        """[n]; a deterministic policy is taken for N(π(s), 1), without its constant."""
        mu, std = (v[:, 0] for v in law(cond))
        if case == "td3_bc":
            return -0.5 * ((action - torch.tanh(mu)) ** 2).sum(1)
        return (-0.5 * ((action - mu) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(1)

    def number(k: int, z: Tensor) -> Tensor:
        return (centre[k] + scale[k] * z).clamp(numbers[k].min().float(), numbers[k].max().float())

    def decision(x: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy sees and what is done, of windows in the model's units."""
        obs = torch.stack([number(0, x[..., 0]), number(1, x[..., 1]), torch.full(x.shape[:-1], 0.7)], -1)
        return normed(obs), torch.tanh(torch.stack([number(2, x[..., 2]), number(3, x[..., 3])], -1))

    @torch.no_grad()
    def denoised(x: Tensor, sigma: float) -> Tensor:
        """x̂₀(x; σ), equation 7 of 2206.00364, for data of std 1."""
        total = math.sqrt(sigma**2 + 1)
        F = answer(net, x / total, time_of(torch.tensor([sigma])), None).float()
        return x / total**2 + sigma / total * F

    def draw() -> tuple[list[Tensor], dict[str, Tensor]]:
        """Heun's sampler, whose actions are moved before each step but the last, and the transitions in the windows."""
        sigmas = [float(sigma_of(1 - k / STEPS)) for k in range(STEPS)] + [0.0]
        x = sigmas[0] * rng.take("normal", a.num_windows, L, 6)
        for k in range(STEPS):
            now, then = sigmas[k], sigmas[k + 1]
            if k < STEPS - 1:
                lam = (1 - k / STEPS) + a.guidance_wave * math.sin(math.pi * (k + 1) / STEPS)
                at, moved = denoised(x, now) if a.guide_at_estimate else x, x.clone()
                for w in range(a.num_windows):  # g = ∇_a Σ_t log π(a_t | s_t), of length one; the states are left alone
                    free = at[w].clone().requires_grad_()
                    cond, action = decision(free)
                    (g,) = torch.autograd.grad(log_pi(cond.detach(), action).sum(), free)
                    moved[w, :, 2:4] += (
                        a.guidance_scale * lam * g[:, 2:4] / g[:, 2:4].square().sum().sqrt().clamp(min=1e-8)
                    )
                x = moved
            high = now
            if 0.05 <= now <= 50 and a.model.churn:
                high = now * (1 + min(a.model.churn / STEPS, math.sqrt(2) - 1))
                x = x + 1.003 * math.sqrt(high**2 - now**2) * rng.take("normal", a.num_windows, L, 6)
            d = (x - denoised(x, high)) / high
            after = x + (then - high) * d
            if then > 0:
                after = x + (then - high) * 0.5 * (d + (after - denoised(after, then)) / then)
            x = after
        (obs, action), paid, over = decision(x), number(4, x[..., 4]), x[..., 5]
        rows = []
        for w in range(a.num_windows):
            for t in range(L):
                sure, ends = bool((over[w, t] <= 0.2) | (over[w, t] >= 0.8)), bool(over[w, t] > 0.5)
                if not sure or (t == L - 1 and not ends):
                    break  # nobody knows what comes next
                then = obs[w, min(t + 1, L - 1)]
                rows.append((obs[w, t], action[w, t][None], paid[w, t], then, torch.tensor(ends)))
                if ends:
                    break
        columns = [torch.stack([row[k] for row in rows]) for k in range(5)]
        with torch.no_grad():
            likely = log_pi(columns[0], columns[1][:, 0]).mean()
        return columns, {"synthetic/count": torch.tensor(float(len(rows))), "synthetic/log_likelihood": likely}

    rows = []
    for first, end, last, ended in zip([0, *ENDS.tolist()], ENDS.tolist(), data.last, ENDED.tolist(), strict=False):
        for t in range(first, end):
            then = last if t + 1 == end else data.demos.observations[t + 1]
            action = (data.demos.actions[t] - CENTRE) / HALF
            over = torch.tensor(t + 1 == end and ended)
            rows.append((normed(data.demos.observations[t]), action[None], data.rewards[t], normed(then), over))
    real = [torch.stack([row[k] for row in rows]) for k in range(5)]

    (fresh, news), drawn, value = draw(), set(), learn.start.get("value")
    value_opt = adam(value.parameters(), a.lr) if value is not None else None
    clipped = set()
    for it in range(a.iterations):
        for name, held in (("real", real), ("made", fresh)):
            found = learn.states[it]["data"][name]["rows"]
            columns = [found[k] for k in ("obs", "action", "reward", "next_obs", "terminated")]
            agree(columns, held, where=f"{name} rows of iteration {it}")
            drawn |= {(name, bool(over)) for over in held[4]}
        count = round(a.synthetic_fraction * a.batch_size)
        own, other = (
            rng.take("integers", a.updates_per_iteration, a.batch_size - count),
            rng.take("integers", a.updates_per_iteration, count),
        )
        seen = []
        for k in range(a.updates_per_iteration):
            obs, done, paid, after, over = (
                torch.cat([x[own[k]], y[other[k]]]) for x, y in zip(real, fresh, strict=True)
            )
            discount = a.gamma * (~over).float()
            if case == "td3_bc":  # 2106.06860
                with torch.no_grad():
                    eps = (a.target_noise * rng.take("normal", a.batch_size, 1, D)).clamp(
                        -a.target_noise_clip, a.target_noise_clip
                    )
                    next_action = (torch.tanh(law(after, policy.sets["target"])[0]) + eps).clamp(-1, 1)
                    y = paid + discount * slow(after, next_action).min(0).values
                q = critic(obs, done)
                error = sum((0.5 * (one - y) ** 2).mean() for one in q)
                descend(critic_opt, error)
                if (it * a.updates_per_iteration + k + 1) % a.policy_delay:
                    continue
                pi = torch.tanh(law(obs)[0])
                climbed, far = critic(obs, pi)[0], ((pi - done) ** 2).mean()
                descend(opt, -a.q_weight * climbed.mean() / climbed.detach().abs().mean().clamp(min=1e-3) + far)
                with torch.no_grad():
                    pairs = [(slow, critic), (policy.sets["target"], actor)]
                    for p, q_ in [pq for s, n in pairs for pq in zip(s.parameters(), n.parameters(), strict=True)]:
                        p.copy_((1 - a.tau) * p + a.tau * q_)
                seen.append(torch.stack([error, q.mean(), far]))
            else:  # 2110.06169
                with torch.no_grad():
                    best, y = slow(obs, done).min(0).values, paid + discount * value(after)
                v = value(obs)
                off = (torch.where(best < v, 1 - a.expectile, a.expectile) * (best - v) ** 2).mean()
                weight = (a.inverse_temperature * (best - v.detach())).exp().clamp(max=a.max_weight)
                error = sum((0.5 * (one - y) ** 2).mean() for one in critic(obs, done))
                mu, std = law(obs)
                density = -0.5 * ((done - mu) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
                loss = -(weight * density.sum((1, 2))).mean()
                descend(value_opt, off)
                descend(critic_opt, error)
                for group in opt.param_groups:
                    group["lr"] = (
                        a.lr
                        * 0.5
                        * (
                            1
                            + math.cos(
                                math.pi * (it * a.updates_per_iteration + k) / (a.iterations * a.updates_per_iteration)
                            )
                        )
                    )
                descend(opt, loss)
                with torch.no_grad():
                    for p, q_ in zip(slow.parameters(), critic.parameters(), strict=True):
                        p.copy_((1 - a.tau) * p + a.tau * q_)
                clipped |= set((weight == a.max_weight).tolist())
                seen.append(
                    torch.stack([loss, error, off, v.mean(), weight.sum() ** 2 / (a.batch_size * (weight**2).sum())])
                )

        state = learn.states[it + 1]
        agree(state["policy"], learn.start["policy"].state_dict(), where=f"policy after iteration {it}")
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        if (it + 1) % a.refill_every == 0:
            fresh, news = draw()  # for the policy of this moment
        names = ("loss/critic", "q/data", "loss/bc_mse")
        if case == "iql":
            names = ("loss/policy", "loss/critic", "loss/value", "v/data", "awr/ess_fraction")
            agree(state["value"], value.state_dict(), where=f"values after iteration {it}")
        agree(logged[it], dict(zip(names, torch.stack(seen).mean(0), strict=True)) | news, where=f"row {it}")
    agree(moments(learn.named["optimizer"]), moments(opt), where="moments of the policy")
    agree(moments(learn.named["critics.optimizer"]), moments(critic_opt), where="moments of the critics")
    if case == "iql":
        agree(moments(learn.named["value_optimizer"]), moments(value_opt), where="moments of the values")
        assert clipped == {True, False}
    assert {("real", True), ("real", False), ("made", False)} <= drawn


def test_windows_hold_actions_of_the_policys_box_where_the_datas_is_wider() -> None:
    """Actions up to twice as far from the centre as the policy can decide are those on the edge of its box."""
    data, unit = recorded(), torch.linspace(-2, 2, 40).view(20, D)
    seen = torch.cat([torch.arange(20.0)[:, None], data.demos.observations[:, 1:]], 1)  # a number for each frame
    demos = replace(data.demos, actions=CENTRE + HALF * unit, observations=seen)
    wide = replace(data, demos=demos, low=CENTRE - 2 * HALF, high=CENTRE + 2 * HALF)
    for case in CASES:
        made = pgd.make_windows(start(case), wide, MODEL)
        frames = made["obs"][..., 0].long()
        edged = unit.masked_fill(unit < -1, -1.0).masked_fill(unit > 1, 1.0)
        agree(made["action"], edged[frames], where=case)
        assert {-1.0, 1.0} <= set(edged[frames].flatten().tolist())
