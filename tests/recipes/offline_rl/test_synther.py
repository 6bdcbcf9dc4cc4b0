"""SynthER beside 2303.06614, section 3: transitions, EDM (2206.00364), made rows, copies with noise, shares, TD3+BC."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.data import Normalizer, TanhCodec
from denoiserl.data.recordings import EpisodeDataset
from denoiserl.data.synthetic import Model
from denoiserl.nn import MLP, Actor, Critics
from denoiserl.policy.policy import Policy
from denoiserl.processes import OneStep, time_grid
from denoiserl.recipes.offline_rl import synther
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments
from tests.recipes.logs import CENTRE, ENDED, HALF, HIGH, LENGTHS, LOW, recording

pytestmark = pytest.mark.usefixtures("double")

D, S, X = 2, 8, 18
MEAN, STD, LIMIT = torch.linspace(-0.3, 0.4, S), torch.linspace(0.7, 1.4, S), 1.2
MODEL = Model(num_updates=40, batch_size=15, lr=0.004, width=16, depth=2, sampling_steps=3, churn=0.9, ema_decay=0.92)
A = synther.Args(
    iterations=2, updates_per_iteration=3, batch_size=23, q_weight=1.7, target_noise=0.4, target_noise_clip=0.3,
    policy_delay=2, gamma=0.8, tau=0.3, lr=0.02, critic_width=8, layer_norm=True, num_synthetic=60,
    synthetic_fraction=1.0, model=MODEL,
)  # fmt: skip
CASES = {
    "made": A,
    "mixed": replace(A, synthetic_fraction=0.6),
    "noise": replace(A, synthetic_fraction=0.6, generator="noise", noise_std=0.3),
}


class Set(Tape):
    """A tape beside which critics start around −1, and a model, where it is ``loud``, with large gradients."""

    loud = False

    def init(self, make: Any, *given: Any, **more: Any) -> Any:
        made = super().init(make, *given, **more)
        with torch.no_grad():
            if isinstance(made, MLP) and self.loud:
                made.leave.weight.mul_(8)
            if isinstance(made, Critics):
                made.biases[-1].sub_(1)
        return made


class Loud(Set):
    loud = True


def start(chunk: int = 1) -> Policy:
    torch.manual_seed(4)
    process, seen = OneStep(), replace(Normalizer.identity(S), centre=MEAN, scale=STD)
    net = Actor(MLP((chunk, D), S, 8, 2, 0, False, activation="relu", out=(chunk, 2 * D)))
    steps, serve = process.steps(time_grid(1)), process.steps(time_grid(1), std_scale=0.0)
    return Policy.of(process, net, (chunk, D), steps, serve, replace(TanhCodec.from_box(LOW, HIGH, seen), limit=LIMIT))


def units(obs: Tensor) -> Tensor:
    return ((obs - MEAN) / STD).clamp(-LIMIT, LIMIT)


def recorded() -> EpisodeDataset:
    """Observations of a number up to ¼, any number, an angle's cosine and sine, a constant, −2 or 3, and a one-hot.

    The first action is often on the edge of its box, and the second one never is.
    """
    data = recording(times=10)

    def shown(s: Tensor) -> Tensor:
        angle, n = 2 * s[:, 2:], len(s)
        still, sign = torch.full((n, 1), 0.7), torch.where(torch.rand(n, 1) < 0.3, -2.0, 3.0)
        numbers, hot = [s[:, :1].clamp(max=0.25), s[:, 1:2]], torch.eye(2)[torch.randint(2, (n,))]
        return torch.cat([*numbers, angle.cos(), angle.sin(), still, sign, hot], 1)

    data.demos.actions[:, 1] = 2 * torch.rand(len(data.demos.actions))
    demos = replace(data.demos, observations=shown(data.demos.observations))
    return replace(data, demos=demos, last=shown(data.last))


def transitions(data: EpisodeDataset) -> list[Tensor]:
    """s [N, 8], a [N, 2], r [N], s' [N, 8] and true ends [N]."""
    rows, at = [], 0
    for episode, length in enumerate(LENGTHS * 10):
        for t in range(at, at + length):
            last = t + 1 == at + length
            after = data.last[episode] if last else data.demos.observations[t + 1]
            over = torch.tensor(last and ENDED[episode % len(ENDED)])
            rows.append((data.demos.observations[t], data.demos.actions[t], data.rewards[t].float(), after, over))
        at += length
    return [torch.stack(column) for column in zip(*rows, strict=True)]


