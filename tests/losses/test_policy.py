"""Policy gradients: what their gradients are, and where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import approx_kl, clip_fraction, clip_sides, denoise_clip, ppo_clip, reinforce


def slope(log_prob: Tensor, loss) -> Tensor:
    x = log_prob.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-50, 0), st.floats(-3, 3, allow_subnormal=False)), min_size=1, max_size=6),
    st.floats(1e-5, 0.9),
)
def test_at_ratio_one_ppo_is_reinforce(rows, clip):
    log_prob, advantage = torch.tensor(rows, dtype=torch.float64).unbind(1)
    assert torch.equal(
        slope(log_prob, lambda x: ppo_clip(x, log_prob, advantage, clip)),
        slope(log_prob, lambda x: reinforce(x, advantage)),
    )


@settings(max_examples=100, deadline=None)
@given(st.floats(-2, 2), st.floats(-3, 3), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_the_gradient_stops_exactly_where_the_advantage_already_got_its_way(log_ratio, advantage, low, high):
    ratio = math.exp(log_ratio)
    if min(abs(ratio - 1 + low), abs(ratio - 1 - high)) < 1e-6:
        return  # at the border itself either side is right
    a = torch.tensor([advantage], dtype=torch.float64)
    g = slope(torch.tensor([log_ratio], dtype=torch.float64), lambda x: ppo_clip(x, torch.zeros_like(x), a, low, high))
    arrived = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    assert g.item() == pytest.approx(0.0 if arrived else -advantage * ratio)


@settings(max_examples=100, deadline=None)
@given(st.floats(-2, 2), st.floats(-3, 3), st.floats(0.01, 0.9))
def test_the_surrogate_is_pessimistic(log_ratio, advantage, clip):
    x, a = torch.tensor([[log_ratio], [advantage]], dtype=torch.float64)
    loss = ppo_clip(x, torch.zeros_like(x), a, clip)
    assert (loss >= -x.exp() * a).all()  # never promises more than the importance-weighted objective
    bound = max(1 - clip, min(1 + clip, math.exp(log_ratio))) * advantage
    assert loss.item() >= -bound - 1e-12


def test_ratios_that_blow_up_stay_finite():
    log_prob = torch.tensor([1000.0, 1000.0, -1000.0, -1000.0])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = ppo_clip(log_prob, torch.zeros(4), advantage, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-1.2, math.exp(20), -math.exp(-20), 0.8]))
    assert torch.equal(slope(log_prob, lambda x: ppo_clip(x, torch.zeros(4), advantage, 0.2)), torch.zeros(4))


def test_a_range_a_step_is_each_step_with_its_own_range():
    g = torch.Generator().manual_seed(0)
    log_prob, old, advantage = torch.randn(3, 50, 4, generator=g, dtype=torch.float64)
    clip = denoise_clip(4, 0.01, 0.2)
    table = ppo_clip(log_prob, old, advantage, clip)
    for k in range(4):
        own = ppo_clip(log_prob[:, k], old[:, k], advantage[:, k], clip[k].item())
        torch.testing.assert_close(table[:, k], own)
    step = torch.randint(4, (50, 4), generator=g)  # shuffled rows gather their own range
    gathered = ppo_clip(log_prob, old, advantage, clip[step])
    k = step[7, 2]
    assert gathered[7, 2] == ppo_clip(log_prob[7:8, 2], old[7:8, 2], advantage[7:8, 2], clip[k])[0]


def test_denoise_clip_goes_from_base_to_coef():
    clip = denoise_clip(11, 0.001, 0.01, 3.0)
    torch.testing.assert_close(clip[[0, -1]], torch.tensor([0.001, 0.01]))
    growth = clip.diff()
    assert (growth > 0).all()
    torch.testing.assert_close(growth[1:] / growth[:-1], torch.full((9,), math.exp(0.3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(denoise_clip(3, 0.1, 0.3, 0.0), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(denoise_clip(5, 0.1, 0.3, 1e-6), denoise_clip(5, 0.1, 0.3, 0.0))
    assert denoise_clip(1, 0.001, 0.01).tolist() == pytest.approx([0.01])  # one step: ordinary PPO


def test_sides_and_fraction_count_ratios():
    old = torch.zeros(5)
    log_prob = torch.tensor([0.5, 1.1, 1.3, 2.0, 1.0]).log()
    below, above = clip_sides(log_prob, old, 0.2)
    assert (below.item(), above.item()) == (pytest.approx(0.2), pytest.approx(0.4))
    assert clip_fraction(log_prob, old, 0.2).item() == pytest.approx(0.6)
    assert clip_fraction(log_prob, old, 0.2, 0.5).item() == pytest.approx(0.4)
    mask = torch.tensor([True, True, False, False, True])
    assert clip_fraction(log_prob, old, 0.2, mask=mask).item() == pytest.approx(1 / 3)


def test_approx_kl_of_two_gaussians():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=g, dtype=torch.float64)
    old, new = -0.5 * x.square(), -0.5 * (x - 0.1).square()
    assert approx_kl(new, old).item() == pytest.approx(0.005, rel=0.03)  # shift²/2
    assert approx_kl(old, old).item() == 0


def test_approx_kl_is_that_of_the_old_policy_from_the_new_one():
    """On a coin whose draws are counted: KL(old ‖ new) = ¾ log (¾ / ½) + ¼ log (¼ / ½), and not the reverse."""
    old = torch.tensor([0.75, 0.75, 0.75, 0.25], dtype=torch.float64).log()
    new = torch.full((4,), 0.5, dtype=torch.float64).log()
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert approx_kl(new, old).item() == pytest.approx(kl, abs=1e-12)


def test_refusals():
    lp = torch.zeros(4)
    with pytest.raises(InvalidInputError, match=r"log_prob \[4\], advantage \[4, 1\]"):
        reinforce(lp, torch.zeros(4, 1))
    with pytest.raises(InvalidInputError, match="Shapes must be equal"):
        ppo_clip(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 1), 0.2)
    with pytest.raises(InvalidInputError, match="old is a constant"):
        ppo_clip(lp, lp.clone().requires_grad_(), lp, 0.2)
    with pytest.raises(InvalidInputError, match="advantage is a constant"):
        reinforce(lp, lp.clone().requires_grad_())
    with pytest.raises(InvalidInputError, match="does not fit"):
        ppo_clip(lp, lp, lp, torch.full((4, 4), 0.2))
    with pytest.raises(InvalidInputError, match="does not fit"):
        ppo_clip(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 3), torch.full((4,), 0.2))
    with pytest.raises(InvalidInputError, match="clip must be positive"):
        ppo_clip(lp, lp, lp, 0.0)
    with pytest.raises(InvalidInputError, match="clip_high must be positive"):
        ppo_clip(lp, lp, lp, 0.2, -0.1)
    with pytest.raises(InvalidInputError, match="at least one step"):
        denoise_clip(0, 0.1, 0.2)
    with pytest.raises(InvalidInputError, match="must be positive"):
        denoise_clip(3, 0.0, 0.2)
