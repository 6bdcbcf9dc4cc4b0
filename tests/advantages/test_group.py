"""Group credit: zero mean, equivariance, invariances, and what cannot be learned from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.advantages import (
    clip_quantile,
    dead_groups,
    group_relative,
    leave_one_out,
    mask_invalid_rewards,
    normalise,
)
from denoiserl.core.errors import InvalidInputError

SCALES = ("std", "sample_std", "batch", "none")
# Subnormal numbers keep no digits for a mean, and some machines flush them to zero.
finite = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
rewards = st.integers(2, 6).flatmap(
    lambda g: st.lists(st.lists(finite, min_size=g, max_size=g), min_size=1, max_size=4).map(torch.tensor)
)


@settings(max_examples=60, deadline=None)
@given(rewards, st.sampled_from(SCALES))
def test_every_group_has_zero_mean(reward, scale):
    advantage = group_relative(reward, scale)
    assert (advantage.sum(-1).abs() <= 1e-5 * (1 + advantage.abs().sum(-1))).all()


@settings(max_examples=40, deadline=None)
@given(rewards, st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_the_order_within_a_group_does_not_matter(reward, scale, random):
    order = list(range(reward.shape[-1]))
    random.shuffle(order)
    reward = reward.double()
    shuffled, plain = group_relative(reward[:, order], scale), group_relative(reward, scale)[:, order]
    torch.testing.assert_close(shuffled, plain, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(rewards, st.floats(0.01, 100), st.floats(-100, 100))
def test_standardised_advantages_ignore_the_units_of_the_reward(reward, a, b):
    reward = reward.double()
    if (reward.amax(-1) - reward.amin(-1)).min() < 1e-2:
        return  # adding b rounds away differences that small
    torch.testing.assert_close(group_relative(a * reward + b), group_relative(reward), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("scale", "size"), [("std", 1.0), ("sample_std", math.sqrt(0.5)), ("none", 0.35)])
def test_a_group_of_two(scale, size):
    torch.testing.assert_close(group_relative(torch.tensor([[0.1, 0.8]]), scale), torch.tensor([[-size, size]]))


def test_a_group_of_two_is_exactly_plus_and_minus_one():
    reward = torch.tensor([[0.1, 0.8], [1e-30, 2e-30], [1e6, 1e6 + 1], [3.0, -3.0]])
    assert torch.equal(group_relative(reward), torch.tensor([[-1.0, 1], [-1, 1], [-1, 1], [1, -1]]))


def test_scales_have_the_stated_moments():
    reward = torch.randn(3, 5, 7, dtype=torch.float64)
    assert torch.allclose(group_relative(reward, "std").square().mean(-1), torch.ones(3, 5).double())
    assert torch.allclose(group_relative(reward, "sample_std").std(-1), torch.ones(3, 5).double())
    whole = group_relative(reward, "batch")
    ratio = group_relative(reward, "none") / whole
    assert torch.allclose(ratio, reward.std((-2, -1), correction=0)[:, None, None].expand_as(ratio))


@pytest.mark.parametrize("scale", SCALES)
def test_constant_groups_are_exactly_zero_and_counted(scale):
    reward = torch.tensor([[0.1] * 7, [0.0] * 6 + [1.0], [1e8] * 7, [0.3] * 7])
    advantage = group_relative(reward, scale)
    dead = dead_groups(reward)
    assert dead.tolist() == [True, False, True, True]
    assert torch.equal(advantage[dead], torch.zeros(3, 7))
    assert advantage[1].abs().sum() > 0


def test_spread_calls_noise_dead():
    reward = torch.tensor([[0.5, 0.5 + 1e-6], [0.5, 0.6]])
    assert dead_groups(reward, spread=1e-4).tolist() == [True, False]
    assert torch.equal(group_relative(reward, spread=1e-4), torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_clip_bounds_outliers_and_verifier_rewards_need_no_cast():
    reward = torch.zeros(1, 100, dtype=torch.bool)
    reward[0, 3] = True
    plain = group_relative(reward)
    assert plain[0, 3].item() == pytest.approx(math.sqrt(99))
    assert group_relative(reward, clip=5.0).max().item() == 5.0
    assert torch.equal(group_relative(reward.long()), plain)
    assert torch.equal(group_relative(reward.half()), plain)


@settings(max_examples=40, deadline=None)
@given(rewards)
def test_leave_one_out_compares_with_the_others(reward):
    reward = reward.double()
    G = reward.shape[-1]
    loo = leave_one_out(reward)
    torch.testing.assert_close(loo, G / (G - 1) * group_relative(reward, "none"), atol=1e-9, rtol=1e-9)
    for i in range(G):
        others = torch.cat([reward[:, :i], reward[:, i + 1 :]], 1)
        torch.testing.assert_close(loo[:, i], reward[:, i] - others.mean(1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_dropped_samples_are_as_if_never_drawn(scale):
    full = torch.tensor([[1.0, 4.0, 2.0], [0.0, 1.0, 5.0]])
    reward = torch.cat([full, torch.tensor([[torch.nan], [torch.inf]])], 1)[:, [0, 3, 1, 2]]
    screened, valid, count = mask_invalid_rewards(reward, "drop")
    assert count == 2
    assert valid.tolist() == [[True, False, True, True]] * 2
    advantage = group_relative(screened, scale, valid=valid)
    torch.testing.assert_close(advantage[:, [0, 2, 3]], group_relative(full, scale))
    assert torch.equal(advantage[:, 1], torch.zeros(2))
    torch.testing.assert_close(leave_one_out(screened, valid)[:, [0, 2, 3]], leave_one_out(full))
    with pytest.raises(InvalidInputError, match="not finite"):
        group_relative(screened, scale)  # forgetting the mask is loud, also for the infinity


def test_a_group_with_one_survivor_is_dead():
    reward = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [0.0, 1.0]])
    valid = reward.isfinite()
    assert dead_groups(reward, valid=valid).tolist() == [True, True, False]
    for scale in SCALES:
        assert torch.equal(group_relative(reward, scale, valid=valid)[:2], torch.zeros(2, 2))
    assert torch.equal(leave_one_out(reward, valid), torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]))


def test_screen_names_the_sample_and_refuses_a_broken_reward():
    reward = torch.tensor([[1.0, 2.0, torch.nan], [-torch.inf, 0.0, 0.0]])
    with pytest.raises(InvalidInputError, match=r"2 of 6.*reward\[0, 2\] = nan.*reward\[1, 0\] = -inf"):
        mask_invalid_rewards(reward)
    with pytest.raises(InvalidInputError, match="more than the allowed share"):
        mask_invalid_rewards(reward, "drop", max_invalid_share=0.3)
    with pytest.raises(InvalidInputError, match="Did you mean 'drop'"):
        mask_invalid_rewards(reward, "drops")  # type: ignore[arg-type]


@pytest.mark.parametrize("credit", [group_relative, leave_one_out, dead_groups])
def test_groups_are_an_axis_of_more_than_one(credit):
    with pytest.raises(InvalidInputError, match="group of one"):
        credit(torch.zeros(4, 1))
    with pytest.raises(InvalidInputError, match="group is an axis"):
        credit(torch.zeros(4))
    with pytest.raises(InvalidInputError, match=r"reward\[1, 0\] = nan"):
        credit(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]))


def test_unknown_scale_is_refused_with_the_nearest():
    with pytest.raises(InvalidInputError, match="Did you mean 'std'"):
        group_relative(torch.zeros(1, 2), "stdd")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="clip must be positive"):
        group_relative(torch.zeros(1, 2), clip=0.0)


def test_normalise_standardises_what_the_mask_holds():
    x = torch.randn(6, 5, dtype=torch.float64) * 3 + 7
    y = normalise(x)
    assert y.mean().abs() < 1e-12
    assert y.square().mean().item() == pytest.approx(1)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    x[~mask] = torch.nan
    y = normalise(x, mask)
    torch.testing.assert_close(y[mask], normalise(x[mask]))
    assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
    assert torch.equal(normalise(torch.full((4,), 0.1)), torch.zeros(4))
    with pytest.raises(InvalidInputError, match="cannot be normalised"):
        normalise(torch.ones(1))


@settings(max_examples=30, deadline=None)
@given(st.lists(finite, min_size=1, max_size=30), st.floats(0, 0.49))
def test_clip_quantile_agrees_with_the_library_quantile(values, q):
    x = torch.tensor(values, dtype=torch.float64)
    low, high = torch.quantile(x, torch.tensor([q, 1 - q], dtype=torch.float64))
    torch.testing.assert_close(clip_quantile(x, q), x.clamp(low, high), rtol=1e-9, atol=1e-6)
    assert torch.equal(clip_quantile(x, 0.0), x)


@pytest.mark.parametrize("scale", SCALES)
def test_rewards_that_differ_by_exactly_the_spread_are_equal(scale):
    """The group that is dead is the one without advantages; the next number above the spread is a preference."""
    reward = torch.tensor(
        [[1.0, 1.25, 1.0], [1.0, math.nextafter(1.25, 2.0), 1.0], [1.0, 1.5, 1.0]], dtype=torch.float64
    )
    advantage = group_relative(reward, scale, spread=0.25)
    assert dead_groups(reward, spread=0.25).tolist() == [True, False, False]
    assert (advantage.abs().amax(-1) == 0).tolist() == [True, False, False]
