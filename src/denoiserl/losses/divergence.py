"""Estimates of KL(π ‖ ref) from samples of π: one number per element, ``[*b]`` -> ``[*b]``.

With ℓ = log π(x) − log ref(x) and x ~ π:

| estimate | value | E[value] | E[gradient] (x fixed) |
|---|---|---|---|
| ``k1 = ℓ`` | any sign | KL(π‖ref) | 0: no loss, but correct as a reward (``log_ratio_to_go``) |
| ``k2 = ℓ²/2`` | ≥ 0 | biased to third order | ∇KL(π‖ref): correct as a loss |
| ``k3 = exp(−ℓ) − 1 + ℓ`` | ≥ 0 | KL(π‖ref) | ∇KL(ref‖π): GRPO's loss, not the gradient of KL(π‖ref) |

All three are exact at any ℓ of either sign, except k3 below ℓ = −20, where it is a lower bound (see there).

If the distribution has a closed-form ``kl``, use it; on a chain see ``kl_to_go``.
Schulman, "Approximating KL divergence", 2020.
"""

from __future__ import annotations

import math

from torch import Tensor

from denoiserl.advantages.checks import same_shape

LIMIT = 20.0
"""largest exponent: e^20 = 4.9e8 and its square are finite in float32, and no useful ratio is as large"""


def k1(log_prob: Tensor, ref: Tensor) -> Tensor:
    """Return ℓ: unbiased, of any sign."""
    same_shape(log_prob=log_prob, ref=ref)
    return log_prob - ref


def k2(log_prob: Tensor, ref: Tensor) -> Tensor:
    """Return ℓ²/2: biased value, unbiased gradient."""
    return 0.5 * k1(log_prob, ref).square()


def k3(log_prob: Tensor, ref: Tensor) -> Tensor:
    """Return exp(−ℓ) − 1 + ℓ, unbiased and never negative.

    Exact for ℓ ≥ −20: a policy far above its reference (ℓ = 30) gets 29. Below −20, where the exponential would
    overflow, k3 continues along its tangent at −20: finite, too small, with a gradient towards the reference.
    """
    gap = k1(log_prob, ref)
    near, beyond = gap.clamp_min(-LIMIT), (gap + LIMIT).clamp_max(0.0)
    return (-near).expm1() + near - math.expm1(LIMIT) * beyond
