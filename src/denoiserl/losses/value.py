"""Losses of value networks: one loss per element, ``[*b]`` -> ``[*b]``. Targets have no gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from denoiserl.advantages.checks import require_no_grad, same_shape
from denoiserl.core.errors import InvalidInputError


def half_squared_error(value: Tensor, target: Tensor) -> Tensor:
    """Return ``½ (v − target)²``: the gradient is the error."""
    same_shape(value=value, target=target)
    require_no_grad(target=target)
    return 0.5 * (value - target).square()


def clipped_value(value: Tensor, target: Tensor, old: Tensor, clip: float) -> Tensor:
    """Return ``½ max((v − target)², (v_old + clamp(v − v_old, ±clip) − target)²)``, PPO's value clip.

    The gradient is zero where v is more than ``clip`` from ``old`` in the direction of the target. PPO2; TraceRL, arXiv
    2509.06949.
    """
    require_no_grad(old=old)
    same_shape(value=value, target=target, old=old)
    if not clip > 0:
        raise InvalidInputError(f"clip must be positive, got {clip}.")
    near = old + (value - old).clamp(-clip, clip)
    return torch.maximum(half_squared_error(value, target), half_squared_error(near, target))


def huber(value: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Return ``½ e²`` for |e| ≤ delta, else ``delta (|e| − ½ delta)``: the gradient is the error clamped at ±delta."""
    same_shape(value=value, target=target)
    require_no_grad(target=target)
    if not delta > 0:
        raise InvalidInputError(f"delta must be positive, got {delta}.")
    return F.huber_loss(value, target, reduction="none", delta=delta)


def expectile(value: Tensor, target: Tensor, tau: float = 0.7) -> Tensor:
    """Return ``|τ − 1{target < v}| (target − v)²``: the minimiser over v is the τ-expectile of the targets.

    τ = ½ is half the squared error and gives the mean. τ → 1 gives the largest target in the data, without an
    evaluation of decisions outside of them. IQL, arXiv 2110.06169, eq. 5.
    """
    same_shape(value=value, target=target)
    require_no_grad(target=target)
    if not 0 < tau < 1:
        raise InvalidInputError(f"tau must lie between 0 and 1, got {tau}.")
    error = target - value
    return torch.where(error < 0, 1 - tau, tau) * error.square()


def normalized_q_loss(value: Tensor, by: Tensor | None = None, floor: float = 1e-3) -> Tensor:
    """Return ``−Q / max(E|Q'|, floor)``, ``[*b]``: an actor loss that does not depend on the scale of the reward.

    ``by``: Q', another critic of the same decisions (Diffusion-QL), by default Q itself (TD3+BC); detached either
    way. The floor limits the scale for untrained critics and for rewards that are all zero.
    TD3+BC, arXiv 2106.06860, eq. 5; Diffusion-QL, arXiv 2208.06193.
    """
    scale = value.detach() if by is None else by
    same_shape(value=value, by=scale)
    require_no_grad(by=scale)
    if not floor > 0:
        raise InvalidInputError(f"floor must be positive, got {floor}.")
    return -value / scale.abs().mean().clamp_min(floor)
