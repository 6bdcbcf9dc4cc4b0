"""The squashed Gaussian: a density on a box."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.core.errors import NoDensityError
from denoiserl.core.rng import Rng
from denoiserl.distributions import Gaussian, Squashed


def law(mean: float, std: float, bound: float = 1.5) -> Squashed:
    return Squashed(Gaussian(torch.tensor([[mean]], dtype=torch.float64), torch.tensor(std), 1, True), bound)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.7, 1.0), (-1.0, 0.5)])
def test_it_integrates_to_one_and_has_the_mean_of_its_draws(mean: float, std: float) -> None:
    made = law(mean, std)
    edges = torch.linspace(-1.5, 1.5, 200_001, dtype=torch.float64)
    x = ((edges[1:] + edges[:-1]) / 2)[:, None]
    p = made.log_prob(x).exp() * (edges[1] - edges[0])
    assert float(p.sum()) == pytest.approx(1.0, abs=2e-4)
    drawn = made.sample(Rng(0).normal(400_000, 1).double())
    for power in (1, 2):
        assert float((p[:, None] * x**power).sum()) == pytest.approx(float((drawn**power).mean()), abs=5e-3)


def test_a_draw_knows_its_own_density() -> None:
    made = Squashed(Gaussian(torch.randn(64, 2, 3), 0.1 + torch.rand(64, 2, 3), 2, True), 2.0)
    x, logp = made.sample_with_log_prob(Rng(1).normal(64, 2, 3))
    assert torch.allclose(made.log_prob(x), logp, atol=1e-2, rtol=1e-3) and logp.shape == (64,)
    assert torch.allclose(made.log_prob(x, factors=True).sum((1, 2)), made.log_prob(x), atol=1e-4)


def test_draws_at_the_edge_keep_a_finite_density_and_gradient() -> None:
    mean = torch.full((1, 1), 15.0, requires_grad=True)  # tanh(15) is 1 in float32
    x, logp = Squashed(Gaussian(mean, torch.tensor(1.0), 1, True)).sample_with_log_prob(torch.zeros(1, 1))
    assert float(x.detach()) == 1.0 and float(logp.detach()) == pytest.approx(
        -0.5 * math.log(2 * math.pi) - 2 * math.log(2) + 30
    )
    logp.sum().backward()
    assert float(mean.grad) == pytest.approx(2.0)  # d/du of −log(1 − tanh² u) tends to 2
    edge = Squashed(Gaussian(torch.zeros(3, 1), torch.tensor(1.0), 1, True)).log_prob(
        torch.tensor([[1.0], [1.1], [-2]])
    )
    assert bool(edge[0].isfinite()) and bool((edge[1:] == -math.inf).all())


def test_divergence_is_the_mean_log_ratio_of_its_draws() -> None:
    one, two = law(0.3, 0.5), law(-0.2, 0.8)
    x, logp = one.sample_with_log_prob(Rng(0).normal(200_000, 1).double())
    assert float(one.kl(two)) == pytest.approx(float((logp - two.log_prob(x)).mean()), abs=5e-3)
    with pytest.raises(ValueError, match=r"equal bounds, got 1\.5 and 1"):
        one.kl(law(0.0, 1.0, 1.0))


def test_dead_factors_count_nothing_and_certainty_has_no_density() -> None:
    live = torch.tensor([[True, False]])
    whole = Squashed(Gaussian(torch.zeros(1, 2), torch.ones(1, 2), 1, True, live))
    x = torch.tensor([[0.3, 0.9]])
    assert float(whole.log_prob(x)) == pytest.approx(float(law(0.0, 1.0, 1.0).log_prob(x[:, :1])), rel=1e-5)
    assert float(whole.num_factors) == 1
    with pytest.raises(NoDensityError):
        Squashed(Gaussian(torch.zeros(1, 2), torch.zeros(1, 2), 1, False)).sample_with_log_prob(torch.zeros(1, 2))


def test_a_box_has_two_edges_that_belong_to_it_whatever_its_size() -> None:
    for bound in (0.4, 1.0, 3.0):
        made = law(0.2, 1.0, bound)
        inside = torch.tensor([[-0.999], [-0.5], [0.0], [0.9], [1.0], [-1.0]], dtype=torch.float64) * bound
        beyond = torch.tensor([[1.001], [-1.001]], dtype=torch.float64) * bound
        assert bool(made.log_prob(inside).isfinite().all()) and bool((made.log_prob(beyond) == -math.inf).all())


@pytest.mark.parametrize("bound", [0.4, 1.5])
def test_the_density_is_that_of_a_transformed_normal(bound: float) -> None:
    """Close to the edge too, for several dimensions of which some are dead, in a score and in a draw."""
    live = torch.tensor([[True, False, True], [True, True, True]])
    mean, std = torch.randn(2, 3).double(), torch.rand(2, 3).double() + 0.5
    made = Squashed(Gaussian(mean, std, 1, True, live), bound)
    u = torch.tensor([[0.3, 5.0, -6.0], [5.5, -0.2, 0.1]]).double()
    normal = torch.distributions.Normal(mean, std)
    to_box = [torch.distributions.TanhTransform(cache_size=1), torch.distributions.AffineTransform(0.0, bound)]
    x = bound * torch.tanh(u)
    wanted = torch.distributions.TransformedDistribution(normal, to_box).log_prob(x)
    assert torch.allclose(made.log_prob(x, factors=True), torch.where(live, wanted, 0.0), rtol=1e-6)
    assert torch.allclose(made.log_prob(x), torch.where(live, wanted, 0.0).sum(-1), rtol=1e-6)
    drawn, logp = made.sample_with_log_prob((u - mean) / std)
    assert torch.allclose(drawn, x) and torch.allclose(logp, made.log_prob(x), rtol=1e-6)
    assert torch.allclose(made.sample((u - mean) / std), x)


def test_boxes_of_different_sizes_diverge_in_neither_direction() -> None:
    for one, other in ((1.5, 1.0), (1.0, 1.5)):
        with pytest.raises(ValueError, match="equal bounds"):
            law(0.0, 1.0, one).kl(law(0.0, 1.0, other))
