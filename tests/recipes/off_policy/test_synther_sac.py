"""SynthER online beside 2303.06614, sections 3 and 4: models of all that is held, made rows, mixed batches, and SAC.

The model is EDM of 2206.00364, equations 5 to 8 and algorithm 2; SAC is that of 1812.05905, equations 5 to 9 and 18.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import RunError
from denoiserl.data import Normalizer, TanhCodec
from denoiserl.data.synthetic import Model
from denoiserl.nn import MLP, Actor
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep, time_grid
from denoiserl.recipes.off_policy import synther_sac
from tests.recipes.kit import Heard, Made, Spy, adam, agree, answer, descend, experience, moments
from tests.recipes.worlds import Drift

H, D, S, X = 3, 2, 2, 12  # a transition has 2 + 6 + 1 + 2 + 1 numbers
MEAN, STD, LIMIT, WALL = torch.tensor([0.3, -0.2]), torch.tensor([0.7, 1.4]), 1.5, 1.0
CENTRE, HALF = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0])
MODEL = Model(num_updates=4, batch_size=210, lr=0.004, width=16, depth=2, sampling_steps=3, churn=0.9, ema_decay=0.5)
A = synther_sac.Args(
    iterations=5, num_envs=3, rollout_steps=35, learning_starts=105, warmup_policy="random", utd=0.01, batch_size=11,
    buffer_size=300, n_step=2, gamma=0.8, tau=0.3, lr=0.004, temperature_init=0.7, min_temperature=0.1,
    target_entropy=-1.3, num_critics=3, critic_width=8, layer_norm=True, synthetic_fraction=0.4,
    decisions_per_refill=210, num_synthetic=40, model=MODEL,
)  # fmt: skip


class Walled(Drift):
    """Drift with a wall at s₀ = 1. By turns, an episode truly ends after two decisions and is cut after three."""

    LIMIT = 3 * H
    turn = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.turn += 1
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        a = np.asarray(action, float)
        self.s, self.ticks = np.minimum(self.s + 0.5 * (a - 1), [WALL, np.inf]), self.ticks + 1
        reward = -float(self.s @ self.s) - float(a @ a) / 4 - 1
        over = self.turn % 2 == 0 and self.ticks == 2 * H
        return self.s.astype(np.float32), reward, over, self.ticks == self.LIMIT, {}


def start() -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(S), centre=MEAN, scale=STD)
    net = Actor(MLP((H, D), S, 8, 2, 0, False, activation="relu", out=(H, 2 * D)))
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    codec = replace(TanhCodec.from_box([-1.0, 0.0], [3.0, 2.0], seen), limit=LIMIT)
    return Policy.of(process, net, (H, D), steps, serve, codec)


def units(obs: Tensor) -> Tensor:
    return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)


def sigma_of(t: Tensor) -> Tensor:
    """σ(t) from 0.002 to 80, equation 5 of 2206.00364."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (low + t * (high - low)) ** 7


def time_of(sigma: Tensor) -> Tensor:
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (sigma ** (1 / 7) - low) / (high - low)


