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
        with pytest.raises(NoDensityError, match=r"leave it out.*ddim\(eta > 0\)"):
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


def test_a_law_without_noise_gives_its_mean() -> None:
    mean = torch.randn(2, 3)
    assert torch.equal(Gaussian(mean, torch.tensor(0.5), 1, True).sample(None), mean)


def test_divergence_counts_the_factors_of_the_first_law() -> None:
    """What the other law leaves out has no part in it: Σ over the live factors of a law of one each."""
    live, others = torch.tensor([[True, False, True]]), torch.tensor([[False, True, True]])
    mean, std, shift = torch.randn(1, 3), torch.rand(1, 3) + 0.5, torch.randn(1, 3)
    each = [
        float(Gaussian(mean[:, i], std[:, i], 0, True).kl(Gaussian(shift[:, i], torch.tensor(0.9), 0, True)))
        for i in range(3)
    ]
    one, other = Gaussian(mean, std, 1, True, live), Gaussian(shift, torch.tensor(0.9), 1, True, others)
    assert float(one.kl(other)) == pytest.approx(each[0] + each[2], rel=1e-5)
    assert float(Gaussian(mean, std, 1, True).kl(other)) == pytest.approx(sum(each), rel=1e-5)


def test_one_mean_and_std_for_all_factors_diverge_in_every_factor() -> None:
    """Laws of [4, 3] with one std and one mean of the other law: twelve factors of equal divergence."""
    p, q = (
        Gaussian(torch.zeros(4, 3), torch.tensor(1.0), 2, True),
        Gaussian(torch.zeros(()), torch.tensor(2.0), 0, True),
    )
    assert float(p.kl(q)) == pytest.approx(12 * (math.log(2) + 1 / 8 - 0.5), rel=1e-6)
    assert float(p.entropy()) == pytest.approx(12 * 0.5 * math.log(2 * math.pi * math.e), rel=1e-6)


def test_entropy_is_minus_the_mean_of_log_p_over_the_factors_that_count() -> None:
    """By a quadrature of −p log p in every live dimension."""
    live = torch.tensor([[True, True], [True, False], [False, False]])
    made, x = law(live), torch.linspace(-25, 25, 100_001, dtype=torch.float64)
    for row in range(3):
        wanted = 0.0
        for i in range(2):
            if live[row, i]:
                logp = Gaussian(made.mean[row, i], made.std[row, i], 0, True).log_prob(x)
                wanted -= float(torch.trapezoid(logp.exp() * logp, x))
        assert float(made.entropy()[row]) == pytest.approx(wanted, abs=1e-8)


def test_the_gradient_of_a_log_density_is_that_of_differences_of_densities() -> None:
    made, h = law(), 1e-6
    x = torch.randn(3, 2, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(made.log_prob(x).sum(), x)
    for i in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[i]
        rise = (made.log_prob(x.detach() + step).exp() - made.log_prob(x.detach() - step).exp()) / (2 * h)
        assert torch.allclose(slope[:, i], rise / made.log_prob(x.detach()).exp(), rtol=1e-5)


def test_a_stack_has_a_density_where_its_laws_have() -> None:
    laws = [Gaussian(torch.zeros(3, 4), torch.tensor(s), 1, None) for s in (0.5, 0.0)]
    whole = stack(laws)
    assert torch.equal(whole.sample(torch.ones(3, 2, 4)), torch.tensor([0.5, 0.0])[:, None].expand(3, 2, 4))
    with pytest.raises(NoDensityError):
        whole.log_prob(torch.zeros(3, 2, 4))
    mixed = [Gaussian(torch.zeros(3, 4), s, 1, True) for s in (torch.tensor(0.5), torch.full((3, 4), 2.0))]
    found = stack(mixed).log_prob(torch.zeros(3, 2, 4))
    assert torch.allclose(found, -4 * (torch.tensor([0.5, 2.0]).log() + 0.5 * math.log(2 * math.pi)).expand(3, 2))


def test_laws_in_a_stack_keep_their_own_masks_and_their_order() -> None:
    live = [torch.tensor([[True, False, True]]).expand(2, 3), torch.tensor([[False, True, False]]).expand(2, 3)]
    laws = [Gaussian(torch.randn(2, 3), torch.tensor(s), 1, True, m) for s, m in zip((0.5, 2.0), live, strict=True)]
    whole, x = stack(laws), torch.randn(2, 2, 3)
    assert whole.num_factors.tolist() == [[2, 1], [2, 1]]
    for i, law in enumerate(laws):
        assert torch.allclose(whole.log_prob(x)[:, i], law.log_prob(x[:, i]))


def test_dead_factors_of_a_law_with_a_density_may_be_without_noise() -> None:
    """Who says that there is a density is believed: the live factors have one."""
    live, std = torch.tensor([True, False]), torch.tensor([0.5, 0.0])
    made, x = Gaussian(torch.zeros(1, 2), std, 1, True, live), torch.tensor([[0.3, 0.0]])
    alone = Gaussian(torch.zeros(1, 1), std[:1], 1, True)
    assert torch.equal(made.log_prob(x), alone.log_prob(x[:, :1])) and torch.equal(made.entropy(), alone.entropy())
