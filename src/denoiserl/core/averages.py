"""The moving average of tensors that all averages of weights use: targets of critics, EMA, sets that follow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from denoiserl.core.errors import RunError


def has_low_precision(value: Tensor) -> bool:
    """Is this a number of fewer than 32 bits?"""
    return value.is_floating_point() and value.element_size() < 4


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], now: Mapping[str, Tensor], rate: float, masters: dict[str, Tensor]
) -> None:
    """θ̄ ← (1 − rate) θ̄ + rate θ, in place (Polyak averaging); rate = 1 copies. Raise RunError outside of [0, 1].

    ``masters`` is the state of averages in bf16 and fp16: their float32 values, in which small steps are not lost. An
    average that was changed elsewhere continues from where it is.
    """
    if not 0 <= rate <= 1:
        raise RunError(f"the rate of an average lies in [0, 1], not {rate}")
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