class Numbers:
    """What the rows' numbers are standardised with: s and s' alike, actions, rewards."""

    def __init__(self, rows: list[Tensor]) -> None:
        s, a, r, s_, _ = rows
        self.m, self.std, self.low, self.high = {}, {}, {}, {}
        for k, v in {"s": torch.cat([s, s_]), "a": a, "r": r[:, None].double()}.items():
            self.m[k], self.std[k] = v.mean(0).float(), v.std(0, correction=0).float()
            low, high = v.min(0).values, v.max(0).values  # limits, where they are often met
            self.low[k] = torch.where((v == low).double().mean(0) > 0.005, low.float(), -math.inf)
            self.high[k] = torch.where((v == high).double().mean(0) > 0.005, high.float(), math.inf)
        assert self.high["a"].tolist() == [3, math.inf] and not self.low["s"][:2].isfinite().any()
        assert self.high["s"][:2].tolist() == [0.25, math.inf]

    def seen(self, s: Tensor) -> Tensor:
        """Numbers and the circle are standardised; the constant is left out; a binary and a one-hot are 0 and 1."""
        return torch.cat([((s - self.m["s"]) / self.std["s"])[:, :4], (s[:, 5:6] > 0).double(), s[:, 6:]], 1)

    def encode(self, rows: list[Tensor]) -> Tensor:
        s, a, r, s_, over = rows
        a, r = (a - self.m["a"]) / self.std["a"], (r[:, None] - self.m["r"]) / self.std["r"]
        return torch.cat([self.seen(s), a, r, self.seen(s_), over[:, None].double()], 1)  # the end is left raw

    def number(self, k: str, z: Tensor) -> Tensor:
        n = z.shape[1]
        return (self.m[k][:n] + self.std[k][:n] * z).clamp(self.low[k][:n], self.high[k][:n])

    def shown(self, z: Tensor) -> Tensor:
        numbers, pair = self.number("s", z[:, :2]), self.m["s"][2:4] + self.std["s"][2:4] * z[:, 2:4]
        sign = torch.where(z[:, 4:5] > 0.5, 3.0, -2.0)
        hot = torch.stack([z[:, 5] >= z[:, 6], z[:, 5] < z[:, 6]], 1).double()
        circle = pair / pair.square().sum(1, keepdim=True).sqrt()
        return torch.cat([numbers, circle, torch.full((len(z), 1), 0.7), sign, hot], 1)

    def decode(self, z: Tensor) -> list[Tensor]:
        a = torch.minimum(torch.maximum(self.number("a", z[:, 7:9]), LOW), HIGH)
        return [self.shown(z[:, :7]), a, self.number("r", z[:, 9:10])[:, 0], self.shown(z[:, 10:17]), z[:, 17] > 0.5]


