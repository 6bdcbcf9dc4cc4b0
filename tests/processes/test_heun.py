"""Heun's sampler and its churn: which levels the network is asked at, how much noise is added, what a guide moves."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from denoiserl.core.counters import UsageCounter
from denoiserl.core.rng import Rng
from denoiserl.processes import GaussianDenoiser, Karras, edm, time_grid
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.edm_training import Churn, EDMTraining, heun, time_of

NARROW = Karras(0.1, 2.0, 3.0)


class Watched(Denoiser):
    """x̂₀ = gain · x + c, and a record of the levels that it was asked at."""

    def __init__(self, schedule: Karras, gain: float = 1.0) -> None:
        super().__init__()
        self.schedule, self.gain, self.levels = schedule, gain, []

    def embed_condition(self, cond: Any) -> Any:
        return None if cond is None else 2 * cond

    def forward(self, x: Tensor, clock: Tensor, context: Any) -> Estimate:
        self.levels.append(float(self.schedule(clock.double())[1]))
        return Estimate(self.gain * x + (0 if context is None else context[:, None] / 2))


@pytest.mark.parametrize(
    ("sigma", "steps", "amount", "wanted"),
    [
        (1.0, 128, 80.0, math.sqrt(2) - 1), (1.0, 400, 80.0, 0.2), (1.0, 193, 80.0, math.sqrt(2) - 1),
        (0.05, 400, 80.0, 0.2), (50.0, 400, 80.0, 0.2), (0.0499, 400, 80.0, 0.0), (50.1, 400, 80.0, 0.0),
        (1.0, 5, 0.0, 0.0),
    ],
)  # fmt: skip
def test_the_level_is_raised_by_the_published_share(sigma: float, steps: int, amount: float, wanted: float) -> None:
    """S_churn / N, at most √2 − 1, between the levels and at both of them: algorithm 2 of 2206.00364."""
    assert Churn(amount).gamma(sigma, steps) == pytest.approx(wanted, rel=1e-12, abs=0)


def test_the_network_is_asked_at_the_raised_level_and_then_at_the_next() -> None:
    times, churn, net = time_grid(6), Churn(1.2, 0.3, 1.5), Watched(NARROW, 0.5)
    levels = NARROW(times)[1].tolist()
    wanted = []
    for now, after in itertools.pairwise(levels):
        wanted += [now * (1.2 if 0.3 <= now <= 1.5 else 1.0)] + ([after] if after > 0 else [])
    with UsageCounter().open() as usage:
        heun(net, times, (2,), 7, Rng(0), churn=churn, schedule=NARROW)
    assert net.levels == pytest.approx(wanted, rel=1e-4) and len(wanted) == 11
    assert usage.counts["denoiser_calls"] == 11 and usage.counts["denoiser_rows"] == 77
    assert any(a > 1.01 * b for a, b in zip(wanted, levels, strict=False))


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_churn_adds_the_variance_that_the_raise_means(scale: float) -> None:
    """To a network that answers its state nothing moves but by churn: σ₀² + Σ S² (σ̂² − σ²) is what remains."""
    times, rows = time_grid(6), 200_000
    levels = NARROW(times)[1].tolist()
    made = heun(Watched(NARROW), times, (1,), rows, Rng(0), churn=Churn(1.2, 0.3, 1.5, scale), schedule=NARROW)
    raised = [v for v in levels if 0.3 <= v <= 1.5]
    assert 1 < len(raised) < 6
    variance = levels[0] ** 2 + sum(scale**2 * (1.44 - 1) * v**2 for v in raised)
    assert float(made.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / rows))
    assert abs(float(made.mean())) < 5 * math.sqrt(variance / rows)


def test_a_linear_network_is_walked_as_a_product_of_its_steps() -> None:
    """x̂₀ = ½ x: dx/dσ = x/(2σ). With churn that adds no noise (scale ≈ 0) each step begins at the raised level:
    a trapezium of slopes there and at the next level, and one Euler step to 0."""
    times = time_grid(5)
    levels = NARROW(times)[1].tolist()
    made = heun(Watched(NARROW, 0.5), times, (1,), 4, Rng(0), churn=Churn(2.0, 0.3, 1.5, 1e-12), schedule=NARROW)
    factor = 1.0
    for now, after in itertools.pairwise(levels):
        high = now * (1.4 if 0.3 <= now <= 1.5 else 1.0)
        slope = 0.5 / high
        moved = 1 + (after - high) * slope
        if after > 0:
            moved = 1 + (after - high) * (slope + 0.5 * moved / after) / 2
        factor *= moved
    assert torch.allclose(made, factor * 2.0 * Rng(0).normal(4, 1), rtol=1e-4)


def test_a_guide_moves_the_state_before_a_step_and_is_told_the_mean_at_its_level() -> None:
    class Exact(Denoiser):
        """The posterior mean of N(0, 1)."""

        def forward(self, x: Tensor, clock: Tensor, context: Any) -> Estimate:
            return Estimate(x / (1 + NARROW(clock.double())[1].float() ** 2))

    seen: list[tuple[int, Tensor]] = []
    levels = NARROW(time_grid(4))[1].tolist()

    def guide(x: Tensor, k: int, mean: Any) -> Tensor:
        torch.testing.assert_close(mean(), x / (1 + levels[k] ** 2), rtol=1e-4, atol=1e-6)
        seen.append((k, x))
        return torch.full_like(x, 3.0) if k == 3 else x

    made = heun(Exact(), time_grid(4), (2,), 5, Rng(0), churn=Churn(0.0), schedule=NARROW, guide=guide)
    plain = heun(Exact(), time_grid(4), (2,), 5, Rng(0), churn=Churn(0.0), schedule=NARROW)
    assert [k for k, _ in seen] == [0, 1, 2, 3] and torch.equal(seen[0][1], 2.0 * Rng(0).normal(5, 2))
    torch.testing.assert_close(made, torch.full((5, 2), 3 / (1 + levels[3] ** 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(seen[3][1] / (1 + levels[3] ** 2), plain, rtol=1e-4, atol=1e-6)


def test_the_last_step_lands_on_the_answer_to_the_condition() -> None:
    """A network that answers its condition alone: the slope leads there from anywhere, churned or not."""
    cond = torch.tensor([1.0, -2.0, 0.5])
    made = heun(Watched(edm, 0.0), time_grid(8), (4,), 3, Rng(0), cond)
    torch.testing.assert_close(made, cond[:, None].expand(3, 4), rtol=0, atol=1e-5)


def test_one_step_is_the_mean_at_the_first_level() -> None:
    for schedule in (edm, NARROW):
        with UsageCounter().open() as usage:
            made = heun(Watched(schedule, 0.25), time_grid(1), (3,), 4, Rng(0), churn=Churn(0.0), schedule=schedule)
        torch.testing.assert_close(made, 0.25 * schedule.sigma_max * Rng(0).normal(4, 3), rtol=1e-5, atol=0)
        assert usage.counts["denoiser_calls"] == 1 and usage.counts["denoiser_rows"] == 4


@pytest.mark.parametrize("schedule", [edm, NARROW, Karras(0.01, 1.0, 5.0)])
def test_times_of_training_are_those_of_log_normal_levels_inside_the_range(schedule: Karras) -> None:
    """The quantile u of a level is Φ((ln σ − mean)/std); beyond the range levels stand at its ends."""
    made = EDMTraining(schedule, mean=-0.5, std=0.8)
    u = torch.tensor([1e-7, 0.1, 0.3, 0.5, 0.8, 0.95, 1 - 1e-7], dtype=torch.float64)
    sigma = schedule(made.times(u))[1]
    assert bool((sigma >= schedule.sigma_min * (1 - 1e-3)).all() and (sigma <= schedule.sigma_max * (1 + 1e-9)).all())
    inside = (sigma > 1.01 * schedule.sigma_min) & (sigma < 0.99 * schedule.sigma_max)
    back = torch.distributions.LogNormal(-0.5, 0.8).cdf(sigma)
    torch.testing.assert_close(back[inside], u[inside], rtol=1e-4, atol=1e-6)
    assert int(inside.sum()) >= 3 and made.times(u.float()).dtype == torch.float32
    torch.testing.assert_close(time_of(sigma[inside], schedule), schedule.inverse(sigma[inside]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("d", [0.5, 2.0])
@pytest.mark.parametrize("sigma", [0.11, 0.7, 1.9])
def test_the_loss_is_the_squared_error_of_the_networks_own_output(sigma: float, d: float) -> None:
    """λ(σ) c_out² = 1 (2206.00364): the weighted error is that of F to its target, whatever the level."""

    class Raw(torch.nn.Module):
        def forward(self, x: Tensor, clock: Tensor, context: Any = None) -> Tensor:
            return torch.sin(x)

    x0, eps = d * Rng(0).normal(50, 3), Rng(1).normal(50, 3)
    made, denoise = EDMTraining(NARROW, d), GaussianDenoiser(Raw(), NARROW, "edm", d)
    t = time_of(torch.full((50,), sigma, dtype=torch.float64), NARROW).float()
    noised = made.noise(x0, torch.full((50,), 0.5), Rng(2))._replace(x=x0 + sigma * eps, t=t)
    scale = math.sqrt(sigma**2 + d**2)
    target = (x0 - d**2 / scale**2 * noised.x) * scale / (sigma * d)
    wanted = (torch.sin(noised.x / scale) - target).square().mean(-1)
    torch.testing.assert_close(made.loss(denoise, noised, None), wanted, rtol=1e-3, atol=1e-4)


def test_training_noise_has_the_level_of_its_time() -> None:
    made, u = EDMTraining(NARROW), torch.full((50_000,), 0.7)
    noised = made.noise(torch.ones(50_000, 1), u, Rng(0))
    sigma = math.exp(-1.2 + 1.2 * float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.7))))
    assert float(NARROW(noised.t[:1].double())[1]) == pytest.approx(sigma, rel=1e-4)
    assert float((noised.x - 1).std()) == pytest.approx(sigma, rel=5 / math.sqrt(1e5))


def test_churn_without_numbers_is_that_of_synther() -> None:
    """2303.06614: S_churn = 80, S_tmin = 0.05, S_tmax = 50, S_noise = 1.003, for 128 steps."""
    made = Churn()
    assert (made.amount, made.low, made.high, made.scale) == (80.0, 0.05, 50.0, 1.003)
    assert made.gamma(1.0, 400) == pytest.approx(0.2)
