"""RWR beside 2305.13301, section 4 (its RWR and RWR-sparse): weights, noised samples, denoising losses, the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.nn import MLP
from denoiserl.policy.codec import InfillCodec
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, Masked, TokenDenoiser, ddim, time_grid
from denoiserl.processes.schedule import Cosine, Linear
from denoiserl.recipes.generators import rwr
from tests.recipes.kit import Spy, Tape, Words, adam, agree, descend, moments, token_at

P, G, N = 3, 4, 12
A = rwr.Args(
    iterations=2, num_prompts=P, group_size=G, inverse_temperature=0.8, epochs=2, batch_size=4, lr=0.02,
    reward_weights={"near": 1.5, "flat": -0.5}
)  # fmt: skip
SETTINGS = {
    "flow": A,
    "noise": replace(A, top_fraction=0.45, compare_within="batch", micro_batch_size=3),
    "sparse": replace(A, top_fraction=0.3, micro_batch_size=2),
    "tokens": replace(A, compare_within="batch", inverse_temperature=0.3, batch_size=5),
}
PROMPTS = torch.tensor([[0.3, -1.0], [1.7, 0.4], [0.6, 2.0], [-0.8, 1.2]])
HOLE, END, PAD = 5, 4, 0
CANVASES = torch.tensor([[5, 5, 0, 5, 5, 5], [2, 0, 5, 5, 4, 5], [5, 3, 5, 0, 5, 0], [0, 5, 5, 0, 5, 5]])


@dataclass(frozen=True)
class Twice:
    """Data are 2 x + 1, prompts are seen as (c − 1) / 2."""

    def encode(self, data: Any) -> Any:
        return (data - 1) / 2

    def decode(self, sample: Any) -> Any:
        return 2 * sample + 1

    def condition(self, cond: Any) -> Any:
        return None if cond is None else (cond - 1) / 2

    def initial_state(self, cond: Any) -> Any:
        return None


class Judge:
    """Two parts, of both signs; three of the third prompt's samples tie; the fifth sample of an iteration has none."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []

    def __call__(self, sample: Tensor, prompts: Tensor | None) -> dict[str, Tensor]:
        flat = sample.flatten(1).float()
        c = torch.zeros(len(sample)) if prompts is None else prompts[:, 0].float()
        near, flat = -(flat.mean(1) - c).square() - 0.1, (flat[:, 0] - flat[:, -1]).square() / 4
        for i in range(len(sample)):
            which = len(self.samples) % N
            if which in (8, 9, 11):
                near[i], flat[i] = -1.0, 0.5
            near[i] = torch.nan if which == 4 else near[i]
            self.samples.append(sample[i].clone())
            self.parts.append({"near": near[i].clone(), "flat": flat[i].clone()})
        return {"near": near, "flat": flat}


def start(case: str) -> Policy:
    torch.manual_seed(4)
    if case == "tokens":
        process = Masked(5, temperature=0.8, end=END)
        return Policy.of(process, TokenDenoiser(Words(5, 6)), (6,), process.steps(time_grid(3)), codec=InfillCodec(PAD))
    net = MLP((2, 2), 0 if case == "noise" else 2, 8, 2, 4, activation="tanh")
    if case == "noise":
        process = Diffusion(Cosine(), ddim(1.0), clip=1.0, weight="min_snr", gamma=0.7)
        return Policy.of(
            process, GaussianDenoiser(net, Cosine(), "eps"), (2, 2), process.steps(time_grid(3, 0.8)), codec=Twice()
        )
    process = Diffusion(Linear(), ddim(0.0), clip=1.0)
    return Policy.of(process, GaussianDenoiser(net, Linear(), "v"), (2, 2), process.steps(time_grid(3)), codec=Twice())