def sigma_of(t: float | Tensor) -> Tensor:
    """σ(t) from 0.002 to 80, equation 5 of 2206.00364."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (low + torch.as_tensor(t) * (high - low)) ** 7


def time_of(sigma: Tensor) -> Tensor:
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (sigma ** (1 / 7) - low) / (high - low)


def rate(it: int) -> float:
    """The share of the learning rate: it rises in a twentieth of the updates, and falls like a cosine."""
    rise = MODEL.num_updates // 20
    return (it + 1) / rise if it < rise else 0.5 * (1 + math.cos(math.pi * (it - rise) / (MODEL.num_updates - rise)))


def test_what_has_no_single_transitions_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="single transitions"):
        next(synther.improve(start(2), recorded(), A, Tape(3)))
    with pytest.raises(RunError, match="Did you mean 'noise'"):
        next(synther.improve(start(), recorded(), replace(A, generator="nois"), Tape(3)))


def test_the_model_learns_transitions_as_published() -> None:
    """All rates and averages, and the first two updates, which are computed anew."""
    data, rng = recorded(), Loud(3)
    spy = Spy(rng)
    logged = list(synther.improve(start(), data, A, rng, spy))
    real = transitions(data)
    rows = Numbers(real).encode(real)
    assert rows.shape == (230, X)

    model, n = spy.stages["model"], MODEL.batch_size
    net = model.start["denoiser"].net
    assert [net.config[k] for k in ("width", "depth", "time")] == [MODEL.width, MODEL.depth, 16]
    opt, norms = adam(net.parameters(), MODEL.lr), []
    for it in range(2):
        i = rng.take("integers", n)
        u, order = rng.take("uniform", (n + 1) // 2), rng.take("permutation", n)
        half = (torch.arange(len(u)) + u) / n
        u = torch.cat([half, 1 - half[: n // 2]])[order]
        t = time_of((-1.2 + 1.2 * torch.special.ndtri(u)).exp().clamp(0.002, 80))  # ln σ ~ N(−1.2, 1.2²)
        sigma, x0 = sigma_of(t)[:, None], rows[i]
        x, total = x0 + sigma * rng.take("normal", n, X), (sigma**2 + 1).sqrt()
        F = answer(net, x / total, t, None).float()  # x̂₀ = c_skip x + c_out F(c_in x), and λ(σ) c_out² = 1
        loss = ((F - (x0 - x / total**2) / (sigma / total)) ** 2).mean()  # equation 8
        opt.param_groups[0]["lr"] = MODEL.lr * rate(it)
        norms.append(descend(opt, loss, 1.0))
        agree(model.states[it + 1]["denoiser"], model.start["denoiser"].state_dict(), where=f"model after update {it}")
        agree(logged[it], {"loss/denoising": loss, "train/grad_norm": norms[-1]}, where=f"row {it}")
    held = model.states[2]["opt"]["state"]
    agree([held[k][m] for k in held for m in ("exp_avg", "exp_avg_sq")], moments(opt), where="moments")
    assert norms[0] > 1, "a gradient was clipped"

    average: dict[str, Tensor] = {}
    for it in range(MODEL.num_updates):
        agree(model.states[it]["opt"]["param_groups"][0]["lr"], MODEL.lr * rate(it), 1e-9, f"rate of update {it}")
        decay = min(1 - (1 + it) ** -0.75, MODEL.ema_decay)
        for k, v in model.states[it + 1]["denoiser"].items():
            average[k] = v if it == 0 else decay * average[k] + (1 - decay) * v
    agree(model.named["denoiser"].state_dict(), average, where="the average")


def upsampled(net: torch.nn.Module, numbers: Numbers, rng: Tape) -> list[Tensor]:
    """Draw by Heun's method with churn, algorithm 2 of 2206.00364, and keep rows that are sure whether they end."""

    @torch.no_grad()
    def denoised(x: Tensor, sigma: float) -> Tensor:
        """x̂₀(x; σ), equation 7 of 2206.00364, for data of std 1."""
        total = math.sqrt(sigma**2 + 1)
        F = answer(net, x / total, time_of(torch.tensor([sigma])), None).float()  # type: ignore[arg-type]
        return x / total**2 + sigma / total * F

    kept, count = list[Tensor](), A.num_synthetic
    while sum(map(len, kept)) < A.num_synthetic:
        sigmas = [float(sigma_of(1 - k / MODEL.sampling_steps)) for k in range(MODEL.sampling_steps)] + [0.0]
        x = sigmas[0] * rng.take("normal", count, X)
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
        kept, count = [*kept, x[(x[:, -1] <= 0.2) | (x[:, -1] >= 0.8)]], 256
    assert len(kept) == 2, "some rows were drawn again"
    return numbers.decode(torch.cat(kept)[: A.num_synthetic])


