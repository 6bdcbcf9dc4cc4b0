"""Losses of a value net: one loss an element, ``[*b]`` -> ``[*b]``. Targets are constants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from denoiserl.credit.shapes import constant, same_shape
from denoiserl.errors import BadSignal


def squared(value: Tensor, target: Tensor) -> Tensor:
    """``½ (v − target)²``: the gradient is the error."""
    same_shape(value=value, target=target)
    constant(target=target)
    return 0.5 * (value - target).square()


def clipped_value(value: Tensor, target: Tensor, old: Tensor, clip: float) -> Tensor:
    """``½ max((v − target)², (v_old + clamp(v − v_old, ±clip) − target)²)``: PPO's value clip.

    No gradient where v has left ``old`` by more than ``clip`` in the direction of the target. PPO2; TraceRL, arXiv
    2509.06949.
    """
    constant(old=old)
    same_shape(value=value, target=target, old=old)
    if not clip > 0:
        raise BadSignal(f"clip must be positive, got {clip}.")
    near = old + (value - old).clamp(-clip, clip)
    return torch.maximum(squared(value, target), squared(near, target))


def huber(value: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """``½ e²`` for |e| ≤ delta, ``delta (|e| − ½ delta)`` beyond: the gradient is the error clamped at ±delta."""
    same_shape(value=value, target=target)
    constant(target=target)
    if not delta > 0:
        raise BadSignal(f"delta must be positive, got {delta}.")
    return F.huber_loss(value, target, reduction="none", delta=delta)
