"""Advantages relative to the batch: zero mean, unit std, no outliers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoiserl.advantages.checks import as_float, boolean, finite, resolution, same_shape
from denoiserl.core.errors import InvalidInputError


def normalise(advantage: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``(Â − mean) / std`` over all elements (of ``mask``); elsewhere 0. Any shape.

    The std is the population std, and no ε is added. Equal advantages give exact zeros; 4 units in the last place of
    the largest one count as equal. Raise InvalidInputError for fewer than two.
    """
    counted = torch.ones_like(advantage, dtype=torch.bool) if mask is None else mask
    same_shape(advantage=advantage, mask=counted)
    boolean(mask=counted)
    finite(counted, advantage=advantage)
    x = as_float(advantage)[counted]
    if x.numel() < 2:
        raise InvalidInputError(
            f"{x.numel()} advantage(s) cannot be normalised: use a larger batch, or leave them as they are."
        )
    above = x - x.min()
    above = torch.where(above.max() < resolution(x.abs().max()), 0.0, above)
    centred = above - above.mean()
    peak = centred.abs().max()
    if peak > 0:
        unit = centred / peak
        centred = unit / unit.square().mean().sqrt()
    return torch.zeros_like(as_float(advantage)).masked_scatter(counted, centred)


def clip_quantile(advantage: Tensor, q: float) -> Tensor:
    """Clamp to the quantiles q and 1 − q of all elements (linear interpolation). Any shape; q = 0 changes nothing.

    DPPO's guard against rare environment steps that would dominate the batch (arXiv 2409.00588).
    """
    if not 0 <= q < 0.5:
        raise InvalidInputError(f"q must be in [0, 0.5), got {q}.")
    finite(advantage=advantage)
    # torch.quantile refuses more than 2^24 elements, which env x denoising batches reach.
    order = advantage.flatten().sort().values

    def quantile(p: float) -> Tensor:
        place = p * (len(order) - 1)
        return order[math.floor(place)].lerp(order[math.ceil(place)], place - math.floor(place))

    return advantage.clamp(quantile(q), quantile(1 - q))
