"""Steps of the Gaussian process against straight computations: Bayes' rule, clamping, rows of different steps, masks,
and the numbers that noisings are weighted with."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Denoiser, Diffusion, Estimate, GaussianDenoiser, Rng, elbo, make_sampler, renoise, time_grid
from denoiserl.processes import Linear, Schedule, cosine, ddim, edm, flow_sde, linear, vp, with_learned_std
from denoiserl.processes.diffusion import even_times

SCHEDULES: dict[str, Schedule] = {"linear": linear, "shift": Linear(3.0), "cosine": cosine, "vp": vp, "edm": edm}
MU, SD = 0.7, 0.6


class Posterior(Denoiser):
    """E[x₀ | x_t] of data N(MU, SD²), by the precision of data and of noise."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, clock: Tensor, context: Any) -> Estimate:
        a, s = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in self.schedule(clock.double()))
        precision = 1 / SD**2 + (a / s) ** 2
        return Estimate(((MU / SD**2 + a * x / s**2) / precision).float())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_has_the_moments_of_bayes_rule_when_x0_is_known(name: str, eta: float) -> None:
    """q(x_s | x_t, x₀) of DDIM's joint: given x₀ the pair is Gaussian with the covariance that the std leaves; the mean
    and the variance of x_s given x_t are conditioned with a 2 × 2 covariance matrix."""
    schedule, times = SCHEDULES[name], torch.tensor([0.9, 0.5, 0.2, 0.05], dtype=torch.float64)
    process = Diffusion(schedule, ddim(eta))
    steps = process.steps(times)
    for k in range(3):
        (a_t, s_t), (a_s, s_s) = ([float(v) for v in schedule(t)] for t in (times[k], times[k + 1]))
        exact = s_s * math.sqrt(1 - (s_s * a_t / (a_s * s_t)) ** 2)  # the std of the true posterior
        std = eta * exact
        cov = s_t * math.sqrt(s_s**2 - std**2)  # what x_t and x_s share, so that x_s keeps its variance σ_s²
        x0, x = 1.3, torch.tensor([[0.4], [-1.0]])
        law = process.reverse(Estimate(torch.full((2, 1), x0)), x, steps[k])
        wanted = a_s * x0 + cov / s_t**2 * (x.double() - a_t * x0)
        assert torch.allclose(law.mean.double(), wanted, rtol=1e-4, atol=1e-5)
        assert float(law.std) ** 2 == pytest.approx(s_s**2 - cov**2 / s_t**2, rel=1e-4, abs=1e-10)
        if eta == 1:  # a Markov chain: x_t = (α_t/α_s) x_s + noise, so the two share (α_t/α_s) σ_s²
            assert cov == pytest.approx(a_t / a_s * s_s**2, rel=1e-6)


