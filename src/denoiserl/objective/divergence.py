"""Estimates of KL(π ‖ ref) from samples of π: one number an element, ``[*b]`` -> ``[*b]``.

With ℓ = log π(x) − log ref(x) and x ~ π:

| estimate | value | E[value] | E[gradient] (x fixed) |
|---|---|---|---|
| ``k1 = ℓ`` | any sign | KL(π‖ref) | 0: useless as a loss, right as a reward (``log_ratio_to_go``) |
| ``k2 = ℓ²/2`` | ≥ 0 | biased to third order | ∇KL(π‖ref): the right one as a loss |
| ``k3 = exp(−ℓ) − 1 + ℓ`` | ≥ 0 | KL(π‖ref) | ∇KL(ref‖π): the loss of GRPO, not the KL it reports |

Where a law has a closed-form ``kl`` use that; on a chain see ``kl_to_go``.
Schulman, "Approximating KL divergence", 2020.
"""

from __future__ import annotations

from torch import Tensor

from denoiserl.credit.shapes import same_shape

LIMIT = 20.0
"""Log-ratios are clamped at ± this before an exponential: e^20 = 4.9e8 is finite in float32 and absurd as a ratio."""


def k1(log_prob: Tensor, ref: Tensor) -> Tensor:
    """ℓ: unbiased, of any sign."""
    same_shape(log_prob=log_prob, ref=ref)
    return log_prob - ref


def k2(log_prob: Tensor, ref: Tensor) -> Tensor:
    """ℓ²/2: biased value, unbiased gradient."""
    return 0.5 * k1(log_prob, ref).square()


def k3(log_prob: Tensor, ref: Tensor) -> Tensor:
    """exp(−ℓ) − 1 + ℓ: unbiased and never negative; ℓ is clamped at ±20."""
    gap = k1(log_prob, ref).clamp(-LIMIT, LIMIT)
    return (-gap).expm1() + gap
