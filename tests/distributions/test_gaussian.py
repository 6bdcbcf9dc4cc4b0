"""The Gaussian law: it integrates to one, its samples agree with its density, its KL is its Monte Carlo mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from denoiserl import Gaussian, Rng
from denoiserl.core.errors import NoDensityError
from denoiserl.distributions.gaussian import stack


def law(live: Tensor | None = None, dtype: torch.dtype = torch.float64, shift: float = 0.0) -> Gaussian:
    mean = torch.tensor([[0.3, -1.0], [2.0, 0.1], [0.0, 0.5]], dtype=dtype) + shift
    std = torch.tensor([[0.5, 1.5], [0.2, 1.0], [2.0, 0.7]], dtype=dtype) * (1 + 0.2 * shift)
    return Gaussian(mean, std, 1, True, live)


def test_density_integrates_to_one_and_gives_the_moments() -> None:
    g = Gaussian(torch.tensor(0.75).double(), torch.tensor(0.5).double(), 0, True)
    x = torch.linspace(-6, 8, 200_001, dtype=torch.float64)
    p = g.log_prob(x).exp()
    for power, want in ((0, 1.0), (1, 0.75), (2, 0.75**2 + 0.25)):
        assert abs(float(torch.trapezoid(p * x**power, x)) - want) < 1e-9


def test_two_dimensions_integrate_to_one() -> None:
    g = Gaussian(torch.tensor([0.2, -0.5]).double(), torch.tensor([0.6, 1.1]).double(), 1, True)
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = g.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 1e-9


def test_draws_agree_with_the_density() -> None:
    g, n = law(), 200_000
    x = g.sample(Rng(0).normal(n, 3, 2).double())
    surprise = -g.log_prob(x)  # [n, 3]: its mean is the entropy, its variance ½ a dimension
    assert torch.allclose(surprise.mean(0), g.entropy(), atol=5 * math.sqrt(1.0 / n))
    assert torch.allclose(surprise.var(0), torch.ones(3).double(), atol=0.05)
    assert torch.allclose(x.mean(0), g.mean, atol=0.03) and torch.allclose(x.std(0), g.std, rtol=0.02)


def test_drawing_is_differentiable_in_mean_and_std() -> None:
    mean, std = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    noise = torch.tensor([0.3, -2.0])
    Gaussian(mean, std, 1, True).sample(noise).sum().backward()
    assert mean.grad is not None and std.grad is not None
    assert torch.equal(mean.grad, torch.ones(2)) and torch.equal(std.grad, noise)


def test_kl_is_the_monte_carlo_mean_and_zero_at_itself() -> None:
    p, q, n = law(), law(shift=0.5), 200_000
    x = p.sample(Rng(1).normal(n, 3, 2).double())
    gap = p.log_prob(x) - q.log_prob(x)
    assert bool(((gap.mean(0) - p.kl(q)).abs() < 5 * gap.std(0) / math.sqrt(n)).all())
    assert torch.equal(p.kl(p), torch.zeros(3).double())


def test_joint_is_the_sum_of_factors_and_dead_factors_count_nothing() -> None:
    live = torch.tensor([[True, True], [True, False], [False, False]])
    x = torch.randn(3, 2).double()
    whole, masked = law(), law(live)
    factors = whole.log_prob(x, factors=True)
    assert torch.allclose(whole.log_prob(x), factors.sum(-1))
    assert torch.allclose(masked.log_prob(x), (factors * live).sum(-1))
    assert masked.num_factors.tolist() == [2, 1, 0] and whole.num_factors.tolist() == [2, 2, 2]
    assert torch.equal(masked.log_prob(x, factors=True), torch.where(live, factors, 0.0))
    moved = x + 5.0 * ~live
    assert torch.equal(masked.log_prob(moved), masked.log_prob(x))
    alone = Gaussian(masked.mean[1, :1], masked.std[1, :1], 1, True)
    other = law(live, shift=0.5)
    assert torch.allclose(masked.kl(other)[1], alone.kl(Gaussian(other.mean[1, :1], other.std[1, :1], 1, True)))
    assert masked.kl(other)[2] == 0 and masked.entropy()[2] == 0


def test_one_std_for_all_is_the_std_of_each() -> None:
    mean, x = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    shared = Gaussian(mean, torch.tensor(0.7), 2, True)
    spread = Gaussian(mean, torch.full_like(mean, 0.7), 2, True)
    assert torch.allclose(shared.log_prob(x), spread.log_prob(x)) and shared.log_prob(x).shape == (4,)
    assert torch.allclose(shared.entropy(), spread.entropy())
    assert torch.allclose(
        shared.kl(Gaussian(x, torch.tensor(1.3), 2, True)), spread.kl(Gaussian(x, torch.full_like(x, 1.3), 2, True))
    )


@pytest.mark.parametrize("dense", [False, None])
def test_a_deterministic_step_draws_and_refuses_to_be_scored(dense: bool | None) -> None:
    g = Gaussian(torch.ones(2, 3), torch.zeros(()), 1, dense)
    assert torch.equal(g.sample(torch.randn(2, 3)), torch.ones(2, 3))
    for ask in (lambda: g.log_prob(torch.ones(2, 3)), lambda: g.kl(g), g.entropy):
        with pytest.raises(NoDensityError, match=r"leave it out of replay.*ddim\(eta > 0\)"):
            ask()


def test_whether_there_is_a_density_is_looked_up_where_nobody_says() -> None:
    """One dimension without noise is enough to have none; a KL needs one on either side."""
    mean, flat = torch.zeros(2, 3), torch.tensor([0.5, 0.0, 1.0])
    wide, narrow = Gaussian(mean, torch.tensor(0.5), 1), Gaussian(mean, flat, 1)
    known = Gaussian(mean, torch.tensor(0.5), 1, True)
    assert torch.equal(wide.log_prob(mean), known.log_prob(mean)) and torch.equal(wide.kl(known), torch.zeros(2))
    asks = (lambda: narrow.log_prob(mean), narrow.entropy, lambda: known.kl(narrow), lambda: narrow.kl(known))
    for ask in asks:
        with pytest.raises(NoDensityError):
            ask()


def test_stacked_laws_score_as_each_of_them() -> None:
    """Of one std for all or of one each, with factors that do not count; [B] each, [B, S] together."""
    mean, x = torch.randn(2, 3, 4), torch.randn(3, 2, 4)
    live = torch.tensor([[True, False, True, True], [False, False, True, True], [True] * 4])
    for stds in ([torch.tensor(0.5), torch.tensor(0.8)], [torch.full((3, 4), 0.5), torch.rand(3, 4) + 0.2]):
        laws = [Gaussian(m, s, 1, True, live) for m, s in zip(mean, stds, strict=True)]
        whole = stack(laws)
        each = torch.stack([law.log_prob(x[:, i]) for i, law in enumerate(laws)], 1)
        assert torch.allclose(whole.log_prob(x), each) and whole.num_factors.tolist() == [[3, 3], [2, 2], [4, 4]]
