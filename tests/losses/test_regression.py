"""Preference, weighted and centred objectives against the optimum they should have; value losses; reductions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import (
    center_rewards,
    clipped_value,
    dpo,
    ess_fraction,
    exp_weights,
    half_squared_error,
    huber,
    margin,
    masked_mean,
    masked_sum,
    weighted_loss,
)


def tilted(old: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """log p*, p* ∝ p_old exp(R/β)."""
    return (old + reward / beta).log_softmax(-1)


def minimise(loss, size: int) -> torch.Tensor:
    """The log-probs that minimise ``loss(log_prob)`` over a softmax of free logits."""
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        opt.zero_grad()
        value = loss(logits.log_softmax(-1))
        value.backward()
        return value

    opt.step(closure)
    return logits.detach().log_softmax(-1)


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    return 0.5 * (p.exp() - q.exp()).abs().sum().item()


@pytest.fixture
def world():
    g = torch.Generator().manual_seed(0)
    old = torch.randn(8, generator=g, dtype=torch.float64).log_softmax(-1)
    return old, torch.randn(8, generator=g, dtype=torch.float64), 0.7


def test_dpo_at_the_reference(world):
    old, _, beta = world
    win, lose = old[:4].clone().requires_grad_(), old[4:].clone().requires_grad_()
    loss = dpo(win, lose, old[:4], old[4:], beta)
    assert torch.allclose(loss, torch.full((4,), math.log(2), dtype=torch.float64))
    for side, sign in ((win, -1), (lose, 1)):
        (g,) = torch.autograd.grad(loss.sum(), side, retain_graph=True)
        assert torch.allclose(g, torch.full((4,), sign * beta / 2, dtype=torch.float64))


def test_dpo_on_bradley_terry_pairs_recovers_the_tilted_reference(world):
    old, reward, beta = world
    i, j = torch.cartesian_prod(torch.arange(8), torch.arange(8)).unbind(1)
    wins = torch.sigmoid(reward[i] - reward[j])  # every pair, with the probability that i is preferred
    best = minimise(lambda p: (wins * dpo(p[i], p[j], old[i], old[j], beta)).sum(), 8)
    assert distance(best, tilted(old, reward, beta)) < 1e-6


def test_dpo_is_stable_and_its_margin_ranks(world):
    big = torch.tensor([1e4, -1e4])
    zero = torch.zeros(2)
    assert torch.equal(dpo(big, zero, zero, zero, 1.0), torch.tensor([0.0, 1e4]))
    assert (margin(big, zero, zero, zero) > 0).tolist() == [True, False]
    with pytest.raises(InvalidInputError, match="ref_lose is a constant"):
        dpo(zero, zero, zero, zero.clone().requires_grad_(), 1.0)
    with pytest.raises(InvalidInputError, match="Shapes must be equal"):
        dpo(zero, zero[:, None], zero, zero, 1.0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_centered_is_zero_at_the_optimum_for_samples_of_any_sampler(seed):
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(5, generator=g, dtype=torch.float64).log_softmax(-1)
    reward = torch.randn(5, generator=g, dtype=torch.float64)
    drawn = torch.randint(5, (3, 4), generator=g)  # [prompts, group] from the uniform law, not from p_old or p*
    best = tilted(old, reward, 0.3).requires_grad_()
    weight = torch.rand(3, 4, generator=g, dtype=torch.float64)
    for w in (None, weight):
        loss = center_rewards(best[drawn], old[drawn], reward[drawn], 0.3, w)
        assert loss.max() < 1e-20
        assert torch.autograd.grad(loss.sum(), best)[0].abs().max() < 1e-10


@pytest.mark.parametrize("sampler", ["uniform", "old", "reverse"])
def test_centered_recovers_the_tilted_reference_for_every_full_support_sampler(world, sampler):
    old, reward, beta = world
    q = {"uniform": torch.full((8,), 0.125).double(), "old": old.exp(), "reverse": old.exp().flip(0)}[sampler]
    pairs = torch.combinations(torch.arange(8))  # all groups of two, each as often as the sampler draws it
    often = q[pairs].prod(-1, keepdim=True)
    best = minimise(lambda p: (often * center_rewards(p[pairs], old[pairs], reward[pairs], beta)).sum(), 8)
    assert distance(best, tilted(old, reward, beta)) < 1e-6


def test_centered_ignores_the_normaliser_and_its_detached_mean_costs_nothing(world):
    old, reward, beta = world
    p = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    old, reward = old.reshape(2, 4), reward.reshape(2, 4)
    loss = center_rewards(p, old, reward, beta)
    shift = torch.tensor([[3.0], [-5.0]], dtype=torch.float64)  # a constant a prompt: log Z(c)
    torch.testing.assert_close(center_rewards(p + shift, old, reward, beta), loss)
    torch.testing.assert_close(center_rewards(p, old, reward + shift, beta), loss)

    pull, target = beta * (p - old), reward
    whole = pull - pull.mean(-1, keepdim=True) - target + target.mean(-1, keepdim=True)  # the mean left attached
    ours, theirs = (torch.autograd.grad(x.sum(), p)[0] for x in (loss, whole.square()))
    torch.testing.assert_close(ours, theirs)


def test_the_mean_of_a_group_is_a_constant_for_each_of_its_elements():
    """d loss_i / d ℓ_j is 2 β (residual of i) for j = i, and 0 for the others; a sum over the group hides both."""
    g = torch.Generator().manual_seed(2)
    lp, old, reward = (torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in range(3))
    lp.requires_grad_()
    weight = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)
    loss = center_rewards(lp, old, reward, 0.7, weight)
    (slope,) = torch.autograd.grad(loss[1, 2], lp)
    share = weight / weight.sum(-1, keepdim=True)
    implicit = 0.7 * (lp.detach() - old)
    residual = implicit - (share * implicit).sum(-1, keepdim=True) - reward + (share * reward).sum(-1, keepdim=True)
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    wanted[1, 2] = 2 * 0.7 * residual[1, 2]
    assert torch.allclose(slope, wanted, atol=1e-12)


def test_centered_refusals():
    x = torch.zeros(3, 1)
    with pytest.raises(InvalidInputError, match="at least two samples"):
        center_rewards(x, x, x, 1.0)
    x = torch.zeros(6)
    with pytest.raises(InvalidInputError, match="group axis"):
        center_rewards(x, x, x, 1.0)
    x = torch.zeros(2, 3)
    with pytest.raises(InvalidInputError, match="beta must be positive"):
        center_rewards(x, x, x, 0.0)
    with pytest.raises(InvalidInputError, match="one that is positive"):
        center_rewards(x, x, x, 1.0, torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def test_exponentially_weighted_likelihood_recovers_the_tilted_reference(world):
    old, reward, beta = world
    weight = exp_weights(reward, beta, cap=1e6)
    best = minimise(lambda p: (old.exp() * weighted_loss(-p, weight)).sum(), 8)
    assert distance(best, tilted(old, reward, beta)) < 1e-6


def test_ess_fraction_counts_the_weights_that_matter():
    n = 8
    assert float(ess_fraction(torch.full((n,), 0.3))) == pytest.approx(1.0)
    assert float(ess_fraction(torch.eye(n)[2] * 5)) == pytest.approx(1 / n)
    half = (torch.arange(n) < n // 2).double()
    assert float(ess_fraction(half)) == pytest.approx(0.5) == float(ess_fraction(100 * half))


def test_exp_weights_are_capped_without_overflow():
    w = exp_weights(torch.tensor([-1e6, 0.0, math.log(3), 1e6]), 1.0, cap=20.0)
    torch.testing.assert_close(w, torch.tensor([0.0, 1.0, 3.0, 20.0]))
    assert w.max() <= 20
    with pytest.raises(InvalidInputError, match="must be positive"):
        exp_weights(torch.zeros(2), 0.0)
    with pytest.raises(InvalidInputError, match="weight is a constant"):
        weighted_loss(torch.zeros(2), torch.zeros(2, requires_grad=True))


def grad(loss, value):
    x = value.clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


def test_value_losses_have_the_error_as_gradient():
    value, target = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.5, 1.0, 0.0])
    error = value - target
    assert torch.equal(grad(lambda v: half_squared_error(v, target), value), error)
    assert torch.equal(grad(lambda v: huber(v, target, 2.0), value), error.clamp(-2, 2))
    assert torch.equal(huber(value, target, 100.0), half_squared_error(value, target))


def test_the_clipped_value_stops_where_it_has_moved_enough_towards_the_target():
    old = torch.zeros(5)
    value = torch.tensor([0.1, 0.5, -0.5, 0.5, -0.5])
    target = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    gradient = grad(lambda v: clipped_value(v, target, old, 0.2), value)
    torch.testing.assert_close(gradient, torch.tensor([-0.9, 0.0, -1.5, 1.5, 0.0]))
    assert (clipped_value(value, target, old, 0.2) >= half_squared_error(value, target)).all()
    assert torch.equal(clipped_value(value, target, old, 10.0), half_squared_error(value, target))
    with pytest.raises(InvalidInputError, match="target is a constant"):
        half_squared_error(value, target.clone().requires_grad_())
    with pytest.raises(InvalidInputError, match="Shapes must be equal"):
        half_squared_error(value[:, None], target)
    with pytest.raises(InvalidInputError, match="clip must be positive"):
        clipped_value(value, target, old, 0.0)
    with pytest.raises(InvalidInputError, match="delta must be positive"):
        huber(value, target, 0.0)


def test_masked_means_weigh_what_they_say():
    x = torch.tensor([[1.0, 3.0, torch.nan], [10.0, torch.nan, torch.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(14 / 3)  # every token alike
    assert masked_mean(x, mask, -1).tolist() == [2.0, 10.0]  # every sample alike
    assert masked_sum(x, mask, -1).tolist() == [4.0, 10.0]
    assert masked_mean(x[:, 0], None).item() == 5.5
    y = torch.randn(2, 3, 4)
    torch.testing.assert_close(masked_mean(y, torch.ones_like(y, dtype=torch.bool), (0, 2)), y.mean((0, 2)))


def test_masked_values_get_no_gradient():
    x = torch.tensor([1.0, 2.0, torch.nan], requires_grad=True)
    (g,) = torch.autograd.grad(masked_mean(x, torch.tensor([True, True, False])), x)
    assert g.tolist() == [0.5, 0.5, 0.0]


def test_empty_and_odd_masks_are_refused():
    x = torch.zeros(2, 3)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    with pytest.raises(InvalidInputError, match="1 of 2 means have no element"):
        masked_mean(x, mask, -1)
    with pytest.raises(InvalidInputError, match="boolean"):
        masked_mean(x, mask.float())
    with pytest.raises(InvalidInputError, match="Shapes must be equal"):
        masked_mean(x, mask[:, :1])
