"""The Gaussian process: predictions convert into each other, noising and losses mean what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Diffusion, Estimate, GaussianDenoiser, Rng, elbo, make_sampler, renoise, rescore, time_grid
from denoiserl.core.tree import expand_right
from denoiserl.processes import (
    Karras,
    Linear,
    Schedule,
    betas_linear,
    cosine,
    ddim,
    edm,
    flow_sde,
    linear,
    vp,
    with_learned_std,
)
from denoiserl.processes.base import draw_stratified_times
from denoiserl.processes.denoiser import Denoiser

MEAN, SPREAD = torch.tensor([0.5, -1.0, 0.2]), 0.7
SCHEDULES: dict[str, Schedule] = {
    "linear": linear, "shift": Linear(3.0), "cosine": cosine, "vp": vp, "edm": edm, "table": betas_linear(),
    "karras": Karras(0.01, 10.0),
}  # fmt: skip


def posterior(x: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return MEAN.to(x) + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x - a * MEAN.to(x))


class Answers(nn.Module):
    """The exact network of N(MEAN, SPREAD²) for one kind of prediction, in float64."""

    def __init__(self, schedule: Schedule, predicts: str, spread: float = 0.5) -> None:
        super().__init__()
        self.schedule, self.predicts, self.spread = schedule, predicts, spread

    def forward(self, x: Tensor, clock: Tensor, context: Any = None) -> Tensor:
        a, s = (expand_right(v, x) for v in self.schedule(clock.double()))
        x, d = x.double(), self.spread
        if self.predicts == "edm":
            x = x * ((a * d) ** 2 + s**2).sqrt()  # it is given the scaled state
        mean = posterior(x, a, s)
        eps = (x - a * mean) / s
        preserving = bool((a**2 + s**2 - 1).abs().max() < 1e-6)
        total = (a * d) ** 2 + s**2
        out = {
            "x0": mean, "eps": eps, "v": a * eps - s * mean if preserving else eps - mean,
            "edm": (mean - a * d**2 / total * x) * total.sqrt() / (s * d),
        }[self.predicts]  # fmt: skip
        return out.float()


@pytest.mark.parametrize("predicts", ["x0", "eps", "v", "edm"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prediction_of_one_exact_denoiser_is_the_same_estimate(name: str, predicts: str) -> None:
    schedule = SCHEDULES[name]
    if predicts == "v" and name in ("edm", "karras"):
        with pytest.raises(ValueError, match="use 'edm'"):
            GaussianDenoiser(nn.Identity(), schedule, "v")
        return
    if predicts == "eps" and name in ("linear", "shift"):
        with pytest.raises(ValueError, match="predict v or x0"):
            GaussianDenoiser(nn.Identity(), schedule, "eps")
        return
    t = torch.linspace(0.03, 0.97, 40)
    a, s = (v[:, None] for v in schedule(t.double()))
    x = a * (MEAN + SPREAD * torch.randn(40, 3)) + s * torch.randn(40, 3)
    denoise = GaussianDenoiser(Answers(schedule, predicts), schedule, predicts)
    found = denoise(x.float(), denoise.embed_time(t), None).mean
    assert isinstance(found, Tensor)
    error = (found - posterior(x, a, s)).abs() / (1 + x.abs())
    assert float(error.max()) < 2e-4  # float32, divided by α where eps is predicted


def test_edm_preconditioning_has_unit_input_and_target() -> None:
    """2206.00364: for data of std `spread` the network's input and target have variance one at every noise level."""
    rng, d = Rng(0), 0.5
    x0, eps = d * rng.normal(40_000).double(), rng.normal(40_000).double()
    for schedule in (edm, linear, vp):
        denoise = GaussianDenoiser(nn.Identity(), schedule, "edm", d)
        for t in (0.1, 0.4, 0.9):
            time = torch.tensor([t], dtype=torch.float64)
            a, s = schedule(time)
            x, c = a * x0 + s * eps, denoise.embed_time(time)
            target = (x0 - c["p"] * x) / c["q"]
            assert abs(float((c["r"] * x).std()) - 1) < 0.02 and abs(float(target.std()) - 1) < 0.02
            assert abs(float((target * x).mean() / x.std())) < 0.02  # skip leaves nothing that is linear in x


