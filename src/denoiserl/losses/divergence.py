"""Estimates of KL(π ‖ ref) from samples of π: one number an element, ``[*b]`` -> ``[*b]``.

With ℓ = log π(x) − log ref(x) and x ~ π:

| estimate | value | E[value] | E[gradient] (x fixed) |
|---|---|---|---|
| ``k1 = ℓ`` | any sign | KL(π‖ref) | 0: useless as a loss, right as a reward (``log_ratio_to_go``) |
| ``k2 = ℓ²/2`` | ≥ 0 | biased to third order | ∇KL(π‖ref): the right one as a loss |
| ``k3 = exp(−ℓ) − 1 + ℓ`` | ≥ 0 | KL(π‖ref) | ∇KL(ref‖π): the loss of GRPO, not the KL it reports |

All three are exact at any ℓ of either sign, except k3 below ℓ = −20, where it is a lower bound (see there).

Where a law has a closed-form ``kl`` use that; on a chain see ``kl_to_go``.
Schulman, "Approximating KL divergence", 2020.
"""

from __future__ import annotations

import math

from torch import Tensor

from denoiserl.advantages.shapes import same_shape

LIMIT = 20.0
"""The largest exponent: e^20 = 4.9e8 is finite in float32, and its square too, and it is absurd as a ratio."""


def k1(log_prob: Tensor, ref: Tensor) -> Tensor:
    """ℓ: unbiased, of any sign."""
    same_shape(log_prob=log_prob, ref=ref)
    return log_prob - ref


def k2(log_prob: Tensor, ref: Tensor) -> Tensor:
    """ℓ²/2: biased value, unbiased gradient."""
    return 0.5 * k1(log_prob, ref).square()


def k3(log_prob: Tensor, ref: Tensor) -> Tensor:
    """Return exp(−ℓ) − 1 + ℓ, unbiased and never negative.

    Exact for ℓ ≥ −20, so a policy far above its reference (ℓ = 30) reads 29. Below −20, where the exponential leaves
    float32, k3 goes on along its tangent at −20: finite, too small, and with a gradient that still points home.
    """
    gap = k1(log_prob, ref)
    near, beyond = gap.clamp_min(-LIMIT), (gap + LIMIT).clamp_max(0.0)
    return (-near).expm1() + near - math.expm1(LIMIT) * beyond
