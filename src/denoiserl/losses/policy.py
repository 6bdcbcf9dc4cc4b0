"""Policy gradients: raise the probability of decisions with a positive advantage."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoiserl.advantages.checks import check_broadcastable, require_no_grad, same_shape
from denoiserl.core.errors import InvalidInputError
from denoiserl.losses.divergence import LIMIT, k3
from denoiserl.losses.reduction import masked_mean


def reinforce(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return the score-function loss ``−Â log π``, ``[*b]`` -> ``[*b]``. Only its gradient, −Â ∇log π, has a meaning.

    Williams 1992; DDPO_SF in arXiv 2305.13301.
    """
    same_shape(log_prob=log_prob, advantage=advantage)
    require_no_grad(advantage=advantage)
    return -advantage * log_prob


def ppo_clip(
    log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float | Tensor, clip_high: float | Tensor | None = None
) -> Tensor:
    """Return PPO's clipped surrogate loss. ``[*b]`` -> ``[*b]``.

        −min(ρ Â, clamp(ρ, 1 − clip, 1 + clip_high) Â),   ρ = exp(log π − log π_old)

    The gradient is zero where the ratio has left the range in the direction of the advantage, and unchanged elsewhere.
    At ρ = 1 it is that of ``reinforce``. ``clip_high`` defaults to ``clip``. A tensor of ranges broadcasts to the
    elements: a range per step (``denoise_clip``), or one gathered per row.

    The log-ratio is clamped at ±20 before the exponential, so an extreme ratio is finite and passes no gradient.
    ``old`` must be finite. With joint log-probs ρ is the likelihood ratio. With ``log_prob / law.num_factors`` it is
    the geometric mean of DDPO, DPPO, Flow-GRPO (whose clips of 1e-4..1e-2 assume it) and, over a sequence, of GSPO.
    Schulman et al., arXiv 1707.06347; clip-higher: DAPO, 2503.14476.
    """
    same_shape(log_prob=log_prob, old=old, advantage=advantage)
    require_no_grad(old=old, advantage=advantage)
    low, high = _range(log_prob, clip, clip_high)
    ratio = _log_ratio(log_prob, old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def denoise_clip(steps: int, base: float, coef: float, rate: float = 3.0) -> Tensor:
    """Return DPPO's clip range per denoising step, float32 ``[steps]`` from the noisiest to the cleanest.

        clip(t) = base + (coef − base) (exp(rate t) − 1) / (exp(rate) − 1),   t = 0 noisiest, t = 1 cleanest

    Noisy steps get the tight range ``base``, the last one ``coef``. Rate 0 is a straight line; a single step gets
    ``coef``. Index it by the step of every row when rows are shuffled. arXiv 2409.00588.
    """
    if steps < 1:
        raise InvalidInputError(f"A chain has at least one step, got {steps}.")
    if not (base > 0 and coef > 0):
        raise InvalidInputError(f"Clip ranges must be positive, got base={base} and coef={coef}.")
    t = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    bend = t if rate == 0 else torch.expm1(rate * t) / math.expm1(rate)
    return (base + (coef - base) * bend).float()


def clip_sides(
    log_prob: Tensor,
    old: Tensor,
    clip: float | Tensor,
    clip_high: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the shares of elements whose ratio is (below, above) the clip range, two scalars.

    If in the first epoch all are on one side, old and new log-probs are computed differently.
    """
    same_shape(log_prob=log_prob, old=old)
    low, high = _range(log_prob, clip, clip_high)
    with torch.no_grad():
        ratio = _log_ratio(log_prob, old).exp()
        return masked_mean((ratio < low).float(), mask), masked_mean((ratio > high).float(), mask)


def clip_fraction(
    log_prob: Tensor,
    old: Tensor,
    clip: float | Tensor,
    clip_high: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the share of elements whose ratio is outside the clip range, a scalar."""
    below, above = clip_sides(log_prob, old, clip, clip_high, mask)
    return below + above


def approx_kl(log_prob: Tensor, old: Tensor, mask: Tensor | None = None) -> Tensor:
    """Estimate KL(π_old ‖ π) from samples of π_old, the mean of ``k3(old, log_prob)``: a scalar."""
    with torch.no_grad():
        return masked_mean(k3(old, log_prob), mask)


def _log_ratio(log_prob: Tensor, old: Tensor) -> Tensor:
    return (log_prob - old).clamp(-LIMIT, LIMIT)


def _range(log_prob: Tensor, clip: float | Tensor, clip_high: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """Return 1 − clip and 1 + clip_high as tensors that broadcast to the elements."""
    clip_high = clip if clip_high is None else clip_high
    check_broadcastable(log_prob.shape, clip=clip, clip_high=clip_high)
    for name, x in (("clip", clip), ("clip_high", clip_high)):
        if not isinstance(x, Tensor) and not x > 0:
            raise InvalidInputError(f"{name} must be positive, got {x}.")
    low, high = (torch.as_tensor(x, dtype=log_prob.dtype, device=log_prob.device) for x in (clip, clip_high))
    return 1 - low, 1 + high