@pytest.mark.parametrize("case", CASES)
def test_a_learner_of_what_is_made_is_that_of_the_paper(case: str) -> None:
    """TD3+BC (2106.06860, equations 3 to 5) from a batch of which a share is made."""
    a, data, rng, policy = CASES[case], recorded(), Set(3), start()
    spy = Spy(rng)
    logged = list(synther.improve(policy, data, a, rng, spy))[-a.iterations :]
    real = transitions(data)
    numbers, learn = Numbers(real), spy.stages["learn"]
    if case == "noise":  # on all but binaries, one-hots and ends
        assert spy.stages.keys() == {"learn"}
        which = rng.take("integers", a.num_synthetic)
        blur = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]) * a.noise_std
        made = numbers.decode(numbers.encode([v[which] for v in real]) + blur * rng.take("normal", a.num_synthetic, X))
    else:
        rng.drawn = rng.drawn[spy.stages["model"].draws[-1] :]  # the model is trained
        made = upsampled(spy.stages["model"].named["denoiser"].net, numbers, rng)
    assert (made[0][:, 0] == 0.25).any() and (made[3][:, 0] == 0.25).any()
    edge = (made[1] == LOW) | (made[1] == HIGH)
    assert edge.any(0).all() and made[4].any() and not made[4].all()

    def learned(rows: list[Tensor]) -> list[Tensor]:
        """The rows in the policy's units."""
        s, a, r, s_, over = rows
        return [units(s), ((a - CENTRE) / HALF)[:, None].clamp(-1, 1), r, units(s_), over]

    real, made = learned(real), learned(made)
    actor, slow_actor = learn.start["policy"].weights.module, learn.start["policy"].weights.sets["target"]
    critic, slow = learn.start["critics.net"], learn.start["critics.target_net"]
    agree([slow.state_dict(), slow_actor.state_dict()], [critic.state_dict(), actor.state_dict()], 0.0)
    actor_opt, critic_opt = adam(actor.parameters(), a.lr), adam(critic.parameters(), a.lr)

    def mu(net: torch.nn.Module, s: Tensor) -> Tensor:
        return torch.tanh(answer(net, torch.zeros(len(s), 1, D), 1.0, s).mean)  # type: ignore[arg-type]

    drawn = set[tuple[str, bool]]()
    for it in range(a.iterations):
        if a.synthetic_fraction < 1:
            for name, rows in (("real", real), ("made", made)):
                found = learn.states[it]["data"][name]["rows"]
                columns = [found[k] for k in ("obs", "action", "reward", "next_obs", "terminated")]
                agree(columns, rows, where=f"{name} rows")
        count = round(a.synthetic_fraction * a.batch_size)
        own = (
            rng.take("integers", a.updates_per_iteration, a.batch_size - count)
            if a.synthetic_fraction < 1
            else torch.zeros(a.updates_per_iteration, 0).long()
        )
        other, seen = rng.take("integers", a.updates_per_iteration, count), []
        for k in range(a.updates_per_iteration):
            s, act, r, s_, over = (torch.cat([x[own[k]], y[other[k]]]) for x, y in zip(real, made, strict=True))
            drawn |= {("real", bool(v)) for v in real[4][own[k]]} | {("made", bool(v)) for v in made[4][other[k]]}
            eps = (a.target_noise * rng.take("normal", a.batch_size, 1, D)).clamp(
                -a.target_noise_clip, a.target_noise_clip
            )
            with torch.no_grad():
                q1, q2 = slow(s_, (mu(slow_actor, s_) + eps).clamp(-1, 1))
                y = r + a.gamma * (~over).double() * torch.minimum(q1, q2)
            q1, q2 = critic(s, act)
            error = (0.5 * (q1 - y) ** 2).mean() + (0.5 * (q2 - y) ** 2).mean()
            value = (q1.mean() + q2.mean()) / 2
            descend(critic_opt, error)
            if (it * a.updates_per_iteration + k + 1) % a.policy_delay:
                continue
            pi = mu(actor, s)
            q, far = critic(s, pi)[0], ((pi - act) ** 2).mean()
            descend(actor_opt, -a.q_weight * q.mean() / q.detach().abs().mean() + far)
            with torch.no_grad():
                for late, net in ((slow, critic), (slow_actor, actor)):
                    for p, q in zip(late.parameters(), net.parameters(), strict=True):
                        p.copy_((1 - a.tau) * p + a.tau * q)
            seen.append(torch.stack([error, value, far]).detach())

        state, names = learn.states[it + 1], ("loss/critic", "q/data", "loss/bc_mse")
        agree(state["critics.net"], critic.state_dict(), where=f"critics after iteration {it}")
        agree(state["critics.target_net"], slow.state_dict(), where=f"slow critics after iteration {it}")
        agree(state["policy"]["current"], actor.state_dict(), where=f"policy after iteration {it}")
        agree(state["policy"]["sets"]["target"], slow_actor.state_dict(), where=f"slow policy after iteration {it}")
        agree(logged[it], dict(zip(names, torch.stack(seen).mean(0), strict=True)), where=f"row {it}")
    agree(moments(learn.named["critics.optimizer"]), moments(critic_opt), where="moments of the critics")
    agree(moments(learn.named["optimizer"]), moments(actor_opt), where="moments of the policy")
    assert {("made", True), ("made", False)} <= drawn
    assert a.synthetic_fraction == 1 or {("real", True), ("real", False)} <= drawn