def test_noising_has_the_marginals_of_the_schedule_and_spares_what_is_not_live() -> None:
    x0 = torch.full((60_000, 2), 1.5)
    for schedule in (linear, vp):
        t = torch.full((60_000,), 0.4)
        live = torch.tensor([True, False]).expand(60_000, 2)
        noised = Diffusion(schedule).noise(x0, t, Rng(0), live)
        a, s = schedule(torch.tensor(0.4, dtype=torch.float64))
        assert isinstance(noised.x, Tensor)
        assert abs(float(noised.x[:, 0].mean() - a * 1.5)) < 0.02 and abs(float(noised.x[:, 0].std() - s)) < 0.01
        assert torch.equal(noised.x[:, 1], x0[:, 1])
        assert torch.equal(
            noised.x[:, 0],
            (expand_right(schedule(t)[0], x0) * x0 + expand_right(schedule(t)[1], x0) * noised.noise)[:, 0],
        )


class Fixed(Denoiser):
    """Answers one number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        return Estimate(torch.full_like(x, self.value))


@pytest.mark.parametrize("schedule", [linear, cosine, vp], ids=["linear", "cosine", "vp"])
def test_loss_weights_are_errors_of_v_eps_and_x0(schedule: Schedule) -> None:
    rng = Rng(0)
    x0, t = rng.normal(50, 4), 0.05 + 0.9 * rng.uniform(50)
    a, s = (v[:, None] for v in schedule(t))
    preserving = schedule is not linear
    for weight in ("velocity", "noise", "data"):
        process = Diffusion(schedule, weight=weight)  # type: ignore[arg-type]
        noised = process.noise(x0, t, Rng(1))
        assert isinstance(noised.x, Tensor) and isinstance(noised.noise, Tensor)
        guess, eps = torch.full_like(x0, 0.3), noised.noise
        eps_guess = (noised.x - a * guess) / s
        v, v_guess = (a * e - s * d if preserving else e - d for e, d in ((eps, x0), (eps_guess, guess)))
        wanted = {"velocity": v - v_guess, "noise": eps - eps_guess, "data": x0 - guess}[weight].square().mean(-1)
        found = process.loss(Fixed(0.3), noised, None)
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-5)
        live = torch.tensor([True, False, True, False]).expand(50, 4)
        masked = process.loss(Fixed(0.3), noised._replace(mask=live), None)
        part = {"velocity": v - v_guess, "noise": eps - eps_guess, "data": x0 - guess}[weight][:, ::2].square().mean(-1)
        assert torch.allclose(masked, part, rtol=1e-3, atol=1e-5)


class Posterior(Denoiser):
    """The exact posterior mean of N(mean, spread²)."""

    def __init__(self, schedule: Schedule, mean: float, spread: float) -> None:
        super().__init__()
        self.schedule, self.mean, self.spread = schedule, mean, spread

    def forward(self, x: Any, clock: Any, context: Any) -> Estimate:
        a, s = (expand_right(v, x) for v in self.schedule(clock))
        gain = a * self.spread**2 / (a**2 * self.spread**2 + s**2)
        return Estimate(self.mean + gain * (x - a * self.mean))


@pytest.mark.parametrize("schedule", [linear, cosine, vp, Karras(0.02, 5.0)], ids=["linear", "cosine", "vp", "karras"])
def test_the_elbo_of_exact_denoisers_is_the_log_likelihood_ratio(schedule: Schedule) -> None:
    """The bound is tight in continuous time: its difference between two exact models is log p(x₀) − log q(x₀)."""
    process, x0 = Diffusion(schedule), torch.tensor([[0.3], [-0.8], [1.9]])
    models = [(0.0, 1.0), (0.5, 0.7)]
    noised = renoise(process, x0, 4000, Rng(0))
    terms = [elbo(process, Posterior(schedule, *m), noised) for m in models]
    gap = terms[0] - terms[1]
    exact = [-0.5 * ((x0[:, 0] - m) / d) ** 2 - math.log(d) for m, d in models]
    error = (gap.mean(-1) - (exact[0] - exact[1])).abs()
    assert bool((error < 5 * gap.std(-1) / math.sqrt(4000) + 0.03).all()), error


def test_the_elbo_works_without_gradients_and_in_inference_mode() -> None:
    process, x0 = Diffusion(linear), torch.randn(3, 2)
    noised = renoise(process, x0, 4, Rng(0))
    wanted = elbo(process, Fixed(0.2), noised)
    with torch.no_grad():
        assert torch.equal(elbo(process, Fixed(0.2), noised), wanted)
    with torch.inference_mode():
        assert torch.equal(elbo(process, Fixed(0.2), renoise(process, x0, 4, Rng(0))), wanted)


def test_policy_and_reference_share_the_noise() -> None:
    process = Diffusion(vp)
    noised = renoise(process, torch.randn(5, 3), 8, Rng.rows(range(5)))
    a, b = Posterior(vp, 0.1, 1.0), Posterior(vp, 0.1, 1.0)
    assert torch.equal(elbo(process, a, noised), elbo(process, b, noised))
    alone = renoise(process, noised.x0[3:4, 0], 8, Rng.rows([3]))  # type: ignore[index]
    assert torch.equal(alone.x[0], noised.x[3])  # type: ignore[index]


def test_stratified_times_fall_one_in_each_stratum() -> None:
    t = draw_stratified_times((500, 16), Rng(0))
    assert torch.equal((t * 16).floor().sort(-1).values, torch.arange(16.0).expand(500, 16))
    assert abs(float(t[:, 0].mean()) - 0.5) < 0.06  # and in random order: each column is uniform
    assert abs(float(torch.corrcoef(t.T)[0, 1]) + 1 / 15) < 0.2


def test_clip_bounds_the_estimate_of_a_chain_and_not_of_the_loss() -> None:
    process = Diffusion(linear, ddim(1.0), clip=1.0)
    step, x = process.steps(time_grid(4))[1], torch.zeros(2, 3)
    high, one = (process.reverse(Estimate(torch.full((2, 3), v)), x, step).mean for v in (7.0, 1.0))
    assert torch.equal(high, one)
    noised = process.noise(torch.zeros(2, 3), torch.full((2,), 0.5), Rng(0))
    assert float(process.loss(Fixed(7.0), noised, None)[0]) > 100


def test_injected_noise_comes_from_the_network() -> None:
    process = Diffusion(linear, with_learned_std())
    steps = process.steps(time_grid(4))
    assert steps.dense == (True,) * 4
    std = torch.full((2, 3), 0.3)
    law = process.reverse(Estimate(torch.ones(2, 3), {"std": std}), torch.zeros(2, 3), steps[1])
    ode = Diffusion(linear, ddim(0.0)).steps(time_grid(4))
    assert torch.equal(law.std, std)
    assert torch.equal(law.mean, Diffusion(linear).reverse(Estimate(torch.ones(2, 3)), torch.zeros(2, 3), ode[1]).mean)
    with pytest.raises(ValueError, match=r"extra\['std'\]"):
        process.reverse(Estimate(torch.ones(2, 3)), torch.zeros(2, 3), steps[1])


def test_the_prior_is_the_marginal_at_one() -> None:
    assert float(Diffusion(edm).prior((4, 2)).std) == 80.0 and float(Diffusion(linear).prior((4, 2)).std) == 1.0
    assert Diffusion(linear, flow_sde()).prior((4, 2)).log_prob(torch.zeros(4, 2)).shape == (4,)


def test_a_net_of_another_shape_is_named() -> None:
    denoise = GaussianDenoiser(nn.Linear(3, 2), linear, "v")
    denoise.net.forward = lambda x, clock, context: x[..., :2]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"\(4, 2\) for a state of \(4, 3\)"):
        denoise(torch.zeros(4, 3), denoise.embed_time(torch.full((4,), 0.5)), None)
    with pytest.raises(ValueError, match="Did you mean 'eps'"):
        GaussianDenoiser(nn.Identity(), vp, "epsilon")


def test_a_step_that_keeps_the_raw_noise_is_scored_as_it_was_drawn_and_differs_only_where_it_clips() -> None:
    """mean = α_s clamp(x̂₀) + c_x (x − α_t x̂₀), the noise of the raw estimate: one formula, here written out."""
    process = Diffusion(cosine, ddim(1.0), clip=0.4, clip_noise=False)
    denoise = GaussianDenoiser(Answers(cosine, "v"), cosine, "v")
    steps = process.steps(time_grid(6, start=0.95))
    chain = make_sampler(process, denoise, steps, (3,))(None, Rng(0), rows=64)
    for rows in (chain.steps_at(), chain.steps_at(torch.arange(7))):
        law, y = rescore(process, denoise, rows)
        assert torch.equal(law.log_prob(y), rows.log_prob)
    (a_t, s_t), (a_s, s_s), std = cosine(steps.times[:-1]), cosine(steps.times[1:]), steps.table["std"]
    for k in range(5):
        x = chain.states[:, k].double()
        raw = posterior(x, a_t[k], s_t[k])
        eps = (x - a_t[k] * raw) / s_t[k]
        mean = a_s[k] * raw.clamp(-0.4, 0.4) + (s_s[k] ** 2 - std[k] ** 2).sqrt() * eps
        law, _ = rescore(process, denoise, chain.steps_at(torch.arange(64) * len(chain) + k))
        assert torch.allclose(law.mean.double(), mean, atol=1e-5)
    wide, plain = Diffusion(cosine, ddim(1.0), clip=50.0, clip_noise=False), Diffusion(cosine, ddim(1.0))
    one, two = (
        make_sampler(p, denoise, p.steps(steps.times), (3,))(None, Rng(0), rows=64).sample for p in (wide, plain)
    )
    assert torch.allclose(one, two, atol=1e-5)
