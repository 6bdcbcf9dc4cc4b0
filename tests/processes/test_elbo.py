"""The ELBO of Gaussian data in closed form: unbiased, and precise with few noisings, under every schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from denoiserl import Diffusion, Estimate, Rng, elbo, renoise
from denoiserl.policy.likelihood import denoising_losses
from denoiserl.processes import Karras, Linear, MeanFlow, Schedule, betas_linear, cosine, edm, linear, vp
from denoiserl.processes.diffusion import even_times
from tests.processes.test_diffusion import Posterior

SCHEDULES: dict[str, Schedule] = {
    "linear": linear, "shift": Linear(3.0), "cosine": cosine, "vp": vp, "edm": edm, "table": betas_linear(),
}  # fmt: skip
ONE, OTHER = (0.0, 1.0), (0.5, 0.7)


class Averages:
    """The mean flow's denoiser of exact Gaussian data: at r = t the posterior mean, whatever else it says."""

    def __init__(self, mean: float, spread: float) -> None:
        self.inner = Posterior(linear, mean, spread)

    def embed_condition(self, cond: Any) -> Any:
        return cond

    def embed_time_pair(self, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return t

    def velocity(self, x: Any, clock: Any, context: Any) -> Any:
        raise AssertionError("the ELBO needs no velocity")

    def __call__(self, x: Any, clock: Any, context: Any) -> Estimate:
        return self.inner(x, clock, context)


def terms(name: str, model: tuple[float, float], x0: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """[batch, n]; the noise depends on the seed alone."""
    if name == "mean flow":
        process, denoise = MeanFlow(), Averages(*model)
    else:
        process, denoise = Diffusion(SCHEDULES[name]), Posterior(SCHEDULES[name], *model)
    return elbo(process, denoise, renoise(process, x0, n, Rng(seed)))  # type: ignore[arg-type]


def exact(x0: torch.Tensor, mean: float, spread: float) -> torch.Tensor:
    each = -0.5 * ((x0 - mean) / spread) ** 2 - math.log(spread) - 0.5 * math.log(2 * math.pi)
    return each.sum(-1)


@pytest.mark.parametrize("name", [*SCHEDULES, "mean flow"])
def test_few_noisings_say_which_gaussian_is_likelier(name: str) -> None:
    """64 of them know a log-likelihood ratio of about 1 to 0.6 per row, without bias over 400 draws (at uniform times
    the std is 70 with 16 thousand)."""
    x0 = torch.tensor([[0.3], [-0.8], [1.9]]).repeat_interleave(400, 0)
    gap = terms(name, ONE, x0, 64, 0) - terms(name, OTHER, x0, 64, 0)
    found, wanted = gap.mean(-1), exact(x0, *ONE) - exact(x0, *OTHER)
    assert float(found.unflatten(0, (3, 400)).std(1).max()) < 0.6
    error = (found - wanted).unflatten(0, (3, 400)).mean(1).abs()
    assert bool((error < 5 * 0.6 / 20 + 0.02).all()), error


@pytest.mark.parametrize("name", ["linear", "vp", "mean flow"])
def test_over_data_the_difference_is_the_divergence(name: str) -> None:
    """E over x₀ of the difference is KL(N(0, 1) ‖ N(0.5, 0.7²)) per dimension, from one noising per row."""
    x0 = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    gap = (terms(name, ONE, x0, 1, 1) - terms(name, OTHER, x0, 1, 1)).flatten()
    kl = 2 * (math.log(0.7) + (1 + 0.25) / (2 * 0.49) - 0.5)
    assert abs(float(gap.mean()) - kl) < 5 * float(gap.std()) / 200 < 0.2


@pytest.mark.parametrize("name", ["linear", "shift", "mean flow"])
def test_with_the_ends_it_is_the_likelihood_itself(name: str) -> None:
    """The clean end adds the entropy of its noise, ½ log SNR − ½ log 2πe a dimension; the noisy end adds nothing."""
    x0 = torch.tensor([[0.3, -0.1, 0.0], [1.5, -2.0, 0.4]])
    found = terms(name, OTHER, x0, 40_000, 2)
    ends = 0.5 * math.log(1e8) - 0.5 * math.log(2 * math.pi) - 0.5
    error = found.mean(-1) + 3 * ends - exact(x0, *OTHER)
    assert bool((error.abs() < 5 * found.std(-1) / 200 + 0.02).all()) and float(found.std(-1).max()) / 200 < 0.3


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_are_even_in_the_log_of_the_signal_to_noise_ratio(name: str) -> None:
    a, s = SCHEDULES[name](even_times(SCHEDULES[name]))
    steps = (a / s).log().diff()
    assert bool((steps < 0).all()) and float((steps / steps.mean() - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("process", [Diffusion(linear), Diffusion(Karras(0.02, 5.0))], ids=["linear", "karras"])
def test_the_training_loss_keeps_its_uniform_times(process: Diffusion) -> None:
    """What ``denoising_losses`` reads: one time in each of n equal strata, and no weight of an ELBO."""
    noised = renoise(process, torch.randn(50, 2), 8, Rng(0), uniform=True)
    assert torch.equal((noised.t * 8).floor().sort(-1).values, torch.arange(8.0).expand(50, 8))
    assert noised.weight is None
    denoise = Posterior(process.schedule, 0.0, 1.0)
    flat = noised._replace(
        **{k: getattr(noised, k).flatten(0, 1) for k in ("x", "t", "x0", "noise")}  # type: ignore[union-attr]
    )
    torch.testing.assert_close(denoising_losses(process, denoise, noised).flatten(), process.loss(denoise, flat, None))


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_noising_in_each_cell_weighs_as_much_as_the_interval_of_times_is_long(name: str) -> None:
    """1/p of a time is 512 widths of its cell, so the mean over one time in each of the 512 cells is ∫ dt. A time that
    rounding moved to the next cell changes it by 1.3e-4 at most."""
    times = even_times(SCHEDULES[name])
    noised = renoise(Diffusion(SCHEDULES[name]), torch.zeros(3, 1), len(times) - 1, Rng(0))
    assert noised.weight is not None
    length = times[-1] - times[0]
    torch.testing.assert_close(noised.weight.double().mean(-1), length.expand(3), rtol=2e-4, atol=0.0)