@pytest.mark.parametrize("case", list(SETTINGS))
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, judge, rng, spy = SETTINGS[case], Judge(), Tape(3), Spy()
    words, prompts = case == "tokens", {"noise": None, "tokens": CANVASES}.get(case, PROMPTS)
    logged = list(rwr.improve(start(case), (judge, prompts), a, rng, spy))

    actor = start(case)
    net = actor.weights.module.net
    opt = adam(actor.weights.module.parameters(), a.lr)

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of x_t = α x₀ + σ ε: the flow's 1 − t and t, or ᾱ ∝ cos²((t + 0.008)/1.008 · π/2)."""
        if case != "noise":
            return 1 - t, t
        alpha = torch.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
        return alpha.clamp(1e-4, 1), (1 - alpha.clamp(1e-4, 1) ** 2).sqrt()

    def sampled(c: Any) -> Tensor:
        """Three steps from noise to a sample: the ODE of the flow, or the exact posterior q(x_s | x_t, x̂₀)."""
        x, noise = rng.take("normal", N, 2, 2).clone(), rng.take("normal", 3, N, 2, 2).clone()
        times = torch.linspace(0.8 if case == "noise" else 1.0, 0.0, 4, dtype=torch.float64)
        for k in range(3):
            (a_t, s_t), (a_s, s_s) = ([float(v) for v in levels(t)] for t in times[k : k + 2])
            out = net(x, net.embed_time(times[k : k + 1].float()), net.embed_condition(c))
            if case != "noise":
                x0 = (x - s_t * out).clamp(-1, 1)  # v = ε − x₀
                x = a_s * x0 + s_s * (x - a_t * x0) / s_t
                continue
            x0 = ((x - s_t * out) / a_t).clamp(-1, 1)
            beta = 1 - (a_t / a_s) ** 2  # DDPM, 2006.11239, equation 7
            mean = a_s * beta / s_t**2 * x0 + a_t / a_s * s_s**2 / s_t**2 * x
            x = mean + math.sqrt(s_s**2 / s_t**2 * beta) * noise[k]
        return x

    def written(canvas: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """The canvas, its holes filled in three ancestral steps, and where its answer is: up to the first end."""
        x, uniform, hole = canvas.clone(), rng.take("uniform", 3, N, 6, 2), canvas == HOLE

        def answer(x: Tensor) -> Tensor:
            ends = ((x == END) & hole).long()
            return hole & (ends.cumsum(-1) - ends == 0)

        for k, (t, s) in enumerate([(1, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0)]):
            logits = net(x, torch.tensor([t]), {"padding": padding})
            token = token_at(logits / 0.8, uniform[k, ..., 0])
            shown = (x == HOLE) & answer(x) & (uniform[k, ..., 1] < torch.tensor(1 - s / t))
            x = torch.where(shown, token, x)
        return torch.where(hole & ~answer(x), END, x), answer(x)

    norms, cut_short, tied = [], False, False
    for it in range(a.iterations):
        index = rng.take("integers", P)
        c = None if prompts is None else prompts[index].repeat_interleave(G, 0)
        with torch.no_grad():
            if words:
                left, right = (c == PAD).long().cumprod(-1), (c == PAD).long().flip(-1).cumprod(-1).flip(-1)
                padding = (left + right).bool()
                sample, live = written(c, padding)
                cut_short |= bool((live != (c == HOLE)).any())
            else:
                c = None if c is None else (c - 1) / 2
                sample = sampled(c)
        seen = sample if words else 2 * sample + 1
        agree(torch.stack(judge.samples[it * N : (it + 1) * N]), seen, where="samples in data units")

        parts = judge.parts[it * N : (it + 1) * N]
        near, flat = ([float(p[name]) for p in parts] for name in ("near", "flat"))
        reward = [1.5 * p - 0.5 * q for p, q in zip(near, flat, strict=True)]
        valid = [i for i in range(N) if i != 4]
        groups = [valid] if a.compare_within == "batch" else [[i for i in valid if i // G == p] for p in range(P)]
        weight = torch.zeros(N, dtype=torch.float64)
        for group in groups:
            r = torch.tensor([reward[i] for i in group], dtype=torch.float64)
            if a.top_fraction is None:
                w = (a.inverse_temperature * r).exp()
            else:  # the best share, and what equals the least of it
                least = r.sort(descending=True).values[math.ceil(a.top_fraction * len(r)) - 1]
                w = (r >= least - 1e-6).double()
                tied |= int(w.sum()) > math.ceil(a.top_fraction * len(r))
            weight[group] = w / w.mean()

        index, losses = torch.nonzero(weight)[:, 0], []
        for _ in range(a.epochs):
            order = index[rng.take("permutation", len(index))]
            for i in order.tensor_split(max(1, len(index) // a.batch_size)):
                n = len(i)
                u = (torch.arange((n + 1) // 2) + rng.take("uniform", (n + 1) // 2)) / n
                t = torch.cat([u, 1 - u[: n // 2]])[rng.take("permutation", n)]  # antithetic: in pairs t, 1 − t
                if words:  # (1/t) Σ −log p(x₀_i | x_t) over masked i, a token of the answer; MDLM, 2406.07524
                    hidden = (rng.take("uniform", n, 6) < t[:, None]) & live[i]
                    logits = net(torch.where(hidden, HOLE, sample[i]), t, {"padding": padding[i]}).double()
                    logp = logits.log_softmax(-1).gather(-1, sample[i].clamp_max(4)[..., None])[..., 0]
                    each = -(logp * hidden).sum(-1) / t / live[i].sum(-1)
                else:
                    eps = rng.take("normal", n, 2, 2)
                    alpha, sigma = (v[:, None, None] for v in levels(t.double()))
                    x = (alpha * sample[i] + sigma * eps).float()
                    out = net(x, net.embed_time(t), net.embed_condition(None if c is None else c[i])).double()
                    if case == "noise":  # min(SNR, γ) ‖x̂₀ − x₀‖² = min(1, γ/SNR) ‖ε̂ − ε‖², 2303.09556
                        each = ((out - eps) ** 2 * (0.7 * sigma**2 / alpha**2).clamp_max(1)).mean((1, 2))
                    else:  # the flow's ‖v̂ − (ε − x₀)‖², 2210.02747
                        each = ((out - (eps - sample[i])) ** 2).mean((1, 2))
                loss = (weight[i] * each).mean()
                norms.append(descend(opt, loss, 1.0))
                losses.append(loss.item())

        agree(spy.states[it + 1]["policy"], actor.state_dict(), where=f"policy after iteration {it}")
        told = {
            "rollout/reward": sum(reward[i] for i in valid) / len(valid),
            "reward/near": sum(near[i] for i in valid) / len(valid),
            "reward/flat": sum(flat) / N,
            "rollout/num_invalid_rewards": 1,
            "loss/policy": sum(losses) / len(losses),
            "awr/ess_fraction": float(weight.sum() ** 2 / (N * (weight**2).sum())),
        }
        agree(logged[it], told, where=f"row {it}")

    agree(moments(spy.named["optimizer"]), moments(opt), where="moments")
    assert cut_short or not words, "an answer ended before its canvas"
    assert max(norms) > 1 or words, "a gradient was shortened"
    assert tied or case != "sparse", "rewards tied at the least that is learned from"


def test_best_rewards_tie_within_four_units_in_the_last_place() -> None:
    """Beside 1.5, 1.5 − 3 · 2⁻²³ is learned from alike, and 1.5 − 8 · 2⁻²³ is not."""
    ulp = 2.0**-23
    reward = torch.tensor([[1.5 - 3 * ulp, 0.0, 1.5, 1.5 - 8 * ulp]], dtype=torch.float32)
    assert rwr.top_share_weights(reward, 0.25, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[2.0, 0.0, 2.0, 0.0]]
