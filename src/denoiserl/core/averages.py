"""The moving average of tensors, used for target critics, EMA and other averages of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from denoiserl.core.errors import RunError


def has_low_precision(value: Tensor) -> bool:
    """Return whether a tensor is floating point with fewer than 32 bits."""
    return value.is_floating_point() and value.element_size() < 4


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], now: Mapping[str, Tensor], rate: float, masters: dict[str, Tensor]
) -> None:
    """Update in place: θ̄ ← (1 − rate) θ̄ + rate θ (Polyak averaging). Raise RunError for a rate outside [0, 1].

    rate = 1 copies. ``masters`` holds float32 copies of the averages in bf16 and fp16, so that small steps are not
    lost. An average that other code has changed continues from its new value.
    """
    if not 0 <= rate <= 1:
        raise RunError(f"rate = {rate} is outside [0, 1]: give the rate of a moving average")
    low = {name for name, value in average.items() if rate < 1 and has_low_precision(value)}
    for name in masters.keys() - low:
        del masters[name]
    for name in low:
        value = average[name]
        held = masters[name].to(value.device) if name in masters else value.float()
        masters[name] = torch.where(held.to(value.dtype) == value, held, value.float())
        masters[name].lerp_(now[name].float(), rate)
        value.copy_(masters[name])
    if rest := average.keys() - low:
        torch._foreach_lerp_([average[name] for name in rest], [now[name] for name in rest], rate)
