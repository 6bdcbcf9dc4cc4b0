"""Supervised denoising with a process of a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from torch import nn

from denoiserl.core.counters import UsageCounter
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng
from denoiserl.train.fit import draw_antithetic_times, fit, training_losses
from denoiserl.train.run_state import Run


@dataclass(frozen=True)
class Noised:
    x: torch.Tensor
    t: torch.Tensor
    x0: torch.Tensor


class Straight:
    """x_t = (1 - t) x_0 + t ε and the squared error of the estimate of x_0."""

    def noise(self, x0, t, rng, loss_mask=None):
        return Noised((1 - t[:, None]) * x0 + t[:, None] * rng.normal(*x0.shape), t, x0)

    def loss(self, denoise, noised, context):
        return (denoise(noised.x, noised.t, context) - noised.x0).square().mean(-1)


class Affine(nn.Module):
    """x̂_0 = a(c) + b(c) x with an own a, b for each label c."""

    def __init__(self, labels=2, size=2):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(labels, size)), nn.Parameter(torch.zeros(labels, 1))

    def embed_condition(self, cond):
        return cond

    def forward(self, x, t, context):
        return self.a[context] + self.b[context] * x


def data(n=4000):
    rng = Rng(0)
    label = rng.integers(0, 2, n)
    mean = torch.tensor([[2.0, -1.0], [-3.0, 0.5]])
    return mean[label] + 0.3 * rng.normal(n, 2), label, mean


def optimum(mean, var=0.09):
    """Least squares of x_0 on x_t = (1 - t) x_0 + t ε over t in (0, 1): slope and intercept of one label."""
    # Over noise and time, with m = mean: E x_t = m/2, Var x_t = (var + m²)/3 + 1/3 - m²/4, Cov(x_t, x_0) = var / 2.
    slope = (var / 2 * 2) / sum((var + m * m) / 3 + 1 / 3 - m * m / 4 for m in mean)  # one slope for two coordinates
    return slope, [m - slope * m / 2 for m in mean]


def test_fit_learns_the_best_affine_denoiser():
    x0, label, mean = data()
    net = Affine()
    rows = list(fit(Straight(), net, x0, label, 400, Rng(1), lr=0.05, batch=512))
    for c in range(2):
        slope, shift = optimum(mean[c].tolist())
        assert net.b[c].item() == pytest.approx(slope, abs=0.03)
        assert net.a[c].tolist() == pytest.approx(shift, abs=0.06)
    assert len(rows) == 50 and rows[-1]["loss/denoising"] < 0.1 * rows[0]["loss/denoising"]


def test_a_fit_in_pieces_is_the_fit_in_one(tmp_path):
    """Interrupted by leaving the generator, resumed from the folder by a new process's objects."""
    x0, label, _ = data(500)

    def whole(keep, stop=None):
        torch.manual_seed(0)
        net = Affine()
        rows = list(islice(fit(Straight(), net, x0, label, 40, Rng(1), log=1, run=keep), stop))
        return net, rows

    once, rows = whole(Run())
    _, first = whole(Run(tmp_path, every=7), 20)
    resumed, last = whole(Run(tmp_path, every=7))
    again, none = whole(Run(tmp_path, every=7))
    assert first[:14] + last == rows and none == []
    for net in (resumed, again):
        assert torch.equal(net.a, once.a) and torch.equal(net.b, once.b)


def test_fit_counts_its_updates_and_leaves_the_mode():
    x0, label, _ = data(100)
    net, meter = Affine().eval(), UsageCounter()
    with meter.open():
        list(fit(Straight(), net, x0, label, 5, Rng(0), batch=8))
    assert meter.counts["updates"] == 5 and not net.training


def test_data_that_cannot_be_fitted_is_refused():
    x0, label, _ = data(10)
    for bad, said in (
        ((x0, label[:4]), "10 rows and cond has 4"),
        ((x0 / 0, label), "not finite"),
        ((x0[:0], None), "empty"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            next(fit(Straight(), Affine(), *bad, 5, Rng(0)))


@pytest.mark.parametrize("n", [1, 7, 64])
def test_stratified_times_are_uniform_one_by_one_and_even_together(n):
    rng = Rng(0)
    draws = torch.stack([draw_antithetic_times(n, rng) for _ in range(4000 // n + 200)])
    assert draws.min() > 0 and draws.max() < 1
    assert ((draws * n).floor().sort(-1).values == torch.arange(n)).float().mean() > 0.999  # one in each stratum
    one = draws[:, 0].double()
    for power in (1, 2, 3):  # moments of one row: its time is uniform, whatever the row
        assert one.pow(power).mean().item() == pytest.approx(1 / (power + 1), abs=4.5 * len(one) ** -0.5 * 0.35)


def test_antithetic_times_leave_a_linear_loss_without_variance():
    t = torch.stack([draw_antithetic_times(32, Rng(seed)) for seed in range(20)])
    torch.testing.assert_close(t.mean(-1), torch.full((20,), 0.5), atol=1e-6, rtol=0)
    assert t.square().mean(-1).std() < 0.05 * torch.rand(2000, 32).square().mean(-1).std()


def test_losses_are_one_a_row_and_take_given_times():
    x0, label, _ = data(6)
    loss = training_losses(Straight(), Affine(), x0, label, Rng(0), t=torch.full((6,), 0.5))
    torch.testing.assert_close(loss, x0.square().mean(-1))  # the net begins with the estimate 0
