"""EDM: training levels, and Heun's sampler against exact denoisers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.nn import MLP
from denoiserl.processes import GaussianDenoiser, edm, time_grid
from denoiserl.processes.denoiser import Denoiser, Estimate
from denoiserl.processes.edm_training import Churn, EDMTraining, heun, time_of
from denoiserl.train import fit

CENTRE, STD = 2.0, 0.5


class Exact(Denoiser):
    """The posterior mean for data N(2, 0.25)."""

    def forward(self, x: Tensor, clock: Tensor, context: None) -> Estimate:
        variance = edm(clock.double())[1].reshape(-1, *[1] * (x.ndim - 1)) ** 2
        return Estimate(((STD**2 * x + variance * CENTRE) / (STD**2 + variance)).to(x.dtype))


def test_the_time_of_a_level_is_the_inverse_of_the_schedule() -> None:
    t = time_grid(40)[:-1]
    torch.testing.assert_close(time_of(edm(t)[1]), t, rtol=0, atol=1e-12)


def test_without_churn_heun_converges_with_order_two_to_the_exact_flow() -> None:
    """The ODE carries N(m, v + σ²) to N(m, v) linearly: x − m shrinks by √(v / (v + σ₁²))."""
    errors = []
    for steps in (16, 32, 64):
        made = heun(Exact(), time_grid(steps), (1,), 4000, Rng(3), churn=Churn(0.0)).double()
        begin = 80.0 * Rng(3).normal(4000, 1).double()
        exact = CENTRE + (begin - CENTRE) * STD / math.sqrt(STD**2 + 80.0**2)
        errors.append(float((made - exact).abs().mean()))
    order = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(1.7 < o < 2.4 for o in order), f"orders {order} of errors {errors}"


def test_churn_keeps_the_law_and_forgets_the_start() -> None:
    made = heun(Exact(), time_grid(256), (1,), 20_000, Rng(0), churn=Churn(scale=1.0))
    still = heun(Exact(), time_grid(256), (1,), 20_000, Rng(0), churn=Churn(0.0))
    begin = Rng(0).normal(20_000, 1)
    for sample in (made, still):
        assert float(sample.mean()) == pytest.approx(CENTRE, abs=0.03)  # 80 ε is not quite N(2, 80² + v)
        assert float(sample.std()) == pytest.approx(STD, rel=0.02)

    def correlation(a: Tensor) -> float:
        return float(torch.corrcoef(torch.cat([a, begin], 1).T)[0, 1])

    assert correlation(still) > 0.999 and abs(correlation(made)) < 0.05


def test_rows_of_their_own_streams_do_not_depend_on_the_batch() -> None:
    whole = heun(Exact(), time_grid(8), (2,), 6, Rng.rows(range(6)))
    part = heun(Exact(), time_grid(8), (2,), 2, Rng.rows([4, 1]))
    assert torch.equal(whole[[4, 1]], part)


def test_training_levels_are_log_normal_and_stratified() -> None:
    made = EDMTraining()
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    log = edm(made.times(u))[1].log()
    assert float(log.mean()) == pytest.approx(-1.2, abs=0.01) and float(log.std()) == pytest.approx(1.2, abs=0.02)
    assert bool((log.diff() >= 0).all())


def test_the_loss_of_a_network_that_answers_zero_is_the_same_at_all_levels() -> None:
    """With F = 0 the preconditioned estimate errs by σ²d²/(σ² + d²), and the weight undoes it: E L = 1 for std d."""
    net = MLP((4,), width=8, zero=True)
    d = 0.7
    made, denoise, rng = EDMTraining(spread=d), GaussianDenoiser(net, edm, "edm", d), Rng(0)
    for u in (0.05, 0.5, 0.95):
        x0 = d * rng.normal(20_000, 4)
        noised = made.noise(x0, torch.full((20_000,), u), rng)
        assert float(made.loss(denoise, noised, None).detach().mean()) == pytest.approx(1.0, abs=0.04)


def test_a_fitted_network_draws_the_correlated_gaussian_that_it_saw() -> None:
    torch.manual_seed(0)
    rng = Rng(1)
    x0 = rng.normal(4000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    denoise = GaussianDenoiser(MLP((2,), width=48, depth=3), edm, "edm", 1.0)
    for _ in fit(EDMTraining(), denoise, x0, None, 400, rng, batch=128, lr=3e-3):
        pass
    made = heun(denoise, time_grid(24), (2,), 4000, rng, churn=Churn(0.0))
    assert float((torch.cov(made.T) - torch.cov(x0.T)).abs().max()) < 0.13
    assert float((made.mean(0) - x0.mean(0)).abs().max()) < 0.1


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="ends at t = 0"):
        heun(Exact(), time_grid(4, end=0.1), (1,), 2, Rng(0))
    with pytest.raises(InvalidInputError, match="at least one row"):
        heun(Exact(), time_grid(4), (1,), 0, Rng(0))
    with pytest.raises(InvalidInputError, match="churn has"):
        Churn(-1.0)
