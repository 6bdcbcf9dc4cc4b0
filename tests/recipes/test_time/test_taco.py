"""TACO beside 2512.02834 and 2306.03186: plans, the nearest, features, coins, the loss, rates, counts, the choice.

In 104 updates the rate rises and falls; the first two are computed anew.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiserl import Rng
from denoiserl.data import ActionChunkCodec, Demonstrations, Normalizer
from denoiserl.nn import MLP
from denoiserl.policy.policy import Policy
from denoiserl.processes import Diffusion, GaussianDenoiser, ddim, linear, time_grid
from denoiserl.recipes.test_time import taco
from tests.recipes.kit import Spy, Tape, adam, agree, answer, descend, moments

pytestmark = pytest.mark.usefixtures("double")

H, D, S, T_A, LIMIT, CLIP, ETA = 4, 2, 3, 3, 1.2, 0.9, 0.6
T = 1e-5
ENDS = torch.tensor([5, 7, 8, 14])
SEEN = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.6, 0.9, 2.0])
ACTED = torch.tensor([0.1, 0.4]), torch.tensor([4.0, 5.0])
A = taco.Args(
    num_updates=104,
    num_candidates=5,
    num_noise_candidates=6,
    num_coin_flips=3,
    counter_width=8,
    feature_scale=1.7,
    batch_size=7,
    lr=0.05,
)
CASES = {
    "activation": A,
    "plan": replace(A, features="plan", batch_size=50, num_updates=2),
}  # fewer decisions than a batch


def start() -> Policy:
    torch.manual_seed(5)
    process = Diffusion(linear, ddim(1.0), clip=CLIP)
    seen, acted = (replace(Normalizer.identity(len(c)), centre=c, scale=s) for c, s in (SEEN, ACTED))
    net = GaussianDenoiser(MLP((H, D), S, 8, 2, 8), linear, "v")
    serve = process.steps(time_grid(2, spacing="quadratic"), ddim(ETA))  # served otherwise than it was trained
    return Policy.of(process, net, (H, D), process.steps(time_grid(3)), serve, ActionChunkCodec(seen, acted, LIMIT))


def demonstrated() -> Demonstrations:
    torch.manual_seed(6)
    seen = 2 * torch.randn(14, S)
    seen[:, 2] = 0.7  # a number that never changes
    return Demonstrations(seen, 3 * torch.rand(14, D) - 1, ENDS)


@pytest.mark.parametrize("case", CASES)
def test_two_updates_are_those_of_the_paper(case: str) -> None:
    a, made, data, rng = CASES[case], start().with_execution_horizon(T_A), demonstrated(), Tape(3)
    before = {k: v.clone() for k, v in made.denoiser.state_dict().items()}
    spy = Spy(rng)
    logged = list(taco.improve(made, data, a, rng, spy))
    agree(made.denoiser.state_dict(), before, 0.0)
    assert made.weights.execute == T_A
    gauss = made.denoiser

    def G(seen: Tensor, noise: Tensor, fresh: list[Tensor]) -> Tensor:
        """Plans by DDIM, equation 12 of 2010.02502, with x_t = (1 − t) x₀ + t ε and η of the posterior's noise."""
        x = noise
        for k, (t, s) in enumerate(((1.0, 0.25), (0.25, 0.0))):
            x0 = answer(gauss, x, t, seen).mean.clamp(-CLIP, CLIP)
            eps = (x - (1 - t) * x0) / t
            std = ETA * s * math.sqrt(1 - (s * (1 - t) / ((1 - s) * t)) ** 2) if s else 0.0
            x = (1 - s) * x0 + math.sqrt(s**2 - std**2) * eps + std * fresh[k]
        return x

    def phi(seen: Tensor, plan: Tensor) -> Tensor:
        """What enters the last layer when the finished plan is shown at the time of the last step."""
        if case == "plan":
            return torch.cat([seen, plan.flatten(1)], 1).float()
        net = gauss.net
        h = plan.flatten(1) @ net.enter.weight.T + net.embed_time(torch.tensor([0.25])) + net.embed_condition(seen)
        h = h + net.layers[0](torch.nn.functional.gelu(h))
        return torch.nn.functional.gelu(h).float()

    def normed(obs: Tensor) -> Tensor:
        return ((obs - SEEN[0]) / SEEN[1]).clamp(-LIMIT, LIMIT)

    decisions, wanted, real = [], [], []
    for first, end in zip([0, *ENDS.tolist()], ENDS.tolist(), strict=False):
        for now in range(end - first):
            if now + H > end - first + T_A - 1:
                break  # a window reaches over the end by T_a − 1 ticks
            place = [min(first + now + j, end - 1) for j in range(H)]
            decisions.append(first + now)
            wanted.append((data.actions[place] - ACTED[0]) / ACTED[1])
            real.append(torch.tensor([first + now + j < end for j in range(H)]))
    N = len(decisions)
    assert N == 10 and not bool(torch.stack(real).all())
    assert isinstance(data.observations, Tensor)
    seen = normed(data.observations[decisions])
    many = seen.repeat_interleave(a.num_noise_candidates, 0)
    with torch.no_grad():
        plans = G(
            many,
            rng.take("normal", N * a.num_noise_candidates, H, D),
            list(rng.take("normal", 2, N * a.num_noise_candidates, H, D)),
        )
        plans = plans.view(N, a.num_noise_candidates, H, D)
        nearest = []
        for i in range(N):  # what a window repeats was not demonstrated
            apart = [((plan - wanted[i])[real[i]] ** 2).sum() for plan in plans[i]]
            nearest.append(plans[i, int(torch.stack(apart).argmin())])
        features = phi(seen, torch.stack(nearest))

        net = spy.start["coins"]
        spread = features.var(0, correction=0).sqrt()
        moves = spread > 1e-5
        assert int((~moves).sum()) == (1 if case == "plan" else 0)

        def z(x: Tensor) -> Tensor:
            return torch.where(moves, a.feature_scale * (x - features.mean(0)) / spread.clamp_min(1e-5), 0.0)

        prior = answer(net.prior, z(features), 0.0, None)
        mean, std = prior.mean(0), prior.var(0, correction=0).sqrt()  # type: ignore[union-attr]

    def f(x: Tensor) -> Tensor:
        """The learned network, 0 at first, and the frozen prior, standardised on the data (2306.03186)."""
        return answer(net.learned, z(x), 0.0, None) + (answer(net.prior, z(x), 0.0, None) - mean) / std  # type: ignore

    begin = int(rng.take("integers", 1)) * 2_147_483_647
    c = (
        2.0 * Rng.rows(range(begin, begin + N)).integers(0, 2, N, a.num_coin_flips) - 1
    )  # each datum's own, whatever the order
    assert set(c.flatten().tolist()) == {-1.0, 1.0} and len(c.unique(dim=0)) > 2
    agree(answer(net.learned, z(features), 0.0, None), torch.zeros(N, a.num_coin_flips), 0.0)

    opt, losses, counts, warmup = adam(net.learned.parameters(), a.lr), [], [], min(100, a.num_updates)
    for it in range(2):
        i = rng.take("integers", min(a.batch_size, N))
        loss = ((f(features[i]) - c[i]) ** 2).mean()
        for group in opt.param_groups:
            group["lr"] = a.lr * (it + 1) / warmup
        descend(opt, loss)
        losses.append(loss)
        with torch.no_grad():  # how often something like every decision was seen; of ten the fifth
            counts.append((a.num_coin_flips / (f(features) ** 2).sum(1)).sort().values[4])
        found = spy.states[it + 1]["coins"]
        for name in ("learned", "prior"):
            part = {k.removeprefix(f"{name}."): v for k, v in found.items() if k.startswith(f"{name}.")}
            agree(part, getattr(net, name).state_dict(), T, f"{name} after update {it}")
    held = spy.states[2]["optimizer"]["state"]
    agree([held[k][m] for k in held for m in ("exp_avg", "exp_avg_sq")], moments(opt), T, "moments")
    if a.num_updates == 2:  # a row an update
        agree(logged, [{"loss/coin_flip": losses[k], "verifier/count": counts[k]} for k in range(2)], T, "rows")
    else:  # a row of two
        agree(logged[0], {"loss/coin_flip": (losses[0] + losses[1]) / 2, "verifier/count": counts[1]}, T, "row")
        assert len(logged) == 52
    for n in range(a.num_updates):
        rate = (n + 1) / warmup if n < 100 else 0.5 * (1 + math.cos(math.pi * (n - 100) / 4))
        agree(spy.states[n]["optimizer"]["param_groups"][0]["lr"], a.lr * rate, 1e-9, f"rate of update {n}")

    net.load_state_dict(spy.states[-1]["coins"])  # what it learned chooses: the largest count of n plans
    tape, obs = Tape(8), torch.randn(9, S)
    served = made.generate(obs, tape)
    many = normed(obs).repeat_interleave(a.num_candidates, 0)
    with torch.no_grad():
        plans = G(
            many,
            tape.take("normal", 9 * a.num_candidates, H, D),
            list(tape.take("normal", 2, 9 * a.num_candidates, H, D)),
        )
        count = a.num_coin_flips / (f(phi(many, plans)) ** 2).sum(1)
        agree(
            made.weights.control.verifier(made, obs.repeat_interleave(a.num_candidates, 0), plans), count, T, "counts"
        )
        best = count.view(9, a.num_candidates).argmax(1)
    assert len(best.unique()) > 1
    chosen = plans.view(9, a.num_candidates, H, D)[torch.arange(9), best]
    agree(served, ACTED[0] + ACTED[1] * chosen.clamp(-1, 1), T, "served")