def test_chains_have_the_mean_and_the_std_that_their_recursion_foretells() -> None:
    """20 thousand rows of five steps, against sums of variances in Python floats."""
    n, times = 20_000, time_grid(5)
    for rule in (ddim(1.0), flow_sde(0.7)):
        process = Diffusion(linear, rule)
        steps = process.steps(times)
        chain = make_sampler(process, Posterior(linear), steps, (1,))(None, Rng(0), rows=n)
        mean, var = 0.0, 1.0
        for k in range(5):
            t = float(times[k])
            gain = (1 - t) / t**2 / (1 / SD**2 + ((1 - t) / t) ** 2)
            c_0, c_x, std = (steps[k].table[name] for name in ("c_0", "c_x", "std"))
            mean = c_0 * (MU + gain * (mean - (1 - t) * MU)) + c_x * mean
            var = (c_0 * gain + c_x) ** 2 * var + std**2
            state = chain.states[:, k + 1]
            assert float(state.mean()) == pytest.approx(mean, abs=5 * math.sqrt(var / n))
            assert float(state.std()) == pytest.approx(math.sqrt(var), rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("clip", [0.4, 2.0])
@pytest.mark.parametrize("raw", [False, True])
def test_the_estimate_is_clamped_at_both_ends_by_its_own_bound(clip: float, raw: bool) -> None:
    """What lies inside stays; what lies outside is the bound. The raw noise is that of the unclamped estimate."""
    process, plain = Diffusion(cosine, ddim(0.5), clip=clip, clip_noise=not raw), Diffusion(cosine, ddim(0.5))
    steps, x = process.steps(time_grid(4)), torch.tensor([[0.3]])
    (a_t, s_t), (a_s, s_s) = (cosine(torch.tensor(t, dtype=torch.float64)) for t in (0.75, 0.5))
    for said in (-9.0, -clip, -0.3, 0.2, clip, 5.0):
        inside = min(max(said, -clip), clip)
        law = process.reverse(Estimate(torch.tensor([[said]])), x, steps[1])
        noise = (0.3 - a_t * (said if raw else inside)) / s_t
        wanted = a_s * inside + (s_s**2 - float(law.std) ** 2).sqrt() * noise
        assert float(law.mean) == pytest.approx(float(wanted), abs=1e-5)
        if abs(said) <= clip:
            same = plain.reverse(Estimate(torch.tensor([[said]])), x, plain.steps(time_grid(4))[1])
            assert float(law.mean) == pytest.approx(float(same.mean), abs=1e-5)


@pytest.mark.parametrize("event", [(), (3,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("clip_noise", [True, False])
def test_rows_of_different_steps_are_each_its_own_step(event: tuple[int, ...], clip_noise: bool) -> None:
    """One log-probability an event, whatever its shape: a sum over all of its factors."""
    process = Diffusion(vp, ddim(1.0), clip=0.8, clip_noise=clip_noise)
    steps, index = process.steps(time_grid(6, end=0.1)), torch.tensor([4, 0, 2, 2])
    x, guess, y = Rng(0).normal(3, 4, *event)
    many = process.reverse(Estimate(guess), x, steps.gather(index))
    assert many.event_dims == len(event) and many.log_prob(y).shape == (4,)
    assert many.num_factors.tolist() == [float(math.prod(event))] * 4
    for i, k in enumerate(index.tolist()):
        row = slice(i, i + 1)
        for table in (steps[k], steps.on(torch.device("cpu"))[k]):
            one = process.reverse(Estimate(guess[row]), x[row], table)
            normal = torch.distributions.Normal(one.mean, one.std).log_prob(y[row])
            assert torch.allclose(many.mean[row], one.mean, atol=1e-5)
            assert torch.allclose(one.log_prob(y[row]), normal.reshape(1, -1).sum(1), rtol=1e-4)
            assert torch.allclose(many.log_prob(y)[row], one.log_prob(y[row]), rtol=1e-4, atol=1e-4)


def test_a_table_may_have_another_transition_than_its_process() -> None:
    loud, quiet = Diffusion(linear, ddim(1.0)), Diffusion(linear, ddim(0.0))
    for process, rule in itertools.product((loud, quiet), (ddim(0.0), flow_sde(0.5))):
        made, own = process.steps(time_grid(4), rule), Diffusion(linear, rule).steps(time_grid(4))
        assert made.dense == own.dense and all(torch.equal(made.table[k], own.table[k]) for k in own.table)


def test_learned_stds_are_those_of_each_row_and_number() -> None:
    process = Diffusion(linear, with_learned_std())
    steps, std = process.steps(time_grid(4)), torch.rand(3, 2) + 0.1
    for step in (steps[1], steps.gather(torch.tensor([1, 1, 1]))):
        law = process.reverse(Estimate(torch.zeros(3, 2), {"std": std}), torch.ones(3, 2), step)
        assert torch.allclose(law.sample(torch.ones(3, 2)) - law.sample(torch.zeros(3, 2)), std, atol=1e-6)
        assert law.has_density is True


@pytest.mark.parametrize("schedule", [linear, vp, edm], ids=["linear", "vp", "edm"])
def test_an_elbo_of_live_factors_is_that_of_these_factors_alone(schedule: Schedule) -> None:
    process, live = Diffusion(schedule), torch.tensor([[True, False, True], [False, True, False]])
    noised = renoise(process, Rng(0).normal(2, 3), 50, Rng(1), live)
    assert bool((noised.x == noised.x0)[~live[:, None].expand(2, 50, 3)].all())
    found, x = elbo(process, Posterior(schedule), noised), noised.x0
    each = []
    for i in range(3):
        part = noised._replace(x=noised.x[..., i : i + 1], x0=x[..., i : i + 1], noise=None, mask=None)
        each.append(elbo(process, Posterior(schedule), part))
    wanted = (torch.stack(each, -1) * live[:, None]).sum(-1)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", [linear, vp], ids=["linear", "vp"])
def test_noisings_of_the_elbo_are_weighted_to_uniform_times(schedule: Schedule) -> None:
    """E over draws of weight · f(t) is ∫ f dt: for the share of times in a band, and for t³ over the range.

    What an SNR range leaves out of (0, 1) holds less than a percent of either.
    """
    noised = Diffusion(schedule).renoise(torch.zeros(4000, 1), 16, Rng(0))
    assert noised.weight is not None
    t, w = noised.t.double(), noised.weight.double()
    for values, wanted in (((t > 0.3) & (t < 0.6), 0.3), (t**3, 0.25), (t > 0.9, 0.1)):
        terms = (w * values).mean(-1)
        assert float(terms.mean()) == pytest.approx(wanted, abs=5 * float(terms.std()) / math.sqrt(4000) + 0.004)
    a, s = schedule(t)
    log_snr = 2 * (a / s).log()
    for share in (0.25, 0.5, 0.75):  # even in the log of the SNR
        level = (1 - share) * log_snr.min() + share * log_snr.max()
        assert float((log_snr < level).double().mean()) == pytest.approx(share, abs=0.01)


def test_noisings_of_the_elbo_fall_one_in_each_stratum_of_the_log_snr() -> None:
    """768 strata do not end where the cells do between which times are interpolated: their order inside one counts."""
    knots = even_times(linear)
    t = Diffusion(linear).renoise(torch.zeros(20, 1), 768, Rng(0)).t.double()
    k = torch.searchsorted(knots, t).clamp(1, len(knots) - 1) - 1
    place = (k + (t - knots[k]) / (knots[k + 1] - knots[k])) / (len(knots) - 1)
    held = torch.stack([torch.bincount(row, minlength=768) for row in (place * 768).long().clamp(0, 767)])
    assert float((held == 1).double().mean()) > 0.99  # float32 rounds a few over their borders


class Told(nn.Module):
    """An answer in a precision of its own, with something beside it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor, clock: Any, context: Any) -> Any:
        return (0.5 * x).to(self.dtype), {"value": torch.arange(len(x))}


@pytest.mark.parametrize("predicts", ["x0", "v", "eps", "edm"])
def test_what_a_network_says_beside_its_answer_goes_on_and_estimates_are_float32(predicts: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        denoise, x = GaussianDenoiser(Told(dtype), vp, predicts), Rng(0).normal(4, 3)
        found = denoise(x, denoise.embed_time(torch.full((4,), 0.5)), None)
        assert found.mean.dtype == torch.float32 and found.extra["value"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spread", [0.3, 2.0])
@pytest.mark.parametrize("name", ["shift", "vp", "edm"])
def test_edm_preconditioning_is_the_best_linear_guess_for_data_of_any_spread(name: str, spread: float) -> None:
    """With F = 0 the estimate is the posterior mean of N(0, spread²); F's input has variance one."""
    schedule, t = SCHEDULES[name], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    a, s = schedule(t)
    clock = GaussianDenoiser(nn.Identity(), schedule, "edm", spread).embed_time(t)
    assert torch.allclose(clock["p"], (a / s**2) / (1 / spread**2 + (a / s) ** 2), rtol=1e-9)
    variance = 1 / (1 / spread**2 + (a / s) ** 2)  # of x₀ given x_t: what is left for q F, with F of variance one
    assert torch.allclose(clock["q"] ** 2, variance, rtol=1e-9) and bool((clock["q"] > 0).all())
    assert torch.allclose(clock["r"] ** 2 * (a**2 * spread**2 + s**2), torch.ones(3).double(), rtol=1e-9)


def test_a_network_is_told_its_own_clock_and_its_own_context() -> None:
    class Net(nn.Module):
        def embed_time(self, t: Tensor) -> Tensor:
            return 10 * t

        def embed_condition(self, cond: Tensor) -> Tensor:
            return 100 * cond

        def forward(self, x: Tensor, clock: Tensor, context: Tensor) -> Tensor:
            return (clock + context)[:, None] + 0 * x

    t, cond, x = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.1, -0.3, 0.2]), Rng(0).normal(3, 2)
    said = (10 * t + 100 * cond)[:, None]
    a, s = (v[:, None] for v in vp(t))
    for predicts, wanted in (("x0", said + 0 * x), ("eps", (x - s * said) / a), ("v", a * x - s * said)):
        denoise = GaussianDenoiser(Net(), vp, predicts)
        found = denoise(x, denoise.embed_time(t), denoise.embed_condition(cond)).mean
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
