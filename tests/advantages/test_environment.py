"""Credit over environment time against definitions that are not recursions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.advantages import gae, returns
from denoiserl.core.errors import InvalidInputError


def stream(seed: int, T: int, B: int):
    """A random stream whose episodes end truly or by a time limit; inside an episode v(s'ₜ) = v(sₜ₊₁)."""
    r = np.random.default_rng(seed)
    reward, value, successor = r.normal(size=(3, T, B))
    end, cut = r.random((2, T, B)) < 0.2
    next_value = np.concatenate([value[1:], successor[:1]])
    done = end | cut
    next_value = np.where(done, successor, next_value)
    discount = np.where(end, 0.0, 0.95 ** r.integers(1, 5, (T, B)))  # chunks of 1 to 4 actions
    return [torch.as_tensor(x) for x in (reward, discount, value, next_value, done)]


def lambda_mixture(reward, discount, value, next_value, done, lam):
    """Â as the (1−λ)λⁿ⁻¹ mixture of all n-step returns of the episode, minus the value: O(T²), forward in time."""
    T, B = reward.shape
    out = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            total, weight, so_far, gamma = 0.0, 1.0, 0.0, 1.0
            for n in range(t, T):
                so_far += gamma * float(reward[n, b])
                gamma *= float(discount[n, b])
                n_step = so_far + gamma * float(next_value[n, b])
                if bool(done[n, b]) or n == T - 1:
                    total += weight * n_step
                    break
                total += weight * (1 - lam) * n_step
                weight *= lam
            out[t, b] = total - float(value[t, b])
    return torch.as_tensor(out)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3), st.floats(0, 1))
def test_gae_is_the_lambda_mixture_of_n_step_advantages(seed, T, B, lam):
    s = stream(seed, T, B)
    torch.testing.assert_close(gae(*s, lam=lam), lambda_mixture(*s, lam=lam))


def test_lambda_one_and_no_value_is_the_discounted_sum():
    reward = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    zero, gamma = torch.zeros_like(reward), 0.5
    discount = torch.full_like(reward, gamma)
    done = torch.zeros_like(reward, dtype=torch.bool)
    expected = torch.tensor([[1 + 1 + 1 + 1.0], [2 + 2 + 2.0], [4 + 4.0], [8.0]])
    assert torch.equal(gae(reward, discount, zero, zero, done, 1.0), expected)
    assert torch.equal(returns(reward, discount, done), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_lambda_one_plus_the_value_is_the_bootstrapped_return(seed):
    reward, discount, value, next_value, done = s = stream(seed, 9, 4)
    torch.testing.assert_close(gae(*s, lam=1.0) + value, returns(reward, discount, done, next_value))


def test_true_values_leave_no_advantage_for_any_lambda():
    reward, discount, _, successor, done = stream(3, 12, 5)
    value = returns(reward, discount, done, successor)
    next_value = torch.where(done, successor, torch.cat([value[1:], successor[-1:]]))
    for lam in (0.0, 0.3, 1.0):
        assert gae(reward, discount, value, next_value, done, lam).abs().max() < 1e-12


@pytest.mark.parametrize("truly", [True, False])
def test_nothing_leaks_over_an_end_but_a_time_limit_bootstraps(truly):
    T, end = 6, 2
    reward = torch.randn(T, 1, dtype=torch.float64, requires_grad=True)
    next_value = torch.randn(T, 1, dtype=torch.float64, requires_grad=True)
    value = torch.randn(T, 1, dtype=torch.float64)
    discount = torch.full((T, 1), 0.9, dtype=torch.float64)
    done = torch.zeros(T, 1, dtype=torch.bool)
    done[end] = True
    if truly:
        discount[end] = 0
    first = gae(reward, discount, value, next_value, done, 0.8)[0, 0]
    d_reward, d_next = torch.autograd.grad(first, (reward, next_value))
    assert torch.equal(d_reward[end + 1 :], torch.zeros(T - end - 1, 1, dtype=torch.float64))
    assert torch.equal(d_next[end + 1 :], torch.zeros(T - end - 1, 1, dtype=torch.float64))
    assert d_reward[end].item() == pytest.approx(0.72**2)
    assert d_next[end].item() == pytest.approx(0.0 if truly else 0.72**2 * 0.9)


def test_float32_stays_float32_and_rows_do_not_see_each_other():
    s = [x.float() if x.is_floating_point() else x for x in stream(0, 8, 3)]
    whole = gae(*s, lam=0.95)
    assert whole.dtype == torch.float32
    for b in range(3):
        assert torch.equal(whole[:, b], gae(*(x[:, b] for x in s), lam=0.95))


def test_refusals():
    reward, discount, value, next_value, done = stream(0, 4, 2)
    with pytest.raises(InvalidInputError, match="Shapes must be equal"):
        gae(reward, discount, value[..., None], next_value, done, 0.9)
    with pytest.raises(InvalidInputError, match="boolean"):
        gae(reward, discount, value, next_value, done.double(), 0.9)
    with pytest.raises(InvalidInputError, match="lam must be"):
        gae(reward, discount, value, next_value, done, 1.1)
    with pytest.raises(InvalidInputError, match="discount must be"):
        gae(reward, discount * 2, value, next_value, done, 0.9)
    broken = reward.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InvalidInputError, match=r"reward\[2, 1\] = nan"):
        gae(broken, discount, value, next_value, done, 0.9)
    with pytest.raises(InvalidInputError, match="at least one step"):
        returns(reward[:0], discount[:0], done[:0])
