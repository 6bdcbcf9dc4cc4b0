"""Expectiles against their closed form and dynamic programming; the pace of ascent against the unit of reward."""

from __future__ import annotations

import math

import pytest
import torch

from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import expectile, half_squared_error, normalized_q_loss


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.95])
def test_the_minimiser_is_the_expectile(tau: float) -> None:
    """Of the uniform distribution on [0, 1] it is √τ / (√τ + √(1 − τ)): τ (1 − e)² = (1 − τ) e²."""
    x = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    e = math.sqrt(tau) / (math.sqrt(tau) + math.sqrt(1 - tau))
    at = torch.tensor(e, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(expectile(at.expand(20_000), x, tau).mean(), at)
    assert float(slope.abs()) < 1e-7
    less, here, more = (float(expectile(torch.full_like(x, v), x, tau).mean()) for v in (e - 0.02, e, e + 0.02))
    assert here < min(less, more)


def test_one_half_is_half_the_squared_error_that_is_the_mean() -> None:
    torch.manual_seed(0)
    v, y = torch.randn(9), torch.randn(9)
    assert torch.allclose(expectile(v, y, 0.5), half_squared_error(v, y))


def test_expectile_values_lie_between_the_behaviour_s_and_the_optimum_and_reach_both() -> None:
    """A ring of six states, each action a step left, right or none, with one paid state: V_τ by regression on the data
    is policy evaluation at τ = ½ and value iteration as τ → 1."""
    states, gamma = 6, 0.9
    after = torch.stack([(torch.arange(states) + d) % states for d in (-1, 0, 1)], 1)  # [states, actions]
    reward = torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)[:, None].expand(-1, 3)
    mean, best = torch.zeros(states, dtype=torch.float64), torch.zeros(states, dtype=torch.float64)
    for _ in range(400):
        mean = (reward + gamma * mean[after]).mean(1)
        best = (reward + gamma * best[after]).amax(1)

    def fitted(tau: float) -> torch.Tensor:
        v = torch.zeros(states, dtype=torch.float64)
        for _ in range(120):
            target, at = reward + gamma * v[after], v.clone().requires_grad_()
            for _ in range(12):  # Newton's steps: the loss is a parabola in pieces
                (slope,) = torch.autograd.grad(expectile(at[:, None].expand(-1, 3), target, tau).sum(), at)
                bend = torch.where(target < at[:, None], 1 - tau, tau).sum(1) * 2
                at = (at - slope / bend).detach().requires_grad_()
            v = at.detach()
        return v

    values = [fitted(tau) for tau in (0.5, 0.8, 0.999)]
    assert torch.allclose(values[0], mean, atol=1e-4)
    assert torch.allclose(values[2], best, atol=0.03)
    assert bool((values[0] < values[1]).all() and (values[1] < values[2]).all())


def test_ascent_does_not_depend_on_the_unit_of_reward_and_has_a_floor() -> None:
    torch.manual_seed(0)
    a = torch.randn(50, requires_grad=True)
    slopes = [torch.autograd.grad(normalized_q_loss(unit * (a.square() - 3)).mean(), a)[0] for unit in (1.0, 1e4)]
    assert torch.allclose(*slopes, rtol=1e-4)
    small = torch.autograd.grad(normalized_q_loss(1e-9 * a).mean(), a)[0]
    assert float(small.abs().max()) < 1e-6, "a critic that knows nothing moves nothing"
    pace = torch.autograd.grad(normalized_q_loss(a, torch.full((50,), -4.0)).sum(), a)[0]
    assert torch.allclose(pace, torch.full((50,), -0.25))
    with pytest.raises(InvalidInputError, match="constant"):
        normalized_q_loss(a, a)
    with pytest.raises(InvalidInputError, match="tau"):
        expectile(a, a.detach(), 1.0)


def test_the_pace_of_ascent_is_the_mean_size_of_values_of_both_signs() -> None:
    """Values whose mean is 0 are as large as those of one sign: E|Q'| of −1, 1, −3 and 3 is 2."""
    value = torch.tensor([1.0, -2.0, 4.0, 0.0])
    for by in ([-1.0, 1.0, -3.0, 3.0], [1.0, 1.0, 3.0, 3.0], [-1.0, -1.0, -3.0, -3.0]):
        assert normalized_q_loss(value, torch.tensor(by)).tolist() == [-0.5, 1.0, -2.0, 0.0]
    own = torch.tensor([2.0, -2.0])
    assert normalized_q_loss(own).tolist() == [-1.0, 1.0]
