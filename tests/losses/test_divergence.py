"""The three KL estimators by enumeration: values, and whose gradient each has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.core.errors import InvalidInputError
from denoiserl.losses import k1, k2, k3


def laws(seed: int):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, generator=g, dtype=torch.float64)
    return logits[0].requires_grad_(), logits[1].log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased(seed):
    logits, ref = laws(seed)
    p = logits.log_softmax(-1).detach()
    for estimate in (k1, k3):
        torch.testing.assert_close((p.exp() * estimate(p, ref)).sum(), kl(p, ref))


@pytest.mark.parametrize("seed", range(5))
def test_as_losses_k1_has_no_gradient_k2_that_of_the_kl_k3_that_of_the_reverse(seed):
    logits, ref = laws(seed)

    def grad(f):
        return torch.autograd.grad(f(logits.log_softmax(-1)), logits)[0]

    def expected(estimate):
        return grad(lambda p: (p.detach().exp() * estimate(p, ref)).sum())

    torch.testing.assert_close(expected(k1), torch.zeros_like(logits))
    torch.testing.assert_close(expected(k2), grad(lambda p: kl(p, ref)))
    torch.testing.assert_close(expected(k3), grad(lambda p: kl(ref, p)))


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e3, 0), st.floats(-1e3, 0))
def test_k2_and_k3_are_never_negative_and_zero_at_the_reference(a, b):
    a, b = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert k2(a, b) >= 0
    assert k3(a, b) >= 0
    assert k3(a, b).isfinite().all()
    assert k3(a, a) == 0


def test_k3_keeps_its_digits_near_the_reference():
    gap = torch.tensor([1e-3, -1e-3])  # float32, where exp(x) − 1 would have two digits left
    torch.testing.assert_close(k3(gap, torch.zeros(2)), gap.square() / 2, rtol=2e-3, atol=0)


def test_a_policy_far_above_its_reference_is_told_as_far():
    """k3(ℓ) = e^−ℓ − 1 + ℓ in float64, for ℓ up to 1e4, and at the lower end as far as float32 can follow."""
    for gap in (30.0, 100.0, 1e4, -1.0, -19.0):
        exact = torch.expm1(torch.tensor(-gap, dtype=torch.float64)) + gap
        assert k3(torch.tensor([gap]), torch.zeros(1)).item() == pytest.approx(float(exact), rel=1e-5)
    assert k3(torch.zeros(1), torch.tensor([-torch.inf])).item() == torch.inf  # the reference rules the sample out


def test_a_policy_far_below_its_reference_is_a_bound_whose_gradient_points_home():
    gap = torch.tensor([-20.0, -25.0, -100.0, -1e4], requires_grad=True)
    value = k3(gap, torch.zeros(4))
    exact = torch.expm1(-gap.detach().double()) + gap.detach()
    assert bool((value.double() <= exact * (1 + 1e-5)).all()) and bool((value.diff() > 0).all())
    value.sum().backward()
    assert gap.grad is not None and bool(gap.grad.isfinite().all()) and bool((gap.grad < -1e8).all())


def test_shapes_must_match():
    for estimate in (k1, k2, k3):
        with pytest.raises(InvalidInputError, match="Shapes must be equal"):
            estimate(torch.zeros(3), torch.zeros(3, 1))
