"""Pairs of times that a mean flow learns at, and the table and clock of its chains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoiserl import Estimate, Rng, renoise, time_grid
from denoiserl.processes import MeanFlow, MeanVelocityDenoiser

N = 40_000


def quantiles(values: Tensor) -> Tensor:
    return values.double().quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))


@pytest.mark.parametrize(("mean", "std"), [(0.3, 1.7), (-1.0, 0.4)])
def test_pairs_are_two_draws_of_the_law_that_was_asked_for_in_order(mean: float, std: float) -> None:
    noised = MeanFlow(same=0.0, mean=mean, std=std).noise(torch.zeros(N, 1), (torch.arange(N) + 0.5) / N, Rng(0))
    drawn = torch.sigmoid(mean + std * Rng(1).normal(2, N)).sort(0).values
    t, r = noised.t, noised.noise["r"]  # type: ignore[index]
    for ours, theirs in ((t, drawn[1]), (r, drawn[0]), (t - r, drawn[1] - drawn[0])):
        torch.testing.assert_close(quantiles(ours), quantiles(theirs), atol=0.015, rtol=0)


def test_levels_and_places_are_quantiles_and_shares_of_single_draws() -> None:
    process = MeanFlow(mean=0.3, std=1.7)
    drawn = torch.sigmoid(0.3 + 1.7 * Rng(1).normal(N))
    for p in (0.1, 0.5, 0.9):
        level = process.level(torch.tensor(p))
        assert abs(float((drawn < level).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / N)
        assert float(process.level_cdf(level)) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(("same", "ends"), [(0.3, 0.2), (0.0, 0.4), (0.6, 0.4), (1.0, 0.0)])
def test_the_shares_of_pairs_are_those_that_were_asked_for(same: float, ends: float) -> None:
    noised = MeanFlow(same, ends).noise(Rng(5).normal(N, 1), (torch.arange(N) + 0.5) / N, Rng(0))
    t, r = noised.t, noised.noise["r"]  # type: ignore[index]
    last = (t == 1) & (r == 0)
    for found, wanted in ((last, ends), (r == t, same)):
        share = float(found.double().mean())
        assert abs(share - wanted) <= 5 * math.sqrt(wanted * (1 - wanted) / N)
    assert bool((r <= t).all())
    x = (1 - t)[:, None] * noised.x0 + t[:, None] * noised.noise["eps"]  # type: ignore[index,operator]
    torch.testing.assert_close(noised.x, x)


@pytest.mark.parametrize("uniform", [True, False])
def test_noisings_of_clean_data_keep_their_times_and_have_an_r_below_them(uniform: bool) -> None:
    """Given t the smaller time is a single draw below it: its place is uniform on (0, place of t)."""
    process = MeanFlow(same=0.25, ends=0.5, mean=0.2, std=1.2)
    noised = renoise(process, torch.zeros(5000, 1), 8, Rng(0), uniform=uniform)
    t, r = noised.t.flatten(), noised.noise["r"].flatten()  # type: ignore[index]
    still, n = r == t, 40_000
    assert abs(float(still.double().mean()) - 0.25) < 5 * math.sqrt(0.1875 / n)  # and none at the ends
    assert float(t.max()) < 1 and float(r.min()) > 0 and (noised.weight is None) is uniform
    middle = ~still & (t > 0.2) & (t < 0.9)
    share = process.level_cdf(r[middle]) / process.level_cdf(t[middle])
    torch.testing.assert_close(
        quantiles(share), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double(), atol=0.02, rtol=0
    )


class Clock(nn.Module):
    """u = 2 t − r in every number, in a precision of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def embed_time(self, t: Tensor, r: Tensor) -> dict[str, Tensor]:
        return {"late": t, "early": r}

    def forward(self, x: Tensor, clock: dict[str, Tensor], context: Any) -> Tensor:
        u = 2 * clock["late"] - clock["early"]
        return (u.reshape(-1, *[1] * (x.ndim - 1)) + 0 * x).to(self.dtype)


def test_a_chains_clock_tells_each_step_where_it_begins_and_ends() -> None:
    """x_s = x_t − (t − s)(2 t − s), walked in Python floats; every step by itself, and the last one to 0."""
    denoise, process, times = MeanVelocityDenoiser(Clock()), MeanFlow(), torch.tensor([1.0, 0.6, 0.25, 0.0]).double()
    steps, clock = process.steps(times), denoise.embed_time(times[:-1].float())
    x, wanted = torch.tensor([[0.5, -1.0]]), [0.5, -1.0]
    for k, (t, s) in enumerate(((1.0, 0.6), (0.6, 0.25), (0.25, 0.0))):
        row = {n: {m: w[k : k + 1] for m, w in v.items()} if isinstance(v, dict) else v[k : k + 1]
               for n, v in clock.items()}  # fmt: skip
        estimate = denoise(x, row, None)
        assert estimate.extra["r"].tolist() == pytest.approx([s])
        law = process.reverse(estimate, x, steps[k])
        assert law.has_density is False
        x, wanted = law.sample(None), [v - (t - s) * (2 * t - s) for v in wanted]
        assert x[0].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_exploration_noise_is_on_every_step_and_leaves_the_mean(std: float) -> None:
    process = MeanFlow()
    quiet, loud = process.steps(time_grid(4)), process.steps(time_grid(4), std)
    assert loud.table["std"].tolist() == [std] * 4 and loud.dense == (std > 0,) * 4
    estimate, x = Estimate(Rng(0).normal(3, 2)), Rng(1).normal(3, 2)
    for k in range(4):
        one, other = (process.reverse(estimate, x, steps[k]) for steps in (quiet, loud))
        assert torch.equal(one.mean, other.mean)
        torch.testing.assert_close(other.sample(torch.ones(3, 2)) - one.mean, torch.full((3, 2), std))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_velocities_are_at_least_float32(dtype: torch.dtype) -> None:
    denoise = MeanVelocityDenoiser(Clock(dtype))
    u = denoise.velocity(torch.zeros(2, 3), denoise.embed_time_pair(torch.ones(2), torch.zeros(2)), None)
    assert u.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_each_row_moves_with_its_own_condition() -> None:
    """Rows of which some do not move: the derivative of row i is that of its own condition, u = c_i t², by hand."""

    class Bent(nn.Module):
        def forward(self, x: Tensor, clock: dict[str, Tensor], context: Tensor) -> Tensor:
            return context[:, None] * clock["t"][:, None] ** 2 + 0 * x

    process, cond = MeanFlow(), torch.tensor([1.0, -2.0, 3.0, 0.5])
    t, r = torch.tensor([0.9, 0.5, 0.7, 0.4]), torch.tensor([0.9, 0.1, 0.7, 0.3])
    noised = process.noise(torch.zeros(4, 1), torch.full((4,), 0.5), Rng(0))
    eps = torch.tensor([[0.3], [0.1], [-0.2], [0.7]])
    noised = noised._replace(x=t[:, None] * eps, t=t, noise={"eps": eps, "r": r})
    u, slope = cond * t**2, 2 * cond * t
    wanted = (u - (eps[:, 0] - (t - r) * slope)).square()
    torch.testing.assert_close(process.loss(MeanVelocityDenoiser(Bent()), noised, cond), wanted)