def upsampled(real: list[Tensor], net: torch.nn.Module, rng: Made) -> tuple[list[Tensor], float]:
    """Train a model of s [N, 2], a [N, H, 2], r [N], s' [N, 2] and ends [N], and draw rows: the columns, and what was
    dropped."""
    s, a, r, s_, over = real
    # numbers are standardised, s and s' alike; the end of an episode is left raw
    parts, spread = [torch.cat([s, s_]), a.flatten(1), r[:, None]], []
    for v in parts:
        low, high = v.min(0).values, v.max(0).values
        low = torch.where((v == low).double().mean(0) > 0.005, low, -math.inf)  # a limit, where it is often met
        high = torch.where((v == high).double().mean(0) > 0.005, high, math.inf)
        spread.append((v.double().mean(0).float(), v.double().std(0, correction=0).float(), low, high))
    assert [int(v.isfinite().sum()) for v in spread[0][2:]] == [0, 1], "the wall is a limit, and nothing else is"
    (m_s, std_s, *_), (m_a, std_a, *_), (m_r, std_r, *_) = spread
    rows = [(s - m_s) / std_s, (a.flatten(1) - m_a) / std_a, (r[:, None] - m_r) / std_r, (s_ - m_s) / std_s]
    rows = torch.cat([*rows, over[:, None].float()], 1)
    assert rows.shape == (len(r), X)

    opt, n, average = adam(net.parameters(), MODEL.lr), MODEL.batch_size, dict[str, Tensor]()
    for it in range(MODEL.num_updates):
        i = rng.take("integers", n)
        u, order = rng.take("uniform", n // 2), rng.take("permutation", n)
        half = (torch.arange(n // 2) + u) / n
        u = torch.cat([half, 1 - half])[order].double()
        t = time_of((-1.2 + 1.2 * torch.special.ndtri(u)).exp().clamp(0.002, 80)).float()  # ln σ ~ N(−1.2, 1.2²)
        sigma, x0 = sigma_of(t.double())[:, None], rows[i].double()
        x, total = x0 + sigma * rng.take("normal", n, X), (sigma**2 + 1).sqrt()
        F = answer(net, (x / total).float(), t, None)  # type: ignore[arg-type, var-annotated]
        loss = ((F - (x0 - x / total**2) / (sigma / total)) ** 2).mean()  # equation 8, where λ(σ) c_out² = 1
        opt.param_groups[0]["lr"] = MODEL.lr * 0.5 * (1 + math.cos(math.pi * it / MODEL.num_updates))
        descend(opt, loss, 1.0)
        decay = min(1 - (1 + it) ** -0.75, MODEL.ema_decay)
        for k, v in net.state_dict().items():
            average[k] = v.clone() if it == 0 else decay * average[k] + (1 - decay) * v
    net.load_state_dict(average)

    @torch.no_grad()
    def denoised(x: Tensor, sigma: float) -> Tensor:
        """x̂₀(x; σ), equation 7 of 2206.00364, for data of std 1."""
        total = math.sqrt(sigma**2 + 1)
        F = answer(net, (x / total).float(), time_of(torch.tensor([sigma]).double()), None)  # type: ignore[arg-type]
        return x / total**2 + sigma / total * F

    columns, drawn, count = [list[Tensor]() for _ in real], 0, A.num_synthetic
    while sum(map(len, columns[0])) < A.num_synthetic:  # Heun's method with churn
        sigmas = [
            float(sigma_of(torch.tensor(1 - k / MODEL.sampling_steps).double())) for k in range(MODEL.sampling_steps)
        ] + [0.0]
        x = sigmas[0] * rng.take("normal", count, X).double()
        for now, then in itertools.pairwise(sigmas):
            hat = now
            if 0.05 <= now <= 50:
                hat = now * (1 + min(MODEL.churn / MODEL.sampling_steps, math.sqrt(2) - 1))
                x = x + 1.003 * math.sqrt(hat**2 - now**2) * rng.take("normal", count, X)
            d = (x - denoised(x, hat)) / hat
            after = x + (then - hat) * d
            if then > 0:
                after = x + (then - hat) * 0.5 * (d + (after - denoised(after, then)) / then)
            x = after
        drawn, count = drawn + count, 256
        x = x.float()[(x[:, -1] <= 0.2) | (x[:, -1] >= 0.8)]  # it is sure whether the episode ends
        z = [x[:, :2], x[:, 2:8], x[:, 8:9], x[:, 9:11]]
        s, a, r, s_ = (
            (m + std * v).clamp(low, high) for v, (m, std, low, high) in zip(z, [*spread, spread[0]], strict=True)
        )
        assert (a > 1).any() and (a < -1).any() and (s[:, 0] == WALL).any()
        made = (s, a.clamp(-1, 1).reshape(-1, H, D), r[:, 0], s_, x[:, -1] > 0.5)
        columns = [[*held, v] for held, v in zip(columns, made, strict=True)]
    kept = [torch.cat(v) for v in columns]
    return [v[: A.num_synthetic] for v in kept], 1 - len(kept[0]) / drawn


def test_a_model_waits_for_a_batch() -> None:
    with pytest.raises(RunError, match=r"decisions_per_refill = 209 .* model.batch_size = 210"):
        replace(A, decisions_per_refill=209)


def test_no_share_is_sac() -> None:
    given = replace(A, iterations=2, synthetic_fraction=0.0, buffer_size=1_000_000)
    rng, other = Made(3), Made(3)
    rows = list(synther_sac.improve(start(), Heard(Walled, 3, 1), given, rng))
    agree(rows, list(synther_sac.sac.improve(start(), Heard(Walled, 3, 1), given, other)), 0.0)
    assert len(rng.made) == 1 and "policy/temperature" in rows[-1]


def test_four_updates_and_two_models_are_those_of_the_paper() -> None:
    made, env, rng = start(), Heard(Walled, A.num_envs, 1), Made(3)
    spy = Spy(rng)
    logged = list(synther_sac.improve(made, env, A, rng, spy))

    critic, slow, actor = spy.start["critics.net"], spy.start["critics.target_net"], spy.start["policy"]
    agree(slow.state_dict(), critic.state_dict(), 0.0)
    theta = torch.nn.Parameter(torch.tensor(math.log(A.temperature_init - A.min_temperature)))
    theta_opt, critic_opt = adam([theta], A.lr), adam(critic.parameters(), A.lr)
    actor_opt = adam(actor.weights.module.parameters(), A.lr)
    _, *nets = rng.made  # after the critics, a model from scratch each time
    assert [[net.config[k] for k in ("width", "depth", "time")] for net in nets] == 2 * [[MODEL.width, MODEL.depth, 16]]

    def decide(seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """a = tanh u and log π(a | s) = log N(u) − Σ log (1 − tanh² u)."""
        out = answer(actor.denoiser, torch.zeros(len(seen), H, D), 1.0, seen)
        mu, sigma = out.mean, out.extra["std"]
        u = mu + sigma * noise
        density = -0.5 * ((u - mu) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
        volume = torch.log(1 - torch.tanh(u.double()) ** 2).float()  # in float32 the difference has two digits left
        return torch.tanh(u), (density - volume).sum((1, 2))

    memory: list[dict] = []
    fresh, filled, met = list[Tensor](), 0, set[str]()
    for it in range(A.iterations):
        ep = env.episodes[it]
        assert bool((ep.num_executed == H).all())
        gain, s = torch.zeros(ep.reward.shape), ep.obs
        for k in range(H):
            s = s + 0.5 * (ep.action[:, :, k] - 1)
            s = torch.stack([s[..., 0].clamp(max=WALL), s[..., 1]], -1)
            gain += A.gamma**k * (-(s**2).sum(-1) - (ep.action[:, :, k] ** 2).sum(-1) / 4 - 1)
        agree([ep.reward, ep.next_obs], [gain, s])
        for t in range(A.rollout_steps):
            for b in range(A.num_envs):
                row = {k: getattr(ep, k)[t, b] for k in ("obs", "next_obs", "reward", "terminated", "done")}
                memory.append({**row, "unit": ((ep.action[t, b] - CENTRE) / HALF).clamp(-1, 1), "copy": b})
        ring = {n % A.buffer_size: n for n in range(len(memory))}  # the newest decision at every place
        told = experience(ep)

        if it > 0:
            count = round(A.synthetic_fraction * A.batch_size) if fresh else 0
            rows = []
            for place in rng.take("integers", 1, A.batch_size - count)[0].tolist():
                i = ring[place]
                first, last = memory[i], memory[i]
                reward, discount = float(first["reward"]), A.gamma**H
                later = [r for r in memory[i + 1 :] if r["copy"] == first["copy"]]
                if not bool(first["done"]) and later:  # a return of two decisions
                    last = later[0]
                    reward, discount = reward + discount * float(last["reward"]), discount**2
                over, cut = bool(last["terminated"]), bool(last["done"] & ~last["terminated"])
                met |= {"real end" * over, "cut" * cut, f"real {discount:.3f}"}
                rows.append((first["obs"], first["unit"], reward, 0.0 if over else discount, last["next_obs"]))
            for i in rng.take("integers", 1, count)[0].tolist() if count else ():  # of one decision
                s, unit, reward, s_, over = (v[i] for v in fresh)
                met |= {"made end" if over else "made"}
                rows.append((s, unit, float(reward), 0.0 if over else A.gamma**H, s_))
            obs, unit, after = (torch.stack([r[k] for r in rows]) for k in (0, 1, 4))
            reward, discount = (torch.tensor([r[k] for r in rows]) for k in (2, 3))
            now, then = units(obs), units(after)

            alpha = A.min_temperature + theta.detach().exp()
            with torch.no_grad():
                action, logp = decide(then, rng.take("normal", A.batch_size, H, D))
                y = reward + discount * (slow(then, action).min(0).values - alpha * logp)
            q = critic(now, unit)
            error, known = sum((0.5 * (one - y) ** 2).mean() for one in q), q.detach().mean()
            descend(critic_opt, error)
            action, logp = decide(now, rng.take("normal", A.batch_size, H, D))
            value = critic(now, action).min(0).values
            descend(actor_opt, (alpha * logp - value).mean())
            descend(theta_opt, (-(A.min_temperature + theta.exp()) * (logp.detach() + A.target_entropy)).mean())
            with torch.no_grad():
                for p, q in zip(slow.parameters(), critic.parameters(), strict=True):
                    p.copy_((1 - A.tau) * p + A.tau * q)
            told |= {
                "loss/critic": error,
                "q/data": known,
                "q/policy": value.mean(),
                "policy/entropy": -logp.mean(),
                "policy/temperature": alpha,
            }

        if it in (1, 3):  # 210 and 420 decisions: a model of what is held, and rows in place of those before
            filled = len(memory)
            held = [memory[ring[place]] for place in range(len(ring))]
            real = [torch.stack([r[k] for r in held]) for k in ("obs", "unit", "reward", "next_obs", "terminated")]
            fresh, dropped = upsampled(real, nets.pop(0), rng)
            told |= {"synthetic/count": A.num_synthetic, "synthetic/dropped_fraction": dropped}
        state = spy.states[it + 1]
        assert state["replay"]["filled"] == filled
        if fresh:
            found = state["replay"]["made"]["rows"]
            columns = [found[k] for k in ("obs", "action", "reward", "next_obs", "terminated", "length")]
            agree(columns, [*fresh, torch.full((A.num_synthetic,), H)], 1e-4, f"rows made in iteration {it}")
            fresh = columns[:5]  # Heun's method in float32 comes from 80 down to 1: two digits are lost
        else:
            assert state["replay"]["made"] is None
        # a gradient near 0 has no sign in float32, and Adam divides by its size: parameters to 1e-4, moments to 1e-5
        agree(state["critics.net"], critic.state_dict(), 1e-4, f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), 1e-4, f"slow critics after iteration {it}")
        agree(state["policy"], actor.state_dict(), 1e-4, f"policy after iteration {it}")
        agree(state["temperature"]["log"], theta, where=f"temperature after iteration {it}")
        agree(logged[it], told, 1e-4, f"row {it}")

    opts = {"critics.optimizer": critic_opt, "optimizer": actor_opt, "temperature_optimizer": theta_opt}
    for name, opt in opts.items():
        agree(moments(spy.named[name]), moments(opt), where=f"moments of {name}")
    assert {"real end", "cut", "made end", "made", f"real {A.gamma**H:.3f}", f"real {A.gamma ** (2 * H):.3f}"} <= met, (
        met
    )
